"""Compress: train a codec for one's own kind of images, and write them as files that every machine decodes alike.

    python run.py --exp compress --data photos/

trains for about five minutes on two CPU cores, and measures the codec on images kept from the training, beside PNG and
WebP. What is compressed comes back exactly. A trained run turns images into `.flx` files and back, a file or a folder:

    python run.py --exp compress --from runs/compress/1 --input photo.png --output photo.flx
    python run.py --exp compress --from runs/compress/1 --input photo.flx --output photo.png

Small images of one size, such as the embedded MNIST's, are best kept in one file: --input digits.npy --output
digits.flx. Images of 8 and of 16 bits, grey or in colour, are taken; a run is of the kind that it was trained on.

    python run.py --exp compress --data photos/ --quality 75
    python run.py --exp compress --from runs/compress/2 --input photo.png --output photo.flx --quality 40

are for a lossy codec, as JPEG is, of images of 8 bits. It is trained for all qualities from 1 to 100 at once, for about
an hour on two CPU cores, and measured beside JPEG and WebP.
"""

import collections
import math
import pathlib
import time
from collections.abc import Callable

import numpy as np

from flaxae import compression, experiments, runs
from flaxae.compression import Codec, LossyCodec, files, fitting
from flaxae.data import Dataset
from flaxae.data.images import Images
from flaxae.errors import ConfigError, DataError
from flaxae.experiments import _flags, _lossy, _steps
from flaxae.printing import say
from flaxae.runs import Run, report
from flaxae.training import checkpoints

MEASURED, MEASURED_SMALL = 12, 1000  # test images: large ones, and small ones
FOLDER = "codec"  # in a run's folder


def apply(config: _flags.Compress) -> None:
    """Compress --input into --output, or the other way round if it holds `.flx` files."""
    codec = compression.load(config.from_ / FOLDER)
    if config.quality is not None and not isinstance(codec, LossyCodec):
        raise ConfigError(f"--quality: {config.from_} is lossless. Train a lossy codec: --data photos/ --quality 75.")
    if config.lossless and isinstance(codec, LossyCodec):
        raise ConfigError(f"--lossless: {config.from_} is lossy. Train a lossless codec: leave out --quality.")
    if files.is_compressed(config.input):
        files.decompress(codec, config.input, config.output, max_pixels=config.max_pixels)
        say(f"Decompressed {config.input} into {config.output}.")
    else:
        given = {"quality": config.quality, "max_pixels": config.max_pixels}
        say(files.compress(codec, config.input, config.output, **given).line())
        say(f"Compressed {config.input} into {config.output}.")


def train(config: _flags.Compress) -> None:
    """Train and measure a codec in a run's folder, and say how to use it."""
    dataset = _steps.load(config)
    if dataset.kind != "image":
        raise DataError(f"{config.data} is of the kind {dataset.kind}; a codec is for images.")
    source = dataset.train if isinstance(dataset.train, Images) else np.asarray(dataset.train)
    if config.quality is not None:
        about = {"settings": _steps.settings(config), "codec": {"quality": config.quality}}
        with runs.start("compress", config.name, about, resume=config.resume) as run, _steps.resumable(run):
            lossy = _lossy.train(config, run, source)
            lossy.save(run.folder / FOLDER)
            _lossy.evaluate(config, run, lossy, dataset)
    else:
        train_lossless(config, dataset, source)
    dataset.check()


def train_lossless(config: _flags.Compress, dataset: Dataset, source: fitting.Source) -> None:
    """Train and measure a lossless codec in a run's folder."""
    contexts = fitting.contexts_of(source)
    steps = fitting.STEPS if config.epochs is None else config.epochs * fitting.EPOCH
    about = {"settings": _steps.settings(config), "codec": {"steps": steps, "contexts": contexts.features}}
    with runs.start("compress", config.name, about, resume=config.resume) as run, _steps.resumable(run):
        say(f"Trains {steps:,} steps of {fitting.BATCH:,} values, on {len(source):,} images.")
        with _steps.resources(config, run) as resources:
            codec, _ = compression.fit(
                source,
                contexts=contexts,
                steps=steps,
                seed=config.seed,
                folder=run.checkpoints,
                resume=config.resume and checkpoints.begun(run.checkpoints),
                on_epoch=resources["on_epoch"],
            )
        codec.save(run.folder / FOLDER)
        evaluate(config, run, codec, dataset)


def evaluate(config: _flags.Compress, run: Run, codec: Codec, dataset: Dataset) -> None:
    """Compress test images and back: the table, results.json, the report."""
    images = tested(dataset)
    values = sum(x.size for x in images)
    compressed, encoding = timed(lambda: [codec.compress(x) for x in images])
    decoded, decoding = timed(lambda: [codec.decompress(content) for content in compressed])
    if not all(np.array_equal(x, y) for x, y in zip(images, decoded, strict=True)):
        raise DataError("The images did not come back as they were; please report this.")
    singles = [image for x in images for image in (x if x.ndim == 4 else [x])]
    others = sum((collections.Counter(files.lossless_peers(image)) for image in singles), collections.Counter())
    size = sum(map(len, compressed))
    sizes = {"stored": sum(x.nbytes for x in images), **others, "flaxae": size}
    heads = ["", "bytes", report.Column("bits a value", better="lower")]
    rows = [[name, f"{count:,}", 8 * count / values] for name, count in sizes.items()]
    one_file = " in one file; PNG and WebP in one each" if isinstance(dataset.train, np.ndarray) else ""
    table = report.Table(f"{len(singles):,} test images, {dataset.name}{one_file}", heads, rows)
    speeds = {"encoding": values / encoding / 1e6, "decoding": values / decoding / 1e6}
    results = {f"test/{name.lower()}_bits": 8 * count / values for name, count in sizes.items()}
    results |= {f"test/{name}_mb_per_s": speed for name, speed in speeds.items()}
    summary = (
        f"{8 * size / values:.3f} bits a value on test images, all of which came back exactly: {size:,} bytes, where "
        f"they have {sizes['stored']:,} as they are. Encoding {speeds['encoding']:.2f} MB/s, decoding "
        f"{speeds['decoding']:.2f} MB/s."
    )
    path = pathlib.Path(config.data)
    given, made = ("photos", "compressed") if path.is_dir() else ("photo.png", "photo.flx")
    usage = experiments.command("compress", from_=run.folder, input=given, output=made)
    history = run.history()
    columns = {name: [epoch[name] for epoch in history] for name in ("loss", "val_loss", "seconds")}
    _steps.finish(run, f"Compressing {dataset.name}", summary, [table], [], results, usage, history=columns)


def tested(dataset: Dataset) -> list[np.ndarray]:
    """Test images to measure on: small ones as one array, large ones one by one."""
    if not isinstance(dataset.test, Images):
        return [np.asarray(dataset.test[:MEASURED_SMALL])]
    step = max(1, math.ceil(len(dataset.test) / MEASURED))
    return [dataset.test.stored(i) for i in range(0, len(dataset.test), step)]


def timed(function: Callable[[], list]) -> tuple[list, float]:
    """What it returns, and the seconds that it took."""
    began = time.perf_counter()
    made = function()
    return made, time.perf_counter() - began
