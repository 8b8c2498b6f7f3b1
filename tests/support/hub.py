"""Nodes without a Redis: what they say to each other goes through memory, in order, and can be lost on purpose."""

from __future__ import annotations

import itertools
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

from trio_claude.journal import Begun, End, Part, PartKind, RunRow, Usage, UsageQuery
from trio_claude.workplace import Workplace

Packet = dict[str, Any]


@attrs.define
class Run:
    """A run as the journal has it, its end too."""

    begun: Begun
    node: str
    parts: list[Part] = attrs.Factory(list)
    end: End | None = None
    stir: trio.Event = attrs.Factory(trio.Event)

    def add(self, part: Part) -> None:
        self.parts.append(attrs.evolve(part, number=len(self.parts) + 1))
        self.wake()

    def wake(self) -> None:
        stir, self.stir = self.stir, trio.Event()
        stir.set()

    @property
    def stored(self) -> int:
        return next((part.last for part in reversed(self.parts) if part.kind is PartKind.LINES), 0)


class Recorder:
    """A run's way into the journal; while `holds` it takes its time."""

    def __init__(self, hub: Hub, run: Run) -> None:
        self.stored = True
        self._hub = hub
        self._run = run
        self._lines = 0

    def lines(self, lines: list[bytes], _texts: object = None) -> None:
        first, self._lines = self._lines + 1, self._lines + len(lines)
        self._add(Part(PartKind.LINES, first, len(lines), b"\n".join(lines)))

    def stderr(self, lines: list[str]) -> None:
        self._add(Part(PartKind.STDERR, self._lines, len(lines), "\n".join(lines).encode()))

    def said(self, line: bytes) -> None:
        self._add(Part(PartKind.SAID, self._lines, 1, line.rstrip(b"\n")))

    def spent(self, _tokens: int, _dollars: float) -> None:
        """Nothing: nobody looks at what a run here has used."""

    def end(self, end: End) -> None:
        self._hub.write(lambda: self._end(end))

    def _end(self, end: End) -> None:
        self._run.end = end
        self._run.wake()

    def _add(self, part: Part) -> None:
        if self._hub.full:
            self.stored = False
        if self.stored:
            self._hub.write(lambda: self._run.add(part))


class Hub:
    """What stands for Redis."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.nodes: dict[str, Node] = {}
        self.loses: Callable[[Packet], bool] = lambda _packet: False
        self.full = False
        self._held: list[Callable[[], None]] | None = None

    def write(self, do: Callable[[], None]) -> None:
        if self._held is None:
            do()
        else:
            self._held.append(do)

    def watch(self, *ops: str, losing: float = math.inf) -> list[Packet]:
        """Return what nodes tell each other of these kinds from now on; the first `losing` packets of it are lost."""
        told: list[Packet] = []

        def loses(packet: Packet) -> bool:
            if packet["op"] not in ops:
                return False
            told.append(packet)
            return len(told) <= losing

        self.loses = loses
        return told

    def hold(self) -> None:
        """Let nothing come into the journal."""
        self._held = []

    def let_go(self) -> None:
        held, self._held = self._held or [], None
        for do in held:
            do()

    def lose(self, name: str) -> None:
        """Declare a node lost."""
        del self.nodes[name]
        for run in self.runs.values():
            if run.node == name and run.end is None:
                run.end = End(
                    id=run.begun.id, ended=1.0, reason="node-lost", exit_status=None, signal=None, lines=run.stored,
                    encoding_errors=0, tokens=0, dollars=0, turns=0, error="lost", receipt={}, whole=True,
                )  # fmt: skip
                run.wake()
        for node in self.nodes.values():
            for handler in node.lost_handlers:
                handler(name)

    def take_back(self, node: Node) -> None:
        """Have a node that was lost join anew."""
        self.nodes[node.name] = node
        for handler in node.return_handlers:
            handler()


class Journal:
    """The journal of one node."""

    fault = ""
    waiting = 0

    def __init__(self, hub: Hub, name: str) -> None:
        self._hub = hub
        self._name = name

    def begin(self, begun: Begun) -> Recorder:
        run = self._hub.runs[begun.id] = Run(begun, self._name)
        return Recorder(self._hub, run)

    async def holder(self, run: str) -> str | None:
        found = self._hub.runs.get(run)
        return found.node if found and found.end is None else None

    async def settle(self, _patience: float = 5.0) -> bool:
        return True

    async def get(self, identity: str | None, run: str) -> RunRow | None:
        found = self._hub.runs.get(run)
        if found is None or identity not in (None, found.begun.identity):
            return None
        begun, end = found.begun, found.end
        ended = {
            name: getattr(end, name, None)
            for name in ("ended", "reason", "exit_status", "signal", "error", "receipt", "encoding_errors", "tokens")
        }
        return RunRow(
            id=run, identity=begun.identity, meta=begun.meta, door=begun.door, batch="", session=begun.session,
            state="ended" if end else "live", started=begun.started, lines=end.lines if end else 0, dollars=0,
            prompt=None, options={}, stored=found.stored, whole=True, **ended,
        )  # fmt: skip

    async def parts(self, run: str, after: int = 0, beyond: int = 0) -> list[Part]:
        found = self._hub.runs[run].parts
        return [part for part in found if part.number > beyond and part.last >= after][:50]

    async def usage(self, _query: UsageQuery) -> Usage:
        return Usage([], None)

    async def unfinished(self, _identity: str, _session: str) -> None:
        return None

    async def delete(self, _identity: str | None, _run: str | None = None) -> list[Any]:
        return []


class Watch:
    """One look at the end of a run's history."""

    def __init__(self, run: Run, after: int) -> None:
        self._run = run
        self._after = after
        self._at = 0

    async def receive(self) -> list[Part]:
        while True:
            await trio.lowlevel.checkpoint()
            found, self._at = self._run.parts[self._at : self._at + 20], self._at + 20
            self._at = min(self._at, len(self._run.parts))
            if found := [part for part in found if part.last >= self._after]:
                return found
            if self._at < len(self._run.parts):
                continue
            if self._run.end:
                return []
            await self._run.stir.wait()


