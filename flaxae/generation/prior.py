"""A prior fitted to the codes of a trained model, so that any model can be sampled: a mixture.

With labels, each class has components of its own, so that a class can be asked for. Large codes, such as grids, are
first projected on their principal components; what these leave is normal noise of the deviation that it had.
"""

import dataclasses
import json
import math
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flaxae import atomic, batches, data, errors, manifest, training
from flaxae.autoencoder import Autoencoder
from flaxae.batches import Examples
from flaxae.columns import Columns
from flaxae.density import FACTORS, Mixture
from flaxae.nn.heads import Probabilistic

MOST_CODES = 60_000  # that a prior is fitted to
MOST_AXES = 256  # principal components of larger codes that the mixture is of
CODES_EACH = 100  # codes for each component
MOST_COMPONENTS = 4000  # for all classes together
FILES = frozenset({"prior.npz", "prior.json"})

Flat = Float[np.ndarray, "examples latent"]


@dataclasses.dataclass(frozen=True, eq=False)
class CodePrior:
    """A density of codes: a mixture on principal axes, where each component may belong to a class.

    `fit` makes one from the examples, `CodePrior.fit` from the codes.
    """

    mixture: Mixture  # of the codes on the axes
    shapes: tuple[tuple[int, ...], ...]  # of the code's parts, for one example
    mean: Float[np.ndarray, " latent"]
    axes: Float[np.ndarray, "axes latent"] | None = None  # None: the mixture is of the codes themselves
    rest: Float[np.ndarray, " latent"] | None = None  # the deviation of what the axes leave
    of_class: Int[np.ndarray, " components"] | None = None  # the class of each component
    classes: tuple[str, ...] = ()

    @classmethod
    def fit(
        cls,
        codes: Any,
        labels: Int[np.ndarray, " examples"] | None = None,
        classes: tuple[str, ...] = (),
        *,
        components: int | None = None,
        seed: int = 0,
    ) -> "CodePrior":
        """A prior of those codes.

        Args:
            codes: an array [examples, *code], or a tuple of such arrays.
            labels: indices into `classes`. Examples with the label −1 are left out.
            components: for all classes together, shared out by how frequent they are, each of them having one at least.
                By default one for every `CODES_EACH` codes, `MOST_COMPONENTS` at most.

        Raises:
            ConfigError: there are more components than half the codes, or the code's parts have names.
        """
        parts = _parts(codes)
        flat = np.concatenate([np.asarray(part, np.float64).reshape(len(part), -1) for part in parts], axis=1)
        kept = np.arange(len(flat)) if labels is None else np.flatnonzero(labels >= 0)
        kept = np.random.default_rng(seed).permutation(kept)[:MOST_CODES]
        flat, labels = flat[kept], None if labels is None else labels[kept]
        mean, axes, rest = flat.mean(axis=0), None, None
        on_axes = flat - mean
        if flat.shape[1] > MOST_AXES:
            axes, rest = _principal_axes(on_axes, seed)
            on_axes = on_axes @ axes.T
        shapes = tuple(part.shape[1:] for part in parts)
        components = components or min(MOST_COMPONENTS, max(1, len(flat) // CODES_EACH))
        if labels is None:
            return cls(_rounded(_mixture(on_axes, components, seed)), shapes, mean, axes, rest)
        mixture, of_class = _of_classes(on_axes, labels, components, seed)
        return cls(_rounded(mixture), shapes, mean, axes, rest, of_class, tuple(classes))

    def sample(self, n: int, *, label: str | None = None, seed: int = 0) -> Any:
        """n codes: an array [n, *code], or a tuple of such arrays. With a `label`, all are of that class.

        Raises:
            ConfigError: there is no such class.
        """
        mixture = self.mixture if label is None else self._of(label)
        z = mixture.sample(n, seed=seed).astype(np.float64)
        if self.axes is not None and self.rest is not None:
            noise = np.random.default_rng((seed, 1)).standard_normal((n, self.axes.shape[1]))
            noise -= noise @ self.axes.T @ self.axes
            z = z @ self.axes + noise * self.rest
        z = (z + self.mean).astype(np.float32)
        ends = np.cumsum([math.prod(shape) for shape in self.shapes])[:-1]
        parts = [part.reshape(n, *shape) for part, shape in zip(np.split(z, ends, axis=1), self.shapes, strict=True)]
        return parts[0] if len(parts) == 1 else tuple(parts)

    def _of(self, label: str) -> Mixture:
        if self.of_class is None:
            raise errors.ConfigError(
                f"There is no class {label!r}: the prior was fitted without labels. Give it labels, such as --label "
                "COLUMN for a table."
            )
        named = [self.classes[index] for index in np.unique(self.of_class)]
        if label not in named:
            raise errors.ConfigError(errors.unknown("class", label, named))
        chosen = self.of_class == self.classes.index(label)
        mixture = self.mixture
        return Mixture(*(getattr(mixture, field.name)[chosen] for field in dataclasses.fields(Mixture)))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Into a folder of its own, with a manifest: arrays in `.npz`, the rest in JSON."""
        arrays = dataclasses.asdict(self.mixture)
        arrays["mean"] = self.mean
        others = {"axes": self.axes, "rest": self.rest, "of_class": self.of_class}
        arrays |= {name: array for name, array in others.items() if array is not None}
        pathlib.Path(folder).parent.mkdir(parents=True, exist_ok=True)
        with manifest.replacing(pathlib.Path(folder), FILES) as unfinished:
            np.savez(unfinished / "prior.npz", **arrays)
            about = json.dumps({"shapes": self.shapes, "classes": self.classes})
            (unfinished / "prior.json").write_text(about + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "CodePrior":
        """What `save` wrote.

        Raises:
            RunError: the folder holds no prior, a file was changed after it was saved, or it is of another run.
        """
        folder = atomic.settled(pathlib.Path(folder))
        manifest.check(folder)
        with manifest.reading(folder, "prior"):
            about = json.loads((folder / "prior.json").read_text(encoding="utf-8"))
            arrays = data.arrays.read_npz(folder / "prior.npz")
            mixture = Mixture(*(arrays.pop(field.name) for field in dataclasses.fields(Mixture)))
            shapes = tuple(tuple(shape) for shape in about["shapes"])
            prior = cls(mixture, shapes, classes=tuple(about["classes"]), **arrays)
            size = sum(map(math.prod, shapes))
            fits = prior.mean.shape == (size,) and mixture.means.shape == mixture.deviations.shape
            if not fits or (prior.axes is not None and prior.axes.shape != (mixture.means.shape[1], size)):
                raise ValueError("its arrays don't fit together")
        return prior


def fit(
    model: Autoencoder,
    x: Examples,
    labels: Int[np.ndarray, " examples"] | None = None,
    classes: tuple[str, ...] = (),
    *,
    components: int | None = None,
    seed: int = 0,
) -> CodePrior:
    """A prior of the model's codes of x, scaled as the model sees it. See `CodePrior.fit`."""
    return CodePrior.fit(codes(model, x, seed=seed), labels, classes, components=components, seed=seed)


def codes(model: Autoencoder, x: Examples, *, seed: int = 0) -> Any:
    """The codes that the decoder was trained on: draws from q(z | x) if there is one, else the deterministic codes."""
    if not isinstance(model.head, Probabilistic):
        return training.apply(Autoencoder.encode, model, x)
    keys = jax.random.split(jax.random.key(seed), batches.count(x))
    return training.apply(_draw, model, (np.asarray(x), np.asarray(jax.random.key_data(keys))))


def _draw(model: Autoencoder, given: tuple[Array, Array]) -> Any:
    x, keys = given
    latent = model.head(model.features(x))
    return model.head.draw(latent, jax.random.wrap_key_data(keys[0]))


def sample(
    model: Autoencoder, prior: CodePrior | None, n: int, *, label: str | None = None, seed: int = 0
) -> Float[np.ndarray, " n *shape"]:
    """The means of p(x | z) at n codes drawn from the prior, in the model's scale. Without one, from the head's own.

    Where codes are deterministic, what is decoded is reconstructed once: a step of the Markov chain that leads from
    any code to those of the data (Bengio et al. 2013, Generalized Denoising Auto-Encoders as Generative Models). Of
    tables, a row is drawn from p(x | z): the mean of a category would be no category. A head that gives only some
    codes, such as a quantiser, has the drawn ones brought to the nearest of those.

    Raises:
        ConfigError: the prior has no such class, or there is none at all.
    """
    if prior is None:
        if not isinstance(model.head, Probabilistic):
            raise errors.ConfigError(
                f"The model has no prior to sample from, and its head {type(model.head).__name__} has none either. "
                "Fit one to the codes of the training data: `trained.with_prior(x)`, or on the command line "
                "--exp generate --from RUN --data DATA."
            )
        if label is not None:
            raise errors.ConfigError(f"The model's own prior knows no classes, so that {label!r} can't be asked for.")
        z = model.head.sample(n, jax.random.key(seed))
    else:
        z = prior.sample(n, label=label, seed=seed)
    if isinstance(model.likelihood, Columns):
        params = jnp.asarray(training.apply(_params, model, z))
        return np.asarray(model.likelihood.sample(params, jax.random.key(seed)))
    made = training.apply(_decode, model, z)
    return made if isinstance(model.head, Probabilistic) else training.apply(Autoencoder.reconstruct, model, made)


def _params(model: Autoencoder, z: Any) -> Float[Array, " batch *params"]:
    return model.params(model.head.nearest(z) if hasattr(model.head, "nearest") else z, None, None)


def _decode(model: Autoencoder, z: Any) -> Float[Array, " batch *shape"]:
    return model.decode(model.head.nearest(z) if hasattr(model.head, "nearest") else z)


def _of_classes(
    codes: Flat, labels: Int[np.ndarray, " examples"], components: int, seed: int
) -> tuple[Mixture, Int[np.ndarray, " components"]]:
    """A mixture with components for each class, and the class of each component."""
    of_class, mixtures, shares = [], [], []
    for label in np.unique(labels):
        own = codes[labels == label]
        number = round(components * len(own) / len(codes))
        mixtures.append(_mixture(own, min(max(1, number), max(1, len(own) // 2)), seed))
        shares.append(mixtures[-1].weights * (len(own) / len(codes)))
        of_class += [label] * len(shares[-1])
    others = [
        np.concatenate([getattr(mixture, name) for mixture in mixtures]) for name in ("means", "factors", "deviations")
    ]
    return Mixture(np.concatenate(shares), *others), np.array(of_class, np.int64)


def _rounded(mixture: Mixture) -> Mixture:
    """In float32, in which it is saved."""
    return Mixture(*(array.astype(np.float32) for array in dataclasses.astuple(mixture)))


def _mixture(codes: Flat, components: int, seed: int) -> Mixture:
    if len(codes) > 1:
        return Mixture.fit(codes, components=components, seed=seed)
    return Mixture(np.ones(1), codes, np.zeros((1, min(FACTORS, codes.shape[1]), codes.shape[1])), np.zeros_like(codes))


def _principal_axes(codes: Flat, seed: int) -> tuple[Float[np.ndarray, "axes latent"], Float[np.ndarray, " latent"]]:
    """The first axes, and the deviation of what they leave, of centred codes."""
    from sklearn.decomposition import PCA

    solver = "randomized" if codes.shape[1] > 1024 else "auto"
    pca = PCA(min(MOST_AXES, len(codes)), svd_solver=solver, random_state=seed).fit(codes)
    left = codes - pca.transform(codes) @ pca.components_
    return np.asarray(pca.components_), left.std(axis=0)


def _parts(codes: Any) -> list[np.ndarray]:
    if isinstance(codes, tuple) and not hasattr(codes, "_fields"):
        return [np.asarray(part) for part in codes]
    if not hasattr(codes, "shape"):
        raise errors.ConfigError(
            f"A prior is fitted to a code that is an array, or a tuple of arrays; the model's is a "
            f"{type(codes).__name__}."
        )
    return [np.asarray(codes)]
