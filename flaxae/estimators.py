"""scikit-learn estimators for tables, [n, columns]. They take and return values in the table's own units.

Columns are standardised inside, by the first table that is seen. Results have X's dtype, float64 or float32; the
networks compute in float32. The transformers train on tables of any length with one compiled program: the shuffled
rows are gathered on the host, in blocks of one size.
"""

import functools
import json
import numbers
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from flax import nnx
from jaxtyping import Array, Float, Int, Shaped
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    ClassNamePrefixFeaturesOutMixin,
    OneToOneFeatureMixin,
    TransformerMixin,
)
from sklearn.utils import Tags, check_array, check_consistent_length, check_random_state, check_scalar, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from flaxae import anomaly, atomic, autoencoder, errors, finetuning, manifest, training
from flaxae.anomaly import conformal
from flaxae.autoencoder import Autoencoder, Config
from flaxae.corruptions import GaussianNoise, Masking
from flaxae.data import Encoding, roles, tables
from flaxae.data.parts import with_gaps
from flaxae.data.scaling import compressed, robust_moments
from flaxae.likelihoods import Gaussian
from flaxae.nn.heads import Deterministic
from flaxae.nn.mlp import MLP
from flaxae.objectives import negative_log_likelihood
from flaxae.training import checkpoints, loop, step
from flaxae.training.step import State

FILES = frozenset({"config.json", "detector"})  # in the folder of a saved estimator, besides its arrays
BLOCK = 32  # steps in one block
FALSE_ALARMS = 0.01  # of normal rows, where nothing is told of how many are strange
FAR = 1e15  # standard deviations; float32 can still hold the square
FLOATS: Any = (np.float64, np.float32)  # typed Any, because scikit-learn's default is typed as a text
# With a constant learning rate and a moving average, the number of steps needn't be known: `partial_fit` can go on.
CORRUPTIONS = {"gaussian": GaussianNoise, "masking": Masking}
OPTIMIZER = training.Optimizer(warmup=0.0, schedule="constant", ema=0.99)

Init = TypeVar("Init")
if TYPE_CHECKING:  # the types of settings are for readers; scikit-learn may set anything, and `fit` checks it

    def no_type_check(init: Init) -> Init: ...

else:
    from typing import no_type_check

Estimator = TypeVar("Estimator", bound="SavedEstimator")
Transformer = TypeVar("Transformer", bound="_TableTransformer")


