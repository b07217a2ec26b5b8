"""Reduce: a map of a data set in 2 or 3 dimensions beside PCA's, and its codes in a file.

    python run.py --exp reduce

maps the embedded MNIST in about two minutes on two CPU cores, so that neighbours stay together, with a decoder back
from the map. `--model vanilla` trains a map for reconstruction alone. Any table will do: `--data customers.csv --label
segment`. The labels only colour and score the map; they are not trained on. The codes of all examples, first those of
the training part, then those of the test part, are written to codes.npz and codes.csv in the run's folder. A trained
run maps new data:

    python run.py --exp reduce --from runs/reduce/1 --input new.csv --output codes.csv
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness
from sklearn.neighbors import KNeighborsClassifier

from flaxae import atomic, autoencoder, data, experiments, finetuning, maps, objectives, trained, training
from flaxae.autoencoder import Autoencoder
from flaxae.data import Dataset, images
from flaxae.experiments import _flags, _steps, _sweep
from flaxae.nn.neighbours import Placed
from flaxae.objectives import DecodePlaces, KeepNeighbours
from flaxae.parallel import processes
from flaxae.printing import say
from flaxae.runs import Run, plots, report
from flaxae.training import History

EPOCHS, STEPS = 10, 1000  # at least, of the decoder of a map that keeps neighbours
PARAMETRIC_EPOCHS = 20  # of an encoder that learns to keep them, too
SCORED = 2000  # test examples to measure trustworthiness on, whose time grows with their square
NEIGHBOURS = 10
COLOURED = 20  # columns of a table that the map may be coloured by
DECODED = {2: 16, 3: 9}  # by the code's size: steps of the grid of decoded codes, each way


def apply(config: _flags.Reduce) -> None:
    """Encode --input with the model of --from, and write the codes to --output."""
    model = trained.autoencoder_of(config.from_)
    if images.holds(config.input):
        found = _steps.of_images(config, model, Autoencoder.encode, model.model)
        codes = found.made.reshape(len(found.made), -1)
        table = np.column_stack([found.names, codes.astype(object)])
        data.write(config.output, table, columns=["file", *(f"z{i}" for i in range(codes.shape[1]))])
        found.images.check()
    else:
        data.write(config.output, model.encode(model.read(config.input)))
    say(f"Wrote the codes of {config.input} into {config.output}.")


def train(config: _flags.Reduce) -> None:
    """Train and evaluate in a run's folder."""
    dataset = _steps.whole(_steps.load(config), config)
    model = _steps.preset(config, dataset)
    keeps = isinstance(model.objective, DecodePlaces | KeepNeighbours)
    rows = maps.learnt_from(dataset.scaling(dataset.train), seed=config.seed) if keeps else None
    if rows is not None and isinstance(model.head, Placed):
        model = dataclasses.replace(model, head=dataclasses.replace(model.head, examples=len(rows)))
    with _steps.start("reduce", config, dataset, model) as run:
        if config.sweep:
            _sweep.compare(config, run, dataset, model, _sweep.reconstruction())
            return
        trained = (
            _steps.train(config, run, dataset, model) if rows is None else train_map(config, run, rows, dataset, model)
        )
        processes.leave_to_first()
        evaluate(run, *trained, dataset)
    dataset.check()


def train_map(
    config: _flags.Reduce, run: Run, rows: np.ndarray, dataset: Dataset, model: autoencoder.Config
) -> tuple[Autoencoder, History]:
    """Find a map of the rows, train its decoder, and return the model with its history.

    If the run is resumed, the places are found again, the same ones, and the training goes on from its checkpoint.
    """
    network = autoencoder.build(model, dataset.shape, seed=config.seed)
    epochs = config.epochs or epochs_of(model, len(rows), config.batch_size)
    alone = dataclasses.replace(model, objective=objectives.negative_log_likelihood)  # of examples without neighbours
    _steps.announce(dataset, alone, epochs=epochs, batch_size=config.batch_size)
    with _steps.resources(config, run) as given:
        history = maps.fit(
            network,
            rows,
            epochs=epochs,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            optimizer=config.optimizer,
            precision=config.precision,
            seed=config.seed,
            folder=run.checkpoints,
            resume=config.resume and training.checkpoints.begun(run.checkpoints),
            **given,
        )
    return network, history


def epochs_of(model: autoencoder.Config, examples: int, batch_size: int) -> int:
    """How many a map is trained for by default."""
    epochs, steps = (EPOCHS, STEPS) if isinstance(model.head, Placed) else (PARAMETRIC_EPOCHS, _steps.STEPS)
    return _steps.enough_epochs(examples, batch_size, epochs=epochs, steps=steps)


