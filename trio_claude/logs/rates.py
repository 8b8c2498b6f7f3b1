"""How many lines of a kind there may be in a second; of the others only how many there were. Pure.

Kinds that a client can make as many of as it likes have a rate; those of the server itself, and the start and end of
each run, have none.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import attrs

RATES: Final = {
    "Refused": 10,
    "Crashed": 10,
    "Warned": 10,
    "Logged": 100,
    "Answered": 100,
    "ConnectionOpened": 100,
    "ConnectionClosed": 100,
    "TurnEnded": 100,
    "Interrupted": 100,
    "ApprovalSettled": 100,
    "SendStalled": 100,
    "FirstLine": 100,
    "FirstToken": 100,
    "Charged": 100,
}
"""Lines of a kind that are written in a second."""


@attrs.frozen
class LeftOut:
    """What was left out of a second; `by_status` counts what was written too, where the kind has a status."""

    kind: str
    level: int
    left_out: int
    by_status: dict[int, int]


@attrs.define
class _Kind:
    level: int
    seen: int = 0
    by_status: Counter[int] = attrs.Factory(Counter)


class Rates:
    """The lines of the second that goes on. `second` is of a clock that never goes back."""

    def __init__(self) -> None:
        self._second = 0
        self._kinds: dict[str, _Kind] = {}

    def is_over(self, second: int) -> bool:
        """Return whether another second goes on."""
        return second != self._second

    def admit(self, kind: str, level: int, status: int | None) -> bool:
        """Count a line; return whether it is written."""
        if (rate := RATES.get(kind)) is None:
            return True
        counted = self._kinds.get(kind)
        if counted is None:
            counted = self._kinds[kind] = _Kind(level)
        counted.seen += 1
        if status is not None:
            counted.by_status[status] += 1
        return counted.seen <= rate

    def begin(self, second: int) -> list[LeftOut]:
        """Begin another second; return what was left out of the last one."""
        kinds, self._kinds, self._second = self._kinds, {}, second
        return [
            LeftOut(name, kind.level, kind.seen - RATES[name], dict(kind.by_status))
            for name, kind in kinds.items()
            if kind.seen > RATES[name]
        ]
