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
import dataclasses
import functools
import hashlib
import io
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

# Nearly all of the time was that of compiling: these are set before JAX is imported.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import jax
import numpy as np
import pandas as pd
from flax import nnx
from PIL import Image
from sklearn.datasets import load_digits

import flaxae
from benchmarks import hostile
from benchmarks.hostile import flipped, with_other_digit
from flaxae import (
    anomaly,
    cells,
    command,
    compression,
    data,
    estimators,
    generation,
    presets,
    recommendation,
    runs,
    sentences,
    sound,
    trained,
)
from flaxae.anomaly import series
from flaxae.compression import fitting
from flaxae.compression.transforms import Hyperprior, Transforms
from flaxae.data.signals import Signal
from flaxae.denoising import photographs
from flaxae.errors import FlaxaeError
from flaxae.experiments import _lossy, _sound  # pyright: ignore[reportMissingImports]
from flaxae.nn.masks import Masks
from flaxae.nn.unet import UNet
from flaxae.training import checkpoints

SECONDS, BYTES = 20, 2 * 2**30  # that an input may take
LONGEST = 2000  # characters of a message
A_CHILD = 500  # inputs, that one process reads
SHORT = ["--data", "digits.npz", "--seed", "3", "--name", "a"]
TABLE = ["--data", "table.csv", "--seed", "3", "--name", "a"]
EXPERIMENTS = {
    "denoise": [*SHORT, "--epochs", "6", "--latent", "8", "--model", "denoising"],
    "photographs": ["--data", "photos", *SHORT[2:], "--epochs", "3", "--crop", "16", "--batch-size", "2"],
    "sound": ["--data", "clips", *SHORT[2:], "--epochs", "3"],
    "reconstruct": [*SHORT, "--epochs", "6", "--latent", "4"],
    "stacked": [*SHORT, "--epochs", "4", "--model", "stacked", "--latent", "4"],
    "sweep": [*SHORT, "--epochs", "4", "--sweep", "lr=1e-3,3e-3"],
    "generate": [*SHORT, "--epochs", "4"],
    "reduce": [*SHORT, "--epochs", "4"],
    "anomaly": [*TABLE, "--epochs", "20"],
    "members": [*TABLE, "--epochs", "8", "--members", "2"],
    "series": ["--data", "series.csv", *SHORT[2:], "--window", "16"],
    "finetune": [*SHORT, "--epochs", "2", "--labels", "20", "--draws", "2", "--model", "denoising"],
    "compress": [*SHORT, "--epochs", "3"],
    "lossy": ["--data", "photos", *SHORT[2:], "--epochs", "3", "--quality", "50"],
    "embed": ["--data", "sentences.txt", *SHORT[2:], "--epochs", "3", "--latent", "8"],
    "recommend": ["--data", "ratings.csv", *SHORT[2:], "--epochs", "6", "--latent", "8"],
}
OF = {  # the experiment of a name above
    "photographs": "denoise",
    "sound": "denoise",
    "stacked": "reconstruct",
    "sweep": "reconstruct",
    "members": "anomaly",
    "series": "anomaly",
    "lossy": "compress",
}
UNTIMED = ("seconds", "samples_per_s", "mb_per_s", "waited")  # in the names of results that differ from run to run


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
    waves = np.stack([np.sin(np.arange(600) / 3), np.cos(np.arange(600) / 5)], axis=1)
    pd.DataFrame(waves + 0.1 * rng.normal(size=waves.shape), columns=["a", "b"]).to_csv("series.csv", index=False)
    said = [" ".join(rng.choice([f"w{i}" for i in range(40)], 6)) for _ in range(120)]
    (folder / "sentences.txt").write_text("\n".join(said) + "\n")
    (folder / "new.txt").write_text("\n".join(said[:5]) + "\n")
    taste = rng.random((60, 3)) @ rng.random((3, 25))
    users, items = np.nonzero(taste > np.quantile(taste, 0.7))
    chosen = pd.DataFrame({"user": [f"u{i}" for i in users], "item": [f"i{i}" for i in items]})
    chosen.to_csv(folder / "ratings.csv", index=False)
    (folder / "photos").mkdir()
    for i in range(6):
        small = Image.fromarray(rng.integers(0, 255, (6, 7, 3), np.uint8))
        small.resize((48 + 8 * (i % 2), 40), Image.Resampling.BICUBIC).save(folder / "photos" / f"{i}.png")
    moments = np.arange(8000) / 8000
    for i in range(4):
        wave = 0.2 * np.sin(2 * np.pi * (200 + 60 * i) * moments) * (1 + np.sin(9 * moments))
        data.write(folder / "clips" / f"{i}.wav", Signal(wave[:, None].astype(np.float32), 8000, subtype="PCM_16"))


