"""`Images`: many images of any size as one sequence, each read when it is asked for."""

import collections
import dataclasses
import os
import pathlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from jaxtyping import Float, Shaped

from flaxae.data.images import codec, sources
from flaxae.data.images.codec import MAX_PIXELS, Content, Header
from flaxae.data.parts import channels_last
from flaxae.errors import DataError

CACHE_BYTES = 128 * 2**20  # of decoded images that are kept
SAMPLE = 32  # images looked at, for the range in use and for what alpha holds
_DEPTHS = (8, 10, 12, 14, 16)  # bits a value that cameras and scanners give, in 16-bit files
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601, as Pillow
_MODES = {1: "grey", 2: "grey with alpha", 3: "RGB", 4: "RGBA"}


class Item(NamedTuple):
    """One image: a page of a file, or one in memory."""

    name: str  # of the file, relative to where it was found, with the page where there are several
    file: str  # its name without the page
    files: sources.Files | None
    header: Header | None  # None of one in memory, which is known once it is looked at
    pages: int = 1  # of the file
    value: Callable[[], Any] | None = None


class _Shared:
    """What collections cut from one another have in common: what was decoded, and what could not be."""

    def __init__(self) -> None:
        self.decoded: collections.OrderedDict[str, np.ndarray] = collections.OrderedDict()
        self.bytes = 0
        self.unreadable: dict[str, str] = {}  # the file's name: why
        self.ranges: dict[str, tuple[float, float]] = {}  # what becomes 0 and 1
        self.pages: dict[pathlib.Path, dict[int, np.ndarray]] = {}  # of files whose other pages are still to come
        self.lock = threading.Lock()

    def kept(self, name: str) -> np.ndarray | None:
        with self.lock:
            if name in self.decoded:
                self.decoded.move_to_end(name)
            return self.decoded.get(name)

    def keep(self, name: str, pixels: np.ndarray) -> None:
        with self.lock:
            if name in self.decoded or pixels.nbytes > CACHE_BYTES:
                return
            self.decoded[name] = pixels
            self.bytes += pixels.nbytes
            while self.bytes > CACHE_BYTES:
                self.bytes -= self.decoded.popitem(last=False)[1].nbytes


