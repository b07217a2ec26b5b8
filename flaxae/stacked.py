"""Greedy pre-training of a fully connected stack, layer by layer (Bengio et al. 2007; Vincent et al. 2010)."""

import os
import pathlib
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from flaxae import corruptions, errors, training
from flaxae.autoencoder import Autoencoder
from flaxae.likelihoods import Gaussian
from flaxae.nn import heads
from flaxae.nn.mlp import Dense, MLPDecoder, MLPEncoder
from flaxae.training import Examples, History, checkpoints


def pretrain(
    model: Autoencoder,
    x: Examples,
    *,
    epochs: int = 3,
    noise: float = 0.0,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    **settings: Any,
) -> list[History]:
    """Train each layer of the encoder, with its mirror in the decoder, to reconstruct the output of the layers before.

    The layers are the model's own, so that `training.fit(model, x)` can then train all of them together.

    Args:
        model: fully connected, with a deterministic head.
        x: scaled as the model's likelihood expects.
        epochs: for each layer.
        noise: fraction of each layer's input that is set to 0 in training.
        folder: for checkpoints; each layer has a subfolder of its own.
        resume: go on from the checkpoints in `folder`, if there are any.
        settings: passed to `training.fit`.

    Returns:
        The history of each layer, outermost first. The loss of the first is under the model's likelihood; that of the
        others is under a Gaussian of the layer's input.

    Raises:
        ConfigError: the model is not a fully connected stack with a deterministic head.
        DataError: x doesn't fit the model.
    """
    parts = (model.encoder, model.head, model.decoder)
    if not all(map(isinstance, parts, (MLPEncoder, heads.LinearHead, MLPDecoder))):
        raise errors.ConfigError(
            "Only a fully connected stack with a deterministic head is trained layer by layer, such as "
            f"`presets.stacked()`; the model has {', '.join(type(part).__name__ for part in parts)}."
        )
    h = np.asarray(training.check_examples(model, x)).reshape(len(x), -1)
    encoders, decoders = list(model.encoder.stack.layers), [model.decoder.out, *reversed(model.decoder.stack.layers)]
    histories = []
    for i, decoder in enumerate(decoders):
        innermost = i == len(encoders)
        layer = Autoencoder(
            _Layer(None if innermost else encoders[i]),
            model.head if innermost else heads.IdentityHead(),
            _Layer(decoder),
            likelihood=model.likelihood if i == 0 else Gaussian(),
            corruption=corruptions.Masking(noise),
        )
        own = None if folder is None else pathlib.Path(folder, f"layer-{i + 1}")
        begun = resume and checkpoints.begun(own)
        histories.append(training.fit(layer, h, epochs=epochs, folder=own, resume=begun, **settings))
        if not innermost:
            h = training.apply(Autoencoder.encode, layer, h)
    return histories


class _Layer(nnx.Module):
    """One layer of the stack as an encoder or decoder; None is the identity."""

    def __init__(self, layer: nnx.Module | None):
        self.layer = layer

    def __call__(
        self, x: Float[Array | np.ndarray, "batch inputs"], key: Key[Array, ""] | None = None
    ) -> Float[Array | np.ndarray, "batch outputs"]:
        if self.layer is None:
            return x
        return self.layer(x, key) if isinstance(self.layer, Dense) else self.layer(x)
