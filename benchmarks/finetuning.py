"""Few labels: what each ingredient of the recipe is worth, step by step, over several draws of the labels.

    python -m benchmarks.finetuning --labels 100 1000

An autoencoder is pre-trained once, on all training images. Each draw has equally many labels of each class. It prints
test errors (%) after each step, as mean ± standard deviation over the draws:

1. a linear probe of the code, and labels propagated over the neighbour graph of the codes, where test images are
   classified by a vote of their neighbours; on codes, and on codes that are means over transformed views;
2. a classifier on the encoder, trained on the propagated labels (`finetuning.distil`); its probabilities alone, and
   averaged over transformed views;
3. further rounds: labels propagated over the graph of its codes, and trained on again. Some three minutes each.

Earlier trials, ranked by test errors, showed that transform-denoising and propagation are strong. Their settings were
then chosen on other draws, without test images and with no more labels than a draw has: by how well the predictions
learned from one half of a draw's labels agree with those from the other half on the training images (`--halves`). The
length, four rounds of 3,000 steps, is the second that was tried, after two rounds of 2,000.

The images are transformed at random (±15°, ±12 %, shear ±.2, ±2 pixels, elastic, cut-out), in pre-training and in
fine-tuning, so figures of methods without augmentation can't be compared with these. `--pretraining masked_pixels`
hides values instead, `--pretraining denoising` adds noise. `--frozen` prints the accuracy of neighbours, of a probe and
of k-means on the codes; whitening for k-means was chosen among four scalings of MNIST's codes by these accuracies.

    python -m benchmarks.finetuning --ingredients --labels 100

prints the error of the recipe, shortened to one round; then of the recipe without each of its ingredients in turn, or
with another in its place; then of three recipes that never transform an image, so that the order of the pixels doesn't
matter to them.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence

import numpy as np
import tyro
from flax import nnx

from flaxae import autoencoder, corruptions, data, finetuning, presets, training
from flaxae.autoencoder import Autoencoder
from flaxae.data import Dataset
from flaxae.experiments import finetune
from flaxae.finetuning import FineTuning, Labels, Probabilities, Targets, propagation
from flaxae.training import checkpoints

PRETRAINING: dict[str, Callable[[], autoencoder.Config]] = {
    **presets.PRESETS,
    "reconstruction": lambda: dataclasses.replace(presets.transformed(), corruption=None),
    "masked_pixels": lambda: dataclasses.replace(presets.masked(), corruption=corruptions.Masking(0.5)),
}
LONG = {"epochs": 30, "steps": 3000, "rounds": 4}
SHORT = {"epochs": 10, "steps": 600, "rounds": 1}  # the recipe for --ingredients


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    labels: tuple[int, ...] = (100, 1000)
    """Numbers of labels."""
    draws: int = 5
    """How many draws of the labels; at least 2."""
    data: str = "mnist"
    """`mnist`, or a folder of IDX files."""
    pretraining: str = "transformed"
    """What to pre-train, a name in `PRETRAINING`."""
    epochs: int | None = None
    """Epochs of pre-training; by default 30, or 10 with --ingredients."""
    steps: int | None = None
    """Steps of a round of distillation, with 128 images each; by default 3000, or 600 with --ingredients."""
    views: int = 4
    """How many transformed versions codes and probabilities are averaged over, besides the image itself."""
    rounds: int | None = None
    """Rounds of distillation; by default 4, or 1 with --ingredients."""
    ingredients: bool = False
    """Print what leaving out each ingredient of the recipe does."""
    only: tuple[str, ...] = ()
    """With --ingredients: only rows whose names have one of these words, and the recipe itself; by default all."""
    frozen: bool = False
    """Only print how well the frozen codes separate the classes, given all labels."""
    halves: bool = False
    """Print how well the two halves of each draw agree after each step, and no test error."""
    folder: pathlib.Path = pathlib.Path("runs/benchmarks/finetuning")
    """Where to keep the pre-trained autoencoders for the next time."""


def main(config: Config) -> None:
    usual = SHORT if config.ingredients else LONG
    config = dataclasses.replace(config, **{name: usual[name] for name in usual if getattr(config, name) is None})
    dataset = data.load(config.data)
    x = dataset.scaling(dataset.train)
    if config.ingredients:
        for count in config.labels:
            compare(config, dataset, x, count)
        return
    began = time.perf_counter()
    model = pretrained(config, config.pretraining, dataset, x)
    print(
        f"{dataset.name}: {config.pretraining}, {config.epochs} epochs, {time.perf_counter() - began:.0f} s", flush=True
    )
    if config.frozen:
        features = finetune.features(dataset, model)
        for name, kept in finetune.frozen(features, dataset).items():
            print(f"{name:6s}", "  ".join(f"{metric} {value:.4f}" for metric, value in kept.items()), flush=True)
        codes = features["code"][0]
        smoothed = propagation.smooth(codes, propagation.neighbours(codes))
        for name, kept in (("whitened", finetuning.whiten(codes)), ("smoothed over their neighbours", smoothed)):
            clusters = finetuning.cluster(kept, dataset.train_labels)
            print(f"codes {name}: kmeans_accuracy {clusters.accuracy:.4f}  nmi {clusters.nmi:.4f}", flush=True)
        return
    for count in config.labels:
        measure(config, dataset, x, model, count)


def pretrained(config: Config, pretraining: str, dataset: Dataset, x: np.ndarray) -> Autoencoder:
    """The pre-trained autoencoder, trained now or read from the folder."""
    model = autoencoder.build(PRETRAINING[pretraining](), dataset.shape)
    folder = config.folder / f"{dataset.name}-{pretraining}-{config.epochs}"
    weights = nnx.split(model, nnx.Param, ...)[1:]
    if folder.exists():
        nnx.update(model, *checkpoints.restore(folder, weights)[1])
        return model
    training.fit(
        model,
        x,
        epochs=config.epochs,
        batch_size=128,
        learning_rate=4e-3,
        weight_decay=1e-2,
        validation=0.0,
        show=False,
    )
    checkpoints.save(folder, config.epochs, nnx.split(model, nnx.Param, ...)[1:])
    return model


def plan_for(config: Config, pretraining: str) -> FineTuning:
    """The plan of a round, with the corruption of the pre-training."""
    preset = PRETRAINING[pretraining]()
    return FineTuning(
        steps=config.steps,
        batch_size=128,
        learning_rate=2e-3,
        corruption=preset.corruption,
        ema=0.995,
    )


def drawn(config: Config, dataset: Dataset, count: int) -> list[Labels]:
    """The labels of each draw; with `--halves`, its two halves one after the other."""
    draws = [finetuning.draw(dataset.train_labels, count, seed=seed) for seed in range(config.draws)]
    return [half for labels in draws for half in halves(labels)] if config.halves else draws


def errors_of(config: Config, dataset: Dataset, classified: list[np.ndarray]) -> list[float]:
    """Test errors (%) for each draw; with `--halves`, how often its two halves disagree (%)."""
    if config.halves:
        return [100 * np.mean(one != other) for one, other in zip(classified[::2], classified[1::2], strict=True)]
    return [100 * np.mean(own != dataset.test_labels) for own in classified]


def measure(config: Config, dataset: Dataset, x: np.ndarray, model: Autoencoder, count: int) -> None:
    """Print the errors after each step for so many labels."""
    draws = drawn(config, dataset, count)
    classes = len(dataset.classes)
    plan = plan_for(config, config.pretraining)
    every_views = sorted({0, config.views if plan.corruption else 0})
    asked = x if config.halves else dataset.scaling(dataset.test)
    began = time.perf_counter()

    def report(name: str, classified: list[np.ndarray]) -> None:
        errors = errors_of(config, dataset, classified)
        listed = " ".join(f"{error:5.2f}" for error in errors)
        print(
            f"{count:6,} labels  {name:34s} {np.mean(errors):5.2f} ± {np.std(errors, ddof=1):.2f}   ({listed})"
            f" {time.perf_counter() - began:7.0f} s",
            flush=True,
        )

    for views in every_views:
        z, asked_z = (finetuning.encode(model, part, plan.views(views)) for part in (x, asked))
        probes = [finetuning.linear_probe(z, labels, classes=classes) for labels in draws]
        report(f"linear probe, {views} views", [probe.predict(asked_z) for probe in probes])
        graph = propagation.neighbours(z)
        found = [propagation.propagate(graph, labels, classes=classes) for labels in draws]
        votes = found if config.halves else [propagation.vote(asked_z, z, own) for own in found]
        report(f"propagation, {views} views", [own.argmax(axis=1) for own in votes])
    start = model
    for turn in range(config.rounds):
        start = finetuning.distil(start, x, draws, plan, classes=classes, views=config.views, seed=turn).classifiers
        for views in every_views:
            predicted = [finetuning.predict(own, asked, plan.views(views)) for own in start]
            report(f"distilled, round {turn + 1}, {views} views", [own.argmax(axis=1) for own in predicted])


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that the errors of a classifier depend on: the pre-training, if any, and how it learns from labels."""

    pretraining: str
    plan: FineTuning
    views: int
    rounds: int
    trained: bool = True  # whether the encoder is pre-trained
    targets: Callable[[Sequence[Probabilities], Sequence[Labels]], Targets] = finetuning.distilled


