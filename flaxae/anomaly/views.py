"""How a detector presents examples to its autoencoder (`Views`), and one run of them through it (`Passed`)."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flaxae import errors
from flaxae.autoencoder import Autoencoder


@dataclasses.dataclass(frozen=True)
class Views:
    """The input of a detector's autoencoder for an example.

    An image, [height, width, c] in [0, 1], becomes 2c channels: its square root, which stabilises the variance of
    intensities, and the same divided by its norm over the image, which keeps the pattern without its contrast. Which of
    the two finds the anomalies differs between data sets; together they did on all that we tried. Before scoring, both
    are smoothed over a 28th of the height, so that an edge that is half a pixel off is no anomaly.
    Signals are not changed, and tables neither, unless they have a `width`: zeros then fill them up to so many columns,
    and tables of many numbers of columns share compiled programs.

    Args:
        kind: of the data: image, tabular or signal.
        norm: the root mean square over the training images of the norm of an image's square root.
        width: of a table, with what fills it up; None for as many columns as it has.
    """

    kind: str
    norm: float = 1.0
    width: int | None = None

    @classmethod
    def fit(cls, kind: str, x: Float[np.ndarray, " examples *shape"]) -> "Views":
        """The views of that kind of data; `x` is the training part, scaled."""
        if kind not in ("image", "tabular", "signal"):
            raise errors.ConfigError(errors.unknown("kind", kind, ("image", "tabular", "signal")))
        return cls(kind, float(np.sqrt(np.sum(np.abs(x)) / len(x)))) if kind == "image" else cls(kind)

    @property
    def count(self) -> int:
        """How many views an example has."""
        return 2 if self.kind == "image" else 1

    def __call__(self, x: Float[Array | np.ndarray, " batch *shape"]) -> Float[np.ndarray, " batch *seen"]:
        """The views of each example, side by side on the last axis."""
        return self._of(np.asarray(x, np.float32), np)

    def traced(self, x: Float[Array, " batch *shape"]) -> Float[Array, " batch *seen"]:
        """The same in a program that JAX traces."""
        return self._of(x, jnp)

    def _of(self, x: Any, xp: Any) -> Any:
        if self.width is not None:
            return xp.pad(x, ((0, 0), (0, self.width - x.shape[1])))
        if self.kind != "image":
            return x
        root = xp.sign(x) * xp.sqrt(xp.abs(x))  # new images may be darker than the training images, hence below 0
        norm = xp.sqrt(xp.sum(xp.abs(x), axis=(1, 2, 3), keepdims=True))
        return xp.concatenate([root, root * (self.norm / xp.maximum(norm, 1e-6))], axis=-1)

    def split(self, x: Float[Array, " batch *seen"]) -> Float[Array, "batch views values"]:
        """The values of each view, smoothed if they are pixels."""
        if self.kind != "image":
            return x.reshape(x.shape[0], 1, -1)
        channels = x.shape[-1] // self.count
        views = x.reshape(*x.shape[:-1], self.count, channels)
        for axis in (1, 2):
            views = jnp.tensordot(views, _smoothing(x.shape[axis], x.shape[1] / 28), axes=(axis, 0))
            views = jnp.moveaxis(views, -1, axis)
        return jnp.moveaxis(views, 3, 1).reshape(x.shape[0], self.count, -1)


@functools.cache
def _smoothing(pixels: int, deviation: float) -> np.ndarray:
    """The matrix of a Gaussian filter along an axis, its kernel cut at the border."""
    distance = np.subtract.outer(np.arange(pixels), np.arange(pixels)) / deviation
    kernel = np.exp(-0.5 * np.square(distance)) * (np.abs(distance) <= 4)
    return (kernel / kernel[pixels // 2].sum()).astype(np.float32)


class Passed(NamedTuple):
    """One run of examples through an autoencoder."""

    x: Float[Array, " batch *seen"]
    reconstruction: Float[Array, "batch views values"]
    residual: Float[Array, "batch views values"]
    features: Float[Array, "batch features"]
    z: Float[Array, "batch latent"]
    pathway: Float[Array, "batch activations"]  # the encoder's activations on x minus those on its reconstruction

    @classmethod
    def of(cls, views: Views, model: Autoencoder, seen: Float[Array, " batch *seen"]) -> "Passed":
        """Run examples, given as their views, through the model."""

        def pathway(x: Array) -> tuple[Array, Array, Array]:
            features = model.encoder(x)
            return x.reshape(x.shape[0], -1), features.reshape(x.shape[0], -1), model.head(features).z

        _, features, z = activations = pathway(seen)
        reconstruction = model.decode(z)
        return cls(
            x=seen,
            reconstruction=views.split(reconstruction),
            residual=views.split(seen - reconstruction),
            features=features,
            z=z,
            pathway=jnp.concatenate(activations, axis=-1) - jnp.concatenate(pathway(reconstruction), axis=-1),
        )
