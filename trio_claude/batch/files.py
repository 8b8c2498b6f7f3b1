"""The files of a batch: tasks in; results, lines and the manifest out.

This module must never write over a file unless it was told to, and never keep what was written from the disk: each
result is with the system when `write` returns. Writes are short, and go out in the caller's task.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, Self

from ..errors import TrioClaudeError
from ..messages import compact
from .tasks import FILE_LIMIT, BadTasks


class Unwritable(TrioClaudeError):
    """A file can't be made or written, as on a full disk; the text names it."""


def read_tasks(path: str) -> bytes:
    """Return the bytes of a file of tasks; `-` is standard input. Raises `BadTasks`."""
    try:
        if path == "-":
            data = sys.stdin.buffer.read(FILE_LIMIT + 1)
        else:
            with Path(path).open("rb") as file:
                data = file.read(FILE_LIMIT + 1)
    except OSError as error:
        raise BadTasks(f"{path}: {error.strerror}") from error
    if len(data) > FILE_LIMIT:
        raise BadTasks(f"{path}: tasks must be at most {FILE_LIMIT} bytes")
    return data


def is_plain(path: Path) -> bool:
    """Whether something is a plain file, or nothing that could still become one: no pipe, no device."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True


def hold_pipe(path: Path) -> int | None:
    """Return a descriptor that holds a pipe open for writing, None while nobody reads it. Raises `Unwritable`."""
    try:
        return os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise Unwritable(f"{path}: {error.strerror}") from error


def ahead_of(out: Path) -> Path:
    """Return where results wait for those before them: beside the file of results, and there only meanwhile."""
    return beside(out, ".ahead")


def beside(out: Path, ending: str) -> Path:
    """Return a path beside a file; where a link leads to the file, beside what it leads to. Raises `Unwritable`."""
    real = resolved(out)
    place = out if real == out.absolute() else real
    return place.with_name(f"{place.name}{ending}")


def resolved(path: Path) -> Path:
    """Return where a path leads, links followed. Raises `Unwritable`."""
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # of links that lead round in a circle
        raise Unwritable(f"{path}: {error.strerror if isinstance(error, OSError) else 'a loop of links'}") from None


def write_whole(path: Path, lines: Iterable[bytes]) -> None:
    """Put a file in the place of another, whole or not at all; a link to it stays one. Raises `Unwritable`."""
    try:
        if is_plain(path):
            _replace(resolved(path), lines)
            return
        with path.open("wb") as file:
            file.writelines(lines)
    except OSError as error:
        raise Unwritable(f"{path}: {error.strerror}") from error


def check_whole(path: Path) -> None:
    """Look, before anything is lost, whether `write_whole` can put a file there. Raises `Unwritable`."""
    if not is_plain(path):
        return
    try:
        new, descriptor = _new(resolved(path))
        os.close(descriptor)
        new.unlink()
    except OSError as error:
        raise Unwritable(f"{path}: {error.strerror}") from error


def _new(path: Path) -> tuple[Path, int]:
    """Return an empty file that may take the place of another, beside it, and its descriptor. Raises OSError."""
    new = path.with_name(f"{path.name}.{secrets.token_hex(8)}.new")
    return new, os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def sweep(path: Path) -> None:
    """Remove what a killed batch has left of a file that was to take the place of this one."""
    if not is_plain(path):
        return
    real = resolved(path)
    left = re.compile(rf"{re.escape(real.name)}\.[0-9a-f]{{16}}\.new")
    with contextlib.suppress(OSError):  # it does no harm but for its size
        for new in [entry for entry in real.parent.iterdir() if left.fullmatch(entry.name)]:
            new.unlink()


def _replace(path: Path, lines: Iterable[bytes]) -> None:
    new, descriptor = _new(path)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
            if path.exists():
                os.fchmod(descriptor, stat.S_IMODE(path.stat().st_mode))
            file.writelines(lines)
            file.flush()
            os.fsync(descriptor)
        new.replace(path)
    except BaseException:  # interrupted too: nothing is left beside the file; raised again
        new.unlink(missing_ok=True)
        raise


def check_free(*paths: Path, locks: Iterable[Path], keep: str, force: bool) -> None:
    """Look, before anything runs, whether `paths` can be made without loss, by whichever way they are named.

    `locks` are the files that are locked meanwhile, `keep` that of the tasks. Raises `Unwritable`.
    """
    taken = {resolved(lock): lock for lock in locks}
    for path in paths:
        if (place := resolved(path)) in taken and is_plain(path):  # a terminal may be two things
            raise Unwritable(f"{taken[place]} is named for two things")
        taken[place] = path
    for path in paths:
        try:
            path.stat()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise Unwritable(f"{path}: {error.strerror}") from error
        if keep != "-" and path.samefile(keep):
            raise Unwritable(f"{path} is the file of tasks")
        if not force:
            raise _exists(path)


def _exists(path: Path) -> Unwritable:
    return Unwritable(f"{path} exists; --force writes over it")


class OutFile:
    """A file that grows by whole records.

    Resource handling: owns the descriptor until `close`. Error handling: raises `Unwritable`, which names the file.
    """

    def __init__(self, path: Path, *, force: bool, keep: bool = False) -> None:
        self._path = path
        self._file: IO[bytes] = _open(path, force=force, keep=keep)

    def write(self, data: bytes) -> None:
        """Append `data`, all of it; or none of it, but where somebody reads a pipe or a device."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._file.seek(len(rest) - len(data), os.SEEK_END))
            raise Unwritable(f"{self._path}: {error.strerror}") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open(path: Path, *, force: bool, keep: bool) -> IO[bytes]:
    """Open a file to append to, empty or, with `keep`, as it is. Raises `Unwritable`."""
    if not is_plain(path):
        return _open_stream(path, force=force)
    try:
        if not keep:
            path.open("wb" if force else "xb").close()
        return path.open("ab", buffering=0)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        raise Unwritable(f"{path}: {error.strerror}") from error


