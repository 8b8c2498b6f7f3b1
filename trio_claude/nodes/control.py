"""What nodes tell each other: packets through a stream of Redis for each node, in order, and answers to questions.

A packet comes at most once. It may be lost: where its node is gone, where Redis was away for so long that too much
waits, or has lost its last moments; who must know counts. This module must never wait on behalf of who tells
something, and never know what a packet says but its `op`.
"""

from __future__ import annotations

import itertools
import json
import secrets
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias, TypeVar

import attrs
import trio

from ..events import Crashed, Observer, Strained
from .membership import Membership
from .redis import Redis, RedisFault
from .scripts import load

KEPT: Final = 10_000
"""Packets to a node that Redis keeps, about, of those that it has not read."""
WAITING_BYTES: Final = 64 * 1024 * 1024
"""Bytes of packets to all nodes that wait for Redis; where so much waits, what comes is dropped.

The packet that passes this is still taken: a client's message may be as long, and would be dropped each time it comes
again. Of 32 MiB of JSON, in which each quote and backslash becomes two bytes, a packet has 64 MiB at the most.
"""
PACKET_LIMIT: Final = 500 * 1024 * 1024
"""Bytes of one packet; Redis ends a connection on which a text has more than 512 MiB, and this one all share."""
PACKET_BYTES: Final = 64
"""What a packet is reckoned as, beside its text."""
BATCH_BYTES: Final = 1024 * 1024
"""Bytes behind which one script takes no more packets."""
BATCH_PACKETS: Final = 500
HEARD: Final = 1000
"""Series of which it is known what came last, and nodes that are known to be gone; beyond it the oldest goes."""
RETRY: Final = 0.2
"""Seconds until what Redis refuses is tried again."""
WHAT_WAITS: Final = "packets to other servers"

Packet: TypeAlias = dict[str, Any]
Handler: TypeAlias = Callable[[str, Packet], Packet | None]
_Value = TypeVar("_Value")


@attrs.define
class _Outbox:
    """What waits for one node. Its packets are numbered, in a series of its own: each is taken once.

    A packet is its number, its text, and the number of the question that it asks, if it does.
    """

    series: str = attrs.Factory(lambda: secrets.token_hex(8))
    numbers: itertools.count[int] = attrs.Factory(lambda: itertools.count(1))
    packets: deque[tuple[int, bytes, int | None]] = attrs.Factory(deque)


@attrs.define
class _Question:
    """A question to a node that waits for its answer."""

    node: str
    over: trio.Event = attrs.Factory(trio.Event)
    answer: Packet | None = None


