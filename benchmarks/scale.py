"""Training on data that don't fit in memory, on many devices, and in many processes: measurements and checks.

    python -m benchmarks.scale [rows] [stream] [memory] [devices] [processes] [mpirun] [failures]

By default it runs everything but `memory`, which first writes a file of --gigabytes (20). Times are also given in CPU
seconds, which a busy machine disturbs less. Several devices are simulated on the CPU; several processes run on this
machine.
"""

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
# The command line, changed to stream files of any size and to save often.
RUN = """
import sys, run
from flaxae.training import feed, loop
from flaxae.data import arrays
arrays.MAP_BYTES, feed.WINDOW_BYTES = 0, 100_000
loop.SAVE_SECONDS, loop.BLOCK_SECONDS, loop.BLOCK_STEPS = 0.5, 0.05, 1
sys.exit(run.main(sys.argv[1:]))
"""
FLAGS = "--exp reconstruct --data table.npy --latent 4 --batch-size 512 --learning-rate 0.01"


def apart(function: Callable, *arguments: Any) -> Any:
    """The value of a function in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


class Rate:
    """The steps of `fit` on an MLP, timed without compiling."""

    def __init__(self, x: Any, hidden: tuple[int, ...], latent: int, batch_size: int):
        from flax import nnx

        from flaxae import autoencoder, training
        from flaxae.likelihoods import Gaussian
        from flaxae.nn.heads import Deterministic
        from flaxae.nn.mlp import MLP
        from flaxae.training import fitting, step

        config = autoencoder.Config(body=MLP(hidden), head=Deterministic(latent), likelihood=Gaussian())
        model = autoencoder.build(config, x.shape[1:])
        x, _ = training.split(model, x, 0.0, 0, None)
        self.batch_size = batch_size
        self.source = fitting.feed_of(model, x, batch_size, 0, None)
        optimizer = training.Optimizer()
        self.key = fitting.keys(0)[0]
        self.program = step.Program(nnx.split(model)[0], autoencoder.own_objective, optimizer, batch_size)
        self.state = step.init(model, optimizer, 1e-3)
        self.step = step
        self.window = 0
        self(1)

    def __call__(self, samples: int) -> tuple[float, float]:
        """Seconds and CPU seconds per sample, over whole windows."""
        import jax

        began, cpu_began, windows = time.perf_counter(), time.process_time(), 0
        per_window = self.source.steps * self.batch_size
        while windows * per_window < samples:
            x, order = self.source(self.window)
            first = self.window * self.source.steps
            last = first + self.source.steps
            self.state = self.step.train_block(self.program, self.state, x, order, self.key, first, last, 10**6)
            jax.block_until_ready(self.state)
            self.window += 1
            windows += 1
        trained = windows * per_window
        return (time.perf_counter() - began) / trained, (time.process_time() - cpu_began) / trained


def write(path: pathlib.Path, rows: int, columns: int) -> None:
    """Write a `.npy` file of uniform numbers, repeating the same million."""
    block = np.random.default_rng(0).random((max(1, 2**20 // columns), columns), np.float32)
    file = np.lib.format.open_memmap(path, "w+", np.float32, (rows, columns))
    for start in range(0, rows, len(block)):
        file[start : start + len(block)] = block[: rows - start]
    file.flush()


def rows_rate(path: str, streamed: bool) -> tuple[float, float]:
    """Seconds and CPU seconds per sample, over 4 million samples of a table."""
    x = np.load(path, mmap_mode="r") if streamed else np.load(path)
    return Rate(x, (64, 32), 8, 1024)(4_000_000)


def rows(folder: pathlib.Path) -> None:
    print(f"{'rows of 30 columns':>24}{'in memory':>28}{'streamed':>28}   µs a sample (of a processor)")
    for n in (10_000, 100_000, 1_000_000, 10_000_000):
        write(folder / "rows.npy", n, 30)
        found = [apart(rows_rate, str(folder / "rows.npy"), streamed) for streamed in (False, True)]
        cells = [f"{1e6 * wall:.3f} ({1e6 * cpu:.3f})" for wall, cpu in found]
        print(f"{n:>24,}{cells[0]:>28}{cells[1]:>28}", flush=True)


def stream_rates(path: str, rounds: int) -> list[list[tuple[float, float]]]:
    """Rates of the reference MLP, in memory and streamed, in turns."""
    ways = [Rate(x, (128, 64), 32, 256) for x in (np.load(path), np.load(path, mmap_mode="r"))]
    return [[way(400_000) for way in ways] for _ in range(rounds)]


def stream(folder: pathlib.Path) -> None:
    write(folder / "images.npy", 200_000, 784)
    found = np.array(apart(stream_rates, str(folder / "images.npy"), 15))  # [round, way, (wall, cpu)]
    slower = found[:, 1] / found[:, 0] - 1
    for name, column in (("clock", 0), ("processor", 1)):
        ratio, rate = slower[:, column], 1 / np.median(found[..., column], axis=0)
        print(
            f"reference MLP, by the {name}: {rate[0]:,.0f} samples/s in memory, {rate[1]:,.0f} streamed; a sample "
            f"takes {np.median(ratio):+.1%} (rounds: {ratio.min():+.1%} to {ratio.max():+.1%})",
            flush=True,
        )


def stream_peak(path: str) -> tuple[float, float, float]:
    """The process' peak in MiB over an epoch, the seconds the epoch took, and the seconds of waiting for data."""
    from flaxae import autoencoder, training
    from flaxae.likelihoods import Gaussian
    from flaxae.nn.heads import Deterministic
    from flaxae.nn.mlp import MLP

    config = autoencoder.Config(body=MLP((128, 64)), head=Deterministic(32), likelihood=Gaussian())
    x, logged = np.load(path, mmap_mode="r"), []
    training.fit(autoencoder.build(config, x.shape[1:]), x, epochs=1, show=False, on_epoch=logged.append)
    # not from getrusage, which starts from the parent's peak
    status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024, logged[0]["seconds"], logged[0]["waited"]


