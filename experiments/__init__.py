"""Experiments: one file each, with the command, the time it takes and what to expect in its docstring.

Nothing heavy is imported before an experiment's `run`, so that `--help` and a mistyped flag answer at once.
"""

import ast
import contextlib
import dataclasses
import math
import pathlib
import shlex
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

from flaxae.data import formats
from flaxae.errors import ConfigError, DataError, unknown

if TYPE_CHECKING:
    import numpy as np
    from jax.sharding import Mesh

    from flaxae.data import Dataset, Stream
    from flaxae.runs import Run
    from flaxae.runs.report import Table


FORMATS = formats.listed("array", "signal", "table")  # of files whose examples are no images
FILES = {path.stem: path for path in sorted(pathlib.Path(__file__).parent.glob("[!_]*.py"))}  # by experiment


def overview() -> str:
    """The usage, with the first line of each experiment's docstring (read, not imported)."""
    documented = {name: ast.get_docstring(ast.parse(path.read_bytes())) for name, path in FILES.items()}
    lines = [f"  {name:12s} {text.splitlines()[0]}" for name, text in documented.items()]
    usage = command("NAME")
    return "\n".join([f"usage: {usage} [flags]   ({usage} --help lists its flags)", "", *lines, ""])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The flags that every experiment shares."""

    used_with: ClassVar[tuple[str, ...]] = ("from", "input", "output")  # the flags that use a trained model

    data: Annotated[
        str,
        tyro.conf.arg(
            help=f"What to train on: `mnist`, `tfds:NAME`, or a path: of a file ({FORMATS}), or of a folder of images "
            "or IDX files."
        ),
    ] = "mnist"
    label: str | None = None
    """The column of a table, or feature of a TFDS set, that is a label and not trained on."""
    time: str | None = None
    """The column of a table that tells the time, carried into the results and not trained on; by default found."""
    id: tuple[str, ...] = ()
    """Columns of a table that name its rows, carried into the results and not trained on; by default found."""
    drop: tuple[str, ...] = ()
    """Columns of a table to leave out."""
    keep: tuple[str, ...] = ()
    """Columns of a table to train on even if they look like clocks, counters or names of rows."""
    window: int | None = None
    """Take the data for a signal (the rows of a table for moments), and cut it into windows of so many moments."""
    stride: int | None = None
    """A window begins every so many moments; by default every half window."""
    model: str | None
    """The preset to train."""
    epochs: int | None = None
    """Passes over the training data; by default what a large set needs, and more of a small one."""
    seed: int = 0
    """Of the weights, the shuffles, the noise and the held-out part: the same seed gives the same run."""
    name: str | None = None
    """The run's folder, runs/EXPERIMENT/NAME; by default the next free number."""
    resume: bool = False
    """Go on with the interrupted run of that name (by default the newest one)."""
    from_: Annotated[pathlib.Path | None, tyro.conf.arg(name="from", metavar="RUN")] = None
    """Use the trained model of this run folder, on --input, instead of training one."""
    input: Annotated[
        pathlib.Path | None,
        tyro.conf.arg(help=f"New data for the model given by --from: an image, a folder of images, {FORMATS}."),
    ] = None
    output: pathlib.Path | None = None
    """Where to write what the model makes of --input, in the same format."""
    mesh: str | None = None
    """Devices to share each batch, such as `data=4`; by default one, or all of several processes (Slurm, mpirun).
    With --sweep, `population=2,data=4` trains models side by side as well."""
    logger: str | None = None
    """Where metrics go besides metrics.jsonl: `tensorboard`, into the run's folder (needs the extra of that name)."""
    cache: bool = True
    """Keep compiled programs in the user's cache folder, so that the next run starts at once."""

    @property
    def applies(self) -> bool:
        """Whether the experiment's `apply` is asked for, which uses a trained model, and not its `train`."""
        return self.from_ is not None

    def __post_init__(self) -> None:
        if self.epochs is not None and self.epochs < 1:
            raise ConfigError(f"--epochs is {self.epochs}; it has to be at least 1.")
        if self.logger is not None:
            check_name("logger", self.logger, ("tensorboard",))
        together = {"from": "RUN", "input": "NEW", "output": "RESULT"}
        given = [flag for flag in together if getattr(self, flag.replace("from", "from_")) is not None]
        if given and given != list(self.used_with):
            raise ConfigError(
                f"{' and '.join(f'--{flag}' for flag in given)} can't be used so: "
                f"{' '.join(f'--{flag} {together[flag]}' for flag in self.used_with)} go together."
            )


def load(config: Config, **more: Any) -> "Dataset":
    """The data that the flags ask for; `more` are further arguments of `data.load`."""
    from flaxae import data

    columns = {"label": config.label, "time": config.time, "ids": config.id, "drop": config.drop, "keep": config.keep}
    return data.load(config.data, **columns, **more, window=config.window, stride=config.stride, seed=config.seed)


