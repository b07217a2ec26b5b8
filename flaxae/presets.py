"""Presets: the named choices of parts. Each gives a `Config`; `dataclasses.replace` varies and crosses them."""

import importlib
import inspect
import math
import os
import sys
import types
from collections.abc import Callable

from flaxae import columns, errors, objectives
from flaxae.augmentation import Transform
from flaxae.autoencoder import Config
from flaxae.corruptions import GaussianNoise, GaussianRange, Patches
from flaxae.data import Encoding, Scaling
from flaxae.likelihoods import Bernoulli, Gaussian, Laplace, Likelihood
from flaxae.nn.convnet import ConvNet, FullyConvolutional
from flaxae.nn.heads import Deterministic, Hierarchical, Identity, Sparse, TopK, Variational, VectorQuantizer
from flaxae.nn.mixer import Mixer
from flaxae.nn.mlp import MLP
from flaxae.nn.neighbours import Components, Placed
from flaxae.nn.recognizer import Recognizer
from flaxae.nn.unet import UNet
from flaxae.objectives import (
    ELBO,
    L1,
    ActivityRate,
    Contractive,
    ImportanceWeighted,
    KeepNeighbours,
    Layerwise,
    VectorQuantization,
)

BERNOULLI = Bernoulli()
LAPLACE = Laplace()


def vanilla(latent: int = 32, likelihood: Likelihood = BERNOULLI) -> Config:
    """Fully connected, with a linear bottleneck."""
    return Config(body=MLP((512,)), head=Deterministic(latent), likelihood=likelihood)


def convolutional(latent: int = 32, likelihood: Likelihood = BERNOULLI, pool: bool = False) -> Config:
    """A convolutional encoder (strides, or pooling) and a transposed-convolutional decoder; for images and signals."""
    return Config(body=ConvNet(pool=pool), head=Deterministic(latent), likelihood=likelihood)


def pooled(latent: int = 32, likelihood: Likelihood = BERNOULLI) -> Config:
    """An encoder of convolutions and max pooling, a decoder of transposed convolutions; for images and signals."""
    return convolutional(latent, likelihood, pool=True)


def mixer(latent: int = 256, likelihood: Likelihood = BERNOULLI) -> Config:
    """An MLP-Mixer on patches: the best preset for images at a given training time."""
    return Config(body=Mixer(), head=Deterministic(latent), likelihood=likelihood)


def denoising(latent: int = 128, likelihood: Likelihood = BERNOULLI, noise: float = 0.5) -> Config:
    """Fully connected and wide, trained to undo Gaussian noise (Vincent et al. 2010).

    The noisy values are clipped to the likelihood's range.
    """
    bounded = all(map(math.isfinite, likelihood.support))
    return Config(
        body=MLP((1024,)),
        head=Deterministic(latent),
        likelihood=likelihood,
        corruption=GaussianNoise(noise, clip=likelihood.support if bounded else None),
    )


def layerwise(
    latent: int = 128, likelihood: Likelihood = BERNOULLI, noise: float = 0.3, weight: float = 10.0
) -> Config:
    """Noise at every layer of the encoder, undone layer by layer in the decoder (after Rasmus et al. 2015)."""
    return Config(
        body=MLP((1024, 512)),
        head=Deterministic(latent),
        likelihood=likelihood,
        objective=Layerwise(weight),
        corruption=GaussianNoise(noise),
    )


def sparse(latent: int = 256, likelihood: Likelihood = BERNOULLI, sparsity: float = 0.1) -> Config:
    """A wide code, most of whose units an L1 penalty turns off."""
    return Config(body=MLP((512,)), head=Sparse(latent), objective=L1(sparsity), likelihood=likelihood)


def sparse_rate(
    latent: int = 256, likelihood: Likelihood = BERNOULLI, sparsity: float = 1.0, rate: float = 0.05
) -> Config:
    """A wide code of sigmoid units, each active for about a fraction `rate` of the examples (Ng 2011)."""
    return Config(
        body=MLP((512,)),
        head=Sparse(latent, "sigmoid"),
        objective=ActivityRate(sparsity, rate),
        likelihood=likelihood,
    )


