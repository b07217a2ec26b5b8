"""An encoder that learns good codes quickly: convolutions with batch norm, and a small decoder to train it with."""

import dataclasses
import itertools

import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key, Shaped

from flaxae import errors, specs
from flaxae.nn import conv, layers
from flaxae.nn.convnet import as_image
from flaxae.nn.mlp import MLP, MLPDecoder


@specs.register
@dataclasses.dataclass(frozen=True)
class Recognizer:
    """Strided convolutions, each with batch norm (Ioffe & Szegedy 2015), and a fully connected decoder.

    [height, width, c] -> [⌈height / 2⌉, ⌈width / 2⌉, channels[0]] -> … -> latent -> hidden -> [height, width, c].
    Most of the time goes into the encoder, because the purpose is the code, not the reconstruction.

    Args:
        channels: of each stage; every one halves height and width.
        kernels: side of each stage's kernel.
        hidden: fully connected layers of the decoder.
    """

    channels: tuple[int, ...] = (24, 48, 64)
    kernels: tuple[int, ...] = (5, 3, 3)
    hidden: tuple[int, ...] = (512,)

    def __post_init__(self) -> None:
        specs.check_sizes(self, "channels", "kernels", "hidden")
        if len(self.channels) != len(self.kernels):
            raise errors.ConfigError(
                f"Recognizer has {len(self.channels)} channels and {len(self.kernels)} kernels; each stage has both."
            )

    def encoder(self, shape: tuple[int, ...], *, rngs: nnx.Rngs) -> "RecognizerEncoder":
        """The part from a `shape`, (height, width, channels) or (time, channels), to features."""
        return RecognizerEncoder(self, shape, rngs=rngs)

    def decoder(self, code: tuple[int, ...], shape: tuple[int, ...], *, rngs: nnx.Rngs) -> MLPDecoder:
        """The part from a code of any shape to a likelihood's parameters of that `shape`."""
        return MLPDecoder(MLP(tuple(reversed(self.hidden))), code, shape, rngs=rngs)


class Stage(nnx.Module):
    """Convolution, batch norm, relu; in the platform's layout."""

    def __init__(self, inputs: int, outputs: int, kernel: conv.Pair, *, rngs: nnx.Rngs):
        self.conv = conv.Conv(inputs, outputs, kernel, stride=2, rngs=rngs)
        self.norm = nnx.BatchNorm(outputs, use_running_average=True, axis=conv.channel_axis(), rngs=rngs)

    def __call__(self, x: conv.Image) -> conv.Image:
        if self.norm.axis != conv.channel_axis():  # it is traced for another layout than that it was made in
            self.norm.axis = conv.channel_axis()
        return nnx.relu(self.norm(self.conv(x)))


class RecognizerEncoder(nnx.Module):
    """[batch, height, width, channels] -> [batch, features]. In training, batch norm uses the batch's statistics."""

    def __init__(self, spec: Recognizer, shape: tuple[int, ...], *, rngs: nnx.Rngs):
        self.shape = as_image(shape)
        pairs = itertools.pairwise((self.shape[2], *spec.channels))
        windows = [(kernel, 1 if self.shape[1] == 1 else kernel) for kernel in spec.kernels]
        self.stages = nnx.List([Stage(*pair, window, rngs=rngs) for pair, window in zip(pairs, windows, strict=True)])

    def __call__(
        self, x: Shaped[Array | np.ndarray, " batch *shape"], key: Key[Array, ""] | None = None
    ) -> Float[Array, " batch features"]:
        x = conv.from_nhwc(layers.floating(x).reshape(x.shape[0], *self.shape))
        for stage in self.stages:
            x = stage(x)
        x = conv.to_nhwc(x)
        return x.reshape(x.shape[0], -1)
