"""Where arrays come from, what is known of them, and how they are scaled."""

from flaxae.data.dataset import Dataset, load
from flaxae.data.files import read, write
from flaxae.data.scaling import Scaling

__all__ = ["Dataset", "Scaling", "load", "read", "write"]
