"""Sources give the right arrays, scaling is undone, what is written is read, bad input is refused with one message."""

import errno
import gzip
import json
import pathlib
import pickle
import struct
import time
import types
import zipfile

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.preprocessing import StandardScaler

from flaxae import data
from flaxae.data import Scaling, files, mnist, tfds
from flaxae.errors import ConfigError, DataError

PARTS = ("train", "test", "train_labels", "test_labels")


def write_idx(path: pathlib.Path, array: np.ndarray) -> None:
    """`array` of uint8 as an IDX file, gzipped if the path ends in .gz."""
    content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def npy_header(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    """The header of a .npy file, version 1.0, that claims `shape`."""
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n"


@pytest.fixture
def images(rng) -> np.ndarray:
    return rng.integers(0, 256, (10, 5, 4, 3), np.uint8)


# Sources


def test_mnist_is_the_real_one():
    started = time.perf_counter()
    dataset = data.load("mnist")
    assert time.perf_counter() - started < 5  # 1 s on two idle cores
    assert (dataset.name, dataset.kind, dataset.shape) == ("mnist", "image", (28, 28, 1))
    assert (dataset.train.shape, dataset.test.shape) == ((60_000, 28, 28, 1), (10_000, 28, 28, 1))
    assert dataset.train.dtype == dataset.test.dtype == np.uint8
    # The pixel mean and deviation that the whole field normalises MNIST by, and the known class counts.
    np.testing.assert_allclose(dataset.train.mean() / 255, 0.1307, atol=5e-5)
    np.testing.assert_allclose(dataset.train.std() / 255, 0.3081, atol=5e-5)
    expected = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    np.testing.assert_array_equal(np.bincount(dataset.train_labels), expected)
    np.testing.assert_array_equal(dataset.test_labels[:10], [7, 2, 1, 0, 4, 1, 4, 9, 5, 9])
    assert dataset.classes == tuple("0123456789")


def test_damaged_mnist_is_noticed(tmp_path, monkeypatch):
    flipped = bytearray(mnist._BUNDLE.read_bytes())
    flipped[5_000_000] ^= 1
    (tmp_path / "mnist.xz").write_bytes(flipped)
    monkeypatch.setattr(mnist, "_BUNDLE", tmp_path / "mnist.xz")
    with pytest.raises(DataError, match="Install flaxae again"):
        data.load("mnist")


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_folder(tmp_path, rng, ending):
    arrays = {
        "train-images-idx3-ubyte": rng.integers(0, 256, (6, 3, 2), np.uint8),
        "train-labels-idx1-ubyte": np.array([3, 1, 1, 3, 1, 3], np.uint8),
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (2, 3, 2), np.uint8),
        "t10k-labels-idx1-ubyte": np.array([3, 3], np.uint8),
    }
    for name, array in arrays.items():
        write_idx(tmp_path / (name + ending), array)
    dataset = data.load(tmp_path)
    np.testing.assert_array_equal(dataset.train[..., 0], arrays["train-images-idx3-ubyte"])
    np.testing.assert_array_equal(dataset.test[..., 0], arrays["t10k-images-idx3-ubyte"])
    assert dataset.classes == ("1", "3")
    np.testing.assert_array_equal(dataset.train_labels, [1, 0, 0, 1, 0, 1])
    np.testing.assert_array_equal(dataset.test_labels, [1, 1])


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize(
    "content",
    [
        struct.pack(">HBB3I", 0, 8, 3, 60_000, 1 << 20, 1 << 20),  # 60 TB
        struct.pack(">HBB3I", 0, 8, 3, 10, 2, 2) + bytes(39),  # one byte short
        struct.pack(">HBB3I", 0, 8, 3, 10, 2, 2) + bytes(41),  # one too many
        struct.pack(">HBB", 0, 8, 3),
        struct.pack(">HBBI", 0, 0x42, 1, 1) + b"x",
        b"",
    ],
)
def test_damaged_idx(tmp_path, content, ending):
    path = tmp_path / f"train-images-idx3-ubyte{ending}"
    path.write_bytes(gzip.compress(content) if ending else content)
    with pytest.raises(DataError, match="train-images"):
        data.load(tmp_path)


