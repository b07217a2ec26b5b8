"""Objectives: what training minimises, one number an example.

An objective is any function `(model, x, key) -> [batch]`, in nats unless it says otherwise. It decides itself what it
does with the key (corruption, dropout, sampling); the one `.mean()` over examples is in the train step. Scalars it
weighs its terms by are the model's hyper-parameters (`model.hyper.beta[...]`): arrays, which a population can vary.

`model` is a `flaxae.autoencoder.Autoencoder`, which holds the objective that it is meant for.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Key

from flaxae import errors

MIN_VARIANCE = 1e-6  # 60 dB: below it an example counts as reconstructed
MIN_ACTIVITY = 1e-3  # variance that a hidden unit counts as having at least, so that idle ones weigh little

Objective = Callable[[nnx.Module, Float[Array, " batch *shape"], Key[Array, ""]], Float[Array, " batch"]]


def negative_log_likelihood(
    model: nnx.Module, x: Float[Array | np.ndarray, " batch *shape"], key: Key[Array, ""]
) -> Float[Array, " batch"]:
    """−log p(x | z), z the code of x, or of x̃ where the model has a corruption (Vincent et al. 2010, eq. 5)."""
    return -model.likelihood.log_prob(model(x, key).params, x)


def squared_error(
    model: nnx.Module, x: Float[Array | np.ndarray, " batch *shape"], key: Key[Array, ""]
) -> Float[Array, " batch"]:
    """Mean squared error of the reconstruction of x, uncorrupted: what models under any objective compare by."""
    return jnp.square(model.reconstruct(x) - x).reshape(len(x), -1).mean(axis=-1)


@dataclasses.dataclass(frozen=True)
class DenoisingError:
    """Mean squared error of what the model makes of x corrupted at `level`, whatever level it is trained at."""

    level: float

    def __call__(
        self, model: nnx.Module, x: Float[Array | np.ndarray, " batch *shape"], key: Key[Array, ""]
    ) -> Float[Array, " batch"]:
        denoised = model.reconstruct(model.corrupt(x, key, jnp.float32(self.level)))
        return jnp.square(denoised - x).reshape(len(x), -1).mean(axis=-1)


def profile_likelihood(
    model: nnx.Module, x: Float[Array | np.ndarray, " batch *shape"], key: Key[Array, ""]
) -> Float[Array, " batch"]:
    """−log N(x; mean, σ²), each example under the σ² that suits it best, its own mean squared error: ½ d log(2πe σ²).

    Every example weighs alike, however hard it is; the mean over examples is that of PSNR but for its sign and unit.
    The likelihood profiled over σ is textbook; as the loss of an autoencoder: Rybkin et al. 2021 (σ-VAE).
    """
    residual = model.likelihood.mean(model(x, key).params) - x
    variance = jnp.square(residual).reshape(len(residual), -1).mean(axis=-1) + MIN_VARIANCE
    return 0.5 * residual[0].size * jnp.log(2 * math.pi * math.e * variance)


def masked(
    model: nnx.Module, x: Float[Array | np.ndarray, " batch *shape"], key: Key[Array, ""]
) -> Float[Array, " batch"]:
    """−log p of the hidden values of x given the others (He et al. 2022), for a corruption that sets values to 0.

    It is weighed by values / hidden values, so that its size doesn't depend on how much is hidden.
    """
    corruption_key, key = jax.random.split(key)
    x = jnp.asarray(x)
    visible = model.corruption(corruption_key, jnp.ones_like(x), model.hyper.noise[...])  # of ones, the mask is left
    params = model.forward(x * visible, key).params
    hidden = 1 - visible.reshape(len(x), -1).mean(axis=-1)
    return -model.likelihood.log_prob(params, x, where=visible == 0) / jnp.maximum(hidden, 1 / x[0].size)


def layerwise(
    model: nnx.Module, x: Float[Array | np.ndarray, " batch *shape"], key: Key[Array, ""]
) -> Float[Array, " batch"]:
    """−log p(x | z̃) + layerwise · Σ_l ‖(ĥ_l − h_l) / σ_l‖² / units: every layer of the decoder undoes noise.

    The ladder's denoising cost (Rasmus et al. 2015, eq. 3 and 4), for a fully connected model: h_l is a hidden layer of
    the encoder given x, σ_l each unit's deviation over the batch, and ĥ_l the mirrored layer of the decoder. z̃ is the
    code under the corruption of x and, at every hidden layer, Gaussian noise of deviation noise · σ_l. The ladder's
    lateral connections are left out: a code has to say all of an example, and one weight serves all layers.
    """
    x = jnp.asarray(x)
    corruption_key, noise_key, head_key, encoder_key, decoder_key = jax.random.split(key, 5)
    clean, noisy = (seen.reshape(len(x), -1) for seen in (x, model.corrupt(x, corruption_key)))
    wanted = []
    for i, layer in enumerate(model.encoder.stack.layers):
        dropout_key = jax.random.fold_in(encoder_key, i)
        clean, noisy = layer(clean, dropout_key), layer(noisy, dropout_key)
        deviation = jnp.sqrt(clean.var(axis=0) + MIN_ACTIVITY)
        wanted.append((clean, deviation))
        noise = jax.random.normal(jax.random.fold_in(noise_key, i), noisy.shape)
        noisy += model.hyper.noise[...] * deviation * noise
    found = model.head(noisy, head_key).z
    cost = jnp.zeros(len(x))
    for i, (layer, (h, deviation)) in enumerate(zip(model.decoder.stack.layers, reversed(wanted), strict=True)):
        found = layer(found, jax.random.fold_in(decoder_key, i))
        cost += jnp.square((found - h) / deviation).mean(axis=-1)
    params = model.decoder.out(found).reshape(x.shape)
    return -model.likelihood.log_prob(params, x) + model.hyper.layerwise[...] * cost


def l1_sparse(
    model: nnx.Module, x: Float[Array | np.ndarray, " batch *shape"], key: Key[Array, ""]
) -> Float[Array, " batch"]:
    """−log p(x | z) + sparsity · Σ |z|."""
    params, latent = model(x, key)
    return -model.likelihood.log_prob(params, x) + model.hyper.sparsity[...] * jnp.abs(latent.z).sum(axis=-1)


def rate_sparse(
    model: nnx.Module, x: Float[Array | np.ndarray, " batch *shape"], key: Key[Array, ""]
) -> Float[Array, " batch"]:
    """−log p(x | z) + sparsity · Σ_j KL(rate ‖ mean z_j), z in (0, 1), the mean over the batch (Ng 2011).

    The KL is between Bernoulli variables. It is the same for all examples of a batch.
    """
    params, latent = model(x, key)
    rate = model.hyper.rate[...]
    mean = jnp.clip(latent.z.mean(axis=0), 1e-6, 1 - 1e-6)
    kl = rate * jnp.log(rate / mean) + (1 - rate) * jnp.log((1 - rate) / (1 - mean))
    return -model.likelihood.log_prob(params, x) + model.hyper.sparsity[...] * kl.sum()


def contractive(
    model: nnx.Module, x: Float[Array | np.ndarray, " batch *shape"], key: Key[Array, ""]
) -> Float[Array, " batch"]:
    """−log p(x | z) + contraction · ‖∂z/∂x‖², the squared Frobenius norm (Rifai et al. 2011, eq. 5)."""
    penalty = squared_jacobian(model.encode, jnp.asarray(x))
    return negative_log_likelihood(model, x, key) + model.hyper.contraction[...] * penalty


def squared_jacobian(function: Callable[[Array], Array], x: Float[Array, " batch *shape"]) -> Float[Array, " batch"]:
    """‖∂f/∂x‖², summed over both f's and x's axes, of each example: one reverse pass for each of f's outputs."""
    z, pull_back = jax.vjp(function, x)
    rows = jnp.broadcast_to(jnp.eye(z.shape[-1], dtype=z.dtype)[:, None], (z.shape[-1], *z.shape))
    (jacobian,) = jax.vmap(pull_back)(rows)  # [latent, batch, *shape]: no example depends on another
    return jnp.square(jacobian).sum(axis=(0, *range(2, jacobian.ndim)))


