"""The anomaly experiment on a signal: compare its windows with all of the training part, and lay scores on its time."""

import dataclasses
import time
import warnings

import numpy as np

from flaxae import experiments, runs, trained
from flaxae.anomaly import conformal, series
from flaxae.anomaly.findings import Findings, Rule, TimeLine
from flaxae.anomaly.series import SeriesDetector
from flaxae.data import Dataset, Signal
from flaxae.errors import ConfigError, unknown
from flaxae.experiments import _flags, _steps
from flaxae.printing import say
from flaxae.runs import Run, plots, report

FALSE_ALARMS = 0.01
PLOTTED = 20_000  # moments of a figure; of more, the strangest are shown


def wanted(config: _flags.Anomaly, dataset: Dataset) -> bool:
    """Whether a signal is to be scored by its windows alone: unless an autoencoder, or a score of one, is asked for."""
    return dataset.kind == "signal" and config.model is None and config.score is None and config.latent is None


def train(config: _flags.Anomaly, dataset: Dataset) -> None:
    """Fit and evaluate a detector in a run's folder."""
    framing, (before, later) = dataset.framing, dataset.signals
    normal = _normal(config, dataset)
    if normal is not None and config.normal:
        before = before.where(before.labels == normal)
    data = {"columns": before.columns, "scaling": dataset.scaling.to_dict(), "framing": framing.to_dict()}
    data |= {"source": dataset.name, "kind": "signal", "shape": dataset.shape}
    settings = {"settings": _steps.settings(config), "detector": "series", "data": data}
    with runs.start("anomaly", config.name, settings, resume=config.resume, may_change=_flags_of_rules()) as run:
        began = time.perf_counter()
        scaled = before._replace(values=dataset.scaling(before.values))
        detector = series.fit(
            scaled, window=framing.window, contamination=config.contamination or 0.0, seed=config.seed
        )
        seconds = time.perf_counter() - began
        rule = affordable(config.threshold, config.false_alarms, config.fdr, detector)
        detector.save(run.folder / "detector")
        for line in _about(detector):
            say(line)
        first = 0 if dataset.test_rows is None else int(dataset.test_rows[0])
        evaluate(run, detector, dataset, later, rule, first=first, normal=normal, seconds=seconds)


def _flags_of_rules() -> list[str]:
    return [f"settings/{name}" for name in ("score", "threshold", "false_alarms", "fdr")]


def apply(config: _flags.Anomaly, loaded: trained.TrainedSeries) -> None:
    """Score the signal --input into --output, and its moments beside."""
    if config.threshold == "f1":
        raise ConfigError("--threshold f1 is of a run that has an autoencoder: --score combined.")
    given = {name: getattr(config, name) for name in ("threshold", "false_alarms", "fdr")}
    if not any(given.values()):
        saved = runs.open(config.from_).config.get("settings", {})
        given = {name: saved.get(name) for name in given}
    rule = affordable(**given, detector=loaded.detector)
    signal = loaded.read_signal(config.input)
    found, line = series.find(loaded.detector, _scaled(signal, loaded.scaling), loaded.framing, rule)
    found.write(config.output)
    line.write(config.output.with_stem(f"{config.output.stem}_moments"), loaded.framing.rate)
    _steps.print_table(_strangest(found))
    for text in _about(loaded.detector, found.scores):
        say(text)
    say(f"{_flagged(found, line)}; {promise(rule, loaded.detector, found.scores)}. Scores: {config.output}.")


def affordable(threshold: str | None, false_alarms: float | None, fdr: float | None, detector: SeriesDetector) -> Rule:
    """The rule of the flags; if they give no rate, 1 %, or the smallest that so many windows can promise."""
    if threshold == "f1":
        raise ConfigError("--threshold f1 takes labels and an autoencoder's scores: add --score combined.")
    if fdr is not None:
        return Rule("fdr", fdr)
    rule = Rule(threshold or "conformal", false_alarms or FALSE_ALARMS)
    least = 1 / (detector.worth + 1)
    if rule.name == "conformal" and false_alarms is None and rule.rate < least:
        warnings.warn(
            f"{detector.worth} training windows without a moment in common can't promise {rule.rate:.0%} of false "
            f"alarms; the threshold is set for the least they can, {least:.1%}.",
            stacklevel=2,
        )
        rule = dataclasses.replace(rule, rate=least)
    if rule.name == "conformal":
        conformal.check_false_alarms(detector.worth, rule.rate)
    return rule


