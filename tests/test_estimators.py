import dataclasses
import json
import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.metrics import precision_score, roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.utils.estimator_checks import check_classifiers_classes, parametrize_with_checks

from flaxae import errors, finetuning, training
from flaxae.autoencoder import Config
from flaxae.corruptions import GaussianNoise
from flaxae.estimators import (
    AutoencoderClassifier,
    AutoencoderDetector,
    AutoencoderTransformer,
    DenoisingAutoencoder,
)
from flaxae.likelihoods import Gaussian
from flaxae.nn.heads import Deterministic
from flaxae.nn.mlp import MLP
from flaxae.training import feed

# The same network for all, so that one program for each number of columns serves every test here.
TINY = {"latent": 2, "hidden": (8,), "noise": 0.1, "epochs": 2, "random_state": 0}
LINEAR = {**TINY, "hidden": ()}  # the quickest to compile, for checks with tables of many widths
LINEAR_CONFIG = Config(body=MLP(()), head=Deterministic(2), likelihood=Gaussian(), corruption=GaussianNoise(0.1))
BOTH = pytest.mark.parametrize("kind", [AutoencoderTransformer, DenoisingAutoencoder])
OFFSET, SCALE = np.array([1e6, 0.0, -3.0]), np.array([1e3, 1.0, 1e-3])


@pytest.fixture(scope="module")
def surface() -> np.ndarray:
    """A curved surface in three columns of very different units, [600, 3]."""
    u, v = np.random.default_rng(0).uniform(-1, 1, (2, 600))
    return np.stack([u, v, u * v], axis=1) * SCALE + OFFSET


@pytest.fixture(scope="module")
def fitted(surface) -> AutoencoderTransformer:
    return AutoencoderTransformer(**{**TINY, "epochs": 60}).fit(surface[:400])


@pytest.fixture
def untrained(monkeypatch) -> None:
    """Detectors as initialised, for what is not about the weights: compiling the training of each table takes long."""
    monkeypatch.setattr(training, "fit", lambda model, x, **settings: None)


@pytest.fixture
def one_ridge(monkeypatch) -> None:
    """Probes of one strength, for what is not about how good they are: choosing it takes most of a short `fit`."""
    monkeypatch.setattr(finetuning.probes, "CS", [1.0])


@parametrize_with_checks([AutoencoderTransformer(**LINEAR), DenoisingAutoencoder(**LINEAR)])
def test_the_transformers_are_what_scikit_learn_expects(estimator, check):
    check(estimator)


@parametrize_with_checks(
    [
        AutoencoderDetector(
            convention=convention, score_name="reconstruction", config=LINEAR_CONFIG, epochs=1, random_state=0
        )
        for convention in ("pyod", "sklearn")
    ],
    expected_failed_checks=lambda estimator: {
        f"check_estimator_sparse_{kind}": "takes what has predict_proba for a classifier"
        for kind in ("matrix", "array")
    },
)
def test_the_detector_is_what_scikit_learn_expects(estimator, check):
    check(estimator)


@parametrize_with_checks(
    [AutoencoderClassifier(**LINEAR)],
    expected_failed_checks=lambda estimator: {"check_classifiers_classes": "takes −1 for a class; see below"},
)
def test_the_classifier_is_what_scikit_learn_expects(estimator, check, one_ridge):
    check(estimator)


def test_the_classes_are_what_scikit_learn_expects_of_its_own_semi_supervised_classifiers(one_ridge):
    # The check knows its own by their names, and leaves −1 out for them.
    check_classifiers_classes("SelfTrainingClassifier", AutoencoderClassifier(**LINEAR))


def test_the_code_keeps_more_than_pcas(surface, fitted):
    train, test = np.split(StandardScaler().fit(surface[:400]).transform(surface), [400])
    pca = PCA(2).fit(train)
    lost = np.mean((pca.inverse_transform(pca.transform(test)) - test) ** 2)
    assert -fitted.score(surface[400:]) < 0.5 * lost


def test_the_score_is_the_error_of_the_way_there_and_back(surface, fitted):
    back = fitted.inverse_transform(fitted.transform(surface))
    error = np.mean(((back - surface) / surface[:400].std(axis=0)) ** 2)
    assert -fitted.score(surface) == pytest.approx(error, rel=1e-4)