def evaluate(run: Run, model: Autoencoder, history: History, dataset: Dataset) -> None:
    """Score the map beside PCA's on the test set; write the codes, the figures, results.json and the report."""
    train, test = dataset.scaling(dataset.train_sample), dataset.scaling(dataset.test)
    codes = [training.apply(Autoencoder.encode, model, x) for x in (train, test)]
    write(run, *codes, dataset)
    dimensions = codes[0].shape[1]
    scores = {"flaxae": score(*codes, dataset, _steps.mean_squared_error(model, test))}
    drawn = {"flaxae": codes[1]}
    if (error := _steps.pca_error(dataset, dimensions)) is not None:
        principal = principal_components(train, test, dimensions)
        scores["PCA"] = score(*principal, dataset, error)
        drawn["PCA"] = principal[1]

    heads = {
        "trustworthiness": report.Column("trustworthiness", better="higher"),
        "knn_accuracy": report.Column("kNN accuracy", better="higher"),
        "kmeans_nmi": report.Column("k-means NMI", better="higher"),
        "mse": report.Column("MSE", better="lower"),
    }
    table = report.Table(
        f"{dimensions} dimensions, {len(test):,} test examples, {dataset.name}",
        ["", *(heads[name] for name in scores["flaxae"])],
        [[name, *values.values()] for name, values in scores.items()],
    )
    figures = []
    if dimensions in (2, 3):
        plots.maps(drawn, run.figure("map"), labels=dataset.test_labels, classes=dataset.classes)
        figures.append(("The test examples.", "map"))
    prefixes = {"flaxae": "test", "PCA": "baseline/pca"}
    results = {}
    for name, values in scores.items():
        results |= {f"{prefixes[name]}/{metric}": value for metric, value in values.items()}
    summary = (
        f"{len(np.concatenate(codes)):,} codes of {dimensions} numbers are in {run.folder / 'codes.npz'} and .csv."
    )
    usage = experiments.command("reduce", from_=run.folder, input=_steps.new_file(dataset), output="codes.csv")
    explore = to_explore(model, codes[1], dataset) if dimensions in DECODED else None
    title = f"A map of {dataset.name}"
    _steps.finish(run, title, summary, [table], figures, results, usage, history=history, explore=explore)


def to_explore(model: Autoencoder, codes: np.ndarray, dataset: Dataset) -> report.Explore:
    """The test examples on the map, for the page to explore: coloured by their class, error and columns."""
    test = dataset.scaling(dataset.test[:SCORED])
    made = training.apply(Autoencoder.decode, model, codes[:SCORED])
    colours: dict[str, Sequence[str] | np.ndarray] = {}
    if dataset.test_labels is not None and dataset.classes is not None:
        labels = dataset.test_labels[:SCORED]
        colours["class"] = [dataset.classes[label] if label >= 0 else "none" for label in labels]
    colours["reconstruction error"] = np.square(made - test).reshape(len(test), -1).mean(axis=1)
    is_image = dataset.kind == "image"
    columns = dataset.columns or ()
    if not is_image:
        test, made = dataset.test[:SCORED], dataset.scaling.undo(made)
        if dataset.kind == "tabular":
            colours |= {name: test[:, i] for i, name in enumerate(columns[:COLOURED])}
    rows = range(len(test)) if dataset.test_rows is None else dataset.test_rows[: len(test)]
    names = [f"row {row}" for row in rows] if dataset.test_files is None else dataset.test_files[: len(test)].tolist()
    low, high = codes.min(axis=0), codes.max(axis=0)
    axes = np.linspace(low, high, DECODED[codes.shape[1]], dtype=np.float32).T
    slowest_first = np.meshgrid(*axes[::-1], indexing="ij")
    steps = np.stack(slowest_first[::-1], axis=-1).reshape(-1, len(axes))
    decoded = training.apply(Autoencoder.decode, model, steps) if is_image else None
    return report.Explore(codes[:SCORED], names, colours, test, made, columns, decoded)


def principal_components(train: np.ndarray, test: np.ndarray, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """Both parts projected on the first principal components of the training part."""
    pca = PCA(dimensions, random_state=0).fit(train.reshape(len(train), -1))
    return pca.transform(train.reshape(len(train), -1)), pca.transform(test.reshape(len(test), -1))


def score(
    train: np.ndarray, test: np.ndarray, dataset: Dataset, error: float, *, known: np.ndarray | None = None
) -> dict[str, float]:
    """Scores of a map: trustworthiness (are neighbours in the map neighbours in the data?), class accuracy, and MSE.

    Trustworthiness (Venna & Kaski 2001), at most 1, is measured on the first `SCORED` test examples. For the accuracy,
    the `NEIGHBOURS` nearest training examples in the map vote for the class of each test example. The normalised mutual
    information is that of the classes and of as many clusters of the map by k-means. `known` are the labels of `train`,
    by default those of the whole training part.
    """
    x = dataset.scaling(dataset.test[:SCORED])
    neighbours = min(NEIGHBOURS, (len(x) - 1) // 2)
    scores = {}
    if neighbours >= 1:
        scores["trustworthiness"] = trustworthiness(x.reshape(len(x), -1), test[:SCORED], n_neighbors=neighbours)
    known = dataset.train_labels if known is None else known
    if known is not None and dataset.test_labels is not None:
        nearest = KNeighborsClassifier(min(NEIGHBOURS, len(train))).fit(train, known)
        scores["knn_accuracy"] = nearest.score(test, dataset.test_labels)
        scores["kmeans_nmi"] = finetuning.cluster(test, dataset.test_labels).nmi
    return {name: float(value) for name, value in {**scores, "mse": error}.items()}


def write(run: Run, train: np.ndarray, test: np.ndarray, dataset: Dataset) -> None:
    """Write codes.npz (train, test, and their labels) and codes.csv (training examples, then test examples)."""
    labels = {"train_labels": dataset.train_labels, "test_labels": dataset.test_labels}
    known = {name: values for name, values in labels.items() if values is not None}
    with atomic.replacing(run.folder / "codes.npz") as unfinished:
        np.savez(unfinished, train=train, test=test, **known)
    columns = [f"z{i}" for i in range(train.shape[1])]
    table = np.concatenate([train, test])
    if len(known) == 2:
        names = np.array(dataset.classes, object)[np.concatenate(list(known.values()))]
        columns, table = [*columns, "label"], np.column_stack([table.astype(object), names])
    data.write(run.folder / "codes.csv", table, columns=columns)
