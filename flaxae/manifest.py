"""Manifests: the SHA-256 of each file of a folder, written last and checked when the folder is read.

    folder/manifest    its own SHA-256, then JSON: `files`, and other information about them

Checkpoints, saved models, detectors, estimators and runs have one. The manifest of a run holds the run's identity, and
those of the folders in it say which run they are `of`, so that parts of two runs are never mixed. Folders from before
there were manifests are read without one.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flaxae import atomic
from flaxae.errors import CheckpointError, ConfigError, RunError

NAME = "manifest"


class Damaged(RunError, CheckpointError):
    """A file of a run or of a checkpoint was changed after it was saved."""


def write(folder: Path, **about: Any) -> None:
    """Write the manifest of all files in a folder, with further information `about` it.

    Files whose names begin with a dot, which are locks and unfinished files, are left out.
    """
    files = {name: sha256(folder / name) for name in _names(folder)}
    put(folder, {"of": identity(folder.parent), **about, "files": files})


def put(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the given manifest to the folder."""
    body = json.dumps(manifest)
    with atomic.replacing(folder / NAME) as unfinished:
        unfinished.write_text(f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}", encoding="utf-8")


def read(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder; None if it has none.

    Raises:
        Damaged: the manifest was changed.
        RunError: it can't be read.
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
    """The manifest of a folder, after checking that every file is as it was saved.

    Raises:
        Damaged: a file was changed or is missing, or the folder belongs to another run.
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
    """The content of a file in the folder, checked if the manifest has its SHA-256.

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


@contextlib.contextmanager
def reading(folder: Path, what: str) -> Iterator[None]:
    """Turns anything that is raised while a saved thing is read, or put together, into a RunError.

    What is downloaded has no manifest, or one that was changed as well, and libraries raise many types on such files.
    """
    try:
        yield
    except (RunError, ConfigError, CheckpointError):
        raise
    except Exception as error:
        raise RunError(f"{folder} holds no {what} that can be read: {error!r}.") from error


def replace(folder: Path, name: str, text: str) -> None:
    """Write a file to a folder and update its manifest. If the process is killed in between, the two still agree."""
    manifest = read(folder)
    assert manifest is not None
    path, new = folder / name, hashlib.sha256(text.encode()).hexdigest()
    before = [sha256(path)] if path.exists() else []
    put(folder, {**manifest, "files": {**manifest["files"], name: [*before, new]}})
    with atomic.replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing(folder: Path, ours: frozenset[str]) -> Iterator[Path]:
    """A temporary folder to write to. With its manifest, it replaces `folder` when the block ends, as a whole.

    Args:
        ours: the names of files and folders in `folder` that may be replaced; names that are numbers may, too.

    Raises:
        RunError: there is something else in the folder.
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
    """The identity of the run that a folder is or is in; None if there is no run, or it has no manifest."""
    for parent in (folder.absolute(), *folder.absolute().parents):
        with contextlib.suppress(RunError, ValueError):
            if (manifest := read(parent)) and isinstance(manifest.get("id"), str):
                return manifest["id"]
    return None


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
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
