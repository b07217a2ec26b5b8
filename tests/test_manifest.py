"""What was saved together is read together, as it was, or refused."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from flaxae import atomic, manifest, runs
from flaxae.errors import CheckpointError, RunError
from flaxae.training import checkpoints

OURS = frozenset({"a.json", "weights"})


def save(folder, text):
    with manifest.replacing(folder, OURS) as unfinished:
        (unfinished / "a.json").write_text(text)
        checkpoints.save(unfinished / "weights", 0, {"x": np.full(3, len(text))}, keep=1)


def test_every_file_is_bound_and_a_change_of_any_is_named(tmp_path):
    folder = tmp_path / "set"
    save(folder, "one")
    assert manifest.check(folder)["files"].keys() >= {"a.json", "weights/0/manifest"}
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        good = path.read_bytes()
        for bad in (None, b"", good[:-1], good + b" ", b"\0" + good[1:]):
            path.unlink() if bad is None else path.write_bytes(bad)
            if bad is None and path.name == manifest.NAME and path.parent == folder:
                assert manifest.check(folder) is None  # as what was written before there were manifests
            elif bad != good:
                with pytest.raises(manifest.Damaged, match=path.name):
                    manifest.check(folder)
            path.write_bytes(good)
    assert manifest.content(folder, "a.json") == b"one"
    (folder / "a.json").write_text("two")
    with pytest.raises(manifest.Damaged, match=r"a\.json is damaged: it was changed"):
        manifest.content(folder, "a.json")


def test_what_is_saved_again_replaces_all_and_what_is_not_ours_is_never_lost(tmp_path):
    folder = tmp_path / "set"
    save(folder, "one")
    save(folder, "three")
    assert manifest.check(folder)
    assert checkpoints.restore(folder / "weights", {"x": np.zeros(3, int)})[1]["x"].tolist() == [5, 5, 5]
    assert os.listdir(tmp_path) == ["set"]
    (folder / "mine.csv").touch()
    with pytest.raises(RunError, match=r"holds 'mine\.csv', which would be lost"):
        save(folder, "four")
    assert (folder / "a.json").read_text() == "three"


AGAIN = """
import os, pathlib, sys
sys.path.insert(0, sys.argv[3])
import test_manifest
real, left = pathlib.Path.rename, int(sys.argv[2])
def rename(self, target):
    global left
    if left == 0:
        os.kill(os.getpid(), 9)
    left -= 1
    return real(self, target)
pathlib.Path.rename = rename
test_manifest.save(pathlib.Path(sys.argv[1]), "three")
"""


@pytest.mark.parametrize("renames", [0, 1])
def test_a_kill_between_two_names_leaves_the_old_ones_whole(tmp_path, renames):
    folder = tmp_path / "set"
    save(folder, "one")
    here = str(pathlib.Path(__file__).parent)
    child = subprocess.run([sys.executable, "-c", AGAIN, str(folder), str(renames), here], check=False)
    assert child.returncode == -signal.SIGKILL
    left = atomic.settled(folder)
    assert left.name == ("set" if renames == 0 else ".set.old")
    assert manifest.check(left)
    assert (left / "a.json").read_text() == "one"
    save(folder, "four")
    assert (atomic.settled(folder) / "a.json").read_text() == "four"
    assert os.listdir(tmp_path) == ["set"]


def test_a_step_saved_again_is_there_all_the_time(tmp_path, monkeypatch):
    like = {"x": np.zeros(2)}
    checkpoints.save(tmp_path, 5, {"x": np.ones(2)}, keep=1)
    seen = []
    real = pathlib.Path.rename

    def rename(self, target):
        made = real(self, target)
        seen.append(checkpoints.restore(tmp_path, like)[1]["x"].tolist())
        return made

    monkeypatch.setattr(pathlib.Path, "rename", rename)
    checkpoints.save(tmp_path, 5, {"x": np.full(2, 2.0)}, keep=1)
    assert seen == [[1.0, 1.0], [2.0, 2.0]]
    assert os.listdir(tmp_path) == ["5"]


@pytest.fixture
def two_runs(tmp_path):
    for name in ("a", "b"):
        with runs.start("denoise", name, {"noise": 0.5}, resume=False, root=tmp_path) as run:
            checkpoints.save(run.checkpoints / "best", 1, {"x": np.ones(2)})
            run.log_epoch({"epoch": 1, "loss": 1.5})
            run.log_epoch({"epoch": 2, "loss": 1.25})
            run.write_results({"loss": 1.25})
    return tmp_path / "denoise"


def test_parts_of_two_runs_are_never_taken_for_one(two_runs):
    a, b = two_runs / "a", two_runs / "b"
    like = {"x": np.zeros(2)}
    checkpoints.restore(a / "checkpoints" / "best", like)
    shutil.rmtree(a / "checkpoints")
    shutil.copytree(b / "checkpoints", a / "checkpoints")
    with pytest.raises(CheckpointError, match="part of another run"):
        checkpoints.restore(a / "checkpoints" / "best", like)
    shutil.copy(b / "metrics.jsonl", a / "metrics.jsonl")
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 1 is damaged"):
        runs.open(a).history()
    shutil.copytree(b, two_runs / "moved")
    checkpoints.restore(two_runs / "moved" / "checkpoints" / "best", like)
    assert runs.open(two_runs / "moved").results() == {"loss": 1.25}


@pytest.mark.parametrize("name", ["config.json", "results.json", "metrics.jsonl"])
def test_a_changed_digit_of_a_run_is_noticed(two_runs, name):
    path = two_runs / "a" / name
    path.write_text(path.read_text().replace("5", "6", 1))
    with pytest.raises(RunError, match=rf"{name}.* is damaged: it was changed"):
        (runs.open(path.parent).history(), runs.open(path.parent).results())


def test_a_line_that_is_missing_in_a_history_is_noticed(two_runs):
    path = two_runs / "a" / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(RunError, match="one before it is missing"):
        runs.open(path.parent).history()


def test_a_run_that_is_finished_is_bound_whole_and_goes_on(two_runs):
    assert manifest.check(two_runs / "a")["files"].keys() >= {"metrics.jsonl", "results.json", "config.json"}
    with runs.start("denoise", "a", {"noise": 0.5}, resume=True, root=two_runs.parent) as run:
        assert run.results() == {"loss": 1.25}
        checkpoints.save(run.checkpoints / "best", 2, {"x": np.ones(2)})
        run.log_epoch({"epoch": 3, "loss": 1.0})
        assert len(run.history()) == 3
        run.write_results({"loss": 1.0})
    assert manifest.check(two_runs / "a")
    assert runs.open(two_runs / "a").results() == {"loss": 1.0}


def test_a_run_without_a_manifest_is_read_as_ever_and_a_lost_one_is_said(two_runs):
    (two_runs / "a" / "manifest").unlink()
    assert len(runs.open(two_runs / "a").history()) == 2
    with pytest.warns(UserWarning, match="manifest is missing, so its settings can't be checked"):
        checkpoints.restore(two_runs / "a" / "checkpoints" / "best", {"x": np.zeros(2)})
