import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from flaxae import autoencoder, density, errors
from flaxae.autoencoder import Autoencoder, Config
from flaxae.likelihoods import Gaussian
from flaxae.nn.heads import Deterministic, Variational
from flaxae.nn.mlp import MLP
from flaxae.objectives import ELBO

NOISE = 0.7


@pytest.fixture(scope="module")
def linear_gaussian() -> tuple[Autoencoder, np.ndarray, np.ndarray]:
    """p(z) = N(0, I), p(x | z) = N(W z + b, NOISE² I), with a q(z | x) somewhat off the posterior; x, and log p(x)."""
    rng = np.random.default_rng(1)
    weights, bias = rng.standard_normal((2, 5)), rng.standard_normal(5)
    config = Config(body=MLP(()), head=Variational(2), objective=ELBO(), likelihood=Gaussian(NOISE))
    model = autoencoder.build(config, (5,))
    covariance = np.linalg.inv(np.eye(2) + weights @ weights.T / NOISE**2)  # of the posterior
    to_mean = weights.T @ covariance / NOISE**2
    wide = np.log(1.3 * np.diag(covariance))
    unbounded = 10 * np.arctanh(wide / 10)
    model.decoder.out.kernel[...] = jnp.float32(weights)
    model.decoder.out.bias[...] = jnp.float32(bias)
    model.head.linear.kernel[...] = jnp.float32(np.concatenate([to_mean, np.zeros((5, 2))], axis=1))
    model.head.linear.bias[...] = jnp.float32(np.concatenate([0.05 - bias @ to_mean, unbounded]))
    marginal = stats.multivariate_normal(bias, weights.T @ weights + NOISE**2 * np.eye(5))
    x = marginal.rvs(70, random_state=rng).astype(np.float32)
    return model, x, marginal.logpdf(x)


def test_importance_sampling_finds_the_exact_likelihood(linear_gaussian):
    model, x, log_p = linear_gaussian
    nll = density.negative_log_likelihood(model, x, samples=5000, examples_at_once=32)
    assert nll.shape == (70,)
    np.testing.assert_allclose(-nll, log_p, atol=0.15)
    assert -nll.mean() == pytest.approx(log_p.mean(), abs=0.01)


def test_the_number_of_samples_need_not_fill_the_last_chunk(linear_gaussian, monkeypatch):
    monkeypatch.setattr(density, "DECODED_AT_ONCE", 700)
    model, x, log_p = linear_gaussian
    nll = density.negative_log_likelihood(model, x, samples=23, examples_at_once=70)
    assert log_p.mean() == pytest.approx(-nll.mean(), abs=0.1)


def test_the_elbo_lies_below_by_the_gap_of_q(linear_gaussian):
    model, x, log_p = linear_gaussian
    terms = [density.elbo(model, x, seed=seed, batch_size=32) for seed in range(30)]
    assert terms[0].kl.shape == (70, 2)
    bound = np.mean([t.log_likelihood - t.kl.sum(-1) for t in terms])
    # the gap is KL(q ‖ posterior), the same for every x
    latent = model(x[:1]).latent
    weights = np.asarray(model.decoder.out.kernel[...], np.float64)
    precision = np.eye(2) + weights @ weights.T / NOISE**2
    q, shift = np.diag(np.exp(latent.logvar[0])), np.full(2, 0.05)
    gap = 0.5 * (np.trace(precision @ q) + shift @ precision @ shift - 2 - np.linalg.slogdet(precision @ q)[1])
    assert log_p.mean() - bound == pytest.approx(gap, abs=0.12)
    assert gap > 0.05


def test_a_model_without_a_posterior_is_refused(linear_gaussian):
    model = autoencoder.build(Config(body=MLP(()), head=Deterministic(2), likelihood=Gaussian()), (5,))
    for function in (density.negative_log_likelihood, density.elbo):
        with pytest.raises(errors.ConfigError, match="variational"):
            function(model, linear_gaussian[1])


def test_a_mixture_gives_back_its_codes_distribution():
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 5.0, 0.0], [4.0, 0.0, 0.0]])
    codes = np.concatenate([centres[0] + rng.standard_normal((600, 3)), centres[1] + rng.standard_normal((300, 3))])
    codes[:, 2] = 0.0  # a unit that is always off
    mixture = density.Mixture.fit(codes, components=2)
    drawn = mixture.sample(20_000, seed=1)
    np.testing.assert_allclose(drawn.mean(0), codes.mean(0), atol=0.1)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(codes.T), atol=0.25)
    np.testing.assert_array_equal(drawn[:5], mixture.sample(20_000, seed=1)[:5])
    with pytest.raises(errors.ConfigError, match="components"):
        density.Mixture.fit(codes[:5], components=3)


def test_directions_and_noise_of_a_mixture_add_up_to_the_variance(rng):
    codes = rng.standard_normal((4000, 2)) @ rng.standard_normal((2, 6)) * 3 + 0.2 * rng.standard_normal((4000, 6))
    mixture = density.Mixture.fit(codes, components=1, factors=2)
    assert mixture.factors.shape == (1, 2, 6)
    found = mixture.factors[0].T @ mixture.factors[0] + np.diag(mixture.deviations[0] ** 2)
    np.testing.assert_allclose(found, np.cov(codes.T), atol=0.05)
    np.testing.assert_allclose(np.diag(found), codes.var(axis=0, ddof=1), rtol=1e-9)


def test_samples_are_the_priors(linear_gaussian):
    model = linear_gaussian[0]
    x = np.asarray(model.sample(20_000, jax.random.key(0)))
    weights = np.asarray(model.decoder.out.kernel[...])
    np.testing.assert_allclose(x.mean(0), model.decoder.out.bias[...], atol=0.05)
    np.testing.assert_allclose(np.cov(x.T), weights.T @ weights, atol=0.15)
