"""Populations: many models trained as one program, over seeds, learning rates and hyper-parameters.

It is `training.train_block` under `vmap`, over an axis of members. They see the same batches under the same noise keys,
so a batch is gathered, and its noise drawn, once for all. A member equals, to rounding, the model that `training.fit`
makes of the same initial weights and settings.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key

from flaxae import autoencoder, distributed, errors, feed, progress, training
from flaxae.autoencoder import Autoencoder, Config
from flaxae.data.stream import Stream
from flaxae.objectives import Objective
from flaxae.precision import in_precision
from flaxae.training import Examples, History, Optimizer, State

Settings = dict[str, int | float]  # of a member: seed, learning_rate, and what else was varied, such as noise or latent


class Member(NamedTuple):
    """One trained model. `score` is what it is ranked by, lower is better; inf if it diverged in its first epoch."""

    settings: Settings
    model: Autoencoder
    history: History
    score: float
    diverged: bool


class Population(NamedTuple):
    """The members in the order of the grid, seeds outermost, and the one of the lowest score."""

    members: list[Member]
    best: Member


def fit_population(
    model: Config | Callable[[int], Autoencoder],
    x: Examples | Stream,
    *,
    seeds: Sequence[int] = (0,),
    learning_rate: float | Sequence[float] = 3e-3,
    latent: int | Sequence[int] | None = None,
    epochs: int = 10,
    batch_size: int = 256,
    warmup: float = 0.1,
    schedule: str = "cosine",
    weight_decay: float = 0.0,
    ema: float | None = None,
    optimizer: str = "adam",
    validation: float | Array | np.ndarray = 0.1,
    objective: Objective | None = None,
    score: Objective | None = None,
    precision: str = "float32",
    seed: int = 0,
    at_once: int = 16,
    mesh: Mesh | None = None,
    show: bool = True,
    **hyper: float | Sequence[float],
) -> Population:
    """Train a model for every combination of seeds, learning rates and hyper-parameters.

    The member of seed `s`, rate `r` and noise `n` equals `fit(build(config, shape, seed=s), x, learning_rate=r,
    seed=seed)` of a model with that noise. One that diverges stays at its last good weights, and the others go on.

    Args:
        model: what to build; or a function from a seed to a model, alike but for its weights.
        seeds: of the initial weights.
        learning_rate: one or several.
        latent: sizes of the code, for a `Config` with the deterministic head. All train at the largest size, the
            smaller ones beside zeros that no gradient moves; the models returned have their own size.
        epochs, batch_size, warmup, schedule, weight_decay, ema, optimizer, validation, objective, precision: as in
            `training.fit`.
        score: an objective on the held-out examples, by whose mean the best member is chosen. By default it is the
            loss, which ranks seeds, learning rates and codes, but neither noise levels nor β: those change the loss.
        seed: of the held-out part, the shuffles and the noise, which the members share.
        at_once: how many train in one program. Memory grows with it, not with the number of members.
        mesh: devices to train on, see `distributed.mesh`: members along "population", parts of their batches along
            "data". By default as in `training.fit`.
        hyper: values of the model's hyper-parameters, such as `noise=(0.1, 0.3)`.

    Raises:
        DataError: x is empty, not finite, or doesn't fit the model.
        ConfigError: a setting is out of range, or the model has no hyper-parameter of that name.
        DivergedError: every member diverged in its first epoch.
    """
    grid = _grid({"seed": seeds, "learning_rate": learning_rate, "latent": latent, **hyper})
    for settings in grid:
        rate = settings["learning_rate"]
        training.check_settings(epochs, batch_size, rate, warmup, weight_decay, ema, patience=None)
    if latent is not None and optimizer != "adam":
        raise errors.ConfigError(
            f"Codes of several sizes train together under Adam alone; {optimizer} looks at the sizes of matrices. "
            "Train one population for each size."
        )
    if at_once < 1:
        raise errors.ConfigError(f"at_once is {at_once}; it has to be at least 1.")
    build = functools.cache(functools.partial(_build, model, np.shape(x)[1:]))
    models = [_with_hyper(build(settings["seed"], settings.get("latent")), settings) for settings in grid]
    largest = models[int(np.argmax([settings.get("latent", 0) for settings in grid]))]
    mesh = mesh or distributed.default_mesh()
    x, held_out = training.split(largest, x, validation, seed, mesh)
    if score is not None and held_out is None:
        raise errors.ConfigError("score is a mean over held-out examples: give a validation above 0.")
    batch_size = min(batch_size, len(x))
    source = training.feed_of(largest, x, batch_size, seed, mesh)
    update = Optimizer(epochs * source.windows * source.steps, warmup, schedule, weight_decay, ema, optimizer)
    objective = in_precision(objective or largest.objective, precision)
    program = Program(nnx.split(largest)[0], objective, update, batch_size)

    members = []
    groups = np.array_split(np.arange(len(grid)), math.ceil(len(grid) / at_once))
    side_by_side = 1 if mesh is None else mesh.shape["population"]
    with (
        contextlib.closing(source),
        progress.bar(epochs * len(groups), 0.0, show=show) as report,
    ):
        for done, group in enumerate(groups):
            padded = np.resize(group, math.ceil(len(group) / side_by_side) * side_by_side)  # some twice, to be even
            states = stack(
                [training.init(_widened(models[i], largest), update, grid[i]["learning_rate"]) for i in padded]
            )
            states = distributed.place(states, mesh, "population")
            with distributed.on(mesh):
                states, weights, history = _fit_group(
                    program, states, source, held_out, epochs, seed, report, done * epochs
                )
                if score is None:
                    scores = np.nanmin(history["loss" if held_out is None else "val_loss"], axis=0, initial=math.inf)
                else:
                    key = jax.random.key(seed)
                    scores = distributed.numbers(_evaluate(program._replace(objective=score), weights, held_out, key))
            weights, ok = distributed.local((weights, states.ok), mesh)
            for k, i in enumerate(group):
                _take(models[i], weights, k)
                own = History({name: values[:, k].tolist() for name, values in history.items()})
                members.append(Member(grid[i], models[i], own, float(scores[k]), not ok[k]))
    best = min(members, key=lambda member: member.score)
    if best.score == math.inf:
        raise errors.DivergedError(
            "The loss of every member stopped being finite in its first epoch. "
            "Try lower learning rates, and check the data for extreme values."
        )
    return Population(members, best)


class Program(NamedTuple):
    """What is compiled: the leading arguments of `training.train_block`."""

    graphdef: nnx.GraphDef
    objective: Objective
    optimizer: Optimizer
    batch_size: int


def _fit_group(
    program: Program,
    states: State,
    source: feed.Resident | feed.Windows,
    held_out: Float[Array, " held_out *shape"] | None,
    epochs: int,
    seed: int,
    report: Callable[[float, float, float], None],
    epochs_before: int,
) -> tuple[State, training.Weights, dict[str, Float[np.ndarray, " epochs members"]]]:
    """The members' last states, the weights of each one's best epoch, and the metrics."""
    step_key, held_out_key = training.keys(seed)
    steps, members = source.windows * source.steps, len(states.ok)
    metrics = ("loss", "seconds") if held_out is None else ("loss", "val_loss", "seconds")
    history = {name: np.full((epochs, members), np.nan) for name in metrics}
    best = training.weights(states)
    began = time.perf_counter()
    for epoch in range(epochs):
        for window in range(epoch * source.windows, (epoch + 1) * source.windows):
            first = window * source.steps
            states = train_block(program, states, *source(window), step_key, first, first + source.steps)
        ok, loss_sum = distributed.numbers((states.ok, states.loss_sum))
        history["loss"][epoch] = np.where(ok, loss_sum / steps, np.nan)
        states = states._replace(loss_sum=0 * states.loss_sum)
        if held_out is None:
            best = training.weights(states)
        else:
            losses = distributed.numbers(_evaluate(program, training.weights(states), held_out, held_out_key))
            history["val_loss"][epoch] = np.where(ok, losses, np.nan)
            before = np.nanmin(history["val_loss"][:epoch], axis=0, initial=np.inf)
            best = _select(history["val_loss"][epoch] < before, training.weights(states), best)
        now = time.perf_counter() - began
        rate = members * steps * program.batch_size / (now - (history["seconds"][epoch - 1, 0] if epoch else 0.0))
        history["seconds"][epoch] = now
        report(epochs_before + epoch + 1.0, float(np.nanmin(history["loss"][epoch], initial=np.inf)), rate)
    return states, best, history


@functools.partial(jax.jit, static_argnames="program", donate_argnames="states")
def train_block(
    program: Program,
    states: State,
    x: Float[Array, "..."],
    order: feed.Order,
    key: Key[Array, ""],
    start: int | Int[Array, ""],
    stop: int | Int[Array, ""],
) -> State:
    def train(state: State) -> State:
        return training.train_block(*program, state, x, order, key, start, stop)

    return _members(train)(states)


@functools.partial(jax.jit, static_argnames="program")
def _evaluate(
    program: Program, weights: training.Weights, x: Float[Array, " examples *shape"], key: Key[Array, ""]
) -> Float[Array, " members"]:
    def evaluate(weights: training.Weights) -> Float[Array, ""]:
        return training.evaluate(program.graphdef, program.objective, program.batch_size, *weights, x, key)

    return _members(evaluate)(weights)


def _members(function: Callable) -> Callable:
    """`function` of each member; on a mesh the members lie along its axis."""
    return jax.vmap(function, spmd_axis_name=distributed.axis("population"))


@jax.jit
@jax.vmap
def _select(better: Bool[Array, ""], new: training.Weights, old: training.Weights) -> training.Weights:
    return jax.tree.map(functools.partial(jnp.where, better), new, old)


def _grid(axes: Mapping[str, Any]) -> list[Settings]:
    """Every combination of the axes' values; an axis that is None is left out."""
    values = {name: np.atleast_1d(axis).tolist() for name, axis in axes.items() if axis is not None}
    for name, axis in values.items():
        if not axis:
            raise errors.ConfigError(f"{name} is empty; give one value or several.")
    return [dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values())]


