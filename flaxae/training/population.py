"""Populations: many models trained as one program, over seeds, learning rates and hyper-parameters.

This is `training.train_block` under `vmap`, over an axis of members. All members see the same batches with the same
noise keys, so that a batch is gathered, and its noise drawn, only once. Up to rounding, a member equals the model that
`training.fit` trains from the same initial weights with the same settings.
"""

import dataclasses
import functools
import itertools
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, PyTree

from flaxae import autoencoder, batches, errors
from flaxae.autoencoder import Autoencoder, Config, own_objective
from flaxae.batches import Batch, Examples
from flaxae.data.stream import Stream
from flaxae.nn.heads import Deterministic
from flaxae.objectives import Objective
from flaxae.parallel import distributed
from flaxae.training import checkpoints, feed, fitting, loop, step
from flaxae.training.examples import check_objective, split
from flaxae.training.fitting import History
from flaxae.training.optimizers import Optimizer
from flaxae.training.precision import chosen, in_precision
from flaxae.training.step import Schedule, State

_OF_NO_MODEL = {"seed", "learning_rate", "latent"}
Settings = dict[str, int | float]  # of a member: seed, learning_rate, and anything else varied, such as level or latent


class Member(NamedTuple):
    """One trained model. Members are ranked by `score`: lower is better, inf if it diverged in its first epoch."""

    settings: Settings
    model: Autoencoder
    history: History
    score: float
    diverged: bool


class Population(NamedTuple):
    """The members in the order of the grid, seeds outermost, and the member with the lowest score."""

    members: list[Member]
    best: Member


