"""The five parts put together: corruption, encoder, head, decoder, likelihood.

`Autoencoder` takes any five; `Config` and `build` make the stock ones from plain values that fit in a JSON file.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from flaxae import compilation, corruptions, errors, objectives
from flaxae.corruptions import Corruption
from flaxae.likelihoods import Bernoulli, DiscretizedLogistic, Gaussian, Likelihood
from flaxae.nn import heads
from flaxae.nn.convnet import ConvNet
from flaxae.nn.heads import Latent
from flaxae.nn.layers import check_sizes
from flaxae.nn.mixer import Mixer
from flaxae.nn.mlp import MLP
from flaxae.nn.recognizer import Recognizer
from flaxae.objectives import Binarised, ImportanceWeighted, Objective


class Hyper(nnx.Variable):
    """A scalar that a run is trained under, not trained itself: noise level, β, the weight of a penalty."""


class Output(NamedTuple):
    """A forward pass: the likelihood's parameters, [batch, *shape], and what the head returned."""

    params: Float[Array, " batch *shape"]
    latent: Latent


class Autoencoder(nnx.Module):
    """x ── corruption ─▶ x̃ ── encoder ─▶ h ── head ─▶ latent ── decoder ─▶ params ── likelihood ─▶ x̂.

    Args:
        encoder: module `(x, key) -> features [batch, features]`.
        head: module `(features, key) -> Latent`.
        decoder: module `(z, key) -> params [batch, *shape]`.
        likelihood: of the values, with `log_prob`, `mean` and `sample`.
        corruption: function `(key, x, level) -> x̃`, applied in training alone, at the level `noise`.
        clip: bounds that a corrupted input is clipped to.
        objective: what training minimises, `(model, x, key) -> [batch]`.
        hyper: scalars that the objective reads as `model.hyper.NAME[...]`.
    """

    def __init__(
        self,
        encoder: nnx.Module,
        head: nnx.Module,
        decoder: nnx.Module,
        *,
        likelihood: Likelihood,
        corruption: Corruption | None = None,
        noise: float = 0.0,
        clip: tuple[float, float] | None = None,
        objective: Objective = objectives.negative_log_likelihood,
        hyper: Mapping[str, float] | None = None,
    ):
        self.encoder = encoder
        self.head = head
        self.decoder = decoder
        self.likelihood = likelihood
        self.corruption = corruption
        self.clip = clip
        self.objective = objective
        scalars = {"noise": noise, **(hyper or {})}
        self.hyper = nnx.Dict({name: Hyper(jnp.float32(value)) for name, value in scalars.items()})

    def __call__(self, x: Float[Array | np.ndarray, " batch *shape"], key: Key[Array, ""] | None = None) -> Output:
        """With a key a pass of training, with corruption, dropout, sampling; without one the deterministic pass."""
        if key is None:
            return self.forward(x)
        corruption_key, key = jax.random.split(key)
        return self.forward(self.corrupt(x, corruption_key), key)

    def forward(self, seen: Float[Array | np.ndarray, " batch *shape"], key: Key[Array, ""] | None = None) -> Output:
        """The pass after the corruption: encoder, head, decoder."""
        keys = [None] * 3 if key is None else jax.random.split(key, 3)
        latent = self.head(self.encoder(jnp.asarray(seen), keys[0]), keys[1])
        return Output(params=self.decoder(latent.z, keys[2]), latent=latent)

    def corrupt(
        self, x: Float[Array | np.ndarray, " batch *shape"], key: Key[Array, ""], level: Float[Array, ""] | None = None
    ) -> Float[Array, " batch *shape"]:
        """x̃, what the encoder sees of x in training; at another `level` than the model's own, if one is given."""
        x = jnp.asarray(x)
        if self.corruption is None:
            return x
        x = self.corruption(key, x, self.hyper.noise[...] if level is None else level)
        return x if self.clip is None else jnp.clip(x, *self.clip)

    def encode(self, x: Float[Array | np.ndarray, " batch *shape"]) -> Float[Array, " batch latent"]:
        """The deterministic code of x."""
        return self.head(self.encoder(jnp.asarray(x))).z

    def decode(self, z: Float[Array | np.ndarray, " batch latent"]) -> Float[Array, " batch *shape"]:
        """The mean of p(x | z)."""
        return self.likelihood.mean(self.decoder(jnp.asarray(z)))

    def reconstruct(self, x: Float[Array | np.ndarray, " batch *shape"]) -> Float[Array, " batch *shape"]:
        """decode(encode(x)): of a noisy x, the denoised one."""
        return self.decode(self.encode(x))

    def sample(self, n: int, key: Key[Array, ""]) -> Float[Array, " n *shape"]:
        """The means of p(x | z) at n draws of z from the head's prior.

        Raises:
            ConfigError: the head has no prior; `density.Mixture` fits one to the codes.
        """
        if not hasattr(self.head, "sample"):
            raise errors.ConfigError(
                f"The head {type(self.head).__name__} has no prior to sample from. Take the Gaussian head, or fit a "
                "density to the codes: `density.Mixture.fit(codes)`."
            )
        return self.decode(self.head.sample(n, key))


