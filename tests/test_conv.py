"""All forms of every operation against `lax` and Flax, on the CPU."""

import contextlib
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from flaxae import errors
from flaxae.nn import conv as convolutions
from flaxae.nn import onednn, products
from flaxae.nn.conv import (
    Conv,
    ConvTranspose,
    DepthwiseConv,
    avg_pool,
    conv,
    conv_size,
    conv_transpose,
    depthwise_conv,
    from_nhwc,
    max_pool,
    per_channel,
    to_nhwc,
    upsample,
)

NHWC = ("NHWC", "HWIO", "NHWC")


FORMS = ["dots", "lax", "products", *(["onednn", "onednn for AVX2"] if onednn.loads() else [])]
ROUNDED = ["rounded dots", "rounded products"]
if onednn.loads() and onednn.with_avx512():
    ROUNDED.append("rounded onednn")


@contextlib.contextmanager
def in_form(name, monkeypatch):
    contexts = {"onednn": convolutions.many_channels, "products": convolutions.many_channels}
    rounded, name = name.startswith("rounded"), name.removeprefix("rounded ")
    if name.startswith("onednn"):
        name, with_avx512 = "onednn", not name.endswith("AVX2")
        monkeypatch.setattr(onednn, "with_avx512", lambda: with_avx512)
        for traced in (convolutions._convolve, convolutions._correlate):
            traced.clear_cache()  # what was traced for another processor
    monkeypatch.setattr(onednn, "available", lambda: name == "onednn")
    with (
        products.in_bfloat16() if rounded else contextlib.nullcontext(),
        contexts.get(name, contextlib.nullcontext)(),
    ):
        if name in ("dots", "lax"):
            monkeypatch.setattr(convolutions, "_batch_minor", lambda: name == "dots")
        yield name


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    """Runs a test in the forms of the CPU, and in that of the accelerators."""
    with in_form(request.param, monkeypatch) as name:
        yield name


@pytest.fixture(params=[*FORMS, *ROUNDED])
def any_form(request, monkeypatch):
    """In those that round as well, which change nothing in numbers that `draw_normal` gives."""
    with in_form(request.param, monkeypatch) as name:
        yield name


def draw_normal(seed, *shape):
    """Numbers that bfloat16 has too."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.bfloat16).astype(jnp.float32)


def in_nhwc(operation):
    """The operation on images [N, H, W, C], whatever the platform's layout."""
    return lambda x, *args, **kwargs: to_nhwc(operation(from_nhwc(x), *args, **kwargs))


def assert_same_with_gradients(ours, theirs, *args, of_largest=0.0):
    """Equal output and equal gradients in every argument, to float32 rounding, or a part of the largest number."""

    @functools.partial(jax.jit, static_argnums=0)
    def output_and_gradients(function, g, *args):
        out, vjp = jax.vjp(function, *args)
        return out, *vjp(g)

    g = draw_normal(7, *jax.eval_shape(theirs, *args).shape)
    for a, b in zip(output_and_gradients(ours, g, *args), output_and_gradients(theirs, g, *args), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5 + of_largest * float(jnp.abs(b).max()))


few = settings(max_examples=5, deadline=None)
sizes = st.sampled_from([(5, 8), (7, 7), (6, 9)])
windows = st.sampled_from([(1, 1), (2, 2), (3, 3), (3, 2), (5, 4)])
strides = st.sampled_from([(1, 1), (2, 2), (1, 2), (3, 2)])
paddings = st.sampled_from(["SAME", "VALID"])


LAYOUTS = [contextlib.nullcontext, convolutions.channels_last, convolutions.many_channels]


@pytest.mark.parametrize("context", LAYOUTS)
@given(
    shape=st.sampled_from([(2, 8, 8), (3, 13, 6), (1, 5, 21), (16, 9, 4)]),
    channels=st.sampled_from([(16, 16), (20, 17)]),
)
@few
def test_winograd_is_a_convolution(context, shape, channels):
    x, kernel = draw_normal(0, *shape, channels[0]), 0.1 * draw_normal(1, 3, 3, *channels)

    def ours(x, kernel):
        with context():
            batch_minor = convolutions._batch_minor()
            assert convolutions._winograd_pays(from_nhwc(x), channels[1], batch_minor=batch_minor)
            return in_nhwc(conv)(x, kernel)

    with mock.patch.object(convolutions, "LEAST_TILES", 1):
        theirs = functools.partial(
            lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=NHWC
        )
        assert_same_with_gradients(ours, theirs, x, kernel, of_largest=1e-5)


