"""Several servers that share a Redis and look like one: nodes.

Duty: to put the parts together. It is imported only where the setting `redis` is given: its library takes its time. All
that goes between nodes goes through Redis. This module must never know a key.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final
from urllib.parse import urlsplit

import attrs
import trio

from ..config import Config
from ..errors import ConfigError
from ..events import CONNECTED, NodeState, Observer, Weak
from ..journal import Retention
from ..services import keep_going, open_lasting, open_services
from .control import Control
from .history import RedisJournal, open_history
from .membership import Membership
from .redis import Redis, RedisFault, open_redis
from .shared import Shared, open_shared
from .tail import Tail, Watch

LEAVING: Final = 1.0
"""Seconds that the last words to Redis may take."""


@attrs.frozen
class Nodes:
    """One node, and what it shares with the others. Resource handling: lives in the context that `open_nodes` gives."""

    redis: Redis
    membership: Membership
    control: Control
    tail: Tail
    journal: RedisJournal | None
    shared: Shared

    @property
    def name(self) -> str:
        """Its name: the server's id."""
        return self.membership.name

    @property
    def token(self) -> int:
        """The fencing token that this node has now; another once it was declared lost."""
        return self.membership.token

    @property
    def lease(self) -> float:
        """Seconds without a sign of life after which a node is lost."""
        return self.membership.lease

    @property
    def connected(self) -> bool:
        """Whether Redis answers, as far as is known."""
        return self.redis.connected


@asynccontextmanager
async def open_nodes(config: Config, server: str, observer: Observer) -> AsyncIterator[Nodes]:
    """Join the servers that share the Redis of a configuration, as `server`; leaving the context leaves them.

    Raises `ConfigError` where Redis can't be had.
    """
    if urlsplit(config.redis).password:
        observer(Weak("redis: its password stands in the settings; redis_password_file hides it"))
    async with open_redis(config) as redis:
        membership = Membership(redis, server, config.node_lease, observer)
        try:
            await membership.join()
        except RedisFault as error:
            raise ConfigError(f"redis: {redis.address}: {error}") from None
        observer(NodeState(server, CONNECTED))
        control = Control(redis, membership, observer)
        tail = Tail(redis, server, control.hear, observer)
        membership.on_return(tail.begin_anew)
        membership.on_forgotten(tail.begin_anew)
        try:
            async with (
                open_lasting(keep_going, "membership", membership.serve, observer),
                open_services() as services,
            ):
                services.start_soon(keep_going, "control", control.serve, observer)
                services.start_soon(keep_going, "tail", tail.serve, observer)
                services.start_soon(keep_going, "tail", tail.wake, observer)
                async with (
                    open_shared(redis, membership, control, observer) as shared,
                    _opened_history(config, redis, membership, observer) as journal,
                ):
                    yield Nodes(redis, membership, control, tail, journal, shared)
        finally:
            with trio.move_on_after(LEAVING, shield=True), suppress(RedisFault):
                await membership.leave()


@asynccontextmanager
async def _opened_history(
    config: Config, redis: Redis, membership: Membership, observer: Observer
) -> AsyncIterator[RedisJournal | None]:
    """Open the journal, if there is to be one."""
    if config.journal == "none":
        yield None
        return
    retention = Retention(days=config.journal_days, runs=config.journal_runs, size=config.journal_bytes)
    words = redis, membership, retention, config.journal_run_bytes, observer
    async with open_history(*words, content=config.journal_content, on_barred=membership.hold_up) as journal:
        yield journal


__all__ = ["Nodes", "Watch", "open_nodes"]
