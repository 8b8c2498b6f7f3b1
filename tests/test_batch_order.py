"""Rule: results come out in their places, and what waits for those before it is bounded."""

from __future__ import annotations

import random

from trio_claude.batch.order import AsCompleted, InOrder


def test_any_order_in_is_one_order_out() -> None:
    for seed in range(50):
        order, places = InOrder(), list(range(20))
        random.Random(seed).shuffle(places)
        out = [line for place in places for line in order.add(place, b"%d" % place)]
        assert out == [b"%d" % place for place in range(20)]


def test_too_far_ahead_nothing_starts_but_the_oldest() -> None:
    order = InOrder(ahead=3)
    assert [order.may_start(place) for place in range(4)] == [True, True, True, False]
    order.add(0, b"")
    assert order.may_start(3)


def test_too_many_bytes_waiting_nothing_starts_but_the_oldest() -> None:
    order = InOrder(waiting_bytes=10)
    order.add(1, b"x" * 11)
    assert (order.may_start(0), order.may_start(2)) == (True, False)
    assert len(order.add(0, b"")) == 2
    assert order.may_start(3)


def test_as_completed_lets_each_out_at_once() -> None:
    order = AsCompleted()
    assert order.may_start(10**6)
    assert order.add(5, b"five") == [b"five"]
