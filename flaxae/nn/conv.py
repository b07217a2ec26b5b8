"""Convolution, transposed and depthwise too, and pooling: the same everywhere, in the way each platform is fast at.

On GPU and TPU these are XLA's convolutions, on images [batch, height, width, channels]. On CPU, XLA's convolutions
run on one thread inside a compiled loop. So there a convolution is one matrix product after `_patches`, and a
transposed one is the adjoint of `_patches` after one matrix product. Images are then [channels, height, width, batch],
so that every copy is a run of `batch` numbers. Where `_winograd_pays`, 3 × 3 convolutions of stride 1 need a quarter of
the multiplications. U-Nets, which have many channels and few images, have channels last on CPU as well, and oneDNN's
convolutions where that library is installed, see `many_channels`. Within `products.in_bfloat16`, both layouts of CPUs
round what they multiply. All of it is differentiable JAX: jit, vmap, scan, and both modes of differentiation to any
order work.

A stack of layers stays in the platform's layout: enter it by `from_nhwc`, leave it by `to_nhwc`. In both layouts
height and width are axes 1 and 2. The platform is the process's default backend, read when the code is traced.
"""

import contextlib
import contextvars
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, BFloat16, Float, Shaped, UInt16

from flaxae import errors
from flaxae.nn import onednn, products, winograd
from flaxae.nn.bilinear import bilinear

Pair = int | tuple[int, int]  # one number for both axes, or (height, width)
Image = Float[Array, "_ _ _ _"]  # in the platform's layout; height and width are axes 1 and 2


_channels_last: contextvars.ContextVar[bool] = contextvars.ContextVar("channels_last", default=False)
_portable: contextvars.ContextVar[bool] = contextvars.ContextVar("portable", default=False)
_form: contextvars.ContextVar[str | None] = contextvars.ContextVar("form", default=None)  # see `many_channels`


def _batch_minor() -> bool:
    return jax.default_backend() == "cpu" and not _channels_last.get()


@contextlib.contextmanager
def channels_last() -> Iterator[None]:
    """While a program is traced in here, its layout is [batch, height, width, channels] on CPU as well.

    For a single large image outside a loop: there is no batch for the other layout to have last, and XLA's convolutions
    keep their threads. What is compiled in here has to be compiled nowhere else.
    """
    token = _channels_last.set(True)
    try:
        yield
    finally:
        _channels_last.reset(token)


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """While a program is traced in here, it has XLA's own convolutions and channels last, whatever the platform.

    For programs that leave the process: other runtimes know these, and sizes may be symbols.
    """
    token = _portable.set(True)
    try:
        with channels_last():
            yield
    finally:
        _portable.reset(token)


@contextlib.contextmanager
def many_channels() -> Iterator[None]:
    """While a program is traced in here, channels are last on CPU, and convolutions are in a form for many channels.

    It is for few images in a compiled loop: every copy is a run of `channels` numbers. The form is "onednn" where that
    is `onednn.available`, else "products", a matrix product after patches; both are Winograd's where those are faster,
    and "rounded …" within `products.in_bfloat16`, where oneDNN is for processors `onednn.with_avx512` alone. It changes
    nothing within `portable`, nor on other platforms; within `channels_last`, what isn't oneDNN's is left to XLA.
    """
    rounded = "rounded " if products.rounding() else ""
    with contextlib.ExitStack() as stack:
        if onednn.available() and not is_portable() and (not rounded or onednn.with_avx512()):
            stack.enter_context(_channels_last_in(f"{rounded}onednn"))
        elif _batch_minor():
            stack.enter_context(_channels_last_in(f"{rounded}products"))
        yield


@contextlib.contextmanager
def _channels_last_in(form: str) -> Iterator[None]:
    token = _form.set(form)
    try:
        with channels_last():
            yield
    finally:
        _form.reset(token)


def is_portable() -> bool:
    """Whether a program that leaves the process is traced: see `portable`."""
    return _portable.get()


def from_nhwc(x: Float[Array, "batch height width channels"]) -> Image:
    """Images in the platform's layout, from NHWC."""
    return jnp.transpose(x, (3, 1, 2, 0)) if _batch_minor() else x


def to_nhwc(x: Image) -> Float[Array, "batch height width channels"]:
    """Images in NHWC, from the platform's layout."""
    return jnp.transpose(x, (3, 1, 2, 0)) if _batch_minor() else x


def channel_axis() -> int:
    """The number of the channel axis in the platform's layout."""
    return 0 if _batch_minor() else 3


def per_channel(values: Float[Array, " channels"]) -> Float[Array, "_ 1 1 _"]:
    """One number per channel, shaped to broadcast against images in the platform's layout."""
    return values[:, None, None, None] if _batch_minor() else values[None, None, None, :]


def conv_size(size: Pair, kernel: Pair, stride: Pair = 1, padding: str = "SAME") -> tuple[int, int]:
    """(height, width) of the output of `conv`, or of pooling with that window, for an image of `size`.

    Raises:
        ConfigError: the padding is unknown, a number is below 1, or the kernel doesn't fit the image.
    """
    height, width = _axes(_pair("size", size), _pair("kernel", kernel), _pair("stride", stride), padding)
    return height.out, width.out


