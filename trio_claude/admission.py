"""Who may come in and how much they may use.

Rules: no await, no trio, no clock; `now` is an argument. A decision either changes this module's state or raises.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import SessionBusy


class Doorstep:
    """Connections that have not said yet what they want, counted in all and by address.

    A place is given up when the first request is read, or when the connection ends; what finds no place is turned away.
    """

    def __init__(self, limit: int, limit_per_address: int) -> None:
        self._limit = limit
        self._limit_per_address = limit_per_address
        self._by_address: Counter[str] = Counter()
        self._all = 0

    def enter(self, address: str) -> bool:
        """Take a place; return whether there was one."""
        if self._all >= self._limit or self._by_address[address] >= self._limit_per_address:
            return False
        self._all += 1
        self._by_address[address] += 1
        return True

    def leave(self, address: str) -> None:
        """Give a place up."""
        self._all -= 1
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]

    def __len__(self) -> int:
        return self._all


class SessionLocks:
    """CLI sessions in use: two runs that resume one at once would lose a turn without a word."""

    def __init__(self) -> None:
        self._held: set[str] = set()

    @contextmanager
    def hold(self, session: str | None) -> Iterator[None]:
        """Hold a session for a run; None is a new one. Raises `SessionBusy`."""
        if session is None:
            yield
            return
        if session in self._held:
            raise SessionBusy(f"resume: session {session} is in use by another run")
        self._held.add(session)
        try:
            yield
        finally:
            self._held.discard(session)
