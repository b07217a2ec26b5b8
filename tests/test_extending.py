"""The package extended without being edited: parts, probabilities, batches and training of one's own."""

import dataclasses
import json
import math
import os

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
from flax import nnx
from scipy import stats

import flaxae
from flaxae import autoencoder, batches, density, errors, likelihoods, objectives, presets, specs, training
from flaxae.autoencoder import Autoencoder, Config
from flaxae.batches import Batch
from flaxae.corruptions import GaussianNoise, Masking
from flaxae.nn import heads, priors
from flaxae.nn.convnet import FullyConvolutional
from flaxae.nn.mlp import MLP

SHAPE = (8, 8, 1)
KEY = jax.random.key(0)
QUICK = {"epochs": 2, "batch_size": 64, "show": False}


def tiny(**parts) -> Config:
    return Config(**{"body": MLP((16,)), "head": heads.Deterministic(4), **parts})


# --- parts as specs


@flaxae.register
@dataclasses.dataclass(frozen=True)
class FSQ:
    """Finite scalar quantisation (Mentzer et al. 2024): every number of the code is one of `levels`."""

    latent: int = 6
    levels: int = 5

    def make(self, features, *, rngs):
        return FSQHead(self, features, rngs=rngs)


class FSQHead(nnx.Module):
    def __init__(self, spec, features, *, rngs):
        self.linear = nnx.Linear(features[-1], spec.latent, rngs=rngs)
        self.half = (spec.levels - 1) / 2

    def __call__(self, features, key=None):
        bounded = self.half * jnp.tanh(self.linear(features))
        return heads.Latent(z=(bounded + jax.lax.stop_gradient(jnp.round(bounded) - bounded)) / self.half)


@flaxae.register
@dataclasses.dataclass(frozen=True)
class MMD:
    """Reconstruction, and the codes' distance to N(0, I) in a kernel's mean (Tolstikhin et al. 2018, WAE-MMD)."""

    weight: float = 1.0
    bandwidth: float = 2.0

    def __call__(self, model, batch, key):
        batch = Batch.of(batch)
        params, latent = model(batch, key)
        z, drawn = latent.z, jax.random.normal(key, latent.z.shape)

        def kernel(a, b):
            return jnp.exp(-jnp.square(a[:, None] - b[None]).sum(-1) / self.bandwidth).mean()

        distance = kernel(z, z) + kernel(drawn, drawn) - 2 * kernel(z, drawn)
        return -model.log_likelihood(params, batch) + self.weight * distance, {
            "mmd": jnp.broadcast_to(distance, len(z))
        }


@flaxae.register
@dataclasses.dataclass(frozen=True)
class Speckle:
    """Noise that grows with the values, and some that does not."""

    gain: float = 0.2
    floor: float = 0.05

    def __call__(self, key, x):
        return x + (self.gain * x + self.floor) * jax.random.normal(key, x.shape)


@flaxae.register
@dataclasses.dataclass(frozen=True)
class Cauchy(likelihoods.StudentT):
    """A likelihood of one's own, with a scale to sweep over."""

    degrees: float = 1.0


def own_config() -> Config:
    return tiny(head=FSQ(), objective=MMD(), corruption=Speckle(), likelihood=Cauchy(scale=0.5))


def test_parts_of_ones_own_go_through_json_training_saving_and_sweeps(digits, tmp_path):
    config = own_config()
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert set(config.hyper) == {"weight", "bandwidth", "gain", "floor", "scale", "degrees"}
    model = autoencoder.build(config, SHAPE)
    history = training.fit(model, digits[:300], **QUICK)
    assert {"loss", "mmd", "val_loss", "val_mmd"} <= set(history)
    assert np.isin(np.round(np.asarray(model.encode(digits[:9])) * 2), np.arange(-2, 3)).all()

    flaxae.save(model, tmp_path / "own")
    loaded = flaxae.load(tmp_path / "own")
    np.testing.assert_array_equal(loaded.model.encode(digits[:9]), model.encode(digits[:9]))

    population = training.fit_population(config, digits[:300], weight=(0.0, 10.0), gain=(0.1, 0.5), **QUICK)
    assert len(population.members) == 4
    assert float(population.members[-1].model.objective.weight) == 10.0
    assert float(population.members[-1].model.corruption.gain) == np.float32(0.5)
    assert population.members[0].history["loss"] != population.members[-1].history["loss"]


def test_a_part_that_nobody_registered_trains_and_says_why_it_is_not_saved(digits, tmp_path):
    def plain(model, batch, key):
        return -model.log_likelihood(model(batch, key).params, Batch.of(batch))

    model = autoencoder.build(tiny(objective=plain), SHAPE)
    training.fit(model, digits[:100], **QUICK)
    with pytest.raises(errors.ConfigError, match=r"plain can't be saved.*@flaxae\.register"):
        flaxae.save(model, tmp_path / "own")
    assert not (tmp_path / "own").exists()


def test_what_is_registered_is_a_frozen_dataclass_of_its_own_name():
    with pytest.raises(errors.ConfigError, match="frozen=True"):
        specs.register(type("Loose", (), {}))
    with pytest.raises(errors.ConfigError, match="known by the name MLP already"):
        specs.register(dataclasses.make_dataclass("MLP", [], frozen=True))
    with pytest.raises(errors.ConfigError, match="once the module that registers it is imported"):
        Config.from_dict({"head": {"kind": "SomebodyElses"}})


