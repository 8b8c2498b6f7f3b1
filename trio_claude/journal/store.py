"""One SQLite file, which several servers may share. Blocking; nothing of Trio.

Each server holds a lock beside the file for as long as it lives, by which the others know whose runs are lost.

Durable is what was committed: it outlives the server's death, SIGKILL too (write-ahead log, `synchronous=NORMAL`). A
power cut may cost what was committed since the last `checkpoint`, and damages nothing.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs

from ..errors import ConfigError, Reason
from . import bulk, expired, usage
from .bulk import Bulk, folder_of
from .facts import (
    ENDED,
    LIVE,
    Begun,
    Deleted,
    End,
    Page,
    Part,
    PartKind,
    Query,
    Retention,
    RunRow,
    Text,
    Usage,
    UsageQuery,
)
from .opening import BUSY_MS, clean_locks, locked, open_database, opening, true_path

PAGE_BYTES: Final = 4 * 1024 * 1024
"""Bytes of history that are read at a time."""
BEGIN: Final = """
    INSERT OR IGNORE INTO runs
    (id, identity, meta, door, batch, session, server, state, started, prompt, options, model, bytes)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
GROW: Final = """
    UPDATE runs SET stored = CASE :kind WHEN 0 THEN :last ELSE stored END, bytes = bytes + :size
    WHERE id = :run AND server = :server AND state = 'live'
        AND stored = CASE :kind WHEN 0 THEN :first - 1 ELSE :first END
"""
"""Only what follows on what is stored makes a history longer: there are no holes."""
COLUMNS: Final[tuple[str, ...]] = tuple(field.name for field in attrs.fields(RunRow))
RUN: Final[str] = ", ".join(COLUMNS)
LISTED: Final[str] = ", ".join(
    {"prompt": "NULL AS prompt", "options": "'{}' AS options"}.get(one, one) for one in COLUMNS
)
"""A run, and one of many, of which nothing is read that may be long."""
PARTS: Final = """
    SELECT kind, first, count, data, number, place, size FROM parts
    WHERE run = ? AND number > ? AND CASE kind WHEN 0 THEN first + count - 1 > ? ELSE first >= ? END ORDER BY number
"""
FINISH: Final = """
    UPDATE runs
    SET state = ?, ended = ?, reason = ?, exit_status = ?, signal = ?, lines = ?, encoding_errors = ?, tokens = ?,
        dollars = ?, error = ?, receipt = ?, session = COALESCE(session, ?), whole = ? AND stored = ?
    WHERE id = ? AND server = ? AND state = 'live'
"""
SPEND: Final = "UPDATE runs SET tokens = ?, dollars = ? WHERE id = ? AND server = ? AND state = 'live'"
SAID: Final = "(lines OR prompt IS NOT NULL OR EXISTS (SELECT 1 FROM parts WHERE run = runs.id AND kind <> 1))"
"""Whether there are words in a run, but for those on stderr."""
BEFORE: Final = "(started, id) < (SELECT started, id FROM runs WHERE id = ?)"
OWN_BEFORE: Final = (
    "(started, id) < (SELECT started, id FROM runs AS listed WHERE listed.id = ? AND listed.identity = runs.identity)"
)
LOST: Final = "the server ended before the run did"
LOSE: Final = """
    UPDATE runs SET state = ?, reason = 'node-lost', ended = ?, lines = stored, whole = 0, error = ?
    WHERE state = 'live' AND server = ? RETURNING id
"""


