"""Run an experiment: `python run.py --exp NAME`; `python run.py --exp NAME --help` lists its flags."""

import contextlib
import sys

try:
    from flaxae import interruption

    with interruption.at_once() if __name__ == "__main__" else contextlib.nullcontext():
        from flaxae.command import main
except ImportError as error:
    print(f"error: flaxae is not installed, or not all that it needs: `pip install -e .` ({error}).", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    with interruption.at_once():
        sys.exit(main())
