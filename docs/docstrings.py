"""Docstrings as Markdown: shapes such as [batch, *code] are neither emphasis nor links."""

import re
from typing import Any

import griffe

CODE = re.compile(r"(`+[^`]+`+)")
SIGNS = {"*": "&#42;", "[": "&#91;", "]": "&#93;", "<": "&lt;"}


class Plain(griffe.Extension):
    """Docstrings are read as plain text, but for code and lists."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = plain(obj.docstring.value)


def plain(docstring: str) -> str:
    """The docstring, in which stars, brackets and signs are shown as they are. Indented paragraphs stay code."""
    paragraphs = docstring.split("\n\n")
    return "\n\n".join(text if text.startswith("    ") else _escaped(text) for text in paragraphs)


def _escaped(text: str) -> str:
    parts = CODE.split(text)
    signs = re.compile("[" + re.escape("".join(SIGNS)) + "]")
    return "".join(part if i % 2 else signs.sub(lambda sign: SIGNS[sign[0]], part) for i, part in enumerate(parts))