class Store:
    """The file, in the hands of one thread at a time.

    Raises `ConfigError` where it can't be used: no file for a journal, damaged, or of a later version.
    """

    def __init__(self, path: Path, server: str) -> None:
        path = true_path(path)
        self._server = server
        self.path: Path = path
        self._bulk = Bulk(folder_of(path))
        self._gone: list[str] = []
        with contextlib.ExitStack() as held:
            held.callback(self._bulk.close)
            held.enter_context(locked(path, server))
            with opening(path):
                self._db = open_database(path, held)
                self._opened = path.stat()
            self.lost: int = 0
            with contextlib.suppress(sqlite3.OperationalError):  # another writes just now; a later look does it
                self.lost = self.disown()
            clean_locks(path)
            bulk.clean(self._db, folder_of(path))
            self._held = held.pop_all()

    def close(self) -> None:
        """Close the file and give the lock back."""
        with contextlib.suppress(sqlite3.Error):
            self._held.close()

    # writing

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Write all of what is done inside, or nothing. Raises sqlite3.Error and OSError.

        A file that has lost its name since it was opened is not written to: nobody would find what is in it.
        """
        if not os.path.samestat(self.path.stat(), self._opened):
            raise OSError(errno.ESTALE, "another file stands in its place")
        self._db.execute("BEGIN IMMEDIATE")
        self._gone = []
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:  # whatever it was, a commit that failed too; raised again
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise
        self._bulk.forget(self._gone)

    def checkpoint(self) -> None:
        """Put what was written into the file proper, and have the disk hold it. Raises sqlite3.Error and OSError."""
        self._bulk.sync()
        self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def begin(self, run: Begun) -> None:
        """Write a run that has begun."""
        options = json.dumps(run.options)
        size = len((run.prompt or "").encode()) + len(options)
        self._db.execute(
            BEGIN,
            (
                run.id, run.identity, run.meta, run.door, run.batch, run.session, self._server, LIVE, run.started,
                run.prompt, options, run.model, size,
            ),
        )  # fmt: skip

    def add(self, run: str, number: int, part: Part) -> None:
        """Write a part of a run's history, behind what there is; only the server that began the run can."""
        if self._grow(run, part, len(part.data)):
            self._put(run, number, part)

    def add_lines(self, run: str, number: int, first: int, count: int, texts: list[Text]) -> None:
        """Write lines of a run as `add` does: `count` of them, each with its newline."""
        self.add(run, number, Part.of_lines(first, count, texts))

    def put_aside(self, run: str, texts: list[Text], *, behind: int | None) -> int:
        """Write texts of a large part, `behind` others of it if any, named by no table yet. Raises OSError."""
        return self._bulk.write(run, texts, behind=behind)

    def add_aside(self, run: str, number: int, first: int, count: int, place: int, size: int) -> None:
        """Write what `add_lines` does of lines that were put aside: `size` bytes at `place`, a newline at the end."""
        part = Part(PartKind.LINES, first, count, b"")
        if self._grow(run, part, size - 1):
            self._put(run, number, part, place, size - 1)

    def _grow(self, run: str, part: Part, size: int) -> bool:
        """Make a run's history longer by a part; return whether it may be."""
        known = {"kind": int(part.kind), "first": part.first, "last": part.last, "size": size}
        return bool(self._db.execute(GROW, {**known, "run": run, "server": self._server}).rowcount)

    def _put(self, run: str, number: int, part: Part, place: int | None = None, size: int | None = None) -> None:
        row = (run, number, int(part.kind), part.first, part.count, part.data, place, size)
        self._db.execute("INSERT INTO parts VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)

    def spend(self, run: str, tokens: int, dollars: float) -> None:
        """Write what a live run has used so far."""
        self._db.execute(SPEND, (min(tokens, usage.RUN_TOKENS), dollars, run, self._server))

    def end(self, end: End) -> None:
        """Write how a run ended, once, and what it used."""
        self._bulk.end(end.id)
        ended = self._db.execute(
            FINISH,
            (
                ENDED, end.ended, end.reason, end.exit_status, end.signal, end.lines, end.encoding_errors,
                min(end.tokens, usage.RUN_TOKENS), end.dollars, end.error, json.dumps(end.receipt),
                end.session, end.whole, end.lines, end.id, self._server,
            ),
        )  # fmt: skip
        if ended.rowcount:
            usage.count(self._db, end.id, end.ended, end.reason, end.turns)

    def delete(self, identity: str | None, run: str | None, most: int = -1) -> list[Deleted]:
        """Delete one ended run, or `most` of an identity (None: of everybody); return what was deleted."""
        where, words = _where(Query(identity=identity, state=ENDED))
        if run is not None:
            where, words = f"{where} AND id = ?", [*words, run]
        sql = _select("id, identity, session", "runs", where, "LIMIT ?")
        gone = [Deleted(*row) for row in self._db.execute(sql, [*words, most])]
        self._drop([one.run for one in gone])
        return gone

    def retain(self, kept: Retention, now: float, most: int = 200) -> int:
        """Delete what is not to be kept any more, by each rule at most so many runs; return how many."""
        gone = 0
        for runs in expired.find(self._db, kept, now, most):
            self._drop(runs)
            gone += len(runs)
        return gone

    def _drop(self, runs: list[str]) -> None:
        self._gone += runs
        usage.drop(self._db, runs)

    def disown(self) -> int:
        """End the runs of servers that are dead; return how many. Raises sqlite3.Error."""
        lost = 0
        for (server,) in self._db.execute("SELECT DISTINCT server FROM runs WHERE state = 'live'").fetchall():
            if server == self._server:
                continue
            with contextlib.suppress(ConfigError), locked(self.path, server), self.transaction():
                now = time.time()
                gone = self._db.execute(LOSE, (ENDED, now, LOST, server)).fetchall()
                for (run,) in gone:
                    bulk.trim(folder_of(self.path), run)
                    usage.count(self._db, run, now, Reason.NODE_LOST, 0)
                lost += len(gone)
        return lost


# -- reading, by a connection of its own -------------------------------------------------------------------------------


class Reader:
    """A look at the file. Raises sqlite3.Error."""

    def __init__(self, path: Path, how: str = "mode=ro") -> None:
        self._path = true_path(path)
        self._db = sqlite3.connect(f"{self._path.as_uri()}?{how}", uri=True, timeout=BUSY_MS / 1000)
        self._db.row_factory = sqlite3.Row

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def find(self, query: Query) -> Page:
        """Return runs, newest first, without their prompts and options."""
        where, words = _where(query)
        sql = _select(LISTED, "runs", where, "ORDER BY started DESC, id DESC LIMIT ?")
        rows = [_row(row) for row in self._db.execute(sql, [*words, query.limit + 1])]
        more = len(rows) > query.limit
        return Page(rows[: query.limit], rows[query.limit - 1].id if more else None)

    def get(self, identity: str | None, run: str) -> RunRow | None:
        """Return one run, if it is that identity's (None: anybody's)."""
        where, words = _where(Query(identity=identity))
        row = self._db.execute(_select(RUN, "runs", f"{where} AND id = ?"), [*words, run]).fetchone()
        return _row(row) if row else None

    def parts(self, run: str, after: int, beyond: int) -> list[Part]:
        """Return a run's history behind line `after` and part `beyond`, up to `PAGE_BYTES` of it, whole parts."""
        found: list[Part] = []
        size = 0
        for row in self._db.execute(PARTS, (run, beyond, after, after)):
            found.append(self._part(run, row))
            size += len(found[-1].data)
            if size >= PAGE_BYTES:
                break
        return found

    def latest(self, identity: str, session: str) -> RunRow | None:
        """Return the last run of an identity that had a session of the CLI and words in it, and has ended."""
        condition = f"session = ? AND identity = ? AND state = 'ended' AND {SAID}"
        sql = _select(RUN, "runs", condition, "ORDER BY rowid DESC LIMIT 1")  # a clock may have been put back
        row = self._db.execute(sql, (session, identity)).fetchone()
        return _row(row) if row else None

    def tail(self, run: str, size: int) -> list[Part]:
        """Return the last parts of a run's history, some `size` bytes of them."""
        found: list[Part] = []
        columns = "kind, first, count, data, number, place, size"
        sql = _select(columns, "parts", "run = ?", "ORDER BY number DESC")
        for row in self._db.execute(sql, (run,)):
            found.append(self._part(run, row))
            size -= len(found[-1].data)
            if size <= 0:
                break
        return found[::-1]

    def _part(self, run: str, row: sqlite3.Row) -> Part:
        kind, first, count, data, number, place, size = row
        data = data if place is None else bulk.read(self._path, run, place, size)
        return Part(PartKind(kind), first, count, data, number)

    def usage(self, query: UsageQuery) -> Usage:
        """Return what was used, in sums."""
        return usage.read(self._db, query)


def _select(columns: str, table: str, condition: str, order: str = "") -> str:
    """Return a query out of this module's own words; what anybody else says is bound to its question marks."""
    return " ".join(("SELECT", columns, "FROM", table, "WHERE", condition, order))


def _where(query: Query) -> tuple[str, list[object]]:
    """Return the condition of a query, and its values."""
    given = {
        "identity = ?": query.identity, "meta = ?": query.meta, "batch = ?": query.batch, "state = ?": query.state,
        "started >= ?": query.since, "started < ?": query.until,
        BEFORE if query.identity is None else OWN_BEFORE: query.before,
    }  # fmt: skip
    used = {condition: value for condition, value in given.items() if value is not None}
    return " AND ".join(used) or "TRUE", list(used.values())


def _row(row: sqlite3.Row) -> RunRow:
    told = dict(zip(row.keys(), row, strict=True))
    receipt = json.loads(told["receipt"]) if told["receipt"] else None
    return RunRow(**{**told, "receipt": receipt, "options": json.loads(told["options"]), "whole": bool(told["whole"])})
