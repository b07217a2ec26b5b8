"""flaxae: autoencoders in JAX and Flax NNX. The public names, each imported when it is first used."""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Autoencoder": "autoencoder",
    "Config": "autoencoder",
    "build": "autoencoder",
    "History": "training",
    "apply": "training",
    "fit": "training",
    "fit_population": "population",
    "Trained": "trained",
    "load": "trained",
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
    "anomaly", "augmentation", "conformal", "corruptions", "data", "density", "errors", "estimators", "finetuning",
    "likelihoods", "metrics", "objectives", "presets", "propagation", "report", "runs", "stacked",
)  # fmt: skip
__all__ = [*_HOMES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"flaxae.{_HOMES[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"flaxae.{name}")
    raise AttributeError(f"module 'flaxae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
