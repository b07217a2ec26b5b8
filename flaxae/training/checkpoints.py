"""Checkpoints of any pytree of arrays: the one adapter around Orbax.

Orbax writes and reads the arrays, in one process or many. This module adds what Orbax lacks: a step is
visible only when it is complete, its manifest is checked before anything is restored (`flaxae.manifest`), a damaged
step is skipped for the one before it, and every failure is a `CheckpointError`.

    folder/<step>/arrays/    what Orbax wrote
    folder/<step>/manifest   of its files; also each leaf's name, dtype and shape, and other information on the state
    folder/unfinished/       a save in progress, or the rest of a killed one; the next save clears it

A folder must have one writer at a time: the lock of the run (`flaxae.runs`) sees to that.
"""

import contextlib
import errno
import functools
import logging
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path

import jax
import numpy as np
from jaxtyping import PyTree

from flaxae import atomic, manifest
from flaxae.errors import CheckpointError, RunError
from flaxae.parallel import distributed


def save(
    folder: str | os.PathLike[str],
    step: int,
    state: PyTree,
    *,
    keep: int = 2,
    about: Mapping[str, str | int] | None = None,
) -> None:
    """Write `state` as `folder/<step>`, whole or not at all, then delete all but the newest `keep` steps.

    If the folder already has this step or later ones, they are replaced once this one is complete. When several
    processes train together, all of them call this, with a folder they share.

    Args:
        folder: made if missing.
        step: at least 0; the newest step is the one with the greatest number.
        state: arrays (JAX, NumPy) of any shape or numbers. At least one.
        keep: at least 1. With 2, there is still a good step if the newest is damaged.
        about: further information on the state, see `known`.

    Raises:
        CheckpointError: `state` could not be written; the steps saved before are untouched.
    """
    import orbax.checkpoint as ocp
    from jax.experimental.multihost_utils import sync_global_devices

    folder = Path(folder).absolute()
    unfinished = folder / "unfinished"
    names, leaves = _flatten(distributed.without_keys(state))
    first_process = jax.process_index() == 0
    try:
        if first_process:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
        sync_global_devices("flaxae: a checkpoint begins")
        if shutil.disk_usage(unfinished).free < sum(leaf.nbytes for leaf in leaves):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with _quiet():
            ocp.PyTreeCheckpointer().save(unfinished / "arrays", [leaf for leaf in leaves if leaf.size])
        if first_process:
            manifest.write(unfinished, leaves=names, about=about or {})
            atomic.put(unfinished, folder / str(step), folders=True)
            later = [saved for saved in steps(folder) if saved > step]
            old = [saved for saved in steps(folder) if saved < step][: -keep + 1 or None]
            for gone in (*later, *old):
                shutil.rmtree(atomic.settled(folder / str(gone)))
        sync_global_devices("flaxae: a checkpoint ends")
    except Exception as error:  # Orbax and TensorStore raise many types
        raise CheckpointError(
            f"Can't save step {step} in {folder} (check its free space and permissions): {error}"
        ) from error


def restore(folder: str | os.PathLike[str], like: PyTree, *, step: int | None = None) -> tuple[int, PyTree]:
    """The number and the state of the newest step whose files are intact, bit for bit.

    A damaged step is skipped, with a warning, for the one before it.

    Args:
        folder: as given to `save`.
        like: the state's structure: arrays or `jax.ShapeDtypeStruct`s. Each array gets the sharding of its
            counterpart here (a NumPy array or number gives a NumPy array). By default it goes to the first
            device, wherever it was saved from.
        step: only this step, without falling back to an earlier one.

    Raises:
        CheckpointError: no step is good, or `like` differs from what was saved in a name, shape or dtype.
    """
    folder = Path(folder).absolute()
    saved = steps(folder)
    if not saved or (step is not None and step not in saved):
        wanted = "checkpoint" if step is None else f"step {step}"
        raise CheckpointError(f"No {wanted} in {folder}. Saved steps: {saved or 'none'}.")
    damage = []
    for candidate in reversed(saved) if step is None else [step]:
        try:
            kept = atomic.settled(folder / str(candidate))
            leaves = _checked(kept)["leaves"]
        except (RunError, OSError) as error:
            damage.append(f"step {candidate} is damaged ({error})")
            continue
        state = distributed.keyed(functools.partial(_read, kept, leaves), like)
        if damage:
            warnings.warn(f"{folder}: {'; '.join(damage)}. Restored step {candidate} instead.", stacklevel=2)
        return candidate, state
    raise CheckpointError(f"No good checkpoint in {folder}: {'; '.join(damage)}. Restore a copy, or train anew.")