def shorten() -> None:
    """Fewer steps of smaller networks, where they are large: what is written, and when, is as ever."""
    fitting.LOSSY = dataclasses.replace(fitting.LOSSY, body=Transforms((4, 8), 16, 1), head=Hyperprior(4, 8))
    sound_model = dataclasses.replace(sound.default_config(), body=Masks(8, (1, 2)))
    sound.default_config = lambda: sound_model
    photo_model = dataclasses.replace(presets.unet(), body=UNet((4, 8)))
    presets.unet = lambda: photo_model
    sound.EPOCH = photographs.EPOCH = fitting.LOSSY_EPOCH = 3
    sound.STRETCH, sound.VALIDATION = 0.25, 2
    _sound.MEASURED, _sound.SECONDS = 3, 0.5
    fitting.EPOCH, fitting.BATCH, fitting.VALIDATION = 10, 256, 1000
    fitting.CROP, fitting.CROPS, fitting.VALIDATED, fitting.LOSSY_BATCH = 64, 20, 2, 2
    _lossy.QUALITIES, _lossy.OTHERS = (1, 40, 75, 100), (10, 50, 90)


def arguments(name: str, *more: str) -> list[str]:
    """The command line of an experiment."""
    return [OF.get(name, name), *EXPERIMENTS[name], *more]


class Ended(Exception):
    """A child was killed, or ended with a traceback."""


def child(work: Callable[[], Any], *, seconds: float | None = None, heard: bool = False) -> tuple[int, str, float, int]:
    """Do something in a process of its own: its exit status (negative: a signal), output, seconds, bytes at most.

    Args:
        seconds: after which it is killed.
        heard: its output is this process', too.
    """
    with tempfile.TemporaryFile("w+b") as said:
        began = time.perf_counter()
        pid = os.fork()
        if pid == 0:
            status = 70
            if not heard:
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
        while seconds is not None and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.perf_counter() - began > seconds:
                os.kill(pid, signal.SIGKILL)
                break
            time.sleep(0.01)
        _, status, usage = os.wait4(pid, 0)
        said.seek(0)
        text = said.read().decode(errors="replace")
    return os.waitstatus_to_exitcode(status), text, time.perf_counter() - began, 1024 * usage.ru_maxrss


def run(*words: str) -> int:
    """The command line, in this process."""
    sys.argv = ["flaxae", *words]
    return command.main(list(words))


def digest(folder: str) -> str:
    """Of the weights that a run's folder holds."""
    loaded = flaxae.load(folder)
    parts: list[Any]
    if isinstance(loaded, trained.TrainedDetector):
        parts = list(loaded.detector.models)
    elif isinstance(loaded, trained.TrainedClassifier):
        parts = [loaded.trained.model, loaded.classifier]
    elif isinstance(loaded, trained.TrainedSeries):
        parts = [loaded.detector.references, loaded.detector.calibration]
    elif isinstance(loaded, compression.Codec):
        parts = [loaded.network.layers]
    elif isinstance(loaded, estimators.NetworkEstimator):
        parts = [loaded.model_]
    else:
        parts = [loaded.model]
    leaves = jax.tree.leaves([nnx.state(part, nnx.Param) if isinstance(part, nnx.Module) else part for part in parts])
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


def kills(count: int, chance: random.Random, only: list[str]) -> dict[str, int]:
    """Kill each experiment and save in turn, at a random moment or operation."""
    found: collections.Counter[str] = collections.Counter()
    wholes: dict[str, tuple[str, float]] = {}
    saves = {name: how for name, how in saved_things().items() if how.over}
    names = only or [*EXPERIMENTS, *saves]
    for number in range(count):
        name = names[number % len(names)]
        if name in saves:
            found[kill_save(name, saves[name], chance, found)] += 1
        else:
            wholes[name] = wholes.get(name) or whole(name)
            found[kill_run(name, *wholes[name], chance, found)] += 1
        print(f"{number + 1}/{count} {name}: {dict(found)}", flush=True)
    return dict(found)


