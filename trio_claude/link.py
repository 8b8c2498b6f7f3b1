"""One end of a link: what a client of this node and a run of another one, or the reverse, say to each other.

Rule 1: each packet counts, both ways; one that is lost on the way is noticed, and then the link is over: who was at it
comes back and is told what was heard. Rule 2: nothing here waits. Rule 3: a line of the CLI never goes this way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .nodes.control import Control

HEARD_SIZE: Final = 64 * 1024
"""What a client's messages that were heard count as, of which its node is not told yet."""
HEARD_MESSAGES: Final = 64
"""How many they are at most."""
PACKET_SIZE: Final = 256
"""What a client's message counts as beside its characters: a packet with nothing in it has some 170 bytes."""


class LinkBroken(Exception):
    """A packet was lost on its way."""


class Link:
    """One end of a link to a `node`. `told` and `heard` are how many packets went, and came."""

    def __init__(self, control: Control, node: str, name: str) -> None:
        self.node: str = node
        self.name: str = name
        self.told: int = 0
        self.heard: int = 0
        self._control = control

    def tell(self, op: str, **more: object) -> None:
        """Tell the other end something."""
        self.told += 1
        self._control.tell(self.node, {"op": op, "link": self.name, "n": self.told, **more})

    def take(self, packet: Mapping[str, Any]) -> bool:
        """Count a packet; return whether it is new. Raises `LinkBroken` where one before it was lost."""
        if packet["n"] <= self.heard:
            return False
        self.check(packet["n"] - 1)
        self.heard += 1
        return True

    def check(self, told: int) -> None:
        """Take that the other end had told so many packets before. Raises `LinkBroken` where fewer came."""
        if self.heard < told:
            raise LinkBroken(f"{told - self.heard} packets of {told} were lost")


def size_of(text: str | None) -> int:
    """Return what a client's message counts as, at both ends the same; None stands for what is no text."""
    return len(text or "") + PACKET_SIZE
