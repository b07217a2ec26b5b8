"""How good samples are, measured in a space of features: that of a small classifier, or of an autoencoder's code.

All distances are between features divided by their deviation over the training examples. They depend on the space, so
that they only compare samples of one data set, in one space; the scale to read them by is the distance of training
examples from test examples, which no sampler can be expected to beat.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Int
from scipy import linalg
from sklearn.metrics import pairwise_distances_chunked

from flaxae import autoencoder, finetuning, training
from flaxae.autoencoder import Autoencoder, Config
from flaxae.likelihoods import Gaussian
from flaxae.nn.heads import Deterministic
from flaxae.nn.mlp import MLP
from flaxae.nn.recognizer import Recognizer

FEATURES = 64
STEPS, EPOCHS = (100, 1500), 30  # of the classifier: so many passes, within these bounds
BATCH_SIZE, LEARNING_RATE = 128, 3e-3
CONFIDENT = 0.9
MOST = 5000  # examples that pairs are compared of, whose number grows with the square
NEIGHBOURS = 5
SIDES = 16  # pixels at least, for convolutions

Features = Float[np.ndarray, "examples features"]
Others = Float[np.ndarray, "others features"]
Examples = Float[np.ndarray, " examples *shape"]


class FeatureSpace(NamedTuple):
    """Features of examples, in the model's scale; `probabilities` of the classes if a classifier gives them."""

    name: str
    features: Callable[[Examples], Features]
    probabilities: Callable[[Examples], Float[np.ndarray, "examples classes"]] | None = None


class Quality(NamedTuple):
    """How samples compare with test examples; see the functions of the same names."""

    frechet_distance: float
    kernel_distance: float
    precision: float
    recall: float
    confident: float | None = None  # share of samples that the classifier names with `CONFIDENT` probability or more