def test_idx_cut_inside_gzip(tmp_path, rng):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    write_idx(path, rng.integers(0, 256, (9, 9, 9), np.uint8))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz can't be read"):
        data.load(tmp_path)


def test_held_out_part_is_a_seeded_fifth():
    x = np.arange(50, dtype=np.float32)[:, None] * [1, 2]
    labels = np.array(["even", "odd"] * 25)
    first, again, other = (data.load((x, labels), seed=seed) for seed in (0, 0, 1))
    assert len(first.test) == 10
    np.testing.assert_array_equal(np.sort(np.concatenate([first.train, first.test]), axis=0), x)
    np.testing.assert_array_equal(first.test, again.test)
    assert not np.array_equal(first.test, other.test)
    assert first.classes == ("even", "odd")
    for examples, codes in ((first.train, first.train_labels), (first.test, first.test_labels)):
        np.testing.assert_array_equal(examples[:, 0] % 2, codes)


def test_arrays_in_memory(images):
    labels = np.arange(10) % 3
    keras = data.load(((images, labels[:, None]), (images[:4], labels[:4, None])))
    np.testing.assert_array_equal(keras.test, images[:4])
    np.testing.assert_array_equal(keras.train_labels, labels)
    assert keras.classes == ("0", "1", "2")
    pair = data.load((images, images[:3]))
    np.testing.assert_array_equal(pair.test, images[:3])
    assert pair.train_labels is pair.classes is None
    assert data.load(images[..., 0]).shape == (5, 4, 1)
    assert data.load(images.reshape(10, -1)).kind == "tabular"


def test_npz_keys(tmp_path, images):
    labels = np.arange(10) % 2
    spellings = [
        {"x": images, "y": labels},
        {"anything": images},
        {"train": images, "test": images[:2]},
        {"x_train": images, "y_train": labels, "x_test": images[:2], "y_test": labels[:2]},
    ]
    for arrays in spellings:
        np.savez(tmp_path / "set.npz", **arrays)
        dataset = data.load(tmp_path / "set.npz")
        assert dataset.name == "set"
        assert len(dataset.test) == 2
        assert (dataset.train_labels is None) == (len(arrays) != 4 and "y" not in arrays)
        np.testing.assert_array_equal(data.read(tmp_path / "set.npz"), images)
    np.savez(tmp_path / "set.npz", foo=images, bar=images)
    with pytest.raises(DataError, match="'foo', 'bar'; expected 'x'"):
        data.load(tmp_path / "set.npz")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_table_with_label_column(tmp_path, rng, suffix):
    frame = pd.DataFrame(rng.normal(size=(20, 2)), columns=["height", "weight"])
    frame.insert(1, "species", ["cat", "dog"] * 10)
    path = tmp_path / f"animals{suffix}"
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path)
    dataset = data.load(path, label="species")
    assert (dataset.kind, dataset.columns, dataset.classes) == ("tabular", ("height", "weight"), ("cat", "dog"))
    examples = np.concatenate([dataset.train, dataset.test])
    codes = np.concatenate([dataset.train_labels, dataset.test_labels])
    for code, name in enumerate(dataset.classes):
        expected = frame.loc[frame.species == name, ["height", "weight"]].to_numpy(np.float32)
        np.testing.assert_array_equal(np.sort(examples[codes == code], axis=0), np.sort(expected, axis=0))
    swapped = data.read(path, columns=["weight", "height"])
    np.testing.assert_array_equal(swapped, frame[["weight", "height"]].to_numpy(np.float32))
    with pytest.raises(DataError, match=r"'species' is not numeric \(such as 'cat', in row 0"):
        data.read(path)
    with pytest.raises(DataError, match=r"Unknown column 'weigth'\. Did you mean 'weight'"):
        data.read(path, columns=["weigth"])


