"""Denoise sound: a mask on the short-time spectrum, learnt from clean clips with noise mixed in.

    denoiser = sound.fit(clips, rate)          # clips: a list of float32 [samples]
    denoiser.denoise(noisy)                    # [samples] or [samples, channels], of any length

Examples are spectra of stretches put together from the clips. Each is mixed anew, at a signal-to-noise ratio drawn from
a range, with noise of one's own, or with white noise, coloured noise, or babble: several other clips at once.
"""

import dataclasses
import itertools
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Complex, Float

from flaxae import atomic, autoencoder, data, errors, manifest, training
from flaxae.autoencoder import Autoencoder, Config
from flaxae.likelihoods import Gaussian
from flaxae.nn.heads import Identity
from flaxae.nn.masks import Masks
from flaxae.objectives import CompressedSpectrum
from flaxae.printing import say
from flaxae.training import checkpoints

FRAME = 0.032  # seconds, about: the power of two samples that is nearest
OVERLAP = 4  # frames that a sample is in
STRETCH = 1.5  # seconds of an example
SNR = (-5.0, 20.0)  # dB, of the mixtures that are trained on
SPEEDS = (0.8, 0.9, 1.0, 1.1, 1.2)  # that clips are played at, so that there are more voices than were recorded
BATCH = 12
STEPS, EPOCH, VALIDATION, LEARNING_RATE = 4000, 100, 36, 2e-3
BLOCK = 20.0  # seconds denoised at once, and the frames around that their masks depend on
LEFT = 0.08  # of the noisy sound, in what is made of it: what a mask took away by mistake is heard again
SILENCE = 1e-4  # a root mean square below which a clip counts as silent

Samples = Float[np.ndarray, " _"]  # of any length


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

    def decibels(self, x: Samples) -> Float[np.ndarray, "frames bins"]:
        """The energy of each frequency of every frame."""
        real, imaginary = np.split(self.spectrum(x), 2, axis=-1)
        return 10 * np.log10(np.square(real) + np.square(imaginary) + 1e-10)

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


def mixed(clean: Samples, noise: Samples, snr: int | float) -> Samples:
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
        return self.batches(0)

    def batches(self, step: int) -> Iterator[dict[str, np.ndarray]]:
        """The batches from a step of the training on, so that it can be resumed."""
        while True:
            yield self.draw(self.batch, np.random.default_rng((self.seed, step)))
            step += 1

    def draw(self, count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """So many mixtures."""
        length = round(STRETCH * self.rate) // self.framing.hop * self.framing.hop
        pairs = [self.pair(length, rng) for _ in range(count)]
        noisy, clean = (self.framing.spectrum(np.stack(part)) for part in zip(*pairs, strict=True))
        return {"x": noisy, "target": clean}

    def pair(self, length: int, rng: np.random.Generator, snr: float | None = None) -> tuple[Samples, Samples]:
        """A mixture of that length, by default at a ratio drawn from SNR, and what is clean in it."""
        clean = self._stretch(length, rng)
        draw = rng.random()
        if self.noises:
            noise = _cut(self.noises[int(rng.integers(len(self.noises)))], length, rng)
        elif draw < 0.25:
            noise = rng.normal(size=length).astype(np.float32)
        elif draw < 0.6:
            noise = coloured(length, self.rate, rng)
        else:
            many = [self._stretch(length, rng) for _ in range(rng.integers(3, 9))]
            noise = np.asarray(np.sum(many, axis=0), np.float32)
        noisy = mixed(clean, noise, rng.uniform(*SNR) if snr is None else snr)
        level = np.float32(max(root_mean_square(noisy), 1e-9))
        return noisy / level, clean / level

    def _stretch(self, length: int, rng: np.random.Generator) -> Samples:
        """Clips one after the other, at one speed and about one level, with pauses."""
        clips = self.voices[int(rng.integers(len(self.voices)))] if self.voices else self.clips
        made, count = [], 0
        while count < length:
            clip = clips[int(rng.integers(len(clips)))]
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
    x: Float[np.ndarray, " _ *channels"], rate: int | float, to: int | float
) -> Float[np.ndarray, " _ *channels"]:
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


