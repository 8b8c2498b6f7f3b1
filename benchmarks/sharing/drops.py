"""Connections that are cut, and come back at another server; and how fast a line is there.

What the fake CLI says is numbered, so that whatever is lost, comes twice or in another order is seen.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter

import attrs
import trio
from cutter import Cutter, open_cutter
from harness import directive
from soaking.house import REST_BOUND
from soaking.plays import expect
from soaking.wire import FAKE, RESULT, Client, Gone, Seen, Stretch, connecting

from .book import Book, leaves
from .cluster import Cluster, Node, open_cluster

AT_ONCE = 6
"""Sessions at once."""
DROPS = 10
"""Drops of one session."""
LINES = (600, 3000)
RATES = (400, 1000, 4000)
"""Lines of a turn, and how many a second."""
GRACE = 30.0
"""Seconds for which a run waits for its client."""
BOUND = 60.0
"""Seconds in which one session has come to its end."""
HELD = 1.5
"""Seconds for which a connection that is silent, or half closed, stays as it is, while its client is back elsewhere."""
PATIENCE = 0.5
"""Seconds for which the bytes behind which a connection is cut are waited for."""
ODD = 4
TORN = (200, 60_000)
"""Bytes from the server behind which a connection is cut, somewhere in a frame."""
WATCHED = 6
"""Runs that are watched to see how fast lines come."""
WATCHED_RATE = 20
WATCHED_LINES = 300


class Tally(Seen):
    """What an owner is told of one numbered turn, however often it comes back: each number is counted."""

    def __init__(self) -> None:
        super().__init__("session")
        self.numbers: Counter[int] = Counter()
        self.disordered: int = 0
        self.place: int = 0
        """Which connection it is, the first being 0."""
        self.odd: list[str] = []
        """The first lines that came out of turn: which connection, the line, and the one before it."""
        self._latest = 0
        self._before = 0

    def _count(self, number: int) -> None:
        if number != self._before + 1 and len(self.odd) < ODD:
            self.odd.append(f"connection {self.place}: {number} behind {self._before}")
        self._before = number
        self.numbers[number] += 1
        self.disordered += number < self._latest
        self._latest = max(self._latest, number)

    @property
    def twice(self) -> int:
        """How many lines came more than once."""
        return sum(count - 1 for count in self.numbers.values())


@attrs.define(eq=False)
class Drops:
    """Sessions that lose their connections; `made` counts those by their kind."""

    cluster: Cluster
    left: int
    made: Counter[str] = attrs.Factory(Counter)
    lost: int = 0
    twice: int = 0
    disordered: int = 0
    lines: int = 0
    back: list[float] = attrs.Factory(list)
    """Seconds from each attempt to come back to `attached`."""

    async def work(self, rng: random.Random) -> None:
        """Have one session after the other, until there were as many drops as are asked for."""
        while self.left > 0:
            count, self.left = min(DROPS, self.left), self.left - DROPS
            seed = f"{rng.getrandbits(64):016x}"
            one = Dropped(self, random.Random(seed), count, seed)
            try:
                with trio.fail_after(BOUND):
                    await one.play()
            except Exception as error:  # whatever befalls one session is judged, and the others go on
                self.cluster.book.violate("sessions: each comes to its end", f"{one.told}: {leaves(error)}", one.run)


@attrs.define(eq=False)
class Dropped:
    """One session, its owner, and where it was."""

    drops: Drops
    rng: random.Random
    count: int
    seed: str
    run: str = ""
    seen: Tally = attrs.Factory(Tally)
    way: list[str] = attrs.Factory(list)
    """The run's server, then how each connection was lost, and where the next one went."""

    @property
    def told(self) -> str:
        """What it takes to find it."""
        return f"session {self.seed}, {' '.join(self.way)}, at line {self.seen.last}, {self.seen.odd}"

    async def play(self) -> None:
        """Have a turn, lose the connection again and again while it goes on, and compare."""
        cluster, wanted = self.drops.cluster, self.rng.randint(*LINES)
        places = sorted(self.rng.randint(1, wanted) for _ in range(self.count))
        node = home = cluster.other()
        async with trio.open_nursery() as parted:
            await self._begin(home, wanted, places[0], parted)
            for place in places[1:]:
                node = cluster.other(node)
                await self._come_back(node, place, parted)
            await self._end(cluster.other(node))
            parted.cancel_scope.cancel()
        self._compare(wanted)
        await self._compare_journal(cluster.other(home))

    async def _begin(self, node: Node, wanted: int, place: int, parted: trio.Nursery) -> None:
        """Start the session, have it say something, and lose it at a line."""
        async with connecting(node.port, "session", self.seen) as client:
            grace = {"on_disconnect": {"grace": GRACE}}
            await client.op("start", meta=f"NODES-{self.seed}".upper(), options=grace)
            self.run = (await client.event("started"))["run"]
            self.way.append(node.name)
            await client.user(directive("lines", n=wanted, rate=self.rng.choice(RATES), size=self.rng.choice((0, 200))))
            await client.past(place)
            self._lose(client, self.rng.choice(("reset", "half")), parted)

    async def _come_back(self, node: Node, place: int, parted: trio.Nursery) -> None:
        """Attach at a server, and lose that connection too, at a line or in the middle of a frame."""
        kind = self.rng.choice(("reset", "half", "silent", "torn"))
        self.way.append(node.name)
        if kind in ("reset", "half"):
            async with connecting(node.port, "session", self.seen) as client:
                await self._attach(client)
                await client.past(place)
                self._lose(client, kind, parted)
            return
        cutter = await parted.start(self._serve_cutter, node.port)
        if kind == "torn":
            await self._tear(cutter)
            return
        async with connecting(cutter.port, "session", self.seen) as client:
            await self._attach(client)
            await client.past(place)
            cutter.silent = True
            self._lose(client, kind, parted)

    async def _serve_cutter(self, port: int, *, task_status: trio.TaskStatus[Cutter]) -> None:
        async with open_cutter(port) as cutter:
            task_status.started(cutter)
            await trio.sleep_forever()

    async def _tear(self, cutter: Cutter) -> None:
        """Attach where the connection is cut behind so many bytes, be that in the middle of a frame or before it."""
        cutter.down = self.rng.randint(*TORN)
        try:
            async with connecting(cutter.port, "session", self.seen) as client:
                await self._attach(client)
                with trio.move_on_after(PATIENCE):  # there may be fewer bytes
                    await client.read()
        except Gone:
            expect(self.seen.code is None, f"closed with {self.seen.code} ({self.seen.reason}) {self.seen.error}")
        self._note("torn")

    async def _attach(self, client: Client) -> None:
        """Come back as the owner, behind the last line that has come."""
        began, after = trio.current_time(), self.seen.last
        await client.op("attach", run=self.run, after=after, **{"as": "owner"})
        said = await client.event("attached", "refused")
        self.seen.place += 1
        good = said["event"] == "attached" and said["from"] == after + 1 and said["role"] == "owner"
        expect(good, f"asked for what is behind line {after}, got {said}")
        self.drops.back.append(trio.current_time() - began)

    def _lose(self, client: Client, kind: str, parted: trio.Nursery) -> None:
        """Lose a connection; one that is half closed, or silent, stays for a while."""
        if kind == "reset":
            client.reset()
        else:
            if kind == "half":
                client.finish(politely=self.rng.random() < 0.5)
            parted.start_soon(_hold, client.keep())
        self._note(kind)

    def _note(self, kind: str) -> None:
        self.way.append(f"-{kind}->")
        self.drops.made[kind] += 1

    async def _end(self, node: Node) -> None:
        """Come back for good, hear the turn to its end, and end the session."""
        self.way.append(node.name)
        async with connecting(node.port, "session", self.seen) as client:
            await self._attach(client)
            if not self.seen.results:
                await client.until(*RESULT)
            await client.op("stop", mode="end")
            await client.read()
        ended = self.seen.ended or {}
        said = f"closed with {self.seen.code} ({self.seen.reason}), {ended}"
        expect(self.seen.code == 1000 and ended.get("reason") in ("exit", "stopped"), said)
        expect(ended["lines"] == self.seen.last, f"heard {self.seen.last} lines of {ended['lines']}")
        expect(ended["receipt"]["survivors"] == 0, ended["receipt"])

    def _compare(self, wanted: int) -> None:
        """Count what was lost, came twice, or in another order."""
        drops, book, seen = self.drops, self.drops.cluster.book, self.seen
        lost = wanted - len(seen.numbers)
        drops.lines += wanted
        drops.lost, drops.twice = drops.lost + lost, drops.twice + seen.twice
        drops.disordered += seen.disordered
        book.check("lines: none is lost", holds=lost == 0, seen=f"{self.told}: {lost} of {wanted}", run=self.run)
        book.check("lines: none comes twice", holds=not seen.twice, seen=f"{self.told}: {seen.twice}", run=self.run)
        said = f"{self.told}: {seen.disordered}"
        book.check("lines: all come in order", holds=not seen.disordered, seen=said, run=self.run)
        book.check("lines: an owner is told of no gap", holds=not seen.faults, seen=seen.faults, run=self.run)

    async def _compare_journal(self, node: Node) -> None:
        """Compare with what another server than the run's own has of it."""
        stored = Stretch(1)
        stored.add([line async for _, line in self.drops.cluster.lines(node, self.run)])
        same = (stored.last, stored.digest) == (self.seen.last, self.seen.stretches[0].digest)
        said = f"{self.told}: {stored.last} are stored of {self.seen.last}, or others"
        self.drops.cluster.book.check(
            "journal: has what was heard, once, in order", holds=same, seen=said, run=self.run
        )


