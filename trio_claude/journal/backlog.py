"""What waits to be written of the runs of a server: numbered, bounded, given up where there is no room.

Whoever puts something in never waits: what takes it out may. Where it is full a run's history ends, and whoever asks is
told. This module must never write, and never know what does.
"""

from __future__ import annotations

import contextlib
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

import attrs
import trio

from .facts import Begun, End, Part, PartKind, Statistics, Text

QUEUE_BYTES: Final = 64 * 1024 * 1024
"""Bytes of history that wait; over it a run's history ends."""
FACTS_BYTES: Final = 8 * 1024 * 1024
"""Bytes beyond that for how runs begin and end, which nobody gives up lightly."""
ENDS_BYTES: Final = 128 * 1024 * 1024
"""Bytes beyond both for the ends of runs whose begin had room: more than those of all that may live at once take."""
FACT_BYTES: Final = 1024
"""What a begin, an end or anything else that waits is reckoned as, beside what is said in it."""
TEXT_BYTES: Final = 200
"""What a text of several that wait together is reckoned as, beside its bytes: most of it where it is short."""
FEW_BYTES: Final = 64 * 1024
"""Bytes up to which lines alone may linger."""
GATHER_BYTES: Final = QUEUE_BYTES // 2
"""Bytes that wait for no more."""
PART_BYTES: Final = 512 * 1024
"""Bytes that a part has at most, if more than one read is in it, where a journal does not say otherwise."""
PATIENCE: Final = 5.0
"""Seconds for which the end of a journal waits for what is still to be written."""


class Writer(Protocol):
    """What is told what to write."""

    def begin(self, run: Begun) -> None:
        """Write a run that has begun."""

    def add(self, run: str, number: int, part: Part) -> None:
        """Write a part of a run's history, behind what there is."""

    def add_lines(self, run: str, number: int, first: int, count: int, texts: list[Text]) -> None:
        """Write lines of a run as `add` does: `count` of them, each with its newline."""

    def spend(self, run: str, tokens: int, dollars: float) -> None:
        """Write what a live run has used so far."""

    def end(self, end: End) -> None:
        """Write how a run ended."""


class Hearer:
    """A task that waits for something to be durable, of which any thread may tell it."""

    def __init__(self) -> None:
        self._told = trio.Event()
        self._token = trio.lowlevel.current_trio_token()

    def tell(self) -> None:
        """Have it told; where its loop is over there is nobody to tell."""
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._told.set)

    async def wait(self, patience: float) -> bool:
        """Return whether it is told, in so many seconds."""
        with trio.move_on_after(patience):
            await self._told.wait()
        return self._told.is_set()


@attrs.define
class Write:
    """Something that waits to be written: its size in memory, what does it, and who hears that it is durable.

    Once it is `taken` it does not change any more, but that a hearer may give up.
    """

    size: int
    do: Callable[[Writer], object]
    hearers: set[Hearer] = attrs.Factory(set)
    lines: Lines | None = None
    """What it writes, where it is lines."""
    taken: bool = False
    since: float = attrs.Factory(time.monotonic)

    def tell(self) -> None:
        """Tell who hears it that it is durable."""
        for hearer in self.hearers.copy():  # one that gives up may do so meanwhile, in another thread
            hearer.tell()


@attrs.define
class Lines:
    """Lines of a run that wait to be one part of its history, and those that follow on them while they wait."""

    run: str
    number: int
    first: int
    count: int = 0
    texts: list[Text] = attrs.Factory(list)
    size: int = 0
    """Bytes of all of them."""
    place: int = 0
    aside: int = 0
    """Where what was put aside of them begins, and how many bytes it has; `texts` come behind it."""

    def add(self, count: int, texts: list[Text], size: int) -> None:
        """Take what follows."""
        self.count += count
        self.texts += texts
        self.size += size

    def take(self) -> list[Text]:
        """Return what waits, and let go of it."""
        texts, self.texts = self.texts, []
        return texts

    def write(self, writer: Writer) -> None:
        """Write them."""
        writer.add_lines(self.run, self.number, self.first, self.count, self.texts)


class Recorder:
    """One run's way into the journal. Nothing here waits or raises."""

    def __init__(self, journal: Backlog, run: str, limit: int, *, content: bool) -> None:
        self.stored: bool = True
        """Whether all of it so far is kept, or on its way."""
        self.begun: bool = True
        """Whether that it has begun is."""
        self._journal = journal
        self._run = run
        self._left = limit
        self._content = content
        self._numbers = 0
        self._lines = 0
        self._latest: Write | None = None
        self._used: tuple[int, float] = (0, 0.0)
        self._using: Write | None = None

    def lines(self, lines: list[bytes], texts: list[Text] | None = None) -> None:
        """Take lines of the CLI, which get the next numbers; `texts` is the same in fewer pieces, with newlines."""
        if not lines:
            return
        count, texts = len(lines), texts or [b"\n".join((*lines, b""))]
        self._lines += count
        size = sum(map(len, texts))
        if not self._fits(size) or (self._latest and self._journal.enlarge(self._latest, count, texts, size)):
            return
        waiting = Lines(self._run, self._number(), self._lines - count + 1, count, texts, size)
        self._latest = Write(FACT_BYTES + _reckoned(texts, size), waiting.write, lines=waiting)
        self.stored = self._journal.take(self._latest)

    def stderr(self, lines: list[str]) -> None:
        """Take lines of stderr, behind the CLI's lines so far."""
        self._add(PartKind.STDERR, [line.encode("utf-8", "replace") for line in lines])

    def said(self, line: bytes) -> None:
        """Take what the client said, behind the CLI's lines so far."""
        self._add(PartKind.SAID, [line.rstrip(b"\n")])

    def spent(self, tokens: int, dollars: float) -> None:
        """Take what the run has used so far, for the case that its server does not see its end."""
        self._used = tokens, dollars  # first: what waits still, writes this
        if self.begun and (self._using is None or self._using.taken):
            using = Write(FACT_BYTES, lambda writer: writer.spend(self._run, *self._used))
            self._using = using if self._journal.take(using, FACTS_BYTES) else None

    def end(self, end: End) -> None:
        """Take how the run ended."""
        if not self.begun:
            return
        whole, room = self.stored and self._content, FACTS_BYTES + ENDS_BYTES
        error = end.error if self._content else end.cause
        self._journal.put(FACT_BYTES, lambda writer: writer.end(attrs.evolve(end, whole=whole, error=error)), room)

    def _add(self, kind: PartKind, lines: list[bytes]) -> None:
        """Take lines that come behind the CLI's so far, which are a part of their own then."""
        text = b"\n".join(lines)
        if not lines or not self._fits(len(text)):
            return
        self._latest = None
        run, number, part = self._run, self._number(), Part(kind, self._lines, len(lines), text)
        self.stored = self._journal.put(FACT_BYTES + len(text), lambda writer: writer.add(run, number, part))

    def _fits(self, size: int) -> bool:
        """Return whether so much more of the run is kept; from where it is not on, nothing is."""
        if not self.stored or not self._content:
            return False
        self._left -= size
        self.stored = self._left >= 0
        return self.stored

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers


class Backlog(ABC):
    """What waits for a journal to write it, from any thread; `_stir` guards it.

    What writes takes `_waiting` from its front, takes off `_bytes` what it took, and says by `_idle` that it waits, by
    `_lingers` that it does so for lines alone.
    """

    enough: int = GATHER_BYTES
    """Bytes that wait for no more."""
    largest: int = PART_BYTES
    """Bytes up to which lines that follow on each other become one part, if they wait together."""

    def __init__(self, run_limit: int, *, content: bool) -> None:
        self._run_limit = run_limit
        self._content = content
        self._waiting: deque[Write] = deque()
        self._mark: Write | None = None
        self._bytes = 0
        self._came = 0
        self._faults = 0
        self._given_up = 0
        self._stir = threading.Condition()
        self._idle = True
        self._lingers = False
        self._hurry = False

    def begin(self, run: Begun) -> Recorder:
        """Take a run that begins; return its recorder."""
        facts = run if self._content else attrs.evolve(run, prompt=None, options={})
        size = FACT_BYTES + len(facts.prompt or "") + len(str(facts.options))
        recorder = Recorder(self, run.id, self._run_limit, content=self._content)
        recorder.begun = recorder.stored = self.put(size, lambda writer: writer.begin(facts), FACTS_BYTES)
        return recorder

    def put(self, size: int, do: Callable[[Writer], object], room: int = 0) -> bool:
        """Have something written that `do` does; return whether there is room, with `room` beyond."""
        return self.take(Write(size, do), room)

    def take(self, write: Write, room: int = 0) -> bool:
        """Have something written; return whether there is room, with `room` beyond."""
        with self._stir:
            if self._bytes + write.size > QUEUE_BYTES + room:
                self._given_up += 1
                return False
            self._waiting.append(write)
            self._count(write.size, hurry=bool(write.hearers), lines=bool(write.lines))
        return True

    def enlarge(self, write: Write, count: int, texts: list[Text], size: int) -> bool:
        """Put lines to those that wait, so many bytes; return whether they still do, and there is room."""
        reckoned = _reckoned(texts, size)
        with self._stir:
            if not write.lines or write.taken or write.lines.size + size > self.largest:
                return False
            if self._bytes + reckoned > QUEUE_BYTES:
                return False
            write.lines.add(count, texts, size)
            write.size += reckoned
            self._count(reckoned, lines=True)
        return True

    def _count(self, size: int, *, hurry: bool = False, lines: bool = False) -> None:
        """Count what has come, and wake what writes where it must know."""
        self._bytes += size
        self._came += size
        hurry = not self._hurry and (hurry or self._bytes > self.enough)
        self._hurry = self._hurry or hurry
        stays = self._lingers and lines and self._bytes <= FEW_BYTES
        if self._idle or hurry or (self._lingers and not stays):
            self._idle = self._lingers = False
            self._wake()

    def _recount(self, write: Write) -> None:
        """Count only what is still in memory of something of which lines were put aside, with `_stir` held."""
        if not write.lines or not write.lines.aside:
            return
        left = FACT_BYTES + _reckoned(write.lines.texts, sum(map(len, write.lines.texts)))
        self._bytes += left - write.size
        write.size = left

    @abstractmethod
    def _wake(self) -> None:
        """Wake what writes, with `_stir` held."""

    @property
    def waiting(self) -> int:
        """Bytes in memory that are not durable yet."""
        return self._bytes

    def statistics(self) -> Statistics:
        """Return how the journal does."""
        with self._stir:
            lag = time.monotonic() - self._waiting[0].since if self._waiting else 0.0
            return Statistics(self._bytes, lag, self._faults, self._given_up)

    async def settle(self, patience: float = PATIENCE) -> bool:
        """Wait until all that was put in before is durable; return whether it is, in so many seconds."""
        hearer = Hearer()
        mark = self._marked(hearer)
        if mark is None:
            return False
        try:
            return await hearer.wait(patience)
        finally:
            mark.hearers.discard(hearer)

    def _marked(self, hearer: Hearer) -> Write | None:
        """Have somebody hear when all is durable that was put in before; return what tells it, None where no room is.

        Those who come one behind the other hear the same, so that asking does not fill what waits.
        """
        with self._stir:
            mark = self._mark
            if mark and not mark.taken and self._waiting and self._waiting[-1] is mark:
                mark.hearers.add(hearer)
                self._count(0, hurry=True)
                return mark
            self._mark = Write(FACT_BYTES, lambda _writer: None, {hearer})
            return self._mark if self.take(self._mark, FACTS_BYTES) else None

    async def _written(self, do: Callable[[Writer], object]) -> bool:
        """Have something written, and wait for it; return whether it is durable, in `PATIENCE` seconds."""
        hearer = Hearer()
        return self.take(Write(FACT_BYTES, do, {hearer}), FACTS_BYTES) and await hearer.wait(PATIENCE)


def _reckoned(texts: list[Text], size: int) -> int:
    """Return what texts of so many bytes take in memory, about."""
    return size + TEXT_BYTES * len(texts)
