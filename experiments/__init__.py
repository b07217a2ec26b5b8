"""Experiments: one file each, with the command, the time it takes and what to expect in its docstring.

Their flags are in `_flags`, and the steps that they share in `_steps` and `_sweep`.
"""

import ast
import pathlib
import shlex
import sys

import flaxae

FILES = {path.stem: path for path in sorted(pathlib.Path(__file__).parent.glob("[!_]*.py"))}  # by the experiment's name
USES = {  # by name, the commands that take a trained model's folder
    path.stem: path for path in sorted((pathlib.Path(flaxae.__file__).parent / "commands").glob("[!_]*.py"))
}


def description(name: str) -> str:
    """The docstring of an experiment, or of a command in `USES`, read without importing it."""
    return ast.get_docstring(ast.parse((FILES | USES)[name].read_bytes())) or ""


def overview() -> str:
    """The usage, with the first line of each docstring."""
    usage = command("NAME")
    train, use = ([f"  {name:12s} {description(name).splitlines()[0]}" for name in names] for names in (FILES, USES))
    head = f"usage: {usage} [flags]   ({usage} --help lists its flags)"
    return "\n".join([head, "", *train, "", "With a trained model's folder:", "", *use, ""])


def started() -> list[str]:
    """How the user started the program, without the flags: `flaxae`, or in a checkout `python run.py`."""
    return ["python", "run.py"] if pathlib.Path(sys.argv[0]).name == "run.py" else ["flaxae"]


def command(experiment: str, **flags: object) -> str:
    """The command line that runs an experiment with those flags, in the form that the user used."""
    named = ["--exp"] if len(started()) > 1 else []
    given = [word for flag, value in flags.items() for word in (f"--{flag.strip('_')}", str(value))]
    return shlex.join([*started(), *named, experiment, *given])


def running() -> str:
    """The command line that is running."""
    return shlex.join([*started(), *sys.argv[1:]])
