"""Which columns of a table say what a row is about (its name, its number, its time), and are no measurements of it.

A counter learnt from as a measurement makes every new row strange: it lies beyond all that was seen. Such columns are
found, left out with a line, and carried along to what is written of each row.
"""

import dataclasses
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Shaped

from flaxae.data.delimited import is_number
from flaxae.errors import ConfigError, DataError, unknown

if TYPE_CHECKING:
    import pandas as pd

FEWEST = 10  # rows in which order or uniqueness are no chance
CHANCE = 1e-3  # of distinct whole numbers being so by accident, below which they are names
EPOCHS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}  # units of numbers that count from 1970
_EPOCH = (3e8, 4.2e9)  # in seconds: 1979 to 2103
_CLOCK = re.compile(r"(^|[^a-z])(time|timestamp|ts|date|datetime|epoch|clock|when|seconds)([^a-z]|$)")
_NAME = re.compile(
    r"(^|[^a-z])(id|uid|uuid|guid|key|index|idx|serial|no|nr|number|row|record)([^a-z]|$)", re.IGNORECASE
)
_DATE = re.compile(
    r"""\d{4}([-/.])\d{1,2}\1\d{1,2}([T\ ]\s*\d{1,2}:\d{2}.*)?   # 2020-01-31, 2020-01-31T12:00:00Z
    | \d{1,2}([-/.])\d{1,2}\3(\d{4}|\d{2})(,?[T\ ]\s*\d{1,2}:\d{2}.*)?   # 31.1.2020, 1/31/20 12:00
    | (\d{1,2}[-\ ])?(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*[-\ .]+(\d{1,2},?\ )?\d{2,4}(\ .*)?
    | \d{1,2}:\d{2}(:\d{2}([.,]\d+)?)?(\ ?[ap]m)?   # 12:00:00""",
    re.VERBOSE | re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Roles:
    """The columns of a table that are not learnt from, though its rows carry them along."""

    time: str | None = None
    ids: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    @property
    def carried(self) -> tuple[str, ...]:
        """The columns that are written beside what is found of each row: the time, then the names."""
        return (*([] if self.time is None else [self.time]), *self.ids)

    @property
    def left_out(self) -> tuple[str, ...]:
        """All columns that are not learnt from."""
        return (*self.carried, *self.dropped)

    def of(self, frame: "pd.DataFrame") -> dict[str, Shaped[np.ndarray, " rows"]]:
        """The carried columns of a table by their names; a new one may lack them."""
        return {name: frame[name].to_numpy(object) for name in self.carried if name in frame.columns}

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return {"time": self.time, "ids": list(self.ids), "dropped": list(self.dropped)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Roles":
        """The inverse of `to_dict`.

        Raises:
            ConfigError: a field is missing, unknown, or has a value that no roles can have.
        """
        if not isinstance(fields, Mapping) or set(fields) != {"time", "ids", "dropped"}:
            raise ConfigError(f"Roles of columns are {fields!r}; expected the fields time, ids and dropped.")
        time, lists = fields["time"], (fields["ids"], fields["dropped"])
        named = all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists)
        if not named or not isinstance(time, str | None):
            raise ConfigError(f"Roles of columns are {fields!r}, which are no names of columns.")
        return cls(time, *map(tuple, lists))


def find(
    frame: "pd.DataFrame",
    source: object = "The table",
    *,
    time: str | None = None,
    ids: Sequence[str] = (),
    drop: Sequence[str] = (),
    keep: Sequence[str] = (),
) -> Roles:
    """The roles that the columns of a table play, as given, and as found in the others, with a line on those.

    Found are dates and times; counters and clocks, numbers that only rise or only fall; names, whole numbers or texts
    of which no two rows have the same; and free text, of which hardly any two rows have the same.

    Args:
        frame: with texts for the names of its columns.
        source: for the messages.
        time, ids, drop: columns with these roles.
        keep: columns to learn from, whatever they look like.

    Raises:
        DataError: there is no such column, one is kept that holds dates, or nothing would be left.
    """
    for flag, names in (("time", [time] if time else []), ("id", ids), ("drop", drop), ("keep", keep)):
        for name in names:
            if name not in frame.columns:
                raise DataError(f"{source}: {unknown(f'column for {flag}', name, frame.columns)}")
    given = {*ids, *drop, *([time] if time else [])}
    others = {str(name): column for name, column in frame.items() if name not in given | {*keep}}
    found = {name: why for name, column in others.items() if (why := _role(column))}
    times = [name for name, why in found.items() if why.startswith(("dates", "a clock"))]
    time = time or next(iter(times), None)
    names = [name for name in found if name != time]
    rest = [name for name in frame.columns if name not in given | {*found}]
    if not rest:  # what is measured may rise all the time
        names = [name for name in names if found[name] != "a counter"]
        rest = [name for name in frame.columns if name not in {*given, *names, time}]
    if not rest:
        raise DataError(
            f"{source} holds nothing to learn from: {', '.join(map(repr, names)) or time} only say what a row is about."
            " To learn from a column all the same, keep it: --keep NAME."
        )
    if said := [f"{name!r}, {found[name]}" for name in found if name == time or name in names]:
        warnings.warn(f"{source}: not learnt from: {'; '.join(said)} (--keep NAME does).", stacklevel=3)
    return Roles(time, (*ids, *names), tuple(drop))


def moments(column: "pd.Series", source: object = "The table") -> Shaped[np.ndarray, " rows"]:
    """A column of dates, times or epochs as datetime64[ns], or of other numbers as float64; NaT and NaN where missing.

    31.1.2020 and 31/1/2020 have the day first if one of the column's dates shows it, or points separate them; dates
    with zones are turned to UTC.

    Raises:
        DataError: some of the values are no times.
    """
    import pandas as pd

    kind = pd.api.types.infer_dtype(column, skipna=True)
    if pd.api.types.is_numeric_dtype(column.dtype):
        values = column.to_numpy(np.float64, na_value=np.nan)
        unit = _epoch_unit(values)
        return values if unit is None else (values * (EPOCHS["ns"] // EPOCHS[unit])).astype("datetime64[ns]")
    if kind == "period":
        column = column.dt.to_timestamp()
    if "timedelta" in kind:
        return column.to_numpy("timedelta64[ns]") / np.timedelta64(1, "s")
    text = column.astype(str).str.strip() if kind == "string" else column
    if kind == "string":
        text = text.mask(column.isna())
        first = text.str.extract(r"^(\d{1,2})([-/.])(\d{1,2})\2\d{2,4}")
        day_first = bool((first[0].astype(float) > 12).any() or (first[1] == ".").any())
    else:
        day_first = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of formats that it guesses
            made = pd.to_datetime(text, dayfirst=day_first, utc=True, format=None if kind != "string" else "mixed")
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{source}: the column {column.name!r} holds what is no time: {error}.") from error
    return made.dt.tz_localize(None).to_numpy("datetime64[ns]")


def is_date(column: "pd.Series") -> bool:
    """Whether a column holds dates or times, of a type of their own or as text."""
    import pandas as pd

    kind = pd.api.types.infer_dtype(column, skipna=True)
    if kind != "string":
        return any(word in kind for word in ("date", "time", "period"))
    sample = [str(value).strip() for value in column.dropna().unique()[:100]]
    return bool(sample) and all(map(_DATE.fullmatch, sample))


def _role(column: "pd.Series") -> str | None:
    """In words, what a column holds that is no measurement; None of one that is."""
    import pandas as pd

    if is_date(column):
        return "dates or times"
    present = column.dropna()
    if len(present) < FEWEST or pd.api.types.is_bool_dtype(column.dtype):
        return None
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", str(column.name)).lower()
    try:
        distinct = present.nunique()
    except TypeError:  # lists and the like, which are refused elsewhere
        return None
    if not pd.api.types.is_numeric_dtype(column.dtype):
        kind = pd.api.types.infer_dtype(present)
        if kind not in ("string", "mixed-integer") or isinstance(column.dtype, pd.CategoricalDtype):
            return None
        if sum(map(is_number, present.unique()[:100].tolist())) > min(distinct, 100) / 2:
            return None  # which is refused elsewhere, as it should be numbers
        if distinct == len(present):
            return "names of rows, of which no two are the same"
        return f"text, {distinct} different ones in {len(present)} rows" if distinct > len(present) / 2 else None
    values = present.to_numpy(np.float64)
    if not np.isfinite(values).all():
        return None
    steps = np.diff(values)
    monotone = (steps >= 0).all() or (steps <= 0).all()
    strictly = distinct == len(values)
    if _epoch_unit(values) is not None and (monotone or _CLOCK.search(name)) and distinct > FEWEST:
        return "a clock"
    ticks = distinct > FEWEST and _ticks(values)
    if monotone and (strictly or distinct > len(values) / 2 or ticks):
        return "a clock" if _CLOCK.search(name) else "a counter"
    if _CLOCK.search(name) and ticks:
        return "a clock"
    if strictly and (values == np.rint(values)).all():
        # Distinct by chance with probability exp(−n(n − 1) / 2R) at most, of n values in a range of R.
        by_chance = np.exp(-len(values) * (len(values) - 1) / (2 * (np.ptp(values) + 1)))
        if by_chance < CHANCE or _NAME.search(name):
            return "names of rows, of which no two are the same"
    return None


def _ticks(values: Shaped[np.ndarray, " rows"]) -> bool:
    """Whether numbers rise again and again, each staying for about as many rows; seldom one begins anew."""
    steps = np.diff(values)
    back = (steps < 0).sum()
    if min(back, (steps > 0).sum()) > len(values) / 100:
        return False
    runs = np.diff(np.flatnonzero(np.concatenate([[True], steps != 0, [True]])))
    return bool(runs.std() < 0.5 * runs.mean() + 0.5)


def _epoch_unit(values: Shaped[np.ndarray, " rows"]) -> str | None:
    """The unit in which numbers count from 1970, if they can."""
    present = values[np.isfinite(values)]
    for unit, a_second in EPOCHS.items():
        if len(present) and _EPOCH[0] * a_second <= present.min() and present.max() <= _EPOCH[1] * a_second:
            return unit
    return None