@dataclasses.dataclass(frozen=True, eq=False)
class SoundDenoiser:
    """A trained model of masks, and the rate of the sound that it was trained on. `fit` and `load` make one."""

    model: Autoencoder
    rate: int

    @property
    def _config(self) -> Any:
        return self.model.config

    @property
    def framing(self) -> Framing:
        """How its sound is cut into frames."""
        return Framing.at(self.rate)

    def denoise(
        self, x: Float[np.ndarray, " samples *channels"], rate: int | None = None
    ) -> Float[np.ndarray, " samples *channels"]:
        """The sound without its noise, channel by channel, at the rate that it came in; by default the model's.

        Raises:
            DataError: it is empty or not finite.
        """
        if x.ndim not in (1, 2) or x.size == 0 or not np.isfinite(x).all():
            raise errors.DataError(
                f"The sound has shape {list(x.shape)}; expected finite numbers, [samples, channels]."
            )
        columns = x[:, None] if x.ndim == 1 else x
        made = np.concatenate(list(self.stream([columns], rate or self.rate, root_mean_square(columns), len(columns))))
        return made.reshape(x.shape)

    def stream(
        self, blocks: Iterable[Float[np.ndarray, "_ channels"]], rate: int, level: float, samples: int
    ) -> Iterator[Float[np.ndarray, "_ channels"]]:
        """Denoise blocks of a sound that need not fit in memory.

        Args:
            blocks: of any length, one after the other.
            rate: of the sound.
            level: its root mean square.
            samples: how many it has.
        """
        import soxr

        blocks = iter(blocks)
        first = next(blocks)
        channels, given = first.shape[1], itertools.chain([first], blocks)
        if rate != self.rate:
            given = _resampled(given, soxr.ResampleStream(rate, self.rate, channels, dtype="float32"))
        made = self._masked(given, max(level, 1e-9))
        if rate != self.rate:
            made = _resampled(made, soxr.ResampleStream(self.rate, rate, channels, dtype="float32"))
        left = samples
        for part in made:
            if left > 0 and len(part):
                yield part[:left]
                left -= len(part)
        if left > 0:
            yield np.zeros((left, channels), np.float32)

    def _masked(self, blocks: Iterable[np.ndarray], level: float) -> Iterator[np.ndarray]:
        """Denoised, BLOCK seconds at a time, each with what its masks depend on before and after it."""
        hop = self.framing.hop
        around = (self._config.body.context + OVERLAP) * hop
        size = round(BLOCK * self.rate) // hop * hop
        held, before, done = np.zeros((0, 0), np.float32), 0, False
        blocks = iter(blocks)
        while not done or len(held) > before:
            while not done and len(held) < before + size + around:
                part = next(blocks, None)
                done = part is None
                if part is not None:
                    held = np.concatenate([held, part]) if held.size else part
            end = len(held) if done and len(held) <= before + size + around else before + size
            seen = held[: end + around]
            yield np.stack([self._clean(channel / level) * level for channel in seen.T], axis=1)[before:end]
            start = max(0, end - around)
            held, before = held[start:], end - start

    def _clean(self, x: Samples) -> Samples:
        """One channel at a root mean square of about 1; it is mirrored to one of few lengths, each compiled once."""
        hop = self.framing.hop
        frames = 2 ** math.ceil(math.log2(max(64, math.ceil(len(x) / hop))))
        longer = np.pad(x, (0, frames * hop - len(x)), mode="reflect" if len(x) > 1 else "edge")
        spectrum = self.framing.spectrum(longer)
        clean = training.apply(Autoencoder.reconstruct, self.model, spectrum[None])[0]
        clean = (1 - LEFT) * clean + LEFT * spectrum
        return self.framing.wave(clean, len(longer))[: len(x)]

    def convert(self, source: str | os.PathLike[str], target: str | os.PathLike[str]) -> list[str]:
        """Denoise a sound file into another, or each of a folder, a block at a time; the names of those that failed.

        Rate, channels and the kind of samples stay as they are, where the format of the target can hold them.

        Raises:
            DataError: the file can't be read, or the target not be written; of a folder, no file can.
        """
        given, target = data.files.existing(source), pathlib.Path(target)
        if not given.is_dir():
            self._convert(given, target)
            return []
        paths = files_in(given)
        if not paths:
            raise errors.DataError(f"{source} holds no sound; expected {data.formats.listed('signal')}.")
        failed = []
        for path in paths:
            try:
                self._convert(path, target / path.relative_to(given))
            except errors.DataError as error:
                say(f"left out: {error}")
                failed.append(str(path))
        if len(failed) == len(paths):
            raise errors.DataError(f"{source}: none of its {len(paths)} files can be read.")
        return failed

    def _convert(self, source: pathlib.Path, target: pathlib.Path) -> None:
        head, energy, samples = data.sound.about(source), 0.0, 0
        if not data.formats.of(target).kind == "signal":
            raise errors.DataError(f"{target} is no sound file; expected {data.formats.listed('signal')}.")
        for part in data.sound.blocks(source):
            energy += float(np.sum(np.square(part, dtype=np.float64)))
            samples += len(part)
        if samples == 0:
            raise errors.DataError(f"{source} can't be read: it holds no samples. It may be damaged.")
        level = math.sqrt(energy / (samples * head.channels))
        made = self.stream(data.sound.blocks(source), head.rate, level, samples)
        with data.files.writing(target) as file:
            data.sound.write_blocks(file, target, made, head.rate, head.channels, head.subtype)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Its settings and weights, into a folder of its own, whole or not at all, with a manifest.

        Raises:
            RunError: the folder can't be written, or holds something else.
        """
        settings = {"rate": self.rate, "model": self._config.to_dict()}
        try:
            with manifest.replacing(pathlib.Path(folder), frozenset({"sound.json", "model"})) as unfinished:
                checkpoints.save(unfinished / "model", 0, nnx.split(self.model, nnx.Param, ...)[1:], keep=1)
                (unfinished / "sound.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise errors.RunError(f"Can't write {folder}: {error}.") from error


def load(folder: str | os.PathLike[str]) -> SoundDenoiser:
    """What `SoundDenoiser.save` wrote.

    Raises:
        RunError: the folder holds no such model, or a file was changed after it was saved.
        CheckpointError: it has no good weights.
    """
    folder = atomic.settled(pathlib.Path(folder))
    manifest.check(folder)
    with manifest.reading(folder, "denoiser of sound"):
        settings = json.loads((folder / "sound.json").read_text(encoding="utf-8"))
        config, rate = Config.from_dict(settings["model"]), int(settings["rate"])
        abstract = nnx.eval_shape(lambda: autoencoder.build(config, (64, 2 * Framing.at(rate).bins)))
    graphdef, params, rest = nnx.split(abstract, nnx.Param, ...)
    _, (params, rest) = checkpoints.restore(folder / "model", (params, rest))
    return SoundDenoiser(nnx.merge(graphdef, *jax.device_put((params, rest))), rate)


def fit(
    clips: Sequence[Samples],
    rate: int,
    *,
    noises: Sequence[Samples] = (),
    steps: int = STEPS,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    show: bool = True,
    on_epoch: Callable[[dict[str, Any]], Any] | None = None,
) -> SoundDenoiser:
    """Train a denoiser on clean clips.

    Args:
        clips: clean sound; a tenth of them, or one, is kept to validate on.
        rate: of all.
        noises: to mix in, at the same rate; without any, white and coloured noise, and babble of the clips.
        steps: of training, of BATCH stretches each.
        folder, resume: of checkpoints, see `training.fit`.
        on_epoch: see `training.fit`.

    Raises:
        DataError: there are not two clips, or all are silent.
    """
    if len(clips) < 2:
        raise errors.DataError(f"There is {len(clips)} clip; expected 2 at least, for one is held out.")
    order = np.random.default_rng(seed).permutation(len(clips))
    held = max(1, len(clips) // 10)
    known = mixtures([clips[i] for i in order[held:]], noises, rate, seed=seed)
    others = mixtures([clips[i] for i in order[:held]], noises, rate, seed=seed + 1)
    validation = others.draw(VALIDATION, np.random.default_rng(seed + 1))
    model = autoencoder.build(default_config(), validation["x"].shape[1:], seed=seed)
    each = min(steps, EPOCH)
    training.fit(
        model,
        known.batches,
        epochs=max(1, round(steps / each)),
        steps_per_epoch=each,
        validation=validation,
        batch_size=BATCH,
        learning_rate=LEARNING_RATE,
        seed=seed,
        folder=folder,
        resume=resume,
        show=show,
        on_epoch=on_epoch,
    )
    return SoundDenoiser(model, rate)


def files_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """The sound files in a folder, at any depth, by their names."""
    endings = data.formats.suffixes("signal")
    found = (path for path in folder.rglob("*") if path.suffix.lower() in endings and path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def read_clips(source: str | os.PathLike[str], rate: int | None = None) -> tuple[list[Samples], int, list[str]]:
    """The sounds of a file or folder, each channel a clip of its own; their rate; and the name of each.

    Sounds at other rates than `rate`, or than most of them, are resampled. What can't be read is left out, and said.

    Raises:
        DataError: there are none.
    """
    path = data.files.existing(source)
    paths = files_in(path) if path.is_dir() else [path]
    read, failed = [], 0
    for each in paths:
        try:
            read.append((each, data.sound.read_sound(each)))
        except errors.DataError as error:
            failed += 1
            say(f"left out: {error}")
    if not read:
        raise errors.DataError(f"{path} holds no sound that can be read; expected {data.formats.listed('signal')}.")
    rates = [signal.rate for _, signal in read if signal.rate is not None]
    rate = rate or max(set(rates), key=rates.count)
    if (others := sum(given != rate for given in rates)) > 0:
        say(f"{path}: {others:,} of {len(read):,} sounds are resampled to {rate:,} Hz.")
    clips, names = [], []
    for each, signal in read:
        for channel in signal.values.T:
            clips.append(resampled(np.ascontiguousarray(channel), signal.rate or rate, rate))
            names.append(each.name)
    return clips, rate, names


def si_sdr(made: Samples, clean: Samples) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019, eq. 3), means taken out."""
    made, clean = (x.astype(np.float64) - x.mean(dtype=np.float64) for x in (made, clean))
    wanted = clean * (made @ clean / max(clean @ clean, 1e-12))
    return 10 * math.log10(max(wanted @ wanted, 1e-12) / max(float(np.sum(np.square(made - wanted))), 1e-12))


def wiener(x: Samples, rate: int) -> Samples:
    """A spectral Wiener filter without training: the noise of each frequency is the mean of its quietest tenth."""
    framing = Framing.at(rate)
    spectrum = framing.spectrum(x)
    real, imaginary = np.split(spectrum, 2, axis=-1)
    power = np.square(real) + np.square(imaginary)
    quiet = np.sort(power, axis=0)[: max(1, len(power) // 10)]
    noise = quiet.mean(axis=0) * 3 + 1e-12
    gain = np.maximum(1 - noise / np.maximum(power, 1e-12), 0.05)
    return framing.wave(spectrum * np.concatenate([gain, gain], axis=-1), len(x))


def _resampled(blocks: Iterable[np.ndarray], by: Any) -> Iterator[np.ndarray]:
    part = np.zeros((0, 1), np.float32)
    for part in blocks:
        yield by.resample_chunk(np.ascontiguousarray(part))
    yield by.resample_chunk(part[:0], last=True)
