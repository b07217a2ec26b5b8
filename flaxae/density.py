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

FACTORS = 16  # directions that a component of a mixture has
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
    """A mixture of factor analysers (Ghahramani & Hinton 1996): a density of codes, so that any model can be sampled.

    Each component is a normal distribution around its mean along a few directions of its own, with independent noise in
    each number besides.
    """

    weights: Float[np.ndarray, " components"]
    means: Float[np.ndarray, "components latent"]
    factors: Float[np.ndarray, "components factors latent"]
    deviations: Float[np.ndarray, "components latent"]

    @classmethod
    def fit(
        cls,
        codes: Float[np.ndarray, "examples latent"],
        *,
        components: int = 32,
        factors: int = FACTORS,
        seed: int = 0,
    ) -> "Mixture":
        """A factor analyser for each cluster that k-means finds, of the cluster's principal components.

        Args:
            components: clusters; those of a single code are left out.
            factors: directions of each, no more than there are numbers in a code.

        Raises:
            ConfigError: there are fewer than two codes per component.
        """
        from sklearn.cluster import MiniBatchKMeans

        if not 1 <= components <= len(codes) // 2:
            raise errors.ConfigError(
                f"{components} components for {len(codes)} codes: give 1 to {len(codes) // 2}, or more codes."
            )
        codes = np.asarray(codes, np.float64)
        method: Any = MiniBatchKMeans
        found = method(components, batch_size=1024, n_init=1, random_state=seed).fit(codes)
        clusters = [codes[found.labels_ == cluster] for cluster in range(components)]
        clusters = [own for own in clusters if len(own) > 1]
        sizes = np.array([len(own) for own in clusters])
        means = np.stack([own.mean(axis=0) for own in clusters])
        directions = np.zeros((len(clusters), min(factors, codes.shape[1]), codes.shape[1]))
        deviations = np.zeros_like(means)
        for i, own in enumerate(clusters):
            _, spread, axes = np.linalg.svd((own - means[i]) / math.sqrt(len(own) - 1), full_matrices=False)
            kept = (spread[:, None] * axes)[: directions.shape[1]]
            directions[i, : len(kept)] = kept
            left = own.var(axis=0, ddof=1) - np.square(kept).sum(axis=0)
            deviations[i] = np.sqrt(np.maximum(left, 0))
        return cls(sizes / sizes.sum(), means, directions, deviations)

    def sample(self, n: int, *, seed: int = 0) -> Float[np.ndarray, " n latent"]:
        """n codes drawn from the mixture, for `Autoencoder.decode`."""
        rng = np.random.default_rng(seed)
        chosen = rng.choice(len(self.weights), n, p=self.weights / self.weights.sum())
        z = self.means[chosen] + self.deviations[chosen] * rng.standard_normal((n, self.means.shape[1]))
        for component in np.unique(chosen):
            at = np.flatnonzero(chosen == component)
            own = self.factors[component]
            z[at] += rng.standard_normal((len(at), len(own))) @ own
        return z.astype(np.float32)
