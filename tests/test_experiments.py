"""The experiments reconstruct, generate and reduce, as the command line runs them, on little data."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits

import run
from flaxae import data


@pytest.fixture
def images(tmp_path, monkeypatch):
    """A file of 120 digits, in an empty working folder."""
    digits = load_digits()
    np.savez(tmp_path / "digits.npz", x=(digits.images[:120] * 15).astype(np.uint8), y=digits.target[:120])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command_line(flags):
    """The exit status of `python run.py --exp FLAGS`."""
    return run.main(["--exp", *flags.split()])


def results(folder, experiment):
    return json.loads((folder / "runs" / experiment / "1" / "results.json").read_text())


def test_reconstruct_compares_with_pca_and_tells_what_the_code_uses(images):
    command = "reconstruct --data digits.npz --model top_k --latent 30 --epochs 2 --batch-size 24"
    assert command_line(command) == 0
    measured = results(images, "reconstruct")
    assert measured["code/units_on"] == 8
    assert 0 < measured["baseline/pca/mse"] < measured["test/mse"]
    assert (images / "runs/reconstruct/1/report.html").exists()
    assert command_line("reconstruct --from runs/reconstruct/1 --input digits.npz --output out.npy") == 0
    assert data.read("out.npy").shape == (120, 8, 8, 1)


def test_a_sweep_trains_every_size_and_resumes(images, capsys):
    command = "reconstruct --data digits.npz --sweep latent=8,2 --epochs 2 --batch-size 24 --name sizes"
    assert command_line(command) == 0
    folder = images / "runs/reconstruct/sizes"
    measured = (folder / "results.json").read_text()
    assert set(json.loads(measured)) == {f"{k}/mse/latent_{n}" for k in ("test", "baseline/pca") for n in (2, 8)}
    assert (folder / "figures/elbow.png").exists()
    assert command_line(f"{command} --resume") == 0
    assert (folder / "results.json").read_text() == measured
    with pytest.raises(SystemExit, match="2"):
        command_line("reconstruct --sweep latent=2,x")
    assert "sizes of the code, latent=2,8" in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_sweep_of_a_setting_trains_all_its_seeds(images):
    command = "reconstruct --data digits.npz --model denoising --sweep noise=0.1,0.5 --seeds 2 --epochs 1"
    assert command_line(f"{command} --batch-size 24") == 0
    measured = results(images, "reconstruct")
    assert set(measured) == {f"test/mse/noise_{n}/seed_{k}" for n in (0.1, 0.5) for k in (0, 1)}
    assert len(set(measured.values())) == 4
    assert (images / "runs/reconstruct/1/figures/sweep.png").exists()
    assert command_line("reconstruct --data digits.npz --sweep warmth=1,2 --epochs 1") == 2


def test_reduce_writes_and_scores_the_codes(images):
    assert command_line("reduce --data digits.npz --epochs 2 --batch-size 24") == 0
    measured = results(images, "reduce")
    assert 0 < measured["test/trustworthiness"] <= 1
    assert 0 <= measured["baseline/pca/knn_accuracy"] <= 1
    codes = np.load(images / "runs/reduce/1/codes.npz")
    assert codes["train"].shape == (96, 2)
    assert codes["test_labels"].shape == (24,)
    assert data.read("runs/reduce/1/codes.csv").shape == (120, 3)
    assert command_line("reduce --from runs/reduce/1 --input digits.npz --output c.csv") == 0
    assert data.read("c.csv").shape == (120, 2)


def test_generate_samples_and_scores_a_variational_model(images):
    command = "generate --data digits.npz --epochs 2 --batch-size 24 --latent 2 --draws 20 --scored 10"
    assert command_line(command) == 0
    measured = results(images, "generate")
    assert measured["test/nll_nats"] > 0 > measured["test/elbo_nats"]
    samples = np.load(images / "runs/generate/1/samples.npy")
    assert samples.shape == (50, 8, 8, 1)
    assert samples.dtype == np.uint8
    assert {path.stem for path in (images / "runs/generate/1/figures").iterdir()} >= {"samples", "map", "kl"}


def test_generate_samples_tables_from_a_mixture_of_codes(tmp_path, monkeypatch, rng):
    monkeypatch.chdir(tmp_path)
    table = pd.DataFrame(rng.standard_normal((60, 3)), columns=["a", "b", "c"]).assign(d=["red", "green"] * 30)
    table.to_csv("t.csv", index=False)
    command = "generate --data t.csv --model vanilla --epochs 1 --latent 2 --components 2 --batch-size 12"
    assert command_line(command) == 0
    samples = pd.read_csv("runs/generate/1/samples.csv")
    assert list(samples.columns) == ["a", "b", "c", "d"]
    assert set(samples.d) <= {"red", "green", "other"}


def test_an_unknown_preset_is_answered_with_those_known(images, capsys):
    assert command_line("reconstruct --data digits.npz --model spares") == 2
    assert "Did you mean 'sparse'" in capsys.readouterr().err
