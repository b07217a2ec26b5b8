"""What MkDocs does not do by itself: equations as MathML, notebooks as pages, and the page of commands."""

import base64
import html
import json
import pathlib
import re

import latex2mathml.converter
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(html_of_page: str, **_: object) -> str:
    """Equations in TeX, which `pymdownx.arithmatex` has marked, become MathML, which browsers show by themselves."""

    def mathml(found: re.Match[str]) -> str:
        display = "block" if found[1] == "div" else "inline"
        return latex2mathml.converter.convert(html.unescape(found[2]).strip(), display=display)

    return EQUATION.sub(mathml, html_of_page)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Every notebook becomes a page, with its pictures beside it; the notebook itself can be downloaded."""
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        name = notebook.src_uri.removesuffix(".ipynb")
        text, pictures = page_of(pathlib.Path(str(notebook.abs_src_path)))
        files.append(File.generated(config, f"{name}.md", content=text))
        for number, picture in enumerate(pictures):
            files.append(File.generated(config, f"{name}-{number}.png", content=picture))
    files.append(File.generated(config, "reference/commands.md", content=commands()))
    return files


def page_of(path: pathlib.Path) -> tuple[str, list[bytes]]:
    """The Markdown of a notebook with its outputs, and the PNGs of its figures."""
    heading, *cells = json.loads(path.read_text())["cells"]
    parts, pictures = ["".join(heading["source"]), f"[Download the notebook]({path.name}){{ .md-button download }}"], []
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                parts.append(f"![]({path.stem}-{len(pictures)}.png)")
                pictures.append(base64.b64decode(data["image/png"]))
            elif text := "".join(output.get("text", data.get("text/plain", ""))).rstrip():
                parts.append(f"```{{ .text .output }}\n{text}\n```")
    return "\n\n".join(parts) + "\n", pictures


def commands() -> str:
    """The page with what `--help` prints, of every experiment and command."""
    import contextlib
    import io
    import os

    from flaxae import command, experiments

    os.environ.update(COLUMNS="86", NO_COLOR="1")
    parts = [
        "# The command line\n\n`flaxae NAME …`, or in a checkout `python run.py --exp NAME …`. A mistake gives one "
        "message and exit status 2, Ctrl-C 130. This page is what `--help` prints."
    ]
    for name in (*experiments.FILES, *experiments.USES):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            command.main([name, "--help"])
        parts.append(f"## {name}\n\n```text\n{printed.getvalue().strip()}\n```")
    return "\n\n".join(parts) + "\n"
