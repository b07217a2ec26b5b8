"""Maps that keep neighbours: the loss against NumPy, the graph against brute force, and maps of held-out digits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.manifold import trustworthiness
from sklearn.neighbors import KNeighborsClassifier

from flaxae import autoencoder, errors, maps, objectives, presets, training
from flaxae.autoencoder import Autoencoder


def test_the_contrast_is_that_of_its_equation(rng):
    z, neighbour = jnp.asarray(rng.standard_normal((2, 6, 2)), jnp.float32)
    others = np.concatenate([np.asarray(z), np.asarray(neighbour)])
    q = 1 / (1 + np.square(np.asarray(z)[:, None] - others[None]).sum(-1))
    q[np.arange(6), np.arange(6)] = 0
    wanted = -np.log(q[np.arange(6), 6 + np.arange(6)] / q.sum(1))
    np.testing.assert_allclose(objectives.info_nce(z, neighbour), wanted, rtol=1e-4)


def test_the_graph_has_the_nearest_others(rng):
    x = rng.random((40, 3, 2), dtype=np.float32)
    distance = np.square(x[:, None] - x[None]).sum((2, 3)) + 1e9 * np.eye(40)
    np.testing.assert_array_equal(maps.graph(x, neighbours=4), np.argsort(distance, axis=1)[:, :4])
    assert maps.graph(x[:3]).shape == (3, 2)
    with pytest.raises(errors.DataError, match="at least 3"):
        maps.graph(x[:2])


def test_batches_are_those_of_their_step_wherever_they_begin(rng):
    x = rng.random((23, 2), dtype=np.float32)
    graph = maps.graph(x, neighbours=3)
    begin = maps.batches(x, graph, 5, 0)
    steps = begin(0)
    first = [next(steps) for _ in range(12)]
    later = begin(7)
    for batch in first[7:]:
        np.testing.assert_array_equal(batch["neighbour"], next(later)["neighbour"])
    assert len(np.unique(np.concatenate([batch["x"] for batch in first[:4]]), axis=0)) == 20
    at = {tuple(row): i for i, row in enumerate(x)}
    for one, other in zip(first[0]["x"], first[0]["neighbour"], strict=True):
        assert at[tuple(other)] in graph[at[tuple(one)]]


def test_a_map_keeps_neighbours_of_held_out_digits_and_leads_back(digits):
    labels = load_digits().target
    model = autoencoder.build(presets.neighbour_map(), (8, 8, 1))
    history = maps.fit(model, digits[:1300], epochs=30, batch_size=256, show=False)
    assert history["contrast"][-1] < history["contrast"][0]
    known, new = (training.apply(Autoencoder.encode, model, x) for x in (digits[:1300], digits[1300:]))
    assert trustworthiness(digits[1300:].reshape(497, -1), new, n_neighbors=10) > 0.9
    assert KNeighborsClassifier(10).fit(known, labels[:1300]).score(new, labels[1300:]) > 0.8
    error = np.square(model.reconstruct(digits[1300:]) - digits[1300:]).mean()
    assert error < 0.8 * digits[1300:].var(axis=0).mean()


def test_reconstruction_does_not_move_the_map(digits):
    model = autoencoder.build(presets.neighbour_map(pull=0.0), (8, 8, 1))
    before = np.asarray(model.encode(digits[:5]))
    maps.fit(model, digits[:200], epochs=2, batch_size=100, show=False)
    np.testing.assert_allclose(model.encode(digits[:5]), before, atol=1e-6)


def test_a_batch_without_neighbours_is_refused(digits):
    model = autoencoder.build(presets.neighbour_map(), (8, 8, 1))
    with pytest.raises(errors.DataError, match=r"maps\.fit"):
        objectives.KeepNeighbours()(model, digits[:4], jax.random.key(0))
