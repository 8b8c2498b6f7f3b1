"""Processes known by the mark in their environment: the last resort where no guardian can prove anything.

A mark can be cleared by a descendant, so what is found here is ended, but what is not found proves nothing. This
module must never end a process by its name or its parent alone.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from .base import MARK

PROC = Path("/proc")
"""Where the system shows processes, if it does."""


def shows_us() -> bool:
    """Return whether there is a /proc that numbers processes as we do; that of another PID namespace does not."""
    try:
        return str((PROC / "self").readlink()) == str(os.getpid())
    except OSError:
        return False


def find(prefix: str) -> set[int]:
    """Return the processes of this user, but ourselves, whose mark begins with `prefix`; none where none is shown."""
    if not shows_us():
        return set()
    wanted = f"{MARK}={prefix}".encode()
    entries = (entry for entry in PROC.iterdir() if entry.name.isdigit() and _bears(entry, wanted))
    return {int(entry.name) for entry in entries} - {os.getpid()}


def kill(prefix: str) -> set[int]:
    """Send SIGKILL to the processes that `find` finds; return those that took it: also who is dying still."""
    return {pid for pid in find(prefix) if _kill(pid)}


def _bears(entry: Path, wanted: bytes) -> bool:
    try:
        variables = (entry / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(variable.startswith(wanted) for variable in variables)


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        return False
    return True
