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

# The experiments are a folder beside this one: see pyproject.toml.
from flaxae import experiments, interruption  # pyright: ignore[reportAttributeAccessIssue]
from flaxae.errors import ConfigError, FlaxaeError, unknown
from flaxae.printing import printable


def main(arguments: list[str] | None = None) -> int:
    """Run an experiment, by default the one that the process' arguments name, first or after --exp.

    Returns:
        The exit status: 0, 2 for a mistake that is explained in one message, 130 after Ctrl-C.
    """
    warnings.formatwarning = lambda message, *_: f"warning: {printable(str(message))}\n"
    _make_writable()
    try:
        try:
            with interruption.at_once():
                _read_and_run(sys.argv[1:] if arguments is None else arguments)
        finally:
            sys.stdout.flush()
    except FlaxaeError as error:
        _say(f"error: {error}")
        return 2
    except KeyboardInterrupt as interrupt:
        _say(f"\n{interrupt or 'Interrupted.'}")
        return interruption.STATUS
    except MemoryError as error:
        _say(f"error: there is not enough memory ({error or 'none is left'}). Give less data, or smaller batches.")
        return 2
    except BrokenPipeError:  # the reader of the output, such as `head`, has closed it
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
    elif chosen.exp in experiments.USES:
        use(chosen.exp, rest + ["--help"] * chosen.help)
    elif chosen.exp not in experiments.FILES:
        raise ConfigError(unknown("experiment", chosen.exp, (*experiments.FILES, *experiments.USES)))
    else:
        run(chosen.exp, rest + ["--help"] * chosen.help)


def use(name: str, arguments: list[str]) -> None:
    """Read the flags of a command that takes a trained model's folder, then run it."""
    import tyro

    module = importlib.import_module(f"flaxae.commands.{name}")
    prog = experiments.command(name)
    module.run(tyro.cli(module.Flags, args=arguments, prog=prog, description=experiments.description(name)))


def run(name: str, arguments: list[str]) -> None:
    """Read the experiment's flags, then train or apply. Heavy packages are imported only after the flags are read."""
    import tyro

    from flaxae.experiments import _flags  # pyright: ignore[reportMissingImports]
    from flaxae.parallel import processes

    prog = experiments.command(name)
    description = experiments.description(name).replace(f"python run.py --exp {name}", prog)
    config = tyro.cli(_flags.FLAGS[name], args=arguments, prog=prog, description=description)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it says where its cache is if the user has no home
    if config.cache:
        from flaxae.parallel.compilation import enable_cache

        enable_cache()
    experiment = importlib.import_module(f"flaxae.experiments.{name}")
    with processes.together():
        (experiment.apply if config.applies else experiment.train)(config)


# For a terminal without Unicode. Replacements have one character each where columns must stay aligned.
_PLAIN = {**dict(zip("×−–↑↓─│╭╮╰╯━", "x--^v-|++++-", strict=True)), "±": "+-", "…": "..."}


def _plain(error: UnicodeError) -> tuple[str, int]:
    """An error handler for codecs: the replacement for characters that can't be encoded."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(letter, "?") for letter in error.object[error.start : error.end]), error.end


def _make_writable() -> None:
    """Make sure that printing never fails for characters, or because a stream was closed before the process began."""
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
        print(printable(message), file=sys.stderr, flush=True)
    except OSError:  # if not even the message can be printed, there is still the exit status
        _drop(sys.stderr)


def _drop(stream: TextIO) -> None:
    """Discard what is still to be written at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
