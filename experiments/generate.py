"""Generate: new examples from an autoencoder and a density of its codes, and how good they are.

    python run.py --exp generate

trains an autoencoder on the embedded MNIST, fits a mixture to its codes, with components of its own for each class,
and draws samples, in five to six minutes on two CPU cores. It compares them with test images in the features of
a small classifier (Fréchet distance, KID, precision, recall), and shows them beside the nearest training images. A
trained run of any experiment is sampled by

    python run.py --exp generate --from runs/generate/1 --output samples.npy --count 1000

With `--label 7 --count 40`, it draws forty sevens. `--model variational` also estimates the likelihood of test examples
in nats; for images, with pixels binarised at random in every pass. For the likelihood as papers quote it:
`--epochs 300 --draws 5000 --scored 10000`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from scipy import stats

from flaxae import autoencoder, data, density, experiments, generation, objectives, trained, training
from flaxae.autoencoder import Autoencoder
from flaxae.data import Dataset
from flaxae.experiments import _flags, _steps, _sweep
from flaxae.generation import CodePrior, FeatureSpace, Quality, tables
from flaxae.nn import heads
from flaxae.nn.heads import Hierarchical, HierarchicalHead, Variational
from flaxae.nn.mixer import Mixer
from flaxae.objectives import Binarised
from flaxae.parallel import processes
from flaxae.printing import say
from flaxae.runs import Run, plots
from flaxae.runs.report import Column, Table
from flaxae.training import History

COLUMNS, ROWS = 10, 5
LATENTS = {"mixer": 192, "vanilla": 128}  # of the default models: samples are as sharp as what these reconstruct
JUDGED = 10_000  # samples, and test examples, that are compared
MIXER_EPOCHS = 7  # in batches of 128: samples are as good as after ten in batches of 256
IMAGES_EACH = 15  # for each component of the prior; for rows of a table so few would give single ones away
MIXED = 128  # pixels a side up to which patches are mixed: larger ones would have to be coarse
MOST_PATCHES = 8  # of the default model, down and across: the time grows with the square of their number
MOST_CLASSES = 100  # of labels that a prior has components for
IN_USE = 0.01  # nats of KL above which a latent is in use (Burda et al. 2016 find the same latents by their variance)


def apply(config: _flags.Generate) -> None:
    """Draw --count samples from the model of --from, and write them to --output."""
    model = trained.autoencoder_of(config.from_)
    if model.prior is None and not isinstance(model.model.head, heads.Probabilistic):
        model = prior_on_data(config, model)
    drawn = model.sample(config.count, label=config.label, seed=config.seed)
    if model.kind == "image" and not config.output.suffix:
        data.write(config.output, {f"{i}.png": image for i, image in enumerate(drawn)})
    else:
        data.write(config.output, drawn, columns=model.columns, encoding=model.encoding)
    say(f"Drew {config.count:,} samples into {config.output}.")


def prior_on_data(config: _flags.Generate, model: trained.Trained) -> trained.Trained:
    """The model of a run without a prior, with one fitted to its codes of --data."""
    source = dataclasses.replace(config, label=None)
    dataset = _steps.in_memory(_steps.whole(_steps.load(source), source))
    say(f"{config.from_} has no prior yet: it is fitted to the codes of {dataset.name} (--data).")
    components = config.components or default_components(dataset)
    return model.with_prior(dataset.train, *known_classes(dataset), components=components, seed=config.seed)


def known_classes(dataset: Dataset) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """The training labels and the names of the classes; none if there are none, or a class for hardly any example."""
    labels, classes = dataset.train_labels, dataset.classes
    if labels is None or classes is None or not 1 < len(classes) <= MOST_CLASSES or len(labels) != len(dataset.train):
        return None, ()
    return labels, classes


def train(config: _flags.Generate) -> None:
    """Train and evaluate in a run's folder."""
    dataset = _steps.whole(_steps.load(config), config)
    by_default = config.model is None
    if config.model is None:
        config = dataclasses.replace(config, model=default_model(dataset))
    model = _steps.preset(config, dataset, latent=config.latent or LATENTS.get(config.model))
    if by_default and isinstance(model.body, Mixer):
        model = dataclasses.replace(model, body=in_patches(model.body, dataset.shape))
    binarise = config.binarise and dataset.kind == "image" and probabilistic(model)
    if binarise:
        model = dataclasses.replace(model, objective=Binarised(model.objective))
    with _steps.start("generate", config, dataset, model) as run:
        if config.sweep:
            _sweep.compare(config, run, dataset, model, measure(model))
            fit_prior(config, run, trained.autoencoder_of(run.folder).model, _steps.in_memory(dataset))
            return
        least = MIXER_EPOCHS if isinstance(model.body, Mixer) else _steps.EPOCHS
        network, history = _steps.train(config, run, dataset, model, least=least)
        processes.leave_to_first()
        evaluate(config, run, network, history, _steps.in_memory(dataset), binarise=binarise)
    dataset.check()


