"""What observers hear of one run: its start, its first line and words, its turns, what it costs, its end, its trace.

This module must never decide anything about a run, wait, or keep what the run says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import attrs
import trio

from . import stream_json
from .events import (
    STALL,
    ApprovalSettled,
    Charged,
    Event,
    FirstLine,
    FirstToken,
    Interrupted,
    Observer,
    Outcome,
    RunEnded,
    RunStarted,
    SendStalled,
    TurnEnded,
)
from .session import Settled
from .stream_json import Spent


class Trace(Protocol):
    """The trace of one run. Its calls return at once and raise nothing."""

    environ: Mapping[str, str]
    """The variables by which what the run starts can go on with its trace."""

    def begin_turn(self) -> None:
        """Take that a turn begins; before the CLI's start it waits for that."""

    def hear(self, lines: list[bytes]) -> None:
        """Take whole stdout lines, in order."""

    def link(self, headers: Mapping[str, str], role: str) -> None:
        """Take that a client has come to the run, as its owner or a viewer, out of a trace of its own."""


class Tracer(Protocol):
    """What traces runs; it is an observer of what is told of them, too."""

    def __call__(self, event: Event) -> None:
        """Take an event."""

    def begin(
        self, run: str, meta: str, identity: str, door: str, waited: float, headers: Mapping[str, str] | None
    ) -> Trace | None:
        """Begin the trace of a run that has `waited` for so many seconds.

        `headers` are those of its client's request, by lower-case name: the trace that they name goes on. None stands
        for a run inside this program: what is current here goes on. Where it can't be traced, None is returned.
        """


class TracerProvider(Protocol):
    """A TracerProvider of OpenTelemetry, as far as it is used here."""

    def get_tracer(self, name: str, version: str | None = None, /) -> Any:
        """Return what makes spans."""


@attrs.define
class Tally:
    """What all runs of one server have said on stdout since its start."""

    lines: int = 0
    bytes: int = 0


class Teller:
    """Tells the observers of one run, and counts what it tells of."""

    def __init__(
        self,
        run: str,
        meta: str,
        identity: str,
        door: str,
        observer: Observer,
        tally: Tally,
        tracer: Tracer | None = None,
    ) -> None:
        self._run = run
        self._meta = meta
        self._identity = identity
        self._door = door
        self._observer = observer
        self._tally = tally
        self._tracer = tracer
        self._trace: Trace | None = None
        self._began = 0.0
        self._turn_began: float | None = None
        """Since when a turn goes on, None between two of them."""
        self._next_began: list[float] = []
        """Since when the next ones do, where the results of those before them are not dealt with yet."""
        self._has_spoken = False
        """Whether the turn has said its first words."""
        self.waited: float = 0.0
        """Seconds for which the run waited for a slot."""
        self.context: Mapping[str, str] | None = None
        """The trace of which a client says that it is part, by HTTP's names; None for a run without a request."""
        self.lines: int = 0
        self.bytes: int = 0
        self.turns: int = 0

    def begin(self) -> None:
        """Take that the run begins."""
        self._began = trio.current_time()
        if self._tracer:
            self._trace = self._tracer.begin(
                self._run, self._meta, self._identity, self._door, self.waited, self.context
            )
        if self._trace and self._turn_began is not None:
            self._trace.begin_turn()

    @property
    def environ(self) -> Mapping[str, str]:
        """The variables by which what the run starts can go on with its trace."""
        return self._trace.environ if self._trace else {}

    def joined(self, context: Mapping[str, str], role: str) -> None:
        """Take that another client has come to the run, out of a trace of its own."""
        if self._trace:
            self._trace.link(context, role)

    def started(self, pid: int, *, warm: bool) -> None:
        """Tell that the CLI runs."""
        self._observer(RunStarted(self._run, self._meta, pid, warm, self._identity, self._door, self.waited))

    def read(self, size: int) -> None:
        """Count bytes of stdout."""
        self.bytes += size
        self._tally.bytes += size

    def hear(self, lines: list[bytes]) -> None:
        """Count lines, and tell of the first of the run and of the first words of a turn."""
        if not self.lines:
            self._tell_first(FirstLine, self._began)
        self.lines += len(lines)
        self._tally.lines += len(lines)
        if not self._has_spoken and self._turn_began is not None and stream_json.has_words(lines):
            self._has_spoken = True
            self._tell_first(FirstToken, self._turn_began)
        if self._trace:
            self._trace.hear(lines)

    def delivered(self, since: float) -> None:
        """Tell of a client that was slow to take what it was sent, or did not take it."""
        if (waited := trio.current_time() - since) > STALL:
            self._observer(SendStalled(self._run, self._meta, waited, self._identity))

    def begin_turn(self, *, behind: bool = False) -> None:
        """Take that a turn goes on from now, unless one does already; `behind`: the result of that one has come."""
        if behind:
            self._next_began.append(trio.current_time())
        elif self._turn_began is None:
            self._go_on(trio.current_time())

    def _go_on(self, since: float) -> None:
        self._turn_began, self._has_spoken = since, False
        if self._trace:
            self._trace.begin_turn()

    def end_turn(self, used: Spent, error: str) -> None:
        """Tell of a turn's result."""
        self.turns += 1
        now = trio.current_time()
        seconds = now - (now if self._turn_began is None else self._turn_began)
        self._turn_began = None
        self._observer(
            TurnEnded(
                self._run, self._meta, self.turns, seconds, used.tokens, used.dollars, error, self._identity, self._door
            )
        )
        if self._next_began:
            self._go_on(self._next_began.pop(0))

    def charged(self, used: Spent) -> None:
        """Tell of what was charged."""
        if used.tokens or used.dollars:
            self._observer(Charged(self._run, self._meta, used.tokens, used.dollars, self._identity))

    def interrupted(self) -> None:
        """Tell that a turn is to end."""
        self._observer(Interrupted(self._run, self._meta, self._identity))

    def settled(self, approvals: list[Settled]) -> None:
        """Tell of approvals that are not open any more."""
        for one in approvals:
            self._observer(ApprovalSettled(self._run, self._meta, one.seconds, one.outcome, self._identity))

    def ended(self, outcome: Outcome, charged: Spent) -> None:
        """Tell of the run's end."""
        self._observer(
            RunEnded(
                self._run, self._meta, trio.current_time() - self._began, outcome, self._identity, self._door,
                self.turns, charged.tokens, charged.dollars, self.bytes,
            )
        )  # fmt: skip

    def _tell_first(self, event: type[FirstLine | FirstToken], since: float) -> None:
        self._observer(event(self._run, self._meta, trio.current_time() - since, self._identity, self._door))
