"""Process trees: start one contained, signal it, prove it gone.

Duty: nothing that descends from a run outlives it, and the receipt says what was counted. The strengths share one
interface (`base`); the strongest that works here is found when a server starts. No other room starts or ends a process.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from ..errors import ContainmentUnavailable
from ..events import ContainmentReady, Observer
from .base import MARK, Contained, Containment, Job
from .marks import kill as kill_marked

if TYPE_CHECKING:
    from .sandbox import Sandbox

__all__ = ["MARK", "Contained", "Containment", "Job", "kill_marked", "open_containment"]


@asynccontextmanager
async def open_containment(
    mode: str, observer: Observer, *, read: tuple[str, ...] = (), network: bool = True
) -> AsyncIterator[Containment]:
    """Open the containment that `mode` names, or with "auto" the strongest that works here.

    "auto" never takes a sandbox, which must be told what a run may `read` and whether it has the `network`. Raises
    `ContainmentUnavailable` where a named mode can't be had.
    """
    if mode == "group" or (mode == "auto" and sys.platform != "linux"):
        from .group import GroupContainment

        observer(ContainmentReady(GroupContainment.mode, GroupContainment.detail))
        yield GroupContainment()
        return
    if sys.platform != "linux":
        raise ContainmentUnavailable(f"containment {mode!r} needs Linux; this is {sys.platform}")
    from .supervisor import SupervisorContainment

    sandbox = _sandbox(read, network=network) if mode == "sandbox" else None
    async with SupervisorContainment.open(observer, "namespace" if mode == "auto" else mode, sandbox) as containment:
        if (why := await containment.probe()) and mode != "auto":
            raise ContainmentUnavailable(f"containment {mode!r} can't be had here: {why}")
        if why:
            containment.weaken(why)
        observer(ContainmentReady(containment.mode, containment.detail))
        yield containment


def _sandbox(read: tuple[str, ...], *, network: bool) -> Sandbox:
    """Return the sandbox of every run. Raises `ContainmentUnavailable` without bubblewrap."""
    from .sandbox import Sandbox

    program = shutil.which("bwrap")
    if not program:
        raise ContainmentUnavailable("containment 'sandbox' needs bubblewrap: apt install bubblewrap")
    return Sandbox(program, read, network)
