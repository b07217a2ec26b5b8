"""Files and folders of images to `.flx` files and back, one file an image, read and written one by one."""

import collections
import dataclasses
import io
import os
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np
import rich.console
import rich.progress
from jaxtyping import Shaped
from PIL import Image

from flaxae import data, errors
from flaxae.compression import peers
from flaxae.compression.codec import Codec
from flaxae.compression.lossy import LossyCodec
from flaxae.data import formats, images
from flaxae.data.images import MAX_PIXELS
from flaxae.printing import say

SUFFIX = ".flx"


@dataclasses.dataclass
class Totals:
    """Bytes, of as many files as were done, and what others take for the same; of lossy files also how good they are.

    Args:
        peers: bytes of other formats, of the images that they can hold: of PNG and WebP without loss, or of JPEG and
            WebP at the PSNR of a lossy codec.
        psnr: of each image, in dB, and `ms_ssim`, of images that are large enough.
    """

    files: int = 0
    given: int = 0
    values: int = 0
    made: int = 0
    peers: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    psnr: list[float] = dataclasses.field(default_factory=list)
    ms_ssim: list[float] = dataclasses.field(default_factory=list)

    def line(self) -> str:
        """All that in a line."""
        share = f", {8 * self.made / max(1, self.values):.3f} bits a value"
        equal = " at about the same PSNR" if self.psnr else ""
        listed = ", ".join(f"{name} {size:,}" for name, size in self.peers.items() if size)
        listed = f"; beside it{equal}: {listed}" if listed else ""
        good = [f"PSNR {np.mean(self.psnr):.2f} dB"] if self.psnr else []
        good += [f"MS-SSIM {np.mean(self.ms_ssim):.4f}"] if self.ms_ssim else []
        good = f"; {', '.join(good)} (means over images)" if good else ""
        plural = "s" * (self.files != 1)
        return f"{self.files:,} file{plural}: {self.given:,} bytes to {self.made:,}{share}{good}{listed}."


def is_compressed(path: str | os.PathLike[str]) -> bool:
    """Whether a path is of `.flx` files: one, or a folder that holds any."""
    path = pathlib.Path(path)
    return path.suffix.lower() == SUFFIX or (path.is_dir() and any(path.rglob(f"*{SUFFIX}")))


