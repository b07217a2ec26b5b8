"""TensorFlow Datasets, read without TensorFlow.

A prepared set is read by `tfds.data_source`. Preparing a set downloads it and, for most sets, needs TensorFlow.
The arrays are then kept as `flaxae.npz` beside the prepared files, which is faster to read the next time.
"""

import contextlib
import dataclasses
import difflib
import importlib.util
import logging
import math
import os
import pathlib
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from flaxae.data import arrays
from flaxae.data.arrays import read_npz, reading
from flaxae.data.files import writing
from flaxae.data.parts import Parts
from flaxae.data.stream import HELD_OUT_BYTES, Stream
from flaxae.errors import DataError, missing, unknown
from flaxae.printing import say

if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder

_HOST = "https://storage.googleapis.com"  # serves many of the sets
_PATIENCE_S = 5


def load(name: str, *, label: str | None = None) -> Parts:
    """The `train` split and, if there is one, the `test` split of a TFDS set.

    The set is in $TFDS_DATA_DIR or ~/tensorflow_datasets. With an `image` feature it gives images; otherwise all
    features must be numbers, and it gives a table. A large set is a stream, without labels, and its test part is as
    much of the test split as fits in memory.

    Args:
        name: as in the catalogue, NAME or NAME/CONFIG.
        label: the feature that holds each example's class; None is the set's own, if it has one.

    Raises:
        DataError: there is no such set; it is neither images of one size nor numbers; or it is not prepared and
            can't be, because there is no network or no TensorFlow.
    """
    builder = _open(name)
    used = _used(builder, label)
    _prepare(builder, manual_dir=None)
    kept = pathlib.Path(builder.data_path) / "flaxae.npz"
    if label is None and kept.is_file():
        known: dict[str, Any] = dict(read_npz(kept))
        known |= {name: tuple(known[name].tolist()) for name in ("classes", "columns") if name in known}
        return Parts(**known)
    splits = builder.info.splits
    if "train" not in splits:
        raise DataError(f"tfds:{builder.name} has no split 'train', only {', '.join(splits)}.")
    if _bytes(builder, used) > arrays.MAP_BYTES:
        say(f"tfds:{name} is large: it is read a part at a time while training, never whole.")
        test = Stream(_Inputs(_source(builder, "test"), used)).sample(HELD_OUT_BYTES) if "test" in splits else None
        return Parts(Stream(_Inputs(_source(builder, "train"), used)), test, columns=used.columns)
    parts = _read(builder, used)
    if label is None:
        known = {name: np.asarray(part) for name, part in parts._asdict().items() if part is not None}
        with contextlib.suppress(DataError), writing(kept) as file:  # if the folder is read-only, it only costs time
            np.savez(file, allow_pickle=False, **known)
    return parts


