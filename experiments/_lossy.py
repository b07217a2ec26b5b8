"""The lossy half of the compression experiment: training, and curves of bytes and quality beside JPEG and WebP."""

import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from flaxae import compression, experiments
from flaxae.compression import LossyCodec, fitting, peers
from flaxae.compression.peers import Pixels, Point
from flaxae.data import Dataset
from flaxae.data.images import Images
from flaxae.errors import DataError
from flaxae.experiments import _flags, _steps
from flaxae.printing import say
from flaxae.runs import Run, plots, report
from flaxae.training import checkpoints

MEASURED = 12  # test images
QUALITIES = (1, 15, 30, 45, 60, 75, 90, 100)
OTHERS = (2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95)  # qualities of JPEG and WebP
SHOWN, SIDE = 3, 192  # pieces of test images in the report, and pixels a side of one


def train(config: _flags.Compress, run: Run, source: fitting.Source) -> LossyCodec:
    """A lossy codec, with the run's checkpoints."""
    steps = fitting.LOSSY_STEPS if config.epochs is None else config.epochs * fitting.LOSSY_EPOCH
    say(f"Trains {steps:,} steps of {fitting.LOSSY_BATCH} pieces, on {len(source):,} images.")
    with _steps.resources(config, run) as resources:
        codec, _ = compression.fit_lossy(
            source,
            quality=config.quality or fitting.QUALITY,
            steps=steps,
            seed=config.seed,
            folder=run.checkpoints,
            resume=config.resume and checkpoints.begun(run.checkpoints),
            on_epoch=resources["on_epoch"],
        )
    return codec


def evaluate(config: _flags.Compress, run: Run, codec: LossyCodec, dataset: Dataset) -> None:
    """Compress test images and back at several qualities: the tables, results.json, the report."""
    images = tested(dataset)
    qualities = sorted({*QUALITIES, codec.quality})
    curves = {"flaxae": peers.curve(coder(codec), images, qualities)}
    curves |= {name: peers.curve(other, images, OTHERS) for name, (other, _) in peers.CODERS.items()}
    own = next(point for point in curves["flaxae"] if point.quality == codec.quality)
    rates = {name: bd_rate(curves["flaxae"], curves[name]) for name in peers.CODERS}
    heads = ["quality", "bits a pixel", "PSNR (dB)", "MS-SSIM", *(f"{name}'s bits" for name in peers.CODERS)]
    rows = [
        [str(point.quality), point.bits, point.psnr, defined(point.ms_ssim)]
        + [defined(bits_at(curves[name], point.psnr)) for name in peers.CODERS]
        for point in curves["flaxae"]
    ]
    caption = f"{len(images)} test images, {dataset.name}; beside it what others take for the same PSNR, where they can"
    compared = [
        f"{abs(rate):.1f} % {'fewer' if rate < 0 else 'more'} bits than {name}"
        for name, rate in rates.items()
        if rate is not None
    ]
    summary = (
        f"{own.bits:.3f} bits a pixel at quality {codec.quality} on test images, at a PSNR of {own.psnr:.2f} dB. "
        + (f"For the same PSNR, as a mean over what both reach, it takes {', '.join(compared)}." if compared else "")
    )
    plots.rate_distortion(
        {name: [tuple(point[1:]) for point in points] for name, points in curves.items()}, run.figure("curves_of_rate")
    )
    figures = [("Bits a pixel beside how good an image is, means over test images.", "curves_of_rate")]
    if pieces := cut(codec, images):
        plots.image_grid(pieces, run.figure("pieces"))
        figures.append(
            (f"Pieces of test images, in files of about one size, that of quality {codec.quality}.", "pieces")
        )
    path = pathlib.Path(config.data)
    given, made = ("photos", "compressed") if path.is_dir() else ("photo.png", "photo.flx")
    usage = experiments.command("compress", from_=run.folder, input=given, output=made, quality=codec.quality)
    history = run.history()
    columns = {name: [epoch[name] for epoch in history] for name in ("loss", "val_loss", "seconds")}
    table = report.Table(caption, heads, rows)
    _steps.finish(
        run, f"Compressing {dataset.name}", summary, [table], figures, results(own, rates), usage, history=columns
    )


def results(own: Point, rates: Mapping[str, float | None]) -> dict[str, float]:
    """What results.json has of the codec's own quality and its BD-rates, as far as there is something to tell."""
    found = {
        "test/bits_per_pixel": own.bits,
        "test/psnr_db": own.psnr,
        "test/ms_ssim": defined(own.ms_ssim),
        **{f"test/bd_rate_{name.lower()}_percent": rate for name, rate in rates.items()},
    }
    return {name: value for name, value in found.items() if value is not None}


def tested(dataset: Dataset) -> list[Pixels]:
    """Test images to measure on, without alpha."""
    step = max(1, math.ceil(len(dataset.test) / MEASURED))
    numbers = range(0, len(dataset.test), step)
    test = dataset.test
    found = [test.stored(i) if isinstance(test, Images) else np.asarray(test[i]) for i in numbers]
    return [image[..., : 3 if image.shape[2] >= 3 else 1] for image in found]


def coder(codec: LossyCodec) -> peers.Coder:
    """The codec as JPEG and WebP are given."""

    def code(pixels: Pixels, quality: int) -> tuple[int, Pixels]:
        content = codec.compress(pixels, quality=quality)
        return len(content), codec.decompress(content, max_values=pixels.size)

    return code


def bd_rate(points: Sequence[Point], anchor: Sequence[Point]) -> float | None:
    """See `peers.bd_rate`; None where two codecs have no quality in common."""
    try:
        return peers.bd_rate(points, anchor)
    except DataError:
        return None


def bits_at(points: Sequence[Point], psnr: float) -> float:
    """The bits of a codec at that PSNR, between the points that it was measured at; NaN beyond them."""
    ratios, bits = zip(*sorted((point.psnr, point.bits) for point in points), strict=True)
    return float(np.exp(np.interp(psnr, ratios, np.log(bits), left=np.nan, right=np.nan)))


def defined(number: float) -> float | None:
    """The number; None for NaN."""
    return None if math.isnan(number) else number


def cut(codec: LossyCodec, images: Sequence[Pixels]) -> dict[str, np.ndarray]:
    """Pieces of a few images as they are and as each codec has them at the size of this one's file, in [0, 1]."""
    large = [image for image in images if min(image.shape[:2]) >= SIDE][:SHOWN]
    rows: dict[str, list[np.ndarray]] = {name: [] for name in ("original", "flaxae", *peers.CODERS)}
    for pixels in large:
        size, made = coder(codec)(pixels, codec.quality)
        others = [peers.at_size(name, pixels, size) for name in peers.CODERS]
        for name, image in zip(rows, (pixels, made, *others), strict=True):
            top, left = ((extent - SIDE) // 2 for extent in image.shape[:2])
            rows[name].append(image[top : top + SIDE, left : left + SIDE].astype(np.float32) / 255)
    return {name: np.stack(pieces) for name, pieces in rows.items()} if large else {}
