"""Matrix products in bfloat16 on processors that have them, in the forms that are fast there.

XLA's CPU backend has fast products of bfloat16 only for a @ b with both operands stored row by row, whose result is
float32, and with AMX for a @ bᵀ. Other forms, among them those of the gradients, run at the speed of float32, or not at
all. So here operands are transposed in memory first: the smaller ones, where there is a choice.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, BFloat16

from flaxae.parallel import compilation

INSTRUCTIONS = {"avx512_bf16", "amx_bf16"}


def fast_in_bfloat16() -> bool:
    """Whether products of bfloat16 are faster here than float32's: on accelerators, and CPUs with instructions."""
    if jax.default_backend() != "cpu":
        return True
    return not INSTRUCTIONS.isdisjoint(compilation.instructions())


def dot_general(a: Array, b: Array, dimensions: Any, *args: Any, **settings: Any) -> Array:
    """`lax.dot_general`, as `nnx.Linear` calls it; on CPU products of bfloat16 with a matrix are `product`s."""
    if jax.default_backend() != "cpu" or a.dtype != jnp.bfloat16 or b.ndim != 2:
        return lax.dot_general(a, b, dimensions, *args, **settings)
    return product(a.reshape(-1, a.shape[-1]), b).reshape(*a.shape[:-1], b.shape[1])


@jax.custom_vjp
def product(a: BFloat16[Array, "m k"], b: BFloat16[Array, "k n"]) -> BFloat16[Array, "m n"]:
    """a @ b, added up in float32. Reverse-mode differentiation alone."""
    return _by_rows(lax.dot(_by_rows(a), _by_rows(b), preferred_element_type=jnp.float32).astype(a.dtype))


def _forward(a: Array, b: Array) -> tuple[Array, tuple[Array, Array]]:
    return product(a, b), (a, b)


def _backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    a, b = saved
    if "amx_bf16" in compilation.instructions():
        of_a = lax.dot_general(
            _by_rows(gradient), _by_rows(b), (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
        )
        return of_a.astype(a.dtype), product(a.T, gradient)
    if b.size < a.size + gradient.size:
        return product(gradient, b.T), product(a.T, gradient)
    return product(b, gradient.T).T, product(a.T, gradient)


product.defvjp(_forward, _backward)


def _by_rows(a: Array) -> Array:
    return with_layout_constraint(a, Layout(major_to_minor=(0, 1)))
