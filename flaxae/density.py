"""Densities: the likelihood of data under a variational model, and a density of codes that lets any model sample."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int, Key

from flaxae import batches, errors, training
from flaxae.autoencoder import Autoencoder
from flaxae.batches import Batch, Examples
from flaxae.objectives import check_probabilistic, log_weights

SHRINKAGE = 0.1
DECODED_AT_ONCE = 4096  # codes; it bounds the memory of the decoder's widest layer


def negative_log_likelihood(
    model: Autoencoder, x: Examples, *, samples: int = 5000, seed: int = 0, examples_at_once: int = 64
) -> Float[np.ndarray, " examples"]:
    """−log 1/K Σ_k p(x, z_k) / q(z_k | x) of each example, K = `samples`; nats (Burda et al. 2016, section 5).

    In expectation this is an upper bound of −log p(x), tighter for larger K. x is not corrupted, and dropout is off.

    Raises:
        ConfigError: the model's head gives no q(z | x).
        DataError: x doesn't fit the model.
    """
    check_probabilistic(model, "The likelihood of x")
    x = training.check_examples(model, x)
    examples = batches.count(x)
    examples_at_once = min(examples_at_once, examples)
    chunk = max(1, min(samples, DECODED_AT_ONCE // examples_at_once))
    model.eval()
    graphdef, state = nnx.split(model)
    starts = range(0, examples, examples_at_once)
    keys = jax.random.split(jax.random.key(seed), len(starts))
    parts = []
    for start, key in zip(starts, keys, strict=True):
        index = np.minimum(np.arange(start, start + examples_at_once), examples - 1)
        parts.append(log_mean_weight(graphdef, samples, chunk, state, batches.take(x, index), key))
    return -np.concatenate(parts)[:examples]


@functools.partial(jax.jit, static_argnames=("graphdef", "samples", "chunk"))
def log_mean_weight(
    graphdef: nnx.GraphDef,
    samples: int,
    chunk: int,
    state: nnx.State,
    x: Examples,
    key: Key[Array, ""],
) -> Float[Array, " batch"]:
    """The log of the mean of `samples` importance weights, computed `chunk` at a time in a loop."""
    model = nnx.merge(graphdef, state, copy=True)
    batch = Batch.of(x)

    def body(i: Int[Array, ""], total: Float[Array, " batch"]) -> Float[Array, " batch"]:
        weights = log_weights(model, jnp.asarray(batch.x), batch, jax.random.fold_in(key, i), chunk)
        wanted = (i * chunk + jnp.arange(chunk) < samples)[:, None]
        return jnp.logaddexp(total, jax.nn.logsumexp(weights, axis=0, where=wanted))

    total = lax.fori_loop(0, math.ceil(samples / chunk), body, jnp.full(len(batch.x), -jnp.inf))
    return total - math.log(samples)


class Elbo(NamedTuple):
    """The two terms of log p(x) ≥ log p(x | z) − Σ_j KL_j; nats."""

    log_likelihood: Float[Array | np.ndarray, " examples"]  # at one z ~ q(z | x)
    kl: Float[Array | np.ndarray, " examples *code"]  # the terms KL_j, as the head gives them


def elbo(model: Autoencoder, x: Examples, *, seed: int = 0, batch_size: int = 1024) -> Elbo:
    """The two terms of each example's evidence lower bound; nats. They don't depend on the β of the training.

    Raises:
        ConfigError: the model's head gives no q(z | x).
        DataError: x doesn't fit the model.
    """
    check_probabilistic(model, "The evidence lower bound")
    x = training.check_examples(model, x)
    model.eval()
    graphdef, state = nnx.split(model)
    keys = jax.random.split(jax.random.key(seed), math.ceil(batches.count(x) / batch_size))
    parts = [
        _elbo(graphdef, state, batches.take(x, slice(i * batch_size, (i + 1) * batch_size)), key)
        for i, key in enumerate(keys)
    ]
    return Elbo(*(np.concatenate(terms) for terms in zip(*parts, strict=True)))


@functools.partial(jax.jit, static_argnames="graphdef")
def _elbo(graphdef: nnx.GraphDef, state: nnx.State, x: Examples, key: Key[Array, ""]) -> Elbo:
    model, batch = nnx.merge(graphdef, state, copy=True), Batch.of(x)
    params, latent = model.forward(batch.x, key, batch.condition, batch.observed)
    return Elbo(model.log_likelihood(params, batch), model.head.kl(latent))


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """A mixture of normals: a density of codes, so that a model without a prior can be sampled too."""

    weights: Float[np.ndarray, " components"]
    means: Float[np.ndarray, "components latent"]
    covariances: Float[np.ndarray, "components latent latent"]

    @classmethod
    def fit(cls, codes: Float[np.ndarray, "examples latent"], *, components: int = 32, seed: int = 0) -> "Mixture":
        """A mixture fitted to codes by expectation maximisation, with scikit-learn's `GaussianMixture`.

        Raises:
            ConfigError: there are fewer than two codes per component.
        """
        from sklearn.mixture import GaussianMixture

        _check_components(components, codes)
        codes = np.asarray(codes, np.float64)
        ridge = 1e-4 * float(codes.var(axis=0).mean()) + 1e-12  # units that are always off have no variance
        fitted: Any = GaussianMixture(components, reg_covar=ridge, init_params="k-means++", random_state=seed).fit(
            codes
        )
        return cls(fitted.weights_, fitted.means_, fitted.covariances_)

    @classmethod
    def of_clusters(
        cls, codes: Float[np.ndarray, "examples latent"], *, components: int = 32, seed: int = 0
    ) -> "Mixture":
        """A normal for each cluster that k-means finds, its covariance shrunk a tenth of the way to its diagonal.

        In codes of 64 numbers and more, this takes seconds where expectation maximisation takes minutes, and what is
        sampled is as good: `python -m benchmarks.generation --only mixtures`.

        Raises:
            ConfigError: there are fewer than two codes per component.
        """
        from sklearn.cluster import MiniBatchKMeans

        _check_components(components, codes)
        codes = np.asarray(codes, np.float64)
        method: Any = MiniBatchKMeans
        found = method(components, batch_size=1024, n_init=1, random_state=seed).fit(codes)
        sizes = np.bincount(found.labels_, minlength=components)
        ridge = (1e-4 * float(codes.var(axis=0).mean()) + 1e-12) * np.eye(codes.shape[1])
        kept = np.flatnonzero(sizes > 1)  # what is alone has no covariance
        clusters = [codes[found.labels_ == cluster] for cluster in kept]
        covariances = [np.cov(cluster, rowvar=False).reshape(ridge.shape) for cluster in clusters]
        shrunk = [(1 - SHRINKAGE) * c + SHRINKAGE * np.diag(np.diag(c)) + ridge for c in covariances]
        means = [cluster.mean(axis=0) for cluster in clusters]
        return cls(sizes[kept] / sizes[kept].sum(), np.stack(means), np.stack(shrunk))

    def sample(self, n: int, *, seed: int = 0) -> Float[np.ndarray, " n latent"]:
        """n codes drawn from the mixture, for `Autoencoder.decode`."""
        rng = np.random.default_rng(seed)
        component = rng.choice(len(self.weights), n, p=self.weights / self.weights.sum())
        noise = rng.standard_normal((n, self.means.shape[1]))
        factors = np.linalg.cholesky(self.covariances)[component]
        return (self.means[component] + np.einsum("nij,nj->ni", factors, noise)).astype(np.float32)


def _check_components(components: int, codes: np.ndarray) -> None:
    if not 1 <= components <= len(codes) // 2:
        raise errors.ConfigError(
            f"{components} components for {len(codes)} codes: give 1 to {len(codes) // 2}, or more codes."
        )
