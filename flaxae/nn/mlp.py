"""Fully connected encoders and decoders, for data of any shape."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key, Shaped

from flaxae import specs
from flaxae.nn import layers


@specs.register
@dataclasses.dataclass(frozen=True)
class MLP:
    """Fully connected layers, mirrored in the decoder: [*shape] -> hidden -> latent -> reversed(hidden) -> [*shape].

    Each layer is linear, followed by layer norm (if asked for), the activation, and dropout (if asked for).
    `hidden=()` makes encoder and decoder linear.
    """

    hidden: tuple[int, ...] = (512,)
    activation: str = "relu"
    layer_norm: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        layers.activation(self.activation)
        layers.check_rate("MLP.dropout", self.dropout)
        specs.check_sizes(self, "hidden")

    def encoder(self, shape: tuple[int, ...], *, rngs: nnx.Rngs) -> "MLPEncoder":
        """The part from an example's `shape` to features."""
        return MLPEncoder(self, shape, rngs=rngs)

    def decoder(self, code: tuple[int, ...], shape: tuple[int, ...], *, rngs: nnx.Rngs) -> "MLPDecoder":
        """The part from a code of any shape to a likelihood's parameters of that `shape`."""
        return MLPDecoder(self, code, shape, rngs=rngs)


class Dense(nnx.Module):
    """One hidden layer: linear, layer norm, activation, dropout. [*batch, inputs] -> [*batch, outputs]."""

    def __init__(self, inputs: int, outputs: int, spec: MLP, *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(inputs, outputs, rngs=rngs)
        self.norm = nnx.LayerNorm(outputs, rngs=rngs) if spec.layer_norm else None
        self.activation = layers.activation(spec.activation)
        self.dropout = nnx.Dropout(spec.dropout, deterministic=True)

    def __call__(
        self, x: Float[Array | np.ndarray, "*batch inputs"], key: Key[Array, ""] | None = None
    ) -> Float[Array, "*batch outputs"]:
        x = self.linear(jnp.asarray(x))
        if self.norm is not None:
            x = self.norm(x)
        return self.dropout(self.activation(x), rngs=key)


class Stack(nnx.Module):
    """Hidden layers one after another. [*batch, sizes[0]] -> [*batch, sizes[-1]]."""

    def __init__(self, sizes: tuple[int, ...], spec: MLP, *, rngs: nnx.Rngs):
        self.layers = nnx.List([Dense(*pair, spec, rngs=rngs) for pair in itertools.pairwise(sizes)])

    def __call__(self, x: Float[Array | np.ndarray, "*batch inputs"], key: Key[Array, ""] | None = None) -> Array:
        x = jnp.asarray(x)
        for i, layer in enumerate(self.layers):
            x = layer(x, None if key is None else jax.random.fold_in(key, i))
        return x


class MLPEncoder(nnx.Module):
    """[batch, *shape] -> [batch, features]. The key is for dropout, which is on after `train()`."""

    def __init__(self, spec: MLP, shape: tuple[int, ...], *, rngs: nnx.Rngs):
        sizes = (math.prod(shape), *spec.hidden)
        self.stack = Stack(sizes, spec, rngs=rngs)

    def __call__(
        self, x: Shaped[Array | np.ndarray, " batch *shape"], key: Key[Array, ""] | None = None
    ) -> Float[Array, " batch features"]:
        return self.stack(layers.floating(x).reshape(x.shape[0], -1), key)


class MLPDecoder(nnx.Module):
    """[batch, *code] -> [batch, *shape], a likelihood's parameters. The key is for dropout, on after `train()`."""

    def __init__(self, spec: MLP, code: tuple[int, ...], shape: tuple[int, ...], *, rngs: nnx.Rngs):
        sizes = (math.prod(code), *reversed(spec.hidden))
        self.shape = shape
        self.stack = Stack(sizes, spec, rngs=rngs)
        self.out = nnx.Linear(sizes[-1], math.prod(shape), rngs=rngs)

    def __call__(
        self, z: Float[Array | np.ndarray, " batch *code"], key: Key[Array, ""] | None = None
    ) -> Float[Array, " batch *shape"]:
        return self.out(self.stack(z.reshape(z.shape[0], -1), key)).reshape(z.shape[0], *self.shape)
