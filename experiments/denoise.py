"""Denoise: train an autoencoder to undo noise, measure it beside simple filters, use it on new images.

    python run.py --exp denoise

trains on the embedded MNIST for about a minute on two CPU cores, to 20.3 dB PSNR on test digits that have 9.4 dB when
noisy and 17.7 dB after the best linear map. The same command takes a table or a folder of images:
`--data readings.csv`. Photographs, which are large or differ in size, train a U-Net on pieces of them, for any level
of noise; `--target clean/` is for pairs, `--noisy` where there are no clean ones. Of sound, `--data clips/`, a mask of
the spectrum is learnt, from clean clips and noise that is mixed in. A trained run cleans new data:

    python run.py --exp denoise --from runs/denoise/1 --input noisy.png --output clean.png

--sweep lr=1e-3,3e-3,1e-2 --seeds 3 compares settings, with all models trained as one program, and keeps the model with
the least error on validation examples at the level --noise. So --sweep noise=0.3,0.5,0.7 finds the noise to train with
for that level.
"""

import dataclasses

import jax
import numpy as np

from flaxae import (
    atomic,
    autoencoder,
    baselines,
    corruptions,
    data,
    denoising,
    experiments,
    metrics,
    objectives,
    presets,
    trained,
    training,
)
from flaxae.autoencoder import Autoencoder
from flaxae.data import Dataset
from flaxae.data.images import Images
from flaxae.errors import ConfigError
from flaxae.experiments import _flags, _photographs, _sound, _steps, _sweep
from flaxae.parallel import processes
from flaxae.printing import say
from flaxae.runs import Run, plots, report
from flaxae.training import History

EPOCHS = 3  # the default for a large data set
NOISE, BATCH_SIZE, LEARNING_RATE = 0.5, 64, 3e-3
FILTERED = 500  # training examples that the filters of signals are chosen on
MOST_VALUES_FOR_LINEAR = 4096  # per example: the linear baselines take time with the cube of this number
LABELS = {
    "noisy": "noisy",
    "median": "median filter",
    "savgol": "Savitzky-Golay filter",
    "wiener": "local Wiener filter",
    "pca": "PCA",
    "linear": "best linear map",
    "flaxae": "flaxae",
}


def apply(config: _flags.Denoise) -> None:
    """Denoise --input with the model of --from, and write the result to --output."""
    if atomic.settled(config.from_ / "sound").is_dir():
        _sound.apply(config)
        return
    model = trained.autoencoder_of(config.from_)
    model.convert(
        config.input,
        config.output,
        lambda noisy: denoising.denoise(model, noisy),
        of_image=lambda noisy, scaling: denoising.denoise(model, noisy, scaling=scaling),
        max_pixels=config.max_pixels,
    )
    say(f"Denoised {config.input} into {config.output}.")


def train(config: _flags.Denoise) -> None:
    """Train and evaluate a denoiser in a run's folder, and say how to use it."""
    if _sound.wanted(config):
        _sound.train(config)
        return
    dataset = _steps.load(config)
    if isinstance(dataset.train, Images):
        _photographs.train(config, dataset)
        return
    for_photographs = {"--target": config.target, "--noisy": config.noisy, "--test": config.test}
    if given := [flag for flag, value in for_photographs.items() if value]:
        raise ConfigError(
            f"{' and '.join(given)}: for photographs, a folder of images that are large or differ in size, which "
            f"{config.data} is not."
        )
    config = dataclasses.replace(
        config,
        noise=config.noise or NOISE,
        batch_size=config.batch_size or BATCH_SIZE,
        learning_rate=config.learning_rate or LEARNING_RATE,
        optimizer=config.optimizer or "adam",
    )
    preset = network(config, dataset)
    decay = {"weight_decay": config.weight_decay, "ema": config.ema}
    with _steps.start("denoise", config, dataset, preset) as run:
        if config.sweep:
            measure = _sweep.Measure(objectives.DenoisingError(config.noise), "mse", f"MSE at noise {config.noise:g}")
            _sweep.compare(config, run, dataset, preset, measure, least=EPOCHS, **decay)
            return
        model, history = _steps.train(config, run, dataset, preset, least=EPOCHS, **decay)
        processes.leave_to_first()
        evaluate(run, model, dataset, history, seed=config.seed)
    dataset.check()


def network(config: _flags.Denoise, dataset: Dataset) -> autoencoder.Config:
    """The denoiser that the flags ask for, for that data set. For images, the objective is the mean PSNR."""
    is_image = dataset.kind == "image"
    name = config.model or ("mixer" if is_image else "denoising")
    preset = presets.find(name, presets.likelihood(dataset.kind, dataset.encoding, dataset.scaling))
    if config.latent is not None:
        preset = preset.with_latent(config.latent)
    if ":" in name:  # the user's own preset, with its own parts
        return preset
    corruption = corruptions.CORRUPTIONS[config.corruption](level=config.noise)
    if config.clip and is_image and config.corruption == "gaussian":
        corruption = dataclasses.replace(corruption, clip=(0.0, 1.0))
    objective = objectives.profile_likelihood if is_image else objectives.negative_log_likelihood
    return dataclasses.replace(preset, corruption=corruption, objective=objective)


