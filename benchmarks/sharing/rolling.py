"""Servers that are restarted one after the other under load, with nginx in front of all.

Each listens on a socket that this program holds, as a service manager does, and its successor is started as it is told
to go. Clients know nginx alone, and their connections break now and then, so that they are at any server.
"""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import attrs
import trio
from cutter import open_cutter
from handover import LAUNCH, Attempt, attempts, free_port, held
from harness import directive
from soaking.house import REST_BOUND, START_BOUND
from soaking.plays import break_network
from soaking.wire import Gone, Seen, connecting

from trio_claude.client import ConnectFailed, Reconnect, Refused, Result, Session, open_session

from .book import Book, leaves
from .cluster import Cluster, Node, open_cluster

TALKERS, PROMPTERS = 12, 4
"""Sessions of the client library, and clients that say one prompt after the other, at once."""
LINES, RATE = 150, 150
"""Lines of a turn, and how many a second."""
GRACE = 30.0
ATTEMPTS = 40.0
"""Attempts to come in a second, at nginx and at each server's own socket in turn."""
SETTLE = 1.5
"""Seconds between two restarts."""
NGINX = """
user root;
daemon off;
error_log stderr;
pid {folder}/nginx.pid;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream nodes {{ {servers} }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://nodes;
      proxy_http_version 1.1;
      proxy_set_header Host $host;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection upgrade;
      proxy_read_timeout 1h;
      proxy_buffering off;
    }}
  }}
}}
"""
"""A configuration of the least that will do."""


@attrs.define(eq=False)
class Load:
    """Clients, and what became of them."""

    cluster: Cluster
    port: int
    """Of nginx."""
    over: bool = False
    """Whether no more is to be begun."""
    ends: Counter[str] = attrs.Factory(Counter)
    prompts: Counter[str] = attrs.Factory(Counter)
    lines: int = 0
    returns: int = 0
    """Times that a session came back."""
    kept: int = 0
    """Sessions that were at a server as it went down, and went on elsewhere, as their run did."""
    gone: list[tuple[float, str]] = attrs.Factory(list)
    """When each server was told to go, and which."""

    # the client library

    async def talk(self, rng: random.Random) -> None:
        """Have one session after the other, over connections that break."""
        while not self.over:
            async with open_cutter(self.port) as cutter, trio.open_nursery() as nursery:
                talk = Talk(self)
                nursery.start_soon(break_network, rng, cutter.cut, partial(len, talk.backs))
                try:
                    await talk.have(cutter.url)
                except Exception as error:  # whatever befalls one session is judged, and the others go on
                    talk.judge_fault(leaves(error))
                nursery.cancel_scope.cancel()

    # one prompt, over a connection of its own

    async def prompt(self) -> None:
        """Have one prompt after the other answered."""
        while not self.over:
            seen = Seen("claude")
            seen.wanted = 20
            try:
                async with connecting(self.port, "claude", seen) as client:
                    await client.until(b'{"info":"send ', b'{"error":')
                    await client.say({"prompt": directive("lines", n=20, rate=100), "meta": "NODES-ROLLING"})
                    await client.read()
            except Gone as error:
                seen.reason = seen.reason or str(error)
            done = seen.code == 1000 and seen.results == 1 and not seen.faults
            told = seen.code == 1012
            self.prompts["answered" if done else "told to come again (1012)" if told else "lost"] += 1
            said = f"{seen.code} {seen.reason} {seen.error} {seen.faults}"
            self.cluster.book.check("prompts: each is answered, or told", holds=done or told, seen=said)


