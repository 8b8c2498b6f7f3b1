"""An echo door for conformance suites: our accept path, with a handler that says every message again.

Nothing of the product but `serve_http` and `accept` is used, so that what a suite finds is theirs.
"""

from __future__ import annotations

import math
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from trio_claude.config import Config
from trio_claude.errors import PeerGone
from trio_claude.peer import Heart, Peer, accept
from trio_claude.peer.frames import TEXT, head
from trio_claude.turns import Turns
from trio_claude.upgrade import Request, Response, Site, json_response, serve_http

DOOR = "/"
BINARY = 0x82
CONFIG = Config(max_message=64 * 2**20, max_frames=2**20)


async def no_routes(_request: Request) -> Response:
    return json_response(404, {})


SITE = Site(no_routes, frozenset({DOOR}))


@asynccontextmanager
async def open_echo(config: Config = CONFIG) -> AsyncIterator[int]:
    """Serve on a free port of the loopback address; yield the port."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        listener.setblocking(False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept_all, listener, nursery, config)
            yield listener.getsockname()[1]
            nursery.cancel_scope.cancel()


async def accept_all(listener: socket.socket, nursery: trio.Nursery, config: Config) -> None:
    while True:
        await trio.lowlevel.wait_readable(listener)
        sock, _ = listener.accept()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        nursery.start_soon(serve_echo, sock, config)


async def serve_echo(sock: socket.socket, config: Config = CONFIG) -> None:
    """Serve one connection to its end. Raises what is nobody's fault but ours."""
    try:
        handshake = await serve_http(sock, SITE, config)
        if handshake is not None:
            async with accept(sock, handshake, "", config, Heart(config), Turns(), config.max_message) as peer:
                await echo(peer)
    except* (OSError, PeerGone, trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # the client left
    finally:
        if sock.fileno() >= 0:
            trio.lowlevel.notify_closing(sock)
            sock.close()


async def echo(peer: Peer) -> None:
    """Say each message again until the client is gone."""
    heard, messages = trio.open_memory_channel[str | bytes](math.inf)
    peer.listen(heard.send_nowait, heard.close)
    async for message in messages:
        await say(peer, message)


async def say(peer: Peer, message: str | bytes) -> None:
    """Send a message whole; `Peer` itself has no need of binary ones."""
    data = message.encode() if isinstance(message, str) else bytes(message)
    frame = head(TEXT if isinstance(message, str) else BINARY, len(data))
    await peer._wire.send_frames(frame + data)