def _open_stream(path: Path, *, force: bool) -> IO[bytes]:
    """Open a pipe or a device, once: who reads a pipe takes its closing for the end. Raises `Unwritable`."""
    if not force:
        raise _exists(path)
    try:
        return path.open("wb", buffering=0)
    except OSError as error:
        raise Unwritable(f"{path}: {error.strerror}") from error


class ResultsFile(OutFile):
    """A file of results; those that wait for others are kept beside it, so that a kill loses none.

    Beside a pipe or a device nothing is kept.
    """

    def __init__(self, path: Path, *, force: bool, resume: bool = False) -> None:
        super().__init__(path, force=force, keep=resume)
        self._aside = ahead_of(path) if is_plain(path) else None
        self._ahead: OutFile | None = None
        if not resume:
            self.drop()  # of another batch

    def keep(self, data: bytes) -> None:
        """Take a result that waits for others. Raises `Unwritable`."""
        if self._aside is None:
            return
        if self._ahead is None:
            self._ahead = OutFile(self._aside, force=True)
        self._ahead.write(data)

    def drop(self) -> None:
        """Forget what waited: it is all out. Raises `Unwritable`."""
        if self._ahead:
            self._ahead.close()
            self._ahead = None
        if self._aside:
            remove(self._aside)

    def close(self) -> None:
        """Close the files; what waited stays where it is."""
        super().close()
        if self._ahead:
            self._ahead.close()


def remove(path: Path) -> None:
    """Remove a file, if it is there. Raises `Unwritable`."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise Unwritable(f"{path}: {error.strerror}") from error


def make_folder(folder: Path, *, force: bool) -> None:
    """Make a folder; one that is there must be empty, but with `force`. Raises `Unwritable`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not force and any(folder.iterdir()):
            raise Unwritable(f"{folder} is not empty; --force writes over what is there")
    except OSError as error:
        raise Unwritable(f"{folder}: {error.strerror}") from error


class LinesFolder:
    """A folder that takes each run's lines, in a file of its own."""

    def __init__(self, folder: Path, *, force: bool) -> None:
        self._folder = folder
        make_folder(folder, force=force)

    def keep_off(self, runs: Iterable[str], *paths: Path) -> None:
        """Look, before anything runs, whether no run's lines go where one of `paths` is. Raises `Unwritable`."""
        folder = resolved(self._folder)
        ours = {place.name: path for path in paths if (place := resolved(path)).parent == folder}
        for name in runs if ours else ():
            if path := ours.get(_lines_of(name)):
                raise Unwritable(f"{path}: the lines of {name} would be written over it; --lines takes another folder")

    def open(self, name: str) -> OutFile:
        """Open the file of the run `name`, empty: of several attempts the last one's lines are kept."""
        return OutFile(self._folder / _lines_of(name), force=True)


def _lines_of(name: str) -> str:
    return f"{name}.jsonl"


def rendered(manifest: dict[str, Any]) -> bytes:
    """Return a manifest as one line of JSON."""
    return compact(manifest).encode("utf-8", "replace") + b"\n"
