"""Write metrics to other places than a run's metrics.jsonl."""

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flaxae.errors import ConfigError, missing
from flaxae.parallel import processes


@contextlib.contextmanager
def tensorboard(folder: str | os.PathLike[str]) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that writes an epoch's numbers for TensorBoard; it works until the `with` block ends.

    Only the first of several processes writes.

    Raises:
        ConfigError: the package tensorboardX is not installed.
    """
    if processes.index() > 0:
        yield lambda metrics: None
        return
    try:
        SummaryWriter = importlib.import_module("tensorboardX").SummaryWriter  # so that type checkers don't look for it
    except ImportError as error:
        raise ConfigError(missing("The logger `tensorboard`", "tensorboard", error)) from error
    with SummaryWriter(os.fspath(folder)) as writer:

        def write(metrics: Mapping[str, Any]) -> None:
            for name, value in metrics.items():
                if name != "epoch" and not isinstance(value, str):
                    writer.add_scalar(name, value, metrics["epoch"])
            writer.flush()

        yield write
