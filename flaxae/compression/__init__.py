"""Lossless compression: a codec that is trained on one's own kind of images, and files that decode alike everywhere.

    codec, _ = compression.fit(images)         # uint8 or uint16, [n, height, width, channels], or `data.images.open(…)`
    content = compression.compress(codec, x)   # bytes
    x = compression.decompress(codec, content)

Each value is predicted from the values around it by a small network, which gives a mixture of logistic distributions
(Salimans et al. 2017), and a range coder (constriction, Bamler 2022) writes it in as many bits as it surprises. The
trained network is rounded to whole numbers, so that every machine decodes the same, see `integers`.
"""

import numpy as np
from jaxtyping import Shaped

from flaxae.compression.codec import Codec as Codec
from flaxae.compression.codec import load as load
from flaxae.compression.contexts import Contexts as Contexts
from flaxae.compression.fitting import fit as fit


def compress(codec: Codec, x: Shaped[np.ndarray, "..."]) -> bytes:
    """The bytes of a file that holds x, see `Codec.compress`."""
    return codec.compress(x)


def decompress(codec: Codec, content: bytes) -> Shaped[np.ndarray, "..."]:
    """What was compressed, see `Codec.decompress`."""
    return codec.decompress(content)