def prepare(name: str, *, manual_dir: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Download and prepare a set, unless it already is prepared, and return its folder.

    Args:
        name: as in the catalogue, NAME or NAME/CONFIG.
        manual_dir: a folder of files that were downloaded by hand; they are not downloaded again.

    Raises:
        DataError: there is no such set or no network, or the set needs TensorFlow and it is not installed.
    """
    builder = _open(name)
    _prepare(builder, manual_dir)
    return pathlib.Path(builder.data_path)


class _Used(NamedTuple):
    """The features of a set that are used."""

    inputs: list[str]
    columns: tuple[str, ...] | None  # None for images
    label: str | None
    classes: tuple[str, ...] | None


def _open(name: str) -> "DatasetBuilder":
    try:
        import importlib_resources  # noqa: F401 (which tensorflow_datasets imports later, undeclared)
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core import read_only_builder, registered
    except ImportError as error:
        raise DataError(missing(f"tfds:{name}", "tfds", error)) from error
    logging.getLogger("absl").setLevel(logging.ERROR)  # its warnings say less than the errors raised here do
    data_dir = os.environ.get("TFDS_DATA_DIR")
    not_found = registered.DatasetNotFoundError
    try:
        with contextlib.suppress(not_found):  # prepared sets are read without their code, which may need TensorFlow
            return read_only_builder.builder_from_files(name, data_dir=data_dir)
        # parquet, the other format that is read by index, silently loses rows in 4.9.10.
        return tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except not_found as error:
        near = difflib.get_close_matches(name, tfds.list_builders(with_community_datasets=False), n=5)
        known = near or ["the names in https://www.tensorflow.org/datasets/catalog"]
        raise DataError(unknown("TFDS set", name, known)) from error
    except ModuleNotFoundError as error:
        raise _needs_tensorflow(name) from error
    except (ValueError, OSError) as error:
        raise DataError(f"tfds:{name} can't be opened: {_first_line(error)}") from error


def _prepare(builder: "DatasetBuilder", manual_dir: str | os.PathLike[str] | None) -> None:
    import tensorflow_datasets as tfds

    if builder.is_prepared():
        return
    if manual_dir is None and not _online():  # TFDS itself would try for minutes
        raise DataError(
            f"tfds:{builder.name} is not in {builder.data_dir}, and there is no network to download it. Prepare it "
            "where there is one, or set TFDS_DATA_DIR to the folder that holds it. 'mnist' needs no network."
        )
    try:
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
    except Exception as error:  # as many kinds as there are builders
        if importlib.util.find_spec("tensorflow") is None:
            raise _needs_tensorflow(builder.name) from error
        raise DataError(f"tfds:{builder.name} can't be prepared: {_first_line(error)}") from error


def _needs_tensorflow(name: str) -> DataError:
    return DataError(
        f'Preparing tfds:{name} needs TensorFlow, which is not installed: `pip install "flaxae[tfds-prepare]"`. '
        "Once the set is prepared, reading it needs none."
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _online() -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(_HOST, method="HEAD"), timeout=_PATIENCE_S):
            return True
    except urllib.error.HTTPError:  # an answer, even if a refusal
        return True
    except OSError:
        return False


def _used(builder: "DatasetBuilder", label: str | None) -> _Used:
    import tensorflow_datasets as tfds

    name, info = f"tfds:{builder.name}", builder.info
    features: dict[str, Any] = dict(cast(Any, info.features))
    if label is None:
        supervised = str(info.supervised_keys[1]) if info.supervised_keys else "label"
        label = supervised if isinstance(features.get(supervised), tfds.features.ClassLabel) else None
    elif label not in features:
        raise DataError(f"{name}: " + unknown("feature", label, features))
    classes = None if label is None else getattr(features[label], "names", None)
    classes = tuple(classes) if classes else None
    if "image" in features:
        if None in features["image"].shape:
            raise DataError(f"{name} holds images that differ in size; expected one size, as in 'tfds:cifar10'.")
        return _Used(["image"], None, label, classes)
    inputs = {key: feature for key, feature in features.items() if key != label}
    odd = [key for key, feature in inputs.items() if not _is_numbers(feature)]
    if odd:
        raise DataError(
            f"{name}: the features {', '.join(map(repr, odd))} are not numbers; expected an 'image' feature or nothing "
            "but numbers. Save the columns that you want as .csv or .npy and load that."
        )
    columns = []
    for key, feature in inputs.items():
        columns += [f"{key}_{i}" for i in range(feature.shape[0])] if feature.shape else [key]
    return _Used(list(inputs), tuple(columns), label, classes)


def _is_numbers(feature: Any) -> bool:
    import tensorflow_datasets as tfds

    if type(feature) not in (tfds.features.Tensor, tfds.features.Scalar):  # not a subclass, such as ClassLabel
        return False
    return np.dtype(feature.np_dtype).kind in "buif" and len(feature.shape) < 2 and None not in feature.shape


def _read(builder: "DatasetBuilder", used: _Used) -> Parts:
    parts = {}
    for split in {"train", "test"} & set(builder.info.splits):
        examples = _examples(builder, split)
        parts[split] = np.stack([_input(example, used) for example in examples])
        if used.label is not None:
            parts[f"{split}_labels"] = np.array([example[used.label] for example in examples])
    return Parts(**parts, classes=used.classes, columns=used.columns)


def _bytes(builder: "DatasetBuilder", used: _Used) -> int:
    """The bytes that the larger split takes in memory."""
    features, splits = cast(Any, builder.info.features), builder.info.splits
    per_example = sum(math.prod(features[key].shape) * np.dtype(features[key].np_dtype).itemsize for key in used.inputs)
    return per_example * max(splits[split].num_examples for split in {"train", "test"} & set(splits))


def _input(example: dict[str, Any], used: _Used) -> np.ndarray:
    """The part of an example that is trained on."""
    if used.columns is None:
        return example["image"]
    return np.concatenate([np.ravel(example[key]) for key in used.inputs])


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """A source of examples for a `Stream`."""

    source: Any
    used: _Used

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, numbers: list[int]) -> list[np.ndarray]:
        return [_input(example, self.used) for example in self.source.__getitems__(numbers)]


def _examples(builder: "DatasetBuilder", split: str) -> list[dict[str, Any]]:
    source = _source(builder, split)
    with reading(builder.data_path):
        return source.__getitems__(range(len(source)))  # ten times as quick as one by one


def _source(builder: "DatasetBuilder", split: str) -> Any:
    """The data source of a split, which gives examples by number."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    name, folder = f"tfds:{builder.name}", builder.data_path
    try:
        source = cast(Any, builder).as_data_source(split=split)  # its decorator hides its arguments from type checkers
    except NotImplementedError as error:
        raise DataError(
            f"{name} is prepared in {folder} in a format that can't be read by index; expected array_record. "
            "Set TFDS_DATA_DIR to another folder to prepare it anew."
        ) from error
    with reading(folder):
        # The source takes its length from the set's metadata, which may differ from the files.
        found = len(ArrayRecordDataSource([str(path) for path in builder.info.splits[split].filepaths]))
        if found != len(source):
            raise DataError(
                f"{name} has {found} examples in {split!r}; its own record says {len(source)}. "
                f"Remove {folder} and prepare it again."
            )
        return source
