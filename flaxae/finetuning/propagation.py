"""Label propagation: spread a few labels over the nearest-neighbour graph of many codes (Zhou et al. 2004)."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from flaxae import errors

Codes = Float[np.ndarray, "examples latent"]


class Neighbours(NamedTuple):
    """For each example, its nearest other examples, nearest first, and the cosines between their centred codes."""

    index: Int[np.ndarray, "examples k"]  # pyright: ignore[reportIncompatibleMethodOverride] (tuple.index is not needed)
    cosine: Float[np.ndarray, "examples k"]


def unit(z: Codes, *, centre: Float[np.ndarray, " latent"]) -> Codes:
    """Codes minus `centre`, scaled to length 1."""
    z = z - centre
    return z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def neighbours(z: Codes, k: int = 10) -> Neighbours:
    """The k nearest other codes of each code, by the cosine after subtracting the mean code.

    Time grows with the square of the number of codes.

    Raises:
        ConfigError: there are fewer than k other codes.
    """
    if not 1 <= k < len(z):
        raise errors.ConfigError(f"k is {k}; of {len(z)} codes it has to be at least 1 and below {len(z)}.")
    z = unit(z, centre=z.mean(axis=0))
    return _nearest(z, None, k)


def _nearest(train: Codes, new: Float[np.ndarray, "new latent"] | None, k: int) -> Neighbours:
    from sklearn.neighbors import NearestNeighbors

    # For unit vectors, squared distance = 2 − 2 cosine.
    distance, index = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(train).kneighbors(new)
    return Neighbours(index, 1 - np.square(distance) / 2)


def smooth(z: Codes, graph: Neighbours, *, rounds: int = 8, power: float = 3.0) -> Codes:
    """Centred unit codes, each replaced `rounds` times by its mean with its neighbours, weighted by cosine^power.

    This moves codes of a cluster together, so that k-means finds it. It uses no labels (diffusion: Coifman & Lafon
    2006).
    """
    z = unit(z, centre=z.mean(axis=0))
    weight = np.maximum(graph.cosine, 0) ** power
    for _ in range(rounds):
        around = np.einsum("nk,nkd->nd", weight, z[graph.index])
        z = (z + around) / (1 + weight.sum(axis=1, keepdims=True))
    return z.astype(np.float32)


def propagate(
    graph: Neighbours,
    labels: Int[np.ndarray, " examples"],
    *,
    classes: int | None = None,
    alpha: float = 0.99,
    rounds: int = 60,
    power: float = 3.0,
) -> Float[np.ndarray, "examples classes"]:
    """Class probabilities of all examples, from the labels of some.

    It iterates F ← α S F + (1 − α) Y from F = Y, the one-hot labels with the same total for every class. S is the
    graph with weights cosine^power, made symmetric and normalised by the degrees of both ends. At the end the classes
    are reweighted towards their shares among the labels (`balance`).

    Args:
        graph: as `neighbours` gives it.
        labels: −1 where the label is unknown.
        classes: how many there are; by default those of the labels.
        alpha: how much comes from the neighbours, below 1.
        rounds: how many iterations, so how far labels spread.
        power: of the cosines.

    Raises:
        DataError: no example has a label, or a class has none.
    """
    from scipy import sparse

    n, k = graph.index.shape
    known = np.flatnonzero(labels >= 0)
    counts = np.bincount(labels[known], minlength=classes or 0)
    if counts.min(initial=1 if len(known) else 0) == 0:
        raise errors.DataError(f"The classes have {counts.tolist()} labels; each needs one at least.")
    weights = np.clip(graph.cosine, 0, None).ravel() ** power
    half = sparse.csr_array((weights, (np.repeat(np.arange(n), k), graph.index.ravel())), shape=(n, n))
    symmetric = half + half.T
    scale = 1 / np.sqrt(np.maximum(symmetric.sum(axis=1), np.finfo(float).tiny))
    spread = sparse.diags_array(scale) @ symmetric @ sparse.diags_array(scale)
    given = np.zeros((n, len(counts)))
    given[known, labels[known]] = 1 / counts[labels[known]]
    scores = given
    for _ in range(rounds):
        scores = alpha * (spread @ scores) + (1 - alpha) * given
    return balance(scores, counts / counts.sum())


def balance(
    scores: Float[np.ndarray, "examples classes"], shares: Float[np.ndarray, " classes"]
) -> Float[np.ndarray, "examples classes"]:
    """Class probabilities from non-negative scores, reweighted so that the classes have about these shares.

    Rows are normalised to sum 1, the classes are multiplied to have the shares, and rows are normalised again. This is
    class mass normalisation (Zhu et al. 2003), done only once because the shares are estimated from few labels. An
    example whose scores are all 0 gets the shares.
    """
    total = scores.sum(axis=1, keepdims=True)
    probabilities = np.where(total > 0, scores / np.where(total > 0, total, 1), shares)
    weighed = probabilities * (shares / np.maximum(probabilities.mean(axis=0), np.finfo(float).tiny))
    return weighed / weighed.sum(axis=1, keepdims=True)


def vote(
    new: Float[np.ndarray, "new latent"],
    codes: Codes,
    probabilities: Float[np.ndarray, "examples classes"],
    *,
    k: int = 10,
    power: float = 3.0,
) -> Float[np.ndarray, "new classes"]:
    """Class probabilities of new codes: the mean of their k nearest among `codes`, weighted by cosine^power."""
    centre = codes.mean(axis=0)
    index, cosine = _nearest(unit(codes, centre=centre), unit(new, centre=centre), min(k, len(codes)))
    weights = np.clip(cosine, 0, None) ** power + np.finfo(float).tiny
    votes = np.einsum("nk,nkc->nc", weights, probabilities[index])
    return votes / votes.sum(axis=1, keepdims=True)
