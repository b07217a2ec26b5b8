"""One image file: what its pages are, their pixels as they are stored, and the same kind of file written again.

Pillow reads and writes what it keeps exactly. Where it would cut 16 bits to 8 (colour PNG, TIFF, JPEG 2000, AVIF) or
knows no such pixels (TIFF of many bands, or of real numbers), tifffile and imagecodecs do; HEIC takes pillow-heif and
DICOM pydicom, which are of the extra `images`.
"""

import contextlib
import dataclasses
import io
import logging
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from typing import IO, Any, NamedTuple

import numpy as np
from jaxtyping import Shaped
from PIL import ExifTags, Image

from flaxae.errors import DataError, missing

MAX_PIXELS = 89_478_485  # of one image: Pillow's own limit, a quarter of a gibibyte of RGB
_EXACT = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "I": 1, "F": 1}  # modes whose arrays are what the file stores
_DTYPES = {"I": "int32", "F": "float32"}
_DEEP_CODECS = {"PNG": "png", "JPEG2000": "jpeg2k", "AVIF": "avif"}  # Pillow's name: imagecodecs', for over 8 bits
_ORIENTATION = ExifTags.Base.Orientation
_CHANNELS = {"JPEG": (1, 3), "BMP": (1, 3), "PPM": (1, 3), "GIF": (1, 3, 4)}  # of these formats; 1 to 4 of others
_GREY_16 = ("PNG", "TIFF", "PPM", "HEIF")  # formats in which Pillow keeps 16 bits of grey
SEVERAL_PAGES = (".tif", ".tiff", ".gif", ".webp", ".png", ".apng", ".avif", ".dcm", "")
for _name in ("PIL", "tifffile", "pydicom"):  # what is wrong with a file is said once, in the error
    logging.getLogger(_name).setLevel(logging.CRITICAL)
_LOCK = threading.Lock()  # Pillow's limit on pixels belongs to the module
_KEPT_PNG_CHUNKS = (b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"pHYs", b"eXIf", b"tEXt", b"zTXt", b"iTXt", b"tIME")


class Header(NamedTuple):
    """What is known of a page before its pixels are decoded: its size when upright, and its pixels' type."""

    height: int
    width: int
    channels: int  # with alpha
    dtype: str
    alpha: bool  # the last channel is one
    format: str  # as Pillow calls it; DICOM of DICOM
    page: int = 0  # of the file
    bits: int | None = None  # in use, where the file says so

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width, channels, alpha among them."""
        return self.height, self.width, self.channels


@dataclasses.dataclass(frozen=True, eq=False)
class Content:
    """A file's bytes, or where they are, and the name by which messages call it."""

    file: Any  # binary, and open at any place
    name: str


def headers(content: Content, *, max_pixels: int = MAX_PIXELS) -> list[Header]:
    """What the pages of a file are.

    Raises:
        DataError: it is no image, damaged, or larger than `max_pixels`, or a package is missing that it needs.
    """
    with _whatever_goes_wrong(content.name):
        if _is_dicom(content):
            found = _dicom_headers(content)
        else:
            try:
                found = _pillow_headers(content)
            except Image.UnidentifiedImageError:
                if not _is_tiff(content):
                    raise
                found = _tiff_headers(content)
        for header in found:
            check_pixels(header, content.name, max_pixels)
        return found


def check_pixels(header: Header, name: str, max_pixels: int) -> None:
    """Refuses what claims more pixels than that, or none.

    Raises:
        DataError: it does.
    """
    if min(header.shape) < 1:
        raise DataError(f"{name} can't be read: it claims {header.width} × {header.height} pixels. It may be damaged.")
    if header.height * header.width > max_pixels:
        raise DataError(
            f"{name} is too large: {header.width:,} × {header.height:,} pixels, where at most {max_pixels:,} are read, "
            f"for a small file may claim any size. If it is right, allow it: --max-pixels "
            f"{header.height * header.width}."
        )


