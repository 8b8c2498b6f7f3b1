"""The server's side of one run: its pipes, its lifeline, and the proof that nothing is left.

The proof comes from the run's supervisor, else from the zygote that adopts what a lost supervisor orphans. This module
must never claim what neither has said.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import signal
from collections.abc import Callable
from typing import Any

import trio

from ..errors import SpawnFailed
from ..events import Receipt
from . import marks
from .base import CWD, FOLDERS, PROOF_TIMEOUT, Contained
from .pipes import PipeReader, PipeWriter, is_quiet, wait_any
from .zygote import Packets, Zygote

CONTINUE_GRACE = 0.5
"""Seconds that a guardian gets to answer after a SIGCONT, in case a run had stopped it."""

COUNT_GRACE = 0.2
"""Seconds in which a supervisor ends and counts a tree by itself, before what counts nothing ends it too."""

MARKED_TIMEOUT = 2.0
"""Seconds in which what bears a run's mark has to end once it is killed, where no guardian is left to tell."""


class Unguarded(SpawnFailed):
    """No guardian could begin the job: nothing of it was started, so it can be given to the next one."""


class Guardian:
    """A supervisor process as the server sees it, one run after the other.

    Resource handling: owns the lifeline, whose end is the order to end everything, and a descriptor of the process.
    """

    def __init__(self, lifeline: Packets) -> None:
        self.lifeline = lifeline
        self.pid: int = 0
        self._pidfd = -1

    def know(self, pid: int) -> None:
        """Hear the process's pid."""
        self.pid = pid
        with contextlib.suppress(OSError):  # it is gone, or there is no descriptor for it just now
            self._pidfd = os.pidfd_open(pid)

    def signal(self, number: int) -> bool:
        """Send a signal to the process; return whether it is there."""
        if self._pidfd < 0:
            return False
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return False
        return True

    async def wait_end(self) -> bool:
        """Wait until the process is no more; return whether that can be seen."""
        if self._pidfd < 0:
            return False
        await trio.lowlevel.wait_readable(self._pidfd)
        return True

    def close(self) -> None:
        """Give it up; it ends with what is below it."""
        self.lifeline.close()
        self.signal(signal.SIGCONT)  # a run may have stopped it, and killed its zygote, which would wake it
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


