"""The networks that all contestants train, described independently of any framework, and their initial weights."""

import itertools
import math
from typing import NamedTuple

import numpy as np

LEARNING_RATE = 1e-3


class Network(NamedTuple):
    """An autoencoder: relu layers, a linear code, the same layers mirrored, a Gaussian likelihood of variance 1.

    `hidden` are the sizes of dense layers, or with `convolutional` the channels of 3 × 3 convolutions of stride 2.
    """

    shape: tuple[int, ...]
    hidden: tuple[int, ...]
    latent: int
    samples: int  # how many one timing trains on, for some tenths of a second
    convolutional: bool = False
    variational: bool = False


NETWORKS = {
    "mlp": Network((784,), (128, 64), 32, 25_600),
    "conv": Network((28, 28, 1), (16, 32), 32, 10_240, convolutional=True),
    "vae": Network((784,), (512,), 32, 10_240, variational=True),
    "wide": Network((784,), (2048, 1024), 256, 5_120),
    "conv64": Network((64, 64, 3), (32, 64, 128), 128, 1_024, convolutional=True),
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
