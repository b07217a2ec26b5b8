"""Convolutional training on CPU: flaxae's convolutions beside those of `lax` in the same scan, and torch if installed.

    python -m benchmarks.convolutions [--rounds 5]

The network: 28×28 images, 3×3 convolutions of stride 2 with 1 → 16 → 32 channels, dense 32, and transposed back;
Adam, shuffled, float32. In each round every contestant trains once on the same number of samples, so that other
work on the machine affects all of them alike. Ratios are paired, and medians over the rounds. The matrix peak is
that of a 1024 × 1024 product in the same round. It takes two minutes on two idle cores; on busy ones torch's
threads wait for each other, and the comparison with it means nothing.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

from flaxae.nn import conv

SAMPLES = 10_240
LAX_SAMPLES = 1_024  # fewer, because it is slow
MULTIPLY_ADDS = 2 * (14 * 14 * 9 * 16 + 7 * 7 * 9 * 16 * 32 + 1568 * 32)  # one sample, forward
# Forward, and backward to weights and inputs, but not to the image.
FLOP = 2 * (3 * MULTIPLY_ADDS - 14 * 14 * 9 * 16)


class Network(nnx.Module):
    """[batch, 28, 28, 1] -> [batch, 28, 28, 1]."""

    def __init__(self, rngs: nnx.Rngs):
        self.down = nnx.List([conv.Conv(1, 16, stride=2, rngs=rngs), conv.Conv(16, 32, stride=2, rngs=rngs)])
        self.encode = nnx.Linear(1568, 32, rngs=rngs)
        self.decode = nnx.Linear(32, 1568, rngs=rngs)
        self.up = nnx.List(
            [conv.ConvTranspose(32, 16, stride=2, rngs=rngs), conv.ConvTranspose(16, 1, stride=2, rngs=rngs)]
        )

    def __call__(self, x):
        h = conv.from_nhwc(x)
        for layer in self.down:
            h = jax.nn.relu(layer(h))
        h = self.encode(conv.to_nhwc(h).reshape(len(x), -1))
        h = jax.nn.relu(self.decode(h))
        h = jax.nn.relu(self.up[0](conv.from_nhwc(h.reshape(-1, 7, 7, 32))))
        return conv.to_nhwc(self.up[1](h))


def in_scan(batch: int, samples: int, images: np.ndarray, batch_minor: bool) -> Callable[[], None]:
    """Training on that many samples in one compiled scan."""
    network, params = nnx.split(Network(nnx.Rngs(0)), nnx.Param)
    optimizer = optax.adam(1e-3)
    data = jnp.asarray(images)

    def loss(params, x):
        return jnp.mean(jnp.square(nnx.merge(network, params)(x) - x))

    @jax.jit
    def train(params, state, data, key):
        def step(carry, rows):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params, data[rows])
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        rows = jax.random.permutation(key, len(data))[:samples].reshape(-1, batch)
        return lax.scan(step, (params, state), rows)

    def run():
        jax.block_until_ready(train(params, optimizer.init(params), data, jax.random.key(0)))

    with mock.patch.object(conv, "_batch_minor", return_value=batch_minor):
        run()
    return run


def in_torch(batch: int, images: np.ndarray, channels_last: bool, fused: bool) -> Callable[[], None]:
    """The same training in torch, eager, with the data preloaded as one tensor."""
    import torch
    from torch import nn

    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1568, 32),
        nn.Linear(32, 1568),
        nn.ReLU(),
        nn.Unflatten(1, (32, 7, 7)),
        nn.ConvTranspose2d(32, 16, 3, 2, 1, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 1, 3, 2, 1, 1),
    ).to(memory_format=layout)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, fused=fused)
    data = torch.from_numpy(images).movedim(3, 1).contiguous()

    def run():
        for rows in torch.randperm(len(data)).split(batch):
            x = data[rows].contiguous(memory_format=layout)
            optimizer.zero_grad()
            (network(x) - x).square().mean().backward()
            optimizer.step()

    run()
    return run


def matrix_peak() -> Callable[[], None]:
    """Ten products of 1024 × 1024 matrices."""
    product = jax.jit(lambda a: lax.fori_loop(0, 10, lambda _, b: (a @ b) * 1e-3, a))
    a = jnp.ones((1024, 1024))
    return lambda: jax.block_until_ready(product(a))


def seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(batch: int, rounds: int) -> None:
    images = np.random.default_rng(0).random((SAMPLES, 28, 28, 1), np.float32)
    ours = in_scan(batch, SAMPLES, images, batch_minor=True)
    peak = matrix_peak()
    others = {"lax in the scan": in_scan(batch, LAX_SAMPLES, images, batch_minor=False)}
    if importlib.util.find_spec("torch"):
        others["torch"] = in_torch(batch, images, channels_last=False, fused=False)
        others["torch, fused Adam"] = in_torch(batch, images, channels_last=False, fused=True)
        others["torch, fused Adam, channels last"] = in_torch(batch, images, channels_last=True, fused=True)
    peak()

    rates = {name: [] for name in ("flaxae", *others)}  # samples/s
    fractions = []
    for _ in range(rounds):
        peak_flops = 10 * 2 * 1024**3 / seconds(peak)
        rates["flaxae"].append(SAMPLES / seconds(ours))
        fractions.append(rates["flaxae"][-1] * FLOP / peak_flops)
        for name, run in others.items():
            samples = LAX_SAMPLES if name.startswith("lax") else SAMPLES
            rates[name].append(samples / seconds(run))

    print(f"batch {batch}: {statistics.median(fractions):.0%} of the matrix peak")
    torch_rates = [rates[name] for name in others if name.startswith("torch")]
    if torch_rates:
        rates["the best torch of each round"] = [max(one_round) for one_round in zip(*torch_rates, strict=True)]
    for name, theirs in rates.items():
        ratio = statistics.median(a / b for a, b in zip(rates["flaxae"], theirs, strict=True))
        print(f"  {name:34}{statistics.median(theirs):8,.0f} samples/s   flaxae is {ratio:.2f} times as fast")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often each contestant trains")
    rounds = parser.parse_args().rounds
    for batch in (256, 64):
        compare(batch, rounds)


if __name__ == "__main__":
    main()
