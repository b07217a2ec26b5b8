"""Training a codec: contexts drawn from images, and the network that predicts the values from them."""

import math
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
from jaxtyping import Shaped

from flaxae import autoencoder, errors, training
from flaxae.autoencoder import Config
from flaxae.compression import grids, network, transforms
from flaxae.compression.codec import Codec
from flaxae.compression.contexts import ONE, Contexts, Step
from flaxae.compression.integers import rounded
from flaxae.compression.lossy import LossyCodec
from flaxae.compression.transforms import Hyperprior, RateDistortion, Transforms
from flaxae.data import images
from flaxae.data.images import Images
from flaxae.likelihoods import Gaussian

STEPS, EPOCH, BATCH, LEARNING_RATE, EMA = 12000, 250, 4096, 3e-3, 0.998
HIDDEN, COMPONENTS = (64, 64), 5
SMALL_HIDDEN, SMALL_REACH = (256, 128), 4  # for small images of one size
AT_ONCE, PIXELS_AT_ONCE = 256, 2**20  # images that a batch is drawn from, and their pixels
VALIDATION = 100_000  # contexts
HELD_OUT = 0.05  # of the images, to validate on
FLAT = 0.25  # the most that a batch has of contexts of one level, which are easy, and weigh more instead
LOSSY_STEPS, LOSSY_EPOCH, LOSSY_BATCH, LOSSY_LEARNING_RATE, LOSSY_EMA = 6000, 100, 8, 2e-3, 0.995
CROP, CROPS = 128, 400  # pixels a side of the pieces that a lossy codec is trained on, and how many it begins with
VALIDATED = 16  # pieces
QUALITY = 75  # by default
LOSSY = Config(body=Transforms(), head=Hyperprior(), objective=RateDistortion(), likelihood=Gaussian())

Source = Shaped[np.ndarray, "_ _ _ _"] | Images  # images of one small size, or of any


def contexts_of(source: Source) -> Contexts:
    """What is looked at, for images like those: all of one small size, or of any.

    Raises:
        DataError: they are not of whole numbers.
    """
    if isinstance(source, Images):
        kinds = {source.stored_type(i) for i in range(len(source))}
        planes, side, reach = source.channels or 1, None, 3
    else:
        kinds = {source.dtype.name}
        planes, side, reach = source.shape[3], source.shape[1:3], SMALL_REACH
    if not kinds <= {"uint8", "uint16"}:
        raise errors.DataError(f"The images are {', '.join(sorted(kinds))}; expected whole numbers, uint8 or uint16.")
    return Contexts(planes, 16 if "uint16" in kinds else 8, reach, side=side)


def draw(
    contexts: Contexts, source: Source, count: int, rng: np.random.Generator, *, weighed: bool = True
) -> dict[str, np.ndarray]:
    """So many contexts, of random pixels of a few random images: {"x", "target", "weight"}.

    Args:
        weighed: take fewer of those that are of one level, with more weight each.
    """
    found = []
    groups = _some(source, rng)
    planes = contexts.planes
    shares = np.diff(np.linspace(0, count, len(groups) * planes + 1).astype(int)).reshape(len(groups), planes)
    for values, group in zip(groups, shares.tolist(), strict=True):
        frame = contexts.framed(values)
        for plane, share in enumerate(group):
            step, weight = _pixels(contexts, frame, plane, share, rng, weighed)
            features = (contexts.of(frame, step) / ONE).astype(np.float32)
            found.append((features, frame.reshape(-1)[step.at] / 2**contexts.bits, weight))
    x, target, weight = (np.concatenate(part).astype(np.float32) for part in zip(*found, strict=True))
    return {"x": x, "target": target[:, None], "weight": weight}


