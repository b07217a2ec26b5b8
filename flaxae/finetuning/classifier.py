"""`Classifier`: an encoder with a linear layer on its code; `fit` and `distil` train several side by side."""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jax.extend.core import Literal
from jaxtyping import Array, Float, Int, Key, Shaped

from flaxae import errors, specs, training
from flaxae.autoencoder import Autoencoder
from flaxae.batches import Examples
from flaxae.corruptions import Corruption
from flaxae.finetuning import propagation
from flaxae.finetuning.probes import Codes, Labels, Probabilities, Probe, linear_probe, vote
from flaxae.training import feed, fitting, loop
from flaxae.training.optimizers import Optimizer
from flaxae.training.population import stack
from flaxae.training.step import State, Weights, begun, init, train_step, weights

Inputs = Shaped[Array | np.ndarray, " examples *shape"]

BLOCK_STEPS = 50  # steps in an epoch, about


class Classifier(nnx.Module):
    """A copy of an autoencoder's encoder and head, and a linear layer from the code to one logit per class."""

    def __init__(self, autoencoder: Autoencoder, latent: int, classes: int, *, rngs: nnx.Rngs):
        autoencoder = nnx.clone(autoencoder)
        self.encoder = autoencoder.encoder
        self.head = autoencoder.head
        self.out = nnx.Linear(latent, classes, rngs=rngs)

    def encode(
        self, x: Float[Array | np.ndarray, " batch *shape"], key: Key[Array, ""] | None = None
    ) -> Float[Array, " batch latent"]:
        keys = (None, None) if key is None else jax.random.split(key)
        return self.head(self.encoder(jnp.asarray(x), keys[0]), keys[1]).z

    def __call__(
        self, x: Float[Array | np.ndarray, " batch *shape"], key: Key[Array, ""] | None = None
    ) -> Float[Array, " batch classes"]:
        return self.out(self.encode(x, key))

    def probabilities(self, x: Float[Array | np.ndarray, " batch *shape"]) -> Float[Array, " batch classes"]:
        return jax.nn.softmax(self(x))


@dataclasses.dataclass(frozen=True)
class Views:
    """An example and `number` corrupted versions of it, to average over. Every call draws the same versions."""

    corruption: Corruption
    number: int = 4


def encode(model: Autoencoder | Classifier, x: Examples, views: Views | None = None) -> Codes:
    """The codes of x, or with `views`, their means over the views of each example."""
    return training.apply(_Averaged(type(model).encode, views), model, x)


def predict(classifier: Classifier, x: Examples, views: Views | None = None) -> Float[np.ndarray, " examples classes"]:
    """The class probabilities of x, or with `views`, their means over the views of each example."""
    return training.apply(_Averaged(Classifier.probabilities, views), classifier, x)


@dataclasses.dataclass(frozen=True)
class _Averaged:
    """`function(model, ·)`, averaged over views."""

    function: Callable[..., Float[Array, " batch out"]]
    views: Views | None

    def __call__(self, model: nnx.Module, x: Float[Array, " batch *shape"]) -> Float[Array, " batch out"]:
        if self.views is None:
            return self.function(model, x)
        corruption, number = self.views.corruption, self.views.number
        keys = jax.random.split(jax.random.key(0), number)
        seen = lax.map(lambda key: self.function(model, corruption(key, x)), keys)
        return (self.function(model, x) + seen.sum(axis=0)) / (number + 1)


def on_probe(autoencoder: Autoencoder, probe: Probe) -> Classifier:
    """A classifier that starts from the probe, so that fine-tuning distorts the encoder less (Kumar et al. 2022)."""
    classifier = Classifier(autoencoder, *probe.kernel.shape, rngs=nnx.Rngs(0))
    out: Any = classifier.out  # typed Any, because by its type it may have no bias
    out.kernel[...], out.bias[...] = jnp.asarray(probe.kernel), jnp.asarray(probe.bias)
    return classifier


