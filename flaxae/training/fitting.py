"""`fit`: one model, trained by the loop."""

import contextlib
import functools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from flaxae import batches, errors
from flaxae.autoencoder import Autoencoder, own_objective
from flaxae.batches import Examples
from flaxae.data.stream import Stream
from flaxae.objectives import Objective, squared_error
from flaxae.parallel import distributed, processes
from flaxae.training import feed, loop, optimizers, progress, step
from flaxae.training.examples import check_examples, check_objective, check_range, has_streams, split
from flaxae.training.optimizers import Optimizer
from flaxae.training.precision import chosen, in_precision, is_unet
from flaxae.training.step import Schedule

TOLD = 512  # examples that the error on the progress line is of
SHORT = 2e10  # examples seen × parameters × places: below it, training takes less time than compiling a faster program


class History(dict[str, list[float]]):
    """A list for each metric, with one value per epoch: `loss`, `val_loss` (nats per example), `seconds` (so far), …"""

    @property
    def history(self) -> "History":
        """Itself, so that code written for Keras (`fit(…).history["loss"]`) works."""
        return self


def fit(
    model: Autoencoder,
    x: Examples | Stream | Iterable[Any] | Callable[[int], Iterable[Any]],
    *,
    epochs: int = 10,
    batch_size: int = 256,
    learning_rate: float | None = None,
    warmup: float = 0.1,
    schedule: str = "cosine",
    weight_decay: float = 0.0,
    ema: float | None = None,
    optimizer: str | optax.GradientTransformation = "adam",
    microbatches: int = 1,
    validation: Any = 0.1,
    patience: int | None = None,
    keep: str = "best",
    score: Objective | None = None,
    objective: Objective | None = None,
    schedules: Mapping[str, Schedule] | None = None,
    precision: str = "float32",
    steps_per_epoch: int | None = None,
    mesh: Mesh | None = None,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    show: bool = True,
    on_epoch: loop.OnEpoch | None = None,
) -> History:
    """Train `model` in place on x, scaled as its likelihood expects.

    The model ends with the weights of the epoch with the lowest validation loss (without validation, of the last).

    Args:
        x: an array or a tree in memory (see `batches.Batch`); a memory map, a `data.Stream`, or a tree with any of
            them, which is read a window at a time and never whole; or anything else that gives batches of one size
            when iterated over (a generator, a torch DataLoader, a grain loader). Such batches are taken as they come.
            Or a function of a step that gives the batches from that step on, the same each time: it can be resumed.
        batch_size: unless x gives batches already.
        learning_rate: by default 3e-3. It, warmup, schedule and weight_decay are for "adam" and "muon" only.
        warmup, schedule, weight_decay, ema: see `Optimizer`.
        optimizer: "adam" or "muon", see `Optimizer.method`; or an optax transformation that does everything, such as
            `optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))`. With `optax.multi_transform`, layers have
            learning rates of their own; with `optax.set_to_zero()` they are frozen.
        microbatches: into how many parts a batch is cut to accumulate its gradient, see `Optimizer`.
        validation: the fraction of x to validate on, drawn by `seed`, or the validation examples themselves; 0 for no
            validation. If x gives batches, it can't be a fraction.
        patience: stop after so many epochs without a better score.
        keep: the weights that the model ends with: "best", those of the epoch with the lowest score, or "last".
        score: an objective, whose mean over the validation examples is the score of an epoch; by default the objective
            that is trained.
        objective: per example, `(model, batch, key) -> [batch]`; by default the model's own. If it returns
            `(loss, metrics)`, the metrics go into the history.
        schedules: for hyper-parameters, by their names in `model.hyper`: functions of the step, as in optax, such as
            `{"beta": optax.linear_schedule(0.0, 1.0, 1000)}`. The model is validated, and ends, with their last values.
        precision: "float32"; "bf16" for an encoder and a decoder in bfloat16, or on a CPU their products; or "auto"
            for the faster of them, which is bfloat16 for wide fully connected networks, on accelerators and CPUs with
            instructions for it, and on CPUs with AMX for all but the smallest networks, U-Nets since JAX 0.12.
            Validation is in float32.
        steps_per_epoch: if x gives batches; by default the length of x.
        mesh: devices to train on, see `distributed.mesh`; each has a part of every batch. By default the first device,
            or with several processes, which all call this, all devices of all processes.
        folder: where checkpoints go: `latest/`, to resume from, and `best/`, the model. Ctrl-C, SIGTERM and SIGHUP
            save, too. If a run diverges, `best/` has the last good weights.
        resume: go on from the newest good checkpoint in `folder`. The result is bit for bit that of a run without
            interruption; with another number of cores or another JAX, the weights are as good but not the same, and a
            warning says so.
        show: show a progress bar, or without a terminal, print a line per epoch.
        on_epoch: called in the first process after each epoch with its metrics: those of the history,
            `samples_per_s_per_device`, `waited` (seconds spent waiting for data in this epoch), and those of
            `distributed.describe`. If it returns True, training ends.

    Raises:
        DataError: x is empty, not finite, or doesn't fit the model.
        ConfigError: a setting is out of range, or the objective doesn't give one number per example.
        DivergedError: the loss stopped being finite; the model then holds the last good weights.
        CheckpointError: `resume` is set, and the checkpoint has other data or settings, or there is no good one.
        KeyboardInterrupt: after an interrupt, with the weights so far in the model and in `folder`.
    """
    processes.refuse_fork()
    rate = check_settings(epochs, batch_size, learning_rate, warmup, schedule, weight_decay, ema, patience, optimizer)
    check_kept(keep, score, validation)
    exact = objective or own_objective
    mesh = mesh or distributed.default_mesh()
    given = None if gives_batches(x) else (x, validation)
    x, held_out, source = _source(model, x, validation, batch_size, steps_per_epoch, seed, mesh, resume)
    batch_size = source.batch_size
    steps = epochs * source.windows * source.steps
    check_microbatches(batch_size, microbatches, mesh)
    set_schedules(model, schedules or {}, steps)
    step_key, held_out_key = keys(seed)
    graphdef, params, _ = nnx.split(model, nnx.Param, ...)
    short = steps * batch_size * sum(leaf.size for leaf in jax.tree.leaves(params)) * _places(model) < SHORT
    update = Optimizer(warmup, schedule, weight_decay, ema, optimizer, microbatches, flat=short)
    precision, objective, run_block = compiled_for(model, exact, precision, short=short)
    if short and mesh is None and isinstance(source, feed.Resident):
        source = source.with_room()
    some = source.first if isinstance(source, feed.Iterated) else source.x if isinstance(source, feed.Resident) else x
    metrics = check_objective(model, objective, batches.take(some, slice(0, 1)))
    program = step.Program(graphdef, objective, update, batch_size, tuple((schedules or {}).items()))

    def block(state: step.State, x: Any, order: feed.Order, start: int, stop: int) -> step.State:
        return run_block(program, state, x, order, step_key, start, stop, steps)

    def evaluate(objective: Objective, weights: step.Weights) -> step.Sums:
        return step.evaluate(graphdef, objective, batch_size, *weights, held_out, held_out_key)

    validate, chosen_by = validation_of(evaluate, exact, score, held_out)
    told = held_out if held_out is not None else x if isinstance(source, feed.Resident) else None
    told = None if mesh is not None else told

    def figures(weights: step.Weights) -> str:
        some = batches.take(told, slice(0, TOLD))
        error = step.evaluate(graphdef, squared_error, batch_size, *weights, some, held_out_key)["loss"]
        return progress.figures(float(error), model.likelihood.support)

    work = loop.Work(
        block=block,
        sums=lambda state: (state.ok, state.sums),
        begin=step.begun,
        weights=step.weights,
        validate=validate,
        chosen_by=chosen_by,
        source=source,
        samples=batch_size,
        figures=None if told is None else figures,
    )
    settings = {**settings_of(seed, x, source, epochs, update, keep, precision), "learning_rate": rate}
    start = loop.start(work, distributed.place(step.init(model, update, rate, metrics), mesh), epochs, settings)
    own = {"patience": patience, "keep": keep, "mesh": mesh, "folder": folder, "resume": resume, "show": show}
    own["data"] = given
    try:
        with contextlib.closing(source):
            run = loop.train(work, start, on_epoch=on_epoch, **own)
    except loop.Interrupted as interrupt:
        nnx.update(model, *distributed.local(step.weights(interrupt.snapshot.state), mesh))
        raise KeyboardInterrupt from None
    done = loop.done(run.history)
    if not run.state.ok:
        nnx.update(model, *distributed.local(step.weights(run.state), mesh))
        raise errors.DivergedError(_diverged(done, rate))
    nnx.update(model, *distributed.local(run.best, mesh))
    return History({name: values[:done].tolist() for name, values in run.history.items()})


