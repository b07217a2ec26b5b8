"""Where images lie: in a folder, an archive, a file of several pages, or in memory; and what folders' names say."""

import contextlib
import dataclasses
import io
import os
import pathlib
import shutil
import tarfile
import tempfile
import weakref
import zipfile
from collections.abc import Iterator, Sequence
from typing import IO, Any, NamedTuple

import numpy as np

from flaxae.data import formats, memory
from flaxae.errors import DataError

ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
_TRAIN, _TEST, _VALIDATION = ("train", "training"), ("test", "testing"), ("val", "valid", "validation")
_NOISY = ("noisy", "noise", "input", "inputs", "lq", "low", "blurred", "blur", "degraded", "raw", "source", "in")
_CLEAN = ("clean", "target", "targets", "gt", "groundtruth", "ground_truth", "hq", "high", "sharp", "original", "out")
_MASKS = ("ground_truth", "groundtruth", "masks", "mask")  # beside train and test: where defects are


class Files:
    """The files of a folder, an archive, or one alone, by their names relative to it; none is read yet.

    Raises:
        DataError: the archive is damaged.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self._zip: zipfile.ZipFile | None = None
        self._root, self._stored = path, {}
        if path.is_dir():
            self.names = sorted(_walk(path))
        elif not is_archive(path):
            self.names, self._root = [path.name], path.parent
        else:
            from flaxae.data.arrays import reading

            with reading(path):
                names = self._open_zip() if path.suffix.lower() == ".zip" else self._unpack()
            self.names = sorted(name for name in names if not _is_hidden(name))

    def _open_zip(self) -> list[str]:
        self._zip = zipfile.ZipFile(self.path)
        return [member.filename for member in self._zip.infolist() if not member.is_dir()]

    def _unpack(self) -> list[str]:
        """What a tar holds, copied into a folder that goes with this object: a compressed one is only read in order."""
        self._root = pathlib.Path(tempfile.mkdtemp(prefix="flaxae-"))
        weakref.finalize(self, shutil.rmtree, self._root, ignore_errors=True)
        total = 0
        with tarfile.open(self.path) as archive:
            for number, member in enumerate(archive):
                total += member.size
                memory.check_disk(total, self._root, self.path)
                if member.isfile() and not _is_hidden(member.name) and (file := archive.extractfile(member)):
                    name = pathlib.PurePosixPath(member.name).as_posix()
                    self._stored[name] = str(number)  # whatever the name is, nothing is written elsewhere
                    with (self._root / str(number)).open("wb") as copy:
                        shutil.copyfileobj(file, copy)
        return list(self._stored)

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[io.BufferedIOBase | IO[bytes]]:
        """One of them, to be read from any place in it.

        Raises:
            DataError: it can't be read.
        """
        from flaxae.data.arrays import reading

        with reading(self.called(name)):
            if self._zip is not None:
                memory.check(self._zip.getinfo(name).file_size, self.called(name))  # more is never unpacked
                file: io.BufferedIOBase | IO[bytes] = io.BytesIO(self._zip.read(name))
            else:
                file = (self._root / self._stored.get(name, name)).open("rb")
        with file:
            yield file

    def called(self, name: str) -> str:
        """What messages call it."""
        return str(self.path if name == self.path.name and not self.path.is_dir() else self.path / name)

    def images(self) -> tuple[list[str], list[str]]:
        """The names of those that are images by their ending (of those without one, DICOM files), and of the others."""
        endings, found, others = formats.suffixes("image"), [], []
        for name in self.names:
            suffix = pathlib.PurePosixPath(name).suffix.lower()
            is_image = suffix in endings or ((not suffix or suffix[1:].isdigit()) and self._is_dicom(name))
            (found if is_image else others).append(name)
        return found, others

    def _is_dicom(self, name: str) -> bool:
        try:
            with self.open(name) as file:
                return file.read(132)[128:] == b"DICM"
        except DataError:
            return False


def is_archive(path: pathlib.Path) -> bool:
    """Whether a file is an archive, by the ending of its name."""
    return path.name.lower().endswith(ARCHIVES)


@dataclasses.dataclass(frozen=True)
class Layout:
    """What folders' names say: which images are of the training part and which of the test part, and their classes."""

    train: list[str]
    test: list[str] = dataclasses.field(default_factory=list)
    classes: dict[str, str] = dataclasses.field(default_factory=dict)  # of every image, or of none
    notes: list[str] = dataclasses.field(default_factory=list)  # for the line on what was read


