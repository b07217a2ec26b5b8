"""Photographs: the U-Net, windows of large images, noise that is not known, and training on pieces."""

import dataclasses
import json
import signal
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import flaxae
from flaxae import autoencoder, command, corruptions, data, denoising, errors, objectives, presets, runs, training
from flaxae.autoencoder import Autoencoder
from flaxae.batches import Batch
from flaxae.data import images
from flaxae.denoising import photographs, tiles
from flaxae.nn.convnet import FullyConvolutional
from flaxae.nn.unet import UNet

KEY = jax.random.key(0)


def unet(channels: int = 1, seed: int = 0, **changes) -> Autoencoder:
    """A tiny one, whose last layer is not zero, as that of an untrained one is."""
    config = dataclasses.replace(presets.unet(), body=UNet((4, 6), blocks=1), **changes)
    model = autoencoder.build(config, (16, 16, channels), seed=seed)
    kernel = model.decoder.last.kernel
    kernel[...] = 0.2 * jax.random.normal(jax.random.key(seed), kernel[...].shape)
    return model


@pytest.mark.parametrize("shape", [(16, 16, 1), (17, 9, 1), (5, 30, 3), (1, 1, 1)])
def test_a_unet_takes_images_of_any_size(shape, rng):
    x = rng.uniform(size=(2, *shape)).astype(np.float32)
    model = unet(shape[-1])
    made, doubled = np.split(training.apply(Autoencoder.reconstruct, model, np.concatenate([x, 2 * x])), 2)
    assert made.shape == x.shape
    assert np.abs(made - x).max() > 1e-3
    np.testing.assert_allclose(doubled, 2 * made, rtol=1e-4, atol=1e-5)  # no bias, no norm
    untrained = autoencoder.build(model.config, (16, 16, shape[-1]))
    np.testing.assert_array_equal(training.apply(Autoencoder.reconstruct, untrained, x), x)


def test_a_unet_says_what_it_is_not_for():
    with pytest.raises(errors.ConfigError, match="UNet takes images"):
        autoencoder.build(presets.unet(), (16,))


@pytest.mark.parametrize("body", ["unet", "grid"])
@pytest.mark.parametrize(("height", "width"), [(152, 104), (64, 200), (20, 300)])
def test_windows_are_as_the_whole_image(body, height, width, rng, monkeypatch):
    monkeypatch.setattr(tiles, "SIDES", (96,))
    image = rng.uniform(size=(height, width, 1)).astype(np.float32)
    grid = dataclasses.replace(presets.grid(), body=FullyConvolutional((4, 4)))
    model = unet() if body == "unet" else autoencoder.build(grid, (16, 16, 1))
    whole = training.apply(Autoencoder.reconstruct, model, image[None])[0]
    made = tiles.reconstruct(model, image)
    assert made.shape == image.shape
    np.testing.assert_allclose(made[:-32, :-32], whole[:-32, :-32], atol=1e-5)  # mirrored below where it is smaller


@given(st.integers(1, 2000), st.sampled_from([32, 64, 96]), st.sampled_from([0, 8, 12]))
def test_windows_cover_an_axis_once(extent, side, margin):
    starts = tiles.starts(extent, side, margin)
    spans = tiles.spans(starts, max(extent, side), side)
    assert [begin for _, begin, _ in spans] == [0, *(end for _, _, end in spans[:-1])]
    assert spans[-1][2] == max(extent, side)
    for i, (start, begin, end) in enumerate(spans):
        assert start <= begin < end <= start + side
        assert begin - start >= margin or i == 0
        assert start + side - end >= margin or i == len(spans) - 1


def test_what_a_pixel_depends_on_is_within_reach():
    for model in (unet(), autoencoder.build(presets.grid(), (16, 16, 1))):
        body = tiles.any_size(model)
        x = np.random.default_rng(0).uniform(size=(1, 256, 256, 1)).astype(np.float32)
        moved = x.copy()
        moved[0, 128, 128] += 1
        made = training.apply(Autoencoder.reconstruct, model, np.concatenate([x, moved]))
        changed = np.argwhere(made[0, ..., 0] != made[1, ..., 0])
        assert np.abs(changed - 128).max() <= body.reach < 128
    assert tiles.any_size(autoencoder.build(presets.vanilla(), (16, 16, 1))) is None


