"""Sound files, through libsndfile: WAV, FLAC, Ogg, MP3, AIFF and others, read whole or a block at a time."""

import contextlib
import io
import pathlib
import struct
from collections.abc import Iterable, Iterator
from typing import IO, Any, NamedTuple, cast

import numpy as np
from jaxtyping import Float

from flaxae.data.arrays import check_size, reading
from flaxae.data.signals import Signal
from flaxae.errors import DataError
from flaxae.printing import say

BLOCK = 2**18  # samples read at once
_UNKNOWN = 2**32 - 2**16  # bytes: what a program says that writes into a pipe, and can't know
_KINDS = {".aif": "AIFF", ".opus": "OGG", ".mp3": "MP3"}  # as libsndfile calls what others are called by their ending
_SUBTYPES = {".opus": "OPUS", ".ogg": "VORBIS", ".mp3": "MPEG_LAYER_III"}
Samples = Float[np.ndarray, "samples channels"]


class About(NamedTuple):
    """What the header of a sound file says."""

    rate: int  # in Hz
    channels: int
    subtype: str  # of its samples, such as PCM_16
    samples: int


def about(path: pathlib.Path) -> About:
    """What the header of a sound file says.

    Raises:
        DataError: the file can't be read, or is cut short.
    """
    with path.open("rb") as raw, reading(path):
        begin, claimed = _wav_data(raw)
    if begin and claimed == 0:
        say(f"{path}: its header says nothing of its length, as of a recording that was cut off; all is read.")
    with _opened(path) as file:
        return About(file.samplerate, file.channels, file.subtype, file.frames)


def read_sound(path: pathlib.Path) -> Signal:
    """The samples of a sound file, full scale being [-1, 1].

    Raises:
        DataError: the file is unreadable, damaged, empty or too large.
    """
    head = about(path)
    parts, size = [], 0
    for part in blocks(path):
        parts.append(part)
        size += part.nbytes
        check_size(size, path, at_most=size)
    if not parts:
        raise DataError(f"{path} can't be read: it holds no samples. It may be damaged.")
    return Signal(np.concatenate(parts), head.rate, subtype=head.subtype)


def blocks(path: pathlib.Path) -> Iterator[Samples]:
    """The samples of a sound file, a block at a time.

    Raises:
        DataError: the file is unreadable, damaged, or cut short.
    """
    with _opened(path) as file:
        while True:
            with _sound_errors(path):
                part = file.read(BLOCK, dtype="float32", always_2d=True)
            if not len(part):
                return
            if not np.isfinite(part).all():
                raise DataError(f"{path} can't be read: it holds samples that are not finite. It may be damaged.")
            yield part


def write_sound(file: IO[bytes], path: pathlib.Path, signal: Signal) -> None:
    """Writes samples into an open binary file, as 32-bit floats unless the signal says how and the format can that.

    Raises:
        DataError: the rate is not known, or the format can't hold the sound.
    """
    if signal.rate is None:
        raise DataError(f"{path}: the signal has no rate, which a {path.suffix} needs. Write .npy or .csv.")
    write_blocks(file, path, [signal.values], signal.rate, signal.values.shape[1], signal.subtype)


def write_blocks(
    file: IO[bytes], path: pathlib.Path, parts: Iterable[Samples], rate: int, channels: int, subtype: str | None
) -> None:
    """Writes blocks of samples, one after the other, into an open binary file: see `write_sound`."""
    import soundfile

    kind = _KINDS.get(path.suffix.lower(), path.suffix[1:].upper())
    wanted: str = subtype or _SUBTYPES.get(path.suffix.lower(), "FLOAT")
    if not soundfile.check_format(kind, wanted):
        wanted = _SUBTYPES.get(path.suffix.lower()) or (
            "PCM_24" if kind == "FLAC" else str(soundfile.default_subtype(kind))
        )
    with _sound_errors(path), soundfile.SoundFile(cast(Any, file), "w", rate, channels, wanted, format=kind) as out:
        for part in parts:
            whole = wanted.startswith("PCM_")
            out.write(np.clip(part, -1, 1) if whole else part)


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[Any]:
    """A sound file to read from; of a recording that was cut off, whose header says no length, all there is.

    Raises:
        DataError: it can't be opened, or holds less than its header says.
    """
    import soundfile

    with reading(path), path.open("rb") as raw:
        begin, claimed = _wav_data(raw)
        there = path.stat().st_size - begin
        if begin and claimed > there and claimed < _UNKNOWN:
            raise DataError(
                f"{path} can't be read: it is cut short. Its header asks for {claimed:,} bytes and {there:,} are there."
            )
        raw.seek(0)
        source: Any = raw
        if begin and claimed == 0 and there > 0:
            check_size(there, path)
            content = bytearray(raw.read())
            content[begin - 4 : begin] = struct.pack("<I", there)
            content[4:8] = struct.pack("<I", len(content) - 8)
            source = io.BytesIO(bytes(content))
        with _sound_errors(path):
            file = soundfile.SoundFile(source)
        with file:
            yield file


def _wav_data(raw: IO[bytes]) -> tuple[int, int]:
    """Where the samples of a WAV file begin, and how many bytes its header says they take; 0 and 0 of other files."""
    head = raw.read(12)
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return 0, 0
    while len(chunk := raw.read(8)) == 8:
        size = struct.unpack("<I", chunk[4:])[0]
        if chunk[:4] == b"data":
            return raw.tell(), size
        raw.seek(size + size % 2, 1)
    return 0, 0


@contextlib.contextmanager
def _sound_errors(path: pathlib.Path) -> Iterator[None]:
    """Turns what libsndfile raises into a DataError."""
    import soundfile

    try:
        yield
    except (soundfile.SoundFileError, TypeError) as error:
        reason = " ".join(str(error).split()).rstrip(".").partition(">: ")[2] or type(error).__name__
        raise DataError(f"{path} can't be read or written as sound: {reason}. It may be damaged.") from error
