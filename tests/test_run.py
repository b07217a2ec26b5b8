"""The command line, end to end, on scikit-learn's digits."""

import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import run

ROOT = pathlib.Path(run.__file__).parent
SHORT = ["--exp", "denoise", "--data", "digits.npy", "--epochs", "2", "--latent", "8"]


@pytest.fixture
def folder(tmp_path, monkeypatch, digits):
    """An empty working directory with the digits in it, stored as 8-bit pixels."""
    monkeypatch.chdir(tmp_path)
    np.save("digits.npy", (digits[:600] * 255).astype(np.uint8))
    return tmp_path


def command(*arguments: str, **options) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, ROOT / "run.py", *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, **options,
    )  # fmt: skip


def image_size(path: str | pathlib.Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_a_reader_that_has_seen_enough_ends_the_output_quietly():
    with command("--exp", "denoise", "--help") as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_a_run_ends_with_a_table_results_figures_and_a_model_to_use(folder, capsys):
    assert run.main(SHORT) == 0
    output = capsys.readouterr().out
    assert "\x1b" not in output
    assert "\r" not in output
    made = folder / "runs" / "denoise" / "1"
    results = json.loads((made / "results.json").read_text())
    for measured in ("test", "baseline/noisy", "baseline/median", "baseline/pca"):
        for metric in ("psnr_db", "ssim", "mse"):
            assert np.isfinite(results[f"{measured}/{metric}"])
    assert results["train/seconds"] > 0
    assert len((made / "metrics.jsonl").read_text().splitlines()) == 2
    assert {path.name for path in (made / "figures").iterdir()} == {"denoised.png", "curves.png"}
    page = (made / "report.html").read_text()
    assert page.count("data:image/png;base64") == 2
    usage = next(line for line in output.splitlines() if line.startswith("Use it: flaxae "))
    assert run.main(usage.removeprefix("Use it: flaxae ").split()) == 0
    assert image_size("clean.png") == image_size(made / "noisy.png")
    assert run.main(["--exp", "denoise", "--from", str(made), "--input", "digits.npy", "--output", "clean.npy"]) == 0
    clean = np.load("clean.npy")
    assert clean.shape == (600, 8, 8, 1)
    assert clean.dtype == np.uint8


def test_a_folder_of_images_of_any_size_is_denoised_into_a_folder(folder, rng):
    assert run.main([*SHORT, "--name", "a"]) == 0
    (folder / "scans").mkdir()
    for name, size in (("one.png", (8, 8)), ("two.png", (30, 21))):
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / "scans" / name)
    assert run.main(["--exp", "denoise", "--from", "runs/denoise/a", "--input", "scans", "--output", "out"]) == 0
    assert image_size("out/two.png") == (21, 30)
    assert {path.name for path in (folder / "out").iterdir()} == {"one.png", "two.png"}


def test_a_table_goes_all_the_way_in_its_own_units(folder, rng):
    import pandas as pd

    factors = rng.normal(size=(400, 2))
    columns = factors @ rng.normal(size=(2, 5)) * [1, 10, 100, 1, 1] + [0, 50, 1000, 0, 0]
    frame = pd.DataFrame(columns, columns=[f"sensor {c}" for c in "abcde"])
    frame.to_csv("readings.csv", index=False)
    arguments = ["--exp", "denoise", "--data", "readings.csv", "--epochs", "30", "--latent", "2", "--name", "table"]
    assert run.main(arguments) == 0
    results = json.loads((folder / "runs/denoise/table/results.json").read_text())
    assert results["test/mse"] < results["baseline/noisy/mse"]
    frame[frame.columns[::-1]].to_csv("shuffled.csv", index=False)
    use = ["--exp", "denoise", "--from", "runs/denoise/table", "--output", "clean.csv", "--input"]
    assert run.main([*use, "shuffled.csv"]) == 0
    clean = pd.read_csv("clean.csv")
    assert list(clean.columns) == list(frame.columns)
    assert (np.abs(clean - frame).mean() < frame.std()).all()
    frame.drop(columns="sensor c").to_csv("short.csv", index=False)
    assert run.main([*use, "short.csv"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--exp", "denois"], "Did you mean 'denoise'"),
        ([], "Say which experiment"),
        ([*SHORT, "--data", "digit.npy"], "Did you mean 'digits.npy'"),
        (["--exp", "denoise", "--from", "runs/none", "--input", "a", "--output", "b"], "runs/none"),
        ([*SHORT, "--resume"], "Nothing to resume|no unfinished run|no runs"),
        ([*SHORT, "--learning-rate", "-1"], "learning_rate is -1"),
        ([*SHORT, "--name", "../up"], "up"),
    ],
)
def test_a_mistake_is_one_message_and_exit_2(folder, capsys, arguments, message):
    assert run.main(arguments) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert re.search(message, error)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epohcs", "3"], "--epochs"),
        (["--model", "convolutionl"], "'convolutional'"),
        (["--corruption", "gausian"], "'gaussian'"),
        (["--input", "a.png"], "--from RUN"),
    ],
)
def test_a_mistyped_flag_is_answered_before_anything_heavy_is_imported(arguments, message):
    script = "import sys, run\ntry: sys.exit(run.main(sys.argv[1:]))\nfinally: print('jax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script, "--exp", "denoise", *arguments], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2
    assert message in " ".join(done.stderr.replace("│", "").split())
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("contents", [np.full((9, 8, 8), np.nan), np.zeros((0, 8, 8)), np.array([["a"]])])
def test_data_that_can_not_be_used_leave_nothing_behind(folder, capsys, contents):
    np.save("bad.npy", contents)
    assert run.main(["--exp", "denoise", "--data", "bad.npy"]) == 2
    assert "bad.npy" in capsys.readouterr().err
    assert not (folder / "runs").exists()


def weights(folder: pathlib.Path) -> list[np.ndarray]:
    import jax
    from flax import nnx

    import flaxae

    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(flaxae.load(folder).model))]


def test_ctrl_c_and_kill_9_and_resume_give_the_weights_of_the_whole_run(folder):
    long = [*SHORT, "--model", "denoising", "--epochs", "60", "--no-cache", "--name"]
    assert run.main([*long, "whole"]) == 0

    interrupted = command(*long, "parted")
    lines = [interrupted.stdout.readline() for _ in range(random.randint(1, 20))]
    interrupted.send_signal(signal.SIGINT)
    _, said = interrupted.communicate(timeout=60)
    assert interrupted.returncode == 130, [*lines, said]
    assert said.strip().endswith("--name parted --resume")
    assert "Traceback" not in said

    killed = command(*long, "parted", "--resume")
    for _ in range(random.randint(1, 20)):
        killed.stdout.readline()
    assert run.main([*long, "parted", "--resume"]) == 2  # in use
    killed.kill()
    killed.communicate()
    assert run.main([*long, "parted", "--resume"]) == 0
    for x, y in zip(weights(folder / "runs/denoise/whole"), weights(folder / "runs/denoise/parted"), strict=True):
        np.testing.assert_array_equal(x, y)
