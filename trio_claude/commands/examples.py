"""The examples at the end of a command's help. A test parses each of them, so none can name what is not there."""

from __future__ import annotations


def examples(*lines: str) -> str:
    """Return the end of a help text; click leaves it as it is."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])
