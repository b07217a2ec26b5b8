"""One contract for every preset; then what is particular to each variant."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from flaxae import autoencoder, corruptions, errors, likelihoods, objectives, presets, stacked, training
from flaxae.autoencoder import Autoencoder, Config, Hyper, own_objective
from flaxae.corruptions import GaussianNoise
from flaxae.nn import heads
from flaxae.nn.convnet import ConvNet, FullyConvolutional
from flaxae.nn.heads import Variational
from flaxae.nn.mixer import Mixer
from flaxae.nn.mlp import MLP
from flaxae.nn.recognizer import Recognizer
from flaxae.objectives import ELBO
from flaxae.training import checkpoints, step
from flaxae.training.population import fit_population
from tests.test_training import assert_same_bits

SHAPE = (8, 8, 1)
PARTS = ("body", "head", "objective", "corruption", "likelihood")
# "vae" is another name of "variational", and for maps, see test_maps
NAMES = [name for name in presets.PRESETS if name not in ("vae", "map", "parametric_map")]
KEY = jax.random.key(0)
BATCH = 32  # of most tests here, so that what runs eagerly is compiled for one shape


def small(name: str, **changes) -> Config:
    """The preset, with bodies that compile and run in no time."""
    config = presets.PRESETS[name]()
    if isinstance(config.body, MLP):
        body = dataclasses.replace(config.body, hidden=tuple(16 for _ in config.body.hidden))
    elif isinstance(config.body, Recognizer):
        body = Recognizer(channels=(4,), kernels=(3,), hidden=(16,))
    else:
        convolutions = isinstance(config.body, ConvNet | FullyConvolutional)
        body = dataclasses.replace(config.body, channels=(4,) if convolutions else 8)
    config = dataclasses.replace(config, body=changes.pop("body", body)).with_latent(changes.pop("latent", 16))
    for name, value in changes.items():  # a part, or a field of one
        parts = {part: getattr(config, part) for part in ("head", "objective", "corruption") if name not in PARTS}
        owner = next((part for part, spec in parts.items() if hasattr(spec, name)), None)
        spec = value if owner is None else dataclasses.replace(parts[owner], **{name: value})
        config = dataclasses.replace(config, **{owner or name: spec})
    return config


def built(name: str, shape: tuple[int, ...] = SHAPE, **changes) -> Autoencoder:
    return autoencoder.build(small(name, **changes), shape)


@pytest.mark.parametrize("name", NAMES)
def test_contract(name, digits, tmp_path):
    x = digits[:BATCH]
    model = built(name)
    code = training.apply(Autoencoder.encode, model, x)
    grid = (4, 4) if isinstance(model.config.body, FullyConvolutional) else ()
    assert code.shape == (BATCH, *grid, 16)
    assert model.decode(code).shape == x.shape

    # deterministic, and the same compiled
    np.testing.assert_allclose(code, model.encode(x), atol=1e-5)
    np.testing.assert_allclose(model.reconstruct(x), model.decode(model.encode(x)), atol=1e-6)
    first_key = jax.random.fold_in(KEY, 0)
    model.train()  # by the batch's own statistics, where there is batch norm
    eager = jnp.asarray(model.objective(model, x, first_key))
    model.eval()
    assert eager.shape == (BATCH,)
    graphdef, _ = nnx.split(model)
    optimizer = training.Optimizer(warmup=0.0)
    block = functools.partial(step.train_block, step.Program(graphdef, own_objective, optimizer, BATCH))
    order = jnp.arange(BATCH)
    state = block(step.init(model, optimizer, 0.01), x, order, KEY, 0, 1, 80)
    np.testing.assert_allclose(state.sums["loss"], eager.mean(), rtol=1e-4)

    # it learns one batch
    state = block(state, x, order, KEY, 1, 80, 80)
    assert state.ok
    nnx.update(model, *step.weights(state))
    assert float(model.objective(model, x, first_key).mean()) < float(eager.mean()) - 5

    # a checkpoint gives back the same model
    _, params, rest = nnx.split(model, nnx.Param, ...)
    checkpoints.save(tmp_path, 1, (params, rest))
    _, restored = checkpoints.restore(tmp_path, (params, rest))
    np.testing.assert_array_equal(nnx.merge(graphdef, *restored).encode(x), model.encode(x))

    if isinstance(model.head, heads.Probabilistic):
        assert model.sample(3, KEY).shape == (3, *SHAPE)
    else:
        with pytest.raises(errors.ConfigError, match="no prior"):
            model.sample(3, KEY)


@pytest.mark.parametrize(
    ("name", "hyper"),
    [("variational", {"beta": (0.5, 2.0)}), ("top_k", {}), ("vector_quantized", {}), ("masked", {"level": (0.3, 0.6)})],
)
def test_a_member_of_a_population_is_its_solo_run(name, hyper, digits):
    """One preset of each kind that a vmap could break: sampling, sorting, indexing, a mask."""
    x, settings = digits[:64], {"epochs": 2, "batch_size": 32, "validation": 0.0, "show": False}
    population = fit_population(small(name), x, seeds=(1,), **hyper, **settings)
    member = population.members[-1]
    changes = {setting: values[-1] for setting, values in hyper.items()}
    solo = autoencoder.build(small(name, **changes), SHAPE, seed=1)
    training.fit(solo, x, **settings)
    np.testing.assert_allclose(member.model.encode(x), solo.encode(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(12,), (20, 2)], ids=["table", "signal"])
def test_tables_and_signals(name, shape, rng):
    config = dataclasses.replace(small(name), likelihood=likelihoods.Gaussian())
    if name == "denoising":
        config = dataclasses.replace(config, corruption=GaussianNoise(0.5))
    x = 3 * rng.standard_normal((5, *shape)).astype(np.float32)

    def outputs():
        model = autoencoder.build(config, shape)
        return model.encode(x), model.reconstruct(x), model.objective(model, x, KEY)

    if isinstance(config.body, Mixer) or (
        isinstance(config.body, ConvNet | Recognizer | FullyConvolutional) and len(shape) == 1
    ):
        with pytest.raises(errors.ConfigError, match="takes images"):
            autoencoder.build(config, shape)
    else:
        code = (5, 10, 16) if isinstance(config.body, FullyConvolutional) else (5, 16)
        assert [array.shape for array in nnx.eval_shape(outputs)] == [code, x.shape, (5,)]


def test_what_does_not_go_together_is_refused():
    for config, message in (
        (Config(objective=objectives.ELBO()), "ELBO needs a head with probabilities"),
        (Config(objective=objectives.ImportanceWeighted()), "ImportanceWeighted needs a head with probabilities"),
        (Config(objective=objectives.masked, corruption=GaussianNoise(0.1)), "Masking or Patches; given was Gaussian"),
        (Config(objective=objectives.masked), "Masking or Patches; given was none"),
        (Config(objective=objectives.Binarised(), likelihood=likelihoods.Gaussian()), "Bernoulli"),
        (Config(objective=objectives.VectorQuantization()), "needs the head VectorQuantizer"),
        (Config(objective=objectives.ActivityRate()), "needs a code in"),
        (Config(body=ConvNet((4,)), objective=objectives.Layerwise()), "fully connected body, MLP"),
    ):
        with pytest.raises(errors.ConfigError, match=message):
            autoencoder.build(config, (8, 8, 1))
    with pytest.raises(errors.ConfigError, match="rate"):
        objectives.ActivityRate(rate=1.0)
    with pytest.raises(errors.ConfigError, match="active"):
        heads.TopK(latent=4, active=5)
    with pytest.raises(errors.ConfigError, match="divide"):
        heads.VectorQuantizer(latent=6, width=4)


def test_choices_cross(digits):
    """A denoising, sparse, convolutional autoencoder is three choices."""
    config = small("sparse", corruption=GaussianNoise(0.3), body=ConvNet((4,)))
    model = autoencoder.build(config, SHAPE)
    losses = [model.objective(model, digits[:BATCH], jax.random.key(seed)) for seed in (0, 1)]
    assert (losses[0] != losses[1]).all()


# --- heads


@given(
    z=st.lists(st.integers(-40, 40), min_size=6, max_size=6, unique=True),
    active=st.integers(1, 6),
)
def test_top_k_keeps_the_largest_in_size(z, active):
    head = heads.TopK(6, active).make((6,), rngs=nnx.Rngs(0))
    head.linear.kernel[...] = jnp.eye(6)
    smallest = sorted(map(abs, z))[-active]
    expected = [value if abs(value) >= smallest else 0 for value in z]
    np.testing.assert_array_equal(head(jnp.array([z], jnp.float32)).z[0], expected)


@given(
    x=st.lists(st.floats(width=32, allow_nan=False, allow_subnormal=False).filter(bool), min_size=9, max_size=9),
    k=st.integers(1, 9),
)
def test_among_largest_is_by_the_kth_largest(x, k):
    np.testing.assert_array_equal(heads.among_largest(jnp.array([x], jnp.float32), k)[0], np.array(x) >= sorted(x)[-k])


def test_the_nearest_vector_is_taken_and_the_gradient_passes_through(rng):
    head = heads.VectorQuantizer(6, codebook=7, width=3).make((5,), rngs=nnx.Rngs(0))
    features = jnp.asarray(rng.standard_normal((9, 5)), jnp.float32)
    latent = head(features)
    vectors, mean = np.asarray(head.codebook[...]), np.asarray(head.linear(features)).reshape(9, 2, 3)
    distance = np.square(mean[:, :, None] - vectors[None]).sum(-1)
    np.testing.assert_array_equal(latent.codes, distance.argmin(-1))
    np.testing.assert_allclose(latent.z, head.lookup(latent.codes), atol=1e-6)
    weights = jnp.asarray(rng.standard_normal((9, 6)), jnp.float32)
    through = jax.grad(lambda f: (head(f).z * weights).sum())(features)
    np.testing.assert_allclose(through, weights @ head.linear.kernel[...].T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("far", [30.0, -30.0, 1e6])
def test_the_kl_and_its_gradient_stay_finite(far):
    """exp of an unbounded logvar overflows at 89."""
    head = heads.Variational(1).make((1,), rngs=nnx.Rngs(0))
    head.linear.kernel[...] = jnp.array([[0.0, 1.0]])

    def kl(features):
        latent = head(features, KEY)
        return heads.kl_to_standard_normal(latent.mean, latent.logvar).sum() + latent.z.sum()

    value, gradient = jax.value_and_grad(kl)(jnp.full((1, 1), far))
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()
    if abs(far) < 100:
        assert gradient[0, 0] != 0


def test_features_are_the_mean_never_a_sample(digits):
    model = built("variational")
    x = digits[:BATCH]
    latent = model(x, KEY).latent
    assert (latent.z != latent.mean).all()
    np.testing.assert_array_equal(model.encode(x), model(x).latent.mean)


# --- objectives


def test_the_likelihood_has_no_logarithm_of_a_sigmoid():
    """log(sigmoid(-200)) is −inf, and its gradient NaN."""
    params = jnp.array([[-200.0, 200.0, 0.0]])
    x = jnp.array([[1.0, 0.0, 0.5]])
    value, gradient = jax.value_and_grad(lambda p: likelihoods.Bernoulli().log_prob(p, x).sum())(params)
    assert float(value) == pytest.approx(-400 - np.log(2))
    np.testing.assert_allclose(gradient, [[1.0, -1.0, 0.0]], atol=1e-6)


def test_values_out_of_the_range_of_a_likelihood_are_refused(digits):
    standardised = (digits - digits.mean()) / digits.std()
    with pytest.raises(errors.DataError, match="choose the Gaussian likelihood"):
        training.fit(built("variational"), standardised, epochs=1, show=False)


@given(st.floats(-3, 3), st.floats(-4, 3))
def test_kl_is_scipys(mean, logvar):
    q, p = stats.norm(mean, np.exp(logvar / 2)), stats.norm()
    expected = q.expect(lambda z: q.logpdf(z) - p.logpdf(z), lb=mean - 40, ub=mean + 40)
    kl = heads.kl_to_standard_normal(jnp.float32([mean]), jnp.float32([logvar]))
    assert float(kl[0]) == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_beta_weighs_the_sum_of_the_kl_over_latents(digits):
    """Averaged over latents, β would mean something else for every size of the code."""
    model = built("variational", beta=0.0)
    x = digits[:BATCH]
    without = model.objective(model, x, KEY)
    model.hyper.beta[...] = jnp.float32(3)
    latent = model(x).latent
    mean, var = np.asarray(latent.mean), np.exp(np.asarray(latent.logvar))
    kl = 0.5 * (mean**2 + var - 1 - np.log(var)).sum(axis=-1)
    np.testing.assert_allclose(model.objective(model, x, KEY) - without, 3 * kl, rtol=1e-3)


def test_no_kl_is_clamped_by_default(digits):
    """A posterior near the prior is pressed on it, unless free bits are asked for."""
    model = built("variational")
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    params = jax.tree.map(lambda p: 0.01 * p, params)

    @jax.jit
    def head_gradient(free_bits):
        def loss(params):
            model = nnx.merge(graphdef, params, jax.tree.map(jnp.copy, rest))
            model.hyper.free_bits = Hyper(jnp.asarray(free_bits))
            log_likelihood = model.likelihood.log_prob(model(digits[:4], KEY).params, digits[:4])
            return (model.objective(model, digits[:4], KEY) + log_likelihood).sum()

        return jax.grad(loss)(params)["head"]["linear"]["bias"][...]

    assert (head_gradient(0.0) != 0).any()
    assert (head_gradient(0.1) == 0).all()


def test_more_importance_samples_make_a_tighter_bound_from_the_elbo_on(digits):
    model = built("variational")
    x = jnp.tile(digits[:50], (20, 1, 1, 1))

    def bound(objective):
        return float(nnx.jit(lambda model: objective(model, x, KEY).mean())(model))

    elbo, one, ten = map(bound, (objectives.ELBO(), *map(objectives.ImportanceWeighted, (1, 10))))
    assert one == pytest.approx(elbo, rel=0.01)
    assert ten < one - 0.1


def test_the_doubly_reparameterised_gradient_has_the_plain_ones_mean_and_less_variance(digits):
    graphdef, params, rest = nnx.split(built("importance_weighted", latent=4, samples=5), nnx.Param, ...)
    x = jnp.tile(digits[:4], (32, 1, 1, 1))

    def plain(model, x, key):
        """The bound by its definition, all of whose gradients are taken."""
        _, key = jax.random.split(key)
        encoder_key, sample_key, _ = jax.random.split(key, 3)
        latent = model.head(model.encoder(x, encoder_key))
        mean, deviation = latent.mean[None], jnp.exp(latent.logvar / 2)[None]
        keys = jax.random.split(sample_key, 5)
        z = mean + deviation * jax.vmap(lambda key: jax.random.normal(key, latent.mean.shape))(keys)
        prior, density = (jax.scipy.stats.norm.logpdf(z, *q).sum(-1) for q in ((), (mean, deviation)))
        decoded = jax.vmap(lambda z: model.likelihood.log_prob(model.decoder(z), x))(z)
        return -jax.nn.logsumexp(decoded + prior - density - jnp.log(5.0), axis=0)

    @functools.partial(jax.jit, static_argnums=0)
    def values_and_gradients(objective):
        def loss(params, key):
            return objective(nnx.merge(graphdef, params, rest, copy=True), x, key).mean()

        return jax.vmap(jax.value_and_grad(loss), (None, 0))(params, jax.random.split(KEY, 200))

    (value, doubly), (expected, plainly) = map(values_and_gradients, (objectives.ImportanceWeighted(5), plain))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), doubly["decoder"], plainly["decoder"])
    ours, theirs = (np.asarray(g["head"]["linear"]["kernel"][...]).reshape(200, -1) for g in (doubly, plainly))
    error = np.sqrt((ours.var(axis=0) + theirs.var(axis=0)) / 200)
    assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) <= 5 * error).all()
    assert ours.var(axis=0).sum() < 0.5 * theirs.var(axis=0).sum()


def test_the_contraction_is_the_jacobian(digits):
    x = jnp.asarray(digits[:BATCH])
    for name in ("contractive", "pooled"):
        model = built(name, latent=4)
        jacobian = jax.jit(jax.vmap(jax.jacobian(lambda x, model=model: model.encode(x[None])[0])))(x[:3])
        expected = np.square(jacobian).reshape(3, -1).sum(-1)
        penalty = jax.jit(lambda x, model=model: objectives.squared_jacobian(model.encode, x))(x[:3])
        np.testing.assert_allclose(penalty, expected, rtol=1e-4)
    weighed = built("contractive", contraction=2.0)
    extra = weighed.objective(weighed, x, KEY) - objectives.negative_log_likelihood(weighed, x, KEY)
    np.testing.assert_allclose(extra, 2 * objectives.squared_jacobian(weighed.encode, x), rtol=1e-3)


def test_the_layerwise_cost_is_that_of_the_hidden_layers(digits):
    x = jnp.asarray(digits[:50])
    model = built("layerwise", level=0.0, weight=3.0)

    def activations(stack, h):
        for layer in stack.layers:
            h = np.maximum(np.asarray(h) @ np.asarray(layer.linear.kernel[...]) + np.asarray(layer.linear.bias[...]), 0)
            yield h

    clean = list(activations(model.encoder.stack, x.reshape(50, -1)))
    found = list(activations(model.decoder.stack, model.encode(x)))[::-1]
    cost = sum(
        np.mean(np.square(d - h) / (h.var(axis=0) + objectives.MIN_ACTIVITY), axis=1)
        for d, h in zip(found, clean, strict=True)
    )
    extra = model.objective(model, x, KEY) - objectives.negative_log_likelihood(model, x, KEY)
    np.testing.assert_allclose(extra, 3 * cost, rtol=1e-3)

    model.hyper.level[...] = 0.5  # reaches the hidden layers: other noise, another cost
    noisy = model.objective(model, x, KEY)
    assert np.abs(noisy - model.objective(model, x, jax.random.key(1))).min() > 1e-3


def test_the_l1_penalty_and_the_rate_penalty(digits):
    x = digits[:BATCH]
    for name in ("sparse", "sparse_rate"):
        model = built(name, sparsity=0.0)
        without = model.objective(model, x, KEY)
        model.hyper.sparsity[...] = jnp.float32(2)
        z = np.asarray(model.encode(x), np.float64)
        if name == "sparse":
            expected = 2 * np.abs(z).sum(-1)
        else:
            expected = 2 * sum(stats.entropy([0.05, 0.95], [m, 1 - m]) for m in z.mean(0))
        np.testing.assert_allclose(model.objective(model, x, KEY) - without, expected, rtol=1e-3, atol=1e-4)


def test_the_codebook_and_the_encoder_meet(digits):
    """With the loss of eq. 3 alone, the vectors move to the codes, and the codes to the vectors by `commitment`."""
    model = built("vector_quantized", commitment=0.25)
    x = digits[:BATCH]
    latent = model(x).latent
    gap = np.square(np.asarray(latent.mean) - np.asarray(model.head.lookup(latent.codes))).sum(-1)
    extra = model.objective(model, x, KEY) - objectives.negative_log_likelihood(model, x, KEY)
    np.testing.assert_allclose(extra, 1.25 * gap, rtol=1e-3)


def test_the_masked_objective_counts_what_is_hidden_alone(digits):
    model = built("masked", level=0.4)
    x = jnp.asarray(digits[:BATCH])
    corruption_key, _ = jax.random.split(KEY)
    visible = np.asarray(model.corruption(corruption_key, jnp.ones_like(x)))
    params = np.asarray(model.forward(x * visible).params, np.float64)
    each = np.asarray(x) * params - np.logaddexp(0, params)
    hidden = (visible == 0).reshape(BATCH, -1)
    expected = -(each.reshape(BATCH, -1) * hidden).sum(-1) * 64 / np.maximum(hidden.sum(-1), 1)
    np.testing.assert_allclose(objectives.masked(model, x, KEY), expected, rtol=1e-4)


def test_binarised_values_are_drawn_anew(digits):
    seen = []

    def spy(model, x, key):
        seen.append(np.asarray(x))
        return jnp.zeros(len(x))

    model, x = built("variational"), digits[:400]
    for seed in (0, 1):
        objectives.Binarised(spy)(model, x, jax.random.key(seed))
    assert set(np.unique(seen[0])) == {0.0, 1.0}
    assert (seen[0] != seen[1]).any()
    assert np.mean(seen) == pytest.approx(x.mean(), abs=0.01)


# --- corruption by patches


@pytest.mark.parametrize(("size", "height", "width"), [(1, 3, 2), (3, 7, 9), (4, 8, 3)])
def test_patches_are_whole(size, height, width):
    x = jnp.ones((3, height, width, 2))
    hidden = np.asarray(corruptions.Patches(size)(KEY, x)) == 0
    assert (hidden[..., 0] == hidden[..., 1]).all()
    for i in range(0, height, size):
        for j in range(0, width, size):
            patch = hidden[:, i : i + size, j : j + size].reshape(3, -1)
            assert (patch == patch[:, :1]).all()


def test_patches_hide_the_share_that_is_asked_for():
    x = jnp.ones((200, 16, 3))
    assert float((corruptions.Patches(4, 0.3)(KEY, x) == 0).mean()) == pytest.approx(0.3, abs=0.04)
    table = jnp.ones((500, 8))
    assert float((corruptions.Patches(4, 0.3)(KEY, table) == 0).mean()) == pytest.approx(0.3, abs=0.04)


# --- what they learn


@pytest.mark.parametrize("beta", [0.0, 1.0])  # with the KL: Lucas et al. 2019
def test_a_linear_variational_model_finds_the_principal_subspace(rng, beta):
    mixing = np.linalg.qr(rng.standard_normal((10, 10)))[0] * np.array([3, 2.5, 2, *[0.3] * 7])
    x = (rng.standard_normal((2000, 10)) @ mixing.T).astype(np.float32)
    config = Config(body=MLP(()), head=Variational(3), objective=ELBO(beta), likelihood=likelihoods.Gaussian(0.3))
    model = autoencoder.build(config, (10,))
    training.fit(model, x, epochs=60, batch_size=250, learning_rate=0.03, validation=0.0, show=False)
    found = np.linalg.qr(np.asarray(model.decoder.out.kernel[...]).T)[0]
    principal = np.linalg.svd(x - x.mean(0), full_matrices=False)[2][:3].T
    cosines = np.linalg.svd(found.T @ principal)[1]
    assert np.degrees(np.arccos(np.clip(cosines.min(), 0, 1))) < 3


def test_pretraining_trains_each_layer_of_the_stack(digits, tmp_path):
    model = autoencoder.build(dataclasses.replace(presets.stacked(8), body=MLP((32, 16))), SHAPE)
    before = nnx.state(model, nnx.Param)
    before = jax.tree.map(np.array, before)
    settings = {"epochs": 4, "batch_size": 50, "noise": 0.1, "show": False, "folder": tmp_path}
    histories = stacked.pretrain(model, digits[:400], **settings)
    assert len(histories) == 3
    assert all(history["val_loss"][-1] < history["val_loss"][0] for history in histories)
    after = nnx.state(model, nnx.Param)
    assert all((a != b).any() for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))
    scratch = autoencoder.build(dataclasses.replace(presets.stacked(8), body=MLP((32, 16))), SHAPE)
    losses = [float(objectives.negative_log_likelihood(m, digits[400:], KEY).mean()) for m in (model, scratch)]
    assert losses[0] < losses[1] - 1
    stacked.pretrain(scratch, digits[:400], resume=True, **settings)  # all layers are there already
    assert_same_bits(scratch, model)
    with pytest.raises(errors.ConfigError, match="layer by layer"):
        stacked.pretrain(built("variational"), digits)
