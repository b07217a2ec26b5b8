"""What binds the files of a folder together: a manifest with the SHA-256 of each, written last, checked at reading.

    folder/manifest    its own SHA-256, then JSON: `files`, and what else is known of them

A checkpoint has one, a saved model, a detector, an estimator, and a run. That of a run holds its identity, and those of
the folders in it hold which run they are `of`: parts of two runs are never taken for one. Folders that were written
before there were manifests are read without.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flaxae import atomic
from flaxae.errors import CheckpointError, RunError

NAME = "manifest"


class Damaged(RunError, CheckpointError):
    """A file is not as it was saved, be it a run's, or a part of a checkpoint."""


def write(folder: Path, **about: Any) -> None:
    """Write the manifest of all files in a folder, and what else is to be known of it.

    Locks and what is unfinished, whose names begin with a dot, are left out.
    """
    files = {name: sha256(folder / name) for name in _names(folder)}
    put(folder, {"of": identity(folder.parent), **about, "files": files})


def put(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write a manifest as it is given."""
    body = json.dumps(manifest)
    with atomic.replacing(folder / NAME) as unfinished:
        unfinished.write_text(f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}", encoding="utf-8")


def read(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder; None of one without.

    Raises:
        Damaged: it was changed.
    """
    path = folder / NAME
    try:
        digest, _, body = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"Can't read {path}: {error.strerror}.") from error
    if digest != hashlib.sha256(body).hexdigest().encode():
        raise Damaged(f"{path} is damaged: it was changed. Restore a copy of it; without one, nothing is checked.")
    return json.loads(body)


def check(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder, once every file in it is known to be as it was saved.

    Raises:
        Damaged: one was changed, is missing, or belongs to another run.
    """
    manifest = read(folder)
    if manifest is None:
        return None
    of, here = manifest.get("of"), identity(folder.parent)
    if of is not None and here is not None and of != here:
        raise Damaged(f"{folder} is damaged: it is a part of another run. Restore a copy of it.")
    for name in manifest["files"]:
        path = folder / name
        _compare(path, sha256(path) if path.is_file() else None, manifest["files"][name])
    return manifest


def content(folder: Path, name: str) -> bytes:
    """What a file of the folder holds, as it was saved if the manifest knows of it.

    Raises:
        Damaged: it was changed.
        RunError: it can't be read.
    """
    path = folder / name
    try:
        found = path.read_bytes()
    except OSError as error:
        raise RunError(f"Can't read {path}: {error.strerror}.") from error
    manifest = read(folder)
    if manifest is not None and name in manifest["files"]:
        _compare(path, hashlib.sha256(found).hexdigest(), manifest["files"][name])
    return found


def replace(folder: Path, name: str, text: str) -> None:
    """Write a file into a folder whose manifest has it thereafter; killed at any moment, both fit together."""
    manifest = read(folder)
    assert manifest is not None
    path, new = folder / name, hashlib.sha256(text.encode()).hexdigest()
    before = [sha256(path)] if path.exists() else []
    put(folder, {**manifest, "files": {**manifest["files"], name: [*before, new]}})
    with atomic.replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing(folder: Path, ours: frozenset[str]) -> Iterator[Path]:
    """A place to write a folder to, which with its manifest takes the place of `folder`: all of its files, or none.

    Args:
        ours: the names of files and folders in it that may be replaced; numbers may, too.

    Raises:
        RunError: something else is in the folder.
        OSError: it can't be written.
    """
    if atomic.settled(folder).is_dir():
        foreign = sorted(
            path.name
            for path in atomic.settled(folder).iterdir()
            if path.name not in {*ours, NAME, "unfinished"} and not path.name.isdecimal()
        )
        if foreign:
            raise RunError(f"{folder} holds {foreign[0]!r}, which would be lost. Give a new folder, or an empty one.")
    with atomic.replacing(folder, folders=True) as unfinished:
        unfinished.mkdir()
        yield unfinished
        write(unfinished)


def identity(folder: Path) -> str | None:
    """The identity of the run that a folder is, or is in; None of what is in none, or in one of before."""
    for parent in (folder.absolute(), *folder.absolute().parents):
        with contextlib.suppress(RunError, ValueError):
            if (manifest := read(parent)) and isinstance(manifest.get("id"), str):
                return manifest["id"]
    return None


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _names(folder: Path) -> list[str]:
    paths = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    return [path.as_posix() for path in paths if path != Path(NAME) and not any(p.startswith(".") for p in path.parts)]


def _compare(path: Path, found: str | None, saved: str | list[str]) -> None:
    if found is None:
        raise Damaged(f"{path} is damaged: it is missing. Restore a copy of it, or train anew.")
    if found not in ([saved] if isinstance(saved, str) else saved):
        raise Damaged(f"{path} is damaged: it was changed after it was saved. Restore a copy of it, or train anew.")
