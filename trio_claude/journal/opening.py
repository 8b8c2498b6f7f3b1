"""Opening the file of a journal: the locks beside it, whether it is one and whole, and bringing it to this version.

This module must never change a file that is no journal, or of a later version, nor take a lock that somebody holds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ..errors import ConfigError
from .bulk import folder_of
from .schema import VERSIONS

BUSY_MS: Final = 2000
"""Milliseconds for which a write waits for another program that has the file locked."""
BLOCK_BYTES: Final = 16 * 1024
"""Bytes of a block of a new file: a large part of a history costs half as much as in the usual ones of 4 KiB."""
LOG_BYTES: Final = 64 * 1024 * 1024
"""Bytes of the write-ahead log upon which it is put into the file at the latest, with syncs that writes wait for."""
OPENING: Final = 60.0
"""Seconds for which one waits that another program looks through the file."""
OPENING_POLL: Final = 0.02
"""Seconds between two looks at whether it does."""
FRESH: Final = 60.0
"""Seconds for which a lock that nobody holds may be one that a server is about to take."""


def true_path(path: Path) -> Path:
    """Return the file that a name leads to: whoever comes by another name must find the same locks beside it."""
    try:
        return path.resolve(strict=True)
    except (OSError, RuntimeError):  # not there yet; the latter is a circle of links
        return path.absolute()


@contextlib.contextmanager
def locked(path: Path, server: str) -> Iterator[None]:
    """Hold a server's lock. Raises `ConfigError` where that is held already, or can't be had."""
    name = f"{path}.{server}.lock"
    lock = _lock(path, name)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        os.close(lock)


def is_alive(path: Path, server: str) -> bool:
    """Return whether a server lives that writes to a file: whether somebody holds its lock, or may hold it."""
    try:
        lock = os.open(f"{path}.{server}.lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False


def clean_locks(path: Path) -> None:
    """Remove what dead servers left beside a file: locks that nobody holds, and that nobody is about to take."""
    with contextlib.suppress(OSError):
        for lock in path.parent.iterdir():
            if lock.name.startswith(f"{path.name}.") and lock.name.endswith(".lock"):
                with contextlib.suppress(OSError):
                    _clean_lock(lock)


def _clean_lock(lock: Path) -> None:
    """Remove one, unless another stands in its place by then. Raises OSError."""
    held = os.open(lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        found = os.fstat(held)
        if found.st_mtime >= time.time() - FRESH:  # not even for a moment: its server is about to take it
            return
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(found, lock.lstat()):
            lock.unlink()
    finally:
        os.close(held)


def _lock(path: Path, name: str) -> int:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ConfigError(f"journal: {path} can't be used: {error.strerror}; name another, sqlite:PATH") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise ConfigError(f"journal: {name} is held by another server") from None
    return lock


@contextlib.contextmanager
def opening(path: Path) -> Iterator[None]:
    """Open a file one after the other: SQLite makes nobody wait who turns a new one into what it is to be.

    Raises `ConfigError` where that can't be had, or takes another one longer than `OPENING`.
    """
    name = f"{path}.opening"
    try:
        lock = _opening_lock(name, path.parent)
    except OSError as error:
        raise ConfigError(f"journal: {name} can't be used: {error.strerror}; name another, sqlite:PATH") from None
    try:
        until = time.monotonic() + OPENING
        while not _taken(lock):
            if time.monotonic() > until:
                raise ConfigError(f"journal: another program holds {name}; name another, sqlite:PATH")
            time.sleep(OPENING_POLL)
        yield
    finally:
        os.close(lock)


def _opening_lock(name: str, folder: Path) -> int:
    """Return the lock; one that root makes, as by `doctor`, is the folder's owner's, whose server needs it, too."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        lock = os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return os.open(name, flags)
    if os.geteuid() == 0:
        owner = folder.stat()
        with contextlib.suppress(OSError):  # of a root who may not; the lock is as good
            os.fchown(lock, owner.st_uid, owner.st_gid)
    return lock


def _taken(lock: int) -> bool:
    """Take a lock that nobody holds; return whether that went well."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def open_database(path: Path, held: contextlib.ExitStack) -> sqlite3.Connection:
    """Open the file until `held` ends, look whether it is one and whole, bring it to this version.

    Raises `ConfigError`; a file that is none, or of a later version, is as it was then.
    """
    try:
        if not path.exists():
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        db = sqlite3.connect(path, timeout=BUSY_MS / 1000, isolation_level=None, check_same_thread=False)
        held.callback(db.close)
        if not _is_ours(db, _version(db, path)):
            raise ConfigError(f"journal: {path} is another program's database; name another, sqlite:PATH")
        db.execute(f"PRAGMA page_size = {BLOCK_BYTES}")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute(f"PRAGMA wal_autocheckpoint = {LOG_BYTES // BLOCK_BYTES}")
        db.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
        (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            found = " ".join(found.split())[:200]  # it is of several lines
            raise ConfigError(f"journal: {path} is damaged ({found}); {_away(path)}, or name another")
        _migrate(db, path)
        _try_write(db)
    except sqlite3.DatabaseError as error:
        raise ConfigError(f"journal: {path} can't be used: {error}; {_away(path)}, or name another") from None
    except OSError as error:
        raise ConfigError(f"journal: {path} can't be used: {error.strerror}; name another, sqlite:PATH") from None
    return db


def _away(path: Path) -> str:
    """Return what to do with a file that can't be used: a new one would delete the old one's lines beside it."""
    lines = folder_of(path)
    return f"move it away, and {lines.name} with it" if lines.is_dir() else "move it away"


def _is_ours(db: sqlite3.Connection, version: int) -> bool:
    """Return whether a file is a journal, or nothing yet; other programs number their versions in the same place."""
    if not version:
        return db.execute("SELECT 1 FROM sqlite_master").fetchone() is None
    columns = {name for _, name, *_ in db.execute("PRAGMA table_info(runs)")}
    return columns >= {"id", "identity", "meta", "door", "batch", "server", "stored", "whole"}


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    """Bring the tables to this version, one after the other. Raises `ConfigError` for a file of a later one."""
    if _version(db, path) == len(VERSIONS):
        return
    db.execute("BEGIN IMMEDIATE")  # two servers may open a new file at once
    try:
        version = _version(db, path)
        for statements in VERSIONS[version:]:
            for statement in filter(str.strip, statements.split(";")):
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {len(VERSIONS)}")
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def _try_write(db: sqlite3.Connection) -> None:
    """Write what is there already: a file that can only be read is none to keep a journal in. Raises sqlite3.Error.

    One that another program writes to just now is taken.
    """
    try:
        db.execute("BEGIN IMMEDIATE")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        db.execute(f"PRAGMA user_version = {int(version)}")
        db.execute("COMMIT")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
            raise
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def _version(db: sqlite3.Connection, path: Path) -> int:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > len(VERSIONS):
        raise ConfigError(
            f"journal: {path} is of a later version of this program ({version}); name another, sqlite:PATH"
        )
    return int(version)
