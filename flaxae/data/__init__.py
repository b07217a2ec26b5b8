"""Where arrays come from, what is known of them, and how they are scaled."""

from flaxae.data.dataset import Dataset, load
from flaxae.data.files import read, write
from flaxae.data.scaling import Scaling
from flaxae.data.stream import Stream

__all__ = ["Dataset", "Scaling", "Stream", "load", "read", "write"]
