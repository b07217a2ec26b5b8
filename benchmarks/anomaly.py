"""Anomaly scores: flaxae's default, its other scores, nearest neighbours without an autoencoder, and peers.

    python -m benchmarks.anomaly images --data mnist /usr/share/datasets/fashion-mnist     one class against nine
    python -m benchmarks.anomaly tables --data FOLDER …                        folders of ODDS' and ADBench's tables
    python -m benchmarks.anomaly promises --data FOLDER …                      false alarms where 1 % is promised
    python -m benchmarks.anomaly time --data ODDS                                          and a million rows

The defaults of `anomaly.fit` are the same for all data of a kind. They were chosen on data that are not measured here:
one-class tasks among *training* images, and scikit-learn's own tables. The score for tables is the exception: its parts
were chosen by the AUROC of eight tables of ODDS and ten of ADBench, which flatters its figures on these.

- images: trained on one class's training images, tested on all 10,000; AUROC, the mean over the ten classes.
- tables, clean: trained on a random half of the normals, tested on the rest, over seeds. The estimator scales by
  itself; the others are z-scored by the training part.
- tables, contaminated: trained on 60 % of all rows, with their anomalies; tested on the rest; told nothing, or the
  fraction of anomalies. With --ablation, also the default without each of its parts.
- time: of fitting and scoring together, compiling included, in turns with PyOD's AutoEncoder; then of scoring a million
  rows. Nothing is compiled before, unless --cache names a folder that an earlier run has filled, as the cache of the
  command line is after a first run. Seconds of CPU, over all threads, are printed beside seconds of wall time: other
  work on the machine hardly changes them.

PyOD's rows are added if it is installed (`pip install pyod`, in an environment with torch).
"""

import argparse
import importlib.util
import pathlib
import resource
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float

from flaxae import AutoencoderDetector, anomaly, autoencoder, data
from flaxae.parallel import compilation

ABLATION = ("combined", "reconstruction", "neighbours")
UNTOLD = "flaxae, told nothing"
PARTS = ("neighbours", "wide neighbours", "density", "tails", "reconstruction beside residual", "features")
WARM = [(500 + n, columns) for n in (-10, 0, 10) for columns in (9, 10, 11, 12)]  # rows and columns
MOST_TOLD = 0.45  # the estimator takes fractions below a half
Scores = dict[str, Float[np.ndarray, " examples"]]


def main() -> None:
    parts = {"images": images, "tables": tables, "promises": promises, "time": times}
    parts["rows"] = lambda options: million_rows()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=parts)
    parser.add_argument("--data", nargs="+", default=[])
    parser.add_argument("--seeds", type=int, default=5, help="of the tables' splits")
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS), help="of the tables")
    parser.add_argument("--all-scores", action="store_true", help="every score alone, too")
    parser.add_argument("--ablation", action="store_true", help="the default without each of its parts, too")
    parser.add_argument("--classes", type=int, nargs="+", default=list(range(10)), help="of the images")
    parser.add_argument("--cache", help="folder for compiled programs, which the next run finds there")
    options = parser.parse_args()
    if options.part != "rows" and not options.data:
        parser.error(f"{options.part} needs --data")
    if options.cache:
        compilation.enable_cache(options.cache)
    parts[options.part](options)


def images(options: argparse.Namespace) -> None:
    names = list(anomaly.SCORES) if options.all_scores else ABLATION
    for source in options.data:
        dataset = data.load(source)
        test, labels = dataset.scaling(dataset.test), dataset.test_labels
        found: dict[str, list[float]] = {}
        for c in options.classes:
            train = dataset.scaling(dataset.train[dataset.train_labels == c])
            began = time.perf_counter()
            for name, score in image_scores(train, test, names).items():
                found.setdefault(name, []).append(100 * auroc(labels != c, score))
            print(f"{dataset.name}, class {c}: {time.perf_counter() - began:.0f} s", flush=True)
        show(f"{dataset.name}: AUROC %, each class against the others", found)