class Supervised(Contained):
    """A CLI below its supervisor."""

    pid: int
    status: int | None
    stdin: PipeWriter
    stdout: PipeReader
    stderr: PipeReader

    def __init__(self, zygote: Zygote, guardian: Guardian, ends: tuple[int, int, int], mark: str, mode: str) -> None:
        self.pid = 0
        self._ends = PipeWriter(ends[0]), PipeReader(ends[1]), PipeReader(ends[2])
        self.stdin, self.stdout, self.stderr = self._ends
        self.zygote: Zygote = zygote
        self.guardian = guardian
        self._lifeline = guardian.lifeline
        self._mark = mark
        self._mode = mode
        self.kill: Callable[[], None] = lambda: None
        """What ends the tree beside the supervisor, and counts nothing."""
        self.status = None
        self._alone = False
        self._failure = ""
        self._held_before = self.guarded
        self._stale = False
        self._gone: dict[str, Any] | None = None
        self._receipt: Receipt | None = None
        self._decided = math.inf
        self._ended = False

    async def wait_started(self) -> None:
        """Wait for the CLI's pid. Raises `SpawnFailed`, `Unguarded` where no supervisor was forked, or one is worn."""
        while not self.pid:
            if not await self._follow():
                lost = SpawnFailed if self.guarded else Unguarded
                raise lost("the guardian of this run was lost while it started")
            if self._failure:
                raise (Unguarded if self._stale else SpawnFailed)(self._failure)

    def refuse(self) -> None:
        """Hear that no guardian has got the job: nothing was begun, so nothing is to be proven."""
        self._gone = {"gone": True, "seen": 0, "killed": 0}

    def wake(self) -> None:
        """Continue a supervisor that the run may have stopped."""
        self.guardian.signal(signal.SIGCONT)

    @property
    def guarded(self) -> bool:
        """Whether the zygote has forked this run's supervisor."""
        return bool(self.guardian.pid)

    async def wait_exit(self) -> int:
        """Wait for the CLI's own end; return its exit status, negative for a signal."""
        while self.status is None:
            if not await self._follow():
                raise trio.BrokenResourceError("the supervisor of this run was lost")
        return self.status

    def feed(self, data: bytes) -> bytes:
        """Write to stdin what it takes at once, and close it if that was all; return the rest."""
        return self.stdin.feed(data)

    @property
    def alone(self) -> bool:
        """Whether the CLI left no descendant when it ended."""
        return self._alone

    async def wait_empty(self) -> None:
        """Wait until the supervisor says that nothing is left, or is lost."""
        await self._wait_proof()

    @property
    def quiet(self) -> bool:
        """Whether the CLI lives and has said nothing on stdout that was not read."""
        return self.status is None and is_quiet(self.stdout.fileno(), self._lifeline.fileno())

    async def wait_stir(self) -> None:
        """Wait until the CLI says something on stdout or ends."""
        await wait_any(self.stdout.fileno(), self._lifeline.fileno())

    def send_signal(self, number: int) -> None:
        """Send a signal to the CLI alone."""
        with contextlib.suppress(OSError):
            self._lifeline.send({"signal": number})

    def end(self) -> None:
        """Begin to end the whole tree."""
        self._decided = min(self._decided, trio.current_time())
        self._ended = True
        if self._gone is None:
            with contextlib.suppress(OSError):
                self._lifeline.send({"end": True})

    @property
    def gone(self) -> bool:
        """Whether the tree's end was told and counted."""
        return self._receipt is not None

    async def wait_gone(self) -> Receipt:
        """Wait for the supervisor's proof, else for the zygote's, else say that there is none."""
        if self._receipt is None:
            self._decided = min(self._decided, trio.current_time())
            self._receipt = self._told()
        if self._receipt is None:
            await self._prove()
        assert self._receipt
        return self._receipt

    async def _prove(self) -> None:
        with trio.CancelScope(shield=True):
            await self._wait_told()
            self._receipt = self._told() or await self._orphaned()

    async def _wait_told(self) -> None:
        """Wait for the supervisor's proof, and see to it that it can give one."""
        with trio.move_on_after(COUNT_GRACE):
            await self._wait_proof()
        if self._gone is None:
            if self._ended:
                self.kill()
            with trio.move_on_after(PROOF_TIMEOUT):
                await self._wait_proof()
        if self._gone is None:
            await self._insist()

    def _told(self) -> Receipt | None:
        """Return the receipt that the supervisor has told, if it has."""
        return None if self._gone is None else self._count(self._gone["seen"], self._gone["killed"], 0)

    async def _follow(self) -> bool:
        """Take in one packet; return False when the supervisor is gone."""
        packet = await self._lifeline.receive()
        if packet is None:
            return False
        if "guardian" in packet:
            self.zygote.forget(packet["guardian"])
            self.guardian.know(packet["guardian"])
        if "failed" in packet:
            self._failure = why(packet["failed"], packet["what"])
            self._stale = self._held_before and packet["what"] == "mount"  # what the run before it saw may be gone
            self._gone = {"seen": 0, "killed": 0}
        if "exit" in packet:
            self.status = _told_inside(packet["exit"]) if self._mode == "sandbox" else packet["exit"]
            self._alone = packet["alone"]
            self._decided = min(self._decided, trio.current_time())
        if "gone" in packet:
            self._gone = packet
        self.pid = packet.get("started", self.pid)
        return True

    async def _wait_proof(self) -> None:
        while self._gone is None and await self._follow():
            pass

    async def _insist(self) -> None:
        """Wake a supervisor that a run has stopped; failing that, kill it so that the zygote takes over."""
        for number in (signal.SIGCONT, signal.SIGKILL):
            if self._gone is not None or not self.guardian.signal(number):
                return
            with trio.move_on_after(CONTINUE_GRACE):
                await self._wait_proof()

    async def _orphaned(self) -> Receipt:
        """Get the proof from the zygote below which a lost supervisor's orphans are; sweep by mark where it is gone.

        The run may have stopped the zygote too.
        """
        swept = None
        self.zygote.wake()
        with trio.move_on_after(PROOF_TIMEOUT):
            swept = await self.zygote.wait_swept(self.guardian.pid) if self.guardian.pid else None
        if swept:
            return self._count(max(swept.seen, 1), swept.killed, 0)
        if self._mode == "namespace":  # its supervisor was the init, which ends behind all that the kernel ends with it
            with trio.move_on_after(PROOF_TIMEOUT):
                if await self.guardian.wait_end():
                    return self._count(1, 0, 0)
        killed, left = await self._end_marked()
        return self._count(max(killed, 1), killed, left or None)

    async def _end_marked(self) -> tuple[int, int]:
        """End what bears the run's mark; return how many were killed, and how many will not go."""
        killed: set[int] = set()
        left: set[int] = set()
        with trio.move_on_after(MARKED_TIMEOUT):
            while left := marks.kill(self._mark):
                killed |= left
                await trio.sleep(0.01)  # a process that is killed ends in its own time, and nobody is told
        return len(killed), len(left)

    def _count(self, seen: int, killed: int, survivors: int | None) -> Receipt:
        ms = (trio.current_time() - self._decided) * 1000
        return Receipt(seen=seen, killed=killed, survivors=survivors, ms=round(ms, 3), containment=self._mode)

    @property
    def clean(self) -> bool:
        """Whether a supervisor that we know has itself proven that nothing is left: it can hold the next run."""
        return bool(self.guarded and self._gone and "gone" in self._gone and not self._gone.get("worn"))

    def close(self) -> None:
        """Give up the pipes."""
        for end in self._ends:
            end.close()


def _told_inside(status: int) -> int:
    """Return the exit status of a CLI in a sandbox; bubblewrap tells a signal as a shell does, with 128 added to it."""
    return 128 - status if status - 128 in signal.valid_signals() else status


def why(number: int, what: str) -> str:
    """Return an error number as a sentence for a person."""
    name = errno.errorcode.get(number, str(number))
    if what == "exec" and number == errno.ENOENT:
        return "the CLI was not found: pip install 'trio-claude[claude]' or --cli PATH"
    if what == "exec" and number == errno.EACCES:
        return "the CLI is not executable: chmod +x it, or name another with --cli PATH"
    if what == "folder":
        return f"{FOLDERS}: {os.strerror(number)}"
    if what == "cwd":
        return f"{CWD}: {os.strerror(number)}"
    return f"the CLI could not be started: {what}: {os.strerror(number)} ({name})"