def test_denoising_bring_rows_nearer_to_the_clean_ones(rng):
    angle = rng.uniform(0, 2 * np.pi, 600)
    circle = np.stack([np.cos(angle), np.sin(angle), -np.cos(angle)], axis=1) * SCALE + OFFSET
    model = DenoisingAutoencoder(**{**TINY, "epochs": 150, "noise": 0.4}).fit(circle[:400])
    clean, noise = circle[400:], 0.3 * SCALE * rng.standard_normal((200, 3))
    error = np.square((model.transform(clean + noise) - clean) / SCALE).mean()
    assert error < 0.6 * np.square(noise / SCALE).mean()  # onto the circle's plane, a projection leaves 2/3


def test_a_column_that_does_not_vary_comes_back_as_it_was(surface):
    X = surface.copy()
    X[:, 2] = 1e-9
    model = AutoencoderTransformer(**TINY).fit(X)
    np.testing.assert_allclose(model.inverse_transform(model.transform(X))[:, 2], 1e-9, rtol=1e-9)
    assert np.isfinite(model.transform(surface)).all()


@BOTH
def test_as_many_partial_fits_are_a_fit(kind, surface):
    whole = kind(**{**TINY, "epochs": 3}).fit(surface)
    parted = kind(**TINY)
    for _ in range(3):
        parted.partial_fit(surface)
    np.testing.assert_array_equal(whole.transform(surface), parted.transform(surface))
    assert whole.loss_curve_ == parted.loss_curve_
    assert whole.loss_curve_[-1] < whole.loss_curve_[0]


def test_partial_fit_keeps_the_first_standardisation(surface):
    model = AutoencoderTransformer(**TINY).partial_fit(surface[:50])
    before = model.mean_
    np.testing.assert_allclose(model.partial_fit(surface).mean_, surface[:50].mean(axis=0))
    assert model.mean_ is before


def test_the_seed_decides_everything(surface):
    def codes(random_state: int | np.random.RandomState | None) -> np.ndarray:
        model = AutoencoderTransformer(**{**TINY, "random_state": random_state})
        return model.fit_transform(surface)

    np.testing.assert_array_equal(codes(3), codes(3))
    np.testing.assert_array_equal(codes(3), codes(np.random.RandomState(3)))
    assert (codes(3) != codes(4)).any()
    assert (codes(None) != codes(None)).any()


def test_units_do_not_matter(surface, fitted):
    other = clone(fitted).fit((surface[:400] - OFFSET) / SCALE)
    codes = other.transform((surface - OFFSET) / SCALE)
    np.testing.assert_allclose(codes, fitted.transform(surface), atol=1e-2)


@BOTH
def test_saved_and_loaded_it_goes_on_as_if_nothing_had_happened(kind, surface, tmp_path):
    frame = pd.DataFrame(surface, columns=["time", "load", "drift"])
    model = kind(**{**TINY, "random_state": np.int64(3)}).fit(frame)
    model.save(tmp_path / "model")
    loaded = kind.load(tmp_path / "model")
    assert loaded.get_params() == model.get_params()
    assert loaded.feature_names_in_.tolist() == ["time", "load", "drift"]
    np.testing.assert_array_equal(loaded.transform(frame), model.transform(frame))
    np.testing.assert_array_equal(loaded.partial_fit(frame).transform(frame), model.partial_fit(frame).transform(frame))
    assert loaded.loss_curve_ == model.loss_curve_
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(kind.load(tmp_path / "model").transform(frame), model.transform(frame))