def _places(model: Autoencoder) -> int:
    """At how many places of an example a U-Net's finest kernels are applied; 1 for other models."""
    return math.prod(model.shape[:2]) // 4 if model.shape and is_unet(model) else 1


def compiled_for(
    model: Autoencoder, objective: Objective, precision: str, *, short: bool
) -> tuple[str, Objective, Callable[..., step.State]]:
    """The precision that is taken, the objective in it, and the block of steps that it is to be compiled in."""
    precision = chosen(precision, model)
    in_float32 = is_unet(model) and precision == "float32"  # by batches of products, which are faster without YNNPACK
    block = step.short_block if short else step.unet_block if in_float32 else step.train_block
    return precision, in_precision(objective, precision), block


def validation_of(
    evaluate: Callable[[Objective, Any], Mapping[str, Any]],
    objective: Objective,
    score: Objective | None,
    held_out: Any,
) -> tuple[Callable[[Any], dict[str, Any]] | None, str]:
    """The function from weights to validation scores (None without validation), and the name of the score to choose by.

    The scores are `val_loss`, the objective's metrics as `val_…`, and `val_score` if the user gave a score.
    """
    if held_out is None:
        return None, "loss"

    def validate(weights: Any) -> dict[str, Any]:
        scores = {f"val_{name}": value for name, value in evaluate(objective, weights).items()}
        return scores if score is None else {**scores, "val_score": evaluate(score, weights)["loss"]}

    return validate, "val_loss" if score is None else "val_score"


