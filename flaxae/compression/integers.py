"""The trained network in whole numbers, so that a file is decoded to the same bits on every machine.

Coders break when two machines round differently. Here weights, activations and parameters are whole numbers. Their
products are summed in float64, and as every sum is below 2^53, each is exact, in whatever order a BLAS adds and on any
number of threads. Functions are integer tables, which `decimal` computes with correct rounding.
"""

import decimal
import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from flaxae import errors
from flaxae.autoencoder import Autoencoder
from flaxae.compression.contexts import ONE
from flaxae.compression.network import FLOOR, LEAST, RANGE

WEIGHT = 2**13  # the whole number that stands for a weight of 1
EXACT = 2.0**53  # whole numbers below this are exact in float64
MOST = 2.0**24  # that an activation is clipped to
SUBPIXEL = 8  # bits after the point of means, in levels
FINE, WIDE = 10, 16  # the logistic function is tabled in steps of 2^-FINE from −WIDE to WIDE
BETWEEN = 10  # further bits of its argument, by which values above 8 bits are interpolated between the table's
UNIT = 2**20  # the whole number that stands for a logistic function of 1
SCALES, NATS = 32, 16  # log scales are rounded to 1 / SCALES; log weights are cut at −NATS
INVERSE = 20  # bits after the point of inverse scales
PRECISION = 22  # bits of a probability


class Tables(NamedTuple):
    """Functions of whole numbers."""

    logistic: Int[np.ndarray, " _"]
    weights: Int[np.ndarray, " _"]
    inverses: Int[np.ndarray, " _"]


@functools.cache
def tables() -> Tables:
    """The logistic function, the exponential function, and inverse scales."""
    with decimal.localcontext() as context:
        context.prec = 30
        one = decimal.Decimal(1)

        def exponential(number: int, steps: int, unit: int) -> int:
            return int((decimal.Decimal(number) / steps).exp() * unit)

        half = [int(UNIT / (one + (decimal.Decimal(-k) / 2**FINE).exp())) for k in range(WIDE * 2**FINE + 1)]
        logistic = [UNIT - value for value in reversed(half[1:])] + half
        weights = [exponential(-k, SCALES, 2**15) for k in range(NATS * SCALES)]
        least, most = round(LEAST * SCALES), 12 * SCALES
        inverses = [exponential(-k, SCALES, 2**INVERSE) for k in range(least, most)]
    return Tables(*(np.array(x, np.int64) for x in (logistic, weights, inverses)))


class Mixture(NamedTuple):
    """Logistic mixtures in whole numbers, each [values, components]: weights, means and inverse scales."""

    weights: Int[np.ndarray, "values components"]
    means: Int[np.ndarray, "values components"]  # in 2^-SUBPIXEL levels
    inverses: Int[np.ndarray, "values components"]
    floor: Int[np.ndarray, " values"]  # of each level
    between: int  # bits of the logistic function's argument between the table's

    def below(self, levels: Int[np.ndarray, " values"]) -> Int[np.ndarray, " values"]:
        """The mass below levels above 0: Σ weights σ((level − ½ − mean) / scale), and the floor of each level."""
        edge = (levels << SUBPIXEL) - (1 << (SUBPIXEL - 1))
        between, table = self.between, tables().logistic
        z = ((edge[:, None] - self.means) * self.inverses) >> (SUBPIXEL + INVERSE - FINE - between)
        z = np.clip(z + (WIDE * 2**FINE << between), 0, (len(table) - 2) << between)
        place = z >> between
        share = table[place]
        if between:
            share = share + ((table[place + 1] - share) * (z - (place << between)) >> between)
        return (self.weights * share).sum(axis=1) + levels * self.floor

    def take(self, index: Int[np.ndarray, " _"]) -> "Mixture":
        """The mixtures at that index."""
        return self._replace(
            weights=self.weights[index],
            means=self.means[index],
            inverses=self.inverses[index],
            floor=self.floor[index],
        )

    def total(self, levels: int) -> Int[np.ndarray, " values"]:
        """The mass of all levels."""
        return self.weights.sum(axis=1) * UNIT + levels * self.floor


class IntegerNetwork:
    """The trained network in whole numbers: features to mixtures.

    Args:
        layers: of weights [inputs, outputs], in units of 1 / `WEIGHT`, and biases, in units of 1 / (`WEIGHT` × `ONE`).
            The last takes the features and the last activations, and gives the logits of the weights, the means and the
            log scales of each component.
        bits: of a value.

    Raises:
        DataError: the numbers are such that sums may not be exact, or do not go together.
    """

    def __init__(self, layers: list[tuple[Float[np.ndarray, "_ _"], Float[np.ndarray, " _"]]], bits: int):
        for weights, bias in layers:
            most = float(np.abs(weights).sum(axis=0).max()) * MOST + float(np.abs(bias).max())
            if not most < EXACT or (weights != np.rint(weights)).any() or (bias != np.rint(bias)).any():
                raise errors.DataError("The network's weights are too large to be added up exactly.")
        self.layers, self.bits = layers, bits

    def __call__(self, features: Float[np.ndarray, "values features"]) -> Mixture:
        """The mixtures of values, from the features of their contexts."""
        h = features
        for weights, bias in self.layers[:-1]:
            h = np.clip(np.floor((h @ weights + bias) * (1 / WEIGHT)), 0, MOST)
        weights, bias = self.layers[-1]
        out = np.floor((np.concatenate([features, h], axis=1) @ weights + bias) * (1 / WEIGHT)).astype(np.int64)
        logits, means, scales = np.split(out, 3, axis=1)
        return self._mixture(logits, means, scales, features[:, :1].astype(np.int64))

    def _mixture(self, logits: np.ndarray, means: np.ndarray, scales: np.ndarray, guess: np.ndarray) -> Mixture:
        known = tables()
        step = ONE // SCALES
        behind = (logits.max(axis=1, keepdims=True) - logits) // step
        weights = known.weights[np.minimum(behind, len(known.weights) - 1)]
        place = np.clip((scales + step // 2) // step - round(LEAST * SCALES), 0, len(known.inverses) - 1)
        means = (means * round(RANGE * 2**SUBPIXEL) + (guess << SUBPIXEL)) >> (16 - self.bits)
        limit = 2 << (self.bits + SUBPIXEL)
        floor = (weights.sum(axis=1) * UNIT) >> (self.bits - round(np.log2(FLOOR)))
        between = BETWEEN if self.bits > 8 else 0
        return Mixture(weights, np.clip(means, -limit, limit), known.inverses[place], floor, between)


def rounded(model: Autoencoder, bits: int) -> IntegerNetwork:
    """The network of a trained model, see `network.config`."""
    linear = [*model.encoder.layers, model.decoder.out]
    pairs = [(np.asarray(layer.kernel[...], np.float64), np.asarray(layer.bias[...], np.float64)) for layer in linear]
    return IntegerNetwork([(np.rint(kernel * WEIGHT), np.rint(bias * WEIGHT * ONE)) for kernel, bias in pairs], bits)
