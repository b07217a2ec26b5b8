"""The speed of training in flaxae, torch and Keras.

    python -m benchmarks.training [NETWORK ...] [--quick] [--json FILE] [--population]

For each network, every contestant gets the same weights and must compute the same loss from them. Then they train in
turns, round by round, and ratios are paired within a round. Each contestant has its own process and waits while others
train. The first training, with compilation, is reported separately. In the same rounds, the matrix peak is measured
by a product in JAX, and the memory bandwidth by a sum; flaxae's share of the bandwidth also counts data that stay in
caches. On a machine with a GPU the same command measures there. It needs the extra `bench`; contestants that are not
installed are left out, and so is bfloat16 on processors without it, where torch's takes minutes. The machine must be
idle otherwise: torch's threads wait for each other on busy processors.
"""

import argparse
import functools
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
from importlib import metadata
from typing import Any

from benchmarks import networks

# 256 for the others; 4 and 64 are those of `--exp denoise` on photographs and on small images
BATCHES = {"conv": (256, 64), "unet": (4,), "mixer": (64,)}
EPOCH = 60_000
TORCH = ("torch", "torch, channels last", "torch.compile", "torch, DataLoader")
KERAS = ("Keras, TensorFlow", "Keras, JAX")
BFLOAT16 = ("flaxae, bfloat16", "torch, bfloat16")  # torch's by its autocast
PACKAGES = {**dict.fromkeys((*TORCH, BFLOAT16[1]), "torch"), "Keras, TensorFlow": "tensorflow", "Keras, JAX": "keras"}


class Worker:
    """A contestant in a process of its own, see `benchmarks.contestants`."""

    def __init__(self, contestant: str, network: str, batch: int):
        command = [sys.executable, "-m", "benchmarks.contestants", contestant, network, str(batch)]
        quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        self.name = contestant
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=quiet
        )

    def __call__(self, question: str) -> float:
        print(question, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.name} failed; try: echo {question} | {' '.join(map(repr, self.process.args))}")
        return json.loads(answer)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def asked(question: str) -> str:
    """What a line of Python prints in a process of its own: JAX in this one would keep a GPU's memory."""
    return subprocess.run([sys.executable, "-c", question], capture_output=True, text=True, check=True).stdout.strip()


@functools.cache
def has_bfloat16() -> bool:
    return asked("from flaxae.nn import products; print(products.fast_in_bfloat16())") == "True"


def contestants(network: networks.Network) -> list[str]:
    """The contestants that are installed and differ for this network."""
    names = ["flaxae", *TORCH, *(BFLOAT16 if has_bfloat16() else ()), *KERAS]
    if not (network.convolutional or network.blocks):
        names.remove("torch, channels last")
    if network.blocks or network.patch:
        names = [name for name in names if name not in KERAS]
    return [name for name in names if name not in PACKAGES or importlib.util.find_spec(PACKAGES[name])]


def compare(name: str, batch: int, rounds: int) -> dict[str, Any]:
    """Rates of all contestants, round by round."""
    network = networks.NETWORKS[name]
    workers = [Worker(contestant, name, batch) for contestant in contestants(network)]
    try:
        losses = {worker.name: worker("loss") for worker in workers}
        first = losses["flaxae"]
        allowed = {who: 1e-2 if who in BFLOAT16 else 1e-4 for who in losses}
        unequal = {who: loss for who, loss in losses.items() if abs(loss - first) > allowed[who] * abs(first)}
        if unequal:
            raise RuntimeError(f"{name}: the loss is {first} in flaxae, but {unequal}: these are not the same network.")
        compile_s = {worker.name: worker("train") for worker in workers}
        samples = network.samples // batch * batch
        rates: dict[str, list[float]] = {worker.name: [] for worker in workers}
        traffic, peaks, bandwidths = workers[0]("traffic"), [], []
        for _ in range(rounds):
            peaks.append(workers[0]("peak"))
            bandwidths.append(workers[0]("bandwidth"))
            for worker in workers:
                rates[worker.name].append(samples / worker("train"))
    finally:
        for worker in workers:
            worker.close()
    flop = networks.flop(network)
    return {
        "network": name,
        "batch": batch,
        "loss": first,
        "flop_per_sample": flop,
        "peak_flops": statistics.median(peaks),
        "fraction_of_peak": statistics.median(
            rate * flop / peak for rate, peak in zip(rates["flaxae"], peaks, strict=True)
        ),
        "bytes_per_sample": traffic,
        "bandwidth": statistics.median(bandwidths),
        "fraction_of_bandwidth": statistics.median(
            rate * traffic / bandwidth for rate, bandwidth in zip(rates["flaxae"], bandwidths, strict=True)
        ),
        "seconds_of_100_epochs": 100 * EPOCH / statistics.median(rates["flaxae"]),
        "first_training_s": compile_s,
        "samples_per_s": rates,
        "ratios": {who: ratio(rates["flaxae"], theirs) for who, theirs in with_best_torch(rates).items()},
        "bfloat16": {
            who: ratio(rates[BFLOAT16[0]], rates[who])
            for who in ("flaxae", BFLOAT16[1])
            if {who, BFLOAT16[0]} <= rates.keys()
        },
    }


