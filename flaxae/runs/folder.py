"""A run's folder: its settings, its metrics per epoch, and its results. Nothing here depends on a model.

    runs/<experiment>/<name>/
        config.json      the settings
        metrics.jsonl    one line per epoch
        results.json     flat names to numbers, such as test/psnr_db; there once the run is finished
        checkpoints/     figures/*.png     report.html
        manifest         the run's identity, and the SHA-256 of config.json or, in a finished run, of every file

A run belongs to one process at a time, or to several that train together, of which only the first writes. Its lock is
the operating system's, so that it is released when the process ends in any way. Files appear whole or not at all.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import re
import socket
import uuid
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from flaxae import atomic, manifest
from flaxae.errors import ConfigError, FlaxaeError, RunError, unknown
from flaxae.parallel import processes


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """A run to read from."""

    folder: Path
    config: dict[str, Any]

    @property
    def checkpoints(self) -> Path:
        """Where its checkpoints are, or will be."""
        return self.folder / "checkpoints"

    @property
    def finished(self) -> bool:
        """Whether the run has results, and no epoch was added after them."""
        return (self.folder / "results.json").exists()

    def history(self) -> list[dict[str, Any]]:
        """The metrics logged in each epoch, oldest first. Values that were not finite are None.

        Raises:
            RunError: a line of metrics.jsonl is damaged.
        """
        *lines, _ = self._lines()
        where, identity = self.folder / "metrics.jsonl", manifest.identity(self.folder)
        history, check = [], ""
        for number, line in enumerate(lines, 1):
            metrics = _parse(line, f"{where}, line {number}")
            found = metrics.pop("check", None)
            if identity is not None:
                check = _check(identity, check, metrics)
                if found != check:
                    raise RunError(
                        f"{where}, line {number} is damaged: it was changed after it was written, or one before it is "
                        "missing. Restore a copy of it, or start another run."
                    )
            history.append(metrics)
        return history

    def results(self) -> dict[str, float]:
        """Flat names, such as `test/psnr_db`, to numbers; empty before the run is finished.

        Raises:
            RunError: results.json is damaged.
        """
        path = self.folder / "results.json"
        return _parse(manifest.content(self.folder, path.name), path) if path.exists() else {}

    def file(self, name: str) -> Path:
        """The path of one of its files, after checking that it is as the run wrote it.

        Raises:
            RunError: it is missing, or was changed.
        """
        manifest.content(self.folder, name)
        return self.folder / name

    def _lines(self) -> list[bytes]:
        """The line of each epoch, then what follows the last one: nothing, or the partial line of a failed write."""
        path = self.folder / "metrics.jsonl"
        return path.read_bytes().split(b"\n") if path.exists() else [b""]


class Run(SavedRun):
    """A run to write to. While it is held, no other process can write to it. A full disk or the like is a RunError."""

    def log_epoch(self, metrics: Mapping[str, Any]) -> None:
        """Add an epoch to the history: its number as `epoch`, and numbers or texts. A finished run is then unfinished.

        A resumed run repeats some epochs: the first of them replaces its old line and all lines after it.
        """
        numbers = {name: _number(value) for name, value in metrics.items()}
        infinite = {name for name, value in numbers.items() if not isinstance(value, str) and not math.isfinite(value)}
        added = {name: None if name in infinite else value for name, value in numbers.items()}
        path, identity = self.folder / "metrics.jsonl", manifest.identity(self.folder)
        *lines, half_line = self._lines()
        if half_line or (lines and _parse(lines[-1], path)["epoch"] >= numbers["epoch"]):
            count = sum(metrics["epoch"] < numbers["epoch"] for metrics in self.history())
            lines = lines[:count]
            _write(path, "".join(f"{line.decode()}\n" for line in lines))
        if identity is not None:
            before = _parse(lines[-1], path).get("check", "") if lines else ""
            added["check"] = _check(identity, before, added)
        with _writing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(added) + "\n")
            (self.folder / "results.json").unlink(missing_ok=True)

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write results.json, which finishes the run, and the manifest of all of its files.

        Raises:
            RunError: a value is not a finite number.
        """
        numbers = {name: _number(value) for name, value in results.items()}
        for name, value in numbers.items():
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise RunError(f"The result {name} is {value!r}; results are finite numbers.")
        path, bound = self.folder / "results.json", manifest.read(self.folder)
        with _writing(path):
            if bound is None:
                _write(path, _json(numbers))
            else:
                manifest.replace(self.folder, path.name, _json(numbers))
                manifest.write(self.folder, **{name: bound[name] for name in bound if name != "files"})

    def figure(self, name: str) -> Path:
        """Where to write the figure of that name."""
        figures = self.folder / "figures"
        with _writing(figures):
            figures.mkdir(exist_ok=True)
        return figures / f"{name}.png"


