"""How good synthetic rows of a table are: its columns one by one and in pairs, and whether rows give real ones away."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from flaxae.generation.quality import MOST, nearest

Rows = Float[np.ndarray, "rows columns"]
Train = Float[np.ndarray, "train columns"]
Test = Float[np.ndarray, "test columns"]


class TableQuality(NamedTuple):
    """Synthetic rows beside test rows, on columns scaled as the model sees them.

    Args:
        marginals: of each column, the largest difference of both distribution functions (Kolmogorov-Smirnov), 0 to 1.
        correlations: the mean absolute difference of the correlations of two columns.
        nearest: the median distance of a synthetic row to its nearest training row, as a multiple of a test row's.
        closer: the share of synthetic rows nearer to a training row than to all of as many test rows. Without
            memorisation half are; much more means that rows give training rows away.
    """

    marginals: Float[np.ndarray, " columns"]
    correlations: float
    nearest: float
    closer: float


def compare_tables(samples: Rows, train: Train, test: Test, *, seed: int = 0) -> TableQuality:
    """How synthetic rows compare with a table's training and test rows, all scaled alike."""
    rng = np.random.default_rng(seed)
    compared: Any = [stats.ks_2samp(samples[:, i], test[:, i]) for i in range(test.shape[1])]
    marginals = np.array([result.statistic for result in compared])
    apart = np.abs(_correlations(samples) - _correlations(test))
    some = samples[:MOST]
    equal = min(len(train), len(test))
    to_train = nearest(some, train[rng.permutation(len(train))[:equal]])[1]
    to_test = nearest(some, test[rng.permutation(len(test))[:equal]])[1]
    usual = float(np.median(nearest(test[:MOST], train)[1]))
    return TableQuality(
        marginals,
        float(apart[np.triu_indices(len(apart), 1)].mean()) if len(apart) > 1 else 0.0,
        float(np.median(nearest(some, train)[1])) / max(usual, 1e-12),
        float(np.mean(to_train < to_test) + 0.5 * np.mean(to_train == to_test)),
    )


def worst(quality: TableQuality, columns: Sequence[str], most: int = 3) -> list[tuple[str, float]]:
    """The columns whose distributions differ most, the worst first."""
    order = np.argsort(-quality.marginals)[:most].tolist()
    return [(str(columns[i]), float(quality.marginals[i])) for i in order]


def _correlations(x: Rows) -> Float[np.ndarray, "columns columns"]:
    """Pearson's, with 0 for columns that never change."""
    centred = x - x.mean(axis=0)
    deviation = centred.std(axis=0)
    scaled = np.divide(centred, deviation, out=np.zeros_like(centred), where=deviation > 0)
    return scaled.T @ scaled / len(x)
