"""flaxae: autoencoders in JAX and Flax NNX. The public names, each imported when it is first used."""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Autoencoder": "autoencoder",
    "Config": "autoencoder",
    "build": "autoencoder",
    "Batch": "batches",
    "register": "specs",
    "History": "training",
    "apply": "training",
    "fit": "training",
    "fit_population": "training",
    "Trained": "trained",
    "load": "trained",
    "save": "trained",
    "denoise": "denoising",
    "AutoencoderTransformer": "estimators",
    "DenoisingAutoencoder": "estimators",
    "AutoencoderDetector": "estimators",
    "AutoencoderClassifier": "estimators",
    "MLP": "nn.mlp",
    "ConvNet": "nn.convnet",
    "Mixer": "nn.mixer",
}
_MODULES = (
    "anomaly", "augmentation", "autoencoder", "batches", "conformal", "corruptions", "data", "density", "errors",
    "estimators", "finetuning", "likelihoods", "metrics", "nn", "objectives", "presets", "propagation", "report",
    "runs", "specs", "stacked", "training",
)  # fmt: skip
_MOVED = {name: f"training.{name}" for name in ("checkpoints", "feed", "population", "precision", "progress")}
_MOVED |= {name: f"runs.{name}" for name in ("loggers", "plots", "report")}
__all__ = [*_HOMES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"flaxae.{_HOMES[name]}"), name)
    if name in _MODULES or name in _MOVED:
        return importlib.import_module(f"flaxae.{_MOVED.get(name, name)}")
    raise AttributeError(f"module 'flaxae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
