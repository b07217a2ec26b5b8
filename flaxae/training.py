"""Training: one compiled block of steps, and the loop around it.

The unit that is compiled is a block: `lax.fori_loop` over a pure step, on state that is donated, over data that live
on the device: all of them, or a window of a stream's (`flaxae.feed`). On a mesh of devices it is the same block, on
data laid along the mesh. How many steps a block has is an argument of it, so that a block lasts about a third of a
second whatever the model and the machine, and nothing is compiled twice. All randomness is folded in from (seed, epoch)
and (seed, step); so the weights after step n are the same bits whether the run was interrupted or not.
"""

import contextlib
import dataclasses
import functools
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped

from flaxae import checkpoints, compilation, distributed, errors, feed, processes, progress
from flaxae.autoencoder import Autoencoder
from flaxae.data.stream import Stream
from flaxae.objectives import Objective
from flaxae.precision import in_precision

BLOCK_SECONDS = 0.3  # between looks at the clock and the interrupt
SAVE_SECONDS = 10.0  # between checkpoints
SHORT = 2e10  # examples seen times parameters, below which training takes less time than compiling it well


# Checked in `check_examples`, with a message: floats, finite, of the model's shape.
Examples = Shaped[Array | np.ndarray, " examples *shape"]

Weights = tuple[nnx.State, nnx.State]  # parameters, and the rest


class History(dict[str, list[float]]):
    """A list a metric, one value an epoch: `loss` and `val_loss` (nats an example), `seconds` (of training so far)."""

    @property
    def history(self) -> "History":
        """Itself, so that code written for Keras (`fit(…).history["loss"]`) reads on."""
        return self


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW or Muon under warm-up and cosine decay (Loshchilov & Hutter 2019). Static in the compiled step.

    Args:
        steps: of the whole run, which the schedule spans.
        method: "adam" (Kingma & Ba 2015); or "muon" (Jordan 2024), which orthogonalises the momentum of every matrix
            and leaves the rest to Nesterov's Adam, scaled so that learning rates mean the same for both (Liu et al.
            2025). Fully connected networks need fewer passes, each of which takes longer.
        warmup: fraction of `steps` over which the rate rises from 0.
        schedule: "cosine" (down to 0) or "constant" after the warm-up.
        weight_decay: decoupled, on matrices and kernels; not on biases.
        ema: decay of an exponential moving average of the weights, which is then what is validated and kept.
        microbatches: equal parts of a batch whose gradients are computed one after the other, and averaged. It takes
            less memory, and on CPU parts that fit the cache take less time: of images convolved, about a megabyte.
            What a model or an objective takes from a whole batch, such as batch norm, it takes from each part.
        flat: Adam's moments in one vector, which compiles sooner and runs slower: for trainings of a second or two.
    """

    steps: int
    warmup: float = 0.1
    schedule: str = "cosine"
    weight_decay: float = 0.0
    ema: float | None = None
    method: str = "adam"
    microbatches: int = 1
    flat: bool = False

    def __post_init__(self) -> None:
        if self.method not in ("adam", "muon"):
            raise errors.ConfigError(errors.unknown("optimizer", self.method, ("adam", "muon")))
        if self.schedule not in ("cosine", "constant"):
            raise errors.ConfigError(errors.unknown("schedule", self.schedule, ("cosine", "constant")))

    def transformation(self) -> optax.GradientTransformation:
        """The update for a learning rate of 1; the rate itself is an array in the state."""
        warmup = round(self.warmup * self.steps)
        if self.schedule == "cosine":
            shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup, max(self.steps, warmup + 1))
        else:
            shape = optax.warmup_constant_schedule(0.0 if warmup else 1.0, 1.0, warmup)
        adam = optax.flatten(scale_by_adam()) if self.flat else scale_by_adam()
        return optax.chain(
            adam if self.method == "adam" else scale_by_muon(),
            optax.add_decayed_weights(
                self.weight_decay, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
            ),
            optax.scale_by_schedule(shape),
        )


def scale_by_adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    """`optax.scale_by_adam`, with the bias corrections folded into scalar factors (Kingma & Ba 2015, end of section 2).

    optax divides every moment by them, which is a tenth of a small network's step.
    """

    def update(
        gradient: optax.Updates, state: optax.ScaleByAdamState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.ScaleByAdamState]:
        count = state.count + 1
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, gradient)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.nu, gradient)
        root = jnp.sqrt(1 - b2**count)
        rate = root / (1 - b1**count)
        updates = jax.tree.map(lambda m, v: rate * m / (jnp.sqrt(v) + eps * root), mu, nu)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam().init, update)


def scale_by_muon() -> optax.GradientTransformation:
    """`optax.contrib.muon` without a rate: of matrices the updates' root mean square is Adam's usual 0.2."""
    from optax import contrib

    return optax.chain(contrib.muon(1.0, adam_learning_rate=1.0, consistent_rms=0.2), optax.scale(-1.0))


class State(NamedTuple):
    """All that a block changes. `ok` turns False in the first that ends not finite; nothing moves from its start on."""

    params: nnx.State
    rest: nnx.State  # what isn't trained: hyper-parameters, batch statistics
    moments: optax.OptState
    average: nnx.State | None
    learning_rate: Float[Array, ""]
    loss_sum: Float[Array, ""]  # over this epoch's steps so far
    ok: Array


def init(model: nnx.Module, optimizer: Optimizer, learning_rate: float) -> State:
    """The state at step 0, in arrays of its own: the model's are not donated."""
    _, *weights = nnx.split(model, nnx.Param, ...)
    return _first_state(optimizer, *weights, learning_rate)


