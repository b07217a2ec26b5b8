"""A run's folder: one process at a time, files whole or not at all, messages that say what to do."""

import errno
import json
import os
import pathlib
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flaxae import runs
from flaxae.errors import ConfigError, RunError

CONFIG = {"epochs": 2, "model": {"hidden": [128, 64], "latent": 16}}


def make(root, name=None, *, finished=False):
    with runs.start("denoise", name, CONFIG, resume=False, root=root) as run:
        run.log_epoch({"epoch": 1, "loss": 0.5})
        if finished:
            run.write_results({"test/psnr_db": 20.0})
    return run


def resume(root, name=None, config=CONFIG, **options):
    return runs.start("denoise", name, config, resume=True, root=root, **options)


def enter(start) -> None:
    with start:
        pass


def test_what_is_written_is_read_back(tmp_path):
    with runs.start("denoise", "first", CONFIG | {"shape": (8, 8)}, resume=False, root=tmp_path) as run:
        assert not run.finished
        assert run.history() == []
        assert run.results() == {}
        run.log_epoch({"epoch": 1, "loss": np.float32(0.5), "val_loss": float("nan")})
        run.log_epoch({"epoch": 2, "loss": 0.25, "val_loss": np.array(0.75)})
        run.write_results({"test/psnr_db": np.float64(20.5), "parameters": 10})
        run.figure("curves").write_bytes(b"png")
    saved = runs.open(tmp_path / "denoise" / "first")
    assert saved.folder == run.folder == tmp_path / "denoise" / "first"
    assert saved.config == run.config == CONFIG | {"shape": [8, 8]}
    assert saved.history() == [
        {"epoch": 1, "loss": 0.5, "val_loss": None},
        {"epoch": 2, "loss": 0.25, "val_loss": 0.75},
    ]
    assert saved.results() == {"test/psnr_db": 20.5, "parameters": 10}
    assert saved.finished
    assert (saved.folder / "figures" / "curves.png").read_bytes() == b"png"
    assert not hasattr(saved, "log_epoch")
    assert saved.checkpoints == run.folder / "checkpoints"


def test_a_run_without_a_name_gets_the_next_number(tmp_path):
    make(tmp_path, "baseline")
    assert [make(tmp_path).folder.name for _ in range(2)] == ["1", "2"]
    make(tmp_path, "10")
    assert make(tmp_path).folder.name == "11"


def test_runs_started_together_get_folders_of_their_own(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: make(tmp_path).folder, range(8)))
    assert len(set(folders)) == 8


@pytest.mark.parametrize(("finished", "state"), [(True, "finished"), (False, "unfinished")])
def test_an_existing_run_is_not_started_again(tmp_path, finished, state):
    run = make(tmp_path, "a", finished=finished)
    with pytest.raises(RunError, match=f"a exists, {state}. Choose another --name, or --resume"):
        make(tmp_path, "a")
    assert len(run.history()) == 1


def test_resume_takes_the_run_that_was_started_last_whatever_the_clock_said(tmp_path):
    make(tmp_path, "b")
    make(tmp_path, "a")
    make(tmp_path, "c", finished=True)
    for name, seconds in (("a", 1), ("b", 2), ("c", 3)):
        os.utime(tmp_path / "denoise" / name / "config.json", (seconds, seconds))
    with resume(tmp_path) as run:
        assert run.folder.name == "a"
        run.log_epoch({"epoch": 2, "loss": 0.25})
        run.write_results({})
    assert len(run.history()) == 2
    with resume(tmp_path) as run:
        assert run.folder.name == "b"
        run.write_results({})
    with pytest.raises(RunError, match=r"no unfinished run in .* finished ones: a, b, c"):
        enter(resume(tmp_path))


def test_adding_an_epoch_unfinishes_a_run(tmp_path):
    make(tmp_path, "a", finished=True)
    with resume(tmp_path, "a") as run:
        assert run.finished
        run.log_epoch({"epoch": 2})
        assert not run.finished


def test_resuming_a_missing_run_names_those_there_are(tmp_path):
    with pytest.raises(RunError, match="There are no runs in"):
        enter(resume(tmp_path, "big"))
    make(tmp_path, "small")
    make(tmp_path, "baseline")
    with pytest.raises(RunError, match=r"Did you mean 'small'\? Known: baseline, small\."):
        enter(resume(tmp_path, "smal"))
    assert not (tmp_path / "denoise" / "smal").exists()


def test_resuming_needs_the_same_settings_but_for_those_that_may_change(tmp_path):
    make(tmp_path, "a")
    other = {"epochs": 5, "model": {"hidden": (128, 64), "latent": 8}, "noise": 0.1}
    message = r"a with other settings: model/latent was 16 and is now 8; noise was None and is now 0.1\."
    with pytest.raises(ConfigError, match=message):
        enter(resume(tmp_path, "a", other, may_change=["epochs"]))
    assert runs.open(tmp_path / "denoise" / "a").config == CONFIG
    enter(resume(tmp_path, "a", CONFIG | {"epochs": 5}, may_change=["epochs"]))
    assert runs.open(tmp_path / "denoise" / "a").config == CONFIG | {"epochs": 5}


