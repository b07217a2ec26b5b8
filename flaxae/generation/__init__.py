"""Generation: new examples from any trained model, and how good they are.

    prior = generation.fit(model, x, labels, classes)            # a density of the codes of x
    samples = generation.sample(model, prior, 100, label="7")
    space = generation.learn(x, labels)                          # features to judge samples by
    generation.compare(space, samples, x_test)

`fit` gives any model a prior: a mixture of factor analysers fitted to its codes, with components of its own for each
class. It is saved with the model, and `Trained.sample` draws from it. A variational model is sampled so too: its codes,
taken all together, seldom have the distribution of the prior that it was trained with.
"""

from flaxae.generation.prior import CodePrior, codes, fit, sample
from flaxae.generation.quality import (
    FeatureSpace,
    Quality,
    compare,
    frechet_distance,
    kernel_distance,
    learn,
    nearest,
    of_codes,
    precision_recall,
)
from flaxae.generation.tables import TableQuality, compare_tables

__all__ = [
    "CodePrior",
    "FeatureSpace",
    "Quality",
    "TableQuality",
    "codes",
    "compare",
    "compare_tables",
    "fit",
    "frechet_distance",
    "kernel_distance",
    "learn",
    "nearest",
    "of_codes",
    "precision_recall",
    "sample",
]
