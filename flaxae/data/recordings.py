"""Recordings as signals: a table's clock is found, gaps are cut at, uneven sampling is made even, and it is said."""

import itertools
import math
import pathlib
import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from flaxae.data import formats, roles, signals, tables
from flaxae.data.encoding import numbers
from flaxae.data.parts import as_examples
from flaxae.data.signals import Framing, Signal, joined
from flaxae.data.stream import Stream
from flaxae.errors import ConfigError, DataError, unknown
from flaxae.printing import say

if TYPE_CHECKING:
    import pandas as pd

FILLED = 5  # moments missing in a row that are interpolated; a signal is cut at longer gaps
EVEN = 0.05  # of a step, that most moments of an evenly sampled signal are off by at most
MOST_RESAMPLED = 4  # times as many moments as there were, at most
WINDOW_BYTES = 128 * 2**20  # of training windows; there is one from every moment, or as many moments as give so much
AUTO_LAGS = 20_000  # that a period is sought among
LEAST_WINDOW = 100  # of `--window auto`, in moments: whole periods, as many as have so many, or without a period that
_CLOCK = re.compile(r"(^|[^a-z])(time|timestamp|ts|date|datetime|epoch|clock|seconds)([^a-z]|$)")
Times = Shaped[np.ndarray, " time"]  # dates, or numbers


def of_table(
    frame: "pd.DataFrame",
    source: object,
    *,
    columns: Sequence[str] | None = None,
    labels: np.ndarray | None = None,
    step: float | None = None,
    time: str | None = None,
    keep: Sequence[str] = (),
) -> Signal:
    """The signal of a table whose rows are moments: its channels are the columns of numbers, but for a clock.

    A column of dates or times, or one of numbers that only rise, is the clock: by it rows are put in order, gaps found,
    and moments set at equal steps. A table with a row a moment and sensor has a channel a sensor, or where their times
    differ a recording each.

    Args:
        frame: with texts for the names of its columns.
        source: for the messages.
        columns: the channels to take, in this order; None is all columns of numbers.
        labels: of each row.
        step: seconds, or what else the clock counts, between moments; None is what the table has.
        time: the clock; None finds it.
        keep: columns that are channels whatever they look like.

    Raises:
        DataError: a column is missing or not numeric, or too few moments are left.
    """
    clock, left_out = _clock(frame, source, columns, time, keep)
    times = None if clock is None else roles.moments(cast("pd.Series", frame[clock]), source)
    frame = frame.drop(columns=list(left_out))
    if times is None:
        return _without_missing(_channels(frame, source, columns)._replace(labels=labels), source)
    known = ~np.isnat(times) if times.dtype.kind == "M" else np.isfinite(times)
    if not known.all():
        say(f"{source}: left out {np.sum(~known):,} rows without a time.")
        frame = cast("pd.DataFrame", frame[known])
        times, labels = times[known], None if labels is None else labels[known]
    if (signal := _of_long_format(frame, times, source, columns, step)) is not None:
        return signal
    return _regular(_channels(frame, source, columns), times, labels, source, step)


def of_array(x: np.ndarray, source: object, labels: np.ndarray | None = None) -> Signal:
    """The signal of an array, [time] or [time, channels]; it is cut where values are missing for long.

    Raises:
        DataError: another shape, or no numbers.
    """
    if x.ndim not in (1, 2):
        raise DataError(f"{source} has shape {x.shape}; expected a signal, [time] or [time, channels].")
    x = x[:, None] if x.ndim == 1 else x
    if x.dtype.kind != "f":
        x = as_examples(x, str(source))
    elif x.size == 0:
        raise DataError(f"{source} is empty: its shape is {x.shape}.")
    return _without_missing(Signal(x, labels=labels), source)


class Windows(NamedTuple):
    """What `cut` makes of a source's signals."""

    train: Float[np.ndarray, "windows window channels"]
    test: Float[np.ndarray, "more window channels"]
    train_labels: np.ndarray | None
    test_labels: np.ndarray | None
    classes: tuple[str, ...] | None
    train_rows: Int[np.ndarray, " windows"]  # first moments in the training part
    test_rows: Int[np.ndarray, " more"]  # in the source
    signals: tuple[Signal, Signal]  # the training and the test part
    framing: Framing


