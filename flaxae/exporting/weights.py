"""Weights in safetensors beside a config and a model card, as the Hugging Face hub has them; and back.

folder/model.safetensors   every array, by its path in the model
folder/config.json         what `flaxae.load` needs to build it again: plain JSON, no pickle
folder/README.md           the model card
"""

import importlib
import json
import pathlib
from typing import Any

import jax
import numpy as np
from flax import nnx

import flaxae
from flaxae import autoencoder, manifest, trained
from flaxae.anomaly import detector as detectors
from flaxae.autoencoder import Config
from flaxae.errors import ConfigError, missing
from flaxae.printing import say
from flaxae.states import filled, named

ARRAYS = "model.safetensors"
FILES = frozenset({ARRAYS, "config.json", "README.md"})


def write(what: Any, folder: pathlib.Path) -> None:
    """Write a `Trained`, `TrainedDetector` or `TrainedClassifier`.

    Raises:
        ConfigError: it is something else, or the package safetensors is missing.
    """
    if not isinstance(what, trained.Trained | trained.TrainedDetector | trained.TrainedClassifier):
        raise ConfigError(f"A {type(what).__name__} can't be written as safetensors: an autoencoder, a detector can.")
    config = {"library_name": "flaxae", "flaxae": flaxae.__version__, **trained.described(what)}
    if isinstance(what, trained.TrainedDetector):
        config["detector"] = what.detector.settings()
    of = what if isinstance(what, trained.Trained) else what.trained
    if of.prior is not None:
        say("The prior fitted to the codes is left out: safetensors hold the networks alone.")
    _library().save_file(_arrays(what), folder / ARRAYS, metadata={"format": "np"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_card(what, config), encoding="utf-8")


def read(folder: pathlib.Path) -> Any:
    """What `write` wrote, also after it was downloaded from a hub, which keeps no manifest.

    Raises:
        RunError: the files are damaged, or don't go together.
        ConfigError: the config has an unknown name, or the package safetensors is missing.
    """
    manifest.check(folder)
    path, library = folder / ARRAYS, _library()
    with manifest.reading(folder, "model"):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        arrays = library.load_file(path)
        detector = config.get("detector")
        if detector is not None:
            apart = {name: arrays.pop(name) for name in ("references", "calibration", "peaks") if name in arrays}
            made = detectors.restored(detector, apart, lambda like: filled(like, arrays, path), folder)
            return trained.TrainedDetector(trained.of_description(folder, config, made.models[0]), made)
        about = config["data"]
        shape, model = tuple(about["shape"]), Config.from_dict(config["model"])
        like = nnx.eval_shape(lambda: autoencoder.build(model, shape, conditions=about.get("conditions", 0)))
        graphdef, state = nnx.split(like)
        network = nnx.merge(graphdef, jax.device_put(filled(state, arrays, path, "model.")))
        found = trained.of_description(folder, config, network)
        if "classes" not in config:
            return found
        classifier = trained.unfitted_classifier(found, config["classes"])
        nnx.update(classifier.classifier, filled(nnx.state(classifier.classifier), arrays, path, "classifier."))
        return classifier


def _arrays(what: Any) -> dict[str, np.ndarray]:
    if isinstance(what, trained.TrainedDetector):
        arrays = what.detector.arrays()
        return arrays | named([nnx.state(model) for model in what.detector.models])
    if isinstance(what, trained.Trained):
        return named(nnx.state(what.model), "model.")
    return named(nnx.state(what.trained.model), "model.") | named(nnx.state(what.classifier), "classifier.")


def _library() -> Any:
    try:
        return importlib.import_module("safetensors.numpy")
    except ImportError as error:
        raise ConfigError(missing("The format `safetensors`", "safetensors", error)) from error


def _card(what: Any, config: dict[str, Any]) -> str:
    """The model card, in the form of the hub: YAML, then Markdown."""
    about = config["data"]
    task = {"TrainedDetector": "anomaly-detection", "TrainedClassifier": "classification"}.get(
        type(what).__name__, "autoencoder"
    )
    shape = " × ".join(map(str, about["shape"]))
    use = {"TrainedDetector": "score", "TrainedClassifier": "predict"}.get(type(what).__name__, "reconstruct")
    model = config.get("model") or config["detector"]["config"]
    return f"""---
library_name: flaxae
tags:
- jax
- flax
- {task}
---

# {task.capitalize().replace("-", " ")} of {about["kind"]} data, {shape}

Made by flaxae {config["flaxae"]}. It takes data in their own units ({about["scaling"]["dtype"]}):

```python
import flaxae

model = flaxae.load("this folder")
model.{use}(x)  # x: [examples, {", ".join(map(str, about["shape"]))}]
```

What it was trained on, what it is meant for, its limits and its licence: to be told by who publishes it.

```json
{json.dumps(model, indent=2)}
```
"""
