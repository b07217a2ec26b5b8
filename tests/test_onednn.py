"""oneDNN's convolutions and products against `lax` and NumPy, and how compiled programs call them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from flaxae.nn import foreign, onednn, onednn_library
from flaxae.parallel import compilation

installed = pytest.mark.skipif(not onednn.loads(), reason="oneDNN is not installed")


def draw(seed, *shape):
    """Numbers that bfloat16 has too."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.bfloat16).astype(jnp.float32)


@st.composite
def shapes(draw):
    window = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    pads = tuple(draw(st.tuples(st.integers(0, k - 1), st.integers(0, k - 1))) for k in window)
    return draw(st.tuples(st.integers(4, 9), st.integers(4, 17))), window, pads


@installed
@given(
    shape=shapes(),
    channels=st.sampled_from([(1, 3, 5), (1, 16, 32), (1, 1, 16), (1, 48, 96), (8, 8, 8), (2, 6, 4)]),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16] if onednn.with_avx512() else [jnp.float32]),
)
def test_convolutions_and_their_adjoints_equal_those_of_lax(shape, channels, dtype):
    size, window, pads = shape
    groups, into, out = channels
    x, kernel = draw(0, 2, *size, into), draw(1, *window, into // groups, out)

    def theirs(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (1, 1), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
        )

    wanted, pull = jax.vjp(theirs, x, kernel)
    y = draw(2, *wanted.shape)

    @jax.jit
    def ours(x, kernel, y):
        x, kernel, y = (a.astype(dtype) for a in (x, kernel, y))
        of_kernel = onednn.to_kernel(x, y, window=window, pads=pads, groups=groups)
        return onednn.convolve(x, kernel, pads=pads), of_kernel

    for a, b in zip(ours(x, kernel, y), (wanted, pull(y)[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5 * float(jnp.abs(b).max()))


@installed
@pytest.mark.parametrize("transposed", [False, True])
def test_products_equal_those_of_numpy(transposed):
    a, b = np.asarray(draw(0, 3, 5, 20)), np.asarray(draw(1, 3, 20, 7))
    given = a.swapaxes(1, 2) if transposed else a
    made = jax.jit(onednn.multiply_transposed if transposed else onednn.multiply)(given, b)
    np.testing.assert_allclose(made, a @ b, rtol=1e-5, atol=1e-5)


@installed
def test_calls_in_loops_and_under_vmap():
    a, b = draw(0, 4, 2, 3, 3), draw(1, 2, 3, 3)
    each = jax.vmap(lambda a: lax.fori_loop(0, 3, lambda _, a: onednn.multiply(a, b), a))(a)
    np.testing.assert_allclose(each, a @ b @ b @ b, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of CPUs alone")
def test_what_a_function_raises_becomes_an_error_of_jax():
    def refuse(*addresses):
        raise ValueError(f"no {len(addresses)} of these")

    foreign.register("refuse", refuse)
    call = jax.ffi.ffi_call("refuse", jax.ShapeDtypeStruct((2,), jnp.float32))
    with pytest.raises(jax.errors.JaxRuntimeError, match="refuse: no 2 of these"):
        jax.block_until_ready(call(jnp.ones(2)))


def test_it_is_for_one_device_a_processor_that_it_is_fast_on_where_it_is_installed(monkeypatch):
    monkeypatch.setattr(onednn, "loads", lambda: True)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    for devices, instructions, there in ((1, {"avx2"}, True), (2, {"avx2"}, False), (1, {"avx"}, False)):
        monkeypatch.setattr(jax, "device_count", lambda devices=devices: devices)
        monkeypatch.setattr(compilation, "instructions", lambda instructions=instructions: frozenset(instructions))
        assert onednn.available() is there


def test_without_its_package_it_is_not_there(monkeypatch):
    monkeypatch.setattr(onednn_library, "PACKAGE", "no-such-package")
    monkeypatch.setattr(onednn_library, "load", onednn_library.load.__wrapped__)
    assert not onednn.loads.__wrapped__()


def test_a_library_that_can_not_be_loaded_is_told_of(monkeypatch):
    def load():
        raise OSError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(onednn_library, "load", load)
    with pytest.warns(UserWarning, match="U-Nets train without it, more slowly: libgomp.so.1"):
        assert not onednn.loads.__wrapped__()
