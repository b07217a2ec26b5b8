"""Anomalies of series at the right moment: flaxae's detector beside 5 nearest windows, and what each of its parts does.

    python -m benchmarks.series quality --data /path/to/signals
    python -m benchmarks.series promises
    python -m benchmarks.series speed

- quality: the folder holds UCR archive files (…_TRAINEND_BEGIN_END.txt) and NAB files (.csv with timestamp and value,
  and nab_windows.json with the labelled windows of each). Fitted on what is before the anomaly (UCR: the training part;
  NAB: what is before the first label, two fifths of the file at most); per-moment scores of the rest, nothing adjusted:
  VUS-PR as TSB-AD defines it (Paparrizos et al. 2022; Liu & Paparrizos 2024), with its own choice of the buffer;
  average precision; and whether the highest score is within 100 moments of a label.
- promises: how many normal windows of series that were made here are flagged, beside what was promised.
- speed: of fitting and scoring so many moments, and the memory that the process took at most.
"""

import argparse
import json
import pathlib
import resource
import time
from collections.abc import Iterator

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from sklearn.metrics import average_precision_score

from flaxae import data
from flaxae.anomaly import conformal, series
from flaxae.anomaly.findings import Rule
from flaxae.anomaly.series import Space
from flaxae.data import Framing, Scaling, Signal, recordings

SPACES = {
    "5 nearest windows": (Space("raw", 1),),
    "without their level": (Space("centred", 1),),
    "by form alone": (Space("unit", 1),),
    "the three together": tuple(Space(form, 1) for form in series.FORMS),
    "and by halves": tuple(Space(form, parts) for parts in (1, 2) for form in series.FORMS),
    "flaxae (and quarters)": series.SPACES,
}
NEAR = 100  # moments around a label in which the top counts as right
Series = tuple[str, str, Float[np.ndarray, " time"], int, Bool[np.ndarray, " time"]]


def main() -> None:
    parts = {"quality": quality, "promises": lambda _: promises(), "speed": lambda options: speed(options.moments)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=parts)
    parser.add_argument("--data", type=pathlib.Path)
    parser.add_argument("--moments", type=int, nargs="+", default=[100_000, 1_000_000])
    options = parser.parse_args()
    parts[options.part](options)


