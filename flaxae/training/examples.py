"""Examples before and after training: check them, split them, and apply a trained model to them."""

import functools
import hashlib
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
from flaxae.parallel import distributed, processes

BLOCKS, BLOCK_BYTES = 64, 2**18  # the blocks of a stream that its fingerprint is made from


def apply(function: Callable[..., PyTree[Array]], model: nnx.Module, x: Any, *, batch_size: int = 1024) -> Any:
    """`function(model, batch)` over all of x, compiled and in batches: `apply(Autoencoder.encode, model, x)`.

    x may be examples or codes, an array or a tree. Returns the function's output in NumPy, in the order of x. Batches
    have few sizes, powers of two up to `batch_size`, so that few programs are compiled whatever the lengths are.

    Raises:
        DataError: x is empty.
    """
    processes.refuse_fork()
    examples = batches.count(x)
    if examples == 0:
        shapes = ", ".join(str(np.shape(leaf)) for leaf in jax.tree.leaves(x))
        raise errors.DataError(f"There is nothing to apply the model to: the data have shape {shapes}.")
    batch_size = min(batch_size, 1 << (examples - 1).bit_length())
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
    """x, an array or a tree, if the model can take it, with floats as float32 and values that are not observed as 0.

    The masked values of an array of `numpy.ma` are not observed.

    Raises:
        DataError: x is empty, not finite, out of the likelihood's range, of another shape, or whole numbers although
            the likelihood is not for whole numbers.
    """
    processes.refuse_fork()
    x = batches.unmasked(x)
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
    """Raise DataError unless data from `low` to `high` are finite and, if `wanted`, in the likelihood's range."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise errors.DataError("The data hold NaN or infinite values; remove or fill them first.")
    least, most = model.likelihood.support
    if wanted and (low < least or high > most):
        raise errors.DataError(
            f"The data range from {low:g} to {high:g}, but the {type(model.likelihood).__name__} likelihood takes "
            f"values in [{least:g}, {most:g}]. Scale them to that range, or choose the Gaussian likelihood."
        )


def fingerprint(x: Any) -> str:
    """The SHA-256 of training data: an array, a tree, or a stream, of which only blocks from all over it are read.

    It distinguishes data of the same shape, by every value if they are in memory.
    """
    digest = hashlib.sha256()
    x = np.asarray(x) if isinstance(x, list) else x
    for path, leaf in jax.tree_util.tree_leaves_with_path(x):
        sampled = isinstance(leaf, Stream | np.memmap)
        if isinstance(leaf, np.ma.MaskedArray):
            digest.update(np.ma.getmaskarray(leaf).tobytes())
        leaf = leaf if sampled else np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        if not sampled:
            digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
            continue
        each = max(1, BLOCK_BYTES * len(leaf) // max(1, math.prod(leaf.shape) * leaf.dtype.itemsize))
        for start in np.linspace(0, max(0, len(leaf) - each), BLOCKS).astype(int).tolist():
            stop = min(start + each, len(leaf))
            part = leaf.stored(start, stop) if isinstance(leaf, Stream) else leaf[start:stop]
            digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


def check_objective(model: nnx.Module, objective: Objective, x: Any) -> tuple[str, ...]:
    """The names of the objective's metrics, "loss" first. The objective is traced on two examples to find them.

    Raises:
        ConfigError: the objective fails on the model or the data (the error is chained), or doesn't give one number per
            example.
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
    """The dtype that values of that dtype are trained on in: float32 for floats, at most 32 bits for whole numbers."""
    return np.float32 if jnp.issubdtype(dtype, jnp.floating) else jax.dtypes.canonicalize_dtype(dtype)


def _shape_of(function: Callable, model: nnx.Module, x: Any) -> tuple[int, ...]:
    return _abstract(function, model, x, 1).shape


def _abstract(function: Callable, model: nnx.Module, x: Any, size: int, *rest: Any) -> Any:
    """The shapes of the function's output for a batch of that size, without computing it."""
    graphdef, state = nnx.split(model)
    batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), _kept(leaf.dtype)), x)
    return jax.eval_shape(
        lambda state, batch, *rest: function(nnx.merge(graphdef, state, copy=True), batch, *rest), state, batch, *rest
    )


def has_streams(x: Any) -> bool:
    """Whether x, or an array of the tree x, is a stream, which is read during training."""
    return any(isinstance(leaf, Stream) for leaf in jax.tree.leaves(x))


def streamed(x: Any) -> Any:
    """x with every array as a stream, if any of them is a stream or a memory map; else x itself."""
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
    """The training and the validation examples (None for none), checked and on the device; see `fit`.

    The training part of a stream, or of a tree with streams, is again streamed. Its validation part is limited to what
    fits in memory, see `Stream.split`.
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
