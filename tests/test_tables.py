"""Mixed tables: what is learnt of their columns, the features they become, and the way back."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from flaxae import autoencoder, data, runs, trained
from flaxae.autoencoder import Config
from flaxae.data import Encoding, Scaling
from flaxae.data.encoding import MAX_CATEGORIES
from flaxae.errors import ConfigError, DataError
from flaxae.likelihoods import Gaussian
from flaxae.nn.heads import Deterministic
from flaxae.nn.mlp import MLP
from flaxae.training import checkpoints


@pytest.fixture
def people(rng):
    """200 rows of numbers, one of them missing at times, a category with rare and missing values, and a flag."""
    frame = pd.DataFrame({"age": rng.normal(40, 10, 200).round(3), "country": ["DE", "FR", "FR", "FR"] * 50})
    frame["member"] = rng.random(200) < 0.5
    frame["income"] = rng.integers(1000, 9000, 200)
    frame.loc[::9, "age"] = np.nan
    frame.loc[3::40, "country"] = None
    frame.loc[7, "country"] = "VA"
    return frame


def fitted(frame, rows=None):
    return Encoding.fit(frame, np.arange(len(frame)) if rows is None else rows, "table")


@pytest.mark.parametrize("suffix", [".csv", ".parquet", None])
def test_a_mixed_table_is_encoded_by_its_training_part(people, tmp_path, suffix):
    source = people if suffix is None else tmp_path / f"people{suffix}"
    if suffix is not None:
        people.to_csv(source, index=False) if suffix == ".csv" else people.to_parquet(source)
    with pytest.warns(UserWarning, match="'age': 23, filled .* marked; 'country': 5, made a category") as said:
        dataset = data.load(source)
    assert len(said) == 1
    expected = ["age", "age missing", *(f"country={c}" for c in ("FR", "DE", "other")), "country missing"]
    flags = [column for column in dataset.columns if column.startswith("member=")]
    assert sorted(flags) == ["member=False", "member=True", "member=other"]
    assert list(dataset.columns) == [*expected, *flags, "income"]
    assert list(dataset.encoding.groups) == ["age"] * 2 + ["country"] * 4 + ["member"] * 3 + ["income"]

    train = people.iloc[dataset.train_rows]
    assert sorted([*dataset.train_rows, *dataset.test_rows]) == list(range(200))
    made = pd.DataFrame(dataset.train, columns=dataset.columns)
    np.testing.assert_allclose(made["age"], train.age.fillna(train.age.mean()), rtol=0.05)  # nothing tells more of it
    np.testing.assert_allclose(made["age"][train.age.notna().to_numpy()], train.age.dropna(), rtol=1e-6)
    np.testing.assert_array_equal(made["age missing"], train.age.isna())
    dummies = pd.get_dummies(train.country)
    np.testing.assert_array_equal(made[["country=DE", "country=FR"]], dummies[["DE", "FR"]])
    np.testing.assert_array_equal(made["country=other"], train.country == "VA")
    np.testing.assert_array_equal(made["country missing"], train.country.isna())
    np.testing.assert_array_equal(made["member=True"], train.member)
    np.testing.assert_array_equal(made["income"], train.income)


def test_numbers_alone_stay_as_they_are(rng):
    frame = pd.DataFrame(rng.normal(size=(30, 3)), columns=["a", "b", "c"])
    frame["constant"] = 5
    dataset, plain = data.load(frame), data.load(frame.to_numpy())
    assert dataset.encoding.is_plain
    assert dataset.columns == ("a", "b", "c", "constant")
    np.testing.assert_array_equal(dataset.train, plain.train)
    assert dataset.scaling == plain.scaling


def test_what_decides_is_the_training_part(people):
    train = np.arange(100)
    changed = people.copy()
    changed.loc[100:, "age"] = 1000.0
    changed.loc[100:, "country"] = "XX"
    changed.loc[100, "age"] = np.nan
    assert fitted(people, train) == fitted(changed, train)


def test_missing_in_the_test_part_alone_is_filled_too():
    frame = pd.DataFrame({"a": [1.0, 2.0, 6.0, np.nan]})
    with pytest.warns(UserWarning, match="'a': 1, filled by what the others let expect and marked"):
        features = fitted(frame, np.arange(3))(frame, "table")
    np.testing.assert_allclose(features, [[1, 0], [2, 0], [6, 0], [3, 1]], rtol=0.05)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(-9, 9)), min_size=8, max_size=20), st.randoms())
def test_features_are_undone(rows, random):
    frame = pd.DataFrame(rows * 2, columns=["letter", "number"]).astype({"number": float})
    frame.loc[random.randrange(len(frame)), "letter"] = None
    frame.loc[random.randrange(len(frame)), "number"] = np.nan
    encoding = fitted(frame)
    with pytest.warns(UserWarning, match="missing"):
        features = encoding(frame.sample(frac=1, axis=1, random_state=random.randrange(99)), "table")
    back = encoding.undo(features)
    assert list(back.columns) == list(frame.columns)
    np.testing.assert_array_equal(back.number, frame.number)
    known = frame.letter.isin(encoding.columns[0].categories)
    assert (back.letter[known] == frame.letter[known]).all()
    assert back.letter[frame.letter.isna()].isna().all()
    assert Encoding.from_dict(json.loads(json.dumps(encoding.to_dict()))) == encoding


def test_features_between_categories_become_the_likeliest(people):
    encoding = fitted(people[["country"]])
    assert encoding.features == ("country=FR", "country=DE", "country=other", "country missing")
    back = encoding.undo(np.float32([[0.2, 0.5, 0.1, 0.2], [0.1, 0.2, 0.4, 0.3], [0.3, 0, 0, 0.7]]))
    assert back.country[:2].tolist() == ["DE", "other"]
    assert back.country.isna().tolist() == [False, False, True]
    with pytest.raises(DataError, match=r"expected \[rows, 4\]"):
        encoding.undo(np.zeros((2, 3), np.float32))


def test_only_frequent_categories_have_a_feature(rng):
    names = [f"c{i:02d}" for i in range(50)]
    values = np.repeat(names, np.arange(50, 0, -1))
    encoding = fitted(pd.DataFrame({"x": rng.permutation(values)}))
    assert encoding.columns[0].categories == tuple(names[:MAX_CATEGORIES])
    assert fitted(pd.DataFrame({"x": ["a", "a", "b", "a", "other", "other"]})).features == ("x=a", "x=other")


@pytest.mark.parametrize(
    ("train", "new", "expected"),
    [
        (["a", "b"] * 4, ["b", "unseen"], [[0, 1, 0], [0, 0, 1]]),
        ([True, False, True] * 2, [False, True], [[0, 1, 0], [1, 0, 0]]),
        (["1", "2"] * 4, [2, 1], [[0, 1, 0], [1, 0, 0]]),
        (["1", "2"] * 4, [2.0, 3.0], [[0, 1, 0], [0, 0, 1]]),
        (pd.Categorical([1, 2, 1] * 2), [1, 2], [[1, 0, 0], [0, 1, 0]]),
    ],
)
def test_categories_at_scoring_time(train, new, expected):
    np.testing.assert_array_equal(fitted(pd.DataFrame({"x": train}))(pd.DataFrame({"x": new}), "new"), expected)


def test_columns_may_be_called_by_numbers():
    frame = pd.DataFrame({0: ["a", "b"] * 4, 1: np.arange(8.0)})
    assert data.load(frame).encoding(frame).shape == (8, 4)


def test_categories_weigh_as_much_as_numbers(rng):
    frame = pd.DataFrame({"x": rng.normal(size=1000), "c": ["common"] * 990 + ["rare"] * 10})
    frame = frame.sample(frac=1, random_state=0, ignore_index=True)
    dataset = data.load(frame)
    x, categories = dataset.scaling(dataset.train)[:, 0], dataset.scaling(dataset.train)[:, 1:]
    np.testing.assert_allclose(2 * x.var(), 2, rtol=1e-4)  # the mean squared distance of two rows
    rare = dataset.train[:, dataset.columns.index("c=rare")] == 1
    np.testing.assert_allclose(np.square(categories[rare][0] - categories[~rare][0]).sum(), 2, rtol=1e-5)
    assert Scaling.fit(dataset.train).scale[-2] < 0.2  # what would blow it up


def test_an_empty_column_is_left_out_with_a_warning(rng):
    frame = pd.DataFrame({"a": rng.normal(size=10), "void": np.nan, "nothing": [None] * 10})
    with pytest.warns(UserWarning, match="left out 'void', 'nothing'"):
        dataset = data.load(frame)
    assert dataset.columns == ("a",)
    with pytest.raises(DataError, match="holds no values"):
        data.load(frame[["void"]])


@pytest.mark.parametrize("rows", [2, 5])
def test_more_columns_than_rows_and_constant_ones(rows):
    frame = pd.DataFrame(np.arange(40.0 * rows).reshape(rows, 40)).assign(flag=1.0, kind="same")
    dataset = data.load(frame)
    scaled = dataset.scaling(dataset.train)
    assert np.isfinite(scaled).all()
    np.testing.assert_array_equal(scaled[:, -3:], scaled[:1, -3:].repeat(len(scaled), 0))


@pytest.mark.parametrize(
    "values",
    [
        pd.date_range("2020-01-31", periods=6),
        pd.date_range("2020-01-31", periods=6).date,
        pd.timedelta_range("1h", periods=6),
        pd.period_range("2020-01", periods=6, freq="M"),
        [f"2020-01-0{i}" for i in range(1, 7)],
        [f"2020-01-31T12:00:0{i}Z" for i in range(6)],
        [f"{i}.1.2020" for i in range(1, 7)],
        [f"1/{i}/20 10:30" for i in range(1, 7)],
        ["31 Jan 2020", "1 February 2020"] * 3,
        ["Jan 31, 2020", "February 1, 2020"] * 3,
        ["12:00", "13:30:10"] * 3,
        ["2020-01-31", None] * 3,
    ],
    ids=str,
)
def test_dates_are_carried_and_not_learnt_from(values):
    frame = pd.DataFrame({"number": [3, 1, 2, 5, 4, 0], "seen at": values})
    with pytest.warns(UserWarning, match="not learnt from: 'seen at', dates or times"):
        dataset = data.load(frame)
    assert (dataset.columns, dataset.roles.time) == (("number",), "seen at")
    assert dataset.carried["seen at"].tolist() == frame["seen at"].tolist()
    with pytest.raises(DataError, match=r"'seen at' holds dates or times .*weekday.* leave it out"):
        data.load(frame, keep=("seen at",))


@pytest.mark.parametrize("values", [["10-20", "20-30"], ["V1.2.3", "V1.2"], ["may be", "march"], ["A 2020", "B 2021"]])
def test_what_only_looks_like_dates_is_taken(values):
    assert fitted(pd.DataFrame({"x": values * 3})).columns[0].categories == tuple(sorted(values))


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([*map(str, range(29)), "n/a"], r"'x' holds numbers.*nothing where one is missing"),
        ([f"{i},5" for i in range(15)] * 2, "'x' holds numbers, but also"),
        ([[1], [2]] * 15, "'x' holds neither numbers nor text"),
        ([*range(29), np.inf], r"1 values .* the first, inf, at row 29, column 'x'"),
        ([*range(5, 34), 0, 1e300][1:], r"row 29, column 'x'"),
        ([None, *range(28), -np.inf], r"-inf, at row 29, column 'x'"),
    ],
)
def test_columns_that_can_not_be_used(column, message):
    frame = pd.DataFrame({"x": column, "y": np.arange(30) % 7})
    with pytest.raises(DataError, match=message):
        data.load(frame)


@pytest.mark.parametrize(
    ("frame", "label", "message"),
    [
        (pd.DataFrame({"a": [1.0], "b": ["x"]}), None, "has 1 example; expected 2"),
        (pd.DataFrame({"a": []}), None, "is empty"),
        (pd.DataFrame([[1, 2], [3, 4]], columns=["a", "a"]), None, "two columns 'a'"),
        (pd.DataFrame({"a": [1, 2]}), "a", "nothing beside the label"),
        (pd.DataFrame({"a": [1, 2], "b": [None, None]}), "b", "label column 'b' is empty"),
        (pd.DataFrame({"a": [1, 2]}), "b", "Unknown column 'b'"),
    ],
)
def test_tables_that_can_not_be_used(frame, label, message):
    with pytest.raises(DataError, match=message):
        data.load(frame, label=label)


def test_a_first_line_of_data_is_not_taken_for_names(tmp_path):
    (tmp_path / "iris.csv").write_text("5.1,setosa\n4.9,setosa\n6.3,virginica\n")
    with pytest.raises(DataError, match=r"iris\.csv: its first line seems to be data, for 'setosa'"):
        data.load(tmp_path / "iris.csv")
    (tmp_path / "years.csv").write_text("country,1960\nDE,1960\nFR,7\nDE,8\nFR,9\nDE,1\n")
    assert data.load(tmp_path / "years.csv").columns[-1] == "1960"


def test_one_class_alone_is_a_class(people):
    dataset = data.load(people[["income"]].assign(state="normal"), label="state")
    assert dataset.classes == ("normal",)
    np.testing.assert_array_equal(np.concatenate([dataset.train_labels, dataset.test_labels]), np.zeros(200))


@pytest.fixture
def model(people, tmp_path):
    """A run's folder with an untrained model of `people` in it, loaded."""
    with pytest.warns(UserWarning, match="missing"):
        dataset = data.load(people)
    config = Config(body=MLP((4,)), head=Deterministic(2), likelihood=Gaussian())
    network = autoencoder.build(config, dataset.shape)
    with runs.start("test", "a", trained.describe(config, dataset), resume=False, root=tmp_path) as run:
        checkpoints.save(run.checkpoints / "best", 0, nnx.split(network, nnx.Param, ...)[1:])
    loaded = trained.load(run.folder)
    assert (loaded.encoding, loaded.columns) == (dataset.encoding, dataset.columns)
    return loaded


