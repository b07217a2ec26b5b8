import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxae import autoencoder, errors, training
from flaxae.autoencoder import Autoencoder, Config
from flaxae.nn.convnet import ConvNet
from flaxae.nn.heads import Deterministic


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((8, 8, 1), ConvNet((4,))),
        ((7, 13, 3), ConvNet((4, 6), kernel=5, residual=1)),
        ((9, 5, 2), ConvNet((3, 4, 5), hidden=(10,), activation="gelu")),
    ],
    ids=repr,
)
def test_any_size_and_channels_come_back_in_shape(shape, spec, rng):
    model = autoencoder.build(Config(body=spec, head=Deterministic(4)), shape)
    x = rng.uniform(size=(2, *shape)).astype(np.float32)
    assert training.apply(Autoencoder.encode, model, x).shape == (2, 4)
    reconstruction = training.apply(Autoencoder.reconstruct, model, x)
    assert reconstruction.shape == x.shape
    assert np.isfinite(reconstruction).all()


def test_it_learns(digits):
    model = autoencoder.build(Config(body=ConvNet((8, 16)), head=Deterministic(16)), (8, 8, 1))
    history = training.fit(model, digits[:512], epochs=8, batch_size=64, learning_rate=1e-2, show=False)
    assert history["val_loss"][-1] < 0.7 * history["val_loss"][0]


def test_examples_of_a_batch_do_not_mix(digits):
    """The batch is the last axis inside, where a wrong reshape would mix it with the pixels."""
    model = autoencoder.build(Config(body=ConvNet((4, 6), residual=1), head=Deterministic(8)), (8, 8, 1))
    together = training.apply(Autoencoder.reconstruct, model, digits[:5])
    apart = training.apply(Autoencoder.reconstruct, model, digits[:5], batch_size=1)
    np.testing.assert_allclose(together, apart, atol=1e-5)
    gradient = jax.jit(jax.grad(lambda x: model.reconstruct(x)[0].sum()))(jnp.asarray(digits[:3]))
    assert (gradient[1:] == 0).all()


def test_wrong_settings_are_refused():
    for wrong in ({"channels": (0,)}, {"kernel": -1}, {"activation": "rleu"}):
        with pytest.raises(errors.ConfigError):
            ConvNet(**wrong)
