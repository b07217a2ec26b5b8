import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.special
import scipy.stats

import flaxae
from flaxae import columns, data, errors, presets, specs, trained
from flaxae.columns import MIN_SCALE, Columns

MIXED = Columns(
    ("number", "category", "number", "mark", "category"), (1, 3, 1, 1, 2), (0.0, 0.0, 0.5, 0.0, 0.0), (None,) * 5
)


@pytest.fixture
def table(rng):
    """Two numbers behind everything: a real column, a sine of it, counts, kinds, and a flag."""
    a, b = rng.normal(size=(2, 600))
    return pd.DataFrame(
        {
            "level": 3 * a + 100,
            "sine": np.sin(2 * a) + 0.05 * rng.normal(size=600),
            "visits": rng.poisson(np.exp(b)),
            "size": np.array(["low", "middle", "high"])[np.digitize(b, [-0.5, 0.5])],
            "open": a > 0,
        }
    )


def test_a_row_s_probability_is_that_of_its_columns(rng):
    params = rng.normal(size=(4, 16))
    kinds, flags = rng.integers(0, 3, 4), rng.integers(0, 2, 4)
    number, whole, mark = rng.normal(size=4), rng.integers(-4, 5, 4) * 0.5, rng.integers(0, 2, 4)
    x = np.column_stack([number, np.eye(3)[kinds], whole, mark, np.eye(2)[flags]])
    mean, scale = params[:, :8], np.log1p(np.exp(params[:, 8:])) + MIN_SCALE
    logistic = scipy.stats.logistic(mean[:, 4], scale[:, 4] * np.sqrt(3) / np.pi)
    expected = scipy.stats.norm.logpdf(number, mean[:, 0], scale[:, 0])
    expected += scipy.special.log_softmax(mean[:, 1:4], axis=1)[np.arange(4), kinds]
    expected += np.log(logistic.cdf(whole + 0.25) - logistic.cdf(whole - 0.25))
    expected += scipy.stats.bernoulli.logpmf(mark, scipy.special.expit(mean[:, 5]))
    expected += scipy.special.log_softmax(mean[:, 6:], axis=1)[np.arange(4), flags]
    np.testing.assert_allclose(MIXED.log_prob(jnp.float32(params), jnp.float32(x)), expected, rtol=2e-4)


def test_the_probabilities_of_counts_sum_to_one():
    counts = Columns(("number",), (1,), (0.25,), (-1.0,))
    x = jnp.arange(400, dtype=jnp.float32)[:, None] * 0.25 - 1.0
    found = np.exp(counts.log_prob(jnp.tile(jnp.float32([[-0.8, 0.1]]), (400, 1)), x))
    np.testing.assert_allclose(found.sum(), 1, rtol=1e-4)


def test_what_is_drawn_has_the_mean_and_one_category_a_column():
    params = jnp.tile(jax.random.normal(jax.random.key(0), (1, 16)), (4000, 1))
    drawn = MIXED.sample(params, jax.random.key(1))
    np.testing.assert_allclose(drawn.mean(0), MIXED.mean(params)[0], atol=0.08)
    np.testing.assert_array_equal(drawn[:, 1:4].sum(1), 1)
    np.testing.assert_array_equal(np.unique(drawn[:, 1:4]), [0, 1])


def test_gradients_are_finite_far_from_the_data():
    params, x = jnp.full((2, 16), 300.0), jnp.zeros((2, 8)) - 300.0
    assert jnp.isfinite(jax.grad(lambda p: MIXED.log_prob(p, x).sum())(params)).all()
    assert jnp.isfinite(jax.grad(lambda p: MIXED.log_prob(p, x).sum())(-params)).all()


def test_it_is_read_back_from_json():
    assert specs.from_json(specs.to_json(MIXED)) == MIXED


def test_lists_of_other_lengths_and_unknown_kinds_are_refused():
    for fields in (((), (1,), (0.0,), (None,)), (("colour",), (1,), (0.0,), (None,))):
        with pytest.raises(errors.ConfigError, match=r"expected as many of each.*number, category, mark"):
            Columns(*fields)
    with pytest.raises(errors.ConfigError, match="8 features"):
        flaxae.build(presets.vanilla(2, MIXED), (5,))


def test_the_likelihood_of_a_table_is_of_its_columns(table, tmp_path):
    table.loc[3, "level"] = None
    table.to_csv(tmp_path / "t.csv", index=False)
    with pytest.warns(UserWarning, match="values are missing"):
        dataset = data.load(tmp_path / "t.csv")
    made = columns.of_table(dataset.encoding, dataset.scaling)
    assert made.kinds == ("number", "mark", "number", "number", "category", "category")
    assert sum(made.sizes) == dataset.shape[0]
    assert [step > 0 for step in made.steps] == [False, False, False, True, False, False]
    scaled = dataset.scaling(dataset.train)
    visits = list(dataset.encoding.features).index("visits")
    assert scaled[:, visits].min() == pytest.approx(made.floors[3], rel=1e-4)


def test_gaps_are_filled_better_than_by_what_is_linear_and_in_the_table_s_own_types(table, rng):
    hidden = rng.random(table.shape) < 0.15
    given = table.astype({"open": object, "visits": "Int64"}).mask(pd.DataFrame(hidden, columns=table.columns))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoding = data.Encoding.fit(given, np.arange(400))
        x = encoding(given)
    scaling = data.Scaling.fit(x[:400], encoding.indicators)
    model = flaxae.build(presets.denoising(16, columns.of_table(encoding, scaling)), x.shape[1:])
    flaxae.fit(model, scaling(x[:400]), epochs=60, batch_size=50)
    imputed = trained.Trained(model, scaling, x.shape[1:], "tabular", encoding.features, encoding).impute(given)

    linear, gone = encoding.undo(np.where(encoding.marks, 0, x)), {c: hidden[:, i] for i, c in enumerate(table)}
    for column in table:
        assert (imputed[column] == table[column])[~gone[column]].all()
    assert not imputed.isna().any(axis=None)
    assert imputed["open"].dtype == bool
    assert imputed["visits"].dtype == np.int64
    assert set(imputed["size"]) == {"low", "middle", "high"}
    new = np.arange(len(table)) >= 400

    def error(of, column):
        return np.square(of[column] - table[column])[gone[column] & new].mean()

    assert error(imputed, "sine") < 0.8 * error(linear, "sine")
    right = [(of["size"] == table["size"])[gone["size"] & new].mean() for of in (imputed, linear)]
    assert right[0] >= right[1]


def test_a_whole_table_is_left_as_it_is(table):
    encoding = data.Encoding.fit(table, np.arange(600))
    scaling = data.Scaling.fit(encoding(table), encoding.indicators)
    model = flaxae.build(presets.vanilla(2, columns.of_table(encoding, scaling)), (len(encoding.features),))
    found = trained.Trained(model, scaling, model.shape, "tabular", encoding.features, encoding).impute(table)
    pd.testing.assert_frame_equal(found, table)
