"""A trained model with the scaling of its data: what a run's folder is loaded as, and what is used on new data."""

import dataclasses
import os
import pathlib
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float, Shaped

from flaxae import autoencoder, checkpoints, errors, runs, training
from flaxae.autoencoder import Autoencoder
from flaxae.data import Dataset, Scaling


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """An autoencoder and the scaling that it was trained under; its methods take and give data in their own units."""

    model: Autoencoder
    scaling: Scaling
    shape: tuple[int, ...]  # of one example
    kind: str  # of the data: image, tabular or signal
    columns: tuple[str, ...] | None  # of a table

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


def describe(config: autoencoder.Config, dataset: Dataset) -> dict[str, Any]:
    """What a run's config.json must hold, under "model" and "data", for `load` to rebuild the model."""
    data = {"source": dataset.name, "kind": dataset.kind, "shape": dataset.shape, "columns": dataset.columns}
    return {"model": config.to_dict(), "data": {**data, "scaling": dataset.scaling.to_dict()}}


def load(folder: str | os.PathLike) -> Trained:
    """The model of a run's folder, `runs/<experiment>/<name>`, finished or not.

    Raises:
        RunError: the folder is not a run's.
        ConfigError: its config.json holds an unknown name or a value out of range.
        CheckpointError: it has no good checkpoint.
    """
    folder = pathlib.Path(folder)
    saved = runs.open(folder).config
    try:
        config = autoencoder.Config.from_dict(saved["model"])
        data = saved["data"]
        shape, kind, scaling = tuple(data["shape"]), data["kind"], Scaling.from_dict(data["scaling"])
        columns = None if data["columns"] is None else tuple(data["columns"])
    except (KeyError, TypeError, AttributeError) as error:
        raise errors.RunError(f"{folder / 'config.json'} does not describe a model: {error!r}.") from error
    model = nnx.eval_shape(lambda: autoencoder.build(config, shape))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    _, (params, rest) = checkpoints.restore(folder / "checkpoints" / "best", (params, rest))
    return Trained(nnx.merge(graphdef, *jax.device_put((params, rest))), scaling, shape, kind, columns)
