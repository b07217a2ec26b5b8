"""Where the time of training goes: the shares of XLA's operations in flaxae's compiled block of steps.

    python -m benchmarks.profile [NETWORK ...] [--bfloat16] [--timeline]

The times are from JAX's profiler, summed over all threads. Matrix products are `dot`, and their fusions that XLA calls
`ynn`; calls of oneDNN are `ffi_call`, with the time for which one waits for another. Of the rest, `gather` collects the
batches, and multiplying and adding is mostly Adam. It runs on any device. `--timeline` prints the operations of a step
on a CPU instead, in their order: when each began, how long it took, both in microseconds, and on which thread.
"""

import argparse
import collections
import pathlib
import tempfile
from typing import NamedTuple

import jax

from benchmarks import contestants, networks
from benchmarks.training import BATCHES

CONTAINERS = ("ThunkExecutor", "while", "cond", "call", "end:", "ThreadpoolListener", "wait")  # which contain others
THREADS = "tf_XLA"  # the threads that run operations


class Operation(NamedTuple):
    name: str
    thread: str
    start: float  # ns
    duration: float


def operations(network: networks.Network, batch: int, precision: str) -> list[Operation]:
    """XLA's operations in one training, in their order."""
    train = contestants.flaxae(network, batch, precision=precision).train
    train()  # compiles
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            train()
        (trace,) = pathlib.Path(folder).rglob("*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(trace))
        found = [
            Operation(event.name, line.name, event.start_ns, event.duration_ns)
            for plane in profile.planes
            for line in plane.lines
            if line.name.startswith(THREADS) or not plane.name.startswith("/host")
            for event in line.events
            if not event.name.startswith(CONTAINERS)
        ]
    return sorted(found, key=lambda one: one.start)


def shares(found: list[Operation]) -> dict[str, float]:
    """The share of each kind of operation in the total time, the largest first."""
    taken: dict[str, float] = collections.Counter()
    for one in found:
        taken[one.name.partition(".")[0]] += one.duration
    total = sum(taken.values())
    return {name: time / total for name, time in sorted(taken.items(), key=lambda item: -item[1])}


def one_step(found: list[Operation]) -> list[Operation]:
    """The operations from one gathering of a batch, in the middle of the training, to the next."""
    name = next(one.name for one in found if "gather" in one.name)
    gathered = [i for i, one in enumerate(found) if one.name == name]
    middle = len(gathered) // 2
    return found[gathered[middle - 1] : gathered[middle]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=["mlp", "conv"], help=", ".join(networks.NETWORKS))
    parser.add_argument("--bfloat16", action="store_true", help="train in bfloat16")
    parser.add_argument("--timeline", action="store_true", help="the operations of one step, in their order")
    arguments = parser.parse_args()
    for name in arguments.networks:
        batch = BATCHES.get(name, (256,))[0]
        traced = operations(networks.NETWORKS[name], batch, "bf16" if arguments.bfloat16 else "float32")
        if arguments.timeline:
            step = one_step(traced)
            threads = list(dict.fromkeys(one.thread for one in step))
            print(f"{name}, batch {batch}: start, duration, thread, operation")
            for one in step:
                start, thread = (one.start - step[0].start) / 1e3, threads.index(one.thread)
                print(f"{start:10.1f}{one.duration / 1e3:9.1f}  {thread}  {one.name}")
            continue
        found = shares(traced)
        products = sum(share for kind, share in found.items() if kind.startswith(("dot", "ynn", "ffi_call")))
        print(f"{name}, batch {batch}: {products:.0%} in matrix products and convolutions")
        for kind, share in list(found.items())[:12]:
            print(f"  {kind:40}{share:6.1%}")


if __name__ == "__main__":
    main()
