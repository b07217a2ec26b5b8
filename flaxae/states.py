"""The state of a model as arrays by their names, and back."""

import pathlib
from typing import Any

import jax
import numpy as np

from flaxae import errors


def named(state: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """Each array of a tree by its path, such as encoder.stack.layers.0.linear.kernel, after the prefix."""
    paths = jax.tree_util.tree_leaves_with_path(state)
    return {prefix + _name(path): np.array(leaf, order="C") for path, leaf in paths}


def filled(like: Any, arrays: dict[str, np.ndarray], source: pathlib.Path, prefix: str = "") -> Any:
    """The tree `like`, of arrays or their shapes, with the arrays of those names.

    Args:
        source: by which messages call where they are from.

    Raises:
        RunError: an array is missing, or of another shape or type.
    """

    def found(path: Any, leaf: Any) -> np.ndarray:
        array = arrays.get(prefix + _name(path))
        if array is None or array.shape != leaf.shape or array.dtype != leaf.dtype:
            held = "none" if array is None else f"one of {array.dtype} {list(array.shape)}"
            raise errors.RunError(
                f"{source} should have an array {prefix + _name(path)!r} of {leaf.dtype} {list(leaf.shape)} by its "
                f"config.json; it has {held}."
            )
        return array

    return jax.tree_util.tree_map_with_path(found, like)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
