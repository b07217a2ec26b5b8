"""Counts: their likelihoods against SciPy's, and cells of a known truth, measured in two batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
import scipy.stats
from sklearn.metrics import silhouette_score

import flaxae
from flaxae import errors
from flaxae.cells import CellEmbedder
from flaxae.likelihoods import MIN_SCALE, NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial


def softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, x) + MIN_SCALE


def test_poisson_is_scipys(rng):
    logs, x = rng.normal(size=(4, 5)), rng.integers(0, 6, (4, 5))
    found = Poisson().log_prob(jnp.float32(logs), jnp.float32(x))
    np.testing.assert_allclose(found, scipy.stats.poisson.logpmf(x, np.exp(logs)).sum(1), rtol=1e-4)


def test_negative_binomials_are_scipys(rng):
    logits, raw, lost = rng.normal(size=(3, 4, 5))
    x = rng.integers(0, 4, (4, 5)) * (rng.random((4, 5)) < 0.7)
    shares, theta = np.exp(logits) / np.exp(logits).sum(1, keepdims=True), softplus(raw)
    mean = x.sum(1, keepdims=True) * shares
    mass = scipy.stats.nbinom.pmf(x, theta, theta / (theta + mean))
    params = jnp.float32(np.concatenate([logits, raw], axis=1))
    found = NegativeBinomial().log_prob(params, jnp.float32(x))
    np.testing.assert_allclose(found, np.log(mass).sum(1), rtol=1e-3)
    missing = 1 / (1 + np.exp(-lost))
    inflated = ZeroInflatedNegativeBinomial().log_prob(
        jnp.concatenate([params, jnp.float32(lost)], axis=1), jnp.float32(x)
    )
    np.testing.assert_allclose(inflated, np.log(missing * (x == 0) + (1 - missing) * mass).sum(1), rtol=1e-3)


@pytest.mark.parametrize("likelihood", [NegativeBinomial(30), ZeroInflatedNegativeBinomial(30), Poisson()])
def test_samples_of_counts_have_the_mean(likelihood):
    size = likelihood.params_shape((2,))[0]
    params = jnp.tile(jnp.linspace(-0.5, 1, size), (4000, 1))
    drawn = likelihood.sample(params, jax.random.key(0)).mean(0)
    scale = 1 if isinstance(likelihood, Poisson) else 30
    np.testing.assert_allclose(drawn, scale * likelihood.mean(params)[0], rtol=0.1)


def test_an_example_without_counts_is_finite():
    for likelihood in (NegativeBinomial(), ZeroInflatedNegativeBinomial()):
        params = jnp.zeros((1, likelihood.params_shape((3,))[0]))
        of_params = jax.jit(jax.value_and_grad(lambda p, of=likelihood: of.log_prob(p, jnp.zeros((1, 3))).sum()))
        value, gradient = of_params(params)
        assert jnp.isfinite(value)
        assert jnp.isfinite(gradient).all()


@pytest.fixture(scope="module")
def cells() -> tuple[scipy.sparse.csr_matrix, np.ndarray, np.ndarray]:
    """Counts of 30 genes in 200 cells, of two types, in two batches that measure some genes far more often."""
    rng = np.random.default_rng(0)
    kinds, batches = rng.integers(0, 2, (2, 200))
    rates = np.exp(rng.normal(0, 0.3, 30))[None] * np.where(kinds[:, None] == np.arange(30) % 2, 3.0, 0.5)
    rates = rates * np.where((batches[:, None] == 1) & (np.arange(30) >= 20), 4.0, 1.0) * rng.uniform(0.5, 2, (200, 1))
    return scipy.sparse.csr_matrix(rng.poisson(rng.gamma(5, rates / 5)).astype(np.float32)), kinds, batches


@pytest.fixture(scope="module")
def embedder(cells) -> CellEmbedder:
    x, _, batches = cells
    return CellEmbedder(2, hidden=(16,), epochs=300, batch_size=60, learning_rate=2e-2, random_state=0).fit(
        x, batch=batches
    )


def test_types_are_apart_and_batches_are_mixed(embedder, cells):
    x, kinds, batches = cells
    z = embedder.transform(x, batch=batches)
    raw = np.log1p(x.toarray())
    assert silhouette_score(z, kinds) > 0.3
    own, measured = ([silhouette_score(of[kinds == k], batches[kinds == k]) for k in (0, 1)] for of in (z, raw))
    assert np.mean(own) < 0.5 * np.mean(measured)


def test_normalised_expression_has_neither_size_nor_batch(embedder, cells):
    x, kinds, batches = cells
    made = embedder.normalized(x, batch=batches)
    np.testing.assert_allclose(made.sum(1), 1, rtol=1e-3)
    one = kinds == 0
    profile = [made[one & (batches == i)][:, 20:].sum(1).mean() for i in (0, 1)]
    measured = [(x[one & (batches == i)][:, 20:].sum() / x[one & (batches == i)].sum()) for i in (0, 1)]
    assert abs(profile[0] - profile[1]) < 0.25 * abs(measured[0] - measured[1])


def test_an_embedder_is_saved_with_its_batches(embedder, cells, tmp_path):
    x, _, batches = cells
    embedder.save(tmp_path / "saved")
    loaded = flaxae.load(tmp_path / "saved")
    np.testing.assert_array_equal(loaded.transform(x, batch=batches), embedder.transform(x, batch=batches))
    with pytest.raises(errors.DataError, match="Unknown batch '7'"):
        loaded.transform(x, batch=[7] * 200)
    with pytest.raises(errors.DataError, match="expected one for each"):
        loaded.transform(x)
    with pytest.raises(errors.DataError, match="no counts"):
        loaded.transform(x * 0.5, batch=batches)
    with pytest.raises(errors.ConfigError, match="zero_inflated"):
        CellEmbedder(likelihood="zero_inflatd").fit(x)
