"""Training on photographs: pieces of images of any size, noise as people have it.

What a denoiser of photographs is trained on decides what its objective is. Clean images have noise added, of one level
or of a range of them. Pairs, noisy in and clean (or as noisy, of another moment; Lehtinen et al. 2018) out, say
themselves what the noise is. Noisy images alone do as well, once the noise's level is known, which `estimated` tells.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

from flaxae import autoencoder, corruptions, errors, objectives, presets, training
from flaxae.autoencoder import Autoencoder, Config
from flaxae.data.images import Images
from flaxae.data.images.crops import crops
from flaxae.denoising.noise import noise_level
from flaxae.likelihoods import Gaussian

LEARNING_RATE, BATCH_SIZE = 2e-3, 4
CROP = 128  # pixels a side of a piece: trained on 64, whole images came out 0.3 dB worse than windows of 64
EPOCH, STEPS = 100, 4000  # steps: of what is called an epoch, and of a training
EMA = 0.995
WARMUP = 0.05
OPTIMIZER = "muon"  # which came further than Adam in as many steps, on held-out images
HELD_OUT, MOST_HELD_OUT, HELD_OUT_SIDE = 0.05, 16, 128  # images to validate on: a part, at most, and of each the middle
LOOKED_AT = 32  # images, for the noise's level
GAUSSIAN, SQUARED = Gaussian(), objectives.negative_log_likelihood


def of_clean(level: float | None = None, kind: str = "gaussian") -> Config:
    """A model for clean images, to which noise is added: of that level, or without one of a range of levels.

    Args:
        level: the standard deviation, in [0, 1] as the images are.
        kind: of the noise, a name in `corruptions.CORRUPTIONS`.
    """
    config = presets.unet()
    if level is None:
        return config
    return dataclasses.replace(config, corruption=corruptions.CORRUPTIONS[kind](level=level))


def of_pairs() -> Config:
    """A model for pairs, x and target; of squared error, as the mean of noisy targets is the clean image."""
    return dataclasses.replace(presets.unet(GAUSSIAN), corruption=None)


def of_noisy(level: float) -> Config:
    """A model of noisy images alone, of noise of that level: see `objectives.Recorrupted`."""
    return dataclasses.replace(of_pairs(), objective=objectives.Recorrupted(level, objective=SQUARED))


def estimated(images: Images) -> tuple[float, float, float]:
    """The noise's level, the median over some images of them, and the lowest and highest of these; see `noise_level`.

    Raises:
        DataError: none is large enough to tell.
    """
    levels, small = [], None
    for _, image in images.select(np.unique(np.linspace(0, len(images) - 1, LOOKED_AT).astype(int))).each():
        try:
            levels.append(noise_level(image))
        except errors.DataError as error:
            small = error
    if not levels:
        raise small or errors.DataError(f"{images.source} holds no image that can be read.")
    return float(np.median(levels)), min(levels), max(levels)


def feed(images: Images, targets: Images | None, *, size: int, count: int, seed: int) -> Callable[[int], Iterator[Any]]:
    """What `training.fit` is given: a function of a step, which gives batches of pieces, or of pairs, from it on.

    Args:
        images: to train on.
        targets: what should be made of each, of the same sizes.
        size: height and width of a piece.
        count: pieces a batch.
    """
    if targets is None:
        return lambda step: crops(images, size, count, seed, start=step)

    def pairs(step: int) -> Iterator[Any]:
        both = [crops(part, size, count, seed, start=step) for part in (images, targets)]
        for x, target in zip(*both, strict=True):
            for part in (images, targets):
                part.check()  # one that can't be read leaves no pair: others would be drawn in its place
            yield {"x": x, "target": target}

    return pairs


def split(images: Images, targets: Images | None, seed: int) -> tuple[Any, Any]:
    """Images to train on, with their targets, and an array (or a tree) of the middles of those held out; None for none.

    Of the latter there are few: they tell whether the training goes well, and choose nothing.
    """
    held_out = min(MOST_HELD_OUT, round(HELD_OUT * len(images)))
    if held_out == 0:
        return (images, targets), None
    order = np.random.default_rng(seed).permutation(len(images))
    apart, kept = np.sort(order[:held_out]), np.sort(order[held_out:])
    parts = [part.select(apart) for part in (images, targets) if part is not None]
    side = min(HELD_OUT_SIDE, min(min(parts[0].shape_of(i)[:2]) for i in range(held_out)) // 8 * 8)
    side = max(side, 8)
    middles = [np.stack([middle(part[i], side) for i in range(held_out)]) for part in parts]
    validation = middles[0] if targets is None else {"x": middles[0], "target": middles[1]}
    return (images.select(kept), None if targets is None else targets.select(kept)), validation


def middle(image: Float[np.ndarray, "height width channels"], side: int) -> Float[np.ndarray, "side side channels"]:
    """The middle of an image, which is mirrored at its edges where it is smaller."""
    missing = [max(0, side - extent) for extent in image.shape[:2]]
    image = np.pad(image, (*((short // 2, short - short // 2) for short in missing), (0, 0)), mode="symmetric")
    top, left = ((extent - side) // 2 for extent in image.shape[:2])
    return image[top : top + side, left : left + side]


def paired(images: Images, targets: Images) -> Images:
    """The targets in the order of the images, by the names of the files, scaled as the images are.

    Raises:
        DataError: an image has no target, or one of another size.
    """
    place = {_stem(name): i for i, name in enumerate(targets.names)}
    missing = [name for name in images.names if _stem(name) not in place]
    if missing:
        raise errors.DataError(
            f"{len(missing)} of {len(images)} images have no target of their name, the first of them {missing[0]}: "
            f"{targets.source} has {', '.join(targets.names[:3])}, …."
        )
    chosen = targets.select([place[_stem(name)] for name in images.names])
    for i, name in enumerate(images.names):
        if images.shape_of(i)[:2] != chosen.shape_of(i)[:2]:
            raise errors.DataError(
                f"{name} has {images.shape_of(i)[:2]} pixels (height, width), and its target "
                f"{chosen.shape_of(i)[:2]}: pairs have to be of one size."
            )
    if images.channels != chosen.channels:
        chosen = dataclasses.replace(chosen, colours=images.colours, alpha=images.alpha)
    return dataclasses.replace(chosen, ranges={**chosen.ranges, **images.ranges})


def _stem(name: str) -> str:
    return name.rsplit(".", 1)[0]


def fit(
    config: Config,
    images: Images,
    targets: Images | None = None,
    *,
    size: int = CROP,
    steps: int = STEPS,
    batch_size: int = BATCH_SIZE,
    learning_rate: float = LEARNING_RATE,
    seed: int = 0,
    **settings: Any,
) -> tuple[Autoencoder, training.History]:
    """A model trained on pieces of images, and its history, in which `EPOCH` steps are an epoch.

    Args:
        config: such as `of_clean`, `of_pairs` or `of_noisy` gives.
        targets: what should be made of each image, see `paired`.
        size: height and width of a piece, in pixels.
        steps: of the whole training; rounded up to whole epochs.
        settings: further ones of `training.fit`.

    Raises:
        DataError: an image of a pair can't be read, or no image at all.
    """
    (kept, wanted), validation = split(images, targets, seed)
    model = autoencoder.build(config, (size, size, images.channels or 1), seed=seed)
    history = training.fit(
        model,
        feed(kept, wanted, size=size, count=batch_size, seed=seed),
        validation=0.0 if validation is None else validation,
        batch_size=batch_size,
        learning_rate=learning_rate,
        epochs=math.ceil(steps / EPOCH),
        steps_per_epoch=EPOCH,
        seed=seed,
        **{"optimizer": OPTIMIZER, "warmup": WARMUP, "ema": EMA, "keep": "last", **settings},
    )
    return model, history
