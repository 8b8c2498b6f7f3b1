"""What runs leave in their workspaces, copied out on request.

Rule 1: a workspace is the model's to write in: no link is followed, only plain files are read, and nothing in it can
stop a batch. Rule 2: what is copied of one run is bounded. Rule 3: what was not copied is said. Rule 4: no folder is
written in or removed that no batch has made.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final, TypeAlias

from .files import Unwritable, make_folder, resolved

FILES: Final = 10_000
BYTES: Final = 1024 * 1024 * 1024
"""Files and bytes that are copied of one run, at most."""
DEPTH: Final = 64
"""Folders in folders that are looked into, at most."""
MADE: Final = ".made"
"""The folder that holds an empty folder for each one that batches have made beside it."""
_CHUNK: Final = 1024 * 1024
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_UNFIT: Final = (
    errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP,
)  # fmt: skip
"""What a name of the model's may be for the target; the target's own faults are others."""
_Steps: TypeAlias = tuple[str, ...]


class Artifacts:
    """Copies what a run has made or changed in `workspaces`/NAME to `folder`/RUN. Its methods block.

    `folder` must be empty, but with `force`, and apart from the workspaces; what an earlier batch has copied for a run
    of the same name is removed. Raises `Unwritable`.
    """

    def __init__(self, workspaces: Path, folder: Path, *, force: bool = False) -> None:
        ours, theirs = resolved(folder), resolved(workspaces)
        if ours.is_relative_to(theirs) or theirs.is_relative_to(ours):
            raise Unwritable(f"{folder}: artifacts must be apart from the workspaces in {workspaces}")
        make_folder(folder, force=force)
        self._workspaces = workspaces
        self._folder = folder

    def keep_off(self, runs: Iterable[str], *paths: Path) -> None:
        """Look, before anything runs, that no run's folder is another's, or holds one of these. Raises `Unwritable`."""
        folder = resolved(self._folder)
        places = ((resolved(path), path) for path in paths)
        inside = {place.relative_to(folder).parts[0]: path for place, path in places if folder in place.parents}
        for run in runs:
            self._check_ours(run)
            if path := inside.get(run):
                raise Unwritable(f"{path}: it is where the files of {run} go; --artifacts takes another folder")

    def _check_ours(self, run: str) -> None:
        target = self._folder / run
        if os.path.lexists(target) and not (self._folder / MADE / run).is_dir():
            raise Unwritable(f"{target}: no batch has made this, so it is kept; --artifacts takes another folder")

    @staticmethod
    def mark() -> int:
        """Return the moment from which on a change counts, in nanoseconds of the file system's clock."""
        return time.time_ns() - 20_000_000  # file systems stamp by a clock that ticks

    def collect(self, run: str, workspace: str, since: int) -> str:
        """Copy what has changed since; return what was copied, and what was not. Raises `Unwritable`."""
        self._check_ours(run)
        target = self._folder / run
        shutil.rmtree(target, ignore_errors=True)
        copying = _Copying(self._workspaces / workspace, target, self._folder / MADE / run, since)
        copying.run()
        return copying.told()


class _Copying:
    """One run's files on their way. Faults of the source are counted, those of the target are `Unwritable`."""

    def __init__(self, root: Path, target: Path, mark: Path, since: int) -> None:
        self._root = root
        self._target = target
        self._mark = mark
        self._since = since
        self._files = self._size = self._missed = 0
        self._full = False

    def told(self) -> str:
        """Return what it came to."""
        text = f"{self._files} file{'' if self._files == 1 else 's'}"
        if self._missed:
            text += f"; {self._missed} could not be read"
        return f"{text}; there is more than {FILES} files or {BYTES} bytes" if self._full else text

    def run(self) -> None:
        """Copy everything that has changed."""
        waiting: list[_Steps] = [()]
        while waiting and not self._full:
            steps = waiting.pop()
            try:
                self._look(steps, waiting)
            except FileNotFoundError:
                self._missed += bool(steps)  # without a workspace there is nothing to miss
            except OSError:
                self._missed += 1

    def _look(self, steps: _Steps, waiting: list[_Steps]) -> None:
        """Copy what has changed in one folder; those in it are left to `waiting`."""
        if len(steps) > DEPTH:
            self._missed += 1
            return
        with _opened(self._root, steps) as folder, os.scandir(folder) as entries:
            for entry in entries:
                if self._full:
                    return
                try:
                    self._see(folder, entry, steps, waiting)
                except OSError:
                    self._missed += 1

    def _see(self, folder: int, entry: os.DirEntry[str], steps: _Steps, waiting: list[_Steps]) -> None:
        told = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(told.st_mode):
            waiting.append((*steps, entry.name))
        elif stat.S_ISREG(told.st_mode) and told.st_ctime_ns >= self._since:
            source = os.open(entry.name, _FILE, dir_fd=folder)
            try:
                self._take(source, self._target.joinpath(*steps, entry.name))
            finally:
                os.close(source)

    def _take(self, source: int, target: Path) -> None:
        """Copy one file, as long as it is now: one that grows meanwhile takes no more. Raises OSError: not copied."""
        told = os.fstat(source)
        if not stat.S_ISREG(told.st_mode):
            return
        if self._files >= FILES or self._size + told.st_size > BYTES:
            self._full = True
            return
        with self._made(target) as writer:
            try:
                _copy(source, told.st_size, writer, target)
            except OSError:
                target.unlink(missing_ok=True)
                raise
        self._files += 1
        self._size += told.st_size

    def _made(self, path: Path) -> IO[bytes]:
        """Make a file of the target. Raises OSError where its name can't be had there, and `Unwritable`."""
        try:
            for folder in (self._mark, self._target):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unwritable(f"{self._target}: {error.strerror}") from error
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("xb", buffering=0)
        except OSError as error:
            if error.errno in _UNFIT:
                raise
            raise Unwritable(f"{self._target}: {error.strerror}") from error


def _copy(source: int, size: int, writer: IO[bytes], target: Path) -> None:
    """Copy at most `size` bytes. Raises OSError where they can't be read, `Unwritable` where they can't be written."""
    while size > 0 and (data := os.read(source, min(size, _CHUNK))):
        size -= len(data)
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[writer.write(rest) :]
            except OSError as error:
                raise Unwritable(f"{target}: {error.strerror}") from error


@contextmanager
def _opened(root: Path, steps: _Steps) -> Iterator[int]:
    """Open a folder below `root`, step by step, so that none of them is a link, and no path is too long."""
    folder = os.open(root, _FOLDER | os.O_NOFOLLOW)
    try:
        for step in steps:
            inner = os.open(step, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
        yield folder
    finally:
        os.close(folder)
