"""One heart for all clients of a server: pings those who are quiet, drops those who answer nothing.

Duty: tell each peer when its next beat is due. It must never wait for a client.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final, Protocol

import trio

from ..config import Config

TICKS: Final = 50
"""Looks in the shorter of a ping's interval and its timeout; a beat is late by one look at most."""


class Beating(Protocol):
    """Who has a pulse."""

    def beat(self, now: float) -> float:
        """Do what is due at `now`; return when to be called again."""


class Heart:
    """Calls each peer when it is due. Resource handling: `serve` runs for as long as the server lives."""

    def __init__(self, config: Config) -> None:
        self._tick = min(config.ping_interval, config.ping_timeout) / TICKS
        self._due: defaultdict[int, set[Beating]] = defaultdict(set)
        self._slot: dict[Beating, int] = {}
        self._first = trio.Event()

    def add(self, peer: Beating, when: float) -> None:
        """Call a peer at `when`, and from then on as it says."""
        slot = int(when / self._tick) + 1
        self._slot[peer] = slot
        self._due[slot].add(peer)
        self._first.set()

    def remove(self, peer: Beating) -> None:
        """Call a peer no more."""
        slot = self._slot.pop(peer, None)
        if slot is not None and slot in self._due:
            self._due[slot].discard(peer)

    async def serve(self) -> None:
        """Beat until cancelled."""
        while True:
            if not self._slot:
                self._first = trio.Event()
                await self._first.wait()
            now = trio.current_time()
            for slot in [slot for slot in self._due if slot * self._tick <= now]:
                for peer in self._due.pop(slot):
                    self.add(peer, max(peer.beat(now), now))
            await trio.sleep(self._tick)
