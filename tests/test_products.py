from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from flaxae.nn import products
from flaxae.parallel import compilation

SIZES = st.integers(1, 40)


@pytest.mark.parametrize("instructions", [set(), {"amx_bf16"}])
@given(SIZES, SIZES, SIZES, st.integers(0, 9))
def test_products_of_bfloat16_and_their_gradients_are_those_of_float64(instructions, m, k, n, seed):
    rng = np.random.default_rng(seed)
    a, b, g = (jnp.asarray(rng.normal(size=size), jnp.bfloat16) for size in ((m, k), (k, n), (m, n)))
    with mock.patch.object(compilation, "instructions", return_value=instructions):
        made, pull = jax.vjp(lambda a, b: products.product(a, b), a, b)
    exact = [np.asarray(part, np.float64) for part in (a, b, g)]
    wanted = (exact[0] @ exact[1], exact[2] @ exact[1].T, exact[0].T @ exact[2])
    for found, want in zip((made, *jax.jit(pull)(g)), wanted, strict=True):
        np.testing.assert_allclose(np.asarray(found, np.float64), want, rtol=2**-7, atol=1e-2)


def test_a_linear_layer_takes_them_in_a_batch_of_models_and_differentiated_twice():
    layer = nnx.Linear(6, 5, rngs=nnx.Rngs(0), dtype=jnp.bfloat16, dot_general=products.dot_general)
    plain = nnx.Linear(6, 5, rngs=nnx.Rngs(0), dtype=jnp.float32)
    x = jax.random.normal(jax.random.key(0), (3, 4, 6))

    def second(layer):
        def slope(x):
            return (jax.grad(lambda x: jnp.sum(layer(x).astype(jnp.float32) ** 3))(x) ** 2).sum()

        return jax.jit(jax.vmap(jax.grad(slope)))(x)

    np.testing.assert_allclose(second(layer), second(plain), rtol=0.2, atol=0.1 * np.abs(second(plain)).max())


@pytest.mark.parametrize(
    ("flags", "wanted"), [({"avx2", "avx512f"}, False), ({"avx512_bf16"}, True), ({"amx_bf16"}, True), (set(), False)]
)
def test_fast_products_are_those_that_the_processor_has(monkeypatch, flags, wanted):
    monkeypatch.setattr(compilation, "instructions", lambda: frozenset(flags))
    assert products.fast_in_bfloat16() is wanted
