"""Anomaly scores from one run of examples through an autoencoder: `SCORES`, by name. Higher is stranger."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Shaped
from sklearn.covariance import LedoitWolf

from flaxae import density, errors
from flaxae.anomaly.views import Passed
from flaxae.autoencoder import Autoencoder
from flaxae.nn import conv
from flaxae.nn.heads import Probabilistic
from flaxae.nn.neighbours import nearest
from flaxae.training.feed import power_of_two

ORDERED = 1e-3  # of the parts themselves, so that what is usual by all parts is ordered too
SAMPLES = 256  # draws of z for a likelihood
WIDE = 0.05  # of the references are a wide neighbourhood: clumps of anomalies don't fill it
LEAST_ROWS = 1024  # that references are filled up to
MAX_SAMPLE = 1024  # references for wide neighbourhoods, which are as far off in a smaller sample
INNER, CONCENTRATIONS, MOST_TO_CONCENTRATE = 0.7, 4, 256  # of references, rounds, and values at which one is enough


class Score(NamedTuple):
    """A score as two functions: `fit` to the references, then `of` examples, [batch, parts]; the parts are summed.

    `fit` gets the references in NumPy, and how many values an example has without those that fill it up (see `Views`).
    The parts are logarithms, so that no part dominates the sum. With `power`, those above what is usual are raised to
    it: what is far out by one part alone stands out. `model` is for scores that run the model again.
    """

    fit: Callable[[Passed, int], Any]
    of: Callable[[Any, Autoencoder, Passed, int, Int[Array, " batch"]], Float[Array, "batch parts"]]
    weights: tuple[float, ...] | None = None  # of the parts; None: all alike
    upper: bool = False  # parts are in the spread of their upper half: the 90th percentile over the median
    power: int = 1

    def summands(self, parts: Float[Any, "batch parts"]) -> Float[Any, "batch parts"]:
        """What is summed: the parts in deviations from what is usual, by their power and weights."""
        if self.power > 1:
            parts = parts.clip(0.0) ** self.power + ORDERED * parts
        return parts if self.weights is None else parts * np.asarray(self.weights, parts.dtype)[None]

    def roots(self, summands: Float[np.ndarray, "batch parts"]) -> Float[np.ndarray, "batch parts"]:
        """The parts that the summands are the powers of, as far as they are above what is usual."""
        parts = summands if self.weights is None else summands / np.asarray(self.weights, summands.dtype)
        return np.sign(parts) * np.abs(parts) ** (1 / self.power)


def _log_mean_square(x: Float[Array, "*batch values"]) -> Float[Array, "*batch"]:
    return jnp.log(jnp.mean(jnp.square(x), axis=-1) + 1e-12)


def _mean_distance(
    references: Float[Array, "references values"],
    x: Float[Array, "batch values"],
    k: int,
    own: Int[Array, " batch"],
    count: int | Int[Array, ""] | None = None,
    within: int | Int[Array, ""] | None = None,
) -> Float[Array, " batch"]:
    """The log of the mean distance to the k nearest of `count` references, or to the first `within` of the k."""
    distances = jnp.sqrt(nearest(references, x, k, own, count)[0])
    if within is None:
        return jnp.log(jnp.mean(distances, axis=-1) + 1e-6)
    total = jnp.sum(jnp.where(jnp.arange(k)[None] < within, distances, 0.0), axis=-1)
    return jnp.log(total / jnp.asarray(within, x.dtype) + 1e-6)


def _pairs(passed: Passed) -> Float[Array, "batch views pairs"]:
    """Reconstruction and residual side by side, which are compared with those of the references."""
    return jnp.concatenate([passed.reconstruction, passed.residual], axis=-1)


def _known_pairs(passed: Passed, values: int) -> Float[np.ndarray, "references views pairs"]:
    return np.concatenate([passed.reconstruction, passed.residual], axis=-1)


def _neighbours(references: Array, model: Autoencoder, passed: Passed, k: int, own: Array) -> Array:
    return _mean_distances(references, _pairs(passed), k, own)


def _mean_distances(
    references: Float[Array, "references views values"],
    x: Float[Array, "batch views values"],
    k: int,
    own: Int[Array, " batch"],
    count: int | Int[Array, ""] | None = None,
) -> Float[Array, "batch views"]:
    def of(references: Array, x: Array) -> Array:
        return _mean_distance(references, x, k, own, count)

    return jax.vmap(of, in_axes=1, out_axes=1)(references, x)


def _reconstruction(_: None, model: Autoencoder, passed: Passed, k: int, own: Array) -> Array:
    return _log_mean_square(passed.residual)


class _Spaces(NamedTuple):
    """The three spaces in which `combined` looks for neighbours.

    Residuals are divided by √(variance + mean variance), so that values with a tiny variance don't dominate.
    """

    pairs: Float[Any, "references views pairs"]
    deviation: Float[Any, "views values"]
    residual: Float[Any, "references views values"]
    features: Float[Any, "references features"]

    @classmethod
    def fit(cls, passed: Passed, values: int) -> "_Spaces":
        variance = np.var(passed.residual, axis=0)
        deviation = np.sqrt(variance + variance.mean(axis=-1, keepdims=True) + np.float32(1e-12))
        return cls(_known_pairs(passed, values), deviation, passed.residual / deviation[None], passed.features)


def _combined(spaces: _Spaces, model: Autoencoder, passed: Passed, k: int, own: Array) -> Array:
    distances = (
        _mean_distances(spaces.pairs, _pairs(passed), k, own),
        _mean_distances(spaces.residual, passed.residual / spaces.deviation[None], k, own),
        _mean_distance(spaces.features, passed.features, k, own)[:, None],
    )
    return jnp.concatenate(distances, axis=-1)


def _standardised(deviation: Array, model: Autoencoder, passed: Passed, k: int, own: Array) -> Array:
    return _log_mean_square(passed.residual / deviation[None])


def _likelihood(_: None, model: Autoencoder, passed: Passed, k: int, own: Array) -> Array:
    """−log p(x) by importance sampling, with the same key for every example; −log p(x | z) if there is no q(z | x)."""
    if not isinstance(model.head, Probabilistic):
        return -model.likelihood.log_prob(model(passed.x).params, passed.x)[:, None]
    graphdef, state = nnx.split(model)
    estimate = functools.partial(density.log_mean_weight, graphdef, SAMPLES, 16, state)
    return -jax.vmap(lambda x: estimate(x[None], jax.random.key(0)))(passed.x)


class _Normal(NamedTuple):
    """A normal distribution by its mean and a square root of its inverse covariance."""

    mean: Float[Any, " values"]
    whitening: Float[Any, "values kept"]

    @classmethod
    def fit(cls, x: Float[np.ndarray, "references values"]) -> "_Normal":
        """Fit to the rows of x, leaving out directions without variance, such as those that too few rows don't span."""
        mean = x.mean(axis=0)
        _, deviation, directions = np.linalg.svd(np.asarray(x - mean[None], np.float64), full_matrices=False)
        deviation = deviation / math.sqrt(max(1, len(x) - 1))
        kept = deviation > 1e-4 * max(deviation[0], 1e-12)
        if not kept.any():  # all references are equal: plain distances
            return cls(mean, np.eye(x.shape[1], dtype=np.float32))
        return cls(mean, (directions[kept] / deviation[kept, None]).T.astype(np.float32))

    def log_distance(self, x: Float[Array, "batch values"]) -> Float[Array, "batch 1"]:
        """The log of the mean squared distance, in standard deviations."""
        return _log_mean_square((x - self.mean[None]) @ self.whitening)[:, None]


