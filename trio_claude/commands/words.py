"""Words for a terminal: nothing that a model or a tool says reaches it as a control sequence."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def clean(text: str) -> str:
    """Return text without control characters and sequences, but for newlines and tabs."""
    return _CONTROL.sub("", text.replace("\r\n", "\n"))
