"""Two hundred small models: one `fit_population` beside as many `fit`s in a row, compiling included.

    python -m benchmarks.populations

Both train the same networks (784-32-8 by default) from 200 seeds on the same examples, for the same number of steps.
The `fit`s share their compiled programs, so that only the first compiles. Rounds alternate, and the result is the
median of their ratios.
"""

import dataclasses
import statistics
import time

import tyro

from flaxae import autoencoder, data, training
from flaxae.autoencoder import Config as Model
from flaxae.likelihoods import Gaussian
from flaxae.nn.heads import Deterministic
from flaxae.nn.mlp import MLP


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    members: int = 200
    examples: int = 1000
    """How many of MNIST's training images to use."""
    epochs: int = 10
    batch_size: int = 100
    at_once: int = 16
    """How many members train in one program."""
    rounds: int = 3


def main(config: Config) -> None:
    mnist = data.load("mnist")
    x = mnist.scaling(mnist.train[: config.examples])
    model = Model(body=MLP((32,)), head=Deterministic(8), likelihood=Gaussian())
    settings = {"epochs": config.epochs, "batch_size": config.batch_size, "validation": 0.0, "show": False}

    def together() -> None:
        training.fit_population(model, x, seeds=range(config.members), at_once=config.at_once, **settings)

    def in_a_row() -> None:
        for seed in range(config.members):
            training.fit(autoencoder.build(model, x.shape[1:], seed=seed), x, **settings)

    ratios = []
    for number in range(config.rounds):
        seconds = []
        for train in (together, in_a_row):
            began = time.perf_counter()
            train()
            seconds.append(time.perf_counter() - began)
        ratios.append(seconds[1] / seconds[0])
        note = " (both compile)" if number == 0 else ""
        print(
            f"population {seconds[0]:6.1f} s, fits in a row {seconds[1]:6.1f} s: {ratios[-1]:.2f} ×{note}", flush=True
        )
    print(f"median {statistics.median(ratios):.2f} × for {config.members} models of {config.epochs} epochs")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
