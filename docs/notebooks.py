"""Run the tutorials, and write each as a notebook with its outputs.

    python -m docs.notebooks            # all three, in some minutes on two cores
    python -m docs.notebooks learner    # one
    python -m docs.notebooks --short    # run them on little data, and write nothing, as .ci/run does

Their sources are `docs/tutorials/*.py`, in the percent format that editors and Jupytext know: a cell begins with
`# %%`, text with `# %% [markdown]`. The cell with the tag `parameters` sets how much is trained; `run` replaces its
values.
"""

import json
import pathlib
import re
import sys
import time
from typing import Any, NamedTuple

FOLDER = pathlib.Path(__file__).parent / "tutorials"
SOURCES = {path.stem: path for path in sorted(FOLDER.glob("*.py"))}
CELL = re.compile(r"^# %%(.*)\n", re.MULTILINE)

SHORT = {
    "learner": {"examples": 300, "epochs": 1},
    "practitioner": {"epochs": 2},
    "researcher": {"examples": 300, "epochs": 1, "steps": 3},
}


class Cell(NamedTuple):
    """A cell of a notebook: `kind` is code or markdown."""

    kind: str
    source: str
    parameters: bool = False


def cells(path: pathlib.Path) -> list[Cell]:
    """The cells of a source."""
    _, *parts = CELL.split(path.read_text(encoding="utf-8"))
    found = []
    for about, text in zip(parts[::2], parts[1::2], strict=True):
        if "[markdown]" in about:
            found.append(Cell("markdown", re.sub(r"^# ?", "", text.strip(), flags=re.MULTILINE)))
        else:
            found.append(Cell("code", text.strip(), "parameters" in about))
    return found


def run(path: pathlib.Path, **parameters: Any) -> dict[str, Any]:
    """Run the code of a source in this process, with other parameters, and return its names."""
    names: dict[str, Any] = {"__name__": path.stem}
    for number, cell in enumerate(cells(path)):
        if cell.kind == "code":
            exec(compile(cell.source, f"{path.name}, cell {number}", "exec"), names)
        if cell.parameters:
            unknown = parameters.keys() - names.keys()
            assert not unknown, f"{path.name} has no parameters {unknown}"
            names.update(parameters)
    return names


def write(path: pathlib.Path) -> None:
    """Run a source in a kernel of its own, and write the notebook beside it."""
    import nbformat
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    made = []
    for number, cell in enumerate(cells(path)):
        new = nbformat.v4.new_markdown_cell if cell.kind == "markdown" else nbformat.v4.new_code_cell
        made.append(new(cell.source, id=f"{path.stem}-{number}"))
    about = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=made, metadata=about)
    kernel = AsyncKernelManager(kernel_name="python3", transport="ipc")
    NotebookClient(notebook, kernel, timeout=1800, record_timing=False, cwd=str(FOLDER)).execute()
    notebook.metadata = {**about, "language_info": {"name": "python"}}
    text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True)
    path.with_suffix(".ipynb").write_text(text + "\n", encoding="utf-8")


def main(names: list[str]) -> None:
    if names[:1] == ["--short"]:
        import matplotlib

        matplotlib.use("Agg")
        for name in names[1:] or SOURCES:
            run(SOURCES[name], **SHORT[name])
        return
    for name in names or SOURCES:
        began = time.perf_counter()
        write(SOURCES[name])
        print(f"docs/tutorials/{name}.ipynb  {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
