"""Series: windows like none before are strange, wherever in a cycle they begin; what is promised holds, or isn't."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flaxae
from benchmarks.series import vus_pr
from flaxae import data
from flaxae.anomaly import conformal, series
from flaxae.anomaly.findings import Rule
from flaxae.data import Framing, Signal, recordings
from flaxae.errors import ConfigError, DataError


def cycle(moments, seed=0, noise=0.1):
    x = np.sin(np.arange(moments) / 5) + noise * np.random.default_rng(seed).normal(size=moments)
    return x[:, None].astype(np.float32)


def found(detector, x, stride=1):
    return series.find(detector, Signal(x), Framing(detector.window, stride), Rule("conformal", 0.05))


# The detector


@pytest.fixture(scope="module")
def on_cycle():
    return series.fit(Signal(cycle(1500)), window=30)


@pytest.mark.parametrize("shift", [0, 7, 17])
def test_a_cycle_is_normal_wherever_it_is_cut(on_cycle, shift):
    windows, line = found(on_cycle, cycle(1000, seed=1)[shift:], stride=30)
    assert windows.flagged.mean() < 0.1
    assert line.score.shape == (1000 - shift,)


def test_a_level_that_wanders_is_no_part_of_the_comparison():
    steady = cycle(8000)
    walk = steady + 0.05 * np.cumsum(np.random.default_rng(5).normal(size=8000))[:, None]
    forms = {
        name: {space.form for space in series.fit(Signal(x.astype(np.float32)), window=30).spaces}
        for name, x in {"steady": steady, "walk": walk}.items()
    }
    assert forms == {"steady": {"raw", "centred", "unit"}, "walk": {"centred", "unit"}}


@given(st.integers(5, 400), st.integers(0, 1000))
def test_the_smallest_are_found_by_groups(columns, seed):
    values = np.random.default_rng(seed).integers(0, 50, (7, columns)).astype(np.float32)
    values[0, columns // 2 :] = np.inf
    found = series._smallest(values, 5)
    assert all(len(set(row)) == 5 for row in found.tolist())
    np.testing.assert_array_equal(np.sort(np.take_along_axis(values, found, axis=1)), np.sort(values, axis=1)[:, :5])


@pytest.mark.parametrize("change", ["flat", "faster", "higher", "spike"])
def test_what_is_strange_is_found_at_its_moments(on_cycle, change):
    x = cycle(1000, seed=2)
    part = slice(600, 625)
    if change == "spike":
        x[610] += 4
    else:
        x[part] = {"flat": 0, "faster": np.sin(np.arange(25) / 2)[:, None], "higher": x[part] + 1.5}[change]
    windows, line = found(on_cycle, x)
    assert 590 <= line.score.argmax() < 635
    assert line.flagged[610 if change == "spike" else part].all()
    assert line.flagged[:550].mean() < 0.15
    assert windows.flagged[600 : 611 if change == "spike" else 620].all()


def test_a_strange_stretch_of_the_training_part_is_left_out():
    x = cycle(1500)
    x[900:1000] = 20 + cycle(100, seed=3)
    detector = series.fit(Signal(x), window=30)
    assert 100 <= detector.left_out < 200
    windows, _ = found(detector, x)
    assert windows.flagged[900 - 29 : 1000].mean() > 0.9


def test_on_a_trend_levels_do_not_count():
    x = cycle(3000) + 0.01 * np.arange(3000, dtype=np.float32)[:, None]
    detector = series.fit(Signal(x[:2000]), window=30)
    assert {space.form for space in detector.spaces} == {"centred", "unit"}
    windows, _ = found(detector, x[2000:])
    assert windows.flagged.mean() < 0.1


@pytest.mark.parametrize("seed", range(3))
def test_false_alarms_are_as_promised(seed):
    detector = series.fit(Signal(cycle(4000, seed)), window=25)
    rate = 1 / (detector.worth + 1)
    assert rate < 0.01
    scores = detector.score(data.windows(cycle(4000, seed + 10), 25, 5))
    assert np.mean(scores > conformal.threshold(detector.calibration, 0.02, detector.worth)) <= 0.02


def test_what_is_saved_scores_the_same(tmp_path, on_cycle):
    tmp_path /= "saved"
    on_cycle.save(tmp_path)
    x = data.windows(cycle(200, seed=4), 30, 10)
    np.testing.assert_array_equal(series.load(tmp_path).score(x), on_cycle.score(x))
    on_cycle.save(tmp_path)  # over itself
    (tmp_path / "series.json").write_text("{}")
    with pytest.raises(flaxae.errors.RunError, match=r"series\.json is damaged"):
        series.load(tmp_path)
    (tmp_path / "manifest").unlink()
    with pytest.raises(flaxae.errors.RunError, match="no detector of series"):
        series.load(tmp_path)


def test_what_can_not_be_fitted_or_scored(on_cycle):
    with pytest.raises(DataError, match="Choose a smaller window"):
        series.fit(Signal(cycle(40)), window=30)
    with pytest.raises(ConfigError, match="contamination"):
        series.fit(Signal(cycle(400)), window=30, contamination=0.7)
    with pytest.raises(DataError, match="expected"):
        on_cycle.score(np.zeros((3, 20, 1), np.float32))


@given(st.integers(2, 60), st.integers(1, 9), st.floats(0.02, 0.5))
def test_blocks_are_worth_less_than_as_many_examples(worth, each, rate):
    calibration = np.random.default_rng(worth).normal(size=worth * each)
    scores = np.linspace(-3, 3, 50)
    p = conformal.p_values(scores, calibration, worth)
    assert (p >= conformal.p_values(scores, calibration) - 1e-9).all()
    assert (p >= 1 / (worth + 1) - 1e-9).all()
    if rate >= 1 / (worth + 1):
        flagged = scores > conformal.threshold(calibration, rate, worth)
        np.testing.assert_array_equal(flagged, p <= rate + 1e-9)


def test_vus_pr_is_tsb_ads():
    rng = np.random.default_rng(0)
    strange = np.zeros(300, bool)
    strange[[*range(40, 52), *range(70, 75), 200]] = True
    score = np.round(rng.normal(size=300) + 2 * np.convolve(strange, np.ones(9) / 9, "same"), 1)
    assert vus_pr(strange, score, 30) == pytest.approx(VUS_PR, abs=1e-9)


VUS_PR = 0.6384237421314437  # TSB_AD 1.5: basic_metricor().RangeAUC_volume_opt(strange.astype(int), score, 30)[-1]


# Recordings

pytestmark = pytest.mark.filterwarnings("ignore:.*not learnt from")


def frame(moments=400):
    t = np.arange(moments)
    return pd.DataFrame({"time": pd.date_range("2024-03-01", periods=moments, freq="min"), "v": np.sin(t / 7)})


def test_gaps_of_a_clock_are_cut_at(capsys):
    table = frame().drop(index=range(100, 150))
    signal = recordings.of_table(table, "x")
    assert (signal.begins, signal.columns, len(signal.values)) == ((0, 100), ("v",), 350)
    assert "1 gaps longer than" in capsys.readouterr().out
    dataset = data.load(table, window=20)
    assert dataset.framing.step == 60
    assert not (np.abs(np.diff(dataset.train[..., 0], axis=1)) > 0.2).any()  # no window lies over the gap


def test_a_few_missing_moments_are_interpolated_and_rows_put_in_order(capsys):
    table = frame().drop(index=[50, 51]).sample(frac=1, random_state=0)
    signal = recordings.of_table(table, "x")
    assert signal.begins == (0,)
    np.testing.assert_allclose(signal.values[:, 0], np.sin(np.arange(400) / 7), atol=0.03)
    out = capsys.readouterr().out
    assert "put in order" in out
    assert "2 moments are missing" in out


def test_uneven_times_are_made_even(capsys):
    seconds = np.cumsum(np.random.default_rng(0).exponential(1, 500))
    table = pd.DataFrame({"seconds": seconds, "v": np.sin(seconds / 20)})
    signal = recordings.of_table(table, "x")
    assert "not evenly spaced" in capsys.readouterr().out
    np.testing.assert_allclose(signal.values[:, 0], np.sin(signal.times / 20), atol=0.05)
    assert np.ptp(np.diff(signal.times)) < 1e-6


def test_missing_values_are_interpolated_or_cut_at(capsys):
    x = np.sin(np.arange(200) / 7)
    x[20:23], x[100:130] = np.nan, np.nan
    signal = recordings.of_array(x, "x")
    assert (signal.begins, len(signal.values)) == ((0, 100), 170)
    assert signal.times[100] == 130
    np.testing.assert_allclose(signal.values[:100, 0], np.sin(np.arange(100) / 7), atol=0.05)
    assert "33 values are missing" in capsys.readouterr().out


def test_a_row_for_each_sensor_and_moment_becomes_a_channel_a_sensor():
    times = pd.date_range("2024", periods=200, freq="h")
    parts = [pd.DataFrame({"time": times, "sensor": s, "v": np.arange(200.0) * k}) for s, k in (("a", 1), ("b", 2))]
    long = pd.concat(parts)
    signal = recordings.of_table(long.reset_index(drop=True), "x")
    assert signal.columns == ("a", "b")
    np.testing.assert_allclose(signal.values[:, 1], 2 * signal.values[:, 0])


def test_a_folder_of_recordings_of_different_length(tmp_path, capsys):
    for name, length in (("a", 300), ("b", 150), ("c", 90)):
        pd.DataFrame({"v": np.sin(np.arange(length) / 7)}).to_csv(tmp_path / f"{name}.csv", index=False)
    dataset = data.load(tmp_path, window=20)
    assert dataset.signals[0].begins == (0, 300)
    assert dataset.signals[0].files == ("a.csv", "b.csv")
    assert "3 recordings, of 90 to 300 moments" in capsys.readouterr().out


@pytest.mark.parametrize("length", [24, 48, 183])
def test_the_period_is_found(length):
    x = np.sin(2 * np.pi * np.arange(3000) / length) + 0.3 * np.random.default_rng(0).normal(size=3000)
    assert abs(recordings.period(x[:, None]) - length) <= 1
    dataset = data.load(x, window="auto")
    assert dataset.framing.window >= 100
    assert abs(dataset.framing.window / length - round(dataset.framing.window / length)) < 0.1


def test_noise_has_no_period():
    assert recordings.period(np.random.default_rng(0).normal(size=(3000, 1))) is None


def test_labels_that_are_texts_rank_by_how_rare_they_are():
    labels = np.array(["Normal"] * 180 + ["Attack"] * 20, object)
    dataset = data.load(pd.DataFrame({"v": np.sin(np.arange(200.0)), "state": labels}), label="state", window=10)
    assert dataset.label_names == ("Normal", "Attack")
    assert dataset.test_labels[-1] == 1
