"""The thread that writes, behind a bounded queue: what nobody drains is dropped and counted, and blocks nobody."""

from __future__ import annotations

import bisect
import errno
import itertools
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from .lines import Entry, Line

PAUSE: Final = 0.01
"""Seconds in which lines gather before they are written: a thread that wakes for each would cost more than the line."""
IDLE: Final = 1.0
"""Seconds without a line after which it is asked what else there is to say."""
QUEUE_LIMIT: Final = 1000
"""Lines that wait for stderr; more are dropped and counted."""
_PASSING: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EAGAIN, errno.EIO)
"""Why stderr may take nothing for now: a disk that is full, a pipe that is and does not wait."""
_END: Final = Entry(0, 0, "", None, {})


class Writer:
    """Writes entries to stderr, rendered by `line`, which may be replaced; `when_idle` is called in its thread.

    Resource handling: owns a thread until `close`. Error handling: where stderr can't be written any more, it ends.
    """

    def __init__(self, line: Line, when_idle: Callable[[], None]) -> None:
        self.line: Line = line
        self._when_idle = when_idle
        self._entries: queue.SimpleQueue[Entry] = queue.SimpleQueue()  # the one whose `put` a destructor may call
        self._dropped = 0
        self._torn = False
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def put(self, entry: Entry) -> None:
        """Take an entry, or drop it where the queue is full."""
        if self._entries.qsize() < QUEUE_LIMIT:
            self._entries.put(entry)
        else:
            self._dropped += 1

    def close(self) -> None:
        """Write what waits, for at most a second."""
        self._entries.put(_END)
        self._thread.join(1)

    def _write(self) -> None:
        """Write what comes, all that has come in `PAUSE` seconds at a time."""
        while (entries := self._take())[-1] is not _END:
            if not self._put_out(entries):
                return
            time.sleep(PAUSE)
        self._put_out(entries[:-1])

    def _take(self) -> list[Entry]:
        """Wait for an entry; return it with those behind it, up to the end of all."""
        try:
            entries = [self._entries.get(timeout=IDLE)]
        except queue.Empty:
            self._when_idle()
            entries = [self._entries.get()]
        while entries[-1] is not _END:
            try:
                entries.append(self._entries.get_nowait())
            except queue.Empty:
                break
        return entries

    def _rendered(self, entry: Entry) -> str:
        try:
            return self.line(entry)
        except Exception as error:  # whatever is in one line, the others are written
            facts = {"line": entry.name, "error": type(error).__name__}
            return self.line(entry._replace(name="LogFailed", level=logging.ERROR, facts=facts, context={}))

    def _put_out(self, entries: Sequence[Entry]) -> bool:
        """Write entries at once; return whether that could be done."""
        dropped, self._dropped = self._dropped, 0
        more = [Entry(time.time(), logging.WARNING, "LogDropped", {"lines": dropped}, {})] if dropped else []
        encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
        data = [f"{self._rendered(entry)}\n".encode(encoding, "backslashreplace") for entry in [*entries, *more]]
        taken = 0
        try:
            for size in self._written(b"".join(data), encoding):
                taken += size
        except OSError as error:
            if error.errno not in _PASSING:
                return False
            whole = bisect.bisect_right(list(itertools.accumulate(map(len, data))), taken)
            lost = len(entries) - min(whole, len(entries))
            self._dropped += lost + (dropped if whole <= len(entries) else 0)
        except ValueError:
            return False
        return True

    def _written(self, data: bytes, encoding: str) -> Iterator[int]:
        """Write past the stream, which would keep what no disk takes; yield how much at a time is written."""
        try:
            descriptor = sys.stderr.fileno()
        except (OSError, ValueError):  # a stream of the program's own
            sys.stderr.write(data.decode(encoding))
            sys.stderr.flush()
            yield len(data)
            return
        if self._torn:  # half a line stands there; it ends where the next begins
            os.write(descriptor, b"\n")
        while data:
            taken = os.write(descriptor, data)
            self._torn = not data[:taken].endswith(b"\n")
            yield taken
            data = data[taken:]
