"""A trained lossy codec: images of 8 bits to bytes and back, the smaller or the better; saved without pickle."""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Shaped, UInt8

from flaxae import autoencoder, errors, manifest
from flaxae.autoencoder import Autoencoder, Config
from flaxae.compression import container, grids
from flaxae.compression.codec import SETTINGS, WEIGHTS
from flaxae.compression.grids import FARTHEST, FARTHEST_HYPER, ONE, QUALITIES, Probabilities
from flaxae.compression.transforms import BLOCK
from flaxae.data import memory
from flaxae.data.images import MAX_PIXELS
from flaxae.denoising.tiles import spans, starts
from flaxae.nn import conv
from flaxae.states import filled, named

SIDES = (6, 8, 12, 18)  # of windows, in places of the second grid: few sizes are compiled
MARGIN = 2  # places of a window's edge that are left to its neighbour
MOST_PLANES = 4  # of what is taken for one image, [height, width, channels]


@dataclasses.dataclass(frozen=True, eq=False)
class LossyCodec:
    """The networks, and the whole numbers that decide probabilities. `fit_lossy` and `load` make one.

    What is exact on every machine are the numbers that a file holds. The image that is made of them is computed in
    floats, and may differ by a level from machine to machine.

    Args:
        model: an `Autoencoder` of `Transforms` and `Hyperprior`.
        probabilities: of the model's head, in whole numbers.
        quality: which `compress` has by default, 1 to 100.
    """

    model: Autoencoder
    probabilities: Probabilities
    quality: int

    @classmethod
    def of(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> "LossyCodec":
        """The inverse of what `save` writes.

        Raises:
            RunError, DataError: the arrays don't go together.
        """
        whole = {f.name: arrays.pop(f"probabilities.{f.name}") for f in dataclasses.fields(Probabilities)}
        floats = {name: whole[name].astype(np.float64) for name in ("first", "up", "last")}
        config = Config.from_dict(settings["config"])
        model = nnx.eval_shape(lambda: autoencoder.build(config, tuple(settings["shape"])))
        graphdef, state = nnx.split(model)
        filled_state = jax.device_put(filled(state, arrays, pathlib.Path(WEIGHTS), "model."))
        return cls(nnx.merge(graphdef, filled_state), Probabilities(**{**whole, **floats}), settings["quality"])

    @property
    def planes(self) -> int:
        """Channels of the images that it was trained on."""
        assert self.model.shape is not None
        return self.model.shape[2]

    @property
    def unit(self) -> int:
        """Pixels to a place of the second grid."""
        return BLOCK * self.model.encoder.stride

    @functools.cached_property
    def identity(self) -> bytes:
        """Eight bytes that a file of this codec names it by."""
        digest = hashlib.sha256(json.dumps(self._settings()).encode())
        for name, numbers in sorted(self._arrays().items()):
            digest.update(name.encode() + np.ascontiguousarray(numbers, numbers.dtype.newbyteorder("<")).tobytes())
        return digest.digest()[: container.DIGEST]

    def compress(self, x: Shaped[np.ndarray, "..."], *, quality: int | None = None) -> bytes:
        """The bytes of a file that holds x, about.

        Args:
            x: an image, [height, width] or [height, width, channels], or images of one size, [n, height, width,
                channels]. uint8.
            quality: 1, the smallest files, to 100, the best images; by default the codec's own.

        Raises:
            DataError: x is of another kind, or empty.
            ConfigError: the quality is out of range.
        """
        quality = checked(self.quality if quality is None else quality)
        if x.dtype != np.uint8 or not 2 <= x.ndim <= 4 or x.size == 0:
            raise errors.DataError(
                f"The data are {x.dtype} of shape {list(x.shape)}; a lossy codec takes uint8, an image [height, width, "
                "channels] or images [n, height, width, channels], not empty. --lossless takes 16 bits too."
            )
        encoder = grids.Encoder(self.probabilities, _about(x.shape, quality))
        for image, _ in self._images(x):
            self._encode(encoder, image, quality)
        content = bytes([quality]) + encoder.bytes()
        return container.pack(x, self.identity, content, kind=container.LOSSY, check=encoder.crc)

    def decompress(
        self, given: bytes, *, name: str = "The file", max_values: int = 4 * MAX_PIXELS
    ) -> Shaped[np.ndarray, "..."]:
        """The array of a file, about as `compress` was given it.

        Args:
            given: the file's bytes.
            name: by which messages call it.
            max_values: that it may hold.

        Raises:
            DataError: the file is damaged, of another codec, of a newer version, or too large.
        """
        file = container.unpack(given, name, most=max_values)
        container.check_codec(file, container.LOSSY, self.identity, name)
        quality = file.content[0] if file.content else 0
        if file.dtype != "uint8" or not 1 <= quality <= QUALITIES:
            raise errors.DataError(f"{name} is damaged: no codec writes such a file.")
        self._check(file, quality, name)
        made = np.empty(file.shape, np.uint8)
        try:
            decoder = grids.Decoder(self.probabilities, file.content[1:], _about(file.shape, quality))
            for image, put in self._images(made):
                put(self._decode(decoder, image.shape[:2], quality))
        except (AssertionError, ValueError, IndexError) as error:
            raise errors.DataError(f"{name} is damaged: its content can't be decoded.") from error
        if decoder.crc != file.values:
            raise errors.DataError(f"{name} is damaged: what it decodes to is not what was written.")
        return made

    def _check(self, file: container.File, quality: int, name: str) -> None:
        """Raise DataError if a file claims more than it has bits for, or takes more memory than there is for any."""
        images, height, width, channels = self._shape(file.shape)
        rows, columns = -(-height // self.unit), -(-width // self.unit)
        places = images * -(-channels // self.planes) * rows * columns
        container.check_bits(places * self.probabilities.least_bits(quality), file.content, file.shape, name)
        taken = self.probabilities.taken(rows, columns) + rows * columns * self.unit**2 * self.planes
        memory.check(taken + math.prod(file.shape), name, advice="Decompress it where there is more.")

    def bits(self, x: UInt8[np.ndarray, "height width channels"], quality: int) -> float:
        """How many bits the trained network, before its numbers were rounded, expects an image to take."""
        total = 0.0
        for image, _ in self._images(x):
            y, z = self._analysed(image, quality)
            level = _level(quality)
            with conv.channels_last():
                total += float(_bits(*nnx.split(self.model.head), y[None], z[None], level))
        return total

    def _encode(self, encoder: grids.Encoder, image: Shaped[np.ndarray, "height width planes"], quality: int) -> None:
        y, z = self._analysed(image, quality)
        second = np.clip(np.rint(z), -FARTHEST_HYPER, FARTHEST_HYPER).astype(np.int32)
        tables = self.probabilities.of_second(quality)
        encoder.put(second.reshape(-1), np.tile(tables, second[..., 0].size))
        for seen, inside, rows in grids.strips(*second.shape[:2]):
            means, tables = (part[inside] for part in self.probabilities.of_first(second[seen], quality))
            first = np.clip(np.rint(y[rows] - means * (1 / ONE)), -FARTHEST, FARTHEST).astype(np.int32)
            encoder.put(first.reshape(-1), tables.reshape(-1))

    def _decode(
        self, decoder: grids.Decoder, size: tuple[int, ...], quality: int
    ) -> Shaped[np.ndarray, "height width planes"]:
        rows, columns = (-(-side // self.unit) for side in size)
        tables = self.probabilities.of_second(quality)
        second = decoder.get(np.tile(tables, rows * columns)).reshape(rows, columns, -1)
        second = np.clip(second, -FARTHEST_HYPER, FARTHEST_HYPER)
        channels = self.probabilities.offset.shape[1] // 2
        y = np.empty((BLOCK * rows, BLOCK * columns, channels), np.float32)
        for seen, inside, to in grids.strips(rows, columns):
            means, tables = (part[inside] for part in self.probabilities.of_first(second[seen], quality))
            y[to] = decoder.get(tables.reshape(-1)).reshape(means.shape) + means * (1 / ONE)
        return self._synthesised(y, quality)[: size[0], : size[1]]

    def _analysed(
        self, image: Shaped[np.ndarray, "height width planes"], quality: int
    ) -> tuple[Float[np.ndarray, "_ _ _"], Float[np.ndarray, "_ _ _"]]:
        """Both grids of an image, which is extended at its edges to whole places."""
        unit, parts = self.unit, nnx.split((self.model.encoder, self.model.head))
        rows, columns = (-(-side // unit) for side in image.shape[:2])
        found: Any = None
        for window, inside, to in _windows(rows, columns):
            across = [
                np.minimum(np.arange(part.start * unit, part.stop * unit), side - 1)
                for part, side in zip(window, image.shape[:2], strict=True)
            ]
            with conv.channels_last():
                made = _analysed(*parts, image[np.ix_(*across)][None], _level(quality))
            made = [np.asarray(part)[0] for part in made]
            if found is None:
                shapes = [(rows * size, columns * size) for size in (BLOCK, 1)]
                found = [
                    np.empty((*shape, part.shape[2]), np.float32) for shape, part in zip(shapes, made, strict=True)
                ]
            for grid, part, size in zip(found, made, (BLOCK, 1), strict=True):
                grid[_scaled(to, size)] = part[_scaled(inside, size)]
        return found[0], found[1]

    def _synthesised(self, y: Float[np.ndarray, "_ _ _"], quality: int) -> UInt8[np.ndarray, "_ _ _"]:
        rows, columns = (side // BLOCK for side in y.shape[:2])
        parts = nnx.split((self.model.decoder, self.model.head))
        made = np.empty((rows * self.unit, columns * self.unit, self.planes), np.uint8)
        for window, inside, to in _windows(rows, columns):
            across = [
                np.minimum(np.arange(part.start * BLOCK, part.stop * BLOCK), side - 1)
                for part, side in zip(window, y.shape[:2], strict=True)
            ]
            with conv.channels_last():
                part = np.asarray(_synthesised(*parts, y[np.ix_(*across)][None], _level(quality)))[0]
            made[_scaled(to, self.unit)] = part[_scaled(inside, self.unit)]
        return made

    def _shape(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        """[images, height, width, channels] of values of that shape."""
        if len(shape) == 2:
            return (1, *shape, 1)
        if len(shape) == 3:
            return (*shape, 1) if shape[2] > MOST_PLANES else (1, *shape)
        images, height, width, channels = shape
        return images, height, width, channels

    def _images(self, x: np.ndarray) -> Iterator[tuple[np.ndarray, Any]]:
        """Images of as many planes as the codec takes, and a function that puts such a one in its place in x.

        Planes too few are repeated, and their mean is taken back.
        """
        x, planes = x.reshape(self._shape(x.shape)), self.planes
        for image in x:
            for k in range(0, image.shape[2], planes):
                part = image[..., k : k + planes]
                whole = part if part.shape[2] == planes else np.repeat(part[..., :1], planes, axis=2)

                def put(made: np.ndarray, part: np.ndarray = part) -> None:
                    part[...] = made if part.shape[2] == planes else np.rint(made.mean(axis=2, keepdims=True))

                yield whole, put

    def _settings(self) -> dict[str, Any]:
        assert self.model.config is not None
        return {
            "format": 1,
            "kind": "lossy",
            "quality": self.quality,
            "shape": self.model.shape,
            "config": self.model.config.to_dict(),
        }

    def _arrays(self) -> dict[str, np.ndarray]:
        fields = dataclasses.fields(self.probabilities)
        whole = {f"probabilities.{f.name}": getattr(self.probabilities, f.name).astype(np.int64) for f in fields}
        return named(nnx.state(self.model), "model.") | whole

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Into a folder of its own, with a manifest; whole or not at all.

        Raises:
            RunError: the folder has something else in it.
        """
        with manifest.replacing(pathlib.Path(folder), frozenset({SETTINGS, WEIGHTS})) as unfinished:
            (unfinished / SETTINGS).write_text(json.dumps(self._settings(), indent=2) + "\n", encoding="utf-8")
            with (unfinished / WEIGHTS).open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **self._arrays())


def checked(quality: int) -> int:
    """The quality.

    Raises:
        ConfigError: it is out of range.
    """
    if not 1 <= quality <= QUALITIES:
        raise errors.ConfigError(f"The quality is {quality}; it has to be from 1, the smallest files, to {QUALITIES}.")
    return quality


def _about(shape: tuple[int, ...], quality: int) -> bytes:
    """What the checksum of a file's numbers begins with."""
    return bytes([quality]) + np.array(shape, "<u4").tobytes()


def _level(quality: int) -> Float[np.ndarray, "1"]:
    """The quality as the networks see it, in [0, 1]."""
    return np.array([(quality - 1) / (QUALITIES - 1)], np.float32)


@functools.partial(jax.jit, static_argnames="graphdef")
def _analysed(
    graphdef: nnx.GraphDef, state: nnx.State, pixels: UInt8[Array, "1 _ _ _"], level: Float[Array, "1"]
) -> tuple[Array, Array]:
    encoder, head = nnx.merge(graphdef, state, copy=True)
    return head.analysed(encoder(pixels.astype(jnp.float32) / 255), level)


@functools.partial(jax.jit, static_argnames="graphdef")
def _synthesised(
    graphdef: nnx.GraphDef, state: nnx.State, y: Float[Array, "1 _ _ _"], level: Float[Array, "1"]
) -> UInt8[Array, "1 _ _ _"]:
    decoder, head = nnx.merge(graphdef, state, copy=True)
    return jnp.clip(jnp.rint(255 * decoder(head.restored(y, level))), 0, 255).astype(jnp.uint8)


@functools.partial(jax.jit, static_argnames="graphdef")
def _bits(
    graphdef: nnx.GraphDef,
    state: nnx.State,
    y: Float[Array, "1 _ _ _"],
    z: Float[Array, "1 _ _ _"],
    level: Float[Array, "1"],
) -> Float[Array, ""]:
    return nnx.merge(graphdef, state, copy=True).coded(y, z, level).bits[0]


Slices = tuple[slice, ...]


def _windows(rows: int, columns: int) -> Iterator[tuple[Slices, Slices, Slices]]:
    """Windows of the second grid, (rows, columns) each: all of it, the part of it that is used, and where that is."""
    side = min(SIDES, key=lambda side: math.prod(len(starts(n, side, MARGIN)) for n in (rows, columns)) * side**2)
    both = [spans(starts(extent, side, MARGIN), extent, side) for extent in (rows, columns)]
    for axes in itertools.product(*both):
        yield (
            tuple(slice(start, start + side) for start, _, _ in axes),
            tuple(slice(low - start, high - start) for start, low, high in axes),
            tuple(slice(low, high) for _, low, high in axes),
        )


def _scaled(part: Slices, size: int) -> Slices:
    return tuple(slice(size * along.start, size * along.stop) for along in part)
