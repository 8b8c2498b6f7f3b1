"""A network namespace in which one server lives, and the cable between it and Redis, which can be cut.

This program lives in a namespace of its own then, with Redis and all other servers; nothing outside of the two is
changed. A client reaches the server inside by a door: a socket stays in the namespace in which it was made.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import trio
from cutter import open_cutter

NEAR, FAR = "10.231.78.1", "10.231.78.2"
"""Addresses of the two ends, this program's and the island's."""
CABLE = ("tcn-near", "tcn-far")
NOWHERE = "02:00:00:00:00:01"
"""A link address that nobody has: what is sent there is gone, without a word."""
CLONE_NEWNET = 0x40000000
HOLDER = ("unshare", "--net", "sh", "-c", "echo; exec sleep infinity")
"""What holds a namespace, and says a line once it is there."""
_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *words: int) -> None:
    if getattr(_libc, name)(*words):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def ip(*words: str) -> None:
    """Have iproute2 do something. Raises OSError."""
    told = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if told.returncode:
        raise OSError(f"ip {' '.join(words)}: {told.stderr.strip()}")


@attrs.frozen
class Island:
    """The namespace of a process that does nothing, and its cable."""

    pid: int

    @property
    def within(self) -> tuple[str, ...]:
        """What stands before a command that is to be run inside."""
        return ("nsenter", f"--net=/proc/{self.pid}/ns/net", "--")

    def _there(self, *words: str) -> None:
        done = subprocess.run([*self.within, "ip", *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")

    def lay_cable(self) -> None:
        """Connect the two. Raises OSError."""
        near, far = CABLE
        ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", str(self.pid))
        ip("address", "add", f"{NEAR}/24", "dev", near)
        ip("link", "set", near, "up")
        self._there("link", "set", "lo", "up")
        self._there("address", "add", f"{FAR}/24", "dev", far)
        self._there("link", "set", far, "up")

    def cut(self, how: str) -> None:
        """Cut the cable: `down` is told to both ends, `silent` to nobody."""
        if how == "down":
            ip("link", "set", CABLE[0], "down")
        else:
            ip("neigh", "replace", FAR, "lladdr", NOWHERE, "dev", CABLE[0], "nud", "permanent")
            self._there("neigh", "replace", NEAR, "lladdr", NOWHERE, "dev", CABLE[1], "nud", "permanent")

    def mend(self, how: str) -> None:
        """Mend it."""
        if how == "down":
            ip("link", "set", CABLE[0], "up")
        else:
            ip("neigh", "del", FAR, "dev", CABLE[0])
            self._there("neigh", "del", NEAR, "dev", CABLE[1])

    async def connect(self, host: str, port: int) -> trio.SocketStream:
        """Connect to a port of the island's own."""
        with self._inside():
            sock = trio.socket.socket()
        await sock.connect((host, port))
        return trio.SocketStream(sock)

    @contextmanager
    def _inside(self) -> Iterator[None]:
        """Make sockets there; nothing may be awaited, and no thread or process started, meanwhile."""
        with contextlib.ExitStack() as stack:
            places = [f"/proc/{self.pid}/ns/net", "/proc/thread-self/ns/net"]
            there, own = (os.open(place, os.O_RDONLY) for place in places)
            stack.callback(os.close, there)
            stack.callback(os.close, own)
            _call("setns", there, CLONE_NEWNET)
            try:
                yield
            finally:
                _call("setns", own, CLONE_NEWNET)

    async def open_door(self, port: int, *, task_status: trio.TaskStatus[int]) -> None:
        """Have a port here lead to one there, until cancelled; say which."""
        async with open_cutter(port, self.connect) as door:
            task_status.started(door.port)
            await trio.sleep_forever()


def move_apart() -> None:
    """Move this program into a namespace of its own; threads that there are stay behind. Raises OSError."""
    _call("unshare", CLONE_NEWNET)
    ip("link", "set", "lo", "up")


@contextmanager
def open_island() -> Iterator[Island]:
    """Make a namespace beside that of this program, which has moved to one of its own. Raises OSError."""
    with subprocess.Popen(HOLDER, stdout=subprocess.PIPE) as holder:
        try:
            if not holder.stdout or not holder.stdout.readline():
                raise OSError("unshare --net gives no namespace")
            island = Island(holder.pid)
            island.lay_cable()
            yield island
        finally:
            holder.kill()
