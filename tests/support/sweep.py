"""Sweeps: the whole handler of one connection, cancelled at each of its steps, with faults at any of its calls."""

from __future__ import annotations

import errno
import functools
import json
import os
import random
import socket
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import attrs
import trio
from fakes import FakeContainment, FakeProcess
from harness import FAKE_ENV, head
from trio.testing import MemorySendStream

from trio_claude.api import OPEN_PATHS, Api
from trio_claude.config import Config
from trio_claude.connection import DOOR, SESSION_DOOR, Household, serve_connection
from trio_claude.containment import Contained, Job
from trio_claude.containment.base import Told, forget
from trio_claude.entrance import Entrance
from trio_claude.errors import SpawnFailed
from trio_claude.events import Crashed, Event, RunEnded
from trio_claude.peer import Heart
from trio_claude.places import Places
from trio_claude.room import greeting
from trio_claude.runs import Runs
from trio_claude.workplace import Workplace


@attrs.frozen
class Way:
    """What a client does: the door that it takes, what it waits for, and what it says then."""

    path: str
    greeting: bytes
    says: tuple[dict[str, object], ...]

    @property
    def frames(self) -> bytes:
        return b"".join(
            b"\x81" + bytes((0x80 | len(said),)) + b"\0\0\0\0" + said
            for said in (json.dumps(one).encode() for one in self.says)
        )


ONE_SHOT = Way(DOOR, b"send {prompt", ({"prompt": "hello", "meta": "T"},))
SESSION = Way(
    SESSION_DOOR,
    b'"identity"',
    (
        {"type": "gateway", "op": "start", "meta": "T"},
        {"type": "nonsense"},
        {"type": "user", "message": {"role": "user", "content": "hello"}},
        {"type": "gateway", "op": "stop", "mode": "interrupt"},
        {"type": "gateway", "op": "stop", "mode": "end"},
    ),
)
CLOSE = b"\x88\x82\0\0\0\0\x03\xe8"
LINES = 3


class Faults:
    """Counts calls that can fail and makes the chosen one fail."""

    def __init__(self, at: int | None) -> None:
        self.at = at
        self.calls = 0

    def check(self) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise OSError(errno.EIO, "a fault of the test")


class FaultySocket(socket.socket):
    """A socket whose calls count."""

    faults: Faults

    def send(self, data, flags=0):  # type: ignore[no-untyped-def]
        self.faults.check()
        return super().send(data, flags)

    def recv(self, size, flags=0):  # type: ignore[no-untyped-def]
        self.faults.check()
        return super().recv(size, flags)


class FaultyContainment(FakeContainment):
    """A containment whose processes' pipes can fail."""

    def __init__(self, faults: Faults) -> None:
        super().__init__()
        self.faults = faults

    def start(self, job: Job, told: Told = forget) -> AbstractAsyncContextManager[Contained]:
        try:
            self.faults.check()
        except OSError as error:
            raise SpawnFailed(str(error)) from error
        return super().start(job, told)


class Stepper(trio.abc.Instrument):
    """Cancels a scope at the k-th step of any task below it."""

    def __init__(self, scope: trio.CancelScope, at: int | None) -> None:
        self.scope = scope
        self.at = at
        self.steps = 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1
        if self.steps == self.at:
            self.scope.cancel()


@attrs.frozen
class Swept:
    """What one pass left and said."""

    steps: int
    calls: int
    frames: bytes
    end: str
    events: list[Event]

    @property
    def crashes(self) -> list[Crashed]:
        return [event for event in self.events if isinstance(event, Crashed)]

    @property
    def ended(self) -> list[RunEnded]:
        return [event for event in self.events if isinstance(event, RunEnded)]


async def act(containment: FakeContainment) -> None:
    """Be the CLI: read the prompt, say some lines, exit."""
    process: FakeProcess = await containment.wait_started()
    try:
        await process.prompts.receive_some()
        for number in range(LINES):
            say: MemorySendStream = process.say
            await say.send_all(b'{"type":"line","n":%d}\n' % number)
        await process.complain.send_all(b"oh\n")
        if process.status is None:
            process.exit(0)
    except (trio.ClosedResourceError, trio.BrokenResourceError):
        return


async def talk(sock: socket.socket, heard: bytearray, way: Way) -> str:
    """Be the client; return how the connection ended."""
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
    try:
        await stream.send_all(head(way.path))
        while way.greeting not in heard:
            heard += (chunk := await stream.receive_some())
            if not chunk:
                return "end"
        await stream.send_all(way.frames)
        while chunk := await stream.receive_some():
            heard += chunk
            if b"\x88" in chunk:
                await stream.send_all(CLOSE)
        return "end"
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return "reset"
    finally:
        await trio.aclose_forcefully(stream)


async def sweep(folder: Path, cancel_at: int | None = None, fault_at: int | None = None, way: Way = ONE_SHOT) -> Swept:
    """Serve one connection, cancelled at step `cancel_at`, its `fault_at`-th call failing; assert that nothing is left."""
    faults, heard, events = Faults(fault_at), bytearray(), []
    before = set(os.listdir("/proc/self/fd"))
    ours, theirs = socket.socketpair()
    server = FaultySocket(fileno=ours.detach())
    server.faults = faults
    server.setblocking(False)
    config = Config(cli="/bin/true", cwd=str(folder))
    containment = FaultyContainment(faults)
    async with Workplace.open(config, FAKE_ENV) as workplace:
        runs = Runs(workplace, containment, events.append)
        entrance = Entrance(config, OPEN_PATHS)
        api = Api(workplace, containment, runs, entrance)
        greet = functools.partial(greeting, config, "0", "fake")
        household = Household(config, runs, entrance, api.answer, Heart(config), events.append, greet)
        stepper = Stepper(trio.CancelScope(), cancel_at)
        ends: list[str] = []
        async with trio.open_nursery() as nursery:

            async def client() -> None:
                ends.append(await talk(theirs, heard, way))

            nursery.start_soon(client)
            nursery.start_soon(act, containment)
            trio.lowlevel.add_instrument(stepper)
            try:
                with stepper.scope, Places() as places:
                    await serve_connection(server, "127.0.0.1", 1, household, places)
            finally:
                trio.lowlevel.remove_instrument(stepper)
            with trio.move_on_after(60):
                while not ends:
                    await trio.sleep(0.1)
            nursery.cancel_scope.cancel()
        assert containment.live == 0, "a process is left"
        assert all(process.ended for process in containment.started), "a process was not ended"
        assert runs.statistics() == attrs.evolve(runs.statistics(), live=0, waiting=0, taken=0), "a run is left"
        assert not list(Path(workplace.folders).iterdir()), "a folder is left"
        assert not entrance.inside, "a client is still counted"
    assert ends, "the client saw no end"
    assert set(os.listdir("/proc/self/fd")) == before, "a descriptor is left"
    return Swept(stepper.steps, faults.calls, bytes(heard), ends[0], events)


def pairs(count: int, steps: int, calls: int, seed: int) -> list[tuple[int, int]]:
    """Return `count` random pairs of a step and a call."""
    rng = random.Random(seed)
    return [(rng.randint(1, steps), rng.randint(1, calls)) for _ in range(count)]