def default_model(dataset: Dataset) -> str:
    """The preset whose samples are best for data of that kind."""
    if dataset.kind == "tabular":
        return "variational"
    is_image = dataset.kind == "image" and min(dataset.shape[:2]) >= generation.quality.SIDES
    return "mixer" if is_image and max(dataset.shape[:2]) <= MIXED else "vanilla"


def in_patches(body: Mixer, shape: tuple[int, ...]) -> Mixer:
    """The body for images of that shape, in at most `MOST_PATCHES` each way."""
    return dataclasses.replace(body, patch=max(body.patch, math.ceil(max(shape[:2]) / MOST_PATCHES)))


def default_components(dataset: Dataset) -> int | None:
    """Components of the prior; None for as many as `CodePrior.fit` takes."""
    if dataset.kind != "image":
        return None
    return max(1, min(generation.prior.MOST_COMPONENTS, len(dataset.train) // IMAGES_EACH))


def measure(model: autoencoder.Config) -> _sweep.Measure:
    """The measure of a sweep: −ELBO at β = 1, whatever β the model was trained with; without a prior, the error."""
    if not probabilistic(model):
        return _sweep.reconstruction()
    bound = objectives.ImportanceWeighted(samples=1)  # with a single sample, it is the ELBO
    objective = objectives.Binarised(bound) if isinstance(model.objective, objectives.Binarised) else bound
    return _sweep.Measure(objective, "negative_elbo_nats", "−ELBO (nats)")


def probabilistic(model: autoencoder.Config) -> bool:
    """Whether the model has a likelihood, because its head is one of those with q(z | x) and p(z)."""
    return isinstance(model.head, Variational | Hierarchical)


def evaluate(
    config: _flags.Generate, run: Run, model: Autoencoder, history: History, dataset: Dataset, *, binarise: bool
) -> None:
    """Fit the prior, draw samples and judge them; measure the likelihood; write results.json and the report."""

    def decode(z: np.ndarray) -> np.ndarray:
        return np.asarray(model.decode(np.asarray(z, np.float32)))

    labels, classes = known_classes(dataset)
    x = dataset.scaling(dataset.train)
    prior = fit_prior(config, run, model, dataset)
    draw = grid if dataset.kind == "image" else curves
    samples = generation.sample(model, prior, max(ROWS * COLUMNS, min(JUDGED, len(dataset.test))), seed=config.seed)
    data.write(
        run.folder / ("samples.csv" if dataset.kind == "tabular" else "samples.npy"),
        dataset.scaling.undo(samples[: ROWS * COLUMNS]),
        columns=dataset.columns,
        encoding=dataset.encoding,
    )
    draw(shown(config, model, prior, samples), run, "samples")
    draw(interpolations(model, dataset, decode), run, "interpolations")
    draw(beside_nearest(samples, x), run, "nearest")
    figures = [
        ("Samples." if not classes else "Samples of each class.", "samples"),
        ("Samples, and below each the training example that is nearest to it.", "nearest"),
        ("From one test example, left, to another, in equal steps of the code.", "interpolations"),
    ]
    space = feature_space(config, model, x, labels, classes)
    table, results = judged(config, model, dataset, samples, space)
    made, summary = (
        [table],
        f"Samples are drawn from a mixture fitted to the codes; {ROWS * COLUMNS} of them ",
    )
    summary += f"are in {run.folder}."
    if dataset.kind == "tabular":
        table, found = rows_judged(dataset, samples)
        made, results = [*made, table], results | found
    if isinstance(model.head, heads.Probabilistic):
        scores, kl = likelihood(config, model, dataset, binarise=binarise)
        of_levels = isinstance(model.head, HierarchicalHead)
        parts = "levels" if of_levels else "latents"
        plots.bars(kl, run.figure("kl"), x_label=parts, y_label="KL (nats)")
        figures.append((f"What each of the {parts} tells of an example, on average.", "kl"))
        made.append(likelihood_table(config, dataset, scores))
        results |= {f"test/{name}": value for name, value in scores.items()}
        summary += (
            f" −log p(x) of test examples is {scores['nll_nats']:.2f} nats, {scores['latents_in_use']} of {kl.size} "
            f"{parts} are in use."
        )
        if kl.size == 2 and not of_levels:
            draw(latent_map(decode), run, "map")
            figures.append(("The code's plane: quantiles 5 to 95 % of both latents.", "map"))
    usage = experiments.command("generate", from_=run.folder, output=_steps.new_file(dataset, "samples"))
    _steps.finish(run, f"Generating {dataset.name}", summary, made, figures, results, usage, history=history)


def fit_prior(config: _flags.Generate, run: Run, model: Autoencoder, dataset: Dataset) -> CodePrior:
    """A prior of the codes of the training examples, saved as a part of the run."""
    x = dataset.scaling(dataset.train)
    components = config.components or default_components(dataset)
    prior = generation.fit(model, x, *known_classes(dataset), components=components, seed=config.seed)
    prior.save(run.folder / trained.PRIOR)
    return prior


def shown(config: _flags.Generate, model: Autoencoder, prior: CodePrior, samples: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of samples for the figure: one for each class if the prior knows some, up to twice `ROWS`."""
    if not prior.classes:
        return {str(row + 1): samples[row * COLUMNS : (row + 1) * COLUMNS] for row in range(ROWS)}
    named = [prior.classes[index] for index in np.unique(prior.of_class)][: 2 * ROWS]
    return {name: generation.sample(model, prior, COLUMNS, label=name, seed=config.seed) for name in named}


def beside_nearest(samples: np.ndarray, x: np.ndarray) -> dict[str, np.ndarray]:
    """Samples, and the training examples nearest to them."""
    some = samples[:COLUMNS]
    return {"Samples": some, "Nearest": x[generation.nearest(some, x)[0]]}


def feature_space(
    config: _flags.Generate, model: Autoencoder, x: np.ndarray, labels: np.ndarray | None, classes: tuple[str, ...]
) -> FeatureSpace:
    """The features that samples are judged in: of a classifier if there are labels, else the model's own code."""
    if labels is None:
        return generation.of_codes(model, x)
    say("Trains a small classifier, in whose features the samples are judged.")
    return generation.learn(x, labels, len(classes), seed=config.seed)


NAMES = {
    "frechet_distance": Column("Fréchet", better="lower"),
    "kernel_distance": Column("KID·10³", better="lower"),
    "precision": Column("precision", better="higher"),
    "recall": Column("recall", better="higher"),
    "confident": Column("named", better="higher"),
}


def judged(
    config: _flags.Generate, model: Autoencoder, dataset: Dataset, samples: np.ndarray, space: FeatureSpace
) -> tuple[Table, dict[str, float]]:
    """Samples compared with test examples, beside as many training examples and reconstructions of test examples."""
    x, test = dataset.scaling(dataset.train), dataset.scaling(dataset.test[:JUDGED])
    some = x[np.random.default_rng(config.seed).permutation(len(x))[: len(samples)]]
    kinds = {
        "samples": samples,
        "reconstruction": training.apply(Autoencoder.reconstruct, model, test),
        "training": some,
    }
    if isinstance(model.head, heads.Probabilistic):
        kinds["standard_prior"] = np.asarray(generation.sample(model, None, len(samples), seed=config.seed))
    found = {kind: generation.compare(space, examples, test) for kind, examples in kinds.items()}
    far = generation.nearest(samples[:1000], x)[1], generation.nearest(test[:1000], x)[1]
    results = {f"{kind}/{name}": value for kind, quality in found.items() for name, value in scores_of(quality).items()}
    results |= {
        "samples/nearest_training": float(np.median(far[0])),
        "test/nearest_training": float(np.median(far[1])),
    }
    heads_shown = [name for name in NAMES if name in scores_of(found["samples"])]
    said = {
        "samples": "samples",
        "standard_prior": "of its own prior",
        "reconstruction": "reconstructions",
        "training": "training data",
    }
    rows = [
        [text, *(scores_of(found[kind])[name] * (1000 if name == "kernel_distance" else 1) for name in heads_shown)]
        for kind, text in said.items()
        if kind in found
    ]
    caption = (
        f"{dataset.name}: {len(samples):,} samples compared with {len(test):,} test examples, in {space.name}. A "
        f"sample is {results['samples/nearest_training']:.3g} from its nearest training example, a test example "
        f"{results['test/nearest_training']:.3g} (medians of the root mean squared difference)"
    )
    return Table(caption, ["", *(NAMES[name] for name in heads_shown)], rows), results


def scores_of(quality: Quality) -> dict[str, float]:
    """The scores that there are, by name."""
    return {name: value for name, value in quality._asdict().items() if value is not None}


def rows_judged(dataset: Dataset, samples: np.ndarray) -> tuple[Table, dict[str, float]]:
    """Synthetic rows of a table beside real ones: columns, correlations, and whether they give training rows away."""
    train, test = dataset.scaling(dataset.train), dataset.scaling(dataset.test)
    snapped = dataset.scaling(as_stored(dataset, samples))
    found = generation.compare_tables(snapped, train, test)
    columns = dataset.columns or tuple(f"column {i}" for i in range(test.shape[1]))
    rows = [
        ["columns: mean Kolmogorov-Smirnov distance", float(found.marginals.mean())],
        *([f"the worst: {name}", value] for name, value in tables.worst(found, columns)),
        ["correlations: mean difference", found.correlations],
        ["distance to the nearest training row, as a multiple of a test row's", found.nearest],
        ["share nearer to a training row than to all test rows (½ without memorisation)", found.closer],
    ]
    results = {
        "samples/marginals": float(found.marginals.mean()),
        "samples/correlations": found.correlations,
        "samples/nearest": found.nearest,
        "samples/closer": found.closer,
    }
    return Table(f"{dataset.name}: {len(samples):,} synthetic rows", ["", "value"], rows), results


def as_stored(dataset: Dataset, samples: np.ndarray) -> np.ndarray:
    """Synthetic rows with the types of the table's columns: categories one of those known, whole numbers whole."""
    values: Any = dataset.scaling.undo(samples)
    return values if dataset.encoding is None else dataset.encoding(dataset.encoding.undo(values))


def likelihood_table(config: _flags.Generate, dataset: Dataset, scores: dict[str, float | int]) -> Table:
    """The likelihood of test examples, as a table."""
    names = {
        "elbo_nats": Column("ELBO (nats)", better="higher"),
        "nll_nats": Column("−log p(x) (nats)", better="lower"),
        "kl_nats": "KL (nats)",
        "latents_in_use": "latents in use",
    }
    caption = f"{dataset.name}, test examples; −log p(x) by {config.draws:,} draws of {config.scored:,} of them"
    return Table(caption, list(names.values()), [[scores[name] for name in names]])


def interpolations(
    model: Autoencoder, dataset: Dataset, decode: Callable[[np.ndarray], np.ndarray]
) -> dict[str, np.ndarray]:
    """The means of p(x | z) along straight lines in the code, between pairs of the first test examples."""
    pairs = min(ROWS, len(dataset.test) // 2)
    codes = training.apply(Autoencoder.encode, model, dataset.scaling(dataset.test[: 2 * pairs]))
    share = np.linspace(0, 1, COLUMNS).reshape(-1, *[1] * (codes.ndim - 1))
    return {str(i + 1): decode((1 - share) * codes[2 * i] + share * codes[2 * i + 1]) for i in range(pairs)}


def latent_map(decode: Callable[[np.ndarray], np.ndarray]) -> dict[str, np.ndarray]:
    """The decoded plane of a 2-D code, on a grid with equal steps of the prior's probability."""
    at = stats.norm.ppf(np.linspace(0.05, 0.95, COLUMNS))
    return {f"{up:+.2f}": decode(np.stack([at, np.full(COLUMNS, up)], axis=1)) for up in at[::-1]}


def likelihood(
    config: _flags.Generate, model: Autoencoder, dataset: Dataset, *, binarise: bool
) -> tuple[dict[str, float | int], np.ndarray]:
    """ELBO, −log p(x) by importance sampling, total KL and the number of latents in use; and each latent's KL. Nats."""
    x = dataset.scaling(dataset.test)
    if binarise:
        x = np.asarray(jax.random.bernoulli(jax.random.key(config.seed), x), np.float32)
    terms = density.elbo(model, x, seed=config.seed)
    nll = density.negative_log_likelihood(model, x[: config.scored], samples=config.draws, seed=config.seed)
    kl = terms.kl.mean(axis=0)
    return {
        "elbo_nats": float(np.mean(terms.log_likelihood) - kl.sum()),
        "nll_nats": float(nll.mean()),
        "kl_nats": float(kl.sum()),
        "latents_in_use": int(np.sum(kl > IN_USE)),
    }, kl


def grid(rows: dict[str, np.ndarray], run: Run, name: str) -> None:
    """Draw rows of images as the run's figure of that name."""
    plots.image_grid(rows, run.figure(name))


def curves(rows: dict[str, np.ndarray], run: Run, name: str) -> None:
    """Draw rows of signals or table rows as the run's figure of that name."""
    plots.line_grid({row: _steps.lines(values) for row, values in rows.items()}, run.figure(name))