@pytest.mark.parametrize("context", [contextlib.nullcontext, convolutions.many_channels])
def test_winograd_in_both_modes_and_under_vmap(context):
    x, kernels = draw_normal(0, convolutions.LEAST_TILES, 4, 3, 16), 0.1 * draw_normal(1, 2, 3, 3, 16, 16)
    with context():
        out, tangent = jax.jvp(lambda k: in_nhwc(conv)(x, k), (kernels[0],), (kernels[1],))
        both = jax.vmap(lambda k: in_nhwc(conv)(x, k))(kernels)
    np.testing.assert_allclose(both[0], out, atol=1e-5)
    np.testing.assert_allclose(both[1], tangent, atol=1e-5)  # linear in the kernel


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of CPUs alone")
def test_winograd_is_left_alone_where_it_does_not_pay():
    x = jnp.zeros((64, 64, 64, 16), jnp.float32)  # channels first
    pays = functools.partial(convolutions._winograd_pays, batch_minor=True)
    assert pays(x, 64)
    assert not pays(x.astype(jnp.bfloat16), 64)
    assert not pays(x, 4)
    assert not pays(x[:, :8, :8], 64)
    assert not pays(x, 32, least=convolutions.WITH_AVX512.images)


@given(sizes, windows, strides, paddings)
@few
def check_conv(size, window, stride, padding):
    x, kernel = draw_normal(0, 2, *size, 3), draw_normal(1, *window, 3, 4)
    assert_same_with_gradients(
        lambda x, k: in_nhwc(conv)(x, k, stride, padding),
        lambda x, k: lax.conv_general_dilated(x, k, stride, padding, dimension_numbers=NHWC),
        x,
        kernel,
    )


def test_conv_equals_lax(any_form):
    check_conv()


@given(st.sampled_from([(5, 8), (7, 7), (20, 9)]), windows, strides, paddings)
@few
def check_depthwise(size, window, stride, padding):
    assert_same_with_gradients(
        lambda x, k: in_nhwc(depthwise_conv)(x, k, stride, padding),
        lambda x, k: lax.conv_general_dilated(
            x, k[:, :, None], stride, padding, dimension_numbers=NHWC, feature_group_count=3
        ),
        draw_normal(0, 2, *size, 3),
        draw_normal(1, *window, 3),
    )


def test_depthwise_conv_equals_lax(any_form):
    check_depthwise()


@given(st.sampled_from([(2, 3), (4, 3)]), windows, strides, paddings)
@few
def check_conv_transpose(size, window, stride, padding):
    assert_same_with_gradients(
        lambda x, k: in_nhwc(conv_transpose)(x, k, stride, padding),
        lambda x, k: lax.conv_transpose(x, k, stride, padding, dimension_numbers=NHWC),
        draw_normal(0, 2, *size, 4),
        draw_normal(1, *window, 4, 3),
    )


def test_conv_transpose_equals_lax(any_form):
    check_conv_transpose()


@given(sizes, windows, strides, paddings)
@few
def check_adjoint(size, window, stride, padding):
    image, kernel = draw_normal(0, 2, *size, 3), draw_normal(1, *window, 3, 4)
    mapped = jax.jit(lambda x, k: in_nhwc(conv)(x, k, stride, padding))(image, kernel)
    assert conv_size(size, window, stride, padding) == mapped.shape[1:3]
    x = draw_normal(2, *mapped.shape)
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    back = jax.jit(lambda x, k: in_nhwc(conv_transpose)(x, k, stride, padding, size))(x, flipped)
    assert back.shape == image.shape
    np.testing.assert_allclose(jnp.vdot(mapped, x), jnp.vdot(image, back), rtol=1e-4, atol=1e-3)


def test_conv_transpose_is_the_adjoint_for_every_size(form):
    check_adjoint()


@given(sizes, windows, strides, paddings)
@few
def check_pools(size, window, stride, padding):
    def reduce(x, start, operation):
        return lax.reduce_window(x, start, operation, (1, *window, 1), (1, *stride, 1), padding)

    def mean(x):
        return reduce(x, 0.0, lax.add) / reduce(jnp.ones_like(x), 0.0, lax.add)

    # Halves make ties, where the gradients have to agree too.
    x = jnp.round(2 * draw_normal(0, 2, *size, 3)) / 2
    args = {"window": window, "stride": stride, "padding": padding}
    assert_same_with_gradients(functools.partial(in_nhwc(max_pool), **args), lambda x: reduce(x, -jnp.inf, lax.max), x)
    assert_same_with_gradients(functools.partial(in_nhwc(avg_pool), **args), mean, x)


