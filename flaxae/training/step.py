"""The compiled unit of training: a block of steps over a pure state, which is donated, and the evaluation.

All random keys are derived from (seed, step), so that the weights after step n are the same bits whether the run was
interrupted or not. The number of steps in a block is an argument, so that a block takes a third of a second to two
seconds for any model and machine, and nothing is compiled twice.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from flaxae.batches import Batch
from flaxae.objectives import Objective, with_metrics
from flaxae.parallel import compilation, distributed
from flaxae.training import feed
from flaxae.training.optimizers import Optimizer

Weights = tuple[nnx.State, nnx.State]  # parameters, and the rest
Schedule = Callable[[Any], Any]  # from the step to a hyper-parameter's value, as in optax
Schedules = tuple[tuple[str, Schedule], ...]
Sums = dict[str, Float[Array, ""]]
Gradient = tuple[Sums, Any, Any]  # means of loss and metrics, the new rest, the gradient


class State(NamedTuple):
    """All that a block changes. If a block ends with anything not finite, its changes are undone and `ok` is False."""

    params: nnx.State
    rest: nnx.State  # what isn't trained: hyper-parameters, batch statistics, keys and counters
    moments: optax.OptState
    average: nnx.State | None
    learning_rate: Float[Array, ""]
    sums: Sums  # of the loss and the metrics, over this epoch's steps so far
    ok: Array


@dataclasses.dataclass(frozen=True)
class Program:
    """What a block is compiled for. Its hash is found only once, because that of a graph takes milliseconds."""

    graphdef: nnx.GraphDef
    objective: Objective
    optimizer: Optimizer
    batch_size: int
    schedules: Schedules = ()

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.graphdef, self.objective, self.optimizer, self.batch_size, self.schedules))


def init(model: nnx.Module, optimizer: Optimizer, learning_rate: float, metrics: tuple[str, ...] = ("loss",)) -> State:
    """The state at step 0. It has arrays of its own, so that donating it leaves the model's intact."""
    _, *weights = nnx.split(model, nnx.Param, ...)
    return first_state(optimizer, metrics, *weights, learning_rate)


@functools.partial(jax.jit, static_argnames=("optimizer", "metrics"))
def first_state(
    optimizer: Optimizer,
    metrics: tuple[str, ...],
    params: nnx.State,
    rest: nnx.State,
    learning_rate: float | Float[Array, ""],
) -> State:
    params, rest = copied((params, rest))
    return State(
        params=params,
        rest=rest,
        moments=optimizer.init(params),
        average=None if optimizer.ema is None else copied(params),
        learning_rate=jnp.float32(learning_rate),
        sums={name: jnp.float32(0) for name in metrics},
        ok=jnp.bool(True),
    )


def begun(state: State) -> State:
    """The state at the beginning of an epoch, whose sums are 0."""
    return state._replace(sums=_zeros(state.sums))


@jax.jit
def _zeros(sums: PyTree[Array]) -> PyTree[Array]:  # scalars, or one for each member of a population
    return jax.tree.map(jnp.zeros_like, sums)


def copied(tree: PyTree) -> PyTree:
    """A copy of every array of the tree, including random keys."""
    return distributed.keyed(lambda tree: jax.tree.map(jnp.copy, tree), tree)


def train_step(
    graphdef: nnx.GraphDef,
    objective: Objective,
    optimizer: Optimizer,
    state: State,
    batch: PyTree[Array],
    key: Key[Array, ""],
    step: Int[Array, ""],
    steps: int | Int[Array, ""],
    schedules: Schedules = (),
) -> State:
    """One of a run's `steps` on the mean of `objective` over the batch, weighted by the examples' weights. Pure."""
    parts = optimizer.microbatches
    weight = _weight(batch)
    total = None if weight is None else jnp.maximum(weight.sum(), 1e-12) / parts

    def gradient_of(rest: nnx.State, batch: PyTree[Array], key: Key[Array, ""]) -> Gradient:
        def loss_of(params: nnx.State) -> tuple[Float[Array, ""], tuple[Sums, Any]]:
            model: Any = nnx.merge(graphdef, params, rest, copy=True)  # a pass writes its statistics into the copy
            model.train()
            with _scheduled(model, schedules, step):
                loss, metrics = with_metrics(objective(model, batch, key))
            means = {name: _mean(values, batch, total) for name, values in {"loss": loss, **metrics}.items()}
            return means["loss"], (means, nnx.split(model, nnx.Param, ...)[2])

        (_, (means, rest_after)), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        return means, rest_after, gradient

    if parts == 1:
        means, rest, gradient = gradient_of(state.rest, batch, key)
    else:
        # interleaved, so that each device has some examples of every part
        cut = jax.tree.map(lambda leaf: leaf.reshape(-1, parts, *leaf.shape[1:]), batch)

        def add(i: Int[Array, ""], so_far: Gradient) -> Gradient:
            part = jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, i, axis=1, keepdims=False), cut)
            means, rest, gradient = gradient_of(so_far[1], distributed.along_data(part), jax.random.fold_in(key, i))
            added = jax.tree.map(lambda a, b: a + b / parts, (so_far[0], so_far[2]), (means, gradient))
            return added[0], rest, added[1]

        nothing = jax.tree.map(jnp.zeros_like, (state.sums, state.params))
        means, rest, gradient = lax.fori_loop(0, parts, add, (nothing[0], state.rest, nothing[1]))
    updates, moments = optimizer.update(gradient, state.moments, state.params)
    params = optimizer.applied(state.params, updates, state.learning_rate, optimizer.rate(step, steps))
    average = state.average
    if average is not None:
        decay = jnp.minimum(jnp.float32(optimizer.ema or 0.0), ((1 + step) / (10 + step)).astype(jnp.float32))
        average = jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), average, params)
    sums = {name: state.sums[name] + means[name] for name in state.sums}
    return State(params, rest, moments, average, state.learning_rate, sums, state.ok)


