"""A data set ready for training: what the sources give, checked, split, and with its scaling fitted."""

import dataclasses
import os
import pathlib
from typing import Literal

import numpy as np
from jaxtyping import Int, Shaped

from flaxae.data import arrays, files, images, mnist, tables, tfds
from flaxae.data.parts import Parts, as_examples
from flaxae.data.scaling import Scaling
from flaxae.data.stream import Stream
from flaxae.errors import DataError

SAMPLE_BYTES = 64 * 2**20  # of a stream, for what is fitted in memory


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test examples in stored units, and what is known of them.

    Images are [n, height, width, channels] of uint8, uint16 or float32; tables [n, columns] of float32;
    signals [n, time, channels] of float32. `scaling` was fitted on `train` alone. What is too large for memory has a
    `Stream` for `train`, which `scaling(train)` is too, and as much for `test` as fits.
    """

    name: str
    kind: Literal["image", "tabular", "signal"]
    train: Shaped[np.ndarray, " train *shape"] | Stream
    test: Shaped[np.ndarray, " test *shape"]
    train_labels: Int[np.ndarray, " train"] | None
    test_labels: Int[np.ndarray, " test"] | None
    classes: tuple[str, ...] | None  # what the labels' codes mean
    columns: tuple[str, ...] | None
    scaling: Scaling

    @property
    def train_sample(self) -> Shaped[np.ndarray, " train *shape"]:
        """The training examples in memory: all, or of a stream some from all over it."""
        return self.train.sample(SAMPLE_BYTES) if isinstance(self.train, Stream) else self.train

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return self.train.shape[1:]


def load(
    source: str | os.PathLike | np.ndarray | tuple | Stream, *, label: str | None = None, seed: int = 0
) -> Dataset:
    """A data set from the package, TFDS, files or memory.

    Args:
        source: one of
            - "mnist", which is embedded in the package;
            - "tfds:NAME" or "tfds:NAME/CONFIG", a TensorFlow Datasets set of images or of numeric features;
            - a `.npy` file, which is streamed, never read whole, if it is large;
            - a stream, see `Stream`;
            - a `.npz` file (see `arrays.load_npz` for its keys), or a `.csv` or `.parquet` table;
            - a folder of IDX files under MNIST's names, or of images of one size, flat or in a folder for each
              class, with or without `train` and `test` folders around them;
            - an array, [n, columns] or [n, height, width] or [n, height, width, channels]; a pair (x, labels), labels
              being [n] or [n, 1]; a pair (train, test) of such arrays or pairs, as Keras' `load_data` gives.
        label: the column of a table, or feature of a TFDS set, that holds each example's class.
        seed: of the random fifth that becomes the test part where the source has none.

    Raises:
        DataError: the source doesn't exist or can't be used; the message says what to do.
    """
    parts, name = _parts(source, label)
    given = str(source) if isinstance(source, str | os.PathLike) else name
    if isinstance(parts.train, Stream):
        train, test = parts.train.split(0.2, seed) if parts.test is None else (parts.train, parts.test)
        parts = parts._replace(train=train, test=as_examples(test, given))
    elif parts.test is None:
        train = as_examples(parts.train, given, parts.columns)
        parts = _hold_out(parts._replace(train=train), given, seed)
    else:
        train, test = as_examples(parts.train, given, parts.columns), as_examples(parts.test, given, parts.columns)
        if train.shape[1:] != test.shape[1:] or train.dtype != test.dtype:
            raise DataError(
                f"{given}: training examples are {train.dtype} {train.shape[1:]}, test examples {test.dtype} "
                f"{test.shape[1:]}; they have to be the same."
            )
        parts = parts._replace(train=train, test=test)
    return Dataset(
        name=name,
        kind="tabular" if parts.train.ndim == 2 else "image",
        **_coded(parts, given)._asdict(),
        scaling=Scaling.fit(parts.train),
    )


def _parts(source: str | os.PathLike | np.ndarray | tuple, label: str | None) -> tuple[Parts, str]:
    if isinstance(source, np.ndarray | tuple):
        _refuse_label(label, "an array")
        return _from_memory(source), "array"
    if isinstance(source, Stream):
        _refuse_label(label, "a stream")
        return Parts(train=source), "stream"
    if not isinstance(source, str | os.PathLike):
        raise DataError(f"The source is a {type(source).__name__}; expected a name, a path, a NumPy array or a tuple.")
    if source == "mnist":
        _refuse_label(label, "mnist")
        return mnist.load(), "mnist"
    if isinstance(source, str) and source.startswith("tfds:"):
        name = source.removeprefix("tfds:")
        return tfds.load(name, label=label), name
    path = files.existing(source, also=("mnist", "tfds:NAME"))
    return _from_path(path, label), path.resolve().stem


def _from_path(path: pathlib.Path, label: str | None) -> Parts:
    suffix = path.suffix.lower()
    if suffix in files.TABLES:
        table = tables.read_table(path, label=label)
        return Parts(train=table.values, train_labels=table.labels, columns=table.columns)
    _refuse_label(label, path)
    if path.is_dir():
        return arrays.load_idx(path) if arrays.is_idx_folder(path) else images.load_folder(path)
    if suffix == ".npy":
        size = path.stat().st_size
        if size > arrays.MAP_BYTES:
            print(f"{path} is {size / 1e9:.1f} GB: it is read a part at a time while training, never whole.")
            return Parts(train=Stream(arrays.map_npy(path)))
        return Parts(train=arrays.read_npy(path))
    if suffix == ".npz":
        return arrays.load_npz(path)
    if suffix in images.SUFFIXES:
        raise DataError(f"{path} is one image; expected a folder of them to train on.")
    raise files.unknown_format(path)


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
    return Parts(train.train, test.train, train.train_labels, test.train_labels)


def _refuse_label(label: str | None, source: str | os.PathLike) -> None:
    if label is not None:
        raise DataError(f"label={label!r} names a column of a table or of a TFDS set; the source is {source}.")


def _hold_out(parts: Parts, given: str, seed: int) -> Parts:
    examples = len(parts.train)
    if examples < 2:
        raise DataError(f"{given} has {examples} example; expected 2 at least, for one is held out as the test part.")
    order = np.random.default_rng(seed).permutation(examples)
    held = max(1, examples // 5)
    test, train = np.sort(order[:held]), np.sort(order[held:])
    labels = parts.train_labels
    if labels is not None:
        _check_labels(labels, examples, given)
        parts = parts._replace(train_labels=labels[train], test_labels=labels[test])
    return parts._replace(train=parts.train[train], test=parts.train[test])


def _coded(parts: Parts, given: str) -> Parts:
    """Labels of any values become codes into `classes`; labels of one part alone are kept."""
    labels = {"train_labels": parts.train_labels, "test_labels": parts.test_labels}
    labels = {part: values for part, values in labels.items() if values is not None}
    for part, values in labels.items():
        _check_labels(values, len(getattr(parts, part.removesuffix("_labels"))), given)
    if not labels or parts.classes is not None:
        return parts._replace(**{part: values.reshape(-1).astype(np.int32) for part, values in labels.items()})
    flat = {part: values.reshape(-1) for part, values in labels.items()}
    known, codes = np.unique(np.concatenate(list(flat.values())), return_inverse=True)
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
    if labels.dtype.kind not in "buifSU":
        raise DataError(f"{given}: the labels are of type {labels.dtype}; expected integers or strings.")
