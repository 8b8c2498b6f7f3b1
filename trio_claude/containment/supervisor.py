"""Containment by guardians: one zygote for the server, one supervisor for each run.

Duty: hand a job to the zygote and see to its end. It must never wait for a guardian without a bound, and never wait
between taking a descriptor and owning it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

import attrs
import trio

from ..errors import ContainmentUnavailable, SpawnFailed
from ..events import GuardianLost, Observer, Receipt, Strained
from ..services import open_services
from . import marks
from .base import MARK, PROOF_TIMEOUT, START_TIMEOUT, BrokenStart, Contained, Containment, Job, Told, forget
from .cgroup import Cgroups
from .guardian import PACKET_LIMIT
from .pipes import is_quiet
from .sandbox import Sandbox
from .supervised import CONTINUE_GRACE, Guardian, Supervised, Unguarded, why
from .zygote import Packets, Zygote

DETAILS = {
    "supervisor": "a supervisor process for each run",
    "sandbox": "a supervisor process for each run, which is in a bubblewrap sandbox and sees an allow-list of files",
    "namespace": "a supervisor process for each run, which is in a PID and mount namespace without capabilities",
}
SPARE_LIMIT = 16
"""Supervisors that are kept for the next runs, each of about 1 MiB; starting one anew costs two milliseconds of CPU."""
TRIES = 3
"""How often a job is given to a zygote; one that dies with a job in its hands has started nothing of it."""
NEEDS = (
    "it needs /proc, /dev/null, pidfd_open (Linux 5.3), descriptors, memory, one process more, "
    "and this package in files, not in a zip"
)
"""What to look for where there is no zygote."""
NO_PROC = (
    "no /proc shows this process by its own number, so nothing could be proven gone: mount one in this PID namespace "
    "(unshare --mount-proc, or mount -t proc proc /proc)"
)
"""What to do where a guardian would look for its run among the processes of others."""
RESTART_PAUSE = 0.05
"""Seconds between the loss of a zygote and the next one, so that a machine without memory is not flogged."""


class SupervisorContainment(Containment):
    """Containment by a supervisor process for each run; `mode` says what is around the CLI beside it.

    Resource handling: `open` keeps one zygote alive and starts the next when it dies; leaving it ends every run.
    """

    def __init__(self, observer: Observer, mode: str, sandbox: Sandbox | None, cgroups: Cgroups | None) -> None:
        self.mode: str = mode
        self.detail: str = DETAILS[mode]
        self.binds: bool = mode != "supervisor"
        self._sandbox = sandbox
        self._cgroups = cgroups
        self._observer = observer
        self._zygote: Zygote | None = None
        self._spare: list[Guardian] = []
        self._strained = False
        self._ready = trio.Event()

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        observer: Observer,
        mode: str = "supervisor",
        sandbox: Sandbox | None = None,
        cgroups: Cgroups | None = None,
    ) -> AsyncIterator[SupervisorContainment]:
        """Start the zygote. Raises `ContainmentUnavailable` where it can't be had, or could not see its runs."""
        if not marks.shows_us():
            raise ContainmentUnavailable(NO_PROC)
        containment = cls(observer, mode, sandbox, cgroups)
        async with open_services() as services:
            services.start_soon(containment._keep_zygote)
            with trio.move_on_after(START_TIMEOUT) as patience:
                await containment._ready.wait()
            if patience.cancelled_caught:
                raise ContainmentUnavailable(f"the zygote did not answer within {START_TIMEOUT:g} s: {NEEDS}")
            try:
                yield containment
            finally:
                containment._spare_none()

    async def probe(self, limits: Mapping[str, int], user: tuple[int, int] | None) -> str | None:
        """Run a program that does nothing; return why it could not be started or failed, None where it did neither."""
        job = Job(argv=(shutil.which("true") or "/bin/true",), env={}, cwd="/", limits=limits, user=user)
        try:
            async with self.start(job) as process:
                if status := await process.wait_exit():
                    complaint = (await process.stderr.receive_some()).decode(errors="replace").splitlines()
                    return complaint[-1] if complaint else f"exit status {status}"
        except (SpawnFailed, trio.BrokenResourceError) as error:
            return str(error)
        return None

    def weaken(self, why: str) -> None:
        """Do without namespaces, and say why."""
        self.binds = False
        self.mode = "supervisor"
        self.detail = f"{DETAILS[self.mode]}; no namespaces: {why}"

    async def _keep_zygote(self) -> None:
        """Keep one zygote alive."""
        begun = False
        while True:
            ready = self._ready
            try:
                zygote = Zygote()
            except OSError as error:
                if self._zygote is None:
                    raise ContainmentUnavailable(f"the zygote can't be started: {error}; {NEEDS}") from error
                self._strain(on=True)
            else:
                self._zygote = zygote
                self._strain(on=False)
                await self._follow_zygote(zygote)
                begun = begun or ready.is_set()
                if begun:
                    self._observer(GuardianLost("zygote"))
            await trio.sleep(RESTART_PAUSE)

    def _strain(self, *, on: bool) -> None:
        """Tell when no zygote can be started, and when one can be again."""
        if on != self._strained:
            self._strained = on
            self._observer(Strained("what a zygote needs", over=not on))

    async def _follow_zygote(self, zygote: Zygote) -> None:
        """Hear a zygote until it is gone, and give it up then."""
        try:
            async with open_services() as services:
                services.start_soon(_hurry, zygote, self._ready)
                await zygote.follow(self._ready)
        finally:
            zygote.close()
            self._spare_none()
            if self._ready.is_set():
                self._ready = trio.Event()
            with trio.move_on_after(2 * PROOF_TIMEOUT, shield=True):
                await zygote.wait_exit()

    def start(self, job: Job, told: Told = forget) -> AbstractAsyncContextManager[Contained]:
        """Start `job` below a supervisor of its own."""
        wrapped = self._sandbox.wrap(job) if self._sandbox else job
        return self._start_grouped(wrapped, told, self._cgroups) if self._cgroups else self._start(wrapped, told)

    @asynccontextmanager
    async def _start_grouped(self, job: Job, told: Told, cgroups: Cgroups) -> AsyncIterator[Contained]:
        """Start `job` in a control group of its own."""
        group = cgroups.make(job.env.get(MARK, f"unmarked:{secrets.token_hex(8)}").replace(":", "-"))
        try:
            async with self._start(attrs.evolve(job, cgroup=str(group)), told, lambda: cgroups.kill(group)) as process:
                yield process
        finally:
            cgroups.remove(group)

    async def _wait_zygote(self) -> Zygote:
        """Return a zygote that answers; wait for the next one for a while. Raises `SpawnFailed`."""
        if zygote := self._at_hand():
            return zygote
        with trio.move_on_after(START_TIMEOUT):
            while True:
                if not self._ready.is_set():
                    await self._ready.wait()
                if zygote := self._at_hand():
                    return zygote
                if self._zygote and self._zygote.alive:
                    self._zygote.kill()
                await trio.sleep(RESTART_PAUSE)  # it is gone, and about to be missed by who follows it
        raise SpawnFailed("no zygote answers; the next one is being started")

    def _at_hand(self) -> Zygote | None:
        """Return the zygote, if it is ready and can be used."""
        zygote = self._zygote if self._ready.is_set() else None
        if not (zygote and zygote.alive):
            return None
        while self._spare and not self._is_fit(self._spare[-1], zygote):
            self._spare.pop().close()
        return zygote if self._spare or zygote.unchanged else None

    def _is_fit(self, guardian: Guardian, zygote: Zygote) -> bool:
        """Return whether a supervisor that waits lives, and is as it was, which a run that sees it may have changed."""
        return is_quiet(guardian.lifeline.fileno()) and (self.binds or zygote.resembles(guardian.pid))

    @asynccontextmanager
    async def _start(self, job: Job, told: Told, kill: Callable[[], None] = lambda: None) -> AsyncIterator[Contained]:
        """Start `job`, and give its guardian back in the end."""
        process = await self._begin(job, told, kill)
        del job  # its environment is of no use any more
        try:
            yield process
        finally:
            await self._end(process)

    async def _begin(self, job: Job, told: Told, kill: Callable[[], None]) -> Supervised:
        """Start `job`; where a zygote dies before it has forked a supervisor, below the next one.

        Where a supervisor that waited can't take it, those that wait with it may not be able to either.
        """
        for _ in range(TRIES - 1):
            with suppress(Unguarded):
                return await self._try(job, told, kill)
            self._spare_none()
        return await self._try(job, told, kill)

    async def _try(self, job: Job, told: Told, kill: Callable[[], None]) -> Supervised:
        """Start `job` below the zygote that is there. Raises `Unguarded` where nothing of it was ever started."""
        try:
            zygote = await self._wait_zygote()
        except trio.Cancelled:
            told(Receipt(seen=0, killed=0, survivors=0, ms=0.0, containment=self.mode))
            raise
        theirs, process = _open_run(zygote, self._take_spare(), job, self.mode)
        process.kill = kill
        has_begun = False
        try:
            await _give(process, _packet(job, namespace=self.mode == "namespace"), theirs)
            has_begun = True
        finally:
            if not has_begun:
                await self._end(process)
                told(await process.wait_gone())
        return process

    async def _end(self, process: Supervised) -> None:
        """End what is left of a run, and keep its guardian for another where that may be."""
        zygote = process.zygote
        try:
            await _finish(process)
        finally:
            self._put_away(process.guardian, keep=process.clean and zygote is self._zygote and zygote.alive)

    def _take_spare(self) -> Guardian | None:
        """Return a supervisor that waits, if any; whoever looked for the zygote has found it fit."""
        return self._spare.pop() if self._spare else None

    def _put_away(self, guardian: Guardian, *, keep: bool) -> None:
        """Keep a supervisor for the next run, or give it up."""
        if keep and len(self._spare) < SPARE_LIMIT:
            self._spare.append(guardian)
        else:
            guardian.close()

    def _spare_none(self) -> None:
        while self._spare:
            self._spare.pop().close()


