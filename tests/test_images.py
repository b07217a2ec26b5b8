"""Images of any size, depth and format are read one by one, and written back as they were."""

import io
import pathlib
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image, ImageCms

from flaxae import data
from flaxae.data import images
from flaxae.errors import DataError


def scene(height: int = 48, width: int = 64, channels: int = 3) -> np.ndarray:
    """A smooth picture of uint8."""
    y, x = np.mgrid[:height, :width]
    waves = [127 + 100 * np.sin(x / (5 + c)) * np.cos(y / 7) for c in range(channels)]
    return np.stack(waves, axis=-1).astype(np.uint8)


def save(path: pathlib.Path, image: np.ndarray, **settings: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(path, **settings)


def rewritten(source: pathlib.Path, folder: pathlib.Path) -> images.Images:
    """What is written of images that nothing happened to."""
    given = images.open(source, colours="own")
    for i, image in given.each():
        given.write(i, image, folder / given.items[i].file)
    given.check()
    return images.open(folder, colours="own")


# Reading


def test_images_of_any_size_are_a_sequence(tmp_path):
    for i, size in enumerate([(48, 32), (32, 48), (20, 20)]):
        save(tmp_path / f"{i}.png", scene(*size))
    found = images.open(tmp_path)
    assert (len(found), found.names, found.channels) == (3, ["0.png", "1.png", "2.png"], 3)
    assert [found.shape_of(i) for i in range(3)] == [(48, 32, 3), (32, 48, 3), (20, 20, 3)]
    assert found[1].dtype == np.float32
    np.testing.assert_allclose(found[1], scene(32, 48) / 255, atol=1e-6)
    assert "3 images, 20–48 × 20–48 pixels, RGB, 8 bits" in found.summary()


def test_twelve_bits_in_sixteen_fill_the_range(tmp_path):
    ramp = np.tile(np.arange(0, 4096, 64, np.uint16), (8, 1))[..., None]
    data.write(tmp_path / "in" / "scan.png", ramp)
    found = images.open(tmp_path / "in")
    np.testing.assert_allclose(found[0], ramp / 4095, atol=1e-6)
    assert "12 bits in 16" in found.summary()
    again = rewritten(tmp_path / "in", tmp_path / "out")
    np.testing.assert_array_equal(again.original(0), ramp)
    assert data.load(np.stack([ramp, ramp])).scaling.scale == (4095.0,)


def test_an_image_beyond_the_range_of_the_others_has_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("flaxae.data.images.collection.SAMPLE", 1)
    save(tmp_path / "0.png", np.full((8, 8, 1), 4000, np.uint16))
    save(tmp_path / "1.png", np.full((8, 8, 1), 40_000, np.uint16))
    found = images.open(tmp_path)
    assert found[0].max() == pytest.approx(4000 / 4095)
    assert found[1].max() == pytest.approx(40_000 / 65_535)
    np.testing.assert_array_equal(found.undo(1, found[1]), 40_000)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jp2", ".ppm"])
def test_sixteen_bits_of_colour_stay(tmp_path, rng, suffix):
    image = rng.integers(0, 65_536, (16, 12, 3), np.uint16)
    if suffix == ".ppm":
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "x.ppm").write_bytes(b"P6\n# a comment\n12 16\n65535\n" + image.astype(">u2").tobytes())
        np.testing.assert_array_equal(images.open(tmp_path / "in").original(0), image)
        return
    data.write(tmp_path / "in" / f"x{suffix}", image)
    np.testing.assert_array_equal(rewritten(tmp_path / "in", tmp_path / "out").original(0), image)


