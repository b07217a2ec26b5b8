"""Heads: from an encoder's features to the code.

A head's spec makes a module `(features, key) -> Latent` for features of a given shape: [batch, features], a grid
[batch, height, width, features], or a sequence. Stock heads act on the last axis. Without a key the module is
deterministic: the codes that `encode` returns are never samples.

A head with probabilities also has `draw`, `log_q`, `log_prior`, `kl` and `sample`. The ELBO, importance weights and the
density use only these, so that your own posterior or prior is right in all of them.
"""

import dataclasses
import itertools
import math
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt

from flaxae import errors, specs
from flaxae.likelihoods import total
from flaxae.nn import conv, layers
from flaxae.nn.mlp import MLP, Stack
from flaxae.nn.priors import NormalMixture, Prior, StandardNormal, StandardNormalDensity

LOGVAR_BOUND = 10.0
STANDARD_NORMAL = StandardNormal()
MIXTURE = NormalMixture(100)

Features = Float[Array, " batch *features"]
Shape = tuple[int, ...]


class Latent(NamedTuple):
    """What a stock head returns. `z` goes to the decoder; your own head may return any named tuple that has a `z`."""

    z: PyTree[Array]  # [batch, *code], or a tree of such arrays
    mean: Any = None  # [batch, *code], of q(z | x); for a quantiser, its input
    logvar: Any = None  # [batch, *code], of q(z | x)
    codes: Int[Array, " batch *groups"] | None = None  # indices into the codebook


@runtime_checkable
class Head(Protocol):
    """The spec of a head."""

    def make(self, features: Any, *, rngs: nnx.Rngs) -> Any:
        """The module for features of that shape (no batch axis), or of a tree of shapes."""
        ...


@runtime_checkable
class Probabilistic(Protocol):
    """A head's module with probabilities q(z | x) and p(z); all in nats per example."""

    def draw(self, latent: Any, key: Key[Array, ""]) -> PyTree[Array]:
        """A reparameterised draw z ~ q(z | x): gradients pass through it."""
        ...

    def log_q(self, latent: Any, z: PyTree[Array]) -> Float[Array, " batch"]:
        """log q(z | x)."""
        ...

    def log_prior(self, z: PyTree[Array]) -> Float[Array, " batch"]:
        """log p(z)."""
        ...

    def kl(self, latent: Any) -> Float[Array, " batch *code"]:
        """Terms of KL(q ‖ p), or of an estimate at `latent.z`. The KL is their sum over all axes but the first."""
        ...

    def sample(self, n: int, key: Key[Array, ""]) -> PyTree[Array]:
        """n draws from p(z)."""
        ...


@specs.register
@dataclasses.dataclass(frozen=True)
class Deterministic:
    """z = W h + b, without an activation: a linear bottleneck loses the least (Hinton & Salakhutdinov 2006)."""

    latent: int = 32

    def __post_init__(self) -> None:
        specs.check_sizes(self, "latent")

    def make(self, features: Shape, *, rngs: nnx.Rngs) -> "LinearHead":
        return LinearHead(features, self.latent, "identity", rngs=rngs)


@specs.register
@dataclasses.dataclass(frozen=True)
class Sparse:
    """z = activation(W h + b): units that can be off, for an objective that wants most of them off.

    "relu" gives exact zeros, for an L1 penalty; "sigmoid" gives rates in (0, 1), for a penalty on their mean (Ng 2011).
    """

    latent: int = 256
    activation: str = "relu"

    def __post_init__(self) -> None:
        specs.check_sizes(self, "latent")
        layers.activation(self.activation)

    def make(self, features: Shape, *, rngs: nnx.Rngs) -> "LinearHead":
        return LinearHead(features, self.latent, self.activation, rngs=rngs)


