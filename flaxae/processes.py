"""Several processes that train together: how they find each other, agree, and end when one of them is lost.

JAX's coordination service does the work. Where it gives up it aborts the process, with pages of its own logs; here that
becomes one message. Nothing in this module imports JAX before there are several processes.
"""

import contextlib
import ctypes
import itertools
import os
import platform
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from importlib import metadata

from flaxae.errors import ConfigError, FlaxaeError

START_SECONDS = 20  # for all to have come; JAX takes some five more
HEARTBEAT_SECONDS = 10  # without a sign of life a process counts as lost
GRACE_SECONDS = 2  # for the others to say the same error: they talk through the first
FINISH_SECONDS = 24 * 3600  # for the first to evaluate while the others wait
PATIENCE_MS = 3600 * 1000  # for what another process says: it may have more data to read first

_LOST = (
    "Another process was lost, or its host can't be reached; see its own messages. What was trained is saved up to the "
    "last checkpoint: start all processes again with --resume."
)
_MISSING = (
    "Not all {count} processes came together at {coordinator} within {seconds} s. Check that each was started, that "
    "the address is the first one's, and that no firewall is between them."
)
_shares = itertools.count()
_keep: list[object] = []  # what C code refers to
_unsaid = ["the last message"]  # popped by the thread that says it
_index, _count = 0, 1


def index() -> int:
    """Which of the processes this one is; 0 is the first, which writes the run's folder."""
    return _index


def leave_to_first() -> None:
    """End every process but the first, with success: what is left to do is one process' work."""
    if _index > 0:
        raise SystemExit(0)


def share(text: str) -> list[str]:
    """What each process says here, in their order. All of them call this, equally often."""
    if _count == 1:
        return [text]
    from jax._src.distributed import global_state  # as Orbax does: JAX has no public name for it

    number = next(_shares)
    global_state.client.key_value_set(f"flaxae/{number}/{_index}", text)
    return [global_state.client.blocking_key_value_get(f"flaxae/{number}/{i}", PATIENCE_MS) for i in range(_count)]


def agree(*numbers: float) -> list[float]:
    """The greatest of each number over the processes. All of them call this."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return list(numbers)
    return multihost_utils.process_allgather(np.float32(numbers)).max(axis=0).tolist()


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Be one of the processes that Slurm, Open MPI, a TPU pod or the environment tell of; mostly the only one.

    By hand: each with JAX_COORDINATOR_ADDRESS (host:port of the first), JAX_NUM_PROCESSES, and JAX_PROCESS_ID from 0 on.
    An error in one of several ends that process at once, with its message and status 2 (1 for a bug), and the others
    when they notice. The first alone writes to stdout.

    Raises:
        ConfigError: the processes have other versions, or other numbers of devices, than each other.
    """
    arguments = _of_environment()
    if arguments is None:
        yield
        return
    try:
        _start(arguments)
        yield
    except FlaxaeError as error:
        if _index == 0:
            time.sleep(GRACE_SECONDS)
        _end(str(error), 2)
    except Exception as error:
        if "Gloo" in str(error) or type(error).__name__ == "JaxRuntimeError":
            _end(_LOST, 2)
        _end(f"{''.join(traceback.format_exception(error))}", 1)


def _of_environment() -> dict[str, object] | None:
    """What `jax.distributed.initialize` has to be told, nothing where it finds out; None for a process alone."""
    env = os.environ
    if address := env.get("JAX_COORDINATOR_ADDRESS"):
        try:
            count, index = int(env["JAX_NUM_PROCESSES"]), int(env["JAX_PROCESS_ID"])
        except (KeyError, ValueError) as error:
            raise ConfigError(
                f"JAX_COORDINATOR_ADDRESS is {address!r}, which needs JAX_NUM_PROCESSES and JAX_PROCESS_ID: {error}."
            ) from error
        return {"coordinator_address": address, "num_processes": count, "process_id": index}
    sizes = (env.get("OMPI_COMM_WORLD_SIZE"), "SLURM_PROCID" in env and env.get("SLURM_NTASKS"))
    several = any(int(size or 1) > 1 for size in sizes) or "," in env.get("TPU_WORKER_HOSTNAMES", "")
    return {} if several else None


def _start(arguments: dict[str, object]) -> None:
    global _index, _count
    import jax

    end_instead_of_abort = _on_abort(
        _MISSING.format(
            count=arguments.get("num_processes", "the"),
            coordinator=arguments.get("coordinator_address", "the first one's address"),
            seconds=START_SECONDS,
        )
    )
    jax.distributed.initialize(
        **arguments,
        initialization_timeout=START_SECONDS,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=FINISH_SECONDS,
    )
    end_instead_of_abort(_LOST)
    from jax._src.distributed import global_state

    _index, _count = global_state.process_id, global_state.num_processes
    if _index > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    described = share(_description())
    if len(set(described)) > 1:
        each = "; ".join(f"process {i}: {text}" for i, text in enumerate(described))
        raise ConfigError(f"The processes have to be alike in versions and number of devices, and are not: {each}.")


def _description() -> str:
    import jax

    packages = ("flaxae", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    versions = []
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(f"{name} {metadata.version(name)}")
    devices = jax.local_devices()
    return f"{len(devices)} × {devices[0].device_kind}, Python {platform.python_version()}, {', '.join(versions)}"


def _on_abort(message: str):
    """End with one message where JAX's C++ code logs and aborts. Returns a function that changes the message."""
    sys.stderr.flush()
    stderr = os.dup(2)
    sys.stderr = open(stderr, "w", buffering=1, closefd=False)  # noqa: SIM115 (until the process ends)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # C++'s

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def end(number: int) -> None:
        _end(message, 2)

    def change(text: str) -> None:
        nonlocal message
        message = text

    _keep.append(end)
    ctypes.CDLL(None).signal(int(signal.SIGABRT), end)  # Python's own handlers would come too late
    return change


def _end(message: str, status: int) -> None:
    """Say it once and end at once: leaving as usual would wait for the others."""
    with contextlib.suppress(IndexError):
        sys.stdout.flush()
        _unsaid.pop()
        os.write(sys.stderr.fileno(), f"error: {message}\n".encode())
        os._exit(status)
    threading.Event().wait()  # another thread is about to end the process
