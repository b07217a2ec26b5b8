"""What an autoencoder has to beat: simple filters, the principal subspace, the best linear map.

scipy and scikit-learn do the work. Nothing is fitted or chosen on the examples being denoised, and the
linear ones don't clip what they return to the range of the data.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from flaxae.errors import ConfigError, DataError

WINDOWS, DEGREES = (3, 5, 7, 9, 13, 17, 25, 33, 49), (1, 2, 3, 4)

Signals = Float[Array | np.ndarray, "_ _ _"]  # [n, time, channels]
_Examples = Float[Array | np.ndarray, "_ *features"]  # images, signals or tables: any number of any one shape

_UNPAIRED = "{} clean and {} noisy examples: give the noisy version of each clean example, in the same order."


def median_filter(
    images: Float[Array | np.ndarray, "*batch height width channels"], size: int = 3
) -> Float[np.ndarray, "*batch height width channels"]:
    """Each pixel replaced by the median of the `size` × `size` pixels around it, channel by channel.

    Borders are reflected. Raises ConfigError unless `size` is odd and positive.
    """
    from scipy import ndimage

    if size < 1 or size % 2 == 0:
        raise ConfigError(f"Median filter of size {size}: give an odd size, such as 3.")
    return ndimage.median_filter(np.asarray(images), size=(size, size), axes=(-3, -2))


def non_local_means(
    image: Float[Array | np.ndarray, "height width channels"], level: float
) -> Float[np.ndarray, "height width channels"]:
    """Each pixel replaced by the mean of those whose surroundings are alike (Buades et al. 2005), noise of that level.

    By scikit-image, with what its examples recommend: patches of 5 × 5 pixels, from up to 6 pixels away, h 0.6 levels.
    """
    from skimage import restoration

    given = np.asarray(image)
    clean = restoration.denoise_nl_means(
        given, patch_size=5, patch_distance=6, h=0.6 * level, sigma=level, fast_mode=True, channel_axis=-1
    )
    return clean.reshape(given.shape)  # a single channel's axis is gone


def smoothed(
    noisy: Signals, *, train: Signals, train_noisy: Signals
) -> tuple[Float[np.ndarray, "n time channels"], Float[np.ndarray, "n time channels"]]:
    """Signals by a Savitzky-Golay filter (1964), and by a local Wiener filter (Lim 1990, eq. 9.26).

    How many moments each looks at, and the degree of the former's polynomials, are those with the least squared error
    when `train_noisy` is denoised towards `train`. Raises DataError if their shapes differ.
    """
    from scipy import signal

    clean, corrupted, _ = _matrices(train, train_noisy, noisy)
    if clean.shape != corrupted.shape:
        raise DataError(_UNPAIRED.format(len(clean), len(corrupted)))
    windows = [window for window in WINDOWS if window <= noisy.shape[1]]
    polynomials = [
        functools.partial(signal.savgol_filter, window_length=window, polyorder=degree, axis=1)
        for window in windows
        for degree in DEGREES
        if degree < window
    ]
    means = [functools.partial(_wiener, window=window) for window in windows]

    def best(filters: Sequence[Callable[..., Any]]) -> np.ndarray:
        wrong = [np.square(filtered(np.asarray(train_noisy)) - np.asarray(train)).mean() for filtered in filters]
        return filters[int(np.argmin(wrong))](np.asarray(noisy)).astype(np.float32)

    return best(polynomials), best(means)


def _wiener(x: Signals, window: int) -> np.ndarray:
    from scipy import signal

    with np.errstate(divide="ignore", invalid="ignore"):  # where nothing changes, it divides 0 by 0
        made = [signal.wiener(channel, window) for example in np.asarray(x, np.float64) for channel in example.T]
    return np.nan_to_num(np.stack(made).reshape(len(x), x.shape[2], -1).swapaxes(1, 2))


def pca_reconstruct(examples: _Examples, *, train: _Examples, components: int) -> _Examples:
    """Examples projected onto the first principal components of `train`: the best linear autoencoder.

    Shapes: [n, *features] -> [n, *features], as numpy.
    Raises DataError if shapes differ, ConfigError if `train` doesn't have that many components.
    """
    train, flat = _matrices(train, examples)
    pca = _principal_axes(train)
    if not 1 <= components <= pca.n_components_:
        raise ConfigError(f"{components} principal components: the training examples have 1 to {pca.n_components_}.")
    return _project(pca, flat, components).reshape(examples.shape)


def pca_denoise(
    noisy: _Examples, *, train: _Examples, held_out: _Examples, held_out_noisy: _Examples
) -> tuple[_Examples, int]:
    """Noisy examples projected onto the principal subspace of the clean `train` examples.

    Shapes: [n, *features] -> [n, *features], as numpy. It also returns how many components were kept:
    the number with the smallest squared error when `held_out_noisy` is denoised towards `held_out`, which
    are clean examples of the training set that `train` does not contain. The time grows with the cube of
    the number of features: about a second for 784. Raises DataError if shapes differ.
    """
    train, clean, corrupted, flat = _matrices(train, held_out, held_out_noisy, noisy)
    if clean.shape != corrupted.shape:
        raise DataError(_UNPAIRED.format(len(clean), len(corrupted)))
    pca = _principal_axes(train)
    # In the principal axes the error for every number of components can be computed at once: the components
    # kept contribute their noise, and those dropped their signal.
    signal, observed = pca.transform(clean), pca.transform(corrupted)
    noise = np.square(observed - signal).sum(axis=0)
    lost = np.square(signal).sum(axis=0)
    components = 1 + int(np.argmin(np.cumsum(noise - lost)))
    return _project(pca, flat, components).reshape(noisy.shape), components


def linear_denoise(noisy: _Examples, *, train: _Examples, train_noisy: _Examples) -> _Examples:
    """Noisy examples through the affine map that takes `train_noisy` to `train` with least squared error.

    Shapes: [n, *features] -> [n, *features], as numpy. The strongest denoiser without a
    non-linearity, much ahead of `pca_denoise`: it also learns how far to shrink each direction, and any
    bias the noise has. The ridge of 1 (squared units of the data, summed over the training set) only keeps
    features that are constant from making it singular.
    Raises DataError if shapes differ.
    """
    from sklearn.linear_model import Ridge

    clean, corrupted, flat = _matrices(train, train_noisy, noisy)
    if clean.shape != corrupted.shape:
        raise DataError(_UNPAIRED.format(len(clean), len(corrupted)))
    return Ridge(alpha=1.0, solver="cholesky").fit(corrupted, clean).predict(flat).reshape(noisy.shape)


def _matrices(first, *others):
    """Each set of examples as a matrix; DataError if their features differ."""
    for examples in others:
        if examples.shape[1:] != first.shape[1:]:
            raise DataError(f"Examples of shape {first.shape[1:]} and of shape {examples.shape[1:]}: give one shape.")
    return [np.asarray(x, np.float32).reshape(len(x), -1) for x in (first, *others)]


def _principal_axes(train):
    """scikit-learn's PCA with all the components there are."""
    from sklearn.decomposition import PCA

    return PCA(svd_solver="covariance_eigh" if len(train) > train.shape[1] else "full").fit(train)


def _project(pca, examples, components):
    axes = pca.components_[:components]
    return (examples - pca.mean_) @ axes.T @ axes + pca.mean_
