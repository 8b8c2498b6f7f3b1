"""CLI sessions in use. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import SessionBusy


class SessionLocks:
    """CLI sessions in use: two runs that resume one at once would lose a turn without a word."""

    def __init__(self) -> None:
        self._held: set[tuple[str, str]] = set()

    def __contains__(self, held: tuple[str, str]) -> bool:
        """Whether a session of somebody, (who, session), is in use."""
        return held in self._held

    @property
    def held(self) -> frozenset[tuple[str, str]]:
        """All that are in use, each as (who, session)."""
        return frozenset(self._held)

    @contextmanager
    def hold(self, session: str, who: str) -> Iterator[None]:
        """Hold a session of `who` for a run. Raises `SessionBusy`."""
        held = (who, session)
        if held in self._held:
            raise SessionBusy(f"resume: session {session} is in use by another run")
        self._held.add(held)
        try:
            yield
        finally:
            self._held.discard(held)
