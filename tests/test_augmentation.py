import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from flaxae.augmentation import Transform, sample


def test_sample_reads_like_scipy(rng):
    x = rng.random((2, 7, 6, 3), np.float32)
    places = rng.uniform(-2, 8, (2, 2, 5, 4)).astype(np.float32)  # rows, columns; some outside
    expected = [
        [ndimage.map_coordinates(x[i, ..., c], places[:, i], order=1, mode="grid-constant") for c in range(3)]
        for i in range(2)
    ]
    taken = sample(jnp.asarray(x), *jnp.asarray(places))
    np.testing.assert_allclose(taken, np.moveaxis(np.array(expected), 1, -1), atol=1e-5)


@settings(max_examples=3)
@given(seed=st.integers(0, 99))
def test_each_part_stays_within_its_bounds(seed):
    x = jnp.zeros((4, 28, 28, 1)).at[:, 14, 14].set(1)  # the pixel beside the centre
    none = {"rotation": 0.0, "scale": 0.0, "shear": 0.0, "shift": 0.0, "elastic": 0.0, "cutout": 0.0}

    def place(**part):
        """(row, column) of what was at the centre, in pixels."""
        y = np.asarray(jax.jit(Transform(**{**none, **part}))(jax.random.key(seed), x))[..., 0]
        return np.array([ndimage.center_of_mass(image) for image in y])

    np.testing.assert_array_equal(place(), 14.0)
    shifts = np.abs(place(shift=2 / 28) - 14)
    assert 0 < shifts.max() <= 2.001
    assert np.abs(place(rotation=15.0) - 14).max() < 0.5  # the centre of rotation is at 13.5


def test_the_deviation_of_elastic_displacements(rng):
    displaced = np.asarray(Transform(elastic=0.03)._elastic(jax.random.key(0), (500, 28, 20, 1)))
    np.testing.assert_allclose(displaced.std(axis=(1, 2, 3)), [0.03 * 28, 0.03 * 20], rtol=0.05)
    steps = np.diff(displaced, axis=-1)
    assert steps.std() < 0.5 * displaced.std()  # smooth


def test_cutout_is_a_square_and_the_mean_of_it_grows_with_the_level():
    transform = Transform(rotation=0.0, scale=0.0, shear=0.0, shift=0.0, elastic=0.0, cutout=0.5)
    x = jnp.ones((400, 20, 20, 2))
    y = np.asarray(transform(jax.random.key(0), x))
    assert set(np.unique(y)) == {0, 1}
    assert (y == 0).sum(axis=(1, 2, 3)).max() == 10 * 10 * 2
    half = np.asarray(dataclasses.replace(transform, level=0.5)(jax.random.key(0), x))
    assert 0 < (half == 0).mean() < (y == 0).mean() / 2


def test_values_of_tables_are_cut_out_one_by_one():
    y = Transform(cutout=0.25)(jax.random.key(0), jnp.ones((200, 50)))
    assert float((y == 0).mean()) == pytest.approx(0.25, abs=0.02)
