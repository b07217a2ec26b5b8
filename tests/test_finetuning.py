import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

from flaxae import autoencoder, errors, finetuning, presets, training
from flaxae.autoencoder import Autoencoder, Config
from flaxae.corruptions import GaussianNoise
from flaxae.finetuning import Classifier, FineTuning
from flaxae.likelihoods import Gaussian
from flaxae.nn.heads import Deterministic
from flaxae.nn.mlp import MLP
from flaxae.nn.recognizer import Recognizer

CONFIG = Config(body=MLP((32, 16)), head=Deterministic(8), corruption=GaussianNoise(0.2))
QUICK = FineTuning(steps=150, batch_size=16, learning_rate=1e-2, ema=0.9)


@pytest.fixture(scope="module")
def y():
    return load_digits().target[:600]


@pytest.fixture(scope="module")
def x():
    return (load_digits().images[:600, ..., None] / 16).astype(np.float32)


@pytest.fixture(scope="module")
def model(x):
    """Untrained: what random layers keep of the digits is enough to be probed and fine-tuned."""
    return autoencoder.build(CONFIG, x.shape[1:])


@pytest.fixture(scope="module")
def z(model, x):
    return training.apply(Autoencoder.encode, model, x)


@given(n=st.integers(4, 40), seed=st.integers(0, 9))
def test_draws_are_even_and_of_their_seed(n, seed):
    labels = np.repeat([0, 1, 2, 3, -1], [30, 20, 5, 10, 7])
    drawn = finetuning.draw(labels, n, seed=seed)
    known = drawn >= 0
    assert known.sum() == n
    np.testing.assert_array_equal(drawn[known], labels[known])
    counts = np.bincount(drawn[known], minlength=4)
    exhausted = counts == [30, 20, 5, 10]
    assert counts[~exhausted].max(initial=0) - counts[~exhausted].min(initial=99) <= 1
    np.testing.assert_array_equal(drawn, finetuning.draw(labels, n, seed=seed))
    assert (drawn != finetuning.draw(labels, n, seed=seed + 10)).any()


def test_draws_that_cannot_be_made_are_refused():
    with pytest.raises(errors.DataError, match="ask for 2 to 3"):
        finetuning.draw(np.array([0, 1, 1, -1]), 4)


def test_the_probe_is_logistic_regression_of_the_labelled(z, y):
    labels = np.where(np.arange(len(y)) < 200, y, -1)
    probe = finetuning.linear_probe(z, labels)
    centred = (z - z.mean(axis=0)) / np.sqrt(np.square(z - z.mean(axis=0)).mean())
    accuracies = [
        LogisticRegression(C=c, max_iter=200, tol=1e-3).fit(centred[:200], y[:200]).score(centred[200:], y[200:])
        for c in finetuning.CS
    ]
    assert min(accuracies) <= (probe.predict(z[200:]) == y[200:]).mean() <= max(accuracies)


@pytest.mark.parametrize("seen", [(0, 1), (2, 5, 9)])
def test_a_probe_never_names_a_class_without_labels(z, y, seen):
    labels = np.where(np.isin(y, seen), y, -1)
    probe = finetuning.linear_probe(z, labels, classes=10)
    assert probe.kernel.shape == (8, 10)
    assert set(probe.predict(z)) == set(seen)
    assert (probe.predict(z) == y)[labels >= 0].mean() > 0.8
    with pytest.raises(errors.DataError, match="two at least"):
        finetuning.linear_probe(z, np.where(y == 3, y, -1))


def test_neighbours_and_clusters_of_codes_that_are_their_classes(y):
    z = np.eye(10, dtype=np.float32)[(y + 3) % 10]
    z += 0.01 * np.random.default_rng(0).standard_normal(z.shape, np.float32)
    assert finetuning.cluster(z, y) == (1.0, pytest.approx(1.0))
    assert finetuning.knn_accuracy(z[100:], y[100:], z[:100], y[:100]) == 1.0
    shuffled = np.random.default_rng(0).permutation(y)
    assert finetuning.cluster(z, shuffled).accuracy < 0.3
    assert finetuning.cluster(z, shuffled).nmi < 0.1


def test_codes_that_coincide_are_one_cluster(y):
    share = np.bincount(y).max() / len(y)
    assert finetuning.cluster(np.ones((len(y), 4), np.float32), y) == (pytest.approx(share), 0.0)
    assert finetuning.cluster(np.ones((1, 4), np.float32), y[:1]).accuracy == 1.0


