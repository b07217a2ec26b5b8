"""A data set ready for training: checked, split, and with its scaling fitted."""

import contextlib
import dataclasses
import os
import pathlib
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from jaxtyping import Int, Shaped

from flaxae.data import arrays, files, formats, images, mnist, recordings, tables, tfds
from flaxae.data.encoding import Encoding
from flaxae.data.images import Images
from flaxae.data.parts import Parts, as_examples, with_gaps
from flaxae.data.roles import Roles
from flaxae.data.scaling import Scaling
from flaxae.data.signals import Framing, Signal
from flaxae.data.stream import Stream
from flaxae.errors import ConfigError, DataError, unknown
from flaxae.printing import say

if TYPE_CHECKING:
    import pandas as pd

SAMPLE_BYTES = 64 * 2**20  # the most bytes of a stream's sample, for methods that need data in memory


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test examples in stored units, and what is known of them.

    Images are [n, height, width, channels] of uint8, uint16 or float32. If they differ in size or are larger than
    `images.SMALL`, they are `Images`, which `scaling(train)` leaves as they are (float32 in [0, 1], one by one). Tables
    are [n, columns] of float32, with categories as columns of 0 and 1. Signals are [n, window, channels] of float32, in
    the order of time. `scaling` and `encoding` were fitted on `train` alone. If the data are too large for memory,
    `train` is a `Stream`, as is `scaling(train)`, and `test` has as much as fits.
    """

    name: str
    kind: Literal["image", "tabular", "signal"]
    train: Shaped[np.ndarray, " train *shape"] | Stream | Images
    test: Shaped[np.ndarray, " test *shape"] | Images
    train_labels: Int[np.ndarray, " train"] | None  # −1 where an example has none
    test_labels: Int[np.ndarray, " test"] | None
    classes: tuple[str, ...] | None  # the names of the labels' codes
    columns: tuple[str, ...] | None  # of a table, encoded; the channels of a signal
    scaling: Scaling
    encoding: Encoding | None = None  # of a table with categories or missing values
    framing: Framing | None = None  # of a signal
    test_rows: Int[np.ndarray, " test"] | None = None  # the source's rows (or first moments of
    # windows) that are the test examples; None if the source has a test part of its own
    roles: Roles | None = None  # of a table's columns, where some are not learnt from
    carried: "pd.DataFrame | None" = None  # those that say what a row is about, of all rows of the source
    images: Images | None = None  # the images of both parts; `check` says which could not be read
    test_files: Shaped[np.ndarray, " test"] | None = None  # the names of the test images (dtype object)
    train_rows: Int[np.ndarray, " train"] | None = None  # the same of the training part
    signals: tuple[Signal, Signal] | None = None  # that the windows were cut from, for training and testing
    label_names: tuple[str, ...] | None = None  # of the numbers that the signals' labels are, where they were texts

    @property
    def train_sample(self) -> Shaped[np.ndarray, " train *shape"]:
        """The training examples in memory: all of them, or for a stream a sample from all over it."""
        return self.train.sample(SAMPLE_BYTES) if isinstance(self.train, Stream) else cast(np.ndarray, self.train)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        if isinstance(self.train, Images):
            raise DataError(
                f"{self.train.source} holds images of several sizes, or large ones. Bring all to one size, such as "
                "size=64 (--size 64)."
            )
        return self.train.shape[1:]

    def check(self) -> None:
        """Say at the end of the work which images it was done without.

        Raises:
            DataError: some could not be read.
        """
        if self.images is not None:
            self.images.check()

    @property
    def differ_in_size(self) -> bool:
        """Whether the examples are images of any size, which are read one by one."""
        return isinstance(self.train, Images)


def load(
    source: "str | os.PathLike[str] | np.ndarray | pd.DataFrame | tuple[Any, ...] | Stream | Any",
    *,
    label: str | None = None,
    window: int | Literal["auto"] | None = None,
    stride: int | None = None,
    time: str | None = None,
    ids: Sequence[str] = (),
    drop: Sequence[str] = (),
    keep: Sequence[str] = (),
    marks: bool = True,
    size: int | None = None,
    max_pixels: int = images.MAX_PIXELS,
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
            - a folder of IDX files under MNIST's names, or a folder, zip or tar of images, flat or in a folder for
              each class, with or without `train` and `test` (or `val`) folders around them, or one file of several
              pages: see `images.load`;
            - an array (of NumPy, torch or JAX), [n, columns] or [n, height, width] or [n, height, width, channels]; a
              pair (x, labels), with labels [n] or [n, 1]; or a pair (train, test) of such arrays or pairs, as from
              Keras' `load_data`;
            - a list of PIL images or of arrays, or a Hugging Face data set with a column of images, or that column;
            - a pandas DataFrame, or what has a `to_pandas` method, as polars' and Arrow's tables have.
        label: the column of a table, or feature of a TFDS set, that holds each example's class.
        window: the source is a signal, [time] or [time, channels] or a table whose rows are moments in order, and is
            cut into windows of so many moments, or "auto" for its period. Training takes windows from every moment.
            See `recordings.cut` for labels, and `recordings.of_table` for clocks, gaps and missing moments.
        stride: a window is tested every so many moments; by default a sixteenth of the window.
        time, ids, drop: columns of a table that are not learnt from; the first two are in `carried`.
        keep: columns of a table to learn from, whatever they look like.
        marks: whether missing values of a table have features that tell of them.
        size: height and width, in pixels, to bring all images to: they are scaled to cover it, and the middle is cut
            out. By default each keeps its own.
        max_pixels: the most pixels that one image may have.
        seed: for the random fifth that becomes the test part if the source has none. For a signal it is the last fifth.
            With labels it is a fifth of each class.

    Raises:
        DataError: the source doesn't exist or can't be used; the message says what to do.
        ConfigError: the window or the stride is out of range.
    """
    with arrays.reading(source) if isinstance(source, str | os.PathLike) else contextlib.nullcontext():
        roles = {"time": time, "ids": ids, "drop": drop, "keep": keep}
        return _loaded(source, label, roles, window, stride, size, max_pixels, marks, seed)