@dataclasses.dataclass(frozen=True, eq=False)
class Images(Sequence):
    """Images of any size, read one by one: `images[i]` is float32 [height, width, channels] in [0, 1]. See `open`.

    Args:
        items: the images.
        colours: channels without alpha that all are brought to; None leaves each its own.
        alpha: whether a last channel of alpha is kept; otherwise it is set aside, and put back where `write` can.
        ranges: of each stored type the values that become 0 and 1. An image that goes beyond has its own.
        size: (height, width) that all are brought to: the image scaled to cover it, and its middle cut out.
        notes: what `summary` adds.
        source: by the name of which messages call it.
    """

    items: tuple[Item, ...]
    colours: int | None
    alpha: bool
    ranges: dict[str, tuple[float, float]]
    size: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()
    source: str = "images"
    shared: _Shared = dataclasses.field(default_factory=_Shared, repr=False)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def names(self) -> list[str]:
        """The file of each, relative to the source, with "#page" where it has several."""
        return [item.name for item in self.items]

    @property
    def channels(self) -> int | None:
        """Of every image, alpha among them; None where each has its own."""
        return None if self.colours is None else self.colours + self.alpha

    @property
    def main_range(self) -> tuple[str, tuple[float, float]]:
        """The type that most are stored as, and which of its values become 0 and 1."""
        dtype = _most_frequent([self.stored_type(i) for i in _spread(len(self))])
        return dtype, self.ranges[dtype]

    @property
    def unreadable(self) -> dict[str, str]:
        """The names of the files that turned out to be unreadable, and why."""
        return self.shared.unreadable

    def shape_of(self, i: int) -> tuple[int, int, int]:
        """The shape of `images[i]`, by its header alone where it is in a file.

        Raises:
            DataError: it is in memory, and no image.
        """
        header = self._header(self.items[i])
        channels = (self.colours or header.channels - header.alpha) + self.alpha
        return (*(self.size or (header.height, header.width)), channels)

    def __getitem__(self, i: int) -> Float[np.ndarray, "height width channels"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One image, in [0, 1].

        Raises:
            DataError: it can't be read; it is then in `unreadable` too.
        """
        return self.scaled(i, self.stored(i))

    def scaled(self, i: int, pixels: Shaped[np.ndarray, "h w c"]) -> Float[np.ndarray, "h w c"]:
        """Pixels of image i, or of a part of it, from what is stored to [0, 1]."""
        low, high = self._range(self.items[i])
        return (pixels.astype(np.float32) - np.float32(low)) / np.float32(high - low)

    def stored(self, i: int) -> Shaped[np.ndarray, " height width channels"]:
        """One image in the type and units of its file: uint8, uint16, int32 or float32.

        Raises:
            DataError: it can't be read; it is then in `unreadable` too.
        """
        item = self.items[i]
        pixels = self._brought(item, self._decoded(item))
        return pixels if self.size is None else _resized(pixels, self.size)

    def original(self, i: int) -> Shaped[np.ndarray, " height width channels"]:
        """One image as its file has it: its own size and channels, alpha among them.

        Raises:
            DataError: it can't be read; it is then in `unreadable` too.
        """
        return self._decoded(self.items[i])

    def stored_type(self, i: int) -> str:
        """The type that one image is stored as: uint8, uint16, int32 or float32."""
        return self._header(self.items[i]).dtype

    def each(self) -> Iterator[tuple[int, Float[np.ndarray, "height width channels"]]]:
        """Number and pixels of each that can be read; the others are then in `unreadable`: see `check`."""
        for i in range(len(self)):
            try:
                yield i, self[i]
            except DataError as error:
                self.leave_out(i, error)

    def leave_out(self, i: int, error: Exception | str) -> None:
        """Note that an image can't be used, and go on: `check` names it at the end."""
        self.shared.unreadable.setdefault(self.items[i].name, str(error))

    def check(self) -> None:
        """Finish what was begun, and say at the end of the work which images it was done without.

        Raises:
            DataError: some could not be read.
        """
        for path in list(self.shared.pages):  # files of which a page is missing
            self._write_pages(path, next(item for item in self.items if path.name == pathlib.Path(item.file).name))
        if self.unreadable:
            reasons = "\n".join(f"  {reason}" for reason in self.unreadable.values())
            raise DataError(f"{len(self.unreadable)} of {self.source} could not be used; all else is done.\n{reasons}")

    def select(self, chosen: "Sequence[int] | np.ndarray") -> "Images":
        """Some of them, in that order."""
        return dataclasses.replace(self, items=tuple(self.items[int(i)] for i in chosen))

    def with_notes(self, notes: Sequence[str]) -> "Images":
        """The same, with more for `summary` to say."""
        return dataclasses.replace(self, notes=(*self.notes, *notes))

    def resized(self, size: int | tuple[int, int] | None) -> "Images":
        """All brought to one size: scaled to cover it, and the middle cut out. One number is both sides."""
        return dataclasses.replace(self, size=(size, size) if isinstance(size, int) else size)

    def write(self, i: int, image: Shaped[np.ndarray, " height width channels"], path: str | os.PathLike[str]) -> None:
        """Write what became of image i, in [0, 1], as its file is: bit depth, colour profile, EXIF, resolution, alpha.

        Of a file of several pages, `path` is the same for all of them; it is written with the last.

        Args:
            i: which it was made of.
            image: [height, width, channels], the channels as in `images[i]`, or one for a grey one.
            path: of the format of its ending, which need not be the source's.

        Raises:
            DataError: the place can't be written, or the format can't hold such pixels.
        """
        item, path = self.items[i], pathlib.Path(path)
        self.shared.pages.setdefault(path, {})[item.header.page if item.header else i] = self.undo(i, image)
        missing = item.pages - len(self.shared.pages[path])
        lost = [name for name in self.unreadable if name.startswith(f"{item.file}#")]
        if missing - len(lost) <= 0:
            self._write_pages(path, item)

    def _write_pages(self, path: pathlib.Path, item: Item) -> None:
        from flaxae.data.files import writing

        pages = [page for _, page in sorted(self.shared.pages.pop(path).items())]
        if path.suffix.lower() not in codec.SEVERAL_PAGES and len(pages) > 1:
            raise DataError(f"{path}: {path.suffix} holds one image, and {item.file} has {len(pages)}. Write .tif.")
        with writing(path) as file:
            if item.files is None:
                codec.encode(pages, file, str(path), path.suffix)
                return
            with item.files.open(item.file) as original:
                like = Content(original, item.files.called(item.file))
                codec.encode(pages, file, str(path), path.suffix, like=like, header=item.header)

    def undo(
        self, i: int, image: Shaped[np.ndarray, " height width channels"]
    ) -> Shaped[np.ndarray, "height width stored"]:
        """Pixels in [0, 1] in the type, units and channels that image i is stored in."""
        item = self.items[i]
        header = self._header(item)
        original = self._decoded(item) if header.alpha else None
        low, high = self._range(item)
        image = np.asarray(image, np.float32)
        colours = header.channels - header.alpha
        made, alpha = (image[..., :-1], image[..., -1:]) if self.alpha else (image, None)
        if made.shape[-1] != colours and 1 in (colours, made.shape[-1]):
            made = (made @ _LUMA)[..., None] if made.shape[-1] == 3 else made
        values = _rounded(made * np.float32(high - low) + np.float32(low), header.dtype)
        if header.alpha and original is not None and original.shape[:2] == values.shape[:2]:
            kept = original[..., -1:] if alpha is None else _rounded(alpha * np.float32(high), header.dtype)
            values = np.concatenate([values, kept], axis=-1)
        return values

    def summary(self) -> str:
        """What was read, what converted and what left out, in one line."""
        headers = [item.header for item in self.items if item.header is not None]
        said = [f"{self.source}: {len(self)} image{'s' * (len(self) != 1)}"]
        if headers:
            said[0] += f", {_span([h.width for h in headers])} × {_span([h.height for h in headers])} pixels"
            said[0] += (
                "" if self.colours is None else f", {_MODES.get(self.channels or 0, f'{self.channels} channels')}"
            )
            said[0] += f", {self._depths(headers)}"
            said += self._converted(headers)
        if self.size is not None:
            said.append(f"all brought to {self.size[1]} × {self.size[0]}, the longer side cut at both ends")
        return "; ".join([*said, *self.notes]) + "."

    def _depths(self, headers: list[Header]) -> str:
        names = []
        for dtype in dict.fromkeys(header.dtype for header in headers):
            low, high = self.ranges.get(dtype, (0.0, 255.0))
            if dtype == "uint8":
                names.append("8 bits")
            elif dtype == "uint16":
                bits = int(high).bit_length()
                names.append("16 bits" if bits == 16 else f"{bits} bits in 16")
            else:
                names.append(f"values from {low:g} to {high:g}")
        return " and ".join(names)

    def _converted(self, headers: list[Header]) -> Iterator[str]:
        if self.colours is not None:
            other = [h.channels - h.alpha for h in headers if h.channels - h.alpha != self.colours]
            if other:
                kinds = " and ".join(_MODES.get(count, f"{count}-channel") for count in sorted(set(other)))
                yield f"{len(other)} {kinds} made {_MODES.get(self.colours, f'{self.colours}-channel')}"
        aside = 0 if self.alpha else sum(header.alpha for header in headers)
        if aside:
            yield f"alpha of {aside} set aside"

    def _header(self, item: Item) -> Header:
        if item.header is not None:
            return item.header
        pixels = self._decoded(item)
        height, width, channels = pixels.shape
        return Header(height, width, channels, pixels.dtype.name, channels in (2, 4), "")

    def _decoded(self, item: Item) -> np.ndarray:
        kept = self.shared.kept(item.name)
        if kept is not None:
            return kept
        try:
            if item.files is None or item.header is None:
                pixels = _from_memory(item)
            else:
                with item.files.open(item.file) as file:
                    pixels = codec.decode(Content(file, item.files.called(item.file)), item.header)
            if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
                raise DataError(f"{self.source}: {item.name} has values that are missing or not finite.")
        except DataError as error:
            self.shared.unreadable.setdefault(item.name, str(error))
            raise
        self.shared.keep(item.name, pixels)
        return pixels

    def _brought(self, item: Item, pixels: np.ndarray) -> np.ndarray:
        """In this collection's channels."""
        has_alpha = self._header(item).alpha
        alpha = pixels[..., -1:] if has_alpha else None
        colour = pixels[..., :-1] if has_alpha else pixels
        if self.colours is not None and colour.shape[-1] != self.colours:
            if colour.shape[-1] == 3 and self.colours == 1:
                colour = _rounded((colour.astype(np.float32) @ _LUMA)[..., None], pixels.dtype.name)
            elif colour.shape[-1] == 1:
                colour = np.repeat(colour, self.colours, axis=-1)
            else:
                raise DataError(
                    f"{self.source}: {item.name} has {colour.shape[-1]} channels; expected {self.colours}, as most."
                )
        if not self.alpha:
            return np.ascontiguousarray(colour)
        if alpha is None:
            alpha = np.full((*colour.shape[:2], 1), self._range(item)[1], colour.dtype)
        return np.concatenate([colour, alpha], axis=-1)

    def _range(self, item: Item) -> tuple[float, float]:
        """What becomes 0 and what 1 of an image: as of the others, unless it goes beyond them."""
        header = self._header(item)
        if header.dtype == "uint8":
            return 0.0, 255.0
        if item.name not in self.shared.ranges:
            low, high = self.ranges.get(header.dtype, (np.inf, -np.inf))
            pixels = self._decoded(item)[..., : header.channels - header.alpha]
            least, most = float(pixels.min()), float(pixels.max())
            if not low <= least <= most <= high:
                low, high = range_of(pixels.dtype, min(low, least), max(high, most))
            self.shared.ranges[item.name] = low, high
        return self.shared.ranges[item.name]


def range_of(dtype: np.dtype, low: float, high: float) -> tuple[float, float]:
    """What becomes 0 and what 1, of images stored as that type whose values lie between `low` and `high`."""
    if dtype == np.uint8:
        return 0.0, 255.0
    if dtype == np.uint16:
        bits = max(8, int(max(high, 0)).bit_length())
        return 0.0, float(2 ** next(depth for depth in _DEPTHS if depth >= bits) - 1)
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    return low, high if high > low else low + 1.0


def open(
    source: Any,
    *,
    colours: int | Literal["own"] | None = None,
    alpha: bool | None = None,
    size: int | tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
    choose: Callable[[list[str]], list[str]] | None = None,
) -> Images:
    """Images of a folder (at any depth), a zip or tar, a file of one or more pages, or in memory; none is decoded yet.

    Args:
        source: a path; or a list of PIL images or arrays, an array [n, height, width(, channels)] of NumPy, torch or
            JAX, or a Hugging Face data set with a column of images, or that column.
        colours: the number of channels, without alpha, that all are brought to; by default that of most of them. "own"
            leaves each as it is.
        alpha: whether a channel of alpha is kept; by default where most images have one that is not opaque.
        size: (height, width), or one number for both, that all are brought to; by default each keeps its own.
        max_pixels: that one image may have.
        choose: picks among the names of a folder's or archive's images, and puts them in order; by default all.

    Raises:
        DataError: there are no images, or none that can be read; a source that is nothing of the kind.
    """
    if isinstance(source, str | os.PathLike):
        items, unreadable, notes, called = _of_files(source, max_pixels, choose)
    else:
        items, unreadable, notes, called = _of_memory(source), {}, [], "The data"
    shared = _Shared()
    shared.unreadable |= unreadable
    if not items:
        reasons = "".join(f"\n  {reason}" for reason in unreadable.values())
        raise DataError(f"{called} holds no image that can be read.{reasons}")
    each = Images(tuple(items), None, False, {}, source=called, shared=shared)
    looked_at = _looked_at(each)
    if colours is None:
        colours = _most_frequent([header.channels - header.alpha for header in looked_at])
    if alpha is None:
        with_alpha = _most_frequent([header.alpha for header in looked_at])
        alpha = with_alpha and colours != "own" and not _is_opaque(each)
    images = dataclasses.replace(
        each,
        colours=None if colours == "own" else colours,
        alpha=alpha,
        ranges=_ranges(each),
        notes=tuple(notes),
    )
    return images.resized(size)


def _of_files(
    source: str | os.PathLike[str], max_pixels: int, choose: Callable[[list[str]], list[str]] | None
) -> tuple[list[Item], dict[str, str], list[str], str]:
    from flaxae.data import formats
    from flaxae.data.files import existing

    path = existing(source)
    files = sources.Files(path)
    names, others = files.images()
    if path.is_file() and not sources.is_archive(path):
        names, others = files.names, []
    notes = []
    if others:
        named = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
        notes.append(f"left out, no images: {len(others)} file{'s' * (len(others) != 1)} ({named})")
    if not names:
        left = f" It holds {len(others)} other files, such as {others[0]}." if others else ""
        raise DataError(f"{path} holds no images; expected files ending in {formats.listed('image')}.{left}")
    items, unreadable = [], {}
    for name in names if choose is None else choose(names):
        try:
            with files.open(name) as file:
                pages = codec.headers(Content(file, files.called(name)), max_pixels=max_pixels)
        except DataError as error:
            unreadable[name] = str(error)
            continue
        for header in pages:
            numbered = f"{name}#{header.page}" if len(pages) > 1 else name
            items.append(Item(numbered, name, files, header, len(pages)))
    if unreadable:
        notes.append(
            f"can't be read: {len(unreadable)} ({', '.join(list(unreadable)[:3])}{', …' * (len(unreadable) > 3)})"
        )
    return items, unreadable, notes, str(path)


def _of_memory(source: Any) -> list[Item]:
    found = sources.in_memory(source)
    if not found:
        raise DataError(
            f"The source is a {type(source).__name__}; expected a path, a list of PIL images or arrays, an array of "
            "[n, height, width, channels], or a Hugging Face data set of images."
        )
    return [Item(name, name, None, None, value=value) for name, value in found]


def _from_memory(item: Item) -> np.ndarray:
    value: Any = item.value() if item.value else None
    if isinstance(value, dict) and "bytes" in value:  # of Hugging Face, not decoded
        import io

        if value["bytes"] is None:
            return _pages_of(pathlib.Path(value["path"]).read_bytes(), item.name)
        return _pages_of(io.BytesIO(value["bytes"]).getvalue(), item.name)
    if hasattr(value, "convert") and hasattr(value, "getbands"):  # of PIL
        from PIL import ImageOps

        value: Any = ImageOps.exif_transpose(cast(Any, value))
        if value.mode not in ("L", "LA", "RGB", "RGBA", "I", "F") and not value.mode.startswith("I;16"):
            value = value.convert("L" if value.mode == "1" else "RGBA" if value.has_transparency_data else "RGB")
    pixels = channels_last(sources.as_array(value))
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.size == 0 or pixels.dtype.kind not in "buif":
        raise DataError(
            f"{item.name} is {pixels.dtype} of shape {pixels.shape}; expected numbers, [height, width, channels]."
        )
    if pixels.dtype not in (np.uint8, np.uint16):
        pixels = pixels.astype(np.uint8 if pixels.dtype == bool else np.float32)
    return pixels


def _pages_of(content: bytes, name: str) -> np.ndarray:
    import io

    opened = Content(io.BytesIO(content), name)
    return codec.decode(opened, codec.headers(opened)[0])


def _spread(count: int) -> list[int]:
    """Numbers of a sample, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, SAMPLE)).astype(int)).tolist()


def _looked_at(images: Images) -> list[Header]:
    """The headers: of files all, of what is in memory those of a sample."""
    if all(item.header is not None for item in images.items):
        return [item.header for item in images.items if item.header is not None]
    found = []
    for i in _spread(len(images)):
        try:
            found.append(images._header(images.items[i]))
        except DataError:
            continue
    if not found:
        raise DataError(next(iter(images.unreadable.values())))
    return found


def _most_frequent(values: Sequence[Any]) -> Any:
    return collections.Counter(values).most_common(1)[0][0]


def _is_opaque(images: Images) -> bool:
    """Whether alpha is at its full value in all of a sample of those that have it."""
    with_alpha = [item for item in images.items if item.header is None or item.header.alpha]
    for i in _spread(len(with_alpha)):
        try:
            pixels = images._decoded(with_alpha[i])
        except DataError:
            continue
        full = 1.0 if pixels.dtype.kind == "f" else np.iinfo(pixels.dtype).max
        if pixels.shape[-1] in (2, 4) and pixels[..., -1].min() < full:
            return False
    return True


def _ranges(images: Images) -> dict[str, tuple[float, float]]:
    """Of each type but uint8 the range in use, by what the files say, else by a sample of them."""
    found: dict[str, tuple[float, float]] = {"uint8": (0.0, 255.0)}
    deep = [item for item in images.items if item.header is None or item.header.dtype != "uint8"]
    if deep and all(item.header is not None and item.header.bits for item in deep):
        bits = max(item.header.bits or 8 for item in deep if item.header is not None)
        return {**found, "uint16": (0.0, float(2**bits - 1))}
    extremes: dict[str, tuple[float, float]] = {}
    for i in _spread(len(deep)):
        try:
            pixels = images._decoded(deep[i])
        except DataError:
            continue
        if images._header(deep[i]).alpha:
            pixels = pixels[..., :-1]
        low, high = extremes.get(pixels.dtype.name, (np.inf, -np.inf))
        extremes[pixels.dtype.name] = min(low, float(pixels.min())), max(high, float(pixels.max()))
    return found | {name: range_of(np.dtype(name), *span) for name, span in extremes.items()}


def _rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    if np.dtype(dtype).kind in "ui":
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return values.astype(dtype)


def _resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scaled to cover that size, without aliasing, and the middle cut out."""
    from PIL import Image

    height, width = pixels.shape[:2]
    if (height, width) == size:
        return pixels
    scale = min(height / size[0], width / size[1])  # pixels of the image a pixel
    top, left = (height - scale * size[0]) / 2, (width - scale * size[1]) / 2
    box = (left, top, left + scale * size[1], top + scale * size[0])
    planes = []
    for channel in np.moveaxis(pixels, -1, 0):
        plane = Image.fromarray(np.ascontiguousarray(channel, np.float32))
        planes.append(np.asarray(plane.resize((size[1], size[0]), Image.Resampling.BICUBIC, box)))
    made = np.stack(planes, axis=-1)
    return _rounded(np.clip(made, pixels.min(), pixels.max()), pixels.dtype.name)


def _span(values: list[int]) -> str:
    return str(values[0]) if min(values) == max(values) else f"{min(values)}–{max(values)}"
