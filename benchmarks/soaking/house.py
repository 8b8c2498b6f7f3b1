"""The server under the soak: one life after the other, on one state folder, one journal and one port; what it holds.

Whatever a server starts is below this process for as long as it lives, for this process adopts what loses its parent
(`PR_SET_CHILD_SUBREAPER`): no session, name or environment of its own hides it. This module must never judge what a
client was told.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import math
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import attrs
import trio
from chaos import described, stat

from trio_claude.containment import marks
from trio_claude.journal.bulk import folder_of

from .served import SIZE

START_BOUND = 30.0
"""Seconds in which a server must listen."""
STOP_BOUND = 25.0
"""Seconds in which one that drains must have exited: its own bounds add up to 15."""
GONE_BOUND = 5.0
"""Seconds after a server's death in which the last process of its runs is gone."""
REST_BOUND = 25.0
"""Seconds after the last client's leaving in which nothing of any run is left; a run's own clocks are shorter."""
LOOK_PAUSE = 0.05
JOURNAL = "journal.db"
"""The name of the journal's file in the server's folder."""
LOG_LINE = 1024 * 1024
"""Bytes of the server's log that are kept while a line is not whole."""
PR_SET_CHILD_SUBREAPER = 36

Hear = Callable[[dict[str, Any]], None]


def adopt_orphans() -> None:
    """Become the parent of what is orphaned below this process."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "this process can't become a subreaper")


def below(root: int) -> dict[int, int]:
    """Return all descendants of a process, each with its parent."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - at each look; a Path costs ten times what the name does
        if name.isdigit():
            with contextlib.suppress(OSError):
                children.setdefault(stat(int(name))[2], []).append(int(name))
    found: dict[int, int] = {}
    todo = [root]
    for parent in todo:
        new = [pid for pid in children.get(parent, ()) if pid not in found]
        found.update(dict.fromkeys(new, parent))
        todo += new
    return found


def memory_of(pid: int, *names: str) -> int:
    """Return the sum of these fields of a process's status, in KiB. Raises OSError; IndexError for an ended one."""
    status = Path(f"/proc/{pid}/status").read_text()
    return sum(int(status.partition(f"{name}:")[2].split()[0]) for name in names)


@attrs.frozen
class Sample:
    """What a server holds at one moment. Memory in KiB; nan is what can't be read, or is not there."""

    server: int
    guardians: float
    """The mean of its zygote and the supervisors that wait; without the pages of files, of which each has others."""
    waiting: int
    """Supervisors that wait."""
    descriptors: float
    """Without the two of each supervisor that waits, and without the histories that the journal holds open (32)."""
    tasks: int


@attrs.define
class Family:
    """A server's processes: itself, its zygotes, supervisors that wait for a run, and all others."""

    zygotes: list[int]
    waiting: list[int]
    others: list[int]

    @classmethod
    def of(cls, *servers: int) -> Family:
        """Look at all processes below this one; those of no server are others too."""
        found = below(os.getpid())
        zygotes = [pid for pid, parent in found.items() if parent in servers]
        parents = set(found.values())
        waiting = [pid for pid, parent in found.items() if parent in zygotes and pid not in parents]
        known = {*servers, *zygotes, *waiting}
        return cls(zygotes, waiting, [pid for pid in found if pid not in known])


