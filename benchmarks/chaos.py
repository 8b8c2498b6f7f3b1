"""Random endings of runs, times kinds of children, and what outlives the end.

    python benchmarks/chaos.py --count 10000 --mode auto --seed N --json chaos.json
    python benchmarks/chaos.py --count 2000 --alternatives

Each run's CLI (`children/chaos.py`) joins a control group of its own, which this program has made outside of the
server under test, before it forks anything; so the members of that group are the truth, whatever the descendants do to
their session, name, parent or environment. A run has left something if its group has a living member

* when the run's end is told, by the server's log or by the close frame, whichever is first; or
* where the server itself dies, `DEAD_BOUND` seconds after that; or
* at the end of the batch, when everything is looked at again, the server's own group included: a guardian that stays
  behind is counted there, and so is a CLI that was ended before it joined its group.

Some endings, a share of `--early`, come at a random moment while the run is still starting.

An agent's tool that kills by name, or all it may, runs only with server, guardians and runs in a PID namespace which
this program has made, and only after the killing process has itself verified that it is in there.

`--alternatives` plays the endings that make sense for any server with four others, and prints the survivors beside
ours: a server that kills the CLI's process group, `trio.run_process`, the official SDK's transport, and websocketd.
They tell nobody when they are done, so each gets `PATIENCE` seconds. The CLI here does not end its children by itself.

Needs a cgroup2 file system in which it may make folders. The exit status is 1 if an ending that is promised left
something, if one was never told, or if the server crashed inside; 2 where the measurement itself went wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.metadata
import itertools
import json
import math
import os
import random
import secrets
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import attrs
import trio
from common import machine, masked, masked_text, open_socket, percentile, python_child, split_frames

KINDS = (
    "plain", "ignore-term", "stopped", "grandchild", "setsid", "double-fork", "scrubbed", "comet", "hold-stdout",
)  # fmt: skip
DEAD_BOUND = 2.0
"""Seconds after a server's death in which its runs must be gone."""
TOLD_BOUND = 25.0
"""Seconds in which a living server must have told a run's end; its own bounds for a lost guardian add up to 16."""
UNSTARTED_BOUND = 1.0
"""Seconds to wait for the end of a run which may never have started, because its client left first."""
READY_BOUND = 20.0
"""Seconds in which a run must be up; under load twenty at once take half a second."""
STOP_BOUND = 10.0
"""Seconds that a server without runs gets to exit after SIGTERM."""
DRAIN_TIMEOUT = 0.2
"""Seconds that the server lets runs go on after SIGTERM."""
DEADLINES = 0.7, 1.2
"""Seconds between which deadlines are chosen."""
PAUSE = 0.02
"""Seconds that pass at most between a run's being ready and its ending."""
EARLY = 0.06
"""Seconds after its prompt in which a run that is not waited for is ended."""
LOOK_PAUSE = 0.02
"""Seconds between two looks where nothing tells."""
AHEAD = 10
"""How much nicer, where it may be, everything under test is than this program, which must see things as they happen."""
SHOWN = 20
"""Runs that left something, which are described."""
JOIN = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
CREATED = "trio-claude-chaos"
SEVERED = "-"
PATIENCE = 8.0
"""Seconds after the ending that an alternative gets, which tells nobody when it is done (its own ladders take 5)."""


# -- control groups: the oracle ---------------------------------------------------------------------------------------


def find_cgroup2() -> Path:
    """Return the folder of our own group in cgroup2, in which groups can be made. Raises OSError."""
    own = next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, kind = line.partition(" - ")
        if kind.startswith("cgroup2 "):
            folder = Path(fields.split()[4] + own)
            probe = folder / f"{CREATED}-{secrets.token_hex(4)}"
            probe.mkdir()
            probe.rmdir()
            return folder
    raise FileNotFoundError("no cgroup2 is mounted")


@attrs.frozen
class Group:
    """A control group."""

    path: Path

    @classmethod
    def make(cls, path: Path) -> Group:
        """Make a group."""
        path.mkdir()
        return cls(path)

    def members(self) -> list[int]:
        """Return the pids of its living members."""
        return [int(pid) for pid in (self.path / "cgroup.procs").read_text().split()]

    def populated(self) -> bool:
        """Return whether it or a group in it has a living member."""
        return "populated 1" in (self.path / "cgroup.events").read_text()

    def kill(self) -> None:
        """Kill all members of it and of the groups in it, at once."""
        (self.path / "cgroup.kill").write_text("1")

    async def remove(self) -> None:
        """Kill what is left and remove it with the groups in it."""
        self.kill()
        with trio.fail_after(10):
            while self.populated():
                await trio.sleep(LOOK_PAUSE)
        for child in [*(path for path in self.path.iterdir() if path.is_dir()), self.path]:
            child.rmdir()


