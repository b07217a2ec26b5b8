"""Denoising photographs: the model that suits what is known of their noise, trained on pieces, tested on whole ones."""

import dataclasses
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxae import autoencoder, baselines, data, denoising, experiments, metrics
from flaxae.autoencoder import Autoencoder
from flaxae.data import Dataset, images
from flaxae.data.images import Images
from flaxae.denoising import photographs, tiles
from flaxae.errors import ConfigError
from flaxae.experiments import _flags, _steps
from flaxae.parallel import processes
from flaxae.printing import say
from flaxae.runs import Run, plots, report
from flaxae.training import History, checkpoints

LEVELS = (15 / 255, 25 / 255, 50 / 255)  # that a model of a range is tested at
SHOWN, SHOWN_SIDE = 4, 160  # crops in the report, at 100 %
MOST_TESTED = 100  # images
LABELS = {"noisy": "noisy", "median": "median filter", "means": "non-local means", "flaxae": "flaxae"}


def train(config: _flags.Denoise, dataset: Dataset) -> None:
    """Train and evaluate a denoiser of photographs in a run's folder, and say how to use it."""
    if config.sweep or config.model is not None or config.latent is not None:
        raise ConfigError("Photographs train one U-Net: leave out --sweep, --latent and --model.")
    noisy, test = dataset.train, _test(config, dataset)
    assert isinstance(noisy, Images)
    targets = None
    if config.target is not None:
        wanted = images.open(config.target)
        targets, test_targets = photographs.paired(noisy, wanted), photographs.paired(test, wanted)
    preset = network(config, noisy)
    steps = config.epochs * photographs.EPOCH if config.epochs else photographs.STEPS
    batch_size = config.batch_size or photographs.BATCH_SIZE
    shape = (config.crop, config.crop, noisy.channels or 1)
    weights = autoencoder.count_weights(preset, shape)
    say(f"A U-Net of {weights:,} weights; {steps:,} steps of {batch_size} pieces of {config.crop} pixels a side.")
    with _steps.start("denoise", config, dataset, preset, shape) as run:
        with _steps.resources(config, run) as given:
            model, history = photographs.fit(
                preset,
                noisy,
                targets,
                size=config.crop,
                steps=steps,
                batch_size=batch_size,
                learning_rate=config.learning_rate or photographs.LEARNING_RATE,
                seed=config.seed,
                weight_decay=config.weight_decay,
                ema=config.ema or photographs.EMA,
                optimizer=config.optimizer or photographs.OPTIMIZER,
                precision=config.precision,
                patience=config.patience,
                folder=run.checkpoints,
                resume=config.resume and checkpoints.begun(run.checkpoints),
                **given,
            )
        processes.leave_to_first()
        if targets is not None:
            tests = [("", test, test_targets)]
        elif config.noisy:
            tests = [("", test, None)]
        else:
            tests = [(f"σ {level * 255:.3g}", test, level) for level in _levels(config)]
        evaluate(run, model, dataset.name, tests, history, corruption=preset.corruption, seed=config.seed)
        for part in (noisy, test, *([] if targets is None else [targets])):
            part.check()


def network(config: _flags.Denoise, noisy: Images) -> autoencoder.Config:
    """The model for what the flags say of the noise, with a line that says what that is."""
    if config.target is not None:
        say(f"Learns to make the images of {config.target} of those of {config.data}.")
        return photographs.of_pairs()
    if not config.noisy:
        known = f"noise of level {config.noise:g}" if config.noise else "noise of any deviation from 5 to 55 of 255"
        say(f"Adds {known} ({config.corruption}) to the images, unclipped, and learns to undo it.")
        if config.noise is None and config.corruption != "gaussian":
            raise ConfigError(f"--corruption {config.corruption} needs a level: --noise 0.05, say.")
        return photographs.of_clean(config.noise, config.corruption)
    level = config.noise
    if level is None:
        level, least, most = photographs.estimated(noisy)
        say(
            f"The images' noise is estimated to have the deviation {level:.3g} ({level * 255:.3g} of 255), {least:.3g} "
            f"to {most:.3g} among those looked at. If that is wrong, say it: --noise."
        )
    return photographs.of_noisy(level)


def _test(config: _flags.Denoise, dataset: Dataset) -> Images:
    if config.test is None:
        test = dataset.test
        assert isinstance(test, Images)
    else:
        assert isinstance(dataset.train, Images)
        test = images.open(config.test, colours=dataset.train.colours, alpha=dataset.train.alpha)
    if len(test) > MOST_TESTED:
        say(f"Tests on {MOST_TESTED} of {len(test)} images.")
        test = test.select(np.unique(np.linspace(0, len(test) - 1, MOST_TESTED).astype(int)))
    return test


