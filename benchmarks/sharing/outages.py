"""Redis that dies, hangs or can't be reached, and a server that stands still, under runs that go on.

What befalls: `crash`: SIGKILL of Redis, and a start on its file (appendfsync everysec). `hang`: SIGSTOP of it. `cut`:
one server is parted from it, for less than the lease or for longer, by a link that is down or by packets that go
nowhere. `freeze`: SIGSTOP of a server for longer than the lease, which then goes on as if nothing were.
"""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from typing import Any, TypeAlias

import attrs
import trio
from handover import free_port
from harness import call, directive
from soaking.house import REST_BOUND
from soaking.wire import FAKE, Gone, Seen, Stretch, connecting

from .book import Book
from .cluster import END_MARK, Cluster, Node, open_cluster
from .island import NEAR, Island, open_island

RUNS = 50
RATE = 20
"""Lines a second of each run."""
GRACE = 60.0
BEGUN = 5
RECOVERY = 5.0
"""Seconds after Redis answers again in which all is as before: what waited is stored, and clients are told."""
NOTICED = 2.0
"""Seconds from which on an outage must have been told to clients, if it is not over by then."""
PACE = 0.3
"""How much of its pace a run keeps at least, on a machine that has more to do."""
MARGIN = 1.5
"""Seconds over the lease in which runs of a parted server must be lost: a fifth of the lease lies between two looks."""
REST = 0.7
"""Seconds between two outages."""
LOOK = 0.05
SETTLE = 20.0
"""Seconds in which all runs have ended, or begun."""


HISTORY = b'{"type":"gateway","event":"history","state":"'


class Heard(Seen):
    """What an owner, or a viewer, is told, and how it stands with the history."""

    def __init__(self, *, owner: bool) -> None:
        super().__init__("session", owner=owner)
        self.history: list[str] = []

    def _hear(self, frame: bytes) -> None:
        if frame.startswith(HISTORY):
            self.history.append(frame[len(HISTORY) :].partition(b'"')[0].decode())
        super()._hear(frame)


@attrs.define(eq=False)
class Run:
    """A run with its owner, at its own server or another, and a viewer at another, or none."""

    id: str
    home: Node
    at: Node
    """Where the owner is."""
    owner: Heard
    viewed: Node
    """Where the viewer is, if there is one."""
    viewer: Heard | None = None
    lost: bool = False
    """Whether it is, or is to be, lost to the others."""
    stream: tuple[int, bytes] = (0, b"")

    @property
    def clients(self) -> list[Heard]:
        """Whoever is told of it."""
        return [self.owner, *filter(None, (self.viewer,))]

    def told(self, seen: Heard) -> str:
        """Return who a client is, and what it was told."""
        who = f"owner at {self.at.name}" if seen is self.owner else f"viewer at {self.viewed.name}"
        return (
            f"{who}, run at {self.home.name}; line {seen.last}, {seen.history}, {seen.ended}, {seen.code} {seen.reason}"
        )


Outage: TypeAlias = Callable[[float], AsyncIterator[None]]
"""Lets something befall for so many seconds; then it goes on to the end of it."""
Marks: TypeAlias = dict[Run, int]


