"""Codecs of either kind from their folders."""

import io
import json
import os
import pathlib
from typing import Any

import numpy as np

from flaxae import atomic, errors, manifest
from flaxae.compression.codec import SETTINGS, WEIGHTS, Codec
from flaxae.compression.lossy import LossyCodec


def load(folder: str | os.PathLike[str]) -> Codec | LossyCodec:
    """What `Codec.save` or `LossyCodec.save` wrote.

    Raises:
        RunError: the folder holds no codec, or a file was changed after it was saved.
    """
    folder = atomic.settled(pathlib.Path(folder))
    settings, weights = manifest.content(folder, SETTINGS), manifest.content(folder, WEIGHTS)
    try:
        about: dict[str, Any] = json.loads(settings)
        if about.pop("format") != 1:
            raise ValueError("the codec is of a newer format; install a newer flaxae")
        with np.load(io.BytesIO(weights), allow_pickle=False) as file:
            arrays = dict(file)
        return LossyCodec.of(about, arrays) if about.get("kind") == "lossy" else Codec.of(about, arrays)
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise errors.RunError(f"{folder} holds no codec that can be read: {error}.") from error