def test_csv_without_header(tmp_path):
    path = tmp_path / "numbers.csv"
    path.write_text("1.5,2\n3,4\n\n5,6\n")
    assert data.load(path).columns == ("x0", "x1")
    np.testing.assert_array_equal(data.read(path), [[1.5, 2], [3, 4], [5, 6]])
    pd.DataFrame([[7, 8], [9, 10]]).to_csv(path, index=False)  # its header is 0,1
    np.testing.assert_array_equal(data.read(path), [[7, 8], [9, 10]])


def test_image_folders(tmp_path, images):
    for i, image in enumerate(images):
        data.write(tmp_path / "flat" / f"{i}.png", image)
        data.write(tmp_path / "classes" / ("ab"[i % 2]) / f"{i}.png", image)
        data.write(tmp_path / "parts" / ("train" if i < 7 else "test") / ("ab"[i % 2]) / f"{i}.png", image)
    (tmp_path / "flat" / "notes.txt").write_text("not an image")
    flat = data.load(tmp_path / "flat")
    assert flat.train.dtype == np.uint8
    assert flat.train_labels is None
    assert {image.tobytes() for image in (*flat.train, *flat.test)} == {image.tobytes() for image in images}
    classes = data.load(tmp_path / "classes")
    assert classes.classes == ("a", "b")
    assert len(classes.train_labels) == 8
    parts = data.load(tmp_path / "parts")
    np.testing.assert_array_equal(parts.train, images[[0, 2, 4, 6, 1, 3, 5]])
    np.testing.assert_array_equal(parts.train_labels, [0, 0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(parts.test, images[[8, 7, 9]])


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("L", 1), ("LA", 2), ("P", 3), ("RGB", 3), ("RGBA", 4)])
def test_image_modes(tmp_path, mode, channels):
    original = Image.linear_gradient("L").resize((6, 5)).convert(mode)
    original.save(tmp_path / "image.png")
    image = data.read(tmp_path / "image.png")
    assert image.shape == (5, 6, channels)
    assert image.dtype == np.uint8
    expected = original.convert({1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels])
    np.testing.assert_array_equal(image, np.asarray(expected).reshape(image.shape))


# Scaling


def test_tables_are_standardised_like_scikit_learn(rng):
    x = (rng.normal(size=(100, 4)) * [1, 5, 0.1, 0] + [0, 100, -3, 7]).astype(np.float32)
    scaling = Scaling.fit(x)
    np.testing.assert_allclose(scaling(x), StandardScaler().fit_transform(x.astype(np.float64)), atol=2e-5)
    assert scaling(x).dtype == np.float32
    np.testing.assert_array_equal(scaling(x)[:, 3], 0)
    with pytest.raises(DataError, match="expected 4 columns"):
        scaling(x[:, :1])


def test_scaling_is_fitted_on_the_training_part_alone(rng):
    train, test = rng.normal(size=(50, 3)), rng.normal(size=(50, 3)) + 100
    assert data.load((train, test)).scaling == Scaling.fit(train.astype(np.float32))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_integer_pixel_comes_back(dtype):
    top = np.iinfo(dtype).max
    x = np.arange(top + 1, dtype=dtype).reshape(1, -1, 16, 1)
    scaling = data.load((x, x)).scaling
    scaled = scaling(x)
    assert (scaled.min(), scaled.max(), scaled.dtype) == (0, 1, np.float32)
    np.testing.assert_array_equal(scaling.undo(scaled), x)
    outside = scaling.undo(np.float32([-0.5, 1.5, 0.4 / top, 0.6 / top]))
    np.testing.assert_array_equal(outside, np.array([0, top, 0, 1], dtype))