def steps(folder: str | os.PathLike[str]) -> list[int]:
    """The steps saved in `folder`, oldest first; none when there is no such folder."""
    names = {path.name.removeprefix(".").removesuffix(".old") for path in Path(folder).glob("*")}
    return sorted(int(name) for name in names if name.isdecimal())


def begun(folder: str | os.PathLike[str] | None) -> bool:
    """Whether a training with that `folder` has saved a step to go on from: it may have been killed before it had."""
    return folder is not None and bool(steps(Path(folder) / "latest"))


def known(folder: str | os.PathLike[str], step: int) -> dict[str, str | int]:
    """The `about` that a step was saved with; empty if the step is damaged, or was saved by an older version."""
    try:
        found = manifest.read(atomic.settled(Path(folder, str(step))))
    except RunError:
        return {}
    return (found or {}).get("about", {})


def _flatten(tree: PyTree) -> tuple[list[str], list]:
    """Names like `params/0/kernel float32[3, 4]`, and the leaves, with numbers as arrays."""
    named = jax.tree_util.tree_leaves_with_path(tree)
    arrays = (jax.Array, jax.ShapeDtypeStruct)
    leaves = [leaf if isinstance(leaf, arrays) else np.asarray(leaf) for _, leaf in named]
    names = [
        f"{jax.tree_util.keystr(path, simple=True, separator='/')} {leaf.dtype}{list(leaf.shape)}"
        for (path, _), leaf in zip(named, leaves, strict=True)
    ]
    return names, leaves


def _checked(folder: Path) -> dict:
    """The manifest of a step, after comparing every file in it with its SHA-256."""
    found = manifest.check(folder)
    if found is None:
        raise RunError("its manifest is missing")
    if found.get("of") is not None and manifest.identity(folder.parent) is None:
        warnings.warn(f"{folder}: the run's manifest is missing, so its settings can't be checked.", stacklevel=4)
    return found


def _read(folder: Path, saved: list[str], like: PyTree) -> PyTree:
    import orbax.checkpoint as ocp

    names, targets = _flatten(like)
    for there, here in zip_longest(saved, names, fillvalue="nothing more"):
        if there != here:
            raise CheckpointError(
                f"The checkpoint {folder} is of another model: it has {there} where this one has {here}. "
                "Build the model with the settings it was saved with."
            )

    def placement(target) -> ocp.RestoreArgs:
        if isinstance(target, np.ndarray):
            return ocp.RestoreArgs(restore_type=np.ndarray)
        default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return ocp.ArrayRestoreArgs(sharding=target.sharding or default)

    stored = [target for target in targets if target.size]  # Orbax refuses arrays of size 0
    try:
        with _quiet():
            arrays = ocp.PyTreeCheckpointer().restore(
                folder / "arrays", item=stored, restore_args=[placement(target) for target in stored]
            )
    except Exception as error:
        raise CheckpointError(f"Orbax can't read {folder}, though its files are as saved: {error}") from error
    arrays = iter(arrays)
    leaves = [next(arrays) if target.size else np.zeros(target.shape, target.dtype) for target in targets]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the tracebacks that Orbax's threads log: the error that is raised says everything."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
