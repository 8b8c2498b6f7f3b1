"""The second net: what looks like a credential is hidden, wherever it stands in a line. Pure.

The first is that what holds one has a `repr` that does not show it, and that no event has a place for one.
"""

from __future__ import annotations

import re
from typing import Final

HIDDEN: Final = "[hidden]"
_MARKS: Final = ("sk-ant-", "tck_", "eyj", "ticket.", "bearer")
"""One of these stands in each, in lower case: a line without them, as nearly all are, is looked through no further."""
_SHAPES: Final = re.compile(
    r"""
      sk-ant-[\w-]{4,}                                           # the API's keys
    | tck_[\w-]{8,}                                              # this server's
    | eyJ[\w-]{16,}(?:\.[\w-]*)*                                 # JSON Web Tokens, and parts of one
    | ticket\.[\w-]{16,}                                         # a one-use ticket in a subprotocol
    | (?<=bearer) (?: [ .:="'] | %20 | \\+[nrt"'] )* [\w.~+/=-]{16,}  # what stands behind that word, quoted or not
    """,
    re.VERBOSE | re.ASCII | re.IGNORECASE,
)


def hide(text: str) -> str:
    """Return text without what looks like a key, a token or a ticket."""
    lower = text.lower()
    return _SHAPES.sub(HIDDEN, text) if any(mark in lower for mark in _MARKS) else text
