"""MLP-Mixer encoders and decoders: an image as a grid of patches, mixed across the grid and across channels in turn."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Key, Shaped

from flaxae import errors, specs
from flaxae.nn import conv, layers, products

Tokens = Float[Array, "channels tokens batch"]


@specs.register
@dataclasses.dataclass(frozen=True)
class Mixer:
    """Patches of an image, mixed by fully connected layers (Tolstikhin et al. 2021, MLP-Mixer), and the mirror image.

    [height, width, c] -> patches, each embedded in `channels` numbers -> `blocks` -> all of them to the code, and back.
    Every layer sees the whole image at the cost of two small matrix products, and nearly all of the time is spent in
    matrix products, on a CPU too. Images whose sides are no multiple of `patch` are padded with zeros.

    Args:
        patch: side of the square patches, in pixels.
        channels: how many numbers each patch is embedded in.
        blocks: how many blocks. Each has two residual layers, one across the patches and one across the channels; each
            patch is layer-normalised before both.
        hidden: hidden units of both layers, as a multiple of their inputs.
        activation: of the hidden units.
    """

    patch: int = 4
    channels: int = 64
    blocks: int = 1
    hidden: int = 2
    activation: str = "relu"

    def __post_init__(self) -> None:
        layers.activation(self.activation)
        specs.check_sizes(self, "patch", "channels", "blocks", "hidden")

    def encoder(self, shape: tuple[int, ...], *, rngs: nnx.Rngs) -> "MixerEncoder":
        """The part from an image's `shape`, (height, width, channels), to features."""
        return MixerEncoder(self, shape, rngs=rngs)

    def decoder(self, code: tuple[int, ...], shape: tuple[int, ...], *, rngs: nnx.Rngs) -> "MixerDecoder":
        """The part from a code of any shape to a likelihood's parameters of that `shape`."""
        return MixerDecoder(self, code, shape, rngs=rngs)

    def grid(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """How many patches there are down and across."""
        if len(shape) != 3:
            raise errors.ConfigError(f"A Mixer takes images, [height, width, channels]; the data are of shape {shape}.")
        return -(-shape[0] // self.patch), -(-shape[1] // self.patch)


class Mix(nnx.Module):
    """Two linear layers along the first axis: [inputs, *rest] -> [inputs, *rest]. The second starts at zero."""

    def __init__(self, inputs: int, spec: Mixer, *, rngs: nnx.Rngs):
        self.up = nnx.Linear(inputs, spec.hidden * inputs, rngs=rngs)
        self.down = nnx.Linear(spec.hidden * inputs, inputs, kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.activation = layers.activation(spec.activation)

    def __call__(self, x: Float[Array, "inputs ..."]) -> Float[Array, "inputs ..."]:
        flat = x.reshape(len(x), -1)
        return across(self.down, self.activation(across(self.up, flat))).reshape(x.shape)


class Norm(nnx.Module):
    """Layer norm over the first axis (Ba et al. 2016)."""

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: Tokens) -> Tokens:
        return standardized(x) * self.scale[...][:, None, None] + self.bias[...][:, None, None]


@jax.custom_jvp
def standardized(x: Tokens) -> Tokens:
    """x with mean 0 and variance 1 along the first axis. Its derivative takes fewer passes over x than JAX's own."""
    return _standardized(x)[0]


def _standardized(x: Tokens) -> tuple[Tokens, Float[Array, "1 tokens batch"]]:
    centred = x - x.mean(axis=0, keepdims=True)
    by = lax.rsqrt(jnp.square(centred).mean(axis=0, keepdims=True) + 1e-6)
    return centred * by, by


@standardized.defjvp
def _standardized_change(at: tuple[Tokens], changes: tuple[Tokens]) -> tuple[Tokens, Tokens]:
    (y, by), (change,) = _standardized(*at), changes
    along = (y * change).mean(axis=0, keepdims=True)
    return y, by * (change - change.mean(axis=0, keepdims=True) - y * along)


class MixerBlock(nnx.Module):
    """Mixes across the patches, then across the channels. The batch axis is last, so both are plain matrix products."""

    def __init__(self, tokens: int, spec: Mixer, *, rngs: nnx.Rngs):
        self.norms = nnx.List([Norm(spec.channels), Norm(spec.channels)])
        self.tokens = Mix(tokens, spec, rngs=rngs)
        self.channels = Mix(spec.channels, spec, rngs=rngs)

    def __call__(self, x: Tokens) -> Tokens:
        across_tokens = self.tokens(self.norms[0](x).swapaxes(0, 1))
        x = x + across_tokens.swapaxes(0, 1)
        return x + self.channels(self.norms[1](x))


class MixerEncoder(nnx.Module):
    """[batch, height, width, channels] -> [batch, features]."""

    def __init__(self, spec: Mixer, shape: tuple[int, ...], *, rngs: nnx.Rngs):
        self.patch, self.grid = spec.patch, spec.grid(shape)
        tokens = math.prod(self.grid)
        self.embed = nnx.Linear(spec.patch**2 * shape[2], spec.channels, rngs=rngs)
        self.positions = nnx.Param(jnp.zeros((spec.channels, tokens)))
        self.blocks = nnx.List([MixerBlock(tokens, spec, rngs=rngs) for _ in range(spec.blocks)])

    def __call__(
        self, x: Shaped[Array | np.ndarray, " batch height width colours"], key: Key[Array, ""] | None = None
    ) -> Float[Array, " batch features"]:
        x = layers.floating(x)
        batch, height, width, colours = x.shape
        (down, right), side = self.grid, self.patch
        x = jnp.pad(x, ((0, 0), (0, down * side - height), (0, right * side - width), (0, 0)))
        x = x.reshape(batch, -1).T.reshape(down, side, right, side, colours, batch)
        x = x.transpose(1, 3, 4, 0, 2, 5).reshape(side * side * colours, -1)
        x = across(self.embed, x).reshape(-1, down * right, batch) + self.positions[...][:, :, None]
        for block in self.blocks:
            x = block(x)
        return x.reshape(-1, batch).T


class MixerDecoder(nnx.Module):
    """[batch, *code] -> [batch, height, width, channels], a likelihood's parameters."""

    def __init__(self, spec: Mixer, code: tuple[int, ...], shape: tuple[int, ...], *, rngs: nnx.Rngs):
        self.patch, self.grid, self.shape = spec.patch, spec.grid(shape), shape
        tokens = math.prod(self.grid)
        self.expand = nnx.Linear(math.prod(code), spec.channels * tokens, rngs=rngs)
        self.blocks = nnx.List([MixerBlock(tokens, spec, rngs=rngs) for _ in range(spec.blocks)])
        self.norm = Norm(spec.channels)
        self.pixels = nnx.Linear(spec.channels, spec.patch**2 * shape[2], rngs=rngs)

    def __call__(
        self, z: Float[Array | np.ndarray, " batch *code"], key: Key[Array, ""] | None = None
    ) -> Float[Array, " batch height width colours"]:
        batch = z.shape[0]
        (down, right), side = self.grid, self.patch
        height, width, colours = self.shape
        x = across(self.expand, jnp.asarray(z).reshape(batch, -1).T).reshape(-1, down * right, batch)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        x = across(self.pixels, x.reshape(len(x), -1)).reshape(side, side, colours, down, right, batch)
        x = x.transpose(3, 0, 4, 1, 2, 5).reshape(-1, batch).T
        return x.reshape(batch, down * side, right * side, colours)[:, :height, :width]


def across(linear: Any, x: Float[Array, "inputs columns"]) -> Float[Array, "outputs columns"]:
    """A linear layer applied to the columns rather than the rows."""
    kernel = linear.kernel[...]
    return (kernel.T @ x if conv.is_portable() else products.columns(kernel, x)) + linear.bias[...][:, None]
