"""Export: a trained model for other runtimes and languages.

    flaxae export runs/denoise/1 --format stablehlo

writes the model's programs, what they take and give, and a script that runs them without flaxae, to a folder in the
run's. Before it is kept, the script runs in a process of its own, and its results are compared with flaxae's. With
`--format safetensors` it writes the weights and a model card, as the Hugging Face hub has them: `flaxae.load` reads it.
"""

import dataclasses
import pathlib
from typing import Annotated, Literal

import tyro

from flaxae.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """The flags of `flaxae export`."""

    run: Annotated[pathlib.Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's folder, or one that `flaxae.save` wrote."""
    format: Literal["stablehlo", "onnx", "saved-model", "safetensors"] = "stablehlo"
    """stablehlo runs by jax alone, on CPU, GPU and TPU; onnx by onnxruntime; saved-model by TensorFlow; safetensors are
    the weights."""
    programs: tuple[str, ...] = ()
    """Which to write, of encode, decode, reconstruct, score and probabilities; by default all that the model has."""
    threshold: float | None = None
    """Of a detector, the score above which an example counts as anomalous; by default the run's."""
    output: pathlib.Path | None = None
    """The folder to write, by default RUN/exports/FORMAT."""


def run(flags: Flags) -> None:
    """Load the run and export it."""
    import flaxae
    from flaxae import runs
    from flaxae.printing import say

    what = flaxae.load(flags.run)
    folder = flags.output or flags.run / "exports" / flags.format
    threshold = flags.threshold
    if isinstance(what, flaxae.TrainedDetector):
        if threshold is None and (flags.run / "config.json").exists():
            threshold = runs.open(flags.run).results().get("threshold")
    elif threshold is not None:
        raise ConfigError(f"--threshold is of detectors; {flags.run} holds a {type(what).__name__}.")
    flaxae.export(what, *flags.programs, folder=folder, format=flags.format, threshold=threshold)
    say(f"Exported: {folder}")
    if flags.format != "safetensors":
        say(f"Use it without flaxae: python {folder / 'use.py'} PROGRAM input.npy output.npz")
