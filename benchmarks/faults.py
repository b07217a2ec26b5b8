"""What is lost, mixed or silently wrong when processes are killed, files are damaged, and inputs are odd.

    python -m benchmarks.faults kills --count 200
    python -m benchmarks.faults faults --count 2000
    python -m benchmarks.faults inputs --count 10000

`kills`: SIGKILL, at a random moment or at a random operation on files, of each experiment in turn, which is then
resumed and has to end with the results and weights of a run that nobody killed; and of saves over what was saved
before, of which the old or the new has to be read, whole. `faults`: a change of one file of a run or of what was
saved (a bit, a digit, an end, all of it, the same file of another run), and the commands that read it. What they give
has to be as ever, or one message has to say why not. `inputs`: mutated files of every format, which have to be read,
or refused in one message, within 20 s and 2 GiB.

Each process is forked from this one, which has imported everything and computed nothing.
"""

import argparse
import collections
import contextlib
import functools
import gzip
import hashlib
import io
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pandas as pd
from flax import nnx
from PIL import Image
from sklearn.datasets import load_digits

import flaxae
from flaxae import anomaly, command, data, estimators, runs, trained
from flaxae.errors import FlaxaeError
from flaxae.training import checkpoints

SECONDS, BYTES = 20, 2 * 2**30  # that an input may take
SHORT = ["--data", "digits.npz", "--seed", "3", "--name", "a"]
TABLE = ["--data", "table.csv", "--seed", "3", "--name", "a"]
EXPERIMENTS = {
    "denoise": [*SHORT, "--epochs", "6", "--latent", "8", "--model", "denoising"],
    "reconstruct": [*SHORT, "--epochs", "6", "--latent", "4"],
    "stacked": [*SHORT, "--epochs", "4", "--model", "stacked", "--latent", "4"],
    "sweep": [*SHORT, "--epochs", "4", "--sweep", "lr=1e-3,3e-3"],
    "generate": [*SHORT, "--epochs", "4"],
    "reduce": [*SHORT, "--epochs", "4"],
    "anomaly": [*TABLE, "--epochs", "20"],
    "members": [*TABLE, "--epochs", "8", "--members", "2"],
    "finetune": [*SHORT, "--epochs", "2", "--labels", "20", "--draws", "2", "--model", "denoising"],
}
OF = {"stacked": "reconstruct", "sweep": "reconstruct", "members": "anomaly"}  # the experiment of a name above
UNTIMED = ("seconds", "samples_per_s", "waited")  # in the names of results that differ from run to run


def prepare(folder: pathlib.Path) -> None:
    """Small data to train on."""
    digits = load_digits()
    images = (digits.images[:300] * 15).astype(np.uint8)
    np.savez(folder / "digits.npz", x=images, y=digits.target[:300])
    np.save(folder / "new.npy", images[:20])
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(400, 4)) @ rng.normal(size=(4, 4)), columns=["a", "b", "c", "d"])
    frame.to_csv(folder / "table.csv", index=False)
    frame[:30].to_csv(folder / "new.csv", index=False)


def arguments(name: str, *more: str) -> list[str]:
    """The command line of an experiment."""
    return [OF.get(name, name), *EXPERIMENTS[name], *more]


class Ended(Exception):
    """A child was killed, or ended with a traceback."""


