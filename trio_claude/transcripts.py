"""The transcripts that CLIs keep of their sessions, in the quarters of each identity: found, and removed.

Rule 1: a run can put links where it may write, so nothing is followed, and all is done by descriptors. Rule 2: what a
run names, dates and measures is not believed: a session is a UUID, what it takes are blocks of the disk, and when it
changed is the disk's own word (ctime). Rule 3: what may be in use is never tidied away: what is held, and what has
changed within the time that a session may last. The operator's own settings, where identities share them, are not
touched.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import re
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

import attrs

from .leftovers import remove_tree
from .quarters import CONFIG, open_folder, open_step

PROJECTS = "projects"
"""The folder below a CLI's configuration that holds a folder of transcripts for each working directory."""
SUFFIX = ".jsonl"
SESSION: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
"""What a session is called; a file of another name is no transcript."""
BLOCK: Final = 512
"""Bytes of what `st_blocks` counts."""
DEPTH: Final = 8
ENTRIES: Final = 10_000
"""How deep, and how much of, the folder beside a transcript is measured."""


@attrs.frozen
class Keep:
    """What is kept: so many days and bytes, of all identities together; 0 is no limit. `young` is in seconds."""

    days: float
    size: int
    young: float


@attrs.frozen
class Transcript:
    """One session's: whose folder and which project it is in, when it changed last, what it takes of the disk."""

    home: str
    project: str
    session: str
    changed: float
    size: int


def find(root: str, home: str | None = None) -> Iterator[Transcript]:
    """Yield the transcripts below the homes at `root`, or below one of them."""
    for one in [home] if home is not None else _names(root):
        for project in _names(root, one, CONFIG, PROJECTS):
            yield from _in_project(root, one, project)


def remove(root: str, transcript: Transcript, *, unchanged: bool = False) -> bool:
    """Remove one and what the CLI keeps beside it, with `unchanged` only as it was found; return whether it is gone."""
    place = (transcript.home, CONFIG, PROJECTS, transcript.project)
    with contextlib.suppress(OSError), open_folder(root, *place) as folder:
        name = transcript.session + SUFFIX
        told = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if unchanged and told.st_ctime != transcript.changed:
            return False
        remove_tree(Path(f"/proc/{os.getpid()}/fd/{folder}/{transcript.session}"))
        os.unlink(name, dir_fd=folder)
        return True
    return False


def touch(root: str, home: str, session: str) -> None:
    """Say that a session is used again, for whoever tidies."""
    for project in _names(root, home, CONFIG, PROJECTS):
        with contextlib.suppress(OSError), open_folder(root, home, CONFIG, PROJECTS, project) as place:
            os.utime(session + SUFFIX, dir_fd=place, follow_symlinks=False)


def tidy(root: str, keep: Keep, now: float, held: Collection[tuple[str, str]] = ()) -> int:
    """Remove what is not to be kept, the oldest first; return how many were removed.

    `held` are the sessions in use, each with its home.
    """
    found = sorted(find(root), key=lambda one: one.changed)
    free = [one for one in found if one.changed <= now - keep.young and (one.home, one.session) not in held]
    old = [one for one in free if keep.days and one.changed < now - keep.days * 86400]
    gone = set(old)
    many = _too_many([one for one in found if one not in gone], [one for one in free if one not in gone], keep.size)
    return sum(remove(root, one, unchanged=True) for one in [*old, *many])


def _too_many(found: list[Transcript], free: list[Transcript], size: int) -> Iterator[Transcript]:
    """Yield what of the `free` is to go, so that all take no more than `size`; both lists begin with the oldest.

    Whoever takes the most gives first, and who takes no more than an even share gives nothing: so nobody can have what
    is somebody else's removed.
    """
    total, taken, oldest = sum(one.size for one in found), dict[str, int](), dict[str, list[Transcript]]()
    for one in found:
        taken[one.home] = taken.get(one.home, 0) + one.size
    for one in reversed(free):
        oldest.setdefault(one.home, []).append(one)
    heap = [(-taken[home], home) for home in oldest]
    heapq.heapify(heap)
    while size and heap and total > size and -heap[0][0] * len(taken) > size:
        most, home = heapq.heappop(heap)
        one = oldest[home].pop()
        yield one
        total -= one.size
        if oldest[home]:
            heapq.heappush(heap, (most + one.size, home))


def _in_project(root: str, home: str, project: str) -> Iterator[Transcript]:
    with contextlib.suppress(OSError), open_folder(root, home, CONFIG, PROJECTS, project) as place:
        for name in os.listdir(place):  # noqa: PTH208 - by its descriptor
            session = name.removesuffix(SUFFIX)
            if session == name or not SESSION.fullmatch(session):
                continue
            with contextlib.suppress(OSError):
                told = os.stat(name, dir_fd=place, follow_symlinks=False)
                if stat.S_ISREG(told.st_mode):
                    beside = sum(itertools.islice(_sizes(place, session, DEPTH), ENTRIES))
                    yield Transcript(home, project, session, told.st_ctime, told.st_blocks * BLOCK + beside)


def _sizes(place: int, name: str, depth: int) -> Iterator[int]:
    """Yield what a folder takes of the disk, and all that is in it, so deep; nothing where it is none."""
    with contextlib.suppress(OSError), open_step(place, name) as folder, os.scandir(folder) as entries:
        yield os.fstat(folder).st_blocks * BLOCK
        for entry in entries:
            if depth and entry.is_dir(follow_symlinks=False):
                yield from _sizes(folder, entry.name, depth - 1)
            else:
                yield entry.stat(follow_symlinks=False).st_blocks * BLOCK


def _names(root: str, *steps: str) -> list[str]:
    """Return what is in a folder, nothing where it is none."""
    try:
        with open_folder(root, *steps) as folder:
            return os.listdir(folder)  # noqa: PTH208 - by its descriptor
    except OSError:
        return []
