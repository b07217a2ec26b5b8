"""What a model is trained on: an array of examples, or a tree of arrays that says more about each of them.

Everything that takes examples takes either: `fit(model, x)`, or `fit(model, {"x": noisy, "target": clean})`. An
objective is given a batch of the same structure; `Batch.of` turns either into a `Batch`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar, Union

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from flaxae import errors

Values = Shaped[Array | np.ndarray, " batch *shape"]
Tree = TypeVar("Tree")


class Batch(NamedTuple):
    """Examples, and what is known of each. Your own objective is given the mapping, so it may use further arrays.

    Args:
        x: what the model sees.
        target: what the model should return for x, such as the clean image of a noisy one; by default x itself.
        condition: numbers appended to the encoder's features and to the code of a conditional model (Sohn et al. 2015).
        label: a class, −1 where it is unknown; for objectives that use it.
        weight: how much an example counts: 2 is the same as having the example twice.
        observed: which values of x are known. The model sees the others as 0, and the loss leaves them out.
    """

    x: Values
    target: Values | None = None
    condition: Float[Array | np.ndarray, " batch conditions"] | None = None
    label: Shaped[Array | np.ndarray, " batch *labels"] | None = None
    weight: Float[Array | np.ndarray, " batch"] | None = None
    observed: Bool[Array | np.ndarray, " batch *shape"] | None = None

    @classmethod
    def of(cls, given: Any) -> "Batch":
        """A batch from an array x, from a mapping with "x" and any of the other fields, or from a batch.

        Raises:
            DataError: the mapping has no "x".
        """
        if isinstance(given, cls):
            return given
        if not isinstance(given, Mapping):
            return cls(given)
        if "x" not in given:
            raise errors.DataError(
                f"The batch has {', '.join(map(str, given)) or 'nothing'}; it has to have x, and may have "
                f"{', '.join(cls._fields[1:])}."
            )
        return cls(**{name: given[name] for name in cls._fields if name in given})

    @property
    def wanted(self) -> Values:
        """What the model should return for x: the target, or x itself."""
        return self.x if self.target is None else self.target

    @property
    def where(self) -> Bool[Array | np.ndarray, " batch *shape"] | None:
        """Which of the `wanted` values are known; None for all. A separate target is always known in full."""
        return self.observed if self.target is None else None


Examples = Union[Values, Mapping[str, Any], Batch]  # noqa: UP007 (jaxtyping's types are strings to `|`)


def replaced(given: Any, x: Any) -> Any:
    """The given array, mapping or batch with another x."""
    if isinstance(given, Batch):
        return given._replace(x=x)
    return {**given, "x": x} if isinstance(given, Mapping) else x


def unmasked(given: Any) -> Any:
    """The given examples. If their x is a masked array of `numpy.ma`, its masked values become not `observed`.

    Raises:
        DataError: an array other than x is masked, or `observed` is given too.
    """
    x = given if isinstance(given, np.ma.MaskedArray) else None
    if isinstance(given, Mapping | Batch):
        known = given._asdict() if isinstance(given, Batch) else dict(given)
        masked = [name for name, values in known.items() if isinstance(values, np.ma.MaskedArray)]
        if masked not in ([], ["x"]) or (masked and known.get("observed") is not None):
            raise errors.DataError(
                f"{', '.join(masked)} is masked; only x may be, and without `observed` beside it. Fill the others."
            )
        x = known["x"] if masked else None
    if x is None:
        return given
    seen = np.where(np.ma.getmaskarray(x), np.zeros((), x.dtype), x.data)
    if not np.ma.is_masked(x):
        return seen if given is x else replaced(given, seen)
    observed = ~np.ma.getmaskarray(x)
    if isinstance(given, Batch):
        return given._replace(x=seen, observed=observed)
    return {**(given if isinstance(given, Mapping) else {}), "x": seen, "observed": observed}


def count(examples: Any) -> int:
    """How many examples there are.

    Raises:
        DataError: the arrays of a tree differ in length.
    """
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(examples)}
    if len(lengths) != 1 or () in lengths:
        named = ", ".join(
            f"{jax.tree_util.keystr(path, simple=True) or 'x'} {list(np.shape(leaf))}"
            for path, leaf in jax.tree_util.tree_leaves_with_path(examples)
        )
        raise errors.DataError(f"Every array has to have as many examples; given were: {named or 'none'}.")
    return lengths.pop()[0]


def take(examples: Tree, index: Any) -> Tree:
    """The examples at `index`, a slice or an array of numbers, of each array."""
    return jax.tree.map(lambda leaf: leaf[index], examples)
