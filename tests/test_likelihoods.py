import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from flaxae import errors
from flaxae.likelihoods import Bernoulli, Gaussian

LIKELIHOODS = [Bernoulli(), Gaussian(), Gaussian(scale=0.3)]


def test_bernoulli_is_scipys_on_bits(rng):
    logits, bits = rng.normal(size=(5, 3, 2)), rng.integers(0, 2, (5, 3, 2))
    expected = scipy.stats.bernoulli.logpmf(bits, scipy.special.expit(logits)).sum((1, 2))
    np.testing.assert_allclose(Bernoulli().log_prob(jnp.float32(logits), jnp.float32(bits)), expected, rtol=1e-5)


@given(scale=st.floats(0.1, 10))
def test_gaussian_is_scipys(scale):
    rng = np.random.default_rng(0)
    mean, x = rng.normal(size=(2, 5, 3))
    expected = scipy.stats.norm.logpdf(x, mean, scale).sum(1)
    np.testing.assert_allclose(Gaussian(scale).log_prob(jnp.float32(mean), jnp.float32(x)), expected, rtol=1e-4)


@pytest.mark.parametrize("logit", [-1e4, 1e4])
def test_bernoulli_is_finite_at_logits_where_log_sigmoid_is_not(logit):
    params, x = jnp.full((1, 4), logit), jnp.array([[0.0, 1.0, 0.0, 1.0]])
    value, gradient = jax.value_and_grad(lambda p: Bernoulli().log_prob(p, x).sum())(params)
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=repr)
def test_the_mean_maximises_the_likelihood_of_grey_levels(likelihood, rng):
    x = jnp.float32(rng.uniform(0.1, 0.9, (1, 6)))
    params = jax.scipy.special.logit(x) if isinstance(likelihood, Bernoulli) else x
    np.testing.assert_allclose(likelihood.mean(params), x, rtol=1e-5)
    gradient = jax.grad(lambda p: likelihood.log_prob(p, x).sum())(params)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=repr)
def test_samples_have_the_mean(likelihood):
    params = jnp.tile(jnp.array([[-1.0, 0.5]]), (4000, 1))
    samples = likelihood.sample(params, jax.random.key(0))
    np.testing.assert_allclose(samples.mean(0), likelihood.mean(params)[0], atol=0.05)


def test_a_scale_of_zero_is_refused():
    with pytest.raises(errors.ConfigError, match="above 0"):
        Gaussian(scale=0.0)