class _Scaled(NamedTuple):
    """Codes in units of each number's standard deviation."""

    deviation: Float[Any, " latent"]
    codes: Float[Any, "references latent"]

    @classmethod
    def fit(cls, codes: Float[np.ndarray, "references latent"]) -> "_Scaled":
        deviation = np.std(codes, axis=0) + np.float32(1e-6)
        return cls(deviation, codes / deviation[None])


class _Ensemble(NamedTuple):
    """What `ensemble` compares with: the values as they are, in four ways, and what the autoencoder makes of them.

    The arrays of references are filled up to one of a few lengths, so that few programs are compiled for many tables.
    """

    known: Int[Any, ""]  # how many references there are
    x: Float[Any, "references values"]
    sample: Float[Any, "sample values"]  # of the references, for neighbours that are a fraction of them
    sample_own: Int[Any, " sample"]  # which references they are, −2 for none
    wide: Int[Any, ""]  # how many of the sample are the fraction
    density: "_Robust"
    ordered: Float[Any, "values references"]
    pairs: Float[Any, "references views pairs"]
    features: Float[Any, "references features"]

    @classmethod
    def fit(cls, passed: Passed, values: int) -> "_Ensemble":
        x = np.asarray(passed.x).reshape(len(passed.x), -1)
        chosen = np.linspace(0, len(x) - 1, min(len(x), MAX_SAMPLE)).astype(np.int32)
        density = _Robust.fit(x[:, :values].astype(np.float64))
        more = x.shape[1] - values
        return cls(
            np.int32(len(x)),
            _filled(x),
            _filled(x[chosen]),
            _filled(chosen, -2.0),
            np.int32(_wide(len(chosen))),
            _Robust(
                np.pad(density.mean, (0, more)).astype(np.float32), np.pad(density.root, (0, more)).astype(np.float32)
            ),
            np.ascontiguousarray(_filled(np.sort(x, axis=0), np.inf).T),
            _filled(_known_pairs(passed, values)),
            _filled(np.asarray(passed.features)),
        )


