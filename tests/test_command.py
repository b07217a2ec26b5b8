"""The command `flaxae`: what it says, on which terminals, for which users, and what of it is packaged."""

import json
import os
import pathlib
import shlex
import subprocess
import sys
import tomllib

import numpy as np
import pytest

import flaxae
from flaxae import command, experiments, presets

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
        ("mlflow", "mlflow", "--data x.npy --logger mlflow"),
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


def start(folder: pathlib.Path, arguments: str, *, before: str = "pass", **environment: str | None):
    """A process of its own, by a shell's words (`ARGUMENTS >&-`), in a folder with a small table in it."""
    np.savetxt(
        folder / "tablé.csv", np.random.default_rng(0).normal(size=(60, 3)), delimiter=",", header="a,b,c", comments=""
    )
    program = f"import sys; sys.argv[0] = 'flaxae'; {before}; from flaxae.command import main; sys.exit(main())"
    chosen = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
    line = f"{shlex.join([sys.executable, '-c', program])} {arguments}"
    return subprocess.run(["sh", "-c", line], capture_output=True, cwd=folder, env=chosen, check=False)


TRAIN = "denoise --data tablé.csv --epochs 1 --latent 2 --batch-size 16"


def test_with_all_streams_closed_it_trains_and_nothing_gets_into_its_files(tmp_path):
    done = start(tmp_path, f"{TRAIN} <&- >&- 2>&-")
    assert done.returncode == 0
    made = tmp_path / "runs/denoise/1"
    assert len((made / "metrics.jsonl").read_text().splitlines()) == 1
    assert (made / "report.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("arguments", ["--help", "denoise --help", f"{TRAIN} --no-cache"])
def test_a_full_disk_under_the_output_is_one_message(tmp_path, arguments):
    done = start(tmp_path, f"{arguments} >/dev/full")
    assert done.returncode == 2
    assert done.stderr == b"error: [Errno 28] No space left on device\n"


@pytest.mark.parametrize("stream", ["2>&-", "2>/dev/full"])
def test_where_errors_can_not_be_said_the_exit_status_does(tmp_path, stream):
    assert start(tmp_path, f"denois {stream}").returncode == 2


def test_on_a_terminal_of_ascii_alone_everything_is_said_in_it(tmp_path):
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    done = start(tmp_path, f"{TRAIN} --seed 1 --sweep lr=1e-3,1e-2 --seeds 2", **plain)
    assert done.returncode == 0, done.stderr
    said = done.stdout.decode("ascii")
    assert "+-" in said  # ±
    assert "MSE at noise 0.5 v" in said  # ↓
    assert "0.5 v" not in (tmp_path / "runs/denoise/1/report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("cache", [None, "/dev/null"])
def test_a_user_without_a_home_or_a_cache_that_can_be_written_trains(tmp_path, cache):
    stranger = (
        "import pwd; pwd.getpwuid = lambda uid: {}[uid]"  # has no entry, as in a container that is given a number
    )
    homeless = dict.fromkeys(("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "JAX_COMPILATION_CACHE_DIR"))
    done = start(tmp_path, TRAIN, before=stranger, XDG_CACHE_HOME=cache, **homeless)
    assert done.returncode == 0, done.stderr
    warned = done.stderr.decode().splitlines()
    assert not warned if cache is None else len(warned) == 1, warned


def test_every_package_is_packaged():
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    there = {".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("flaxae/**/__init__.py")}
    assert set(packaged["packages"]) == {*there, *packaged["package-dir"]}


def test_every_preset_is_known_to_a_process_that_made_none(tmp_path):
    there = {name: preset().to_dict() for name, preset in presets.PRESETS.items()}
    (tmp_path / "presets.json").write_text(json.dumps(there))
    script = """
import json
from flaxae.autoencoder import Config
for values in json.load(open("presets.json")).values():
    Config.from_dict(values)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
