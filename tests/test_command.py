"""What the command `flaxae` and `python run.py` are made of, and what of it is packaged."""

import pathlib
import subprocess
import sys
import tomllib

import numpy as np
import pytest

import flaxae
from flaxae import command, experiments

ROOT = pathlib.Path(__file__).parent.parent
FORMS = [(["/bin/flaxae", "denoise"], "flaxae"), (["/src/run.py", "--exp", "denoise"], "python run.py --exp")]


@pytest.mark.parametrize(("argv", "form"), FORMS)
def test_commands_are_printed_in_the_form_that_the_user_used(argv, form, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", argv)
    assert (
        experiments.command("reduce", from_="runs/a b", input="x.csv")
        == f"{form} reduce --from 'runs/a b' --input x.csv"
    )
    assert experiments.running() == f"{form} denoise"
    with pytest.raises(SystemExit, match="0"):
        command.main(["denoise", "--help"])
    shown = capsys.readouterr().out
    assert f"usage: {form} denoise" in shown
    assert f"{form} denoise --from runs/denoise/1" in shown
    assert command.main([]) == 2
    said = capsys.readouterr()
    assert f"usage: {form} NAME" in said.out
    assert said.err == f"error: Say which experiment to run, such as {form} denoise\n"


def test_the_version_is_told(capsys):
    assert command.main(["--version"]) == 0
    assert capsys.readouterr().out == f"flaxae {flaxae.__version__}\n"


@pytest.mark.parametrize("arguments", [["denois"], ["--exp", "denois"]])
def test_a_mistyped_experiment_gets_the_nearest(arguments, capsys):
    assert command.main(arguments) == 2
    assert "Did you mean 'denoise'" in capsys.readouterr().err


def test_without_the_package_there_is_one_message():
    done = subprocess.run(
        [sys.executable, "-S", "run.py", "--exp", "denoise"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2
    assert "pip install -e ." in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("package", "extra", "flags"),
    [
        ("tensorflow_datasets", "tfds", "--data tfds:mnist"),
        ("importlib_resources", "tfds", "--data tfds:mnist"),
        ("pyarrow", "parquet", "--data x.parquet"),
        ("tensorboardX", "tensorboard", "--data x.npy --logger tensorboard"),
    ],
)
def test_a_missing_optional_package_is_one_message_with_its_extra(package, extra, flags, tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.partition(".")[0] in (package, "tensorflow_datasets")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.chdir(tmp_path)
    pathlib.Path("x.parquet").touch()
    np.save("x.npy", np.zeros((20, 3), np.float32))
    assert command.main(["denoise", "--no-cache", *flags.split()]) == 2
    said = capsys.readouterr().err
    assert package in said
    assert f'pip install "flaxae[{extra}]"' in said
    assert len(said.splitlines()) == 1
    assert extra in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_a_table_is_read_and_written_where_pyarrow_is_missing(tmp_path):
    (tmp_path / "x.csv").write_text("a,kind\n" + "1,red\n2,blue\n3,\n" * 5)
    script = """
import sys
sys.modules["pyarrow"] = None
from flaxae import data
x = data.load("x.csv")
data.write("y.csv", x.scaling.undo(x.scaling(x.train)), encoding=x.encoding)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
    assert "red" in (tmp_path / "y.csv").read_text()


def test_every_package_is_packaged():
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    there = {".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("flaxae/**/__init__.py")}
    assert set(packaged["packages"]) == {*there, *packaged["package-dir"]}
