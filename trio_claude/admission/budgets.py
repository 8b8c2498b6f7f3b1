"""Tokens and dollars of a day. Pure; `now` is wall-clock time, as days are."""

from __future__ import annotations

import attrs

from ..errors import OverBudget
from ..figures import brief
from .limits import Limits

DAY = 86400
KEPT = 100_000
"""Names whose spending is kept; over it, who has spent least is forgotten first."""


@attrs.define
class Spent:
    """What was used in a day."""

    tokens: int = 0
    dollars: float = 0.0


class Ledger:
    """What each name has used on this day of UTC. The day before is kept, too: a clock may be put back to it."""

    def __init__(self) -> None:
        self._day = self._day_before = 0
        self._spent: dict[str, Spent] = {}
        self._spent_before: dict[str, Spent] = {}

    def of(self, name: str, now: float) -> Spent:
        """Return what `name` has used today."""
        self._turn_page(now)
        return self._spent.get(name, Spent())

    def spend(self, name: str, tokens: int, dollars: float, now: float) -> None:
        """Add to what `name` has used today."""
        spent = self._line(name, now)
        spent.tokens += tokens
        spent.dollars += dollars

    def learn(self, name: str, tokens: int, dollars: float, now: float) -> None:
        """Take it that `name` has used at least so much on the day of `now`, unless that is over: others count too."""
        if now // DAY < self._day:
            return
        spent = self._line(name, now)
        spent.tokens, spent.dollars = max(spent.tokens, tokens), max(spent.dollars, dollars)

    def _line(self, name: str, now: float) -> Spent:
        self._turn_page(now)
        if name not in self._spent and len(self._spent) >= KEPT:
            del self._spent[min(self._spent, key=lambda one: self._spent[one].dollars)]
        return self._spent.setdefault(name, Spent())

    def check(self, name: str, limits: Limits, now: float, whose: str = "your") -> None:
        """Raise `OverBudget` where `name` has used up its day; it says when the next begins."""
        spent = self.of(name, now)
        self._check(spent.dollars, limits.dollars_per_day, f"{whose} budget", "dollars", now)
        self._check(spent.tokens, limits.tokens_per_day, f"{whose} budget", "tokens", now)

    def _check(self, used: float, limit: float, what: str, unit: str, now: float) -> None:
        """Raise `OverBudget` where a limit is used up; 0 is none."""
        if limit and used >= limit:
            raise OverBudget(f"{what} of {brief(limit)} {unit} a day is spent", self._rest(now))

    def left(self, name: str, limits: Limits, now: float) -> float | None:
        """Return the dollars that `name` may still spend today, None where there is no limit."""
        if not limits.dollars_per_day:
            return None
        return max(0.0, limits.dollars_per_day - self.of(name, now).dollars)

    def _rest(self, now: float) -> float:
        return float(DAY - now % DAY)

    def _turn_page(self, now: float) -> None:
        if (day := int(now // DAY)) == self._day:
            return
        spent = self._spent_before if day == self._day_before else {}
        self._day_before, self._spent_before = self._day, self._spent
        self._day, self._spent = day, spent

    def __len__(self) -> int:
        return len(self._spent)
