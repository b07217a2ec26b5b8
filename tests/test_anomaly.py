"""Anomaly scores against NumPy, SciPy and scikit-learn, on a tiny detector that is trained once."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from flaxae import anomaly, autoencoder, data, density, errors, presets, training
from flaxae.anomaly import Detector, Views, conformal
from flaxae.anomaly.detector import _filled_up
from flaxae.autoencoder import Autoencoder, Config
from flaxae.likelihoods import Gaussian
from flaxae.nn.heads import Deterministic
from flaxae.nn.mlp import MLP
from flaxae.objectives import Trimmed

CONFIG = Config(body=MLP((16,)), head=Deterministic(2), likelihood=Gaussian())
TRAIN = {"kind": "tabular", "config": CONFIG, "epochs": 60}


def rows(n, seed):
    """Six columns, all functions of two numbers."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).standard_normal((2, 6))
    return (rng.standard_normal((n, 2)) @ mixing + 0.1 * rng.standard_normal((n, 6))).astype(np.float32)


@pytest.fixture(scope="session")
def detector():
    return anomaly.fit(rows(300, 1), **TRAIN, score="reconstruction")


@pytest.fixture(scope="session")
def parts():
    """What the detector was trained on, and what was held out."""
    return anomaly.hold_out(rows(300, 1), anomaly.HELD_OUT, 0)


@pytest.fixture(scope="session")
def scored_by(detector, parts):
    """The detector of that score."""
    return functools.cache(lambda name: Detector.of(CONFIG, detector.models, detector.views, *parts, score=name))


def standardised(values, references):
    centre = np.median(references)
    return (values - centre) / (np.median(np.abs(references - centre)) + 1e-6)


@pytest.mark.parametrize("name", anomaly.SCORES)
def test_scores_are_higher_for_anomalies_and_do_not_depend_on_the_batch(scored_by, name):
    normal, strange = rows(100, 2), 3 * rows(100, 3)
    strange[:, 2] += 3
    x = np.concatenate([normal, strange])
    scores = scored_by(name).score(x)
    assert np.isfinite(scores).all()
    assert roc_auc_score(np.arange(200) >= 100, scores) > 0.85
    np.testing.assert_array_equal(scored_by(name).score(x), scores)
    np.testing.assert_allclose(scored_by(name).score(x[:60:-1]), scores[:60:-1], rtol=1e-4, atol=1e-3)


def test_a_row_has_the_same_score_alone(scored_by):
    x = rows(200, 2)
    alone = scored_by("combined").score(x[150:151])
    np.testing.assert_allclose(alone, scored_by("combined").score(x)[150:151], rtol=1e-3, atol=1e-2)


