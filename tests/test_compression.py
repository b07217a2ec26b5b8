"""Compression: what is compressed comes back exactly, everywhere; and no file from outside does harm."""

import hashlib
import lzma
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxae import autoencoder, compression, data
from flaxae.compression import Codec, Contexts, coding, container, files, integers, network
from flaxae.compression.contexts import ONE
from flaxae.errors import DataError, RunError


def made(contexts: Contexts, hidden: tuple[int, ...] = (6,), seed: int = 0) -> Codec:
    """A codec with random weights, which has to be exact too."""
    model = autoencoder.build(network.config(hidden, 2, contexts.bits), (contexts.features,), seed=seed)
    return Codec(contexts, integers.rounded(model, contexts.bits))


@pytest.fixture(scope="module")
def grey() -> Codec:
    return made(Contexts(reach=2))


@pytest.fixture(scope="module")
def colour() -> Codec:
    return made(Contexts(planes=3, reach=2))


@pytest.fixture(scope="module")
def deep() -> Codec:
    return made(Contexts(planes=3, bits=16, reach=2))


@pytest.fixture(scope="module")
def trained(digits) -> Codec:
    images = (digits[:1500] * 16).astype(np.uint8)
    contexts = Contexts(bits=5, reach=2, side=(8, 8))
    return compression.fit(images, contexts=contexts, hidden=(24,), steps=200, batch_size=512, show=False)[0]


# Exact


@settings(max_examples=6)
@given(
    st.sampled_from([(1, 1), (1, 7), (9, 1), (5, 6), (2, 3, 3), (6, 5, 4), (3, 4, 5, 1), (7, 2, 2)]), st.integers(0, 99)
)
def test_images_of_any_shape_come_back(grey, colour, deep, shape, seed):
    x = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    for codec in (grey, colour, deep):
        y = compression.decompress(codec, compression.compress(codec, x))
        assert y.dtype == x.dtype
        np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("dtype", ["uint16", "int16"])
def test_sixteen_bits_come_back(deep, dtype, rng):
    info = np.iinfo(dtype)
    x = rng.integers(info.min, info.max + 1, (9, 8, 3), dtype)
    np.testing.assert_array_equal(deep.decompress(deep.compress(x)), x)
    x[...] = info.max
    np.testing.assert_array_equal(deep.decompress(deep.compress(x)), x)


def test_the_margins_of_a_decoded_frame_are_those_of_an_encoded_one(rng):
    contexts = Contexts(planes=2, reach=2)
    x = rng.integers(0, 256, (2, 4, 5, 2), np.uint8)
    whole, built = contexts.framed(x), contexts.frame(*x.shape)
    for step in contexts.steps(built):
        np.testing.assert_array_equal(contexts.of(built, step), contexts.of(whole, step))
        contexts.put(built, step, whole.reshape(-1)[step.at])
    np.testing.assert_array_equal(built, whole)


@pytest.mark.parametrize("bits", [8, 16])
def test_whole_numbers_give_the_trained_network_s_probabilities(bits, rng):
    contexts = Contexts(bits=bits, reach=2)
    model = autoencoder.build(network.config((8,), 3, bits), (contexts.features,), seed=1)
    size = 2**bits
    # a smooth image, so that means are near
    x = (size * (0.5 + 0.3 * np.sin(np.indices((1, 12, 12)).sum(0) / 5)))[..., None] + rng.normal(0, 2, (1, 12, 12, 1))
    frame = contexts.framed(np.clip(x, 0, size - 1).astype(np.int32))
    codec = Codec(contexts, integers.rounded(model, bits))
    nats, features, levels = surprise(codec, np.moveaxis(frame[:, :, 2:-2, 2:-2], 0, -1))
    params = model((features / ONE).astype(np.float32)).params
    wanted = -model.likelihood.log_prob(params, (levels / size)[:, None].astype(np.float32)).sum()
    assert nats == pytest.approx(float(wanted), rel=2e-3)


def surprise(codec: Codec, x: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """−log of the probability of images in nats, the features of their values, and the values."""
    contexts, size = codec.contexts, 2**codec.contexts.bits
    frame = contexts.framed(x)
    steps = list(contexts.steps(frame))
    features = np.concatenate([contexts.of(frame, step) for step in steps])
    levels = np.concatenate([frame.reshape(-1)[step.at] for step in steps]).astype(np.int64)
    mixture = codec.network(features)
    total = mixture.total(size)
    below = np.where(levels == 0, 0, mixture.below(levels))
    above = np.where(levels == size - 1, total, mixture.below(levels + 1))
    return -float(np.log((above - below) / total).sum()), features, levels


def test_a_file_is_as_long_as_the_network_s_surprise(trained, digits):
    x = (digits[1500:] * 16).astype(np.uint8)
    content = trained.compress(x)
    header = container.FIXED + 4 * x.ndim
    assert 8 * (len(content) - header) == pytest.approx(surprise(trained, x)[0] / np.log(2), rel=0.002)
    assert len(content) < len(lzma.compress(x.tobytes()))
    np.testing.assert_array_equal(trained.decompress(content), x)


def test_contexts_of_one_level_are_computed_once_and_alike(trained):
    codec = trained
    x = np.zeros((3, 8, 8, 1), np.uint8)
    x[1] = 20
    frame = codec.contexts.framed(x)
    for step in codec.contexts.steps(frame):
        quick, plain = (
            coding._mixture(codec.contexts, codec.network, frame, step),
            codec.network(codec.contexts.of(frame, step)),
        )
        for one, other in zip(quick[:4], plain[:4], strict=True):
            np.testing.assert_array_equal(one, other)


def test_another_process_with_other_threads_decodes_the_same(trained, digits, tmp_path):
    codec = trained
    codec.save(tmp_path / "codec")
    x = (digits[1500:1600] * 16).astype(np.uint8)
    (tmp_path / "x.flx").write_bytes(codec.compress(x))
    program = (
        "import sys, numpy as np; from flaxae import compression\n"
        "codec = compression.load(sys.argv[1] + '/codec')\n"
        "np.save(sys.argv[1] + '/x.npy', codec.decompress(open(sys.argv[1] + '/x.flx', 'rb').read()))"
    )
    environment = {"OPENBLAS_NUM_THREADS": "3", "OMP_NUM_THREADS": "3", "OPENBLAS_CORETYPE": "Prescott", "PATH": ""}
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, env=environment)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), x)


