"""Values to bytes and back: each value as binary decisions, from the highest bit to the lowest, by a range coder.

Encoder and decoder walk the same way over the same whole numbers; the decoder only learns each decision from the bytes.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import constriction
import numpy as np
from jaxtyping import Float, Int, Shaped

from flaxae.compression.container import most_bits
from flaxae.compression.contexts import Contexts, Step
from flaxae.compression.integers import PRECISION, IntegerNetwork, Mixture

GROUP = 2**20  # values of images of one shape that are coded side by side
PLACE = 56  # bytes for each pixel of a plane, by which pixels are put in the order in which they are coded

Coder = Callable[[np.ndarray, Step, int], np.ndarray]  # (probabilities of a 1, step, which bit) to bits

stream: Any = constriction.stream  # pyright: ignore[reportAttributeAccessIssue] (of a module without stubs)


class Encoder:
    """Writes the decisions of known values."""

    def __init__(self) -> None:
        self.queue = stream.queue.RangeEncoder()
        self.model = stream.model.Bernoulli(perfect=False)
        self.values = np.zeros(0, np.int32)  # of the frame

    def __call__(
        self, probabilities: Float[np.ndarray, " values"], step: Step, shift: int
    ) -> Int[np.ndarray, " values"]:
        bits = (self.values[step.at] >> shift) & 1
        self.queue.encode(bits, self.model, probabilities)
        return bits

    def bytes(self) -> bytes:
        """What was written."""
        return self.queue.get_compressed().astype("<u4").tobytes()


class Decoder:
    """Reads decisions: none past the end, where the range coder would go on for ever."""

    def __init__(self, content: bytes) -> None:
        self.left = most_bits(content)
        self.queue = stream.queue.RangeDecoder(np.frombuffer(content, "<u4").astype(np.uint32))
        self.model = stream.model.Bernoulli(perfect=False)

    def __call__(
        self, probabilities: Float[np.ndarray, " values"], step: Step, shift: int
    ) -> Int[np.ndarray, " values"]:
        bits = self.queue.decode(self.model, probabilities)
        self.left += np.log2(np.where(bits, probabilities, 1 - probabilities)).sum()
        if self.left < 0:
            raise ValueError("it holds fewer values than it claims")
        return bits


def encode(
    contexts: Contexts, network: IntegerNetwork, values: Shaped[np.ndarray, "images height width planes"]
) -> bytes:
    """Images of one shape, of whole numbers below 2^bits, as bytes."""
    encoder = Encoder()
    for part in _groups(values.shape):
        frame = contexts.framed(values[part])
        encoder.values = frame.reshape(-1)
        for step in contexts.steps(frame):
            _code(_mixture(contexts, network, frame, step), contexts.bits, step, encoder)
    return encoder.bytes()


def decode(
    contexts: Contexts, network: IntegerNetwork, content: bytes, shape: tuple[int, int, int, int]
) -> Shaped[np.ndarray, "images height width planes"]:
    """The inverse of `encode`. `shape` is that of its values."""
    decoder, reach = Decoder(content), contexts.reach
    made = np.empty(shape, np.uint8 if contexts.bits <= 8 else np.uint16)
    for part in _groups(shape):
        height, width = shape[1:3]
        frame = contexts.frame(*made[part].shape)
        for step in contexts.steps(frame):
            values = _code(_mixture(contexts, network, frame, step), contexts.bits, step, decoder)
            contexts.put(frame, step, values)
        made[part] = np.moveaxis(frame[:, :, reach : reach + height, reach : reach + width], 0, -1)
    return made


def steps(contexts: Contexts, shape: tuple[int, int, int, int]) -> int:
    """How many steps images of that shape, [images, height, width, channels], are coded in."""
    images, height, width, channels = shape
    groups = -(-images // _in_a_group((images, height, width, min(channels, contexts.planes))))
    return groups * channels * (width + (contexts.reach + 1) * (height - 1))


def taken(contexts: Contexts, shape: tuple[int, int, int, int]) -> int:
    """The bytes of memory that decoding images of that shape takes, about."""
    images, height, width, channels = shape
    part = (images, height, width, min(channels, contexts.planes))
    frame = 4 * math.prod(part[1:]) * min(images, _in_a_group(part))
    return frame + PLACE * height * width + 2 * math.prod(shape)


def _mixture(contexts: Contexts, network: IntegerNetwork, frame: np.ndarray, step: Step) -> Mixture:
    """The mixtures of a step's values. Where all around is one level, they are computed once for each such level."""
    flat = contexts.is_flat(frame, step)
    if flat.sum() < len(flat) // 4:
        return network(contexts.of(frame, step))
    place = step.rows[flat] * frame.shape[3] + step.columns[flat]
    key = (place << 16) + frame.reshape(-1)[step.at[flat] - 1]
    _, first, same = np.unique(key, return_index=True, return_inverse=True)
    others = np.flatnonzero(~flat)
    chosen = np.concatenate([others, np.flatnonzero(flat)[first]])
    found = network(contexts.of(frame, step.take(chosen)))
    index = np.empty(len(flat), np.int64)
    index[others] = np.arange(len(others))
    index[flat] = len(others) + same
    return found.take(index)


def _code(mixture: Mixture, bits: int, step: Step, coder: Coder) -> Int[np.ndarray, " values"]:
    """The values of a step, whose bits the coder writes or reads."""
    level = np.zeros(len(step.at), np.int64)
    below, above = np.zeros(len(step.at), np.int64), mixture.total(2**bits)
    for shift in reversed(range(bits)):
        middle = level + (1 << shift)
        mass = mixture.below(middle)
        share = (above - mass) * float(2**PRECISION) / (above - below)  # exactly rounded, by IEEE 754
        probabilities = np.clip(np.floor(share), 1, 2**PRECISION - 1) * 2.0**-PRECISION
        is_one = coder(probabilities, step, shift).astype(bool)
        level = np.where(is_one, middle, level)
        below, above = np.where(is_one, mass, below), np.where(is_one, above, mass)
    return level


def _groups(shape: tuple[int, ...]) -> Iterator[slice]:
    for start in range(0, shape[0], _in_a_group(shape)):
        yield slice(start, start + _in_a_group(shape))


def _in_a_group(shape: tuple[int, ...]) -> int:
    return max(1, GROUP // max(1, math.prod(shape[1:])))
