"""A fully convolutional model on images of any size: in overlapping windows, in bounded memory."""

import functools
import itertools
import math
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Shaped

from flaxae.autoencoder import Autoencoder
from flaxae.data import Scaling
from flaxae.nn import conv

SIDES = (128, 192, 256, 384, 576)  # pixels: few sizes are compiled, and none takes more than some 100 MiB
MARGIN = 32  # pixels of a window's edge that are left to its neighbour, at most


@runtime_checkable
class AnySize(Protocol):
    """The spec of a body that takes images of any size."""

    @property
    def stride(self) -> int:
        """Pixels of the image to one of the coarsest features."""
        ...

    @property
    def reach(self) -> int:
        """How many pixels away what is made of a pixel may depend on, at most."""
        ...


def any_size(model: Autoencoder) -> AnySize | None:
    """The spec of the model's body, if it takes images of any size."""
    body: Any = None if model.config is None else model.config.body
    return body if isinstance(body, AnySize) else None


def reconstruct(
    model: Autoencoder, image: Shaped[np.ndarray, "height width channels"], scaling: Scaling | None = None
) -> Shaped[np.ndarray, "height width channels"]:
    """What a model whose body takes any size makes of one image, in the units and type of that.

    The image is cut into windows, which overlap by twice `MARGIN` or twice the model's reach, if that is less. Of an
    overlap each window gives its half, so that what it says of its edge is not used. An image that is smaller than a
    window is mirrored at its edges.

    Args:
        scaling: from the image's units to what the model sees, by default those; it is done window by window, so that
            all of the image is only there as it was given, and as it is given back.
    """
    body = any_size(model)
    assert body is not None
    margin = min(MARGIN, -(-body.reach // body.stride) * body.stride)
    height, width, _ = image.shape
    side = min(SIDES, key=lambda side: math.prod(len(starts(n, side, margin)) for n in (height, width)) * side**2)
    short = [max(0, side - extent) for extent in (height, width)]
    if any(short):
        image = np.pad(image, ((0, short[0]), (0, short[1]), (0, 0)), mode="symmetric")
    graphdef, state = nnx.split(model)
    made = np.empty(image.shape, image.dtype if scaling is None else scaling.dtype)
    both = [spans(starts(extent, side, margin), extent, side) for extent in image.shape[:2]]
    for (top, above, below), (left, before, after) in itertools.product(*both):
        window = image[None, top : top + side, left : left + side]
        with conv.channels_last():
            part = np.asarray(_reconstruct(graphdef, state, window if scaling is None else scaling(window)))[0]
        part = part[above - top : below - top, before - left : after - left]
        made[above:below, before:after] = part if scaling is None else scaling.undo(part)
    return made[:height, :width]


@functools.partial(jax.jit, static_argnames="graphdef")
def _reconstruct(graphdef: nnx.GraphDef, state: nnx.State, x: Float[Array, "1 side side channels"]) -> Array:
    """Compiled for channels last, and called nowhere else."""
    return nnx.merge(graphdef, state, copy=True).reconstruct(x)


def starts(extent: int, side: int, margin: int) -> list[int]:
    """Where windows begin along one axis, the last of them flush with the end."""
    if extent <= side:
        return [0]
    return [*range(0, extent - side, side - 2 * margin), extent - side]


def spans(begins: list[int], extent: int, side: int) -> list[tuple[int, int, int]]:
    """(where a window begins, and from where to where its pixels are used): up to the middle of each overlap."""
    edges = [0, *((before + side + after) // 2 for before, after in itertools.pairwise(begins)), extent]
    return list(zip(begins, edges, edges[1:], strict=False))
