"""Priors p(z) of the code of a head with probabilities. The KL is taken to them, and new codes are sampled from them.

A prior's spec makes an object with `log_prob` and `sample` for codes of a given shape. If it has weights to train, that
object is a module.
"""

import dataclasses
import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from flaxae import specs
from flaxae.likelihoods import total

Shape = tuple[int, ...]


@runtime_checkable
class Density(Protocol):
    """What a prior's spec makes."""

    def log_prob(self, z: Float[Array, " batch *code"]) -> Float[Array, " batch"]: ...

    def sample(self, n: int, key: Key[Array, ""]) -> Float[Array, " n *code"]: ...


@runtime_checkable
class Prior(Protocol):
    """The spec of a prior."""

    def make(self, code: Shape, *, rngs: nnx.Rngs) -> Density:
        """The prior of codes of that shape (no batch axis)."""
        ...


@specs.register
@dataclasses.dataclass(frozen=True)
class StandardNormal:
    """N(0, I)."""

    def make(self, code: Shape, *, rngs: nnx.Rngs) -> "StandardNormalDensity":
        return StandardNormalDensity(code)


@dataclasses.dataclass(frozen=True)
class StandardNormalDensity:
    code: Shape

    def log_prob(self, z: Float[Array, " batch *code"]) -> Float[Array, " batch"]:
        """log N(z; 0, I); nats."""
        return total(-0.5 * jnp.square(z) - 0.5 * math.log(2 * math.pi))

    def sample(self, n: int, key: Key[Array, ""]) -> Float[Array, " n *code"]:
        return jax.random.normal(key, (n, *self.code))


@specs.register
@dataclasses.dataclass(frozen=True)
class NormalMixture:
    """A mixture of normals with diagonal covariances, trained with the model; all places of a grid share it."""

    components: int = 16

    def __post_init__(self) -> None:
        specs.check_sizes(self, "components")

    def make(self, code: Shape, *, rngs: nnx.Rngs) -> "NormalMixtureDensity":
        return NormalMixtureDensity(self, code, rngs=rngs)


class NormalMixtureDensity(nnx.Module):
    def __init__(self, spec: NormalMixture, code: Shape, *, rngs: nnx.Rngs):
        self.code = code
        size = (spec.components, code[-1])
        self.logits = nnx.Param(jnp.zeros(spec.components))
        self.means = nnx.Param(jax.random.normal(rngs.params(), size))
        self.log_scales = nnx.Param(jnp.zeros(size))

    def log_prob(self, z: Float[Array, " batch *code"]) -> Float[Array, " batch"]:
        """log Σ_k π_k N(z; mean_k, scale_k²), summed over the places of a grid; nats."""
        shape = (*z.shape[:-1], *self.means[...].shape)
        means, log_scales = (jnp.broadcast_to(p, shape) for p in (self.means[...], self.log_scales[...]))
        normal = -0.5 * jnp.square((z[..., None, :] - means) * jnp.exp(-log_scales)) - log_scales
        each = normal.sum(axis=-1) - 0.5 * z.shape[-1] * math.log(2 * math.pi)
        weights = jnp.broadcast_to(jax.nn.log_softmax(self.logits[...]), each.shape)
        return total(jax.nn.logsumexp(each + weights, axis=-1))

    def sample(self, n: int, key: Key[Array, ""]) -> Float[Array, " n *code"]:
        which_key, key = jax.random.split(key)
        which = jax.random.categorical(which_key, self.logits[...], shape=(n, *self.code[:-1]))
        noise = jax.random.normal(key, (n, *self.code))
        return self.means[...][which] + jnp.exp(self.log_scales[...])[which] * noise
