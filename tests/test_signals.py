"""Signals are cut into windows, split in time, standardised by channel, and laid back moment by moment."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import wavfile

import run
from flaxae import data, trained
from flaxae.data import Framing
from flaxae.errors import ConfigError, DataError


@pytest.fixture
def waves(rng):
    """[500, 2], of different offset and scale."""
    t = np.arange(500)
    return np.stack([5 + np.sin(t / 7), 100 * np.cos(t / 11)], axis=1).astype(np.float32)


# Windows


@given(st.data())
def test_overlapping_windows_are_laid_back(given_data):
    window = given_data.draw(st.integers(1, 9))
    stride = given_data.draw(st.integers(1, window))
    length = given_data.draw(st.integers(window, 60))
    channels = given_data.draw(st.sampled_from([(), (2,)]))
    x = np.random.default_rng(0).normal(size=(length, *channels)).astype(np.float32)
    cut = data.windows(x, window, stride)
    starts = sorted({*range(0, length - window, stride), length - window})
    np.testing.assert_array_equal(cut, [x[i : i + window] for i in starts])
    laid = data.overlap_mean(cut, stride, length)
    assert laid.dtype == np.float32
    np.testing.assert_allclose(laid, x, rtol=1e-5)


def test_a_moment_has_the_mean_of_its_windows():
    scores = np.array([[1.0, 1, 1, 1], [3, 3, 3, 3], [8, 8, 8, 8]])
    # Of 7 moments: windows begin at 0, 2 and, flush with the end, 3.
    np.testing.assert_array_equal(data.overlap_mean(scores, 2, 7), [1, 1, 2, 4, 5.5, 5.5, 8])
    with pytest.raises(DataError, match="3 windows; 5 of 4 moments"):
        data.overlap_mean(scores, 1, 8)
    with pytest.raises(DataError, match="3 moments; expected 4"):
        data.windows(np.zeros(3), 4, 2)
    with pytest.raises(DataError, match="Choose a larger stride"):
        data.windows(np.zeros(10**6), 10_000, 1)


# Loading


@pytest.mark.parametrize("name", ["memory", "x.npy", "x.npz", "x.csv", "x.parquet"])
def test_the_last_fifth_of_the_time_is_held_out(tmp_path, waves, name):
    source = waves if name == "memory" else tmp_path / name
    if name != "memory":
        data.write(source, waves, columns=["left", "right"])
    dataset = data.load(source, window=20)
    assert (dataset.kind, dataset.shape, dataset.framing) == ("signal", (20, 2), Framing(20, 1))
    assert dataset.columns == (("left", "right") if name in ("x.csv", "x.parquet") else None)
    np.testing.assert_array_equal(dataset.train, [waves[i : i + 20] for i in range(381)])
    np.testing.assert_array_equal(dataset.test, [waves[i : i + 20] for i in range(400, 481)])
    scaled = dataset.scaling(waves[None, :400])
    np.testing.assert_allclose(scaled.mean(axis=(0, 1)), 0, atol=1e-4)
    np.testing.assert_allclose(scaled.std(axis=(0, 1)), 1, rtol=1e-4)
    np.testing.assert_allclose(dataset.scaling.undo(scaled)[0], waves[:400], rtol=1e-4, atol=1e-4)


def test_parts_of_a_source_are_kept_apart(waves):
    dataset = data.load((waves[:100, :1], waves[300:350, :1]), window=25, stride=25)
    np.testing.assert_array_equal(dataset.train[::25, :, 0], waves[:100, 0].reshape(4, 25))
    assert dataset.test_rows.tolist() == [0, 25]
    np.testing.assert_array_equal(dataset.test[..., 0], waves[300:350, 0].reshape(2, 25))


@pytest.mark.parametrize("labels", [[0, 1], [False, True], [0.0, 1.0]])
def test_a_window_has_the_largest_label_of_its_moments(tmp_path, waves, labels):
    strange = np.isin(np.arange(500), [35, 417, 418])
    frame = pd.DataFrame(waves, columns=["left", "right"]).assign(strange=np.array(labels)[strange.astype(int)])
    frame.to_csv(tmp_path / "x.csv", index=False)
    dataset = data.load(tmp_path / "x.csv", label="strange", window=20, stride=20)
    np.testing.assert_array_equal(np.flatnonzero(dataset.train_labels), np.arange(16, 36))  # from every moment
    np.testing.assert_array_equal(np.flatnonzero(dataset.test_labels), [0])
    assert len(dataset.classes) == 2


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [(np.uint8, 0, 255), (np.int16, -(2**15), 2**15 - 1), (np.int32, -(2**31), 2**31 - 1), (np.float32, -1, 1)],
)
def test_wav_files_of_any_depth_have_full_scale_1(tmp_path, dtype, low, high):
    samples = np.linspace(low, high, 200).astype(dtype)
    samples[:2] = low, high
    wavfile.write(tmp_path / "x.wav", 8000, np.stack([samples, samples[::-1]], axis=1))
    signal = data.read_signal(tmp_path / "x.wav")
    assert (signal.values.shape, signal.values.dtype, signal.rate) == ((200, 2), np.float32, 8000)
    np.testing.assert_allclose(signal.values[:2, 0], [-1, 1], atol=1 / 127)
    np.testing.assert_allclose(signal.values[2:, 0], np.linspace(-1, 1, 200)[2:], atol=1 / 64)
    np.testing.assert_array_equal(signal.values[:, 0], signal.values[::-1, 1])
    data.write(tmp_path / "copy.wav", signal)
    np.testing.assert_allclose(data.read_signal(tmp_path / "copy.wav").values, signal.values, atol=2e-7)
    assert data.load(tmp_path / "x.wav", window=50).framing == Framing(50, 3, 8000)


# Use


@pytest.fixture(scope="module")
def trained_on_wav(tmp_path_factory):
    """A folder with a recording, x.wav, and the command line's run that reconstructs it."""
    folder = tmp_path_factory.mktemp("signals")
    t = np.arange(3000) / 1000
    tones = np.stack([np.sin(2 * np.pi * 5 * t), 0.3 * np.cos(2 * np.pi * 7 * t)], axis=1)
    wavfile.write(folder / "x.wav", 1000, (tones * 30_000).astype(np.int16))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        command = "--exp reconstruct --data x.wav --window 64 --stride 16 --latent 6 --batch-size 32 --epochs 30"
        assert run.main(command.split()) == 0
    return folder