async def _hold(descriptor: int) -> None:
    """Leave a connection as it is for a while."""
    try:
        await trio.sleep(HELD)
    finally:
        os.close(descriptor)


# -- how fast a line is there ------------------------------------------------------------------------------------------


class Clock(Seen):
    """What a client is told, and how long each stamped line took from the CLI's writing it, in seconds."""

    def __init__(self, *, owner: bool) -> None:
        super().__init__("session", owner=owner)
        self.took: list[float] = []

    def take(self, frames: list[bytes]) -> None:
        """Take text frames, in order."""
        now = time.monotonic_ns()
        for frame in frames:
            if frame.startswith(FAKE):
                stamp = frame.partition(b'"t":')[2]
                self.took.append((now - int(stamp[: stamp.index(b",")])) / 1e9)
        super().take(frames)


@attrs.define(eq=False)
class Watched:
    """Runs that are watched: what came to owners, to viewers at the run's own server, and at another one."""

    cluster: Cluster
    lines: int
    own: list[float] = attrs.Factory(list)
    near: list[float] = attrs.Factory(list)
    far: list[float] = attrs.Factory(list)

    async def play(self, number: int) -> None:
        """Have a run say lines at a rate while two watch it."""
        home = self.cluster.nodes[number % len(self.cluster.nodes)]
        seen = Clock(owner=True)
        async with connecting(home.port, "session", seen) as client, trio.open_nursery() as nursery:
            await client.op("start", meta=f"NODES-WATCHED-{number}")
            run = (await client.event("started"))["run"]
            views = [Clock(owner=False) for _ in range(2)]
            for node, view in zip((home, self.cluster.other(home)), views, strict=True):
                await nursery.start(self._view, node, run, view)
            await client.user(directive("lines", n=self.lines, rate=WATCHED_RATE, stamp=True, size=200))
            await client.until(*RESULT)
            await client.op("stop", mode="end")
            await client.read()
        for took, one in zip((self.own, self.near, self.far), (seen, *views), strict=True):
            took += one.took
            whole = len(one.took) == self.lines and not one.faults
            said = f"{len(one.took)} of {self.lines}, {one.faults}"
            self.cluster.book.check("watchers: get each line once", holds=whole, seen=said, run=run)

    async def _view(self, node: Node, run: str, seen: Clock, *, task_status: trio.TaskStatus[None]) -> None:
        async with connecting(node.port, "session", seen) as client:
            await client.op("attach", run=run, after=0, **{"as": "viewer"})
            await client.event("attached")
            task_status.started()
            await client.read()


