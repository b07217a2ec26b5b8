"""A run's figures, as PNG: examples, losses, codes (curves over sizes, maps, activity) and anomalies.

Every figure is drawn on a `Figure` of its own, without pyplot, so that there is no global state and no display.
"""

import contextlib
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from flaxae import atomic
from flaxae.errors import DataError

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

_INK, _GREY, _DARK_GREY = "#1a1a1a", "#b4b4b4", "#8a8a8a"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")  # Okabe & Ito: distinct with any colour vision
_DPI = 150
_STYLE: dict[Any, Any] = {
    "axes.edgecolor": _DARK_GREY,
    "axes.grid": True,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 13,
    "font.family": "DejaVu Sans",
    "font.size": 12,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "text.color": _INK,
    "text.parse_math": False,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
}


def image_grid(
    rows: Mapping[str, Float[Array | np.ndarray, "n height width channels"]],
    path: str | os.PathLike[str],
    title: str | None = None,
) -> None:
    """Draws labelled rows of images, such as Clean, Noisy and Denoised, one example per column, as a PNG.

    Images are [n, height, width, channels], black at 0 and white at 1; values outside are clipped. With an even number
    of up to 4 channels the last is alpha, over white; of more than 4, three are shown as RGB, the first, the middle and
    the last. Pixels are enlarged by a whole factor and never smoothed.
    Raises DataError if rows differ in shape or are empty.
    """
    shape = _common_shape(rows)
    if len(shape) != 4:
        raise DataError(f"Images of shape {shape}: give [n, height, width, channels].")
    n, height, width, _ = shape
    gap = max(1, round(width / 14))
    canvas = np.ones((len(rows) * (height + gap) - gap, n * (width + gap) - gap, 3), np.float32)
    for row, images in enumerate(rows.values()):
        for column, image in enumerate(np.asarray(images)):
            top, left = row * (height + gap), column * (width + gap)
            canvas[top : top + height, left : left + width] = drawable(image)
    scale = max(1, min(1550 // canvas.shape[1], 160 // width))
    figure = new_figure(canvas.shape[1] * scale / _DPI, canvas.shape[0] * scale / _DPI)
    with figure_style():
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(canvas, interpolation="nearest")
        axes.set_yticks([row * (height + gap) + height / 2 for row in range(len(rows))], list(rows))
        axes.tick_params(length=0, labelcolor=_INK)
        axes.set_xticks([])
        axes.spines[:].set_visible(False)
        axes.grid(False)
        if title:
            axes.set_title(title)
        save_figure(figure, path)


def drawable(image: Float[np.ndarray, "*n height width channels"]) -> Float[np.ndarray, "*n height width shown"]:
    """Images of any number of channels as grey or RGB within [0, 1], see `image_grid`."""
    image, channels = np.clip(image, 0, 1), image.shape[-1]
    if channels in (2, 4):
        alpha = image[..., -1:]
        return image[..., :-1] * alpha + 1 - alpha
    return image if channels <= 3 else image[..., [0, channels // 2, channels - 1]]


def line_grid(
    rows: Mapping[str, Float[Array | np.ndarray, "n features"]],
    path: str | os.PathLike[str],
    title: str | None = None,
    x_label: str = "feature",
    y_label: str = "value",
) -> None:
    """Draws labelled rows of signals or table rows, one example per column, as a PNG.

    The counterpart of `image_grid` for vectors, [n, features]. All panels share their axes, and the first
    row (the clean examples) is drawn again in grey behind each of the others.
    Raises DataError if rows differ in shape or are empty.
    """
    shape = _common_shape(rows)
    if len(shape) != 2:
        raise DataError(f"Signals of shape {shape}: give [n, features].")
    n, features = shape
    positions = np.arange(features)
    with figure_style():
        figure = new_figure(max(6.0, 3.2 * n), 0.6 + 1.5 * len(rows))
        panels = figure.subplots(len(rows), n, sharex=True, sharey=True, squeeze=False)
        reference = np.asarray(next(iter(rows.values())))
        for row, (name, vectors) in enumerate(rows.items()):
            for column, vector in enumerate(np.asarray(vectors)):
                axes = panels[row, column]
                if row:
                    axes.plot(positions, reference[column], color=_GREY, linewidth=2.6)
                axes.plot(
                    positions,
                    vector,
                    color=COLOURS[(row - 1) % len(COLOURS)] if row else _INK,
                    linewidth=1.2,
                )
                axes.margins(x=0.01)
            panels[row, 0].set_title(name)
        if title:
            figure.suptitle(title, x=0.01, ha="left")
        figure.supxlabel(x_label, fontsize="medium")
        figure.supylabel(y_label, fontsize="medium")
        figure.set_layout_engine("constrained")
        save_figure(figure, path)


def curves(
    history: Mapping[str, Sequence[float]],
    path: str | os.PathLike[str],
    title: str | None = None,
    unit: str = "nats per example",
) -> None:
    """Draws the metrics of the training against the epoch, counted from 1, as a PNG.

    `val_x` shares a panel with `x`; every other name has its own. The smallest `val_loss` is marked, and
    `seconds` (of training so far) is written beside the axis. `unit` is that of the loss. Positive values that
    span more than a factor of 20 get a logarithmic scale. Raises DataError if there is nothing to draw.
    """
    from matplotlib.ticker import MaxNLocator

    series = {name: np.asarray(values, float) for name, values in history.items() if name != "seconds"}
    if not any(np.isfinite(values).any() for values in series.values()):
        raise DataError("A training history without a finite value: give one or more epochs, such as loss=[0.3, 0.2].")
    names = list(dict.fromkeys(name.removeprefix("val_") for name in series))
    with figure_style():
        heights = [3.2 if name == "loss" else 1.8 for name in names]
        figure = new_figure(10.0, 0.6 + sum(heights))
        panels = figure.subplots(len(names), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for axes, name in zip(panels, names, strict=True):
            drawn = {
                label: series[key]
                for label, key in (("training", name), ("validation", f"val_{name}"))
                if key in series
            }
            for label, values in drawn.items():
                colour = COLOURS[label == "validation"]
                axes.plot(np.arange(1, len(values) + 1), values, "o-", markersize=3, color=colour, label=label)
            every = np.concatenate(list(drawn.values()))
            every = every[np.isfinite(every)]
            if every.size and every.min() > 0 and every.max() > 20 * every.min():
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter("{x:g}")
            if name == "loss" and np.isfinite(drawn.get("validation", np.nan)).any():
                _mark_smallest(axes, drawn["validation"])
            if "validation" in drawn:
                axes.legend(loc="best")
            axes.set_ylabel(f"{name} ({unit})" if name == "loss" else name.replace("_", " "))
        if title:
            panels[0].set_title(title)
        seconds = history.get("seconds")
        panels[-1].set_xlabel(f"epoch ({seconds[-1]:.3g} s of training in all)" if seconds else "epoch")
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        figure.set_layout_engine("constrained")
        save_figure(figure, path)


def lines(
    x: Sequence[float | int],
    series: Mapping[str, Sequence[float]],
    path: str | os.PathLike[str],
    *,
    x_label: str,
    y_label: str,
    deviations: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Draws one line of values per name over sizes, as a PNG. The axis of sizes is logarithmic if all are above 0."""
    with figure_style():
        figure = new_figure(8.0, 5.0)
        axes = figure.add_subplot()
        for colour, (name, values) in zip(itertools.cycle(COLOURS), series.items(), strict=False):
            spread = None if deviations is None else deviations[name]
            axes.errorbar(x, values, spread, fmt="o-", color=colour, label=name, capsize=3)
        axes.set(xscale="log" if min(x) > 0 else "linear", xlabel=x_label, ylabel=y_label)
        axes.set_ylim(bottom=0)
        axes.set_xticks(list(x), [f"{value:g}" for value in x])
        axes.minorticks_off()
        axes.legend()
        save_figure(figure, path)


def rate_distortion(codecs: Mapping[str, Sequence[tuple[float, float, float]]], path: str | os.PathLike[str]) -> None:
    """Draws a line for each codec: PSNR, and MS-SSIM, over bits a pixel, as a PNG.

    Args:
        codecs: for each its points, (bits a pixel, PSNR in dB, MS-SSIM or NaN).
    """
    with figure_style():
        figure = new_figure(13.0, 5.5)
        for panel, (axes, label) in enumerate(
            zip(figure.subplots(1, 2), ("PSNR (dB)", "MS-SSIM (dB, −10 log10(1 − it))"), strict=True)
        ):
            for colour, (name, points) in zip(itertools.cycle(COLOURS), codecs.items(), strict=False):
                bits, ratio, similarity = np.array(points).T
                decibels = -10 * np.log10(np.maximum(1 - similarity, 1e-6))
                axes.plot(bits, decibels if panel else ratio, "o-", color=colour, label=name)
            axes.set(xlabel="bits a pixel", ylabel=label)
            axes.set_xlim(0, 1.15 * max(point[0] for point in next(iter(codecs.values()))))
        figure.axes[0].legend()
        figure.set_layout_engine("constrained")
        save_figure(figure, path)


def maps(
    panels: Mapping[str, Float[np.ndarray, "examples dimensions"]],
    path: str | os.PathLike[str],
    *,
    labels: Int[np.ndarray, " examples"] | None = None,
    classes: Sequence[str] | None = None,
) -> None:
    """Draws 2-D or 3-D points, one panel per set, coloured by class if there are labels, as a PNG."""
    import matplotlib

    names = [""] if labels is None else list(classes or map(str, range(int(labels.max()) + 1)))
    groups = np.zeros(len(next(iter(panels.values()))), int) if labels is None else labels
    colours = matplotlib.colormaps["tab10" if len(names) <= 10 else "tab20"]
    size = float(np.clip(6000 / len(groups), 3, 30))
    with figure_style():
        figure = new_figure(6.5 * len(panels), 6.5)
        for column, (title, points) in enumerate(panels.items(), 1):
            flat = points.shape[1] < 3
            axes = figure.add_subplot(1, len(panels), column, **({} if flat else {"projection": "3d"}))
            for group, name in enumerate(names):
                axes.scatter(*points[groups == group].T, s=size, linewidths=0, color=colours(group % 20), label=name)
            axes.set_title(title)
            axes.grid(not flat)
        if labels is not None and len(names) <= 20:
            figure.axes[-1].legend(markerscale=4, loc="center left", bbox_to_anchor=(1.0, 0.5))
        save_figure(figure, path)


def bars(values: Float[np.ndarray, " n"], path: str | os.PathLike[str], *, x_label: str, y_label: str) -> None:
    """Draws non-negative values in descending order, one bar each, as a PNG."""
    with figure_style():
        figure = new_figure(8.0, 3.5)
        axes = figure.add_subplot()
        axes.bar(np.arange(1, len(values) + 1), np.sort(values)[::-1], width=1.0, color=COLOURS[0])
        axes.set(xlabel=x_label, ylabel=y_label)
        save_figure(figure, path)


def histograms(
    groups: Mapping[str, Float[np.ndarray, " n"]], path: str | os.PathLike[str], threshold: float | None = None
) -> None:
    """Draws a histogram of each group's scores, as fractions of the group, and the threshold, as a PNG.

    Extreme scores are counted in the outermost bars, so that a single one doesn't squeeze the rest.
    """
    every = np.concatenate(list(groups.values()))
    low, high = np.quantile(every, [0.001, 0.995])
    if threshold is not None:
        low, high = min(low, threshold), max(high, threshold)
    margin = 0.05 * (high - low) or 1.0
    bins = np.linspace(low - margin, high + margin, int(np.clip(2 * math.sqrt(len(every)), 15, 60)))
    with figure_style():
        figure = new_figure(9.0, 4.2)
        axes = figure.add_subplot()
        for colour, (name, values) in zip((_DARK_GREY, *COLOURS), groups.items(), strict=False):
            height = np.histogram(np.clip(values, bins[0], bins[-1]), bins)[0] / len(values)
            axes.stairs(height, bins, fill=True, color=colour, alpha=0.35)
            axes.stairs(height, bins, color=colour, linewidth=1.4, label=f"{name} ({len(values):,})")
        if threshold is not None:
            axes.axvline(threshold, color=_INK, linewidth=1.2, linestyle="--", label=f"threshold {threshold:.3g}")
        axes.set(xlabel="score (higher is stranger)", ylabel="fraction of its group")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_axisbelow(True)
        axes.set_ylim(bottom=0)
        axes.legend()
        save_figure(figure, path)


def detection(
    strange: Bool[np.ndarray, " examples"],
    scores: Mapping[str, Float[np.ndarray, " examples"]],
    path: str | os.PathLike[str],
) -> None:
    """Draws the receiver operating characteristic and precision over recall, one line per score, as a PNG."""
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

    with figure_style():
        figure = new_figure(11.0, 5.0)
        left, right = figure.subplots(1, 2)
        for colour, (name, values) in zip(COLOURS, scores.items(), strict=False):
            false, found, _ = roc_curve(strange, values)
            left.plot(false, found, color=colour, label=f"{name}: {roc_auc_score(strange, values):.4f}")
            precision, recall, _ = precision_recall_curve(strange, values)
            right.plot(recall, precision, color=colour, label=f"{name}: {average_precision_score(strange, values):.4f}")
        left.plot([0, 1], [0, 1], color=_DARK_GREY, linewidth=1, linestyle="--")
        right.axhline(strange.mean(), color=_DARK_GREY, linewidth=1, linestyle="--")
        left.set(xlabel="normal examples flagged", ylabel="anomalies found", title="ROC, and the area under it")
        right.set(xlabel="anomalies found", ylabel="flagged that are anomalies", title="Precision–recall, and its mean")
        for axes in (left, right):
            axes.set(xlim=(-0.01, 1.01), ylim=(-0.02, 1.02))
            axes.legend(loc="lower right" if axes is left else "lower left")
        figure.set_layout_engine("constrained")
        save_figure(figure, path)


def shares(
    names: Sequence[str],
    values: Mapping[str, Float[np.ndarray, " names"]],
    path: str | os.PathLike[str],
    most: int = 20,
) -> None:
    """Draws fractions as bars, one row per name, the largest of the first group on top, as a PNG."""
    order = np.argsort(-next(iter(values.values())), kind="stable")[:most]
    height = 0.8 / len(values)
    with figure_style():
        figure = new_figure(8.0, 1.2 + 0.42 * len(order))
        axes = figure.add_subplot()
        for i, (colour, (label, fractions)) in enumerate(zip(COLOURS[1::-1], values.items(), strict=False)):
            axes.barh(np.arange(len(order)) + i * height, fractions[order], height, color=colour, label=label)
        axes.set_yticks(np.arange(len(order)) + 0.5 * height * (len(values) - 1), [names[int(i)] for i in order])
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.set_axisbelow(True)
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
        axes.locator_params("x", steps=[1, 2, 5, 10])
        axes.set_xlabel("share of the score")
        axes.legend(loc="lower right")
        save_figure(figure, path)


def spectrograms(
    levels: Mapping[str, Float[np.ndarray, "frames bins"]], path: str | os.PathLike[str], *, rate: int
) -> None:
    """Draws short-time spectra under each other, in dB, of frames that overlap by three quarters, as a PNG.

    Args:
        levels: in dB, by name; the frequencies of a frame rise evenly to half of `rate`.
        rate: samples a second.
    """
    with figure_style():
        figure = new_figure(11.0, 2.4 * len(levels))
        axes = figure.subplots(len(levels), 1, sharex=True, squeeze=False)[:, 0]
        top = max(float(values.max()) for values in levels.values())
        for ax, (name, values) in zip(axes, levels.items(), strict=True):
            seconds = len(values) * (values.shape[1] - 1) / 2 / rate  # from one frame to the next half as many as bins
            ax.imshow(
                values.T, origin="lower", aspect="auto", extent=(0, seconds, 0, rate / 2000), vmin=top - 70, vmax=top,
                cmap="magma",
            )  # fmt: skip
            ax.set(title=name, ylabel="kHz")
            ax.grid(visible=False)
        axes[-1].set_xlabel("seconds")
        figure.set_layout_engine("constrained")
        save_figure(figure, path)


def time_line(
    signal: Float[np.ndarray, " time channels"],
    score: Float[np.ndarray, " time"],
    flagged: Bool[np.ndarray, " time"],
    path: str | os.PathLike[str],
    *,
    first: int = 0,
    rate: int | None = None,
    channels: Sequence[str] | None = None,
    threshold: float | None = None,
    strange: Bool[np.ndarray, " time"] | None = None,
    times: Shaped[np.ndarray, " time"] | None = None,
) -> None:
    """Draws a signal over its scores, flagged stretches shaded, labelled ones underlined, as a PNG.

    Args:
        first: the number of the first moment.
        rate: moments a second; without one, the axis counts moments.
        times: of the moments, dates or numbers, which the axis then shows instead.
    """
    x = (first + np.arange(len(signal))) / (rate or 1) if times is None else times
    with figure_style():
        figure = new_figure(11.0, 5.4)
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        for i, values in enumerate(signal.T[:5]):
            name = channels[i] if channels else f"channel {i}"
            top.plot(x, values, color=COLOURS[i], linewidth=0.8, label=name if signal.shape[1] > 1 else None)
        bottom.plot(x, score, color=COLOURS[0], linewidth=1.2)
        if threshold is not None:
            bottom.axhline(threshold, color=_INK, linewidth=1, linestyle="--", label="threshold")
        for axes in (top, bottom):
            for number, (start, stop) in enumerate(stretches(flagged)):
                label = "flagged" if number == 0 else None
                axes.axvspan(x[start], x[stop - 1], color=COLOURS[1], alpha=0.22, linewidth=0, label=label)
        for number, (start, stop) in enumerate(stretches(np.zeros_like(flagged) if strange is None else strange)):
            label = "labelled strange" if number == 0 else None
            top.plot(
                x[[start, stop - 1]], [0.02, 0.02], transform=top.get_xaxis_transform(), color=_INK, linewidth=4,
                solid_capstyle="butt", label=label,
            )  # fmt: skip
        top.set_ylabel("signal")
        bottom.set(
            ylabel="score",
            xlabel="time" if times is not None else "moment" if rate is None else "seconds",
            xlim=(x[0], x[-1]),
        )
        for axes in (top, bottom):
            if axes.get_legend_handles_labels()[0]:
                axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        figure.set_layout_engine("constrained")
        save_figure(figure, path)


def stretches(mask: Bool[np.ndarray, " n"]) -> list[tuple[int, int]]:
    """The stretches of True as (start, stop)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def marked(
    images: Float[np.ndarray, "n height width channels"], weights: Float[np.ndarray, "n height width"]
) -> Float[np.ndarray, "n height width 3"]:
    """Images faded to grey, with pixels redder for larger weights, relative to the largest weight of each image."""
    from matplotlib import colormaps

    grey = np.clip(images, 0, 1).mean(axis=-1, keepdims=True)
    strength = weights / np.maximum(weights.max(axis=(1, 2), keepdims=True), 1e-12)
    heat = colormaps["inferno"](0.15 + 0.75 * strength)[..., :3]
    opacity = 0.85 * np.sqrt(strength)[..., None]
    return ((1 - opacity) * 0.6 * grey + opacity * heat).astype(np.float32)


def _common_shape(rows: Mapping[str, Array | np.ndarray]) -> tuple[int, ...]:
    shapes = {name: tuple(np.shape(examples)) for name, examples in rows.items()}
    if len(set(shapes.values())) != 1 or 0 in next(iter(shapes.values())):
        raise DataError(f"Rows of shapes {shapes}: give one or more non-empty rows of the same shape.")
    return next(iter(shapes.values()))


def figure_style() -> contextlib.AbstractContextManager[None]:
    """A context in which figures are drawn in the style of the run's page."""
    import matplotlib

    return matplotlib.rc_context(_STYLE)


def new_figure(width: float, height: float) -> "matplotlib.figure.Figure":
    """An empty figure of that size, in inches, outside pyplot's global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI)


def _mark_smallest(axes: "matplotlib.axes.Axes", values: Float[np.ndarray, " epochs"]) -> None:
    index = int(np.argmin(np.where(np.isfinite(values), values, np.inf)))
    axes.axvline(index + 1, color=_GREY, linewidth=1, linestyle="--", zorder=0)
    axes.plot(
        index + 1,
        values[index],
        "o",
        markersize=9,
        markerfacecolor="none",
        markeredgecolor=_INK,
        label=f"best: {values[index]:.4g} at epoch {index + 1}",
    )


def save_figure(figure: "matplotlib.figure.Figure", path: str | os.PathLike[str]) -> None:
    """Write a figure as a PNG, whole or not at all."""
    with atomic.replacing(path) as unfinished:
        figure.savefig(unfinished, format="png", bbox_inches="tight", pad_inches=0.1)
