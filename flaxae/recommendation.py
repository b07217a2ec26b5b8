"""Recommend items to users from what each user chose, compressing a user to a vector.

    recommender = Recommender().fit(x)        # a scipy.sparse matrix, [users, items], of counts or of 0 and 1
    recommender.recommend(x, 10)              # the ten best items that each user has not, and their scores
    recommender.transform(x)                  # [users, latent]

`Recommender` is the linear autoencoder of one shared matrix (Vančura et al. 2022, ELSA): a vector for each item, and
of a user the sum of them. `VariationalRecommender` has a multinomial likelihood (Liang et al. 2018, Mult-VAE): items
are deleted from what the encoder is given, all are reconstructed, and the weight of the KL rises from 0. Users need not
be those of `fit`. Beside them: popularity, EASE (Steck 2019) and implicit alternating least squares (Hu et al. 2008).
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import scipy.sparse
from flax import nnx
from jax.scipy.stats import norm
from jaxtyping import Array, Float, Int, Key
from sklearn.preprocessing import normalize
from sklearn.utils.validation import check_is_fitted

from flaxae import autoencoder, data, errors, estimators, specs, training
from flaxae.autoencoder import Autoencoder, Config
from flaxae.batches import Batch, Examples
from flaxae.corruptions import Deletion
from flaxae.data import Stream, sparse
from flaxae.data.sparse import Matrix
from flaxae.estimators import NetworkEstimator, no_type_check
from flaxae.likelihoods import Gaussian, Multinomial
from flaxae.nn.heads import Identity, Variational
from flaxae.nn.mlp import MLP
from flaxae.nn.shallow import Shallow, unit
from flaxae.objectives import ELBO
from flaxae.printing import say
from flaxae.sentences import nearest

WARM_UP = 0.4  # of the steps, over which β rises
LENGTH = 10.0  # of the rows that the encoder is given: with 1, as papers have it, codes are slow to leave 0
VALIDATION = 0.05  # of the users
AT_ONCE = 512  # users that are dense in memory together


class _ItemEstimator(NetworkEstimator):
    """What both recommenders share: rows of users in, vectors of users and the best items out."""

    latent: int
    epochs: int
    batch_size: int
    learning_rate: float
    random_state: Any

    def transform(self, X: Any) -> Float[np.ndarray, "users latent"]:
        """The users' vectors, of [users, items]: their codes."""
        parts = [training.apply(Autoencoder.encode, self.model_, rows) for _, rows in self._parts(X)]
        return np.concatenate([np.zeros((0, self._n_features_out), np.float32), *parts])

    def recommend(
        self, X: Any, count: int = 10, *, known: bool = False
    ) -> tuple[Int[np.ndarray, "users count"], Float[np.ndarray, "users count"]]:
        """The best `count` items for each user, best first, and their `scores`; −inf where none is left.

        Args:
            X: what the users chose, [users, items].
            known: whether to recommend items that they have, too.
        """
        best = [top(self.scores(part), None if known else part, count) for part, _ in self._parts(X)]
        return np.concatenate([items for items, _ in best]), np.concatenate([scores for _, scores in best])

    def scores(self, X: Any) -> Float[np.ndarray, "users items"]:
        """How likely each item is to be chosen, dense, comparable within a user; see `recommend` for many users."""
        model, score = self.model_, self._score
        return np.concatenate([training.apply(score, model, rows) for _, rows in self._parts(X)])

    def similar(self, count: int = 10) -> tuple[Int[np.ndarray, "items count"], Float[np.ndarray, "items count"]]:
        """For each item the `count` items that are chosen by the like users, most similar first, and the cosines."""
        vectors = self.item_vectors_
        count = min(count, len(vectors) - 1)
        found, cosines = nearest(vectors, vectors, count + 1)
        others = found != np.arange(len(found))[:, None]
        others[others.all(axis=1), -1] = False  # one that is equal to others, and not among its own nearest
        return found[others].reshape(-1, count), cosines[others].reshape(-1, count)

    @property
    def item_vectors_(self) -> Float[np.ndarray, "items numbers"]:
        """A vector for each item, of unit length: its weights in the decoder."""
        decoder: Any = self.model_.decoder
        return np.asarray(normalize(np.asarray(self._weights(decoder))))

    _score: Callable[[Autoencoder, Any], Any]  # of a model and what its encoder is given of some users

    @staticmethod
    def _weights(decoder: Any) -> Float[Array, "items numbers"]:
        raise NotImplementedError

    def _config(self) -> Config:
        raise NotImplementedError

    def _given(self, x: Matrix) -> Matrix:
        """What the encoder is given of the rows."""
        raise NotImplementedError

    def _more(self, model: Autoencoder, given: Matrix, number: int) -> dict[str, Float[np.ndarray, "users _"]]:
        """What the objective is given of each user besides, in that round of the training."""
        return {}

    def _fit(
        self, X: Any, schedules: Callable[[int], dict[str, Any]], settings: dict[str, Any], *, rounds: int = 1
    ) -> Any:
        """Train anew; `schedules` are those of `training.fit` for so many steps, which are a round's."""
        x = self._checked(X)
        x = x[x.getnnz(axis=1) > 0]
        if x.shape[0] < 2:
            raise errors.DataError(f"{x.shape[0]} users have an item; expected two at least.")
        self.n_features_in_ = x.shape[1]
        self.config_ = self._config()
        seed, size = estimators.seed_of(self.random_state), min(int(self.batch_size), x.shape[0] - 1)
        model = autoencoder.build(self.config_, (self.n_features_in_,), seed=seed)
        shuffled = x[np.random.default_rng(seed).permutation(x.shape[0])]  # a stream is read in stretches
        given = self._given(shuffled)
        rows = {"x": sparse.examples(given), "target": sparse.examples(shuffled)}
        epochs = max(1, int(self.epochs) // rounds)
        steps = epochs * max(1, round((1 - VALIDATION) * x.shape[0]) // size)
        losses = training.History()
        for number in range(rounds):
            more = self._more(model, given, number)
            if isinstance(rows["x"], Stream):
                more = {name: Stream(array) for name, array in more.items()}
            history = training.fit(
                model,
                rows | more,
                epochs=epochs,
                batch_size=size,
                learning_rate=float(self.learning_rate),
                schedules=schedules(steps),
                **{"validation": VALIDATION, "seed": seed, "show": False, **settings},
            )
            for name, values in history.items():
                losses.setdefault(name, []).extend(values)
        self._keep(model, losses)
        return self

    def _checked(self, X: Any) -> Matrix:
        x = sparse.checked(X)
        if x.nnz and x.data.min() < 0:
            raise errors.DataError(f"The lowest number is {x.data.min():g}; expected counts, or 0 and 1.")
        return x

    def _parts(self, X: Any) -> Iterator[tuple[Matrix, Float[np.ndarray, "users items"]]]:
        """Some users at a time: their rows, and what the encoder is given of them."""
        check_is_fitted(self)
        x = self._checked(X)
        if x.shape[1] != self.n_features_in_:
            raise errors.DataError(f"X has {x.shape[1]} items; the recommender was trained on {self.n_features_in_}.")
        for start in range(0, x.shape[0], AT_ONCE):
            part = x[start : start + AT_ONCE]
            yield part, self._given(part).toarray()

    def _abstract(self) -> Autoencoder:
        return nnx.eval_shape(lambda: autoencoder.build(self.config_, (self.n_features_in_,)))


class Recommender(_ItemEstimator):
    """Users as vectors, and the items each is likely to choose next, from a sparse matrix of what they chose.

    The linear autoencoder ELSA: x̂ = x A Aᵀ − x, where x and the rows of A have unit length. So each item is predicted
    from the user's other items, and not from itself. Training turns x̂ towards x. A is all that is learned.

    Args:
        latent: how many numbers a user's vector has.
        epochs: passes over the users.
        batch_size: users per step.
        learning_rate: the peak of Adam's, after a warm-up and before a cosine decay.
        random_state: a number for the same results each time; a `RandomState`; or None.

    Attributes:
        model_: the trained `flaxae.Autoencoder`. config_: its `flaxae.Config`.
        loss_curve_: each epoch's mean loss per user, 0 at best, 4 at worst.
        n_features_in_: how many items there are.
    """

    @no_type_check
    def __init__(
        self,
        latent: int = 128,
        *,
        epochs: int = 20,
        batch_size: int = 100,
        learning_rate: float = 3e-2,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.latent = latent
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, **settings: Any) -> "Recommender":
        """Train anew on [users, items], sparse; y is ignored. `settings` are further ones of `training.fit`.

        Raises:
            DataError: X is no matrix of numbers from 0 on, or fewer than two users have an item.
            DivergedError: the loss stopped being finite.
        """
        return self._fit(X, lambda steps: {}, {"keep": "last", **settings})

    @property
    def _n_features_out(self) -> int:
        body: Any = self.config_.body
        return body.latent

    @staticmethod
    def _score(model: Autoencoder, x: Float[Array, "users items"]) -> Float[Array, "users items"]:
        return from_others(model, x)

    @staticmethod
    def _weights(decoder: Any) -> Float[Array, "items numbers"]:
        return decoder.vectors.unit

    def _config(self) -> Config:
        return Config(
            body=Shallow(int(self.latent)), head=Identity(), objective=cosine_of_others, likelihood=Gaussian()
        )

    def _given(self, x: Matrix) -> Matrix:
        made: Matrix = normalize(x)
        return made


def from_others(model: Autoencoder, x: Float[Array, "users items"]) -> Float[Array, "users items"]:
    """x A Aᵀ − x: what the other items of a user say of each."""
    return model.params(model.encode(x)) - x


@specs.register
def cosine_of_others(model: Autoencoder, batch: Examples, key: Key[Array, ""]) -> Float[Array, " batch"]:
    """2 − 2 cos(x, x A Aᵀ − x), which is ‖x / ‖x‖ − x̂ / ‖x̂‖‖² (Vančura et al. 2022, the loss of ELSA)."""
    x = jnp.asarray(Batch.of(batch).x)
    return 2 - 2 * jnp.sum(unit(x) * unit(from_others(model, x)), axis=1)


class VariationalRecommender(_ItemEstimator):
    """`Recommender` by a variational autoencoder with a multinomial likelihood, for many users.

    Args:
        latent: how many numbers a user's vector has.
        hidden: sizes of the encoder's hidden layers, mirrored in the decoder; () makes both linear.
        beta: the weight of the KL after its warm-up.
        deletion: the probability that an item is hidden from the encoder in training.
        rounds: into which the epochs are divided. With more than one, the prior is RecVAE's: see `CompositeELBO`.
        epochs: passes over the users.
        batch_size: users per step.
        learning_rate: the peak of Adam's, after a warm-up and before a cosine decay, in each round.
        random_state: a number for the same results each time; a `RandomState`; or None.

    Attributes:
        model_: the trained `flaxae.Autoencoder` of rows of length `LENGTH`. config_: its `flaxae.Config`.
        loss_curve_: each epoch's mean loss, nats per user.
        n_features_in_: how many items there are.
    """

    @no_type_check
    def __init__(
        self,
        latent: int = 256,
        *,
        hidden: Sequence[int] = (),
        beta: float = 0.2,
        deletion: float = 0.5,
        rounds: int = 1,
        epochs: int = 40,
        batch_size: int = 100,
        learning_rate: float = 1e-3,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.latent = latent
        self.hidden = hidden
        self.beta = beta
        self.deletion = deletion
        self.rounds = rounds
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, **settings: Any) -> "VariationalRecommender":
        """Train anew on [users, items], sparse; y is ignored. `settings` are further ones of `training.fit`.

        Raises:
            DataError: X is no matrix of numbers from 0 on, or fewer than two users have an item.
            DivergedError: the loss stopped being finite.
        """

        def schedules(steps: int) -> dict[str, Any]:
            return {"beta": warm_up(float(self.beta), max(1, round(WARM_UP * steps)))}

        return self._fit(X, schedules, settings, rounds=int(self.rounds))

    def _more(self, model: Autoencoder, given: Matrix, number: int) -> dict[str, Float[np.ndarray, "users _"]]:
        if int(self.rounds) < 2:
            return {}
        if number == 0:
            return {"previous": np.zeros((given.shape[0], 2 * int(self.latent)), np.float32)}
        parts = [given[start : start + AT_ONCE].toarray() for start in range(0, given.shape[0], AT_ONCE)]
        return {"previous": np.concatenate([training.apply(posterior, model, part) for part in parts])}

    @staticmethod
    def _score(model: Autoencoder, x: Float[Array, "users items"]) -> Float[Array, "users items"]:
        """log p(item | user)."""
        return jax.nn.log_softmax(model.params(model.encode(x)))

    @staticmethod
    def _weights(decoder: Any) -> Float[Array, "items numbers"]:
        return decoder.out.kernel[...].T

    def _config(self) -> Config:
        return Config(
            body=MLP(tuple(np.atleast_1d(self.hidden).astype(int).tolist()), "tanh"),
            head=Variational(int(self.latent)),
            objective=ELBO(float(self.beta)) if int(self.rounds) < 2 else CompositeELBO(float(self.beta)),
            corruption=Deletion(float(self.deletion)),
            likelihood=Multinomial(),
        )

    def _given(self, x: Matrix) -> Matrix:
        made: Matrix = normalize(x)
        return made * np.float32(LENGTH)


@specs.register
@dataclasses.dataclass(frozen=True)
class CompositeELBO:
    """−log p(x | z) + β KL to RecVAE's composite prior (Shenbin et al. 2020, eq. 6), estimated at the z that is drawn.

    The prior of each number of a user's code is a mixture of N(0, 1), of the posterior that an earlier model gave that
    user, and of a wide normal. The batch has "previous", [users, 2 latent]: that posterior's means, then its
    log-variances. Zeros are N(0, 1).

    Args:
        beta: the weight of the KL.
        shares: of the three in the mixture, which add up to 1.
        wide: the log-variance of the third.
    """

    beta: float = 0.2
    shares: tuple[float, ...] = (0.15, 0.75, 0.1)
    wide: float = 10.0

    def __post_init__(self) -> None:
        specs.check_not_negative(self, "beta")
        if len(self.shares) != 3 or min(self.shares) <= 0 or abs(sum(self.shares) - 1) > 1e-6:
            raise errors.ConfigError(f"CompositeELBO.shares is {self.shares}; expected three above 0 that add up to 1.")

    def __call__(self, model: Any, batch: Any, key: Key[Array, ""]) -> Float[Array, " batch"]:
        previous, batch = jnp.split(jnp.asarray(batch["previous"]), 2, axis=1), Batch.of(batch)
        params, latent = model(batch, key)
        means = jnp.stack([jnp.zeros_like(latent.z), previous[0], jnp.zeros_like(latent.z)])
        logvars = jnp.stack([jnp.zeros_like(latent.z), previous[1], jnp.full_like(latent.z, self.wide)])
        each = norm.logpdf(latent.z[None], means, jnp.exp(0.5 * logvars))
        shares = jnp.broadcast_to(jnp.log(jnp.array(self.shares))[:, None, None], each.shape)
        kl = norm.logpdf(latent.z, latent.mean, jnp.exp(0.5 * latent.logvar)) - jax.nn.logsumexp(each + shares, axis=0)
        return -model.log_likelihood(params, batch) + self.beta * kl.sum(axis=1)


def posterior(model: Any, x: Float[Array, "users items"]) -> Float[Array, "users _"]:
    """The means and log-variances of q(z | x), [users, 2 latent]."""
    latent = model.head(model.features(x))
    return jnp.concatenate([latent.mean, latent.logvar], axis=1)


def warm_up(beta: float, steps: int) -> Callable[[Any], Any]:
    """β by the step: from 0 in a straight line to its value (Bowman et al. 2016)."""
    return lambda step: beta * jnp.minimum(1.0, jnp.asarray(step, jnp.float32) / steps)


def top(
    scores: Float[np.ndarray, "users items"], known: Matrix | None, count: int
) -> tuple[Int[np.ndarray, "users count"], Float[np.ndarray, "users count"]]:
    """The numbers of the best items, best first, and their scores; those that are `known` have the score −inf."""
    scores, count = scores.copy(), min(count, scores.shape[1])
    if known is not None:
        scores[known.nonzero()] = -np.inf
    found = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    order = np.argsort(-np.take_along_axis(scores, found, axis=1), axis=1, kind="stable")
    found = np.take_along_axis(found, order, axis=1)
    return found, np.take_along_axis(scores, found, axis=1)


class Ratings(NamedTuple):
    """Who chose what."""

    x: Matrix  # [users, items], 1 where a user chose an item
    users: list[str]
    items: list[str]


def read_ratings(
    path: str | os.PathLike[str],
    *,
    user: str | None = None,
    item: str | None = None,
    rating: str | None = None,
    least: int | float | None = None,
    items: Sequence[str] | None = None,
) -> Ratings:
    """Who chose what, from a table with a row for each choice.

    Args:
        path: of the table.
        user, item, rating: the names of its columns; by default those of these names (also `user_id`, `artistID`, …),
            or else the first, the second and the third.
        least: a rating below that doesn't count as a choice; by default all rows are choices.
        items: those that are known; choices of others are left out, with a line that says so.

    Raises:
        DataError: the table has no such columns, or no choices are left.
    """
    frame: Any = data.read_table(path)
    columns = list(frame.columns)
    who, what = (
        _column(columns, given, names, place, path)
        for given, names, place in ((user, ("user",), 0), (item, ("item", "movie", "artist", "product", "book"), 1))
    )
    kept = frame.dropna(subset=[who, what])
    if least is not None:
        column = _column(columns, rating, ("rating", "score"), 2, path)
        spelled: Any = data.delimited.as_numbers(kept[column], path)
        marks = np.asarray(pd.to_numeric(spelled, errors="coerce"), np.float64)
        other = spelled[spelled.notna().to_numpy() & np.isnan(marks)]
        if len(other):
            raise errors.DataError(
                f"{path}: the column {column!r} holds {other.iloc[0]!r}; expected ratings, which are numbers."
            )
        kept = kept[marks >= least]
    if items is not None:
        kept = kept[kept[what].map(str).isin(set(items))]
    if len(kept) < len(frame):
        say(f"{path}: {len(frame) - len(kept):,} of {len(frame):,} rows don't count, or are of unknown items.")
    if kept.empty:
        raise errors.DataError(f"{path} has no choices left of {len(frame):,} rows.")
    rows, users = pd.factorize(kept[who].map(str), sort=False)
    names = list(items) if items is not None else sorted(set(kept[what].map(str)))
    places = pd.Index(names).get_indexer(kept[what].map(str).tolist())
    x = scipy.sparse.csr_matrix((np.ones(len(kept), np.float32), (rows, places)), (len(users), len(names)))
    x.data[:] = 1  # of rows that are there twice
    return Ratings(sparse.checked(x, path), list(users), names)


def _column(columns: list[str], given: str | None, names: Sequence[str], place: int, path: Any) -> str:
    if given is not None:
        if given not in columns:
            raise errors.DataError(f"{path}: " + errors.unknown("column", given, columns))
        return given
    like = [column for column in columns if any(column.lower().startswith(name) for name in names)]
    if not like and len(columns) <= place:
        raise errors.DataError(
            f"{path} has {len(columns)} columns; expected user, item and, if there are any, ratings."
        )
    return like[0] if like else columns[place]


class HeldOut(NamedTuple):
    """Users who were not trained on: a part of what each chose, and the rest, which is to be found."""

    given: Matrix
    wanted: Matrix


def hold_out(x: Matrix, seed: int, *, share: float = 0.2) -> HeldOut:
    """Of each user a random share of the items is to be found; users with less than one of each are left out."""
    coordinates = x.tocoo()
    hidden = np.random.default_rng(seed).random(coordinates.nnz) < share
    parts = [
        scipy.sparse.csr_matrix(
            (coordinates.data[chosen], (coordinates.row[chosen], coordinates.col[chosen])), coordinates.shape
        )
        for chosen in (~hidden, hidden)
    ]
    both = (parts[0].getnnz(axis=1) > 0) & (parts[1].getnnz(axis=1) > 0)
    return HeldOut(*(part[both] for part in parts))


Method = Callable[[Matrix], Float[np.ndarray, "users items"]]  # from what users chose to scores of all items


def measure(method: Method, held_out: HeldOut) -> dict[str, float]:
    """NDCG@100 and recall@20 and @50 of what was hidden, as means over users (Liang et al. 2018, section 4.2)."""
    sums, users = np.zeros(3), held_out.given.shape[0]
    for start in range(0, users, AT_ONCE):
        given, wanted = (part[start : start + AT_ONCE] for part in held_out)
        found, _ = top(np.asarray(method(given)), given, 100)
        relevant = wanted.toarray() > 0
        hits, numbers = np.take_along_axis(relevant, found, axis=1), relevant.sum(axis=1)
        discount = 1 / np.log2(np.arange(hits.shape[1]) + 2)
        ideal = np.cumsum(discount)[np.minimum(numbers, len(discount)) - 1]
        recalls = [(hits[:, :k].sum(axis=1) / np.minimum(k, numbers)).sum() for k in (20, 50)]
        sums += [((hits * discount).sum(axis=1) / ideal).sum(), *recalls]
    return dict(zip(("ndcg_100", "recall_20", "recall_50"), (sums / users).tolist(), strict=True))


def popularity(x: Matrix) -> Method:
    """The same items for everyone, by how many users have them."""
    counts = np.asarray((x > 0).sum(axis=0), np.float32).reshape(1, -1)
    return lambda given: np.repeat(counts, given.shape[0], axis=0)


def ease(x: Matrix, penalty: float = 100.0) -> Method:
    """The linear model of items by items with no item predicting itself, in closed form (Steck 2019, eq. 8).

    Takes memory with the square, and time with the cube, of the number of items.
    """
    gram = (x.T @ x).toarray().astype(np.float64)
    gram[np.diag_indices_from(gram)] += penalty
    inverse = np.linalg.inv(gram)
    weights = (inverse / -np.diag(inverse)).astype(np.float32)
    np.fill_diagonal(weights, 0)
    return lambda given: np.asarray(given @ weights)


def least_squares(
    x: Matrix, latent: int = 128, *, penalty: float = 10.0, confidence: float = 10.0, rounds: int = 10, seed: int = 0
) -> Method:
    """Implicit alternating least squares: factors of users and items, chosen ones counting more (Hu et al. 2008)."""
    items = np.random.default_rng(seed).normal(0, 0.01, (x.shape[1], latent))
    by_item = x.T.tocsr()
    for _ in range(rounds):
        items = _solved(by_item, _solved(x, items, penalty, confidence), penalty, confidence)
    return lambda given: (_solved(given, items, penalty, confidence) @ items.T).astype(np.float32)


def _solved(
    chosen: Matrix, factors: Float[np.ndarray, "columns latent"], penalty: float, confidence: float
) -> Float[np.ndarray, "rows latent"]:
    gram = factors.T @ factors + penalty * np.eye(factors.shape[1])
    made = np.zeros((chosen.shape[0], factors.shape[1]))
    for row in range(len(made)):
        own = factors[chosen.indices[chosen.indptr[row] : chosen.indptr[row + 1]]]
        if len(own):
            made[row] = np.linalg.solve(gram + confidence * own.T @ own, (1 + confidence) * own.sum(axis=0))
    return made
