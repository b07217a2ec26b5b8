"""Draw every picture of the README and of the documentation, from the embedded MNIST and from images made here.

    python -m docs.pictures              # all of them, in some minutes on two cores
    python -m docs.pictures sparse map   # some of them

The same command on the same machine gives the same files, in `docs/pictures`.
"""

import pathlib
import sys
import time
from collections.abc import Callable

import jax
import matplotlib
import numpy as np
from PIL import Image, ImageChops

import flaxae
from flaxae import anomaly, maps, presets, stacked
from flaxae.autoencoder import Autoencoder, Config

matplotlib.use("Agg")
from matplotlib import patheffects
from matplotlib import pyplot as plt

FOLDER = pathlib.Path(__file__).parent / "pictures"
KEY = jax.random.key(0)
DRAWN: dict[str, Callable[[], plt.Figure]] = {}


def picture(draw: Callable[[], plt.Figure]) -> Callable[[], plt.Figure]:
    """Make a function known by its name, which is also that of the file."""
    DRAWN[draw.__name__] = draw
    return draw


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The training and test digits in [0, 1], and the test digits' classes."""
    data = flaxae.data.load("mnist")
    return data.train / np.float32(255), data.test / np.float32(255), data.test_labels


def trained(config: Config, epochs: int = 8, count: int = 30_000, **settings: object) -> Autoencoder:
    """A model of the first `count` digits."""
    x = digits()[0][:count]
    model = flaxae.build(config, x.shape[1:])
    flaxae.fit(model, x, epochs=epochs, show=False, **settings)
    return model


def one_of_each() -> np.ndarray:
    """The first test digit of each class."""
    _, x, labels = digits()
    return x[[int(np.flatnonzero(labels == digit)[0]) for digit in range(10)]]


