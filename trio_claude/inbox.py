"""What a run's owners have said and the run has not been told yet: in order, one at a time.

Only where several servers share what is counted: there a turn waits for a decision, and what was said behind it waits
with it. This module must never know what is said, and never make a reader wait.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import attrs
import trio

from .errors import Backlog

MESSAGES: Final = 256
"""Messages that may wait."""

Act = Callable[[], Awaitable[None]]


@attrs.frozen
class _Last:
    """What is done behind all that waits, and itself does not wait."""

    do: Callable[[], None]

    async def __call__(self) -> None:
        self.do()


class Inbox:
    """The messages that wait, at most `limit` bytes of them, or one that is larger."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: deque[tuple[int, Act]] = deque()
        self._size = 0
        self._acting = False
        self._stir = trio.Event()

    @property
    def busy(self) -> bool:
        """Whether something waits, or is dealt with just now."""
        return self._acting or bool(self._waiting)

    def put(self, size: int, act: Act) -> None:
        """Have `act` called, for a message of `size` bytes, behind all that waits. Raises `Backlog`."""
        if len(self._waiting) >= MESSAGES:
            raise Backlog(f"{MESSAGES} messages wait already")
        if self._size and self._size + size > self._limit:
            raise Backlog(f"{self._size} bytes wait already; {self._limit} may")
        self._waiting.append((size, act))
        self._size += size
        self._stir.set()

    def put_last(self, do: Callable[[], None]) -> None:
        """Have `do` called behind all that waits, however much that is; where it is full each is called only once."""
        last = 0, _Last(do)
        if last not in itertools.islice(self._waiting, MESSAGES, None):
            self._waiting.append(last)
            self._stir.set()

    async def serve(self) -> None:
        """Deal with one message after the other until cancelled; what `act` raises comes out."""
        while True:
            while self._waiting:
                size, act = self._waiting.popleft()
                self._acting = True
                try:
                    await act()
                finally:
                    self._size -= size
                    self._acting = False
            self._stir = trio.Event()
            await self._stir.wait()
