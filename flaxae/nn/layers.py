"""The few small pieces that encoders and decoders share."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flaxae import errors

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "identity": lambda x: x,
}


@dataclasses.dataclass(frozen=True)
class Activation:
    """An activation by its name, so that a model that holds it can be pickled; JAX's own functions can't be."""

    name: str

    def __call__(self, x: Array) -> Array:
        return ACTIVATIONS[self.name](x)


def activation(name: str) -> Activation:
    """The activation of that name.

    Raises:
        ConfigError: the name is not known.
    """
    if name not in ACTIVATIONS:
        raise errors.ConfigError(errors.unknown("activation", name, ACTIVATIONS))
    return Activation(name)


def floating(x: Array | np.ndarray) -> Array:
    """x itself if it has floats, else x converted to floats."""
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)


def check_rate(what: str, rate: float) -> None:
    """Raise ConfigError unless 0 ≤ rate < 1."""
    if not 0 <= rate < 1:
        raise errors.ConfigError(f"{what} is {rate}; it has to be at least 0 and below 1.")
