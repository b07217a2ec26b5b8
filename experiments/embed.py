"""Embed: sentences as vectors, learnt from your own sentences alone; find similar ones.

    python run.py --exp embed --data sentences.txt

trains on the lines of a text file, or on a column of a table, in any language, for a minute or two for ten thousand
sentences on two CPU cores. The vectors are written to vectors.npz and the sentences, in that order, to sentences.csv in
the run's folder; the report has a map and the most similar pairs. A trained run finds and embeds:

    python run.py --exp embed --from runs/embed/1 --query "a man plays the guitar"
    python run.py --exp embed --from runs/embed/1 --input new.txt --output vectors.parquet

With `--pairs dev.csv`, two sentences and their similarity a row, the rank correlation is measured. With
`--encoder minilm --latent 32`, the vectors are those of a pre-trained model, made shorter.
"""

import hashlib

import numpy as np
from scipy.stats import spearmanr
from sklearn.cluster import KMeans
from sklearn.manifold import TSNE

from flaxae import atomic, data, experiments, runs, sentences, trained, vectors
from flaxae.errors import DataError, RunError
from flaxae.experiments import _flags, _steps
from flaxae.printing import say
from flaxae.runs import Run, plots, report
from flaxae.runs.report import Table
from flaxae.sentences import SentenceEmbedder
from flaxae.training import checkpoints
from flaxae.vectors import PretrainedEmbedder

EPOCHS, STEPS = 6, 200  # so many epochs, and for few sentences at least so many steps
MAPPED, GROUPS = 2000, 8  # sentences in the map, and groups that it is coloured by
COMPARED, PAIRS = 20_000, 15  # sentences among which the most similar pairs are looked for, and how many are shown
SHOWN = 120  # characters of a sentence in a table


def apply(config: _flags.Embed) -> None:
    """Write the vectors of --input to --output, and print what is nearest to each --query."""
    embedder = trained.load(config.from_)
    if not isinstance(embedder, SentenceEmbedder | PretrainedEmbedder):
        raise RunError(f"{config.from_} holds a {type(embedder).__name__}; expected a run of the experiment embed.")
    if config.input is not None:
        texts = sentences.read(config.input, config.column)
        write(config, texts, embedder.transform(texts))
        say(f"Wrote {len(texts):,} vectors of {embedder.config_.latent} numbers into {config.output}.")
    if config.query:
        run = runs.open(config.from_)
        texts = data.read_table(run.file("sentences.csv"))["sentence"].map(str).tolist()
        codes = np.asarray(data.read(run.file("vectors.npz")))
        _steps.print_table(answers(config, embedder, texts, codes))


def write(config: _flags.Embed, texts: list[str], codes: np.ndarray) -> None:
    """Write codes to --output: an array, or a table that begins with the sentences."""
    if data.formats.of(config.output).kind == "array":
        data.write(config.output, codes)
        return
    table = np.column_stack([np.array(texts, object), codes.astype(object)])
    data.write(config.output, table, columns=["sentence", *(f"z{i}" for i in range(codes.shape[1]))])


def train(config: _flags.Embed) -> None:
    """Train and evaluate in a run's folder."""
    texts = sentences.read(config.data, config.column)
    pairs = None if config.pairs is None else sentences.read_pairs(config.pairs)
    known = {"sentences": len(texts), "sha256": hashlib.sha256("\n".join(texts).encode()).hexdigest()}
    settings = {"settings": _steps.settings(config), "model": trained.ESTIMATOR, "data": known}
    embedder = untrained(config, len(set(texts)))
    say(f"{len(texts):,} sentences, {len(set(texts)):,} of them different, of {config.data}.")
    with runs.start("embed", config.name, settings, resume=config.resume) as run, _steps.resumable(run):
        with _steps.resources(config, run) as resources:
            embedder.fit(
                texts,
                folder=run.checkpoints,
                resume=config.resume and checkpoints.begun(run.checkpoints),
                show=True,
                on_epoch=resources["on_epoch"],
            )
        embedder.save(run.folder / trained.ESTIMATOR)
        evaluate(run, config, embedder, texts, pairs)


