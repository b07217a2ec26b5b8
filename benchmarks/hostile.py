"""Good files of every format that the package reads, how each is used, and what is done to them.

A file that is packed or has a checksum is changed inside too, and packed or sealed again, as one would who means harm.
"""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import pathlib
import random
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.io
import scipy.sparse
from PIL import Image

import flaxae
from flaxae import anomaly, data, estimators, recommendation, sentences, sound, trained
from flaxae.compression import files
from flaxae.data import sparse
from flaxae.data.signals import Signal
from flaxae.serving import formats as bodies


class Source(NamedTuple):
    """A good file or folder, and how it is read."""

    path: pathlib.Path
    how: str
    use: Callable[[pathlib.Path], Any]


def sources(folder: pathlib.Path, made: pathlib.Path) -> list[Source]:
    """Of every format; and saved models without manifests, as one downloads them.

    Args:
        folder: to write to.
        made: a folder with a codec, a lossy codec, a detector, an estimator, a series detector and weights.
    """
    rng = np.random.default_rng(0)
    found = [*_arrays(folder, rng), *_tables(folder, rng), *_signals(folder, rng), *_images(folder, rng)]
    found += [*_sparse(folder, rng), *_compressed(folder, made, rng), *_models(folder, made, rng)]
    return found + _requests(folder, rng)


def _loaded(**settings: Any) -> Callable[[pathlib.Path], Any]:
    return lambda path: data.load(path, **settings)


