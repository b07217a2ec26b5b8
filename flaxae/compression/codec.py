"""A trained lossless codec: arrays to bytes and back, exactly; saved without pickle."""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Shaped

from flaxae import errors, manifest
from flaxae.compression import coding, container
from flaxae.compression.contexts import Contexts
from flaxae.compression.integers import IntegerNetwork
from flaxae.data import memory
from flaxae.data.images import MAX_PIXELS

SETTINGS, WEIGHTS = "codec.json", "weights.npz"
STEP = 100  # values that take as long as one step


@dataclasses.dataclass(frozen=True, eq=False)
class Codec:
    """What values are predicted from, and the network that predicts them. `fit` and `load` make one."""

    contexts: Contexts
    network: IntegerNetwork

    @functools.cached_property
    def identity(self) -> bytes:
        """Eight bytes that a file of this codec names it by."""
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(self.contexts)).encode())
        for weights, bias in self.network.layers:
            for numbers in (weights, bias):
                digest.update(np.ascontiguousarray(numbers, "<i8").tobytes())
        return digest.digest()[: container.DIGEST]

    def compress(self, x: Shaped[np.ndarray, "..."]) -> bytes:
        """The bytes of a file that holds x.

        Args:
            x: an image, [height, width] or [height, width, channels], or images of one size, [n, height, width,
                channels] (or [n, height, width] where the codec is for grey ones). uint8, uint16 or int16.

        Raises:
            DataError: x is of another kind, empty, or has values of more bits than the codec's.
        """
        if x.dtype.name not in container.TYPES or not 2 <= x.ndim <= 4 or x.size == 0:
            raise errors.DataError(
                f"The data are {x.dtype} of shape {list(x.shape)}; expected uint8, uint16 or int16, an image [height, "
                "width, channels] or images [n, height, width, channels], not empty."
            )
        values = _unsigned(x)
        if int(values.max()) >> self.contexts.bits:
            raise errors.DataError(
                f"The data have values of {int(values.max()).bit_length()} bits; the codec was trained on "
                f"{self.contexts.bits}. Train one on data like these."
            )
        parts = [coding.encode(self.contexts, self.network, part) for part in self._parts(values)]
        lengths = np.array([len(part) for part in parts], "<u4").tobytes() if len(parts) > 1 else b""
        return container.pack(x, self.identity, lengths + b"".join(parts))

    def decompress(
        self, given: bytes, *, name: str = "The file", max_values: int = 4 * MAX_PIXELS
    ) -> Shaped[np.ndarray, "..."]:
        """The array of a file, as `compress` was given it.

        Args:
            given: the file's bytes.
            name: by which messages call it.
            max_values: that it may hold.

        Raises:
            DataError: the file is damaged, of another codec, of a newer version, or too large.
        """
        file = container.unpack(given, name, most=max_values)
        container.check_codec(file, container.LOSSLESS, self.identity, name)
        shape = self._shape(file.shape)
        self._check(shape, name, max_values)
        try:
            starts, count = [0, len(file.content)], -(-shape[3] // self.contexts.planes)
            if count > 1:
                lengths = np.frombuffer(file.content, "<u4", count)
                starts = (4 * count + np.cumsum([0, *lengths.tolist()])).tolist()
            if starts[-1] != len(file.content):
                raise ValueError("it has other parts than its shape says")
            made = np.empty(file.shape, np.uint16 if file.dtype == "int16" else file.dtype)
            parts = self._parts(made)
            for part, start, end in zip(parts, starts[:-1], starts[1:], strict=True):
                part[...] = coding.decode(self.contexts, self.network, file.content[start:end], part.shape)
        except (AssertionError, ValueError, IndexError) as error:
            raise errors.DataError(f"{name} is damaged: its content can't be decoded.") from error
        x = _signed(made) if file.dtype == "int16" else made
        if container.checked(x) != file.values:
            raise errors.DataError(f"{name} is damaged: what it decodes to is not what was written.")
        return x

    def _parts(self, values: np.ndarray) -> list[np.ndarray]:
        """Views of the values as images of as many planes as the codec takes, and one for the planes left over."""
        values, planes = values.reshape(self._shape(values.shape)), self.contexts.planes
        return [values[..., k : k + planes] for k in range(0, values.shape[3], planes)]

    def _shape(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        """[images, height, width, channels] of values of that shape."""
        if len(shape) == 2:
            return (1, *shape, 1)
        if len(shape) == 3:
            return (*shape, 1) if self.contexts.planes == 1 and shape[2] > 4 else (1, *shape)
        images, height, width, channels = shape
        return images, height, width, channels

    def _check(self, shape: tuple[int, int, int, int], name: str, max_values: int) -> None:
        """Raise DataError if images of that shape would take more time or memory to decode than there is for any."""
        work = STEP * coding.steps(self.contexts, shape)
        if work > max(max_values, 4 * MAX_PIXELS):
            raise errors.DataError(
                f"{name} is too large: {container.product(shape)} values of so narrow images take as long as {work:,}. "
                f"If it is right, allow it: --max-pixels {-(-work // 4)}."
            )
        memory.check(coding.taken(self.contexts, shape), name, advice="Decompress it where there is more.")

    @classmethod
    def of(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> "Codec":
        """The inverse of what `save` writes."""
        side = settings["side"]
        contexts = Contexts(**{**settings, "side": None if side is None else tuple(side)})
        count = len(arrays) // 2
        layers = [
            (arrays[f"weights_{k}"].astype(np.float64), arrays[f"bias_{k}"].astype(np.float64)) for k in range(count)
        ]
        return cls(contexts, IntegerNetwork(layers, contexts.bits))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Into a folder of its own, with a manifest; whole or not at all.

        Raises:
            RunError: the folder has something else in it.
        """
        arrays = {}
        for k, (weights, bias) in enumerate(self.network.layers):
            arrays |= {f"weights_{k}": weights.astype(np.int32), f"bias_{k}": bias.astype(np.int64)}
        with manifest.replacing(pathlib.Path(folder), frozenset({SETTINGS, WEIGHTS})) as unfinished:
            settings = {"format": 1, **dataclasses.asdict(self.contexts)}
            (unfinished / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
            with (unfinished / WEIGHTS).open("wb") as file:
                np.savez(file, **arrays)


def _unsigned(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.int32) + 2**15).astype(np.uint16) if x.dtype == np.int16 else x


def _signed(values: np.ndarray) -> np.ndarray:
    return (values.astype(np.int32) - 2**15).astype(np.int16)
