"""Training: the compiled step, the one loop around it, and what is built on both. Start reading at `fit`."""

from flaxae.batches import Examples
from flaxae.training import checkpoints, feed, fitting, loop, optimizers, population, precision, progress, step
from flaxae.training.examples import apply, check_examples, check_range, split
from flaxae.training.fitting import History, fit
from flaxae.training.optimizers import Optimizer
from flaxae.training.population import Member, Population, fit_population

__all__ = [
    "Examples",
    "History",
    "Member",
    "Optimizer",
    "Population",
    "apply",
    "check_examples",
    "check_range",
    "checkpoints",
    "feed",
    "fit",
    "fit_population",
    "fitting",
    "loop",
    "optimizers",
    "population",
    "precision",
    "progress",
    "split",
    "step",
]
