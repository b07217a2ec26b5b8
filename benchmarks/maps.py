"""Maps in 2 dimensions of held-out rows, beside UMAP and PCA in the same run.

    python -m benchmarks.maps                                   # scikit-learn's digits
    python -m benchmarks.maps --data mnist --train 10000
    python -m benchmarks.maps --data /usr/share/datasets/fashion-mnist --train 10000

Each map is learnt from the training part, without labels, and scored on the test part: trustworthiness (10 neighbours,
the first 2,000 rows), the accuracy of a vote of the 10 nearest training rows in the map, the normalised mutual
information of k-means clusters and classes, and what the decoder makes of the map. Of UMAP, new rows have the places
that its `transform` gives. UMAP needs `pip install -e ".[bench]"`; without it, it is left out.
"""

import argparse
import time

import numpy as np

from flaxae import autoencoder, data, maps, presets, training
from flaxae.autoencoder import Autoencoder
from flaxae.data import Dataset
from flaxae.experiments import _steps, reduce


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="digits, mnist, or a folder of IDX files")
    parser.add_argument("--train", type=int, default=60_000, help="at most so many training examples")
    parser.add_argument("--parametric", action="store_true", help="also the map of an encoder that learns to place")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    dataset = data.load(digits() if options.data == "digits" else options.data)
    x, test = dataset.scaling(dataset.train[: options.train]), dataset.scaling(dataset.test)
    known = dataset.train_labels[: options.train]
    print(f"{dataset.name}: {len(x):,} training and {len(test):,} test examples")
    print("           trustworthiness  kNN accuracy  k-means NMI      MSE  seconds")
    flat = [part.reshape(len(part), -1) for part in (x, test)]
    methods = {"flaxae": of_flaxae, "UMAP": of_umap, "PCA": of_pca}
    if options.parametric:
        methods["parametric"] = parametric
    for name, method in methods.items():
        began = time.perf_counter()
        codes = method(x, test, flat, dataset, options.quick)
        if codes is None:
            continue
        *places, error = codes
        seconds = time.perf_counter() - began
        found = reduce.score(*places, dataset, error, known=known)
        shown = [found.get(score, np.nan) for score in ("trustworthiness", "knn_accuracy", "kmeans_nmi", "mse")]
        print(
            f"{name:10s} {shown[0]:15.4f} {shown[1]:13.4f} {shown[2]:12.4f} {shown[3]:8.4f} {seconds:8.1f}", flush=True
        )


def digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's 1,797 digits of 8 × 8 pixels, of which a fifth is kept for testing."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return (found.images / 16).astype(np.float32), found.target


def of_flaxae(x: np.ndarray, test: np.ndarray, _: object, dataset: Dataset, quick: bool) -> tuple:
    return trained(presets.neighbour_map(examples=len(x)), x, test, dataset, quick)


def parametric(x: np.ndarray, test: np.ndarray, _: object, dataset: Dataset, quick: bool) -> tuple:
    return trained(presets.parametric_map(), x, test, dataset, quick)


def trained(config: autoencoder.Config, x: np.ndarray, test: np.ndarray, dataset: Dataset, quick: bool) -> tuple:
    model = autoencoder.build(config, dataset.shape)
    maps.fit(model, x, epochs=1 if quick else reduce.epochs_of(config, len(x), 512), show=False)
    codes = [training.apply(Autoencoder.encode, model, part) for part in (x, test)]
    return *codes, _steps.mean_squared_error(model, test)


def of_umap(_: object, __: object, flat: list[np.ndarray], ___: Dataset, quick: bool) -> tuple | None:
    try:
        from umap import UMAP
    except ImportError:
        print("UMAP is not installed")
        return None
    found = UMAP(n_epochs=10 if quick else None).fit(flat[0])
    return found.embedding_, found.transform(flat[1]), np.nan  # no decoder


def of_pca(_: object, test: np.ndarray, flat: list[np.ndarray], dataset: Dataset, quick: bool) -> tuple:
    return *reduce.principal_components(*flat, 2), _steps.pca_error(dataset, 2)


if __name__ == "__main__":
    main()
