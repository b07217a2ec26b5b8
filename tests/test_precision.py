import contextlib
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flaxae import autoencoder, errors, presets, training
from flaxae.autoencoder import Config
from flaxae.corruptions import GaussianNoise
from flaxae.likelihoods import Gaussian
from flaxae.nn import conv, onednn, products
from flaxae.nn.convnet import ConvNet
from flaxae.nn.heads import Deterministic, Identity
from flaxae.nn.mixer import Mixer
from flaxae.nn.mlp import MLP
from flaxae.nn.unet import UNet
from flaxae.objectives import Layerwise, negative_log_likelihood, with_metrics
from flaxae.training import fitting, precision, step
from flaxae.training.population import fit_population
from flaxae.training.precision import MixedPrecision

KEY = jax.random.key(0)
pytestmark = pytest.mark.filterwarnings("ignore:This processor has no instructions for bfloat16")


@pytest.mark.parametrize("body", [MLP((32,)), ConvNet((8, 16))])
def test_the_products_are_in_bfloat16_and_the_loss_nearly_the_same(digits, body):
    model = autoencoder.build(Config(body=body, head=Deterministic(8)), (8, 8, 1))
    graphdef, state = nnx.split(model)

    def loss(objective):
        return jax.jit(lambda state: objective(nnx.merge(graphdef, state), digits[:64], KEY))

    exact, mixed = loss(negative_log_likelihood), loss(MixedPrecision(negative_log_likelihood))
    assert "bf16" in mixed.lower(state).as_text()
    exact, rounded = exact(state), mixed(state)
    assert rounded.dtype == jnp.float32
    assert (exact != rounded).any()
    np.testing.assert_allclose(rounded, exact, rtol=0.01)


def test_it_trains_weights_in_float32_as_well_as_float32_does(digits):
    config, settings = Config(body=MLP((32,)), head=Deterministic(8)), {"epochs": 4, "batch_size": 64, "show": False}
    losses = {}
    for name in ("float32", "bf16"):
        model = autoencoder.build(config, (8, 8, 1))
        history = training.fit(model, digits, precision=name, **settings)
        assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}
        losses[name] = history["val_loss"]
    losses["population"] = fit_population(config, digits, precision="bf16", **settings).best.history["val_loss"]
    for rounded in ("bf16", "population"):  # in float32, members equal their solo runs to 1e-7
        assert not np.allclose(losses[rounded], losses["float32"], rtol=1e-5)
        assert losses[rounded][-1] == pytest.approx(losses["float32"][-1], rel=0.01)


@pytest.mark.parametrize("name", ["layerwise", "contractive", "vector_quantized", "mixer", "stacked", "grid"])
def test_objectives_of_all_kinds_have_gradients_in_it(name):
    graphdef, params, rest = nnx.split(autoencoder.build(presets.PRESETS[name](), (16, 16, 1)), nnx.Param, ...)
    objective = MixedPrecision(autoencoder.own_objective)

    def loss(params):
        return with_metrics(objective(nnx.merge(graphdef, params, rest), jnp.ones((2, 16, 16, 1)), KEY))[0].mean()

    assert "rounded_" in str(jax.make_jaxpr(jax.grad(loss))(params))


def test_bfloat16_on_a_processor_without_it_says_so_and_is_taken(monkeypatch, digits):
    monkeypatch.setattr(products, "fast_in_bfloat16", lambda: False)
    model = autoencoder.build(Config(body=MLP((512,)), head=Deterministic(8)), (8, 8, 1))
    with pytest.warns(UserWarning, match="has no instructions for bfloat16"):
        history = training.fit(model, digits, precision="bf16", epochs=2, show=False)
    assert history["loss"][-1] < history["loss"][0]


def test_a_u_net_whose_products_are_rounded_has_nearly_the_same_loss():
    images = np.random.default_rng(0).random((8, 16, 16, 1), np.float32)
    model = autoencoder.build(Config(body=UNet((4, 8), 1), head=Identity(), likelihood=Gaussian()), (16, 16, 1))
    model.decoder.last.kernel[...] = 0.1 * jax.random.normal(KEY, model.decoder.last.kernel.shape)
    exact = jax.jit(lambda: negative_log_likelihood(model, images, KEY))()
    for there in {False, onednn.loads()}:
        with mock.patch.object(onednn, "available", return_value=there):
            rounded = jax.jit(lambda: MixedPrecision(negative_log_likelihood)(model, images, KEY))()
        assert (rounded != exact).any()
        np.testing.assert_allclose(rounded, exact, rtol=0.01)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_all_is_in_bfloat16_on_accelerators_and_products_alone_on_cpus(monkeypatch, platform):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    model = autoencoder.build(Config(body=MLP((32,)), head=Deterministic(8)), (8, 8, 1))
    mixed = MixedPrecision(negative_log_likelihood)
    program = str(jax.make_jaxpr(lambda x: mixed(model, x, KEY))(jnp.zeros((2, 8, 8, 1))))
    assert ("rounded_product" in program) == (platform == "cpu")
    assert ("bf16[2,32]" in program) == (platform == "gpu")


