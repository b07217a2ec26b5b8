import base64
import hashlib
import html.parser
import os

import jaxtyping
import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flaxae.errors import ConfigError, DataError
from flaxae.experiments import _steps
from flaxae.runs import plots, report


class Page(html.parser.HTMLParser):
    """What a browser would make of a page: its tags, their attributes, and the text of table cells."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.cells, self.text = [], [], ""
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag in ("td", "th"):
            self.cells.append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        self.text += data
        if self.in_cell:
            self.cells[-1] += data


@pytest.fixture
def png(tmp_path):
    Image.new("RGB", (40, 20)).save(tmp_path / "figure.png")
    return tmp_path / "figure.png"


HIGHER, LOWER = report.Column("PSNR (dB)", better="higher"), report.Column("MSE", better="lower")


def write(path, **changed):
    parts = {
        "title": "A run",
        "summary": "It works.",
        "command": "python run.py",
        "tables": [],
        "figures": [],
        "config": {"seed": 0},
        "usage": "print()",
    }
    report.write(path, **(parts | changed))
    return path.read_text(encoding="utf-8")


def table(columns, *rows):
    return report.Table("caption", columns, rows)


@pytest.mark.parametrize("channels", [1, 3])
def test_image_grid_shows_every_pixel_as_it_is(tmp_path, channels):
    rng = np.random.default_rng(0)
    rows = {name: rng.random((4, 6, 5, channels), dtype=np.float32) * 1.4 - 0.2 for name in ("Clean", "Noisy")}
    plots.image_grid(rows, tmp_path / "new" / "grid.png", title="Four")
    drawn = np.asarray(Image.open(tmp_path / "new" / "grid.png").convert("RGB"), np.int16)
    scale = 160 // 5  # pixels are squares of this side: find the first, then every other follows
    first = np.round(np.broadcast_to(np.clip(rows["Clean"][0, 0, 0], 0, 1), 3) * 255)
    matches = np.argwhere((abs(drawn - first) <= 1).all(-1))
    pixels = [np.broadcast_to(np.clip(images, 0, 1), (4, 6, 5, 3)) * 255 for images in rows.values()]

    def shown_from(top, left):
        for row, images in enumerate(pixels):
            for column, image in enumerate(images):
                at = np.ix_(
                    top + scale // 2 + scale * (row * 7 + np.arange(6)),
                    left + scale // 2 + scale * (column * 6 + np.arange(5)),
                )
                if abs(drawn[at] - image).max() > 1:
                    return False
        return True

    fits = [(top, left) for top, left in matches if top + 13 * scale <= len(drawn)]
    assert any(shown_from(top, left) for top, left in fits if left + 23 * scale <= drawn.shape[1])


def test_figures_leave_no_global_state(tmp_path):
    before = dict(matplotlib.rcParams)
    plots.curves({"loss": [2.0, 1.0]}, tmp_path / "c.png")
    plots.line_grid({"Clean": np.zeros((2, 9), np.float32)}, tmp_path / "l.png")
    assert dict(matplotlib.rcParams) == before
    assert sorted(os.listdir(tmp_path)) == ["c.png", "l.png"]


@pytest.fixture
def drawn(monkeypatch):
    """The figures as they are saved."""
    figures, save = [], plots.save_figure
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: (save(figure, path), figures.append(figure)))
    return figures


def test_curves_pair_losses_and_mark_the_best_epoch(tmp_path, drawn):
    history = {
        "loss": [5.0, 4.0, 3.0, 2.0],
        "val_loss": [5.0, float("nan"), 3.5, 4.0],
        "learning_rate": [0.1, 0.01, 0.001, 0.0001],
        "seconds": [1.0, 2.0, 3.0, 4.0],
    }
    plots.curves(history, tmp_path / "curves.png", unit="nats per image")
    losses, rate = drawn[0].axes
    assert losses.get_ylabel() == "loss (nats per image)"
    assert [t.get_text() for t in losses.get_legend().get_texts()] == [
        "training",
        "validation",
        "best: 3.5 at epoch 3",
    ]
    np.testing.assert_array_equal(losses.lines[0].get_xdata(), [1, 2, 3, 4])
    np.testing.assert_array_equal(losses.lines[0].get_ydata(), history["loss"])
    assert (losses.get_yscale(), rate.get_yscale()) == ("linear", "log")
    assert rate.get_xlabel() == "epoch (4 s of training in all)"


def test_curves_of_one_epoch_and_of_a_run_that_diverged(tmp_path, drawn):
    plots.curves({"loss": [1.0]}, tmp_path / "one.png")
    plots.curves({"loss": [1.0, float("nan")], "val_loss": [float("nan")] * 2}, tmp_path / "nan.png")
    assert [t.get_text() for t in drawn[1].axes[0].get_legend().get_texts()] == ["training", "validation"]


def test_line_grid_draws_each_signal_over_the_clean_one(tmp_path, drawn):
    clean, noisy = np.random.default_rng(0).random((2, 3, 12), dtype=np.float32)
    plots.line_grid({"Clean": clean, "Noisy $1$": noisy}, tmp_path / "lines.png", "Three", "time (s)", "volts")
    panels = np.array(drawn[0].axes).reshape(2, 3)
    for column in range(3):
        behind, front = panels[1, column].lines
        np.testing.assert_array_equal(behind.get_ydata(), clean[column])
        np.testing.assert_array_equal(front.get_ydata(), noisy[column])
        np.testing.assert_array_equal(panels[0, column].lines[0].get_ydata(), clean[column])
    assert len({panel.get_ylim() for panel in panels.flat}) == 1


def test_what_cannot_be_drawn_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it
    path = tmp_path / "figure.png"
    with pytest.raises(DataError, match="same shape"):
        plots.image_grid({"a": np.zeros((2, 4, 4, 1)), "b": np.zeros((3, 4, 4, 1))}, path)
    with pytest.raises(DataError, match="non-empty"):
        plots.image_grid({"a": np.zeros((0, 4, 4, 1))}, path)
    with pytest.raises(DataError, match="one or more"):
        plots.line_grid({}, path)
    with pytest.raises(DataError, match="1 or 3 channels"):
        plots.image_grid({"a": np.zeros((2, 4, 4, 2))}, path)
    with pytest.raises(DataError, match="features"):
        plots.line_grid({"a": np.zeros((2, 4, 4))}, path)
    with pytest.raises(DataError, match="history"):
        plots.curves({"loss": []}, path)
    assert not path.exists()


def test_page_holds_everything_and_loads_nothing(tmp_path, png):
    text = write(
        tmp_path / "run" / "report.html",
        summary="First.\n\nSecond.",
        tables=[table(("Method", HIGHER), ("ours", 20.1))],
        figures=[("Digits", png)],
        config={"model": {"latent": 32}, "hidden": (8, 4)},
    )
    page = Page(text)
    tags = [tag for tag, _ in page.tags]
    assert "script" not in tags
    sources = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert all(source.startswith("data:") for source in sources)
    assert "url(" not in text
    assert "@import" not in text
    image = next(attributes for tag, attributes in page.tags if tag == "img")
    assert image["alt"] == "Digits"
    assert base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) == png.read_bytes()
    for words in ("First.", "python run.py", "model.latent", "(8, 4)", "jax", "print()"):
        assert words in page.text
    assert ("meta", {"charset": "utf-8"}) in page.tags


def test_a_browser_is_told_to_load_and_run_nothing(tmp_path, png):
    text = write(tmp_path / "report.html", figures=[("Digits", png)])
    (policy,) = (a["content"] for _, a in Page(text).tags if a.get("http-equiv") == "Content-Security-Policy")
    allowed = dict(rule.split(maxsplit=1) for rule in policy.split("; "))
    style = text.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert allowed.pop("style-src") == f"'sha256-{digest}'"
    assert allowed == {"default-src": "'none'", "img-src": "data:", "base-uri": "'none'", "form-action": "'none'"}
    assert text.index("Content-Security-Policy") < text.index("<link")


def test_what_cannot_be_printed_is_shown_by_its_code(tmp_path):
    hostile = "a\0b\x1b[31m\r\x07\u202egnp.exe\ud800\u2029"
    page = Page(write(tmp_path / "report.html", title=hostile, tables=[table((hostile,), (hostile,))]))
    shown = r"a\x00b\x1b[31m\r\x07\u202egnp.exe\ud800" + "\u2029"
    assert page.cells[:2] == [shown, shown]
    assert page.text.count(shown) == 4


def test_columns_and_tables_check_themselves(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it
    with pytest.raises(ConfigError, match="is better 'up'; expected 'higher', 'lower' or None"):
        report.Column("MSE", better="up")
    with pytest.raises(DataError, match="3 cells in a row of 2 columns"):
        table(("a", "b"), ("x", 1, 2))
    assert hash(HIGHER) == hash(report.Column("PSNR (dB)", better="higher"))


_HOSTILE = st.text("<>&\"'{}%$a\u2028é", min_size=1)


@given(_HOSTILE)
def test_all_text_is_escaped(tmp_path_factory, text):
    folder = tmp_path_factory.getbasetemp()
    Image.new("L", (2, 2)).save(folder / "figure.png")
    arguments = {
        "title": text,
        "summary": text,
        "command": text,
        "tables": [report.Table(text, (text,), [(text,)])],
        "figures": [(text, folder / "figure.png")],
        "config": {text: text},
        "usage": text,
    }
    hostile = Page(write(folder / "report.html", **arguments))
    plain = {"title": "a", "summary": "a", "command": "a", "usage": "a", "config": {"a": "a"}}
    plain |= {"tables": [report.Table("a", ("a",), [("a",)])], "figures": [("a", folder / "figure.png")]}
    harmless = Page(write(folder / "report.html", **plain))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in harmless.tags]
    assert hostile.cells[:2] == [text, text]
    assert dict(hostile.tags)["img"]["alt"] == text


@pytest.mark.parametrize(
    ("column", "values", "shown", "best"),
    [
        (HIGHER, (9.381, 22.987, None), ["9.38", "22.99", "–"], "22.99"),
        (LOWER, (0.11556, 0.016828), ["0.1156", "0.0168"], "0.0168"),
        (LOWER, (np.float32(-1234.56), float("nan")), ["−1,235", "nan"], "−1,235"),
        (LOWER, (0.5, 0.0), ["0.5000", "0.0000"], "0.0000"),
        ("rate", (1e-5, 1.0), ["0.0000100", "1.0000000"], None),
        ("a name that ends in ↑", (1.0, 2.0), ["1.000", "2.000"], None),
        ("parameters", (615440, 0), ["615,440", "0"], None),
        (HIGHER, ("good", None), ["good", "–"], None),
    ],
)
def test_numbers_of_a_column_are_readable_and_its_best_is_bold(tmp_path, column, values, shown, best):
    rows = [(f"row {i}", value) for i, value in enumerate(values)]
    text = write(tmp_path / "report.html", tables=[table(("Method", column), *rows)])
    head, *cells = Page(text).cells[1 : 2 + 2 * len(rows)]
    assert head == {HIGHER: "PSNR (dB) ↑", LOWER: "MSE ↓"}.get(column, column)
    assert cells[1::2] == shown
    assert text.count("<strong>") == (best is not None)
    assert best is None or f"<strong>{best}</strong>" in text


def test_a_page_that_fails_leaves_the_old_one(tmp_path, png, monkeypatch):
    path = tmp_path / "run" / "report.html"
    old = write(path)
    with pytest.raises(DataError, match="draw it first"):
        write(path, figures=[("missing", tmp_path / "none.png")])
    with pytest.raises(DataError, match="isn't a PNG"):
        write(path, figures=[("not a figure", path)])

    def fails(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="no space"):
        write(path, title="Another")
    assert path.read_text(encoding="utf-8") == old
    assert os.listdir(path.parent) == ["report.html"]


def test_a_terminal_shows_the_same_heads_and_no_name_as_markup(capsys):
    _steps.print_table(table(("[/red]", HIGHER, LOWER), ("[bold]a\x1b[31m", 20.123456, None)))
    shown = capsys.readouterr().out
    for words in ("[/red]", "PSNR (dB) ↑", "MSE ↓", r"[bold]a\x1b[31m", "20.12"):
        assert words in shown
    assert "\x1b" not in shown
