"""A server's folder for its runs, and what an earlier server left: found by its lock, ended by its mark, removed.

A server holds a lock on its folder for as long as it lives; a folder whose lock can be had is a dead server's. This
module must never touch a folder of another user or of a living server, nor a process without a dead server's mark.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

from .containment import kill_marked

PREFIX = "tcl-"
LOCK = "lock"
TMP_LIMIT = 60
"""Bytes of a run's TMPDIR: the CLI makes sockets below it, whose paths Linux takes to 107 bytes."""
SWEEPS = 100
"""Looks for a dead server's processes, some milliseconds apart, until one finds none."""


@attrs.frozen
class Home:
    """A server's folder, the id by which its runs are marked, and the ids of the dead servers that were found."""

    folder: Path
    server: str
    dead: tuple[str, ...]


@asynccontextmanager
async def open_home() -> AsyncIterator[Home]:
    """End and remove what dead servers left, then make a folder, lock it, and remove it in the end."""
    root = Path(_short_tmp())
    dead = tuple(await sweep(root))
    hidden = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=root))
    lock = os.open(hidden / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # before another server's sweep can see the folder
    folder = hidden.rename(root / hidden.name[1:])
    try:
        yield Home(folder, folder.name.removeprefix(PREFIX), dead)
    finally:
        with trio.CancelScope(shield=True):
            await remove(folder)
        os.close(lock)


async def sweep(root: Path) -> list[str]:
    """End the processes and remove the folders of servers that are dead; return these servers' ids."""
    swept = []
    for folder in root.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.lstat().st_uid == os.getuid() and not _locked(folder):
                swept.append(folder.name.removeprefix(PREFIX))
    for server in swept:
        for _ in range(SWEEPS):
            if not kill_marked(f"{server}:"):
                break
            await trio.sleep(0.005)
        await remove(root / f"{PREFIX}{server}")
    return swept


def _locked(folder: Path) -> bool:
    """Return whether a living server holds a folder. Raises OSError where it is none of ours."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _short_tmp() -> str:
    """Return the folder for temporary folders; /tmp where the system's own makes paths too long for sockets."""
    usual = tempfile.gettempdir()
    return usual if len(os.fsencode(usual)) + len("/tcl-xxxxxxxx/") + 12 <= TMP_LIMIT else "/tmp"  # noqa: S108


def remove_empty(folder: str) -> bool:
    """Remove a folder that holds at most an empty list of sessions; return whether it is gone."""
    with contextlib.suppress(OSError):
        os.rmdir(f"{folder}/sessions")
    try:
        os.rmdir(folder)
    except OSError:
        return False
    return True


async def remove(folder: Path) -> None:
    """Remove a folder and all that is in it, in a thread."""
    try:
        await trio.to_thread.run_sync(remove_tree, folder)
    except RuntimeError:  # no thread is to be had; better slow than left behind
        remove_tree(folder)


def remove_tree(folder: Path) -> None:
    """Remove a folder, also one that is nested deeper than Python goes; a link is not followed. Blocks."""
    with contextlib.suppress(RecursionError):
        shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        with contextlib.suppress(OSError):
            subprocess.run(["/bin/rm", "-rf", "--", str(folder)], check=False, stderr=subprocess.DEVNULL)
