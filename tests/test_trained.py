import json

import numpy as np
import pandas as pd
import pytest
from flax import nnx

import flaxae
from flaxae import anomaly, autoencoder, data, errors, finetuning, objectives, runs, trained
from flaxae.autoencoder import Config
from flaxae.corruptions import GaussianNoise
from flaxae.likelihoods import Gaussian
from flaxae.nn import heads
from flaxae.nn.heads import Deterministic
from flaxae.nn.mlp import MLP
from flaxae.training import checkpoints


@pytest.fixture
def table(rng):
    return data.load((rng.normal(size=(50, 4)) * [1, 10, 100, 1] + [0, 5, 0, 1000]).astype(np.float32))


@pytest.fixture
def run(table, tmp_path):
    """A run's folder with an untrained model in it, and the model."""
    config = Config(body=MLP((8,)), head=Deterministic(2), likelihood=Gaussian())
    model = autoencoder.build(config, table.shape)
    with runs.start("test", "a", trained.describe(config, table), resume=False, root=tmp_path) as run:
        checkpoints.save(run.checkpoints / "best", 0, nnx.split(model, nnx.Param, ...)[1:])
    return run.folder, model


def test_it_loads_the_same_function_and_works_in_the_data_s_units(run, table):
    folder, model = run
    loaded = trained.load(folder)
    scaled = table.scaling(table.test)
    np.testing.assert_allclose(loaded.encode(table.test), model.encode(scaled), atol=1e-5)
    np.testing.assert_allclose(loaded.decode(loaded.encode(table.test)), loaded.reconstruct(table.test), rtol=1e-5)
    expected = table.scaling.undo(np.asarray(model.reconstruct(scaled)))
    np.testing.assert_allclose(loaded.reconstruct(table.test), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wrong", [np.zeros((3, 5), np.float32), np.full((3, 4), np.nan, np.float32)])
def test_what_does_not_fit_is_refused(run, wrong):
    with pytest.raises(errors.DataError):
        trained.load(run[0]).encode(wrong)


def test_a_config_without_a_model_is_refused(run):
    config = run[0] / "config.json"
    config.write_text("{}")
    with pytest.raises(errors.RunError, match=r"config\.json is damaged"):
        trained.load(run[0])
    (run[0] / "manifest").unlink()
    with pytest.raises(errors.RunError, match="does not describe a model"):
        trained.load(run[0])


def test_a_data_frame_is_matched_by_the_names_of_its_columns(rng):
    frame = pd.DataFrame(rng.normal(size=(60, 3)) * [1, 10, 100], columns=["a", "b", "c"], index=range(7, 67))
    dataset = data.load(frame)
    model = autoencoder.build(Config(body=MLP((8,)), head=Deterministic(2), likelihood=Gaussian()), dataset.shape)
    loaded = trained.Trained(model, dataset.scaling, dataset.shape, dataset.kind, dataset.columns, dataset.encoding)
    turned = frame[["c", "a", "b"]].assign(more=1.0)
    np.testing.assert_array_equal(loaded.encode(turned), loaded.encode(frame.to_numpy(np.float32)))
    made = loaded.reconstruct(turned)
    assert made.columns.tolist() == ["a", "b", "c"]
    assert made.index.tolist() == frame.index.tolist()
    np.testing.assert_allclose(made, loaded.reconstruct(frame.to_numpy(np.float32)), rtol=1e-4, atol=1e-4)
    with pytest.raises(errors.DataError, match="Unknown column 'b'"):
        loaded.encode(frame.drop(columns="b"))


def test_a_data_frame_for_a_model_of_images_is_refused(digits):
    model = autoencoder.build(Config(body=MLP((8,))), (8, 8, 1))
    plain = trained.Trained(model, data.Scaling((0.0,), (1.0,), "float32"), (8, 8, 1), "image", None)
    with pytest.raises(errors.DataError, match="named columns"):
        plain.encode(pd.DataFrame(digits.reshape(len(digits), -1)))


def test_what_is_saved_is_loaded_as_what_it_was(run, table, tmp_path, digits):
    loaded = trained.load(run[0])
    flaxae.save(loaded, tmp_path / "again")
    again = flaxae.load(tmp_path / "again")
    np.testing.assert_array_equal(again.reconstruct(table.test), loaded.reconstruct(table.test))

    x = table.scaling(table.train)
    settings = {"kind": "tabular", "epochs": 1, "score": "reconstruction", "config": loaded.model.config}
    detector = trained.TrainedDetector(loaded, anomaly.fit(x, **settings))
    flaxae.save(detector, tmp_path / "detector")
    found = flaxae.load(tmp_path / "detector")
    assert isinstance(found, trained.TrainedDetector)
    for name in ("score", "p_values", "contributions"):
        given, saved = (getattr(which, name)(table.test) for which in (detector, found))
        np.testing.assert_allclose(given, saved, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.score(table.test), detector.detector.score(table.scaling(table.test)), rtol=1e-5)
    with pytest.raises(errors.RunError, match="not an autoencoder"):
        trained.autoencoder_of(tmp_path / "detector")
    flaxae.save(detector.detector, tmp_path / "bare")
    assert isinstance(flaxae.load(tmp_path / "bare"), anomaly.Detector)

    labels = (table.train[:, 0] > 0).astype(int)
    probe = finetuning.linear_probe(loaded.encode(table.train), labels)
    classifier = trained.TrainedClassifier(loaded, finetuning.on_probe(loaded.model, probe), ("low", "high"))
    flaxae.save(classifier, tmp_path / "classifier")
    predicted = flaxae.load(tmp_path / "classifier").predict(table.test)
    assert predicted.tolist() == classifier.predict(table.test).tolist()
    assert set(predicted) <= {"low", "high"}
    np.testing.assert_array_equal(
        trained.autoencoder_of(tmp_path / "classifier").encode(table.test), loaded.encode(table.test)
    )

    estimator = flaxae.AutoencoderTransformer(latent=2, hidden=(8,), epochs=1, random_state=0).fit(table.train)
    flaxae.save(estimator, tmp_path / "estimator")
    np.testing.assert_array_equal(
        flaxae.load(tmp_path / "estimator").transform(table.test), estimator.transform(table.test)
    )
    with pytest.raises(errors.RunError, match="something in it already"):
        flaxae.save(estimator, tmp_path / "estimator")


def test_a_conditional_model_is_saved_with_its_condition(tmp_path, digits):
    model = autoencoder.build(Config(body=MLP((8,))), (8, 8, 1), conditions=3)
    flaxae.save(model, tmp_path / "conditional")
    loaded = flaxae.load(tmp_path / "conditional").model
    batch = {"x": digits[:4], "condition": np.ones((4, 3), np.float32)}
    np.testing.assert_array_equal(loaded.reconstruct(batch), model.reconstruct(batch))


def test_a_model_put_together_by_hand_says_why_it_is_not_saved(tmp_path):
    built = autoencoder.build(Config(), (6,))
    own = autoencoder.Autoencoder(built.encoder, built.head, built.decoder, likelihood=Gaussian())
    with pytest.raises(errors.ConfigError, match="put together by hand"):
        flaxae.save(own, tmp_path / "own")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flat", "now", "hyper"),
    [
        (
            {"head": "gaussian", "objective": "elbo", "beta": 2.0, "free_bits": 0.5, "latent": 3, "binarise": True},
            Config(MLP((8,)), heads.Variational(3), objectives.Binarised(objectives.ELBO(2.0, 0.5))),
            ("beta", "free_bits"),
        ),
        (
            {"head": "top_k", "active": 2, "latent": 5, "corruption": "gaussian", "noise": 0.3, "clip": [0.0, 1.0]},
            Config(MLP((8,)), heads.TopK(5, 2), corruption=GaussianNoise(0.3, (0.0, 1.0))),
            (),
        ),
    ],
    ids=["variational", "denoising"],
)
def test_a_run_of_the_first_form_is_still_read(flat, now, hyper, tmp_path):
    """As version 0.1 wrote it: a flat config, and hyper-parameters beside the weights under other names."""
    body = {"kind": "MLP", "hidden": [8], "activation": "relu", "layer_norm": False, "dropout": 0.0}
    saved = {"body": body, "likelihood": {"kind": "Bernoulli"}, "objective": "likelihood", "noise": 0.0, **flat}
    assert Config.from_dict(saved) == now
    model = autoencoder.build(now, (6,), seed=3)
    _, params, rest = nnx.split(model, nnx.Param, ...)
    old = {name: autoencoder.Hyper(np.float32(7)) for name in ("noise", *hyper)}
    rest = nnx.State({**{name: part for name, part in rest.items() if name != "hyper"}, "hyper": nnx.State(old)})
    about = {"source": "x", "kind": "tabular", "shape": [6], "columns": None}
    about["scaling"] = {"offset": [0.0], "scale": [1.0], "dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps({"model": saved, "data": about}))
    checkpoints.save(tmp_path / "checkpoints" / "best", 4, (params, rest))
    loaded = trained.load(tmp_path).model
    x = np.random.default_rng(0).random((4, 6)).astype(np.float32)
    np.testing.assert_array_equal(loaded.encode(x), model.encode(x))
    assert {name: float(value[...]) for name, value in loaded.hyper.items()} == pytest.approx(now.hyper)
