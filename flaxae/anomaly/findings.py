"""What a detector found: which examples are flagged, by which rule, and what made them strange."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from flaxae import data, errors
from flaxae.anomaly import conformal, tiles
from flaxae.anomaly.detector import Detector
from flaxae.anomaly.local import Region, regions
from flaxae.data import Dataset, Encoding, files, formats
from flaxae.data.images import Images
from flaxae.trained import Trained

CONTRIBUTORS = 3  # how many are named for each example
KEPT = 10  # heat maps of the strangest images, for the report
AT_ONCE = 4096  # examples explained at once, so that memory doesn't grow with their number
RULES = ("conformal", "percentile", "f1", "fdr")


@dataclasses.dataclass(frozen=True)
class Rule:
    """How scores become flags.

    - conformal: in expectation, at most a fraction `rate` of normal examples is flagged;
    - percentile: scores above the (1 − `rate`) quantile of the held-out scores are flagged, without a guarantee;
    - fdr: in expectation, at most a fraction `rate` of the flagged examples is normal (Benjamini & Hochberg); this
      depends on all examples at hand;
    - f1: scores above `threshold` are flagged, which was chosen on labels.
    """

    name: str
    rate: float = 0.01
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.name not in RULES:
            raise errors.ConfigError(errors.unknown("rule", self.name, RULES))

    def __str__(self) -> str:
        """What the rule guarantees, for messages."""
        percent = f"{100 * self.rate:.3g} %"
        return {
            "conformal": f"at most {percent} of normal examples are, in expectation",
            "percentile": f"{percent} of the held-out examples are",
            "fdr": f"at most {percent} of the flagged are normal, in expectation",
            "f1": "the threshold is the best of those tried on held-out labels",
        }[self.name]

    def flag(
        self,
        scores: Float[np.ndarray, " examples"],
        calibration: Float[np.ndarray, " normals"],
        worth: int | None = None,
    ) -> tuple[Bool[np.ndarray, " examples"], float | None]:
        """Which are flagged, and the score above which they are; None where `fdr` flags none.

        `worth` is that of `conformal.p_values`.
        """
        if self.name == "fdr":
            flagged = conformal.benjamini_hochberg(conformal.p_values(scores, calibration, worth), self.rate)
            return flagged, float(np.nextafter(scores[flagged].min(), -np.inf)) if flagged.any() else None
        threshold = self.threshold
        if self.name == "conformal":
            threshold = conformal.threshold(calibration, self.rate, worth)
        elif self.name == "percentile":
            threshold = conformal.percentile_threshold(calibration, 100 * (1 - self.rate))
        return scores > threshold, threshold


class Findings(NamedTuple):
    """The scores of examples, in their order, and the reasons."""

    which: dict[str, Shaped[np.ndarray, " examples"]]  # columns that identify the example
    scores: Float[np.ndarray, " examples"]
    p_values: Float[np.ndarray, " examples"]
    flagged: Bool[np.ndarray, " examples"]
    threshold: float | None
    contributors: Shaped[np.ndarray, "examples top"]  # names, or of images regions, the largest share first
    shares: Float[np.ndarray, "examples top"]
    boxes: Int[np.ndarray, "examples top 4"] | None = None  # of the regions, if they are hotter than
    # normal images get: x, y, width, height, else all 0

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write one row per example to a `.csv` or `.parquet` file."""
        columns = {**self.which, "score": np.round(self.scores.astype(float), 5), "p_value": self.p_values}
        columns["flagged"] = self.flagged.astype(int)
        for i in range(self.shares.shape[1]):
            columns[f"top_{i + 1}"] = self.contributors[:, i]
            columns[f"share_{i + 1}"] = np.round(self.shares[:, i].astype(float), 4)
            if self.boxes is not None:
                names = ("x", "y", "width", "height")
                columns |= {f"{name}_{i + 1}": self.boxes[:, i, j] for j, name in enumerate(names)}
        _write(path, columns)

    def because(self, i: int | np.integer) -> str:
        """The top contributors of one example in words."""
        named = zip(self.contributors[i], self.shares[i], strict=True)
        return ", ".join(f"{name} {share:.0%}" for name, share in named if name)


