"""`Detector`: trained autoencoders, one of `SCORES`, and the scores of held-out normal examples."""

import dataclasses
import functools
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Shaped

from flaxae import atomic, autoencoder, data, errors, manifest, training
from flaxae.anomaly import conformal
from flaxae.anomaly.local import LEAST_SIDE, Local
from flaxae.anomaly.scores import SCORES, check_neighbours, check_score, nearest, rows_for
from flaxae.anomaly.views import Passed, Views
from flaxae.autoencoder import Autoencoder, Config, own_objective
from flaxae.corruptions import GaussianNoise
from flaxae.likelihoods import Gaussian
from flaxae.nn.heads import Deterministic
from flaxae.nn.mlp import MLP, MLPDecoder, MLPEncoder
from flaxae.objectives import Trimmed
from flaxae.parallel import compilation, processes
from flaxae.training import Examples, checkpoints, population

MAX_REFERENCES = 4096  # the most normal examples that others are compared with
MAX_REFERENCES_FOR_FRACTION = 1024  # if neighbours are a fraction: its distances hardly change with the size
NEIGHBOURS = 5  # among clean references
NEIGHBOURS_CONTAMINATED = 0.1  # of the references, if some are anomalies, which are neighbours of each other
STEPS, MOST_EPOCHS, BATCH, LEARNING_RATE = 500, 100, 128, 4e-3  # defaults for training
HELD_OUT = 0.2
FILES = frozenset({"detector.json", "detector.npz", "models"})  # in the folder of a saved detector
MOST = 100.0  # deviations, of an image as a whole
WHOLE = 0.1  # what an image as a whole counts beside its peaks: deviations of its parts on average
TRIMMED = 0.1  # of each batch, of tables of which nothing is told
FOLDS = 5
FAR_OUT = 5.0  # deviations of a table's columns, beyond which why a row is strange is plain
USUAL = 0.9  # of the references, those that fit best, say what is usual where a row's strangeness is explained
FILLED_UP = 16384  # the most rows of tables that are filled up
WIDTHS = (8, 16, 32, 64, 128, 256, 512)  # which they are filled up to
BATCHES = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, BATCH)  # sizes of the batches that such tables are trained in
BLOCK = 256  # examples scored at once: their distances to all references stay in the cache
WORKERS = min(8, os.cpu_count() or 1)  # blocks at once, as each keeps only one core busy in part of its work


class _Fitted(NamedTuple):
    """What a score has learned from the references, for one model."""

    arrays: Any
    centre: Float[np.ndarray, " parts"]  # median of each part of the score over the references
    spread: Float[np.ndarray, " parts"]  # median absolute deviation, or 90th percentile over it


