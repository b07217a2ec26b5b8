"""What is exported: functions from data in their own units to results in theirs, traced without anything of flaxae."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array
from scipy import ndimage

from flaxae import errors, training
from flaxae.anomaly import SCORES, Detector, Passed, conformal
from flaxae.anomaly.detector import MOST, WHOLE
from flaxae.anomaly.local import SCALES, TOP, Local, unit
from flaxae.autoencoder import Autoencoder
from flaxae.data import Encoding, Scaling
from flaxae.denoising import tiles
from flaxae.finetuning import Classifier
from flaxae.nn import conv
from flaxae.trained import Trained, TrainedClassifier, TrainedDetector

FALSE_ALARMS = 0.01
Exportable = Trained | TrainedDetector | TrainedClassifier


class Program(NamedTuple):
    """A function to export, and what it is to be compared with."""

    function: Callable[[Any], dict[str, Array]]  # traceable; the batch, and sizes that are None, may be symbols
    shape: tuple[int | None, ...]  # of one example; None: any size
    dtype: str
    reference: Callable[[np.ndarray], dict[str, np.ndarray]]  # by flaxae itself; results that follow are left out
    examples: Callable[[], list[np.ndarray]]  # inputs to compare on
    columns: list[dict[str, Any]] | None = None  # of a table: their names, and the categories that numbers stand for


def programs(what: Exportable, threshold: float | None = None) -> dict[str, Program]:
    """The functions that a trained model has, by name: encode, decode, reconstruct, score, probabilities.

    Args:
        what: what `flaxae.load` returned.
        threshold: of a detector, the score above which an example counts as anomalous; by default the one that flags at
            most a hundredth of normal examples, or as few as the held-out scores can promise.

    Raises:
        ConfigError: it can't be exported.
    """
    if isinstance(what, TrainedDetector):
        return {"score": _of_detector(what, threshold)}
    if isinstance(what, TrainedClassifier):
        return {**_of_autoencoder(what.trained), "probabilities": _of_classifier(what)}
    if isinstance(what, Trained):
        return _of_autoencoder(what)
    raise errors.ConfigError(
        f"A {type(what).__name__} can't be exported; autoencoders, detectors of examples and classifiers can."
    )


def _of_autoencoder(trained: Trained) -> dict[str, Program]:
    model = trained.model
    if model.conditions:
        raise errors.ConfigError("A model with conditions can't be exported: it takes more than the examples.")
    body = tiles.any_size(model)
    stride = None if body is None or trained.kind != "image" else body.stride
    enter, leave = _into_model(trained), _out_of_model(trained)
    split = nnx.split(model)

    def encode(x: Any) -> dict[str, Any]:
        return {"code": _traced(Autoencoder.encode, split, _extended(enter(x), stride))}

    def reconstruct(x: Any) -> dict[str, Array]:
        made = _traced(Autoencoder.reconstruct, split, _extended(enter(x), stride))
        return {"reconstruction": leave(made if stride is None else made[:, : x.shape[1], : x.shape[2]])}

    def decode(z: Any) -> dict[str, Array]:
        return {"reconstruction": leave(_traced(Autoencoder.decode, split, z))}

    examples = functools.partial(_examples, trained)
    shape = trained.shape if stride is None else (None, None, trained.shape[-1])
    given = {"shape": shape, "dtype": trained.scaling.dtype, "examples": examples}
    if _is_encoded(trained):
        assert trained.encoding is not None
        columns = [{"name": c.name, "categories": c.categories} for c in trained.encoding.columns]
        given |= {"shape": (len(columns),), "dtype": "float32", "columns": columns}
    found = {"reconstruct": Program(reconstruct, reference=functools.partial(_reconstructed, trained, stride), **given)}
    encoded = functools.partial(_encoded, trained, stride)
    code: Any = jax.eval_shape(encode, jax.ShapeDtypeStruct(examples()[0].shape, given["dtype"]))["code"]
    if len(jax.tree.leaves(code)) == 1:  # and not the tree of a U-Net
        found["encode"] = Program(encode, reference=encoded, **given)
    if "encode" in found and stride is None:

        def codes() -> list[np.ndarray]:
            return [encoded(part)["code"] for part in examples()]

        found["decode"] = Program(decode, code.shape[1:], "float32", functools.partial(_decoded, trained), codes)
    return found


def _of_classifier(what: TrainedClassifier) -> Program:
    enter, split = _into_model(what.trained), nnx.split(what.classifier)

    def probabilities(x: Any) -> dict[str, Array]:
        return {"probabilities": _traced(Classifier.probabilities, split, enter(x))}

    def reference(x: np.ndarray) -> dict[str, np.ndarray]:
        return {"probabilities": what.probabilities(_as_given(what.trained, x))}

    like = _of_autoencoder(what.trained)["reconstruct"]
    return like._replace(function=probabilities, reference=reference, shape=what.trained.shape)


def _of_detector(what: TrainedDetector, threshold: float | None) -> Program:
    detector, enter = what.detector, _into_model(what.trained)
    calibration = detector.calibration
    if threshold is None:
        threshold = conformal.threshold(calibration, max(FALSE_ALARMS, 1 / (len(calibration) + 1)))
    limit = float(threshold)

    def score(x: Any) -> dict[str, Array]:
        seen = enter(x)
        made = _looked_at(detector, seen)
        as_high = jnp.sum((calibration[None] >= made["score"][:, None]).astype(jnp.float32), axis=1)
        p_value = (1 + as_high) / (1 + len(calibration))
        return {**made, "p_value": p_value, "anomalous": made["score"] > limit}

    def reference(x: np.ndarray) -> dict[str, np.ndarray]:
        given = _as_given(what.trained, x)
        made = {"score": what.score(given)}
        return made if detector.local is None else {**made, "heat": detector.heat(what.trained.units_removed(given))}

    trained = what.trained
    known = detector.references[:17]  # itself each would be at a distance of 0, which is mere rounding
    examples = [trained.scaling.undo(0.7 * known + 0.3 * known[::-1])]
    columns = None
    if _is_encoded(trained):
        assert trained.encoding is not None
        columns = [{"name": c.name, "categories": c.categories} for c in trained.encoding.columns]
        examples = [np.asarray(_columns(trained.encoding, jnp.asarray(part))) for part in examples]
    shape = trained.shape if columns is None else (len(columns),)
    return Program(score, shape, str(examples[0].dtype), reference, lambda: examples, columns)


def _traced(method: Callable, split: tuple[Any, Any], x: Any) -> Any:
    with conv.portable():
        return method(nnx.merge(*split, copy=True), x)


def _looked_at(detector: Detector, x: Array) -> dict[str, Array]:
    """`Detector.score` of scaled examples, and of larger images the heat."""
    seen, own = detector.views.traced(x), jnp.full(x.shape[:1], -1)
    looks = []
    for model, fitted in zip(detector.models, detector.fitted, strict=True):
        with conv.portable():
            passed = Passed.of(detector.views, model, seen)
            parts = SCORES[detector.score_name].of(fitted.arrays, model, passed, detector.neighbours, own)
        looks.append((parts - fitted.centre[None]) / fitted.spread[None])
    parts = jnp.mean(jnp.stack(looks), axis=0)
    if detector.local is None:
        return {"score": jnp.sum(parts, axis=1)}
    whole = WHOLE * jnp.clip(jnp.mean(parts, axis=-1), -MOST, MOST)
    local, heat = _local(detector.local, x)
    return {"score": local + whole, "heat": heat}


def _local(local: Local, x: Array) -> tuple[Array, Array]:
    """`Local.score` and `Local.heat`."""
    apart = (x - local.mean[None]).reshape(x.shape[0], -1)
    components = jnp.asarray(local.components, jnp.float32)
    energy = jnp.mean(jnp.square((apart - (apart @ components.T) @ components).reshape(x.shape)), axis=-1)
    relative = []
    for scale, usual in zip(SCALES, local.usual, strict=True):
        width = scale * unit((1, *local.mean.shape))
        down, across = (_smoothing(side, width) for side in local.mean.shape[:2])
        relative.append(jnp.einsum("ij,bjk,lk->bil", down, energy, across) / usual.astype(np.float32)[None])
    fine, coarse = (part.reshape(x.shape[0], -1) for part in relative)
    top, _ = lax.top_k(coarse, max(1, round(TOP * coarse.shape[1])))
    peaks = jnp.log(jnp.stack([jnp.max(fine, axis=1), jnp.mean(top, axis=1)], axis=1) + 1e-9)
    deviations = (peaks - local.centre.astype(np.float32)[None]) / local.spread.astype(np.float32)[None]
    return jnp.mean(deviations, axis=1), jnp.mean(jnp.stack(relative), axis=0)


def _smoothing(side: int, deviation: float) -> np.ndarray:
    """SciPy's Gaussian filter along an axis, as a matrix."""
    return np.asarray(ndimage.gaussian_filter1d(np.eye(side), deviation, axis=0), np.float32)


