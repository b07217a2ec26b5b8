"""Recommendation: NDCG@100, recall@20 and @50 on users who were not trained on, beside popularity, EASE and ALS.

    python -m benchmarks.recommend --data ratings.txt [more.txt] [--folds 5]

The files are tables of user and item, as Last.fm's of HetRec 2011; each row is a choice. Users are divided into folds;
each fold is tested on once, after training on the others. Of what a test user chose a fifth is hidden. EASE's penalty
and the settings of ALS are chosen for each of them on the first fold, where the settings of flaxae were tried out too:
so that fold is left out of the mean. It takes about a minute a fold on two CPU cores. Where torch is installed,
Mult-VAE is also rebuilt in it.
"""

import argparse
import importlib.util
import time

import numpy as np
import pandas as pd
import scipy.sparse

from flaxae import recommendation
from flaxae.recommendation import Recommender, VariationalRecommender


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--folds", type=int, default=5, help="of which the first is to choose settings on")
    parser.add_argument("--measured", type=int, help="how many of the others to measure on; by default all")
    options = parser.parse_args()
    x = interactions(options.data)
    print(f"{x.shape[0]:,} users, {x.shape[1]:,} items, {x.nnz:,} choices", flush=True)
    folds = np.array_split(np.random.default_rng(0).permutation(x.shape[0]), options.folds)
    penalty, latent = chosen(*parts(x, folds, 0))
    print(f"chosen on the first fold: EASE's penalty {penalty:g}, ALS' factors {latent}", flush=True)
    scores: dict[str, list[list[float]]] = {}
    for fold in range(1, 1 + (options.measured or options.folds - 1)):
        known, held_out = parts(x, folds, fold)
        makers = {
            "popularity": lambda known=known: recommendation.popularity(known),
            "EASE": lambda known=known: recommendation.ease(known, penalty),
            "implicit ALS": lambda known=known: recommendation.least_squares(known, latent),
            "Mult-VAE's network": lambda known=known: mult_vae().fit(known).scores,
            "variational": lambda known=known: VariationalRecommender(random_state=0).fit(known).scores,
            "composite prior": lambda known=known: composite().fit(known).scores,
            "flaxae": lambda known=known: Recommender(random_state=0).fit(known).scores,
        }
        if importlib.util.find_spec("torch") is not None:
            makers["Mult-VAE in torch"] = lambda known=known: mult_vae_in_torch(known)
        for name, make in makers.items():
            began = time.perf_counter()
            measured = recommendation.measure(make(), held_out)
            scores.setdefault(name, []).append(list(measured.values()))
            seconds = time.perf_counter() - began
            print(
                f"fold {fold} {name:20s} {' '.join(f'{v:.4f}' for v in measured.values())} {seconds:6.1f} s", flush=True
            )
    print(f"{'means':27s} NDCG@100, recall@20, recall@50")
    for name, values in scores.items():
        print(f"{name:27s} {' '.join(f'{v:.4f}' for v in np.mean(values, axis=0))}")


def interactions(paths: list[str]) -> scipy.sparse.csr_matrix:
    """Who chose what, [users, items], from tables without a line of names, which are parts of one."""
    rows = pd.concat([pd.read_csv(path, sep=None, engine="python", header=None) for path in paths])
    users, items = (pd.factorize(rows[column], sort=True)[0] for column in (0, 1))
    return scipy.sparse.csr_matrix((np.ones(len(rows), np.float32), (users, items)))


def parts(
    x: scipy.sparse.csr_matrix, folds: list[np.ndarray], fold: int
) -> tuple[recommendation.Matrix, recommendation.HeldOut]:
    """The users to train on, and those of the fold."""
    others = np.concatenate([part for i, part in enumerate(folds) if i != fold])
    return x[others], recommendation.hold_out(x[folds[fold]], seed=fold)


def chosen(known: recommendation.Matrix, held_out: recommendation.HeldOut) -> tuple[float, int]:
    """EASE's penalty and the number of ALS' factors with the highest NDCG@100."""

    def ndcg(method: recommendation.Method) -> float:
        return recommendation.measure(method, held_out)["ndcg_100"]

    penalty = max((50.0, 100.0, 200.0), key=lambda penalty: ndcg(recommendation.ease(known, penalty)))
    latent = max((64, 128, 256), key=lambda latent: ndcg(recommendation.least_squares(known, latent)))
    return penalty, latent


def mult_vae() -> VariationalRecommender:
    """The network of Liang et al. (2018): one hidden layer of 600, a code of 200."""
    return VariationalRecommender(200, hidden=(600,), random_state=0)


def composite() -> VariationalRecommender:
    """With RecVAE's prior; its rounds, epochs and β were tried out on the first fold."""
    return VariationalRecommender(rounds=4, epochs=80, beta=0.5, random_state=0)


def mult_vae_in_torch(x: recommendation.Matrix, *, epochs: int = 100, beta: float = 0.2) -> recommendation.Method:
    """Mult-VAE as its authors have it: 600 tanh units, a code of 200, dropout of ½, β rising over 40 % of the steps."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    items = x.shape[1]
    encoder = nn.Sequential(nn.Dropout(0.5), nn.Linear(items, 600), nn.Tanh(), nn.Linear(600, 400))
    decoder = nn.Sequential(nn.Linear(200, 600), nn.Tanh(), nn.Linear(600, items))
    for layer in (encoder[1], encoder[3], decoder[0], decoder[2]):
        nn.init.xavier_normal_(layer.weight)
        nn.init.trunc_normal_(layer.bias, std=0.001)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3)
    rows = torch.from_numpy(x.toarray())
    steps = epochs * -(-len(rows) // 100)
    step = 0
    for _ in range(epochs):
        for batch in rows[torch.randperm(len(rows))].split(100):
            mean, logvar = encoder(nn.functional.normalize(batch)).chunk(2, dim=1)
            z = mean + torch.exp(logvar / 2) * torch.randn_like(mean)
            kl = -0.5 * (1 + logvar - mean.square() - logvar.exp()).sum(dim=1)
            log_shares = nn.functional.log_softmax(decoder(z), dim=1)
            loss = (min(beta, beta * step / (0.4 * steps)) * kl - (log_shares * batch).sum(dim=1)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    encoder.eval()

    @torch.no_grad()
    def scores(given: recommendation.Matrix) -> np.ndarray:
        mean, _ = encoder(nn.functional.normalize(torch.from_numpy(given.toarray()))).chunk(2, dim=1)
        return decoder(mean).numpy()

    return scores


if __name__ == "__main__":
    main()
