"""Likelihoods p(x | z): everything that depends on the range of the values.

The decoder's last layer has no activation. It returns the likelihood's `params`: one number per value of x (the logit
for `Bernoulli`, the mean for `Gaussian`), or as many as `params_shape` says. The reconstruction is the likelihood's
`mean`. So standardised data never go through a sigmoid, and no logarithm of a sigmoid is ever taken.

Your own likelihood is a frozen dataclass with the methods of `Likelihood`; `flaxae.register` makes it known to saved
models. Its float fields are hyper-parameters (see `flaxae.specs`).
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, Shaped

from flaxae import errors, specs

Params = Float[Array, " batch *params"]
Values = Shaped[Array | np.ndarray, " batch *shape"]
Where = Bool[Array | np.ndarray, " batch *shape"] | None

MIN_SCALE = 1e-3  # the least standard deviation that can be learned: below it a value counts as known
UNIT: tuple[float, float] = (0.0, 1.0)
REAL: tuple[float, float] = (-math.inf, math.inf)
COUNTS: tuple[float, float] = (0.0, math.inf)


@runtime_checkable
class Likelihood(Protocol):
    """What a likelihood has to have. `support` is the range of the values that it is for.

    A likelihood of whole numbers also has `discrete = True`.
    """

    @property
    def support(self) -> tuple[float, float]: ...

    def params_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the decoder's output for an example of that `shape`. Only the last axis should differ."""
        ...

    def log_prob(self, params: Params, x: Values, where: Where = None) -> Float[Array, " batch"]:
        """log p(x | params) of each example, summed over its values, or over those where `where` is True; nats."""
        ...

    def mean(self, params: Params, x: Values | None = None) -> Float[Array, " batch *shape"]:
        """The reconstruction, E[x | params]. `x` is what was encoded, if known: some means need it (a row's total)."""
        ...

    def sample(self, params: Params, key: Key[Array, ""]) -> Float[Array, " batch *shape"]:
        """A draw from p(x | params)."""
        ...


def _by_rows(log_prob: Callable[..., Array]) -> Callable[..., Array]:
    """`log_prob` of [batch, values]: XLA's loops on CPU are several times slower over a last axis of one channel.

    So images are taken as rows of values.
    """

    @functools.wraps(log_prob)
    def of_any_shape(self: Any, params: Params, x: Values, where: Where = None) -> Float[Array, " batch"]:
        params, x = (jnp.reshape(a, (a.shape[0], -1)) for a in (params, x))
        return log_prob(self, params, x, None if where is None else jnp.reshape(where, x.shape))

    return of_any_shape


class _OneEach:
    """Likelihoods with one parameter per value."""

    def params_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape


@specs.register
@dataclasses.dataclass(frozen=True)
class Bernoulli(_OneEach):
    """Values in [0, 1], by their logits. For grey levels it is the cross-entropy, whose optimum is still the mean."""

    support = UNIT

    @_by_rows
    def log_prob(self, params: Params, x: Values, where: Where = None) -> Float[Array, " batch"]:
        """x log σ(params) + (1 − x) log(1 − σ(params)), summed; nats."""
        return total(jnp.asarray(x) * params - softplus(params), where)

    def mean(self, params: Params, x: Values | None = None) -> Params:
        return jax.nn.sigmoid(params)

    def sample(self, params: Params, key: Key[Array, ""]) -> Params:
        return jax.random.bernoulli(key, jax.nn.sigmoid(params)).astype(params.dtype)


@specs.register
@dataclasses.dataclass(frozen=True)
class Gaussian(_OneEach):
    """Real values with a fixed standard deviation `scale`. Maximising it minimises the squared error."""

    support = REAL
    scale: float = 1.0

    def __post_init__(self) -> None:
        specs.check_positive(self, "scale")

    @_by_rows
    def log_prob(self, params: Params, x: Values, where: Where = None) -> Float[Array, " batch"]:
        """log N(x; params, scale²), summed; nats."""
        # Divide by the scale once per example: dividing each value by an array would cost a pass over all of them.
        # And not x - params, whose gradient is negated in a pass of its own.
        square = total(jnp.square(params - x), where) / jnp.square(self.scale)
        return -0.5 * square - count(params, where) * (jnp.log(self.scale) + 0.5 * math.log(2 * math.pi))

    def mean(self, params: Params, x: Values | None = None) -> Params:
        return params

    def sample(self, params: Params, key: Key[Array, ""]) -> Params:
        return params + self.scale * jax.random.normal(key, params.shape, params.dtype)