@given(hnp.arrays(np.float32, (4, 3, 2, 1), elements=st.floats(-1e6, 1e6, width=32)))
def test_float_images(x):
    scaling = Scaling.fit(x)
    scaled = scaling(x)
    assert scaled.min() >= -1e-6
    assert scaled.max() <= 1 + 1e-6
    if x.min() >= 0 and x.max() <= 1:
        np.testing.assert_array_equal(scaled, x)
    np.testing.assert_allclose(scaling.undo(scaled), x, atol=2e-6 * max(1, np.abs(x).max()))


@given(hnp.arrays(np.float32, (5, 3), elements=st.floats(-1e6, 1e6, width=32)))
def test_tables_come_back(x):
    scaling = Scaling.fit(x)
    assert Scaling.from_dict(json.loads(json.dumps(scaling.to_dict()))) == scaling
    np.testing.assert_allclose(scaling.undo(scaling(x)), x, atol=2e-6 * max(1, np.abs(x).max()))


def test_scaling_inside_jit_is_scaling_outside(images, rng):
    for x in (images, rng.normal(size=(9, 3)).astype(np.float32)):
        scaling = Scaling.fit(x)
        np.testing.assert_allclose(jax.jit(scaling.__call__)(jnp.asarray(x)), scaling(x), rtol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"scale": [0.0]},
        {"scale": [-1.0]},
        {"scale": []},
        {"scale": [1.0, 2.0]},
        {"offset": [float("nan")]},
        {"offset": ["1"]},
        {"offset": [True]},
        {"offset": 3.0},
        {"offset": [10**400]},
        {"dtype": "object"},
        {"dtype": ["uint8"]},
        {"more": 1},
    ],
)
def test_scaling_from_a_damaged_config(change):
    with pytest.raises(ConfigError, match="A scaling"):
        Scaling.from_dict({"offset": [0.0], "scale": [255.0], "dtype": "uint8"} | change)


# Reading and writing


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.csv", "x.parquet"])
def test_table_round_trip(tmp_path, rng, name):
    table = rng.normal(size=(7, 3)).astype(np.float32)
    data.write(tmp_path / "new" / name, table)
    np.testing.assert_array_equal(data.read(tmp_path / "new" / name), table)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]


def test_table_keeps_its_columns(tmp_path):
    data.write(tmp_path / "x.csv", np.float32([[1, 2], [3, 4]]), columns=("a", "b"))
    assert data.load(tmp_path / "x.csv").columns == ("a", "b")
    with pytest.raises(DataError, match="shape \\(2, 2\\) with 3 named columns"):
        data.write(tmp_path / "x.csv", np.ones((2, 2)), columns=("a", "b", "c"))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".webp", ".ppm"])
def test_image_round_trip(tmp_path, images, suffix):
    data.write(tmp_path / f"x{suffix}", images[0])
    np.testing.assert_array_equal(data.read(tmp_path / f"x{suffix}"), images[0])


def test_grey_16_bit_round_trip(tmp_path):
    image = np.arange(0, 60_000, 1_000, np.uint16).reshape(6, 10, 1)
    for suffix in (".png", ".tif"):
        data.write(tmp_path / f"x{suffix}", image)
        np.testing.assert_array_equal(data.read(tmp_path / f"x{suffix}"), image)


def test_folder_of_images_in_folder_of_images_out(tmp_path, images):
    folder = {"a.png": images[0], "deep/b.png": images[1, :2], "c.bmp": images[2, :, :3]}
    data.write(tmp_path / "in", folder)
    assert data.read(tmp_path / "in").keys() == folder.keys()
    data.write(tmp_path / "out", data.read(tmp_path / "in"))
    for name, image in data.read(tmp_path / "out").items():
        np.testing.assert_array_equal(image, folder[name])
    with pytest.raises(DataError, match="leaves the folder"):
        data.write(tmp_path / "out", {"../escaped.png": images[0]})


