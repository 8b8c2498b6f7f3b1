"""Rule: no limit is ever passed, nobody waits behind another's crowd, and what has left is forgotten."""

from __future__ import annotations

import math
from collections import Counter, deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trio_claude.admission import (
    Allowance,
    Crowd,
    Limits,
    Member,
    SessionLocks,
    Slots,
    Waiter,
    own_limits,
    total_limits,
)
from trio_claude.admission.budgets import DAY, Ledger
from trio_claude.admission.rates import KEPT, Rates
from trio_claude.config import Config
from trio_claude.errors import OverBudget, QueueFull, SessionBusy, TooFast


def wait(slots: Slots, who: str, order: list[str], runs: int = 0) -> Waiter:
    holder = object()
    waiter = Waiter(holder, who, runs, lambda: order.append(who))
    slots.queue(waiter, 0)
    return waiter


def test_the_next_slot_goes_to_who_got_one_longest_ago() -> None:
    slots, order = Slots(1, 1000), list[str]()
    running: deque[object] = deque([object()])
    assert slots.take(running[0], "many")
    waiters = [wait(slots, "many", order) for _ in range(200)]
    late = wait(slots, "one", order)
    assert slots.place(late) == 1
    assert [slots.place(waiter) for waiter in waiters[:3]] == [2, 3, 4]
    slots.free(running.popleft())
    assert order == ["one"]
    slots.free(late.holder)
    assert order == ["one", "many"]


def test_who_goes_and_comes_back_is_not_before_who_waits() -> None:
    """Two that come back with one prompt each time must not shut a third one out."""
    slots, order = Slots(1, 1000), list[str]()
    waiting = [wait(slots, "alice", []) for _ in range(5)]
    slots.free(waiting.pop(0).holder)  # the first of them had a free slot
    running = next(waiter for waiter in waiting if waiter.granted)
    for _ in range(9):
        waiting.remove(running)
        absent = {"bob", "carol"} - {waiter.who for waiter in waiting}
        slots.free(running.holder)
        waiting += [wait(slots, name, []) for name in sorted(absent)]
        running = next(waiter for waiter in waiting if waiter.granted)
        order.append(running.who)
    assert order.count("alice") >= 3


def test_a_place_that_is_given_up_is_anothers() -> None:
    """A limit that was lowered meanwhile can hold up the first of a line; when that leaves, the next is served."""
    slots, order = Slots(2, 10), list[str]()
    assert slots.take(object(), "a")
    held_up = wait(slots, "a", order, 1)
    wait(slots, "a", order, 2)
    assert not order
    slots.leave(held_up)
    assert order == ["a"]


def test_an_identity_at_its_limit_holds_up_nobody() -> None:
    slots, order = Slots(3, 10), list[str]()
    first = object()
    assert slots.take(first, "a", 1)
    assert not slots.take(object(), "a", 1)
    second = wait(slots, "a", order, 1)
    assert slots.take(object(), "b")
    assert not order
    slots.free(first)
    assert order == ["a"]
    assert second.granted


def test_slots_are_short_where_somebody_waits_for_one_and_may_have_it() -> None:
    slots = Slots(1, 10)
    assert not slots.short
    assert slots.take(object(), "a")
    assert not slots.short
    at_its_limit = wait(slots, "a", [], 1)
    assert not slots.short
    other = wait(slots, "b", [])
    assert slots.short
    slots.leave(other)
    slots.leave(at_its_limit)
    assert not slots.short


def test_a_queue_is_bounded_for_each_and_for_all() -> None:
    slots = Slots(1, 3)
    assert slots.take(object(), "a")
    for who in ("a", "a", "b"):
        wait(slots, who, [])
    with pytest.raises(QueueFull, match="3 may"):
        wait(slots, "c", [])
    with pytest.raises(QueueFull, match="2 of your runs wait already; 2 may"):
        slots.queue(Waiter(object(), "a", 0, lambda: None), 2)


def test_more_slots_are_given_out_and_fewer_take_none_away() -> None:
    slots, order = Slots(1, 10), list[str]()
    holders = [object()]
    assert slots.take(holders[0], "a")
    waiter = wait(slots, "b", order)
    slots.resize(2, 10)
    assert order == ["b"]
    slots.resize(1, 10)
    assert slots.taken == 2
    slots.free(waiter.holder)
    assert not slots.take(object(), "c")


def test_who_waits_has_the_limit_that_holds_now() -> None:
    slots, order = Slots(2, 10), list[str]()
    assert slots.take("r1", "a", 1)
    waiter = wait(slots, "a", order, 1)
    slots.allow(waiter, 1)
    assert order == []
    slots.allow(waiter, 2)
    assert order == ["a"]
    slots.allow(waiter, 0)
    assert slots.taken == 2


