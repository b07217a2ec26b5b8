"""Recommendation: sparse matrices, likelihood, corruption, metrics, simple methods, the estimator, the command."""

import dataclasses
import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse
from scipy import stats
from scipy.special import gammaln
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.metrics import ndcg_score

import flaxae
from flaxae import autoencoder, data, errors, recommendation, training
from flaxae.autoencoder import Config
from flaxae.batches import Batch
from flaxae.command import main as command_line
from flaxae.corruptions import Deletion
from flaxae.data import sparse
from flaxae.data.sparse import Rows
from flaxae.likelihoods import Gaussian, Multinomial
from flaxae.nn.heads import Deterministic, Identity, Variational
from flaxae.nn.mlp import MLP
from flaxae.nn.shallow import Shallow
from flaxae.recommendation import HeldOut, Recommender, VariationalRecommender
from flaxae.training.fitting import keys


@pytest.fixture(scope="module")
def tastes() -> scipy.sparse.csr_matrix:
    """90 users, each of one of three groups that choose among ten items of their own, and seldom among others."""
    rng = np.random.default_rng(0)
    likely = np.where(np.arange(90)[:, None] % 3 == np.arange(30)[None] // 10, 0.6, 0.03)
    return scipy.sparse.csr_matrix((rng.random((90, 30)) < likely).astype(np.float32))


KINDS = (Recommender, VariationalRecommender)


@pytest.fixture(scope="module", params=KINDS)
def recommender(request, tastes) -> Recommender | VariationalRecommender:
    return request.param(4, epochs=60, batch_size=16, learning_rate=1e-2, random_state=0).fit(tastes)


def test_the_likelihood_is_the_multinomial_without_its_coefficient(rng):
    logits, x = rng.normal(size=(3, 6)).astype(np.float32), rng.integers(0, 4, (3, 6)).astype(np.float32)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    exact = shares.astype(np.float64) / shares.astype(np.float64).sum(axis=1, keepdims=True)
    exact[:, -1] = 1 - exact[:, :-1].sum(axis=1)
    coefficient = gammaln(x.sum(axis=1) + 1) - gammaln(x + 1).sum(axis=1)
    wanted = [stats.multinomial.logpmf(row, int(row.sum()), p) for row, p in zip(x, exact, strict=True)]
    likelihood = Multinomial(draws=1000)
    np.testing.assert_allclose(likelihood.log_prob(jnp.asarray(logits), x), wanted - coefficient, rtol=1e-4)
    np.testing.assert_allclose(
        likelihood.mean(jnp.asarray(logits), x), shares * x.sum(axis=1, keepdims=True), rtol=1e-5
    )
    drawn = np.asarray(likelihood.sample(jnp.asarray(logits), keys(0)[0]))
    np.testing.assert_array_equal(drawn.sum(axis=1), 1000)
    np.testing.assert_allclose(drawn / 1000, shares, atol=0.06)


def test_deletion_keeps_the_length_of_a_row(rng):
    x = rng.random((4, 50)).astype(np.float32)
    made = np.asarray(Deletion(0.5)(keys(0)[0], jnp.asarray(x)))
    assert 0.2 < (made == 0).mean() < 0.8
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), np.linalg.norm(x, axis=1), rtol=1e-5)
    assert not np.asarray(Deletion(1.0)(keys(0)[0], jnp.asarray(x))).any()


@pytest.mark.parametrize("name", ["x.npz", "x.mtx", "x.h5ad"])
def test_sparse_matrices_are_read_and_trained_on_a_part_at_a_time(tmp_path, monkeypatch, tastes, name):
    path = tmp_path / name
    if name == "x.npz":
        scipy.sparse.save_npz(path, tastes.tocsc())
    elif name == "x.mtx":
        scipy.io.mmwrite(path, tastes, comment="two\nlines")
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            group = file.create_group("X")
            group.attrs["shape"], group.attrs["encoding-type"] = tastes.shape, "csr_matrix"
            for part in ("data", "indices", "indptr"):
                group[part] = getattr(tastes, part)
    found = sparse.read(path)
    assert (found != tastes).nnz == 0
    largest = []
    dense = Rows.__getitem__
    monkeypatch.setattr(
        Rows, "__getitem__", lambda rows, part: largest.append(part.stop - part.start) or dense(rows, part)
    )
    assert isinstance(sparse.examples(found), np.ndarray)
    monkeypatch.setattr(sparse, "DENSE_BYTES", 0)
    trained = Recommender(2, epochs=1, batch_size=8, random_state=0).fit(found)
    assert np.isfinite(trained.loss_curve_).all()
    assert 1 < max(largest) < 90