@given(level=st.sampled_from([0.02, 0.1, 0.2]), channels=st.sampled_from([1, 3]))
def test_the_noise_of_an_image_is_told(level, channels):
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:160, :120] / 30.0
    smooth = 0.5 + 0.3 * np.sin(rows) * np.cos(columns)
    smooth[:, 60:] = 1 - smooth[:, 60:]
    image = (smooth[..., None] + level * rng.standard_normal((160, 120, channels))).astype(np.float32)
    assert denoising.noise_level(image) == pytest.approx(level, rel=0.05)
    assert denoising.noise_level(np.full((20, 20, 1), 0.5, np.float32)) == 0
    with pytest.raises(errors.DataError, match="too small"):
        denoising.noise_level(image[:7])


def test_recorrupted_noises_are_independent(rng):
    """What is asked for of noisy x has, given what is seen, the clean example as its mean."""
    clean = np.full((64, 32, 32, 1), 0.5, np.float32)
    noisy = clean + 0.1 * rng.standard_normal(clean.shape).astype(np.float32)
    pairs = []

    def note(model, batch: Batch, key):
        pairs.append(batch)
        return jnp.zeros(len(batch.x))

    objectives.Recorrupted(level=0.1, strength=0.5, objective=note)(unet(corruption=None), noisy, KEY)
    seen, wanted = (np.asarray(part) - clean for part in (pairs[0].x, pairs[0].target))
    assert seen.std() == pytest.approx(0.1 * np.sqrt(1.25), rel=0.01)
    assert wanted.std() == pytest.approx(0.1 * np.sqrt(5), rel=0.01)
    assert abs(np.mean(seen * wanted)) < 2e-4


