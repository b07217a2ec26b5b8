import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from flaxae import metrics
from flaxae.errors import DataError


def pair(shape, seed=0, noise=0.2):
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.random(shape), 1.5, axes=(-3, -2))
    reference = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    noisy = np.clip(reference + noise * rng.standard_normal(shape), 0, 1)
    return noisy.astype(np.float32), reference.astype(np.float32)


@settings(max_examples=10, deadline=None)
@given(st.integers(11, 16), st.integers(11, 16), st.sampled_from([1, 3]), st.integers(0, 9), st.floats(0.01, 1.0))
def test_metrics_equal_those_of_skimage(height, width, channels, seed, noise):
    noisy, clean = pair((2, height, width, channels), seed, noise)
    similarity = [
        structural_similarity(
            y, x, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis=-1
        )
        for x, y in zip(noisy, clean, strict=True)
    ]
    ratio = [peak_signal_noise_ratio(y, x, data_range=1) for x, y in zip(noisy, clean, strict=True)]
    np.testing.assert_allclose(metrics.ssim(noisy, clean), similarity, atol=2e-5)
    np.testing.assert_allclose(metrics.psnr(noisy, clean), ratio, rtol=1e-5)
    np.testing.assert_allclose(metrics.mse(noisy, clean), np.mean((noisy - clean) ** 2, (1, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize("metric", [metrics.psnr, metrics.ssim])
def test_peak_is_the_scale_of_the_pixels(metric):
    noisy, clean = pair((3, 16, 16, 1))
    np.testing.assert_allclose(metric(255 * noisy, 255 * clean, peak=255.0), metric(noisy, clean), rtol=1e-4)


def test_ssim_of_many_images_equals_that_of_each(monkeypatch):
    noisy, clean = pair((7, 13, 12, 3))
    one_by_one = jnp.concatenate([metrics.ssim(x[None], y[None]) for x, y in zip(noisy, clean, strict=True)])
    monkeypatch.setattr(metrics, "_SSIM_VALUES_AT_ONCE", 3 * clean[0].size)  # two chunks of three, and one left
    metrics.ssim.clear_cache()
    np.testing.assert_allclose(metrics.ssim(noisy, clean), one_by_one, rtol=1e-6)


@pytest.mark.parametrize(("height", "width", "taps"), [(8, 8, (7, 7)), (1, 20, (1, 11)), (10, 11, (9, 11))])
def test_ssim_of_small_images_uses_the_largest_window_that_fits(height, width, taps):
    noisy, clean = pair((1, height, width, 1))

    def mean(image):
        for axis, n in enumerate(taps):
            weights = np.exp(-0.5 * ((np.arange(n) - n // 2) / 1.5) ** 2)
            image = ndimage.correlate1d(image, weights / weights.sum(), axis=axis)
        return image[tuple(slice(n // 2, image.shape[a] - n // 2) for a, n in enumerate(taps))]

    x, y = noisy[0, ..., 0].astype(np.float64), clean[0, ..., 0].astype(np.float64)
    covariance = mean(x * y) - mean(x) * mean(y)
    variances = mean(x * x) - mean(x) ** 2 + mean(y * y) - mean(y) ** 2
    luminance = (2 * mean(x) * mean(y) + 1e-4) / (mean(x) ** 2 + mean(y) ** 2 + 1e-4)
    expected = np.mean(luminance * (2 * covariance + 9e-4) / (variances + 9e-4))
    np.testing.assert_allclose(metrics.ssim(noisy, clean), [expected], atol=2e-5)


def test_perfect_images():
    _, clean = pair((3, 12, 12, 1))
    np.testing.assert_array_equal(metrics.mse(clean, clean), np.zeros(3))
    np.testing.assert_allclose(metrics.psnr(clean, clean), 100.0, rtol=1e-6)
    np.testing.assert_allclose(metrics.ssim(clean, clean), 1.0, rtol=1e-6)


@pytest.mark.parametrize("metric", [metrics.mse, metrics.psnr, metrics.ssim])
def test_any_batch_axes_dtype_and_nan(metric):
    noisy, clean = pair((6, 12, 12, 1))
    noisy[4] = np.nan
    flat = metric(noisy, clean)
    assert np.isnan(flat[4])
    assert np.isfinite(np.delete(flat, 4)).all()
    np.testing.assert_allclose(metric(noisy[0], clean[0]), flat[0], rtol=1e-5)
    nested = metric(noisy.reshape(2, 3, 12, 12, 1), jnp.asarray(clean).reshape(2, 3, 12, 12, 1))
    np.testing.assert_allclose(nested, flat.reshape(2, 3), rtol=1e-5)
    half = jnp.asarray(noisy[:2], jnp.bfloat16)
    np.testing.assert_allclose(metric(half, clean[:2]), metric(half.astype(jnp.float32), clean[:2]), rtol=1e-6)


@pytest.mark.parametrize(
    ("reconstruction", "reference", "said"),
    [
        (np.zeros((2, 8, 8, 1)), np.zeros((1, 8, 8, 1)), "(2, 8, 8, 1)"),
        (np.zeros((0, 8, 8, 1)), np.zeros((0, 8, 8, 1)), "non-empty"),
        (np.zeros((2, 64)), np.zeros((2, 64)), "channels"),
        (np.zeros((2, 8, 8, 1), np.uint8), np.zeros((2, 8, 8, 1)), "uint8"),
    ],
)
@pytest.mark.parametrize("metric", [metrics.mse, metrics.psnr, metrics.ssim])
def test_what_cannot_be_compared_is_refused(monkeypatch, metric, reconstruction, reference, said):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it
    with pytest.raises(DataError, match=said.replace("(", r"\(").replace(")", r"\)")):
        metric(reconstruction, reference)


def test_ms_ssim_is_that_of_every_window_at_every_scale():
    """By Wang et al. 2003, window by window: of 24 × 26 pixels there are two scales, as a third would have 6."""
    noisy, clean = pair((24, 26, 1))
    taps = np.exp(-0.5 * np.square((np.arange(11) - 5) / 1.5))
    window = np.outer(taps, taps) / taps.sum() ** 2

    def similarities(x, y):
        whole, structure = [], []
        for i, j in np.ndindex(x.shape[0] - 10, x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            variance = (window * (a - mean_a) ** 2).sum() + (window * (b - mean_b) ** 2).sum()
            covariance = (window * (a - mean_a) * (b - mean_b)).sum()
            structure.append((2 * covariance + 0.03**2) / (variance + 0.03**2))
            whole.append(structure[-1] * (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4))
        return np.mean(whole), np.mean(structure)

    x, y = noisy[..., 0].astype(np.float64), clean[..., 0].astype(np.float64)
    halves = [image.reshape(12, 2, 13, 2).mean((1, 3)) for image in (x, y)]
    powers = np.array([0.0448, 0.2856]) / (0.0448 + 0.2856)
    wanted = similarities(x, y)[1] ** powers[0] * similarities(*halves)[0] ** powers[1]
    assert metrics.ms_ssim(noisy, clean) == pytest.approx(wanted, abs=1e-7)
    assert metrics.ms_ssim(255 * noisy, 255 * clean, peak=255.0) == pytest.approx(wanted, abs=1e-6)
    assert metrics.ms_ssim(clean, clean) == pytest.approx(1)
    with pytest.raises(DataError, match="at least 11"):
        metrics.ms_ssim(noisy[:10], clean[:10])


def test_bd_rate_is_the_mean_of_the_logs_over_the_common_qualities():
    bits, quality = np.array([0.1, 0.3, 0.9, 2.0]), np.array([28.0, 31.0, 36.0, 40.0])
    assert metrics.bd_rate(0.6 * bits, quality, bits, quality) == pytest.approx(-40)
    assert metrics.bd_rate(bits[::-1], quality[::-1], 0.5 * bits, quality) == pytest.approx(100)
    # half the bits where both are: the second curve's other end does not count
    few, line = np.array([30.0, 32.0]), lambda q: np.exp(0.2 * q)
    assert metrics.bd_rate(line(few) / 2, few, line(quality), quality) == pytest.approx(-50)
    with pytest.raises(DataError, match="in common"):
        metrics.bd_rate(bits, quality, bits, quality + 50)
    with pytest.raises(DataError, match="two points"):
        metrics.bd_rate(bits[:1], quality[:1], bits, quality)