class SavedEstimator(BaseEstimator):
    """What all estimators share: saving without pickle."""

    # What `fit` learns besides the arrays of `_arrays_like`, with the function that reads each from JSON.
    _learned: ClassVar[dict[str, Callable[[Any], Any]]] = {"n_features_in_": int}

    random_state: Any
    n_features_in_: int
    feature_names_in_: np.ndarray

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the fitted estimator to a folder of its own, whole or not at all, as JSON and arrays.

        An estimator that is already in the folder is replaced. `random_state` is kept only if it is a number.

        Raises:
            RunError: the folder can't be written, or holds something else.
        """
        check_is_fitted(self)
        try:
            with manifest.replacing(Path(folder), FILES) as unfinished:
                self._write(unfinished)
        except OSError as error:
            raise errors.RunError(f"Can't write {folder}: {error}.") from error

    def _write(self, folder: Path) -> None:
        settings = self.get_params(deep=False)
        if not isinstance(self.random_state, numbers.Integral):
            settings["random_state"] = None
        description = {
            "estimator": type(self).__name__,
            "settings": settings,
            "names": getattr(self, "feature_names_in_", None),
            "learned": {name: getattr(self, name) for name in self._learned},
        }
        text = json.dumps(description, indent=2, default=_jsonable)
        arrays = {name: getattr(self, name) for name in self._arrays_like()}
        checkpoints.save(folder, 0, arrays, keep=1)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls: type[Estimator], folder: str | os.PathLike[str]) -> Estimator:
        """The fitted estimator that `save` wrote. Its results are the same, also after a `partial_fit`.

        Raises:
            RunError: a file was changed after it was saved.
            ConfigError: the folder's config.json is missing, damaged, or of another estimator.
            CheckpointError: its arrays are missing or damaged.
        """
        folder = atomic.settled(Path(folder))
        manifest.check(folder)
        path = folder / "config.json"
        try:
            saved = json.loads(path.read_bytes())
            if saved["estimator"] != cls.__name__:
                raise ValueError(f"it is of a {saved['estimator']}")
            estimator = cls().set_params(**{name: _setting(value) for name, value in saved["settings"].items()})
            for name, read in cls._learned.items():
                setattr(estimator, name, read(saved["learned"][name]))
            if saved["names"] is not None:
                estimator.feature_names_in_ = np.array(saved["names"], dtype=object)
            like = estimator._arrays_like()
        except Exception as error:  # what is downloaded may have anything in it
            raise errors.ConfigError(f"{path} does not describe a fitted {cls.__name__}: {error!r}.") from error
        for name, array in checkpoints.restore(folder, like)[1].items():
            setattr(estimator, name, array)
        return estimator

    def _arrays_like(self) -> dict[str, Any]:
        """The structure of the learned arrays, or trees of them, for `checkpoints.restore`."""
        raise NotImplementedError


class NetworkEstimator(ClassNamePrefixFeaturesOutMixin, TransformerMixin, SavedEstimator):
    """What the estimators of sentences, users and cells share: one network, and its codes as features."""

    _learned: ClassVar = {
        **SavedEstimator._learned,
        "config_": Config.from_dict,
        "loss_curve_": lambda losses: [float(loss) for loss in losses],
    }

    config_: Config

    def _abstract(self) -> Autoencoder:
        """The network without weights."""
        raise NotImplementedError

    def _keep(self, model: Autoencoder, history: training.History) -> None:
        self.loss_curve_ = history["loss"]
        self._state = nnx.split(model, nnx.Param, ...)[1:]

    @property
    def model_(self) -> Autoencoder:
        """The trained network."""
        check_is_fitted(self)
        return nnx.merge(nnx.split(self._abstract(), nnx.Param, ...)[0], *self._state)

    @property
    def _n_features_out(self) -> int:
        return self.config_.latent

    def _arrays_like(self) -> dict[str, Any]:
        state = nnx.split(self._abstract(), nnx.Param, ...)[1:]
        return {"_state": jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), state)}


class _TableEstimator(SavedEstimator):
    """What the estimators of tables share: columns of any kind as numbers, standardised."""

    _learned: ClassVar = {
        **SavedEstimator._learned,
        "encoding_": lambda fields: None if fields is None else Encoding.from_dict(fields),
    }

    encoding_: Encoding | None

    def _arrays_like(self) -> dict[str, Any]:
        columns = np.empty(self._inputs)
        return {"mean_": columns, "scale_": columns}

    @property
    def _inputs(self) -> int:
        """How many numbers a row is to the network."""
        return self.n_features_in_ if self.encoding_ is None else len(self.encoding_.features)

    def _table(self, X: Any, *, reset: bool, least: int = 1) -> Float[np.ndarray, "n columns"]:
        """The numbers of X; a table with categories, missing values or columns that aren't learnt from is encoded.

        `least` is the number of rows that there have to be.
        """
        frame = _frame(X)
        if reset:
            self.encoding_ = None
            if frame is not None and not _is_plain(frame):
                learnt = tables.prepare(frame, "X").frame
                self.encoding_ = Encoding.fit(learnt, np.arange(len(learnt)), "X", marks=False)
        if self.encoding_ is None:
            given: Any = X if frame is None else frame
            checked: Any = validate_data(self, _plain(given), dtype=FLOATS, reset=reset, ensure_min_samples=least)
            return checked
        if frame is None:
            raise errors.DataError("X is an array; the estimator was fitted on a table, whose columns have names.")
        if reset:
            self.n_features_in_, self.feature_names_in_ = frame.shape[1], np.array(frame.columns, object)
        return self.encoding_(tables.checked(frame, "X"), "X").astype(np.float64)

    def _fit_units(self, X: Float[np.ndarray, "n columns"]) -> None:
        # A column that does not vary has no unit of its own: it comes out as its mean. A glitch moves neither.
        self.mean_, self.scale_ = robust_moments(X.astype(np.float64))

    def _standardised(self, X: Float[np.ndarray, "n columns"]) -> Float[np.ndarray, "n columns"]:
        scale = self.scale_
        if self.encoding_ is not None:
            scale = np.where(self.encoding_.indicators, 1.0, scale)
        x = (X - self.mean_) / np.where(scale > 0, scale, 1.0)
        return np.clip(x, -FAR, FAR).astype(np.float32)

    def _in_units(self, x: Float[np.ndarray, "n columns"], dtype: Any) -> Any:
        """Rows in the table's own units: an array of that type, or a DataFrame if the table was encoded."""
        if self.encoding_ is None:
            return (x * self.scale_ + self.mean_).astype(dtype)
        return self.encoding_.undo(x * np.where(self.encoding_.indicators, 1.0, self.scale_) + self.mean_)

    def _checked(self, X: Any) -> Float[np.ndarray, "n columns"]:
        check_is_fitted(self)
        return self._table(X, reset=False)

    def __sklearn_tags__(self) -> Tags:
        tags: Any = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