@dataclasses.dataclass(frozen=True)
class FineTuning:
    """How classifiers are trained: AdamW with warm-up and cosine decay, keeping a moving average of the weights.

    Args:
        steps: how many steps of `batch_size` examples, drawn with replacement.
        learning_rate: the peak, for the last layer.
        layer_decay: factor on the learning rate from each layer to the one before it (Clark et al. 2020).
        unfreeze: fraction of the steps over which the layers are unfrozen, from the last to the first (Howard & Ruder
            2018).
        weight_decay: decoupled, on matrices and kernels.
        corruption: of the inputs.
        consistency: weight of a second loss, on as many examples drawn uniformly from all, with or without a label. It
            is the cross-entropy between the classes predicted for their corrupted versions and those that the averaged
            weights predict for the clean ones (mean teachers, Tarvainen & Valpola 2017; the divergence is that of Xie
            et al. 2020, eq. 1). 0 leaves it out.
        ema: decay of the moving average of the weights.
    """

    steps: int = 500
    batch_size: int = 64
    learning_rate: float = 1e-3
    layer_decay: float = 1.0
    unfreeze: float = 0.0
    weight_decay: float = 1e-2
    corruption: Corruption | None = None
    consistency: float = 0.0
    ema: float = 0.99

    def __post_init__(self) -> None:
        fitting.check_settings(1, self.batch_size, self.learning_rate, 0.0, "cosine", self.weight_decay, self.ema, None)
        if self.steps < 1:
            raise errors.ConfigError(f"steps is {self.steps}; it has to be at least 1.")
        for name in ("layer_decay", "unfreeze"):
            if not 0 <= getattr(self, name) <= 1:
                raise errors.ConfigError(f"{name} is {getattr(self, name)}; it has to be at least 0 and at most 1.")
        if not 0 <= self.consistency < np.inf:
            raise errors.ConfigError(f"consistency is {self.consistency}; it has to be finite and at least 0.")
        if self.consistency and self.corruption is None:
            raise errors.ConfigError(
                f"consistency is {self.consistency} without a corruption to be consistent under; give one too."
            )

    def views(self, number: int = 4) -> Views | None:
        """Views with the plan's corruption, at half its level if it has one; None if there is no corruption."""
        if self.corruption is None or not number:
            return None
        level = getattr(self.corruption, "level", None)
        milder = self.corruption if level is None else specs.bind(self.corruption, {("level",): level / 2})
        return Views(milder, number)


class Targets(NamedTuple):
    """The targets of classifiers: class probabilities, and how often each example is drawn."""

    probabilities: Float[np.ndarray, "members examples classes"]
    weights: Float[np.ndarray, "members examples"]


def supervised(draws: Sequence[Labels], classes: int) -> Targets:
    """Targets from the known labels only, with one member for each draw."""
    return Targets(*(np.stack(part) for part in zip(*(_known(labels, classes) for labels in draws), strict=True)))


def _known(labels: Labels, classes: int) -> tuple[Probabilities, Float[np.ndarray, " examples"]]:
    known = labels >= 0
    return np.eye(classes, dtype=np.float32)[labels] * known[:, None], known.astype(np.float32)


def distilled(probabilities: Sequence[Probabilities], draws: Sequence[Labels], *, share: float = 0.1) -> Targets:
    """Targets from propagated labels, with one member for each draw.

    The target of an example is its likeliest class. Examples are drawn in proportion to the certainty of that class,
    1 − entropy / log classes, and all classes equally often (Iscen et al. 2019). A fraction `share` of the draws are
    the labelled examples themselves.
    """
    parts = []
    for found, labels in zip(probabilities, draws, strict=True):
        classes = found.shape[1]
        likeliest = np.where(labels >= 0, labels, found.argmax(axis=1))
        entropy = -np.sum(found * np.log(np.maximum(found, 1e-12)), axis=1)
        certain = np.where(labels >= 0, 0, np.maximum(1 - entropy / np.log(classes), 0))
        weights = certain / np.maximum(np.bincount(likeliest, certain, classes), 1e-12)[likeliest]
        known = (labels >= 0) / np.count_nonzero(labels >= 0)
        weights = known if certain.sum() == 0 else (1 - share) * weights / weights.sum() + share * known
        parts.append((np.eye(classes, dtype=np.float32)[likeliest], weights.astype(np.float32)))
    return Targets(*(np.stack(part) for part in zip(*parts, strict=True)))


