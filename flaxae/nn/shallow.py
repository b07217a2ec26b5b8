"""A linear autoencoder of one matrix, which encoder and decoder share: a vector for each column of the data."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Key, Shaped

from flaxae import errors, specs
from flaxae.nn import layers

SMALLEST = 1e-12  # squared length: a row of zeros stays one


@specs.register
@dataclasses.dataclass(frozen=True)
class Shallow:
    """z = x A and x A Aᵀ, where the rows of A have unit length (Vančura et al. 2022, ELSA). For the head `Identity`.

    [columns] -> [latent] -> [columns]. Columns that occur together in the data come to have vectors that point the same
    way. Of wide sparse data, this has half of the weights of untied layers, and overfits later.

    Args:
        latent: how many numbers the code has.
    """

    latent: int = 128

    def __post_init__(self) -> None:
        specs.check_sizes(self, "latent")

    def encoder(self, shape: tuple[int, ...], *, rngs: nnx.Rngs) -> "ShallowEncoder":
        """The part from [*shape] to the code."""
        return ShallowEncoder(Vectors(math.prod(shape), self.latent, rngs=rngs))

    def decoder(self, code: tuple[int, ...], shape: tuple[int, ...], *, rngs: nnx.Rngs) -> "ShallowDecoder":
        """The part from the code to a likelihood's parameters; it has the vectors of the encoder once they are tied.

        Raises:
            ConfigError: the likelihood has more than one parameter for each value, or the head changes the code's size.
        """
        if code != (self.latent,):
            raise errors.ConfigError(
                f"Shallow has codes of {self.latent} numbers; the head gives {code}. Take Identity."
            )
        return ShallowDecoder(shape, rngs=rngs, latent=self.latent)


def unit(x: Float[Array, "rows columns"]) -> Float[Array, "rows columns"]:
    """The rows with length 1; a row of zeros stays one."""
    return x * lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=1, keepdims=True), SMALLEST))


class Vectors(nnx.Module):
    """A vector for each column."""

    def __init__(self, columns: int, latent: int, *, rngs: nnx.Rngs):
        self.table = nnx.Param(nnx.initializers.normal(latent**-0.5)(rngs.params(), (columns, latent)))

    @property
    def unit(self) -> Float[Array, "columns latent"]:
        """The vectors with length 1."""
        return unit(self.table[...])


class ShallowEncoder(nnx.Module):
    """[batch, *shape] -> [batch, latent]."""

    def __init__(self, vectors: Vectors):
        self.vectors = vectors

    def __call__(
        self, x: Shaped[Array | np.ndarray, " batch *shape"], key: Key[Array, ""] | None = None
    ) -> Float[Array, " batch latent"]:
        return layers.floating(x).reshape(x.shape[0], -1) @ self.vectors.unit


class ShallowDecoder(nnx.Module):
    """[batch, latent] -> [batch, *shape]."""

    def __init__(self, shape: tuple[int, ...], *, rngs: nnx.Rngs, latent: int):
        self.shape = shape
        self.vectors = Vectors(math.prod(shape), latent, rngs=rngs)

    def tie(self, encoder: ShallowEncoder) -> None:
        """Take the encoder's vectors for one's own.

        Raises:
            ConfigError: the likelihood has more than one parameter for each value.
        """
        if self.vectors.table.shape != encoder.vectors.table.shape:
            raise errors.ConfigError(
                f"Shallow gives one number for each of {len(encoder.vectors.table)} columns; the likelihood wants "
                f"{math.prod(self.shape)}. Take one with one parameter for each value, such as Gaussian()."
            )
        self.vectors = encoder.vectors

    def __call__(
        self, z: Float[Array | np.ndarray, " batch latent"], key: Key[Array, ""] | None = None
    ) -> Float[Array, " batch *shape"]:
        return (jnp.asarray(z) @ self.vectors.unit.T).reshape(z.shape[0], *self.shape)
