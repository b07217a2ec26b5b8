"""What a run leaves to look at: PNG figures, and one page that holds everything.

The page is a single file without scripts, so that it can be attached to a mail and still be read years
later. Every figure is drawn on a `Figure` of its own, without pyplot: nothing global, no display.
"""

import base64
import dataclasses
import html
import io
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from numbers import Integral, Real
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Float

from flaxae.errors import DataError

_INK, _GREY = "#1a1a1a", "#b4b4b4"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")  # Okabe & Ito: distinct to all eyes
_DPI = 150
_STYLE = {
    "axes.edgecolor": "#8a8a8a",
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
    path: str | os.PathLike,
    title: str | None = None,
) -> None:
    """Draws labelled rows of images, such as Clean, Noisy and Denoised, one example a column, as a PNG.

    Images are [n, height, width, channels], grey (1 channel) or RGB (3), black at 0 and white at 1; values
    outside are clipped. Pixels are enlarged by a whole factor and never smoothed.
    Raises DataError if rows differ in shape, are empty, or have another number of channels.
    """
    shape = _common_shape(rows)
    if len(shape) != 4 or shape[-1] not in (1, 3):
        raise DataError(f"Images of shape {shape}: give [n, height, width, channels] with 1 or 3 channels.")
    n, height, width, _ = shape
    gap = max(1, round(width / 14))
    canvas = np.ones((len(rows) * (height + gap) - gap, n * (width + gap) - gap, 3), np.float32)
    for row, images in enumerate(rows.values()):
        for column, image in enumerate(np.asarray(images)):
            top, left = row * (height + gap), column * (width + gap)
            canvas[top : top + height, left : left + width] = np.clip(image, 0, 1)
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


def line_grid(
    rows: Mapping[str, Float[Array | np.ndarray, "n features"]],
    path: str | os.PathLike,
    title: str | None = None,
    x_label: str = "feature",
    y_label: str = "value",
) -> None:
    """Draws labelled rows of signals or table rows, one example a column, as a PNG.

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
    path: str | os.PathLike,
    title: str | None = None,
    unit: str = "nats per example",
) -> None:
    """Draws what training recorded each epoch against the epoch, counted from 1, as a PNG.

    `val_x` shares a panel with `x`; every other name has its own. The smallest `val_loss` is marked, and
    `seconds` (of training so far) is told beside the axis. `unit` is the loss's. Positive values that span
    more than a factor of 20 get a logarithmic scale. Raises DataError if there is nothing to draw.
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


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the page: what it shows, the heads of its columns, and its rows, the first cell a name.

    Heads carry the unit and which way is better, such as "PSNR (dB) ↑". In columns so marked the best
    value is set in bold, whoever reached it. Numbers of a column share their decimals: four significant
    digits for the largest, and at least three for the smallest. None is shown as a dash.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | Real | None]]


def write(
    path: str | os.PathLike,
    *,
    title: str,
    summary: str,
    command: str,
    tables: Sequence[Table],
    figures: Sequence[tuple[str, str | os.PathLike]],
    config: Mapping[str, object],
    usage: str,
    epochs: Sequence[Mapping[str, object]] = (),
) -> None:
    """Writes the page of a run: one HTML file with its figures inside, no scripts, nothing loaded from outside.

    Args:
        path: where to; an older page is replaced in one step, so a reader never meets half of one.
        title, summary: the heading, and the findings in a few sentences; an empty line starts a paragraph.
        command: the command line that ran this.
        tables: the results.
        figures: caption and PNG file of each.
        config: the settings; mappings inside are shown with dotted names.
        usage: Python or shell lines that use the trained model.
        epochs: the lines of metrics.jsonl, for what trained and how fast.

    Versions and devices are added. All text is escaped.
    Raises DataError if a figure can't be read or isn't a PNG, or if a table's rows and columns differ in number.
    """
    paragraphs = "".join(f"<p>{html.escape(text)}</p>" for text in summary.strip().split("\n\n"))
    sections = (
        ("Results", "".join(map(_table_html, tables))),
        ("Figures", "".join(_figure_html(caption, png) for caption, png in figures)),
        ("Use the model", f"<pre>{html.escape(usage.strip())}</pre>"),
        ("Configuration", _pairs_html(_flat(config))),
        ("Training", _pairs_html(_speed(epochs))),
        ("Environment", _pairs_html(_environment())),
    )
    body = "".join(f"<section><h2>{name}</h2>{content}</section>" for name, content in sections if content)
    page = _PAGE.format(
        title=html.escape(title), style=_CSS, summary=paragraphs, command=html.escape(command), body=body
    )
    _write_bytes(path, page.encode(errors="replace"))


def _common_shape(rows: Mapping[str, Array | np.ndarray]) -> tuple[int, ...]:
    shapes = {name: tuple(np.shape(examples)) for name, examples in rows.items()}
    if len(set(shapes.values())) != 1 or 0 in next(iter(shapes.values())):
        raise DataError(f"Rows of shapes {shapes}: give one or more non-empty rows of the same shape.")
    return next(iter(shapes.values()))


def figure_style():
    """A context in which figures are drawn in the style of the page."""
    import matplotlib

    return matplotlib.rc_context(_STYLE)


