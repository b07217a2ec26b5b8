"""A residual U-Net: from images to images of any size, such as noisy ones to clean ones."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key, Shaped

from flaxae import errors, specs
from flaxae.nn import conv, layers


@specs.register
@dataclasses.dataclass(frozen=True)
class UNet:
    """What is to be changed of an image, found at several sizes at once (Ronneberger et al. 2015; Zhang et al. 2022).

    [height, width, c] -> [height / 2, width / 2, channels[0]] -> … , residual blocks at each size, and back, where each
    size is added to what came up to it. What comes out is added to the image, so that an untrained model changes
    nothing. There is no bias and no norm, so that k times the image gives k times the result: a model that was trained
    on some noise takes weaker and stronger one as well (Mohan et al. 2020).

    The code is a tree, for the head `Identity`: the image, and the features at each size. Images of any size fit; those
    whose sides aren't a multiple of `stride` are extended at their edges, and cut on the way out.

    Args:
        channels: at each size, the first of which is half of the image's.
        blocks: of two 3 × 3 convolutions, at each size down and up; once at the coarsest.
        activation: within the blocks.
    """

    channels: tuple[int, ...] = (48, 96, 128)
    blocks: int = 2
    activation: str = "relu"

    def __post_init__(self) -> None:
        layers.activation(self.activation)
        specs.check_sizes(self, "channels", "blocks")

    @property
    def stride(self) -> int:
        """Pixels of the image to one of the coarsest features."""
        return 2 ** len(self.channels)

    @property
    def reach(self) -> int:
        """Pixels of the image beside a pixel, at most, that what is made of it depends on."""
        steps = [4 * self.blocks] * (len(self.channels) - 1) + [2 * self.blocks]
        return 4 + sum(2**level * convolutions for level, convolutions in enumerate(steps, 1)) + self.stride

    def encoder(self, shape: tuple[int, ...], *, rngs: nnx.Rngs) -> "UNetEncoder":
        """The part from a `shape`, (height, width, channels), to a tree of features.

        Raises:
            ConfigError: the shape is another one.
        """
        if len(shape) != 3:
            raise errors.ConfigError(
                f"UNet takes images, (height, width, channels); the examples have shape {shape}. Take an MLP for them."
            )
        return UNetEncoder(self, shape, rngs=rngs)

    def decoder(self, code: tuple[tuple[int, ...], ...], shape: tuple[int, ...], *, rngs: nnx.Rngs) -> "UNetDecoder":
        """The part from the tree of features to a likelihood's parameters of that `shape`."""
        return UNetDecoder(self, shape, rngs=rngs)


class Block(nnx.Module):
    """x + a convolution of the activation of a convolution of x."""

    def __init__(self, channels: int, activation: str, *, rngs: nnx.Rngs):
        self.first = conv.Conv(channels, channels, bias=False, rngs=rngs)
        self.second = conv.Conv(channels, channels, bias=False, rngs=rngs)
        self.activation = layers.activation(activation)

    def __call__(self, x: conv.Image) -> conv.Image:
        return x + self.second(self.activation(self.first(x)))


def _blocks(spec: UNet, channels: int, rngs: nnx.Rngs) -> nnx.List:
    return nnx.List([Block(channels, spec.activation, rngs=rngs) for _ in range(spec.blocks)])


class UNetEncoder(nnx.Module):
    """[batch, height, width, channels] -> the image itself, and features at half its size, a quarter of it, ….

    The features of all but the coarsest size are those that the decoder adds to what comes up.
    """

    def __init__(self, spec: UNet, shape: tuple[int, ...], *, rngs: nnx.Rngs):
        self.stride = spec.stride
        self.first = conv.Conv(shape[-1], spec.channels[0], 6, 2, bias=False, rngs=rngs)
        self.down = nnx.List(
            [conv.Conv(*pair, 2, 2, bias=False, rngs=rngs) for pair in itertools.pairwise(spec.channels)]
        )
        self.blocks = nnx.List([_blocks(spec, channels, rngs) for channels in spec.channels])

    def __call__(
        self, x: Shaped[Array | np.ndarray, " batch height width channels"], key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, " batch _ _ _"], ...]:
        image = layers.floating(x)
        padded = image
        if not conv.is_portable():  # where sizes may be symbols, they are multiples of the stride
            missing = [(0, -side % self.stride) for side in image.shape[1:3]]
            padded = jnp.pad(image, ((0, 0), *missing, (0, 0)), mode="edge")
        features = []
        with conv.many_channels():
            h = self.first(conv.from_nhwc(padded))
            for level, blocks in enumerate(self.blocks):
                h = h if level == 0 else self.down[level - 1](h)
                for block in blocks:
                    h = block(h)
                features.append(conv.to_nhwc(h))
        return (image, *features)


class UNetDecoder(nnx.Module):
    """The encoder's tree -> [batch, height, width, channels], a likelihood's parameters."""

    def __init__(self, spec: UNet, shape: tuple[int, ...], *, rngs: nnx.Rngs):
        upward = [*reversed(spec.channels)]
        self.up = nnx.List(
            [conv.ConvTranspose(*pair, 2, 2, bias=False, rngs=rngs) for pair in itertools.pairwise(upward)]
        )
        self.blocks = nnx.List([_blocks(spec, channels, rngs) for channels in upward[1:]])
        self.last = conv.ConvTranspose(spec.channels[0], shape[-1], 6, 2, bias=False, rngs=rngs)
        self.last.kernel[...] = jnp.zeros_like(self.last.kernel[...])

    def __call__(
        self, z: tuple[Float[Array | np.ndarray, " batch _ _ _"], ...], key: Key[Array, ""] | None = None
    ) -> Float[Array, " batch height width params"]:
        image, *finer, coarsest = (jnp.asarray(part) for part in z)
        with conv.many_channels():
            h = conv.from_nhwc(coarsest)
            for up, blocks, beside in zip(self.up, self.blocks, reversed(finer), strict=True):
                h = up(h) + conv.from_nhwc(beside)
                for block in blocks:
                    h = block(h)
            change = conv.to_nhwc(self.last(h))
        _, height, width, channels = image.shape
        change = change[:, :height, :width]
        return change + jnp.pad(image, ((0, 0), (0, 0), (0, 0), (0, change.shape[-1] - channels)))
