"""How fast the relay is with a Redis, at the run's own server, against how fast it is without one.

The rounds are those of `shared_history.py`, whose CLI and load client are in C.
"""

from __future__ import annotations

import random

import trio
from shared_history import ASKED, RATES, kept, measured
from suite.report import cell

from .book import Book

QUICK = 2
"""Rounds up to which only a short look is taken, whose figures are not worth keeping, and not judged."""


async def pace(book: Book, count: int, _rng: random.Random) -> None:
    """Take so many rounds, without a journal, with one in SQLite and with one in Redis."""
    outcome, peers = await trio.to_thread.run_sync(lambda: measured(count, quick=count <= QUICK))
    for failure in outcome.failures:
        book.violate("rounds: none is void", failure)
    for metric in outcome.scenario.metrics:
        told = ", ".join(f"{one.title} {cell(outcome, name, metric)}" for name, one in peers.items())
        asked = f"in Redis {ASKED} times that without" if metric.name in RATES else ""
        book.figure(f"{metric.title}, {metric.unit}", told, asked, "fake, in C")
    for name in RATES if count > QUICK else ():
        share = kept(outcome, name)
        enough = share is not None and share >= ASKED
        book.check(f"relay: at least {ASKED} times the rate without", holds=enough, seen=f"{name}: {share}")
