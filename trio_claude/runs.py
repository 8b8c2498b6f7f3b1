"""The process manager: the only registry of live runs, and the slots that bound how many there are.

A run never leaves the nursery of its connection; this module knows of it and may ask it to stop, and never owns it.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import attrs
import trio

from .accounts import Accounts
from .admission import Limits, Member, SessionLocks, Slots, Waiter, own_limits, total_limits
from .config import Config
from .containment import Containment, Pump
from .errors import Busy, Draining, NotWanted, Reason, SessionBusy
from .events import Observer, fan_out
from .journal import Deleted, Journal
from .kit import Kit
from .messages import Options, Prompt
from .pool import Pool, Warm
from .pool import Slots as PoolSlots
from .run import Run
from .session import Start
from .session_run import SessionRun
from .telling import Tracer
from .threads import do_apart
from .turns import Turns
from .workplace import Workplace

if TYPE_CHECKING:
    from .nodes import Nodes

PLACE_PERIOD = 0.5
"""Seconds after which a run that waits is told its place again, where that has changed."""
POOL = Member("pool", Limits())
"""Whose the slots are of CLIs that were started ahead of need."""


@attrs.frozen
class Statistics:
    """How many runs live now and wait for a slot, how many slots are taken, and what all runs have said so far."""

    live: int
    waiting: int
    taken: int
    slots: int
    lines: int
    bytes: int


@attrs.define(eq=False)
class _Seat:
    """What a run holds: a slot, where it was `taken`, its own or that of a CLI that waited, and what else is `held`.

    `run` is its id once it lives.
    """

    run: str = ""
    taken: bool = False
    warm: Warm | None = None
    held: contextlib.AsyncExitStack | None = None


class Runs:
    """Every live run of one server. What limits count is its own, or that of all `nodes`.

    Error handling: `open` raises `Busy` where no slot comes free in `queue_timeout` seconds, `TooFast` and `OverBudget`
    where the member has used what it may, `Draining` once the server goes down and `SessionBusy` where another run
    holds the session to resume.
    """

    def __init__(
        self,
        workplace: Workplace,
        containment: Containment,
        observer: Observer,
        journal: Journal | None = None,
        batch: str = "",
        tracer: Tracer | None = None,
        nodes: Nodes | None = None,
    ) -> None:
        self._workplace = workplace
        self.nodes: Nodes | None = nodes
        shared = self._shared = nodes.shared if nodes else None
        self.journal: Journal | None = journal
        total = total_limits(workplace.config)
        self._slots = Slots(total.runs, total.waiting)
        self.accounts: Accounts = Accounts(total, shared)
        self._patience = workplace.config.queue_timeout
        self._local = Member(limits=own_limits(workplace.config, {}))
        self._sessions = SessionLocks()
        self.turns: Turns = Turns()
        self.pump: Pump = Pump(own_loop=workplace.config.own_loop)
        told = fan_out((observer, tracer)) if tracer else observer
        self._kit = Kit(workplace, containment, told, self.turns, self.pump, journal, batch, tracer=tracer)
        self._live: dict[str, Run] = {}
        self._draining = False
        self.pool: Pool = Pool(workplace, containment, observer, PoolSlots(self._spare_slot, self._slots.free))
        self._idle: set[trio.CancelScope] = set()
        self._empty = trio.Event()
        self._empty.set()

    def reload(self, config: Config) -> None:
        """Take the limits of another configuration; what runs goes on."""
        total = total_limits(config)
        self._local = Member(limits=own_limits(config, {}))
        self._patience = config.queue_timeout
        self.accounts.total = total
        self._slots.resize(total.runs, total.waiting)

    @property
    def patience(self) -> float:
        """Seconds for which a run waits for a slot."""
        return self._patience

    @asynccontextmanager
    async def open(
        self,
        prompt: Prompt,
        waiting: trio.CancelScope | None = None,
        *,
        member: Member | None = None,
        on_wait: Callable[[int], None] = lambda _place: None,
    ) -> AsyncIterator[Run]:
        """Wait for a slot and yield a run that holds it; `on_wait` hears of the place in the queue as it changes.

        Without `member` it is the program's own. Cancelling `waiting` ends the wait with `NotWanted`.
        """
        member = member or self._local
        await self.accounts.ask(member)
        options = self.accounts.bounded(prompt.options, member)
        seat, began = _Seat(), trio.current_time()
        waiting = waiting or trio.CancelScope()
        try:
            if not self._sit_down(seat, options, member, waiting):
                async with self._patient(member, waiting):
                    seat.held = await self._hold(options.resume, member, on_wait)
                    seat.warm = self._take_warm(options, member)
                    if seat.warm is None:
                        await self._wait_slot(seat, member, on_wait)
                    seat.taken = True
            options = self.accounts.bounded(prompt.options, member)  # others may have spent the day meanwhile
            bounded = prompt if options is prompt.options else attrs.evolve(prompt, options=options)
            run = self._run(bounded, member, seat.warm)
            run.teller.waited = trio.current_time() - began
            self._register(run, seat)
            yield run
        finally:
            await self._get_up(seat)

    def _run(self, prompt: Prompt, member: Member, warm: Warm | None) -> Run:
        timeout = prompt.options.timeout or self._workplace.config.timeout
        account = self.accounts.of(member, prompt.options)
        return Run(prompt, self._kit, timeout, account, warm)

    def _take_warm(self, options: Options, member: Member) -> Warm | None:
        """Return a CLI that waits, and let its slot count for `member`."""
        if not self._slots.may(member.name, member.limits.runs):
            return None
        if warm := self.pool.take(options):
            self._slots.hand_over(warm, member.name)
        return warm

    def session(self, start: Start, member: Member) -> SessionRun:
        """Return the run of a session; `admit` lets it begin. Raises `OverBudget`."""
        bounded = attrs.evolve(start, options=self.accounts.bounded(start.options, member))
        account = self.accounts.of(member, bounded.options)
        return SessionRun(bounded, self._kit, account)

    @asynccontextmanager
    async def admit(
        self, run: SessionRun, waiting: trio.CancelScope, on_wait: Callable[[int], None], member: Member
    ) -> AsyncIterator[None]:
        """Wait for a slot and hold it for a session; `on_wait` hears of the place in the queue as it changes.

        Raises what `open` raises.
        """
        seat, began = _Seat(), trio.current_time()
        try:
            async with self._patient(member, waiting):
                seat.held = await self._hold(run.start.session, member, on_wait)
                await self._wait_slot(seat, member, on_wait)
                seat.taken = True
            options = self.accounts.bounded(run.options, member)  # others may have spent the day meanwhile
            run.bound(options, self.accounts.left(member))
            run.teller.waited = trio.current_time() - began
            self._register(run, seat)
            yield
        finally:
            await self._get_up(seat)

    def _sit_down(self, seat: _Seat, options: Options, member: Member, waiting: trio.CancelScope) -> bool:
        """Take what a run needs that has nothing to wait for; return whether this was one, and has it."""
        if self._shared or options.resume is not None or self._draining or waiting.cancel_called:
            return False
        seat.warm = self._take_warm(options, member)
        seat.taken = seat.warm is not None or self._slots.take(seat, member.name, member.limits.runs)
        return seat.taken

    async def _get_up(self, seat: _Seat) -> None:
        """Give back what a run held, which lives no more."""
        if seat.run:
            del self._live[seat.run]
            if not self._live:
                self._empty.set()
        try:
            if seat.warm:
                await seat.warm.aclose()
        finally:
            if seat.taken:
                self._slots.free(seat.warm or seat)
            if seat.held:
                await seat.held.aclose()

    async def _hold(
        self, session: str | None, member: Member, on_wait: Callable[[int], None]
    ) -> contextlib.AsyncExitStack | None:
        """Hold a session, and one of the runs that its member may have at once, which `Slots` counts for one server.

        Return what gives them back, None where there is nothing to hold.
        """
        if self._draining:
            raise Draining("server shutting down")
        if session is None and not self._shared:
            return None
        async with contextlib.AsyncExitStack() as stack:
            if session is not None:
                stack.enter_context(self._sessions.hold(session, member.name))
            if self._shared:
                await stack.enter_async_context(self._shared.hold(member.name, session))
                await stack.enter_async_context(self._shared.place(member, self.accounts.total, on_wait))
            elif session is not None:
                stack.enter_context(self._workplace.holds.hold(session, member.name))
            return stack.pop_all()

    @asynccontextmanager
    async def _patient(self, member: Member, waiting: trio.CancelScope) -> AsyncIterator[None]:
        """Wait inside for `queue_timeout` seconds at most. Raises `NotWanted`, `Busy` and `Draining`.

        A prompt that finds no place is counted off again: its client is told when to come back, or does so elsewhere.
        """
        patience = self._patience
        try:
            with self.until_drain(patience) as late, waiting:
                yield
            if waiting.cancelled_caught:
                raise NotWanted("gave up before a slot came free")
            if late.cancelled_caught:
                raise Busy(f"no slot came free within {patience:g} s", retry_after=patience)
        except (Busy, SessionBusy, Draining):
            await self.accounts.give_back(member)
            raise

    async def _wait_slot(self, holder: object, member: Member, on_wait: Callable[[int], None]) -> None:
        """Take a slot for `holder`, waiting for it in the queue if need be."""
        if self._slots.take(holder, member.name, member.limits.runs):
            return
        granted = trio.Event()
        waiter = Waiter(holder, member.name, member.limits.runs, granted.set)
        self._slots.queue(waiter, member.limits.waiting)
        has_slot = False
        try:
            await self._queue_up(waiter, granted, member, on_wait)
            has_slot = True
        finally:
            if not has_slot:
                self._slots.leave(waiter)

    async def _queue_up(
        self, waiter: Waiter, granted: trio.Event, member: Member, on_wait: Callable[[int], None]
    ) -> None:
        """Wait until a slot is granted, by the limits that hold meanwhile."""
        told = 0
        while not waiter.granted:
            if self._slots.short:
                self.pool.evict()  # also one that was still being made ready when the wait began
            if (place := self._slots.place(waiter)) != told:
                told = place
                on_wait(place)
            with trio.move_on_after(PLACE_PERIOD):
                await granted.wait()
            self._slots.allow(waiter, member.now.runs)

    def _spare_slot(self, holder: object) -> bool:
        """Take a slot that no run waits for; return whether there was one."""
        return self._slots.take(holder, POOL.name)

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

    def _register(self, run: Run, seat: _Seat) -> None:
        self._live[run.id] = run
        seat.run = run.id
        self._empty = trio.Event()

    @property
    def held(self) -> frozenset[tuple[str, str]]:
        """The sessions in use, each as (who, session)."""
        return self._sessions.held

    @property
    def draining(self) -> bool:
        """Whether no new run is taken."""
        return self._draining

    def statistics(self) -> Statistics:
        """Return what goes on now."""
        slots, tally = self._slots, self._kit.tally
        return Statistics(
            live=len(self._live),
            waiting=len(slots),
            taken=slots.taken,
            slots=slots.total,
            lines=tally.lines,
            bytes=tally.bytes,
        )

    def stop(self, run: str, whose: str | None) -> bool:
        """End a live run of an identity (None: of anybody) now; return whether there was one."""
        found = self._live.get(run)
        if found is None or whose not in (None, found.account.name):
            return False
        found.stop(Reason.STOPPED, "ended by request", now=True)
        return True

    async def forget(self, deleted: Iterable[Deleted], whole: str | None = None) -> None:
        """Remove the transcripts of sessions whose runs were deleted, but of those that are in use.

        Of an identity that is deleted as a `whole`, and has no live run, all go that no other server can have in use:
        none that has changed within the time that a session may last. What servers share says what the others use;
        where that is not at hand none goes.
        """
        gone = {(one.identity, one.session) for one in deleted if one.session is not None}
        unused: set[tuple[str, str | None]] = set(gone)
        if whole is not None and all(run.account.name != whole for run in self._live.values()):
            unused.add((whole, None))
        if self._shared:
            try:
                unused -= await self._shared.in_use(unused)
            except Busy:
                return
        await do_apart(functools.partial(self._workplace.forget_transcripts, unused, self.held))

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