def evaluate(run: Run, model: Autoencoder, dataset: Dataset, history: History, *, seed: int) -> None:
    """Denoise the test set by the model and by simple filters; write the table, results.json, figures and report."""
    clean = dataset.scaling(dataset.test)
    noisy = np.asarray(model.corrupt(clean, jax.random.key(seed)))
    denoised = {"noisy": noisy, **filtered(model, dataset, noisy, seed=seed)}
    denoised["flaxae"] = training.apply(Autoencoder.reconstruct, model, noisy)
    scores = {name: score(x, clean, dataset.kind) for name, x in denoised.items()}
    results = {}
    for name, values in scores.items():
        prefix = "test" if name == "flaxae" else f"baseline/{name}"
        results |= {f"{prefix}/{metric}": value for metric, value in values.items()}

    heads = {
        "psnr_db": report.Column("PSNR (dB)", better="higher"),
        "ssim": report.Column("SSIM", better="higher"),
        "mse": report.Column("MSE", better="lower"),
    }
    columns = ["", *(heads[metric] for metric in scores["noisy"])]
    rows = [[LABELS[name], *values.values()] for name, values in scores.items()]
    table = report.Table(f"{len(clean):,} test examples, {dataset.name}", columns, rows)
    chosen = examples(dataset)
    shown = {"Clean": clean[chosen], "Noisy": noisy[chosen], "Denoised": denoised["flaxae"][chosen]}
    grid = plots.image_grid if dataset.kind == "image" else plots.line_grid
    if dataset.kind == "signal":
        shown = {name: _steps.lines(values) for name, values in shown.items()}
    grid(shown, run.figure("denoised"))
    usage = use(run, dataset, noisy[chosen])
    metric, unit, best = ("psnr_db", "dB", max) if "psnr_db" in scores["noisy"] else ("mse", "MSE", min)
    rival = best(scores.keys() - {"flaxae"}, key=lambda name: scores[name][metric])
    summary = (
        f"From {scores['noisy'][metric]:.4g} {unit} when noisy to {scores['flaxae'][metric]:.4g} {unit} by the "
        f"autoencoder, trained for {len(history['loss'])} epochs in {history['seconds'][-1]:.0f} s. "
        f"The best of the simple filters, {LABELS[rival]}, reaches {scores[rival][metric]:.4g} {unit}."
    )
    figures = [
        ("Test examples: clean, as the model was given them, as it gave them back.", "denoised"),
    ]
    _steps.finish(run, f"Denoising {dataset.name}", summary, [table], figures, results, usage, history=history)


def filtered(model: Autoencoder, dataset: Dataset, noisy: np.ndarray, *, seed: int) -> dict[str, np.ndarray]:
    """The noisy test examples denoised by simple filters, which are fitted and chosen on the training part alone."""
    low, high = model.likelihood.support
    outputs = {"median": baselines.median_filter(noisy)} if dataset.kind == "image" else {}
    is_small = noisy[0].size <= MOST_VALUES_FOR_LINEAR
    if not is_small and dataset.kind != "signal":
        return {name: np.clip(x, low, high) for name, x in outputs.items()}
    train = dataset.scaling(dataset.train_sample)
    train_noisy = np.asarray(model.corrupt(train, jax.random.fold_in(jax.random.key(seed), 1)))
    if dataset.kind == "signal":
        few = slice(0, FILTERED)
        outputs["savgol"], outputs["wiener"] = baselines.smoothed(noisy, train=train[few], train_noisy=train_noisy[few])
    if is_small:
        held_out = max(1, len(train) // 10)
        outputs["pca"], _ = baselines.pca_denoise(
            noisy, train=train[held_out:], held_out=train[:held_out], held_out_noisy=train_noisy[:held_out]
        )
        outputs["linear"] = baselines.linear_denoise(noisy, train=train, train_noisy=train_noisy)
    return {name: np.clip(x, low, high) for name, x in outputs.items()}


def score(x: np.ndarray, clean: np.ndarray, kind: str) -> dict[str, float]:
    """Means over the test examples, in the model's scale: PSNR (dB), SSIM and MSE for images, MSE for other data."""
    if kind != "image":
        return {"mse": float(np.mean(np.square(x - clean)))}
    measures = {"psnr_db": metrics.psnr, "ssim": metrics.ssim, "mse": metrics.mse}
    return {name: float(measure(x, clean).mean()) for name, measure in measures.items()}


def examples(dataset: Dataset, count: int = 10) -> np.ndarray:
    """Which test examples to show: one of each class if there are labels, then the first ones."""
    labels = np.zeros(len(dataset.test), int) if dataset.test_labels is None else dataset.test_labels
    first_of_class = np.unique(labels, return_index=True)[1][:count]
    others = np.setdiff1d(np.arange(min(len(labels), 2 * count)), first_of_class)
    return np.concatenate([first_of_class, others])[:count]


def use(run: Run, dataset: Dataset, noisy: np.ndarray) -> str:
    """The command that uses the model. For images, its input is a strip of noisy ones, written to the run's folder."""
    if dataset.kind == "image" and dataset.scaling.dtype == "uint8":
        given, made = run.folder / "noisy.png", "clean.png"
        data.write(given, dataset.scaling.undo(np.concatenate(list(noisy), axis=1)))
    else:
        given, made = _steps.new_file(dataset, "noisy"), _steps.new_file(dataset, "clean")
    return experiments.command("denoise", from_=run.folder, input=given, output=made)
