"""A trained model for other runtimes: `export` writes it, with a script that runs it without flaxae.

    flaxae.export(flaxae.load("runs/denoise/1"), "reconstruct", folder="out", format="stablehlo")

Inside are the scaling to what the model sees and back, a table's categories, and of a detector the score and its
threshold. The number of examples is free, and the size of images where the model takes any. Before the folder is put in
place, the script in it runs in a process of its own, and what it gives is compared with what flaxae gives.

    folder/export.json         what each program takes and gives
    folder/reconstruct.…       the program, in the format's own file
    folder/use.py              python use.py reconstruct input.npy output.npz
"""

import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import warnings
from typing import Any

import jax
import numpy as np

import flaxae
from flaxae import errors, manifest
from flaxae.exporting import onnx, saved_model, stablehlo, weights
from flaxae.exporting.tracing import Program, programs
from flaxae.printing import say

FORMATS = {"stablehlo": stablehlo, "onnx": onnx, "saved-model": saved_model}
CLOSE = 3e-3  # of the largest value: rounding in another order of adding up, as distances magnify it
PROGRAMS = ("encode", "decode", "reconstruct", "score", "probabilities")
SECONDS = 600  # that a runtime may take

__all__ = ["FORMATS", "export", "programs"]


def export(
    what: Any,
    *names: str,
    folder: str | os.PathLike[str],
    format: str = "stablehlo",
    threshold: float | None = None,
) -> None:
    """Write a trained model to a folder of its own, whole or not at all, in another format.

    Args:
        what: what `flaxae.load` returned: a `Trained`, a `TrainedDetector` or a `TrainedClassifier`.
        names: of the programs to export, such as "encode", "decode", "reconstruct", "score", "probabilities"; by
            default all that the model has.
        folder: a new one, an empty one, or one of an earlier export, which is replaced.
        format: stablehlo, onnx or saved-model (TensorFlow's), or safetensors for the weights, with a model card, as the
            Hugging Face hub has them, which `flaxae.load` reads.
        threshold: see `tracing.programs`.

    Raises:
        ConfigError: the format or a name is unknown, the format can't hold the model, or a package is missing.
        RunError: the folder can't be written or holds something else, or the exported program gives other results.
    """
    if format not in (*FORMATS, "safetensors"):
        raise errors.ConfigError(errors.unknown("format", format, (*FORMATS, "safetensors")))
    folder = pathlib.Path(folder)
    try:
        if format == "safetensors":
            with manifest.replacing(folder, weights.FILES) as unfinished:
                weights.write(what, unfinished)
            return
        found = programs(what, threshold)
        for name in names:
            if name not in found:
                raise errors.ConfigError(errors.unknown("program", name, found))
        chosen = {name: found[name] for name in names or found}
        writer = FORMATS[format]
        ours = frozenset({"export.json", "use.py", *(writer.file(name) for name in PROGRAMS)})
        with manifest.replacing(folder, ours) as unfinished:
            for name, program in chosen.items():
                writer.write(program, unfinished / writer.file(name))
            (unfinished / "use.py").write_text(writer.USE, encoding="utf-8")
            gives, apart = _compared(unfinished, chosen)
            about = {"format": format, "flaxae": flaxae.__version__, "jax": jax.__version__, "programs": {}}
            for name, program in chosen.items():
                about["programs"][name] = {"takes": _takes(program), "gives": gives[name], "differs": apart[name]}
            (unfinished / "export.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise errors.RunError(f"Can't write {folder}: {error}.") from error
    for name in chosen:
        say(f"{name}: agrees with flaxae to {apart[name]:.1g} of the largest value, in a process without flaxae.")


def _takes(program: Program) -> dict[str, Any]:
    shape = ["examples", *("any" if size is None else size for size in program.shape)]
    about = {"shape": shape, "dtype": program.dtype}
    return about if program.columns is None else {**about, "columns": program.columns}


def _compared(folder: pathlib.Path, chosen: dict[str, Program]) -> tuple[dict[str, Any], dict[str, float]]:
    """Run each program on its examples in another process, and compare.

    Returns:
        What each gives, and by how much it differs at most, as a fraction of the largest value.
    """
    gives, apart = {}, {}
    with tempfile.TemporaryDirectory() as place:
        asked = []
        for name, program in chosen.items():
            for i, x in enumerate(program.examples()):
                source, target = pathlib.Path(place, f"{name}_{i}.npy"), pathlib.Path(place, f"{name}_{i}.npz")
                np.save(source, x)
                asked += [name, str(source), str(target)]
        _run(folder / "use.py", asked)
        for name, program in chosen.items():
            differences = []
            for i, x in enumerate(program.examples()):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # that values are missing in made-up examples
                    expected = program.reference(x)
                with np.load(pathlib.Path(place, f"{name}_{i}.npz"), allow_pickle=False) as file:
                    made = dict(file)
                differences += [_difference(name, key, made[key], value) for key, value in expected.items()]
                gives[name] = {
                    key: {"shape": ["examples", *value.shape[1:]], "dtype": value.dtype.name}
                    for key, value in made.items()
                }
            apart[name] = max(differences)
    return gives, apart


def _run(script: pathlib.Path, arguments: list[str]) -> None:
    without = "import runpy, sys; sys.modules['flaxae'] = None; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0])"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-W", "ignore", "-c", without, os.fspath(script), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise errors.RunError(f"The exported program took more than {SECONDS} s; it is not kept.") from None
    if done.returncode:
        last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise errors.RunError(f"The exported program doesn't run on {platform.machine()}, so it is not kept: {last}")


def _difference(name: str, key: str, made: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference as a fraction of the largest value; whole numbers may differ by one where they round."""
    if made.shape != expected.shape or made.dtype != expected.dtype:
        raise errors.RunError(
            f"{name} gives {key} as {made.dtype} {made.shape} and flaxae as {expected.dtype} {expected.shape}; the "
            "export is not kept."
        )
    a, b = made.astype(np.float64), expected.astype(np.float64)
    scale = max(float(np.nanmax(np.abs(b), initial=0.0)), 1e-6)
    whole = made.dtype.kind == "u"
    if not np.allclose(a, b, rtol=CLOSE, atol=1.0 if whole else CLOSE * scale, equal_nan=True):
        worst = float(np.nanmax(np.abs(a - b)))
        raise errors.RunError(
            f"{name} gives {key} that differs from flaxae's by up to {worst:.3g}, of values up to {scale:.3g}: the "
            "format's converter has a mistake with this model. The export is not kept; take another format."
        )
    return float(np.nanmax(np.abs(a - b), initial=0.0)) / scale