def test_pools_equal_lax(form):
    check_pools()


def test_max_pool_keeps_nan(form):
    for place in np.ndindex(2, 2):
        x = jnp.zeros((1, 2, 2, 1)).at[0, *place, 0].set(jnp.nan)
        assert jnp.isnan(in_nhwc(max_pool)(x)).all()


@pytest.mark.parametrize("size", [None, (7, 6), (8, 5)])
def test_upsample_repeats_and_mirrors_same_pooling(form, size):
    x = draw_normal(0, 2, 4, 3, 2)
    height, width = size or (8, 6)
    y = in_nhwc(upsample)(x, 2, size)
    np.testing.assert_array_equal(y, np.repeat(np.repeat(x, 2, 1), 2, 2)[:, :height, :width])
    np.testing.assert_allclose(in_nhwc(avg_pool)(y, 2, 2, "SAME"), x, rtol=1e-6)


def network(x, kernels):
    """A stack in the platform's layout: stride 2 on an odd size, pooled, and mirrored back."""
    down, up = kernels
    h = max_pool(jnp.tanh(conv(from_nhwc(x), down, 2)), 2, 2, "SAME")
    return to_nhwc(conv_transpose(upsample(h, 2, (3, 3)), up, 2, "SAME", x.shape[1:3]))


def loss(kernels, x):
    return jnp.mean(jnp.square(network(x, kernels) - x))


@pytest.fixture
def kernels():
    return draw_normal(0, 3, 3, 1, 2), draw_normal(1, 3, 3, 2, 1)


@pytest.mark.parametrize("shared", [True, False])
def test_population_equals_solo(form, kernels, shared):
    members = jax.tree.map(lambda k: jnp.stack([k, 2 * k, -k]), kernels)
    x = draw_normal(2, 4, 5, 5, 1) if shared else draw_normal(2, 3, 4, 5, 5, 1)
    together = jax.jit(jax.vmap(jax.grad(loss), in_axes=(0, None if shared else 0)))(members, x)
    alone = jax.jit(jax.grad(loss))
    for i in range(3):
        solo = alone(jax.tree.map(lambda k, i=i: k[i], members), x if shared else x[i])
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6), together, solo)


def test_scan_equals_steps(form, kernels):
    x = draw_normal(2, 3, 4, 5, 5, 1)

    def step(kernels, x):
        value, grads = jax.value_and_grad(loss)(kernels, x)
        return jax.tree.map(lambda k, g: k - 0.1 * g, kernels, grads), value

    scanned, values = jax.jit(lambda kernels, x: lax.scan(step, kernels, x))(kernels, x)
    jitted = jax.jit(step)
    for batch, value in zip(x, values, strict=True):
        kernels, expected = jitted(kernels, batch)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), scanned, kernels)


def test_forward_mode_and_second_derivatives_agree(form, kernels):
    x, tangent = draw_normal(2, 4, 5, 5, 1), jax.tree.map(jnp.ones_like, kernels)

    @jax.jit
    def slope(kernels):
        return jax.jvp(lambda k: loss(k, x), (kernels,), (tangent,))[1]

    gradient = jax.jit(jax.grad(loss))
    reverse = sum(jnp.vdot(g, t) for g, t in zip(gradient(kernels, x), tangent, strict=True))
    np.testing.assert_allclose(slope(kernels), reverse, rtol=1e-4)
    forward_over_reverse = jax.jvp(lambda k: gradient(k, x), (kernels,), (tangent,))[1]
    for a, b in zip(jax.grad(slope)(kernels), forward_over_reverse, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_bfloat16_stays_and_is_near_float32(form, kernels):
    x = draw_normal(2, 4, 5, 5, 1)
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (x, kernels))
    compiled = jax.jit(lambda *arguments: network(*arguments))  # of this form: JAX keeps what it traced of a function
    y = compiled(*half)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), compiled(x, kernels), rtol=0.1, atol=0.1)