FEW = 10**5  # numbers, which are drawn sooner than a better program to draw them is compiled
BODIES = {"MLP": MLP, "ConvNet": ConvNet, "Mixer": Mixer, "Recognizer": Recognizer}
LIKELIHOODS = {"Bernoulli": Bernoulli, "Gaussian": Gaussian, "DiscretizedLogistic": DiscretizedLogistic}
HEADS: dict[str, Callable[..., nnx.Module]] = {
    "deterministic": lambda config, features, rngs: heads.Deterministic(features, config.latent, rngs=rngs),
    "relu": lambda config, features, rngs: heads.Sparse(features, config.latent, "relu", rngs=rngs),
    "sigmoid": lambda config, features, rngs: heads.Sparse(features, config.latent, "sigmoid", rngs=rngs),
    "top_k": lambda config, features, rngs: heads.TopK(features, config.latent, config.active, rngs=rngs),
    "gaussian": lambda config, features, rngs: heads.Gaussian(features, config.latent, rngs=rngs),
    "vector_quantized": lambda config, features, rngs: heads.VectorQuantized(
        features, config.latent, config.codebook, config.width, rngs=rngs
    ),
}


class Recipe(NamedTuple):
    """How `Config` makes an objective, the scalars that it reads, the heads that it works with (all if none)."""

    make: Callable[["Config"], Objective]
    hyper: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()


