"""Compression of images that nothing was chosen on: lossless beside PNG, WebP, JPEG XL, lossy beside JPEG and WebP.

    python -m benchmarks.compression --data mnist [--steps 12000]
    python -m benchmarks.compression --data /usr/share/datasets/fashion-mnist
    python -m benchmarks.compression --data photos/colour --every 10
    python -m benchmarks.compression lossy --data photos/colour --every 10 [--codec FOLDER]
    … --steps 7000 --batch 16 --channels 128 192 --blocks 3        on a GPU

A set with a test part of its own is tested on all of it, in one file of the codec's. Of a folder of photographs every
tenth (`--every`), in the order of their names, is kept from the training and tested on, a file each. `--test FOLDER`
are other photographs to test on. Sizes are those of files, headers included and the model not; all are decoded, and
compared. MB/s are millions of values a second, by the clock and by the processor's time. JPEG XL is measured if `cjxl`
(Debian's libjxl-tools) is there, at its default effort and at 9.

Of a lossy codec, each quality's bits a pixel, PSNR and MS-SSIM are means over the test photographs; the BD-rate is how
many percent more bits it takes than JPEG (Pillow, 4:2:0) and WebP (Pillow) at equal PSNR, by piecewise cubic
interpolation of those means. With `--codec` the codec is kept in that folder, and one that is there is measured.
"""

import argparse
import dataclasses
import io
import lzma
import pathlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from PIL import Image

from flaxae import compression, data
from flaxae.compression import Codec, fitting, peers
from flaxae.compression.transforms import Transforms
from flaxae.data import images
from flaxae.data.images import Images

QUALITIES = (1, 15, 30, 45, 60, 75, 90, 100)
OTHERS = (2, 5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90, 95)


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


def lossless_peers(each: Iterable[np.ndarray]) -> dict[str, int]:
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
    report(
        {name: size for name, size in lossless_peers(few).items() if name in ("PNG", "WebP")},
        few.size,
        "the first 1,000",
    )


def parts(source: str, test: str | None, every: int) -> tuple[Images, Images]:
    """Photographs to train on and to test on."""
    found = images.open(source)
    if test:
        return found, images.open(test)
    order = np.arange(len(found))
    apart = order % every == every - 1
    return found.select(order[~apart]), found.select(order[apart])


def photographs(source: str, test: str | None, every: int, steps: int, seed: int) -> None:
    """A folder of photographs."""
    known, tested = parts(source, test, every)
    codec = trained(known, steps, seed)
    arrays = [tested.stored(i) for i in range(len(tested))]
    sizes = {"flaxae": measured(codec, arrays), **lossless_peers(arrays)}
    report(sizes, sum(x.size for x in arrays), f"{len(arrays)} photographs")


def lossy(
    source: str,
    test: str | None,
    every: int,
    steps: int,
    seed: int,
    folder: str | None,
    batch: int | None,
    body: Transforms | None,
) -> None:
    """A lossy codec on a folder of photographs, with `body` in place of the product's."""
    known, tested = parts(source, test, every)
    if folder and pathlib.Path(folder).exists():
        codec = compression.load(folder)
    else:
        began, cpu = time.perf_counter(), time.process_time()
        config = dataclasses.replace(fitting.LOSSY, body=body) if body else None
        codec, _ = compression.fit_lossy(known, config=config, batch_size=batch, steps=steps, seed=seed, show=False)
        taken = time.process_time() - cpu
        print(
            f"trained: {steps:,} steps in {time.perf_counter() - began:.0f} s, {taken:.0f} s of the processor's",
            flush=True,
        )
        if folder:
            codec.save(folder)
    arrays = [tested.stored(i) for i in range(len(tested))]
    made, back, estimated = [], [], 0.0

    def code(pixels: np.ndarray, quality: int) -> tuple[int, np.ndarray]:
        nonlocal estimated
        content, seconds = clocked(lambda: codec.compress(pixels, quality=quality))
        decoded, again = clocked(lambda: codec.decompress(content))
        made.append((len(content), seconds))
        back.append(again)
        estimated += codec.bits(pixels, quality) / 8
        return len(content), decoded

    code(arrays[0], 50)  # compiles
    made.clear(), back.clear()
    estimated = 0.0
    curves = {"flaxae": peers.curve(code, arrays, QUALITIES)}
    curves |= {name: peers.curve(coder, arrays, OTHERS) for name, (coder, _) in peers.CODERS.items()}
    for name, points in curves.items():
        for point in points:
            print(
                f"{name}, quality {point.quality}: {point.bits:.4f} bits a pixel, PSNR {point.psnr:.2f} dB, "
                f"MS-SSIM {point.ms_ssim:.4f}"
            )
    for name, others in (("flaxae", ("JPEG", "WebP")), ("WebP", ("JPEG",))):
        for other in others:
            rate = peers.bd_rate(curves[name], curves[other])
            print(f"{len(arrays)} photographs: {name}, BD-rate against {other} {rate:+.1f} %")
    real = sum(size for size, _ in made)
    pixels = len(QUALITIES) * sum(x.shape[0] * x.shape[1] for x in arrays)
    print(f"estimated {estimated:,.0f} bytes, real {real:,}: {100 * (real / estimated - 1):+.2f} %")
    for what, seconds in (("encoding", sum(t for _, t in made)), ("decoding", sum(back))):
        print(f"{what}: {pixels / 1e6 / seconds:.3f} megapixels a second")


def clocked(function: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and the seconds that it took."""
    began = time.perf_counter()
    made = function()
    return made, time.perf_counter() - began


def report(sizes: dict[str, int], values: int, what: str) -> None:
    for name, size in sizes.items():
        print(f"{what}: {name} {size:,} bytes, {8 * size / values:.4f} bits a value", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", nargs="?", choices=("lossless", "lossy"), default="lossless")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--test")
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--codec")
    parser.add_argument("--batch", type=int, help="of a lossy codec")
    parser.add_argument("--channels", type=int, nargs="+", help="of other transforms than the product's")
    parser.add_argument("--blocks", type=int, default=Transforms().blocks, help="of transforms of other channels")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.kind == "lossy":
        steps = given.steps or fitting.LOSSY_STEPS
        body = Transforms(tuple(given.channels), blocks=given.blocks) if given.channels else None
        lossy(given.data, given.test, given.every, steps, given.seed, given.codec, given.batch, body)
    elif given.data == "mnist" or not images.holds(given.data):
        small(given.data, given.steps or fitting.STEPS, given.seed)
    else:
        photographs(given.data, given.test, given.every, given.steps or fitting.STEPS, given.seed)
