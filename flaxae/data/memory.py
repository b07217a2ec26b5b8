"""The free memory, so that data that don't fit are refused before anything is allocated."""

import contextlib
import os
import pathlib
import shutil

from flaxae.errors import DataError

SHARE = 0.5  # of the free memory that one source may take, as it is then scaled, copied to the device and trained on
BLOCK = 2**20  # bytes that are read at once to measure what is packed


def available() -> int:
    """The bytes that this process may still allocate: the machine's free memory, within container and user limits.

    It is 2**63 if nothing is known.
    """
    found = [2**63]
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = pathlib.Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # "max" for a container without a limit
            found.append(_number(limit) - _number(used) + _reclaimable(pathlib.Path(limit).parent))
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            pages = int(pathlib.Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
            found.append(limit - pages * os.sysconf("SC_PAGESIZE"))
    return max(0, min(found))


def check_disk(size: int, folder: str | os.PathLike[str], what: object) -> None:
    """Raise DataError if `size`, the bytes that `what` is unpacked to, is more than half of what the disk has free."""
    free = shutil.disk_usage(folder).free
    if size > SHARE * free:
        raise DataError(
            f"{what} would take {_said(size)} on the disk of {folder}, of which {_said(free)} are free. Unpack it "
            "elsewhere, and give the folder."
        )


def check(size: int, what: object, *, advice: str = "Load a part of it.") -> None:
    """Raise DataError if `size`, the bytes that `what` would take, is more than one source may take."""
    free = available()
    if size > SHARE * free:
        raise DataError(
            f"{what} would take {_said(size)} of memory, of which {_said(free)} are free here, and half of that may be "
            f"taken by one source. {advice}"
        )


def _number(path: str) -> int:
    return int(pathlib.Path(path).read_text(encoding="ascii"))


def _reclaimable(cgroup: pathlib.Path) -> int:
    """The bytes of cached files that count as the container's memory, but are freed when memory is needed."""
    for line in (cgroup / "memory.stat").read_text(encoding="ascii").splitlines():
        if line.startswith(("inactive_file ", "total_inactive_file ")):
            return int(line.split()[1])
    return 0


def _said(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.0f} MiB"
