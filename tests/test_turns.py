"""Rule: between two turns of those who have much to do, everybody else gets to run; alone, nobody waits."""

from __future__ import annotations

import re

import trio

from trio_claude.turns import READS, Turns


async def test_a_lone_task_runs_in_every_round_and_a_round_has_few_reads() -> None:
    turns, said = Turns(), []

    async def bulk(name: str) -> None:
        for _ in range(12):
            await turns.wait(name, READS)
            said.append(name)
            await trio.lowlevel.checkpoint()

    async def lone() -> None:
        while len(said) < 150:
            await trio.lowlevel.checkpoint()
            said.append("lone")

    async with trio.open_nursery() as nursery:
        for name in "abcdefghij":
            nursery.start_soon(bulk, name)
        nursery.start_soon(lone)
    crowded = "".join("." if name == "lone" else name for name in said[:150])
    crowds = [len(found) for found in re.findall("[a-j]+", crowded)]
    assert max(crowds) <= 2 * READS, (
        "the reads of two rounds can touch, where one ends with them and the next begins so"
    )
    assert len(crowds) > 20


async def test_turns_go_round() -> None:
    turns, said = Turns(), []

    async def bulk(name: str) -> None:
        for _ in range(3 * READS):
            await turns.wait(name, READS)
            said.append(name)

    async with trio.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(bulk, name)
    first = said[: 3 * READS : READS]
    assert sorted(first) == ["a", "b", "c"]
    assert said[: 6 * READS : READS] == first * 2


async def test_who_is_alone_never_waits() -> None:
    turns = Turns()
    await turns.wait("a")
    rounds = trio.lowlevel.current_statistics().tasks_living  # the loop is not entered between the two reads
    with trio.CancelScope() as scope:
        scope.cancel()
        await turns.wait("a")
    assert not scope.cancelled_caught
    assert trio.lowlevel.current_statistics().tasks_living == rounds


async def test_a_cancelled_wait_gives_its_place_up() -> None:
    turns = Turns()
    await turns.wait("a")
    with trio.move_on_after(0):
        await turns.wait("b")
    with trio.fail_after(1):
        await turns.wait("c")


async def test_a_crowd_starts_one_in_a_round() -> None:
    turns, said = Turns(), []

    async def start(name: str) -> None:
        await turns.wait_apart(name)
        said.append(name)

    async def lone() -> None:
        while len([name for name in said if name != "lone"]) < 10:
            await trio.lowlevel.checkpoint()
            said.append("lone")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lone)
        for name in "abcdefghij":
            nursery.start_soon(start, name)
    crowds = re.findall("[a-j]+", "".join("." if name == "lone" else name for name in said))
    assert max(map(len, crowds)) <= 3
