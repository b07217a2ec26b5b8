"""The network that gives a value's probabilities from its context, as parts of an `Autoencoder`, to be trained."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from flaxae import likelihoods, specs
from flaxae.autoencoder import Config
from flaxae.nn.heads import Identity

FLOOR = 2.0**-13  # the share of a value's probability that is spread evenly over all levels
RANGE = 2.0**-4  # of all levels, that an output of 1 moves a mean by
LEAST = -5.0  # log of the least scale, in levels


@specs.register
@dataclasses.dataclass(frozen=True)
class Predictor:
    """Fully connected layers whose output sees the features too: [batch, features] -> [batch, 3 × components]."""

    hidden: tuple[int, ...] = (64, 64)

    def __post_init__(self) -> None:
        specs.check_sizes(self, "hidden")

    def encoder(self, shape: tuple[int, ...], *, rngs: nnx.Rngs) -> "PredictorEncoder":
        """The part from a context to what the output is a linear map of."""
        return PredictorEncoder(shape[0], self.hidden, rngs=rngs)

    def decoder(self, code: tuple[int, ...], shape: tuple[int, ...], *, rngs: nnx.Rngs) -> "PredictorDecoder":
        """The part from there to the parameters of a `Levels` likelihood."""
        return PredictorDecoder(code[0], shape[-1], rngs=rngs)


class PredictorEncoder(nnx.Module):
    def __init__(self, features: int, hidden: tuple[int, ...], *, rngs: nnx.Rngs):
        sizes = (features, *hidden)
        self.layers = nnx.List([nnx.Linear(i, o, rngs=rngs) for i, o in zip(sizes, hidden, strict=False)])

    def __call__(
        self, x: Float[Array, "batch features"], key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch code"]:
        h = x = jnp.asarray(x)
        for layer in self.layers:
            h = jax.nn.relu(layer(h))
        return jnp.concatenate([x, h], axis=-1)


class PredictorDecoder(nnx.Module):
    def __init__(self, code: int, outputs: int, *, rngs: nnx.Rngs):
        components = outputs // 3
        spread = np.concatenate([np.zeros(2 * components), np.linspace(0, 3, components)])

        def scales_apart(key: Key[Array, ""], shape: tuple[int, ...], dtype: Any) -> Array:
            return jnp.asarray(spread, dtype)

        small = nnx.initializers.normal(0.01)
        self.out = nnx.Linear(code, outputs, kernel_init=small, bias_init=scales_apart, rngs=rngs)

    def __call__(
        self, z: Float[Array, "batch code"], key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch params"]:
        weights, means, scales = jnp.split(self.out(z), 3, axis=-1)
        return jnp.concatenate([weights, z[:, :1] + RANGE * means, scales], axis=-1)


@specs.register
@dataclasses.dataclass(frozen=True)
class Levels:
    """One whole number, given as level / 2^bits, under a mixture of logistic distributions cut into levels.

    A level's probability is the mixture's mass in its bin; the outermost bins reach to infinity (Salimans et al. 2017,
    eq. 2). The params are the logits of the weights, the means, and the logs of the scales in levels.
    """

    support = likelihoods.UNIT
    components: int = 5
    bits: int = 8

    def __post_init__(self) -> None:
        specs.check_sizes(self, "components", "bits")

    def params_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the decoder's output, whatever that of the context is."""
        return (3 * self.components,)

    def log_prob(
        self, params: likelihoods.Params, x: likelihoods.Values, where: likelihoods.Where = None
    ) -> Float[Array, " batch"]:
        """The log of the level's probability; nats."""
        weights, means, scales = jnp.split(params, 3, axis=-1)
        size = 2.0**self.bits
        inverse = jnp.exp(-jnp.maximum(scales, LEAST))
        distance = (jnp.asarray(x) - means) * size
        low, high = (distance - 0.5) * inverse, (distance + 0.5) * inverse
        below, above = jax.nn.log_sigmoid(high), jax.nn.log_sigmoid(-low)
        level = jnp.rint(jnp.asarray(x) * size)
        inside = below + above + jnp.log(-jnp.expm1(-jnp.maximum(inverse, 1e-12)))
        mass = jnp.where(level <= 0, below, jnp.where(level >= size - 1, above, inside))
        mixed = jax.nn.logsumexp(jax.nn.log_softmax(weights) + mass, axis=-1)
        return jnp.logaddexp(mixed + jnp.log1p(-FLOOR), jnp.log(FLOOR / size))

    def mean(self, params: likelihoods.Params, x: likelihoods.Values | None = None) -> Float[Array, "batch 1"]:
        """The mean of the mixture."""
        weights, means, _ = jnp.split(params, 3, axis=-1)
        return jnp.sum(jax.nn.softmax(weights) * means, axis=-1, keepdims=True)

    def sample(self, params: likelihoods.Params, key: Key[Array, ""]) -> Float[Array, "batch 1"]:
        """A draw from the mixture."""
        which_key, key = jax.random.split(key)
        weights, means, scales = jnp.split(params, 3, axis=-1)
        which = jax.random.categorical(which_key, weights)[:, None]
        mean, scale = (jnp.take_along_axis(part, which, axis=-1) for part in (means, scales))
        size = 2.0**self.bits
        drawn = mean + jnp.exp(scale) / size * jax.random.logistic(key, mean.shape, mean.dtype)
        return jnp.clip(jnp.rint(drawn * size), 0, size - 1) / size


def config(hidden: tuple[int, ...], components: int, bits: int) -> Config:
    """The model that gives a value's probabilities: contexts in, a mixture's parameters out."""
    return Config(body=Predictor(hidden), head=Identity(), likelihood=Levels(components, bits))
