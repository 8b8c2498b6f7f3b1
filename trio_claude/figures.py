"""Which numbers of a CLI's line count: tokens, dollars, milliseconds and turns that a hostile line can't blow up.

Pure. Never raises: what is no such number counts for nothing.
"""

from __future__ import annotations

COUNTED = 1e15
"""What a line gives is less than this, else it is no cost and no number of tokens or turns."""


def counted(value: object) -> float:
    """Return a number that a line gives, 0 where it is none that can be counted."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < COUNTED:
        return 0.0
    return float(value)
