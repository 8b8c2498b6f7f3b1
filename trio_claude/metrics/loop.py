"""How long the event loop is held between two looks at what is ready.

An instrument of Trio at those two points alone misses no hold, costs some microseconds a round, and nothing while the
loop waits. A task that wakes 200 times a second costs 3 % of a core, and misses half of the holds of 10 ms.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import trio

HOLD: Final = 0.01
"""Seconds from which on the loop is held so long that it is told."""


class LoopWatch(trio.abc.Instrument):
    """Adds up how long tasks run, and lines are relayed; `tell` hears of each round of `HOLD` seconds and more."""

    def __init__(self, tell: Callable[[float], None]) -> None:
        self.busy: float = 0.0
        """Seconds in which tasks ran, or lines were relayed."""
        self._tell = tell
        self._since = time.perf_counter()

    def after_io_wait(self, timeout: float) -> None:
        """Take that tasks begin to run."""
        self._since = time.perf_counter()

    def before_io_wait(self, timeout: float) -> None:
        """Take that all of them have run."""
        self.hold(time.perf_counter() - self._since)

    def hold(self, took: float) -> None:
        """Take that the loop was held for so many seconds."""
        self.busy += took
        if took >= HOLD:
            self._tell(took)
