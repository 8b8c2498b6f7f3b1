"""Carry lines in and out, and signals in: the one place that reads stdin and writes stdout and stderr.

Rule 1: nothing here knows what a line means. Rule 2: no line is ever torn by a signal: only `Wire.poll` raises; but who
is signalled while blocked in a write gets `FLUSH_SECONDS`, then exits there, as the real CLI does.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time

from ..model import Json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


LIFE_SECONDS = 3600
"""No fake lives longer, whatever it was told: one that ignores everything must not stay for ever."""
FLUSH_SECONDS = 2.07
"""How long a signalled CLI tries to get rid of what it has to say (measured)."""
READ_BYTES = 2**20


class FatalError(Exception):
    """The CLI cannot start, or not go on: its text goes to stderr, the exit status is 1."""


class Ended(Exception):
    """The CLI is to exit now."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status: int = status


class Interrupted(Exception):
    """The turn is to end now: by a control request or by SIGINT."""


def new_uuid() -> str:
    """Return a random UUID, without the import."""
    digits = os.urandom(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"


def write_all(data: bytes, fd: int = 1) -> None:
    """Write all of it; a reader that is gone is ignored, as the real CLI does."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])
        except OSError:
            return


def write_stderr(text: str) -> None:
    """Write one line to stderr."""
    write_all(f"{text}\n".encode("utf-8", "backslashreplace"), 2)


def write_line(line: Json) -> None:
    """Write a line as the CLI does: non-ASCII raw, but no character that some readers take for a newline."""
    text = json.dumps(line, ensure_ascii=False, separators=(",", ":"))
    text = text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    write_all(text.encode("utf-8", "backslashreplace") + b"\n")


class Wire:
    """What comes in: stdin's lines, given to `receive`, and signals."""

    def __init__(self, receive: Callable[[bytes], None]) -> None:
        self.eof: bool = False
        self.deaf: bool = False
        self.stubborn: bool = False
        """Whether SIGTERM and SIGINT are ignored."""
        self.interrupt: bool = False
        self.signal: int = 0
        self._receive = receive
        self._unread: list[bytes] = []
        self._wakeup, self._waker = os.pipe()
        self._catch_signals()

    def _catch_signals(self) -> None:
        for fd in (self._wakeup, self._waker):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, self._note)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # it wakes `poll`
        signal.signal(signal.SIGALRM, lambda *_: os._exit(self.exit_status))
        signal.setitimer(signal.ITIMER_REAL, LIFE_SECONDS)

    def _note(self, number: int, _frame: object) -> None:
        if not (self.stubborn and number in (signal.SIGTERM, signal.SIGINT)):
            self.signal = number
            signal.setitimer(signal.ITIMER_REAL, FLUSH_SECONDS)

    @property
    def exit_status(self) -> int:
        """How the real CLI exits on the signal that came."""
        return 0 if self.signal == signal.SIGINT else 128 + (self.signal or signal.SIGALRM)

    def wait(self, seconds: float, until: Callable[[], object] = lambda: False) -> None:
        """Let that much time pass, or less if `until` comes true; raise as `poll` does."""
        deadline = time.monotonic() + seconds
        self.poll(0)
        while not until() and (left := deadline - time.monotonic()) > 0:
            self.poll(min(left, LIFE_SECONDS))

    def poll(self, timeout: float) -> None:
        """Take in what has come, and raise `Ended` or `Interrupted` if that follows from it."""
        sources = [self._wakeup] if self.eof or self.deaf else [self._wakeup, 0]
        ready = select.select(sources, [], [], timeout)[0]
        if self._wakeup in ready:
            os.read(self._wakeup, 4096)
        if 0 in ready:
            self._read()
        if self.signal in (signal.SIGTERM, signal.SIGHUP):
            raise Ended(self.exit_status)
        if self.signal == signal.SIGINT or self.interrupt:
            self.interrupt = False
            raise Interrupted

    def _read(self) -> None:
        data = os.read(0, READ_BYTES)
        self.eof = not data
        whole, found, rest = data.rpartition(b"\n")
        if found or self.eof:
            whole = b"".join([*self._unread, whole])
            self._unread = []
            for line in whole.split(b"\n"):
                self._receive(line)
        self._unread.append(rest)
