"""What runs have used: a row for each run that is kept, and sums of those that are gone. Blocking.

Rule 1: a run counts once, when it has ended, and what it used stays, whatever becomes of it. Rule 2: its name (`meta`)
goes with it, and a client can't make the sums grow without end: each day has few rows for an identity.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable
from typing import Final

import attrs

from ..errors import Reason
from .facts import Usage, UsageQuery, UsageRow

MODELS_KEPT: Final = 100
"""Models that the sums of a day and an identity tell apart; the others are told together, without a name."""
RUN_TOKENS: Final = 10**15
SUM_TOKENS: Final = 10**18
"""Tokens that a run, and a sum, has at most: a CLI can say any number, and SQLite takes none of more than 63 bits."""
USE: Final = """
    INSERT OR IGNORE INTO uses
    SELECT id, identity, meta, :day, model, :turns, tokens, dollars, COALESCE(MAX(0.0, :ended - started), 0.0), :failed
    FROM main.runs WHERE id = :run
"""
SUM_UP: Final = """
    INSERT INTO usage
    SELECT day, identity, CASE WHEN model IN (SELECT model FROM usage WHERE day = uses.day AND identity = uses.identity)
        OR (SELECT COUNT(*) FROM usage WHERE day = uses.day AND identity = uses.identity) < :models
        THEN model ELSE '' END, 1, turns, tokens, dollars, seconds, failed
    FROM uses WHERE run = :run
    ON CONFLICT DO UPDATE SET runs = runs + 1, turns = turns + excluded.turns,
        tokens = MIN(tokens + excluded.tokens, :tokens), dollars = dollars + excluded.dollars,
        seconds = seconds + excluded.seconds, failed = failed + excluded.failed
"""
DROP: Final = (
    SUM_UP,
    "DELETE FROM uses WHERE run = :run",
    "DELETE FROM main.parts WHERE run = :run",
    "DELETE FROM main.runs WHERE id = :run",
)
ALL_USED: Final = """(
    SELECT day, identity, model, meta, 1 AS runs, turns, tokens, dollars, seconds, failed FROM uses UNION ALL
    SELECT day, identity, model, '', runs, turns, tokens, dollars, seconds, failed FROM usage
)"""
SUMS: Final = (
    "SUM(runs), SUM(turns), CAST(MIN(TOTAL(tokens), :tokens) AS INTEGER), SUM(dollars), SUM(seconds), SUM(failed)"
)
CONDITIONS: Final = {
    "identity": "identity = :identity",
    "since": "day >= :since",
    "until": "day < :until",
    "meta_prefix": "SUBSTR(meta, 1, LENGTH(:meta_prefix)) = :meta_prefix",
}
HEAD_OF_META: Final = """
    CASE INSTR(meta, :separator) WHEN 0 THEN meta ELSE SUBSTR(meta, 1, INSTR(meta, :separator) - 1) END
"""


def count(db: sqlite3.Connection, run: str, ended: float, reason: str, turns: int) -> None:
    """Count a run that has ended. Of one whose server died nobody knows when, nor what it used in its last turn."""
    lost = reason == Reason.NODE_LOST
    told = {"run": run, "day": day_of(ended), "ended": None if lost else ended, "turns": turns}
    db.execute(USE, {**told, "failed": Reason(reason).is_fault})


def drop(db: sqlite3.Connection, runs: Iterable[str]) -> None:
    """Delete runs, and keep the sums of what they used."""
    for run in runs:
        for statement in DROP:
            db.execute(statement, {"run": run, "models": MODELS_KEPT, "tokens": SUM_TOKENS})


def read(db: sqlite3.Connection, query: UsageQuery) -> Usage:
    """Return what was used, the newest day first, the rest by name."""
    words = attrs.asdict(query)
    chosen = [CONDITIONS[name] for name in CONDITIONS if words[name] is not None]
    columns = [HEAD_OF_META if name == "meta" and query.separator else name for name in query.by]
    places = [str(number) for number in range(1, len(columns) + 1)]
    order = [f"{place} DESC" if name == "day" else place for name, place in zip(query.by, places, strict=True)]
    sql = (
        "SELECT", ", ".join([*columns, SUMS]), "FROM", ALL_USED, "WHERE", " AND ".join(chosen) or "TRUE",
        "GROUP BY", ", ".join(places), "ORDER BY", ", ".join(order), "LIMIT :limit",
    )  # fmt: skip
    limit = query.limit if query.limit < 0 else query.limit + 1
    found = [tuple(row) for row in db.execute(" ".join(sql), {**words, "limit": limit, "tokens": SUM_TOKENS})]
    rows = [UsageRow(dict(zip(query.by, row, strict=False)), *row[len(columns) :]) for row in found]
    more = 0 <= query.limit < len(rows)
    return Usage(rows[: query.limit] if more else rows, query.limit if more else None)


def day_of(seconds: float) -> str:
    """Return the day of UTC in which a time lies."""
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))
