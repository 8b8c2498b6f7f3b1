"""The journal of servers that share a Redis: what a run says is told to Redis in order, by a task and a connection.

Rule 1: a part is told again until Redis has it, or says that it never will: it takes each once, behind the part before,
and from nobody but the run's own server. Rule 2: Redis writes to its disk once a second, so what it took last is kept
for a moment, and told again to a Redis that has lost it. This module must never hold up a run, and never read.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio

from ..errors import ConfigError, JournalFault
from ..events import Observer
from ..journal import (
    Begun,
    Deleted,
    Journal,
    Page,
    Part,
    PartKind,
    Query,
    Recorder,
    Retention,
    RunRow,
    Unfinished,
    Usage,
    UsageQuery,
)
from ..journal.backlog import PATIENCE, QUEUE_BYTES, Backlog, Write, Writer
from ..journal.base import SOON, TAIL, UNWRITTEN
from ..journal.unfinished import find_unfinished
from ..services import keep_going, open_lasting, open_services
from .archive import RETRY, Archive
from .asks import SCRIPTS, Ask, Asks, Lease, Told
from .redis import Redis, RedisBroken, RedisFault, RedisGone, Wire, check
from .scripts import load

GATHER: Final = 0.005
"""Seconds since Redis was told something, within which what comes waits; not where somebody waits for it."""
BURST: Final = 256 * 1024
"""Bytes in such a time that are a burst, which no run says at the pace of a model."""
BURST_GATHER: Final = 0.02
"""Seconds in which so many must come for the burst to go on."""
BURST_PATIENCE: Final = 0.5
"""Seconds for which what has come waits for the end of a burst, at most."""
BURST_BYTES: Final = QUEUE_BYTES * 3 // 4
"""Bytes over which Redis gets some in a burst too, though it takes a core for it."""
GROUP_BYTES: Final = 1024 * 1024
"""Bytes behind which what is told at a time takes no more: Redis has others to answer in between."""
PAUSE: Final = 0.2
"""Seconds until what failed is tried again."""
BARRED: Final = 10
"""Tries in a row at a connection, while Redis answers on the one that all share, until that is told."""
KEEP: Final = 3.0
"""Seconds for which what Redis has taken is kept: three times what it may take to have its disk hold it."""
KEEP_BYTES: Final = 16 * 1024 * 1024
"""Bytes that are kept so at most."""
TIDY: Final = 60.0
"""Seconds between two looks for what is not to be kept any more."""
LOOKED_AT: Final = 10
"""Runs of a session among which the last is looked for in which anything was said."""
DAY: Final = 86400


class RedisJournal(Backlog, Journal):
    """The journal of one server among others.

    Resource handling: lives in the context that `open_history` gives. Error handling: what Redis does not take now is
    told again; what it never will ends that run's history, as its recorder says then.
    """

    enough = BURST_BYTES

    def __init__(
        self,
        redis: Redis,
        lease: Lease,
        retention: Retention,
        run_limit: int,
        *,
        content: bool,
        on_barred: Callable[[str], None],
    ) -> None:
        super().__init__(run_limit, content=content)
        self.fault: str = ""
        self._on_barred = on_barred
        self._tries = 0
        self._redis = redis
        self._archive = Archive(redis)
        self._retention = retention
        self._asks = Asks(redis.prefix, lease, math.ceil(retention.days * DAY))
        self._incarnation = ""
        self._again: deque[Write] = deque()
        self._kept: deque[tuple[float, Write, str]] = deque()
        self._kept_bytes = 0
        self._passed = -math.inf
        self._come = trio.Event()
        self._wire: Wire | None = None
        redis.on_change(self._cut)

    def begin(self, run: Begun) -> Recorder:
        """Take a run that begins; return its recorder."""
        recorder = super().begin(run)
        if recorder.stored:
            self._asks.runs[run.id] = Told(recorder)
        return recorder

    def _wake(self) -> None:
        self._come.set()

    async def find(self, query: Query) -> Page:
        """Return runs, newest first, without their prompts and options."""
        return await self._archive.find(query)

    async def _look_up(self, identity: str | None, run: str) -> RunRow | None:
        return await self._archive.get(identity, run)

    async def holder(self, run: str) -> str | None:
        """Return the node on which a run lives, None where it does not live."""
        return await self._archive.holder(run)

    async def parts(self, run: str, after: int = 0, beyond: int = 0) -> list[Part]:
        """Return a page of a run's history behind line `after` and part `beyond`, empty at its end."""
        return await self._archive.parts(run, after, beyond)

    async def unfinished(self, identity: str, session: str) -> Unfinished | None:
        """Return the turn at which the last run of a session was cut off, None where it was not."""
        await self.settle(SOON)
        for back in range(LOOKED_AT):
            run = await self._archive.latest(identity, session, back)
            if not run or run.stored < run.lines:  # what is missing may be the turn's end
                return None
            parts = await self._archive.tail(run.id, TAIL)
            if run.prompt is not None or any(part.kind is not PartKind.STDERR for part in parts):
                return find_unfinished(run.id, run.prompt, parts)
        return None

    async def usage(self, query: UsageQuery) -> Usage:
        """Return what was used, in sums, the newest day first."""
        return await self._archive.usage(query)

    async def delete(
        self, identity: str | None, run: str | None = None, gone: list[Deleted] | None = None
    ) -> list[Deleted]:
        """Delete one ended run, or all of an identity; return what was deleted, which `gone` takes as it goes.

        While Redis takes nothing new what it has can be deleted: that makes room. Raises `JournalFault` where it does
        not answer, when some may be deleted; and where it may still have to be told that the one run ended.
        """
        settled = await self.settle(SOON if self.fault else PATIENCE)
        gone = [] if gone is None else gone
        if run is None:
            async for some in self._archive.delete_all(identity):
                gone += self._deleted(some)
            return gone
        gone += self._deleted(await self._archive.delete(identity, [run]))
        if not gone and not settled:
            raise JournalFault(UNWRITTEN, RETRY)
        return gone

    def _deleted(self, gone: list[Deleted]) -> list[Deleted]:
        """Take what was deleted, which may have to be told again too."""
        runs = [one.run for one in gone]
        if runs:
            self._keep(Write(sum(map(len, runs)), lambda _writer: self._asks.delete(runs)))
        return gone

    def _cut(self, connected: bool) -> None:
        """End the connection where the one that all share has ended: what Redis has lost is to be told at once."""
        if not connected and self._wire:
            self._wire.cut()
            self._wake()

    # the task

    async def serve(self) -> None:
        """Tell Redis what comes, until cancelled."""
        while True:
            while not self._redis.connected:
                self.fault = f"the journal can't be written: {self._redis.why}"
                with trio.move_on_after(PAUSE):
                    await self._redis.wait()
            try:
                async with self._redis.open_wire(self._redis.patience) as self._wire:
                    while True:
                        await self._greet(self._wire)
                        await self._tell(self._wire)
            except (RedisFault, ConfigError) as error:
                self._fail(error)
                self._count_tries(self._tries + 1, error.detail if isinstance(error, RedisFault) else str(error))
            await trio.sleep(PAUSE)

    async def _tell(self, wire: Wire) -> None:
        """Tell a Redis that was greeted what comes, until it refuses something, which it is told again a moment later.

        Raises `RedisGone`, and `ConfigError` where it will not do any more.
        """
        if not self._again and not self._waiting:
            self._thrive()
        try:
            while self._again:
                await self._pass_on(wire, self._again, len(self._again))
            while True:
                there = await self._come_by(wire)
                while there > 0:
                    there -= await self._pass_on(wire, self._waiting, there)
        except RedisGone:
            raise
        except RedisFault as error:
            self._fail(error)
        await trio.sleep(PAUSE)  # what was refused just now would be refused again

    def _fail(self, error: RedisFault | ConfigError) -> None:
        """Take that something was not written."""
        self.fault = f"the journal can't be written: {error}"
        self._faults += 1

    def _thrive(self) -> None:
        """Take that Redis has all that it was told."""
        self.fault = ""
        self._count_tries(0)

    def _count_tries(self, tries: int, why: str = "") -> None:
        """Take how many connections in a row came to nothing; tell why where that lasts, and where it is over."""
        was_barred, self._tries = self._tries >= BARRED, tries
        if was_barred or tries >= BARRED:
            self._on_barred(f"no connection for what runs say: {why}" if why else "")

    async def tidy(self) -> None:
        """Delete what is not to be kept any more, now and again, until cancelled; one server does it for all."""
        while True:
            with contextlib.suppress(JournalFault):  # the next look finds the same
                await self._archive.tidy(self._retention, TIDY / 2)
            await trio.sleep(TIDY)

    async def _greet(self, wire: Wire) -> None:
        """Tell a Redis the scripts, and what it may have lost if it is another than before. Raises `RedisFault`."""
        info, *loaded = await wire.ask_all([("INFO",), *(("SCRIPT", "LOAD", load(name).text) for name in SCRIPTS)])
        for answer in (info, *loaded):
            if isinstance(answer, RedisFault):
                raise answer
        incarnation = check(info)
        if self._incarnation and self._incarnation != incarnation:
            await wire.ask(*self._asks.strays())
            begun = [told.begun for told in self._asks.runs.values() if told.begun]
            lost = [
                *(Write(0, functools.partial(_begin, run)) for run in begun),
                *(write for _, write, _ in self._kept),
            ]
            self._again.extendleft(reversed(lost))
            self._kept.clear()
            self._kept_bytes = 0
        self._incarnation = incarnation

    async def _stay(self, wire: Wire) -> None:
        """Raise `RedisGone` where Redis is another since it was greeted: what it answers is no verdict then."""
        if check(await wire.ask("INFO")) != self._incarnation:
            raise RedisGone("Redis was a replica for a moment")  # its address may lead to another now

    async def _come_by(self, wire: Wire) -> int:
        """Wait for something to tell; return how much of it is to be told by now: in a burst no more than must be.

        Raises `RedisGone`.
        """
        while not self._waiting:
            self._idle, self._come = True, trio.Event()
            with trio.move_on_after(KEEP) as scope:
                await self._come.wait()
            if scope.cancelled_caught or wire.lost.is_set():
                await self._stay(wire)
                self._forget(trio.current_time())
                self._thrive()
        self._idle, self._come = False, trio.Event()
        await self._gather(self._passed + GATHER, trio.current_time() + BURST_PATIENCE)
        return 1 if self._bytes > self.enough else len(self._waiting)

    async def _gather(self, until: float, latest: float) -> None:
        """Let what has come wait for more if something was told just now; in a burst longer, which is relayed first."""
        before = -BURST
        while not self._hurry and before + BURST <= self._bytes and trio.current_time() < latest:
            before = self._bytes
            with trio.move_on_at(until):
                await self._come.wait()
            until = trio.current_time() + BURST_GATHER

    async def _pass_on(self, wire: Wire, queue: deque[Write], most: int) -> int:
        """Tell the first of what is to be told, and take off what Redis takes, or never will; return how much.

        Raises `RedisFault`.
        """
        writes = self._first(queue, most)
        asks = [self._ask_for(write) for write in writes]
        answers = await wire.ask_all([ask.words for ask in asks if ask])
        if any(answer != b"ok" for answer in answers):
            await self._stay(wire)
        told = iter(answers)
        for write, ask in zip(writes, asks, strict=True):
            if ask:
                self._hear(ask, next(told))
                self._keep(write, ask.ends)
            queue.popleft()
            if queue is self._waiting:
                self._bytes -= write.size
            write.tell()
        self._thrive()
        self._passed = trio.current_time()
        return len(writes)

    def _ask_for(self, write: Write) -> Ask | None:
        """Return what Redis is asked to have something written, None where that can't be said, or need not be."""
        try:
            return self._asks.make(write)
        except Exception:  # what it is told can't be told on: trying again would not help
            self._given_up += 1
            return None

    def _first(self, queue: deque[Write], most: int) -> list[Write]:
        """Return what is told at a time."""
        writes, size = list[Write](), 0
        for write in itertools.islice(queue, most):
            if size > GROUP_BYTES:
                break
            write.taken = True
            writes.append(write)
            size += write.size
        self._hurry = False
        return writes

    def _hear(self, ask: Ask, answer: object) -> None:
        """Take what Redis answers. Raises `RedisFault` where it is to be asked again."""
        if isinstance(answer, RedisFault) and not isinstance(answer, RedisBroken):
            raise answer
        if ask.run is None:
            return
        if answer == b"lease":
            ask.run.token = 0
            raise RedisFault("this server has no lease just now")
        if answer != b"ok":
            self._given_up += 1
            ask.run.recorder.stored = False
            ask.run.cut = True
            ask.run.over = ask.run.over or (answer != b"hole" and not isinstance(answer, RedisBroken))

    def _keep(self, write: Write, ends: str = "") -> None:
        """Keep for a moment what Redis has taken; the run that it `ends` is known as long."""
        now = trio.current_time()
        self._kept.append((now, write, ends))
        self._kept_bytes += write.size
        self._forget(now)

    def _forget(self, now: float) -> None:
        """Forget what the disk of a Redis has by now that answers, and what is too much."""
        while self._kept and (self._kept[0][0] < now - KEEP or self._kept_bytes > KEEP_BYTES):
            _, write, ends = self._kept.popleft()
            self._kept_bytes -= write.size
            self._asks.runs.pop(ends, None)


@asynccontextmanager
async def open_history(
    redis: Redis,
    lease: Lease,
    retention: Retention,
    run_limit: int,
    observer: Observer,
    *,
    content: bool,
    on_barred: Callable[[str], None] = lambda _why: None,
) -> AsyncIterator[RedisJournal]:
    """Open the journal in a Redis; leaving the context tells it what waits, for at most `PATIENCE` seconds.

    `on_barred` hears why it gets no connection while Redis answers on the one that all share, for logs, and is told
    nothing (empty) when it has one again.
    """
    journal = RedisJournal(redis, lease, retention, run_limit, content=content, on_barred=on_barred)
    async with open_lasting(keep_going, "history", journal.serve, observer), open_services() as services:
        services.start_soon(keep_going, "tidy history", journal.tidy, observer)
        try:
            yield journal
        finally:
            with trio.CancelScope(shield=True):
                await journal.settle(PATIENCE)


def _begin(run: Begun, writer: Writer) -> None:
    writer.begin(run)