@attrs.define(eq=False)
class Outages:
    """Rounds of outages under runs that go on; `island` is None where no server can be parted."""

    cluster: Cluster
    island: Island | None
    count: int
    made: Counter[str] = attrs.Factory(Counter)
    recovered: dict[str, list[float]] = attrs.Factory(dict)
    lost: list[float] = attrs.Factory(list)
    """Seconds from each outage to a run's being lost to the others."""
    returns: int = 0
    """Times that a connection to a run elsewhere was dropped, and its client came back."""
    lines: int = 0
    runs: list[Run] = attrs.Factory(list)
    past: list[Run] = attrs.Factory(list)

    @property
    def parted(self) -> Node:
        """The server that is parted from Redis, or stands still."""
        return self.cluster.nodes[-1]

    async def play(self, number: int) -> None:
        """Have runs, and let all befall them; what loses runs comes last: a cut and a freeze in turn."""
        self.runs, lease = [], self.cluster.lease
        pick = self.cluster.rng.uniform
        async with trio.open_nursery() as nursery:
            with trio.fail_after(SETTLE + self.count):
                for one in range(self.count):
                    await self._begin(one, nursery)
            await self._outage("crash", self._crash, pick(0.1, 2.0))
            await self._outage("hang", self._hang, pick(0.5, 2 * lease))
            if self.island:
                await self._outage("cut", self._cut, pick(0.2, 0.5) * lease)
            away = lease + MARGIN + pick(0, 1.5)
            if self.island and number % 2 == 0:
                await self._lose("cut, longer than the lease", self._cut, away)
            else:
                await self._lose("freeze", self._freeze, away)
            await self._end()
            nursery.cancel_scope.deadline = trio.current_time() + SETTLE
        for run in self.runs:
            await self._judge(run)
        self.past += [run for run in self.runs if run.lost]

    # who is there

    async def _begin(self, number: int, nursery: trio.Nursery) -> None:
        """Start a run; a fifth of them have their owner at another server, a fifth a viewer."""
        home = self.cluster.nodes[number % len(self.cluster.nodes)]
        at = self.cluster.other(home) if number % 5 == 1 else home
        run = Run("", home, at, Heard(owner=True), self.cluster.other(home))
        await nursery.start(self._own, run)
        if number % 5 == 0:
            run.viewer = Heard(owner=False)
            await nursery.start(self._come_back, run, run.viewed, run.viewer)
        self.runs.append(run)

    async def _own(self, run: Run, *, task_status: trio.TaskStatus[None]) -> None:
        """Be a run's owner, to its end."""
        seen = run.owner
        async with connecting(run.home.port, "session", seen) as client:
            await client.op("start", meta="NODES-OUTAGE", options={"on_disconnect": {"grace": GRACE}})
            run.id = (await client.event("started"))["run"]
            await client.user(directive("lines", n=10**6, rate=RATE))
            await client.past(BEGUN)
            if run.at is run.home:
                task_status.started()
                await client.read()
                return
            client.reset()
        await self._come_back(run, run.at, seen, task_status=task_status)

    async def _come_back(
        self, run: Run, node: Node, seen: Heard, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Be at a run of another server to its end, and come back where the connection is dropped before."""
        role, tries = "owner" if seen.owner else "viewer", 0
        while not seen.ended:
            self.returns += tries > 0
            tries += 1
            seen.code = None
            with contextlib.suppress(Gone):
                async with connecting(node.port, "session", seen) as client:
                    await client.op("attach", run=run.id, after=seen.last, **{"as": role})
                    if (await client.event("attached", "refused"))["event"] == "attached":
                        task_status.started()
                        task_status = trio.TASK_STATUS_IGNORED
                        await client.read()
            await trio.sleep(LOOK)

    # what befalls them

    async def _crash(self, seconds: float) -> AsyncIterator[None]:
        """Kill Redis, and start it again on what its file has."""
        self.cluster.server.kill()
        await trio.sleep(seconds)
        yield
        await trio.to_thread.run_sync(self.cluster.server.start)

    async def _hang(self, seconds: float) -> AsyncIterator[None]:
        """Have Redis stand still."""
        self.cluster.server.stop()
        await trio.sleep(seconds)
        yield
        self.cluster.server.go_on()

    async def _cut(self, seconds: float) -> AsyncIterator[None]:
        """Part one server from Redis."""
        assert self.island
        how = self.cluster.rng.choice(("down", "silent"))
        self.made[f"cut, {how}"] += 1
        self.island.cut(how)
        await trio.sleep(seconds)
        yield
        self.island.mend(how)

    async def _freeze(self, seconds: float) -> AsyncIterator[None]:
        """Have one server stand still."""
        self.parted.process.send_signal(signal.SIGSTOP)
        await trio.sleep(seconds)
        yield
        self.parted.process.send_signal(signal.SIGCONT)

    async def _outage(self, kind: str, how: Outage, seconds: float) -> None:
        """Let something befall all that live, and look how they fare; none of them may be lost."""
        live = [run for run in self.runs if not run.lost]
        touched = [run for run in live if kind != "cut" or self.parted in (run.home, run.at)]
        told = {seen: len(seen.history) for run in touched for seen in run.clients}
        before = {run: run.owner.last for run in live}
        self._say(kind, f"{seconds:.2f} s")
        outage = how(seconds)
        await anext(outage)
        heard = {run: run.owner.last for run in live}
        with contextlib.suppress(StopAsyncIteration):
            await anext(outage)
        up = time.monotonic()
        if seconds >= 1:
            self._judge_pace(live, before, heard, seconds)
        await self._recover(kind, live, heard, up)
        if seconds >= NOTICED:
            for seen, count in told.items():
                self._check("clients: told that the history waits", holds="waiting" in seen.history[count:], seen=told)
        await trio.sleep(REST)

    async def _lose(self, kind: str, how: Outage, seconds: float) -> None:
        """Let one server be away for longer than the lease: its runs are lost to the others, though they go on."""
        mine = [run for run in self.runs if run.home is self.parted and not run.lost]
        rest = [run for run in self.runs if run.home is not self.parted]
        began, states = time.monotonic(), len(self.parted.of("NodeState"))
        self._say(kind, f"{seconds:.2f} s, {len(mine)} runs")
        outage = how(seconds)
        async with trio.open_nursery() as nursery:
            for run in mine:
                run.lost = True
                nursery.start_soon(self._await_lost, run, began)
            await anext(outage)
        heard = {run: run.owner.last for run in rest}
        with contextlib.suppress(StopAsyncIteration):
            await anext(outage)
        up = time.monotonic()
        await self._recover(kind, rest, heard, up)
        with trio.move_on_after(RECOVERY):
            while not any(one.said["state"] == "rejoined" for one in self.parted.of("NodeState")[states:]):
                await trio.sleep(LOOK)
            await self._try_anew(up)
            for run in mine:
                await self._judge_lost(run)
            return
        self._check(
            "servers: one that was lost is back within 5 s", holds=False, seen=self.parted.of("NodeState")[states:]
        )

    async def _await_lost(self, run: Run, began: float) -> None:
        """Wait until the others find a run lost."""
        state = ""
        with trio.move_on_after(self.cluster.lease + MARGIN):
            while state != "ended":
                await trio.sleep(LOOK)
                _, state, reason = await self.cluster.stored(run.id)
        took = time.monotonic() - began
        good = state == "ended" and reason == "node-lost"
        self._check("runs of a parted server: node-lost for the others", holds=good, seen=f"{state} {reason}", run=run)
        if good:
            self.lost.append(took)
            run.stream = await self.cluster.stream(run.id)

    async def _judge_lost(self, run: Run) -> None:
        """Check what becomes of who is at a run that is lost to the others."""
        if run.at is run.home:
            with trio.move_on_after(RECOVERY):
                while run.owner.history[-1:] != ["ended"]:
                    await trio.sleep(LOOK)
            said = f"{run.owner.history}, {run.owner.ended}"
            good = run.owner.history[-1:] == ["ended"] and not run.owner.ended
            self._check("runs of a parted server: go on, and their owners are told", holds=good, seen=said, run=run)
        for seen in run.clients:
            if seen is not run.owner or run.at is not run.home:
                with trio.move_on_after(RECOVERY):
                    while not seen.ended:
                        await trio.sleep(LOOK)
                good = (seen.ended or {}).get("reason") == "node-lost"
                self._check("clients elsewhere: told of node-lost", holds=good, seen=seen.ended, run=run)

    async def _try_anew(self, up: float) -> None:
        """Have a run at the server that was lost, which is to be kept as any other; it may be told to ask again."""
        started: dict[str, Any] = {}
        while started.get("event") != "started":
            async with connecting(self.parted.port, "session", Heard(owner=True)) as client:
                await client.op("start", meta="NODES-ANEW")
                started = await client.event("started", "refused")
                if started["event"] == "refused":
                    self._check("servers: refuse by a word", holds=started["code"] == "busy", seen=started)
                    await trio.sleep(started["retry_after"])
                    continue
                self._check("servers: one that was lost takes runs again", holds=started["history"], seen=started)
                await client.user(directive("lines", n=BEGUN))
                await client.past(BEGUN)
                while (await self.cluster.stored(started["run"]))[0] < BEGUN:
                    await trio.sleep(LOOK)
                await client.op("stop", mode="kill")
                await client.read()
        self.recovered.setdefault("a lost server's next run is stored", []).append(time.monotonic() - up)

    # how they fare

    def _judge_pace(self, live: list[Run], before: Marks, heard: Marks, seconds: float) -> None:
        """Check that runs went on meanwhile."""
        for run in live:
            if run.at is run.home:
                came, least = heard[run] - before[run], PACE * RATE * seconds
                said = f"{came} lines in {seconds:.1f} s, {RATE} a second are said"
                self._check("runs: go on meanwhile", holds=came >= least, seen=said, run=run)

    async def _recover(self, kind: str, live: list[Run], heard: Marks, up: float) -> None:
        """Wait until what was said by the end of an outage is stored, and heard by all, and the history is back."""
        waits = list(live)
        with trio.move_on_after(RECOVERY):
            await self.cluster.redis.wait()
            while waits:
                await trio.sleep(LOOK)
                waits = [run for run in waits if not await self._is_back(run, heard[run])]
        took = time.monotonic() - up
        said = [(run.id, await self._fares(run, heard[run])) for run in waits[:3]]
        holds = self._check(f"recovery: within {RECOVERY:g} s", holds=not waits, seen=f"{len(waits)} are not: {said}")
        if holds:
            self.recovered.setdefault(kind, []).append(took)
        for run in live:
            for seen in run.clients:
                twice = [one for one, next_ in pairwise(seen.history) if one == next_]
                self._check("clients: told once of each change", holds=not twice, seen=seen.history, run=run)

    async def _is_back(self, run: Run, heard: int) -> bool:
        stored, state, _ = await self.cluster.stored(run.id)
        if stored < heard or state != "live":
            return False
        return all(seen.last >= heard and seen.history[-1:] != ["waiting"] for seen in run.clients)

    async def _fares(self, run: Run, heard: int) -> str:
        stored = await self.cluster.stored(run.id)
        return f"stored {stored}, heard {heard}; {[run.told(seen) for seen in run.clients]}"

    async def _end(self) -> None:
        """End all runs, each by a request to its own server."""
        for run in self.runs:
            status, _, body = await call(run.home, f"/api/runs/{run.id}?state=live", method="DELETE")
            self._check("runs: end when they are told to", holds=status == 202, seen=f"{status} {body!r}", run=run)

    async def _judge(self, run: Run) -> None:
        """Hold what is stored of a run against what was heard."""
        stored, numbers = Stretch(1), list[int]()
        async for _, line in self.cluster.lines(self.cluster.other(run.home), run.id):
            stored.add([line])
            if line.startswith(FAKE):
                numbers.append(int(line[len(FAKE) : line.index(b",", len(FAKE))]))
        self.lines += len(numbers)
        once = numbers == list(range(1, len(numbers) + 1))
        self._check("journal: has each line once, in order", holds=once, seen=f"{len(numbers)} lines", run=run)
        for seen in run.clients:
            self._check("clients: hear each line once, in order", holds=not seen.faults, seen=seen.faults, run=run)
        if run.lost:
            return
        row = await self.cluster.row(run.home, run.id)
        whole = row["whole"] and row["lines"] == row["stored"] == stored.last and row["reason"] == "stopped"
        said = {name: row[name] for name in ("whole", "lines", "stored", "reason", "error")}
        self._check("journal: has the whole run", holds=whole, seen=said, run=run)
        for seen in run.clients:
            if seen.gaps == 0:
                same = (seen.last, seen.stretches[0].digest) == (stored.last, stored.digest)
                said = f"{seen.last} of {stored.last}; {run.told(seen)}"
                self._check("journal: has what was heard", holds=same, seen=said, run=run)

    async def judge_streams(self) -> None:
        """Check that nothing was appended to what was lost."""
        for run in self.past:
            now = await self.cluster.stream(run.id)
            said = f"entries and last: {run.stream} when lost, {now} now"
            holds = now == run.stream and now[1] == END_MARK
            self._check("streams: nothing of an old epoch is appended", holds=holds, seen=said, run=run)

    def _check(self, rule: str, *, holds: object, seen: object, run: Run | None = None) -> bool:
        return self.cluster.book.check(rule, holds=holds, seen=seen, run=run.id if run else "")

    def _say(self, kind: str, text: str) -> None:
        self.made[kind] += 1
        book = self.cluster.book
        book.where = f"{book.where.partition(':')[0]}: {kind}"
        book.tell(text)


async def outages(book: Book, count: int, rng: random.Random, runs: int = RUNS) -> None:
    """Have so many rounds of outages."""
    with contextlib.ExitStack() as stack:
        island = None if book.together else stack.enter_context(open_island())
        if book.together:
            book.skip(f"a server parted from Redis: {book.together}")
        port = free_port()
        reached = ("--port", str(port), "--bind", NEAR, "--protected-mode", "no") if island else ()
        async with open_cluster(book, rng, redis=reached) as cluster:
            if island:
                part_from(cluster, island, port)
            await cluster.start_all()
            if island:
                last = cluster.nodes[-1]
                last.port = await cluster.lives.start(island.open_door, last.port)
            part = Outages(cluster, island, runs)
            for number in range(count):
                book.where = f"round {number + 1}"
                await part.play(number)
            book.where = ""
            await part.judge_streams()
            await cluster.check_rest(REST_BOUND)
            tell(part)


def part_from(cluster: Cluster, island: Island, port: int) -> None:
    """Have the last server live on the island, and reach Redis by the cable."""
    cluster.helpers.add(island.pid)
    node = cluster.nodes[-1]
    node.program = (*island.within, *node.program)
    node.words = (*node.words, f"--redis=redis://{NEAR}:{port}")


def tell(part: Outages) -> None:
    """Note the figures."""
    book = part.cluster.book
    book.figure("outages", f"{dict(part.made)}, {part.count} runs at {RATE} lines a second")
    book.figure("lines that are stored", f"{part.lines:,}")
    for kind, took in part.recovered.items():
        book.times(f"from Redis' answer to all as before: {kind}", took, f"{RECOVERY:g} s")
    book.times(f"from the outage to `node-lost`, lease {part.cluster.lease:g} s", part.lost)
    book.figure("connections to runs elsewhere that were dropped, and came back", part.returns)
