"""Maps: an encoder to 2 or 3 dimensions that keeps neighbours together, and a decoder back.

    graph = maps.graph(x)                                  # each example's nearest others
    history = maps.fit(model, x, graph, epochs=20)         # of `presets.map()`

Each batch holds examples and for each one of its neighbours. The objective `KeepNeighbours` pulls the two together and
pushes the others away, as t-SNE and UMAP do, but the encoder learns to do it, so that it maps new rows too: parametric
t-SNE with noise-contrastive sampling (InfoNC-t-SNE, Damrich et al. 2023).
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from flaxae import errors, training
from flaxae.autoencoder import Autoencoder
from flaxae.data.dataset import SAMPLE_BYTES
from flaxae.data.stream import Stream
from flaxae.printing import say

NEIGHBOURS = 10
COMPONENTS = 50  # of the data, that neighbours are found in
MOST = 100_000  # examples of the graph, whose time grows with the square; the encoder maps the others

Rows = Float[np.ndarray, " examples *shape"]
Graph = Int[np.ndarray, "examples neighbours"]


def graph(x: Rows, *, neighbours: int = NEIGHBOURS, components: int | None = COMPONENTS, seed: int = 0) -> Graph:
    """For each example, its nearest others, by the distance of their first principal components, or of all (None).

    Raises:
        DataError: there are fewer than three examples.
    """
    from sklearn.decomposition import PCA
    from sklearn.neighbors import NearestNeighbors

    if len(x) < 3:
        raise errors.DataError(f"A map needs at least 3 examples; there are {len(x)}.")
    flat = np.asarray(x, np.float32).reshape(len(x), -1)
    if components is not None and min(flat.shape) > components:
        flat = PCA(components, svd_solver="covariance_eigh", random_state=seed).fit_transform(flat)
    found = NearestNeighbors(n_neighbors=min(neighbours, len(x) - 1), algorithm="brute").fit(flat)
    return found.kneighbors(return_distance=False).astype(np.int32)


def batches(x: Rows, graph: Graph, batch_size: int, seed: int) -> Callable[[int], Iterator[dict[str, Any]]]:
    """A function of a step that gives the batches from that step on: examples, and one of the neighbours of each."""
    each = len(x) // batch_size

    def begin(step: int) -> Iterator[dict[str, Any]]:
        while True:
            rng = np.random.default_rng((seed, step // each))
            order = rng.permutation(len(x))
            chosen = graph[order, rng.integers(graph.shape[1], size=len(x))]
            for start in range(step % each, each):
                part = slice(start * batch_size, (start + 1) * batch_size)
                yield {"x": x[order[part]], "neighbour": x[chosen[part]]}
            step += each - step % each

    return begin


def fit(
    model: Autoencoder,
    x: Rows | Stream,
    *,
    epochs: int = 20,
    batch_size: int = 512,
    learning_rate: float = 3e-3,
    neighbours: int = NEIGHBOURS,
    seed: int = 0,
    **settings: Any,
) -> training.History:
    """Train a model with the objective `KeepNeighbours` in place. Of more than `MOST` examples, some are learnt from.

    `settings` are those of `training.fit`.
    """
    rows = training.check_examples(model, _learnt_from(x, seed))
    batch_size = min(batch_size, len(rows))
    return training.fit(
        model,
        batches(rows, graph(rows, neighbours=neighbours, seed=seed), batch_size, seed),
        steps_per_epoch=len(rows) // batch_size,
        epochs=epochs,
        learning_rate=learning_rate,
        validation=0,
        seed=seed,
        **settings,
    )


def _learnt_from(x: Rows | Stream, seed: int) -> Rows:
    """All rows, or with a line that says so, as many as a graph can be of."""
    if not isinstance(x, Stream) and len(x) <= MOST:
        return x
    every = np.sort(np.random.default_rng(seed).permutation(len(x))[:MOST])
    rows = x.sample(SAMPLE_BYTES)[:MOST] if isinstance(x, Stream) else x[every]
    say(f"The map is learnt from {len(rows):,} of {len(x):,} examples; the encoder maps the others.")
    return rows