def settings_of(
    seed: int, x: Any, source: Any, epochs: int, update: Optimizer, keep: str, precision: str
) -> dict[str, Any]:
    """The settings that have to be the same when a run is resumed, as numbers."""
    examples = 0 if isinstance(source, feed.Iterated) else batches.count(x)
    return {
        "seed": float(seed),
        "examples": float(examples),
        "batch_size": float(source.batch_size),
        "epochs": float(epochs),
        "warmup": update.warmup,
        "weight_decay": update.weight_decay,
        "ema": update.ema or 0.0,
        "constant_schedule": float(update.schedule == "constant"),
        "bf16": float(precision == "bf16"),
        "muon": float(update.method == "muon"),
        "own_optimizer": float(update.own),
        "microbatches": float(update.microbatches),
        "keep_last": float(keep == "last"),
        "windows": float(source.windows),
    }


def keys(seed: int) -> Any:
    """A run's two keys: one for the steps and one for validation."""
    return jax.random.split(jax.random.key(seed))


def _source(
    model: Autoencoder,
    x: Any,
    validation: Any,
    batch_size: int,
    steps_per_epoch: int | None,
    seed: int,
    mesh: Mesh | None,
    resume: bool,
) -> tuple[Any, Any | None, feed.Resident | feed.Windows | feed.Iterated]:
    """The training examples, the validation examples, and the batches of the training examples."""
    if not gives_batches(x):
        x, held_out = split(model, x, validation, seed, mesh)
        return x, held_out, feed_of(model, x, batch_size, seed, mesh)
    if isinstance(validation, int | float) and validation != 0:
        raise errors.ConfigError(
            f"validation is {validation}: of what gives batches nothing can be held out. Give the examples to validate "
            "on, or validation=0."
        )
    if resume and not feed.gives_from_step(x):
        raise errors.ConfigError(
            "resume=True can't be promised for what gives batches: nobody knows what it gave before. Give arrays, a "
            "memory map, a Stream, or a function that gives the batches from a step on."
        )
    steps = steps_per_epoch or (len(x) if hasattr(x, "__len__") else 0)
    if steps < 1:
        raise errors.ConfigError("What gives batches has no length here: say how many an epoch has, steps_per_epoch=….")
    held_out = (
        None if isinstance(validation, int | float) else distributed.place(check_examples(model, validation), mesh)
    )
    source = feed.Iterated(x, steps, mesh, functools.partial(check_examples, model))
    check_shared(source.batch_size, mesh)
    return x, held_out, source


def gives_batches(x: Any) -> bool:
    """Whether x is an iterable of batches or a function that makes one, and not an array, a tree or a stream."""
    if isinstance(x, Mapping | Stream | str) or hasattr(x, "dtype") or hasattr(x, "_fields"):
        return False
    if feed.gives_from_step(x):
        return True
    if isinstance(x, list | tuple):  # of numbers, or of batches
        return bool(x) and (isinstance(x[0], Mapping) or np.ndim(x[0]) > 1) and not _is_nested_list(x)
    return isinstance(x, Iterator | Iterable)


def _is_nested_list(x: Any) -> bool:
    """Whether x is one array, written as nested lists of numbers."""
    return isinstance(x[0], list | tuple) and not any(hasattr(part, "dtype") for part in x[0])


