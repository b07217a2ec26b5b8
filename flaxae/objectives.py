"""Objectives: what training minimises, one number per example.

An objective is any `(model, batch, key) -> [batch]`, in nats unless it says otherwise: a function, or a frozen
dataclass, whose float fields are hyper-parameters (see `flaxae.specs`). `batch` is an array of examples, or a tree of
arrays (see `flaxae.batches`). The objective decides what the key is used for (corruption, dropout, sampling). The only
`.mean()` over examples is in the train step. An objective may also return `(loss, metrics)`: `metrics` maps names to
arrays [batch], whose means go into the history.

`model` is a `flaxae.autoencoder.Autoencoder`, which holds the objective that it is meant for.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int, Key, PyTree

from flaxae import errors, specs
from flaxae.batches import Batch, Examples, replaced
from flaxae.likelihoods import total
from flaxae.nn.heads import Probabilistic, VectorQuantizerHead

MIN_VARIANCE = 1e-6  # added to each example's mean squared error: at 60 dB it counts as reconstructed
MIN_ACTIVITY = 1e-3  # added to the variance of a hidden unit, so that idle units have little weight

Loss = Float[Array, " batch"]


@runtime_checkable
class Objective(Protocol):
    """What an objective has to be."""

    def __call__(
        self, model: Any, batch: Any, key: Key[Array, ""], /
    ) -> Loss | tuple[Loss, Mapping[str, Float[Array, " batch"]]]: ...


@specs.register
def negative_log_likelihood(model: Any, batch: Examples, key: Key[Array, ""]) -> Loss:
    """−log p(x | z), where z is the code of x, or of x̃ if the model has a corruption (Vincent et al. 2010, eq. 5)."""
    batch = Batch.of(batch)
    return -model.log_likelihood(model(batch, key).params, batch)


@specs.register
def squared_error(model: Any, batch: Examples, key: Key[Array, ""]) -> Loss:
    """Mean squared error of the reconstruction of uncorrupted x; it compares models trained on different objectives."""
    batch = Batch.of(batch)
    return _mean_square(model.reconstruct(batch) - batch.wanted)


@dataclasses.dataclass(frozen=True)
class DenoisingError:
    """Mean squared error of denoising x corrupted at `level`, whatever level the model is trained at."""

    level: float

    def __call__(self, model: Any, batch: Examples, key: Key[Array, ""]) -> Loss:
        batch = Batch.of(batch)
        corruption = specs.bind(model.corruption, {("level",): jnp.float32(self.level)})
        noisy = batch._replace(x=corruption(key, jnp.asarray(batch.x)), target=batch.wanted)
        return _mean_square(model.reconstruct(noisy) - noisy.wanted)


@specs.register
def profile_likelihood(model: Any, batch: Examples, key: Key[Array, ""]) -> Loss:
    """−log N(x; mean, σ²) at each example's best σ², which is its own mean squared error: ½ d log(2πe σ²).

    Hard and easy examples weigh alike. Up to sign and unit, the mean over examples is the mean PSNR. Profiling the
    likelihood over σ is textbook; Rybkin et al. 2021 (σ-VAE) use it as the loss of an autoencoder.
    """
    batch = Batch.of(batch)
    residual = model.likelihood.mean(model(batch, key).params, batch.x) - batch.wanted
    variance = _mean_square(residual) + MIN_VARIANCE
    return 0.5 * residual[0].size * jnp.log(2 * math.pi * math.e * variance)


@specs.register
@dataclasses.dataclass(frozen=True)
class Recorrupted:
    """`objective` of noisy x alone, whose normal noise has the deviation `level`: no clean example is needed.

    From x, more noise z is drawn: x + strength · level · z is what the model sees, and x − level · z / strength what it
    should make of it. The noises of both are independent, so that what is best for the one is best for the clean
    example (Pang et al. 2021, Recorrupted-to-Recorrupted, theorem 1).

    Args:
        level: the noise's deviation, in the units of the (scaled) data; see `denoising.noise_level`.
        strength: how much noise is added, of what there is. Much hides more of the example, little leaves more
            noise in what is asked for.
        objective: of such pairs.

    Raises:
        ConfigError: when it is called for a model with a corruption: x is noisy already.
    """

    level: float = 0.1
    strength: float = 0.5
    objective: Objective = profile_likelihood

    def __post_init__(self) -> None:
        specs.check_not_negative(self, "level")
        specs.check_positive(self, "strength")

    def __call__(self, model: Any, batch: Examples, key: Key[Array, ""]) -> Any:
        _check_noisy_alone(model, "Recorrupted")
        noise_key, key = jax.random.split(key)
        x = jnp.asarray(Batch.of(batch).x)
        noise = self.level * jax.random.normal(noise_key, x.shape, x.dtype)
        pair = Batch.of(batch)._replace(x=x + self.strength * noise, target=x - noise / self.strength)
        return self.objective(model, pair, key)


@specs.register
@dataclasses.dataclass(frozen=True)
class Neighbours:
    """Squared error of noisy images alone, whose noise is independent from pixel to pixel, of whatever kind and level.

    Of each 2 × 2 pixels, two neighbours are drawn for two images of half the size, a and b. The model makes b of a; as
    their clean images differ a little, what it changes of x there is taken into account:
    ‖f(a) − b‖² + weight · ‖f(a) − b − (f(x)_a − f(x)_b)‖², a value (Huang et al. 2021, Neighbor2Neighbor, eq. 8).

    Raises:
        ConfigError: when it is called for a model with a corruption, or one that doesn't take images of any size.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        specs.check_not_negative(self, "weight")

    def __call__(self, model: Any, batch: Examples, key: Key[Array, ""]) -> Loss:
        _check_noisy_alone(model, "Neighbours")
        choice_key, key = jax.random.split(key)
        x = jnp.asarray(Batch.of(batch).x)
        if x.ndim != 4 or x.shape[1] % 2 or x.shape[2] % 2:
            raise errors.ConfigError(f"Neighbours takes images of even sides; the batch has the shape {x.shape}.")
        choice = jax.random.randint(choice_key, (len(x), x.shape[1] // 2, x.shape[2] // 2, 1), 0, len(NEIGHBOURS))
        a, b = (neighbours(x, choice, which) for which in (0, 1))
        error = model.likelihood.mean(model.forward(a, key).params) - b
        whole = lax.stop_gradient(model.likelihood.mean(model.forward(x).params))
        expected = neighbours(whole, choice, 0) - neighbours(whole, choice, 1)
        return _mean_square(error) + self.weight * _mean_square(error - expected)


NEIGHBOURS = ((0, 1), (1, 0), (0, 2), (2, 0), (1, 3), (3, 1), (2, 3), (3, 2))  # of 2 × 2 pixels, row by row


def neighbours(
    x: Float[Array, "batch height width channels"], choice: Int[Array, "batch half_height half_width 1"], which: int
) -> Float[Array, "batch half_height half_width channels"]:
    """Of each 2 × 2 pixels, one of the pair of `NEIGHBOURS` that was chosen for it."""
    batch, height, width, channels = x.shape
    cells = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    pixel = jnp.asarray(NEIGHBOURS)[choice, which]
    corners = [cells[:, :, i // 2, :, i % 2] for i in range(4)]
    return sum((jnp.where(pixel == i, corner, 0) for i, corner in enumerate(corners)), jnp.zeros((), x.dtype))


def _check_noisy_alone(model: Any, what: str) -> None:
    if model.corruption is not None:
        raise errors.ConfigError(
            f"{what} is for examples that are noisy already, and the model adds {_name(model.corruption)} to them. "
            "Give it no corruption."
        )


@specs.register
def masked(model: Any, batch: Examples, key: Key[Array, ""]) -> Loss:
    """−log p of the hidden values of x given the others (He et al. 2022), for a corruption that sets values to 0.

    It is multiplied by (values / hidden values), so that its size doesn't depend on how much is hidden.

    Raises:
        ConfigError: the model's corruption doesn't hide values.
    """
    if not getattr(model.corruption, "hides", False):
        raise errors.ConfigError(
            "The objective masked needs a corruption that sets values to 0, Masking or Patches; given was "
            f"{_name(model.corruption)}."
        )
    batch = Batch.of(batch)
    corruption_key, key = jax.random.split(key)
    x = jnp.asarray(batch.x)
    visible = model.corruption(corruption_key, jnp.ones_like(x))  # applied to ones, the corruption gives its mask
    params = model.forward(x * visible, key, batch.condition).params
    hidden = 1 - visible.reshape(len(x), -1).mean(axis=-1)
    wanted = visible == 0 if batch.where is None else (visible == 0) & batch.where
    return -model.likelihood.log_prob(params, batch.wanted, where=wanted) / jnp.maximum(hidden, 1 / x[0].size)


@specs.register
@dataclasses.dataclass(frozen=True)
class Layerwise:
    """−log p(x | z̃) + weight · Σ_l ‖(ĥ_l − h_l) / σ_l‖² / units: every layer of the decoder undoes noise.

    This is the ladder network's denoising cost (Rasmus et al. 2015, eq. 3 and 4), for a fully connected model. h_l is a
    hidden layer of the encoder given x, σ_l the standard deviation of each of its units over the batch, and ĥ_l the
    mirrored layer of the decoder. z̃ is the code of the corrupted x, with Gaussian noise of standard deviation
    level · σ_l added at every hidden layer, where `level` is the corruption's. The ladder's lateral connections are
    left out, so that the code has to hold all of an example; one weight serves all layers.

    Raises:
        ConfigError: it is called for a model that is not fully connected.
    """

    weight: float = 10.0

    def __post_init__(self) -> None:
        specs.check_not_negative(self, "weight")

    def __call__(self, model: Any, batch: Examples, key: Key[Array, ""]) -> Loss:
        if not (hasattr(model.encoder, "stack") and hasattr(model.decoder, "out")):
            raise errors.ConfigError(
                "The objective Layerwise needs a fully connected body, MLP, and on accelerators float32; the encoder "
                f"is a {_name(model.encoder)}."
            )
        batch = Batch.of(batch)
        x = jnp.asarray(batch.x)
        corruption_key, noise_key, head_key, encoder_key, decoder_key = jax.random.split(key, 5)
        clean, noisy = (seen.reshape(len(x), -1) for seen in (x, model.corrupt(x, corruption_key)))
        level = getattr(model.corruption, "level", 0.0)
        wanted = []
        for i, layer in enumerate(model.encoder.stack.layers):
            dropout_key = jax.random.fold_in(encoder_key, i)
            clean, noisy = layer(clean, dropout_key), layer(noisy, dropout_key)
            deviation = jnp.sqrt(clean.var(axis=0, keepdims=True) + MIN_ACTIVITY)
            wanted.append((clean, deviation))
            noisy += level * deviation * jax.random.normal(jax.random.fold_in(noise_key, i), noisy.shape)
        found = model.head(noisy, head_key).z
        cost = jnp.zeros(len(x))
        for i, (layer, (h, deviation)) in enumerate(zip(model.decoder.stack.layers, reversed(wanted), strict=True)):
            found = layer(found, jax.random.fold_in(decoder_key, i))
            cost += jnp.square((found - h) / deviation).mean(axis=-1)
        params = model.decoder.out(found).reshape(x.shape)
        return -model.log_likelihood(params, batch) + self.weight * cost


@specs.register
@dataclasses.dataclass(frozen=True)
class Similarity:
    """‖x̂ − target‖² / ‖target‖² + weight · (cos(z, z̃) − cos(target, x))²: codes as similar as what they are of.

    x is a changed example, such as a sentence of which words were deleted, and the target the whole one. x̂ is the
    reconstruction and z̃ the code of x, z the code of the target. Where many such pairs of all similarities are trained
    on, the cosine of two codes tells that of the examples: a projection that keeps distances (Johnson & Lindenstrauss
    1984), learnt. Without a target only the first term is left.
    """

    weight: float = 100.0

    def __post_init__(self) -> None:
        specs.check_not_negative(self, "weight")

    def __call__(self, model: Any, batch: Examples, key: Key[Array, ""]) -> Loss:
        batch = Batch.of(batch)
        params, latent = model(batch, key)
        size = total(jnp.square(jnp.asarray(batch.wanted))) + MIN_VARIANCE
        lost = total(jnp.square(model.likelihood.mean(params, batch.x) - batch.wanted)) / size
        similarity = cosine(model.encode(batch.wanted, batch.condition), latent.z)
        return lost + self.weight * jnp.square(similarity - cosine(jnp.asarray(batch.wanted), jnp.asarray(batch.x)))


def cosine(a: Float[Array, " batch *shape"], b: Float[Array, " batch *shape"]) -> Float[Array, " batch"]:
    """The cosine of the angle between two examples; 0 if one of them is 0."""
    lengths = total(jnp.square(a)) * total(jnp.square(b))
    return total(a * b) / jnp.sqrt(jnp.maximum(lengths, 1e-12))


@specs.register
@dataclasses.dataclass(frozen=True)
class L1:
    """−log p(x | z) + sparsity · Σ |z|."""

    sparsity: float = 0.1

    def __post_init__(self) -> None:
        specs.check_not_negative(self, "sparsity")

    def __call__(self, model: Any, batch: Examples, key: Key[Array, ""]) -> Loss:
        batch = Batch.of(batch)
        params, latent = model(batch, key)
        size = sum(total(jnp.abs(z)) for z in jax.tree.leaves(latent.z))
        return -model.log_likelihood(params, batch) + self.sparsity * size


@specs.register
@dataclasses.dataclass(frozen=True)
class ActivityRate:
    """−log p(x | z) + sparsity · Σ_j KL(rate ‖ mean z_j), with z in (0, 1) and the mean over the batch (Ng 2011).

    The KL is between Bernoulli variables, and the same for all examples of a batch. If the code is a grid, the mean is
    over its places too.
    """

    sparsity: float = 1.0
    rate: float = 0.05

    def __post_init__(self) -> None:
        specs.check_not_negative(self, "sparsity")
        if not 0 < self.rate < 1:
            raise errors.ConfigError(f"ActivityRate.rate is {self.rate}; it has to be above 0 and below 1.")

    def __call__(self, model: Any, batch: Examples, key: Key[Array, ""]) -> Loss:
        activation = getattr(model.head, "activation", None)
        if getattr(activation, "name", None) != "sigmoid":
            raise errors.ConfigError(
                "The objective ActivityRate needs a code in (0, 1), the head Sparse(activation='sigmoid'); the head is "
                f"a {_name(model.head)}."
            )
        batch = Batch.of(batch)
        params, latent = model(batch, key)
        mean = latent.z.mean(axis=tuple(range(latent.z.ndim - 1)))
        mean = jnp.clip(mean, 1e-6, 1 - 1e-6)
        rate = self.rate
        kl = rate * jnp.log(rate / mean) + (1 - rate) * jnp.log((1 - rate) / (1 - mean))
        return -model.log_likelihood(params, batch) + self.sparsity * kl.sum()


@specs.register
@dataclasses.dataclass(frozen=True)
class Contractive:
    """−log p(x | z) + contraction · ‖∂z/∂x‖², the squared Frobenius norm (Rifai et al. 2011, eq. 5)."""

    contraction: float = 0.1

    def __post_init__(self) -> None:
        specs.check_not_negative(self, "contraction")

    def __call__(self, model: Any, batch: Examples, key: Key[Array, ""]) -> Loss:
        batch = Batch.of(batch)
        penalty = squared_jacobian(lambda x: model.encode(x, batch.condition), jnp.asarray(batch.x))
        return negative_log_likelihood(model, batch, key) + self.contraction * penalty


def squared_jacobian(function: Callable[[Array], Array], x: Float[Array, " batch *shape"]) -> Loss:
    """‖∂f/∂x‖² of each example, summed over the axes of f and of x. It takes one reverse pass per output of f."""
    z, pull_back = jax.vjp(function, x)
    one = jnp.eye(z[0].size, dtype=z.dtype).reshape(-1, 1, *z.shape[1:])
    rows = jnp.broadcast_to(one, (len(one), *z.shape))
    (jacobian,) = jax.vmap(pull_back)(rows)  # [code, batch, *shape]: no example depends on another
    return jnp.square(jacobian).sum(axis=(0, *range(2, jacobian.ndim)))


@specs.register
@dataclasses.dataclass(frozen=True)
class ELBO:
    """−log p(x | z) + β · Σ_j KL_j, with z ~ q(z | x) (Kingma & Welling 2014, eq. 7; β: Higgins et al. 2017).

    A KL_j below `free_bits` (nats per latent, by default 0) counts as `free_bits`, so that training lowers it no
    further (Kingma et al. 2016, eq. 15, but per example instead of for the mean of a batch). If the head estimates its
    KL, the KL_j are the terms of that estimate.
    """

    beta: float = 1.0
    free_bits: float = 0.0

    def __post_init__(self) -> None:
        specs.check_not_negative(self, "beta", "free_bits")

    def __call__(self, model: Any, batch: Examples, key: Key[Array, ""]) -> Loss:
        check_probabilistic(model, "ELBO")
        batch = Batch.of(batch)
        params, latent = model(batch, key)
        kl = model.head.kl(latent)
        kl = jnp.where((self.free_bits > 0) & (kl < self.free_bits), self.free_bits, kl)
        return -model.log_likelihood(params, batch) + self.beta * total(kl)


def check_probabilistic(model: Any, what: str) -> None:
    """Raise ConfigError unless the model's head has probabilities q(z | x) and p(z)."""
    if not isinstance(model.head, Probabilistic):
        raise errors.ConfigError(
            f"{what} needs a head with probabilities, such as Variational (`presets.variational()`); the head "
            f"{_name(model.head)} gives no q(z | x)."
        )


@specs.register
@dataclasses.dataclass(frozen=True)
class ImportanceWeighted:
    """−log 1/K Σ_k p(x, z_k) / q(z_k | x), with z_k ~ q(z | x) and K = `samples` (Burda et al. 2016, eq. 8).

    The encoder's gradient is the doubly reparameterised one (IWAE-DReG, Tucker et al. 2019), which has the same mean
    and less variance; see `log_weights`.
    """

    samples: int = 5

    def __post_init__(self) -> None:
        specs.check_sizes(self, "samples")

    def __call__(self, model: Any, batch: Examples, key: Key[Array, ""]) -> Loss:
        check_probabilistic(model, "ImportanceWeighted")
        batch = Batch.of(batch)
        corruption_key, key = jax.random.split(key)
        weights = log_weights(model, model.corrupt(batch.x, corruption_key), batch, key, self.samples)
        return math.log(self.samples) - jax.nn.logsumexp(weights, axis=0)


def log_weights(
    model: Any, seen: Float[Array, " batch *shape"], batch: Batch, key: Key[Array, ""], samples: int
) -> Float[Array, "samples batch"]:
    """log p(x, z) / q(z | seen) at `samples` draws of z from q for each example; nats.

    The gradient is right for the log of the mean weight only. The encoder's gradient flows through z alone, and each
    draw's is multiplied once more by its normalised weight. In expectation this replaces the gradient through the
    density q (Tucker et al. 2019).
    """
    encoder_key, sample_key, decoder_key = jax.random.split(key, 3)
    latent = model.head(model.features(seen, encoder_key, batch.condition))
    draw = jax.vmap(lambda key: model.head.draw(latent, key))
    z, zero = _shared_out(draw(jax.random.split(sample_key, samples)))
    graphdef, state = nnx.split(model.head)
    head = nnx.merge(graphdef, lax.stop_gradient(state))  # weights of q get a gradient through z only
    fixed = lax.stop_gradient(latent)

    def log_weight(z: PyTree[Array], key: Key[Array, ""]) -> Loss:
        params = model.params(z, key, batch.condition, like=seen)
        return model.log_likelihood(params, batch) + model.head.log_prior(z) - head.log_q(fixed, z)

    return jax.vmap(log_weight)(z, jax.random.split(decoder_key, samples)) + zero


@jax.custom_vjp
def _shared_out(z: PyTree[Array]) -> tuple[PyTree[Array], Float[Array, "samples batch"]]:
    """z, and zeros to add to the log weights. z's gradient is multiplied by each draw's normalised weight.

    The zeros have the same gradient as the log weights they are added to. For the log of the mean weight, that gradient
    is proportional to the normalised weights, so a draw's share of the zeros' gradient is its normalised weight.
    """
    first = jax.tree.leaves(z)[0]
    return z, jnp.zeros(first.shape[:2], first.dtype)


def _shared_out_forward(z: PyTree[Array]) -> tuple[tuple[PyTree[Array], Array], None]:
    return _shared_out(z), None


def _shared_out_backward(_: None, gradients: tuple[PyTree[Array], Array]) -> tuple[PyTree[Array]]:
    of_z, of_zeros = gradients
    all_draws = of_zeros.sum(axis=0, keepdims=True)
    share = of_zeros / jnp.where(all_draws == 0, jnp.ones_like(all_draws), all_draws)
    return (jax.tree.map(lambda leaf: leaf * share.reshape(*share.shape, *[1] * (leaf.ndim - 2)), of_z),)


_shared_out.defvjp(_shared_out_forward, _shared_out_backward)


@specs.register
@dataclasses.dataclass(frozen=True)
class VectorQuantization:
    """−log p(x | z) + ‖sg[h] − e‖² + commitment · ‖h − sg[e]‖², e nearest h (van den Oord et al. 2017, eq. 3).

    h is the quantiser's input, e the nearest vectors of the codebook, and sg stops the gradient.
    """

    commitment: float = 0.25

    def __post_init__(self) -> None:
        specs.check_not_negative(self, "commitment")

    def __call__(self, model: Any, batch: Examples, key: Key[Array, ""]) -> Loss:
        if not isinstance(model.head, VectorQuantizerHead):
            raise errors.ConfigError(
                f"The objective VectorQuantization needs the head VectorQuantizer; the head is a {_name(model.head)}."
            )
        batch = Batch.of(batch)
        params, latent = model(batch, key)
        h, e, sg = latent.mean, model.head.lookup(latent.codes), lax.stop_gradient
        codebook, commitment = total(jnp.square(sg(h) - e)), total(jnp.square(h - sg(e)))
        return -model.log_likelihood(params, batch) + codebook + self.commitment * commitment


@specs.register
@dataclasses.dataclass(frozen=True)
class Binarised:
    """`objective` of binarised x: each pixel is drawn as 0 or 1 at every pass, with its grey level as the probability.

    This is dynamic binarisation (Burda et al. 2016). For binary x, a Bernoulli likelihood is a true probability.
    """

    objective: Objective = negative_log_likelihood

    def __call__(self, model: Any, batch: Examples, key: Key[Array, ""]) -> Any:
        if model.likelihood.support != (0.0, 1.0):
            raise errors.ConfigError("Binarised values are 0 or 1: they need the Bernoulli likelihood.")
        binary_key, key = jax.random.split(key)
        x = jax.random.bernoulli(binary_key, Batch.of(batch).x).astype(jnp.float32)
        return self.objective(model, replaced(batch, x), key)


@specs.register
@dataclasses.dataclass(frozen=True)
class KeepNeighbours:
    """−log p(x | z) / values + pull · InfoNCE: a code that keeps neighbours, and a decoder that reads it.

    The batch holds a `neighbour` of each x (see `maps.batches`). With q = 1 / (1 + ‖z − z'‖²), an example's contrast is
    −log q(neighbour) / (q(neighbour) + Σ q(others)), over the other examples of the batch and their neighbours
    (InfoNC-t-SNE, Damrich et al. 2023, eq. 6). The reconstruction trains the decoder, and not the encoder.
    """

    pull: float = 1.0

    def __post_init__(self) -> None:
        specs.check_not_negative(self, "pull")

    def __call__(self, model: Any, batch: Any, key: Key[Array, ""]) -> tuple[Loss, dict[str, Loss]]:
        if not isinstance(batch, Mapping) or "neighbour" not in batch:
            raise errors.DataError(
                "The objective KeepNeighbours needs a neighbour of each example: `maps.fit` and --exp reduce give it."
            )
        x, neighbour = jnp.asarray(batch["x"]), jnp.asarray(batch["neighbour"])
        corruption_key, key = jax.random.split(key)
        both = jnp.concatenate([x, neighbour])
        z = model.encode(model.corrupt(both, corruption_key)).reshape(len(both), -1)
        contrast = info_nce(z[: len(x)], z[len(x) :])
        params = model.params(lax.stop_gradient(z[: len(x)]), key, like=x)
        loss = -model.log_likelihood(params, Batch(x)) / x[0].size
        return loss + self.pull * contrast, {"contrast": contrast}


def info_nce(z: Float[Array, "batch latent"], neighbour: Float[Array, "batch latent"]) -> Loss:
    """−log q(neighbour) / (q(neighbour) + Σ q(others)) of each z, with q = 1 / (1 + distance²); nats."""
    others = jnp.concatenate([z, neighbour])
    square = jnp.square(z).sum(-1)[:, None] + jnp.square(others).sum(-1)[None] - 2 * z @ others.T
    log_q = -jnp.log1p(jnp.maximum(square, 0))
    itself = jnp.arange(len(z))[:, None] == jnp.arange(len(others))[None]
    close = -jnp.log1p(jnp.square(z - neighbour).sum(-1))
    return jax.nn.logsumexp(log_q, axis=1, where=~itself) - close


@specs.register
@dataclasses.dataclass(frozen=True)
class DecodePlaces:
    """−log p(x | z) / values, with z the `place` of each x in the batch: a decoder for codes that are there already."""

    def __call__(self, model: Any, batch: Any, key: Key[Array, ""]) -> Loss:
        if not isinstance(batch, Mapping) or "place" not in batch:
            raise errors.DataError(
                "The objective DecodePlaces needs the place of each example: `maps.fit` and --exp reduce give it."
            )
        x = jnp.asarray(batch["x"])
        return -model.log_likelihood(model.params(jnp.asarray(batch["place"]), key, like=x), Batch(x)) / x[0].size


@specs.register
@dataclasses.dataclass(frozen=True)
class KeepCosines:
    """(cos(z, z') − cos(x, x'))² for a near x', and its mean over all others x' of the batch: codes as similar as x.

    The batch holds a `neighbour` of each x (see `maps.batches`). Added is weight · ‖x̂ − x‖² / ‖x‖².
    """

    weight: float = 0.1

    def __post_init__(self) -> None:
        specs.check_not_negative(self, "weight")

    def __call__(self, model: Any, batch: Any, key: Key[Array, ""]) -> Loss:
        if not isinstance(batch, Mapping) or "neighbour" not in batch:
            raise errors.DataError(
                "The objective KeepCosines needs a neighbour of each example: `maps.batches` has it."
            )
        x, near = jnp.asarray(batch["x"]), jnp.asarray(batch["neighbour"])
        z, near_z = model.encode(x), model.encode(near)
        lost = total(jnp.square(model.decode(z) - x)) / (total(jnp.square(x)) + MIN_VARIANCE)
        of_near = jnp.square(cosine(z, near_z) - cosine(x, near))
        return of_near + jnp.square(_cosines(z) - _cosines(x)).mean(axis=1) + self.weight * lost


def _cosines(x: Float[Array, " batch *shape"]) -> Float[Array, "batch batch"]:
    """Of each example with each other."""
    flat = x.reshape(len(x), -1)
    unit = flat * lax.rsqrt(jnp.maximum(jnp.square(flat).sum(axis=1, keepdims=True), 1e-12))
    return unit @ unit.T


@specs.register
@dataclasses.dataclass(frozen=True)
class Trimmed:
    """`objective` without the worst-fitting `fraction` of each batch, whose loss is set to 0.

    It is for data with some anomalies in them, which the model would otherwise learn too (trimmed least squares,
    Rousseeuw 1984). The loss of the other examples is scaled up, so that the mean over the batch is their mean.
    """

    objective: Objective = negative_log_likelihood
    fraction: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.fraction < 1:
            raise errors.ConfigError(f"Trimmed.fraction is {self.fraction}; it has to be at least 0 and below 1.")

    def __call__(self, model: Any, batch: Examples, key: Key[Array, ""]) -> Loss:
        loss, _ = with_metrics(self.objective(model, batch, key))
        most = len(loss) - 1
        left_out = jnp.ceil(jnp.float32(self.fraction) * most - 1e-4).astype(jnp.int32)  # less what rounding may add
        kept = loss <= jnp.sort(lax.stop_gradient(loss))[most - left_out]
        return jnp.where(kept, loss, 0.0) / kept.mean()


def with_metrics(returned: Any) -> tuple[Array, dict[str, Array]]:
    """The loss and the metrics from what an objective returned: a loss, or `(loss, metrics)`."""
    loss, metrics = returned if isinstance(returned, tuple) else (returned, {})
    return loss, dict(metrics)


def _mean_square(x: Float[Array, " batch *shape"]) -> Loss:
    return jnp.square(x).reshape(len(x), -1).mean(axis=-1)


def _name(part: Any) -> str:
    return "none" if part is None else getattr(part, "__name__", type(part).__name__)


@specs.register
@dataclasses.dataclass(frozen=True)
class CompressedSpectrum:
    """The error of a short-time spectrum, [batch, frames, 2 × bins], as it is heard, and the energy that is wrong.

    Magnitudes are raised to `power`, which makes quiet parts count nearly as loud ones do (Braun & Tashev 2021):
    the mean squared error of those, and of the compressed complex values. To that `distortion` adds the log ratio of
    error to signal, the negative SI-SDR in units of 10 dB, by which loud parts are right in phase too.
    """

    power: float = 0.3
    complex_part: float = 0.3
    distortion: float = 0.02

    def __call__(self, model: Any, batch: Examples, key: Key[Array, ""]) -> Loss:
        batch = Batch.of(batch)
        made, wanted = model(batch, key).params, jnp.asarray(batch.wanted)
        made_magnitude, made_compressed = self._compressed(made)
        magnitude, compressed = self._compressed(wanted)
        loss = (1 - self.complex_part) * _mean_square(made_magnitude - magnitude)
        loss = loss + self.complex_part * 2 * _mean_square(made_compressed - compressed)
        energy = jnp.sum(jnp.square(wanted), axis=(1, 2)) + 1e-6
        share = jnp.sum(made * wanted, axis=(1, 2)) / energy
        right = jnp.square(share) * energy
        wrong = jnp.sum(jnp.square(made - share[:, None, None] * wanted), axis=(1, 2))
        return loss + self.distortion * (jnp.log10(wrong + 1e-6) - jnp.log10(right + 1e-6))

    def _compressed(self, x: Array) -> tuple[Array, Array]:
        real, imaginary = jnp.split(x, 2, axis=-1)
        square = jnp.square(real) + jnp.square(imaginary) + 1e-6
        factor = square ** ((self.power - 1) / 2)
        return square ** (self.power / 2), jnp.concatenate([factor * real, factor * imaginary], axis=-1)
