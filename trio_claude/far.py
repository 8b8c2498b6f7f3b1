"""Clients of this node on runs of others: what they say goes there, the lines come out of the journal.

Rule 1: who may do what is decided at the run's node; this one says who its client is, and whether that still holds.
Rule 2: each line comes from the journal, once and in order, behind `attached` and before the end; only an owner holds
the CLI back, by what it acknowledges. Rule 3: nothing is known here of a run but where it lives.
"""

from __future__ import annotations

import json
import math
import secrets
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import trio

from . import past
from .entrance import Guest
from .errors import CloseCode, NoAnswer
from .journal import Part
from .link import HEARD_SIZE, Link, LinkBroken, size_of
from .messages import Closing
from .peer import Client
from .services import open_services
from .session import LINES_LIMIT, Attach

if TYPE_CHECKING:
    from .nodes import Nodes, Watch
    from .nodes.history import RedisJournal

CREDENTIAL_PERIOD: Final = 2.0
"""Seconds between two looks whether what the run's node knows of a client still holds."""
ACK_BYTES: Final = 64 * 1024
"""Bytes that a client has taken and the run's node is not told of yet; over it it is told at once."""
ACK_PERIOD: Final = 0.05
"""Seconds until it is told of fewer."""
LAST_LINES: Final = 10.0
"""Seconds without a line for which a client of a run that is over waits for the last ones."""
LINES_ON_THE_WAY: Final = 1.0
"""Seconds without a line for which one waits that is to come back: what Redis never gets its run's node has still.

And one that has all lines of a run that is over, for what stderr said behind them.
"""
SETTLING: Final = 5.0
"""Seconds for which the end of a run that its node has no more is waited for."""
LOOK: Final = 0.05
"""Seconds between two looks for a run that nobody knows."""
LOOKS: Final = 20
"""How often it is looked for."""
MESSAGES: Final = 2
"""How many of the longest messages of a client may be on their way; one that says more is dropped."""
MESSAGES_MOST: Final = 1000
"""And how many of any length: Redis keeps ten times as many for a node, and there are other clients."""


class Far:
    """The clients of this node whose runs live on others."""

    def __init__(self, nodes: Nodes, journal: RedisJournal, max_message: int) -> None:
        self.nodes: Nodes = nodes
        self.journal: RedisJournal = journal
        self.max_message: int = max_message
        self._relays: dict[str, Relay] = {}
        self._met: set[str] = set()
        for op in ("post", "close", "heard"):
            nodes.control.on(op, self._hear)
        nodes.control.on_lost(self._lose)

    async def find(self, run: str) -> str | None:
        """Return the other node on which a run lives, None where it lives on none. Raises `JournalFault`."""
        node = await self.journal.holder(run)
        return node if node != self.nodes.name else None

    async def look_for(self, run: str) -> str | None:
        """Return what `find` does; a run that nobody knows may be on its way to the journal. Raises `JournalFault`."""
        for _ in range(LOOKS):
            if await self.journal.get(None, run) is not None:
                break
            await trio.sleep(LOOK)
        return await self.find(run)

    async def stop(self, run: str, whose: str | None) -> bool:
        """End a run of an identity (None: of anybody) on another node; return whether there was one.

        Raises `NoAnswer` and `JournalFault`.
        """
        node = await self.find(run)
        if node is None or await self.journal.get(whose, run) is None:
            return False
        answer = await self.nodes.control.ask(node, {"op": "stop", "run": run, "whose": whose})
        if answer is None:
            raise no_answer()
        if not answer["found"]:
            await self.settle(run)
        return bool(answer["found"])

    async def settle(self, run: str) -> None:
        """Wait until the journal knows that a run has ended of which its node says so."""
        with trio.move_on_after(SETTLING):
            async with self.nodes.tail.watch(run, LINES_LIMIT) as watch:
                while await watch.receive():
                    pass

    def relay(self, node: str, peer: Client, guest: Guest, attach: Attach) -> Relay:
        """Return what serves a client on a run of another node."""
        self._met.add(node)
        relay = Relay(self, Link(self.nodes.control, node, secrets.token_hex(16)), peer, guest, attach)
        self._relays[relay.link.name] = relay
        return relay

    def forget(self, relay: Relay) -> None:
        """Take that a client is not served any more."""
        self._relays.pop(relay.link.name, None)

    def tell_history(self, state: str) -> None:
        """Tell every client how it stands with the journal."""
        for relay in self._relays.values():
            relay.tell_history(state)

    def _hear(self, node: str, packet: dict[str, Any]) -> None:
        relay = self._relays.get(packet["link"])
        if relay and relay.link.node == node:
            relay.hear(packet)

    def _lose(self, node: str) -> None:
        """Take that a node is gone."""
        self._met.discard(node)
        for relay in self._relays.values():
            if relay.link.node == node:
                relay.lose()

    async def serve(self) -> None:
        """Compare the links with those that other nodes know of, now and again: the last packet may be lost."""
        while True:
            await trio.sleep(self.nodes.lease)
            async with trio.open_nursery() as nursery:
                for node in self._met:
                    nursery.start_soon(self._compare, node)

    async def _compare(self, node: str) -> None:
        mine = {name: relay for name, relay in self._relays.items() if relay.link.node == node}
        told = {name: relay.link.told for name, relay in mine.items()}
        answer = await self.nodes.control.ask(node, {"op": "links", "links": told})
        if answer is None:
            return
        for name, relay in mine.items():
            relay.compare(answer["links"].get(name))