@pytest.mark.skipif(not onednn.loads(), reason="oneDNN is not installed")
@given(shape=st.sampled_from([(2, 8, 8), (3, 13, 6)]), channels=st.sampled_from([(96, 96), (96, 112)]))
@settings(max_examples=3, deadline=None)
def test_winograd_by_products_of_onednn_is_a_convolution(shape, channels):
    x, kernel = draw_normal(0, *shape, channels[0]), 0.1 * draw_normal(1, 3, 3, *channels)

    def ours(x, kernel):
        with mock.patch.object(onednn, "available", return_value=True), convolutions.many_channels():
            return conv(x, kernel)

    with mock.patch.object(convolutions, "LEAST_TILES", 1):
        called = str(jax.make_jaxpr(jax.grad(lambda x, kernel: ours(x, kernel).sum(), (0, 1)))(x, kernel))
        assert "form=onednn" in called
        theirs = functools.partial(
            lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=NHWC
        )
        assert_same_with_gradients(ours, theirs, x, kernel, of_largest=1e-5)


def test_modules_equal_flax(form):
    x = draw_normal(0, 2, 5, 7, 3)
    ours = Conv(3, 4, kernel=(3, 2), stride=2, rngs=nnx.Rngs(0))
    flax = nnx.Conv(3, 4, (3, 2), 2, rngs=nnx.Rngs(1))
    nnx.update(ours, nnx.state(flax, nnx.Param))
    np.testing.assert_allclose(jax.jit(in_nhwc(ours))(x), flax(x), rtol=1e-5, atol=1e-5)

    ours = ConvTranspose(3, 4, kernel=3, stride=2, rngs=nnx.Rngs(0))
    flax = nnx.ConvTranspose(3, 4, (3, 3), 2, rngs=nnx.Rngs(1))
    nnx.update(ours, nnx.state(flax, nnx.Param))
    np.testing.assert_allclose(jax.jit(in_nhwc(ours))(x), flax(x), rtol=1e-5, atol=1e-5)

    ours = DepthwiseConv(3, kernel=(3, 2), stride=2, rngs=nnx.Rngs(0))
    flax = nnx.Conv(3, 3, (3, 2), 2, feature_group_count=3, rngs=nnx.Rngs(1))
    ours.kernel[...] = flax.kernel[...][:, :, 0]
    ours.bias[...] = flax.bias[...] = jnp.arange(3.0)
    np.testing.assert_allclose(jax.jit(in_nhwc(ours))(x), flax(x), rtol=1e-5, atol=1e-5)


def test_module_adds_its_bias_and_mirrors_an_odd_size(form):
    up = ConvTranspose(2, 3, stride=2, size=(5, 13), rngs=nnx.Rngs(0))
    up.bias[...] = jnp.arange(3.0)
    y = jax.jit(in_nhwc(up))(jnp.zeros((2, 3, 7, 2)))
    np.testing.assert_array_equal(y, np.broadcast_to(np.arange(3.0), (2, 5, 13, 3)))


def test_layout_is_undone_and_channels_broadcast(form):
    x = draw_normal(0, 2, 5, 4, 3)
    np.testing.assert_array_equal(to_nhwc(from_nhwc(x)), x)
    np.testing.assert_array_equal(to_nhwc(from_nhwc(x) * per_channel(jnp.arange(3.0))), np.asarray(x) * np.arange(3.0))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, k: conv(x, k, padding="same"), "Unknown padding 'same'"),
        (lambda x, k: conv(x, k, stride=0), "stride is 0"),
        (lambda x, k: conv(x[:, :2], k, padding="VALID"), "does not fit"),
        (lambda x, k: conv_transpose(x, k, 2, "SAME", (11, 8)), r"can't make \(11, 8\) of \(5, 4\)"),
        (lambda x, k: upsample(x, 2, (8, 8)), "can't be cropped"),
        (lambda x, k: max_pool(x, 6), "does not fit"),
    ],
)
def test_bad_settings_are_refused(form, call, words):
    with pytest.raises(errors.ConfigError, match=words):
        call(from_nhwc(jnp.zeros((2, 5, 4, 3))), jnp.zeros((3, 3, 3, 1)))


def test_depthwise_conv_refuses_other_channels(form):
    with pytest.raises(errors.DataError, match="2 channels and the kernel takes 3"):
        depthwise_conv(from_nhwc(jnp.zeros((4, 5, 5, 2))), jnp.zeros((3, 3, 3)))


@pytest.mark.parametrize("operation", [conv, conv_transpose])
def test_wrong_channels_are_refused(form, operation):
    with pytest.raises(errors.DataError, match="2 channels and the kernel takes 3"):
        operation(from_nhwc(jnp.zeros((4, 5, 5, 2))), jnp.zeros((3, 3, 3, 1)))
