"""Columns that say what a row is about are found, carried along, and not learnt from."""

import json

import numpy as np
import pandas as pd
import pytest

from flaxae import data
from flaxae.data import Roles, roles
from flaxae.errors import ConfigError, DataError


@pytest.fixture
def frame(rng):
    return pd.DataFrame({"temp": rng.normal(20, 3, 60), "mode": rng.integers(0, 4, 60), "count": rng.poisson(40, 60)})


@pytest.mark.parametrize(
    ("name", "values", "why"),
    [
        ("Unnamed: 0", lambda r: np.arange(60), "a counter"),
        ("energy", lambda r: 7e4 - np.cumsum(r.exponential(size=60)), "a counter"),
        ("time", lambda r: 1_700_000_000 + 60 * np.arange(60), "a clock"),
        ("ts", lambda r: 1_700_000_000_000 + r.permutation(6000)[:60], "a clock"),
        ("when", lambda r: np.arange(60) // 3, "a clock"),
        ("time", lambda r: np.tile(np.arange(120), 2) * 5.0, "a clock"),
        (
            "when",
            lambda r: pd.date_range("2024-01-01", periods=60, freq="h").strftime("%d.%m.%Y %H:%M"),
            "dates or times",
        ),
        ("id", lambda r: [f"DEV-{i}" for i in r.permutation(60)], "names of rows"),
        ("number", lambda r: 1000 + r.permutation(60), "names of rows"),
        ("customerId", lambda r: r.integers(0, 10**9, 60), "names of rows"),
        ("note", lambda r: ["same", *(f"text {i}" for i in range(58)), "same"], "text, 59 different ones in 60 rows"),
    ],
)
def test_what_is_no_measurement_is_found(frame, rng, name, values, why):
    made = values(rng)
    frame = frame.iloc[np.arange(len(made)) % len(frame)].reset_index(drop=True)
    frame[name] = made
    with pytest.warns(UserWarning, match=f"not learnt from: '{name}', {why}"):
        table = data.tables.prepare(frame)
    assert list(table.frame.columns) == ["temp", "mode", "count"]
    assert list(table.carried.columns) == [name]
    kept = data.tables.prepare(frame, keep=(name,))
    assert name in kept.frame.columns


@pytest.mark.parametrize(
    "values",
    [
        lambda r: r.normal(size=60),
        lambda r: r.integers(1000, 9000, 60),
        lambda r: r.integers(0, 2, 60).astype(bool),
        lambda r: np.sort(r.integers(0, 5, 60)),
        lambda r: np.full(60, 3.0),
        lambda r: np.arange(60) % 24,
        lambda r: [f"city{i}" for i in r.integers(0, 20, 60)],
    ],
)
def test_measurements_are_learnt_from(frame, rng, values):
    frame["x"] = values(rng)
    assert "x" in data.tables.prepare(frame).frame.columns


def test_what_is_given_needs_no_line(frame):
    frame = frame.assign(t=np.arange(60), name=[f"n{i}" for i in range(60)], rest=1)
    table = data.tables.prepare(frame, time="t", ids=("name",), drop=("rest", "mode"))
    assert table.roles == Roles("t", ("name",), ("rest", "mode"))
    assert (list(table.frame.columns), list(table.carried.columns)) == (["temp", "count"], ["t", "name"])
    assert Roles.from_dict(json.loads(json.dumps(table.roles.to_dict()))) == table.roles
    with pytest.raises(DataError, match=r"column for drop 'rst'\. Did you mean 'rest'"):
        data.tables.prepare(frame, drop=("rst",))
    with pytest.raises(ConfigError, match="Roles"):
        Roles.from_dict({"time": 1, "ids": [], "dropped": []})


def test_a_table_of_a_rising_measurement_alone_is_learnt_from():
    assert list(data.tables.prepare(pd.DataFrame({"x": np.arange(30.0)})).frame.columns) == ["x"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["31.01.2024 10:00", "01.02.2024 10:00"], ["2024-01-31T10", "2024-02-01T10"]),
        (["01/02/2024", "13/02/2024"], ["2024-02-01", "2024-02-13"]),
        (["01/02/2024", "01/13/2024"], ["2024-01-02", "2024-01-13"]),
        (["2024-01-31T12:00:00Z", None], ["2024-01-31T12", "NaT"]),
        ([1_700_000_000, 1_700_000_060], ["2023-11-14T22:13:20", "2023-11-14T22:14:20"]),
        ([1_700_000_000_000], ["2023-11-14T22:13:20"]),
        (pd.date_range("2024-01-01", periods=2, tz="Europe/Berlin"), ["2023-12-31T23", "2024-01-01T23"]),
    ],
)
def test_moments(values, expected):
    found = roles.moments(pd.Series(values))
    np.testing.assert_array_equal(found, np.array(expected, "datetime64[ns]"))


def test_rare_classes_have_their_share_in_the_test_part(frame):
    fault = np.zeros(60, int)
    fault[[5, 17, 20, 33, 40]] = 1
    dataset = data.load(frame.assign(fault=fault), label="fault")
    assert (dataset.test_labels.sum(), len(dataset.test)) == (1, 12)
    partly = pd.Series(fault, dtype=object).where(np.arange(60) % 3 > 0, None)
    with pytest.warns(UserWarning, match="20 of 60 rows have no label"):
        dataset = data.load(frame.assign(fault=partly), label="fault")
    assert dataset.classes == ("0", "1")
    assert (np.concatenate([dataset.train_labels, dataset.test_labels]) == -1).sum() == 20
