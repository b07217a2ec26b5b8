"""The command line: `flaxae NAME …`, and `python run.py --exp NAME …` in a checkout, which is the same."""

import argparse
import codecs
import importlib
import io
import logging
import os
import sys
import warnings
from typing import TextIO

import flaxae
from flaxae import experiments  # pyright: ignore[reportAttributeAccessIssue] (a folder beside this one: pyproject.toml)
from flaxae.errors import ConfigError, FlaxaeError, unknown


def main(arguments: list[str] | None = None) -> int:
    """Run an experiment, by default the one that the process' arguments name, first or after --exp.

    Returns:
        The exit status: 0, 2 for a mistake that is explained in one message, 130 after Ctrl-C.
    """
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    _make_writable()
    try:
        try:
            _read_and_run(sys.argv[1:] if arguments is None else arguments)
        finally:
            sys.stdout.flush()
    except FlaxaeError as error:
        _say(f"error: {error}")
        return 2
    except KeyboardInterrupt as interrupt:
        _say(f"\n{interrupt or 'Interrupted.'}")
        return 130
    except BrokenPipeError:  # what read the output, such as `head`, has seen enough
        _drop(sys.stdout)
    except OSError as error:  # a full disk, a place that can't be written
        _say(f"error: {error}")
        _drop(sys.stdout)
        return 2
    return 0


def _read_and_run(arguments: list[str]) -> None:
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--exp", *arguments]
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--exp")
    parser.add_argument("-h", "--help", action="store_true")
    chosen, rest = parser.parse_known_args(arguments)
    if chosen.exp is None and rest == ["--version"]:
        print(f"flaxae {flaxae.__version__}")
    elif chosen.exp is None:
        print(experiments.overview())
        if not chosen.help:
            raise ConfigError(f"Say which experiment to run, such as {experiments.command('denoise')}")
    elif chosen.exp not in experiments.FILES:
        raise ConfigError(unknown("experiment", chosen.exp, experiments.FILES))
    else:
        run(chosen.exp, rest + ["--help"] * chosen.help)


def run(name: str, arguments: list[str]) -> None:
    """Read the experiment's flags, then train or apply. What is heavy is imported after the flags are read."""
    import tyro

    from flaxae.experiments import _flags  # pyright: ignore[reportMissingImports]
    from flaxae.parallel import processes

    prog = experiments.command(name)
    description = experiments.description(name).replace(f"python run.py --exp {name}", prog)
    config = tyro.cli(_flags.FLAGS[name], args=arguments, prog=prog, description=description)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # where its cache is, if the user has no home
    if config.cache:
        from flaxae.parallel.compilation import enable_cache

        enable_cache()
    experiment = importlib.import_module(f"flaxae.experiments.{name}")
    with processes.together():
        (experiment.apply if config.applies else experiment.train)(config)


# For a terminal that has no more than its own alphabet. One for one, where columns have to stay.
_PLAIN = {**dict(zip("×−–↑↓─│╭╮╰╯━", "x--^v-|++++-", strict=True)), "±": "+-", "…": "..."}


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Codecs' handler of an error: what is shown of characters that can't be encoded."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(letter, "?") for letter in error.object[error.start : error.end]), error.end


def _make_writable() -> None:
    """Let nothing that is printed fail for its letters, or because a stream was closed before the process began."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # a file opened later would get its number, and what libraries print would go there
            os.open(os.devnull, os.O_RDWR)
    codecs.register_error("flaxae", _plain)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (until the process ends)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="flaxae")


def _say(message: str) -> None:
    try:
        print(message, file=sys.stderr, flush=True)
    except OSError:  # where not even that can be said, the exit status does
        _drop(sys.stderr)


def _drop(stream: TextIO) -> None:
    """Let what is still to be written at exit go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
