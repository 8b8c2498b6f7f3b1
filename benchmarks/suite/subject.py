"""One peer as a running server: started on loopback, read by /proc, and ended with all that it left.

It must never leave a process behind, nor end one that does not descend from what it started.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import attrs

from . import processes
from .install import Unavailable
from .native import Native
from .peers import Peer
from .processes import Process

START_BOUND = 20.0
STOP_BOUND = 10.0
PR_SET_CHILD_SUBREAPER = 36
HELPER = "trio-claude"
"""How the names of our zygote and guardians begin."""


@attrs.frozen
class Cpu:
    """CPU seconds: of the server, of our zygote, of the guardians alive, and of children that are gone by now."""

    server: float
    zygote: float = 0.0
    guardians: float = 0.0
    reaped: float = 0.0

    def since(self, before: Cpu) -> Cpu:
        """Return what was used since."""
        return Cpu(*(new - old for new, old in zip(attrs.astuple(self), attrs.astuple(before), strict=True)))

    @property
    def living(self) -> float:
        """Server, zygote and guardians, where none has ended meanwhile."""
        return self.server + self.zygote + self.guardians

    @property
    def whole(self) -> float:
        """Server, zygote, guardians and all children that are gone, the CLIs among them."""
        return self.server + self.zygote + self.guardians + self.reaped


@attrs.frozen
class Memory:
    """Memory in KiB: what the server alone has in no file, and the shares (PSS) of server, zygote and guardians."""

    own: float
    server: float
    zygote: float
    guardians: float

    @property
    def all(self) -> float:
        """All shares together."""
        return self.server + self.zygote + self.guardians


@attrs.frozen
class Subject:
    """A server under measurement."""

    peer: Peer
    port: int
    process: subprocess.Popen[bytes]
    native: Native
    cli: Path
    environ: Mapping[str, str]

    @property
    def pid(self) -> int:
        """Its process."""
        return self.process.pid

    def _helpers(self) -> tuple[list[Process], list[Process]]:
        """Return our zygote and our guardians; others have none, and are looked at just as long."""
        found = [process for process in processes.descendants(self.pid) if process.name.startswith(HELPER)]
        zygotes = [process for process in found if process.parent == self.pid]
        return zygotes, [process for process in found if process.parent != self.pid]

    def _is_cli(self, process: Process) -> bool:
        return process.name == self.cli.name[:15]

    def clis(self) -> list[Process]:
        """Return the CLIs that run below it."""
        return [process for process in processes.descendants(self.pid) if self._is_cli(process)]

    def cpu(self) -> Cpu:
        """Return the CPU time used so far, the server's last, so that it is of this moment."""
        zygotes, guardians = self._helpers()
        server = processes.read(self.pid)
        return Cpu(
            server.cpu,
            sum(process.cpu for process in zygotes),
            sum(process.cpu for process in guardians),
            server.reaped + sum(process.reaped for process in [*zygotes, *guardians]),
        )

    def memory(self) -> Memory:
        """Return the memory shares."""
        zygotes, guardians = self._helpers()
        return Memory(
            processes.pss(self.pid, "Pss_Anon"),
            processes.pss(self.pid),
            sum(processes.pss(process.pid) for process in zygotes),
            sum(processes.pss(process.pid) for process in guardians),
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    """Return whether somebody listens there; asked of the kernel, as a probe without a request ends some servers."""
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return any(row[1] == f"0100007F:{port:04X}" and row[3] == "0A" for row in rows)


def _wait_listening(process: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + START_BOUND
    while time.monotonic() < until and process.poll() is None:
        if _listens(port):
            return
        time.sleep(0.02)
    raise Unavailable("it did not start")


def _told_port(process: subprocess.Popen[bytes]) -> int:
    assert process.stdout
    line = process.stdout.readline()
    if not line.startswith(b"listening on"):
        raise Unavailable("it did not start")
    return int(line.rpartition(b":")[2])


def _adopt_orphans() -> None:
    """Become the parent of what a server leaves when it dies, so that it can be found."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _end_orphans(cli: Path) -> None:
    """End the CLIs that a server has left to us."""
    me = os.getpid()
    for process in processes.descendants(me):
        if process.parent == me and process.name == cli.name[:15]:
            processes.end([process])
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process.pid, 0)


def _stop(process: subprocess.Popen[bytes]) -> None:
    below = processes.descendants(process.pid)
    process.terminate()
    try:
        process.wait(STOP_BOUND)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    processes.end(below)
    if process.stdout:
        process.stdout.close()


@contextmanager
def running(peer: Peer, native: Native, cli: Path, environ: Mapping[str, str]) -> Iterator[Subject]:
    """Start a peer with a CLI and a whole environment, and stop it. Raises Unavailable."""
    port = _free_port()
    _adopt_orphans()
    words = peer.command(native, cli, port)
    with tempfile.TemporaryDirectory(prefix="tcb-") as folder:
        process = subprocess.Popen(
            words, cwd=folder, env=environ, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if peer.ours else subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            if peer.ours:
                port = _told_port(process)
            else:
                _wait_listening(process, port)
            yield Subject(peer, port, process, native, cli, environ)
        finally:
            _stop(process)
            _end_orphans(cli)
