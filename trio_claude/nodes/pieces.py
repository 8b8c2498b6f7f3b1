"""The stream that a connection to Redis is on: it sends in pieces, and what came before its end is always read.

This module must never know what is said.
"""

from __future__ import annotations

from typing import Final

import anyio
import attrs
from anyio.abc import ByteStream

PIECE: Final = 64 * 1024
"""Bytes that are sent at a time, and that the kernel holds before a write waits: each shows that Redis takes them."""
BEGINNING: Final = 1024
"""Bytes of what comes first that are kept: who is shown out before he has said a word is told why."""


@attrs.define(eq=False)
class Pieces(ByteStream):
    """A stream that sends in pieces; `sent` is how many bytes have gone, `begun` how what has come begins.

    Error handling: where the other end has left, sending waits for whoever reads to find out: what it said last is to
    be read first.
    """

    _stream: ByteStream
    sent: int = 0
    begun: bytes = b""

    async def send(self, item: bytes) -> None:
        """Send, piece by piece."""
        try:
            for first in range(0, len(item), PIECE):
                piece = item[first : first + PIECE]
                await self._stream.send(piece)
                self.sent += len(piece)
        except anyio.BrokenResourceError:
            await anyio.sleep_forever()

    async def receive(self, max_bytes: int = PIECE) -> bytes:
        """Return what comes."""
        data = await self._stream.receive(max_bytes)
        self.begun = self.begun or data[:BEGINNING]
        return data

    async def send_eof(self) -> None:
        """Say that nothing more is sent."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close."""
        await self._stream.aclose()
