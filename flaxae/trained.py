"""A trained model and what it knows of its data. `load` gives one from a run's folder, to use on new data."""

import dataclasses
import json
import os
import pathlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int, Shaped

from flaxae import atomic, autoencoder, data, errors, first_form, manifest, runs, training
from flaxae.autoencoder import Autoencoder, Config, Hyper
from flaxae.data import Dataset, Encoding, Framing, Roles, Scaling, Signal
from flaxae.data.images import MAX_PIXELS
from flaxae.printing import say
from flaxae.training import checkpoints

if TYPE_CHECKING:
    import pandas as pd

    from flaxae import anomaly, finetuning, generation
    from flaxae.anomaly import series

    Examples = Shaped[np.ndarray, " examples *shape"] | pd.DataFrame

IMPUTATIONS = 10  # rounds of reconstructing what is missing
CLASSIFIER = pathlib.Path("checkpoints", "classifier")  # in a run's folder
PRIOR = pathlib.Path("checkpoints", "prior")
ESTIMATOR = "estimator"  # the folder of a run whose model is a fitted estimator
PARTS = {"encoding": Encoding, "framing": Framing, "roles": Roles}  # what only some data have: tables, and signals


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """An autoencoder and what it knows of its data. Its methods take and return data in the data's own units.

    Tables are encoded, see `data.Encoding`. The examples of a signal are its windows.
    """

    model: Autoencoder
    scaling: Scaling
    shape: tuple[int, ...]  # of one example
    kind: str  # of the data: image, tabular or signal
    columns: tuple[str, ...] | None  # of a table, encoded; the channels of a signal
    encoding: Encoding | None = None
    framing: Framing | None = None
    roles: Roles | None = None  # of a table's columns
    prior: "generation.CodePrior | None" = None  # fitted to the codes, to draw new examples from

    def read(self, path: str | os.PathLike[str]) -> Shaped[np.ndarray, " examples *shape"] | dict[str, np.ndarray]:
        """New data from a file or folder, see `data.read`. A signal is read as windows.

        Raises:
            DataError: there is no such file, or its data don't fit those that the model was trained on.
        """
        if self.framing is None:
            return data.read(path, columns=self.columns, encoding=self.encoding)
        signal = self.read_signal(path)
        return data.windows(signal.values, self.framing.window, self.framing.stride, signal.begins)

    def read_signal(self, path: str | os.PathLike[str]) -> Signal:
        """A whole new signal from a file, see `data.read_signal`.

        Raises:
            DataError: there is no such file, its channels or its rate differ from those of the training, or it is
                shorter than one window.
        """
        return _read_signal(path, self.columns, self.shape[1], self._framing)

    def images(
        self, path: str | os.PathLike[str], *, fit: bool = False, max_pixels: int = MAX_PIXELS
    ) -> data.images.Images:
        """Images of a folder, an archive or a file, in the channels that the model takes, read one by one.

        A model of one channel is given the channels of colour images one by one, so that these keep them.

        Args:
            path: see `data.images.open`.
            fit: bring them to the size, and to the channels, of the examples that the model was trained on.
            max_pixels: that one image may have.

        Raises:
            DataError: there are none, or the model is of something else.
        """
        if self.kind != "image":
            raise errors.DataError(f"{path} is of images; the model was trained on data of the kind {self.kind}.")
        height, width, channels = self.shape
        alpha = channels in (2, 4)
        colours = "own" if channels == 1 and not fit else channels - alpha
        size = (height, width) if fit else None
        return data.images.open(path, colours=colours, alpha=alpha, size=size, max_pixels=max_pixels)

    def convert(
        self,
        source: str | os.PathLike[str],
        target: str | os.PathLike[str],
        function: Callable[[np.ndarray], np.ndarray],
        *,
        of_image: Callable[[np.ndarray, Scaling], np.ndarray] | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Read new data, apply `function` to the examples or `of_image` to each image, and write the result.

        A table is written with the columns of its source, with categories decoded. The windows of a signal are averaged
        where they overlap, back to one signal. Images are read and written one by one, in the format and depth and with
        the colour profile, EXIF and alpha that they had; `of_image` is given the scaling to [0, 1] too.

        Raises:
            DataError: the source can't be read, or the target can't be written.
        """
        if self.framing is not None:
            signal = self.read_signal(source)
            window, stride = self.framing.window, self.framing.stride
            made = function(data.windows(signal.values, window, stride, signal.begins))
            laid = data.overlap_mean(made, stride, len(signal.values), signal.begins)
            values = np.where(np.isnan(laid), signal.values, laid)  # what is shorter than a window stays
            data.write(target, signal._replace(values=values), columns=self.columns)
            return
        if data.images.holds(source):
            images = self.images(source, max_pixels=max_pixels)
            say(images.summary())
            if of_image is None:
                raise errors.ConfigError(f"{source} holds images: say by `of_image` what becomes of each.")
            made_of = of_image

            def converted(i: int, image: np.ndarray) -> np.ndarray:
                low, high = images.range_of(i)
                return made_of(image, Scaling((low,), (high - low,), image.dtype.name))

            images.convert(target, converted)
            return
        given = self.read(source)
        assert not isinstance(given, dict)
        data.write(target, function(given), columns=self.columns, encoding=self.encoding)

    def encode(self, x: "Examples") -> Any:
        """The deterministic codes of x, [examples, *code]. A DataFrame's columns are taken by name."""
        return training.apply(Autoencoder.encode, self.model, self.scaled(x))

    def decode(self, z: Any) -> Shaped[np.ndarray, " examples *shape"]:
        """The means of p(x | z), in the units and dtype of the training data."""
        return self.scaling.undo(training.apply(Autoencoder.decode, self.model, z))

    def reconstruct(self, x: "Examples") -> "Shaped[np.ndarray, ' examples *shape'] | pd.DataFrame":
        """decode(encode(x)), in the units and dtype of the training data. A DataFrame gives one of the same columns."""
        made = self.scaling.undo(training.apply(Autoencoder.reconstruct, self.model, self.scaled(x)))
        return self._encoding.undo(made).set_index(cast(Any, x).index) if _is_frame(x) else made

    def sample(self, n: int, *, label: str | None = None, seed: int = 0) -> Shaped[np.ndarray, " n *shape"]:
        """n new examples, in the units and dtype of the training data: p(x | z)'s means at codes drawn from the prior.

        Without a fitted prior, they are drawn from the one that a variational model was trained with.

        Args:
            label: the class that all are to be of, if the prior was fitted with labels.

        Raises:
            ConfigError: there is no prior, see `with_prior`; or it has no such class.
        """
        from flaxae import generation

        return self.scaling.undo(generation.sample(self.model, self.prior, n, label=label, seed=seed))

    def with_prior(
        self,
        x: "Examples",
        labels: Int[np.ndarray, " examples"] | None = None,
        classes: tuple[str, ...] = (),
        *,
        components: int | None = None,
        seed: int = 0,
    ) -> "Trained":
        """The same model with a prior fitted to its codes of x, in the data's units. See `generation.CodePrior.fit`."""
        from flaxae import generation

        prior = generation.fit(self.model, self.scaled(x), labels, classes, components=components, seed=seed)
        return dataclasses.replace(self, prior=prior)

    def impute(self, frame: "pd.DataFrame") -> "pd.DataFrame":
        """The table with what is missing filled by the model, in the table's own types; all else is as it was.

        What is missing begins as what the row's other values let expect, and is replaced by its reconstruction some
        times, so that it comes to agree with them under the model (Rezende et al. 2014, appendix F, without noise).

        Raises:
            DataError: the model is not of a table with named columns, or these are others.
        """
        encoding = self._encoding
        gaps = encoding.gaps(frame)
        missing = np.repeat(gaps, [len(column.features) for column in encoding.columns], axis=1) & ~encoding.marks
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that are missing
            x = self.scaled(frame)
        for _ in range(IMPUTATIONS if gaps.any() else 0):
            x = np.where(missing, training.apply(Autoencoder.reconstruct, self.model, x), x)
        return encoding.filled(frame, gaps, self.scaling.undo(x))

    @property
    def _framing(self) -> Framing:
        if self.framing is None:
            raise errors.DataError("The model was not trained on the windows of a signal.")
        return self.framing

    def scaled(self, x: "Examples") -> Float[np.ndarray, " examples *shape"]:
        """x encoded and scaled, as the model sees it.

        Raises:
            DataError: x has other columns, or values that the model can't take.
        """
        return training.check_examples(self.model, self.units_removed(x))

    def units_removed(self, x: "Examples") -> Float[np.ndarray, " examples *shape"]:
        """x encoded and scaled, but not checked against the model."""
        values = self._encoding(cast(Any, x), "The DataFrame") if _is_frame(x) else data.parts.with_gaps(x)
        return np.asarray(self.scaling(values))

    @property
    def _encoding(self) -> Encoding:
        if self.framing is None and self.encoding is not None:
            return self.encoding
        if self.framing is not None or self.columns is None:
            raise errors.DataError(
                "The model was not trained on a table with named columns, so a DataFrame can't be matched to it. Give "
                f"an array, [examples, {', '.join(map(str, self.shape))}]."
            )
        return Encoding.of_numbers(self.columns)


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedDetector:
    """An anomaly detector and what it knows of its data. Its methods take data in their own units.

    The columns of a DataFrame are taken by name.
    """

    trained: Trained
    detector: "anomaly.Detector"

    def score(self, x: "Examples") -> Float[np.ndarray, " examples"]:
        """The anomaly score of each example, higher for stranger ones; see `anomaly.Detector.score`."""
        return self.detector.score(self.trained.units_removed(x))

    def p_values(self, x: "Examples") -> Float[np.ndarray, " examples"]:
        """The probability that a normal example scores as high as each example or higher; see `conformal.p_values`."""
        return self.detector.p_values(self.trained.units_removed(x))

    def contributions(self, x: "Examples") -> Float[np.ndarray, " examples *shape"]:
        """How much each value contributes to its example's strangeness; see `anomaly.Detector.contributions`."""
        return self.detector.contributions(self.trained.units_removed(x))


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedClassifier:
    """A classifier on an autoencoder's code and what it knows of its data. Its methods take data in their own units."""

    trained: Trained
    classifier: "finetuning.Classifier"
    classes: tuple[str, ...]

    def probabilities(self, x: "Examples") -> Float[np.ndarray, " examples classes"]:
        """The probability of each class, in the order of `classes`."""
        from flaxae.finetuning import Classifier

        return training.apply(Classifier.probabilities, self.classifier, self.trained.scaled(x))

    def predict(self, x: "Examples") -> np.ndarray:
        """The name of the likeliest class of each example."""
        return np.array(self.classes, object)[self.probabilities(x).argmax(axis=1)]


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedSeries:
    """A detector of a signal's strange windows, and what it was; its methods take signals in their own units."""

    detector: "series.SeriesDetector"
    scaling: Scaling
    columns: tuple[str, ...] | None  # of the channels
    framing: Framing

    def read_signal(self, path: str | os.PathLike[str]) -> Signal:
        """A new signal from a file or folder: see `data.read_signal`.

        Raises:
            DataError: there is none, or it has other channels or another rate than the detector was trained on.
        """
        return _read_signal(path, self.columns, self.detector.references.shape[2], self.framing)

    def score(
        self, x: "Float[np.ndarray, ' time channels'] | Float[np.ndarray, ' time']"
    ) -> Float[np.ndarray, " time"]:
        """How strange each moment is: the mean score of the windows that hold it."""
        from flaxae.anomaly import series
        from flaxae.anomaly.findings import Rule

        signal = Signal(self.scaling(x[:, None] if x.ndim == 1 else x))
        return series.find(self.detector, signal, self.framing, Rule("percentile"))[1].score


def _read_signal(
    path: str | os.PathLike[str], columns: tuple[str, ...] | None, channels: int, framing: Framing
) -> Signal:
    signal = data.read_signal(path, columns=columns, step=framing.step)
    if signal.rate is not None and framing.rate is not None and signal.rate != framing.rate:
        raise errors.DataError(
            f"{path} has {signal.rate} samples a second; the model was trained on {framing.rate}. Resample it."
        )
    if signal.values.shape[1] != channels:
        raise errors.DataError(f"{path} has {signal.values.shape[1]} channels; the model was trained on {channels}.")
    if max(hi - lo for lo, hi in signal.stretches) < framing.window:
        raise errors.DataError(
            f"{path} has {len(signal.values)} moments; expected {framing.window} at least without a gap, the "
            "model's window."
        )
    return signal


def _is_frame(x: Any) -> bool:
    return hasattr(x, "columns") and hasattr(x, "set_axis")


def describe(config: Config, dataset: Dataset, shape: tuple[int, ...] | None = None) -> dict[str, Any]:
    """What a run's config.json must hold, under "model" and "data", for `load` to rebuild the model.

    Args:
        shape: of what the model is trained on, if that is pieces of the examples.
    """
    shape = dataset.shape if shape is None else shape
    about = {"source": dataset.name, "kind": dataset.kind, "shape": shape, "columns": dataset.columns}
    about |= {"scaling": dataset.scaling.to_dict()}
    about |= {name: part.to_dict() for name in PARTS if (part := getattr(dataset, name)) is not None}
    return {"model": config.to_dict(), "data": about}


def save(what: Any, folder: str | os.PathLike[str]) -> None:
    """Write a model, or anything that `load` returns, to a folder of its own, whole or not at all; nothing is pickled.

    Args:
        what: an `Autoencoder` that `build` made, a `Trained`, `TrainedDetector` or `TrainedClassifier`, an
            `anomaly.Detector`, or a fitted estimator.
        folder: a new or an empty one.

    Raises:
        ConfigError: it can't be saved: a part was not registered, or the model was put together by hand.
        RunError: the folder can't be written, or is not empty.
    """
    folder = pathlib.Path(folder)
    if isinstance(what, Autoencoder):
        what = _plain(what)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise errors.RunError(f"{folder} has something in it already; give a new folder, or remove it first.")
    write = _write if isinstance(what, Trained | TrainedDetector | TrainedClassifier) else type(what).save
    try:
        with atomic.replacing(folder) as unfinished:
            write(what, unfinished)
            manifest.write(unfinished)
    except OSError as error:
        raise errors.RunError(f"Can't write {folder}: {error}.") from error


def _plain(model: Autoencoder) -> Trained:
    """A model saved without its data: inputs are not scaled."""
    if model.config is None or model.shape is None:
        raise errors.ConfigError(
            "The model was put together by hand, so nothing says how to build it again. Save one that "
            "`flaxae.build(config, shape)` made, with parts of your own registered by @flaxae.register."
        )
    model.config.to_dict()  # raises if a part can't be saved, before anything is written
    kind = {1: "tabular", 2: "signal", 3: "image"}.get(len(model.shape), "array")
    return Trained(model, Scaling((0.0,), (1.0,), "float32"), model.shape, kind, None)


def _write(what: "Trained | TrainedDetector | TrainedClassifier", folder: pathlib.Path) -> None:
    trained = what if isinstance(what, Trained) else what.trained
    if isinstance(what, TrainedDetector):
        what.detector.save(folder / "detector")
    else:
        checkpoints.save(folder / "checkpoints" / "best", 0, nnx.split(trained.model, nnx.Param, ...)[1:], keep=1)
        if trained.prior is not None:
            trained.prior.save(folder / PRIOR)
    if isinstance(what, TrainedClassifier):
        checkpoints.save(folder / CLASSIFIER, 0, nnx.split(what.classifier, nnx.Param, ...)[1:], keep=1)
    (folder / "config.json").write_text(json.dumps(described(what), indent=2) + "\n", encoding="utf-8")


def described(what: "Trained | TrainedDetector | TrainedClassifier") -> dict[str, Any]:
    """What `load` has to know beside the arrays, as JSON has it."""
    trained = what if isinstance(what, Trained) else what.trained
    about = {"kind": trained.kind, "shape": trained.shape, "columns": trained.columns}
    about |= {"scaling": trained.scaling.to_dict(), "conditions": trained.model.conditions}
    about |= {name: part.to_dict() for name in PARTS if (part := getattr(trained, name)) is not None}
    config: dict[str, Any] = {"data": about}
    if isinstance(what, TrainedDetector):
        config["detector"] = what.detector.score_name
    else:
        config["model"] = cast(Config, trained.model.config).to_dict()
    if isinstance(what, TrainedClassifier):
        config["classes"] = what.classes
    return config


def load(folder: str | os.PathLike[str]) -> Any:
    """Load a run's folder, `runs/<experiment>/<name>`, finished or not, or a folder that `save` wrote.

    Returns:
        A `Trained`, a `TrainedDetector` (of --exp anomaly) or a `TrainedClassifier` (of --exp finetune), all in the
        data's own units; a `compression.Codec` or `LossyCodec` (of --exp compress); a `sound.SoundDenoiser` (of --exp
        denoise, of sound); an `anomaly.Detector`; or the estimator that was saved.

    Raises:
        RunError: the folder holds neither, or a file was changed after it was saved.
        ConfigError: its config.json has an unknown name or a value out of range.
        CheckpointError: it has no good checkpoint.
    """
    folder = atomic.settled(pathlib.Path(folder))
    if (folder / "detector.json").exists() and not (folder / "config.json").exists():
        from flaxae import anomaly

        return anomaly.load(folder)
    if (folder / "model.safetensors").exists():
        from flaxae.exporting import weights

        return weights.read(folder)
    saved = runs.open(folder).config
    if (
        bound := manifest.read(folder)
    ) is not None and "id" not in bound:  # in a run, each part is checked when it is read
        manifest.check(folder)
    if saved.get("model") == ESTIMATOR:
        return load(folder / ESTIMATOR)
    if "estimator" in saved:
        from flaxae import estimators

        return estimators.of_name(saved["estimator"]).load(folder)
    if "codec" in saved:
        from flaxae import compression

        return compression.load(folder / "codec")
    if "sound" in saved:
        from flaxae import sound

        return sound.load(folder / "sound")
    if saved.get("detector") == "series":
        from flaxae.anomaly import series

        detector = series.load(folder / "detector")
        about = saved["data"]
        columns = None if about["columns"] is None else tuple(about["columns"])
        return TrainedSeries(
            detector, Scaling.from_dict(about["scaling"]), columns, Framing.from_dict(about["framing"])
        )
    if "detector" in saved:
        from flaxae import anomaly

        detector = anomaly.load(folder / "detector")
        return TrainedDetector(of_description(folder, saved, detector.models[0]), detector)
    trained = of_description(folder, saved, None)
    if "classes" not in saved or not (folder / CLASSIFIER).exists():
        return trained
    found = unfitted_classifier(trained, saved["classes"])
    weights = nnx.split(found.classifier, nnx.Param, ...)[1:]
    nnx.update(found.classifier, *checkpoints.restore(folder / CLASSIFIER, weights)[1])
    return found


def unfitted_classifier(trained: Trained, classes: Sequence[str]) -> TrainedClassifier:
    """A classifier on a trained autoencoder's code, whose own weights are still to be set."""
    from flaxae.finetuning import Classifier

    latent = cast(Config, trained.model.config).latent
    return TrainedClassifier(trained, Classifier(trained.model, latent, len(classes), rngs=nnx.Rngs(0)), tuple(classes))


def autoencoder_of(folder: str | os.PathLike[str]) -> Trained:
    """The autoencoder of a run, without its classifier if it has one. Raises what `load` does.

    Raises:
        RunError: the run has a detector instead.
    """
    found = load(folder)
    if isinstance(found, TrainedClassifier):
        return found.trained
    if not isinstance(found, Trained):
        raise errors.RunError(
            f"{folder} holds a {type(found).__name__}, not an autoencoder. Of an anomaly detector, `flaxae.load` and "
            "--exp anomaly --from score new data."
        )
    return found


def of_description(folder: pathlib.Path, saved: Mapping[str, Any], model: Autoencoder | None) -> Trained:
    """The `Trained` of a saved config: with `model` if it is given, else with the model in the folder."""
    try:
        about = saved["data"]
        shape, kind, scaling = tuple(about["shape"]), about["kind"], Scaling.from_dict(about["scaling"])
        columns = None if about["columns"] is None else tuple(about["columns"])
        parts = {name: part.from_dict(about[name]) for name, part in PARTS.items() if name in about}
        if model is None:
            Config.from_dict(saved["model"])
    except (KeyError, TypeError, AttributeError) as error:
        raise errors.RunError(f"{folder / 'config.json'} does not describe a model: {error!r}.") from error
    if model is None:
        model = _restored(folder / "checkpoints" / "best", saved["model"], shape, about.get("conditions", 0))
    prior = None
    if (fitted := atomic.settled(folder / PRIOR)).exists():
        from flaxae.generation import CodePrior

        prior = CodePrior.load(fitted)
    return Trained(model, scaling, shape, kind, columns, prior=prior, **parts)


def _restored(folder: pathlib.Path, saved: Mapping[str, Any], shape: tuple[int, ...], conditions: int) -> Autoencoder:
    """The model of a saved config, with the weights of the folder's newest good checkpoint."""
    config = Config.from_dict(saved)
    abstract = nnx.eval_shape(lambda: autoencoder.build(config, shape, conditions=conditions))
    graphdef, params, rest = nnx.split(abstract, nnx.Param, ...)
    if not first_form.is_of(saved):
        _, (params, rest) = checkpoints.restore(folder, (params, rest))
        return nnx.merge(graphdef, *jax.device_put((params, rest)))
    # In version 0.1 the hyper-parameters had other names; their values are in the config.
    number = jax.ShapeDtypeStruct((), np.float32)
    others = {name: part for name, part in rest.items() if name != "hyper"}
    like = nnx.State({**others, "hyper": nnx.State({name: Hyper(number) for name in first_form.hyper(saved)})})
    _, (params, restored) = checkpoints.restore(folder, (params, like))
    hyper = nnx.State({name: Hyper(jnp.float32(value)) for name, value in config.hyper.items()})
    rest = nnx.State({**{name: restored[name] for name in others}, "hyper": hyper})
    return nnx.merge(graphdef, *jax.device_put((params, rest)))
