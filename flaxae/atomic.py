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
    """A temporary path of the same name, to write a file or folder to. It replaces `path` when the block ends.

    Missing parent folders are made. What was at `path` stays there until the new content is on the disk, so that it
    survives a power cut; if the block raises or the process is killed, it stays for good. A folder can only replace an
    empty folder, or with `folders` any folder; then find it by `settled` to read it. If two processes write the same
    path at the same time, the one that began later succeeds.

        with atomic.replacing("codes.npz") as unfinished:
            np.savez(unfinished, codes=codes)

    Raises:
        OSError: the disk is full, the place can't be written, or another process has begun to write it meanwhile.
    """
    path = Path(path)
    left = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(left, ignore_errors=True)  # left by a writer that was killed
    own = left / uuid.uuid4().hex  # so that another writer's unfinished file is never put in place
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
    """Remove all unfinished files of this process, for when it has to end at once."""
    for own in list(_under_way):
        _remove(own)


def _remove(own: Path) -> None:
    shutil.rmtree(own, ignore_errors=True)
    with contextlib.suppress(OSError):  # another writer's file is beside it
        own.parent.rmdir()
    _under_way.discard(own)


def put(written: Path, path: Path, *, folders: bool = False) -> None:
    """Flush a finished file or folder to the disk, then move it to `path`.

    With `folders`, an existing folder at `path` is moved aside until the new one is in its place, see `settled`.
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
    """Where to find a folder that `put` replaces: at `path`, or moved aside if a process was killed in between."""
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
