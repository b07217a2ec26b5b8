"""The steps that experiments share: load the data, train on the given devices, and finish with a report."""

import contextlib
import dataclasses
import math
import pathlib
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import rich.box
import rich.console
import rich.table
from flax import nnx
from jax.sharding import Mesh
from rich.text import Text

from flaxae import autoencoder, baselines, data, experiments, interruption, presets, runs, stacked, trained, training
from flaxae.autoencoder import Autoencoder
from flaxae.data import Dataset, Stream, images
from flaxae.data.images import Images
from flaxae.errors import DataError
from flaxae.experiments import _flags
from flaxae.parallel import distributed
from flaxae.printing import printable, say
from flaxae.runs import Run, loggers, plots, report
from flaxae.runs.report import Table
from flaxae.training import History

EPOCHS, STEPS = 10, 2000  # the default: so many epochs, and for a small data set at least so many steps
SIDE = 64  # pixels, of pieces of images, and of whole ones where one size is needed
AT_ONCE = 256  # images that a model is run on together
MOST_PIECES, PIECES_BYTES = 20_000, 256 * 2**20
PRETRAINING_EPOCHS = 2  # for each layer of a stack
MOST_VALUES_FOR_PCA = 4096  # per example: PCA takes time with the cube of this number


def load(config: _flags.Flags, *, marks: bool = True) -> Dataset:
    """The data set that the flags name; of a table with features that mark missing values, or without."""
    columns = {"label": config.label, "time": config.time, "ids": config.id, "drop": config.drop, "keep": config.keep}
    return data.load(
        config.data,
        **columns,
        marks=marks,
        window=config.window,
        stride=config.stride,
        size=config.size,
        max_pixels=config.max_pixels,
        seed=config.seed,
    )


def whole(dataset: Dataset, config: _flags.Flags) -> Dataset:
    """The data set, its images brought to one size if they differ or are large, with a line that says so."""
    if not dataset.differ_in_size:
        return dataset
    say(f"Images are brought to {SIDE} × {SIDE} pixels, as this takes all of one size; --size N is another.")
    return load(dataclasses.replace(config, size=SIDE))


