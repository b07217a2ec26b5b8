"""Maps: places in 2 or 3 dimensions that keep neighbours together, for new examples too, and a decoder back.

    rows = maps.learnt_from(x)
    model = autoencoder.build(presets.neighbour_map(examples=len(rows)), rows.shape[1:])
    history = maps.fit(model, rows)

Each example's nearest others are found first (`graph`). Then the examples are laid out: near ones pull each other, and
all push the others away (`lay_out`, InfoNC-t-SNE, Damrich et al. 2023). A new example is placed where its nearest
neighbours among them are (`nn.neighbours.Placed`), and a decoder learns to make examples from their places.

With `presets.parametric_map`, an encoder is trained by the same forces instead (the objective `KeepNeighbours`).
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from flaxae import errors, training
from flaxae.autoencoder import Autoencoder
from flaxae.data.dataset import SAMPLE_BYTES
from flaxae.data.stream import Stream
from flaxae.nn.mlp import MLPDecoder
from flaxae.nn.neighbours import ComponentsEncoder, PlacedHead, settled
from flaxae.printing import say

NEIGHBOURS = 15
COMPONENTS = 50  # of the data, that neighbours are found in
MOST = 100_000  # examples that a map is learnt from: the graph's time grows with their square
STEPS = 500  # of the layout, all examples at each
OTHERS = 1024  # examples that push, drawn at each step if there are more
BLOCK = 1024  # examples that are pushed at once, so that their distances to the others fit the cache
STEP = 1.0  # on the map, for each example, of the first steps
PULLS, TOGETHER = (4.0, 2.0), 0.5  # how much stronger than the push, in so much of the steps and after them

TINY = 1e-6
STEEP = 2.0  # deviations of the map, that a unit of the decoder's first layer rises by

Rows = Float[np.ndarray, " examples *shape"]
Graph = Int[np.ndarray, "examples neighbours"]


def graph(x: Rows, *, neighbours: int = NEIGHBOURS, components: int | None = COMPONENTS, seed: int = 0) -> Graph:
    """For each example, its nearest others, by the distance of their first principal components, or of all (None).

    Raises:
        DataError: there are fewer than three examples.
    """
    if len(x) < 3:
        raise errors.DataError(f"A map needs at least 3 examples; there are {len(x)}.")
    flat = np.asarray(x, np.float32).reshape(len(x), -1)
    if components is not None and min(flat.shape) > components:
        flat = PCA(components, svd_solver="covariance_eigh", random_state=seed).fit_transform(flat)
    found = NearestNeighbors(n_neighbors=min(neighbours, len(x) - 1), algorithm="brute").fit(flat)
    return found.kneighbors(return_distance=False).astype(np.int32)


def lay_out(graph: Graph, begin: Float[np.ndarray, "examples latent"], *, seed: int = 0) -> Float[Array, "examples _"]:
    """Places of the examples that minimise ρ · Σ −log q(neighbours) + Σ log Σ q(others), with q = 1 / (1 + distance²).

    That is InfoNC-t-SNE (Damrich et al. 2023, eq. 6), all examples at each step and Adam's rule. The pull ρ is strong
    in the first steps, as in t-SNE (van der Maaten & Hinton 2008), and somewhat stronger than the push in the others,
    between t-SNE and UMAP (Böhm et al. 2022).

    Args:
        begin: where the examples are at first, such as the first principal components with a variance of 1.
    """
    return _lay_out(jnp.asarray(graph), jnp.asarray(begin, jnp.float32), jax.random.key(seed))


@jax.jit
def _lay_out(
    graph: Int[Array, "examples neighbours"], begin: Float[Array, "examples latent"], key: Key[Array, ""]
) -> Float[Array, "examples latent"]:
    count, latent = begin.shape
    block = min(BLOCK, count)

    def step(moving: tuple[Array, Array, Array], t: Array) -> tuple[tuple[Array, Array, Array], None]:
        z, mean, square = moving
        drawn = jax.random.randint(jax.random.fold_in(key, t), (OTHERS,), 0, count)
        others = z[drawn] if count > OTHERS else z
        blocks = jnp.pad(z, ((0, -count % block), (0, 0))).reshape(-1, block, latent)
        push = lax.map(functools.partial(_push, others), blocks).reshape(-1, latent)[:count]
        difference = z[:, None] - z[graph]
        near = 2 * difference / (1 + jnp.square(difference).sum(axis=-1, keepdims=True)) / graph.shape[1]
        pull = near.sum(axis=1).at[graph].add(-near)
        done, after = t / STEPS, t.astype(jnp.float32) + 1
        gradient = jnp.where(done < TOGETHER, *PULLS) * pull + 2 * push  # each is also among the others of the others
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.99 * square + 0.01 * jnp.square(gradient)
        direction = mean / (1 - 0.9**after) / (jnp.sqrt(square / (1 - 0.99**after)) + 1e-8)
        return (z - STEP * (1 - done) * direction, mean, square), None

    still = jnp.zeros_like(begin)
    return lax.scan(step, (begin, still, still), jnp.arange(STEPS))[0][0]


def _push(others: Float[Array, "others latent"], z: Float[Array, "block latent"]) -> Float[Array, "block latent"]:
    """The gradient of log Σ q(others) with respect to z: −2 Σ q² (z − other) / Σ q."""
    square = sum((jnp.square(z[:, None, i] - others[None, :, i]) for i in range(z.shape[1])), jnp.zeros(()))
    q = 1 / (1 + square)
    sums = jnp.square(q) @ jnp.column_stack([others, jnp.ones(len(others))])
    return 2 * (sums[:, :-1] - sums[:, -1:] * z) / q.sum(axis=1, keepdims=True)


def batches(x: Rows, graph: Graph, batch_size: int, seed: int) -> Callable[[int], Iterator[dict[str, Any]]]:
    """A function of a step that gives the batches from that step on: examples, and one of the neighbours of each."""
    each = len(x) // batch_size

    def begin(step: int) -> Iterator[dict[str, Any]]:
        while True:
            rng = np.random.default_rng((seed, step // each))
            order = rng.permutation(len(x))
            chosen = graph[order, rng.integers(graph.shape[1], size=len(x))]
            for start in range(step % each, each):
                part = slice(start * batch_size, (start + 1) * batch_size)
                yield {"x": x[order[part]], "neighbour": x[chosen[part]]}
            step += each - step % each

    return begin


def fit(
    model: Autoencoder,
    x: Rows | Stream,
    *,
    epochs: int = 10,
    batch_size: int = 512,
    learning_rate: float = 3e-3,
    seed: int = 0,
    **settings: Any,
) -> training.History:
    """Find a map of x, and train the model in place: its decoder, or with `parametric_map` all of it.

    `settings` are those of `training.fit`.

    Raises:
        ConfigError: the model remembers another number of examples.
        DataError: there are fewer than three examples, or they don't fit the model.
    """
    rows = training.check_examples(model, learnt_from(x, seed=seed))
    settings |= {"epochs": epochs, "learning_rate": learning_rate, "validation": 0, "seed": seed}
    batch_size = min(batch_size, len(rows))
    if isinstance(model.head, PlacedHead):
        return training.fit(
            model, {"x": rows, "place": place(model, rows, seed=seed)}, batch_size=batch_size, **settings
        )
    pairs = batches(rows, graph(rows, seed=seed), batch_size, seed)
    return training.fit(model, pairs, steps_per_epoch=len(rows) // batch_size, **settings)


def place(model: Autoencoder, rows: Rows, *, seed: int = 0) -> Float[np.ndarray, "examples latent"]:
    """Lay the examples out, let the model remember their places, and return where it encodes them."""
    head = model.head
    if len(rows) != len(head.known[...]):
        raise errors.ConfigError(
            f"The model remembers {len(head.known[...]):,} examples, and the map is of {len(rows):,}: build it with "
            f"presets.neighbour_map(examples={len(rows)})."
        )
    if isinstance(model.encoder, ComponentsEncoder):
        model.encoder.fit(rows)
    known = training.apply(Autoencoder.features, model, rows)
    near = graph(known, neighbours=head.neighbours, components=None)
    begin = np.zeros((len(rows), head.places.shape[1]), np.float32)
    with np.errstate(invalid="ignore"):  # examples without variance
        main = PCA(min(*known.shape, begin.shape[1]), svd_solver="covariance_eigh").fit_transform(known)
    begin[:, : main.shape[1]] = main / max(main[:, 0].std(), TINY)
    head.known[...], head.places[...] = jnp.asarray(known), lay_out(near, begin, seed=seed)
    with_itself = np.column_stack([np.arange(len(rows)), near[:, : head.neighbours - 1]])
    places = settled(jnp.asarray(head.places[...])[with_itself])
    _bend(model.decoder, np.asarray(places), seed)
    return np.asarray(places)


def _bend(decoder: Any, places: Float[np.ndarray, "examples latent"], seed: int) -> None:
    """Let the first layer of a fully connected decoder, before it is trained, bend at places that examples have.

    Its units are 0 on one side of a line. Lines through the origin alone, where they are at first, tell the places of a
    wide map badly apart.
    """
    if not (isinstance(decoder, MLPDecoder) and len(decoder.stack.layers)):
        return
    linear = decoder.stack.layers[0].linear
    kernel = STEEP / max(places.std(), TINY) * np.asarray(linear.kernel[...])
    through = places[np.random.default_rng(seed).integers(len(places), size=kernel.shape[1])]
    linear.kernel[...] = jnp.asarray(kernel)
    if linear.bias is not None:
        linear.bias[...] = jnp.asarray(-(through * kernel.T).sum(axis=1))


def learnt_from(x: Rows | Stream, *, seed: int = 0) -> Float[np.ndarray, " some *shape"]:
    """All rows, or with a line that says so, as many as a map can be learnt from (`MOST`)."""
    if not isinstance(x, Stream) and len(x) <= MOST:
        return x
    every = np.sort(np.random.default_rng(seed).permutation(len(x))[:MOST])
    rows = x.sample(min(SAMPLE_BYTES, 4 * MOST * x.example.size)) if isinstance(x, Stream) else x[every]
    say(f"The map is learnt from {len(rows):,} of {len(x):,} examples; the encoder maps the others.")
    return rows
