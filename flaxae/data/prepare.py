"""Prepare a TFDS set, so that `flaxae.data.load("tfds:NAME")` reads it with neither network nor TensorFlow.

    pip install "flaxae[tfds-prepare]"
    TFDS_DATA_DIR=FOLDER python -m flaxae.data.prepare fashion_mnist --originals DIR

DIR holds the original archives under their own names, if they were downloaded by other means than TFDS; TFDS
checks their SHA-256. Without --originals TFDS downloads them.
"""

import argparse
import pathlib
import sys

from flaxae.data import tfds
from flaxae.errors import DataError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="as in the catalogue, NAME or NAME/CONFIG")
    parser.add_argument("--originals", type=pathlib.Path, help="folder of archives that need no download")
    args = parser.parse_args()
    try:
        print(tfds.prepare(args.name, manual_dir=args.originals))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