def find(
    detector: Detector,
    x: Float[np.ndarray, " examples *shape"],
    which: Shaped[np.ndarray, " examples"],
    about: Dataset | Trained,
    rule: Rule,
    *,
    scores: Float[np.ndarray, " examples"] | None = None,
    carried: Mapping[str, Shaped[np.ndarray, " examples"]] | None = None,
    gaps: Bool[np.ndarray, " examples columns"] | None = None,
) -> Findings:
    """Score, flag and explain examples.

    Args:
        detector: it scores the examples.
        x: the examples, scaled.
        which: what identifies each: its row, its file name (dtype object), or the first moment of a window.
        about: what is known of the data.
        rule: it flags the examples.
        scores: where they are known, as of examples that the detector was trained on.
        carried: columns that say what each example is about, by their names.
        gaps: which values of a table's columns were missing, and so are reasons too.
    """
    scores = detector.score(x) if scores is None else scores
    flagged, threshold = rule.flag(scores, detector.calibration)
    if about.kind == "image":
        parts = [x[i : i + tiles.AT_ONCE] for i in range(0, len(x), tiles.AT_ONCE)]
        level = heat_level(detector, rule)
        boxes = [_boxes(heat, level) for part in parts for heat in tiles.heat_of(detector, part)]
        return _of_images(detector, which, scores, rule, boxes)
    names, tops, shares = [], [], []
    for start in range(0, len(x), AT_ONCE):
        names, parts = contributions(detector, x[start : start + AT_ONCE], about)
        tops.append(np.argsort(-parts, axis=1, kind="stable")[:, :CONTRIBUTORS])
        shares.append(np.take_along_axis(parts, tops[-1], axis=1))
    top = np.concatenate(tops)
    if about.framing is None:
        columns = {"file" if which.dtype == object else "row": which}
        contributors = np.array(names, object)[top]
    else:
        columns = {"begin": which, "end": which + about.framing.window}
        if about.framing.rate is not None:
            columns["begin_s"] = which / about.framing.rate
        moments = which[:, None] + top // x.shape[2]
        contributors = np.array(names, object)[top % x.shape[2]] + np.char.mod("%d", moments).astype(object)
    shown = np.concatenate(shares)
    if gaps is not None:
        _name_gaps(contributors, shown, gaps, about)
    columns |= {name: values for name, values in (carried or {}).items() if name not in columns}
    p = conformal.p_values(scores, detector.calibration)
    return Findings(columns, scores, p, flagged, threshold, contributors, shown)


def _name_gaps(contributors: np.ndarray, shares: np.ndarray, gaps: np.ndarray, about: Dataset | Trained) -> None:
    """A gap is told of in place of the smallest contributors: its score is of what stands for it."""
    names = np.array([column.name for column in cast(Encoding, about.encoding).columns], object)
    for row in np.flatnonzero(gaps.any(axis=1)):
        missing = [f"{name} missing" for name in names[gaps[row]]][: contributors.shape[1]]
        contributors[row, -len(missing) :] = missing
        shares[row, -len(missing) :] = 0.0


def in_images(
    detector: Detector, images: Images, rule: Rule, maps: pathlib.Path | None = None
) -> tuple[Findings, list[tuple[int, Float[np.ndarray, "height width"]]]]:
    """Score, flag and explain images of any size, one by one.

    Args:
        detector: that scores.
        images: in its channels; those that can't be read are left out, see `Images.check`.
        rule: that flags.
        maps: a folder for the heat maps, see `write_map`.

    Returns:
        What was found, and the numbers and heat of the strangest few.

    Raises:
        DataError: none of the images can be read, or a map not be written.
    """
    numbers, scores, boxes, hottest = [], [], [], []
    level = heat_level(detector, rule)
    for i, _, score, heat in tiles.look(detector, images, show=True):
        numbers.append(i)
        scores.append(score)
        boxes.append(_boxes(heat, level))
        hottest = sorted([*hottest, (score, i, heat)], key=lambda one: -one[0])[:KEPT]
        if maps is not None:
            write_map(maps, images.names[i], heat, level)
    if not numbers:
        images.check()
    which = np.array(images.names, object)[numbers]
    found = _of_images(detector, which, np.array(scores, np.float32), rule, boxes)
    return found, [(i, heat) for _, i, heat in hottest]