def conv(
    x: Image, kernel: Float[Array, "kh kw in_channels out_channels"], stride: Pair = 1, padding: str = "SAME"
) -> Image:
    """Convolution without dilation or bias, equal to `lax.conv_general_dilated`.

    Args:
        x: images in the platform's layout.
        kernel: height, width, in, out.
        stride: for both axes, or (height, width).
        padding: "SAME" (output ⌈size / stride⌉) or "VALID" (no padding).

    Raises:
        ConfigError: see `conv_size`.
        DataError: `x` doesn't have the kernel's number of input channels.
    """
    kh, kw, in_channels, out_channels = kernel.shape
    _check_channels(x, in_channels)
    window, stride = (kh, kw), _pair("stride", stride)
    axes = _axes(_size(x), window, stride, padding)
    pads = ((axes[0].low, axes[0].high), (axes[1].low, axes[1].high))
    if (form := _form_for(x)) is not None:
        if stride != (1, 1):
            x, kernel, pads = _to_phases(x, window, stride, axes), _phases_kernel(kernel, stride), ((0, 0), (0, 0))
        return _convolved(x, kernel, window=kernel.shape[:2], pads=pads, form=form)
    if _batch_minor() and products.rounding():
        places = _Places(window, stride, _size(x), (axes[0], axes[1]))
        return _rounded_conv(x, kernel.reshape(-1, out_channels), places=places)
    if (
        stride == (1, 1)
        and _winograd_fits(window, pads)
        and _winograd_pays(x, out_channels, batch_minor=_batch_minor())
    ):
        return winograd.convolve(x, kernel, batch_minor=_batch_minor())
    if _batch_minor():
        y = kernel.reshape(-1, out_channels).T @ _patches(x, window, stride, axes)
        return y.reshape(out_channels, axes[0].out, axes[1].out, x.shape[3])
    return lax.conv_general_dilated(x, kernel, stride, pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def conv_transpose(
    x: Image,
    kernel: Float[Array, "kh kw in_channels out_channels"],
    stride: Pair = 1,
    padding: str = "SAME",
    size: Pair | None = None,
) -> Image:
    """Transposed convolution: the adjoint of the `conv` that maps images of `size` to the size of `x`.

    That `conv` has the kernel `kernel[::-1, ::-1].swapaxes(2, 3)`, so that this one equals
    `lax.conv_transpose(x, kernel, …)` and Flax's layer (`transpose_kernel=False`) at their output size.

    Args:
        x: images in the platform's layout.
        kernel: height, width, in, out.
        stride: for both axes, or (height, width).
        padding: that of the adjoint `conv`, "SAME" or "VALID".
        size: (height, width) of the output. A `conv` with a stride maps several sizes to one, so `size` says
            which: 7 becomes 13 or 14 with stride 2 and "SAME". The default is that of `lax`: input size ×
            stride, and for "VALID" also plus (kernel − stride) where the kernel is larger.

    Raises:
        ConfigError: see `conv_size`; or `conv` doesn't map `size` to the size of `x`.
        DataError: `x` doesn't have the kernel's number of input channels.
    """
    kh, kw, in_channels, out_channels = kernel.shape
    _check_channels(x, in_channels)
    window, stride = (kh, kw), _pair("stride", stride)
    small = _size(x)
    if size is None:
        beyond = [max(k - s, 0) if padding == "VALID" else 0 for k, s in zip(window, stride, strict=True)]
        height, width = (n * s + b for n, s, b in zip(small, stride, beyond, strict=True))
        size = (height, width)
    else:
        size = _pair("size", size)
    axes = _axes(size, window, stride, padding)
    if tuple(axis.out for axis in axes) != small:
        raise errors.ConfigError(
            f"A transposed convolution can't make {size} of {small}: with kernel {window}, stride {stride} "
            f"and padding {padding!r}, a convolution maps {size} to {tuple(axis.out for axis in axes)}. "
            "Ask for the size that the mirrored convolution had as its input."
        )
    if _batch_minor():
        adjoint = kernel[::-1, ::-1].swapaxes(2, 3).reshape(-1, in_channels)
        if products.rounding():
            return _rounded_transpose(x, adjoint, places=_Places(window, stride, size, (axes[0], axes[1])))
        y = adjoint @ x.reshape(in_channels, -1)
        image = jax.ShapeDtypeStruct((out_channels, *size, x.shape[3]), y.dtype)
        (y,) = jax.linear_transpose(lambda image: _patches(image, window, stride, axes), image)(y)
        return y
    if (form := _form_for(x)) is not None:
        adjoint = _turned(_phases_kernel(_turned(kernel), stride))
        height, width = ((side - 1, side - 1) for side in adjoint.shape[:2])
        y = _convolved(x, adjoint, window=adjoint.shape[:2], pads=(height, width), form=form)
        image = jax.ShapeDtypeStruct((x.shape[0], *size, out_channels), y.dtype)
        (y,) = jax.linear_transpose(lambda image: _to_phases(image, window, stride, axes), image)(y)
        return y
    pads = [(k - 1 - axis.low, k - 1 - axis.high) for k, axis in zip(window, axes, strict=True)]
    if is_portable():
        x, stride = _spread(x, stride), (1, 1)
    return lax.conv_general_dilated(
        x, kernel, (1, 1), pads, lhs_dilation=stride, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _spread(x: Float[Array, "batch height width channels"], stride: tuple[int, int]) -> Array:
    """x with zeros between its pixels, which is what `lhs_dilation` means and what other runtimes get wrong."""
    batch, height, width, channels = x.shape
    across = [(0, 0, 0), (0, stride[0] - 1, 0), (0, 0, 0), (0, stride[1] - 1, 0), (0, 0, 0)]
    spread = lax.pad(jnp.expand_dims(x, (2, 4)), jnp.zeros((), x.dtype), [(0, 0, 0), *across])
    spread = spread.reshape(batch, height * stride[0], width * stride[1], channels)
    return lax.slice(spread, (0,) * 4, (batch, (height - 1) * stride[0] + 1, (width - 1) * stride[1] + 1, channels))


def depthwise_conv(x: Image, kernel: Float[Array, "kh kw channels"], stride: Pair = 1, padding: str = "SAME") -> Image:
    """Convolution of every channel by a kernel of its own, `lax.conv_general_dilated` with a group for each channel.

    Args:
        x: images in the platform's layout.
        kernel: height, width, channels.
        stride: for both axes, or (height, width).
        padding: as in `conv`.

    Raises:
        ConfigError: see `conv_size`.
        DataError: `x` doesn't have the kernel's number of channels.
    """
    kh, kw, channels = kernel.shape
    window, stride = (kh, kw), _pair("stride", stride)
    _check_channels(x, channels)
    axes = _axes(_size(x), window, stride, padding)
    if jax.default_backend() == "cpu" and not is_portable():
        form = _form_for(x)
        if form in ("onednn", "rounded onednn") and stride == (1, 1):
            pads = ((axes[0].low, axes[0].high), (axes[1].low, axes[1].high))
            return _onednn_depthwise(x, kernel, window=window, pads=pads, form=form)
        places = _Places(window, stride, _size(x), (axes[0], axes[1]))
        return _depthwise(x, kernel, places=places, channel_axis=channel_axis())
    pads = [(axis.low, axis.high) for axis in axes]
    return lax.conv_general_dilated(
        x, kernel[:, :, None], stride, pads, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=channels
    )


def max_pool(x: Image, window: Pair = 2, stride: Pair = 2, padding: str = "VALID") -> Image:
    """Maximum over windows; padding never counts. Among equal values the gradient goes to the first in reading order.

    Raises:
        ConfigError: see `conv_size`.
    """
    window, stride = _pair("window", window), _pair("stride", stride)
    axes = _axes(_size(x), window, stride, padding)
    if _batch_minor():
        return functools.reduce(_first_maximum, _taps(x, window, stride, axes, fill=-jnp.inf))
    return _reduce_window(x, -jnp.inf, lax.max, window, stride, axes)


def avg_pool(x: Image, window: Pair = 2, stride: Pair = 2, padding: str = "VALID") -> Image:
    """Mean over windows, of the pixels inside the image: padding is not counted.

    Raises:
        ConfigError: see `conv_size`.
    """
    window, stride = _pair("window", window), _pair("stride", stride)
    axes = _axes(_size(x), window, stride, padding)
    if _batch_minor():
        total = functools.reduce(jnp.add, _taps(x, window, stride, axes))
    else:
        total = _reduce_window(x, 0.0, lax.add, window, stride, axes)
    rows, columns = (_pixels_in_window(*sizes) for sizes in zip(x.shape[1:3], window, stride, axes, strict=True))
    return total / jnp.asarray(np.outer(rows, columns)[None, :, :, None], x.dtype)


def upsample(x: Image, factor: Pair = 2, size: Pair | None = None) -> Image:
    """Every pixel repeated `factor` times along height and width (nearest neighbour), cropped to `size` if given.

    Cropping mirrors a "SAME" pooling of odd sizes: 4 becomes 7 or 8.

    Raises:
        ConfigError: a number is below 1, or `size` is not one that "SAME" pooling by `factor` maps to that of `x`.
    """
    factor = _pair("factor", factor)
    small = _size(x)
    full = tuple(n * f for n, f in zip(small, factor, strict=True))
    height, width = full if size is None else _pair("size", size)
    if conv_size((height, width), 1, factor) != small:
        raise errors.ConfigError(
            f"Upsampling {small} by {factor} gives {full}, which can't be cropped to {(height, width)}: "
            "the size has to be that by less than one factor."
        )
    return jnp.repeat(jnp.repeat(x, factor[0], axis=1), factor[1], axis=2)[:, :height, :width]


class Conv(nnx.Module):
    """`conv` with a kernel and, mostly, a bias. Images are in the platform's layout.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel: height and width of the kernel; one number for a square.
        stride: as in `conv`.
        padding: as in `conv`.
        bias: whether there is one.
        rngs: gives the key for the kernel (LeCun normal); the bias starts at zero.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Pair = 3,
        stride: Pair = 1,
        padding: str = "SAME",
        *,
        bias: bool = True,
        rngs: nnx.Rngs,
    ):
        self.kernel = _kernel(in_channels, out_channels, kernel, rngs)
        self.bias = nnx.Param(jnp.zeros(out_channels)) if bias else None
        self.stride = stride
        self.padding = padding

    def __call__(self, x: Image) -> Image:
        y = conv(x, self.kernel[...], self.stride, self.padding)
        return y if self.bias is None else y + per_channel(self.bias[...])


class ConvTranspose(nnx.Module):
    """`conv_transpose` with a kernel and, mostly, a bias. Images are in the platform's layout.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel: height and width of the kernel; one number for a square.
        stride: as in `conv_transpose`.
        padding: as in `conv_transpose`.
        size: (height, width) of the output, as in `conv_transpose`.
        bias: whether there is one.
        rngs: gives the key for the kernel (LeCun normal); the bias starts at zero.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Pair = 3,
        stride: Pair = 1,
        padding: str = "SAME",
        size: Pair | None = None,
        *,
        bias: bool = True,
        rngs: nnx.Rngs,
    ):
        self.kernel = _kernel(in_channels, out_channels, kernel, rngs)
        self.bias = nnx.Param(jnp.zeros(out_channels)) if bias else None
        self.stride = stride
        self.padding = padding
        self.size = size

    def __call__(self, x: Image) -> Image:
        y = conv_transpose(x, self.kernel[...], self.stride, self.padding, self.size)
        return y if self.bias is None else y + per_channel(self.bias[...])


class DepthwiseConv(nnx.Module):
    """`depthwise_conv` with a kernel and, mostly, a bias. Images are in the platform's layout.

    Args:
        channels: of input and output.
        kernel: height and width of the kernel; one number for a square.
        stride: as in `depthwise_conv`.
        padding: as in `depthwise_conv`.
        bias: whether there is one.
        rngs: gives the key for the kernel (LeCun normal); the bias starts at zero.
    """

    def __init__(
        self,
        channels: int,
        kernel: Pair = 3,
        stride: Pair = 1,
        padding: str = "SAME",
        *,
        bias: bool = True,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(_kernel(1, channels, kernel, rngs)[...][:, :, 0])
        self.bias = nnx.Param(jnp.zeros(channels)) if bias else None
        self.stride = stride
        self.padding = padding

    def __call__(self, x: Image) -> Image:
        y = depthwise_conv(x, self.kernel[...], self.stride, self.padding)
        return y if self.bias is None else y + per_channel(self.bias[...])


def _kernel(in_channels: int, out_channels: int, kernel: Pair, rngs: nnx.Rngs) -> nnx.Param:
    shape = (*_pair("kernel", kernel), in_channels, out_channels)
    return nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), shape))