@functools.partial(jax.jit, static_argnames="optimizer")
def _first_state(
    optimizer: Optimizer, params: nnx.State, rest: nnx.State, learning_rate: float | Float[Array, ""]
) -> State:
    params, rest = jax.tree.map(jnp.copy, (params, rest))
    return State(
        params=params,
        rest=rest,
        moments=optimizer.transformation().init(params),
        average=None if optimizer.ema is None else jax.tree.map(jnp.copy, params),
        learning_rate=jnp.float32(learning_rate),
        loss_sum=jnp.float32(0),
        ok=jnp.bool(True),
    )


def train_step(
    graphdef: nnx.GraphDef,
    objective: Objective,
    optimizer: Optimizer,
    state: State,
    x: Float[Array | np.ndarray, " batch *shape"],
    key: Key[Array, ""],
    step: Int[Array, ""],
) -> State:
    """One step of gradient descent on the mean of `objective` over the batch. Pure."""

    Gradient = tuple[Float[Array, ""], nnx.State, nnx.State]  # loss, the rest after it, gradient

    def gradient_of(rest: nnx.State, x: Float[Array, " examples *shape"], key: Key[Array, ""]) -> Gradient:
        def loss_of(params: nnx.State) -> tuple[Float[Array, ""], nnx.State]:
            model = nnx.merge(graphdef, params, rest, copy=True)  # batch norm writes its statistics into the copy
            model.train()
            loss = objective(model, x, key).mean()
            return loss, nnx.split(model, nnx.Param, ...)[2]

        (loss, rest_after), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        return loss, rest_after, gradient

    parts = optimizer.microbatches
    if parts == 1:
        loss, rest, gradient = gradient_of(state.rest, x, key)
    else:
        cut = x.reshape(-1, parts, *x.shape[1:])  # so that each device has some of every part

        def add(i: Int[Array, ""], total: Gradient) -> Gradient:
            part = distributed.along_data(lax.dynamic_index_in_dim(cut, i, axis=1, keepdims=False))
            loss, rest, gradient = gradient_of(total[1], part, jax.random.fold_in(key, i))
            return total[0] + loss / parts, rest, jax.tree.map(lambda a, g: a + g / parts, total[2], gradient)

        nothing = jnp.float32(0), state.rest, jax.tree.map(jnp.zeros_like, state.params)
        loss, rest, gradient = lax.fori_loop(0, parts, add, nothing)
    updates, moments = optimizer.transformation().update(gradient, state.moments, state.params)
    params = jax.tree.map(lambda p, u: p - state.learning_rate * u, state.params, updates)
    average = state.average
    if average is not None:
        decay = jnp.minimum(optimizer.ema, (1 + step) / (10 + step))
        average = jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), average, params)
    return State(params, rest, moments, average, state.learning_rate, state.loss_sum + loss, state.ok)


