"""What must be true of every run: its log, its end, its receipt, its place in the journal, and what its clients heard.

Only runs of the phase that goes on are remembered. This module must never talk to the server.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs
import trio

from trio_claude.errors import Reason
from trio_claude.journal import PartKind, Query, RunRow, UsageQuery
from trio_claude.journal.store import Reader

from .wire import Mark, Seen, Stretch

LATE = 2.0
"""Seconds before a server's SIGKILL in which what was said may be missing from the journal: it is busy then."""
SETTLE = 15.0
"""Seconds in which the journal must have the end of every run that was told."""
SHOWN = 1200
"""Characters of what was seen that a violation tells."""
KEPT = 200
"""Violations that are kept in full; of more only the number."""
PAST = 48
"""Ended runs that are remembered, to be told again."""
PAST_LINES = 20_000
"""Lines of such a run at most."""
INVARIANTS = (
    "processes", "lines", "ends", "receipts", "journal", "answers", "server", "folders", "memory", "descriptors",
    "tasks",
)  # fmt: skip
CODES: dict[str, int] = {Reason.EXIT: 1000, Reason.STOPPED: 1000, Reason.DRAINED: 1012}
"""The close codes of the contract; every other reason closes with 1011."""


@attrs.frozen
class Violation:
    """Something that must not be: of which invariant, in which run, and what was seen."""

    invariant: str
    seen: str
    phase: int
    run: str = ""
    meta: str = ""
    play: str = ""
    seed: str = ""

    def __str__(self) -> str:
        where = f"phase {self.phase}" + (
            f", run {self.run} ({self.meta}, {self.play}, {self.seed})" if self.meta else ""
        )
        return f"{self.invariant}: {where}: {self.seen}"


@attrs.define(eq=False)
class Run:
    """A run as its clients and the log have it.

    Of one that is `shaken` a guardian is attacked: its receipt may be unproven, its lines may be cut off.
    """

    meta: str
    play: str
    seed: str
    door: str
    id: str = ""
    pid: int = 0
    began: float = math.inf
    starts: int = 0
    ends: int = 0
    outcome: dict[str, Any] | None = None
    shaken: bool = False
    strikes: bool = False
    """Whether it is shown out for saying more than one prompt."""
    seen: list[Seen] = attrs.Factory(list)
    started: trio.Event = attrs.Factory(trio.Event)
    over: trio.Event = attrs.Factory(trio.Event)

    def client(self, *, owner: bool = True, after: int = 0) -> Seen:
        """Return what another client of it will be told."""
        self.seen.append(Seen(self.door, owner=owner, after=after))
        return self.seen[-1]


@attrs.frozen
class Told:
    """A run that has ended, by which the telling again of it is checked."""

    id: str
    lines: int
    digest: bytes
    reason: str


