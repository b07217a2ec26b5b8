"""What frozen codes are worth: few labels drawn of many, linear and nearest-neighbour probes, and clusters."""

import warnings
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from flaxae import errors

Labels = Int[np.ndarray, " examples"]  # −1 for those unknown
Codes = Float[np.ndarray, "examples latent"]

CS = 10.0 ** np.arange(-3, 2)  # inverse strengths of the probe's ridge, to cross-validate
MOST_TO_CROSS_VALIDATE = 5000  # labels; of more the ridge hardly matters
LEAST_SPREAD = 1e-6  # of the largest variance of codes: directions of less are rounding
UNSEEN = 10.0  # nats by which a probe's bias puts classes without labels behind the others


def draw(labels: Labels, n: int, *, seed: int = 0) -> Labels:
    """The labels with all but n of them −1: as many of each class as of any other, up to one, as far as there are.

    Raises:
        DataError: there are not n labels, or n is less than one a class.
    """
    rng = np.random.default_rng(seed)
    known = np.flatnonzero(labels >= 0)
    classes = np.unique(labels[known])
    if not len(classes) <= n <= len(known):
        raise errors.DataError(
            f"{n} labels were asked for; of {len(known)} labels in {len(classes)} classes, ask for {len(classes)} to "
            f"{len(known)}."
        )
    order = rng.permutation(known)
    rank = np.empty(len(order), int)  # the how many-th of its class
    for label in classes:
        own = labels[order] == label
        rank[own] = np.arange(own.sum())
    chosen = order[np.argsort(rank, kind="stable")[:n]]
    drawn = np.full_like(labels, -1)
    drawn[chosen] = labels[chosen]
    return drawn


class Probe(NamedTuple):
    """A linear classifier of codes: logits = z @ kernel + bias."""

    kernel: Float[np.ndarray, "latent classes"]
    bias: Float[np.ndarray, " classes"]

    def predict(self, z: Codes) -> Labels:
        return np.argmax(z @ self.kernel + self.bias, axis=1)


def linear_probe(z: Codes, labels: Labels, *, classes: int | None = None, seed: int = 0) -> Probe:
    """scikit-learn's logistic regression on the labelled of the codes; all of them give its centre and scale.

    Its ridge is chosen by stratified cross-validation within the labels, in as many folds as the rarest class has
    labels, up to 3; with one label of a class, or more than `MOST_TO_CROSS_VALIDATE`, C is 1.

    Raises:
        DataError: fewer than two classes have labels.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from threadpoolctl import threadpool_limits

    known = labels >= 0
    given = labels[known]
    seen, counts = np.unique(given, return_counts=True)
    if len(seen) < 2:
        raise errors.DataError(f"The labels given are of {len(seen)} class; a classifier needs two at least.")
    centre = z.mean(axis=0)
    scale = float(np.sqrt(np.square(z - centre).mean())) or 1.0
    x = (z[known] - centre) / scale
    regression = LogisticRegression(max_iter=200, tol=1e-3)
    with warnings.catch_warnings(), threadpool_limits(1):  # products are small: threads would mostly wait
        warnings.simplefilter("ignore", ConvergenceWarning)  # 200 rounds are near enough
        if counts.min() >= 2 and len(given) <= MOST_TO_CROSS_VALIDATE:
            folds = StratifiedKFold(min(3, counts.min()), shuffle=True, random_state=seed)
            search = GridSearchCV(regression, {"C": CS}, cv=folds, scoring="neg_log_loss")
            regression = search.fit(x, given).best_estimator_
        else:
            regression.fit(x, given)
    weights, constants = np.asarray(regression.coef_), np.asarray(regression.intercept_)
    if len(seen) == 2:  # scikit-learn keeps one row, the log odds of the second class
        weights, constants = np.stack([-weights[0], weights[0]]) / 2, np.append(-constants, constants) / 2
    kernel = np.zeros((z.shape[1], classes or int(seen[-1]) + 1), np.float32)
    bias = np.full(kernel.shape[1], constants.min() - UNSEEN, np.float32)
    kernel[:, seen] = weights.T / scale
    bias[seen] = constants - centre @ kernel[:, seen]
    return Probe(kernel, bias)


def knn_accuracy(
    z: Codes, labels: Labels, new: Float[np.ndarray, "new latent"], new_labels: Int[np.ndarray, " new"], *, k: int = 5
) -> float:
    """Accuracy of the vote of the k nearest labelled codes, by Euclidean distance."""
    from sklearn.neighbors import KNeighborsClassifier

    known = labels >= 0
    return float(KNeighborsClassifier(k).fit(z[known], labels[known]).score(new, new_labels))


class Clusters(NamedTuple):
    """How well clusters agree with classes: accuracy under the best one-to-one naming, and mutual information."""

    accuracy: float
    nmi: float  # normalised by the mean of both entropies


def cluster(z: Codes, labels: Labels, *, seed: int = 0) -> Clusters:
    """k-means on the codes, as many clusters as classes, the best of 10 starts, against labels that it doesn't see.

    Accuracy is under the Hungarian assignment (Xie et al. 2016, eq. 10).
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.cluster import KMeans
    from sklearn.metrics import normalized_mutual_info_score
    from sklearn.metrics.cluster import contingency_matrix

    starts: Any = 10  # by its default, which is text, pyright takes it for text
    found = KMeans(int(labels.max()) + 1, n_init=starts, random_state=seed).fit_predict(z)
    counts = contingency_matrix(labels, found)
    matched = counts[linear_sum_assignment(counts, maximize=True)].sum()
    return Clusters(float(matched / len(labels)), float(normalized_mutual_info_score(labels, found)))


def whiten(z: Codes) -> Float[np.ndarray, "examples directions"]:
    """Codes along their principal directions, each of variance 1, so that k-means heeds the weaker ones as well.

    Directions in which codes hardly differ are left out (whitening before k-means: Coates & Ng 2012).
    """
    centred = z - z.mean(axis=0)
    variance, directions = np.linalg.eigh(np.atleast_2d(np.cov(centred, rowvar=False)))
    kept = variance > LEAST_SPREAD * variance[-1]
    return (centred @ directions[:, kept] / np.sqrt(variance[kept])).astype(np.float32)