OBJECTIVES: dict[str, Recipe] = {
    "likelihood": Recipe(lambda config: objectives.negative_log_likelihood),
    "profile_likelihood": Recipe(lambda config: objectives.profile_likelihood),
    "masked": Recipe(lambda config: objectives.masked),
    "layerwise": Recipe(lambda config: objectives.layerwise, hyper=("layerwise",)),
    "l1_sparse": Recipe(lambda config: objectives.l1_sparse, hyper=("sparsity",)),
    "rate_sparse": Recipe(lambda config: objectives.rate_sparse, hyper=("sparsity", "rate"), heads=("sigmoid",)),
    "contractive": Recipe(lambda config: objectives.contractive, hyper=("contraction",)),
    "elbo": Recipe(lambda config: objectives.negative_elbo, hyper=("beta", "free_bits"), heads=("gaussian",)),
    "importance_weighted": Recipe(lambda config: ImportanceWeighted(config.samples), heads=("gaussian",)),
    "vector_quantized": Recipe(
        lambda config: objectives.vector_quantized, hyper=("commitment",), heads=("vector_quantized",)
    ),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Plain values that an autoencoder of stock parts is built from. `dataclasses.replace` makes variants.

    Args:
        body: encoder and decoder.
        latent: numbers in the code.
        head: a name in `HEADS`; "top_k" keeps `active` numbers of the code, "vector_quantized" takes groups of `width`
            numbers to the nearest of `codebook` vectors.
        likelihood: of the values.
        corruption, noise, clip: a name in `corruptions.CORRUPTIONS` or "none", its level, and bounds after it.
        objective: a name in `OBJECTIVES`. "l1_sparse" and "rate_sparse" weigh their penalty by `sparsity`, and the
            latter aims at a mean activity of `rate`; "layerwise" weighs its hidden layers by `layerwise`; "contractive"
            weighs its penalty by `contraction`; "elbo" its KL by `beta`, with `free_bits` (nats) a latent;
            "importance_weighted" draws `samples`; "vector_quantized" has `commitment`.
        binarise: draw the values, in [0, 1], as 0 or 1 at every pass.
    """

    body: MLP | ConvNet | Mixer | Recognizer = MLP()
    latent: int = 32
    head: str = "deterministic"
    likelihood: Likelihood = Bernoulli()
    corruption: str = "none"
    noise: float = 0.0
    clip: tuple[float, float] | None = None
    objective: str = "likelihood"
    binarise: bool = False
    beta: float = 1.0
    free_bits: float = 0.0
    samples: int = 5
    sparsity: float = 0.0
    rate: float = 0.05
    active: int = 8
    layerwise: float = 0.0
    contraction: float = 0.0
    commitment: float = 0.25
    codebook: int = 128
    width: int = 4

    def __post_init__(self) -> None:
        check_sizes("latent", (self.latent,))
        check_sizes("samples", (self.samples,))
        for what, name, table in (("head", self.head, HEADS), ("objective", self.objective, OBJECTIVES)):
            if name not in table:
                raise errors.ConfigError(errors.unknown(what, name, table))
        suitable = OBJECTIVES[self.objective].heads
        if suitable and self.head not in suitable:
            raise errors.ConfigError(
                f"The objective {self.objective!r} needs the head {suitable[0]!r}; given was {self.head!r}."
            )
        if self.objective == "masked" and self.corruption not in ("masking", "patches"):
            raise errors.ConfigError(
                f"The objective 'masked' needs the corruption 'masking' or 'patches'; given was {self.corruption!r}."
            )
        if self.objective == "layerwise" and not isinstance(self.body, MLP):
            raise errors.ConfigError(
                f"The objective 'layerwise' needs a fully connected body, MLP; given was {type(self.body).__name__}."
            )
        if self.binarise and not isinstance(self.likelihood, Bernoulli):
            raise errors.ConfigError("binarise makes values 0 or 1: it needs the Bernoulli likelihood.")
        corruptions.get(self.corruption)
        for name in ("noise", "beta", "free_bits", "sparsity", "layerwise", "contraction", "commitment"):
            if not getattr(self, name) >= 0:
                raise errors.ConfigError(f"{name} is {getattr(self, name)}; it has to be at least 0.")
        if not 0 < self.rate < 1:
            raise errors.ConfigError(f"rate is {self.rate}; it has to be above 0 and below 1.")
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise errors.ConfigError(f"clip is {self.clip}; it has to be (low, high) with low below high.")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` undoes it."""
        values = dataclasses.asdict(self)
        for part in ("body", "likelihood"):
            values[part] = {"kind": type(getattr(self, part)).__name__, **values[part]}
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Config":
        """Rebuild from JSON, by a fixed table of names, never an import.

        Raises:
            ConfigError: an unknown name or field, or a value out of range.
        """
        values = dict(values)
        for part, table in (("body", BODIES), ("likelihood", LIKELIHOODS)):
            if part in values:
                kind = values[part].get("kind")
                if kind not in table:
                    raise errors.ConfigError(errors.unknown(part, str(kind), table))
                fields = {name: value for name, value in values[part].items() if name != "kind"}
                values[part] = _checked(table[kind], fields)
        return _checked(cls, values)


def build(config: Config, shape: tuple[int, ...], *, seed: int = 0) -> Autoencoder:
    """An autoencoder for examples of that `shape` (no batch axis), initialised from `seed` in one compiled call."""
    key = jax.random.key(seed)
    if isinstance(key, jax.core.Tracer):  # in the midst of another program, which has options of its own
        return _make(config, shape, key)
    graphdef, numbers = _abstract(config, shape)
    draw = _draw_few if numbers < FEW else _draw
    return nnx.merge(graphdef, draw(config, shape, key))


def _make(config: Config, shape: tuple[int, ...], key: Key[Array, ""]) -> Autoencoder:
    rngs = nnx.Rngs(key)
    recipe = OBJECTIVES[config.objective]
    objective = recipe.make(config)
    encoder = config.body.encoder(shape, rngs=rngs)
    return Autoencoder(
        encoder,
        HEADS[config.head](config, encoder.features, rngs),
        config.body.decoder(config.latent, shape, rngs=rngs),
        likelihood=config.likelihood,
        corruption=corruptions.get(config.corruption),
        noise=config.noise,
        clip=config.clip,
        objective=Binarised(objective) if config.binarise else objective,
        hyper={name: getattr(config, name) for name in recipe.hyper},
    )


@functools.cache
def _abstract(config: Config, shape: tuple[int, ...]) -> tuple[nnx.GraphDef, int]:
    """The structure, and how many numbers it holds."""
    graphdef, state = nnx.split(nnx.eval_shape(functools.partial(_make, config, shape), jax.random.key(0)))
    return graphdef, sum(leaf.size for leaf in jax.tree.leaves(state))


def _initial_state(config: Config, shape: tuple[int, ...], key: Key[Array, ""]) -> nnx.State:
    return nnx.state(_make(config, shape, key))


_jit_initial_state = functools.partial(jax.jit, _initial_state, static_argnames=("config", "shape"))
_draw = compilation.with_options(_jit_initial_state, compilation.QUICK)
_draw_few = compilation.with_options(_jit_initial_state, compilation.ONCE)


def _checked(cls: type, values: Mapping[str, Any]) -> Any:
    """A config dataclass from JSON values, each of the type of the field's default."""
    fields = {field.name: field.default for field in dataclasses.fields(cls)}
    for name, value in values.items():
        if name not in fields:
            raise errors.ConfigError(errors.unknown(f"field of {cls.__name__}", name, fields))
        default = fields[name]
        if default is None or dataclasses.is_dataclass(value):  # checked where it was made
            continue
        allowed = {float: (int, float), tuple: (list, tuple)}.get(type(default), type(default))
        if not isinstance(value, allowed) or isinstance(value, bool) != isinstance(default, bool):
            raise errors.ConfigError(f"{cls.__name__}.{name} is {value!r}; expected a value like {default!r}.")
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