def test_what_can_not_be_loaded_is_refused(surface, tmp_path):
    model = AutoencoderTransformer(**TINY).fit(surface)
    model.random_state = np.random.RandomState(0)
    model.save(tmp_path)
    assert AutoencoderTransformer.load(tmp_path).random_state is None
    with pytest.raises(errors.ConfigError, match=r"it is of a AutoencoderTransformer"):
        DenoisingAutoencoder.load(tmp_path)
    with pytest.raises(errors.ConfigError, match="does not describe"):
        AutoencoderTransformer.load(tmp_path / "nowhere")
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    path.write_text(path.read_text().replace("3", "4", 1))
    with pytest.raises(errors.RunError, match=r"config\.json is damaged: it was changed"):
        AutoencoderTransformer.load(tmp_path)
    (tmp_path / "manifest").unlink()  # as an older version saved it
    path.write_text(json.dumps({**saved, "learned": {**saved["learned"], "n_features_in_": 4}}))
    with pytest.raises(errors.CheckpointError, match="another model"):
        AutoencoderTransformer.load(tmp_path)
    path.write_text(json.dumps({**saved, "settings": {"epoch": 3}}))
    with pytest.raises(errors.ConfigError, match="epoch"):
        AutoencoderTransformer.load(tmp_path)


def test_frames_come_out_with_names(surface):
    frame = pd.DataFrame(surface, columns=["time", "load", "drift"])
    codes = AutoencoderTransformer(**TINY).set_output(transform="pandas").fit_transform(frame)
    assert codes.columns.tolist() == ["autoencodertransformer0", "autoencodertransformer1"]
    clean = DenoisingAutoencoder(**TINY).set_output(transform="pandas").fit_transform(frame)
    assert clean.columns.tolist() == ["time", "load", "drift"]
    assert clean.index.equals(frame.index)


def test_a_search_over_a_pipeline_finds_what_trains(surface):
    pipeline = make_pipeline(StandardScaler(), AutoencoderTransformer(**{**TINY, "epochs": 20}))
    rates = {"autoencodertransformer__learning_rate": np.array([1e-5, 1e-2])}
    search = GridSearchCV(pipeline, rates, cv=2).fit(surface)
    assert search.best_params_ == {"autoencodertransformer__learning_rate": 1e-2}
    assert search.score(surface) > -0.5


def test_tables_of_every_length_train_by_one_program(surface, fitted, monkeypatch):
    traced = []
    real = feed.batch
    monkeypatch.setattr(feed, "batch", lambda *arguments: traced.append(None) or real(*arguments))
    for rows in (1, 7, 64, 600):
        clone(fitted).set_params(epochs=1).fit(surface[:rows])
    clone(fitted).set_params(epochs=1).fit(np.tile(surface, (5, 1)))  # of several blocks
    assert not traced


def test_a_batch_is_as_good_as_its_rows(surface, fitted):
    whole = fitted.transform(np.tile(surface, (2, 1)))  # of several batches
    np.testing.assert_allclose(whole[600:], fitted.transform(surface), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"latent": 0}, "latent == 0"),
        ({"latent": 2.5}, "latent must be an instance of int"),
        ({"hidden": (8, 0)}, "hidden"),
        ({"noise": -1.0}, "noise == -1"),
        ({"corruption": "salt_and_pepper"}, "Known: gaussian, masking"),
        ({"epochs": 0}, "epochs == 0"),
        ({"batch_size": 0}, "batch_size == 0"),
        ({"learning_rate": -1e-3}, "learning_rate == -0.001"),
    ],
)
def test_a_setting_out_of_range_is_refused(surface, setting, message):
    with pytest.raises((ValueError, TypeError), match=message):
        AutoencoderTransformer(**{**TINY, **setting}).fit(surface)


def test_codes_of_another_size_are_refused(fitted):
    with pytest.raises(ValueError, match="The codes have 3 numbers each; expected 2"):
        fitted.inverse_transform(np.zeros((5, 3)))


def test_a_diverging_fit_says_so_and_keeps_good_weights(surface):
    model = AutoencoderTransformer(**{**TINY, "learning_rate": 1e30})
    with pytest.raises(errors.DivergedError, match="lower learning rate"):
        model.fit(surface)
    assert np.isfinite(model.transform(surface)).all()


