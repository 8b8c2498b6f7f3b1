"""What a command does to its own process before it runs CLIs; a program that embeds the package keeps its own ways."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys

PR_SET_DUMPABLE = 4


def take_process() -> None:
    """Prepare this process for runs: it is ours alone."""
    _raise_descriptor_limit()
    _hide_memory()
    _spare_imports()


def _raise_descriptor_limit() -> None:
    """Take as many descriptors as the system gives us; the process is ours."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _spare_imports() -> None:
    """Let the garbage collector pass over what was imported: a look at all of it stops every connection."""
    gc.freeze()


def _hide_memory() -> None:
    """Keep processes of the same user, a run's among them, from reading this one's memory, environment and files."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
