"""Generate: sample new examples, interpolate between examples, and estimate the likelihood of the data.

    python run.py --exp generate

trains a variational autoencoder on the embedded MNIST, with pixels binarised at random in every pass, for about two
minutes on two CPU cores. Then it samples the model, interpolates between test images, and estimates the test likelihood
in nats. With `--latent 2` it draws the whole map of the code. A trained run is sampled again by

    python run.py --exp generate --from runs/generate/1 --output samples.npy --count 1000

If the code has no prior, as with `--model vanilla`, a Gaussian mixture fitted to the codes is sampled. For the
likelihood as papers quote it: `--epochs 300 --draws 5000 --scored 10000`.
"""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from scipy import stats

from flaxae import autoencoder, data, density, experiments, objectives, trained, training
from flaxae.autoencoder import Autoencoder
from flaxae.data import Dataset
from flaxae.experiments import _flags, _steps, _sweep
from flaxae.nn import heads
from flaxae.nn.heads import Variational
from flaxae.objectives import Binarised
from flaxae.parallel import processes
from flaxae.printing import say
from flaxae.runs import Run, plots, report
from flaxae.training import History

COLUMNS, ROWS = 10, 5
CODES_FOR_MIXTURE = 20_000
IN_USE = 0.01  # nats of KL above which a latent is in use (Burda et al. 2016 find the same latents by their variance)


def apply(config: _flags.Generate) -> None:
    """Draw --count samples from the model of --from, and write them to --output."""
    model = trained.autoencoder_of(config.from_)
    drawn = model.scaling.undo(model.model.sample(config.count, jax.random.key(config.seed)))
    if model.kind == "image" and not config.output.suffix:
        data.write(config.output, {f"{i}.png": image for i, image in enumerate(drawn)})
    else:
        data.write(config.output, drawn, columns=model.columns, encoding=model.encoding)
    say(f"Drew {config.count:,} samples into {config.output}.")


def train(config: _flags.Generate) -> None:
    """Train and evaluate in a run's folder."""
    dataset = _steps.load(config)
    model = _steps.preset(config, dataset)
    binarise = config.binarise and dataset.kind == "image" and isinstance(model.head, Variational)
    if binarise:
        model = dataclasses.replace(model, objective=Binarised(model.objective))
    with _steps.start("generate", config, dataset, model) as run:
        if config.sweep:
            _sweep.compare(config, run, dataset, model, measure(model))
            return
        network, history = _steps.train(config, run, dataset, model)
        processes.leave_to_first()
        evaluate(config, run, network, history, dataset, binarise=binarise)


def measure(model: autoencoder.Config) -> _sweep.Measure:
    """The measure of a sweep: −ELBO at β = 1, whatever β the model was trained with; without a prior, the error."""
    if not isinstance(model.head, Variational):
        return _sweep.reconstruction()
    bound = objectives.ImportanceWeighted(samples=1)  # with a single sample, it is the ELBO
    objective = objectives.Binarised(bound) if isinstance(model.objective, objectives.Binarised) else bound
    return _sweep.Measure(objective, "negative_elbo_nats", "−ELBO (nats)")


def evaluate(
    config: _flags.Generate, run: Run, model: Autoencoder, history: History, dataset: Dataset, *, binarise: bool
) -> None:
    """Draw samples, interpolations and maps; measure the likelihood; write results.json and the report."""

    def decode(z: np.ndarray) -> np.ndarray:
        return np.asarray(model.decode(np.asarray(z, np.float32)))

    is_variational = isinstance(model.head, heads.Probabilistic)
    draw = grid if dataset.kind == "image" else curves
    samples = sample(config, model, dataset, decode)
    data.write(
        run.folder / ("samples.csv" if dataset.kind == "tabular" else "samples.npy"),
        dataset.scaling.undo(samples),
        columns=dataset.columns,
        encoding=dataset.encoding,
    )
    draw({str(row + 1): samples[row * COLUMNS : (row + 1) * COLUMNS] for row in range(ROWS)}, run, "samples")
    draw(interpolations(model, dataset, decode), run, "interpolations")
    figures = [
        ("Samples.", "samples"),
        ("From one test example, left, to another, in equal steps of the code.", "interpolations"),
    ]
    results = {}
    tables, summary = [], f"{len(samples)} samples are in {run.folder}, drawn from a Gaussian mixture of the codes."
    if is_variational:
        scores, kl = likelihood(config, model, dataset, binarise=binarise)
        plots.bars(kl, run.figure("kl"), x_label="latent", y_label="KL (nats)")
        figures.append(("What each latent tells of an example, on average.", "kl"))
        names = {
            "elbo_nats": report.Column("ELBO (nats)", better="higher"),
            "nll_nats": report.Column("−log p(x) (nats)", better="lower"),
            "kl_nats": "KL (nats)",
        }
        names["latents_in_use"] = "latents in use"
        caption = f"{dataset.name}, test examples; −log p(x) by {config.draws:,} draws of {config.scored:,} of them"
        tables = [report.Table(caption, list(names.values()), [[scores[name] for name in names]])]
        results |= {f"test/{name}": value for name, value in scores.items()}
        summary = (
            f"−log p(x) of test examples is {scores['nll_nats']:.2f} nats, {scores['latents_in_use']} of {len(kl)} "
            f"latents are in use; {len(samples)} samples are in {run.folder}."
        )
        if kl.size == 2:
            draw(latent_map(decode), run, "map")
            figures.append(("The code's plane: quantiles 5 to 95 % of both latents.", "map"))
    usage = (
        experiments.command("generate", from_=run.folder, output=_steps.new_file(dataset, "samples"))
        if is_variational
        else f'import flaxae\nflaxae.load("{run.folder}").decode(z)'
    )
    _steps.finish(run, f"Generating {dataset.name}", summary, tables, figures, results, usage, history=history)


def sample(
    config: _flags.Generate, model: Autoencoder, dataset: Dataset, decode: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Samples from the code's prior if it has one, else from a mixture fitted to the codes of training examples."""
    if isinstance(model.head, heads.Probabilistic):
        return np.asarray(model.sample(ROWS * COLUMNS, jax.random.key(config.seed)))
    codes = training.apply(Autoencoder.encode, model, dataset.scaling(dataset.train[:CODES_FOR_MIXTURE]))
    components = min(config.components, max(1, len(codes) // 2))
    mixture = density.Mixture.fit(codes, components=components, seed=config.seed)
    return decode(mixture.sample(ROWS * COLUMNS, seed=config.seed))


def interpolations(
    model: Autoencoder, dataset: Dataset, decode: Callable[[np.ndarray], np.ndarray]
) -> dict[str, np.ndarray]:
    """The means of p(x | z) along straight lines in the code, between pairs of the first test examples."""
    pairs = min(ROWS, len(dataset.test) // 2)
    codes = training.apply(Autoencoder.encode, model, dataset.scaling(dataset.test[: 2 * pairs]))
    share = np.linspace(0, 1, COLUMNS)[:, None]
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
