"""Finetune: pre-train on all examples, learn to classify from a few labels, and show what the pre-training bought.

    python run.py --exp finetune --labels 100

pre-trains on the embedded MNIST without its labels. It then compares classifiers for 10 labels up to all of them, over
several draws of the labels: logistic regression on pixels, on principal components and on the code (a linear probe),
the encoder trained from scratch, and the encoder fine-tuned. With `--labels` labels it also runs the strongest recipe
(`flaxae.finetuning.distil`): the labels are propagated over the neighbour graph of the codes, with the vote of a kernel
probe where that errs less, and it trains on the result; of tables, on what a random forest and a linear probe of the
code say of all rows. It takes eight minutes of CPU time. Any labelled table, or folder of images with a folder for each
class, will do: `--data leaves/`, `--data customers.csv --label segment`. In training, images are transformed at random
(`--model` names another preset), and rows of tables are corrupted.

    python run.py --exp finetune --from runs/reconstruct/1 --data mnist --labels 100

starts from the encoder of any run. A finished run classifies new data:

    python run.py --exp finetune --from runs/finetune/1 --input new.npy --output classes.csv
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from flax import nnx
from sklearn.decomposition import PCA

from flaxae import autoencoder, data, experiments, finetuning, runs, trained, training
from flaxae.autoencoder import Autoencoder
from flaxae.data import Dataset, images
from flaxae.errors import ConfigError, DataError
from flaxae.experiments import _flags, _steps
from flaxae.finetuning import Classifier, FineTuning
from flaxae.printing import say
from flaxae.runs import Run, plots, report
from flaxae.trained import Trained, TrainedClassifier, load
from flaxae.training import checkpoints

COUNTS = (10, 100, 1000)  # numbers of labels to compare at, besides --labels and all of them
STEPS = 300  # the least number of steps of fine-tuning; and at least so many passes over the labelled examples:
PASSES = 2
DISTILLATION_STEPS = 1000
VIEWS = 4  # how many transformed versions codes and probabilities are averaged over
SCRATCH_RATE = 3e-3
ERROR_TICKS = (0, 0.5, 1, 2, 5, 10, 20, 50, 100)
METHODS = ("raw + logistic", "PCA + logistic", "from scratch", "linear probe", "fine-tuned")
FOREST = "raw + forest"  # of tables as well
DISTILLED = "voted, distilled"  # the strongest recipe


def apply(config: _flags.Finetune) -> None:
    """Classify --input with the classifier of --from, and write each class with its probability to --output."""
    loaded = load(config.from_)
    if not isinstance(loaded, TrainedClassifier):
        raise ConfigError(f"{config.from_} is no run of --exp finetune; it has no classifier.")
    found = None
    if images.holds(config.input):
        found = _steps.of_images(config, loaded.trained, Classifier.probabilities, loaded.classifier)
        probabilities = found.made
    else:
        probabilities = loaded.probabilities(loaded.trained.read(config.input))
    names = np.array(loaded.classes, object)[probabilities.argmax(axis=1)]
    table, columns = [names, probabilities.max(axis=1).astype(object)], ["class", "probability"]
    if found is not None:
        table, columns = [found.names, *table], ["file", *columns]
    data.write(config.output, np.column_stack(table), columns=columns)
    if found is not None:
        found.images.check()
    say(f"Wrote the classes of {config.input} into {config.output}.")


def save(run: Run, part: str, model: nnx.Module) -> None:
    """Save a trained model as `part` of the run's checkpoints."""
    checkpoints.save(run.checkpoints / part, 0, nnx.split(model, nnx.Param, ...)[1:], keep=1)


def train(config: _flags.Finetune) -> None:
    """Pre-train, or take the encoder of --from, and compare all classifiers, in a run's folder."""
    dataset = _steps.whole(_steps.load(config), config)
    if dataset.train_labels is None or dataset.test_labels is None:
        raise DataError(f"{config.data} has no labels to learn from. Name a table's column by --label.")
    if len(dataset.classes) < 2:
        raise DataError(f"{config.data} has one class, {dataset.classes[0]!r}; two at least are needed to tell apart.")
    numbers_of_labels(config.labels, dataset)
    if config.model is None:
        config = dataclasses.replace(config, model="transformed" if dataset.kind == "image" else "denoising")
    start = None
    if config.from_ is None:
        preset = _steps.preset(config, dataset)
    else:
        start, preset = pretrained(config, dataset)
        dataset = dataclasses.replace(dataset, scaling=start.scaling)
    about = {"classes": list(dataset.classes), "from": str(config.from_)}
    with _steps.start("finetune", config, dataset, preset, **about) as run:
        if start is None:
            model, history = _steps.train(config, run, dataset, preset)
        else:
            model, history = start.model, None
            save(run, "best", model)
        compare(config, run, dataset, preset, model, history)
    dataset.check()


