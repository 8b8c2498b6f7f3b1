"""What is to be told becomes one line: steps as structlog has them, of which the last writes JSON or for a person.

Rule 1: whatever a client says is data: it ends no line and paints no terminal. Rule 2: no step runs on the loop's
thread. In the console a traceback stands below its line, each of its lines behind a margin that no event's line has.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from traceback import TracebackException
from typing import Any, Final, NamedTuple

import attrs
from structlog.dev import ConsoleRenderer, plain_traceback
from structlog.processors import JSONRenderer
from structlog.typing import EventDict, Processor

from .levels import word
from .secrets import hide

TRACEBACK_LIMIT: Final = 32 * 1024
"""Characters of a traceback that are written: the first and the last half of them."""
EVENT_WIDTH: Final = 16
"""Columns of an event's name in the console."""
MARGIN: Final = "    | "
_WORD: Final = re.compile(r"[\w.:/@+#%-]+", re.ASCII)
"""What stands in the console without quotes."""


class Entry(NamedTuple):
    """What is to be told: `facts` are an event or a mapping, `context` the names that its task has."""

    time: float
    level: int
    name: str
    facts: Any
    context: Mapping[str, str]


class Line:
    """Makes lines, in colours or not."""

    def __init__(self, form: str, *, colours: bool) -> None:
        self._steps: tuple[Processor, ...] = (_json,) if form == "json" else (_readable, _console(colours=colours))

    def __call__(self, entry: Entry) -> str:
        """Return an entry as a line, without its end."""
        facts = entry.facts if isinstance(entry.facts, Mapping) else _fields(entry.facts)
        level = word(entry.level)
        said: Any = {"time": round(entry.time, 3), "level": level, "event": entry.name, **facts}
        for name, value in entry.context.items():
            said.setdefault(name, value)
        for step in self._steps:
            said = step(None, level, said)
        return hide(said)


def _fields(fact: Any) -> dict[str, object]:
    """Return a fact's fields, but for those that its `repr` has not; unlike `attrs.asdict` it goes no deeper."""
    return {field.name: getattr(fact, field.name) for field in fact.__attrs_attrs__ if field.repr is not False}


def told(error: TracebackException) -> str:
    """Return a traceback, of a long one both ends."""
    text = "".join(error.format())
    half = TRACEBACK_LIMIT // 2
    return text if len(text) <= TRACEBACK_LIMIT else f"{text[:half]}\n…\n{text[-half:]}"


# -- JSON -------------------------------------------------------------------------------------------------------------


def _plain(value: object) -> object:
    """Return a value that is not JSON's as one that is: facts within facts by their fields."""
    if isinstance(value, TracebackException):
        return told(value)
    return _fields(value) if attrs.has(type(value)) else str(value)


_encode = json.JSONEncoder(default=_plain).encode
_json = JSONRenderer(lambda said, **_: _encode(said).replace("\x7f", "\\u007f"))


# -- for a person -----------------------------------------------------------------------------------------------------


def _console(*, colours: bool) -> ConsoleRenderer:
    return ConsoleRenderer(
        EVENT_WIDTH, colors=colours, sort_keys=False, timestamp_key="time", exception_formatter=plain_traceback
    )


def _readable(_logger: object, _name: str, said: EventDict) -> EventDict:
    """Return what a person reads: what says nothing is left out, and whatever is no plain word is quoted."""
    flat: dict[str, Any] = {}
    for name, value in said.items():
        flat |= _fields(value) if attrs.has(type(value)) else {name: value}
    shown: dict[str, str] = {name: _quoted(value) for name, value in flat.items() if value not in (None, "")}
    shown["time"] = _clock(said["time"])
    if isinstance(error := flat.get("error"), TracebackException):
        shown["error"] = _quoted("".join(_innermost(error).format_exception_only()).strip())
        shown["exception"] = "\n".join(MARGIN + _escaped(line) for line in told(error).splitlines())
    return shown


def _innermost(error: TracebackException) -> TracebackException:
    while error.exceptions:
        error = error.exceptions[0]
    return error


class _Shown(str):
    """Text that is shown as it is: where structlog would quote a text it asks for its `repr`."""

    __slots__ = ()
    __repr__ = str.__str__


def _quoted(value: object) -> _Shown:
    if isinstance(value, float):
        return _Shown(f"{value:.3f}")
    text = str(value)
    return _Shown(text if _WORD.fullmatch(text) else repr(text))


def _escaped(text: str) -> str:
    """Return text in which what is not printed is shown by its escapes."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def _clock(seconds: float) -> str:
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(seconds))}.{int(seconds * 1000) % 1000:03}"
