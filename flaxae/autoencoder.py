"""The five parts put together: corruption, encoder, head, decoder, likelihood.

`Autoencoder` takes any five; `Config` and `build` make one from specs (`flaxae.specs`), which fit in a JSON file.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, Float, Key, PyTree, Shaped

from flaxae import errors, first_form, objectives, specs
from flaxae.batches import Batch, Examples
from flaxae.corruptions import Corruption
from flaxae.likelihoods import Bernoulli, Likelihood
from flaxae.nn.bodies import Body
from flaxae.nn.heads import Deterministic, Head
from flaxae.nn.mlp import MLP
from flaxae.objectives import Objective
from flaxae.parallel import compilation, processes

FEW = 10**5  # weights: below this, drawing them takes less time than compiling a faster program for it
SPECS = ("corruption", "objective", "likelihood")  # the parts without weights, which hold the hyper-parameters

EXAMPLES = {
    "body": "MLP((512,))",
    "head": "TopK(latent=256, active=8)",
    "objective": "L1(sparsity=0.1)",
    "corruption": "Masking(level=0.3)",
    "likelihood": "Gaussian()",
}

Condition = Float[Array | np.ndarray, " batch conditions"]


class Hyper(nnx.Variable):
    """A number that is set for the training and not trained itself: a noise level, β, the weight of a penalty."""


class Output(NamedTuple):
    """A forward pass: the likelihood's parameters, [batch, *params], and what the head returned."""

    params: Float[Array, " batch *params"]
    latent: Any