def _filled(x: Shaped[np.ndarray, " references *shape"], fill: float = 0.0) -> Shaped[np.ndarray, " filled *shape"]:
    return np.pad(x, [(0, rows_for(len(x)) - len(x)), *[(0, 0)] * (x.ndim - 1)], constant_values=fill)


def rows_for(references: int) -> int:
    """The number of rows, one of a few, that so many references are filled up to."""
    return max(LEAST_ROWS, power_of_two(references))


def _wide(count: int) -> int:
    return max(2, min(count - 1, max(5, round(WIDE * count))))


class _Robust(NamedTuple):
    """A normal distribution fitted to the inner part of the references, by its mean and a root of its precision."""

    mean: Float[Any, " values"]
    root: Float[Any, "values values"]

    @classmethod
    def fit(cls, x: Float[np.ndarray, "references values"]) -> "_Robust":
        """By concentration (Rousseeuw & Van Driessen 1999): again and again to those INNER that fit best, shrunk."""
        kept, count = x, min(len(x), max(round(INNER * len(x)), x.shape[1] + 2))
        found = cls(x.mean(axis=0), np.eye(x.shape[1]))
        for _ in range(CONCENTRATIONS if x.shape[1] <= MOST_TO_CONCENTRATE else 1):
            fitted = LedoitWolf(store_precision=False).fit(kept)
            covariance = fitted.covariance_ + 1e-9 * np.eye(x.shape[1])
            found = cls(fitted.location_, np.linalg.cholesky(np.linalg.inv(covariance)))
            kept = x[np.argsort(found.log_distances(x), kind="stable")[:count]]
        return found

    def log_distances(self, x: Float[np.ndarray, "rows values"]) -> Float[np.ndarray, " rows"]:
        return np.log(np.square((x - self.mean) @ self.root).mean(axis=1) + 1e-12)

    def of(self, x: Float[Array, "batch values"]) -> Float[Array, " batch"]:
        return _log_mean_square((x - self.mean[None]) @ self.root)


def _tails(
    ordered: Float[Array, "values references"], count: Int[Array, ""], x: Float[Array, "batch values"]
) -> Float[Array, " batch"]:
    """How far out the values are in their columns: the root of the mean of their squared −log p, two-sided."""

    method = "compare_all" if conv.is_portable() else "scan"

    def rank(side: str) -> Float[Array, "values batch"]:
        return jax.vmap(lambda row, values: jnp.searchsorted(row, values, side=side, method=method))(
            ordered, x.T
        ).astype(x.dtype)

    known = jnp.asarray(count, x.dtype)
    below, above = (rank("right") + 0.5) / (known + 1), (known - rank("left") + 0.5) / (known + 1)
    surprise = -jnp.log(jnp.minimum(1.0, 2 * jnp.minimum(below, above)))
    return jnp.sqrt(jnp.mean(jnp.square(surprise), axis=0))