def whole(name: str) -> tuple[str, float]:
    """What a run that nobody kills comes to, twice, and how long the second takes, whose programs were compiled."""
    found, seconds = [], 0.0
    for _ in range(2):
        shutil.rmtree("runs", ignore_errors=True)
        status, text, seconds, _ = child(functools.partial(run, *arguments(name)))
        if status:
            raise Ended(f"{name}: {text}")
        found.append(outcome(name))
    if found[0] != found[1]:
        raise Ended(f"{name}: two runs that nobody killed differ: {found}")
    return found[0], seconds


def kill_run(name: str, whole: str, lasts: float, chance: random.Random, found: collections.Counter[str]) -> str:
    """Kill a run once or twice, resume it, and compare what it comes to; how often it was killed is counted."""
    shutil.rmtree("runs", ignore_errors=True)
    work = functools.partial(run, *arguments(name))
    for _ in range(chance.randint(1, 2)):  # a second kill falls on what resumes
        if chance.random() < 0.5:
            status, *_ = child(work, seconds=chance.uniform(0.1, lasts))
        else:
            status, *_ = child(killed_at(chance.randrange(60), os.path.abspath("runs"), work))
        found["killed"] += status == -signal.SIGKILL
        begun = os.path.exists(f"runs/{OF.get(name, name)}/a/config.json")
        work = functools.partial(run, *arguments(name, *(["--resume"] if begun else [])))
    status, text, *_ = child(work)
    if status or "Traceback" in text:
        print(text[-2000:])
        return "lost" if status == 2 else "traceback"
    came_to = outcome(name)
    if came_to != whole:
        print(f"{name}: {came_to} is not {whole}")
    return "same bits" if came_to == whole else "other bits"


class Saved(NamedTuple):
    """What is saved: how it is made from one of two seeds, and how it is told apart once it is loaded."""

    fit: Callable[[int], Any]
    use: Callable[[Any], Any]  # numbers
    save: Callable[[Any, str], None] = lambda made, folder: made.save(folder)
    load: Callable[[str], Any] = flaxae.load
    over: bool = True  # may be saved where another is


def saved_things() -> dict[str, Saved]:
    """Everything that is saved apart from runs."""
    x = pd.read_csv("table.csv").to_numpy(np.float32)
    images = np.load("digits.npz")["x"][..., None]
    said = pathlib.Path("sentences.txt").read_text().splitlines()
    ratings = recommendation.read_ratings("ratings.csv").x
    counts = ratings + 1 * (ratings > 0)
    wave = pd.read_csv("series.csv").to_numpy(np.float32)
    windows = data.windows(wave, 16, 8)

    def autoencoder(seed: int) -> flaxae.Trained:
        model = flaxae.build(flaxae.presets.find("vanilla", flaxae.likelihoods.Gaussian()), (4,), seed=seed)
        return flaxae.Trained(model, data.Scaling((0.0,), (1.0,), "float32"), (4,), "tabular", ("a", "b", "c", "d"))

    def denoiser(seed: int) -> sound.SoundDenoiser:
        clips, rate, _ = sound.read_clips("clips")
        return sound.fit(clips, rate, steps=1, seed=seed, show=False)

    def prior(seed: int) -> generation.CodePrior:
        return generation.CodePrior.fit(np.random.default_rng(seed).normal(size=(200, 3)).astype(np.float32))

    def lossy(seed: int) -> compression.LossyCodec:
        return compression.fit_lossy(data.images.open("photos"), steps=1, seed=seed, show=False)[0]

    def restored(folder: str) -> Any:
        return checkpoints.restore(folder, {"x": np.zeros(1000, int)})[1]

    reconstructs = lambda made: made.reconstruct(x[:20])  # noqa: E731
    return {
        "detector": Saved(lambda seed: anomaly.fit(x + 0, kind="tabular", epochs=1, seed=seed), lambda d: d.score(x)),
        "estimator": Saved(
            lambda seed: estimators.AutoencoderDetector(epochs=1, random_state=seed).fit(x),
            lambda made: made.decision_function(x[:20]),
        ),
        "classifier": Saved(
            lambda seed: estimators.AutoencoderClassifier(epochs=1, random_state=seed).fit(x, x[:, 0] > 0),
            lambda made: made.predict_proba(x[:20]),
        ),
        "checkpoint": Saved(
            lambda seed: {"x": np.full(1000, seed)},
            lambda state: state["x"],
            lambda state, folder: checkpoints.save(folder, 0, state, keep=1),
            restored,
        ),
        "recommender": Saved(
            lambda seed: recommendation.Recommender(latent=4, epochs=1, random_state=seed).fit(ratings),
            lambda made: made.transform(ratings),
        ),
        "sentences": Saved(
            lambda seed: sentences.SentenceEmbedder(latent=4, epochs=1, random_state=seed).fit(said),
            lambda made: made.transform(said[:5]),
        ),
        "cells": Saved(
            lambda seed: cells.CellEmbedder(latent=4, epochs=1, random_state=seed).fit(counts),
            lambda made: made.transform(counts),
        ),
        "codec": Saved(
            lambda seed: compression.fit(images, steps=1, seed=seed, show=False)[0],
            lambda made: np.frombuffer(made.compress(images[:5]), np.uint8),
            load=compression.load,
        ),
        "lossy codec": Saved(
            lossy,
            lambda made: np.frombuffer(made.compress(images[:2]), np.uint8),
            load=compression.load,
        ),
        "series detector": Saved(
            lambda seed: series.fit(Signal(wave * seed + wave[::-1]), window=16),
            lambda made: made.score(windows),
            load=series.load,
        ),
        "sound denoiser": Saved(denoiser, lambda made: made.denoise(wave[:, 0]), load=sound.load),
        "prior": Saved(prior, lambda made: made.sample(20, seed=0), load=generation.CodePrior.load),
        "autoencoder": Saved(autoencoder, reconstructs, flaxae.save, over=False),
        "weights": Saved(
            autoencoder,
            reconstructs,
            lambda made, folder: flaxae.export(made, folder=folder, format="safetensors"),
            over=False,
        ),
    }


