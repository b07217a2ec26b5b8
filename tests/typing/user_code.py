"""What users write, for pyright: it has to accept all of this, and to report each line that has an ignore.

An ignore of something that is right is itself reported (reportUnnecessaryTypeIgnoreComment), so that this file fails
where names lose their types.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import flaxae
from flaxae import density, likelihoods, objectives
from flaxae.nn import heads

x = np.zeros((10, 8, 8, 1), np.float32)


@flaxae.register
@dataclasses.dataclass(frozen=True)
class Smooth:
    """An objective of one's own."""

    weight: float = 0.1

    def __call__(self, model: Any, batch: Any, key: jax.Array) -> jax.Array:
        return objectives.negative_log_likelihood(model, batch, key) + self.weight


def squared(model: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Another, with a metric."""
    error = jnp.square(model.reconstruct(batch) - batch).sum(axis=(1, 2, 3))
    return error, {"error": error}


@dataclasses.dataclass(frozen=True)
class Poisson:
    """A likelihood of one's own."""

    support = (0.0, float("inf"))

    def params_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape

    def log_prob(self, params: jax.Array, x: Any, where: Any = None) -> jax.Array:
        return likelihoods.total(x * params - jnp.exp(params) - jax.scipy.special.gammaln(x + 1.0), where)

    def mean(self, params: jax.Array, x: Any = None) -> jax.Array:
        return jnp.exp(params)

    def sample(self, params: jax.Array, key: jax.Array) -> jax.Array:
        return jax.random.poisson(key, jnp.exp(params)).astype(params.dtype)


def add(key: jax.Array, x: jax.Array) -> jax.Array:
    """A corruption of one's own."""
    return x + jax.random.normal(key, x.shape)


config = flaxae.Config(
    body=flaxae.MLP((32,)), head=heads.TopK(8, active=2), objective=Smooth(), corruption=add, likelihood=Poisson()
)
model: flaxae.Autoencoder = flaxae.build(config, (8, 8, 1), seed=3)
history: flaxae.History = flaxae.fit(model, x, epochs=3, optimizer=optax.adam(1e-3))
flaxae.fit(model, {"x": x, "weight": np.ones(10)}, objective=squared, on_epoch=lambda metrics: metrics["loss"] == 0)
codes = flaxae.apply(flaxae.Autoencoder.encode, model, x)
population = flaxae.fit_population(config, x, seeds=range(3), learning_rate=(1e-3, 1e-2), weight=(0.1, 0.2))
best: flaxae.Autoencoder = population.best.model
nll: np.ndarray = density.negative_log_likelihood(model, x)
flaxae.save(model, "folder")
modules = (flaxae.training.loop, flaxae.nn.heads, flaxae.checkpoints, flaxae.autoencoder)  # as attributes

dataset: flaxae.data.Dataset = flaxae.data.load("mnist")
scaled: np.ndarray = dataset.scaling(x)
streamed: flaxae.data.Stream = dataset.scaling(flaxae.data.Stream(x))
units: np.ndarray = dataset.scaling.undo(scaled)
detector: flaxae.anomaly.Detector = flaxae.anomaly.fit(x, kind="image", members=2, held_out=0.1)
strange: np.ndarray = flaxae.anomaly.conformal.p_values(detector.score(x), detector.calibration) <= 0.01
features = flaxae.AutoencoderTransformer(4, noise=0.1).fit(x.reshape(10, -1)).transform(x.reshape(10, -1))
loaded: flaxae.AutoencoderDetector = flaxae.AutoencoderDetector.load("folder")
table = flaxae.report.Table("Denoising", ["", flaxae.report.Column("PSNR (dB)", better="higher")], [["flaxae", 20.3]])

flaxae.fit(model, x, epoch=3)  # pyright: ignore[reportCallIssue]
flaxae.fit(model, x, epochs="3")  # pyright: ignore[reportArgumentType]
flaxae.Config(objective="elbo")  # pyright: ignore[reportArgumentType]
flaxae.Config(likelihood=flaxae.MLP())  # pyright: ignore[reportArgumentType]
flaxae.build(config, 8)  # pyright: ignore[reportArgumentType]
shape = history["loss"].shape  # pyright: ignore[reportAttributeAccessIssue]
flaxae.data.load("mnist", labels="class")  # pyright: ignore[reportCallIssue]
flaxae.anomaly.fit(x, king="image")  # pyright: ignore[reportCallIssue]
detector.score(["0.5"])  # pyright: ignore[reportArgumentType]
flaxae.AutoencoderTransformer(latents=4)  # pyright: ignore[reportCallIssue]
flaxae.AutoencoderDetector(contamination="some")  # pyright: ignore[reportArgumentType]
flaxae.report.Column("PSNR (dB)", better="up")  # pyright: ignore[reportArgumentType]
mistyped = flaxae.autoencodr  # pyright: ignore[reportAttributeAccessIssue]