def pretrained(config: _flags.Finetune, dataset: Dataset) -> tuple[Trained, autoencoder.Config]:
    """The autoencoder of the run --from, and its config."""
    start = trained.autoencoder_of(config.from_)
    if start.shape != dataset.shape:
        raise ConfigError(f"{config.from_} is of examples of shape {start.shape}; these are {dataset.shape}.")
    return start, autoencoder.Config.from_dict(runs.open(config.from_).config["model"])


def compare(
    config: _flags.Finetune,
    run: Run,
    dataset: Dataset,
    preset: autoencoder.Config,
    model: Autoencoder,
    history: dict[str, list[float]] | None,
) -> None:
    """Measure every classifier at every number of labels; write the figures, results.json and the report."""
    given = features(dataset, model)
    kept = frozen(given, dataset)
    counts = numbers_of_labels(config.labels, dataset)
    compared = (*METHODS, FOREST) if dataset.kind == "tabular" else METHODS
    errors = {}
    for count in counts:
        errors[count] = kept_errors(
            config, run, count, compared, lambda n: errors_at(config, n, dataset, given, preset, model)
        )
        means = ", ".join(f"{name} {np.mean(values):.2f}" for name, values in errors[count].items())
        say(f"{count:,} labels, test error (%): {means}")
    distilled, classifier = learn(config, run, dataset, model)
    save(run, "classifier", classifier)
    errors[config.labels][DISTILLED] = distilled
    methods = list(errors[config.labels])

    table = report.Table(
        f"Test error (%) by the number of labels, mean ± deviation over {config.draws} draws, {dataset.name}",
        ["", *(f"{count:,}" for count in counts)],
        [[name, *(spread(errors[count].get(name)) for count in counts)] for name in methods],
    )
    codes = report.Table(
        f"Accuracy on frozen codes, all {len(dataset.train):,} labels, {len(dataset.test):,} test examples",
        [
            "",
            report.Column("5-NN", better="higher"),
            report.Column("linear probe", better="higher"),
            report.Column("k-means", better="higher"),
            report.Column("its NMI", better="higher"),
        ],
        [[name, *values.values()] for name, values in kept.items()],
    )
    draw_errors({name: {n: errors[n][name] for n in counts if name in errors[n]} for name in methods}, run)
    figures = [("Test error against the number of labels; bars are deviations over draws.", "errors")]
    results = {f"frozen/{metric}": value for metric, value in kept["code"].items()}
    for count in counts:
        for name, values in errors[count].items():
            key = "_".join(re.findall(r"\w+", name)) + f"/{count}"
            results[f"test/error_percent/{key}"] = np.mean(values)
            if len(values) > 1:
                results[f"test/error_deviation/{key}"] = np.std(values, ddof=1)
    clear = [
        f"{count:,}" for count in counts if clearly_below(errors[count]["fine-tuned"], errors[count]["from scratch"])
    ]
    summary = (
        f"With {config.labels} of {len(dataset.train):,} labels, spread over all examples and learnt from, "
        f"{np.mean(distilled):.2f} % of {len(dataset.test):,} test examples are misclassified; by an encoder trained "
        f"from scratch on these labels, {np.mean(errors[config.labels]['from scratch']):.2f} %.\n\n"
        "Fine-tuned beats from scratch by more than two standard errors of the difference at "
        f"{', '.join(clear) or 'no number of'} labels."
    )
    new = _steps.new_file(dataset)
    usage = experiments.command("finetune", from_=run.folder, input=new, output="classes.csv")
    title = f"Few labels of {dataset.name}"
    _steps.finish(run, title, summary, [table, codes], figures, results, usage, history=history)


