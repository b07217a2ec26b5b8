"""Functions of two arrays that are linear in each, as primitives of JAX with derivatives of our own.

JAX's own derivatives of such a function are those of its parts, which can be slow, and a custom derivative would forbid
forward mode. Of a bilinear function, the derivatives are the function itself and its two adjoints, whose derivatives
are these three again. So three ways to compute give all modes of differentiation, to any order.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

Computed = Callable[..., Array]  # of two arrays, and settings by name that hash


def bilinear(name: str, of: Computed, to_first: Computed, to_second: Computed) -> tuple[Computed, Computed]:
    """`of` and its adjoint `to_first`, for jit, vmap, scan, and both modes of differentiation to any order.

    Args:
        name: of the primitive, in programs and messages.
        of: (a, b, **settings) -> c.
        to_first: (c, b, **settings) -> a, for the same settings.
        to_second: (a, c, **settings) -> b.
    """
    forward, first, second = (
        _primitive(own, computed)
        for own, computed in ((name, of), (f"{name}_to_first", to_first), (f"{name}_to_second", to_second))
    )
    ad.defbilinear(
        forward,
        lambda given, a, b, **settings: first.bind(given, b, **settings),
        lambda given, a, b, **settings: second.bind(a, given, **settings),
    )
    ad.defbilinear(
        first,
        lambda given, c, b, **settings: forward.bind(given, b, **settings),
        lambda given, c, b, **settings: second.bind(given, c, **settings),
    )
    ad.defbilinear(
        second,
        lambda given, a, c, **settings: first.bind(c, given, **settings),
        lambda given, a, c, **settings: forward.bind(a, given, **settings),
    )
    return forward.bind, first.bind


def _primitive(name: str, computed: Computed) -> Primitive:
    primitive = Primitive(name)
    primitive.def_impl(computed)

    def shape(a: Any, b: Any, **settings: Any) -> ShapedArray:
        found = jax.eval_shape(functools.partial(computed, **settings), a, b)
        return ShapedArray(found.shape, found.dtype)

    primitive.def_abstract_eval(shape)
    mlir.register_lowering(primitive, mlir.lower_fun(computed, multiple_results=False))

    def batched(arguments: Any, axes: Any, **settings: Any) -> tuple[Array, int]:
        return jax.vmap(functools.partial(computed, **settings), axes)(*arguments), 0

    batching.primitive_batchers[primitive] = batched
    return primitive