def test_a_trained_model_takes_and_gives_the_user_s_columns(model, people, tmp_path):
    new = people[people.columns[::-1]].assign(comment="ignored")
    new.to_csv(tmp_path / "new.csv", index=False)
    with pytest.warns(UserWarning, match="new.csv: values are missing"):
        model.convert(tmp_path / "new.csv", tmp_path / "same.csv", lambda x: x)
    same = pd.read_csv(tmp_path / "same.csv")
    assert list(same.columns) == list(people.columns)
    np.testing.assert_allclose(same.age, people.age, rtol=1e-6)
    expected = people.country.replace("VA", "other")
    assert (same.country.fillna("") == expected.fillna("")).all()
    assert (same.member == people.member).all()
    complete = people.dropna()
    complete.to_csv(tmp_path / "new.csv", index=False)
    model.convert(tmp_path / "new.csv", tmp_path / "same.csv", model.reconstruct)
    assert set(pd.read_csv(tmp_path / "same.csv").country.dropna()) <= {"DE", "FR", "other"}


def test_a_line_about_gaps_names_the_columns_with_the_most(rng):
    frame = pd.DataFrame(rng.normal(size=(40, 30)), columns=[f"c{i}" for i in range(30)])
    encoding = Encoding.fit(frame, np.arange(40))
    for i in range(30):
        frame.loc[: 1 + (i == 20), f"c{i}"] = np.nan
    with pytest.warns(UserWarning, match="values are missing") as said:
        encoding(frame, "new")
    message = str(said[0].message)
    assert "'c20': 3" in message
    assert "24 more columns: 48" in message
    assert len(message) < 500


