"""Write files and folders so that they appear whole or not at all. All of flaxae writes through this module."""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

_under_way: set[Path] = set()


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, folders: bool = False) -> Iterator[Path]:
    """A place of the same name to write a file or folder to, which takes the place of `path` once the block has ended.

    The folders on the way are made. What stood at `path` stays until what is new is on the disk, also after a power
    cut, and for good if the block raises or the process is killed; a folder can take the place of an empty one only,
    or with `folders` of any, which is read by `settled`. Of two writers of one path at a time the later one succeeds.

        with atomic.replacing("codes.npz") as unfinished:
            np.savez(unfinished, codes=codes)

    Raises:
        OSError: the disk is full, the place can't be written, or another process has begun to write it meanwhile.
    """
    path = Path(path)
    left = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(left, ignore_errors=True)  # by a writer that was killed
    own = left / uuid.uuid4().hex  # so that no other writer's half is ever put in place
    _under_way.add(own)
    try:
        own.mkdir(parents=True)
        unfinished = own / path.name
        yield unfinished
        if not own.exists():
            raise OSError(errno.EBUSY, "Another process has begun to write it meanwhile", os.fspath(path))
        put(unfinished, path, folders=folders)
    finally:
        _remove(own)


def abandon() -> None:
    """Remove what this process has begun to write, before it ends at once."""
    for own in list(_under_way):
        _remove(own)


def _remove(own: Path) -> None:
    shutil.rmtree(own, ignore_errors=True)
    with contextlib.suppress(OSError):  # another writer's is beside it
        own.parent.rmdir()
    _under_way.discard(own)


def put(written: Path, path: Path, *, folders: bool = False) -> None:
    """Move a file or folder that is finished to its place, once it is on the disk.

    With `folders`, a folder that is there stands aside until the new one is in its place, see `settled`.
    """
    for part in [written, *written.rglob("*")]:
        _to_disk(part)
    if folders and path.is_dir() and any(path.iterdir()):
        old = _aside(path)
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
        written.rename(path)
        _to_disk(path.parent)
    else:
        written.replace(path)
        _to_disk(path.parent)
    if folders:
        shutil.rmtree(_aside(path), ignore_errors=True)


def settled(path: Path) -> Path:
    """Where a folder is that `put` puts in place: there, or, where a process was killed between two names, aside."""
    return _aside(path) if not path.exists() and _aside(path).is_dir() else path


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _to_disk(path: Path) -> None:
    """Flush a file, or a folder's list of names, from the operating system's cache to the disk."""
    if path.is_dir():
        with contextlib.suppress(OSError):  # some systems can't flush folders
            _sync(path, os.O_RDONLY)
    else:
        _sync(path, os.O_RDWR)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