@attrs.define(eq=False)
class House:
    """The server, one life after the other.

    Resource handling: `live` owns one life's process and hears its log to the end. Error handling: a server that does
    not start raises OSError or trio.TooSlowError.
    """

    folder: Path
    words: tuple[str, ...]
    environ: dict[str, str]
    hear: Hear = lambda _event: None
    program: tuple[str, ...] = (sys.executable, "-P", str(Path(__file__).with_name("served.py")))
    sockets: tuple[int, ...] = ()
    """Descriptors that the server gets."""
    port: int = 0
    life: int = 0
    falling: bool = False
    """Whether the server was told to go, or killed."""
    process: trio.Process = attrs.field(init=False)
    deaf: trio.Event = attrs.field(init=False)
    """Set when the log of this life has ended."""
    complaint: str = ""
    """What stderr said last that was no event."""

    @property
    def journal(self) -> Path:
        """The journal's file."""
        return self.folder / JOURNAL

    @property
    def tmp(self) -> Path:
        """The folder for what is temporary."""
        return self.folder / "tmp"

    @property
    def server(self) -> str:
        """The id by which this life's runs are marked; empty while there is no server."""
        return next((path.name.removeprefix("tcl-") for path in self.tmp.glob("tcl-*")), "")

    async def start(self, nursery: trio.Nursery) -> None:
        """Begin a life."""
        self.tmp.mkdir(exist_ok=True)
        counted = self.folder / "tasks"
        counted.write_bytes(bytes(SIZE))
        self.process = await trio.lowlevel.open_process(
            [*self.program, "serve", *self.words, "--port", str(self.port)], cwd=self.folder, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=self.sockets,
            env={**self.environ, "TMPDIR": str(self.tmp), "SOAK_TASKS": str(counted)},
        )  # fmt: skip
        self.life, self.falling, self.deaf = self.life + 1, False, trio.Event()
        nursery.start_soon(self._hear_log, self.process, self.deaf)
        with trio.fail_after(START_BOUND):
            self.port = await self._listening()

    async def _listening(self) -> int:
        assert self.process.stdout
        told = b""
        while not told.endswith(b"\n"):
            told += (chunk := await self.process.stdout.receive_some())
            if not chunk:
                raise ConnectionError(f"the server did not start: {self.complaint}")
        return int(told.rpartition(b":")[2])

    async def _hear_log(self, process: trio.Process, deaf: trio.Event) -> None:
        """Read the server's log to its end, each line as it comes."""
        assert process.stderr
        rest = b""
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while chunk := await process.stderr.receive_some():
                *lines, rest = (rest + bytes(chunk)).split(b"\n")
                rest = rest[-LOG_LINE:]
                for line in lines:
                    self._hear_line(line)
        deaf.set()

    def _hear_line(self, line: bytes) -> None:
        if line.startswith(b"{"):
            self.hear(json.loads(line))
        else:
            self.complaint = line.decode(errors="replace")[:300] or self.complaint

    # its end

    def fall(self, number: int) -> None:
        """Send the signal that ends it."""
        self.falling = True
        self.process.send_signal(number)

    def fell(self, life: int) -> bool:
        """Return whether a life is over, or about to be."""
        return self.falling or self.life != life

    async def wait_end(self) -> int | None:
        """Wait for the process's end; return its exit status, None where it did not end in time and was killed."""
        with trio.move_on_after(STOP_BOUND):
            return await self.process.wait()
        self.process.kill()
        await self.process.wait()
        return None

    async def close(self) -> None:
        """End what there is of it, by force, and reap it."""
        with trio.CancelScope(shield=True):
            self.falling = True
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()
            for pid in below(os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for pipe in (self.process.stdout, self.process.stderr):
                if pipe:
                    await trio.aclose_forcefully(pipe)

    # what it holds

    async def left_behind(self, bound: float) -> list[str]:
        """Wait until no process is left but a living server's own; return what is, at the end of `bound` seconds."""
        quiet = 0
        with trio.move_on_after(bound):
            while quiet < 2:  # a process that forks itself anew all the time may be missed by one look
                self.reap()
                quiet = 0 if self._strangers() else quiet + 1
                await trio.sleep(LOOK_PAUSE)
            return []
        return self.names(self._strangers())

    def _strangers(self) -> list[int]:
        return Family.of(self.process.pid).others

    def names(self, pids: Iterable[int]) -> list[str]:
        """Return processes as a person may read them, with the run that they bear the mark of."""
        return [f"{text}{self._mark(text)}" for text in described(pids)]

    def _mark(self, text: str) -> str:
        with contextlib.suppress(OSError):
            variables = Path(f"/proc/{text.split(maxsplit=1)[0].rstrip(',')}/environ").read_bytes().split(b"\0")
            return next((f", {one.decode()}" for one in variables if one.startswith(marks.MARK.encode())), "")
        return ""

    def reap(self) -> None:
        """Take leave of the orphans that have ended here."""
        for pid, parent in below(os.getpid()).items():
            with contextlib.suppress(OSError, ChildProcessError):
                if parent == os.getpid() and pid != self.process.pid and stat(pid)[1] == "Z":
                    os.waitpid(pid, os.WNOHANG)

    def left_of(self, run: str) -> list[int]:
        """Return the living processes that bear a run's mark."""
        return marks.find(f"{self.server}:{run}")

    def folders(self) -> list[str]:
        """Return the runs that have a folder of the server's."""
        return [entry.name for entry in self.tmp.glob("tcl-*/runs/*")]

    def sample(self) -> Sample | None:
        """Look at what the server holds now; None where it, or one of its guardians, is just gone."""
        family = Family.of(self.process.pid)
        guardians = [*family.zygotes, *family.waiting]
        try:
            each = [memory_of(pid, "RssAnon", "VmSwap") for pid in guardians]
            memory = memory_of(self.process.pid, "VmRSS")
        except (OSError, IndexError):
            return None
        mean = sum(each) / len(each) if each else math.nan
        tasks = struct.unpack("q", (self.folder / "tasks").read_bytes())[0]
        return Sample(memory, mean, len(family.waiting), self._descriptors(family), tasks)

    def _descriptors(self, family: Family) -> float:
        links = []
        try:
            for link in Path(f"/proc/{self.process.pid}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):
                    links.append(str(link.readlink()))
        except PermissionError:
            return math.nan
        kept = sum(link.startswith(f"{folder_of(self.journal)}/") for link in links)
        return len(links) - kept - 2 * len(family.waiting)


@functools.cache
def cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))


def busy_seconds() -> tuple[float, float]:
    """Return the seconds that all processors have been busy, and idle, since the machine's start."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    tick = os.sysconf("SC_CLK_TCK")
    return (sum(fields[:3]) + sum(fields[5:8])) / tick, (fields[3] + fields[4]) / tick
