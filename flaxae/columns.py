"""The likelihood of a table's rows, column by column: numbers, whole numbers and counts, categories, marks.

`data.Encoding` makes features of the columns; `of_table` says which likelihood they have.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from flaxae import errors, specs
from flaxae.data.encoding import Encoding
from flaxae.data.scaling import Scaling
from flaxae.likelihoods import REAL, Params, Values, Where, softplus, total

Kind = Literal["number", "category", "mark"]

MIN_SCALE = 0.05  # of a number, in deviations of its column: one that is mostly 0 must not outweigh all others
LOG_2PI = math.log(2 * math.pi)


@specs.register
@dataclasses.dataclass(frozen=True)
class Columns:
    """Each column of a table under a distribution of its own kind.

    A number is Gaussian, of a mean and a variance that the decoder gives (Nix & Weigend 1994). A whole number has a
    logistic distribution's mass within half a step of it, and a count of 0 all that is below as well (Salimans et al.
    2017, eq. 2). A category is one of several features (softmax). A mark, of a missing value, is 0 or 1 (Bernoulli).

    The last axis of the params has for each feature a mean or a logit, then for each a number s; the standard
    deviation of a number is softplus(s) + `MIN_SCALE`, and the s of all else are not used.

    Args:
        kinds: of each column: "number", "category", or "mark".
        sizes: how many features each column has: of numbers and marks, 1.
        steps: from one whole number to the next, in units of the feature; 0 for all that isn't a whole number.
        floors: the feature's value at a count of 0; None for all that isn't a count.
    """

    support = REAL
    kinds: tuple[str, ...] = ("number",)
    sizes: tuple[int, ...] = (1,)
    steps: tuple[float, ...] = (0.0,)
    floors: tuple[float | None, ...] = (None,)

    def __post_init__(self) -> None:
        specs.check_sizes(self, "sizes")
        lengths = {len(values) for values in (self.kinds, self.sizes, self.steps, self.floors)}
        if len(lengths) != 1 or not set(self.kinds) <= set(get_args(Kind)):
            raise errors.ConfigError(
                f"Columns has {len(self.kinds)} kinds ({', '.join(sorted(set(self.kinds)))}), {len(self.sizes)} sizes, "
                f"{len(self.steps)} steps and {len(self.floors)} floors; expected as many of each, and the kinds "
                f"{', '.join(get_args(Kind))}."
            )

    def params_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A mean or a logit, and a scale, for each feature.

        Raises:
            ConfigError: the examples are no rows of so many features.
        """
        if shape != (sum(self.sizes),):
            raise errors.ConfigError(
                f"The Columns likelihood has {sum(self.sizes)} features; the examples have shape {shape}."
            )
        return (2 * shape[0],)

    def _of_kind(self, kind: Kind) -> Bool[np.ndarray, "1 features"]:
        return self._for_features([k == kind for k in self.kinds])

    def _for_features(self, values: Sequence[float | bool]) -> Shaped[np.ndarray, "1 features"]:
        return np.repeat(np.asarray(values), self.sizes)[None]

    @property
    def _categories(self) -> Int[np.ndarray, " columns most"]:
        """The features of each category, one column a row; filled up with the number of features, which is none's."""
        starts = itertools.accumulate((0, *self.sizes))
        groups = [range(i, i + n) for i, n, k in zip(starts, self.sizes, self.kinds, strict=False) if k == "category"]
        places = np.full((len(groups), max(map(len, groups), default=0)), sum(self.sizes))
        for row, group in zip(places, groups, strict=True):
            row[: len(group)] = group
        return places

    @property
    def _members(self) -> Float[np.ndarray, "features columns"]:
        """1 where a feature is one of a category's."""
        places = self._categories
        return np.float32(np.arange(sum(self.sizes))[:, None, None] == places[None]).sum(axis=2)

    def _largest(self, values: Float[Array, " batch features"]) -> Float[Array, " batch features"]:
        """For each feature of a category, the largest of that category's; 0 for the others."""
        padded = jnp.pad(values, ((0, 0), (0, 1)), constant_values=-jnp.inf)
        return _exact(padded[:, self._categories].max(axis=-1), self._members.T)

    def _log_shares(self, logits: Float[Array, " batch features"]) -> Float[Array, " batch features"]:
        """The log-probability of each feature of a category; 0 for the others.

        Products with a matrix of 0 and 1, and no scatter: the gradient of one can't be compiled by XLA of jax 0.12.
        """
        shifted = logits - jax.lax.stop_gradient(self._largest(logits))
        of_category = self._of_kind("category")
        total = _exact(jnp.where(of_category, jnp.exp(jnp.where(of_category, shifted, 0.0)), 0.0), self._members)
        return jnp.where(of_category, shifted - _exact(jnp.log(total), self._members.T), 0.0)

    def split(self, params: Params) -> tuple[Float[Array, " batch features"], Float[Array, " batch features"]]:
        """Means or logits, and standard deviations."""
        mean, raw = jnp.split(params, 2, axis=-1)
        return mean, softplus(raw) + MIN_SCALE

    def log_prob(self, params: Params, x: Values, where: Where = None) -> Float[Array, " batch"]:
        """The log density of the real numbers plus the log probability of all else, summed; nats."""
        x = jnp.asarray(x)
        mean, scale = self.split(params)
        steps = self._for_features(self.steps).astype(np.float32)
        floors = self._for_features([-np.inf if f is None else f for f in self.floors]).astype(np.float32)
        density = -0.5 * jnp.square((x - mean) / scale) - jnp.log(scale) - 0.5 * LOG_2PI
        number = jnp.where(steps > 0, _log_mass(x, mean, scale, steps, floors), density)
        mark = x * mean - softplus(mean)
        kinds = [self._of_kind(kind) for kind in ("number", "mark")]
        logs = jnp.select([jnp.broadcast_to(kind, x.shape) for kind in kinds], [number, mark], 0.0)
        if len(self._categories):
            logs = logs + x * self._log_shares(mean)
        return total(logs, where)

    def mean(self, params: Params, x: Values | None = None) -> Float[Array, " batch features"]:
        """The means of numbers, and the probabilities of categories and marks."""
        mean, _ = self.split(params)
        made = jnp.where(self._of_kind("mark"), jax.nn.sigmoid(mean), mean)
        if not len(self._categories):
            return made
        return jnp.where(self._of_kind("category"), jnp.exp(self._log_shares(mean)), made)

    def sample(self, params: Params, key: Key[Array, ""]) -> Float[Array, " batch features"]:
        """A draw; whole numbers are whole once `data.Encoding.undo` has rounded them."""
        mean, scale = self.split(params)
        of_numbers, of_marks, of_categories = jax.random.split(key, 3)
        number = mean + scale * jax.random.normal(of_numbers, mean.shape, mean.dtype)
        mark = jax.random.bernoulli(of_marks, jax.nn.sigmoid(mean)).astype(mean.dtype)
        made = jnp.where(self._of_kind("mark"), mark, number)
        if not len(self._categories):
            return made
        noisy = mean + jax.random.gumbel(of_categories, mean.shape, mean.dtype)
        return jnp.where(self._of_kind("category"), (noisy == self._largest(noisy)).astype(mean.dtype), made)


