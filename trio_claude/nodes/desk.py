"""What this node holds in Redis and what its runs have used: told in order, each sum exactly once.

Duty: to keep the truth about this node here, and Redis' idea of it the same. A number goes with each message of sums,
so that one whose answer was lost may be told again; what this node holds is told anew on each new connection, and from
then on nothing counts that an older one had still to say. This module must never know what a decision is about.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import attrs
import trio

from ..admission import ALL, Ledger
from ..errors import Busy
from ..events import Observer
from ..services import keep_going
from .membership import Membership
from .redis import Redis, RedisBroken, RedisFault, RedisGone, Word
from .scripts import load

KEPT: Final = 3.0
"""Seconds for which sums are kept that Redis has acknowledged: one that is killed may have lost its last two."""
KEPT_MOST: Final = 1000
"""Messages of such sums."""
NAMES: Final = 500
"""Names in one message of sums, and entries in one that lets go."""
NAMES_MOST: Final = 100_000
"""Names whose sums may wait for a Redis that is gone; what others use is counted for all together only."""
TOKENS_MOST: Final = 10**12
DOLLARS_MOST: Final = 10**9
"""What a CLI may say at once that it has used; more is counted as so much."""
MILLIONTHS: Final = 1_000_000
LATE: Final = 10.0
"""Seconds by which an answer is late at most; one that says less is of a clock that was put back."""
PAUSE: Final = 0.2
"""Seconds between two tries to be known to Redis again, where it refused or another node has declared this one lost."""
RETRY: Final = 1.0
"""Seconds after which who is refused may come again."""
LAST_WORDS: Final = 2.0
"""Seconds for which a node that ends tells Redis what is not told yet."""


@attrs.define(eq=False)
class Held:
    """Something that this node holds, or waits for: kinds of entries, each with its key."""

    stamp: str
    kinds: tuple[tuple[str, str], ...]
    sure: str = ""
    """The kind that Redis has said is held; empty while that is open."""


@attrs.define(eq=False)
class Sums:
    """What runs have used since the message before: tokens and millionths of a dollar by name, all together last."""

    number: int
    used: dict[str, tuple[int, int]]
    told: float | None = None
    """When Redis has acknowledged it, None where it has not, or has lost it."""


class Desk:
    """One node's account with Redis. `call_next` hears of nodes on which a name is the next to have a place.

    Resource handling: `serve` tells what is to be told, until it is cancelled. Error handling: `decide` and `settled`
    raise `Busy` where Redis is gone, or does not know this node.
    """

    def __init__(self, redis: Redis, membership: Membership, call_next: Callable[[str, str], None]) -> None:
        self._redis = redis
        self._membership = membership
        self._node = membership.name
        self._call_next = call_next
        self._token = 0
        self._visit = 0
        self._ready = False
        self._ahead = 0.0
        self.spent: Ledger = Ledger()
        """What has been used today as far as this node knows: never more than the truth."""
        self._stamps = itertools.count()
        self._held: dict[str, Held] = {}
        self._going: list[str] = []
        self._sums: dict[str, tuple[int, int]] = {}
        self._numbers = itertools.count(1)
        self._messages: deque[Sums] = deque()
        self._asked = self._done = 0
        self._stir = trio.Event()
        self._settled = trio.Event()
        redis.on_change(self._change)
        membership.on_return(lambda: self._change(connected=False))  # what it held another server has let go of
        membership.on_forgotten(lambda: self._change(connected=False))

    # what is to be known here

    def wall(self) -> float:
        """Return the time by Redis' clock, in seconds since 1970."""
        return trio.current_time() + self._ahead

    def learn(self, milliseconds: int, sums: Iterable[tuple[str, int, int]] = ()) -> float:
        """Take what Redis' clock says, and what was spent by then: names, tokens, millionths. Return the seconds.

        An answer that took its time says less than the one before, so the clock goes back on one connection only where
        it was put back.
        """
        wall = milliseconds / 1000
        ahead = wall - trio.current_time()
        if ahead > self._ahead or ahead < self._ahead - LATE:
            self._ahead = ahead
        for name, tokens, millionths in sums:
            self.spent.learn(name, tokens, millionths / MILLIONTHS, wall)
        return wall

    def spend(self, name: str, tokens: int, dollars: float) -> None:
        """Have a sum told to Redis."""
        millionths = round(min(dollars, DOLLARS_MOST) * MILLIONTHS)
        if name not in self._sums and len(self._sums) >= NAMES_MOST:
            name = ALL
        before = self._sums.get(name, (0, 0))
        self._sums[name] = (before[0] + min(tokens, TOKENS_MOST), before[1] + millionths)
        self._queue()

    def hold(self, *kinds: tuple[str, str]) -> Held:
        """Return what is to be held: from now on Redis may have it."""
        held = Held(str(next(self._stamps)), kinds)
        self._held[held.stamp] = held
        return held

    def let_go(self, held: Held) -> None:
        """Hold something no more, and have Redis told so."""
        del self._held[held.stamp]
        self._going += self._entries(held)
        self._queue()

    def owner(self, held: Held) -> str:
        """Return as whose Redis knows what is held."""
        return f"{self._node}/{self._token}/{held.stamp}"

    def _entries(self, held: Held) -> list[str]:
        return [f"{kind}|{self.owner(held)}|{key}" for kind, key in held.kinds]

    def _queue(self) -> None:
        self._asked += 1
        self._stir.set()

    # what Redis is asked

    async def decide(self, script: str, *words: Word) -> list[Any]:
        """Have a script decide, behind all that was to be told before; return what it says. Raises `Busy`."""
        await self.settled()
        try:
            answer: list[Any] = await self._redis.run(load(script), [], *self._introduction(), *words)
        except RedisFault as error:
            raise not_now() from error
        if answer[0] in (b"lost", b"late"):
            self._change(connected=False)
            raise not_now()
        return answer

    async def settled(self) -> None:
        """Wait until Redis knows what there was to tell. Raises `Busy`."""
        upto = self._asked
        while self._ready and self._done < upto:
            await self._settled.wait()
        if not self._ready:
            raise not_now()

    def _introduction(self) -> tuple[Word, ...]:
        return self._redis.prefix, self._node, self._token, self._visit

    def _change(self, connected: bool) -> None:
        """Hear that Redis has come or gone; either way it must first be told what this node holds."""
        self._ready = False
        self._stir.set()
        self._wake()

    def _wake(self) -> None:
        self._settled.set()
        self._settled = trio.Event()

    # what Redis is told

    async def serve(self, observer: Observer, *, task_status: trio.TaskStatus[None]) -> None:
        """Tell Redis all that is to be told until cancelled. Raises `RedisFault` where the first time fails."""
        await self._meet()
        task_status.started()
        await keep_going("shared", self._keep_told, observer)

    async def _keep_told(self) -> None:
        while True:
            try:
                if self._ready or await self._meet():
                    await self._tell()
                else:
                    await trio.sleep(PAUSE)
            except RedisFault as error:  # membership tells why, and when that is over
                self._change(connected=False)
                if isinstance(error, RedisBroken):
                    raise
                if not isinstance(error, RedisGone):
                    await trio.sleep(PAUSE)
                await self._redis.wait()

    async def _meet(self) -> bool:
        """Tell Redis what this node holds; return whether it is known there. Raises `RedisFault`."""
        self._visit += 1
        self._token = self._membership.token
        self._going.clear()  # it is not among what is held
        said = [word for held in self._held.values() for word in self._declared(held)]
        answer = await self._redis.run(load("meet"), [], *self._introduction(), *said)
        if answer[0] != b"ok" or not self._redis.connected:
            return False
        self._ahead = -math.inf
        now = self.learn(answer[1])
        for sums in self._messages:
            sums.told = (sums.told or now) if sums.number <= answer[2] else None
        self._asked += 1  # nothing is decided until the sums are told that were lost
        self._ready = True
        return True

    def _declared(self, held: Held) -> Iterator[str]:
        for (kind, _), entry in zip(held.kinds, self._entries(held), strict=True):
            yield "have" if kind == held.sure else "keep"
            yield entry

    async def _tell(self) -> None:
        """Tell what there is to tell, and wait for more, until Redis goes."""
        while self._ready:
            upto, going, self._going = self._asked, self._going, []
            self._put_together()
            await self._tell_sums()
            for first in range(0, len(going), NAMES):
                await self._free(going[first : first + NAMES])
            self._done = upto
            self._wake()
            if self._ready and self._asked == self._done:
                self._stir = trio.Event()
                await self._stir.wait()

    async def _free(self, entries: list[str]) -> None:
        """Let go of entries, and have it known who is next where a place is free by that."""
        _, *told = await self._redis.run(load("free"), [], *self._introduction(), *entries)
        for node, name in zip(told[::2], told[1::2], strict=True):
            self._call_next(node.decode(), name.decode())

    def _put_together(self) -> None:
        """Make messages of the sums that wait."""
        sums, self._sums = self._sums, {}
        unnamed = sums.pop(ALL, (0, 0))
        while sums or any(unnamed):
            some = {name: sums.pop(name) for name in list(sums)[:NAMES]}
            every = [unnamed, *some.values()]
            some[ALL] = (sum(one[0] for one in every), sum(one[1] for one in every))
            self._messages.append(Sums(next(self._numbers), some))
            unnamed = (0, 0)

    async def _tell_sums(self) -> None:
        """Tell the sums that Redis has not, in their order, and forget those that it has had for long enough."""
        untold = list(itertools.takewhile(lambda sums: sums.told is None, reversed(self._messages)))
        for sums in reversed(untold):
            words = [word for name, used in sums.used.items() for word in (name, *used)]
            answer = await self._redis.run(load("spend"), [], *self._introduction(), sums.number, *words)
            if answer[0] != b"ok":
                self._change(connected=False)
                return
            sums.told = self.learn(answer[1], zip(sums.used, answer[2::2], answer[3::2], strict=True))
        while self._messages and self._is_old(self._messages[0]):
            self._messages.popleft()

    def _is_old(self, sums: Sums) -> bool:
        if sums.told is None:
            return False
        return self.wall() - sums.told > KEPT or len(self._messages) > KEPT_MOST

    async def aclose(self) -> None:
        """Tell what is not told yet, if Redis is there."""
        with trio.move_on_after(LAST_WORDS, shield=True):
            try:
                await self.settled()
            except Busy:
                return


def not_now() -> Busy:
    """Return why nothing can be decided while Redis is gone."""
    return Busy("what the servers share is not at hand just now", retry_after=RETRY)
