"""From anomaly scores to decisions with a guarantee: split-conformal p-values and thresholds.

If nothing was fitted on some normal examples, their scores are exchangeable with those of new normal examples. So a new
normal example has every rank among them with equal probability, whatever the score is (Vovk et al. 2005; for outliers:
Bates et al. 2023, "Testing for outliers with conformal p-values", eq. 1).
"""

import math

import numpy as np
from jaxtyping import Bool, Float, Num

from flaxae import errors

FEWEST = 30  # scores of which a tail can be told
EXCESS = 0.001  # examples
LIGHTEST = -0.2  # shape of a tail


def p_values(
    scores: Float[np.ndarray, " examples"], calibration: Float[np.ndarray, " normals"], worth: int | None = None
) -> Float[np.ndarray, " examples"]:
    """The conformal p-value of each score: (1 + #{calibration ≥ score}) / (1 + normals), in (0, 1].

    For a normal example, P(p ≤ α) ≤ α for every α, over the draw of the example and of `calibration`.

    Args:
        scores: higher is stranger.
        calibration: the scores of normal examples that played no part in fitting the score.
        worth: of windows that overlap, how many there are that don't: they are blocks, of which each counts by the
            fraction of it that scores so high (conformal risk control: Angelopoulos et al. 2024, theorem 1).
    """
    _check(calibration)
    ordered = np.sort(calibration)
    as_high = len(ordered) - np.searchsorted(ordered, scores, side="left")
    worth = len(ordered) if worth is None else worth
    return (1 + as_high / len(ordered) * worth) / (1 + worth)


def threshold(calibration: Float[np.ndarray, " normals"], false_alarms: float, worth: int | None = None) -> float:
    """The score above which an example is flagged so that at most `false_alarms` of normal ones are, in expectation.

    `worth` is as in `p_values`, and `score > threshold` says the same as `p_values(score) <= false_alarms`, ties
    included.

    Raises:
        ConfigError: `false_alarms` is not in (0, 1), or so small that no example could be flagged: that takes at least
            1 / false_alarms − 1 normals.
    """
    _check(calibration)
    normals = len(calibration)
    worth = normals if worth is None else worth
    check_false_alarms(worth, false_alarms)
    above = math.floor((false_alarms * (worth + 1) - 1) / worth * normals + 1e-9)  # how many of them may score higher
    return float(np.sort(calibration)[normals - 1 - above])


def check_false_alarms(normals: int, false_alarms: float) -> None:
    """Raise ConfigError unless so many held-out normals are enough to guarantee that rate: see `threshold`."""
    if not 0 < false_alarms < 1:
        raise errors.ConfigError(f"false_alarms is {false_alarms}; it has to be above 0 and below 1.")
    needed = math.ceil(1 / false_alarms - 1e-9) - 1
    if normals < needed:
        raise errors.ConfigError(
            f"A false-alarm rate of {false_alarms:g} takes {needed} held-out normal examples at least; there are "
            f"{normals}. Hold out more, or allow {math.ceil(1000 / (normals + 1)) / 1000:g}."
        )


def benjamini_hochberg(p: Float[np.ndarray, " examples"], rate: float) -> Bool[np.ndarray, " examples"]:
    """Which examples to flag so that, in expectation, at most a fraction `rate` of the flagged ones is normal.

    This is Benjamini & Hochberg (1995), which also holds for conformal p-values (Bates et al. 2023, theorem 2).
    """
    from scipy.stats import false_discovery_control

    if not 0 < rate < 1:
        raise errors.ConfigError(f"The false-discovery rate is {rate}; it has to be above 0 and below 1.")
    return false_discovery_control(p) <= rate


def percentile_threshold(calibration: Float[np.ndarray, " normals"], percentile: float) -> float:
    """The score that `percentile` % of the held-out normals don't exceed. Unlike `threshold`, it guarantees nothing."""
    _check(calibration)
    if not 0 < percentile < 100:
        raise errors.ConfigError(f"The percentile is {percentile}; it has to be above 0 and below 100.")
    return float(np.percentile(calibration, percentile, method="higher"))


def f1_threshold(
    scores: Float[np.ndarray, " examples"], anomalous: Bool[np.ndarray, " examples"] | Num[np.ndarray, " examples"]
) -> float:
    """The score threshold with the best F1 on labelled examples. Choose it on other examples than those you test on.

    Raises:
        DataError: the labels have only one class.
    """
    from sklearn.metrics import precision_recall_curve

    anomalous = np.asarray(anomalous, bool)
    if anomalous.all() or not anomalous.any():
        raise errors.DataError("The labels are of one class only; a threshold by F1 needs normal and strange examples.")
    precision, recall, at_least = precision_recall_curve(anomalous, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return float(np.nextafter(at_least[np.argmax(f1[:-1])], -np.inf))


def contamination(scores: Float[np.ndarray, " examples"] | Float[np.ndarray, "examples looks"]) -> float:
    """The fraction of examples whose scores no tail explains that goes on as the bulk of the scores does.

    Of several looks at an example, one is enough to stand apart in.

    The tail is a generalised Pareto distribution by the quartiles and the 90th percentile (in the manner of Pickands
    1975), at the lightest about as a normal one's. Counted are the scores above where it expects EXCESS of one example.
    So of clean examples hardly any is taken for strange, and of contaminated ones those that stand apart.
    """
    _check(scores)
    looks = scores.reshape(len(scores), -1).astype(np.float64)
    return float(np.mean(np.any([_apart(look) for look in looks.T], axis=0)))


def _apart(scores: Float[np.ndarray, " examples"]) -> Bool[np.ndarray, " examples"]:
    half, quarter, tenth = np.quantile(scores, [0.5, 0.75, 0.9])
    if len(scores) < FEWEST or quarter <= half or tenth <= quarter:
        return np.zeros(len(scores), bool)
    ratio, shapes = (tenth - quarter) / (quarter - half), np.linspace(LIGHTEST, 1.0, 200)
    ratios = (0.1**-shapes - 0.25**-shapes) / (0.25**-shapes - 0.5**-shapes)
    shape = shapes[min(int(np.searchsorted(ratios, ratio)), len(shapes) - 1)]
    scale = (tenth - half) / (0.1**-shape - 0.5**-shape)
    limit = half + scale * ((EXCESS / len(scores)) ** -shape - 0.5**-shape)
    return scores > limit


def _check(calibration: np.ndarray) -> None:
    if len(calibration) == 0:
        raise errors.DataError("There are no held-out normal examples to compare scores with; hold some out.")
