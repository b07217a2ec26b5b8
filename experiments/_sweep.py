"""Sweeps: vary settings over several seeds, train all models as one program, compare them, and keep the best."""

import itertools
import math
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from flaxae import autoencoder, experiments, objectives
from flaxae.autoencoder import Autoencoder
from flaxae.data import Dataset
from flaxae.experiments import _flags, _steps
from flaxae.objectives import Objective
from flaxae.parallel import distributed, processes
from flaxae.runs import Run, plots, report
from flaxae.training import checkpoints, population, step
from flaxae.training.population import Population

NAMES = {"lr": "learning_rate", "noise": "level"}  # settings that have other names in `fit_population`


class Measure(NamedTuple):
    """How a sweep compares its models: by the mean of an objective on validation or test examples; lower is better."""

    objective: Objective
    name: str  # in results.json
    label: str  # for tables and figures, with the unit and the conditions


def reconstruction() -> Measure:
    """The squared error of reconstructing uncorrupted examples."""
    return Measure(objectives.squared_error, "mse", "MSE")


def compare(
    config: _flags.SweepFlags,
    run: Run,
    dataset: Dataset,
    model: autoencoder.Config,
    measure: Measure,
    *,
    least: int = _steps.EPOCHS,
    **settings: Any,
) -> None:
    """Train a model for every combination and seed, and keep the one that is best on validation as the run's model.

    `least` is as in `_steps.epochs`; `settings` are as in `fit_population`.
    """
    varied = _flags.axes(config)
    for name in varied:
        _flags.check_name("sweep", name, variable(model))
    settings |= {"learning_rate": config.learning_rate, **{NAMES.get(name, name): varied[name] for name in varied}}
    x, validation = _steps.parts(config, dataset)
    with _steps.resources(config, run) as resources:
        trained = population.fit_population(
            model,
            x,
            seeds=range(config.seed, config.seed + config.seeds),
            epochs=_steps.epochs(config, dataset, least=least),
            batch_size=config.batch_size,
            validation=validation,
            patience=config.patience,
            score=measure.objective,  # not the loss, which changes with noise, β and the like
            optimizer=config.optimizer,
            precision=config.precision,
            seed=config.seed,
            folder=run.checkpoints,
            resume=config.resume,
            **settings,
            **resources,
        )
    keep(run, trained.best.model, resources["mesh"])
    processes.leave_to_first()
    evaluate(config, run, dataset, trained, measure)


def keep(run: Run, model: Autoencoder, mesh: Mesh | None) -> None:
    """Save the model where `training.fit` saves a run's model. All processes call this."""
    weights = nnx.split(model, nnx.Param, ...)[1:]
    weights = distributed.place(weights, mesh or distributed.default_mesh())
    checkpoints.save(run.checkpoints / "best", 0, weights, keep=1)


def evaluate(config: _flags.SweepFlags, run: Run, dataset: Dataset, trained: Population, measure: Measure) -> None:
    """Measure all models on the test set, and write the table, the figure, results.json and the report."""
    varied, members = _flags.axes(config), trained.members
    groups = {values: [] for values in itertools.product(*varied.values())}  # by combination, one member per seed
    for i, member in enumerate(members):
        groups[tuple(member.settings[NAMES.get(name, name)] for name in varied)].append(i)
    validation = np.array([member.score for member in members])
    test = np.array([on_test(config, dataset, member.model, measure) for member in members])

    def over_seeds(values: np.ndarray) -> str:
        return f"{values.mean():.4g} ± {values.std():.2g}" if len(values) > 1 else f"{values[0]:.4g}"

    seeds = f"mean ± deviation over {config.seeds} seeds" if config.seeds > 1 else "one seed"
    table = report.Table(
        f"{dataset.name}, {seeds}",
        [
            *varied,
            report.Column(f"validation {measure.label}", better="lower"),
            report.Column(f"test {measure.label}", better="lower"),
            "diverged",
        ],
        [
            [
                *(f"{value:g}" for value in values),
                over_seeds(validation[group]),
                over_seeds(test[group]),
                sum(members[i].diverged for i in group),
            ]
            for values, group in groups.items()
        ],
    )
    first, *others = varied
    means, deviations = {}, {}
    for (_, *rest), group in groups.items():
        line = ", ".join(map(_named, others, rest)) or "flaxae"
        means.setdefault(line, []).append(test[group].mean())
        deviations.setdefault(line, []).append(test[group].std())
    plots.lines(
        varied[first],
        means,
        run.figure("sweep"),
        x_label=first,
        y_label=f"test {measure.label}",
        deviations=deviations,
    )
    best = members.index(trained.best)
    kept = {name: trained.best.settings[NAMES.get(name, name)] for name in (*varied, "seed")}
    results = {f"kept/{name}": value for name, value in kept.items()} | {f"test/{measure.name}": test[best]}
    for values, group in groups.items():
        for i in group:
            where = "/".join([*map("{}_{:g}".format, varied, values), f"seed_{members[i].settings['seed']}"])
            results |= {
                f"{part}/{measure.name}/{where}": x[i] for part, x in (("validation", validation), ("test", test))
            }
    summary = (
        f"The least validation error is that of {', '.join(map(_named, kept, kept.values()))}: {validation[best]:.4g}, "
        f"and {test[best]:.4g} on the test examples. That model is kept."
    )
    figures = [(f"{measure.label} of test examples over {first}: {seeds}.", "sweep")]
    finite = {name: value for name, value in results.items() if math.isfinite(value)}  # with a huge rate some are not
    title = f"A sweep of {' and '.join(varied)} on {dataset.name}"
    _steps.finish(run, title, summary, [table], figures, finite, usage(config, run, dataset))


def _named(name: str, value: int | float) -> str:
    return f"{name} {value:g}"


def on_test(config: _flags.SweepFlags, dataset: Dataset, model: Autoencoder, measure: Measure) -> float:
    """The measure on the test examples, with the same noise for every model."""
    graphdef, *weights = nnx.split(model, nnx.Param, ...)
    test, key = dataset.scaling(dataset.test), jax.random.key(config.seed)
    return float(step.evaluate(graphdef, measure.objective, config.batch_size, *weights, test, key)["loss"])


def variable(model: autoencoder.Config) -> tuple[str, ...]:
    """The settings of that config that can be swept."""
    flags = {setting: flag for flag, setting in NAMES.items()}
    return ("lr", *(flags.get(name, name) for name in model.hyper))


def usage(config: _flags.SweepFlags, run: Run, dataset: Dataset) -> str:
    """The command that uses the model that the sweep kept."""
    flags = {
        "from": run.folder,
        "input": _steps.new_file(dataset),
        "output": _steps.new_file(dataset, "made"),
    }
    return experiments.command(run.folder.parent.name, **{flag: flags[flag] for flag in config.used_with})