class LinearHead(nnx.Module):
    def __init__(self, features: Shape, latent: int, activation: str, *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(features[-1], latent, rngs=rngs)
        self.activation = layers.activation(activation)

    def __call__(self, features: Features, key: Key[Array, ""] | None = None) -> Latent:
        return Latent(z=self.activation(self.linear(features)))

    def nearest(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        """The code that the head can give nearest to z: above 0 for "relu", in [0, 1] for "sigmoid"."""
        if self.activation.name == "relu":
            return jnp.maximum(z, 0)
        return jnp.clip(z, 0, 1) if self.activation.name == "sigmoid" else z


@specs.register
@dataclasses.dataclass(frozen=True)
class Identity:
    """z = h: the encoder's features unchanged, an array or any tree of arrays (such as those of a U-Net)."""

    def make(self, features: Any, *, rngs: nnx.Rngs) -> "IdentityHead":
        return IdentityHead()


class IdentityHead(nnx.Module):
    def __call__(self, features: PyTree[Array], key: Key[Array, ""] | None = None) -> Latent:
        return Latent(z=features)


@specs.register
@dataclasses.dataclass(frozen=True)
class TopK:
    """z = W h + b, with all but the `active` numbers of largest absolute value set to 0. Ties are all kept.

    In a grid this is done at each place. Makhzani & Frey (2014) keep the largest values instead of the largest absolute
    values; in a wide code, most units are then never active.

    Raises:
        ConfigError: `active` is not between 1 and `latent`.
    """

    latent: int = 256
    active: int = 8

    def __post_init__(self) -> None:
        specs.check_sizes(self, "latent", "active")
        if self.active > self.latent:
            raise errors.ConfigError(
                f"TopK.active is {self.active}; of a code of {self.latent} it has to be between 1 and {self.latent}."
            )

    def make(self, features: Shape, *, rngs: nnx.Rngs) -> "TopKHead":
        return TopKHead(self, features, rngs=rngs)


class TopKHead(nnx.Module):
    def __init__(self, spec: TopK, features: Shape, *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(features[-1], spec.latent, rngs=rngs)
        self.active = spec.active

    def __call__(self, features: Features, key: Key[Array, ""] | None = None) -> Latent:
        return Latent(z=self.nearest(self.linear(features)))

    def nearest(self, z: Float[Array, "*batch latent"]) -> Float[Array, "*batch latent"]:
        """The code that the head can give nearest to z."""
        return jnp.where(among_largest(jnp.abs(z), self.active), z, jnp.zeros((), z.dtype))


def among_largest(x: Float[Array, "*batch n"], k: int) -> Bool[Array, "*batch n"]:
    """Which numbers of a row are at least the k-th largest of the row.

    The k-th largest is found bit by bit, from the highest bit, by counting. On a CPU this is far faster than
    `lax.top_k`, which sorts.
    """
    if conv.is_portable():
        return x >= lax.top_k(x, k)[0][..., -1:]
    bits = lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    rank = jnp.where(bits >> 31, ~bits, bits | jnp.uint32(1 << 31))  # unsigned integers in the order of x

    def next_bit(i: Int[Array, ""], found: UInt[Array, "*batch 1"]) -> UInt[Array, "*batch 1"]:
        larger = found | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
        return jnp.where(jnp.sum(rank >= larger, axis=-1, keepdims=True) >= k, larger, found)

    return rank >= lax.fori_loop(0, 32, next_bit, jnp.zeros((*x.shape[:-1], 1), jnp.uint32))


@specs.register
@dataclasses.dataclass(frozen=True)
class Variational:
    """q(z | x) = N(mean, exp(logvar)) (Kingma & Welling 2014). With a key, z is a sample; without one, the mean.

    `logvar` is bounded smoothly to ±`LOGVAR_BOUND`, so that its exp never overflows. For a prior other than the
    standard normal, the KL is estimated at the sample, as one number per example.

    Args:
        latent: how many numbers the code has, or has at each place of a grid.
        prior: p(z), which may have weights to train.
    """

    latent: int = 32
    prior: Prior = STANDARD_NORMAL

    def __post_init__(self) -> None:
        specs.check_sizes(self, "latent")
        if not isinstance(self.prior, Prior):
            raise errors.ConfigError(
                f"Variational.prior is {self.prior!r}; expected a prior, such as StandardNormal()."
            )

    def make(self, features: Shape, *, rngs: nnx.Rngs) -> "VariationalHead":
        return VariationalHead(self, features, rngs=rngs)


class VariationalHead(nnx.Module):
    def __init__(self, spec: Variational, features: Shape, *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(features[-1], 2 * spec.latent, rngs=rngs)
        self.prior = spec.prior.make((*features[:-1], spec.latent), rngs=rngs)

    def __call__(self, features: Features, key: Key[Array, ""] | None = None) -> Latent:
        mean, logvar = mean_and_logvar(self.linear(features))
        latent = Latent(z=mean, mean=mean, logvar=logvar)
        return latent if key is None else latent._replace(z=self.draw(latent, key))

    def draw(self, latent: Latent, key: Key[Array, ""]) -> Float[Array, " batch *code"]:
        return latent.mean + jnp.exp(0.5 * latent.logvar) * jax.random.normal(key, latent.mean.shape)

    def log_q(self, latent: Latent, z: Float[Array, "..."]) -> Float[Array, " batch"]:
        return log_normal(z, latent.mean, latent.logvar)

    def log_prior(self, z: Float[Array, " batch *code"]) -> Float[Array, " batch"]:
        return self.prior.log_prob(z)

    def kl(self, latent: Latent) -> Float[Array, " batch *code"]:
        own = VariationalHead
        exact = isinstance(self.prior, StandardNormalDensity)
        if exact and (type(self).log_q, type(self).log_prior) == (own.log_q, own.log_prior):
            return kl_to_standard_normal(latent.mean, latent.logvar)
        return self.log_q(latent, latent.z) - self.log_prior(latent.z)

    def sample(self, n: int, key: Key[Array, ""]) -> Float[Array, " n *code"]:
        return self.prior.sample(n, key)


def mean_and_logvar(both: Float[Array, "*batch double"]) -> tuple[Array, Array]:
    """The two halves of the last axis; the second is bounded smoothly to ±`LOGVAR_BOUND`."""
    mean, unbounded = jnp.split(both, 2, axis=-1)
    return mean, LOGVAR_BOUND * jnp.tanh(unbounded / LOGVAR_BOUND)


def log_normal(z: Float[Array, "..."], mean: Float[Array, "..."], logvar: Float[Array, "..."]) -> Float[Array, " _"]:
    """log N(z; mean, exp(logvar)) of each example; nats. [batch, *code], or [1, *code], each -> [batch]."""
    return total(-0.5 * (jnp.square(z - mean) * jnp.exp(-logvar) + logvar) - 0.5 * math.log(2 * math.pi))


def kl_to_standard_normal(
    mean: Float[Array, "*batch latent"], logvar: Float[Array, "*batch latent"]
) -> Float[Array, "*batch latent"]:
    """KL(N(mean, exp(logvar)) ‖ N(0, 1)) of each latent, to sum per example; nats (Kingma & Welling 2014, B)."""
    return 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)


def kl_of_normals(
    mean: Float[Array, "*batch latent"],
    logvar: Float[Array, "*batch latent"],
    prior_mean: Float[Array, "*batch latent"],
    prior_logvar: Float[Array, "*batch latent"],
) -> Float[Array, "*batch latent"]:
    """KL(N(mean, exp(logvar)) ‖ N(prior_mean, exp(prior_logvar))) of each latent, to sum per example; nats."""
    return kl_to_standard_normal((mean - prior_mean) * jnp.exp(-0.5 * prior_logvar), logvar - prior_logvar)


@specs.register
@dataclasses.dataclass(frozen=True)
class Hierarchical:
    """Levels of latents, each under a prior that is learned from those above it: z = (z_L, …, z_1), the top first.

    p(z) = p(z_L) Π p(z_l | z_L … z_{l+1}) and q(z | x) = q(z_L | x) Π q(z_l | z_L … z_{l+1}, x), all normal but p(z_L)
    (Tomczak & Welling 2018, section 4, for two levels). With a key, z is a sample, drawn from the top down; without
    one, it is the mean at each level, given the means above it.

    Each level has about half as many latents as the one below it (Sønderby et al. 2016): a wide top would tell all by
    itself. The decoder is given the levels side by side, as one code, so that any body will do. In a grid, all of this
    is done at each place.

    Args:
        latent: how many numbers the code has (at each place of a grid), all levels together.
        levels: how many; 1 is `Variational` behind further hidden layers.
        hidden: units of the hidden layers of every q and every p.
        activation: of those.
        prior: p(z_L), which may have weights to train.

    Raises:
        ConfigError: `latent` is too small for so many levels.
    """

    latent: int = 60
    levels: int = 2
    hidden: tuple[int, ...] = (300,)
    activation: str = "relu"
    prior: Prior = MIXTURE

    def __post_init__(self) -> None:
        specs.check_sizes(self, "latent", "levels", "hidden")
        layers.activation(self.activation)
        if self.latent < 2**self.levels - 1:
            raise errors.ConfigError(
                f"Hierarchical.latent is {self.latent}; {self.levels} levels, each twice as wide as the one above it, "
                f"need {2**self.levels - 1} or more."
            )
        if not isinstance(self.prior, Prior):
            raise errors.ConfigError(
                f"Hierarchical.prior is {self.prior!r}; expected a prior, such as NormalMixture()."
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many latents each level has, the top first."""
        ends = [self.latent * (2**level - 1) // (2**self.levels - 1) for level in range(self.levels + 1)]
        return tuple(end - start for start, end in itertools.pairwise(ends))

    def make(self, features: Shape, *, rngs: nnx.Rngs) -> "HierarchicalHead":
        return HierarchicalHead(self, features, rngs=rngs)


class Levels(NamedTuple):
    """What the head `Hierarchical` returns. Mean and log variance are [batch, *level] each."""

    z: Float[Array, " batch *code"]  # the levels side by side, the top first
    q: tuple[tuple[Array, Array], ...]  # mean and log variance of each level, given z above it
    p: tuple[tuple[Array, Array], ...]  # likewise, of the prior of each level below the top
    features: Features


class HierarchicalHead(nnx.Module):
    def __init__(self, spec: Hierarchical, features: Shape, *, rngs: nnx.Rngs):
        network = MLP(spec.hidden, spec.activation)
        self.ends = tuple(itertools.accumulate(spec.sizes))  # of the levels in z
        self.stack = Stack((features[-1], *spec.hidden), network, rngs=rngs)
        inner = (*features[:-1], (features[-1], *spec.hidden)[-1])
        self.top = VariationalHead(Variational(spec.sizes[0], spec.prior), inner, rngs=rngs)
        below = [*zip(self.ends, spec.sizes[1:], strict=False)]
        self.priors = nnx.List([Conditional(above, own, network, rngs=rngs) for above, own in below])
        self.posteriors = nnx.List([Conditional(features[-1] + above, own, network, rngs=rngs) for above, own in below])

    def __call__(self, features: Features, key: Key[Array, ""] | None = None) -> Levels:
        keys = [None] * len(self.ends) if key is None else jax.random.split(key, len(self.ends))
        top = self.top(self.stack(features), keys[0])
        z, q, p = top.z, [(top.mean, top.logvar)], []
        for prior, posterior, key in zip(self.priors, self.posteriors, keys[1:], strict=True):
            q.append(posterior(jnp.concatenate([features, z], axis=-1)))
            p.append(prior(z))
            mean, logvar = q[-1]
            own = mean if key is None else mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
            z = jnp.concatenate([z, own], axis=-1)
        return Levels(z, tuple(q), tuple(p), features)

    def draw(self, latent: Levels, key: Key[Array, ""]) -> Float[Array, " batch *code"]:
        return self(latent.features, key).z

    def log_q(self, latent: Levels, z: Float[Array, " batch *code"]) -> Float[Array, " batch"]:
        top, *below = self._levels(z)
        log_q = self.top.log_q(self.top(self.stack(latent.features)), top)
        for i, own in enumerate(below):
            told = jnp.concatenate([latent.features, z[..., : self.ends[i]]], axis=-1)
            log_q += log_normal(own, *self.posteriors[i](told))
        return log_q

    def log_prior(self, z: Float[Array, " batch *code"]) -> Float[Array, " batch"]:
        top, *below = self._levels(z)
        log_p = self.top.log_prior(top)
        for i, own in enumerate(below):
            log_p += log_normal(own, *self.priors[i](z[..., : self.ends[i]]))
        return log_p

    def kl(self, latent: Levels) -> Float[Array, " batch levels"]:
        """The KL of each level, the top first, given the z above it; below the top it is exact."""
        top = self.top.kl(Latent(self._levels(latent.z)[0], *latent.q[0]))
        below = [kl_of_normals(*q, *p) for q, p in zip(latent.q[1:], latent.p, strict=True)]
        return jnp.stack([total(each) for each in (top, *below)], axis=-1)

    def sample(self, n: int, key: Key[Array, ""]) -> Float[Array, " n *code"]:
        keys = jax.random.split(key, len(self.ends))
        z = self.top.sample(n, keys[0])
        for prior, own in zip(self.priors, keys[1:], strict=True):
            mean, logvar = prior(z)
            z = jnp.concatenate([z, mean + jnp.exp(0.5 * logvar) * jax.random.normal(own, mean.shape)], axis=-1)
        return z

    def _levels(self, x: Float[Array, " batch *code"]) -> list[Array]:
        """What of it belongs to each level, the top first."""
        return jnp.split(x, self.ends[:-1], axis=-1)


class Conditional(nnx.Module):
    """A normal distribution, given some numbers. [*batch, inputs] -> mean and log variance, [*batch, outputs] each."""

    def __init__(self, inputs: int, outputs: int, network: MLP, *, rngs: nnx.Rngs):
        sizes = (inputs, *network.hidden)
        self.stack = Stack(sizes, network, rngs=rngs)
        self.linear = nnx.Linear(sizes[-1], 2 * outputs, rngs=rngs)

    def __call__(self, x: Float[Array, "*batch inputs"]) -> tuple[Array, Array]:
        return mean_and_logvar(self.linear(self.stack(x)))


@specs.register
@dataclasses.dataclass(frozen=True)
class VectorQuantizer:
    """Each group of `width` numbers of W h + b becomes the nearest vector of its codebook (van den Oord et al. 2017).

    A code is `latent / width` indices of log2(`codebook`) bits, or as many at each place of a grid, where all places
    share the codebooks. The gradient is the straight-through estimate.

    Raises:
        ConfigError: `width` doesn't divide `latent`, or the codebook has fewer than 2 vectors.
    """

    latent: int = 64
    codebook: int = 128
    width: int = 4

    def __post_init__(self) -> None:
        specs.check_sizes(self, "latent", "codebook", "width")
        if self.latent % self.width:
            raise errors.ConfigError(
                f"VectorQuantizer.width is {self.width}; it has to divide the code's {self.latent} numbers into groups."
            )
        if self.codebook < 2:
            raise errors.ConfigError(f"VectorQuantizer.codebook is {self.codebook}; it has to have at least 2 vectors.")

    def make(self, features: Shape, *, rngs: nnx.Rngs) -> "VectorQuantizerHead":
        return VectorQuantizerHead(self, features, rngs=rngs)


class VectorQuantizerHead(nnx.Module):
    def __init__(self, spec: VectorQuantizer, features: Shape, *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(features[-1], spec.latent, rngs=rngs)
        size = (spec.latent // spec.width, spec.codebook, spec.width)
        self.codebook = nnx.Param(0.5 * jax.random.normal(rngs.params(), size))

    def __call__(self, features: Features, key: Key[Array, ""] | None = None) -> Latent:
        mean = self.linear(features)
        codes = self.indices(lax.stop_gradient(mean))
        z = mean + lax.stop_gradient(self.lookup(codes) - mean)
        return Latent(z=z, mean=mean, codes=codes)

    def indices(self, z: Float[Array, "*batch latent"]) -> Int[Array, "*batch groups"]:
        """The indices of the codebook vectors nearest to z."""
        vectors = lax.stop_gradient(self.codebook[...])
        groups = z.reshape(*z.shape[:-1], len(vectors), -1)
        # ‖g − e‖² without ‖g‖², which is the same for all vectors
        products = jnp.einsum("...gw,gkw->...gk", groups, vectors)
        size = jnp.broadcast_to(jnp.square(vectors).sum(-1), products.shape)
        return jnp.argmin(size - 2 * products, axis=-1)

    def nearest(self, z: Float[Array, "*batch latent"]) -> Float[Array, "*batch latent"]:
        """The code that the head can give nearest to z."""
        return self.lookup(self.indices(z))

    def lookup(self, codes: Int[Array, "*batch groups"]) -> Float[Array, "*batch latent"]:
        """The codebook vectors at those indices, concatenated."""
        vectors = self.codebook[...]
        return vectors[jnp.arange(len(vectors)), codes].reshape(*codes.shape[:-1], -1)
