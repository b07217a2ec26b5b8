"""Denoising with a trained model: images of any size, tables and signals."""

import itertools

import numpy as np
from jaxtyping import Shaped

from flaxae import errors, training
from flaxae.autoencoder import Autoencoder
from flaxae.data import Scaling
from flaxae.denoising import tiles
from flaxae.denoising.noise import noise_level as noise_level
from flaxae.trained import Trained


def denoise(trained: Trained, noisy: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """The model's reconstruction of noisy data, in the shape, units and dtype of `noisy`.

    Images are [height, width, channels] or [images, height, width, channels]; the last axis may be missing if the
    model has one channel. They may be of any size. A model whose body takes any size works in overlapping windows, see
    `tiles.reconstruct`. For other models, an image larger than those of the training is cut into tiles that overlap by
    half, and the results are blended; a smaller one is extended at its edges. A model of one channel denoises the
    channels of a colour image one by one. Other data are [examples, *shape] as in training.

    Raises:
        DataError: the shape doesn't fit the model, or values are not finite or out of range.
    """
    if trained.kind != "image":
        return np.asarray(trained.reconstruct(noisy))
    channels = trained.shape[-1]
    has_channels = noisy.ndim == 4 or (noisy.ndim == 3 and noisy.shape[-1] in (channels, 3, 4))
    images = noisy if has_channels else noisy[..., None]
    is_batch = images.ndim == 4
    images = images if is_batch else images[None]
    if images.ndim != 4 or (channels != 1 and images.shape[-1] != channels):
        raise errors.DataError(
            f"The data have shape {noisy.shape}; the model denoises images of {channels} channels: "
            "[height, width, channels] or [images, height, width, channels]."
        )
    scaling = _scaling(trained, images.dtype)
    by_channel = np.split(images, images.shape[-1], axis=-1) if channels == 1 else [images]
    through = _tiled if tiles.any_size(trained.model) is None else _windowed
    clean = [through(trained, part, scaling) for part in by_channel]
    return np.concatenate(clean, axis=-1).reshape(noisy.shape)


def _windowed(
    trained: Trained, images: Shaped[np.ndarray, " n height width channels"], scaling: Scaling
) -> Shaped[np.ndarray, " n height width channels"]:
    """Reconstruct images of any size by a model of any size."""
    low, high = scaling(np.array([images.min(), images.max()]))
    training.check_range(trained.model, float(low), float(high))
    return np.stack([tiles.reconstruct(trained.model, image, scaling) for image in images])


def _tiled(
    trained: Trained, stored: Shaped[np.ndarray, " n height width channels"], scaling: Scaling
) -> Shaped[np.ndarray, " n height width channels"]:
    """Reconstruct images of any size with a model of fixed size: tiles, blended with a raised-cosine window."""
    images = scaling(stored)
    n, *size, channels = images.shape
    tile = trained.shape[:2]
    missing = [max(0, side - given) for side, given in zip(tile, size, strict=True)]
    images = np.pad(images, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
    padded = images.shape[1:3]
    corners = list(itertools.product(_starts(padded[0], tile[0]), _starts(padded[1], tile[1])))
    parts = np.concatenate([images[:, i : i + tile[0], j : j + tile[1]] for i, j in corners])
    parts = training.check_examples(trained.model, parts)
    clean = training.apply(Autoencoder.reconstruct, trained.model, parts).reshape(len(corners), n, *tile, channels)
    across = [np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2 for side in tile]
    window = np.outer(*across)[..., None].astype(np.float32)
    total, weight = np.zeros_like(images), np.zeros((*padded, 1), np.float32)
    for (i, j), part in zip(corners, clean, strict=True):
        total[:, i : i + tile[0], j : j + tile[1]] += window * part
        weight[i : i + tile[0], j : j + tile[1]] += window
    return scaling.undo((total / weight)[:, : size[0], : size[1]])


def _starts(extent: int, tile: int) -> list[int]:
    """Where tiles begin along one side: every half tile, and the last one flush with the end."""
    return sorted({*range(0, extent - tile, max(1, tile // 2)), extent - tile})


def _scaling(trained: Trained, dtype: np.dtype) -> Scaling:
    """The scaling to [0, 1] from the units of images of that dtype, which may differ from those of the training."""
    if dtype.name == trained.scaling.dtype:
        return trained.scaling
    full = float(np.iinfo(dtype).max) if dtype.kind == "u" else 1.0
    return Scaling((0.0,), (full,), dtype.name)
