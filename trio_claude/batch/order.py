"""In which order results come out: as the tasks stand in the file, or as they end.

Rules: no await, no clock. What waits for those before it is bounded: too far ahead of the oldest, nothing starts.
"""

from __future__ import annotations

from typing import Final

AHEAD = 1000
"""Runs that may be started ahead of the oldest whose result is not out."""
WAITING_BYTES = 64 * 1024 * 1024
"""Bytes of results that wait; while there are more, nothing starts but the oldest."""


class InOrder:
    """Lets results out in the order of their places, which count from 0."""

    def __init__(self, ahead: int = AHEAD, waiting_bytes: int = WAITING_BYTES) -> None:
        self._ahead = ahead
        self._limit = waiting_bytes
        self._next = 0
        self._waiting: dict[int, bytes] = {}
        self._bytes = 0

    def may_start(self, place: int) -> bool:
        """Whether the run at `place` may start."""
        return place == self._next or (place < self._next + self._ahead and self._bytes <= self._limit)

    @property
    def waits(self) -> bool:
        """Whether there is a result that waits for others."""
        return bool(self._waiting)

    def add(self, place: int, result: bytes) -> list[bytes]:
        """Take a result; return those that may come out now."""
        self._waiting[place] = result
        self._bytes += len(result)
        out = []
        while self._next in self._waiting:
            out.append(self._waiting.pop(self._next))
            self._next += 1
        self._bytes -= sum(map(len, out))
        return out


class AsCompleted:
    """Lets each result out at once."""

    waits: Final = False

    def may_start(self, place: int) -> bool:
        """Whether the run at `place` may start: always."""
        return True

    def add(self, place: int, result: bytes) -> list[bytes]:
        """Return the result."""
        return [result]
