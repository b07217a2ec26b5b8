"""Denoise sound: a mask on the short-time spectrum, learnt from clean clips with noise mixed in.

    denoiser = sound.fit(clips, rate)          # clips: a list of float32 [samples]
    denoiser.denoise(noisy)                    # [samples] or [samples, channels], of any length

Examples are spectra of stretches put together from the clips. Each is mixed anew, at a signal-to-noise ratio drawn from
a range, with noise of one's own, or with white noise, coloured noise, or babble: several other clips at once.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Complex, Float

from flaxae import errors
from flaxae.autoencoder import Config
from flaxae.likelihoods import Gaussian
from flaxae.nn.heads import Identity
from flaxae.nn.masks import Masks
from flaxae.objectives import CompressedSpectrum

FRAME = 0.032  # seconds, about: the power of two samples that is nearest
OVERLAP = 4  # frames that a sample is in
STRETCH = 1.5  # seconds of an example
SNR = (-5.0, 20.0)  # dB, of the mixtures that are trained on
SPEEDS = (0.8, 0.9, 1.0, 1.1, 1.2)  # that clips are played at, so that there are more voices than were recorded
BATCH = 12
BLOCK = 20.0  # seconds denoised at once, and the frames around that their masks depend on
SILENCE = 1e-4  # a root mean square below which a clip counts as silent

Samples = Float[np.ndarray, " samples"]


@dataclasses.dataclass(frozen=True)
class Framing:
    """How sound is cut into frames: `frame` samples each, one every `hop`, under the root of a Hann window."""

    frame: int

    @classmethod
    def at(cls, rate: int) -> "Framing":
        """The framing of sound at so many samples a second."""
        return cls(max(16, 2 ** round(math.log2(FRAME * rate))))

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return self.frame // OVERLAP

    @property
    def bins(self) -> int:
        """Frequencies of a frame."""
        return self.frame // 2 + 1

    @property
    def window(self) -> Float[np.ndarray, " frame"]:
        """What a frame is weighed by, when it is cut and when it is laid back."""
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.frame) / self.frame)
        return np.sqrt(hann * 2 / OVERLAP).astype(np.float32)

    def spectrum(self, x: Float[np.ndarray, "*batch samples"]) -> Float[np.ndarray, "*batch frames parts"]:
        """Real parts, then imaginary ones, of every frame; of white noise of variance 1 each value's square is 1/2."""
        length = x.shape[-1]
        after = self.frame - self.hop + (-length) % self.hop
        padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(self.frame - self.hop, after)])
        frames = np.lib.stride_tricks.sliding_window_view(padded, self.frame, axis=-1)[..., :: self.hop, :]
        values = np.fft.rfft(frames * self.window, axis=-1) * self._unit
        return np.concatenate([values.real, values.imag], axis=-1).astype(np.float32)

    def wave(self, spectrum: Float[np.ndarray, "frames parts"], length: int) -> Samples:
        """The sound of a spectrum: the inverse of `spectrum`."""
        real, imaginary = np.split(spectrum, 2, axis=-1)
        values: Complex[np.ndarray, "frames bins"] = (real + 1j * imaginary) / self._unit
        frames = np.fft.irfft(values, self.frame, axis=-1) * self.window
        out = np.zeros((len(frames) + OVERLAP - 1) * self.hop)
        for part in range(OVERLAP):
            piece = frames[:, part * self.hop : (part + 1) * self.hop].reshape(-1)
            out[part * self.hop : part * self.hop + len(piece)] += piece
        start = self.frame - self.hop
        return out[start : start + length].astype(np.float32)

    @property
    def _unit(self) -> float:
        return 1 / math.sqrt(float(np.sum(np.square(self.window))))


def root_mean_square(x: np.ndarray) -> float:
    """Of all values."""
    return math.sqrt(float(np.mean(np.square(x, dtype=np.float64)))) if x.size else 0.0


def mixed(clean: Samples, noise: Samples, snr: float) -> Samples:
    """The sum of a sound and noise, at that ratio of their energies in dB. Silence stays as it is."""
    level = root_mean_square(noise)
    if level == 0:
        return clean
    return clean + noise * np.float32(root_mean_square(clean) / level * 10 ** (-snr / 20))


