import numpy as np
import pytest
from flax import nnx

from flaxae import autoencoder, data, errors, runs, trained
from flaxae.autoencoder import Config
from flaxae.likelihoods import Gaussian
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
    with pytest.raises(errors.RunError, match="does not describe a model"):
        trained.load(run[0])


def test_the_folder_of_a_detector_is_refused_with_what_to_call(run):
    config = run[0] / "config.json"
    config.write_text(config.read_text().replace('"model"', '"detector"'))
    with pytest.raises(errors.RunError, match=r"anomaly\.load\('.*detector'\)"):
        trained.load(run[0])
