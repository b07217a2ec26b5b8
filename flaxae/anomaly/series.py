"""Series: which windows of a signal are like none of its training part, and the moments that are strange in them.

    detector = series.fit(signal, window=96)       # a `data.Signal`, scaled
    detector.score(windows)                        # [windows, window, channels] -> [windows]

Windows from every moment of the training part are kept, so that it doesn't matter where in a cycle a window begins. A
new one is compared with its nearest ones, as it is, without its level, and by its form alone, whole, by halves and by
quarters. What counts is in which of these it is furthest from all, in units of what is usual there.

What is usual is measured in the training part itself: each of its windows is compared with those that are far from it
in time. So all of it serves to set the threshold; a stretch that is like nothing else in it is found, and left out; and
drift makes the threshold higher, not wrong.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from flaxae import atomic, data, errors, manifest
from flaxae.anomaly import conformal
from flaxae.anomaly.findings import CONTRIBUTORS, Findings, Rule, TimeLine
from flaxae.data import Framing, Signal

REFERENCES = 4096  # windows that others are compared with
CALIBRATION = 8192  # windows that the threshold is set by
NEIGHBOURS = 5
GROUP = 16  # references whose smallest distance is looked at first
FAR = 0.15  # of the training part: how far apart in time windows of it are that are compared with each other
BLOCK = 1024  # windows scored at once
EXPLAINED = 4096  # windows, the strangest, that are explained
UNLIKE = 0.3  # of new windows, that are stranger than 95 % of the training part: more say that all has changed
FORMS = ("raw", "centred", "unit")
FLAT = 0.1  # of the signal's deviation: windows that deviate less from their level are not magnified further
OUTLYING = 6.0  # quartile distances above the upper quartile of log scores, from which a window is left out
SLACK = 0.05  # of log distances: spreads below it are no different
STRETCHES, ALIKE = 24, 0.5  # of the training part, and the correlation of their levels from which it wanders
DRIFT = 0.25  # the last part of the training part, which is compared with what was before

Windows = Float[np.ndarray, "windows window channels"]


@dataclasses.dataclass(frozen=True)
class Space:
    """How windows are compared: in which form, whole or by parts.

    Args:
        form: "raw"; "centred", without the level of each channel; or "unit", divided by the deviation from it as well.
        parts: 1 for windows as a whole; of more, so many lie in a window side by side, and others between them. The
            one that is furthest from all counts.
    """

    form: str
    parts: int

    def __post_init__(self) -> None:
        if self.form not in FORMS or self.parts < 1:
            raise errors.ConfigError(f"A space is {self}; expected a form of {', '.join(FORMS)}, and 1 part at least.")

    def references(self, x: Windows) -> Float[np.ndarray, "windows values"]:
        """Of windows to be compared with, one part each, the middle one."""
        return self.queries(x, middle=True)[:, 0]

    def queries(self, x: Windows, *, middle: bool = False) -> Float[np.ndarray, "windows parts values"]:
        """Of windows to score, all parts, or the one in the middle."""
        window = x.shape[1]
        size = max(2, window // self.parts)
        begins = np.linspace(0, window - size, 2 * self.parts - 1).astype(int).tolist()
        begins = [begins[self.parts - 1]] if middle else begins
        parts = np.stack([x[:, begin : begin + size] for begin in begins], axis=1)
        if self.form != "raw":
            parts = parts - parts.mean(axis=2, keepdims=True)
        if self.form == "unit":
            parts = parts / np.maximum(parts.std(axis=2, keepdims=True), FLAT)
        return parts.reshape(len(x), len(begins), -1)


SPACES = tuple(Space(form, parts) for parts in (1, 2, 4) for form in FORMS)


@dataclasses.dataclass(frozen=True, eq=False)
class SeriesDetector:
    """Windows of a training part, how far apart they usually are, and the scores that thresholds are set by.

    `fit` makes one.
    """

    spaces: tuple[Space, ...]
    references: Windows  # scaled
    begins: Int[np.ndarray, " references"]  # first moments in the training part
    centre: Float[np.ndarray, " spaces"]  # of log distances in the training part
    spread: Float[np.ndarray, " spaces"]
    calibration: Float[np.ndarray, " normals"]  # scores of training windows, sorted
    worth: int  # how many of those share no moment, and so say something of their own
    left_out: int = 0  # moments of the training part that looked strange themselves
    drifts: bool = False  # whether the last part of it scores higher than what was before

    @property
    def window(self) -> int:
        """Moments."""
        return self.references.shape[1]

    def score(self, x: Windows) -> Float[np.ndarray, " windows"]:
        """How strange windows are, scaled as the training part was. Memory doesn't grow with their number.

        Raises:
            DataError: they have another shape.
        """
        self._check(x)
        parts = [self._scores(self._distances(x[i : i + BLOCK], 0)) for i in range(0, len(x), BLOCK)]
        return np.concatenate(parts)

    def p_values(self, x: Windows) -> Float[np.ndarray, " windows"]:
        """How often a normal window is as strange; see `conformal.p_values`."""
        return conformal.p_values(self.score(x), self.calibration, self.worth)

    def expected(self, x: Windows) -> Windows:
        """The mean of the nearest training windows, each moved to the level of the window where that doesn't count."""
        self._check(x)
        space = next((space for space in self.spaces if space.parts == 1), self.spaces[0])
        kept = space.references(self.references)
        made = []
        for i in range(0, len(x), BLOCK):
            part = x[i : i + BLOCK]
            _, index = _nearest(kept, space.queries(part)[:, 0])
            like = self.references[index].mean(axis=1)
            if space.form != "raw":
                like = like + part.mean(axis=1, keepdims=True) - like.mean(axis=1, keepdims=True)
            made.append(like)
        return np.concatenate(made)

    def contributions(self, x: Windows) -> Windows:
        """Which moments and channels make a window strange: shares that sum to 1, of its squared difference to
        `expected`."""
        apart = np.square(x - self.expected(x))
        return apart / np.maximum(apart.sum(axis=(1, 2), keepdims=True), 1e-12)

    def _distances(
        self, x: Windows, far: int, begins: Int[np.ndarray, " windows"] | None = None
    ) -> Float[np.ndarray, "windows spaces"]:
        """Log mean distances to the nearest references, by space; those nearer than `far` in time to a window count
        not, where `begins` says when it begins."""
        left_out = None
        if begins is not None:
            first, last = (
                np.searchsorted(self.begins, begins - far, side="right"),
                np.searchsorted(self.begins, begins + far),
            )
            left_out = np.stack([first, last], axis=1)
        made = []
        for space in self.spaces:
            kept, parts = space.references(self.references), space.queries(x)
            found = [_nearest(kept, parts[:, i], left_out)[0] for i in range(parts.shape[1])]
            made.append(np.log(np.max(found, axis=0) / math.sqrt(kept.shape[1]) + 1e-4))
        return np.stack(made, axis=1)

    def _scores(self, distances: Float[np.ndarray, "windows spaces"]) -> Float[np.ndarray, " windows"]:
        return ((distances - self.centre) / self.spread).max(axis=1).astype(np.float32)

    def _check(self, x: Windows) -> None:
        if x.ndim != 3 or x.shape[1:] != self.references.shape[1:] or len(x) == 0:
            raise errors.DataError(
                f"The windows have shape {list(x.shape)}; expected [windows, "
                f"{', '.join(map(str, self.references.shape[1:]))}] with at least one."
            )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Into a folder of its own, whole or not at all, with a manifest: settings in JSON, arrays in `.npz`.

        Raises:
            RunError: the folder can't be written, or holds something else.
        """
        settings = {"spaces": [dataclasses.asdict(space) for space in self.spaces]}
        settings |= {name: getattr(self, name) for name in ("worth", "left_out", "drifts")}
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        try:
            with manifest.replacing(pathlib.Path(folder), _FILES) as unfinished:
                np.savez(unfinished / "series.npz", **arrays)
                (unfinished / "series.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise errors.RunError(f"Can't write {folder}: {error}.") from error


_FILES = frozenset({"series.json", "series.npz"})
_ARRAYS = ("references", "begins", "centre", "spread", "calibration")


def load(folder: str | os.PathLike[str]) -> SeriesDetector:
    """What `SeriesDetector.save` wrote.

    Raises:
        RunError: the folder holds no such detector, or a file was changed after it was saved.
    """
    folder = atomic.settled(pathlib.Path(folder))
    manifest.check(folder)
    with manifest.reading(folder, "detector of series"):
        settings = json.loads((folder / "series.json").read_text(encoding="utf-8"))
        spaces = tuple(Space(**space) for space in settings.pop("spaces"))
        arrays = data.arrays.read_npz(folder / "series.npz")
        return SeriesDetector(spaces, **{name: arrays[name] for name in _ARRAYS}, **settings)


def fit(
    signal: Signal,
    *,
    window: int,
    contamination: float = 0.0,
    spaces: Sequence[Space] = SPACES,
    seed: int = 0,
) -> SeriesDetector:
    """A detector of a signal's training part.

    Args:
        signal: scaled; windows lie within its stretches.
        window: moments.
        contamination: the fraction of it that may be strange: as many windows, the strangest, are left out. Without,
            what is far from all else is.
        spaces: in which windows are compared.
        seed: of the windows that are kept, where there are too many.

    Raises:
        DataError: it is too short.
        ConfigError: contamination is out of range.
    """
    if not 0 <= contamination < 0.5:
        raise errors.ConfigError(f"contamination is {contamination}; it has to be at least 0 and below 0.5.")
    begins = data.starts(len(signal.values), window, 1, signal.begins)
    rng = np.random.default_rng(seed)
    if len(begins) < 2 * NEIGHBOURS or len(signal.values) < 3 * window:
        raise errors.DataError(
            f"The training part has {len(signal.values)} moments; expected {max(3 * window, window + 2 * NEIGHBOURS)} "
            f"at least, for windows of {window}. Choose a smaller window."
        )
    detector = _of(signal, begins, tuple(spaces), window, rng)
    far = max(window, min(round(FAR * len(signal.values)), (len(signal.values) - window) // 3))
    own = _sample(begins, window, rng)
    distances = _measured(detector, signal, own, far)
    strange = _outlying(distances, contamination)
    left_out = 0
    if strange.any():
        moments = _held(own[strange], window, len(signal.values)) > 0
        clean = begins[~_overlaps(begins, window, moments)]
        usable = ~_overlaps(own, window, moments)
        if len(clean) >= 2 * NEIGHBOURS and usable.sum() >= 2 * NEIGHBOURS:
            left_out = int(moments.sum())
            detector, own = _of(signal, clean, tuple(spaces), window, rng), own[usable]
            distances = _measured(detector, signal, own, far)
    drifting = _drifting(detector, signal, own, distances)
    raw = np.array([space.form == "raw" for space in detector.spaces])
    kept = ~(raw & (drifting | _wanders(signal, window, np.exp(np.median(distances, axis=0)))))
    kept = kept if kept.any() else np.ones_like(kept)
    distances = distances[:, kept]
    centre = np.median(distances, axis=0)
    detector = dataclasses.replace(
        detector,
        spaces=tuple(space for space, keep in zip(detector.spaces, kept, strict=True) if keep),
        centre=centre,
        spread=np.quantile(distances, 0.95, axis=0) - centre + SLACK,
        left_out=left_out,
        drifts=bool(drifting[kept].any()),
        worth=_worth(own, window),
    )
    return dataclasses.replace(detector, calibration=np.sort(detector._scores(distances)))


def find(
    detector: SeriesDetector, signal: Signal, framing: Framing, rule: Rule, *, first: int = 0
) -> tuple[Findings, TimeLine]:
    """Score, flag and explain the windows of a signal, one every `framing.stride`, and its moments.

    Args:
        detector: that scores.
        signal: scaled.
        framing: as it was trained with.
        rule: that flags windows.
        first: the number of its first moment.
    """
    window, values = framing.window, signal.values
    begins = data.starts(len(values), window, framing.stride, signal.begins)
    scores = np.concatenate([detector.score(x) for x in in_blocks(values, begins, window)])
    flagged, threshold = rule.flag(scores, detector.calibration, detector.worth)
    explained = np.sort(np.argsort(-scores, kind="stable")[:EXPLAINED])
    names = signal.columns or tuple(f"channel {i}" for i in range(values.shape[1]))
    named = ["moment "] if len(names) == 1 else [f"{name} at moment " for name in names]
    share = np.zeros(len(values))
    contributors = np.full((len(scores), CONTRIBUTORS), "", object)
    shares = np.zeros((len(scores), CONTRIBUTORS), np.float32)
    for i in range(0, len(explained), BLOCK):
        which = explained[i : i + BLOCK]
        part = detector.contributions(data.signals.windows_at(values, begins[which], window))
        flat = part.reshape(len(part), -1)
        top = np.argsort(-flat, axis=1, kind="stable")[:, :CONTRIBUTORS]
        shares[which, : top.shape[1]] = np.take_along_axis(flat, top, axis=1)
        moments = first + begins[which][:, None] + top // len(names)
        contributors[which, : top.shape[1]] = np.array(named, object)[top % len(names)] + np.char.mod(
            "%d", moments
        ).astype(object)
        np.add.at(share, begins[which][:, None] + np.arange(window), part.sum(axis=2))
    held = _held(begins, window, len(values))
    columns = {"begin": first + begins, "end": first + begins + window}
    if framing.rate is not None:
        columns["begin_s"] = (first + begins) / framing.rate
    files = None
    if signal.times is not None:
        columns |= {"begin_time": signal.times[begins], "end_time": signal.times[begins + window - 1]}
    if signal.files is not None:
        lengths = [hi - lo for lo, hi in signal.stretches]
        files = np.repeat(np.array(signal.files, object), lengths)
        columns["file"] = files[begins]
    p = conformal.p_values(scores, detector.calibration, detector.worth)
    found = Findings(columns, scores, p, flagged, threshold, contributors, shares)
    line = TimeLine(
        first,
        _laid(scores, begins, window, held).astype(np.float32),
        (share / np.maximum(held, 1)).astype(np.float32),
        _held(begins[flagged], window, len(values)) > 0,
        signal.times,
        files,
    )
    return found, line


def _held(begins: Int[np.ndarray, " windows"], window: int, length: int) -> Int[np.ndarray, " length"]:
    """How many windows hold each moment."""
    edges = np.zeros(length + 1, int)
    np.add.at(edges, begins, 1)
    np.add.at(edges, begins + window, -1)
    return np.cumsum(edges)[:-1]


def _laid(
    scores: Float[np.ndarray, " windows"],
    begins: Int[np.ndarray, " windows"],
    window: int,
    held: Int[np.ndarray, " time"],
) -> Float[np.ndarray, " time"]:
    """The mean score of the windows that hold each moment; NaN where none does."""
    edges = np.zeros(len(held) + 1)
    np.add.at(edges, begins, scores)
    np.add.at(edges, begins + window, -scores.astype(np.float64))
    total = np.cumsum(edges)[:-1]
    return np.divide(total, held, out=np.full(len(held), np.nan), where=held > 0)


def differs(detector: SeriesDetector, scores: Float[np.ndarray, " windows"]) -> float | None:
    """The fraction of windows that are stranger than 95 % of the training part, if it is so large that all must have
    changed; else None."""
    beyond = float(np.mean(scores > np.quantile(detector.calibration, 0.95)))
    return beyond if beyond > UNLIKE else None


def in_blocks(
    values: Float[np.ndarray, "time channels"], begins: Int[np.ndarray, " windows"], window: int
) -> Iterator[Windows]:
    """The windows of a signal that begin at these moments, a block at a time, so that they need not fit in memory."""
    for i in range(0, len(begins), BLOCK):
        yield data.signals.windows_at(values, begins[i : i + BLOCK], window)


def _of(
    signal: Signal,
    begins: Int[np.ndarray, " windows"],
    spaces: tuple[Space, ...],
    window: int,
    rng: np.random.Generator,
) -> SeriesDetector:
    """A detector that compares with windows that begin at these moments, or some of them; nothing is calibrated."""
    chosen = begins if len(begins) <= REFERENCES else np.sort(rng.choice(begins, REFERENCES, replace=False))
    ones = np.ones(len(spaces))
    references = data.signals.windows_at(signal.values, chosen, window)
    return SeriesDetector(spaces, references, chosen, 0 * ones, ones, np.zeros(0, np.float32), 0)


def _sample(begins: Int[np.ndarray, " windows"], window: int, rng: np.random.Generator) -> Int[np.ndarray, " fewer"]:
    """Some windows from all over: one at random of each eighth of a window, CALIBRATION at most."""
    count = max(1, min(len(begins), CALIBRATION, math.ceil(8 * len(begins) / window)))
    bounds = np.linspace(0, len(begins), count + 1).astype(int)
    return begins[bounds[:-1] + (rng.random(count) * np.diff(bounds)).astype(int)]


def _measured(
    detector: SeriesDetector, signal: Signal, own: Int[np.ndarray, " windows"], far: int
) -> Float[np.ndarray, "windows spaces"]:
    """The log distances of training windows to those that are far from them in time."""
    parts, begin = [], 0
    for x in in_blocks(signal.values, own, detector.window):
        parts.append(detector._distances(x, far, own[begin : begin + len(x)]))
        begin += len(x)
    return np.concatenate(parts)


def _outlying(distances: Float[np.ndarray, "windows spaces"], contamination: float) -> Bool[np.ndarray, " windows"]:
    """Which windows of a training part are like nothing else in it: the strangest, or those far from all others."""
    middle, upper = np.quantile(distances, (0.5, 0.75), axis=0)
    beyond = ((distances - upper) / (upper - middle + SLACK)).mean(axis=1)
    if contamination:
        return beyond > np.quantile(beyond, 1 - contamination)
    return beyond > OUTLYING


def _drifting(
    detector: SeriesDetector,
    signal: Signal,
    own: Int[np.ndarray, " windows"],
    distances: Float[np.ndarray, "windows spaces"],
) -> Bool[np.ndarray, " spaces"]:
    """In which spaces windows are the further from each other, the further apart in time they are; or those of the
    last part further from what was before than that is from itself."""
    some = np.linspace(0, len(own) - 1, min(len(own), BLOCK)).astype(int)
    near = np.quantile(_measured(detector, signal, own[some], detector.window), 0.9, axis=0)
    drifting = np.median(distances, axis=0) > near
    since = round((1 - DRIFT) * len(signal.values))
    later, earlier = own >= since, own < since - detector.window
    before = detector.begins < since - detector.window
    if min(later.sum(), earlier.sum(), before.sum()) < 2 * NEIGHBOURS:
        return drifting
    past = dataclasses.replace(detector, references=detector.references[before], begins=detector.begins[before])
    forward = np.concatenate([past._distances(x, 0) for x in in_blocks(signal.values, own[later], detector.window)])
    return drifting | (np.median(forward, axis=0) > np.quantile(distances[earlier], 0.9, axis=0))


def _wanders(signal: Signal, window: int, usual: Float[np.ndarray, " spaces"]) -> Bool[np.ndarray, " spaces"]:
    """In which spaces the level goes further than windows usually are from each other, without coming back.

    A level that comes back to a mean has means of long stretches that know nothing of each other; those of a random
    walk resemble the one before (their correlation is the Durbin-Watson statistic's, 1 − d / 2).
    """
    size = len(signal.values) // STRETCHES
    if size < 2 * window:
        return np.zeros(len(usual), bool)
    levels = signal.values[: size * STRETCHES].reshape(STRETCHES, size, -1).mean(axis=1, dtype=np.float64)
    apart = levels - levels.mean(axis=0)
    alike = (apart[1:] * apart[:-1]).sum(axis=0) / np.maximum(np.square(apart).sum(axis=0), 1e-12)
    far = levels.std(axis=0) * (alike > ALIKE)
    return far.max() > usual


def _overlaps(
    begins: Int[np.ndarray, " windows"], window: int, moments: Bool[np.ndarray, " time"]
) -> Bool[np.ndarray, " windows"]:
    """Which windows hold one of these moments."""
    total = np.concatenate([[0], np.cumsum(moments)])
    return total[begins + window] > total[begins]


def _worth(begins: Int[np.ndarray, " windows"], window: int) -> int:
    """How many of these windows can be chosen so that no two share a moment."""
    count, free = 0, -1
    for begin in begins.tolist():
        if begin >= free:
            count, free = count + 1, begin + window
    return count


def _smallest(values: Float[np.ndarray, "rows columns"], k: int) -> Int[np.ndarray, "rows k"]:
    """Where the k smallest values of each row are.

    Only the k groups of columns with the smallest minima are searched: for any value outside of them, k others are not
    larger. NumPy takes minima far faster than it partitions.
    """
    rows, columns = values.shape
    size = columns // GROUP
    if size < 4 * k:
        return np.argpartition(values, k - 1, axis=1)[:, :k]
    within, left = values[:, : size * GROUP].reshape(rows, GROUP, size), values[:, size * GROUP :]
    groups = np.argpartition(within.min(axis=1), k - 1, axis=1)[:, :k]
    among = np.take_along_axis(within, groups[:, None], axis=2).reshape(rows, -1)
    places = (groups[:, None] + size * np.arange(GROUP)[:, None]).reshape(rows, -1)
    among = np.concatenate([among, left], axis=1)
    places = np.concatenate([places, np.broadcast_to(np.arange(size * GROUP, columns), left.shape)], axis=1)
    return np.take_along_axis(places, np.argpartition(among, k - 1, axis=1)[:, :k], axis=1)


def _nearest(
    references: Float[np.ndarray, "references values"],
    x: Float[np.ndarray, "windows values"],
    left_out: Int[np.ndarray, "windows 2"] | None = None,
) -> tuple[Float[np.ndarray, " windows"], Int[np.ndarray, "windows k"]]:
    """The mean distance to the nearest references, and which they are; from the first to before the second of
    `left_out` they don't count."""
    square = np.sum(np.square(references), axis=1)[None] - 2 * (x @ references.T)
    if left_out is not None:
        index = np.arange(len(references))
        out = (index[None] >= left_out[:, :1]) & (index[None] < left_out[:, 1:])
        out[out.sum(axis=1) > len(references) - NEIGHBOURS] = False
        square[out] = np.inf
    k = min(NEIGHBOURS, len(references))
    found = _smallest(square, k)
    nearest = np.take_along_axis(square, found, axis=1) + np.sum(np.square(x), axis=1)[:, None]
    return np.sqrt(np.maximum(nearest, 0)).mean(axis=1), found
