"""The time of a whole process that trains the reference network for 10 epochs of 60,000 samples, and then ends.

    python -m benchmarks.startup [--epochs 10] [--rounds 3] [--json FILE]

It includes imports, compilation and training, as the user of a script has to wait for them. It compares flaxae's `fit`,
with a cold and with a warm cache of compiled programs, with scripts in torch and Keras, in turns. It takes six minutes
on two idle cores.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks import networks

SAMPLES = 60_000
PEERS = {"torch": "torch", "torch, DataLoader": "torch", "Keras, TensorFlow": "tensorflow", "Keras, JAX": "keras"}


def script(contestant: str, epochs: int) -> None:
    """The work of the process."""
    network = networks.NETWORKS["mlp"]._replace(samples=SAMPLES)
    if contestant == "flaxae":
        import flaxae
        from flaxae.likelihoods import Gaussian
        from flaxae.nn.heads import Deterministic
        from flaxae.parallel import compilation

        compilation.enable_cache()
        config = flaxae.Config(
            body=flaxae.MLP(network.hidden), head=Deterministic(network.latent), likelihood=Gaussian()
        )
        model = flaxae.build(config, network.shape)
        x = networks.images(network, SAMPLES)
        flaxae.fit(model, x, epochs=epochs, validation=0.0, learning_rate=networks.LEARNING_RATE, show=False)
        return
    from benchmarks import contestants

    train = contestants.CONTESTANTS[contestant](network, 256).train
    for _ in range(epochs):
        train()


def seconds(contestant: str, epochs: int, cache: str) -> float:
    """The seconds of the whole process."""
    command = [sys.executable, "-c", f"from benchmarks import startup; startup.script({contestant!r}, {epochs})"]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "JAX_COMPILATION_CACHE_DIR": cache})
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args()
    peers = [name for name, package in PEERS.items() if importlib.util.find_spec(package)]
    # the first to run fills the cache that the second finds
    scripts = {"flaxae, cold cache": "flaxae", "flaxae, warm cache": "flaxae", **{peer: peer for peer in peers}}
    taken: dict[str, list[float]] = {name: [] for name in scripts}
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as cache:
            for name, contestant in scripts.items():
                taken[name].append(seconds(contestant, arguments.epochs, cache))
    ours = taken["flaxae, warm cache"]
    for name, theirs in taken.items():
        ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
        print(f"{name:22}{statistics.median(theirs):7.1f} s   {ratio:.2f} times that of flaxae with a warm cache")
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(taken, indent=2))


if __name__ == "__main__":
    main()
