"""The end of the streams: one connection that blocks, for what this node is told and for all runs that it watches.

Duty: to give each watcher what is behind its line, once and in order, whatever becomes of Redis in between. Rule 1:
who is slow reads for itself, a page at a time, and holds up nobody; only who has all so far is on the connection. Rule
2: the blocking read is never cancelled: another run to be watched ends it, by an entry in this node's own stream. This
module must never write a history.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeAlias

import attrs
import trio

from ..errors import ConfigError
from ..events import Observer, Strained
from ..journal import Part, PartKind
from .redis import Redis, RedisFault, Wire, Word, check
from .scripts import load

BLOCK: Final = 1.0
"""Seconds for which a read waits for an entry; then it is made anew."""
LOOK: Final = 1.0
"""Seconds at least between two looks whether the runs are still there that are watched."""
READ_PARTS: Final = 4
"""Parts of one run that such a read gives at most."""
READ_PACKETS: Final = 256
"""Packets to this node that are read at once where so many parts of a run would come, or a read was late."""
READ_BYTES: Final = 4 * 1024 * 1024
"""Bytes behind which such a read takes no more of them: one may have as many as a client's message, and more."""
LATE: Final = 0.5
"""Seconds beyond `BLOCK` after which an answer was late: this process stood still, and who asked may wait no more."""
PAGE_BYTES: Final = 1024 * 1024
"""Bytes that a watcher reads for itself at a time, about."""
PAGE_PARTS: Final = 256
"""Parts of such a page at most."""
WATCH_BYTES: Final = 1024 * 1024
"""Bytes that wait for a watcher; from there on it reads for itself."""
RETRY: Final = 0.1
"""Seconds until what Redis did not do is tried again."""
DEAF: Final = 10
"""Tries in a row at nothing to hear, while Redis answers on the connection that all share, until that is told."""
WHAT_COMES: Final = "a connection to Redis on which other servers are heard"

Id: TypeAlias = tuple[int, int]
END: Final[Id] = (2**64 - 1, 0)
"""The entry behind which there is none: the run has ended."""
Entry: TypeAlias = tuple[Id, Part | None]


def read_entry(entry: Any) -> Entry:
    """Return an entry of a run's stream: its id, and the part that it is, None for the end."""
    name, fields = entry
    number, _, place = name.partition(b"-")
    at = int(number), int(place)
    if at == END:
        return at, None
    told = dict(zip(fields[::2], fields[1::2], strict=True))
    return at, Part(PartKind(int(told[b"k"])), at[0], int(told[b"c"]), told[b"d"], int(told[b"n"]))


@attrs.define
class _Feed:
    """A run that is on the connection: what came last of it, and who watches it."""

    at: Id
    watches: list[Watch] = attrs.Factory(list)


