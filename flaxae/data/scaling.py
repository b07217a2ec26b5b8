"""The scaling from stored values to network inputs, and back."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, overload

import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from flaxae.data.images import Images
from flaxae.data.images.collection import range_of
from flaxae.data.stream import Stream
from flaxae.errors import ConfigError, DataError

FENCES = 3.0  # see `robust_moments`
LIMIT = 10.0  # deviations, beyond which numbers of tables are compressed


@dataclasses.dataclass(frozen=True)
class Scaling:
    """The map x -> (x - offset) / scale, and the dtype of the stored values.

    `offset` and `scale` have one entry for all values, or one for each column (the last axis). Beyond `limit`, where
    there is one, what is farther off is compressed: see `compressed`.
    """

    offset: tuple[float, ...]
    scale: tuple[float, ...]
    dtype: str
    limit: float | None = None

    @classmethod
    def fit(
        cls,
        train: Shaped[np.ndarray, " examples *shape"] | Stream | Images,
        indicators: Bool[np.ndarray, " columns"] | None = None,
    ) -> "Scaling":
        """The scaling fitted on the training part, and on nothing else. A stream is read once from end to end.

        Tables, [n, columns], and signals, [n, time, channels], are standardised by column or channel; a constant one
        is only centred. Of tables, a few glitches decide nothing: the moments are robust ones, and what is beyond LIMIT
        is compressed. `indicators`, the columns of 0 and 1 that tell categories, stay as they are: divided by its
        deviation, a rare one would outweigh all else, while as it is, rows of two categories are apart (squared) by 2,
        as two rows are on average in a standardised number. Images, [n, height, width,
        channels], are brought to [0, 1]: 8-bit by 255, 16-bit by the range in use (4095 of 12 bits in 16), floats by
        their minimum and maximum unless they are in it already. `Images` are in it as they are read; their scaling is
        that of most of them.
        """
        if isinstance(train, Images):
            dtype, (low, high) = train.main_range
            return cls((low,), (high - low,), dtype)
        if train.ndim < 4:
            if isinstance(train, np.ndarray) and train.ndim == 2:
                offset, scale = robust_moments(train.astype(np.float64))
            else:
                offset, scale = _moments(train)
            if indicators is not None:
                offset, scale = np.where(indicators, 0.0, offset), np.where(indicators, 1.0, scale)
        elif train.dtype == np.uint8:
            offset, scale = np.zeros(1), np.array([255.0])
        else:
            ranges = [(float(part.min()), float(part.max())) for part in _parts(train)]
            low, high = range_of(train.dtype, min(low for low, _ in ranges), max(high for _, high in ranges))
            offset, scale = np.array([low]), np.array([high - low])
        scale = np.where(scale < np.finfo(np.float32).tiny, 1.0, scale)
        limit = LIMIT if train.ndim == 2 else None
        return cls(tuple(offset.tolist()), tuple(scale.tolist()), train.dtype.name, limit)

    @overload
    def __call__(self, x: Stream) -> Stream: ...
    @overload
    def __call__(self, x: Images) -> Images: ...
    @overload
    def __call__(self, x: Shaped[np.ndarray, " *shape"]) -> Float[np.ndarray, " *shape"]: ...
    @overload
    def __call__(self, x: Shaped[Array, " *shape"]) -> Float[Array, " *shape"]: ...

    def __call__(
        self, x: Shaped[np.ndarray | Array, " *shape"] | Stream | Images
    ) -> Float[np.ndarray | Array, " *shape"] | Stream | Images:
        """x scaled, in float32: on the host for NumPy arrays, on the device for JAX arrays, when read for streams.

        `Images` scale themselves, and are given back as they are.

        Raises:
            DataError: the last axis is not the columns that the scaling was fitted on.
        """
        if isinstance(x, Images):
            return x
        if isinstance(x, Stream):
            return x.scaled(self)
        offset, scale = self._constants(x)
        scaled = (x.astype(np.float32) - offset) / scale
        return scaled if self.limit is None else compressed(scaled, self.limit)

    def undo(self, x: Shaped[np.ndarray | Array, " *shape"]) -> Shaped[np.ndarray, " *shape"]:
        """x in stored units and dtype again. Integers are rounded, and clipped to the range of the dtype.

        Raises:
            DataError: the last axis is not the columns that the scaling was fitted on.
        """
        offset, scale = self._constants(x)
        values = np.asarray(x, np.float32)
        values = (values if self.limit is None else decompressed(values, self.limit)) * scale + offset
        dtype = np.dtype(self.dtype)
        if dtype.kind == "u":
            values = np.clip(np.rint(values), 0, np.iinfo(dtype).max)
        return values.astype(dtype)

    def to_dict(self) -> dict[str, Any]:
        """The fields as values that JSON can hold."""
        fields = {"offset": list(self.offset), "scale": list(self.scale), "dtype": self.dtype}
        return fields if self.limit is None else {**fields, "limit": self.limit}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Scaling":
        """The inverse of `to_dict`.

        Raises:
            ConfigError: a field is missing, unknown, or has a value that no scaling can have.
        """
        if not isinstance(fields, Mapping) or set(fields) - {"limit"} != {"offset", "scale", "dtype"}:
            raise ConfigError(f"A scaling is {fields!r}; expected the fields offset, scale and dtype.")
        limit = fields.get("limit")
        if limit is not None and (not is_finite_number(limit) or limit <= 0):
            raise ConfigError(f"A scaling's limit is {limit!r}; expected a positive number.")
        offset, scale, dtype = fields["offset"], fields["scale"], fields["dtype"]
        for name, values in (("offset", offset), ("scale", scale)):
            if not isinstance(values, list | tuple) or not values or not all(map(is_finite_number, values)):
                raise ConfigError(f"A scaling's {name} is {values!r}; expected a list of finite numbers.")
        if len(offset) != len(scale) or min(scale) <= 0:
            raise ConfigError(f"A scaling has offset {offset!r} and scale {scale!r}; expected as many, scale > 0.")
        if dtype not in _DTYPES:
            raise ConfigError(f"A scaling's dtype is {dtype!r}; expected one of {', '.join(_DTYPES)}.")
        return cls(tuple(map(float, offset)), tuple(map(float, scale)), dtype, limit)

    def _constants(self, x: Shaped[np.ndarray | Array, " *shape"]) -> tuple[np.ndarray, np.ndarray]:
        if len(self.offset) > 1 and (x.ndim == 0 or x.shape[-1] != len(self.offset)):
            raise DataError(f"The data has shape {x.shape}; expected {len(self.offset)} columns on the last axis.")
        shape = (1,) * (x.ndim - 1) + (-1,) if x.ndim else ()
        return np.array(self.offset, np.float32).reshape(shape), np.array(self.scale, np.float32).reshape(shape)


def robust_moments(
    x: Float[np.ndarray, "rows columns"],
) -> tuple[Float[np.ndarray, " columns"], Float[np.ndarray, " columns"]]:
    """Each column's mean and deviation with glitches cut to fences, so that they move neither; NaN ignored.

    The fences lie FENCES widths beyond the inner 90 % of the values: a normal distribution never reaches them. A column
    whose inner 90 % are one value has them at its outer 1 %, if those differ, or none. A constant one has deviation 0.
    """
    quantile = np.nanquantile if np.isnan(x).any() else np.quantile  # which is many times faster for many columns
    outer_low, low, high, outer_high = quantile(x, [0.01, 0.05, 0.95, 0.99], axis=0)
    wide, outer = high > low, outer_high > outer_low
    reach = FENCES * (high - low)
    least = np.where(wide, low - reach, np.where(outer, outer_low, -np.inf))
    most = np.where(wide, high + reach, np.where(outer, outer_high, np.inf))
    inner = np.clip(x, least, most)
    centre, scale = np.nanmean(inner, axis=0), np.nanstd(inner, axis=0)
    return centre, np.where(scale > 1e-9 * np.abs(centre), scale, 0.0)


def compressed(x: Shaped[np.ndarray | Array, " *shape"], limit: float = LIMIT) -> Shaped[np.ndarray | Array, " *shape"]:
    """Numbers whose excess over ±limit is log(1 + excess): in order still, and none so far that it alone counts."""
    if not isinstance(x, np.ndarray):
        import jax.numpy as jnp

        near = jnp.clip(x, -limit, limit)
        return near + jnp.sign(x) * jnp.log1p(jnp.abs(x - near))
    near = np.clip(x, -limit, limit)
    return (near + np.sign(x) * np.log1p(np.abs(x - near))).astype(x.dtype)


def decompressed(x: Float[np.ndarray, " *shape"], limit: float = LIMIT) -> Float[np.ndarray, " *shape"]:
    """The inverse of `compressed`, for what a float32 can hold."""
    excess = np.abs(x) - limit
    far = np.sign(x) * (limit + np.expm1(np.clip(excess, 0, 60)))
    return np.where(excess > 0, far, x).astype(x.dtype)


def _parts(train: np.ndarray | Stream) -> Iterable[np.ndarray]:
    return train.passes() if isinstance(train, Stream) else [train]


def _moments(train: np.ndarray | Stream) -> tuple[np.ndarray, np.ndarray]:
    """The mean and standard deviation of each column or channel, merged part by part (Chan et al. 1979)."""
    count, mean, squares = 0, np.zeros(train.shape[-1]), np.zeros(train.shape[-1])
    for part in _parts(train):
        axes, more = tuple(range(part.ndim - 1)), part.size // part.shape[-1]
        part_mean, part_squares = part.mean(axis=axes, dtype=np.float64), more * part.var(axis=axes, dtype=np.float64)
        squares = squares + part_squares + (part_mean - mean) ** 2 * (count * more / (count + more))
        mean = mean + (part_mean - mean) * (more / (count + more))
        count += more
    return mean, np.sqrt(squares / count)


_LARGEST = float(np.finfo(np.float32).max)
_DTYPES = ("uint8", "uint16", "float32")


def is_finite_number(value: Any) -> bool:
    """Whether `value` is a number that is finite in float32."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST
