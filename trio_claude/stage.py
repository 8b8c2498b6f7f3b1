"""What a session's run says, on its way to whoever listens: an owner, who may leave and come back, and viewers.

Rule 1: the owner gets each line exactly once, in order, however often it comes back; what can't be given any more is
said (`gap`), never skipped. Rule 2: only the owner holds the CLI back, and nobody does while it is away, but for what
has to be kept for it; a viewer that lags gets a gap. Rule 3: what is kept is bounded. Rule 4: a client of another node
is told here only what the gateway says; its lines it has from the journal, all of them.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import attrs
import trio

from . import messages, past
from .errors import JournalFault, PeerGone, Reason
from .inbox import Inbox
from .journal import Journal, Part
from .kit import Giver
from .messages import Closing
from .peer import Client
from .session_run import SessionRun

KEPT = 64 * 1024
"""Bytes that are kept for viewers where the owner is not waited for."""
LOOSE = 100
"""Entries of stderr that are kept for the line that they stand before."""
ENTRIES = 16 * 1024
"""Entries that are kept: each takes some 250 bytes beside its lines, which may be empty."""
FORMER = 64
"""Clients whose place was taken that are remembered."""
SLOW_DISK = 60.0
BROKEN_DISK = 5.0
"""Seconds for which a listener waits for lines on their way to the journal: while that works, and where it fails."""


@attrs.frozen
class Entry:
    """Lines that were said together; those of the CLI are numbered from `first` on, others come behind that line."""

    first: int
    lines: list[bytes] = attrs.field(repr=False)
    numbered: bool
    size: int

    @property
    def last(self) -> int:
        """The number of the last line, or of the one before."""
        return self.first + len(self.lines) - 1 if self.numbered else self.first


@attrs.frozen
class Place:
    """How far a listener is: the next entry's index, and the number of the last line that it has."""

    index: int
    number: int


class Replay:
    """The latest entries, by their index: `begin` is the first that is kept, `end` the next to come."""

    def __init__(self) -> None:
        self.begin: int = 0
        self.number: int = 0
        """The number of the last line."""
        self._entries: deque[Entry] = deque()
        self._size = 0

    @property
    def end(self) -> int:
        """The index of the next entry."""
        return self.begin + len(self._entries)

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return self._size

    def add(self, lines: list[bytes], *, numbered: bool) -> None:
        """Take an entry; it weighs its bytes, and one for each line where it has fewer."""
        first = self.number + 1 if numbered else self.number
        entry = Entry(first, lines, numbered, max(sum(map(len, lines)), len(lines)))
        self.number = entry.last
        self._entries.append(entry)
        self._size += entry.size

    def forget(self, limit: int, before: int) -> None:
        """Keep at most `limit` bytes in `ENTRIES` entries; those from `before` on stay all the same.

        What stderr said behind the last line before these goes with the next line, so that who reads back up to there
        misses nothing: it is kept beside them, while that makes no more than twice the limit.
        """
        while self._passes(limit) and self.begin < before:
            loose = [*itertools.takewhile(lambda entry: not entry.numbered, itertools.islice(self._entries, LOOSE))]
            goes = len(loose) < LOOSE and self.begin + len(loose) < before
            if loose and not self._passes(2 * limit, 2 * ENTRIES) and not (goes and self._passes(limit, but=loose)):
                return
            for _ in range(len(loose) + 1 if goes else 1):
                self._size -= self._entries.popleft().size
                self.begin += 1

    def _passes(self, limit: int, entries: int = ENTRIES, but: Sequence[Entry] = ()) -> bool:
        return len(self._entries) - len(but) > entries or self._size > limit + _weight(but)

    def since(self, index: int) -> Iterable[Entry]:
        """Return the entries from `index` on."""
        return list(self._entries)[max(0, index - self.begin) :]

    def has_room(self, index: int, limit: int) -> bool:
        """Return whether the entries from `index` on are no more than are kept."""
        return self.end - index <= ENTRIES and _weight(self.since(index)) <= limit

    @property
    def first(self) -> int:
        """The number of the first line that is kept, of the next where none is."""
        return next((entry.first for entry in self._entries if entry.numbered), self.number + 1)

    def index(self, after: int) -> int:
        """Return the index of the first entry that has something behind line `after`."""
        for offset, entry in enumerate(self._entries):
            if entry.last > after or (not entry.numbered and entry.first >= after):
                return self.begin + offset
        return self.end


def _weight(entries: Iterable[Entry]) -> int:
    return sum(entry.size for entry in entries)


