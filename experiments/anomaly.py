"""Anomaly: train on normal data, score how strange others are, flag at a promised rate of false alarms, and say why.

    python run.py --exp anomaly

trains on one digit of the embedded MNIST and tells the nine others from it. The same command takes a table, a signal
or a folder of images: `--data readings.csv`. It is taken to be normal, but for what stands apart in a table; if up to
a twentieth may be strange, `--contamination 0.05`. With `--label COLUMN` (or a folder for each class) the detector is
evaluated too: the most frequent class counts as normal, and no label is used in training. `--normal CLASS` trains on
that class alone.

The run's anomalies.csv has the scores of the test part, or of all rows of a table, each by a detector that did not
train on it: row (counted from 0), score, p_value, flagged, and what made
it strange; a signal's moments.csv has them on the time line. A trained run scores new data:

    python run.py --exp anomaly --from runs/anomaly/1 --input new.csv --output anomalies.csv
"""

import dataclasses
import math
import warnings
from typing import NamedTuple

import numpy as np
from sklearn import metrics
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import NearestNeighbors

from flaxae import anomaly, autoencoder, data, experiments, presets, runs, trained
from flaxae.anomaly import Detector, conformal, findings, tiles
from flaxae.anomaly.findings import Findings, Rule
from flaxae.data import Dataset, Framing, formats, images
from flaxae.errors import ConfigError, DataError, RunError, unknown
from flaxae.experiments import _flags, _series, _steps
from flaxae.likelihoods import Gaussian
from flaxae.printing import say
from flaxae.runs import Run, SavedRun, plots, report
from flaxae.runs.report import Table
from flaxae.training import checkpoints

NORMAL_DIGIT = "3"  # the default for MNIST
FALSE_ALARMS = 0.01
SHOWN = 10
PIECES = 1024  # of large images: each tile of new ones is compared with all of them
CROP = 96  # pixels a side of what is shown of a large image
MOST_FOR_NEIGHBOURS = 10**11  # training examples × test examples × values, which the baseline's time grows with


class Parts(NamedTuple):
    """The training part divided, as indices, and which examples are strange by their labels (None without labels)."""

    train: np.ndarray
    held_out: np.ndarray
    left_out: np.ndarray  # strange examples that --normal keeps out of the training
    strange: np.ndarray | None  # which training examples are strange
    test_strange: np.ndarray | None


def apply(config: _flags.Anomaly) -> None:
    """Score --input with the detector of --from, and write the results to --output."""
    if config.output.suffix.lower() not in formats.suffixes("table"):
        raise ConfigError(f"--output is {config.output}; scores are a table: {formats.listed('table')}.")
    saved = runs.open(config.from_)
    loaded = trained.load(config.from_)
    if isinstance(loaded, trained.TrainedSeries):
        _series.apply(config, loaded)
        return
    if not isinstance(loaded, trained.TrainedDetector):
        raise RunError(f"{config.from_} is no run of --exp anomaly; it has no detector.")
    about, detector = loaded.trained, loaded.detector
    rule = saved_rule(config, saved, detector, about.framing)
    if images.holds(config.input):
        given = images_of(config, saved, about)
        found, _ = findings.in_images(detector, given, rule, config.maps)
        found.write(config.output)
        _steps.print_table(strangest(found))
        say(flagged_line(found, rule, config))
        given.check()
        return
    if config.maps is not None:
        raise ConfigError(f"--maps are of images; {config.input} holds none.")
    given = findings.read(about, config.input)
    x = about.scaling(given.x)
    found = findings.find(detector, x, given.which, about, rule, carried=given.carried, gaps=given.gaps)
    found.write(config.output)
    if about.framing is not None:
        line = findings.time_line(detector, x, found, about)
        line.write(config.output.with_stem(f"{config.output.stem}_moments"), about.framing.rate)
    _steps.print_table(strangest(found))
    say(flagged_line(found, rule, config))