@specs.register
@dataclasses.dataclass(frozen=True)
class Laplace(_OneEach):
    """Real values with heavier tails than a Gaussian's. Maximising it minimises the absolute error."""

    support = REAL
    scale: float = 1.0

    def __post_init__(self) -> None:
        specs.check_positive(self, "scale")

    @_by_rows
    def log_prob(self, params: Params, x: Values, where: Where = None) -> Float[Array, " batch"]:
        """−|x − params| / scale − log(2 scale), summed; nats."""
        return -total(jnp.abs(x - params), where) / self.scale - count(params, where) * jnp.log(2.0 * self.scale)

    def mean(self, params: Params, x: Values | None = None) -> Params:
        return params

    def sample(self, params: Params, key: Key[Array, ""]) -> Params:
        return params + self.scale * jax.random.laplace(key, params.shape, params.dtype)


@specs.register
@dataclasses.dataclass(frozen=True)
class StudentT(_OneEach):
    """Real values with some outliers: Student's t around the mean.

    Args:
        scale: of the distribution, in units of the values.
        degrees: of freedom. Few make the tails heavy; the mean exists above 1.
    """

    support = REAL
    scale: float = 1.0
    degrees: float = 5.0

    def __post_init__(self) -> None:
        specs.check_positive(self, "scale", "degrees")

    @_by_rows
    def log_prob(self, params: Params, x: Values, where: Where = None) -> Float[Array, " batch"]:
        """The log density of Student's t, summed; nats."""
        degrees, gamma = jnp.asarray(self.degrees, jnp.float32), jax.lax.lgamma
        constant = gamma(0.5 * (degrees + 1)) - gamma(0.5 * degrees) - 0.5 * jnp.log(degrees * math.pi)
        tail = 0.5 * (degrees + 1) * jnp.log1p(jnp.square((x - params) / self.scale) / degrees)
        return total(constant - jnp.log(self.scale) - tail, where)

    def mean(self, params: Params, x: Values | None = None) -> Params:
        return params

    def sample(self, params: Params, key: Key[Array, ""]) -> Params:
        return params + self.scale * jax.random.t(key, self.degrees, params.shape, params.dtype)


@specs.register
@dataclasses.dataclass(frozen=True)
class LearnedVariance:
    """Real values, each under a Gaussian whose mean and variance the decoder gives (Nix & Weigend 1994).

    The last axis of the params holds the means, then as many numbers s; the standard deviations are
    softplus(s) + `MIN_SCALE`.
    """

    support = REAL

    def params_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], 2 * shape[-1])

    def moments(self, params: Params) -> tuple[Float[Array, " batch *shape"], Float[Array, " batch *shape"]]:
        """Mean and standard deviation of each value."""
        mean, raw = jnp.split(params, 2, axis=-1)
        return mean, softplus(raw) + MIN_SCALE

    def log_prob(self, params: Params, x: Values, where: Where = None) -> Float[Array, " batch"]:
        """log N(x; mean, scale²), summed; nats."""
        mean, scale = self.moments(params)
        return total(-0.5 * jnp.square((x - mean) / scale) - jnp.log(scale) - 0.5 * math.log(2 * math.pi), where)

    def mean(self, params: Params, x: Values | None = None) -> Float[Array, " batch *shape"]:
        return self.moments(params)[0]

    def sample(self, params: Params, key: Key[Array, ""]) -> Float[Array, " batch *shape"]:
        mean, scale = self.moments(params)
        return mean + scale * jax.random.normal(key, mean.shape, mean.dtype)


@specs.register
@dataclasses.dataclass(frozen=True)
class DiscretizedLogistic(_OneEach):
    """Grey levels in [0, 1]. The probability of a level is the mass of a logistic distribution in the level's bin.

    So its values are probabilities of the stored 8-bit pixels, which compare with those of a compressor (Kingma et al.
    2016, appendix; Salimans et al. 2017, eq. 2). The outermost bins reach to infinity.
    """

    support = UNIT
    scale: float = 0.05
    levels: int = 256

    def __post_init__(self) -> None:
        specs.check_positive(self, "scale")
        _check_number("levels", self.levels)

    @_by_rows
    def log_prob(self, params: Params, x: Values, where: Where = None) -> Float[Array, " batch"]:
        """log [σ(b) − σ(a)], summed; nats. [a, b] is the bin of the level nearest to x, in scales from the mean."""
        return total(log_mass(x, self.mean(params), self.scale, self.levels), where)

    def mean(self, params: Params, x: Values | None = None) -> Params:
        return jax.nn.sigmoid(params)

    def sample(self, params: Params, key: Key[Array, ""]) -> Params:
        x = self.mean(params) + self.scale * jax.random.logistic(key, params.shape, params.dtype)
        return nearest_level(x, self.levels)


