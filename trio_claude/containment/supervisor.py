"""Containment by guardians: one zygote for the server, one supervisor for each run.

Duty: hand a job to the zygote and see to its end. It must never wait for a guardian without a bound, and never wait
between taking a descriptor and owning it.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import trio

from ..errors import SpawnFailed
from ..events import GuardianLost, Observer
from ..services import open_services
from .base import MARK, PROOF_TIMEOUT, START_TIMEOUT, Contained, Containment, Job
from .supervised import CONTINUE_GRACE, Supervised, why
from .zygote import Packets, Zygote

RESTART_PAUSE = 0.05
"""Seconds between the loss of a zygote and the next one, so that a machine without memory is not flogged."""


class SupervisorContainment(Containment):
    """Containment by a supervisor process for each run.

    Resource handling: `open` keeps one zygote alive and starts the next when it dies; leaving it ends every run.
    """

    mode = "supervisor"
    detail = "a supervisor process for each run"

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._zygote: Zygote | None = None
        self._ready = trio.Event()

    @classmethod
    @asynccontextmanager
    async def open(cls, observer: Observer) -> AsyncIterator[SupervisorContainment]:
        """Start the zygote. Raises OSError, or trio.TooSlowError where it does not answer."""
        containment = cls(observer)
        async with open_services() as services:
            services.start_soon(containment._keep_zygote)
            with trio.fail_after(START_TIMEOUT):
                await containment._ready.wait()
            yield containment

    async def _keep_zygote(self) -> None:
        """Keep one zygote alive."""
        while True:
            zygote = self._zygote = Zygote()
            try:
                await zygote.follow(self._ready)
            finally:
                zygote.close()
                self._ready = trio.Event()
                with trio.move_on_after(PROOF_TIMEOUT, shield=True):
                    await zygote.wait_exit()
            self._observer(GuardianLost("zygote"))
            await trio.sleep(RESTART_PAUSE)

    def start(self, job: Job) -> AbstractAsyncContextManager[Contained]:
        """Start `job` below a supervisor of its own."""
        return self._start(job)

    @asynccontextmanager
    async def _start(self, job: Job) -> AsyncIterator[Contained]:
        with trio.move_on_after(START_TIMEOUT):
            await self._ready.wait()
        zygote = self._zygote
        if zygote is None or not zygote.alive:
            raise SpawnFailed("no zygote answers; the next one is being started")
        theirs, process = _open_run(zygote, job)
        try:
            try:
                await _hand_over(zygote, job, theirs)
            finally:
                for descriptor in theirs:
                    os.close(descriptor)
            await _wait_started(zygote, process)
            yield process
        finally:
            await _finish(process)


def _open_run(zygote: Zygote, job: Job) -> tuple[list[int], Supervised]:
    """Open a run's pipes and lifeline; return the guardian's ends and the owner of ours. Raises `SpawnFailed`."""
    with contextlib.ExitStack() as undo:
        try:
            pairs = [_pair(undo, os.pipe()) for _ in range(3)]
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise SpawnFailed(why(error.errno or 0, "pipes")) from error
        undo.pop_all()
    (stdin, our_stdin), (our_stdout, stdout), (our_stderr, stderr) = pairs
    process = Supervised(zygote, Packets(ours), (our_stdin, our_stdout, our_stderr), job.env.get(MARK, "\0"))
    return [stdin, stdout, stderr, theirs.detach()], process


def _pair(undo: contextlib.ExitStack, pair: tuple[int, int]) -> tuple[int, int]:
    for descriptor in pair:
        undo.callback(os.close, descriptor)
    return pair


async def _hand_over(zygote: Zygote, job: Job, descriptors: list[int]) -> None:
    """Give the job to the zygote. Raises `SpawnFailed`."""
    packet = {"argv": job.argv, "env": dict(job.env), "cwd": job.cwd, "limits": dict(job.limits)}
    with trio.move_on_after(START_TIMEOUT):
        while True:
            try:
                return zygote.control.send(packet, tuple(descriptors))
            except BlockingIOError:
                await zygote.control.wait_sendable()
            except OSError as error:
                raise SpawnFailed(why(error.errno or 0, "hand-over")) from error
    zygote.kill()
    raise SpawnFailed(f"the zygote took no job for {START_TIMEOUT:g} s")


async def _wait_started(zygote: Zygote, process: Supervised) -> None:
    """Wait until the CLI runs; wake, then replace, a zygote that a run has stopped. Raises `SpawnFailed`."""
    with trio.move_on_after(CONTINUE_GRACE):
        return await process.wait_started()
    if not process.guarded:
        zygote.wake()
    with trio.move_on_after(START_TIMEOUT - CONTINUE_GRACE):
        return await process.wait_started()
    if not process.guarded:
        zygote.kill()
    raise SpawnFailed(f"the CLI did not start within {START_TIMEOUT:g} s")


async def _finish(process: Supervised) -> None:
    """End the tree if it is not proven gone, wait for the proof, and close what we hold. The bounds are wait_gone's."""
    try:
        process.end()
        with trio.CancelScope(shield=True):
            await process.wait_gone()
    finally:
        process.close()
