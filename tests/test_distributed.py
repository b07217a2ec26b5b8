"""Many devices (the two that conftest fakes, and eight) and two processes give what one device gives."""

import json
import os
import pathlib
import subprocess
import time

import jax
import numpy as np
import pytest
from flax import nnx

import run
from benchmarks import scale
from flaxae import autoencoder, errors, training
from flaxae.autoencoder import Config
from flaxae.likelihoods import Gaussian
from flaxae.nn.heads import Deterministic
from flaxae.nn.mlp import MLP
from flaxae.parallel import distributed, processes
from tests.test_training import _InterruptAt

ROOT = pathlib.Path(scale.__file__).parent.parent
TINY = Config(body=MLP((8,)), head=Deterministic(4), likelihood=Gaussian())


def test_eight_devices_give_the_losses_of_one(monkeypatch):
    expected_members, expected_solo = scale.mesh_losses([(None, True, True), (None, False, False)])
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"].replace("device_count=2", "device_count=8"))
    members, solo = scale.apart(scale.mesh_losses, [("population=2,data=4", True, True), ("data=8", False, False)])
    assert scale.difference(members, expected_members) < 1e-5
    assert scale.difference(solo, expected_solo) < 1e-5


def test_a_run_on_two_devices_resumes_on_one(tmp_path, rng):
    x = rng.standard_normal((200, 6)).astype(np.float32)
    settings = {"epochs": 2, "batch_size": 32, "show": False}
    models = [autoencoder.build(TINY, (6,)) for _ in range(2)]

    whole = training.fit(models[0], x, **settings)
    two = {"mesh": distributed.mesh("data=2"), "folder": tmp_path, "on_epoch": _InterruptAt(1)}
    with pytest.raises(KeyboardInterrupt):
        training.fit(models[1], x, **two, **settings)
    resumed = training.fit(models[1], x, folder=tmp_path, resume=True, **settings)
    assert resumed["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(nnx.state(models[1])))
    with pytest.raises(errors.ConfigError, match="33 examples can't be shared evenly by 2"):
        training.fit(models[1], x, mesh=distributed.mesh("data=2"), **{**settings, "batch_size": 33})


@pytest.mark.parametrize("shape", ["data=3", "date=2", "data=2,data=1", "data=0", "data"])
def test_a_mesh_that_can_not_be_is_refused(shape):
    with pytest.raises(errors.ConfigError, match=shape):
        distributed.mesh(shape)


def test_one_of_two_processes_killed_ends_the_other_and_one_goes_on(tmp_path, monkeypatch):
    scale.table(tmp_path, rows=2000)
    runs, flags = tmp_path / "runs/reconstruct", f"{scale.FLAGS} --epochs 20 --name two"
    quick = {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=2", "device_count=1")}
    job = scale.Job(tmp_path, flags, each={0: quick, 1: quick})
    job.wait_for(runs / "two/checkpoints/best")
    job.processes[1].kill()
    began = time.monotonic()
    status, message = job.wait()[0]
    assert time.monotonic() - began < 15
    assert (status, message.splitlines()) == (processes.LOST, [f"error: {processes._LOST}"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flaxae.data.arrays.MAP_BYTES", 0)
    monkeypatch.setattr("flaxae.feed.WINDOW_BYTES", 100_000)
    assert run.main(f"{flags} --resume --no-cache".split()) == 0
    assert run.main(f"{scale.FLAGS} --epochs 20 --name one --no-cache".split()) == 0
    lines = [json.loads(line) for line in (runs / "two/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 21))
    assert {line["processes"] for line in lines} <= {1, 2}
    assert lines[-1]["processes"] == 1
    assert scale.difference(scale.losses(runs / "two"), scale.losses(runs / "one")) < 1e-5


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, None),
        ({"SLURM_NTASKS": "4"}, None),  # in the shell of an allocation
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "1"}, {}),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, {}),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"},
            {"coordinator_address": "a:1", "num_processes": 2, "process_id": 1},
        ),
    ],
)
def test_the_environment_tells_of_other_processes(environment, found, monkeypatch):
    for name in ("SLURM_NTASKS", "SLURM_PROCID", "OMPI_COMM_WORLD_SIZE", "JAX_COORDINATOR_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes._of_environment() == found


def test_the_slurm_script_starts_then_resumes_and_asks_to_be_queued_again(tmp_path):
    """With stand-ins for Slurm's commands, that print what they are called with."""
    for name in ("srun", "scontrol"):
        script = tmp_path / name
        script.write_text(f'#!/bin/bash\necho {name} "$@"\nexit "${{{name.upper()}_STATUS:-0}}"\n')
        script.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}

    def submit(*arguments, **more):
        command = ["bash", ROOT / "deploy/slurm.sh", *arguments]
        ended = subprocess.run(
            command, cwd=tmp_path, env={**environment, **more}, capture_output=True, text=True, check=False
        )
        return ended.returncode, ended.stdout

    start = "srun --kill-on-bad-exit=1 python run.py --exp denoise --name night"
    assert submit("night", "--exp", "denoise") == (0, f"{start}\n")
    (tmp_path / "runs/denoise/night/checkpoints/latest").mkdir(parents=True)
    again = (processes.LOST, f"{start} --resume\nscontrol requeue 7\n")
    assert submit("night", "--exp", "denoise", SRUN_STATUS=str(processes.LOST)) == again
    assert submit("night", "--exp", "denoise", SRUN_STATUS="2") == (2, f"{start} --resume\n")
    assert submit("--exp", "denoise")[0] == 2
