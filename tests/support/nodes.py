"""Nodes without a server around them, and histories in Redis as they write them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis_server import RedisServer

from trio_claude.config import Config
from trio_claude.events import Event, Observer
from trio_claude.journal import Part, PartKind
from trio_claude.nodes import Nodes, open_nodes
from trio_claude.nodes.redis import Redis

LEASE = 2.0
"""Seconds: the shortest that there is."""


@asynccontextmanager
async def open_node(
    server: RedisServer, name: str = "here", observer: Observer | None = None, *, lease: float = LEASE
) -> AsyncIterator[Nodes]:
    config = Config(redis=server.url, node_lease=lease, journal="none")
    events: list[Event] = []
    async with open_nodes(config, name, observer or events.append) as nodes:
        yield nodes


async def begin(redis: Redis, run: str, node: str = "elsewhere") -> None:
    await redis.ask("HSET", redis.key("run", run), "node", node, "state", "live", "stored", 0, "identity", "local")
    await redis.ask("SADD", redis.key("live", node), run)


async def append(redis: Redis, run: str, part: Part, place: int = 0) -> None:
    """Write a part; `place` is that of one which is no lines, behind its line."""
    name = f"{part.first}-{place}"
    fields = ("k", int(part.kind), "c", part.count, "n", part.number, "d", part.data)
    await redis.ask("XADD", redis.key("lines", run), name, *fields)
    if part.kind is PartKind.LINES:
        await redis.ask("HSET", redis.key("run", run), "stored", part.last)


async def end(redis: Redis, run: str) -> None:
    await redis.ask("XADD", redis.key("lines", run), f"{2**64 - 1}-0", "end", "exit")


def lines(first: int, count: int, size: int = 0) -> Part:
    """Return a part of lines that are their own numbers."""
    texts = [str(number).encode().ljust(size, b" ") for number in range(first, first + count)]
    return Part(PartKind.LINES, first, count, b"\n".join(texts))
