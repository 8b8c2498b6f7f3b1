"""Words for a terminal or a text: nothing that a model or a tool says reaches it as a control sequence or unseen."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_HALF = re.compile(r"[\ud800-\udfff]")
_TURNS = r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
"""What turns the direction of a text, so that it is read in another order than it has."""
_CONTROLS = r"\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff"
_TURNING = re.compile(f"[{_TURNS}]")
_HIDDEN = re.compile(f"[{_CONTROLS}{_TURNS}]")
_UNSEEN = re.compile(
    f"[{_CONTROLS}{_TURNS}\xad\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200d\u2028\u2029\u2060-\u2065\u206a-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""All that has no shape of its own (Default_Ignorable_Code_Point), too."""


def clean(text: str) -> str:
    """Return text without control characters and sequences, but for newlines and tabs.

    Half a surrogate pair, which no terminal takes, is replaced; what turns the direction of a text is shown.
    """
    return _TURNING.sub(_escaped, _HALF.sub("\ufffd", _CONTROL.sub("", text.replace("\r\n", "\n"))))


def visible(text: str) -> str:
    """Return text in which controls, but for newlines and tabs, are shown by their escapes in Python.

    So is what turns the direction of a text.
    """
    return _HIDDEN.sub(_escaped, text.replace("\r\n", "\n"))


def exact(text: str) -> str:
    """Return text in which all that can't be seen is shown: what is read is what is allowed."""
    return _UNSEEN.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]
