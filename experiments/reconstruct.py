"""Reconstruct: train any preset, see what its code keeps, find the size that the data need.

    python run.py --exp reconstruct --model sparse

trains on the embedded MNIST for about a minute on two CPU cores and reports the error beside PCA's, how much of the
code is in use, and whether the model memorises. The size of the code is the hardest choice; the elbow of

    python run.py --exp reconstruct --sweep latent=2,8,32,128

answers it. --sweep lr=1e-4,1e-3,1e-2 --seeds 5 compares any other setting, with all models trained as one program, and
keeps the best. A trained run reconstructs new data: `--from runs/reconstruct/1 --input new.npy --output same.npy`.
"""

import itertools
import math

import numpy as np

from flaxae import experiments, trained, training
from flaxae.autoencoder import Autoencoder
from flaxae.data import Dataset
from flaxae.experiments import _flags, _steps, _sweep
from flaxae.parallel import processes
from flaxae.printing import say
from flaxae.runs import Run, plots, report
from flaxae.training import History

MEMORISES = 1.5  # test error / training error above which the report says that the model memorises


def apply(config: _flags.Reconstruct) -> None:
    """Reconstruct --input with the model of --from, and write the result to --output."""
    model = trained.autoencoder_of(config.from_)
    model.convert(config.input, config.output, model.reconstruct)
    say(f"Reconstructed {config.input} into {config.output}.")


def train(config: _flags.Reconstruct) -> None:
    """Train and evaluate in a run's folder: one model, or one for each size of the code."""
    dataset = _steps.load(config)
    model = _steps.preset(config, dataset)
    with _steps.start("reconstruct", config, dataset, model) as run:
        if "latent" in _flags.axes(config):
            compare_sizes(config, run, dataset)
        elif config.sweep:
            _sweep.compare(config, run, dataset, model, _sweep.reconstruction())
        else:
            network, history = _steps.train(config, run, dataset, model)
            processes.leave_to_first()
            evaluate(run, network, history, dataset)


def compare_sizes(config: _flags.Reconstruct, run: Run, dataset: Dataset) -> None:
    """Train a model of each size and draw the elbow."""
    errors, pca = {}, {}
    for latent in _flags.axes(config)["latent"]:
        say(f"latent {latent}")
        preset = _steps.preset(config, dataset, latent=latent)
        model, _ = _steps.train(config, run, dataset, preset, part=f"latent-{latent}", log=False)
        errors[latent] = _steps.mean_squared_error(model, dataset.scaling(dataset.test))
        pca[latent] = _steps.pca_error(dataset, latent)
    processes.leave_to_first()
    both = all(pca.values())
    table = report.Table(
        f"{len(dataset.test):,} test examples, {dataset.name}",
        [
            "size of the code",
            report.Column("MSE", better="lower"),
            *([report.Column("PCA's MSE", better="lower"), "ratio"] if both else []),
        ],
        [[str(n), errors[n], *([pca[n], errors[n] / pca[n]] if both else [])] for n in errors],
    )
    series = {config.model: list(errors.values()), **({"PCA": list(pca.values())} if both else {})}
    plots.lines(
        list(errors), series, run.figure("elbow"), x_label="numbers in the code", y_label="test mean squared error"
    )
    results = {f"test/mse/latent_{n}": error for n, error in errors.items()}
    results |= {f"baseline/pca/mse/latent_{n}": error for n, error in pca.items() if error is not None}
    usage = experiments.command("reconstruct", model=config.model, data=config.data, latent="N")
    title = f"Reconstructing {dataset.name}"
    _steps.finish(run, title, elbow(errors), [table], [("Error over the size of the code.", "elbow")], results, usage)


def elbow(errors: dict[int, float]) -> str:
    """A sentence about the elbow: the size beyond which doubling reduces the error by less than a fifth."""
    numbers = list(errors)
    for n, larger in itertools.pairwise(numbers):
        if errors[larger] > errors[n] * 0.8 ** math.log2(larger / n):
            return f"From {n} numbers on, doubling the code takes away less than a fifth of the error: start with {n}."
    return f"The error still falls by a fifth or more with every doubling up to {numbers[-1]}: try larger codes."


def evaluate(run: Run, model: Autoencoder, history: History, dataset: Dataset) -> None:
    """Measure on the test set, and write the table, results.json, the figures and the report."""
    x = dataset.scaling(dataset.test)
    code = training.apply(Autoencoder.encode, model, x)
    rebuilt = training.apply(Autoencoder.reconstruct, model, x)
    seen = dataset.scaling(dataset.train[: len(x)])
    error, train_error = float(np.mean(np.square(rebuilt - x))), _steps.mean_squared_error(model, seen)
    spread, used = code.std(axis=0), activity(code)
    components = max(1, round(used["on"]))  # for a sparse code, as many as are on per example
    pca = _steps.pca_error(dataset, components)
    errors = report.Table(
        f"{len(x):,} test examples, {dataset.name}",
        ["", "MSE"],
        [
            ["test", error],
            ["as many training examples", train_error],
            *([] if pca is None else [[f"PCA, test, {components} numbers", pca]]),
        ],
    )
    units = report.Table(
        "the code",
        ["", "units"],
        [["in all", len(spread)], ["in use", used["units"]], ["on, of an example", round(used["on"])]],
    )
    grid = plots.image_grid if dataset.kind == "image" else plots.line_grid
    shown = {"Original": x[:10], "Reconstruction": rebuilt[:10]}
    if dataset.kind == "signal":
        shown = {name: _steps.lines(values) for name, values in shown.items()}
    grid(shown, run.figure("reconstructions"))
    plots.bars(spread, run.figure("activity"), x_label="unit of the code", y_label="standard deviation")
    results = {
        "test/mse": error,
        "train/mse": train_error,
        "code/units_in_use": used["units"],
        "code/units_on": used["on"],
        **({} if pca is None else {"baseline/pca/mse": pca}),
    }
    figures = [
        ("Test examples over their reconstructions.", "reconstructions"),
        ("How much each unit of the code varies over the test examples.", "activity"),
    ]
    usage = f'import flaxae\nmodel = flaxae.load("{run.folder}")\nmodel.reconstruct(x), model.encode(x)'
    summary = f"Test MSE {error:.4g}. {memory(train_error, error)}"
    title = f"Reconstructing {dataset.name}"
    _steps.finish(run, title, summary, [errors, units], figures, results, usage, history=history)


def activity(code: np.ndarray) -> dict[str, int | float]:
    """`units`: how many vary more than a hundredth of the most active one. `on`: how many are not 0, on average."""
    spread = code.std(axis=0)
    return {"units": int(np.sum(spread > 0.01 * spread.max())), "on": float(np.mean(np.sum(code != 0, axis=1)))}


def memory(train_error: float, test_error: float) -> str:
    """A sentence about whether the model reconstructs unseen examples as well as training examples."""
    ratio = test_error / max(train_error, 1e-12)
    if ratio < MEMORISES:
        return f"It does not memorise: the error on unseen examples is {ratio:.2f} times that on training examples."
    return (
        f"It memorises: the error on unseen examples is {ratio:.2f} times that on training examples. "
        "More data, a smaller code, noise (--model denoising), or fewer epochs help."
    )
