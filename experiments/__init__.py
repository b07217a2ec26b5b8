"""Experiments: one file each, with the command, the time it takes and what to expect in its docstring.

Their flags are in `_flags`, and the steps that they share in `_steps` and `_sweep`.
"""

import ast
import pathlib
import shlex
import sys

FILES = {path.stem: path for path in sorted(pathlib.Path(__file__).parent.glob("[!_]*.py"))}  # by the experiment's name


def description(name: str) -> str:
    """An experiment's docstring, read without importing the experiment."""
    return ast.get_docstring(ast.parse(FILES[name].read_bytes())) or ""


def overview() -> str:
    """The usage, with the first line of each experiment's docstring."""
    lines = [f"  {name:12s} {description(name).splitlines()[0]}" for name in FILES]
    usage = command("NAME")
    return "\n".join([f"usage: {usage} [flags]   ({usage} --help lists its flags)", "", *lines, ""])


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
