"""The networks of a lossy codec, as parts of an `Autoencoder`: transforms, the hyperprior, and what is trained.

An image becomes a grid of numbers, which are multiplied by the gains of a quality, rounded, and written; what comes
back is divided again, and becomes an image. A second, coarser grid tells how the numbers of the first are distributed
(Ballé et al. 2018): each under a normal distribution of its own mean and scale (Minnen et al. 2018). One training
serves all qualities: gains and biases are learned at a few of them, and interpolated between (Cui et al. 2021).
"""

import dataclasses
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Key, Shaped

from flaxae import errors, objectives, specs
from flaxae.nn import conv, layers
from flaxae.nn.convnet import ResidualBlock

BLOCK = 2  # places of the first grid to one of the second, along both axes
KNOTS = 5  # qualities at which gains and biases are learned
SCALES = 64  # that numbers may have, evenly spaced in their logs
LEAST_SCALE, MOST_SCALE = 0.11, 64.0
STEP = math.log(MOST_SCALE / LEAST_SCALE) / (SCALES - 1)
SCALE_UNIT, MIDDLE = 8.0, 22.0  # steps between scales that 1 stands for, and that 0 is above the least: about 1
LEAST_MASS = 1e-9  # of a number, so that its bits are finite
LEAK = 0.01  # of the gradient below the least scale

Grid = Float[Array, " batch _ _ _"]  # [batch, height, width, channels]
Quality = Float[Array, " batch"]  # from 0, the smallest files, to 1, the best images


@specs.register
@dataclasses.dataclass(frozen=True)
class Transforms:
    """A linear map of blocks of pixels to numbers and back, to which convolutional networks add.

    [height, width, c] -> [height / 4, width / 4, channels[0]] -> [height / 8, …] -> … -> [height / stride, width /
    stride, latent], and back; the sides have to be multiples of `stride`. The networks end in zeros at first, so that
    with the principal components of blocks as the linear map, see `set_blocks`, training begins where codecs by
    transforms of blocks end.

    Args:
        channels: at a quarter of the image's size, an eighth, ….
        latent: numbers at each place of the grid.
        blocks: of two 3 × 3 convolutions, at each size, down and up.
        activation: within the blocks.
    """

    channels: tuple[int, ...] = (48, 96)
    latent: int = 256
    blocks: int = 2
    activation: str = "relu"

    def __post_init__(self) -> None:
        layers.activation(self.activation)
        specs.check_sizes(self, "channels", "latent", "blocks")

    @property
    def stride(self) -> int:
        """Pixels of the image to a place of the grid."""
        return 4 * 2 ** len(self.channels)

    def encoder(self, shape: tuple[int, ...], *, rngs: nnx.Rngs) -> "Analysis":
        """The part from a `shape`, (height, width, channels), to a grid of numbers.

        Raises:
            ConfigError: the shape is another one.
        """
        if len(shape) != 3:
            raise errors.ConfigError(f"Transforms takes images, (height, width, channels); the shape is {shape}.")
        return Analysis(self, shape, rngs=rngs)

    def decoder(self, code: tuple[int, ...], shape: tuple[int, ...], *, rngs: nnx.Rngs) -> "Synthesis":
        """The part from a grid of numbers to an image."""
        return Synthesis(self, shape, rngs=rngs)


def _blocks(spec: Transforms, channels: int, rngs: nnx.Rngs) -> nnx.List:
    return nnx.List([ResidualBlock(channels, spec.activation, rngs=rngs) for _ in range(spec.blocks)])