@specs.register
@dataclasses.dataclass(frozen=True)
class LogisticMixture:
    """Levels in [0, 1]. A level's probability is a logistic mixture's mass in its bin (Salimans et al. 2017, eq. 2).

    The last axis of the params holds three numbers for each component and value: the logit of the weight, the logit of
    the mean, and s; the scale is softplus(s) + 0.1, in units of the distance between levels.
    """

    support = UNIT
    components: int = 5
    levels: int = 256

    def __post_init__(self) -> None:
        specs.check_sizes(self, "components")
        _check_number("levels", self.levels)

    def params_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], 3 * self.components * shape[-1])

    def split(self, params: Params) -> tuple[Array, Array, Array]:
        """Log weights, means and scales, each [batch, *shape, components]."""
        split = params.reshape(*params.shape[:-1], 3, -1, self.components)
        weights, means, scales = (split[..., i, :, :] for i in range(3))
        scales = (softplus(scales) + 0.1) / (self.levels - 1)
        return jax.nn.log_softmax(weights), jax.nn.sigmoid(means), scales

    def log_prob(self, params: Params, x: Values, where: Where = None) -> Float[Array, " batch"]:
        """log Σ_k π_k [σ(b_k) − σ(a_k)], summed over the values; nats."""
        weights, means, scales = self.split(params)
        mass = log_mass(jnp.asarray(x)[..., None], means, scales, self.levels)
        return total(jax.nn.logsumexp(weights + mass, axis=-1), where)

    def mean(self, params: Params, x: Values | None = None) -> Float[Array, " batch *shape"]:
        weights, means, _ = self.split(params)
        return jnp.sum(jnp.exp(weights) * means, axis=-1)

    def sample(self, params: Params, key: Key[Array, ""]) -> Float[Array, " batch *shape"]:
        weights, means, scales = self.split(params)
        which_key, key = jax.random.split(key)
        which = jax.random.categorical(which_key, weights)[..., None]
        mean, scale = (jnp.take_along_axis(part, which, axis=-1)[..., 0] for part in (means, scales))
        return nearest_level(mean + scale * jax.random.logistic(key, mean.shape, mean.dtype), self.levels)


@specs.register
@dataclasses.dataclass(frozen=True)
class Categorical:
    """Whole numbers from 0 to `categories` − 1. The last axis of the params holds the logits of each value."""

    discrete = True  # x may be whole numbers
    categories: int = 2

    def __post_init__(self) -> None:
        _check_number("categories", self.categories)

    @property
    def support(self) -> tuple[float, float]:
        return (0.0, self.categories - 1.0)

    def params_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], self.categories * shape[-1])

    def logits(self, params: Params) -> Float[Array, " batch *shape categories"]:
        return params.reshape(*params.shape[:-1], -1, self.categories)

    def log_prob(self, params: Params, x: Values, where: Where = None) -> Float[Array, " batch"]:
        """log softmax(logits) at x, summed over the values; nats."""
        index = jnp.asarray(x).astype(jnp.int32)[..., None]
        return total(jnp.take_along_axis(jax.nn.log_softmax(self.logits(params)), index, axis=-1)[..., 0], where)

    def mean(self, params: Params, x: Values | None = None) -> Float[Array, " batch *shape"]:
        """The likeliest category, as categories have no mean."""
        return jnp.argmax(self.logits(params), axis=-1).astype(params.dtype)

    def sample(self, params: Params, key: Key[Array, ""]) -> Float[Array, " batch *shape"]:
        return jax.random.categorical(key, self.logits(params)).astype(params.dtype)


@specs.register
@dataclasses.dataclass(frozen=True)
class Multinomial(_OneEach):
    """What a row holds of each kind of thing, given how much in all, by the logits of the kinds (Liang et al. 2018).

    Its probabilities leave out the multinomial coefficient, which has no parameters.

    Args:
        draws: how many things a sample has.
    """

    support = COUNTS
    draws: int = 1

    def __post_init__(self) -> None:
        specs.check_sizes(self, "draws")

    @_by_rows
    def log_prob(self, params: Params, x: Values, where: Where = None) -> Float[Array, " batch"]:
        """Σ x log softmax(params) over the values, or over those where `where` is True; nats."""
        return total(jnp.asarray(x) * log_shares(params, where), where)

    def mean(self, params: Params, x: Values | None = None) -> Params:
        """The shares of the kinds, times the total of x if it is known."""
        shares = jnp.exp(log_shares(params))
        return shares if x is None else shares * _as_row(total(jnp.asarray(x)), shares)

    def sample(self, params: Params, key: Key[Array, ""]) -> Params:
        flat = params.reshape(len(params), -1)
        drawn = jax.random.categorical(key, flat, shape=(self.draws, len(flat)))
        return jax.nn.one_hot(drawn, flat.shape[1], dtype=params.dtype).sum(axis=0).reshape(params.shape)


