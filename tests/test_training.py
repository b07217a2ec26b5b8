import dataclasses
import itertools
import os
import re
import signal
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sklearn.decomposition import PCA

from flaxae import autoencoder, errors, presets, training
from flaxae.autoencoder import Autoencoder, Config
from flaxae.corruptions import GaussianNoise
from flaxae.data import Stream
from flaxae.likelihoods import Gaussian
from flaxae.nn.heads import Deterministic
from flaxae.nn.mlp import MLP
from flaxae.objectives import negative_log_likelihood
from flaxae.training import checkpoints, feed, fitting, loop, optimizers, step
from flaxae.training.examples import fingerprint

TINY = Config(body=MLP((32,)), head=Deterministic(8), corruption=GaussianNoise(0.3, clip=(0.0, 1.0)))
SHORT = {"epochs": 4, "batch_size": 64, "show": False}


def tiny(config: Config = TINY, shape: tuple[int, ...] = (8, 8, 1), seed: int = 0) -> Autoencoder:
    return autoencoder.build(config, shape, seed=seed)


def weights(model: Autoencoder) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))]


def assert_same_bits(a: Autoencoder, b: Autoencoder) -> None:
    for x, y in zip(weights(a), weights(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_the_loss_falls_and_the_history_reads_as_keras_users_expect(digits):
    history = training.fit(tiny(), digits, **SHORT)
    assert set(history) == {"loss", "val_loss", "seconds"}
    assert len(history["loss"]) == len(history["val_loss"]) == 4
    assert history["loss"][-1] < 0.8 * history["loss"][0]
    assert history.history["val_loss"] == history["val_loss"]
    assert all(np.diff(history["seconds"]) > 0)


def test_a_linear_autoencoder_reaches_pcas_error(digits):
    config = Config(body=MLP(()), head=Deterministic(8), likelihood=Gaussian())
    model = tiny(config)
    training.fit(model, digits, epochs=150, batch_size=256, learning_rate=0.1, validation=0.0, show=False)
    error = np.mean((training.apply(Autoencoder.reconstruct, model, digits) - digits) ** 2)
    flat = digits.reshape(len(digits), -1)
    pca = PCA(8).fit(flat)
    expected = np.mean((pca.inverse_transform(pca.transform(flat)) - flat) ** 2)
    assert expected * 0.999 < error < expected * 1.02


def test_the_same_seed_gives_the_same_bits_and_another_does_not(digits):
    models = [tiny() for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        training.fit(model, digits, seed=seed, **SHORT)
    assert_same_bits(models[0], models[1])
    assert any((x != y).any() for x, y in zip(weights(models[0]), weights(models[2]), strict=True))


class _InterruptAt:
    """Ctrl-C from inside a run, after so many calls."""

    def __init__(self, calls: int):
        self.left = calls

    def __call__(self, metrics: dict[str, float]) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(("seconds", "steps"), [(1e-4, 3000), (0.03, 10), (0.2, 8), (0.9, 2), (30.0, 1)])
def test_slow_steps_are_trained_a_few_at_a_time(seconds, steps):
    assert loop._steps_of_block(seconds) == steps


@pytest.mark.parametrize("setting", [{"ema": None}, {"ema": 0.9, "optimizer": "muon"}])
def test_interrupted_and_resumed_is_bit_identical(digits, tmp_path, monkeypatch, setting):
    whole, parted = tiny(), tiny()
    expected = training.fit(whole, digits, **setting, **SHORT)
    # blocks of 3 steps, so that the interrupt falls inside an epoch
    monkeypatch.setattr(loop, "BLOCK_SECONDS", 0)
    monkeypatch.setattr(loop, "BLOCK_STEPS", 1)
    with pytest.raises(KeyboardInterrupt):
        training.fit(parted, digits, **setting, folder=tmp_path, on_epoch=_InterruptAt(2), **SHORT)
    fresh = tiny()
    history = training.fit(fresh, digits, **setting, folder=tmp_path, resume=True, **SHORT)
    assert_same_bits(whole, fresh)
    assert history["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert history["val_loss"] == expected["val_loss"]


def test_ctrl_c_inside_an_epoch_saves_that_very_step(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "BLOCK_SECONDS", 0)
    monkeypatch.setattr(loop, "BLOCK_STEPS", 1)  # one step a block
    whole = tiny()
    training.fit(whole, digits, **SHORT)
    steps_per_epoch = int(len(digits) * 0.9) // 64
    real, blocks = step.short_block, []

    def counted(*arguments):
        blocks.append(None)
        if len(blocks) == steps_per_epoch + 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(step, "short_block", counted)
    with pytest.raises(KeyboardInterrupt):
        training.fit(tiny(), digits, folder=tmp_path, **SHORT)
    assert checkpoints.steps(tmp_path / "latest") == [steps_per_epoch + 5]
    resumed = tiny()
    training.fit(resumed, digits, folder=tmp_path, resume=True, **SHORT)
    assert_same_bits(whole, resumed)


def test_resuming_under_other_settings_is_refused(digits, tmp_path):
    training.fit(tiny(), digits, folder=tmp_path, **SHORT)
    with pytest.raises(errors.CheckpointError, match=r"learning_rate was 0\.003 and is now 0\.1"):
        training.fit(tiny(), digits, folder=tmp_path, resume=True, learning_rate=0.1, **SHORT)
    with pytest.raises(errors.CheckpointError, match="constant_schedule was 0 and is now 1"):
        training.fit(tiny(), digits, folder=tmp_path, resume=True, schedule="constant", **SHORT)


def test_a_finished_run_resumes_to_itself(digits, tmp_path):
    first, second = tiny(), tiny(seed=5)
    history = training.fit(first, digits, folder=tmp_path, **SHORT)
    assert training.fit(second, digits, folder=tmp_path, resume=True, **SHORT) == history
    assert_same_bits(first, second)


def test_it_ends_with_the_weights_of_the_best_epoch(digits, tmp_path):
    """A few examples, so that validation turns up while training goes on."""
    config = dataclasses.replace(TINY, corruption=None)
    model = tiny(config)
    history = training.fit(
        model, digits[:20], validation=digits[100:300], epochs=300, batch_size=20, learning_rate=0.02, show=False
    )
    best = int(np.argmin(history["val_loss"]))
    assert best < 299
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    key = jax.random.split(jax.random.key(0), 3)[2]
    loss = step.evaluate(graphdef, negative_log_likelihood, 20, params, rest, digits[100:300], key)
    assert float(loss["loss"]) == pytest.approx(history["val_loss"][best], rel=1e-5)


def test_patience_stops_early(digits):
    config = dataclasses.replace(TINY, corruption=None)
    history = training.fit(
        tiny(config), digits[:20], validation=digits[100:300], epochs=200, batch_size=20, learning_rate=0.02,
        patience=3, show=False,
    )  # fmt: skip
    best = int(np.argmin(history["val_loss"]))
    assert len(history["val_loss"]) == best + 4 < 200


def test_a_loss_that_rises_and_rises_is_said_once(digits):
    def rising(model, batch, key):
        return 1.0 + 100 * model.decoder.out.bias[...][0] + 0 * negative_log_likelihood(model, batch, key)

    settings = {"optimizer": optax.sgd(-1e-3), "epochs": 20, "validation": 0.0, "keep": "last", "show": False}
    with pytest.warns(UserWarning, match="The loss rose from .* A lower learning rate") as said:
        training.fit(tiny(), digits, objective=rising, **settings)
    assert len(said) == 1


def test_a_diverging_run_stops_with_the_last_good_weights(digits):
    model = tiny()

    def explodes(model, x, key):
        loss = negative_log_likelihood(model, x, key)
        kernel = model.head.linear.kernel[...]
        return loss + jnp.where(jnp.abs(kernel).max() > 0.45, jnp.inf, 0)

    with pytest.raises(errors.DivergedError, match="lower learning rate"):
        training.fit(model, digits, objective=explodes, epochs=50, batch_size=64, learning_rate=0.05, show=False)
    assert all(np.isfinite(leaf).all() for leaf in weights(model))


def test_evaluate_is_the_mean_over_all_examples_whatever_the_batch(digits):
    model = tiny(dataclasses.replace(TINY, corruption=None))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    expected = float(negative_log_likelihood(model, digits[:101], jax.random.key(0)).mean())
    for batch_size in (101, 25, 7):
        loss = step.evaluate(
            graphdef, negative_log_likelihood, batch_size, params, rest, digits[:101], jax.random.key(0)
        )
        assert float(loss["loss"]) == pytest.approx(expected, rel=1e-5)


def test_a_short_training_is_compiled_in_a_hurry_to_the_same_weights(digits, monkeypatch):
    models = [tiny(), tiny()]
    training.fit(models[0], digits, **SHORT)
    monkeypatch.setattr(step, "short_block", None)
    monkeypatch.setattr(fitting, "SHORT", 0)
    training.fit(models[1], digits, **SHORT)
    for short, long in zip(*map(weights, models), strict=True):
        np.testing.assert_allclose(short, long, atol=1e-4)


def test_microbatches_give_the_gradient_of_the_batch(digits):
    whole, parts = (tiny(dataclasses.replace(TINY, corruption=None)) for _ in range(2))
    settings = {"epochs": 2, "batch_size": 60, "validation": 0.0, "show": False}
    expected = training.fit(whole, digits[:240], **settings)
    history = training.fit(parts, digits[:240], microbatches=3, **settings)
    assert history["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    for x, y in zip(weights(whole), weights(parts), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)
    with pytest.raises(errors.ConfigError, match="microbatches is 7"):
        training.fit(parts, digits[:240], microbatches=7, **settings)


def test_dropout_acts_in_training_alone(digits):
    config = dataclasses.replace(TINY, body=MLP((32,), dropout=0.5, layer_norm=True), corruption=None)
    model = tiny(config)
    training.fit(model, digits[:256], epochs=1, show=False)
    once, again = (model.reconstruct(digits[:4]) for _ in range(2))
    np.testing.assert_array_equal(once, again)
    model.train()
    noisy = model(digits[:4], jax.random.key(0)).params
    model.eval()
    assert (noisy != model(digits[:4], jax.random.key(0)).params).any()


def test_apply_is_eager_in_batches(digits):
    model = tiny()
    for n in (1, 5, 33):
        codes = training.apply(Autoencoder.encode, model, digits[:n], batch_size=16)
        np.testing.assert_allclose(codes, model.encode(digits[:n]), atol=1e-5)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((0, 8, 8, 1), np.float32), "at least one example"),
        (np.zeros((9, 8, 8, 1), np.uint8), "uint8"),
        (np.full((9, 8, 8, 1), np.nan, np.float32), "NaN"),
        (np.full((9, 8, 8, 1), 2.0, np.float32), "range from 2 to 2"),
        (np.zeros((9, 7, 8, 1), np.float32), "model is made for"),
        (np.zeros((1, 8, 8, 1), np.float32), "can't be split"),
    ],
)
def test_what_can_not_be_trained_on_is_refused_in_one_message(x, message):
    with pytest.raises(errors.DataError, match=message):
        training.fit(tiny(), x, **SHORT)


@pytest.mark.parametrize(
    "setting",
    [
        *({"epochs": 0}, {"learning_rate": 0.0}, {"warmup": 1.0}, {"ema": 1.0}, {"patience": 0}, {"seed": -1}),
        *({"schedule": "cosin"}, {"optimizer": "muo"}),
    ],
)
def test_a_setting_out_of_range_is_refused(digits, setting):
    with pytest.raises(errors.ConfigError, match=next(iter(setting))):
        training.fit(tiny(), digits, **{**SHORT, **setting})


def test_it_trains_outside_the_main_thread(digits):
    histories = []
    thread = threading.Thread(target=lambda: histories.append(training.fit(tiny(), digits, **SHORT)))
    thread.start()
    thread.join()
    assert len(histories[0]["loss"]) == 4


def test_its_adam_is_optaxs(rng):
    params = {"a": jnp.zeros((3, 4)), "b": jnp.zeros(5)}
    ours, theirs = optimizers.scale_by_adam(), optax.scale_by_adam()
    our_state, their_state = ours.init(params), theirs.init(params)
    for scale in (1.0, 1e-9, 1e3, 0.0):
        gradient = jax.tree.map(lambda p: jnp.float32(scale * rng.standard_normal(p.shape)), params)  # noqa: B023
        updates, our_state = ours.update(gradient, our_state)
        with jax.numpy_dtype_promotion("standard"):  # as optax counts on
            expected, their_state = theirs.update(gradient, their_state)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updates, expected)


def test_its_muon_moves_a_matrix_alike_in_all_directions(rng):
    skewed = rng.standard_normal((12, 6)) * 10.0 ** np.linspace(0, 1.5, 6)
    gradient = {"kernel": jnp.float32(skewed), "bias": jnp.float32(rng.standard_normal(6))}
    muon = training.Optimizer(method="muon", warmup=0.0, schedule="constant")
    update, _ = muon.update(gradient, muon.init(gradient), gradient)
    left, _, right = np.linalg.svd(skewed, full_matrices=False)
    along = np.diag(left.T @ np.asarray(update["kernel"]) @ right.T)
    assert 0.5 < along.min() / along.max() <= 1
    assert np.sqrt(np.mean(np.square(update["kernel"]))) == pytest.approx(0.2, rel=0.3)  # by five iterations
    steps = update["bias"] * np.sign(gradient["bias"])  # Adam's first are of one length
    np.testing.assert_allclose(steps, steps[0], rtol=1e-4)
    assert steps[0] > 0


@pytest.mark.parametrize(("most", "shapes"), [(4, [(3, 4), (5,)]), (5, [(5,), (3, 4)]), (12, [(17,)])])
def test_joined_moments_give_the_same_updates(rng, most, shapes):
    params = {"a": jnp.float32(rng.standard_normal((3, 4))), "b": jnp.float32(rng.standard_normal(5))}
    apart, joined = optimizers.scale_by_adam(), optimizers.joined(optimizers.scale_by_adam(), most)
    states = apart.init(params), joined.init(params)
    for _ in range(2):
        gradient = jax.tree.map(lambda p: jnp.float32(rng.standard_normal(p.shape)), params)
        (expected, moments), (updates, joined_moments) = (
            adam.update(gradient, state) for adam, state in zip((apart, joined), states, strict=True)
        )
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), updates, expected)
        states = moments, joined_moments
    assert sorted(leaf.shape for leaf in jax.tree.leaves(states[1].mu)) == sorted(shapes)


