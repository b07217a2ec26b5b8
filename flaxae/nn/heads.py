"""Heads: from an encoder's features to the code.

A head is any module called as `head(features, key) -> Latent`. Without a key it is deterministic: what leaves the
package as a code is never a sample.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, UInt

from flaxae import errors
from flaxae.nn import layers

LOGVAR_BOUND = 10.0


class Latent(NamedTuple):
    """What a head returns. `z` goes to the decoder."""

    z: Float[Array, " batch latent"]
    mean: Float[Array, " batch latent"] | None = None  # of q(z | x); of a quantiser, what it was given
    logvar: Float[Array, " batch latent"] | None = None  # of q(z | x)
    codes: Int[Array, " batch groups"] | None = None  # which vectors of the codebook


class Deterministic(nnx.Module):
    """z = W h + b, with no activation: a linear bottleneck loses least (Hinton & Salakhutdinov 2006)."""

    def __init__(self, features: int, latent: int, *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(features, latent, rngs=rngs)

    def __call__(self, features: Float[Array, " batch features"], key: Key[Array, ""] | None = None) -> Latent:
        return Latent(z=self.linear(features))


class Sparse(nnx.Module):
    """z = activation(W h + b): units that can be off, for an objective that wants most of them off.

    "relu" gives exact zeros, for an L1 penalty; "sigmoid" gives rates in (0, 1), for a penalty on their mean (Ng 2011).
    """

    def __init__(self, features: int, latent: int, activation: str = "relu", *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(features, latent, rngs=rngs)
        self.activation = layers.activation(activation)

    def __call__(self, features: Float[Array, " batch features"], key: Key[Array, ""] | None = None) -> Latent:
        return Latent(z=self.activation(self.linear(features)))


class TopK(nnx.Module):
    """z = W h + b where its size is among the example's `active` largest, else 0; ties all stay.

    Makhzani & Frey (2014) take the largest instead of the largest in size. Of a wide code most units then never are.

    Raises:
        ConfigError: `active` is not between 1 and `latent`.
    """

    def __init__(self, features: int, latent: int, active: int, *, rngs: nnx.Rngs):
        if not 1 <= active <= latent:
            raise errors.ConfigError(f"active is {active}; of a code of {latent} it has to be between 1 and {latent}.")
        self.linear = nnx.Linear(features, latent, rngs=rngs)
        self.active = active

    def __call__(self, features: Float[Array, " batch features"], key: Key[Array, ""] | None = None) -> Latent:
        z = self.linear(features)
        return Latent(z=jnp.where(among_largest(jnp.abs(z), self.active), z, 0))


def among_largest(x: Float[Array, "batch n"], k: int) -> Bool[Array, "batch n"]:
    """Which numbers of a row are at least its k-th largest.

    It finds that one bit by bit, from the highest, by counting: on a CPU far faster than `lax.top_k`, which sorts.
    """
    bits = lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    rank = jnp.where(bits >> 31, ~bits, bits | jnp.uint32(1 << 31))  # unsigned, in the order of x

    def next_bit(i: Int[Array, ""], found: UInt[Array, "batch 1"]) -> UInt[Array, "batch 1"]:
        larger = found | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
        return jnp.where(jnp.sum(rank >= larger, axis=-1, keepdims=True) >= k, larger, found)

    return rank >= lax.fori_loop(0, 32, next_bit, jnp.zeros((len(x), 1), jnp.uint32))


class Gaussian(nnx.Module):
    """q(z | x) = N(mean, exp(logvar)) (Kingma & Welling 2014). With a key z is a sample, without one the mean.

    `logvar` is bounded smoothly to ±`LOGVAR_BOUND`, so that its exp never overflows.
    """

    def __init__(self, features: int, latent: int, *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(features, 2 * latent, rngs=rngs)
        self.latent = latent

    def __call__(self, features: Float[Array, " batch features"], key: Key[Array, ""] | None = None) -> Latent:
        mean, unbounded = jnp.split(self.linear(features), 2, axis=-1)
        logvar = LOGVAR_BOUND * jnp.tanh(unbounded / LOGVAR_BOUND)
        z = mean if key is None else mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
        return Latent(z=z, mean=mean, logvar=logvar)

    def sample(self, n: int, key: Key[Array, ""]) -> Float[Array, " n latent"]:
        """z from the prior, N(0, I)."""
        return jax.random.normal(key, (n, self.latent))


class VectorQuantized(nnx.Module):
    """Each `width` numbers of W h + b become the nearest vector of their codebook (van den Oord et al. 2017).

    A code is `latent / width` indices of log2(`codebook`) bits. The gradient passes the quantisation straight through.

    Raises:
        ConfigError: `width` doesn't divide `latent`, or the codebook has fewer than 2 vectors.
    """

    def __init__(self, features: int, latent: int, codebook: int = 128, width: int = 4, *, rngs: nnx.Rngs):
        if width < 1 or latent % width:
            raise errors.ConfigError(f"width is {width}; it has to divide the code's {latent} numbers into groups.")
        if codebook < 2:
            raise errors.ConfigError(f"codebook is {codebook}; it has to have at least 2 vectors.")
        self.linear = nnx.Linear(features, latent, rngs=rngs)
        self.codebook = nnx.Param(0.5 * jax.random.normal(rngs.params(), (latent // width, codebook, width)))

    def __call__(self, features: Float[Array, " batch features"], key: Key[Array, ""] | None = None) -> Latent:
        mean = self.linear(features)
        vectors = lax.stop_gradient(self.codebook[...])
        groups = lax.stop_gradient(mean).reshape(len(mean), len(vectors), -1)
        # ‖g − e‖² without the ‖g‖² that all vectors share
        distance = jnp.square(vectors).sum(-1) - 2 * jnp.einsum("bgw,gkw->bgk", groups, vectors)
        codes = jnp.argmin(distance, axis=-1)
        z = mean + lax.stop_gradient(self.lookup(codes) - mean)
        return Latent(z=z, mean=mean, codes=codes)

    def lookup(self, codes: Int[Array, " batch groups"]) -> Float[Array, " batch latent"]:
        """The vectors of the codebook that the codes stand for, side by side."""
        vectors = self.codebook[...]
        return vectors[jnp.arange(len(vectors)), codes].reshape(len(codes), -1)
