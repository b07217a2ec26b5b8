"""Precision: the loss in quality from computing in bfloat16 instead of float32, on MNIST's test images.

    python -m benchmarks.precision

Four small models are trained in each precision, over several seeds, from the same weights and on the same batches and
noise: a fully connected autoencoder and a convolutional one (mean squared error per pixel), the fully connected
denoiser of `--exp denoise --model denoising` (PSNR at noise 0.5), and a variational one on binarised pixels (−ELBO by
one sample per image). All are measured in float32, as both precisions have float32 weights. It prints mean ± standard
deviation over the seeds, and the paired differences bf16 − float32. A CPU without instructions for bfloat16 has the
same quality, slowly. XLA may leave out roundings between operations; here it is told to make all of them. It takes
about three minutes of one CPU core.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import tyro

from flaxae import autoencoder, data, density, metrics, presets, training
from flaxae.autoencoder import Autoencoder
from flaxae.experiments import _flags, denoise
from flaxae.objectives import ELBO, Binarised
from flaxae.training import population

PRECISIONS = ("float32", "bf16")


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    data: str = "mnist"
    """`mnist`, or a folder of IDX files."""
    epochs: int = 5
    """Epochs of each model."""
    examples: int = 20_000
    """How many training images to use."""
    seeds: int = 3
    """How many seeds of the weights, from 0 on."""


class Contest(NamedTuple):
    """A model and its measure, `(model, test images) -> number`."""

    model: autoencoder.Config
    metric: str
    measure: Callable[[Autoencoder, np.ndarray], float]


def contests(dataset: data.Dataset) -> dict[str, Contest]:
    flags = _flags.Denoise(model="denoising", noise=0.5)
    return {
        "vanilla": Contest(presets.vanilla(), "MSE ↓", error),
        "convolutional": Contest(presets.convolutional(), "MSE ↓", error),
        "denoising": Contest(denoise.network(flags, dataset), "PSNR (dB) ↑", psnr),
        "variational": Contest(
            dataclasses.replace(presets.variational(), objective=Binarised(ELBO())), "−ELBO (nats) ↓", negative_elbo
        ),
    }


def error(model: Autoencoder, x: np.ndarray) -> float:
    return float(np.mean(np.square(training.apply(Autoencoder.reconstruct, model, x) - x)))


def psnr(model: Autoencoder, x: np.ndarray) -> float:
    noisy = np.asarray(model.corrupt(x, jax.random.key(0)))
    return float(metrics.psnr(training.apply(Autoencoder.reconstruct, model, noisy), x).mean())


def negative_elbo(model: Autoencoder, x: np.ndarray) -> float:
    binary = np.asarray(jax.random.bernoulli(jax.random.key(0), x), np.float32)
    terms = density.elbo(model, binary)
    return float(np.mean(terms.kl.sum(axis=-1) - terms.log_likelihood))


def main(config: Config) -> None:
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_allow_excess_precision=false"  # read when JAX first computes
    dataset = data.load(config.data)
    train, test = dataset.scaling(dataset.train[: config.examples]), dataset.scaling(dataset.test)
    print(f"{dataset.name}, {len(train):,} images, {config.epochs} epochs, {config.seeds} seeds: mean ± deviation")
    print(f"{'':14s}{'':15s}" + "".join(f"{name:>22s}" for name in (*PRECISIONS, "difference")))
    for name, contest in contests(dataset).items():
        measured = {}
        for precision in PRECISIONS:
            trained = population.fit_population(
                contest.model, train, seeds=range(config.seeds), epochs=config.epochs, batch_size=128,
                validation=0.0, precision=precision, show=False,
            )  # fmt: skip
            measured[precision] = np.array([contest.measure(member.model, test) for member in trained.members])
        full, rounded = (measured[precision] for precision in PRECISIONS)
        columns = "".join(f"{f'{v.mean():.5g} ± {v.std():.2g}':>22s}" for v in (full, rounded, rounded - full))
        print(f"{name:14s}{contest.metric:15s}{columns}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
