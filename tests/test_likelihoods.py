import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from flaxae import errors
from flaxae.likelihoods import Bernoulli, DiscretizedLogistic, Gaussian, softplus

LIKELIHOODS = [Bernoulli(), Gaussian(), Gaussian(scale=0.3), DiscretizedLogistic(levels=101)]


def test_bernoulli_is_scipys_on_bits(rng):
    logits, bits = rng.normal(size=(5, 3, 2)), rng.integers(0, 2, (5, 3, 2))
    expected = scipy.stats.bernoulli.logpmf(bits, scipy.special.expit(logits)).sum((1, 2))
    np.testing.assert_allclose(Bernoulli().log_prob(jnp.float32(logits), jnp.float32(bits)), expected, rtol=1e-5)


@given(st.floats(-300, 300))
def test_softplus_is_numpys_and_its_derivative_the_logistic_function(x):
    exact = np.logaddexp(np.float64(np.float32(x)), 0)
    np.testing.assert_allclose(softplus(jnp.float32(x)), exact, rtol=1e-5, atol=1e-37)
    np.testing.assert_allclose(jax.grad(softplus)(jnp.float32(x)), scipy.special.expit(np.float32(x)), rtol=1e-5)


def test_softplus_is_as_near_to_numpys_as_jaxs_own_between_its_ends():
    x = np.linspace(-8, 8, 10_001, dtype=np.float32)
    exact = np.logaddexp(x.astype(np.float64), 0)
    ours, theirs = (np.abs(of(jnp.asarray(x)) / exact - 1).max() for of in (softplus, jax.nn.softplus))
    assert ours <= max(1.5 * theirs, 4e-7)
    assert np.isnan(softplus(jnp.float32(np.nan)))
    assert softplus(jnp.float32(np.inf)) == np.inf


@given(scale=st.floats(0.1, 10))
def test_gaussian_is_scipys(scale):
    rng = np.random.default_rng(0)
    mean, x = rng.normal(size=(2, 5, 3))
    expected = scipy.stats.norm.logpdf(x, mean, scale).sum(1)
    np.testing.assert_allclose(Gaussian(scale).log_prob(jnp.float32(mean), jnp.float32(x)), expected, rtol=1e-4)


@pytest.mark.parametrize("scale", [0.01, 0.3])
def test_discretized_logistic_is_the_mass_of_each_bin(scale):
    levels, mean = np.arange(256), 0.3
    edges = np.concatenate([[-np.inf], (levels[1:] - 0.5) / 255, [np.inf]])
    mass = np.diff(scipy.stats.logistic.cdf(edges, mean, scale))
    params, x = jnp.full((256, 1), scipy.special.logit(mean)), jnp.float32(levels[:, None] / 255)
    found = np.exp(DiscretizedLogistic(scale).log_prob(params, x))
    np.testing.assert_allclose(found, mass, atol=1e-6)
    np.testing.assert_allclose(found.sum(), 1, rtol=1e-5)


def test_discretized_logistic_is_finite_where_the_mass_underflows():
    value, gradient = jax.value_and_grad(lambda p: DiscretizedLogistic(1e-3).log_prob(p, jnp.ones((1, 4)) * 0.5).sum())(
        jnp.full((1, 4), -50.0)
    )
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("logit", [-1e4, 1e4])
def test_bernoulli_is_finite_at_logits_where_log_sigmoid_is_not(logit):
    params, x = jnp.full((1, 4), logit), jnp.array([[0.0, 1.0, 0.0, 1.0]])
    value, gradient = jax.value_and_grad(lambda p: Bernoulli().log_prob(p, x).sum())(params)
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=repr)
def test_the_mean_maximises_the_likelihood_of_grey_levels(likelihood, rng):
    x = jnp.float32(rng.integers(10, 91, (1, 6)) / 100)
    params = x if isinstance(likelihood, Gaussian) else jax.scipy.special.logit(x)
    np.testing.assert_allclose(likelihood.mean(params), x, rtol=1e-5)
    gradient = jax.grad(lambda p: likelihood.log_prob(p, x).sum())(params)
    np.testing.assert_allclose(gradient, 0, atol=1e-5)


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=repr)
def test_samples_have_the_mean(likelihood):
    params = jnp.tile(jnp.array([[-1.0, 0.5]]), (4000, 1))
    samples = likelihood.sample(params, jax.random.key(0))
    np.testing.assert_allclose(samples.mean(0), likelihood.mean(params)[0], atol=0.05)


def test_a_scale_of_zero_is_refused():
    for likelihood in (Gaussian, DiscretizedLogistic):
        with pytest.raises(errors.ConfigError, match="above 0"):
            likelihood(scale=0.0)
