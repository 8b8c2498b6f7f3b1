"""What a CLI says on stderr. Most say nothing there, so no task waits for it before one does.

Duty: cut it into lines, and have them said in order. This module must never decide anything about a run.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from .containment import PipeReader, Pump
from .delivery import Delivery
from .turns import LINES

LINE: Final = 64 * 1024
"""Bytes of a line; a longer one is cut into several."""
LAST: Final = 200
"""Characters that are kept of the last line which says something."""


class Stderr:
    """The stderr of one run; `say` takes its lines, and may wait.

    Resource handling: the nursery that `begin` is given has a task from the first words on; `leave` must be called
    before that nursery ends. Error handling: raises what `say` raises, there.
    """

    __slots__ = ("_delivery", "_pump", "last")

    def __init__(self, pump: Pump, delivery: Delivery) -> None:
        self._pump = pump
        self._delivery = delivery
        self.last: str = ""
        """The last line that says something."""

    def begin(
        self, pipe: trio.abc.ReceiveStream, say: Callable[[list[str]], Awaitable[None]], nursery: trio.Nursery
    ) -> None:
        """Have what comes said."""

        def read(chunk: bytes = b"") -> None:
            nursery.start_soon(self._read, pipe, say, chunk)

        def hear(chunk: bytes) -> None:
            if chunk:
                read(chunk)
            else:
                self._delivery.end_pipe()

        if not (isinstance(pipe, PipeReader) and pipe.begin_hearing(self._pump, hear, read)):
            read()

    @staticmethod
    def leave(pipe: trio.abc.ReceiveStream) -> None:
        """Start nothing more."""
        if isinstance(pipe, PipeReader):
            pipe.end_hearing()

    async def _read(
        self, pipe: trio.abc.ReceiveStream, say: Callable[[list[str]], Awaitable[None]], chunk: bytes
    ) -> None:
        """Say all lines, of which the first begin with `chunk`."""
        rest = b""
        while chunk := chunk or await _heard(pipe):
            self._delivery.stirs += 1
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > LINE:
                lines, rest = [*lines, rest], b""
            await self._say(lines, say)
            chunk = b""
        await self._say([rest] if rest else [], say)
        self._delivery.end_pipe()

    async def _say(self, lines: list[bytes], say: Callable[[list[str]], Awaitable[None]]) -> None:
        for first in range(0, len(lines), LINES):
            texts = [line.decode(errors="replace") for line in lines[first : first + LINES]]
            self.last = next((text for text in reversed(texts) if text.strip()), self.last)[:LAST]
            with self._delivery:
                if first:
                    await trio.lowlevel.checkpoint()
                await say(texts)


async def _heard(pipe: trio.abc.ReceiveStream) -> bytes:
    """Return what a pipe holds, nothing at its end, or where our end of it was closed."""
    try:
        return bytes(await pipe.receive_some())
    except trio.ClosedResourceError:
        return b""
