"""Recommend: which items each user is likely to choose next, from a table of who chose what.

    python run.py --exp recommend --data ratings.csv

The table has the columns user, item and, if there are any, rating and time; `--least 4` counts only ratings from 4 on.
A tenth of the users is kept apart (strong generalisation): of what each chose, a fifth is hidden, and is to be found
among all items. Popularity, EASE and implicit ALS are measured beside the autoencoder: a linear one with a vector for
each item, or with `--model variational` one for many users. The run's folder has the best items for every user, the
items most similar to each, and the users' vectors. For new users:

    python run.py --exp recommend --from runs/recommend/1 --input new.csv --output top.csv --count 10
"""

import hashlib
from typing import Any

import numpy as np

from flaxae import atomic, data, experiments, recommendation, runs, trained
from flaxae.errors import DataError, RunError
from flaxae.experiments import _flags, _steps
from flaxae.printing import say
from flaxae.recommendation import HeldOut, Ratings, Recommender, VariationalRecommender
from flaxae.runs import Run, report
from flaxae.training import checkpoints

MODELS: dict[str, Any] = {"linear": Recommender, "variational": VariationalRecommender}
EPOCHS, STEPS = 40, 600  # so many epochs, and for few users at least so many steps
HELD_OUT = 0.1  # of the users
MOST_ITEMS, MOST_USERS = 10_000, 50_000  # for EASE, and for ALS, which take long for more
NAMES = {"popularity": "popularity", "ease": "EASE", "als": "implicit ALS", "flaxae": "flaxae"}


def apply(config: _flags.Recommend) -> None:
    """Write the best items for the users of --input to --output."""
    recommender = trained.load(config.from_)
    if not isinstance(recommender, Recommender | VariationalRecommender):
        raise RunError(
            f"{config.from_} holds a {type(recommender).__name__}; expected a run of the experiment recommend."
        )
    items = data.read_table(runs.open(config.from_).file("items.csv"))["item"].map(str).tolist()
    ratings = read(config, str(config.input), items)
    write(config.output, recommender, ratings, config.count)
    say(f"Wrote the best {config.count} items for {len(ratings.users):,} users into {config.output}.")


def read(config: _flags.Recommend, path: str, items: list[str] | None = None) -> Ratings:
    """The table of the flags."""
    return recommendation.read_ratings(
        path, user=config.user, item=config.item, rating=config.rating, least=config.least, items=items
    )


def write(path: object, recommender: Recommender | VariationalRecommender, ratings: Ratings, count: int) -> None:
    """Write a table with the best items for each user: user, rank, item and score."""
    found, scores = recommender.recommend(ratings.x, count)
    _write_lists(path, "user", ratings.users, "item", ratings.items, found, scores, "score")


def _write_lists(
    path: object,
    of: str,
    names: list[str],
    what: str,
    items: list[str],
    found: np.ndarray,
    scores: np.ndarray,
    head: str,
) -> None:
    rows, ranks = np.nonzero(np.isfinite(scores))
    table = np.column_stack(
        [
            np.array(names, object)[rows],
            (ranks + 1).astype(object),
            np.array(items, object)[found[rows, ranks]],
            np.round(scores[rows, ranks].astype(np.float64), 4).astype(object),
        ]
    )
    data.write(path, table, columns=[of, "rank", what, head])  # pyright: ignore[reportArgumentType]