def test_blocks_make_no_difference(detector, monkeypatch):
    x = rows(200, 2)
    expected = detector.score(x)
    monkeypatch.setattr(anomaly.detector, "BLOCK", 64)  # four blocks, the last of them not full
    np.testing.assert_allclose(detector.score(x), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("count", [50, 1000])  # looked through one by one, and in groups that aren't all full
@pytest.mark.parametrize("own", [False, True])
def test_the_nearest_are_those_of_scikit_learn(rng, own, count):
    references = rng.standard_normal((count, 3)).astype(np.float32)
    found = NearestNeighbors(n_neighbors=4, algorithm="brute").fit(references)
    x = references if own else rng.standard_normal((20, 3)).astype(np.float32)
    expected, expected_index = found.kneighbors() if own else found.kneighbors(x)
    left_out = jnp.arange(count) if own else jnp.full(20, -1)
    square, index = anomaly.nearest(jnp.asarray(references), jnp.asarray(x), 4, left_out)
    np.testing.assert_allclose(np.sqrt(square), expected, atol=1e-3)
    np.testing.assert_array_equal(index, expected_index)


def test_the_reconstruction_score_is_the_mean_squared_residual(detector, parts):
    def score(x):
        residual = x - training.apply(Autoencoder.reconstruct, detector.models[0], x)
        return np.log(np.mean(np.square(residual), axis=1))

    new = rows(200, 2)
    np.testing.assert_allclose(detector.score(new), standardised(score(new), score(parts[0])), rtol=1e-3, atol=1e-3)


def test_the_mahalanobis_score_is_numpy_s(scored_by, detector, parts):
    codes, new = (training.apply(Autoencoder.encode, detector.models[0], x) for x in (parts[0], rows(200, 2)))
    precision = np.linalg.inv(np.cov(codes, rowvar=False))

    def score(z):
        apart = z - codes.mean(axis=0)
        return np.log(np.einsum("ni,ij,nj->n", apart, precision, apart) / 2)

    found = scored_by("mahalanobis").score(rows(200, 2))
    np.testing.assert_allclose(found, standardised(score(new), score(codes)), rtol=1e-3, atol=1e-3)


def test_the_latent_neighbours_score_is_scikit_learn_s(scored_by, detector, parts):
    codes, new = (training.apply(Autoencoder.encode, detector.models[0], x) for x in (parts[0], rows(200, 2)))
    codes, new = codes / codes.std(axis=0), new / codes.std(axis=0)
    found = NearestNeighbors(n_neighbors=anomaly.NEIGHBOURS).fit(codes)
    near, others = (np.log(distances[0].mean(axis=1)) for distances in (found.kneighbors(new), found.kneighbors()))
    scores = scored_by("latent_neighbours").score(rows(200, 2))
    np.testing.assert_allclose(scores, standardised(near, others), rtol=5e-3, atol=5e-2)


def test_the_pathway_is_of_the_encoder_on_an_example_and_on_its_reconstruction(scored_by, detector, parts):
    model = detector.models[0]

    def score(x):
        def path(x):
            features = model.encoder(x)
            return np.concatenate([x, features, model.head(features).z], axis=1)

        return np.log(np.mean(np.square(path(x) - path(model.reconstruct(x))), axis=1))

    found, new = scored_by("sap").score(rows(200, 2)), rows(200, 2)
    np.testing.assert_allclose(found, standardised(score(new), score(parts[0])), rtol=1e-2, atol=1e-2)


def test_the_likelihood_of_a_variational_model_is_importance_sampled(parts):
    config = dataclasses.replace(presets.variational(latent=1, likelihood=Gaussian()), body=MLP((8,)))
    model = autoencoder.build(config, (6,))
    scores = Detector.of(config, [model], Views("tabular"), *parts, score="likelihood").score(rows(200, 2))
    nats = density.negative_log_likelihood(model, rows(200, 2), samples=1024)
    assert np.corrcoef(scores, nats)[0, 1] > 0.999


def test_p_values_compare_with_what_was_held_out(detector):
    new = rows(200, 2)
    assert len(detector.calibration) == 60
    expected = conformal.p_values(detector.score(new), detector.calibration)
    np.testing.assert_array_equal(detector.p_values(new), expected)


def test_a_detector_keeps_the_promise_over_random_splits(detector, rng):
    scores, rate, normals, splits = detector.score(rows(250, 4)), 0.1, 99, 200
    rates = []
    for _ in range(splits):
        shuffled = rng.permutation(scores)
        rates.append(np.mean(shuffled[normals:] > conformal.threshold(shuffled[:normals], rate)))
    assert abs(np.mean(rates) - rate) < 4 * math.sqrt(rate * (1 - rate) / (normals + 2) / splits)


def test_contributions_point_at_the_column(detector):
    x = rows(200, 5)
    strange = np.arange(200) % 6
    x[np.arange(200), strange] += 8
    shares = detector.contributions(x)
    assert (shares >= 0).all()
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-4)
    assert np.mean(shares.argmax(axis=1) == strange) > 0.8


@pytest.fixture(scope="session")
def of_images(digits):
    config = Config(body=MLP((32,)), head=Deterministic(4), likelihood=Gaussian())
    return anomaly.fit(digits[:400], kind="image", config=config, epochs=20)


