"""Objectives: what training minimises, one number an example.

An objective is any function `(model, x, key) -> [batch]`, in nats unless it says otherwise. It decides itself what it
does with the key (corruption, dropout, sampling); the one `.mean()` over examples is in the train step. Scalars it
weighs its terms by are the model's hyper-parameters (`model.hyper.beta[...]`): arrays, which a population can vary.

`model` is a `flaxae.autoencoder.Autoencoder`, which holds the objective that it is meant for.
"""

from collections.abc import Callable

import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

Objective = Callable[[nnx.Module, Float[Array, " batch *shape"], Key[Array, ""]], Float[Array, " batch"]]


def negative_log_likelihood(
    model: nnx.Module, x: Float[Array | np.ndarray, " batch *shape"], key: Key[Array, ""]
) -> Float[Array, " batch"]:
    """−log p(x | z), z the code of x, or of x̃ where the model has a corruption (Vincent et al. 2010, eq. 5)."""
    return -model.likelihood.log_prob(model(x, key).params, x)