def train(config: _flags.Recommend) -> None:
    """Train and evaluate in a run's folder."""
    ratings = read(config, config.data)
    users, items = ratings.x.shape
    order = np.random.default_rng(config.seed).permutation(users)
    held = max(1, round(HELD_OUT * users))
    held_out = recommendation.hold_out(ratings.x[order[:held]], config.seed)
    known = ratings.x[order[held:]]
    if known.shape[0] < 3 or held_out.given.shape[0] < 1:
        raise DataError(f"{users} users are too few, or have too few items each, to train on some and test on others.")
    say(
        f"{ratings.x.nnz:,} choices of {users:,} users among {items:,} items, {ratings.x.nnz / users:.3g} each. "
        f"Trains on {known.shape[0]:,} users, and tests on {held_out.given.shape[0]:,} others."
    )
    digest = hashlib.sha256(ratings.x.indices.tobytes() + ratings.x.indptr.tobytes()).hexdigest()
    about = {"users": users, "items": items, "choices": ratings.x.nnz, "sha256": digest}
    settings = {"settings": _steps.settings(config), "model": trained.ESTIMATOR, "data": about}
    given = ("latent", "hidden", "beta", "rounds", "learning_rate", "batch_size")
    chosen = {name: value for name in given if (value := getattr(config, name)) not in (None, ())}
    enough = _steps.enough_epochs(known.shape[0], config.batch_size, epochs=EPOCHS, steps=STEPS)
    recommender = MODELS[config.model](**chosen, epochs=config.epochs or enough, random_state=config.seed)
    with runs.start("recommend", config.name, settings, resume=config.resume) as run, _steps.resumable(run):
        with _steps.resources(config, run) as resources:
            recommender.fit(
                known,
                folder=run.checkpoints,
                resume=config.resume and checkpoints.begun(run.checkpoints),
                show=True,
                on_epoch=resources["on_epoch"],
            )
        recommender.save(run.folder / trained.ESTIMATOR)
        evaluate(run, config, recommender, ratings, known, held_out)


def evaluate(
    run: Run,
    config: _flags.Recommend,
    recommender: Recommender | VariationalRecommender,
    ratings: Ratings,
    known: recommendation.Matrix,
    held_out: HeldOut,
) -> None:
    """Measure beside simple methods; write the lists, the vectors, results.json and the report."""
    users, items = known.shape
    methods = {"popularity": recommendation.popularity(known)}
    if items <= MOST_ITEMS:
        methods["ease"] = recommendation.ease(known)
    if users <= MOST_USERS:
        methods["als"] = recommendation.least_squares(known, seed=config.seed)
    for name in {"ease", "als"} - set(methods):
        say(f"{NAMES[name]} is left out: it would take long for {users:,} users and {items:,} items.")
    methods["flaxae"] = recommender.scores
    scores = {name: recommendation.measure(method, held_out) for name, method in methods.items()}
    heads = [report.Column(name, better="higher") for name in ("NDCG@100", "recall@20", "recall@50")]
    caption = f"{held_out.given.shape[0]:,} users who were not trained on, a fifth of their items hidden"
    table = report.Table(caption, ["", *heads], [[NAMES[name], *values.values()] for name, values in scores.items()])

    write(run.folder / "recommendations.csv", recommender, ratings, config.count)
    found, cosines = recommender.similar(config.count)
    items_named = ratings.items
    _write_lists(
        run.folder / "similar_items.csv", "item", items_named, "similar", items_named, found, cosines, "similarity"
    )
    with atomic.replacing(run.folder / "users.npz") as unfinished:
        np.savez(unfinished, x=recommender.transform(ratings.x))
    for name, values in (("users.csv", ratings.users), ("items.csv", ratings.items)):
        data.write(run.folder / name, np.array(values, object)[:, None], columns=[name.removesuffix("s.csv")])
    usage = experiments.command("recommend", from_=run.folder, input="new.csv", output="top.csv")
    summary = (
        f"The best {config.count} items for each user are in {run.folder / 'recommendations.csv'}, those most similar "
        f"to each item in similar_items.csv, the users' vectors in users.npz, in the order of users.csv."
    )
    results = {f"test/{name}/{metric}": value for name, values in scores.items() for metric, value in values.items()}
    history = run.history()
    columns = {name: [epoch[name] for epoch in history] for name in ("loss", "val_loss", "seconds")}
    _steps.finish(run, f"Recommendations from {config.data}", summary, [table], [], results, usage, history=columns)
