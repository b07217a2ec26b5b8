"""The command, `flaxae NAME …` or `python -m flaxae NAME …`. It handles Ctrl-C before it imports anything else."""

import sys

from flaxae import interruption


def main() -> int:
    """See `flaxae.command.main`."""
    with interruption.at_once():
        from flaxae import command

        return command.main()


if __name__ == "__main__":
    sys.exit(main())