@attrs.define(eq=False)
class Talk:
    """One session of the client library."""

    load: Load
    session: Session | None = None
    backs: list[float] = attrs.Factory(list)
    last: int = 0

    async def have(self, url: str) -> None:
        """Have turns until it is told to end, or there are to be no more."""
        load = self.load
        reconnect = Reconnect(grace=GRACE, on_back=lambda _run: self.backs.append(time.time()))
        async with open_session(meta="NODES-ROLLING", url=url, reconnect=reconnect) as session:
            self.session = session
            while not load.over and not session.ended:
                self.last = 0
                async for line in session.ask(directive("lines", n=LINES, rate=RATE)):
                    self._take(line)
            ended = session.ended or await session.end()
        self._judge(ended.reason, ended.code, ended.receipt)

    def _take(self, line: object) -> None:
        said = getattr(line, "said", {})
        if said.get("type") == "fake":
            self._check(
                "lines: each once and in order", holds=said["n"] == self.last + 1, seen=f"{said} behind {self.last}"
            )
            self.last = said["n"]
            self.load.lines += 1
        elif isinstance(line, Result):
            self._check("lines: none is lost", holds=self.last == LINES, seen=f"{self.last} of {LINES}")

    def judge_fault(self, faults: list[BaseException]) -> None:
        """Judge what was raised: a session that has not begun may fail, one that was told to end may break off."""
        if self.session is None:
            self.load.ends["not begun: cut, or told to come again"] += 1
            self._check("sessions: none is refused but as told", holds=all(map(_is_early, faults)), seen=faults)
        elif self.session.ended and self.session.ended.reason:
            self._judge(self.session.ended.reason, self.session.ended.code, self.session.ended.receipt)
        else:
            self.load.ends["lost"] += 1
            said = f"{faults} {self.session.ended} {self.session.started.get('run')}"
            self._check("sessions: each goes on, or is told", holds=False, seen=said)

    def _judge(self, reason: str, code: int, receipt: dict[str, object]) -> None:
        """Hold the end of a session against what became of its server."""
        assert self.session
        load, run = self.load, str(self.session.started["run"])
        load.ends[f"{reason} ({code})" if reason else f"no word ({code})"] += 1
        load.returns += len(self.backs)
        home = next(
            (one for node in load.cluster.ever for one in node.of("RunStarted") if one.said["run"] == run), None
        )
        fell = home is not None and any(name == home.node and at >= home.at for at, name in load.gone)
        good = reason == "exit" or (reason == "drained" and fell)
        self._check("sessions: each goes on, or is told", holds=good, seen=f"{reason} {code}, {home}", run=run)
        self._check("receipts: none survives", holds=receipt.get("survivors") == 0, seen=receipt, run=run)
        if home:
            others = [at for at, name in load.gone if name != home.node and at > home.at]
            load.kept += any(at < back < at + SETTLE for at in others for back in self.backs)

    def _check(self, rule: str, *, holds: object, seen: object, run: str = "") -> None:
        self.load.cluster.book.check(rule, holds=holds, seen=seen, run=run)


def _is_early(fault: BaseException) -> bool:
    """Return whether it may befall a session that has not begun."""
    return isinstance(fault, (ConnectFailed, ConnectionError)) or (
        isinstance(fault, Refused) and fault.code == "draining"
    )


# -- the servers -------------------------------------------------------------------------------------------------------


def hold(node: Node, listener: socket.socket) -> None:
    """Have a server get its listening socket from this program."""
    node.sockets = (listener.fileno(),)
    node.program = (sys.executable, "-c", LAUNCH, str(listener.fileno()), *node.program)
    node.environ = {**node.environ, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "trio-claude.socket"}


async def roll(load: Load, index: int, told: list[float]) -> None:
    """Restart one server: the next one is started as it is told to go."""
    cluster = load.cluster
    old = cluster.nodes[index]
    new = cluster.succeed(old)
    began = time.monotonic()
    load.gone.append((time.time(), old.name))
    old.fall(signal.SIGTERM)
    await cluster.start(new)
    cluster.nodes[index] = new
    status = await old.wait_end()
    told.append(time.monotonic() - began)
    cluster.book.check("servers: each drains and exits with status 0", holds=status == 0, seen=f"{old.name}: {status}")


