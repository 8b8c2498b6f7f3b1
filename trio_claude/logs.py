"""Log lines out of events, on stderr, one event a line.

The writer is a thread behind a bounded queue: a log that nobody drains drops lines, counts them, and never blocks the
loop, and refusals of which there are many are summed up. No prompt, no line of the CLI and no secret reaches a log.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs

from .events import Answered, Charged, Crashed, Event, FirstLine, FirstToken, Observer, Refused

PAUSE = 0.01
"""Seconds in which lines gather before they are written: a thread that wakes for each would cost more than the line."""
REFUSALS = 10
"""Refusals that are written in a second; of the others only how many there were."""
DETAILS = (Answered, FirstLine, FirstToken, Charged)
"""Events that are no lines: what they tell is told again, or is of no interest to a reader."""
QUEUE_LIMIT = 1000
"""Lines that wait for stderr; more are dropped and counted."""


class _Writer:
    def __init__(self) -> None:
        self._lines: queue.Queue[str | None] = queue.Queue(QUEUE_LIMIT)
        self._dropped = 0
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def put(self, line: str) -> None:
        """Take a line, or drop it where the queue is full."""
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._dropped += 1

    def close(self) -> None:
        """Write what waits, for at most a second."""
        try:
            self._lines.put(None, timeout=1)
        except queue.Full:
            return
        self._thread.join(1)

    def _write(self) -> None:
        """Write what comes, all that has come in `PAUSE` seconds at a time."""
        while (lines := self._take())[-1] is not None:
            if not self._put_out(lines):
                return
            time.sleep(PAUSE)
        self._put_out(lines[:-1])

    def _take(self) -> list[str | None]:
        """Wait for a line; return it with those behind it, up to the end of all."""
        lines = [self._lines.get()]
        while lines[-1] is not None:
            try:
                lines.append(self._lines.get_nowait())
            except queue.Empty:
                break
        return lines

    def _put_out(self, lines: list[str | None]) -> bool:
        """Write lines at once; return whether that could be done."""
        dropped, self._dropped = self._dropped, 0
        more = [_line("LogDropped", {"lines": dropped})] if dropped else []
        try:
            sys.stderr.write("".join(f"{line}\n" for line in [*lines, *more]))
            sys.stderr.flush()
        except (OSError, ValueError):
            return False
        return True


class _Thinned:
    """The log's observer: every event is a line, but for refusals of which there are many in one second."""

    def __init__(self, writer: _Writer) -> None:
        self._writer = writer
        self._second = 0
        self._refused: Counter[int] = Counter()

    def __call__(self, event: Event) -> None:
        if isinstance(event, DETAILS):
            return
        if int(time.monotonic()) != self._second:
            self.sum_up()
        if isinstance(event, Refused):
            self._refused[event.status] += 1
            if self._refused.total() > REFUSALS:
                return
        self._writer.put(render(event))

    def sum_up(self) -> None:
        """Say how many refusals of the last second were not written, and begin another."""
        self._second = int(time.monotonic())
        if (left_out := self._refused.total() - REFUSALS) > 0:
            self._writer.put(_line("RefusedMore", {"left_out": left_out, "by_status": dict(self._refused)}))
        self._refused.clear()


@contextmanager
def open_log() -> Iterator[Observer]:
    """Open the log and yield its observer."""
    writer = _Writer()
    log = _Thinned(writer)
    try:
        yield log
    finally:
        log.sum_up()
        writer.close()


def render(event: Event) -> str:
    """Return an event as one line of JSON."""
    fields = _fields(event)
    if isinstance(event, Crashed):
        fields["error"] = "".join(traceback.format_exception(event.error))
    return _line(type(event).__name__, fields)


def _fields(fact: Any) -> dict[str, object]:
    """Return a fact's fields; unlike `attrs.asdict` it goes no deeper."""
    return {field.name: getattr(fact, field.name) for field in fact.__attrs_attrs__}


def _plain(value: object) -> object:
    """Return a value that is not JSON's as one that is: facts within facts by their fields."""
    return _fields(value) if attrs.has(type(value)) else str(value)


_encode = json.JSONEncoder(default=_plain).encode


def _line(name: str, fields: dict[str, object]) -> str:
    return _encode({"time": round(time.time(), 3), "event": name, **fields})
