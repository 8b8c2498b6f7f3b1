"""Rule: a client of another node is to a conversation like any other; an owner holds the CLI back by what it has not taken."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_claude import guests
from trio_claude.conversation import EARLY_LIMIT
from trio_claude.errors import CloseCode, PeerGone
from trio_claude.guests import FarPeer
from trio_claude.link import HEARD_MESSAGES, HEARD_SIZE, PACKET_SIZE, Link
from trio_claude.messages import Closing


class Run:
    """What says lines to an owner."""

    def __init__(self, *said: str | None) -> None:
        self.number = 0
        self.told: list[dict[str, Any]] = []
        self.heard: list[str | bytes] = []
        self.left = 0
        self.peer = FarPeer(Link(self, "b", "x"), list(said), lambda: self.number)  # type: ignore[arg-type] - a stand-in

    def tell(self, _node: str, packet: dict[str, Any]) -> None:
        self.told.append(packet)

    def listen(self) -> None:
        self.peer.listen(self.heard.append, self.leave)

    def leave(self) -> None:
        self.left += 1

    async def say(self, size: int, count: int = 1) -> None:
        for _ in range(count):
            self.number += 1
            await self.peer.send([b"x" * size])


async def test_an_owner_that_is_far_behind_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "WINDOW", 1000)
    run = Run()
    await run.say(100, 10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run.say, 100, 5)
        await wait_all_tasks_blocked()
        assert run.number == 11
        run.peer.acknowledge(11)
        await wait_all_tasks_blocked()
        assert run.number == 15
    assert not run.told


async def test_what_is_kept_of_short_lines_is_bounded() -> None:
    run = Run()
    await run.say(1, 100_000)
    assert len(run.peer._unread) <= 100_000 // guests.LUMP + 1
    run.peer.acknowledge(run.number)
    assert (run.peer._behind, len(run.peer._unread)) == (0, 0)


@pytest.mark.parametrize("how", ["left", "dropped", "parted"])
async def test_who_is_gone_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(guests, "WINDOW", 10)
    run = Run()
    run.listen()
    closing = Closing("last", CloseCode.NORMAL, "why")
    async with trio.open_nursery() as nursery:
        with pytest.raises(PeerGone):
            nursery.start_soon(wait_all_tasks_blocked)
            nursery.start_soon({"left": gone, "dropped": dropped, "parted": parted}[how], run, closing)
            await run.say(100)
    run.peer.part(closing, 7)
    assert run.left == 1
    packet = {"op": "close", "link": "x", "n": 1, "upto": 7, "frame": "last", "code": 1000, "reason": "why"}
    assert run.told == ([] if how == "left" else [packet])
    run.peer.post("late")
    assert len(run.told) < 2


async def gone(run: Run, _closing: Closing) -> None:
    await wait_all_tasks_blocked()
    run.peer.leave()


async def dropped(run: Run, _closing: Closing) -> None:
    await wait_all_tasks_blocked()
    run.peer.drop()


async def parted(run: Run, closing: Closing) -> None:
    await wait_all_tasks_blocked()
    run.peer.part(closing, 7)


def test_what_comes_before_anybody_listens_is_kept_for_a_while() -> None:
    run = Run("one", None)
    for _ in range(EARLY_LIMIT - 2):
        run.peer.hear("more")
    run.listen()
    assert run.heard == ["one", b"", *["more"] * (EARLY_LIMIT - 2)]
    late = Run("one")
    for _ in range(EARLY_LIMIT):
        late.peer.hear("more")
    late.listen()
    assert late.left == 1


def test_its_node_is_told_how_much_was_heard() -> None:
    run = Run()
    run.listen()
    run.peer.hear("x" * (HEARD_SIZE - PACKET_SIZE - 1))
    assert not run.told
    run.peer.hear("yz")
    packet = {"op": "heard", "link": "x", "n": 1, "size": HEARD_SIZE + PACKET_SIZE + 1, "messages": 2}
    assert run.told == [packet]


def test_a_message_with_nothing_in_it_counts_too() -> None:
    run = Run()
    run.listen()
    for _ in range(HEARD_MESSAGES):
        assert not run.told
        run.peer.hear(None)
    size = HEARD_MESSAGES * PACKET_SIZE
    assert run.told == [{"op": "heard", "link": "x", "n": 1, "size": size, "messages": HEARD_MESSAGES}]
