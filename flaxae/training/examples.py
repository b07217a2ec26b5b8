"""Examples before training and after: checked, split, and put through a trained model."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Key, PyTree

from flaxae import batches, errors
from flaxae.autoencoder import Autoencoder
from flaxae.batches import Batch
from flaxae.data.stream import Stream
from flaxae.objectives import Objective, with_metrics
from flaxae.parallel import distributed


def apply(function: Callable[..., PyTree[Array]], model: nnx.Module, x: Any, *, batch_size: int = 1024) -> Any:
    """`function(model, batch)` over all of x, compiled and in batches: `apply(Autoencoder.encode, model, x)`.

    Returns what the function does, in NumPy, for the examples (or codes; an array or a tree) in their order.

    Raises:
        DataError: x is empty.
    """
    examples = batches.count(x)
    if examples == 0:
        shapes = ", ".join(str(np.shape(leaf)) for leaf in jax.tree.leaves(x))
        raise errors.DataError(f"There is nothing to apply the model to: the data have shape {shapes}.")
    batch_size = min(batch_size, examples)
    graphdef, state = nnx.split(model)
    parts = []
    for start in range(0, examples, batch_size):
        size = min(batch_size, examples - start)

        def padded(leaf: Any, start: int = start, size: int = size) -> np.ndarray:
            batch = np.asarray(leaf[start : start + size])
            missing = batch_size - size
            return np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)]) if missing else batch

        made = _apply(function, graphdef, state, jax.tree.map(padded, x))
        parts.append(jax.tree.map(lambda leaf, size=size: np.asarray(leaf)[:size], made))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


@functools.partial(jax.jit, static_argnames=("function", "graphdef"))
def _apply(function: Callable, graphdef: nnx.GraphDef, state: nnx.State, batch: Any) -> Any:
    return function(nnx.merge(graphdef, state, copy=True), batch)


def check_examples(model: Autoencoder, x: Any) -> Any:
    """x itself, an array or a tree, if the model can take it: floats as float32, what is not observed as 0.

    Raises:
        DataError: x is empty, not finite, out of the likelihood's range, of another shape, or whole numbers where the
            likelihood is not for such.
    """
    x = jax.tree.map(lambda leaf: leaf if hasattr(leaf, "dtype") else np.asarray(leaf), x)
    shape = Batch.of(x).x.shape
    if len(shape) < 2 or shape[0] == 0:
        raise errors.DataError(f"The data have shape {shape}; expected [examples, ...] with at least one example.")
    batches.count(x)
    given = Batch.of(x)
    discrete = getattr(model.likelihood, "discrete", False)
    if not discrete and not jnp.issubdtype(given.wanted.dtype, jnp.floating):
        raise errors.DataError(
            f"The data are {given.wanted.dtype}; expected floats scaled as the likelihood takes them. "
            "Scale them first, such as `data.scaling(x)` or `x.astype('float32') / 255`."
        )
    x = jax.tree.map(lambda leaf: leaf.astype(_kept(leaf.dtype)), x)
    if given.observed is not None:
        values = Batch.of(x).x
        xp = jnp if isinstance(values, jax.Array) else np
        x = batches.replaced(x, xp.where(given.observed, values, xp.zeros((), values.dtype)))
    given = Batch.of(x)
    seen = {"x": given.x} if given.target is None else {"x": given.x, "target": given.target}
    for name, values in seen.items():
        xp = jnp if isinstance(values, jax.Array) else np
        check_range(model, float(xp.min(values)), float(xp.max(values)), wanted=name == [*seen][-1])
    cause = None
    try:
        made = _shape_of(lambda model, x: model.reconstruct(x), model, x)[1:]
    except (TypeError, ValueError) as error:
        made, cause = None, error
    wanted = given.wanted.shape[1:]
    if made != wanted:
        if isinstance(cause, errors.FlaxaeError):
            raise cause
        takes = "another shape" if made is None else f"examples of shape {made}"
        raise errors.DataError(
            f"The data have examples of shape {given.x.shape[1:]}, but the model is made for {takes}."
        ) from cause
    return x


def check_range(model: Autoencoder, low: float, high: float, *, wanted: bool = True) -> None:
    """Raise DataError unless data from `low` to `high` are finite and, where wanted, in the likelihood's range."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise errors.DataError("The data hold NaN or infinite values; remove or fill them first.")
    least, most = model.likelihood.support
    if wanted and (low < least or high > most):
        raise errors.DataError(
            f"The data range from {low:g} to {high:g}, but the {type(model.likelihood).__name__} likelihood takes "
            f"values in [{least:g}, {most:g}]. Scale them to that range, or choose the Gaussian likelihood."
        )


