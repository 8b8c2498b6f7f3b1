"""A Redis, the servers that share it, and all that is below this process: what is left is whose.

Each server is a process, as a user starts it. Whatever loses its parent becomes a child of this process, so that
nothing can hide. This module must never judge what a client was told.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio
from harness import FAKE_ENV, call, fake_program
from redis_server import RedisServer
from soaking.house import GONE_BOUND, LOOK_PAUSE, Family, House, adopt_orphans, below
from soaking.plays import expect

from trio_claude.config import Config
from trio_claude.containment import marks
from trio_claude.nodes.redis import Redis, open_redis

from .book import Book

NAMES = ("a", "b", "c")
LEASE = 2.0
"""Seconds: the shortest lease that there is."""
STILL = 3
"""Looks in a row without a stranger after which there is none: one that forks itself anew may be missed by one."""
ALWAYS = ("--log-level=info", "--queue-timeout=50", "--grace-max=60", "--max-runs=200", "--drain-timeout=3")
"""Settings of every server."""


@attrs.frozen
class Told:
    """An event of a server's log: when it was written, and by which life of which server."""

    at: float
    node: str
    life: int
    said: dict[str, Any]


@attrs.define(eq=False)
class Node(House):
    """One of the servers, one life after the other."""

    name: str = ""
    events: list[Told] = attrs.Factory(list)

    def of(self, name: str) -> list[Told]:
        """Return the events of a name so far."""
        return [one for one in self.events if one.said["event"] == name]

    @property
    def running(self) -> bool:
        """Whether it is to live, and does."""
        return self.life > 0 and not self.falling and self.process.poll() is None

    async def close(self) -> None:
        """End the process, by force, and reap it."""
        if self.life:
            with trio.CancelScope(shield=True):
                self.falling = True
                self.process.kill()
                await self.process.wait()
                for pipe in filter(None, (self.process.stdout, self.process.stderr)):
                    await trio.aclose_forcefully(pipe)


@attrs.define(eq=False)
class Cluster:
    """The servers and their Redis.

    Resource handling: `open_cluster` owns all of it.
    """

    book: Book
    rng: random.Random
    folder: Path
    server: RedisServer
    redis: Redis
    """This program's own connection, which comes back by itself."""
    nodes: list[Node]
    lives: trio.Nursery
    lease: float
    ever: list[Node] = attrs.Factory(list)
    """All servers that there were, those that were followed by others too."""
    helpers: set[int] = attrs.Factory(set)
    """Processes of this program that are no server."""

    def other(self, *than: Node) -> Node:
        """Return any server but these."""
        return self.rng.choice([node for node in self.nodes if node not in than])

    @property
    def prefix(self) -> str:
        """What the names of the keys begin with."""
        return self.redis.prefix

    async def start(self, node: Node) -> None:
        """Begin another life of a server."""
        await node.start(self.lives)

    def succeed(self, node: Node) -> Node:
        """Return the server that follows on another, which may live on for a while."""
        more = {"name": node.name, "program": node.program, "sockets": node.sockets, "port": node.port}
        new = Node(node.folder, node.words, node.environ, node.hear, **more)
        new.hear = functools.partial(_hear, self.book, new)
        self.ever.append(new)
        return new

    async def start_all(self) -> None:
        """Begin the first life of each."""
        async with trio.open_nursery() as nursery:
            for node in self.nodes:
                nursery.start_soon(self.start, node)

    # what is left

    def strangers(self) -> list[int]:
        """Return the processes that are below no living server: what one that is gone has left."""
        inside = self._own()
        strangers = []
        for pid, parent in below(os.getpid()).items():
            if pid in inside or parent in inside:
                inside.add(pid)
            else:
                strangers.append(pid)
        return strangers

    def _own(self) -> set[int]:
        own = {node.process.pid for node in self.nodes if node.running} | self.helpers
        return own | ({self.server.pid} if self.server.running else set())

    def reap(self) -> None:
        """Take leave of the orphans that have ended here."""
        own = {node.process.pid for node in self.ever if node.life} | self._own()
        for pid, parent in below(os.getpid()).items():
            if parent == os.getpid() and pid not in own:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)

    async def wait_none(self, bound: float, look: Callable[[], list[int]]) -> tuple[list[int], float]:
        """Wait until `look` finds no process; return what it finds after `bound` seconds, and since when it is so."""
        still, since = 0, time.monotonic()
        with trio.move_on_after(bound):
            while still < STILL:
                self.reap()
                if look():
                    still, since = 0, time.monotonic()
                else:
                    still += 1
                await trio.sleep(LOOK_PAUSE)
            return [], since
        return look(), since

    async def check_rest(self, bound: float) -> None:
        """Check that nothing of any run is left, all clients being gone."""
        left, _ = await self.wait_none(bound, self._others)
        named = self.nodes[0].names(left)
        self.book.check("processes: none when all clients are gone", holds=not left, seen=f"left: {named}")

    def _others(self) -> list[int]:
        return Family.of(*self._own()).others

    def bearing(self, server: str, runs: list[str]) -> list[int]:
        """Return the processes that bear the marks of runs."""
        return [pid for run in runs for pid in marks.find(f"{server}:{run}")]

    # what the journal says

    async def row(self, node: Node, run: str, key: str | None = None) -> dict[str, Any]:
        """Return a run as a server tells it."""
        status, _, body = await call(node, f"/api/runs/{run}", key)
        expect(status == 200, f"/api/runs/{run}: {status} {body[:200]!r}")
        found: dict[str, Any] = json.loads(body)
        return found

    async def lines(self, node: Node, run: str) -> AsyncIterator[tuple[int, bytes]]:
        """Yield the stored lines of a run as a server tells them, each with its number."""
        part = "0"
        while part:
            status, headers, body = await call(node, f"/api/runs/{run}/lines?part={part}")
            expect(status == 200, f"/api/runs/{run}/lines: {status} {body[:200]!r}")
            for said in map(json.loads, body.splitlines()):
                if "n" in said:
                    yield said["n"], said["line"].encode()
            part = headers.get("x-next-part", "")

    async def stored(self, run: str) -> tuple[int, str, str]:
        """Return from Redis how many lines a run has, its state, and the reason of its end."""
        values = await self.redis.ask("HMGET", self.redis.key("run", run), "stored", "state", "reason")
        stored, state, reason = (value.decode() if value else "" for value in values)
        return int(stored or 0), state, reason

    async def stream(self, run: str) -> tuple[int, bytes]:
        """Return how many entries a run's stream has, and the id of the last."""
        key = self.redis.key("lines", run)
        last = await self.redis.ask("XREVRANGE", key, "+", "-", "COUNT", 1)
        return int(await self.redis.ask("XLEN", key)), last[0][0] if last else b""


