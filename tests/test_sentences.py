"""Sentences as vectors: what a bag is, what is trained on, the estimator, the files, the experiment."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import HashingVectorizer, TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity

import flaxae
from flaxae import errors, objectives, sentences
from flaxae.command import main as command_line
from flaxae.sentences import Changed, Pieces, SentenceEmbedder

WHO, DOES, WHAT = (
    ("a man", "the woman", "a child", "my dog"),
    ("plays", "likes", "carries"),
    ("guitars", "balls", "tea"),
)
TEXTS = [f"{who} {does} {what}" for who in WHO for does in DOES for what in WHAT]


@pytest.fixture(scope="module")
def embedder() -> SentenceEmbedder:
    return SentenceEmbedder(16, features=512, epochs=40, batch_size=16, learning_rate=1e-3, random_state=0).fit(TEXTS)


@given(st.lists(st.text("ab ñ字1", max_size=30), min_size=1, max_size=4))
def test_a_bag_has_the_n_grams_of_its_words(texts):
    pieces = Pieces.of(texts, 64)
    hasher = HashingVectorizer(analyzer="char_wb", ngram_range=(2, 4), n_features=64, norm=None)
    counts = np.zeros((len(texts), 64))
    for i, text in enumerate(texts):
        for piece in sentences.PIECE.findall(text):
            counts[i] += hasher.transform([piece]).toarray()[0]
    weights = np.linspace(0.5, 2, 64).astype(np.float32)
    made = pieces.bags(pieces.of_sentence, weights).toarray()
    wanted = np.sign(counts) * np.sqrt(np.abs(counts)) * weights
    lengths = np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(made, 8 * wanted / np.where(lengths > 0, lengths, 1), atol=1e-5)


def test_pairs_are_the_same_for_each_step_and_of_all_similarities():
    pieces = Pieces.of(TEXTS, 512)
    batches = Changed(pieces, np.ones(512, np.float32), np.arange(len(TEXTS)), 12, seed=3)
    assert len(batches) == 3
    first = [batch for batch, _ in zip(batches(0), range(40), strict=False)]
    again = next(batches(5))
    np.testing.assert_array_equal(first[5]["x"], again["x"])
    np.testing.assert_array_equal(first[5]["target"], again["target"])
    assert sorted(map(tuple, np.concatenate([batch["target"] for batch in first[:3]]))) == sorted(
        map(tuple, pieces.bags(pieces.of_sentence, np.ones(512, np.float32)).toarray())
    )
    cosines = np.concatenate([np.diag(cosine_similarity(batch["x"], batch["target"])) for batch in first])
    assert np.histogram(cosines, 4, (0, 1))[0].min() > 10


def test_the_objective_is_what_its_equation_says(rng):
    config = flaxae.Config(
        body=flaxae.MLP(()), likelihood=flaxae.likelihoods.Gaussian(), objective=objectives.Similarity(7.0)
    )
    model = flaxae.build(config, (5,))
    x, target = (rng.normal(size=(3, 5)).astype(np.float32) for _ in range(2))
    z, whole = (np.asarray(model.encode(part)) for part in (x, target))
    lost = np.square(np.asarray(model.decode(z)) - target).sum(1) / np.square(target).sum(1)
    apart = np.diag(cosine_similarity(whole, z)) - np.diag(cosine_similarity(target, x))
    found = config.objective(model, {"x": x, "target": target}, flaxae.training.fitting.keys(0)[0])
    np.testing.assert_allclose(found, lost + 7 * apart**2, rtol=1e-4)


def test_codes_tell_how_similar_sentences_are(embedder):
    codes = embedder.transform(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(codes, axis=1), 1, rtol=1e-5)
    full = cosine_similarity(embedder.bags(TEXTS))
    upper = np.triu_indices(len(TEXTS), 1)
    assert np.corrcoef((codes @ codes.T)[upper], full[upper])[0, 1] > 0.9
    misspelt, other = embedder.transform(["a man plays guitar", "the woman likes tea"])
    own = codes[TEXTS.index("a man plays guitars")]
    assert own @ misspelt > 0.7 > own @ other
    assert not embedder.transform([" ", ""]).any()


def test_it_is_an_estimator_that_saves_without_its_sentences(embedder, tmp_path):
    assert clone(embedder).get_params() == embedder.get_params()
    assert embedder.get_feature_names_out()[0] == "sentenceembedder0"
    again = SentenceEmbedder(**embedder.get_params()).fit(TEXTS)
    np.testing.assert_array_equal(again.transform(TEXTS), embedder.transform(TEXTS))
    embedder.save(tmp_path / "saved")
    loaded = flaxae.load(tmp_path / "saved")
    np.testing.assert_array_equal(loaded.transform(TEXTS), embedder.transform(TEXTS))
    held = b"".join(path.read_bytes() for path in (tmp_path / "saved").rglob("*") if path.is_file())
    assert b"guitars" not in held


@pytest.mark.parametrize("given", ["one text", [1, 2], ["the same", "the same", " "]])
def test_what_is_no_list_of_sentences_is_refused(given):
    with pytest.raises(errors.DataError, match="expected"):
        SentenceEmbedder().fit(given)


def test_sentences_are_read_from_lines_and_columns(tmp_path, capsys):
    (tmp_path / "lines.txt").write_bytes("\ufeffone, two\r\n\r\nnaïve 字".encode())
    assert sentences.read(tmp_path / "lines.txt") == ["one, two", "naïve 字"]
    assert "1 of 3 rows have no sentence" in capsys.readouterr().out
    frame = pd.DataFrame({"kind": ["a", "b"], "text": ["a long sentence, with a comma", None], "score": [1, 2]})
    frame.to_csv(tmp_path / "table.csv", index=False)
    assert sentences.read(tmp_path / "table.csv") == ["a long sentence, with a comma"]
    assert "'text'" in capsys.readouterr().out
    assert sentences.read(tmp_path / "table.csv", ["kind"]) == ["a", "b"]
    with pytest.raises(errors.DataError, match="Did you mean 'text'"):
        sentences.read(tmp_path / "table.csv", ["texts"])
    (tmp_path / "pairs.csv").write_text("a man sits here,a man stands here,2.5\nb,c,1\nd,e,0\n")
    assert sentences.read_pairs(tmp_path / "pairs.csv")[0] == ["a man sits here", "b", "d"]
    assert "no line of names" in capsys.readouterr().out
    np.testing.assert_array_equal(sentences.read_pairs(tmp_path / "pairs.csv")[2], [2.5, 1, 0])


def test_the_nearest_are_those_of_all(rng):
    x, queries = rng.normal(size=(50, 4)), rng.normal(size=(3, 4))
    found, cosines = sentences.nearest(x, queries, 5)
    np.testing.assert_array_equal(found, np.argsort(-queries @ x.T, axis=1)[:, :5])
    np.testing.assert_allclose(cosines, -np.sort(-queries @ x.T, axis=1)[:, :5], rtol=1e-6)


def test_baselines_are_those_of_scikit_learn():
    methods = sentences.baselines(TEXTS, 4)
    words = TfidfVectorizer().fit(TEXTS)
    lsa = TruncatedSVD(4, random_state=0).fit(words.transform(TEXTS)).transform(words.transform(TEXTS))
    for name, wanted in (("tf-idf of words", words.transform(TEXTS)), ("LSA, 4 numbers", lsa)):
        found = sentences.similarities(methods[name], (TEXTS, TEXTS[::-1]))
        np.testing.assert_allclose(found, np.diag(cosine_similarity(wanted, wanted[::-1])), atol=1e-6)
    assert np.asarray(methods["mean word vectors, 4 numbers"](["unknown words"])).shape == (1, 4)


def test_embed_trains_finds_and_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flaxae.experiments.embed.STEPS", 4)
    (tmp_path / "texts.txt").write_text("\n".join([*TEXTS, TEXTS[0]]))
    pairs = pd.DataFrame({"a": TEXTS[:12], "b": TEXTS[1:13], "similarity": range(12)})
    pairs.to_csv("pairs.csv", index=False)
    command = "embed --data texts.txt --pairs pairs.csv --latent 8 --batch-size 16"
    assert command_line([*command.split(), "--query", "my dog has tea"]) == 0
    folder = tmp_path / "runs/embed/1"
    measured = json.loads((folder / "results.json").read_text())
    assert measured["train/sentences"] == 37
    assert -1 <= measured["pairs/flaxae"] <= 1
    assert {path.stem for path in (folder / "figures").iterdir()} == {"curves", "map"}
    vectors = np.load(folder / "vectors.npz")["x"]
    embedder = flaxae.load(folder)
    np.testing.assert_array_equal(vectors, embedder.transform([*TEXTS, TEXTS[0]]))
    shown = capsys.readouterr().out
    assert "The nearest sentences" in shown

    (tmp_path / "new.txt").write_text("a man has tea\n=a formula, in a spreadsheet")
    used = ["--from", "runs/embed/1", "--input", "new.txt"]
    assert command_line(["embed", *used, "--output", "new.parquet"]) == 0
    table = pd.read_parquet("new.parquet")
    assert list(table.columns) == ["sentence", *(f"z{i}" for i in range(8))]
    np.testing.assert_allclose(table.iloc[:, 1:], embedder.transform(table.sentence.tolist()), atol=1e-6)
    assert command_line(["embed", *used, "--output", "new.npz"]) == 0
    assert np.load("new.npz")["x"].shape == (2, 8)
    assert command_line(["embed", "--from", "runs/embed/1", "--query", TEXTS[5], "--count", "1"]) == 0
    assert TEXTS[5] in capsys.readouterr().out.splitlines()[-2]
    np.savez(folder / "vectors.npz", x=vectors[::-1])
    assert command_line(["embed", "--from", "runs/embed/1", "--query", TEXTS[5]]) == 2
    assert "vectors.npz is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "--data sentences.txt"),
        ("--data x.txt --window 3", "--window has no meaning"),
        ("--data x.txt --latent 0", "--latent is 0"),
        ("--data missing.txt", "missing.txt"),
        ("--from runs/embed/1 --input x.txt", "go together"),
    ],
)
def test_what_embed_can_not_do_is_one_message(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    try:
        status = command_line(["embed", *flags.split()])
    except SystemExit as refused:
        status = refused.code
    assert status == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