def parts(config: Config, dataset: "Dataset") -> "tuple[np.ndarray | Stream, float | np.ndarray]":
    """What to train on, scaled, and the `validation` of `fit`: a fraction, drawn there; of a signal the last windows.

    A signal's windows overlap: those drawn at random would be half known from others.

    Raises:
        DataError: the signal is too short for both.
    """
    x, fraction = dataset.scaling(dataset.train), config.validation
    if dataset.framing is None or not 0 < fraction < 1:
        return x, fraction
    held_out = math.ceil(fraction * len(x))
    kept = len(x) - held_out - dataset.framing.apart
    if kept < 1:
        raise DataError(
            f"{len(x)} windows can't be split into some to train on and some to validate on that share no moment: "
            "give a longer signal, or --validation 0."
        )
    return x[:kept], x[-held_out:]


def in_memory(dataset: "Dataset") -> "Dataset":
    """The data set, its training part a sample if it is a stream, with a line that says so."""
    sample = dataset.train_sample
    if len(sample) == len(dataset.train):
        return dataset
    print(f"Takes {len(sample):,} of the {len(dataset.train):,} training examples, which don't fit in memory.")
    return dataclasses.replace(dataset, train=sample)


def refuse_mesh(config: Config) -> None:
    """Raise ConfigError if --mesh is given, to an experiment that trains several small models on one device."""
    if config.mesh is not None:
        raise ConfigError("--mesh is for denoise, reconstruct, generate and reduce; this experiment uses one device.")


def new_file(dataset: "Dataset", name: str = "new") -> str:
    """A name for new data of that kind."""
    if dataset.kind == "tabular" or dataset.columns:
        return f"{name}.csv"
    return f"{name}.wav" if dataset.framing and dataset.framing.rate else f"{name}.npy"


def lines(x: "np.ndarray") -> "np.ndarray":
    """Rows of a table, [n, columns], or signals, [n, time, channels], one channel after the other, as [n, features]."""
    import numpy as np

    return np.moveaxis(x, 1, -1).reshape(len(x), -1)


def check_name(flag: str, given: str, known: tuple[str, ...]) -> None:
    """Raise ConfigError, with the nearest name, unless `given` is one of those known."""
    if given not in known:
        raise ConfigError(unknown(f"--{flag}", given, known))


def enough_epochs(examples: int, batch_size: int, *, epochs: int, steps: int) -> int:
    """`epochs`, or as many more as it takes to make that many steps on few examples."""
    return max(epochs, math.ceil(steps / max(1, examples // batch_size)))


def settings(config: Config) -> dict[str, Any]:
    """The flags that decide what is trained, for a run's config.json."""
    apart = ("name", "resume", "from_", "input", "output", "mesh", "logger", "cache")
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in apart}


def mesh(config: Config) -> "Mesh | None":
    """The devices that the flags ask for."""
    from flaxae.parallel import distributed

    return None if config.mesh is None else distributed.mesh(config.mesh)


@contextlib.contextmanager
def resources(config: Config, run: "Run", *, log: bool = True) -> Iterator[dict[str, Any]]:
    """The arguments of `training.fit` that say on what devices to train, and where the metrics of each epoch go."""
    from flaxae.runs import loggers

    with contextlib.ExitStack() as stack:
        writers = [run.log_epoch] if log else []
        if config.logger == "tensorboard":
            writers.append(stack.enter_context(loggers.tensorboard(run.folder / "tensorboard")))

        def on_epoch(metrics: dict[str, float | str]) -> None:
            for write in writers:
                write(metrics)

        yield {"mesh": mesh(config), "on_epoch": on_epoch}


def started() -> list[str]:
    """The words that the user started this with, before any flag: `flaxae`, or in a checkout `python run.py`."""
    return ["python", "run.py"] if pathlib.Path(sys.argv[0]).name == "run.py" else ["flaxae"]


def command(experiment: str, **flags: object) -> str:
    """The command line, in the form that the user used, that runs an experiment with those flags."""
    named = ["--exp"] if len(started()) > 1 else []
    given = [word for flag, value in flags.items() for word in (f"--{flag.strip('_')}", str(value))]
    return shlex.join([*started(), *named, experiment, *given])


def running() -> str:
    """The command line that is running."""
    return shlex.join([*started(), *sys.argv[1:]])


@contextlib.contextmanager
def resumable(run: "Run") -> Iterator[None]:
    """Say how to go on with the run when it is interrupted inside."""
    try:
        yield
    except KeyboardInterrupt:
        flags = [flag for flag in sys.argv[1:] if flag != "--resume"]
        named = [] if "--name" in flags else ["--name", run.folder.name]
        go_on = shlex.join([*started(), *flags, *named, "--resume"])
        saved = "what was trained is saved" if run.checkpoints.exists() else "nothing was saved yet"
        raise KeyboardInterrupt(f"Interrupted; {saved}. Go on with: {go_on}") from None


def print_table(table: "Table") -> None:
    """Print a report's table, on a terminal in its width, into a file in plain characters."""
    import rich.box
    import rich.console
    import rich.table
    from rich.text import Text

    from flaxae.runs.report import printable

    def text(cell: object) -> Text:  # whose brackets rich doesn't read as markup
        return Text(printable(f"{cell:.4g}" if isinstance(cell, float) else str(cell)))

    drawn = rich.table.Table(title=text(table.caption), box=rich.box.SIMPLE_HEAD)
    for i, column in enumerate(table.heads, 1):  # where there is no room, the last column is what wraps
        drawn.add_column(text(column.head), justify="right" if column.name else "left", no_wrap=i < len(table.columns))
    for row in table.rows:
        drawn.add_row(*map(text, row))
    rich.console.Console().print(drawn)
