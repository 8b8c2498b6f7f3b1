"""Log lines out of events, on stderr, one event a line: JSON, or for a person.

Rule 1: the loop's thread only hands over: what is rendered and written is the writer's, behind a bounded queue. Rule 2:
no prompt, no line of the CLI and no secret reaches a log. Rule 3: what a client can make many of is summed up.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from traceback import TracebackException, format_exception_only
from typing import Any, Final

from .. import context
from ..config import Config
from ..events import Crashed, Event
from ..faults import Faults, fingerprint
from .hooks import TEXT_LIMIT, taken
from .levels import LEVELS, level_of
from .lines import Entry, Line
from .rates import Rates
from .writer import QUEUE_LIMIT, Writer

__all__ = ["QUEUE_LIMIT", "Log", "open_log"]

_NOTHING: Final[Mapping[str, str]] = {}


class Log:
    """The log's observer; it may be called in any thread, and never waits.

    Resource handling: owns the writer's thread until `close`.
    """

    def __init__(self, config: Config, *, colours: bool = False) -> None:
        self._colours = colours
        self._lock = threading.RLock()  # a destructor that warns may come in the middle of anything
        self._rates = Rates()
        self._faults = Faults()
        self._least, self._access = LEVELS[config.log_level], config.access_log
        self._writer = Writer(self._line(config), self._sum_up)

    def configure(self, config: Config) -> None:
        """Take level and format of another configuration, from the next line on."""
        self._least, self._access = LEVELS[config.log_level], config.access_log
        self._writer.line = self._line(config)

    def close(self) -> None:
        """Write what waits, for at most a second."""
        self._sum_up()
        self._writer.close()

    def __call__(self, event: Event) -> None:
        """Hear of an event."""
        level = level_of(event, access=self._access)
        if level < self._least:
            return
        if isinstance(event, Crashed):
            self.tell(level, "Crashed", {"where": event.where, "run": event.run}, event.error)
        elif self._admits(name := type(event).__name__, level, getattr(event, "status", None)):
            self._put(level, name, event)

    def tell(self, level: int, name: str, fields: Mapping[str, object], error: BaseException | None) -> None:
        """Write a line of fields, with an exception: in full where it is new, and else that it was there again."""
        if level < self._least:
            return
        if error is None:
            if self._admits(name, level, None):
                self._put(level, name, fields)
            return
        mark = fingerprint(error)
        with self._lock:
            seen = self._faults.count(mark, time.monotonic())
        if seen.in_full or self._admits(name, level, None):
            said = _captured(error) if seen.in_full else _summary(error)
            self._put(level, name, {**fields, "fingerprint": mark, "count": seen.count, "error": said})

    def _line(self, config: Config) -> Line:
        form = config.log_format
        if form == "auto":
            form = "console" if sys.stderr.isatty() else "json"
        return Line(form, colours=self._colours)

    def _admits(self, name: str, level: int, status: int | None) -> bool:
        second = int(time.monotonic())
        with self._lock:
            if self._rates.is_over(second):
                self._sum_up()
            return self._rates.admit(name, level, status)

    def _sum_up(self) -> None:
        """Say how many lines of the last second were not written, and begin another."""
        with self._lock:
            for left in self._rates.begin(int(time.monotonic())):
                by_status = {"by_status": left.by_status} if left.by_status else {}
                fields = {"left_out": left.left_out, **by_status}
                self._writer.put(Entry(time.time(), left.level, f"{left.kind}More", fields, _NOTHING))

    def _put(self, level: int, name: str, facts: Any) -> None:
        self._writer.put(Entry(time.time(), level, name, facts, context.current()))


def _captured(error: BaseException) -> TracebackException:
    """Return a traceback that holds no frame any more, and for which no file is read before it is written."""
    return TracebackException(type(error), error, error.__traceback__, lookup_lines=False, compact=True)


def _summary(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return "".join(format_exception_only(error)).strip()[:TEXT_LIMIT]


@contextmanager
def open_log(config: Config, *, colours: bool = False) -> Iterator[Log]:
    """Open the log of a program that is its own, and yield it; whatever else would be said on stderr goes there too."""
    log = Log(config, colours=colours)
    try:
        with taken(log.tell):
            yield log
    finally:
        log.close()
