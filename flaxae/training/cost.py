"""How large a model is and roughly how long it trains, told before it does."""

import dataclasses
import math
import time

import jax
import jax.numpy as jnp
from flax import nnx

from flaxae import autoencoder
from flaxae.autoencoder import Config, own_objective

_OF_THE_PEAK = 0.3  # of what matrix products reach alone, a training step does: 0.27 to 0.69, see README
_COPIES = 5  # of the weights: themselves, gradients, Adam's two moments, and the best so far


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of training: the weights, the bytes that these and what belongs to them take, and seconds, roughly."""

    weights: int
    bytes: int
    seconds: float

    def __str__(self) -> str:
        """In words."""
        minutes, seconds = divmod(round(self.seconds), 60)
        took = f"{max(1, seconds)} s"
        if minutes:
            took = f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
        held = f"{self.bytes / 2**20:,.0f} MiB with what belongs to them"
        return f"{self.weights:,} weights ({held}), which takes roughly {took}"


def cost(config: Config, shape: tuple[int, ...], *, steps: int, batch_size: int) -> Cost:
    """The cost of that many steps, by the operations of one and by how fast matrix products are here just now.

    Nothing is built and nothing compiled but one product. It is an estimate: twice or half is to be expected.
    """
    abstract = nnx.eval_shape(lambda: autoencoder.build(config, shape))
    graphdef, params, rest = nnx.split(abstract, nnx.Param, ...)

    def loss(params: nnx.State, rest: nnx.State, x: jax.Array, key: jax.Array) -> jax.Array:
        return own_objective(nnx.merge(graphdef, params, rest), x, key).mean()

    x = jax.ShapeDtypeStruct((batch_size, *shape), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    analysis = jax.jit(jax.grad(loss)).lower(params, rest, x, key).cost_analysis()
    weights = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    rate = _OF_THE_PEAK * _products_per_second()
    operations = max(float((analysis or {}).get("flops", 0.0)), 6.0 * weights * batch_size)
    return Cost(weights, 4 * _COPIES * weights, steps * operations / rate)


def _products_per_second() -> float:
    """Operations a second of a matrix product."""
    side = 1024
    x = jnp.ones((side, side), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / min(seconds)