def _arrays(folder: pathlib.Path, rng: np.random.Generator) -> list[Source]:
    import h5py

    x, labels = rng.normal(size=(40, 5)), np.arange(40) % 3
    np.save(folder / "a.npy", x)
    np.save(folder / "fortran.npy", np.asfortranarray(x))
    np.savez(folder / "b.npz", x=x, y=labels)
    np.savez_compressed(folder / "c.npz", x=np.zeros((40, 5)))
    scipy.io.savemat(folder / "d.mat", {"x": x, "y": labels})
    scipy.io.savemat(folder / "e.mat", {"x": x}, do_compression=True)
    with h5py.File(folder / "f.mat", "w", userblock_size=512) as file:
        file.create_dataset("x", data=x.T, compression="gzip", chunks=(5, 10))
    whole = bytearray((folder / "f.mat").read_bytes())
    whole[:128] = b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM"
    (folder / "f.mat").write_bytes(whole)
    idx = folder / "idx"
    idx.mkdir()
    images = rng.integers(0, 255, (20, 6, 6), np.uint8)
    with gzip.open(idx / "train-images-idx3-ubyte.gz", "wb") as packed:
        packed.write(struct.pack(">HBBIII", 0, 8, 3, *images.shape) + images.tobytes())
    (idx / "train-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, 20) + bytes(i % 3 for i in range(20)))
    names = ("a.npy", "fortran.npy", "b.npz", "c.npz", "d.mat", "e.mat", "f.mat", "idx")
    made = [Source(folder / name, "data.load", _loaded()) for name in names]
    read = [Source(folder / name, "data.read", data.read) for name in ("a.npy", "c.npz", "e.mat")]
    return [*made, *read, Source(folder / "a.npy", "windows", _loaded(window=8))]


def _tables(folder: pathlib.Path, rng: np.random.Generator) -> list[Source]:
    frame = pd.DataFrame(rng.normal(size=(40, 5)), columns=list("abcde")).assign(kind=["p", "q"] * 20)
    for ending in ("csv", "tsv", "txt", "csv.gz", "csv.zip", "csv.xz", "csv.bz2", "xlsx", "json", "jsonl", "feather"):
        data.write(folder / f"t.{ending}", frame.to_numpy(object), columns=list(frame.columns))
    frame.to_parquet(folder / "t.parquet")
    frame.to_parquet(folder / "plain.parquet", compression=None, use_dictionary=False)
    rows = "\n".join(",".join(map(str, row)) for row in frame.itertuples(index=False))
    heads = "\n".join(f"@attribute {name} numeric" for name in "abcde")
    (folder / "t.arff").write_text(f"@relation r\n{heads}\n@attribute kind {{p,q}}\n@data\n{rows}\n")
    dated = frame.assign(time=pd.date_range("2024-01-01", periods=40, freq="h"), kind=["p", "q", None, "r"] * 10)
    dated.to_csv(folder / "dated.csv", index=False)
    dated[list("abcde")].to_csv(folder / "numbers.csv", index=False)
    words = ["the", "quick", "brown", "fox", "jumps", "over", "it"]
    said = [" ".join(rng.choice(words, 5)) for _ in range(40)]
    (folder / "said.txt").write_text("\n".join(said) + "\n")
    pd.DataFrame({"one": said, "other": said[::-1], "score": rng.random(40)}).to_csv(folder / "pairs.csv", index=False)
    chosen = pd.DataFrame({"user": rng.integers(0, 9, 60), "item": rng.integers(0, 9, 60), "rating": 4.5})
    chosen.to_csv(folder / "ratings.csv", index=False)
    tables = [path for path in sorted(folder.glob("t.*")) if path.suffix != ".npy"]
    return [
        *(Source(path, "data.load", _loaded()) for path in (*tables, folder / "plain.parquet", folder / "dated.csv")),
        Source(folder / "t.csv", "label", _loaded(label="kind")),
        Source(folder / "t.xlsx", "label", _loaded(label="kind")),
        Source(folder / "numbers.csv", "windows", _loaded(window=8)),
        Source(folder / "dated.csv", "windows", _loaded(window=8, drop=["kind"])),
        Source(folder / "numbers.csv", "data.read", data.read),
        Source(folder / "said.txt", "sentences", sentences.read),
        Source(folder / "t.parquet", "sentences", sentences.read),
        Source(folder / "pairs.csv", "pairs", sentences.read_pairs),
        Source(folder / "ratings.csv", "ratings", lambda path: recommendation.read_ratings(path, least=4)),
    ]


def _signals(folder: pathlib.Path, rng: np.random.Generator) -> list[Source]:
    x = (0.1 * rng.normal(size=(4000, 1))).astype(np.float32)
    sounds = folder / "sounds"
    endings = ("wav", "flac", "ogg", "opus", "mp3", "aiff", "au", "w64", "caf")
    for ending in endings:
        data.write(folder / f"s.{ending}", Signal(x, 8000, subtype="PCM_16"))
        data.write(sounds / f"s.{ending}", Signal(x[:900], 8000, subtype="PCM_16"))
    recordings = folder / "recordings"
    for i in range(3):
        data.write(recordings / f"{i}.csv", np.cumsum(np.ones((60, 2)), axis=0), columns=["time", "x"])
    return [
        *(Source(folder / f"s.{ending}", "windows", _loaded(window=8)) for ending in endings),
        Source(folder / "s.wav", "clips", sound.read_clips),
        Source(sounds, "clips", sound.read_clips),
        Source(recordings, "windows", _loaded(window=8)),
    ]


def _images(folder: pathlib.Path, rng: np.random.Generator) -> list[Source]:
    def pixels(channels: int = 3, dtype: Any = np.uint8) -> np.ndarray:
        whole = rng.integers(0, np.iinfo(dtype).max, (8, 9, channels), dtype)
        return whole[..., 0] if channels == 1 else whole

    endings = ("png", "jpg", "tif", "bmp", "webp", "gif", "ppm", "pgm", "jp2", "avif", "heic", "dcm")
    for ending in endings:
        for j in range(3):
            data.write(folder / ending / f"{j}.{ending}", pixels(1 if ending in ("pgm", "gif", "dcm") else 3)[..., :])
    Image.fromarray(pixels()).convert("P", palette=Image.Palette.ADAPTIVE).save(folder / "png" / "palette.png")
    for ending in ("png", "tif", "jp2", "avif", "ppm"):
        deep = folder / f"deep-{ending}"
        for j in range(2):
            _write_deep(deep / f"{j}.{ending}", pixels(3, np.uint16))
    (folder / "pages").mkdir()
    pages = [Image.fromarray(pixels(1)) for _ in range(4)]
    for name in ("p.tif", "p.gif", "p.webp"):
        pages[0].save(folder / "pages" / name, save_all=True, append_images=pages[1:])
    plain = folder / "bmp"
    for name, mode in (("i.tar", "w"), ("i.tar.gz", "w:gz")):
        with tarfile.open(folder / name, mode) as archive:
            archive.add(plain, "in")
    shutil.make_archive(str(folder / "i"), "zip", plain)
    folders = [*endings, *(f"deep-{ending}" for ending in ("png", "tif", "jp2", "avif", "ppm")), "pages"]
    archives = ("i.tar", "i.tar.gz", "i.zip")
    return [
        *(Source(folder / name, "data.load", _loaded()) for name in (*folders, *archives)),
        *(Source(folder / name, "size", _loaded(size=8)) for name in ("png", "tif", "i.zip")),
        *(Source(folder / name, "data.images", _each_image) for name in (*folders, *archives)),
        *(Source(folder / "pages" / name, "data.images", _each_image) for name in ("p.tif", "p.gif")),
    ]


def _write_deep(path: pathlib.Path, pixels: np.ndarray) -> None:
    if path.suffix != ".ppm":
        data.write(path, pixels)
        return
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"P6 %d %d 65535\n" % (pixels.shape[1], pixels.shape[0]) + pixels.astype(">u2").tobytes())


