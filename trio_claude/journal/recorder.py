"""A journal in SQLite: what has come is written by a thread of its own, and read by a connection of its own.

The thread writes what has come in a moment as one transaction (group commit), so a burst of runs costs one sync, and
what one run says in that moment one row.
"""

from __future__ import annotations

import contextlib
import math
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

import trio

from ..errors import JournalFault
from ..threads import do_apart
from .backlog import FEW_BYTES, PATIENCE, Backlog, Lines, Write, Writer
from .base import SOON, TAIL, UNWRITTEN, Journal
from .bulk import LEAST
from .facts import Deleted, Page, Part, Query, Retention, RunRow, Text, Usage, UsageQuery
from .opening import BUSY_MS
from .store import Reader, Store
from .unfinished import Unfinished, find_unfinished

GATHER: Final = 0.01
"""Seconds for which what has come waits for more, to be written with it; not where somebody waits for it."""
LINGER: Final = 0.1
"""Seconds for which lines alone wait for more while they are few: at the pace of a model that spares most writes."""
CROWD: Final = 8
"""Writes that are a crowd's: each of its runs has more to say before long, for which a write is no dearer."""
CROWD_PATIENCE: Final = GATHER * 5
"""Seconds for which what has come waits in a crowd, at most."""
BURST: Final = 1024 * 1024
"""Bytes in such a time that are a burst, which no run says at the pace of a model."""
BURST_STEP: Final = GATHER * 2
"""Seconds between two looks at a burst: what came between them is in a cache still, and a look holds up the relay."""
LARGEST: Final = 2 * 1024 * 1024
"""Bytes that a part has at most, if more than one read is in it: few and large ones hold up the relay least."""
BURST_PATIENCE: Final = 0.25
"""Seconds for which what has come waits for the end of a burst, at most."""
TRANSACTION_BYTES: Final = 8 * 1024 * 1024
"""Bytes behind which a transaction takes no more."""
AT_ONCE: Final = 500
"""Runs that one transaction deletes by request, so that what waits behind it never waits for long."""
RETRY: Final = 1.0
"""Seconds until a write that failed is tried again."""
AGAIN: Final = 0.1
"""The same while the journal closes."""
TIDY: Final = 60.0
"""Seconds between two looks for what is not to be kept any more."""
REST: Final = 1.0
"""Seconds without anything to write after which what was written is put in order: what takes syncs waits until then."""
UNSYNCED: Final = 10.0
"""Seconds after which it waits no longer: what a power cut may cost."""

T = TypeVar("T")


