"""Nothing that comes from outside does harm: to a terminal, a spreadsheet, the memory, or what is waited for."""

import argparse
import gzip
import io
import subprocess
import sys
import tarfile
import zipfile

import h5py
import jax
import numpy as np
import pandas as pd
import pyarrow.feather
import pytest
import scipy.io
import tifffile

import flaxae
from flaxae import anomaly, batches, compression, data, errors, printing, training
from flaxae.autoencoder import Autoencoder, Config
from flaxae.data import arrow, formats, memory, sparse, tables
from flaxae.data.images import codec
from flaxae.likelihoods import Gaussian
from flaxae.nn.heads import Deterministic
from flaxae.nn.mlp import MLP
from flaxae.training.examples import fingerprint

CONFIG = Config(body=MLP((8,)), head=Deterministic(2), likelihood=Gaussian())


def test_what_is_said_does_nothing_to_a_terminal(capsys):
    printing.say("a\x1b[2Jb\u202ec\td [/min]\nflow [l/min]")
    assert capsys.readouterr().out == "a\\x1b[2Jb\\u202ec\td [/min]\nflow [l/min]\n"


def test_no_cell_of_a_csv_is_taken_for_a_formula_and_it_is_read_as_it_was(tmp_path):
    texts = ["=1+1", "+cmd|' /C calc'!A0", "@SUM(A1)", "-2+3", " =A1", "-5", "-", "a=b", "+1e3", "'=1"]
    frame = pd.DataFrame({"=name": texts, "number": np.arange(10) - 5.0})
    with (tmp_path / "x.csv").open("wb") as file:
        tables.write_text(file, tmp_path / "x.csv", frame)
    lines = (tmp_path / "x.csv").read_text().splitlines()
    cells = [line.rsplit(",", 1)[0].strip('"') for line in lines]
    wanted = ["'=1+1", "'+cmd|' /C calc'!A0", "'@SUM(A1)", "'-2+3", "' =A1", "-5", "-", "a=b", "+1e3", "'=1"]
    assert cells == ["'=name", *wanted]
    assert lines[1].endswith(",-5.0")
    again = tables.read_text(tmp_path / "x.csv")
    assert again["=name"].tolist() == [*texts[:-1], "=1"]  # which a person had quoted
    (tmp_path / "headless.csv").write_text("1,2\n'=x,3\n")
    assert tables.read_text(tmp_path / "headless.csv")["x0"].tolist() == ["1", "=x"]


