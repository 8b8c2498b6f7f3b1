"""Rule: what is said is dealt with in its order, one after the other, and what waits is bounded."""

from __future__ import annotations

import functools

import pytest
import trio
import trio.testing
from harness import until

from trio_claude.errors import Backlog
from trio_claude.inbox import MESSAGES, Inbox


async def test_each_waits_for_the_one_before(autojump_clock: trio.testing.MockClock) -> None:
    inbox, done = Inbox(100), list[int]()

    async def act(number: int) -> None:
        await trio.sleep(10 - number)
        done.append(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(inbox.serve)
        for number in range(10):
            inbox.put(10, functools.partial(act, number))
        assert inbox.busy
        await trio.sleep(54.5)
        assert done == list(range(9))
        assert inbox.busy
        await trio.sleep(2)
        assert done == list(range(10))
        assert not inbox.busy
        nursery.cancel_scope.cancel()


async def test_what_waits_is_bounded_in_bytes_and_in_number() -> None:
    inbox, done = Inbox(100), list[int]()

    async def act() -> None:
        done.append(1)

    inbox.put(1000, act)  # one may be larger
    with pytest.raises(Backlog, match="1000 bytes wait already; 100 may"):
        inbox.put(1, act)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(inbox.serve)
        await until(lambda: not inbox.busy)
        nursery.cancel_scope.cancel()
    for _ in range(MESSAGES):
        inbox.put(0, act)
    with pytest.raises(Backlog, match="256 messages wait already"):
        inbox.put(0, act)
    assert len(done) == 1


async def test_what_is_done_last_has_room_behind_all_once_each() -> None:
    inbox, done = Inbox(100), list[int | str]()

    async def act(number: int) -> None:
        await trio.lowlevel.checkpoint()
        done.append(number)

    def interrupt() -> None:
        done.append("interrupt")

    def end() -> None:
        done.append("end")

    for number in range(MESSAGES):
        inbox.put(0, functools.partial(act, number))
    for do in (interrupt, interrupt, end, interrupt, end):
        inbox.put_last(do)
    with pytest.raises(Backlog, match="256 messages wait already"):
        inbox.put(0, functools.partial(act, MESSAGES))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(inbox.serve)
        await until(lambda: not inbox.busy)
        nursery.cancel_scope.cancel()
    assert done == [*range(MESSAGES), "interrupt", "end"]
