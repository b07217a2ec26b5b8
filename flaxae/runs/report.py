"""The page of a run: one file that holds everything.

It loads nothing, so that it can be attached to a mail and still be read years later. Its template is page.html.jinja
and its style page.css, both beside this file. Only a page with a map to explore has a script, explore.js; all else on
it can be read without.
"""

import base64
import dataclasses
import functools
import hashlib
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from flaxae import atomic
from flaxae.errors import ConfigError, DataError
from flaxae.printing import printable
from flaxae.runs.explore import SCRIPT, Explore
from flaxae.runs.plots import curves, image_grid, line_grid

if TYPE_CHECKING:
    import jinja2

__all__ = ["Column", "Explore", "Table", "curves", "image_grid", "line_grid", "printable", "write"]

Value = str | float | Real | None  # the value of a cell; type checkers don't accept a float as a Real
_ARROWS = {"higher": "↑", "lower": "↓"}


@dataclasses.dataclass(frozen=True)
class Column:
    """The head of a table's column with its unit, such as "PSNR (dB)", and whether higher or lower values are better.

    Raises:
        ConfigError: `better` is something else.
    """

    name: str
    better: Literal["higher", "lower"] | None = None

    def __post_init__(self) -> None:
        if self.better not in (*_ARROWS, None):
            raise ConfigError(
                f"The column {self.name!r} is better {self.better!r}; expected 'higher', 'lower' or None."
            )

    @property
    def head(self) -> str:
        """The text above the column: its name, and an arrow if higher or lower values are better."""
        return self.name if self.better is None else f"{self.name} {_ARROWS[self.better]}"


class Cell(NamedTuple):
    """A cell as the page shows it."""

    text: str
    is_number: bool
    is_best: bool


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the page: its title, its columns, and its rows, whose first cell is a name.

    A column is a name, or a `Column` if higher or lower values are better; then its best value is bold, whichever row
    has it. Numbers of a column share their decimals: four significant digits for the largest, and at least three for
    the smallest. None is shown as a dash.

    Raises:
        DataError: the number of cells in a row is not the number of columns.
    """

    caption: str
    columns: Sequence[str | Column]
    rows: Sequence[Sequence[Value]]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise DataError(f"Table {self.caption!r}: {len(row)} cells in a row of {len(self.columns)} columns.")

    @property
    def heads(self) -> tuple[Column, ...]:
        """The columns, with plain names as `Column`s."""
        return tuple(column if isinstance(column, Column) else Column(column) for column in self.columns)

    def cells(self) -> list[tuple[Cell, ...]]:
        """The rows as the page shows them."""
        columns = zip(*self.rows, strict=True)
        shown = [_shown(head, values) for head, values in zip(self.heads, columns, strict=False)]
        return list(zip(*shown, strict=True))


def write(
    path: str | os.PathLike[str],
    *,
    title: str,
    summary: str,
    command: str,
    tables: Sequence[Table],
    figures: Sequence[tuple[str, str | os.PathLike[str]]],
    config: Mapping[str, object],
    usage: str,
    epochs: Sequence[Mapping[str, Any]] = (),
    sounds: Sequence[tuple[str, str | os.PathLike[str]]] = (),
    explore: Explore | None = None,
) -> None:
    """Writes the page of a run: one HTML file with its figures inside, nothing loaded from outside.

    A content security policy makes browsers enforce this, whatever is in the page.

    Args:
        path: of the page; an older page is replaced in one step, so that nobody ever reads half a page.
        title, summary: the heading, and the findings in a few sentences; an empty line starts a paragraph.
        command: the command line that ran this.
        tables: the results.
        figures: caption and PNG file of each.
        config: the settings; mappings inside are shown with dotted names.
        usage: Python or shell lines that use the trained model.
        epochs: the lines of metrics.jsonl, for the hardware and the speed of the training.
        sounds: caption and sound file of each player, FLAC or WAV.
        explore: a map to zoom, point at and select from, by the page's only script.

    Versions and devices are added. All text is escaped, and unprintable characters are shown as in Python: \\x1b.

    Raises:
        DataError: a figure can't be read or isn't a PNG, or a sound can't be read.
        OSError: the page can't be written.
    """
    import markupsafe

    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    script = SCRIPT.read_text(encoding="utf-8") if explore else ""
    page = _template().render(
        policy=f"default-src 'none'; img-src data:; {'media-src data:; ' if sounds else ''}"
        + (f"script-src '{_sha256(script)}'; " if script else "")
        + f"style-src '{_sha256(style)}'; base-uri 'none'; form-action 'none'",
        style=markupsafe.Markup(style),
        script=markupsafe.Markup(script),
        explore=markupsafe.Markup(explore.to_json()) if explore else "",
        title=title,
        summary=summary.strip().split("\n\n"),
        command=command,
        tables=tables,
        figures=[_figure(caption, png) for caption, png in figures],
        sounds=[_player(caption, path) for caption, path in sounds],
        usage=usage.strip(),
        config=_flat(config),
        training=_speed(epochs),
        environment=_environment(),
    )
    with atomic.replacing(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")


@functools.cache
def _template() -> "jinja2.Template":
    import jinja2
    import markupsafe

    def finalize(value: object) -> object:
        return printable(value) if isinstance(value, str) and not isinstance(value, markupsafe.Markup) else value

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=finalize,
    )
    return environment.get_template("page.html.jinja")


def _sha256(style: str) -> str:
    """The hash by which a content security policy allows this style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}"


