"""Who may come in and how much they may use.

Rules: no await, no trio, no clock; `now` is an argument. A decision either changes this module's state or raises.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .errors import SessionBusy


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
