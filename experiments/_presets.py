"""What the experiments that train any preset share: their flags, the training, the use of a trained model."""

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from flaxae import experiments

if TYPE_CHECKING:
    import numpy as np

    from flaxae import autoencoder
    from flaxae.autoencoder import Autoencoder
    from flaxae.data import Dataset
    from flaxae.runs import Run
    from flaxae.runs.report import Table
    from flaxae.training import History

EPOCHS, STEPS = 10, 2000  # by default: of a large set, and at least of a small one
PRETRAINING_EPOCHS = 2  # of each layer of a stack
MOST_VALUES_FOR_PCA = 4096  # an example: PCA takes time with its cube


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(experiments.Config):
    """Flags of an experiment that trains any preset."""

    model: str = "vanilla"
    """The preset to train; a wrong name lists them. `package.module:preset` is one of your own."""
    latent: int | None = None
    """Size of the code; by default the preset's."""
    batch_size: int = 256
    """Examples a step."""
    learning_rate: float = 3e-3
    """The peak, after a warm-up and before a cosine decay."""
    optimizer: Literal["adam", "muon"] = "adam"
    """adam, or muon, by which fully connected models need fewer epochs, each of which takes longer."""
    validation: float = 0.05
    """Fraction of the training data held out, to choose the best epoch by."""
    patience: int | None = None
    """Stop after so many epochs without a better validation loss."""
    precision: Literal["float32", "bf16"] = "float32"
    """Of the autoencoder's training: bf16 computes in bfloat16 with weights in float32. It is for accelerators; on CPU
    it is slower, and only for trying."""


def preset(config: Config, dataset: "Dataset", *, latent: int | None = None) -> "autoencoder.Config":
    """The model that the flags ask for, with the likelihood that the data are scaled for."""
    from flaxae import presets
    from flaxae.likelihoods import Bernoulli, Gaussian

    made = presets.find(config.model, Bernoulli() if dataset.kind == "image" else Gaussian())
    size = latent or config.latent
    return made.with_latent(size) if size else made


def epochs(config: Config, dataset: "Dataset", *, least: int = EPOCHS) -> int:
    """--epochs; by default `least`, and on few examples as many more as `STEPS` steps take."""
    return config.epochs or experiments.enough_epochs(len(dataset.train), config.batch_size, epochs=least, steps=STEPS)


def train(
    config: Config,
    run: "Run",
    dataset: "Dataset",
    model: "autoencoder.Config",
    *,
    least: int = EPOCHS,
    part: str = "",
    log: bool = True,
    **optimizer: Any,
) -> tuple["Autoencoder", "History"]:
    """The trained model and its history, from the checkpoint on if the run is resumed; a `part` has its own.

    `optimizer` are further settings of `training.fit`.
    """
    from flaxae import autoencoder, stacked, training
    from flaxae.data import Stream

    x, validation = experiments.parts(config, dataset)
    network = autoencoder.build(model, dataset.shape, seed=config.seed)
    folder = run.checkpoints / part
    resume = config.resume and bool(training.checkpoints.steps(folder / "latest"))
    settings = {"batch_size": config.batch_size, "learning_rate": config.learning_rate, "seed": config.seed}
    if config.model == "stacked" and not resume:
        known, _ = training.split(network, x, validation, config.seed, mesh=None)  # without what `fit` validates on
        stacked.pretrain(
            network,
            dataset.scaling(dataset.train_sample) if isinstance(known, Stream) else known,
            epochs=PRETRAINING_EPOCHS,
            validation=0.0,
            folder=run.folder / "pretraining" / part,
            resume=config.resume,
            **settings,
        )
    with experiments.resources(config, run, log=log) as resources:
        history = training.fit(
            network,
            x,
            epochs=epochs(config, dataset, least=least),
            validation=validation,
            patience=config.patience,
            optimizer=config.optimizer,
            precision=config.precision,
            folder=folder,
            resume=resume,
            **settings,
            **optimizer,
            **resources,
        )
    return network, history


def mean_squared_error(model: "Autoencoder", x: "np.ndarray") -> float:
    """Of the reconstruction, a value, in the model's scale."""
    import numpy as np

    from flaxae import training
    from flaxae.autoencoder import Autoencoder

    return float(np.mean(np.square(training.apply(Autoencoder.reconstruct, model, x) - x)))


def pca_error(dataset: "Dataset", components: int) -> float | None:
    """PCA's mean squared error on the test examples; None where it has not that many components, or takes too long."""
    import numpy as np

    from flaxae import baselines

    train, test = dataset.scaling(dataset.train_sample), dataset.scaling(dataset.test)
    if train[0].size > MOST_VALUES_FOR_PCA or components > min(len(train), train[0].size):
        return None
    return float(np.mean(np.square(baselines.pca_reconstruct(test, train=train, components=components) - test)))


def finish(
    run: "Run",
    title: str,
    summary: str,
    tables: "list[Table]",
    figures: list[tuple[str, str]],
    results: dict[str, float],
    usage: str,
) -> None:
    """Write the report and results.json, print the tables. `figures` are captions and names."""
    from flaxae.runs import report

    report.write(
        run.folder / "report.html",
        title=title,
        summary=summary,
        command=experiments.running(),
        tables=tables,
        figures=[(caption, run.figure(name)) for caption, name in figures],
        config=run.config,
        usage=usage,
        epochs=run.history(),
    )
    run.write_results(results)
    for table in tables:
        experiments.print_table(table)
    print(f"{summary}\nReport: {run.folder / 'report.html'}\nUse it: {usage}")
