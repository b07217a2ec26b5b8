# %% [markdown]
# # Learn what an autoencoder is
#
# An autoencoder is a network that gives back what it is given, through a narrow place: the code. What fits through
# has to be what matters. This notebook makes such a network, looks at its code, and then changes one thing at a
# time: the size of the code, noise, how many numbers may be on, and what distribution the codes have.
#
# It needs nothing but the package, and takes some minutes on two CPU cores.

# %%
import dataclasses

import jax
import matplotlib.pyplot as plt
import numpy as np

import flaxae
from flaxae.autoencoder import Autoencoder

# %% tags=["parameters"]
examples, epochs = 10_000, 8  # more of both is better, and slower

# %% [markdown]
# ## The data
#
# Seventy thousand handwritten digits come with the package. Each is an image of 28 × 28 grey values. They are scaled
# to [0, 1], because the model's last step, a Bernoulli likelihood, takes a grey value for a probability.

# %%
data = flaxae.data.load("mnist")
x_train, x_test = data.train[:examples] / np.float32(255), data.test / np.float32(255)
labels = data.test_labels
print(x_train.shape, x_test.shape)


def show(**rows):
    """Rows of images, each with a name."""
    _, axes = plt.subplots(len(rows), 1, figsize=(6, 0.62 * len(rows)), dpi=90)
    for axis, (name, images) in zip(np.atleast_1d(axes), rows.items(), strict=True):
        axis.imshow(np.concatenate(list(np.asarray(images)[..., 0]), axis=1), cmap="gray", vmin=0, vmax=1)
        axis.text(-5, 14, name.replace("_", " "), ha="right", va="center")
        axis.set_axis_off()
    plt.show()


show(x=x_test[:10])

# %% [markdown]
# ## Two numbers for each digit
#
# `presets.vanilla(latent=2)` names the five parts of a model. The encoder is a layer of 512 units, the head makes
# two numbers of them, the decoder is the encoder's mirror. Nothing is corrupted, and the objective is how improbable
# the image is, given its code.

# %%
config = flaxae.presets.vanilla(latent=2)
print(config)
model = flaxae.build(config, x_train.shape[1:])
history = flaxae.fit(model, x_train, epochs=epochs, show=False)
print(
    f"validation loss: {history['val_loss'][0]:.0f} nats in the first epoch, {history['val_loss'][-1]:.0f} in the last"
)

# %% [markdown]
# Of 784 grey values two numbers are left. What comes back is a blurred digit, and not always the right one:

# %%
show(x=x_test[:10], two_numbers=model.reconstruct(x_test[:10]))

# %% [markdown]
# Two numbers can be drawn. The model was told no classes, but digits of one class look alike, so they are near each
# other:

# %%
z = flaxae.apply(Autoencoder.encode, model, x_test)
figure, axis = plt.subplots(figsize=(4.5, 4), dpi=90)
points = axis.scatter(*z.T, c=labels, cmap="tab10", s=1)
figure.colorbar(points, ticks=range(10))
plt.show()

# %% [markdown]
# The decoder goes the other way, from any two numbers to an image. Between two digits it makes what lies between
# them:

# %%
ends = z[[3, 2]]  # a 0 and a 1
path = np.linspace(ends[0], ends[1], 10, dtype=np.float32)
show(between=model.decode(path))

# %% [markdown]
# ## How large should the code be?
#
# That is the hardest choice. Here are some sizes, beside principal components, which are the best that a network
# without hidden layers can do. On the command line, `flaxae reconstruct --sweep latent=2,8,32,128` does this.

# %%
from sklearn.decomposition import PCA

sizes = [2, 8, 32]
errors, linear, models = [], [], {}
for size in sizes:
    models[size] = flaxae.build(flaxae.presets.vanilla(latent=size), x_train.shape[1:])
    flaxae.fit(models[size], x_train, epochs=epochs, show=False)
    made = flaxae.apply(Autoencoder.reconstruct, models[size], x_test)
    errors.append(np.square(made - x_test).mean())
    pca = PCA(size).fit(x_train.reshape(len(x_train), -1))
    flat = x_test.reshape(len(x_test), -1)
    linear.append(np.square(pca.inverse_transform(pca.transform(flat)) - flat).mean())
for size, error, of_pca in zip(sizes, errors, linear, strict=True):
    print(f"{size:3d} numbers: error {error:.4f}, of as many principal components {of_pca:.4f}")
show(x=x_test[:10], **{f"{size} numbers": model.reconstruct(x_test[:10]) for size, model in models.items()})

# %% [markdown]
# ## Noise
#
# Give the encoder a noisy image, and ask for the clean one. Now even a large code can't just copy. The fifth part,
# the corruption, adds the noise, anew whenever an image is seen.

# %%
denoiser = flaxae.build(flaxae.presets.denoising(noise=0.5), x_train.shape[1:])
flaxae.fit(denoiser, x_train, epochs=epochs, show=False)
noisy = np.asarray(denoiser.corrupt(x_test[:10], jax.random.key(0)))
show(noisy=noisy, denoised=denoiser.reconstruct(noisy), clean=x_test[:10])

# %% [markdown]
# ## Few numbers on
#
# A code of 256 numbers, of which all but the 8 largest are set to 0. A digit is then put together from a few pieces
# out of many, and each piece can be looked at. The head is the only part that changes: `dataclasses.replace` makes
# one config of another.

# %%
from flaxae.nn.heads import TopK

config = dataclasses.replace(flaxae.presets.vanilla(), head=TopK(latent=256, active=8))
sparse = flaxae.build(config, x_train.shape[1:])
flaxae.fit(sparse, x_train, epochs=epochs, show=False)
z = np.asarray(sparse.encode(x_test[:1]))
print("numbers that are on:", np.flatnonzero(z))
for_each = np.where(np.eye(256, dtype=bool)[np.flatnonzero(z)], z, 0)
show(x=x_test[:1], together=sparse.reconstruct(x_test[:1]), each_alone=sparse.decode(for_each))

# %% [markdown]
# ## New digits
#
# Where in the space of codes are there digits, and where is nothing? A variational autoencoder answers by training:
# its codes are drawn to a standard normal distribution. So a code drawn from that distribution decodes to a digit,
# more or less.

# %%
variational = flaxae.build(flaxae.presets.variational(latent=16), x_train.shape[1:])
flaxae.fit(variational, x_train, epochs=epochs, show=False)
show(drawn=variational.sample(10, jax.random.key(0)), again=variational.sample(10, jax.random.key(1)))

# %% [markdown]
# Any other model can be sampled too, once a density is fitted to its codes:

# %%
prior = flaxae.generation.fit(models[32], x_train)
show(drawn=flaxae.generation.sample(models[32], prior, 10, seed=0))

# %% [markdown]
# ## Go on
#
# - [The variants](../variants.md), each with its equation.
# - Change something here: the size of the code, `noise`, `active`, `beta` of `presets.variational`.
# - The same from the command line, with a report to look at: `flaxae reconstruct --model top_k`, `flaxae denoise`,
#   `flaxae generate`.
# - [Build on it](researcher.md): a part of your own.
