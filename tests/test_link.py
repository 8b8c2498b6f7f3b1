"""Rule: of a link's packets each is taken once and in order, and one that was lost is noticed."""

from __future__ import annotations

from typing import Any

import pytest

from trio_claude.link import Link, LinkBroken


class Post:
    """Keeps what nodes are told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []

    def tell(self, node: str, packet: dict[str, Any]) -> None:
        self.told.append((node, packet))


def ends() -> tuple[Link, Link, list[dict[str, Any]]]:
    """Return both ends of a link, and what the first tells."""
    post, told = Post(), list[dict[str, Any]]()
    post.tell = lambda _node, packet: told.append(packet)  # type: ignore[method-assign] - a list will do
    return Link(post, "b", "x"), Link(Post(), "a", "x"), told  # type: ignore[arg-type] - stand-ins


def test_packets_are_numbered() -> None:
    post = Post()
    link = Link(post, "b", "x")  # type: ignore[arg-type] - a stand-in
    link.tell("said", text="one")
    link.tell("left")
    assert post.told == [
        ("b", {"op": "said", "link": "x", "n": 1, "text": "one"}),
        ("b", {"op": "left", "link": "x", "n": 2}),
    ]
    assert link.told == 2


def test_each_is_taken_once() -> None:
    here, there, told = ends()
    for text in "abc":
        here.tell("said", text=text)
    assert [there.take(packet) for packet in told] == [True] * 3
    assert [there.take(packet) for packet in told] == [False] * 3
    assert there.heard == 3


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_one_that_is_lost_is_noticed(lost: int) -> None:
    here, there, told = ends()
    for text in "abc":
        here.tell("said", text=text)
    del told[lost]
    with pytest.raises(LinkBroken):
        for packet in told:
            there.take(packet)
        there.check(here.told)
    assert there.heard == lost
