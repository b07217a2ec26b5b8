import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.neighbors import NearestNeighbors

from flaxae import errors
from flaxae.finetuning import propagation


@pytest.fixture
def clusters(rng):
    """Codes of three classes around three directions, and their classes."""
    y = np.arange(90) % 3
    return np.eye(3, dtype=np.float32)[y] + 0.15 * rng.standard_normal((90, 3)).astype(np.float32) + 5, y


def few(y):
    labels = np.full(len(y), -1)
    labels[:3] = y[:3]
    return labels


def test_neighbours_are_those_of_the_cosine_from_the_mean(clusters):
    z, _ = clusters
    centred = z - z.mean(axis=0)
    index = NearestNeighbors(n_neighbors=4, metric="cosine").fit(centred).kneighbors(return_distance=False)
    graph = propagation.neighbours(z, 4)
    np.testing.assert_array_equal(graph.index, index)
    units = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose(graph.cosine, np.einsum("nd,nkd->nk", units, units[index]), atol=1e-5)


def test_propagation_reaches_the_fixed_point(clusters):
    """(1 − α) (I − α S)⁻¹ Y (Zhou et al. 2004, eq. 4), by dense algebra."""
    z, y = clusters
    graph = propagation.neighbours(z, 5)
    dense = np.zeros((len(z), len(z)))
    np.put_along_axis(dense, graph.index, np.clip(graph.cosine, 0, None) ** 3, axis=1)
    dense += dense.T
    degree = dense.sum(axis=1)
    spread = dense / np.sqrt(np.outer(degree, degree))
    given = np.eye(3)[y] * (few(y) >= 0)[:, None]
    expected = np.linalg.solve(np.eye(len(z)) - 0.9 * spread, 0.1 * given)
    found = propagation.propagate(graph, few(y), alpha=0.9, rounds=300)
    np.testing.assert_allclose(found, propagation.balance(expected, np.ones(3) / 3), atol=1e-6)


def test_three_labels_name_three_clusters_and_new_codes(clusters):
    z, y = clusters
    found = propagation.propagate(propagation.neighbours(z), few(y))
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert (found.argmax(axis=1) == y).mean() > 0.95
    votes = propagation.vote(z[:30] + 0.01, z, found)
    np.testing.assert_allclose(votes.sum(axis=1), 1)
    assert (votes.argmax(axis=1) == y[:30]).mean() > 0.9


@given(hnp.arrays(float, (6, 3), elements=st.floats(0, 10)))
def test_balanced_scores_are_probabilities_and_keep_the_shares_where_nothing_is_known(scores):
    shares = np.array([0.5, 0.25, 0.25])
    found = propagation.balance(scores, shares)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert (found >= 0).all()
    np.testing.assert_allclose(propagation.balance(np.zeros((2, 3)), shares), [shares, shares])


def test_what_cannot_be_propagated_is_refused(clusters):
    z, y = clusters
    graph = propagation.neighbours(z)
    with pytest.raises(errors.DataError, match="each needs one"):
        propagation.propagate(graph, np.full(len(y), -1))
    with pytest.raises(errors.DataError, match="each needs one"):
        propagation.propagate(graph, np.where(few(y) == 1, -1, few(y)))
    with pytest.raises(errors.ConfigError, match="below 90"):
        propagation.neighbours(z, 90)


def test_smoothing_is_the_weighted_mean_with_the_neighbours(rng):
    z = rng.normal(size=(12, 3)).astype(np.float32)
    graph = propagation.neighbours(z, 4)
    u = z - z.mean(0)
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    expected = u.copy()
    for i in range(12):
        weights = [max(cosine, 0) ** 3 for cosine in graph.cosine[i]]
        total = u[i] + sum(w * u[j] for w, j in zip(weights, graph.index[i], strict=True))
        expected[i] = total / (1 + sum(weights))
    np.testing.assert_allclose(propagation.smooth(z, graph, rounds=1), expected, atol=1e-5)


def test_smoothing_draws_clusters_together(rng):
    means = np.repeat(np.eye(3), 30, axis=0)
    z = (means + 0.1 * rng.normal(size=means.shape)).astype(np.float32)
    smoothed = propagation.smooth(z, propagation.neighbours(z, 5))
    within = [x.reshape(3, 30, 3).std(axis=1).mean() for x in (propagation.unit(z, centre=z.mean(0)), smoothed)]
    assert within[1] < 0.5 * within[0]
