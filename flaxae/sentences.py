"""Sentences as vectors, learnt from the user's own sentences alone, in any language.

    embedder = SentenceEmbedder().fit(sentences)     # a list of texts
    embedder.transform(["a new one"])                # [n, latent], of unit length: products are similarities

A sentence is the bag of the character n-grams of its words, hashed, rare ones weighing more (Salton & Buckley 1988).
So words that were never seen, or are misspelt, resemble those they share parts with. A denoising autoencoder makes
codes of the bags. Its examples are sentences of which words were deleted and others put in, and the whole sentences;
see `objectives.Similarity`.
"""

import dataclasses
import itertools
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
import optax
import scipy.sparse
from flax import nnx
from jaxtyping import Float, Int
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfVectorizer
from sklearn.preprocessing import normalize
from sklearn.utils.validation import check_is_fitted

from flaxae import autoencoder, data, errors, estimators, training
from flaxae.autoencoder import Autoencoder, Config
from flaxae.estimators import NetworkEstimator, no_type_check
from flaxae.likelihoods import Gaussian
from flaxae.nn.heads import Deterministic
from flaxae.nn.mlp import MLP
from flaxae.objectives import Similarity
from flaxae.printing import say
from flaxae.training import feed

PIECE = re.compile(r"\S{1,16}")  # a word; longer runs, as in scripts without spaces, are cut
VALIDATION, MOST_VALIDATION = 0.05, 512  # of the sentences
DECODER = 30.0  # times the learning rate of the encoder
AT_ONCE = 1024  # sentences that are dense in memory together
MOST_BYTES = 2**30  # of a file of sentences

Numbers = Int[np.ndarray, " _"]  # of pieces; as many as the sentence has
Bags = Any  # a scipy.sparse.csr_matrix, [sentences, features]; its types say too little


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Sentences as numbers of their pieces (words), and the n-grams of each piece."""

    of_sentence: list[Numbers]
    ngrams: Bags  # [pieces, features]

    @classmethod
    def of(cls, sentences: Sequence[str], features: int) -> "Pieces":
        """Cut sentences into pieces, and count the n-grams of 2 to 4 characters in each, hashed to `features`."""
        numbers: dict[str, int] = {}
        cut = [
            np.array([numbers.setdefault(piece, len(numbers)) for piece in PIECE.findall(sentence.lower())], np.int32)
            for sentence in sentences
        ]
        settings: dict[str, Any] = {"analyzer": "char_wb", "ngram_range": (2, 4), "norm": None, "dtype": np.float32}
        return cls(cut, HashingVectorizer(n_features=features, **settings).transform(numbers or [""]))

    def bags(self, sentences: Sequence[Numbers], weights: Float[np.ndarray, " features"]) -> Bags:
        """The weighted bags of sentences given by their pieces: roots of counts, each row of length √features."""
        ends = np.cumsum([0, *map(len, sentences)])
        index = np.concatenate([np.zeros(0, np.int32), *sentences])
        held: Bags = scipy.sparse.csr_matrix(
            (np.ones(len(index), np.float32), index, ends), (len(sentences), self.ngrams.shape[0])
        )
        counts = (held @ self.ngrams).tocsr()
        counts.data = np.sign(counts.data) * np.sqrt(np.abs(counts.data)) * weights[counts.indices]
        bags: Bags = normalize(counts)
        return bags * np.float32(np.sqrt(self.ngrams.shape[1]))


@dataclasses.dataclass(frozen=True, eq=False)
class Changed:
    """Batches of sentences with words deleted and others put in, beside the whole ones; the same for each step.

    Half of the changed sentences have words of another one put in; how many are deleted and put in varies evenly, so
    that pairs of all similarities are trained on.
    """

    pieces: Pieces
    weights: Float[np.ndarray, " features"]
    sentences: Int[np.ndarray, " n"]  # numbers of those to train on
    batch_size: int
    seed: int

    def __len__(self) -> int:
        return max(1, len(self.sentences) // self.batch_size)

    def __call__(self, step: int) -> Iterator[dict[str, np.ndarray]]:
        for number in itertools.count(step):
            epoch, place = divmod(number, len(self))
            order = feed.shuffle(self.seed, epoch, len(self.sentences))
            chosen = self.sentences[order[place * self.batch_size : (place + 1) * self.batch_size]]
            yield self.changed(chosen, np.random.default_rng([self.seed, number]))

    def changed(self, chosen: Int[np.ndarray, " n"], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The sentences of those numbers: changed as `x`, whole as `target`."""
        whole = [self.pieces.of_sentence[i] for i in chosen]
        parts = []
        for own, other in zip(whole, [whole[-1], *whole[:-1]], strict=True):
            kept = own[rng.random(len(own)) < rng.random()]
            put_in = other[rng.random(len(other)) < rng.random()] if rng.random() < 0.5 else other[:0]
            parts.append(np.concatenate([kept, put_in]) if len(kept) + len(put_in) else own)
        made = {"x": parts, "target": whole}
        return {name: self.pieces.bags(of, self.weights).toarray() for name, of in made.items()}


