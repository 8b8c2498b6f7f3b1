"""Words for a terminal or a text: nothing that a model or a tool says reaches it as a control sequence."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_HALF = re.compile(r"[\ud800-\udfff]")
_HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def clean(text: str) -> str:
    """Return text without control characters and sequences, but for newlines and tabs.

    Half a surrogate pair, which no terminal takes, is replaced.
    """
    return _HALF.sub("\ufffd", _CONTROL.sub("", text.replace("\r\n", "\n")))


def visible(text: str) -> str:
    """Return text in which control characters, but for newlines and tabs, are shown by their escapes in Python."""
    return _HIDDEN.sub(lambda found: ascii(found[0])[1:-1], text.replace("\r\n", "\n"))