def _train_block(
    graphdef: nnx.GraphDef,
    objective: Objective,
    optimizer: Optimizer,
    batch_size: int,
    state: State,
    x: Float[Array | np.ndarray, "..."],
    order: feed.Order,
    key: Key[Array, ""],
    start: int | Int[Array, ""],
    stop: int | Int[Array, ""],
) -> State:
    """Steps `start` to `stop` of a run, all of one window of data, which are `x` and `order` as `feed` gives them.

    Where they end in anything not finite, the state stays as it was before them. Looking after each step instead costs
    a small network a fifth of its speed.
    """

    def body(step: Int[Array, ""], state: State) -> State:
        batch = feed.batch(x, order, batch_size, step)
        return train_step(graphdef, objective, optimizer, state, batch, jax.random.fold_in(key, step), step)

    new = lax.fori_loop(start, stop, body, state)
    ok = state.ok & all_finite((new.params, new.rest, new.moments, new.loss_sum))
    return distributed.whole(lax.cond(ok, lambda: new, lambda: state._replace(ok=ok)))


_jit_block = functools.partial(
    jax.jit,
    _train_block,
    static_argnames=("graphdef", "objective", "optimizer", "batch_size"),
    donate_argnames="state",
)
train_block = _jit_block()
short_block = compilation.with_options(_jit_block, compilation.QUICK)


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether no number of the tree is infinite or NaN, nor the sum over the last axis of a matrix."""
    # Sums as products with ones, and all in one array: a reduction for each leaf takes long to compile.
    sums = [leaf @ jnp.ones(leaf.shape[-1:], leaf.dtype) if leaf.ndim > 1 else leaf for leaf in jax.tree.leaves(tree)]
    return jnp.isfinite(jnp.concatenate([jnp.ravel(leaf) for leaf in sums])).all()


@functools.partial(jax.jit, static_argnames=("graphdef", "objective", "batch_size"))
def evaluate(
    graphdef: nnx.GraphDef,
    objective: Objective,
    batch_size: int,
    params: nnx.State,
    rest: nnx.State,
    x: Float[Array | np.ndarray, " examples *shape"],
    key: Key[Array, ""],
) -> Float[Array, ""]:
    """Mean of `objective` over all of x, dropout off, under the same corruption each time."""
    examples = x.shape[0]

    def body(i: Int[Array, ""], total: Float[Array, ""]) -> Float[Array, ""]:
        model = nnx.merge(graphdef, params, rest)
        model.eval()
        index = i * batch_size + jnp.arange(batch_size)
        batch = distributed.along_data(jnp.take(x, index, axis=0, mode="clip"))
        loss = objective(model, batch, jax.random.fold_in(key, i))
        return total + jnp.sum(jnp.where(index < examples, loss, 0))

    return lax.fori_loop(0, math.ceil(examples / batch_size), body, jnp.float32(0)) / examples


def keys(seed: int) -> Key[Array, "2"]:
    """A run's keys: of the steps, of validation."""
    return jax.random.split(jax.random.key(seed))


