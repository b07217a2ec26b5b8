r"""Density: the test likelihood of MNIST by variational autoencoders, as Burda et al. (2016) measure it.

    python -m benchmarks.density                 k = 1, 300 epochs, and the NLL: within an hour of two free cores
    python -m benchmarks.density --samples 5 --objective importance_weighted --epochs 500
    python -m benchmarks.density --levels 2 --width 300 --objective importance_weighted --samples 5 \
        --learning-rate 5e-3 --epochs 250        two levels of latents, on a GPU: 4 minutes
    python -m benchmarks.density --quick         a minute, to see it run

With one level, the networks are 784-200-200-50 with tanh units. They train on all 60,000 training images, with pixels
binarised at random in every pass, and keep the moving average of the last weights. Muon, its learning rate and the
batch size were chosen by the lowest training loss after 15 epochs. The test is on 10,000 images, binarised once, with
5,000 importance samples each. Figures to beat, in nats: VAE 86.76, k = 5 85.54, k = 50 84.78, after about 3,300 epochs.
If it is interrupted, the same command goes on.

With more levels, the head is `Hierarchical` in fully connected networks of --width units, whose top level has a mixture
for its prior. For the first --warmup epochs the ELBO is trained, with β rising from 0 to 1, so that no level is given
up early (Sønderby et al. 2016). --held-out training images are kept apart, and the epoch with the lowest loss on them
is what is tested. Their likelihood is printed too, so that recipes can be compared without the test part. Figures to
beat: two levels, k = 50, 82.90 (Burda et al. 2016); two levels with a VampPrior 81.24 (Tomczak & Welling 2018).
"""

import argparse
import dataclasses
import math
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import flaxae
from flaxae import autoencoder, data, density, training
from flaxae.autoencoder import Autoencoder, Config
from flaxae.nn.heads import Hierarchical, HierarchicalHead, Variational
from flaxae.nn.mlp import MLP
from flaxae.nn.priors import NormalMixture
from flaxae.objectives import ELBO, Binarised, ImportanceWeighted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objective", default="elbo", choices=("elbo", "importance_weighted"))
    parser.add_argument("--samples", type=int, default=5, help="k, of importance_weighted")
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--minutes", type=float, help="of training, after which it stops before the last epoch")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--levels", type=int, default=1, help="of latents")
    parser.add_argument("--latent", type=int, default=60, help="latents of all levels together, if there are several")
    parser.add_argument("--width", type=int, default=500, help="of all hidden layers, if there are several levels")
    parser.add_argument("--components", type=int, default=500, help="of the prior, if there are several levels")
    parser.add_argument(
        "--warmup", type=int, default=20, help="epochs, before --epochs, in which β rises, if there are several levels"
    )
    parser.add_argument("--held-out", type=int, default=2_000, help="training images, if there are several levels")
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
    x = mnist.scaling(mnist.train)
    validation: Any = 0.0
    if options.levels > 1:
        hidden = (options.width, options.width)
        prior = NormalMixture(options.components)
        head = Hierarchical(options.latent, options.levels, hidden, "silu", prior)
        config = dataclasses.replace(config, body=MLP(hidden, "silu"), head=head)
        name += f"-{options.levels}-levels-{options.latent}-{options.width}-{options.components}"
        order = np.random.default_rng(0).permutation(len(x))
        validation, x = x[order[: options.held_out]], x[order[options.held_out :]]
    folder = options.folder / f"{name}-{epochs}-epochs-seed-{options.seed}"
    model = autoencoder.build(config, mnist.shape, seed=options.seed)
    settings = {
        "batch_size": options.batch_size,
        "learning_rate": options.learning_rate,
        "weight_decay": options.weight_decay,
        "warmup": 0.02,
        "ema": 0.999,
        "optimizer": "muon",
        "validation": validation,
        "seed": options.seed,
    }
    on_gpu = jax.default_backend() != "cpu"
    if options.levels > 1 and options.warmup:
        warm_up(model, x, folder / "warmup", 1 if options.quick else options.warmup, **settings)
    history = training.fit(
        model,
        x,
        epochs=epochs,
        microbatches=1 if on_gpu or options.objective == "elbo" else 4,  # a part fits the processor's cache
        folder=folder,
        resume=(folder / "latest").exists(),
        on_epoch=lambda metrics: metrics["seconds"] > 60 * (options.minutes or math.inf),
        **settings,
    )
    flaxae.save(model, folder / "model")
    print(f"{name}, {len(history['loss'])} epochs, {history['seconds'][-1]:.0f} s of training, ", end="")
    print(f"train loss {history['loss'][-1]:.2f}")
    with jax.default_matmul_precision("float32"):  # on a GPU, products are rounded to less by default
        if options.levels > 1:
            best = int(np.argmin(history["val_loss"]))
            print(f"best epoch {best + 1}, held-out loss {history['val_loss'][best]:.2f}")
            measure(model, validation[:images], 500, "held-out")
        measure(model, mnist.scaling(mnist.test[:images]), draws, "test")


def measure(model: Autoencoder, grey: np.ndarray, draws: int, part: str) -> None:
    """Print the bound and the likelihood of images, binarised once."""
    binary = np.asarray(jax.random.bernoulli(jax.random.key(1), grey), np.float32)
    terms = density.elbo(model, binary)
    began = time.perf_counter()
    nll = density.negative_log_likelihood(model, binary, samples=draws)
    kl = terms.kl.mean(0)
    print(f"{part} −ELBO {np.mean(terms.kl.sum(-1) - terms.log_likelihood):.2f} nats, KL {kl.sum():.2f}, ")
    if isinstance(model.head, HierarchicalHead):
        print(f"of the levels from the top {', '.join(f'{level:.2f}' for level in kl)}")
    else:
        print(f"{np.sum(kl > 0.01)} of {len(kl)} latents in use")
    print(f"{part} NLL {nll.mean():.2f} ± {nll.std() / len(nll) ** 0.5:.2f} nats ", end="")
    print(f"({draws:,} samples, {len(nll):,} images, {time.perf_counter() - began:.0f} s)")


def warm_up(model: Autoencoder, x: np.ndarray, folder: pathlib.Path, epochs: int, **settings: Any) -> None:
    """Train `model` on the ELBO while its β rises from 0 to 1, at a constant learning rate."""
    config: Any = model.config
    warm = autoencoder.build(dataclasses.replace(config, objective=Binarised(ELBO())), model.shape)
    nnx.update(warm, nnx.state(model, nnx.Param))
    training.fit(
        warm,
        x,
        epochs=epochs,
        schedule="constant",
        schedules={"beta": Ramp(epochs * (len(x) // settings["batch_size"]))},
        keep="last",
        folder=folder,
        resume=(folder / "latest").exists(),
        **settings,
    )
    nnx.update(model, nnx.state(warm, nnx.Param))


@dataclasses.dataclass(frozen=True)
class Ramp:
    """From 0 to 1 over so many steps."""

    steps: int

    def __call__(self, step: Any) -> Any:
        return jnp.minimum(step / self.steps, 1.0)


if __name__ == "__main__":
    main()