# -- the whole ---------------------------------------------------------------------------------------------------------


async def drops(book: Book, count: int, rng: random.Random) -> None:
    """Have so many connections cut, and watch some runs."""
    async with open_cluster(book, rng) as cluster:
        await cluster.start_all()
        part = Drops(cluster, count)
        async with trio.open_nursery() as nursery:
            for _ in range(min(AT_ONCE, -(-count // DROPS))):
                nursery.start_soon(part.work, random.Random(rng.getrandbits(64)))
        book.figure("connections cut", f"{part.made.total():,}: {dict(part.made)}", f"{count:,}")
        book.figure("lines that were heard of", f"{part.lines:,}")
        book.figure("lost / twice / out of order", f"{part.lost} / {part.twice} / {part.disordered}", "0 / 0 / 0")
        book.times("from `attach` to `attached`", part.back)
        watched = Watched(cluster, min(WATCHED_LINES, 5 * count))
        async with trio.open_nursery() as nursery:
            for number in range(min(WATCHED, count)):
                nursery.start_soon(watched.play, number)
        book.times("from the CLI to its owner", watched.own)
        book.times("from the CLI to a viewer at the run's server", watched.near)
        book.times("from the CLI, by Redis, to a viewer at another server (append to watch)", watched.far)
        await cluster.check_rest(REST_BOUND)
