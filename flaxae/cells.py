"""Cells as vectors, from counts of their genes, with what differs between batches of measurement taken out.

    embedder = CellEmbedder().fit(x, batch=batch)      # [cells, genes], sparse; a name or number for each cell
    embedder.transform(x, batch=batch)                 # [cells, latent], mixed over the batches
    embedder.normalized(x, batch=batch)                # [cells, genes], as if all were of one size and all batches

A variational autoencoder with a negative binomial likelihood, conditioned on the batch (Lopez et al. 2018, scVI). The
encoder sees the logs of the counts, and the library size is the cell's total. Files: `data.sparse.read` takes `.npz`,
`.mtx`, and AnnData's `.h5ad`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float
from sklearn.utils.validation import check_is_fitted

from flaxae import autoencoder, errors, estimators, training
from flaxae.autoencoder import Autoencoder, Config
from flaxae.batches import Batch
from flaxae.data import sparse
from flaxae.data.sparse import Matrix
from flaxae.estimators import NetworkEstimator, no_type_check
from flaxae.likelihoods import NegativeBinomial, ZeroInflatedNegativeBinomial
from flaxae.nn.heads import Variational
from flaxae.nn.mlp import MLP
from flaxae.objectives import ELBO

LIKELIHOODS = {"negative_binomial": NegativeBinomial, "zero_inflated": ZeroInflatedNegativeBinomial}
VALIDATION = 0.1  # of the cells
AT_ONCE = 512  # cells that are dense in memory together


class CellEmbedder(NetworkEstimator):
    """Cells as vectors, from a sparse matrix of the counts of their genes.

    Args:
        latent: how many numbers a cell's vector has.
        hidden: sizes of the encoder's hidden layers, mirrored in the decoder.
        likelihood: of the counts: "negative_binomial" or "zero_inflated".
        epochs: passes over the cells. Batches are mixed only after a thousand steps or more.
        batch_size: cells per step.
        learning_rate: the peak of Adam's, after a warm-up and before a cosine decay.
        random_state: a number for the same results each time; a `RandomState`; or None.

    Attributes:
        model_: the trained `flaxae.Autoencoder` of log counts. config_: its `flaxae.Config`.
        batches_: the names of the batches of `fit`, sorted; none if all cells were of one.
        loss_curve_: each epoch's mean loss, nats per cell.
        n_features_in_: how many genes there are.
    """

    _learned: ClassVar[dict[str, Callable[[Any], Any]]] = {
        **NetworkEstimator._learned,
        "batches_": lambda names: [str(name) for name in names],
    }

    @no_type_check
    def __init__(
        self,
        latent: int = 10,
        *,
        hidden: Sequence[int] = (128,),
        likelihood: str = "negative_binomial",
        epochs: int = 200,
        batch_size: int = 128,
        learning_rate: float = 3e-3,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.latent = latent
        self.hidden = hidden
        self.likelihood = likelihood
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, *, batch: Any = None, **settings: Any) -> "CellEmbedder":
        """Train anew on counts, [cells, genes]; y is ignored.

        Args:
            batch: of each cell, a name or a number: what it was measured with, whose effects are taken out.
            settings: further ones of `training.fit`.

        Raises:
            DataError: X has numbers that are no counts, or `batch` another length.
            ConfigError: the likelihood has an unknown name.
            DivergedError: the loss stopped being finite.
        """
        x = self._checked(X)
        if self.likelihood not in LIKELIHOODS:
            raise errors.ConfigError(errors.unknown("likelihood", str(self.likelihood), LIKELIHOODS))
        self.n_features_in_ = x.shape[1]
        self.batches_ = [] if batch is None else sorted(set(map(str, batch)))
        self.config_ = Config(
            body=MLP(tuple(np.atleast_1d(self.hidden).astype(int).tolist())),
            head=Variational(int(self.latent)),
            objective=ELBO(),
            likelihood=LIKELIHOODS[self.likelihood](),
        )
        seed = estimators.seed_of(self.random_state)
        model = autoencoder.build(self.config_, (x.shape[1],), conditions=len(self.batches_), seed=seed)
        order = np.random.default_rng(seed).permutation(x.shape[0])  # a stream is read in stretches
        rows = {"x": sparse.examples(x[order].log1p()), "target": sparse.examples(x[order])}
        if self.batches_:
            rows["condition"] = self._conditions(batch, x.shape[0])[order]
        history = training.fit(
            model,
            rows,
            epochs=int(self.epochs),
            batch_size=max(1, min(int(self.batch_size), round((1 - VALIDATION) * x.shape[0]) - 1)),
            learning_rate=float(self.learning_rate),
            **{"validation": VALIDATION, "seed": seed, "show": False, **settings},
        )
        self._keep(model, history)
        return self

    def transform(self, X: Any, *, batch: Any = None) -> Float[np.ndarray, "cells latent"]:
        """The cells' vectors: the means of their codes."""
        model = self.model_
        parts = [training.apply(Autoencoder.encode, model, part) for part in self._parts(X, batch)]
        return np.concatenate([np.zeros((0, self.config_.latent), np.float32), *parts])

    def normalized(self, X: Any, *, batch: Any = None) -> Float[np.ndarray, "cells genes"]:
        """The expected share of each gene in a cell, as a mean over what it would be in each batch."""
        model = self.model_
        count = max(1, len(self.batches_))

        def shares(model: Autoencoder, given: Any) -> Any:
            z, cells = model.encode(given), len(Batch.of(given).x)
            if not self.batches_:
                return model.decode(z)
            each = jax.numpy.eye(count, dtype=z.dtype)[:, None, :]
            return sum(model.decode(z, jax.numpy.broadcast_to(one, (cells, count))) for one in each) / count

        parts = [training.apply(shares, model, part) for part in self._parts(X, batch)]
        return np.concatenate([np.zeros((0, self.n_features_in_), np.float32), *parts])

    def _checked(self, X: Any) -> Matrix:
        x = sparse.checked(X)
        if x.nnz and (x.data.min() < 0 or (x.data != np.rint(x.data)).any()):
            raise errors.DataError(
                "X has numbers that are no counts. Give the counts as they were measured, not their logs."
            )
        return x

    def _conditions(self, batch: Any, cells: int) -> Float[np.ndarray, "cells batches"]:
        """A 1 for the batch of each cell."""
        names = [] if batch is None else [str(name) for name in batch]
        unknown = next((name for name in names if name not in self.batches_), None)
        if unknown is not None:
            raise errors.DataError(errors.unknown("batch", unknown, self.batches_))
        if len(names) != cells:
            raise errors.DataError(f"batch has {len(names)} names; expected one for each of the {cells} cells.")
        return np.eye(len(self.batches_), dtype=np.float32)[[self.batches_.index(name) for name in names]]

    def _parts(self, X: Any, batch: Any) -> Iterator[dict[str, np.ndarray]]:
        """What the network is given of some cells at a time."""
        check_is_fitted(self)
        x = self._checked(X)
        if x.shape[1] != self.n_features_in_:
            raise errors.DataError(f"X has {x.shape[1]} genes; the embedder was trained on {self.n_features_in_}.")
        told = {"condition": self._conditions(batch, x.shape[0])} if self.batches_ else {}
        for start in range(0, x.shape[0], AT_ONCE):
            part = slice(start, start + AT_ONCE)
            yield {"x": x[part].log1p().toarray(), **{name: values[part] for name, values in told.items()}}

    def _abstract(self) -> Autoencoder:
        return nnx.eval_shape(
            lambda: autoencoder.build(self.config_, (self.n_features_in_,), conditions=len(self.batches_))
        )
