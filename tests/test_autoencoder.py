import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flaxae import autoencoder, errors, metrics, objectives, presets
from flaxae.autoencoder import Autoencoder, Config
from flaxae.corruptions import GaussianNoise, Masking
from flaxae.likelihoods import Bernoulli, Gaussian
from flaxae.nn import heads
from flaxae.nn.convnet import ConvNet
from flaxae.nn.heads import Deterministic
from flaxae.nn.mlp import MLP

CONFIGS = [
    Config(),
    Config(body=ConvNet((4, 8), hidden=(16,)), likelihood=Gaussian(0.5), corruption=Masking(0.2)),
    Config(
        body=MLP((16, 8), "gelu", layer_norm=True, dropout=0.1),
        head=Deterministic(3),
    ),
    *(preset() for preset in presets.PRESETS.values()),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_config_survives_json(config):
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("body/kind", "MPL", "Did you mean 'MLP'"),
        ("likelihood/kind", "os.system", "Unknown likelihood"),
        ("head/kind", "Determinstic", "Did you mean 'Deterministic'"),
        ("head/latnet", 3, "Did you mean 'latent'"),
        ("haed", 3, "Did you mean 'head'"),
        ("head/latent", 0, "above 0"),
        ("head/latent", "32", "expected a value like 32"),
        ("head/latent", True, "expected a value like 32"),
        ("head", 5, "expected a value like Deterministic"),
        ("body/hidden", [0], "above 0"),
        ("body/dropout", 1.5, "below 1"),
        ("corruption/level", -1.0, "at least 0"),
    ],
)
def test_a_tampered_config_is_refused(path, value, message):
    values = Config(corruption=GaussianNoise()).to_dict()
    *parts, last = path.split("/")
    part = values[parts[0]] if parts else values
    part[last] = value
    with pytest.raises(errors.ConfigError, match=message):
        Config.from_dict(values)


def test_build_is_a_function_of_the_seed():
    def first(seed):
        return np.asarray(autoencoder.build(Config(), (6,), seed=seed).encoder.stack.layers[0].linear.kernel[...])

    np.testing.assert_array_equal(first(1), first(1))
    assert (first(1) != first(2)).any()


def test_large_models_begin_as_small_ones_do(monkeypatch):
    small = autoencoder.build(Config(body=MLP((16,))), (8, 8, 1), seed=3)
    monkeypatch.setattr(autoencoder, "FEW", 0)
    large = autoencoder.build(Config(body=MLP((16,))), (8, 8, 1), seed=3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), nnx.state(small), nnx.state(large))


def test_corruption_is_for_training_alone(digits):
    config = Config(body=MLP((16,)), corruption=GaussianNoise(0.5, clip=(0.0, 1.0)))
    model = autoencoder.build(config, (8, 8, 1))
    x = digits[:4]
    noisy = model.corrupt(x, jax.random.key(0))
    assert float(jnp.abs(noisy - x).mean()) > 0.1
    assert noisy.min() >= 0
    assert noisy.max() <= 1
    np.testing.assert_array_equal(model(x).params, model(x).params)
    assert (model(x, jax.random.key(0)).params != model(x, jax.random.key(1)).params).any()
    model.hyper.level[...] = jnp.float32(0)
    np.testing.assert_allclose(model(x, jax.random.key(0)).params, model(x).params, rtol=1e-6)


def test_the_profile_likelihood_is_psnr_in_nats(digits):
    model = autoencoder.build(Config(body=MLP((16,)), objective=objectives.profile_likelihood), (8, 8, 1))
    x = jnp.asarray(digits[:9])
    psnr = metrics.psnr(model.reconstruct(x), x)
    expected = 0.5 * 64 * (jnp.log(2 * jnp.pi * jnp.e) - psnr * jnp.log(10) / 10)
    np.testing.assert_allclose(model.objective(model, x, jax.random.key(0)), expected, rtol=1e-4)


def test_parts_of_ones_own_fit_in(digits):
    """The researcher's ten lines: a head that is not in any table."""

    class Unit(nnx.Module):
        def __init__(self, features, latent, *, rngs):
            self.linear = nnx.Linear(features, latent, rngs=rngs)

        def __call__(self, features, key=None):
            z = self.linear(features)
            return heads.Latent(z=z / jnp.linalg.norm(z, axis=-1, keepdims=True))

    rngs, body = nnx.Rngs(0), MLP((16,))
    encoder = body.encoder((8, 8, 1), rngs=rngs)
    model = Autoencoder(
        encoder, Unit(16, 5, rngs=rngs), body.decoder((5,), (8, 8, 1), rngs=rngs), likelihood=Bernoulli()
    )
    np.testing.assert_allclose(jnp.linalg.norm(model.encode(digits[:7]), axis=-1), 1, rtol=1e-5)
    assert model.reconstruct(digits[:7]).shape == (7, 8, 8, 1)


def test_configs_are_hashable_and_frozen():
    assert len({Config(), Config(), Config().with_latent(5)}) == 2
