"""Mixed precision: an encoder and a decoder, or on a CPU their products, in bfloat16, everything else in float32."""

import dataclasses
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Key, PyTree

from flaxae import errors
from flaxae.batches import Examples
from flaxae.nn import onednn, products
from flaxae.nn.mlp import MLP
from flaxae.nn.unet import UNet
from flaxae.objectives import Layerwise, Objective

PRECISIONS = ("float32", "bf16", "auto")
# For bfloat16 to pay, see `python -m benchmarks.training`: with tiles for it on a CPU, and with instructions alone.
LEAST_WEIGHTS_BY_AMX = 2**14
LEAST_WEIGHTS = 2**18
SLOW = (
    "This processor has no instructions for bfloat16: what is multiplied is rounded to it, and multiplied in float32, "
    "which takes no less time than without. The precision auto takes what is faster."
)


class InBfloat16(nnx.Module):
    """`body`, computed with bfloat16 copies of its weights and its input, an array or a tree; the output is float32."""

    def __init__(self, body: nnx.Module):
        self.body = body

    def __call__(self, x: PyTree[Array | np.ndarray], key: Key[Array, ""] | None = None) -> PyTree[Array]:
        graphdef, params, rest = nnx.split(self.body, nnx.Param, ...)
        body = nnx.merge(graphdef, _cast(params, jnp.bfloat16), rest)
        return _cast(body(_cast(x, jnp.bfloat16), key), jnp.float32)


def _cast(tree: Any, dtype: Any) -> Any:
    """Its floating point numbers in that type; whole numbers and keys as they are."""
    return jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)


@dataclasses.dataclass(frozen=True)
class MixedPrecision:
    """`objective` of the model with its encoder and decoder computed in bfloat16 (Micikevicius et al. 2018).

    The weights, their gradients and moments, the head and the likelihood stay float32. bfloat16 has the range of
    float32, so that the loss needs no scaling. On CPU, the products of linear layers and convolutions alone are in
    bfloat16, because what is between them is slower in it. There it is for CPUs with AMX, and for wide fully connected
    networks on those with other instructions for it.

    Args:
        objective: of the model in float32.
    """

    objective: Objective

    def __call__(self, given: Any, batch: Examples, key: Key[Array, ""]) -> Any:
        model: Any = nnx.merge(*nnx.split(given))  # a copy: the caller's model keeps its parts
        if jax.default_backend() != "cpu":
            model.encoder, model.decoder = (InBfloat16(body) for body in (model.encoder, model.decoder))
            return self.objective(model, batch, key)
        for body in (model.encoder, model.decoder):
            for _, module in nnx.iter_modules(body):
                if isinstance(module, nnx.Linear):
                    module.dot_general = products.dot_general
        with products.in_bfloat16():
            return self.objective(model, batch, key)


def chosen(precision: str, model: Any) -> str:
    """`precision` itself, or for "auto" the one that trains this `Autoencoder` faster: "float32" or "bf16".

    Warns where bfloat16 gains nothing: on a CPU that has no instructions for it.

    Args:
        precision: one of PRECISIONS.
        model: to train.

    Raises:
        ConfigError: the precision is unknown.
    """
    if precision not in PRECISIONS:
        raise errors.ConfigError(errors.unknown("precision", precision, PRECISIONS))
    if precision == "bf16" and not products.fast_in_bfloat16():
        warnings.warn(SLOW, stacklevel=4)
    if precision != "auto":
        return precision
    if products.by_amx():
        if is_unet(model) and not onednn.available():
            return "float32"
        return "bf16" if _weights(model) >= LEAST_WEIGHTS_BY_AMX else "float32"
    # other bodies' products are mostly not the fast ones
    if model.config is None or not isinstance(model.config.body, MLP):
        return "float32"
    if jax.default_backend() != "cpu" and isinstance(model.config.objective, Layerwise):
        return "float32"  # the layers of what is wrapped can't be applied one by one
    return "bf16" if products.fast_in_bfloat16() and _weights(model) >= LEAST_WEIGHTS else "float32"


def is_unet(model: Any) -> bool:
    """Whether its body is a `UNet`, most of whose time goes to convolutions of stride 1 with many channels.

    A model that was put together by hand has no config; it isn't taken for one.
    """
    return model.config is not None and isinstance(model.config.body, UNet)


def _weights(model: Any) -> int:
    return sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param)))


def in_precision(objective: Objective, precision: str) -> Objective:
    """`objective` for a program in that precision, "float32" or "bf16"."""
    return MixedPrecision(objective) if precision == "bf16" else objective