async def _hurry(zygote: Zygote, ready: trio.Event) -> None:
    """Wake, then end, a zygote that does not get ready: a run may have stopped it."""
    for act in (zygote.wake, zygote.kill):
        with trio.move_on_after(START_TIMEOUT / 2):
            await ready.wait()
            return
        act()


def _packet(job: Job, *, namespace: bool) -> dict[str, Any]:
    """Return what the zygote is told of a job."""
    return {
        "argv": job.argv,
        "env": dict(job.env),
        "cwd": job.cwd,
        "limits": dict(job.limits),
        "namespace": namespace,
        "folders": job.folders,
        "binds": job.binds,
        "user": job.user,
        "depth": job.depth,
        "cgroup": job.cgroup,
        "nice": min(19, os.getpriority(os.PRIO_PROCESS, 0) + job.nice),
    }


def _open_run(zygote: Zygote, spare: Guardian | None, job: Job, mode: str) -> tuple[list[int], Supervised]:
    """Open a run's pipes, and a lifeline where there is no `spare` supervisor.

    Return the guardian's ends and the owner of ours. Raises `SpawnFailed`.
    """
    opened: list[int] = []
    try:
        for _ in range(3):
            opened += os.pipe()
        guardian, lifeline = (spare, []) if spare else _open_lifeline()
    except OSError as error:
        for descriptor in opened:
            os.close(descriptor)
        if spare:
            spare.close()
        raise SpawnFailed(why(error.errno or 0, "pipes")) from error
    stdin, our_stdin, our_stdout, stdout, our_stderr, stderr = opened
    ends = our_stdin, our_stdout, our_stderr
    return [stdin, stdout, stderr, *lifeline], Supervised(zygote, guardian, ends, job.env.get(MARK, "\0"), mode)


