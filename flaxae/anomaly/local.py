"""Where in an image something is strange: a heat map, its peak, and boxes around what stands out.

What a linear autoencoder leaves over of an image (the residual of its principal components, fitted in closed form) is
squared, smoothed, and divided by what it is at that place in normal images. A nonlinear autoencoder that is trained on
a few hundred images leaves more over in normal ones too, among which a small defect is lost.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import ndimage
from sklearn.decomposition import PCA

LEAST_SIDE = 48  # pixels: of smaller images there are no small parts
COMPONENTS = 16
SCALES = (1.0, 2.0)  # pixels of an image of 64, that residuals are smoothed over
TOP = 0.01  # of the pixels, whose mean stands beside the largest
FOLDS = 4  # that what is usual is measured in, by components of the others
MOST_REFERENCES = 1024
FLOOR = 0.1  # of the mean over all pixels, so that what is always the same doesn't count for everything
AT_ONCE = 256  # images


class Region(NamedTuple):
    """A box around what is strange, in pixels from the left and from the top, and its share in all of the heat."""

    x: int
    y: int
    width: int
    height: int
    share: float

    def __str__(self) -> str:
        """As it stands in tables, such as "x 10–22 y 5–8"."""
        return f"x {self.x}–{self.x + self.width - 1} y {self.y}–{self.y + self.height - 1}"


@dataclasses.dataclass(frozen=True, eq=False)
class Local:
    """What is usual at each place. `fit` makes one; its arrays are what a detector's file holds."""

    mean: Float[np.ndarray, "height width channels"]
    components: Float[np.ndarray, "components values"]
    usual: Float[np.ndarray, "scales height width"]
    centre: Float[np.ndarray, " peaks"]  # medians of normal images' peaks
    spread: Float[np.ndarray, " peaks"]  # their median absolute deviations

    @classmethod
    def fit(cls, x: Float[np.ndarray, " images height width channels"], seed: int = 0) -> "Local":
        """Of normal images, scaled; each is measured by components of others."""
        x = x[np.sort(np.random.default_rng(seed).permutation(len(x))[:MOST_REFERENCES])]
        blank = np.ones((len(SCALES), *x.shape[1:3]), np.float32)
        none = np.zeros(2, np.float32)

        def of(part: np.ndarray) -> Local:
            values = part.reshape(len(part), -1)
            pca: Any = PCA(min(COMPONENTS, *values.shape), random_state=seed).fit(values)
            return cls(pca.mean_.reshape(x.shape[1:]), pca.components_, blank, none, none)

        fold = np.arange(len(x)) % FOLDS
        parts = [of(x[fold != i]).energy(x[fold == i]) for i in range(min(FOLDS, len(x) - 1)) if (fold != i).any()]
        energy = np.concatenate(parts, axis=1)
        width = 2 * unit(x.shape)
        usual = ndimage.gaussian_filter(energy.mean(axis=1), (0, width, width))
        usual += FLOOR * usual.mean(axis=(1, 2), keepdims=True) + 1e-9
        peaks = _peaks(energy / usual[:, None])
        centre = np.median(peaks, axis=0)
        spread = np.median(np.abs(peaks - centre), axis=0) + 1e-3
        whole = of(x)
        return cls(whole.mean, whole.components, usual, centre, spread)

    def heat(self, x: Float[np.ndarray, " images height width channels"]) -> Float[np.ndarray, "images height width"]:
        """How many times what is usual at each pixel, about 1 in normal images."""
        return np.concatenate([self._relative(part).mean(axis=0) for part in _parts(x)])

    def score(self, x: Float[np.ndarray, " images height width channels"]) -> Float[np.ndarray, " images"]:
        """How far an image's peaks stand out, in deviations of normal images'."""
        peaks = np.concatenate([_peaks(self._relative(part)) for part in _parts(x)])
        return ((peaks - self.centre) / self.spread).mean(axis=1)

    def energy(self, x: np.ndarray) -> Float[np.ndarray, "scales images height width"]:
        """The squared residual, smoothed."""
        apart = (x - self.mean).reshape(len(x), -1)
        residual = (apart - (apart @ self.components.T) @ self.components).reshape(x.shape)
        energy = np.square(residual).mean(axis=-1)
        pixels = unit(x.shape)
        return np.stack([ndimage.gaussian_filter(energy, (0, scale * pixels, scale * pixels)) for scale in SCALES])

    def _relative(self, x: np.ndarray) -> np.ndarray:
        return self.energy(x) / self.usual[:, None]


def regions(heat: Float[np.ndarray, "height width"], level: float, most: int) -> list[Region]:
    """Boxes around connected pixels hotter than `level`, those of the largest share first.

    Where none is so hot, they are around those of more than half of the largest heat.
    """
    marks: Any = np.zeros(heat.shape, np.int32)
    ndimage.label(heat > min(level, 0.5 * float(heat.max())), output=marks)
    total = max(float(heat.sum()), 1e-12)
    found = []
    for number, box in enumerate(ndimage.find_objects(marks), 1):
        if box is not None:
            rows, columns = box
            share = float(heat[box][marks[box] == number].sum()) / total
            size = columns.stop - columns.start, rows.stop - rows.start
            found.append(Region(columns.start, rows.start, *size, share))
    return sorted(found, key=lambda region: -region.share)[:most]


def unit(shape: tuple[int, ...]) -> float:
    """That a 64th of the smaller side has."""
    return min(shape[1:3]) / 64


def _peaks(relative: Float[np.ndarray, "scales images height width"]) -> Float[np.ndarray, "images 2"]:
    """Logs of the largest value at the fine scale, and of the mean of the largest hundredth at the coarse one."""
    fine, coarse = (values.reshape(len(values), -1) for values in (relative[0], relative[-1]))
    count = max(1, round(TOP * coarse.shape[1]))
    top = np.partition(coarse, -count, axis=1)[:, -count:].mean(axis=1)
    return np.log(np.stack([fine.max(axis=1), top], axis=1) + 1e-9)


def _parts(x: np.ndarray) -> list[np.ndarray]:
    return [x[i : i + AT_ONCE] for i in range(0, len(x), AT_ONCE)]
