"""Sound: files of any kind come back as they were, spectra are undone exactly, and noise is taken out of any length."""

import itertools

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from flaxae import autoencoder, data, sound, training
from flaxae.autoencoder import Autoencoder
from flaxae.data import Signal
from flaxae.errors import ConfigError, DataError, RunError
from flaxae.likelihoods import Gaussian
from flaxae.nn.heads import Identity
from flaxae.nn.masks import Masks
from flaxae.objectives import CompressedSpectrum

RATE = 2000
SMALL = autoencoder.Config(
    body=Masks(width=8, dilations=(1, 2)), head=Identity(), objective=CompressedSpectrum(), likelihood=Gaussian()
)


@pytest.fixture(scope="module")
def denoiser():
    framing = sound.Framing.at(RATE)
    return sound.SoundDenoiser(autoencoder.build(SMALL, (64, 2 * framing.bins)), RATE)


@pytest.fixture
def clips(rng):
    t = np.arange(1500) / RATE
    return [(np.sin(2 * np.pi * f * t) * np.hanning(1500)).astype(np.float32) for f in (90, 150, 210, 300)]


# Files


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_U8", "ALAW", "FLOAT"])
def test_samples_are_kept_as_they_were(tmp_path, subtype):
    x = np.linspace(-0.9, 0.9, 400).astype(np.float32).reshape(200, 2)
    soundfile.write(tmp_path / "x.wav", x, RATE, subtype)
    signal = data.read_signal(tmp_path / "x.wav")
    assert (signal.rate, signal.subtype) == (RATE, subtype)
    data.write(tmp_path / "y.wav", signal)
    assert soundfile.info(tmp_path / "y.wav").subtype == subtype
    np.testing.assert_array_equal(data.read_signal(tmp_path / "y.wav").values, signal.values)
    data.write(tmp_path / "y.flac", signal)  # which has fewer kinds
    assert soundfile.info(tmp_path / "y.flac").subtype in ("PCM_16", "PCM_24")


def test_a_recording_that_was_cut_off_is_read(tmp_path, capsys):
    path = tmp_path / "x.wav"
    soundfile.write(path, np.linspace(-0.5, 0.5, 300), RATE, "PCM_16")
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = bytes(4)
    path.write_bytes(content)
    assert data.read_signal(path).values.shape == (300, 1)
    assert "says nothing of its length" in capsys.readouterr().out
    content[4:8] = content[40:44] = b"\xff" * 4  # through a pipe
    path.write_bytes(content)
    assert data.read_signal(path).values.shape == (300, 1)


def test_clips_of_other_rates_are_resampled_and_bad_ones_left_out(tmp_path, clips, capsys):
    for i, rate in enumerate((RATE, RATE, 2 * RATE)):
        soundfile.write(tmp_path / f"{i}.wav", clips[i], rate)
    (tmp_path / "bad.flac").write_bytes(b"bad")
    read, rate, names = sound.read_clips(tmp_path)
    assert (rate, names) == (RATE, ["0.wav", "1.wav", "2.wav"])
    assert [len(clip) for clip in read] == [1500, 1500, 750]
    out = capsys.readouterr().out
    assert "1 of 3 sounds are resampled to 2,000 Hz" in out
    assert "bad.flac" in out


# Spectra and mixtures


@given(st.integers(1, 400), st.sampled_from([8, 16, 64]))
def test_a_spectrum_is_undone(length, frame):
    x = np.random.default_rng(length).normal(size=length).astype(np.float32)
    framing = sound.Framing(frame)
    np.testing.assert_allclose(framing.wave(framing.spectrum(x), length), x, atol=1e-5)


def test_white_noise_has_a_flat_spectrum_of_known_height(rng):
    spectrum = sound.Framing(64).spectrum(rng.normal(size=200_000).astype(np.float32))
    real, imaginary = np.split(spectrum, 2, axis=-1)
    np.testing.assert_allclose(np.mean(real**2 + imaginary**2, axis=0), 1, rtol=0.1)


@given(st.floats(-20, 40))
def test_noise_is_mixed_in_at_the_ratio_asked_for(snr):
    rng = np.random.default_rng(0)
    clean, noise = rng.normal(size=(2, 5000)).astype(np.float32)
    made = sound.mixed(clean, 7 * noise, snr) - clean
    ratio = 20 * np.log10(sound.root_mean_square(clean) / sound.root_mean_square(made))
    assert ratio == pytest.approx(snr, abs=1e-3)


@pytest.mark.parametrize("own", [False, True])
def test_mixtures_are_pairs_of_spectra(clips, rng, own):
    mixtures = sound.mixtures(clips, [rng.normal(size=700).astype(np.float32)] if own else [], RATE, batch=3)
    first, again = next(iter(mixtures)), next(iter(mixtures))
    assert first["x"].shape == first["target"].shape == (3, first["x"].shape[1], 2 * mixtures.framing.bins)
    np.testing.assert_array_equal(first["x"], again["x"])
    assert not np.allclose(first["x"], first["target"])
    with pytest.raises(DataError, match="silent"):
        sound.mixtures([np.zeros(100, np.float32)], [], RATE)


