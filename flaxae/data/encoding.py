"""Encode tables of numbers and categories, with missing values, as numeric features; and back.

A number stays one; a category is a feature for each of its values that are frequent, and one for the others, seen or
not. What is missing is filled with what the row's other values let expect (see `Filling`), and where values are missing
in training a feature beside it can mark it.
"""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from flaxae.data.delimited import is_number
from flaxae.data.filling import Filling
from flaxae.data.parts import as_examples
from flaxae.data.roles import is_date
from flaxae.data.scaling import is_finite_number
from flaxae.errors import ConfigError, DataError, unknown

if TYPE_CHECKING:
    import pandas as pd

MAX_CATEGORIES = 32  # the most categories of a column that have a feature of their own
TOLD = 6  # columns with gaps that a line names
OTHER = "other"
_NUMBERS = ("integer", "floating", "mixed-integer-float", "decimal", "empty")  # as pandas' infer_dtype calls them
_CATEGORIES = ("string", "boolean", "categorical", "mixed-integer")
CODES = (-99.0, -999.0, -9999.0, -99999.0, -99.9, -999.9, -99.99, -999.99, -9999.99)  # that mark missing values
Kind = Literal["real", "whole", "count", "text", "flag"]  # flags are True or False; counts are whole, from 0 on


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of numbers, or of `categories`."""

    name: str
    categories: tuple[str, ...] | None = None  # those with a feature of their own; None: the column holds numbers
    missing: bool = False  # there is a feature that marks missing values
    fill: float = 0.0  # the number that stands for them where nothing better is known
    kind: Kind = "real"  # of its values, as the table has them
    code: float | None = None  # a number that marks missing values, such as -999

    @property
    def features(self) -> tuple[str, ...]:
        """The features' names, such as "age", "age missing", "country=DE", "country=other"."""
        values = self.name if self.categories is None else [f"{self.name}={c}" for c in (*self.categories, OTHER)]
        return (*([values] if isinstance(values, str) else values), *([f"{self.name} missing"] if self.missing else []))