def check_objective(model: nnx.Module, objective: Objective, x: Any) -> tuple[str, ...]:
    """The names of the objective's metrics, "loss" first, if it gives a loss for each example: asked, not guessed.

    Raises:
        ConfigError: it can't do with the model or the data, whose error is the cause, or gives other shapes.
    """

    def losses(model: nnx.Module, batch: Any, key: Key[Array, ""]) -> Any:
        loss, metrics = with_metrics(objective(model, batch, key))
        return {"loss": loss, **metrics}

    name = getattr(objective, "__name__", type(objective).__name__)
    try:
        made = _abstract(losses, model, x, 2, jax.random.key(0))
    except errors.FlaxaeError:
        raise
    except Exception as error:
        raise errors.ConfigError(
            f"The objective {name} can't be computed for this model and data: {type(error).__name__}: {error}"
        ) from error
    wrong = {metric: leaf.shape for metric, leaf in made.items() if leaf.shape != (2,)}
    if wrong:
        metric, shape = next(iter(wrong.items()))
        raise errors.ConfigError(
            f"The objective {name} gives a {metric} of shape {list(shape)} for a batch of 2 examples; expected [2], a "
            "number an example. Sum it over every axis but the first."
        )
    return tuple(made)


def _kept(dtype: Any) -> Any:
    """What values of that type are kept as: floats as float32, whole numbers in 32 bits at most."""
    return np.float32 if jnp.issubdtype(dtype, jnp.floating) else jax.dtypes.canonicalize_dtype(dtype)


def _shape_of(function: Callable, model: nnx.Module, x: Any) -> tuple[int, ...]:
    return _abstract(function, model, x, 1).shape


def _abstract(function: Callable, model: nnx.Module, x: Any, size: int, *rest: Any) -> Any:
    """What the function would give for a batch of that size, in shapes alone."""
    graphdef, state = nnx.split(model)
    batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), _kept(leaf.dtype)), x)
    return jax.eval_shape(
        lambda state, batch, *rest: function(nnx.merge(graphdef, state, copy=True), batch, *rest), state, batch, *rest
    )


def has_streams(x: Any) -> bool:
    """Whether x, or a part of it, is read while it is trained on."""
    return any(isinstance(leaf, Stream) for leaf in jax.tree.leaves(x))


def streamed(x: Any) -> Any:
    """x, where a part of it is a stream or a memory map, as streams throughout."""
    if not any(isinstance(leaf, Stream | np.memmap) for leaf in jax.tree.leaves(x)):
        return x
    x = jax.tree.map(lambda leaf: leaf if isinstance(leaf, Stream) else Stream(leaf), x)
    batches.count(x)
    observed: Any = Batch.of(x).observed  # a stream
    if observed is None:
        return x
    seen = observed.scaled(_there)
    return x._replace(observed=seen) if isinstance(x, Batch) else {**x, "observed": seen}


def _there(observed: Any) -> Any:
    return observed.astype(bool)


def split(model: Autoencoder, x: Any, validation: Any, seed: int, mesh: Mesh | None) -> tuple[Any, Any | None]:
    """The examples to train on, and those held out (None for none), checked and on the device; see `fit`.

    A stream, or a tree with any, stays one; of it, too much to hold is not held out, see `Stream.split`.
    """
    if seed < 0:
        raise errors.ConfigError(f"seed is {seed}; it has to be at least 0.")
    x = streamed(x)
    place = functools.partial(distributed.place, mesh=mesh)
    is_stream = has_streams(x)
    if is_stream:
        check_examples(model, batches.take(x, slice(0, 1)))
    else:
        x = check_examples(model, x)
    if not isinstance(validation, (int, float)):
        held_out = place(check_examples(model, validation))
        return x if is_stream else place(x), held_out
    if not 0 <= validation < 1:
        raise errors.ConfigError(f"validation is {validation}; it has to be a fraction, at least 0 and below 1.")
    examples = batches.count(x)
    held_out = math.ceil(validation * examples)
    if held_out == 0:
        return x if is_stream else place(x), None
    if held_out == examples:
        raise errors.DataError(
            f"{examples} example can't be split into a part to train on and one to validate on: "
            "give more, or validation=0."
        )
    if is_stream:
        streams, tree = jax.tree.flatten(x)
        bytes_each = sum(4 * stream.example.size for stream in streams)
        kept, apart = zip(*(stream.split(validation, seed, bytes_each) for stream in streams), strict=True)
        return tree.unflatten(kept), place(check_examples(model, tree.unflatten(apart)))
    shuffled = np.random.default_rng(seed).permutation(examples)
    return tuple(place(batches.take(x, np.sort(part))) for part in (shuffled[held_out:], shuffled[:held_out]))
