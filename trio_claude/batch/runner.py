"""A batch, from its first run to its last result.

Rule 1: every planned run gets exactly one result, whatever happens. Rule 2: runs start in the order of the plan, as the
throttle, the order of results and the budget allow; the decision is synchronous, so nothing comes between it and the
start. Rule 3: this module writes to no terminal and sets no signal handler.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Protocol

import attrs
import trio

from ..errors import Reason
from ..threads import do_apart
from .artifacts import Artifacts
from .doors import Door
from .earlier import Earlier
from .files import LinesFolder, OutFile, Unwritable
from .order import AsCompleted, InOrder
from .results import CANCELLED, SKIPPED, Finish, Record
from .retries import delay, retryable
from .tally import Tally
from .tasks import Item, Plan
from .throttle import Throttle, Ticket


class Out(Protocol):
    """What takes results."""

    def write(self, data: bytes) -> None:
        """Take one line. Raises `Unwritable`."""

    def keep(self, data: bytes) -> None:
        """Take one line that waits for others, and is written later. Raises `Unwritable`."""

    def drop(self) -> None:
        """Forget what waited: it is all written. Raises `Unwritable`."""


@attrs.frozen(kw_only=True)
class Settings:
    """How a batch is run: runs at once, further attempts of what may go better, US dollars, and where lines go."""

    concurrency: int
    retries: int = 2
    max_usd: float | None = None
    as_completed: bool = False
    lines: LinesFolder | None = None
    artifacts: Artifacts | None = None


class Runner:
    """One batch.

    Resource handling: `run` owns all its runs; when it returns or raises, nothing of them is left. Error handling: what
    happens to a run is told in its result; where a file can't be written, everything is stopped and `run` raises
    `Unwritable`, when there is a result of each run, unless it is the results that can't be written.
    """

    def __init__(self, plan: Plan, door: Door, out: Out, settings: Settings, earlier: Earlier | None = None) -> None:
        self.tally: Tally = earlier.tally if earlier else Tally(len(plan))
        self._done = earlier.done if earlier else None
        self.throttle: Throttle = Throttle(settings.concurrency)
        self._plan = plan
        self._door = door
        self._out = out
        self._settings = settings
        self._order: AsCompleted | InOrder = AsCompleted() if settings.as_completed else InOrder()
        self._again = 0
        self._changed = trio.lowlevel.ParkingLot()
        self._stop = trio.Event()
        self._failure: Unwritable | None = None
        self._full = False
        self._late: Unwritable | None = None

    def stop(self) -> None:
        """Start nothing more, and end what runs. Returns at once."""
        self._stop.set()
        self._changed.unpark_all()

    async def run(self) -> None:
        """Run everything that is planned."""
        items = (item for item in self._plan if not (self._done and self._done[item.place]))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_stop, nursery.cancel_scope)
            async with trio.open_nursery() as runs:
                for item in items:
                    await self._start(item, runs)
            nursery.cancel_scope.cancel()
        for item in items:
            self._record(Record(item=item), Finish(reason=CANCELLED))
        if self._failure:
            raise self._failure

    async def _watch_stop(self, scope: trio.CancelScope) -> None:
        await self._stop.wait()
        await self._door.stop()
        scope.cancel()

    async def _start(self, item: Item, runs: trio.Nursery) -> None:
        """Start one run when it is its turn, or write down why it is not started."""
        try:
            await self._until(lambda: self._may_start(item.place))
        except trio.Cancelled:
            self._record(Record(item=item), Finish(reason=CANCELLED))
            raise
        if self._stop.is_set():
            self._record(Record(item=item), Finish(reason=CANCELLED))
        elif self._spent():
            self._record(Record(item=item), Finish(reason=SKIPPED, error=self._budget_text()))
        else:
            runs.start_soon(self._one, item, self.throttle.start())

    def _may_start(self, place: int) -> bool:
        return self._stop.is_set() or (self.throttle.free and not self._again and self._order.may_start(place))

    def _spent(self) -> bool:
        return self._settings.max_usd is not None and self.tally.cost_usd >= self._settings.max_usd

    def _budget_text(self) -> str:
        return f"not started: ${self.tally.cost_usd:.4f} of ${self._settings.max_usd:g} (max-usd) were spent"

    async def _until(self, holds: Callable[[], bool]) -> None:
        """Wait until `holds()`; between that and the return nothing else happens."""
        await trio.lowlevel.checkpoint()
        while not holds():
            await self._changed.park()

    async def _one(self, item: Item, ticket: Ticket) -> None:
        """Make one run's attempts and record what they came to."""
        record = Record(item=item)
        try:
            finish = await self._attempts(record, ticket)
        except trio.Cancelled:
            self._record(record, Finish(reason=CANCELLED))
            raise
        if self._broken_off(finish):
            finish = attrs.evolve(finish, reason=CANCELLED, error=None)
        self._record(record, finish)
        if self._late:
            self._fail(self._late)

    def _broken_off(self, finish: Finish) -> bool:
        return self._stop.is_set() and finish.reason == Reason.DRAINED

    async def _attempts(self, record: Record, ticket: Ticket) -> Finish:
        while True:
            try:
                since = Artifacts.mark()
                finish = await self._attempt(record, ticket)
                if not self._worth_another(record, finish):
                    await self._collect(record, since, finish)
                    return finish
                await trio.sleep(delay(record.attempts, finish.retry_after, random.random()))  # noqa: S311
            finally:
                self._release(ticket)
            again = await self._again_free()
            if again is None:
                await self._collect(record, since, finish)
                return finish
            ticket = again

    def _worth_another(self, record: Record, finish: Finish) -> bool:
        if self._stop.is_set() or self._spent() or record.attempts > self._settings.retries:
            return False
        return retryable(finish, record.fold)

    def _release(self, ticket: Ticket) -> None:
        self.throttle.finish(ticket)
        self._changed.unpark_all()

    async def _again_free(self) -> Ticket | None:
        """Wait until one more may go, ahead of all that has not begun; None where the money is spent by then."""
        self._again += 1
        try:
            await self._until(lambda: self.throttle.free)
        finally:
            self._again -= 1
        if self._spent():
            self._changed.unpark_all()
            return None
        return self.throttle.start()

    async def _attempt(self, record: Record, ticket: Ticket) -> Finish:
        """Make one attempt; its lines are folded, and written down where that is asked for."""
        fold, began = record.begin(), trio.current_time()
        lines = self._settings.lines
        try:
            with _Lines(lines.open(record.item.name) if lines else None) as kept:

                def hear(line: str) -> None:
                    if not fold.lines:
                        record.first_line_seconds = trio.current_time() - began
                    kept.write(line)
                    if fold.feed(line):
                        self.throttle.strain(ticket)

                return await self._door.run(record.item.prompt, hear)
        except Unwritable as error:
            self._fail(error)
            return Finish(reason=CANCELLED, error=str(error))
        finally:
            record.seconds = trio.current_time() - began
            record.settle()
            self.tally.spend(record.fold.cost_usd)

    async def _collect(self, record: Record, since: int, finish: Finish) -> None:
        """Copy what a run has left in its workspace, if that is asked for; a full disk waits until it is recorded."""
        artifacts, workspace = self._settings.artifacts, record.item.prompt.options.workspace
        if artifacts is None or workspace is None or self._broken_off(finish):
            return
        try:
            with trio.CancelScope(shield=True):  # the run is over, and its result stands
                record.artifacts = await do_apart(
                    functools.partial(artifacts.collect, record.item.name, workspace, since)
                )
        except Unwritable as error:
            record.artifacts = f"could not be written: {error}"
            self._late = self._late or error

    def _fail(self, error: Unwritable) -> None:
        """Stop everything because a file can't be written; the first such error is told."""
        self._failure = self._failure or error
        self.stop()

    def _record(self, record: Record, finish: Finish) -> None:
        """Count a result and let out what may come out."""
        result = record.result(finish)
        self.tally.add(result)
        try:
            if not self._full:
                self._write(self._order.add(record.item.place, data := result.render()), data)
        except Unwritable as error:
            self._full = True
            self._fail(error)
        self._changed.unpark_all()

    def _write(self, out: list[bytes], latest: bytes) -> None:
        """Write what may come out; what waits is kept beside, as long as anything does. Raises `Unwritable`."""
        for line in out:
            self._out.write(line)
        if not out:
            self._out.keep(latest)
        elif not self._order.waits:
            self._out.drop()


class _Lines:
    """Where one attempt's lines go, or nowhere."""

    def __init__(self, file: OutFile | None) -> None:
        self._file = file

    def write(self, line: str) -> None:
        """Take one line. Raises `Unwritable`."""
        if self._file:
            self._file.write(line.encode() + b"\n")

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()