@specs.register
@dataclasses.dataclass(frozen=True)
class Poisson(_OneEach):
    """Counts, by the logs of their rates."""

    support = COUNTS

    @_by_rows
    def log_prob(self, params: Params, x: Values, where: Where = None) -> Float[Array, " batch"]:
        """Σ x params − exp(params) − log x!, over the values; nats."""
        x = jnp.asarray(x)
        return total(x * params - jnp.exp(params) - jax.lax.lgamma(x + 1), where)

    def mean(self, params: Params, x: Values | None = None) -> Params:
        return jnp.exp(params)

    def sample(self, params: Params, key: Key[Array, ""]) -> Params:
        return jax.random.poisson(key, jnp.exp(params)).astype(params.dtype)


@specs.register
@dataclasses.dataclass(frozen=True)
class NegativeBinomial:
    """Counts that vary more than Poisson's, as of genes in cells: variance μ + μ² / θ (Lopez et al. 2018, scVI).

    The last axis of the params holds the logits of an example's shares, then as many numbers s. The mean of a count is
    its share of the example's total, its library size, which is taken as known; θ = softplus(s) + `MIN_SCALE`.

    Args:
        draws: the total that a sample is drawn with.
    """

    support = COUNTS
    draws: int = 1000

    def __post_init__(self) -> None:
        specs.check_sizes(self, "draws")

    def params_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], 2 * shape[-1])

    def log_prob(self, params: Params, x: Values, where: Where = None) -> Float[Array, " batch"]:
        """The log of the negative binomial's mass, summed; nats."""
        logits, raw = jnp.split(params, 2, axis=-1)
        return total(_log_negative_binomial(jnp.asarray(x), *_rate_and_theta(logits, raw, x, where)), where)

    def mean(self, params: Params, x: Values | None = None) -> Float[Array, " batch *shape"]:
        """The shares, times the total of x if it is known: without one, expression normalised by library size."""
        return Multinomial().mean(jnp.split(params, 2, axis=-1)[0], x)

    def sample(self, params: Params, key: Key[Array, ""]) -> Float[Array, " batch *shape"]:
        logits, raw = jnp.split(params, 2, axis=-1)
        return _drawn(self.draws * jnp.exp(log_shares(logits)), softplus(raw) + MIN_SCALE, key)


@specs.register
@dataclasses.dataclass(frozen=True)
class ZeroInflatedNegativeBinomial:
    """Counts as of `NegativeBinomial`, each with a probability to be 0 whatever its rate (Lopez et al. 2018, scVI).

    The last axis of the params holds a third part: the logits of those probabilities.
    """

    support = COUNTS
    draws: int = 1000

    def __post_init__(self) -> None:
        specs.check_sizes(self, "draws")

    def params_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], 3 * shape[-1])

    def log_prob(self, params: Params, x: Values, where: Where = None) -> Float[Array, " batch"]:
        """log [π 1(x = 0) + (1 − π) NB(x)], summed; nats."""
        logits, raw, lost = jnp.split(params, 3, axis=-1)
        x = jnp.asarray(x)
        counted = _log_negative_binomial(x, *_rate_and_theta(logits, raw, x, where)) + jax.nn.log_sigmoid(-lost)
        return total(jnp.where(x > 0, counted, jnp.logaddexp(jax.nn.log_sigmoid(lost), counted)), where)

    def mean(self, params: Params, x: Values | None = None) -> Float[Array, " batch *shape"]:
        """As of `NegativeBinomial`, times the probability not to be lost."""
        logits, _, lost = jnp.split(params, 3, axis=-1)
        return Multinomial().mean(logits, x) * jax.nn.sigmoid(-lost)

    def sample(self, params: Params, key: Key[Array, ""]) -> Float[Array, " batch *shape"]:
        logits, raw, lost = jnp.split(params, 3, axis=-1)
        lost_key, key = jax.random.split(key)
        counts = _drawn(self.draws * jnp.exp(log_shares(logits)), softplus(raw) + MIN_SCALE, key)
        return jnp.where(jax.random.bernoulli(lost_key, jax.nn.sigmoid(lost)), jnp.zeros((), counts.dtype), counts)


