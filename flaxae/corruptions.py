"""Corruptions: what a denoising autoencoder is asked to undo (Vincent et al. 2010, JMLR 11, section 3.3).

A corruption is any function `(key, x, level) -> x̃` of the same shape as `x`. It is called inside the
compiled step with a fresh key, so that no example is ever seen with the same noise twice. `level` is an array
argument: changing it compiles nothing, and members of a population may each have their own.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from flaxae import errors
from flaxae.augmentation import Transform

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


@dataclasses.dataclass(frozen=True)
class Patches:
    """Set whole patches to 0, each with probability `level`: what the neighbours of a value give away goes with it.

    Patches are squares of `size` pixels in images, [batch, height, width, channels], with all their channels, and runs
    of `size` in signals, [batch, time, channels]; in tables, [batch, columns], where no column is nearer than another,
    single values.
    """

    size: int = 4

    def __post_init__(self) -> None:
        if self.size < 1:
            raise errors.ConfigError(f"The size of patches is {self.size}; it has to be at least 1.")

    def __call__(self, key: Key[Array, ""], x: Float[Array, "..."], level: Float[Array, ""]) -> Float[Array, "..."]:
        if x.ndim == 2:
            return masking(key, x, level)
        batch, *extent, _ = x.shape
        patches = (batch, *(-(-side // self.size) for side in extent), 1)
        hidden = jax.random.uniform(key, patches) < level
        for axis, side in enumerate(extent, 1):
            hidden = jnp.repeat(hidden, self.size, axis=axis).take(jnp.arange(side), axis=axis)
        return jnp.where(hidden, 0, x)


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian": gaussian,
    "masking": masking,
    "salt_and_pepper": salt_and_pepper,
    "patches": Patches(),
    "transform": Transform(),
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