def test_whatever_a_reader_raises_is_one_error_that_names_the_file(tmp_path):
    for error in (RecursionError("too deep"), OverflowError("10**400"), AssertionError(), KeyError("x"), MemoryError()):

        def fail(path, error=error):
            raise error

        odd = formats.Format((".odd",), "table", fail, fail)
        with pytest.raises(errors.DataError, match=r"a\.odd can't be read"):
            odd.read(tmp_path / "a.odd")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.npy", b"\x93NUMPY\x01\x00\x10\x00(" + b" " * 15),
        ("a.csv", b"a,b\n1,1e400\n" + b"2,3\n" * 9),
        ("a.wav", b"RIFF"),
    ],
)
def test_odd_files_are_one_error(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(errors.DataError, match=name.replace(".", r"\.")):
        data.load(tmp_path / name, window=2 if name.endswith("wav") else None)


def test_what_does_not_fit_into_memory_is_refused_before_it_is_allocated(monkeypatch, tmp_path):
    assert 2**20 < memory.available() <= 2**63
    monkeypatch.setattr(memory, "available", lambda: 2**20)
    np.save(tmp_path / "x.npy", np.zeros((200, 1000), np.float32))
    with pytest.raises(errors.DataError, match=r"x\.npy would take 1 MiB of memory, of which 1 MiB are free"):
        data.load(tmp_path / "x.npy")


def many_ones(path):
    with gzip.open(path, "wb") as file:
        file.write(b"1\n" * 2**20)


def one_long_text(path):
    frame = pd.DataFrame({"text": ["y" * 2**20] * 64, "number": np.arange(64)})
    frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_feather(path)


def one_packed_batch(path):
    pd.DataFrame({"a": np.zeros(2**21)}).to_feather(path, chunksize=2**21)
    assert path.stat().st_size < 2**18


def nothing_many_times(path):
    pyarrow.feather.write_feather(pyarrow.table({"a": pyarrow.nulls(2**21)}), path, chunksize=2**21)


def views_of_one_text(path):
    text = pyarrow.py_buffer(b"y" * 2**20)
    views = np.tile(np.array([2**20, int.from_bytes(b"yyyy"), 0, 0], "<i4"), 100)
    column = pyarrow.Array.from_buffers(pyarrow.string_view(), 100, [None, pyarrow.py_buffer(views.tobytes()), text])
    pyarrow.feather.write_feather(pyarrow.table({"a": column}), path)


def long_texts(path):
    path.write_bytes(b"text,number\n" + (b"y" * 2**20 + b",1\n") * 3)


def one_string_of_a_workbook(path):
    pd.DataFrame({"text": ["y" * 30_000] * 300}).to_excel(path, index=False)


def zeros_of_matlab(path):
    scipy.io.savemat(path, {"x": np.zeros((2**20, 1))}, do_compression=True)


def zeros_of_hdf5(path):
    with h5py.File(path, "w", userblock_size=512) as file:
        file.create_dataset("x", (2**40, 2), "f4", chunks=(2**10, 2))  # nothing of it is stored
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM")


def one_long_category(path):
    path.write_text(f"@relation r\n@attribute a {{p,{'q' * 2**16}}}\n@data\n" + "p\n" * 100)


def many_objects(path):
    path.write_text("[" + ",".join(['{"a": 1}'] * 50_000) + "]")


def zeros_in_an_archive(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.png", bytes(2**24))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.csv.gz", many_ones),
        ("a.csv", long_texts),
        ("a.parquet", one_long_text),
        ("a.feather", one_long_text),
        ("b.feather", one_packed_batch),
        ("c.feather", nothing_many_times),
        ("d.feather", views_of_one_text),
        ("a.xlsx", one_string_of_a_workbook),
        ("a.mat", zeros_of_matlab),
        ("b.mat", zeros_of_hdf5),
        ("a.arff", one_long_category),
        ("a.json", many_objects),
        ("a.zip", zeros_in_an_archive),
    ],
)
def test_a_small_file_that_becomes_large_is_refused_before_it_does(tmp_path, monkeypatch, name, write):
    write(tmp_path / name)
    monkeypatch.setattr(memory, "available", lambda: 2**23)
    with pytest.raises(errors.DataError, match=r"would take [\d,]+\.?\d* .iB of memory"):
        data.load(tmp_path / name)