def with_best_torch(rates: dict[str, list[float]]) -> dict[str, list[float]]:
    """The rates of the other contestants, and the best torch of each round."""
    torch = [rates[name] for name in TORCH if name in rates]
    best = {"the best torch of each round": [max(one) for one in zip(*torch, strict=True)]} if torch else {}
    return {**{name: rate for name, rate in rates.items() if name != "flaxae"}, **best}


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """How many times faster we are: the median of the rounds' ratios, and their range."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['network']}, batch {result['batch']}: {result['flop_per_sample'] / 1e6:.3f} MFLOP a sample, at "
        f"{result['fraction_of_peak']:.0%} of the matrix peak in flaxae ({result['peak_flops'] / 1e9:.0f} GFLOP/s)",
        f"  {result['bytes_per_sample'] / 1e3:.0f} kB a sample, {result['fraction_of_bandwidth']:.0%} of the memory's "
        f"bandwidth ({result['bandwidth'] / 1e9:.0f} GB/s); 100 epochs of {EPOCH:,} samples would take "
        f"{result['seconds_of_100_epochs']:,.0f} s",
        f"  {'':30}{'samples/s':>12}{'first epoch':>13}   flaxae is faster by",
    ]
    for who, rates in result["samples_per_s"].items():
        line = f"  {who:30}{statistics.median(rates):12,.0f}{result['first_training_s'][who]:11.1f} s"
        if who in result["ratios"]:
            line += "   {median:.2f} ({low:.2f} – {high:.2f})".format(**result["ratios"][who])
        lines.append(line)
    for who, found in result["ratios"].items():
        if who not in result["samples_per_s"]:
            lines.append(f"  {who:58}{found['median']:.2f} ({found['low']:.2f} – {found['high']:.2f})")
    for who, found in result["bfloat16"].items():
        lines.append(
            f"  in bfloat16 faster than {who:35}{found['median']:.2f} ({found['low']:.2f} – {found['high']:.2f})"
        )
    return "\n".join(lines)


def compare_population(name: str, members: int, rounds: int) -> dict[str, Any]:
    """A population trained as one program, compared with as many trainings one by one in flaxae and in torch."""
    together = Worker(f"flaxae, {members} at once", name, 256)
    alone = [Worker(one, name, 256) for one in ("flaxae", "torch") if one in contestants(networks.NETWORKS[name])]
    workers = [together, *alone]
    try:
        for worker in workers:
            worker("train")
        seconds = [{worker.name: worker("train") for worker in workers} for _ in range(rounds)]
    finally:
        for worker in workers:
            worker.close()
    faster = {
        worker.name: ratio([members / one[together.name] for one in seconds], [1 / one[worker.name] for one in seconds])
        for worker in alone
    }
    return {"network": name, "members": members, "seconds": seconds, "ratios": faster}


def population_line(result: dict[str, Any]) -> str:
    faster = ", ".join(
        "{median:.2f} ({low:.2f} – {high:.2f}) × as fast as {members} {who} runs in a row".format(
            **found, members=result["members"], who=who
        )
        for who, found in result["ratios"].items()
    )
    return f"{result['network']}, {result['members']} at once: {faster}"


def machine() -> dict[str, str]:
    """The hardware and software that the figures depend on."""
    device = asked("import jax; print(jax.devices()[0].platform, jax.devices()[0].device_kind)")
    packages = {one.metadata["Name"].lower(): one.version for one in metadata.distributions()}
    wanted = ("jax", "flax", "torch", "keras", "tensorflow", "tensorflow-cpu", "tensorflow_cpu")
    return {
        "device": f"{device}, {os.cpu_count()} processors, {platform.machine()}",
        "gpu": "not measured: there is none" if device.startswith("cpu") else device,
        "bfloat16": "measured" if has_bfloat16() else "not measured: this processor has no instructions for it",
        "versions": ", ".join(f"{name} {packages[name]}" for name in wanted if name in packages),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = [name for name in networks.NETWORKS if name != "small"]
    parser.add_argument("networks", nargs="*", help=f"which of {', '.join(known)}; by default all")
    parser.add_argument("--quick", action="store_true", help="2 rounds instead of 7")
    parser.add_argument("--population", type=int, nargs="*", metavar="N", help="so many at once, instead")
    parser.add_argument("--json", metavar="FILE", help="write all figures there too")
    arguments = parser.parse_args()
    unknown = set(arguments.networks) - set(networks.NETWORKS)
    if unknown:
        parser.error(f"unknown network {', '.join(sorted(unknown))}; known: {', '.join(networks.NETWORKS)}")
    rounds = 2 if arguments.quick else 7

    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"The load is {load:.1f}: this means little. Torch's threads wait for each other on busy processors.")
    results: dict[str, Any] = {"machine": {**machine(), "load": f"{load:.1f}"}, "training": [], "population": []}
    print("\n".join(f"{name}: {value}" for name, value in results["machine"].items()), flush=True)
    if arguments.population is None:
        for name in arguments.networks or known:
            for batch in BATCHES.get(name, (256,)):
                results["training"].append(compare(name, batch, rounds))
                print(table(results["training"][-1]), flush=True)
    else:
        for name in arguments.networks or ("small",):
            for members in arguments.population or (16,):
                results["population"].append(compare_population(name, members, rounds))
                print(population_line(results["population"][-1]), flush=True)
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
