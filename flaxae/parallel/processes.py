"""Several processes that train together: how they find each other, agree, and end when one of them is lost.

JAX's coordination service does the work. When it gives up, it aborts the process, with pages of logs; this module turns
that into one message. Nothing here imports JAX before there are several processes.
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
from typing import Any, cast

from flaxae.errors import ConfigError, FlaxaeError

LOST = 75  # the exit status of a process that lost another: EX_TEMPFAIL, start again
START_SECONDS = 15  # for all processes to connect; JAX takes some five more
HEARTBEAT_SECONDS = 10  # a process that gives no sign of life for so long counts as lost
GRACE_SECONDS = 2  # for the others to report the same error before the first, which connects them, ends
FINISH_SECONDS = 24 * 3600  # for the first to evaluate while the others wait
PATIENCE_MS = 3600 * 1000  # to wait for another process' message: it may have more data to read first

_LOST = (
    "Another process was lost, or its host can't be reached; see its own messages. What was trained is saved up to the "
    "last checkpoint: start all processes again with --resume."
)
_MISSING = (
    "Not all {count} processes came together at {coordinator} within {seconds} s. Check that each was started, that "
    "the address is the first one's, and that no firewall is between them."
)
_shares = itertools.count()
_kept: list[object] = []  # objects that C code refers to
_ending = "", 1  # message and exit status, for when C++ code aborts
_unsaid = ["the last message"]  # popped by the thread that says it
_index, _count = 0, 1
_forked = False


def index() -> int:
    """The number of this process; 0 is the first, which writes the run's folder."""
    return _index


def refuse_fork() -> None:
    """Raise ConfigError in a process that was forked after JAX had computed.

    JAX's threads don't exist in the forked process, so that a computation would wait for them for ever.
    """
    if _forked:
        raise ConfigError(
            "JAX can't compute in a process that was forked from one in which it has computed. Start processes by "
            'multiprocessing.get_context("spawn"), or joblib\'s default; or compute in threads.'
        )


def _after_fork() -> None:
    global _forked
    bridge = sys.modules.get("jax._src.xla_bridge")  # JAX has no public name for whether it has devices yet
    _forked = bridge is not None and bridge.backends_are_initialized()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def leave_to_first() -> None:
    """End every process but the first, with success: the rest of the work is for one process."""
    if _index > 0:
        raise SystemExit(0)


def share(text: str) -> list[str]:
    """The texts of all processes, in their order. All of them must call this, equally often."""
    if _count == 1:
        return [text]
    from jax._src.distributed import global_state  # as Orbax does: JAX has no public name for it

    number, client = next(_shares), cast(Any, global_state.client)  # None only if there is a single process
    client.key_value_set(f"flaxae/{number}/{_index}", text)
    return [client.blocking_key_value_get(f"flaxae/{number}/{i}", PATIENCE_MS) for i in range(_count)]


def agree(*numbers: float | bool) -> list[float | bool]:
    """The greatest of each number over the processes. All of them must call this."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return list(numbers)
    return multihost_utils.process_allgather(np.array(numbers, np.float32)).max(axis=0).tolist()


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Join the processes that Slurm, Open MPI, a TPU pod or the environment announce; mostly there is only one.

    To start them by hand, give each JAX_COORDINATOR_ADDRESS (host:port of the first), JAX_NUM_PROCESSES, and a
    JAX_PROCESS_ID from 0 on. An error in one process ends it at once with its message and status 2 (1 for a bug). The
    others end when they notice, with a message of their own and status LOST. Only the first process writes to stdout.

    Raises:
        ConfigError: the processes differ in their versions or their numbers of devices.
    """
    arguments = _of_environment()
    if arguments is None:
        yield
        return
    try:
        _start(arguments)
        yield
    except Exception as error:
        if "Gloo" in str(error) or type(error).__name__ == "JaxRuntimeError":
            _end(_LOST, LOST)
        if isinstance(error, FlaxaeError):
            time.sleep(GRACE_SECONDS if _index == 0 else 0)
            _end(str(error), 2)
        _end(f"{''.join(traceback.format_exception(error))}", 1)


def _of_environment() -> dict[str, Any] | None:
    """The arguments of `jax.distributed.initialize`, empty if it finds them out itself; None for a single process."""
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


def _start(arguments: dict[str, Any]) -> None:
    global _index, _count, _ending
    import jax

    count, coordinator = arguments.get("num_processes", "the"), arguments.get("coordinator_address", "the first one's")
    _ending = _MISSING.format(count=count, coordinator=coordinator, seconds=START_SECONDS), 2
    _on_abort()
    jax.distributed.initialize(
        **arguments,
        initialization_timeout=START_SECONDS,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=FINISH_SECONDS,
    )
    _ending = _LOST, LOST
    from jax._src.distributed import global_state

    _index, _count = global_state.process_id, global_state.num_processes
    if _index > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    described = [set(text.split(", ")) for text in share(", ".join(_description()))]
    alike = set.intersection(*described)
    if described != [alike] * _count:
        each = "; ".join(f"process {i} has {', '.join(sorted(has - alike))}" for i, has in enumerate(described))
        raise ConfigError(f"The processes have to be alike in versions and number of devices, but {each}.")


def _description() -> list[str]:
    """What has to be the same in all processes."""
    import jax

    packages = ("flaxae", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    devices = jax.local_devices()
    found = [f"{len(devices)} × {devices[0].device_kind}", f"Python {platform.python_version()}"]
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return found


def _on_abort() -> None:
    """When JAX's C++ code aborts, end with the message and status in `_ending` instead of its logs."""
    sys.stderr.flush()
    sys.stderr = open(os.dup(2), "w", buffering=1)  # noqa: SIM115 (until the process ends)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # C++'s

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def end(number: int) -> None:
        _end(*_ending)

    _kept.append(end)
    ctypes.CDLL(None).signal(int(signal.SIGABRT), end)  # Python's own handlers would come too late


def _end(message: str, status: int) -> None:
    """Print the message once and end at once: a normal exit would wait for the others."""
    with contextlib.suppress(IndexError):
        sys.stdout.flush()
        _unsaid.pop()
        os.write(sys.stderr.fileno(), f"error: {message}\n".encode())
        os._exit(status)
    threading.Event().wait()  # another thread is about to end the process
