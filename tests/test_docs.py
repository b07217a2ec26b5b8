"""What the documentation says is so: its Python runs, its commands parse, and what it names is there.

`test_readme.py` does the same for the README's own examples.
"""

import ast
import importlib.util
import inspect
import json
import os
import pathlib
import re
import shlex
import tomllib

import numpy as np
import pandas as pd
import pytest
import tyro
from PIL import Image

import flaxae
from docs import notebooks, pictures
from flaxae import experiments, presets
from flaxae.commands import export, serve
from flaxae.experiments import _flags

ROOT = pathlib.Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *DOCS]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
FLAGS = {**_flags.FLAGS, "export": export.Flags, "serve": serve.Flags}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
TOOLS = {"curl", "deactivate", "mkdocs", "pyright", "pytest", "python3", "ruff", "source", "uv"}
FLAG = re.compile(r"--[a-z][a-z-]*")


def blocks(page: pathlib.Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(page.read_text()) if kind == language]


def named(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


# --- commands


def parse(words: list[str]) -> None:
    """Read a command line as flaxae does."""
    name, *flags = words[1:] if words[0] == "--exp" else words
    if name.startswith("--"):
        assert words in (["--help"], ["--version"]), words
        return
    kind = FLAGS[name]
    if flags not in ([], ["--help"]):
        tyro.cli(kind, args=flags)


def check(line: str) -> None:
    """A command of the documentation: its extras, modules, flags and files are there."""
    words = shlex.split(line, comments=True)
    if "&&" in words:
        at = words.index("&&")
        check(shlex.join(words[:at]))
        check(shlex.join(words[at + 1 :]))
        return
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if not words or words[0] in TOOLS:
        return
    if words[:2] == ["pip", "install"]:
        for extra in re.findall(r"\[(.*?)\]", line):
            assert set(extra.split(",")) <= EXTRAS.keys(), line
    elif words[0] == "mpirun":
        check(shlex.join(words[3:]))
    elif words[:2] == ["sbatch", "deploy/slurm.sh"]:
        parse(words[3:])
    elif words[0] == "flaxae":
        parse(words[1:])
    elif words[:2] == ["python", "run.py"]:
        parse(words[2:])
    elif words[:2] == ["python", "-m"]:
        source = importlib.util.find_spec(words[2])
        assert source is not None, line
        text = pathlib.Path(str(source.origin)).read_text()
        assert all(flag in text or f'"{flag}"' in text for flag in words if flag.startswith("--")), line
        known = {"docs.pictures": pictures.DRAWN, "docs.notebooks": notebooks.SOURCES}.get(words[2])
        assert known is None or set(words[3:]) <= known.keys() | {"NAME"}, line
    else:
        assert (words[0], pathlib.Path(words[1]).name) == ("python", "use.py"), f"what is {line!r}?"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_parse(page, monkeypatch):
    monkeypatch.setattr("sys.argv", ["flaxae"])
    for block in blocks(page, "bash"):
        for line in filter(str.strip, block.splitlines()):
            check(line)
    for line in re.findall(r"`((?:flaxae|python -m|python run\.py) [^`…]*)`", page.read_text()):
        if "NAME" not in line and "--sweep latent=…" not in line:
            check(line.replace("RUN", "runs/x").replace(" N`", " 1"))


def test_flags_that_are_named_exist():
    known = {
        f"--{name.replace('_', '-').strip('-')}"
        for kind in FLAGS.values()
        for name in inspect.signature(kind).parameters
    }
    known |= {"--exp", "--help", "--version", "--no-cache"}
    for page in PAGES:
        for code in re.findall(r"`(--[^`\n]*)`", page.read_text()):
            assert set(FLAG.findall(code)) <= known, f"{named(page)}: {code}"


def test_files_that_are_named_exist():
    for page in PAGES:
        for path in re.findall(r"`((?:flaxae|docs|tests|experiments|benchmarks|deploy)/[\w/.*-]+)`", page.read_text()):
            assert list(ROOT.glob(path)), f"{named(page)}: {path}"


# --- Python


@pytest.fixture
def world(tmp_path, digits, rng, monkeypatch):
    """The files that the pages speak of, small, in a current folder of its own; and few digits."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8)).save(f"photos/{i}.png")
    table = pd.DataFrame(rng.normal(size=(80, 3)), columns=["a", "b", "c"]).assign(kind=rng.choice(["x", "y"], 80))
    table.mask(rng.random(table.shape) < 0.05).to_csv("readings.csv", index=False)
    flaxae.save(flaxae.build(presets.vanilla(latent=2), (8, 8, 1)), "runs/denoise/1")
    loaded = flaxae.data.load

    def few(source, **settings):
        if not isinstance(source, str):
            return loaded(source, **settings)
        digits = loaded(source, **settings)
        return type(
            "Few", (), {"train": digits.train[:500], "test": digits.test[:100], "test_labels": digits.test_labels[:100]}
        )

    monkeypatch.setattr(flaxae.data, "load", few)


def quick(code: str) -> str:
    """The same code with fewer epochs."""
    return re.sub(r"\b(epochs=|\"epochs\": )\d+", r"\g<1>1", code)


@pytest.mark.filterwarnings("ignore::UserWarning")  # which tell of data, as they do to users
@pytest.mark.parametrize("page", [page for page in DOCS if blocks(page, "python")], ids=named)
def test_python_runs(page, world, own_names):
    names = {"__name__": page.stem}
    for block in blocks(page, "python"):
        exec(compile(quick(block), str(page), "exec"), names)


# --- tutorials


@pytest.mark.parametrize("name", notebooks.SOURCES)
def test_notebooks_are_what_their_sources_give(name):
    path = notebooks.SOURCES[name].with_suffix(".ipynb")
    written = json.loads(path.read_text())["cells"]
    assert [(cell["cell_type"], cell["source"]) for cell in written] == [
        (cell.kind, cell.source) for cell in notebooks.cells(notebooks.SOURCES[name])
    ], f"run `python -m docs.notebooks {name}`"
    outputs = [output for cell in written for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert all(output["output_type"] != "error" and output.get("name") != "stderr" for output in outputs)


# --- what is there


def test_pictures_are_drawn_by_the_command():
    there = {path.stem for path in (ROOT / "docs" / "pictures").glob("*.png")}
    assert there == pictures.DRAWN.keys()
    shown = set(re.findall(r"pictures/(\w+)\.png", "".join(page.read_text() for page in PAGES)))
    assert shown == there


def test_the_reference_has_every_public_name():
    text = "".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    modules = set(re.findall(r"^::: (\S+)", text, re.MULTILINE))
    for module in modules:
        assert importlib.util.find_spec(module), module
    for line in ast.parse((ROOT / "flaxae" / "__init__.pyi").read_text()).body:
        if isinstance(line, ast.ImportFrom):
            for name in line.names:
                inside = f"flaxae.{line.module}." if line.module else "flaxae."
                whole = inside + name.name
                of = getattr(getattr(flaxae, name.name), "__module__", whole)
                assert {whole, of, whole.removesuffix(".nn") + ".nn.heads"} & modules, (
                    f"{whole} is in no page of the reference"
                )


def test_every_preset_is_explained():
    text = (ROOT / "docs" / "variants.md").read_text()
    for preset in {*presets.PRESETS.values(), presets.unet}:
        assert f"flaxae.presets.{preset.__name__})" in text, preset.__name__


def test_one_version_everywhere():
    assert f"version: {flaxae.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"| flaxae | {flaxae.__version__} |" in (ROOT / "docs" / "comparison.md").read_text()


def test_every_page_is_in_the_navigation():
    listed = (ROOT / "mkdocs.yml").read_text()
    for page in DOCS:
        assert str(page.relative_to(ROOT / "docs")) in listed, named(page)


def test_every_experiment_has_a_page():
    text = (ROOT / "docs" / "index.md").read_text()
    for name in (*experiments.FILES, *experiments.USES):
        assert f"`flaxae {name}`" in text, name


def test_no_path_of_a_machine():
    assert not [named(page) for page in PAGES if re.search(r"/(tmp|home|root|work)/", page.read_text())]
    assert os.path.isdir(ROOT / "docs")