def decode(content: Content, header: Header) -> Shaped[np.ndarray, " height width channels"]:
    """The pixels of a page, upright, as they are stored: uint8, uint16, int32 or float32.

    Raises:
        DataError: the file is damaged, or a package is missing that it needs.
    """
    with _whatever_goes_wrong(content.name):
        if header.format == "DICOM":
            pixels = _dicom_pixels(content, header.page)
        elif header.format == "TIFF" and (header.dtype not in ("uint8",) or header.channels > 4):
            pixels = _tiff_pixels(content, header.page)
        elif header.format == "PPM" and header.dtype == "uint16" and header.channels == 3:
            pixels = _deep_ppm(content)
        elif header.format in _DEEP_CODECS and header.dtype == "uint16" and header.bits != 0:
            pixels = _deep(content, header)
        else:
            pixels = _pillow_pixels(content, header)
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if pixels.shape != header.shape:
            raise DataError(
                f"{content.name} can't be read: its pixels are {pixels.shape}, its header says {header.shape}."
            )
        return np.ascontiguousarray(pixels)


# Pillow


@contextlib.contextmanager
def _opened(content: Content) -> Iterator[Image.Image]:
    """The file as Pillow has it; how many pixels it may have is checked by whoever opens it."""
    content.file.seek(0)
    with _LOCK:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            if _is_heif(content):
                _register_heif()
            image = Image.open(content.file)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    with image:
        yield image


def _register_heif() -> None:
    if "HEIF" not in Image.OPEN:
        import pillow_heif

        pillow_heif.register_heif_opener()


def _pillow_headers(content: Content) -> list[Header]:
    with _opened(content) as image:
        # the second image of a telephone's MPO, and the thumbnails of a HEIC, are of the same photograph
        pages = 1 if image.format in ("MPO", "HEIF") else getattr(image, "n_frames", 1)
        found = []
        for page in range(pages):
            if page:
                image.seek(page)
            if image.format == "TIFF" and _tag(image, 254, 0) & 1:  # a smaller version of another page
                continue
            found.append(_pillow_header(content, image, page))
        return found


def _pillow_header(content: Content, image: Image.Image, page: int) -> Header:
    channels, dtype, alpha = _pillow_pixel_type(image)
    bits = None
    if image.format == "TIFF":
        depth, samples = _tag(image, 258, (8,)), _tag(image, 277, 1)
        if max(depth) > 8 or samples > 4:
            return next(header for header in _tiff_headers(content) if header.page == page)
    elif image.format == "PPM" and image.mode in ("RGB", "I"):
        largest = _ppm_maximum(content)
        dtype, bits = ("uint16", int(largest).bit_length()) if largest > 255 else ("uint8", None)
    elif image.format in _DEEP_CODECS and image.mode in ("RGB", "RGBA", "LA", "L", "I;16") and page == 0:
        stored = _deep_bits(content, image)
        if stored > 8:
            dtype, bits = "uint16", None if stored == 16 else stored
    height, width = image.height, image.width
    if _orientation(image) >= 5:
        height, width = width, height
    return Header(height, width, channels, dtype, alpha, image.format or "", page, bits)


def _tag(image: Any, number: int, default: Any) -> Any:
    """Of a TIFF."""
    return image.tag_v2.get(number, default)


def _pillow_pixel_type(image: Image.Image) -> tuple[int, str, bool]:
    """Channels, type, and whether the last channel is alpha, as `_pillow_pixels` gives them."""
    if image.mode.startswith("I;16"):
        return 1, "uint16", False
    mode = image.mode if image.mode in _EXACT else _converted_mode(image)
    return _EXACT[mode], _DTYPES.get(mode, "uint8"), mode in ("LA", "RGBA")


def _converted_mode(image: Image.Image) -> str:
    if image.mode == "1":
        return "L"
    return "RGBA" if image.has_transparency_data else "RGB"


def _orientation(image: Image.Image) -> int:
    """As EXIF names it, 1 to 8, without decoding any pixels; Pillow turns TIFF itself."""
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    return image.getexif().get(_ORIENTATION, 1)


def _pillow_pixels(content: Content, header: Header) -> np.ndarray:
    with _opened(content) as image:
        if header.page:
            image.seek(header.page)
        orientation = _orientation(image)
        if image.mode.startswith("I;16"):
            image = image.convert("I;16")
        elif image.mode not in _EXACT:
            image = image.convert(_converted_mode(image))
        elif image.mode in ("L", "RGB") and header.alpha:  # a later frame of an animation
            image = image.convert("RGBA" if header.channels == 4 else "LA")
        return _turned(np.array(image), orientation).astype(header.dtype, copy=False)