def test_a_preset_of_ones_own_package(tmp_path, monkeypatch):
    (tmp_path / "my_package.py").write_text(
        "import flaxae\n"
        "small = flaxae.Config(body=flaxae.MLP((3,)))\n"
        "def of(likelihood):\n    return flaxae.Config(body=flaxae.MLP((5,)), likelihood=likelihood)\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    gaussian = likelihoods.Gaussian()
    assert presets.find("my_package:small", gaussian).body.hidden == (3,)
    assert presets.find("my_package:of", gaussian).likelihood == gaussian
    with pytest.raises(errors.ConfigError, match="gives 3; expected"):
        presets.find("my_package:number", gaussian)
    with pytest.raises(errors.ConfigError, match="Can't import 'no_package'"):
        presets.find("no_package:small", gaussian)


def test_two_hyper_parameters_of_one_name_go_by_their_parts(digits):
    @dataclasses.dataclass(frozen=True)
    class Scaled:
        scale: float = 2.0

        def __call__(self, key, x):
            return self.scale * x

    config = tiny(corruption=Scaled(), likelihood=likelihoods.Gaussian(0.5))
    assert config.hyper == {"corruption.scale": 2.0, "likelihood.scale": 0.5}
    model = autoencoder.build(config, SHAPE)
    model.hyper["corruption.scale"][...] = jnp.float32(3)
    np.testing.assert_allclose(model.corrupt(digits[:2], KEY), 3 * digits[:2])


# --- codes with a shape


@pytest.mark.parametrize(
    ("head", "objective"),
    [
        (heads.Deterministic(3), objectives.negative_log_likelihood),
        (heads.VectorQuantizer(8, codebook=6), objectives.VectorQuantization()),
        (heads.Variational(3), objectives.ELBO(beta=4.0, free_bits=0.1)),
        (heads.Variational(3, priors.NormalMixture(4)), objectives.ImportanceWeighted(3)),
        (heads.Hierarchical(7, 3, (5,)), objectives.ELBO(beta=4.0, free_bits=0.1)),
        (heads.Sparse(5), objectives.L1()),
        (heads.Sparse(5, "sigmoid"), objectives.ActivityRate()),
        (heads.TopK(6, active=2), objectives.negative_log_likelihood),
        (heads.Deterministic(1), objectives.Contractive()),
        (FSQ(), MMD()),
    ],
    ids=lambda part: type(part).__name__,
)
def test_a_grid_of_codes_and_images_of_other_sizes(head, objective, digits):
    if isinstance(objective, MMD):
        objective = objectives.negative_log_likelihood
    model = autoencoder.build(Config(body=FullyConvolutional((4, 6)), head=head, objective=objective), SHAPE)
    x = digits[:4]  # as many as the grid is high and wide: no axis is taken for another
    large = np.tile(digits[:1], (2, 2, 3, 1))[:, :13, :21]

    def losses(model: Autoencoder, x: jax.Array) -> jax.Array:
        return objectives.with_metrics(model.objective(model, x, KEY))[0]

    for images, grid in ((x, (2, 2)), (large, (4, 6))):
        assert jax.eval_shape(model.encode, images).shape == (len(images), *grid, head.latent)
        assert training.apply(Autoencoder.reconstruct, model, images).shape == images.shape
    for images in (x, np.repeat(x[:1], 4, axis=0)):
        found = training.apply(losses, model, images)
        assert found.shape == (4,)
        assert np.isfinite(found).all()
    history = training.fit(model, digits[:100], **QUICK)
    assert np.isfinite(history["val_loss"]).all()


def test_a_sequence_of_codes(rng):
    x = rng.standard_normal((40, 13, 2)).astype(np.float32)
    body = FullyConvolutional((4, 6))
    model = autoencoder.build(
        Config(body=body, head=heads.Deterministic(3), likelihood=likelihoods.Gaussian()), (13, 2)
    )
    assert jax.eval_shape(model.encode, x).shape == (40, 4, 3)
    training.fit(model, x, **QUICK)
    assert training.apply(Autoencoder.reconstruct, model, np.repeat(x, 3, axis=1)).shape == (40, 39, 2)


@dataclasses.dataclass(frozen=True)
class UNet:
    """Two stages, whose features go to the decoder besides the coarsest ones: the code is a tree of grids."""

    channels: int = 4

    def encoder(self, shape, *, rngs):
        return UNetEncoder(self, shape, rngs=rngs)

    def decoder(self, code, shape, *, rngs):
        return UNetDecoder(self, code, shape, rngs=rngs)


class UNetEncoder(nnx.Module):
    def __init__(self, spec, shape, *, rngs):
        self.first = nnx.Conv(shape[-1], spec.channels, (3, 3), rngs=rngs)
        self.second = nnx.Conv(spec.channels, 2 * spec.channels, (3, 3), strides=2, rngs=rngs)

    def __call__(self, x, key=None):
        fine = nnx.relu(self.first(x))
        return fine, nnx.relu(self.second(fine))


class UNetDecoder(nnx.Module):
    def __init__(self, spec, code, shape, *, rngs):
        fine, coarse = code
        self.up = nnx.ConvTranspose(coarse[-1], fine[-1], (3, 3), strides=2, rngs=rngs)
        self.out = nnx.Conv(2 * fine[-1], shape[-1], (3, 3), rngs=rngs)

    def __call__(self, z, key=None):
        fine, coarse = z
        up = nnx.relu(self.up(coarse))[:, : fine.shape[1], : fine.shape[2]]
        return self.out(jnp.concatenate([fine, up], axis=-1))


def test_a_u_net_is_a_code_of_several_grids(digits):
    config = Config(body=UNet(), head=heads.Identity(), corruption=GaussianNoise(0.3))
    model = autoencoder.build(config, SHAPE)
    history = training.fit(model, digits[:300], **{**QUICK, "epochs": 8})
    assert history["val_loss"][-1] < history["val_loss"][0]
    fine, coarse = training.apply(Autoencoder.encode, model, digits[:7])
    assert (fine.shape, coarse.shape) == ((7, 8, 8, 4), (7, 4, 4, 8))
    assert training.apply(Autoencoder.decode, model, (fine, coarse)).shape == (7, *SHAPE)
    assert model.reconstruct(np.zeros((1, 12, 17, 1), np.float32)).shape == (1, 12, 17, 1)


@dataclasses.dataclass(frozen=True)
class Ladder:
    """p(z₂) = N(0, I), p(z₁ | z₂) = N(f(z₂), I), and a posterior of both from the features."""

    first: int = 5
    second: int = 2

    def make(self, features, *, rngs):
        return LadderHead(self, features, rngs=rngs)


class LadderLatent(heads.NamedTuple):
    z: tuple
    means: tuple
    logvars: tuple


class LadderHead(nnx.Module):
    def __init__(self, spec, features, *, rngs):
        self.sizes = (spec.first, spec.second)
        self.to = nnx.List([nnx.Linear(features[-1], 2 * size, rngs=rngs) for size in self.sizes])
        self.between = nnx.Linear(spec.second, spec.first, rngs=rngs)

    def __call__(self, features, key=None):
        means, logvars = zip(*(jnp.split(linear(features), 2, axis=-1) for linear in self.to), strict=True)
        latent = LadderLatent(means, means, logvars)
        return latent if key is None else latent._replace(z=self.draw(latent, key))

    def draw(self, latent, key):
        keys = jax.random.split(key, 2)
        parts = zip(latent.means, latent.logvars, keys, strict=True)
        return tuple(mean + jnp.exp(logvar / 2) * jax.random.normal(key, mean.shape) for mean, logvar, key in parts)

    def log_q(self, latent, z):
        parts = zip(z, latent.means, latent.logvars, strict=True)
        return sum(jax.scipy.stats.norm.logpdf(z, mean, jnp.exp(v / 2)).sum(-1) for z, mean, v in parts)

    def log_prior(self, z):
        return jax.scipy.stats.norm.logpdf(z[0], self.between(z[1])).sum(-1) + jax.scipy.stats.norm.logpdf(z[1]).sum(-1)

    def kl(self, latent):
        return self.log_q(latent, latent.z) - self.log_prior(latent.z)

    def sample(self, n, key):
        keys = jax.random.split(key, 2)
        second = jax.random.normal(keys[0], (n, self.sizes[1]))
        return self.between(second) + jax.random.normal(keys[1], (n, self.sizes[0])), second


@dataclasses.dataclass(frozen=True)
class TwoLevels:
    """A body whose decoder takes both levels of a ladder."""

    def encoder(self, shape, *, rngs):
        return MLP((16,)).encoder(shape, rngs=rngs)

    def decoder(self, code, shape, *, rngs):
        return TwoLevelDecoder(code, shape, rngs=rngs)


class TwoLevelDecoder(nnx.Module):
    def __init__(self, code, shape, *, rngs):
        self.inner = MLP((16,)).decoder((sum(size for (size,) in code),), shape, rngs=rngs)

    def __call__(self, z, key=None):
        return self.inner(jnp.concatenate(z, axis=-1), key)


def test_a_ladder_of_two_levels(digits):
    for objective in (objectives.ELBO(), objectives.ImportanceWeighted(4)):
        model = autoencoder.build(Config(body=TwoLevels(), head=Ladder(), objective=objective), SHAPE)
        history = training.fit(model, digits[:300], **{**QUICK, "epochs": 6})
        assert history["val_loss"][-1] < history["val_loss"][0]
    assert model.sample(3, KEY).shape == (3, *SHAPE)
    binary = (digits[:20] > 0.5).astype(np.float32)
    bound = density.elbo(model, binary)
    nll = density.negative_log_likelihood(model, binary, samples=200)
    assert nll.mean() < np.mean(bound.kl - bound.log_likelihood)


# --- probabilities against theory: p(z) = N(m, s²), p(x | z) = N(W z + b, noise² I), so that p(x) is known


@dataclasses.dataclass(frozen=True)
class Shifted:
    """N(1, 0.5²) by a log density alone, or as what a flow z = 1 + 0.5 u makes of N(0, I)."""

    flow: bool = False

    def make(self, code, *, rngs):
        return ShiftedDensity(code, self.flow)


@dataclasses.dataclass(frozen=True)
class ShiftedDensity:
    code: tuple
    flow: bool

    def log_prob(self, z):
        if self.flow:
            u = (z - 1.0) / 0.5
            return jax.scipy.stats.norm.logpdf(u).sum(-1) - z.shape[-1] * math.log(0.5)
        return jax.scipy.stats.norm.logpdf(z, 1.0, 0.5).sum(-1)

    def sample(self, n, key):
        return 1.0 + 0.5 * jax.random.normal(key, (n, *self.code))


@dataclasses.dataclass(frozen=True)
class Vamp:
    """The mean of q at learnt pseudo-features (after Tomczak & Welling 2018), by the head's own layer."""

    latent: int = 2
    components: int = 7

    def make(self, features, *, rngs):
        return VampHead(self, features, rngs=rngs)


class VampHead(heads.VariationalHead):
    def __init__(self, spec, features, *, rngs):
        super().__init__(heads.Variational(spec.latent), features, rngs=rngs)
        self.pseudo = nnx.Param(jax.random.normal(rngs.params(), (spec.components, *features)))

    def log_prior(self, z):
        latent = self(self.pseudo[...])
        each = jax.vmap(lambda z: self.log_q(latent, z[None]))(z)
        return jax.nn.logsumexp(each, axis=-1) - math.log(each.shape[-1])


def linear_gaussian(prior) -> tuple[Autoencoder, np.ndarray, np.ndarray]:
    """A linear model under the prior N(1, 0.5²), with a q near the posterior; x of it, and log p(x)."""
    rng = np.random.default_rng(3)
    weights, bias, noise, mean, deviation = rng.standard_normal((2, 5)), rng.standard_normal(5), 0.7, 1.0, 0.5
    head, likelihood = heads.Variational(2, prior), likelihoods.Gaussian(noise)
    model = autoencoder.build(Config(MLP(()), head, objectives.ELBO(), likelihood=likelihood), (5,))
    covariance = np.linalg.inv(np.eye(2) / deviation**2 + weights @ weights.T / noise**2)
    to_mean = weights.T @ covariance / noise**2
    offset = covariance @ np.full(2, mean / deviation**2) - bias @ to_mean
    model.decoder.out.kernel[...] = jnp.float32(weights)
    model.decoder.out.bias[...] = jnp.float32(bias)
    model.head.linear.kernel[...] = jnp.float32(np.concatenate([to_mean, np.zeros((5, 2))], axis=1))
    wide = 10 * np.arctanh(np.log(1.3 * np.diag(covariance)) / 10)
    model.head.linear.bias[...] = jnp.float32(np.concatenate([offset, wide]))
    centre = np.full(2, mean) @ weights + bias
    marginal = stats.multivariate_normal(centre, deviation**2 * weights.T @ weights + noise**2 * np.eye(5))
    x = marginal.rvs(60, random_state=rng).astype(np.float32)
    return model, x, marginal.logpdf(x)


@pytest.mark.parametrize("prior", [Shifted(), Shifted(flow=True)], ids=["density", "flow"])
def test_another_prior_is_right_in_elbo_importance_weights_and_density(prior):
    model, x, log_p = linear_gaussian(prior)
    nll = density.negative_log_likelihood(model, x, samples=3000)
    assert -nll.mean() == pytest.approx(log_p.mean(), abs=0.02)
    keys = jax.random.split(jax.random.key(0), 40)
    weighted = jax.jit(jax.vmap(lambda key: objectives.ImportanceWeighted(300)(model, x, key)))(keys[:5])
    assert -np.mean(weighted) == pytest.approx(log_p.mean(), abs=0.05)
    bounds = jax.jit(jax.vmap(lambda key: model.objective(model, x, key)))(keys)
    terms = [density.elbo(model, x, seed=seed) for seed in range(40)]
    bound = np.mean([t.log_likelihood - t.kl for t in terms])
    assert -np.mean(bounds) == pytest.approx(bound, abs=0.1)
    assert log_p.mean() - 1.0 < bound < log_p.mean() - 0.02
    np.testing.assert_allclose(np.asarray(model.head.sample(4000, KEY)).mean(0), 1.0, atol=0.05)


def test_a_subclass_with_another_prior_alone_is_not_taken_for_the_standard_one():
    model, x, log_p = linear_gaussian(priors.StandardNormal())

    class Moved(heads.VariationalHead):
        def log_prior(self, z):
            return jax.scipy.stats.norm.logpdf(z, 1.0, 0.5).sum(-1)

    moved = Moved(heads.Variational(2), (5,), rngs=nnx.Rngs(0))
    nnx.update(moved, nnx.state(model.head))
    model.head = moved
    nll = density.negative_log_likelihood(model, x, samples=3000)
    assert -nll.mean() == pytest.approx(log_p.mean(), abs=0.02)
    assert np.asarray(model.objective(model, x, KEY)).mean() > nll.mean()


def test_a_vamp_prior_trains_and_its_density_is_normalised(digits):
    model = autoencoder.build(tiny(head=Vamp(), objective=objectives.ELBO()), SHAPE)
    history = training.fit(model, digits[:300], **{**QUICK, "epochs": 6})
    assert history["val_loss"][-1] < history["val_loss"][0]
    side = np.linspace(-30, 30, 601)
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2).astype(np.float32)
    mass = (
        np.exp(training.apply(lambda model, z: model.head.log_prior(z), model, grid)).sum() * (side[1] - side[0]) ** 2
    )
    assert mass == pytest.approx(1, abs=0.02)