def feed_of(model: Autoencoder, x: Any, batch_size: int, seed: int, mesh: Mesh | None) -> feed.Resident | feed.Windows:
    """The batches of training examples from `split`.

    Raises:
        ConfigError: the devices of the mesh can't share a batch evenly.
    """
    batch_size = min(batch_size, batches.count(x))
    check_shared(batch_size, mesh)
    if has_streams(x):
        return feed.Windows(x, batch_size, seed, mesh, functools.partial(check_range, model))
    return feed.Resident(x, batch_size, seed)


def check_shared(batch_size: int, mesh: Mesh | None) -> None:
    """Raise ConfigError unless the devices of the mesh can share a batch evenly."""
    if mesh is not None and batch_size % mesh.shape["data"]:
        raise errors.ConfigError(
            f"Batches of {batch_size} examples can't be shared evenly by {mesh.shape['data']} devices: "
            "choose another batch_size."
        )


def check_settings(
    epochs: int,
    batch_size: int,
    learning_rate: float | None,
    warmup: float,
    schedule: str,
    weight_decay: float,
    ema: float | None,
    patience: int | None,
    optimizer: str | optax.GradientTransformation = "adam",
) -> float:
    """Check the settings, and return the learning rate.

    Raises:
        ConfigError: a setting is out of range, or is given beside an optax optimizer, which has its own.
    """
    if isinstance(optimizer, optax.GradientTransformation) and (
        (learning_rate, warmup, schedule, weight_decay) != (None, 0.1, "cosine", 0.0)
    ):
        raise errors.ConfigError(
            "A transformation of optax is all of the optimizer: learning_rate, warmup, schedule and weight_decay can't "
            "be given beside it."
        )
    rate = optimizers.LEARNING_RATE if learning_rate is None else learning_rate
    for name, value, good, rule in (
        ("epochs", epochs, lambda v: v >= 1, "at least 1"),
        ("batch_size", batch_size, lambda v: v >= 1, "at least 1"),
        ("learning_rate", rate, lambda v: 0 < v < math.inf, "finite and above 0"),
        ("warmup", warmup, lambda v: 0 <= v < 1, "a fraction of the run, at least 0 and below 1"),
        ("weight_decay", weight_decay, lambda v: 0 <= v < math.inf, "finite and at least 0"),
        ("ema", ema, lambda v: v is None or 0 < v < 1, "None, or above 0 and below 1"),
        ("patience", patience, lambda v: v is None or v >= 1, "None, or at least 1"),
    ):
        try:
            fine = bool(good(value))
        except (TypeError, ValueError):
            raise errors.ConfigError(f"{name} is {value!r}; it has to be one number, {rule}.") from None
        if not fine:
            raise errors.ConfigError(f"{name} is {value}; it has to be {rule}.")
    return float(rate)


def check_kept(keep: str, score: Objective | None, validation: Any) -> None:
    """Raise ConfigError if `keep` is unknown, or if there is a score but no validation."""
    if keep not in ("best", "last"):
        raise errors.ConfigError(errors.unknown("keep", str(keep), ("best", "last")))
    if score is not None and isinstance(validation, int | float) and validation == 0:
        raise errors.ConfigError("score is a mean over held-out examples: give a validation above 0.")


def check_microbatches(batch_size: int, microbatches: int, mesh: Mesh | None) -> None:
    """Raise ConfigError unless batches can be cut into so many equal parts, and each part shared by the devices."""
    devices = 1 if mesh is None else mesh.shape["data"]
    if microbatches < 1 or batch_size % (microbatches * devices):
        shared = f" for {devices} devices to share" if devices > 1 else ""
        raise errors.ConfigError(
            f"microbatches is {microbatches}: batches of {batch_size} examples can't be cut into so many equal "
            f"parts{shared}. Choose a divisor."
        )


def set_schedules(model: Autoencoder, schedules: Mapping[str, Schedule], steps: int) -> None:
    """Set the model's hyper-parameters to the last values of their schedules."""
    for name, schedule in schedules.items():
        if name not in model.hyper:
            raise errors.ConfigError(errors.unknown("hyper-parameter", name, model.hyper))
        if not callable(schedule):
            raise errors.ConfigError(f"The schedule of {name} is {schedule!r}; expected a function of the step.")
        model.hyper[name][...] = jnp.float32(schedule(steps))


def _diverged(epoch: int, learning_rate: float) -> str:
    return (
        f"The loss or its gradient stopped being finite in epoch {epoch + 1}. The model holds the last good weights. "
        f"Try a lower learning rate than {learning_rate:g}, and check the data for extreme values."
    )