def _extended(x: Array, stride: int | None) -> Array:
    """Images with their edges repeated up to a multiple of the stride."""
    if stride is None:
        return x
    for axis in (1, 2):
        side = x.shape[axis]
        index = jnp.minimum(jnp.arange(-(-side // stride) * stride), side - 1)
        x = jnp.take(x, index, axis=axis)
    return x


def _into_model(trained: Trained) -> Callable[[Any], Array]:
    """From examples as they are given to what the model sees."""

    def enter(x: Any) -> Array:
        if _is_encoded(trained):
            assert trained.encoding is not None
            x = _features(trained.encoding, x)
        return trained.scaling(jnp.asarray(x))

    return enter


def _out_of_model(trained: Trained) -> Callable[[Array], Array]:
    def leave(x: Array) -> Array:
        made = _undone(trained.scaling, x)
        return _columns(trained.encoding, made) if trained.encoding is not None and _is_encoded(trained) else made

    return leave


def _is_encoded(trained: Trained) -> bool:
    return trained.framing is None and trained.encoding is not None and not trained.encoding.is_plain


def _undone(scaling: Scaling, x: Array) -> Array:
    """`Scaling.undo`, traced."""
    if scaling.limit is not None:
        excess = jnp.abs(x) - scaling.limit
        far = jnp.sign(x) * (scaling.limit + jnp.expm1(jnp.clip(excess, 0, 60)))
        x = jnp.where(excess > 0, far, x)
    shape = (1,) * (x.ndim - 1) + (-1,)
    values = x * np.reshape(np.float32(scaling.scale), shape) + np.reshape(np.float32(scaling.offset), shape)
    if np.dtype(scaling.dtype).kind == "u":
        values = jnp.clip(jnp.rint(values), 0, np.iinfo(scaling.dtype).max)
    return values.astype(scaling.dtype)


def _features(encoding: Encoding, x: Array) -> Array:
    """The features of rows with a number for each column; of categories their place, or −1 where one is missing."""
    features = []
    for i, column in enumerate(encoding.columns):
        values = x[:, i : i + 1]
        is_number = column.categories is None
        places = None if column.categories is None else np.arange(len(column.categories) + 1, dtype=np.float32)
        features.append(values if places is None else (values == places[None]).astype(jnp.float32))
        if column.missing:
            features.append(jnp.zeros_like(values) if is_number else (values < 0).astype(jnp.float32))
    return jnp.concatenate(features, axis=1)


def _columns(encoding: Encoding, features: Array) -> Array:
    """The inverse of `_features`: of categories the place of the likeliest; NaN and −1 for what is missing."""
    columns, start = [], 0
    for column in encoding.columns:
        values = features[:, start : start + len(column.features)]
        start += len(column.features)
        if column.categories is None:
            made = values[:, 0] if column.kind == "real" else jnp.rint(values[:, 0])
            made = jnp.maximum(made, 0) if column.kind == "count" else made
            columns.append(jnp.where(values[:, 1] > 0.5, jnp.nan, made) if column.missing else made)
            continue
        if column.kind == "flag":  # never "other"
            values = jnp.where(np.arange(values.shape[1])[None] == len(column.categories), -jnp.inf, values)
        place = jnp.argmax(values, axis=1).astype(jnp.float32)
        columns.append(jnp.where(place > len(column.categories), -1.0, place))
    return jnp.stack(columns, axis=1)


def _as_given(trained: Trained, x: np.ndarray) -> Any:
    """Rows with a number for each column as the DataFrame that flaxae takes; other examples as they are."""
    if not _is_encoded(trained):
        return x
    import pandas as pd

    assert trained.encoding is not None
    columns: dict[str, Any] = {}
    for values, column in zip(x.T, trained.encoding.columns, strict=True):
        names = None if column.categories is None else np.array([*column.categories, "other", None], object)
        columns[column.name] = values if names is None else names[values.astype(int)]
    return pd.DataFrame(columns)


def _encoded(trained: Trained, stride: int | None, x: np.ndarray) -> dict[str, Any]:
    return {"code": trained.encode(_as_given(trained, _padded(x, stride)))}


def _reconstructed(trained: Trained, stride: int | None, x: np.ndarray) -> dict[str, np.ndarray]:
    seen = trained.scaled(_as_given(trained, _padded(x, stride)))
    made = trained.scaling.undo(training.apply(Autoencoder.reconstruct, trained.model, seen))
    if trained.encoding is not None and _is_encoded(trained):
        made = np.asarray(_columns(trained.encoding, jnp.asarray(made)))
    return {"reconstruction": made if stride is None else made[:, : x.shape[1], : x.shape[2]]}


def _decoded(trained: Trained, z: np.ndarray) -> dict[str, np.ndarray]:
    made = trained.decode(z)
    if trained.encoding is not None and _is_encoded(trained):
        made = np.asarray(_columns(trained.encoding, jnp.asarray(made)))
    return {"reconstruction": made}


def _padded(x: np.ndarray, stride: int | None) -> np.ndarray:
    if stride is None:
        return x
    return np.pad(x, [(0, 0), *((0, -side % stride) for side in x.shape[1:3]), (0, 0)], mode="edge")


def _examples(trained: Trained) -> list[np.ndarray]:
    """Batches of made-up examples, of images of any size of two sizes."""
    rng = np.random.default_rng(0)
    low, high = trained.model.likelihood.support
    body = tiles.any_size(trained.model)
    shapes = [trained.shape]
    if body is not None and trained.kind == "image":
        height, width, channels = trained.shape
        shapes = [(body.stride, 2 * body.stride, channels), (height + 3, width + 5, channels)]
    made = []
    for n, shape in zip((17, 3), shapes, strict=False):
        bounded = np.isfinite([low, high]).all()
        x = rng.uniform(low, high, (n, *shape)) if bounded else rng.standard_normal((n, *shape))
        if getattr(trained.model.likelihood, "discrete", False):
            x = np.rint(x)
        made.append(trained.scaling.undo(x.astype(np.float32)))
    if _is_encoded(trained):
        assert trained.encoding is not None
        return [np.asarray(_columns(trained.encoding, jnp.asarray(part))) for part in made]
    return made