def top_k(latent: int = 256, likelihood: Likelihood = BERNOULLI, active: int = 8) -> Config:
    """A wide code: only the `active` numbers of largest absolute value are kept (after Makhzani & Frey 2014)."""
    return Config(body=MLP((512,)), head=TopK(latent, active), likelihood=likelihood)


def contractive(latent: int = 32, likelihood: Likelihood = BERNOULLI, contraction: float = 0.1) -> Config:
    """A smooth code, with a penalty on how fast it changes with the input (Rifai et al. 2011)."""
    return Config(
        body=MLP((256,), "tanh"),
        head=Deterministic(latent),
        likelihood=likelihood,
        objective=Contractive(contraction),
    )


def variational(
    latent: int = 32, likelihood: Likelihood = BERNOULLI, beta: float = 1.0, free_bits: float = 0.0
) -> Config:
    """A Gaussian code near N(0, I), so that it can be sampled (Kingma & Welling 2014; β: Higgins et al. 2017)."""
    return Config(
        body=MLP((512,)),
        head=Variational(latent),
        objective=ELBO(beta, free_bits),
        likelihood=likelihood,
    )


def importance_weighted(latent: int = 32, likelihood: Likelihood = BERNOULLI, samples: int = 5) -> Config:
    """A variational autoencoder trained on a bound that is tighter for more `samples` (Burda et al. 2016)."""
    return Config(
        body=MLP((512,)),
        head=Variational(latent),
        objective=ImportanceWeighted(samples),
        likelihood=likelihood,
    )


def hierarchical(latent: int = 64, likelihood: Likelihood = BERNOULLI, levels: int = 2, beta: float = 1.0) -> Config:
    """Several levels of Gaussian codes, each under a prior learned from the levels above (Tomczak & Welling 2018)."""
    return Config(
        body=MLP((512,)),
        head=Hierarchical(latent, levels),
        objective=ELBO(beta),
        likelihood=likelihood,
    )


def vector_quantized(
    latent: int = 64, likelihood: Likelihood = BERNOULLI, codebook: int = 128, width: int = 4
) -> Config:
    """A discrete code: groups of `width` numbers are each one of `codebook` vectors (van den Oord et al. 2017)."""
    return Config(
        body=MLP((512,)),
        head=VectorQuantizer(latent, codebook, width),
        objective=VectorQuantization(),
        likelihood=likelihood,
    )


def stacked(latent: int = 32, likelihood: Likelihood = BERNOULLI) -> Config:
    """Deep and fully connected, for `stacked.pretrain` to train layer by layer first (Bengio et al. 2007)."""
    return Config(body=MLP((512, 256, 128)), head=Deterministic(latent), likelihood=likelihood)


def masked(latent: int = 128, likelihood: Likelihood = BERNOULLI, noise: float = 0.5) -> Config:
    """Trained to fill in patches that are hidden with probability `noise` (He et al. 2022)."""
    return Config(
        body=MLP((1024,)),
        head=Deterministic(latent),
        likelihood=likelihood,
        objective=objectives.masked,
        corruption=Patches(level=noise),
    )


def transformed(latent: int = 64, likelihood: Likelihood = BERNOULLI, noise: float = 1.0) -> Config:
    """Trained to undo random affine maps, elastic deformation and cut-out, for a code that a classifier can use."""
    return Config(
        body=Recognizer(), head=Deterministic(latent), likelihood=likelihood, corruption=Transform(level=noise)
    )


def unet(likelihood: Likelihood = LAPLACE, noise: tuple[float, float] = (5 / 255, 55 / 255)) -> Config:
    """A residual U-Net that undoes noise of any level in that range, on images of any size.

    Under the Laplace likelihood, the absolute error is trained, in which no level of noise outweighs the others by far.
    For likelihoods of real values, what it finds is added to the image.
    """
    return Config(body=UNet(), head=Identity(), likelihood=likelihood, corruption=GaussianRange(*noise))