class Follower(Run):
    """The run in a process other than the first of several, which writes nothing: the first process does."""

    def log_epoch(self, metrics: Mapping[str, Any]) -> None:
        """Do nothing: the first process writes it."""

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Do nothing: the first process writes them."""


@contextlib.contextmanager
def start(
    experiment: str,
    name: str | None,
    config: Mapping[str, Any],
    *,
    resume: bool,
    may_change: Collection[str] = (),
    root: str | os.PathLike[str] = "runs",
) -> Iterator[Run]:
    """Hold the run `root/experiment/name`, new or resumed, until the `with` block ends.

    Several processes that train together all call this; the first holds the run for them.

    Args:
        experiment: its name; letters, digits, and `.`, `_`, `-` inside.
        name: of the same characters. None is the next free number or, with `resume`, the newest unfinished run.
        config: the settings, as values that JSON can hold. A resumed run must have been started with the same.
        resume: go on with a run, finished or not, instead of starting one.
        may_change: the settings that may differ when a run is resumed, such as `epochs`. Nested settings are named like
            `model/latent`.

    Raises:
        RunError: the run is in use, exists already, or is missing; or its folder can't be written.
        ConfigError: a name has other characters; or the settings differ from those that the resumed run was started
            with, or between processes that train together.
    """
    text = _json(config)
    if len(set(processes.share(f"{experiment} {name} {resume} {text}"))) > 1:
        raise ConfigError("The processes were not all started with the same settings. Give each the same flags.")
    if processes.index() > 0:
        held = json.loads(processes.share("")[0])
        if held["error"]:
            raise RunError(held["error"])
        yield Follower(Path(held["folder"]), json.loads(text))
        return
    with contextlib.ExitStack() as stack:
        try:
            run = stack.enter_context(_hold(experiment, name, text, resume, may_change, root))
        except FlaxaeError as error:
            processes.share(json.dumps({"error": str(error)}))
            raise
        processes.share(json.dumps({"error": "", "folder": str(run.folder)}))
        yield run


@contextlib.contextmanager
def _hold(
    experiment: str,
    name: str | None,
    text: str,
    resume: bool,
    may_change: Collection[str],
    root: str | os.PathLike[str],
) -> Iterator[Run]:
    folder = Path(root) / _checked("experiment", experiment)
    if name is not None:
        folder /= _checked("run", name)
    elif resume:
        folder = _newest_unfinished(folder)
    else:
        folder = _next_free(folder)
    if resume and not _is_run(folder):
        known = _names(folder.parent)
        message = unknown("run", folder.name, known) if known else f"There are no runs in {folder.parent}."
        raise RunError(f"Nothing to resume. {message}")

    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _held(folder):
        run = Run(folder, json.loads(text))
        if resume:
            _require_same(folder, open(folder).config, run.config, may_change)
        elif _is_run(folder):
            state = "finished" if run.finished else "unfinished"
            raise RunError(f"The run {folder} exists, {state}. Choose another --name, or --resume to go on with it.")
        with _writing(folder):
            _begin(folder, text, resume)
        yield run


def _begin(folder: Path, text: str, resume: bool) -> None:
    """Write config.json, and a manifest of the files that don't change while the run goes on."""
    bound = manifest.read(folder) if resume else {"id": uuid.uuid4().hex, "files": {}}
    if bound is None:  # a run from before there were manifests
        _write(folder / "config.json", text)
        return
    kept = {name: sha256 for name, sha256 in bound["files"].items() if name in ("config.json", "results.json")}
    manifest.put(folder, {**bound, "order": 1 + max(map(_order, folder.parent.iterdir())), "files": kept})
    manifest.replace(folder, "config.json", text)