def soft(probabilities: Sequence[Probabilities], draws: Sequence[Labels]) -> Targets:
    """Targets that are the probabilities themselves, or the labels where they are known; all drawn alike."""
    parts = []
    for found, labels in zip(probabilities, draws, strict=True):
        known, is_known = _known(labels, found.shape[1])
        parts.append((np.where(is_known[:, None] > 0, known, found).astype(np.float32), np.ones_like(is_known)))
    return Targets(*(np.stack(part) for part in zip(*parts, strict=True)))


class Distilled(NamedTuple):
    """The result of `distil`: a classifier for each draw, and the probabilities of all examples that it learnt from."""

    classifiers: list[Classifier]
    probabilities: list[Probabilities]


def distil(
    start: Autoencoder | Sequence[Classifier],
    x: Inputs,
    draws: Sequence[Labels],
    plan: FineTuning,
    *,
    classes: int,
    views: int = 4,
    k: int = 10,
    found: Sequence[Probabilities] | None = None,
    targets: Callable[[Sequence[Probabilities], Sequence[Labels]], Targets] = distilled,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
) -> Distilled:
    """Learn from few labels of many examples: find the classes of all, and train on the result.

    They are propagated over the graph of the k nearest neighbours of the codes (all others if there are fewer), alone
    or with a kernel probe: see `vote`. If the plan has a corruption, the codes are means over `views` views. The
    classifiers start from linear probes of the autoencoder. Or they start from the given classifiers, one for each
    draw: this is a second round, on their codes. `found` are class probabilities of all examples for each draw by
    another method, such as `tabular_vote`. `targets` turns the probabilities and the labels into the targets of the
    training. `folder` and `resume` are as in `fit`.
    """
    encoders = [start] if isinstance(start, Autoencoder) else start
    codes = [encode(encoder, x, plan.views(views)) for encoder in encoders]
    if isinstance(start, Autoencoder):
        classifiers = [on_probe(start, linear_probe(codes[0], labels, classes=classes)) for labels in draws]
    else:
        classifiers = [nnx.clone(classifier) for classifier in start]
    if found is None:
        graphs = [propagation.neighbours(z, min(k, len(z) - 1)) for z in codes]
        known = list(zip(graphs, codes, strict=True)) * (len(draws) if isinstance(start, Autoencoder) else 1)
        pairs = zip(known, draws, strict=True)
        found = [vote(graph, np.asarray(x), z, labels, classes=classes, seed=seed) for (graph, z), labels in pairs]
    fit(classifiers, x, targets(found, draws), plan, seed=seed, folder=folder, resume=resume)
    return Distilled(classifiers, list(found))


class _State(NamedTuple):
    run: State
    average: Weights


class _Pace(NamedTuple):
    """The settings of a plan that can change without a new compilation."""

    rate: Float[Array, " layers"]  # the rate of each layer, the last first, as a fraction of the learning rate
    joins: Float[Array, " layers"]  # the step at which each layer is unfrozen
    consistency: Float[Array, ""]
    ema: Float[Array, ""]