def split(
    model: Autoencoder, x: Examples | Stream, validation: float | Array | np.ndarray, seed: int, mesh: Mesh | None
) -> tuple[Float[Array, " kept *shape"] | Stream, Float[Array, " held_out *shape"] | None]:
    """The examples to train on, and those held out (None for none), checked and on the device; see `fit`.

    A stream stays one; of it, too much to hold is not held out, see `Stream.split`.
    """
    if seed < 0:
        raise errors.ConfigError(f"seed is {seed}; it has to be at least 0.")
    if isinstance(x, np.memmap):
        x = Stream(x)
    place = functools.partial(distributed.place, mesh=mesh)
    if isinstance(x, Stream):
        check_examples(model, x[:1])
    else:
        x = check_examples(model, x)
    if not isinstance(validation, (int, float)):
        held_out = place(check_examples(model, validation))
        return x if isinstance(x, Stream) else place(x), held_out
    if not 0 <= validation < 1:
        raise errors.ConfigError(f"validation is {validation}; it has to be a fraction, at least 0 and below 1.")
    held_out = math.ceil(validation * len(x))
    if held_out == 0:
        return x if isinstance(x, Stream) else place(x), None
    if held_out == len(x):
        raise errors.DataError(
            f"{len(x)} example can't be split into a part to train on and one to validate on: "
            "give more, or validation=0."
        )
    if isinstance(x, Stream):
        x, kept_apart = x.split(validation, seed)
        return x, place(check_examples(model, kept_apart))
    shuffled = np.random.default_rng(seed).permutation(len(x))
    return place(x[np.sort(shuffled[held_out:])]), place(x[np.sort(shuffled[:held_out])])


def feed_of(
    model: Autoencoder, x: Float[Array, " examples *shape"] | Stream, batch_size: int, seed: int, mesh: Mesh | None
) -> feed.Resident | feed.Windows:
    """The batches of what `split` gave.

    Raises:
        ConfigError: the devices of the mesh can't share a batch evenly.
    """
    if mesh is not None and batch_size % mesh.shape["data"]:
        raise errors.ConfigError(
            f"Batches of {batch_size} examples can't be shared evenly by {mesh.shape['data']} devices: "
            "choose another batch_size."
        )
    if isinstance(x, Stream):
        return feed.Windows(x, batch_size, seed, mesh, functools.partial(check_range, model))
    return feed.Resident(x, batch_size, seed)


