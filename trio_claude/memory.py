"""How much memory there is for runs: the machine's, or what the control groups leave of it that they are in.

These are this process's own, or, where runs have groups elsewhere, those.

This module must never fail for what a system does not tell: there it is the machine's.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

GROUPS = Path("/proc/self/cgroup")
"""Where the kernel says in which control groups this process is, one of each hierarchy a line."""
MOUNTS = Path("/proc/self/mounts")
"""Where it says at which folders these hierarchies are, as far as this process sees them."""


def available(groups: str = "") -> int:
    """Return the bytes of memory that runs can have, reckoned anew at each call.

    `groups` is the setting `cgroup`: a folder of cgroup v2 below which runs have groups, or none but our own.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_limits(_groups() if groups in ("", "auto") else [(Path(groups), "memory.max")])])


def _limits(groups: Iterable[tuple[Path, str]]) -> Iterator[int]:
    """Yield the limits of groups and of those above them, which hold for them, too: in a container, its own."""
    for folder, file in groups:
        for place in (folder, *folder.parents):
            with contextlib.suppress(OSError, ValueError):  # ValueError: `max`, which is no limit
                yield int((place / file).read_text())


def _groups() -> Iterator[tuple[Path, str]]:
    """Yield the folder of our group in each hierarchy that may limit memory, and the name of its limit's file."""
    ours = [line.split(":", 2) for line in _read(GROUPS) if line.count(":") > 1]
    for _, place, kind, options, *_ in (line.split(" ") for line in _read(MOUNTS) if line.count(" ") > 2):
        for number, controllers, group in ours:
            if kind == "cgroup2" and number == "0":
                yield Path(place, group.lstrip("/")), "memory.max"
            if kind == "cgroup" and "memory" in options.split(",") and "memory" in controllers.split(","):
                yield Path(place, group.lstrip("/")), "memory.limit_in_bytes"


def _read(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape").split("\n")  # a mount may have any name
    except OSError:
        return []