def heat_level(detector: Detector, rule: Rule) -> float:
    """The heat from which on a place counts as found: what at most so many normal images reach anywhere."""
    return detector.heat_level(rule.rate) if detector.peaks is not None else np.inf


def write_map(folder: pathlib.Path, name: str, heat: Float[np.ndarray, "height width"], level: float) -> None:
    """Write a heat map as a grey PNG of 16 bits, its size the image's: black is nothing, half grey `level`.

    The folder has the names of the images, with .png behind those that end otherwise.
    """
    unit = level if np.isfinite(level) else 10.0
    values = np.rint(65535 * -np.expm1(-np.log(2) * heat / unit)).astype(np.uint16)
    path = folder / name.replace("#", "_")
    data.write(path if path.suffix.lower() == ".png" else path.with_name(f"{path.name}.png"), values[..., None])


def _boxes(heat: np.ndarray, level: float) -> tuple[list[Region], bool]:
    """The regions that stand out most, and whether they do so more than in normal images, as far as that is known."""
    return regions(heat, level, CONTRIBUTORS), not np.isfinite(level) or bool(heat.max() > level)


def _of_images(
    detector: Detector, which: np.ndarray, scores: np.ndarray, rule: Rule, found: list[tuple[list[Region], bool]]
) -> Findings:
    flagged, threshold = rule.flag(scores, detector.calibration)
    boxes = np.zeros((len(found), CONTRIBUTORS, 4), int)
    shares = np.zeros((len(found), CONTRIBUTORS), np.float32)
    names = np.full((len(found), CONTRIBUTORS), "", object)
    for i, (some, stand_out) in enumerate(found):
        for j, region in enumerate(some):
            boxes[i, j] = region[:4] if stand_out else 0
            shares[i, j], names[i, j] = region.share, str(region)
    p = conformal.p_values(scores, detector.calibration)
    columns = {"file" if which.dtype == object else "row": which}
    return Findings(columns, scores, p, flagged, threshold, names, shares, boxes)


def contributions(
    detector: Detector, x: Float[np.ndarray, " examples *shape"], about: Dataset | Trained
) -> tuple[list[str], Float[np.ndarray, "examples contributors"]]:
    """The names of an example's parts, and their shares of its strangeness, which sum to 1.

    The parts are a table's columns or a signal's moments. The features that a column was
    encoded as are summed. A signal has a share for each moment and channel but a name for each channel only, to which
    the caller appends the number of the moment.
    """
    shares = detector.contributions(x)
    if about.kind == "signal":
        channels = about.columns or [f"channel {i}" for i in range(x.shape[2])]
        names = ["moment "] if len(channels) == 1 else [f"{name} at moment " for name in channels]
        return names, shares.reshape(len(x), -1)
    if about.encoding is None:
        return list(about.columns or [f"x{i}" for i in range(x.shape[1])]), shares
    names = [column.name for column in about.encoding.columns]
    belongs = np.array(about.encoding.groups)[:, None] == np.array(names)
    return names, shares @ belongs.astype(np.float32)