def test_all_moments_in_one_vector(rng):
    params = {"a": jnp.zeros((100, 100)), "b": jnp.zeros(5)}
    (flat, *_), (apart, *_) = (training.Optimizer(flat=flat).init(params) for flat in (True, False))
    assert [leaf.shape for leaf in jax.tree.leaves(flat.mu)] == [(10_005,)]
    assert [leaf.shape for leaf in jax.tree.leaves(apart.mu)] == [(100, 100), (5,)]


def test_with_room_come_the_same_batches_from_one_of_a_few_lengths(rng):
    lengths = set()
    for examples in (33, 100, 260):
        x = jnp.asarray(rng.normal(size=(examples, 3)).astype(np.float32))
        plain = feed.Resident(x, 16, seed=0)
        roomy = plain.with_room()
        lengths.add(len(roomy.x))
        for number in range(3 * plain.steps):
            seen = [feed.batch(*source(number // plain.steps), 16, number) for source in (plain, roomy)]
            np.testing.assert_array_equal(*seen)
    assert len(lengths) == 2
    large = feed.Resident(jnp.zeros((20, 2**18)), 16, seed=0)
    assert large.with_room() is large  # it would take 128 MiB


@pytest.mark.parametrize(("schedule", "warmup"), [("cosine", 0.1), ("cosine", 0.0), ("constant", 0.3)])
def test_the_rate_is_as_optax_has_it(schedule, warmup):
    ours = training.Optimizer(warmup=warmup, schedule=schedule)
    for steps in (1, 7, 50):
        rising = round(warmup * steps)
        if schedule == "cosine":
            theirs = optax.warmup_cosine_decay_schedule(0.0, 1.0, rising, max(steps, rising + 1))
        else:
            theirs = optax.warmup_constant_schedule(0.0 if rising else 1.0, 1.0, rising)
        with jax.numpy_dtype_promotion("standard"):
            expected = [float(theirs(step)) for step in range(steps + 2)]
        np.testing.assert_allclose([float(ours.rate(step, steps)) for step in range(steps + 2)], expected, atol=1e-6)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_without_a_warm_up_the_first_step_already_moves(digits, schedule):
    model = tiny()
    before = weights(model)
    training.fit(model, digits[:64], epochs=1, warmup=0.0, schedule=schedule, validation=0.0, show=False)
    assert any((x != y).any() for x, y in zip(before, weights(model), strict=True))


def test_golden_step(digits):
    """One step's numbers. Change them only with a meant change of initialisation, noise, objective or optimiser."""
    optimizer = training.Optimizer(warmup=0.0)
    model = tiny()
    graphdef = nnx.split(model)[0]
    state = step.init(model, optimizer, 1e-2)
    one_step = jax.jit(step.train_step, static_argnums=(0, 1, 2))
    batch, key = digits[:32], jax.random.key(0)
    state = one_step(graphdef, negative_log_likelihood, optimizer, state, batch, key, jnp.int32(0), 10)
    norm = float(jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(state.params))))
    assert (float(state.sums["loss"]), norm) == pytest.approx((45.91009, 11.60567), rel=1e-4)


def test_a_function_of_a_step_is_resumed_to_the_same_bits(digits, tmp_path):
    asked = []

    def batches_from(first: int):
        asked.append(first)
        for number in itertools.count(first):
            yield digits[np.random.default_rng(number).integers(len(digits), size=16)]

    setting = {"epochs": 4, "steps_per_epoch": 3, "validation": 0.0, "show": False}
    whole = tiny()
    training.fit(whole, batches_from, **setting)
    training.fit(tiny(), batches_from, **setting, folder=tmp_path, on_epoch=lambda metrics: metrics["epoch"] == 2)
    resumed = tiny()
    asked.clear()
    training.fit(resumed, batches_from, **setting, folder=tmp_path, resume=True)
    assert asked == [0, 6]  # the first to see what a batch is
    assert_same_bits(whole, resumed)


def test_other_data_of_the_same_shape_are_noticed_when_a_run_is_resumed(digits, tmp_path):
    def train(x, **settings):
        model = tiny(shape=x.shape[1:])
        training.fit(model, x, epochs=2, batch_size=32, folder=tmp_path, **settings)

    x = digits[:100]
    train(x)
    train(x, resume=True)
    other = x.copy()
    other[7, 3, 3] += 0.125
    for changed in (other, x[::-1]):
        with pytest.raises(errors.CheckpointError, match="with other data: they have the shape"):
            train(changed, resume=True)
    train(x, validation=x[:9])
    with pytest.raises(errors.CheckpointError, match="with other data"):
        train(x, validation=other[:9], resume=True)


def test_another_number_of_cores_at_resume_is_said(digits, tmp_path, monkeypatch):
    def train(**settings):
        model = tiny()
        training.fit(model, digits[:100], epochs=2, batch_size=32, folder=tmp_path, **settings)

    train()
    cores = len(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(cores + 1))
    with pytest.warns(UserWarning, match=rf"{cores} core\(s\) then, {cores + 1} core\(s\) now.*not the same bits"):
        train(resume=True)


def test_what_a_run_that_diverges_was_before_is_saved(digits, tmp_path):
    model = tiny()
    with pytest.raises(errors.DivergedError):
        training.fit(model, digits[:100], epochs=3, batch_size=32, learning_rate=1e12, folder=tmp_path)
    weights = nnx.split(model, nnx.Param, ...)[1:]
    saved = checkpoints.restore(tmp_path / "best", weights)[1]
    jax.tree.map(np.testing.assert_array_equal, saved, weights)


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGHUP])
def test_an_interrupt_in_the_last_save_is_not_swallowed(digits, tmp_path, monkeypatch, which):
    real, sent = checkpoints.save, []

    def save(*arguments, **named):
        if not sent:
            sent.append(os.kill(os.getpid(), which))
        return real(*arguments, **named)

    monkeypatch.setattr(checkpoints, "save", save)
    with pytest.raises(KeyboardInterrupt):
        training.fit(tiny(), digits[:100], epochs=1, batch_size=32, folder=tmp_path)
    assert checkpoints.steps(tmp_path / "latest") == checkpoints.steps(tmp_path / "best") == [2]


