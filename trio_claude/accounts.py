"""What members have used and may still use of one server, or of all that share what is spent, and who a run is paid by.

This module must never hold a run, nor wait for anything but the other servers, and at the start the journal.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import attrs
import trio

from .admission import Allowance, Limits, Member
from .admission.budgets import DAY
from .journal import Journal, UsageQuery, day_of
from .kit import Account
from .messages import BUDGET_LEAST, BUDGET_MOST, Options
from .stream_json import Spent

if TYPE_CHECKING:
    from .nodes.shared import Shared

SUMS_KEPT: Final = 10_000
"""Sessions of which is kept what they have come to."""


class Accounts:
    """The accounts of all members; `total` is what all of them may use together, and `shared` what other servers know.

    Error handling: a prompt that is one too many raises `TooFast`, one that nothing is left for `OverBudget`.
    """

    def __init__(self, total: Limits, shared: Shared | None = None) -> None:
        self._shared = shared
        self._allowance = Allowance(total, shared.spent if shared else None)
        self._wall = shared.wall if shared else time.time
        self._sums: OrderedDict[tuple[str, str], Spent] = OrderedDict()

    @property
    def total(self) -> Limits:
        """What all members may use together."""
        return self._allowance.total

    @total.setter
    def total(self, total: Limits) -> None:
        self._allowance.total = total

    @property
    def alone(self) -> bool:
        """Whether no other server has a say in what a member may do; then `ask_now` will do."""
        return self._shared is None

    async def recall(self, journal: Journal | None) -> None:
        """Count what the journal knows of this day; without one the day begins with the server.

        Where servers share what is spent, it is known already.
        """
        if journal is None or self._shared:
            return
        now = time.time()
        today, next_day = day_of(now), day_of(now + DAY)  # what stands behind it, a clock that was put right has left
        used = await journal.usage(UsageQuery(since=today, until=next_day, by=("identity",), limit=-1))
        for row in used.rows:
            self._allowance.spend(Member(row.group["identity"]), row.tokens, row.dollars, now)

    async def ask(self, member: Member) -> None:
        """Count a prompt; waits only where other servers count too. Raises `TooFast`, `OverBudget` and `Busy`."""
        if self._shared:
            await self._shared.ask(member, self.total)
        else:
            self.ask_now(member)

    def ask_now(self, member: Member) -> None:
        """Count a prompt of a server that is alone. Raises `TooFast` and `OverBudget`."""
        assert self.alone
        self._allowance.ask(member, trio.current_time(), self._wall())

    async def give_back(self, member: Member) -> None:
        """Count a prompt off."""
        if self._shared:
            await self._shared.give_back(member, self.total)
        else:
            self._allowance.give_back(member, trio.current_time())

    def check_budget(self, member: Member) -> None:
        """Raise `OverBudget` where the day's tokens or dollars are used up, as far as this server knows."""
        self._allowance.check_budget(member, self._wall())

    def bounded(self, options: Options, member: Member) -> Options:
        """Let a run spend no more than its member has left of the day. Raises `OverBudget` where that is nothing."""
        self.check_budget(member)
        left = self.left(member)
        if left is None:
            return options
        return attrs.evolve(options, max_budget_usd=min(left, options.max_budget_usd or left))

    def left(self, member: Member) -> float | None:
        """Return the dollars that a run may be started with at most, None where nothing says how many."""
        left = self._allowance.left(member, self._wall())
        return None if left is None else min(max(left, BUDGET_LEAST), BUDGET_MOST)

    def of(self, member: Member, options: Options) -> Account:
        """Return who a run is charged to, and from where on: the CLI counts a session from its first turn."""
        purse = _Purse(self, member)
        return Account(
            name=member.name,
            spend=purse.spend,
            baseline=self._sums.get((member.name, options.resume)) if options.resume else Spent(),
            remember=purse.remember,
            left=self.left(member),
            metered=self._allowance.limits(member),
        )

    def spend(self, member: Member, tokens: int, dollars: float) -> str:
        """Count what a member has used; return the limit that this passes, if any."""
        if self._shared:
            self._shared.spend(member, tokens, dollars)
        return self._allowance.spend(member, tokens, dollars, self._wall())

    def remember(self, who: str, session: str, spent: Spent) -> None:
        """Keep what a session has come to, for the run that goes on with it."""
        self._sums[who, session] = spent
        self._sums.move_to_end((who, session))
        if len(self._sums) > SUMS_KEPT:
            self._sums.popitem(last=False)


@attrs.frozen(eq=False)
class _Purse:
    """Out of which a member's run is paid for, and where what its session has come to is kept."""

    accounts: Accounts
    member: Member

    def spend(self, tokens: int, dollars: float) -> str:
        """Spend tokens and dollars; return the limit that they pass, if any."""
        return self.accounts.spend(self.member, tokens, dollars)

    def remember(self, session: str, spent: Spent) -> None:
        """Keep what the session has come to."""
        self.accounts.remember(self.member.name, session, spent)
