"""What stands for values that are missing: what the others of the row let expect."""

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from jaxtyping import Float

from flaxae.data.scaling import robust_moments
from flaxae.errors import ConfigError

MOST = 128  # features that covariances are kept of; of more, medians stand for what is missing
ROUNDS = 5  # of expectation and maximisation
CLIP = 5.0  # robust deviations: one glitch must not decide what is expected
RIDGE = 0.01  # of the variances: the covariance can be solved with


@dataclasses.dataclass(frozen=True, eq=False)
class Filling:
    """A normal distribution over the features of a table, fitted to rows with gaps by expectation and maximisation.

    A missing value becomes its mean given those of the row that are there (Little & Rubin 2002, section 11.2). So a
    row isn't strange for having a gap, as it would be with the column's median beside unusual values.
    """

    centre: Float[np.ndarray, " features"]
    scale: Float[np.ndarray, " features"]
    covariance: Float[np.ndarray, "features features"] | None  # of what is centred and scaled; None: of too many

    @classmethod
    def fit(cls, x: Float[np.ndarray, "rows features"]) -> "Filling":
        """Fitted to rows in which NaN is what is missing; no feature is missing everywhere."""
        centre, scale = robust_moments(x)
        scale = np.where(scale > 0, scale, 1.0)
        features = x.shape[1]
        if features > MOST:
            return cls(centre, scale, None)
        z = np.clip((x - centre) / scale, -CLIP, CLIP)
        missing = np.isnan(z)
        mean, covariance = np.zeros(features), np.eye(features)
        filled = np.where(missing, 0.0, z)
        for _ in range(ROUNDS if missing.any() else 1):
            uncertain = np.zeros((features, features))
            if missing.any():
                filled, uncertain = _expected(z, missing, mean, covariance)
            mean = filled.mean(axis=0)
            covariance = np.cov(filled, rowvar=False, bias=True).reshape(features, features) + uncertain / len(z)
            covariance = covariance + RIDGE * np.diag(np.diag(covariance) + 1e-6)
        return cls(centre + scale * mean, scale, covariance)

    def __call__(self, x: Float[np.ndarray, "rows features"]) -> Float[np.ndarray, "rows features"]:
        """The rows with what is missing (NaN) filled."""
        missing = np.isnan(x)
        if not missing.any():
            return x
        rows = missing.any(axis=1)
        z = np.clip((x[rows] - self.centre) / self.scale, -CLIP, CLIP)
        if self.covariance is None:
            filled = np.zeros_like(z)
        else:
            filled, _ = _expected(z, missing[rows], np.zeros(x.shape[1]), self.covariance)
        made = x.copy()
        made[rows] = np.where(missing[rows], self.centre + self.scale * filled, x[rows])
        return made

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        covariance = None if self.covariance is None else [[float(f"{v:.6g}") for v in row] for row in self.covariance]
        return {"centre": self.centre.tolist(), "scale": self.scale.tolist(), "covariance": covariance}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], features: int) -> "Filling":
        """The inverse of `to_dict`, of so many features.

        Raises:
            ConfigError: a field is missing, unknown, or has a value that no filling can have.
        """
        try:
            arrays = {name: None if value is None else np.array(value, np.float64) for name, value in fields.items()}
            made = cls(**cast(Any, arrays))
            shapes = [
                made.centre.shape,
                made.scale.shape,
                (features,) if made.covariance is None else made.covariance[0].shape,
            ]
            finite = all(array is None or np.isfinite(array).all() for array in arrays.values())
            if shapes != [(features,)] * 3 or not finite or (made.scale <= 0).any():
                raise ValueError(f"its shapes are {shapes}")
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            raise ConfigError(f"A filling of {features} features is damaged: {error}.") from error
        return made


def _expected(
    z: Float[np.ndarray, "rows features"], missing: np.ndarray, mean: np.ndarray, covariance: np.ndarray
) -> tuple[Float[np.ndarray, "rows features"], Float[np.ndarray, "features features"]]:
    """The rows filled by their conditional means, and the sum of the conditional covariances, pattern by pattern."""
    filled, uncertain = np.where(missing, 0.0, z), np.zeros_like(covariance)
    patterns, which = np.unique(missing, axis=0, return_inverse=True)
    for number, gone in enumerate(patterns):
        if not gone.any():
            continue
        rows, there = np.flatnonzero(which.ravel() == number), ~gone
        across = covariance[np.ix_(gone, there)]
        weights = np.linalg.solve(covariance[np.ix_(there, there)], across.T).T
        filled[np.ix_(rows, gone)] = mean[gone] + (z[np.ix_(rows, there)] - mean[there]) @ weights.T
        uncertain[np.ix_(gone, gone)] += len(rows) * (covariance[np.ix_(gone, gone)] - weights @ across.T)
    return filled, uncertain
