"""Convolutions and batches of products by oneDNN, the library that torch too convolves with on CPUs.

XLA has no fast convolutions of its own on CPUs. Where the extra `onednn` is installed, compiled programs call that
library. What it prepares for a computation, code for the processor above all, is made once for each set of sizes.
None of these functions has a derivative: they are the parts that `nn.conv` makes functions with derivatives of.
"""

import functools
import warnings
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flaxae.nn import foreign, onednn_library
from flaxae.parallel import compilation


def available() -> bool:
    """Whether oneDNN computes here: it is installed, and there is one device, a CPU that it was found to be fast on.

    Several devices would share the rest of a program, but each do all of such a call.
    """
    fast = "avx2" in compilation.instructions()
    return jax.default_backend() == "cpu" and jax.device_count() == 1 and fast and loads()


def with_avx512() -> bool:
    """Whether the processor has the vectors of 512 bits that oneDNN needs for bfloat16."""
    return "avx512f" in compilation.instructions()


@functools.cache
def loads() -> bool:
    """Whether it is installed, and can be loaded. Warns, once, of one that is installed and can't."""
    try:
        onednn_library.load()
    except metadata.PackageNotFoundError:
        return False
    except OSError as error:
        warnings.warn(
            f"oneDNN is installed but can't be loaded, so U-Nets train without it, more slowly: {error}. "
            "If libgomp is what is missing, install it, on Debian by `apt-get install libgomp1`.",
            stacklevel=3,
        )
        return False
    return True


Pads = tuple[tuple[int, int], tuple[int, int]]  # above and below, left and right


def convolve(
    x: Float[Array, "batch height width in_channels"],
    kernel: Float[Array, "kh kw in_channels_of_group out_channels"],
    *,
    pads: Pads,
) -> Float[Array, "batch out_height out_width out_channels"]:
    """A convolution of stride 1 in float32, of arrays that are both in float32 or, `with_avx512`, both in bfloat16.

    There are as many groups of channels as the kernel's input channels go into those of x. There are no others than of
    stride 1, because this version of oneDNN computes some of those wrongly, and writes beyond its memory in some.
    """
    height, width = (n + sum(pad) - k + 1 for n, pad, k in zip(x.shape[1:3], pads, kernel.shape[:2], strict=True))
    made = (x.shape[0], height, width, kernel.shape[3])
    return _call("convolve", x, kernel, made, x.dtype.name, x.shape, kernel.shape, made, pads)


def to_kernel(
    x: Float[Array, "batch height width in_channels"],
    y: Float[Array, "batch out_height out_width out_channels"],
    *,
    window: tuple[int, int],
    pads: Pads,
    groups: int = 1,
) -> Float[Array, "kh kw in_channels_of_group out_channels"]:
    """Its adjoint for the kernel. That for the image is a convolution with the kernel turned."""
    kernel = (*window, x.shape[3] // groups, y.shape[3])
    return _call("to_kernel", x, y, kernel, x.dtype.name, x.shape, kernel, y.shape, pads)


def multiply(a: Float[Array, "products m k"], b: Float[Array, "products k n"]) -> Float[Array, "products m n"]:
    """a @ b, in float32."""
    return _call("multiply", a, b, (*a.shape[:2], b.shape[2]), a.shape, b.shape, False)


def multiply_transposed(
    a: Float[Array, "products k m"], b: Float[Array, "products k n"]
) -> Float[Array, "products m n"]:
    """aᵀ @ b, in float32."""
    return _call("multiply", a, b, (a.shape[0], a.shape[2], b.shape[2]), a.shape, b.shape, True)


def _call(name: str, a: Array, b: Array, made: tuple[int, ...], *settings: Any) -> Array:
    target = _target(name, *settings)
    return jax.ffi.ffi_call(target, jax.ShapeDtypeStruct(made, jnp.float32), vmap_method="sequential")(a, b)


@functools.cache
def _target(name: str, *settings: Any) -> str:
    """The name by which programs call that computation, the same in each process for the same settings."""
    target = f"flaxae.onednn.{name}{settings}".replace(" ", "")
    make = onednn_library.multiply if name == "multiply" else functools.partial(onednn_library.convolution, name)
    foreign.register(target, make(*settings))
    return target