def _each_image(path: pathlib.Path) -> None:
    images = data.images.open(path, colours="own")
    for _ in images.each():
        pass
    images.check()


def _sparse(folder: pathlib.Path, rng: np.random.Generator) -> list[Source]:
    import h5py

    x = scipy.sparse.random(30, 12, 0.2, "csr", np.float32, rng=rng)
    scipy.sparse.save_npz(folder / "sparse.npz", x)
    scipy.io.mmwrite(folder / "sparse.mtx", x)
    with h5py.File(folder / "sparse.h5ad", "w") as file:
        group = file.create_group("X")
        for name in ("data", "indices", "indptr"):
            group.create_dataset(name, data=getattr(x, name), compression="gzip")
        group.attrs["shape"], group.attrs["encoding-type"] = x.shape, "csr_matrix"
    with h5py.File(folder / "dense.h5ad", "w") as file:
        file.create_dataset("X", data=x.toarray(), compression="gzip", chunks=(10, 12))
    names = ("sparse.npz", "sparse.mtx", "sparse.h5ad", "dense.h5ad")
    return [Source(folder / name, "sparse", sparse.read) for name in names]


def _compressed(folder: pathlib.Path, made: pathlib.Path, rng: np.random.Generator) -> list[Source]:
    small = rng.integers(0, 15, (5, 8, 8, 1)).astype(np.uint8)
    photo = rng.integers(0, 255, (40, 48, 3)).astype(np.uint8)
    found = []
    for name, x in (("codec", small), ("lossy codec", photo)):
        codec = flaxae.compression.load(made / name)
        (folder / name).mkdir()
        (folder / f"{name}.flx").write_bytes(codec.compress(x))
        for i in range(2):
            (folder / name / f"{i}.flx").write_bytes(codec.compress(x[i] if name == "codec" else x))

        def use(path: pathlib.Path, codec: Any = codec) -> None:
            files.decompress(codec, path, path.parent / ("out" if path.is_dir() else "out.npy"))

        found += [Source(folder / f"{name}.flx", "decompress", use), Source(folder / name, "decompress", use)]
    return found


def _models(folder: pathlib.Path, made: pathlib.Path, rng: np.random.Generator) -> list[Source]:
    """Saved models of whom nobody knows who made them: there is no manifest, or it would be changed as well."""
    table = rng.normal(size=(5, 4)).astype(np.float32)
    small = rng.integers(0, 15, (2, 8, 8, 1)).astype(np.uint8)

    def applied(model: Any) -> None:
        if isinstance(model, trained.Trained):
            model.reconstruct(table)
        elif isinstance(model, flaxae.compression.Codec):
            model.decompress(model.compress(small))
        elif isinstance(model, estimators.AutoencoderDetector):
            model.decision_function(table)
        elif isinstance(model, anomaly.Detector):
            model.score(table)

    found = []
    readers = {"detector": flaxae.load, "estimator": flaxae.load, "weights": flaxae.load}
    for name, load in {**readers, "codec": flaxae.compression.load, "series detector": anomaly.series.load}.items():
        bare = folder / f"model-{name}"
        shutil.copytree(made / name, bare)
        (bare / "manifest").unlink(missing_ok=True)
        found.append(Source(bare, "load", lambda path, load=load: applied(load(path))))
    return found


def _requests(folder: pathlib.Path, rng: np.random.Generator) -> list[Source]:
    """Bodies of requests to `flaxae serve`."""
    small = rng.integers(0, 15, (2, 8, 8, 1)).astype(np.uint8)
    likelihood = flaxae.presets.likelihood("image", None, data.Scaling((0.0,), (255.0,), "uint8"))
    model = flaxae.build(flaxae.presets.find("vanilla", likelihood), (8, 8, 1))
    about = flaxae.Trained(model, data.Scaling((0.0,), (255.0,), "uint8"), (8, 8, 1), "image", None)
    table = flaxae.Trained(model, data.Scaling((0.0,), (1.0,), "float32"), (3,), "tabular", ("a", "b", "c"))
    rows = rng.normal(size=(4, 3))
    png = io.BytesIO()
    Image.fromarray(small[0, :, :, 0]).save(png, "PNG")
    np.save(folder / "body-array.npy", small)
    (folder / "body-image.png").write_bytes(png.getvalue())
    (folder / "body-array.json").write_text(json.dumps({"x": small.tolist()}))
    (folder / "body-rows.json").write_text(json.dumps({"rows": [dict(zip("abc", row, strict=True)) for row in rows]}))
    pd.DataFrame(rows, columns=list("abc")).to_csv(folder / "body-rows.csv", index=False)
    kinds = {".npy": bodies.NPY, ".png": bodies.PNG, ".json": bodies.JSON, ".csv": bodies.CSV}

    def use(path: pathlib.Path) -> None:
        bodies.read(path.read_bytes(), kinds[path.suffix], table if "rows" in path.name else about, 1000)

    return [Source(path, "request", use) for path in sorted(folder.glob("body-*"))]


