"""Rule: a client that vanishes without a word, its cable cut, loses its run within a bound that is documented.

The server's sockets are in one network namespace and the client's in another, with a virtual cable between them; all
else stays where it is. Cutting the cable sends nothing: no end, no reset, no answer to anything.
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import socket
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import attrs
import pytest
import trio
from harness import Backend, alive, directive, held, listen, until
from trio_websocket import WebSocketConnection, wrap_client_stream

from trio_claude import listeners
from trio_claude import server as server_module
from trio_claude.config import Config
from trio_claude.errors import Reason
from trio_claude.events import RunStarted
from trio_claude.server import Server

pytestmark = pytest.mark.netns
SERVER, CLIENT = "10.231.77.1", "10.231.77.2"
MARGIN = 1.0
"""Seconds over a bound that a busy machine may take."""
KILLED_AT_ONCE = struct.pack("ii", 1, 0)
_libc = ctypes.CDLL(None, use_errno=True)


def ip(*words: str) -> None:
    told = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr


@contextmanager
def within(namespace: str) -> Iterator[None]:
    """Make sockets of `namespace`; nothing may be awaited, and no thread or process started, in the meantime."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    other = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        assert not _libc.setns(other, 0), os.strerror(ctypes.get_errno())
        yield
    finally:
        assert not _libc.setns(own, 0), os.strerror(ctypes.get_errno())
        os.close(other)
        os.close(own)


@attrs.frozen
class Cable:
    """Two namespaces and the cable between them."""

    name: str

    @property
    def near(self) -> str:
        return f"{self.name}s"

    @property
    def far(self) -> str:
        return f"{self.name}c"

    def listen(self) -> socket.socket:
        with within(self.near):
            return listeners._bound(socket.AF_INET, socket.SOCK_STREAM, 0, (SERVER, 0))

    async def connect(self, port: int) -> trio.SocketStream:
        with within(self.far):
            sock = trio.socket.socket()
        await sock.connect((SERVER, port))
        return trio.SocketStream(sock)

    def cut(self) -> float:
        """Cut the cable at the client's end; return when."""
        ip("-n", self.far, "link", "set", self.far, "down")
        return time.monotonic()

    def mend(self) -> None:
        ip("-n", self.far, "link", "set", self.far, "up")


@pytest.fixture
def cable() -> Iterator[Cable]:
    made = Cable(f"tct{secrets.token_hex(4)}")
    try:
        for end in (made.near, made.far):
            ip("netns", "add", end)
        ip("link", "add", made.near, "netns", made.near, "type", "veth", "peer", "name", made.far, "netns", made.far)
        for end, address in ((made.near, SERVER), (made.far, CLIENT)):
            ip("-n", end, "address", "add", f"{address}/24", "dev", end)
            ip("-n", end, "link", "set", end, "up")
        yield made
    finally:
        for end in (made.near, made.far):
            subprocess.run(["ip", "netns", "del", end], capture_output=True, check=False)


@asynccontextmanager
async def serving(
    fake: Backend, cable: Cable, monkeypatch: pytest.MonkeyPatch, **config: object
) -> AsyncIterator[Server]:
    """Serve at the near end. The configuration says loopback, as it must; just the listener is elsewhere."""

    async def listen(_config: Config) -> list[socket.socket]:
        return [cable.listen()]

    monkeypatch.setattr(server_module, "_listen", listen)
    async with fake.serve(**config) as server:
        yield server


@asynccontextmanager
async def connect(cable: Cable, server: Server, queue: int = 10_000) -> AsyncIterator[WebSocketConnection]:
    """Connect at the far end; with `queue` messages unread nothing more is read, and no ping answered."""
    stream = await cable.connect(server.port)
    async with trio.open_nursery() as nursery:
        try:
            yield await wrap_client_stream(nursery, stream, "localhost", "/ws/claude", message_queue_size=queue)
        finally:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, KILLED_AT_ONCE)
            await trio.aclose_forcefully(stream)
            nursery.cancel_scope.cancel()


async def start(socket_: WebSocketConnection, fake: Backend, prompt: str) -> int:
    """Say a prompt; return the CLI's pid."""
    await socket_.send_message(json.dumps({"prompt": prompt, "meta": "T"}))
    await until(lambda: any(isinstance(event, RunStarted) for event in fake.events))
    return next(event.pid for event in fake.events if isinstance(event, RunStarted))