def make(name: str, how: Saved, seed: int) -> str:
    """The folder of what is saved, made in a child of its own if it is not there yet."""
    folder = f"{name}-{seed}"
    if not os.path.exists(folder):
        status, text, *_ = child(lambda: how.save(how.fit(seed), folder))
        if status:
            raise Ended(text)
    return folder


def told(how: Saved, folder: str) -> str:
    """What tells apart what is saved in a folder."""
    return hashlib.sha256(np.asarray(how.use(how.load(folder))).tobytes()).hexdigest()


def kill_save(name: str, how: Saved, chance: random.Random, found: collections.Counter[str]) -> str:
    """Kill a save over another, and see which of the two is read."""
    made = [child(lambda seed=seed: print(told(how, make(name, how, seed)))) for seed in (1, 2)]
    known = {text for _, text, *_ in made}
    if any(status for status, *_ in made) or len(known) < 2:
        raise Ended(f"{name}: the two are alike, or can't be read: {known}")
    shutil.rmtree("saved", ignore_errors=True)
    shutil.rmtree(".saved.old", ignore_errors=True)
    shutil.copytree(f"{name}-1", "saved")

    operation = chance.randrange(40)

    def work() -> None:
        made = how.load(f"{name}-2")
        killed_at(operation, os.path.abspath("."), lambda: how.save(made, "saved"))()

    status, *_ = child(work)
    found["killed"] += status == -signal.SIGKILL
    status, text, *_ = child(lambda: print(told(how, "saved")))
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


def without_a_line(good: bytes, chance: random.Random) -> bytes:
    lines = good.splitlines(keepends=True)
    lines.pop(chance.randrange(len(lines)))
    return b"".join(lines)


def faults(count: int, chance: random.Random, only: list[str]) -> dict[str, int]:
    """Damage one file at a time, and use what it belongs to. All in one child, which compiles each program once."""
    kept = pathlib.Path("kept")
    kept.mkdir()
    for name in only or uses():
        for seed in (3, 4):
            keep(name, seed, kept / f"{name}-{seed}")
    table = collections.Counter()

    def work() -> int:
        known: dict[tuple[str, str], Any] = {}
        every = uses()
        for number in range(count):
            name = chance.choice(only or list(every))
            use = chance.choice(sorted(every[name]))
            if (name, use) not in known:
                known[name, use] = used(name, every[name][use], None)
                if known[name, use][0]:
                    raise Ended(f"{name} {use}: {known[name, use]}")
            files = [path for path in sorted((kept / f"{name}-3").rglob("*")) if path.is_file() and path.stat().st_size]
            files = [path for path in files if path.suffix not in (".png", ".html") and not path.name.startswith(".")]
            path, kind = chance.choice(files), chance.choice([*FAULTS, "swapped"])
            said = judged(known[name, use], used(name, every[name][use], (path, kind, chance)))
            table[said] += 1
            if said in ("silent", "traceback"):
                print(f"{said}: {name} {use} {path} {kind}", flush=True)
            if number % 50 == 49:
                print(f"{number + 1}/{count} {dict(table)}", flush=True)
        pathlib.Path("faults.json").write_text(json.dumps(table))
        return 0

    status, text, *_ = child(work, heard=True)
    if status:
        raise Ended(text)
    return json.loads(pathlib.Path("faults.json").read_text())