def test_one_new_row_is_enough(model, people, tmp_path):
    people.dropna()[:1].to_csv(tmp_path / "new.csv", index=False)
    row = model.read(tmp_path / "new.csv")
    assert row.shape == (1, *model.shape)
    assert model.reconstruct(row).shape == row.shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="age"), "Unknown column 'age'"),
        (lambda t: t.drop(columns=["age", "member"]), r"Unknown column 'age'.* Missing too: 'member'\."),
        (lambda t: t.rename(columns={"income": "incme"}), r"Unknown column 'income'\. Did you mean 'incme'"),
        (lambda t: t.assign(income=["much", *t.income[1:]]), "'income' holds numbers, but also 'much', in row 0"),
        (lambda t: t.assign(income=[None, "much", *t.income[2:]]), "'income' holds numbers, but also 'much', in row 1"),
        (lambda t: t.assign(income="much"), "'income' is not numeric .such as 'much', in row 0"),
        (lambda t: t.assign(income="2020-01-31"), "'income' holds dates"),
        (lambda t: t.assign(income=np.inf), r"first, inf, at row 0, column 'income'"),
    ],
)
def test_new_tables_that_do_not_fit(model, people, tmp_path, change, message):
    change(people.dropna()).to_csv(tmp_path / "new.csv", index=False)
    with pytest.raises(DataError, match=r"new\.csv.*" + message):
        model.read(tmp_path / "new.csv")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"columns": []},
        {"columns": "abc"},
        {"columns": [{"name": "a"}]},
        {"columns": [{"name": 1, "categories": None, "missing": False, "fill": 0.0}]},
        {"columns": [{"name": "a", "categories": "xy", "missing": False, "fill": 0.0}]},
        {"columns": [{"name": "a", "categories": [1], "missing": False, "fill": 0.0}]},
        {"columns": [{"name": "a", "categories": None, "missing": 1, "fill": 0.0}]},
        {"columns": [{"name": "a", "categories": None, "missing": True, "fill": float("nan")}]},
        {"columns": [{"name": "a", "categories": None, "missing": True, "fill": 10**400}]},
    ],
)
def test_encoding_from_a_damaged_config(fields):
    with pytest.raises(ConfigError, match=re.escape("encoding")):
        Encoding.from_dict(fields)
