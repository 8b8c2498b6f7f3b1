"""Slots for runs, and a fair queue of those that find none. Pure.

Fair is: the next slot goes to the identity that got one longest ago; among its own runs, first come first served.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable

import attrs

from ..errors import QueueFull
from ..figures import brief


@attrs.define(eq=False)
class Waiter:
    """A run that waits; `grant` is called, once, when it has got its slot."""

    holder: object
    who: str
    runs: int
    """Runs at once that its identity may have; 0 is no limit."""
    grant: Callable[[], None]
    granted: bool = False


class Slots:
    """`total` slots, and at most `waiting` that wait for one."""

    def __init__(self, total: int, waiting: int) -> None:
        self.total: int = total
        self.waiting: int = waiting
        self._holders: dict[object, str] = {}
        self._running: Counter[str] = Counter()
        self._queues: dict[str, deque[Waiter]] = {}
        self._granted: dict[str, int] = {}
        self._serial = 0
        self._places: dict[Waiter, int] | None = None

    def take(self, holder: object, who: str, runs: int = 0) -> bool:
        """Take a slot that nobody waits for; return whether `who`, with `runs` at once, may have one."""
        if len(self._holders) >= self.total or not self._may(who, runs) or self._next():
            return False
        self._give(holder, who)
        return True

    def queue(self, waiter: Waiter, limit: int) -> None:
        """Wait for a slot. Raises `QueueFull` where `limit` of the identity, or too many in all, wait already."""
        own = self._queues.get(waiter.who, ())
        if limit and len(own) >= limit:
            raise QueueFull(f"{len(own)} of your runs wait already; {brief(limit)} may")
        if len(self) >= self.waiting:
            raise QueueFull(f"{len(self)} runs wait already; {self.waiting} may")
        self._queues.setdefault(waiter.who, deque()).append(waiter)
        self._places = None
        self._serve()

    def allow(self, waiter: Waiter, runs: int) -> None:
        """Let the identity of one that waits have another number of runs at once, as far as this one goes."""
        if runs != waiter.runs:
            waiter.runs = runs
            self._serve()

    def leave(self, waiter: Waiter) -> None:
        """Wait no more; a slot that was granted meanwhile is given back."""
        if waiter.granted:
            self.free(waiter.holder)
            return
        self._queues[waiter.who].remove(waiter)
        self._places = None
        self._forget(waiter.who)
        self._serve()

    def free(self, holder: object) -> None:
        """Give a slot back; it goes to who is next."""
        who = self._holders.pop(holder)
        self._running[who] -= 1
        self._forget(who)
        self._serve()

    def hand_over(self, holder: object, who: str) -> None:
        """Let a slot that is held count for another identity."""
        before, self._holders[holder] = self._holders[holder], who
        self._running[before] -= 1
        self._count(who)
        self._forget(before)

    def resize(self, total: int, waiting: int) -> None:
        """Have another number of slots from now on; nobody who holds one loses it."""
        self.total, self.waiting = total, waiting
        self._serve()

    def may(self, who: str, runs: int) -> bool:
        """Return whether `who` may have one more run, and nobody waits for a slot."""
        return self._may(who, runs) and not self._next()

    def place(self, waiter: Waiter) -> int:
        """Return how many slots are given until `waiter` has one, itself counted."""
        if self._places is None:
            self._places = self._order()
        return self._places[waiter]

    @property
    def taken(self) -> int:
        """How many slots are held."""
        return len(self._holders)

    @property
    def short(self) -> bool:
        """Whether all slots are held while somebody waits who may have one."""
        return len(self._holders) >= self.total and self._next() is not None

    def __len__(self) -> int:
        """Return how many wait."""
        return sum(map(len, self._queues.values()))

    def _may(self, who: str, runs: int) -> bool:
        return not runs or self._running[who] < runs

    def _give(self, holder: object, who: str) -> None:
        self._holders[holder] = who
        self._count(who)

    def _count(self, who: str) -> None:
        self._serial += 1
        self._granted[who] = self._serial
        self._running[who] += 1

    def _serve(self) -> None:
        """Give free slots to those who are next."""
        while len(self._holders) < self.total and (waiter := self._next()):
            self._queues[waiter.who].popleft()
            self._places = None
            self._give(waiter.holder, waiter.who)
            self._forget(waiter.who)
            waiter.granted = True
            waiter.grant()

    def _next(self) -> Waiter | None:
        """Return who gets the next slot: of the identities that may have one more, the one that got one longest ago."""
        heads = (queue[0] for queue in self._queues.values())
        able = [waiter for waiter in heads if self._may(waiter.who, waiter.runs)]
        return min(able, key=lambda waiter: self._granted.get(waiter.who, 0), default=None)

    def _forget(self, who: str) -> None:
        """Keep nothing about an identity that neither runs nor waits, once nobody waits who could be behind it."""
        if who in self._queues and not self._queues[who]:
            del self._queues[who]
        if not self._running[who]:
            del self._running[who]
        if not self._queues and len(self._granted) > len(self._running):
            self._granted = {name: self._granted[name] for name in self._running}

    def _order(self) -> dict[Waiter, int]:
        """Return the place of each that waits, as if every identity might have any number of runs."""
        lines = [
            list(queue) for _, queue in sorted(self._queues.items(), key=lambda item: self._granted.get(item[0], 0))
        ]
        order = [line[turn] for turn in range(max(map(len, lines), default=0)) for line in lines if turn < len(line)]
        return {waiter: place for place, waiter in enumerate(order, 1)}