def _open_lifeline() -> tuple[Guardian, list[int]]:
    """Return a supervisor that is still to be, and its end of the lifeline. Raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * PACKET_LIMIT)
    return Guardian(Packets(ours)), [theirs.detach()]


async def _give(process: Supervised, packet: dict[str, Any], descriptors: list[int]) -> None:
    """Give a job to a guardian, and wait until its CLI runs.

    Raises `Unguarded` where nothing was begun, `BrokenStart` where what was begun has been ended.
    """
    try:
        try:
            await _hand_over(process, packet, descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        await _wait_started(process)
    except Unguarded:
        raise
    except SpawnFailed as error:
        process.end()
        raise BrokenStart(str(error), await process.wait_gone()) from error


async def _hand_over(process: Supervised, packet: dict[str, Any], descriptors: list[int]) -> None:
    """Give a job to a supervisor that lives, else to the zygote. Raises `SpawnFailed`, `Unguarded` where it is gone."""
    zygote, guardian = process.zygote, process.guardian
    to = guardian.lifeline if guardian.pid else zygote.control
    deadline = trio.current_time() + START_TIMEOUT
    while True:
        try:
            return to.send(packet, tuple(descriptors))
        except BlockingIOError:
            with trio.move_on_at(deadline) as patience:
                await to.wait_sendable()
        except ConnectionError as error:
            raise Unguarded(why(error.errno or 0, "hand-over")) from error
        except OSError as error:
            process.refuse()
            raise SpawnFailed(why(error.errno or 0, "hand-over")) from error
        if patience.cancelled_caught:
            zygote.kill()
            process.refuse()
            raise SpawnFailed(f"the zygote took no job for {START_TIMEOUT:g} s")


async def _wait_started(process: Supervised) -> None:
    """Wait until the CLI runs; wake, then replace, a zygote that a run has stopped. Raises `SpawnFailed`."""
    with trio.move_on_after(CONTINUE_GRACE):
        return await process.wait_started()
    process.zygote.wake()
    process.wake()
    with trio.move_on_after(START_TIMEOUT - CONTINUE_GRACE):
        return await process.wait_started()
    if not process.guarded:
        process.zygote.kill()
    raise SpawnFailed(f"the CLI did not start within {START_TIMEOUT:g} s")


async def _finish(process: Supervised) -> None:
    """End the tree if it is not proven gone, wait for the proof, and close what we hold. The bounds are wait_gone's."""
    try:
        if not process.gone:
            process.end()
            await process.wait_gone()
    finally:
        process.close()
