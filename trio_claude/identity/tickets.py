"""One-use tickets: what a browser page gets for its credential, to open one socket with. Pure.

A browser can't set a header on a WebSocket, and what stands in an address ends in logs; so a page asks for a ticket
and spends it at once.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict

import attrs

from .people import Identity

LIFETIME = 30.0
"""Seconds that a ticket is good for."""
KEPT = 10_000
KEPT_EACH = 100
"""Tickets that may be open, in all and of one identity; the oldest goes first."""


@attrs.frozen
class _Ticket:
    identity: Identity
    origin: str | None
    until: float


class Tickets:
    """The open tickets of one server. `now` is in seconds, of a clock that never goes back."""

    def __init__(self) -> None:
        self._open: OrderedDict[bytes, _Ticket] = OrderedDict()

    def issue(self, identity: Identity, origin: str | None, now: float) -> str:
        """Return a ticket for `identity`, good from a page of the same origin only."""
        self._drop_stale(now)
        own = [key for key, ticket in self._open.items() if ticket.identity.name == identity.name]
        if len(own) >= KEPT_EACH:
            del self._open[own[0]]
        elif len(self._open) >= KEPT:
            self._open.popitem(last=False)
        secret = secrets.token_urlsafe(32)
        self._open[_digest(secret)] = _Ticket(identity, origin, now + LIFETIME)
        return secret

    def spend(self, secret: str, origin: str | None, now: float) -> Identity | None:
        """Return whose ticket it is; it is spent then, also where the origin is another."""
        self._drop_stale(now)
        ticket = self._open.pop(_digest(secret), None)
        return ticket.identity if ticket and ticket.origin == origin else None

    def _drop_stale(self, now: float) -> None:
        while self._open and next(iter(self._open.values())).until <= now:
            self._open.popitem(last=False)

    def __len__(self) -> int:
        return len(self._open)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
