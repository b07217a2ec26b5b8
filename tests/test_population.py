import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flaxae import autoencoder, errors, training
from flaxae.autoencoder import Autoencoder, Config
from flaxae.corruptions import GaussianNoise
from flaxae.likelihoods import Gaussian
from flaxae.nn.heads import Deterministic
from flaxae.nn.mlp import MLP
from flaxae.objectives import negative_log_likelihood
from flaxae.training.population import Member, fit_population

DENOISING = Config(body=MLP((16,)), head=Deterministic(4), corruption=GaussianNoise(0.3, clip=(0.0, 1.0)))
SHORT = {"epochs": 2, "batch_size": 64, "show": False}


def solo(
    config: Config, x: np.ndarray, settings: dict[str, float], **arguments
) -> tuple[Autoencoder, training.History]:
    """What `fit` makes of one member's settings."""
    settings = dict(settings)
    seed, rate = settings.pop("seed"), settings.pop("learning_rate")
    if "latent" in settings:
        config = config.with_latent(settings["latent"])
    if "level" in settings:
        config = dataclasses.replace(config, corruption=dataclasses.replace(config.corruption, level=settings["level"]))
    model = autoencoder.build(config, x.shape[1:], seed=seed)
    return model, training.fit(model, x, learning_rate=rate, **SHORT, **arguments)


def assert_equal(member: Member, model: Autoencoder, history: training.History) -> None:
    for ours, theirs in zip(*(jax.tree.leaves(nnx.state(m)) for m in (member.model, model)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
    assert set(member.history) == set(history)
    for name in set(history) - {"seconds"}:
        np.testing.assert_allclose(member.history[name], history[name], rtol=1e-4)


@pytest.mark.parametrize(
    "arguments", [{}, {"ema": 0.9, "validation": 0.0, "weight_decay": 0.1, "seed": 7, "optimizer": "muon"}]
)
def test_members_equal_their_solo_runs(digits, arguments):
    population = fit_population(
        DENOISING, digits, seeds=(0, 3), learning_rate=(1e-3, 1e-2), level=(0.1, 0.4), **SHORT, **arguments
    )
    assert len(population.members) == 8
    assert population.members[6].settings == {"seed": 3, "learning_rate": 1e-2, "level": 0.1}
    for member in population.members[1::5]:
        assert_equal(member, *solo(DENOISING, digits, member.settings, **arguments))


def test_codes_of_several_sizes_equal_the_small_networks(digits):
    config = Config(body=MLP((16,)), likelihood=Gaussian())
    population = fit_population(config, digits, latent=(2, 5), **SHORT)
    assert [member.model.encode(digits[:3]).shape[1] for member in population.members] == [2, 5]
    for member in population.members:
        assert_equal(member, *solo(config, digits, member.settings))


def test_training_in_groups_is_training_at_once(digits):
    together, apart = (fit_population(DENOISING, digits, seeds=(0, 1), at_once=at_once, **SHORT) for at_once in (2, 1))
    for one, other in zip(together.members, apart.members, strict=True):
        assert one.settings == other.settings
        assert_equal(one, other.model, other.history)


def test_the_best_is_the_lowest_on_validation(digits):
    population = fit_population(DENOISING, digits, learning_rate=(1e-5, 1e-2, 1e-4), **SHORT)
    assert population.best is population.members[1]
    assert population.best.score == min(population.best.history["val_loss"])


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_score_ranks_what_the_loss_can_not(digits, sign):
    def noise(model, x, key):
        return sign * jnp.broadcast_to(model.hyper.level[...], len(x))

    population = fit_population(DENOISING, digits, level=(0.1, 0.9), score=noise, **SHORT)
    assert [member.score for member in population.members] == pytest.approx([0.1 * sign, 0.9 * sign])
    assert population.best.settings["level"] == (0.1 if sign > 0 else 0.9)


def explodes_when_trained_fast(model: Autoencoder, x: jax.Array, key: jax.Array) -> jax.Array:
    loss = negative_log_likelihood(model, x, key)
    return loss + jnp.where(jnp.abs(model.head.linear.kernel[...]).max() > 2, jnp.inf, 0)


def test_a_member_that_diverges_stays_at_its_last_good_weights_and_the_others_go_on(digits):
    population = fit_population(
        DENOISING, digits, learning_rate=(1e-3, 1.0), objective=explodes_when_trained_fast, **SHORT
    )
    good, bad = population.members
    assert (good.diverged, bad.diverged) == (False, True)
    assert population.best is good
    assert bad.score == math.inf
    assert np.isnan(bad.history["val_loss"]).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(nnx.state(bad.model)))
    assert_equal(good, *solo(DENOISING, digits, good.settings, objective=explodes_when_trained_fast))
    with pytest.raises(errors.DivergedError, match="every member"):
        fit_population(DENOISING, digits, learning_rate=1.0, objective=explodes_when_trained_fast, **SHORT)


def test_a_function_builds_models_of_ones_own(digits):
    built = []

    def build(seed: int) -> Autoencoder:
        built.append(seed)
        return autoencoder.build(DENOISING, (8, 8, 1), seed=seed)

    population = fit_population(build, digits, seeds=(4, 5), **SHORT)
    assert built == [4, 5]
    assert_equal(population.members[1], *solo(DENOISING, digits, {"seed": 5, "learning_rate": 3e-3}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levle": 0.1}, "Did you mean 'level'"),
        ({"learning_rate": (1e-3, 0.0)}, "learning_rate is 0.0"),
        ({"seeds": ()}, "seed is empty"),
        ({"at_once": 0}, "at_once"),
        ({"score": negative_log_likelihood, "validation": 0.0}, "held-out"),
        ({"latent": (2, 4), "optimizer": "muon"}, "under Adam alone"),
    ],
)
def test_a_setting_out_of_range_is_refused(digits, settings, message):
    with pytest.raises(errors.ConfigError, match=message):
        fit_population(DENOISING, digits, **{**SHORT, **settings})


def test_sizes_of_the_code_need_a_config(digits):
    with pytest.raises(errors.ConfigError, match="one population for each size"):
        fit_population(lambda seed: autoencoder.build(DENOISING, (8, 8, 1), seed=seed), digits, latent=(2, 4), **SHORT)