def fit(
    model: Autoencoder,
    x: Examples | Stream,
    *,
    epochs: int = 10,
    batch_size: int = 256,
    learning_rate: float = 3e-3,
    warmup: float = 0.1,
    schedule: str = "cosine",
    weight_decay: float = 0.0,
    ema: float | None = None,
    optimizer: str = "adam",
    microbatches: int = 1,
    validation: float | Array | np.ndarray = 0.1,
    patience: int | None = None,
    objective: Objective | None = None,
    precision: str = "float32",
    mesh: Mesh | None = None,
    seed: int = 0,
    folder: str | os.PathLike | None = None,
    resume: bool = False,
    show: bool = True,
    on_epoch: Callable[[dict[str, float | str]], None] | None = None,
) -> History:
    """Train `model` in place on x, scaled as its likelihood expects.

    It ends with the weights of the epoch of the lowest validation loss (the last epoch's without validation).

    Args:
        x: in memory; or a memory map or a `data.Stream`, which is read a window at a time and never whole.
        learning_rate, warmup, schedule, weight_decay, ema: see `Optimizer`.
        optimizer: "adam" or "muon", see `Optimizer.method`.
        microbatches: parts of a batch to take gradients of one by one, see `Optimizer`.
        validation: the fraction of x held out, drawn by `seed`, or the held-out examples themselves; 0 for none.
        patience: stop after so many epochs without a better validation loss.
        objective: per example, `(model, x, key) -> [batch]`; by default the model's own.
        precision: "float32", or "bf16" for an encoder and a decoder in bfloat16, for accelerators.
        mesh: devices to train on, see `distributed.mesh`; each has a part of every batch. By default the first device,
            or all devices of all processes where there are several, which then call this together.
        folder: where checkpoints go: `latest/`, to resume from, and `best/`, the model. Ctrl-C or SIGTERM saves too.
        resume: go on from the newest good checkpoint in `folder`, to the same bits as if never interrupted.
        show: a progress bar, or a line an epoch where there is no terminal.
        on_epoch: called, in the first process, with each epoch's metrics: those of the history,
            `samples_per_s_per_device`, `waited` (seconds for data, of this epoch), and `distributed.describe`'s.

    Raises:
        DataError: x is empty, not finite, or doesn't fit the model.
        ConfigError: a setting is out of range.
        DivergedError: the loss stopped being finite; the model then holds the last good weights.
        CheckpointError: `resume` with another setting than the checkpoint's, or with no good checkpoint.
        KeyboardInterrupt: after an interrupt, with the weights so far in the model and in `folder`.
    """
    check_settings(epochs, batch_size, learning_rate, warmup, weight_decay, ema, patience)
    objective = in_precision(objective or model.objective, precision)
    mesh = mesh or distributed.default_mesh()
    x, held_out = split(model, x, validation, seed, mesh)
    batch_size = min(batch_size, len(x))
    source = feed_of(model, x, batch_size, seed, mesh)
    steps_per_epoch = source.windows * source.steps
    check_microbatches(batch_size, microbatches, mesh)
    steps = epochs * steps_per_epoch
    step_key, held_out_key = keys(seed)
    graphdef, params, _ = nnx.split(model, nnx.Param, ...)
    short = steps * batch_size * sum(leaf.size for leaf in jax.tree.leaves(params)) < SHORT
    update = Optimizer(steps, warmup, schedule, weight_decay, ema, optimizer, microbatches, flat=short)
    run_block = short_block if short else train_block

    settings = {
        "seed": float(seed),
        "examples": float(len(x)),
        "batch_size": float(batch_size),
        "epochs": float(epochs),
        "learning_rate": learning_rate,
        "warmup": warmup,
        "weight_decay": weight_decay,
        "ema": ema or 0.0,
        "constant_schedule": float(schedule == "constant"),
        "bf16": float(precision == "bf16"),
        "muon": float(optimizer == "muon"),
        "microbatches": float(microbatches),
        **({"windows": float(source.windows)} if isinstance(x, Stream) else {}),
    }
    start = distributed.place(init(model, update, learning_rate), mesh)
    step, run = 0, Snapshot.start(start, epochs, settings)
    if resume:
        step, run = _restore(folder, run)
    state, best, history = run.state, run.best, run.history
    trained_before = float(np.nanmax(history["seconds"], initial=0.0))
    began = saved = time.perf_counter()
    window, examples, block = None, (), 1
    clock = (began, step, 0.0)
    ran_on = distributed.describe(mesh)

    def speed() -> dict[str, float | str]:
        """Since it was last asked."""
        nonlocal clock
        (then, step_then, waited_then), clock = clock, (time.perf_counter(), step, source.waited)
        return {
            "samples_per_s_per_device": (step - step_then) * batch_size / (clock[0] - then) / ran_on["devices"],
            "waited": source.waited - waited_then,
            **ran_on,
        }

    def save() -> None:
        if folder is not None:
            checkpoints.save(os.path.join(folder, "latest"), step, Snapshot(state, best, history, run.settings))
            checkpoints.save(os.path.join(folder, "best"), step, best, keep=1)

    with (
        distributed.on(mesh),
        contextlib.closing(source),
        _interrupt() as interrupted,
        progress.bar(epochs, step / steps_per_epoch, show=show and jax.process_index() == 0) as report,
    ):
        while step < update.steps and not _stalled(history["val_loss"], patience):
            epoch = step // steps_per_epoch
            if window != step // source.steps:
                window = step // source.steps
                examples = source(window)
            stop = min(step + block, (window + 1) * source.steps)
            block_began = time.perf_counter()
            state = run_block(graphdef, objective, update, batch_size, state, *examples, step_key, step, stop)
            if not state.ok:
                nnx.update(model, *distributed.local(weights(state), mesh))
                raise errors.DivergedError(_diverged(epoch, learning_rate))
            seconds_per_step, stopping, save_now = processes.agree(
                (time.perf_counter() - block_began) / (stop - step),
                interrupted(),
                time.perf_counter() - saved > SAVE_SECONDS,
            )
            block = max(1, round(BLOCK_SECONDS / seconds_per_step))
            step, step_in_epoch = stop, stop - epoch * steps_per_epoch
            loss = float(state.loss_sum) / step_in_epoch

            if step_in_epoch == steps_per_epoch:
                state = state._replace(loss_sum=distributed.place(jnp.float32(0), mesh))
                history["loss"][epoch] = loss
                if held_out is None:
                    best = weights(state)
                else:
                    history["val_loss"][epoch] = evaluate(
                        graphdef, objective, batch_size, *weights(state), held_out, held_out_key
                    )
                    if np.nanargmin(history["val_loss"]) == epoch:
                        best = weights(state)
                history["seconds"][epoch] = trained_before + time.perf_counter() - began
                if on_epoch is not None and jax.process_index() == 0:
                    metrics = {name: float(values[epoch]) for name, values in history.items()}
                    on_epoch({"epoch": epoch + 1, **metrics, **speed()})
            report(step / steps_per_epoch, loss, batch_size / seconds_per_step)
            if stopping:
                save()
                nnx.update(model, *distributed.local(weights(state), mesh))
                raise KeyboardInterrupt
            if save_now and step < update.steps:
                save()
                saved = time.perf_counter()
    save()
    nnx.update(model, *distributed.local(best, mesh))
    done = math.ceil(step / steps_per_epoch)
    return History({name: values[:done].tolist() for name, values in history.items() if not np.isnan(values).all()})


