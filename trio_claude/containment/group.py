"""Containment by process group and environment mark, for systems without guardians.

Weaker, and said so: a descendant that leaves the group and clears its environment is not found, so a receipt of this
mode never claims a number of survivors. This module must never be the choice where a supervisor can be had.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import signal
import subprocess
import threading
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from ..errors import SpawnFailed
from ..events import Receipt
from ..threads import do_apart
from . import marks
from .base import CWD, FOLDERS, MARK, PROOF_TIMEOUT, Contained, Containment, Job, Told, forget
from .pipes import PipeReader, PipeWriter, is_quiet, wait_any

SWEEPS = 50
"""Looks for marked processes after the kill, until one finds none."""
SWEEP_PAUSE = 0.01
"""Seconds between two looks."""
LOOK_PAUSE = 0.1
"""Seconds between two looks for what outlives the CLI: each reads of all processes of the machine."""


class Grouped(Contained):
    """A CLI in a process group of its own."""

    pid: int
    status: int | None
    stdin: PipeWriter
    stdout: PipeReader
    stderr: PipeReader

    def __init__(self, process: subprocess.Popen[bytes], stdin: int, stdout: int, stderr: int, mark: str) -> None:
        self.pid = process.pid
        self.status = None
        self.stdin, self.stdout, self.stderr = self._ends = PipeWriter(stdin), PipeReader(stdout), PipeReader(stderr)
        self._process = process
        self._mark = mark
        self._receipt: Receipt | None = None
        self._decided = math.inf
        self._reaping = threading.Lock()
        """Held from a look whether the CLI is reaped to what is done to its pid, and by who reaps it."""
        self._struck = False
        """Whether the CLI lived when it was killed."""

    async def wait_exit(self) -> int:
        """Wait for the CLI's own end, in a thread, or where there is none to be had by looking."""
        own = trio.CapacityLimiter(1)  # not a thread of those that all share: it waits for as long as the run lives
        try:
            self.status = await trio.to_thread.run_sync(self._wait, abandon_on_cancel=True, limiter=own)
        except RuntimeError:  # as Python says so
            self.status = await self._look_for_end()
        self._decided = min(self._decided, trio.current_time())
        return self.status

    async def _look_for_end(self) -> int:
        while True:
            if not self._lives():
                return self._wait()
            await trio.sleep(LOOK_PAUSE)  # nobody tells where no thread waits

    def _wait(self) -> int:
        """Wait for the CLI's end in a thread, and kill its group while its pid, if that can be, is still its own."""
        if not hasattr(os, "waitid"):
            status = self._process.wait()
            self._kill_group()  # no pid is given anew that is still the name of a group
            return status
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with self._reaping:
            if self._process.returncode is None:
                self._kill_group()
            return self._process.wait()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    @property
    def alone(self) -> bool:
        """Never known here."""
        return False

    async def wait_empty(self) -> None:
        """Wait until none is found that bears the mark; the group was ended with the CLI."""
        look = functools.partial(do_apart, functools.partial(marks.find, self._mark), abandon_on_cancel=True)
        while await look():  # noqa: ASYNC110 - nobody is told of another's child
            await trio.sleep(LOOK_PAUSE)

    @property
    def quiet(self) -> bool:
        """Whether the CLI lives and has said nothing on stdout that was not read."""
        return self._lives() and is_quiet(self.stdout.fileno())

    def _lives(self) -> bool:
        """Look whether the CLI lives, and leave it to `_wait` to reap it."""
        if not hasattr(os, "waitid"):
            return self._process.poll() is None
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:
            return False

    async def wait_stir(self) -> None:
        """Wait until the CLI says something on stdout or closes it."""
        await wait_any(self.stdout.fileno())

    def send_signal(self, number: int) -> None:
        """Send a signal to the CLI alone."""
        with self._reaping, contextlib.suppress(ProcessLookupError):
            if self._process.returncode is None:  # it is not reaped, so its pid is its own
                os.kill(self.pid, number)

    def end(self) -> None:
        """Kill the group and whatever bears the mark."""
        self._decided = min(self._decided, trio.current_time())
        with self._reaping:
            if self._process.returncode is None:
                self._struck = self._struck or self._lives()
                self._kill_group()

    async def wait_gone(self) -> Receipt:
        """End what is found, and say what was counted."""
        if self._receipt is None:
            self.end()
            with trio.CancelScope(shield=True):
                with trio.move_on_after(PROOF_TIMEOUT):
                    await self.wait_exit()
                receipt = await self._sweep()
            self._receipt = receipt
        return self._receipt

    async def _sweep(self) -> Receipt:
        killed = {self.pid} if self._struck and self.status == -signal.SIGKILL else set()
        for _ in range(SWEEPS):
            found = await do_apart(functools.partial(marks.kill, self._mark))
            killed |= found
            if not found:
                break
            await trio.sleep(SWEEP_PAUSE)  # what forks meanwhile is found by a later look
        ms = round((trio.current_time() - self._decided) * 1000, 3)
        seen = len(killed | {self.pid})
        return Receipt(seen=seen, killed=len(killed), survivors=None, ms=ms, containment=GroupContainment.mode)

    def close(self) -> None:
        """Give up the pipes."""
        for end in self._ends:
            end.close()


def _as(user: tuple[int, int] | None) -> dict[str, Any]:
    """Return what makes the CLI another user's, with no group but its own."""
    return {"user": user[0], "group": user[1], "extra_groups": []} if user else {}


def _pipe(reader: contextlib.ExitStack, writer: contextlib.ExitStack) -> tuple[int, int]:
    """Open a pipe, the ends of which are closed with who reads and who writes."""
    reads, writes = os.pipe()
    reader.callback(os.close, reads)
    writer.callback(os.close, writes)
    return reads, writes


def _begin(job: Job) -> Grouped:
    """Start a job. Raises OSError, and then nothing was started: all that it takes is there before."""
    with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
        stdin, says = _pipe(theirs, ours)
        hears, stdout = _pipe(ours, theirs)
        complains, stderr = _pipe(ours, theirs)
        process = subprocess.Popen(
            job.argv,
            env=job.env,
            cwd=job.cwd,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            umask=0o077,
            **_as(job.user),
        )
        ours.pop_all()
        return Grouped(process, says, hears, complains, job.env.get(MARK, "\0"))


class GroupContainment(Containment):
    """Containment by group and mark."""

    mode = "group"
    binds = False
    detail = "a process group and a mark in the environment: weaker, survivors can't be proven"

    def start(self, job: Job, _told: Told = forget) -> AbstractAsyncContextManager[Contained]:
        """Start `job` in a group of its own; a start that is cancelled has started nothing."""
        return self._start(job)

    @asynccontextmanager
    async def _start(self, job: Job) -> AsyncIterator[Contained]:
        await trio.lowlevel.checkpoint()
        try:
            for folder in job.folders:
                Path(folder).mkdir(0o700)
        except OSError as error:
            raise SpawnFailed(f"{FOLDERS}: {error.strerror}") from error
        try:
            contained = _begin(job)
        except OSError as error:
            what = CWD if error.filename == job.cwd else "the CLI could not be started"
            raise SpawnFailed(f"{what}: {os.strerror(error.errno or 0)}") from error
        try:
            yield contained
        finally:
            try:
                await contained.wait_gone()
            finally:
                contained.close()