def quality(options: argparse.Namespace) -> None:
    found: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for kind, name, x, end, strange in sorted(series_in(options.data)):
        train = Signal(x[:end, None])
        scaling = Scaling.fit(train.values[None])
        train = train._replace(values=scaling(train.values))
        window = recordings.fitting_window(train, end)
        framing = Framing(window, max(1, window // 16))
        later = Signal(scaling(x[end:, None]))
        for method, spaces in SPACES.items():
            detector = series.fit(train, window=window, spaces=spaces)
            score = series.find(detector, later, framing, Rule("percentile"))[1].score
            made = measures(strange[end:], score, buffer(x))
            found.setdefault((kind, method), []).append(made)
        print(
            f"{kind}, {name}: window {window}, VUS-PR {made[0]:.3f}, AP {made[1]:.3f}, top right {made[2]:.0f}",
            flush=True,
        )
    print(f"\n{'':32s} {'VUS-PR':>7s} {'AP':>6s} {'tops right':>11s}")
    for (kind, method), values in sorted(found.items()):
        vus, precision, right = np.mean(values, axis=0)
        print(f"{kind + ', ' + method:32s} {vus:7.3f} {precision:6.3f} {right:11.2f}")


def series_in(folder: pathlib.Path) -> Iterator[Series]:
    """Kind, name, values, end of the training part and labels of each series."""
    for path in folder.glob("*_UCR_Anomaly_*.txt"):
        x = np.array(path.read_text().split(), np.float32)
        end, first, last = map(int, path.stem.split("_")[-3:])
        strange = np.zeros(len(x), bool)
        strange[first : last + 1] = True
        yield "UCR", path.stem, x, end, strange
    windows = folder / "nab_windows.json"
    for name, labelled in json.loads(windows.read_text()).items() if windows.exists() else ():
        frame = pd.read_csv(folder / name)
        times = pd.to_datetime(frame["timestamp"]).to_numpy()
        strange = np.zeros(len(frame), bool)
        for begin, end in labelled:
            strange |= (times >= np.datetime64(begin)) & (times <= np.datetime64(end))
        first = int(np.flatnonzero(strange)[0])
        yield "NAB", name, frame["value"].to_numpy(np.float32), min(first, 2 * len(frame) // 5), strange


def measures(
    strange: Bool[np.ndarray, " time"], score: Float[np.ndarray, " time"], length: int
) -> tuple[float, float, float]:
    """VUS-PR, average precision, and 1 if the top is right."""
    top = int(np.argmax(score))
    right = bool(strange[max(0, top - NEAR) : top + NEAR + 1].any())
    return vus_pr(strange, score, length), float(average_precision_score(strange, score)), float(right)


def buffer(x: Float[np.ndarray, " time"]) -> int:
    """The buffer that TSB-AD takes: the lag of the highest peak of the autocorrelation from 3 to 400, else 125."""
    from scipy.signal import argrelextrema

    x = x[:20_000].astype(np.float64) - x[:20_000].mean()
    power = np.abs(np.fft.rfft(x, 2 * len(x))) ** 2
    correlation = np.fft.irfft(power)[3:401]
    peaks = argrelextrema(correlation, np.greater)[0]
    if not len(peaks) or not 3 <= (highest := int(peaks[np.argmax(correlation[peaks])])) <= 300:
        return 125
    return highest + 3


def vus_pr(
    strange: Bool[np.ndarray, " time"], score: Float[np.ndarray, " time"], length: int, thresholds: int = 250
) -> float:
    """The volume under the surface of precision and recall, equal to TSB-AD's `RangeAUC_volume_opt`.

    Around each labelled stretch moments count in part, up to half of a buffer away; the mean is over buffers of 0 to
    `length` moments.
    """
    n, labelled = len(strange), strange.sum()
    edges = np.diff(np.concatenate([[0], strange.astype(int), [0]]))
    begins, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1) - 1
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    at = ordered[np.linspace(0, n - 1, thresholds).astype(int)]
    predicted = np.searchsorted(-ordered, -at, side="right")
    hits = np.concatenate([[0], np.cumsum(strange[order])])[predicted]
    total = 0.0
    for width in range(length + 1):
        half, soft = width // 2, np.zeros(n)
        for begin, end in zip(begins, ends, strict=True):
            after, before = np.arange(end + 1, min(end + half + 1, n)), np.arange(max(begin - half, 0), begin)
            soft[after] += np.sqrt(1 - (after - end) / max(width, 1))
            soft[before] += np.sqrt(1 - (begin - before) / max(width, 1))
        soft = np.where(strange, 0, np.minimum(soft, 1))
        near = np.concatenate([[0], np.cumsum(soft[order])])[predicted]
        joined = begins[1:] - half <= ends[:-1] + half
        firsts = np.maximum(begins[np.concatenate([[True], ~joined])] - half, 0)
        lasts = np.minimum(ends[np.concatenate([~joined, [True]])] + half, n - 1)
        peaks = np.array([score[first : last + 1].max() for first, last in zip(firsts, lasts, strict=True)])
        existence = (peaks[None] >= at[:, None]).mean(axis=1)
        right = hits + near
        recall = np.minimum(right / (labelled + near / 2), 1) * existence
        total += float(np.sum(np.diff(recall, prepend=0) * right / predicted))
    return total / (length + 1)


def promises() -> None:
    """False alarms on series without anomalies, beside what was promised."""
    print(f"{'':34s} {'runs':>5s} {'promised':>9s} {'flagged':>9s} {'not promised':>13s}")
    for name, make in MADE.items():
        promised, flagged, refused = [], [], 0
        for seed in range(10):
            x = make(20_000, np.random.default_rng(seed))[:, None].astype(np.float32)
            scaling = Scaling.fit(x[None, :12_000])
            signal = Signal(scaling(x))
            detector = series.fit(signal.part(0, 12_000), window=64)
            later = signal.part(12_000, 20_000)
            begins = data.starts(len(later.values), 64, 4)
            scores = np.concatenate([detector.score(part) for part in series.in_blocks(later.values, begins, 64)])
            if detector.drifts or detector.left_out or series.differs(detector, scores) is not None:
                refused += 1
                continue
            rate = max(0.01, 1 / (detector.worth + 1))
            promised.append(rate)
            flagged.append(float(np.mean(scores > conformal.threshold(detector.calibration, rate, detector.worth))))
        means = [f"{np.mean(values):9.2%}" if values else f"{'–':>9s}" for values in (promised, flagged)]
        print(f"{name:34s} {10:5d} {means[0]} {means[1]} {refused:13d}", flush=True)


def _cycle(n: int, rng: np.random.Generator) -> np.ndarray:
    return np.sin(np.arange(n) / 9) + 0.1 * rng.normal(size=n)


def _phase(n: int, rng: np.random.Generator) -> np.ndarray:
    return np.sin(np.cumsum(1 + 0.2 * np.repeat(rng.normal(size=n // 100 + 1), 100)[:n]) / 9) + 0.1 * rng.normal(size=n)


def _noise(n: int, rng: np.random.Generator) -> np.ndarray:
    from scipy.signal import lfilter

    return lfilter([1], [1, -0.9], rng.normal(size=n))


MADE = {
    "a cycle": _cycle,
    "a cycle of changing speed": _phase,
    "autoregressive noise": _noise,
    "a cycle on a trend": lambda n, rng: _cycle(n, rng) + 0.002 * np.arange(n),
    "a cycle on a random walk": lambda n, rng: _cycle(n, rng) + 0.05 * np.cumsum(rng.normal(size=n)),
    "a cycle that grows": lambda n, rng: _cycle(n, rng) * (1 + np.arange(n) / n),
}


def speed(moments: list[int]) -> None:
    for count in moments:
        x = _cycle(count, np.random.default_rng(0))[:, None].astype(np.float32)
        began = time.perf_counter()
        detector = series.fit(Signal(x[: count // 2]), window=128)
        fitted = time.perf_counter()
        series.find(detector, Signal(x), Framing(128, 8), Rule("conformal", 0.05))
        done = time.perf_counter()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        seconds = f"fitted on half in {fitted - began:.1f} s, scored in {done - fitted:.1f} s"
        print(f"{count:,} moments: {seconds}; {peak:,.0f} MiB")


if __name__ == "__main__":
    main()
