"""Defects in images: how well scores tell images with one, and heat maps the pixels of one.

    python -m benchmarks.defects FOLDER ...

Each folder is laid out as MVTec's: train/good, test/good, test/DEFECT, and ground_truth/DEFECT with a mask of each
image, named NAME_mask.png. The detector is the default; nothing is chosen on the test part.
"""

import argparse
import pathlib
import time

import numpy as np
from sklearn.metrics import roc_auc_score

from flaxae import anomaly
from flaxae.anomaly import tiles
from flaxae.data import images


def measure(folder: pathlib.Path, seed: int) -> dict[str, float]:
    """AUROC over the images and over the pixels of the test part, and the seconds of training and of scoring."""
    train = images.open(folder / "train")
    test = images.open(folder / "test", colours=train.colours, alpha=train.alpha)
    started = time.perf_counter()
    detector = anomaly.fit(np.stack([image for _, image in train.each()]), kind="image", seed=seed)
    trained = time.perf_counter()
    scores, strange, heats, masks = [], [], [], []
    for i, _, score, heat in tiles.look(detector, test):
        name = pathlib.PurePosixPath(test.names[i])
        mask = folder / "ground_truth" / name.parent / f"{name.stem}_mask.png"
        scores.append(score)
        strange.append(name.parent.name != "good")
        heats.append(heat.ravel())
        masks.append(images.open(mask)[0][..., 0].ravel() > 0.5 if strange[-1] else np.zeros(heat.size, bool))
    return {
        "image AUROC": roc_auc_score(strange, scores),
        "pixel AUROC": roc_auc_score(np.concatenate(masks), np.concatenate(heats)),
        "training (s)": trained - started,
        "scoring (s)": time.perf_counter() - trained,
    }


def main() -> None:
    """Measure each folder, for several seeds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", type=pathlib.Path)
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args()
    for folder in given.folders:
        for seed in range(given.seeds):
            measured = measure(folder, seed)
            print(
                f"{folder.name}, seed {seed}: " + ", ".join(f"{name} {value:.4f}" for name, value in measured.items())
            )


if __name__ == "__main__":
    main()