# 16 bits of colour


def _deep_bits(content: Content, image: Image.Image) -> int:
    """Bits a value of a PNG, JPEG 2000 or AVIF, as the file says."""
    content.file.seek(0)
    head = content.file.read(4096)
    if image.format == "PNG":
        return head[24] if len(head) > 24 else 8
    if image.format == "JPEG2000":
        siz = head.find(b"\xff\x51")
        return (head[siz + 40] & 0x7F) + 1 if siz >= 0 and len(head) > siz + 40 else 8
    boxes = head.find(b"av1C")
    if boxes < 0 or len(head) <= boxes + 6:
        return 8
    return (12 if head[boxes + 6] & 0x20 else 10) if head[boxes + 6] & 0x40 else 8


def _deep(content: Content, header: Header) -> np.ndarray:
    import imagecodecs

    content.file.seek(0)
    pixels = getattr(imagecodecs, f"{_DEEP_CODECS[header.format]}_decode")(content.file.read())
    if header.format == "AVIF":  # without a colour space for grey, as Pillow has it
        pixels = pixels[..., : header.channels]
    with _opened(content) as image:
        return _turned(pixels, _orientation(image))


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Upright, by the orientation that EXIF names (1 to 8)."""
    if orientation in (2, 4, 5, 7):
        pixels = pixels[:, ::-1]
    return np.rot90(pixels, {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(orientation, 0))


def _ppm_maximum(content: Content) -> int:
    return int(_ppm_fields(content)[0][3])


def _ppm_fields(content: Content) -> tuple[list[bytes], int]:
    """The four fields of a PGM's or PPM's header, and where its pixels begin."""
    content.file.seek(0)
    head, fields, at = content.file.read(4096), [], 0
    while len(fields) < 4:
        while head[at : at + 1].isspace():
            at += 1
        if head[at : at + 1] == b"#":
            at = head.index(b"\n", at)
            continue
        end = at
        while end < len(head) and not head[end : end + 1].isspace():
            end += 1
        if end == at:
            raise DataError(f"{content.name} can't be read: its header is cut short.")
        fields.append(head[at:end])
        at = end
    return fields, at + 1


def _deep_ppm(content: Content) -> np.ndarray:
    (_, width, height, _), begins = _ppm_fields(content)
    content.file.seek(begins)
    count = int(width) * int(height) * 3
    return np.frombuffer(content.file.read(2 * count), ">u2", count).reshape(int(height), int(width), 3).astype("u2")


# TIFF


def _is_tiff(content: Content) -> bool:
    content.file.seek(0)
    return content.file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _tiff_headers(content: Content) -> list[Header]:
    import tifffile

    content.file.seek(0)
    found, seen = [], set()
    with tifffile.TiffFile(content.file, name=content.name) as file:
        for i, page in enumerate(file.pages):
            if page.offset in seen:
                raise DataError(f"{content.name} is damaged: one of its pages is said to follow itself.")
            seen.add(page.offset)
            page = page.aspage()
            if page.is_reduced:
                continue
            height, width, channels = _tiff_shape(page)
            orientation = page.tags.valueof(274, 1)
            if orientation >= 5:
                height, width = width, height
            alpha = bool(page.extrasamples) and page.extrasamples[-1] != 0 and channels in (2, 4)
            found.append(Header(height, width, channels, _tiff_dtype(page), alpha, "TIFF", i))
    return found


def _tiff_shape(page: Any) -> tuple[int, int, int]:
    if page.imagedepth != 1:
        raise DataError(f"holds a volume of {page.imagedepth} slices in one page; save a page a slice.")
    return page.imagelength, page.imagewidth, page.samplesperpixel


def _tiff_dtype(page: Any) -> str:
    dtype = np.dtype(page.dtype).newbyteorder("=")
    if dtype.kind == "b":
        return "uint8"
    if dtype in (np.uint8, np.uint16, np.float32):
        return dtype.name
    if dtype.kind in "iu" and dtype.itemsize <= 4:
        return "int32" if dtype != np.uint32 else "float32"
    return "float32"


def _tiff_pixels(content: Content, number: int) -> np.ndarray:
    import tifffile

    content.file.seek(0)
    with tifffile.TiffFile(content.file, name=content.name) as file:
        page = file.pages[number].aspage()
        pixels = page.asarray()
        if page.planarconfig == 2 and page.samplesperpixel > 1:
            pixels = np.moveaxis(pixels, 0, -1)
        pixels = pixels.reshape(page.imagelength, page.imagewidth, page.samplesperpixel)
        if page.photometric == 0 and pixels.dtype.kind == "u":  # white is 0
            pixels = np.iinfo(pixels.dtype).max - pixels
        return _turned(pixels, page.tags.valueof(274, 1)).astype(_tiff_dtype(page), copy=False)


# DICOM


def _is_dicom(content: Content) -> bool:
    content.file.seek(128)
    return content.file.read(4) == b"DICM"


def _dicom(content: Content) -> Any:
    import pydicom

    content.file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(content.file)


def _dicom_headers(content: Content) -> list[Header]:
    about = _dicom(content)
    if "PixelData" not in about:
        raise DataError(f"{content.name} is a DICOM file without pixels.")
    channels = about.get("SamplesPerPixel", 1)
    signed = about.get("PixelRepresentation", 0) == 1
    dtype = "int32" if signed else "uint8" if about.BitsAllocated <= 8 else "uint16"
    pages = int(about.get("NumberOfFrames", 1) or 1)
    bits = None if signed else about.get("BitsStored")
    return [Header(about.Rows, about.Columns, channels, dtype, False, "DICOM", i, bits) for i in range(pages)]


def _dicom_pixels(content: Content, page: int) -> np.ndarray:
    from pydicom.pixels.utils import pixel_array

    content.file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        about = _dicom(content)
        content.file.seek(0)
        values = pixel_array(content.file, index=page)
    if about.get("PhotometricInterpretation") == "MONOCHROME1" and values.dtype.kind == "u":  # white is 0
        values = (1 << about.BitsStored) - 1 - values
    return values.astype(np.int32) if values.dtype.kind == "i" else values


# Writing


def encode(
    pages: Sequence[np.ndarray],
    file: IO[bytes],
    name: str,
    suffix: str,
    *,
    like: Content | None = None,
    header: Header | None = None,
) -> None:
    """Write pages into an open binary file, in the format of that ending.

    Args:
        pages: each [height, width, channels] of uint8, uint16 or float32; several where `SEVERAL_PAGES`.
        file: to write to.
        name: of the file, for messages.
        suffix: the ending of its name.
        like: the file whose colour profile, EXIF, resolution and (of the same format) settings it takes over.
        header: of the first page of `like`.

    Raises:
        DataError: the format can't hold such pixels.
    """
    suffix = suffix.lower()
    if suffix == ".dcm":
        _write_dicom(pages, file, name, like, header)
        return
    if suffix in (".heic", ".heif"):
        with _whatever_goes_wrong(name):
            _register_heif()
    Image.init()
    known = Image.registered_extensions().get(suffix)
    if known is None:
        raise DataError(f"{name}: images can't be written as {suffix or 'a file without an ending'}.")
    about = _about(like, known)
    shapes = {(page.shape[-1], page.dtype.name) for page in pages}
    deep = any(dtype != "uint8" and (channels > 1 or dtype != "uint16") for channels, dtype in shapes)
    try:
        if known == "TIFF" and (deep or len(pages) > 1 or any(channels > 4 for channels, _ in shapes)):
            _write_tiff(pages, file, about)
        elif known == "PNG" and len(pages) == 1 and deep and pages[0].dtype == np.uint16:
            _write_deep_png(pages[0], file, about)
        elif known in ("JPEG2000", "AVIF") and len(pages) == 1 and pages[0].dtype == np.uint16:
            import imagecodecs

            values = pages[0][..., 0] if pages[0].shape[-1] == 1 else pages[0]
            if known == "JPEG2000":
                written = imagecodecs.jpeg2k_encode(values, level=0, reversible=True)
            else:  # of at most 12 bits
                own = header.bits if header is not None and header.format == "AVIF" else None
                written = imagecodecs.avif_encode(values if own else values >> 4, level=95, bitspersample=own or 12)
            file.write(written)
        else:
            _write_pillow(pages, file, known, about)
    except (TypeError, ValueError, KeyError) as error:
        raise cannot_hold(name, suffix, pages[0]) from error
    except OSError as error:
        if error.errno is None:  # Pillow's own refusal of a mode, not the disk's
            raise cannot_hold(name, suffix, pages[0]) from error
        raise


def _about(like: Content | None, target: str) -> dict[str, Any]:
    """What Pillow's `save` is told to carry over."""
    if like is None or _is_dicom(like):
        return {}
    try:
        with warnings.catch_warnings(), _opened(like) as image:
            warnings.simplefilter("ignore")
            exif = image.getexif()
            exif.pop(_ORIENTATION, None)  # the pixels are upright now
            about: dict[str, Any] = {"icc_profile": image.info.get("icc_profile"), "dpi": image.info.get("dpi")}
            if len(exif) and target in ("JPEG", "PNG", "WEBP", "AVIF", "HEIF", "MPO"):
                about["exif"] = exif.tobytes()
            if image.format == target or (image.format == "MPO" and target == "JPEG"):
                about |= {key: image.info[key] for key in ("duration", "loop", "compression") if key in image.info}
                if target == "PNG":
                    about["chunks"] = _png_chunks(like)
            return {key: value for key, value in about.items() if value is not None}
    except (OSError, ValueError, SyntaxError):  # of what Pillow doesn't know, such as TIFF of many bands
        return {}


