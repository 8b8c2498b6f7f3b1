"""Process trees: start one contained, signal it, prove it gone.

Duty: nothing that descends from a run outlives it, and the receipt says what was counted. The strengths share one
interface (`base`); the strongest that works here is found when a server starts. No other room starts or ends a process.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import attrs

from ..errors import ContainmentUnavailable
from ..events import ContainmentReady, Observer
from .base import FOLDERS, MARK, BrokenStart, Contained, Containment, Job
from .cgroup import Cgroups
from .marks import kill as kill_marked
from .pipes import PipeReader
from .pump import Pump

if TYPE_CHECKING:
    from .sandbox import Sandbox
    from .supervisor import SupervisorContainment

__all__ = [
    "FOLDERS", "MARK", "BrokenStart", "Contained", "Containment", "Job", "Means", "PipeReader", "Pump", "kill_marked",
    "open_containment",
]  # fmt: skip
SHORTAGES = ("EAGAIN", "EMFILE", "ENFILE", "ENOMEM")
"""Errors that pass, and say nothing of what a machine can do."""


@attrs.frozen(kw_only=True)
class Means:
    """What a containment is told beside its mode.

    `read` and `network` are for a sandbox. `cgroup` is a delegated folder of cgroup v2, "auto" for our own group, empty
    for none; `memory_max` (bytes) and `pids_max` (processes) need one. Groups of the servers in `dead` are removed.
    `limits` names the settings that a job will ask for which only a guardian can set; `rlimits` and `user` are a job's.
    """

    read: tuple[str, ...] = ()
    network: bool = True
    cgroup: str = ""
    memory_max: int = 0
    pids_max: int = 0
    dead: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    rlimits: Mapping[str, int] = attrs.Factory(dict)
    user: tuple[int, int] | None = None


@asynccontextmanager
async def open_containment(mode: str, observer: Observer, means: Means | None = None) -> AsyncIterator[Containment]:
    """Open the containment that `mode` names, or with "auto" the strongest that works here, which is never a sandbox.

    Raises `ContainmentUnavailable` where a named mode, or a cgroup that is asked for, can't be had, or no run started.
    """
    means = means or Means()
    if (means.memory_max or means.pids_max) and not means.cgroup:
        raise ContainmentUnavailable('memory_max and pids_max need a cgroup: name a delegated one, or "auto"')
    if mode == "group" or (mode == "auto" and sys.platform != "linux"):
        from .group import GroupContainment

        _check_group(means)
        observer(ContainmentReady(GroupContainment.mode, GroupContainment.detail))
        yield GroupContainment()
        return
    if sys.platform != "linux":
        raise ContainmentUnavailable(f"containment {mode!r} needs Linux; this is {sys.platform}, where there is group")
    from .supervisor import SupervisorContainment

    sandbox = _sandbox(means.read, network=means.network) if mode == "sandbox" else None
    cgroups = _cgroups(means) if means.cgroup else None
    wanted = "namespace" if mode == "auto" else mode
    async with SupervisorContainment.open(observer, wanted, sandbox, cgroups) as containment:
        await _try(containment, mode, means)
        observer(ContainmentReady(containment.mode, containment.detail))
        yield containment


async def _try(containment: SupervisorContainment, mode: str, means: Means) -> None:
    """See that a run as it will be can be started; with "auto" weaken the containment, if that is what it takes.

    Raises `ContainmentUnavailable`.
    """
    why = await containment.probe(means.rlimits, means.user)
    if why and mode != "auto":
        raise ContainmentUnavailable(
            f"containment {mode!r} can't be had here: {why}; auto takes the best that can be had"
        )
    if why and not any(f"({name})" in why for name in SHORTAGES):
        containment.weaken(why)
        why = await containment.probe(means.rlimits, means.user)
    if why:
        raise ContainmentUnavailable(f"no run can be started here: {why}")


def _check_group(means: Means) -> None:
    """Raise `ContainmentUnavailable` for what only a guardian can do for a run."""
    if means.cgroup:
        raise ContainmentUnavailable("cgroup: containment 'group' has no guardian that could put a run into one")
    if means.limits:
        raise ContainmentUnavailable(f"containment 'group' has no guardian that could set {', '.join(means.limits)}")


def _sandbox(read: tuple[str, ...], *, network: bool) -> Sandbox:
    """Return the sandbox of every run. Raises `ContainmentUnavailable` without bubblewrap, or with a path too wide."""
    from .sandbox import Sandbox, too_wide

    if wide := too_wide(read):
        raise ContainmentUnavailable(
            f"sandbox_read: a sandbox with all of {wide} in it would be none; name what is read"
        )
    program = shutil.which("bwrap")
    if not program:
        raise ContainmentUnavailable("containment 'sandbox' needs bubblewrap: apt install bubblewrap")
    return Sandbox(program, read, network)


def _cgroups(means: Means) -> Cgroups:
    """Return where runs get their groups, without those of dead servers. Raises `ContainmentUnavailable`."""
    cgroups = Cgroups.find(means.cgroup, means.memory_max, means.pids_max)
    for server in means.dead:
        cgroups.sweep(server)
    return cgroups
