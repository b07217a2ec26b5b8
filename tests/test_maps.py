"""Maps that keep neighbours: forces and losses against their equations, the graph, and maps of held-out digits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.manifold import trustworthiness
from sklearn.neighbors import KNeighborsClassifier

from flaxae import autoencoder, errors, maps, objectives, presets, training
from flaxae.autoencoder import Autoencoder
from flaxae.likelihoods import Gaussian
from flaxae.nn import neighbours


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


@pytest.fixture(scope="module")
def mapped(digits):
    """A map of 1,300 digits, and their places."""
    model = autoencoder.build(presets.neighbour_map(examples=1300), (8, 8, 1))
    maps.fit(model, digits[:1300], epochs=60, batch_size=256, show=False)
    return model, training.apply(Autoencoder.encode, model, digits[:1300])


def test_a_map_keeps_neighbours_of_held_out_digits_and_leads_back(mapped, digits):
    labels = load_digits().target
    model, known = mapped
    new = training.apply(Autoencoder.encode, model, digits[1300:])
    assert trustworthiness(digits[1300:].reshape(497, -1), new, n_neighbors=10) > 0.95
    assert KNeighborsClassifier(10).fit(known, labels[:1300]).score(new, labels[1300:]) > 0.93
    error = np.square(training.apply(Autoencoder.reconstruct, model, digits[1300:]) - digits[1300:]).mean()
    assert error < 0.6 * digits[1300:].var(axis=0).mean()


def test_places_are_where_the_examples_are_encoded(digits):
    model = autoencoder.build(presets.neighbour_map(examples=200), (8, 8, 1))
    places = maps.place(model, digits[:200])
    apart = np.linalg.norm(places - training.apply(Autoencoder.encode, model, digits[:200]), axis=1)
    assert np.mean(apart < 1e-3) > 0.98  # of equally near ones, another may be among the nearest


def test_a_map_comes_out_the_same_by_the_same_seed(digits):
    models = [autoencoder.build(presets.neighbour_map(examples=100), (8, 8, 1)) for _ in range(2)]
    first, second = (maps.place(model, digits[:100], seed=3) for model in models)
    np.testing.assert_array_equal(first, second)


def test_the_push_is_the_gradient_of_its_equation(rng):
    z, others = (jnp.asarray(rng.standard_normal((n, 3)), jnp.float32) for n in (5, 8))

    def spread(z):
        return jnp.log((1 / (1 + jnp.square(z[:, None] - others[None]).sum(-1))).sum(1)).sum()

    np.testing.assert_allclose(maps._push(others, z), jax.grad(spread)(z), rtol=1e-4, atol=1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.floats(0.1, 100.0))
def test_a_settled_place_is_nearer_to_most_than_the_first_and_among_them(seed, count, spread):
    near = spread * np.random.default_rng(seed).standard_normal((1, count, 2)).astype(np.float32)

    def energy(z):
        return np.log1p(np.square(z[:, None] - near).sum(-1)).sum()

    z = np.asarray(neighbours.settled(jnp.asarray(near)))
    assert energy(z) <= energy(near[:, 0]) * (1 + 1e-5) + 1e-5
    assert (z >= near.min(axis=1) - 1e-3 * spread).all()
    assert (z <= near.max(axis=1) + 1e-3 * spread).all()


def test_between_two_clumps_a_place_is_in_that_of_more(rng):
    clumps = [[0.0, 0.0], [50.0, 50.0], [50.0, 50.0], [0.1, 0.0], [0.0, 0.1]]
    assert np.linalg.norm(neighbours.settled(jnp.asarray([clumps]))) < 0.2


@pytest.mark.parametrize("shape", [(3, 1), (20, 60)])
def test_small_and_narrow_tables_have_maps(rng, shape):
    x = rng.standard_normal(shape).astype(np.float32)
    model = autoencoder.build(presets.neighbour_map(likelihood=Gaussian(), examples=len(x)), x.shape[1:])
    maps.fit(model, x, epochs=2, show=False)
    for function in (Autoencoder.encode, Autoencoder.reconstruct):
        assert np.isfinite(training.apply(function, model, x)).all()


def test_equal_examples_have_a_map():
    x = np.ones((20, 4), np.float32)
    model = autoencoder.build(presets.neighbour_map(likelihood=Gaussian(), examples=20), (4,))
    maps.fit(model, x, epochs=1, show=False)
    assert np.isfinite(model.encode(x)).all()


def test_a_map_of_another_number_of_examples_is_refused(digits):
    model = autoencoder.build(presets.neighbour_map(examples=100), (8, 8, 1))
    with pytest.raises(errors.ConfigError, match="examples=90"):
        maps.fit(model, digits[:90], show=False)


def test_of_more_examples_than_a_map_can_be_learnt_from_some_are_taken(digits, monkeypatch, capsys):
    monkeypatch.setattr(maps, "MOST", 50)
    rows = maps.learnt_from(digits[:80])
    assert len(rows) == 50
    assert "50 of 80" in capsys.readouterr().out
    assert {row.tobytes() for row in rows} <= {row.tobytes() for row in digits[:80]}


def test_an_encoder_learns_to_keep_neighbours_of_held_out_digits(digits):
    labels = load_digits().target
    model = autoencoder.build(presets.parametric_map(), (8, 8, 1))
    history = maps.fit(model, digits[:1300], epochs=30, batch_size=256, show=False)
    assert history["contrast"][-1] < history["contrast"][0]
    known, new = (training.apply(Autoencoder.encode, model, x) for x in (digits[:1300], digits[1300:]))
    assert trustworthiness(digits[1300:].reshape(497, -1), new, n_neighbors=10) > 0.9
    assert KNeighborsClassifier(10).fit(known, labels[:1300]).score(new, labels[1300:]) > 0.8


def test_reconstruction_does_not_move_the_map_of_an_encoder(digits):
    model = autoencoder.build(presets.parametric_map(pull=0.0), (8, 8, 1))
    before = np.asarray(model.encode(digits[:5]))
    maps.fit(model, digits[:200], epochs=2, batch_size=100, show=False)
    np.testing.assert_allclose(model.encode(digits[:5]), before, atol=1e-6)


@pytest.mark.parametrize("preset", [presets.neighbour_map, presets.parametric_map])
def test_a_batch_without_places_or_neighbours_is_refused(preset, digits):
    model = autoencoder.build(preset(), (8, 8, 1))
    with pytest.raises(errors.DataError, match=r"maps\.fit"):
        model.objective(model, digits[:4], jax.random.key(0))
