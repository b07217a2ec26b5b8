"""The errors that flaxae raises on purpose.

Every message says what was given, what was expected, and what to do. The command line prints the
message alone and exits with status 2; from Python the same classes are raised.
"""

import difflib
from collections.abc import Iterable

LONGEST = 1500  # characters of a message: what is given, which it quotes, may be of any length


class FlaxaeError(Exception):
    """Base of every error that flaxae raises on purpose. The middle of a long message is left out."""

    def __str__(self) -> str:
        text = super().__str__()
        return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} […] {text[-LONGEST // 2 :]}"


class DataError(FlaxaeError, ValueError):
    """The data given can't be used: unreadable, empty, not finite, or of the wrong shape."""


class ConfigError(FlaxaeError, ValueError):
    """A setting has an unknown name or a value out of range."""


class RunError(FlaxaeError):
    """A run's folder can't be used: it is in use, already finished, missing, or not writable."""


class CheckpointError(FlaxaeError):
    """No checkpoint in the folder can be restored."""


class DivergedError(FlaxaeError):
    """The loss or its gradient stopped being finite. The model holds the last good weights."""


def missing(what: str, extra: str, error: ImportError) -> str:
    """The message for a missing package that only `what` needs. `extra` is the extra in pyproject.toml that has it."""
    return f'{what} needs the package {error.name}, which can\'t be imported: `pip install "flaxae[{extra}]"`.'


def unknown(what: str, given: str, known: Iterable[str]) -> str:
    """The message for a name that is not among the `known` ones, with the nearest that is."""
    known = sorted(known)
    near = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    suggestion = f" Did you mean {near[0]!r}?" if near else ""
    return f"Unknown {what} {given!r}.{suggestion} Known: {', '.join(known)}."
