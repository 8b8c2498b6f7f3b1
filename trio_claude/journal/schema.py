"""The tables of the SQLite file, and how a file of an earlier version becomes one of this. Pure: only texts."""

from __future__ import annotations

from typing import Final

VERSIONS: Final[tuple[str, ...]] = (
    """
    CREATE TABLE runs (
        id TEXT PRIMARY KEY, identity TEXT NOT NULL, meta TEXT NOT NULL, door TEXT NOT NULL, batch TEXT NOT NULL,
        session TEXT, server TEXT NOT NULL, state TEXT NOT NULL, started REAL NOT NULL, ended REAL, reason TEXT,
        exit_status INTEGER, signal INTEGER, lines INTEGER NOT NULL DEFAULT 0,
        encoding_errors INTEGER NOT NULL DEFAULT 0, tokens INTEGER NOT NULL DEFAULT 0, dollars REAL NOT NULL DEFAULT 0,
        error TEXT, receipt TEXT, prompt TEXT, options TEXT NOT NULL, stored INTEGER NOT NULL DEFAULT 0,
        bytes INTEGER NOT NULL DEFAULT 0, whole INTEGER NOT NULL DEFAULT 1
    ) STRICT;
    CREATE INDEX runs_by_identity ON runs (identity, started, id);
    CREATE INDEX runs_by_time ON runs (started, id);
    CREATE INDEX runs_live ON runs (state) WHERE state = 'live';
    CREATE TABLE parts (
        run TEXT NOT NULL, number INTEGER NOT NULL, kind INTEGER NOT NULL, first INTEGER NOT NULL,
        count INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (run, number)
    ) STRICT;
    CREATE TABLE usage (
        day TEXT NOT NULL, identity TEXT NOT NULL, runs INTEGER NOT NULL, turns INTEGER NOT NULL,
        tokens INTEGER NOT NULL, dollars REAL NOT NULL, PRIMARY KEY (day, identity)
    ) STRICT, WITHOUT ROWID;
    """,
    "CREATE INDEX runs_by_session ON runs (session, started) WHERE session IS NOT NULL",
    "ALTER TABLE parts ADD COLUMN place INTEGER; ALTER TABLE parts ADD COLUMN size INTEGER",
    """
    ALTER TABLE runs ADD COLUMN model TEXT NOT NULL DEFAULT '';
    CREATE TABLE uses (
        run TEXT PRIMARY KEY, identity TEXT NOT NULL, meta TEXT NOT NULL, day TEXT NOT NULL, model TEXT NOT NULL,
        turns INTEGER NOT NULL, tokens INTEGER NOT NULL, dollars REAL NOT NULL, seconds REAL NOT NULL,
        failed INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE sums (
        day TEXT NOT NULL, identity TEXT NOT NULL, model TEXT NOT NULL, runs INTEGER NOT NULL, turns INTEGER NOT NULL,
        tokens INTEGER NOT NULL, dollars REAL NOT NULL, seconds REAL NOT NULL, failed INTEGER NOT NULL,
        PRIMARY KEY (day, identity, model)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO sums SELECT day, identity, '', runs, turns, tokens, dollars, 0, 0 FROM usage;
    DROP TABLE usage;
    ALTER TABLE sums RENAME TO usage;
    """,
)
"""Each entry takes a file from the version before it; the version stands in `user_version`."""
