"""Examples that are read while a model trains: none lost, none twice, and to the same bits however it goes."""

import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import run
from flaxae import autoencoder, data, errors, training
from flaxae.autoencoder import Config
from flaxae.data import Scaling
from flaxae.data.stream import Stream
from flaxae.likelihoods import Gaussian
from flaxae.nn.heads import Deterministic
from flaxae.nn.mlp import MLP
from flaxae.training import feed, loop, step
from tests.test_training import assert_same_bits

TINY = Config(body=MLP((8,)), head=Deterministic(4), likelihood=Gaussian())
SHORT = {"epochs": 2, "batch_size": 32, "show": False}


@pytest.fixture
def mapped(tmp_path, rng):
    """A memory map of 1,000 rows of 6 columns: each row is its own number, and noise."""
    x = rng.standard_normal((1000, 6)).astype(np.float32)
    x[:, 0] = np.arange(1000)
    np.save(tmp_path / "x.npy", x)
    return np.load(tmp_path / "x.npy", mmap_mode="r")


@pytest.fixture
def small_windows(monkeypatch):
    """Windows of 224 rows at most."""
    monkeypatch.setattr(feed, "WINDOW_BYTES", 224 * 6 * 4)


class Records:
    """A random-access source as TFDS and array_record give them."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitems__(self, numbers):
        return [self.x[number] for number in numbers]


def standardised(mapped):
    return Stream(mapped).scaled(Scaling.fit(Stream(mapped)))


@given(n=st.integers(2, 400), fraction=st.floats(0, 0.99), seed=st.integers(0, 5), cut=st.integers(0, 400))
def test_what_is_held_out_and_what_is_kept_are_all_there_is(n, fraction, seed, cut):
    x = np.arange(n, dtype=np.float32)[:, None]
    kept, held = Stream(x).split(fraction, seed)
    assert len(held) == min(max(1, round(fraction * n)), n - 1)
    assert len(kept) == n - len(held)
    np.testing.assert_array_equal(np.union1d(kept[:], held), x[:, 0])
    np.testing.assert_array_equal(np.concatenate([kept[:cut], kept[cut:]]), kept[:])
    assert (np.diff(kept[:], axis=0) > 0).all()


def test_a_source_is_a_map_or_records_or_an_array(mapped):
    for source in (mapped, np.array(mapped), Records(mapped)):
        stream = Stream(source, spans=((10, 20), (500, 600)))
        assert stream.shape == (110, 6)
        np.testing.assert_array_equal(stream[5:15], mapped[[*range(15, 20), *range(500, 505)]])


def test_every_epoch_goes_through_all_in_an_order_of_its_own(mapped, small_windows):
    windows = feed.Windows(Stream(mapped), 32, 0, None, lambda low, high, wanted: None)
    assert (windows.windows, windows.steps) == (5, 6)
    epochs = [[np.asarray(windows(5 * epoch + window)[0]) for window in range(5)] for epoch in range(2)]
    windows.close()
    numbers = [np.stack(epoch)[..., 0].swapaxes(1, 2).ravel() for epoch in epochs]  # step by step
    for seen in numbers:
        assert len(np.unique(seen)) == 960  # of 1,000: 5 windows of 6 batches of 32
    assert (numbers[0] != numbers[1]).mean() > 0.9
    batches = numbers[0].reshape(30, 32)
    assert np.ptp(batches, axis=1).min() > 500  # a batch comes from all over


def test_after_an_epoch_only_what_was_not_in_it_is_checked(mapped, small_windows):
    checked: list[float] = []
    windows = feed.Windows(Stream(mapped), 32, 0, None, lambda low, high, wanted: checked.append(high))
    known: set[int] = set()
    unchecked = 0
    for epoch in range(6):
        seen = set()
        for window in range(5 * epoch, 5 * epoch + 5):
            before = len(checked)
            read, _ = windows._read(window)
            numbers = set(np.asarray(read[0])[..., 0].ravel().astype(int).tolist())
            assert (len(checked) == before) == (numbers <= known)
            unchecked += numbers <= known
            seen |= numbers
        known |= seen
    windows.close()
    assert unchecked > 10


def test_a_run_that_goes_on_within_an_epoch_checks_what_it_did_not_read(mapped, small_windows):
    checked: list[float] = []
    windows = feed.Windows(Stream(mapped), 32, 0, None, lambda low, high, wanted: checked.append(high))
    for window in (2, 3, 4, 5, 6, 7, 8, 9):
        windows._read(window)
    windows.close()
    assert len(checked) == 8


def test_what_may_change_is_checked_in_every_epoch(mapped, small_windows):
    checked: list[float] = []
    windows = feed.Windows(Stream(Records(mapped)), 32, 0, None, lambda low, high, wanted: checked.append(high))
    for window in range(15):
        windows(window)
    windows.close()
    assert len(checked) >= 15


def test_a_window_is_trained_on_where_it_was_read_to(mapped, small_windows, monkeypatch):
    real, read = feed._aligned, []
    monkeypatch.setattr(feed, "_aligned", lambda *shape: read.append(real(*shape)) or read[-1])
    windows = feed.Windows(Stream(mapped), 32, 0, None, lambda low, high, wanted: None)
    x, _ = windows(0)
    assert np.shares_memory(np.asarray(x), read[0])
    windows.close()


def in_parts(rng, n=1000):
    """A tree of streams whose parts tell of the same example, with values missing where they are not observed."""
    x = rng.standard_normal((n, 6)).astype(np.float32)
    x[:, 0] = np.arange(n) / n
    observed = rng.random((n, 6)) < 0.8
    observed[:, 0] = True
    parts = {"x": np.where(observed, x, np.nan), "observed": observed, "label": np.arange(n), "weight": np.ones(n)}
    return {name: Stream(values) for name, values in parts.items()}, np.where(observed, x, 0)


def test_a_tree_of_streams_stays_together(rng, small_windows):
    streams, x = in_parts(rng)
    windows = feed.Windows(streams, 32, 0, None, lambda low, high, wanted: None)
    seen = []
    for number in range(windows.windows):
        tree, order = windows(number)
        assert (tree["label"].dtype, tree["observed"].dtype) == (np.int32, bool)
        for i in range(windows.steps):
            batch = jax.tree.map(np.asarray, feed.batch(tree, jnp.asarray(order), 32, i))
            np.testing.assert_allclose(batch["x"], x[batch["label"]], rtol=1e-6)
            np.testing.assert_array_equal(batch["observed"], streams["observed"].source[batch["label"]])
            seen.append(batch["label"])
    windows.close()
    assert len(np.unique(seen)) == len(np.ravel(seen)) > 600


def test_a_tree_of_streams_is_trained_on_as_the_same_in_memory(rng, small_windows):
    streams, x = in_parts(rng)
    given = {name: stream.source for name, stream in streams.items()}
    for tree in (streams, given):
        model = autoencoder.build(TINY, (6,))
        history = training.fit(model, {name: tree[name] for name in ("x", "observed", "weight")}, **SHORT)
        assert history["loss"][-1] < history["loss"][0]
        if tree is streams:
            streamed = history["val_loss"][-1]
    assert streamed == pytest.approx(history["val_loss"][-1], abs=0.5)
    pairs = {"x": Stream(x + 1), "target": Stream(np.where(np.arange(1000)[:, None] == 700, np.inf, x))}
    with pytest.raises(errors.DataError, match="NaN or infinite"):
        training.fit(autoencoder.build(TINY, (6,)), pairs, validation=0.0, **SHORT)
    with pytest.raises(errors.DataError, match="as many examples"):
        training.fit(autoencoder.build(TINY, (6,)), {**pairs, "target": x[:-1]}, **SHORT)


def test_it_trains_and_resumes_to_the_same_bits(mapped, small_windows, tmp_path, monkeypatch):
    whole, parted = (autoencoder.build(TINY, (6,)) for _ in range(2))
    expected = training.fit(whole, standardised(mapped), **SHORT)
    assert expected["loss"][1] < expected["loss"][0]
    real, blocks = step.short_block, []
    monkeypatch.setattr(loop, "BLOCK_SECONDS", 0)
    monkeypatch.setattr(loop, "BLOCK_STEPS", 1)  # one step a block

    def counted(*arguments):
        blocks.append(None)
        if len(blocks) == 8:  # in the middle of the second window
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(step, "short_block", counted)
    with pytest.raises(KeyboardInterrupt):
        training.fit(parted, standardised(mapped), folder=tmp_path, **SHORT)
    resumed = autoencoder.build(TINY, (6,))
    logged = []
    history = training.fit(resumed, standardised(mapped), folder=tmp_path, resume=True, on_epoch=logged.append, **SHORT)
    assert_same_bits(whole, resumed)
    assert history["val_loss"] == expected["val_loss"]
    assert [metrics["devices"] for metrics in logged] == [1, 1]
    assert all(metrics["waited"] >= 0 < metrics["samples_per_s_per_device"] for metrics in logged)
    with pytest.raises(errors.CheckpointError, match="windows was 5 and is now 1"):
        training.fit(resumed, standardised(mapped)[:], folder=tmp_path, resume=True, **SHORT)


def test_a_memory_map_is_streamed_and_what_is_not_finite_is_refused_when_met(tmp_path, rng):
    x = rng.standard_normal((300, 6)).astype(np.float32)
    x[200, 3] = np.nan
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    model = autoencoder.build(TINY, (6,))
    with pytest.raises(errors.DataError, match="NaN or infinite"):
        training.fit(model, mapped, validation=0.0, **SHORT)
    with pytest.raises(errors.DataError, match="examples 0 to 300"):
        Scaling.fit(Stream(mapped))
    with pytest.raises(errors.DataError, match="uint8"):
        training.fit(model, Stream(np.zeros((9, 4, 4), np.uint8)), **SHORT)


def test_a_scaling_is_fitted_in_a_pass(mapped, monkeypatch):
    monkeypatch.setattr("flaxae.data.stream.PASS_BYTES", 1000)
    for x in (mapped, (mapped[:, :4].reshape(-1, 2, 2) * 50)):
        fitted, expected = Scaling.fit(Stream(x)), Scaling.fit(np.array(x) if x.ndim == 2 else x[..., None])
        np.testing.assert_allclose(fitted.offset, expected.offset, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(fitted.scale, expected.scale, rtol=1e-6)
        assert fitted.dtype == expected.dtype
    eight_bit = Stream(np.zeros((3, 2, 2), np.uint8))
    assert Scaling.fit(eight_bit).scale == (255.0,)
    assert jax.tree.leaves(eight_bit.scaled(Scaling.fit(eight_bit)).dtype) == [np.dtype(np.float32)]


def test_a_large_file_is_a_stream_from_loading_to_the_experiments(tmp_path, rng, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flaxae.data.arrays.MAP_BYTES", 1000)
    monkeypatch.setattr("flaxae.data.dataset.SAMPLE_BYTES", 2000)
    np.save("big.npy", rng.normal(5, 2, (200, 6)))
    dataset = data.load("big.npy")
    assert isinstance(dataset.train, Stream)
    assert "read a part at a time" in capsys.readouterr().out
    assert (len(dataset.train), len(dataset.test), dataset.kind) == (160, 40, "tabular")
    assert dataset.test.dtype == dataset.train_sample.dtype == np.float32
    assert 64 <= len(dataset.train_sample) <= 83
    np.testing.assert_allclose(dataset.scaling.offset, dataset.train[:].mean(axis=0), rtol=1e-5)
    assert run.main(["--exp", "denoise", "--data", "big.npy", "--epochs", "1", "--batch-size", "32", "--no-cache"]) == 0
    line = json.loads((tmp_path / "runs/denoise/1/metrics.jsonl").read_text())
    assert {"samples_per_s_per_device", "waited", "devices", "device", "processes", "hosts"} <= set(line)
    assert "waited for data" in (tmp_path / "runs/denoise/1/report.html").read_text()
    np.save("fortran.npy", np.asfortranarray(rng.normal(size=(200, 6))))
    with pytest.raises(errors.DataError, match="C order"):
        data.load("fortran.npy")
    with open("big.npy", "r+b") as file:
        file.truncate(5000)
    with pytest.raises(errors.DataError, match="cut short"):
        data.load("big.npy")
