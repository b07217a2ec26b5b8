"""Decisions from scores: the promise of conformal p-values and thresholds, against naive counts."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from flaxae import errors
from flaxae.anomaly import conformal

few_values = st.integers(-3, 3).map(float)  # so that there are ties


def scores(least):
    return st_numpy.arrays(np.float64, st.integers(least, 30), elements=few_values)


@given(scores(1), scores(1))
def test_a_p_value_counts_the_normals_that_are_as_strange(new, calibration):
    naive = [(1 + sum(normal >= score for normal in calibration)) / (1 + len(calibration)) for score in new]
    np.testing.assert_allclose(conformal.p_values(new, calibration), naive)


@given(scores(1), scores(1), st.integers(1, 40), st.integers(2, 41))
def test_the_threshold_says_the_same_as_the_p_values(new, calibration, numerator, denominator):
    rate = numerator / denominator
    assume(rate < 1)
    if math.floor(rate * (len(calibration) + 1) + 1e-9) < 1:  # even the strangest has a larger p-value
        with pytest.raises(errors.ConfigError, match="Hold out more, or allow"):
            conformal.threshold(calibration, rate)
        return
    flagged = new > conformal.threshold(calibration, rate)
    np.testing.assert_array_equal(flagged, conformal.p_values(new, calibration) <= rate + 1e-9)


def test_the_rate_that_the_message_allows_is_allowed():
    with pytest.raises(errors.ConfigError, match=r"takes 99 held-out normal examples at least; there are 63") as error:
        conformal.threshold(np.arange(63.0), 0.01)
    allowed = float(str(error.value).split("allow ")[1].removesuffix("."))
    conformal.threshold(np.arange(63.0), allowed)
    conformal.threshold(np.arange(99.0), 0.01)


@pytest.mark.parametrize("rate", [0.01, 0.1])
@pytest.mark.parametrize("rounded", [False, True], ids=["continuous", "tied"])
def test_the_promise_holds_over_random_splits(rng, rate, rounded):
    """The mean rate over 200 splits is within four deviations of the nominal one; with ties it may only be lower."""
    population = rng.lognormal(size=4000)  # whatever the scores' distribution
    population = np.round(population, 1) if rounded else population
    normals, tested, splits = 299, 500, 200
    rates = []
    for _ in range(splits):
        drawn = rng.permutation(population)[: normals + tested]
        rates.append(np.mean(drawn[normals:] > conformal.threshold(drawn[:normals], rate)))
    # of a split: the threshold's own chance (a beta variable) and that of the examples it meets (a binomial one)
    deviation = math.sqrt(rate * (1 - rate) * (1 / (normals + 2) + 1 / tested) / splits)
    assert np.mean(rates) < rate + 4 * deviation
    if not rounded:
        assert np.mean(rates) > rate - 4 * deviation


def test_a_p_value_of_a_normal_example_is_rarely_small(rng):
    drawn = [rng.standard_normal(100) for _ in range(2000)]
    p = np.array([conformal.p_values(x[:1], x[1:])[0] for x in drawn])
    for level in (0.05, 0.2, 0.5):
        assert np.mean(p <= level) < level + 4 * math.sqrt(level * (1 - level) / len(p))


@given(st_numpy.arrays(np.float64, st.integers(1, 20), elements=st.integers(1, 20).map(lambda i: i / 20)))
def test_benjamini_hochberg_flags_up_to_the_last_rank_below_the_line(p):
    rate = 0.31  # no p is on the line
    order = np.argsort(p, kind="stable")
    last = max((rank for rank, i in enumerate(order, 1) if p[i] <= rate * rank / len(p)), default=0)
    expected = np.zeros(len(p), bool)
    expected[order[:last]] = True
    np.testing.assert_array_equal(conformal.benjamini_hochberg(p, rate), expected)


def test_few_of_the_flagged_are_normal_in_expectation(rng):
    false = []
    for _ in range(200):
        calibration, new = rng.standard_normal(500), rng.standard_normal(200)
        new[:40] += 4
        flagged = conformal.benjamini_hochberg(conformal.p_values(new, calibration), 0.2)
        assert flagged[:40].sum() > 20
        false.append(flagged[40:].sum() / max(1, flagged.sum()))
    assert np.mean(false) < 0.2 + 4 * np.std(false) / math.sqrt(200)


@given(scores(1), st.floats(1, 99))
def test_so_many_percent_of_the_held_out_stay_at_or_below(calibration, percentile):
    threshold = conformal.percentile_threshold(calibration, percentile)
    assert threshold in calibration
    assert np.mean(calibration <= threshold) >= percentile / 100 - 1e-9


@given(scores(2), st.data())
def test_no_other_threshold_has_a_better_f1(new, data):
    strange = data.draw(st_numpy.arrays(bool, len(new)))
    if strange.all() or not strange.any():
        with pytest.raises(errors.DataError, match="one class only"):
            conformal.f1_threshold(new, strange)
        return

    def f1(threshold):
        flagged = new > threshold
        return 2 * np.sum(flagged & strange) / (np.sum(flagged) + np.sum(strange))

    assert f1(conformal.f1_threshold(new, strange)) == max(map(f1, [-np.inf, *new]))


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, np.nan])
def test_rates_that_can_not_be(rate):
    normals = np.arange(10.0)
    with pytest.raises(errors.ConfigError, match="above 0 and below 1"):
        conformal.threshold(normals, rate)
    with pytest.raises(errors.ConfigError, match="above 0 and below 1"):
        conformal.benjamini_hochberg(normals / 10, rate)
    with pytest.raises(errors.ConfigError, match="above 0 and below 100"):
        conformal.percentile_threshold(normals, 100 * rate)


@pytest.mark.parametrize("decide", [conformal.threshold, conformal.percentile_threshold])
def test_nothing_held_out_is_refused(decide):
    with pytest.raises(errors.DataError, match="hold some out"):
        decide(np.zeros(0), 0.1)
    with pytest.raises(errors.DataError, match="hold some out"):
        conformal.p_values(np.zeros(3), np.zeros(0))