@dataclasses.dataclass(frozen=True)
class VonMisesFisher:
    """q = vMF(mean, concentration) on the circle, against the uniform prior (after Davidson et al. 2018)."""

    concentration: float = 1.5

    def make(self, features, *, rngs):
        return VonMisesFisherHead(self, features, rngs=rngs)


class VonMisesFisherHead(nnx.Module):
    def __init__(self, spec, features, *, rngs):
        self.linear = nnx.Linear(features[-1], 2, rngs=rngs)
        self.k = spec.concentration

    def __call__(self, features, key=None):
        mean = self.linear(features)
        mean = mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)
        latent = heads.Latent(z=mean, mean=mean)
        return latent if key is None else latent._replace(z=self.draw(latent, key))

    def draw(self, latent, key):
        angles = jnp.linspace(-jnp.pi, jnp.pi, 721)
        mass = jnp.cumsum(jnp.exp(self.k * jnp.cos(angles)))
        turn = jnp.interp(jax.random.uniform(key, len(latent.mean)), mass / mass[-1], angles)
        cos, sin = jnp.cos(turn)[:, None], jnp.sin(turn)[:, None]
        return cos * latent.mean + sin * jnp.stack([-latent.mean[:, 1], latent.mean[:, 0]], axis=-1)

    def log_q(self, latent, z):
        constant = jnp.log(2 * jnp.pi) + jnp.log(jax.scipy.special.i0(jnp.float32(self.k)))
        return self.k * (latent.mean * z).sum(-1) - constant

    def log_prior(self, z):
        return jnp.full(len(z), -jnp.log(2 * jnp.pi))

    def kl(self, latent):
        return self.log_q(latent, latent.z) - self.log_prior(latent.z)

    def sample(self, n, key):
        angle = jax.random.uniform(key, (n,), maxval=2 * jnp.pi)
        return jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def test_a_von_mises_fisher_head(rng):
    model = autoencoder.build(
        Config(MLP(()), VonMisesFisher(), objectives.ELBO(), likelihood=likelihoods.Gaussian(0.5)), (2,)
    )
    x = rng.standard_normal((50, 2)).astype(np.float32)
    # p(x) = ∫ N(x; W z + b, 0.5²) dz / 2π over the circle, by the trapezium rule
    angle = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    means = np.asarray(model.decode(np.stack([np.cos(angle), np.sin(angle)], -1).astype(np.float32)))
    expected = np.log(np.mean([stats.norm.pdf(x, mean, 0.5).prod(-1) for mean in means], axis=0))
    nll = density.negative_log_likelihood(model, x, samples=4000)
    np.testing.assert_allclose(-nll, expected, atol=0.2)
    bound = np.mean([density.elbo(model, x, seed=s).log_likelihood - density.elbo(model, x, seed=s).kl for s in (1, 2)])
    assert bound < expected.mean()
    exact = stats.vonmises(1.5).entropy()
    kl = np.mean([density.elbo(model, x, seed=s).kl for s in range(10)])
    assert kl == pytest.approx(np.log(2 * np.pi) - exact, abs=0.1)


