"""What runs leave in their workspaces, copied out on request.

Rule 1: a workspace is the model's to write in: no link is followed, only plain files are read. Rule 2: what is copied
of one run is bounded, and where there was more that is said.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from .files import Unwritable

FILES: Final = 10_000
BYTES: Final = 1024 * 1024 * 1024
"""Files and bytes that are copied of one run, at most."""


class Artifacts:
    """Copies what a run has made or changed in `workspaces`/NAME to `folder`/RUN. Its methods block."""

    def __init__(self, workspaces: Path, folder: Path) -> None:
        self._workspaces = workspaces
        self._folder = folder

    @staticmethod
    def mark() -> int:
        """Return the moment from which on a change counts, in nanoseconds of the file system's clock."""
        return time.time_ns() - 20_000_000  # file systems stamp by a clock that ticks

    def collect(self, run: str, workspace: str, since: int) -> str | None:
        """Copy what has changed since; return what is missing, None where nothing is. Raises `Unwritable`."""
        target = self._folder / run
        shutil.rmtree(target, ignore_errors=True)
        files = size = 0
        try:
            for steps, folder, name, told in _changed(self._workspaces / workspace, since):
                files, size = files + 1, size + told.st_size
                if files > FILES or size > BYTES:
                    return f"artifacts: more than {FILES} files or {BYTES} bytes"
                place = target.joinpath(*steps)
                place.mkdir(parents=True, exist_ok=True)
                _copy(folder, name, place / name)
        except OSError as error:
            raise Unwritable(f"{target}: {error.strerror}") from error
        return None


def _changed(root: Path, since: int) -> Iterator[tuple[tuple[str, ...], int, str, os.stat_result]]:
    """Yield each plain file below `root` that has changed: the folders to it, a descriptor, its name, its facts."""
    if not root.is_dir():
        return
    for path, _, names, folder in os.fwalk(root, follow_symlinks=False):
        for name in names:
            told = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISREG(told.st_mode) and told.st_ctime_ns >= since:
                yield Path(path).relative_to(root).parts, folder, name, told


def _copy(folder: int, name: str, target: Path) -> None:
    source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    with open(source, "rb") as reader, target.open("wb") as writer:  # noqa: PTH123 - a descriptor
        shutil.copyfileobj(reader, writer)
