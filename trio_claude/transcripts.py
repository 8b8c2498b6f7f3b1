"""The transcripts that CLIs keep of their sessions, in the quarters of each identity: found, and removed.

Rule 1: a run can put links where it may write, so nothing is followed, and all is done by descriptors. Rule 2: what may
be in use is never removed: what has changed within the time that a session may last. The operator's own settings, where
identities share them, are not touched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator

import attrs

from .quarters import CONFIG, open_folder

PROJECTS = "projects"
"""The folder below a CLI's configuration that holds a folder of transcripts for each working directory."""
SUFFIX = ".jsonl"


@attrs.frozen
class Keep:
    """What is kept: so many days and bytes, of all identities together; 0 is no limit. `young` is in seconds."""

    days: float
    size: int
    young: float


@attrs.frozen
class Transcript:
    """One session's file: whose folder and which project it is in, when it changed last, and its bytes."""

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


def remove(root: str, transcript: Transcript) -> None:
    """Remove one, and what the CLI keeps beside it. What is gone already is no error."""
    with (
        contextlib.suppress(OSError),
        open_folder(root, transcript.home, CONFIG, PROJECTS, transcript.project) as place,
    ):
        os.unlink(transcript.session + SUFFIX, dir_fd=place)
        shutil.rmtree(transcript.session, ignore_errors=True, dir_fd=place)


def tidy(root: str, keep: Keep, now: float) -> int:
    """Remove what is not to be kept, the oldest first; return how many were removed."""
    found = sorted(find(root), key=lambda one: one.changed)
    total, removed = sum(one.size for one in found), 0
    for one in found:
        old = keep.days and one.changed < now - keep.days * 86400
        if one.changed > now - keep.young or not (old or (keep.size and total > keep.size)):
            continue
        remove(root, one)
        total, removed = total - one.size, removed + 1
    return removed


def _in_project(root: str, home: str, project: str) -> Iterator[Transcript]:
    with contextlib.suppress(OSError), open_folder(root, home, CONFIG, PROJECTS, project) as place:
        for name in os.listdir(place):  # noqa: PTH208 - by its descriptor
            with contextlib.suppress(OSError):
                told = os.stat(name, dir_fd=place, follow_symlinks=False)
                if name.endswith(SUFFIX) and stat.S_ISREG(told.st_mode):
                    yield Transcript(home, project, name.removesuffix(SUFFIX), told.st_mtime, told.st_size)


def _names(root: str, *steps: str) -> list[str]:
    """Return what is in a folder, nothing where it is none."""
    try:
        with open_folder(root, *steps) as folder:
            return os.listdir(folder)  # noqa: PTH208 - by its descriptor
    except OSError:
        return []
