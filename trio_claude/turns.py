"""Turns: whoever has much to relay, or starts a run in a crowd, gets one turn at a time.

So a lone line of another never waits for a crowd.

This module must never hold a turn while its owner waits for a client, and never cost what has the loop to itself.
"""

from __future__ import annotations

from typing import Final

import trio

BULK: Final = 16 * 1024
"""Bytes of a read from which on it is bulk: more than any run says at the pace of a model."""
READS: Final = 3
"""Reads of bulk that a turn is good for: so many, of 64 KiB, may come before a lone line, a third of a millisecond."""
LINES: Final = 500
"""Lines of one read behind which others have their turn: there may be 65,536 in it, at some µs each."""

APART: Final = 0.0005
"""Seconds between two starts of runs that need no turns: a crowd that comes at once starts one in each round."""


class Turns:
    """The turns of one server. Between two turns every task that is ready runs once."""

    def __init__(self) -> None:
        self._lock = trio.StrictFIFOLock()
        self._last: object = None
        self._left: dict[object, int] = {}
        self._started = 0.0

    async def wait(self, who: object, good_for: int = 1) -> None:
        """Wait for a turn for `who`, good for so many; no wait where the last is, or where nobody had one since."""
        left = self._left.pop(who, 0)
        if not left:
            if self._last is who and not self._lock.locked():
                return
            async with self._lock:  # which takes one round of the loop, also where nobody holds it
                self._last = who
            left = good_for
        if left > 1:
            self._left[who] = left - 1

    async def wait_apart(self, who: object) -> None:
        """Wait for a turn to start something, if something else was started just now."""
        now = trio.current_time()
        soon, self._started = now - self._started < APART, now
        if soon:
            await self.wait(who)

    def leave(self, who: object) -> None:
        """Forget `who`, which reads no more."""
        self._left.pop(who, None)
