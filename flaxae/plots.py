"""Figures of codes: curves over sizes, maps, activity. Drawn like those of `flaxae.report`."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from flaxae import report


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
        for colour, (name, values) in zip(report.COLOURS, series.items(), strict=False):
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
