"""Evaluation of frozen codes: draws of few labels, linear and nearest-neighbour probes, and clustering."""

import warnings
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy.special import softmax
from sklearn.ensemble import RandomForestClassifier
from sklearn.kernel_approximation import Nystroem
from sklearn.model_selection import StratifiedKFold

from flaxae import errors
from flaxae.finetuning import propagation

Labels = Int[np.ndarray, " examples"]  # −1 where the label is unknown
Codes = Float[np.ndarray, "examples latent"]
Probabilities = Float[np.ndarray, "examples classes"]

CS = 10.0 ** np.arange(-3, 2)  # inverse strengths of the probe's ridge to choose from by cross-validation
MOST_TO_CROSS_VALIDATE = 5000  # labels; with more, the ridge hardly matters
LEAST_SPREAD = 1e-6  # of the largest variance of codes: directions with less are rounding errors
TREES = 300  # of a random forest
FOREST_SHARE = 2 / 3  # of the vote about a table's rows; the rest is a linear probe's of their codes
LANDMARKS = 1000  # labelled examples, at most, that a kernel probe compares others with
KERNEL_BLOCK = 4096  # examples compared at once
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

    def probabilities(self, z: Codes) -> Probabilities:
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
    from sklearn.model_selection import GridSearchCV
    from threadpoolctl import threadpool_limits

    known = labels >= 0
    given = labels[known]
    seen = np.unique(given)
    if len(seen) < 2:
        raise errors.DataError(f"The labels given are of {len(seen)} class; a classifier needs two at least.")
    centre = z.mean(axis=0)
    scale = float(np.sqrt(np.square(z - centre).mean())) or 1.0
    x = (z[known] - centre) / scale
    regression = LogisticRegression(max_iter=200, tol=1e-3)
    with warnings.catch_warnings(), threadpool_limits(1):  # the matrix products are too small for threads
        warnings.simplefilter("ignore", ConvergenceWarning)  # 200 iterations are close enough
        folds = _folds(given, seed)
        if folds is not None:
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


def _folds(given: Int[np.ndarray, " known"], seed: int) -> StratifiedKFold | None:
    """Folds of the known labels to cross-validate by, or None if there are too many or a class has only one."""
    fewest = int(np.unique(given, return_counts=True)[1].min())
    if fewest < 2 or len(given) > MOST_TO_CROSS_VALIDATE:
        return None
    return StratifiedKFold(min(3, fewest), shuffle=True, random_state=seed)


class KernelProbe(NamedTuple):
    """A classifier of examples by how similar they and their codes are to labelled ones."""

    similarities: Nystroem
    probe: Probe

    def probabilities(self, x: Float[np.ndarray, "examples values"]) -> Probabilities:
        blocks = [x[start : start + KERNEL_BLOCK] for start in range(0, len(x), KERNEL_BLOCK)]
        return np.concatenate([self.probe.probabilities(self.similarities.transform(block)) for block in blocks])


def kernel_probe(
    x: Float[np.ndarray, "examples values"], labels: Labels, *, classes: int | None = None, seed: int = 0
) -> KernelProbe:
    """Kernel logistic regression on the labelled examples, with a Gaussian kernel of the width of the data.

    It is a linear probe of the kernel's features, of which up to `LANDMARKS` are kept (Nyström's approximation,
    Williams & Seeger 2001).

    Raises:
        DataError: fewer than two classes have labels.
    """
    known = labels >= 0
    width = x.shape[1] * float(x[known].var()) or 1.0
    similarities = Nystroem(gamma=1 / width, n_components=min(LANDMARKS, int(known.sum())), random_state=seed)
    features = similarities.fit_transform(x[known])
    return KernelProbe(similarities, linear_probe(features, labels[known], classes=classes, seed=seed))


def vote(
    graph: propagation.Neighbours,
    x: Shaped[np.ndarray, " examples *shape"],
    z: Codes,
    labels: Labels,
    *,
    classes: int,
    seed: int = 0,
) -> Probabilities:
    """The class probabilities of all examples by the labelled ones: propagated ones, or their mean with a kernel
    probe's of examples and codes side by side, whichever errs less in cross-validation within the labels.

    Where codes of a class lie together, propagation needs few labels; where they don't, more labels tell more than
    neighbours do. With one label of a class, or more than `MOST_TO_CROSS_VALIDATE`, labels are propagated.
    """
    known = np.flatnonzero(labels >= 0)
    folds = _folds(labels[known], seed)
    if folds is None:
        return propagation.propagate(graph, labels, classes=classes)
    both = np.concatenate([_scaled(np.asarray(part).reshape(len(z), -1)) for part in (x, z)], axis=1)

    def candidates(labels: Labels, wanted: Int[np.ndarray, " wanted"]) -> list[Float[np.ndarray, "wanted classes"]]:
        propagated = propagation.propagate(graph, labels, classes=classes)[wanted]
        probe = kernel_probe(both, labels, classes=classes, seed=seed)
        return [propagated, (propagated + probe.probabilities(both[wanted])) / 2]

    wrong = np.zeros(2)
    for _, fold in folds.split(known, labels[known]):
        hidden = known[fold]
        others = labels.copy()
        others[hidden] = -1
        wrong += [np.sum(found.argmax(axis=1) != labels[hidden]) for found in candidates(others, hidden)]
    return candidates(labels, np.arange(len(z)))[int(wrong[1] < wrong[0])]


def _scaled(x: Float[np.ndarray, "examples values"]) -> Float[np.ndarray, "examples values"]:
    """Examples around their mean, of a mean squared length of 1."""
    x = x - x.mean(axis=0)
    return x / np.sqrt(np.square(x).sum(axis=1).mean() or 1)


def forest(x: Float[np.ndarray, "examples columns"], labels: Labels, *, seed: int = 0) -> RandomForestClassifier:
    """scikit-learn's random forest of the labelled rows."""
    known = labels >= 0
    return RandomForestClassifier(TREES, random_state=seed).fit(x[known], labels[known])


def tabular_vote(
    x: Float[np.ndarray, "examples columns"], z: Codes, labels: Labels, *, classes: int, seed: int = 0
) -> Probabilities:
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

    The accuracy is that of the Hungarian assignment (Xie et al. 2016, eq. 10). Fewer different codes than classes make
    fewer clusters, which are scored as they are.
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import normalized_mutual_info_score
    from sklearn.metrics.cluster import contingency_matrix

    starts: Any = 10  # typed Any, because scikit-learn's default is a text
    method = KMeans(min(len(np.unique(labels)), len(z)), n_init=starts, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of fewer clusters
        found = method.fit_predict(z)
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
