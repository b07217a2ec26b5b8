import json

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from flaxae import errors, training
from flaxae.estimators import AutoencoderTransformer, DenoisingAutoencoder

# The same network for all, so that one program for each number of columns serves every test here.
TINY = {"latent": 2, "hidden": (8,), "noise": 0.1, "epochs": 2, "random_state": 0}
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


@parametrize_with_checks([AutoencoderTransformer(**TINY), DenoisingAutoencoder(**TINY)])
def test_it_is_what_scikit_learn_expects(estimator, check):
    check(estimator)


def test_the_code_keeps_more_than_pcas(surface, fitted):
    train, test = np.split(StandardScaler().fit(surface[:400]).transform(surface), [400])
    pca = PCA(2).fit(train)
    lost = np.mean((pca.inverse_transform(pca.transform(test)) - test) ** 2)
    assert -fitted.score(surface[400:]) < 0.5 * lost


def test_the_score_is_the_error_of_the_way_there_and_back(surface, fitted):
    back = fitted.inverse_transform(fitted.transform(surface))
    error = np.mean(((back - surface) / surface[:400].std(axis=0)) ** 2)
    assert -fitted.score(surface) == pytest.approx(error, rel=1e-4)


def test_denoising_brings_rows_nearer_to_the_clean_ones(rng):
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


def test_tables_of_every_length_train_by_one_program(surface, fitted):
    compiled = training.train_block._cache_size()
    for rows in (1, 7, 64, 600):
        clone(fitted).set_params(epochs=1).fit(surface[:rows])
    clone(fitted).set_params(epochs=1).fit(np.tile(surface, (5, 1)))  # of several blocks
    assert training.train_block._cache_size() == compiled


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