def image_scores(train: np.ndarray, test: np.ndarray, names: Sequence[str]) -> Scores:
    detector = anomaly.fit(train, kind="image")
    rows, queries = train.reshape(len(train), -1), test.reshape(len(test), -1)
    parts = anomaly.hold_out(train, anomaly.HELD_OUT, 0)
    scores = {
        "5 nearest, raw pixels": neighbour_distance(rows, queries, 5),
        "5 nearest, unit-norm pixels": neighbour_distance(*map(unit_norm, (rows, queries)), 5),
        "the views' neighbours, no autoencoder": without_autoencoder(detector, train, test),
        "the default, untrained autoencoder": untrained(detector, *parts).score(test),
    }
    for name in names:
        other = anomaly.Detector.of(detector.config, detector.models, detector.views, *parts, score=name)
        scores[f"flaxae, {name}" + " (the default)" * (name == detector.score_name)] = other.score(test)
    return scores


def without_autoencoder(detector: anomaly.Detector, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Distances of the views to the nearest of the detector's references, summed as the detector sums its parts."""
    views, total = detector.views, 0.0
    for view in range(views.count):
        references, x = (
            np.concatenate(
                [np.asarray(views.split(views(part[i : i + 1024])))[:, view] for i in range(0, len(part), 1024)]
            )
            for part in (detector.references, test)
        )
        own = np.log(neighbour_distance(references, references, 6) + 1e-6)
        total = total + (np.log(neighbour_distance(references, x, 5) + 1e-6) - np.median(own)) / spread(own)
    return total


def untrained(detector: anomaly.Detector, train: np.ndarray, held_out: np.ndarray) -> anomaly.Detector:
    """The same detector with the initial weights."""
    models = [autoencoder.build(detector.config, detector.views(train[:1]).shape[1:])]
    settings = {"score": detector.score_name, "neighbours": detector.neighbours}
    return anomaly.Detector.of(detector.config, models, detector.views, train, held_out, **settings)


def tables(options: argparse.Namespace) -> None:
    for protocol in (PROTOCOLS[name] for name in options.protocols):
        found: dict[str, dict[str, list[list[float]]]] = {"AUROC": {}, "average precision": {}}
        names = []
        for name, x, strange in read_tables(options.data):
            names.append(name)
            for seed in range(options.seeds):
                train, test, truth, fraction = protocol(x, strange, seed)
                for scorer, score in table_scores(
                    train, test, fraction, seed, options.all_scores, options.ablation
                ).items():
                    for metric, results in found.items():
                        sets = results.setdefault(scorer, [])
                        sets.extend([] for _ in range(len(names) - len(sets)))
                        sets[-1].append(METRICS[metric](truth, score))
            print(f"{protocol.__name__}: {name} done", flush=True)
        for metric, results in found.items():
            means = {scorer: [float(np.mean(values)) for values in sets] for scorer, sets in results.items()}
            show(f"tables, {protocol.__name__}: {metric} on {', '.join(names)}", means, decimals=3)
            behind(means)


def behind(means: dict[str, list[float]]) -> None:
    """Print on how many tables the default is more than .05 below the best simple method."""
    simple = np.max([values for name, values in means.items() if not name.startswith("flaxae")], axis=0)
    short = int(np.sum(simple - np.array(means[UNTOLD]) > 0.05))
    print(f"{UNTOLD}: more than .05 below the best of the others on {short} of {len(simple)}", flush=True)


def clean(x: np.ndarray, strange: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Half of the normals to train on, and the rest to test on."""
    normal = np.random.default_rng(seed).permutation(np.flatnonzero(~strange))
    train, rest = np.split(normal, [len(normal) // 2])
    test = np.concatenate([rest, np.flatnonzero(strange)])
    return x[train], x[test], strange[test], 0.0


def contaminated(x: np.ndarray, strange: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """60 % of all rows to train on, with what is strange among them (PyOD's protocol)."""
    train, test = np.split(np.random.default_rng(seed).permutation(len(x)), [round(0.6 * len(x))])
    return x[train], x[test], strange[test], float(strange.mean())


PROTOCOLS = {"clean": clean, "contaminated": contaminated}


def table_scores(
    train: np.ndarray, test: np.ndarray, fraction: float, seed: int, all_scores: bool, ablated: bool
) -> Scores:
    from sklearn.ensemble import IsolationForest

    rows, queries = z_scored(train, test)
    scores = {
        "5 nearest neighbours": neighbour_distance(rows, queries, 5),
        "5 % nearest neighbours": neighbour_distance(rows, queries, max(5, round(0.05 * len(rows)))),
        "isolation forest": -IsolationForest(random_state=seed).fit(rows).score_samples(queries),
        UNTOLD: flaxae_score(train, test, "auto", seed),
    }
    if fraction:
        scores["flaxae, told the fraction"] = flaxae_score(train, test, min(fraction, MOST_TOLD), seed)
        if importlib.util.find_spec("pyod"):
            scores["PyOD AutoEncoder"] = pyod_autoencoder(rows, queries, fraction, seed)
    if ablated:
        detector = AutoencoderDetector(random_state=seed).fit(train)
        looks = detector.detector_.looks(detector._standardised(detector._checked(test)))
        scores |= {f"flaxae without {name}": np.delete(looks, i, 1).sum(axis=1) for i, name in enumerate(PARTS)}
    if all_scores:
        names = [name for name in anomaly.SCORES if name not in ("ensemble", "likelihood")]
        scores |= {f"flaxae, {name} alone": flaxae_score(train, test, "auto", seed, name) for name in names}
    return scores


def flaxae_score(
    train: np.ndarray, test: np.ndarray, contamination: float | str, seed: int, score: str | None = None
) -> np.ndarray:
    """By the estimator, with its defaults, in the data's own units."""
    detector = AutoencoderDetector(contamination=contamination, score_name=score, random_state=seed)
    return detector.fit(train).decision_function(test)


def pyod_autoencoder(train: np.ndarray, test: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    from pyod.models.auto_encoder import AutoEncoder

    return AutoEncoder(contamination=fraction, random_state=seed, verbose=0).fit(train).decision_function(test)


def promises(options: argparse.Namespace) -> None:
    """False alarms among new normal rows where 1 % is promised: trained on half of the normals, told nothing."""
    rates, left_out = [], []
    for name, x, strange in read_tables(options.data):
        for seed in range(options.seeds):
            train, test, truth, _ = clean(x, strange, seed)
            detector = AutoencoderDetector(random_state=seed).fit(train)
            if len(detector.detector_.calibration) < 99:
                continue
            rates.append(detector.predict(test[~truth]).mean())
            left_out.append(detector.detector_.contamination)
        print(f"{name} done", flush=True)
    print(
        f"{np.mean(rates):.2%} of new normal rows are flagged, the mean of {len(rates)} fits with 99 held-out rows at "
        f"least; {np.mean(left_out):.2%} of these are taken for strange"
    )


def times(options: argparse.Namespace) -> None:
    """Fit and score tables that the process has not seen yet, and first of all any table, which compiles programs."""
    peer = importlib.util.find_spec("pyod") is not None
    tables = list(read_tables(options.data))
    train, test, _, fraction = contaminated(*min(tables, key=lambda table: table[1].size)[1:], 0)
    took, cpu = seconds(flaxae_score, train, test, fraction, 0)
    line = f"the first table in a process ({train.shape[0]} × {train.shape[1]}): flaxae {took:.1f} s ({cpu:.1f} of CPU)"
    if peer:
        took, cpu = seconds(pyod_autoencoder, *z_scored(train, test), fraction, 0)
        line += f", PyOD {took:.1f} s ({cpu:.1f} of CPU)"
    print(line, flush=True)
    for name, x, strange in tables:
        train, test, _, fraction = contaminated(x, strange, 0)
        ours, theirs = [], []
        for seed in range(3):  # one column fewer each time: a table of another form
            part = train[:, seed:], test[:, seed:], fraction, seed
            ours.append(seconds(flaxae_score, *part))
            if peer:
                theirs.append(seconds(pyod_autoencoder, *z_scored(*part[:2]), *part[2:]))
        took, cpu = np.median(ours, axis=0)
        line = f"{name} ({len(x)} × {x.shape[1]}): flaxae {took:.1f} s ({cpu:.1f} of CPU)"
        if peer:
            took, cpu = np.median(theirs, axis=0)
            ratios = np.array(theirs)[:, 0] / np.array(ours)[:, 0]
            line += f", PyOD {took:.1f} s ({cpu:.1f} of CPU)"
            line += f", {np.median(ratios):.1f} × ({ratios.min():.1f} to {ratios.max():.1f})"
        print(line, flush=True)
    warm()
    million_rows()


def warm() -> None:
    """Fit 500 rows, of lengths and widths that the process has not met, but for tables as large."""
    rows = np.random.default_rng(0).standard_normal((600, 12), np.float32)
    AutoencoderDetector(random_state=0).fit(rows)
    took = [seconds(AutoencoderDetector(random_state=0).fit, rows[:n, :columns])[0] for n, columns in WARM]
    print(f"500 rows, give or take ten, of 9 to 12 columns: fitted in {np.median(took):.2f} s", flush=True)


def million_rows() -> None:
    rows = np.random.default_rng(0).standard_normal((1_000_000, 30), np.float32)
    detector = anomaly.fit(rows[:10_000], kind="tabular")
    detector.score(rows[:10_000])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    took, cpu = seconds(detector.score, rows)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(
        f"a million rows of 30 columns: scored in {took:.1f} s ({cpu:.1f} of CPU); peak memory grew by {grown:.0f} MB"
    )


def read_tables(
    folders: list[str],
) -> Iterator[tuple[str, Float[np.ndarray, "rows columns"], Bool[np.ndarray, " rows"]]]:
    """The tables of ODDS (.mat) and of ADBench (.npz), with X and y in them."""
    from scipy.io import loadmat

    for folder in folders:
        for path in sorted([*pathlib.Path(folder).glob("*.mat"), *pathlib.Path(folder).glob("*.npz")]):
            table = loadmat(path) if path.suffix == ".mat" else np.load(path)
            yield path.stem, table["X"].astype(np.float64), table["y"].ravel() > 0


def z_scored(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    deviation = np.where(deviation < 1e-9, 1.0, deviation)
    return ((train - mean) / deviation).astype(np.float32), ((test - mean) / deviation).astype(np.float32)


def neighbour_distance(references: np.ndarray, x: np.ndarray, k: int) -> np.ndarray:
    from sklearn.neighbors import NearestNeighbors

    found = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(references)
    return np.concatenate([found.kneighbors(x[i : i + 1000])[0].mean(axis=1) for i in range(0, len(x), 1000)])


def unit_norm(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6)


def spread(values: np.ndarray) -> float:
    return float(np.median(np.abs(values - np.median(values)))) + 1e-6


def auroc(strange: np.ndarray, scores: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(strange, scores))


def average_precision(strange: np.ndarray, scores: np.ndarray) -> float:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(strange, scores))


METRICS = {"AUROC": auroc, "average precision": average_precision}


def seconds(function: Callable, *arguments: object) -> tuple[float, float]:
    """The wall time and the CPU time of a call, in seconds."""
    began, cpu = time.perf_counter(), time.process_time()
    function(*arguments)
    return time.perf_counter() - began, time.process_time() - cpu


def show(title: str, found: dict[str, list[float]], decimals: int = 2) -> None:
    print(f"\n{title}")
    for name, values in found.items():
        each = " ".join(f"{value:.{decimals}f}" for value in values)
        print(f"{name:40s} {np.mean(values):.{decimals}f}   ({each})", flush=True)


if __name__ == "__main__":
    main()
