"""What a command does to its own process before it runs CLIs; a program that embeds the package keeps its own ways."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import signal
import sys
from typing import Final

import trio

PR_SET_DUMPABLE = 4
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_MEMORY: Final = 32 * 1024 * 1024
"""Freed bytes that stay with the process: what runs say comes and goes, and new memory costs a fault a page."""
KEPT_PIECE: Final = 2 * 1024 * 1024
"""Bytes from which on a piece of memory is the system's again as soon as it is freed."""
REAP_PERIOD: Final = 1.0
"""Seconds between two looks for children that nobody waits for."""
REAP_ROUNDS: Final = 10
"""Rounds of the loop between them, in which whoever waits for a child has its turn, also where the loop hung."""


def take_process() -> None:
    """Prepare this process for runs: it is ours alone."""
    _raise_descriptor_limit()
    _keep_statuses()
    _own_files()
    _hide_memory()
    _keep_memory()
    _spare_imports()


def _raise_descriptor_limit() -> None:
    """Take as many descriptors as the system gives us; the process is ours."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _keep_statuses() -> None:
    """Have the system keep for us how a child ended, though who started this process may want to hear of none."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _own_files() -> None:
    """Have what we make be ours to use, whatever mask this process was started with; others it may keep out."""
    os.umask(os.umask(0o077) & 0o077)


def _spare_imports() -> None:
    """Let the garbage collector pass over what was imported: a look at all of it stops every connection."""
    gc.freeze()


def _hide_memory() -> None:
    """Keep processes of the same user, a run's among them, from reading this one's memory, environment and files."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def _keep_memory() -> None:
    """Use freed memory again rather than give it back at once, where the C library can be told so."""
    with contextlib.suppress(AttributeError):  # musl has no such choice
        tune = ctypes.CDLL(None).mallopt
        tune(M_TRIM_THRESHOLD, KEPT_MEMORY)
        tune(M_MMAP_THRESHOLD, KEPT_PIECE)


async def reap_orphans() -> None:
    """Reap children that nobody waits for: the first process of a container is given the orphans of all others.

    Our own are reaped at once by whoever started them, so one that has ended at two looks is nobody's.
    """
    ended: set[int] = set()
    while True:
        await trio.sleep(REAP_PERIOD)
        for _ in range(REAP_ROUNDS):
            await trio.lowlevel.checkpoint()
        ended = _reap(ended)


def _reap(before: set[int]) -> set[int]:
    """Reap the children that had ended `before` and still wait; return those that have ended since."""
    from ..containment.guardian import children, state_of  # Linux only

    ended = {pid for pid in children(os.getpid()) if state_of(pid)[:1] == ["Z"]}
    for pid in before & ended:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return ended - before
