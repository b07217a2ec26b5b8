"""Reconstruction: the test error that a code of 32 numbers reaches in ten seconds and in a minute of training.

    python -m benchmarks.reconstruction

It trains on all of MNIST's training part, without validation, and compares with PCA with as many components. The error
is the mean squared error per pixel of the test images, in [0, 1]. The seconds are those of the whole `fit`, compilation
included. It takes about 80 s on two CPU cores.
"""

import dataclasses
import time

import numpy as np
import tyro

from flaxae import autoencoder, baselines, data, objectives, training
from flaxae.autoencoder import Autoencoder
from flaxae.nn.heads import Deterministic
from flaxae.nn.mlp import MLP


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    data: str = "mnist"
    """`mnist`, or a folder of IDX files."""
    latent: int = 32
    """How many numbers the code has."""
    seed: int = 0
    """Seed of the weights and the shuffles."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The settings of one of the two trainings."""

    model: autoencoder.Config
    epochs: int
    learning_rate: float
    batch_size: int


def recipes(latent: int) -> dict[str, Recipe]:
    by_cross_entropy = autoencoder.Config(body=MLP((512,)), head=Deterministic(latent))
    by_error = dataclasses.replace(by_cross_entropy, objective=objectives.profile_likelihood)
    return {
        "within ten seconds": Recipe(by_cross_entropy, epochs=4, learning_rate=3e-3, batch_size=128),
        "within a minute": Recipe(by_error, epochs=50, learning_rate=3e-3, batch_size=256),
    }


def main(config: Config) -> None:
    dataset = data.load(config.data)
    train, test = dataset.scaling(dataset.train), dataset.scaling(dataset.test)
    print(f"{dataset.name}, latent {config.latent}: test MSE, seconds of training")
    began = time.perf_counter()
    pca = baselines.pca_reconstruct(test, train=train, components=config.latent)
    print(f"{'PCA':25s} {np.mean((pca - test) ** 2):.5f} {time.perf_counter() - began:6.1f} s", flush=True)
    for name, recipe in recipes(config.latent).items():
        model = autoencoder.build(recipe.model, dataset.shape, seed=config.seed)
        began = time.perf_counter()
        training.fit(
            model, train, epochs=recipe.epochs, batch_size=recipe.batch_size, learning_rate=recipe.learning_rate,
            validation=0.0, seed=config.seed, show=False,
        )  # fmt: skip
        seconds = time.perf_counter() - began
        error = np.mean((training.apply(Autoencoder.reconstruct, model, test) - test) ** 2)
        print(f"{name:25s} {error:.5f} {seconds:6.1f} s", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