def test_most_frequent_mode(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.png", scene())
    save(tmp_path / "grey.png", scene()[..., :1])
    save(tmp_path / "transparent.png", np.dstack([scene(), np.full((48, 64), 128, np.uint8)]))
    found = images.open(tmp_path)
    assert {image.shape[-1] for _, image in found.each()} == {3}
    assert "1 grey made RGB" in found.summary()
    assert "alpha of 1 set aside" in found.summary()
    given = data.load(tmp_path)
    assert given.train.shape[-1] if not given.differ_in_size else given.train.channels == 3
    grey = images.open(tmp_path, colours=1)
    assert grey[0].shape == (48, 64, 1)
    expected = np.asarray(Image.fromarray(scene()).convert("L"), float) / 255
    np.testing.assert_allclose(grey[0][..., 0], expected, atol=1.5 / 255)


def test_alpha_stays_only_where_it_says_something(tmp_path):
    alpha = np.full((48, 64), 255, np.uint8)
    save(tmp_path / "opaque" / "0.png", np.dstack([scene(), alpha]))
    assert images.open(tmp_path / "opaque").channels == 3
    alpha[:10] = 0
    save(tmp_path / "shaped" / "0.png", np.dstack([scene(), alpha]))
    shaped = images.open(tmp_path / "shaped")
    assert shaped.channels == 4
    np.testing.assert_array_equal(shaped[0][..., 3] * 255, alpha)


def test_every_page_is_an_image(tmp_path, rng):
    pages = [scene(16, 20 + i) for i in range(3)]
    (tmp_path / "in").mkdir()
    for name in ("x.tif", "y.gif", "z.webp"):
        same = pages if name == "x.tif" else [np.roll(scene(16, 20), 3 * i, axis=1) for i in range(3)]
        first, *others = map(Image.fromarray, same)
        first.save(tmp_path / "in" / name, save_all=True, append_images=others, duration=70)
    found = images.open(tmp_path / "in")
    assert found.names[:3] == ["x.tif#0", "x.tif#1", "x.tif#2"]
    assert len(found) == 9
    np.testing.assert_array_equal(found.original(1), pages[1])
    again = rewritten(tmp_path / "in", tmp_path / "out")
    assert again.names == found.names
    for i in (0, 1, 2, 6, 7):
        np.testing.assert_allclose(again[i], found[i], atol=0.01)
    with Image.open(tmp_path / "out" / "y.gif") as animation:
        assert animation.info["duration"] == 70
    assert list(data.read(tmp_path / "in" / "x.tif")) == ["x.tif#0", "x.tif#1", "x.tif#2"]


def test_bands_and_real_numbers(tmp_path, rng):
    bands = rng.normal(size=(8, 9, 6)).astype(np.float32)
    data.write(tmp_path / "in" / "x.tif", bands)
    found = images.open(tmp_path / "in")
    assert found.shape_of(0) == (8, 9, 6)
    assert (found[0].min(), found[0].max()) == (0, 1)
    np.testing.assert_allclose(rewritten(tmp_path / "in", tmp_path / "out").original(0), bands, atol=1e-5)


def test_what_is_no_image_is_named(tmp_path):
    save(tmp_path / "a.png", scene())
    for name in ("notes.txt", "b.xcf", ".hidden.png"):
        (tmp_path / name).write_text("none")
    summary = images.open(tmp_path).summary()
    assert "left out, no images: 2 files (b.xcf, notes.txt)" in summary


def test_a_bad_file_is_named_and_the_rest_is_done(tmp_path):
    for i in range(4):
        save(tmp_path / "in" / f"{i}.png", np.random.default_rng(i).integers(0, 255, (32, 32, 3), np.uint8))
    whole = (tmp_path / "in" / "2.png").read_bytes()
    (tmp_path / "in" / "2.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in" / "3.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"(?s)2 of .*could not be used; all else is done.*3\.png.*2\.png"):
        rewritten(tmp_path / "in", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.png", "1.png"]
    loaded = data.load(tmp_path / "in")
    assert len(loaded.train) + len(loaded.test) == 2
    assert len(loaded.images.unreadable) == 2
    assert next(images.crops(images.open(tmp_path / "in"), 8, 20, 0)).shape == (20, 8, 8, 3)


def test_a_bomb_is_refused_until_it_is_allowed(tmp_path):
    save(tmp_path / "large.png", np.zeros((300, 200, 1), np.uint8))
    with pytest.raises(DataError, match=r"large\.png is too large: 200 × 300 pixels.*--max-pixels 60000"):
        images.open(tmp_path, max_pixels=50_000)
    assert images.open(tmp_path, max_pixels=60_000).shape_of(0) == (300, 200, 1)
    limit = Image.MAX_IMAGE_PIXELS
    assert limit is not None


def test_archives(tmp_path):
    inside = io.BytesIO()
    Image.fromarray(scene()).save(inside, "PNG")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("photos/cat/1.png", "photos/dog/1.png", "__MACOSX/photos/._1.png", "photos/readme.txt"):
            archive.writestr(name, inside.getvalue())
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        for name in ("cat/1.png", "dog/1.png", "../../outside.txt"):
            member = tarfile.TarInfo(name)
            member.size = len(inside.getvalue())
            archive.addfile(member, io.BytesIO(inside.getvalue()))
    for name in ("x.zip", "x.tar.gz"):
        np.testing.assert_array_equal(images.open(tmp_path / name).original(0), scene())
        loaded = data.load(tmp_path / name)
        assert loaded.classes == ("cat", "dog")
        assert list(data.read(tmp_path / name).values())[1].shape == (48, 64, 3)
    assert not (tmp_path.parent / "outside.txt").exists()
    (tmp_path / "bad.zip").write_bytes(b"PK nothing")
    with pytest.raises(DataError, match=r"bad\.zip can't be read"):
        images.open(tmp_path / "bad.zip")


@pytest.mark.parametrize(
    ("train", "test"), [("train", "val"), ("Train", "Test"), ("TRAIN", "valid"), ("training", "test")]
)
def test_parts_in_any_case(tmp_path, train, test):
    for part, count in ((train, 3), (test, 2)):
        for i in range(count):
            save(tmp_path / "set" / part / "a" / f"{i}.png", scene(16, 16))
    loaded = data.load(tmp_path / "set")
    assert (len(loaded.train), len(loaded.test)) == (3, 2)
    assert loaded.test_rows is None


def test_deep_folders(tmp_path, capsys):
    for i in range(5):
        save(tmp_path / "2024" / "site A" / "camera 1" / f"{i}.png", scene(16, 16))
    assert data.load(tmp_path).train_labels is None
    assert "in 2024/site A/camera 1" in capsys.readouterr().out
    save(tmp_path / "2024" / "site B" / "5.png", scene(16, 16))
    assert len(data.load(tmp_path).train) == 5
    assert "several depths" in capsys.readouterr().out


def test_pairs_are_not_classes(tmp_path):
    for kind in ("noisy", "clean"):
        for i in range(3):
            save(tmp_path / kind / f"{i}.png", scene(16, 16))
    with pytest.raises(DataError, match=r"pairs.*--data .*noisy --target .*clean"):
        data.load(tmp_path)
    assert len(data.load(tmp_path / "clean").train) == 2


def test_masks_of_defects_are_left_out(tmp_path, capsys):
    for name in ("train/good/0", "train/good/1", "test/good/0", "test/hole/0", "ground_truth/hole/0_mask"):
        save(tmp_path / f"{name}.png", scene(16, 16))
    loaded = data.load(tmp_path)
    assert (len(loaded.train), len(loaded.test), loaded.classes) == (2, 2, ("good", "hole"))
    assert list(loaded.test_files) == ["test/good/0.png", "test/hole/0.png"]
    assert "1 images in ground_truth left out" in capsys.readouterr().out


def test_size(tmp_path):
    save(tmp_path / "a.png", scene(48, 64))
    save(tmp_path / "b.png", scene(30, 20))
    loaded = data.load(tmp_path, size=16)
    assert loaded.train.shape == (1, 16, 16, 3)
    assert loaded.test.shape == (1, 16, 16, 3)
    flat = images.open(tmp_path, size=(10, 12))
    assert [flat[i].shape for i in range(2)] == [(10, 12, 3)] * 2
    np.testing.assert_allclose(flat[0].mean(), scene(48, 64).mean() / 255, atol=0.05)


def test_large_or_different_images_are_cut_up_later(tmp_path):
    for i in range(5):
        save(tmp_path / f"{i}.png", scene(100, 80 + i))
    loaded = data.load(tmp_path)
    assert loaded.differ_in_size
    assert (len(loaded.train), len(loaded.test), loaded.kind) == (4, 1, "image")
    assert loaded.scaling(loaded.train) is loaded.train
    assert loaded.scaling.scale == (255.0,)
    with pytest.raises(DataError, match="--size 64"):
        _ = loaded.shape


# In memory


def test_images_from_python(rng):
    torch_like = rng.integers(0, 256, (4, 3, 16, 20), np.uint8)
    pil = [Image.fromarray(scene(16, 20 + i)) for i in range(3)]
    assert [image.shape for _, image in images.open(pil).each()] == [(16, 20, 3), (16, 21, 3), (16, 22, 3)]
    np.testing.assert_array_equal(images.open(torch_like).original(2), torch_like[2].transpose(1, 2, 0))
    assert data.load(pil).kind == "image"
    import jax.numpy as jnp

    assert data.load(jnp.asarray(torch_like)).shape == (16, 20, 3)
    with pytest.raises(DataError, match="expected a path, a list of PIL images"):
        images.open(7)


def test_hugging_face_data_sets():
    class Image_:  # as `datasets.Image` is called
        pass

    Image_.__name__ = "Image"
    content = io.BytesIO()
    Image.fromarray(scene()).save(content, "PNG")

    class HuggingFace:
        column_names = ("image", "label")
        features = {"image": Image_(), "label": None}  # noqa: RUF012

        def __len__(self):
            return 3

        def __getitem__(self, i):
            return {"image": {"bytes": content.getvalue(), "path": None}, "label": i}

    found = images.open(HuggingFace())
    assert len(found) == 3
    np.testing.assert_array_equal(found.original(1), scene())


@pytest.mark.parametrize("name", ["06_chw", "07_one_image"])
def test_arrays_with_channels_elsewhere(tmp_path, rng, capsys, name):
    if name == "06_chw":
        x = rng.integers(0, 256, (12, 3, 16, 16), np.uint8)
        np.save(tmp_path / "x.npy", x)
        assert data.load(tmp_path / "x.npy").shape == (16, 16, 3)
        np.testing.assert_array_equal(data.read(tmp_path / "x.npy"), x.transpose(0, 2, 3, 1))
        assert "channels first" in capsys.readouterr().out
    else:
        np.save(tmp_path / "x.npy", scene(64, 64))
        with pytest.raises(DataError, match="looks like one image of 3 channels"):
            data.load(tmp_path / "x.npy")


# Writing back


def test_profile_exif_and_resolution_come_back(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Camera", 6  # turned by a quarter
    for suffix in (".jpg", ".png", ".webp", ".tif"):
        save(tmp_path / "in" / f"x{suffix}", scene(), icc_profile=profile, exif=exif, dpi=(600, 600))
    deep = tmp_path / "in" / "deep.png"
    data.write(deep, scene().astype(np.uint16) * 257)
    found = images.open(tmp_path / "in", colours="own")
    assert found.shape_of(1) == (64, 48, 3)  # upright
    rewritten(tmp_path / "in", tmp_path / "out")
    for suffix in (".jpg", ".png", ".webp", ".tif"):
        with Image.open(tmp_path / "out" / f"x{suffix}") as written:
            assert written.size == (48, 64)
            assert written.info["icc_profile"] == profile
            assert written.getexif().get(0x0112, 1) == 1
            assert suffix == ".tif" or written.getexif()[0x010F] == "Camera"
            assert suffix == ".webp" or round(written.info["dpi"][0]) == 600


def test_chunks_of_a_deep_png_come_back(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = np.arange(16 * 12 * 3, dtype=np.uint16).reshape(16, 12, 3) * 97
    save(tmp_path / "eight.png", scene(), icc_profile=profile, dpi=(300, 300))
    with (tmp_path / "eight.png").open("rb") as file, (tmp_path / "in.png").open("wb") as deep:
        images.codec.encode([image], deep, "in.png", ".png", like=images.codec.Content(file, "eight.png"))
    found = images.open(tmp_path / "in.png")
    found.write(0, found[0], tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as written:
        assert written.info["icc_profile"] == profile
        assert round(written.info["dpi"][0]) == 300
    np.testing.assert_array_equal(images.open(tmp_path / "out.png").original(0), image)


def test_alpha_and_grey_come_back(tmp_path):
    shaped = np.dstack([scene(), np.tile(np.arange(64, dtype=np.uint8), (48, 1))])
    save(tmp_path / "shaped.png", shaped)
    save(tmp_path / "grey.png", scene()[..., :1])
    found = images.open(tmp_path, colours=3, alpha=False)
    for i, image in found.each():
        assert image.shape == (48, 64, 3)
        np.testing.assert_array_equal(found.undo(i, image), found.original(i))


def test_dicom_keeps_the_patient_and_the_bits(tmp_path):
    import pydicom

    values = np.arange(8 * 9, dtype=np.uint16).reshape(8, 9, 1) * 50
    data.write(tmp_path / "x.dcm", values)
    about = pydicom.dcmread(tmp_path / "x.dcm")
    about.PatientName, about.BitsStored, about.HighBit = "Doe", 12, 11
    about.save_as(tmp_path / "IM0001")
    (tmp_path / "x.dcm").unlink()
    found = images.open(tmp_path)
    np.testing.assert_allclose(found[0], values / 4095, atol=1e-6)
    found.write(0, found[0] / 2, tmp_path / "out" / "x.dcm")
    written = pydicom.dcmread(tmp_path / "out" / "x.dcm")
    assert written.PatientName == "Doe"
    np.testing.assert_array_equal(written.pixel_array, np.rint(values[..., 0] / 2))


# Crops and memory


def test_crops_are_pieces_and_the_same_for_a_step(tmp_path):
    coordinates = np.stack([*np.mgrid[:40, :50], np.zeros((40, 50))], axis=-1).astype(np.uint8)
    save(tmp_path / "0.png", coordinates)
    save(tmp_path / "1.png", coordinates[:6, :30])  # smaller than a piece
    found = images.open(tmp_path)
    batches = images.crops(found, size=9, count=5, seed=3)
    first, second, third = (next(batches) for _ in range(3))
    assert first.shape == (5, 9, 9, 3)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(next(images.crops(found, size=9, count=5, seed=3, start=2)), third)
    for piece in next(images.crops(found.select([0]), size=9, count=20, seed=0, flips=False)):
        y, x = np.rint(piece[0, 0, :2] * 255).astype(int)
        np.testing.assert_allclose(piece * 255, coordinates[y : y + 9, x : x + 9], atol=1e-3)
    turned = next(images.crops(found.select([0]), size=9, count=64, seed=0))
    steps = {tuple(np.rint(255 * (piece[0, 1, :2] - piece[0, 0, :2])).astype(int)) for piece in turned}
    assert steps == {(0, 1), (0, -1), (1, 0), (-1, 0)}


def test_memory_does_not_grow_with_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("flaxae.data.images.collection.CACHE_BYTES", 2**20)
    for i in range(40):
        save(tmp_path / f"{i}.png", np.random.default_rng(i).integers(0, 255, (300, 300, 3), np.uint8))
    found = images.open(tmp_path)
    tracemalloc.start()
    for _ in zip(range(60), images.crops(found, 16, 4, 0), strict=False):
        pass
    for _ in found.each():
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * 2**20  # of 10.8 MB of pixels, which are 43 MB as float32


def test_opening_decodes_nothing(tmp_path, monkeypatch):
    for suffix in (".png", ".jpg", ".gif", ".tif", ".webp"):
        save(tmp_path / f"x{suffix}", scene())
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    found = images.open(tmp_path)
    assert [found.shape_of(i) for i in range(5)] == [(48, 64, 3)] * 5
