"""Sweeps: one setting varied, over several seeds, all trained as one program; a table and a figure at the end."""

from typing import TYPE_CHECKING

import experiments
from experiments import _presets
from flaxae.errors import ConfigError

if TYPE_CHECKING:
    from flaxae import autoencoder
    from flaxae.data import Dataset
    from flaxae.runs import Run


def axis(sweep: str) -> tuple[str, list[float]]:
    """The name and the ascending values of "lr=1e-4,1e-3"; sizes of "latent=2,8" are whole numbers."""
    name, _, values = sweep.partition("=")
    try:
        kind = int if name == "latent" else float
        numbers = sorted({kind(value) for value in values.split(",")})
        if not name or numbers[0] < (1 if name == "latent" else 0):
            raise ValueError
    except ValueError:
        raise ConfigError(
            f"--sweep is {sweep!r}; expected a setting and its values, such as lr=1e-4,1e-3,1e-2, noise=0.1,0.3, or "
            "sizes of the code, latent=2,8,32,128."
        ) from None
    return name, numbers


def compare(config: "_presets.Config", run: "Run", dataset: "Dataset", model: "autoencoder.Config") -> None:
    """Train a model for every value and seed; the best is the one of the least validation error."""
    import numpy as np

    from flaxae import objectives, plots, population, processes, report

    name, values = axis(config.sweep)
    x = dataset.scaling(dataset.train)
    epochs = experiments.enough_epochs(len(x), config.batch_size, epochs=_presets.EPOCHS, steps=_presets.STEPS)
    settings = {"learning_rate": config.learning_rate, {"lr": "learning_rate"}.get(name, name): values}
    trained = population.fit_population(
        model,
        x,
        seeds=range(config.seed, config.seed + config.seeds),
        epochs=config.epochs or epochs,
        batch_size=config.batch_size,
        validation=config.validation,
        score=objectives.squared_error,  # the loss itself changes with noise, β and the like
        seed=config.seed,
        mesh=experiments.mesh(config),
        **settings,
    )
    processes.leave_to_first()
    test = dataset.scaling(dataset.test)
    errors = np.array([_presets.mean_squared_error(member.model, test) for member in trained.members])
    scores = np.array([member.score for member in trained.members])
    errors, scores = errors.reshape(config.seeds, -1), scores.reshape(config.seeds, -1)  # seeds are outermost
    table = report.Table(
        f"{dataset.name}, {config.seeds} seeds each: mean ± deviation over them",
        [name, "validation MSE ↓", "test MSE ↓", "seeds that diverged"],
        [
            [
                f"{value:g}",
                *(f"{column.mean():.4g} ± {column.std():.2g}" for column in (scores[:, i], errors[:, i])),
                sum(member.diverged for member in trained.members[i :: len(values)]),
            ]
            for i, value in enumerate(values)
        ],
    )
    plots.lines(
        values,
        {config.model: errors.mean(axis=0).tolist()},
        run.figure("sweep"),
        x_label=name,
        y_label="test mean squared error",
        deviations={config.model: errors.std(axis=0).tolist()},
    )
    results = {
        f"test/mse/{name}_{value:g}/seed_{config.seed + k}": float(errors[k, i])
        for i, value in enumerate(values)
        for k in range(config.seeds)
    }
    best = ", ".join(f"{setting} {value:g}" for setting, value in trained.best.settings.items())
    summary = f"The least validation error is that of {best}."
    usage = f"python run.py --exp reconstruct --model {config.model} --data {config.data}"
    figures = [(f"Test error over {name}: mean and deviation over {config.seeds} seeds.", "sweep")]
    _presets.finish(run, f"Reconstructing {dataset.name}", summary, [table], figures, results, usage)
