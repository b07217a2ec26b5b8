"""Sparse matrices: their files, and reading their rows a part at a time, so that they are never dense as a whole.

x = sparse.read("counts.mtx")                 # a scipy.sparse.csr_matrix, [examples, columns]
flaxae.fit(model, data.Stream(Rows(x)))       # a window is dense at a time
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse
from jaxtyping import Float

from flaxae.data.arrays import check_size, hdf5_part, read_npz, reading
from flaxae.data.files import existing
from flaxae.data.stream import Stream
from flaxae.errors import DataError, missing

SUFFIXES = (".npz", ".mtx", ".h5ad")
DENSE_BYTES = 64 * 2**20  # up to which a matrix may be dense as a whole: training on an array is faster
MOST_BYTES = 2**34  # of the numbers and their places
MOST_LINE = 2**16  # bytes of a line of a file's header

Matrix = Any  # a scipy.sparse.csr_matrix of float32, [examples, columns]; its types say too little


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """A sparse matrix as a source for `data.Stream`: `rows[lo:hi]` is dense."""

    matrix: Matrix

    def __len__(self) -> int:
        return self.matrix.shape[0]

    def __getitem__(self, part: slice) -> Float[np.ndarray, "examples columns"]:
        return self.matrix[part].toarray()


def examples(x: Matrix) -> np.ndarray | Stream:
    """The rows to train on: a small matrix dense, of others a stream, which is dense a window at a time."""
    return x.toarray() if 4 * x.shape[0] * x.shape[1] <= DENSE_BYTES else Stream(Rows(x))


def read(path: str | os.PathLike[str]) -> Matrix:
    """The sparse matrix of a file: SciPy's `.npz`, Matrix Market's `.mtx`, or the X of AnnData's `.h5ad`.

    Raises:
        DataError: there is no such file, or it holds no sparse matrix of numbers, or one that is damaged or too large.
    """
    path = existing(path)
    readers = {".npz": _read_npz, ".mtx": _read_mtx, ".h5ad": _read_h5ad}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path} ends in {path.suffix!r}; expected a sparse matrix, {', '.join(SUFFIXES)}.")
    with reading(path):
        return checked(reader(path), path)


def checked(x: Any, source: object = "The matrix") -> Matrix:
    """The matrix by its rows, in float32, without stored zeros.

    Raises:
        DataError: it has no rows or no columns, or numbers that are not finite.
    """
    x = scipy.sparse.csr_matrix(x, dtype=np.float32)
    x.sum_duplicates()
    x.eliminate_zeros()
    if 0 in x.shape:
        raise DataError(f"{source} has {x.shape[0]} rows and {x.shape[1]} columns; expected one at least of each.")
    if not np.isfinite(x.data).all():
        raise DataError(f"{source} has numbers that are missing or not finite; remove or fill them first.")
    return x


def _read_npz(path: pathlib.Path) -> Matrix:
    arrays = read_npz(path)
    wanted = {"data", "indices", "indptr", "shape", "format"}
    if not wanted <= set(arrays):
        raise DataError(f"{path} holds the arrays {', '.join(arrays)}; expected those of scipy.sparse.save_npz.")
    kind = arrays["format"].item()
    return _compressed(arrays, kind.decode() if isinstance(kind, bytes) else str(kind), path)


def _compressed(arrays: Any, kind: str, path: pathlib.Path) -> Matrix:
    """A matrix by its rows or columns, whose places are checked: SciPy trusts them."""
    makers = {"csr": scipy.sparse.csr_matrix, "csc": scipy.sparse.csc_matrix}
    if kind not in makers:
        raise DataError(f"{path} holds a matrix of the format {kind!r}; expected csr or csc: `x.tocsr()`.")
    shape = tuple(int(size) for size in arrays["shape"])
    check_size(8 * sum(shape), path, at_most=MOST_BYTES)
    x = makers[kind](tuple(np.asarray(arrays[name]) for name in ("data", "indices", "indptr")), shape=shape)
    x.check_format(full_check=True)
    return x


def _read_mtx(path: pathlib.Path) -> Matrix:
    """A matrix in coordinates. SciPy's own reader ends the process on some damaged files."""
    import pandas as pd

    size = path.stat().st_size
    check_size(size, path)
    with path.open("rb") as file:
        kind = file.readline(MOST_LINE).decode("latin-1").lower().split()
        if len(kind) != 5 or kind[:2] != ["%%matrixmarket", "matrix"]:
            raise DataError(f"{path} is no Matrix Market file: its first line is no header.")
        if kind[2] != "coordinate":
            raise DataError(f"{path} holds a dense matrix; expected a sparse one, in coordinates.")
        if kind[3] not in ("real", "integer", "pattern") or kind[4] not in ("general", "symmetric"):
            raise DataError(f"{path} holds {kind[3]}, {kind[4]} numbers; expected real and general ones.")
        line = b"%"
        while line.startswith(b"%") or line.isspace():
            line = file.readline(MOST_LINE)
        rows, columns, entries = map(int, line.split())
        if min(rows, columns, entries) < 0:
            raise DataError(f"{path} can't be read: its header claims {entries} entries of {rows} × {columns}.")
        check_size(8 * (rows + columns) + 24 * entries, path, at_most=MOST_BYTES)
        check_size(4 * entries, path, at_most=size)  # characters that an entry takes at least
        numbers = 2 if kind[3] == "pattern" else 3
        frame = pd.read_csv(file, sep=r"\s+", header=None, names=list(range(numbers)), comment="%", dtype=np.float64)
    places = frame[[0, 1]].to_numpy()
    if len(frame) != entries or not ((places >= 1) & (places <= (rows, columns)) & (places == np.rint(places))).all():
        raise DataError(f"{path} is damaged: its entries are not {entries:,} places in a matrix of {rows} × {columns}.")
    i, j = (places - 1).astype(np.int64).T
    values = np.ones(entries, np.float32) if kind[3] == "pattern" else frame[2].to_numpy(np.float32)
    if kind[4] == "symmetric":
        again = i != j
        i, j = np.concatenate([i, j[again]]), np.concatenate([j, i[again]])
        values = np.concatenate([values, values[again]])
    return scipy.sparse.coo_matrix((values, (i, j)), (rows, columns))