def numbers_of_labels(asked: int, dataset: Dataset) -> list[int]:
    """The numbers of labels to compare at: at least one per class, at most all."""
    known = int(np.count_nonzero(dataset.train_labels >= 0))
    classes = len(np.unique(dataset.train_labels))
    if not classes <= asked <= known:
        raise ConfigError(f"--labels is {asked}; of {known} labels in {classes} classes, ask for {classes} to {known}.")
    return sorted({count for count in (*COUNTS, asked) if classes <= count < known} | {known})


def features(dataset: Dataset, model: Autoencoder) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The inputs to compare classifiers on, for training and test examples: values, principal components, codes."""
    parts = [dataset.scaling(part) for part in (dataset.train, dataset.test)]
    codes = [training.apply(Autoencoder.encode, model, part) for part in parts]
    raw = [part.reshape(len(part), -1) for part in parts]
    pca = PCA(min(codes[0].shape[1], *raw[0].shape), random_state=0).fit(raw[0])
    return {"raw": tuple(raw), "PCA": tuple(map(pca.transform, raw)), "code": tuple(codes)}


def frozen(given: dict[str, tuple[np.ndarray, np.ndarray]], dataset: Dataset) -> dict[str, dict[str, float]]:
    """How well frozen codes, and as many principal components, separate the classes, with all labels."""
    y, new_y = dataset.train_labels, dataset.test_labels
    measured = {}
    for name in ("code", "PCA"):
        z, new_z = given[name]
        clusters = finetuning.cluster(z, y)
        measured[name] = {
            "knn_accuracy": finetuning.knn_accuracy(z, y, new_z, new_y, k=min(5, len(z))),
            "probe_accuracy": float((finetuning.linear_probe(z, y).predict(new_z) == new_y).mean()),
            "kmeans_accuracy": clusters.accuracy,
            "kmeans_nmi": clusters.nmi,
        }
    return measured


def kept_errors(
    config: _flags.Finetune,
    run: Run,
    count: int,
    methods: tuple[str, ...],
    measure: Callable[[int], dict[str, list[float]]],
) -> dict[str, list[float]]:
    """The errors of those methods that `measure` gives for `count` labels, or those that a resumed run has saved."""
    folder = run.checkpoints / f"errors-{count}"
    if config.resume and checkpoints.steps(folder):
        draws = checkpoints.known(folder, 0).get("draws", 0)  # none of a damaged step, which `restore` names
        kept = checkpoints.restore(folder, np.zeros((len(methods), draws)))[1]
        return dict(zip(methods, kept.tolist(), strict=True))
    found = measure(count)
    values = np.array([found[method] for method in methods])
    checkpoints.save(folder, 0, values, keep=1, about={"draws": values.shape[1]})
    return found


def errors_at(
    config: _flags.Finetune,
    count: int,
    dataset: Dataset,
    given: dict[str, tuple[np.ndarray, np.ndarray]],
    preset: autoencoder.Config,
    model: Autoencoder,
) -> dict[str, list[float]]:
    """Test errors (%) of every classifier with `count` labels, one for each draw; for all labels there is one draw."""
    x, new = (dataset.scaling(part) for part in (dataset.train, dataset.test))
    classes, latent = len(dataset.classes), given["code"][0].shape[1]
    draws = labels_drawn(dataset, count, config.draws if count < len(x) else 1)
    probes = {
        name: [finetuning.linear_probe(train, labels, classes=classes) for labels in draws]
        for name, (train, _) in given.items()
    }

    def probed(name: str) -> list[float]:
        return [wrong(probe.predict(given[name][1]), dataset) for probe in probes[name]]

    def trained(classifiers: list[Classifier], plan: FineTuning) -> list[float]:
        finetuning.fit(classifiers, x, finetuning.supervised(draws, classes), plan, seed=config.seed)
        return [wrong(training.apply(Classifier.__call__, own, new).argmax(axis=1), dataset) for own in classifiers]

    def by_forest() -> list[float]:
        train, test = given["raw"]
        return [wrong(finetuning.forest(train, labels).predict(test), dataset) for labels in draws]

    plan = fine_tuning(model, count)
    blank = [autoencoder.build(preset, dataset.shape, seed=1 + i) for i in range(len(draws))]
    scratch = [Classifier(own, latent, classes, rngs=nnx.Rngs(i)) for i, own in enumerate(blank)]
    tuned = [finetuning.on_probe(model, probe) for probe in probes["code"]]
    return {
        "raw + logistic": probed("raw"),
        "PCA + logistic": probed("PCA"),
        "from scratch": trained(scratch, dataclasses.replace(plan, learning_rate=SCRATCH_RATE, layer_decay=1.0)),
        "linear probe": probed("code"),
        "fine-tuned": trained(tuned, plan),
        **({FOREST: by_forest()} if dataset.kind == "tabular" else {}),
    }


def wrong(predicted: np.ndarray, dataset: Dataset) -> float:
    """The percentage of test examples that are misclassified."""
    return 100 * float((predicted != dataset.test_labels).mean())


def labels_drawn(dataset: Dataset, count: int, draws: int) -> list[np.ndarray]:
    return [finetuning.draw(dataset.train_labels, count, seed=seed) for seed in range(draws)]


def fine_tuning(model: Autoencoder, count: int) -> FineTuning:
    """The plan for so many labels. Inputs are corrupted as in pre-training: images transformed, values hidden."""
    return FineTuning(
        steps=max(STEPS, PASSES * count // FineTuning.batch_size),
        layer_decay=0.7,
        corruption=model.spec("corruption"),
    )


def learn(config: _flags.Finetune, run: Run, dataset: Dataset, model: Autoencoder) -> tuple[list[float], Classifier]:
    """Test errors (%) of the strongest recipe, one for each draw of labels, and the classifier of the first draw."""
    plan = dataclasses.replace(
        fine_tuning(model, config.labels),
        steps=DISTILLATION_STEPS,
        batch_size=128,
        learning_rate=2e-3,
        layer_decay=1.0,
        ema=0.995,
    )
    draws = labels_drawn(dataset, config.labels, config.draws)
    x, new = (dataset.scaling(part) for part in (dataset.train, dataset.test))
    folder, classes = run.checkpoints / "distilled", len(dataset.classes)
    voted: dict[str, Any] = {}
    if dataset.kind == "tabular":
        z = training.apply(Autoencoder.encode, model, x)
        found = [finetuning.tabular_vote(x, z, labels, classes=classes, seed=config.seed) for labels in draws]
        voted = {"found": found, "targets": finetuning.soft}
    classifiers, _ = finetuning.distil(
        model,
        x,
        draws,
        plan,
        classes=classes,
        views=VIEWS,
        **voted,
        seed=config.seed,
        folder=folder,
        resume=config.resume and checkpoints.begun(folder),
    )
    predicted = [finetuning.predict(own, new, plan.views(VIEWS)) for own in classifiers]
    return [wrong(own.argmax(axis=1), dataset) for own in predicted], classifiers[0]


def clearly_below(values: list[float], others: list[float]) -> bool:
    """Whether the mean is lower by more than two standard errors of the difference; False with one draw each."""
    if min(len(values), len(others)) < 2:
        return False
    error = np.sqrt(sum(np.var(each, ddof=1) / len(each) for each in (values, others)))
    return bool(np.mean(others) - np.mean(values) > 2 * error)


def spread(values: list[float] | None) -> str:
    """Mean ± standard deviation; with one draw, the value alone."""
    if values is None:
        return "–"
    return f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")


def draw_errors(errors: dict[str, dict[int, list[float]]], run: Run) -> None:
    """Draw the test error over the number of labels, one line per classifier, and the strongest recipe as a marker."""
    counts = sorted({count for by_count in errors.values() for count in by_count})
    with plots.figure_style():
        figure = plots.new_figure(8.0, 5.5)
        axes = figure.add_subplot()
        colours = (*plots.COLOURS, "#1a1a1a", "#56b4e9")[: len(errors)]
        for colour, (name, by_count) in zip(colours, errors.items(), strict=True):
            means = [np.mean(values) for values in by_count.values()]
            deviations = [np.std(values, ddof=min(1, len(values) - 1)) for values in by_count.values()]
            style = {"fmt": "*", "markersize": 13} if name == DISTILLED else {"fmt": "o-", "markersize": 5}
            axes.errorbar(list(by_count), means, deviations, color=colour, label=name, capsize=3, **style)
        axes.set(xscale="log", xlabel="labels", ylabel="test error (%)")
        axes.set_yscale("symlog", linthresh=0.5, linscale=0.4)
        axes.set_ylim(bottom=0)
        axes.set_yticks([tick for tick in ERROR_TICKS if tick <= axes.get_ylim()[1]])
        axes.set_xticks(counts, [f"{count:,}" for count in counts])
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.legend()
        plots.save_figure(figure, run.figure("errors"))
