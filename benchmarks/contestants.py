"""The contestants: the same network in flaxae, torch and Keras, as users of each write it. Each has its own process.

    python -m benchmarks.contestants CONTESTANT NETWORK BATCH

answers each line of its standard input with a line: `loss` (of the initial weights), `train` (seconds, for the
network's number of samples; the first time with compilation), `peak` (FLOP/s of a matrix product), `bandwidth`
(bytes/s of a sum), `memory` (its peak, in MiB); flaxae also answers `traffic` (bytes per sample).
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import networks
from benchmarks.networks import LEARNING_RATE, Network

CONSTANT = 0.5 * math.log(2 * math.pi)  # the constant in a value's negative log-likelihood for variance 1
LOGVAR_BOUND = 10.0
CACHED = 3 * 2**18  # bytes of images that flaxae convolves at a time, so that their features fit the cache


class Contestant(NamedTuple):
    """`loss` is that of the initial weights on one batch, without noise; `train` returns when the training is done.

    `traffic` is the number of bytes per sample that the operations of a step read and write, as XLA counts them; that
    ignores caches.
    """

    loss: Callable[[], float]
    train: Callable[[], Any]
    traffic: Callable[[], float] | None = None


def flaxae(network: Network, batch: int, members: int | None = None, precision: str = "float32") -> Contestant:
    """The compiled block of steps that `flaxae.fit` runs or, if `members` is given, `flaxae.fit_population`."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from flaxae import autoencoder, training
    from flaxae.corruptions import GaussianNoise
    from flaxae.likelihoods import Gaussian
    from flaxae.nn.convnet import ConvNet
    from flaxae.nn.heads import Deterministic, Identity, Variational
    from flaxae.nn.mixer import Mixer
    from flaxae.nn.mlp import MLP
    from flaxae.nn.unet import UNet
    from flaxae.objectives import ELBO
    from flaxae.training import feed, fitting, population, step

    if network.blocks:
        body, noise = UNet(network.hidden, network.blocks), GaussianNoise(networks.NOISE)
        config = autoencoder.Config(body=body, head=Identity(), likelihood=Gaussian(), corruption=noise)
    else:
        body = ConvNet(network.hidden) if network.convolutional else MLP(network.hidden)
        if network.patch:
            body = Mixer(network.patch, *network.hidden)
        config = autoencoder.Config(body=body, head=Deterministic(network.latent), likelihood=Gaussian())
    if network.variational:
        config = dataclasses.replace(config, head=Variational(network.latent), objective=ELBO())
    model = autoencoder.build(config, network.shape)
    encoder, decoder = model.encoder, model.decoder
    if network.blocks:
        layers, kernels = convolutions(encoder, decoder), networks.unet_kernels(network)
    elif network.patch:
        layers, kernels = linear_layers(model), networks.mixer_kernels(network)
    else:
        w = networks.weights(network)
        kernels = (*w.encoder, w.code, *w.expand, *w.decoder)
        if network.convolutional:
            layers = [*encoder.stages, model.head.linear, decoder.expand, *decoder.stages]
        else:
            dense = [layer.linear for layer in (*encoder.stack.layers, *decoder.stack.layers)]
            layers = [*dense[: len(w.encoder)], model.head.linear, *dense[len(w.encoder) :], decoder.out]
    for layer, kernel in zip(layers, kernels, strict=True):
        layer.kernel[...] = jnp.asarray(kernel)

    x = jnp.asarray(networks.images(network, network.samples))
    steps = network.samples // batch
    optimizer = training.Optimizer(microbatches=microbatches(network, batch))
    graphdef = nnx.split(model)[0]
    step_key, _ = fitting.keys(0)
    _, objective, run_block = fitting.compiled_for(model, autoencoder.own_objective, precision, short=False)
    program = step.Program(graphdef, objective, optimizer, batch)
    state, epoch = step.init(model, optimizer, LEARNING_RATE), 0
    if members is not None:
        state = population.stack([state] * members)

    def train() -> None:
        nonlocal state, epoch
        block = (x, feed.shuffle(0, epoch, len(x)), step_key, epoch * steps, (epoch + 1) * steps, 1000 * steps)
        state = (run_block if members is None else population.train_block)(program, state, *block)
        epoch += 1
        jax.block_until_ready(state)

    def traffic() -> float:
        one_step = jax.jit(step.train_step, static_argnames=("graphdef", "objective", "optimizer"))
        whole = dataclasses.replace(optimizer, microbatches=1)  # in a loop over parts, XLA counts only one
        compiled = one_step.lower(graphdef, objective, whole, state, x[:batch], step_key, 0, 1000 * steps).compile()
        return compiled.cost_analysis()["bytes accessed"] / batch

    return Contestant(lambda: float(objective(model, x[:batch], None).mean()), train, traffic)