def test_whitened_codes_do_not_correlate_and_show_clusters_in_weak_directions(rng):
    y = np.arange(300) % 3
    z = 3 * np.eye(3)[y] @ rng.standard_normal((3, 3)) + 0.3 * rng.standard_normal((300, 3))
    z = (np.c_[z, 50 * rng.standard_normal(300), np.ones(300)] + 7).astype(np.float32)  # one says nothing, one is idle
    white = finetuning.whiten(z)
    np.testing.assert_allclose(np.cov(white, rowvar=False), np.eye(4), atol=1e-3)
    assert finetuning.cluster(white, y).accuracy > 0.9 > finetuning.cluster(z, y).accuracy + 0.2


def test_a_classifier_on_a_probe_says_what_the_probe_says_and_leaves_the_autoencoder(model, x, z, y):
    probe = finetuning.linear_probe(z, y)
    classifier = finetuning.on_probe(model, probe)
    np.testing.assert_allclose(classifier(x[:9]), z[:9] @ probe.kernel + probe.bias, rtol=1e-4, atol=1e-4)
    finetuning.fit([classifier], x, finetuning.supervised([y], 10), QUICK)
    assert np.abs(np.asarray(classifier.encode(x)) - z).max() > 1e-2
    np.testing.assert_array_equal(training.apply(Autoencoder.encode, model, x), z)


def test_side_by_side_is_one_by_one(model, x, z, y):
    draws = [finetuning.draw(y, 40, seed=seed) for seed in (0, 1)]
    blank = [Classifier(autoencoder.build(CONFIG, x.shape[1:], seed=s), 8, 10, rngs=nnx.Rngs(s)) for s in (0, 1)]
    solo = nnx.clone(blank[0])
    finetuning.fit(blank, x, finetuning.supervised(draws, 10), QUICK)
    finetuning.fit([solo], x, finetuning.supervised(draws[:1], 10), QUICK)
    np.testing.assert_allclose(solo(x[:50]), blank[0](x[:50]), rtol=1e-3, atol=1e-3)
    labelled = draws[0] >= 0
    assert (np.asarray(solo(x)).argmax(axis=1) == y)[labelled].mean() > 0.9


def test_layers_join_from_the_last_and_learn_the_slower_the_deeper(model, x, z, y):
    start = finetuning.on_probe(model, finetuning.linear_probe(z, y))

    def moved(**changes):
        """How far the kernels go, the last first. Adam's first step is as long whatever the gradient."""
        plan = FineTuning(**{"steps": 1, "batch_size": 16, "ema": 0.01, "weight_decay": 0.0, **changes})
        classifier = nnx.clone(start)
        finetuning.fit([classifier], x, finetuning.supervised([y], 10), plan)
        kernels = [
            (classifier.out, start.out),
            (classifier.head.linear, start.head.linear),
            *((own.linear, old.linear) for own, old in zip(layers(classifier), layers(start), strict=True)),
        ]
        return [float(jnp.abs(own.kernel[...] - old.kernel[...]).mean()) for own, old in kernels]

    def layers(classifier):
        return list(classifier.encoder.stack.layers)[::-1]

    even = moved()
    np.testing.assert_allclose(np.array(moved(layer_decay=0.5)) / even, [1, 0.5, 0.25, 0.125], rtol=1e-3)
    first_of_many = np.array(moved(unfreeze=1.0)) / even
    np.testing.assert_allclose(first_of_many, [1, 0, 0, 0], rtol=1e-3, atol=1e-6)


def test_consistency_makes_examples_without_labels_keep_their_class_under_corruption(model, x, y, rng):
    draws = [finetuning.draw(y, 40, seed=seed) for seed in (0, 1)]
    noisy = (x + 0.3 * rng.standard_normal(x.shape)).astype(np.float32)

    def moved(consistency):
        """How far the probabilities of those without labels go."""
        plan = dataclasses.replace(QUICK, corruption=GaussianNoise(0.3), consistency=consistency)
        learnt = [Classifier(model, 8, 10, rngs=nnx.Rngs(seed)) for seed in (0, 1)]
        finetuning.fit(learnt, x, finetuning.supervised(draws, 10), plan)
        distance = [np.abs(finetuning.predict(own, x) - finetuning.predict(own, noisy)).sum(axis=1) for own in learnt]
        return np.mean([own[labels < 0] for own, labels in zip(distance, draws, strict=True)])

    assert moved(consistency=3.0) < 0.8 * moved(consistency=1e-9)  # the same program, all but off