class Snapshot(NamedTuple):
    """A run at a step: all that is saved to resume it. Epochs to come are NaN in `history`."""

    state: State
    best: Weights
    history: dict[str, Float[np.ndarray, " epochs"]]
    settings: dict[str, float]

    @classmethod
    def start(cls, state: State, epochs: int, settings: dict[str, float]) -> "Snapshot":
        history = {name: np.full(epochs, np.nan) for name in ("loss", "val_loss", "seconds")}
        return cls(state, weights(state), history, settings)


def apply(
    function: Callable[[nnx.Module, Array], Array],
    model: nnx.Module,
    x: Examples,
    *,
    batch_size: int = 1024,
) -> np.ndarray:
    """`function(model, batch)` over all of x, compiled and in batches: `apply(Autoencoder.encode, model, x)`.

    Returns what the function does, in NumPy, for the examples (or codes) in their order.

    Raises:
        DataError: x is empty.
    """
    if len(x) == 0:
        raise errors.DataError(f"There is nothing to apply the model to: the data have shape {np.shape(x)}.")
    batch_size = min(batch_size, len(x))
    graphdef, state = nnx.split(model)
    parts = []
    for start in range(0, len(x), batch_size):
        batch = np.asarray(x[start : start + batch_size])
        missing = batch_size - len(batch)
        padded = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)]) if missing else batch
        parts.append(np.asarray(_apply(function, graphdef, state, padded))[: len(batch)])
    return np.concatenate(parts)


@functools.partial(jax.jit, static_argnames=("function", "graphdef"))
def _apply(function: Callable, graphdef: nnx.GraphDef, state: nnx.State, batch: Array) -> Array:
    return function(nnx.merge(graphdef, state), batch)


def check_examples(model: Autoencoder, x: Any) -> Float[Array | np.ndarray, " examples *shape"]:
    """x itself, if the model can take it.

    Raises:
        DataError: x is empty, not floating point, not finite, out of the likelihood's range, or of another shape.
    """
    if not hasattr(x, "dtype"):
        x = np.asarray(x)
    if x.ndim < 2 or len(x) == 0:
        raise errors.DataError(f"The data have shape {x.shape}; expected [examples, ...] with at least one example.")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise errors.DataError(
            f"The data are {x.dtype}; expected floats scaled as the likelihood takes them. "
            "Scale them first, such as `data.scaling(x)` or `x.astype('float32') / 255`."
        )
    x = x.astype(np.float32)
    xp = jnp if isinstance(x, jax.Array) else np
    low, high = float(xp.min(x)), float(xp.max(x))
    check_range(model, low, high)
    given = x.shape[1:]
    try:
        made = nnx.eval_shape(
            lambda model, x: model.reconstruct(x), model, jax.ShapeDtypeStruct((1, *given), x.dtype)
        ).shape[1:]
    except (TypeError, ValueError):
        made = None
    if made != given:
        takes = "another shape" if made is None else f"examples of shape {made}"
        raise errors.DataError(f"The data have examples of shape {given}, but the model is made for {takes}.")
    return x


