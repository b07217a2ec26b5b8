"""Denoising photographs: grey, Gaussian noise added unclipped, PSNR in dB, the mean over whole test images.

    python -m benchmarks.photographs --data train400 --test set12 [--only baselines known blind alone large]
    … --only blind --steps 11000 --batch 16 --precision bf16 --channels 96 192 384 --blocks 4        on a GPU

`known` trains the product's U-Net at σ 25 (of 255), `blind` one model for any from 5 to 55, tested at 15, 25 and 50;
`alone` has noisy training images alone, of σ 25, whose level it estimates. Each makes the steps of the product's
default, or `--steps`; of its training the processor's seconds are printed, of which two cores have 3,600 in 30 minutes.
The recipe was settled on before any test image was looked at. `baselines` are non-local means (scikit-image) and, where
`pip install bm3d` was done, BM3D. `large` is a colour photograph of 12 megapixels, of noise alone, through a denoiser:
seconds, the processor's seconds, and the peak of the process' memory.
"""

import argparse
import dataclasses
import importlib.util
import resource
import tempfile
import time
from collections.abc import Callable

import numpy as np

from flaxae import autoencoder, baselines, denoising, metrics
from flaxae.autoencoder import Autoencoder, Config
from flaxae.data import Scaling, images
from flaxae.data.images import Images
from flaxae.denoising import photographs, tiles
from flaxae.nn.unet import UNet
from flaxae.trained import Trained
from flaxae.training.precision import PRECISIONS

PUBLISHED = "published, Set12 σ 25: BM3D 29.97, DnCNN 30.44"
LEVELS = (15, 25, 50)
ALONE = 25
MEGAPIXELS = (3000, 4000, 3)


def noisy_of(clean: np.ndarray, level: float, number: int) -> np.ndarray:
    """With noise of that level (of 255), the same at every call for the same image."""
    rng = np.random.default_rng((number, round(level)))
    return (clean + level / 255 * rng.standard_normal(clean.shape)).astype(np.float32)


def psnr(denoise: Callable[[np.ndarray, float], np.ndarray], test: Images, level: float) -> float:
    """The mean over the test images; what comes out is clipped to [0, 1], as images are."""
    values = []
    for i, clean in test.each():
        made = np.clip(denoise(noisy_of(clean, level, i), level), 0, 1)
        values.append(float(metrics.psnr(made[None].astype(np.float32), clean[None])[0]))
    return float(np.mean(values))


@dataclasses.dataclass(frozen=True)
class Training:
    """How to train; `body` in place of the product's."""

    steps: int
    batch: int
    precision: str
    body: UNet | None


def trained(name: str, config: Config, data: Images, training: Training) -> Autoencoder:
    """A model, with a line that says what its training took."""
    began, cpu = time.perf_counter(), time.process_time()
    if training.body is not None:
        config = dataclasses.replace(config, body=training.body)
    steps, own = training.steps, {"batch_size": training.batch, "precision": training.precision}
    with tempfile.TemporaryDirectory() as folder:
        model, _ = photographs.fit(config, data, steps=steps, folder=folder, **own)
    taken = time.process_time() - cpu
    print(
        f"{name}: {steps:,} steps in {time.perf_counter() - began:.0f} s, {taken:.0f} s of the processor's", flush=True
    )
    return model


def of_model(model: Autoencoder) -> Callable[[np.ndarray, float], np.ndarray]:
    return lambda noisy, level: tiles.reconstruct(model, noisy)


def known(data: Images, test: Images, training: Training) -> None:
    model = trained("known", photographs.of_clean(25 / 255), data, training)
    print(f"known: σ 25 {psnr(of_model(model), test, 25):.2f} ({PUBLISHED})")


def blind(data: Images, test: Images, training: Training) -> None:
    model = trained("blind", photographs.of_clean(), data, training)
    print("blind: " + ", ".join(f"σ {level} {psnr(of_model(model), test, level):.2f}" for level in LEVELS))


def alone(data: Images, test: Images, training: Training) -> None:
    """Noisy images go beyond [0, 1], where images are: they are stored as (x + 1/2) / 2, and tested so."""
    stored = [(noisy_of(clean, ALONE, i) + 0.5) / 2 for i, clean in data.each()]
    noisy = images.open([np.clip(x, 0, 1) for x in stored])  # five deviations off
    level, least, most = photographs.estimated(noisy)
    print(f"alone: σ estimated as {2 * 255 * level:.2f} ({2 * 255 * least:.1f} to {2 * 255 * most:.1f})")
    model = trained("alone", photographs.of_noisy(level), noisy, training)
    value = psnr(lambda x, _: 2 * tiles.reconstruct(model, (x + 0.5) / 2) - 0.5, test, ALONE)
    print(f"alone: σ {ALONE} {value:.2f}")


def simple(data: Images, test: Images, training: Training) -> None:
    methods = {
        "noisy": lambda x, level: x,
        "non-local means": lambda x, level: baselines.non_local_means(x, level / 255),
    }
    if importlib.util.find_spec("bm3d") is not None:
        import bm3d

        methods["BM3D"] = lambda x, level: bm3d.bm3d(x[..., 0], level / 255)[..., None]
    for name, method in methods.items():
        print(f"{name}: " + ", ".join(f"σ {level} {psnr(method, test, level):.2f}" for level in LEVELS), flush=True)


def large(data: Images, test: Images, training: Training) -> None:
    """The second time, as the first compiles."""
    model = autoencoder.build(photographs.of_clean(), (photographs.CROP, photographs.CROP, 3))
    whole = Trained(model, Scaling((0.0,), (255.0,), "uint8"), (photographs.CROP, photographs.CROP, 3), "image", None)
    photo = np.random.default_rng(0).integers(0, 256, MEGAPIXELS, dtype=np.uint8)
    denoising.denoise(whole, photo[:1000, :1000])
    began, cpu = time.perf_counter(), time.process_time()
    denoising.denoise(whole, photo)
    print(
        f"large: {photo.shape[0] * photo.shape[1] / 1e6:.0f} megapixels in {time.perf_counter() - began:.1f} s, "
        f"{time.process_time() - cpu:.1f} s of the processor's; the process' memory has its peak at "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB"
    )


PARTS = {"large": large, "baselines": simple, "known": known, "blind": blind, "alone": alone}  # memory first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a folder of clean photographs to train on")
    parser.add_argument("--test", required=True, help="a folder of clean photographs to test on")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--steps", type=int, default=photographs.STEPS)
    parser.add_argument("--batch", type=int, default=photographs.BATCH_SIZE)
    parser.add_argument("--precision", choices=PRECISIONS, default=PRECISIONS[0])
    parser.add_argument("--channels", type=int, nargs="+", help="of another U-Net than the product's")
    parser.add_argument("--blocks", type=int, default=UNet().blocks, help="of a U-Net of other channels")
    arguments = parser.parse_args()
    body = UNet(tuple(arguments.channels), arguments.blocks) if arguments.channels else None
    training = Training(arguments.steps, arguments.batch, arguments.precision, body)
    data, test = (images.open(folder, colours=1) for folder in (arguments.data, arguments.test))
    print(f"{data.summary()}\n{test.summary()}", flush=True)
    for name, part in PARTS.items():
        if name in arguments.only:
            part(data, test, training)


if __name__ == "__main__":
    main()
