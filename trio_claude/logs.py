"""Log lines out of events, on stderr, one event a line.

The writer is a thread behind a bounded queue: a log that nobody drains drops lines, counts them, and never blocks the
loop. No prompt, no line of the CLI and no secret reaches a log.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import attrs

from .events import Crashed, Event, Observer

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
        while (line := self._lines.get()) is not None:
            dropped, self._dropped = self._dropped, 0
            if dropped:
                line = f"{line}\n{_line('LogDropped', {'lines': dropped})}"
            try:
                print(line, file=sys.stderr, flush=True)  # noqa: T201 - this is the log
            except (OSError, ValueError):
                return


@contextmanager
def open_log() -> Iterator[Observer]:
    """Open the log and yield its observer."""
    writer = _Writer()
    try:
        yield lambda event: writer.put(render(event))
    finally:
        writer.close()


def render(event: Event) -> str:
    """Return an event as one line of JSON."""
    fields = attrs.asdict(event)
    if isinstance(event, Crashed):
        fields["error"] = "".join(traceback.format_exception(event.error))
    return _line(type(event).__name__, fields)


def _line(name: str, fields: dict[str, object]) -> str:
    return json.dumps({"time": round(time.time(), 3), "event": name, **fields}, default=str)