def test_a_teacher_normalises_as_its_pupil_does(x, y):
    """By the batch: running statistics, however far off, don't reach what is learnt."""
    body = Recognizer(channels=(4,), kernels=(3,), hidden=(16,))
    one = Classifier(autoencoder.build(Config(body=body, head=Deterministic(8)), x.shape[1:]), 8, 10, rngs=nnx.Rngs(0))
    off = nnx.clone(one)
    off.encoder.stages[0].norm.mean[...] += 3
    plan = FineTuning(steps=5, corruption=GaussianNoise(0.3), consistency=1.0)
    for classifier in (one, off):
        finetuning.fit([classifier], x, finetuning.supervised([y], 10), plan)
    np.testing.assert_allclose(off.out.kernel[...], one.out.kernel[...], atol=1e-6)
    assert np.abs(off.encoder.stages[0].norm.mean[...] - one.encoder.stages[0].norm.mean[...]).max() > 0.5


def test_the_order_of_layers_is_that_of_the_program():
    class Backwards(nnx.Module):
        """Attributes in another order than they are used in."""

        def __init__(self):
            self.a_last = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
            self.z_first = nnx.Linear(4, 4, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.a_last(self.z_first(x))

    assert finetuning.depths(Backwards(), jnp.zeros((1, 4))) == (("a_last", 0), ("z_first", 1))


def test_distilled_targets_are_drawn_as_they_are_certain_and_each_class_alike():
    found = np.array([[0.98, 0.02], [0.6, 0.4], [0.5, 0.5], [0.1, 0.9], [0.9, 0.1]])
    labels = np.array([-1, -1, -1, -1, 1])
    targets = finetuning.distilled([found], [labels], share=0.25)
    np.testing.assert_array_equal(targets.probabilities[0].argmax(axis=1), [0, 0, 0, 1, 1])
    drawn = targets.weights[0]
    assert drawn[4] == pytest.approx(0.25)
    assert drawn[0] > drawn[1] > drawn[2] == pytest.approx(0, abs=1e-6)
    assert drawn[:3].sum() == pytest.approx(drawn[3]) == pytest.approx(0.375)


def test_distillation_follows_the_clusters(rng):
    """Of two labels a class, a probe can't tell which directions matter; the graph of all examples can."""
    y = np.arange(240) % 4
    x = (2.5 * np.eye(4, 12)[y] + rng.standard_normal((240, 12)) * ([0.3] * 4 + [0.8] * 8)).astype(np.float32)
    model = autoencoder.build(Config(body=MLP((32,)), head=Deterministic(12), likelihood=Gaussian()), (12,))
    draws = [finetuning.draw(y, 8, seed=seed) for seed in range(3)]
    plan = FineTuning(steps=100, batch_size=32, learning_rate=3e-3, corruption=GaussianNoise(0.3), ema=0.9)
    first = finetuning.distil(model, x, draws, plan, classes=4, views=2)
    second = finetuning.distil(first.classifiers, x, draws, plan, classes=4, views=2)
    assert [reached.shape for reached in second.probabilities] == [(240, 4)] * 3
    z = finetuning.encode(model, x)
    probed = [np.mean(finetuning.linear_probe(z, labels).predict(z) == y) for labels in draws]
    once, twice = (
        [np.mean(finetuning.predict(own, x).argmax(axis=1) == y) for own in learnt.classifiers]
        for learnt in (first, second)
    )
    assert np.mean(probed) + 0.05 < np.mean(once) <= np.mean(twice) + 0.02, (probed, once, twice)


def test_over_views_is_the_mean_of_an_example_and_corrupted_ones(model, x):
    def brighter(key, x):
        return x + 1

    clean, bright = np.asarray(model.encode(x[:50])), np.asarray(model.encode(x[:50] + 1))
    seen = finetuning.encode(model, x[:50], FineTuning(corruption=brighter).views(3))
    np.testing.assert_allclose(seen, clean / 4 + 3 * bright / 4, atol=1e-4)
    np.testing.assert_allclose(finetuning.encode(model, x[:50]), clean, atol=1e-5)


def test_what_is_out_of_range_is_refused(model, x):
    with pytest.raises(errors.ConfigError, match="1 channels and 2 kernels"):
        Recognizer(channels=(4,), kernels=(3, 3))
    with pytest.raises(errors.ConfigError, match="layer_decay is 2"):
        FineTuning(layer_decay=2.0)
    with pytest.raises(errors.ConfigError, match="without a corruption"):
        FineTuning(consistency=1.0)
    with pytest.raises(errors.ConfigError, match="consistency is nan"):
        FineTuning(consistency=float("nan"))
    with pytest.raises(errors.ConfigError, match="steps is 0"):
        FineTuning(steps=0)
    classifier = Classifier(model, 8, 10, rngs=nnx.Rngs(0))
    nothing = finetuning.supervised([np.full(len(x), -1)], 10)
    with pytest.raises(errors.DataError, match="no example with a label"):
        finetuning.fit([classifier], x, nothing, QUICK)
    wild = FineTuning(steps=60, learning_rate=1e30)
    with pytest.raises(errors.DivergedError, match="lower learning rate"):
        finetuning.fit([classifier], x, finetuning.supervised([np.arange(len(x)) % 10], 10), wild)


def test_codes_are_means_over_views_of_a_model_with_batch_norm(x):
    config = presets.PRESETS["transformed"](latent=4)
    model = autoencoder.build(config, x.shape[1:])
    views = finetuning.Views(model.spec("corruption"), 2)
    seen = finetuning.encode(model, x[:12], views)
    plain = finetuning.encode(model, x[:12])
    assert seen.shape == plain.shape == (12, 4)
    assert not np.allclose(seen, plain)
    np.testing.assert_array_equal(finetuning.encode(model, x[:12], views), seen)


def test_a_kernel_probe_is_kernel_logistic_regression(rng):
    """With all labelled examples as landmarks, it finds what scikit-learn's exact kernel machine does."""
    x = rng.normal(size=(500, 2)).astype(np.float32)
    inside = (np.square(x).sum(axis=1) < 1.4).astype(int)  # nothing linear tells them apart
    labels = finetuning.draw(inside[:300], 200)
    probe = finetuning.kernel_probe(x[:300], labels)
    found = probe.probabilities(x[300:])
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
    exact = SVC(C=10, gamma="scale").fit(x[:300][labels >= 0], labels[labels >= 0])
    assert (found.argmax(axis=1) == exact.predict(x[300:])).mean() > 0.95
    assert (found.argmax(axis=1) == inside[300:]).mean() > 0.93
    assert (finetuning.linear_probe(x[:300], labels).predict(x[300:]) == inside[300:]).mean() < 0.75


def test_labels_are_propagated_unless_a_kernel_probe_errs_less(rng):
    clusters = np.arange(240) % 4
    x = (4 * np.eye(4, 12)[clusters] + 0.3 * rng.standard_normal((240, 12))).astype(np.float32)
    graph = finetuning.propagation.neighbours(x)
    few = finetuning.draw(clusters, 12)
    propagated = finetuning.propagation.propagate(graph, few, classes=4)
    np.testing.assert_array_equal(finetuning.vote(graph, x, x, few, classes=4), propagated)

    halves = (x[:, 5] > 0).astype(int)  # not what lies together
    many = finetuning.draw(halves, 120)
    found = finetuning.vote(graph, x, x, many, classes=2)
    hidden = many < 0
    by_graph = finetuning.propagation.propagate(graph, many, classes=2)
    wrong, before = ((p[hidden].argmax(axis=1) != halves[hidden]).mean() for p in (found, by_graph))
    assert wrong < before - 0.1, (wrong, before)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)

    one = finetuning.draw(clusters, 4)  # nothing to cross-validate with
    np.testing.assert_array_equal(
        finetuning.vote(graph, x, x, one, classes=4), finetuning.propagation.propagate(graph, one, classes=4)
    )


