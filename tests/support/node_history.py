"""Histories in Redis as a node writes them, without a node."""

from __future__ import annotations

from trio_claude.journal import Part, PartKind
from trio_claude.nodes.redis import Redis


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
