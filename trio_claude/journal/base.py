"""What a journal does for a server, wherever it keeps what it is told.

This module must never know where that is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final

from .backlog import PATIENCE, Recorder
from .facts import Begun, Deleted, Page, Part, Query, RunRow, Statistics, Usage, UsageQuery
from .unfinished import Unfinished

TAIL: Final = 4 * 1024 * 1024
"""Bytes of a run's history in which the turn is looked for at which it was cut off."""
SOON: Final = 1.0
"""Seconds for which that, and who asks for a run that has just begun, waits for what is still to be written."""

UNWRITTEN: Final = "the journal can't be written just now"
"""What a client is told: `fault` may be of the server's disk, or of another's run."""


class Journal(ABC):
    """The journal of a server.

    Error handling: what can't be written is tried again, and `fault` says why it can't be; who put it in never hears.
    What reads, and `delete`, raise `JournalFault` where it is not at hand.
    """

    fault: str

    @abstractmethod
    def begin(self, run: Begun) -> Recorder:
        """Take a run that begins; return its recorder."""

    @property
    @abstractmethod
    def waiting(self) -> int:
        """Bytes that are not durable yet."""

    @abstractmethod
    def statistics(self) -> Statistics:
        """Return how the journal does."""

    @abstractmethod
    async def settle(self, patience: float = PATIENCE) -> bool:
        """Wait until all that was put in before is durable; return whether it is, in so many seconds."""

    @abstractmethod
    async def find(self, query: Query) -> Page:
        """Return runs, newest first, without their prompts and options, which may be long."""

    async def get(self, identity: str | None, run: str) -> RunRow | None:
        """Return one run, if it is that identity's (None: anybody's); one that has just begun is written first."""
        found = await self._look_up(identity, run)
        if found or not self.waiting:
            return found
        await self.settle(SOON)
        return await self._look_up(identity, run)

    @abstractmethod
    async def _look_up(self, identity: str | None, run: str) -> RunRow | None:
        """Return one run as far as it is written."""

    @abstractmethod
    async def parts(self, run: str, after: int = 0, beyond: int = 0) -> list[Part]:
        """Return a page of a run's history behind line `after` and part `beyond`, empty at its end.

        What stderr and the client said right behind line `after` is in it.
        """

    @abstractmethod
    async def unfinished(self, identity: str, session: str) -> Unfinished | None:
        """Return the turn at which the last run of a session was cut off, None where it was not."""

    @abstractmethod
    async def usage(self, query: UsageQuery) -> Usage:
        """Return what was used, in sums, the newest day first."""

    @abstractmethod
    async def delete(
        self, identity: str | None, run: str | None = None, gone: list[Deleted] | None = None
    ) -> list[Deleted]:
        """Delete one ended run, or all of an identity; return what was deleted, which `gone` takes as it goes.

        Raises `JournalFault` where that is not durable in time: it is not done later, unless it was just being written.
        Of many runs some may be deleted by then, those in `gone`.
        """
