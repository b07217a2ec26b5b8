import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from flaxae import autoencoder, density, errors
from flaxae.autoencoder import Autoencoder, Config
from flaxae.likelihoods import Gaussian
from flaxae.nn.heads import Deterministic, Hierarchical, Variational
from flaxae.nn.mlp import MLP
from flaxae.nn.priors import NormalMixture
from flaxae.objectives import ELBO, ImportanceWeighted

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


def set_normal(linear: nnx.Linear, weights: np.ndarray, offset: np.ndarray, variance: np.ndarray) -> None:
    """Make a layer give the mean inputs · weights + offset, and the log of that variance."""
    linear.kernel[...] = jnp.float32(np.concatenate([weights, np.zeros_like(weights)], axis=1))
    linear.bias[...] = jnp.float32(np.concatenate([offset, 10 * np.arctanh(np.log(variance) / 10)]))


def linear_hierarchy(levels: int) -> tuple[Autoencoder, np.ndarray, np.ndarray, np.ndarray]:
    """A linear model of one to three levels, with x of it. Mean and covariance of (z, x), which are normal, are known.

    q has the posterior's means, and its variances. With up to two levels, q is the posterior.
    """
    rng = np.random.default_rng(4)
    latent = 2**levels - 1
    head = Hierarchical(latent, levels, (), prior=NormalMixture(1))
    model = autoencoder.build(Config(MLP(()), head, ELBO(), likelihood=Gaussian(NOISE)), (5,))
    made = model.head
    made.top.prior.means[...], made.top.prior.log_scales[...] = jnp.full((1, 1), 0.7), jnp.log(jnp.full((1, 1), 0.6))
    mean, covariance = np.array([0.7]), np.array([[0.36]])

    def extend(slopes: np.ndarray, offset: np.ndarray, variance: np.ndarray) -> None:
        """Append what is normal given all before it."""
        nonlocal mean, covariance
        cross = covariance @ slopes
        covariance = np.block([[covariance, cross], [cross.T, slopes.T @ cross + np.diag(variance)]])
        mean = np.append(mean, mean @ slopes + offset)

    for prior, start, end in zip(made.priors, made.ends, made.ends[1:], strict=False):
        own = end - start
        step = rng.standard_normal((start, own)), rng.standard_normal(own), 0.4 + rng.random(own)
        set_normal(prior.linear, *step)
        extend(*step)
    weights, bias = rng.standard_normal((latent, 5)), rng.standard_normal(5)
    if levels == 2:
        weights[1:] = np.linalg.qr(weights[1:].T)[0].T  # so that z_1 has independent numbers given x and z_2
    model.decoder.out.kernel[...], model.decoder.out.bias[...] = jnp.float32(weights), jnp.float32(bias)
    extend(weights, bias, np.full(5, NOISE**2))

    def given(own: slice, known: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of those numbers of z, given others of (z, x): slopes, offset and variance."""
        slopes = np.linalg.solve(covariance[np.ix_(known, known)], covariance[known, own])
        left = covariance[own, own] - slopes.T @ covariance[known, own]
        return slopes, mean[own] - mean[known] @ slopes, np.diag(left)

    seen = list(range(latent, latent + 5))
    set_normal(made.top.linear, *given(slice(0, 1), seen))
    for posterior, start, end in zip(made.posteriors, made.ends, made.ends[1:], strict=False):
        set_normal(posterior.linear, *given(slice(start, end), [*seen, *range(start)]))
    x = stats.multivariate_normal(mean[latent:], covariance[latent:, latent:]).rvs(60, random_state=rng)
    return model, mean, covariance, x.astype(np.float32)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_levels_of_latents_against_a_known_likelihood(levels):
    model, mean, covariance, x = linear_hierarchy(levels)
    latent = len(mean) - 5
    marginal = stats.multivariate_normal(mean[latent:], covariance[latent:, latent:])
    log_p = marginal.logpdf(x)
    if levels < 3:  # with the posterior for q, every importance weight is p(x)
        np.testing.assert_allclose(-density.negative_log_likelihood(model, x, samples=3), log_p, atol=2e-3)
    nll = density.negative_log_likelihood(model, x, samples=2000)
    assert -nll.mean() == pytest.approx(log_p.mean(), abs=0.02)

    terms = [density.elbo(model, x, seed=seed) for seed in range(100)]
    assert terms[0].kl.shape == (60, levels)
    assert all((t.kl[:, 1:] >= 0).all() for t in terms)
    bound = np.mean([t.log_likelihood - t.kl.sum(-1) for t in terms])
    if levels < 3:
        assert bound == pytest.approx(log_p.mean(), abs=0.05)
    else:
        bounds = jax.jit(jax.vmap(lambda key: ImportanceWeighted(10)(model, x, key)))
        tighter = -bounds(jax.random.split(jax.random.key(0), 20)).mean()
        assert bound + 0.1 < tighter < log_p.mean() + 0.05

    z = np.asarray(model.head.sample(20_000, jax.random.key(0)))
    np.testing.assert_allclose(z.mean(0), mean[:latent], atol=0.15)
    np.testing.assert_allclose(np.cov(z.T).reshape(latent, latent), covariance[:latent, :latent], rtol=0.1, atol=0.1)


def test_the_gradient_of_importance_weights_of_two_levels():
    """Where q is the posterior, it leaves q as it is, and its mean for p is the gradient of log p(x)."""
    model, mean, covariance, x = linear_hierarchy(2)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    @jax.vmap
    def gradients(key):
        def bound(params):
            return -ImportanceWeighted(5)(nnx.merge(graphdef, params, rest, copy=True), x, key).mean()

        return jax.grad(bound)(params)["head"]

    found = gradients(jax.random.split(jax.random.key(0), 400))
    for q in (found["top"]["linear"], found["posteriors"]):
        jax.tree.map(lambda g: np.testing.assert_allclose(g, 0.0, atol=5e-3), q)
    step = 1e-3 * np.asarray(model.decoder.out.kernel[1])  # of E[x], as the offset of p(z_1 | z_2) moves
    marginal = stats.multivariate_normal(mean[3:], covariance[3:, 3:])
    expected = (marginal.logpdf(x - step).mean() - marginal.logpdf(x + step).mean()) / 2e-3
    own = np.asarray(found["priors"][0]["linear"]["bias"][...])[:, 0]
    assert own.mean() == pytest.approx(expected, abs=5 * float(own.std()) / 20)


def test_levels_are_twice_as_wide_as_those_above_them():
    assert Hierarchical(124, 5).sizes == (4, 8, 16, 32, 64)
    assert Hierarchical(62, 2).sizes == (20, 42)
    with pytest.raises(errors.ConfigError, match=r"3 levels.*need 7 or more"):
        Hierarchical(6, 3)