def keep(name: str, seed: int, folder: pathlib.Path) -> None:
    """A good run, or saved thing, or file, of that seed."""
    began = time.perf_counter()
    if name in EXPERIMENTS:
        words = [str(seed) if word == "3" and before == "--seed" else word for before, word in _with_before(name)]
        status, text, *_ = child(functools.partial(run, *words))
        if status:
            raise Ended(text)
        shutil.move(f"runs/{OF.get(name, name)}/a", folder)
    elif name in FILES_OF:
        folder.mkdir()
        words = ["--from", f"kept/{FILES_OF[name]}-{seed}", "--input", *GIVEN[FILES_OF[name]][:1]]
        status, text, *_ = child(functools.partial(run, "compress", *words, "--output", str(folder / "a.flx")))
        if status:
            raise Ended(text)
    else:
        shutil.move(make(name, saved_things()[name], seed), folder)
    print(f"{folder} in {time.perf_counter() - began:.0f} s", flush=True)


def _with_before(name: str) -> list[tuple[str, str]]:
    words = arguments(name)
    return list(zip(["", *words], words, strict=False))


def applied(experiment: str, given: str, made: str, *more: str) -> Callable[[str], Any]:
    """A run's model on new data: the exit status, what was written, and with further flags what was said."""

    def use(folder: str) -> Any:
        path = pathlib.Path(made)
        path.unlink(missing_ok=True)
        new = ["--input", given] if given else []
        with contextlib.redirect_stdout(io.StringIO()) as said:
            status = run(experiment, "--from", folder, *new, "--output", made, *more)
        return status, (path.read_bytes() if path.exists() else None, said.getvalue() if more else "")

    return use


def resumed(name: str) -> Callable[[str], Any]:
    def use(folder: str) -> Any:
        target = f"runs/{OF.get(name, name)}/a"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder, target)
        status = run(*arguments(name, "--resume"))
        return status, json.dumps([results(target), digest(target)]) if status == 0 else None

    return use


def decompressed(codec: str) -> Callable[[str], Any]:
    def use(folder: str) -> Any:
        pathlib.Path("made.npy").unlink(missing_ok=True)
        status = run("compress", "--from", f"kept/{codec}-3", "--input", f"{folder}/a.flx", "--output", "made.npy")
        return status, pathlib.Path("made.npy").read_bytes() if status == 0 else None

    return use


GIVEN = {  # new data for a run's model, what it is made into, and further flags
    "denoise": ("new.npy", "made.npy"),
    "photographs": ("photos/0.png", "made.png"),
    "sound": ("clips/0.wav", "made.wav"),
    "reconstruct": ("new.npy", "made.npy"),
    "sweep": ("new.npy", "made.npy"),
    "reduce": ("new.npy", "made.npy"),
    "generate": ("", "made.npy", "--count", "5"),
    "anomaly": ("new.csv", "made.csv"),
    "members": ("new.csv", "made.csv"),
    "series": ("series.csv", "made.csv"),
    "finetune": ("new.npy", "made.csv"),
    "compress": ("new.npy", "made.flx"),
    "lossy": ("photos/0.png", "made.flx"),
    "embed": ("new.txt", "made.csv", "--query", "w1 w2 w3"),
    "recommend": ("ratings.csv", "made.csv"),
}
FILES_OF = {"flx": "compress", "lossy flx": "lossy"}  # files that a run's codec wrote


def uses() -> dict[str, dict[str, Callable[[str], Any]]]:
    """How what is saved is used, by its name."""
    every: dict[str, dict[str, Callable[[str], Any]]] = {}
    for name, (given, made, *more) in GIVEN.items():
        every[name] = {"apply": applied(OF.get(name, name), given, made, *more)}
    for name in EXPERIMENTS:
        every.setdefault(name, {})["resume"] = resumed(name)
    for name, codec in FILES_OF.items():
        every[name] = {"decompress": decompressed(codec)}
    for name, how in saved_things().items():
        every[name] = {"load": lambda folder, how=how: (0, told(how, folder))}
    return every


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


