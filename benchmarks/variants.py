"""Variants: what each kind of code costs and gives, on MNIST's test images.

    python -m benchmarks.variants             about half an hour of two free cores
    python -m benchmarks.variants --quick     one epoch each, to see it run
    python -m benchmarks.variants --only sparse stacked

Nothing is chosen on the test images. Settings were fixed beforehand, except those of `linear`, chosen by the bound on
the training images, and those of `sparse`, chosen by the error on the last 10,000 of them. Every model trains on all
60,000.

- sizes: twice as long; test MSE for codes of 2, 10, 32, 64 beside PCA's; wanted: at most 0.6, 0.5, 0.3, 0.4 of it.
- linear: twice as long; a linear VAE with 10 latents and noise σ = 0.25: its largest angle to the principal subspace,
  and its −ELBO beside the closed form's −log p (probabilistic PCA, which it equals at the optimum: Lucas et al. 2019).
- sparse: top-k and L1 codes beside dense ones; wanted: within 10 % of the MSE of a dense code of 1,024, with 256 units
  on.
- contractive: the squared Jacobian ‖∂z/∂x‖² with and without its penalty, and the cost in MSE.
- stacked: pre-trained layer by layer, then trained together, beside the same network trained from scratch for as many
  steps in all.
- quantized: MSE, and how many of its vectors each group uses (the perplexity of the indices).
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Callable

import jax
import numpy as np

from flaxae import autoencoder, baselines, data, density, objectives, presets, stacked, training
from flaxae.autoencoder import Autoencoder, Config
from flaxae.data import Dataset
from flaxae.likelihoods import Gaussian
from flaxae.nn.heads import Deterministic, Variational
from flaxae.nn.mlp import MLP
from flaxae.objectives import ELBO


def main() -> None:
    parts: dict[str, Callable[[Bench], None]] = {
        "sizes": sizes,
        "linear": linear,
        "sparse": sparse,
        "contractive": contractive,
        "stacked": stack,
        "quantized": quantized,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--data", default="mnist", help="mnist, or a folder of IDX files")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/benchmark-variants"))
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    bench = Bench(data.load(options.data), 1 if options.quick else options.epochs, options.folder)
    for part in options.only:
        parts[part](bench)


@dataclasses.dataclass(frozen=True)
class Bench:
    """The data and the settings of all trainings. Models that were trained before are read from `folder`."""

    dataset: Dataset
    epochs: int
    folder: pathlib.Path

    @property
    def train(self) -> np.ndarray:
        return self.dataset.scaling(self.dataset.train)

    @property
    def test(self) -> np.ndarray:
        return self.dataset.scaling(self.dataset.test)

    def fit(
        self,
        name: str,
        config: Config,
        *,
        start: Callable[[Autoencoder], None] | None = None,
        epochs: int = 0,
        batch_size: int = 256,
        learning_rate: float = 3e-3,
    ) -> Autoencoder:
        folder = self.folder / f"{self.dataset.name}-{name}-{epochs or self.epochs}"
        model = autoencoder.build(config, self.dataset.shape)
        resume = (folder / "latest").exists()
        if start is not None and not resume:
            start(model)
        training.fit(
            model,
            self.train,
            epochs=epochs or self.epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            validation=0.0,
            folder=folder,
            resume=resume,
            show=False,
        )
        return model

    def error(self, model: Autoencoder) -> float:
        """The test mean squared error per pixel."""
        return float(np.mean(np.square(training.apply(Autoencoder.reconstruct, model, self.test) - self.test)))

    def code(self, model: Autoencoder) -> np.ndarray:
        return training.apply(Autoencoder.encode, model, self.test)


def sizes(bench: Bench) -> None:
    print(f"\n{bench.dataset.name}: test MSE     PCA   flaxae   ratio")
    for latent in (2, 10, 32, 64):
        body = MLP((512, 256, 128) if latent <= 10 else (512,))
        objective = objectives.profile_likelihood  # on the squared error of sigmoid outputs
        config = Config(body=body, head=Deterministic(latent), objective=objective)
        error = bench.error(bench.fit(f"size-{latent}", config, epochs=2 * bench.epochs, batch_size=128))
        pca = baselines.pca_reconstruct(bench.test, train=bench.train, components=latent)
        pca_error = float(np.mean(np.square(pca - bench.test)))
        print(f"latent {latent:9d} {pca_error:13.5f} {error:8.5f} {error / pca_error:7.2f}", flush=True)


def linear(bench: Bench) -> None:
    latent, noise = 10, 0.25
    x = bench.train.reshape(len(bench.train), -1)
    variance, directions = np.linalg.eigh(np.cov(x, rowvar=False, bias=True))
    kept = np.where(np.arange(len(variance)) < len(variance) - latent, 0, np.maximum(variance - noise**2, 0)) + noise**2
    closed = 0.5 * np.sum(np.log(2 * np.pi * kept) + variance / kept)
    print(f"\n{bench.dataset.name}, linear, closed form: −log p {closed:.2f} nats a training image")
    for beta in (0.0, 1.0):
        config = Config(
            body=MLP(()),
            head=Variational(latent),
            objective=ELBO(beta),
            likelihood=Gaussian(noise),
        )
        model = bench.fit(f"linear-beta-{beta:g}", config, epochs=2 * bench.epochs, learning_rate=2e-2)
        cosines = np.linalg.svd(
            np.linalg.qr(np.asarray(model.decoder.out.kernel[...]).T)[0].T @ directions[:, -latent:]
        )[1]
        terms = density.elbo(model, bench.train)
        bound = np.mean(terms.kl.sum(-1) - terms.log_likelihood)
        print(
            f"β = {beta:g}: largest angle {np.degrees(np.arccos(min(1, cosines.min()))):.2f}°, −ELBO {bound:.2f} nats"
        )


def sparse(bench: Bench) -> None:
    print(f"\n{bench.dataset.name}, sparse: test MSE, units on an example, units ever on")

    def flat(config: Config) -> Config:
        return dataclasses.replace(config, body=MLP(()))

    variants = {
        **{f"dense, {size}": (presets.vanilla(size), 1.5e-3) for size in (16, 64, 1024)},
        **{f"top-k, {active} of 1024": (presets.top_k(1024, active=active), 1e-3) for active in (16, 32, 64)},
        "top-k, 256 of 1024, no hidden layer": (flat(presets.top_k(1024, active=256)), 3e-3),
        "L1 0.015, 2048, no hidden layer": (flat(presets.sparse(2048, sparsity=0.015)), 6e-3),
        "L1 0.1, 2048, no hidden layer": (flat(presets.sparse(2048, sparsity=0.1)), 6e-3),
    }
    for name, (config, rate) in variants.items():
        config = dataclasses.replace(config, likelihood=Gaussian())
        folder = f"sparse-{name}".replace(", ", "-").replace(" ", "-")
        model = bench.fit(folder, config, batch_size=128, learning_rate=rate)
        on = bench.code(model) != 0
        print(f"{name:40s} {bench.error(model):.5f} {on.sum(1).mean():8.1f} {on.any(0).sum():6d}", flush=True)


def contractive(bench: Bench) -> None:
    print(f"\n{bench.dataset.name}, contractive: test MSE, mean ‖∂z/∂x‖²")
    for weight in (0.0, 0.1, 1.0):
        objective = objectives.Contractive(weight) if weight else objectives.negative_log_likelihood
        config = dataclasses.replace(presets.contractive(), objective=objective)
        model = bench.fit(f"contractive-{weight}", config, epochs=max(1, bench.epochs // 4))
        jacobian = training.apply(_squared_jacobian, model, bench.test[:1000])
        print(f"weight {weight:<5g} {bench.error(model):.5f} {jacobian.mean():8.3f}", flush=True)


def _squared_jacobian(model: Autoencoder, x: jax.Array) -> jax.Array:
    return objectives.squared_jacobian(model.encode, x)


def stack(bench: Bench) -> None:
    """The pre-trained network first has `epochs` epochs per layer; the other has as many more of the whole network."""
    print(f"\n{bench.dataset.name}, stacked 512-256-128-32: test MSE")
    before = max(1, bench.epochs // 5)

    def pretrain(model: Autoencoder) -> None:
        histories = stacked.pretrain(model, bench.train, epochs=before, validation=0.0, show=False)
        falls = ", ".join(f"{h['loss'][0]:.3g} to {h['loss'][-1]:.3g}" for h in histories)
        print(f"layers, loss of first and last epoch: {falls}")

    for activation in ("relu", "sigmoid"):
        config = dataclasses.replace(presets.stacked(), body=MLP((512, 256, 128), activation))
        together = bench.fit(f"stacked-{activation}-pretrained", config, start=pretrain)
        scratch = bench.fit(f"stacked-{activation}-scratch", config, epochs=bench.epochs + 4 * before)
        print(
            f"{activation}: pre-trained {bench.error(together):.5f}, from scratch {bench.error(scratch):.5f}",
            flush=True,
        )


def quantized(bench: Bench) -> None:
    config = presets.vector_quantized()
    model = bench.fit("quantized", config)
    codes = training.apply(_codes, model, bench.test)
    share = np.stack([np.bincount(group, minlength=config.head.codebook) / len(codes) for group in codes.T])
    entropy = -np.sum(share * np.log2(np.maximum(share, 1e-12)), axis=1)
    bits = codes.shape[1] * np.log2(config.head.codebook)
    print(f"\n{bench.dataset.name}, {codes.shape[1]} indices, {bits:.0f} bits: test MSE {bench.error(model):.5f}")
    print(f"perplexity {np.mean(2**entropy):.0f} of {config.head.codebook} vectors; {entropy.sum():.0f} bits an image")


def _codes(model: Autoencoder, x: jax.Array) -> jax.Array:
    return model.head(model.encoder(x)).codes


if __name__ == "__main__":
    main()