class Watch:
    """Hears from the kernel when a group becomes empty."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._groups: dict[int, tuple[bool, Callable[[], None]]] = {}

    @contextmanager
    def over(self, group: Group, on_empty: Callable[[], None]) -> Iterator[None]:
        """Call `on_empty` whenever `group` becomes empty."""
        number = os.open(group.path / "cgroup.events", os.O_RDONLY)
        self._groups[number] = False, on_empty
        self._epoll.register(number, select.EPOLLPRI | select.EPOLLET)
        try:
            yield
        finally:
            self._epoll.unregister(number)
            del self._groups[number]
            os.close(number)

    async def run(self) -> None:
        """Listen for ever."""
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            for number, _ in self._epoll.poll(0):
                if number in self._groups:
                    self._look(number)

    def _look(self, number: int) -> None:
        before, on_empty = self._groups[number]
        populated = b"populated 1" in os.pread(number, 200, 0)
        self._groups[number] = populated, on_empty
        if before and not populated:
            on_empty()


# -- one run ----------------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class Run:
    """One run: how it is to end, and what became of it. Times are `time.monotonic`, which the CLI sees too."""

    name: str
    ending: Ending
    kind: str
    early: bool
    group: Group
    stream: trio.SocketStream | None = None
    pid: int = 0
    ready_at: float = math.inf
    ended_at: float = math.inf
    empty_at: float = math.inf
    told_at: float = math.inf
    told_by: str = ""
    left_told: list[str] | None = None
    left_end: list[str] = attrs.Factory(list)
    outcome: dict[str, Any] | None = None
    refused: str = ""
    deadline: float = 0.0
    polite: bool = False
    answered_early: bool = False
    ready: trio.Event = attrs.Factory(trio.Event)
    started: trio.Event = attrs.Factory(trio.Event)
    told: trio.Event = attrs.Factory(trio.Event)

    @property
    def void(self) -> bool:
        """Whether it never came to the ending that was meant for it."""
        return not self.early and not self.ready.is_set() and self.ending.name != "deadline"

    @property
    def left(self) -> list[str]:
        """What was alive when it must not be."""
        return self.left_told or self.left_end

    @property
    def survivors(self) -> object:
        """What the server's receipt claims."""
        return self.outcome["receipt"]["survivors"] if self.outcome else SEVERED

    def hear_empty(self) -> None:
        """Hear that no process of it is left."""
        self.empty_at = time.monotonic()

    def hear_told(self, by: str) -> None:
        """Hear, by the log or from the server itself, that it is over; look whether that is true."""
        if not self.told.is_set():
            self.told_at, self.told_by = time.monotonic(), by
            self.left_told = described(self.group.members())
            self.told.set()

    def hear_close(self) -> None:
        """Hear the server's close frame; where it only answers the client's own, it says nothing of the run."""
        if self.polite:
            self.answered_early = self.group.populated()
        else:
            self.hear_told("close frame")

    def end_now(self, late: float = 0.0) -> None:
        """Note that its end begins now, or `late` seconds from now."""
        self.ended_at = min(self.ended_at, time.monotonic() + late)

    def reset(self) -> None:
        """Leave with a reset."""
        self.end_now()
        if self.stream:
            with contextlib.suppress(OSError):
                self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.stream.socket.close()

    def finish(self, *, politely: bool) -> None:
        """Leave with a FIN, after a close frame or without one."""
        self.end_now()
        if self.stream:
            self.polite = politely
            with contextlib.suppress(OSError):
                if politely:
                    os.write(self.stream.socket.fileno(), masked(8, b"\x03\xe8"))
                self.stream.socket.shutdown(socket.SHUT_WR)

    def words(self, batch: Batch) -> str:
        """Return the prompt for its CLI."""
        told: dict[str, object] = {"kind": self.kind, "cgroup": self.group.path, "act": self.ending.act}
        if self.ending.act == "exit":
            told["delay"] = round(batch.random.uniform(0, PAUSE), 4)
            self.deadline = float(str(told["delay"]))
        if self.ending.caged:
            told |= batch.cage()
        return " ".join(f"{name}={value}" for name, value in told.items())

    def report(self) -> dict[str, object]:
        """Return what is written about it where it left something."""
        return {
            "run": self.name, "ending": self.ending.name, "kind": self.kind, "early": self.early,
            "when": f"told by {self.told_by}" if self.left_told else "at the end",
            "left": self.left, "outcome": self.outcome,
            "seconds_to_told": seconds(self.told_at - self.ended_at),
            "seconds_to_empty": seconds(self.empty_at - self.ended_at),
        }  # fmt: skip


def seconds(value: float) -> float | None:
    """Return a duration as JSON can say it."""
    return round(value, 4) if math.isfinite(value) else None


def described(pids: Iterable[int]) -> list[str]:
    """Return processes as a person may read them; also those that are gone by now, as a comet's are."""
    return [description(pid) for pid in pids]


def description(pid: int) -> str:
    """Return a process's pid, name, state, parent and the parent's name."""
    try:
        name, state, parent = stat(pid)
        return f"{pid} {name} {state}, child of {parent} {stat(parent)[0] if parent else ''}".rstrip()
    except OSError:
        return f"{pid}, gone a moment later"


def stat(pid: int) -> tuple[str, str, int]:
    """Return a process's name, state and parent. Raises OSError."""
    head, _, tail = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    fields = tail.split()
    return head.partition("(")[2], fields[0], int(fields[1])


def children_of(pid: int) -> list[int]:
    """Return the children of a process; none if it is gone."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def guardians(pid: int, server: int) -> tuple[int, int]:
    """Return the supervisor and the zygote above the CLI `pid`. Raises OSError where the chain is broken."""
    chain = [pid]
    while chain[-1] != server:
        if chain[-1] <= 1:
            raise ProcessLookupError(f"the server is not above {pid}")
        chain.append(stat(chain[-1])[2])
    return chain[-3], chain[-2]


@contextmanager
def held(pids: Iterable[int]) -> Iterator[list[int]]:
    """Hold processes by descriptor, so that a signal can't hit another one."""
    with contextlib.ExitStack() as stack:
        found = []
        for pid in set(pids):
            with contextlib.suppress(ProcessLookupError):
                found.append(os.pidfd_open(pid))
                stack.callback(os.close, found[-1])
        yield found


def send(descriptors: Iterable[int], number: int) -> None:
    """Send a signal to held processes."""
    for descriptor in descriptors:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, number)


# -- the endings ------------------------------------------------------------------------------------------------------

Act = Callable[["Batch", Sequence[Run]], Awaitable[None]]


@attrs.frozen(kw_only=True)
class Ending:
    """One way to end: what the harness does (`how`), what the CLI does itself (`act`), and for how many runs at once.

    `together` runs of a batch are ended by one act; 1 means that each has its own, beside runs of other endings.
    `unpromised` names the modes in which docs/promises.md excludes it. `caged` needs a PID namespace around it all.
    """

    name: str
    how: Act
    act: str = "wait"
    together: int = 1
    kills_server: bool = False
    caged: bool = False
    unpromised: frozenset[str] = frozenset()

    @property
    def may_be_early(self) -> bool:
        """Whether it can come while the run starts; a run that starts would wake a zygote that is to stay stopped."""
        return self.act == "wait" and self.name != "zygote-stop"


ENDINGS: dict[str, Ending] = {}


def ending(**more: Any) -> Callable[[Act], Act]:
    """Register an ending under its function's name."""

    def register(how: Act) -> Act:
        name = how.__name__.rstrip("_").replace("_", "-")
        ENDINGS[name] = Ending(name=name, how=how, **more)
        return how

    return register


