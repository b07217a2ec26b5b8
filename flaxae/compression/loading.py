"""Codecs of either kind from their folders."""

import json
import os
import pathlib
from typing import Any

from flaxae import atomic, errors, manifest
from flaxae.compression.codec import SETTINGS, WEIGHTS, Codec
from flaxae.compression.lossy import LossyCodec
from flaxae.data.arrays import read_npz


def load(folder: str | os.PathLike[str]) -> Codec | LossyCodec:
    """What `Codec.save` or `LossyCodec.save` wrote.

    Raises:
        RunError: the folder holds no codec, or a file was changed after it was saved.
    """
    folder = atomic.settled(pathlib.Path(folder))
    manifest.check(folder)
    with manifest.reading(folder, "codec"):
        about: dict[str, Any] = json.loads((folder / SETTINGS).read_bytes())
        if about.pop("format") != 1:
            raise errors.RunError(f"{folder} holds a codec of a newer format; install a newer flaxae.")
        arrays = read_npz(folder / WEIGHTS)
        return LossyCodec.of(about, arrays) if about.get("kind") == "lossy" else Codec.of(about, arrays)