def _weight(batch: PyTree[Array]) -> Any:
    return Batch.of(batch).weight if isinstance(batch, dict) and "x" in batch else None


def _mean(values: Float[Array, " batch"], batch: PyTree[Array], total: Array | None) -> Float[Array, ""]:
    return values.mean() if total is None else jnp.sum(values * _weight(batch)) / total


class _scheduled:
    """A context in which the model has the scheduled hyper-parameters of a step. Outside it has their final values."""

    def __init__(self, model: Any, schedules: Schedules, step: Int[Array, ""]):
        self.model, self.schedules, self.step = model, schedules, step

    def __enter__(self) -> None:
        self.kept = {name: self.model.hyper[name][...] for name, _ in self.schedules}
        for name, schedule in self.schedules:
            self.model.hyper[name][...] = jnp.asarray(schedule(self.step), jnp.float32)

    def __exit__(self, *error: object) -> None:
        for name, value in self.kept.items():
            self.model.hyper[name][...] = value


def _train_block(
    program: Program,
    state: State,
    x: PyTree[Array],
    order: feed.Order,
    key: Key[Array, ""],
    start: int | Int[Array, ""],
    stop: int | Int[Array, ""],
    steps: int | Int[Array, ""],
) -> State:
    """Steps `start` to `stop` of a run of `steps`, all within one window of data: `x` and `order` are of `feed`.

    If the steps end with any number that is not finite, the state stays as it was before them. Checking after each step
    instead would cost a small network a fifth of its speed.
    """

    graphdef, objective, optimizer = program.graphdef, program.objective, program.optimizer

    def body(step: Int[Array, ""], state: State) -> State:
        batch = feed.batch(x, order, program.batch_size, step)
        own_key = jax.random.fold_in(key, step)
        return train_step(graphdef, objective, optimizer, state, batch, own_key, step, steps, program.schedules)

    new = lax.fori_loop(start, stop, body, state)
    ok = state.ok & all_finite((new.params, new.rest, new.moments, new.sums))
    return distributed.whole(lax.cond(ok, lambda: new, lambda: state._replace(ok=ok)))


_jit_block = functools.partial(jax.jit, _train_block, static_argnames="program", donate_argnames="state")
train_block = _jit_block()
short_block = compilation.with_options(_jit_block, compilation.QUICK)
unet_block = compilation.with_options(_jit_block, compilation.WITHOUT_YNN)


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether all numbers of the tree, and the sums over the last axis of its matrices, are finite."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    # Sums are products with ones, all in one array, because a reduction for each leaf takes long to compile.
    sums = [leaf @ jnp.ones(leaf.shape[-1:], leaf.dtype) if leaf.ndim > 1 else leaf for leaf in leaves]
    return jnp.isfinite(jnp.concatenate([jnp.ravel(leaf).astype(jnp.float32) for leaf in sums])).all()


@functools.partial(jax.jit, static_argnames=("graphdef", "objective", "batch_size"))
def evaluate(
    graphdef: nnx.GraphDef,
    objective: Objective,
    batch_size: int,
    params: nnx.State,
    rest: nnx.State,
    x: PyTree[Array],
    key: Key[Array, ""],
) -> Sums:
    """Means over x of `objective`, as "loss", and of its metrics, without dropout and with the same keys each time."""
    examples = len(jax.tree.leaves(x)[0])

    def means_of(i: int | Int[Array, ""]) -> tuple[Sums, Float[Array, ""]]:
        model = nnx.merge(graphdef, params, rest, copy=True)
        model.eval()
        index = i * batch_size + jnp.arange(batch_size)
        batch = jax.tree.map(lambda leaf: jnp.take(leaf, index, axis=0, mode="clip"), x)
        batch = distributed.along_data(batch)
        loss, metrics = with_metrics(objective(model, batch, jax.random.fold_in(key, i)))
        weight = _weight(batch)
        weight = jnp.where(index < examples, 1.0 if weight is None else weight, 0.0)
        # not just a product with the weight: the values beyond the end may not be finite
        sums = {
            name: jnp.sum(jnp.where(weight > 0, values * weight, 0.0))
            for name, values in {"loss": loss, **metrics}.items()
        }
        return sums, weight.sum()

    def body(i: Int[Array, ""], so_far: tuple[Sums, Float[Array, ""]]) -> tuple[Sums, Float[Array, ""]]:
        return jax.tree.map(jnp.add, so_far, means_of(i))

    nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(means_of, 0))
    sums, weight = lax.fori_loop(0, math.ceil(examples / batch_size), body, nothing)
    return {name: total / weight for name, total in sums.items()}


@jax.jit
def weights(state: State) -> Weights:
    """A copy of the weights to use, which outlives the donated state: the moving average, if there is one."""
    params = state.params if state.average is None else state.average
    return copied((params, state.rest))
