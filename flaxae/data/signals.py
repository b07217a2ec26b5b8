"""Signals: long recordings of one or more channels, cut into windows and put together again."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from flaxae.data.arrays import MAX_BYTES
from flaxae.errors import ConfigError, DataError

if TYPE_CHECKING:
    pass


@dataclasses.dataclass(frozen=True)
class Framing:
    """How a signal is cut: windows of `window` moments.

    Args:
        window: moments.
        stride: a window is scored, or laid back, every so many moments; training takes windows from every moment.
        rate: of a recording, in moments a second.
        step: of a clock, between moments: seconds of dates, or what else its numbers count.
    """

    window: int
    stride: int
    rate: int | None = None
    step: float | None = None

    def __post_init__(self) -> None:
        for name in ("window", "stride", "rate"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"The {name} of a signal is {value}; it has to be at least 1.")
        if self.window < 2:
            raise ConfigError("The window is 1 moment; expected 2 at least. Single moments are rows of a table.")
        if self.step is not None and not 0 < self.step < math.inf:
            raise ConfigError(f"The step of a signal is {self.step}; it has to be above 0.")
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
        if set(fields) - {"step"} != {"window", "stride", "rate"}:  # older runs have no step
            raise ConfigError(f"A framing is {fields!r}; expected the fields window, stride, rate and step.")
        required = [fields["window"], fields["stride"], *([fields["rate"]] if fields["rate"] is not None else [])]
        if any(type(value) is not int for value in required) or not isinstance(fields.get("step"), float | None):
            raise ConfigError(f"A framing is {fields!r}; expected whole numbers, and a step that is any number.")
        return cls(**fields)


class Signal(NamedTuple):
    """A recording, or several one after the other, not yet cut into windows."""

    values: Float[np.ndarray, " time channels"]
    rate: int | None = None  # in Hz, where the file says it
    begins: tuple[int, ...] = (0,)  # the first moment of each stretch without a gap: no window lies in two
    times: Shaped[np.ndarray, " time"] | None = None  # of each moment: dates, or numbers such as seconds
    columns: tuple[str, ...] | None = None  # names of the channels
    labels: Shaped[np.ndarray, " time"] | None = None  # of each moment
    files: tuple[str, ...] | None = None  # that each stretch is of
    subtype: str | None = None  # of the samples in a sound file, such as PCM_16

    @property
    def stretches(self) -> list[tuple[int, int]]:
        """First and one past the last moment of each stretch."""
        return list(zip(self.begins, [*self.begins[1:], len(self.values)], strict=True))

    def part(self, lo: int, hi: int) -> "Signal":
        """Moments `lo` to `hi`."""
        kept = [i for i, (begin, end) in enumerate(self.stretches) if begin < hi and end > lo]
        return self._replace(
            values=self.values[lo:hi],
            begins=tuple(max(self.begins[i] - lo, 0) for i in kept),
            times=None if self.times is None else self.times[lo:hi],
            labels=None if self.labels is None else self.labels[lo:hi],
            files=None if self.files is None else tuple(self.files[i] for i in kept),
        )

    def where(self, usable: Bool[np.ndarray, " time"]) -> "Signal":
        """The moments that are usable, cut where others are left out.

        Raises:
            DataError: none is.
        """
        begins, files, kept, count = [], [], [], 0
        for i, (lo, hi) in enumerate(self.stretches):
            for first, last in runs(usable[lo:hi]):
                begins.append(count)
                files.append("" if self.files is None else self.files[i])
                kept.append(np.arange(lo + first, lo + last))
                count += last - first
        if not kept:
            raise DataError("No moment of the signal can be used.")
        index = np.concatenate(kept)
        return self._replace(
            values=self.values[index],
            begins=tuple(begins),
            times=None if self.times is None else self.times[index],
            labels=None if self.labels is None else self.labels[index],
            files=None if self.files is None else tuple(files),
        )


def runs(where: Bool[np.ndarray, " time"]) -> list[tuple[int, int]]:
    """First and one past the last of each run that is true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], where.astype(np.int8), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def joined(signals: Sequence[Signal], source: object) -> Signal:
    """Recordings one after the other, each a stretch of its own.

    Raises:
        DataError: they have other channels or other rates.
    """
    first = signals[0]
    for signal in signals:
        about = (signal.values.shape[1], signal.columns, signal.rate)
        if about != (first.values.shape[1], first.columns, first.rate):
            raise DataError(
                f"{source}: {(signal.files or ('a recording',))[0]} has {_told(signal)}, {(first.files or ('',))[0]} "
                f"has {_told(first)}; expected the same of all."
            )
    offsets = np.cumsum([0, *(len(signal.values) for signal in signals)])
    times = [signal.times for signal in signals if signal.times is not None]
    labels = [signal.labels for signal in signals if signal.labels is not None]
    return first._replace(
        values=np.concatenate([signal.values for signal in signals]),
        begins=tuple(int(lo + begin) for lo, signal in zip(offsets, signals, strict=False) for begin in signal.begins),
        times=np.concatenate(times) if len(times) == len(signals) else None,
        labels=np.concatenate(labels) if len(labels) == len(signals) else None,
        files=tuple(name for signal in signals for name in signal.files or ("",) * len(signal.begins)),
    )


