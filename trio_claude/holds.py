"""CLI sessions in use, for other servers on the same state folder to see: each is a locked byte of one file there.

Rule 1: the locks are the system's, of the open file: they end with the process that has them, however that ends. Rule
2: where the file can't be had, or the system has no such locks, runs go on without: then a server knows its own alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from .errors import SessionBusy

NAME: Final = "sessions.lock"
"""The file in the state folder."""
_FLOCK: Final = struct.Struct("hhqqi0q")
"""C's `struct flock`: type, whence, start, length, pid."""
_SET: Final = getattr(fcntl, "F_OFD_SETLK", -1)
_ASK: Final = getattr(fcntl, "F_OFD_GETLK", -1)
_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW


class Holds:
    """The sessions in use on the state folder `state`. Resource handling: `close` lets go of all."""

    def __init__(self, state: Path) -> None:
        self._path = state / NAME
        self._file: int | None = None

    @contextmanager
    def hold(self, session: str, who: str) -> Iterator[None]:
        """Hold a session of `who` for a run. Raises `SessionBusy` where another server has it."""
        if (file := self._opened()) is None:
            yield
            return
        try:
            _lock(file, fcntl.F_WRLCK, session, who)
        except BlockingIOError:
            raise SessionBusy(f"resume: session {session} is in use by another run, of another server") from None
        try:
            yield
        finally:
            _lock(file, fcntl.F_UNLCK, session, who)

    def has(self, session: str, who: str) -> bool:
        """Return whether any server, this one too, has a session of `who` in use. Any thread may call it."""
        with contextlib.suppress(OSError):
            file = os.open(self._path, os.O_RDONLY | _FLAGS)
            try:
                told = fcntl.fcntl(file, _ASK, _packed(fcntl.F_WRLCK, session, who))
            finally:
                os.close(file)
            return bool(_FLOCK.unpack(told)[0] != fcntl.F_UNLCK)
        return False

    def close(self) -> None:
        """Let go of all."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _opened(self) -> int | None:
        """Return the file, None where it can't be had."""
        if self._file is None:
            with contextlib.suppress(OSError):
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
        return self._file


def _lock(file: int, kind: int, session: str, who: str) -> None:
    """Lock a session, or let go of it. Raises BlockingIOError where another has it."""
    try:
        fcntl.fcntl(file, _SET, _packed(kind, session, who))
    except BlockingIOError:
        raise
    except OSError:  # rule 2
        return


def _packed(kind: int, session: str, who: str) -> bytes:
    """Return what is asked of the system: the byte of a session is chosen by its hash, far beyond the file's end."""
    digest = hashlib.sha256(f"{len(who)} {who} {session}".encode("utf-8", "surrogatepass")).digest()
    return _FLOCK.pack(kind, os.SEEK_SET, int.from_bytes(digest[:8]) >> 2, 1, 0)
