"""Compression: a codec that is trained on one's own kind of images, and files that decode alike everywhere.

    codec, _ = compression.fit(images)         # uint8 or uint16, [n, height, width, channels], or `data.images.open(…)`
    content = compression.compress(codec, x)   # bytes
    x = compression.decompress(codec, content)

Each value is predicted from the values around it by a small network, which gives a mixture of logistic distributions
(Salimans et al. 2017), and a range coder (constriction, Bamler 2022) writes it in as many bits as it surprises. The
trained network is rounded to whole numbers, so that every machine decodes the same, see `integers`.

    codec, _ = compression.fit_lossy(images)   # uint8
    content = compression.compress(codec, x, quality=50)

is lossy, as JPEG is: an image becomes a grid of rounded numbers, see `transforms`, which is what a file holds exactly.
One codec has all qualities from 1 to 100.
"""

import numpy as np
from jaxtyping import Shaped

from flaxae import errors
from flaxae.compression.codec import Codec as Codec
from flaxae.compression.contexts import Contexts as Contexts
from flaxae.compression.fitting import fit as fit
from flaxae.compression.fitting import fit_lossy as fit_lossy
from flaxae.compression.loading import load as load
from flaxae.compression.lossy import LossyCodec as LossyCodec


def compress(codec: Codec | LossyCodec, x: Shaped[np.ndarray, "..."], *, quality: int | None = None) -> bytes:
    """The bytes of a file that holds x, see `Codec.compress` and `LossyCodec.compress`.

    Raises:
        ConfigError: a quality is given, and the codec is lossless.
    """
    if isinstance(codec, LossyCodec):
        return codec.compress(x, quality=quality)
    if quality is not None:
        raise errors.ConfigError("The codec is lossless, and has no quality: train a lossy one, such as --quality 75.")
    return codec.compress(x)


def decompress(codec: Codec | LossyCodec, content: bytes) -> Shaped[np.ndarray, "..."]:
    """What was compressed, or about that, see `Codec.decompress` and `LossyCodec.decompress`."""
    return codec.decompress(content)
