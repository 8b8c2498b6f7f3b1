"""A look at a journal's file from beside its server, if there is one, and a deletion there. Blocking.

Rule: what is read or written here is a journal already, of this version; no file is made, repaired or brought to
another version, and no server's lock is taken: SQLite's own keep writers apart.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs

from ..errors import ConfigError
from .facts import ENDED, LIVE, RunRow
from .schema import VERSIONS
from .store import BUSY_MS, DROP, LOST, Reader, is_alive

AT_ONCE: Final = 100
"""Runs that one transaction deletes, so that a server which writes too never waits for long."""
ENDED_RUNS: Final = "SELECT id FROM runs WHERE state = 'ended' AND (?1 IS NULL OR id = ?1) LIMIT ?2"
BEGINNING: Final = "SELECT id FROM runs WHERE id >= ?1 AND id < ?1 || 'g' ORDER BY id LIMIT ?2"


class Visit(Reader):
    """A look at a file that must be a journal. Raises `ConfigError` where it is none, and sqlite3.Error."""

    def __init__(self, path: Path) -> None:
        _there(path)
        self._path = path
        super().__init__(path)
        try:
            _check_version(self._db, path)
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> Visit:
        return self

    def get(self, identity: str | None, run: str) -> RunRow | None:
        """Return one run; one whose server is dead as the next server will write it down."""
        row = super().get(identity, run)
        if row is None or row.state != LIVE:
            return row
        (server,) = self._db.execute("SELECT server FROM runs WHERE id = ?", (run,)).fetchone()
        if is_alive(self._path, server):
            return row
        return attrs.evolve(row, state=ENDED, reason="node-lost", lines=row.stored, error=LOST)

    def beginning(self, prefix: str, most: int) -> list[str]:
        """Return the ids of runs that begin with some hex digits, at most so many."""
        return [row[0] for row in self._db.execute(BEGINNING, (prefix, most))]


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
    with named(path):
        where = f"{path.absolute().as_uri()}?mode=rw"  # which makes no file
        db = sqlite3.connect(where, uri=True, timeout=BUSY_MS / 1000, isolation_level=None)
        with contextlib.closing(db):
            _check_version(db, path)
            deleted = count = _drop_some(db, run)
            while count == AT_ONCE:
                count = _drop_some(db, run)
                deleted += count
            return deleted


def _drop_some(db: sqlite3.Connection, run: str | None) -> int:
    """Delete some runs in one transaction, all or none; return how many."""
    db.execute("BEGIN IMMEDIATE")
    try:
        gone = db.execute(ENDED_RUNS, (run, AT_ONCE)).fetchall()
        for statement in DROP:
            db.executemany(statement, gone)
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
    return len(gone)


def _there(path: Path) -> None:
    try:
        there = path.is_file()
    except OSError as error:
        raise ConfigError(f"journal: {path} can't be read: {error.strerror}") from None
    if not there:
        raise ConfigError(f"there is no journal at {path}; --journal names another, --url asks a server")


def _check_version(db: sqlite3.Connection, path: Path) -> None:
    """Raise `ConfigError` for what is no journal of this version."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if not version:
        raise ConfigError(f"journal: {path} is none")
    if version != len(VERSIONS):
        age = "a later" if version > len(VERSIONS) else "an earlier"
        raise ConfigError(f"journal: {path} is of {age} version of this program ({version})")