def untrained(config: _flags.Embed, count: int) -> SentenceEmbedder | PretrainedEmbedder:
    """The embedder of the flags, for so many different sentences."""
    given = {name: value for name in ("latent", "batch_size", "learning_rate") if (value := getattr(config, name))}
    if config.encoder is not None:
        steps = {} if config.epochs is None else {"steps": config.epochs * max(1, count // (config.batch_size or 512))}
        return PretrainedEmbedder(encoder=config.encoder, random_state=config.seed, **steps, **given)
    epochs = config.epochs or _steps.enough_epochs(count, config.batch_size or 256, epochs=EPOCHS, steps=STEPS)
    return SentenceEmbedder(epochs=epochs, random_state=config.seed, **given)


def evaluate(
    run: Run,
    config: _flags.Embed,
    embedder: SentenceEmbedder | PretrainedEmbedder,
    texts: list[str],
    pairs: tuple[list[str], list[str], np.ndarray] | None,
) -> None:
    """Write the vectors, the most similar pairs, the map, results.json and the report."""
    codes = embedder.transform(texts)
    with atomic.replacing(run.folder / "vectors.npz") as unfinished:
        np.savez(unfinished, x=codes)
    data.write(run.folder / "sentences.csv", np.array(texts, object)[:, None], columns=["sentence"])
    tables, results = [], {"train/sentences": len(texts)}
    if config.query:
        tables.append(answers(config, embedder, texts, codes))
    if pairs is not None:
        table, scores = correlations(config, embedder, texts, pairs)
        tables.append(table)
        results |= scores
    tables.append(most_similar(texts, codes))
    figures = []
    if len(texts) >= 3 * GROUPS:
        draw_map(run, texts, codes, config.seed)
        figures.append(("Neighbours in the map are similar sentences. Groups are named by their middle.", "map"))
    usage = experiments.command("embed", from_=run.folder, query="a sentence like those")
    summary = (
        f"{len(texts):,} vectors of {codes.shape[1]} numbers are in {run.folder / 'vectors.npz'}, and their "
        "sentences in sentences.csv."
    )
    history = run.history()
    told = [name for name in ("loss", "val_loss", "seconds") if name in history[0]]
    columns = {name: [epoch[name] for epoch in history] for name in told}
    _steps.finish(run, f"Sentences of {config.data}", summary, tables, figures, results, usage, history=columns)


def answers(
    config: _flags.Embed, embedder: SentenceEmbedder | PretrainedEmbedder, texts: list[str], codes: np.ndarray
) -> Table:
    """The nearest sentences to each query; of those that occur more than once, one."""
    different = list({text: i for i, text in reversed(list(enumerate(texts)))}.values())[::-1]
    found, cosines = sentences.nearest(codes[different], embedder.transform(config.query), config.count)
    rows = [
        [query if place == 0 else "", float(cosine), shown(texts[different[i]])]
        for query, numbers, values in zip(config.query, found, cosines, strict=True)
        for place, (i, cosine) in enumerate(zip(numbers, values, strict=True))
    ]
    return Table("The nearest sentences", ["query", "similarity", "sentence"], rows)


def correlations(
    config: _flags.Embed,
    embedder: SentenceEmbedder | PretrainedEmbedder,
    texts: list[str],
    pairs: tuple[list[str], list[str], np.ndarray],
) -> tuple[Table, dict[str, float]]:
    """Spearman's rank correlation of the vectors' cosines with the similarities given, beside simple methods."""
    first, second, wanted = pairs
    latent = embedder.config_.latent
    methods = sentences.baselines(texts, latent)
    names = ["tf_idf", "lsa", "mean_word_vectors"]
    if isinstance(embedder, PretrainedEmbedder):
        methods |= vectors.baselines(embedder, texts)
        names += ["pretrained", "principal_components"]
    methods |= {"flaxae": embedder.transform}
    scores = {
        name: float(spearmanr(sentences.similarities(method, (first, second)), wanted)[0])
        for name, method in methods.items()
    }
    if not np.isfinite(list(scores.values())).all():
        raise DataError(f"{config.pairs} has similarities that are all the same; no correlation can be measured.")
    head = report.Column("Spearman correlation", better="higher")
    table = Table(f"Similarity of {len(wanted):,} pairs of {config.pairs}", ["", head], list(map(list, scores.items())))
    named = zip([*names, "flaxae"], scores.values(), strict=True)
    return table, {f"pairs/{name}": score for name, score in named}


def most_similar(texts: list[str], codes: np.ndarray) -> Table:
    """The pairs of different sentences whose codes are the most similar; each sentence is in one pair."""
    different = list(dict.fromkeys(texts))[:COMPARED]
    codes = codes[[texts.index(text) for text in different]] if len(different) < len(texts) else codes
    found, cosines = sentences.nearest(codes, codes, 2)
    candidates = sorted(
        (-float(cosine), i, int(j))
        for i, (numbers, values) in enumerate(zip(found, cosines, strict=True))
        for j, cosine in zip(numbers, values, strict=True)
        if i != j
    )
    rows, taken = [], set()
    for negative, i, j in candidates:
        if len(rows) < PAIRS and not taken & {i, j}:
            taken |= {i, j}
            rows.append([shown(different[i]), -negative, shown(different[j])])
    among = f" among the first {COMPARED:,} sentences" if len(different) == COMPARED else ""
    return Table(f"The most similar pairs{among}", ["sentence", "similarity", "and"], rows)


def draw_map(run: Run, texts: list[str], codes: np.ndarray, seed: int) -> None:
    """A map of the codes in the plane (t-SNE), coloured by groups (k-means) that are named by their middle."""
    chosen = np.random.default_rng(seed).permutation(len(codes))[:MAPPED]
    x = codes[np.sort(chosen)].astype(np.float64)
    groups = KMeans(min(GROUPS, len(np.unique(x, axis=0))), n_init=3, random_state=seed).fit(x)
    middles = groups.transform(x).argmin(axis=0)
    names = [shown(texts[np.sort(chosen)[i]], 40) for i in middles]
    flat = TSNE(perplexity=min(30.0, len(x) / 4), init="random", random_state=seed).fit_transform(x)
    plots.maps({"": flat}, run.figure("map"), labels=groups.labels_.astype(int), classes=names)


def shown(text: str, most: int = SHOWN) -> str:
    """The text, its end cut off if it is long."""
    return text if len(text) <= most else text[: most - 1] + "…"