def images_of(config: _flags.Anomaly, saved: SavedRun, about: trained.Trained) -> images.Images:
    """Those of --input, in the channels of training, and brought to one size if those of training were."""
    channels = about.shape[-1]
    size = saved.config.get("settings", {}).get("size")
    given = images.open(
        config.input,
        colours=channels - (channels in (2, 4)),
        alpha=channels in (2, 4),
        size=size,
        max_pixels=config.max_pixels,
    )
    say(given.summary())
    return given


def flagged_line(found: Findings, rule: Rule, config: _flags.Anomaly) -> str:
    """How many are flagged, by which rule, and where it is written."""
    maps = "" if config.maps is None else f" Heat maps: {config.maps}."
    return f"{np.sum(found.flagged):,} of {len(found.scores):,} are flagged; {rule}. Scores: {config.output}.{maps}"


def saved_rule(config: _flags.Anomaly, saved: SavedRun, detector: Detector, framing: Framing | None) -> Rule:
    """The rule that the flags give, else the run's. A threshold that was chosen on labels is in the run's results."""
    if config.threshold == "f1":
        raise ConfigError("--threshold f1 is chosen on labels, when a detector is trained; leave it out to use that.")
    given = {name: getattr(config, name) for name in ("threshold", "false_alarms", "fdr")}
    if not any(given.values()):
        given = {name: saved.config.get("settings", {}).get(name) for name in given}
    if given["threshold"] != "f1":
        return affordable(**given, normals=len(detector.calibration), framing=framing)
    if "threshold" not in saved.results():
        raise RunError(f"{saved.folder} isn't finished, so it has no threshold. Finish it by --resume, or give one.")
    return Rule("f1", threshold=saved.results()["threshold"])


