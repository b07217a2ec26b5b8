"""A data set ready for training: what the sources give, checked, split, and with its scaling fitted."""

import dataclasses
import os
import pathlib
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from jaxtyping import Int, Shaped

from flaxae.data import arrays, files, formats, images, mnist, signals, tables, tfds
from flaxae.data.encoding import Encoding
from flaxae.data.parts import Parts, as_examples
from flaxae.data.roles import Roles
from flaxae.data.scaling import Scaling
from flaxae.data.signals import Framing
from flaxae.data.stream import Stream
from flaxae.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pandas as pd

SAMPLE_BYTES = 64 * 2**20  # of a stream, for what is fitted in memory


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test examples in stored units, and what is known of them.

    Images are [n, height, width, channels] of uint8, uint16 or float32; tables [n, columns] of float32, categories
    being columns of 0 and 1; signals [n, window, channels] of float32, in the order of time. `scaling` and `encoding`
    were fitted on `train` alone. What is too large for memory has a `Stream` for `train`, which
    `scaling(train)` is too, and as much for `test` as fits.
    """

    name: str
    kind: Literal["image", "tabular", "signal"]
    train: Shaped[np.ndarray, " train *shape"] | Stream
    test: Shaped[np.ndarray, " test *shape"]
    train_labels: Int[np.ndarray, " train"] | None  # −1 where an example has none
    test_labels: Int[np.ndarray, " test"] | None
    classes: tuple[str, ...] | None  # what the labels' codes mean
    columns: tuple[str, ...] | None  # of a table, encoded; the channels of a signal
    scaling: Scaling
    encoding: Encoding | None = None  # of a table that holds more than numbers, or not all of them
    framing: Framing | None = None  # of a signal
    test_rows: Int[np.ndarray, " test"] | None = None  # of the source, that are the test examples (or their first
    # moments); None where the source has a test part of its own
    train_rows: Int[np.ndarray, " train"] | None = None
    roles: Roles | None = None  # of a table's columns, where some are not learnt from
    carried: "pd.DataFrame | None" = None  # those that say what a row is about, of all rows of the source

    @property
    def train_sample(self) -> Shaped[np.ndarray, " train *shape"]:
        """The training examples in memory: all, or of a stream some from all over it."""
        return self.train.sample(SAMPLE_BYTES) if isinstance(self.train, Stream) else self.train

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return self.train.shape[1:]


def load(
    source: "str | os.PathLike[str] | np.ndarray | pd.DataFrame | tuple[Any, ...] | Stream",
    *,
    label: str | None = None,
    window: int | None = None,
    stride: int | None = None,
    time: str | None = None,
    ids: Sequence[str] = (),
    drop: Sequence[str] = (),
    keep: Sequence[str] = (),
    marks: bool = True,
    seed: int = 0,
) -> Dataset:
    """A data set from the package, TFDS, files or memory.

    Of a table, categories become columns of 0 and 1, and missing values are filled and marked: see `Encoding.fit`.
    Clocks, counters and names of rows are found, with a line that says so, and not learnt from: see `roles.find`.

    Args:
        source: one of
            - "mnist", which is embedded in the package;
            - "tfds:NAME" or "tfds:NAME/CONFIG", a TensorFlow Datasets set of images or of numeric features;
            - a `.npy` file, which is streamed, never read whole, if it is large;
            - a stream, see `Stream`;
            - a `.npz` or `.mat` file (see `arrays.load_npz` for its keys), a table of any format (see `formats`), or a
              `.wav`;
            - a folder of IDX files under MNIST's names, or of images of one size, flat or in a folder for each
              class, with or without `train` and `test` folders around them;
            - an array, [n, columns] or [n, height, width] or [n, height, width, channels]; a pair (x, labels), labels
              being [n] or [n, 1]; a pair (train, test) of such arrays or pairs, as Keras' `load_data` gives;
            - a pandas DataFrame, or what has a `to_pandas` method, as polars' and Arrow's tables have.
        label: the column of a table, or feature of a TFDS set, that holds each example's class.
        window: the source is a signal, [time] or [time, channels] or a table whose rows are moments in order, and is
            cut into windows of so many moments. Labels are then numbers, the largest of a window's moments being its.
        stride: a window begins every so many moments; by default every half window.
        time, ids, drop: columns of a table that are not learnt from; the first two are in `carried`.
        keep: columns of a table to learn from, whatever they look like.
        marks: whether missing values of a table have features that tell of them.
        seed: of the random fifth that becomes the test part where the source has none. Of a signal it is the last.
            With labels it is a fifth of each class.

    Raises:
        DataError: the source doesn't exist or can't be used; the message says what to do.
        ConfigError: a window or stride that can't be.
    """
    parts, name = _parts(source, label, {"time": time, "ids": ids, "drop": drop, "keep": keep})
    given = str(source) if isinstance(source, str | os.PathLike) else name
    encoding = framing = indicators = None
    if window is not None:
        framing = Framing(window, max(1, window // 2) if stride is None else stride, parts.rate)
        parts = signals.cut(parts, framing, given)
    elif isinstance(parts.train, Stream):
        train, test = parts.train.split(0.2, seed) if parts.test is None else (parts.train, parts.test)
        parts = parts._replace(train=train, test=as_examples(test, given))
    elif stride is not None:
        raise ConfigError(f"The stride is {stride}, of windows of a signal, but no window is given.")
    elif parts.rate is not None:
        raise DataError(f"{given} is a signal; say how many moments make an example: window=256, or --window 256.")
    elif not isinstance(parts.train, np.ndarray):
        parts, encoding = _encoded(parts.train, parts, given, seed, marks)
        indicators = encoding.indicators
    else:
        parts = _checked(parts.train, parts, given, seed)
    train, test = cast("np.ndarray | Stream", parts.train), cast(np.ndarray, parts.test)  # as all of these leave them
    if train.shape[1:] != test.shape[1:] or train.dtype != test.dtype:
        raise DataError(
            f"{given}: training examples are {train.dtype} {train.shape[1:]}, test examples {test.dtype} "
            f"{test.shape[1:]}; they have to be the same."
        )
    fields = _coded(parts, given)._asdict()
    fields.pop("rate")  # the framing has it
    return Dataset(
        name=name,
        kind="signal" if framing else "tabular" if train.ndim == 2 else "image",
        **fields,
        scaling=Scaling.fit(train, indicators),
        encoding=encoding,
        framing=framing,
    )


def _parts(source: Any, label: str | None, roles: dict[str, Any]) -> tuple[Parts, str]:
    if hasattr(source, "to_pandas"):
        source = source.to_pandas()
    if "pandas" in sys.modules and isinstance(source, sys.modules["pandas"].DataFrame):
        return _of_table(source, "The table", label, roles), "table"
    if isinstance(source, np.ndarray | tuple):
        _refuse_columns(label, roles, "an array")
        return _from_memory(source), "array"
    if isinstance(source, Stream):
        _refuse_columns(label, roles, "a stream")
        return Parts(train=source), "stream"
    if not isinstance(source, str | os.PathLike):
        raise DataError(
            f"The source is a {type(source).__name__}; expected a name, a path, a NumPy array, a DataFrame or a tuple."
        )
    if source == "mnist":
        _refuse_columns(label, roles, "mnist")
        return mnist.load(), "mnist"
    if isinstance(source, str) and source.startswith("tfds:"):
        _refuse_columns(None, roles, source)
        name = source.removeprefix("tfds:")
        return tfds.load(name, label=label), name
    path = files.existing(source, also=("mnist", "tfds:NAME"))
    return _from_path(path, label, roles), path.resolve().stem


def _of_table(frame: "pd.DataFrame", given: object, label: str | None, roles: dict[str, Any]) -> Parts:
    frame, labels, carried, found = tables.prepare(frame, given, label=label, **roles)
    return Parts(train=frame, train_labels=labels, roles=found, carried=carried)


def _from_path(path: pathlib.Path, label: str | None, roles: dict[str, Any]) -> Parts:
    if path.is_dir():
        loaded = arrays.load_idx(path) if arrays.is_idx_folder(path) else images.load_folder(path)
        _refuse_columns(label, roles, path)
        return loaded
    known = formats.of(path)
    if known.kind == "table":
        return _of_table(known.read(path), path, label, roles)
    if known.kind == "image":
        raise DataError(f"{path} is one image; expected a folder of them to train on.")
    _refuse_columns(label, roles, path)
    size = path.stat().st_size
    if known.mapper is not None and size > arrays.MAP_BYTES:
        print(f"{path} is {size / 1e9:.1f} GB: it is read a part at a time while training, never whole.")
        return Parts(train=Stream(known.mapper(path)))
    content = known.read(path)
    return content if known.kind == "array" else Parts(train=content.values, rate=content.rate)


def _from_memory(source: np.ndarray | tuple) -> Parts:
    if isinstance(source, np.ndarray):
        return Parts(train=source)
    if len(source) != 2 or not all(isinstance(part, np.ndarray | tuple) for part in source):
        raise DataError("The source is a tuple that is neither (x, labels) nor (train, test) of NumPy arrays.")
    first, second = source
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        column = (len(first), 1)
        if second.ndim == 1 or second.shape == column != first.shape:
            return Parts(train=first, train_labels=second)
    train, test = _from_memory(first), _from_memory(second)
    if train.test is not None or test.test is not None:
        raise DataError("The source is a tuple nested too deeply; expected (x, labels) or (train, test).")
    return Parts(train.train, cast(np.ndarray, test.train), train.train_labels, test.train_labels)


def _refuse_columns(label: str | None, roles: dict[str, Any], source: str | os.PathLike[str]) -> None:
    if label is not None:
        raise DataError(f"label={label!r} names a column of a table or of a TFDS set; the source is {source}.")
    for name, columns in roles.items():
        if columns:
            raise DataError(f"{name}={columns!r} names columns of a table; the source is {source}.")


def _checked(x: np.ndarray, parts: Parts, given: str, seed: int) -> Parts:
    train = as_examples(x, given, parts.columns)
    if parts.test is None:
        return _divided(train, parts, *_held_out(len(train), parts.train_labels, given, seed))
    return parts._replace(train=train, test=as_examples(parts.test, given, parts.columns))


def _encoded(frame: "pd.DataFrame", parts: Parts, given: str, seed: int, marks: bool) -> tuple[Parts, Encoding]:
    train, test = _held_out(len(frame), parts.train_labels, given, seed)
    encoding = Encoding.fit(frame, train, given, marks=marks)
    return _divided(encoding(frame, given), parts._replace(columns=encoding.features), train, test), encoding


def _held_out(examples: int, labels: np.ndarray | None, given: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the training and of the test part, a fifth: of each class, so that the rare have their share in both."""
    if examples < 2:
        raise DataError(f"{given} has {examples} example; expected 2 at least, for one is held out as the test part.")
    order = np.random.default_rng(seed).permutation(examples)
    held = max(1, examples // 5)
    if labels is not None:
        _check_labels(labels, examples, given)
        _, classes = np.unique(labels.reshape(-1).astype(str), return_inverse=True)
        place = np.empty(examples)  # of each example in its class, from 0 to 1
        for each in range(classes.max() + 1):
            members = order[classes[order] == each]
            place[members] = (np.arange(len(members)) + 0.5) / len(members)
        order = order[np.argsort(place[order], kind="stable")]
    return np.sort(order[held:]), np.sort(order[:held])


def _divided(x: np.ndarray, parts: Parts, train: np.ndarray, test: np.ndarray) -> Parts:
    if (labels := parts.train_labels) is not None:
        parts = parts._replace(train_labels=labels[train], test_labels=labels[test])
    return parts._replace(train=x[train], test=x[test], train_rows=train, test_rows=test)


def _coded(parts: Parts, given: str) -> Parts:
    """Labels of any values become codes into `classes`; labels of one part alone are kept."""
    labels = {"train_labels": parts.train_labels, "test_labels": parts.test_labels}
    labels = {part: values for part, values in labels.items() if values is not None}
    for part, values in labels.items():
        _check_labels(values, len(getattr(parts, part.removesuffix("_labels"))), given)
    if not labels or parts.classes is not None:
        return parts._replace(**{part: values.reshape(-1).astype(np.int32) for part, values in labels.items()})
    flat = {part: values.reshape(-1) for part, values in labels.items()}
    values = np.concatenate(list(flat.values()))
    has = np.array([value is not None for value in values]) if values.dtype == object else np.full(len(values), True)
    if values.dtype == object:
        warnings.warn(f"{given}: {(~has).sum():,} of {len(has):,} rows have no label.", stacklevel=3)
    known, found = np.unique(np.array(values[has].tolist()), return_inverse=True)
    codes = np.full(len(values), -1)
    codes[has] = found
    if known.dtype.kind == "f" and (real := known[known != np.rint(known)]).size:
        raise DataError(f"{given}: the labels are real numbers such as {real[0]}; expected classes. Leave them out.")
    classes = tuple(str(int(value)) if known.dtype.kind == "f" else str(value) for value in known)
    split = np.split(codes.astype(np.int32), np.cumsum([len(values) for values in flat.values()])[:-1])
    return parts._replace(classes=classes, **dict(zip(flat, split, strict=True)))


def _check_labels(labels: np.ndarray, examples: int, given: str) -> None:
    if labels.shape not in ((examples,), (examples, 1)):
        raise DataError(
            f"{given}: the labels have shape {labels.shape}; expected one class for each of {examples} examples, "
            f"({examples},)."
        )
    if labels.dtype.kind not in "buifSUO":
        raise DataError(f"{given}: the labels are of type {labels.dtype}; expected integers or strings.")