def pieces(dataset: Dataset, seed: int, *, most: int = MOST_PIECES, flips: bool = True) -> Dataset:
    """The data set, its images cut into random pieces if they differ in size or are large, with a line that says so."""
    train, test = dataset.train, dataset.test
    if not isinstance(train, Images) or not isinstance(test, Images):
        return dataset
    smallest = min(min(part.shape_of(i)[:2]) for part in (train, test) for i in range(len(part)))
    side = max(16, min(SIDE, smallest // 8 * 8))  # which smaller images are mirrored to
    bytes_each = 4 * side**2 * (train.channels or 1)
    count = min(most, PIECES_BYTES // bytes_each)
    turned = ", turned and mirrored," if flips else ""
    say(
        f"Trains on {count:,} random pieces of {side} × {side} pixels{turned} of {len(train)} images; "
        "--size N takes whole images, brought to that size."
    )
    cut = [
        dataset.scaling.undo(next(images.crops(part, side, number, seed, flips=flips)))
        for part, number in ((train, count), (test, max(1, count // 10)))
    ]
    return dataclasses.replace(
        dataset, train=cut[0], test=cut[1], train_labels=None, test_labels=None, test_rows=None, test_files=None
    )


class OfImages(NamedTuple):
    """What a model made of images, and which: those that could not be read are left out, see `Images.check`."""

    images: Images
    names: np.ndarray  # objects
    made: np.ndarray


def of_images(config: _flags.Flags, model: trained.Trained, method: Any, module: nnx.Module) -> OfImages:
    """What a model's method makes of the images of --input, brought to its size, some at a time."""
    found = model.images(config.input, fit=True, max_pixels=config.max_pixels)
    say(found.summary())
    names, made, batch = [], [], []

    def run() -> None:
        made.append(training.apply(method, module, training.check_examples(model.model, np.stack(batch))))
        batch.clear()

    for i, image in found.each(show=True):
        names.append(found.names[i])
        batch.append(image)
        if len(batch) == AT_ONCE:
            run()
    if batch:
        run()
    if not made:
        found.check()
    return OfImages(found, np.array(names, object), np.concatenate(made))


def announce(
    dataset: Dataset,
    model: autoencoder.Config,
    *,
    epochs: int,
    batch_size: int,
    shape: tuple[int, ...] | None = None,
) -> None:
    """Print of images how large a model is and roughly how long it trains, before it does; `shape` is what it sees."""
    if dataset.images is not None:
        steps = epochs * max(1, len(dataset.train) // batch_size)
        told = training.cost(model, shape or dataset.shape, steps=steps, batch_size=batch_size)
        say(f"Trains {told}: {epochs} epochs, {steps:,} steps.")


def parts(config: _flags.PresetFlags, dataset: Dataset) -> tuple[np.ndarray | Stream, float | np.ndarray]:
    """The scaled training data, and the `validation` of `fit`: a fraction, or for a signal its last windows.

    Windows of a signal overlap, so that validation windows drawn at random would be half known from training windows.

    Raises:
        DataError: the signal is too short for both.
    """
    x, fraction = dataset.scaling(dataset.train), config.validation
    if dataset.framing is None or not 0 < fraction < 1:
        return x, fraction
    held_out = math.ceil(fraction * len(x))
    kept = int(np.sum(dataset.train_rows + dataset.framing.window <= dataset.train_rows[-held_out]))
    if kept < 1:
        raise DataError(
            f"{len(x)} windows can't be split into some to train on and some to validate on that share no moment: "
            "give a longer signal, or --validation 0."
        )
    return x[:kept], x[-held_out:]


def in_memory(dataset: Dataset) -> Dataset:
    """The data set. If its training part is a stream, a sample takes its place, and a printed line says so."""
    sample = dataset.train_sample
    if len(sample) == len(dataset.train):
        return dataset
    say(f"Takes {len(sample):,} of the {len(dataset.train):,} training examples, which don't fit in memory.")
    return dataclasses.replace(dataset, train=sample)


def new_file(dataset: Dataset, name: str = "new") -> str:
    """A file name for new data of the data set's kind."""
    if dataset.images is not None:
        return "images/"
    if dataset.kind == "tabular" or dataset.columns:
        return f"{name}.csv"
    return f"{name}.wav" if dataset.framing and dataset.framing.rate else f"{name}.npy"


def lines(x: np.ndarray) -> np.ndarray:
    """Rows of a table, [n, columns], or signals, [n, time, channels], as [n, features], one channel after the other."""
    return np.moveaxis(x, 1, -1).reshape(len(x), -1)


def enough_epochs(examples: int, batch_size: int, *, epochs: int, steps: int) -> int:
    """`epochs`, or more if there are few examples, so that there are at least `steps` steps."""
    return max(epochs, math.ceil(steps / max(1, examples // batch_size)))


def settings(config: _flags.Flags) -> dict[str, Any]:
    """The flags that decide how the model is trained, for a run's config.json."""
    apart = ("name", "resume", "from_", "input", "output", "mesh", "logger", "cache", "max_pixels", "maps")
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in apart}


def mesh(config: _flags.Flags) -> Mesh | None:
    """The mesh of devices that the flags ask for."""
    return None if config.mesh is None else distributed.mesh(config.mesh)


@contextlib.contextmanager
def resources(config: _flags.Flags, run: Run, *, log: bool = True) -> Iterator[dict[str, Any]]:
    """The arguments `mesh` and `on_epoch` of `training.fit`: the devices, and where the metrics of each epoch go."""
    with contextlib.ExitStack() as stack:
        writers = [run.log_epoch] if log else []
        if config.logger is not None:
            about = {name: run.config[name] for name in ("settings", "model") if name in run.config}
            writers.append(stack.enter_context(loggers.opened(config.logger, run.folder, about)))

        def on_epoch(metrics: dict[str, Any]) -> None:
            for write in writers:
                write(metrics)

        yield {"mesh": mesh(config), "on_epoch": on_epoch}


@contextlib.contextmanager
def start(
    experiment: str,
    config: _flags.Flags,
    dataset: Dataset,
    model: autoencoder.Config,
    shape: tuple[int, ...] | None = None,
    **more: Any,
) -> Iterator[Run]:
    """A new run of that experiment, or the one to resume. Its config.json has settings, model and data, and `more`."""
    about = {"settings": settings(config), **trained.describe(model, dataset, shape), **more}
    with runs.start(experiment, config.name, about, resume=config.resume) as run, resumable(run):
        yield run


@contextlib.contextmanager
def resumable(run: Run) -> Iterator[None]:
    """If the block is interrupted, say how to resume the run."""

    def message() -> str:
        flags = [flag for flag in sys.argv[1:] if flag != "--resume"]
        named = [] if "--name" in flags else ["--name", run.folder.name]
        go_on = shlex.join([*experiments.started(), *flags, *named, "--resume"])
        steps = [int(path.name) for path in run.folder.glob("**/latest/*") if path.name.isdecimal()]
        saved = f"what was trained is saved up to step {max(steps):,}" if steps else "nothing was saved yet"
        return f"Interrupted; {saved}. Go on with: {go_on}"

    with interruption.saying(message):
        yield


def print_table(table: Table) -> None:
    """Print a report's table, in the width of the terminal, or to a file in plain characters."""

    def text(cell: object) -> Text:  # rich doesn't read brackets in a Text as markup
        return Text(printable(f"{cell:.4g}" if isinstance(cell, float) else str(cell)))

    drawn = rich.table.Table(title=text(table.caption), box=rich.box.SIMPLE_HEAD)
    for i, column in enumerate(table.heads, 1):  # without room, only the first and the last wrap
        drawn.add_column(
            text(column.head), justify="right" if column.name else "left", no_wrap=1 < i < len(table.columns)
        )
    for row in table.rows:
        drawn.add_row(*map(text, row))
    rich.console.Console().print(drawn)


def preset(config: _flags.PresetFlags, dataset: Dataset, *, latent: int | None = None) -> autoencoder.Config:
    """The config that the flags ask for, with the likelihood that fits the data and their scaling."""
    made = presets.find(config.model, presets.likelihood(dataset.kind, dataset.encoding, dataset.scaling))
    size = latent or config.latent
    return made.with_latent(size) if size else made


def epochs(config: _flags.PresetFlags, dataset: Dataset, *, least: int = EPOCHS) -> int:
    """--epochs; by default `least`, or more if there are few examples, so that there are at least `STEPS` steps."""
    return config.epochs or enough_epochs(len(dataset.train), config.batch_size, epochs=least, steps=STEPS)


def train(
    config: _flags.PresetFlags,
    run: Run,
    dataset: Dataset,
    model: autoencoder.Config,
    *,
    least: int = EPOCHS,
    part: str = "",
    log: bool = True,
    **optimizer: Any,
) -> tuple[Autoencoder, History]:
    """Train a model, from its checkpoint if the run is resumed, and return it with its history.

    The checkpoints of a `part` are in a subfolder of that name. `optimizer` are further settings of `training.fit`.
    """
    x, validation = parts(config, dataset)
    network = autoencoder.build(model, dataset.shape, seed=config.seed)
    folder = run.checkpoints / part
    resume = config.resume and training.checkpoints.begun(folder)
    settings = {"batch_size": config.batch_size, "learning_rate": config.learning_rate, "seed": config.seed}
    if config.model == "stacked" and not resume:
        known, _ = training.split(network, x, validation, config.seed, mesh=None)  # without validation examples
        stacked.pretrain(
            network,
            dataset.scaling(dataset.train_sample) if isinstance(known, Stream) else known,
            epochs=PRETRAINING_EPOCHS,
            validation=0.0,
            folder=run.folder / "pretraining" / part,
            resume=config.resume,
            **settings,
        )
    announce(dataset, model, epochs=epochs(config, dataset, least=least), batch_size=config.batch_size)
    with resources(config, run, log=log) as given:
        history = training.fit(
            network,
            x,
            epochs=epochs(config, dataset, least=least),
            validation=validation,
            patience=config.patience,
            optimizer=config.optimizer,
            precision=config.precision,
            folder=folder,
            resume=resume,
            **settings,
            **optimizer,
            **given,
        )
    return network, history


def mean_squared_error(model: Autoencoder, x: np.ndarray) -> float:
    """The mean squared error of the reconstruction, per value and in the model's scale."""
    return float(np.mean(np.square(training.apply(Autoencoder.reconstruct, model, x) - x)))


def pca_error(dataset: Dataset, components: int) -> float | None:
    """PCA's mean squared error on the test examples; None if it has fewer components, or would take too long."""
    train, test = dataset.scaling(dataset.train_sample), dataset.scaling(dataset.test)
    if train[0].size > MOST_VALUES_FOR_PCA or components > min(len(train), train[0].size):
        return None
    return float(np.mean(np.square(baselines.pca_reconstruct(test, train=train, components=components) - test)))


def finish(
    run: Run,
    title: str,
    summary: str,
    tables: list[Table],
    figures: list[tuple[str, str]],
    results: Mapping[str, Any],
    usage: str,
    *,
    history: Mapping[str, Sequence[float]] | None = None,
    sounds: Sequence[tuple[str, pathlib.Path]] = (),
    explore: report.Explore | None = None,
) -> None:
    """Write the report and results.json, print the tables. `figures` are captions and names, `sounds` and files."""
    if history is not None:
        plots.curves(history, run.figure("curves"))
        figures = [
            *figures,
            ("Loss an epoch, of training examples and, if there are any, of those held out.", "curves"),
        ]
        results = {"train/seconds": history["seconds"][-1], "train/epochs": len(history["loss"]), **results}
    report.write(
        run.folder / "report.html",
        title=title,
        summary=summary,
        command=experiments.running(),
        tables=tables,
        figures=[(caption, run.figure(name)) for caption, name in figures],
        config=run.config,
        usage=usage,
        epochs=run.history(),
        sounds=sounds,
        explore=explore,
    )
    run.write_results(results)
    for table in tables:
        print_table(table)
    say(f"{summary}\nReport: {run.folder / 'report.html'}\nUse it: {usage}")