class Node:
    """One node: control, tail and the rest in one."""

    lease = 0.3
    address = "the hub"
    connected = True
    token = 1
    shared = None  # each decides for itself

    def __init__(self, hub: Hub, name: str) -> None:
        self.name = name
        self.journal = Journal(hub, name)
        self.lost_handlers: list[Callable[[str], None]] = []
        self.change_handlers: list[Callable[[bool], None]] = []
        self.return_handlers: list[Callable[[], None]] = []
        self._hub = hub
        self._handlers: dict[str, Callable[[str, Packet], Packet | None]] = {}
        self._answers: dict[int, tuple[trio.Event, list[Packet]]] = {}
        self._numbers = itertools.count()
        self.send, self._receive = trio.open_memory_channel[tuple[str, Packet]](100_000)

    @property
    def control(self) -> Node:
        return self

    @property
    def tail(self) -> Node:
        return self

    @property
    def redis(self) -> Node:
        return self

    @property
    def membership(self) -> Node:
        return self

    def on(self, op: str, handler: Callable[[str, Packet], Packet | None]) -> None:
        self._handlers[op] = handler

    def on_lost(self, handler: Callable[[str], None]) -> None:
        self.lost_handlers.append(handler)

    def on_change(self, handler: Callable[[bool], None]) -> None:
        self.change_handlers.append(handler)

    def on_return(self, handler: Callable[[], None]) -> None:
        self.return_handlers.append(handler)

    def tell(self, node: str, packet: Packet) -> None:
        if node in self._hub.nodes and not self._hub.loses(packet):
            self._hub.nodes[node].send.send_nowait((self.name, packet))

    async def ask(self, node: str, packet: Packet, patience: float = 2.0) -> Packet | None:
        number, done, found = next(self._numbers), trio.Event(), list[Packet]()
        self._answers[number] = done, found
        self.tell(node, {**packet, "ask": number})
        with trio.move_on_after(patience):
            await done.wait()
        del self._answers[number]
        return found[0] if found else None

    @asynccontextmanager
    async def watch(self, run: str, after: int) -> AsyncIterator[Watch]:
        yield Watch(self._hub.runs[run], after)

    async def serve(self) -> None:
        async for node, packet in self._receive:
            if packet["op"] == "answer":
                if found := self._answers.get(packet["ask"]):
                    found[1].append(packet["answer"])
                    found[0].set()
                continue
            answer = self._handlers[packet["op"]](node, packet)
            if "ask" in packet:
                self.tell(node, {"op": "answer", "ask": packet["ask"], "answer": answer})


@asynccontextmanager
async def opened(hub: Hub, workplace: Workplace) -> AsyncIterator[Node]:
    node = Node(hub, workplace.home.server)
    hub.nodes[node.name] = node
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.serve)
        yield node
        nursery.cancel_scope.cancel()
