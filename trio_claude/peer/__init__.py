"""The client at the other end: the only user of trio-websocket.

Rule 1: there is one write path, `Wire`, for every byte that goes out. Rule 2: the reader never waits for a write, so
that a client which reads nothing is still heard. Rule 3: no exception of trio-websocket or of the socket leaves this
room; the client is gone, and `on_left` says so.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, Protocol

import trio

from ..config import Config
from ..errors import CloseCode, PeerGone
from ..messages import clip
from ..turns import Turns
from ..upgrade import Handshake
from .frames import PING, TEXT, close_frame, encode, head
from .heart import Heart
from .library import Listener, Socket
from .wire import Closed, Wire

NOTSENT_LOWAT: Final = 128 * 1024
"""Unsent bytes that the kernel holds for us before a write waits (TCP_NOTSENT_LOWAT)."""

__all__ = ["NOTSENT_LOWAT", "Client", "Closed", "Heart", "Listener", "Peer", "accept"]


class Client(Protocol):
    """Whoever is at the other end of a conversation: a `Peer`, or one whose socket another node has."""

    @property
    def far(self) -> bool:
        """Whether another node has its socket, and gives it its lines."""

    def listen(self, on_message: Listener, on_left: Callable[[], None]) -> None:
        """Hear each message, and that the client left. Neither may wait."""

    def giver(self) -> Callable[[list[bytes]], None] | None:
        """Return what sends each line as a text frame without a wait, None where `send` would wait now."""

    async def send(self, lines: list[bytes]) -> None:
        """Send each line as a text frame; waits while the client does not take it. Raises `PeerGone`."""

    def post(self, text: str) -> None:
        """Say something that must not wait behind data."""

    async def close(self, code: CloseCode, reason: str) -> None:
        """Close with a code."""

    def allow(self, limit: int) -> None:
        """Let a message have so many bytes from now on."""

    def drop(self) -> None:
        """Give the client up; who waits in `send` waits no longer."""


class Peer:
    """A connected client.

    Resource handling: lives in the context that `accept` gives, which owns the connection and its tasks. Error
    handling: `send` raises `PeerGone`; all else that goes wrong with the client is told by `on_left`, once.
    """

    far: bool = False

    def __init__(self, wire: Wire, config: Config) -> None:
        self._wire = wire
        self._config = config
        self._listener: Listener | None = None
        self._unheard: list[str | bytes] = []
        self._on_left: Callable[[], None] | None = None
        self._gone = trio.Event()
        self._reason = ""
        self._asked: float | None = None

    def listen(self, on_message: Listener, on_left: Callable[[], None]) -> None:
        """Hear each message, and that the client left. Both are called in the reader and must not wait."""
        self._listener, self._on_left = on_message, on_left
        waiting, self._unheard = self._unheard, []
        for message in waiting:
            on_message(message)
        if self._gone.is_set():
            on_left()

    def giver(self) -> Callable[[list[bytes]], None] | None:
        """Return `give`, if nothing waits for the client."""
        return self.give if self._wire.idle else None

    def give(self, lines: list[bytes]) -> None:
        """Send each line as a text frame; what the client does not take at once goes out when it does.

        Raises `PeerGone`.
        """
        try:
            self._wire.give(encode(lines))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise PeerGone(str(error)) from error

    async def send(self, lines: list[bytes]) -> None:
        """Send each line as a text frame; waits while the client does not read. Raises `PeerGone`."""
        try:
            await self._wire.send_frames(encode(lines))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise PeerGone(str(error)) from error

    def post(self, text: str) -> None:
        """Say something that must not wait behind data; it goes out when the client takes it."""
        with contextlib.suppress(trio.BrokenResourceError):
            self._wire.post(_frame(text))

    async def close(self, code: CloseCode, reason: str) -> None:
        """Close with a code, waiting for the client's answer for at most `close_timeout` seconds, then reset.

        While it takes what was sent before, it is waited for longer: up to `send_timeout`, unless that is cancelled.
        """
        self._reason = clip(reason)
        with contextlib.suppress(trio.BrokenResourceError):
            self._wire.post(close_frame(code, self._reason))
        waits = self._wire.unsent
        with trio.move_on_after(self._config.close_timeout, shield=True):
            await self._gone.wait()
        if self._gone.is_set():
            return
        with trio.move_on_after(self._config.send_timeout):
            while not self._gone.is_set() and (left := self._wire.unsent) < waits:
                waits = left
                with trio.move_on_after(self._config.close_timeout):
                    await self._gone.wait()
        if not self._gone.is_set():
            self._wire.abort()

    def allow(self, limit: int) -> None:
        """Let a message have so many bytes from now on."""
        self._wire.allow(limit)

    def drop(self) -> None:
        """Reset the connection."""
        self._wire.abort()

    @property
    def closed(self) -> Closed:
        """How the connection ended, or would end now."""
        return Closed(self._wire.close_sent, self._reason)

    def _hear(self, message: str | bytes) -> None:
        if self._listener:
            self._listener(message)
        elif len(self._unheard) < 8:
            self._unheard.append(message)
        else:
            self._wire.abort()

    def _leave(self) -> None:
        if not self._gone.is_set():
            self._gone.set()
            if self._on_left:
                self._on_left()

    def beat(self, now: float) -> float:
        """Ping a quiet client; drop one that answers nothing. While a write is pending the write's own limit holds.

        Return when to look again.
        """
        interval, timeout = self._config.ping_interval, self._config.ping_timeout
        if self._wire.writing:
            self._asked = None
            return now + interval
        if self._asked is None or self._wire.heard > self._asked:
            self._asked = None
            if now < self._wire.heard + interval:
                return self._wire.heard + interval
            with contextlib.suppress(trio.BrokenResourceError):
                self._wire.post(head(PING, 0))
            self._asked = now
        elif now >= self._asked + timeout:
            self._wire.abort()
        return min(self._asked + timeout, now + interval)

    async def _flush(self) -> None:
        """Send what `post` could not send at once."""
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._wire.flush()


def _frame(text: str) -> bytes:
    data = text.encode("utf-8", "replace")
    return head(TEXT, len(data)) + data


def _answer(wire: Wire, handshake: Handshake, greeting: str) -> None:
    """Answer a handshake, and greet who sent it. Raises `PeerGone` where nobody hears."""
    try:
        wire.post(handshake.answer + (_frame(greeting) if greeting else b""))
    except trio.BrokenResourceError as error:
        raise PeerGone("the client left in the handshake") from error


@asynccontextmanager
async def accept(
    sock: socket.socket, handshake: Handshake, greeting: str, config: Config, heart: Heart, turns: Turns, limit: int
) -> AsyncIterator[Peer]:
    """Answer a checked handshake and yield the client; leaving the context ends the connection.

    `greeting`, if it is not empty, is the first that it hears. `heart` takes its pulse, `turns` keeps one that sends
    too much from holding up the others. A message may have `max_message` bytes, and up to `limit` once the client is
    allowed them.

    Raises `PeerGone` where the client left before the answer; as all that is raised inside, in a group.
    """
    wire = Wire(sock, handshake.early, config, turns)
    try:
        async with trio.open_nursery() as nursery:
            peer = Peer(wire, config)
            ws = Socket(wire, limit, peer._hear, peer._leave)
            wire.start_flush = lambda: nursery.start_soon(peer._flush)
            wire.why_closed = lambda: Closed(ws.closed.code, ws.closed.reason or "") if ws.closed else None
            _answer(wire, handshake, greeting)
            nursery.start_soon(ws.read)
            heart.add(peer, wire.heard + config.ping_interval)
            try:
                yield peer
            finally:
                heart.remove(peer)
                peer._listener = peer._on_left = None
            if nursery.child_tasks:
                nursery.cancel_scope.cancel()
    finally:
        await wire.aclose()
        wire.forget()
