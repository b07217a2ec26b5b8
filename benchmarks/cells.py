"""Cells: codes of gene counts of a known truth, measured in batches, beside principal components and scVI.

    python -m benchmarks.cells [--cells 4000] [--seeds 2]

Cells are of several types, in batches that measure some genes more often than others; a fifth of them is held out. Of
the codes it tells how many of the held-out cells are named by their 10 nearest training cells (types: 1 is best), and
the silhouette of the batches among the cells of a type (scikit-learn's; 0 is best: they are mixed). Of the normalised
expression, where a method gives one: the correlation, over all genes and held-out cells, of its logarithm with that of
the true shares, without batches. scVI runs where scvi-tools is installed. All have their defaults, and codes of 10
numbers.
"""

import argparse
import importlib.util
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score
from sklearn.neighbors import KNeighborsClassifier

from flaxae.cells import CellEmbedder

TYPES, BATCHES, GENES, LATENT = 8, 3, 500, 10


class Cells(NamedTuple):
    """Counts, and what made them."""

    x: scipy.sparse.csr_matrix  # [cells, genes]
    types: np.ndarray
    batches: np.ndarray
    shares: np.ndarray  # [cells, genes], without the batches' effects


Found = tuple[np.ndarray, np.ndarray, np.ndarray | None]  # codes of the training and held-out cells, expected shares


def drawn(count: int, seed: int) -> Cells:
    """Negative binomial counts: types differ in a fifth of the genes, batches in another, cells in their depth."""
    rng = np.random.default_rng(seed)
    logs = rng.normal(0, 1, GENES)[None] + rng.normal(0, 0.8, (TYPES, GENES)) * (rng.random((TYPES, GENES)) < 0.2)
    effects = rng.normal(0, 1.0, (BATCHES, GENES)) * (rng.random((BATCHES, GENES)) < 0.2)
    types, batches = rng.integers(TYPES, size=count), rng.integers(BATCHES, size=count)
    own = logs[types] + rng.normal(0, 0.2, (count, GENES))
    shares = np.exp(own) / np.exp(own).sum(axis=1, keepdims=True)
    measured = shares * np.exp(effects[batches])
    mean = rng.lognormal(np.log(1500), 0.4, (count, 1)) * measured / measured.sum(axis=1, keepdims=True)
    counts = rng.poisson(mean * rng.gamma(3, 1 / 3, mean.shape))
    return Cells(scipy.sparse.csr_matrix(counts.astype(np.float32)), types, batches, shares)


def components(train: Cells, test: Cells, seed: int) -> Found:
    """Principal components of log(1 + counts per 10,000)."""

    def logs(x: scipy.sparse.csr_matrix) -> np.ndarray:
        dense = x.toarray()
        return np.log1p(1e4 * dense / np.maximum(dense.sum(axis=1, keepdims=True), 1))

    fitted = PCA(LATENT, random_state=seed).fit(logs(train.x))
    return fitted.transform(logs(train.x)), fitted.transform(logs(test.x)), None


def flaxae(train: Cells, test: Cells, seed: int) -> Found:
    embedder = CellEmbedder(LATENT, random_state=seed).fit(train.x, batch=train.batches)
    codes = [embedder.transform(part.x, batch=part.batches) for part in (train, test)]
    return codes[0], codes[1], embedder.normalized(test.x, batch=test.batches)


def scvi(train: Cells, test: Cells, seed: int) -> Found:
    """As its tutorial has it; expression as if measured in each of the batches, and the mean of these."""
    import anndata
    import pandas as pd
    import scvi as library

    def annotated(part: Cells) -> Any:
        return anndata.AnnData(part.x, obs=pd.DataFrame({"batch": part.batches.astype(str)}))

    library.settings.seed = seed
    known, new = annotated(train), annotated(test)
    library.model.SCVI.setup_anndata(known, batch_key="batch")
    model = library.model.SCVI(known, n_latent=LATENT)
    model.train(enable_progress_bar=False, accelerator="cpu")
    every = sorted(set(known.obs["batch"]))
    shares = model.get_normalized_expression(new, transform_batch=every, return_numpy=True)
    return model.get_latent_representation(), model.get_latent_representation(new), shares


METHODS: dict[str, Callable[[Cells, Cells, int], Found]] = {
    "principal components": components,
    "flaxae": flaxae,
    "scVI": scvi,
}


def measured(train: Cells, test: Cells, found: Found) -> list[float]:
    codes, new, shares = found
    named = KNeighborsClassifier(10).fit(codes, train.types).score(new, test.types)
    mixed = np.mean(
        [silhouette_score(new[test.types == kind], test.batches[test.types == kind]) for kind in range(TYPES)]
    )
    if shares is None:
        return [float(named), float(mixed), float("nan")]
    right = np.corrcoef(np.log(np.maximum(shares, 1e-9)).ravel(), np.log(test.shares).ravel())[0, 1]
    return [float(named), float(mixed), float(right)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=4000)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    print(f"{'':22s}  types  batches  expression  seconds")
    for seed in range(options.seeds):
        cells = drawn(options.cells, seed)
        held = options.cells // 5
        test, train = (Cells(*(part[chosen] for part in cells)) for chosen in (slice(held), slice(held, None)))
        for name, method in METHODS.items():
            if name == "scVI" and importlib.util.find_spec("scvi") is None:
                continue
            began = time.perf_counter()
            found = method(train, test, seed)
            seconds = time.perf_counter() - began
            types, batches, expression = measured(train, test, found)
            print(
                f"{name + f', draw {seed}':22s} {types:6.3f} {batches:8.3f} {expression:11.3f} {seconds:8.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