def open(folder: str | os.PathLike[str]) -> SavedRun:
    """A run to read from, in use or not.

    Raises:
        RunError: there is no run in `folder`, or its config.json is damaged.
    """
    folder = Path(folder)
    if not _is_run(folder):
        runs = ", ".join(str(folder / name) for name in _names(folder))
        hint = f"Runs in it: {runs}." if runs else "Give a run's folder, such as runs/denoise/1."
        raise RunError(f"{folder} is not a run: it has no config.json. {hint}")
    path = folder / "config.json"
    return SavedRun(folder, _parse(manifest.content(folder, path.name), path))


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Lock the run against every other process."""
    import filelock

    lock, owner = filelock.FileLock(folder / ".lock"), folder / ".owner"
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        _require_locks(folder)
        holder = owner.read_text(encoding="utf-8") if owner.exists() else "another process"
        raise RunError(f"The run {folder} is in use by {holder}. Choose another --name.") from None
    except (OSError, NotImplementedError) as error:
        raise RunError(f"Can't lock the run {folder}: {error}.") from error
    try:
        _write(owner, f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        lock.release()


def _require_locks(folder: Path) -> None:
    """Raise RunError if the file system has no locks, because filelock would report that the lock is held."""
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        with (folder / ".lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise RunError(
                        f"Can't lock the run {folder}: {error.strerror}. Start it in a folder whose file system has "
                        "locks, such as one on a local disk."
                    ) from error


def _require_same(
    folder: Path, saved: Mapping[str, Any], given: Mapping[str, Any], may_change: Collection[str]
) -> None:
    saved, given = _flat(saved), _flat(given)
    changed = [
        f"{name} was {saved.get(name)!r} and is now {given.get(name)!r}"
        for name in {**saved, **given}
        if name not in may_change and (name not in saved or name not in given or saved[name] != given[name])
    ]
    if changed:
        raise ConfigError(
            f"Can't resume {folder} with other settings: {'; '.join(changed)}. Give the same, or start another run."
        )


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"model": {"latent": 2}}` as `{"model/latent": 2}`."""
    flat = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _checked(what: str, name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", name):
        raise ConfigError(f"The {what} name {name!r} can't name a folder. Use letters, digits, and . _ - inside.")
    return name


def _is_run(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _names(experiment: Path) -> list[str]:
    return sorted(path.parent.name for path in experiment.glob("*/config.json"))


def _newest_unfinished(experiment: Path) -> Path:
    unfinished = [path for path in experiment.glob("*/config.json") if not (path.parent / "results.json").exists()]
    if not unfinished:
        raise RunError(
            f"Nothing to resume: no unfinished run in {experiment}. Its finished ones: "
            f"{', '.join(_names(experiment)) or 'none'}. Go on with one of them by its --name."
        )
    return max(unfinished, key=lambda path: (_order(path.parent), path.stat().st_mtime)).parent


def _order(folder: Path) -> int:
    """A number that is greater for runs started later, whatever the clock says; −1 for runs without a manifest."""
    try:
        return int((manifest.read(folder) or {}).get("order", -1))
    except RunError:
        return -1


def _next_free(experiment: Path) -> Path:
    """A new folder, named by the number after the greatest. Two processes at once make two folders."""
    with _writing(experiment):
        experiment.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(path.name) for path in experiment.iterdir() if path.name.isdecimal()), default=0)
        while True:
            with contextlib.suppress(FileExistsError):
                (experiment / str(number)).mkdir()
                return experiment / str(number)
            number += 1


def _check(identity: str, before: str, metrics: Mapping[str, Any]) -> str:
    """The hash that shows that a line of the history is unchanged, and follows the line before it."""
    return hashlib.sha256(f"{identity} {before} {json.dumps(metrics)}".encode()).hexdigest()[:8]


def _number(value: Any) -> Any:
    """A NumPy or JAX number as a Python number."""
    return value.item() if hasattr(value, "item") else value


def _json(content: Mapping[str, Any]) -> str:
    try:
        return json.dumps(content, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ConfigError(f"JSON can't hold {content}: {error}.") from error


def _parse(content: bytes, where: str | Path) -> dict[str, Any]:
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{where} is damaged: {error}. Restore a copy of it, or start another run.") from error
    if not isinstance(parsed, dict):
        raise RunError(f"{where} is damaged: it holds {parsed!r}. Restore a copy of it, or start another run.")
    return parsed


def _write(path: Path, text: str) -> None:
    with _writing(path), atomic.replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"Can't write {path}: {error.strerror}. Check the free space and the permissions.") from error