@given(st.lists(st.integers(1, 9), max_size=9))
def test_an_epoch_logged_again_replaces_itself_and_those_after(tmp_path_factory, epochs):
    expected = []
    with runs.start("denoise", "a", {}, resume=False, root=tmp_path_factory.mktemp("runs")) as run:
        for loss, epoch in enumerate(epochs):
            run.log_epoch({"epoch": epoch, "loss": loss})
            expected = [metrics for metrics in expected if metrics["epoch"] < epoch]
            expected.append({"epoch": epoch, "loss": loss})
            assert run.history() == expected


def test_a_half_written_line_is_no_epoch(tmp_path):
    run = make(tmp_path, "a")
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "lo')
    assert [metrics["epoch"] for metrics in run.history()] == [1]
    with resume(tmp_path, "a") as run:
        run.log_epoch({"epoch": 2})
    assert [metrics["epoch"] for metrics in run.history()] == [1, 2]


@pytest.mark.parametrize("value", [float("nan"), np.float32("inf"), "high", None, [1.0]])
def test_results_are_finite_numbers(tmp_path, value):
    with (
        runs.start("denoise", "a", {}, resume=False, root=tmp_path) as run,
        pytest.raises(RunError, match=r"test/psnr_db is .*finite numbers"),
    ):
        run.write_results({"loss": 1.0, "test/psnr_db": value})
    assert not run.finished


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "/a", "a b", ".hidden", "a\n"])
def test_a_name_has_to_name_a_folder(tmp_path, name):
    with pytest.raises(ConfigError, match="can't name a folder"):
        make(tmp_path / "in", name)
    with pytest.raises(ConfigError, match="can't name a folder"):
        enter(runs.start(name, "a", {}, resume=False, root=tmp_path / "in"))
    assert list(tmp_path.iterdir()) == []


def test_settings_that_json_cannot_hold_are_refused_before_anything_is_made(tmp_path):
    for value in (float("inf"), object()):
        with pytest.raises(ConfigError, match="JSON can't hold"):
            enter(runs.start("denoise", "a", {"noise": value}, resume=False, root=tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b'{"epochs": ', b"\xff\xfe\xfd", b"[]"])
def test_a_damaged_file_is_one_error(tmp_path, content):
    run = make(tmp_path, "a", finished=True)
    (run.folder / "metrics.jsonl").write_bytes(content + b"\n")
    (run.folder / "results.json").write_bytes(content)
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 1 is damaged"):
        run.history()
    with pytest.raises(RunError, match=r"results\.json is damaged"):
        run.results()
    (run.folder / "config.json").write_bytes(content)
    with pytest.raises(RunError, match=r"config\.json is damaged"):
        runs.open(run.folder)
    with pytest.raises(RunError, match=r"config\.json is damaged"):
        enter(resume(tmp_path, "a"))


def test_a_folder_that_is_no_run_is_one_error(tmp_path):
    with pytest.raises(RunError, match=r"is not a run.*such as runs/denoise/1"):
        runs.open(tmp_path / "missing")
    run = make(tmp_path, "a")
    with pytest.raises(RunError, match=f"is not a run.*Runs in it: {run.folder}"):
        runs.open(run.folder.parent)


def test_a_file_in_the_way_is_one_error(tmp_path):
    (tmp_path / "denoise").touch()
    for name in ("a", None):
        with pytest.raises(RunError, match="Can't write"):
            make(tmp_path, name)


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    def full(path, text, **_):
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    with runs.start("denoise", "a", CONFIG, resume=False, root=tmp_path) as run:
        run.write_results({"loss": 1.0})
        before = sorted(run.folder.iterdir())
        monkeypatch.setattr(pathlib.Path, "write_text", full)
        with pytest.raises(RunError, match=r"Can't write .*results\.json: No space left on device"):
            run.write_results({"loss": 2.0})
        assert run.results() == {"loss": 1.0}
        assert sorted(run.folder.iterdir()) == before


HOLD = """
import sys, time
from flaxae import runs
with runs.start("denoise", "a", {"epochs": 2}, resume=False, root=sys.argv[1]) as run:
    run.log_epoch({"epoch": 1})
    print(flush=True)
    time.sleep(60)
"""


def test_a_run_is_held_by_one_process_until_it_ends_even_by_kill(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        for start in (lambda: make(tmp_path, "a"), lambda: enter(resume(tmp_path, "a", {"epochs": 2}))):
            with pytest.raises(RunError, match=f"in use by process {child.pid} on .*Choose another --name"):
                start()
        assert runs.open(tmp_path / "denoise" / "a").history() == [{"epoch": 1}]
        child.send_signal(signal.SIGKILL)
    with resume(tmp_path, config={"epochs": 2}) as run:
        assert run.history() == [{"epoch": 1}]


def test_a_run_is_held_once_in_a_process_and_let_go_after_an_error(tmp_path):
    def fail():
        with runs.start("denoise", "a", {}, resume=False, root=tmp_path):
            with pytest.raises(RunError, match="in use by process"):
                enter(resume(tmp_path, "a", {}))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    enter(resume(tmp_path, "a", {}))


def test_config_is_json_for_people(tmp_path):
    run = make(tmp_path, "a")
    text = (run.folder / "config.json").read_text()
    assert json.loads(text) == CONFIG
    assert text.count("\n") > len(CONFIG)