def _some(source: Source, rng: np.random.Generator) -> list[np.ndarray]:
    """A few random images, those of one size together."""
    if not isinstance(source, Images):
        each = max(1, min(AT_ONCE, PIXELS_AT_ONCE // source[0].size))
        return [source[np.sort(rng.integers(0, len(source), each))]]
    return [source.stored(int(i))[None] for i in rng.integers(0, len(source), 4)]


def _pixels(
    contexts: Contexts, frame: np.ndarray, plane: int, count: int, rng: np.random.Generator, weighed: bool
) -> tuple[Step, np.ndarray]:
    _, images, rows, columns = frame.shape
    height, width = rows - contexts.reach - contexts.across, columns - 2 * contexts.reach
    number = 3 * count if weighed else count
    image, i, j = (rng.integers(0, size, number) for size in (images, height, width))
    at = ((plane * images + image) * rows + i + contexts.reach) * columns + j + contexts.reach
    step = Step(at, i, j, plane)
    if not weighed:
        return step, np.ones(number)
    flat = contexts.is_flat(frame, step)
    share = flat.mean()
    taken = round(count * min(FLAT, share)) if share < 1 else count
    chosen = np.concatenate([_of(np.flatnonzero(flat), taken, rng), _of(np.flatnonzero(~flat), count - taken, rng)])
    weight = np.repeat(
        [share * count / max(1, taken), (1 - share) * count / max(1, count - taken)], [taken, count - taken]
    )
    return step.take(chosen), weight


def _of(numbers: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    return rng.choice(numbers, count) if count else numbers[:0]


def feed(contexts: Contexts, source: Source, *, batch: int, seed: int) -> Callable[[int], Iterator[Any]]:
    """What `training.fit` is given: a function of a step, which gives batches of contexts from it on."""

    def batches(step: int) -> Iterator[Any]:
        while True:
            yield draw(contexts, source, batch, np.random.default_rng((seed, step)))
            step += 1

    return batches


def split(source: Source, seed: int) -> tuple[Source, Source]:
    """The images to train on, and those to validate on; of a single image, it is both."""
    held_out = math.ceil(HELD_OUT * len(source))
    if held_out == len(source):
        return source, source
    order = np.random.default_rng(seed).permutation(len(source))
    apart, kept = np.sort(order[:held_out]), np.sort(order[held_out:])
    if isinstance(source, Images):
        return source.select(kept), source.select(apart)
    return source[kept], source[apart]


def fit(
    source: Source,
    *,
    contexts: Contexts | None = None,
    hidden: tuple[int, ...] | None = None,
    steps: int = STEPS,
    batch_size: int | None = None,
    learning_rate: float = LEARNING_RATE,
    seed: int = 0,
    **settings: Any,
) -> tuple[Codec, training.History]:
    """A codec for images like those given, and the history of its training, in nats a value.

    Args:
        source: images to train on, [n, height, width, channels] of uint8 or uint16, all of one small size; or `Images`
            of any size.
        contexts: what values are predicted from; by default `contexts_of(source)`.
        hidden: sizes of the network's layers.
        steps: of training; rounded up to whole epochs.
        batch_size: contexts a step; by default `BATCH`.
        settings: further ones of `training.fit`.

    Raises:
        DataError: the images are not of whole numbers, or none can be read.
    """
    contexts, batch_size = contexts or contexts_of(source), batch_size or BATCH
    known, held_out = split(source, seed)
    hidden = hidden or (SMALL_HIDDEN if contexts.side else HIDDEN)
    model = autoencoder.build(network.config(hidden, COMPONENTS, contexts.bits), (contexts.features,), seed=seed)
    rng = np.random.default_rng((seed, 0, 1))
    parts = [draw(contexts, held_out, VALIDATION // 10, rng, weighed=False) for _ in range(10)]
    validation = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    each = min(steps, EPOCH)
    history = training.fit(
        model,
        feed(contexts, known, batch=batch_size, seed=seed),
        validation=validation,
        batch_size=batch_size,
        learning_rate=learning_rate,
        epochs=math.ceil(steps / each),
        steps_per_epoch=each,
        seed=seed,
        **{"ema": EMA, **settings},
    )
    return Codec(contexts, rounded(model, contexts.bits)), history


def fit_lossy(
    source: Source,
    *,
    config: Config | None = None,
    quality: int = QUALITY,
    size: int | None = None,
    steps: int = LOSSY_STEPS,
    batch_size: int | None = None,
    learning_rate: float = LOSSY_LEARNING_RATE,
    seed: int = 0,
    **settings: Any,
) -> tuple[LossyCodec, training.History]:
    """A lossy codec for images like those given, and the history of its training; see `RateDistortion`.

    Args:
        source: images to train on, [n, height, width, channels] of uint8; or `Images` of any size.
        config: of `Transforms` and `Hyperprior`, by default `LOSSY`.
        quality: that the codec has by default; it is trained for all.
        size: height and width of the pieces that are trained on, in pixels, by default `CROP`.
        steps: of training; rounded up to whole epochs.
        batch_size: pieces a step; by default `LOSSY_BATCH`.
        settings: further ones of `training.fit`.

    Raises:
        DataError: the images are not of 8 bits, or none can be read.
    """
    found = source if isinstance(source, Images) else images.open(source)
    kinds = {found.stored_type(i) for i in range(len(found))}
    if kinds != {"uint8"}:
        raise errors.DataError(f"The images are {', '.join(sorted(kinds))}; a lossy codec is for those of 8 bits.")
    known, held_out = (cast(Images, part) for part in split(found, seed))
    config, size, batch_size = config or LOSSY, size or CROP, batch_size or LOSSY_BATCH
    model = autoencoder.build(config, (size, size, found.channels or 1), seed=seed)
    transforms.set_blocks(model, next(images.crops(known, size, CROPS, seed)))
    each = min(steps, LOSSY_EPOCH)
    history = training.fit(
        model,
        lambda step: images.crops(known, size, batch_size, seed, start=step),
        validation=next(images.crops(held_out, size, VALIDATED, seed, flips=False)),
        batch_size=batch_size,
        learning_rate=learning_rate,
        epochs=math.ceil(steps / each),
        steps_per_epoch=each,
        seed=seed,
        **{"optimizer": "muon", "warmup": 0.05, "ema": LOSSY_EMA, "keep": "last", **settings},
    )
    return LossyCodec(model, grids.rounded(model.head), quality), history
