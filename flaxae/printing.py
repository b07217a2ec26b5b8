"""What is said on a terminal: text whose control characters do nothing there."""

import re
import sys

# Controls, but for a tab and a new line; what turns the order of writing around; halves of a character
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text, its control characters and the like replaced by what Python calls them, such as `\\x1b`."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def say(text: object) -> None:
    """Print a line, which may hold names of files and columns, on the standard output."""
    print(printable(str(text)), file=sys.stdout, flush=True)