def test_read_gives_what_load_gives(tmp_path, images):
    np.save(tmp_path / "grey.npy", images[..., 0])
    assert data.read(tmp_path / "grey.npy").shape == (10, *data.load(tmp_path / "grey.npy").shape)


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.npy"
    data.write(path, np.zeros((2, 2)))

    def full_disk(file, *args, **kwargs):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.np, "save", full_disk)
    with pytest.raises(DataError, match=r"x\.npy can't be written: No space left on device"):
        data.write(path, np.ones((2, 2)))
    np.testing.assert_array_equal(np.load(path), np.zeros((2, 2)))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("x.xyz", np.ones((2, 2)), "the known formats are"),
        ("x", np.ones((2, 2)), "the known formats are"),
        ("x.png", np.ones((3, 3, 1), np.float32), "can't hold pixels"),
        ("x.jpg", np.ones((3, 3, 4), np.uint8), "can't hold pixels"),
        ("x.png", np.ones((3, 3, 7), np.uint8), "can't hold pixels"),
        ("x.csv", np.ones((3, 3, 3), np.float32), "a table is"),
        ("file/x.npy", np.ones((2, 2)), "can't be written"),
        ("folder.npy", np.ones((2, 2)), "can't be written"),
    ],
)
def test_what_cannot_be_written(tmp_path, name, array, message):
    (tmp_path / "file").touch()
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(DataError, match=message):
        data.write(tmp_path / name, array)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.npy"]


# Bad input


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3,4,5\n6,7\n", "line 3: 3 fields; the first line has 2"),
        ("a,b\n1,2,3\n4,5,6\n", "line 2: 3 fields; the first line has 2"),
        ("a,b\n1,2\n3\n", "line 3: 1 fields; the first line has 2"),
        ("a,b\n1,2\n3,inf\n", "not finite"),
        ("a,b\n1,2\n3,1e300\n", "not finite in float32"),
        ("a,b\n1,2\n", "has 1 example; expected 2"),
        ("a,b\n", "is empty"),
        ("", "is empty"),
        ("when\n2020-01-31\n2020-02-01\n", "holds nothing to learn from: 'when'|holds nothing to learn from: when"),
        ("a;b\n1;2\n3;4;5\n6;7\n", "line 3: 3 fields; .* separated by semicolons"),
    ],
)
def test_bad_csv(tmp_path, text, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        data.load(path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.array([[1.0, np.nan], [3.0, 4.0]]), r"1 values .* the first, nan, at index \(0, 1\)"),
        (np.array([[[1.0], [2.0]], [[3.0], [np.inf]]]), "the first, inf"),
        (np.zeros((0, 4)), "is empty"),
        (np.zeros((4, 0)), "is empty"),
        (np.zeros(4), "expected .n, columns."),
        (np.zeros((2, 2, 2, 2, 2)), "expected .n, columns."),
        (np.zeros((1, 4)), "has 1 example; expected 2"),
        (np.array([["a", "b"], ["c", "d"]]), "expected integers or real numbers"),
        (np.array([[{}, None]], object), "expected integers or real numbers"),
        (np.zeros((2, 2), complex), "expected integers or real numbers"),
        ((np.zeros((4, 2)), np.zeros(3)), "expected one class for each of 4 examples"),
        ((np.zeros((4, 2)), np.array([0.1, 0.2, 0.3, 0.4])), "labels are real numbers"),
        ((np.zeros((4, 2)), np.zeros((4, 3))), "they have to be the same"),
        ((np.zeros((4, 2)),), "neither"),
    ],
)
def test_bad_arrays(source, message):
    with pytest.raises(DataError, match=message):
        data.load(source)