# --- batches as trees


def test_pairs_are_learnt_from_input_to_target(digits, rng):
    shown = np.clip(digits[:400] + 0.3 * rng.standard_normal(digits[:400].shape), 0, 1).astype(np.float32)
    model = autoencoder.build(tiny(body=MLP((64,)), head=heads.Deterministic(16)), SHAPE)
    training.fit(model, {"x": shown, "target": digits[:400]}, **{**QUICK, "epochs": 30})
    error = np.square(training.apply(Autoencoder.reconstruct, model, shown) - digits[:400]).mean()
    assert error < np.square(shown - digits[:400]).mean()


def test_a_weight_counts_as_so_many_rows(digits):
    x = digits[:40]
    weight = np.r_[np.full(10, 3.0), np.full(20, 1.0), np.zeros(10)].astype(np.float32)
    rows = np.repeat(np.arange(40), weight.astype(int))
    settings = {"epochs": 3, "validation": 0.0, "show": False, "learning_rate": 1e-2}
    weighted, repeated, parts = (autoencoder.build(tiny(), SHAPE) for _ in range(3))
    one = training.fit(weighted, {"x": x, "weight": weight}, batch_size=40, **settings)
    other = training.fit(repeated, x[rows], batch_size=len(rows), **settings)
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
    np.testing.assert_allclose(weighted.encode(x), repeated.encode(x), atol=1e-3)
    training.fit(parts, {"x": x, "weight": weight}, batch_size=40, microbatches=2, **settings)
    np.testing.assert_allclose(parts.encode(x), weighted.encode(x), atol=1e-3)
    held_out = training.fit(parts, x, batch_size=40, **{**settings, "validation": {"x": x, "weight": weight}})
    expected = np.average(np.asarray(parts.objective(parts, x, KEY)), weights=weight)
    assert min(held_out["val_loss"]) == pytest.approx(expected, rel=1e-4)


