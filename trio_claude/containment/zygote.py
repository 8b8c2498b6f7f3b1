"""The server's side of the zygote: starting it, hearing it, replacing it when it is lost.

This module must never wait for the zygote without a bound, and never let it inherit anything of the server's.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import trio

from .guardian import PACKET_LIMIT, RLIMITS

ANSWER_LIMIT = 64 * 1024
"""A guardian's packet in bytes; the longest names the supervisors that were lost at once."""
GUARDIAN = Path(__file__).with_name("guardian.py")


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
                packet = self._socket.recv(ANSWER_LIMIT)
            except (BlockingIOError, ConnectionResetError):
                continue  # a reset says that our last order was left unread; what was said before is still there
            except (OSError, trio.ClosedResourceError):
                return None
            return json.loads(packet) if packet else None

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._socket.fileno()

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
        try:
            self.process: subprocess.Popen[bytes] = _exec_guardian(theirs)
        except OSError:
            ours.close()
            raise
        try:
            self._pidfd = os.pidfd_open(self.process.pid)
        except OSError:
            ours.close()
            self.process.kill()
            self.process.wait()
            raise
        self.control: Packets = Packets(ours)
        self.alive: bool = True
        self._fresh: tuple[Any, ...] = ()
        self._lost: dict[int, Swept] = {}
        self._news = trio.Condition()

    @property
    def unchanged(self) -> bool:
        """Whether what it forks inherits what it did when it was ready: a process of its user can change that."""
        return self.resembles(self.process.pid)

    def resembles(self, pid: int) -> bool:
        """Return whether what a process forks inherits what it would have from this zygote when that was ready."""
        return _bounds(pid) == self._fresh

    async def follow(self, ready: trio.Event) -> None:
        """Hear what the zygote says until it is gone."""
        try:
            while packet := await self.control.receive():
                if "ready" in packet:
                    self._fresh = _bounds(self.process.pid)
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

    def forget(self, guardian: int) -> None:
        """Forget what was swept below a supervisor of old that had the pid of one that has just been forked."""
        self._lost.pop(guardian, None)

    def wake(self) -> None:
        """Continue a zygote that a run may have stopped."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End a zygote that does not answer; its supervisors live on."""
        self.process.send_signal(signal.SIGKILL)

    async def wait_exit(self) -> None:
        """Wait for the zygote's own end."""
        try:
            await trio.lowlevel.wait_readable(self._pidfd)
            self.process.wait()
        finally:
            os.close(self._pidfd)

    def close(self) -> None:
        """Give the zygote up; it may have been stopped."""
        self.control.close()
        self.wake()


def _bounds(pid: int) -> tuple[Any, ...]:
    """Return the limits, ranks and processors of a process, as far as they are told; nothing where it is gone.

    Not how many processes there may be: that an operator may change, and who fails by it is told.
    """
    asked: list[Callable[[], Any]] = [
        partial(os.getpriority, os.PRIO_PROCESS, pid),
        partial(os.sched_getscheduler, pid),  # which musl never tells
        partial(os.sched_getaffinity, pid),
        *(partial(resource.prlimit, pid, kind) for kind in range(RLIMITS) if kind != resource.RLIMIT_NPROC),
    ]
    told = []
    for ask in asked:
        with contextlib.suppress(OSError):
            told.append(ask())
    return tuple(told)


def _exec_guardian(control: socket.socket) -> subprocess.Popen[bytes]:
    """Start the zygote, under a name of its own, with nothing of our environment but where libraries are.

    Raises OSError.
    """
    with control:
        source = os.open(GUARDIAN, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _exec(source, control)
        finally:
            os.close(source)


def _exec(source: int, control: socket.socket) -> subprocess.Popen[bytes]:
    """Start the zygote from its file's descriptor: no path that names Python shows in `ps`."""
    libraries = {name: value for name, value in os.environ.items() if name == "LD_LIBRARY_PATH"}
    return subprocess.Popen(
        ["trio-claude-zygote", "-s", "-S", "-P", f"/proc/self/fd/{source}", str(control.fileno()), str(os.getpid())],
        executable=getattr(sys, "_base_executable", sys.executable) or "/proc/self/exe",  # who has no PATH has no name
        env={**libraries, "PYTHONHOME": f"{sys.base_prefix}:{sys.base_exec_prefix}", "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(source, control.fileno()),
        cwd="/",
        start_new_session=True,
    )
