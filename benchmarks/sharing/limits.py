"""Limits, budgets, tickets and sessions that are asked for at all servers at once: exact counts."""

from __future__ import annotations

import base64
import functools
import itertools
import json
import math
import random
import resource
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import trio
from common import open_socket
from harness import call, directive
from soaking.house import REST_BOUND
from soaking.plays import expect
from soaking.wire import RESULT, Gone, Seen, connecting

from trio_claude.identity.keys import Key, digest, new_secret, write_keys

from .book import Book, leaves
from .cluster import Cluster, Node, open_cluster

EACH = 100
"""Asks of one identity for prompts."""
RATE = 6
"""Prompts a minute that such an identity may have: so many at once, and one more every ten seconds."""
PLACES, WAITING = 5, 50
"""Runs at once of one identity, and how many more may wait."""
DOLLARS = 0.0022
"""Dollars a day of one identity: some twelve prompts of the fake CLI."""
SPENDERS = 60
"""Runs at once whose costs are added up."""
TICKETS, USES = 30, 6
"""Tickets, and how often each is used, at all servers at once."""
SESSIONS, RESUMES = 10, 12
"""Sessions, and how often each is resumed, at all servers at once."""
SPREAD = 0.1
"""Seconds after a run's end in which all servers know what it has cost."""
PATIENCE = 100.0
"""Seconds in which all asks of one kind are answered."""
LEASE = 5.0
"""The default: on a shorter one a busy Redis is sooner taken for gone."""
NOT_NOW = "1013 what the servers share is not at hand just now"
RETRY_AFTER = 1.0
MILLION = 1_000_000
OWN_LIMITS: dict[str, dict[str, float]] = {
    "places": {"runs_per_identity": PLACES, "waiting_per_identity": WAITING},
    "money": {"dollars_per_day": DOLLARS},
    "spender": {"dollars_per_day": 10**6},
    "ticket": {},
    "resume": {},
}


@attrs.define(eq=False)
class Race:
    """Asks at once: what each was answered first; those that have what they asked for go on once all are answered."""

    count: int
    first: Counter[str] = attrs.Factory(Counter)
    go: trio.Event = attrs.Factory(trio.Event)
    _all: trio.Event = attrs.Factory(trio.Event)

    def answer(self, what: str) -> None:
        """Take an answer."""
        self.first[what] += 1
        if self.first.total() == self.count:
            self._all.set()

    async def release(self) -> None:
        """Let them go on, once all are answered."""
        await self._all.wait()
        await trio.sleep(SPREAD)
        self.go.set()


