"""Admission over several nodes: what `admission` decides for one server is decided here for all that share a Redis.

Duty: to have each decision made once, in Redis, and to tell it in the words of `admission`. This module must never let
in what it could not ask about, and never ask where there is no limit.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, Final

import attrs
import trio

from ..admission import ALL, Ledger, Limits, Member, check_budgets, check_rates
from ..errors import Busy, ConfigError, QueueFull, SessionBusy
from ..events import Observer
from ..figures import brief
from ..identity import Identity, packed, unpacked
from ..identity.tickets import KEPT, KEPT_EACH, LIFETIME
from ..services import open_lasting
from .control import Control
from .desk import MILLIONTHS, Desk, Held, not_now
from .membership import Membership
from .redis import Redis, RedisFault, Word
from .scripts import load

PLACE_PERIOD: Final = 0.5
"""Seconds after which a node asks again for the first of those that wait for a place, if nobody tells it of one."""
PLACE_PERIOD_OTHERS: Final = 2.0
"""Seconds after which the others ask again, to be told their place."""
USED: Final = 500
"""Sessions of which is asked at a time whether they are in use."""
RUNS_MOST: Final = 10**6
"""Runs at once of who had a limit and has none any more."""
FREED_PATIENCE: Final = 0.5
"""Seconds at most that the end of a run waits until others know that its session is free."""


@attrs.define(eq=False)
class Waiter:
    """A run of this node that waits for a place; it asks again when it is `called`."""

    number: int = 0
    """In the order of all that wait; 0 while it is not known."""
    called: trio.Event = attrs.Factory(trio.Event)


class Shared:
    """What all nodes count together.

    Resource handling: lives in the context that `open_shared` gives. Error handling: whatever takes a decision raises
    `Busy` where Redis is gone; what has no limit takes none.
    """

    def __init__(self, redis: Redis, membership: Membership, control: Control) -> None:
        self._redis = redis
        self._control = control
        self._node = membership.name
        self._desk = Desk(redis, membership, self._tell_next)
        self._lines: dict[str, list[Waiter]] = {}
        self._waiting = 0
        control.on("place", lambda _node, packet: self._call_next(packet["who"]))

    @property
    def spent(self) -> Ledger:
        """What has been used today as far as this node knows: never more than the truth."""
        return self._desk.spent

    def wall(self) -> float:
        """Return the time by Redis' clock, which says when a day ends; in seconds since 1970."""
        return self._desk.wall()

    async def ask(self, member: Member, total: Limits) -> None:
        """Count a prompt. Raises `TooFast` and `OverBudget`, and counts nothing then; and `Busy`."""
        limits = [
            value
            for one in (member.limits, total)
            for value in (one.prompts_per_minute, one.tokens_per_day, one.dollars_per_day)
        ]
        if not any(limits):
            return
        answer = await self._desk.decide("ask", member.name, *limits)
        self._desk.learn(answer[1], ((member.name, *answer[2:4]), (ALL, *answer[4:6])))
        check_budgets(self.spent, member, total, self.wall())
        check_rates(member, total, answer[6] / MILLIONTHS, answer[7] / MILLIONTHS)

    async def give_back(self, member: Member, total: Limits) -> None:
        """Count a prompt off, of which no run came; where Redis is gone it stays counted."""
        rates = member.limits.prompts_per_minute, total.prompts_per_minute
        if any(rates):
            with contextlib.suppress(Busy):
                await self._ask("give_back", member.name, *rates)

    def spend(self, member: Member, tokens: int, dollars: float) -> None:
        """Add to what a member has used today; other nodes know as soon as Redis does, of which none is lost."""
        self._desk.spend(member.name, tokens, dollars)

    @asynccontextmanager
    async def hold(self, who: str, session: str | None) -> AsyncIterator[None]:
        """Hold a session of `who` on this node alone; None is a new one. Raises `SessionBusy` and `Busy`."""
        if session is None:
            yield
            return
        key = self._lock(who, session)
        held = self._desk.hold(("lock", key))
        try:
            answer = await self._desk.decide("lock", self._desk.owner(held), key)
            if answer[0] == b"busy":
                raise SessionBusy(f"resume: session {session} is in use by another run")
            held.sure = "lock"
            yield
        finally:
            self._desk.let_go(held)
            await self._wait_freed()

    async def _wait_freed(self) -> None:
        """Have others know what is free before whoever had it is told so."""
        with trio.move_on_after(FREED_PATIENCE, shield=True), contextlib.suppress(Busy):
            await self._desk.settled()

    async def in_use(self, sessions: Iterable[tuple[str, str | None]]) -> set[tuple[str, str | None]]:
        """Return which of some sessions, each of an identity (None: any of its), are in use on any node. Raises `Busy`.

        Redis is asked, and takes no memory for it.
        """
        with contextlib.suppress(Busy):  # then Redis may take it that this node holds what it has let go
            await self._desk.settled()
        asked, used = list(sessions), set[tuple[str, str | None]]()
        for first in range(0, len(asked), USED):
            some = asked[first : first + USED]
            words = [word for who, session in some for word in (who, session or "", self._lock(who, session or ""))]
            told = await self._ask("used", *words)
            used |= {one for one, is_used in zip(some, told, strict=True) if is_used}
        return used

    def _lock(self, who: str, session: str) -> str:
        """Return the name of a session's lock."""
        return self._redis.key("lock", str(len(who)), who, session)

    @asynccontextmanager
    async def place(self, member: Member, total: Limits, on_wait: Callable[[int], None]) -> AsyncIterator[None]:
        """Have one of the runs that a member may have at once, over all nodes, first come first served.

        `on_wait` hears of the place in line as it changes. Raises `QueueFull`, and `Busy` where Redis is gone at first;
        who is in line stays there meanwhile.
        """
        if not member.limits.runs:
            yield
            return
        held = self._desk.hold(*((kind, self._redis.key(kind, member.name)) for kind in ("running", "waiting")))
        try:
            await self._take_place(held, member, total, on_wait)
            held.sure = "running"
            yield
        finally:
            self._desk.let_go(held)

    async def _take_place(self, held: Held, member: Member, total: Limits, on_wait: Callable[[int], None]) -> None:
        """Take a place, waiting in line for it if need be."""
        with self._in_line(member.name) as waiter:
            ahead, told = await self._try_place(held, member, waiter), -1
            if ahead is None:
                return
            with self._waits(total.waiting):
                while ahead is not None:
                    if ahead != told:
                        told = ahead
                        on_wait(ahead + 1)
                    is_first = waiter is self._first(member.name)
                    with trio.move_on_after(PLACE_PERIOD if is_first else PLACE_PERIOD_OTHERS):
                        await waiter.called.wait()
                    with contextlib.suppress(Busy):
                        ahead = await self._try_place(held, member, waiter)

    async def _try_place(self, held: Held, member: Member, waiter: Waiter) -> int | None:
        """Return how many are before this one in line, None where it has its place. Raises `QueueFull` and `Busy`."""
        keys, limits = [key for _, key in held.kinds], member.now
        waiter.called = trio.Event()
        said = await self._desk.decide("place", self._desk.owner(held), *keys, limits.runs or RUNS_MOST, limits.waiting)
        if said[0] == b"full":
            raise QueueFull(f"{said[1]} of your runs wait already; {brief(limits.waiting)} may")
        if said[0] == b"ok":
            self._tell_next(said[1].decode(), member.name)
            return None
        waiter.number = said[1]
        return int(said[2])

    @contextmanager
    def _waits(self, most: int) -> Iterator[None]:
        """Be one of the runs of this node that wait for a place. Raises `QueueFull`."""
        if self._waiting >= most:
            raise QueueFull(f"{self._waiting} runs wait already; {most} may")
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    @contextmanager
    def _in_line(self, who: str) -> Iterator[Waiter]:
        """Be one of those of this node that hear of a place."""
        waiter = Waiter()
        line = self._lines.setdefault(who, [])
        line.append(waiter)
        try:
            yield waiter
        finally:
            line.remove(waiter)
            if not line:
                del self._lines[who]
            self._call_next(who)

    def _tell_next(self, node: str, who: str) -> None:
        """Have the node know on which the first in line waits, if one does, that there is a place."""
        if node == self._node:
            self._call_next(who)
        elif node:
            self._control.tell(node, {"op": "place", "who": who})

    def _call_next(self, who: str) -> None:
        """Have the first in line of this node ask for a place: there may be one."""
        if waiter := self._first(who):
            waiter.called.set()

    def _first(self, who: str) -> Waiter | None:
        return min(self._lines.get(who, ()), key=_number, default=None)

    async def put_ticket(self, identity: Identity, origin: str | None) -> str:
        """Return a ticket that is good on any node, once, from a page of the same origin. Raises `Busy`."""
        secret = secrets.token_urlsafe(32)
        said = json.dumps({"identity": packed(identity), "origin": origin})
        await self._ask("ticket", _digest(secret), identity.name, said, int(LIFETIME * 1000), KEPT_EACH, KEPT)
        return secret

    async def take_ticket(self, secret: str, origin: str | None) -> Identity | None:
        """Return whose ticket it is; it is spent then, also where the origin is another. Raises `Busy`."""
        answer = await self._ask("spend_ticket", _digest(secret))
        if answer[0] != b"ok":
            return None
        said = json.loads(answer[1])
        return unpacked(said["identity"]) if said["origin"] == origin else None

    async def _ask(self, script: str, *words: Word) -> list[Any]:
        try:
            answer: list[Any] = await self._redis.run(load(script), [], self._redis.prefix, *words)
        except RedisFault as error:
            raise not_now() from error
        return answer


@asynccontextmanager
async def open_shared(
    redis: Redis, membership: Membership, control: Control, observer: Observer
) -> AsyncIterator[Shared]:
    """Open what a node shares that has joined. Raises `ConfigError` where Redis does not take what it is told."""
    shared = Shared(redis, membership, control)
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(open_lasting(shared._desk.serve, observer))
        except RedisFault as error:
            raise ConfigError(f"redis: {redis.address}: {error}") from None
        stack.push_async_callback(shared._desk.aclose)
        yield shared


def _number(waiter: Waiter) -> int:
    return waiter.number


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