def new_figure(width: float, height: float):
    """An empty figure of that size, in inches, outside pyplot's global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI)


def _mark_smallest(axes, values: Float[np.ndarray, " epochs"]) -> None:
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


def save_figure(figure, path: str | os.PathLike) -> None:
    """Write a figure as a PNG, whole or not at all."""
    png = io.BytesIO()
    figure.savefig(png, format="png", bbox_inches="tight", pad_inches=0.1)
    _write_bytes(path, png.getvalue())


def _write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """In one step, so that a run that is killed leaves the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _table_html(table: Table) -> str:
    for row in table.rows:
        if len(row) != len(table.columns):
            raise DataError(f"Table {table.caption!r}: {len(row)} cells in a row of {len(table.columns)} columns.")
    columns = zip(*table.rows, strict=True)
    cells = [_column_html(head, values) for head, values in zip(table.columns, columns, strict=False)]
    heads = "".join(f'<th scope="col">{html.escape(head)}</th>' for head in table.columns)
    rows = "".join(f"<tr>{''.join(row)}</tr>" for row in zip(*cells, strict=True))
    caption = html.escape(table.caption)
    return (
        f'<div class="wide"><table class="results"><caption>{caption}</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _column_html(head: str, values: Sequence[str | Real | None]) -> list[str]:
    numbers = [value for value in values if isinstance(value, Real) and math.isfinite(value)]
    better = {"↑": max, "↓": min}.get(head.strip()[-1:])
    best = better(numbers, default=None) if better else None
    decimals = _decimals(numbers)

    def cell(value):
        if value is None:
            return "<td>–</td>"
        if not isinstance(value, Real):
            return f"<td>{html.escape(value)}</td>"
        text = f"{value:,.{decimals}f}".replace("-", "−")
        return f'<td class="number">{f"<strong>{text}</strong>" if value == best else text}</td>'

    return [cell(value) for value in values]


def _decimals(numbers: Sequence[Real]) -> int:
    magnitudes = [math.floor(math.log10(abs(value))) for value in numbers if value]
    if not magnitudes or all(isinstance(value, Integral) for value in numbers):
        return 0
    return min(max(3 - max(magnitudes), 2 - min(magnitudes), 0), 9)


def _figure_html(caption: str, png: str | os.PathLike) -> str:
    try:
        data = Path(png).read_bytes()
    except OSError as error:
        raise DataError(f"Figure {os.fspath(png)!r} can't be read ({error.strerror}): draw it first.") from error
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise DataError(f"Figure {os.fspath(png)!r} isn't a PNG: the page holds only PNG images.")
    width = int.from_bytes(data[16:20]) // 2  # every figure at the same scale, so that their letters agree
    caption = html.escape(caption)
    return (
        f'<figure><div class="wide"><img alt="{caption}" width="{width}" '
        f'src="data:image/png;base64,{base64.b64encode(data).decode()}"></div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _flat(config: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    flat = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = str(value)
    return flat


def _speed(epochs: Sequence[Mapping[str, object]]) -> dict[str, str]:
    """Of the epochs' lines that tell of it: on what they ran, how fast, and how long they waited for data."""
    told = [epoch for epoch in epochs if "samples_per_s_per_device" in epoch]
    if not told:
        return {}
    last, rates = told[-1], [epoch["samples_per_s_per_device"] for epoch in told]
    return {
        "trained on": f"{last['devices']} × {last['device']} in {last['processes']} process(es)",
        "hosts": last["hosts"],
        "samples/s, each device": f"{np.median(rates):,.0f} (median of the epochs, with validation)",
        "waited for data": f"{sum(epoch['waited'] for epoch in told):.1f} s of {last['seconds']:.1f} s",
    }


def _environment() -> dict[str, str]:
    devices = jax.devices()
    return {
        "devices": f"{len(devices)} × {devices[0].device_kind}",
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
        "Python": platform.python_version(),
        **{name: metadata.version(name) for name in ("jax", "flax", "optax", "numpy")},
        "written": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def _pairs_html(pairs: Mapping[str, str]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(value)}</td></tr>'
        for name, value in pairs.items()
    )
    return f'<table class="pairs">{rows}</table>' if rows else ""


_CSS = """
:root { color-scheme: light dark;
  --ink: #1a1a1a; --soft: #5c5c5c; --line: #dcdcdc; --page: #fff; --code: #f5f5f3; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e6; --soft: #a5a5a2; --line: #3c3c3c; --page: #161616; --code: #232323; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 52rem; padding: 2.5rem 1.25rem 4rem; background: var(--page); color: var(--ink);
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 1rem; text-wrap: balance; }
h2 { font-size: 1.2rem; margin: 3rem 0 .75rem; }
p { margin: 0 0 1rem; max-width: 42rem; }
pre { background: var(--code); border-radius: 6px; padding: .8rem 1rem; overflow-x: auto;
  font: .875rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; }
caption { text-align: left; color: var(--soft); padding-bottom: .5rem; }
th, td { padding: .4rem 1.5rem .4rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
.results { width: 100%; margin-bottom: 1.5rem; }
.results th { font-weight: 600; border-bottom: 2px solid var(--ink); white-space: nowrap; }
.results th:not(:first-child), .results td:not(:first-child) { text-align: right; padding: .4rem 0 .4rem 1.5rem; }
.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
.pairs { font-size: .9rem; width: 100%; }
.pairs th { font-weight: 400; color: var(--soft); width: 16rem; }
.pairs td { overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
figure { margin: 0 0 2rem; }
img { display: block; height: auto; max-width: max(100%, 34rem); background: #fff; border-radius: 6px; }
figcaption { color: var(--soft); margin-top: .6rem; max-width: 42rem; }
@media (max-width: 40rem) { .pairs th { width: 9rem; } body { padding-top: 1.5rem; } }
@media print {
  :root { --ink: #000; --soft: #444; --line: #ccc; --page: #fff; --code: #f5f5f3; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  img { max-width: 100%; }
  pre { white-space: pre-wrap; }
  figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; }
}
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<header><h1>{title}</h1>{summary}<pre>{command}</pre></header>
<main>{body}</main>
</body>
</html>
"""
