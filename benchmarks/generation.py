"""How good samples are, beside a mixture on principal components, reconstructions and training images themselves.

    python -m benchmarks.generation
    python -m benchmarks.generation --data /usr/share/datasets/fashion-mnist

As many samples as there are test images are compared with these, in the features of a small convolutional classifier
that is trained first: Fréchet distance, KID, precision, recall, and the share that it names with a probability of 0.9
or more. Nothing is chosen on the test images. `nearest` is the median distance to the nearest training image (root of
the mean squared difference), which of test images is in the last line.
"""

import argparse
import time

import numpy as np

from flaxae import autoencoder, data, generation, presets, training
from flaxae.autoencoder import Autoencoder
from flaxae.data import Dataset
from flaxae.experiments import _flags, generate
from flaxae.generation import CodePrior, FeatureSpace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist", help="mnist, or a folder of IDX files")
    parser.add_argument("--epochs", type=int, default=generate.MIXER_EPOCHS)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    dataset = data.load(options.data)
    x, labels = dataset.scaling(dataset.train), dataset.train_labels
    if options.quick:
        x, labels = x[:2000], labels[:2000]
    space = generation.learn(x, labels, len(dataset.classes))
    named = space.probabilities(dataset.scaling(dataset.test))
    print(
        f"{dataset.name}: the classifier is right on {np.mean(named.argmax(1) == dataset.test_labels):.2%} of the test"
    )
    print("                              Fréchet  KID·10³  precision  recall   named  nearest  seconds")
    samples(dataset, x, labels, space, 1 if options.quick else options.epochs)
    tell("training images", x[np.random.default_rng(0).permutation(len(x))[:10_000]], dataset, x, space)
    tell("test images", dataset.scaling(dataset.test), dataset, x, space)


def tell(name: str, made: np.ndarray, dataset: Dataset, x: np.ndarray, space: FeatureSpace, seconds: float = 0) -> None:
    """Print how samples compare with the test images."""
    found = generation.compare(space, made, dataset.scaling(dataset.test))
    far = float(np.median(generation.nearest(made[:1000], x)[1]))
    print(
        f"{name:28s} {found.frechet_distance:8.3f} {1000 * found.kernel_distance:8.2f} {found.precision:10.3f} "
        f"{found.recall:7.3f} {found.confident:7.3f} {far:8.4f} {seconds:8.1f}",
        flush=True,
    )


def trained(preset: autoencoder.Config, dataset: Dataset, x: np.ndarray, epochs: int) -> Autoencoder:
    model = autoencoder.build(preset, dataset.shape)
    training.fit(model, x, batch_size=_flags.Generate.batch_size, epochs=epochs, validation=0.05, show=False)
    return model


def samples(dataset: Dataset, x: np.ndarray, labels: np.ndarray, space: FeatureSpace, epochs: int) -> None:
    """The default model and a variational one, each with its fitted prior, and a mixture on principal components."""
    count, test = len(dataset.test), dataset.scaling(dataset.test)
    began = time.perf_counter()
    name = generate.default_model(dataset)
    model = trained(presets.PRESETS[name](latent=generate.LATENTS[name]), dataset, x, epochs)
    components = generate.default_components(dataset)
    prior = generation.fit(model, x, labels, dataset.classes, components=components)
    made = generation.sample(model, prior, count)
    tell(f"{name}, fitted prior", made, dataset, x, space, time.perf_counter() - began)
    tell("its reconstructions", training.apply(Autoencoder.reconstruct, model, test), dataset, x, space)
    unlabelled = generation.sample(model, generation.fit(model, x, components=components), count)
    tell("the same without labels", unlabelled, dataset, x, space)
    began = time.perf_counter()
    model = trained(presets.variational(), dataset, x, epochs)
    prior = generation.fit(model, x, labels, dataset.classes)
    made = generation.sample(model, prior, count)
    tell("variational, fitted prior", made, dataset, x, space, time.perf_counter() - began)
    tell("variational, its own prior", generation.sample(model, None, count), dataset, x, space)
    began = time.perf_counter()
    pixels = CodePrior.fit(x, labels, dataset.classes)
    made = np.clip(pixels.sample(count), 0, 1)
    tell("mixture on 128 components", made, dataset, x, space, time.perf_counter() - began)


if __name__ == "__main__":
    main()
