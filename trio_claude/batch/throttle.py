"""How many runs go at once: fewer as soon as the API is overloaded, more again when it is not.

Rules: no await, no clock. Halved once for all the runs that were on their way together, however many of them complain;
raised by one after `CLEAN_RUNS` runs without a complaint.
"""

from __future__ import annotations

import attrs

CLEAN_RUNS = 5
"""Runs without a complaint after which one more may go at once."""


@attrs.define(eq=False)
class Ticket:
    """One run's leave to go. `period` says between which two changes for the worse it was given."""

    period: int
    strained: bool = False


class Throttle:
    """Counts what runs, and bounds it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._period = 0
        self._clean = 0
        self.limit: int = most
        self.lowest: int = most
        self.running: int = 0

    @property
    def free(self) -> bool:
        """Whether one more may go."""
        return self.running < self.limit

    def start(self) -> Ticket:
        """Count one more."""
        self.running += 1
        return Ticket(self._period)

    def strain(self, ticket: Ticket) -> None:
        """Hear that the API complained to a run."""
        ticket.strained = True
        if ticket.period < self._period:
            return
        self._period += 1
        self._clean = 0
        self.limit = max(1, self.limit // 2)
        self.lowest = min(self.lowest, self.limit)

    def finish(self, ticket: Ticket) -> None:
        """Count one less; one that was not complained to counts for more."""
        self.running -= 1
        if ticket.strained or ticket.period < self._period:
            return
        self._clean += 1
        if self._clean >= CLEAN_RUNS and self.limit < self._most:
            self._clean = 0
            self.limit += 1
