"""Print text on a terminal with its control characters escaped."""

import re
import sys

# Control characters except tab and new line; characters that change the direction of writing; surrogates
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with control characters and the like replaced by their Python escapes, such as `\\x1b`."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def say(text: object) -> None:
    """Print a line, which may contain names of files and columns, to the standard output."""
    print(printable(str(text)), file=sys.stdout, flush=True)
