"""Presets: the named choices of parts. Each gives a `Config`; `dataclasses.replace` varies and crosses them."""

from collections.abc import Callable

from flaxae.autoencoder import Config
from flaxae.likelihoods import Bernoulli, Gaussian, Likelihood
from flaxae.nn.convnet import ConvNet
from flaxae.nn.mixer import Mixer
from flaxae.nn.mlp import MLP
from flaxae.nn.recognizer import Recognizer

BERNOULLI = Bernoulli()


def vanilla(latent: int = 32, likelihood: Likelihood = BERNOULLI) -> Config:
    """Fully connected, with a linear bottleneck."""
    return Config(body=MLP((512,)), latent=latent, likelihood=likelihood)


def convolutional(latent: int = 32, likelihood: Likelihood = BERNOULLI, pool: bool = False) -> Config:
    """Convolutions down, by strides or pooling, transposed ones up; for images and signals."""
    return Config(body=ConvNet(pool=pool), latent=latent, likelihood=likelihood)


def pooled(latent: int = 32, likelihood: Likelihood = BERNOULLI) -> Config:
    """Convolutions and max pooling down, transposed convolutions up; for images and signals."""
    return convolutional(latent, likelihood, pool=True)


def mixer(latent: int = 256, likelihood: Likelihood = BERNOULLI) -> Config:
    """An MLP-Mixer on patches, the strongest for images at a given time of training."""
    return Config(body=Mixer(), latent=latent, likelihood=likelihood)


def denoising(latent: int = 128, likelihood: Likelihood = BERNOULLI, noise: float = 0.5) -> Config:
    """Fully connected and wide, trained to undo Gaussian noise, clipped as the values are (Vincent et al. 2010)."""
    return Config(
        body=MLP((1024,)),
        latent=latent,
        likelihood=likelihood,
        corruption="gaussian",
        noise=noise,
        clip=None if isinstance(likelihood, Gaussian) else likelihood.support,
    )


def layerwise(
    latent: int = 128, likelihood: Likelihood = BERNOULLI, noise: float = 0.3, weight: float = 10.0
) -> Config:
    """Noise at every layer of the encoder, undone layer by layer in the decoder (after Rasmus et al. 2015)."""
    return Config(
        body=MLP((1024, 512)),
        latent=latent,
        likelihood=likelihood,
        corruption="gaussian",
        noise=noise,
        objective="layerwise",
        layerwise=weight,
    )


def sparse(latent: int = 256, likelihood: Likelihood = BERNOULLI, sparsity: float = 0.1) -> Config:
    """A wide code of which an L1 penalty turns most units off."""
    return Config(
        body=MLP((512,)), latent=latent, likelihood=likelihood, head="relu", objective="l1_sparse", sparsity=sparsity
    )


def sparse_rate(
    latent: int = 256, likelihood: Likelihood = BERNOULLI, sparsity: float = 1.0, rate: float = 0.05
) -> Config:
    """A wide code of sigmoid units that are each on for about `rate` of the examples (Ng 2011)."""
    return Config(
        body=MLP((512,)),
        latent=latent,
        likelihood=likelihood,
        head="sigmoid",
        objective="rate_sparse",
        sparsity=sparsity,
        rate=rate,
    )


def top_k(latent: int = 256, likelihood: Likelihood = BERNOULLI, active: int = 8) -> Config:
    """A wide code of which the `active` numbers largest in size are kept (after Makhzani & Frey 2014)."""
    return Config(body=MLP((512,)), latent=latent, likelihood=likelihood, head="top_k", active=active)


def contractive(latent: int = 32, likelihood: Likelihood = BERNOULLI, contraction: float = 0.1) -> Config:
    """Smooth, with a penalty on how much the code moves with the input (Rifai et al. 2011)."""
    return Config(
        body=MLP((256,), "tanh"),
        latent=latent,
        likelihood=likelihood,
        objective="contractive",
        contraction=contraction,
    )


def variational(
    latent: int = 32, likelihood: Likelihood = BERNOULLI, beta: float = 1.0, free_bits: float = 0.0
) -> Config:
    """A Gaussian code near N(0, I), so that it can be sampled (Kingma & Welling 2014; β: Higgins et al. 2017)."""
    return Config(
        body=MLP((512,)),
        latent=latent,
        likelihood=likelihood,
        head="gaussian",
        objective="elbo",
        beta=beta,
        free_bits=free_bits,
    )


def importance_weighted(latent: int = 32, likelihood: Likelihood = BERNOULLI, samples: int = 5) -> Config:
    """A variational one under a bound that `samples` draws make tighter (Burda et al. 2016)."""
    return Config(
        body=MLP((512,)),
        latent=latent,
        likelihood=likelihood,
        head="gaussian",
        objective="importance_weighted",
        samples=samples,
    )


def vector_quantized(
    latent: int = 64, likelihood: Likelihood = BERNOULLI, codebook: int = 128, width: int = 4
) -> Config:
    """A discrete code: groups of `width` numbers are each one of `codebook` vectors (van den Oord et al. 2017)."""
    return Config(
        body=MLP((512,)),
        latent=latent,
        likelihood=likelihood,
        head="vector_quantized",
        objective="vector_quantized",
        codebook=codebook,
        width=width,
    )


def stacked(latent: int = 32, likelihood: Likelihood = BERNOULLI) -> Config:
    """Deep and fully connected, for `stacked.pretrain` to train layer by layer first (Bengio et al. 2007)."""
    return Config(body=MLP((512, 256, 128)), latent=latent, likelihood=likelihood)


def masked(latent: int = 128, likelihood: Likelihood = BERNOULLI, noise: float = 0.5) -> Config:
    """Trained to fill in patches that are hidden with probability `noise` (He et al. 2022)."""
    return Config(
        body=MLP((1024,)),
        latent=latent,
        likelihood=likelihood,
        corruption="patches",
        noise=noise,
        objective="masked",
    )


def transformed(latent: int = 64, likelihood: Likelihood = BERNOULLI, noise: float = 1.0) -> Config:
    """Trained to undo random affine maps, elastic deformation and cut-out: a code for recognising images by."""
    return Config(body=Recognizer(), latent=latent, likelihood=likelihood, corruption="transform", noise=noise)


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
    "vector_quantized": vector_quantized,
    "stacked": stacked,
    "masked": masked,
    "transformed": transformed,
}