@dataclasses.dataclass(frozen=True)
class Encoding:
    """What the columns of a table hold, and so which features they become. It is fitted on the training part."""

    columns: tuple[Column, ...]
    filling: Filling | None = dataclasses.field(default=None, compare=False)

    @classmethod
    def fit(
        cls,
        frame: "pd.DataFrame",
        train: Int[np.ndarray, " rows"],
        source: object = "The table",
        *,
        marks: bool = True,
    ) -> "Encoding":
        """The encoding of a table, by its training rows; which columns have missing values, all rows decide.

        `source` is for the messages, here and below. Without `marks` there are no features for missing values.

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
        made = cls(tuple(_fitted(column, train, source, marks) for name, column in frame.items() if name not in empty))
        values = made._with_gaps(frame, source)
        as_examples(np.where(np.isnan(values), 0, values), str(source), made.features)
        values = values[train]
        values[:, made.marks] = 0.0  # which say that a value is unknown, and not what it may be
        return dataclasses.replace(made, filling=Filling.fit(values))

    @classmethod
    def of_numbers(cls, columns: Sequence[str]) -> "Encoding":
        """The encoding of columns of numbers without missing values, which leaves them as they are."""
        return cls(tuple(map(Column, columns)))

    @property
    def is_plain(self) -> bool:
        """Whether the features are the columns as they are."""
        return self.features == tuple(column.name for column in self.columns)

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

    @property
    def marks(self) -> Bool[np.ndarray, " features"]:
        """Which features mark missing values."""
        return np.array([i == len(c.features) - 1 and c.missing for c in self.columns for i in range(len(c.features))])

    def __call__(self, frame: "pd.DataFrame", source: object = "The table") -> Float[np.ndarray, " rows features"]:
        """The features of a table's rows, float32. Its columns may be in any order; others are ignored.

        Missing values are filled, with a warning that counts them. A category that was not frequent in training is
        "other".

        Raises:
            DataError: a column is missing, not numeric, or holds numbers that are infinite.
        """
        values = self._with_gaps(frame, source)
        gaps = self.gaps(frame)
        if gaps.any():
            if self.filling is None:  # of numbers that were never fitted
                as_examples(values.astype(np.float32), str(source), self.features)
            values = self._filled(values)
            counts = gaps.sum(axis=0)
            most = [i for i in np.argsort(-counts, kind="stable") if counts[i]]
            said = [_said(self.columns[i], int(counts[i])) for i in sorted(most[:TOLD])]
            if len(most) > TOLD:
                said.append(f"{len(most) - TOLD} more columns: {counts[most[TOLD:]].sum():,}, in the same way")
            warnings.warn(f"{source}: values are missing. {'; '.join(said)}.", stacklevel=3)
        return as_examples(values.astype(np.float32), str(source), self.features)

    def gaps(self, frame: "pd.DataFrame") -> Bool[np.ndarray, " rows columns"]:
        """Which values of the columns are missing."""
        series = dict(frame.set_axis(frame.columns.map(str), axis=1).items())
        return np.stack([_is_missing(column, series[column.name]) for column in self.columns], axis=1)

    def _with_gaps(self, frame: "pd.DataFrame", source: object) -> Float[np.ndarray, " rows features"]:
        """The features, NaN where what they tell of is missing."""
        frame = frame.set_axis(frame.columns.map(str), axis=1)
        absent = [column.name for column in self.columns if column.name not in frame.columns]
        if absent:
            more = f" Missing too: {_quoted(absent[1:])}." if absent[1:] else ""
            raise DataError(f"{source}: {unknown('column', absent[0], frame.columns)}{more}")
        series = dict(frame.items())
        values = np.zeros((len(frame), len(self.features)))
        starts = np.cumsum([0, *(len(column.features) for column in self.columns)])
        for column, start, end in zip(self.columns, starts, starts[1:], strict=False):
            _encode(column, series[column.name], values[:, start:end], source)
        return values

    def _filled(self, values: Float[np.ndarray, " rows features"]) -> Float[np.ndarray, " rows features"]:
        """Without NaN: what is expected, of a category a probability for each, of which those that can't be are 0."""
        filled = cast(Filling, self.filling)(values)
        return np.where(self.indicators & np.isnan(values), np.clip(filled, 0, 1), filled)

    def undo(self, values: Float[np.ndarray, " rows features"]) -> "pd.DataFrame":
        """The table of these features, with the likeliest category of each column; empty if "missing" is likelier.

        Whole numbers are whole again, counts not negative, and flags True or False.

        Raises:
            DataError: `values` doesn't have one column per feature.
        """
        import pandas as pd

        if values.ndim != 2 or values.shape[1] != len(self.features):
            raise DataError(f"The table has shape {values.shape}; expected [rows, {len(self.features)}].")
        ends = np.cumsum([len(column.features) for column in self.columns])
        parts = np.split(values, ends[:-1], axis=1)
        return pd.DataFrame({c.name: _decoded(c, part) for c, part in zip(self.columns, parts, strict=True)})

    def filled(
        self,
        frame: "pd.DataFrame",
        gaps: Bool[np.ndarray, " rows columns"],
        values: Float[np.ndarray, " rows features"],
    ) -> "pd.DataFrame":
        """The table with its gaps filled by what the features `values` tell, the likeliest named category for one."""
        values = np.where(self.marks, 0.0, values)
        for place, name in enumerate(self.features):
            if name == f"{self.groups[place]}={OTHER}":
                values[:, place] = -np.inf  # no value to fill in
        made = self.undo(values)
        filled = frame.set_axis(frame.columns.map(str), axis=1)
        for gone, column in zip(gaps.T, self.columns, strict=True):
            if gone.any():
                there = filled[column.name].to_numpy(object)
                filled[column.name] = np.where(gone, made[column.name].to_numpy(object), there)
        return filled.infer_objects().set_axis(frame.columns, axis=1)

    def to_dict(self) -> dict[str, Any]:
        """The fields as values that JSON can hold."""
        categories = [None if column.categories is None else list(column.categories) for column in self.columns]
        columns = zip(map(dataclasses.asdict, self.columns), categories, strict=True)
        filling = None if self.filling is None else self.filling.to_dict()
        return {"columns": [column | {"categories": names} for column, names in columns], "filling": filling}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Encoding":
        """The inverse of `to_dict`.

        Raises:
            ConfigError: a field is missing, unknown, or has a value that no encoding can have.
        """
        known = isinstance(fields, Mapping) and set(fields) <= {"columns", "filling"}
        columns = fields.get("columns") if known else None
        if not isinstance(columns, list) or not columns:
            raise ConfigError(f"An encoding is {fields!r}; expected a list of columns.")
        made = cls(tuple(map(_column, columns)))
        filling = fields.get("filling")
        if filling is not None:
            return dataclasses.replace(made, filling=Filling.from_dict(filling, len(made.features)))
        # Of an older run: the median stands for what is missing.
        centre = np.array(
            [column.fill if name == column.name else 0.0 for column in made.columns for name in column.features]
        )
        return dataclasses.replace(made, filling=Filling(centre, np.ones(len(centre)), None))