def coloured(length: int, rate: int, rng: np.random.Generator) -> Samples:
    """Noise with a random spectrum: a slope (0 is white, -1 pink, -2 brown, 1 blue), and hills on it; it may swell."""
    frequencies = np.fft.rfftfreq(length, 1 / rate)
    octave = np.log2(np.maximum(frequencies, 20) / 1000)
    shape = rng.uniform(-1.2, 0.6) * octave * 0.5
    knots = np.linspace(octave.min(), octave.max(), 8)
    shape = shape + np.interp(octave, knots, rng.normal(0, rng.uniform(0, 0.6), 8))
    noise = np.fft.irfft(np.fft.rfft(rng.normal(size=length)) * 10**shape, length)
    if rng.random() < 0.5:
        swell = np.interp(np.arange(length), np.linspace(0, length, 8), rng.normal(0, 0.4, 8))
        noise = noise * np.exp(swell)
    return (noise / max(root_mean_square(noise), 1e-9)).astype(np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Mixtures:
    """Batches of mixtures without end: {"x": noisy, "target": clean}, spectra at a root mean square of 1.

    Iterating anew gives the same ones.

    Args:
        clips: clean sounds.
        noises: to mix in; without any, white noise, coloured noise and babble are.
    """

    clips: Sequence[Samples]
    noises: Sequence[Samples]
    rate: int
    framing: Framing
    batch: int = BATCH
    seed: int = 0
    voices: Sequence[Sequence[Samples]] = ()  # the clips at several speeds

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        rng = np.random.default_rng(self.seed)
        while True:
            yield self.draw(self.batch, rng)

    def draw(self, count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """So many mixtures."""
        length = round(STRETCH * self.rate) // self.framing.hop * self.framing.hop
        pairs = [self._pair(length, rng) for _ in range(count)]
        noisy, clean = (self.framing.spectrum(np.stack(part)) for part in zip(*pairs, strict=True))
        return {"x": noisy, "target": clean}

    def _pair(self, length: int, rng: np.random.Generator) -> tuple[Samples, Samples]:
        clean = self._stretch(length, rng)
        draw = rng.random()
        if self.noises:
            noise = _cut(self.noises[rng.integers(len(self.noises))], length, rng)
        elif draw < 0.25:
            noise = rng.normal(size=length).astype(np.float32)
        elif draw < 0.6:
            noise = coloured(length, self.rate, rng)
        else:
            many = [self._stretch(length, rng) for _ in range(rng.integers(3, 9))]
            noise = np.sum(many, axis=0, dtype=np.float32)
        noisy = mixed(clean, noise, rng.uniform(*SNR))
        level = np.float32(max(root_mean_square(noisy), 1e-9))
        return noisy / level, clean / level

    def _stretch(self, length: int, rng: np.random.Generator) -> Samples:
        """Clips one after the other, at one speed and about one level, with pauses."""
        clips = self.voices[rng.integers(len(self.voices))] if self.voices else self.clips
        made, count = [], 0
        while count < length:
            clip = clips[rng.integers(len(clips))]
            if len(clip) > length:
                clip = _cut(clip, length, rng)
            level = np.float32(10 ** rng.uniform(-0.15, 0.15) / max(root_mean_square(clip), SILENCE))
            pause = np.zeros(int(rng.exponential(0.05) * self.rate), np.float32)
            made += [clip * level, pause]
            count += len(clip) + len(pause)
        whole = np.concatenate(made)
        start = rng.integers(len(whole) - length + 1)
        return whole[start : start + length]


def _cut(x: Samples, length: int, rng: np.random.Generator) -> Samples:
    """A stretch of that length from anywhere in x, which is repeated if it is shorter."""
    if len(x) < length + 1:
        x = np.tile(x, math.ceil((length + 1) / len(x)))
    start = rng.integers(len(x) - length)
    return x[start : start + length]


def resampled(
    x: Float[np.ndarray, " samples *channels"], rate: float, to: float
) -> Float[np.ndarray, " more *channels"]:
    """Sound at another number of samples a second, by soxr."""
    if rate == to:
        return x
    import soxr

    return soxr.resample(x, rate, to).astype(np.float32)


def default_config() -> Config:
    """The model of `fit`."""
    return Config(body=Masks(), head=Identity(), objective=CompressedSpectrum(), likelihood=Gaussian())


def mixtures(
    clips: Sequence[Samples], noises: Sequence[Samples], rate: int, *, seed: int = 0, batch: int = BATCH
) -> Mixtures:
    """Mixtures of clips, at several speeds, and noises.

    Raises:
        DataError: all clips are silent.
    """
    clips = [clip for clip in clips if root_mean_square(clip) > SILENCE]
    if not clips:
        raise errors.DataError("The clips are silent, all of them; expected clean sound to learn from.")
    voices = [[resampled(clip, speed * 1000, 1000) for clip in clips] for speed in SPEEDS]
    return Mixtures(clips, noises, rate, Framing.at(rate), batch, seed, voices)