def test_damaged_sparse_matrices_are_refused(tmp_path, tastes):
    wrong = tastes.copy()
    wrong.indices[3] = 10_000  # beyond the last column: SciPy would read other memory
    np.savez(
        tmp_path / "x.npz",
        data=wrong.data,
        indices=wrong.indices,
        indptr=wrong.indptr,
        shape=wrong.shape,
        format=b"csr",
    )
    (tmp_path / "x.mtx").write_text("%%MatrixMarket matrix coordinate real general\n5 5 99999999999\n1 1 1\n")
    np.savez(tmp_path / "y.npz", x=np.ones(3))
    (tmp_path / "x.h5ad").write_bytes(b"no HDF5")
    head = "%%MatrixMarket matrix coordinate real general\n5 5 "
    (tmp_path / "more.mtx").write_text(f"{head}1\n1 1 1\n2 2 2\n")  # SciPy's reader would end the process
    (tmp_path / "beyond.mtx").write_text(f"{head}1\n1 6 1\n")
    (tmp_path / "words.mtx").write_text(f"{head}1\n1 1 one\n")
    for name in ("x.npz", "y.npz", "x.mtx", "x.h5ad", "z.mtx", "more.mtx", "beyond.mtx", "words.mtx"):
        with pytest.raises(errors.DataError, match=name):
            sparse.read(tmp_path / name)
    with pytest.raises(errors.DataError, match="not finite"):
        sparse.checked(np.array([[1.0, np.nan]]))


def test_metrics_are_those_of_scikit_learn(rng):
    given = scipy.sparse.csr_matrix(np.eye(8, 150, dtype=np.float32))
    wanted = np.roll(rng.random((8, 150)) < 0.05, 1, axis=1)
    wanted[np.arange(8), np.arange(8)] = False
    wanted[:, 140] = True
    scores = rng.normal(size=(8, 150))
    held_out = HeldOut(given, scipy.sparse.csr_matrix(wanted.astype(np.float32)))
    measured = recommendation.measure(lambda rows: scores, held_out)
    without = np.where(given.toarray() > 0, -1e9, scores)
    assert measured["ndcg_100"] == pytest.approx(ndcg_score(wanted, without, k=100))
    best = np.argsort(-without, axis=1)[:, :20]
    recalls = np.take_along_axis(wanted, best, axis=1).sum(axis=1) / np.minimum(20, wanted.sum(axis=1))
    assert measured["recall_20"] == pytest.approx(recalls.mean())


def test_what_is_hidden_is_all_that_is_not_given(tastes):
    held_out = recommendation.hold_out(tastes, 0)
    assert (held_out.given.multiply(held_out.wanted)).nnz == 0
    assert 0.1 < held_out.wanted.nnz / tastes.nnz < 0.3
    assert held_out.given.nnz + held_out.wanted.nnz <= tastes.nnz


def test_ease_is_a_ridge_regression_for_each_item_on_the_others(tastes):
    x = tastes.toarray()
    others = np.delete(x, 4, axis=1)
    wanted = Ridge(5.0, fit_intercept=False).fit(others, x[:, 4]).predict(others)
    np.testing.assert_allclose(recommendation.ease(tastes, 5.0)(tastes)[:, 4], wanted, atol=1e-4)


