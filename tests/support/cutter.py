"""A network that fails: passes connections on to a server, and cuts or refuses them when a test says so."""

from __future__ import annotations

import socket as sockets
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

import trio

Connect: TypeAlias = Callable[[str, int], Awaitable[trio.SocketStream]]


class Cutter:
    """`url` leads to the server as long as `open`, and is `silent` or not; `cut` resets all; `up` and `down` cut the next one after so many bytes."""

    def __init__(self, url: str, port: int, connect: Connect) -> None:
        self.url = url
        self.open = True
        self.made = 0
        self.silent = False
        self.up: int | None = None
        self.down: int | None = None
        self._port = port
        self._connect = connect
        self._streams: set[trio.SocketStream] = set()
        self._clients: set[trio.SocketStream] = set()

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def lead(self, port: int) -> None:
        """Have the next connections go to another server."""
        self._port = port

    async def part(self) -> None:
        """Close each client's connection as some proxies do: by a close frame without a code. Nothing may be on its way."""
        for stream in [*self._clients]:
            await stream.send_all(b"\x88\0")
        self.cut()

    def cut(self) -> None:
        """Reset each connection, at both ends."""
        self._clients.clear()
        _reset(*self._streams)
        self._streams.clear()

    async def serve(self, client: trio.SocketStream) -> None:
        """Pass one connection on."""
        if not self.open:
            return
        self.made += 1
        server = await self._connect("127.0.0.1", self._port)
        self._streams |= {client, server}
        self._clients.add(client)
        up, down, self.up, self.down = self.up, self.down, None, None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pump, client, server, up)
            nursery.start_soon(self._pump, server, client, down)
        self._clients.discard(client)
        for stream in (client, server):
            self._streams.discard(stream)
            stream.socket.close()

    async def _pump(self, source: trio.SocketStream, sink: trio.SocketStream, left: int | None) -> None:
        try:
            while data := await source.receive_some(65536):
                while self.silent:
                    await trio.sleep(0.02)
                if left is not None and len(data) >= left:
                    await sink.send_all(data[:left])
                    self.cut()
                    return
                left = None if left is None else left - len(data)
                await sink.send_all(data)
            await sink.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            _reset(source, sink)


def _reset(*streams: trio.SocketStream) -> None:
    for stream in streams:
        if stream.socket.fileno() != -1:
            stream.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, struct.pack("ii", 1, 0))
            stream.socket.close()


@asynccontextmanager
async def open_cutter(port: int, connect: Connect = trio.open_tcp_stream) -> AsyncIterator[Cutter]:
    """Listen on loopback, in front of a server's port; `connect` leads there."""
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        cutter = Cutter(f"http://127.0.0.1:{listener.socket.getsockname()[1]}", port, connect)
        nursery.start_soon(trio.serve_listeners, cutter.serve, [listener])
        yield cutter
        cutter.cut()
        nursery.cancel_scope.cancel()
