"""Clients of other nodes on runs of this one: to a conversation each is a client like any other.

Rule 1: it is served by the same `Conversation`, with the same rights. Rule 2: it gets its lines from the journal, at
the node that has its socket; what is told from here is only what the gateway itself says. Rule 3: an owner holds the
CLI back where it takes its lines slower than they come, a viewer nobody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from . import context, messages
from .config import Config
from .conversation import EARLY_LIMIT, Conversation, unkept
from .entrance import Entrance, Guest
from .errors import CloseCode, PeerGone
from .events import Crashed
from .faults import run_of
from .identity import Identity
from .link import HEARD_MESSAGES, HEARD_SIZE, Link, LinkBroken, size_of
from .messages import Closing
from .peer import Listener
from .room import Room
from .stage import Stage

if TYPE_CHECKING:
    from .nodes.control import Control

WINDOW: Final = 4 * 1024 * 1024
"""Bytes that an owner at another node may be behind; over it the CLI waits."""
HISTORY_PERIOD: Final = 1.0
"""Seconds between two looks whether the journal still takes what clients elsewhere are to hear."""
LUMP: Final = 64 * 1024
"""Bytes that are acknowledged together."""


class FarPeer:
    """A client whose socket another node has.

    Error handling: as a `Peer`: `send` raises `PeerGone`, all else is told by `on_left`, once.
    """

    far: bool = True

    def __init__(self, link: Link, said: list[str | None], number: Callable[[], int]) -> None:
        self.link: Link = link
        self._gone = False
        self._parted = False
        self._unheard = [_message(message) for message in said]
        self._number = number
        self._listener: Listener | None = None
        self._on_left: Callable[[], None] | None = None
        self._heard = 0
        self._messages = 0
        self._unread: deque[tuple[int, int]] = deque()
        self._behind = 0
        self._stir = trio.Event()

    def listen(self, on_message: Listener, on_left: Callable[[], None]) -> None:
        """Hear each message, and that the client left. Neither may wait."""
        self._listener, self._on_left = on_message, on_left
        waiting, self._unheard = self._unheard, []
        for message in waiting:
            on_message(message)
        if self._gone:
            on_left()

    async def send(self, lines: list[bytes]) -> None:
        """Take that lines were said, which the client gets from the journal; waits while it is far behind.

        What stderr said counts with the line before it. Raises `PeerGone`.
        """
        self._count(sum(map(len, lines)))
        while self._behind > WINDOW and not self._gone:
            self._stir = trio.Event()
            await self._stir.wait()
        if self._gone:
            raise PeerGone("left")

    def _count(self, size: int) -> None:
        """Add to what is not acknowledged; little of it goes together with what comes next."""
        self._behind += size
        if self._unread and self._unread[-1][1] < LUMP:
            size += self._unread.pop()[1]
        self._unread.append((self._number(), size))

    def acknowledge(self, upto: int) -> None:
        """Take that the client has the lines up to a number."""
        while self._unread and self._unread[0][0] <= upto:
            self._behind -= self._unread.popleft()[1]
        self._stir.set()

    def giver(self) -> None:
        """Return nothing: lines do not go this way."""

    def post(self, text: str) -> None:
        """Say something of the gateway's own."""
        if not self._parted:
            self.link.tell("post", frame=text)

    async def close(self, code: CloseCode, reason: str) -> None:
        """Close with a code, at once."""
        await trio.lowlevel.checkpoint()
        self.part(Closing(None, code, reason), 0)

    def part(self, closing: Closing | None, upto: int) -> None:
        """Have the client shown out, behind the lines up to a number; without a word where there is no `closing`."""
        if not self._parted:
            self._parted = True
            said = (closing.frame, int(closing.code), closing.reason) if closing else (None, None, "")
            self.link.tell("close", upto=upto, **dict(zip(("frame", "code", "reason"), said, strict=True)))
        self.drop()

    def allow(self, limit: int) -> None:
        """Nothing: the node that has the socket sees to it."""

    def drop(self) -> None:
        """Give the client up."""
        if not self._gone:
            self._gone = True
            self._stir.set()
            if self._on_left:
                self._on_left()

    def leave(self) -> None:
        """Take that the client is gone, or its node."""
        self._parted = True
        self.drop()

    def hear(self, message: str | None) -> None:
        """Take a message."""
        self._heard += size_of(message)
        self._messages += 1
        if self._heard >= HEARD_SIZE or self._messages >= HEARD_MESSAGES:
            self.link.tell("heard", size=self._heard, messages=self._messages)
            self._heard = self._messages = 0
        if self._listener:
            self._listener(_message(message))
        elif len(self._unheard) < EARLY_LIMIT:
            self._unheard.append(_message(message))
        else:
            self.drop()