class Autoencoder(nnx.Module):
    """x ── corruption ─▶ x̃ ── encoder ─▶ h ── head ─▶ latent ── decoder ─▶ params ── likelihood ─▶ x̂.

    Every method that takes x also takes a tree of arrays with targets, conditions, weights …: see `flaxae.batches`.

    Args:
        encoder: module `(x, key) -> features`, an array [batch, *features] or a tree of such arrays.
        head: module `(features, key) -> Latent`.
        decoder: module `(z, key) -> params [batch, *params]`.
        likelihood: p(x | z), see `likelihoods.Likelihood`.
        corruption: `(key, x) -> x̃`, applied in training only.
        objective: what training minimises, `(model, batch, key) -> [batch]`.
        conditions: how many numbers the condition of an example has; they are appended to the features and to the code.
            0 for no condition.

    A model that `build` made knows its `config` and the `shape` of its examples.

    `hyper` holds the float fields of corruption, objective and likelihood as arrays: `model.hyper.beta[...]`. Where two
    have the same name, the name of the part comes first: `model.hyper["likelihood.scale"]`.
    """

    config: "Config | None" = None
    shape: tuple[int, ...] | None = None

    def __init__(
        self,
        encoder: Any,
        head: Any,
        decoder: Any,
        *,
        likelihood: Likelihood,
        corruption: Corruption | None = None,
        objective: Objective = objectives.negative_log_likelihood,
        conditions: int = 0,
    ):
        self.encoder = encoder
        self.head = head
        self.decoder = decoder
        self.specs = (corruption, objective, likelihood)
        self.conditions = conditions
        self.paths, values = _hyper(self.specs)
        self.hyper = nnx.Dict({name: Hyper(jnp.float32(value)) for name, value in values.items()})

    @property
    def corruption(self) -> Corruption | None:
        """The corruption with the model's hyper-parameters, as arrays."""
        return self._bound(0)

    @property
    def objective(self) -> Objective:
        """The objective with the model's hyper-parameters, as arrays."""
        return self._bound(1)

    @property
    def likelihood(self) -> Likelihood:
        """The likelihood with the model's hyper-parameters, as arrays."""
        return self._bound(2)

    def _bound(self, part: int) -> Any:
        values = {path: self.hyper[name][...] for name, of, path in self.paths if of == part}
        return specs.bind(self.specs[part], values) if values else self.specs[part]

    def spec(self, name: str) -> Any:
        """The part "corruption", "objective" or "likelihood" with the model's hyper-parameters, as plain numbers."""
        part = SPECS.index(name)
        values = {path: float(self.hyper[name][...]) for name, of, path in self.paths if of == part}
        return specs.bind(self.specs[part], values) if values else self.specs[part]

    def __call__(self, x: Examples, key: Key[Array, ""] | None = None) -> Output:
        """With a key, a training pass with corruption, dropout and sampling; without one, the deterministic pass."""
        batch = Batch.of(x)
        if key is None:
            return self.forward(batch.x, None, batch.condition, batch.observed)
        corruption_key, key = jax.random.split(key)
        return self.forward(self.corrupt(batch.x, corruption_key), key, batch.condition, batch.observed)

    def forward(
        self,
        seen: Shaped[Array | np.ndarray, " batch *shape"],
        key: Key[Array, ""] | None = None,
        condition: Condition | None = None,
        observed: Any = None,
    ) -> Output:
        """The pass after the corruption: encoder, head, decoder."""
        keys = [None] * 3 if key is None else jax.random.split(key, 3)
        seen = jnp.asarray(seen)
        if observed is not None:
            seen = jnp.where(observed, seen, jnp.zeros((), seen.dtype))
        latent = self.head(self.features(seen, keys[0], condition), keys[1])
        return Output(self.params(latent.z, keys[2], condition, like=seen), latent)

    def features(
        self, seen: Array, key: Key[Array, ""] | None = None, condition: Condition | None = None
    ) -> PyTree[Array]:
        """The head's input: the encoder's features, with the condition appended to them."""
        return self._told(self.encoder(seen, key), condition)

    def params(
        self,
        z: PyTree[Array],
        key: Key[Array, ""] | None = None,
        condition: Condition | None = None,
        *,
        like: Array | None = None,
    ) -> Float[Array, " batch *params"]:
        """The likelihood's parameters at z, cropped to the size of the examples `like` if the decoder gives more."""
        params = self.decoder(self._told(z, condition), key)
        if like is not None and params.ndim == like.ndim:
            sizes = zip(params.shape[1:-1], like.shape[1:-1], strict=True)
            if any(made > given for made, given in sizes):
                params = params[:, *(slice(size) for size in like.shape[1:-1])]
        return params

    def _told(self, tree: PyTree[Array], condition: Condition | None) -> PyTree[Array]:
        if not self.conditions:
            if condition is not None:
                raise errors.ConfigError(
                    "A condition is given, and the model was built without: build(config, shape, conditions=…)."
                )
            return tree
        if condition is None or condition.shape[-1] != self.conditions:
            given = "none" if condition is None else f"one of {condition.shape[-1]} numbers"
            raise errors.DataError(
                f"The model is built for examples with a condition of {self.conditions} numbers; given was {given}."
            )

        def tell(leaf: Array) -> Array:
            told = jnp.asarray(condition).reshape(len(leaf), *[1] * (leaf.ndim - 2), -1)
            return jnp.concatenate([leaf, jnp.broadcast_to(told, (*leaf.shape[:-1], self.conditions))], axis=-1)

        return jax.tree.map(tell, tree)

    def corrupt(self, x: Any, key: Key[Array, ""]) -> Array:
        """x̃, the corrupted x that the encoder sees in training."""
        x = jnp.asarray(x)
        return x if self.corruption is None else self.corruption(key, x)

    def log_likelihood(self, params: Float[Array, " batch *params"], batch: Batch) -> Float[Array, " batch"]:
        """log p(target | params) of each example, summed over its observed values; nats. The target is x by default."""
        return self.likelihood.log_prob(params, batch.wanted, where=batch.where)

    def encode(self, x: Examples, condition: Condition | None = None) -> PyTree[Array]:
        """The deterministic code of x: [batch, *code], or a tree of such arrays."""
        batch = Batch.of(x)
        seen = jnp.asarray(batch.x)
        if batch.observed is not None:
            seen = jnp.where(batch.observed, seen, jnp.zeros((), seen.dtype))
        return self.head(self.features(seen, None, batch.condition if condition is None else condition)).z

    def decode(self, z: PyTree[Any], condition: Condition | None = None) -> Float[Array, " batch *shape"]:
        """The mean of p(x | z)."""
        return self.likelihood.mean(self.params(jax.tree.map(jnp.asarray, z), None, condition))

    def reconstruct(self, x: Examples) -> Float[Array, " batch *shape"]:
        """The mean of p(x | z) at the deterministic code of x. For a noisy x, this is the denoised one."""
        batch = Batch.of(x)
        return self.likelihood.mean(self(batch).params, batch.x)

    def sample(self, n: int, key: Key[Array, ""], condition: Condition | None = None) -> Float[Array, " n *shape"]:
        """The means of p(x | z) at n draws of z from the head's prior.

        Raises:
            ConfigError: the head has no prior; `generation.fit` fits one to the codes.
        """
        if not hasattr(self.head, "sample"):
            raise errors.ConfigError(
                f"The head {type(self.head).__name__} has no prior to sample from. Take the head Variational, or fit a "
                "prior to the codes: `generation.fit(model, x)`."
            )
        return self.decode(self.head.sample(n, key), condition)


