"""How noisy an image is, told from the image alone."""

import numpy as np
from jaxtyping import Float

from flaxae import errors

# Daubechies' wavelet of four coefficients, the high-pass: smooth parts of an image leave nothing in it.
_HIGH = np.array([-0.12940952255, -0.22414386804, 0.83651630374, -0.48296291314])
_NOTHING = 1e-9
_NORMAL_MEDIAN = 0.6744897501960817  # of |z|, z normal


def noise_level(image: Float[np.ndarray, "height width channels"]) -> float:
    """The standard deviation of an image's noise, if that is white: the same at every pixel, and independent.

    The median of the finest diagonal wavelet coefficients' sizes (Donoho & Johnstone 1994), the mean over the channels:
    few of them are of edges. Of textures, more are, so that an image without noise may be told to have some: up to 0.01
    where 1 is white.

    Raises:
        DataError: the image is smaller than 8 × 8 pixels.
    """
    height, width, channels = image.shape
    if min(height, width) < 8:
        raise errors.DataError(
            f"An image of {height} × {width} pixels is too small to tell its noise from. Say how noisy the images are."
        )
    levels = []
    for channel in range(channels):
        detail = image[..., channel].astype(np.float64)
        for axis in (0, 1):
            windows = np.lib.stride_tricks.sliding_window_view(detail, 4, axis=axis)
            detail = (windows[::2] if axis == 0 else windows[:, ::2]) @ _HIGH
        sizes = np.abs(detail)
        sizes = sizes[sizes > _NOTHING]  # clipped and flat parts have none
        levels.append(np.median(sizes) / _NORMAL_MEDIAN if sizes.size else 0.0)
    return float(np.mean(levels))
