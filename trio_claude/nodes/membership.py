"""One node among those that share a Redis: its token, its signs of life, and who is lost.

Duty: to know which nodes there are. Rule 1: a node has a token that no other has, or had; what began under an older
one stays with that. Rule 2: all is decided in Redis, by its clock. Rule 3: a node declares another lost only once it
has reached this Redis for longer than a lease without a pause, so that after a restart of Redis each can first say that
it lives. This module must never know what a run is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from ..events import CONNECTED, DISCONNECTED, LOST, REJOINED, NodeState, Observer
from .redis import GONE, Redis, RedisFault, RedisGone
from .scripts import load

FORGOTTEN: Final = 2
"""What `beat` answers a node of which Redis had nothing any more."""
BEATS: Final = 5
"""Signs of life in a lease, at least."""
BEAT: Final = 1.0
"""Seconds between two at most: where Redis closes idle connections (its `timeout`) rule 3 would never be met."""


class Membership:
    """One node among the others.

    Resource handling: `join` comes first and `leave` last; `serve` is to run between. Error handling: while Redis does
    not answer nothing is decided, and it is told once.
    """

    def __init__(self, redis: Redis, name: str, lease: float, observer: Observer) -> None:
        self.name: str = name
        self.lease: float = lease
        self.token: int = 0
        self.others: dict[str, int] = {}
        """The other nodes, as far as is known, with their tokens."""
        self._redis = redis
        self._observer = observer
        self._handlers: list[Callable[[str], None]] = []
        self._listeners: list[Callable[[bool], None]] = []
        self._returns: list[Callable[[], None]] = []
        self._reminders: list[Callable[[], None]] = []
        self._refusal = ""
        self._unwritten = ""
        self._why = ""
        self._came = trio.Event()
        redis.on_change(self._hear)

    def on_lost(self, handler: Callable[[str], None]) -> None:
        """Have `handler` told the name of each node that is gone, lost or left; it must not wait."""
        self._handlers.append(handler)

    def on_change(self, listener: Callable[[bool], None]) -> None:
        """Have `listener` told where Redis begins to take what it is told (True), or ends to; it must not wait."""
        self._listeners.append(listener)

    def on_return(self, handler: Callable[[], None]) -> None:
        """Have `handler` told where this node was found to be lost, and has joined anew; it must not wait."""
        self._returns.append(handler)

    def on_forgotten(self, handler: Callable[[], None]) -> None:
        """Have `handler` told where Redis had forgotten this node, and knows it again; it must not wait."""
        self._reminders.append(handler)

    def hold_up(self, why: str) -> None:
        """Take why what runs say can't be told to a Redis that answers, for logs; empty where it can be again."""
        self._unwritten = why
        self._tell()

    async def join(self) -> None:
        """Become a node, under a new token. Raises `RedisFault`."""
        self.token = await self._redis.run(load("join"), (), self._redis.prefix, self.name, self._lease_ms)

    async def leave(self) -> None:
        """Be a node no more; where Redis is away just now that waits until it is back. Raises `RedisFault`."""
        while True:
            try:
                await self._redis.run(load("leave"), (), self._redis.prefix, self.name)
            except RedisGone:
                await self._redis.wait()
            else:
                return

    async def serve(self) -> None:
        """Give signs of life, and look for lost nodes, until cancelled."""
        while True:
            self._came = trio.Event()
            try:
                await self._beat()
            except RedisGone:
                await self._redis.wait()
                continue
            except RedisFault as error:  # it has no memory left, or may not write: the others see no sign of life
                self._refusal = error.detail
            else:
                self._refusal = ""
            self._tell()
            with trio.move_on_after(min(self.lease / BEATS, BEAT)):
                await self._came.wait()

    @property
    def _lease_ms(self) -> int:
        return round(self.lease * 1000)

    async def _beat(self) -> None:
        whole = int((trio.current_time() - self._redis.since) * 1000)
        words = (self._redis.prefix, self.name, self.token, self._lease_ms, whole)
        known, *told = await self._redis.run(load("beat"), (), *words)
        if not known:
            await self.join()
            self._observer(NodeState(self.name, REJOINED, "another server found this one to be lost"))
            for handler in self._returns:
                handler()
            return
        for handler in self._reminders if known == FORGOTTEN else ():
            handler()
        for name in told[1]:
            self._observer(NodeState(name.decode(), LOST, f"no sign of life for {self.lease:g} s"))
        pairs = iter(told[0])
        self._see({name.decode(): token for token, name in zip(pairs, pairs, strict=True)})

    def _see(self, others: dict[str, int]) -> None:
        """Take who the other nodes are now; one with another token was gone in between."""
        before, self.others = self.others, others
        for name, token in before.items():
            if others.get(name) != token:
                for handler in self._handlers:
                    handler(name)

    def _hear(self, connected: bool) -> None:
        """Take that Redis has come or gone."""
        if connected:  # it may have forgotten this node
            self._came.set()
        self._tell()

    def _tell(self) -> None:
        """Tell where it changes whether Redis takes what it is told; one that refused has still to take something.

        Also where it turns out why it does not: that it does not answer is told only where nothing else was.
        """
        why = (self._refusal or self._unwritten) if self._redis.connected else self._redis.fault or GONE
        before = self._why
        if why == before or (why == GONE and before):
            return
        self._why = why
        self._observer(NodeState(self.name, DISCONNECTED if why else CONNECTED, why))
        if why and before:
            return
        for listener in self._listeners:
            listener(not why)