class _Axis(NamedTuple):
    """The windows along one axis: how many there are, and the padding around the image (below 0: cropping)."""

    out: int
    low: int
    high: int


def _axes(size: tuple[Any, Any], window: tuple[int, int], stride: tuple[int, int], padding: str) -> list[_Axis]:
    if padding not in ("SAME", "VALID"):
        raise errors.ConfigError(errors.unknown("padding", padding, ("SAME", "VALID")))
    axes = []
    for n, k, s in zip(size, window, stride, strict=True):
        out = -(-n // s) if padding == "SAME" else (n - k) // s + 1
        if out < 1:
            raise errors.ConfigError(
                f"A window of {window} does not fit an image of {size}. "
                'Take a smaller window, fewer layers, or padding "SAME".'
            )
        covered = (out - 1) * s + k
        low = max(covered - n, 0) // 2
        axes.append(_Axis(out, low, covered - n - low))
    return axes


def _taps(
    x: Shaped[Array, "channels height width batch"],
    window: tuple[int, int],
    stride: tuple[int, int],
    axes: list[_Axis],
    fill: float = 0.0,
) -> list[Shaped[Array, "channels out_height out_width batch"]]:
    """For each place in the window, row by row, the pixels of the image that it covers.

    The image is split by its phase modulo the stride, and a tap is a slice of one phase. A strided slice would give
    the same, but its adjoint is a scatter; that of a split is a concatenation, which is several times faster.
    """
    channels, height, width, batch = x.shape
    (kh, kw), (sh, sw) = window, stride
    rows, columns = (axis.out + (k - 1) // s for axis, k, s in zip(axes, window, stride, strict=True))
    low_high = [
        (axis.low, n * s - size - axis.low, 0)
        for axis, n, s, size in zip(axes, (rows, columns), stride, (height, width), strict=True)
    ]
    x = lax.pad(x, jnp.asarray(fill, x.dtype), ((0, 0, 0), *low_high, (0, 0, 0)))
    x = x.reshape(channels, rows, sh, columns, sw, batch)
    phases = [
        [phase.reshape(channels, rows, columns, batch) for phase in lax.split(row_phase, (1,) * sw, axis=4)]
        for row_phase in lax.split(x, (1,) * sh, axis=2)
    ]
    return [
        phases[i % sh][j % sw][:, i // sh : i // sh + axes[0].out, j // sw : j // sw + axes[1].out]
        for i in range(kh)
        for j in range(kw)
    ]


def _patches(
    x: Shaped[Array, "channels height width batch"],
    window: tuple[int, int],
    stride: tuple[int, int],
    axes: list[_Axis],
) -> Shaped[Array, "pixels places"]:
    """The pixels under the window, one column for each position of the window (im2col). Linear in `x`."""
    patches = jnp.concatenate(_taps(x, window, stride, axes))
    return patches.reshape(patches.shape[0], -1)


Pads = tuple[tuple[int, int], tuple[int, int]]
Kernel = Float[Array, "kh kw in_channels out_channels"]


@functools.partial(jax.jit, static_argnames=("window", "pads", "form"))
def _convolve(x: Image, kernel: Kernel, *, window: tuple[int, int], pads: Pads, form: str) -> Image:
    """A convolution of stride 1, channels last, in a form of `many_channels`."""
    (kh, kw), in_channels, out_channels = window, kernel.shape[2], kernel.shape[3]
    if form == "rounded products":
        return _convolve_rounded(x, kernel, pads)
    fits = _winograd_fits(window, pads)
    pays = functools.partial(_winograd_pays, x, out_channels, batch_minor=False)
    if form == "onednn" and fits and pays(least=_beside_onednn().images):
        return winograd.convolve(x, kernel, batch_minor=False, multiply=onednn.multiply)
    if "onednn" in form and (window != (1, 1) or _beside_onednn().pointwise):
        return onednn.convolve(*_for_onednn(form, x, kernel), pads=pads)
    if fits and pays():
        return winograd.convolve(x, kernel, batch_minor=False)
    batch, height, width = _convolved_size(x, (kh, kw), pads)
    x = _padded(x, pads)
    taps = [x[:, i : i + height, j : j + width] for i in range(kh) for j in range(kw)]
    patches = taps[0] if len(taps) == 1 else jnp.concatenate(taps, axis=3)
    y = patches.reshape(-1, kh * kw * in_channels) @ kernel.reshape(-1, out_channels)
    return y.reshape(batch, height, width, out_channels)


@functools.partial(jax.jit, static_argnames=("window", "pads", "form"))
def _correlate(x: Image, gradient: Image, *, window: tuple[int, int], pads: Pads, form: str) -> Kernel:
    """The gradient for the kernel of `_convolve`, from x and its result's gradient.

    Where Winograd's don't pay, it is one product, of x at the kernel's rows with the gradient at its columns: kh + kw
    copies instead of kh × kw.
    """
    (kh, kw), in_channels, out_channels = window, x.shape[3], gradient.shape[3]
    if form == "rounded products":
        return _correlate_rounded(x, gradient, window, pads)
    fits = _winograd_fits(window, pads)
    pays = functools.partial(_winograd_pays, x, out_channels, batch_minor=False)
    if form == "onednn" and fits and pays(least=_beside_onednn().kernels):
        return winograd.to_kernel(x, gradient, onednn.multiply_transposed)
    if "onednn" in form:
        return onednn.to_kernel(*_for_onednn(form, x, gradient), window=window, pads=pads)
    if fits and pays():
        return winograd.to_kernel(x, gradient)
    tall = _padded(x, (pads[0], (0, 0)))
    wide = _padded(gradient, ((0, 0), _beyond(window, pads)[1]))
    height, width = gradient.shape[1], x.shape[2]
    rows = jnp.concatenate([tall[:, i : i + height] for i in range(kh)], axis=3)
    columns = jnp.concatenate([wide[:, :, j : j + width] for j in reversed(range(kw))], axis=3)
    product = rows.reshape(-1, kh * in_channels).T @ columns.reshape(-1, kw * out_channels)
    return product.reshape(kh, in_channels, kw, out_channels).transpose(0, 2, 1, 3)


def _to_image(y: Image, kernel: Kernel, *, window: tuple[int, int], pads: Pads, form: str) -> Image:
    """The gradient for the image of `_convolve`: a convolution with the kernel turned."""
    return _convolve(y, _turned(kernel), window=window, pads=_beyond(window, pads), form=form)


# JAX's derivatives of sums of slices are slow.
_convolved, _ = bilinear("convolve", _convolve, _to_image, _correlate)


def _convolve_rounded(x: Image, kernel: Kernel, pads: Pads) -> Image:
    """One product, of x at the kernel's columns, for each row of it, whose results are added afterwards: kw copies."""
    kh, kw, in_channels, out_channels = kernel.shape
    batch, height, width = _convolved_size(x, (kh, kw), pads)
    x = _padded(_bits(x), pads)
    columns = lax.optimization_barrier(jnp.concatenate([x[:, :, j : j + width] for j in range(kw)], axis=3))
    by_row = products.rounded(kernel).reshape(kh, -1, out_channels).swapaxes(0, 1).reshape(-1, kh * out_channels)
    y = products.dot(_from_bits(columns).reshape(-1, kw * in_channels), by_row)
    y = y.reshape(batch, x.shape[1], width, kh, out_channels)
    return functools.reduce(jnp.add, (y[:, i : i + height, :, i] for i in range(kh)))


def _correlate_rounded(x: Image, gradient: Image, window: tuple[int, int], pads: Pads) -> Kernel:
    """One product, of x with the gradient at all of the kernel's places, so that x alone is transposed."""
    (kh, kw), (_, height, width, in_channels) = window, x.shape
    gradient = _padded(_bits(gradient), _beyond(window, pads))
    taps = [gradient[:, i : i + height, j : j + width] for i in reversed(range(kh)) for j in reversed(range(kw))]
    taps = jnp.concatenate(taps, axis=3)
    across = lax.optimization_barrier(_bits(x).reshape(-1, in_channels).T)
    product = products.dot(_from_bits(across), _from_bits(taps).reshape(across.shape[1], -1))
    return product.reshape(in_channels, kh, kw, -1).transpose(1, 2, 0, 3)


def _bits(x: Float[Array, "*shape"]) -> UInt16[Array, "*shape"]:
    """x in bfloat16, as whole numbers, which XLA moves as they are; bfloat16 it converts to float32 and back."""
    return lax.bitcast_convert_type(products.rounded(x), jnp.uint16)


def _from_bits(a: UInt16[Array, "*shape"]) -> BFloat16[Array, "*shape"]:
    return lax.bitcast_convert_type(a, jnp.bfloat16)


class _Places(NamedTuple):
    """Where the windows of a convolution of images of `size` are: what `_patches` takes."""

    window: tuple[int, int]
    stride: tuple[int, int]
    size: tuple[int, int]
    axes: tuple[_Axis, _Axis]

    def taps(self, x: Shaped[Array, "_ height width _"]) -> list[Shaped[Array, "_ out_height out_width _"]]:
        return _taps(x, self.window, self.stride, list(self.axes))

    def patches(self, x: Shaped[Array, "channels height width batch"]) -> Shaped[Array, "pixels places"]:
        return _patches(x, self.window, self.stride, list(self.axes))


def _over(x: Image, matrix: Float[Array, "pixels out_channels"], *, places: _Places) -> Image:
    """A convolution, batch last, whose product is rounded."""
    y = products.dot(products.rounded(matrix).T, _from_bits(places.patches(_bits(x))))
    return y.reshape(-1, places.axes[0].out, places.axes[1].out, x.shape[3])


def _spread_over(y: Image, matrix: Float[Array, "pixels out_channels"], *, places: _Places) -> Image:
    """Its adjoint for the image, and a transposed convolution."""
    # The barrier keeps XLA from computing what y is made of by numbers of places, which are slow to take apart.
    flat = lax.optimization_barrier(products.rounded(y)).reshape(y.shape[0], -1)
    patches = products.dot(products.rounded(matrix), flat)
    channels = matrix.shape[0] // math.prod(places.window)
    image = jax.ShapeDtypeStruct((channels, *places.size, y.shape[3]), patches.dtype)
    (x,) = jax.linear_transpose(places.patches, image)(patches)
    return x


def _between(x: Image, y: Image, *, places: _Places) -> Float[Array, "pixels out_channels"]:
    """Its adjoint for the matrix."""
    flat = products.rounded(y).reshape(y.shape[0], -1)
    return products.dot_transposed(_from_bits(places.patches(_bits(x))), flat)


_rounded_conv, _rounded_transpose = bilinear("rounded_convolve", _over, _spread_over, _between)


def _form_for(x: Image) -> str | None:
    """The form of convolutions of x: see `many_channels`. oneDNN's are of float32, which they may round."""
    form = _form.get()
    return form if form is None or "onednn" not in form or x.dtype == jnp.float32 else None


def _for_onednn(form: str, *arrays: Array) -> list[Array]:
    return [products.rounded(a) if form == "rounded onednn" else a for a in arrays]


def _padded(x: Shaped[Array, "batch height width channels"], pads: Pads) -> Array:
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)))