async def time_to_death(pid: int, cut: float, patience: float) -> float:
    await until(lambda: not alive(pid), patience)
    return time.monotonic() - cut


SILENT = directive("silent")
TALKING = directive("lines", n=1_000_000, rate=20, size=200)
SHOUTING = directive("lines", n=100_000_000, size=500)


@pytest.mark.parametrize(
    ("prompt", "limits", "bound"),
    [
        # nothing waits to be sent: a ping stays unanswered
        (SILENT, {"ping_interval": 1, "ping_timeout": 1, "send_timeout": 60}, 2),
        (SILENT, {"ping_interval": 0.5, "ping_timeout": 2, "send_timeout": 60}, 2.5),
        # the kernel takes what little is said, and a ping stays unanswered
        (TALKING, {"ping_interval": 1, "ping_timeout": 1, "send_timeout": 60}, 2),
        # a write stands still
        (SHOUTING, {"ping_interval": 1, "ping_timeout": 1, "send_timeout": 2}, 2),
        (SHOUTING, {"ping_interval": 60, "ping_timeout": 60, "send_timeout": 3}, 3),
    ],
    ids=["silent", "silent-long-timeout", "talking", "shouting", "shouting-without-pings"],
)
async def test_a_vanished_clients_run_ends_in_time(
    fake: Backend,
    cable: Cable,
    monkeypatch: pytest.MonkeyPatch,
    prompt: str,
    limits: dict[str, float],
    bound: float,
) -> None:
    async with serving(fake, cable, monkeypatch, **limits) as server:
        await trio.sleep(0.1)
        before = held(server)
        async with connect(cable, server) as socket_:
            pid = await start(socket_, fake, prompt)
            await trio.sleep(0.7)
            assert alive(pid)
            took = await time_to_death(pid, cable.cut(), bound + 10)
            print(f"dead {took:.2f} s after the cut, bound {bound:g} s")
            assert took < bound + MARGIN
            await until(lambda: fake.ended)
        await until(lambda: held(server) == before)
    outcome = fake.ended[0].outcome
    assert (outcome.reason, outcome.receipt.survivors) == (Reason.DISCONNECTED, 0)
    assert fake.left() == []


async def test_a_cut_says_nothing(fake: Backend, cable: Cable, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the other tests rest on: without pings a cut is not noticed, however long one waits."""
    async with serving(fake, cable, monkeypatch, ping_interval=60, ping_timeout=60) as server:
        async with connect(cable, server) as socket_:
            pid = await start(socket_, fake, SILENT)
            cable.cut()
            await trio.sleep(4)
            assert alive(pid)


async def test_a_short_cut_is_survived(fake: Backend, cable: Cable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the bound a connection that comes back has lost nothing."""
    async with serving(fake, cable, monkeypatch, ping_interval=2, ping_timeout=4) as server:
        async with connect(cable, server) as socket_:
            await start(socket_, fake, directive("lines", n=60, rate=30, size=200))
            cable.cut()
            await trio.sleep(1)
            cable.mend()
            with trio.fail_after(20):
                said = await listen(socket_)
    assert [line["n"] for line in said.of_type("fake")] == list(range(1, 61))
    assert said.code == 1000


async def test_a_vanished_client_holds_no_place_in_the_queue(
    fake: Backend, cable: Cable, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"ping_interval": 1, "ping_timeout": 1, "max_runs": 1, "queue_timeout": 60}
    async with serving(fake, cable, monkeypatch, **limits) as server:
        async with connect(cable, server) as first, connect(cable, server) as second:
            await start(first, fake, SILENT)
            await second.send_message('{"prompt":"hello","meta":"T"}')
            await until(lambda: server.runs.statistics().waiting)
            cable.cut()
            await until(lambda: server.runs.statistics().taken == 0, 2 + MARGIN)
    assert fake.left() == []


async def test_a_client_that_pauses_is_no_vanished_client(
    fake: Backend, cable: Cable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads nothing and answers no ping for longer than a ping may take, but its kernel lives."""
    limits = {"ping_interval": 0.5, "ping_timeout": 1.5, "send_timeout": 30}
    async with serving(fake, cable, monkeypatch, **limits) as server:
        async with connect(cable, server, queue=1) as socket_:
            await start(socket_, fake, directive("lines", n=40_000, size=500))
            await trio.sleep(4)
            assert not fake.ended
            with trio.fail_after(30):
                said = await listen(socket_)
    assert (len(said.of_type("fake")), said.code) == (40_000, 1000)
