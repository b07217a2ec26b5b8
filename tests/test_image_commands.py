"""The commands on folders of images: one row or file for each, bad ones named at the end, sizes brought together."""

import pathlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from flaxae import command, data

QUICK = ("--epochs", "1", "--no-cache")


def save(path: pathlib.Path, seed: int, size: tuple[int, int] = (12, 12)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[: size[0], : size[1]]
    waves = [127 + 100 * np.sin(x / (2 + seed % 3) + c) * np.cos(y / 3 + seed) for c in range(3)]
    Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8)).save(path)


@pytest.fixture
def classes(tmp_path, monkeypatch) -> pathlib.Path:
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        for i in range(12):
            save(tmp_path / "classes" / name / f"{i}.png", i + 100 * (name == "b"))
    return tmp_path / "classes"


def test_reduce_has_a_row_an_image(classes, capsys):
    assert command.main(["reduce", "--data", str(classes), *QUICK, "--name", "1"]) == 0
    assert "weights (" in capsys.readouterr().out  # before training starts
    (classes / "a" / "bad.png").write_bytes(b"\x89PNG nothing")
    arguments = ["reduce", "--from", "runs/reduce/1", "--input", str(classes / "a"), "--output", "codes.csv"]
    assert command.main([*arguments, "--no-cache"]) == 2
    assert "bad.png can't be read" in capsys.readouterr().err
    table = pd.read_csv("codes.csv")
    assert list(table) == ["file", "z0", "z1"]
    assert sorted(table.file) == sorted(f"{i}.png" for i in range(12))


def test_reconstruct_takes_images_of_any_size(classes, capsys, monkeypatch):
    monkeypatch.setattr("flaxae.experiments._steps.PIECES_BYTES", 60 * 4 * 64 * 64 * 3)
    for i, size in enumerate([(100, 70), (80, 90), (70, 70)]):
        save(pathlib.Path("photos", f"{i}.jpg"), i, size)
    flags = ["--data", "photos", *QUICK, "--name", "1", "--batch-size", "256", "--model", "convolutional"]
    assert command.main(["reconstruct", *flags]) == 0
    said = capsys.readouterr().out
    assert "random pieces of 64 × 64 pixels" in said
    assert "3 images, 70–90 × 70–100 pixels" in said
    arguments = ["--from", "runs/reconstruct/1", "--input", "photos", "--output", "made", "--no-cache"]
    assert command.main(["reconstruct", *arguments]) == 0
    assert {name: x.shape for name, x in data.read("made").items()} == {
        "0.jpg": (100, 70, 3),
        "1.jpg": (80, 90, 3),
        "2.jpg": (70, 70, 3),
    }


def test_one_class_is_said_before_training(classes, capsys):
    for i in range(6):
        save(pathlib.Path("one", "cat", f"{i}.png"), i)
    assert command.main(["finetune", "--data", "one", *QUICK]) == 2
    assert "one class, 'cat'" in capsys.readouterr().err
    assert not pathlib.Path("runs").exists()


def test_pixels_are_allowed_by_a_flag(classes, capsys):
    for flags, status in ((["--max-pixels", "100"], 2), (["--max-pixels", "200", "--size", "8"], 0)):
        assert command.main(["reduce", "--data", str(classes), *QUICK, *flags]) == status
    assert "--max-pixels 144" in capsys.readouterr().err


def test_defects_have_maps_and_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for part, count in (("train", 30), ("test", 6)):
        for i in range(count):
            save(tmp_path / "set" / part / "good" / f"{i}.png", 3 * i, (70, 90))
    flags = ["--data", "set", "--epochs", "1", "--name", "1", "--maps", "maps", "--no-cache", "--false-alarms", "0.2"]
    monkeypatch.setattr("flaxae.experiments.anomaly.PIECES", 200)
    assert command.main(["anomaly", *flags]) == 0
    table = pd.read_csv("runs/anomaly/1/anomalies.csv")
    assert table.file[0] == "test/good/0.png"
    assert {"x_1", "y_1", "width_1", "height_1", "top_1"} <= set(table)
    with Image.open("maps/test/good/0.png") as heat:
        assert heat.size == (90, 70)
    new = ["--from", "runs/anomaly/1", "--input", "set/test", "--output", "new.csv", "--maps", "new", "--no-cache"]
    assert command.main(["anomaly", *new]) == 0
    again = pd.read_csv("new.csv")
    np.testing.assert_allclose(again.score, table.score, atol=2e-3)
    assert len(list(pathlib.Path("new/good").iterdir())) == 6
