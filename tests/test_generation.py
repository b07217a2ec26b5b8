"""Priors of codes, and the quality of samples: closed forms, scikit-learn, and what is saved."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import linalg
from sklearn.neighbors import NearestNeighbors

import flaxae
from flaxae import autoencoder, data, errors, generation, presets, trained
from flaxae.generation import CodePrior
from flaxae.nn.heads import TopK, VectorQuantizer


@pytest.fixture
def blobs(rng):
    """Codes of three classes in a plane, and their labels."""
    labels = rng.integers(0, 3, 900)
    centres = np.array([[0.0, 0.0], [8.0, 0.0], [0.0, 8.0]])
    return centres[labels] + rng.standard_normal((900, 2)), labels


def test_a_prior_gives_back_the_codes_distribution_class_by_class(blobs):
    codes, labels = blobs
    prior = CodePrior.fit(codes, labels, ("a", "b", "c"))
    drawn = prior.sample(4000)
    np.testing.assert_allclose(drawn.mean(0), codes.mean(0), atol=0.25)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(codes.T), rtol=0.15, atol=0.8)
    for index, label in enumerate("abc"):
        own = prior.sample(500, label=label)
        np.testing.assert_allclose(own.mean(0), codes[labels == index].mean(0), atol=0.3)
    with pytest.raises(errors.ConfigError, match="class"):
        prior.sample(1, label="d")
    with pytest.raises(errors.ConfigError, match="without labels"):
        CodePrior.fit(codes).sample(1, label="a")


def test_examples_without_a_label_and_tiny_classes_do_no_harm(blobs):
    codes, labels = blobs
    few = np.where(labels == 2, -1, labels)
    few[0], few[1:3] = 2, 1
    prior = CodePrior.fit(codes, few, ("a", "b", "c", "none"))
    np.testing.assert_allclose(prior.sample(3, label="c"), np.tile(codes[0], (3, 1)), atol=1e-3)
    with pytest.raises(errors.ConfigError, match="class"):
        prior.sample(1, label="none")


def test_a_prior_of_grids_keeps_their_covariance(rng):
    mixing = rng.standard_normal((12, 192)) / 3
    grids = (rng.standard_normal((3000, 12)) @ mixing + 0.1 * rng.standard_normal((3000, 192))).reshape(-1, 8, 8, 3)
    prior = CodePrior.fit(grids, components=1)
    drawn = prior.sample(3000)
    assert drawn.shape == grids.shape
    wanted, found = (np.cov(x.reshape(len(x), -1).T) for x in (grids, drawn))
    assert np.linalg.norm(found - wanted) < 0.2 * np.linalg.norm(wanted)


@given(st.integers(1, 4), st.integers(1, 5), st.booleans())
def test_codes_of_several_parts_keep_their_shapes(side, width, labelled):
    rng = np.random.default_rng(side)
    codes = rng.standard_normal((40, side, side, width)), rng.standard_normal((40, width))
    labels = rng.integers(0, 2, 40) if labelled else None
    prior = CodePrior.fit(codes, labels, ("x", "y") if labelled else ())
    first, second = prior.sample(7, seed=1)
    assert (first.shape, second.shape) == ((7, side, side, width), (7, width))
    np.testing.assert_array_equal(first, prior.sample(7, seed=1)[0])


def test_a_saved_prior_draws_the_same_and_is_guarded(blobs, tmp_path):
    prior = CodePrior.fit(*blobs, ("a", "b", "c"))
    prior.save(tmp_path / "prior")
    np.testing.assert_array_equal(CodePrior.load(tmp_path / "prior").sample(9, label="b"), prior.sample(9, label="b"))
    (tmp_path / "prior" / "prior.json").write_text('{"shapes": [[3]], "classes": []}')
    with pytest.raises(errors.RunError, match="changed"):
        CodePrior.load(tmp_path / "prior")
    (tmp_path / "prior" / "manifest").unlink()
    with pytest.raises(errors.RunError, match="no prior that can be read"):
        CodePrior.load(tmp_path / "prior")


def test_a_loaded_model_samples_in_its_data_s_units(digits, tmp_path):
    x = (255 * digits[:200]).astype(np.uint8)
    labels = np.arange(200) % 2
    dataset = data.load((x, labels))
    model = autoencoder.build(presets.vanilla(4), dataset.shape)
    known = flaxae.Trained(model, dataset.scaling, dataset.shape, dataset.kind, dataset.columns)
    with pytest.raises(errors.ConfigError, match="with_prior"):
        known.sample(2)
    trained.save(known.with_prior(x, labels, ("even", "odd"), components=6), tmp_path / "model")
    loaded = flaxae.load(tmp_path / "model")
    assert len(loaded.prior.mixture.weights) == 6
    samples = loaded.sample(5, label="odd", seed=3)
    assert (samples.shape, samples.dtype) == ((5, 8, 8, 1), np.uint8)
    np.testing.assert_array_equal(samples, loaded.sample(5, label="odd", seed=3))


@pytest.mark.parametrize("head", [TopK(12, 3), VectorQuantizer(12, 4, 3)])
def test_samples_of_a_head_that_gives_only_some_codes_are_of_those(digits, head):
    config = flaxae.Config(body=flaxae.MLP((16,)), head=head)
    model = autoencoder.build(config, (8, 8, 1))
    prior = generation.fit(model, digits[:100])
    z = model.head.nearest(jnp.asarray(prior.sample(20)))
    np.testing.assert_allclose(generation.sample(model, prior, 20), model.reconstruct(model.decode(z)), atol=1e-5)
    np.testing.assert_allclose(model.head.nearest(z), z)
    if isinstance(head, TopK):
        assert (np.count_nonzero(z, axis=1) == 3).all()


def test_samples_of_deterministic_codes_are_reconstructed_once(digits):
    model = autoencoder.build(presets.vanilla(16), (8, 8, 1))
    prior = generation.fit(model, digits[:100])
    decoded = model.decode(prior.sample(9))
    np.testing.assert_allclose(generation.sample(model, prior, 9), model.reconstruct(decoded), atol=1e-5)
    variational = autoencoder.build(presets.variational(3), (8, 8, 1))  # whose codes are draws: they stay
    prior = generation.fit(variational, digits[:100])
    np.testing.assert_allclose(generation.sample(variational, prior, 9), variational.decode(prior.sample(9)), atol=1e-5)


def test_a_variational_model_s_prior_is_of_its_draws(digits):
    model = autoencoder.build(presets.variational(3), (8, 8, 1))
    codes = generation.codes(model, digits[:500])
    latent = model.head(model.features(jnp.asarray(digits[:500])))
    spread = (codes - latent.mean) / np.exp(0.5 * np.asarray(latent.logvar))
    assert 0.9 < spread.std() < 1.1


def test_frechet_distance_is_that_of_normals(rng):
    a = rng.standard_normal((4000, 3)) @ rng.standard_normal((3, 3))
    b = 1.5 + rng.standard_normal((3000, 3)) @ rng.standard_normal((3, 3))
    ca, cb = np.cov(a.T), np.cov(b.T)
    wanted = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(ca + cb - 2 * linalg.sqrtm(ca @ cb).real)
    assert generation.frechet_distance(a, b) == pytest.approx(wanted, rel=1e-6)
    assert generation.frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_kernel_distance_is_unbiased(rng):
    a, b = rng.standard_normal((60, 4)), 0.3 + rng.standard_normal((50, 4))
    kernel = [(x @ y.T / 4 + 1) ** 3 for x, y in ((a, a), (b, b), (a, b))]
    off = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in kernel[:2]]
    assert generation.kernel_distance(a, b) == pytest.approx(sum(off) - 2 * kernel[2].mean())
    same = [generation.kernel_distance(*rng.standard_normal((2, 200, 4))) for _ in range(40)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(len(same))


def test_precision_and_recall_tell_what_lacks(rng):
    real = np.concatenate([rng.standard_normal((300, 2)), 50 + rng.standard_normal((300, 2))])
    half = rng.standard_normal((600, 2))
    precision, recall = generation.precision_recall(half, real)
    assert precision > 0.95
    assert 0.4 < recall < 0.55  # one of two clusters is missing
    noise = real + 500
    assert generation.precision_recall(noise, real) == (0, 0)


def test_the_nearest_is_scikit_learn_s(rng):
    x, among = rng.random((30, 4, 2), dtype=np.float32), rng.random((80, 4, 2), dtype=np.float32)
    found, distance = generation.nearest(x, among)
    wanted, index = NearestNeighbors(n_neighbors=1).fit(among.reshape(80, -1)).kneighbors(x.reshape(30, -1))
    np.testing.assert_array_equal(found, index[:, 0])
    np.testing.assert_allclose(distance, wanted[:, 0] / np.sqrt(8), rtol=1e-4)


def test_a_learnt_space_tells_samples_from_noise(digits, rng):
    from sklearn.datasets import load_digits

    labels = load_digits().target
    space = generation.learn(digits[:1200], labels[:1200], 10)
    good, bad = (generation.compare(space, x, digits[1200:]) for x in (digits[:600], rng.random((600, 8, 8, 1), "f")))
    assert good.frechet_distance < 0.1 * bad.frechet_distance
    assert good.recall > 0.7 > bad.precision
    assert good.confident > bad.confident
    with pytest.raises(errors.DataError):
        generation.learn(digits[:20], np.full(20, -1), 10)


def test_rows_that_give_training_rows_away_are_noticed(rng):
    mixing = rng.standard_normal((4, 4))
    train, test, fresh = (rng.standard_normal((800, 4)) @ mixing for _ in range(3))
    honest = generation.compare_tables(fresh, train, test)
    assert honest.marginals.max() < 0.1
    assert honest.correlations < 0.1
    assert honest.nearest == pytest.approx(1, abs=0.15)
    assert honest.closer == pytest.approx(0.5, abs=0.07)
    copied = generation.compare_tables(train + 1e-3, train, test)
    assert copied.closer > 0.95
    assert copied.nearest < 0.05
    shuffled = np.stack([rng.permutation(column) for column in train.T], axis=1)
    assert generation.compare_tables(shuffled, train, test).correlations > 3 * honest.correlations
