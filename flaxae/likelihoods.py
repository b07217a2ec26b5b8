"""Likelihoods p(x | z): everything that depends on the range of the values.

The decoder's last layer has no activation; what it returns, the likelihood's `params`, has one number a value of x (the
`Bernoulli` logit, the `Gaussian` mean). The reconstruction is the likelihood's `mean`. So a sigmoid is never put on
standardised data, and no logarithm is ever taken of one.

A likelihood is any hashable object with `log_prob`, `mean`, `sample`, and `support`: the range of values it is for.
`log_prob` sums over an example's values, or over those `where` is True.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from flaxae import errors


@dataclasses.dataclass(frozen=True)
class Bernoulli:
    """Values in [0, 1], by their logits. For grey levels, the cross-entropy; its optimum is still the mean."""

    support: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def log_prob(
        self,
        params: Float[Array, " batch *shape"],
        x: Float[Array | np.ndarray, " batch *shape"],
        where: Bool[Array, " batch *shape"] | None = None,
    ) -> Float[Array, " batch"]:
        """x log σ(params) + (1 − x) log(1 − σ(params)), summed; nats."""
        return _sum(x * params - jax.nn.softplus(params), where)

    def mean(self, params: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jax.nn.sigmoid(params)

    def sample(self, params: Float[Array, "*shape"], key: Key[Array, ""]) -> Float[Array, "*shape"]:
        return jax.random.bernoulli(key, jax.nn.sigmoid(params)).astype(params.dtype)


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Real values with a fixed standard deviation; maximising it is minimising the squared error."""

    support: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise errors.ConfigError(f"A Gaussian's scale is {self.scale}; it has to be finite and above 0.")

    def log_prob(
        self,
        params: Float[Array, " batch *shape"],
        x: Float[Array | np.ndarray, " batch *shape"],
        where: Bool[Array, " batch *shape"] | None = None,
    ) -> Float[Array, " batch"]:
        """log N(x; params, scale²), summed; nats."""
        log_scale = math.log(self.scale * math.sqrt(2 * math.pi))
        return _sum(-0.5 * jnp.square((x - params) / self.scale) - log_scale, where)

    def mean(self, params: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return params

    def sample(self, params: Float[Array, "*shape"], key: Key[Array, ""]) -> Float[Array, "*shape"]:
        return params + self.scale * jax.random.normal(key, params.shape, params.dtype)


@dataclasses.dataclass(frozen=True)
class DiscretizedLogistic:
    """Grey levels in [0, 1], each with the mass that a logistic distribution around the mean has in its bin.

    So its densities are probabilities of the stored 8-bit pixels, comparable with a compressor's (Kingma et al. 2016,
    appendix; Salimans et al. 2017, eq. 2). The outermost bins reach to infinity.
    """

    support: ClassVar[tuple[float, float]] = (0.0, 1.0)
    scale: float = 0.05
    levels: int = 256

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise errors.ConfigError(f"A logistic's scale is {self.scale}; it has to be finite and above 0.")
        if self.levels < 2:
            raise errors.ConfigError(f"levels is {self.levels}; it has to be at least 2.")

    def log_prob(
        self,
        params: Float[Array, " batch *shape"],
        x: Float[Array | np.ndarray, " batch *shape"],
        where: Bool[Array, " batch *shape"] | None = None,
    ) -> Float[Array, " batch"]:
        """log [σ(b) − σ(a)], the bin of the level nearest to x being [a, b] in scales from the mean, summed; nats."""
        level = jnp.rint(x * (self.levels - 1))
        centre = (level / (self.levels - 1) - self.mean(params)) / self.scale
        width = 1 / ((self.levels - 1) * self.scale)
        below, above = jax.nn.log_sigmoid(centre + 0.5 * width), jax.nn.log_sigmoid(0.5 * width - centre)
        # σ(b) − σ(a) = σ(b) σ(−a) (1 − exp(a − b)), which takes no difference of nearly equal numbers
        inside = below + above + math.log(-math.expm1(-width))
        return _sum(jnp.where(level <= 0, below, jnp.where(level >= self.levels - 1, above, inside)), where)

    def mean(self, params: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jax.nn.sigmoid(params)

    def sample(self, params: Float[Array, "*shape"], key: Key[Array, ""]) -> Float[Array, "*shape"]:
        x = self.mean(params) + self.scale * jax.random.logistic(key, params.shape, params.dtype)
        return jnp.clip(jnp.rint(x * (self.levels - 1)), 0, self.levels - 1) / (self.levels - 1)


Likelihood = Bernoulli | Gaussian | DiscretizedLogistic


def _sum(x: Float[Array, " batch *shape"], where: Bool[Array, " batch *shape"] | None) -> Float[Array, " batch"]:
    return jnp.sum(x, axis=tuple(range(1, x.ndim)), where=where)