def numbers(column: "pd.Series", source: object) -> Float[np.ndarray, " rows"]:
    """The numbers of a column as float64, with NaN for missing ones.

    Raises:
        DataError: the column holds anything else; the message has the first such value, or says what to do with dates.
    """
    _refuse_dates(column, source)
    try:
        return column.to_numpy(np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        present = column.reset_index(drop=True).dropna()
        row, value = next((row, value) for row, value in present.items() if not is_number(value))
        raise DataError(
            f"{source}: the column {column.name!r} is not numeric (such as {str(value)!r}, in row {row}, counted from "
            "0). Numbers were expected there."
        ) from error


def _fitted(column: "pd.Series", train: np.ndarray, source: object, marks: bool) -> Column:
    import pandas as pd

    kind = pd.api.types.infer_dtype(column, skipna=True)
    _refuse_dates(column, source)
    missing = marks and bool(column.isna().any())
    if kind in _NUMBERS:
        values = numbers(column, source)
        code = _code_of_missing(values[train])
        if code is not None:
            values = np.where(values == code, np.nan, values)
            missing = marks
            warnings.warn(
                f"{source}: {column.name!r} is {code:g} where it is missing, by the look of it.", stacklevel=5
            )
        present = values[train][~np.isnan(values[train])]
        whole = bool((present == np.rint(present)).all())
        kinds: tuple[Kind, Kind] = ("count", "whole")
        of = kinds[int(present.min() < 0)] if whole else "real"
        return Column(str(column.name), None, missing, float(np.median(present)), of, code)
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
    return Column(str(column.name), tuple(categories), missing, kind="flag" if kind == "boolean" else "text")


def _encode(column: Column, values: "pd.Series", into: np.ndarray, source: object) -> None:
    """Writes the column's features into zeros, [rows, features]: NaN for what is missing, but for what marks it."""
    missing = _is_missing(column, values)
    if column.missing:
        into[:, -1] = missing
    if column.categories is None:
        into[:, 0] = np.where(missing, np.nan, numbers(values, source))
        return
    codes, texts = _factorized(values)
    index = {text: i for i, text in enumerate(column.categories)}
    absent = -1 if column.missing else 0  # those of code -1 are missing
    which = np.array([*(index.get(text, len(index)) for text in texts), absent])[codes]
    into[np.arange(len(which)), which] = 1
    if not column.missing:
        into[missing] = np.nan


def _is_missing(column: Column, values: "pd.Series") -> Bool[np.ndarray, " rows"]:
    missing = values.isna().to_numpy()
    return missing if column.code is None else missing | (values == column.code).to_numpy(bool, na_value=True)


def _code_of_missing(values: Float[np.ndarray, " rows"]) -> float | None:
    """A number that marks missing values: a usual one, there more than once, farther off than all else is wide."""
    known, counts = np.unique(values[np.isfinite(values)], return_counts=True)
    if len(known) < 4 or known[0] not in CODES or counts[0] < 2:
        return None
    return float(known[0]) if known[1] - known[0] > known[-1] - known[1] else None


def _decoded(column: Column, values: np.ndarray) -> np.ndarray:
    if column.categories is None:
        missing = values[:, 1] > 0.5 if column.missing else np.zeros(len(values), bool)
        made = np.rint(values[:, 0].astype(np.float64)) if column.kind != "real" else values[:, 0]
        if column.kind == "count":
            made = np.maximum(made, 0)
        if column.kind != "real" and not missing.any():
            return made.astype(np.int64)
        return np.where(missing, np.nan, made)
    names: list[Any] = [*column.categories, OTHER, *([None] if column.missing else [])]
    if column.kind == "flag":
        names = [{"True": True, "False": False}.get(name, name) for name in names]
        values = np.where([name == OTHER for name in names], -np.inf, values)
    return np.array(names, object)[values.argmax(axis=1)]


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


def _refuse_dates(column: "pd.Series", source: object) -> None:
    if is_date(column):
        raise DataError(
            f"{source}: the column {column.name!r} holds dates or times (such as {str(column.dropna().iloc[0])!r}). "
            "Turn it into numbers, such as the hour, the weekday or the seconds since the first row, or leave it out."
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
    if column.missing and column.categories is not None:
        return f"{column.name!r}: {count}, made a category of their own"
    return f"{column.name!r}: {count}, filled by what the others let expect{' and marked' if column.missing else ''}"


def _quoted(names: list[str]) -> str:
    return ", ".join(map(repr, names))


def _column(fields: Any) -> Column:
    known = {field.name for field in dataclasses.fields(Column)}
    if isinstance(fields, Mapping) and not {"kind", "code"} & set(fields):  # of an older run
        fields = {**fields, "kind": "real" if fields.get("categories") is None else "text", "code": None}
    if not isinstance(fields, Mapping) or set(fields) != known:
        raise ConfigError(f"A column of an encoding is {fields!r}; expected the fields {', '.join(sorted(known))}.")
    name, categories, missing, fill = (fields[key] for key in ("name", "categories", "missing", "fill"))
    texts = [name, *(categories if isinstance(categories, list) else [])]
    is_right = isinstance(missing, bool) and is_finite_number(fill) and fields["kind"] in get_args(Kind)
    is_right = is_right and (fields["code"] is None or is_finite_number(fields["code"]))
    if not is_right or not isinstance(categories, list | None) or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"A column of an encoding is {fields!r}, which is no column's.")
    return Column(
        name, None if categories is None else tuple(categories), missing, float(fill), fields["kind"], fields["code"]
    )
