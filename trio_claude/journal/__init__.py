"""The journal: what runs there were, what they said and how they ended, numbered as clients saw it.

Rule 1: nothing here ever holds up a run: what can't be stored is given up, and said. Rule 2: a run's history is whole
up to a number and has nothing behind it; there are no holes.
"""

from .facts import UNLISTED, Begun, Deleted, End, Page, Part, PartKind, Query, Retention, RunRow, UsageRow
from .recorder import Journal, Recorder, open_journal
from .store import day_of
from .unfinished import Unfinished

__all__ = [
    "UNLISTED",
    "Begun",
    "Deleted",
    "End",
    "Journal",
    "Page",
    "Part",
    "PartKind",
    "Query",
    "Recorder",
    "Retention",
    "RunRow",
    "Unfinished",
    "UsageRow",
    "day_of",
    "open_journal",
]