def _write_pillow(pages: Sequence[np.ndarray], file: IO[bytes], known: str, about: dict[str, Any]) -> None:
    settings = {key: value for key, value in about.items() if key != "chunks"}
    if known != "TIFF":
        settings.pop("compression", None)
    if known == "JPEG2000":
        settings |= {"irreversible": False}
    elif known == "GIF":
        settings.pop("dpi", None)
    for page in pages:
        grey_16 = page.dtype == np.uint16 and page.shape[-1] == 1 and known in _GREY_16
        if page.shape[-1] not in _CHANNELS.get(known, (1, 2, 3, 4)) or not (page.dtype == np.uint8 or grey_16):
            raise ValueError("Pillow would change such pixels.")
    images = [Image.fromarray(page[..., 0] if page.shape[-1] == 1 else page) for page in pages]
    more = {"save_all": True, "append_images": images[1:]} if len(images) > 1 else {}
    best = {"WEBP": {"lossless": True}, "JPEG": {"subsampling": 0}}.get(known, {})
    images[0].save(file, known, **{"quality": 95, **best, **more, **settings})


def _write_tiff(pages: Sequence[np.ndarray], file: IO[bytes], about: dict[str, Any]) -> None:
    import tifffile

    resolution = {"resolution": about["dpi"], "resolutionunit": 2} if "dpi" in about else {}
    with tifffile.TiffWriter(file) as writer:
        for page in pages:
            channels = page.shape[-1]
            writer.write(
                page[..., 0] if channels == 1 else page,
                photometric="rgb" if channels in (3, 4) else "minisblack",
                planarconfig=None if channels == 1 else "contig",
                extrasamples=["unassalpha"] if channels in (2, 4) else None,
                compression="zlib",
                iccprofile=about.get("icc_profile"),
                contiguous=False,
                metadata=None,
                **resolution,
            )


