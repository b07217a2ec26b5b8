"""Presets: the named choices of parts. Each gives a `Config`; `dataclasses.replace` varies it."""

from collections.abc import Callable

from flaxae.autoencoder import Config
from flaxae.likelihoods import Bernoulli, Likelihood
from flaxae.nn.convnet import ConvNet
from flaxae.nn.mlp import MLP

BERNOULLI = Bernoulli()


def vanilla(latent: int = 32, likelihood: Likelihood = BERNOULLI) -> Config:
    """Fully connected, with a linear bottleneck."""
    return Config(body=MLP((512,)), latent=latent, likelihood=likelihood)


def convolutional(latent: int = 32, likelihood: Likelihood = BERNOULLI) -> Config:
    """Strided convolutions down, transposed ones up; for images."""
    return Config(body=ConvNet(), latent=latent, likelihood=likelihood)


def denoising(latent: int = 128, likelihood: Likelihood = BERNOULLI, noise: float = 0.5) -> Config:
    """Fully connected and wide, trained to undo Gaussian noise on values in [0, 1] (Vincent et al. 2010)."""
    return Config(
        body=MLP((1024,)), latent=latent, likelihood=likelihood, corruption="gaussian", noise=noise, clip=(0.0, 1.0)
    )


PRESETS: dict[str, Callable[..., Config]] = {
    "vanilla": vanilla,
    "convolutional": convolutional,
    "denoising": denoising,
}
