# %% [markdown]
# # Build on it
#
# Everything here is a function of arrays or a frozen dataclass. This notebook takes parts from the package, adds a
# head and an objective in ten lines each, trains many models as one program, and then leaves the training loop of
# the package for one of its own, a pure function under `vmap`.
#
# It takes some minutes on two CPU cores.

# %%
import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

import flaxae
from flaxae.autoencoder import Autoencoder
from flaxae.batches import Batch
from flaxae.nn.heads import Latent

# %% tags=["parameters"]
examples, epochs, steps = 10_000, 6, 300

# %%
data = flaxae.data.load("mnist")
x, x_test = data.train[:examples] / np.float32(255), data.test / np.float32(255)
shape = x.shape[1:]

# %% [markdown]
# ## A head in ten lines
#
# Finite scalar quantisation (Mentzer et al. 2024): each number of the code is rounded to one of `levels`, and the
# gradient passes as if it were not. The spec is plain data. Its `make` gives a module for features of a given shape.


# %%
@flaxae.register
@dataclasses.dataclass(frozen=True)
class Rounded:
    latent: int = 16
    levels: int = 5

    def make(self, features, *, rngs):
        return RoundedHead(self, features, rngs=rngs)


class RoundedHead(nnx.Module):
    def __init__(self, spec, features, *, rngs):
        self.linear = nnx.Linear(features[-1], spec.latent, rngs=rngs)
        self.half = (spec.levels - 1) / 2

    def __call__(self, features, key=None):
        z = self.half * jnp.tanh(self.linear(features))
        return Latent(z=(z + jax.lax.stop_gradient(jnp.round(z) - z)) / self.half)


# %% [markdown]
# ## An objective in ten lines
#
# A Wasserstein autoencoder (Tolstikhin et al. 2018): reconstruction, and the distance of the codes from N(0, I) in a
# kernel's mean. Float fields are hyper-parameters, held as arrays in the model. What is returned beside the loss
# goes into the history.


# %%
@flaxae.register
@dataclasses.dataclass(frozen=True)
class WassersteinMMD:
    weight: float = 10.0

    def __call__(self, model, batch, key):
        batch = Batch.of(batch)
        params, latent = model(batch, key)
        z, prior = latent.z, jax.random.normal(key, latent.z.shape)
        size = 2.0 * z.shape[1]
        mean = lambda a, b: (size / (size + jnp.square(a[:, None] - b[None]).sum(-1))).mean()  # noqa: E731
        distance = mean(z, z) + mean(prior, prior) - 2 * mean(z, prior)
        loss = -model.log_likelihood(params, batch) + self.weight * distance
        return loss, {"mmd": jnp.broadcast_to(distance, len(z))}


# %% [markdown]
# Parts are crossed by naming them. The config is plain data: it goes through JSON, and so into `save` and `load`.

# %%
rounded = flaxae.Config(head=Rounded())
wasserstein = dataclasses.replace(flaxae.presets.vanilla(latent=8), objective=WassersteinMMD())
print(wasserstein.to_dict()["objective"], wasserstein.hyper)

for name, config in {"rounded": rounded, "wasserstein": wasserstein}.items():
    model = flaxae.build(config, shape)
    history = flaxae.fit(model, x, epochs=epochs, show=False)
    print(f"{name}: validation loss {history['val_loss'][-1]:.1f}", {k for k in history if k.startswith("val_")})
    if name == "rounded":
        print("values of the code:", np.unique(np.round(np.asarray(model.encode(x_test[:100])), 3)))

# %% [markdown]
# ## A population
#
# `fit_population` trains a model for every combination of seeds, learning rates and hyper-parameters, as one
# program: `vmap` over the whole training state. Each member equals the model that `fit` gives alone. The members
# here differ in the weight of the new objective, so that the loss can't compare them; `score` names an objective
# that can.

# %%
population = flaxae.fit_population(
    wasserstein,
    x,
    seeds=range(2),
    weight=(0.0, 10.0, 1000.0),
    epochs=epochs,
    score=flaxae.objectives.squared_error,
    show=False,
)
for member in population.members:
    print(member.settings, f"error {member.score:.4f}, distance {member.history['val_mmd'][-1]:.4f}")