def _read_h5ad(path: pathlib.Path) -> Matrix:
    check_size(path.stat().st_size, path)
    try:
        import h5py
    except ImportError as error:
        raise DataError(missing(str(path), "cells", error)) from error
    with h5py.File(path) as file:
        x = hdf5_part(file, "X", path) if "X" in file else None
        if isinstance(x, h5py.Dataset):
            _check_numbers([x], path)
            parts = [scipy.sparse.csr_matrix(x[lo : lo + 1024]) for lo in range(0, len(x), 1024)]
            return scipy.sparse.vstack(parts)
        if x is None or not {"data", "indices", "indptr"} <= set(x):
            raise DataError(f"{path} has no matrix X; expected a file of AnnData.")
        parts = {name: hdf5_part(x, name, path) for name in ("data", "indices", "indptr")}
        _check_numbers(list(parts.values()), path)
        arrays = {name: part[:] for name, part in parts.items()} | {"shape": x.attrs["shape"]}
        kind = str(x.attrs.get("encoding-type", "csr_matrix")).removesuffix("_matrix")
        return _compressed(arrays, kind, path)


def _check_numbers(parts: Sequence[Any], path: pathlib.Path) -> None:
    """Raise DataError unless an HDF5 file's parts are numbers that fit into memory: texts may be of any length."""
    if any(part.dtype.kind not in "buif" for part in parts):
        raise DataError(f"{path} can't be read: its matrix X is not of numbers.")
    check_size(sum(part.nbytes for part in parts), path, at_most=MOST_BYTES)
