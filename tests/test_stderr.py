"""Rule: all that a CLI says on stderr is said in order, and no task waits for one that says nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from trio_claude.containment import PipeReader, Pump
from trio_claude.delivery import Delivery
from trio_claude.stderr import LAST, LINE, Stderr
from trio_claude.turns import LINES


class Saying:
    """A stderr, and what was said of it."""

    def __init__(self, theirs: int, nursery: trio.Nursery) -> None:
        self.theirs = theirs
        self.nursery = nursery
        self.said: list[list[str]] = []
        self.delivery = Delivery(pipes=1)

    async def say(self, lines: list[str]) -> None:
        await trio.lowlevel.checkpoint()
        self.said.append(lines)

    def end(self) -> None:
        with contextlib.suppress(OSError):  # it has ended
            os.close(self.theirs)
        self.theirs = -1

    async def write(self, data: bytes) -> None:
        os.write(self.theirs, data)
        for _ in range(3):
            await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def saying(*, pumped: bool) -> AsyncIterator[tuple[Saying, Stderr, PipeReader]]:
    ours, theirs = os.pipe()
    pump, pipe = Pump(), PipeReader(ours)
    async with trio.open_nursery() as outer:
        if pumped:
            outer.start_soon(pump.serve)
            await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            one = Saying(theirs, nursery)
            stderr = Stderr(pump, one.delivery)
            stderr.begin(pipe, one.say, nursery)
            yield one, stderr, pipe
            stderr.leave(pipe)
            pipe.close()
            one.end()
        outer.cancel_scope.cancel()


@pytest.mark.parametrize("pumped", [True, False])
async def test_lines_come_in_order_and_the_last_is_kept(pumped: bool) -> None:
    async with saying(pumped=pumped) as (one, stderr, _):
        assert len(one.nursery.child_tasks) == (0 if pumped else 1)
        await one.write(b"first\nsec")
        await one.write(b"ond\n \nlast \xff" + b"x" * LAST)
        one.end()
        await one.delivery.wait_over()
        assert [line for lines in one.said for line in lines] == ["first", "second", " ", "last \ufffd" + "x" * LAST]
        assert stderr.last == ("last \ufffd" + "x" * LAST)[:LAST]


async def test_a_line_without_an_end_is_cut() -> None:
    async with saying(pumped=True) as (one, _, _pipe):
        await one.write(b"x" * LINE)
        await one.write(b"y")
        assert one.said == [["x" * LINE + "y"]]


async def test_of_many_lines_in_one_read_some_are_said_at_a_time() -> None:
    """So that others have their turn in between."""
    async with saying(pumped=True) as (one, stderr, _pipe):
        await one.write(b"y\n" * (2 * LINES) + b"z\n")
        assert [len(lines) for lines in one.said] == [LINES, LINES, 1]
        assert stderr.last == "z"


async def test_one_that_says_nothing_costs_no_task_and_its_end_is_an_end() -> None:
    async with saying(pumped=True) as (one, _, _pipe):
        one.end()
        await trio.testing.wait_all_tasks_blocked()
        await one.delivery.wait_over()
        assert not one.nursery.child_tasks
        assert one.said == []


async def test_nothing_is_begun_for_who_has_left() -> None:
    async with saying(pumped=True) as (one, stderr, pipe):
        stderr.leave(pipe)
        await one.write(b"too late\n")
        assert not one.nursery.child_tasks