@attrs.define(eq=False)
class Truth:
    """All runs of the phase that goes on, and all violations so far."""

    journal: Path
    phase: int = 0
    began: float = 0.0
    """When the phase began, in seconds since 1970."""
    killed: float = math.inf
    """When its server was killed (`time.monotonic`)."""
    mode: str = ""
    """The containment in force, as the server said."""
    shaken: float = -math.inf
    """When a zygote was attacked last (`time.monotonic`)."""
    runs: dict[str, Run] = attrs.Factory(dict)
    violations: deque[Violation] = attrs.Factory(lambda: deque(maxlen=KEPT))
    wrong: Counter[str] = attrs.Factory(Counter)
    checked: Counter[str] = attrs.Factory(Counter)
    count: Counter[str] = attrs.Factory(Counter)
    plays: Counter[str] = attrs.Factory(Counter)
    reasons: Counter[str] = attrs.Factory(Counter)
    past: deque[Told] = attrs.Factory(lambda: deque(maxlen=PAST))
    _used: int = 0

    def begin(self, phase: int) -> None:
        """Begin a phase: forget the runs of the one before."""
        self.phase, self.began, self.killed = phase, time.time(), math.inf
        self.runs.clear()

    def violate(self, invariant: str, seen: str, run: Run | None = None) -> None:
        """Note a violation."""
        self.wrong[invariant] += 1
        of = (run.id, run.meta, run.play, run.seed) if run else ("", "", "", "")
        self.violations.append(Violation(invariant, seen[:SHOWN], self.phase, *of))

    def check(self, invariant: str, *, holds: object, seen: str, run: Run | None = None) -> bool:
        """Count a check, and note a violation where it does not hold; return whether it does."""
        self.checked[invariant] += 1
        if not holds:
            self.violate(invariant, seen, run)
        return bool(holds)

    # the server's log

    def hear(self, event: dict[str, Any]) -> None:
        """Take an event of the server's log."""
        name = event["event"]
        self.count[name] += 1
        if name in ("Crashed", "LogDropped"):
            self.violate("server", f"{name}: {event}")
        elif name == "ContainmentReady":
            self.mode = event["mode"]
        elif name == "Reloaded":
            self.check("server", holds=not event["error"], seen=f"a reload failed: {event}")
        elif name == "GuardianLost":
            self.check("server", holds=time.monotonic() < self.shaken + SETTLE, seen=f"nobody attacked it: {event}")
        elif name in ("RunStarted", "RunEnded"):
            self._hear_run(name, event)

    def _hear_run(self, name: str, event: dict[str, Any]) -> None:
        run = self.runs.get(event["meta"])
        if run is None:
            self.violate("ends", f"an event of a run that is not of this phase: {event}")
        elif name == "RunStarted":
            run.starts += 1
            run.id, run.pid, run.began = event["run"], event["pid"], time.monotonic()
            run.started.set()
        else:
            run.ends += 1
            run.id, run.outcome = event["run"], event["outcome"]
            run.over.set()

    # at the end of a phase

    async def settle(self) -> None:
        """Wait until the log has the end of each run, if its server lived to tell, and the journal too."""
        with trio.move_on_after(SETTLE):
            while self.killed == math.inf and any(run.starts > run.ends for run in self.runs.values()):
                await trio.sleep(0.05)
        with trio.move_on_after(SETTLE):
            while await trio.to_thread.run_sync(self._any_live):
                await trio.sleep(0.05)

    def _any_live(self) -> bool:
        with Reader(self.journal) as reader:
            return bool(reader.find(Query(identity=None, state="live", limit=1)).runs)

    def judge(self) -> None:
        """Hold every run of the phase against log, journal and clients. Blocks."""
        with Reader(self.journal) as reader:
            rows = {row.meta: row for row in self._rows(reader)}
            for meta in set(rows) - set(self.runs):
                self.violate("journal", f"a run that nobody asked for: {rows[meta].id} {meta}")
            for run in self.runs.values():
                self._judge_run(reader, run, rows.get(run.meta))
            self._judge_usage(reader, sum(row.state == "ended" for row in rows.values()))

    def _rows(self, reader: Reader) -> Iterator[RunRow]:
        """Yield the journal's runs of this phase."""
        page = reader.find(Query(identity=None, since=self.began, limit=500))
        metas: Counter[str] = Counter()
        while True:
            for row in page.runs:
                metas[row.meta] += 1
                self.check("ends", holds=metas[row.meta] == 1, seen=f"{row.meta} has two runs: {row.id}")
                yield row
            if page.next is None:
                return
            page = reader.find(Query(identity=None, since=self.began, before=page.next, limit=500))

    def _judge_usage(self, reader: Reader, ended: int) -> None:
        """Check that each end was counted once."""
        used = sum(row.runs for row in reader.usage(UsageQuery(limit=-1)).rows)
        self.check(
            "ends", holds=used == self._used + ended, seen=f"{used - self._used} ends in the usage, {ended} in the runs"
        )
        self._used = used

    def _judge_run(self, reader: Reader, run: Run, row: RunRow | None) -> None:
        self.plays[run.play] += 1
        for seen in run.seen:
            for fault in seen.faults:
                self.violate("lines", fault, run)
        if row is None:
            promised = run.id and run.began < self.killed - LATE
            self.check("journal", holds=not promised, seen="the journal does not know it", run=run)
            return
        self.reasons[str(row.reason)] += 1
        self.count["lines"] += row.lines
        self.count["gaps"] += sum(seen.gaps for seen in run.seen)
        run.id = run.id or row.id
        if row.reason == "node-lost":
            self._judge_lost(run, row)
        else:
            self._judge_ended(run, row)
        self._judge_lines(reader, run, row)

    def _judge_ended(self, run: Run, row: RunRow) -> None:
        """Check a run that came to its end: once, with a receipt, the same everywhere."""
        ended = row.state == "ended" and row.ended is not None
        self.check("ends", holds=ended, seen=f"the journal has it as {row.state}", run=run)
        late = self.killed < math.inf  # what was told at the last moment may not have reached the log
        once = run.starts == run.ends == 1 or (late and run.ends <= run.starts <= 1) or self._failed_to_start(run)
        self.check("ends", holds=once, seen=f"the log has {run.starts} starts and {run.ends} ends", run=run)
        receipt = row.receipt or {}
        survivors = receipt.get("survivors", "no receipt")
        proven = survivors == 0 or (survivors is None and run.shaken)
        self.check("receipts", holds=proven, seen=f"survivors: {survivors} ({row.reason})", run=run)
        if run.outcome:
            told = run.outcome["reason"], run.outcome["receipt"], run.outcome["lines"]
            same = told == (row.reason, row.receipt, row.lines)
            self.check("receipts", holds=same, seen=f"log: {told}; journal: {row.reason}, {row.receipt}", run=run)
        for seen in run.seen:
            self._judge_close(run, row, seen)

    def _failed_to_start(self, run: Run) -> bool:
        """Return whether it is one that could not be started, because a guardian had just been attacked."""
        reason = (run.outcome or {}).get("reason")
        shaken = time.monotonic() < self.shaken + 60
        return reason == "spawn-failed" and shaken and (run.starts, run.ends) == (0, 1)

    def _judge_close(self, run: Run, row: RunRow, seen: Seen) -> None:
        """Check what a client was told at the end."""
        if seen.ended:
            told = seen.ended["reason"], seen.ended["receipt"], seen.ended["lines"]
            same = told == (row.reason, row.receipt, row.lines)
            self.check("receipts", holds=same, seen=f"client: {told}; journal: {row.reason}, {row.receipt}", run=run)
        if seen.code is None or seen.partial or (run.door == "session" and not seen.ended):
            return
        wanted = 1008 if run.strikes else CODES.get(row.reason or "", 1011)
        said = f"closed with {seen.code} ({seen.reason}) after {row.reason}"
        self.check("answers", holds=seen.code == wanted, seen=said, run=run)
        self.check("receipts", holds="0 left" in seen.reason or run.shaken, seen=said, run=run)

    def _judge_lost(self, run: Run, row: RunRow) -> None:
        """Check a run whose server was killed."""
        said = f"node-lost, with {row.receipt}, {row.lines} lines of {row.stored}"
        good = self.killed < math.inf and row.state == "ended" and row.receipt is None and row.lines == row.stored
        self.check("ends", holds=good, seen=said, run=run)

    def _judge_lines(self, reader: Reader, run: Run, row: RunRow) -> None:
        """Check that the journal has what each client saw, all of it up to where it left."""
        lost = row.reason == "node-lost"
        if not lost:
            whole = row.whole and row.stored == row.lines
            self.check("journal", holds=whole, seen=f"stored {row.stored} of {row.lines}, whole: {row.whole}", run=run)
        for seen in run.seen:
            full = not seen.partial and not lost and (seen.ended or run.door == "claude") and seen.code
            if full and not run.strikes:
                said = f"heard {seen.last} of {row.lines} ({row.reason}), gaps {seen.gaps}"
                self.check("lines", holds=seen.last == row.lines, seen=said, run=run)
            for stretch in seen.stretches:
                self._judge_stretch(reader, run, row, stretch)
        self._remember(reader, row)

    def _judge_stretch(self, reader: Reader, run: Run, row: RunRow, stretch: Stretch) -> None:
        mark: Mark | None = Mark(math.inf, stretch.last, stretch.digest)
        if row.reason == "node-lost" and stretch.last > row.stored:
            late = [one for one in stretch.marks if one.last >= stretch.first and one.at < self.killed - LATE]
            known = not late or late[-1].last <= row.stored
            said = f"heard {late[-1].last if late else 0} in time, stored {row.stored}"
            self.check("journal", holds=known, seen=said, run=run)
            mark = next((one for one in reversed(stretch.marks) if one.last <= row.stored), None)
        if mark and mark.last >= stretch.first:
            same = digest_of(reader, row.id, stretch.first, mark.last) == mark.digest
            self.check("lines", holds=same, seen=f"lines {stretch.first} to {mark.last} differ", run=run)

    def _remember(self, reader: Reader, row: RunRow) -> None:
        """Keep what it takes to check that a run is told again rightly; not of all."""
        if row.stored <= PAST_LINES and row.whole and len(self.reasons) and sum(self.reasons.values()) % 4 == 0:
            digest = digest_of(reader, row.id, 1, row.lines)
            self.past.append(Told(row.id, row.lines, digest, str(row.reason)))


def digest_of(reader: Reader, run: str, first: int, last: int) -> bytes:
    """Return the digest of stored lines, as `Stretch` makes it; of fewer where fewer are stored."""
    made, beyond = hashlib.blake2b(), 0
    while parts := reader.parts(run, first - 1, beyond):
        beyond = parts[-1].number
        for part in parts:
            if part.kind is PartKind.LINES and part.first <= last:
                wanted = part.lines[max(0, first - part.first) : last + 1 - part.first]
                made.update(b"".join(line + b"\n" for line in wanted))
        if parts[-1].first > last:
            break
    return made.digest()


def drift(values: Iterable[float]) -> tuple[float, float]:
    """Return the medians of the first and of the last third behind the warm-up, which is a fifth of all."""
    known = [value for value in values if not math.isnan(value)]
    warm = known[len(known) // 5 :]
    if len(warm) < 2:
        return math.nan, math.nan
    third = max(1, len(warm) // 3)
    return _median(warm[:third]), _median(warm[-third:])


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
