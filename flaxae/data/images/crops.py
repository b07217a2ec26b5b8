"""Random pieces of images, to train on."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from flaxae.data.images import collection
from flaxae.data.images.collection import Images
from flaxae.errors import DataError


def crops(
    images: Images, size: int, count: int, seed: int, *, start: int = 0, flips: bool = True
) -> Iterator[Float[np.ndarray, "count size size channels"]]:
    """Batches without end: random pieces of random images, turned and mirrored in one of eight ways.

    Step s is the same for the same seed, wherever it starts. Images that can't be read are left out (see
    `Images.check`). Where more images are there than can be kept decoded, those that a step takes from change one by
    one, so that at most one has to be read a step.

    Args:
        images: of one number of channels. One smaller than a piece is mirrored at its edges.
        size: height and width of a piece, in pixels.
        count: pieces a batch.
        seed: of all that is random.
        start: the step to begin with.
        flips: whether to turn and mirror.

    Raises:
        DataError: none can be read.
    """
    if images.channels is None:
        raise DataError("The images differ in their number of channels; open them with colours=1 or colours=3.")
    step = start
    while True:
        rng = np.random.default_rng((seed, step))
        out = np.empty((count, size, size, images.channels), np.float32)
        pool, done = _pool(images, seed, step), 0
        while done < count:
            pool = _readable(images, pool)
            chosen, times = np.unique(rng.choice(pool, count - done), return_counts=True)
            for i, pieces in zip(chosen.tolist(), times.tolist(), strict=True):
                try:
                    image = images.stored(i)
                except DataError as error:
                    images.leave_out(i, error)
                    continue
                for _ in range(pieces):
                    out[done] = images.scaled(i, _piece(image, size, rng, flips))
                    done += 1
        yield out
        step += 1


def _readable(images: Images, pool: np.ndarray) -> np.ndarray:
    """Those of the pool that are not known to be unreadable; of all, if none of it is left."""
    if not images.unreadable:
        return pool
    for numbers in (pool.tolist(), range(len(images))):
        known = [i for i in numbers if images.items[i].name not in images.unreadable]
        if known:
            return np.array(known)
    images.check()
    raise DataError(f"{images.source} holds no image that can be read.")


def _pool(images: Images, seed: int, step: int) -> np.ndarray:
    """The images that a step takes from: as many as are kept decoded, of an order drawn anew each time round."""
    largest = max(int(np.prod(images.shape_of(i))) for i in (0, len(images) // 2, len(images) - 1))
    kept = max(1, collection.CACHE_BYTES // (2 * largest))
    if kept >= len(images):
        return np.arange(len(images))
    rounds = range(step // len(images), (step + kept) // len(images) + 1)
    orders = [np.random.default_rng((seed, 1, number)).permutation(len(images)) for number in rounds]
    first = step % len(images)
    return np.concatenate(orders)[first : first + kept]


def _piece(image: np.ndarray, size: int, rng: np.random.Generator, flips: bool) -> np.ndarray:
    missing = [max(0, size - side) for side in image.shape[:2]]
    if any(missing):
        edges = [(short // 2, short - short // 2) for short in missing]
        image = np.pad(image, (*edges, (0, 0)), mode="symmetric")
    top, left = (int(rng.integers(side - size + 1)) for side in image.shape[:2])
    piece = image[top : top + size, left : left + size]
    if flips:
        way = int(rng.integers(8))
        piece = np.rot90(piece[:, ::-1] if way >= 4 else piece, way % 4)
    return piece