def _build(
    model: Config | Callable[[int], Autoencoder], shape: tuple[int, ...], seed: int, latent: int | None
) -> Autoencoder:
    if latent is not None:
        if not isinstance(model, Config) or model.head != "deterministic":
            raise errors.ConfigError(
                "Codes of several sizes train together only in a Config with the deterministic head. "
                "Train one population for each size."
            )
        model = dataclasses.replace(model, latent=latent)
    return autoencoder.build(model, shape, seed=seed) if isinstance(model, Config) else model(seed)


def _with_hyper(model: Autoencoder, settings: Settings) -> Autoencoder:
    """A copy under the hyper-parameters of one member."""
    model = nnx.clone(model)
    for name in settings.keys() - {"seed", "learning_rate", "latent"}:
        if name not in model.hyper:
            raise errors.ConfigError(errors.unknown("hyper-parameter", name, model.hyper))
        model.hyper[name][...] = jnp.float32(settings[name])
    return model


def stack(states: Sequence[Any]) -> Any:
    """The members' states as one, with an axis of members in front."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def _widened(model: Autoencoder, like: Autoencoder) -> Autoencoder:
    """The same function in the shapes of `like`, with zeros beside the weights.

    Training leaves them at zero: a weight into an unused part of the code has a gradient only through the weights out
    of it, and those only through the code.
    """

    def pad(leaf: Array, wide: Array) -> Array:
        return jnp.zeros_like(wide).at[_corner(leaf)].set(leaf)

    graphdef, wide = nnx.split(like)
    return nnx.merge(graphdef, jax.tree.map(pad, nnx.state(model), wide))


def _take(model: Autoencoder, weights: training.Weights, member: int) -> None:
    """Put one member's weights into its model, cut to its shapes."""

    def cut(leaf: Array, stacked: Array) -> Array:
        return stacked[(member, *_corner(leaf))]

    _, *own = nnx.split(model, nnx.Param, ...)
    nnx.update(model, *jax.tree.map(cut, tuple(own), weights))


def _corner(leaf: Array) -> tuple[slice, ...]:
    return tuple(slice(n) for n in leaf.shape)