def memory(folder: pathlib.Path, gigabytes: float) -> None:
    for size in (gigabytes / 2, gigabytes):
        needed = size * 1e9
        if shutil.disk_usage(folder).free < 1.2 * needed:
            print(f"{size:.1f} GB: not enough disk in {folder}.")
            continue
        write(folder / "large.npy", int(needed / 4 / 784), 784)
        peak, seconds, waited = apart(stream_peak, str(folder / "large.npy"))
        print(f"{size:6.1f} GB in {seconds:6.1f} s, {waited:.2f} s of it waiting: peak {peak:,.0f} MiB", flush=True)
        (folder / "large.npy").unlink()


def mesh_losses(cases: list[tuple[str | None, bool, bool]]) -> list[list[float]]:
    """The losses of every epoch for each case: (mesh, whether data are streamed, whether a population of 8 trains)."""
    from flaxae import autoencoder, data, training
    from flaxae.corruptions import GaussianNoise
    from flaxae.likelihoods import Gaussian
    from flaxae.nn.heads import Deterministic
    from flaxae.nn.mlp import MLP
    from flaxae.parallel import distributed
    from flaxae.training import feed, population

    feed.WINDOW_BYTES = 50_000
    x = np.random.default_rng(0).standard_normal((2000, 20)).astype(np.float32)
    config = autoencoder.Config(
        body=MLP((32,)), head=Deterministic(4), likelihood=Gaussian(), corruption=GaussianNoise(0.3)
    )
    found = []
    for shape, streamed, many in cases:
        mesh = None if shape is None else distributed.mesh(shape)
        settings = {"epochs": 2, "batch_size": 64, "mesh": mesh, "show": False}
        source = data.Stream(x) if streamed else x
        if many:
            members = population.fit_population(config, source, seeds=range(8), **settings).members
            histories = [member.history for member in members]
        else:
            histories = [training.fit(autoencoder.build(config, (20,)), source, **settings)]
        found.append([loss for history in histories for loss in history["loss"] + history["val_loss"]])
    return found