def test_what_is_not_observed_is_neither_seen_nor_asked_for(digits, rng):
    observed = rng.random(digits[:100].shape) < 0.7
    damaged = np.where(observed, digits[:100], np.nan).astype(np.float32)
    model = autoencoder.build(tiny(), SHAPE)
    batch = {"x": damaged, "observed": observed}
    history = training.fit(model, batch, **QUICK)
    assert np.isfinite(history["val_loss"]).all()
    filled = training.check_examples(model, batch)
    other = {**filled, "x": np.where(observed, filled["x"], 0.77).astype(np.float32)}
    for function in (Autoencoder.reconstruct, Autoencoder.encode):
        np.testing.assert_allclose(function(model, filled), function(model, other), atol=1e-6)
    np.testing.assert_allclose(model.objective(model, filled, KEY), model.objective(model, other, KEY), rtol=1e-5)


def test_a_conditional_model_is_told_what_to_make(digits):
    from sklearn.datasets import load_digits

    labels = np.eye(10, dtype=np.float32)[load_digits().target]
    config = Config(MLP((64,)), heads.Variational(2), objectives.ELBO())
    model = autoencoder.build(config, SHAPE, conditions=10)
    batch = {"x": digits, "condition": labels}
    history = training.fit(model, batch, epochs=30, batch_size=128, learning_rate=1e-2, show=False)
    plain = autoencoder.build(config, SHAPE)
    without = training.fit(plain, digits, epochs=30, batch_size=128, learning_rate=1e-2, show=False)
    assert min(history["val_loss"]) < min(without["val_loss"])
    drawn = np.asarray(model.sample(200, KEY, np.tile(labels[:1], (200, 1)))).mean(0)  # of zeros
    zeros, ones = (digits[labels[:, k] == 1].mean(0) for k in (0, 1))
    assert np.square(drawn - zeros).mean() < 0.3 * np.square(drawn - ones).mean()
    with pytest.raises(errors.DataError, match="a condition of 10 numbers; given was none"):
        training.fit(model, digits, **QUICK)
    with pytest.raises(errors.ConfigError, match="built without"):
        training.fit(plain, batch, **QUICK)


