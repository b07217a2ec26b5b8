"""Optimizers: AdamW or Muon with warm-up and cosine decay, or any optax transformation."""

import dataclasses
import itertools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from flaxae import errors

METHODS = ("adam", "muon")
LEARNING_RATE = 3e-3  # the default
JOINED = 2**13  # parameters of up to so many numbers share a vector of Adam's moments


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW or Muon with warm-up and cosine decay (Loshchilov & Hutter 2019). It is static in the compiled step.

    Args:
        method: "adam" (Kingma & Ba 2015); or "muon" (Jordan 2024), which orthogonalises the momentum of every matrix
            and kernel and trains all else with Nesterov's Adam, scaled so that learning rates mean the same for both
            (Liu et al. 2025): networks need fewer epochs, each of which takes longer. Or an optax transformation,
            which does everything: its updates are added as they are, without learning_rate or schedule.
        warmup: fraction of a run's steps over which the learning rate rises from 0.
        schedule: "cosine" (down to 0) or "constant" after the warm-up.
        weight_decay: decoupled, on matrices and kernels; not on biases.
        ema: decay of an exponential moving average of the weights, which is then validated and kept instead of them.
        microbatches: into how many equal parts a batch is cut; their gradients are computed one after the other, and
            averaged. This takes less memory. On CPU it is also faster if a part fits the cache (about a megabyte of
            images for convolutions). Statistics of a batch, such as those of batch norm, are then those of each part.
        flat: keep all of Adam's moments in one vector, not those of small parameters alone. It compiles sooner and runs
            slower: for trainings of a second or two.
    """

    warmup: float = 0.1
    schedule: str = "cosine"
    weight_decay: float = 0.0
    ema: float | None = None
    method: str | optax.GradientTransformation = "adam"
    microbatches: int = 1
    flat: bool = False

    def __post_init__(self) -> None:
        if not self.own and self.method not in METHODS:
            raise errors.ConfigError(errors.unknown("optimizer", str(self.method), METHODS))
        if self.schedule not in ("cosine", "constant"):
            raise errors.ConfigError(errors.unknown("schedule", self.schedule, ("cosine", "constant")))

    @property
    def own(self) -> bool:
        """Whether the method is the user's own optax transformation."""
        return isinstance(self.method, optax.GradientTransformation)

    def transformation(self) -> optax.GradientTransformation:
        """The optax transformation, with a learning rate of 1 (see `rate`) unless it is the user's."""
        if isinstance(self.method, optax.GradientTransformation):
            return self.method
        adam = joined(scale_by_adam(), sys.maxsize if self.flat else JOINED)
        return optax.chain(
            adam if self.method == "adam" else scale_by_muon(),
            optax.add_decayed_weights(
                self.weight_decay, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
            ),
        )

    def rate(self, step: int | Int[Array, ""], steps: int | Int[Array, ""]) -> Float[Array, ""]:
        """What the learning rate is multiplied by in one of a run's `steps`. They are no constant of the program."""
        now, all_of = jnp.asarray(step, jnp.float32), jnp.asarray(steps, jnp.float32)
        warmup = jnp.round(self.warmup * all_of)
        rising = now / jnp.maximum(warmup, 1.0)
        done = jnp.clip((now - warmup) / jnp.maximum(all_of - warmup, 1.0), 0.0, 1.0)
        after = 0.5 * (1.0 + jnp.cos(jnp.pi * done)) if self.schedule == "cosine" else jnp.ones_like(done)
        return jnp.where(now < warmup, rising, after)

    def init(self, params: Any) -> optax.OptState:
        """The moments at step 0."""
        return self.transformation().init(params)

    def update(self, gradient: Any, moments: optax.OptState, params: Any) -> tuple[Any, optax.OptState]:
        """The updates to give to `applied`, and the new moments."""
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # optax relies on both
            return self.transformation().update(gradient, moments, params)

    def applied(self, params: Any, updates: Any, learning_rate: Float[Array, ""], rate: Float[Array, ""]) -> Any:
        """The parameters after the updates, at that part of the learning rate."""
        if self.own:
            return optax.apply_updates(params, updates)
        scaled = learning_rate * rate
        return jax.tree.map(lambda p, u: p - scaled * u, params, updates)


def scale_by_adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    """`optax.scale_by_adam`, with the bias corrections folded into scalar factors (Kingma & Ba 2015, end of section 2).

    optax divides every moment by them, which takes a tenth of a small network's step.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, optax.ScaleByAdamState]:
        count = state.count + 1
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.nu, updates)
        root = jnp.sqrt(1 - b2 ** count.astype(jnp.float32))
        rate = root / (1 - b1 ** count.astype(jnp.float32))
        moves = jax.tree.map(lambda m, v: rate * m / (jnp.sqrt(v) + eps * root), mu, nu)
        return moves, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam().init, update)


def joined(inner: optax.GradientTransformation, most: int) -> optax.GradientTransformation:
    """`inner`, an element-wise transformation, on leaves of more than `most` numbers, and on one vector of all others.

    Every operation on a small leaf, such as a bias, takes longer to start than to run: the moments of a dozen of them
    took a twentieth of a small network's step.
    """

    def cut(tree: Any) -> tuple[list[Array], list[Array]]:
        leaves = jax.tree.leaves(tree)
        small = [jnp.ravel(leaf) for leaf in leaves if leaf.size <= most]
        return [leaf for leaf in leaves if leaf.size > most], [jnp.concatenate(small)] if small else []

    def init(params: Any) -> optax.OptState:
        return inner.init(cut(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        moved: Any
        moved, state = inner.update(cut(updates), state)
        large, vector = iter(moved[0]), moved[1]
        leaves, treedef = jax.tree.flatten(updates)
        ends = itertools.accumulate(leaf.size for leaf in leaves if leaf.size <= most)
        small = iter(jnp.split(vector[0], list(ends)[:-1]) if vector else [])
        back = [next(large) if leaf.size > most else jnp.reshape(next(small), leaf.shape) for leaf in leaves]
        return jax.tree.unflatten(treedef, back), state

    return optax.GradientTransformation(init, update)


def scale_by_muon() -> optax.GradientTransformation:
    """`optax.contrib.muon` without a learning rate. Updates of matrices have root mean square 0.2, as usual in Adam.

    A kernel of a convolution, [height, width, in, out], is taken for a matrix, [height · width · in, out], unless it
    leads from or to a single channel.
    """
    from optax import contrib

    def matrices(params: Any) -> Any:
        def of(p: Float[Array, "*shape"]) -> contrib.MuonDimensionNumbers | None:
            is_matrix = p.ndim == 2 or (p.ndim == 4 and min(p.shape[2:]) > 1)
            return contrib.MuonDimensionNumbers(tuple(range(p.ndim - 1)), (p.ndim - 1,)) if is_matrix else None

        return jax.tree.map(of, params)

    muon = contrib.muon(1.0, adam_learning_rate=1.0, consistent_rms=0.2, muon_weight_dimension_numbers=matrices)
    return optax.chain(muon, optax.scale(-1.0))
