"""Every preset, exported: `python -m benchmarks.exporting` prints how far its programs are from flaxae's own results.

The models are as they are initialised, for images of 28 × 28 (and the U-Net, of any size). The difference is the
largest of any value, as a fraction of the largest value; each program runs in a process of its own, without flaxae.
"""

import argparse
import json
import pathlib
import tempfile

import jax

import flaxae
from flaxae import presets
from flaxae.data import Scaling
from flaxae.trained import Trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--format", nargs="*", default=["stablehlo", "onnx"])
    parser.add_argument("--presets", nargs="*", default=[*presets.PRESETS, "unet"])
    given = parser.parse_args()
    for name in given.presets:
        model = flaxae.build(presets.unet() if name == "unet" else presets.PRESETS[name](), (28, 28, 1))
        if name == "unet":  # which otherwise changes nothing
            last = model.decoder.last.kernel
            last[...] = 0.1 * jax.random.normal(jax.random.key(0), last.shape)
        trained = Trained(model, Scaling((0.0,), (255.0,), "uint8"), (28, 28, 1), "image", None)
        for kind in given.format:
            with tempfile.TemporaryDirectory() as place:
                folder = pathlib.Path(place, "out")
                try:
                    flaxae.export(trained, folder=folder, format=kind)
                except flaxae.errors.FlaxaeError as error:
                    print(f"{name:20s} {kind:10s} {error}", flush=True)
                    continue
                found = json.loads((folder / "export.json").read_text())["programs"]
                told = ", ".join(f"{program} {about['differs']:.1g}" for program, about in found.items())
                print(f"{name:20s} {kind:10s} {told}", flush=True)


if __name__ == "__main__":
    main()
