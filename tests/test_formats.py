"""The table of formats is the one place that knows them."""

import io
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from flaxae import command, data
from flaxae.data import Signal, formats
from flaxae.errors import DataError

CONTENTS = {  # of each kind, what its formats hold alike
    "array": np.arange(12, dtype=np.float32).reshape(4, 3),
    "signal": Signal(np.linspace(-1, 1, 32, dtype=np.float32).reshape(16, 2), 8000),
    "table": np.arange(12, dtype=np.float32).reshape(4, 3),
    "image": np.full((16, 16, 3), 77, np.uint8),
}
LOSSY = (".jpg", ".jpeg", ".jfif", ".avif", ".heic", ".heif")


WRITTEN = [suffix for suffix in formats.suffixes() if formats.of(f"x{suffix}").writer is not None]


@pytest.mark.parametrize("suffix", [*WRITTEN, ".csv.gz", ".tsv.xz", ".csv.zip"])
def test_every_format_is_read_as_it_was_written(tmp_path, suffix):
    content = CONTENTS[formats.of(f"x{suffix}").kind]
    if suffix == ".pgm":
        content = content[..., :1]
    path = tmp_path / f"X{suffix.upper()}"
    data.write(path, content)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    if isinstance(content, Signal):
        read = data.read_signal(path)
        assert read.rate == content.rate
        if suffix not in (".ogg", ".opus", ".mp3"):  # which keep what is heard
            np.testing.assert_allclose(read.values, content.values, atol=2e-7)
        return
    read = data.read(path)
    assert read.dtype == content.dtype
    np.testing.assert_allclose(read, content, atol=2 if suffix in LOSSY else 0)


def test_a_suffix_is_of_one_format():
    assert len(set(formats.suffixes())) == len(formats.suffixes())
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in formats.suffixes())


def _read_pcm(path: pathlib.Path) -> Signal:
    return Signal(np.frombuffer(path.read_bytes(), np.float32)[:, None], None)


def _write_pcm(file: io.BufferedIOBase, path: pathlib.Path, signal: Signal) -> None:
    file.write(signal.values.astype(np.float32).tobytes())


def test_one_more_entry_is_one_more_format(tmp_path, monkeypatch, capsys):
    entry = formats.Format((".pcm",), "signal", _read_pcm, _write_pcm)
    monkeypatch.setattr(formats, "FORMATS", (*formats.FORMATS, entry))
    values = np.sin(np.arange(300, dtype=np.float32))[:, None]
    data.write(tmp_path / "x.pcm", Signal(values, 8000))
    np.testing.assert_array_equal(data.read_signal(tmp_path / "x.pcm").values, values)
    assert data.load(tmp_path / "x.pcm", window=20).train.shape[1:] == (20, 1)
    with pytest.raises(DataError, match=r"x\.pcm is a signal"):
        data.read(tmp_path / "x.pcm")
    for function in (data.read, data.read_signal, data.load):
        (tmp_path / "x.xyz").touch()
        with pytest.raises(DataError, match=r"\.wav.*\.pcm"):
            function(tmp_path / "x.xyz")


def test_a_format_that_lacks_a_package_names_the_extra(tmp_path, monkeypatch):
    def reader(*_):
        import a_package_that_is_nowhere  # noqa: F401

    (tmp_path / "x.png").touch()
    for extra, error in (("nowhere", DataError), (None, ImportError)):
        entry = formats.Format((".png",), "image", reader, reader, extra=extra)
        monkeypatch.setattr(formats, "FORMATS", (entry,))
        with pytest.raises(error, match=r"a_package_that_is_nowhere"):
            data.read(tmp_path / "x.png")
    monkeypatch.setattr(formats, "FORMATS", (formats.Format((".png",), "image", reader, reader, extra="nowhere"),))
    with pytest.raises(DataError, match=r'pip install "flaxae\[nowhere\]"'):
        data.write(tmp_path / "x.png", CONTENTS["image"])


def test_the_flags_tell_the_formats(capsys):
    with pytest.raises(SystemExit, match="0"):
        command.main(["denoise", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert shown.count(formats.listed("array", "signal", "table")) == 2  # --data and --input


def test_the_table_is_read_before_anything_heavy_is_imported():
    script = "import sys; from flaxae.data import formats; formats.listed(); print({'jax', 'numpy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
