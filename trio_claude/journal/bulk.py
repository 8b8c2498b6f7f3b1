"""Large parts of histories: each run's in a file of its own, in a folder beside the SQLite file. Blocking.

SQLite copies a large value four times on its way to the disk; here the kernel copies it once. What a part is, and
whether it counts, stands in the tables alone: bytes that no row names are nobody's, and a row is written behind its
bytes. Never here: a row.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sqlite3
import time
from pathlib import Path
from typing import Final

from .facts import Text

LEAST: Final = 64 * 1024
"""Bytes from which on a part is large."""
AT_ONCE: Final = 512
"""Texts that one call of the system writes; Linux takes up to 1,024."""
PORTION: Final = 512 * 1024
"""Bytes that one such call is given, about: the kernel may copy them without letting another have the processor."""
ROOM: Final = (4 * 1024 * 1024, 64 * 1024 * 1024)
"""Bytes for which the disk keeps room behind what a run has said: as much again, within these.

A file whose blocks are its own already takes a write for a quarter less.
"""
SPARE: Final = 1024 * 1024 * 1024
"""Bytes that are free on a disk that keeps room."""
OPEN: Final = 32
"""Files that are held open."""
FORGOTTEN: Final = 3600.0
"""Seconds after its last change in which a file that no run has may still be one that a server is about to name."""
FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW
KEEP_SIZE: Final = 1
"""fallocate(2): the file does not get longer by it."""
_fallocate = getattr(ctypes.CDLL(None), "fallocate", None)
if _fallocate:
    _fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def folder_of(path: Path) -> Path:
    """Return the folder that belongs to a journal's file."""
    return path.with_name(f"{path.name}.lines")


class Bulk:
    """The folder, in the hands of one thread at a time.

    Resource handling: holds up to `OPEN` files until `close`. Error handling: raises OSError, and leaves nothing of a
    part that was not written whole, or what is written over; `forget` is for what can't be had back anyway, and raises
    nothing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, int] = {}
        self._ends: dict[str, int] = {}
        """Where in the files that are held open the next text goes: nobody else writes to them."""
        self._rooms: dict[str, int] = {}
        """Up to where the disk was asked to keep room for them."""
        self._unsynced: set[str] = set()

    def write(self, run: str, texts: list[Text], *, behind: int | None = None) -> int:
        """Write texts of a part; return their place: behind all that the file has.

        With `behind` they follow on what ends there, whatever else a write that failed may have left there.
        """
        file = self._open(run)
        place = self._ends[run] if behind is None else behind
        self._unsynced.add(run)
        size = sum(map(len, texts))
        step = max(1, min(AT_ONCE, PORTION * len(texts) // max(1, size)))
        self._keep_room(run, place + size)
        try:
            if place != self._ends[run]:
                os.lseek(file, place, os.SEEK_SET)
            for first in range(0, len(texts), step):
                _write_all(file, texts[first : first + step])
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(file, place)
            self.end(run)  # how long it is now the disk tells
            raise
        self._ends[run] = place + size
        return place

    def end(self, run: str) -> None:
        """Close a run's file, if it is held open, without the room that was kept for more."""
        if run not in self._files:
            return
        file = self._files.pop(run)
        del self._ends[run]
        if self._rooms.pop(run, None):
            _give_back(file)
        os.close(file)

    def sync(self) -> None:
        """Have the disk hold what was written, and give back the room for more."""
        for run in list(self._unsynced):
            with contextlib.suppress(FileNotFoundError):  # deleted since
                os.fdatasync(self._open(run, os.O_WRONLY))
            self.end(run)
            self._unsynced.discard(run)

    def forget(self, runs: list[str]) -> None:
        """Delete the files of runs that are deleted."""
        for run in runs:
            self._unsynced.discard(run)
            self.end(run)
            remove(self._folder, run)

    def close(self) -> None:
        """Close all files."""
        for run in list(self._files):
            self.end(run)

    def _open(self, run: str, how: int = os.O_WRONLY | os.O_CREAT) -> int:
        """Return a run's file, and close the one that was opened first where there are too many."""
        if run not in self._files:
            if how & os.O_CREAT:
                self._folder.mkdir(mode=0o700, exist_ok=True)
            file = os.open(self._folder / run, how | FLAGS, 0o600)
            if len(self._files) >= OPEN:
                self.end(next(iter(self._files)))
            self._files[run], self._ends[run] = file, os.lseek(file, 0, os.SEEK_END)
        return self._files[run]

    def _keep_room(self, run: str, end: int) -> None:
        """Have the disk keep room for more than a file is going to have, if it can; the file gets no longer."""
        if not _fallocate or end <= self._rooms.get(run, 0):
            return
        file, (least, most) = self._files[run], ROOM
        self._rooms[run] = end + min(max(end, least), most)
        disk = os.fstatvfs(file)
        if disk.f_bavail * disk.f_frsize >= SPARE:
            _fallocate(file, KEEP_SIZE, self._ends[run], self._rooms[run] - self._ends[run])


def read(path: Path, run: str, place: int, size: int) -> bytes:
    """Return a part of a run's history. Raises sqlite3.DatabaseError where it is not there."""
    try:
        file = os.open(folder_of(path) / run, os.O_RDONLY | FLAGS)
        try:
            data = os.pread(file, size, place)
        finally:
            os.close(file)
    except OSError as error:
        raise sqlite3.DatabaseError(f"the lines of {run} can't be read: {error.strerror}") from None
    if len(data) < size:
        raise sqlite3.DatabaseError(f"the lines of {run} are damaged")
    return data


def trim(folder: Path, run: str) -> None:
    """Give back the room that was kept for a run of a server that is dead."""
    with contextlib.suppress(OSError):
        file = os.open(folder / run, os.O_WRONLY | FLAGS)
        _give_back(file)
        os.close(file)


def _give_back(file: int) -> None:
    """Give back the room behind a file's end."""
    with contextlib.suppress(OSError):
        os.ftruncate(file, os.fstat(file).st_size)


def remove(folder: Path, run: str) -> None:
    """Delete a run's file, if it has one and it can be deleted."""
    with contextlib.suppress(OSError):
        (folder / run).unlink()


def clean(db: sqlite3.Connection, folder: Path) -> None:
    """Delete the files of runs that are not in the tables any more: a server died between the two."""
    old = time.time() - FORGOTTEN
    with contextlib.suppress(OSError):
        for file in folder.iterdir():
            known = db.execute("SELECT 1 FROM runs WHERE id = ?", (file.name,)).fetchone()
            if not known and file.lstat().st_mtime < old:
                remove(folder, file.name)


def _write_all(file: int, pieces: list[Text]) -> None:
    """Write all of them, whatever one call takes."""
    written = os.writev(file, pieces)
    if written == sum(map(len, pieces)):
        return
    rest = memoryview(b"".join(pieces))[written:]
    while rest:
        rest = rest[os.write(file, rest) :]