def fit_population(
    model: Config | Callable[[int], Autoencoder],
    x: Examples | Stream,
    *,
    seeds: Sequence[int] = (0,),
    learning_rate: float | Sequence[float] | None = None,
    latent: int | Sequence[int] | None = None,
    epochs: int = 10,
    batch_size: int = 256,
    warmup: float = 0.1,
    schedule: str = "cosine",
    weight_decay: float = 0.0,
    ema: float | None = None,
    optimizer: str | optax.GradientTransformation = "adam",
    microbatches: int = 1,
    validation: Any = 0.1,
    patience: int | None = None,
    keep: str = "best",
    objective: Objective | None = None,
    score: Objective | None = None,
    schedules: Mapping[str, Schedule] | None = None,
    precision: str = "float32",
    seed: int = 0,
    at_once: int = 16,
    mesh: Mesh | None = None,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    show: bool = True,
    on_epoch: loop.OnEpoch | None = None,
    **hyper: float | Sequence[float],
) -> Population:
    """Train a model for every combination of seeds, learning rates and hyper-parameters.

    The member of seed `s`, learning rate `r` and level `n` equals `fit(build(config, shape, seed=s), x,
    learning_rate=r, seed=seed)` for a model with that noise level. A member that diverges stays at its last good
    weights, and the others go on.

    Args:
        model: a config to build; or a function from a seed to a model, which may only change the initial weights.
        seeds: for the initial weights.
        learning_rate: one or several.
        latent: sizes of the code, for a `Config` with the deterministic head. All members train at the largest size,
            smaller codes padded with zeros that get no gradient; the models returned have their own size.
        epochs, batch_size, warmup, schedule, weight_decay, ema, optimizer: as in `training.fit`.
        microbatches, validation, patience, keep, objective, schedules, precision, resume: as in `training.fit`.
        score: an objective, whose mean over the validation examples compares epochs and members. By default it is the
            training objective, which can compare seeds, learning rates and sizes of the code, but neither noise levels
            nor β, because those change the loss itself.
        seed: for the validation part, the shuffles and the noise, which all members share.
        at_once: how many members train in one program. Memory grows with it, not with the number of members.
        mesh: devices to train on, see `distributed.mesh`: members along "population", parts of their batches along
            "data". By default as in `training.fit`.
        folder: where checkpoints go; each group of members that train at once has a subfolder.
        on_epoch: as in `training.fit`, with means over the members. If it returns True, all members stop.
        hyper: values of the model's hyper-parameters, such as `level=(0.1, 0.3)`.

    Raises:
        DataError: x is empty, not finite, or doesn't fit the model.
        ConfigError: a setting is out of range, or the model has no hyper-parameter of that name.
        DivergedError: every member diverged in its first epoch.
        CheckpointError, KeyboardInterrupt: as in `training.fit`.
    """
    if learning_rate is not None or not isinstance(optimizer, optax.GradientTransformation):
        rates = fitting.optimizers.LEARNING_RATE if learning_rate is None else learning_rate
        grid = _grid({"seed": seeds, "learning_rate": rates, "latent": latent, **hyper})
    else:
        grid = _grid({"seed": seeds, "latent": latent, **hyper})
    for settings in grid:
        fitting.check_settings(
            epochs, batch_size, settings.get("learning_rate"), warmup, schedule, weight_decay, ema, patience, optimizer
        )
    fitting.check_kept(keep, score, validation)
    if latent is not None and optimizer != "adam":
        raise errors.ConfigError(
            f"Codes of several sizes train together under Adam alone; {optimizer} looks at the sizes of matrices. "
            "Train one population for each size."
        )
    if at_once < 1:
        raise errors.ConfigError(f"at_once is {at_once}; it has to be at least 1.")
    shape = np.shape(Batch.of(x).x)[1:]
    start = functools.cache(functools.partial(_start, model, shape))
    widest = max(grid, key=lambda settings: settings.get("latent", 0))
    largest = _model(start(widest["seed"], widest.get("latent")), widest)
    mesh = mesh or distributed.default_mesh()
    given = x, validation
    x, held_out = split(largest, x, validation, seed, mesh)
    source = fitting.feed_of(largest, x, batch_size, seed, mesh)
    batch_size, steps = source.batch_size, epochs * source.windows * source.steps
    fitting.check_microbatches(batch_size, microbatches, mesh)
    precision = chosen(precision, largest)
    exact = objective or own_objective
    objective = in_precision(exact, precision)
    metrics = check_objective(largest, objective, batches.take(x, slice(0, 1)))
    update = Optimizer(warmup, schedule, weight_decay, ema, optimizer, microbatches)
    fitting.set_schedules(largest, schedules or {}, steps)  # as those of every member are set
    program = step.Program(nnx.split(largest)[0], objective, update, batch_size, tuple((schedules or {}).items()))
    step_key, held_out_key = fitting.keys(seed)

    def block(states: State, x: PyTree[Array], order: feed.Order, start: int, stop: int) -> State:
        return train_block(program, states, x, order, step_key, start, stop, steps)

    def evaluate(objective: Objective, weights: step.Weights) -> dict[str, Float[Array, " members"]]:
        return _evaluate(dataclasses.replace(program, objective=objective), weights, held_out, held_out_key)

    validate, chosen_by = fitting.validation_of(evaluate, exact, score, held_out)

    work = loop.Work(
        block=block,
        sums=lambda states: (states.ok, states.sums),
        begin=step.begun,
        weights=step.weights,
        validate=validate,
        chosen_by=chosen_by,
        source=source,
        samples=batch_size,
    )

    def first_weights(settings: Settings) -> step.Weights:
        first = start(settings["seed"], settings.get("latent"))
        if schedules or settings.keys() - _OF_NO_MODEL:
            own = _model(first, settings)
            fitting.set_schedules(own, schedules or {}, steps)
            first = _parts(own)
        return first.weights

    members: list[Member] = []
    groups = np.array_split(np.arange(len(grid)), math.ceil(len(grid) / at_once))
    wide = _parts(largest).weights
    side_by_side = 1 if mesh is None else mesh.shape["population"]
    size = math.ceil(len(groups[0]) / side_by_side) * side_by_side  # the same for all groups, to compile only once
    for done, group in enumerate(groups):
        first = [first_weights(grid[i]) for i in group]
        padded = np.resize(np.arange(len(group)), size)
        rates = jnp.float32([grid[group[k]].get("learning_rate", 1.0) for k in padded])
        states = _first_states(update, metrics, stack([_widened(first[k], wide) for k in padded]), rates)
        states = distributed.place(states, mesh, "population")
        settings = {
            **fitting.settings_of(seed, x, source, epochs, update, keep, precision),
            **{name: np.array([grid[group[k]].get(name, 0) for k in padded], np.float64) for name in grid[0]},
        }
        own = None if folder is None else pathlib.Path(folder, f"group-{done}")
        run = loop.train(
            work._replace(samples=batch_size * len(padded)),
            loop.start(work, states, epochs, settings),
            patience=patience,
            keep=keep,
            mesh=mesh,
            folder=own,
            resume=resume and checkpoints.begun(own),
            data=given,
            show=show,
            part=(done * epochs, len(groups) * epochs),
            on_epoch=on_epoch,
        )
        history = run.history
        scores = np.nanmin(history[chosen_by], axis=0, initial=math.inf)
        weights, ok = distributed.keyed(distributed.numbers, (run.best, run.state.ok))
        epochs_done = loop.done(history)
        for k, i in enumerate(group):
            trained = nnx.merge(start(grid[i]["seed"], grid[i].get("latent")).graphdef, *_cut(weights, k, first[k]))
            last = loop.last_epoch(history[chosen_by][:, k], patience, epochs_done)
            values = {name: values[:last, k].tolist() for name, values in history.items()}
            members.append(Member(grid[i], trained, History(values), float(scores[k]), not ok[k]))
    source.close()
    best = min(members, key=lambda member: member.score)
    if best.score == math.inf:
        raise errors.DivergedError(
            "The loss of every member stopped being finite in its first epoch. "
            "Try lower learning rates, and check the data for extreme values."
        )
    return Population(members, best)


