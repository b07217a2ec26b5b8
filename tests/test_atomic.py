"""Files and folders are written whole or not at all, and nothing is left beside them."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from flaxae import atomic


def test_a_file_appears_once_it_is_whole(tmp_path):
    path = tmp_path / "new" / "codes.npz"
    with atomic.replacing(path) as unfinished:
        unfinished.write_text("whole")
        assert unfinished.name == path.name  # for what goes by the ending
        assert not path.exists()
    assert path.read_text() == "whole"
    assert os.listdir(path.parent) == ["codes.npz"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")

    def fail():
        with atomic.replacing(path) as unfinished:
            unfinished.write_text("ha")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


HALF = """
import sys, time
from flaxae import atomic
with atomic.replacing(sys.argv[1]) as unfinished:
    unfinished.write_text("ha")
    print(flush=True)
    time.sleep(60)
"""


def test_a_kill_leaves_the_old_file_and_the_next_writer_leaves_nothing_of_it(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with subprocess.Popen([sys.executable, "-c", HALF, path], stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        child.send_signal(signal.SIGKILL)
    assert path.read_text() == "old"
    assert [name for name in os.listdir(tmp_path) if not name.startswith(".")] == ["file"]
    with atomic.replacing(path) as unfinished:
        unfinished.write_text("new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]


def test_what_is_put_in_place_is_on_the_disk(tmp_path, monkeypatch):
    path, order = tmp_path / "file", []
    sync = os.fsync

    def synced(descriptor):
        order.append((os.readlink(f"/proc/self/fd/{descriptor}"), path.exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    with atomic.replacing(path) as unfinished:
        unfinished.write_text("whole")
    assert order == [(str(unfinished), False), (str(tmp_path), True)]


def test_a_folder_appears_once_it_is_whole_and_takes_no_other_ones_place(tmp_path):
    def write():
        with atomic.replacing(tmp_path / "model") as unfinished:
            (unfinished / "weights").mkdir(parents=True)
            (unfinished / "weights" / "0").write_text("1 2 3")
            there.append(os.listdir(tmp_path / "model"))

    there = []
    (tmp_path / "model").mkdir()
    write()
    assert there == [[]]
    assert (tmp_path / "model" / "weights" / "0").read_text() == "1 2 3"
    (tmp_path / "model" / "mine").touch()
    with pytest.raises(OSError, match="not empty"):
        write()
    assert sorted(os.listdir(tmp_path / "model")) == ["mine", "weights"]
    assert os.listdir(tmp_path) == ["model"]


def test_of_two_writers_at_a_time_the_later_one_succeeds(tmp_path):
    path = tmp_path / "file"

    def both():
        with atomic.replacing(path) as first:
            first.write_text("first")
            with atomic.replacing(path) as second:
                second.write_text("second")

    with pytest.raises(OSError, match="Another process has begun to write it"):
        both()
    assert path.read_text() == "second"
    assert os.listdir(tmp_path) == ["file"]


def test_many_writers_at_a_time_leave_one_whole_file(tmp_path):
    path = tmp_path / "file"

    def write(number):
        try:
            with atomic.replacing(path) as unfinished:
                unfinished.write_text(str(number) * 10_000)
        except OSError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert any(pool.map(write, range(8)))
    text = path.read_text()
    assert text == text[0] * 10_000
    assert os.listdir(tmp_path) == ["file"]