def child(work: Callable[[], Any], *, seconds: float | None = None) -> tuple[int, str, float, int]:
    """Do something in a process of its own: its exit status (negative: a signal), output, seconds, bytes at most."""
    with tempfile.TemporaryFile("w+b") as said:
        began = time.perf_counter()
        pid = os.fork()
        if pid == 0:
            status = 70
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
            try:
                status = work() or 0
            except SystemExit as end:
                status = int(end.code or 0)
            except BaseException:
                traceback.print_exc()
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)
        if seconds is not None:
            time.sleep(seconds)
            os.kill(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
        said.seek(0)
        text = said.read().decode(errors="replace")
    return os.waitstatus_to_exitcode(status), text, time.perf_counter() - began, 1024 * usage.ru_maxrss


def run(*words: str) -> int:
    """The command line, in this process."""
    sys.argv = ["flaxae", *words]
    return command.main(list(words))


def digest(folder: str) -> str:
    """Of the weights that a folder holds."""
    loaded = flaxae.load(folder)
    if isinstance(loaded, trained.TrainedDetector):
        models: list[Any] = list(loaded.detector.models)
    elif isinstance(loaded, trained.TrainedClassifier):
        models = [loaded.trained.model, loaded.classifier]
    else:
        models = [loaded.model]
    leaves = jax.tree.leaves([nnx.state(model, nnx.Param) for model in models])
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()[:16]


def results(folder: str) -> dict[str, float]:
    """A run's, without what differs from run to run."""
    found = runs.open(folder).results()
    return {name: value for name, value in found.items() if not any(part in name for part in UNTIMED)}


def outcome(name: str) -> str:
    """What a finished run came to, in a child of its own."""
    folder = f"runs/{OF.get(name, name)}/a"
    status, text, *_ = child(lambda: print(json.dumps([results(folder), digest(folder)])))
    if status:
        raise Ended(text)
    return text.splitlines()[-1]


def killed_at(operation: int, root: str, work: Callable[[], Any]) -> Callable[[], Any]:
    """`work`, killed before that operation on files under `root`."""
    left = operation

    def audit(event: str, given: tuple[Any, ...]) -> None:
        nonlocal left
        if event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir") or not given:
            return
        if event == "open" and (not isinstance(given[2], int) or not given[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        if root in os.path.abspath(os.fspath(given[0]) if isinstance(given[0], str | os.PathLike) else "/"):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def start() -> Any:
        sys.addaudithook(audit)
        return work()

    return start


def kills(count: int, chance: random.Random) -> dict[str, int]:
    """Kill each experiment and save in turn, at a random moment or operation."""
    found: collections.Counter[str] = collections.Counter()
    wholes: dict[str, tuple[str, float]] = {}
    saves = saved_things()
    names = [*EXPERIMENTS, *saves]
    for number in range(count):
        name = names[number % len(names)]
        if name in saves:
            found[kill_save(name, saves[name], chance)] += 1
        else:
            wholes[name] = wholes.get(name) or whole(name)
            found[kill_run(name, *wholes[name], chance)] += 1
        print(f"{number + 1}/{count} {name}: {dict(found)}", flush=True)
    return dict(found)


def whole(name: str) -> tuple[str, float]:
    """What a run that nobody kills comes to, and how long it takes."""
    shutil.rmtree("runs", ignore_errors=True)
    status, text, seconds, _ = child(functools.partial(run, *arguments(name)))
    if status:
        raise Ended(f"{name}: {text}")
    return outcome(name), seconds


def kill_run(name: str, whole: str, lasts: float, chance: random.Random) -> str:
    shutil.rmtree("runs", ignore_errors=True)
    work = functools.partial(run, *arguments(name))
    for _ in range(chance.randint(1, 2)):  # a second kill falls on what resumes
        if chance.random() < 0.5:
            child(work, seconds=chance.uniform(0.1, lasts))
        else:
            child(killed_at(chance.randrange(60), os.path.abspath("runs"), work))
        begun = os.path.exists(f"runs/{OF.get(name, name)}/a/config.json")
        work = functools.partial(run, *arguments(name, *(["--resume"] if begun else [])))
    status, text, *_ = child(work)
    if status or "Traceback" in text:
        print(text[-2000:])
        return "lost" if status == 2 else "traceback"
    found = outcome(name)
    if found != whole:
        print(f"{name}: {found} is not {whole}")
    return "same bits" if found == whole else "other bits"


def saved_things() -> dict[str, tuple[Callable[[str, int], None], Callable[[str], str]]]:
    """What is saved over itself: how, from one of two seeds, and what tells the two apart once it is loaded."""
    x = pd.read_csv("table.csv").to_numpy(np.float32)

    def detector(folder: str, seed: int) -> None:
        anomaly.fit(x + 0, kind="tabular", epochs=1, seed=seed).save(folder)

    def estimator(folder: str, seed: int) -> None:
        estimators.AutoencoderDetector(epochs=1, random_state=seed).fit(x).save(folder)

    def step(folder: str, seed: int) -> None:
        checkpoints.save(folder, 0, {"x": np.full(1000, seed)}, keep=1)

    def scores(folder: str) -> str:
        found = flaxae.load(folder)
        values = found.score(x[:20]) if isinstance(found, anomaly.Detector) else found.decision_function(x[:20])
        return hashlib.sha256(values.tobytes()).hexdigest()

    def state(folder: str) -> str:
        return str(checkpoints.restore(folder, {"x": np.zeros(1000, int)})[1]["x"].tolist())

    return {"detector": (detector, scores), "estimator": (estimator, scores), "checkpoint": (step, state)}


def kill_save(name: str, how: tuple[Callable[[str, int], None], Callable[[str], str]], chance: random.Random) -> str:
    save, tell = how
    known = {}
    for seed in (1, 2):
        if not os.path.exists(f"{name}-{seed}"):
            child(functools.partial(save, f"{name}-{seed}", seed))
        known[child(lambda seed=seed: print(tell(f"{name}-{seed}")))[1]] = seed
    shutil.rmtree("saved", ignore_errors=True)
    shutil.rmtree(".saved.old", ignore_errors=True)
    shutil.copytree(f"{name}-1", "saved")
    child(killed_at(chance.randrange(40), os.path.abspath("."), functools.partial(save, "saved", 2)))
    status, text, *_ = child(lambda: print(tell("saved")))
    if text in known:
        return "whole"
    print(text[-2000:])
    return "lost" if status else "mixed"


FAULTS: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "bit": lambda good, chance: flipped(good, chance),
    "digit": lambda good, chance: with_other_digit(good, chance),
    "end": lambda good, chance: good[: chance.randrange(len(good))],
    "zeros": lambda good, chance: bytes(len(good)),
    "more": lambda good, chance: good + b"\0",
    "line": lambda good, chance: without_a_line(good, chance),
    "missing": lambda good, chance: None,
}


def flipped(good: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(good))
    return good[:place] + bytes([good[place] ^ 1 << chance.randrange(8)]) + good[place + 1 :]


def with_other_digit(good: bytes, chance: random.Random) -> bytes:
    places = [i for i, byte in enumerate(good) if 48 <= byte <= 57]
    if not places:
        return flipped(good, chance)
    place = chance.choice(places)
    return good[:place] + str((good[place] - 48 + chance.randint(1, 9)) % 10).encode() + good[place + 1 :]


def without_a_line(good: bytes, chance: random.Random) -> bytes:
    lines = good.splitlines(keepends=True)
    lines.pop(chance.randrange(len(lines)))
    return b"".join(lines)


def faults(count: int, chance: random.Random) -> dict[str, int]:
    """Damage one file at a time, and use what it belongs to. All in one child, which compiles each program once."""
    kept = pathlib.Path("kept")
    for name in ("denoise", "anomaly", "finetune"):
        for seed in ("3", "4"):
            words = [seed if word == "3" else word for word in arguments(name)]
            status, text, *_ = child(functools.partial(run, *words))
            if status:
                raise Ended(text)
            shutil.move(f"runs/{name}/a", kept / f"{name}-{seed}")
    saves = saved_things()
    for name in ("detector", "estimator"):
        for seed in (3, 4):
            child(functools.partial(saves[name][0], f"kept/{name}-{seed}", seed))
    table = collections.Counter()

    def work() -> int:
        known: dict[tuple[str, str], Any] = {}
        for number in range(count):
            name = chance.choice(["denoise", "anomaly", "finetune", "detector", "estimator"])
            uses = USES[name]
            use = chance.choice(sorted(uses))
            if (name, use) not in known:
                known[name, use] = used(name, uses[use], None)
            files = [path for path in sorted((kept / f"{name}-3").rglob("*")) if path.is_file() and path.stat().st_size]
            files = [path for path in files if path.suffix not in (".png", ".html") and not path.name.startswith(".")]
            path, kind = chance.choice(files), chance.choice([*FAULTS, "swapped"])
            said = judged(known[name, use], used(name, uses[use], (path, kind, chance)))
            table[said] += 1
            if said in ("silent", "traceback"):
                print(f"{said}: {name} {use} {path} {kind}", flush=True)
            if number % 50 == 49:
                print(f"{number + 1}/{count} {dict(table)}", flush=True)
        pathlib.Path("faults.json").write_text(json.dumps(table))
        return 0

    status, text, *_ = child(work)
    print(text)
    if status:
        raise Ended(text)
    return json.loads(pathlib.Path("faults.json").read_text())


def applied(experiment: str, given: str, made: str) -> Callable[[str], Any]:
    def use(folder: str) -> Any:
        path = pathlib.Path(made)
        path.unlink(missing_ok=True)
        status = run(experiment, "--from", folder, "--input", given, "--output", made)
        return status, path.read_bytes() if path.exists() else None

    return use


def resumed(name: str) -> Callable[[str], Any]:
    def use(folder: str) -> Any:
        target = f"runs/{name}/a"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder, target)
        status = run(*arguments(name, "--resume"))
        return status, json.dumps([results(target), digest(target)]) if status == 0 else None

    return use


def scored(folder: str) -> Any:
    x = pd.read_csv("table.csv").to_numpy(np.float32)[:20]
    found = flaxae.load(folder)
    values = found.score(x) if isinstance(found, anomaly.Detector) else found.decision_function(x)
    return 0, values.tobytes()


USES: dict[str, dict[str, Callable[[str], Any]]] = {
    "denoise": {"apply": applied("denoise", "new.npy", "made.npy"), "resume": resumed("denoise")},
    "anomaly": {"apply": applied("anomaly", "new.csv", "made.csv"), "resume": resumed("anomaly")},
    "finetune": {"apply": applied("finetune", "new.npy", "made.csv")},
    "detector": {"load": scored},
    "estimator": {"load": scored},
}


def used(name: str, use: Callable[[str], Any], fault: tuple[pathlib.Path, str, random.Random] | None) -> Any:
    """The exit status, what was made, and what was said, by a copy with that fault."""
    shutil.rmtree("copy", ignore_errors=True)
    shutil.copytree(f"kept/{name}-3", "copy")
    if fault is not None:
        path, kind, chance = fault
        target = pathlib.Path("copy", path.relative_to(f"kept/{name}-3"))
        good = target.read_bytes()
        if kind == "swapped":
            others = pathlib.Path(f"kept/{name}-4", path.relative_to(f"kept/{name}-3"))
            bad = others.read_bytes() if others.exists() else flipped(good, chance)
        else:
            bad = FAULTS[kind](good, chance)
        target.unlink() if bad is None else target.write_bytes(bad)
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("always")
            status, made = use("copy")
    except FlaxaeError as error:
        return 2, None, f"error: {error}"
    except Exception:
        return 1, None, traceback.format_exc()
    return status, made, err.getvalue()


def judged(good: Any, found: Any) -> str:
    if found[0] == 1 or "Traceback" in found[2]:
        print(found[2][-1500:])
        return "traceback"
    if found[:2] == good[:2]:
        return "the same"
    return "said" if "error: " in found[2] or "warning: " in found[2] else "silent"


def samples(folder: pathlib.Path) -> list[tuple[pathlib.Path, dict[str, Any]]]:
    """Good files of every format, and how they are loaded."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 5))
    np.save(folder / "a.npy", x)
    np.savez(folder / "b.npz", x=x, y=np.arange(40) % 3)
    np.savez_compressed(folder / "c.npz", x=np.zeros((40, 5)))
    frame = pd.DataFrame(x, columns=list("abcde")).assign(kind=["p", "q"] * 20)
    frame.to_csv(folder / "d.csv", index=False)
    frame.to_parquet(folder / "e.parquet")
    from scipy.io import wavfile

    wavfile.write(folder / "f.wav", 8000, (rng.normal(size=400) * 1000).astype(np.int16))
    for i, ending in enumerate(("png", "jpg", "tif", "bmp", "webp", "pgm")):
        (folder / ending).mkdir()
        for j in range(4):
            pixels = rng.integers(0, 255, (8, 8), np.uint8)
            Image.fromarray(pixels).save(folder / ending / f"{i}{j}.{ending}")
    pixels = Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).convert("P", palette=Image.Palette.ADAPTIVE)
    pixels.save(folder / "png" / "palette.png")
    idx = folder / "idx"
    idx.mkdir()
    images = rng.integers(0, 255, (20, 6, 6), np.uint8)
    with gzip.open(idx / "train-images-idx3-ubyte.gz", "wb") as file:
        file.write(struct.pack(">HBBIII", 0, 8, 3, *images.shape) + images.tobytes())
    windowed = [(path, {"window": 8}) for path in (folder / "f.wav", folder / "a.npy", folder / "d.csv")]
    files = [(path, {}) for path in sorted(folder.iterdir()) if path.suffix != ".wav"]
    return [*files, *windowed, (folder / "d.csv", {"label": "kind"})]


def inputs(count: int, chance: random.Random) -> dict[str, int]:
    """Mutate files of every format, and load them, in children of a hundred each."""
    good, bad = pathlib.Path("good"), pathlib.Path("bad")
    good.mkdir()
    sources = samples(good)
    for path, settings in sources:  # which are good, or nothing is measured
        status, text, *_ = child(lambda path=path, settings=settings: str(data.load(path, **settings)) and None)
        if status:
            raise Ended(f"{path} {settings}: {text}")
    found: collections.Counter[str] = collections.Counter()
    for first in range(0, count, 100):
        seed = chance.randrange(2**32)

        def work(seed: int = seed, size: int = min(100, count - first)) -> int:
            own = random.Random(seed)
            table: collections.Counter[str] = collections.Counter()
            warnings.simplefilter("ignore")
            for _ in range(size):
                table[one_input(*own.choice(sources), bad, own)] += 1
            pathlib.Path("inputs.json").write_text(json.dumps(table))
            return 0

        status, text, _, peak = child(work)
        print(text, end="", flush=True)
        if status:
            found["the process ended"] += 1
            print(f"status {status}", flush=True)
            continue
        found.update(json.loads(pathlib.Path("inputs.json").read_text()))
        found["over 2 GiB"] += peak > BYTES
        print(f"{first + 100}/{count} {dict(found)}, {peak / 2**20:,.0f} MiB", flush=True)
    return dict(found)


def one_input(source: pathlib.Path, settings: dict[str, Any], target: pathlib.Path, chance: random.Random) -> str:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    path = target / source.name
    shutil.copytree(source, path) if source.is_dir() else shutil.copy(source, path)
    file = chance.choice(sorted(path.iterdir())) if path.is_dir() else path
    file.write_bytes(mutated(file.read_bytes(), chance))
    began = time.perf_counter()
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(2 * SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            data.load(path, **settings)
        said = "read"
    except FlaxaeError as error:
        said = "refused" if len(str(error)) < 2000 else "a long message"
    except Exception:
        kept = pathlib.Path("odd") / f"{time.time_ns()}-{file.name}"
        kept.parent.mkdir(exist_ok=True)
        shutil.copy(file, kept)
        print(f"{source.name} {settings} {kept}\n{traceback.format_exc()[-1500:]}", flush=True)
        said = "traceback"
    finally:
        signal.alarm(0)
    return said if time.perf_counter() - began < SECONDS else "over 20 s"


def _too_long(number: int, frame: Any) -> None:
    raise TimeoutError("over 20 s")


def mutated(good: bytes, chance: random.Random) -> bytes:
    """A few changes of a file: bits, bytes, digits, huge numbers, pieces away, twice or from elsewhere."""
    for _ in range(chance.choice([1, 1, 1, 2, 4, 16])):
        if not good:
            return good
        a, b = sorted(chance.randrange(len(good) + 1) for _ in range(2))
        b = min(b, a + 64)
        kind = chance.randrange(9)
        if kind == 0:
            good = flipped(good, chance)
        elif kind == 1:
            good = with_other_digit(good, chance)
        elif kind == 2:
            good = good[:a] + chance.randbytes(b - a) + good[b:]
        elif kind == 3:
            good = good[:a] + good[b:]
        elif kind == 4:
            good = good[:b] + good[a:b] * chance.choice([1, 2, 50]) + good[b:]
        elif kind == 5:
            odd = (
                b"\xff" * 4,
                b"\0" * 8,
                b"9" * 400,
                b"1e400",
                b"-inf",
                b"(" * 3000,
                b'"',
                b"\n",
                b",",
                b"\xef\xbb\xbf",
            )
            good = good[:a] + chance.choice(odd) + good[a:]
        elif kind == 6:
            size = chance.choice([2, 4, 8])
            number = chance.choice([0, 2**31 - 1, 2**32 - 1, 2**16 - 1, 2**62, 10**7]) % 256**size
            good = good[:a] + number.to_bytes(size, chance.choice(["little", "big"])) + good[a + size :]
        elif kind == 7:
            good = good[: chance.randrange(len(good))]
        else:
            digits = chance.choice([b"9" * 30, b"99999999", b"-1", b"0"])
            good = good.replace(chance.choice([b"40", b"5", b"8"]), digits, 1)
    return good


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("kills", "faults", "inputs"))
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as place:
        os.environ["XDG_CACHE_HOME"] = os.path.join(place, "cache")  # not the user's
        os.mkdir(os.path.join(place, "work"))
        os.chdir(os.path.join(place, "work"))
        prepare(pathlib.Path("."))
        for name in {OF.get(name, name) for name in EXPERIMENTS}:  # imported once, before anything is forked
            __import__(f"flaxae.experiments.{name}")
        began = time.perf_counter()
        table = {"kills": kills, "faults": faults, "inputs": inputs}[given.what](given.count, random.Random(given.seed))
        print(f"{given.what}, {given.count} with seed {given.seed}: {table}, in {time.perf_counter() - began:,.0f} s")