@attrs.define(eq=False)
class Limited:
    """The servers, and the keys of who asks them, by name."""

    cluster: Cluster
    keys: dict[str, str]
    again: int = 0
    """How often a server could not decide just now, and was asked again."""
    _turn: Any = attrs.Factory(itertools.count)

    @property
    def book(self) -> Book:
        """What is checked."""
        return self.cluster.book

    def next_node(self) -> Node:
        """Return one server after the other."""
        return self.cluster.nodes[next(self._turn) % len(self.cluster.nodes)]

    async def at_once(self, count: int, ask: Callable[[], Awaitable[str]]) -> Counter[str]:
        """Ask so often at once; return how often each answer came. One that fails is an answer too."""
        found: Counter[str] = Counter()

        async def one() -> None:
            try:
                found[await ask()] += 1
            except Exception as error:  # whatever befalls one, the others are counted
                found[f"failed: {leaves(error)}"] += 1

        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                for _ in range(count):
                    nursery.start_soon(one)
        return found

    def exact(self, rule: str, found: Counter[str], wanted: dict[str, int]) -> None:
        """Check that just these answers came."""
        self.book.check(rule, holds=+found == +Counter(wanted), seen=f"{dict(found)}, not {wanted}")

    async def prompt(self, name: str, text: str) -> tuple[str, float]:
        """Have a prompt answered at the next server; return how it was, and what it cost."""
        while (answered := await self._prompt(name, text))[0] == NOT_NOW:
            await self.wait()
        return answered

    async def wait(self) -> None:
        """Wait as long as a server says that can't decide just now; `at_once` bounds it."""
        self.again += 1
        await trio.sleep(RETRY_AFTER)

    async def _prompt(self, name: str, text: str) -> tuple[str, float]:
        seen, cost = Seen("claude"), 0.0
        async with connecting(self.next_node().port, "claude", seen, bearer(self.keys[name])) as client:
            await client.until(b'{"info":"send ')
            await client.say({"prompt": text, "meta": "NODES-LIMIT"})
            try:
                cost = float((await client.until(*RESULT)).get("total_cost_usd", 0))
            except Gone:
                return f"{seen.code} {seen.error.partition(':')[0]}", 0.0
            await client.read()
        return f"{seen.code}", cost

    # what is asked

    async def rates(self, count: int) -> None:
        """Ask for more prompts than may be."""
        names = [name for name in self.keys if name.startswith("rate")]
        admitted: Counter[str] = Counter()
        turn = itertools.cycle(names)
        began, answered = time.monotonic(), list[float]()

        async def ask() -> str:
            name = next(turn)
            answer, _ = await self.prompt(name, directive("lines", n=1))
            admitted[name] += answer == "1000"
            answered.append(time.monotonic() - began)
            return answer

        found = await self.at_once(count, ask)
        took = time.monotonic() - began
        most = math.floor(RATE + took * RATE / 60)
        for name in names:
            said = f"{admitted[name]} in {took:.1f} s, {RATE} to {most} may be"
            self.book.check("prompts a minute: exact", holds=RATE <= admitted[name] <= most, seen=f"{name}: {said}")
        good = all(answer == "1000" or answer.startswith("1013 ") for answer in found)
        self.book.check("prompts a minute: all others are refused", holds=good, seen=dict(found))
        told = f"{sum(admitted.values())} of {count} in {took:.1f} s"
        self.book.figure(
            f"prompts of {len(names)} identities, {RATE} a minute each", told, f"{RATE * len(names)}, and 1 each 10 s"
        )

    async def places(self, count: int) -> None:
        """Ask for more runs at once than may be."""
        race, began = Race(count), time.time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(race.release)
            found = await self.at_once(count, functools.partial(self._place, race))
        first = race.first
        have, wait = min(PLACES, count), max(0, min(WAITING, count - PLACES))
        full = {"queue-full": count - have - wait}
        self.exact(
            "runs at once: so many begin, wait and are refused", first, {"started": have, "queued": wait, **full}
        )
        self.exact("runs at once: all that wait come to it", found, {"stopped": have + wait, **full})
        most = self._most_at_once(began)
        self.book.check("runs at once: never more", holds=most == have, seen=f"{most}, not {have}")
        name = f"runs at once, {PLACES} may be and {WAITING} wait"
        self.book.figure(name, f"{dict(first)}, at most {most} at once", f"{have}")

    async def _place(self, race: Race) -> str:
        """Ask for a run, wait for it if need be, and hold it until all others are answered."""
        while (answered := await self._try_place(race)) == "busy":
            await self.wait()
        return answered

    async def _try_place(self, race: Race) -> str:
        seen = Seen("session")
        async with connecting(self.next_node().port, "session", seen, bearer(self.keys["places"])) as client:
            await client.op("start", meta="NODES-PLACE")
            said = await client.event("queued", "started", "refused")
            if said.get("code") == "busy":
                return "busy"
            race.answer(said.get("code", said["event"]))
            if said["event"] == "refused":
                return str(said["code"])
            if said["event"] == "queued":
                await client.event("started")
            await race.go.wait()
            await client.op("stop", mode="kill")
            await client.read()
        return str((seen.ended or {}).get("reason"))

    def _most_at_once(self, began: float) -> int:
        """Return how many runs there were at once, out of the logs of all servers."""
        steps = []
        for node in self.cluster.nodes:
            started = {one.said["run"]: one.at for one in node.of("RunStarted") if one.at >= began - 0.001}
            ended = {one.said["run"]: one.at for one in node.of("RunEnded")}
            steps += [(at, 1) for at in started.values()] + [(ended[run], -1) for run in started if run in ended]
        return max(itertools.accumulate(step for _, step in sorted(steps)), default=0)

    async def money(self, count: int) -> None:
        """Use up a budget, one prompt after the other, each at another server; then ask more."""
        costs, answer = list[float](), "1000"
        while not answer.startswith("1013"):  # the last one may use up what is left, and no more: 1011
            answer, cost = await self.prompt("money", "hello")
            costs += [cost] * (not answer.startswith("1013"))
            await trio.sleep(SPREAD)
        wanted = math.ceil(DOLLARS * MILLION / _millionths(costs[:1]))
        said = f"{len(costs)} prompts for {costs[0]} dollars each, not {wanted}; then {answer}"
        self.book.check("dollars a day: exact", holds=len(costs) == wanted, seen=said)

        async def ask() -> str:
            return (await self.prompt("money", "hello"))[0][:4]

        self.exact("dollars a day: nobody gets more", await self.at_once(count, ask), {"1013": count})
        await self._check_sum("money", costs)

        async def spend() -> str:
            answer, cost = await self.prompt("spender", "hello")
            spent.append(cost)
            return answer

        spent: list[float] = []
        many = min(SPENDERS, count)
        self.exact("dollars: all that may spend do", await self.at_once(many, spend), {"1000": many})
        await trio.sleep(SPREAD)
        await self._check_sum("spender", spent)
        self.book.figure(f"prompts for {costs[0]} dollars each, {DOLLARS} may be spent", len(costs), f"{wanted}")

    async def _check_sum(self, name: str, costs: list[float]) -> None:
        """Compare what Redis says that an identity has spent with what its results said."""
        redis, found = self.cluster.redis, 0
        for key in await redis.ask("KEYS", redis.key("spent", "*")):
            found += int(await redis.ask("HGET", key, f"dollars:key:{name}") or 0)
        wanted = _millionths(costs)
        self.book.check("dollars: each is counted once", holds=found == wanted, seen=f"{name}: {found} of {wanted}")

    async def tickets(self, count: int) -> None:
        """Use each ticket several times, at all servers at once."""
        found: Counter[int] = Counter()
        for _ in range(count):
            status, _, body = await call(self.next_node(), "/api/ticket", self.keys["ticket"], "POST")
            expect(status == 200, f"/api/ticket: {status} {body!r}")
            word = base64.urlsafe_b64encode(json.loads(body)["ticket"].encode()).decode().rstrip("=")
            headers = f"Sec-WebSocket-Protocol: trio-claude.v1, ticket.{word}\r\n"

            async def use(headers: str = headers) -> str:
                try:
                    stream, _ = await open_socket(self.next_node().port, "/ws/session", headers)
                except ConnectionError as error:
                    return str(error)
                stream.socket.close()
                return "in"

            answers = await self.at_once(USES, use)
            found[answers["in"]] += 1
            wanted = {"in": 1, "HTTP/1.1 401 Unauthorized": USES - 1}
            self.exact("tickets: each opens one door", answers, wanted)
        self.book.figure(
            f"tickets, used {USES} times each: by how many doors they opened", dict(found), f"{{1: {count}}}"
        )

    async def sessions(self, count: int) -> None:
        """Resume a session several times, at all servers at once."""
        found: Counter[int] = Counter()
        for _ in range(count):
            race = Race(RESUMES)
            resume = functools.partial(self._resume, await self._talk(), race)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(race.release)
                answers = await self.at_once(RESUMES, resume)
            found[answers["held"]] += 1
            self.exact("sessions: one run holds each", answers, {"held": 1, "session-busy": RESUMES - 1})
        name = f"sessions, resumed {RESUMES} times each, by how many held each"
        self.book.figure(name, dict(found), f"{{1: {count}}}")

    async def _resume(self, session: str, race: Race) -> str:
        """Resume a session, and hold it, if it may, until all others are answered."""
        async with connecting(self.next_node().port, "session", Seen("session"), bearer(self.keys["resume"])) as client:
            await client.op("start", meta="NODES-RESUME", options={"resume": session})
            said = await client.event("started", "refused")
            race.answer(said["event"])
            if said["event"] == "refused":
                return str(said["code"])
            await race.go.wait()
            await client.op("stop", mode="kill")
            await client.read()
        return "held"

    async def _talk(self) -> str:
        """Have a session that can be resumed; return its id."""
        async with connecting(self.next_node().port, "session", Seen("session"), bearer(self.keys["resume"])) as client:
            await client.op("start", meta="NODES-RESUME")
            started = await client.event("started")
            await client.user("hello")
            await client.until(*RESULT)
            await client.op("stop", mode="end")
            await client.read()
        return str(started["session"])


