"""A look at a journal's file from beside its server, if there is one, and a deletion there. Blocking.

Rule 1: what is read or written here is a journal already, of this version; no journal is made, repaired or brought to
another version, and no server's lock is taken: SQLite's own keep writers apart, for which it may make `-wal` and `-shm`
beside the file. Rule 2: a run whose server is dead is told, found and deleted as what the next server will make of it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ..errors import ConfigError, Reason
from .bulk import folder_of, remove
from .facts import LIVE
from .opening import BUSY_MS, is_alive, true_path
from .schema import VERSIONS
from .store import LOST, Reader
from .usage import count, drop

AT_ONCE: Final = 100
"""Runs that one transaction deletes, so that a server which writes too never waits for long."""
ENDED_RUNS: Final = """
    SELECT id, stored.state FROM runs JOIN main.runs AS stored USING (id)
    WHERE runs.state = 'ended' AND (:run IS NULL OR id = :run) LIMIT :most
"""
"""Runs with the state that the file has, which is `live` where the server is dead."""
CHANGED: Final = {
    "state": "'ended'", "reason": "'node-lost'", "lines": "stored", "whole": "0", "error": f"'{LOST}'",
}  # fmt: skip
"""What the end of its server makes of a run."""
CASE: Final = "CASE WHEN state = 'live' AND NOT is_alive(server) THEN"
BEGINNING: Final = "SELECT id FROM runs WHERE id >= :prefix AND id < :prefix || 'g' ORDER BY id LIMIT :most"


class Visit(Reader):
    """A look at a file that must be a journal. Raises `ConfigError` where it is none, and sqlite3.Error."""

    def __init__(self, path: Path) -> None:
        _there(path)
        path = true_path(path)
        super().__init__(path, _how(path))
        try:
            _check_version(self._db, path)
            _tell_the_lost(self._db, path)
        except BaseException:  # whatever it was, the file is closed; raised again
            self._db.close()
            raise

    def __enter__(self) -> Visit:
        return self

    def beginning(self, prefix: str, most: int) -> list[str]:
        """Return the ids of runs that begin with some hex digits, at most so many."""
        return [row[0] for row in self._db.execute(BEGINNING, {"prefix": prefix, "most": most})]


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Let what a file that can't be read or written raises name the file. Raises `ConfigError`."""
    try:
        yield
    except (sqlite3.Error, ValueError) as error:  # a damaged file may hold values that are no JSON, or of no kind
        raise ConfigError(f"journal: {path} can't be used: {error}") from None


def delete_local(path: Path, run: str | None) -> int:
    """Delete a run that has ended, or all (None), in short transactions; return how many. Raises `ConfigError`."""
    _there(path)
    path = true_path(path)
    with named(path):
        where = f"{path.as_uri()}?mode=rw"  # which makes no file
        db = sqlite3.connect(where, uri=True, timeout=BUSY_MS / 1000, isolation_level=None)
        with contextlib.closing(db):
            _check_version(db, path)
            _tell_the_lost(db, path)
            return _drop_all(db, path, run)


def _drop_all(db: sqlite3.Connection, path: Path, run: str | None) -> int:
    deleted = 0
    while True:
        try:
            count = _drop_some(db, path, run)
        except sqlite3.Error as error:
            raise sqlite3.Error(f"{error}; deleted by then: {deleted}") from error
        deleted += count
        if count < AT_ONCE:
            return deleted


def _drop_some(db: sqlite3.Connection, path: Path, run: str | None) -> int:
    """Delete some runs in one transaction, all or none; return how many."""
    db.execute("BEGIN IMMEDIATE")
    try:
        gone = db.execute(ENDED_RUNS, {"run": run, "most": AT_ONCE}).fetchall()
        for lost in (one for one, state in gone if state == LIVE):
            count(db, lost, time.time(), Reason.NODE_LOST, 0)
        drop(db, (one for one, _ in gone))
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
    for one, _ in gone:
        remove(folder_of(path), one)
    return len(gone)


def _tell_the_lost(db: sqlite3.Connection, path: Path) -> None:
    """Let `runs` on a connection be a view, in which the live runs of dead servers are lost. Raises sqlite3.Error."""
    columns = [column[0] for column in db.execute("SELECT * FROM main.runs LIMIT 0").description]
    told = [f"{CASE} {CHANGED[one]} ELSE {one} END AS {one}" if one in CHANGED else one for one in columns]
    db.create_function("is_alive", 1, functools.cache(functools.partial(is_alive, path)))
    db.execute("PRAGMA temp_store = MEMORY")
    db.execute(" ".join(("CREATE TEMP VIEW runs AS SELECT", ", ".join(told), "FROM main.runs")))


def _how(path: Path) -> str:
    """Return how a file is read: where nothing can be made beside it, SQLite must be told that nobody writes to it."""
    log, shared = (path.with_name(f"{path.name}-{one}") for one in ("wal", "shm"))
    if os.access(path.parent, os.W_OK, effective_ids=True) or shared.exists() or (log.exists() and log.stat().st_size):
        return "mode=ro"
    return "mode=ro&immutable=1"


def _there(path: Path) -> None:
    try:
        there = path.is_file()
    except OSError as error:
        raise ConfigError(f"journal: {path} can't be read: {error.strerror}; --journal names another") from None
    if not there:
        raise ConfigError(f"there is no journal at {path}; --journal names another, --url asks a server")


def is_earlier(path: Path) -> bool:
    """Return whether a file is a journal of an earlier version of this program; it stays one."""
    with contextlib.suppress(ConfigError, sqlite3.Error, OSError):
        _there(path)
        with Reader(path, _how(path)) as reader:
            (version,) = reader._db.execute("PRAGMA user_version").fetchone()
            return 0 < int(version) < len(VERSIONS)
    return False


def _check_version(db: sqlite3.Connection, path: Path) -> None:
    """Raise `ConfigError` for what is no journal of this version."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if not version:
        raise ConfigError(f"journal: {path} is none; --journal names another")
    if version > len(VERSIONS):
        raise ConfigError(f"journal: {path} is of a later version of this program ({version})")
    if version < len(VERSIONS):
        hint = "the next start of `trio-claude serve` brings it to this one"
        raise ConfigError(f"journal: {path} is of an earlier version of this program ({version}); {hint}")