def test_users_get_items_of_their_kind(recommender, tastes):
    found, scores = recommender.recommend(tastes, 3)
    own = found // 10 == (np.arange(90) % 3)[:, None]
    assert own[np.isfinite(scores)].mean() > 0.85
    assert not any(set(items) & set(row.indices) for items, row in zip(found, tastes, strict=True))
    again, _ = recommender.recommend(tastes, 3, known=True)
    assert (again // 10 == (np.arange(90) % 3)[:, None]).mean() > 0.85
    alike, cosines = recommender.similar(5)
    assert (alike // 10 == np.arange(30)[:, None] // 10).mean() > 0.9
    assert (np.diff(cosines, axis=1) <= 1e-6).all()
    assert recommender.transform(tastes).shape == (90, 4)
    if isinstance(recommender, VariationalRecommender):
        np.testing.assert_allclose(np.exp(recommender.scores(tastes[:3])).sum(axis=1), 1, rtol=1e-4)


def test_the_linear_autoencoder_is_that_of_its_paper(tastes):
    trained = Recommender(4, epochs=1, batch_size=16, random_state=0).fit(tastes)
    x = tastes.toarray()
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6)
    vectors = trained.item_vectors_
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(trained.transform(tastes), x @ vectors, atol=1e-5)
    others = x @ (vectors @ vectors.T - np.eye(30))
    np.testing.assert_allclose(trained.scores(tastes), others, atol=1e-5)
    cosines = (x * others).sum(axis=1) / np.linalg.norm(others, axis=1)
    loss = recommendation.cosine_of_others(trained.model_, jnp.asarray(x), keys(0)[0])
    np.testing.assert_allclose(loss, 2 - 2 * cosines, atol=1e-5)


def test_encoder_and_decoder_share_their_weights():
    config = Config(body=Shallow(3), head=Identity(), likelihood=Gaussian())
    assert autoencoder.count_weights(config, (7,)) == 7 * 3 + 1  # and the likelihood's scale
    model = autoencoder.build(config, (7,))
    assert model.encoder.vectors is model.decoder.vectors
    training.fit(model, np.eye(7, dtype=np.float32)[np.arange(40) % 7], epochs=2, batch_size=8, show=False)
    assert model.encoder.vectors is model.decoder.vectors
    with pytest.raises(errors.ConfigError, match="Take Identity"):
        autoencoder.build(dataclasses.replace(config, head=Deterministic(2)), (7,))


def test_it_beats_popularity_on_new_users(tastes):
    held_out = recommendation.hold_out(tastes[60:], 0)
    methods: dict[str, Any] = {
        kind.__name__: kind(4, epochs=60, batch_size=16, learning_rate=1e-2, random_state=0).fit(tastes[:60]).scores
        for kind in KINDS
    }
    methods["als"] = recommendation.least_squares(tastes[:60], 4, penalty=1.0)
    popular = recommendation.measure(recommendation.popularity(tastes[:60]), held_out)["ndcg_100"]
    for name, method in methods.items():
        assert recommendation.measure(method, held_out)["ndcg_100"] > popular + 0.05, name


def test_the_composite_prior_is_a_mixture_of_three(rng):
    objective = recommendation.CompositeELBO(beta=1.0)
    model = autoencoder.build(
        Config(body=MLP(()), head=Variational(3), objective=objective, likelihood=Gaussian()), (5,)
    )
    x = rng.random((4, 5)).astype(np.float32)
    previous = rng.standard_normal((4, 6)).astype(np.float32)
    loss = objective(model, {"x": jnp.asarray(x), "previous": previous}, keys(0)[0])
    params, latent = model(Batch(jnp.asarray(x)), keys(0)[0])
    z, scale = np.asarray(latent.z), np.exp(0.5 * np.asarray(latent.logvar))
    mixed = 0.15 * stats.norm.pdf(z) + 0.75 * stats.norm.pdf(z, previous[:, :3], np.exp(0.5 * previous[:, 3:]))
    mixed += 0.1 * stats.norm.pdf(z, scale=np.exp(5.0))
    kl = (stats.norm.logpdf(z, latent.mean, scale) - np.log(mixed)).sum(axis=1)
    np.testing.assert_allclose(loss, kl - model.log_likelihood(params, Batch(jnp.asarray(x))), rtol=1e-4)
    for shares in ((0.5, 0.5), (0.5, 0.4, 0.2), (1.0, 0.0, 0.0)):
        with pytest.raises(errors.ConfigError, match="shares"):
            recommendation.CompositeELBO(shares=shares)


def test_rounds_hand_on_what_they_found_of_each_user(tastes, monkeypatch):
    given = []
    more = VariationalRecommender._more
    monkeypatch.setattr(VariationalRecommender, "_more", lambda *a: given.append(more(*a)["previous"]) or more(*a))
    made = VariationalRecommender(3, rounds=3, epochs=6, batch_size=16, random_state=0).fit(tastes)
    assert [part.shape for part in given] == 3 * [(90, 6)]
    assert not given[0].any()
    assert (np.ptp(given[1], axis=0) > 1e-3).all()
    assert not np.allclose(given[1], given[2])
    assert len(made.loss_curve_) == 6
    assert isinstance(made.config_.objective, recommendation.CompositeELBO)
    monkeypatch.setattr(sparse, "DENSE_BYTES", 0)
    streamed = VariationalRecommender(3, rounds=2, epochs=2, batch_size=16, random_state=0).fit(tastes)
    assert np.isfinite(streamed.loss_curve_).all()


def test_it_is_an_estimator_that_saves(recommender, tastes, tmp_path):
    same: Any = clone(recommender)
    assert same.get_params() == recommender.get_params()
    recommender.save(tmp_path / "saved")
    loaded = flaxae.load(tmp_path / "saved")
    np.testing.assert_array_equal(loaded.transform(tastes), recommender.transform(tastes))
    with pytest.raises(errors.DataError, match="trained on 30"):
        loaded.transform(tastes[:, :20])
    with pytest.raises(errors.DataError, match="lowest number is -1"):
        loaded.transform(-tastes)


def test_ratings_are_read_by_the_names_or_places_of_columns(tmp_path, capsys):
    path = tmp_path / "ratings.csv"
    path.write_text("rating,userId,movieId\n5,7,a\n2,7,b\n4,9,a\n4,9,\n")
    ratings = recommendation.read_ratings(path)
    assert (ratings.users, ratings.items) == (["7", "9"], ["a", "b"])
    np.testing.assert_array_equal(ratings.x.toarray(), [[1, 1], [1, 0]])
    assert "1 of 4 rows" in capsys.readouterr().out
    np.testing.assert_array_equal(recommendation.read_ratings(path, least=4).x.toarray(), [[1], [1]])
    known = recommendation.read_ratings(path, items=["b", "c"])
    np.testing.assert_array_equal(known.x.toarray(), [[1, 0]])
    with pytest.raises(errors.DataError, match="Unknown column 'film'"):
        recommendation.read_ratings(path, item="film")
    with pytest.raises(errors.DataError, match="no choices left"):
        recommendation.read_ratings(path, least=9)
    pd.DataFrame({"user": [1, 2], "item": [3, 4], "rating": ["5", "good"]}).to_csv(path, index=False)
    with pytest.raises(errors.DataError, match="holds 'good'; expected ratings"):
        recommendation.read_ratings(path, least=4)


def test_recommend_trains_measures_and_writes(tmp_path, monkeypatch, tastes, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flaxae.experiments.recommend.STEPS", 30)
    users, items = tastes.nonzero()
    table = pd.DataFrame({"user": [f"u{user}" for user in users], "item": [f"=i{item}" for item in items]})
    table.to_csv("ratings.csv", index=False)
    settings = "--latent 4 --epochs 3 --count 2 --batch-size 16"
    assert command_line(["recommend", "--data", "ratings.csv", *settings.split()]) == 0
    folder = tmp_path / "runs/recommend/1"
    measured = json.loads((folder / "results.json").read_text())
    for name in ("popularity", "ease", "als", "flaxae"):
        assert 0 <= measured[f"test/{name}/ndcg_100"] <= 1
    top = data.read_table(folder / "recommendations.csv")
    assert list(top.columns) == ["user", "rank", "item", "score"]
    assert len(top) == 180
    assert not set(zip(top.user, top.item, strict=True)) & set(zip(table.user, table.item, strict=True))
    assert set(data.read_table(folder / "similar_items.csv").similar) <= set(table.item)
    assert np.load(folder / "users.npz")["x"].shape == (90, 4)
    assert isinstance(flaxae.load(folder), Recommender)
    with pytest.raises(SystemExit):
        command_line(["recommend", "--data", "ratings.csv", "--beta", "1"])
    assert "--model variational" in capsys.readouterr().err
    assert command_line(["recommend", "--data", "ratings.csv", *settings.split(), "--model", "variational"]) == 0
    assert isinstance(flaxae.load(tmp_path / "runs/recommend/2"), VariationalRecommender)
    new = pd.DataFrame({"user": ["new", "new"], "item": ["=i3", "unheard"]})
    new.to_csv("new.csv", index=False)
    used = ["--from", str(folder), "--input", "new.csv", "--output", "top.csv", "--count", "4"]
    assert command_line(["recommend", *used]) == 0
    assert "1 of 2 rows" in capsys.readouterr().out
    assert list(data.read_table("top.csv")["rank"]) == [1, 2, 3, 4]
    known = (folder / "items.csv").read_text()
    (folder / "items.csv").write_text(known.replace("i3", "i4"))
    assert command_line(["recommend", *used]) == 2
    assert "items.csv is damaged" in capsys.readouterr().err
