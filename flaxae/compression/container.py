"""The `.flx` file: what it holds is said, and checked, before anything is decoded.

    magic "\\x89FLX"   4 bytes
    version           1 byte: of the format, 1 for lossless files and 2 for lossy ones
    kind              1 byte: 0 lossless, 1 lossy
    type              1 byte: of the array's values, see `TYPES`
    axes              1 byte, then 4 bytes for the length of each
    model             8 bytes of the SHA-256 of the codec
    values            4 bytes: CRC-32 of the array; in a lossy file, of the whole numbers that are coded
    content           the coder's bytes; in a lossy file after 1 byte, the quality
    checksum          8 bytes of the SHA-256 of all before

Numbers are little-endian. A file from outside may be anything: nothing in it is believed before it is checked.
"""

import hashlib
import struct
import zlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from flaxae import errors

MAGIC = b"\x89FLX"
LOSSLESS, LOSSY = 0, 1  # kinds
VERSIONS = (1, 2)  # in which files of each kind are written
TYPES = ("uint8", "uint16", "int16")
DIGEST = 8  # bytes of a SHA-256
LEAST_AXES, MOST_AXES = 2, 4
FIXED = 8 + DIGEST + 4 + DIGEST  # bytes around the axes and the content
LEAST_BITS = (8.7e-5, 1e-6)  # that a value takes, as no probability is 1: no file can claim more than it has bits for
SLACK, MORE = 1.05, 128  # a file's bits, times this and this many more, are those of its values at least


class File(NamedTuple):
    """What a file says."""

    kind: int
    shape: tuple[int, ...]
    dtype: str
    model: bytes
    values: int  # the CRC-32
    content: bytes


def pack(
    x: Shaped[np.ndarray, "..."], model: bytes, content: bytes, *, kind: int = LOSSLESS, check: int | None = None
) -> bytes:
    """The bytes of a file of the array x, which `content` codes. `check` is by default that of the array's values."""
    head = MAGIC + struct.pack("<BBBB", VERSIONS[kind], kind, TYPES.index(x.dtype.name), x.ndim)
    head += struct.pack(f"<{x.ndim}I", *x.shape) + model + struct.pack("<I", checked(x) if check is None else check)
    return head + content + hashlib.sha256(head + content).digest()[:DIGEST]


def unpack(given: bytes, name: str, *, most: int) -> File:
    """What a file says, after checking that its bytes are as they were written.

    Args:
        name: by which messages call it.
        most: values that it may hold.

    Raises:
        DataError: it is no such file, damaged, of a newer version, or claims too many values.
    """
    if not given.startswith(MAGIC):
        raise errors.DataError(f"{name} is no .flx file. Give one that `--exp compress` wrote.")
    if len(given) > 4 and given[4] > max(VERSIONS):
        raise errors.DataError(
            f"{name} is of version {given[4]} of the format; this flaxae reads up to {max(VERSIONS)}. Install a newer "
            "one."
        )
    digest = hashlib.sha256(given[:-DIGEST]).digest()[:DIGEST]
    if len(given) < FIXED or given[-DIGEST:] != digest:
        raise errors.DataError(f"{name} is damaged: bytes are missing or were changed. Restore a copy of it.")
    version, kind, dtype, axes = given[4:8]
    start = 8 + 4 * axes
    known = kind < len(VERSIONS) and version == VERSIONS[kind]
    if not known or dtype >= len(TYPES) or not LEAST_AXES <= axes <= MOST_AXES or len(given) < FIXED + 4 * axes:
        raise errors.DataError(f"{name} is no .flx file that this flaxae reads: its header makes no sense.")
    shape = struct.unpack(f"<{axes}I", given[8:start])
    content = given[start + DIGEST + 4 : -DIGEST]
    count = 1
    for length in shape:  # whole numbers, as those of NumPy may overflow
        count *= length
    if min(shape) < 1:
        raise errors.DataError(f"{name} is damaged: it claims {product(shape)} values.")
    check_bits(count * LEAST_BITS[kind], content, shape, name)
    if count > most:
        raise errors.DataError(
            f"{name} is too large: it claims {product(shape)} values, where at most {most:,} are read, for a small "
            f"file may claim any size. If it is right, allow it: --max-pixels {count}."
        )
    model = given[start : start + DIGEST]
    return File(
        kind, shape, TYPES[dtype], model, *struct.unpack("<I", given[start + DIGEST : start + DIGEST + 4]), content
    )


def check_codec(file: File, kind: int, model: bytes, name: str) -> None:
    """Raise DataError unless a file is of that kind and of the codec of that hash."""
    if (file.kind, file.model) != (kind, model):
        raise errors.DataError(
            f"{name} was written with another codec, {file.model.hex()}; this one is {model.hex()}. Give the run that "
            "it was written with by --from."
        )


def checked(x: Shaped[np.ndarray, "..."]) -> int:
    """The CRC-32 of an array's values."""
    return zlib.crc32(np.ascontiguousarray(x).astype(x.dtype.newbyteorder("<"), copy=False).tobytes())


def most_bits(content: bytes) -> float:
    """The most that a file's values can have, each minus the logarithm of its probability."""
    return SLACK * 8 * len(content) + MORE


def check_bits(least: float, content: bytes, shape: tuple[int, ...], name: str) -> None:
    """Raise DataError if a file claims values of `least` bits at least, which is more than it has."""
    if least > most_bits(content):
        raise errors.DataError(f"{name} is damaged: it claims {product(shape)} values in {len(content):,} bytes.")


def product(shape: tuple[int, ...]) -> str:
    """A shape in a message, such as 1,000 × 2."""
    return " × ".join(f"{length:,}" for length in shape)