class _TableAutoencoder(_TableEstimator):
    """What the transformers and the classifier share: settings and training."""

    _learned: ClassVar = {
        **_TableEstimator._learned,
        "config_": Config.from_dict,
        "loss_curve_": lambda losses: [float(loss) for loss in losses],
        "_seed": int,
        "_steps": int,
    }

    @no_type_check
    def __init__(
        self,
        latent: int = 8,
        *,
        hidden: Sequence[int] = (128, 64),
        corruption: str = "gaussian",
        noise: float = 0.0,
        epochs: int = 100,
        batch_size: int = 64,
        learning_rate: float = 3e-3,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.latent = latent
        self.hidden = hidden
        self.corruption = corruption
        self.noise = noise
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.random_state = random_state

    @property
    def model_(self) -> Autoencoder:
        """The trained network, which takes standardised columns in float32."""
        check_is_fitted(self)
        return nnx.merge(_graphdef(self.config_, self._inputs), *step.weights(self._state))

    def _start(self, X: Float[np.ndarray, "n columns"]) -> None:
        for name, kind, least in (
            ("latent", numbers.Integral, 1),
            ("noise", numbers.Real, 0),
            ("epochs", numbers.Integral, 1),
            ("batch_size", numbers.Integral, 1),
            ("learning_rate", numbers.Real, 0),
        ):
            check_scalar(getattr(self, name), name, kind, min_val=least)
        if self.corruption not in CORRUPTIONS:
            raise errors.ConfigError(errors.unknown("corruption", self.corruption, CORRUPTIONS))
        self.config_ = Config(
            body=MLP(tuple(np.atleast_1d(self.hidden).tolist())),
            head=Deterministic(int(self.latent)),
            corruption=CORRUPTIONS[self.corruption](level=float(self.noise)) if self.noise else None,
            likelihood=Gaussian(),
        )
        self._fit_units(X)
        self.loss_curve_ = []
        self._steps = 0
        self._seed = seed_of(self.random_state)
        self._state = self._initial_state()

    def _initial_state(self) -> State:
        model = autoencoder.build(self.config_, (self._inputs,), seed=self._seed)
        return step.init(model, OPTIMIZER, float(self.learning_rate))

    def _train(self, X: Float[np.ndarray, "n columns"], epochs: int) -> None:
        source = _Blocks(self._standardised(X), int(self.batch_size), self._seed, self._steps)
        graphdef, key = _graphdef(self.config_, self._inputs), jax.random.key(self._seed)
        program = step.Program(graphdef, negative_log_likelihood, OPTIMIZER, source.batch_size)

        def block(state: State, shuffled: Int[np.ndarray, " n"], start: int, stop: int) -> State:
            for x, order, first, last in source.cut(shuffled, start, stop):
                state = step.train_block(program, state, x, order, key, first, last, last)
            return state

        work = loop.Work(
            block=block,
            sums=lambda state: (state.ok, state.sums),
            begin=step.begun,
            weights=lambda state: (),
            validate=None,
            chosen_by="loss",
            source=source,
            samples=source.batch_size,
        )
        state = work.begin(self._state)._replace(learning_rate=jnp.float32(self.learning_rate))
        run = loop.train(work, loop.start(work, state, epochs, {}), block=BLOCK)
        self._state, done = run.state, loop.done(run.history)
        self._steps += done * source.steps
        self.loss_curve_ += run.history["loss"][:done].tolist()
        if not run.state.ok:
            raise errors.DivergedError(
                "The loss stopped being finite. The estimator holds the last good weights. Try a lower learning "
                f"rate than {self.learning_rate:g}, and check X for extreme values."
            )

    def _codes(self, X: Float[np.ndarray, "n columns"]) -> Float[np.ndarray, "n latent"]:
        return training.apply(Autoencoder.encode, self.model_, self._standardised(X))

    def _arrays_like(self) -> dict[str, Any]:
        state = jax.eval_shape(self._initial_state)
        state = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), state)  # not bound to a device
        return {**super()._arrays_like(), "_state": state}