def affordable(
    threshold: str | None, false_alarms: float | None, fdr: float | None, *, normals: int, framing: Framing | None
) -> Rule:
    """The rule of the flags. Without a rate in them, it is 1 %, or the least that so many held-out normals allow.

    For a signal, only as many windows count as share no moment, because overlapping windows are not independent.
    """
    if fdr is not None:
        return Rule("fdr", fdr)
    rule = Rule(threshold or "conformal", false_alarms or FALSE_ALARMS)
    if rule.name != "conformal":
        return rule
    worth, which = normals, "held-out examples"
    if framing is not None:
        worth, which = max(1, normals // framing.window), "held-out windows without a moment in common"
    least = 1 / (worth + 1)
    if false_alarms is None and rule.rate < least:
        warnings.warn(
            f"{worth} {which} can't promise {rule.rate:.0%} of false alarms; the threshold is set for the least they "
            f"can, {least:.1%}.",
            stacklevel=2,
        )
        rule = dataclasses.replace(rule, rate=least)
    elif framing is not None and rule.rate < least:
        warnings.warn(f"{worth} {which} can't promise {rule.rate:.3g}: false alarms may be {least:.1%}.", stacklevel=2)
    conformal.check_false_alarms(normals, rule.rate)
    return rule


def train(config: _flags.Anomaly) -> None:
    """Train and evaluate a detector in a run's folder."""
    if config.score is not None:
        anomaly.check_score(config.score)
    dataset = _steps.load(config, marks=False)
    if config.maps is not None and dataset.kind != "image":
        raise ConfigError(f"--maps are of images; {config.data} holds none.")
    if not dataset.differ_in_size:
        dataset = _steps.in_memory(dataset)
    if _series.wanted(config, dataset):
        _series.train(config, dataset)
        return
    in_folds = dataset.kind == "tabular" and dataset.train_rows is not None and config.threshold != "f1"
    if in_folds:
        dataset = whole_table(dataset)
    parts = divide(config, dataset, in_folds=in_folds)
    given = (config.threshold, config.false_alarms, config.fdr)
    rule = affordable(*given, normals=len(parts.held_out), framing=dataset.framing)
    whole, pieces, train_part, held_out_part = dataset, dataset, parts.train, parts.held_out
    if isinstance(dataset.train, images.Images):
        if config.threshold == "f1":
            raise ConfigError("--threshold f1 takes images of one size: --size 64.")
        cut = dataclasses.replace(
            dataset, train=dataset.train.select(parts.train), test=dataset.train.select(parts.held_out)
        )
        pieces = _steps.pieces(cut, config.seed, most=PIECES, flips=False)
        pieces = dataclasses.replace(pieces, train=np.concatenate([pieces.train, pieces.test]))
        held_out_part = np.arange(len(pieces.train) - len(pieces.test), len(pieces.train))
        train_part = np.arange(len(pieces.train) - len(pieces.test))
    x = pieces.scaling(pieces.train)
    model = preset(config, dataset.kind, x)
    planned = anomaly.training_settings(len(train_part), config=model, epochs=config.epochs)
    seen = anomaly.Views(dataset.kind)(x[:1]).shape[1:]
    _steps.announce(pieces, model, epochs=planned["epochs"], batch_size=planned["batch_size"], shape=seen)
    about = {"detector": model.to_dict(), "data": trained.describe(model, pieces)["data"]}
    settings = {"settings": _steps.settings(config), **about}
    untrained = [f"settings/{name}" for name in ("score", "threshold", "false_alarms", "fdr")]
    started = runs.start("anomaly", config.name, settings, resume=config.resume, may_change=untrained)
    with started as run, _steps.resumable(run), _steps.resources(config, run) as resources:
        how = {
            "kind": dataset.kind,
            "config": model,
            "score": config.score,
            "contamination": "auto" if config.contamination is None else config.contamination,
            "members": config.members,
            "epochs": config.epochs,
            "seed": config.seed,
            "folder": run.checkpoints,
            "resume": config.resume and (config.members > 1 or checkpoints.begun(run.checkpoints)),
            "show": True,
            "on_epoch": resources["on_epoch"],
        }
        scores = None
        if in_folds:
            folds = folds_of(config)
            detector, own = anomaly.fit_folds(x[parts.train], folds=folds, **how)
            scores = np.empty(len(x), np.float32)
            scores[parts.train] = own
            if len(parts.left_out):
                scores[parts.left_out] = detector.score(x[parts.left_out])
        else:
            detector = anomaly.fit(x[train_part], held_out=x[held_out_part], **how)
        if isinstance(whole.train, images.Images):
            detector = tiles.calibrated(detector, whole.train.select(parts.held_out))
        if detector.contamination:
            say(
                f"{detector.contamination:.2%} of the held-out examples are taken for strange and don't set the "
                "threshold: what it promises is approximate."
            )
            if rule.name == "conformal":  # which fewer held-out examples may not afford
                rule = affordable(*given, normals=len(detector.calibration), framing=dataset.framing)
        detector.save(run.folder / "detector")
        if rule.name == "f1":
            rule = dataclasses.replace(rule, threshold=best_on_labels(config, detector, x, parts))
        evaluate(config, run, detector, dataset, parts, rule, scores)
    dataset.check()


def whole_table(dataset: Dataset) -> Dataset:
    """A table whose rows are all to be trained on and, by other folds, scored; in the order of its file."""
    order = np.argsort(np.concatenate([dataset.train_rows, dataset.test_rows]))
    x = np.concatenate([dataset.train, dataset.test])[order]
    labels = None
    if dataset.train_labels is not None:
        labels = np.concatenate([dataset.train_labels, dataset.test_labels])[order]
    rows = np.arange(len(x))
    return dataclasses.replace(
        dataset, train=x, test=x, train_labels=labels, test_labels=labels, train_rows=rows, test_rows=rows
    )


def folds_of(config: _flags.Anomaly) -> int:
    """The number of folds, of which each is --held-out once."""
    return max(2, round(1 / config.held_out))


def divide(config: _flags.Anomaly, dataset: Dataset, *, in_folds: bool = False) -> Parts:
    """Which training examples train, and which set the threshold, with a line on what labels are used for.

    By folds, all of them do both.
    """
    normal, examples = normal_class(config, dataset), np.arange(len(dataset.train))
    labels = (dataset.train_labels, dataset.test_labels)
    strange, test_strange = (
        None if normal is None or part is None else (part != normal) & (part >= 0) for part in labels
    )
    left_out = examples[:0]
    if normal is not None and (config.normal or config.data == "mnist"):
        is_normal = dataset.train_labels == normal
        examples, left_out = examples[is_normal], examples[~is_normal]
        say(f"Trains on the {len(examples):,} training examples of class {dataset.classes[normal]!r} alone.")
    elif strange is not None and strange.any():
        say(
            f"Trains on all {len(examples):,} training examples, the {strange.sum():,} that are not of class "
            f"{dataset.classes[normal]!r} too: labels only evaluate. --normal leaves those out."
        )
    if config.threshold == "f1" and (strange is None or strange.all() or not strange.any()):
        raise ConfigError("--threshold f1 is chosen on labels of the training part, normal and strange ones.")
    if in_folds:
        return Parts(examples, examples, left_out, strange, test_strange)
    apart = dataset.framing.window if dataset.framing else None  # its windows are from every moment
    train, held_out = anomaly.hold_out(examples, config.held_out, config.seed, apart=apart)
    if len(held_out) == 0:
        raise DataError(
            f"There are {len(examples)} normal training examples, of which --held-out {config.held_out:g} is none. "
            "Give more data, or a larger --held-out."
        )
    return Parts(train, held_out, left_out, strange, test_strange)


def normal_class(config: _flags.Anomaly, dataset: Dataset) -> int | None:
    """The code of the normal class; None without labels."""
    given = config.normal or (NORMAL_DIGIT if config.data == "mnist" else None)
    if dataset.classes is None:
        if given is not None:
            raise ConfigError(f"--normal is {given!r}, but the data have no labels; name their column by --label.")
        return None
    labels = dataset.test_labels if dataset.train_labels is None else dataset.train_labels
    counts = np.bincount(labels[labels >= 0], minlength=len(dataset.classes))
    if given is not None:
        if given not in dataset.classes:
            raise ConfigError(unknown("--normal", given, dataset.classes))
        normal = dataset.classes.index(given)
        if dataset.train_labels is None or counts[normal] == 0:
            raise DataError(f"No training example is of class {given!r}, which --normal names.")
        return normal
    if 2 * counts.max() < counts.sum():
        raise ConfigError(
            f"No class has half of the examples, so none can be taken for the normal one. Say which it is: --normal "
            f"{dataset.classes[0]}, or another of {', '.join(dataset.classes[:20])}."
        )
    return int(counts.argmax())


def preset(config: _flags.Anomaly, kind: str, x: np.ndarray) -> autoencoder.Config:
    """The config of the autoencoder that the flags ask for."""
    if config.model is None:
        made = anomaly.default_config(kind, anomaly.Views(kind)(x[:1]).shape[1:])
    else:
        made = presets.find(config.model, Gaussian())
    return made.with_latent(config.latent) if config.latent else made


def best_on_labels(config: _flags.Anomaly, detector: Detector, x: np.ndarray, parts: Parts) -> float:
    """The threshold with the best F1 on the held-out examples together with the same fraction of those left out."""
    count = math.ceil(config.held_out * len(parts.left_out))
    others = np.random.default_rng(config.seed).choice(parts.left_out, count, replace=False)
    chosen = np.concatenate([parts.held_out, others])
    return conformal.f1_threshold(detector.score(x[chosen]), parts.strange[chosen])


def evaluate(
    config: _flags.Anomaly,
    run: Run,
    detector: Detector,
    dataset: Dataset,
    parts: Parts,
    rule: Rule,
    scores: np.ndarray | None,
) -> None:
    """Score the test part, and write anomalies.csv, the tables, results.json, the figures and the report.

    `scores` are those of all rows of a table, if they were scored by folds.
    """
    test, strange, labels = dataset.scaling(dataset.test), parts.test_strange, dataset.test_labels
    if isinstance(test, images.Images):
        found, hottest = findings.in_images(detector, test, rule, config.maps)
        readable = np.isin(np.array(test.names, object), found.which["file"])
        strange, labels = (None if values is None else values[readable] for values in (strange, labels))
    else:
        which = np.arange(len(test)) if dataset.test_rows is None else dataset.test_rows
        carried = {} if dataset.carried is None else dict(dataset.carried.iloc[which].items())
        carried = {name: values.to_numpy(object) for name, values in carried.items()}
        which = which if dataset.test_files is None else dataset.test_files
        found, hottest = findings.find(detector, test, which, dataset, rule, scores=scores, carried=carried), []
        if config.maps is not None:
            level, names = findings.heat_level(detector, rule), np.char.mod("%s", which.astype(str))
            for name, heat in zip(names, tiles.heat_of(detector, test), strict=True):
                findings.write_map(config.maps, str(name), heat, level)
    if labels is not None:
        found.which["label"] = np.array([*dataset.classes, None], object)[labels]  # the last is of −1
    found.write(run.folder / "anomalies.csv")

    history = run.history()
    results = {"calibration/examples": len(detector.calibration), "test/flagged": int(found.flagged.sum())}
    results |= {} if found.threshold is None else {"threshold": found.threshold}
    tables, figures = [], []
    groups = {"held-out": detector.calibration, "test": found.scores}
    if strange is not None:
        known = labels >= 0
        everything, strange = strange, strange[known]
        flagged, of_known = found.flagged[known], found.scores[known]
        tables.append(flagged_table(found.threshold, flagged, strange))
        groups = {"held-out": detector.calibration, "test, normal": of_known[~strange]}
        groups |= {"test, strange": of_known[strange]}
        results |= {name: rate for name, rate in flagged_rates(flagged, strange).items() if rate is not None}
        if 0 < strange.sum() < len(strange):
            others = {}
            if not dataset.differ_in_size:
                x = dataset.scaling(dataset.train)
                others = by_folds(x, parts, config) if scores is not None else baselines_of(x, parts, test, config.seed)
            ranked = {"flaxae": of_known, **{name: values[known] for name, values in others.items()}}
            plots.detection(strange, ranked, run.figure("detection"))
            figures.append(("At every threshold: anomalies found, false alarms, precision.", "detection"))
            measured = {name: ranking(strange, scores) for name, scores in ranked.items()}
            caption = f"{len(strange):,} test examples, {strange.sum():,} of them strange, {dataset.name}"
            rows = [[name, *values.values()] for name, values in measured.items()]
            tables.insert(
                0,
                report.Table(
                    caption,
                    ["", report.Column("AUROC", better="higher"), report.Column("average precision", better="higher")],
                    rows,
                ),
            )
            for name, values in measured.items():
                prefix = "test" if name == "flaxae" else f"baseline/{name.replace(' ', '_')}"
                results |= {f"{prefix}/{metric}": value for metric, value in values.items()}
    groups = {name: scores for name, scores in groups.items() if len(scores)}
    plots.histograms(groups, run.figure("scores"), found.threshold)
    figures.insert(0, ("Scores of the held-out examples, which set the threshold, and of the test part.", "scores"))
    if isinstance(test, images.Images):
        figures += draw_hottest(run, detector, test, hottest, findings.heat_level(detector, rule))
    else:
        figures += draw(run, detector, dataset, test, found, None if strange is None else everything)
    curves = {name: [epoch[name] for epoch in history if epoch[name] is not None] for name in ("loss", "seconds")}

    tables.append(strangest(found))
    new = "images/" if dataset.kind == "image" and dataset.scaling.dtype == "uint8" else _steps.new_file(dataset)
    mapped = {"maps": "maps/"} if dataset.kind == "image" else {}
    usage = experiments.command("anomaly", from_=run.folder, input=new, output="anomalies.csv", **mapped)
    summary = (
        f"{found.flagged.sum():,} of {len(test):,} test examples are flagged; {rule}. Trained for {len(history)} "
        f"epochs in {history[-1]['seconds']:.0f} s. All scores are in {run.folder / 'anomalies.csv'}."
    )
    _steps.finish(run, f"Anomalies in {dataset.name}", summary, tables, figures, results, usage, history=curves)


def flagged_rates(flagged: np.ndarray, strange: np.ndarray) -> dict[str, float | None]:
    """The flagged fraction of normal and of strange examples, and the strange fraction of flagged ones.

    A fraction of no examples is None.
    """
    rates = {
        "test/false_alarm_rate": flagged[~strange],
        "test/detection_rate": flagged[strange],
        "test/precision": strange[flagged],
    }
    return {name: float(values.mean()) if len(values) else None for name, values in rates.items()}


def flagged_table(threshold: float | None, flagged: np.ndarray, strange: np.ndarray) -> Table:
    """How many normal and strange examples are flagged, of those that there are."""
    rates = list(flagged_rates(flagged, strange).values())
    parts = zip(("normal", "strange"), (~strange, strange), rates, strict=False)
    rows = [[name, int(part.sum()), int(flagged[part].sum()), rate] for name, part, rate in parts if part.any()]
    caption = "Flagged" if threshold is None else f"Flagged above a score of {threshold:.4g}"
    return report.Table(caption, ["", "test examples", "flagged", "fraction"], rows)


def ranking(strange: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """How well the scores rank strange examples above normal ones, over all thresholds."""
    measures = {"auroc": metrics.roc_auc_score, "average_precision": metrics.average_precision_score}
    return {name: float(measure(strange, scores)) for name, measure in measures.items()}


def baselines_of(x: np.ndarray, parts: Parts, test: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Scores without an autoencoder, of a test part."""
    return baselines(x[np.concatenate([parts.train, parts.held_out])], test, seed=seed)


def by_folds(x: np.ndarray, parts: Parts, config: _flags.Anomaly) -> dict[str, np.ndarray]:
    """Scores without an autoencoder of all rows of a table, by the folds that the detector was scored by."""
    made: dict[str, np.ndarray] = {}

    def keep(rows: np.ndarray, found: dict[str, np.ndarray]) -> None:
        for name, values in found.items():
            made.setdefault(name, np.empty(len(x)))[rows] = values

    for others, part in anomaly.split(len(parts.train), folds_of(config), config.seed):
        keep(parts.train[part], baselines(x[parts.train[others]], x[parts.train[part]], seed=config.seed))
    if len(parts.left_out):
        keep(parts.left_out, baselines(x[parts.train], x[parts.left_out], seed=config.seed))
    return made


def baselines(train: np.ndarray, test: np.ndarray, *, seed: int) -> dict[str, np.ndarray]:
    """Anomaly scores of the same data by methods without an autoencoder."""
    train, test = train.reshape(len(train), -1), test.reshape(len(test), -1)
    made = {}
    if len(train) * test.size < MOST_FOR_NEIGHBOURS:
        nearest = NearestNeighbors(n_neighbors=min(5, len(train)), algorithm="brute").fit(train)
        distances = [nearest.kneighbors(test[i : i + 1000])[0].mean(axis=1) for i in range(0, len(test), 1000)]
        made["5 nearest neighbours"] = np.concatenate(distances)
    made["isolation forest"] = -IsolationForest(random_state=seed).fit(train).score_samples(test)
    return made


def strangest(found: Findings) -> Table:
    """The table of the strangest examples and what made them strange."""
    rows = [
        [
            *(f"{values[i]:g}" if isinstance(values[i], float) else str(values[i]) for values in found.which.values()),
            float(found.scores[i]),
            f"{found.p_values[i]:.2g}",
            "yes" if found.flagged[i] else "no",
            found.because(i),
        ]
        for i in np.argsort(-found.scores, kind="stable")[:SHOWN]
    ]
    return report.Table("The strangest", [*found.which, "score", "p-value", "flagged", "because of"], rows)


def draw_hottest(
    run: Run, detector: Detector, given: images.Images, hottest: list[tuple[int, np.ndarray]], level: float
) -> list[tuple[str, str]]:
    """Draw the hottest places of the strangest images at 100 %; the caption and name."""
    shown, why = [], []
    for i, heat in hottest:
        y, x = np.unravel_index(np.argmax(heat), heat.shape)
        around = [
            int(np.clip(at - CROP // 2, 0, max(0, side - CROP))) for at, side in zip((y, x), heat.shape, strict=True)
        ]
        part = np.ones((CROP, CROP, 3), np.float32)
        piece = plots.drawable(given[i][around[0] : around[0] + CROP, around[1] : around[1] + CROP])
        part[: piece.shape[0], : piece.shape[1]] = piece
        hot = np.zeros((CROP, CROP), np.float32)
        hot[: piece.shape[0], : piece.shape[1]] = heat[around[0] : around[0] + CROP, around[1] : around[1] + CROP]
        shown.append(part)
        why.append(hot)
    crops, heats = np.stack(shown), np.stack(why)
    half = max(1, (len(crops) + 1) // 2)
    marked = plots.marked(crops, heats)
    grid = {"The strangest": crops[:half], "why": marked[:half]}
    if len(crops) == 2 * half:
        grid |= {"The next": crops[half:], "why ": marked[half:]}
    plots.image_grid(grid, run.figure("examples"))
    return [
        ("The hottest places of the strangest test images, at 100 %; what is strange in them is coloured.", "examples")
    ]


def draw(
    run: Run,
    detector: Detector,
    dataset: Dataset,
    x: np.ndarray,
    found: Findings,
    strange: np.ndarray | None,
) -> list[tuple[str, str]]:
    """Draw the strangest and the most normal test examples and what made them so; returns captions and names."""
    order = np.argsort(-found.scores, kind="stable")
    count = min(SHOWN if dataset.kind == "image" else 3, math.ceil(len(x) / 2))
    ends = x[np.concatenate([order[:count], order[::-1][:count]])]
    rebuilt = detector.reconstruct(ends)
    if dataset.kind == "image":
        why = plots.marked(plots.drawable(ends), tiles.heat_of(detector, ends))
        rows = [*(np.broadcast_to(plots.drawable(part), why.shape) for part in (ends, rebuilt)), why]
        grid = dict(zip(("Strangest", "rebuilt", "why"), (row[:count] for row in rows), strict=True))
        grid |= dict(zip(("Most normal", "rebuilt ", "why "), (row[count:] for row in rows), strict=True))
        plots.image_grid(grid, run.figure("examples"))
        return [("Test images over their reconstructions; what counts in them is coloured.", "examples")]
    shown = {"Given: the strangest, then the most normal": ends, "Reconstruction": rebuilt}
    if dataset.kind == "signal":
        shown = {name: _steps.lines(values) for name, values in shown.items()}
    x_label = "feature" if dataset.kind == "tabular" else "moment, the channels one after the other"
    plots.line_grid(shown, run.figure("examples"), x_label=x_label, y_label="scaled")
    examples = ("Test examples over their reconstructions, the strangest first, the most normal last.", "examples")
    if dataset.kind == "tabular":
        picked = {"flagged": order[found.flagged[order]], "not flagged": order[~found.flagged[order]]}
        values = {}
        for name, rows in picked.items():
            if len(rows):
                names, shares = findings.contributions(detector, x[rows[: findings.AT_ONCE]], dataset)
                values[name] = shares.mean(axis=0)
        plots.shares(names, values, run.figure("columns"))
        return [("What rows are strange by: the mean share of each column in their scores.", "columns"), examples]
    line = findings.time_line(detector, x, found, dataset)
    line.write(run.folder / "moments.csv", dataset.framing.rate)
    begins = found.which["begin"] - line.first
    plots.time_line(
        data.overlap_mean(dataset.test, dataset.framing.stride, len(line.score)),
        line.score,
        line.flagged,
        run.figure("time_line"),
        first=line.first,
        rate=dataset.framing.rate,
        channels=dataset.columns,
        threshold=found.threshold,
        strange=None if strange is None else findings.covered(begins[strange], dataset.framing.window, len(line.score)),
    )
    return [("The test part: the signal, and the score of each moment's windows.", "time_line"), examples]