def _shown(head: Column, values: Sequence[Value]) -> list[Cell]:
    numbers = [value for value in values if isinstance(value, Real) and math.isfinite(value)]
    best = {"higher": max, "lower": min}[head.better](numbers, default=None) if head.better else None
    decimals = _decimals(numbers)

    def cell(value: Value) -> Cell:
        if not isinstance(value, Real):
            return Cell("–" if value is None else str(value), is_number=False, is_best=False)
        return Cell(f"{value:,.{decimals}f}".replace("-", "−"), is_number=True, is_best=bool(value == best))

    return [cell(value) for value in values]


def _decimals(numbers: Sequence[Real]) -> int:
    magnitudes = [math.floor(math.log10(abs(value))) for value in numbers if value]
    if not magnitudes or all(isinstance(value, Integral) for value in numbers):
        return 0
    return min(max(3 - max(magnitudes), 2 - min(magnitudes), 0), 9)


class _Figure(NamedTuple):
    caption: str
    width: int
    base64: str


def _figure(caption: str, png: str | os.PathLike[str]) -> _Figure:
    try:
        data = Path(png).read_bytes()
    except OSError as error:
        raise DataError(f"Figure {os.fspath(png)!r} can't be read ({error.strerror}): draw it first.") from error
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise DataError(f"Figure {os.fspath(png)!r} isn't a PNG: the page holds only PNG images.")
    width = int.from_bytes(data[16:20]) // 2  # every figure at the same scale, so that their text has one size
    return _Figure(caption, width, base64.b64encode(data).decode())


class _Player(NamedTuple):
    caption: str
    kind: str
    base64: str


def _player(caption: str, path: str | os.PathLike[str]) -> _Player:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"Sound {os.fspath(path)!r} can't be read ({error.strerror}): write it first.") from error
    return _Player(caption, f"audio/{Path(path).suffix[1:]}", base64.b64encode(content).decode())


def _flat(config: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    flat = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = str(value)
    return flat


def _speed(epochs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """From the epochs' lines that have it: the hardware, the speed, and how long the training waited for data."""
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
    import jax

    devices = jax.devices()
    return {
        "devices": f"{len(devices)} × {devices[0].device_kind}",
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
        "Python": platform.python_version(),
        **{name: metadata.version(name) for name in ("jax", "flax", "optax", "numpy")},
        "written": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }
