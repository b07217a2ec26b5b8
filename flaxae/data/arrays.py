"""`.npy`, `.npz` and `.mat` files and folders of IDX files, whose headers are checked before anything is allocated."""

import contextlib
import gzip
import io
import math
import os
import pathlib
import re
import struct
import zipfile
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from flaxae.data import memory
from flaxae.data.parts import Parts
from flaxae.errors import DataError, FlaxaeError

MAX_BYTES = 16 * 2**30  # the most that one source may take in memory
MAP_BYTES = 2 * 2**30  # larger .npy files are mapped instead of read
_NESTED = ("cell", "struct", "object", "function", "opaque", "char", "sparse")  # MATLAB's, which hold no array
_MAX_DEFLATE_RATIO = 1032  # zlib's own bound: no deflate stream unpacks to more
Readable = io.BufferedIOBase | IO[bytes]  # a member of an archive is the first, but is typed as the second


@contextlib.contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns anything that the libraries raise on an unreadable file into a DataError with the file and the reason."""
    try:
        yield
    except (FlaxaeError, ImportError):
        raise
    except PermissionError as error:
        raise DataError(f"{path} can't be read: permission denied.") from error
    except Exception as error:  # libraries raise many types on damaged files
        reason = " ".join(str(error).split()).rstrip(".")[:300] or type(error).__name__
        raise DataError(f"{path} can't be read: {reason}. It may be damaged or of another format.") from error


def check_size(claimed: int, path: str | os.PathLike[str], *, at_most: int | None = None) -> None:
    """Refuses a file that claims more bytes than it can hold, or than there is memory for.

    Raises:
        DataError: `claimed` is above `at_most` or MAX_BYTES, or would take too much of the free memory.
    """
    if at_most is not None:
        check_claim(claimed, path, at_most=at_most)
    memory.check(claimed, path, advice="Load a part of it, or save it as .npy, which may be larger than memory.")
    if claimed > MAX_BYTES:
        raise DataError(
            f"{path} holds {claimed:,} bytes of data; the limit is {MAX_BYTES:,}. Load a part of it, or save it as "
            ".npy, which may be larger than memory."
        )


def check_claim(claimed: int, path: str | os.PathLike[str], *, at_most: int) -> None:
    """Refuses a file that claims more bytes than it can hold.

    Raises:
        DataError: `claimed` is above `at_most`.
    """
    if claimed > at_most:
        raise DataError(f"{path} claims {claimed:,} bytes of data but holds {at_most:,} at most: it is cut short.")


def read_npy(path: pathlib.Path) -> np.ndarray:
    """The array of a `.npy` file.

    Raises:
        DataError: the file is unreadable, damaged, too large or holds Python objects.
    """
    with reading(path), path.open("rb") as file:
        return _npy(file, path.stat().st_size, str(path))


def load_npy(path: pathlib.Path) -> Parts:
    """The array of a `.npy` file as the training part: see `read_npy`."""
    return Parts(train=read_npy(path))


def write_npy(file: IO[bytes], path: pathlib.Path, array: np.ndarray) -> None:
    """Writes an array into an open binary file."""
    np.save(file, array, allow_pickle=False)


def map_npy(path: pathlib.Path) -> np.ndarray:
    """The array of a `.npy` file as a memory map, of any size: nothing of it is read yet.

    Raises:
        DataError: the file is unreadable, damaged, holds Python objects, or is in Fortran order.
    """
    with reading(path), path.open("rb") as file:
        _, fortran_order, _ = _npy_header(file, path.stat().st_size, str(path))
        if fortran_order:
            raise DataError(f"{path} is in Fortran order, whose examples can't be read one by one. Save it in C order.")
        return np.load(path, mmap_mode="r", allow_pickle=False)


def read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a `.npz` file by name.

    Raises:
        DataError: the file is unreadable, damaged, too large or holds Python objects.
    """
    arrays = {}
    with reading(path), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        check_size(sum(member.file_size for member in members), path)
        for member in members:
            check_size(member.file_size, path, at_most=_MAX_DEFLATE_RATIO * max(member.compress_size, 64))
            with archive.open(member) as file:
                name = member.filename.removesuffix(".npy")
                arrays[name] = _npy(file, member.file_size, f"{path}[{name!r}]")
    return arrays


