"""Servers that are killed with their runs: what is left of them, who is told, and that nobody appends any more."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter

import attrs
import trio
from harness import directive
from soaking.house import GONE_BOUND, REST_BOUND
from soaking.wire import Seen, connecting

from trio_claude.nodes.scripts import load

from .book import Book
from .cluster import END_MARK, Cluster, Node, open_cluster

RUNS = 3
"""Runs of the server that is killed, each with trees of its own."""
KINDS = ("setsid", "double_fork", "ignore_term", "env_clear", "stopped", "hold_stdout", "plain")
STAY = 120
"""Seconds for which what a CLI leaves stays, unless it is ended."""
RATE = 200
MARGIN = 1.0
"""Seconds over the lease in which a run must be `node-lost`: a fifth of the lease lies between two looks of a server,
and this machine has more to do."""
TOLD_BOUND = 1.0
"""Seconds behind that in which a viewer must have been told."""
LOOK = 0.02
BEGUN = 20
"""Lines that a run has said before anything befalls it."""
START_BOUND = 20.0
"""Seconds in which a run has begun, and is watched."""
PATIENCE = 10.0
"""Seconds behind the lease for which a round is waited for at most."""


@attrs.define(eq=False)
class Victim:
    """A run of the server that is killed, its owner and its viewers; `over` is when each viewer was told."""

    run: str = ""
    node: str = ""
    token: str = ""
    owner: Seen = attrs.Factory(lambda: Seen("session"))
    viewers: list[Seen] = attrs.Factory(list)
    over: list[float] = attrs.Factory(list)
    lost: float = 0.0
    """When the journal had it as `node-lost`."""
    stream: tuple[int, bytes] = (0, b"")
    """Entries of its stream, and the id of the last, at that time."""


@attrs.define(eq=False)
class Kills:
    """Rounds, in each of which one server is killed and started again."""

    cluster: Cluster
    gone: list[float] = attrs.Factory(list)
    lost: list[float] = attrs.Factory(list)
    told: list[float] = attrs.Factory(list)
    behind: list[int] = attrs.Factory(list)
    """Lines that each owner had heard and the journal had not."""
    by_node: Counter[str] = attrs.Factory(Counter)
    past: list[Victim] = attrs.Factory(list)

    async def play(self) -> None:
        """Kill a server that has runs, look, and start it again."""
        cluster = self.cluster
        node, victims = cluster.other(), [Victim() for _ in range(RUNS)]
        async with trio.open_nursery() as nursery:
            for victim in victims:
                await self._begin(node, victim, nursery)
            await trio.sleep(cluster.rng.uniform(0.1, 0.6))
            killed = time.monotonic()
            node.fall(signal.SIGKILL)
            await node.process.wait()
            self.by_node[node.name] += 1
            nursery.start_soon(self._look_for_left, victims)
            for victim in victims:
                nursery.start_soon(self._await_lost, victim, killed)
            nursery.cancel_scope.deadline = trio.current_time() + cluster.lease + PATIENCE
        for victim in victims:
            self._judge(victim, killed)
            await self._judge_stored(victim, cluster.other(node))
            await self._append(victim)
        self.past += victims
        await cluster.start(node)

    async def _begin(self, node: Node, victim: Victim, nursery: trio.Nursery) -> None:
        """Start a run with a tree that goes on saying lines, and have it watched."""
        with trio.fail_after(START_BOUND):
            await nursery.start(self._own, node, victim)
            for other in self.cluster.nodes:
                if other is not node:
                    victim.viewers.append(Seen("session", owner=False))
                    await nursery.start(self._view, other, victim, victim.viewers[-1])
        key = self.cluster.redis.key("run", victim.run)
        values = await self.cluster.redis.ask("HMGET", key, "node", "token")
        victim.node, victim.token = (value.decode() for value in values)

    async def _own(self, node: Node, victim: Victim, *, task_status: trio.TaskStatus[None]) -> None:
        kinds = self.cluster.rng.sample(KINDS, self.cluster.rng.randint(2, len(KINDS)))
        tree = directive("tree", kinds=kinds, seconds=STAY)
        async with connecting(node.port, "session", victim.owner) as client:
            await client.op("start", meta="NODES-KILLED")
            victim.run = (await client.event("started"))["run"]
            await client.user(tree + directive("lines", n=10**6, rate=RATE))
            await client.past(BEGUN)
            task_status.started()
            await client.read()

    async def _view(self, node: Node, victim: Victim, seen: Seen, *, task_status: trio.TaskStatus[None]) -> None:
        async with connecting(node.port, "session", seen) as client:
            await client.op("attach", run=victim.run, after=0, **{"as": "viewer"})
            await client.event("attached")
            await client.past(1)
            task_status.started()
            await client.read()
            victim.over.append(time.monotonic())

    # what is looked at

    async def _look_for_left(self, victims: list[Victim]) -> None:
        """Find processes that are left, by the tree below this process and by their marks."""
        cluster, began = self.cluster, time.monotonic()
        left, none = await cluster.wait_none(GONE_BOUND, cluster.strangers)
        self.gone.append(none - began)
        left += cluster.bearing(victims[0].node, [victim.run for victim in victims])
        said = f"left after {GONE_BOUND:g} s: {cluster.nodes[0].names(left)}"
        cluster.book.check("processes: none of a killed server is left", holds=not left, seen=said)

    async def _await_lost(self, victim: Victim, killed: float) -> None:
        """Wait until the journal has the run as lost."""
        while (await self.cluster.stored(victim.run))[1] != "ended":
            await trio.sleep(LOOK)
        victim.lost, victim.stream = time.monotonic(), await self.cluster.stream(victim.run)
        self.lost.append(victim.lost - killed)

    def _judge(self, victim: Victim, killed: float) -> None:
        """Hold when it was lost, and told, against what is promised."""
        book, lease = self.cluster.book, self.cluster.lease
        took = victim.lost - killed
        holds = 0 < took <= lease + MARGIN
        book.check(f"runs: node-lost within lease + {MARGIN:g} s", holds=holds, seen=f"{took:.2f} s", run=victim.run)
        self.told += [over - victim.lost for over in victim.over]
        for seen in victim.viewers:
            reason = (seen.ended or {}).get("reason")
            said = f"{seen.ended}, closed with {seen.code} ({seen.reason})"
            book.check("viewers: told of node-lost", holds=reason == "node-lost", seen=said, run=victim.run)
            book.check("viewers: hear each line once", holds=not seen.faults, seen=seen.faults, run=victim.run)
        late = [over - victim.lost for over in victim.over if over - victim.lost > TOLD_BOUND]
        whole = len(victim.over) == len(victim.viewers) and not late
        said = f"{len(victim.over)} of {len(victim.viewers)}; late: {late}"
        book.check(f"viewers: all are told within {TOLD_BOUND:g} s of it", holds=whole, seen=said, run=victim.run)

    async def _judge_stored(self, victim: Victim, node: Node) -> None:
        """Compare what the journal has with what was heard."""
        book = self.cluster.book
        row = await self.cluster.row(node, victim.run)
        told = row["reason"], row["state"], row["lines"] == row["stored"]
        book.check("journal: has it as node-lost", holds=told == ("node-lost", "ended", True), seen=row, run=victim.run)
        for seen in victim.viewers:
            same = seen.last == row["stored"] and seen.gaps == 0
            said = f"heard {seen.last} of {row['stored']} stored lines, {seen.gaps} gaps"
            book.check("viewers: hear all that is stored", holds=same, seen=said, run=victim.run)
        self.behind.append(max(0, victim.owner.last - row["stored"]))

    async def _append(self, victim: Victim) -> None:
        """Try to append with the token of the server that was killed, and as another."""
        cluster, stored = self.cluster, (await self.cluster.stored(victim.run))[0]
        for node, token in ((victim.node, victim.token), (victim.node, str(int(victim.token) + 10**6)), ("x", "1")):
            words = (cluster.prefix, victim.run, node, token, "0", str(stored + 1), "1", str(10**6), "never")
            said = await cluster.redis.run(load("append"), (), *words)
            holds = said in (b"over", b"fenced")
            cluster.book.check("appends: refused behind the end", holds=holds, seen=f"{words}: {said}", run=victim.run)

    async def judge_streams(self) -> None:
        """Check that nothing was appended to any of the runs since they were lost."""
        for victim in self.past:
            now = await self.cluster.stream(victim.run)
            holds = now == victim.stream and now[1] == END_MARK
            said = f"entries and last: {victim.stream} when lost, {now} now"
            self.cluster.book.check("streams: end with the mark, and nothing behind", holds=holds, seen=said)


async def kills(book: Book, count: int, rng: random.Random) -> None:
    """Kill servers so often."""
    async with open_cluster(book, rng) as cluster:
        await cluster.start_all()
        part = Kills(cluster)
        for number in range(count):
            book.where = f"kill {number + 1}"
            await part.play()
            if number % 10 == 9:
                book.tell(f"{book.wrong} violations")
        book.where = ""
        await part.judge_streams()
        await cluster.check_rest(REST_BOUND)
        book.figure("servers killed", f"{part.by_node.total()}: {dict(part.by_node)}, {RUNS} runs each", f"{count}")
        book.times("from the kill to no process left", part.gone)
        book.times(f"from the kill to `node-lost`, lease {cluster.lease:g} s", part.lost)
        book.times("from `node-lost` to a viewer's close", part.told)
        book.figure("lines that an owner had and the journal not: most", max(part.behind, default=0))