def test_si_sdr_is_that_of_a_sum(rng):
    clean, noise = rng.normal(size=(2, 100_000)).astype(np.float32)
    assert sound.si_sdr(3 * (clean + 0.1 * noise), clean) == pytest.approx(20, abs=0.1)


# The denoiser


def test_masks_take_any_number_of_frames_and_only_lower(denoiser, rng):
    framing = denoiser.framing
    for frames in (5, 64, 99):
        x = rng.normal(size=(2, frames, 2 * framing.bins)).astype(np.float32)
        made = training.apply(Autoencoder.reconstruct, denoiser.model, x)
        assert made.shape == x.shape

        def level(values):
            return np.hypot(*np.split(values, 2, axis=-1))

        assert (level(made) <= level(x) + 1e-5).all()
    with pytest.raises(ConfigError, match="spectra"):
        autoencoder.build(SMALL, (7,))


def test_a_sound_in_blocks_is_denoised_as_a_whole(denoiser, rng, monkeypatch):
    x = rng.normal(size=(9001, 2)).astype(np.float32)
    whole = denoiser.denoise(x)
    monkeypatch.setattr(sound, "BLOCK", 0.5)
    level = sound.root_mean_square(x)
    parts = list(denoiser.stream(iter(np.array_split(x, 13)), RATE, level, len(x)))
    assert len(parts) > 5
    inside = slice(500, -500)  # where it ends, sound is mirrored, which other lengths do elsewhere
    np.testing.assert_allclose(np.concatenate(parts)[inside], whole[inside], atol=1e-4)
    np.testing.assert_allclose(denoiser.denoise(x[:, 0] * 5), 5 * denoiser.denoise(x[:, 0]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("length", [1, 50, 3000])
@pytest.mark.parametrize("rate", [RATE, 3000])
def test_length_and_rate_are_kept(denoiser, rng, length, rate):
    x = rng.normal(size=(length, 2)).astype(np.float32)
    assert denoiser.denoise(x, rate).shape == x.shape
    with pytest.raises(DataError, match="expected finite"):
        denoiser.denoise(x * np.nan)


def test_files_and_folders_are_converted(tmp_path, denoiser, rng, capsys):
    noisy = (0.1 * rng.normal(size=(3000, 2))).astype(np.float32)
    data.write(tmp_path / "in/a.wav", Signal(noisy, RATE, subtype="PCM_16"))
    data.write(tmp_path / "in/deep/b.flac", Signal(noisy[:700, :1], 3000, subtype="PCM_24"))
    (tmp_path / "in/bad.wav").write_bytes(b"bad")
    failed = denoiser.convert(tmp_path / "in", tmp_path / "out")
    assert [name.rsplit("/")[-1] for name in failed] == ["bad.wav"]
    assert "left out" in capsys.readouterr().out
    a, b = soundfile.info(tmp_path / "out/a.wav"), soundfile.info(tmp_path / "out/deep/b.flac")
    assert (a.frames, a.channels, a.samplerate, a.subtype) == (3000, 2, RATE, "PCM_16")
    assert (b.frames, b.channels, b.samplerate, b.subtype) == (700, 1, 3000, "PCM_24")
    with pytest.raises(DataError, match="no sound file"):
        denoiser.convert(tmp_path / "in/a.wav", tmp_path / "out.csv")


def test_a_training_can_be_resumed_from_any_step(tmp_path, clips, monkeypatch):
    monkeypatch.setattr(sound, "default_config", lambda: SMALL)
    mixed = sound.mixtures(clips, [], RATE, seed=1, batch=2)
    np.testing.assert_array_equal(next(mixed.batches(2))["x"], next(itertools.islice(mixed, 2, None))["x"])
    whole = sound.fit(clips, RATE, steps=2, show=False, folder=tmp_path)
    resumed = sound.fit(clips, RATE, steps=2, show=False, folder=tmp_path, resume=True)
    np.testing.assert_array_equal(resumed.denoise(clips[0]), whole.denoise(clips[0]))


def test_training_lowers_the_error_and_what_is_saved_does_the_same(tmp_path, clips, rng, monkeypatch):
    monkeypatch.setattr(sound, "default_config", lambda: SMALL)
    history = []
    trained = sound.fit(
        clips, RATE, steps=200, seed=1, show=False, on_epoch=lambda epoch: history.append(epoch["loss"])
    )
    assert all(np.isfinite(history))
    noisy = sound.mixed(np.tile(clips[1], 3), rng.normal(size=4500).astype(np.float32), 0)
    assert sound.si_sdr(trained.denoise(noisy), np.tile(clips[1], 3)) > sound.si_sdr(noisy, np.tile(clips[1], 3))
    trained.save(tmp_path / "saved")
    np.testing.assert_array_equal(sound.load(tmp_path / "saved").denoise(noisy), trained.denoise(noisy))
    (tmp_path / "saved" / "sound.json").write_text('{"rate": 16000}')
    with pytest.raises(RunError, match=r"sound\.json is damaged"):
        sound.load(tmp_path / "saved")
    trained.save(tmp_path / "saved")
    assert sound.load(tmp_path / "saved").rate == RATE
    with pytest.raises(RunError, match="no denoiser of sound"):
        sound.load(tmp_path)
    with pytest.raises(DataError, match="2 at least"):
        sound.fit(clips[:1], RATE)
