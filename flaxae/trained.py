"""A trained model and what it knows of its data: what a run's folder is loaded as, and what is used on new data."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Shaped

from flaxae import autoencoder, data, errors, first_form, runs, training
from flaxae.autoencoder import Autoencoder, Config, Hyper
from flaxae.data import Dataset, Encoding, Framing, Scaling, Signal
from flaxae.training import checkpoints

PARTS = {"encoding": Encoding, "framing": Framing}  # of what is known of the data, where they have them


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """An autoencoder and what its data were; its methods take and give data in their own units.

    Tables are encoded: see `data.Encoding`. Of signals, examples are windows.
    """

    model: Autoencoder
    scaling: Scaling
    shape: tuple[int, ...]  # of one example
    kind: str  # of the data: image, tabular or signal
    columns: tuple[str, ...] | None  # of a table, encoded; the channels of a signal
    encoding: Encoding | None = None
    framing: Framing | None = None

    def read(self, path: str | os.PathLike) -> Shaped[np.ndarray, " examples *shape"] | dict[str, np.ndarray]:
        """New data from a file or folder: see `data.read`; of a signal the windows.

        Raises:
            DataError: there is no such file, or it doesn't hold what the model was trained on.
        """
        if self.framing is None:
            return data.read(path, columns=self.columns, encoding=self.encoding)
        return data.windows(self.read_signal(path).values, self.framing.window, self.framing.stride)

    def read_signal(self, path: str | os.PathLike) -> Signal:
        """A new signal from a file, whole: see `data.read_signal`.

        Raises:
            DataError: there is no such file, or it has other channels or another rate than the model was trained on.
        """
        signal, framing = data.read_signal(path, columns=self.columns), self.framing
        if signal.rate is not None and framing.rate is not None and signal.rate != framing.rate:
            raise errors.DataError(
                f"{path} has {signal.rate} samples a second; the model was trained on {framing.rate}. Resample it."
            )
        if signal.values.shape[1] != self.shape[1]:
            raise errors.DataError(
                f"{path} has {signal.values.shape[1]} channels; the model was trained on {self.shape[1]}."
            )
        if len(signal.values) < framing.window:
            raise errors.DataError(
                f"{path} has {len(signal.values)} moments; expected {framing.window} at least, the model's window."
            )
        return signal

    def convert(
        self, source: str | os.PathLike, target: str | os.PathLike, function: Callable[[np.ndarray], np.ndarray]
    ) -> None:
        """Read new data, and write what `function` makes of the examples (or of each image of a folder).

        A table has the columns of the source again, categories and all; a signal is laid back on its time line.

        Raises:
            DataError: the source can't be read, or the target not be written.
        """
        if self.framing is not None:
            signal = self.read_signal(source)
            made = function(data.windows(signal.values, self.framing.window, self.framing.stride))
            values = data.overlap_mean(made, self.framing.stride, len(signal.values))
            data.write(target, signal._replace(values=values), columns=self.columns)
            return
        given = self.read(source)
        made = {name: function(x) for name, x in given.items()} if isinstance(given, dict) else function(given)
        data.write(target, made, columns=self.columns, encoding=self.encoding)

    def encode(self, x: Shaped[np.ndarray, " examples *shape"]) -> Float[np.ndarray, " examples latent"]:
        """The deterministic codes of x."""
        return training.apply(Autoencoder.encode, self.model, self._scaled(x))

    def decode(self, z: Float[np.ndarray, " examples latent"]) -> Shaped[np.ndarray, " examples *shape"]:
        """The means of p(x | z), in the units and dtype of the training data."""
        return self.scaling.undo(training.apply(Autoencoder.decode, self.model, z))

    def reconstruct(self, x: Shaped[np.ndarray, " examples *shape"]) -> Shaped[np.ndarray, " examples *shape"]:
        """decode(encode(x)), in the units and dtype of the training data."""
        return self.scaling.undo(training.apply(Autoencoder.reconstruct, self.model, self._scaled(x)))

    def _scaled(self, x: Shaped[np.ndarray, " examples *shape"]) -> Float[np.ndarray, " examples *shape"]:
        return training.check_examples(self.model, self.scaling(x))


def describe(config: Config, dataset: Dataset) -> dict[str, Any]:
    """What a run's config.json must hold, under "model" and "data", for `load` to rebuild the model."""
    about = {"source": dataset.name, "kind": dataset.kind, "shape": dataset.shape, "columns": dataset.columns}
    about |= {"scaling": dataset.scaling.to_dict()}
    about |= {name: part.to_dict() for name in PARTS if (part := getattr(dataset, name)) is not None}
    return {"model": config.to_dict(), "data": about}


def load(folder: str | os.PathLike, *, model: Autoencoder | None = None) -> Trained:
    """The model of a run's folder, `runs/<experiment>/<name>`, finished or not.

    Args:
        folder: of the run.
        model: to take with what the run knows of its data, where it keeps its models elsewhere.

    Raises:
        RunError: the folder is not a run's.
        ConfigError: its config.json holds an unknown name or a value out of range.
        CheckpointError: it has no good checkpoint.
    """
    folder = pathlib.Path(folder)
    saved = runs.open(folder).config
    if model is None and "detector" in saved:
        raise errors.RunError(
            f"{folder} holds an anomaly detector, which `flaxae.anomaly.load({str(folder / 'detector')!r})` loads; "
            "--exp anomaly --from scores new data with it."
        )
    try:
        about = saved["data"]
        shape, kind, scaling = tuple(about["shape"]), about["kind"], Scaling.from_dict(about["scaling"])
        columns = None if about["columns"] is None else tuple(about["columns"])
        parts = {name: part.from_dict(about[name]) for name, part in PARTS.items() if name in about}
    except (KeyError, TypeError, AttributeError) as error:
        raise errors.RunError(f"{folder / 'config.json'} does not describe a model: {error!r}.") from error
    if model is None:
        model = _restored(folder / "checkpoints" / "best", saved["model"], shape)
    return Trained(model, scaling, shape, kind, columns, **parts)


def _restored(folder: pathlib.Path, saved: Mapping[str, Any], shape: tuple[int, ...]) -> Autoencoder:
    """The model of a config as it was saved, with the weights of a folder's newest good checkpoint."""
    config = Config.from_dict(saved)
    abstract = nnx.eval_shape(lambda: autoencoder.build(config, shape))
    graphdef, params, rest = nnx.split(abstract, nnx.Param, ...)
    if not first_form.is_of(saved):
        _, (params, rest) = checkpoints.restore(folder, (params, rest))
        return nnx.merge(graphdef, *jax.device_put((params, rest)))
    # The hyper-parameters had other names then; their values are in the config.
    number = jax.ShapeDtypeStruct((), np.float32)
    others = {name: part for name, part in rest.items() if name != "hyper"}
    like = nnx.State({**others, "hyper": nnx.State({name: Hyper(number) for name in first_form.hyper(saved)})})
    _, (params, restored) = checkpoints.restore(folder, (params, like))
    hyper = nnx.State({name: Hyper(jnp.float32(value)) for name, value in config.hyper.items()})
    rest = nnx.State({**{name: restored[name] for name in others}, "hyper": hyper})
    return nnx.merge(graphdef, *jax.device_put((params, rest)))
