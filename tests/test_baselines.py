import jaxtyping
import numpy as np
import pytest
from scipy import ndimage
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression

from flaxae import baselines
from flaxae.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def digits():
    """Clean and noisy, [1797, 8, 8, 1]."""
    clean = (load_digits().images[..., None] / 16).astype(np.float32)
    noisy = clean + 0.5 * np.random.default_rng(0).standard_normal(clean.shape, dtype=np.float32)
    return clean, noisy


def test_median_filter_equals_scipy_image_by_image_and_channel_by_channel():
    images = np.random.default_rng(0).random((3, 9, 7, 3), dtype=np.float32)
    expected = np.empty_like(images)
    for i in range(3):
        for channel in range(3):
            expected[i, ..., channel] = ndimage.median_filter(images[i, ..., channel], 5)
    np.testing.assert_array_equal(baselines.median_filter(images, 5), expected)
    np.testing.assert_array_equal(baselines.median_filter(images[0], 5), expected[0])


def test_pca_reconstruction_equals_that_of_scikit_learn(digits):
    clean, _ = digits
    train, test = clean[:1500], clean[1500:]
    pca = PCA(10, svd_solver="full").fit(train.reshape(1500, 64))
    expected = pca.inverse_transform(pca.transform(test.reshape(-1, 64))).reshape(test.shape)
    np.testing.assert_allclose(baselines.pca_reconstruct(test, train=train, components=10), expected, atol=1e-4)
    with pytest.raises(ConfigError, match="1 to 64"):
        baselines.pca_reconstruct(test, train=train, components=65)


@pytest.mark.parametrize("train_size", [1000, 40])
def test_pca_keeps_the_components_that_are_best_on_the_held_out_part(digits, train_size):
    clean, noisy = digits
    train, held_out, held_out_noisy = clean[:train_size], clean[1000:1400], noisy[1000:1400]
    denoised, components = baselines.pca_denoise(
        noisy[1400:], train=train, held_out=held_out, held_out_noisy=held_out_noisy
    )

    def held_out_error(k):
        return np.mean((baselines.pca_reconstruct(held_out_noisy, train=train, components=k) - held_out) ** 2)

    errors = [held_out_error(k) for k in range(1, min(train_size, 64) + 1)]
    assert components == 1 + np.argmin(errors)
    expected = baselines.pca_reconstruct(noisy[1400:], train=train, components=components)
    np.testing.assert_allclose(denoised, expected, atol=1e-5)


def test_linear_map_equals_least_squares_and_beats_pca(digits):
    clean, noisy = digits
    denoised = baselines.linear_denoise(noisy[1400:], train=clean[:1400], train_noisy=noisy[:1400])
    least_squares = LinearRegression().fit(noisy[:1400].reshape(-1, 64), clean[:1400].reshape(-1, 64))
    expected = least_squares.predict(noisy[1400:].reshape(-1, 64)).reshape(denoised.shape)
    np.testing.assert_allclose(denoised, expected, atol=0.01)
    by_pca, _ = baselines.pca_denoise(
        noisy[1400:], train=clean[:1000], held_out=clean[1000:1400], held_out_noisy=noisy[1000:1400]
    )
    assert np.mean((denoised - clean[1400:]) ** 2) < np.mean((by_pca - clean[1400:]) ** 2)


def test_features_that_never_vary_do_no_harm(digits):
    clean, _ = digits  # a pixel in the corner is always black, with and without masking
    masked = clean * (np.random.default_rng(0).random(clean.shape) > 0.3)
    denoised = baselines.linear_denoise(masked[1400:], train=clean[:1400], train_noisy=masked[:1400])
    assert np.mean((denoised - clean[1400:]) ** 2) < np.mean((masked[1400:] - clean[1400:]) ** 2)
    np.testing.assert_allclose(denoised[:, 0, 0], 0, atol=1e-5)


def test_what_does_not_fit_together_is_refused(monkeypatch, digits):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it
    clean, noisy = digits
    with pytest.raises(DataError, match="one shape"):
        baselines.pca_reconstruct(clean.reshape(-1, 64), train=clean, components=3)
    with pytest.raises(DataError, match="same order"):
        baselines.pca_denoise(noisy, train=clean, held_out=clean[:5], held_out_noisy=noisy[:4])
    with pytest.raises(DataError, match="same order"):
        baselines.linear_denoise(noisy, train=clean, train_noisy=noisy[:4])
    with pytest.raises(ConfigError, match="odd"):
        baselines.median_filter(clean, 2)


def test_filters_of_signals_are_chosen_on_the_training_part_and_smooth_what_is_smooth():
    rng = np.random.default_rng(0)
    clean = np.sin(np.linspace(0, 6, 200) + rng.uniform(0, 6, (40, 1)))[..., None].astype(np.float32)
    noisy = clean + rng.normal(0, 0.3, clean.shape).astype(np.float32)
    made = baselines.smoothed(noisy[30:], train=clean[:30], train_noisy=noisy[:30])
    for x, least in zip(made, (0.1, 0.3), strict=True):
        assert x.shape == (10, 200, 1)
        assert np.square(x - clean[30:]).mean() < least * 0.09
    still = np.zeros((2, 20, 1), np.float32)
    assert all((x == 0).all() for x in baselines.smoothed(still, train=still, train_noisy=still))
    with pytest.raises(DataError):
        baselines.smoothed(noisy, train=clean[:2], train_noisy=noisy[:3])