class Watch:
    """One look at a run's history. One task at a time may receive."""

    def __init__(self, tail: Tail, redis: Redis, run: str, after: int) -> None:
        self._tail = tail
        self._redis = redis
        self._run = run
        self._line = after
        self._said: Id = (after, 0)
        self._at: Id = (after, 0)
        self._incarnation = ""
        self._ready: list[Part] = []
        self._size = 0
        self._over = False
        self._stir = trio.Event()

    async def receive(self) -> list[Part]:
        """Return the next parts, in order; empty where the run has ended, or is deleted, and all was given.

        No line comes twice: of a part that begins before it only what is new. While Redis is away it waits. Being
        cancelled loses nothing.
        """
        await trio.lowlevel.checkpoint()
        while not self._ready and not self._over:
            if self._tail.has(self._run, self):
                await self._stir.wait()
                self._stir = trio.Event()
                continue
            try:
                await self._catch_up()
            except RedisFault:
                await self._redis.wait()
                await trio.sleep(RETRY)
        parts, self._ready, self._size = self._ready, [], 0
        return parts

    def take(self, entries: Iterable[Entry]) -> None:
        """Take entries behind those that came before; what was there already is left out."""
        for at, part in entries:
            if at <= self._at:
                continue
            self._at = at
            if part is None:
                self._over = True
            elif fresh := self._fresh(at, part):
                self._ready.append(fresh)
                self._size += len(fresh.data)
        self.wake()

    def wake(self) -> None:
        """Have whoever receives look again."""
        self._stir.set()

    @property
    def slow(self) -> bool:
        """Whether so much waits that it is to read for itself."""
        return self._over or self._size > WATCH_BYTES

    def _fresh(self, at: Id, part: Part) -> Part | None:
        """Return of a part what was not given yet, None where all was."""
        if part.kind is not PartKind.LINES:
            if at <= self._said:
                return None
            self._said = at
            return part
        given = self._line - part.first + 1
        if part.last <= self._line:
            return None
        self._line = part.last
        if given <= 0:
            return part
        data = part.data.split(b"\n", given)[-1]
        return attrs.evolve(part, first=part.first + given, count=part.count - given, data=data)

    async def _catch_up(self) -> None:
        """Read a page, or where there is none have what comes given by the connection. Raises `RedisFault`."""
        key, incarnation = self._redis.key("lines", self._run), self._redis.incarnation
        if self._incarnation != incarnation:
            self._at = await self._locate(key)
            self._incarnation = incarnation
        if found := await self._redis.run(load("page"), (), key, "{}-{}".format(*self._at), PAGE_BYTES, PAGE_PARTS):
            self.take(map(read_entry, found))
        elif await self._redis.ask("EXISTS", self._redis.key("run", self._run)):
            self._tail.add(self._run, self, self._at)
        else:
            self._over = True

    async def _locate(self, key: str) -> Id:
        """Return the entry behind which the next line is, or what comes with the last; by line, as ids may differ.

        A client may have lines that are not stored yet: the part in which the next one is may begin before it.
        """
        found = await self._redis.ask("XREVRANGE", key, f"{self._line + 1}-0", "-", "COUNT", 1)
        if not found:
            return 0, 0
        at, part = read_entry(found[0])
        if part and part.kind is PartKind.LINES and part.first <= self._line < part.last:
            return at[0] - 1, 2**64 - 1  # just before the part in which it is
        return at if part and part.last < self._line else (self._line, 0)