def test_a_table_s_classifier_learns_what_a_forest_and_a_probe_say_of_all_rows(rng):
    x = rng.normal(size=(600, 6)).astype(np.float32)
    truth = (x[:, 0] * x[:, 1] > 0).astype(int) + 2 * (x[:, 2] > 1)  # what is linear in it is not enough
    labels = finetuning.draw(truth[:400], 160)
    found = finetuning.tabular_vote(x[:400], x[:400], labels, classes=5)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
    assert (found[:, 4] < 1e-3).all()  # of a class without labels
    trees = finetuning.forest(x[:400], labels).predict_proba(x[:400])
    probed = finetuning.linear_probe(x[:400], labels, classes=5).probabilities(x[:400])
    np.testing.assert_allclose(found[:, :4], (2 * trees + probed[:, :4]) / 3, atol=1e-6)

    targets = finetuning.soft([found], [labels])
    np.testing.assert_allclose(targets.probabilities[0][labels >= 0], np.eye(5)[labels[labels >= 0]])
    np.testing.assert_allclose(targets.probabilities[0][labels < 0], found[labels < 0], atol=1e-6)
    model = autoencoder.build(Config(body=MLP((64,)), head=Deterministic(16), likelihood=Gaussian()), (6,))
    plan = FineTuning(steps=400, batch_size=64, learning_rate=3e-3, layer_decay=1.0, ema=0.98)
    [made], _ = finetuning.distil(model, x[:400], [labels], plan, classes=5, found=[found], targets=finetuning.soft)
    linear = finetuning.linear_probe(x[:400], labels).predict(x[400:])
    wrong = (finetuning.predict(made, x[400:]).argmax(axis=1) != truth[400:]).mean()
    assert wrong < 0.8 * (linear != truth[400:]).mean()
