"""Why runs failed: those that ended badly, grouped by reason and message. Pure.

A group's message is an error's text with `N` for whatever has a digit in it: numbers, ids, names of versions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from ..errors import Reason
from .run_facts import number
from .run_sources import Run

SEARCHED: Final = 10_000
"""Runs that are looked at unless the caller says how many."""
MESSAGE_LIMIT: Final = 200
"""Characters of a group's message."""
TEXT_LIMIT: Final = 2000
"""Characters of an error that are looked at."""
COLUMNS: Final = ("count", "last", "reason", "message", "run")
GOOD: Final = tuple(str(reason) for reason in Reason if not reason.is_fault)
"""How runs end that did not fail."""
_WORD: Final = re.compile(r"[\w-]+")
_CHAIN: Final = re.compile(r"N(?:[.:]N)+\b")
"""Words with digits that hang together: 0.3, 2.1.330, 10:00:00, 127.0.0.1:3000."""


def failures(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Return groups of the runs that failed, the largest first; `run` is the newest one, `last` when the last ended."""
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for run in runs:
        if not failed(run):
            continue
        reason, message = str(run.get("reason")), cause(run)
        group = groups.setdefault(
            (reason, message),
            {"count": 0, "last": None, "reason": reason, "message": message, "run": str(run.get("id"))},
        )
        group["count"] += 1
        group["last"] = max(group["last"] or 0.0, number(run.get("ended"))) or None
    return sorted(groups.values(), key=lambda group: (-group["count"], group["reason"], group["message"]))


def failed(run: Run) -> bool:
    """Return whether a run has ended and failed: by a fault, as `usage` counts them, or with processes left."""
    return run.get("state") == "ended" and (run.get("reason") not in GOOD or bool(_survivors(run)))


def cause(run: Run) -> str:
    """Return what is the same in the errors of runs that failed for the same cause."""
    if left := _survivors(run):
        return f"{'N processes' if left > 1 else 'N process'} left"
    named = _WORD.sub(_without_digits, str(run.get("error") or "")[:TEXT_LIMIT])
    text = " ".join(_CHAIN.sub("N", named).split())
    return text if len(text) <= MESSAGE_LIMIT else f"{text[: MESSAGE_LIMIT - 1]}…"


def _without_digits(word: re.Match[str]) -> str:
    return "N" if any(char.isdigit() for char in word[0]) else word[0]


def _survivors(run: Run) -> float:
    receipt = run.get("receipt")
    return number(receipt.get("survivors")) if isinstance(receipt, dict) else 0