def convolutions(encoder: Any, decoder: Any) -> list[Any]:
    """The layers of flaxae's U-Net in the order in which they are applied."""

    def of(blocks: Any) -> list[Any]:
        return [layer for block in blocks for layer in (block.first, block.second)]

    found = [encoder.first, *of(encoder.blocks[0])]
    for down, blocks in zip(encoder.down, encoder.blocks[1:], strict=True):
        found += [down, *of(blocks)]
    for up, blocks in zip(decoder.up, decoder.blocks, strict=True):
        found += [up, *of(blocks)]
    return [*found, decoder.last]


def linear_layers(model: Any) -> list[Any]:
    """The linear layers of flaxae's Mixer in the order in which they are applied."""

    def of(body: Any) -> list[Any]:
        return [layer for mix in (body.blocks[0].tokens, body.blocks[0].channels) for layer in (mix.up, mix.down)]

    encoder, decoder = model.encoder, model.decoder
    return [encoder.embed, *of(encoder), model.head.linear, decoder.expand, *of(decoder), decoder.pixels]


def microbatches(network: Network, batch: int) -> int:
    """Into how many parts flaxae cuts a batch: on CPUs the least power of 2 so that a part fits the cache."""
    import jax

    if jax.default_backend() != "cpu":
        return 1
    parts = batch * 4 * math.prod(network.shape) / CACHED if network.convolutional else 1
    return 2 ** max(0, math.ceil(math.log2(parts)))