def devices(folder: pathlib.Path) -> None:
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    kinds = list(itertools.product((False, True), (False, True)))
    shapes = (None, "data=8", "population=8", "population=2,data=4")
    one, *found = np.split(np.array(apart(mesh_losses, [(s, *kind) for s in shapes for kind in kinds]), object), 4)
    del os.environ["XLA_FLAGS"]
    for shape, losses in zip(shapes[1:], found, strict=True):
        worst = max(difference(a, b) for a, b in zip(losses, one, strict=True))
        print(
            f"{shape}: in memory and streamed, one model and 8: losses differ from one device's by {worst:.1e} at most"
        )


def difference(a: Any, b: Any) -> float:
    """The largest difference, relative to the largest number."""
    return float(np.max(np.abs(np.subtract(a, b))) / max(np.max(np.abs(b)), np.finfo(np.float32).tiny))


class Job:
    """Processes of the command line that train together; their output is kept."""

    def __init__(
        self, folder: pathlib.Path, flags: str, count: int = 2, *, each: dict[int, dict[str, str]] | None = None
    ):
        self.folder, self.began = folder, time.monotonic()
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        self.processes = []
        for i in range(count):
            together = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(i)}
            environment = {**environment_of_run(folder), **(together if count > 1 else {}), **(each or {}).get(i, {})}
            if environment.get("MISSING"):
                continue
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", RUN, *flags.split()], cwd=folder, env=environment,
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                )
            )  # fmt: skip

    def wait(self, seconds: float = 300) -> list[tuple[int, str]]:
        """Wait for all processes, and return the exit status and stderr of each."""
        ended = [(process.communicate(timeout=seconds)[1].strip(), process.returncode) for process in self.processes]
        return [(status, errors) for errors, status in ended]

    def wait_for(self, path: pathlib.Path) -> None:
        """Wait until a file appears."""
        while not path.exists():
            if any(process.poll() is not None for process in self.processes):
                raise RuntimeError(f"It ended before {path} was there: {self.wait()}")
            time.sleep(0.02)


