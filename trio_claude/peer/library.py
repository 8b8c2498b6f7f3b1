"""trio-websocket's connection, from behind the answer to its handshake: it reads what a client sends.

Duty: have each message heard where it was read, and the client's leaving. This module must never write to a socket, nor
let what the library raises reach anybody but its own client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

import trio
from trio_websocket import WebSocketConnection
from wsproto import ConnectionType, WSConnection
from wsproto.connection import Connection

from .wire import RECEIVE_SIZE, Wire

TURNS: Final = 2
"""Turns of the loop in which a task that a message has woken is surely done with its step."""

Listener = Callable[[str | bytes], None]
"""Hears a message; must not wait."""


class _Answered:
    """What stands for the library's parser of a handshake that was read and answered already."""

    @staticmethod
    def events() -> tuple[()]:
        """Return nothing: what comes is the connection's."""
        return ()


_ANSWERED: Final = cast("Any", _Answered())


class _Few(list[Any]):
    """A queue of what hardly ever comes; an empty deque takes three quarters of a KiB."""

    __slots__ = ()

    def popleft(self) -> Any:
        """Take the first."""
        return self.pop(0)


_UNHEARD: Final = trio.Event()
"""What stands for the events of all connections for which nobody waits: each would take a quarter of a KiB."""


class _Opened(WSConnection):
    """The protocol of a connection behind its handshake."""

    def __init__(self) -> None:
        self.client = False
        self.handshake = _ANSWERED
        self.connection = Connection(ConnectionType.SERVER)
        self.connection._events = cast("Any", _Few())


class _Choked(Exception):
    """Something was raised by who hears; the library would take some of it, as a KeyError, for its own, and go on."""


class _Ear:
    """What the library takes for both ends of a channel: no task waits there, each message is heard at once.

    What comes behind a message waits until that has set going what it does.
    """

    def __init__(self, hear: Listener, leave: Callable[[], None]) -> None:
        self._hear = hear
        self._leave = leave
        self.fault: Exception | None = None
        """What was raised here, and is no fault of the library's."""

    async def send(self, message: str | bytes) -> None:
        """Have a message heard."""
        with self._told():
            self._hear(message)
        for _ in range(TURNS):
            await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Take that no more messages come."""
        with self._told():
            self._leave()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it is, `read` raises it: the library would take some of it for its own
            self.fault = error
            raise _Choked from error

    async def __aenter__(self) -> _Ear:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        is_end = kind is None or issubclass(kind, Exception)
        if is_end and kind is not _Choked:  # who is cancelled, or has choked, has not seen the client leave
            await self.aclose()


class Socket(WebSocketConnection):
    """A client's WebSocket: `hear` is told each message, `leave`, maybe twice, that there are no more.

    Error handling: `read` raises what these two raise; whatever else goes wrong ends the connection.
    """

    def __init__(self, wire: Wire, limit: int, hear: Listener, leave: Callable[[], None]) -> None:
        super().__init__(wire, _Opened(), max_message_size=limit, receive_buffer_size=RECEIVE_SIZE)
        self._wire = wire
        self._ear = _Ear(hear, leave)
        self._send_channel = self._recv_channel = cast("Any", self._ear)
        self._connection_proposal = None
        self._open_handshake = self._close_handshake = self._for_testing_peer_closed_connection = _UNHEARD

    async def read(self) -> None:
        """Read until the client is gone."""
        try:
            await self._reader_task()
        except _Choked:
            pass
        except Exception:  # whatever the library raises ends this connection, and no other
            self._wire.abort()
        if self._ear.fault:
            raise self._ear.fault
