"""What the batches of an Arrow file (`.feather`) take once they are unpacked, by its metadata alone.

PyArrow tells sizes only of what it has unpacked already. The metadata are FlatBuffers, of which a few fields are read
here, by their numbers in Arrow's `File.fbs` and `Message.fbs`:

    "ARROW1\\0\\0"  messages  footer  length of the footer, 4 bytes  "ARROW1"

The footer says where each message is. A message has a table of its buffers, then the buffers; before each that is
packed are 8 bytes with its length once it is unpacked, or −1 if it is not packed after all.
"""

import mmap
import pathlib
import struct
from collections.abc import Iterator

import numpy as np

MAGIC = b"ARROW1"
VALUE = 8  # bytes that pandas takes for one, or for None
DICTIONARY = 2  # the type of a message with the values of categories; others are batches of rows

Content = bytes | mmap.mmap


def unpacked(path: pathlib.Path) -> int:
    """The bytes that all batches of an Arrow file take together, as columns of pandas.

    Raises:
        ValueError, struct.error, IndexError: it is no such file, or its metadata are damaged.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[-len(MAGIC) :] != MAGIC:
            raise ValueError("it is no Arrow file")
        (length,) = struct.unpack("<i", content[-len(MAGIC) - 4 : -len(MAGIC)])
        footer = content[len(content) - len(MAGIC) - 4 - length : -len(MAGIC) - 4]
        root = _follow(footer, 0)
        return sum(_of_message(content, at, size) for number in (2, 3) for at, size in _blocks(footer, root, number))


def _blocks(footer: bytes, root: int, number: int) -> Iterator[tuple[int, int]]:
    """Where messages are, and the bytes before their buffers."""
    start, count = _vector(footer, root, number)
    for i in range(count):
        yield struct.unpack_from("<qi", footer, start + 24 * i)


def _of_message(content: Content, at: int, size: int) -> int:
    if at < 0 or size < 8:
        raise ValueError("its footer is damaged")
    marked = content[at : at + 4] == b"\xff" * 4  # as messages begin since Arrow 0.15
    message = content[at + (8 if marked else 4) : at + size]
    root = _follow(message, 0)
    kind, header = _field(message, root, 1), _field(message, root, 2)
    if kind is None or header is None:
        raise ValueError("a message of it has no header")
    batch = _follow(message, header)
    if message[kind] == DICTIONARY:
        data = _field(message, batch, 1)
        if data is None:
            raise ValueError("a dictionary of it has no values")
        batch = _follow(message, data)
    nodes, buffers = (_pairs(message, batch, number) for number in (1, 2))
    if min(nodes.min(initial=0), buffers.min(initial=0)) < 0:
        raise ValueError("a batch of it is damaged")
    is_packed = _field(message, batch, 3) is not None
    taken = sum(_length(content, at + size, *buffer, is_packed=is_packed) for buffer in buffers.tolist())
    return max(taken, VALUE * sum(length for length, _ in nodes.tolist()))


def _length(content: Content, body: int, offset: int, length: int, *, is_packed: bool) -> int:
    """The bytes of a buffer once it is unpacked."""
    if not is_packed or length == 0:
        return length
    (unpacked,) = struct.unpack_from("<q", content, body + offset)
    if unpacked < -1:
        raise ValueError("a buffer of it is damaged")
    return length if unpacked == -1 else unpacked


def _pairs(message: bytes, table: int, number: int) -> np.ndarray:
    """A vector of pairs of whole numbers."""
    start, count = _vector(message, table, number)
    return np.frombuffer(message, "<i8", 2 * count, start).reshape(count, 2)


def _vector(content: bytes, table: int, number: int) -> tuple[int, int]:
    """Where the elements of a table's vector begin, and how many there are."""
    place = _field(content, table, number)
    if place is None:
        return 0, 0
    start = _follow(content, place)
    return start + 4, *struct.unpack_from("<I", content, start)


def _field(content: bytes, table: int, number: int) -> int | None:
    """Where a table has a field; None if it lacks it."""
    (back,) = struct.unpack_from("<i", content, table)
    fields = table - back
    if fields < 0:
        raise ValueError("its metadata are damaged")
    (size,) = struct.unpack_from("<H", content, fields)
    if 4 + 2 * number >= size:
        return None
    (offset,) = struct.unpack_from("<H", content, fields + 4 + 2 * number)
    return table + offset if offset else None


def _follow(content: bytes, place: int) -> int:
    return place + struct.unpack_from("<I", content, place)[0]