def _write_deep_png(page: np.ndarray, file: IO[bytes], about: dict[str, Any]) -> None:
    import imagecodecs

    written = imagecodecs.png_encode(page[..., 0] if page.shape[-1] == 1 else page)
    if "chunks" not in about and "icc_profile" in about:
        about = {**about, "chunks": [(b"iCCP", b"ICC Profile\0\0" + zlib.compress(about["icc_profile"]))]}
        if "dpi" in about:
            per_metre = [round(float(value) / 0.0254) for value in about["dpi"]]
            about["chunks"].append((b"pHYs", struct.pack(">IIB", *per_metre, 1)))
    after_header = 8 + 25
    file.write(written[:after_header])
    for kind, content in about.get("chunks", ()):
        file.write(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)))
    file.write(written[after_header:])


def _png_chunks(like: Content) -> list[tuple[bytes, bytes]]:
    """Those of a PNG that say more about the image than its pixels."""
    like.file.seek(8)
    kept = []
    while len(head := like.file.read(8)) == 8:
        size, kind = struct.unpack(">I4s", head)
        if kind in _KEPT_PNG_CHUNKS:
            kept.append((kind, like.file.read(size)))
            like.file.seek(4, io.SEEK_CUR)
        else:
            like.file.seek(size + 4, io.SEEK_CUR)
    return kept


