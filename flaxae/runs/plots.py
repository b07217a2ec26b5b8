"""Figures of codes (curves over sizes, maps, activity) and of anomalies. Drawn like those of `flaxae.runs.report`."""

import itertools
import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from flaxae.runs import report

_GREY = "#8a8a8a"


def lines(
    x: Sequence[float | int],
    series: Mapping[str, Sequence[float]],
    path: str | os.PathLike,
    *,
    x_label: str,
    y_label: str,
    deviations: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Draws values from 0 on over sizes, a line each, the sizes on a logarithmic axis if they are above 0, as a PNG."""
    with report.figure_style():
        figure = report.new_figure(8.0, 5.0)
        axes = figure.add_subplot()
        for colour, (name, values) in zip(itertools.cycle(report.COLOURS), series.items(), strict=False):
            spread = None if deviations is None else deviations[name]
            axes.errorbar(x, values, spread, fmt="o-", color=colour, label=name, capsize=3)
        axes.set(xscale="log" if min(x) > 0 else "linear", xlabel=x_label, ylabel=y_label)
        axes.set_ylim(bottom=0)
        axes.set_xticks(list(x), [f"{value:g}" for value in x])
        axes.minorticks_off()
        axes.legend()
        report.save_figure(figure, path)


def maps(
    panels: Mapping[str, Float[np.ndarray, "examples dimensions"]],
    path: str | os.PathLike,
    *,
    labels: Int[np.ndarray, " examples"] | None = None,
    classes: Sequence[str] | None = None,
) -> None:
    """Draws 2-D or 3-D points, a panel each, coloured by class where there are labels, as a PNG."""
    import matplotlib

    names = [""] if labels is None else list(classes or map(str, range(int(labels.max()) + 1)))
    groups = np.zeros(len(next(iter(panels.values()))), int) if labels is None else labels
    colours = matplotlib.colormaps["tab10" if len(names) <= 10 else "tab20"]
    size = float(np.clip(6000 / len(groups), 3, 30))
    with report.figure_style():
        figure = report.new_figure(6.5 * len(panels), 6.5)
        for column, (title, points) in enumerate(panels.items(), 1):
            flat = points.shape[1] < 3
            axes = figure.add_subplot(1, len(panels), column, **({} if flat else {"projection": "3d"}))
            for group, name in enumerate(names):
                axes.scatter(*points[groups == group].T, s=size, linewidths=0, color=colours(group % 20), label=name)
            axes.set_title(title)
            axes.grid(not flat)
        if labels is not None and len(names) <= 20:
            axes.legend(markerscale=4, loc="center left", bbox_to_anchor=(1.0, 0.5))
        report.save_figure(figure, path)


def bars(values: Float[np.ndarray, " n"], path: str | os.PathLike, *, x_label: str, y_label: str) -> None:
    """Draws non-negative values in descending order, a bar each, as a PNG."""
    with report.figure_style():
        figure = report.new_figure(8.0, 3.5)
        axes = figure.add_subplot()
        axes.bar(np.arange(1, len(values) + 1), np.sort(values)[::-1], width=1.0, color=report.COLOURS[0])
        axes.set(xlabel=x_label, ylabel=y_label)
        report.save_figure(figure, path)


def histograms(
    groups: Mapping[str, Float[np.ndarray, " n"]], path: str | os.PathLike, threshold: float | None = None
) -> None:
    """Draws which fraction of each group has which score, and the threshold, as a PNG.

    What lies far out counts into the outermost bars, so that one extreme score doesn't squeeze the rest.
    """
    every = np.concatenate(list(groups.values()))
    low, high = np.quantile(every, [0.001, 0.995])
    if threshold is not None:
        low, high = min(low, threshold), max(high, threshold)
    margin = 0.05 * (high - low) or 1.0
    bins = np.linspace(low - margin, high + margin, int(np.clip(2 * math.sqrt(len(every)), 15, 60)))
    with report.figure_style():
        figure = report.new_figure(9.0, 4.2)
        axes = figure.add_subplot()
        for colour, (name, values) in zip((_GREY, *report.COLOURS), groups.items(), strict=False):
            height = np.histogram(np.clip(values, bins[0], bins[-1]), bins)[0] / len(values)
            axes.stairs(height, bins, fill=True, color=colour, alpha=0.35)
            axes.stairs(height, bins, color=colour, linewidth=1.4, label=f"{name} ({len(values):,})")
        if threshold is not None:
            axes.axvline(threshold, color="#1a1a1a", linewidth=1.2, linestyle="--", label=f"threshold {threshold:.3g}")
        axes.set(xlabel="score (higher is stranger)", ylabel="fraction of its group")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_axisbelow(True)
        axes.set_ylim(bottom=0)
        axes.legend()
        report.save_figure(figure, path)


def detection(
    strange: Bool[np.ndarray, " examples"],
    scores: Mapping[str, Float[np.ndarray, " examples"]],
    path: str | os.PathLike,
) -> None:
    """Draws the receiver operating characteristic and precision over recall, a line a score, as a PNG."""
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

    with report.figure_style():
        figure = report.new_figure(11.0, 5.0)
        left, right = figure.subplots(1, 2)
        for colour, (name, values) in zip(report.COLOURS, scores.items(), strict=False):
            false, found, _ = roc_curve(strange, values)
            left.plot(false, found, color=colour, label=f"{name}: {roc_auc_score(strange, values):.4f}")
            precision, recall, _ = precision_recall_curve(strange, values)
            right.plot(recall, precision, color=colour, label=f"{name}: {average_precision_score(strange, values):.4f}")
        left.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle="--")
        right.axhline(strange.mean(), color=_GREY, linewidth=1, linestyle="--")
        left.set(xlabel="normal examples flagged", ylabel="anomalies found", title="ROC, and the area under it")
        right.set(xlabel="anomalies found", ylabel="flagged that are anomalies", title="Precision–recall, and its mean")
        for axes in (left, right):
            axes.set(xlim=(-0.01, 1.01), ylim=(-0.02, 1.02))
            axes.legend(loc="lower right" if axes is left else "lower left")
        figure.set_layout_engine("constrained")
        report.save_figure(figure, path)


def shares(
    names: Sequence[str], values: Mapping[str, Float[np.ndarray, " names"]], path: str | os.PathLike, most: int = 20
) -> None:
    """Draws fractions as bars, a row a name, the largest of the first group on top, as a PNG."""
    order = np.argsort(-next(iter(values.values())), kind="stable")[:most]
    height = 0.8 / len(values)
    with report.figure_style():
        figure = report.new_figure(8.0, 1.2 + 0.42 * len(order))
        axes = figure.add_subplot()
        for i, (colour, (label, fractions)) in enumerate(zip(report.COLOURS[1::-1], values.items(), strict=False)):
            axes.barh(np.arange(len(order)) + i * height, fractions[order], height, color=colour, label=label)
        axes.set_yticks(np.arange(len(order)) + 0.5 * height * (len(values) - 1), [names[i] for i in order])
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.set_axisbelow(True)
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
        axes.xaxis.get_major_locator().set_params(steps=[1, 2, 5, 10])
        axes.set_xlabel("share of the score")
        axes.legend(loc="lower right")
        report.save_figure(figure, path)


def time_line(
    signal: Float[np.ndarray, " time channels"],
    score: Float[np.ndarray, " time"],
    flagged: Bool[np.ndarray, " time"],
    path: str | os.PathLike,
    *,
    first: int = 0,
    rate: int | None = None,
    channels: Sequence[str] | None = None,
    threshold: float | None = None,
    strange: Bool[np.ndarray, " time"] | None = None,
) -> None:
    """Draws a signal over its scores, flagged stretches shaded, labelled ones underlined, as a PNG.

    Args:
        first: the number of the first moment.
        rate: moments a second; without one, the axis counts moments.
    """
    x = (first + np.arange(len(signal))) / (rate or 1)
    with report.figure_style():
        figure = report.new_figure(11.0, 5.4)
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        for i, values in enumerate(signal.T[:5]):
            name = channels[i] if channels else f"channel {i}"
            top.plot(x, values, color=report.COLOURS[i], linewidth=0.8, label=name if signal.shape[1] > 1 else None)
        bottom.plot(x, score, color=report.COLOURS[0], linewidth=1.2)
        if threshold is not None:
            bottom.axhline(threshold, color="#1a1a1a", linewidth=1, linestyle="--", label="threshold")
        for axes in (top, bottom):
            for number, (start, stop) in enumerate(stretches(flagged)):
                label = "flagged" if number == 0 else None
                axes.axvspan(x[start], x[stop - 1], color=report.COLOURS[1], alpha=0.22, linewidth=0, label=label)
        for number, (start, stop) in enumerate(stretches(np.zeros_like(flagged) if strange is None else strange)):
            label = "labelled strange" if number == 0 else None
            top.plot(
                x[[start, stop - 1]], [0.02, 0.02], transform=top.get_xaxis_transform(), color="#1a1a1a", linewidth=4,
                solid_capstyle="butt", label=label,
            )  # fmt: skip
        top.set_ylabel("signal")
        bottom.set(ylabel="score", xlabel="moment" if rate is None else "seconds", xlim=(x[0], x[-1]))
        for axes in (top, bottom):
            if axes.get_legend_handles_labels()[0]:
                axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        figure.set_layout_engine("constrained")
        report.save_figure(figure, path)


def stretches(mask: Bool[np.ndarray, " n"]) -> list[tuple[int, int]]:
    """Where runs of True begin, and where each has ended."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def marked(
    images: Float[np.ndarray, "n height width channels"], weights: Float[np.ndarray, "n height width"]
) -> Float[np.ndarray, "n height width 3"]:
    """Images faded to grey, their pixels the redder the larger the weight, each image's largest being full."""
    from matplotlib import colormaps

    grey = np.clip(images, 0, 1).mean(axis=-1, keepdims=True)
    strength = weights / np.maximum(weights.max(axis=(1, 2), keepdims=True), 1e-12)
    heat = colormaps["inferno"](0.15 + 0.75 * strength)[..., :3]
    opacity = 0.85 * np.sqrt(strength)[..., None]
    return ((1 - opacity) * 0.6 * grey + opacity * heat).astype(np.float32)