def promise(rule: Rule, detector: SeriesDetector, scores: np.ndarray) -> str:
    """What the rule promises, or that it promises nothing."""
    if rule.name in ("conformal", "fdr") and (
        detector.drifts or detector.left_out or series.differs(detector, scores) is not None
    ):
        return f"the threshold is set for {100 * rule.rate:.3g} %, but no rate of false alarms is promised (see above)"
    return str(rule).replace("normal examples", "normal windows")


def _about(detector: SeriesDetector, scores: np.ndarray | None = None) -> list[str]:
    """What there is to say of the training part, and of what was scored."""
    said = []
    if detector.left_out:
        said.append(
            f"{detector.left_out:,} moments of the training part are like nothing else in it, and left out. Where "
            "others of the kind come they are flagged."
        )
    if all(space.form != "raw" for space in detector.spaces):
        said.append("The level drifts in the training part, so windows are compared without their level.")
    if detector.drifts:
        said.append(
            "The last quarter of the training part is unlike what was before: it drifts, and what comes may be further "
            "off."
        )
    if scores is not None and (beyond := series.differs(detector, scores)) is not None:
        said.append(
            f"{beyond:.0%} of the windows scored are stranger than 95 % of the training part: the later part differs "
            "from the earlier one as a whole. Train on newer data if it is normal."
        )
    return said


def evaluate(
    run: Run,
    detector: SeriesDetector,
    dataset: Dataset,
    signal: Signal,
    rule: Rule,
    *,
    first: int,
    normal: int | None,
    seconds: float,
) -> None:
    """Score the test part: anomalies.csv, moments.csv, the tables, results.json, figures, the report."""
    found, line = series.find(detector, _scaled(signal, dataset.scaling), dataset.framing, rule, first=first)
    results = {
        "train/seconds": seconds,
        "calibration/windows": len(detector.calibration),
        "calibration/worth": detector.worth,
        "test/flagged": int(found.flagged.sum()),
    }
    results |= {} if found.threshold is None else {"threshold": found.threshold}
    tables, strange = [], None
    if normal is not None:
        strange = signal.labels != normal
        window = dataset.framing.window
        begins = found.which["begin"] - first
        windows = np.array([strange[begin : begin + window].any() for begin in begins.tolist()])
        found.which["label"] = windows.astype(int)
        tables, measured = _measured(dataset, found, line, strange, windows)
        results |= measured
    found.write(run.folder / "anomalies.csv")
    line.write(run.folder / "moments.csv", dataset.framing.rate)
    groups = {"training part": detector.calibration, "test": found.scores}
    plots.histograms(groups, run.figure("scores"), found.threshold)
    lo, hi = _shown(line)
    plots.time_line(
        signal.values[lo:hi],
        line.score[lo:hi],
        line.flagged[lo:hi],
        run.figure("time_line"),
        first=first + lo,
        rate=dataset.framing.rate,
        channels=dataset.columns,
        threshold=found.threshold,
        strange=None if strange is None else strange[lo:hi],
        times=None if line.times is None else line.times[lo:hi],
    )
    windows = _examples(detector, dataset, signal, found, first)
    plots.line_grid(
        windows, run.figure("examples"), x_label="moment, the channels one after the other", y_label="scaled"
    )
    part = "The test part" if hi - lo == len(line.score) else "The part of the test part around its strangest moment"
    figures = [
        (f"{part}: the signal, and the score of each moment's windows.", "time_line"),
        ("Scores of the training part's windows, which set the threshold, and of the test part's.", "scores"),
        (
            "Windows over the mean of the nearest training windows, the strangest first, the most normal last.",
            "examples",
        ),
    ]
    tables.append(_strangest(found))
    usage = experiments.command("anomaly", from_=run.folder, input=_steps.new_file(dataset), output="anomalies.csv")
    about = "\n\n".join(_about(detector, found.scores))
    summary = (
        f"{_flagged(found, line)}; {promise(rule, detector, found.scores)}. Windows are of {dataset.framing.window} "
        f"moments, one every {dataset.framing.stride}. All scores are in {run.folder / 'anomalies.csv'}, those of "
        f"moments in {run.folder / 'moments.csv'}.{chr(10) * 2 * bool(about)}{about}"
    )
    _steps.finish(run, f"Anomalies in {dataset.name}", summary, tables, figures, results, usage)