def inputs(count: int, chance: random.Random, only: list[str], kept: pathlib.Path) -> dict[str, int]:
    """Change files of every format, and read them, in children of many each. What goes wrong is kept in that folder."""
    things = saved_things()
    pathlib.Path("made").mkdir()
    for name in ("codec", "lossy codec", "detector", "estimator", "series detector", "weights"):
        shutil.move(make(name, things[name], 3), pathlib.Path("made", name))
    found: collections.Counter[str] = collections.Counter()
    for first in range(0, count, A_CHILD):
        seed = chance.randrange(2**32)

        def work(seed: int = seed, first: int = first, size: int = min(A_CHILD, count - first)) -> int:
            own = random.Random(seed)
            table: collections.Counter[str] = collections.Counter()
            warnings.simplefilter("ignore")
            shutil.rmtree("good", ignore_errors=True)
            pathlib.Path("good").mkdir()
            sources = hostile.sources(pathlib.Path("good"), pathlib.Path("made"))
            sources = [source for source in sources if not only or source.path.name in only]
            for source in sources if first == 0 else ():  # which are good, or nothing is measured
                source.use(source.path)
            for _ in range(size):
                pathlib.Path("inputs.json").write_text(json.dumps({**table, "the process ended": 1}))
                table[one_input(own.choice(sources), own, kept)] += 1
            pathlib.Path("inputs.json").write_text(json.dumps(table))
            return 0

        pathlib.Path("inputs.json").write_text("{}")
        status, text, *_ = child(work)
        print(text, end="", flush=True)
        found.update(json.loads(pathlib.Path("inputs.json").read_text()))
        if status == 70:
            raise Ended(text)
        if status:
            shutil.copytree("bad", kept / f"{time.time_ns()}-ended")
            print(f"the process ended, {status}", flush=True)
        print(f"{first + A_CHILD}/{count} {dict(found)}", flush=True)
    return dict(found)


def one_input(source: hostile.Source, chance: random.Random | None, kept: pathlib.Path) -> str:
    """How a changed copy, or without `chance` a good one, is read. What is neither read nor refused is kept."""
    target = pathlib.Path("bad")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    path = target / source.path.name
    shutil.copytree(source.path, path) if source.path.is_dir() else shutil.copy(source.path, path)
    if chance is not None:
        inside = sorted(file for file in path.rglob("*") if file.is_file() and file.stat().st_size)
        file = chance.choice(inside) if path.is_dir() else path
        file.write_bytes(hostile.changed(file, chance))
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the most memory that was taken so far
    began, why = time.perf_counter(), ""
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(2 * SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            source.use(path)
        said = "read"
    except FlaxaeError as error:
        said, why = "refused", str(error)
    except Exception:
        said, why = "traceback", traceback.format_exc()
    finally:
        signal.alarm(0)
    seconds, peak = time.perf_counter() - began, _peak()
    if len(why) > LONGEST and said == "refused":
        said = "a long message"
    if seconds > SECONDS:
        said, why = "over 20 s", f"{seconds:.0f} s {why}"
    if peak > BYTES:
        said, why = "over 2 GiB", f"{peak / 2**30:.1f} GiB {why}"
    if said not in ("read", "refused"):
        place = kept / f"{time.time_ns()}-{source.path.name}"
        shutil.copytree(path, place) if path.is_dir() else shutil.copy(path, place)
        print(f"{said}: {source.path.name} {source.how} {place}\n{why[-1500:]}", flush=True)
    return said


def _peak() -> int:
    """The most bytes of memory that this process took since it was last asked to forget."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def _too_long(number: int, frame: Any) -> None:
    raise TimeoutError("over 20 s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("kills", "faults", "inputs"))
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], help="names of what to kill or damage, or of files")
    parser.add_argument("--keep", type=pathlib.Path, default="faults-found", help="a folder for what went wrong")
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    kept = given.keep.absolute()
    with tempfile.TemporaryDirectory() as place:
        os.environ["XDG_CACHE_HOME"] = os.path.join(place, "cache")  # not the user's
        os.mkdir(os.path.join(place, "work"))
        os.chdir(os.path.join(place, "work"))
        prepare(pathlib.Path("."))
        shorten()
        for name in {OF.get(name, name) for name in EXPERIMENTS}:  # imported once, before anything is forked
            __import__(f"flaxae.experiments.{name}")
        began = time.perf_counter()
        chance = random.Random(given.seed)
        if given.what == "inputs":
            kept.mkdir(parents=True, exist_ok=True)
            table = inputs(given.count, chance, given.only, kept)
        else:
            table = {"kills": kills, "faults": faults}[given.what](given.count, chance, given.only)
        print(f"{given.what}, {given.count} with seed {given.seed}: {table}, in {time.perf_counter() - began:,.0f} s")
