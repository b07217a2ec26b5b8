"""The command line: `flaxae NAME …`, and `python run.py --exp NAME …` in a checkout, which is the same."""

import argparse
import importlib
import os
import sys
import warnings

import flaxae
from flaxae import experiments
from flaxae.errors import ConfigError, FlaxaeError, unknown


def main(arguments: list[str] | None = None) -> int:
    """Run an experiment, by default the one that the process' arguments name, first or after --exp.

    Returns:
        The exit status: 0, 2 for a mistake that is explained in one message, 130 after Ctrl-C.
    """
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--exp", *arguments]
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--exp")
    parser.add_argument("-h", "--help", action="store_true")
    chosen, rest = parser.parse_known_args(arguments)
    try:
        if chosen.exp is None and rest == ["--version"]:
            print(f"flaxae {flaxae.__version__}")
            return 0
        if chosen.exp is None:
            print(experiments.overview())
            if not chosen.help:
                raise ConfigError(f"Say which experiment to run, such as {experiments.command('denoise')}")
            return 0
        if chosen.exp not in experiments.FILES:
            raise ConfigError(unknown("experiment", chosen.exp, experiments.FILES))
        try:
            run(chosen.exp, rest + ["--help"] * chosen.help)
        finally:
            sys.stdout.flush()
    except FlaxaeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"\n{interrupt or 'Interrupted.'}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # what read the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at exit
    return 0


def run(name: str, arguments: list[str]) -> None:
    """Read the experiment's flags, then train or apply. What is heavy is imported after the flags are read."""
    import tyro

    from flaxae import processes

    experiment = importlib.import_module(f"flaxae.experiments.{name}")
    prog = experiments.command(name)
    description = experiment.__doc__.replace(f"python run.py --exp {name}", prog)
    config = tyro.cli(experiment.Config, args=arguments, prog=prog, description=description)
    if config.cache:
        from flaxae.compilation import enable_cache

        enable_cache()
    with processes.together():
        (experiment.apply if config.applies else experiment.train)(config)