@functools.partial(jax.jit, static_argnames=("optimizer", "metrics"))
def _first_states(
    optimizer: Optimizer, metrics: tuple[str, ...], weights: step.Weights, rates: Float[Array, " members"]
) -> State:
    """The members' states at step 0."""

    def first(weights: step.Weights, rate: Float[Array, ""]) -> State:
        return step.first_state(optimizer, metrics, *weights, rate)

    return jax.vmap(first)(weights, rates)


@functools.partial(jax.jit, static_argnames="program", donate_argnames="states")
def train_block(
    program: step.Program,
    states: State,
    x: PyTree[Array],
    order: feed.Order,
    key: Key[Array, ""],
    start: int | Int[Array, ""],
    stop: int | Int[Array, ""],
    steps: int | Int[Array, ""],
) -> State:
    def train(state: State) -> State:
        return step.train_block(program, state, x, order, key, start, stop, steps)

    return _members(train)(states)


@functools.partial(jax.jit, static_argnames="program")
def _evaluate(
    program: step.Program, weights: step.Weights, x: PyTree[Array], key: Key[Array, ""]
) -> dict[str, Float[Array, " members"]]:
    def evaluate(weights: step.Weights) -> step.Sums:
        return step.evaluate(program.graphdef, program.objective, program.batch_size, *weights, x, key)

    return _members(evaluate)(weights)


def _members(function: Callable) -> Callable:
    """`function` applied to each member. On a mesh, members are spread along its "population" axis."""
    return jax.vmap(function, spmd_axis_name=distributed.axis("population"))


def _grid(axes: Mapping[str, Any]) -> list[Settings]:
    """Every combination of the axes' values; an axis that is None is left out."""
    values = {name: np.atleast_1d(axis).tolist() for name, axis in axes.items() if axis is not None}
    for name, axis in values.items():
        if not axis:
            raise errors.ConfigError(f"{name} is empty; give one value or several.")
    return [dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values())]


class _Parts(NamedTuple):
    """A model, split once: Flax's `split` and `merge` take longer than training a small model for an epoch."""

    graphdef: nnx.GraphDef
    weights: step.Weights


def _parts(model: Autoencoder) -> _Parts:
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    return _Parts(graphdef, (params, rest))


def _start(
    model: Config | Callable[[int], Autoencoder], shape: tuple[int, ...], seed: int, latent: int | None
) -> _Parts:
    """The model of that seed, with its initial weights."""
    if latent is not None:
        if not isinstance(model, Config) or not isinstance(model.head, Deterministic):
            raise errors.ConfigError(
                "Codes of several sizes train together only in a Config with the deterministic head. "
                "Train one population for each size."
            )
        model = model.with_latent(latent)
    if not isinstance(model, Config):
        return _parts(model(seed))
    graphdef, state = autoencoder.initial(model, shape, seed=seed)
    params, rest = nnx.split_state(state, nnx.Param, ...)
    return _Parts(graphdef, (params, rest))


def _model(start: _Parts, settings: Settings) -> Autoencoder:
    """A copy of the model with the hyper-parameters of one member."""
    model = nnx.merge(start.graphdef, *start.weights, copy=True)
    for name in settings.keys() - _OF_NO_MODEL:
        if name not in model.hyper:
            raise errors.ConfigError(errors.unknown("hyper-parameter", name, model.hyper))
        model.hyper[name][...] = jnp.float32(settings[name])
    return model


def stack(states: Sequence[Any]) -> Any:
    """The members' states stacked into one, with a leading axis of members."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def _widened(weights: step.Weights, wide: step.Weights) -> step.Weights:
    """The weights, padded with zeros to the shapes of `wide`.

    Training leaves the padding at zero. The gradient of a weight into an unused unit of the code goes through the
    weights out of it, and the gradient of those goes through the unit itself; both are zero.
    """

    def pad(leaf: Array, wide: Array) -> Array:
        if leaf.shape == wide.shape:
            return leaf
        missing = [(0, more - size) for size, more in zip(leaf.shape, wide.shape, strict=True)]
        return jnp.asarray(np.pad(leaf, missing))

    return jax.tree.map(pad, weights, wide)


def _cut(stacked: step.Weights, member: int, like: step.Weights) -> step.Weights:
    """One member's weights, cropped to the shapes of `like`."""

    def cut(leaf: Array, stacked: Array | np.ndarray) -> Array:
        return jnp.asarray(stacked[(member, *(slice(size) for size in leaf.shape))])

    return jax.tree.map(cut, like, stacked)