def _exact(x: Float[Array, " batch inner"], matrix: Float[np.ndarray, " inner outer"]) -> Float[Array, " batch outer"]:
    return jnp.matmul(x, matrix, precision="highest")


def _log_mass(
    x: Float[Array, " batch features"],
    mean: Float[Array, " batch features"],
    scale: Float[Array, " batch features"],
    steps: Float[np.ndarray, "1 features"],
    floors: Float[np.ndarray, "1 features"],
) -> Float[Array, " batch features"]:
    """log P(X within half a step of x) of a logistic distribution; at the floor, log P(X below x + half a step)."""
    scale = scale * (math.sqrt(3) / math.pi)  # of a logistic with that standard deviation
    centre, width = (x - mean) / scale, jnp.where(steps > 0, steps, 1.0) / scale
    below = jax.nn.log_sigmoid(centre + 0.5 * width)
    # σ(b) − σ(a) = σ(b) σ(−a) (1 − exp(a − b)), which avoids the difference of two nearly equal numbers
    inside = below + jax.nn.log_sigmoid(0.5 * width - centre) + jnp.log(-jnp.expm1(-width))
    return jnp.where(x <= floors + 0.5 * steps, below, inside)


def of_table(encoding: Encoding, scaling: Scaling) -> Columns:
    """The likelihood of a table's features, as `scaling` scales them."""
    kinds: list[Kind] = []
    sizes, steps, floors = [], [], []

    def add(kind: Kind, size: int = 1, step: float = 0.0, floor: float | None = None) -> None:
        kinds.append(kind)
        sizes.append(size)
        steps.append(step)
        floors.append(floor)

    feature = 0
    for column in encoding.columns:
        if column.categories is not None:
            add("category", len(column.features))
        else:
            one = 1 / scaling.scale[feature]
            whole = column.kind != "real"
            add("number", 1, one * whole, -scaling.offset[feature] * one if column.kind == "count" else None)
            if column.missing:
                add("mark")
        feature += len(column.features)
    return Columns(tuple(kinds), tuple(sizes), tuple(steps), tuple(floors))