class SentenceEmbedder(NetworkEstimator):
    """Sentences as vectors whose cosine tells how similar they are, learnt from the sentences given.

    Args:
        latent: how many numbers a vector has.
        features: to how many values the n-grams are hashed.
        epochs: passes over the sentences.
        batch_size: sentences per step.
        learning_rate: the peak of Adam's for the encoder, see `optimizer`.
        random_state: a number for the same results each time; a `RandomState`; or None.

    Attributes:
        model_: the trained `flaxae.Autoencoder` of bags. config_: its `flaxae.Config`.
        weights_: of the features, log(sentences / sentences that have it), [features].
        loss_curve_: each epoch's mean loss.
    """

    _learned: ClassVar = {n: read for n, read in NetworkEstimator._learned.items() if n != "n_features_in_"}

    weights_: Float[np.ndarray, " features"]

    @no_type_check
    def __init__(
        self,
        latent: int = 128,
        *,
        features: int = 16384,
        epochs: int = 6,
        batch_size: int = 256,
        learning_rate: float = 1e-4,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.latent = latent
        self.features = features
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, **settings: Any) -> "SentenceEmbedder":
        """Train anew on sentences; y is ignored. `settings` are further ones of `training.fit`, such as its `folder`.

        Raises:
            DataError: fewer than two different sentences are given, or what is given is no list of texts.
            DivergedError: the loss stopped being finite.
        """
        sentences = list(dict.fromkeys(filter(str.strip, checked(X))))
        if len(sentences) < 2:
            raise errors.DataError(f"{len(sentences)} different sentences are given; expected two at least, or more.")
        seed = estimators.seed_of(self.random_state)
        pieces = Pieces.of(sentences, int(self.features))
        self.weights_ = np.ones(int(self.features), np.float32)
        holders = (pieces.bags(pieces.of_sentence, self.weights_) != 0).sum(axis=0)
        self.weights_ = np.log((len(sentences) + 1) / (np.asarray(holders).ravel() + 1)).astype(np.float32)
        self.config_ = Config(
            body=MLP(()), head=Deterministic(int(self.latent)), likelihood=Gaussian(), objective=Similarity()
        )
        model = autoencoder.build(self.config_, (int(self.features),), seed=seed)
        order = np.random.default_rng(seed).permutation(len(sentences))
        held = max(1, min(MOST_VALIDATION, round(VALIDATION * len(sentences))))
        size = min(int(self.batch_size), len(sentences) - held)
        batches = Changed(pieces, self.weights_, order[held:], size, seed)
        history = training.fit(
            model,
            batches,
            validation=batches.changed(order[:held], np.random.default_rng(seed)),
            steps_per_epoch=len(batches),
            epochs=int(self.epochs),
            optimizer=optimizer(float(self.learning_rate), int(self.epochs) * len(batches)),
            seed=seed,
            **{"show": False, **settings},
        )
        self._keep(model, history)
        return self

    def transform(self, X: Any) -> Float[np.ndarray, "n latent"]:
        """The vectors of sentences, of unit length; 0 for one without a letter."""
        check_is_fitted(self)
        sentences, model = checked(X), self.model_
        made = [np.zeros((0, self.config_.latent), np.float32)]
        for start in range(0, len(sentences), AT_ONCE):
            bags = self.bags(sentences[start : start + AT_ONCE])
            codes = training.apply(Autoencoder.encode, model, bags.toarray())
            made.append(normalize(codes) * (bags.getnnz(axis=1) > 0)[:, None])
        return np.concatenate(made).astype(np.float32)

    def bags(self, sentences: Sequence[str]) -> Bags:
        """The weighted bags of n-grams of sentences, [n, features], each of length √features."""
        pieces = Pieces.of(sentences, len(self.weights_))
        return pieces.bags(pieces.of_sentence, self.weights_)

    def _abstract(self) -> Autoencoder:
        return nnx.eval_shape(lambda: autoencoder.build(self.config_, (int(self.features),)))

    def _arrays_like(self) -> dict[str, Any]:
        return {**super()._arrays_like(), "weights_": np.empty(int(self.features), np.float32)}