ATTACKS_ALL = frozenset({"supervisor", "group"})
"""Modes in which an attack on all guardians at once is not promised to leave nothing."""
GROUP = 40
"""Runs that share a server which is killed, or a zygote."""


@ending()
async def client_rst(batch: Batch, runs: Sequence[Run]) -> None:
    """Let the client reset its connection."""
    for run in runs:
        run.reset()


@ending()
async def client_fin(batch: Batch, runs: Sequence[Run]) -> None:
    """Let the client close its connection, with a close frame or without."""
    for run in runs:
        run.finish(politely=batch.random.random() < 0.5)


@ending()
async def deadline(batch: Batch, runs: Sequence[Run]) -> None:
    """Do nothing; the run's deadline passes."""


@ending(act="exit")
async def exit_(batch: Batch, runs: Sequence[Run]) -> None:
    """Do nothing; the CLI exits by itself."""
    for run in runs:
        run.ended_at = run.ready_at + run.deadline


@ending()
async def supervisor_kill(batch: Batch, runs: Sequence[Run]) -> None:
    """Kill the run's supervisor."""
    with held(batch.supervisors(runs)) as found:
        for run in runs:
            run.end_now()
        send(found, signal.SIGKILL)
    if len(found) < len(runs):  # one that came too early to have a supervisor
        await client_rst(batch, runs)


@ending(act="stop-parent", together=100)
async def supervisor_stop(batch: Batch, runs: Sequence[Run]) -> None:
    """Let the client leave; the run itself has stopped its supervisor."""
    await client_rst(batch, runs)


@ending(together=GROUP)
async def zygote_kill(batch: Batch, runs: Sequence[Run]) -> None:
    """Kill the zygote, and let the clients leave a little later."""
    with held(batch.zygotes(runs)) as found:
        send(found, signal.SIGKILL)
    await trio.sleep(batch.random.uniform(0, 4 * PAUSE))
    await client_rst(batch, runs)


@ending(together=GROUP)
async def zygote_stop(batch: Batch, runs: Sequence[Run]) -> None:
    """Stop the zygote, and let the clients leave."""
    with held(batch.zygotes(runs)) as found:
        send(found, signal.SIGSTOP)
    await client_rst(batch, runs)


@ending(together=GROUP, unpromised=ATTACKS_ALL)
async def guardians_kill(batch: Batch, runs: Sequence[Run]) -> None:
    """Kill the zygote and all supervisors, in random order."""
    with held([*batch.supervisors(runs), *batch.zygotes(runs)]) as found:
        batch.random.shuffle(found)
        for run in runs:
            run.end_now()
        send(found, signal.SIGKILL)
    for run in runs:
        if not run.pid:
            run.reset()


@ending(together=GROUP, kills_server=True)
async def drain(batch: Batch, runs: Sequence[Run]) -> None:
    """Send SIGTERM to the server."""
    for run in runs:
        run.end_now(batch.subject.drain_timeout)
    batch.process.terminate()


@ending(together=GROUP, kills_server=True)
async def server_kill(batch: Batch, runs: Sequence[Run]) -> None:
    """Kill the server."""
    for run in runs:
        run.end_now()
    batch.process.kill()


@ending(together=GROUP, kills_server=True, unpromised=ATTACKS_ALL)
async def server_and_supervisor_kill(batch: Batch, runs: Sequence[Run]) -> None:
    """Kill the server and all supervisors, in random order."""
    with held([*batch.supervisors(runs), batch.process.pid]) as found:
        batch.random.shuffle(found)
        for run in runs:
            run.end_now()
        send(found, signal.SIGKILL)


@ending(act="stop-parent", together=GROUP, kills_server=True, unpromised=ATTACKS_ALL)
async def supervisor_stop_server_kill(batch: Batch, runs: Sequence[Run]) -> None:
    """Kill the server; the runs have stopped their supervisors."""
    await server_kill(batch, runs)


@ending(act="kill-by-name", together=GROUP, caged=True)
async def pkill_python(batch: Batch, runs: Sequence[Run]) -> None:
    """Let tools of the runs kill everything named python, with SIGTERM or SIGKILL."""
    batch.go(runs)


@ending(act="kill-all", together=GROUP, caged=True, unpromised=ATTACKS_ALL)
async def kill_all(batch: Batch, runs: Sequence[Run]) -> None:
    """Let tools of the runs kill all they may."""
    batch.go(runs)


# -- what is under test -----------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Subject:
    """A server to be started, ours or another: `words` start it, where {port} stands for a free one.

    `tells` says whether the end of a run can be read in its log; otherwise `patience` seconds are waited.
    """

    name: str
    words: tuple[str, ...]
    tells: bool = True
    patience: float = DEAD_BOUND
    drain_timeout: float = 0.0


def ours(mode: str, cli: Path) -> Subject:
    """Return our own server."""
    words = ("serve", "--port", "0", "--cli", str(cli), "--containment", mode, "--max-runs", "1000",
             "--drain-timeout", str(DRAIN_TIMEOUT), "--timeout", "90")  # fmt: skip
    return Subject(name="trio-claude", words=(sys.executable, "-m", "trio_claude", *words), drain_timeout=DRAIN_TIMEOUT)


@attrs.define
class Lab:
    """What all batches share."""

    folder: Path
    root: Group
    watch: Watch
    early: float
    at_once: int
    nice: int
    numbers: Iterator[int] = attrs.Factory(itertools.count)
    mode: str = ""
    """The containment in force, as the server said."""