# %% [markdown]
# What did the weight do? The first two numbers of the codes, with the standard normal's circles of one and two
# deviations:

# %%
figure, axes = plt.subplots(1, 3, figsize=(6.5, 2.3), dpi=90, sharex=True, sharey=True)
for axis, member in zip(axes, population.members[:3], strict=True):
    z = flaxae.apply(Autoencoder.encode, member.model, x_test[:2000])
    axis.scatter(z[:, 0], z[:, 1], s=0.5)
    for radius in (1, 2):
        axis.add_patch(plt.Circle((0, 0), radius, fill=False, color="tab:red"))
    axis.set_title(f"weight {member.settings['weight']:g}", fontsize=9)
    axis.set(xlim=(-6, 6), ylim=(-6, 6), aspect="equal")
plt.show()

# %% [markdown]
# ## A loop of your own
#
# A model is an NNX module, hence a pytree. `nnx.split` gives its structure and its state, and from there on it is
# plain JAX: this whole training, from the seed to the loss, is one pure function of (seed, learning rate), compiled
# once and mapped over both.

# %%
config = flaxae.presets.variational(latent=8)
pixels = jnp.asarray(x)


def train(seed, learning_rate):
    """The losses of a training with Adam, [steps]."""
    key = jax.random.key(seed)
    graphdef, weights, rest = nnx.split(flaxae.build(config, shape), nnx.Param, ...)
    leaves, structure = jax.tree.flatten(weights)
    keys = jax.random.split(key, len(leaves))
    drawn = [leaf + 0.01 * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)]
    weights = jax.tree.unflatten(structure, drawn)  # so that seeds differ
    optimizer = optax.adam(learning_rate)

    def loss(weights, batch, key):
        model = nnx.merge(graphdef, weights, rest)
        return model.objective(model, batch, key).mean()  # the objective is per example; the mean is taken here

    def step(state, key):
        weights, moments = state
        pick_key, loss_key = jax.random.split(key)
        batch = pixels[jax.random.randint(pick_key, (128,), 0, len(pixels))]
        value, gradient = jax.value_and_grad(loss)(weights, batch, loss_key)
        updates, moments = optimizer.update(gradient, moments)
        return (optax.apply_updates(weights, updates), moments), value

    _, losses = jax.lax.scan(step, (weights, optimizer.init(weights)), jax.random.split(key, steps))
    return losses


rates = jnp.array([3e-4, 1e-3, 3e-3, 1e-2])
losses = jax.jit(jax.vmap(jax.vmap(train, (None, 0)), (0, None)))(jnp.arange(2), rates)
print(losses.shape)  # [seeds, rates, steps]

figure, axis = plt.subplots(figsize=(5, 2.6), dpi=90)
for rate, curve in zip(rates, np.asarray(losses).mean(0), strict=True):
    axis.plot(np.convolve(curve, np.ones(20) / 20, "valid"), label=f"{float(rate):g}")
axis.set(xlabel="step", ylabel="−ELBO, nats")
axis.legend(title="learning rate", fontsize=8)
plt.show()

# %% [markdown]
# ## Ask a model
#
# The parts are there to be called. The importance-weighted bound of one trained model, for more and more samples:

# %%
model = flaxae.build(config, shape)
flaxae.fit(model, x, epochs=epochs, show=False)
for samples in (1, 10, 100):
    objective = flaxae.objectives.ImportanceWeighted(samples)
    bound = jax.jit(lambda batch, key, objective=objective: objective(model, batch, key))
    nats = bound(x_test[:200], jax.random.key(0)).mean()
    print(f"{samples:4d} samples: −log p(x) ≤ {float(nats):.2f} nats")

# %% [markdown]
# ## Go on
#
# - [Add a head](../how-to/head.md), [add a likelihood](../how-to/likelihood.md): what each kind of part has to be.
# - [The reference](../reference/parts.md). `tests/test_extending.py` has some forty more examples: several codes,
#   conditions, batches as trees, optimizers by layer, schedules, any NNX state.
# - [Figures](../figures.md): what to beat.
