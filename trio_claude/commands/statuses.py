"""The exit statuses of all commands, once; docs/commands.md shows them.

They are part of the contract: a script that calls a command decides by them. Nothing else may be given to `sys.exit`.
"""

from __future__ import annotations

import enum
from typing import Final


class Status(enum.IntEnum):
    """How a command ended. From 64 to 78 they mean what they do in sysexits(3), above 128 it was a signal."""

    OK = 0
    FAILED = 1
    REFUSED = 2
    UNREACHABLE = 69
    LATER = 75
    INTERRUPTED = 130
    TERMINATED = 143


MEANINGS: Final[dict[Status, str]] = {
    Status.OK: "it is done",
    Status.FAILED: "a run, a task or a check came to a bad end, or the output could not be written",
    Status.REFUSED: "an option, setting, file or message can't be used; nothing was run",
    Status.UNREACHABLE: "no server answers at the address, or it lets nobody in without a good key",
    Status.LATER: "the server is full or going down; the same may work later",
    Status.INTERRUPTED: "ended by SIGINT (Ctrl-C); what was going on has been ended too",
    Status.TERMINATED: "ended by SIGTERM; what was going on has been ended too",
}
_ALWAYS: Final[tuple[Status, ...]] = (Status.OK, Status.FAILED, Status.REFUSED, Status.INTERRUPTED)
STATUSES: Final[dict[str, tuple[Status, ...]]] = {
    "ask": (*_ALWAYS, Status.UNREACHABLE, Status.LATER),
    "batch": (*_ALWAYS, Status.TERMINATED),
    "chat": (*_ALWAYS, Status.UNREACHABLE, Status.LATER),
    "completion": _ALWAYS,
    "demo": _ALWAYS,
    "doctor": _ALWAYS,
    "keys": _ALWAYS,
    "runs": (*_ALWAYS, Status.UNREACHABLE),
    "serve": _ALWAYS,
    "usage": (*_ALWAYS, Status.UNREACHABLE),
}
"""Which command may end how."""
BY_CLOSE_CODE: Final[dict[int, Status]] = {
    1000: Status.OK,
    1008: Status.REFUSED,
    1009: Status.REFUSED,
    1012: Status.LATER,
    1013: Status.LATER,
}
"""What a server's close means to `ask` and `chat`; every other one is FAILED."""


def by_close(code: int, error: str | None) -> Status:
    """Return what a close code means, and the server's error beside it: somebody else may have ended the run."""
    return Status.FAILED if code == 1000 and error else BY_CLOSE_CODE.get(code, Status.FAILED)