def _convolved_size(x: Any, window: tuple[int, int], pads: Pads) -> tuple[int, int, int]:
    height, width = (n + sum(pad) - k + 1 for n, k, pad in zip(x.shape[1:3], window, pads, strict=True))
    return x.shape[0], height, width


def _beyond(window: tuple[int, int], pads: Pads) -> Pads:
    """The padding of the convolution with the kernel turned that is the adjoint."""
    height, width = ((k - 1 - low, k - 1 - high) for k, (low, high) in zip(window, pads, strict=True))
    return height, width


def _turned(kernel: Float[Array, "kh kw in_channels out_channels"]) -> Float[Array, "kh kw out_channels in_channels"]:
    return kernel[::-1, ::-1].swapaxes(2, 3)


def _to_phases(x: Image, window: tuple[int, int], stride: tuple[int, int], axes: list[_Axis]) -> Image:
    """x with the pixels of a stride as channels, padded, for a convolution of stride 1 by `_phases_kernel`."""
    batch, height, width, channels = x.shape
    rows, columns = (axis.out + (k - 1) // s for axis, k, s in zip(axes, window, stride, strict=True))
    low_high = [
        (axis.low, n * s - size - axis.low, 0)
        for axis, n, s, size in zip(axes, (rows, columns), stride, (height, width), strict=True)
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *low_high, (0, 0, 0)))
    x = x.reshape(batch, rows, stride[0], columns, stride[1], channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, -1)