def _loaded(
    source: Any,
    label: str | None,
    roles: dict[str, Any],
    window: int | Literal["auto"] | None,
    stride: int | None,
    size: int | None,
    max_pixels: int,
    marks: bool,
    seed: int,
) -> Dataset:
    parts, name = _parts(source, label, roles if window is None else None, size, max_pixels)
    given = str(source) if isinstance(source, str | os.PathLike) else name
    encoding = indicators = None
    if window is not None:
        return _of_windows(parts, roles, name, given, window=window, stride=stride, seed=seed)
    elif isinstance(parts.train, Stream):
        train, test = parts.train.split(0.2, seed) if parts.test is None else (parts.train, parts.test)
        parts = parts._replace(train=train, test=as_examples(cast(np.ndarray, test), given))
    elif isinstance(parts.train, Images):
        parts = _divided_images(parts.train, parts, given, seed)
    elif stride is not None:
        raise ConfigError(f"The stride is {stride}, of windows of a signal, but no window is given.")
    elif isinstance(parts.train, Signal):
        raise DataError(f"{given} is a signal; say how many moments make an example: window=256, or --window 256.")
    elif not isinstance(parts.train, np.ndarray):
        parts, encoding = _encoded(parts.train, parts, given, seed, marks)
        indicators = encoding.indicators
    else:
        parts = _checked(parts.train, parts, given, seed)
    train, test = cast("np.ndarray | Stream", parts.train), cast(np.ndarray, parts.test)  # after all of the above
    if not isinstance(train, Images) and (train.shape[1:] != test.shape[1:] or train.dtype != test.dtype):
        raise DataError(
            f"{given}: training examples are {train.dtype} {train.shape[1:]}, test examples {test.dtype} "
            f"{test.shape[1:]}; they have to be the same."
        )
    fields = _coded(parts, given)._asdict()
    fields.pop("files")  # they are in `images`
    return Dataset(
        name=name,
        kind="image" if isinstance(train, Images) or train.ndim > 2 else "tabular",
        **fields,
        scaling=Scaling.fit(train, indicators),
        encoding=encoding,
    )


