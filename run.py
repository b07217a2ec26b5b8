"""Run an experiment: `python run.py --exp NAME`; `python run.py --exp NAME --help` lists its flags."""

import sys

try:
    from flaxae.command import main
except ImportError as error:
    print(f"error: flaxae is not installed, or not all that it needs: `pip install -e .` ({error}).", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main())
