"""Random transformations that don't change what an image shows: affine maps, elastic deformation, cut-out.

`Transform` is a corruption (`flaxae.corruptions`). An autoencoder that gets a transformed image and has to return the
untransformed one learns a code that is invariant to the transformation. A classifier trained on transformed images
learns to ignore it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from flaxae import specs


@specs.register
@dataclasses.dataclass(frozen=True)
class Transform:
    """A random affine map, elastic deformation and cut-out of each image, [batch, height, width, channels].

    All are drawn anew for each image, uniformly within ± the given number times `level`. Pixels from outside the image
    are 0. In tables and signals, a fraction `cutout` of the values is set to 0 instead, since no other transformation
    keeps their meaning.

    Args:
        rotation: degrees.
        scale: fraction by which height and width grow or shrink, independently.
        shear: by how many columns a row is moved, for each row of distance from the centre.
        shift: as a fraction of height and width.
        elastic: standard deviation of the displacements, as a fraction of height and width; they are smooth over about
            a fifth of the image (after Simard et al. 2003).
        cutout: side of a square set to 0, as a fraction of height and width; its centre is anywhere in the image
            (DeVries & Taylor 2017).
        level: factor on all of the above.
    """

    rotation: float = specs.static(15.0)
    scale: float = specs.static(0.12)
    shear: float = specs.static(0.2)
    shift: float = specs.static(2 / 28)
    elastic: float = specs.static(0.03)
    cutout: float = specs.static(0.3)
    level: float = 1.0

    def __post_init__(self) -> None:
        names = [field.name for field in dataclasses.fields(self)]
        specs.check_not_negative(self, *names)

    def __call__(self, key: Key[Array, ""], x: Float[Array, "..."]) -> Float[Array, "..."]:
        if x.ndim != 4:
            return jnp.where(jax.random.uniform(key, x.shape) < self.cutout * self.level, 0, x)
        affine_key, elastic_key, cutout_key = jax.random.split(key, 3)
        rows, columns = self._affine(affine_key, x.shape)
        if self.elastic:
            down, right = self._elastic(elastic_key, x.shape)
            rows, columns = rows + down, columns + right
        x = sample(x, rows, columns)
        return self._cut(cutout_key, x) if self.cutout else x

    def _affine(
        self, key: Key[Array, ""], shape: tuple[int, ...]
    ) -> tuple[Float[Array, "batch height width"], Float[Array, "batch height width"]]:
        """Where each pixel of the result comes from: rows and columns, in pixels."""
        batch, height, width, _ = shape
        angle, tall, wide, shear, down, right = self.level * jax.random.uniform(
            key, (6, batch, 1, 1), minval=-1, maxval=1
        )
        angle = jnp.deg2rad(self.rotation) * angle
        row = _places(height).reshape(1, -1, 1) - (height - 1) / 2
        column = _places(width).reshape(1, 1, -1) - (width - 1) / 2
        y = (jnp.cos(angle) * row + jnp.sin(angle) * column) * jnp.exp(self.scale * tall)
        x = (jnp.cos(angle) * column - jnp.sin(angle) * row) * jnp.exp(self.scale * wide) + self.shear * shear * row
        return (
            y + (height - 1) / 2 + self.shift * height * down,
            x + (width - 1) / 2 + self.shift * width * right,
        )

    def _elastic(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "2 batch height width"]:
        """Smooth displacements, down and right, in pixels: normal at the knots of a grid, interpolated between them."""
        batch, height, width, _ = shape
        knots = jax.random.normal(key, (2, batch, _KNOTS, _KNOTS))
        smooth = jnp.einsum("hk,dbkl,wl->dbhw", _mixing(height), knots, _mixing(width))
        return self.level * self.elastic * jnp.float32([height, width]).reshape(2, 1, 1, 1) * smooth

    def _cut(
        self, key: Key[Array, ""], x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        batch, height, width, _ = x.shape
        centre = jax.random.uniform(key, (2, batch, 1, 1))
        side = self.cutout * self.level / 2
        rows = jnp.abs((_places(height).reshape(1, -1, 1) + 0.5) / height - centre[0]) < side
        columns = jnp.abs((_places(width).reshape(1, 1, -1) + 0.5) / width - centre[1]) < side
        return jnp.where((rows & columns)[..., None], jnp.zeros((), x.dtype), x)


def _places(size: int) -> Float[Array, " size"]:
    return jnp.arange(size, dtype=jnp.float32)


_KNOTS = 6  # of the elastic grid along each side


def _mixing(size: int) -> Float[np.ndarray, "size knots"]:
    """Gaussian weights of the knots at each pixel along a side. They have unit norm, so that the variance is kept."""
    place = (np.arange(size) + 0.5) / size * (_KNOTS - 1)
    weights = np.exp(-np.square(place[:, None] - np.arange(_KNOTS)))
    return (weights / np.linalg.norm(weights, axis=1, keepdims=True)).astype(np.float32)


def sample(
    x: Float[Array, "batch height width channels"],
    rows: Float[Array, "batch out_height out_width"],
    columns: Float[Array, "batch out_height out_width"],
) -> Float[Array, "batch out_height out_width channels"]:
    """Images sampled at fractional positions by bilinear interpolation; 0 outside."""
    batch, height, width, channels = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 2), (1, 2), (0, 0))).reshape(batch, -1, channels)
    rows, columns = jnp.clip(rows + 1, 0, height + 1), jnp.clip(columns + 1, 0, width + 1)
    top, left = jnp.floor(rows), jnp.floor(columns)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    corner = (top * (width + 3) + left).astype(jnp.int32).reshape(batch, -1)

    def pixel(step: int) -> Float[Array, "batch out_height out_width channels"]:
        taken = jnp.take_along_axis(padded, (corner + step)[..., None], axis=1, mode="clip")
        return taken.reshape(*rows.shape, channels)

    above = pixel(0) * (1 - right) + pixel(1) * right
    below = pixel(width + 3) * (1 - right) + pixel(width + 4) * right
    return above * (1 - down) + below * down