def labels_alone(found: Sequence[Probabilities], draws: Sequence[Labels]) -> Targets:
    return finetuning.supervised(draws, found[0].shape[1])


def evenly(found: Sequence[Probabilities], draws: Sequence[Labels]) -> Targets:
    """Draw all examples equally often, however uncertain they are."""
    targets = finetuning.distilled(found, draws)
    return targets._replace(weights=np.ones_like(targets.weights))


def recipes(config: Config) -> dict[str, Recipe]:
    """The recipe, then the recipe with one ingredient left out, replaced or added."""
    full = Recipe(config.pretraining, plan_for(config, config.pretraining), config.views, config.rounds)
    still = dataclasses.replace(full.plan, corruption=None)
    consistent = dataclasses.replace(full.plan, consistency=1.0)

    def but(**changes: object) -> Recipe:
        return dataclasses.replace(full, **changes)

    def plainly(pretraining: str) -> Recipe:
        return but(pretraining=pretraining, plan=plan_for(config, pretraining))

    return {
        "the recipe": full,
        "pre-trained to reconstruct": but(pretraining="reconstruction"),
        "no pre-training": but(trained=False),
        "no views": but(views=0),
        "no augmentation after pre-training": but(plan=still),
        "drawn evenly, certain or not": but(targets=evenly),
        "labels alone, none propagated": but(targets=labels_alone),
        "labels alone, with consistency": but(targets=labels_alone, plan=consistent),
        "with consistency": but(plan=consistent),
        "with another round": but(rounds=config.rounds + 1),
        "no images transformed: noise": plainly("denoising"),
        "no images transformed: masked pixels": plainly("masked_pixels"),
        "no images transformed: layer-wise": plainly("layerwise"),
    }


