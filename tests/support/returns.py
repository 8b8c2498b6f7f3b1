"""Clients that leave a session in every way and come back."""

from __future__ import annotations

import json
import random
import socket as sockets
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from harness import until
from talk import Talk
from trio_websocket import ConnectionClosed, WebSocketConnection, open_websocket_url

from trio_claude.server import Server

GRACE = {"on_disconnect": {"grace": 20}}


def numbered(talk: Talk) -> list[str]:
    """Return the lines of the CLI that a client has got."""
    return [json.dumps(frame) for frame in talk.frames if frame["type"] != "gateway"]


async def attach(talk: Talk, run: str, after: int = 0, **more: object) -> dict[str, Any]:
    await talk.say({"type": "gateway", "op": "attach", "run": run, "after": after, **more})
    return await talk.event("attached")


async def reset(socket: WebSocketConnection) -> None:
    """Drop a connection as a network does that forgets it."""
    socket._stream.socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, struct.pack("ii", 1, 0))
    await socket._stream.aclose()


async def leave(talk: Talk) -> None:
    """Leave without a word, and wait until the server has seen it."""
    await talk.socket._stream.aclose()


async def orphaned(server: Server, run: str) -> None:
    stages = server.stages
    await until(lambda: run in stages and not stages[run].owned)


@asynccontextmanager
async def dropped(server: Server, first: dict[str, object], rng: random.Random) -> AsyncIterator[list[str]]:
    """Connect, say the first message, take bytes up to a random one, and reset."""
    lines: list[str] = []
    async with open_websocket_url(
        f"ws://127.0.0.1:{server.port}/ws/session",
        max_message_size=2**27,
        message_queue_size=100_000,
        disconnect_timeout=10,
    ) as socket:
        await socket.send_message(json.dumps(first))
        stop = rng.randrange(1, 400)
        while len(lines) < stop:
            try:
                frame = await socket.get_message()
            except ConnectionClosed:
                break
            said = json.loads(frame)["type"]
            assert '"event":"gap"' not in frame, frame
            if said != "gateway":
                lines.append(frame)
            if said == "result":
                break
        await reset(socket)
        yield lines
