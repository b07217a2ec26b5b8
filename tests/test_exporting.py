"""Exports: of every preset the exported program gives what flaxae gives; mistakes are noticed; weights come back."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
import warnings

import jax
import numpy as np
import pandas as pd
import pytest
from jax import export

import flaxae
from flaxae import anomaly, command, errors, exporting, finetuning, presets
from flaxae.data import Encoding, Scaling
from flaxae.exporting import onnx, saved_model, stablehlo, tracing
from flaxae.likelihoods import Gaussian
from flaxae.nn.unet import UNet
from flaxae.trained import Trained, TrainedClassifier, TrainedDetector

try:
    import onnxruntime
except ImportError:
    onnxruntime = None

try:
    with warnings.catch_warnings():  # of its own
        warnings.simplefilter("ignore")
        import tensorflow
except ImportError:
    tensorflow = None

BYTES = Scaling((0.0,), (255.0,), "uint8")


def of_images(config, shape=(9, 12, 1), seed=0):
    return Trained(flaxae.build(config, shape, seed=seed), BYTES, shape, "image", None)


def table(rows=40):
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "height": rng.normal(170, 10, rows),
            "children": rng.integers(0, 4, rows),
            "country": np.array(["DE", "FR", None, "IT"], object)[rng.integers(0, 4, rows)],
            "smokes": rng.integers(0, 2, rows).astype(bool),
        }
    )


def of_table():
    frame = table()
    encoding = Encoding.fit(frame, np.arange(len(frame)))
    x = encoding(frame.dropna())
    model = flaxae.build(presets.vanilla(4, Gaussian()), x.shape[1:])
    return Trained(model, Scaling.fit(x, encoding.indicators), x.shape[1:], "tabular", encoding.features, encoding)


def agree(program):
    """Compare a program, written and read, with flaxae: in StableHLO, and by other runtimes that are there."""
    called = export.deserialize(bytearray(stablehlo.exported(program).serialize())).call
    runtimes = [called]
    if onnxruntime is not None:
        runtimes.append(by_onnx(program))
    if tensorflow is not None:
        runtimes.append(by_tensorflow(program))
    for x in program.examples():
        expected = program.reference(x)
        for run in runtimes:
            made = run(x)
            assert made.keys() >= expected.keys()
            for name, value in expected.items():
                assert made[name].dtype == value.dtype
                close = 1.0 if value.dtype.kind == "u" else 2e-3 * max(1e-6, np.nanmax(np.abs(value)))
                np.testing.assert_allclose(made[name].astype(float), value.astype(float), atol=close)


def by_onnx(program):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "program.onnx")
        onnx.write(program, path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda x: dict(zip(names, session.run(None, {"x": x}), strict=True))


def by_tensorflow(program):
    with tempfile.TemporaryDirectory() as folder:
        saved_model.write(program, pathlib.Path(folder, "program"))
        loaded = tensorflow.saved_model.load(str(pathlib.Path(folder, "program")))
    call = loaded.signatures["serving_default"]
    return lambda x, _=loaded: {name: value.numpy() for name, value in call(x=tensorflow.constant(x)).items()}


# Presets of the same networks, which differ only in what they are trained by, are exported alike.
NETWORKS = {
    (type(config.body), getattr(config.body, "pool", None), type(config.head)): config
    for config in (make() for make in presets.PRESETS.values())
}


@pytest.mark.parametrize("config", NETWORKS.values(), ids=map(repr, range(len(NETWORKS))))
def test_of_every_preset_the_program_agrees(config):
    agree(tracing.programs(of_images(small(config)))["reconstruct"])


def small(config):
    """The config with hidden layers of 16 units, which compile and are saved more quickly."""
    if not isinstance(config.body, flaxae.MLP):
        return config
    return dataclasses.replace(config, body=dataclasses.replace(config.body, hidden=(16,) * len(config.body.hidden)))


def test_images_of_any_size_where_the_model_takes_any():
    trained = of_images(flaxae.Config(body=UNet((4, 6), 1), head=presets.unet().head, likelihood=Gaussian()))
    last = trained.model.decoder.last.kernel
    last[...] = 0.1 * jax.random.normal(jax.random.key(0), last.shape)  # which otherwise changes nothing
    found = tracing.programs(trained)
    assert found.keys() == {"reconstruct"}  # its code is a tree
    assert {x.shape[1:] for x in found["reconstruct"].examples()} == {(4, 8, 1), (12, 17, 1)}
    agree(found["reconstruct"])


def test_a_table_keeps_its_columns_and_categories():
    found = tracing.programs(of_table())
    assert [column["name"] for column in found["reconstruct"].columns] == ["height", "children", "country", "smokes"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that values are missing
        for program in found.values():
            agree(program)


@pytest.mark.parametrize(("kind", "shape"), [("tabular", (5,)), ("image", (48, 50, 1))])
def test_a_detector_is_exported_with_its_score_and_threshold(kind, shape):
    x = np.random.default_rng(0).uniform(size=(60, *shape)).astype(np.float32)
    detector = anomaly.fit(x, kind=kind, epochs=1)
    what = TrainedDetector(Trained(detector.models[0], Scaling.fit(x), shape, kind, None), detector)
    program = tracing.programs(what)["score"]
    agree(program)
    low, high = np.sort(what.score(program.examples()[0]))[-2:]
    made = jax.jit(tracing.programs(what, threshold=float(low + high) / 2)["score"].function)(program.examples()[0])
    assert made["anomalous"].sum() == 1
    np.testing.assert_allclose(made["p_value"], what.p_values(program.examples()[0]), atol=2 / 12)


def test_the_folder_is_run_without_flaxae_and_says_what_it_holds(tmp_path, capsys):
    trained = of_images(presets.top_k(8, active=2))
    flaxae.save(trained, tmp_path / "saved")
    assert command.main(["export", str(tmp_path / "saved"), "--programs", "encode", "reconstruct"]) == 0
    said = capsys.readouterr().out
    assert "agrees with flaxae" in said
    folder = tmp_path / "saved/exports/stablehlo"
    told = json.loads((folder / "export.json").read_text())["programs"]
    assert told["encode"]["takes"] == {"shape": ["examples", 9, 12, 1], "dtype": "uint8"}
    assert told["encode"]["gives"]["code"]["shape"] == ["examples", 8]
    np.save(tmp_path / "x.npy", np.full((2, 9, 12, 1), 7, np.uint8))
    use = [sys.executable, folder / "use.py", "encode", tmp_path / "x.npy", tmp_path / "z.npz"]
    subprocess.run(use, check=True, cwd=tmp_path)
    expected = trained.encode(np.full((2, 9, 12, 1), 7, np.uint8))
    np.testing.assert_allclose(np.load(tmp_path / "z.npz")["code"], expected, atol=1e-5)
    assert isinstance(flaxae.load(tmp_path / "saved"), Trained)  # its manifest still holds


def test_a_program_that_gives_other_results_is_not_kept(tmp_path, monkeypatch):
    right = tracing.programs

    def wrong(what, threshold=None):
        return {name: p._replace(function=lambda x, p=p: {"reconstruction": 255 - p.function(x)["reconstruction"]})
                for name, p in right(what, threshold).items()}  # fmt: skip

    monkeypatch.setattr(exporting, "programs", wrong)
    with pytest.raises(errors.RunError, match="differs from flaxae's"):
        flaxae.export(of_images(presets.vanilla(4)), "reconstruct", folder=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["autoencoder", "table", "detector", "classifier"])
def test_safetensors_come_back(kind, tmp_path):
    pytest.importorskip("safetensors")
    x = np.random.default_rng(0).integers(0, 256, (60, 9, 12, 1)).astype(np.uint8)
    if kind == "detector":
        detector = anomaly.fit(x / np.float32(255), kind="image", epochs=1, score="reconstruction")
        what = TrainedDetector(Trained(detector.models[0], BYTES, x.shape[1:], "image", None), detector)
    elif kind == "classifier":
        trained = of_images(presets.vanilla(4))
        what = TrainedClassifier(
            trained, finetuning.Classifier(trained.model, 4, 3, rngs=flaxae.trained.nnx.Rngs(1)), ("a", "b", "c")
        )
    else:
        what, x = (of_images(presets.transformed(4)), x) if kind == "autoencoder" else (of_table(), table().dropna())
    flaxae.export(what, folder=tmp_path / "out", format="safetensors")
    (tmp_path / "out/manifest").unlink()  # as it comes from a hub
    back = flaxae.load(tmp_path / "out")
    assert type(back) is type(what)
    method = {"detector": "score", "classifier": "probabilities"}.get(kind, "encode")
    np.testing.assert_allclose(getattr(back, method)(x), getattr(what, method)(x), rtol=1e-5, atol=1e-6)
    card = (tmp_path / "out/README.md").read_text()
    assert card.startswith("---\nlibrary_name: flaxae\n")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    path = tmp_path / "out/model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(errors.RunError, match="no model that can be read"):
        flaxae.load(tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("nowhere", "is not a run"),
        ("saved --programs scor", "Unknown program 'scor'"),
        ("saved --threshold 2", "--threshold is of detectors"),
    ],
)
def test_mistakes_are_one_message(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flaxae.save(of_images(presets.vanilla(4)), pathlib.Path("saved"))
    assert command.main(["export", *arguments.split()]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert len(told.splitlines()) == 1