@pytest.fixture(scope="module")
def ring() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Eight clusters on a ring in three columns of very different units, [600, 3], of two classes in turn.

    With them the classes, and the labels of 400: one a cluster, −1 for the others.
    """
    rng = np.random.default_rng(0)
    cluster = rng.integers(0, 8, 600)
    angle = np.pi / 4 * cluster + 0.1 * rng.standard_normal(600)
    X = np.stack([np.cos(angle), np.sin(angle), -np.cos(angle)], axis=1) * SCALE + OFFSET
    y = cluster % 2
    labels = np.full(400, -1)
    first = np.unique(cluster[:400], return_index=True)[1]
    labels[first] = y[first]
    return X, y, labels


@pytest.fixture(scope="module")
def classifier(ring) -> AutoencoderClassifier:
    X, _, labels = ring
    return AutoencoderClassifier(**{**TINY, "epochs": 60}).fit(X[:400], labels)


def test_rows_without_labels_show_what_those_with_labels_mean(ring, classifier):
    X, y, labels = ring
    known = labels >= 0
    peer = make_pipeline(StandardScaler(), SVC()).fit(X[:400][known], labels[known])
    found = classifier.score(X[400:], y[400:])
    assert found > 0.9 > peer.score(X[400:], y[400:])
    assert found >= clone(classifier).fit(X[:400][known], labels[known]).score(X[400:], y[400:])


def test_the_likeliest_class_is_the_prediction(ring, classifier):
    X, _, _ = ring
    probabilities = classifier.predict_proba(X)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    np.testing.assert_array_equal(probabilities.argmax(axis=1), classifier.predict(X))
    assert np.isfinite(classifier.predict_proba(np.array([[1e300, 0.0, 0.0]]))).all()


def test_classes_can_have_any_names(ring, classifier):
    X, y, labels = ring
    names = np.array(["even", "odd"])
    mixed = np.where(labels < 0, labels, names[labels].astype(object))
    named = clone(classifier).fit(X[:400], mixed)
    assert named.classes_.tolist() == ["even", "odd"]
    np.testing.assert_array_equal(named.predict(X), names[classifier.predict(X)])
    whole = clone(classifier).set_params(epochs=1).fit(X, names[y])
    assert whole.predict(X).dtype == names.dtype


def test_a_saved_classifier_is_the_same_when_loaded(ring, tmp_path, one_ridge):
    X, y, _ = ring
    frame = pd.DataFrame(X, columns=["time", "load", "drift"])
    for names in (np.array(["even", "odd"]), np.array([3, 7]), np.array([False, True])):
        model = AutoencoderClassifier(**TINY).fit(frame, names[y])
        model.save(tmp_path)
        loaded = AutoencoderClassifier.load(tmp_path)
        assert loaded.get_params() == model.get_params()
        np.testing.assert_array_equal(loaded.predict_proba(frame), model.predict_proba(frame))
        np.testing.assert_array_equal(loaded.predict(frame), model.predict(frame))
        assert loaded.classes_.dtype == names.dtype


@pytest.fixture(scope="module")
def orders() -> tuple[pd.DataFrame, np.ndarray]:
    """A table with categories, a counter and gaps, and a class that one of the categories decides."""
    rng = np.random.default_rng(4)
    colours = rng.choice(["red", "green", "blue"], 200)
    amount = pd.Series(rng.normal(100, 20, 200)).mask(rng.random(200) < 0.05)
    frame = pd.DataFrame({"order": np.arange(1000, 1200), "colour": colours, "amount": amount})
    return frame, np.where(colours == "red", "back", "kept")


@pytest.mark.filterwarnings("ignore:X. ")
def test_a_table_with_categories_is_classified(orders, one_ridge, tmp_path):
    frame, y = orders
    known = np.where(np.arange(200) < 60, y.astype(object), -1)
    model = AutoencoderClassifier(**TINY).fit(frame, known)
    assert set(model.encoding_.groups) == {"amount", "colour"}
    assert (model.predict(frame[::-1])[::-1] == y).mean() > 0.95
    np.testing.assert_array_equal(model.predict_proba(frame), model.predict_proba(frame[["amount", "colour", "order"]]))
    with pytest.raises(errors.DataError, match="fitted on a table"):
        model.predict(np.ones((3, 3)))
    model.save(tmp_path)
    loaded = AutoencoderClassifier.load(tmp_path)
    np.testing.assert_array_equal(loaded.predict_proba(frame), model.predict_proba(frame))


@pytest.mark.filterwarnings("ignore:X. ")
def test_codes_of_a_table_with_categories_give_back_its_columns(orders):
    frame, _ = orders
    model = AutoencoderTransformer(latent=4, hidden=(32,), epochs=60, random_state=0).fit(frame)
    assert model.transform(frame).shape == (200, 4)
    back = model.inverse_transform(model.transform(frame))
    assert back.columns.tolist() == ["colour", "amount"]
    assert (back["colour"] == frame["colour"]).mean() > 0.95
    assert model.fit(frame[["amount"]].fillna(100.0).to_numpy()).encoding_ is None


def test_a_search_over_a_pipeline_classifies(ring, one_ridge):
    X, _, _ = ring
    upper = X[:, 1] > 0
    pipeline = make_pipeline(StandardScaler(), AutoencoderClassifier(**TINY))
    rates = {"autoencoderclassifier__learning_rate": [3e-3, 1e-2]}
    assert GridSearchCV(pipeline, rates, cv=2).fit(X, upper).score(X, upper) > 0.9


@pytest.mark.parametrize(("labels", "classes"), [([-1, -1, -1, -1], 0), ([-1, 1, -1, 1], 1)])
def test_labels_of_fewer_than_two_classes_are_refused(labels, classes):
    with pytest.raises(errors.DataError, match=f"y has labels of {classes} class"):
        AutoencoderClassifier(**TINY).fit(np.eye(4), labels)


@pytest.fixture(scope="module")
def strange(surface) -> tuple[np.ndarray, np.ndarray]:
    """400 rows of the surface and 40 off it, and which is which."""
    u, v = np.random.default_rng(1).uniform(-1, 1, (2, 40))
    off = np.stack([u, v, u * v + np.where(u > 0, -1, 1)], axis=1) * SCALE + OFFSET
    order = np.random.default_rng(2).permutation(440)
    return np.concatenate([surface[:400], off])[order], np.repeat([0, 1], (400, 40))[order]


@pytest.fixture(scope="module")
def detector(strange) -> AutoencoderDetector:
    config = dataclasses.replace(LINEAR_CONFIG, body=MLP((16,)))
    return AutoencoderDetector(40 / 440, config=config, epochs=60, random_state=0).fit(strange[0])


def test_it_finds_the_rows_off_the_surface_they_lie_on(strange, detector):
    X, anomalous = strange
    found = roc_auc_score(anomalous, detector.decision_scores_)
    assert found > 0.98 > roc_auc_score(anomalous, -IsolationForest(random_state=0).fit(X).score_samples(X))
    assert detector.labels_.sum() == 40
    assert precision_score(anomalous, detector.labels_) > 0.7


def test_the_rows_of_fit_are_no_stranger_before_than_after(strange, detector):
    np.testing.assert_allclose(detector.decision_function(strange[0]), detector.decision_scores_, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(detector.predict(strange[0]), detector.labels_)


def test_the_two_conventions_say_the_same(strange, detector):
    X, _ = strange
    other = clone(detector).set_params(convention="sklearn").fit(X)
    np.testing.assert_array_equal(other.decision_scores_, detector.decision_scores_)
    np.testing.assert_array_equal(other.predict(X), 1 - 2 * detector.predict(X))
    np.testing.assert_array_equal(other.score_samples(X), -detector.decision_function(X))
    np.testing.assert_allclose(other.decision_function(X), other.score_samples(X) - other.offset_)
    np.testing.assert_array_equal(clone(other).fit_predict(X), other.labels_)
    assert other.offset_ == -detector.threshold_
    assert other.decision_function(X)[other.labels_ == -1].max() < 0 <= other.decision_function(X).max()


def test_the_probability_to_be_strange_is_kept_down_for_normal_rows(surface, detector):
    normal = detector.predict_proba(surface[400:])
    np.testing.assert_allclose(normal.sum(axis=1), 1)
    assert (normal[:, 1] >= 0.8).mean() <= 0.2  # some of those it was held against are strange themselves
    assert detector.predict_proba(OFFSET[None] + 9 * SCALE)[0, 1] == 1 - 1 / 81  # of the 80 that are not contaminated


def test_a_detector_goes_on_learning_what_is_normal(surface, detector, tmp_path):
    left, right = surface[surface[:, 0] < OFFSET[0]], surface[surface[:, 0] >= OFFSET[0]]
    new = right[200:]
    model = clone(detector).set_params(contamination=0.02).partial_fit(left)
    once = clone(model).fit(left)
    np.testing.assert_array_equal(model.decision_scores_, once.decision_scores_)
    network = model.detector_.models[0]
    before = network.encode(model._standardised(new))
    assert model.predict(new).mean() > 0.5
    model.save(tmp_path)
    model.partial_fit(right[:200])
    assert model.predict(new).mean() < 0.1
    assert model.predict(left).mean() < 0.1
    assert model.labels_.shape == (200,)
    assert len(model.detector_.calibration) == round(0.98 * (round(0.2 * len(left)) + 40))
    np.testing.assert_array_equal(network.encode(model._standardised(new)), before)  # it was not trained in place
    again = AutoencoderDetector.load(tmp_path).partial_fit(right[:200])
    np.testing.assert_allclose(again.decision_scores_, model.decision_scores_, rtol=1e-4, atol=1e-4)


def test_without_contamination_no_row_of_fit_is_strange(surface, untrained):
    model = AutoencoderDetector(0, score_name="reconstruction", config=LINEAR_CONFIG).fit(surface[:440])
    assert model.labels_.sum() == 0
    assert model.predict(OFFSET[None] + 9 * SCALE) == 1


def test_a_saved_detector_is_the_same_when_loaded(strange, detector, tmp_path):
    detector.save(tmp_path)
    loaded = AutoencoderDetector.load(tmp_path)
    assert loaded.get_params() == detector.get_params()
    assert loaded.threshold_ == detector.threshold_
    np.testing.assert_array_equal(loaded.decision_scores_, detector.decision_scores_)
    np.testing.assert_array_equal(loaded.decision_function(strange[0]), detector.decision_function(strange[0]))
    with pytest.raises(errors.ConfigError, match="it is of a AutoencoderDetector"):
        AutoencoderTransformer.load(tmp_path)


def test_scikit_learns_scorers_choose_among_detectors(strange, untrained):
    X, anomalous = strange
    scores = {"score_name": ["reconstruction", "neighbours"]}
    model = AutoencoderDetector(convention="sklearn", config=LINEAR_CONFIG, random_state=0)
    search = GridSearchCV(model, scores, scoring="roc_auc", cv=2)
    assert search.fit(X, 1 - 2 * anomalous).best_params_ == {"score_name": "neighbours"}
    assert search.best_score_ > 0.9


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"contamination": 0.5}, "contamination"),
        ({"contamination": "some"}, "contamination"),
        ({"convention": "keras"}, "Known: pyod, sklearn"),
        ({"score_name": "loss"}, "Known: .*combined"),
        ({"members": 0}, "members"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_a_detectors_setting_out_of_range_is_refused(surface, setting, message, untrained):
    with pytest.raises((ValueError, TypeError), match=message):
        AutoencoderDetector(**{"config": LINEAR_CONFIG, **setting}).fit(surface)


def test_values_beyond_float32_are_strange_and_no_error(surface, fitted, detector):
    far = np.array([[1e300, 0.0, 0.0]])
    assert detector.predict(far) == 1
    assert np.isfinite(fitted.transform(far)).all()


def test_numpys_numbers_are_numbers(surface):
    numbers = {
        "latent": np.int64(2),
        "epochs": np.int64(2),
        "batch_size": np.int32(64),
        "learning_rate": np.float32(3e-3),
    }
    model = AutoencoderTransformer(**{**TINY, **numbers}).fit(surface)
    np.testing.assert_array_equal(model.transform(surface), AutoencoderTransformer(**TINY).fit_transform(surface))


def test_a_model_can_be_pickled(surface, fitted):
    again = pickle.loads(pickle.dumps(fitted.model_))
    np.testing.assert_array_equal(
        again.encode(surface.astype(np.float32)), fitted.model_.encode(surface.astype(np.float32))
    )