def negative_elbo(
    model: nnx.Module, x: Float[Array | np.ndarray, " batch *shape"], key: Key[Array, ""]
) -> Float[Array, " batch"]:
    """−log p(x | z) + β · Σ_j KL_j, z ~ q(z | x) (Kingma & Welling 2014, eq. 7; β: Higgins et al. 2017).

    A KL_j below `free_bits` (nats a latent, by default 0) counts as that much, and is not pressed lower
    (Kingma et al. 2016, eq. 15, here for each example instead of a batch's mean).
    """
    params, latent = model(x, key)
    kl = kl_to_standard_normal(latent.mean, latent.logvar)
    free_bits = model.hyper.free_bits[...]
    kl = jnp.where((free_bits > 0) & (kl < free_bits), free_bits, kl)
    return -model.likelihood.log_prob(params, x) + model.hyper.beta[...] * kl.sum(axis=-1)


def kl_to_standard_normal(
    mean: Float[Array, "*batch latent"], logvar: Float[Array, "*batch latent"]
) -> Float[Array, "*batch latent"]:
    """KL(N(mean, exp(logvar)) ‖ N(0, 1)), nats a latent; an example's is their sum (Kingma & Welling 2014, B)."""
    return 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)


@dataclasses.dataclass(frozen=True)
class ImportanceWeighted:
    """−log 1/K Σ_k p(x, z_k) / q(z_k | x), z_k ~ q(z | x), K = `samples` (Burda et al. 2016, eq. 8).

    The encoder's gradient is the doubly reparameterised one (IWAE-DReG, Tucker et al. 2019), of the same mean and less
    variance, see `log_weights`.
    """

    samples: int = 5

    def __call__(
        self, model: nnx.Module, x: Float[Array | np.ndarray, " batch *shape"], key: Key[Array, ""]
    ) -> Float[Array, " batch"]:
        corruption_key, key = jax.random.split(key)
        weights = log_weights(model, model.corrupt(x, corruption_key), x, key, self.samples)
        return math.log(self.samples) - jax.nn.logsumexp(weights, axis=0)