class Stage:
    """One session's run and who listens.

    Error handling: an owner that is gone is waited for, for `grace` seconds, else `PeerGone` is raised to the run.
    """

    def __init__(
        self,
        run: SessionRun,
        peer: Client,
        out: Callable[[], None],
        grace: float,
        kept: int,
        journal: Journal | None,
        inbox: Inbox | None = None,
    ) -> None:
        self.run: SessionRun = run
        self.inbox: Inbox | None = inbox
        """What owners have said that must wait for a decision which several servers share."""
        self.grace: float = grace
        self.over: trio.Event = trio.Event()
        self.closing: Closing | None = None
        self.stored: int | None = None
        """The last line that the journal may have, once it takes no more of the run."""
        self._recorded = False
        self._kept = kept if grace else KEPT
        self._journal = journal
        self._replay = Replay()
        self._owner: Client | None = peer
        self._coming: Client | None = None
        self._out = out
        self._leader = ""
        self._former: dict[str, None] = {}
        self._giving: set[trio.CancelScope] = set()
        self._cursor = 0
        self._viewers: set[Client] = set()
        self._stir = trio.Event()
        self._orphaned = math.inf

    # who listens

    @property
    def owned(self) -> bool:
        """Whether somebody is the owner, or about to be."""
        return self._owner is not None or self._coming is not None

    def lead(self, client: str) -> None:
        """Take who leads from now on, by what it calls itself."""
        if self._leader:
            self._former[self._leader] = None
        self._former.pop(client, None)
        self._leader = client
        if len(self._former) > FORMER:
            del self._former[next(iter(self._former))]

    def is_former(self, client: str) -> bool:
        """Return whether another that is there has taken a client's place: one that was away may not have heard so."""
        return self.owned and client in self._former

    @property
    def number(self) -> int:
        """The number of the last line."""
        return self._replay.number

    def leave(self, peer: Client) -> bool:
        """Take that a listener is gone; return whether the run goes on without it, else it is ended."""
        self._viewers.discard(peer)
        if peer is self._coming:
            self._coming = None
        elif peer is self._owner:
            self._owner = None
        else:
            return True
        if self.owned:  # another has taken its place
            return True
        self._orphaned = trio.current_time()
        self._wake()
        if not self.grace:
            self.run.stop(Reason.DISCONNECTED)
        return bool(self.grace)

    async def watch_grace(self) -> None:
        """End the run where its owner stays away for longer than it said."""
        while True:
            stir, left = self._stir, math.inf
            if not self.owned:
                left = self._orphaned + self.grace - trio.current_time()
                if left <= 0:
                    self.run.stop(Reason.DISCONNECTED, f"the client did not come back within {self.grace:g} s")
                    return
            with trio.move_on_after(left):
                await stir.wait()

    async def own(self, peer: Client, out: Callable[[], None], after: int) -> None:
        """Give a peer all behind line `after`, and make it the owner in place of one there is.

        `out` shows it out where another takes its place. Raises `PeerGone`.
        """
        former, self._coming = self._coming or self._owner, peer
        show_out, self._out = self._out, out
        if former is not None:
            self._owner = None
            show_out()
            for giving in self._giving:
                giving.cancel()  # what it was being given still goes out, and its close behind that
        try:
            if not peer.far:
                await self._catch_up(peer, after)
            self._seat(peer)
        finally:
            if self._coming is peer:
                self.leave(peer)
            self._wake()

    def _seat(self, peer: Client) -> None:
        """Make a peer that has everything the owner, unless it has left meanwhile. Raises `PeerGone`."""
        if self._coming is not peer:
            raise PeerGone("left")
        self._owner, self._coming, self._cursor = peer, None, self._replay.end

    async def view(self, peer: Client, after: int) -> None:
        """Give a peer all behind line `after`, and what is said from then on, to the end. Raises `PeerGone`."""
        self._viewers.add(peer)
        try:
            if peer.far:
                await self.over.wait()
                return
            place = await self._catch_up(peer, after)
            while not (self.over.is_set() and place.index >= self._replay.end):
                stir = self._stir
                if place.index < self._replay.begin:
                    place = self._skip(peer, place)
                if place.index < self._replay.end:
                    place = await self._hand_over(peer, place)
                else:
                    await stir.wait()
        finally:
            self._viewers.discard(peer)

    async def _catch_up(self, peer: Client, after: int) -> Place:
        """Give a peer all behind line `after` that there is, from the journal where it is not kept here.

        Return where it is then; at that very moment there is nothing behind it.
        """
        place = Place(-1, after)
        while place.index < self._replay.end:
            if place.index < self._replay.begin:  # at first, and where what was kept is kept no more
                after = await self._read_back(peer, place.number)
                place = Place(self._replay.index(after), after)
            else:
                place = await self._hand_over(peer, place)
        return place

    async def _hand_over(self, peer: Client, place: Place) -> Place:
        """Give a peer what is kept behind its place; return where it is then."""
        lines: list[bytes] = []
        there = Place(self._replay.end, self._replay.number)
        for entry in self._replay.since(place.index):
            lines += entry.lines[max(0, place.number + 1 - entry.first) :] if entry.numbered else entry.lines
        await past.give(peer, lines)
        return there

    def _skip(self, peer: Client, place: Place) -> Place:
        """Tell a viewer that lags what it does not get; return where it goes on."""
        to = self._replay.first - 1
        if to > place.number:
            peer.post(past.render_gap(place.number + 1, to))
        return Place(self._replay.begin, max(to, place.number))

    async def _read_back(self, peer: Client, after: int) -> int:
        """Give a peer from the journal what is not kept here any more; say what nobody has. Return the last line."""
        beyond = 0
        while after + 1 < self._replay.first:
            parts = await self._stored(after, beyond)
            if not parts:
                to = self._replay.first - 1
                peer.post(past.render_gap(after + 1, to))
                return to
            upto = self._replay.first - 1  # it moves on while the peer takes its time
            beyond = past.whole(parts, beyond, upto)
            after = await past.tell(peer, parts, after, upto)
        return after

    async def _stored(self, after: int, beyond: int) -> list[Part]:
        """Return a page of what the journal has behind a line and a part, nothing where it never will have more."""
        if self._journal is None:
            return []
        try:
            if parts := await self._journal.parts(self.run.id, after, beyond):
                return parts
            await self._journal.settle(BROKEN_DISK if self._journal.fault else SLOW_DISK)
            return await self._journal.parts(self.run.id, after, beyond)
        except JournalFault:
            return []

    # what the run says: the SessionSink

    def giver(self) -> Giver | None:
        """Return what takes lines of the CLI, if the owner has all before them and takes more at once."""
        owner = self._owner
        if owner is None or self._cursor < self._replay.end or (give := owner.giver()) is None:
            return None
        return functools.partial(self._give, owner, give)

    def _give(self, owner: Client, give: Giver, lines: list[bytes]) -> None:
        self._keep(lines, numbered=True)
        self._cursor = self._replay.end
        try:
            give(lines)
        except PeerGone:
            if not self.leave(owner):
                raise
        self._replay.forget(self._kept, self._cursor)

    def _keep(self, lines: list[bytes], *, numbered: bool) -> None:
        """Take what is said, and wake those who watch."""
        self.check_history()
        self._replay.add(lines, numbered=numbered)
        if self._viewers:
            self._wake()

    async def lines(self, lines: list[bytes]) -> None:
        """Take lines of the CLI, and give them to whoever listens; waits for the owner."""
        await self._say(lines, numbered=True)

    async def wait_taken(self) -> None:
        """Wait until the owner has taken what it was given, unless it leaves or another takes its place."""
        owner = self._owner
        if owner and not owner.far and not owner.giver():
            with self._sending(owner):
                await owner.send([])

    async def stderr_lines(self, lines: list[str]) -> None:
        """Take stderr lines, each with the number of the stdout line before it."""
        await self._say([past.render_stderr(line, self._replay.number) for line in lines], numbered=False)

    async def _say(self, lines: list[bytes], *, numbered: bool) -> None:
        self._keep(lines, numbered=numbered)
        index = self._replay.end
        while self._cursor < index:
            owner = self._owner
            if owner is None:
                if not self.grace and self._coming is None:
                    raise PeerGone("left")
                if self._replay.has_room(self._cursor, self._kept):
                    return
                await self._stir.wait()
                continue
            cursor, self._cursor = self._cursor, self._replay.end
            with self._sending(owner):
                if cursor == index - 1 and self._replay.end == index:
                    await owner.send(lines)
                else:
                    await owner.send([line for entry in self._replay.since(cursor) for line in entry.lines])
        self._replay.forget(self._kept, self._cursor)

    @contextmanager
    def _sending(self, owner: Client) -> Iterator[None]:
        """Send to the owner inside; no more once another takes its place."""
        self._giving.add(giving := trio.CancelScope())
        try:
            with giving:
                yield
        except PeerGone:
            if not self.leave(owner):
                raise
        finally:
            self._giving.discard(giving)

    def check_history(self) -> None:
        """Say it, if the journal takes no more of the run."""
        if self._recorded and not self.run.recorded:
            self._recorded, self.stored = False, self.number
            self.post(past.render_history("ended"))

    def denied(self, tool: str) -> None:
        """Nothing: who holds a session is asked, and sees each denial among the lines."""

    def started(self) -> None:
        """Say that the CLI runs, and under which ids."""
        ids = {"run": self.run.id, "session": self.run.start.session}
        self._recorded = self.run.recorded
        self.post(messages.render_event("started", **ids, warm=False, history=self._recorded))

    def stalled(self, phase: str, seconds: float) -> None:
        """Say that the CLI is silent."""
        self.post(messages.render_event("stalled", phase=phase, seconds=round(seconds, 1)))

    def expired(self, request: str, seconds: float) -> None:
        """Say that an approval was denied because nobody answered."""
        text = f"nobody answered within {seconds:g} s"
        self.post(messages.render_event("denied", request=request, code="approval-timeout", error=text))

    def post(self, text: str) -> None:
        """Say something of the gateway's own to everybody."""
        for peer in (self._owner, self._coming, *self._viewers):
            if peer is not None:
                peer.post(text)

    def tell_history(self, state: str) -> None:
        """Say how it stands with the journal of this node, to those whose socket it has."""
        for peer in (self._owner, self._coming, *self._viewers):
            if self._recorded and peer is not None and not peer.far:
                peer.post(past.render_history(state))

    def finish(self, closing: Closing) -> None:
        """Say that the run is over, and how its listeners are to be shown out."""
        self.closing = closing
        self.over.set()
        self._wake()

    def _wake(self) -> None:
        stir, self._stir = self._stir, trio.Event()
        stir.set()