def learn(x: Examples, labels: Int[np.ndarray, " examples"], classes: int, *, seed: int = 0) -> FeatureSpace:
    """The features of a small classifier trained on the labelled examples; those with the label −1 are left out.

    Images have a convolutional one, with a map of `FEATURES` numbers before the last layer.
    """
    is_image = x.ndim == 4 and min(x.shape[1:3]) >= SIDES
    config = Config(body=Recognizer() if is_image else MLP((128,)), head=Deterministic(FEATURES), likelihood=Gaussian())
    model = autoencoder.build(config, x.shape[1:], seed=seed)
    classifier = finetuning.Classifier(model, FEATURES, classes, rngs=nnx.Rngs(seed))
    steps = int(np.clip(EPOCHS * np.sum(labels >= 0) // BATCH_SIZE, *STEPS))
    plan = finetuning.FineTuning(steps, BATCH_SIZE, LEARNING_RATE)
    finetuning.fit([classifier], x, finetuning.supervised([labels], classes), plan, seed=seed)
    standardised = _Standardised.fit(finetuning.encode(classifier, x))
    return FeatureSpace(
        f"the {FEATURES} features of a classifier",
        lambda x: standardised(finetuning.encode(classifier, x)),
        lambda x: finetuning.predict(classifier, x),
    )


def of_codes(model: Autoencoder, x: Examples) -> FeatureSpace:
    """The codes of a trained model, for data without labels. Their quality flatters that model."""

    def features(x: Examples) -> Features:
        codes = training.apply(Autoencoder.encode, model, x)
        parts = codes if isinstance(codes, tuple) else (codes,)
        return np.concatenate([np.asarray(part).reshape(len(part), -1) for part in parts], axis=1)

    standardised = _Standardised.fit(features(x))
    return FeatureSpace("the model's own code", lambda x: standardised(features(x)))


@dataclasses.dataclass(frozen=True, eq=False)
class _Standardised:
    """Features less their mean, divided by their deviation; those that never change are left out. At most 256."""

    kept: Int[np.ndarray, " features"]
    mean: Float[np.ndarray, " features"]
    deviation: Float[np.ndarray, " features"]

    @classmethod
    def fit(cls, features: Features) -> "_Standardised":
        deviation = features.std(axis=0)
        kept = np.flatnonzero(deviation > 1e-6 * max(1e-12, float(deviation.max())))
        if len(kept) > 256:
            kept = kept[np.argsort(-deviation[kept])[:256]]
        return cls(kept, features.mean(axis=0)[kept], deviation[kept])

    def __call__(self, features: Features) -> Features:
        return (features[:, self.kept] - self.mean) / self.deviation


def compare(space: FeatureSpace, samples: Examples, reference: Float[np.ndarray, " others *shape"]) -> Quality:
    """How samples compare with a reference, test examples. Both are in the model's scale."""
    a, b = space.features(samples), space.features(reference)
    precision, recall = precision_recall(a, b)
    confident = None
    if space.probabilities is not None:
        confident = float(np.mean(space.probabilities(samples).max(axis=1) >= CONFIDENT))
    return Quality(frechet_distance(a, b), kernel_distance(a, b), precision, recall, confident)


def frechet_distance(a: Features, b: Others) -> float:
    """The squared Fréchet distance of normals with the means and covariances of both (Heusel et al. 2017, eq. 6).

    ‖m_a − m_b‖² + tr(C_a + C_b − 2 (C_a C_b)^½). For few examples it is too large: n of the same distribution have a
    distance of about features² / (2 n).
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    covariances = [np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b)]
    root = _root(covariances[0])
    # of the same eigenvalues as the product, and symmetric
    crossed = np.linalg.eigvalsh(root @ covariances[1] @ root)
    shift = np.square(a.mean(axis=0) - b.mean(axis=0)).sum()
    apart = shift + sum(map(np.trace, covariances)) - 2 * np.sqrt(np.maximum(crossed, 0)).sum()
    return float(max(apart, 0.0))


def _root(matrix: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    values, vectors = linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def kernel_distance(a: Features, b: Others) -> float:
    """KID, the squared maximum mean discrepancy under the kernel (a·b / features + 1)³, unbiased.

    After Bińkowski et al. 2018, equation 4; on the first `MOST` examples of both. It may be below 0.
    """
    a, b = (np.asarray(x[:MOST], np.float64) for x in (a, b))

    def mean(x: Features, y: Others, *, same: bool) -> float:
        total = 0.0
        for start in range(0, len(x), 1024):
            products = (x[start : start + 1024] @ y.T / x.shape[1] + 1) ** 3
            total += products.sum()
        if not same:
            return total / (len(x) * len(y))
        own = ((np.square(x).sum(axis=1) / x.shape[1] + 1) ** 3).sum()
        return (total - own) / max(1, len(x) * (len(x) - 1))

    return mean(a, a, same=True) + mean(b, b, same=True) - 2 * mean(a, b, same=False)


def precision_recall(samples: Features, reference: Others, *, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """The shares of samples within the reference's manifold, and of the reference within the samples'.

    After Kynkäänniemi et al. 2019: a manifold is the union of balls around its examples, each as large as to hold its
    nearest `neighbours`. On the first `MOST` examples of both.
    """
    samples, reference = samples[:MOST], reference[:MOST]
    return float(_within(samples, reference, neighbours).mean()), float(_within(reference, samples, neighbours).mean())


def _within(x: Features, manifold: Others, neighbours: int) -> Bool[np.ndarray, " examples"]:
    """Which examples are in a ball of the manifold."""
    nearest = min(neighbours, len(manifold) - 1)
    radii = np.concatenate(
        [np.partition(d, nearest, axis=1)[:, nearest] for d in pairwise_distances_chunked(manifold)]  # itself first
    )
    return np.concatenate([(d <= radii).any(axis=1) for d in pairwise_distances_chunked(x, manifold)])


def nearest(
    x: Examples, among: Float[np.ndarray, " others *shape"]
) -> tuple[Int[np.ndarray, " examples"], Float[np.ndarray, " examples"]]:
    """For each example, which of the others is nearest to it, and how far (root of the mean squared difference)."""
    flat, others = (np.asarray(part, np.float32).reshape(len(part), -1) for part in (x, among))
    found, distance = np.zeros(len(flat), np.int64), np.zeros(len(flat), np.float32)
    size = np.square(others).sum(axis=1)
    for start in range(0, len(flat), 512):
        part = flat[start : start + 512]
        apart = size - 2 * part @ others.T  # less ‖x‖², which is the same for all
        index = apart.argmin(axis=1)
        found[start : start + 512] = index
        distance[start : start + 512] = np.sqrt(np.square(part - others[index]).mean(axis=1))
    return found, distance
