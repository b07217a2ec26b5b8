"""Write files and folders so that they appear whole or not at all. All of flaxae writes through this module."""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path of the same name, to write a file or folder to. It replaces `path` when the block ends.

    Missing parent folders are made. What was at `path` stays there until the new content is on the disk, so that it
    survives a power cut; if the block raises or the process is killed, it stays for good. A folder can only replace an
    empty folder. If two processes write the same path at the same time, the one that began later succeeds.

        with atomic.replacing("codes.npz") as unfinished:
            np.savez(unfinished, codes=codes)

    Raises:
        OSError: the disk is full, the place can't be written, or another process has begun to write it meanwhile.
    """
    path = Path(path)
    left = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(left, ignore_errors=True)  # left by a writer that was killed
    own = left / uuid.uuid4().hex  # so that another writer's unfinished file is never put in place
    try:
        own.mkdir(parents=True)
        unfinished = own / path.name
        yield unfinished
        if not own.exists():
            raise OSError(errno.EBUSY, "Another process has begun to write it meanwhile", os.fspath(path))
        for written in [unfinished, *unfinished.rglob("*")]:
            _to_disk(written)
        unfinished.replace(path)
        _to_disk(path.parent)
    finally:
        shutil.rmtree(own, ignore_errors=True)
        with contextlib.suppress(OSError):  # another writer's file is in it
            left.rmdir()


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