class Relay:
    """One client on a run of another node, from its first message on.

    Error handling: a link on which something was lost costs the client its connection; it comes back, and is told what
    was heard.
    """

    def __init__(self, far: Far, link: Link, peer: Client, guest: Guest, attach: Attach) -> None:
        self.link: Link = link
        self._far = far
        self._peer = peer
        self._guest = guest
        self._facts = guest.facts()
        self._attach = attach
        self._role = ""
        self._number = attach.after
        self._open = False
        self._ready = trio.Event()
        self._closing: Closing | None = None
        self._upto = 0
        self._comes_back = False
        self._to_end = False
        self._over = False
        self._telling = trio.CancelScope()
        self._patience = trio.CancelScope()
        self._said = 0
        self._messages = 0
        self._unread = 0
        self._read = trio.Event()

    async def serve(self, said: list[str | bytes]) -> bool:
        """Serve a client that has said something to its end, or the run's; return whether its run was there.

        If it was, `closing` says how to close then. Raises `NoAnswer`, `JournalFault` and `PeerGone`.
        """
        more = {"run": self._attach.run, "guest": self._facts, "context": dict(self._guest.context)}
        packet = {"op": "open", "link": self.link.name, "said": [_text(message) for message in said], **more}
        answer = await self._far.nodes.control.ask(self.link.node, packet)
        if answer is None:
            raise no_answer()
        if not answer["found"]:
            return False
        self._open = True
        async with open_services() as services:
            services.start_soon(self._watch_guest)
            services.start_soon(self._acknowledge)
            await self._ready.wait()
            if self._role:
                await self._tell()
            elif not self._over:
                raise no_answer()
        return True

    @property
    def closing(self) -> Closing | None:
        """How to close, None where there is nobody to hear it."""
        return self._closing

    def leave(self) -> None:
        """Take that the client is gone, or is to be."""
        self._far.forget(self)
        if not self._over:
            self._over = True
            self.link.tell("left")

    # what the client says; nothing here waits

    def say(self, message: str | bytes) -> None:
        """Tell the run's node what the client says, and anew who it is, where that has changed."""
        if self._over:
            return
        self._tell_guest()
        text = _text(message)
        self._said += size_of(text)
        self._messages += 1
        if self._messages > MESSAGES_MOST or self._said > MESSAGES * max(self._far.max_message, HEARD_SIZE):
            self._peer.drop()
            return
        self.link.tell("said", text=text)

    def _tell_guest(self) -> None:
        facts = self._guest.facts()
        if facts != self._facts and not self._over:
            self._facts = facts
            self.link.tell("guest", guest=facts)

    async def _watch_guest(self) -> None:
        while True:
            await trio.sleep(CREDENTIAL_PERIOD)
            self._tell_guest()

    # what the run's node says; nothing here waits

    def hear(self, packet: Mapping[str, Any]) -> None:
        """Take a packet."""
        try:
            if self._over or not self.link.take(packet):
                return
        except LinkBroken:
            self._peer.drop()
            return
        match packet["op"]:
            case "post":
                self._post(packet["frame"])
            case "heard":
                self._said -= packet["size"]
                self._messages -= packet["messages"]
            case "close":
                self._close(packet)

    def lose(self) -> None:
        """Take that the run's node is gone: who is not let in yet will not be."""
        self._ready.set()

    def compare(self, told: int | None) -> None:
        """Take how many packets the run's node has told, None where it does not know the link."""
        if self._over or not self._open:
            return
        try:
            if told is None:
                raise LinkBroken("the link is not known")
            self.link.check(told)
        except LinkBroken:
            self._peer.drop()

    def tell_history(self, state: str) -> None:
        """Tell the client how it stands with the journal, if it is at its run."""
        if self._role and not self._over:
            self._peer.post(past.render_history(state))

    def _post(self, frame: str) -> None:
        """Say something of the gateway's own; the first of it that lets the client in says as what."""
        if not self._role and (said := json.loads(frame)).get("event") == "attached":
            self._role = said["role"]
            self._peer.allow(self._far.max_message)
            self._ready.set()
        self._peer.post(frame)

    def _close(self, packet: Mapping[str, Any]) -> None:
        """Close, behind the lines that are still to come."""
        self._over = True
        self._ready.set()
        if packet["code"] is None:
            self._peer.drop()
            return
        self._closing = Closing(packet["frame"], CloseCode(packet["code"]), packet["reason"])
        self._upto = packet["upto"]
        event = _event(packet["frame"])
        self._comes_back, self._to_end = event == "refused", event == "ended"
        self._patience.deadline = self._latest
        if not self._lacks:
            self._telling.cancel()

    # what the run says, out of the journal

    async def _tell(self) -> None:
        """Give the client all behind its line, until the run has ended or the client is to go."""
        with self._telling:
            async with self._far.nodes.tail.watch(self._attach.run, self._number) as watch:
                while self._lacks:
                    if not (parts := await self._next(watch)):
                        break
                    await self._give(parts)
            await self._end()
        if self._number < self._upto and not self._comes_back:
            self._peer.post(past.render_gap(self._number + 1, self._upto))

    @property
    def _lacks(self) -> bool:
        """Whether something is still to come: behind the last line of a run that is over that may be of stderr."""
        return self._closing is None or self._to_end or self._number < self._upto

    async def _next(self, watch: Watch) -> list[Part]:
        """Return what comes next, nothing where nothing more does."""
        with trio.CancelScope(deadline=self._latest) as self._patience:
            return await watch.receive()
        return []

    @property
    def _latest(self) -> float:
        """Until when the next line may come."""
        if self._closing is None:
            return math.inf
        has_all = self._number >= self._upto
        return trio.current_time() + (LINES_ON_THE_WAY if self._comes_back or has_all else LAST_LINES)

    async def _give(self, parts: list[Part]) -> None:
        parts = [part for part in parts if part.last >= self._number]
        self._number = await past.tell(self._peer, parts, self._number, sys.maxsize)
        self._unread += sum(len(part.data) for part in parts)
        if self._unread >= ACK_BYTES:
            self._ack()
        self._read.set()

    async def _acknowledge(self) -> None:
        while True:
            await self._read.wait()
            await trio.sleep(ACK_PERIOD)
            self._read = trio.Event()
            self._ack()

    def _ack(self) -> None:
        if self._unread and not self._over and self._role == "owner":
            self.link.tell("ack", upto=self._number)
        self._unread = 0

    async def _end(self) -> None:
        """Take how the run ended from the journal, where its node has not said so: it may be lost."""
        if self._closing is not None:
            return
        row = await self._far.journal.get(None, self._attach.run)
        if row is None or row.ended is None:
            raise no_answer()
        self._closing, self._upto = past.closing(past.outcome(row)), row.lines


def no_answer() -> NoAnswer:
    """Return the error for a node that does not answer."""
    return NoAnswer("the server that runs it does not answer just now", retry_after=1.0)


def _event(frame: str | None) -> str | None:
    """Return what a last frame says: `ended` where the run is over, `refused` where the client may come back."""
    return None if frame is None else json.loads(frame).get("event")


def _text(message: str | bytes) -> str | None:
    """Return a message as a packet holds it: None stands for what is no text."""
    return message if isinstance(message, str) else None