def load_npz(path: pathlib.Path) -> Parts:
    """The parts of a `.npz` file, by the names of its arrays.

    These are `train` and `test` (or Keras' `x_train` and `x_test`), or `x` or `X`, or one array of any name; with
    labels under `train_labels` and `test_labels` (or `y_train` and `y_test`), or `y`. Only the first is required.

    Raises:
        DataError: as in `read_npz`; or no array has such a name.
    """
    arrays = read_npz(path)
    return _parts(arrays, path)


def load_mat(path: pathlib.Path) -> Parts:
    """The parts of a MATLAB file, by the names that `load_npz` takes. Version 7.3 files need h5py.

    Raises:
        DataError: the file is unreadable, damaged or too large, or no array has such a name.
    """
    from scipy.io import loadmat, whosmat

    with reading(path):
        check_size(path.stat().st_size, path)
        with path.open("rb") as file:
            is_hdf5 = file.read(128).startswith(b"MATLAB 7.3")
        if is_hdf5:
            import h5py

            with h5py.File(path) as file:
                parts = {name: hdf5_part(file, name, path) for name in map(str, file)}
                arrays = {name: part for name, part in parts.items() if isinstance(part, h5py.Dataset)}
                plain = {name: part for name, part in arrays.items() if not part.dtype.hasobject}  # no texts, no cells
                check_size(sum(part.nbytes for part in plain.values()), path)
                held = {name: np.asarray(part).T for name, part in plain.items()}
        else:
            known = [(name, shape) for name, shape, kind in whosmat(path) if kind not in _NESTED]
            check_size(sum(8 * math.prod(shape) for _, shape in known), path)
            held = loadmat(path, variable_names=[name for name, _ in known])
    arrays = {name: np.asarray(array) for name, array in held.items() if not name.startswith("__")}
    numeric = {name: array for name, array in arrays.items() if array.dtype.kind in "buif" and array.size > 1}
    return _parts(numeric or arrays, path)


def hdf5_part(group: Any, name: str, path: pathlib.Path) -> Any:
    """The h5py object of that name in a group, which is in the file itself: HDF5 can point to any file of the machine.

    Raises:
        DataError: it is a link, its values are in other files, or a chunk of them is too large.
    """
    import h5py

    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise DataError(f"{path}: {name!r} is a link, which is not followed. Save what it leads to in the file itself.")
    found = group[name]
    if isinstance(found, h5py.Dataset):
        if found.external or found.is_virtual:
            raise DataError(f"{path}: the values of {name!r} are in other files. Save them in the file itself.")
        check_size(math.prod(found.chunks or ()) * found.dtype.itemsize, path)  # a chunk is unpacked as a whole
    return found


def write_mat(file: IO[bytes], path: pathlib.Path, array: np.ndarray) -> None:
    """Writes an array, named x, into an open binary file."""
    from scipy.io import savemat

    savemat(file, {"x": array}, do_compression=True)


def _parts(arrays: dict[str, np.ndarray], path: pathlib.Path) -> Parts:
    spellings = {"x": "train", "y": "train_labels", "x_train": "train", "y_train": "train_labels"}
    spellings |= {"x_test": "test", "y_test": "test_labels"}
    if len(arrays) == 1:
        return Parts(train=next(iter(arrays.values())))
    parts = {spellings.get(name.lower(), name): array for name, array in arrays.items()}
    if len(parts) < len(arrays) or not {"train"} <= set(parts) <= {"train", "test", "train_labels", "test_labels"}:
        raise DataError(
            f"{path} holds the arrays {', '.join(map(repr, arrays))}; expected 'x' (and 'y'), or 'train' and 'test', "
            "or 'x_train' and 'x_test' (and 'y_train', 'y_test')."
        )
    labels = {name: array.reshape(-1) for name, array in parts.items() if name.endswith("_labels")}
    return Parts(parts["train"], parts.get("test"), labels.get("train_labels"), labels.get("test_labels"))


