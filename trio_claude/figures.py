"""Numbers from outside: which of a CLI's line count (tokens, dollars, milliseconds, turns), and how an error says one.

Pure. Never raises, whatever the size: what is no such number counts for nothing.
"""

from __future__ import annotations

COUNTED = 1e15
"""What a line gives is less than this, else it is no cost and no number of tokens or turns."""


def counted(value: object) -> float:
    """Return a number that a line gives, 0 where it is none that can be counted."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < COUNTED:
        return 0.0
    return float(value)


def brief(value: float) -> str:
    """Return a number as it may stand in an error; JSON and TOML have integers of any size."""
    if isinstance(value, int) and abs(value) >= 10**18:
        try:
            return f"a number of {len(str(abs(value)))} digits"
        except ValueError:  # Python writes none that is longer than some thousands
            return "a number of thousands of digits"
    return str(value) if isinstance(value, int) else f"{value:.15g}"