def _of_windows(
    parts: Parts,
    roles: dict[str, Any],
    name: str,
    given: str,
    *,
    window: int | Literal["auto"],
    stride: int | None,
    seed: int,
) -> Dataset:
    labels = parts.train_labels, parts.test_labels
    named = {}
    if not isinstance(parts.train, np.ndarray | Signal | Stream):  # a table, whose clock is found
        _check_named(roles, parts.train, given)
        parts = parts._replace(train=cast(Any, parts.train).drop(columns=[*roles["ids"], *roles["drop"]]))
        named = {"time": roles["time"], "keep": roles["keep"]}
    else:
        _refuse_columns(None, roles, given)
    if isinstance(parts.train, Images) or isinstance(parts.test, Images):
        raise DataError(f"{given} holds images; windows are cut from signals.")
    cut = recordings.cut(parts.train, parts.test, labels, given, window=window, stride=stride, seed=seed, **named)
    train, test = cut.signals
    if train.values.shape[1] != test.values.shape[1]:
        raise DataError(
            f"{given}: the training part has {train.values.shape[1]} channels, the test part {test.values.shape[1]}."
        )
    coded = _coded(
        Parts(cut.train, cut.test, cut.train_labels, cut.test_labels, cut.classes, train.columns or parts.columns),
        given,
    )
    fields = coded._replace(train_rows=cut.train_rows, test_rows=cut.test_rows)._asdict()
    fields.pop("files")  # a signal's are in it
    return Dataset(
        name=name,
        kind="signal",
        **fields,
        scaling=Scaling.fit(train.values[None]),
        framing=cut.framing,
        signals=cut.signals,
        label_names=cut.classes,
    )


def _parts(
    source: Any, label: str | None, roles: dict[str, Any] | None, size: int | None, max_pixels: int
) -> tuple[Parts, str]:
    if size is not None and size < 1:
        raise ConfigError(f"The size is {size}; it has to be at least 1 pixel.")
    if hasattr(source, "to_pandas") and not hasattr(source, "features"):  # as Hugging Face's data sets have, of images
        source = source.to_pandas()
    if "pandas" in sys.modules and isinstance(source, sys.modules["pandas"].DataFrame):
        return _of_table(source, "The table", label, roles), "table"
    source = _of_numpy(source)
    if isinstance(source, np.ndarray | tuple):
        _refuse_columns(label, roles, "an array")
        return _sized(_from_memory(source), size), "array"
    if isinstance(source, Stream):
        _refuse_columns(label, roles, "a stream")
        if source.ndim == 1:
            raise DataError("The stream has one number an example; expected [columns], or images.")
        return Parts(train=source), "stream"
    if not isinstance(source, str | os.PathLike):
        _refuse_columns(label, roles, "images")
        if images.sources.in_memory(source) is None:
            raise DataError(
                f"The source is a {type(source).__name__}; expected a name, a path, an array, a DataFrame, a tuple, or "
                "images (a list of PIL images or arrays, or a Hugging Face data set)."
            )
        return images.load(source, size=size), "images"
    if source == "mnist":
        _refuse_columns(label, roles, "mnist")
        return _sized(mnist.load(), size), "mnist"
    if isinstance(source, str) and source.startswith("tfds:"):
        _refuse_columns(None, roles, source)
        name = source.removeprefix("tfds:")
        return _sized(tfds.load(name, label=label), size), name
    path = files.existing(source, also=("mnist", "tfds:NAME"))
    return _from_path(path, label, roles, size, max_pixels), path.resolve().stem


def _of_table(frame: "pd.DataFrame", given: object, label: str | None, roles: dict[str, Any] | None) -> Parts:
    if roles is None:  # its rows are moments
        frame, labels = tables.without_label(tables.checked(frame, given), given, label)
        return Parts(train=frame, train_labels=labels)
    frame, labels, carried, found = tables.prepare(frame, given, label=label, **roles)
    return Parts(train=frame, train_labels=labels, roles=found, carried=carried)