def test_neighbours_are_two_of_four_pixels(rng):
    x = jnp.asarray(rng.permutation(6 * 8).reshape(1, 6, 8, 1).astype(np.float32))
    choice = jnp.asarray(rng.integers(0, 8, (1, 3, 4, 1)))
    a, b = (np.asarray(objectives.neighbours(x, choice, which)) for which in (0, 1))
    for i in range(3):
        for j in range(4):
            (ay, ax), (by, bx) = (np.argwhere(x[0, ..., 0] == part[0, i, j, 0])[0] for part in (a, b))
            assert (ay // 2, ax // 2) == (by // 2, bx // 2) == (i, j)
            assert abs(ay - by) + abs(ax - bx) == 1


@pytest.mark.parametrize("objective", [objectives.Recorrupted(level=0.2), objectives.Neighbours()])
def test_noisy_images_alone_teach_to_denoise(objective, rng):
    rows, columns = np.mgrid[:16, :16]
    phases = rng.uniform(0, 6, (256, 1, 1, 2))
    clean = 0.5 + 0.2 * (np.sin(rows / 3 + phases[..., 0]) + np.cos(columns / 4 + phases[..., 1]))
    clean = clean[..., None].astype(np.float32)
    noisy = clean + 0.2 * rng.standard_normal(clean.shape).astype(np.float32)
    config = dataclasses.replace(presets.unet(), body=UNet((8, 8), 1), objective=objective, corruption=None)
    assert photographs.of_noisy(0.1).objective.objective is objectives.negative_log_likelihood  # of squared error
    model = autoencoder.build(config, (16, 16, 1))
    training.fit(model, noisy, epochs=15, batch_size=32, learning_rate=5e-3, validation=0.0, show=False)
    error = np.square(training.apply(Autoencoder.reconstruct, model, noisy) - clean).mean()
    assert error < 0.3 * np.square(noisy - clean).mean()
    with pytest.raises(errors.ConfigError, match="noisy already"):
        autoencoder.build(dataclasses.replace(config, corruption=corruptions.GaussianNoise()), (16, 16, 1))


@pytest.fixture
def quick(monkeypatch):
    """A tiny U-Net, trained for few steps."""
    monkeypatch.setattr(photographs, "EPOCH", 2)
    whole = presets.unet
    monkeypatch.setattr(presets, "unet", lambda *given: dataclasses.replace(whole(*given), body=UNet((4, 6), 1)))


@pytest.fixture
def folders(tmp_path, rng, monkeypatch):
    """clean/ and noisy/, colour photographs of several sizes, of the same names."""
    monkeypatch.chdir(tmp_path)
    for i in range(8):
        pixels = rng.integers(0, 256, (9 + i, 12, 3), np.uint8)
        smooth = Image.fromarray(pixels).resize((90 + i, 80), Image.Resampling.BICUBIC)
        noisy = np.asarray(smooth) + 20 * rng.standard_normal((80, 90 + i, 3))
        data.write(tmp_path / "clean" / f"{i}.png", np.asarray(smooth))
        data.write(tmp_path / "noisy" / f"{i}.png", np.clip(np.rint(noisy), 0, 255).astype(np.uint8))
    return tmp_path


@pytest.mark.parametrize(
    ("flags", "said", "measured"),
    [
        ("--data clean --test noisy", "any deviation from 5 to 55 of 255", ["σ 15", "σ 25", "σ 50"]),
        ("--data clean --noise 0.1", "noise of level 0.1 (gaussian)", ["σ 25.5"]),
        ("--data noisy --target clean", "Learns to make the images of clean of those of noisy", [""]),
        ("--data noisy --noisy", "estimated to have the deviation 0.07", []),
    ],
)
def test_the_command_picks_what_suits_the_photographs(flags, said, measured, folders, quick, capsys):
    assert command.main(["denoise", *flags.split(), "--epochs", "2", "--crop", "32"]) == 0
    printed = capsys.readouterr().out
    assert said in printed
    assert f"4 steps of {photographs.BATCH_SIZE} pieces of 32 pixels a side" in printed
    run = folders / "runs" / "denoise" / "1"
    results = json.loads((run / "results.json").read_text())
    names = [f"psnr_db/{name}" if name else "psnr_db" for name in measured]
    assert all(results[f"{prefix}/{name}"] > 10 for name in names for prefix in ("test", "baseline/noisy"))
    assert (run / "report.html").exists()
    assert command.main(["denoise", "--from", str(run), "--input", "noisy", "--output", "out"]) == 0
    assert data.read("out/3.png").shape == data.read("noisy/3.png").shape
    model = flaxae.load(run)
    one = data.read("noisy/3.png")
    np.testing.assert_array_equal(flaxae.denoise(model, one), data.read("out/3.png"))


def test_an_interrupted_run_on_photographs_is_resumed(folders, quick, capsys):
    whole, part = ["denoise", "--data", "clean", "--crop", "32", "--epochs", "3", "--name"], []
    assert command.main([*whole, "whole"]) == 0

    def stop(metrics):
        part.append(metrics)
        if len(part) == 2:
            signal.raise_signal(signal.SIGINT)

    with mock.patch.object(runs.Run, "log_epoch", lambda self, metrics: stop(metrics)):
        assert command.main([*whole, "part"]) != 0
    assert command.main([*whole, "part", "--resume"]) == 0
    states = [nnx.state(flaxae.load(folders / "runs" / "denoise" / name).model) for name in ("whole", "part")]
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_pairs_that_do_not_fit_are_named(folders):
    noisy, clean = images.open("noisy"), images.open("clean")
    pieces = next(photographs.feed(noisy, photographs.paired(noisy, clean), size=32, count=8, seed=0)(5))
    assert np.abs(pieces["x"] - pieces["target"]).mean() < 0.1  # of the same places
    data.write("noisy/other.png", np.zeros((80, 90, 3), np.uint8))
    with pytest.raises(errors.DataError, match=r"1 of 9 images have no target.*other"):
        photographs.paired(images.open("noisy"), clean)
    data.write("clean/3.png", np.zeros((80, 70, 3), np.uint8))
    with pytest.raises(errors.DataError, match=r"3\.png has .*one size"):
        photographs.paired(noisy, images.open("clean"))


@pytest.mark.parametrize("flags", ["--noisy --target x", "--target x --noise 0.1", "--crop 4", "--noise 0"])
def test_flags_that_do_not_go_together(flags, folders, capsys):
    try:
        status = command.main(["denoise", "--data", "clean", *flags.split()])
    except SystemExit as ended:  # as tyro's newer versions do where a flag's value is refused
        status = ended.code
    assert status == 2
    assert flags.split()[0] in capsys.readouterr().err
