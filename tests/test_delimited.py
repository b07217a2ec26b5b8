"""Tables as people export them: whatever the dialect, the same numbers, or a message with the row and the value."""

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flaxae import data
from flaxae.data import delimited
from flaxae.errors import DataError


@pytest.fixture
def frame(rng):
    return pd.DataFrame(
        {"temp": rng.normal(20, 3, 40).round(3), "Größe": rng.integers(-5, 2000, 40), "ok": ["ja", "nein"] * 20}
    )


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("a.csv", {}),
        ("a.csv", {"sep": ";", "decimal": ","}),
        ("a.csv", {"sep": ";"}),
        ("a.csv", {"sep": "|", "lineterminator": "\r\n"}),
        ("a.tsv", {"sep": "\t", "decimal": ","}),
        ("a.txt", {"sep": " "}),
        ("a.csv", {"encoding": "utf-8-sig"}),
        ("a.csv", {"encoding": "utf-16"}),
        ("a.csv", {"encoding": "utf-16-le", "sep": ";"}),
        ("a.csv.gz", {}),
        ("a.csv.zip", {"sep": ";"}),
        ("a.tsv.xz", {"sep": "\t"}),
        ("a.dat", {"quoting": 1}),
    ],
    ids=str,
)
def test_every_dialect_is_the_same_table(tmp_path, frame, name, settings):
    frame.to_csv(tmp_path / name, index=False, **settings)
    pd.testing.assert_frame_equal(data.read_table(tmp_path / name), frame, check_dtype=False)


def test_what_is_not_utf8_is_said(tmp_path, frame):
    frame.to_csv(tmp_path / "a.csv", index=False, encoding="latin-1")
    with pytest.warns(UserWarning, match="isn't UTF-8"):
        read = data.read_table(tmp_path / "a.csv")
    assert list(read.columns) == list(frame.columns)


@pytest.mark.parametrize(
    ("text", "said", "expected"),
    [
        ("# logger 2.1\n# site A\na,b\n1,2\n3,4\n", "left out '# logger 2.1' and 1 more", {"a": [1, 3], "b": [2, 4]}),
        ("Report of May\n\na;b\n1;2\n3;4\n", "left out 'Report of May'", {"a": [1, 3], "b": [2, 4]}),
        ("a,b\ndegC,hPa\n1,2\n3,4\n5,6\n", "left out line 2, units: degC, hPa", {"a": [1, 3, 5], "b": [2, 4, 6]}),
        ("# a, b\n1,2\n3,4\n", "left out '# a, b'", {"a": [1, 3], "b": [2, 4]}),
        ('a,b\n1,"1,234.5"\n2,"2"\n', "'b' is read as numbers, 1,234.5 as 1234.5", {"a": [1, 2], "b": [1234.5, 2]}),
        ("a,b\n1,51.2%\n2,7 %\n", "'b' is read as numbers, 51.2% as 51.2", {"a": [1, 2], "b": [51.2, 7]}),
        ('a,b\n1,"$1,000"\n2,€ 3\n', "'b' is read as numbers", {"a": [1, 2], "b": [1000, 3]}),
        ("a;b\n1;1.234,5\n2;10,25\n", "'b' is read as numbers, 1.234,5 as 1234.5", {"a": [1, 2], "b": [1234.5, 10.25]}),
        ("a,b\n1,(3)\n2,4\n", r"'b' is read as numbers, \(3\) as -3", {"a": [1, 2], "b": [-3, 4]}),
    ],
)
def test_what_people_write_around_numbers(tmp_path, text, said, expected):
    (tmp_path / "a.csv").write_text(text)
    with pytest.warns(UserWarning, match=said):
        read = data.read_table(tmp_path / "a.csv")
    pd.testing.assert_frame_equal(read, pd.DataFrame(expected), check_dtype=False)


@pytest.mark.parametrize("mark", delimited.MISSING_AMONG_NUMBERS)
def test_marks_of_missing_numbers(tmp_path, mark):
    (tmp_path / "a.csv").write_text(f"a,b\n1,2.5\n2,{mark}\n3, {mark}\n")
    read = data.read_table(tmp_path / "a.csv")
    np.testing.assert_array_equal(read.b, [2.5, np.nan, np.nan])


def test_a_class_may_be_called_none(tmp_path):
    (tmp_path / "a.csv").write_text("a,attack\n" + "".join(f"{i % 7},{['None', 'DoS'][i % 2]}\n" for i in range(40)))
    assert data.load(tmp_path / "a.csv", label="attack").classes == ("DoS", "None")


def test_one_text_among_numbers_is_named_with_its_row(tmp_path):
    lines = [f"{i},{i % 5}" for i in range(30)]
    lines[7] = "sensor error,2"
    (tmp_path / "a.csv").write_text("a,b\n" + "\n".join(lines))
    with pytest.raises(DataError, match=r"'a' holds numbers, but also 'sensor error', in row 7 \(counted from 0\)"):
        data.read_table(tmp_path / "a.csv")


@given(
    st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(0, 10**6)), min_size=3, max_size=8), st.sampled_from(";\t|,")
)
def test_numbers_survive_any_separator(tmp_path_factory, rows, separator):
    frame = pd.DataFrame(rows, columns=["a", "b"])
    path = tmp_path_factory.mktemp("t") / "a.csv"
    decimal = "." if separator == "," else ","
    frame.round(3).to_csv(path, index=False, sep=separator, decimal=decimal, float_format="%.3f")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numbers with separated thousands
        read = data.read_table(path)
    np.testing.assert_allclose(read, frame.round(3), atol=1e-9)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.json", lambda f, p: f.to_json(p, orient="records")),
        ("a.jsonl", lambda f, p: f.to_json(p, orient="records", lines=True)),
        ("a.xlsx", lambda f, p: f.to_excel(p, index=False)),
        ("a.feather", lambda f, p: f.to_feather(p)),
    ],
)
def test_other_formats_of_tables(tmp_path, frame, name, write):
    write(frame, tmp_path / name)
    pd.testing.assert_frame_equal(data.read_table(tmp_path / name), frame, check_dtype=False)


@pytest.mark.parametrize(
    "name", ["a.json", "a.jsonl", "a.xlsx", "a.feather", "a.arff", "a.mat", "a.csv.gz", "a.csv.zip"]
)
def test_damaged_files_are_one_message(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x00{]nothing of the kind" * 9)
    with pytest.raises(DataError, match=r"a\.\w+"):
        data.load(tmp_path / name)


def test_weka_s_and_matlab_s_files(tmp_path, rng):
    from scipy.io import savemat

    rows = "\n".join(f"{i % 9},{'ab'[i % 2]},?" if i == 3 else f"{i % 9},{'ab'[i % 2]},{i * 7 % 5}" for i in range(30))
    head = "@relation r\n@attribute n numeric\n@attribute c {a,b}\n@attribute m numeric\n@data\n"
    (tmp_path / "a.arff").write_text(head + rows)
    read = data.read_table(tmp_path / "a.arff")
    assert (read.c[:2].tolist(), read.n[:2].tolist(), read.m.isna().sum()) == (["a", "b"], [0, 1], 1)
    x, y = rng.normal(size=(20, 3)), np.arange(20) % 2
    savemat(tmp_path / "a.mat", {"X": x, "y": y[:, None]})
    np.savez(tmp_path / "a.npz", X=x, y=y)
    for name in ("a.mat", "a.npz"):
        dataset = data.load(tmp_path / name)
        np.testing.assert_allclose(np.sort(np.concatenate([dataset.train, dataset.test]), 0), np.sort(x, 0), rtol=1e-6)
        assert dataset.classes == ("0", "1")
