"""Density: the test likelihood of MNIST by variational autoencoders, as Burda et al. (2016) measure it.

    python -m benchmarks.density                 k = 1, 300 epochs, and the NLL: within an hour of two free cores
    python -m benchmarks.density --samples 5 --objective importance_weighted --epochs 500
    python -m benchmarks.density --quick         a minute, to see it run

The networks are 784-200-200-50 with tanh units. They train on all 60,000 training images, with pixels binarised at
random in every pass, and keep the moving average of the last weights. Muon, its learning rate and the batch size were
chosen by the lowest training loss after 15 epochs. The test is on 10,000 images, binarised once, with 5,000 importance
samples each. Figures to beat, in nats: VAE 86.76, k = 5 85.54, k = 50 84.78, after about 3,300 epochs. If it is
interrupted, the same command goes on.
"""

import argparse
import pathlib
import time

import jax
import numpy as np

from flaxae import autoencoder, data, density, training
from flaxae.autoencoder import Config
from flaxae.nn.heads import Variational
from flaxae.nn.mlp import MLP
from flaxae.objectives import ELBO, Binarised, ImportanceWeighted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objective", default="elbo", choices=("elbo", "importance_weighted"))
    parser.add_argument("--samples", type=int, default=5, help="k, of importance_weighted")
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/benchmark-density"))
    parser.add_argument("--quick", action="store_true", help="2 epochs, 200 test images, 500 samples")
    options = parser.parse_args()
    epochs, images, draws = (2, 200, 500) if options.quick else (options.epochs, 10_000, 5_000)

    mnist = data.load("mnist")
    config = Config(
        body=MLP((200, 200), "tanh"),
        head=Variational(50),
        objective=Binarised(ELBO() if options.objective == "elbo" else ImportanceWeighted(options.samples)),
    )
    name = "vae" if options.objective == "elbo" else f"iwae-{options.samples}"
    folder = options.folder / f"{name}-{epochs}-epochs-seed-{options.seed}"
    model = autoencoder.build(config, mnist.shape, seed=options.seed)
    history = training.fit(
        model,
        mnist.scaling(mnist.train),
        epochs=epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        warmup=0.02,
        ema=0.999,
        optimizer="muon",
        microbatches=4 if options.objective == "importance_weighted" else 1,  # a part fits the processor's cache
        validation=0.0,
        seed=options.seed,
        folder=folder,
        resume=(folder / "latest").exists(),
    )
    grey = mnist.scaling(mnist.test[:images])
    test = np.asarray(jax.random.bernoulli(jax.random.key(1), grey), np.float32)
    terms = density.elbo(model, test)
    began = time.perf_counter()
    nll = density.negative_log_likelihood(model, test, samples=draws)
    print(f"{name}, {epochs} epochs, {history['seconds'][-1]:.0f} s of training, train loss {history['loss'][-1]:.2f}")
    print(f"test −ELBO {np.mean(terms.kl.sum(-1) - terms.log_likelihood):.2f} nats, KL {terms.kl.sum(-1).mean():.2f}, ")
    print(f"{np.sum(terms.kl.mean(0) > 0.01)} of 50 latents in use")
    print(
        f"test NLL {nll.mean():.2f} ± {nll.std() / len(nll) ** 0.5:.2f} nats ({draws:,} samples, {images:,} images, ",
        end="",
    )
    print(f"{time.perf_counter() - began:.0f} s)")


if __name__ == "__main__":
    main()