def torch(
    network: Network,
    batch: int,
    *,
    fused: bool = True,
    compiled: bool = False,
    last: bool = False,
    loader: bool = False,
    bfloat16: bool = False,
) -> Contestant:
    """Eager, with the data preloaded and fused Adam; or compiled; in channels-last; from a DataLoader; in bfloat16.

    Torch pads images at all sides, where flaxae and TensorFlow pad at the far ones. So it gets flipped images and
    kernels, which gives the same numbers without another copy in each step.
    """
    import torch
    from torch import nn
    from torch.nn import functional

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")  # on a GPU in TF32, as JAX has it by default
    layout = torch.channels_last if last else torch.contiguous_format

    def with_kernel(layer: nn.Module, kernel: np.ndarray) -> nn.Module:
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(np.ascontiguousarray(kernel)))
            if layer.bias is not None:
                layer.bias.zero_()
        return layer

    def linear(kernel: np.ndarray) -> nn.Module:
        return with_kernel(nn.Linear(*kernel.shape), kernel.T)

    w = None if network.blocks or network.patch else networks.weights(network)
    if network.blocks:
        encode, decode = nn.Identity(), torch_unet(network, with_kernel)
    elif network.patch:
        encode, decode = torch_mixer(network, linear)
    elif network.convolutional:
        height, width, channels = networks.smallest(network)
        # for a flattened image: flipped, and channels first
        turned = np.arange(height * width * channels).reshape(height, width, channels)[::-1, ::-1]
        turned = turned.transpose(2, 0, 1).ravel()
        encoder = [
            [with_kernel(nn.Conv2d(*k.shape[2:], 3, 2, 1), k[::-1, ::-1].transpose(3, 2, 0, 1)), nn.ReLU()]
            for k in w.encoder
        ]
        decoder = [
            [nn.ReLU(), with_kernel(nn.ConvTranspose2d(*k.shape[2:], 3, 2, 1, 1), k.transpose(2, 3, 0, 1))]
            for k in w.decoder
        ]
        encode = nn.Sequential(*itertools.chain(*encoder), nn.Flatten(), linear(w.code[turned]))
        decode = nn.Sequential(
            linear(w.expand[0][:, turned]), nn.Unflatten(1, (channels, height, width)), *itertools.chain(*decoder)
        )
    else:
        encode = nn.Sequential(*itertools.chain(*([linear(k), nn.ReLU()] for k in w.encoder)), linear(w.code))
        hidden = itertools.chain(*([linear(k), nn.ReLU()] for k in w.decoder[:-1]))
        decode = nn.Sequential(*hidden, linear(w.decoder[-1]))

    def objective(x: torch.Tensor, noise: float = 1.0) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            return loss_of(x, noise)

    def loss_of(x: torch.Tensor, noise: float) -> torch.Tensor:
        code = encode(x + noise * networks.NOISE * torch.randn_like(x) if network.blocks else x)
        kl = 0.0
        if network.variational:
            mean, logvar = code.chunk(2, dim=1)
            logvar = LOGVAR_BOUND * torch.tanh(logvar / LOGVAR_BOUND)
            code = mean + noise * torch.exp(0.5 * logvar) * torch.randn_like(mean)
            kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1).mean()
        squared = functional.mse_loss(decode(code), x, reduction="sum") / len(x)
        return 0.5 * squared + CONSTANT * x[0].numel() + kl

    model = nn.ModuleList([encode, decode]).to(device, memory_format=layout)
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=fused)
    loss = torch.compile(objective, mode="reduce-overhead" if device == "cuda" else None) if compiled else objective
    x = networks.images(network, network.samples)
    if network.convolutional:
        x = np.ascontiguousarray(x[:, ::-1, ::-1].transpose(0, 3, 1, 2))
    if network.blocks:
        x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    x = torch.from_numpy(x)
    if loader:
        data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch, shuffle=True, drop_last=True)
        batches = lambda: (one.to(device) for (one,) in data)  # noqa: E731
    else:
        x = x.to(device)
        batches = lambda: (x[rows] for rows in torch.randperm(len(x), device=device).split(batch))  # noqa: E731

    def train() -> None:
        for one in batches():
            optimizer.zero_grad(set_to_none=True)
            loss(one.contiguous(memory_format=layout) if last else one).backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    def starting_loss() -> float:
        with torch.no_grad():
            return float(objective(x[:batch].to(device), noise=0.0))

    return Contestant(starting_loss, train)


