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


Likelihood = Bernoulli | Gaussian


def _sum(x: Float[Array, " batch *shape"], where: Bool[Array, " batch *shape"] | None) -> Float[Array, " batch"]:
    return jnp.sum(x, axis=tuple(range(1, x.ndim)), where=where)