class Control:
    """What this node tells others, and hears of them. `serve` is to run beside it; `hear` gets what came."""

    def __init__(self, redis: Redis, membership: Membership, observer: Observer) -> None:
        self._redis = redis
        self._membership = membership
        self._observer = observer
        self._handlers: dict[str, Handler] = {"answer": self._take_answer}
        self._outboxes: dict[str, _Outbox] = {}
        self._waiting = 0
        self._full = False
        self._stir = trio.Event()
        self._heard: dict[str, int] = {}
        self._gone: dict[str, None] = {}
        self._questions: dict[int, _Question] = {}
        self._numbers = itertools.count(1)
        membership.on_lost(self._lose)

    def on(self, op: str, handler: Handler) -> None:
        """Have `handler` get all packets of an `op`: from whom, and the packet. What it returns answers a question.

        It must not wait. What it raises is told as `Crashed`, and the answer is None.
        """
        self._handlers[op] = handler

    def on_lost(self, handler: Callable[[str], None]) -> None:
        """Have `handler` told the name of each node that is gone, lost or left; it must not wait."""
        self._membership.on_lost(handler)

    def tell(self, node: str, packet: Packet) -> None:
        """Have a packet go to a node, behind those before. It may be lost: see above."""
        text = json.dumps(packet, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
        outbox = self._outboxes.setdefault(node, _Outbox())
        size = len(text) + PACKET_BYTES
        if self._waiting >= WAITING_BYTES or size > PACKET_LIMIT:
            self._strain(True)
            return
        outbox.packets.append((next(outbox.numbers), text, packet.get("ask")))
        self._waiting += size
        self._stir.set()

    async def ask(self, node: str, packet: Packet, patience: float = 2.0) -> Packet | None:
        """Tell a node something and return its answer, None where none came in so many seconds, or it is gone.

        What could not be sent until then never is: whoever asked has been refused, and is somewhere else by now.
        """
        number, question = next(self._numbers), _Question(node)
        self._questions[number] = question
        try:
            self.tell(node, {**packet, "ask": number})
            with trio.move_on_after(patience):
                await question.over.wait()
            return question.answer
        finally:
            del self._questions[number]

    def hear(self, entry: Mapping[bytes, bytes]) -> None:
        """Take an entry of this node's stream; one that came before, or is of a node that is gone, is left out.

        After a restart of Redis the stream is read anew, and what was cut from it may be back.
        """
        node, series, number = entry[b"from"].decode(), entry[b"series"].decode(), int(entry[b"number"])
        if number <= self._heard.get(series, 0):
            return
        _put_last(self._heard, series, number)
        if node in self._gone and node not in self._membership.others:
            return
        packet = json.loads(entry[b"packet"])
        answer = self._handle(node, packet)
        if "ask" in packet and packet["op"] != "answer":
            self.tell(node, {"op": "answer", "to": packet["ask"], "answer": answer})

    def _handle(self, node: str, packet: Packet) -> Packet | None:
        handler = self._handlers.get(packet["op"])
        try:
            return handler(node, packet) if handler else None
        except Exception as error:  # of one packet; the next ones are others' business
            self._observer(Crashed("control", error))
            return None

    def _take_answer(self, node: str, packet: Packet) -> None:
        question = self._questions.get(packet["to"])
        if question and question.node == node:
            question.answer = packet["answer"]
            question.over.set()

    def _lose(self, node: str) -> None:
        """Take that a node is gone: nothing that it has said is heard any more, unless it comes back."""
        _put_last(self._gone, node, None)
        self._forget(node)

    def _forget(self, node: str) -> None:
        """Take that a node is not there: nothing goes to it any more, and it answers nothing."""
        if outbox := self._outboxes.pop(node, None):
            self._count_off(outbox, len(outbox.packets))
        for question in self._questions.values():
            if question.node == node:
                question.over.set()

    # what sends

    async def serve(self) -> None:
        """Send what waits, until cancelled."""
        while True:
            await self._stir.wait()
            self._stir = trio.Event()
            try:
                await self._send_all()
            except RedisFault:
                self._stir.set()
                await self._redis.wait()
                await trio.sleep(RETRY)

    async def _send_all(self) -> None:
        """Send until nothing waits. Raises `RedisFault`; what was sent may be sent again then."""
        while busy := [node for node, outbox in self._outboxes.items() if outbox.packets]:
            for node in busy:
                if outbox := self._outboxes.get(node):
                    await self._send(node, outbox)

    async def _send(self, node: str, outbox: _Outbox) -> None:
        """Send the first of what waits for a node, but no question that nobody waits for any more."""
        words: list[bytes | int] = []
        size = taken = 0
        for number, text, question in itertools.islice(outbox.packets, BATCH_PACKETS):
            taken += 1
            if question is None or question in self._questions:
                words += [number, text]
                size += len(text)
            if size > BATCH_BYTES:
                break
        more = (self._redis.prefix, node, self._membership.name, outbox.series, KEPT)
        if await self._redis.run(load("tell"), (), *more, *words):
            self._count_off(outbox, taken)
        elif self._outboxes.get(node) is outbox:
            self._forget(node)

    def _count_off(self, outbox: _Outbox, count: int) -> None:
        """Take that so many packets do not wait any more."""
        for _ in range(min(count, len(outbox.packets))):
            self._waiting -= len(outbox.packets.popleft()[1]) + PACKET_BYTES
        if self._waiting < WAITING_BYTES / 2:
            self._strain(False)

    def _strain(self, full: bool) -> None:
        if self._full != full:
            self._full = full
            self._observer(Strained(WHAT_WAITS, over=not full))


def _put_last(kept: dict[str, _Value], name: str, value: _Value) -> None:
    """Keep a value as the newest, and no more than `HEARD` of them."""
    kept.pop(name, None)
    kept[name] = value
    if len(kept) > HEARD:
        del kept[next(iter(kept))]