def _from_path(
    path: pathlib.Path, label: str | None, roles: dict[str, Any] | None, size: int | None, max_pixels: int
) -> Parts:
    if path.is_dir() or (images.sources.is_archive(path) and formats.find(path) is None):
        if path.is_dir() and arrays.is_idx_folder(path):
            loaded = _sized(arrays.load_idx(path), size)
        elif path.is_dir() and recordings.is_folder(path):
            return Parts(train=recordings.read_folder(path))
        else:
            loaded = images.load(path, size=size, max_pixels=max_pixels)
        _refuse_columns(label, roles, path)
        return loaded
    known = formats.of(path)
    if known.kind == "table":
        return _of_table(known.read(path), path, label, roles)
    if known.kind == "image":
        pages = images.load(path, size=size, max_pixels=max_pixels)
        if len(pages.train) < 2:
            raise DataError(f"{path} is one image; expected a folder of them to train on.")
        return pages
    _refuse_columns(label, roles, path)
    length = path.stat().st_size
    if known.mapper is not None and length > arrays.MAP_BYTES:
        say(f"{path} is {length / 1e9:.1f} GB: it is read a part at a time while training, never whole.")
        return Parts(train=Stream(known.mapper(path)))
    content = known.read(path)
    return _sized(content, size) if known.kind == "array" else Parts(train=content)


def _of_numpy(source: Any) -> Any:
    """Arrays of torch and JAX, also in tuples, as NumPy arrays; anything else unchanged."""
    if isinstance(source, tuple):
        return tuple(map(_of_numpy, source))
    is_array = hasattr(source, "__array__") and hasattr(source, "shape") and hasattr(source, "dtype")
    is_frame = hasattr(source, "columns") or hasattr(source, "column_names")
    if isinstance(source, np.ma.MaskedArray) or is_frame or not is_array:
        return source
    return images.sources.as_array(source)


def _sized(parts: Parts, size: int | None) -> Parts:
    """Arrays of images brought to a size; tables unchanged."""
    if size is None:
        return parts
    if not isinstance(parts.train, np.ndarray) or parts.train.ndim < 3:
        raise ConfigError(f"The size is {size}, of images, but the data are none.")

    def brought(x: np.ndarray) -> np.ndarray:
        whole = images.open(x, alpha=False).resized(size)
        return np.stack([whole.stored(i) for i in range(len(whole))])

    return parts._replace(
        train=brought(parts.train), test=None if parts.test is None else brought(np.asarray(parts.test))
    )


def _from_memory(source: np.ndarray | tuple) -> Parts:
    if isinstance(source, np.ma.MaskedArray) and source.ndim == 2 and np.ma.is_masked(source):
        import pandas as pd

        return Parts(train=pd.DataFrame(with_gaps(source), columns=[f"x{i}" for i in range(source.shape[1])]))
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


def _refuse_columns(label: str | None, roles: dict[str, Any] | None, source: str | os.PathLike[str]) -> None:
    if label is not None:
        raise DataError(f"label={label!r} names a column of a table or of a TFDS set; the source is {source}.")
    for name, columns in (roles or {}).items():
        if columns:
            raise DataError(f"{name}={columns!r} names columns of a table; the source is {source}.")


def _checked(x: np.ndarray, parts: Parts, given: str, seed: int) -> Parts:
    train = as_examples(x, given, parts.columns)
    if parts.test is None:
        return _divided(train, parts, *_held_out(len(train), parts.train_labels, given, seed))
    return parts._replace(train=train, test=as_examples(cast(np.ndarray, parts.test), given, parts.columns))


def _check_named(roles: dict[str, Any], frame: Any, given: object) -> None:
    for name in ([] if roles["time"] is None else [roles["time"]], roles["ids"], roles["drop"], roles["keep"]):
        for column in name:
            if column not in frame.columns:
                raise DataError(f"{given}: {unknown('column', column, frame.columns)}")


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
    files = {} if parts.files is None else {"files": parts.files[train], "test_files": parts.files[test]}
    return parts._replace(train=x[train], test=x[test], train_rows=train, test_rows=test, **files)


def _divided_images(train: Images, parts: Parts, given: str, seed: int) -> Parts:
    if parts.test is not None:
        return parts
    kept, held_out = _held_out(len(train), parts.train_labels, given, seed)
    if (labels := parts.train_labels) is not None:
        parts = parts._replace(train_labels=labels[kept], test_labels=labels[held_out])
    files = {} if parts.files is None else {"files": parts.files[kept], "test_files": parts.files[held_out]}
    return parts._replace(train=train.select(kept), test=train.select(held_out), test_rows=held_out, **files)


def _coded(parts: Parts, given: str) -> Parts:
    """Replace labels of any values by codes into `classes`; it is enough if one part has labels."""
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
