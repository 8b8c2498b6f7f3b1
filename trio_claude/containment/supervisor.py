"""Containment by guardians: the server's side of the zygote and of the supervisors.

Duty: hand a job to the zygote, follow its run on the lifeline, and get the proof that nothing is left, from the
supervisor or else from the zygote. It must never wait for a guardian without a bound, and never wait between taking a
descriptor and owning it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from ..errors import SpawnFailed
from ..events import GuardianLost, Observer, Receipt
from ..services import open_services
from . import marks
from .base import MARK, PROOF_TIMEOUT, START_TIMEOUT, Contained, Containment, Job
from .guardian import PACKET_LIMIT
from .pipes import PipeReader, PipeWriter

GUARDIAN = Path(__file__).with_name("guardian.py")
CONTINUE_GRACE = 0.5
"""Seconds that a guardian gets to answer after a SIGCONT, in case a run had stopped it."""
RESTART_PAUSE = 0.05
"""Seconds between the loss of a zygote and the next one, so that a machine without memory is not flogged."""


class Packets:
    """Our end of a SOCK_SEQPACKET socket: bounded JSON objects."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock

    def send(self, packet: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        """Send one packet without waiting. Raises OSError."""
        data = json.dumps(packet).encode()
        if len(data) > PACKET_LIMIT:
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        socket.send_fds(self._socket, [data], descriptors)

    async def wait_sendable(self) -> None:
        """Wait until the socket takes a packet."""
        await trio.lowlevel.wait_writable(self._socket)

    async def receive(self) -> dict[str, Any] | None:
        """Return the next packet, None when the other end is gone."""
        while True:
            try:
                await trio.lowlevel.wait_readable(self._socket)
                packet = self._socket.recv(PACKET_LIMIT)
            except (BlockingIOError, ConnectionResetError):
                continue  # a reset says that our last order was left unread; what was said before is still there
            except (OSError, trio.ClosedResourceError):
                return None
            return json.loads(packet) if packet else None

    def close(self) -> None:
        """Close now; a waiting `receive` gets None."""
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()


@attrs.frozen
class Swept:
    """What a zygote counted below a lost supervisor."""

    seen: int
    killed: int


class Zygote:
    """One zygote process.

    Resource handling: owns the process and the control socket; `close` gives both up, upon which the zygote stays just
    until the runs below it are gone. Error handling: a zygote that can't be started raises OSError.
    """

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * PACKET_LIMIT)
        self.control: Packets = Packets(ours)
        self.process: subprocess.Popen[bytes] = _exec_guardian(theirs)
        self.alive: bool = True
        self._lost: dict[int, Swept] = {}
        self._news = trio.Condition()

    async def follow(self, ready: trio.Event) -> None:
        """Hear what the zygote says until it is gone."""
        try:
            while packet := await self.control.receive():
                if "ready" in packet:
                    ready.set()
                for pid in packet.get("swept", ()):
                    self._lost[pid] = Swept(packet["seen"], packet["killed"])
                async with self._news:
                    self._news.notify_all()
        finally:
            self.alive = False
            with trio.CancelScope(shield=True):
                async with self._news:
                    self._news.notify_all()

    async def wait_swept(self, guardian: int) -> Swept | None:
        """Wait until the orphans of `guardian` are gone; None where the zygote is gone itself."""
        async with self._news:
            while guardian not in self._lost:
                if not self.alive:
                    return None
                await self._news.wait()
        return self._lost.pop(guardian)

    def wake(self) -> None:
        """Continue a zygote that a run may have stopped."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End a zygote that does not answer; its supervisors live on."""
        self.process.send_signal(signal.SIGKILL)

    async def wait_exit(self) -> None:
        """Wait for the zygote's own end."""
        descriptor = os.pidfd_open(self.process.pid)
        try:
            await trio.lowlevel.wait_readable(descriptor)
            self.process.wait()
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Give the zygote up."""
        self.control.close()


def _exec_guardian(control: socket.socket) -> subprocess.Popen[bytes]:
    """Start the zygote, under a name of its own and with nothing of our environment."""
    source = os.open(GUARDIAN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return subprocess.Popen(
            ["trio-claude-zygote", "-s", "-S", "-P", f"/dev/fd/{source}", str(control.fileno()), str(os.getpid())],
            executable=getattr(sys, "_base_executable", sys.executable),
            env={"PYTHONHOME": f"{sys.base_prefix}:{sys.base_exec_prefix}", "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(source, control.fileno()),
            cwd="/",
            start_new_session=True,
        )
    finally:
        os.close(source)
        control.close()


class Supervised(Contained):
    """A CLI below its supervisor."""

    pid: int
    status: int | None
    stdin: PipeWriter
    stdout: PipeReader
    stderr: PipeReader

    def __init__(self, zygote: Zygote, lifeline: Packets, ends: tuple[int, int, int], mark: str) -> None:
        self.pid = 0
        self._ends = PipeWriter(ends[0]), PipeReader(ends[1]), PipeReader(ends[2])
        self.stdin, self.stdout, self.stderr = self._ends
        self._zygote = zygote
        self._lifeline = lifeline
        self._mark = mark
        self._guardian = 0
        self._pidfd = -1
        self.status = None
        self._alone = False
        self._failure = ""
        self._gone: dict[str, Any] | None = None
        self._receipt: Receipt | None = None
        self._decided = math.inf

    async def wait_started(self) -> None:
        """Wait for the CLI's pid. Raises `SpawnFailed`."""
        while not self.pid:
            if not await self._follow():
                raise SpawnFailed("the guardian of this run was lost while it started")
            if self._failure:
                raise SpawnFailed(self._failure)

    @property
    def guarded(self) -> bool:
        """Whether the zygote has forked this run's supervisor."""
        return bool(self._guardian)

    async def wait_exit(self) -> int:
        """Wait for the CLI's own end; return its exit status, negative for a signal."""
        while self.status is None:
            if not await self._follow():
                raise trio.BrokenResourceError("the supervisor of this run was lost")
        return self.status

    @property
    def alone(self) -> bool:
        """Whether the CLI left no descendant when it ended."""
        return self._alone

    def send_signal(self, number: int) -> None:
        """Send a signal to the CLI alone."""
        with contextlib.suppress(OSError):
            self._lifeline.send({"signal": number})

    def end(self) -> None:
        """Begin to end the whole tree."""
        self._decided = min(self._decided, trio.current_time())
        with contextlib.suppress(OSError):
            self._lifeline.send({"end": True})

    async def wait_gone(self) -> Receipt:
        """Wait for the supervisor's proof, else for the zygote's, else say that there is none."""
        if self._receipt is None:
            self._decided = min(self._decided, trio.current_time())
            self._receipt = await self._prove()
        return self._receipt

    async def _prove(self) -> Receipt:
        with trio.move_on_after(PROOF_TIMEOUT):
            await self._wait_proof()
        if self._gone is None:
            await self._insist()
        if self._gone is not None:
            return self._count(self._gone["seen"], self._gone["killed"], 0)
        return await self._orphaned()

    async def _follow(self) -> bool:
        """Take in one packet; return False when the supervisor is gone."""
        packet = await self._lifeline.receive()
        if packet is None:
            return False
        if "guardian" in packet:
            self._guardian = packet["guardian"]
            with contextlib.suppress(ProcessLookupError):
                self._pidfd = os.pidfd_open(self._guardian)
        if "failed" in packet:
            self._failure = _why(packet["failed"], packet["what"])
            self._gone = {"seen": 0, "killed": 0}
        if "exit" in packet:
            self.status = packet["exit"]
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
            if self._pidfd < 0 or self._gone is not None:
                return
            try:
                signal.pidfd_send_signal(self._pidfd, number)
            except ProcessLookupError:
                return
            with trio.move_on_after(CONTINUE_GRACE):
                await self._wait_proof()

    async def _orphaned(self) -> Receipt:
        """Get the proof from the zygote below which a lost supervisor's orphans are; sweep by mark where it is gone."""
        swept = None
        with trio.move_on_after(PROOF_TIMEOUT):
            swept = await self._zygote.wait_swept(self._guardian) if self._guardian else None
        if swept:
            return self._count(max(swept.seen, 1), swept.killed, 0)
        found, killed = marks.kill(self._mark)
        await trio.sleep(0.05)
        left = len(marks.find(self._mark))
        return self._count(max(found, 1), killed, left or None)

    def _count(self, seen: int, killed: int, survivors: int | None) -> Receipt:
        ms = (trio.current_time() - self._decided) * 1000
        return Receipt(seen=seen, killed=killed, survivors=survivors, ms=round(ms, 3), containment="supervisor")

    def close(self) -> None:
        """Give up the pipes, and the lifeline, whose end is the order to end everything."""
        for end in self._ends:
            end.close()
        self._lifeline.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


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
            raise SpawnFailed(_why(error.errno or 0, "pipes")) from error
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
                raise SpawnFailed(_why(error.errno or 0, "hand-over")) from error
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


def _why(number: int, what: str) -> str:
    """Return an error number as a sentence for a person."""
    name = errno.errorcode.get(number, str(number))
    if what == "exec" and number == errno.ENOENT:
        return "the CLI was not found: pip install 'trio-claude[claude]' or --cli PATH"
    if what == "exec" and number == errno.EACCES:
        return "the CLI is not executable: chmod +x it, or name another with --cli PATH"
    if what == "cwd":
        return f"the working directory can't be entered: {os.strerror(number)}"
    return f"the CLI could not be started: {what}: {os.strerror(number)} ({name})"
