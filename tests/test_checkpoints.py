"""Saved state comes back bit for bit, whatever happens to the process or to the files."""

import errno
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flaxae.errors import CheckpointError
from flaxae.training import checkpoints


def example(seed: int) -> dict:
    key = jax.random.key(seed)
    return {
        "params": [{"kernel": jax.random.normal(key, (3, 4)), "bias": jnp.arange(4.0) * seed}],
        "step": np.int64(seed),
    }


def assert_same(actual, expected) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), map(np.asarray, jax.tree.leaves(expected)), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == b.tobytes()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Steps 1 and 2, to copy and damage."""
    folder = tmp_path_factory.mktemp("saved")
    for step in (1, 2):
        checkpoints.save(folder, step, example(step))
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


@st.composite
def arrays(draw) -> np.ndarray:
    """Any bits at all, NaNs of every kind among them."""
    dtype = np.dtype(draw(st.sampled_from(["u1", "i4", "i8", "f2", "f4", "f8", "c8", ml_dtypes.bfloat16])))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
    bits = draw(st.randoms()).randbytes(math.prod(shape) * dtype.itemsize)
    return np.frombuffer(bits, dtype).reshape(shape)


@settings(max_examples=10)
@given(st.dictionaries(st.text("ab/.[]' ", max_size=4), st.lists(arrays(), max_size=2), max_size=3), st.booleans())
def test_any_tree_comes_back_bit_for_bit(tmp_path_factory, tree, on_device):
    tree["always"] = [np.float32(1)]
    if on_device:
        tree = jax.tree.map(lambda x: jnp.asarray(x) if x.dtype.itemsize < 8 else x, tree)
    folder = tmp_path_factory.mktemp("any")
    checkpoints.save(folder, 7, tree)
    step, restored = checkpoints.restore(folder, tree)
    assert step == 7
    assert_same(restored, tree)


def test_numbers_come_back_as_arrays(tmp_path):
    state = {"epoch": 3, "loss": 0.1, "ok": True, "rate": np.float32(0.5)}
    checkpoints.save(tmp_path, 0, state)
    restored = checkpoints.restore(tmp_path, state)[1]
    assert_same(restored, state)
    assert all(isinstance(leaf, np.ndarray) for leaf in restored.values())


def test_newest_step_is_restored_or_the_one_asked_for(folder):
    step, state = checkpoints.restore(folder, example(0))
    assert step == 2
    assert_same(state, example(2))
    step, state = checkpoints.restore(folder, example(0), step=1)
    assert step == 1
    assert_same(state, example(1))
    with pytest.raises(CheckpointError, match=r"No step 5 in .* Saved steps: \[1, 2\]"):
        checkpoints.restore(folder, example(0), step=5)


def test_shapes_and_dtypes_are_enough_to_restore(folder):
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), example(0)) | {"step": np.int64(0)}
    assert_same(checkpoints.restore(folder, like)[1], example(2))


def test_only_the_newest_steps_are_kept(tmp_path):
    assert checkpoints.steps(tmp_path / "none") == []
    for step in range(4):
        checkpoints.save(tmp_path, step, example(step), keep=2)
    assert checkpoints.steps(tmp_path) == [2, 3]
    checkpoints.save(tmp_path, 10, example(10), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["10"]


def test_saving_a_step_replaces_it_and_the_later_ones(folder):
    checkpoints.save(folder, 1, example(9))
    assert checkpoints.steps(folder) == [1]
    assert_same(checkpoints.restore(folder, example(0))[1], example(9))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": np.int32(0)}, r"step int64\[\] where this one has step int32\[\]"),
        ({"step": np.zeros(2, np.int64)}, r"step int64\[\] where this one has step int64\[2\]"),
        ({"more": np.zeros(1)}, r"params/0/bias float32\[4\] where this one has more float64\[1\]"),
        ({"z": np.zeros(1)}, r"nothing more where this one has z float64\[1\]"),
    ],
)
def test_another_model_is_refused_by_name(folder, change, message):
    with pytest.raises(CheckpointError, match=message):
        checkpoints.restore(folder, example(0) | change)


def test_a_flipped_bit_in_any_file_is_noticed(folder):
    chance = random.Random(0)
    files = [path for path in (folder / "2").rglob("*") if path.is_file() and path.stat().st_size]
    assert len(files) > 5
    for path in files:
        good = path.read_bytes()
        for position in {0, len(good) - 1, chance.randrange(len(good))}:
            bad = bytearray(good)
            bad[position] ^= 1 << chance.randrange(8)
            path.write_bytes(bad)
            with pytest.raises(CheckpointError, match="step 2 is damaged"):
                checkpoints.restore(folder, example(0), step=2)
        path.write_bytes(good)
    assert_same(checkpoints.restore(folder, example(0))[1], example(2))


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "no manifest"])
def test_a_damaged_step_falls_back_and_says_so(folder, damage):
    data = max((folder / "2").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = data.read_bytes()
    if damage == "flip":
        data.write_bytes(content[:9] + bytes([content[9] ^ 1]) + content[10:])
    elif damage == "truncate":
        data.write_bytes(content[:-1])
    elif damage == "delete":
        data.unlink()
    else:
        (folder / "2" / "manifest").unlink()
    with pytest.warns(UserWarning, match=r"step 2 is damaged .* Restored step 1 instead"):
        step, state = checkpoints.restore(folder, example(0))
    assert step == 1
    assert_same(state, example(1))

    checkpoints.save(folder, 2, example(3))
    assert_same(checkpoints.restore(folder, example(0))[1], example(3))


def test_no_good_step_is_one_error_that_names_them_all(folder):
    for step in "12":
        (folder / step / "manifest").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"step 2 is damaged .* step 1 is damaged"):
        checkpoints.restore(folder, example(0))
    with pytest.raises(CheckpointError, match="No checkpoint in"):
        checkpoints.restore(folder / "missing", example(0))


def test_a_failed_save_leaves_the_others(folder, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 100, 0))
    with pytest.raises(CheckpointError, match=os.strerror(errno.ENOSPC)):
        checkpoints.save(folder, 3, example(3))
    monkeypatch.undo()
    step, state = checkpoints.restore(folder, example(0))
    assert step == 2
    assert_same(state, example(2))


def test_a_file_in_the_way_is_one_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="Can't save step 0"):
        checkpoints.save(tmp_path / "file", 0, example(0))


def test_orbax_is_silent(tmp_path, capfd, caplog):
    checkpoints.save(tmp_path, 0, example(0))
    checkpoints.restore(tmp_path, example(0))
    with pytest.raises(CheckpointError):
        checkpoints.save(tmp_path, 1, [])
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_restored_onto_other_devices_than_saved_from(tmp_path):
    first, last = jax.devices()[0], jax.devices()[-1]
    assert first != last
    spread = jax.NamedSharding(jax.make_mesh((2,), ("data",)), jax.P("data"))
    for step, (there, here) in enumerate([(first, last), (spread, first), (first, spread)]):
        x = jax.device_put(jnp.arange(8.0), there)
        like = jax.device_put(jnp.zeros(8), here)
        checkpoints.save(tmp_path, step, x)
        restored = checkpoints.restore(tmp_path, like)[1]
        assert restored.sharding == like.sharding
        np.testing.assert_array_equal(restored, np.arange(8.0))


SAVE_IN_A_LOOP = """
import itertools, sys
import numpy as np
from flaxae.training import checkpoints
for step in itertools.count(int(sys.argv[2])):
    checkpoints.save(sys.argv[1], step, {"x": np.full(1000, step), "step": step})
    print(step, flush=True)
"""


def test_kill_in_mid_save_leaves_what_was_saved(tmp_path):
    like = {"x": np.zeros(1000, int), "step": 0}
    chance = random.Random(0)
    reached = -1
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", SAVE_IN_A_LOOP, tmp_path, str(reached + 1)], stdout=subprocess.PIPE, text=True
        )
        with child:
            told = int(child.stdout.readline())
            time.sleep(chance.uniform(0, 0.2))
            child.send_signal(signal.SIGKILL)
            told = int(([told, *child.stdout.read().split()])[-1])
        assert child.returncode == -signal.SIGKILL
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            reached, state = checkpoints.restore(tmp_path, like)
        assert reached in (told, told + 1)
        assert_same(state, {"x": np.full(1000, reached), "step": reached})


def test_a_training_has_begun_once_a_step_is_saved(tmp_path):
    assert not checkpoints.begun(None)
    assert not checkpoints.begun(tmp_path)
    (tmp_path / "latest" / "unfinished").mkdir(parents=True)  # as a process leaves it that was killed in its first save
    assert not checkpoints.begun(tmp_path)
    checkpoints.save(tmp_path / "latest", 3, example(0))
    assert checkpoints.begun(tmp_path)