def test_contributions_point_at_the_pixels(of_images, digits):
    x = digits[400:700].copy()
    x[:, 2:4, 0:2] = 1  # where no digit is
    shares = of_images.contributions(x)[..., 0]
    assert shares.shape == (300, 8, 8)
    assert np.median(shares[:, 2:4, 0:2].sum(axis=(1, 2))) > 0.3  # 4 pixels of 64
    scores = np.concatenate([of_images.score(digits[400:700]), of_images.score(x)])
    assert roc_auc_score(np.arange(600) >= 300, scores) > 0.8
    assert of_images.reconstruct(x).shape == x.shape


def test_images_darker_than_those_trained_on_have_scores(of_images, digits):
    assert np.isfinite(of_images.score(digits[400:700] - np.float32(0.5))).all()


def test_views_smooth_images_as_scipy_does(rng):
    x = rng.random((2, 28, 30, 4), np.float32)  # two views of two channels
    expected = np.stack([[gaussian_filter(c, 1.0, mode="constant") for c in np.moveaxis(image, -1, 0)] for image in x])
    split = np.asarray(Views("image").split(jnp.asarray(x))).reshape(2, 2, 28, 30, 2)
    np.testing.assert_allclose(np.moveaxis(split, -1, 2).reshape(2, 4, 28, 30), expected, atol=1e-5)


def test_views_of_an_image_are_its_root_and_its_pattern(rng):
    x = rng.random((3, 4, 4, 1), np.float32)
    views = Views.fit("image", x)
    bright, dim = views(x), views(x / 4)
    np.testing.assert_allclose(bright[..., :1], np.sqrt(x), rtol=1e-5)
    np.testing.assert_allclose(bright[..., 1:], dim[..., 1:], rtol=1e-5)
    np.testing.assert_allclose(np.square(bright[..., 1:]).sum(axis=(1, 2, 3)), views.norm**2, rtol=1e-4)
    assert views(np.zeros_like(x)).tolist() == np.zeros((3, 4, 4, 2)).tolist()


def test_a_saved_detector_is_the_same(of_images, digits, tmp_path):
    of_images.save(tmp_path / "detector")
    loaded = anomaly.load(tmp_path / "detector")
    x = digits[400:700]
    np.testing.assert_array_equal(loaded.score(x), of_images.score(x))
    np.testing.assert_array_equal(loaded.p_values(x), of_images.p_values(x))
    np.testing.assert_array_equal(loaded.contributions(x), of_images.contributions(x))
    assert (loaded.config, loaded.views, loaded.score_name) == (of_images.config, of_images.views, "combined")


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda folder: (folder / "detector.json").unlink(), errors.RunError),
        (lambda folder: (folder / "detector.json").write_text("{}"), errors.RunError),
        (lambda folder: np.savez(folder / "detector.npz", calibration=np.zeros(3)), errors.RunError),
        (lambda folder: (folder / "detector.npz").write_bytes(b"PK"), errors.RunError),
        (lambda folder: (folder / "models/0/manifest").unlink(), errors.CheckpointError),
    ],
)
def test_a_damaged_detector_is_refused(detector, tmp_path, damage, error):
    detector.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(error):
        anomaly.load(tmp_path)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 0.49])
def test_trimmed_leaves_out_the_worst(detector, rng, fraction):
    losses = rng.standard_normal((20, 1)).astype(np.float32)
    objective = Trimmed(lambda model, x, key: x[:, 0], fraction)
    found = np.asarray(objective(detector.models[0], jnp.asarray(losses), jax.random.key(0)))
    kept = losses[:, 0] <= np.quantile(losses, 1 - fraction) + 1e-6
    np.testing.assert_allclose(found.mean(), losses[kept].mean(), rtol=1e-4, atol=1e-5)
    assert found[~kept].tolist() == [0] * (20 - kept.sum())
    assert kept.sum() >= math.floor(20 * (1 - fraction))


