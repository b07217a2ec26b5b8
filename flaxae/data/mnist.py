"""The MNIST digits that are part of the package, so that a first run needs no network.

`mnist.xz` is made by `tools/embed_mnist.py`; `mnist.LICENSE.md` says whose data it is.
"""

import hashlib
import lzma
import pathlib

import numpy as np

from flaxae.data.parts import Parts
from flaxae.errors import DataError

_BUNDLE = pathlib.Path(__file__).with_name("mnist.xz")
_SHA256 = "8208b057b4d0582d64fbdaf94b1390206609cf51682b7824926f5071ccfab857"


def load() -> Parts:
    """Images uint8 [60000, 28, 28, 1] and [10000, 28, 28, 1], with their digits.

    Raises:
        DataError: the bundled file is missing or is not the one that flaxae was released with.
    """
    compressed = _BUNDLE.read_bytes() if _BUNDLE.is_file() else b""
    if hashlib.sha256(compressed).hexdigest() != _SHA256:
        raise DataError(f"{_BUNDLE} is missing or damaged: its checksum is not the expected one. Install flaxae again.")
    payload = np.frombuffer(bytearray(lzma.decompress(compressed)), np.uint8)
    train, train_labels, test, test_labels = np.split(payload, np.cumsum([60_000 * 784, 60_000, 10_000 * 784]))
    return Parts(
        train=train.reshape(-1, 28, 28, 1),
        test=test.reshape(-1, 28, 28, 1),
        train_labels=train_labels,
        test_labels=test_labels,
        classes=tuple("0123456789"),
    )
