"""What a run says, on its way to the client: how much is under way, and when there is no more to wait for.

This module has no pipe and no client in its hands, and must never wait without a bound for what is quiet.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

DRAIN_IDLE: Final = 0.1
"""Seconds for which pipes that others hold may be quiet after the CLI's end, before no more is expected of them."""
DRAIN_LIMIT: Final = 2.0
"""Seconds after which no more is expected of them at the latest."""


class Delivery:
    """What a run says, on its way to the client: `open` parts now, a count of all that has stirred, and pipes read.

    A part is under way while the context lasts. Error handling: raises nothing of its own.
    """

    def __init__(self, pipes: int = 2) -> None:
        self.open: int = 0
        self.stirs: int = 0
        self._pipes = pipes
        self._over: trio.Event | None = None

    def __enter__(self) -> None:
        self.open += 1

    def __exit__(self, *_: object) -> None:
        self.open -= 1
        self.stirs += 1

    @property
    def is_over(self) -> bool:
        """Whether all pipes were read to their end."""
        return not self._pipes

    def end_pipe(self) -> None:
        """Take that one pipe was read to its end, and all of it delivered."""
        self._pipes -= 1
        if not self._pipes and self._over is not None:
            self._over.set()

    async def wait_quiet(self) -> None:
        """Wait until it has been quiet for `DRAIN_IDLE` seconds, at most `DRAIN_LIMIT` seconds.

        What a slow client has not taken yet is not quiet, and the time that it takes does not count.
        """
        left, seen = DRAIN_LIMIT, -1
        while left > 0 and (self.open or seen != self.stirs):
            seen = self.stirs
            await trio.sleep(DRAIN_IDLE)
            left -= 0 if self.open else DRAIN_IDLE

    async def wait_over(self) -> None:
        """Wait until all pipes are read, or until it is quiet as `wait_quiet` says."""
        if self._pipes:
            self._over = trio.Event()
            await self.wait_until(self._over.wait)

    async def wait_until(self, over: Callable[[], Awaitable[None]]) -> None:
        """Wait until `over` returns, or until it is quiet as `wait_quiet` says."""
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                await over()
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            await self.wait_quiet()
            nursery.cancel_scope.cancel()
