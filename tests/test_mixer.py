import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flaxae import autoencoder, errors, training
from flaxae.autoencoder import Autoencoder, Config
from flaxae.nn import mixer
from flaxae.nn.heads import Deterministic
from flaxae.nn.mixer import Mixer


@pytest.mark.parametrize(("shape", "patch"), [((8, 8, 1), 4), ((7, 13, 3), 4), ((5, 9, 2), 3)])
def test_any_size_and_channels_come_back_in_shape(shape, patch, rng):
    model = autoencoder.build(Config(body=Mixer(patch, channels=5), head=Deterministic(3)), shape)
    x = rng.random((2, *shape), np.float32)
    assert training.apply(Autoencoder.reconstruct, model, x).shape == x.shape


def test_only_images_are_taken():
    with pytest.raises(errors.ConfigError, match="takes images"):
        autoencoder.build(Config(body=Mixer(), head=Deterministic(3)), (10,))


def test_a_block_is_that_of_the_paper(rng):
    block = mixer.MixerBlock(6, Mixer(channels=5), rngs=nnx.Rngs(0))
    drawn = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), nnx.state(block, nnx.Param))
    nnx.update(block, drawn)
    x = rng.normal(size=(3, 6, 5))  # [batch, tokens, channels], as the paper has it

    def of(param):
        return np.asarray(param[...])

    def normalized(x, norm):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-6) * of(norm.scale) + of(norm.bias)

    def mixed(x, mix):
        up = np.maximum(x @ of(mix.up.kernel) + of(mix.up.bias), 0)
        return up @ of(mix.down.kernel) + of(mix.down.bias)

    wanted = x + mixed(normalized(x, block.norms[0]).swapaxes(1, 2), block.tokens).swapaxes(1, 2)
    wanted = wanted + mixed(normalized(wanted, block.norms[1]), block.channels)
    made = block(jnp.asarray(x.transpose(2, 1, 0), jnp.float32))
    np.testing.assert_allclose(made.transpose(2, 1, 0), wanted, rtol=1e-4, atol=1e-4)


def test_the_norms_derivatives_are_those_of_its_formula(rng):
    def formula(x):
        centred = x - x.mean(axis=0, keepdims=True)
        return centred / jnp.sqrt(jnp.square(centred).mean(axis=0, keepdims=True) + 1e-6)

    x, change, g = (jnp.asarray(rng.normal(size=(7, 3, 4)), jnp.float32) for _ in range(3))

    def all_of(norm):
        made, along = jax.jvp(norm, (x,), (change,))
        pulled = jax.vjp(norm, x)[1](g)[0]
        twice = jax.grad(lambda x: jnp.sum(jax.vjp(norm, x)[1](g)[0] * change))(x)
        return made, along, pulled, twice, jax.vmap(norm)(jnp.stack([x, g]))

    for ours, want in zip(all_of(mixer.standardized), all_of(formula), strict=True):
        np.testing.assert_allclose(ours, want, rtol=1e-4, atol=1e-5)


def test_training_lowers_the_loss(digits):
    model = autoencoder.build(Config(body=Mixer(channels=8), head=Deterministic(8)), (8, 8, 1))
    history = training.fit(model, digits[:512], epochs=6, batch_size=64, learning_rate=1e-2, show=False)
    assert history["loss"][-1] < 0.8 * history["loss"][0]