def test_a_hangup_that_is_ignored_stays_so(digits, tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        training.fit(tiny(), digits[:100], epochs=1, on_epoch=lambda metrics: os.kill(os.getpid(), signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, before)


def test_streams_are_told_apart_by_blocks_of_them(tmp_path):
    x = np.zeros((4000, 50), np.float32)
    np.save(tmp_path / "x.npy", x)
    first = fingerprint(Stream(np.load(tmp_path / "x.npy", mmap_mode="r")))
    assert first == fingerprint(Stream(np.load(tmp_path / "x.npy", mmap_mode="r")))
    x[1000:3000] = 1
    np.save(tmp_path / "x.npy", x)
    assert first != fingerprint(Stream(np.load(tmp_path / "x.npy", mmap_mode="r")))


FORKED = """
import os, sys, warnings
import numpy as np
import flaxae
warnings.simplefilter("ignore")  # JAX's own, at the fork
x = np.random.default_rng(0).random((40, 6), np.float32)
model = flaxae.build(flaxae.presets.vanilla(), (6,))
flaxae.apply(flaxae.Autoencoder.encode, model, x)
if os.fork() == 0:
    for work in (lambda: flaxae.apply(flaxae.Autoencoder.encode, model, x), lambda: flaxae.fit(model, x)):
        try:
            work()
        except flaxae.errors.ConfigError as error:
            os.write(1, f"{error}\\n".encode())
    os._exit(0)
os.wait()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_process_is_told_that_it_can_not_compute():
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.count("JAX can't compute in a process that was forked") == 2


def test_progress_tells_the_error_in_figures_people_know(digits, monkeypatch, capsys):
    monkeypatch.setattr("flaxae.training.loop.FIGURES_AFTER", 0.0)
    model = autoencoder.build(presets.vanilla(8), (8, 8, 1))
    training.fit(model, digits[:512], epochs=2, validation=0)
    told = re.findall(r"MSE (\S+) \((\S+) dB\)", capsys.readouterr().out)
    error = np.square(model.reconstruct(digits[:512]) - digits[:512]).mean()
    assert len(told) == 2
    assert float(told[-1][0]) == pytest.approx(error, abs=1e-4)
    assert float(told[-1][1]) == pytest.approx(-10 * np.log10(error), abs=0.06)


def test_the_progress_lines_error_is_measured_in_batches_no_larger_than_those_trained_on(digits, monkeypatch):
    batches, evaluate = [], step.evaluate
    monkeypatch.setattr(step, "evaluate", lambda *given: batches.append(given[2]) or evaluate(*given))
    model = autoencoder.build(Config(body=MLP((8,)), head=Deterministic(2)), (8, 8, 1))
    training.fit(model, digits[:64], epochs=1, batch_size=4, validation=digits[:8], show=True)
    assert batches
    assert max(batches) == 4