def test_labels_reach_an_objective_of_ones_own(digits):
    from sklearn.datasets import load_digits

    def by_class(model, batch, key):
        assert set(batch) == {"x", "label", "extra"}
        return (
            objectives.negative_log_likelihood(model, batch["x"], key) * (batch["label"] == 3).astype(jnp.float32)
            + 0 * batch["extra"]
        )

    batch = {"x": digits, "label": load_digits().target, "extra": np.ones(len(digits), np.float32)}
    model = autoencoder.build(tiny(), SHAPE)
    training.fit(model, batch, objective=by_class, epochs=5, batch_size=64, learning_rate=1e-2, show=False)
    of_class = [
        np.square(model.reconstruct(digits[batch["label"] == k]) - digits[batch["label"] == k]).mean() for k in (3, 8)
    ]
    assert of_class[0] < of_class[1]
    members = training.fit_population(tiny(), batch, seeds=(0, 1), objective=by_class, **QUICK).members
    assert len(members) == 2


def test_whole_numbers_under_a_likelihood_of_categories(rng):
    x = rng.integers(0, 3, (300, 1)) + np.zeros((1, 6), int)
    model = autoencoder.build(tiny(likelihood=likelihoods.Categorical(3)), (6,))
    training.fit(model, x, epochs=40, batch_size=64, learning_rate=1e-2, show=False)
    assert (np.asarray(model.reconstruct(x)) == x).mean() > 0.95
    with pytest.raises(errors.DataError, match="range from 0 to 3"):
        training.fit(model, np.r_[x, [[3] * 6]], **QUICK)


def test_trees_on_a_mesh_and_lengths_that_differ(digits):
    from flaxae.parallel import distributed

    batch = {"x": digits[:128], "weight": np.ones(128, np.float32)}
    plain, shared = (autoencoder.build(tiny(), SHAPE) for _ in range(2))
    one = training.fit(plain, batch, **QUICK)
    two = training.fit(shared, batch, mesh=distributed.mesh("data=2"), **QUICK)
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
    with pytest.raises(errors.DataError, match=r"as many examples; given were: weight \[128\], x \[127, 8, 8, 1\]"):
        training.fit(plain, {**batch, "x": digits[:127]}, **QUICK)
    with pytest.raises(errors.DataError, match="has to have x"):
        batches.Batch.of({"y": digits})


# --- the loop


def test_optimizers_of_optax_with_clipping_rates_a_layer_and_freezing(digits):
    def of_layer(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: "still" if "encoder" in str(path) else "moves", params)

    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.multi_transform({"moves": optax.adam(1e-2), "still": optax.set_to_zero()}, of_layer),
    )
    model = autoencoder.build(tiny(), SHAPE)
    before = jax.tree.map(np.array, nnx.state(model, nnx.Param))
    history = training.fit(model, digits[:300], optimizer=optimizer, **QUICK)
    after = nnx.state(model, nnx.Param)
    assert history["loss"][-1] < history["loss"][0]
    jax.tree.map(np.testing.assert_array_equal, before["encoder"], jax.tree.map(np.array, after["encoder"]))
    assert (before["head"]["linear"]["kernel"][...] != after["head"]["linear"]["kernel"][...]).any()
    with pytest.raises(errors.ConfigError, match="all of the optimizer"):
        training.fit(model, digits, optimizer=optimizer, learning_rate=1e-3, **QUICK)
    members = training.fit_population(tiny(), digits[:300], seeds=(0, 1), optimizer=optimizer, **QUICK).members
    np.testing.assert_allclose(members[0].model.encode(digits[:5]), model.encode(digits[:5]), atol=1e-3)