# What is done to them


def changed(path: pathlib.Path, chance: random.Random) -> bytes:
    """A file with a few changes: half the time of what is packed in it, or with its checksums made right again."""
    good = path.read_bytes()
    if chance.random() < 0.5:
        for endings, inside in INSIDE.items():
            if path.name.endswith(endings):
                return inside(good, lambda content: mutated(content, chance), chance)
    return mutated(good, chance)


Change = Callable[[bytes], bytes]


def _in_zip(good: bytes, change: Change, chance: random.Random) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(good)) as archive, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as out:
        names = archive.namelist()
        target = chance.choice(names)
        for name in names:
            content = archive.read(name)
            out.writestr(name, change(content) if name == target else content)
    return made.getvalue()


def _in_png(good: bytes, change: Change, chance: random.Random) -> bytes:
    made, place = [good[:8]], 8
    count, chunks = 0, []
    while place + 12 <= len(good):
        size = int.from_bytes(good[place : place + 4], "big")
        chunks.append((good[place + 4 : place + 8], good[place + 8 : place + 8 + size]))
        place += 12 + size
    target = chance.randrange(len(chunks))
    for count, (kind, content) in enumerate(chunks):
        if count == target and kind == b"IDAT":
            content = zlib.compress(change(zlib.decompress(content)))
        elif count == target:
            content = change(content)
        made.append(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)))
    return b"".join(made)


def _sealed(good: bytes, change: Change, chance: random.Random) -> bytes:
    content = change(good[:-8])
    return content + hashlib.sha256(content).digest()[:8]


INSIDE: dict[tuple[str, ...], Callable[[bytes, Change, random.Random], bytes]] = {
    (".gz",): lambda good, change, chance: gzip.compress(change(gzip.decompress(good))),
    (".xz",): lambda good, change, chance: lzma.compress(change(lzma.decompress(good))),
    (".bz2",): lambda good, change, chance: bz2.compress(change(bz2.decompress(good))),
    (".zip", ".npz", ".xlsx"): _in_zip,
    (".png",): _in_png,
    (".flx",): _sealed,
}


def flipped(good: bytes, chance: random.Random) -> bytes:
    """One bit is another."""
    place = chance.randrange(len(good))
    return good[:place] + bytes([good[place] ^ 1 << chance.randrange(8)]) + good[place + 1 :]


def with_other_digit(good: bytes, chance: random.Random) -> bytes:
    """One digit is another; a bit, where there are none."""
    places = [i for i, byte in enumerate(good) if 48 <= byte <= 57]
    if not places:
        return flipped(good, chance)
    place = chance.choice(places)
    return good[:place] + str((good[place] - 48 + chance.randint(1, 9)) % 10).encode() + good[place + 1 :]


def mutated(good: bytes, chance: random.Random) -> bytes:
    """A few changes of a file: bits, bytes, digits, huge numbers, pieces away, twice or from elsewhere."""
    for _ in range(chance.choice([1, 1, 1, 2, 4, 16])):
        if not good:
            return good
        a, b = sorted(chance.randrange(len(good) + 1) for _ in range(2))
        b = min(b, a + 64)
        kind = chance.randrange(9)
        if kind == 0:
            good = flipped(good, chance)
        elif kind == 1:
            good = with_other_digit(good, chance)
        elif kind == 2:
            good = good[:a] + chance.randbytes(b - a) + good[b:]
        elif kind == 3:
            good = good[:a] + good[b:]
        elif kind == 4:
            good = good[:b] + good[a:b] * chance.choice([1, 2, 50]) + good[b:]
        elif kind == 5:
            odd = (
                b"\xff" * 4,
                b"\0" * 8,
                b"9" * 400,
                b"1e400",
                b"-inf",
                b"(" * 3000,
                b"[" * 3000,
                b'"',
                b"\n",
                b",",
                b"\xef\xbb\xbf",
            )
            good = good[:a] + chance.choice(odd) + good[a:]
        elif kind == 6:
            size = chance.choice([2, 4, 8])
            number = chance.choice([0, 2**31 - 1, 2**32 - 1, 2**16 - 1, 2**62, 10**7]) % 256**size
            good = good[:a] + number.to_bytes(size, chance.choice(["little", "big"])) + good[a + size :]
        elif kind == 7:
            good = good[: chance.randrange(len(good))]
        else:
            digits = chance.choice([b"9" * 30, b"99999999", b"-1", b"0"])
            good = good.replace(chance.choice([b"40", b"5", b"8"]), digits, 1)
    return good