def fit(
    classifiers: Sequence[Classifier],
    x: Inputs,
    targets: Targets,
    plan: FineTuning,
    *,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    show: bool = False,
    on_epoch: loop.OnEpoch | None = None,
) -> None:
    """Train classifiers of one architecture side by side, in place, each on its own targets for the same examples.

    They end with the average of their weights over about the last 1 / (1 − ema) steps.

    Args:
        folder, resume, show, on_epoch: as in `training.fit`, with an epoch of about `BLOCK_STEPS` steps.

    Raises:
        DataError: a classifier has no example to train on.
        DivergedError: a loss stopped being finite; the classifiers stay as they were.
    """
    cumulative = np.cumsum(targets.weights, axis=1, dtype=np.float64)
    if not (cumulative[:, -1] > 0).all():
        raise errors.DataError("A classifier has no example with a label to be trained on. Give it one at least.")
    cumulative = jnp.asarray(cumulative / cumulative[:, -1:], jnp.float32)
    inputs, probabilities = jax.device_put((x, targets.probabilities))
    depth = depths(classifiers[0], inputs[:1])
    place = np.arange(1 + max(dict(depth).values()), dtype=np.float32)
    joins = plan.unfreeze * plan.steps * place / max(1, place[-1])
    pace = _Pace(*map(jnp.float32, (plan.layer_decay**place, joins, plan.consistency, plan.ema)))
    optimizer = Optimizer(warmup=0.05, weight_decay=plan.weight_decay)
    runs = [init(classifier, optimizer, plan.learning_rate) for classifier in classifiers]
    state = stack([_State(run, jax.tree.map(jnp.copy, weights(run))) for run in runs])
    state = jax.device_put(state, jax.local_devices()[0])  # as restored weights are; else it compiles twice
    keys = jax.random.split(jax.random.key(seed), len(classifiers))
    program = (nnx.split(classifiers[0])[0], plan.corruption, plan.consistency > 0, optimizer, plan.batch_size, depth)

    def block(state: _State, start: int, stop: int) -> _State:
        return _train_block(*program, pace, state, inputs, probabilities, cumulative, keys, start, stop, plan.steps)

    work = loop.Work(
        block=block,
        sums=lambda state: (jnp.isfinite(state.run.sums["loss"]), state.run.sums),
        begin=lambda state: state._replace(run=begun(state.run)),
        weights=lambda state: jax.tree.map(jnp.copy, state.average),
        validate=None,
        chosen_by="loss",
        source=feed.Drawn(plan.steps, BLOCK_STEPS),
        samples=len(classifiers) * plan.batch_size,
    )
    epochs = plan.steps // work.source.steps
    settings = {"seed": float(seed), "steps": float(plan.steps), "learning_rate": plan.learning_rate}
    started = loop.start(work, state, epochs, settings)
    own = {"folder": folder, "resume": resume, "data": (x, tuple(targets)), "show": show, "on_epoch": on_epoch}
    run = loop.train(work, started, **own)
    if not np.isfinite(run.history["loss"]).all():
        raise errors.DivergedError(
            f"The loss of a classifier stopped being finite. Try a lower learning rate than {plan.learning_rate:g}."
        )
    for member, classifier in enumerate(classifiers):
        nnx.update(classifier, *jax.tree.map(lambda leaf, member=member: leaf[member], run.best))