def cut(
    train: "np.ndarray | pd.DataFrame | Signal | Stream",
    test: np.ndarray | None,
    labels: tuple[np.ndarray | None, np.ndarray | None],
    source: object,
    *,
    window: "int | str",
    stride: int | None,
    seed: int,
    time: str | None = None,
    keep: Sequence[str] = (),
) -> Windows:
    """The windows of a source's signals: for training one from every moment, for testing one every `stride`.

    Where there is no test part, the last fifth of the time is; no window has moments of both. A window's label is the
    largest of its moments' labels; labels that are no numbers rank by how rare they are.

    Args:
        train, test: signals, or what becomes one.
        labels: of their moments.
        source: for the messages.
        window: moments, or "auto" for the period of the training part.
        stride: by default a sixteenth of the window.
        seed: of the moments that training windows begin at, where they are too many for memory.
        time, keep: of a table, the clock, and columns that are channels whatever they look like.

    Raises:
        DataError: a signal is a stream, shorter than two windows, or not one.
        ConfigError: a window or stride that can't be.
    """
    if isinstance(window, str) and window != "auto":
        raise ConfigError(f"The window is {window!r}; expected a number of moments, or auto.")
    codes, classes = _coded(labels, source)
    named = {} if isinstance(train, np.ndarray | Signal | Stream) else {"time": time, "keep": keep}
    whole = _signal(train, codes[0], source, **named)
    end, later = 0, None if test is None else _signal(test, codes[1], source, **named)
    if later is None:
        end = len(whole.values) - max(0 if isinstance(window, str) else window, len(whole.values) // 5)
        whole, later = whole.part(0, max(end, 1)), whole.part(max(end, 1), len(whole.values))
    if isinstance(window, str):
        window = _auto(whole, later, source)
    step = None if whole.times is None or len(whole.times) < 2 else spacing(whole.times)
    framing = Framing(window, max(1, window // 16) if stride is None else stride, whole.rate, step)
    longest = [max((hi - lo for lo, hi in part.stretches), default=0) for part in (whole, later)]
    if min(longest) < window:
        moments = len(whole.values) + (0 if test is not None else len(later.values))
        shape = (moments, whole.values.shape[1])
        gaps = "" if len(whole.begins) == 1 else f", {max(longest)} at most without a gap"
        raise DataError(
            f"{source} has {moments} moments (its shape is {shape}){gaps}; expected {2 * window} at least: one window "
            f"of {window} to train on, and one to test. Choose a smaller window."
        )
    for part, name in ((whole, "training"), (later, "test")):
        short = [hi - lo for lo, hi in part.stretches if hi - lo < window]
        if short:
            say(
                f"{source}: left out {len(short)} stretches of the {name} part, {sum(short):,} moments, that are "
                f"shorter than the window of {window}."
            )
    rows = signals.starts(len(whole.values), window, 1, whole.begins)
    most = max(1, WINDOW_BYTES // whole.values[:window].nbytes)
    if len(rows) > most:
        say(f"{source}: trains on windows from {most:,} of its {len(rows):,} moments, drawn at random.")
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[:most])
    tested = signals.starts(len(later.values), window, framing.stride, later.begins)

    def largest(part: Signal, first: np.ndarray) -> np.ndarray | None:
        return None if part.labels is None else signals.windows_at(part.labels, first, window).max(axis=1)

    return Windows(
        train=signals.windows_at(whole.values, rows, window),
        test=signals.windows_at(later.values, tested, window),
        train_labels=largest(whole, rows),
        test_labels=largest(later, tested),
        classes=classes,
        train_rows=rows,
        test_rows=end + tested,
        signals=(whole, later),
        framing=framing,
    )


def period(values: Float[np.ndarray, "time channels"]) -> int | None:
    """The period of a signal, in moments: the first of the high peaks of its autocorrelation; None without one.

    What changes more slowly than over a quarter of the signal is taken out first.
    """
    from scipy.ndimage import uniform_filter1d
    from scipy.signal import find_peaks

    values = values[-20 * AUTO_LAGS :].astype(np.float64)
    length = len(values)
    slow = max(3, length // 4)
    values = values - uniform_filter1d(values, slow, axis=0, mode="nearest")
    size = 2 ** int(np.ceil(np.log2(2 * length)))
    power = np.abs(np.fft.rfft(values, size, axis=0)) ** 2
    lags = min(AUTO_LAGS, length // 3)
    products = np.fft.irfft(power, size, axis=0)[:lags]
    keep = products[0] > 1e-12
    if not keep.any() or lags < 8:
        return None
    correlation = (products[:, keep] / products[0, keep]).mean(axis=1) * length / (length - np.arange(lags))
    peaks, about = find_peaks(correlation, prominence=0.1)
    if not len(peaks) or correlation[peaks].max() < 0.2:
        return None
    high = peaks[(correlation[peaks] > 0.85 * correlation[peaks].max()) & (about["prominences"] > 0.1)]
    return int(high[0])


def read(path: pathlib.Path, *, columns: Sequence[str] | None = None, step: float | None = None) -> Signal:
    """The signal of a file or folder: see `of_table` and `read_folder`.

    Raises:
        DataError: it can't be read, or holds no signal.
    """
    if path.is_dir():
        return read_folder(path, columns=columns, step=step)
    known = formats.find(path)
    if known is None or known.kind == "image":
        raise DataError(f"{path} is no signal; expected {formats.listed('signal', 'array', 'table')}.")
    content = known.read(path)
    if known.kind == "array":
        return of_array(content.train, path)
    if known.kind == "table":
        return of_table(tables.checked(content, path), path, columns=columns, step=step)
    return content


def read_folder(folder: pathlib.Path, *, columns: Sequence[str] | None = None, step: float | None = None) -> Signal:
    """The recordings of a folder, one after the other: files of one kind of signal, array or table, by their names.

    Raises:
        DataError: there are none, or they have other channels or rates.
    """
    made = []
    for path in _files(folder, "signal", "array", "table"):
        signal = read(path, columns=columns, step=step)
        name = path.relative_to(folder).as_posix()
        made.append(signal._replace(files=(name,) * len(signal.begins)))
    if not made:
        raise DataError(f"{folder} holds no recordings; expected {formats.listed('signal', 'array', 'table')}.")
    if any(signal.times is None for signal in made):
        made = [signal._replace(times=None) for signal in made]
    say(
        f"{folder}: {len(made)} recordings, of {min(len(s.values) for s in made):,} to "
        f"{max(len(s.values) for s in made):,} moments."
    )
    return joined(made, folder)


def is_folder(path: pathlib.Path) -> bool:
    """Whether it is a folder with recordings, and no images."""
    return path.is_dir() and bool(_files(path, "signal", "array", "table")) and not _files(path, "image")


def _files(folder: pathlib.Path, *kinds: formats.Kind) -> list[pathlib.Path]:
    """The files in a folder, at any depth, that are of these kinds, by their names."""
    endings = formats.suffixes(*kinds)
    found = (path for path in folder.rglob("*") if path.suffix.lower() in endings and path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _signal(
    x: "np.ndarray | pd.DataFrame | Signal | Stream", labels: np.ndarray | None, source: object, **named: Any
) -> Signal:
    if isinstance(x, Stream):
        raise DataError(f"{source} is too large to be cut into windows: cut it first, and save the windows as .npy.")
    if isinstance(x, Signal):
        return x
    length = x.shape[0]
    if labels is not None and len(labels) != length:
        raise DataError(f"{source}: there are {len(labels)} labels; expected a number for each of {length} moments.")
    return of_array(x, source, labels) if isinstance(x, np.ndarray) else of_table(x, source, labels=labels, **named)


def _coded(
    labels: tuple[np.ndarray | None, np.ndarray | None], source: object
) -> tuple[list[np.ndarray | None], tuple[str, ...] | None]:
    """Labels of moments as numbers, the larger the stranger, and what they stand for where they were texts."""
    given = [None if part is None else np.asarray(part).reshape(-1) for part in labels]
    texts = [part.astype(str) for part in given if part is not None and part.dtype.kind not in "buif"]
    if not texts:
        return given, None
    names, counts = np.unique(np.concatenate(texts), return_counts=True)
    if len(names) > 50:
        raise DataError(f"{source}: the labels have {len(names)} different values; expected a few classes.")
    classes = names[np.argsort(-counts, kind="stable")]
    place = {name: i for i, name in enumerate(classes.tolist())}
    codes = [None if part is None else np.array([place[str(value)] for value in part]) for part in given]
    return codes, tuple(classes.tolist())


def fitting_window(train: Signal, shortest: int) -> int:
    """The window of "auto": whole periods, as many as have LEAST_WINDOW moments, a third of the shortest at most."""
    return _fitting(train, shortest)[0]


def _fitting(train: Signal, shortest: int) -> tuple[int, int | None]:
    lo, hi = max(train.stretches, key=lambda stretch: stretch[1] - stretch[0])
    found = period(train.values[lo:hi])
    window = LEAST_WINDOW if found is None else math.ceil(LEAST_WINDOW / found) * found
    return max(2, min(window, min(hi - lo, shortest) // 3)), found


def _auto(train: Signal, test: Signal, source: object) -> int:
    window, found = _fitting(train, max(hi - lo for lo, hi in test.stretches))
    why = "no period was found" if found is None else f"the period is {found}"
    say(f"{source}: the window is {window} moments ({why}).")
    return window


def spacing(times: Times) -> float:
    """The step of a clock at equal steps: seconds of dates, or what its numbers count."""
    seconds = _seconds(times)
    return float(np.median(np.diff(seconds))) if len(seconds) > 1 else 1.0


def _clock(
    frame: "pd.DataFrame", source: object, columns: Sequence[str] | None, time: str | None, keep: Sequence[str]
) -> tuple[str | None, tuple[str, ...]]:
    """The column that says when the rows were, and all that are no measurements.

    Of new data, whose `columns` are known, the clock may have another name than in training.
    """
    if frame.shape[1] == 1:
        return None, ()
    if columns is None:
        found = roles.find(frame, source, time=time, keep=keep)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = roles.find(frame, source, keep=[name for name in columns if name in frame.columns])
    clock = found.time
    for name in found.ids if clock is None else ():
        values = frame[name].to_numpy()
        if values.dtype.kind in "iuf" and bool((np.diff(values.astype(float)) > 0).all()):
            clock = name
            break
    if clock is None:
        clock = next((name for name in frame.columns if _rises_by_sensor(frame, name)), None)
        return clock, (*found.left_out, *([] if clock is None else [clock]))
    return clock, found.left_out


def _rises_by_sensor(frame: "pd.DataFrame", name: str) -> bool:
    """Whether numbers that a clock's name is given to rise again and again, once for each value of another column."""
    if _CLOCK.search(name.lower()) is None or frame[name].dtype.kind not in "iuf":
        return False
    falls = int((np.diff(frame[name].to_numpy(float)) < 0).sum())
    return falls > 0 and any(frame[other].nunique() == falls + 1 for other in frame.columns if other != name)


def _channels(frame: "pd.DataFrame", source: object, columns: Sequence[str] | None) -> Signal:
    columns = tuple(frame.columns if columns is None else columns)
    if absent := [name for name in columns if name not in frame.columns]:
        raise DataError(f"{source}: {unknown('column', absent[0], frame.columns)}")
    values = np.stack([numbers(cast("pd.Series", frame[name]), source) for name in columns], axis=1)
    return Signal(values.astype(np.float32), columns=columns)


def _of_long_format(
    frame: "pd.DataFrame", times: Times, source: object, columns: Sequence[str] | None, step: float | None
) -> Signal | None:
    """The signal of a table with a row for each moment and sensor; None of any other table."""
    import pandas as pd

    if len(np.unique(times)) > 0.6 * len(times):
        return None
    for name in frame.columns:
        sensor = cast("pd.Series", frame[name])
        groups = sensor.nunique()
        if pd.api.types.is_float_dtype(sensor.dtype) or not 2 <= groups <= max(2, len(frame) // 10):
            continue
        keys = pd.DataFrame({"time": times, "sensor": sensor.to_numpy()})
        if bool(keys.duplicated().to_numpy().any()):
            continue
        measured = [other for other in frame.columns if other != name]
        parts = dict(iter(frame.assign(**{"\0time": times}).groupby(name, sort=True)))
        together = len(np.unique(times)) * groups < 1.5 * len(times)
        if together:
            wide = frame[measured].set_axis(pd.MultiIndex.from_frame(keys)).unstack("sensor")
            wide.columns = [str(group) if len(measured) == 1 else f"{what} {group}" for what, group in wide.columns]
            say(f"{source}: {name!r} tells {groups} sensors apart, which are the channels.")
            index = wide.index.to_numpy()
            signal = _channels(cast("pd.DataFrame", wide), source, columns or tuple(wide.columns))
            return _regular(signal, index, None, source, step)
        say(f"{source}: {name!r} tells {groups} recordings apart, whose times differ.")
        cut = [(cast("pd.DataFrame", part[measured]), part["\0time"].to_numpy()) for part in parts.values()]
        made = [_regular(_channels(part, source, columns), when, None, source, step) for part, when in cut]
        named = [
            signal._replace(files=(str(group),) * len(signal.begins)) for group, signal in zip(parts, made, strict=True)
        ]
        return joined(named, source)
    return None


def _seconds(times: Times) -> Float[np.ndarray, " time"]:
    if times.dtype.kind == "M":
        return (times - times[0]) / np.timedelta64(1, "s")
    return times.astype(np.float64)


def _regular(signal: Signal, times: Times, labels: np.ndarray | None, source: object, step: float | None) -> Signal:
    """The signal at equal steps of its clock, cut at gaps, with a line on what was changed."""
    if len(times) < 3:
        return _without_missing(signal._replace(labels=labels, times=times), source)
    seconds = _seconds(times)
    if (np.diff(seconds) < 0).any():
        order = np.argsort(seconds, kind="stable")
        say(f"{source}: its rows are not in order of time; they were put in order.")
        seconds, times, signal = seconds[order], times[order], signal._replace(values=signal.values[order])
        labels = None if labels is None else labels[order]
    if (twice := np.diff(seconds, prepend=-np.inf) == 0).any():
        if twice.mean() > 0.5:  # a clock too coarse for the sampling says nothing of it
            say(f"{source}: most of its times are repeated, so they are not used: the rows are taken to be even.")
            return _without_missing(signal._replace(labels=labels, times=times), source)
        say(f"{source}: left out {twice.sum():,} rows whose time is another's.")
        seconds, times, signal = seconds[~twice], times[~twice], signal._replace(values=signal.values[~twice])
        labels = None if labels is None else labels[~twice]
    steps = np.diff(seconds)
    usual = float(np.median(steps))
    off = np.abs(steps / usual - np.rint(steps / usual))
    even = np.mean(off < EVEN) > 0.95
    wanted = usual if step is None or abs(step / usual - 1) < EVEN else step
    gap = (FILLED + 1.5) * usual if even else max(10 * float(np.mean(steps)), 2 * float(np.quantile(steps, 0.999)))
    cuts = np.flatnonzero(steps > gap) + 1
    signal = signal._replace(labels=labels, times=times)
    if even and wanted == usual and not ((steps > 1.5 * usual) & (steps <= gap)).any():
        signal = signal._replace(begins=(0, *map(int, cuts)))
    else:
        if not even:
            say(
                f"{source}: its moments are not evenly spaced; they are interpolated at steps of {_said(usual, times)}."
            )
        elif wanted != usual:
            say(f"{source}: its steps of {_said(usual, times)} become {_said(wanted, times)}, as in training.")
        else:
            missing = int(np.sum(np.rint(steps[(steps > 1.5 * usual) & (steps <= gap)] / usual) - 1))
            say(f"{source}: {missing:,} moments are missing, {FILLED} in a row at most; they are interpolated.")
        signal = _resampled(signal, seconds, cuts, wanted)
    if len(cuts):
        first = times[cuts[0]]
        say(
            f"{source}: its times have {len(cuts)} gaps longer than {_said(gap, times)}, the first before "
            f"{_moment(first)}. It is cut there: no window lies on both sides."
        )
    return _without_missing(signal, source)


def _resampled(
    signal: Signal, seconds: Float[np.ndarray, " time"], cuts: Int[np.ndarray, " cuts"], step: float
) -> Signal:
    """Each part between cuts, linearly interpolated at equal steps; labels are those of the nearest moment."""
    bounds = [0, *map(int, cuts), len(seconds)]
    values, labels, times, begins = [], [], [], []
    step = max(step, (seconds[-1] - seconds[0]) / (MOST_RESAMPLED * len(seconds)))
    for lo, hi in itertools.pairwise(bounds):
        at = seconds[lo] + step * np.arange(int((seconds[hi - 1] - seconds[lo]) / step + 1e-6) + 1)
        begins.append(sum(map(len, times)))
        values.append(
            np.stack([np.interp(at, seconds[lo:hi], v) for v in signal.values[lo:hi].T.astype(float)], axis=1)
        )
        nearest = lo + np.clip(np.searchsorted((seconds[lo:hi][1:] + seconds[lo:hi][:-1]) / 2, at), 0, hi - lo - 1)
        if signal.labels is not None:
            labels.append(signal.labels[nearest])
        times.append(_at(signal.times, seconds, at))
    return signal._replace(
        values=np.concatenate(values).astype(np.float32),
        labels=np.concatenate(labels) if labels else None,
        times=np.concatenate(times),
        begins=tuple(begins),
    )


def _at(
    times: Times | None, seconds: Float[np.ndarray, " time"], at: Float[np.ndarray, " moments"]
) -> Shaped[np.ndarray, " moments"]:
    if times is None or times.dtype.kind != "M":
        return at
    return times[0] + np.rint((at - seconds[0]) * 1e9).astype("timedelta64[ns]")


def _without_missing(signal: Signal, source: object) -> Signal:
    """The signal without values that are missing: short gaps interpolated, longer ones cut at, with a line."""
    bad = ~np.isfinite(signal.values)
    if not bad.any():
        return signal
    empty: Bool[np.ndarray, " channels"] = np.asarray(bad.all(axis=0))
    if empty.any():
        which = [str((signal.columns or range(len(empty)))[i]) for i in np.flatnonzero(empty)]
        raise DataError(f"{source}: the channels {', '.join(which)} hold no values. Leave them out.")
    values = signal.values.astype(np.float32)
    filled, usable = 0, np.ones(len(values), bool)
    for lo, hi in signal.stretches:
        short = np.zeros((hi - lo, values.shape[1]), bool)
        for channel in range(values.shape[1]):
            missing = bad[lo:hi, channel]
            for first, last in signals.runs(missing):
                if first > 0 and last < hi - lo and last - first <= FILLED:
                    short[first:last, channel] = True
            here = np.flatnonzero(short[:, channel])
            if len(here):
                known = np.flatnonzero(~missing)
                values[lo + here, channel] = np.interp(here, known, values[lo + known, channel])
        filled += int(short.sum())
        usable[lo:hi] = ~(bad[lo:hi] & ~short).any(axis=1)
    if not usable.any():
        raise DataError(f"{source}: no moment has a value of every channel. Leave the emptiest channels out.")
    said = [f"{filled:,} are interpolated"] if filled else []
    if (left := int(np.sum(~usable))) > 0:
        said.append(
            f"{left:,} moments are left out, more than {FILLED} in a row or at an end, and no window lies on both sides"
        )
    say(f"{source}: {np.sum(bad):,} values are missing or not finite; {'; '.join(said)}.")
    times = np.arange(len(values)) if signal.times is None and left else signal.times
    return signal._replace(values=values, times=times).where(usable)


def _said(step: float, times: Times) -> str:
    if times.dtype.kind != "M":
        return f"{step:.4g}"
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds")):
        if step >= size:
            return f"{step / size:.4g} {unit}"
    return f"{1000 * step:.4g} ms"


def _moment(time: object) -> str:
    return str(np.datetime_as_string(time, unit="s")) if isinstance(time, np.datetime64) else f"{time:g}"