def optimizer(learning_rate: float, steps: int) -> optax.GradientTransformation:
    """Adam, slower for the encoder: a random projection, as it begins, is nearly right, and a random decoder is not."""

    def adam(peak: float) -> optax.GradientTransformation:
        return optax.adam(optax.warmup_cosine_decay_schedule(0.0, peak, steps // 10, steps))

    def part(path: Any, _: Any) -> str:
        return "decoder" if getattr(path[0], "key", None) == "decoder" else "encoder"

    return optax.multi_transform(
        {"encoder": adam(learning_rate), "decoder": adam(DECODER * learning_rate)},
        lambda params: jax.tree_util.tree_map_with_path(part, params),
    )


def checked(sentences: Any) -> list[str]:
    """The sentences as a list.

    Raises:
        DataError: it is one text, or holds something else than texts.
    """
    given = [sentences] if isinstance(sentences, str) else list(sentences)
    wrong = next((item for item in given if not isinstance(item, str)), None)
    if isinstance(sentences, str) or wrong is not None:
        what = "one text" if wrong is None else f"a {type(wrong).__name__} among the sentences"
        raise errors.DataError(f"Given was {what}; expected a list of texts, such as ['a sentence', 'another one'].")
    return [str(item) for item in given]


def read(path: str | os.PathLike[str], columns: Sequence[str] = ()) -> list[str]:
    """The sentences of a file: a table's columns of texts, or in any other file each line.

    A line says what was left out.

    Args:
        path: of a text file, also packed (.gz), or of a table: `.csv`, `.tsv`, `.xlsx`, `.json`, `.parquet`, …
        columns: of the table, one after the other; by default the one with the longest texts.

    Raises:
        DataError: there is no such file or column, or it holds no texts.
    """
    path = data.files.existing(path)
    known = None if path.is_dir() else data.formats.find(path)
    if known is not None and known.kind == "table" and ".txt" not in path.suffixes:
        found = _of_table(read_texts(path), path, columns)
    elif columns:
        raise errors.DataError(f"{path} is no table, of which --column could name a column.")
    else:
        found = _lines(path)
    kept = [sentence.strip() for sentence in found if sentence.strip()]
    if len(kept) < len(found):
        say(f"{path}: {len(found) - len(kept):,} of {len(found):,} rows have no sentence, and are left out.")
    if not kept:
        raise errors.DataError(f"{path} holds no sentences.")
    return kept


def read_pairs(path: str | os.PathLike[str]) -> tuple[list[str], list[str], Float[np.ndarray, " n"]]:
    """Pairs of sentences and how similar they are: the first two columns of texts, and the last of numbers.

    Raises:
        DataError: there is no such table, or it has no such columns.
    """
    frame = read_texts(path)
    texts = _texts(frame)
    numbers = [name for name in frame.columns if name not in texts]
    if len(texts) < 2 or not numbers:
        raise errors.DataError(
            f"{path} has {len(texts)} columns of texts and {len(numbers)} of numbers; expected 2 and 1."
        )
    whole = frame.dropna(subset=[*texts[:2], numbers[-1]])
    if len(whole) < len(frame):
        say(f"{path}: {len(frame) - len(whole):,} of {len(frame):,} pairs are not complete, and left out.")
    first, second = (whole[name].map(str).tolist() for name in texts[:2])
    return first, second, whole[numbers[-1]].to_numpy(np.float64)


def read_texts(path: str | os.PathLike[str]) -> Any:
    """A table, as a DataFrame. If its line of names seems to be a row of it, a line says so, and it is put back."""
    frame = data.read_table(path)
    names = [str(name) for name in frame.columns]
    if not any(data.delimited.is_number(name) or len(name.split()) > 3 for name in names):
        return frame
    say(f"{path} seems to have no line of names; its columns are x0, x1, …")
    first = [float(name) if data.delimited.is_number(name) else name for name in names]
    rows = [first, *frame.itertuples(index=False, name=None)]
    return type(frame)(rows, columns=[f"x{i}" for i in range(len(names))])


def _texts(frame: Any) -> list[str]:
    return [name for name in frame.columns if frame[name].map(lambda value: isinstance(value, str)).any()]


def _of_table(frame: Any, path: Any, columns: Sequence[str]) -> list[str]:
    texts = _texts(frame)
    if not columns and not texts:
        raise errors.DataError(f"{path} has no column of texts; its columns are {', '.join(frame.columns)}.")
    for column in columns:
        if column not in frame.columns:
            raise errors.DataError(f"{path}: " + errors.unknown("column", column, frame.columns))
    chosen = list(columns) or [max(texts, key=lambda name: frame[name].fillna("").map(str).map(len).mean())]
    if not columns and len(texts) > 1:
        say(f"The sentences are those of the column {chosen[0]!r}; --column takes others.")
    values = [value for column in chosen for value in frame[column].tolist()]
    return ["" if value is None or value != value else str(value) for value in values]


def _lines(path: Any) -> list[str]:
    with data.arrays.reading(path), data.delimited.opened(path) as file:
        content = file.read(MOST_BYTES + 1)
    data.arrays.check_size(len(content), path, at_most=MOST_BYTES)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        warnings.warn(f"{path} isn't UTF-8: it is read as Windows-1252 (Latin-1).", stacklevel=3)
        text = content.decode("cp1252", errors="replace")
    return text.splitlines()


def nearest(
    vectors: Float[np.ndarray, "n latent"], queries: Float[np.ndarray, "queries latent"], count: int
) -> tuple[Int[np.ndarray, "queries count"], Float[np.ndarray, "queries count"]]:
    """The numbers of the `count` vectors most similar to each query, the most similar first, and their cosines."""
    count = min(count, len(vectors))
    similarity = np.concatenate([_top(vectors, part, count) for part in _parts(queries)], axis=1)
    return similarity[0].astype(np.int64), similarity[1].astype(np.float32)


def _top(vectors: np.ndarray, queries: np.ndarray, count: int) -> np.ndarray:
    """Numbers and cosines of the `count` nearest, [2, queries, count]."""
    products = queries @ vectors.T
    found = np.argpartition(-products, count - 1, axis=1)[:, :count]
    cosines = np.take_along_axis(products, found, axis=1)
    order = np.argsort(-cosines, axis=1, kind="stable")
    return np.stack([np.take_along_axis(part, order, axis=1) for part in (found.astype(np.float64), cosines)])


def _parts(x: np.ndarray) -> list[np.ndarray]:
    return [x[start : start + AT_ONCE] for start in range(0, max(1, len(x)), AT_ONCE)]


Method = Callable[[Sequence[str]], Any]  # from sentences to rows of unit length, dense or sparse


def baselines(sentences: Sequence[str], latent: int) -> dict[str, Method]:
    """What needs no autoencoder, learnt from the same sentences: tf-idf of words, LSA, mean word vectors.

    LSA is the truncated SVD of tf-idf (Deerwester et al. 1990). The word vectors are the SVD of words' positive
    pointwise mutual information in a sentence (Levy & Goldberg 2014), weighed by their rarity, less the mean sentence.
    """
    words = TfidfVectorizer().fit(sentences)
    held = words.transform(sentences)
    size = max(1, min(latent, min(held.shape) - 1))
    lsa = TruncatedSVD(size, random_state=0).fit(held)
    counter = CountVectorizer(vocabulary=words.vocabulary_, binary=True)
    counts = counter.transform(sentences).astype(np.float64)
    vectors = _word_vectors(counts, size) * (words.idf_ - 1)[:, None]
    centre = np.asarray(counts @ vectors).mean(axis=0)
    return {
        "tf-idf of words": words.transform,
        f"LSA, {size} numbers": lambda texts: normalize(lsa.transform(words.transform(texts))),
        f"mean word vectors, {size} numbers": lambda texts: normalize(counter.transform(texts) @ vectors - centre),
    }


def _word_vectors(counts: Any, size: int) -> Float[np.ndarray, "words size"]:
    """Vectors of words from the sentences that they are in together, each of unit length."""
    together = (counts.T @ counts).tocoo()
    each = together.data * (together.row != together.col)
    totals = np.maximum(np.bincount(together.row, each, counts.shape[1]), 1)
    information = np.log(np.maximum(each, 1e-9) * each.sum() / (totals[together.row] * totals[together.col]))
    positive = scipy.sparse.csr_matrix((np.maximum(information, 0), (together.row, together.col)), together.shape)
    return np.asarray(normalize(TruncatedSVD(size, random_state=0).fit_transform(positive)))


def similarities(method: Method, pairs: tuple[Sequence[str], Sequence[str]]) -> Float[np.ndarray, " n"]:
    """The cosine of each pair of sentences, by a method that gives rows of unit length."""
    a, b = (method(part) for part in pairs)
    products = a.multiply(b) if scipy.sparse.issparse(a) else np.asarray(a) * np.asarray(b)
    return np.asarray(products.sum(axis=1), np.float64).ravel()
