"""The files of a batch: tasks in; results, lines and the manifest out.

This module must never write over a file unless it was told to, and never keep what was written from the disk: each
result is with the system when `write` returns. Writes are short, and go out in the caller's task.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import IO, Any

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


def check_free(*paths: Path, keep: str, force: bool) -> None:
    """Look, before anything runs, whether `paths` can be made without loss. `keep` is the file of tasks.

    Raises `Unwritable`.
    """
    if len({path.absolute() for path in paths}) < len(paths):
        raise Unwritable(f"{paths[0]} is named for two things")
    for path in paths:
        if not path.exists():
            continue
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

    def __init__(self, path: Path, *, force: bool) -> None:
        self._path = path
        self._file: IO[bytes] = _open(path, force=force)

    def write(self, data: bytes) -> None:
        """Append `data`, all of it."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise Unwritable(f"{self._path}: {error.strerror}") from error

    def replace(self, data: bytes) -> None:
        """Put `data` in the place of all that was written."""
        try:
            self._file.truncate(0)
        except OSError as error:
            raise Unwritable(f"{self._path}: {error.strerror}") from error
        self.write(data)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> OutFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open(path: Path, *, force: bool) -> IO[bytes]:
    """Open a file to append to, empty. Raises `Unwritable`."""
    try:
        if force:
            path.open("wb").close()
        else:
            path.open("xb").close()
        return path.open("ab", buffering=0)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        raise Unwritable(f"{path}: {error.strerror}") from error


class LinesFolder:
    """A folder that takes each run's lines, in a file of its own."""

    def __init__(self, folder: Path, *, force: bool) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not force and any(folder.iterdir()):
                raise Unwritable(f"{folder} is not empty; --force writes over what is there")
        except OSError as error:
            raise Unwritable(f"{folder}: {error.strerror}") from error

    def open(self, name: str) -> OutFile:
        """Open the file of the run `name`, empty: of several attempts the last one's lines are kept."""
        return OutFile(self._folder / f"{name}.jsonl", force=True)


def rendered(manifest: dict[str, Any]) -> bytes:
    """Return a manifest as one line of JSON."""
    return compact(manifest).encode("utf-8", "replace") + b"\n"