def _levels(config: _flags.Denoise) -> tuple[float, ...]:
    return LEVELS if config.noise is None else (config.noise,)


def evaluate(
    run: Run,
    model: Autoencoder,
    name: str,
    tests: list[tuple[str, Images, Any]],
    history: History,
    *,
    corruption: Any,
    seed: int,
) -> None:
    """Denoise whole test images, by the model and by simple filters: the table, results.json, the report.

    Args:
        tests: a name, the images, and what they are measured against: a level, for clean ones to which that noise is
            added; images, for noisy ones; None, where nothing clean is known.
    """
    scores: dict[str, dict[str, float]] = {}
    shown: dict[str, list[np.ndarray]] = {}
    for label, given, against in tests:
        for i, image in given.each():
            clean = image
            if isinstance(against, float):
                noise = corruption if len(tests) == 1 else dataclasses.replace(corruption, least=against, most=against)
                image = np.asarray(noise(jax.random.fold_in(jax.random.key(seed), i), jnp.asarray(image[None]))[0])
            elif against is not None:
                clean = against[i]
            outputs = {"noisy": image, **filtered(image), "flaxae": np.clip(tiles.reconstruct(model, image), 0, 1)}
            if against is not None:
                for method, made in outputs.items():
                    of = scores.setdefault(method, {})
                    of[label] = of.get(label, 0.0) + float(metrics.psnr(made[None], clean[None])[0]) / len(given)
            if label == tests[len(tests) // 2][0] and i < SHOWN:
                rows = {**({} if against is None else {"clean": clean}), **outputs}
                for method, made in rows.items():
                    shown.setdefault(method, []).append(photographs.middle(_drawn(made), SHOWN_SIDE))
    _report(run, name, scores, shown, [label for label, _, _ in tests], history, len(tests[0][1]))


def filtered(noisy: np.ndarray) -> dict[str, np.ndarray]:
    """A noisy image through simple filters, which are told no more than the model."""
    outputs = {"median": baselines.median_filter(noisy)}
    if importlib.util.find_spec("skimage") is not None:
        outputs["means"] = baselines.non_local_means(noisy, denoising.noise_level(noisy))
    return {name: np.clip(x, 0, 1).astype(np.float32) for name, x in outputs.items()}


def _drawn(image: np.ndarray) -> np.ndarray:
    """In the channels that can be drawn: three, or one."""
    return image[..., :3] if image.shape[-1] >= 3 else image[..., :1]


def _report(
    run: Run,
    name: str,
    scores: dict[str, dict[str, float]],
    shown: dict[str, list[np.ndarray]],
    labels: list[str],
    history: History,
    tested: int,
) -> None:
    results, tables = {}, []
    for method, values in scores.items():
        prefix = "test" if method == "flaxae" else f"baseline/{method}"
        results |= {f"{prefix}/psnr_db{'/' + label if label else ''}": value for label, value in values.items()}
    if scores:
        columns = ["", *(report.Column(f"PSNR (dB) {label}".strip(), better="higher") for label in labels)]
        rows = [[LABELS[method], *values.values()] for method, values in scores.items()]
        tables.append(report.Table(f"{tested:,} whole test images, {name}; means of each image's PSNR", columns, rows))
    grids = {LABELS.get(method, method).capitalize(): np.stack(crops) for method, crops in shown.items()}
    plots.image_grid(
        {row: images if images.shape[-1] != 2 else images[..., :1] for row, images in grids.items()},
        run.figure("denoised"),
    )
    trained_for = f"trained for {len(history['loss']) * photographs.EPOCH:,} steps in {history['seconds'][-1]:.0f} s"
    if scores:
        middle = labels[len(labels) // 2]
        rival = max(scores.keys() - {"flaxae", "noisy"}, key=lambda method: scores[method][middle])
        summary = (
            f"From {scores['noisy'][middle]:.4g} dB when noisy to {scores['flaxae'][middle]:.4g} dB by the U-Net"
            f"{f' at {middle}' if middle else ''}, {trained_for}. The best of the simple filters, {LABELS[rival]}, "
            f"reaches {scores[rival][middle]:.4g} dB."
        )
    else:
        summary = f"A U-Net {trained_for} on noisy images alone: how far from clean they are is not known."
    given = run.folder / "noisy.png"
    noisy = np.concatenate(shown["noisy"], axis=1)
    data.write(given, np.rint(255 * np.clip(noisy, 0, 1)).astype(np.uint8))
    usage = experiments.command("denoise", from_=run.folder, input=given, output="clean.png")
    figures = [("The middles of test images, at 100 %.", "denoised")]
    _steps.finish(run, f"Denoising {name}", summary, tables, figures, results, usage, history=history)
