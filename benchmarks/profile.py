"""Where the time of training goes: the shares of XLA's operations in flaxae's compiled block of steps.

    python -m benchmarks.profile [NETWORK ...] [--bfloat16]

The times are from JAX's profiler, summed over all threads. Matrix products are `dot`, and their fusions that XLA calls
`ynn`; calls of oneDNN are `ffi_call`, with the time for which one waits for another. Of the rest, `gather` collects the
batches, and multiplying and adding is mostly Adam. It runs on any device.
"""

import argparse
import collections
import pathlib
import tempfile

import jax

from benchmarks import contestants, networks
from benchmarks.training import BATCHES

CONTAINERS = ("ThunkExecutor", "while", "cond", "call", "end:", "ThreadpoolListener", "wait")  # which contain others
THREADS = "tf_XLA"  # the threads that run operations


def shares(network: networks.Network, batch: int, precision: str) -> dict[str, float]:
    """The share of each kind of operation in the total time, the largest first."""
    train = contestants.flaxae(network, batch, precision=precision).train
    train()  # compiles
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            train()
        (trace,) = pathlib.Path(folder).rglob("*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(trace))
        taken: dict[str, float] = collections.Counter()
        for plane in profile.planes:
            for line in plane.lines:
                if not line.name.startswith(THREADS) and plane.name.startswith("/host"):
                    continue
                for event in line.events:
                    if not event.name.startswith(CONTAINERS):
                        kind = event.name.partition(".")[0]
                        taken[kind] += event.duration_ns
    total = sum(taken.values())
    return {name: time / total for name, time in sorted(taken.items(), key=lambda item: -item[1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=["mlp", "conv"], help=", ".join(networks.NETWORKS))
    parser.add_argument("--bfloat16", action="store_true", help="train in bfloat16")
    arguments = parser.parse_args()
    for name in arguments.networks:
        batch = BATCHES.get(name, (256,))[0]
        found = shares(networks.NETWORKS[name], batch, "bf16" if arguments.bfloat16 else "float32")
        products = sum(share for kind, share in found.items() if kind.startswith(("dot", "ynn", "ffi_call")))
        print(f"{name}, batch {batch}: {products:.0%} in matrix products and convolutions")
        for kind, share in list(found.items())[:12]:
            print(f"  {kind:40}{share:6.1%}")


if __name__ == "__main__":
    main()
