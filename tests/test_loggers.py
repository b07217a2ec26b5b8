"""Every tracker gets an epoch's numbers, if it is installed; an unknown one is one message."""

import pathlib

import pytest

from flaxae import errors
from flaxae.runs import loggers

EPOCHS = [{"epoch": 1, "loss": 0.5, "hosts": "a"}, {"epoch": 2, "loss": 0.25, "hosts": "a"}]


def written(name, folder):
    with loggers.opened(
        name, folder, {"settings": {"seed": 3, "sweep": ()}, "model": {"body": {"hidden": [2]}}}
    ) as log:
        for metrics in EPOCHS:
            log(metrics)


def test_tensorboard_gets_every_number(tmp_path):
    pytest.importorskip("tensorboardX")
    with loggers.opened("tensorboard", tmp_path) as write:
        write({"epoch": 1, "loss": 0.5, "val_loss": float("nan"), "hosts": "a"})
    (file,) = (tmp_path / "tensorboard").iterdir()
    content = file.read_bytes()
    assert b"loss" in content
    assert b"val_loss" in content


@pytest.mark.filterwarnings("ignore")
def test_mlflow_gets_every_number(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    written("mlflow", tmp_path / "denoise" / "1")
    (run,) = mlflow.search_runs(experiment_names=["flaxae"], output_format="list")
    assert run.info.run_name == "denoise-1"
    assert run.data.params == {"settings.seed": "3"}
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.5), (2, 0.25)]


@pytest.mark.filterwarnings("ignore")
def test_wandb_gets_every_number(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = tmp_path / "denoise" / "1"
    folder.mkdir(parents=True)
    written("wandb", folder)
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    assert b"loss" in file.read_bytes()


@pytest.mark.filterwarnings("ignore")
def test_trackio_gets_every_number(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    pytest.importorskip("trackio")
    written("trackio", pathlib.Path("denoise/1"))
    assert any(path.stat().st_size for path in tmp_path.rglob("flaxae*"))


def test_an_unknown_tracker_is_one_message():
    with (
        pytest.raises(errors.ConfigError, match="Did you mean 'tensorboard'"),
        loggers.opened("tensorbord", pathlib.Path("x")),
    ):
        pass
