"""Examples that a model remembers: the search for the nearest, and a map on which new ones are placed among them."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int, Key, Shaped
from sklearn.decomposition import PCA

from flaxae import errors, specs
from flaxae.nn import conv, layers
from flaxae.nn.heads import Latent
from flaxae.nn.mlp import MLP, MLPDecoder

GROUP = 16  # references per group; the search first compares only the nearest of each group
SHIFTS = 10  # of the mean; after them, a place moves by less than is seen


class Remembered(nnx.Variable):
    """Numbers that are found from the examples and not trained."""


def nearest(
    references: Float[Array, "references values"],
    x: Float[Array, "batch values"],
    k: int,
    own: Int[Array, " batch"] | None = None,
    count: int | Int[Array, ""] | None = None,
) -> tuple[Float[Array, "batch k"], Int[Array, "batch k"]]:
    """Squared distances to the k nearest references, and their indices, the nearest first.

    Only the k groups with the smallest minimum distance are searched: for any reference outside them, there are k
    references that are at least as near.

    Args:
        own: for each example one reference to leave out, −1 for none.
        count: only so many are references, and the rest is there to fill up.
    """
    most = len(references)
    references = jnp.pad(references, ((0, -most % GROUP), (0, 0)))
    index = jnp.arange(len(references))
    square = jnp.where(index < (most if count is None else count), jnp.sum(jnp.square(references), axis=-1), jnp.inf)
    square = square[None] - 2 * jnp.matmul(x, references.T, precision="highest")
    if own is not None:
        square = jnp.where(index[None] == own[:, None], jnp.inf, square)
    if 8 * k * GROUP > most or conv.is_portable():  # the k groups would be a large part of all, or hard to translate
        distance, found = lax.top_k(-square, k)
    else:
        groups = square.reshape(x.shape[0], GROUP, -1)  # groups are strided, so that minima are taken over whole rows
        _, closest = lax.top_k(-groups.min(axis=1), k)
        candidates = jnp.take_along_axis(groups, closest[:, None], axis=2).reshape(x.shape[0], -1)
        distance, among = lax.top_k(-candidates, k)
        group = jnp.take_along_axis(closest, among % k, axis=1)
        found = among // k * groups.shape[2] + group
    return jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True) - distance, 0), found


def settled(near: Float[Array, "batch neighbours latent"]) -> Float[Array, "batch latent"]:
    """The place among those of neighbours where most of them are near, from that of the first of them.

    It is a local minimum of Σ log(1 + ‖z − z'‖²), the pull of the neighbours on a map (`maps.lay_out`), found by mean
    shift (Cheng 1995). Where the neighbours are in two places, it is one of them, and not in between.
    """
    z = near[:, 0]
    for _ in range(SHIFTS):
        weight = 1 / (1 + jnp.square(z[:, None] - near).sum(axis=-1, keepdims=True))
        z = (weight * near).sum(axis=1) / weight.sum(axis=1)
    return z


@specs.register
@dataclasses.dataclass(frozen=True)
class Components:
    """Principal components as features, and a fully connected decoder; the components are found by `fit`.

    Args:
        components: how many of them, at most; distances between them are nearly those between examples.
        hidden: units of the decoder's layers, from the data to the code, as in `MLP`.
        activation: of the hidden units.
    """

    components: int = 50
    hidden: tuple[int, ...] = (512, 512, 256)
    activation: str = "relu"

    def __post_init__(self) -> None:
        layers.activation(self.activation)
        specs.check_sizes(self, "components", "hidden")

    def encoder(self, shape: tuple[int, ...], *, rngs: nnx.Rngs) -> "ComponentsEncoder":
        """The part from an example's `shape` to components."""
        return ComponentsEncoder(self, shape)

    def decoder(self, code: tuple[int, ...], shape: tuple[int, ...], *, rngs: nnx.Rngs) -> MLPDecoder:
        """The part from a code of any shape to a likelihood's parameters of that `shape`."""
        return MLPDecoder(MLP(self.hidden, self.activation), code, shape, rngs=rngs)


class ComponentsEncoder(nnx.Module):
    """[batch, *shape] -> [batch, components]: (x − mean) · directions."""

    def __init__(self, spec: Components, shape: tuple[int, ...]):
        values = math.prod(shape)
        self.mean = Remembered(jnp.zeros(values))
        self.directions = Remembered(jnp.eye(values, min(spec.components, values)))

    def __call__(
        self, x: Shaped[Array | np.ndarray, " batch *shape"], key: Key[Array, ""] | None = None
    ) -> Float[Array, " batch components"]:
        flat = layers.floating(x).reshape(x.shape[0], -1)
        return jnp.matmul(flat - self.mean[...][None], self.directions[...], precision="highest")

    def fit(self, x: Float[np.ndarray, " examples *shape"]) -> None:
        """Take the principal components of x; of few examples there are few, and the features after them are 0."""
        flat = np.asarray(x, np.float32).reshape(len(x), -1)
        count = min(len(flat), self.directions.shape[1])
        with np.errstate(invalid="ignore"):  # examples without variance
            found = PCA(count, svd_solver="covariance_eigh").fit(flat)
        self.mean[...] = jnp.asarray(found.mean_)
        self.directions[...] = jnp.zeros_like(self.directions[...]).at[:, :count].set(np.asarray(found.components_).T)


@specs.register
@dataclasses.dataclass(frozen=True)
class Placed:
    """z is the place where an example's nearest neighbours are, among examples whose places are remembered.

    The places are found by `maps.fit`. The time of a new example grows with `examples`, by about as much as that of a
    linear layer with so many outputs.

    Args:
        latent: dimensions of the map.
        examples: how many are remembered; `maps.fit` wants as many.
        neighbours: how many decide about a new one's place, see `settled`.
    """

    latent: int = 2
    examples: int = 1
    neighbours: int = 15

    def __post_init__(self) -> None:
        specs.check_sizes(self, "latent", "examples", "neighbours")

    def make(self, features: Any, *, rngs: nnx.Rngs) -> "PlacedHead":
        if not (isinstance(features, tuple) and len(features) == 1):
            raise errors.ConfigError(
                f"The head Placed takes features in one row; the body gives {features}. Take the body Components."
            )
        return PlacedHead(self, features[0])


class PlacedHead(nnx.Module):
    """[batch, features] -> z, [batch, latent]."""

    def __init__(self, spec: Placed, features: int):
        self.neighbours = min(spec.neighbours, spec.examples)
        self.known = Remembered(jnp.zeros((spec.examples, features)))
        self.places = Remembered(jnp.zeros((spec.examples, spec.latent)))

    def __call__(self, features: Float[Array, " batch features"], key: Key[Array, ""] | None = None) -> Latent:
        _, near = nearest(self.known[...], features, self.neighbours)
        return Latent(z=settled(self.places[...][near]))
