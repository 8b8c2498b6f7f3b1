"""The journal: what runs there were, what they said and how they ended, numbered as clients saw it.

Rule 1: nothing here ever holds up a run: what can't be stored is given up, and said. Rule 2: a run's history is whole
up to a number and has nothing behind it; there are no holes.
"""

from .backlog import Recorder
from .base import Journal
from .facts import (
    GROUPS,
    UNLISTED,
    USAGE_ROWS,
    Begun,
    Deleted,
    End,
    Page,
    Part,
    PartKind,
    Query,
    Retention,
    RunRow,
    Statistics,
    Usage,
    UsageQuery,
    UsageRow,
)
from .recorder import open_journal
from .unfinished import Unfinished
from .usage import day_of

__all__ = [
    "GROUPS",
    "UNLISTED",
    "USAGE_ROWS",
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
    "Statistics",
    "Unfinished",
    "Usage",
    "UsageQuery",
    "UsageRow",
    "day_of",
    "open_journal",
]