def test_a_schedule_of_beta_and_the_loss_without_it(digits, tmp_path):
    """Chosen by the annealed loss, the first epoch would be kept: it has the lowest."""
    config = tiny(head=heads.Variational(4), objective=objectives.ELBO(beta=7.0))
    model = autoencoder.build(config, SHAPE)
    steps = 5 * (270 // 64)
    settings = {"epochs": 5, "batch_size": 64, "show": False, "schedules": {"beta": optax.linear_schedule(0, 1, steps)}}
    history = training.fit(model, digits[:300], folder=tmp_path, **settings)
    assert float(model.hyper.beta[...]) == 1.0
    assert history["val_loss"][-1] == min(history["val_loss"])
    held_out = training.split(model, digits[:300], 0.1, 0, None)[1]
    key = jax.random.fold_in(jax.random.split(jax.random.key(0), 2)[1], 0)
    exact = float(model.objective(model, held_out, key).mean())
    assert history["val_loss"][-1] == pytest.approx(exact, rel=1e-3)
    constant = autoencoder.build(config, SHAPE)
    training.fit(constant, digits[:300], **{**settings, "schedules": {"beta": lambda step: 1.0}})
    assert np.abs(constant.encode(digits[:5]) - model.encode(digits[:5])).max() > 1e-3
    resumed = autoencoder.build(config, SHAPE)
    training.fit(resumed, digits[:300], folder=tmp_path, resume=True, **settings)
    np.testing.assert_array_equal(resumed.encode(digits[:5]), model.encode(digits[:5]))
    with pytest.raises(errors.ConfigError, match="Did you mean 'beta'"):
        training.fit(model, digits, **{**settings, "schedules": {"betta": lambda step: 1.0}})


def test_metrics_stopping_and_what_is_kept(digits):
    def with_metrics(model, x, key):
        return objectives.negative_log_likelihood(model, x, key), {"largest": jnp.abs(model.encode(x)).max(axis=-1)}

    told = []

    def stop_after_three(metrics):
        told.append(metrics)
        return metrics["epoch"] == 3

    model = autoencoder.build(tiny(), SHAPE)
    history = training.fit(
        model, digits[:300], objective=with_metrics, on_epoch=stop_after_three, **{**QUICK, "epochs": 50}
    )
    assert [len(values) for values in history.values()] == [3] * len(history)
    assert told[-1]["largest"] == pytest.approx(history["largest"][-1])
    assert told[-1]["val_largest"] == pytest.approx(history["val_largest"][-1])

    few = {"epochs": 200, "batch_size": 20, "learning_rate": 0.02, "validation": digits[100:300], "show": False}
    best, last, by_score = (autoencoder.build(tiny(body=MLP((32,))), SHAPE) for _ in range(3))
    training.fit(best, digits[:20], **few)
    kept = training.fit(last, digits[:20], keep="last", **few)
    assert kept["val_loss"][-1] > min(kept["val_loss"])
    losses = [float(objectives.negative_log_likelihood(m, digits[100:300], KEY).mean()) for m in (best, last)]
    assert losses == pytest.approx([min(kept["val_loss"]), kept["val_loss"][-1]], rel=1e-4)

    def largest_loss(model, x, key):
        return -objectives.negative_log_likelihood(model, x, key)

    scored = training.fit(by_score, digits[:20], score=largest_loss, **few)
    worst = int(np.argmax(scored["val_loss"]))
    loss = float(objectives.negative_log_likelihood(by_score, digits[100:300], KEY).mean())
    assert loss == pytest.approx(scored["val_loss"][worst], rel=1e-4)
    with pytest.raises(errors.ConfigError, match="Did you mean 'best'"):
        training.fit(best, digits, keep="bets", **QUICK)


def test_batches_that_something_else_gives(digits):
    """A generator, a list, a loader that is begun anew, of arrays or trees: trained on in their order."""
    whole = [digits[i : i + 50] for i in range(0, 300, 50)]

    class Loader:
        begun = 0

        def __len__(self):
            return 6

        def __iter__(self):
            self.begun += 1
            return ([batch] for batch in whole)  # as a torch DataLoader gives them

    def forever():
        while True:
            yield from ({"x": batch} for batch in whole)

    loader = Loader()
    settings = {"epochs": 3, "validation": 0.0, "show": False}
    models = [autoencoder.build(tiny(), SHAPE) for _ in range(3)]
    histories = [
        training.fit(models[0], loader, **settings),
        training.fit(models[1], forever(), steps_per_epoch=6, **settings),
        training.fit(models[2], whole, **settings),
    ]
    assert histories[0]["loss"] == pytest.approx(histories[1]["loss"], rel=1e-5)
    assert histories[0]["loss"] == pytest.approx(histories[2]["loss"], rel=1e-5)
    assert histories[0]["loss"][-1] < histories[0]["loss"][0]
    assert loader.begun == 3
    np.testing.assert_allclose(models[0].encode(digits[:3]), models[1].encode(digits[:3]), atol=1e-5)
    validated = training.fit(models[0], loader, **{**settings, "validation": digits[300:400]})
    assert len(validated["val_loss"]) == 3


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        (lambda x: iter([x[:50]]), {"steps_per_epoch": 3}, "ended before the training did"),
        (lambda x: iter([x[:50]]), {}, "say how many an epoch has"),
        (lambda x: [x[:50], x[:60]], {}, "one size: after 50 came 60"),
        (lambda x: [[x[:50], x[:50]]], {}, "list of 2 arrays"),
        (lambda x: [x[:50]], {"validation": 0.1}, "nothing can be held out"),
        (lambda x: [x[:50]], {"resume": True, "folder": "x"}, "can't be promised"),
        (lambda x: [np.full_like(x[:50], np.nan)], {}, "NaN"),
    ],
)
def test_batches_that_can_not_be_trained_on(digits, source, settings, message):
    model = autoencoder.build(tiny(), SHAPE)
    with pytest.raises((errors.DataError, errors.ConfigError), match=message):
        training.fit(model, source(digits), **{"epochs": 2, "validation": 0.0, "show": False, **settings})


def test_a_population_resumes_to_the_same_bits_and_stops_members_one_by_one(digits, tmp_path):
    settings = {"learning_rate": (1e-3, 3e-2), "level": (0.1, 0.5), **QUICK, "epochs": 4, "at_once": 2}
    config = tiny(corruption=Masking(0.1))
    whole = training.fit_population(config, digits[:300], **settings)

    def interrupt(metrics, left=[6]):  # noqa: B006 (it counts the calls)
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), 2)

    with pytest.raises(KeyboardInterrupt):
        training.fit_population(config, digits[:300], folder=tmp_path, on_epoch=interrupt, **settings)
    resumed = training.fit_population(config, digits[:300], folder=tmp_path, resume=True, **settings)
    for one, other in zip(whole.members, resumed.members, strict=True):
        np.testing.assert_array_equal(one.model.encode(digits[:5]), other.model.encode(digits[:5]))
        assert one.history["val_loss"] == other.history["val_loss"]
    with pytest.raises(errors.CheckpointError, match="level was"):
        training.fit_population(config, digits[:300], folder=tmp_path, resume=True, **{**settings, "level": (0.1, 0.6)})

    few = {"epochs": 200, "batch_size": 20, "validation": digits[100:300], "patience": 3, "show": False}
    config = tiny(body=MLP((32,)))
    members = training.fit_population(config, digits[:20], learning_rate=(1e-4, 2e-2), **few).members
    assert len(members[1].history["loss"]) < len(members[0].history["loss"])
    for member, rate in zip(members, (1e-4, 2e-2), strict=True):
        solo = autoencoder.build(config, SHAPE)
        history = training.fit(solo, digits[:20], learning_rate=rate, **few)
        assert len(history["loss"]) == len(member.history["loss"])
        np.testing.assert_allclose(member.model.encode(digits[:5]), solo.encode(digits[:5]), atol=1e-3)