def torch_unet(network: Network, with_kernel: Callable[[Any, np.ndarray], Any]) -> Any:
    """The U-Net of `flaxae.nn.unet` as a torch module, from noisy images to clean ones."""
    import torch
    from torch import nn

    kernels = iter(networks.unet_kernels(network))

    def down(side: int, stride: int, padding: int) -> nn.Module:
        kernel = next(kernels)
        layer = nn.Conv2d(*kernel.shape[2:], side, stride, padding, bias=False)
        return with_kernel(layer, kernel.transpose(3, 2, 0, 1))

    def up(side: int, padding: int) -> nn.Module:
        kernel = next(kernels)
        layer = nn.ConvTranspose2d(*kernel.shape[2:], side, 2, padding, bias=False)
        return with_kernel(layer, kernel[::-1, ::-1].transpose(2, 3, 0, 1))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = down(3, 1, 1), down(3, 1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.second(self.first(x).relu())

    def blocks() -> nn.Module:
        return nn.Sequential(*(Block() for _ in range(network.blocks)))

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            levels = len(network.hidden)
            self.first = down(6, 2, 2)
            self.down = nn.ModuleList([blocks()])
            for _ in range(1, levels):
                self.down.append(nn.Sequential(down(2, 2, 0), blocks()))
            self.up, self.after = nn.ModuleList(), nn.ModuleList()
            for _ in range(1, levels):
                self.up.append(up(2, 0))
                self.after.append(blocks())
            self.last = up(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h, features = self.first(x), []
            for level in self.down:
                h = level(h)
                features.append(h)
            for up, after, beside in zip(self.up, self.after, reversed(features[:-1]), strict=True):
                h = after(up(h) + beside)
            return x + self.last(h)

    return UNet()


def torch_mixer(network: Network, linear: Callable[[np.ndarray], Any]) -> tuple[Any, Any]:
    """The Mixer of `flaxae.nn.mixer` as two torch modules, from images, channels last, to codes and back."""
    import torch
    from torch import nn

    embed, *block, code, expand, up, down, wide, narrow, pixels = networks.mixer_kernels(network)
    (tokens, _), (channels,), side = networks.patches(network), network.hidden, network.patch
    height, width, colours = network.shape
    grid = (height // side, width // side)
    # flaxae's codes are of features [channels, tokens], these of [tokens, channels]
    turned = np.arange(channels * tokens).reshape(channels, tokens).T.ravel()

    class Block(nn.Module):
        def __init__(self, *kernels: np.ndarray) -> None:
            super().__init__()
            up, down, wide, narrow = (linear(kernel) for kernel in kernels)
            self.norms = nn.ModuleList([nn.LayerNorm(channels, eps=1e-6) for _ in range(2)])
            self.tokens = nn.Sequential(up, nn.ReLU(), down)
            self.channels = nn.Sequential(wide, nn.ReLU(), narrow)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x + self.tokens(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
            return x + self.channels(self.norms[1](x))

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.block, self.code = linear(embed), Block(*block), linear(code[turned])
            self.positions = nn.Parameter(torch.zeros(tokens, channels))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.view(-1, grid[0], side, grid[1], side, colours).transpose(2, 3).reshape(len(x), tokens, -1)
            return self.code(self.block(self.embed(x) + self.positions).flatten(1))

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.expand, self.block = linear(expand[:, turned]), Block(up, down, wide, narrow)
            self.norm, self.pixels = nn.LayerNorm(channels, eps=1e-6), linear(pixels)

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            x = self.pixels(self.norm(self.block(self.expand(z).view(-1, tokens, channels))))
            x = x.view(-1, *grid, side, side, colours).transpose(2, 3)
            return x.reshape(-1, height, width, colours)

    return Encoder(), Decoder()


def keras(network: Network, batch: int, backend: str) -> Contestant:
    """`Model.fit`."""
    os.environ["KERAS_BACKEND"] = backend
    import keras
    from keras import layers, ops

    w = networks.weights(network)

    class Sample(layers.Layer):
        """Draws z ~ N(mean, exp(logvar)), and adds the KL divergence to the losses."""

        def __init__(self) -> None:
            super().__init__()
            self.seed = keras.random.SeedGenerator(0)

        def call(self, code: Any, training: bool | None = None) -> Any:
            mean, logvar = ops.split(code, 2, axis=1)
            logvar = LOGVAR_BOUND * ops.tanh(logvar / LOGVAR_BOUND)
            self.add_loss(ops.mean(0.5 * ops.sum(ops.square(mean) + ops.exp(logvar) - 1 - logvar, axis=1)))
            noise = keras.random.normal(ops.shape(mean), seed=self.seed) if training else 0.0
            return mean + ops.exp(0.5 * logvar) * noise

    x = h = keras.Input(network.shape)
    made: list[tuple[Any, np.ndarray]] = []

    def add(layer: Any, kernel: np.ndarray, h: Any) -> Any:
        made.append((layer, kernel))
        return layer(h)

    for k in w.encoder:
        if network.convolutional:
            h = add(layers.Conv2D(k.shape[3], 3, 2, "same", activation="relu"), k, h)
        else:
            h = add(layers.Dense(k.shape[1], activation="relu"), k, h)
    h = add(layers.Dense(w.code.shape[1]), w.code, layers.Flatten()(h) if network.convolutional else h)
    if network.variational:
        h = Sample()(h)
    for k in w.expand:
        h = add(layers.Dense(k.shape[1], activation="relu"), k, h)
        h = layers.Reshape(networks.smallest(network))(h)
    for i, k in enumerate(w.decoder):
        activation = None if i == len(w.decoder) - 1 else "relu"
        if network.convolutional:
            layer = layers.Conv2DTranspose(k.shape[3], 3, 2, "same", activation=activation)
            h = add(layer, k[::-1, ::-1].swapaxes(2, 3), h)
        else:
            h = add(layers.Dense(k.shape[1], activation=activation), k, h)
    model = keras.Model(x, h)
    for layer, kernel in made:
        layer.set_weights([kernel, np.zeros_like(layer.get_weights()[1])])

    values = math.prod(network.shape)

    def negative_log_likelihood(x: Any, mean: Any) -> Any:
        return 0.5 * ops.sum(ops.reshape(ops.square(x - mean), (-1, values)), axis=1) + CONSTANT * values

    model.compile(keras.optimizers.Adam(LEARNING_RATE), negative_log_likelihood)
    data = networks.images(network, network.samples)
    return Contestant(
        lambda: float(model.evaluate(data[:batch], data[:batch], batch, verbose=0)),
        lambda: model.fit(data, data, batch, epochs=1, verbose=0),
    )


CONTESTANTS: dict[str, Callable[[Network, int], Contestant]] = {
    "flaxae": flaxae,
    "torch": torch,
    "torch, channels last": lambda network, batch: torch(network, batch, last=True),
    "torch.compile": lambda network, batch: torch(network, batch, compiled=True),
    "flaxae, bfloat16": lambda network, batch: flaxae(network, batch, precision="bf16"),
    "torch, bfloat16": lambda network, batch: torch(network, batch, bfloat16=True),
    "torch, DataLoader": lambda network, batch: torch(network, batch, fused=False, loader=True),
    "Keras, TensorFlow": lambda network, batch: keras(network, batch, "tensorflow"),
    "Keras, JAX": lambda network, batch: keras(network, batch, "jax"),
    **{f"flaxae, {n} at once": functools.partial(flaxae, members=n) for n in (1, 4, 16, 64, 256)},
}


def peak() -> float:
    """FLOP/s of ten products of matrices of 1024 × 1024, in JAX."""
    import jax
    import jax.numpy as jnp

    a = jnp.ones((1024, 1024))
    product = jax.jit(lambda a: jax.lax.fori_loop(0, 10, lambda _, b: (a @ b) * 1e-3, a))
    jax.block_until_ready(product(a))
    start = time.perf_counter()
    jax.block_until_ready(product(a))
    return 10 * 2 * 1024**3 / (time.perf_counter() - start)


def bandwidth() -> float:
    """Bytes per second that are read and written when a number is added to 256 MiB of numbers, ten times, in JAX."""
    import jax
    import jax.numpy as jnp

    a = jnp.ones(2**26)
    add = jax.jit(lambda a: jax.lax.fori_loop(0, 10, lambda _, b: b + 1, a))
    jax.block_until_ready(add(a))
    start = time.perf_counter()
    jax.block_until_ready(add(a))
    return 10 * 2 * a.nbytes / (time.perf_counter() - start)


def memory() -> float:
    """The peak of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(name: str, network: str, batch: str) -> None:
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        contestant = CONTESTANTS[name](networks.NETWORKS[network], int(batch))
        for line in sys.stdin:
            start = time.perf_counter()
            match line.strip():
                case "train":
                    contestant.train()
                    answer = time.perf_counter() - start
                case "loss":
                    answer = contestant.loss()
                case "peak":
                    answer = peak()
                case "bandwidth":
                    answer = bandwidth()
                case "traffic":
                    answer = contestant.traffic()
                case "memory":
                    answer = memory()
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
