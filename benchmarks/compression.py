"""Lossless compression: bits a value of files, on images that nothing was chosen on, beside PNG, WebP and JPEG XL.

    python -m benchmarks.compression --data mnist [--steps 6000]
    python -m benchmarks.compression --data /usr/share/datasets/fashion-mnist
    python -m benchmarks.compression --data photos/colour --every 10

A set with a test part of its own is tested on all of it, in one file of the codec's. Of a folder of photographs every
tenth (`--every`), in the order of their names, is kept from the training and tested on, a file each. `--test FOLDER`
are other photographs to test on. Sizes are those of files, headers included and the model not; all are decoded, and
compared. MB/s are millions of values a second, by the clock and by the processor's time. JPEG XL is measured if `cjxl`
(Debian's libjxl-tools) is there, at its default effort and at 9.
"""

import argparse
import io
import lzma
import pathlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image

from flaxae import compression, data
from flaxae.compression import Codec, fitting
from flaxae.data import images


def trained(source: fitting.Source, steps: int, seed: int) -> Codec:
    """A codec, with a line that says what its training took."""
    began, cpu = time.perf_counter(), time.process_time()
    codec, history = compression.fit(source, steps=steps, seed=seed)
    taken = time.process_time() - cpu
    held_out = min(history["val_loss"]) / np.log(2)
    print(f"trained: {steps:,} steps in {time.perf_counter() - began:.0f} s, {taken:.0f} s of the processor's")
    print(f"held-out training images: {held_out:.4f} bits a value", flush=True)
    return codec


def measured(codec: Codec, arrays: list[np.ndarray]) -> int:
    """The bytes of the arrays' files, all of which were decoded and compared; prints how fast that was."""
    values = sum(x.size for x in arrays)
    made, speed = timed(lambda: [codec.compress(x) for x in arrays], values)
    print(f"encoding: {speed}; {8 * sum(map(len, made)) / values:.4f} bits a value", flush=True)
    back, speed = timed(lambda: [codec.decompress(content) for content in made], values)
    print(f"decoding: {speed}", flush=True)
    assert all(np.array_equal(x, y) for x, y in zip(arrays, back, strict=True))
    return sum(map(len, made))


def timed(function: Callable[[], list], values: int) -> tuple[list, str]:
    began, cpu = time.perf_counter(), time.process_time()
    made = function()
    clock, taken = time.perf_counter() - began, time.process_time() - cpu
    return (
        made,
        f"{values / 1e6 / clock:.3f} MB/s by the clock, {values / 1e6 / taken:.3f} MB/s of the processor's time",
    )


def peers(each: Iterable[np.ndarray]) -> dict[str, int]:
    """The bytes of images as files of their own, by Pillow's PNG and WebP at their best, and by JPEG XL."""
    found = {"PNG": 0, "WebP": 0}
    has_jxl = shutil.which("cjxl") is not None
    for pixels in each:
        image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        png, webp = io.BytesIO(), io.BytesIO()
        image.save(png, "PNG", optimize=True)
        image.save(webp, "WEBP", lossless=True, quality=100, method=6)
        found["PNG"] += len(png.getvalue())
        found["WebP"] += len(webp.getvalue())
        for effort in (7, 9) if has_jxl else ():
            name = f"JPEG XL, effort {effort}"
            found[name] = found.get(name, 0) + jpeg_xl(png.getvalue(), effort)
    return found


def jpeg_xl(png: bytes, effort: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        given, made = pathlib.Path(folder, "x.png"), pathlib.Path(folder, "x.jxl")
        given.write_bytes(png)
        command = ["cjxl", "--distance=0", f"--effort={effort}", str(given), str(made)]
        subprocess.run(command, check=True, capture_output=True)
        return made.stat().st_size


def small(source: str, steps: int, seed: int) -> None:
    """A set of small images with a test part."""
    dataset = data.load(source)
    train, test = np.asarray(dataset.train), np.asarray(dataset.test)
    codec = trained(train, steps, seed)
    sizes = {"flaxae": measured(codec, [test]), "LZMA": len(lzma.compress(test.tobytes(), preset=9))}
    report(sizes, test.size, f"{len(test):,} test images of {dataset.name}")
    few = test[:1000]  # a file each takes long
    report({name: size for name, size in peers(few).items() if name in ("PNG", "WebP")}, few.size, "the first 1,000")


def photographs(source: str, test: str | None, every: int, steps: int, seed: int) -> None:
    """A folder of photographs."""
    found = images.open(source)
    order = np.arange(len(found))
    apart = order % every == every - 1
    known = found if test else found.select(order[~apart])
    tested = images.open(test) if test else found.select(order[apart])
    codec = trained(known, steps, seed)
    arrays = [tested.stored(i) for i in range(len(tested))]
    sizes = {"flaxae": measured(codec, arrays), **peers(arrays)}
    report(sizes, sum(x.size for x in arrays), f"{len(arrays)} photographs")


def report(sizes: dict[str, int], values: int, what: str) -> None:
    for name, size in sizes.items():
        print(f"{what}: {name} {size:,} bytes, {8 * size / values:.4f} bits a value", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--test")
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--steps", type=int, default=fitting.STEPS)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.data == "mnist" or not images.holds(given.data):
        small(given.data, given.steps, given.seed)
    else:
        photographs(given.data, given.test, given.every, given.steps, given.seed)