# Safe


def test_changed_files_are_refused(grey, rng):
    content = grey.compress(rng.integers(0, 256, (6, 6), np.uint8))
    for _ in range(2000):
        changed = bytearray(content)
        kind = rng.integers(4)
        at = int(rng.integers(len(changed)))
        if kind == 0:
            changed[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del changed[at:]
        elif kind == 2:
            changed[at:at] = rng.bytes(3)
        else:
            changed[at : at + 4] = rng.bytes(4)
        if bytes(changed) != content:
            with pytest.raises(DataError):
                grey.decompress(bytes(changed))


def test_forged_files_are_refused_without_much_memory(grey, rng):
    """Whose checksum is right, as whoever forges one can make it."""
    content = grey.compress(rng.integers(0, 256, (6, 6), np.uint8))
    refused = 0
    for _ in range(60):
        changed = bytearray(content[: -container.DIGEST])
        at = int(rng.integers(4, len(changed)))
        changed[at : at + 4] = rng.bytes(4)[: len(changed) - at]
        try:
            grey.decompress(sealed(bytes(changed)), max_values=10**6)
        except DataError:
            refused += 1
    assert refused == 60


def sealed(body: bytes) -> bytes:
    return body + hashlib.sha256(body).digest()[: container.DIGEST]


def test_a_hostile_shape_a_newer_version_and_another_codec_are_told(grey, colour, rng):
    content = grey.compress(rng.integers(0, 256, (6, 6), np.uint8))
    body = bytearray(content[: -container.DIGEST])
    body[8:16] = b"\xff" * 8
    with pytest.raises(DataError, match=r"claims 4,294,967,295 × 4,294,967,295 values"):
        grey.decompress(sealed(bytes(body)))
    newer = bytearray(content)
    newer[4] = 9
    with pytest.raises(DataError, match="version 9"):
        grey.decompress(bytes(newer))
    with pytest.raises(DataError, match="another codec"):
        colour.decompress(content)
    with pytest.raises(DataError, match="too large"):
        grey.decompress(content, max_values=10)
    with pytest.raises(DataError, match=r"no \.flx file"):
        grey.decompress(b"PNG")


def test_arrays_that_are_no_images_are_refused(grey):
    for x in (np.zeros((3, 3)), np.zeros(5, np.uint8), np.zeros((0, 4), np.uint8), np.zeros((2, 2), bool)):
        with pytest.raises(DataError, match="expected uint8"):
            grey.compress(x)
    with pytest.raises(DataError, match="9 bits"):
        grey.compress(np.full((2, 2), 300, np.uint16))


def test_a_codec_is_saved_whole_and_checked(grey, tmp_path):
    grey.save(tmp_path / "codec")
    assert compression.load(tmp_path / "codec").identity == grey.identity
    path = tmp_path / "codec" / "weights.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match="damaged"):
        compression.load(tmp_path / "codec")
    with pytest.raises(RunError):
        compression.load(tmp_path / "nothing")


# Folders


def test_a_folder_goes_in_and_out(colour, tmp_path, rng, capsys):
    for name, shape in (("a.png", (9, 7, 3)), ("deeper/b.png", (5, 5, 1)), ("a.tif", (4, 6, 4))):
        data.write(tmp_path / "photos" / name, rng.integers(0, 256, shape, np.uint8))
    totals = files.compress(colour, tmp_path / "photos", tmp_path / "small")
    assert totals.files == 3
    assert "PNG" in totals.line()
    files.decompress(colour, tmp_path / "small", tmp_path / "back")
    names = sorted(path.relative_to(tmp_path / "back").as_posix() for path in (tmp_path / "back").rglob("*.png"))
    assert names == ["a.png.png", "a.tif.png", "deeper/b.png"]
    for name, original in (("a.png.png", "a.png"), ("deeper/b.png", "deeper/b.png"), ("a.tif.png", "a.tif")):
        np.testing.assert_array_equal(data.read(tmp_path / "back" / name), data.read(tmp_path / "photos" / original))


def test_what_can_t_be_done_is_named_and_the_rest_is_done(colour, tmp_path, rng, capsys):
    for name in ("a.png", "b.png"):
        data.write(tmp_path / "photos" / name, rng.integers(0, 256, (4, 4, 3), np.uint8))
    data.write(tmp_path / "photos" / "c.png", rng.integers(0, 65536, (4, 4, 1), np.uint16))
    with pytest.raises(DataError, match="1 of 3 files were left out"):
        files.compress(colour, tmp_path / "photos", tmp_path / "small")
    assert len(list((tmp_path / "small").iterdir())) == 2
    (tmp_path / "small" / "a.flx").write_bytes(b"bad")
    with pytest.raises(DataError, match="1 of 2 files were left out"):
        files.decompress(colour, tmp_path / "small", tmp_path / "back")
    assert [path.name for path in (tmp_path / "back").iterdir()] == ["b.png"]
    with pytest.raises(DataError, match=r"ends in \.flx"):
        files.compress(colour, tmp_path / "photos" / "a.png", tmp_path / "a.zip")