def write_npz(file: IO[bytes], path: pathlib.Path, array: np.ndarray) -> None:
    """Writes an array, named x, into an open binary file."""
    np.savez(file, allow_pickle=False, x=array)


_IDX_NAME = re.compile(r"(?P<part>train|t10k|test)-(?P<what>images|labels)[-.]idx\d-ubyte(\.gz)?")
_IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def is_idx_folder(folder: pathlib.Path) -> bool:
    """Whether a folder holds IDX files under MNIST's names, such as `train-images-idx3-ubyte.gz`."""
    return any(_IDX_NAME.fullmatch(path.name) for path in folder.iterdir())


def load_idx(folder: pathlib.Path) -> Parts:
    """The parts of a folder of IDX files, raw or gzipped; all but the training images are optional.

    Raises:
        DataError: a file is unreadable, damaged or too large, or the training images are missing.
    """
    parts = {}
    for path in sorted(folder.iterdir()):
        if match := _IDX_NAME.fullmatch(path.name):
            part = "train" if match["part"] == "train" else "test"
            parts[part if match["what"] == "images" else f"{part}_labels"] = _read_idx(path)
    if "train" not in parts:
        raise DataError(f"{folder} holds IDX files but not train-images-idx3-ubyte (or .gz).")
    return Parts(**parts)


def _npy(file: Readable, size: int, name: str) -> np.ndarray:
    with reading(name):
        shape, _, dtype = _npy_header(file, size, name)
        check_size(math.prod(shape) * dtype.itemsize, name)
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)


def _npy_header(file: Readable, size: int, name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran order, and dtype, checked against the size of the file."""
    with reading(name):
        version = np.lib.format.read_magic(file)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise DataError(f"{name} is in version {version} of the .npy format; expected (1, 0) or (2, 0).")
        shape, fortran_order, dtype = readers[version](file)
        if dtype.hasobject:
            raise DataError(f"{name} holds pickled Python objects, which are never loaded. Save numbers.")
        if min(shape, default=0) < 0:
            raise DataError(f"{name} can't be read: its header has shape {shape}. It may be damaged.")
        check_claim(math.prod(shape) * dtype.itemsize, name, at_most=size - file.tell())
        return shape, fortran_order, dtype


def _read_idx(path: pathlib.Path) -> np.ndarray:
    compressed = path.suffix == ".gz"
    with reading(path), gzip.open(path) if compressed else path.open("rb") as file:
        zeros, code, axes = struct.unpack(">HBB", _exactly(file, 4, path))
        if zeros or code not in _IDX_DTYPES or not axes:
            raise DataError(f"{path} is not an IDX file: its first four bytes are {(zeros, code, axes)}.")
        shape = struct.unpack(f">{axes}I", _exactly(file, 4 * axes, path))
        dtype = np.dtype(_IDX_DTYPES[code])
        size = math.prod(shape) * dtype.itemsize
        check_size(size, path, at_most=path.stat().st_size * (_MAX_DEFLATE_RATIO if compressed else 1))
        data = bytearray(_exactly(file, size, path))
        if file.read(1):
            raise DataError(f"{path} holds more bytes than its header's shape {shape} says: it is damaged.")
        return np.frombuffer(data, dtype).reshape(shape)


def _exactly(file: Readable, size: int, path: pathlib.Path) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise DataError(f"{path} is cut short: its header asks for {size:,} bytes and {len(data):,} are there.")
    return data
