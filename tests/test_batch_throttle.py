"""Rule: halved once for what was on its way together, at least one; one more after a number of clean runs."""

from __future__ import annotations

from trio_claude.batch.throttle import CLEAN_RUNS, Throttle


def clean(throttle: Throttle, runs: int) -> None:
    for _ in range(runs):
        throttle.finish(throttle.start())


def test_no_more_than_the_limit_are_free_to_go() -> None:
    throttle = Throttle(2)
    first = throttle.start()
    assert throttle.free
    throttle.start()
    assert (throttle.free, throttle.running) == (False, 2)
    throttle.finish(first)
    assert throttle.free


def test_a_burst_of_complaints_halves_once() -> None:
    throttle = Throttle(8)
    tickets = [throttle.start() for _ in range(8)]
    for ticket in tickets:
        throttle.strain(ticket)
        throttle.strain(ticket)
    assert throttle.limit == 4
    for ticket in tickets:
        throttle.finish(ticket)
    throttle.strain(throttle.start())
    assert (throttle.limit, throttle.lowest) == (2, 2)


def test_at_least_one_goes() -> None:
    throttle = Throttle(3)
    for _ in range(5):
        ticket = throttle.start()
        throttle.strain(ticket)
        throttle.finish(ticket)
    assert (throttle.limit, throttle.free) == (1, True)


def test_clean_runs_raise_it_by_one_each_time_up_to_the_most() -> None:
    throttle = Throttle(4)
    ticket = throttle.start()
    throttle.strain(ticket)
    throttle.finish(ticket)
    clean(throttle, CLEAN_RUNS - 1)
    assert throttle.limit == 2
    clean(throttle, 1)
    assert throttle.limit == 3
    clean(throttle, 10 * CLEAN_RUNS)
    assert (throttle.limit, throttle.lowest) == (4, 2)


def test_runs_from_before_the_change_do_not_count_as_clean() -> None:
    throttle = Throttle(8)
    tickets = [throttle.start() for _ in range(8)]
    throttle.strain(tickets[0])
    for ticket in tickets:
        throttle.finish(ticket)
    assert (throttle.limit, throttle.running) == (4, 0)