class SlotMachine(RuleBasedStateMachine):
    """Whatever comes, waits, leaves and ends: no limit is passed, no slot is idle that somebody may have."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = Slots(3, 8)
        self.held: list[tuple[object, str]] = []
        self.waiting: list[Waiter] = []

    runs = st.sampled_from([("a", 1), ("b", 2), ("c", 0)])

    def settle(self) -> None:
        for waiter in [waiter for waiter in self.waiting if waiter.granted]:
            self.waiting.remove(waiter)
            self.held.append((waiter.holder, waiter.who))

    @rule(who=runs)
    def come(self, who: tuple[str, int]) -> None:
        name, most = who
        holder = object()
        if self.slots.take(holder, name, most):
            self.held.append((holder, name))
            return
        waiter = Waiter(holder, name, most, lambda: None)
        try:
            self.slots.queue(waiter, 4)
        except QueueFull:
            return
        self.waiting.append(waiter)
        self.settle()

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 20))
    def end(self, which: int) -> None:
        holder, _ = self.held.pop(which % len(self.held))
        self.slots.free(holder)
        self.settle()

    @precondition(lambda self: self.waiting)
    @rule(which=st.integers(0, 20))
    def leave(self, which: int) -> None:
        self.slots.leave(self.waiting.pop(which % len(self.waiting)))
        self.settle()

    @invariant()
    def limits_hold(self) -> None:
        running = Counter(who for _, who in self.held)
        assert self.slots.taken == len(self.held) <= 3
        assert len(self.slots) == len(self.waiting) <= 8
        assert running["a"] <= 1
        assert running["b"] <= 2

    @invariant()
    def no_slot_is_idle(self) -> None:
        running = Counter(who for _, who in self.held)
        able = [waiter for waiter in self.waiting if not waiter.runs or running[waiter.who] < waiter.runs]
        assert len(self.held) == 3 or not able

    @invariant()
    def places_are_a_row(self) -> None:
        assert sorted(self.slots.place(waiter) for waiter in self.waiting) == list(range(1, len(self.waiting) + 1))

    def teardown(self) -> None:
        while self.waiting:
            self.leave(0)
        while self.held:
            self.end(0)
        assert not self.slots._queues
        assert not self.slots._granted
        assert not self.slots._running


TestSlots = SlotMachine.TestCase
TestSlots.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)


@given(st.lists(st.floats(0, 30), min_size=1, max_size=60), st.sampled_from([1.0, 6.0, 0.5, 1000.0]))
def test_a_bucket_never_gives_more_than_its_rate(gaps: list[float], per_minute: float) -> None:
    rates, now, taken = Rates(), 1000.0, list[float]()
    for gap in gaps:
        now += gap
        if rates.wait("x", per_minute, now) == 0:
            rates.take("x", per_minute, now)
            taken.append(now)
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            most = max(1.0, per_minute) + (taken[last] - taken[first]) * per_minute / 60
            assert last - first + 1 <= most + 1e-6


@given(st.integers(1, 20))
def test_a_bucket_says_exactly_how_long(count: int) -> None:
    rates = Rates()
    for _ in range(count):
        assert rates.wait("x", count, 5.0) == 0
        rates.take("x", count, 5.0)
    pause = rates.wait("x", count, 5.0)
    assert pause == pytest.approx(60 / count)
    assert rates.wait("x", count, 5.0 + pause + 1e-9) == 0
    for _ in range(count + 1):
        rates.give_back("x", count, 5.0 + pause)
    for _ in range(count):
        rates.take("x", count, 5.0 + pause)
    assert rates.wait("x", count, 5.0 + pause) > 0, "never more than a minute's"


def test_buckets_are_bounded() -> None:
    rates = Rates()
    for number in range(KEPT + 10):
        rates.wait(str(number), 1, 0)
    assert len(rates) == KEPT


def test_prompts_are_counted_for_each_and_for_all() -> None:
    allowance = Allowance(Limits(prompts_per_minute=3))
    a, b = Member("a", Limits(prompts_per_minute=2)), Member("b")
    allowance.ask(a, 0, 0)
    allowance.ask(a, 0, 0)
    with pytest.raises(TooFast, match="2 prompts a minute") as refused:
        allowance.ask(a, 0, 0)
    assert refused.value.retry_after == pytest.approx(30)
    allowance.ask(b, 0, 0)
    with pytest.raises(TooFast, match="on this server"):
        allowance.ask(b, 0, 0)


def test_a_day_of_dollars_and_when_the_next_begins() -> None:
    allowance = Allowance(Limits())
    rich, poor = Member("rich"), Member("poor", Limits(dollars_per_day=1.0, tokens_per_day=1000))
    wall = 10 * DAY + 3600.0
    assert allowance.left(rich, wall) is None
    assert allowance.left(poor, wall) == 1.0
    assert allowance.spend(poor, 10, 0.4, wall) == ""
    assert allowance.left(poor, wall) == pytest.approx(0.6)
    assert "1 dollars a day" in allowance.spend(poor, 10, 0.6, wall)
    with pytest.raises(OverBudget) as refused:
        allowance.ask(poor, 0, wall)
    assert refused.value.retry_after == DAY - 3600
    allowance.ask(rich, 0, wall)
    allowance.ask(poor, 0, 11 * DAY)
    assert "1000 tokens" in allowance.spend(poor, 1000, 0, 11 * DAY)


def test_a_limit_of_a_key_is_told_as_a_whole_number() -> None:
    """A file of keys has numbers of one kind, and a client reads what it was given."""
    member = Member("a", own_limits(Config(), {"tokens_per_day": 12345678.0}))
    assert "budget of 12345678 tokens a day" in Allowance(Limits()).spend(member, 12345678, 0, 0)


def test_the_dollars_of_all_together() -> None:
    allowance = Allowance(Limits(dollars_per_day=1.0))
    assert allowance.spend(Member("a"), 0, 0.7, 0) == ""
    assert allowance.left(Member("b"), 0) == pytest.approx(0.3)
    assert "the server's" in allowance.spend(Member("b"), 0, 0.3, 0)
    with pytest.raises(OverBudget, match="the server's"):
        allowance.ask(Member("c"), 0, 0)


def test_a_ledger_takes_what_others_know_but_never_less_and_never_of_another_day() -> None:
    ledger = Ledger()
    ledger.spend("a", 5, 0.5, DAY)
    ledger.learn("a", 3, 0.75, DAY)
    assert (ledger.of("a", DAY).tokens, ledger.of("a", DAY).dollars) == (5, 0.75)
    ledger.learn("a", 100, 100, DAY - 1)
    assert ledger.of("a", DAY).tokens == 5
    ledger.learn("a", 1, 0.25, 2 * DAY)
    assert (ledger.of("a", 2 * DAY).tokens, ledger.of("a", 2 * DAY).dollars) == (1, 0.25)


def test_a_clock_that_stood_ahead_for_a_moment_forgets_nothing() -> None:
    ledger, now = Ledger(), 10.5 * DAY
    ledger.spend("a", 1, 5.0, now)
    for ahead in (now + DAY, now + 400 * DAY):
        assert ledger.of("a", ahead).dollars == 0
        ledger.spend("a", 1, 1.0, ahead)
        assert ledger.of("a", now).dollars == 5
    assert ledger.of("a", now + DAY).dollars == 0, "two days are kept, no more"


def test_a_ledger_forgets_who_spent_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio_claude.admission.budgets.KEPT", 3)
    ledger = Ledger()
    for number in range(5):
        ledger.spend(str(number), 1, float(5 - number), 0)
    assert len(ledger) == 3
    assert ledger.of("0", 0).dollars == 5


def test_a_crowd_is_counted_to_its_limit() -> None:
    crowd = Crowd()
    assert [crowd.enter("a", 2) for _ in range(3)] == [True, True, False]
    assert crowd.enter("b", 0)
    crowd.leave("a")
    assert crowd.enter("a", 2)
    for name in ("a", "a", "b"):
        crowd.leave(name)
    assert not len(crowd)


def test_a_session_is_locked_for_its_own_identity_only() -> None:
    locks = SessionLocks()
    with locks.hold("s", "a"), locks.hold("s", "b"):
        with pytest.raises(SessionBusy), locks.hold("s", "a"):
            pytest.fail("held twice")
    with locks.hold("s", "a"):
        pass


def test_limits_come_from_the_configuration_and_from_a_key() -> None:
    config = Config(runs_per_identity=4, dollars_per_day=2.5, max_waiting=7, max_runs=3)
    own = own_limits(config, {"runs_per_identity": 9})
    assert (own.runs, own.dollars_per_day, own.connections) == (9, 2.5, 0)
    total = total_limits(config)
    assert (total.runs, total.waiting, total.dollars_per_day) == (3, 7, 0)
    assert not math.isinf(total.connections)
