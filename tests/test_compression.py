"""Compression: what is compressed comes back, everywhere, exactly or about; and no file from outside does harm."""

import dataclasses
import hashlib
import json
import lzma
import pathlib
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import flaxae
from flaxae import autoencoder, command, compression, data
from flaxae.compression import (
    Codec,
    Contexts,
    LossyCodec,
    coding,
    container,
    files,
    fitting,
    grids,
    integers,
    network,
    transforms,
)
from flaxae.compression import lossy as lossy_codec
from flaxae.compression.contexts import ONE, Step
from flaxae.compression.peers import Point
from flaxae.data import memory
from flaxae.errors import ConfigError, DataError, RunError
from flaxae.experiments import _lossy

DIGESTS = ["c57d4a846f5ba194", "77bbd97221307fb7", "bfd059454229b9f8"]
BODY, HEAD = transforms.Transforms((8,), 16, blocks=1), transforms.Hyperprior(4, 8)  # of small lossy codecs


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


def untrained(planes: int, seed: int = 0) -> LossyCodec:
    """A lossy codec of principal components, whose hyperprior is drawn: its whole numbers have to be exact too."""
    config = dataclasses.replace(fitting.LOSSY, body=BODY, head=HEAD)
    model = autoencoder.build(config, (32, 32, planes), seed=seed)
    transforms.set_blocks(model, photograph((4, 64, 64, planes)) / np.float32(255))
    rng = np.random.default_rng(seed)
    hyper = model.head.hyper
    for parameter, spread in ((hyper.last.kernel, 0.02), (hyper.bias, 1.0), (model.head.prior, 0.3)):
        parameter[...] = jnp.asarray(spread * rng.standard_normal(parameter.shape), jnp.float32)
    return LossyCodec(model, grids.rounded(model.head), quality=50)


