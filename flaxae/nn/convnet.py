"""Convolutional encoders and decoders, for images and signals of any size and number of channels."""

import dataclasses
import itertools
import math

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key, Shaped

from flaxae import errors, specs
from flaxae.nn import conv, layers
from flaxae.nn.mlp import MLP, Stack


@specs.register
@dataclasses.dataclass(frozen=True)
class ConvNet:
    """Convolutional stages that each halve the image, mirrored by transposed convolutions in the decoder.

    [height, width, c] -> [⌈height / 2⌉, ⌈width / 2⌉, channels[0]] -> … -> residual blocks -> hidden -> latent.
    A signal, [time, c], is an image of width 1.

    Args:
        channels: of each stage; every one halves height and width.
        kernel: side of the stages' kernels.
        residual: blocks of two 3 × 3 convolutions, added to their input, at the coarsest size (He et al. 2016).
        hidden: fully connected layers between the coarsest size and the code.
        activation: after every layer but the last.
        pool: halve by 2 × 2 max pooling after a convolution, rather than by its stride.
    """

    channels: tuple[int, ...] = (32, 64)
    kernel: int = 3
    residual: int = 0
    hidden: tuple[int, ...] = ()
    activation: str = "relu"
    pool: bool = False

    def __post_init__(self) -> None:
        layers.activation(self.activation)
        specs.check_sizes(self, "channels", "hidden", "kernel")

    def encoder(self, shape: tuple[int, ...], *, rngs: nnx.Rngs) -> "ConvEncoder":
        """The part from a `shape`, (height, width, channels) or (time, channels), to features.

        Raises:
            ConfigError: the shape is another one.
        """
        return ConvEncoder(self, shape, rngs=rngs)

    def decoder(self, code: tuple[int, ...], shape: tuple[int, ...], *, rngs: nnx.Rngs) -> "ConvDecoder":
        """The part from a code of any shape to a likelihood's parameters of that `shape`."""
        return ConvDecoder(self, code, shape, rngs=rngs)

    def sizes(self, shape: tuple[int, int, int]) -> list[tuple[int, int]]:
        """(height, width) before the first stage and after each."""
        return list(
            itertools.accumulate(self.channels, lambda size, _: conv.conv_size(size, self.kernel, 2), initial=shape[:2])
        )

    def window(self, shape: tuple[int, int, int]) -> tuple[int, int]:
        """(height, width) of the stages' kernels. A signal has width 1, so its kernels need only one column."""
        return (self.kernel, 1 if shape[1] == 1 else self.kernel)