@functools.partial(
    jax.jit,
    static_argnames=("graphdef", "corruption", "consistent", "optimizer", "batch_size", "depth"),
    donate_argnames="state",
)
def _train_block(
    graphdef: nnx.GraphDef,
    corruption: Corruption | None,
    consistent: bool,
    optimizer: Optimizer,
    batch_size: int,
    depth: tuple[tuple[str, int], ...],
    pace: _Pace,
    state: _State,
    x: Float[Array, " examples *shape"],
    probabilities: Float[Array, "members examples classes"],
    cumulative: Float[Array, "members examples"],
    keys: Key[Array, " members"],
    start: int | Int[Array, ""],
    stop: int | Int[Array, ""],
    steps: int | Int[Array, ""],
) -> _State:
    """Steps `start` to `stop`, of a run's `steps`, of all members."""

    def body(step: Int[Array, ""], state: _State, probabilities: Array, cumulative: Array, key: Array) -> _State:
        index_key, even_key, noise_key, key = jax.random.split(jax.random.fold_in(key, step), 4)
        index = jnp.searchsorted(cumulative, jax.random.uniform(index_key, (batch_size,)), side="right")
        index = jnp.minimum(index, x.shape[0] - 1)
        seen, wanted, weight = jnp.take(x, index, axis=0), jnp.take(probabilities, index, axis=0), jnp.float32(1)
        if consistent:
            others = jnp.take(x, jax.random.randint(even_key, (batch_size,), 0, x.shape[0]), axis=0)
            teacher = nnx.merge(graphdef, *state.average, copy=True)  # not differentiated
            teacher.train()  # like the student: else batch norm's two modes would differ, and the student learn that
            taught = jax.nn.softmax(teacher(others, even_key))
            seen, wanted = jnp.concatenate([seen, others]), jnp.concatenate([wanted, taught])
            weight = 2 * jnp.repeat(jnp.stack([weight, pace.consistency]), batch_size)  # the mean is over both
        if corruption is not None:
            seen = corruption(noise_key, seen)

        def cross_entropy(model: Classifier, x: Array, key: Array) -> Float[Array, " batch"]:
            return weight * optax.softmax_cross_entropy(model(x, key), wanted)

        run = train_step(graphdef, cross_entropy, optimizer, state.run, seen, key, step, steps)
        run = run._replace(params=_slowed(pace, dict(depth), state.run.params, run.params, step))
        decay = jnp.minimum(pace.ema, (1 + step) / (10 + step))
        average: Any = optax.incremental_update(weights(run), state.average, 1 - decay)
        return _State(run, average)

    def member(state: _State, probabilities: Array, cumulative: Array, key: Array) -> _State:
        return lax.fori_loop(start, stop, lambda step, state: body(step, state, probabilities, cumulative, key), state)

    return jax.vmap(member)(state, probabilities, cumulative, keys)


def _slowed(pace: _Pace, depth: dict[str, int], before: nnx.State, after: nnx.State, step: Int[Array, ""]) -> nnx.State:
    """The parameters after a step, scaled by the rate of each layer; layers that are still frozen don't move."""
    share = pace.rate * (step.astype(jnp.float32) >= pace.joins).astype(jnp.float32)

    def slow(path: tuple[Any, ...], old: Array, new: Array) -> Array:
        return old + share[depth[_layer(path)]] * (new - old)

    return jax.tree_util.tree_map_with_path(slow, before, after)


def depths(classifier: nnx.Module, x: Float[Array, " batch *shape"]) -> tuple[tuple[str, int], ...]:
    """The number of layers between each layer and the output, by the order in which the traced program uses them."""
    graphdef, params, rest = nnx.split(classifier, nnx.Param, ...)
    program = jax.make_jaxpr(lambda params: nnx.merge(graphdef, params, rest)(x))(params).jaxpr
    met = {}  # when each variable of the program is first used
    for time, equation in enumerate(program.eqns):
        for variable in equation.invars:
            if not isinstance(variable, Literal):
                met.setdefault(variable, time)
    first: dict[str, int] = {}
    for (path, _), variable in zip(jax.tree_util.tree_leaves_with_path(params), program.invars, strict=True):
        layer = _layer(path)
        first[layer] = min(met.get(variable, 0), first.get(layer, len(program.eqns)))
    order = sorted(first, key=first.__getitem__, reverse=True)
    return tuple((layer, depth) for depth, layer in enumerate(order))


def _layer(path: tuple[Any, ...]) -> str:
    """The layer that a parameter belongs to: its path up to the first entry of a list, or else its first two names."""
    *keys, _ = (str(key.key) for key in path if hasattr(key, "key"))
    numbered = next((i for i, key in enumerate(keys) if key.isdecimal()), 1)
    return ".".join(keys[: numbered + 1])