@contextmanager
def open_nginx(folder: Path, ports: list[int]) -> Iterator[tuple[int, int]]:
    """Have nginx stand before servers; yield its port and its process. Raises OSError."""
    port = free_port()
    servers = " ".join(f"server 127.0.0.1:{one};" for one in ports)
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, servers=servers, port=port))
    with (folder / "nginx.log").open("wb") as log:
        process = subprocess.Popen(
            ["nginx", "-p", str(folder), "-c", str(config)], stderr=log, stdin=subprocess.DEVNULL
        )
    try:
        _await_port(port)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


def _await_port(port: int) -> None:
    """Wait until somebody listens there. Raises OSError."""
    until = time.monotonic() + START_BOUND
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except ConnectionRefusedError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)  # nginx does not tell that it listens; START_BOUND ends it
        else:
            return


@asynccontextmanager
async def open_house(book: Book, rng: random.Random, stack: ExitStack) -> AsyncIterator[Load]:
    """Open servers on sockets that are held, and nginx before them."""
    async with open_cluster(book, rng) as cluster:
        for node in cluster.nodes:
            listener = stack.enter_context(held())
            hold(node, listener)
            node.port = listener.getsockname()[1]
        await cluster.start_all()
        ports = [node.port for node in cluster.nodes]
        port, pid = stack.enter_context(open_nginx(cluster.folder, ports))
        cluster.helpers.add(pid)
        yield Load(cluster, port)


async def rolling(book: Book, count: int, rng: random.Random) -> None:
    """Restart all servers so often, one after the other."""
    with ExitStack() as stack:
        async with open_house(book, rng, stack) as load:
            made, told = list[Attempt](), list[float]()
            async with trio.open_nursery() as trying:
                for port in (load.port, *(node.port for node in load.cluster.nodes)):
                    trying.start_soon(attempts, port, 4 / ATTEMPTS, made)
                async with trio.open_nursery() as nursery:
                    for _ in range(TALKERS):
                        nursery.start_soon(load.talk, random.Random(rng.getrandbits(64)))
                    for _ in range(PROMPTERS):
                        nursery.start_soon(load.prompt)
                    for number in range(count):
                        for index in range(len(load.cluster.nodes)):
                            book.where = f"round {number + 1}, server {load.cluster.nodes[index].name}"
                            await trio.sleep(SETTLE)
                            await roll(load, index, told)
                            book.tell(f"{dict(load.ends)}, {dict(load.prompts)}")
                    await trio.sleep(SETTLE)
                    load.over = True
                    nursery.cancel_scope.deadline = trio.current_time() + GRACE
                await trio.sleep(SETTLE)
                trying.cancel_scope.cancel()
            book.where = ""
            judge(load, made, told)
            await load.cluster.check_rest(GRACE + REST_BOUND)  # one that never heard which run is its own waits


def judge(load: Load, made: list[Attempt], told: list[float]) -> None:
    """Hold attempts to come in against what is promised, and note the figures."""
    book = load.cluster.book
    for one in made:
        book.check("attempts: none is refused", holds=one.answered, seen=f"{one.told} after {one.seconds:.2f} s")
    book.check("sessions: some go on elsewhere as their server goes", holds=load.kept, seen="none was seen")
    book.figure("servers restarted", len(told))
    book.figure("attempts to come in, at nginx and at each server", f"{len(made):,}", "none refused")
    book.times("from an attempt to its answer", [one.seconds for one in made])
    book.figure("sessions of the client library, by their ends", dict(load.ends), "exit, or drained with 1012")
    book.figure("of them at a server as it went, with their run elsewhere", load.kept)
    book.figure("times that sessions came back", f"{load.returns:,}")
    book.figure("numbered lines that they heard", f"{load.lines:,}", "each once, in order")
    book.figure("prompts", dict(load.prompts), "answered, or 1012")
    book.times("from SIGTERM to the server's exit", told)