def _normal(config: _flags.Anomaly, dataset: Dataset) -> int | None:
    """The label of normal moments; None without labels. Without --normal it is the most frequent."""
    labels = [part.labels for part in dataset.signals if part.labels is not None]
    if not labels:
        if config.normal is not None:
            raise ConfigError(
                f"--normal is {config.normal!r}, but the data have no labels; name their column by --label."
            )
        return None
    values, counts = np.unique(np.concatenate(labels), return_counts=True)
    if config.normal is None:
        return values[counts.argmax()]
    names = (
        [str(value) for value in values] if dataset.label_names is None else [dataset.label_names[v] for v in values]
    )
    if config.normal not in names:
        raise ConfigError(unknown("--normal", config.normal, names))
    return values[names.index(config.normal)]


def _measured(
    dataset: Dataset, found: Findings, line: TimeLine, strange: np.ndarray, windows: np.ndarray
) -> tuple[list[report.Table], dict[str, float]]:
    """How well moments are ranked, and how many windows are flagged; tables and results."""
    from sklearn import metrics

    tables, results = [], {}
    known = np.isfinite(line.score)
    if 0 < strange[known].sum() < known.sum():
        measures = {"auroc": metrics.roc_auc_score, "average_precision": metrics.average_precision_score}
        values = {name: float(of(strange[known], line.score[known])) for name, of in measures.items()}
        results |= {f"test/{name}": value for name, value in values.items()}
        caption = f"{known.sum():,} test moments, {strange[known].sum():,} of them strange, {dataset.name}"
        columns = ["", report.Column("AUROC", better="higher"), report.Column("average precision", better="higher")]
        tables.append(report.Table(caption, columns, [["flaxae", *values.values()]]))
    rows = []
    for name, part in (("normal", ~windows), ("with a strange moment", windows)):
        flagged = int(found.flagged[part].sum())
        rows.append([name, int(part.sum()), flagged, flagged / part.sum() if part.any() else None])
    for name, row in zip(("false_alarm_rate", "detection_rate"), rows, strict=True):
        results |= {} if row[3] is None else {f"test/{name}": float(row[3])}
    tables.append(report.Table("Flagged", ["", "windows", "flagged", "fraction"], rows))
    return tables, results


def _strangest(found: Findings) -> report.Table:
    """The table of the strangest windows that don't overlap, and what made them so."""
    chosen: list[int] = []
    begins, ends = found.which["begin"], found.which["end"]
    for i in np.argsort(-found.scores, kind="stable")[:2000].tolist():
        if len(chosen) < 10 and all(ends[i] <= begins[j] or begins[i] >= ends[j] for j in chosen):
            chosen.append(i)
    columns = {name: values for name, values in found.which.items() if name != "end_time"}
    rows = [
        [
            *(str(values[i])[:19] if values.dtype.kind == "M" else str(values[i]) for values in columns.values()),
            float(found.scores[i]),
            f"{found.p_values[i]:.2g}",
            "yes" if found.flagged[i] else "no",
            found.because(i),
        ]
        for i in chosen
    ]
    return report.Table("The strangest", [*columns, "score", "p-value", "flagged", "because of"], rows)


def _flagged(found: Findings, line: TimeLine) -> str:
    stretches = len(plots.stretches(line.flagged))
    return (
        f"{found.flagged.sum():,} of {len(found.scores):,} windows are flagged, in {stretches:,} stretches, "
        f"{line.flagged.sum():,} of {len(line.flagged):,} moments"
    )


def _shown(line: TimeLine) -> tuple[int, int]:
    if len(line.score) <= PLOTTED:
        return 0, len(line.score)
    middle = int(np.nanargmax(line.score))
    lo = min(max(0, middle - PLOTTED // 2), len(line.score) - PLOTTED)
    return lo, lo + PLOTTED


def _examples(
    detector: SeriesDetector, dataset: Dataset, signal: Signal, found: Findings, first: int
) -> dict[str, np.ndarray]:
    order = np.argsort(-found.scores, kind="stable")
    count = min(3, (len(order) + 1) // 2)
    begins = (found.which["begin"] - first)[np.concatenate([order[:count], order[::-1][:count]])]
    x = np.stack([dataset.scaling(signal.values[b : b + dataset.framing.window]) for b in begins.tolist()])
    shown = {"Given: the strangest, then the most normal": x, "Mean of the nearest in training": detector.expected(x)}
    return {name: _steps.lines(values) for name, values in shown.items()}


def _scaled(signal: Signal, scaling: "trained.Scaling") -> Signal:
    return signal._replace(values=scaling(signal.values))