# --- any NNX state


class Stateful(nnx.Module):
    """An encoder with what two lines of users' code bring: keys and counters, batch norm, spectral norm, remat."""

    def __init__(self, kind, *, rngs):
        self.kind = kind
        self.first = nnx.Linear(64, 12, rngs=rngs)
        if kind == "dropout":
            self.extra = nnx.Dropout(0.3, rngs=rngs)
        elif kind == "batch norm":
            self.extra = nnx.BatchNorm(12, rngs=rngs)
        elif kind == "spectral norm":
            self.extra = nnx.SpectralNorm(nnx.Linear(12, 12, rngs=rngs), rngs=rngs)
        elif kind == "remat":
            self.extra = nnx.Linear(12, 12, rngs=rngs)
        elif kind == "recurrent":
            self.first = nnx.Linear(8, 12, rngs=rngs)
            self.extra = nnx.RNN(nnx.GRUCell(12, 12, rngs=rngs))

    def __call__(self, x, key=None):
        if self.kind == "recurrent":
            return self.extra(self.first(x.reshape(len(x), 8, 8)))[:, -1]
        h = nnx.relu(self.first(x.reshape(len(x), -1)))
        if self.kind == "remat":
            return nnx.remat(lambda layer, h: layer(h))(self.extra, h)
        if self.kind == "spectral norm":
            return self.extra(h, update_stats=True)
        return self.extra(h)


@pytest.mark.parametrize("kind", ["dropout", "batch norm", "spectral norm", "remat", "recurrent", "linen"])
def test_any_state_trains_resumes_and_is_saved(kind, digits, tmp_path):
    def build(seed=0):
        rngs = nnx.Rngs(seed)
        if kind == "linen":
            import flax.linen as nn
            from flax.nnx import bridge

            class Encoder(nn.Module):
                @nn.compact
                def __call__(self, x):
                    return nn.relu(nn.Dense(12)(x.reshape(x.shape[0], -1)))

            linen = bridge.lazy_init(bridge.ToNNX(Encoder(), rngs=rngs), jnp.ones((1, *SHAPE)))

            class Wrapped(nnx.Module):
                def __init__(self):
                    self.inner = linen

                def __call__(self, x, key=None):
                    return self.inner(x)

            encoder = Wrapped()
        else:
            encoder = Stateful(kind, rngs=rngs)
        return Autoencoder(
            encoder,
            heads.Deterministic(4).make((12,), rngs=rngs),
            MLP((16,)).decoder((4,), SHAPE, rngs=rngs),
            likelihood=likelihoods.Bernoulli(),
        )

    settings = {**QUICK, "epochs": 3}
    whole, parted = build(), build()
    history = training.fit(whole, digits[:300], **settings)
    assert history["loss"][-1] < history["loss"][0]

    def interrupt(metrics):
        if metrics["epoch"] == 2:
            os.kill(os.getpid(), 2)

    with pytest.raises(KeyboardInterrupt):
        training.fit(parted, digits[:300], folder=tmp_path, on_epoch=interrupt, **settings)
    resumed = build()
    training.fit(resumed, digits[:300], folder=tmp_path, resume=True, **settings)
    np.testing.assert_array_equal(whole.encode(digits[:5]), resumed.encode(digits[:5]))
    members = training.fit_population(build, digits[:300], seeds=(0, 1), **settings).members
    np.testing.assert_allclose(members[0].history["loss"], history["loss"], rtol=1e-3)


# --- honest refusals


@pytest.mark.parametrize("validation", [0.0, 0.1])
def test_an_objective_of_another_shape_is_refused(digits, validation):
    def each_value(model, x, key):
        return jnp.square(model.reconstruct(x) - x).reshape(len(x), -1)

    with pytest.raises(errors.ConfigError, match=r"each_value gives a loss of shape \[2, 64\].*expected \[2\]"):
        training.fit(autoencoder.build(tiny(), SHAPE), digits, objective=each_value, validation=validation, show=False)


def test_the_cause_of_a_refusal_is_kept(digits):
    def broken(model, x, key):
        return x @ jnp.ones((3, 3))

    with pytest.raises(errors.ConfigError, match="The objective broken can't be computed") as refused:
        training.fit(autoencoder.build(tiny(), SHAPE), digits, objective=broken, **QUICK)
    assert isinstance(refused.value.__cause__, TypeError)
    with pytest.raises(errors.DataError, match="the model is made for another shape") as refused:
        training.fit(autoencoder.build(tiny(), SHAPE), digits[:, :7], **QUICK)
    assert refused.value.__cause__ is not None


def test_several_values_of_what_has_one_get_a_message(digits, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users have it
    with pytest.raises(errors.ConfigError, match=r"weight_decay is \(0, 0.1\); it has to be one number"):
        training.fit_population(tiny(), digits, weight_decay=(0, 0.1), **QUICK)