def photograph(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Images [..., height, width, channels] of smooth shapes with some noise."""
    rng = np.random.default_rng(seed)
    *several, height, width, channels = shape
    i, j = np.indices((height, width))[..., None] / 9.0
    waves = sum(np.sin(rng.normal(size=(*several, 1, 1, channels)) * x + 3 * rng.random()) for x in (i, j, i + j))
    return np.clip(128 + 40 * waves + rng.normal(0, 4, shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def lossy() -> LossyCodec:
    return untrained(3)


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


# Lossy


def psnr(x: np.ndarray, y: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.square(x.astype(float) - y).mean())


@pytest.mark.parametrize("shape", [(1, 1), (70, 5), (33, 48, 3), (2, 20, 9, 3), (20, 21, 4), (18, 17, 2), (40, 40, 1)])
@pytest.mark.parametrize("planes", [1, 3])
def test_images_of_any_shape_come_back_about(lossy, planes, shape):
    codec = lossy if planes == 3 else untrained(1)
    x = photograph((*shape, 1)).reshape(shape) if len(shape) == 2 else photograph(shape)
    y = compression.decompress(codec, compression.compress(codec, x, quality=90))
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert psnr(x, y) > 22


def test_what_can_not_be_told_of_small_images_is_left_out_of_the_results():
    own = Point(75, 1.5, 30.0, float("nan"))
    assert _lossy.results(own, {"JPEG": None, "WebP": -10.0}) == {
        "test/bits_per_pixel": 1.5,
        "test/psnr_db": 30.0,
        "test/bd_rate_webp_percent": -10.0,
    }


def test_more_quality_takes_more_bytes_and_is_better(lossy):
    x = photograph((64, 80, 3))
    files = [lossy.compress(x, quality=quality) for quality in (1, 30, 60, 100)]
    sizes, good = [len(content) for content in files], [psnr(x, lossy.decompress(content)) for content in files]
    assert sizes == sorted(sizes)
    assert good == sorted(good)
    assert sizes[-1] > 1.5 * sizes[0]
    assert good[-1] > good[0] + 1


def test_whole_numbers_give_the_trained_hyperprior_s_probabilities(lossy, rng):
    z = rng.integers(-5, 6, (6, 7, 4))
    for quality in (1, 30, 100):
        level = jnp.array([(quality - 1) / 99], jnp.float32)
        means, scales = lossy.model.head.hyper(jnp.asarray(z[None], jnp.float32), level)
        found, tables = lossy.probabilities.of_first(z, quality)
        np.testing.assert_allclose(found / ONE, means[0], atol=3e-3)
        steps = np.log(np.asarray(transforms.scale(scales))[0] / transforms.LEAST_SCALE) / transforms.STEP
        assert np.abs(tables - steps).max() < 0.6
        wanted = transforms.scale(transforms.at(lossy.model.head.prior[...], level))[0, 0]
        steps = np.log(np.asarray(wanted) / transforms.LEAST_SCALE) / transforms.STEP
        assert np.abs(lossy.probabilities.of_second(quality) - steps).max() < 0.6


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(-grids.FARTHEST, grids.FARTHEST), st.integers(0, 63)), max_size=50))
def test_numbers_come_back_however_far(lossy, pairs):
    numbers, tables = np.array(pairs, np.int32).reshape(-1, 2).T
    encoder = grids.Encoder(lossy.probabilities)
    encoder.put(numbers, tables.astype(np.uint8))
    decoder = grids.Decoder(lossy.probabilities, encoder.bytes())
    np.testing.assert_array_equal(decoder.get(tables.astype(np.uint8)), numbers)
    assert decoder.crc == encoder.crc


def test_tables_are_those_of_normal_distributions():
    masses = grids.masses() / 2**integers.PRECISION
    for k in (0, 20, 63):
        scale = transforms.LEAST_SCALE * np.exp(transforms.STEP * k)
        reach = grids.reach_of(scale)
        numbers = np.arange(-reach, reach + 1)
        wanted = stats.norm.cdf((numbers + 0.5) / scale) - stats.norm.cdf((numbers - 0.5) / scale)
        np.testing.assert_allclose(masses[k, : 2 * reach + 1], wanted, atol=2e-4)


@pytest.fixture(scope="module")
def learned() -> tuple[LossyCodec, LossyCodec]:
    """Codecs after one step and after many."""
    x = photograph((12, 48, 48, 3), seed=5)
    small = {"config": dataclasses.replace(fitting.LOSSY, body=BODY, head=HEAD), "size": 32, "batch_size": 4}
    first, trained = (compression.fit_lossy(x, **small, steps=steps, show=False)[0] for steps in (1, 60))
    return first, trained


def test_a_lossy_codec_learns_and_begins_with_principal_components(learned):
    x = photograph((12, 48, 48, 3), seed=5)[0]
    first, trained = learned

    def cost(codec: LossyCodec) -> float:  # see `RateDistortion`, at its middle quality
        content = codec.compress(x, quality=50)
        return 8 * len(content) / 48**2 + 0.0077 * np.square(x - codec.decompress(content).astype(float)).mean()

    assert psnr(x, first.decompress(first.compress(x, quality=100))) > 25
    assert cost(trained) < 0.95 * cost(first)


def test_a_lossy_file_is_as_long_as_estimated(learned):
    codec, x = learned[1], photograph((200, 220, 3))
    for quality in (30, 100):
        content = codec.compress(x, quality=quality)
        header = container.FIXED + 4 * x.ndim + 1
        assert 8 * (len(content) - header) == pytest.approx(codec.bits(x, quality), rel=0.01)


def test_windows_and_strips_change_nothing(learned, monkeypatch):
    codec, x = learned[1], photograph((192, 192, 3))  # which is one window of 12 places
    y, z = codec._analysed(x, 50)
    made, whole = codec._synthesised(y, 50), codec.decompress(codec.compress(x))
    monkeypatch.setattr(grids, "PLACES", 50)
    np.testing.assert_array_equal(codec.decompress(codec.compress(x)), whole)
    monkeypatch.setattr(lossy_codec, "SIDES", (11,))
    monkeypatch.setattr(lossy_codec, "MARGIN", 5)
    for grid, other in zip((y, z), codec._analysed(x, 50), strict=True):
        np.testing.assert_allclose(other, grid, atol=1e-3)
    assert np.abs(codec._synthesised(y, 50).astype(int) - made).max() <= 1


def test_what_no_lossy_codec_takes_is_refused(lossy, grey, tmp_path):
    with pytest.raises(DataError, match="takes uint8"):
        lossy.compress(np.zeros((4, 4, 3), np.uint16))
    for quality in (0, 101):
        with pytest.raises(ConfigError, match="from 1"):
            lossy.compress(np.zeros((4, 4, 3), np.uint8), quality=quality)
    with pytest.raises(ConfigError, match="lossless"):
        compression.compress(grey, np.zeros((4, 4), np.uint8), quality=50)
    with pytest.raises(DataError, match="8 bits"):
        compression.fit_lossy(np.zeros((4, 8, 8, 1), np.uint16))


def test_another_process_with_other_threads_decodes_the_same_numbers(lossy, tmp_path):
    """Decoding compares the checksum of the numbers; what is computed of them in floats may differ by a level."""
    lossy.save(tmp_path / "codec")
    x = photograph((80, 70, 3))
    (tmp_path / "x.flx").write_bytes(lossy.compress(x))
    program = (
        "import sys, numpy as np; from flaxae import compression\n"
        "codec = compression.load(sys.argv[1] + '/codec')\n"
        "np.save(sys.argv[1] + '/x.npy', codec.decompress(open(sys.argv[1] + '/x.flx', 'rb').read()))"
    )
    environment = {"OPENBLAS_NUM_THREADS": "3", "OMP_NUM_THREADS": "3", "OPENBLAS_CORETYPE": "Prescott", "PATH": ""}
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, env=environment)
    there = np.load(tmp_path / "x.npy").astype(int)
    assert np.abs(there - lossy.decompress((tmp_path / "x.flx").read_bytes())).max() <= 1


# Safe


@pytest.mark.parametrize("kind", ["grey", "lossy"])
def test_changed_files_are_refused(kind, request, rng):
    codec = request.getfixturevalue(kind)
    content = codec.compress(rng.integers(0, 256, (6, 6), np.uint8))
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
                codec.decompress(bytes(changed))


@pytest.mark.parametrize("kind", ["grey", "lossy"])
def test_forged_files_are_refused_without_much_memory(kind, request, rng):
    """Whose checksum is right, as whoever forges one can make it."""
    codec = request.getfixturevalue(kind)
    content = codec.compress(rng.integers(0, 256, (6, 6), np.uint8))
    refused = 0
    for _ in range(60):
        changed = bytearray(content[: -container.DIGEST])
        at = int(rng.integers(4, len(changed)))
        changed[at : at + 4] = rng.bytes(4)[: len(changed) - at]
        try:
            codec.decompress(sealed(bytes(changed)), max_values=10**5)
        except DataError:
            refused += 1
    assert refused == 60


def sealed(body: bytes) -> bytes:
    return body + hashlib.sha256(body).digest()[: container.DIGEST]


def test_parts_that_are_not_there_are_not_decoded(grey, rng, monkeypatch):
    """As of an image of many channels, each of which has a length of its own in the file."""
    body = bytearray(grey.compress(rng.integers(0, 256, (2, 6, 6, 1), np.uint8))[: -container.DIGEST])
    body[20:24] = (8193).to_bytes(4, "little")
    decoded = []
    monkeypatch.setattr("flaxae.compression.coding.decode", lambda *given: decoded.append(given))
    with pytest.raises(DataError, match="can't be decoded"):
        grey.decompress(sealed(bytes(body)))
    assert not decoded


def claiming(content: bytes, *shape: int) -> bytes:
    """A file with another shape, whose checksum is right."""
    axes = content[7]
    head = content[:7] + bytes([len(shape)]) + np.array(shape, "<u4").tobytes()
    return sealed(head + content[8 + 4 * axes : -container.DIGEST])


@pytest.mark.parametrize("kind", ["grey", "lossy"])
def test_nothing_is_decoded_past_the_end_of_a_file(kind, request, rng):
    """Where the range coder would go on with zeros."""
    codec = request.getfixturevalue(kind)
    content = codec.compress(rng.integers(0, 256, (20, 32, 32, 1), np.uint8))
    begins = 8 + 4 * 4 + container.DIGEST + 4 + (kind == "lossy")
    with pytest.raises(DataError, match="can't be decoded"):  # and not: what it decodes to is not what was written
        codec.decompress(sealed(content[:begins] + bytes(60)))


def test_a_lossy_file_that_claims_more_places_than_it_has_bits_for_is_refused_at_once(lossy, monkeypatch):
    content = lossy.compress(np.zeros((32, 32, 3), np.uint8))
    monkeypatch.setattr(grids, "Decoder", lambda *given: pytest.fail("was decoded"))
    with pytest.raises(DataError, match=r"claims 9,000 × 9,000 × 3 values in [\d,]+ bytes"):
        lossy.decompress(claiming(content, 9000, 9000, 3))


def test_narrow_images_and_what_does_not_fit_into_memory_are_refused_before_they_are_decoded(
    grey, lossy, monkeypatch, rng
):
    long, lossy_long = (
        grey.compress(rng.integers(0, 256, (60, 60), np.uint8)),
        lossy.compress(np.eye(96, dtype=np.uint8)),
    )
    monkeypatch.setattr(coding, "decode", lambda *given: pytest.fail("was decoded"))
    monkeypatch.setattr(grids, "Decoder", lambda *given: pytest.fail("was decoded"))
    for shape in ((1, 4_000_000), (2_000_000, 2)):
        with pytest.raises(DataError, match=r"of so narrow images take as long as [\d,]+. If it is right, allow it"):
            grey.decompress(claiming(long, *shape))
    monkeypatch.setattr(memory, "available", lambda: 2**17)
    for codec, content in ((grey, long), (lossy, lossy_long)):
        with pytest.raises(DataError, match=r"would take [01] MiB of memory"):
            codec.decompress(content)


@pytest.mark.parametrize("bits", range(1, 17))
def test_the_surest_values_take_more_bits_than_a_file_has_to_have(bits):
    surest = [np.array([[number]]) for number in (2**15, 0, int(integers.tables().inverses.max()))]
    floor = (surest[0][0] * integers.UNIT) >> (bits - round(np.log2(network.FLOOR)))
    taken = 0.0

    def likely(probabilities, step, shift):
        nonlocal taken
        taken -= np.log2(np.maximum(probabilities, 1 - probabilities)).sum()
        return probabilities > 0.5

    mixture = integers.Mixture(*surest, floor, integers.BETWEEN if bits > 8 else 0)
    coding._code(mixture, bits, Step(*np.zeros((3, 1), int), 0), likely)
    assert taken > container.LEAST_BITS[container.LOSSLESS]


def test_a_hostile_shape_a_newer_version_and_another_codec_are_told(grey, colour, lossy, rng):
    content = grey.compress(rng.integers(0, 256, (6, 6), np.uint8))
    body = bytearray(content[: -container.DIGEST])
    body[8:16] = b"\xff" * 8
    with pytest.raises(DataError, match=r"claims 4,294,967,295 × 4,294,967,295 values"):
        grey.decompress(sealed(bytes(body)))
    newer = bytearray(content)
    newer[4] = 9
    with pytest.raises(DataError, match="version 9"):
        grey.decompress(bytes(newer))
    for other in (colour, lossy):
        with pytest.raises(DataError, match="another codec"):
            other.decompress(content)
    with pytest.raises(DataError, match="another codec"):
        grey.decompress(lossy.compress(np.zeros((6, 6), np.uint8)))
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


@pytest.mark.parametrize("kind", ["grey", "lossy"])
def test_a_codec_is_saved_whole_and_checked(kind, request, tmp_path):
    codec = request.getfixturevalue(kind)
    codec.save(tmp_path / "codec")
    assert compression.load(tmp_path / "codec").identity == codec.identity
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


# Kept, and used


def test_a_file_that_was_written_elsewhere_decodes():
    """Of this format's first version: what was written once has to be read for good."""
    kept = pathlib.Path(__file__).parent / "kept"
    codec = compression.load(kept / "codec")
    content = (kept / "face.flx").read_bytes()
    x = data.read(kept / "face.png")
    np.testing.assert_array_equal(codec.decompress(content), x)
    assert codec.compress(np.asarray(x)) == content


def test_a_lossy_file_that_was_written_elsewhere_decodes():
    kept = pathlib.Path(__file__).parent / "kept"
    codec = compression.load(kept / "lossy")
    y = codec.decompress((kept / "lossy.flx").read_bytes())
    assert np.abs(y.astype(int) - data.read(kept / "lossy.png")).max() <= 1


def test_the_tables_are_those_that_every_machine_computes():
    digests = [hashlib.sha256(table.astype("<i8").tobytes()).hexdigest()[:16] for table in integers.tables()]
    assert digests == DIGESTS


def test_the_command_trains_compresses_and_gives_back(tmp_path, monkeypatch, digits, capsys):
    monkeypatch.chdir(tmp_path)
    for name, value in (("EPOCH", 10), ("BATCH", 256), ("VALIDATION", 1000)):
        monkeypatch.setattr(fitting, name, value)
    x = (digits[:200] * 255).astype(np.uint8)
    np.save("digits.npy", x)
    assert command.main(["compress", "--data", "digits.npy", "--epochs", "1"]) == 0
    run = tmp_path / "runs" / "compress" / "1"
    results = json.loads((run / "results.json").read_text())
    assert 0 < results["test/flaxae_bits"] < 8
    assert (run / "report.html").exists()
    assert flaxae.load(run).identity == compression.load(run / "codec").identity
    assert command.main(["compress", "--from", str(run), "--input", "digits.npy", "--output", "digits.flx"]) == 0
    assert command.main(["compress", "--from", str(run), "--input", "digits.flx", "--output", "back.npy"]) == 0
    np.testing.assert_array_equal(np.load("back.npy"), x)
    assert command.main(["compress", "--from", str(run), "--input", "back.npy", "--output", "x.zip"]) == 2
    assert command.main(["compress", "--from", "nothing", "--input", "digits.flx", "--output", "back.npy"]) == 2
    assert "ends in .flx" in capsys.readouterr().err


def test_the_command_trains_a_lossy_codec_and_uses_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = dataclasses.replace(fitting.LOSSY, body=BODY, head=HEAD)
    for name, value in (("LOSSY", small), ("LOSSY_EPOCH", 4), ("LOSSY_BATCH", 2), ("CROP", 32), ("CROPS", 20)):
        monkeypatch.setattr(fitting, name, value)
    for name, value in (("QUALITIES", (1, 60, 100)), ("OTHERS", (5, 50, 95)), ("SIDE", 32)):
        monkeypatch.setattr(_lossy, name, value)
    for k in range(8):
        data.write(f"photos/{k}.png", photograph((66 + k, 70, 3), seed=k))
    assert command.main(["compress", "--data", "photos", "--quality", "60", "--epochs", "1"]) == 0
    run = tmp_path / "runs" / "compress" / "1"
    results = json.loads((run / "results.json").read_text())
    assert 0 < results["test/bits_per_pixel"] < 24
    assert results["test/psnr_db"] > 20
    assert (run / "report.html").stat().st_size > 50_000  # with both figures
    assert flaxae.load(run).quality == 60
    use = ["compress", "--from", str(run)]
    capsys.readouterr()
    assert command.main([*use, "--input", "photos", "--output", "small", "--quality", "20"]) == 0
    said = capsys.readouterr().out.replace("\n", " ")
    assert re.search(r"PSNR \d+\.\d\d dB, MS-SSIM 0\.\d+.* at about the same PSNR: JPEG [\d,]+, WebP", said)
    assert command.main([*use, "--input", "small", "--output", "back"]) == 0
    assert psnr(data.read("photos/3.png"), data.read("back/3.png")) > 20
    assert command.main([*use, "--input", "photos", "--output", "other", "--lossless"]) == 2
    assert "is lossy" in capsys.readouterr().err
    for flags in (["--quality", "101"], ["--quality", "5", "--lossless"]):
        with pytest.raises(SystemExit):
            command.main(["compress", "--data", "photos", *flags])