class Analysis(nnx.Module):
    """Images in [0, 1] -> a grid of numbers."""

    def __init__(self, spec: Transforms, shape: tuple[int, ...], *, rngs: nnx.Rngs):
        sizes = (*spec.channels, spec.latent)
        self.stride = spec.stride
        self.project = _linear(spec, shape[-1], rngs)
        self.first = conv.Conv(shape[-1], sizes[0], 8, 4, rngs=rngs)
        self.blocks = nnx.List([_blocks(spec, channels, rngs) for channels in spec.channels])
        self.down = nnx.List([conv.Conv(*pair, 4, 2, rngs=rngs) for pair in itertools.pairwise(sizes)])
        _to_zero(self.down[-1])

    def __call__(
        self, x: Shaped[Array | np.ndarray, " batch height width channels"], key: Key[Array, ""] | None = None
    ) -> Grid:
        x = layers.floating(x) - 0.5
        h = self.first(conv.from_nhwc(x))
        for blocks, down in zip(self.blocks, self.down, strict=True):
            for block in blocks:
                h = block(h)
            h = down(h)
        stride = self.stride
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // stride, stride, width // stride, stride, channels)
        return jnp.einsum("bhiwjc,ijcm->bhwm", x, self.project[...]) + conv.to_nhwc(h)


class Synthesis(nnx.Module):
    """A grid of numbers -> images, about in [0, 1]."""

    def __init__(self, spec: Transforms, shape: tuple[int, ...], *, rngs: nnx.Rngs):
        sizes = (spec.latent, *reversed(spec.channels))
        self.expand = _linear(spec, shape[-1], rngs)
        self.up = nnx.List([conv.ConvTranspose(*pair, 4, 2, rngs=rngs) for pair in itertools.pairwise(sizes)])
        self.blocks = nnx.List([_blocks(spec, channels, rngs) for channels in sizes[1:]])
        self.last = conv.ConvTranspose(sizes[-1], shape[-1], 8, 4, rngs=rngs)
        _to_zero(self.last)

    def __call__(self, z: Grid, key: Key[Array, ""] | None = None) -> Float[Array, " batch height width channels"]:
        z = jnp.asarray(z)
        h = conv.from_nhwc(z)
        for up, blocks in zip(self.up, self.blocks, strict=True):
            h = up(h)
            for block in blocks:
                h = block(h)
        made = jnp.einsum("bhwm,ijcm->bhiwjc", z, self.expand[...])
        made = made.reshape(len(z), made.shape[1] * made.shape[2], made.shape[3] * made.shape[4], made.shape[5])
        return made + conv.to_nhwc(self.last(h)) + 0.5


def _linear(spec: Transforms, channels: int, rngs: nnx.Rngs) -> nnx.Param:
    """[row, column, channel, number]: an orthonormal map where there are no more numbers than values of a block."""
    size = spec.stride**2 * channels
    drawn = nnx.initializers.orthogonal()(rngs.params(), (size, spec.latent))
    return nnx.Param(drawn.reshape(spec.stride, spec.stride, channels, spec.latent))


def _to_zero(layer: conv.Conv | conv.ConvTranspose) -> None:
    layer.kernel[...] = jnp.zeros_like(layer.kernel[...])


