"""Be `trio-claude`, and keep how many Trio tasks it has in the file that SOAK_TASKS names.

It changes nothing else of the program.
"""

from __future__ import annotations

import functools
import mmap
import os
import struct
import sys
from pathlib import Path

import trio

SIZE = struct.calcsize("q")


class Tally(trio.abc.Instrument):
    """Counts the tasks that live."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), SIZE)
        self._living = 0

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        """Count a task more."""
        self._count(1)

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        """Count a task less."""
        self._count(-1)

    def _count(self, change: int) -> None:
        self._living += change
        struct.pack_into("q", self._shared, 0, self._living)


if __name__ == "__main__":
    from trio_claude.__main__ import main

    trio.run = functools.partial(trio.run, instruments=[Tally(Path(os.environ["SOAK_TASKS"]))])
    sys.exit(main())
