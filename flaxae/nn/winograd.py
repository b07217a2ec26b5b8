"""3 × 3 convolutions of stride 1 and padding 1 with a quarter of the multiplications, by Winograd's algorithm.

Lavin & Gray (2016), F(4×4, 3×3). Channels are last, or if `batch_minor` first, with the batch last. float32 alone has
the digits for it. The products may be done by a library: see `nn.onednn`.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

Multiply = Callable[[Array, Array], Array]  # matrices, one by one


def convolve(
    x: Float[Array, "_ _ _ _"],
    kernel: Float[Array, "3 3 in_channels out_channels"],
    *,
    batch_minor: bool,
    multiply: Multiply = jnp.matmul,
) -> Float[Array, "_ _ _ _"]:
    """The convolution, with 36 products for 4 × 4 pixels instead of 144.

    Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A, for every tile d of 6 × 6 pixels; the sums over channels are 36 matrix products.
    """
    first, height, width, last = x.shape
    rows, columns = -(-height // 4), -(-width // 4)
    tiles = _tiles(x)
    across = jnp.asarray(_KERNEL, x.dtype)
    weights = jnp.einsum("ki,lj,ijco->klco", across, across, kernel).reshape(36, *kernel.shape[2:])
    if batch_minor:
        made = multiply(weights.swapaxes(1, 2), tiles.reshape(36, first, -1))
        first = kernel.shape[3]
    else:
        made = multiply(tiles.reshape(36, -1, last), weights)
        last = kernel.shape[3]
    back = jnp.asarray(np.kron(_OUTPUT, _OUTPUT), x.dtype)
    y = (back @ made.reshape(36, -1)).reshape(4, 4, first, rows, columns, last)
    return y.transpose(2, 3, 0, 4, 1, 5).reshape(first, 4 * rows, 4 * columns, last)[:, :height, :width]


def _multiply_transposed(a: Array, b: Array) -> Array:
    return a.swapaxes(1, 2) @ b


def to_kernel(
    x: Float[Array, "_ _ _ _"], gradient: Float[Array, "_ _ _ _"], multiply_transposed: Multiply = _multiply_transposed
) -> Float[Array, "3 3 in_channels out_channels"]:
    """The kernel's gradient, channels last, of that equation: Gᵀ [(Bᵀ d B) ⊙ (A dY Aᵀ)] G, over all tiles."""
    batch, height, width, out_channels = gradient.shape
    rows, columns = -(-height // 4), -(-width // 4)
    y = jnp.pad(gradient, ((0, 0), (0, 4 * rows - height), (0, 4 * columns - width), (0, 0)))
    y = y.reshape(batch, rows, 4, 4 * columns, out_channels)
    half = jnp.stack(_spread([y[:, :, i] for i in range(4)]))
    half = lax.optimization_barrier(half).reshape(6, batch, rows, columns, 4, out_channels)
    spread = jnp.stack(_spread([half[:, :, :, :, j] for j in range(4)]), axis=1)
    tiles, spread = lax.optimization_barrier((_tiles(x), spread))
    products = multiply_transposed(tiles.reshape(36, -1, x.shape[3]), spread.reshape(36, -1, out_channels))
    across = jnp.asarray(_KERNEL, x.dtype)
    return jnp.einsum("ki,lj,klco->ijco", across, across, products.reshape(6, 6, *products.shape[1:]))


def _tiles(x: Float[Array, "_ _ _ _"]) -> Float[Array, "6 6 _ rows columns _"]:
    """Bᵀ d B of every tile."""
    first, height, width, last = x.shape
    rows, columns = -(-height // 4), -(-width // 4)
    x = jnp.pad(x, ((0, 0), (1, 4 * rows - height + 3), (1, 4 * columns - width + 3), (0, 0)))
    x = x.reshape(first, rows + 1, 4, 4 * columns + 4, last)
    half = jnp.stack(_input([x[:, i // 4 : i // 4 + rows, i % 4] for i in range(6)]))
    # The barriers keep XLA from computing the first half of a transform anew for each number of the second.
    half = lax.optimization_barrier(half).reshape(6, first, rows, columns + 1, 4, last)
    tiles = jnp.stack(_input([half[:, :, :, j // 4 : j // 4 + columns, j % 4] for j in range(6)]), axis=1)
    return lax.optimization_barrier(tiles)


_KERNEL = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)
_OUTPUT = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])


def _spread(y: list[Array]) -> list[Array]:
    """A y, along one axis of the tiles."""
    even, odd = y[0] + y[2], y[1] + y[3]
    even2, odd2 = y[0] + 4 * y[2], 2 * y[1] + 8 * y[3]
    return [y[0], even + odd, even - odd, even2 + odd2, even2 - odd2, y[3]]


def _input(d: list[Array]) -> list[Array]:
    """Bᵀ d, along one axis of the tiles."""
    even, odd = d[4] - 4 * d[2], d[3] - 4 * d[1]
    even2, odd2 = d[4] - d[2], 2 * (d[3] - d[1])
    return [
        4 * d[0] - 5 * d[2] + d[4],
        even + odd,
        even - odd,
        even2 + odd2,
        even2 - odd2,
        4 * d[1] - 5 * d[3] + d[5],
    ]
