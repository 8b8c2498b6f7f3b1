"""A control group for each run, as an addition to any other containment: limits, and a kill that is atomic.

Never alone: a process of the same user can move itself out. Rule: a group is made below one that was delegated to this
server, is named for its run, and is removed when the run is over.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import time
from pathlib import Path

import attrs

from ..errors import ContainmentUnavailable, SpawnFailed

PREFIX = "trio-claude-"
SWEEP = 1.0
"""Seconds in which what a dead server left in its groups has to end once it is killed."""


@attrs.frozen
class Cgroups:
    """Where runs get their groups, and what a run may use: bytes of memory and processes; 0 is no limit."""

    root: Path
    memory_max: int = 0
    pids_max: int = 0

    @classmethod
    def find(cls, place: str, memory_max: int = 0, pids_max: int = 0) -> Cgroups:
        """Return the groups below `place`, a folder of cgroup v2, or with "auto" below our own group.

        Raises `ContainmentUnavailable` where groups can't be made there, or a limit can't be set.
        """
        groups = cls(_own() if place == "auto" else Path(place), memory_max, pids_max)
        try:
            groups.remove(groups.make(f"probe-{secrets.token_hex(4)}"))
        except SpawnFailed as error:
            raise ContainmentUnavailable(f"cgroup {place!r} can't be had here: {error}") from error
        return groups

    def make(self, name: str) -> Path:
        """Make a group with its limits. Raises `SpawnFailed`."""
        group = self.root / f"{PREFIX}{name}"
        try:
            group.mkdir()
        except OSError as error:
            raise _unmade(error) from error
        try:
            for file, limit in (("memory.max", self.memory_max), ("pids.max", self.pids_max)):
                if limit:
                    (group / file).write_text(str(limit))
            (group / "cgroup.kill").stat()
        except OSError as error:
            self.remove(group)
            raise _unmade(error) from error
        return group

    def kill(self, group: Path) -> None:
        """Kill every process of a group, at once."""
        with contextlib.suppress(OSError):
            (group / "cgroup.kill").write_text("1")

    def remove(self, group: Path) -> None:
        """Remove a group that has no process left, with those that its run has made in it."""
        for place, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):
                Path(place).rmdir()

    def sweep(self, server: str) -> None:
        """Kill and remove the groups of a server that is dead; what takes longer to end is left. Blocks a moment."""
        groups = list(self.root.glob(f"{PREFIX}{server}-*"))
        for group in groups:
            self.kill(group)
        until = time.monotonic() + SWEEP
        for group in groups:
            with contextlib.suppress(OSError):
                _wait_empty(group, until)
            self.remove(group)


def _wait_empty(group: Path, until: float) -> None:
    """Wait until no process is left in a group or below it, which the kernel tells. Raises OSError."""
    with (group / "cgroup.events").open() as events:
        news = select.poll()
        news.register(events, select.POLLPRI)
        while "populated 1" in events.read() and (left := until - time.monotonic()) > 0:
            news.poll(left * 1000)
            events.seek(0)


def _unmade(error: OSError) -> SpawnFailed:
    return SpawnFailed(f"the run's cgroup can't be made: {error.strerror}: {error.filename}")


def _own() -> Path:
    """Return our own group's folder in the cgroup v2 hierarchy. Raises `ContainmentUnavailable` where there is none."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    places = [fields[1] for fields in mounts if fields[2] == "cgroup2"]
    groups = [line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")]
    if not places or not groups:
        raise ContainmentUnavailable("there is no cgroup v2 hierarchy here")
    return Path(places[0]) / groups[0].strip().lstrip("/")