@pytest.mark.parametrize("wrap", ["npy", "npz"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy_header((10**7, 10**6)), "claims 40,000,000,000,000 bytes"),
        (npy_header((10, 10)) + bytes(399), "claims 400 bytes of data but holds 399 at most"),
        (npy_header((1,), "|O") + pickle.dumps([print]), "pickled Python objects"),
        (npy_header((-5,)) + bytes(20), "can't be read"),
        (npy_header((-5, -1)) + bytes(20), "can't be read"),
        (b"\x93NUMPY\x09\x00", "version"),
        (b"not an array", "can't be read"),
        (b"", "can't be read"),
    ],
)
def test_bad_npy(tmp_path, content, message, wrap):
    path = tmp_path / f"bad.{wrap}"
    if wrap == "npy":
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", content)
    started = time.perf_counter()
    with pytest.raises(DataError, match=message):
        data.load(path)
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".parquet", ".png", ".jpg"])
@given(cut=st.floats(0, 1, exclude_max=True))
def test_truncated_files(tmp_path_factory, suffix, cut):
    folder = tmp_path_factory.mktemp("cut")
    rng = np.random.default_rng(0)
    image, table = rng.integers(0, 256, (16, 16, 3), np.uint8), rng.normal(size=(20, 3)).astype(np.float32)
    path = folder / f"whole{suffix}"
    data.write(path, image if suffix in (".png", ".jpg") else table)
    content = path.read_bytes()
    # What follows the pixels, as the end marker of a PNG, may be lost without harm.
    path.write_bytes(content[: int(cut * (len(content) - (100 if suffix in (".png", ".jpg") else 0)))])
    with pytest.raises(DataError, match="whole"):
        data.read(path)


def test_image_that_claims_a_million_pixels_a_side(tmp_path):
    path = tmp_path / "bomb.png"
    Image.new("L", (1, 1)).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 1_000_000, 1_000_000)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"bomb\.png"):
        data.read(path)


@pytest.mark.parametrize("use", [data.load, data.read])
def test_missing_path(tmp_path, use):
    with pytest.raises(DataError, match="no images"):
        use(tmp_path)
    (tmp_path / "train.csv").touch()
    with pytest.raises(DataError, match=r"Did you mean 'train\.csv'"):
        use(tmp_path / "trian.csv")
    (tmp_path / "x.mp4").touch()
    with pytest.raises(DataError, match="the known formats are"):
        use(tmp_path / "x.mp4")
    with pytest.raises(DataError, match="nul"):
        use("nul\0byte")


def test_near_names():
    with pytest.raises(DataError, match="Did you mean 'mnist'"):
        data.load("mnst")
    with pytest.raises(DataError, match="label='digit' names a column"):
        data.load("mnist", label="digit")


# TensorFlow Datasets


