import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from flaxae import autoencoder, data, denoising, errors
from flaxae.autoencoder import Config
from flaxae.likelihoods import Gaussian
from flaxae.nn.heads import Deterministic
from flaxae.nn.mlp import MLP
from flaxae.trained import Trained


def identity(shape: tuple[int, ...], dtype: str = "uint8") -> Trained:
    """A linear autoencoder that gives back what it is given."""
    size = int(np.prod(shape))
    model = autoencoder.build(Config(body=MLP(()), head=Deterministic(size), likelihood=Gaussian()), shape)
    for linear in (model.head.linear, model.decoder.out):
        linear.kernel[...] = jnp.eye(size)
    full = 255.0 if dtype == "uint8" else 1.0
    return Trained(model, data.Scaling((0.0,), (full,), dtype), shape, "image", None)


@pytest.mark.parametrize(
    "shape", [(8, 8), (8, 8, 1), (3, 8, 8, 1), (20, 31), (5, 20, 31, 1), (3, 5), (8, 20, 3), (9, 9, 4), (2, 9, 17, 3)]
)
def test_tiles_of_any_size_add_up_to_the_image(shape, rng):
    image = rng.integers(0, 256, shape, dtype=np.uint8)
    np.testing.assert_array_equal(denoising.denoise(identity((8, 8, 1)), image), image)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_it_gives_back_the_dtype_it_was_given(dtype, rng):
    image = rng.uniform(size=(10, 12))
    image = (image * np.iinfo(dtype).max).astype(dtype) if dtype != "float32" else image.astype(dtype)
    clean = denoising.denoise(identity((8, 8, 1)), image)
    assert clean.dtype == image.dtype
    np.testing.assert_allclose(clean, image, rtol=1e-3, atol=1e-6)


def test_a_colour_model_takes_colour_images_alone(rng):
    model = identity((8, 8, 3), "float32")
    image = rng.uniform(size=(12, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(denoising.denoise(model, image), image, atol=1e-5)
    with pytest.raises(errors.DataError, match="3 channels"):
        denoising.denoise(model, image[..., :2])


def test_tables_go_through_as_they_are(rng):
    table = rng.normal(5, 3, (50, 4)).astype(np.float32)
    scaling = data.Scaling.fit(table)
    model = dataclasses.replace(identity((4,), "float32"), scaling=scaling, kind="tabular")
    np.testing.assert_allclose(denoising.denoise(model, table), table, rtol=1e-4, atol=1e-4)
    with pytest.raises(errors.DataError, match="4 columns"):
        denoising.denoise(model, table[:, :3])