def own_objective(model: Autoencoder, batch: Examples, key: Key[Array, ""]) -> Any:
    """The model's own objective with its hyper-parameters: what training minimises by default."""
    return model.objective(model, batch, key)


@dataclasses.dataclass(frozen=True, repr=False)
class Config:
    """The five parts of an autoencoder as specs. `dataclasses.replace` makes and crosses variants.

    Args:
        body: encoder and decoder.
        head: from the encoder's features to the code.
        objective: what training minimises.
        corruption: what the model learns to undo; None for none.
        likelihood: p(x | z).

    Raises:
        ConfigError: a part is of the wrong kind.
    """

    body: Body = MLP()
    head: Head = Deterministic()
    objective: Objective = objectives.negative_log_likelihood
    corruption: Corruption | None = None
    likelihood: Likelihood = Bernoulli()

    def __post_init__(self) -> None:
        kinds = {"body": Body, "head": Head, "objective": Objective, "corruption": Corruption, "likelihood": Likelihood}
        for name, kind in kinds.items():
            part = getattr(self, name)
            if (part is None and name == "corruption") or (isinstance(part, kind) and not isinstance(part, type)):
                continue
            raise errors.ConfigError(f"Config.{name} is {part!r}; expected a part, such as {EXAMPLES[name]}.")

    def __repr__(self) -> str:
        parts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        shown = [f"{name}={getattr(part, '__name__', repr(part))}" for name, part in parts.items()]
        return f"Config({', '.join(shown)})"

    @property
    def latent(self) -> int:
        """How many numbers the code has (at each place, if it is a grid).

        Raises:
            ConfigError: the head has no field `latent`.
        """
        latent = getattr(self.head, "latent", None)
        if not isinstance(latent, int):
            raise errors.ConfigError(f"The head {type(self.head).__name__} has no size of its own.")
        return latent

    def with_latent(self, latent: int) -> "Config":
        """The same config with a code of another size."""
        if latent == self.latent:
            return self
        head: Any = self.head
        return dataclasses.replace(self, head=dataclasses.replace(head, latent=latent))

    @property
    def hyper(self) -> dict[str, float]:
        """The hyper-parameters of the model that this config builds, by name."""
        return _hyper(tuple(getattr(self, name) for name in SPECS))[1]

    def to_dict(self) -> dict[str, Any]:
        """The config as values that JSON can hold; `from_dict` is the inverse.

        Raises:
            ConfigError: a part was not registered (`flaxae.register`).
        """
        return {field.name: specs.to_json(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Config":
        """Rebuild a config from JSON values. Parts are looked up among the registered names, never imported.

        Raises:
            ConfigError: an unknown name or field, or a value out of range.
        """
        from flaxae import presets  # noqa: F401 (it imports all stock parts, so that their names are known)

        if first_form.is_of(values):
            return cls(**first_form.parts(values))
        return specs.checked(cls, {name: specs.from_json(value, name) for name, value in values.items()})


def _hyper(parts: tuple[Any, ...]) -> tuple[tuple[tuple[str, int, specs.Path], ...], dict[str, float]]:
    """The float fields of corruption, objective and likelihood: (name, part, path) of each, and values by name."""
    found = [(i, path, value) for i, part in enumerate(parts) for path, value in specs.hyper(part)]
    last = [path[-1] for _, path, _ in found]
    names = [path[-1] if last.count(path[-1]) == 1 else ".".join((SPECS[i], *path)) for i, path, _ in found]
    paths = tuple((name, i, path) for name, (i, path, _) in zip(names, found, strict=True))
    return paths, {name: value for name, (_, _, value) in zip(names, found, strict=True)}


def build(config: Config, shape: tuple[int, ...], *, conditions: int = 0, seed: int = 0) -> Autoencoder:
    """An autoencoder for examples of that `shape` (no batch axis), initialised from `seed` in one compiled call.

    Args:
        conditions: how many numbers the condition of an example has, see `Batch.condition`.

    Raises:
        ConfigError: the parts don't go together, or the body doesn't take examples of that shape.
    """
    if isinstance(key := jax.random.key(seed), Tracer):  # while another program is traced, with compiler options
        return _make(config, shape, conditions, key)
    return nnx.merge(*initial(config, shape, conditions=conditions, seed=seed))


def initial(
    config: Config, shape: tuple[int, ...], *, conditions: int = 0, seed: int = 0
) -> tuple[nnx.GraphDef, nnx.State]:
    """The two parts of what `build` gives: Flax takes longer to merge and split a small model than to draw it."""
    processes.refuse_fork()
    graphdef, numbers = _abstract(config, shape, conditions)
    draw = _draw_few if numbers < FEW else _draw
    return graphdef, draw(config, shape, conditions, jax.random.key(seed))


def count_weights(config: Config, shape: tuple[int, ...], *, conditions: int = 0) -> int:
    """How many numbers the model of that config is made of, without making it."""
    return _abstract(config, shape, conditions)[1]


def _make(config: Config, shape: tuple[int, ...], conditions: int, key: Key[Array, ""]) -> Autoencoder:
    rngs = nnx.Rngs(key)
    encoder = config.body.encoder(shape, rngs=rngs)
    features = _wider(_output_shapes(encoder, shape), conditions)
    head = config.head.make(features, rngs=rngs)
    code = _wider(_output_shapes(head, features, lambda latent: latent.z), conditions)
    decoder = config.body.decoder(code, config.likelihood.params_shape(shape), rngs=rngs)
    if hasattr(decoder, "tie"):
        decoder.tie(encoder)
    model = Autoencoder(
        encoder,
        head,
        decoder,
        likelihood=config.likelihood,
        corruption=config.corruption,
        objective=config.objective,
        conditions=conditions,
    )
    model.config, model.shape = config, shape
    return model


Shapes = Any  # the shape of one example, or a tree of shapes


def _is_shape(tree: Shapes) -> bool:
    return isinstance(tree, tuple) and all(isinstance(size, int) for size in tree)


def _output_shapes(module: nnx.Module, inputs: Shapes, pick: Callable[[Any], Any] = lambda out: out) -> Shapes:
    """The shapes of a module's output for one example, found by tracing it."""
    graphdef, state = nnx.split(module)
    examples = jax.tree.map(lambda s: jax.ShapeDtypeStruct((1, *s), jnp.float32), inputs, is_leaf=_is_shape)
    made = jax.eval_shape(lambda state, x: pick(nnx.merge(graphdef, state, copy=True)(x)), state, examples)
    return jax.tree.map(lambda leaf: leaf.shape[1:], made)


def _wider(shapes: Shapes, more: int) -> Shapes:
    """The shapes with `more` added to the last axis of each."""
    return jax.tree.map(lambda s: (*s[:-1], s[-1] + more), shapes, is_leaf=_is_shape) if more else shapes


@functools.cache
def _abstract(config: Config, shape: tuple[int, ...], conditions: int) -> tuple[nnx.GraphDef, int]:
    """The model's structure, and how many numbers it holds. An objective that doesn't fit the parts fails here."""
    make = functools.partial(_make, config, shape, conditions)
    model = nnx.eval_shape(make, jax.random.key(0))
    graphdef, state = nnx.split(model)
    condition = {"condition": jax.ShapeDtypeStruct((2, conditions), jnp.float32)} if conditions else {}
    batch = {"x": jax.ShapeDtypeStruct((2, *shape), jnp.float32), **condition}

    def loss(state: nnx.State, batch: Any, key: Key[Array, ""]) -> Any:
        return own_objective(nnx.merge(graphdef, state, copy=True), batch, key)

    try:
        jax.eval_shape(loss, state, batch, jax.random.key(0))
    except errors.ConfigError:
        raise
    except Exception:
        pass  # it may need more than x, such as labels: training checks it again on the data themselves
    return graphdef, sum(leaf.size for leaf in jax.tree.leaves(state))


def _initial_state(config: Config, shape: tuple[int, ...], conditions: int, key: Key[Array, ""]) -> nnx.State:
    return nnx.state(_make(config, shape, conditions, key))


_jit_initial_state = functools.partial(jax.jit, _initial_state, static_argnames=("config", "shape", "conditions"))
_draw = compilation.with_options(_jit_initial_state, compilation.QUICK)
_draw_few = compilation.with_options(_jit_initial_state, compilation.ONCE)