def compare(config: Config, dataset: Dataset, x: np.ndarray, count: int) -> None:
    """Print the errors of each of `recipes` for so many labels, and their paired differences to the first."""
    draws = drawn(config, dataset, count)
    asked = x if config.halves else dataset.scaling(dataset.test)
    print(
        f"{dataset.name}, {count:,} labels, {config.draws} draws: {config.epochs} epochs of pre-training, "
        f"{config.steps} steps a round, {config.rounds} rounds, {config.views} views",
        flush=True,
    )
    full = None
    for name, recipe in recipes(config).items():
        if config.only and full is not None and not any(word in name for word in config.only):
            continue
        began = time.perf_counter()
        start = autoencoder.build(PRETRAINING[recipe.pretraining](), dataset.shape)
        if recipe.trained:
            start = pretrained(config, recipe.pretraining, dataset, x)
        for turn in range(recipe.rounds):
            start = finetuning.distil(
                start,
                x,
                draws,
                recipe.plan,
                classes=len(dataset.classes),
                views=recipe.views,
                targets=recipe.targets,
                seed=turn,
            ).classifiers
        predicted = [finetuning.predict(own, asked, recipe.plan.views(recipe.views)) for own in start]
        errors = np.array(errors_of(config, dataset, [own.argmax(axis=1) for own in predicted]))
        full = errors if full is None else full
        change = errors - full
        print(
            f"{name:37s} {errors.mean():6.2f} ± {errors.std(ddof=1):.2f}   {change.mean():+6.2f} ± "
            f"{change.std(ddof=1):.2f} {time.perf_counter() - began:7.0f} s",
            flush=True,
        )


def halves(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The labels split into two halves, evenly within each class."""
    first = finetuning.draw(labels, np.count_nonzero(labels >= 0) // 2)
    return first, np.where(first >= 0, -1, labels)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
