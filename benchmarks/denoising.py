"""Denoising: flaxae beside the convolutional denoiser of the Keras blog, trained for as many epochs in the same run.

    python -m benchmarks.denoising --data mnist

The peer is the network of "Building autoencoders in Keras" (blog.keras.io, 2016), section "Application to image
denoising", built in torch: two 3 × 3 convolutions of 32 channels, each max-pooled, to 7 × 7 × 32 and back by
upsampling; cross-entropy, batches of 128, Adam, one fixed noisy copy of the training set. Both train with noise of
standard deviation 0.5, clipped to [0, 1], and both are measured on the same noisy test set, by means over its images.
The seconds are those of training and denoising, compilation included. It needs `pip install -e ".[bench]"`, and about
two minutes on two CPU cores. `--data` takes a folder of IDX files for Fashion-MNIST.
"""

import dataclasses
import time
from typing import Literal

import numpy as np
import tyro
from jaxtyping import Float

from flaxae import autoencoder, data, metrics, training
from flaxae.autoencoder import Autoencoder
from flaxae.experiments import _flags, denoise

NOISE = 0.5


@dataclasses.dataclass(frozen=True)
class Config:
    """What to compare on."""

    data: str = "mnist"
    """`mnist`, or a folder of IDX files."""
    epochs: int = 3
    """Epochs of both; by default those of `--exp denoise`."""
    models: tuple[str, ...] = ("mixer",)
    """The presets of flaxae to train."""
    seed: int = 0
    """Seed of the weights, the shuffles and the noise."""
    precision: Literal["float32", "bf16", "auto"] = "float32"
    """flaxae's."""
    peer: bool = True
    """Train the peer too."""


def main(config: Config) -> None:
    dataset = data.load(config.data)
    train, test = dataset.scaling(dataset.train), dataset.scaling(dataset.test)
    noisy = add_noise(test, config.seed + 1)
    print(
        f"{dataset.name}: {len(train):,} training and {len(test):,} test images, noise {NOISE}, {config.epochs} epochs"
    )
    print(f"{'':30s} {'PSNR (dB)':>10s} {'SSIM':>8s} {'MSE':>8s} {'training (s)':>13s}")
    report("noisy", noisy, test, 0)
    runs = {f"flaxae, {name}": lambda name=name: flaxae(name, config, dataset, noisy) for name in config.models}
    if config.peer:
        runs["Keras blog, in torch"] = lambda: keras_blog(config, train, noisy)
    for name, run in runs.items():
        began = time.perf_counter()
        denoiser = run()
        report(name, denoiser(), test, time.perf_counter() - began)


def add_noise(images: Float[np.ndarray, "*shape"], seed: int) -> Float[np.ndarray, "*shape"]:
    noise = np.random.default_rng(seed).standard_normal(images.shape, dtype=np.float32)
    return np.clip(images + NOISE * noise, 0, 1)


def report(name: str, reconstruction: np.ndarray, clean: np.ndarray, seconds: float) -> None:
    psnr, ssim, mse = (
        float(metric(reconstruction, clean).mean()) for metric in (metrics.psnr, metrics.ssim, metrics.mse)
    )
    print(f"{name:30s} {psnr:10.2f} {ssim:8.4f} {mse:8.5f} {seconds:13.0f}", flush=True)


def flaxae(name: str, config: Config, dataset: data.Dataset, noisy: np.ndarray):
    """Train a preset with the defaults of `--exp denoise`; returns a function that denoises."""
    defaults = _flags.Denoise(model=name, noise=NOISE, precision=config.precision)
    model = autoencoder.build(denoise.network(defaults, dataset), dataset.shape, seed=config.seed)
    training.fit(
        model,
        dataset.scaling(dataset.train),
        epochs=config.epochs,
        batch_size=denoise.BATCH_SIZE,
        learning_rate=denoise.LEARNING_RATE,
        validation=defaults.validation,
        precision=config.precision,
        seed=config.seed,
        show=False,
    )
    return lambda: training.apply(Autoencoder.reconstruct, model, noisy)


def keras_blog(config: Config, train: np.ndarray, noisy: np.ndarray):
    """Train the peer, in channels-last memory and with fused Adam (torch's fast path); returns a denoising function."""
    import torch
    from torch import nn

    torch.manual_seed(config.seed)

    def images(x):
        return torch.from_numpy(np.ascontiguousarray(x)).permute(0, 3, 1, 2)

    channels = train.shape[-1]
    model = nn.Sequential(
        *(nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2)),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2)),
        nn.Conv2d(32, channels, 3, padding=1),
    ).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    loss = nn.BCEWithLogitsLoss()
    clean, corrupted = images(train), images(add_noise(train, config.seed))
    for _ in range(config.epochs):
        order = torch.randperm(len(clean))
        for batch in order.split(128):
            optimizer.zero_grad()
            loss(model(corrupted[batch]), clean[batch]).backward()
            optimizer.step()

    def denoiser():
        with torch.no_grad():
            parts = [torch.sigmoid(model(part)).permute(0, 2, 3, 1).numpy() for part in images(noisy).split(1000)]
        return np.concatenate(parts)

    return denoiser


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