class TimeLine(NamedTuple):
    """Windows laid back on their signal: for each moment the means over its windows, and whether one is flagged.

    Scores are NaN where no window lies: in stretches that are shorter.
    """

    first: int  # the number of the first moment
    score: Float[np.ndarray, " time"]
    share: Float[np.ndarray, " time"]  # the moment's share of the strangeness of its windows
    flagged: Bool[np.ndarray, " time"]
    times: Shaped[np.ndarray, " time"] | None = None  # of the signal's clock
    files: Shaped[np.ndarray, " time"] | None = None  # that each moment is of

    def write(self, path: str | os.PathLike[str], rate: int | None) -> None:
        """Write one row per moment to a `.csv` or `.parquet` file."""
        moments = self.first + np.arange(len(self.score))
        seconds = {} if rate is None else {"second": moments / rate}
        seconds |= {} if self.times is None else {"time": self.times}
        seconds |= {} if self.files is None else {"file": self.files}
        values = {"score": np.round(self.score.astype(float), 5), "share": np.round(self.share.astype(float), 5)}
        _write(path, {"moment": moments, **seconds, **values, "flagged": self.flagged.astype(int)})


def time_line(
    detector: Detector, x: Float[np.ndarray, "windows window channels"], found: Findings, about: Dataset | Trained
) -> TimeLine:
    """The findings in windows, per moment of the signal.

    Raises:
        DataError: the examples are not windows of a signal.
    """
    if about.framing is None:
        raise errors.DataError("Examples that are no windows of a signal have no time line.")
    begins = found.which["begin"] - found.which["begin"][0]
    window, stride = about.framing.window, about.framing.stride
    length = int(begins[-1]) + window
    shares = [detector.contributions(x[i : i + AT_ONCE]).sum(axis=-1) for i in range(0, len(x), AT_ONCE)]
    score = np.repeat(found.scores[:, None], window, axis=1)
    return TimeLine(
        int(found.which["begin"][0]),
        data.overlap_mean(score, stride, length),
        data.overlap_mean(np.concatenate(shares), stride, length),
        covered(begins[found.flagged], window, length),
    )


def covered(begins: Int[np.ndarray, " windows"], window: int, length: int) -> Bool[np.ndarray, " length"]:
    """Which moments are inside a window that begins at any of `begins`."""
    edges = np.zeros(length + 1, int)
    np.add.at(edges, begins, 1)
    np.add.at(edges, begins + window, -1)
    return np.cumsum(edges)[:-1] > 0


class Given(NamedTuple):
    """New examples in stored units, and what is known of each."""

    which: Shaped[np.ndarray, " n"]  # rows, file names (objects), or first moments of windows
    x: Shaped[np.ndarray, " n *shape"]
    carried: dict[str, Shaped[np.ndarray, " n"]]  # columns of a table that are not learnt from
    gaps: Bool[np.ndarray, " n columns"] | None  # which values of a table are missing


def read(about: Trained, path: str | os.PathLike[str]) -> Given:
    """New examples, and which they are. Images are for `in_images`.

    Raises:
        DataError: the file can't be read, or its data don't fit those that the detector was trained on.
    """
    path = pathlib.Path(path)
    if about.framing is not None:
        signal = about.read_signal(path).values
        window, stride = about.framing.window, about.framing.stride
        return Given(data.starts(len(signal), window, stride), data.windows(signal, window, stride), {}, None)
    known = data.formats.find(path)
    if about.encoding is not None and known is not None and known.kind == "table":
        frame = data.read_table(path)
        x, gaps = about.encoding(frame, path), about.encoding.gaps(frame)
        return Given(np.arange(len(x)), x, about.roles.of(frame) if about.roles else {}, gaps)
    given = about.read(path)
    if isinstance(given, dict) or given.shape[1:] != about.shape or given.dtype != about.scaling.dtype:
        holds = "images" if isinstance(given, dict) else f"{given.dtype} of shape {given.shape[1:]}"
        raise errors.DataError(
            f"{path.name} holds {holds}; the detector was trained on {about.scaling.dtype} of shape {about.shape}."
        )
    return Given(np.arange(len(given)), given, {}, None)


def _write(path: str | os.PathLike[str], columns: dict[str, Any]) -> None:
    import pandas as pd

    known = formats.of(path)
    with files.writing(pathlib.Path(path)) as file:
        known.write(file, pathlib.Path(path), pd.DataFrame(columns))