def _phases_kernel(kernel: Float[Array, "kh kw in_channels out_channels"], stride: tuple[int, int]) -> Array:
    """The kernel of stride 1 for what `_to_phases` gives; its sides are those of the kernel in strides, rounded up."""
    kh, kw, in_channels, out_channels = kernel.shape
    kernel = jnp.pad(kernel, ((0, -kh % stride[0]), (0, -kw % stride[1]), (0, 0), (0, 0)))
    kernel = kernel.reshape(-(-kh // stride[0]), stride[0], -(-kw // stride[1]), stride[1], in_channels, out_channels)
    return kernel.transpose(0, 2, 1, 3, 4, 5).reshape(kernel.shape[0], kernel.shape[2], -1, out_channels)


ROWS = 16  # added up as whole arrays, because XLA's sums along an axis on CPU take one number at a time


def _depthwise_over(x: Image, kernel: Float[Array, "kh kw channels"], *, places: _Places, channel_axis: int) -> Image:
    """A depthwise convolution: taps times numbers, which XLA makes one loop."""
    shape = [-1 if axis == channel_axis else 1 for axis in range(4)]
    weights = kernel.reshape(-1, kernel.shape[2])
    return functools.reduce(
        jnp.add, (tap * of_tap.reshape(shape) for tap, of_tap in zip(places.taps(x), weights, strict=True))
    )


def _depthwise_back(y: Image, kernel: Float[Array, "kh kw channels"], *, places: _Places, channel_axis: int) -> Image:
    """Its adjoint for the image."""
    if places.stride == (1, 1):
        beyond = _beyond(places.window, ((places.axes[0].low, places.axes[0].high), places.axes[1][1:]))
        turned = [_Axis(n, *pad) for n, pad in zip(places.size, beyond, strict=True)]
        places = _Places(places.window, (1, 1), _size(y), (turned[0], turned[1]))
        return _depthwise_over(y, kernel[::-1, ::-1], places=places, channel_axis=channel_axis)
    batch = y.shape[3 - channel_axis]
    shape = (kernel.shape[2], *places.size, batch) if channel_axis == 0 else (batch, *places.size, kernel.shape[2])
    over = functools.partial(_depthwise_over, kernel=kernel, places=places, channel_axis=channel_axis)
    (x,) = jax.linear_transpose(over, jax.ShapeDtypeStruct(shape, y.dtype))(y)
    return x


def _depthwise_kernel(x: Image, y: Image, *, places: _Places, channel_axis: int) -> Float[Array, "kh kw channels"]:
    """Its adjoint for the kernel."""
    (_, rows, columns, _), channels, (down, across) = y.shape, y.shape[channel_axis], places.stride
    # XLA would pad once for each tap, with a question for each number; what is written into zeros, it keeps.
    (_, low, high), (_, left, right) = places.axes
    shape = (x.shape[0], x.shape[1] + low + max(high, 0), x.shape[2] + left + max(right, 0), x.shape[3])
    x = lax.dynamic_update_slice(jnp.zeros(shape, x.dtype), x, (0, low, left, 0))

    def added(i: int, j: int, firsts: range, stop: int) -> Float[Array, " channels"]:
        """The sum over rows to `stop`, every so many from each of the first ones on."""
        parts, every = [], len(firsts)
        for first in firsts:
            of_y = y[:, first:stop:every]
            top, last = i + down * first, i + down * (first + every * (of_y.shape[1] - 1))
            limits = (x.shape[0], last + 1, j + across * (columns - 1) + 1, x.shape[3])
            parts.append(lax.slice(x, (0, top, j, 0), limits, (1, down * every, across, 1)) * of_y)
        total = functools.reduce(jnp.add, parts)
        if channel_axis == 0:
            return (total.reshape(channels, -1) @ jnp.ones((total.size // channels, 1), total.dtype))[:, 0]
        return (jnp.ones((1, total.size // channels), total.dtype) @ total.reshape(-1, channels))[0]

    (kh, kw), whole = places.window, rows - rows % ROWS
    groups = [group for group in ((range(ROWS), whole), (range(whole, rows), rows)) if group[1] > group[0].start]
    found = []
    for i, j in itertools.product(range(kh), range(kw)):
        found.append(functools.reduce(jnp.add, (added(i, j, *group) for group in groups)))
    return jnp.stack(found).reshape(kh, kw, channels)


_depthwise, _ = bilinear("depthwise_convolve", _depthwise_over, _depthwise_back, _depthwise_kernel)


def _onednn_over(
    x: Image, kernel: Float[Array, "kh kw channels"], *, window: tuple[int, int], pads: Pads, form: str
) -> Image:
    """A depthwise convolution of stride 1 by oneDNN."""
    return onednn.convolve(*_for_onednn(form, x, kernel[:, :, None]), pads=pads)


def _onednn_back(
    y: Image, kernel: Float[Array, "kh kw channels"], *, window: tuple[int, int], pads: Pads, form: str
) -> Image:
    """Its adjoint for the image."""
    return _onednn_over(y, kernel[::-1, ::-1], window=window, pads=_beyond(window, pads), form=form)


def _onednn_kernel(
    x: Image, y: Image, *, window: tuple[int, int], pads: Pads, form: str
) -> Float[Array, "kh kw channels"]:
    """Its adjoint for the kernel."""
    return onednn.to_kernel(*_for_onednn(form, x, y), window=window, pads=pads, groups=x.shape[3])[:, :, 0]


_onednn_depthwise, _ = bilinear("depthwise_by_onednn", _onednn_over, _onednn_back, _onednn_kernel)


LEAST_TILES = 256  # of all images, for which products with a tile's 36 numbers are large enough to be fast
LEAST_CHANNELS = 16  # in and out, for which the products take longer than the transforms


class _BesideOnednn(NamedTuple):
    """Where oneDNN's convolutions are faster than ours: for fewer channels than Winograd's, and for 1 × 1 or not."""

    images: int  # channels, also for the images' gradients
    kernels: int  # channels, for the kernels' gradients
    pointwise: bool  # for images


WITH_AVX512 = _BesideOnednn(images=48, kernels=96, pointwise=True)
WITH_AVX2 = _BesideOnednn(images=48, kernels=32, pointwise=False)


def _beside_onednn() -> _BesideOnednn:
    return WITH_AVX512 if onednn.with_avx512() else WITH_AVX2


def _winograd_fits(window: tuple[int, int], pads: Pads) -> bool:
    """Whether a convolution of stride 1 is one that Winograd's are for, on a platform that they are for."""
    return (window, pads) == ((3, 3), ((1, 1), (1, 1))) and jax.default_backend() == "cpu" and not is_portable()


def _winograd_pays(x: Image, channels: int, *, batch_minor: bool, least: int = LEAST_CHANNELS) -> bool:
    """Whether it does for a convolution of x to so many channels, and for its gradients. float32 alone has the digits.

    Measured by `python -m benchmarks.convolutions --shapes`.
    """
    batch, own = (x.shape[3], x.shape[0]) if batch_minor else (x.shape[0], x.shape[3])
    tiles = -(-x.shape[1] // 4) * -(-x.shape[2] // 4) * batch
    return x.dtype == jnp.float32 and tiles >= LEAST_TILES and min(own, channels) >= least


def _reduce_window(
    x: Float[Array, "batch height width channels"],
    start: float,
    operation: Callable,
    window: tuple[int, int],
    stride: tuple[int, int],
    axes: list[_Axis],
) -> Float[Array, "batch out_height out_width channels"]:
    pads = [(0, 0), *((axis.low, max(axis.high, 0)) for axis in axes), (0, 0)]
    return lax.reduce_window(x, start, operation, (1, *window, 1), (1, *stride, 1), pads)


def _first_maximum(a: Array, b: Array) -> Array:
    # `jnp.maximum` would halve the gradient between equals; after a relu, equals are common.
    return jnp.where((a >= b) | jnp.isnan(a), a, b)


def _pixels_in_window(size: int, window: int, stride: int, axis: _Axis) -> np.ndarray:
    start = np.arange(axis.out) * stride - axis.low
    return np.minimum(start + window, size) - np.maximum(start, 0)


def _size(x: Image) -> tuple[Any, Any]:  # symbols, where a program for any size is traced
    _, height, width, _ = x.shape
    return height, width


def _pair(what: str, value: Pair) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(n, int) and n >= 1 for n in pair):
        raise errors.ConfigError(f"{what} is {value}; it has to be a whole number above 0, or a pair of them.")
    return pair


def _check_channels(x: Array, in_channels: int) -> None:
    channels = x.shape[0] if _batch_minor() else x.shape[3]
    if channels != in_channels:
        raise errors.DataError(
            f"The images have {channels} channels and the kernel takes {in_channels}. "
            "Give the layer that many, and bring [batch, height, width, channels] in by `from_nhwc`."
        )