def test_an_archive_that_does_not_fit_on_the_disk_is_not_unpacked(tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("0.png")
        member.size = 2**22
        archive.addfile(member, io.BytesIO(bytes(member.size)))
    monkeypatch.setattr(memory.shutil, "disk_usage", lambda folder: argparse.Namespace(free=2**20))
    with pytest.raises(errors.DataError, match="would take 4 MiB on the disk"):
        data.load(tmp_path / "a.tar.gz")


def test_an_image_without_pixels_is_refused():
    with pytest.raises(errors.DataError, match="claims 0 × 9 pixels"):
        codec.check_pixels(codec.Header(9, 0, 3, "uint16", False, "TIFF"), "a.tif", 100)


def test_a_tiff_whose_page_follows_itself_is_refused(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif", np.zeros((9, 9, 5), np.uint16), photometric="minisblack", planarconfig="contig"
    )
    content = bytearray((tmp_path / "a.tif").read_bytes())
    first = int.from_bytes(content[4:8], "little")
    end = first + 2 + 12 * int.from_bytes(content[first : first + 2], "little")
    content[end : end + 4] = content[4:8]
    (tmp_path / "a.tif").write_bytes(content)
    with (tmp_path / "a.tif").open("rb") as file, pytest.raises(errors.DataError, match="follow itself"):
        codec._tiff_headers(codec.Content(file, "a.tif"))


@pytest.mark.parametrize("compression", ["uncompressed", "lz4", "zstd"])
def test_what_an_arrow_file_takes_is_read_from_its_metadata(tmp_path, compression):
    frame = pd.DataFrame(
        {
            "number": np.zeros(3000),
            "text": ["ab"] * 3000,
            "kind": pd.Categorical(["p", "q", "r"] * 1000),
            "none": [None] * 3000,
        }
    )
    frame.to_feather(tmp_path / "a.feather", compression=compression, chunksize=1000)
    taken = arrow.unpacked(tmp_path / "a.feather")
    assert 4 * 3000 * 8 <= taken < 5 * 3000 * 8
    assert taken <= sum(frame.memory_usage(deep=True)) + 10_000
    pd.testing.assert_frame_equal(data.read_table(tmp_path / "a.feather"), frame)


def test_a_packed_batch_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    one_packed_batch(tmp_path / "a.feather")
    monkeypatch.setattr(memory, "available", lambda: 2**23)
    monkeypatch.setattr(pyarrow.ipc, "open_file", lambda path: pytest.fail("was unpacked"))
    with pytest.raises(errors.DataError, match="would take 16 MiB of memory"):
        data.read_table(tmp_path / "a.feather")


def test_damaged_places_of_texts_in_a_feather_file_are_refused(tmp_path):
    path = tmp_path / "a.feather"
    frame = pd.DataFrame({"text": [f"{i:03}" for i in range(50)]})
    pyarrow.feather.write_feather(pyarrow.Table.from_pandas(frame), path, compression="uncompressed")
    content = path.read_bytes()
    assert content.count((75).to_bytes(4, "little")) == 1  # where the 25th text begins
    path.write_bytes(content.replace((75).to_bytes(4, "little"), (2**30).to_bytes(4, "little")))
    with pytest.raises(errors.DataError, match=r"a\.feather can't be read"):
        data.read_table(path)


def linked(file, name):
    file[name] = h5py.ExternalLink("other.h5", "x")


def linked_within(file, name):
    file["elsewhere"] = h5py.ExternalLink("other.h5", "x")
    file[name] = h5py.SoftLink("/elsewhere")


def stored_elsewhere(file, name):
    file.create_dataset(name, (3, 2), "i8", external=[("other.h5", 0, 48)])


def put_together(file, name):
    layout = h5py.VirtualLayout((3, 2), "i8")
    layout[:] = h5py.VirtualSource("other.h5", "x", (3, 2))
    file.create_virtual_dataset(name, layout)


def of_one_huge_chunk(file, name):
    file.create_dataset(name, (3, 2), "f4", maxshape=(None, 2), chunks=(2**22, 2), compression="gzip")


@pytest.mark.parametrize(
    ("store", "said"),
    [
        (linked, "is a link, which is not followed"),
        (linked_within, "is a link, which is not followed"),
        (stored_elsewhere, "are in other files"),
        (put_together, "are in other files"),
        (of_one_huge_chunk, "would take 32 MiB of memory"),
    ],
)
@pytest.mark.parametrize("name", ["a.mat", "a.h5ad", "sparse.h5ad"])
def test_an_hdf5_file_reads_no_other_file_and_takes_no_more_memory_than_there_is(
    tmp_path, monkeypatch, store, said, name
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(memory, "available", lambda: 2**23)
    with h5py.File("other.h5", "w") as file:
        file["x"] = np.arange(6).reshape(3, 2)
    with h5py.File(name, "w", userblock_size=512) as file:
        group = file.create_group("X") if name.startswith("sparse") else file
        store(group, "data" if name.startswith("sparse") else "X")
        for part in ("indices", "indptr") if name.startswith("sparse") else ():
            group[part] = np.arange(3)
    if name.endswith(".mat"):
        with (tmp_path / name).open("r+b") as file:
            file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM")
    with pytest.raises(errors.DataError, match=said):
        data.load(name) if name.endswith(".mat") else sparse.read(name)


@pytest.mark.parametrize("name", ["dense.h5ad", "sparse.h5ad"])
def test_texts_in_place_of_a_matrix_are_refused(tmp_path, name):
    with h5py.File(tmp_path / name, "w") as file:
        if name.startswith("dense"):
            file.create_dataset("X", data=[["a"], ["b"]], dtype=h5py.string_dtype())
        else:
            for part in ("data", "indices", "indptr"):
                file.create_dataset(f"X/{part}", data=["a", "b"], dtype=h5py.string_dtype())
    with pytest.raises(errors.DataError, match="X is not of numbers"):
        sparse.read(tmp_path / name)


def test_a_codec_whose_arrays_are_no_archive_is_one_message(tmp_path):
    (tmp_path / "codec.json").write_text('{"format": 1}')
    (tmp_path / "weights.npz").write_bytes(b"PK\3\4 no archive")
    with pytest.raises(errors.RunError, match="holds no codec that can be read"):
        compression.load(tmp_path)


def test_the_middle_of_a_long_message_is_left_out():
    message = str(errors.DataError("given: " + "(" * 10_000 + " expected: a number"))
    assert message.startswith("given: (")
    assert message.endswith("( expected: a number")
    assert len(message) < 1600


def test_the_limit_on_address_space_counts():
    program = "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))\n"
    program += "from flaxae.data import memory; print(memory.available())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2**32


def test_few_programs_are_compiled_whatever_the_lengths(rng):
    x = rng.normal(size=(1100, 5)).astype(np.float32)
    model = flaxae.build(CONFIG, (5,))
    detector = anomaly.fit(x[:100], kind="tabular", epochs=1, config=CONFIG)
    uses = [
        lambda n: training.apply(Autoencoder.reconstruct, model, x[:n]),
        lambda n: detector.score(x[:n]),
        lambda n: anomaly.fit(x[: 200 + n // 2, : 1 + n % 5], kind="tabular", epochs=1).score(x[:n, : 1 + n % 5]),
    ]
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if name.endswith("backend_compile_duration") else None
    )
    for use in uses:
        for n in (2**i for i in range(11)):
            use(n)
        before = len(compiled)
        for n in (3, 7, 11, 100, 101, 999, 1025, 1100):
            assert len(use(n)) == n
        assert len(compiled) == before


def test_what_is_masked_is_not_trained_on(rng):
    x = rng.normal(size=(64, 4)).astype(np.float32)
    mask = rng.random(x.shape) < 0.3

    def trained(**garbage):
        model = flaxae.build(CONFIG, (4,))
        training.fit(model, np.ma.array(np.where(mask, garbage["value"], x), mask=mask), epochs=1, batch_size=16)
        return jax.tree.leaves(flaxae.autoencoder.nnx.state(model))

    for a, b in zip(trained(value=np.float32(0)), trained(value=np.float32(1e30)), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    as_ever = np.ma.array(x)
    assert batches.unmasked(as_ever) is not as_ever
    np.testing.assert_array_equal(batches.unmasked(as_ever), x)
    assert fingerprint(np.ma.array(x, mask=mask)) != fingerprint(x)
    with pytest.raises(errors.DataError, match="target is masked"):
        batches.unmasked({"x": x, "target": np.ma.array(x, mask=mask)})


def test_what_is_masked_is_missing_in_a_table_and_refused_where_nothing_may_be(rng):
    x = rng.normal(size=(60, 3))
    masked = np.ma.array(x, mask=np.zeros_like(x, bool))
    masked[5, 1] = np.ma.masked
    with pytest.warns(UserWarning, match=r"'x1': 1, filled by what the others"):
        table = data.load(masked)
    assert table.columns == ("x0", "x1", "x1 missing", "x2")
    detector = anomaly.fit(x.astype(np.float32), kind="tabular", epochs=1, config=CONFIG)
    with pytest.raises(errors.DataError, match="NaN"):
        detector.score(masked)
    with pytest.raises(ValueError, match="NaN"):
        flaxae.AutoencoderTransformer(epochs=1).fit(masked)