def check_range(model: Autoencoder, low: float, high: float) -> None:
    """Raise DataError unless data from `low` to `high` are finite and in the likelihood's range."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise errors.DataError("The data hold NaN or infinite values; remove or fill them first.")
    least, most = model.likelihood.support
    if low < least or high > most:
        raise errors.DataError(
            f"The data range from {low:g} to {high:g}, but the {type(model.likelihood).__name__} likelihood takes "
            f"values in [{least:g}, {most:g}]. Scale them to that range, or choose the Gaussian likelihood."
        )


@jax.jit
def weights(state: State) -> Weights:
    """A copy of the weights to use, which outlives the donated state: the averaged ones where there is an average."""
    params = state.params if state.average is None else state.average
    return jax.tree.map(jnp.copy, (params, state.rest))


def _restore(folder: str | os.PathLike | None, like: Snapshot) -> tuple[int, Snapshot]:
    """The newest good snapshot, of a run with the same settings."""
    if folder is None:
        raise errors.ConfigError("resume=True needs the `folder` that holds the checkpoints.")
    step, run = checkpoints.restore(os.path.join(folder, "latest"), like)
    changed = [
        f"{name} was {float(run.settings[name]):g} and is now {value:g}"
        for name, value in like.settings.items()
        if float(run.settings[name]) != value
    ]
    if changed:
        raise errors.CheckpointError(
            f"Can't resume with other settings: {'; '.join(changed)}. Give the same ones, or start another run."
        )
    return step, run._replace(history={name: np.array(values) for name, values in run.history.items()})


def _stalled(val_loss: Float[np.ndarray, " epochs"], patience: int | None) -> bool:
    """Whether the best of the epochs so far is more than `patience` epochs back."""
    done = np.count_nonzero(~np.isnan(val_loss))
    return bool(patience is not None and done > 0 and done - 1 - np.nanargmin(val_loss) >= patience)


@contextlib.contextmanager
def _interrupt() -> Iterator[Callable[[], bool]]:
    """Let the block that is running finish: gives a function that tells whether Ctrl-C or SIGTERM came.

    A second Ctrl-C stops at once. Only the main thread can listen; elsewhere it never tells of any.
    """
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: Any) -> None:
        came.set()
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, note)
    try:
        yield came.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_settings(
    epochs: int,
    batch_size: int,
    learning_rate: float,
    warmup: float,
    weight_decay: float,
    ema: float | None,
    patience: int | None,
) -> None:
    for name, value, good, rule in (
        ("epochs", epochs, epochs >= 1, "at least 1"),
        ("batch_size", batch_size, batch_size >= 1, "at least 1"),
        ("learning_rate", learning_rate, 0 < learning_rate < math.inf, "finite and above 0"),
        ("warmup", warmup, 0 <= warmup < 1, "a fraction of the run, at least 0 and below 1"),
        ("weight_decay", weight_decay, 0 <= weight_decay < math.inf, "finite and at least 0"),
        ("ema", ema, ema is None or 0 < ema < 1, "None, or above 0 and below 1"),
        ("patience", patience, patience is None or patience >= 1, "None, or at least 1"),
    ):
        if not good:
            raise errors.ConfigError(f"{name} is {value}; it has to be {rule}.")


def check_microbatches(batch_size: int, microbatches: int, mesh: Mesh | None) -> None:
    """Raise ConfigError unless batches can be cut into so many parts, which the devices of the mesh can share."""
    devices = 1 if mesh is None else mesh.shape["data"]
    if microbatches < 1 or batch_size % (microbatches * devices):
        shared = f" for {devices} devices to share" if devices > 1 else ""
        raise errors.ConfigError(
            f"microbatches is {microbatches}: batches of {batch_size} examples can't be cut into so many equal "
            f"parts{shared}. Choose a divisor."
        )


def _diverged(epoch: int, learning_rate: float) -> str:
    return (
        f"The loss or its gradient stopped being finite in epoch {epoch + 1}. The model holds the last good weights. "
        f"Try a lower learning rate than {learning_rate:g}, and check the data for extreme values."
    )
