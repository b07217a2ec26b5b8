import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flaxae import corruptions, errors

X = jnp.full((100, 50), 0.3)


def test_gaussian_has_the_asked_deviation():
    noise = corruptions.GaussianNoise(0.5)(jax.random.key(0), X) - X
    assert abs(float(noise.mean())) < 0.03
    assert float(noise.std()) == pytest.approx(0.5, rel=0.03)


@given(level=st.floats(0.05, 0.95), seed=st.integers(0, 99))
def test_masking_zeroes_the_asked_fraction_and_keeps_the_rest(level, seed):
    y = np.asarray(corruptions.Masking(level)(jax.random.key(seed), X))
    assert set(np.unique(y)) <= {np.float32(0), np.float32(0.3)}
    assert (y == 0).mean() == pytest.approx(level, abs=0.05)


@given(level=st.floats(0.05, 0.95), seed=st.integers(0, 99))
def test_salt_and_pepper_is_even(level, seed):
    y = np.asarray(corruptions.SaltAndPepper(level)(jax.random.key(seed), X))
    assert (y == 0).mean() == pytest.approx(level / 2, abs=0.05)
    assert (y == 1).mean() == pytest.approx(level / 2, abs=0.05)
    assert ((y == 0) | (y == 1) | (y == np.float32(0.3))).all()


def test_a_range_gives_each_example_its_level():
    x = jnp.zeros((200, 40, 40, 1))
    levels = np.asarray(corruptions.GaussianRange(0.1, 0.3)(jax.random.key(0), x)).std(axis=(1, 2, 3))
    assert levels.min() == pytest.approx(0.1, abs=0.01)
    assert levels.max() == pytest.approx(0.3, abs=0.01)
    assert levels.mean() == pytest.approx(0.2, abs=0.01)
    with pytest.raises(errors.ConfigError, match="lower one first"):
        corruptions.GaussianRange(0.3, 0.1)


@pytest.mark.parametrize(("x", "variance"), [(1.0, 0.04), (0.0, 0.01), (0.5, 0.025)])
def test_a_sensor_is_noisier_where_it_is_bright(x, variance):
    noisy = corruptions.PoissonGaussian(level=0.2, dark=0.25)(jax.random.key(0), jnp.full((300, 300), x))
    assert float(noisy.var()) == pytest.approx(variance, rel=0.03)
    assert float(noisy.mean()) == pytest.approx(x, abs=0.003)


@pytest.mark.parametrize("corruption", corruptions.CORRUPTIONS.values())
def test_a_corruption_is_a_function_of_its_key(corruption):
    def of(seed):
        return np.asarray(corruption(level=0.4)(jax.random.key(seed), X))

    assert (of(1) == of(1)).all()
    assert (of(1) != of(2)).any()
    assert of(1).shape == X.shape
    assert of(1).dtype == X.dtype


@pytest.mark.parametrize("corruption", corruptions.CORRUPTIONS.values())
def test_level_zero_changes_nothing(corruption):
    assert (corruption(level=0.0)(jax.random.key(0), X) == X).all()


@pytest.mark.parametrize("corruption", corruptions.CORRUPTIONS.values())
def test_a_level_out_of_range_is_refused(corruption):
    with pytest.raises(errors.ConfigError, match=r"level is -0\.1; it has to be finite and at least 0"):
        corruption(level=-0.1)