class _Blocks:
    """The batches of a table, in blocks of one size for any length of table, so that few programs are compiled.

    Args:
        taken: how many steps were taken before.
    """

    windows = 1
    waited = 0.0

    def __init__(self, x: Float[np.ndarray, "n columns"], batch_size: int, seed: int, taken: int):
        self.x, self.batch_size, self.seed, self.taken = x, batch_size, seed, taken
        self.steps = -(-len(x) // batch_size)  # per epoch

    def __call__(self, window: int) -> tuple[Int[np.ndarray, " n"]]:
        first = self.taken + window * self.steps
        return (np.random.default_rng((self.seed, first)).permutation(len(self.x)),)

    def cut(
        self, shuffled: Int[np.ndarray, " n"], start: int, stop: int
    ) -> Iterator[tuple[Float[np.ndarray, "rows columns"], Int[np.ndarray, " rows"], int, int]]:
        """Arguments of `train_block` for steps `start` to `stop`: rows, their order, first and last step of the run."""
        rows = BLOCK * self.batch_size
        blocks = np.resize(shuffled, (-(-self.steps // BLOCK), rows))
        epoch = start - start % self.steps
        while start < stop:
            number = (start - epoch) // BLOCK
            first = epoch + number * BLOCK
            last = min(stop, first + BLOCK, epoch + self.steps)
            order = np.roll(np.arange(rows), (self.taken + first) % BLOCK * self.batch_size)  # `first` takes the first
            yield self.x[blocks[number]], order, self.taken + start, self.taken + last
            start = last

    def close(self) -> None:
        """Do nothing: nothing runs in the background."""


class _TableTransformer(TransformerMixin, _TableAutoencoder):
    """What the transformers share: training without labels, which can be continued."""

    def fit(self: Transformer, X: Any, y: Any = None) -> Transformer:
        """Train anew on X, [n, columns]; y is ignored.

        X is an array, a sparse matrix or a table (pandas, polars, Arrow). Of a table, categories and missing values
        are encoded, clocks, counters and names of rows left out with a warning, and columns later found by name.

        Raises:
            ValueError, TypeError: X is not a table of finite numbers, or a setting is out of range.
            DivergedError: the loss stopped being finite.
        """
        X = self._table(X, reset=True)
        self._start(X)
        self._train(X, int(self.epochs))
        return self

    def partial_fit(self: Transformer, X: Any, y: Any = None) -> Transformer:
        """Train on X, [n, columns], for one more epoch; y is ignored. `epochs` calls with the same X are a `fit`.

        The first call fixes the settings of the network and the standardisation, so give it many rows. Raises what
        `fit` does.
        """
        first = not hasattr(self, "config_")
        X = self._table(X, reset=first)
        if first:
            self._start(X)
        self._train(X, epochs=1)
        return self

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = [kind.__name__ for kind in FLOATS]
        return tags


class AutoencoderTransformer(ClassNamePrefixFeaturesOutMixin, _TableTransformer):
    """An autoencoder's code as features: a non-linear replacement for PCA in a pipeline.

    Args:
        latent: how many numbers the code has.
        hidden: sizes of the encoder's hidden layers, mirrored in the decoder; () makes both linear.
        corruption, noise: how the standardised columns are corrupted in training, as a regulariser: "gaussian" noise of
            standard deviation `noise`, or "masking", which replaces a value by its column's mean with probability
            `noise`. 0 for none.
        epochs: passes over X in `fit`.
        batch_size: rows per step. A shorter table is repeated to fill it.
        learning_rate: of Adam. It is constant, with a moving average of the weights.
        random_state: a number for the same results each time; a `RandomState`; or None.

    Attributes:
        model_: the trained `flaxae.Autoencoder` of standardised columns. config_: its `flaxae.Config`.
        loss_curve_: each epoch's mean loss, nats per row.
        encoding_: how the columns of a table became numbers: see `data.Encoding`; None of an array.
        mean_, scale_: the columns' means and standard deviations, [columns]; 0 for a column that does not vary.
        n_features_in_, feature_names_in_: as everywhere in scikit-learn.
    """

    def transform(self, X: Any) -> Float[np.ndarray, "n latent"]:
        """The codes of X, [n, columns]."""
        X = self._checked(X)
        return self._codes(X).astype(X.dtype)

    def inverse_transform(self, X: Any) -> Any:
        """The reconstructed rows of the codes X, [n, latent]: an array, or a DataFrame if the table was encoded."""
        check_is_fitted(self)
        X = check_array(_plain(X), dtype=FLOATS)
        if X.shape[1] != self.config_.latent:
            raise ValueError(f"The codes have {X.shape[1]} numbers each; expected {self.config_.latent}.")
        return self._in_units(training.apply(Autoencoder.decode, self.model_, X.astype(np.float32)), X.dtype)

    def score(self, X: Any, y: Any = None) -> float:
        """Minus the mean squared error of the reconstruction, in units of the columns' variances; y is ignored.

        0 is perfect; −1 is the score of the columns' means. All columns have equal weight, whatever their units.
        """
        x = self._standardised(self._checked(X))
        return -float(np.square(training.apply(Autoencoder.reconstruct, self.model_, x) - x).mean(dtype=np.float64))

    @property
    def _n_features_out(self) -> int:
        return self.config_.latent


class DenoisingAutoencoder(OneToOneFeatureMixin, _TableTransformer):
    """Learns from clean rows to undo a corruption (Vincent et al. 2010); `transform` denoises rows.

    Args:
        latent: how many numbers the code has.
        hidden: sizes of the encoder's hidden layers, mirrored in the decoder; () makes both linear.
        corruption, noise: the corruption to undo: "gaussian" noise of standard deviation `noise`, in units of each
            column's own, or "masking", which replaces a value by its column's mean with probability `noise`.
        epochs, batch_size, learning_rate, random_state: as in `AutoencoderTransformer`, and so are the attributes.
    """

    @no_type_check
    def __init__(
        self,
        latent: int = 8,
        *,
        hidden: Sequence[int] = (128, 64),
        corruption: str = "gaussian",
        noise: float = 0.5,
        epochs: int = 100,
        batch_size: int = 64,
        learning_rate: float = 3e-3,
        random_state: int | np.random.RandomState | None = None,
    ):
        super().__init__(
            latent,
            hidden=hidden,
            corruption=corruption,
            noise=noise,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            random_state=random_state,
        )

    def transform(self, X: Any) -> Any:
        """X, [n, columns], denoised: an array, or a DataFrame of what was learnt from if the table was encoded."""
        X = self._checked(X)
        return self._in_units(training.apply(Autoencoder.reconstruct, self.model_, self._standardised(X)), X.dtype)

    def score(self, X: Any, y: Any = None) -> float:
        """Minus the mean squared error of denoising, when clean X is corrupted as in training; y is ignored.

        It is in units of the columns' variances: 0 is perfect, and −1 is the score of the columns' means. The same
        noise is drawn at each call. Scores of estimators for different noise can't be compared.
        """
        x = self._standardised(self._checked(X))
        return -float(np.square(training.apply(_denoise_corrupted, self.model_, x) - x).mean(dtype=np.float64))


class AutoencoderClassifier(ClassifierMixin, _TableAutoencoder):
    """Classifies when few of many rows have labels: the autoencoder learns from all rows, the classes from those few.

    The class probabilities are two thirds those of a random forest of the standardised columns, and one third those of
    a linear probe of the code (`finetuning.linear_probe`). Neither is the best on all tables.

    Args:
        latent: how many numbers the code has.
        hidden: sizes of the encoder's hidden layers, mirrored in the decoder; () makes both linear.
        corruption, noise: what the autoencoder learns to undo, as in `DenoisingAutoencoder`.
        epochs, batch_size, learning_rate, random_state: as in `AutoencoderTransformer`.

    Attributes:
        classes_: the labels in y, without −1, sorted, [classes].
        model_, config_, loss_curve_, mean_, scale_, n_features_in_, feature_names_in_: as in `AutoencoderTransformer`.
    """

    _learned: ClassVar = {**_TableAutoencoder._learned, "classes_": np.array, "_known": int}

    @no_type_check
    def __init__(
        self,
        latent: int = 32,
        *,
        hidden: Sequence[int] = (128, 64),
        corruption: str = "gaussian",
        noise: float = 0.5,
        epochs: int = 100,
        batch_size: int = 64,
        learning_rate: float = 3e-3,
        random_state: int | np.random.RandomState | None = None,
    ):
        super().__init__(
            latent,
            hidden=hidden,
            corruption=corruption,
            noise=noise,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            random_state=random_state,
        )

    def fit(self, X: Any, y: Any) -> "AutoencoderClassifier":
        """Learn from X, [n, columns], and y, [n], which is −1 for rows without a label, as in all of scikit-learn.

        X is an array or a table, whose columns may hold categories: see `AutoencoderTransformer.fit`.
        So a class must not be named −1. If classes are strings, y may be an array of dtype object, with −1 beside them;
        in an array of strings, all rows are labelled.

        Raises:
            ValueError, TypeError: X is not a table of finite numbers, y has labels of fewer than two classes or is
                continuous, or a setting is out of range.
            DivergedError: the loss stopped being finite.
        """
        if _frame(X) is None:
            X, y = validate_data(self, _plain(X), y, dtype=FLOATS)
            self.encoding_ = None
        else:
            X, y = self._table(X, reset=True), column_or_1d(y, warn=True)
            check_consistent_length(X, y)
        known = y != -1
        check_classification_targets(y[known])
        classes, own = np.unique(y[known], return_inverse=True)
        if len(classes) < 2:
            raise errors.DataError(
                f"y has labels of {len(classes)} class; expected two at least, and −1 only for rows without a label."
            )
        labels = np.full(len(y), -1)
        labels[known] = own
        self._start(X)
        self._train(X, int(self.epochs))
        self.classes_ = np.array(classes.tolist())
        self._labels, self._known = own, len(own)
        self._labelled = self._standardised(X[known])
        self._probe = finetuning.linear_probe(self._codes(X), labels, seed=self._seed)
        self._grow()
        return self

    def _grow(self) -> None:
        """The forest of the labelled rows: it is grown again from them when the estimator is loaded."""
        self._forest = finetuning.forest(self._labelled, self._labels, seed=self._seed)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "AutoencoderClassifier":
        """As in `AutoencoderTransformer`. Another version of scikit-learn may grow another forest."""
        estimator = super().load(folder)
        estimator._grow()
        return estimator

    def predict_proba(self, X: Any) -> Float[np.ndarray, "n classes"]:
        """The probabilities of `classes_` for each row of X, [n, columns]."""
        X = self._checked(X)
        by_forest = np.asarray(self._forest.predict_proba(self._standardised(X)))
        by_probe = self._probe.probabilities(self._codes(X))
        return finetuning.FOREST_SHARE * by_forest + (1 - finetuning.FOREST_SHARE) * by_probe

    def predict(self, X: Any) -> Shaped[np.ndarray, " n"]:
        """The likeliest class of each row of X, [n, columns]."""
        likeliest = self.predict_proba(X).argmax(axis=1)
        return self.classes_[likeliest]

    def _arrays_like(self) -> dict[str, Any]:
        classes, columns = len(self.classes_), self._inputs

        kernel = np.empty((self.config_.latent, classes), np.float32)
        return {
            **super()._arrays_like(),
            "_labelled": np.empty((self._known, columns), np.float32),
            "_labels": np.empty(self._known, np.int64),
            "_probe": finetuning.Probe(kernel, np.empty(classes, np.float32)),
        }


class AutoencoderDetector(_TableEstimator):
    """Finds strange rows, in PyOD's convention or in scikit-learn's, whose methods of one name mean opposite things:

    | convention | `decision_function` | `predict`, `fit_predict`, `labels_` |
    |---|---|---|
    | "pyod" | higher is stranger | 1 for a strange row, 0 for any other |
    | "sklearn" | lower is stranger, below 0 is strange | −1 for a strange row, 1 for any other |

    All else is the same in both. A row is strange if its score, one of `flaxae.anomaly`, is above `threshold_`, which
    is set so that a fraction `contamination` of the rows of `fit` is above it.

    Args:
        contamination: the fraction of strange rows among those of `fit`, at least 0 and below 0.5. They are left out of
            the training as far as they fit worst. With 0, all are normal, and none of them is called strange. "auto"
            estimates it: what stands apart is strange, and what scores above `FALSE_ALARMS` of the others.
        convention: "pyod", or "sklearn" for scikit-learn's scorers and its other tools for outlier detectors.
        score_name: a name in `anomaly.SCORES`; by default that of `anomaly.fit` for this contamination.
        config: of the autoencoder; by default `anomaly.default_config`.
        members: how many autoencoders to average the score over.
        epochs: passes over X in `fit`; by default as many as in `anomaly.fit` for that many rows.
        random_state: a number for the same results each time; a `RandomState`; or None.

    Attributes:
        encoding_: how the columns of a DataFrame became numbers: see `data.Encoding`; None of an array.
        detector_: the `anomaly.Detector` of standardised columns, which also tells p-values and contributions.
        decision_scores_: of the rows of `fit`, or of the last `partial_fit`, [n]; higher is stranger, in both
            conventions.
        threshold_: the score above which a row is strange. offset_: minus that.
        labels_: what `predict` gives for the rows of `decision_scores_`, [n].
        mean_, scale_, n_features_in_, feature_names_in_: as in `AutoencoderTransformer`.
    """

    _learned: ClassVar = {
        **_TableEstimator._learned,
        "threshold_": float,
        "_rows": int,
        "_held": int,
    }

    detector_: anomaly.Detector

    @no_type_check
    def __init__(
        self,
        contamination: float | Literal["auto"] = "auto",
        *,
        convention: str = "pyod",
        score_name: str | None = None,
        config: Config | None = None,
        members: int = 1,
        epochs: int | None = None,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.contamination = contamination
        self.convention = convention
        self.score_name = score_name
        self.config = config
        self.members = members
        self.epochs = epochs
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> "AutoencoderDetector":
        """Learn what is normal from X, [n, columns]; y is ignored.

        X is an array, a sparse matrix or a table (pandas, polars, Arrow). Of a table, categories and missing values
        are encoded, clocks, counters and names of rows left out with a warning, and columns later found by name.

        Raises:
            ValueError, TypeError: X is not a table of finite numbers, of at least two rows, or a setting is out of
                range.
            DivergedError: the loss stopped being finite.
        """
        if self.contamination != "auto":
            check_scalar(self.contamination, "contamination", numbers.Real)
        check_scalar(self.members, "members", numbers.Integral)
        if self.epochs is not None:
            check_scalar(self.epochs, "epochs", numbers.Integral, min_val=1)
        if self.convention not in ("pyod", "sklearn"):
            raise errors.ConfigError(errors.unknown("convention", str(self.convention), ("pyod", "sklearn")))
        X = self._table(X, reset=True, least=2)
        self._fit_units(X)
        return self._learn(self._standardised(X), None)

    def _standardised(self, X: Float[np.ndarray, "n columns"]) -> Float[np.ndarray, "n columns"]:
        near: Any = compressed(super()._standardised(X))
        return near

    def partial_fit(self, X: Any, y: Any = None) -> "AutoencoderDetector":
        """Continue the training with more rows X, [n, columns]; y is ignored. The first call is a `fit`.

        The networks go on from their weights and train on X for as long as `fit` would. Rows are compared with a sample
        of the rows of all calls, and `threshold_` is set on that sample. The standardisation stays that of the first
        call, so give it many rows. Raises what `fit` does.
        """
        if not hasattr(self, "detector_"):
            return self.fit(X)
        X = self._table(X, reset=False)
        return self._learn(self._standardised(X), self.detector_)

    def _learn(self, x: Float[np.ndarray, "n columns"], start: anomaly.Detector | None) -> "AutoencoderDetector":
        seed = seed_of(self.random_state)
        train, held_out = anomaly.hold_out(x, anomaly.HELD_OUT, seed)
        if start is not None:
            held_out = np.concatenate([self._held_out, held_out])
        self.detector_ = anomaly.fit(
            train,
            kind="tabular",
            config=self.config,
            score=self.score_name,
            contamination="auto" if self.contamination == "auto" else float(self.contamination),
            held_out=held_out,
            members=int(self.members),
            epochs=None if self.epochs is None else int(self.epochs),
            start=start,
            seed=seed,
        )
        self._held_out = held_out[-anomaly.MAX_REFERENCES :]
        self._rows, self._held = len(x), len(self._held_out)
        self.decision_scores_ = self._scores(x)
        known = self.decision_scores_
        if start is not None:
            known = self._scores(self.detector_.references)
        if self.contamination == "auto":
            normal = self.detector_.calibration
            rate = max(FALSE_ALARMS, 1 / (len(normal) + 1))
            self.threshold_ = conformal.threshold(normal, rate)
        else:
            self.threshold_ = float(np.quantile(known, 1 - float(self.contamination)))
        return self

    def decision_function(self, X: Any) -> Float[np.ndarray, " n"]:
        """The score of each row of X, [n, columns], higher for stranger rows; as "sklearn", `threshold_` minus that."""
        scores = self._scores(self._standardised(self._checked(X)))
        return scores if self.convention == "pyod" else self.threshold_ - scores

    def score_samples(self, X: Any) -> Float[np.ndarray, " n"]:
        """Minus the score of each row of X, [n, columns], so lower for stranger rows, in both conventions."""
        return -self._scores(self._standardised(self._checked(X)))

    def predict(self, X: Any) -> Int[np.ndarray, " n"]:
        """Whether each row of X, [n, columns], is strange: 1 or 0; in scikit-learn's convention, −1 or 1."""
        return self._labels(self._scores(self._standardised(self._checked(X))))

    def fit_predict(self, X: Any, y: Any = None) -> Int[np.ndarray, " n"]:
        """Call `fit`, and return `labels_`."""
        return self.fit(X).labels_

    def predict_proba(self, X: Any) -> Float[np.ndarray, "n 2"]:
        """p and 1 − p for each row of X, [n, columns], where p is the probability that a normal row is as strange.

        It is the conformal p-value of `conformal.p_values`, from rows of `fit` that were not trained on.
        """
        p = conformal.p_values(-self.score_samples(X), self.detector_.calibration)
        return np.stack([p, 1 - p], axis=1)

    @property
    def labels_(self) -> Int[np.ndarray, " n"]:
        check_is_fitted(self)
        return self._labels(self.decision_scores_)

    @property
    def offset_(self) -> float:
        check_is_fitted(self)
        return -self.threshold_

    def _write(self, folder: Path) -> None:
        super()._write(folder)
        self.detector_.save(folder / "detector")

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "AutoencoderDetector":
        """As in `AutoencoderTransformer`; raises what `anomaly.load` does, too."""
        estimator = super().load(folder)
        estimator.detector_ = anomaly.load(atomic.settled(Path(folder)) / "detector")
        return estimator

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.estimator_type = "outlier_detector" if self.convention == "sklearn" else None
        return tags

    def _arrays_like(self) -> dict[str, Any]:
        held_out = np.empty((self._held, self._inputs), np.float32)
        return {**super()._arrays_like(), "decision_scores_": np.empty(self._rows), "_held_out": held_out}

    def _scores(self, x: Float[np.ndarray, "n columns"]) -> Float[np.ndarray, " n"]:
        """The score of each row. A row that is itself a reference is compared with the others, in `fit` and later."""
        references = {row.tobytes(): i for i, row in enumerate(self.detector_.references)}
        own = np.array([references.get(row.tobytes(), -1) for row in x])
        return self.detector_.score(x, own=own).astype(np.float64)

    def _labels(self, scores: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        strange = scores > self.threshold_
        return strange.astype(int) if self.convention == "pyod" else np.where(strange, -1, 1)


def _frame(X: Any) -> Any:
    """X as a pandas DataFrame if it is a table of pandas, polars or Arrow; else None."""
    if hasattr(X, "to_pandas") and hasattr(X, "columns"):
        X = X.to_pandas()
    return X.reset_index(drop=True) if hasattr(X, "columns") and hasattr(X, "set_axis") else None


def _is_plain(frame: Any) -> bool:
    """Whether a table holds nothing but numbers, all of them there, to learn from as they are."""
    numeric = all(dtype.kind in "buif" and isinstance(dtype, np.dtype) for dtype in frame.dtypes)
    if not numeric or frame.isna().to_numpy().any() or not all(isinstance(name, str) for name in frame.columns):
        return numeric and not frame.isna().to_numpy().any()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return not roles.find(frame).left_out


def _jsonable(value: Any) -> Any:
    return value.to_dict() if isinstance(value, Config | Encoding) else value.tolist()


def _setting(value: Any) -> Any:
    """The inverse of `_jsonable` for a setting."""
    if isinstance(value, dict):
        return Config.from_dict(value)
    return tuple(value) if isinstance(value, list) else value


def _denoise_corrupted(model: Autoencoder, x: Float[Array, " batch *shape"]) -> Float[Array, " batch *shape"]:
    return model.reconstruct(model.corrupt(x, jax.random.key(0)))


@functools.cache
def _graphdef(config: Config, columns: int) -> nnx.GraphDef:
    return nnx.split(nnx.eval_shape(lambda: autoencoder.build(config, (columns,))))[0]


def _plain(X: Any) -> Any:
    """X as an array; masked values of one of `numpy.ma` become NaN, which scikit-learn then refuses as missing."""
    if scipy.sparse.issparse(X):
        return X.toarray()
    return with_gaps(X) if isinstance(X, np.ma.MaskedArray) else X


def seed_of(random_state: Any) -> int:
    """The seed that scikit-learn's `random_state` stands for, drawn if it is None."""
    return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))


def of_name(name: str) -> type[SavedEstimator]:
    """The estimator class of that name.

    Raises:
        ConfigError: there is none.
    """
    from flaxae.cells import CellEmbedder  # these are built on this module
    from flaxae.recommendation import Recommender, VariationalRecommender
    from flaxae.sentences import SentenceEmbedder
    from flaxae.vectors import PretrainedEmbedder, VectorCompressor

    tables = (AutoencoderTransformer, DenoisingAutoencoder, AutoencoderClassifier, AutoencoderDetector)
    texts = (SentenceEmbedder, PretrainedEmbedder, VectorCompressor)
    known = (*tables, *texts, Recommender, VariationalRecommender, CellEmbedder)
    table = {estimator.__name__: estimator for estimator in known}
    if name not in table:
        raise errors.ConfigError(errors.unknown("estimator", name, table))
    return table[name]
