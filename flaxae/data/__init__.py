"""Where arrays come from, what is known of them, and how they are encoded, cut and scaled."""

from flaxae.data.dataset import Dataset, load
from flaxae.data.encoding import Encoding
from flaxae.data.files import read, read_signal, write
from flaxae.data.scaling import Scaling
from flaxae.data.signals import Framing, Signal, overlap_mean, starts, windows
from flaxae.data.stream import Stream

__all__ = [
    "Dataset",
    "Encoding",
    "Framing",
    "Scaling",
    "Signal",
    "Stream",
    "load",
    "overlap_mean",
    "read",
    "read_signal",
    "starts",
    "windows",
    "write",
]
