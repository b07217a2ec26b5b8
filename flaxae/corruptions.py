"""Corruptions: what a denoising autoencoder is asked to undo (Vincent et al. 2010, JMLR 11, section 3.3).

A corruption is any function `(key, x, level) -> x̃` of the same shape as `x`. It is called inside the
compiled step with a fresh key, so that no example is ever seen with the same noise twice. `level` is an array
argument: changing it compiles nothing, and members of a population may each have their own.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from flaxae import errors

Corruption = Callable[[Key[Array, ""], Float[Array, "..."], Float[Array, ""]], Float[Array, "..."]]


def gaussian(key: Key[Array, ""], x: Float[Array, "..."], level: Float[Array, ""]) -> Float[Array, "..."]:
    """Add normal noise of standard deviation `level`."""
    return x + level * jax.random.normal(key, x.shape, x.dtype)


def masking(key: Key[Array, ""], x: Float[Array, "..."], level: Float[Array, ""]) -> Float[Array, "..."]:
    """Set each value to 0 with probability `level`."""
    return jnp.where(jax.random.uniform(key, x.shape, x.dtype) < level, 0, x)


def salt_and_pepper(key: Key[Array, ""], x: Float[Array, "..."], level: Float[Array, ""]) -> Float[Array, "..."]:
    """Set each value to 0 or to 1, evenly, with probability `level`; for data scaled to [0, 1]."""
    u = jax.random.uniform(key, x.shape, x.dtype)
    return jnp.where(u < level, jnp.where(u < level / 2, 0, 1).astype(x.dtype), x)


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian": gaussian,
    "masking": masking,
    "salt_and_pepper": salt_and_pepper,
}


def get(name: str) -> Corruption | None:
    """The corruption of that name, None for "none".

    Raises:
        ConfigError: the name is not known.
    """
    if name == "none":
        return None
    if name not in CORRUPTIONS:
        raise errors.ConfigError(errors.unknown("corruption", name, [*CORRUPTIONS, "none"]))
    return CORRUPTIONS[name]