def _rate_and_theta(logits: Params, raw: Params, x: Values, where: Where) -> tuple[Params, Params]:
    library = _as_row(total(jnp.asarray(x), where), logits)
    rate = library * jnp.exp(log_shares(logits, where))
    return rate, softplus(raw) + MIN_SCALE


def _log_negative_binomial(x: Array, rate: Params, theta: Params) -> Params:
    """log Γ(x + θ) / (Γ(θ) x!) + θ log(θ / (θ + μ)) + x log(μ / (θ + μ)), for each value."""
    gamma, small = jax.lax.lgamma, jnp.float32(1e-8)  # a rate of 0, of an example without counts, has no log
    both = jnp.log(theta + rate + small)
    coefficient = gamma(x + theta) - gamma(theta) - gamma(x + 1)
    return coefficient + theta * (jnp.log(theta + small) - both) + x * (jnp.log(rate + small) - both)


def _drawn(rate: Params, theta: Params, key: Key[Array, ""]) -> Params:
    """Negative binomial counts: Poisson's at rates drawn from a gamma distribution."""
    gamma_key, key = jax.random.split(key)
    rates = jax.random.gamma(gamma_key, theta) * rate / theta
    return jax.random.poisson(key, rates).astype(rate.dtype)


def log_shares(params: Params, where: Where = None) -> Params:
    """The log softmax over all values of an example, or over those where `where` is True."""
    axes = tuple(range(1, params.ndim))
    return params - jax.nn.logsumexp(params, axis=axes, where=where, keepdims=True)


def _as_row(x: Float[Array, " batch"], like: Params) -> Array:
    return x.reshape(-1, *[1] * (like.ndim - 1))


def log_mass(
    x: Float[Array | np.ndarray, "*#shape"],
    mean: Float[Array, "*#shape"],
    scale: float | Float[Array, "*#shape"],
    levels: int,
) -> Float[Array, "*#shape"]:
    """The log of a logistic distribution's mass in the bin of the level nearest to x; nats."""
    level = jnp.rint(x * (levels - 1))
    centre = (level / (levels - 1) - mean) / scale
    width = 1 / ((levels - 1) * jnp.asarray(scale, mean.dtype))
    below, above = jax.nn.log_sigmoid(centre + 0.5 * width), jax.nn.log_sigmoid(0.5 * width - centre)
    # σ(b) − σ(a) = σ(b) σ(−a) (1 − exp(a − b)), which avoids the difference of two nearly equal numbers
    inside = below + above + jnp.log(-jnp.expm1(-width))
    return jnp.where(level <= 0, below, jnp.where(level >= levels - 1, above, inside))


def nearest_level(x: Float[Array, "*shape"], levels: int) -> Float[Array, "*shape"]:
    """x rounded to the nearest of `levels` evenly spaced levels from 0 to 1."""
    return jnp.clip(jnp.rint(x * (levels - 1)), 0, levels - 1) / (levels - 1)


@jax.custom_jvp
def softplus(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log(1 + exp(x)), to float32's precision, in half the time of `jax.nn.softplus` on CPU, which has no fast `log1p`.

    With u = exp(−|x|), it is max(x, 0) + log(1 + u), and log(1 + u) = 2 artanh(u / (2 + u)), whose series in numbers up
    to 1/3 is short.
    """
    u = jnp.exp(-jnp.abs(x))
    ratio = u / (2 + u)
    square = jnp.square(ratio)
    series = functools.reduce(lambda so_far, k: so_far * square + 1 / k, range(11, 0, -2), jnp.full_like(x, 1 / 13))
    return jnp.maximum(x, 0) + 2 * ratio * series


@softplus.defjvp
def _softplus_change(at: tuple[Array], change: tuple[Array]) -> tuple[Array, Array]:
    return softplus(*at), jax.nn.sigmoid(*at) * change[0]


def total(x: Float[Array, " batch *shape"], where: Where = None) -> Float[Array, " batch"]:
    """The sum over every axis but the first, of all values or of those where `where` is True."""
    return jnp.sum(x, axis=tuple(range(1, x.ndim)), where=where)


def count(x: Float[Array, " batch *shape"], where: Where = None) -> float | Float[Array, " batch"]:
    """How many values an example has, or in how many of them `where` is True."""
    return float(x[0].size) if where is None else total(jnp.asarray(where).astype(x.dtype))


def _check_number(what: str, number: int) -> None:
    if isinstance(number, bool) or not isinstance(number, int) or number < 2:
        raise errors.ConfigError(f"{what} is {number!r}; it has to be a whole number, at least 2.")