END_MARK = b"18446744073709551615-0"
"""The id of the entry behind which nothing can be appended."""


@asynccontextmanager
async def open_cluster(
    book: Book, rng: random.Random, *words: str, lease: float = LEASE, redis: tuple[str, ...] = ()
) -> AsyncIterator[Cluster]:
    """Start a Redis with options, and make three servers ready that get these words; `start` begins their lives.

    Where something did not hold, the logs of all are kept, and told where.
    """
    adopt_orphans()
    wrong, folder = book.wrong, Path(tempfile.mkdtemp(prefix="tcn-", dir="/tmp"))
    server = RedisServer(folder, redis)
    server.start()
    try:
        async with open_redis(Config(redis=server.url)) as own, trio.open_nursery() as lives:
            nodes = _nodes(book, folder, server, lease, words)
            cluster = Cluster(book, rng, folder, server, own, nodes, lives, lease, [*nodes])
            try:
                yield cluster
            finally:
                for node in cluster.ever:
                    await node.close()
                lives.cancel_scope.cancel()
    finally:
        _end_all(server)
        if book.wrong > wrong:
            print(f"the logs are kept: {folder}", file=sys.stderr, flush=True)
        else:
            shutil.rmtree(folder)


def _end_all(server: RedisServer) -> None:
    """End whatever is below this process, and reap it."""
    server.end()
    until = time.monotonic() + GONE_BOUND
    while (left := below(os.getpid())) and time.monotonic() < until:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(LOOK_PAUSE)  # what is killed ends in its own time; GONE_BOUND ends the wait


def _nodes(book: Book, folder: Path, server: RedisServer, lease: float, words: tuple[str, ...]) -> list[Node]:
    """Make three servers ready."""
    program = fake_program(folder)
    always = [f"--cli={program}", f"--cwd={folder}", f"--redis={server.url}", f"--node-lease={lease}", *ALWAYS]
    nodes = []
    for name in NAMES:
        place = folder / name
        place.mkdir()
        node = Node(
            place, (*always, f"--state={place / 'state'}", *words), dict(FAKE_ENV),
            program=(sys.executable, "-m", "trio_claude"), name=name,
        )  # fmt: skip
        node.hear = functools.partial(_hear, book, node)
        nodes.append(node)
    return nodes


def _hear(book: Book, node: Node, said: dict[str, Any]) -> None:
    """Take an event of a server's log."""
    with (node.folder / "log").open("a") as log:
        log.write(json.dumps(said) + "\n")
    node.events.append(Told(said["time"], node.name, node.life, said))
    if said["event"] in ("Crashed", "LogDropped"):
        book.violate("servers: none crashes", f"{node.name}, life {node.life}: {said}")
