"""Keep compiled programs between processes, so that the second run of a command starts at once."""

import os
import pathlib

import jax

MOST_BYTES = 2**30  # of the folder; the programs used longest ago go first


def enable_cache(folder: str | os.PathLike | None = None) -> pathlib.Path:
    """Compile each program once for this user, machine and version of JAX. Call it before anything is compiled.

    Args:
        folder: where to keep them; by default $JAX_COMPILATION_CACHE_DIR, or flaxae in the user's cache folder.

    Returns:
        The folder. One that can't be written costs a warning of JAX, and nothing is kept.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    folder = pathlib.Path(folder or os.environ.get("JAX_COMPILATION_CACHE_DIR") or pathlib.Path(cache, "flaxae", "jax"))
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
    # By default JAX keeps only what took a second; most of a run's programs take some tenths each.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return folder
