"""Encode tables of numbers and categories, with missing values, as numeric features; and back.

A column of numbers becomes one feature. If values are missing, they are filled with the median of the training part,
and a second feature marks them. A column of categories becomes a feature for each frequent category, one for all other
categories, seen in training or not, and one for missing values if there are any.
"""

import dataclasses
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from flaxae.data.parts import as_examples
from flaxae.data.scaling import is_finite_number
from flaxae.errors import ConfigError, DataError, unknown

if TYPE_CHECKING:
    import pandas as pd

MAX_CATEGORIES = 32  # the most categories of a column that have a feature of their own
OTHER = "other"
_NUMBERS = ("integer", "floating", "mixed-integer-float", "decimal", "empty")  # as pandas' infer_dtype calls them
_CATEGORIES = ("string", "boolean", "categorical", "mixed-integer")
_DATE = re.compile(
    r"""\d{4}([-/.])\d{1,2}\1\d{1,2}([T\ ]\d{1,2}:\d{2}.*)?   # 2020-01-31, 2020-01-31T12:00:00Z
    | \d{1,2}([-/.])\d{1,2}\3(\d{4}|\d{2})([T\ ]\d{1,2}:\d{2}.*)?   # 31.1.2020, 1/31/20 12:00
    | (\d{1,2}[-\ ])?(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*[-\ .]+(\d{1,2},?\ )?\d{2,4}  # 31 Jan 2020
    | \d{1,2}:\d{2}(:\d{2}(\.\d+)?)?(\ ?[ap]m)?   # 12:00:00""",
    re.VERBOSE | re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Column:
    """The encoding of one column, of numbers or of `categories`, and of its missing values."""

    name: str
    categories: tuple[str, ...] | None = None  # those with a feature of their own; None: the column holds numbers
    missing: bool = False  # whether a feature marks missing values; without one, missing numbers are refused
    fill: float = 0.0  # the number that replaces missing ones

    @property
    def features(self) -> tuple[str, ...]:
        """The features' names, such as "age", "age missing", "country=DE", "country=other"."""
        values = self.name if self.categories is None else [f"{self.name}={c}" for c in (*self.categories, OTHER)]
        return (*([values] if isinstance(values, str) else values), *([f"{self.name} missing"] if self.missing else []))


@dataclasses.dataclass(frozen=True)
class Encoding:
    """What the columns of a table hold, and so which features they become. It is fitted on the training part."""

    columns: tuple[Column, ...]

    @classmethod
    def fit(cls, frame: "pd.DataFrame", train: Int[np.ndarray, " rows"], source: object = "The table") -> "Encoding":
        """The encoding of a table, fitted on its training rows. Missing values are looked for in all rows, though.

        `source` is for the messages, here and below.

        A column without values is left out, with a warning. A category has a feature of its own if it is one of the
        MAX_CATEGORIES most frequent and occurs at least twice.

        Raises:
            DataError: a column holds dates, or neither numbers nor categories, such as a different name in each row.
        """
        empty = [name for name in frame.columns if frame[name].iloc[train].isna().all()]
        if len(empty) == frame.shape[1]:
            raise DataError(f"{source} holds no values: all of its columns are empty.")
        if empty:
            warnings.warn(f"{source}: left out {_quoted(empty)}, which hold no values to learn from.", stacklevel=3)
        return cls(tuple(_fitted(column, train, source) for name, column in frame.items() if name not in empty))

    @classmethod
    def of_numbers(cls, columns: Sequence[str]) -> "Encoding":
        """The encoding of columns of numbers without missing values, which leaves them as they are."""
        return cls(tuple(map(Column, columns)))

    @property
    def is_plain(self) -> bool:
        """Whether the features are the columns as they are."""
        return self == Encoding.of_numbers(tuple(column.name for column in self.columns))

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the features."""
        return tuple(name for column in self.columns for name in column.features)

    @property
    def groups(self) -> tuple[str, ...]:
        """For each feature, the column that it comes from."""
        return tuple(column.name for column in self.columns for _ in column.features)

    @property
    def indicators(self) -> Bool[np.ndarray, " features"]:
        """Which features are indicators: 0 or 1, for a category or for missing values."""
        return np.array([name != column.name for column in self.columns for name in column.features])

    def __call__(self, frame: "pd.DataFrame", source: object = "The table") -> Float[np.ndarray, " rows features"]:
        """The features of a table's rows, float32. Its columns may be in any order; others are ignored.

        Missing values are filled as in training, with a warning that counts them. A category that was not frequent
        in training is encoded as "other".

        Raises:
            DataError: a column is missing or not numeric, a number is infinite, or a number is missing in a column that
                had no missing values in training.
        """
        frame = frame.set_axis(frame.columns.map(str), axis=1)
        absent = [column.name for column in self.columns if column.name not in frame.columns]
        if absent:
            more = f" Missing too: {_quoted(absent[1:])}." if absent[1:] else ""
            raise DataError(f"{source}: {unknown('column', absent[0], frame.columns)}{more}")
        series = dict(frame.items())
        values = np.zeros((len(frame), len(self.features)), np.float32)
        starts = np.cumsum([0, *(len(column.features) for column in self.columns)])
        for column, start, end in zip(self.columns, starts, starts[1:], strict=False):
            _encode(column, series[column.name], values[:, start:end], source)
        values = as_examples(values, str(source), self.features)
        said = [
            _said(column, int(series[column.name].isna().to_numpy().sum())) for column in self.columns if column.missing
        ]
        if said := [line for line in said if line]:
            warnings.warn(f"{source}: values are missing. {'; '.join(said)}.", stacklevel=3)
        return values

    def undo(self, values: Float[np.ndarray, " rows features"]) -> "pd.DataFrame":
        """The table of these features, with the likeliest category of each column; empty if "missing" is likelier.

        Raises:
            DataError: `values` doesn't have one column per feature.
        """
        import pandas as pd

        if values.ndim != 2 or values.shape[1] != len(self.features):
            raise DataError(f"The table has shape {values.shape}; expected [rows, {len(self.features)}].")
        ends = np.cumsum([len(column.features) for column in self.columns])
        parts = np.split(values, ends[:-1], axis=1)
        return pd.DataFrame({c.name: _decoded(c, part) for c, part in zip(self.columns, parts, strict=True)})

    def to_dict(self) -> dict[str, Any]:
        """The fields as values that JSON can hold."""
        categories = [None if column.categories is None else list(column.categories) for column in self.columns]
        columns = zip(map(dataclasses.asdict, self.columns), categories, strict=True)
        return {"columns": [column | {"categories": names} for column, names in columns]}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Encoding":
        """The inverse of `to_dict`.

        Raises:
            ConfigError: a field is missing, unknown, or has a value that no encoding can have.
        """
        columns = fields.get("columns") if isinstance(fields, Mapping) and len(fields) == 1 else None
        if not isinstance(columns, list) or not columns:
            raise ConfigError(f"An encoding is {fields!r}; expected a list of columns.")
        return cls(tuple(map(_column, columns)))


def numbers(column: "pd.Series", source: object) -> Float[np.ndarray, " rows"]:
    """The numbers of a column as float64, with NaN for missing ones.

    Raises:
        DataError: the column holds anything else; the message has the first such value, or says what to do with dates.
    """
    import pandas as pd

    _refuse_dates(column, pd.api.types.infer_dtype(column, skipna=True), source)
    try:
        return column.to_numpy(np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        present = column.reset_index(drop=True).dropna()
        row, value = next((row, value) for row, value in present.items() if not is_number(value))
        raise DataError(
            f"{source}: the column {column.name!r} is not numeric (such as {str(value)!r}, in row {row}, counted from "
            "0). Numbers were expected there."
        ) from error


def is_number(value: Any) -> bool:
    """Whether `value` is a number, or a text that can be read as one."""
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _fitted(column: "pd.Series", train: np.ndarray, source: object) -> Column:
    import pandas as pd

    kind = pd.api.types.infer_dtype(column, skipna=True)
    _refuse_dates(column, kind, source)
    missing = bool(column.isna().any())
    if kind in _NUMBERS:
        values = numbers(column, source)[train]
        return Column(str(column.name), None, missing, float(np.nanmedian(values)) if missing else 0.0)
    if kind not in _CATEGORIES:
        raise DataError(
            f"{source}: the column {column.name!r} holds neither numbers nor text (such as {column.dropna().iloc[0]!r})"
            ". Leave it out."
        )
    codes, texts = _factorized(column.iloc[train])
    counts = np.bincount(codes[codes >= 0], minlength=len(texts))
    _refuse_as_categories(column, texts, counts, source)
    frequent = sorted((-count, text) for text, count in zip(texts, counts.tolist(), strict=True) if count > 1)
    categories = [text for _, text in frequent if text != OTHER][:MAX_CATEGORIES]
    return Column(str(column.name), tuple(categories), missing)


def _encode(column: Column, values: "pd.Series", into: np.ndarray, source: object) -> None:
    """Write the column's features into `into`, [rows, features], which is all zeros."""
    missing = values.isna().to_numpy()
    if column.missing:
        into[:, -1] = missing
    if column.categories is None:
        with np.errstate(over="ignore"):  # overflows become infinite, which is checked below
            into[:, 0] = numbers(values, source)
        if column.missing:
            into[missing, 0] = column.fill
        return
    codes, texts = _factorized(values)
    index = {text: i for i, text in enumerate(column.categories)}
    absent = -1 if column.missing else len(index)  # missing values have code -1
    which = np.array([*(index.get(text, len(index)) for text in texts), absent])[codes]
    into[np.arange(len(which)), which] = 1


def _decoded(column: Column, values: np.ndarray) -> np.ndarray:
    if column.categories is None:
        missing = values[:, 1] > 0.5 if column.missing else np.zeros(len(values), bool)
        return np.where(missing, np.nan, values[:, 0])
    names = np.array([*column.categories, OTHER, *([None] if column.missing else [])], object)
    return names[values.argmax(axis=1)]


def _factorized(column: "pd.Series") -> tuple[np.ndarray, list[str]]:
    """Codes, -1 for missing values, and their categories, as text that doesn't depend on the types in the file."""
    import pandas as pd

    codes, uniques = pd.factorize(column)
    texts = [_text(value) for value in uniques]
    if len(set(texts)) == len(texts):
        return codes, texts
    distinct = list(dict.fromkeys(texts))  # 1 and "1" are one category
    places = {text: i for i, text in enumerate(distinct)}
    return np.array([places[text] for text in texts] + [-1], int)[codes], distinct


def _text(value: object) -> str:
    if isinstance(value, float | np.floating) and float(value).is_integer():  # 1 in a column with missing values
        return str(int(value))
    return str(value)


def _refuse_dates(column: "pd.Series", kind: str, source: object) -> None:
    if kind == "string":
        sample = [str(value).strip() for value in column.dropna().unique()[:100]]
        is_date = bool(sample) and all(map(_DATE.fullmatch, sample))
    else:
        sample, is_date = column.dropna()[:1].tolist(), any(word in kind for word in ("date", "time", "period"))
    if is_date:
        raise DataError(
            f"{source}: the column {column.name!r} holds dates or times (such as {str(sample[0])!r}). Turn it into "
            "numbers, such as the hour, the weekday or the seconds since the first row, or leave it out."
        )


def _refuse_as_categories(column: "pd.Series", texts: list[str], counts: np.ndarray, source: object) -> None:
    if len(texts) > 10 and sum(is_number(text.replace(",", "")) for text in texts) > len(texts) / 2:
        strange = next((text for text in texts if not is_number(text)), None)
        what = "numbers written as text" if strange is None else f"numbers, but also {strange!r}"
        raise DataError(
            f"{source}: the column {column.name!r} holds {what}. Write numbers as 1234.5, and nothing where one is "
            "missing; if they are codes of categories, put a letter before each."
        )
    if len(texts) > max(1, counts.sum() / 2):
        raise DataError(
            f"{source}: the column {column.name!r} has {len(texts)} different values in {counts.sum()} training rows "
            f"(such as {texts[0]!r}), so it names rows rather than kinds of them. Leave it out; if it is the class of "
            f"each row, name it: label={str(column.name)!r}."
        )


def _said(column: Column, count: int) -> str:
    if not count:
        return ""
    if column.categories is not None:
        return f"{column.name!r}: {count}, made a category of their own"
    return f"{column.name!r}: {count}, filled with the training median, {column.fill:.4g}, and marked"


def _quoted(names: list[str]) -> str:
    return ", ".join(map(repr, names))


def _column(fields: Any) -> Column:
    known = {field.name for field in dataclasses.fields(Column)}
    if not isinstance(fields, Mapping) or set(fields) != known:
        raise ConfigError(f"A column of an encoding is {fields!r}; expected the fields {', '.join(sorted(known))}.")
    name, categories, missing, fill = (fields[key] for key in ("name", "categories", "missing", "fill"))
    texts = [name, *(categories if isinstance(categories, list) else [])]
    is_right = isinstance(missing, bool) and is_finite_number(fill)
    if not is_right or not isinstance(categories, list | None) or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"A column of an encoding is {fields!r}, which is no column's.")
    return Column(name, None if categories is None else tuple(categories), missing, float(fill))