def _ensemble(fitted: _Ensemble, model: Autoencoder, passed: Passed, k: int, own: Array) -> Array:
    x = passed.x.reshape(passed.x.shape[0], -1)
    in_sample = jnp.argmax(fitted.sample_own[None] == own[:, None], axis=1)
    in_sample = jnp.where(jnp.any(fitted.sample_own[None] == own[:, None], axis=1), in_sample, -1)
    sampled = jnp.minimum(fitted.known, MAX_SAMPLE)
    looks = (
        _mean_distance(fitted.x, x, k, own, fitted.known),
        _mean_distance(fitted.sample, x, _wide(len(fitted.sample)), in_sample, sampled, fitted.wide),
        fitted.density.of(x),
        _tails(fitted.ordered, fitted.known, x),
        *_mean_distances(fitted.pairs, _pairs(passed), k, own, fitted.known).T,
        _mean_distance(fitted.features, passed.features, k, own, fitted.known),
    )
    return jnp.stack(looks, axis=1)


SCORES: dict[str, Score] = {
    "ensemble": Score(_Ensemble.fit, _ensemble, (1.0, 1.0, 1.0, 0.5, 1.0, 1.0), upper=True, power=3),
    "combined": Score(_Spaces.fit, _combined),
    "reconstruction": Score(lambda passed, _: None, _reconstruction),
    "neighbours": Score(_known_pairs, _neighbours),
    "standardised": Score(lambda passed, _: np.std(passed.residual, axis=0) + np.float32(1e-3), _standardised),
    "likelihood": Score(lambda passed, _: None, _likelihood),
    "mahalanobis": Score(
        lambda passed, _: _Normal.fit(passed.z), lambda normal, model, passed, k, own: normal.log_distance(passed.z)
    ),
    "latent_neighbours": Score(
        lambda passed, _: _Scaled.fit(passed.z),
        lambda scaled, model, passed, k, own: _mean_distance(scaled.codes, passed.z / scaled.deviation[None], k, own)[
            :, None
        ],
    ),
    "sap": Score(
        lambda passed, values: None, lambda _, model, passed, k, own: _log_mean_square(passed.pathway)[:, None]
    ),
    "nap": Score(
        lambda passed, _: _Normal.fit(passed.pathway),
        lambda normal, model, passed, k, own: normal.log_distance(passed.pathway),
    ),
}
"""The scores by name:

- `ensemble`, the default for tables: mean distances to the nearest references and to the nearest twentieth of them, the
  distance in a normal distribution fitted to the inner part, how far out each value is in its column, and two of the
  spaces of `combined`: that of `neighbours`, and the encoder's features;
- `combined`, the default for images and signals: the sum of log mean distances to the nearest references in three
  spaces: that of `neighbours`, the residual alone, and the encoder's features;
- `reconstruction`: mean squared residual; `standardised`: the same, in units of each value's standard deviation over
  the references;
- `neighbours`: mean distance to the nearest references, in the space of reconstruction and residual together;
- `likelihood`: −log p(x) by importance sampling for a variational model, else −log p(x | z); nats;
- `mahalanobis`, `latent_neighbours`: the Mahalanobis distance of the code to the references', and its mean distance to
  the nearest of them;
- `sap`, `nap`: novelty along the reconstruction pathway, plain and whitened (Kim et al. 2020, RaPP).
"""


def check_score(name: str) -> None:
    """Raise ConfigError, which suggests the nearest name, unless `name` is in `SCORES`."""
    if name not in SCORES:
        raise errors.ConfigError(errors.unknown("score", name, SCORES))


def check_neighbours(neighbours: int | float) -> None:
    """Raise ConfigError unless `neighbours` is a number of references, or a fraction of them."""
    if isinstance(neighbours, float) and not 0 < neighbours < 1:
        raise errors.ConfigError(f"neighbours is {neighbours}; as a fraction it has to be in (0, 1).")
    if neighbours <= 0:
        raise errors.ConfigError(f"neighbours is {neighbours}; it has to be at least 1.")
