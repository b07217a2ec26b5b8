"""Evaluation of frozen codes: draws of few labels, linear and nearest-neighbour probes, and clustering."""

import warnings
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import softmax
from sklearn.ensemble import RandomForestClassifier

from flaxae import errors

Labels = Int[np.ndarray, " examples"]  # −1 where the label is unknown
Codes = Float[np.ndarray, "examples latent"]

CS = 10.0 ** np.arange(-3, 2)  # inverse strengths of the probe's ridge to choose from by cross-validation
MOST_TO_CROSS_VALIDATE = 5000  # labels; with more, the ridge hardly matters
LEAST_SPREAD = 1e-6  # of the largest variance of codes: directions with less are rounding errors
TREES = 300  # of a random forest
FOREST_SHARE = 2 / 3  # of the vote about a table's rows; the rest is a linear probe's of their codes
UNSEEN = 10.0  # nats by which the bias of a class without labels is below the others


def draw(labels: Labels, n: int, *, seed: int = 0) -> Labels:
    """Keep n of the labels, drawn at random and balanced over the classes (within one, if there are enough), else −1.

    Raises:
        DataError: there are fewer than n labels, or n is less than one per class.
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
    rank = np.empty(len(order), int)  # of each label within its class
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

    def probabilities(self, z: Codes) -> Float[np.ndarray, "examples classes"]:
        return softmax(z.astype(np.float64) @ self.kernel + self.bias, axis=1)

    def predict(self, z: Codes) -> Labels:
        return np.argmax(z @ self.kernel + self.bias, axis=1)


def linear_probe(z: Codes, labels: Labels, *, classes: int | None = None, seed: int = 0) -> Probe:
    """scikit-learn's logistic regression on the labelled codes, standardised by the mean and scale of all codes.

    The ridge is chosen by stratified cross-validation within the labels, with as many folds as the rarest class has
    labels, up to 3. If a class has only one label, or there are more than `MOST_TO_CROSS_VALIDATE`, C is 1.

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
    with warnings.catch_warnings(), threadpool_limits(1):  # the matrix products are too small for threads
        warnings.simplefilter("ignore", ConvergenceWarning)  # 200 iterations are close enough
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


def forest(x: Float[np.ndarray, "examples columns"], labels: Labels, *, seed: int = 0) -> RandomForestClassifier:
    """scikit-learn's random forest of the labelled rows."""
    known = labels >= 0
    return RandomForestClassifier(TREES, random_state=seed).fit(x[known], labels[known])


def tabular_vote(
    x: Float[np.ndarray, "examples columns"], z: Codes, labels: Labels, *, classes: int, seed: int = 0
) -> Float[np.ndarray, "examples classes"]:
    """The class probabilities of all rows by the labelled ones: of a random forest of the rows, and of a linear probe
    of their codes, by the weight `FOREST_SHARE`. Neither is the better one on all tables.
    """
    trees, by_forest = forest(x, labels, seed=seed), np.zeros((len(x), classes))
    by_forest[:, trees.classes_] = trees.predict_proba(x)
    by_probe = linear_probe(z, labels, classes=classes, seed=seed).probabilities(z)
    return FOREST_SHARE * by_forest + (1 - FOREST_SHARE) * by_probe


def knn_accuracy(
    z: Codes, labels: Labels, new: Float[np.ndarray, "new latent"], new_labels: Int[np.ndarray, " new"], *, k: int = 5
) -> float:
    """Accuracy of the vote of the k nearest labelled codes, by Euclidean distance."""
    from sklearn.neighbors import KNeighborsClassifier

    known = labels >= 0
    return float(KNeighborsClassifier(k).fit(z[known], labels[known]).score(new, new_labels))


class Clusters(NamedTuple):
    """Agreement of clusters with classes: accuracy under the best one-to-one assignment, and mutual information."""

    accuracy: float
    nmi: float  # normalised by the mean of both entropies


def cluster(z: Codes, labels: Labels, *, seed: int = 0) -> Clusters:
    """k-means on the codes, with as many clusters as classes and the best of 10 starts. Labels are for the scores only.

    The accuracy is that of the Hungarian assignment (Xie et al. 2016, eq. 10).
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.cluster import KMeans
    from sklearn.metrics import normalized_mutual_info_score
    from sklearn.metrics.cluster import contingency_matrix

    starts: Any = 10  # typed Any, because scikit-learn's default is a text
    found = KMeans(int(labels.max()) + 1, n_init=starts, random_state=seed).fit_predict(z)
    counts = contingency_matrix(labels, found)
    matched = counts[linear_sum_assignment(counts, maximize=True)].sum()
    return Clusters(float(matched / len(labels)), float(normalized_mutual_info_score(labels, found)))


def whiten(z: Codes) -> Float[np.ndarray, "examples directions"]:
    """Codes along their principal directions, scaled to variance 1, so that k-means also uses the weaker directions.

    Directions in which the codes hardly differ are left out (whitening before k-means: Coates & Ng 2012).
    """
    centred = z - z.mean(axis=0)
    variance, directions = np.linalg.eigh(np.atleast_2d(np.cov(centred, rowvar=False)))
    kept = variance > LEAST_SPREAD * variance[-1]
    return (centred @ directions[:, kept] / np.sqrt(variance[kept])).astype(np.float32)
