import contextlib
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from flaxae.nn import conv, products
from flaxae.parallel import compilation

SIZES = st.integers(1, 40)


def draw(seed, *shape):
    """Numbers in float32 that bfloat16 has too."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(jnp.bfloat16).astype(np.float32))


@pytest.mark.parametrize("instructions", [set(), {"amx_bf16"}])
@given(SIZES, SIZES, SIZES, st.integers(0, 9))
def test_products_and_their_gradients_are_those_of_float64(instructions, m, k, n, seed):
    a, b, g = (draw(seed, *size) for size in ((m, k), (k, n), (m, n)))
    with mock.patch.object(compilation, "instructions", return_value=instructions), products.in_bfloat16():
        made, pull = jax.vjp(products.product, a, b)
        found = (made, *pull(g))
    exact = [np.asarray(part, np.float64) for part in (a, b, g)]
    wanted = (exact[0] @ exact[1], exact[2] @ exact[1].T, exact[0].T @ exact[2])
    for of_ours, want in zip(found, wanted, strict=True):
        assert of_ours.dtype == jnp.float32
        np.testing.assert_allclose(of_ours, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("context", [contextlib.nullcontext, products.in_bfloat16])
@given(SIZES, SIZES, SIZES, st.integers(0, 9))
def test_layers_of_columns_and_their_gradients_are_those_of_float64(context, k, n, m, seed):
    kernel, x, g = (draw(seed, *size) for size in ((k, n), (k, m), (n, m)))
    with context():
        made, pull = jax.vjp(products.columns, kernel, x)
        found = (made, *pull(g))
    kernel, x, g = (np.asarray(part, np.float64) for part in (kernel, x, g))
    for of_ours, want in zip(found, (kernel.T @ x, x @ g.T, kernel @ g), strict=True):
        np.testing.assert_allclose(of_ours, want, rtol=1e-5, atol=1e-5)


def test_what_is_multiplied_is_rounded_in_the_context_alone():
    a, b = (jax.random.normal(jax.random.key(i), (5, 5)) for i in range(2))
    np.testing.assert_array_equal(products.product(a, b), a @ b)
    with products.in_bfloat16():
        rounded = products.product(a, b)
    near = [part.astype(jnp.bfloat16).astype(jnp.float32) for part in (a, b)]
    np.testing.assert_allclose(rounded, near[0] @ near[1], rtol=1e-5, atol=1e-6)
    assert (rounded != a @ b).any()


@pytest.mark.parametrize(
    ("operation", "a", "b"),
    [
        (products.product, (3, 4), (4, 5)),
        (products.columns, (4, 3), (4, 5)),
        (products.columns, (3, 5), (3, 2)),
        (functools.partial(conv.conv, stride=2), (3, 7, 7, 3), (3, 2, 3, 4)),
        (conv.conv, (3, 7, 7, 3), (3, 2, 3, 4)),
        (functools.partial(conv.conv_transpose, stride=2), (3, 3, 4, 3), (3, 2, 3, 4)),
        (conv.depthwise_conv, (3, 7, 7, 3), (3, 2, 3)),
        (functools.partial(conv.depthwise_conv, stride=2), (3, 7, 7, 3), (3, 2, 3)),
    ],
)
@pytest.mark.parametrize("context", [contextlib.nullcontext, conv.many_channels])
def test_their_derivatives_in_both_modes_twice_and_in_a_batch(operation, a, b, context):
    first, second, other, another = draw(0, *a), draw(1, *b), draw(2, *a), draw(3, *b)
    with products.in_bfloat16(), context():
        # Each has another number of operations to be added up in another order, and no more to be rounded.
        same = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-4)
        made = operation(first, another)
        g = draw(4, *made.shape)
        same(jax.jvp(lambda b: operation(first, b), (second,), (another,))[1], made)
        same(jax.jvp(lambda a: operation(a, second), (first,), (other,))[1], operation(other, second))

        def to_first(g, b):
            return jax.vjp(lambda a: operation(a, b), first)[1](g)[0]

        def to_second(a, g):
            return jax.vjp(lambda b: operation(a, b), second)[1](g)[0]

        same(jax.vjp(lambda g: to_first(g, second), g)[1](other)[0], operation(other, second))
        same(jax.vjp(lambda b: to_first(g, b), second)[1](other)[0], to_second(other, g))
        same(jax.vjp(lambda g: to_second(first, g), g)[1](another)[0], made)
        same(jax.vjp(lambda a: to_second(a, g), first)[1](another)[0], to_first(g, another))
        batch = jnp.stack([second, another])
        same(jax.jit(jax.vmap(lambda b: operation(first, b)))(batch)[1], made)
        same(jax.jit(jax.vmap(lambda b: to_first(g, b)))(batch)[1], to_first(g, another))


def test_a_linear_layer_takes_them_in_a_batch_of_models_and_differentiated_twice():
    layer = nnx.Linear(6, 5, rngs=nnx.Rngs(0), dot_general=products.dot_general)
    plain = nnx.Linear(6, 5, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (3, 4, 6))

    def second(layer):
        def slope(x):
            return (jax.grad(lambda x: jnp.sum(layer(x) ** 3))(x) ** 2).sum()

        return jax.jit(jax.vmap(jax.grad(slope)))(x)

    exact = second(plain)
    with products.in_bfloat16():
        rounded = second(layer)
    assert (rounded != exact).any()
    np.testing.assert_allclose(rounded, exact, rtol=0.2, atol=0.1 * np.abs(exact).max())


@pytest.mark.parametrize(
    ("flags", "wanted"), [({"avx2", "avx512f"}, False), ({"avx512_bf16"}, True), ({"amx_bf16"}, True), (set(), False)]
)
def test_fast_products_are_those_that_the_processor_has(monkeypatch, flags, wanted):
    monkeypatch.setattr(compilation, "instructions", lambda: frozenset(flags))
    assert products.fast_in_bfloat16() is wanted
