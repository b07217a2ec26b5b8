"""Convolutional training on CPU: flaxae's convolutions beside those of `lax` in the same scan, and torch if installed.

    python -m benchmarks.convolutions [--rounds 5] [--shapes]

The network: 28×28 images, 3×3 convolutions of stride 2 with 1 → 16 → 32 channels, dense 32, and transposed back;
Adam, shuffled, float32. In each round every contestant trains once on the same number of samples, so that other
work on the machine affects all of them alike. Ratios are paired, and medians over the rounds. The matrix peak is
that of a 1024 × 1024 product in the same round. It takes two minutes on two idle cores; on busy ones torch's
threads wait for each other, and the comparison with it means nothing.

`--shapes` measures single 3×3 convolutions of stride 1 instead, forward and with both gradients: as U-Nets have them,
with oneDNN where it is installed and without, with the batch last by Winograd's and by plain products, all inside a
compiled loop, `lax` outside one, and torch. Then depthwise ones, in both layouts.
Operations are counted as those of a plain convolution, per second of the processor's time, which tells more than the
clock on a busy machine; `conv._winograd_pays` rests on them.
"""

import argparse
import contextlib
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

from flaxae.nn import conv, onednn
from flaxae.parallel import compilation

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


DEPTHWISE = ((32, 64, 16), (64, 32, 16), (128, 16, 16))  # channels, side, batch
SHAPES = ((32, 64, 16), (32, 28, 64), (48, 32, 16), (64, 32, 16), (96, 16, 16), (128, 8, 16), (64, 64, 4))
REPEATS = 5


def single(channels: int, side: int, batch: int, *, depthwise: bool = False) -> dict[str, Callable[[], None]]:
    """What convolves so, forward and backward, `REPEATS` times."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, side, side, channels)).astype(np.float32)
    kernel = (0.05 * rng.standard_normal((3, 3, 1 if depthwise else channels, channels))).astype(np.float32)
    operation = (lambda x, kernel: conv.depthwise_conv(x, kernel[:, :, 0])) if depthwise else conv.conv

    def step(convolve, x, kernel):
        y, pull_back = jax.vjp(convolve, x, kernel)
        of_x, of_kernel = lax.optimization_barrier(pull_back(0.01 * y))
        return kernel + 1e-6 * of_kernel + 1e-6 * of_x[0, 0, 0, 0]  # the next one depends on all of this one

    def in_loop(least_tiles: int = conv.LEAST_TILES, layout: Any = contextlib.nullcontext, **options: Any):
        def repeated(x, kernel):
            return lax.fori_loop(0, REPEATS, lambda _, kernel: step(operation, x, kernel), kernel)

        with mock.patch.object(conv, "LEAST_TILES", least_tiles), layout():
            arguments = conv.from_nhwc(jnp.asarray(x)), jnp.asarray(kernel)
            compiled = jax.jit(repeated).lower(*arguments).compile(options)
        return lambda: jax.block_until_ready(compiled(*arguments))

    def plain(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=channels if depthwise else 1,
        )  # fmt: skip

    alone = jax.jit(lambda x, kernel: step(plain, x, kernel))

    def outside():
        images, weights = jnp.asarray(x), jnp.asarray(kernel)
        for _ in range(REPEATS):
            weights = alone(images, weights)
        jax.block_until_ready(weights)

    runs = {"U-Net's": in_loop(layout=conv.many_channels, **compilation.WITHOUT_YNN)}
    if onednn.available():
        with mock.patch.object(onednn, "available", return_value=False):
            runs["without oneDNN"] = in_loop(layout=conv.many_channels, **compilation.WITHOUT_YNN)
    if depthwise:
        runs |= {"batch last": in_loop()}
    else:
        runs |= {"batch last, Winograd": in_loop(1), "batch last, products": in_loop(10**9), "lax, no loop": outside}
    if importlib.util.find_spec("torch"):
        import torch

        for name, layout in (("torch", torch.contiguous_format), ("torch, last", torch.channels_last)):
            images = torch.from_numpy(x).movedim(3, 1).contiguous(memory_format=layout).requires_grad_()
            weights = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()).contiguous(memory_format=layout)
            weights.requires_grad_()

            def of_torch(images=images, weights=weights):
                for _ in range(REPEATS):
                    y = torch.nn.functional.conv2d(images, weights, padding=1, groups=channels if depthwise else 1)
                    torch.autograd.grad(y, (images, weights), 0.01 * y.detach())

            runs[name] = of_torch
    return runs


def by_shape(rounds: int) -> None:
    """GFLOP a second of the processor's and of the clock, medians over the rounds, in which all run in turn."""
    print("channels, side, batch: GFLOP a second of one core's time (of the clock)")
    shapes = [(*shape, depthwise) for depthwise, of in ((False, SHAPES), (True, DEPTHWISE)) for shape in of]
    for channels, side, batch, depthwise in shapes:
        flop = REPEATS * 3 * 2 * 9 * channels * (1 if depthwise else channels) * side**2 * batch
        runs = single(channels, side, batch, depthwise=depthwise)
        taken = {name: [] for name in runs}
        for run in runs.values():
            run()
        for _ in range(rounds):
            for name, run in runs.items():
                start, clock = time.process_time(), time.perf_counter()
                run()
                taken[name].append((time.process_time() - start, time.perf_counter() - clock))
        found = []
        for name, times in taken.items():
            busy, elapsed = (statistics.median(part) for part in zip(*times, strict=True))
            found.append(f"{name} {flop / busy / 1e9:.0f} ({flop / elapsed / 1e9:.0f})")
        ours = next(iter(taken))
        best = [min(taken[name][i][1] for name in taken if name.startswith("torch")) for i in range(rounds)]
        ratio = (
            statistics.median(b / own[1] for b, own in zip(best, taken[ours], strict=True)) if "torch" in taken else 0
        )
        what = f"{channels}, {side}, {batch}{', depthwise' if depthwise else ''}"
        print(f"{what}: {'; '.join(found)}; the first is {ratio:.2f} times torch's", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often each contestant trains")
    parser.add_argument("--shapes", action="store_true", help="single convolutions instead of a network")
    arguments = parser.parse_args()
    if arguments.shapes:
        by_shape(arguments.rounds)
        return
    for batch in (256, 64):
        compare(batch, arguments.rounds)


if __name__ == "__main__":
    main()
