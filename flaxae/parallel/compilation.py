"""Compile programs that run briefly in less time, and cache compiled programs for the next run of a command."""

import contextlib
import functools
import os
import pathlib
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax

# Compiler options for programs that run for less time than they take to compile. On CPU they compile faster, to slower
# programs, because XLA's older emitters generate the loops (in versions that still have them).
QUICK = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 1}
# And for programs that run once, for milliseconds.
ONCE = {**QUICK, "xla_backend_optimization_level": 0, "xla_cpu_parallel_codegen_split_count": 1}
# And for batches of products in float32, as Winograd's convolutions have them: YNNPACK is slower at them than XLA.
WITHOUT_YNN = {"xla_cpu_experimental_ynn_fusion_type": ""}
CPUINFO = pathlib.Path("/proc/cpuinfo")
MOST_BYTES = 2**30  # in the cache folder; the least recently used programs are deleted first

# The names of JAX's entries: the program's name, a hash, and whether it is the program or the time of its last use.
_ENTRY = re.compile(r".+-[0-9a-f]{64}(-cache|-atime)?")

_refused: frozenset[str] = frozenset()  # options that this process' compiler refuses


def with_options(jit: Callable[..., Callable], options: Mapping[str, Any]) -> Callable:
    """`jit(compiler_options=options)`, without the options that this version of the compiler doesn't know.

    XLA documents few options, and drops others from one version to the next. Each option is only tested after a program
    was refused, so that it costs nothing if all are known. The level of optimization is left out as well where JAX is
    told to disable most of them, which is less than any level here.
    """

    @functools.cache
    def compiled(refused: frozenset[str]) -> Callable:
        kept = {name: value for name, value in options.items() if name not in refused}
        if jax.config.read("jax_disable_most_optimizations"):
            kept.pop("xla_backend_optimization_level", None)
        return jit(compiler_options=kept)

    def call(*arguments: Any, **named: Any) -> Any:
        global _refused
        refused = _refused
        try:
            return compiled(refused)(*arguments, **named)
        except jax.errors.JaxRuntimeError:
            _refused |= {name for name, value in options.items() if not _accepted(name, value)}
            if _refused == refused:
                raise
        return compiled(_refused)(*arguments, **named)  # the refused program didn't run, so nothing was donated

    return call


@functools.cache
def _accepted(option: str, value: Any) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={option: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


@functools.cache
def instructions() -> frozenset[str]:
    """The processor's instruction sets by Linux' names; none where that isn't known."""
    return frozenset(CPUINFO.read_text().split()) if CPUINFO.is_file() else frozenset()


def enable_cache(folder: str | os.PathLike[str] | None = None) -> pathlib.Path | None:
    """Cache compiled programs for this user, machine and version of JAX. Call it before anything is compiled.

    Args:
        folder: where to keep them; by default $JAX_COMPILATION_CACHE_DIR, or flaxae in the user's cache folder. Only
            the latter is kept below `MOST_BYTES`.

    Returns:
        The folder. If it can't be written, JAX warns and nothing is kept. None for a user without a home, as in some
        containers, and if others may write to the folder, because their programs would be run.
    """
    given = folder or os.environ.get("JAX_COMPILATION_CACHE_DIR")
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = pathlib.Path(given or pathlib.Path(cache, "flaxae", "jax"))
    if folder.parts[0] == "~":
        return None
    if given is None and not _is_own(folder):
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # By default JAX caches only programs that took a second to compile; most of a run's take some tenths of one.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if given is None:
        _make_room(folder)
    return folder


def _is_own(folder: pathlib.Path) -> bool:
    """Whether a folder and its parent, made if missing, belong to this user, and nobody else may write to them.

    It is True where that can't be known, as on Windows.
    """
    with contextlib.suppress(OSError):  # JAX warns if it can't write
        folder.parent.parent.mkdir(parents=True, exist_ok=True)
        for made in (folder.parent, folder):
            made.mkdir(mode=0o700, exist_ok=True)
    if not hasattr(os, "geteuid"):
        return True
    for path in (folder, folder.parent):
        with contextlib.suppress(OSError):
            stat = path.stat()
            if stat.st_uid not in (os.geteuid(), 0) or stat.st_mode & 0o022:
                warnings.warn(
                    f"Others than this user may write {path}, so no compiled programs are kept there. "
                    f"`chmod go-w {path}`, or remove it.",
                    stacklevel=3,
                )
                return False
    return True


def _make_room(folder: pathlib.Path) -> None:
    """Delete programs until the folder has at most `MOST_BYTES`. With JAX's own limit, each new program reads all.

    Only files with JAX's names are deleted.
    """
    with contextlib.suppress(OSError):  # there is no folder yet, or another process is cleaning it up
        entries = [file for file in os.scandir(folder) if _ENTRY.fullmatch(file.name) and not file.is_symlink()]
        files = sorted(((file.stat(), file.path) for file in entries), key=lambda file: file[0].st_atime)
        excess = sum(stat.st_size for stat, _ in files) - MOST_BYTES
        for stat, path in files:
            if excess <= 0:
                break
            os.remove(path)
            excess -= stat.st_size
