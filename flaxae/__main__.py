"""The command, with Ctrl-C answered before anything else is imported: `flaxae NAME …`, `python -m flaxae NAME …`."""

import sys

from flaxae import interruption


def main() -> int:
    """See `flaxae.command.main`."""
    with interruption.at_once():
        from flaxae import command

        return command.main()


if __name__ == "__main__":
    sys.exit(main())