@dataclasses.dataclass(frozen=True, eq=False)
class Detector:
    """Trained autoencoders, a score, and the scores of held-out normal data. Made by `fit`, `Detector.of` or `load`.

    With several models, the score is the mean of theirs, each in units of its spread over the references. (Averaging
    ranks instead, as is common, would give the same score to all examples stranger than the last reference.)
    """

    config: Config
    models: tuple[Autoencoder, ...]  # of the views of examples
    views: Views
    score_name: str
    neighbours: int
    references: Float[np.ndarray, " references *shape"]  # scaled
    calibration: Float[np.ndarray, " normals"]  # sorted
    fitted: tuple[_Fitted, ...]
    contamination: float = 0.0  # the fraction of the held-out scores, the highest, that are left out of the calibration
    local: Local | None = None  # of images that are large enough for defects to be small in them
    peaks: Float[np.ndarray, " peaks"] | None = None  # the largest heat of each normal image, sorted

    @classmethod
    def of(
        cls,
        config: Config,
        models: Sequence[Autoencoder],
        views: Views,
        train: Float[np.ndarray, " train *shape"],
        held_out: Float[np.ndarray, " held_out *shape"],
        *,
        score: str = "combined",
        neighbours: int | float = NEIGHBOURS,
        contamination: float | Literal["auto"] = 0.0,
        seed: int = 0,
    ) -> "Detector":
        """A detector of trained models.

        Args:
            config: the config that the models were built from.
            train: the examples that they were trained on, scaled. A sample of them is kept as references.
            held_out: normal examples that they were not trained on. If there are none, the scores of the references,
                each compared with the others, take their place, and the p-values guarantee nothing.
            neighbours: with how many of its nearest references an example is compared, or with which fraction of all.
            contamination: see `calibrated`.

        Raises:
            ConfigError: an unknown score, or neighbours out of range.
            DataError: there are not two training examples.
        """
        check_score(score)
        if len(train) < 2:
            raise errors.DataError(f"There is {len(train)} example to compare with; anomaly scores take 2 at least.")
        check_neighbours(neighbours)
        most = MAX_REFERENCES_FOR_FRACTION if isinstance(neighbours, float) else MAX_REFERENCES
        order = np.random.default_rng(seed).permutation(len(train))
        references = np.asarray(train[np.sort(order[:most])], np.float32)
        if isinstance(neighbours, float):
            neighbours = max(NEIGHBOURS, round(neighbours * len(references)))
        neighbours = min(neighbours, len(references) - 1)
        fitted = tuple(_fit_score(model, views, score, neighbours, references) for model in models)
        detector = cls(config, tuple(models), views, score, neighbours, references, np.zeros(0, np.float32), fitted)
        if views.kind == "image" and score == "combined" and min(references.shape[1:3]) >= LEAST_SIDE:
            detector = dataclasses.replace(detector, local=Local.fit(references))
        own = np.arange(len(references))
        normal = detector.looks(held_out) if len(held_out) else detector.looks(references, own=own)
        if detector.local is not None:
            heat = detector.local.heat(held_out if len(held_out) else references)
            detector = dataclasses.replace(detector, peaks=np.sort(heat.max(axis=(1, 2))))
        return detector.calibrated(normal, contamination)

    def calibrated(
        self, looks: Float[np.ndarray, "held_out looks"], contamination: float | Literal["auto"] = 0.0
    ) -> "Detector":
        """The detector, its thresholds and p-values resting on `looks` at examples that it was not trained on.

        `contamination` is the fraction of them that may be anomalies: those of the highest scores, which are left out.
        "auto" estimates it: see `conformal.contamination`. Promises then hold as far as those are the anomalies.
        """
        if contamination == "auto":  # powers have tails that explain every score
            fraction = conformal.contamination(SCORES[self.score_name].roots(looks))
        else:
            fraction = float(contamination)
        scores = looks.sum(axis=1)
        kept = np.sort(scores)[: max(1, len(scores) - round(fraction * len(scores)))]
        return dataclasses.replace(self, calibration=kept, contamination=fraction)

    def with_references(self, more: Float[np.ndarray, " more *shape"]) -> "Detector":
        """The detector, comparing with `more` examples as well. Its p-values stay, so they may be too high."""
        references = np.concatenate([self.references, more])[:MAX_REFERENCES].astype(np.float32)
        fitted = [
            kept._replace(arrays=_fit_arrays(model, self.views, self.score_name, references))
            for model, kept in zip(self.models, self.fitted, strict=True)
        ]
        return dataclasses.replace(self, references=references, fitted=tuple(fitted))

    def score(
        self, x: Float[np.ndarray, " examples *shape"], *, own: Int[np.ndarray, " examples"] | None = None
    ) -> Float[np.ndarray, " examples"]:
        """The anomaly score of each example, higher for stranger ones. x is scaled as in training.

        Memory doesn't grow with the number of examples.

        Args:
            own: for each example, the index of the reference that it is itself, so as not to compare it with itself;
                −1 or None for none.

        Raises:
            DataError: x is empty, not finite or of another shape.
        """
        return self.looks(x, own=own).sum(axis=1)

    def looks(
        self, x: Float[np.ndarray, " examples *shape"], *, own: Int[np.ndarray, " examples"] | None = None
    ) -> Float[np.ndarray, "examples looks"]:
        """What the score of each example is the sum of: the parts of a score in `SCORES`, means over the models."""
        x = self._checked(x)
        looks = []
        for model, fitted in zip(self.models, self.fitted, strict=True):
            parts = _in_blocks(_parts, model, self.views, x, own, self.score_name, self.neighbours, fitted.arrays)
            looks.append(SCORES[self.score_name].summands((parts - fitted.centre) / fitted.spread))
        parts = np.stack(looks).mean(axis=0, dtype=np.float32)
        if self.local is None:
            return parts
        # where a network learnt nothing, a part that is the same for all references has no deviation to speak of
        whole = WHOLE * np.clip(parts.mean(axis=1), -MOST, MOST)
        return np.stack([self.local.score(x), whole], axis=1).astype(np.float32)

    def heat(self, x: Float[np.ndarray, " images height width channels"]) -> Float[np.ndarray, "images height width"]:
        """How strange each pixel is, as a multiple of what is usual there.

        Raises:
            ConfigError: the detector is not of images, or of small ones.
        """
        return self._local.heat(self._checked(x))

    def heat_level(self, rate: float) -> float:
        """The heat that at most that fraction of normal images reaches anywhere, in expectation."""
        assert self.peaks is not None
        return conformal.threshold(self.peaks, max(rate, 1 / (len(self.peaks) + 1)))

    @property
    def _local(self) -> Local:
        if self.local is None:
            raise errors.ConfigError(
                f"The detector has no heat maps: it takes images of at least {LEAST_SIDE} pixels a side, and the score "
                "combined."
            )
        return self.local

    def p_values(self, x: Float[np.ndarray, " examples *shape"]) -> Float[np.ndarray, " examples"]:
        """The probability that a normal example scores at least as high as each example; see `conformal.p_values`."""
        return conformal.p_values(self.score(x), self.calibration)

    def reconstruct(self, x: Float[np.ndarray, " examples *shape"]) -> Float[np.ndarray, " examples *shape"]:
        """The first model's reconstruction of each example, in the scale of x."""
        x = self._checked(x)
        seen = training.apply(Autoencoder.reconstruct, self.models[0], self.views(x))
        seen = seen[..., : x.shape[-1]]
        return np.square(np.clip(seen, 0, 1)) if self.views.kind == "image" else seen

    def contributions(self, x: Float[np.ndarray, " examples *shape"]) -> Float[np.ndarray, " examples *shape"]:
        """How much each value contributes to its example's strangeness, as shares that sum to 1.

        They are the mean of two sets of shares. One is of the first model's squared residual, divided by its mean over
        the references, plus that mean's average over values, so that values with tiny residuals don't dominate. The
        other is of the squared difference to the mean of the nearest references, but for the worst-fitting tenth of
        them, which may hold others of the kind. Of a table, what is beyond `FAR_OUT` counts for its own column, and is
        not shown to the network, which it would lead astray in others.
        """
        x = self._checked(x)
        model, views = self.models[0], self.views
        values = slice(None) if views.width is None else slice(x.shape[1])

        def squared(x: Float[np.ndarray, " rows *shape"]) -> Float[np.ndarray, "rows views values"]:
            inside = np.clip(x, -FAR_OUT, FAR_OUT) if views.kind == "tabular" else x
            residual = _in_blocks(_residual, model, views, inside, None)[..., values]
            return np.square(residual + (x - inside)[:, None] if views.kind == "tabular" else residual)

        known = squared(self.references)
        total = known.sum(axis=(1, 2))
        usual = total <= np.quantile(total, USUAL)
        typical, near = known[usual].mean(axis=0), views(self.references[usual])
        filled = jnp.asarray(np.resize(near, (rows_for(len(near)), *near.shape[1:])))
        references = filled, np.int32(len(near))
        residual = squared(x) / (typical + typical.mean() + 1e-12)
        apart = np.square(_in_blocks(_difference, model, views, x, None, self.neighbours, *references))[..., values]
        shares = [part / np.maximum(part.sum(axis=(1, 2), keepdims=True), 1e-12) for part in (residual, apart)]
        return np.mean(shares, axis=0).sum(axis=1).reshape(x.shape)

    def _checked(self, x: Float[np.ndarray, " examples *shape"]) -> Float[np.ndarray, " examples *shape"]:
        x = np.asarray(data.parts.with_gaps(x), np.float32)
        if x.shape[1:] != self.references.shape[1:] or len(x) == 0:
            raise errors.DataError(
                f"The data have shape {x.shape}; expected [examples, "
                f"{', '.join(map(str, self.references.shape[1:]))}] with at least one example."
            )
        if not (math.isfinite(x.min()) and math.isfinite(x.max())):  # takes less memory than np.isfinite(x)
            raise errors.DataError("The data hold NaN or infinite values; remove or fill them first.")
        return x

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the detector to a folder of its own, whole or not at all: JSON, `.npz` arrays, weights; no pickle.

        A detector that is already in the folder is replaced.

        Raises:
            RunError: the folder can't be written, or holds something else.
        """
        folder = pathlib.Path(folder)
        try:
            with manifest.replacing(folder, FILES) as unfinished:
                checkpoints.save(unfinished / "models", 0, [nnx.state(model) for model in self.models], keep=1)
                arrays: Any = self.arrays()
                np.savez(unfinished / "detector.npz", allow_pickle=False, **arrays)
                settings = json.dumps(self.settings(), indent=2)
                (unfinished / "detector.json").write_text(settings + "\n", encoding="utf-8")
        except OSError as error:
            raise errors.RunError(f"Can't write {folder}: {error}.") from error

    def settings(self) -> dict[str, Any]:
        """What `restored` needs beside the arrays and the networks' weights, as JSON has it."""
        return {
            "config": self.config.to_dict(),
            "members": len(self.models),
            "views": dataclasses.asdict(self.views),
            "score": self.score_name,
            "neighbours": self.neighbours,
            "contamination": self.contamination,
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """What `restored` needs of examples."""
        usual = {name: np.stack([getattr(fitted, name) for fitted in self.fitted]) for name in ("centre", "spread")}
        arrays = {"references": self.references, "calibration": self.calibration, **usual}
        return arrays if self.peaks is None else {**arrays, "peaks": self.peaks}


def load(folder: str | os.PathLike[str]) -> Detector:
    """The detector that `Detector.save` wrote.

    Raises:
        RunError: the folder holds no detector, or its settings or arrays are damaged.
        CheckpointError: the weights are missing or damaged.
    """
    folder = atomic.settled(pathlib.Path(folder))
    manifest.check(folder)
    with manifest.reading(folder, "anomaly detector"):
        settings = json.loads((folder / "detector.json").read_text(encoding="utf-8"))
        arrays = data.arrays.read_npz(folder / "detector.npz")
    return restored(settings, arrays, lambda like: checkpoints.restore(folder / "models", like)[1], folder)


def restored(
    settings: Any, arrays: Any, weights: Callable[[list[nnx.State]], list[nnx.State]], source: pathlib.Path
) -> Detector:
    """The detector of `Detector.settings`, `Detector.arrays` and the networks' weights, given a state like each.

    Raises:
        RunError: they are no detector's; the message names the `source`.
    """
    with manifest.reading(source, "anomaly detector"):
        config, views = Config.from_dict(settings["config"]), Views(**settings["views"])
        members, score, neighbours = int(settings["members"]), settings["score"], int(settings["neighbours"])
        check_score(score)
        references, calibration = arrays["references"], arrays["calibration"]
        shape = views(references[:1]).shape[1:]
        graphdef, state = nnx.split(nnx.eval_shape(lambda: autoencoder.build(config, shape)))
        models = tuple(nnx.merge(graphdef, jax.device_put(part)) for part in weights([state] * members))
        fitted = tuple(_fit_score(model, views, score, neighbours, references) for model in models)
        if "centre" in arrays:  # from before held-out examples were references too; older ones have none
            usual = zip(arrays["centre"], arrays["spread"], strict=True)
            fitted = tuple(
                own._replace(
                    centre=np.broadcast_to(centre, own.centre.shape), spread=np.broadcast_to(spread, own.spread.shape)
                )
                for own, (centre, spread) in zip(fitted, usual, strict=True)
            )
        contamination = float(settings.get("contamination", 0.0))
        peaks = arrays.get("peaks")  # not there before detectors had heat maps, whose calibration is without
        local = None if peaks is None else Local.fit(references)
        return Detector(
            config, models, views, score, neighbours, references, calibration, fitted, contamination, local, peaks
        )


def default_config(kind: str, shape: tuple[int, ...]) -> Config:
    """The default autoencoder of `fit`, for examples whose views have that shape.

    It was chosen per kind of data and not for any one data set; `benchmarks/anomaly.py` lists the data sets used.
    For tables and signals the activation is bounded: an unbounded network may be linear far from the training data,
    and would reconstruct anomalies there.
    """
    values = math.prod(shape)
    if kind == "image":
        return Config(body=MLP((256,)), head=Deterministic(16), likelihood=Gaussian())
    latent = max(1, min(128, values // 2)) if kind == "tabular" else max(2, min(64, values // 4))
    body = MLP((128,), "tanh")
    return Config(body=body, head=Deterministic(latent), corruption=GaussianNoise(0.3), likelihood=Gaussian())


def fit(
    x: Examples,
    *,
    kind: str,
    config: Config | None = None,
    score: str | None = None,
    contamination: float | Literal["auto"] = "auto",
    held_out: float | Float[np.ndarray, " held_out *shape"] = HELD_OUT,
    neighbours: int | float | None = None,
    members: int = 1,
    epochs: int | None = None,
    start: Detector | None = None,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    show: bool = False,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> Detector:
    """Train autoencoders on normal examples, and hold some out to compare their scores with.

    Args:
        x: normal examples, scaled: images in [0, 1], tables and signals standardised.
        kind: image, tabular or signal.
        config: of the autoencoder; by default `default_config`. For a small table with the default, the detector's own
            config is that of the next larger of a few widths: see `Views.width`.
        score: a name in `SCORES`; by default "ensemble" for tables, and for others "combined", or "neighbours" under
            contamination, for what an autoencoder was trained on it reconstructs.
        contamination: the fraction of x that may be anomalies. Training then leaves out as many of each batch, those
            that fit worst, thresholds leave out as many held-out scores, and examples of images and signals are
            compared with more neighbours. "auto" is 0 for images and signals. Of tables, training leaves out TRIMMED
            of each batch, and thresholds what `conformal.contamination` says.
        held_out: the fraction of x kept from training, which p-values and thresholds rest on, 0 for none; or other
            normal examples for it. Of a signal's windows it is the last, two windows apart (see `hold_out`). Of tables,
            new examples are compared with these as well.
        neighbours: see `Detector.of`.
        members: how many autoencoders to train, together, from different initial weights.
        epochs: by default as many as make `STEPS` steps, but at most `MOST_EPOCHS`.
        start: a detector to go on from, of the same kind of data. Copies of its networks are trained further, whatever
            `config` and `members` are, and examples are compared with a sample of its references and of x.
        folder, resume: for checkpoints, see `training.fit`, or for several members `fit_population`.
        on_epoch: called with each epoch's metrics; with several members, after the training, with their means.

    Raises:
        DataError: x is empty, not finite, or too small.
        ConfigError: a setting is out of range.
    """
    if contamination != "auto" and not (isinstance(contamination, float | int) and 0 <= contamination < 0.5):
        raise errors.ConfigError(f"contamination is {contamination}; it has to be 'auto', or at least 0 and below 0.5.")
    tabular = kind == "tabular"
    if contamination == "auto" and not tabular:
        contamination = 0.0
    score = score or ("ensemble" if tabular else "neighbours" if contamination else "combined")
    check_score(score)
    if members < 1:
        raise errors.ConfigError(f"members is {members}; it has to be at least 1.")
    if neighbours is None:
        neighbours = NEIGHBOURS_CONTAMINATED if contamination and score != "ensemble" else NEIGHBOURS
    check_neighbours(neighbours)
    x = data.parts.with_gaps(x)
    if isinstance(held_out, float | int):
        normal, calibration = hold_out(x, held_out, seed, apart=2 if kind == "signal" else None)
    else:
        normal, calibration = x, held_out
    if normal.ndim < 2 or not np.isfinite(normal).all():
        what = "hold NaN or infinite values" if normal.ndim >= 2 else f"have shape {normal.shape}"
        raise errors.DataError(f"The data {what}; expected finite numbers, [examples, ...].")
    if start is None:
        views, compared = Views.fit(kind, normal), normal
        seen = views(normal)
        usual = default_config(kind, seen.shape[1:])
        config = config or usual
        if tabular and config == usual and len(normal) <= FILLED_UP and normal.shape[1] <= WIDTHS[-1]:
            views, config, models = _filled_up(config, normal.shape[1], range(seed, seed + members))
            seen = views(normal)
        else:
            models = [autoencoder.build(config, seen.shape[1:], seed=seed + member) for member in range(members)]
    else:
        apart = {row.tobytes() for row in np.asarray(calibration, np.float32)}
        known = [row for row in start.references if row.tobytes() not in apart]
        views, compared = start.views, np.concatenate([np.stack(known), normal]) if known else normal
        seen = views(normal)
        config = start.config
        models = [nnx.clone(model) for model in start.models]
    trimmed = TRIMMED if contamination == "auto" else contamination
    settings = training_settings(len(normal), epochs=epochs, contamination=trimmed, config=config)
    if views.width is not None:
        seen = {"x": seen, "observed": np.arange(views.width) < np.full((len(normal), 1), normal.shape[1])}
        for model in models:  # a number in the model, so that no program is compiled for each
            model.hyper["fraction"][...] = jnp.float32(trimmed)
        settings["objective"] = None
        settings["batch_size"] = next(size for size in BATCHES[::-1] if size <= len(normal))
    if len(models) == 1:
        own = {"folder": folder, "resume": resume, "on_epoch": on_epoch}
        training.fit(models[0], seen, seed=seed, show=show, **own, **settings)
    else:
        trained = population.fit_population(
            models.__getitem__,
            seen,
            seeds=range(len(models)),
            seed=seed,
            folder=folder,
            resume=resume,
            show=show,
            **settings,
        )
        models = [member.model for member in trained.members]
        if on_epoch is not None:
            for epoch in range(settings["epochs"]):
                told = {name: [m.history[name][epoch] for m in trained.members] for name in ("loss", "seconds")}
                on_epoch({"epoch": epoch + 1, **{name: float(np.mean(values)) for name, values in told.items()}})
    compare = {"score": score, "neighbours": neighbours, "contamination": contamination, "seed": seed}
    detector = Detector.of(config, models, views, compared, calibration, **compare)
    return detector.with_references(calibration) if tabular and len(calibration) else detector


def _filled_up(config: Config, columns: int, seeds: Iterable[int]) -> tuple[Views, Config, list[Autoencoder]]:
    """Networks of the default config for a table that is filled up, by zeros, to one of a few widths.

    What fills it up has no effect, nor have the numbers of the code beyond `config`'s: the weights from and to them
    are 0, and stay so, since values that are not observed have no gradient. The other weights are drawn as those of a
    network for `columns` are.
    """
    width = next(size for size in WIDTHS if size >= columns)
    latent, wide = config.latent, dataclasses.replace(default_config("tabular", (width,)), objective=Trimmed())
    networks = [autoencoder.build(wide, (width,), seed=seed) for seed in seeds]
    for network in networks:
        encoder, decoder = cast(MLPEncoder, network.encoder), cast(MLPDecoder, network.decoder)
        for linear, inputs, outputs in (
            (encoder.stack.layers[0].linear, columns, None),
            (network.head.linear, None, latent),
            (decoder.stack.layers[0].linear, latent, None),
            (decoder.out, None, columns),
        ):
            kernel = np.array(linear.kernel[...])
            if inputs is not None:
                kernel[inputs:] = 0
                kernel *= np.float32(math.sqrt(len(kernel) / inputs))  # LeCun: the variance is 1 over the inputs
            if outputs is not None:
                kernel[:, outputs:] = 0
            linear.kernel[...] = jnp.asarray(kernel)
    return Views("tabular", width=width), wide, networks


def fit_folds(
    x: Float[np.ndarray, " examples *shape"], *, folds: int = FOLDS, seed: int = 0, **settings: Any
) -> tuple[Detector, Float[np.ndarray, " examples"]]:
    """A detector trained on all examples, and a score of each by one that was not trained on it.

    The scores set the thresholds and p-values (cross-conformal prediction, Vovk 2015): all examples count, and not a
    fifth. `settings` are those of `fit`.

    Raises:
        DataError, ConfigError: as `fit`.
    """
    x = np.asarray(x)
    apart = {"folder", "resume", "show", "on_epoch"}  # of the one that is kept
    alike = {name: value for name, value in settings.items() if name not in apart}
    parts = list(split(len(x), folds, seed))
    found = [fit(x[others], held_out=0.0, seed=seed, **alike).looks(x[part]) for others, part in parts]
    looks = np.empty((len(x), found[0].shape[1]), np.float32)
    for (_, part), look in zip(parts, found, strict=True):
        looks[part] = look
    detector = fit(x, held_out=0.0, seed=seed, **settings)
    contamination = settings.get("contamination", "auto")
    if contamination == "auto" and settings["kind"] != "tabular":
        contamination = 0.0
    return detector.calibrated(looks, contamination), looks.sum(axis=1)


def split(
    examples: int, folds: int, seed: int
) -> Iterator[tuple[Int[np.ndarray, " others"], Int[np.ndarray, " part"]]]:
    """Parts of one size that hold all examples, the last perhaps some of the one before, and each part's others.

    Raises:
        DataError: there are too few.
    """
    size = math.ceil(examples / folds)
    if examples - size < 2:
        raise errors.DataError(f"{examples} examples can't be split to train on and to compare with: give more.")
    order = np.random.default_rng(seed).permutation(examples)
    for start in range(0, examples, size):
        start = min(start, examples - size)
        yield np.sort(np.delete(order, np.s_[start : start + size])), np.sort(order[start : start + size])


def hold_out(
    x: Shaped[np.ndarray, " examples *shape"], fraction: float, seed: int, *, apart: int | None = None
) -> tuple[Shaped[np.ndarray, " train *shape"], Shaped[np.ndarray, " held_out *shape"]]:
    """The examples to train on, and a random `fraction` to compare scores with.

    If `apart` is given, x are windows of a signal in order of time. The last fraction is then held out, and the `apart`
    windows before it are in neither part. With ⌈w / s⌉, for windows of w moments every s, the parts share no moment.
    """
    if not 0 <= fraction < 1:
        raise errors.ConfigError(f"held_out is {fraction}; it has to be a fraction, at least 0 and below 1.")
    held = round(fraction * len(x))
    if len(x) - held - (apart or 0) < 2:
        raise errors.DataError(f"{len(x)} examples can't be split to train on and to compare with: give more.")
    if apart is not None:
        return x[: len(x) - held - apart], x[len(x) - held :]
    order = np.random.default_rng(seed).permutation(len(x))
    return x[np.sort(order[held:])], x[np.sort(order[:held])]


def training_settings(
    examples: int, *, config: Config, epochs: int | None = None, contamination: float = 0.0
) -> dict[str, Any]:
    """The arguments of `training.fit` and `fit_population` for training a detector."""
    return {
        "epochs": epochs or min(MOST_EPOCHS, math.ceil(STEPS / max(1, examples // BATCH))),
        "batch_size": BATCH,
        "learning_rate": LEARNING_RATE,
        "validation": 0.0,
        "objective": Trimmed(own_objective, contamination) if contamination else None,
    }


def _parts(
    views: Views, model: Autoencoder, seen: Array, own: Array, score: str, k: int, arrays: Any
) -> Float[Array, "batch parts"]:
    return SCORES[score].of(arrays, model, Passed.of(views, model, seen), k, own)


def _residual(views: Views, model: Autoencoder, seen: Array, own: Array) -> Float[Array, "batch views values"]:
    return views.split(seen - model.reconstruct(seen))


def _difference(
    views: Views, model: Autoencoder, seen: Array, own: Array, k: int, references: Array, count: Array
) -> Float[Array, "batch views values"]:
    _, index = nearest(references.reshape(len(references), -1), seen.reshape(len(seen), -1), k, own, count)
    return views.split(seen - references[index].mean(axis=1))


def _fit_score(
    model: Autoencoder, views: Views, score: str, neighbours: int, references: Float[np.ndarray, " references *shape"]
) -> _Fitted:
    known, arrays = SCORES[score], _fit_arrays(model, views, score, references)
    own = np.arange(len(references))
    parts = _in_blocks(_parts, model, views, references, own, score, neighbours, arrays)
    centre = np.median(parts, axis=0)
    upper = np.quantile(parts, 0.9, axis=0) - centre
    spread = upper if known.upper else np.median(np.abs(parts - centre), axis=0)
    return _Fitted(arrays, centre, spread + np.float32(1e-6))


def _fit_arrays(
    model: Autoencoder, views: Views, score: str, references: Float[np.ndarray, " references *shape"]
) -> Any:
    passed = _in_blocks(_pass_only, model, views, references, None)
    return jax.tree.map(jnp.asarray, SCORES[score].fit(passed, references[0].size))


def _pass_only(views: Views, model: Autoencoder, seen: Array, own: Array) -> Passed:
    return Passed.of(views, model, seen)


def _in_blocks(
    function: Callable,
    model: Autoencoder,
    views: Views,
    x: Float[np.ndarray, " examples *shape"],
    own: Int[np.ndarray, " examples"] | None,
    *arguments: Any,
) -> Any:
    """`function(views, model, views of x, own, *arguments)`, compiled, a block of examples at a time."""
    processes.refuse_fork()
    graphdef, state = nnx.split(model)
    block = BLOCK if x.ndim == 2 else min(BLOCK, max(32, 1 << (len(x) - 1).bit_length()))  # few are ever compiled
    names = tuple(argument for argument in arguments if isinstance(argument, (str, int)))
    arrays = arguments[len(names) :]

    def run(start: int) -> Any:
        part = x[start : start + block]
        left_out = np.full(len(part), -1) if own is None else own[start : start + block]
        if len(part) < block:
            fill = np.minimum(np.arange(block), len(part) - 1)
            part, left_out = part[fill], left_out[fill]
        return jax.tree.map(np.asarray, _run(function, graphdef, views, names, state, views(part), left_out, arrays))

    first, *rest = range(0, len(x), block)
    made = [run(first)]  # alone, because this compiles the program
    with ThreadPoolExecutor(WORKERS) as workers:
        made += workers.map(run, rest)
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(x)], *made)


def _merged(function, graphdef, views, names, state, seen, own, arrays):
    return function(views, nnx.merge(graphdef, state), seen, own, *names, *arrays)


_jit_merged = functools.partial(jax.jit, _merged, static_argnames=("function", "graphdef", "views", "names"))
_run = compilation.with_options(_jit_merged, compilation.QUICK)
