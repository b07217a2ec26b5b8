"""JPEG and WebP, by Pillow, to compare a lossy codec with."""

import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from flaxae import metrics

Pixels = UInt8[np.ndarray, "height width channels"]
Coder = Callable[[Pixels, int], tuple[int, Pixels]]  # (image, quality) to its bytes and what comes back
MOST_WEBP = 16383  # pixels a side


def jpeg(pixels: Pixels, quality: int) -> tuple[int, Pixels]:
    """The bytes of a JPEG, with colours at half the size (4:2:0), and what comes back. Qualities of 1 to 95."""
    return _saved(pixels, "JPEG", quality=quality, **({"subsampling": "4:2:0"} if pixels.shape[2] == 3 else {}))


def webp(pixels: Pixels, quality: int) -> tuple[int, Pixels]:
    """The bytes of a lossy WebP, and what comes back. Qualities of 0 to 100."""
    return _saved(pixels, "WEBP", quality=quality)


CODERS: dict[str, tuple[Coder, tuple[int, int]]] = {"JPEG": (jpeg, (1, 95)), "WebP": (webp, (1, 100))}


def _saved(pixels: Pixels, kind: str, **settings: Any) -> tuple[int, Pixels]:
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, kind, **settings)
    with Image.open(file) as image:
        back = np.asarray(image.convert("L" if pixels.shape[2] == 1 else "RGB"))
    return len(file.getvalue()), back.reshape(pixels.shape)


def psnr(made: Pixels, pixels: Pixels) -> float:
    """In dB, of one image of 8 bits; 100 dB where nothing differs."""
    error = float(np.mean(np.square(made.astype(np.float32) - pixels)))
    return min(metrics.PSNR_CEILING_DB, float(10 * np.log10(255**2 / max(error, 1e-12))))


def ms_ssim(made: Pixels, pixels: Pixels) -> float | None:
    """See `metrics.ms_ssim`; None of an image that is too small for it."""
    if min(pixels.shape[:2]) < 11:
        return None
    return metrics.ms_ssim(made.astype(np.float32), pixels.astype(np.float32), peak=255.0)


def at_psnr(name: str, pixels: Pixels, wanted: float) -> int:
    """The bytes of an image at the lowest quality of JPEG or WebP with at least that PSNR, or at the highest."""
    coder, (low, high) = CODERS[name]
    while low < high:
        middle = (low + high) // 2
        if psnr(coder(pixels, middle)[1], pixels) >= wanted:
            high = middle
        else:
            low = middle + 1
    return coder(pixels, low)[0]


def at_size(name: str, pixels: Pixels, most: int) -> Pixels:
    """What comes back of an image from JPEG or WebP at the highest quality of at most so many bytes, or the lowest."""
    coder, (low, high) = CODERS[name]
    while low < high:
        middle = (low + high + 1) // 2
        if coder(pixels, middle)[0] <= most:
            low = middle
        else:
            high = middle - 1
    return coder(pixels, low)[1]


class Point(NamedTuple):
    """A codec at one quality: means over images."""

    quality: int
    bits: float  # a pixel
    psnr: float  # dB
    ms_ssim: float


def curve(coder: Coder, images: Sequence[Pixels], qualities: Sequence[int]) -> list[Point]:
    """A codec over images at each quality, each weighing alike."""
    points = []
    for quality in qualities:
        rows = []
        for pixels in images:
            size, made = coder(pixels, quality)
            rows.append((8 * size / (pixels.shape[0] * pixels.shape[1]), psnr(made, pixels), ms_ssim(made, pixels)))
        bits, ratio, similarity = np.array(rows, np.float64).mean(axis=0).tolist()
        points.append(Point(quality, bits, ratio, similarity))
    return points


def bd_rate(points: Sequence[Point], anchor: Sequence[Point]) -> float:
    """Percent of bits more than the anchor's at equal PSNR, see `metrics.bd_rate`."""
    columns = [np.array([(point.bits, point.psnr) for point in curve]).T for curve in (points, anchor)]
    return metrics.bd_rate(*columns[0], *columns[1])