def test_the_command_line_trains_on_a_recording_and_gives_one_back(trained_on_wav, monkeypatch):
    monkeypatch.chdir(trained_on_wav)
    config = json.loads((trained_on_wav / "runs/reconstruct/1/config.json").read_text())
    assert (config["settings"]["window"], config["settings"]["stride"]) == (64, 16)
    assert config["data"]["framing"] == {"window": 64, "stride": 16, "rate": 1000, "step": None}
    use = "--exp reconstruct --from runs/reconstruct/1 --input x.wav --output same.wav"
    assert run.main(use.split()) == 0
    assert data.read_signal("same.wav")[1::6] == data.read_signal("x.wav")[1::6] == (1000, "PCM_16")
    same, original = data.read_signal("same.wav").values, data.read_signal("x.wav").values
    assert same.shape == original.shape
    assert (np.mean(np.square(same - original), axis=0) < 0.1 * original.var(axis=0)).all()


def test_a_trained_model_refuses_signals_of_another_kind(trained_on_wav, tmp_path):
    model = trained.load(trained_on_wav / "runs/reconstruct/1")
    assert model.read(trained_on_wav / "x.wav").shape == (185, 64, 2)
    signal = data.read_signal(trained_on_wav / "x.wav")
    for wrong, message in (
        (signal._replace(rate=8000), "8000 samples a second; the model was trained on 1000"),
        (signal._replace(values=signal.values[:, :1]), "1 channels; the model was trained on 2"),
        (signal._replace(values=signal.values[:63]), "63 moments; expected 64 at least"),
    ):
        data.write(tmp_path / "new.wav", wrong)
        with pytest.raises(DataError, match=message):
            model.read(tmp_path / "new.wav")


# Bad input


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (np.zeros(39), {"window": 20}, "39 moments .* expected 40 at least: one window of 20 to train on"),
        (np.zeros((2, 1000)), {"window": 20}, r"2 moments \(its shape is \(2, 1000\)\)"),
        (np.zeros((9, 9, 9)), {"window": 2}, "expected a signal"),
        (np.zeros(0), {"window": 2}, "empty"),
        (np.full(18, np.nan), {"window": 2}, "hold no values"),
        (np.array(["a"] * 9), {"window": 2}, "expected integers or real numbers"),
        ((np.zeros((90, 1)), np.zeros(80)), {"window": 2}, "expected a number for each of 90 moments"),
        (pd.DataFrame({"a": ["x", "y"] * 9}), {"window": 2}, "'a' is not numeric"),
        (pd.DataFrame({"a": pd.date_range("2020", periods=9)}), {"window": 2}, "'a' holds dates"),
        ("mnist", {"window": 2}, "expected a signal"),
    ],
)
def test_signals_that_can_not_be_used(source, options, message):
    with pytest.raises(DataError, match=message):
        data.load(source, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 1}, "The window is 1"),
        ({"window": 0}, "window of a signal is 0"),
        ({"window": 4, "stride": 0}, "stride of a signal is 0"),
        ({"window": 4, "stride": 5}, "stride, 5, is more than the window, 4"),
        ({"stride": 5}, "no window is given"),
    ],
)
def test_windows_that_can_not_be(options, message):
    with pytest.raises(ConfigError, match=message):
        data.load(np.zeros((100, 3)), **options)


@pytest.mark.parametrize(
    "fields",
    [{}, {"window": 4, "stride": 2}, {"window": 4, "stride": 2, "rate": 0}, {"window": 4, "stride": "2", "rate": None}],
)
def test_framing_from_a_damaged_config(fields):
    assert Framing.from_dict(json.loads(json.dumps(Framing(8, 4, 16_000).to_dict()))) == Framing(8, 4, 16_000)
    with pytest.raises(ConfigError):
        Framing.from_dict(fields)


def test_wav_without_a_window_and_with_a_chunk_of_text(tmp_path):
    path = tmp_path / "x.wav"
    wavfile.write(path, 8000, np.arange(100, dtype=np.int16))
    with pytest.raises(DataError, match=r"x\.wav is a signal; say how many .* --window"):
        data.load(path)
    with pytest.raises(DataError, match="read_signal"):
        data.read(path)
    with pytest.raises(DataError, match="has no rate"):
        data.write(path, data.Signal(np.zeros((9, 1), np.float32)))
    content = path.read_bytes()
    path.write_bytes(content[:36] + b"note\4\0\0\0text" + content[36:])
    assert len(data.read_signal(path).values) == 100


@given(cut=st.floats(0, 1, exclude_max=True))
def test_truncated_wav(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("cut") / "x.wav"
    wavfile.write(path, 8000, np.arange(100, dtype=np.int16))
    content = path.read_bytes()
    path.write_bytes(content[: int(cut * len(content))])
    with pytest.raises(DataError, match=r"x\.wav can't be read"):
        data.read_signal(path)
