"""What there is to say of a run, in a person's words. Pure: nothing is printed, and nothing is trusted to be there."""

from __future__ import annotations

import math
from typing import Any

from ..errors import Reason
from ..events import Receipt
from .moments import shown
from .run_sources import LIVE, Run


def facts(run: Run, now: float) -> list[tuple[str, str]]:
    """Return names and texts of what is known of a run."""
    pairs = [
        ("run", _text(run.get("id"))),
        *((name, _text(run.get(name))) for name in ("identity", "meta", "door", "batch", "session")),
        ("state", state(run) if run.get("state") == LIVE else f"ended: {state(run)}"),
        ("started", shown(run.get("started"), " %Z")),
        ("ended", shown(run.get("ended"), " %Z")),
        ("seconds", seconds(run, now)),
        ("exit status", _text(run.get("exit_status"))),
        ("signal", _text(run.get("signal"))),
        ("receipt", receipt(run)),
        ("lines", stored(run)),
        ("tokens", _text(run.get("tokens"))),
        ("dollars", dollars(run)),
    ]
    return [(name, text) for name, text in pairs if text]


def state(run: Run) -> str:
    """Return `live`, or why a run ended."""
    return LIVE if run.get("state") == LIVE else _text(run.get("reason"))


def seconds(run: Run, now: float) -> str:
    """Return how long a run lasted, or has lasted until now, nothing for one whose end nobody saw."""
    began, ended = run.get("started"), run.get("ended")
    if not isinstance(began, int | float) or run.get("reason") == Reason.NODE_LOST:
        return ""
    return f"{max(0.0, (number(ended) if isinstance(ended, int | float) else now) - number(began)):.1f}"


def dollars(run: Run) -> str:
    """Return what a run cost."""
    return f"{number(run.get('dollars')):.4f}"


def survivors(run: Run) -> str:
    """Return how many processes were left, `?` where that is not proven, nothing without a receipt."""
    told = run.get("receipt")
    if not isinstance(told, dict):
        return ""
    left = told.get("survivors")
    return "?" if left is None else str(left)


def receipt(run: Run) -> str:
    """Return the receipt as a close reason has it, and the containment."""
    told = run.get("receipt")
    if not isinstance(told, dict):
        return ""
    left = told.get("survivors")
    text = Receipt(
        seen=int(number(told.get("seen"))), killed=0, survivors=None if left is None else int(number(left)),
        ms=number(told.get("ms")), containment="",
    )  # fmt: skip
    return f"{text} ({_text(told.get('containment'))})"


def stored(run: Run) -> str:
    """Return how many lines there were, and what of them is kept."""
    kept, lines = run.get("stored"), run.get("lines")
    if run.get("state") == LIVE:
        return f"{kept} so far"
    if run.get("whole"):
        return f"{lines}, all kept"
    return f"{lines}, kept up to line {kept}: not whole" if kept else f"{lines}, none kept"


def missing(run: Run) -> str:
    """Return what of a run's history is not there, empty where it is whole."""
    kept, lines = run.get("stored"), run.get("lines")
    if run.get("state") == LIVE:
        return "The run is live; this is what it has said so far."
    if run.get("whole"):
        return ""
    if not kept:
        return "No lines of this run are kept."
    if run.get("reason") == Reason.NODE_LOST:
        return f"The history ends here, behind line {kept}: what came last, as the server died, may be missing."
    if kept == lines:
        return "All lines are here; what stderr and the client said is not kept to the end."
    return f"The history ends here, behind line {kept} of {lines}: it is not whole."


def _text(value: object) -> str:
    return "" if value is None else str(value)


def number(value: Any) -> float:
    """Return a number that was told, 0 for whatever is none, or none that can be counted with."""
    try:
        told = float(value) if isinstance(value, int | float) else 0.0
    except OverflowError:
        return 0.0
    return told if math.isfinite(told) else 0.0