def rows(named: dict[str, np.ndarray], width: float = 7.0, title: float = 8.5) -> plt.Figure:
    """Rows of images, [n, height, width, 1] in [0, 1], each with its name at its left."""
    count = max(map(len, named.values()))
    figure, axes = plt.subplots(len(named), 1, figsize=(width, width / (count + 2.2) * len(named) * 1.08))
    for axis, (name, images) in zip(np.atleast_1d(axes), named.items(), strict=True):
        framed = np.pad(images[..., 0], ((0, 0), (1, 1), (1, 1)), constant_values=0.25)
        axis.imshow(np.concatenate(list(framed), axis=1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_axis_off()
        axis.text(-8, framed.shape[1] / 2, name, ha="right", va="center", fontsize=title)
    figure.subplots_adjust(left=0.19, right=0.995, top=0.99, bottom=0.01, hspace=0.06)
    return figure


def small_axes(size: tuple[float, float], count: int = 1) -> tuple[plt.Figure, list[plt.Axes]]:
    """A row of axes without a frame at the top and at the right."""
    figure, axes = plt.subplots(1, count, figsize=size, layout="constrained")
    for axis in np.atleast_1d(axes):
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    return figure, list(np.atleast_1d(axes))


# --- the README's


@picture
def denoise() -> plt.Figure:
    """Digits with noise of standard deviation 0.5, and what `presets.mixer` makes of them."""
    import dataclasses

    from flaxae.corruptions import GaussianNoise

    config = dataclasses.replace(presets.mixer(), corruption=GaussianNoise(0.5, clip=(0, 1)))
    model = trained(config, epochs=3, count=60_000, batch_size=64)
    x = one_of_each()
    noisy = np.asarray(model.corrupt(x, KEY))
    return rows({"noisy": noisy, "denoised": np.asarray(model.reconstruct(noisy)), "never seen": x})


def weave(count: int, seed: int, *, side: int = 64, defects: bool = False) -> np.ndarray:
    """Images of fabric, [count, side, side, 1] in [0, 1], in nearly the same light; or with a pulled thread each."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    made = []
    for _ in range(count):
        phase = rng.uniform(0, 2 * np.pi, 2)
        threads = np.sin(2 * np.pi * x / 8 + phase[0]) * np.sin(2 * np.pi * y / 8 + phase[1])
        image = 0.5 + 0.18 * threads + rng.normal(0, 0.04, (side, side)) + rng.uniform(-0.03, 0.03)
        if defects:
            angle, middle = rng.uniform(0, np.pi), rng.uniform(0.3, 0.7, 2) * side
            along = (x - middle[0]) * np.cos(angle) + (y - middle[1]) * np.sin(angle)
            across = (y - middle[1]) * np.cos(angle) - (x - middle[0]) * np.sin(angle) + 0.02 * along**2
            image += 0.28 * np.exp(-np.square(across / 1.3)) * (np.abs(along) < rng.uniform(7, 13))
        made.append(np.clip(image, 0, 1))
    return np.stack(made).astype(np.float32)[..., None]


@picture
def defects() -> plt.Figure:
    """Four pieces of fabric with a pulled thread, and the heat of `anomaly.fit`, trained on fabric without one."""
    detector = anomaly.fit(weave(160, 0), kind="image")
    x = weave(4, 2, defects=True)
    heat, level = detector.heat(x), detector.heat_level(0.01)
    figure, axes = plt.subplots(2, 4, figsize=(5.2, 2.7))
    for column in range(4):
        axes[0, column].imshow(x[column, ..., 0], cmap="gray", vmin=0, vmax=1)
        axes[1, column].imshow(heat[column], cmap="inferno", vmin=0, vmax=heat.max())
        axes[1, column].contour(heat[column] > level, levels=[0.5], colors="white", linewidths=0.8)
    for axis, name in ((axes[0, 0], "image"), (axes[1, 0], "how strange")):
        axis.text(-4, 32, name, rotation=90, ha="right", va="center", fontsize=8.5)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.subplots_adjust(left=0.05, right=0.995, top=0.99, bottom=0.01, hspace=0.04, wspace=0.04)
    return figure


@picture
def codes() -> plt.Figure:
    """Test digits on a map learnt from 10,000 others without their classes, coloured by class."""
    train, test, labels = digits()
    model = flaxae.build(presets.neighbour_map(examples=10_000), train.shape[1:])
    maps.fit(model, train[:10_000], epochs=50, show=False)
    z = flaxae.apply(Autoencoder.encode, model, test[:5000])
    figure, (axis,) = small_axes((3.6, 3.2))
    colours = plt.get_cmap("tab10")(np.arange(10))
    axis.scatter(*z.T, s=1.2, color=colours[labels[:5000]], linewidths=0)
    for digit in range(10):
        middle = np.median(z[labels[:5000] == digit], axis=0)
        axis.text(*middle, str(digit), ha="center", va="center", fontsize=12, fontweight="bold").set_path_effects(
            [patheffects.withStroke(linewidth=2.5, foreground="white")]
        )
    axis.set_axis_off()
    return figure


# --- the variants


@picture
def vanilla() -> plt.Figure:
    """Test digits, and what codes of 2, 8 and 32 numbers keep of them."""
    x = one_of_each()
    made = {f"{size} numbers": np.asarray(trained(presets.vanilla(size)).reconstruct(x)) for size in (2, 8, 32)}
    return rows({"x": x, **made})


@picture
def convolutional() -> plt.Figure:
    """A digit, and what eight of the kernels of the first layer make of it, beside those kernels."""
    model = trained(presets.convolutional(), epochs=3)
    x = one_of_each()[[3]]
    kernels = np.asarray(model.encoder.stages[0].kernel[...])
    kernels = kernels.reshape(3, 3, -1)[..., np.argsort(-np.abs(kernels.reshape(9, -1)).sum(0))[:8]]
    padded = np.pad(x[0, ..., 0], 1)
    figure, axes = plt.subplots(2, 9, figsize=(7, 1.75))
    for axis in axes.flat:
        axis.set_axis_off()
    axes[0, 0].imshow(x[0, ..., 0], cmap="gray")
    axes[0, 0].set_title("x", fontsize=8.5)
    for column in range(8):
        kernel = kernels[..., column]
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))[::2, ::2]
        bound = np.abs(kernels).max()
        axes[0, column + 1].imshow(kernel, cmap="RdBu", vmin=-bound, vmax=bound)
        axes[1, column + 1].imshow(np.maximum((windows * kernel).sum((2, 3)), 0), cmap="gray", vmin=0)
    axes[0, 1].set_title("kernels", fontsize=8.5, loc="left")
    figure.subplots_adjust(left=0.01, right=0.99, top=0.88, bottom=0.01, hspace=0.08, wspace=0.08)
    return figure


@picture
def denoising() -> plt.Figure:
    """Digits with noise of three levels, and what a model trained at the level 0.5 makes of them."""
    model = trained(presets.denoising(noise=0.5))
    x = one_of_each()[:5]
    noise = np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)
    noisy = np.concatenate([np.clip(x[[i]] + level * noise[[i]], 0, 1) for level in (0.3, 0.5, 0.8) for i in range(5)])
    return rows({"σ = 0.3, 0.5, 0.8": noisy, "denoised": np.asarray(model.reconstruct(noisy))}, width=8)


@picture
def sparse() -> plt.Figure:
    """The code of a digit, and what each of the units that are on stands for: the decoder at that unit alone."""
    model = trained(presets.top_k(active=8))
    x = one_of_each()[[2]]
    z = np.asarray(model.encode(x))[0]
    on = np.argsort(-np.abs(z))[:8]
    alone = np.zeros((8, z.size), np.float32)
    alone[np.arange(8), on] = z[on]
    nothing = np.asarray(model.decode(np.zeros((1, z.size), np.float32)))
    meant = np.asarray(model.decode(alone)) - nothing
    figure = plt.figure(figsize=(7, 2.1))
    axis = figure.add_axes((0.06, 0.62, 0.93, 0.29))
    axis.bar(np.arange(z.size), z, width=1.6, color="tab:blue")
    axis.axhline(0, color="black", linewidth=0.5)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=7)
    axis.set_title("z: 8 of 256 units are on", fontsize=8.5, loc="left", y=1.0, pad=2)
    shown = [("x", x[0, ..., 0], "gray"), *[(f"unit {j}", m[..., 0], "RdBu") for j, m in zip(on, meant, strict=True)]]
    shown.append(("x̂", np.asarray(model.reconstruct(x))[0, ..., 0], "gray"))
    for column, (name, image, colours) in enumerate(shown):
        axis = figure.add_axes((0.005 + 0.1 * column, 0.01, 0.09, 0.4))
        bound = {"vmin": 0, "vmax": 1} if colours == "gray" else {"vmin": -0.6, "vmax": 0.6}
        axis.imshow(image, cmap=colours, **bound)
        axis.set_title(name, fontsize=7.5, pad=2)
        axis.set_axis_off()
    return figure


@picture
def contractive() -> plt.Figure:
    """How far the code moves along each direction of the input: singular values of ∂z/∂x, means of 100 digits."""
    _, x, _ = digits()
    figure, (axis,) = small_axes((4.6, 2.4))
    for weight in (0.0, 0.1, 1.0):
        model = trained(presets.contractive(16, contraction=weight), epochs=3, count=6000)
        jacobian = jax.jit(jax.vmap(jax.jacrev(lambda one, model=model: model.encode(one[None])[0])))(x[:100])
        values = np.linalg.svd(np.asarray(jacobian).reshape(100, 16, -1), compute_uv=False).mean(0)
        axis.plot(np.arange(1, 17), values, label=f"contraction {weight:g}")
    axis.set_xlabel("direction", fontsize=8.5)
    axis.set_ylabel("singular value of ∂z/∂x", fontsize=8.5)
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=8, frameon=False)
    return figure


@picture
def variational() -> plt.Figure:
    """A code of 2 numbers: what the decoder makes of a grid of it, and digits drawn from a code of 32 numbers."""
    model = trained(presets.variational(2), count=20_000)
    from scipy.stats import norm

    steps = norm.ppf(np.linspace(0.03, 0.97, 14)).astype(np.float32)
    grid = np.stack(np.meshgrid(steps, -steps), axis=-1).reshape(-1, 2)
    sheet = np.asarray(model.decode(grid))[..., 0].reshape(14, 14, 28, 28).transpose(0, 2, 1, 3).reshape(392, 392)
    drawn = np.asarray(trained(presets.variational(32), count=20_000).sample(49, KEY))[..., 0]
    drawn = drawn.reshape(7, 7, 28, 28).transpose(0, 2, 1, 3).reshape(196, 196)
    figure, axes = plt.subplots(1, 2, figsize=(6, 3.2))
    for axis, image, name in zip(
        axes, (sheet, drawn), ("2 numbers: the whole map", "32 numbers: samples"), strict=True
    ):
        axis.imshow(image, cmap="gray", vmin=0, vmax=1)
        axis.set_title(name, fontsize=8.5)
        axis.set_axis_off()
    figure.subplots_adjust(left=0.01, right=0.99, top=0.91, bottom=0.01, wspace=0.04)
    return figure


@picture
def vector_quantized() -> plt.Figure:
    """Digits, their 16 indices into codebooks of 128 vectors, and what is decoded from the indices."""
    model = trained(presets.vector_quantized(), epochs=6, count=20_000)
    x = one_of_each()[:8]
    indices = np.asarray(model(x).latent.codes)
    made = np.asarray(model.reconstruct(x))
    figure, axes = plt.subplots(3, 8, figsize=(7, 2.75))
    for column in range(8):
        axes[0, column].imshow(x[column, ..., 0], cmap="gray", vmin=0, vmax=1)
        axes[1, column].imshow(indices[column].reshape(4, 4), cmap="nipy_spectral", vmin=0, vmax=127)
        for place, index in enumerate(indices[column]):
            text = axes[1, column].text(
                place % 4, place // 4, index, ha="center", va="center", fontsize=5, color="white"
            )
            text.set_path_effects([patheffects.withStroke(linewidth=1, foreground="black")])
        axes[2, column].imshow(made[column, ..., 0], cmap="gray", vmin=0, vmax=1)
    for axis, name in zip(axes[:, 0], ("x", "indices", "x̂"), strict=True):
        axis.text(-0.08, 0.5, name, ha="right", va="center", fontsize=8.5, transform=axis.transAxes)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.subplots_adjust(left=0.08, right=0.995, top=0.99, bottom=0.01, hspace=0.05, wspace=0.05)
    return figure


@picture
def stacked_layers() -> plt.Figure:
    """Validation loss of a stack of four layers: all trained for 24 epochs, or each for 3 and then all for 12."""
    x = digits()[0][:10_000]
    scratch, pretrained = (flaxae.build(presets.stacked(), x.shape[1:]) for _ in range(2))
    whole = flaxae.fit(scratch, x, epochs=24, show=False)["val_loss"]
    stacked.pretrain(pretrained, x, epochs=3, show=False)
    after = flaxae.fit(pretrained, x, epochs=12, show=False)["val_loss"]
    figure, (axis,) = small_axes((5.4, 2.5))
    axis.axvspan(0.5, 12.5, color="0.93")
    axis.text(6.5, max(whole), "each layer by itself, 3 epochs", ha="center", va="top", fontsize=8)
    axis.plot(range(1, 25), whole, marker="o", markersize=3, label="all layers from the start")
    axis.plot(range(13, 25), after, marker="o", markersize=3, label="after pre-training")
    axis.set_xlabel("epoch", fontsize=8.5)
    axis.set_ylabel("validation loss, nats", fontsize=8.5)
    axis.legend(fontsize=8, frameon=False, loc="right")
    return figure


@picture
def masked() -> plt.Figure:
    """Digits of which half the patches are hidden, and what is filled in."""
    model = trained(presets.masked(), epochs=6, count=20_000)
    x = one_of_each()
    seen = np.asarray(model.corrupt(x, KEY))
    visible = np.asarray(model.corrupt(np.ones_like(x), KEY))
    filled = np.where(visible == 1, x, np.asarray(model.reconstruct(seen)))
    return rows({"x": x, "seen": np.where(visible == 1, x, 0.5), "filled in": filled})


def save(figure: plt.Figure, path: pathlib.Path) -> None:
    """A PNG without white margins and of few colours, so that it is small; the time and versions are not in it."""
    figure.savefig(path, dpi=150, facecolor="white", metadata={"Software": None})
    plt.close(figure)
    with Image.open(path) as image:
        trimmed(image.convert("RGB")).quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def trimmed(image: Image.Image, margin: int = 8) -> Image.Image:
    """The image without its white margins, but for a few pixels."""
    box = ImageChops.difference(image, Image.new("RGB", image.size, "white")).getbbox()
    if box is None:
        return image
    left, top, right, bottom = box
    inside = max(0, left - margin), max(0, top - margin), min(image.width, right + margin), bottom + margin
    return image.crop((*inside[:3], min(image.height, inside[3])))


def main(names: list[str]) -> None:
    for name in names or DRAWN:
        began = time.perf_counter()
        path = FOLDER / f"{name}.png"
        save(DRAWN[name](), path)
        size, seconds = path.stat().st_size, time.perf_counter() - began
        print(f"docs/pictures/{path.name}  {size:,} bytes  {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
