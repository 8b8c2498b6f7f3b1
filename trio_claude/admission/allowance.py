"""What a member may still use: prompts of a minute, tokens and dollars of a day, its own and those of all. Pure."""

from __future__ import annotations

from ..errors import OverBudget, TooFast
from ..figures import brief
from .budgets import Ledger
from .limits import Limits, Member
from .rates import Rates

ALL = ""
"""The name under which all together are counted; no identity has it."""


class Allowance:
    """The use of one server by all. `now` never goes back; `wall` is the wall clock, as days are its."""

    def __init__(self, total: Limits, ledger: Ledger | None = None) -> None:
        self.total: Limits = total
        self._rates = Rates()
        self._ledger = Ledger() if ledger is None else ledger

    def ask(self, member: Member, now: float, wall: float) -> None:
        """Count a prompt. Raises `TooFast` and `OverBudget`, and counts nothing then."""
        self.check_budget(member, wall)
        own, every = member.limits.prompts_per_minute, self.total.prompts_per_minute
        waits = self._rates.wait(member.name, own, now), self._rates.wait(ALL, every, now)
        check_rates(member, self.total, *waits)
        self._rates.take(member.name, own, now)
        self._rates.take(ALL, every, now)

    def give_back(self, member: Member, now: float) -> None:
        """Count a prompt off, of which no run came."""
        self._rates.give_back(member.name, member.limits.prompts_per_minute, now)
        self._rates.give_back(ALL, self.total.prompts_per_minute, now)

    def check_budget(self, member: Member, wall: float) -> None:
        """Raise `OverBudget` where the day's tokens or dollars are used up, the member's or those of all."""
        check_budgets(self._ledger, member, self.total, wall)

    def spend(self, member: Member, tokens: int, dollars: float, wall: float) -> str:
        """Count what a run has used; return what is over now, empty where nothing is."""
        for name in (member.name, ALL):
            self._ledger.spend(name, tokens, dollars, wall)
        try:
            self.check_budget(member, wall)
        except OverBudget as error:
            return str(error)
        return ""

    def limits(self, member: Member) -> bool:
        """Return whether there is a budget that a run of `member` counts against."""
        return any(one.tokens_per_day or one.dollars_per_day for one in (member.limits, self.total))

    def left(self, member: Member, wall: float) -> float | None:
        """Return the dollars that a run may still use today, None where nothing says how many."""
        sums = (
            self._ledger.left(member.name, member.limits, wall),
            self._ledger.left(ALL, self.total, wall),
        )
        return min((one for one in sums if one is not None), default=None)


def check_rates(member: Member, total: Limits, own: float, every: float) -> None:
    """Raise `TooFast` where there are seconds to wait: `own` of the member, `every` of all together."""
    if own:
        raise TooFast(f"more than {brief(member.limits.prompts_per_minute)} prompts a minute", retry_after=own)
    if every:
        raise TooFast(f"more than {brief(total.prompts_per_minute)} prompts a minute on this server", retry_after=every)


def check_budgets(ledger: Ledger, member: Member, total: Limits, wall: float) -> None:
    """Raise `OverBudget` where a ledger says that a day's tokens or dollars are used up."""
    ledger.check(member.name, member.limits, wall)
    ledger.check(ALL, total, wall, "the server's")