def _message(told: str | None) -> str | bytes:
    """Return what a packet says that a client said: None stands for what is no text."""
    return b"" if told is None else told


class _Doorway:
    """What the node at which a client came in says of it: the `Door` of a `Guest`."""

    def __init__(self, entrance: Entrance, facts: Mapping[str, Any]) -> None:
        self._entrance = entrance
        self.learn(facts)

    def learn(self, facts: Mapping[str, Any]) -> None:
        """Take what it says now."""
        self.identity: Identity = Identity(facts["name"], facts["role"], facts["limits"])
        self._good = bool(facts["good"])

    @property
    def config(self) -> Config:
        """The configuration that is in force here."""
        return self._entrance.config

    def knows(self, _identity: Identity) -> bool:
        """Return whether its credential is still good."""
        return self._good

    def current(self, _identity: Identity) -> Identity:
        """Return it with the role and limits that it has now."""
        return self.identity


@attrs.frozen
class _Here:
    """One of them: as a peer, and what is known of it."""

    peer: FarPeer
    doorway: _Doorway
    stage: Stage


class Guests:
    """The clients of other nodes on the runs of this one, each served in a task of `services`.

    Error handling: what goes wrong with one ends its own link at most, and is told as `Crashed`.
    """

    def __init__(self, control: Control, room: Room, entrance: Entrance, services: trio.Nursery) -> None:
        self._control = control
        self._room = room
        self._entrance = entrance
        self._services = services
        self._here: dict[str, _Here] = {}
        control.on("open", self._open)
        control.on("links", self._compare)
        for op in ("said", "guest", "ack", "left"):
            control.on(op, self._hear)
        control.on_lost(self._lose)

    # what other nodes say; nothing here waits

    def _open(self, node: str, packet: dict[str, Any]) -> dict[str, Any]:
        """Serve a client, if the run that it wants is here."""
        stage = self._room.stages.get(packet["run"])
        if stage is None or packet["link"] in self._here:
            return {"found": False}
        doorway = _Doorway(self._entrance, packet["guest"])
        guest = Guest(doorway.identity, "", False, doorway, packet["context"])
        link = Link(self._control, node, packet["link"])
        one = _Here(FarPeer(link, packet["said"], lambda: stage.number), doorway, stage)
        self._here[link.name] = one
        self._services.start_soon(self._serve, one.peer, guest, stage)
        return {"found": True}

    def _hear(self, node: str, packet: dict[str, Any]) -> None:
        one = self._here.get(packet["link"])
        if one is None or one.peer.link.node != node:
            return
        try:
            if not one.peer.link.take(packet):
                return
        except LinkBroken:
            one.peer.drop()
            return
        match packet["op"]:
            case "said":
                one.peer.hear(packet["text"])
            case "guest":
                one.doorway.learn(packet["guest"])
            case "ack":
                one.peer.acknowledge(packet["upto"])
            case "left":
                one.peer.leave()

    def _compare(self, node: str, packet: dict[str, Any]) -> dict[str, Any]:
        """Give up the links of a node that it knows no more, or on which something was lost; tell it of the others."""
        told: dict[str, int] = packet["links"]
        for name, one in list(self._here.items()):
            if one.peer.link.node == node and told.get(name) != one.peer.link.heard:
                one.peer.drop()
                del self._here[name]
        return {"links": {name: one.peer.link.told for name, one in self._here.items() if one.peer.link.node == node}}

    def _lose(self, node: str) -> None:
        """Take that a node is lost, and its clients with it."""
        for one in list(self._here.values()):
            if one.peer.link.node == node:
                one.peer.leave()

    def leave(self) -> None:
        """Take that this node was found to be lost: so all were told, and are gone."""
        for one in list(self._here.values()):
            one.peer.leave()

    # serving one

    async def _serve(self, peer: FarPeer, guest: Guest, stage: Stage) -> None:
        closing: Closing | None = None
        try:
            with context.Bound(identity=guest.name, peer=f"node {peer.link.node}"):
                closing = await Conversation(peer, guest, self._room).serve()
        except* PeerGone:
            pass  # the client left; there is nobody to tell
        except* Exception as group:
            self._room.observer(Crashed("far client", group, run_of(group)))
        finally:
            peer.part(closing, stage.number if closing is not None and closing is stage.closing else 0)
            self._here.pop(peer.link.name, None)

    async def serve(self) -> None:
        """Show clients out where the journal takes no more of their run: they would hear nothing more."""
        error = unkept()
        frame = messages.render_refused(error.code, str(error), retry_after=error.retry_after)
        closing = Closing(frame, error.close_code, str(error))
        while True:
            await trio.sleep(HISTORY_PERIOD)
            for one in list(self._here.values()):
                one.stage.check_history()
                if one.stage.stored is not None:
                    one.peer.part(closing, one.stage.stored)