def set_blocks(model: Any, images: Float[np.ndarray, "images height width channels"]) -> None:
    """Begin with the principal components of blocks of images, and the scales of their numbers.

    Args:
        model: an `Autoencoder` of `Transforms` and `Hyperprior`.
        images: in [0, 1], with sides that are multiples of the stride.
    """
    project = model.encoder.project
    stride, _, channels, latent = project.shape
    count, height, width, _ = images.shape
    shape = (count, height // stride, stride, width // stride, stride, channels)
    blocks = images.reshape(shape).transpose(0, 1, 3, 2, 4, 5).reshape(-1, stride**2 * channels) - 0.5
    variances, vectors = np.linalg.eigh(blocks.T @ blocks / len(blocks))  # in rising order
    known = min(latent, len(variances))
    components = np.zeros((len(variances), latent), np.float32)
    components[:, :known] = vectors[:, ::-1][:, :known]
    for kernel in (project, model.decoder.expand):
        kernel[...] = jnp.asarray(components.reshape(project.shape))
    spread = np.full(latent, 1e-3)
    spread[:known] = np.sqrt(np.maximum(variances[::-1][:known], 1e-6))
    head = model.head
    logs = np.asarray(head.gain[...]) + np.log(spread / LEAST_SCALE)
    numbers = (np.clip(logs / STEP, 0, SCALES - 1) - MIDDLE) / SCALE_UNIT
    head.hyper.offset[...] = head.hyper.offset[...].at[..., latent:].set(jnp.asarray(numbers, jnp.float32))


class Coded(NamedTuple):
    """What is written of images, and in how many bits."""

    z: Grid  # as the decoder gets it
    bits: Float[Array, " batch"]  # estimated


@specs.register
@dataclasses.dataclass(frozen=True)
class Hyperprior:
    """Rounds a grid of numbers, and tells by a coarser one how they are distributed.

    Args:
        hyper: numbers at each place of the second grid.
        width: of the networks between the two.
    """

    hyper: int = 48
    width: int = 96

    def __post_init__(self) -> None:
        specs.check_sizes(self, "hyper", "width")

    def make(self, features: tuple[int, ...], *, rngs: nnx.Rngs) -> "HyperpriorHead":
        """The module for a grid of numbers."""
        return HyperpriorHead(self, features[-1], rngs=rngs)


class HyperpriorHead(nnx.Module):
    def __init__(self, spec: Hyperprior, latent: int, *, rngs: nnx.Rngs):
        rise = jnp.linspace(math.log(2.0), math.log(16.0), KNOTS)[:, None, None]
        self.gain = nnx.Param(rise + jnp.zeros((KNOTS, 1, latent)))  # logs
        self.inverse = nnx.Param(-rise + jnp.zeros((KNOTS, 1, latent)))
        self.down = nnx.List(
            [
                conv.Conv(latent, spec.width, 3, rngs=rngs),
                conv.Conv(spec.width, spec.width, 4, BLOCK, rngs=rngs),
                conv.Conv(spec.width, spec.hyper, 3, rngs=rngs),
            ]
        )
        self.prior = nnx.Param(jnp.zeros((KNOTS, 1, spec.hyper)))  # scales of the second grid, see `scale`
        self.hyper = Hyperdecoder(spec, latent, rngs=rngs)

    def __call__(self, features: Grid, key: Key[Array, ""] | None = None, quality: Quality | None = None) -> Coded:
        """With a key, bits of numbers with noise instead of rounding, which have a gradient (Ballé et al. 2018)."""
        quality = jnp.full(len(features), 0.5) if quality is None else quality
        y, z = self.analysed(features, quality)
        return self.coded(y, z, quality, key)

    def coded(self, y: Grid, z: Grid, quality: Quality, key: Key[Array, ""] | None = None) -> Coded:
        """See `__call__`, of both grids before they are rounded."""
        keys = (None, None) if key is None else jax.random.split(key)
        bits_z = _bits(_noisy(z, keys[0]), scale(_grid(at(self.prior[...], quality))))
        mean, scales = self.hyper(rounded(z), quality)
        bits_y = _bits(_noisy(y - mean, keys[1]), scale(scales))
        return Coded(self.restored(rounded(y - mean) + mean, quality), bits_y + bits_z)

    def analysed(self, features: Grid, quality: Quality) -> tuple[Grid, Grid]:
        """Both grids, not rounded."""
        y = features * _grid(jnp.exp(at(self.gain[...], quality)))
        h = conv.from_nhwc(y)
        for layer in self.down[:-1]:
            h = jax.nn.relu(layer(h))
        return y, conv.to_nhwc(self.down[-1](h))

    def restored(self, y: Grid, quality: Quality) -> Grid:
        """The first grid as the decoder gets it, from its rounded numbers."""
        return y * _grid(jnp.exp(at(self.inverse[...], quality)))


class Hyperdecoder(nnx.Module):
    """The second grid, rounded, to the means and scales of the first; see `grids.Probabilities`."""

    def __init__(self, spec: Hyperprior, latent: int, *, rngs: nnx.Rngs):
        self.first = conv.Conv(spec.hyper, spec.width, 3, bias=False, rngs=rngs)
        self.up = conv.ConvTranspose(spec.width, spec.width, BLOCK, BLOCK, rngs=rngs)
        self.last = conv.Conv(spec.width, 2 * latent, 3, bias=False, rngs=rngs)
        _to_zero(self.last)
        self.bias = nnx.Param(jnp.zeros((KNOTS, 1, spec.width)))  # of the first layer
        self.offset = nnx.Param(jnp.zeros((KNOTS, 1, 2 * latent)))  # of the last

    def __call__(self, z: Grid, quality: Quality) -> tuple[Grid, Grid]:
        h = jax.nn.relu(self.first(conv.from_nhwc(z)) + conv.from_nhwc(_grid(at(self.bias[...], quality))))
        h = jax.nn.relu(self.up(h))
        mean, scales = jnp.split(conv.to_nhwc(self.last(h)) + _grid(at(self.offset[...], quality)), 2, axis=-1)
        return mean, scales


def at(table: Float[Array, "knots 1 channels"], quality: Quality) -> Float[Array, " batch 1 channels"]:
    """The numbers of qualities from those at the knots, linearly interpolated."""
    place = quality[:, None] * (KNOTS - 1) - jnp.arange(KNOTS, dtype=quality.dtype)[None]
    return jnp.einsum("bk,kpc->bpc", jnp.maximum(1 - jnp.abs(place), 0), table, precision="highest")


def _grid(numbers: Float[Array, " batch 1 channels"]) -> Grid:
    return numbers[:, None]


def rounded(y: Grid) -> Grid:
    """Whole numbers, with the gradient of y (Theis et al. 2017)."""
    return y + lax.stop_gradient(jnp.rint(y) - y)


def scale(number: Array) -> Array:
    """The scale of a normal distribution from what a network gives: see `SCALE_UNIT`."""
    above = jax.nn.leaky_relu(number * SCALE_UNIT + MIDDLE, LEAK)
    return LEAST_SCALE * jnp.exp(STEP * jnp.minimum(above, SCALES - 1.0))


def _noisy(y: Grid, key: Key[Array, ""] | None) -> Grid:
    return jnp.rint(y) if key is None else y + jax.random.uniform(key, y.shape, y.dtype, -0.5, 0.5)


def _bits(residual: Grid, scales: Grid) -> Float[Array, " batch"]:
    """−log2 of the mass of normal distributions around whole numbers (Ballé et al. 2018, eq. 8)."""
    far = jnp.abs(residual)
    mass = jax.scipy.stats.norm.cdf((0.5 - far) / scales) - jax.scipy.stats.norm.cdf((-0.5 - far) / scales)
    return -jnp.sum(jnp.log2(jnp.maximum(mass, LEAST_MASS)), axis=(1, 2, 3))


@specs.register
@dataclasses.dataclass(frozen=True)
class RateDistortion:
    """Bits a pixel and λ times the squared error in levels of 8 bits, at a random quality for each image.

    What is minimised is (R + λ D) / λ^balance: without the last, the best images would count for most of it.

    Args:
        least, most: λ of the qualities 0 and 1. Those between have λ evenly spaced in its log.
        balance: see above.
    """

    least: float = 0.001
    most: float = 0.06
    balance: float = 0.4

    def __post_init__(self) -> None:
        specs.check_positive(self, "least", "most")
        specs.check_not_negative(self, "balance")

    def __call__(
        self, model: Any, batch: Any, key: Key[Array, ""]
    ) -> tuple[objectives.Loss, dict[str, Float[Array, " batch"]]]:
        x = jnp.asarray(objectives.Batch.of(batch).x)
        quality_key, key = jax.random.split(key)
        quality = (jnp.arange(len(x), dtype=x.dtype) + jax.random.uniform(quality_key, (), x.dtype)) / len(x)
        coded = model.head(model.encoder(x), key, quality)
        error = 255.0**2 * jnp.mean(jnp.square(model.decoder(coded.z) - x), axis=(1, 2, 3))
        bits = coded.bits / (x.shape[1] * x.shape[2])
        weight = self.least * (self.most / self.least) ** quality
        loss = (bits + weight * error) / (weight / self.least) ** self.balance
        return loss, {"bits": bits, "psnr_db": 20 * math.log10(255.0) - 10 * jnp.log10(error + 1e-3)}