def test_trimming_keeps_scattered_anomalies_from_being_learned(rng):
    def strange(n):
        return 1.5 * rng.standard_normal((n, 6)).astype(np.float32)

    train, new = np.concatenate([rows(210, 7), strange(90)]), np.concatenate([rows(200, 8), strange(40)])
    settings = TRAIN | {"config": CONFIG.with_latent(3), "epochs": 60, "held_out": 0.0}

    def confused(contamination):
        """Of the pairs of a normal and a strange row, the fraction that is ranked the wrong way round."""
        fitted = anomaly.fit(train, contamination=contamination, score="reconstruction", **settings)
        return 1 - roc_auc_score(np.arange(240) >= 200, fitted.score(new))

    assert confused(0.35) < 0.5 * confused(0.0)


@pytest.mark.parametrize("columns", [1, 5, 13])
def test_what_fills_up_a_table_has_no_effect(rng, columns):
    x = rng.normal(size=(150, columns)).astype(np.float32) @ rng.normal(size=(columns, columns)).astype(np.float32)
    train, held_out, new = x[:90], x[90:110], x[110:]
    detector = anomaly.fit(train, kind="tabular", epochs=20, held_out=held_out)
    config = anomaly.default_config("tabular", (columns,))
    assert detector.views.width > columns
    assert detector.config.latent >= config.latent

    cut = autoencoder.build(config, (columns,))
    (network,) = detector.models

    def corner(small, filled):
        assert np.count_nonzero(filled) <= small.size  # what fills up has weights of 0 after the training too
        return filled[tuple(slice(size) for size in small.shape)]

    nnx.update(cut, jax.tree.map(corner, nnx.state(cut, nnx.Param), nnx.state(network, nnx.Param)))
    alone = Detector.of(config, [cut], Views("tabular"), train, held_out, score="ensemble", contamination="auto")
    alone = alone.with_references(held_out)
    np.testing.assert_allclose(detector.score(new), alone.score(new), rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(detector.contributions(new), alone.contributions(new), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(detector.reconstruct(new), alone.reconstruct(new), atol=1e-5)
    np.testing.assert_allclose(detector.calibration, alone.calibration, rtol=2e-3, atol=2e-3)


def test_the_first_weights_of_a_table_that_is_filled_up_vary_as_those_of_one_that_is_not():
    _, wide, (network,) = _filled_up(anomaly.default_config("tabular", (33,)), 33, [0])
    alone = autoencoder.build(anomaly.default_config("tabular", (33,)), (33,))
    deviations = [
        [
            np.std(kernel[kernel != 0])
            for kernel in map(np.asarray, jax.tree.leaves(nnx.state(model)))
            if kernel.ndim == 2
        ]
        for model in (network, alone)
    ]
    assert wide.latent == 32
    np.testing.assert_allclose(*deviations, rtol=0.1)


@pytest.mark.parametrize(("examples", "planted"), [(300, 6), (500, 20)])
def test_planted_rows_set_no_threshold_and_are_flagged_for_what_is_strange_in_them(rng, examples, planted):
    x = np.concatenate([rng.normal(size=(examples, 3)), np.eye(2)[rng.integers(2, size=examples)]], axis=1)
    x[:planted, :2] = 8 + 0.1 * rng.normal(size=(planted, 2))
    detector, scores = anomaly.fit_folds(x.astype(np.float32), kind="tabular", epochs=40)
    assert detector.contamination == pytest.approx(planted / examples, abs=1.5 / examples)
    flagged = conformal.p_values(scores, detector.calibration) <= 0.01
    assert flagged[:planted].all()
    assert flagged[planted:].mean() < 0.025
    shares = detector.contributions(x[:planted].astype(np.float32))
    assert shares[:, :2].sum(axis=1).min() > 0.8  # though the nearest rows are planted, too

    clean, _ = anomaly.fit_folds(x[planted:].astype(np.float32), kind="tabular", epochs=40)
    assert clean.contamination <= 2 / examples


def test_the_score_of_members_is_the_mean_of_theirs(parts):
    logged = []
    detector = anomaly.fit(rows(300, 1), **TRAIN | {"epochs": 80}, members=2, on_epoch=logged.append)
    alone = [Detector.of(CONFIG, [model], detector.views, *parts, score="ensemble") for model in detector.models]
    alone = [one.with_references(parts[1]) for one in alone]
    new = rows(200, 2)
    scores = [one.score(new) for one in alone]
    assert not np.allclose(*scores)
    np.testing.assert_allclose(detector.score(new), np.mean(scores, axis=0), rtol=1e-5)
    assert [epoch["epoch"] for epoch in logged] == list(range(1, 81))
    assert logged[0]["loss"] > logged[-1]["loss"]


@given(
    st.integers(2, 400),
    st.floats(0, 0.9),
    st.integers(2, 9).flatmap(lambda w: st.tuples(st.just(w), st.integers(1, w))),
)
def test_windows_held_out_share_no_moment_with_those_trained_on(length, fraction, framing):
    window, stride = framing
    if length < window:
        return
    cut = data.windows(np.arange(length), window, stride)
    try:
        train, held_out = anomaly.hold_out(cut, fraction, 0, apart=math.ceil(window / stride))
    except errors.DataError:
        assert round(fraction * len(cut)) + math.ceil(window / stride) + 2 > len(cut)
        return
    assert len(held_out) == round(fraction * len(cut))
    assert held_out.size == 0 or train.max() < held_out.min()


def test_what_is_held_out_is_drawn_by_the_seed():
    x = np.arange(50)
    train, held_out = anomaly.hold_out(x, 0.2, 0)
    assert sorted([*train, *held_out]) == x.tolist()
    assert len(held_out) == 10
    assert not np.array_equal(held_out, anomaly.hold_out(x, 0.2, 1)[1])


@pytest.mark.parametrize("name", ["combined", "standardised", "mahalanobis"])
def test_equal_rows_and_fewer_rows_than_columns_have_finite_scores(name, rng):
    for train in (np.ones((8, 20), np.float32), rng.standard_normal((8, 20)).astype(np.float32)):
        train[:, 3] = 2  # a constant column
        model = autoencoder.build(CONFIG, (20,))
        detector = Detector.of(CONFIG, [model], Views("tabular"), train, train[:0], score=name)
        scores = detector.score(np.concatenate([train[:4], train[:4] + 5]))
        assert np.isfinite(scores).all()
        assert np.isfinite(detector.calibration).all()


@pytest.mark.parametrize(
    ("x", "settings", "message"),
    [
        (rows(1, 0), {}, "1 examples can't be split"),
        (rows(10, 0)[:0], {}, "0 examples can't be split"),
        (np.full((20, 3), np.nan, np.float32), {}, "NaN or infinite"),
        (np.full((20, 4, 4, 1), np.inf, np.float32), {"kind": "image"}, "NaN or infinite"),
        (np.zeros(20, np.float32), {}, r"have shape \(16,\)"),
        (rows(10, 0), {"contamination": 0.5}, "contamination is 0.5"),
        (rows(10, 0), {"members": 0}, "members is 0"),
        (rows(10, 0), {"held_out": 1.0}, "held_out is 1.0"),
        (rows(10, 0), {"neighbours": 0}, "neighbours is 0"),
        (rows(10, 0), {"neighbours": 1.5}, "neighbours is 1.5"),
        (rows(10, 0), {"score": "likelyhood"}, "Did you mean 'likelihood'"),
        (rows(10, 0), {"kind": "table"}, "Unknown kind 'table'"),
    ],
)
def test_what_can_not_be_fitted_is_refused(x, settings, message):
    with pytest.raises((errors.DataError, errors.ConfigError), match=message):
        anomaly.fit(x, **TRAIN | {"epochs": 1} | settings)


@pytest.mark.parametrize("use", ["score", "p_values", "contributions", "reconstruct"])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((3, 5), np.float32), r"shape \(3, 5\); expected \[examples, 6\]"),
        (np.zeros((0, 6), np.float32), "at least one example"),
        (np.full((3, 6), np.nan, np.float32), "NaN or infinite"),
    ],
)
def test_what_can_not_be_scored_is_refused(detector, use, x, message):
    with pytest.raises(errors.DataError, match=message):
        getattr(detector, use)(x)