def as_image(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(height, width, channels) of an example of that shape.

    Raises:
        ConfigError: it is the shape of neither an image nor a signal.
    """
    if len(shape) not in (2, 3):
        raise errors.ConfigError(
            f"ConvNet takes images, (height, width, channels), and signals, (time, channels); the examples have shape "
            f"{shape}. Take an MLP for them."
        )
    return shape if len(shape) == 3 else (shape[0], 1, shape[1])


class ResidualBlock(nnx.Module):
    def __init__(self, channels: int, activation: str, *, rngs: nnx.Rngs):
        self.first = conv.Conv(channels, channels, rngs=rngs)
        self.second = conv.Conv(channels, channels, rngs=rngs)
        self.activation = layers.activation(activation)

    def __call__(self, x: conv.Image) -> conv.Image:
        return x + self.second(self.activation(self.first(self.activation(x))))


class ConvEncoder(nnx.Module):
    """[batch, height, width, channels] -> [batch, features]."""

    def __init__(self, spec: ConvNet, shape: tuple[int, ...], *, rngs: nnx.Rngs):
        self.activation = layers.activation(spec.activation)
        self.shape = as_image(shape)
        self.pool = spec.pool
        channels = itertools.pairwise((self.shape[2], *spec.channels))
        window, stride = spec.window(self.shape), 1 if spec.pool else 2
        self.stages = nnx.List([conv.Conv(*pair, window, stride, rngs=rngs) for pair in channels])
        self.blocks = nnx.List(
            [ResidualBlock(spec.channels[-1], spec.activation, rngs=rngs) for _ in range(spec.residual)]
        )
        flat = math.prod(spec.sizes(self.shape)[-1]) * spec.channels[-1]
        self.stack = Stack((flat, *spec.hidden), MLP(spec.hidden, spec.activation), rngs=rngs)

    def __call__(
        self, x: Shaped[Array | np.ndarray, " batch *shape"], key: Key[Array, ""] | None = None
    ) -> Float[Array, " batch features"]:
        x = conv.from_nhwc(layers.floating(x).reshape(x.shape[0], *self.shape))
        for stage in self.stages:
            x = self.activation(stage(x))
            if self.pool:
                x = conv.max_pool(x, 2, 2, "SAME")
        for block in self.blocks:
            x = block(x)
        x = conv.to_nhwc(x)
        return self.stack(x.reshape(x.shape[0], -1), key)


class ConvDecoder(nnx.Module):
    """[batch, *code] -> [batch, height, width, channels], a likelihood's parameters."""

    def __init__(self, spec: ConvNet, code: tuple[int, ...], shape: tuple[int, ...], *, rngs: nnx.Rngs):
        latent = math.prod(code)
        self.activation = layers.activation(spec.activation)
        image = as_image(shape)
        *sizes, smallest = spec.sizes(image)
        self.shape = shape
        self.coarsest = (*smallest, spec.channels[-1])
        self.stack = Stack((latent, *reversed(spec.hidden)), MLP(spec.hidden, spec.activation), rngs=rngs)
        self.expand = nnx.Linear((latent, *reversed(spec.hidden))[-1], math.prod(self.coarsest), rngs=rngs)
        self.blocks = nnx.List(
            [ResidualBlock(spec.channels[-1], spec.activation, rngs=rngs) for _ in range(spec.residual)]
        )
        self.stages = nnx.List(
            [
                conv.ConvTranspose(*pair, spec.window(image), 2, size=size, rngs=rngs)
                for pair, size in zip(
                    itertools.pairwise((*reversed(spec.channels), image[2])), reversed(sizes), strict=True
                )
            ]
        )

    def __call__(
        self, z: Float[Array | np.ndarray, " batch *code"], key: Key[Array, ""] | None = None
    ) -> Float[Array, " batch *shape"]:
        x = self.expand(self.stack(jnp.asarray(z).reshape(z.shape[0], -1), key)).reshape(z.shape[0], *self.coarsest)
        x = conv.from_nhwc(x)
        for block in self.blocks:
            x = block(x)
        for stage in self.stages:
            x = stage(self.activation(x))
        return conv.to_nhwc(x).reshape(z.shape[0], *self.shape)


@specs.register
@dataclasses.dataclass(frozen=True)
class FullyConvolutional:
    """Convolutions only: the code is a grid (for a signal, a sequence), and images may have any size.

    [height, width, c] -> [⌈height / 2⌉, ⌈width / 2⌉, channels[0]] -> … -> residual blocks -> a code at each place, and
    back. A model that was built for one size takes other sizes too: the output is cropped to the size of the input.

    Args:
        channels: of each stage; every one halves height and width.
        kernel: side of the stages' kernels.
        residual: blocks of two 3 × 3 convolutions, added to their input, at the coarsest size (He et al. 2016).
        activation: after every layer but the last.
    """

    channels: tuple[int, ...] = (32, 64)
    kernel: int = 3
    residual: int = 0
    activation: str = "relu"

    def __post_init__(self) -> None:
        layers.activation(self.activation)
        specs.check_sizes(self, "channels", "kernel")

    @property
    def stride(self) -> int:
        """Pixels of the image to a place of the code."""
        return 2 ** len(self.channels)

    @property
    def reach(self) -> int:
        """Pixels beside a pixel, at most, that what is made of it depends on."""
        stages = sum(2**level for level in range(len(self.channels))) * (self.kernel // 2)
        return 2 * (stages + 2 * self.residual * self.stride) + self.stride

    def encoder(self, shape: tuple[int, ...], *, rngs: nnx.Rngs) -> "GridEncoder":
        """The part from a `shape`, (height, width, channels) or (time, channels), to a grid of features.

        Raises:
            ConfigError: the shape is another one.
        """
        return GridEncoder(self, shape, rngs=rngs)

    def decoder(self, code: tuple[int, ...], shape: tuple[int, ...], *, rngs: nnx.Rngs) -> "GridDecoder":
        """The part from a grid of codes to a likelihood's parameters of that `shape`."""
        return GridDecoder(self, code, shape, rngs=rngs)

    def across(self, shape: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Kernel and stride of the stages, each (height, width). The width 1 of a signal is not halved."""
        return ((self.kernel, 1), (2, 1)) if len(shape) == 2 else ((self.kernel, self.kernel), (2, 2))


class GridEncoder(nnx.Module):
    """[batch, height, width, channels] -> [batch, ⌈height / 2ⁿ⌉, ⌈width / 2ⁿ⌉, features], for n stages."""

    def __init__(self, spec: FullyConvolutional, shape: tuple[int, ...], *, rngs: nnx.Rngs):
        self.activation = layers.activation(spec.activation)
        channels = itertools.pairwise((as_image(shape)[2], *spec.channels))
        self.stages = nnx.List([conv.Conv(*pair, *spec.across(shape), rngs=rngs) for pair in channels])
        self.blocks = nnx.List(
            [ResidualBlock(spec.channels[-1], spec.activation, rngs=rngs) for _ in range(spec.residual)]
        )

    def __call__(
        self, x: Shaped[Array | np.ndarray, " batch *shape"], key: Key[Array, ""] | None = None
    ) -> Float[Array, " batch *features"]:
        x = layers.floating(x)
        is_signal = x.ndim == 3
        x = conv.from_nhwc(x[:, :, None] if is_signal else x)
        for stage in self.stages:
            x = self.activation(stage(x))
        for block in self.blocks:
            x = block(x)
        x = conv.to_nhwc(x)
        return x[:, :, 0] if is_signal else x


class GridDecoder(nnx.Module):
    """[batch, height, width, code] -> [batch, 2ⁿ height, 2ⁿ width, channels], a likelihood's parameters.

    A grid of the size that it was built for gives exactly the `shape` that it was built for.
    """

    def __init__(self, spec: FullyConvolutional, code: tuple[int, ...], shape: tuple[int, ...], *, rngs: nnx.Rngs):
        self.activation = layers.activation(spec.activation)
        self.code, self.shape = code, shape
        channels = (*reversed(spec.channels), shape[-1])
        self.expand = nnx.Linear(code[-1], channels[0], rngs=rngs)
        self.blocks = nnx.List([ResidualBlock(channels[0], spec.activation, rngs=rngs) for _ in range(spec.residual)])
        self.stages = nnx.List(
            [conv.ConvTranspose(*pair, *spec.across(shape), rngs=rngs) for pair in itertools.pairwise(channels)]
        )

    def __call__(
        self, z: Float[Array | np.ndarray, " batch *code"], key: Key[Array, ""] | None = None
    ) -> Float[Array, " batch *params"]:
        x = self.expand(jnp.asarray(z))
        is_signal = x.ndim == 3
        x = conv.from_nhwc(x[:, :, None] if is_signal else x)
        for block in self.blocks:
            x = block(x)
        for stage in self.stages:
            x = stage(self.activation(x))
        x = conv.to_nhwc(x)
        x = x[:, :, 0] if is_signal else x
        if z.shape[1:-1] == self.code[:-1]:
            x = x[:, *(slice(size) for size in self.shape[:-1])]
        return x