def environment_of_run(folder: pathlib.Path) -> dict[str, str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(folder / "cache")
    environment.pop("XLA_FLAGS", None)
    return environment


def table(folder: pathlib.Path, rows: int = 4000) -> None:
    """Write a table of 20 columns with structure to learn."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, 4)) @ rng.standard_normal((4, 20)) + 0.1 * rng.standard_normal((rows, 20))
    np.save(folder / "table.npy", x.astype(np.float32))


def weights(folder: pathlib.Path) -> list[np.ndarray]:
    import jax
    from flax import nnx

    from flaxae import trained

    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(trained.load(folder).model))]


def losses(run: pathlib.Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [loss for line in lines for loss in (line["loss"], line["val_loss"])]


def compare(what: str, run: pathlib.Path, expected: pathlib.Path) -> None:
    """Print how the weights and losses of two runs differ."""
    apart_by = max(difference(a, b) for a, b in zip(weights(run), weights(expected), strict=True))
    said = "the same weights, bit for bit" if apart_by == 0 else f"weights differ by {apart_by:.1e}"
    print(f"{what}: {said}; losses differ by {difference(losses(run), losses(expected)):.1e}", flush=True)


def finished(job: Job) -> None:
    ended = job.wait()
    if any(status for status, _ in ended):
        raise RuntimeError(f"It failed: {ended}")


def processes(folder: pathlib.Path) -> None:
    """Train in one process; in two; in two, one of which is killed and both restarted; and go from two to one."""
    runs = folder / "runs/reconstruct"
    flags = f"{FLAGS} --epochs 20 --name"
    finished(Job(folder, f"{flags} one", 1))
    finished(Job(folder, f"{flags} two"))
    compare("two processes beside one", runs / "two", runs / "one")
    for killed in (1, 0):
        name = f"killed-{killed}"
        job = Job(folder, f"{flags} {name}")
        job.wait_for(runs / name / "checkpoints/best")
        job.processes[killed].kill()
        began = time.monotonic()
        status, errors = job.wait()[1 - killed]
        print(f"process {killed} killed: the other ended after {time.monotonic() - began:.1f} s, {status}, {errors!r}")
        shutil.copytree(runs / name, runs / f"{name}-alone")
        finished(Job(folder, f"{flags} {name} --resume"))
        compare("restarted, beside two processes never stopped", runs / name, runs / "two")
    finished(Job(folder, f"{flags} killed-1-alone --resume", 1))
    compare("gone on with by one process, beside two never stopped", runs / "killed-1-alone", runs / "two")


def mpirun(folder: pathlib.Path) -> None:
    if shutil.which("mpirun") is None:
        print("mpirun: not installed, not checked")
        return
    flags = f"{FLAGS} --epochs 3 --name"
    finished(Job(folder, f"{flags} two-briefly"))
    launch = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", sys.executable, "-c", RUN]
    ended = subprocess.run(
        [*launch, *f"{flags} mpirun".split()],
        cwd=folder,
        env=environment_of_run(folder),
        capture_output=True,
        text=True,
    )
    if ended.returncode:
        raise RuntimeError(ended.stderr)
    runs = folder / "runs/reconstruct"
    compare("mpirun -n 2 beside two processes started by hand", runs / "mpirun", runs / "two-briefly")


def failures(folder: pathlib.Path) -> None:
    """Failures at the start: the status, message and seconds of each process."""
    flags = f"{FLAGS} --epochs 100000 --name"
    other = folder / "other/flaxae-9.9.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: flaxae\nVersion: 9.9\n")
    two_devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    first = Job(folder, f"{flags} used")
    first.wait_for(folder / "runs/reconstruct/used/checkpoints/best")
    cases = {
        "a folder in use": (f"{flags} used --resume", {}),
        "another number of devices": (f"{flags} a", {1: two_devices}),
        "another version": (f"{flags} b", {1: {"PYTHONPATH": f"{other.parent}:{ROOT}"}}),
        "the first process missing": (f"{flags} c", {0: {"MISSING": "1"}}),
        "the second process missing": (f"{flags} d", {1: {"MISSING": "1"}}),
    }
    for case, (flags, each) in cases.items():
        job = Job(folder, flags, each=each)
        ended = job.wait()
        print(f"{case}, after {time.monotonic() - job.began:.1f} s:")
        for status, errors in ended:
            print(f"    {status} {errors}")
    for process in first.processes:
        process.send_signal(signal.SIGTERM)
    print(f"both told to stop: {[(status, errors[:60]) for status, errors in first.wait()]}")


@contextlib.contextmanager
def scratch(parent: str | None) -> Iterator[pathlib.Path]:
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        yield pathlib.Path(folder)


def main() -> None:
    checks = {"rows": rows, "stream": stream, "memory": memory, "devices": devices, "processes": processes}
    checks |= {"mpirun": mpirun, "failures": failures}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checks", nargs="*", help=f"which of {', '.join(checks)}")
    parser.add_argument("--gigabytes", type=float, default=20, help="of the largest file of `memory`")
    parser.add_argument("--folder", help="where to write files; by default the system's for temporary ones")
    arguments = parser.parse_args()
    if unknown := set(arguments.checks) - set(checks):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(checks)}")
    os.environ.setdefault("PYTHONPATH", str(ROOT))
    for name in arguments.checks or [name for name in checks if name != "memory"]:
        with scratch(arguments.folder) as folder:
            table(folder)
            print(f"--- {name}", flush=True)
            checks[name](folder, *([arguments.gigabytes] if name == "memory" else []))


if __name__ == "__main__":
    main()