@pytest.fixture
def flowers(tmp_path, monkeypatch):
    """A small table, prepared with the real TFDS as "tiny_flowers"; its class is registered for this test alone."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    import tensorflow_datasets

    features = tensorflow_datasets.features

    class TinyFlowers(tensorflow_datasets.core.GeneratorBasedBuilder):
        VERSION = tensorflow_datasets.core.Version("1.0.0")

        def _info(self):
            shape = {"petal": features.Tensor(shape=(2,), dtype=np.float32), "count": features.Scalar(dtype=np.int64)}
            label = features.ClassLabel(names=["iris", "rose"])
            return tensorflow_datasets.core.DatasetInfo(
                builder=self, features=features.FeaturesDict(shape | {"kind": label}), supervised_keys=("petal", "kind")
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(0, 12), "test": self._generate_examples(100, 104)}

        def _generate_examples(self, start, stop):
            for i in range(start, stop):
                yield i, {"petal": np.float32([i, -i]), "count": 2 * i, "kind": i % 2}

    yield TinyFlowers
    tensorflow_datasets.core.registered._DATASET_REGISTRY.pop("tiny_flowers")


def test_tfds_table(flowers, tmp_path, monkeypatch):
    monkeypatch.setattr(tfds, "_online", lambda: True)
    dataset = data.load("tfds:tiny_flowers")
    assert (dataset.kind, dataset.classes) == ("tabular", ("iris", "rose"))
    assert sorted(dataset.columns) == ["count", "petal_0", "petal_1"]
    petal, count = dataset.columns.index("petal_0"), dataset.columns.index("count")
    np.testing.assert_array_equal(np.sort(dataset.train[:, petal]), np.arange(12))
    np.testing.assert_array_equal(np.sort(dataset.test[:, petal]), np.arange(100, 104))
    np.testing.assert_array_equal(dataset.train[:, count], 2 * dataset.train[:, petal])
    np.testing.assert_array_equal(dataset.train_labels, dataset.train[:, petal] % 2)

    monkeypatch.setattr(tfds, "_online", lambda: False)
    monkeypatch.setattr(tfds, "_read", lambda *_: pytest.fail("the kept arrays were not used"))
    again = data.load("tfds:tiny_flowers")
    for part in PARTS:
        np.testing.assert_array_equal(getattr(again, part), getattr(dataset, part))
    assert (again.classes, again.columns) == (dataset.classes, dataset.columns)


def test_a_large_tfds_set_is_a_stream(flowers, tmp_path, monkeypatch):
    tfds.prepare("tiny_flowers", manual_dir=tmp_path)
    monkeypatch.setattr("flaxae.data.arrays.MAP_BYTES", 10)
    dataset = data.load("tfds:tiny_flowers")
    assert isinstance(dataset.train, data.Stream)
    petal = dataset.columns.index("petal_0")
    np.testing.assert_array_equal(np.sort(dataset.train[:][:, petal]), np.arange(12))
    np.testing.assert_array_equal(np.sort(dataset.test[:, petal]), np.arange(100, 104))
    np.testing.assert_allclose(dataset.scaling(dataset.train)[:].mean(axis=0), 0, atol=1e-6)


def test_tfds_that_lost_rows_is_refused(flowers, tmp_path):
    folder = tfds.prepare("tiny_flowers", manual_dir=tmp_path)
    record = folder / "dataset_info.json"
    original = record.read_text()
    for claimed in (11, 13):
        record.write_text(original.replace('"12"', f'"{claimed}"'))
        with pytest.raises(DataError, match=f"12 examples in 'train'; its own record says {claimed}"):
            data.load("tfds:tiny_flowers")


def test_tfds_images(tmp_path, monkeypatch, images):
    import tensorflow_datasets

    features = tensorflow_datasets.features
    examples = [{"image": image, "name": "x", "label": i % 2} for i, image in enumerate(images)]
    label = features.ClassLabel(num_classes=2)
    info = types.SimpleNamespace(
        features={"image": features.Image(shape=(5, 4, 3)), "name": features.Text(), "label": label},
        supervised_keys=("image", "label"),
        splits={"train": types.SimpleNamespace(num_examples=10)},
    )
    builder = types.SimpleNamespace(name="pictures", info=info, data_path=tmp_path, is_prepared=lambda: True)
    monkeypatch.setattr(tfds, "_open", lambda name: builder)
    monkeypatch.setattr(tfds, "_examples", lambda builder, split: examples)
    dataset = data.load("tfds:pictures")
    assert (dataset.kind, dataset.shape, len(dataset.train), len(dataset.test)) == ("image", (5, 4, 3), 8, 2)
    for image, code in zip(dataset.train, dataset.train_labels, strict=True):
        assert code == next(e["label"] for e in examples if np.array_equal(e["image"], image))


def test_tfds_refusals(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(tfds, "_online", lambda: False)
    for name, message in {
        "fashion_mnst": "Unknown TFDS set 'fashion_mnst'. Did you mean 'fashion_mnist'",
        "zzzzzzzz": "catalog",
        "a b": "can't be opened",
        "cifar10": "there is no network to download it",
        "imdb_reviews": "the features 'text' are not numbers",
    }.items():
        with pytest.raises(DataError, match=message):
            data.load(f"tfds:{name}")
    with pytest.raises(DataError, match="Did you mean 'label'"):
        data.load("tfds:cifar10", label="labels")
