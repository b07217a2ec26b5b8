"""Corruptions: what a denoising autoencoder is asked to undo (Vincent et al. 2010, JMLR 11, section 3.3).

A corruption is any `(key, x) -> x̃` of the same shape as `x`: a function, or a frozen dataclass. It is called inside the
compiled step with a fresh key, so that no example is ever seen with the same noise twice. Its float fields, such as
`level`, are hyper-parameters (see `flaxae.specs`): changing one compiles nothing, and each member of a population may
have its own.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from flaxae import errors, specs
from flaxae.augmentation import Transform

Clip = tuple[float, float] | None


@runtime_checkable
class Corruption(Protocol):
    """What a corruption has to be: `(key, x) -> x̃`."""

    def __call__(self, key: Key[Array, ""], x: Float[Array, "..."], /) -> Float[Array, "..."]: ...


@specs.register
@dataclasses.dataclass(frozen=True)
class GaussianNoise:
    """Add normal noise of standard deviation `level`.

    Args:
        level: the standard deviation, in the units of the (scaled) data.
        clip: bounds that the noisy values are clipped to.
    """

    level: float = 0.1
    clip: Clip = None

    def __post_init__(self) -> None:
        specs.check_not_negative(self, "level")
        specs.check_clip(self)

    def __call__(self, key: Key[Array, ""], x: Float[Array, "..."]) -> Float[Array, "..."]:
        noisy = x + self.level * jax.random.normal(key, x.shape, x.dtype)
        return noisy if self.clip is None else jnp.clip(noisy, *self.clip)


@specs.register
@dataclasses.dataclass(frozen=True)
class GaussianRange:
    """Add normal noise, each example's standard deviation drawn evenly from `least` to `most`.

    For one model of several levels, or of a level that isn't known (a blind one; Zhang et al. 2017, DnCNN-B).

    Args:
        least, most: the deviations, in the units of the (scaled) data.
        clip: bounds that the noisy values are clipped to.
    """

    least: float = 0.0
    most: float = 0.2
    clip: Clip = None

    def __post_init__(self) -> None:
        specs.check_not_negative(self, "least", "most")
        specs.check_clip(self)
        if self.least > self.most:
            raise errors.ConfigError(f"GaussianRange is from {self.least} to {self.most}: give the lower one first.")

    def __call__(self, key: Key[Array, ""], x: Float[Array, " batch *shape"]) -> Float[Array, " batch *shape"]:
        level_key, key = jax.random.split(key)
        level = jax.random.uniform(level_key, (len(x), *[1] * (x.ndim - 1)), x.dtype, self.least, self.most)
        noisy = x + level * jax.random.normal(key, x.shape, x.dtype)
        return noisy if self.clip is None else jnp.clip(noisy, *self.clip)


@specs.register
@dataclasses.dataclass(frozen=True)
class PoissonGaussian:
    """Add a sensor's noise, of variance level² · (dark + (1 − dark) · x): counted photons, and their reading out.

    Both are normal (Foi et al. 2008, section II): at some ten photons and more, a Poisson variable nearly is.

    Args:
        level: the deviation where x is 1, in the units of the (scaled) data.
        dark: the part of its square that is left where x is 0.
        clip: bounds that the noisy values are clipped to.
    """

    level: float = 0.1
    dark: float = 0.1
    clip: Clip = None

    def __post_init__(self) -> None:
        specs.check_not_negative(self, "level", "dark")
        specs.check_clip(self)

    def __call__(self, key: Key[Array, ""], x: Float[Array, "..."]) -> Float[Array, "..."]:
        deviation = self.level * jnp.sqrt(self.dark + (1 - self.dark) * jnp.maximum(x, 0))
        noisy = x + deviation * jax.random.normal(key, x.shape, x.dtype)
        return noisy if self.clip is None else jnp.clip(noisy, *self.clip)


@specs.register
@dataclasses.dataclass(frozen=True)
class Masking:
    """Set each value to 0 with probability `level`."""

    hides = True  # it sets values to 0 and changes no others
    level: float = 0.5

    def __post_init__(self) -> None:
        specs.check_not_negative(self, "level")

    def __call__(self, key: Key[Array, ""], x: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.where(jax.random.uniform(key, x.shape, x.dtype) < self.level, jnp.zeros((), x.dtype), x)


@specs.register
@dataclasses.dataclass(frozen=True)
class Deletion:
    """Delete things from a bag: set each value to 0 with probability `level`, and scale the rest to the same length.

    For rows that say what there is (words, items), and whose encoder is given rows of one Euclidean length.
    """

    hides = True
    level: float = 0.5

    def __post_init__(self) -> None:
        specs.check_not_negative(self, "level")

    def __call__(self, key: Key[Array, ""], x: Float[Array, "..."]) -> Float[Array, "..."]:
        kept = jnp.where(jax.random.uniform(key, x.shape, x.dtype) < self.level, jnp.zeros((), x.dtype), x)
        axes = tuple(range(1, x.ndim))
        before, after = (jnp.sum(jnp.square(rows), axis=axes, keepdims=True) for rows in (x, kept))
        return kept * jnp.sqrt(before / jnp.maximum(after, 1e-12))


@specs.register
@dataclasses.dataclass(frozen=True)
class SaltAndPepper:
    """With probability `level`, set a value to 0 or 1, both equally likely; for data scaled to [0, 1]."""

    level: float = 0.1

    def __post_init__(self) -> None:
        specs.check_not_negative(self, "level")

    def __call__(self, key: Key[Array, ""], x: Float[Array, "..."]) -> Float[Array, "..."]:
        u = jax.random.uniform(key, x.shape, x.dtype)
        return jnp.where(u < self.level, jnp.where(u < self.level / 2, 0, 1).astype(x.dtype), x)


@specs.register
@dataclasses.dataclass(frozen=True)
class Patches:
    """Set whole patches to 0, each with probability `level`, so that a value can't be guessed from its neighbours.

    In images, [batch, height, width, channels], patches are squares of side `size` with all their channels. In signals,
    [batch, time, channels], they are runs of `size` moments. In tables, [batch, columns], where columns have no order,
    they are single values.
    """

    hides = True
    size: int = 4
    level: float = 0.5

    def __post_init__(self) -> None:
        specs.check_sizes(self, "size")
        specs.check_not_negative(self, "level")

    def __call__(self, key: Key[Array, ""], x: Float[Array, "..."]) -> Float[Array, "..."]:
        if x.ndim == 2:
            return jnp.where(jax.random.uniform(key, x.shape, x.dtype) < self.level, jnp.zeros((), x.dtype), x)
        batch, *extent, _ = x.shape
        patches = (batch, *(-(-side // self.size) for side in extent), 1)
        hidden = jax.random.uniform(key, patches) < self.level
        for axis, side in enumerate(extent, 1):
            hidden = jnp.repeat(hidden, self.size, axis=axis).take(jnp.arange(side), axis=axis)
        return jnp.where(hidden, jnp.zeros((), x.dtype), x)


CORRUPTIONS = {
    "gaussian": GaussianNoise,
    "masking": Masking,
    "poisson_gaussian": PoissonGaussian,
    "salt_and_pepper": SaltAndPepper,
    "patches": Patches,
    "transform": Transform,
}
"""The stock corruptions by their names on the command line; each takes a `level`."""