def grid(latent: int = 8, likelihood: Likelihood = BERNOULLI) -> Config:
    """Convolutions alone: a code of `latent` numbers at every fourth pixel, for images and signals of any size."""
    return Config(body=FullyConvolutional(), head=Deterministic(latent), likelihood=likelihood)


def grid_variational(latent: int = 8, likelihood: Likelihood = BERNOULLI, beta: float = 1.0) -> Config:
    """Convolutions alone, with a grid of Gaussian codes near N(0, I), for images and signals of any size."""
    return Config(body=FullyConvolutional(), head=Variational(latent), objective=ELBO(beta), likelihood=likelihood)


def likelihood(kind: str, encoding: Encoding | None, scaling: Scaling) -> Likelihood:
    """The likelihood of data of that kind, as they are scaled: of tables, each column's own."""
    if kind == "image":
        return BERNOULLI
    return columns.of_table(encoding, scaling) if kind == "tabular" and encoding is not None else Gaussian()


def neighbour_map(latent: int = 2, likelihood: Likelihood = BERNOULLI, examples: int = 1) -> Config:
    """A map that keeps neighbours together, with a decoder back; found by `maps.fit` from so many examples.

    The examples are laid out first. A new one is placed among its nearest neighbours.
    """
    return Config(
        body=Components(), head=Placed(latent, examples), objective=objectives.DecodePlaces(), likelihood=likelihood
    )


def parametric_map(
    latent: int = 2, likelihood: Likelihood = BERNOULLI, pull: float = 1.0, noise: float = 0.1
) -> Config:
    """As `neighbour_map`, but an encoder learns to place examples, and none is remembered (after Damrich et al. 2023).

    It takes longer to train, and keeps neighbours less well; its time for new examples doesn't depend on how many it
    was trained on. A little noise on what the encoder sees makes the map as good for new examples as for those.
    """
    return Config(
        body=MLP((512, 512, 256)),
        head=Deterministic(latent),
        objective=KeepNeighbours(pull),
        likelihood=likelihood,
        corruption=GaussianNoise(noise),
    )


PRESETS: dict[str, Callable[..., Config]] = {
    "mixer": mixer,
    "vanilla": vanilla,
    "convolutional": convolutional,
    "pooled": pooled,
    "denoising": denoising,
    "layerwise": layerwise,
    "sparse": sparse,
    "sparse_rate": sparse_rate,
    "top_k": top_k,
    "contractive": contractive,
    "variational": variational,
    "vae": variational,
    "importance_weighted": importance_weighted,
    "hierarchical": hierarchical,
    "vector_quantized": vector_quantized,
    "stacked": stacked,
    "masked": masked,
    "transformed": transformed,
    "map": neighbour_map,
    "parametric_map": parametric_map,
    "grid": grid,
    "grid_variational": grid_variational,
}


def find(name: str, likelihood: Likelihood) -> Config:
    """The config of a preset with that likelihood. `name` is in `PRESETS`, or is `package.module:preset`.

    The latter is imported from Python's path or from the current folder. It is a `Config`, which is taken as it is, or
    a function that returns one. The function may take the `likelihood`.

    Raises:
        ConfigError: there is no preset of that name, or it gives no config.
    """
    if ":" not in name:
        if name not in PRESETS:
            raise errors.ConfigError(errors.unknown("--model", name, PRESETS))
        return PRESETS[name](likelihood=likelihood)
    module, _, attribute = name.partition(":")
    found = getattr(imported(module), attribute, None)
    if callable(found):
        takes = "likelihood" in inspect.signature(found).parameters
        found = found(likelihood=likelihood) if takes else found()
    if not isinstance(found, Config):
        raise errors.ConfigError(
            f"{name!r} gives {'no preset' if found is None else repr(found)}; expected a flaxae.Config, or a function "
            "that returns one."
        )
    return found


def imported(module: str) -> types.ModuleType:
    """Import the user's module, which registers its parts, from Python's path or from the current folder.

    Raises:
        ConfigError: there is no such module, or importing it fails.
    """
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise errors.ConfigError(f"Can't import {module!r}, for its preset: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(here)
