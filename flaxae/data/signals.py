"""Signals: long recordings of one or more channels, cut into windows and put together again."""

import collections
import dataclasses
import math
import pathlib
import struct
import warnings
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from flaxae.data.arrays import MAX_BYTES, check_size, reading
from flaxae.data.encoding import Encoding
from flaxae.data.images import Images
from flaxae.data.parts import Parts, as_examples
from flaxae.data.stream import Stream
from flaxae.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True)
class Framing:
    """How a signal is cut: windows of `window` moments, one every `stride`; `rate` is in Hz, if known."""

    window: int
    stride: int
    rate: int | None = None

    def __post_init__(self) -> None:
        for name in ("window", "stride", "rate"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"The {name} of a signal is {value}; it has to be at least 1.")
        if self.window < 2:
            raise ConfigError("The window is 1 moment; expected 2 at least. Single moments are rows of a table.")
        if self.stride > self.window:
            raise ConfigError(
                f"The stride, {self.stride}, is more than the window, {self.window}: moments in between would be lost."
            )

    @property
    def apart(self) -> int:
        """How many windows later the next window begins that shares no moment with a given one."""
        return math.ceil(self.window / self.stride)

    def to_dict(self) -> dict[str, Any]:
        """The fields as values that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Framing":
        """The inverse of `to_dict`.

        Raises:
            ConfigError: a field is missing, unknown, or has a value that no framing can have.
        """
        if set(fields) != {"window", "stride", "rate"}:
            raise ConfigError(f"A framing is {fields!r}; expected the fields window, stride and rate.")
        required = [fields["window"], fields["stride"], *([fields["rate"]] if fields["rate"] is not None else [])]
        if any(type(value) is not int for value in required):
            raise ConfigError(f"A framing is {fields!r}; expected whole numbers.")
        return cls(**fields)


class Signal(NamedTuple):
    """A recording before it is cut: float32 [time, channels], and its rate in Hz if the file has it."""

    values: np.ndarray
    rate: int | None = None


def starts(length: int, window: int, stride: int) -> Int[np.ndarray, " windows"]:
    """The first moment of each window that `windows` cuts from a signal of that length.

    Raises:
        DataError: the signal is shorter than one window.
    """
    if length < window:
        raise DataError(f"The signal has {length} moments; expected {window} at least, a window.")
    return np.union1d(np.arange(0, length - window + 1, stride), [length - window])


def windows(signal: Shaped[np.ndarray, " time *rest"], window: int, stride: int) -> Shaped[np.ndarray, "..."]:
    """[windows, window, *rest]: one window every `stride` moments, and a last one flush with the end of the signal.

    Raises:
        DataError: the signal is shorter than one window, or the windows would be too large for memory.
    """
    begins = starts(len(signal), window, stride)
    if (size := len(begins) * signal[:window].nbytes) > MAX_BYTES:
        raise DataError(f"The windows would take {size:,} bytes; the limit is {MAX_BYTES:,}. Choose a larger stride.")
    cut = np.lib.stride_tricks.sliding_window_view(signal, window, axis=0)[begins]  # the window is the last axis
    return np.ascontiguousarray(np.moveaxis(cut, -1, 1))


def overlap_mean(
    values: Float[np.ndarray, " windows window *rest"], stride: int, length: int
) -> Float[np.ndarray, " length *rest"]:
    """The inverse of `windows`: for each moment of a signal of that length, the mean over the windows that hold it.

    Raises:
        DataError: the number of windows is not the one that `windows` cuts.
    """
    window = values.shape[1]
    begins = starts(length, window, stride)
    if len(begins) != len(values):
        raise DataError(
            f"There are {len(values)} windows; {len(begins)} of {window} moments, one every {stride}, make {length}."
        )
    total, count = np.zeros((length, *values.shape[2:])), np.zeros(length)
    for moment in range(window):
        total[begins + moment] += values[:, moment]
        count[begins + moment] += 1
    return (total / count.reshape(-1, *[1] * (values.ndim - 2))).astype(values.dtype)


def as_signal(
    x: "np.ndarray | pd.DataFrame", source: object, columns: Sequence[str] | None = None
) -> Float[np.ndarray, " time channels"]:
    """A checked signal, float32 [time, channels]. Without an axis of channels, x is one channel.

    Args:
        x: [time], [time, channels], or a table, whose columns are the channels.
        source: for the messages.
        columns: the columns of a table to take, in this order; None is all of them.

    Raises:
        DataError: x has another shape, or values that are missing, not finite or not numbers.
    """
    if not isinstance(x, np.ndarray):
        return Encoding.of_numbers(columns or tuple(x.columns))(x, source)
    if x.ndim not in (1, 2):
        raise DataError(f"{source} has shape {x.shape}; expected a signal, [time] or [time, channels].")
    return as_examples(x[:, None] if x.ndim == 1 else x, str(source))


def cut(parts: Parts, framing: Framing, source: object) -> Parts:
    """The windows of a source's signals. If it has no test part, the last fifth of the time becomes the test part.

    No window is in both parts. A window's label is the largest of its moments' labels.

    Raises:
        DataError: a signal is a stream, shorter than two windows, or invalid (see `as_signal`), or the labels are not
            numbers.
    """
    if isinstance(parts.train, Stream):
        raise DataError(f"{source} is too large to be cut into windows: cut it first, and save the windows as .npy.")
    if isinstance(parts.train, Images) or isinstance(parts.test, Images):
        raise DataError(f"{source} holds images; windows are cut from signals.")
    train = as_signal(parts.train, source)
    named = _named(parts)
    labels, test_labels, end = _moments(named.train_labels, train, source), None, 0
    if parts.test is not None:
        test = as_signal(parts.test, source)
        test_labels = _moments(named.test_labels, test, source)
    else:
        if len(train) < 2 * framing.window:
            raise DataError(
                f"{source} has {len(train)} moments (its shape is {train.shape}); expected {2 * framing.window} at "
                f"least: one window of {framing.window} to train on, and one to test. Choose a smaller window."
            )
        end = len(train) - max(framing.window, len(train) // 5)
        train, test = train[:end], train[end:]
        if labels is not None:
            labels, test_labels = labels[:end], labels[end:]

    def frame(x: np.ndarray) -> np.ndarray:
        return windows(x, framing.window, framing.stride)

    largest = [None if values is None else frame(values).max(axis=1) for values in (labels, test_labels)]
    columns = parts.columns if isinstance(parts.train, np.ndarray) else tuple(parts.train.columns)
    return parts._replace(
        train=frame(train),
        test=frame(test),
        classes=named.classes,
        train_labels=largest[0],
        test_labels=largest[1],
        columns=columns,
        test_rows=end + starts(len(test), framing.window, framing.stride),
    )


def read_wav(path: pathlib.Path) -> Signal:
    """The samples of a `.wav` file, scaled so that full scale is [-1, 1].

    Raises:
        DataError: the file is unreadable, damaged or too large.
    """
    from scipy.io import wavfile

    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("error", wavfile.WavFileWarning)  # the file was cut short
        warnings.filterwarnings("ignore", ".*not understood, skipping", wavfile.WavFileWarning)
        check_size(path.stat().st_size, path)
        try:
            rate, samples = wavfile.read(path)
        except (wavfile.WavFileWarning, struct.error) as error:
            raise DataError(f"{path} can't be read: {error} It may be damaged.") from error
    samples = samples[:, None] if samples.ndim == 1 else samples
    if samples.dtype.kind == "f":
        return Signal(samples.astype(np.float32), rate)
    middle, full = (128, 128) if samples.dtype == np.uint8 else (0, -int(np.iinfo(samples.dtype).min))
    return Signal(((samples.astype(np.float64) - middle) / full).astype(np.float32), rate)


def write_wav(file: IO[bytes], path: pathlib.Path, signal: Signal) -> None:
    """Writes samples, float32, into an open binary file.

    Raises:
        DataError: the rate is not known.
    """
    from scipy.io import wavfile

    if signal.rate is None:
        raise DataError(f"{path}: the signal has no rate, which a .wav needs. Write .npy or .csv.")
    wavfile.write(file, signal.rate, signal.values.astype(np.float32))


def _named(parts: Parts) -> Parts:
    """The labels of moments as numbers where they are names: 0 for the most frequent, more for rarer; −1 for none."""
    given = {name: getattr(parts, name) for name in ("train_labels", "test_labels")}
    given = {name: labels.reshape(-1) for name, labels in given.items() if labels is not None}
    if not given or all(labels.dtype.kind in "buif" for labels in given.values()):
        return parts
    labels = np.concatenate([labels.astype(object) for labels in given.values()])
    known = [label for label in labels.tolist() if label is not None]
    counts = collections.Counter(map(str, known))
    classes = sorted(counts, key=lambda name: (-counts[name], name))
    codes = {None: -1, **{name: code for code, name in enumerate(classes)}}
    numbered = {
        name: np.array([codes[None if label is None else str(label)] for label in part.tolist()])
        for name, part in given.items()
    }
    return parts._replace(classes=tuple(classes), **numbered)


def _moments(labels: np.ndarray | None, signal: np.ndarray, source: object) -> np.ndarray | None:
    if labels is None:
        return None
    if labels.dtype.kind not in "buif" or labels.size != len(signal):
        raise DataError(
            f"{source}: the labels are {labels.dtype} of shape {labels.shape}; expected a number for each of "
            f"{len(signal)} moments, such as 0 for normal and 1 for strange."
        )
    return labels.reshape(-1)