def _write_dicom(
    pages: Sequence[np.ndarray], file: IO[bytes], name: str, like: Content | None, header: Header | None
) -> None:
    with _whatever_goes_wrong(name):
        from pydicom import uid

        is_dicom = like is not None and header is not None and header.format == "DICOM"
        about: Any = (
            _dicom(like) if is_dicom and like is not None else _new_dicom(16 if pages[0].dtype == np.uint16 else 8)
        )
        signed = about.get("PixelRepresentation", 0) == 1
        kind = np.dtype("i2" if signed else "u1" if about.BitsAllocated <= 8 else "u2")
        values = np.stack(pages) if len(pages) > 1 else pages[0]
        if values.dtype.kind == "f" or values.shape[-1] not in (1, 3):
            raise cannot_hold(name, ".dcm", pages[0])
        if about.get("PhotometricInterpretation") == "MONOCHROME1" and not signed:
            values = (1 << about.BitsStored) - 1 - values
        about.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        about.BitsAllocated = 8 * kind.itemsize
        about.Rows, about.Columns, about.SamplesPerPixel = values.shape[-3:]
        if len(pages) > 1:
            about.NumberOfFrames = len(pages)
        if about.SamplesPerPixel > 1:
            about.PlanarConfiguration, about.PhotometricInterpretation = 0, "RGB"
        content = values.astype(kind).tobytes()
        about.PixelData = content + b"\0" * (len(content) % 2)
        about["PixelData"].VR = "OB" if kind.itemsize == 1 else "OW"
        about.save_as(file, enforce_file_format=True)


def _new_dicom(bits: int) -> Any:
    """A secondary capture: an image that no device took."""
    from pydicom import uid
    from pydicom.dataset import Dataset, FileMetaDataset

    about = Dataset()
    about.file_meta = FileMetaDataset()
    about.SOPClassUID = about.file_meta.MediaStorageSOPClassUID = uid.SecondaryCaptureImageStorage
    about.SOPInstanceUID = about.file_meta.MediaStorageSOPInstanceUID = uid.generate_uid()
    about.StudyInstanceUID, about.SeriesInstanceUID = uid.generate_uid(), uid.generate_uid()
    about.Modality, about.PatientName, about.PatientID = "OT", "", ""
    about.BitsAllocated = about.BitsStored = bits
    about.HighBit, about.PixelRepresentation = bits - 1, 0
    about.PhotometricInterpretation = "MONOCHROME2"
    return about


def cannot_hold(name: str, suffix: str, pixels: np.ndarray) -> DataError:
    """That a format can't hold such pixels, and which ones can."""
    return DataError(
        f"{name}: {suffix} can't hold pixels of shape {pixels.shape} and type {pixels.dtype}. Write .png for 8 or 16 "
        "bits of up to 4 channels, .tif for any, .npy for all else."
    )


# Errors


def _is_heif(content: Content) -> bool:
    content.file.seek(0)
    head = content.file.read(12)
    content.file.seek(0)
    return head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")


@contextlib.contextmanager
def _whatever_goes_wrong(name: str) -> Iterator[None]:
    """Turns what the libraries raise into one DataError; they raise nearly anything on damaged files."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DataError:
        raise
    except ImportError as error:
        raise DataError(missing(name, "images", error)) from error
    except PermissionError as error:
        raise DataError(f"{name} can't be read: permission denied.") from error
    except Image.UnidentifiedImageError as error:
        raise DataError(f"{name} can't be read: it is damaged, or no image of a format that is known.") from error
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".")[:300] or type(error).__name__
        raise DataError(f"{name} can't be read: {reason}. It may be damaged or of another format.") from error
