"""How much each event matters. Pure."""

from __future__ import annotations

import logging
from typing import Final

from ..events import (
    CONNECTED,
    Answered,
    Charged,
    Crashed,
    Event,
    FirstLine,
    FirstToken,
    GuardianLost,
    JournalReady,
    NodeState,
    Refused,
    Reloaded,
    RunEnded,
    SendStalled,
    Strained,
    TurnEnded,
    Weak,
)

LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_LEVEL_OF: Final[dict[type, int]] = {
    Answered: logging.DEBUG,
    FirstLine: logging.DEBUG,
    FirstToken: logging.DEBUG,
    TurnEnded: logging.DEBUG,
    Charged: logging.DEBUG,
    Refused: logging.WARNING,
    Strained: logging.WARNING,
    Weak: logging.WARNING,
    SendStalled: logging.WARNING,
    GuardianLost: logging.ERROR,
    Crashed: logging.ERROR,
}
"""Those that are not of level info."""
_WORDS: Final = {level: name for name, level in LEVELS.items()}


def level_of(event: Event, *, access: bool = False) -> int:
    """Return an event's level; with `access` an answered request is one to be seen."""
    match event:
        case RunEnded():
            return logging.ERROR if event.outcome.receipt.survivors else logging.INFO
        case Answered():
            return logging.INFO if access else logging.DEBUG
        case JournalReady():
            return logging.INFO if event.path or not event.detail else logging.WARNING
        case NodeState():
            return logging.INFO if event.state == CONNECTED else logging.WARNING
        case Reloaded():
            return logging.WARNING if event.error else logging.INFO
        case _:
            return _LEVEL_OF.get(type(event), logging.INFO)


def word(level: int) -> str:
    """Return a level's name; a library's own levels go down to the next of these."""
    return _WORDS.get(level) or next((name for least, name in reversed(_WORDS.items()) if level > least), "debug")
