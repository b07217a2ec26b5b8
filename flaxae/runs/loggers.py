"""Metrics for other tools than a run's metrics.jsonl: `opened` gives a function that writes an epoch's numbers.

Each tool is an extra of its own name, and finds its server and its account as it always does: MLFLOW_TRACKING_URI,
WANDB_API_KEY and WANDB_MODE, a `trackio` Space.
"""

import contextlib
import importlib
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flaxae.errors import ConfigError, missing, unknown
from flaxae.parallel import processes

PROJECT = "flaxae"  # in the tools that sort runs by projects
Write = Callable[[Mapping[str, Any]], None]


@contextlib.contextmanager
def opened(name: str, folder: str | os.PathLike[str], config: Mapping[str, Any] | None = None) -> Iterator[Write]:
    """A function that writes an epoch's numbers to the tool of that name; it works until the `with` block ends.

    Only the first of several processes writes.

    Args:
        name: tensorboard, mlflow, wandb or trackio.
        folder: the run's, whose name the run has in the tool; TensorBoard's files are in a folder in it.
        config: settings of the run, which the tool shows beside the numbers.

    Raises:
        ConfigError: the name is unknown, or its package is not installed.
    """
    if name not in TOOLS:
        raise ConfigError(unknown("--logger", name, TOOLS))
    if processes.index() > 0:
        yield lambda metrics: None
        return
    package, open_tool = TOOLS[name]
    try:
        module = importlib.import_module(package)  # so that type checkers don't look for it
    except ImportError as error:
        raise ConfigError(missing(f"The logger `{name}`", name, error)) from error
    with open_tool(module, pathlib.Path(folder), _flat(config or {})) as log:

        def write(metrics: Mapping[str, Any]) -> None:
            numbers = {key: value for key, value in metrics.items() if key != "epoch" and not isinstance(value, str)}
            log(numbers, int(metrics["epoch"]))

        yield write


Log = Callable[[dict[str, float], int], None]  # numbers, and the epoch that they are of


@contextlib.contextmanager
def _tensorboard(module: Any, folder: pathlib.Path, config: Mapping[str, Any]) -> Iterator[Log]:
    with module.SummaryWriter(os.fspath(folder / "tensorboard")) as writer:

        def log(numbers: dict[str, float], epoch: int) -> None:
            for name, value in numbers.items():
                writer.add_scalar(name, value, epoch)
            writer.flush()

        yield log


@contextlib.contextmanager
def _mlflow(module: Any, folder: pathlib.Path, config: Mapping[str, Any]) -> Iterator[Log]:
    module.set_experiment(PROJECT)
    with module.start_run(run_name=_name(folder)):
        module.log_params(config)
        yield lambda numbers, epoch: module.log_metrics(numbers, step=epoch)


@contextlib.contextmanager
def _wandb(module: Any, folder: pathlib.Path, config: Mapping[str, Any]) -> Iterator[Log]:
    with module.init(project=PROJECT, name=_name(folder), config=dict(config), dir=os.fspath(folder)) as run:
        yield lambda numbers, epoch: run.log(numbers, step=epoch)


@contextlib.contextmanager
def _trackio(module: Any, folder: pathlib.Path, config: Mapping[str, Any]) -> Iterator[Log]:
    run = module.init(project=PROJECT, name=_name(folder), config=dict(config))
    try:
        yield lambda numbers, epoch: run.log(numbers, step=epoch)
    finally:
        run.finish()


TOOLS = {  # the package that each needs, and how a run is opened in it
    "tensorboard": ("tensorboardX", _tensorboard),
    "mlflow": ("mlflow", _mlflow),
    "wandb": ("wandb", _wandb),
    "trackio": ("trackio", _trackio),
}


def _name(folder: pathlib.Path) -> str:
    """Such as denoise-1, of runs/denoise/1."""
    return "-".join(folder.absolute().parts[-2:])


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by names such as model.body.hidden; what is no number or name is left out."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, str | int | float):
            flat[prefix + name] = value
    return flat