def _told(signal: Signal) -> str:
    names = "" if signal.columns is None else f" ({', '.join(signal.columns)})"
    rate = "" if signal.rate is None else f" at {signal.rate} Hz"
    return f"{signal.values.shape[1]} channels{names}{rate}"


def starts(length: int, window: int, stride: int, begins: Sequence[int] = (0,)) -> Int[np.ndarray, " windows"]:
    """The first moment of each of `windows` of a signal of that length, whose stretches begin at `begins`.

    Raises:
        DataError: no stretch is as long as one window.
    """
    ends = [*begins[1:], length]
    made = [
        begin + np.union1d(np.arange(0, end - begin - window + 1, stride), [end - begin - window])
        for begin, end in zip(begins, ends, strict=True)
        if end - begin >= window
    ]
    if not made:
        longest = max(end - begin for begin, end in zip(begins, ends, strict=True))
        what = "The signal has" if len(ends) == 1 else "The longest stretch of the signal without a gap has"
        raise DataError(f"{what} {longest} moments; expected {window} at least, a window.")
    return np.concatenate(made)


def windows(
    signal: Shaped[np.ndarray, " time *rest"], window: int, stride: int, begins: Sequence[int] = (0,)
) -> Shaped[np.ndarray, "..."]:
    """[windows, window, *rest]: of each stretch one every `stride` moments, and one flush with its end.

    Raises:
        DataError: the signal is shorter than one window, or the windows would be too large for memory.
    """
    return windows_at(signal, starts(len(signal), window, stride, begins), window)


def windows_at(
    signal: Shaped[np.ndarray, " time *rest"], first: Int[np.ndarray, " windows"], window: int
) -> Shaped[np.ndarray, "..."]:
    """[windows, window, *rest]: those that begin at these moments.

    Raises:
        DataError: they would be too large for memory.
    """
    if (size := len(first) * signal[:window].nbytes) > MAX_BYTES:
        raise DataError(f"The windows would take {size:,} bytes; the limit is {MAX_BYTES:,}. Choose a larger stride.")
    cut = np.lib.stride_tricks.sliding_window_view(signal, window, axis=0)[first]  # the window is the last axis
    return np.ascontiguousarray(np.moveaxis(cut, -1, 1))


def overlap_mean(
    values: Float[np.ndarray, " windows window *rest"], stride: int, length: int, begins: Sequence[int] = (0,)
) -> Float[np.ndarray, " length *rest"]:
    """The inverse of `windows`: for each moment of a signal of that length, the mean over the windows that hold it.

    NaN for moments that none holds, of stretches that are shorter than a window.

    Raises:
        DataError: the number of windows is not the one that `windows` cuts.
    """
    window = values.shape[1]
    first = starts(length, window, stride, begins)
    if len(first) != len(values):
        raise DataError(
            f"There are {len(values)} windows; {len(first)} of {window} moments, one every {stride}, make {length}."
        )
    total, count = np.zeros((length, *values.shape[2:])), np.zeros(length)
    for moment in range(window):
        total[first + moment] += values[:, moment]
        count[first + moment] += 1
    count = np.where(count == 0, np.nan, count)
    return (total / count.reshape(-1, *[1] * (values.ndim - 2))).astype(values.dtype)
