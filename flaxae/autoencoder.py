"""The five parts put together: corruption, encoder, head, decoder, likelihood.

`Autoencoder` takes any five; `Config` and `build` make the stock ones from plain values that fit in a JSON file.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from flaxae import corruptions, errors
from flaxae.corruptions import Corruption
from flaxae.likelihoods import Bernoulli, Gaussian, Likelihood
from flaxae.nn import heads
from flaxae.nn.convnet import ConvNet
from flaxae.nn.heads import Latent
from flaxae.nn.layers import check_sizes
from flaxae.nn.mlp import MLP
from flaxae.objectives import Objective, negative_log_likelihood


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
        objective: Objective = negative_log_likelihood,
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
        keys = [None] * 4 if key is None else jax.random.split(key, 4)
        if key is not None:
            x = self.corrupt(x, keys[0])
        latent = self.head(self.encoder(x, keys[1]), keys[2])
        return Output(params=self.decoder(latent.z, keys[3]), latent=latent)

    def corrupt(
        self, x: Float[Array | np.ndarray, " batch *shape"], key: Key[Array, ""]
    ) -> Float[Array, " batch *shape"]:
        """x̃, what the encoder sees of x in training."""
        x = jnp.asarray(x)
        if self.corruption is None:
            return x
        x = self.corruption(key, x, self.hyper.noise[...])
        return x if self.clip is None else jnp.clip(x, *self.clip)

    def encode(self, x: Float[Array | np.ndarray, " batch *shape"]) -> Float[Array, " batch latent"]:
        """The deterministic code of x."""
        return self.head(self.encoder(x)).z

    def decode(self, z: Float[Array | np.ndarray, " batch latent"]) -> Float[Array, " batch *shape"]:
        """The mean of p(x | z)."""
        return self.likelihood.mean(self.decoder(z))

    def reconstruct(self, x: Float[Array | np.ndarray, " batch *shape"]) -> Float[Array, " batch *shape"]:
        """decode(encode(x)): of a noisy x, the denoised one."""
        return self.decode(self.encode(x))


BODIES = {"MLP": MLP, "ConvNet": ConvNet}
LIKELIHOODS = {"Bernoulli": Bernoulli, "Gaussian": Gaussian}
HEADS = {"deterministic": heads.Deterministic}


@dataclasses.dataclass(frozen=True)
class Config:
    """Plain values that an autoencoder of stock parts is built from. `dataclasses.replace` makes variants."""

    body: MLP | ConvNet = MLP()
    latent: int = 32
    head: str = "deterministic"
    likelihood: Likelihood = Bernoulli()
    corruption: str = "none"
    noise: float = 0.0
    clip: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_sizes("latent", (self.latent,))
        if self.head not in HEADS:
            raise errors.ConfigError(errors.unknown("head", self.head, HEADS))
        corruptions.get(self.corruption)
        if self.noise < 0:
            raise errors.ConfigError(f"noise is {self.noise}; it has to be at least 0.")
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

    def make(key: Key[Array, ""]) -> Autoencoder:
        rngs = nnx.Rngs(key)
        encoder = config.body.encoder(shape, rngs=rngs)
        return Autoencoder(
            encoder,
            HEADS[config.head](encoder.features, config.latent, rngs=rngs),
            config.body.decoder(config.latent, shape, rngs=rngs),
            likelihood=config.likelihood,
            corruption=corruptions.get(config.corruption),
            noise=config.noise,
            clip=config.clip,
        )

    graphdef, _ = nnx.split(nnx.eval_shape(make, jax.random.key(0)))
    state = jax.jit(lambda key: nnx.state(make(key)))(jax.random.key(seed))
    return nnx.merge(graphdef, state)


def _checked(cls: type, values: Mapping[str, Any]) -> Any:
    """A config dataclass from JSON values, each of the type of the field's default."""
    fields = {field.name: field.default for field in dataclasses.fields(cls)}
    for name, value in values.items():
        if name not in fields:
            raise errors.ConfigError(errors.unknown(f"field of {cls.__name__}", name, fields))
        default = fields[name]
        allowed = (int, float) if isinstance(default, float) else list if isinstance(default, tuple) else type(default)
        if default is not None and (
            not isinstance(value, allowed) or (isinstance(value, bool) != isinstance(default, bool))
        ):
            raise errors.ConfigError(f"{cls.__name__}.{name} is {value!r}; expected a value like {default!r}.")
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