@pytest.mark.parametrize(
    ("body", "processor", "taken"),
    [
        (MLP((2048,)), "with instructions", "bf16"),
        (MLP((2048,)), "without", "float32"),
        (MLP((256,)), "with instructions", "float32"),
        (MLP((256,)), "with tiles", "bf16"),
        (MLP((8,)), "with tiles", "float32"),
        (ConvNet((64, 64)), "with tiles", "bf16"),
        (ConvNet((64, 64)), "with instructions", "float32"),
        (Mixer(), "with tiles", "bf16"),
        (UNet((64, 64)), "with tiles", "float32"),  # where oneDNN isn't
    ],
)
def test_auto_takes_bfloat16_where_its_products_pay(monkeypatch, body, processor, taken):
    monkeypatch.setattr(products, "fast_in_bfloat16", lambda: processor != "without")
    monkeypatch.setattr(products, "by_amx", lambda: processor == "with tiles")
    head = Identity() if isinstance(body, UNet) else Deterministic(8)
    model = autoencoder.build(Config(body=body, head=head, likelihood=Gaussian()), (16, 16, 1))
    assert precision.chosen("auto", model) == taken
    assert precision.chosen("bf16", model) == "bf16"


@pytest.mark.parametrize(
    "config",
    [
        Config(body=UNet((64, 64)), head=Identity(), likelihood=Gaussian()),
        Config(body=Mixer(), head=Deterministic(512)),
    ],
)
def test_auto_leaves_other_bodies_in_float32_on_accelerators(monkeypatch, config):
    monkeypatch.setattr(products, "fast_in_bfloat16", lambda: True)
    monkeypatch.setattr(products, "by_amx", lambda: False)
    assert precision.chosen("auto", autoencoder.build(config, (16, 16, 1))) == "float32"


@pytest.mark.parametrize(("platform", "taken"), [("cpu", "bf16"), ("gpu", "float32")])
def test_auto_leaves_layerwise_models_in_float32_on_accelerators_which_would_refuse(monkeypatch, platform, taken):
    model = autoencoder.build(Config(body=MLP((2048,)), head=Deterministic(8), objective=Layerwise()), (16, 16, 1))
    monkeypatch.setattr(products, "fast_in_bfloat16", lambda: True)
    monkeypatch.setattr(products, "by_amx", lambda: False)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert precision.chosen("auto", model) == taken
    mixed = MixedPrecision(model.config.objective)
    if taken == "float32":
        with pytest.raises(errors.ConfigError, match="on accelerators float32"):
            mixed(model, jnp.zeros((2, 16, 16, 1)), KEY)


def test_auto_takes_bfloat16_for_u_nets_where_onednn_is(monkeypatch):
    monkeypatch.setattr(products, "by_amx", lambda: True)
    for there, taken in ((True, "bf16"), (False, "float32")):
        monkeypatch.setattr(onednn, "available", lambda there=there: there)
        assert precision.chosen("auto", unet((64, 64))) == taken


def unet(channels=(8, 16)):
    config = Config(body=UNet(channels, 1), head=Identity(), likelihood=Gaussian())
    return autoencoder.build(config, (16, 16, 1))


def test_blocks_of_u_nets_are_compiled_for_their_precision_unless_they_train_for_a_second():
    compiled = functools.partial(fitting.compiled_for, unet(), negative_log_likelihood)
    assert compiled("float32", short=False)[2] is step.unet_block
    assert compiled("bf16", short=False)[2] is step.train_block
    assert compiled("bf16", short=True)[2] is step.short_block


def test_a_u_net_trains_alike_with_channels_last_and_with_the_batch_last(digits):
    images = np.tile(digits[:64], (1, 2, 2, 1))
    model = unet((16, 16))
    model.decoder.last.kernel[...] = 0.1 * jax.random.normal(KEY, model.decoder.last.kernel.shape)
    graphdef, state = nnx.split(model)

    def gradient():
        loss = lambda state: negative_log_likelihood(nnx.merge(graphdef, state), images, KEY).mean()  # noqa: E731
        return jax.tree.leaves(jax.jit(jax.grad(loss))(state))

    channels_last = gradient()
    with mock.patch.object(conv, "many_channels", contextlib.nullcontext):
        batch_last = gradient()
    for a, b in zip(channels_last, batch_last, strict=True):
        assert jnp.abs(b).max() > 0
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(b).max()))


@pytest.mark.skipif(not onednn.loads(), reason="oneDNN is not installed")
def test_a_u_net_trains_by_onednn_as_well_and_to_the_same_bits(monkeypatch, digits):
    monkeypatch.setattr(onednn, "available", lambda: True)
    images = np.tile(digits[:64], (1, 2, 2, 1))
    config = Config(body=UNet((8, 24), 1), head=Identity(), likelihood=Gaussian(), corruption=GaussianNoise(0.5))
    weights, losses = [], {}
    for name in ("float32", "bf16", "bf16"):
        model = autoencoder.build(config, (16, 16, 1))
        history = training.fit(model, images, precision=name, epochs=3, batch_size=16, show=False)
        losses[name] = history["val_loss"][-1]
        weights.append(jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert losses["bf16"] == pytest.approx(losses["float32"], rel=0.05)
    assert all((a == b).all() for a, b in zip(*weights[1:], strict=True))
    assert any((a != b).any() for a, b in zip(*weights[:2], strict=True))


def test_another_precision_is_refused(digits):
    model = autoencoder.build(Config(body=MLP((32,)), head=Deterministic(8)), (8, 8, 1))
    with pytest.raises(errors.ConfigError, match="Did you mean 'bf16'"):
        training.fit(model, digits, precision="bf-16", show=False)
