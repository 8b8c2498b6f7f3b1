"""The load client as Python sees it: started with its words, heard event by event, and always ended.

It must never wait without a bound.
"""

from __future__ import annotations

import json
import select
import subprocess
import time
from types import TracebackType
from typing import Any, Self

from .subject import Subject

LATE = 10.0
"""Seconds beyond the client's own limit after which it is taken for lost."""


class Lost(Exception):
    """The load client did not say what it should, or connections failed; the text says which."""


class Load:
    """A running load client; `event` and `end` read what it says."""

    def __init__(self, subject: Subject, *, limit: float = 60.0, **words: object) -> None:
        asked = {"port": subject.port, "path": subject.peer.path, "limit": limit, **words}
        self._until = time.monotonic() + limit + LATE
        self._process = subprocess.Popen(
            [str(subject.native.load), *(f"{name}={value}" for name, value in asked.items())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
        )  # fmt: skip
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def poll(self, seconds: float) -> dict[str, Any] | None:
        """Return the next event, or None if there is none in so many seconds."""
        assert self._process.stdout
        until = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                return None
            if not (chunk := self._process.stdout.read(65536)):
                raise Lost("the load client ended early")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        event: dict[str, Any] = json.loads(line)
        return event

    def event(self, name: str) -> dict[str, Any]:
        """Wait for an event of this name. Raises Lost if the client ends before it."""
        while event := self.poll(self._until - time.monotonic()):
            if event["event"] == name:
                return event
            if event["event"] == "end":
                raise Lost(f"ended before {name}: {why(event)}")
        raise Lost(f"no {name} in time")

    def look(self) -> dict[str, Any]:
        """Ask how many lines there are by now; latencies count no longer."""
        self._say(b"look\n")
        return self.event("looked")

    def clear(self) -> dict[str, Any]:
        """Let latencies count from now on; return how many lines there are by now."""
        self._say(b"clear\n")
        return self.event("cleared")

    def leave(self) -> dict[str, Any]:
        """Let all clients leave; return the end."""
        self._say(b"leave\n")
        return self.event("end")

    def end(self) -> dict[str, Any]:
        """Wait for the end. Raises Lost where a connection failed or the time was up."""
        event = self.event("end")
        if event["failed"] or event["gave_up"]:
            raise Lost(why(event))
        return event

    def _say(self, word: bytes) -> None:
        assert self._process.stdin
        self._process.stdin.write(word)


def why(event: dict[str, Any]) -> str:
    """Return what went wrong by the client's end."""
    late = ", time was up" if event["gave_up"] else ""
    return (
        f"{event['failed']} connections failed{late}, {event['lines']} lines, codes {event['codes']}, {event['note']}"
    )