def bearer(key: str) -> str:
    """Return the header that carries a key."""
    return f"Authorization: Bearer {key}\r\n"


def _millionths(costs: list[float]) -> int:
    return sum(round(cost * MILLION) for cost in costs)


def make_keys(folder: Path, rated: int) -> dict[str, str]:
    """Write a file of keys with limits of their own; return the keys by name."""
    limits = OWN_LIMITS | {f"rate{number}": {"prompts_per_minute": RATE} for number in range(rated)}
    secrets = {name: new_secret() for name in limits}
    write_keys(folder / "keys.json", {name: Key(digest(secrets[name]), limits=own) for name, own in limits.items()})
    return secrets


async def limits(book: Book, count: int, rng: random.Random) -> None:
    """Ask so often at once, for each kind of thing."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    async with open_cluster(book, rng, "--cwd=", lease=LEASE) as cluster:
        keys = make_keys(cluster.folder, max(1, count // EACH))
        for node in cluster.nodes:
            node.words = (*node.words, f"--keys={cluster.folder / 'keys.json'}")
        await cluster.start_all()
        part = Limited(cluster, keys)
        share = min(1.0, count / 1000)
        for name, play, often in (
            ("prompts", part.rates, count),
            ("runs", part.places, count),
            ("dollars", part.money, max(3, count // 10)),
            ("tickets", part.tickets, math.ceil(TICKETS * share)),
            ("sessions", part.sessions, math.ceil(SESSIONS * share)),
        ):
            book.where = name
            await play(often)
            book.tell(f"{book.wrong} violations")
        book.where = ""
        book.figure("asks that were told to come again, as Redis did not answer just then", part.again)
        await cluster.check_rest(REST_BOUND)
