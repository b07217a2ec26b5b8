"""Matrix products whose arguments are rounded to bfloat16, on processors that have them, in the forms that are fast.

XLA's CPU backend has fast products of bfloat16 only for a @ b with both operands stored row by row, whose result is
float32, and with AMX for a @ bᵀ. Other forms, among them those of the gradients, run at the speed of float32, or not at
all. So here operands are transposed in memory first: the smaller ones, where there is a choice. What is between
products stays in float32: other operations on bfloat16 are slower there, because each rounds and converts. On CPUs
without such instructions, what was rounded is multiplied in float32.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

from flaxae.nn.bilinear import bilinear
from flaxae.parallel import compilation

INSTRUCTIONS = {"avx512_bf16", "amx_bf16"}

_rounding: contextvars.ContextVar[bool] = contextvars.ContextVar("rounding", default=False)


def fast_in_bfloat16() -> bool:
    """Whether products of bfloat16 are faster here than float32's: on accelerators, and CPUs with instructions."""
    if jax.default_backend() != "cpu":
        return True
    return not INSTRUCTIONS.isdisjoint(compilation.instructions())


def by_amx() -> bool:
    """Whether products on this CPU have tiles of bfloat16 (AMX), several times as fast as float32."""
    return jax.default_backend() == "cpu" and "amx_bf16" in compilation.instructions()


@contextlib.contextmanager
def in_bfloat16() -> Iterator[None]:
    """While a program is traced in here, `product`s and the convolutions of `nn.conv` round what they multiply."""
    token = _rounding.set(True)
    try:
        yield
    finally:
        _rounding.reset(token)


def rounding() -> bool:
    """Whether a program is traced in which products round: see `in_bfloat16`."""
    return _rounding.get()


def product(a: Float[Array, "m k"], b: Float[Array, "k n"]) -> Float[Array, "m n"]:
    """a @ b, of both rounded to bfloat16 and added up in float32 within `in_bfloat16`; its gradients likewise."""
    return _product(a, b) if rounding() else a @ b


def columns(kernel: Float[Array, "k n"], x: Float[Array, "k m"]) -> Float[Array, "n m"]:
    """kernelᵀ @ x: a linear layer of columns rather than rows. It rounds where `product` does."""
    if jax.default_backend() != "cpu":
        return kernel.T @ x
    return _rounded_columns(kernel, x) if rounding() else _columns(kernel, x)


def dot_general(a: Array, b: Array, dimensions: Any, *args: Any, **settings: Any) -> Array:
    """`product` for `nnx.Linear`, which calls it as `lax.dot_general`: [..., k] and [k, n]."""
    return product(a.reshape(-1, a.shape[-1]), b).reshape(*a.shape[:-1], b.shape[1])


def rounded(a: Array) -> Array:
    """In bfloat16."""
    return a.astype(jnp.bfloat16)


def dot(a: Array, b: Array) -> Float[Array, "m n"]:
    """a @ b in float32, of matrices in bfloat16."""
    if not fast_in_bfloat16():  # XLA has no such product for those processors
        return a.astype(jnp.float32) @ b.astype(jnp.float32)
    return lax.dot(_by_rows(a), _by_rows(b), preferred_element_type=jnp.float32)


def dot_transposed(a: Array, b: Array) -> Float[Array, "m n"]:
    """a @ bᵀ in float32, of matrices in bfloat16."""
    if by_amx():
        return lax.dot_general(_by_rows(a), _by_rows(b), (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    if b.size < a.size + a.shape[0] * b.shape[0] or not fast_in_bfloat16():
        return dot(a, b.T)
    return dot(b, a.T).T


def _by_rows(a: Array) -> Array:
    return with_layout_constraint(a, Layout(major_to_minor=(0, 1)))


_product, _ = bilinear(
    "rounded_product",
    lambda a, b: dot(rounded(a), rounded(b)),
    lambda c, b: dot_transposed(rounded(c), rounded(b)),
    lambda a, c: dot(rounded(a).T, rounded(c)),
)


def _by_columns(kernel: Array, x: Array, multiply: Callable[[Array, Array], Array]) -> Float[Array, "n m"]:
    """kernelᵀ @ x. What is smaller is transposed: the kernel, or x and the result."""
    return _kept(multiply(kernel.T, x)) if kernel.size <= x.size else _kept(multiply(x.T, kernel)).T


def _outer(x: Array, y: Array, multiply_transposed: Callable[[Array, Array], Array]) -> Float[Array, "k n"]:
    """x @ yᵀ, of [k, m] and [n, m], or (y @ xᵀ)ᵀ. The one with fewer rows than columns is faster (49 and 98: twice)."""
    return _kept(multiply_transposed(x, y)) if len(x) <= len(y) else _kept(multiply_transposed(y, x)).T


_kept = lax.optimization_barrier  # else XLA would make one product of a product and a transpose, in a form that is slow

_columns, _ = bilinear(
    "columns",
    lambda kernel, x: _by_columns(kernel, x, jnp.matmul),
    lambda y, x: _outer(x, y, lambda a, b: a @ b.T),
    lambda kernel, y: _kept(kernel @ y),
)
_rounded_columns, _ = bilinear(
    "rounded_columns",
    lambda kernel, x: _by_columns(rounded(kernel), rounded(x), dot),
    lambda y, x: _outer(rounded(x), rounded(y), dot_transposed),
    lambda kernel, y: _kept(dot(rounded(kernel), rounded(y))),
)
