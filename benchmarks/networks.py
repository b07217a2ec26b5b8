"""The networks that all contestants train, described independently of any framework, and their initial weights."""

import itertools
import math
from typing import NamedTuple

import numpy as np

LEARNING_RATE = 1e-3
NOISE = 0.1


class Network(NamedTuple):
    """An autoencoder: relu layers, a linear code, the same layers mirrored, a Gaussian likelihood of variance 1.

    `hidden` are the sizes of dense layers, or with `convolutional` the channels of 3 × 3 convolutions of stride 2. With
    `blocks` it is a denoising U-Net instead, with so many residual blocks of `hidden` channels at each size, as
    `flaxae.nn.unet` has it: it has no code, and removes noise of standard deviation `NOISE`. With `patch` it is a Mixer
    of such patches and of `hidden` channels, as `flaxae.nn.mixer` has it with one block each way.
    """

    shape: tuple[int, ...]
    hidden: tuple[int, ...]
    latent: int
    samples: int  # how many one timing trains on, for some tenths of a second
    convolutional: bool = False
    variational: bool = False
    blocks: int = 0
    patch: int = 0


NETWORKS = {
    "mlp": Network((784,), (128, 64), 32, 25_600),
    "conv": Network((28, 28, 1), (16, 32), 32, 10_240, convolutional=True),
    "vae": Network((784,), (512,), 32, 10_240, variational=True),
    "wide": Network((784,), (2048, 1024), 256, 5_120),
    "conv64": Network((64, 64, 3), (32, 64, 128), 128, 1_024, convolutional=True),
    "unet": Network((128, 128, 1), (48, 96, 128), 0, 16, blocks=2),
    "mixer": Network((28, 28, 1), (64,), 256, 2_048, patch=4),
    "small": Network((784,), (32,), 8, 25_600),
}


class Weights(NamedTuple):
    """Kernels of encoder, code and decoder, each in order; convolutions are [height, width, in, out]."""

    encoder: list[np.ndarray]
    code: np.ndarray
    expand: list[np.ndarray]  # from the code to the first image in a convolutional decoder
    decoder: list[np.ndarray]


def weights(network: Network) -> Weights:
    """The same random weights for every contestant; biases are zero."""
    rng = np.random.default_rng(0)

    def kernel(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / math.sqrt(math.prod(shape[:-1]))).astype(np.float32)

    code = network.latent * (2 if network.variational else 1)
    if not network.convolutional:
        sizes = (*network.shape, *network.hidden)
        return Weights(
            [kernel(*pair) for pair in itertools.pairwise(sizes)],
            kernel(sizes[-1], code),
            [],
            [kernel(*pair) for pair in itertools.pairwise((network.latent, *reversed(sizes)))],
        )
    channels = (network.shape[2], *network.hidden)
    flat = math.prod(smallest(network))
    return Weights(
        [kernel(3, 3, *pair) for pair in itertools.pairwise(channels)],
        kernel(flat, code),
        [kernel(network.latent, flat)],
        [kernel(3, 3, *pair) for pair in itertools.pairwise(reversed(channels))],
    )


class Layer(NamedTuple):
    """A convolution of a U-Net, without bias: its kernel's side, its channels, and its smaller image's reduction."""

    side: int
    channels: tuple[int, int]
    reduction: int


def unet_layers(network: Network) -> list[Layer]:
    """In the order in which they are applied."""
    widths, image, inner = network.hidden, network.shape[2], 2 * network.blocks
    found = [Layer(6, (image, widths[0]), 2)]
    for level, width in enumerate(widths, 1):
        if level > 1:
            found.append(Layer(2, (widths[level - 2], width), 2**level))
        found += [Layer(3, (width, width), 2**level)] * inner
    for level in range(len(widths), 1, -1):
        width = widths[level - 2]
        found.append(Layer(2, (widths[level - 1], width), 2**level))
        found += [Layer(3, (width, width), 2 ** (level - 1))] * inner
    return [*found, Layer(6, (widths[0], image), 2)]


def unet_kernels(network: Network) -> list[np.ndarray]:
    """Random kernels, small enough that what is removed is about as large as the noise, [height, width, in, out]."""
    rng = np.random.default_rng(0)
    shapes = [(layer.side, layer.side, *layer.channels) for layer in unet_layers(network)]
    return [(0.5 * rng.standard_normal(s) / math.sqrt(math.prod(s[:-1]))).astype(np.float32) for s in shapes]


def patches(network: Network) -> tuple[int, int]:
    """How many patches a Mixer has, and how many numbers each."""
    height, width, colours = network.shape
    return (height // network.patch) * (width // network.patch), network.patch**2 * colours


def mixer_kernels(network: Network) -> list[np.ndarray]:
    """Random kernels of a Mixer, [in, out], in the order in which they are applied, the code's two in the middle."""
    (tokens, pixels), (channels,) = patches(network), network.hidden
    block = [(tokens, 2 * tokens), (2 * tokens, tokens), (channels, 2 * channels), (2 * channels, channels)]
    flat = channels * tokens
    code = [(flat, network.latent), (network.latent, flat)]
    rng = np.random.default_rng(0)
    shapes = [(pixels, channels), *block, *code, *block, (channels, pixels)]
    return [(rng.standard_normal(shape) / math.sqrt(shape[0])).astype(np.float32) for shape in shapes]


def smallest(network: Network) -> tuple[int, int, int]:
    """(height, width, channels) of a convolutional network's coarsest images."""
    height, width, _ = network.shape
    factor = 2 ** len(network.hidden)
    return height // factor, width // factor, network.hidden[-1]


def images(network: Network, n: int) -> np.ndarray:
    """n random examples in [0, 1]."""
    return np.random.default_rng(1).random((n, *network.shape), np.float32)


def flop(network: Network) -> float:
    """FLOP of the matrix products in a sample's step: forward, and backward to weights and inputs (but the first's)."""
    if network.blocks:
        layers, pixels = unet_layers(network), math.prod(network.shape[:2])
        products = [layer.side**2 * math.prod(layer.channels) * pixels / layer.reduction**2 for layer in layers]
        return 2 * (3 * sum(products) - products[0])
    if network.patch:
        kernels, (tokens, _), (channels,) = mixer_kernels(network), patches(network), network.hidden
        # how often each is applied to an example: once for each patch, or each channel, or the code
        times = [tokens, channels, channels, tokens, tokens, 1, 1, channels, channels, tokens, tokens, tokens]
        products = [kernel.size * n for kernel, n in zip(kernels, times, strict=True)]
        return 2 * (3 * sum(products) - products[0])
    w = weights(network)
    products = [kernel.size for kernel in (w.code, *w.expand)]
    if network.convolutional:
        # one product for each place of the smaller image; the transposed convolution is the adjoint
        sides = [network.shape[0] * network.shape[1] / 4 ** (i + 1) for i in range(len(w.encoder))]
        products = [kernel.size * side for kernel, side in zip(w.encoder, sides, strict=True)] + products
        products += [kernel.size * side for kernel, side in zip(w.decoder, reversed(sides), strict=True)]
    else:
        products = [kernel.size for kernel in w.encoder] + products + [kernel.size for kernel in w.decoder]
    return 2 * (3 * sum(products) - products[0])
