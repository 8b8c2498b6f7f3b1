"""The way of a run's history to the store: numbered, never waiting, given up where it can't be kept.

A thread of its own writes what has come in a moment as one transaction (group commit), so a burst of runs costs one
sync, and what one run says in that moment one row. What waits for it is bounded; where that is full a run's history
ends there, and whoever asks is told.
"""

from __future__ import annotations

import contextlib
import math
import sqlite3
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

import attrs
import trio

from ..errors import JournalFault
from .bulk import Text
from .facts import Begun, Deleted, End, Page, Part, PartKind, Query, Retention, RunRow, Statistics, Usage, UsageQuery
from .store import Reader, Store
from .unfinished import Unfinished, find_unfinished

QUEUE_BYTES: Final = 64 * 1024 * 1024
"""Bytes of history that wait for the disk; over it a run's history ends."""
FACTS_BYTES: Final = 8 * 1024 * 1024
"""Bytes beyond that for how runs begin and end, which nobody gives up lightly."""
FACT_BYTES: Final = 1024
"""What a begin or an end is reckoned as, beside its prompt."""
GATHER: Final = 0.01
"""Seconds for which what has come waits for more, to be written with it; not where somebody waits for it."""
GATHER_BYTES: Final = QUEUE_BYTES // 2
"""Bytes that wait for no more."""
BURST: Final = 1024 * 1024
"""Bytes in such a time that are a burst, which no run says at the pace of a model."""
BURST_PATIENCE: Final = 0.25
"""Seconds for which what has come waits for the end of a burst, at most."""
TRANSACTION_BYTES: Final = 8 * 1024 * 1024
"""Bytes behind which a transaction takes no more."""
PART_BYTES: Final = 512 * 1024
"""Bytes up to which lines that follow on each other become one part, if they wait together."""
RETRY: Final = 1.0
"""Seconds until a write that failed is tried again."""
TIDY: Final = 60.0
"""Seconds between two looks for what is not to be kept any more."""
REST: Final = 1.0
"""Seconds without anything to write after which what was written is put in order: what takes syncs waits until then."""
UNSYNCED: Final = 10.0
"""Seconds after which it waits no longer: what a power cut may cost."""
PATIENCE: Final = 5.0
"""Seconds for which the end of the journal waits for what is still to be written."""
TAIL: Final = 4 * 1024 * 1024
"""Bytes of a run's history in which the turn is looked for at which it was cut off."""
SOON: Final = 1.0
"""Seconds for which that waits for what is still to be written."""

T = TypeVar("T")


@attrs.define
class _Write:
    """Something that waits to be written: how large it is, what does it, and who hears that it is durable.

    Once it is `taken` by the thread it does not change any more.
    """

    size: int
    do: Callable[[Store], object]
    tell: Callable[[], None] | None = None
    taken: bool = False
    since: float = attrs.Factory(time.monotonic)


@attrs.define
class _Lines:
    """Lines of a run that wait to be one part of its history, and those that follow on them while they wait."""

    run: str
    number: int
    first: int
    count: int = 0
    texts: list[Text] = attrs.Factory(list)

    def add(self, count: int, texts: list[Text]) -> None:
        """Take what follows."""
        self.count += count
        self.texts += texts

    def write(self, store: Store) -> None:
        """Write them."""
        store.add_lines(self.run, self.number, self.first, self.count, self.texts)


class Recorder:
    """One run's way into the journal. Nothing here waits or raises."""

    def __init__(self, journal: Journal, run: str, limit: int, *, content: bool) -> None:
        self.stored: bool = True
        """Whether all of it so far is kept, or on its way."""
        self._journal = journal
        self._run = run
        self._left = limit
        self._content = content
        self._numbers = 0
        self._lines = 0
        self._latest: tuple[_Write, _Lines] | None = None

    def lines(self, lines: list[bytes], texts: list[Text] | None = None) -> None:
        """Take lines of the CLI, which get the next numbers; `texts` is the same in fewer pieces."""
        if not lines:
            return
        first, count = self._lines + 1, len(lines)
        self._lines += count
        texts = texts or [b"\n".join(lines)]
        size = sum(map(len, texts)) + len(texts) - 1
        if not self._fits(size) or self._enlarge(count, texts, size):
            return
        waiting = _Lines(self._run, self._number(), first)
        waiting.add(count, texts)
        write = _Write(size, waiting.write)
        self._latest = write, waiting
        self.stored = self._journal.take(write)

    def _enlarge(self, count: int, texts: list[Text], size: int) -> bool:
        """Put lines to those that wait still, if they do; return whether they did."""
        if self._latest is None:
            return False
        write, waiting = self._latest
        return self._journal.enlarge(write, size, lambda: waiting.add(count, texts))

    def stderr(self, lines: list[str]) -> None:
        """Take lines of stderr, behind the CLI's lines so far."""
        self._add(PartKind.STDERR, [line.encode("utf-8", "replace") for line in lines])

    def said(self, line: bytes) -> None:
        """Take what the client said, behind the CLI's lines so far."""
        self._add(PartKind.SAID, [line.rstrip(b"\n")])

    def end(self, end: End) -> None:
        """Take how the run ended."""
        whole = self.stored and self._content
        self._journal.put(FACT_BYTES, lambda store: store.end(attrs.evolve(end, whole=whole)), room=FACTS_BYTES)

    def _add(self, kind: PartKind, lines: list[bytes]) -> None:
        """Take lines that come behind the CLI's so far, which are a part of their own then."""
        text = b"\n".join(lines)
        if not lines or not self._fits(len(text)):
            return
        self._latest = None
        run, number, part = self._run, self._number(), Part(kind, self._lines, len(lines), text)
        self.stored = self._journal.put(len(text), lambda store: store.add(run, number, part))

    def _fits(self, size: int) -> bool:
        """Return whether so much more of the run is kept; from where it is not on, nothing is."""
        if not self.stored or not self._content:
            return False
        self._left -= size
        self.stored = self._left >= 0
        return self.stored

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers


class Journal:
    """The journal of one server.

    Resource handling: lives in the context that `open_journal` gives, which owns the file and the thread. Error
    handling: a store that fails is tried again; `fault` says why it does, and nobody else hears of it.
    """

    def __init__(self, store: Store, retention: Retention, run_limit: int, *, content: bool) -> None:
        self.fault: str = ""
        self._store = store
        self._retention = retention
        self._run_limit = run_limit
        self._content = content
        self._waiting: deque[_Write] = deque()
        self._bytes = 0
        self._faults = 0
        self._given_up = 0
        self._stir = threading.Condition()
        self._closing = False
        self._idle = True
        self._hurry = False
        self._thread = threading.Thread(target=self._write, name="journal", daemon=True)
        self._thread.start()

    def begin(self, run: Begun) -> Recorder:
        """Take a run that begins; return its recorder."""
        facts = run if self._content else attrs.evolve(run, prompt=None, options={})
        size = FACT_BYTES + len(facts.prompt or "") + len(str(facts.options))
        recorder = Recorder(self, run.id, self._run_limit, content=self._content)
        recorder.stored = self.put(size, lambda store: store.begin(facts), room=FACTS_BYTES)
        return recorder

    def put(
        self, size: int, write: Callable[[Store], object], *, room: int = 0, tell: Callable[[], None] | None = None
    ) -> bool:
        """Have something written, and `tell` when it is durable; return whether there is room, with `room` beyond."""
        return self.take(_Write(size, write, tell), room)

    def take(self, write: _Write, room: int = 0) -> bool:
        """Have something written; return whether there is room, with `room` beyond."""
        with self._stir:
            if self._bytes + write.size > QUEUE_BYTES + room:
                self._given_up += 1
                return False
            self._waiting.append(write)
            self._count(write.size, hurry=write.tell is not None)
        return True

    def enlarge(self, write: _Write, size: int, add: Callable[[], None]) -> bool:
        """Have something that waits `add` so much; return whether it still could, and there is room."""
        with self._stir:
            if write.taken or write.size + size > PART_BYTES or self._bytes + size > QUEUE_BYTES:
                return False
            add()
            write.size += size
            self._count(size)
        return True

    def _count(self, size: int, *, hurry: bool = False) -> None:
        """Count what has come, and wake the thread where it must know."""
        self._bytes += size
        hurry = not self._hurry and (hurry or self._bytes > GATHER_BYTES)
        self._hurry = self._hurry or hurry
        if self._idle or hurry:
            self._idle = False
            self._stir.notify()

    @property
    def waiting(self) -> int:
        """Bytes that are not durable yet."""
        return self._bytes

    def statistics(self) -> Statistics:
        """Return how the journal does."""
        with self._stir:
            lag = time.monotonic() - self._waiting[0].since if self._waiting else 0.0
            return Statistics(self._bytes, lag, self._faults, self._given_up)

    async def settle(self, patience: float = PATIENCE) -> bool:
        """Wait until all that was put in before is durable; return whether it is, in so many seconds."""
        return await self._written(lambda _store: None, patience)

    async def _written(self, write: Callable[[Store], object], patience: float = PATIENCE) -> bool:
        """Have something written, and wait for it; return whether it is durable, in so many seconds."""
        done, token = trio.Event(), trio.lowlevel.current_trio_token()

        def tell() -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(done.set)

        if not self.put(FACT_BYTES, write, room=FACTS_BYTES, tell=tell):
            return False
        with trio.move_on_after(patience):
            await done.wait()
        return done.is_set()

    async def find(self, query: Query) -> Page:
        """Return runs, newest first."""
        return await self._read(lambda reader: reader.find(query))

    async def get(self, identity: str | None, run: str) -> RunRow | None:
        """Return one run, if it is that identity's (None: anybody's)."""
        return await self._read(lambda reader: reader.get(identity, run))

    async def parts(self, run: str, after: int = 0, beyond: int = 0) -> list[Part]:
        """Return a page of a run's history behind line `after` and part `beyond`, empty at its end.

        What stderr and the client said right behind line `after` is in it.
        """
        return await self._read(lambda reader: reader.parts(run, after, beyond))

    async def unfinished(self, identity: str, session: str) -> Unfinished | None:
        """Return the turn at which the last run of a session was cut off, None where it was not."""

        def look(reader: Reader) -> Unfinished | None:
            run = reader.latest(identity, session)
            return find_unfinished(run.id, run.prompt, reader.tail(run.id, TAIL)) if run and run.stored else None

        await self.settle(SOON)
        return await self._read(look)

    async def usage(self, query: UsageQuery) -> Usage:
        """Return what was used, in sums, the newest day first."""
        return await self._read(lambda reader: reader.usage(query))

    async def delete(self, identity: str | None, run: str | None = None) -> list[Deleted]:
        """Delete one ended run, or all of an identity; return what was deleted.

        Raises `JournalFault` where that is not durable in time; it may be done later.
        """
        gone: list[Deleted] = []

        def write(store: Store) -> None:
            gone[:] = store.delete(identity, run)

        if not await self._written(write):
            raise JournalFault(self.fault or "the journal can't be written just now", RETRY)
        return gone

    async def _read(self, look: Callable[[Reader], T]) -> T:
        def read() -> T:
            try:
                with Reader(self._store.path) as reader:
                    return look(reader)
            except sqlite3.Error as error:
                raise JournalFault(f"the journal can't be read: {error}", RETRY) from error

        return await trio.to_thread.run_sync(read)

    def close(self) -> None:
        """Write what waits, for at most `PATIENCE` seconds, and close. Blocks."""
        with self._stir:
            self._closing = True
            self._stir.notify()
        self._thread.join(PATIENCE)
        if not self._thread.is_alive():
            self._store.close()

    # the thread

    def _write(self) -> None:
        tidied = time.monotonic()
        unsynced = math.inf
        while True:
            writes = self._take(TIDY if unsynced == math.inf else REST)
            if writes and not self._commit(writes):
                if self._closing:
                    return
                with self._stir:
                    self._stir.wait_for(lambda: self._closing, RETRY)
                continue
            if not writes and self._closing:
                return
            unsynced = min(unsynced, time.monotonic()) if writes else unsynced
            if unsynced != math.inf and (not writes or time.monotonic() > unsynced + UNSYNCED):
                self._settle_down()
                unsynced = math.inf
            if time.monotonic() > tidied + TIDY:
                tidied = time.monotonic()
                self._tidy()

    def _take(self, patience: float) -> list[_Write]:
        """Wait for something to write, for so long; return the first of what is there, which stays until written."""
        with self._stir:
            self._idle = not self._waiting
            if self._idle and not self._closing:
                self._stir.wait(patience)
            self._idle = False
            if self._waiting:
                self._gather(time.monotonic() + BURST_PATIENCE)
            return self._first()

    def _gather(self, until: float) -> None:
        """Let what has come wait a moment for more; in a burst longer, which is relayed first and written then."""
        before = -BURST
        while before + BURST <= self._bytes and time.monotonic() < until:
            before = self._bytes
            if self._stir.wait_for(lambda: self._hurry or self._closing, GATHER):
                return

    def _first(self) -> list[_Write]:
        """Return what one transaction is to hold."""
        writes, size = list[_Write](), 0
        for write in self._waiting:
            if size > TRANSACTION_BYTES:
                return writes
            write.taken = True
            writes.append(write)
            size += write.size
        self._hurry = False
        return writes

    def _commit(self, writes: list[_Write]) -> bool:
        """Write all in one transaction; return whether that went well, or is never going to.

        What no store takes, whatever the disk does, is given up: else it would hold up all that comes behind it.
        """
        try:
            with self._store.transaction():
                for write in writes:
                    write.do(self._store)
        except (sqlite3.OperationalError, OSError) as error:
            self._fail(str(error))
            return False
        except Exception as error:  # not the disk: trying again would not help
            self._fail(repr(error))
            if len(writes) > 1:
                return all(self._commit([write]) for write in writes)
            self._given_up += 1
            writes[0].tell = None  # what is given up is never durable
        else:
            self.fault = ""
        with self._stir:
            for _ in writes:
                self._bytes -= self._waiting.popleft().size
        for write in writes:
            if write.tell:
                write.tell()
        return True

    def _settle_down(self) -> None:
        try:
            self._store.checkpoint()
        except (sqlite3.Error, OSError) as error:
            self._fail(str(error))

    def _tidy(self) -> None:
        try:
            self._store.disown()
            with self._store.transaction():
                self._store.retain(self._retention, time.time())
            self.fault = ""
        except (sqlite3.Error, OSError) as error:
            self._fail(str(error))

    def _fail(self, why: str) -> None:
        self.fault = f"the journal can't be written: {why}"
        self._faults += 1


@asynccontextmanager
async def open_journal(
    path: Path, server: str, retention: Retention, run_limit: int, *, content: bool
) -> AsyncIterator[Journal]:
    """Open the journal in a file; leaving the context writes what waits. Raises `ConfigError`."""
    journal = Journal(Store(path, server), retention, run_limit, content=content)
    try:
        yield journal
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(journal.close)