def compress(
    codec: Codec | LossyCodec,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    quality: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Totals:
    """Compress an image or an array (`.npy`) into a `.flx` file, or each image of a folder or archive into a folder.

    What can't be read is named and left out; the rest is done.

    Args:
        quality: of a lossy codec, by default its own.

    Raises:
        DataError: nothing can be read, something was left out, or the target can't be written.
        ConfigError: the quality is out of range.
    """
    source, target, totals = data.files.existing(source), pathlib.Path(target), Totals()
    if not images.holds(source):
        x = np.asarray(data.read(source))
        _write(target, _content(codec, x, quality))
        return Totals(1, source.stat().st_size, x.size, target.stat().st_size)
    found = images.open(source, colours="own", max_pixels=max_pixels)
    say(found.summary())
    several = source.is_dir() or images.sources.is_archive(source) or len(found) > 1
    names = _names(found.names) if several else [""]
    left_out = dict(found.unreadable)
    for i in _with_a_bar(range(len(found))):
        try:
            pixels = found.original(i)
            path = target / names[i] if several else target
            content = _content(codec, pixels, quality)
            _write(path, content)
        except errors.DataError as error:
            left_out[found.names[i]] = str(error)
            say(f"left out: {found.names[i]}: {error}")
            continue
        totals.files += 1
        totals.values += pixels.size
        totals.made += path.stat().st_size
        if isinstance(codec, LossyCodec):
            _compare(totals, pixels, codec.decompress(content, max_values=pixels.size))
        else:
            totals.peers.update(lossless_peers(pixels))
    totals.given = _bytes_of(source)
    _check(left_out, len(found) + len(found.unreadable), source)
    return totals


def decompress(
    codec: Codec | LossyCodec,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    max_pixels: int = MAX_PIXELS,
) -> Totals:
    """The inverse of `compress`. In a folder, images are written as PNG and other arrays as `.npy`.

    Raises:
        DataError: a file is damaged or of another codec, or the target can't be written; the rest is done.
    """
    source, target, totals = data.files.existing(source), pathlib.Path(target), Totals()
    paths = sorted(source.rglob(f"*{SUFFIX}")) if source.is_dir() else [source]
    left_out = {}
    for path in _with_a_bar(paths):
        try:
            x = _read(codec, path, max_pixels)
            to = _target(target / path.relative_to(source), x) if source.is_dir() else target
            data.write(to, x)
        except errors.DataError as error:
            if not source.is_dir():
                raise
            left_out[str(path)] = str(error)
            say(f"left out: {error}")
            continue
        totals.files, totals.values = totals.files + 1, totals.values + x.size
        totals.given, totals.made = totals.given + path.stat().st_size, totals.made + to.stat().st_size
    _check(left_out, len(paths), source)
    return totals


def lossless_peers(pixels: Shaped[np.ndarray, "height width channels"]) -> dict[str, int]:
    """The bytes of an image as PNG and as lossless WebP, by Pillow at its best; without those that can't hold it."""
    if pixels.dtype != np.uint8 or pixels.shape[2] not in (1, 3, 4):
        return {}
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    png, webp = io.BytesIO(), io.BytesIO()
    image.save(png, "PNG", optimize=True)
    if max(pixels.shape[:2]) > peers.MOST_WEBP:
        return {"PNG": len(png.getvalue())}
    image.save(webp, "WEBP", lossless=True, quality=75, method=4)
    return {"PNG": len(png.getvalue()), "WebP": len(webp.getvalue())}


def _content(codec: Codec | LossyCodec, x: np.ndarray, quality: int | None) -> bytes:
    return codec.compress(x, quality=quality) if isinstance(codec, LossyCodec) else codec.compress(x)


def _compare(totals: Totals, pixels: np.ndarray, made: np.ndarray) -> None:
    """Add how good an image is that came back, and what JPEG and WebP take for that."""
    ratio, similarity = peers.psnr(made, pixels), peers.ms_ssim(made, pixels)
    totals.psnr.append(ratio)
    totals.ms_ssim += [] if similarity is None else [similarity]
    if pixels.shape[2] in (1, 3) and max(pixels.shape[:2]) <= peers.MOST_WEBP:
        totals.peers.update({name: peers.at_psnr(name, pixels, ratio) for name in peers.CODERS})


def _read(codec: Codec | LossyCodec, path: pathlib.Path, max_pixels: int) -> np.ndarray:
    try:
        with path.open("rb") as file:
            given = file.read()
    except OSError as error:
        raise errors.DataError(f"{path} can't be read: {error.strerror}.") from error
    return codec.decompress(given, name=str(path), max_values=4 * max_pixels)


def _write(path: pathlib.Path, content: bytes) -> None:
    if path.suffix.lower() != SUFFIX:
        raise errors.DataError(f"{path}: what is compressed ends in {SUFFIX}, such as {path.stem or 'photo'}{SUFFIX}.")
    with data.files.writing(path) as file:
        file.write(content)


def _target(path: pathlib.Path, x: np.ndarray) -> pathlib.Path:
    is_image = x.ndim == 2 or (x.ndim == 3 and x.shape[2] <= 4)
    return path.with_suffix(".png" if is_image and x.dtype.kind == "u" else ".npy")


def _names(names: Iterable[str]) -> list[str]:
    """A name for each image's file: with `.flx` for its ending, or after it where two would have the same name."""
    names = list(names)
    if leaving := [name for name in names if {"..", "/"} & set(pathlib.PurePosixPath(name).parts)]:
        raise errors.DataError(f"{leaving[0]!r} leaves the folder; expected names relative to it.")
    short = [str(pathlib.PurePosixPath(name.replace("#", "_")).with_suffix(SUFFIX)) for name in names]
    return [s if short.count(s) == 1 else f"{n.replace('#', '_')}{SUFFIX}" for s, n in zip(short, names, strict=True)]


def _bytes_of(source: pathlib.Path) -> int:
    if source.is_file():
        return source.stat().st_size
    endings = formats.suffixes("image")
    return sum(path.stat().st_size for path in source.rglob("*") if path.suffix.lower() in endings and path.is_file())


def _check(left_out: dict[str, str], count: int, source: pathlib.Path) -> None:
    if left_out:
        first = next(iter(left_out.values()))
        raise errors.DataError(f"{source}: {len(left_out)} of {count} files were left out; the first: {first}")


def _with_a_bar(items: Iterable) -> Iterator:
    items = list(items)
    console = rich.console.Console(stderr=True)
    columns = (
        rich.progress.TextColumn("{task.completed} of {task.total} files"),
        rich.progress.BarColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=console, disable=not console.is_terminal or len(items) < 2) as bar:
        yield from bar.track(items)