class Tail:
    """What waits for entries. `serve` and `wake` are to run beside it; `hear` gets what this node is told."""

    def __init__(
        self, redis: Redis, name: str, hear: Callable[[Mapping[bytes, bytes]], None], observer: Observer
    ) -> None:
        self._redis = redis
        self._own = redis.key("control", name)
        self._hear = hear
        self._observer = observer
        self._failures = 0
        self._heard = self._trimmed = b"0-0"
        self._incarnation = ""
        self._feeds: dict[str, _Feed] = {}
        self._asked: set[str] | None = None
        self._looked = -math.inf
        self._stir = trio.Event()
        self._wire: Wire | None = None
        redis.on_change(self._cut)

    @asynccontextmanager
    async def watch(self, run: str, after: int) -> AsyncIterator[Watch]:
        """Watch a run's history behind line `after`, with what stderr and the client said right behind that."""
        watch = Watch(self, self._redis, run, after)
        try:
            yield watch
        finally:
            self._remove(run, watch)

    def has(self, run: str, watch: Watch) -> bool:
        """Return whether the connection gives to a watcher."""
        return run in self._feeds and watch in self._feeds[run].watches

    def add(self, run: str, watch: Watch, at: Id) -> None:
        """Have the connection give a watcher what comes behind an entry, unless it has given others more already.

        Others may not have what is before that yet, so they go on from where they are.
        """
        feed = self._feeds.setdefault(run, _Feed(at))
        if feed.at > at:
            return
        feed.watches.append(watch)
        if self._asked is not None and run not in self._asked:
            self._stir.set()

    def _remove(self, run: str, watch: Watch) -> None:
        if self.has(run, watch):
            self._feeds[run].watches.remove(watch)
            if not self._feeds[run].watches:
                del self._feeds[run]

    async def serve(self) -> None:
        """Read until cancelled."""
        while True:
            await self._redis.wait()
            with suppress(RedisFault, ConfigError):  # the connection that all share tells what is wrong with Redis
                async with self._redis.open_wire(BLOCK + self._redis.patience) as self._wire:
                    self._begin(check(await self._wire.ask("INFO")))
                    while True:
                        await self._read(self._wire)
                        self._count_failures(0)
            await trio.sleep(RETRY)
            if self._redis.connected:
                self._count_failures(self._failures + 1)

    def _count_failures(self, failures: int) -> None:
        """Take how often in a row nothing could be read, and tell where this node begins to be deaf, and ends to."""
        was_deaf, self._failures = self._failures >= DEAF, failures
        if was_deaf != (failures >= DEAF):
            self._observer(Strained(WHAT_COMES, over=was_deaf))

    async def wake(self) -> None:
        """End a read that waits where there is another run to be watched, until cancelled.

        It cuts nothing from the stream, in which there may be what is not read yet: whoever has read it does.
        """
        while True:
            await self._stir.wait()
            self._stir = trio.Event()
            with suppress(RedisFault):  # then the read ends too
                await self._redis.ask("XADD", self._own, "*", "wake", "")

    def begin_anew(self) -> None:
        """Hear this node's stream from its beginning: it was deleted, and Redis' clock, its ids, may have gone back."""
        self._incarnation = ""
        if self._wire:
            self._wire.cut()

    def _begin(self, incarnation: str) -> None:
        """Begin with a Redis; another incarnation may have lost the last entries, so all look for their place."""
        if self._incarnation == incarnation:
            return
        self._incarnation = incarnation
        self._heard = self._trimmed = b"0-0"
        for run in list(self._feeds):
            self._put_off(run)

    def _put_off(self, run: str) -> None:
        """Have those who watch a run look for themselves."""
        for watch in self._feeds.pop(run).watches:
            watch.wake()

    async def _read(self, wire: Wire) -> None:
        """Wait for entries, and give them to whom they are for. Raises `RedisFault`."""
        runs = list(self._feeds)
        self._asked = set(runs)
        keys = [self._own, *(self._redis.key("lines", run) for run in runs)]
        ids: list[Word] = [self._heard, *("{}-{}".format(*self._feeds[run].at) for run in runs)]
        words: list[Word] = ["XREAD", "COUNT", READ_PARTS, "BLOCK", round(BLOCK * 1000), "STREAMS", *keys, *ids]
        latest = trio.current_time() + BLOCK + LATE
        try:
            told = await wire.ask(*words) or {}
        finally:
            self._asked = None
        for key, run in zip(keys[1:], runs, strict=True):
            if entries := told.get(key.encode()):
                self._give(run, [read_entry(entry) for entry in entries])
        packets = [*told.get(self._own.encode(), ())]
        if len(packets) == READ_PARTS or (packets and trio.current_time() > latest):
            packets += await wire.run(load("page"), (), self._own, packets[-1][0], READ_BYTES, READ_PACKETS)
        self._tell(packets)
        await self._trim(wire)
        await self._look(wire)

    async def _look(self, wire: Wire) -> None:
        """Put off runs that are not there any more: one that ends and is deleted between two reads gives no entry.

        Raises `RedisGone`.
        """
        if trio.current_time() < self._looked + LOOK:
            return
        self._looked, runs = trio.current_time(), list(self._feeds)
        there = await wire.ask_all([("EXISTS", self._redis.key("run", run)) for run in runs])
        for run, known in zip(runs, there, strict=True):
            if known == 0 and run in self._feeds:
                self._put_off(run)

    def _tell(self, entries: Iterable[Any]) -> None:
        """Have entries of this node's own stream heard, at once: what a later one takes back has not begun yet."""
        for name, fields in entries:
            self._heard = name
            if fields[0] != b"wake":
                self._hear(dict(zip(fields[::2], fields[1::2], strict=True)))

    async def _trim(self, wire: Wire) -> None:
        """Have Redis keep nothing that was heard: in it is what clients said. What it refuses is tried again."""
        if self._trimmed == self._heard:
            return
        heard = self._heard
        time, _, place = heard.partition(b"-")
        with suppress(RedisFault):
            await wire.ask("XTRIM", self._own, "MINID", b"%s-%d" % (time, int(place) + 1))
            self._trimmed = heard

    def _give(self, run: str, entries: list[Entry]) -> None:
        if not (feed := self._feeds.get(run)):
            return
        feed.at = max(feed.at, entries[-1][0])
        for watch in [*feed.watches]:
            watch.take(entries)
            if watch.slow:
                self._remove(run, watch)

    def _cut(self, connected: bool) -> None:
        if not connected and self._wire:
            self._wire.cut()