def layout(names: Sequence[str], source: str | os.PathLike[str]) -> Layout:
    """The parts and classes of images by their names, relative to `source`.

    `train` and `test` (or `val`, `valid`, in any case) are parts, of all images where there is no such folder. Below, a
    folder for each class. Images at other depths have no class.

    Raises:
        DataError: the folders are pairs, such as noisy images and clean ones, which are not two classes.
    """
    prefix = _common_folder(names)
    below: dict[str, list[str]] = {}
    for name in names:
        first, _, rest = name[len(prefix) :].partition("/")
        below.setdefault(first if rest else "", []).append(name)
    notes = [f"in {prefix.rstrip('/')}"] if prefix else []
    parts = {known: [f for f in below if f.lower() in known] for known in (_TRAIN, _TEST, _VALIDATION)}
    if not parts[_TRAIN]:
        _refuse_pairs(below, prefix, source)
        return Layout(list(names), [], _classes(names, prefix, notes), notes)
    train_folder, test_folders = parts[_TRAIN][0], parts[_TEST] or parts[_VALIDATION]
    others = [f for f in below if f not in (train_folder, *test_folders[:1])]
    notes += [f"{prefix}{train_folder} is the training part"]
    notes += [f"{prefix}{test_folders[0]} the test part"] if test_folders else []
    if others:
        images = sum(len(below[f]) for f in others)
        notes.append(f"{images} images in {', '.join(f'{prefix}{f}' or 'the folder itself' for f in others)} left out")
    chosen = {f: below[f] for f in (train_folder, *test_folders[:1])}
    for folder, inside in chosen.items():
        _refuse_pairs(_folders(inside, f"{prefix}{folder}/"), f"{prefix}{folder}/", source)
    classes = [_classes(inside, _common_folder(inside, least=f"{prefix}{f}/"), notes) for f, inside in chosen.items()]
    known = {name: label for each in classes for name, label in each.items()} if all(classes) else {}
    return Layout(chosen[train_folder], chosen[test_folders[0]] if test_folders else [], known, notes)


def _common_folder(names: Sequence[str], least: str = "") -> str:
    """The way down, such as "2024/site A/", to the first folder with images or several folders that have some.

    The last folder of a way without branches is a class, as it is where others lie beside it.
    """
    prefix = least
    while True:
        folders = {name[len(prefix) :].partition("/")[0] for name in names if "/" in name[len(prefix) :]}
        if len(folders) != 1 or any("/" not in name[len(prefix) :] for name in names):
            return prefix
        (only,) = folders
        inside = [name[len(prefix) + len(only) + 1 :] for name in names]
        if all("/" not in name for name in inside):  # images of one class
            return prefix if prefix == least else f"{prefix}{only}/"
        prefix = f"{prefix}{only}/"


def _classes(names: Sequence[str], prefix: str, notes: list[str]) -> dict[str, str]:
    depths = {name[len(prefix) :].count("/") for name in names}
    if depths == {1}:
        return {name: name[len(prefix) :].partition("/")[0] for name in names}
    if len(depths) > 1 or max(depths) > 1:
        notes.append("images lie at several depths, so that their folders are not taken for classes")
    return {}


def _folders(names: Sequence[str], prefix: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        first, _, rest = name[len(prefix) :].partition("/")
        found.setdefault(first if rest else "", []).append(name)
    return found


def _refuse_pairs(folders: dict[str, list[str]], prefix: str, source: str | os.PathLike[str]) -> None:
    noisy = next((f for f in folders if f.lower() in _NOISY), None)
    clean = next((f for f in folders if f.lower() in _CLEAN), None)
    if len(folders) != 2 or "" in folders or noisy is None or clean is None:
        return
    stems = [{pathlib.PurePosixPath(name).stem for name in folders[f]} for f in (noisy, clean)]
    if len(stems[0] & stems[1]) < 0.5 * min(map(len, stems)):
        return
    base = pathlib.Path(source) / prefix
    raise DataError(
        f"{base / noisy} and {base / clean} hold pairs, the same image in each, and not two classes. To learn the one "
        f"from the other: --exp denoise --data {base / noisy} --target {base / clean}. To train on one of them alone, "
        f"give that folder."
    )


def _walk(root: pathlib.Path) -> Iterator[str]:
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not _is_hidden(name)]
        relative = pathlib.Path(folder).relative_to(root)
        yield from ((relative / name).as_posix() for name in files if not _is_hidden(name))


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in pathlib.PurePosixPath(name).parts)


def in_memory(source: Any) -> list[tuple[str, Any]] | None:
    """Names and values (each given when it is called) of images in memory; None of what is no such thing.

    They are a list of PIL images or arrays, an array of [n, height, width(, channels)] of NumPy, torch or JAX, or
    a data set of Hugging Face with one column of images, or that column.
    """
    if isinstance(source, str | os.PathLike | bytes | dict):
        return None
    columns = getattr(source, "column_names", None)
    features = getattr(source, "features", None)
    if columns is not None and features is not None:
        return [(f"image {i}", _Later(source, i, _image_column(columns, features))) for i in range(len(source))]
    if hasattr(source, "__array__") or hasattr(source, "__dlpack__"):
        source = as_array(source)
        if source.ndim not in (3, 4):
            return None
    elif not isinstance(source, Sequence) and not (hasattr(source, "__getitem__") and hasattr(source, "__len__")):
        return None
    return [(f"image {i}", _Later(source, i)) for i in range(len(source))]


def as_array(x: Any) -> np.ndarray:
    """An array of NumPy, torch or JAX, or a PIL image, as one of NumPy."""
    if hasattr(x, "detach"):  # torch's
        x = x.detach().cpu()
        if str(x.dtype) == "torch.bfloat16":
            x = x.float()
        return x.numpy()
    return np.asarray(x)


def _image_column(columns: Sequence[str], features: Any) -> str:
    found = [name for name in columns if type(features[name]).__name__ == "Image"]
    if len(found) != 1:
        raise DataError(
            f"The data set has the columns {', '.join(columns)}, {len(found) or 'none'} of them of images. Give the "
            'column itself: dataset["image"].'
        )
    return found[0]


class _Later(NamedTuple):
    """A value of a sequence, taken when it is asked for."""

    source: Any
    number: int
    column: str | None = None

    def __call__(self) -> Any:
        value = self.source[self.number]
        return value if self.column is None else value[self.column]
