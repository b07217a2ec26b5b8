"""How close reconstructed images are to the clean ones: MSE, PSNR, SSIM, MS-SSIM; and codecs compared by that.

Each gives one number per image. Results are quoted as the mean over the images of a set; for PSNR that is
not the PSNR of the mean error.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flaxae.errors import DataError

PSNR_CEILING_DB = 100.0  # 8-bit pixels differ at 59 dB; what float32 can't tell apart lies above 130 dB

_SSIM_WINDOW, _SSIM_SIGMA = 11, 1.5
_SCALE_POWERS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_SSIM_VALUES_AT_ONCE = 2**19  # bounds the memory of the intermediate maps to some tens of MB

_Images = Float[Array | np.ndarray, "*batch height width channels"]


@jax.jit
def mse(reconstruction: _Images, reference: _Images) -> Float[Array, "*batch"]:
    """Mean squared error per pixel of each image: [*batch, height, width, channels] -> [*batch].

    Raises DataError if the two differ in shape, are empty, or are not floating point.
    """
    reconstruction, reference = _checked(reconstruction, reference)
    return jnp.mean(jnp.square(reconstruction - reference), axis=(-3, -2, -1))


@functools.partial(jax.jit, static_argnames="peak")
def psnr(reconstruction: _Images, reference: _Images, peak: float = 1.0) -> Float[Array, "*batch"]:
    """Peak signal-to-noise ratio of each image, in dB: [*batch, height, width, channels] -> [*batch].

    10 log10(peak² / MSE), where `peak` is the largest value a pixel can take. A perfect image would have
    infinite PSNR and make every mean infinite, so values are limited to 100 dB.
    Raises DataError like `mse`.
    """
    floor = 10 ** (-PSNR_CEILING_DB / 10)
    return -10.0 * jnp.log10(jnp.maximum(mse(reconstruction, reference) / peak**2, floor))


@functools.partial(jax.jit, static_argnames="peak")
def ssim(reconstruction: _Images, reference: _Images, peak: float = 1.0) -> Float[Array, "*batch"]:
    """Structural similarity of each image, at most 1: [*batch, height, width, channels] -> [*batch].

    As Wang et al. 2004: an 11 × 11 Gaussian window of standard deviation 1.5, K1 = 0.01, K2 = 0.03, and the
    mean over all windows that lie inside the image and over channels. Along a side shorter than 11 pixels the
    window has the largest odd length that fits. `peak` is the largest value a pixel can take.
    Raises DataError like `mse`.
    """
    reconstruction, reference = _checked(reconstruction, reference)
    *batch, height, width, channels = reference.shape
    images = (-1, height, width, channels)
    of_pair = jax.lax.map(
        lambda pair: _ssim_of_image(*pair, peak=peak),
        (reconstruction.reshape(images), reference.reshape(images)),
        batch_size=max(1, _SSIM_VALUES_AT_ONCE // (height * width * channels)),
    )
    return of_pair.reshape(batch)


def ms_ssim(
    reconstruction: Float[np.ndarray, "height width channels"],
    reference: Float[np.ndarray, "height width channels"],
    peak: float = 1.0,
) -> float:
    """Multi-scale structural similarity of one image, at most 1, by NumPy: images have many sizes.

    As Wang et al. 2003, eq. 7: contrast and structure at five scales, each half of the one before, and luminance at the
    last, to the powers of the paper; the mean over windows, as in `ssim`, and over channels. An image whose shorter
    side is below 176 pixels has as many scales as leave it 11 pixels, with powers that sum to 1.
    Raises DataError if the two differ in shape, or have a side below 11 pixels.
    """
    if reconstruction.shape != reference.shape or min(reference.shape[:2]) < _SSIM_WINDOW:
        raise DataError(
            f"Can't compare an image of shape {reconstruction.shape} with one of {reference.shape}: give two of one "
            f"shape, of at least {_SSIM_WINDOW} pixels a side."
        )
    scales = min(len(_SCALE_POWERS), int(np.log2(min(reference.shape[:2]) / _SSIM_WINDOW)) + 1)
    powers = np.array(_SCALE_POWERS[:scales]) / sum(_SCALE_POWERS[:scales])
    found = []
    for x, y in zip(np.moveaxis(reconstruction, -1, 0), np.moveaxis(reference, -1, 0), strict=True):
        similarity = 1.0
        for scale, power in enumerate(powers):
            whole, structure = _similarities(x.astype(np.float64), y.astype(np.float64), peak)
            similarity *= max(whole if scale == scales - 1 else structure, 0.0) ** power
            x, y = (_halved(image) for image in (x, y))
        found.append(similarity)
    return float(np.mean(found))


def _similarities(x: Float[np.ndarray, "h w"], y: Float[np.ndarray, "h w"], peak: float) -> tuple[float, float]:
    """The mean similarity, and that of contrast and structure alone."""
    from scipy import ndimage

    def mean(image: np.ndarray) -> np.ndarray:
        for axis in (0, 1):
            image = ndimage.correlate1d(image, _ssim_weights(_SSIM_WINDOW), axis=axis)
        edge = _SSIM_WINDOW // 2
        return image[edge:-edge, edge:-edge]

    mean_x, mean_y = mean(x), mean(y)
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    covariance = mean(x * y) - mean_x * mean_y
    structure = (2 * covariance + c2) / (mean(x * x) - mean_x**2 + mean(y * y) - mean_y**2 + c2)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return float(np.mean(luminance * structure)), float(np.mean(structure))


def _halved(image: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "half_h half_w"]:
    height, width = (side // 2 for side in image.shape)
    return image[: 2 * height, : 2 * width].reshape(height, 2, width, 2).mean(axis=(1, 3))


def bd_rate(
    bits: Float[np.ndarray, " points"],
    quality: Float[np.ndarray, " points"],
    anchor_bits: Float[np.ndarray, " anchors"],
    anchor_quality: Float[np.ndarray, " anchors"],
) -> float:
    """How many percent more bits a codec takes than another of the same quality; below 0 for fewer (Bjøntegaard 2001).

    The mean difference of the logs of the bits over the qualities that both have, by piecewise cubic interpolation.

    Args:
        bits: of each setting of the codec, a pixel or in all.
        quality: of each, such as PSNR in dB.
        anchor_bits, anchor_quality: of the other codec.

    Raises:
        DataError: they have no quality in common, or a curve has fewer than two points.
    """
    from scipy.interpolate import PchipInterpolator

    logs, spans = [], []
    for numbers, qualities in ((bits, quality), (anchor_bits, anchor_quality)):
        distinct, first = np.unique(qualities, return_index=True)
        if len(distinct) < 2:
            raise DataError("A curve has fewer than two points: give more settings of each codec.")
        logs.append(PchipInterpolator(distinct, np.log(numbers[first])))
        spans.append((distinct[0], distinct[-1]))
    low, high = max(span[0] for span in spans), min(span[1] for span in spans)
    if low >= high:
        raise DataError(f"The codecs have no quality in common: {spans[0]} and {spans[1]}.")
    difference = (logs[0].integrate(low, high) - logs[1].integrate(low, high)) / (high - low)
    return float(100 * np.expm1(difference))


def _ssim_of_image(
    x: Float[Array, "height width channels"], y: Float[Array, "height width channels"], *, peak: float
) -> Float[Array, ""]:
    rows, columns = _window_means(x.shape[0]), _window_means(x.shape[1])

    def mean(image):
        return jnp.einsum("ih,hwc,jw->ijc", rows, image, columns, precision=jax.lax.Precision.HIGHEST)

    shift_x, shift_y = x.mean(), y.mean()  # subtracted, so that less is lost to rounding below
    x, y = x - shift_x, y - shift_y
    mean_x, mean_y = mean(x), mean(y)
    variance_x = mean(x * x) - mean_x**2
    variance_y = mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    mean_x, mean_y = mean_x + shift_x, mean_y + shift_y
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    contrast_structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return jnp.mean(luminance * contrast_structure)


def _window_means(size: int) -> Float[np.ndarray, "windows size"]:
    """The banded matrix that takes Gaussian-weighted means along one side of an image.

    Two such products are the separable filter; on a CPU they are much faster than a convolution.
    """
    taps = min(_SSIM_WINDOW, size if size % 2 else size - 1)
    weights = _ssim_weights(taps)
    windows = size - taps + 1
    return np.stack([np.pad(weights, (i, windows - 1 - i)) for i in range(windows)]).astype(np.float32)


def _ssim_weights(taps: int) -> Float[np.ndarray, " taps"]:
    weights = np.exp(-0.5 * np.square((np.arange(taps) - taps // 2) / _SSIM_SIGMA))
    return weights / weights.sum()


def _checked(reconstruction: _Images, reference: _Images) -> tuple[Array, Array]:
    if reconstruction.shape != reference.shape or reference.ndim < 3 or 0 in reference.shape:
        raise DataError(
            f"Can't compare images of shape {reconstruction.shape} with images of shape {reference.shape}: "
            "give two non-empty sets of the same shape [*batch, height, width, channels]."
        )
    for images in (reconstruction, reference):
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise DataError(f"Can't compare images of dtype {images.dtype}: scale both to floating point in [0, peak].")
    return jnp.asarray(reconstruction, jnp.float32), jnp.asarray(reference, jnp.float32)
