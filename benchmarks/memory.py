"""How much memory training takes, beside torch and Keras.

    python -m benchmarks.memory [NETWORK ...] [--json FILE]

It prints the peak memory of each contestant's whole process (resident set, with its libraries and the data) before and
after training on the network's samples. It takes two minutes per network on two idle cores.
"""

import argparse
import json
import pathlib

from benchmarks import networks
from benchmarks.training import Worker, contestants


def peaks(network: str) -> dict[str, dict[str, float]]:
    """The peak of each contestant in MiB, after it is built and after it has trained."""
    found = {}
    for name in contestants(networks.NETWORKS[network]):
        worker = Worker(name, network, 256)
        try:
            before = worker("memory")
            worker("train")
            found[name] = {"built_mib": before, "trained_mib": worker("memory")}
        finally:
            worker.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=["mlp", "conv"], help=", ".join(networks.NETWORKS))
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args()
    results = {}
    for network in arguments.networks:
        results[network] = peaks(network)
        print(f"{network}, batch 256{'built':>25}{'trained':>14}", flush=True)
        for name, found in results[network].items():
            print(f"  {name:26}{found['built_mib']:8,.0f} MiB{found['trained_mib']:10,.0f} MiB", flush=True)
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
