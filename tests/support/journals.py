"""Journals of each kind, and runs for them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from redis_server import RedisServer

from trio_claude.config import Config
from trio_claude.journal import Begun, End, Journal, Retention, open_journal
from trio_claude.nodes import open_nodes
from trio_claude.nodes.history import RedisJournal, open_history

RECEIPT = {"seen": 1, "killed": 0, "survivors": 0, "ms": 1.0, "containment": "supervisor"}
FOR_EVER: Final = Retention()


def begun(run: str, identity: str = "local", started: float = 1.0, **more: object) -> Begun:
    facts: dict[str, Any] = {"meta": "T", "door": "claude", "session": None, "prompt": "hi", "options": {}, **more}
    return Begun(id=run, identity=identity, started=started, **facts)


def ended(run: str, lines: int = 0, **more: object) -> End:
    facts: dict[str, Any] = {
        "ended": 2.0, "reason": "exit", "exit_status": 0, "signal": None, "encoding_errors": 0, "tokens": 3, "dollars": 0.5,
        "turns": 1, "error": None, "receipt": RECEIPT, **more,
    }  # fmt: skip
    return End(id=run, lines=lines, **facts)


class Opening(Protocol):
    """Opens a journal of one kind."""

    def __call__(self, limit: int = ..., *, content: bool = ...) -> AbstractAsyncContextManager[Journal]: ...


def sqlite_in(folder: Path) -> Opening:
    def opened(limit: int = 2**20, *, content: bool = True) -> AbstractAsyncContextManager[Journal]:
        return open_journal(folder / "j.db", "s", Retention(), limit, content=content)

    return opened


def on_redis(server: RedisServer) -> Opening:
    def opened(limit: int = 2**20, *, content: bool = True) -> AbstractAsyncContextManager[Journal]:
        return open_history_of(server, limit=limit, content=content)

    return opened


@asynccontextmanager
async def open_history_of(
    server: RedisServer, name: str = "s", retention: Retention = FOR_EVER, *, limit: int = 2**30, content: bool = True
) -> AsyncIterator[RedisJournal]:
    """Open the journal of a node without a server around it."""
    config = Config(redis=server.url, node_lease=2.0, journal="none")
    async with open_nodes(config, name, lambda _: None) as nodes:
        words = nodes.redis, nodes.membership, retention, limit, lambda _: None
        async with open_history(*words, content=content) as journal:
            yield journal
