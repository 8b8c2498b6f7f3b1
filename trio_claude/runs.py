"""The process manager: the only registry of live runs, and the slots that bound how many there are.

A run never leaves the nursery of its connection; this module knows of it and may ask it to stop, and never owns it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import attrs
import trio

from .admission import SessionLocks
from .containment import Containment
from .errors import Busy, Draining, NotWanted, Reason
from .events import Observer
from .messages import Prompt
from .pool import Pool, Slots
from .run import Run
from .session import Start
from .session_run import SessionRun
from .turns import Turns
from .workplace import Workplace


@attrs.frozen
class Statistics:
    """How many runs live now, how many wait for a slot, and how many of the slots are taken."""

    live: int
    waiting: int
    taken: int
    slots: int


class Runs:
    """Every live run of one server.

    Error handling: `open` raises `Busy` where no slot comes free in `queue_timeout` seconds, `Draining` once the server
    goes down and `SessionBusy` where another run holds the session to resume.
    """

    def __init__(self, workplace: Workplace, containment: Containment, observer: Observer) -> None:
        self._workplace = workplace
        self._containment = containment
        self._observer = observer
        self._slots = trio.CapacityLimiter(workplace.config.run_slots)
        self._sessions = SessionLocks()
        self.turns: Turns = Turns()
        self._live: dict[str, Run] = {}
        self._draining = False
        self.pool: Pool = Pool(
            workplace, containment, observer, Slots(self._spare_slot, self._slots.release_on_behalf_of)
        )
        self._idle: set[trio.CancelScope] = set()
        self._empty = trio.Event()
        self._empty.set()

    @asynccontextmanager
    async def open(self, prompt: Prompt, waiting: trio.CancelScope | None = None) -> AsyncIterator[Run]:
        """Wait for a slot and yield a run that holds it. Cancelling `waiting` ends the wait with `NotWanted`."""
        config = self._workplace.config
        timeout = prompt.options.timeout or config.timeout
        warm = self.pool.take(prompt.options)
        holder = warm or object()
        with self._sessions.hold(prompt.options.resume):
            if warm is None:
                await self._wait_slot(holder, waiting or trio.CancelScope())
            try:
                run = Run(prompt, self._workplace, self._containment, self._observer, timeout, self.turns, warm)
                with self._registered(run):
                    yield run
            finally:
                try:
                    if warm:
                        await warm.aclose()
                finally:
                    self._slots.release_on_behalf_of(holder)

    def session(self, start: Start) -> SessionRun:
        """Return the run of a session; `admit` lets it begin."""
        return SessionRun(start, self._workplace, self._containment, self._observer, self.turns)

    @asynccontextmanager
    async def admit(
        self, run: SessionRun, waiting: trio.CancelScope, on_wait: Callable[[int], None]
    ) -> AsyncIterator[None]:
        """Wait for a slot and hold it for a session; `on_wait` hears of the place in the queue, if there is one.

        Raises what `open` raises.
        """
        with self._sessions.hold(run.start.session):
            await self._wait_slot(run, waiting, on_wait)
            try:
                with self._registered(run):
                    yield
            finally:
                self._slots.release_on_behalf_of(run)

    async def _wait_slot(
        self, holder: object, waiting: trio.CancelScope, on_wait: Callable[[int], None] = lambda _place: None
    ) -> None:
        patience = self._workplace.config.queue_timeout
        if self._draining:
            raise Draining("server shutting down")
        with contextlib.suppress(trio.WouldBlock):
            self._slots.acquire_on_behalf_of_nowait(holder)
            return
        self.pool.evict()
        on_wait(self._slots.statistics().tasks_waiting + 1)
        with self.until_drain(patience) as late, waiting:
            await self._slots.acquire_on_behalf_of(holder)
        if waiting.cancelled_caught:
            raise NotWanted("gave up before a slot came free")
        if late.cancelled_caught:
            raise Busy(f"no slot came free within {patience:g} s", retry_after=patience)

    def _spare_slot(self, holder: object) -> bool:
        """Take a slot that no run waits for; return whether there was one."""
        try:
            self._slots.acquire_on_behalf_of_nowait(holder)
        except trio.WouldBlock:
            return False
        return True

    @contextmanager
    def until_drain(self, patience: float = math.inf) -> Iterator[trio.CancelScope]:
        """Wait inside for what is not a run, for `patience` seconds. Raises `Draining` once the server goes down."""
        with trio.move_on_after(patience) as scope:
            self._idle.add(scope)
            if self._draining:
                scope.cancel()
            try:
                yield scope
            finally:
                self._idle.discard(scope)
        if scope.cancelled_caught and self._draining:
            raise Draining("server shutting down")

    @contextmanager
    def _registered(self, run: Run) -> Iterator[None]:
        self._live[run.id] = run
        self._empty = trio.Event()
        try:
            yield
        finally:
            del self._live[run.id]
            if not self._live:
                self._empty.set()

    @property
    def draining(self) -> bool:
        """Whether no new run is taken."""
        return self._draining

    def statistics(self) -> Statistics:
        """Return what goes on now."""
        slots = self._slots.statistics()
        return Statistics(
            live=len(self._live),
            waiting=slots.tasks_waiting,
            taken=int(slots.borrowed_tokens),
            slots=int(slots.total_tokens),
        )

    def stop_all(self, reason: Reason, error: str, *, now: bool) -> None:
        """End every live run, by the reason's ladder or `now`."""
        for run in list(self._live.values()):
            run.stop(reason, error, now=now)

    async def drain(self, patience: float) -> None:
        """Take no new run; let the live ones end for `patience` seconds, then end them."""
        self._draining = True
        self.pool.close()
        for scope in list(self._idle):
            scope.cancel()
        with trio.move_on_after(patience):
            await self._empty.wait()
        self.stop_all(Reason.DRAINED, "server shutting down", now=not patience)
        await self._empty.wait()