class SqliteJournal(Backlog, Journal):
    """The journal of one server, in a file.

    Resource handling: lives in the context that `open_journal` gives, which owns the file and the thread. Error
    handling: a store that fails is tried again.
    """

    largest = LARGEST

    def __init__(
        self, store: Store, retention: Retention, run_limit: int, *, content: bool, tell: Callable[[bool], None]
    ) -> None:
        super().__init__(run_limit, content=content)
        self.fault: str = ""
        self._tell = tell
        self._store = store
        self._retention = retention
        self._closing = False
        self._until = math.inf
        self._thread = threading.Thread(target=self._write, name="journal", daemon=True)
        self._thread.start()

    def _wake(self) -> None:
        self._stir.notify()

    async def find(self, query: Query) -> Page:
        """Return runs, newest first, without their prompts and options."""
        return await self._read(lambda reader: reader.find(query))

    async def _look_up(self, identity: str | None, run: str) -> RunRow | None:
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
            if not run or run.stored < run.lines:  # what is missing may be the turn's end
                return None
            return find_unfinished(run.id, run.prompt, reader.tail(run.id, TAIL))

        await self.settle(SOON)
        return await self._read(look)

    async def usage(self, query: UsageQuery) -> Usage:
        """Return what was used, in sums, the newest day first."""
        return await self._read(lambda reader: reader.usage(query))

    async def delete(
        self, identity: str | None, run: str | None = None, gone: list[Deleted] | None = None
    ) -> list[Deleted]:
        """Delete one ended run, or all of an identity; return what was deleted, which `gone` takes as it goes.

        Raises `JournalFault` where that is not durable in time: it is not done later, unless it was just being written.
        Of many runs some may be deleted by then, those in `gone`.
        """
        gone = [] if gone is None else gone
        while some := await self._delete_some(identity, run):
            gone += some
            if len(some) < AT_ONCE:
                break
        return gone

    async def _delete_some(self, identity: str | None, run: str | None) -> list[Deleted]:
        """Delete some in one transaction; return them."""
        gone: list[Deleted] = []
        asked = True

        def write(_writer: Writer) -> None:
            gone[:] = self._store.delete(identity, run, AT_ONCE) if asked else ()

        try:
            durable = await self._written(write)
        finally:
            asked = False
        if not durable:
            raise JournalFault(UNWRITTEN, RETRY)
        return gone

    async def _read(self, look: Callable[[Reader], T]) -> T:
        def read() -> T:
            try:
                with Reader(self._store.path) as reader:
                    return look(reader)
            except (sqlite3.Error, ValueError) as error:  # a damaged file may hold values that are no JSON
                raise JournalFault(f"the journal can't be read: {error}", RETRY) from error

        return await do_apart(read)

    def close(self) -> None:
        """Write what waits, for at most `PATIENCE` seconds, and close. Blocks."""
        with self._stir:
            self._until = time.monotonic() + PATIENCE
            self._closing = True
            self._stir.notify()
        self._thread.join(PATIENCE)
        if not self._thread.is_alive():
            self._store.close()

    # the thread

    def _write(self) -> None:
        tidied = time.monotonic()
        unsynced, behind = math.inf, False
        while True:
            writes = self._take(0 if behind else TIDY if unsynced == math.inf else REST)
            if writes and not self._commit(writes):
                if not self._may_retry():
                    return
                continue
            if not writes and self._closing:
                return
            unsynced = min(unsynced, time.monotonic()) if writes else unsynced
            if unsynced != math.inf and (not writes or time.monotonic() > unsynced + UNSYNCED):
                self._settle_down()
                unsynced = math.inf
            if behind or time.monotonic() > tidied + TIDY:
                behind, tidied = self._tidy(), time.monotonic()

    def _may_retry(self) -> bool:
        """Wait until what failed is to be tried again; return whether there is time for that, where it closes."""
        with self._stir:
            if self._stir.wait_for(lambda: self._closing, RETRY):
                self._stir.wait(AGAIN)
        return time.monotonic() + BUSY_MS / 1000 < self._until

    def _take(self, patience: float) -> list[Write]:
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
        """Let what has come wait a moment for more, longer where many runs say something.

        In a burst longer still, of which lines are put aside meanwhile.
        """
        self._linger()
        before, patience, rest = self._came, GATHER, time.monotonic() + CROWD_PATIENCE
        while not self._stir.wait_for(lambda: self._hurry or self._closing, patience):
            self._relieve()
            came, before = self._came - before, self._came
            burst = came >= BURST * patience / GATHER
            if not burst and len(self._waiting) < CROWD:
                return
            if time.monotonic() > (until if burst else rest):
                return
            patience = BURST_STEP if burst else GATHER

    def _linger(self) -> None:
        """Let lines wait for more, until something else comes, or much."""
        self._lingers = self._bytes <= FEW_BYTES and all(write.lines for write in self._waiting)
        self._stir.wait_for(lambda: not self._lingers or self._hurry or self._closing, LINGER)
        self._lingers = False

    def _relieve(self) -> None:
        """Put what waits of large parts aside, without the lock, so that its memory is used again while it is hot.

        In the order in which it came: what follows on something of its run stands behind it in the file.
        """
        moved = [
            (write.lines, write.lines.take()) for write in self._waiting if write.lines and write.lines.size >= LEAST
        ]
        self._stir.release()
        try:
            while moved:
                self._put_aside(*moved[0])
                moved.pop(0)
        except OSError as error:  # it is tried again with the transaction
            self._fail(error)
        finally:
            self._stir.acquire()
            for lines, texts in moved:
                lines.texts[:0] = texts
            for write in self._waiting:
                self._recount(write)

    def _put_aside(self, lines: Lines, texts: list[Text]) -> None:
        """Write texts of a large part to their file. Raises OSError."""
        if not texts:
            return
        behind = lines.place + lines.aside if lines.aside else None
        place = self._store.put_aside(lines.run, texts, behind=behind)
        lines.place = lines.place if lines.aside else place
        lines.aside += sum(map(len, texts))

    def _put_rest_aside(self, write: Write) -> None:
        """Write what is left of a large part to its file, and have the transaction name it. Raises OSError."""
        lines = write.lines
        if lines is None or lines.size < LEAST:
            return
        self._put_aside(lines, lines.texts)
        lines.texts = []
        with self._stir:
            self._recount(write)
        write.do = lambda _: self._store.add_aside(
            lines.run, lines.number, lines.first, lines.count, lines.place, lines.aside
        )

    def _first(self) -> list[Write]:
        """Return what one transaction is to hold."""
        writes, size = list[Write](), 0
        for write in self._waiting:
            if size > TRANSACTION_BYTES:
                return writes
            write.taken = True
            writes.append(write)
            size += write.size
        self._hurry = False
        return writes

    def _commit(self, writes: list[Write]) -> bool:
        """Write all in one transaction; return whether that went well, or is never going to.

        What no store takes, whatever the disk does, is given up: else it would hold up all that comes behind it.
        """
        try:
            for write in writes:
                self._put_rest_aside(write)
            with self._store.transaction():
                for write in writes:
                    write.do(self._store)
        except (sqlite3.OperationalError, OSError) as error:
            self._fail(error)
            return False
        except Exception as error:  # not the disk: trying again would not help
            self._fail(error)
            if len(writes) > 1:
                return all(self._commit([write]) for write in writes)
            self._given_up += 1
            writes[0].hearers.clear()  # what is given up is never durable
        else:
            self._note("")
        with self._stir:
            for _ in writes:
                self._bytes -= self._waiting.popleft().size
        for write in writes:
            write.tell()
        return True

    def _settle_down(self) -> None:
        try:
            self._store.checkpoint()
        except (sqlite3.Error, OSError) as error:
            self._fail(error)

    def _tidy(self) -> bool:
        """Delete some of what is not to be kept any more; return whether there is more of it."""
        try:
            self._store.disown()
            with self._store.transaction():
                gone = self._store.retain(self._retention, time.time())
            self._note("")
        except (sqlite3.Error, OSError) as error:
            self._fail(error)
            return False
        return gone > 0

    def _fail(self, error: Exception) -> None:
        """Note why something can't be written; no path, which an OSError would name."""
        said = str(error) if isinstance(error, sqlite3.Error) else repr(error)
        why = getattr(error, "strerror", None) or said
        self._note(f"the journal can't be written: {why}")
        self._faults += 1

    def _note(self, fault: str) -> None:
        """Note a fault, or that there is none any more, and tell when that changes."""
        before, self.fault = self.fault, fault
        if bool(before) != bool(fault):
            self._tell(bool(fault))


@asynccontextmanager
async def open_journal(
    path: Path,
    server: str,
    retention: Retention,
    run_limit: int,
    *,
    content: bool,
    tell: Callable[[bool], None] = lambda _fails: None,
) -> AsyncIterator[SqliteJournal]:
    """Open the journal in a file; leaving the context writes what waits. Raises `ConfigError`.

    `tell` hears in this loop that it can't be written, and that it can be again.
    """
    token = trio.lowlevel.current_trio_token()

    def pass_on(fails: bool) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(tell, fails)

    store = await trio.to_thread.run_sync(Store, path, server)  # which looks through the file
    journal = SqliteJournal(store, retention, run_limit, content=content, tell=pass_on)
    try:
        yield journal
    finally:
        with trio.CancelScope(shield=True):
            await do_apart(journal.close)