def log_weights(
    model: nnx.Module,
    seen: Float[Array | np.ndarray, " batch *shape"],
    x: Float[Array | np.ndarray, " batch *shape"],
    key: Key[Array, ""],
    samples: int,
) -> Float[Array, "samples batch"]:
    """log p(x, z) / q(z | seen) at `samples` draws of z from q for each example; nats.

    Its gradient is meant for the log of the weights' mean. The encoder's goes through z alone, each draw's weighed
    once more by its share of the weights: in the mean, that stands for what would come through the density q.
    """
    encoder_key, sample_key, decoder_key = jax.random.split(key, 3)
    latent = model.head(model.encoder(seen, encoder_key))
    noise = jax.random.normal(sample_key, (samples, *latent.mean.shape))
    z, zero = _shared_out(latent.mean + jnp.exp(0.5 * latent.logvar) * noise)
    mean, logvar = lax.stop_gradient((latent.mean, latent.logvar))
    # log N(z; 0, I) − log N(z; mean, exp(logvar)): the constants cancel
    log_ratio = 0.5 * jnp.sum(jnp.square(z - mean) * jnp.exp(-logvar) + logvar - jnp.square(z), axis=-1)
    keys = jax.random.split(decoder_key, samples)
    log_likelihood = jax.vmap(lambda z, key: model.likelihood.log_prob(model.decoder(z, key), x))(z, keys)
    return log_likelihood + log_ratio + zero


@jax.custom_vjp
def _shared_out(
    z: Float[Array, "samples batch latent"],
) -> tuple[Float[Array, "samples batch latent"], Float[Array, "samples batch"]]:
    """z, and zeros. z's gradient is multiplied by each draw's share of that of the zeros among an example's draws.

    Added to log weights, the zeros have the gradient of these: of the log of their mean, the normalised weights.
    """
    return z, jnp.zeros(z.shape[:2], z.dtype)


def _shared_out_forward(z: Array) -> tuple[tuple[Array, Array], None]:
    return _shared_out(z), None


def _shared_out_backward(_: None, gradients: tuple[Array, Array]) -> tuple[Array]:
    of_z, of_zeros = gradients
    total = of_zeros.sum(axis=0)
    share = of_zeros / jnp.where(total == 0, 1.0, total)
    return (of_z * share[..., None],)


_shared_out.defvjp(_shared_out_forward, _shared_out_backward)


def vector_quantized(
    model: nnx.Module, x: Float[Array | np.ndarray, " batch *shape"], key: Key[Array, ""]
) -> Float[Array, " batch"]:
    """−log p(x | z) + ‖sg[h] − e‖² + commitment · ‖h − sg[e]‖², e nearest to h (van den Oord et al. 2017, eq. 3)."""
    params, latent = model(x, key)
    h, e, sg = latent.mean, model.head.lookup(latent.codes), lax.stop_gradient
    codebook = jnp.square(sg(h) - e).sum(axis=-1)
    commitment = jnp.square(h - sg(e)).sum(axis=-1)
    return -model.likelihood.log_prob(params, x) + codebook + model.hyper.commitment[...] * commitment


@dataclasses.dataclass(frozen=True)
class Binarised:
    """`objective` of x drawn black or white with its grey levels as probabilities, anew at every pass.

    Dynamic binarisation (Burda et al. 2016), under which a Bernoulli likelihood is a density of the data.
    """

    objective: Objective

    def __call__(
        self, model: nnx.Module, x: Float[Array | np.ndarray, " batch *shape"], key: Key[Array, ""]
    ) -> Float[Array, " batch"]:
        if model.likelihood.support != (0.0, 1.0):
            raise errors.ConfigError("Binarised values are 0 or 1: they need the Bernoulli likelihood.")
        binary_key, key = jax.random.split(key)
        x = jax.random.bernoulli(binary_key, x).astype(jnp.float32)
        return self.objective(model, x, key)


@dataclasses.dataclass(frozen=True)
class Trimmed:
    """`objective` of the examples of each batch but the worst-fitting `fraction`, which count as 0.

    For data with some anomalies among them, which would else be learned too (trimmed least squares, Rousseeuw 1984).
    The others are weighed up, so that the mean over the batch is theirs.
    """

    objective: Objective
    fraction: float

    def __call__(
        self, model: nnx.Module, x: Float[Array | np.ndarray, " batch *shape"], key: Key[Array, ""]
    ) -> Float[Array, " batch"]:
        loss = self.objective(model, x, key)
        left_out = math.ceil(self.fraction * (len(loss) - 1))
        kept = loss <= lax.top_k(lax.stop_gradient(loss), left_out + 1)[0][-1]
        return jnp.where(kept, loss, 0.0) / kept.mean()