class Batch:
    """One server, its runs, and what was seen of them.

    Resource handling: `play` owns the server and the groups; nothing of either is left when it returns.
    """

    def __init__(self, lab: Lab, subject: Subject, plan: Sequence[tuple[Ending, str]], seed: str) -> None:
        self.lab = lab
        self.subject = subject
        self.random = random.Random(seed)
        self.name: str = f"b{next(lab.numbers)}"
        self.group: Group = Group.make(lab.root.path / self.name)
        self.server: Group = Group.make(self.group.path / "server")
        self.folder: Path = lab.folder / self.name
        self.folder.mkdir()
        self.runs: list[Run] = [self._run(number, how, kind) for number, (how, kind) in enumerate(plan)]
        self.together: bool = plan[0][0].together > 1 or not subject.tells
        self.caged: bool = plan[0][0].caged
        self.signal: int = int(self.random.choice((signal.SIGTERM, signal.SIGKILL)))
        self.mark: str = secrets.token_hex(16)
        self.process: trio.Process
        self.port: int = 0
        self.faults: list[str] = []
        self.guardians_left: list[str] = []
        self.probe: bool | None = None
        self.complaint: str = ""
        self._said: trio.abc.ReceiveStream
        self._log: trio.abc.ReceiveStream
        self._deaf = trio.Event()
        self._waiting = 0
        self._acted = trio.Event()

    def _run(self, number: int, how: Ending, kind: str) -> Run:
        name = f"R{number}"
        early = self.subject.tells and how.may_be_early and self.random.random() < self.lab.early
        return Run(name, how, kind, early, Group.make(self.group.path / name))

    # what endings ask for

    def supervisors(self, runs: Iterable[Run]) -> list[int]:
        """Return the supervisors of `runs`, as far as they have come."""
        return [found[0] for found in self._guardians(runs)]

    def zygotes(self, runs: Iterable[Run]) -> list[int]:
        """Return the zygotes of `runs`: one, unless it was lost before."""
        return [found[1] for found in self._guardians(runs)]

    def _guardians(self, runs: Iterable[Run]) -> Iterator[tuple[int, int]]:
        for run in runs:
            with contextlib.suppress(OSError):
                if run.pid:
                    yield guardians(run.pid, self.process.pid)

    def cage(self) -> dict[str, object]:
        """Return what a tool needs to verify that it is in our PID namespace."""
        tree = self.group.path.relative_to(self.lab.root.path.parent)
        own = Path("/proc/self/cgroup").read_text().rpartition("0::")[2].strip().rstrip("/")
        return {
            "namespace": Path("/proc/self/ns/pid").readlink(),
            "tree": f"{own}/{tree}",
            "mark": self.mark,
            "go": self.folder / "go",
            "signal": self.signal,
        }

    def go(self, runs: Iterable[Run]) -> None:
        """Let the tools loose."""
        for run in runs:
            run.end_now()
        (self.folder / "go").touch()

    # its life

    async def play(self) -> None:
        """Start the server, play all runs, and look at what is left."""
        try:
            async with self._serving():
                slots = trio.CapacityLimiter(len(self.runs) if self.together else self.lab.at_once)
                async with trio.open_nursery() as nursery:
                    for run in self.runs:
                        nursery.start_soon(self._play_in, slots, run)
                await self._probe()
                await self._settle()
        except* (OSError, trio.TooSlowError) as group:
            self.faults.append(f"{self.name}: {group.exceptions!r}; the server's last words: {self.complaint}")
        finally:
            with trio.CancelScope(shield=True):
                await self.group.remove()

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        """Run the server in its own group, and hear it."""
        port = free_port()
        words = [word.format(port=port) for word in self.subject.words]
        join = ["nice", "-n", str(self.lab.nice), "/bin/sh", "-c", JOIN, str(self.server.path)]
        environ = {**os.environ, "TMPDIR": str(self.folder), "CLAUDE_AGENT_SDK_SKIP_VERSION_CHECK": "1"}
        self.process = await trio.lowlevel.open_process(
            [*join, *(caging(self.mark) if self.caged else ()), *words], env=environ, cwd=self.folder,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert self.process.stdout
        assert self.process.stderr
        self._said, self._log = self.process.stdout, self.process.stderr
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._hear_log)
                self.port = await self._listening(port)
                nursery.start_soon(self._discard)
                yield
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                self.group.kill()
                await self.process.wait()
                for pipe in (self.process.stdin, self._said, self._log):
                    if pipe:
                        await trio.aclose_forcefully(pipe)

    async def _listening(self, port: int) -> int:
        """Wait until the server accepts; return where. Raises OSError, or trio.TooSlowError."""
        with trio.fail_after(READY_BOUND):
            if "{port}" in " ".join(self.subject.words):
                while not await accepts(port):
                    await trio.sleep(LOOK_PAUSE)
                return port
            told = b""
            while not told.endswith(b"\n"):
                told += (chunk := await self._said.receive_some())
                if not chunk:
                    await self._deaf.wait()
                    raise ConnectionError("the server did not start")
            return int(told.rpartition(b":")[2])

    async def _discard(self) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while await self._said.receive_some():
                pass

    async def _hear_log(self) -> None:
        """Read the server's log, each line as it comes."""
        named, rest = {run.name: run for run in self.runs}, b""
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while chunk := await self._log.receive_some():
                *lines, rest = (rest + bytes(chunk)).split(b"\n")
                for line in lines:
                    self._hear_line(line, named)
        self._deaf.set()

    def _hear_line(self, line: bytes, named: dict[str, Run]) -> None:
        if not line.startswith(b"{"):
            self.complaint = line.decode(errors="replace")[:200]
            return
        event: dict[str, Any] = json.loads(line)
        run = named.get(event.get("meta", ""))
        if event["event"] == "ContainmentReady":
            self.lab.mode = event["mode"]
        elif event["event"] == "RunStarted" and run:
            run.pid = event["pid"]
            if run.ending.name == "deadline":
                run.ended_at = time.monotonic() + run.deadline
            run.started.set()
        elif event["event"] == "RunEnded" and run:
            run.outcome = event["outcome"]
            run.hear_told("log")
        elif event["event"] in ("Crashed", "LogDropped"):
            self.faults.append(f"{self.name}: {event}")

    # a run's life

    async def _play_in(self, slots: trio.CapacityLimiter, run: Run) -> None:
        async with slots:
            with self.lab.watch.over(run.group, run.hear_empty):
                async with trio.open_nursery() as nursery:
                    await self._begin(run, nursery)
                    await (self._act_together(run) if self.together else self._act_alone(run))
                    await self._await_end(run)
                    nursery.cancel_scope.cancel()
                if run.stream:
                    await trio.aclose_forcefully(run.stream)

    async def _begin(self, run: Run, nursery: trio.Nursery) -> None:
        """Connect, say the prompt, and wait until the children are there, or, for an early ending, not."""
        message: dict[str, object] = {"prompt": run.words(self), "meta": run.name}
        if run.ending.name == "deadline":
            message["timeout"] = run.deadline = round(self.random.uniform(*DEADLINES), 3)
        try:
            with trio.fail_after(READY_BOUND):
                run.stream, rest = await open_socket(self.port)
                await run.stream.send_all(masked_text(message))
                nursery.start_soon(self._listen, run, run.stream, rest)
                if run.early:
                    await trio.sleep(self.random.uniform(0, EARLY))
                else:
                    await first(run.ready.wait, run.told.wait)
        except (OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
            run.refused = repr(error)
        if not run.early and run.ready.is_set() and not self._right(run):
            self.faults.append(f"{self.name}: {run.name} is ready without its children")

    def _right(self, run: Run) -> bool:
        """Return whether the oracle sees a run that is up (a CLI that exits may be gone by now)."""
        return run.ending.act == "exit" or run.told.is_set() or len(run.group.members()) >= 2

    async def _listen(self, run: Run, stream: trio.SocketStream, rest: bytes) -> None:
        """Hear what the server says to the client, until it closes."""
        with contextlib.suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            while True:
                frames, rest = split_frames(rest)
                for opcode, payload in frames:
                    self._hear_frame(run, opcode, payload)
                rest += (chunk := await stream.receive_some())
                if not chunk:
                    return

    def _hear_frame(self, run: Run, opcode: int, payload: bytes) -> None:
        if opcode == 8 and self.subject.tells:
            run.hear_close()
        elif b'"ready"' in payload:
            stamp = payload.partition(b'"t":')[2].partition(b"}")[0]
            run.ready_at = min(float(stamp), time.monotonic())
            run.ready.set()
        elif b'"refused"' in payload:
            self.faults.append(f"{self.name}: {payload.decode()}")

    async def _act_alone(self, run: Run) -> None:
        if run.ending.name not in ("deadline", "exit"):
            await trio.sleep(0 if run.early else self.random.uniform(0, PAUSE))
        await run.ending.how(self, [run])

    async def _act_together(self, run: Run) -> None:
        """Wait for all runs of the batch; the last to come ends them all."""
        self._waiting += 1
        if self._waiting < len(self.runs):
            await self._acted.wait()
            return
        await trio.sleep(self.random.uniform(0, PAUSE))
        self._acted.set()
        await run.ending.how(self, self.runs)

    async def _await_end(self, run: Run) -> None:
        """Wait until it is told that the run is over; where nobody is left to tell, look after a while."""
        if not self.subject.tells or run.ending.kills_server or run.ending.caged:
            await trio.sleep(max(0.0, min(run.ended_at - time.monotonic(), 1)))
            await self._look(run, self.subject.patience)
            if run.ending.caged:
                with trio.move_on_after(DEAD_BOUND):
                    await first(run.told.wait, self._deaf.wait)
            return
        if run.early and not run.started.is_set():
            with trio.move_on_after(UNSTARTED_BOUND):
                await first(run.started.wait, run.told.wait)
            if not run.started.is_set():
                return
        with trio.move_on_after(TOLD_BOUND):
            await run.told.wait()

    async def _look(self, run: Run, patience: float) -> None:
        with trio.move_on_after(patience):
            while run.group.populated():
                await trio.sleep(LOOK_PAUSE)

    # its end

    async def _probe(self) -> None:
        """See whether a server that lost its zygote, or has one that is stopped, serves on."""
        if self.runs[0].ending.name not in ("zygote-kill", "zygote-stop") or self.random.random() < 0.5:
            return
        run = Run("PROBE", ENDINGS["client-rst"], "plain", False, Group.make(self.group.path / "PROBE"))
        async with trio.open_nursery() as nursery:
            await self._begin(run, nursery)
            self.probe = run.ready.is_set()
            run.reset()
            await self._look(run, TOLD_BOUND)
            nursery.cancel_scope.cancel()

    async def _settle(self) -> None:
        """Look at each run again; then let the server end, and look whether a guardian stays."""
        for run in self.runs:
            run.left_end = described(run.group.members())
        if self.subject.tells and not self.caged:
            await self._look_for_strays()
            if not self.runs[0].ending.kills_server:
                if self.process.poll() is not None:
                    self.faults.append(f"{self.name}: the server died; its last words: {self.complaint}")
                self.process.terminate()
            with trio.move_on_after(STOP_BOUND) as late:
                await self.process.wait()
            if late.cancelled_caught:
                self.faults.append(f"{self.name}: the server did not exit within {STOP_BOUND:g} s")
            await self._look_at_server()

    async def _look_for_strays(self) -> None:
        """Look whether anything outlives its run beside a server that lives, its zygote and supervisors that wait."""
        with trio.move_on_after(DEAD_BOUND):
            while not self._rests(self.server.members()):
                await trio.sleep(LOOK_PAUSE)
            return
        self.guardians_left = described(self.server.members())

    def _rests(self, members: list[int]) -> bool:
        """Return whether `members` are the server, its zygote, and supervisors that have no child."""
        zygotes = [pid for pid in members if pid in children_of(self.process.pid)]
        waiting = [pid for zygote in zygotes for pid in children_of(zygote)]
        return len(members) == 1 + len(zygotes) + len(waiting) and not any(map(children_of, waiting))

    async def _look_at_server(self) -> None:
        """Look, after the server's end, whether a guardian or a CLI that never joined its group is left."""
        with trio.move_on_after(DEAD_BOUND):
            while self.server.populated():
                await trio.sleep(LOOK_PAUSE)
        self.guardians_left += described(self.server.members())


async def first(*waits: Callable[[], Awaitable[None]]) -> None:
    """Wait until the first of several waits is over."""
    async with trio.open_nursery() as nursery:

        async def wait(what: Callable[[], Awaitable[None]]) -> None:
            await what()
            nursery.cancel_scope.cancel()

        for what in waits:
            nursery.start_soon(wait, what)


def caging(mark: str) -> list[str]:
    """Return the words that put a command into a PID namespace below an init of ours."""
    init = [sys.executable, "-I", "-S", str(Path(__file__).parent / "children" / "chaos.py"), f"chaos-init={mark}"]
    more = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    return ["unshare", *more, "--pid", "--fork", "--mount-proc", "--kill-child", *init]


def can_cage() -> bool:
    """Return whether a PID namespace can be made here."""
    if not shutil.which("unshare"):
        return False
    words = caging("probe")
    words = [*words[: words.index("--kill-child") + 1], "true"]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def accepts(port: int) -> bool:
    """Return whether somebody listens on `port`."""
    try:
        await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
    except OSError:
        return False
    return True


# -- the alternatives -------------------------------------------------------------------------------------------------

Say = Callable[[str], Awaitable[None]]


async def by_killpg(program: str, prompt: str, say: Say) -> None:
    """Start the CLI in a session of its own, and kill its group at the end."""
    pipe = subprocess.PIPE
    process = await trio.lowlevel.open_process([program], stdin=pipe, stdout=pipe, start_new_session=True)
    assert process.stdin
    assert process.stdout
    try:
        await process.stdin.send_all(prompt.encode() + b"\n")
        await process.stdin.aclose()
        async for chunk in process.stdout:
            await say(chunk.decode())
        await process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with trio.CancelScope(shield=True):
            await process.wait()


async def by_run_process(program: str, prompt: str, say: Say) -> None:
    """Let Trio run the CLI; a cancellation ends it."""
    start = functools.partial(trio.run_process, [program], stdin=prompt.encode() + b"\n", stdout=subprocess.PIPE)
    async with trio.open_nursery() as nursery:
        process = await nursery.start(functools.partial(start, check=False))
        async for chunk in process.stdout:
            await say(chunk.decode())


async def by_sdk(program: str, prompt: str, say: Say) -> None:
    """Let the official SDK's transport run the CLI, and close it at the end."""
    from claude_agent_sdk import ClaudeAgentOptions
    from claude_agent_sdk._internal.transport.subprocess_cli import SubprocessCLITransport

    async def nothing() -> AsyncIterator[dict[str, Any]]:
        return
        yield

    transport = SubprocessCLITransport(prompt=nothing(), options=ClaudeAgentOptions(cli_path=program))
    await transport.connect()
    try:
        await transport.write(prompt + "\n")
        async for message in transport.read_messages():
            await say(json.dumps(message))
    finally:
        await transport.close()


WAYS: dict[str, Callable[[str, str, Say], Awaitable[None]]] = {
    "killpg": by_killpg, "run_process": by_run_process, "sdk": by_sdk,
}  # fmt: skip


async def be_peer(way: str, program: str) -> None:
    """Be a server as one would write it today: a connection's nursery owns its CLI, SIGTERM cancels everything."""
    from trio_websocket import ConnectionClosed, WebSocketRequest, serve_websocket

    async def serve_one(request: WebSocketRequest) -> None:
        socket = await request.accept()
        with contextlib.suppress(ConnectionClosed):
            prompt = json.loads(await socket.get_message())["prompt"]
            async with trio.open_nursery() as nursery:

                async def until_left() -> None:
                    with contextlib.suppress(ConnectionClosed):
                        await socket.get_message()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(until_left)
                await WAYS[way](program, prompt, socket.send_message)
                nursery.cancel_scope.cancel()

    async def guarded(request: WebSocketRequest) -> None:
        try:
            await serve_one(request)
        except* Exception as group:
            print(repr(group), file=sys.stderr)

    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            server = await nursery.start(functools.partial(serve_websocket, guarded, "127.0.0.1", 0, ssl_context=None))
            print(f"listening on http://127.0.0.1:{server.port}", flush=True)
            await anext(signals)
            nursery.cancel_scope.cancel()


def peers(cli: Path) -> list[Subject]:
    """Return the alternatives that there are here."""
    found = [
        Subject(name=way, words=(sys.executable, str(Path(__file__).resolve()), "--be", way, str(cli)),
                tells=False, patience=PATIENCE)
        for way in WAYS
        if way != "sdk" or version("claude-agent-sdk")
    ]  # fmt: skip
    if program := shutil.which("websocketd"):
        words = (program, "--port={port}", "--address=127.0.0.1", "--loglevel=fatal", str(cli))
        found.append(Subject(name="websocketd", words=words, tells=False, patience=PATIENCE))
    return found


COMPARED = ("client-rst", "client-fin", "exit", "drain", "server-kill")
"""Endings that make sense for every server. `drain` is SIGTERM."""


# -- the whole --------------------------------------------------------------------------------------------------------


def plan(count: int, endings: Sequence[Ending], at_once: int, rng: random.Random) -> list[list[tuple[Ending, str]]]:
    """Return batches of endings times kinds, each cell as often as the others, give or take one."""
    cells = [(how, kind) for how in endings for kind in KINDS]
    rng.shuffle(cells)
    chosen = [cells[number % len(cells)] for number in range(count)]
    rng.shuffle(chosen)
    batches: list[list[tuple[Ending, str]]] = []
    for how in (None, *(how for how in endings if how.together > 1)):
        mine = [cell for cell in chosen if (cell[0] is how if how else cell[0].together == 1)]
        size = how.together if how else 10 * at_once
        batches += [list(some) for some in batched(mine, max(1, math.ceil(len(mine) / size)))]
    rng.shuffle(batches)
    return batches


def batched(items: Sequence[Any], count: int) -> Iterator[Sequence[Any]]:
    """Return `items` in `count` parts of much the same size, without empty ones."""
    for number in range(count):
        part = items[len(items) * number // count : len(items) * (number + 1) // count]
        if part:
            yield part


@asynccontextmanager
async def until_signal() -> AsyncIterator[None]:
    """Clean up and end on SIGTERM and SIGINT."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            async def give_up() -> None:
                raise SystemExit(128 + await anext(signals))

            nursery.start_soon(give_up)
            yield
            nursery.cancel_scope.cancel()


def get_ahead() -> int:
    """Give this program priority over what it watches; return how much it got."""
    before = os.nice(0)
    with contextlib.suppress(PermissionError):
        return before - os.nice(-AHEAD)
    return 0


@asynccontextmanager
async def open_lab(options: argparse.Namespace) -> AsyncIterator[Lab]:
    """Open the groups and folders for everything. Raises OSError."""
    root = Group.make(find_cgroup2() / f"{CREATED}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with tempfile.TemporaryDirectory(prefix="tcc-") as name:
            watch = Watch()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch.run)
                yield Lab(Path(name), root, watch, options.early, options.at_once, get_ahead())
                nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await root.remove()


@attrs.frozen
class Results:
    """What came of all batches of one subject."""

    batches: Sequence[Batch]
    mode: str

    @property
    def runs(self) -> list[Run]:
        """All runs that came to their ending."""
        return [run for batch in self.batches for run in batch.runs if not run.void]

    @property
    def void(self) -> list[Run]:
        """The others, which say something of the measurement only."""
        return [run for batch in self.batches for run in batch.runs if run.void]

    @property
    def faults(self) -> list[str]:
        """What went wrong beside."""
        return [fault for batch in self.batches for fault in batch.faults]

    def cell(self, ending: str | None = None, kind: str | None = None) -> tuple[int, int]:
        """Return how many runs of an ending and a kind left something, and how many there were."""
        mine = [run for run in self.runs if ending in (None, run.ending.name) and kind in (None, run.kind)]
        return sum(bool(run.left) for run in mine), len(mine)

    def promised(self, ending: str) -> bool:
        """Return whether nothing may be left by an ending, in the mode that was in force."""
        return self.mode not in ENDINGS[ending].unpromised

    def untold(self) -> list[Run]:
        """Return runs whose end a living server never told."""
        return [
            run for run in self.runs
            if not (run.told.is_set() or run.ending.kills_server or run.ending.caged)
            and (run.started.is_set() or not run.early)
        ]  # fmt: skip

    def broken(self) -> list[Run]:
        """Return runs that left something although it is promised that they don't."""
        false = self.false_proofs()
        return [run for run in self.runs if run.left and (run in false or self.promised(run.ending.name))]

    def false_proofs(self) -> list[Run]:
        """Return runs whose receipt says that nothing was left, which was not so."""
        return [run for run in self.runs if run.left_told and run.survivors == 0]

    def guardians_left(self) -> list[tuple[str, list[str]]]:
        """Return the guardians that stayed, by the ending of their batch."""
        return [(batch.runs[0].ending.name, batch.guardians_left) for batch in self.batches if batch.guardians_left]


def share(left: int, total: int) -> str:
    """Return a cell: left of total, and where nothing is left the 95 % upper bound in per cent."""
    if not total:
        return "–"
    return f"**{left}/{total}**" if left else f"0/{total} (≤ {bound(total):.3g})"


def bound(total: int) -> float:
    """Return what share, in per cent, may be left although none of `total` was: the rule of three."""
    return min(100.0, 300 / max(1, total))


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table(results: Results) -> str:
    """Return ending times kind: left of total."""
    names = [name for name in ENDINGS if results.cell(name)[1]]
    rows = [
        [name + ("" if results.promised(name) else " *"), *(share(*results.cell(name, kind)) for kind in KINDS),
         share(*results.cell(name))]
        for name in names
    ]  # fmt: skip
    rows.append(["all", *(share(*results.cell(kind=kind)) for kind in KINDS), share(*results.cell())])
    return markdown(["ending", *KINDS, "all"], rows)


def durations(results: Results) -> str:
    """Return a table of the milliseconds from an ending to the emptiness of its group."""
    rows = []
    for name in ENDINGS:
        runs = [run for run in results.runs if run.ending.name == name]
        late = [max(0.0, run.empty_at - run.ended_at) * 1000 for run in runs if math.isfinite(run.empty_at)]
        if late:
            times = percentile(late, 0.5), percentile(late, 0.99), max(late)
            early, told = sum(run.early for run in runs), sum(bool(run.left_told) for run in runs)
            rows.append(
                [name, f"{len(late)}", *(f"{value:.1f}" for value in times), f"{early}", f"{told}", claims(runs)]
            )
    head = ["ending", "n", "p50 ms", "p99 ms", "max ms", "early", "left when told", "receipts: 0 / unproven / more"]
    return markdown(head, rows)


def claims(runs: Sequence[Run]) -> str:
    """Return how many receipts claim that nothing is left, that nothing is proven, and that something is left."""
    found = Counter(str(run.survivors) for run in runs)
    return f"{found['0']} / {found['None']} / {len(runs) - found['0'] - found['None'] - found[SEVERED]}"


def comparison(every: dict[str, Results]) -> str:
    """Return survivors of each server beside the others', by ending and by kind."""
    names = [name for name in COMPARED if any(results.cell(name)[1] for results in every.values())]
    by_ending = [[who, *(plainly(results.cell(name)) for name in names)] for who, results in every.items()]
    by_kind = [[who, *(plainly(total(results, kind)) for kind in KINDS)] for who, results in every.items()]
    head = ["runs that left something", *names]
    return f"{markdown(head, by_ending)}\n\n{markdown([head[0], *KINDS], by_kind)}"


def total(results: Results, kind: str) -> tuple[int, int]:
    """Return a kind's sum over the endings that are compared."""
    cells = [results.cell(name, kind) for name in COMPARED]
    return sum(left for left, _ in cells), sum(count for _, count in cells)


def plainly(cell: tuple[int, int]) -> str:
    """Return a cell without a bound."""
    return f"**{cell[0]}**/{cell[1]}" if cell[0] else f"0/{cell[1]}"


def version(name: str) -> str:
    """Return the version of an installed distribution, empty where there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def versions() -> str:
    """Return the versions that the figures depend on."""
    names = ("trio-claude", "trio", "trio-websocket", "claude-agent-sdk")
    return ", ".join(f"{name} {version(name)}" for name in names if version(name))


def verdict(results: Results) -> list[str]:
    """Return what is to be said of our own server, beside the tables."""
    left, count = results.cell()
    probes = Counter(batch.probe for batch in results.batches if batch.probe is not None)
    broken, untold, kept = results.broken(), results.untold(), results.guardians_left()
    excluded = sorted(name for name in ENDINGS if not results.promised(name))
    lines = [
        f"containment {results.mode}; {count} endings, {left} left something, {len(broken)} of these where it is "
        f"promised that nothing is left{'' if left else f'; 95 % upper bound {bound(count):.2g} %'}",
        f"false proofs: {len(results.false_proofs())}; never told: {len(untold)}; void: {len(results.void)}",
        f"batches whose guardians stayed: {len(kept)}; "
        f"served on after a lost or stopped zygote: {probes[True]} of {probes.total()}",
    ]
    if polite := [run for run in results.runs if run.polite]:
        early = sum(run.answered_early for run in polite)
        lines.append(f"clients whose close was answered while processes of their run lived: {early} of {len(polite)}")
    if excluded:
        lines.append(
            f"* not promised in this mode (docs/promises.md, all guardians attacked at once): {', '.join(excluded)}"
        )
    lines += [f"NEVER TOLD {run.ending.name} x {run.kind}, early {run.early}: {run.refused}" for run in untold[:SHOWN]]
    lines += [f"VOID {run.ending.name} x {run.kind}: {run.refused} {run.outcome}" for run in results.void[:SHOWN]]
    lines += [f"GUARDIANS STAYED after {name}: {stayed}" for name, stayed in kept[:SHOWN]]
    lines += [f"LEFT {json.dumps(run.report())}" for run in broken[:SHOWN]]
    return [*lines, *(f"FAULT {fault}" for fault in results.faults[:SHOWN])]


def as_json(results: Results) -> dict[str, Any]:
    """Return everything of one subject, for a file."""
    return {
        "mode": results.mode,
        "cells": {name: {kind: results.cell(name, kind) for kind in KINDS} for name in ENDINGS},
        "milliseconds": {
            name: [seconds((run.empty_at - run.ended_at) * 1000) for run in results.runs if run.ending.name == name]
            for name in ENDINGS
        },
        "promised": {name: results.promised(name) for name in ENDINGS},
        "broken": len(results.broken()),
        "left": [run.report() for run in results.runs if run.left],
        "untold": [run.report() for run in results.untold()],
        "void": [run.report() for run in results.void],
        "guardians_left": results.guardians_left(),
        "faults": results.faults,
    }


async def measure(options: argparse.Namespace, endings: Sequence[Ending]) -> dict[str, Results]:
    """Play everything; return the results of our own server, and of the alternatives where they are asked for."""
    rng = random.Random(options.seed)
    began, done = time.monotonic(), 0

    def tell(batch: Batch) -> None:
        nonlocal done
        done += len(batch.runs)
        if not options.quiet:
            left = sum(bool(run.left) for run in batch.runs)
            name = batch.runs[0].ending.name if batch.runs[0].ending.together > 1 else "each its own"
            print(f"{time.monotonic() - began:7.1f} s {done:6} {batch.subject.name} {name}: {left}/{len(batch.runs)}",
                  file=sys.stderr, flush=True)  # fmt: skip

    async with open_lab(options) as lab, until_signal():
        cli = python_child(lab.folder, "chaos")
        mine = ours(options.mode, cli)
        chosen = plan(options.count, endings, options.at_once, rng)
        made = (Batch(lab, mine, cells, f"{options.seed}-{number}") for number, cells in enumerate(chosen))
        every = {mine.name: Results(await played(made, options.lanes, tell), lab.mode)}
        for subject in peers(cli) if options.alternatives else ():
            cells = [[(ENDINGS[name], kind) for kind in KINDS] * options.alternatives for name in COMPARED]
            made = (Batch(lab, subject, some, f"{options.seed}-{subject.name}-{some[0][0].name}") for some in cells)
            every[subject.name] = Results(await played(made, options.lanes, tell), "")
    return every


async def played(batches: Iterable[Batch], lanes: int, tell: Callable[[Batch], None]) -> list[Batch]:
    """Play batches as they are made, `lanes` at once; return them."""
    done = []
    todo = iter(batches)

    async def lane() -> None:
        for batch in todo:
            await batch.play()
            done.append(batch)
            tell(batch)

    async with trio.open_nursery() as nursery:
        for _ in range(lanes):
            nursery.start_soon(lane)
    return done


def main(options: argparse.Namespace) -> int:
    """Measure, print, and return the exit status."""
    names = options.endings.split(",") if options.endings else list(ENDINGS)
    endings = [ENDINGS[name] for name in names if can_cage() or not ENDINGS[name].caged]
    print(
        f"chaos: seed {options.seed}, {options.count} endings, mode {options.mode}; {versions()}; {machine()}",
        flush=True,
    )
    for name in set(names) - {how.name for how in endings}:
        print(f"not measured: {name}, for no PID namespace can be made here")
    began = time.monotonic()
    every = trio.run(measure, options, endings)
    mine = every["trio-claude"]
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(table(mine), durations(mine), "\n".join(verdict(mine)), sep="\n\n")
    if len(every) > 1:
        print(f"\n{comparison(every)}")
    print(f"\n{time.monotonic() - began:.0f} s of wall time, load average {load}")
    if options.json:
        told = {"seed": options.seed, "machine": machine(), "versions": versions(), "seconds": time.monotonic() - began}
        told |= {"subjects": {name: as_json(results) for name, results in every.items()}}
        options.json.write_text(json.dumps(told, indent=1, default=str))
    if mine.faults or mine.void:
        return 2
    return 1 if mine.broken() or mine.untold() or mine.guardians_left() else 0


def arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="endings in all")
    parser.add_argument("--mode", choices=("auto", "namespace", "supervisor"), default="auto", help="the containment")
    parser.add_argument("--endings", default="", help=f"some of {', '.join(ENDINGS)}, with commas between")
    parser.add_argument("--early", type=float, default=0.1, help="share of endings that come while the run starts")
    parser.add_argument("--at-once", type=int, default=20, help="runs at once that end each in its own way")
    parser.add_argument("--lanes", type=int, default=1, help="servers at once")
    parser.add_argument("--seed", default=secrets.token_hex(4))
    parser.add_argument("--alternatives", type=int, nargs="?", const=3, default=0, metavar="N",
                        help="measure the alternatives too, N runs for each ending and kind")  # fmt: skip
    parser.add_argument("--json", type=Path, help="write everything to this file")
    parser.add_argument("--quiet", action="store_true", help="say nothing of single batches")
    parser.add_argument("--be", nargs=2, metavar=("WAY", "CLI"), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    chosen_options = arguments()
    if chosen_options.be:
        trio.run(be_peer, *chosen_options.be)
    else:
        sys.exit(main(chosen_options))
