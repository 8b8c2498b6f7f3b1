"""Which runs are not to be kept any more, the oldest first. Blocking. Never here: a row that is written."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Final

from .facts import Retention

DAY: Final = 86400
OLDEST: Final = "SELECT id, bytes FROM runs WHERE state = 'ended' ORDER BY started LIMIT ?"
OLD: Final = "SELECT id FROM runs WHERE state = 'ended' AND ended < ? ORDER BY started LIMIT ?"


def find(db: sqlite3.Connection, kept: Retention, now: float, most: int) -> Iterator[list[str]]:
    """Yield runs to be deleted, at most so many at a time; each time those before are to be gone."""
    if kept.days:
        yield [run for (run,) in db.execute(OLD, (now - kept.days * DAY, most))]
    if kept.runs:
        (count,) = db.execute("SELECT COUNT(*) FROM runs").fetchone()
        yield [run for run, _ in db.execute(OLDEST, (min(most, max(0, count - kept.runs)),))]
    if kept.size:
        (size,) = db.execute("SELECT COALESCE(SUM(bytes), 0) FROM runs").fetchone()
        yield list(_first(db, size - kept.size, most))


def _first(db: sqlite3.Connection, over: int, most: int) -> Iterator[str]:
    """Yield the oldest runs that have so many bytes together."""
    for run, size in db.execute(OLDEST, (most,)):
        if over <= 0:
            return
        over -= size
        yield run
