"""The spans of runs: out of the events that observers hear, and of what the CLI's lines tell of tools.

Times are those of the events. This module must never wait, raise, or act on a run. What it keeps of a run is bounded by
`TOOLS_KEPT`, and is dropped with the run's end.
"""

from __future__ import annotations

import functools
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Concatenate, ParamSpec, TypeAlias, TypeVar

import attrs
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from .. import __version__
from ..errors import Reason
from ..events import (
    ApprovalSettled,
    Event,
    FirstLine,
    FirstToken,
    Interrupted,
    Outcome,
    RunEnded,
    RunStarted,
    SendStalled,
    TurnEnded,
    warn,
)
from ..telling import TracerProvider
from .lines import ToolAnswered, ToolUsed, sights

SPAN_LIMIT = 10_000
"""Turns and uses of tools of one run that get a span; the others are counted."""
TOOLS_KEPT = 256
"""Uses of tools of one run of which is known that they are open, or that others may be part of them."""
OWN_WILL = (Reason.STOPPED, Reason.DISCONNECTED)
"""Ends that are the client's own will: neither good nor an error."""
NS = 1_000_000_000
_W3C = TraceContextTextMapPropagator()
_MEMBER = re.compile(
    r"[ \t]*([a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
    r"=[ -+\--<>-~]{0,255}[!-+\--<>-~][ \t]*|[ \t]*"
)
"""A member of `tracestate`, by https://www.w3.org/TR/trace-context/; the library would log others, a client's words."""
MEMBERS = 32
"""How many it may have; of more the library would keep none, and log that."""
_P = ParamSpec("_P")
_T = TypeVar("_T")
_R = TypeVar("_R")


def _harmless(
    method: Callable[Concatenate[_T, _P], _R],
) -> Callable[Concatenate[_T, _P], _R | None]:
    """Have a method warn of what it raises: the spans go through code of others."""

    @functools.wraps(method)
    def call(self: _T, /, *args: _P.args, **kwargs: _P.kwargs) -> _R | None:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:  # a tracer's own fault, which is never a run's
            warn(f"a run can't be traced: {error!r}")
            return None

    return call


@attrs.frozen
class _Use:
    """A use of a tool; `turn` is the one that it ends with, None for a part of another use: that may outlive it."""

    span: Span
    turn: int | None


def _extract(headers: Mapping[str, str]) -> Context:
    """Return the trace that a client's headers go on with."""
    members = headers.get("tracestate", "").split(",")
    if not all(map(_MEMBER.fullmatch, members)) or sum(map(bool, map(str.strip, members))) > MEMBERS:
        headers = {name: value for name, value in headers.items() if name != "tracestate"}
    return _W3C.extract(headers, Context())


class Trace:
    """The trace of one run.

    `environ` holds the variables by which what the run starts can go on with it: TRACEPARENT, TRACESTATE.
    """

    def __init__(self, tracer: trace.Tracer, root: Span, began: int, zero: int) -> None:
        self._tracer = tracer
        self._root = root
        self._zero = zero
        self._start = self._open("start", root, began)
        self._started = False
        self._is_due = False
        """Whether a turn begins with the CLI's start, because its prompt came before."""
        self._turns: dict[int, Span] = {}
        self._results = 0
        """Results that lines have told of; the events of the last may be still to come."""
        self._uses: OrderedDict[str, _Use] = OrderedDict()
        self._n_spans = 0
        self._left_out = 0
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, _below(root))
        self.environ: Mapping[str, str] = {name.upper(): value for name, value in carrier.items()}

    @_harmless
    def begin_turn(self) -> None:
        """Take that a turn begins; before the CLI's start it waits for that."""
        if self._started:
            self._turn()
        self._is_due = not self._started

    @_harmless
    def hear(self, lines: list[bytes]) -> None:
        """Take whole stdout lines, in order."""
        if not self._root.is_recording():
            return
        for sight in sights(lines):
            if isinstance(sight, ToolUsed):
                self._use(sight)
            elif isinstance(sight, ToolAnswered):
                self._answer(sight)
            else:
                self._results += 1

    @_harmless
    def link(self, headers: Mapping[str, str], role: str) -> None:
        """Take that a client has come to the run, as its owner or a viewer, out of a trace of its own."""
        context = trace.get_current_span(_extract(headers)).get_span_context()
        if context.is_valid and self._root.is_recording():
            self._root.add_link(context, _named(role=role))

    def take(self, event: Event) -> None:
        """Take what observers hear of the run."""
        match event:
            case RunStarted():
                self._begin(event)
            case FirstLine():
                self._root.add_event("first line", timestamp=self._now())
            case FirstToken():
                self._here().add_event("first words", timestamp=self._now())
            case TurnEnded():
                self._end_turn(event)
            case ApprovalSettled():
                told = _named(outcome=event.outcome, seconds=event.seconds)
                self._here().add_event("approval", told, self._now())
            case Interrupted():
                self._here().add_event("interrupt", timestamp=self._now())
            case SendStalled():
                self._root.add_event("stalled write", _named(seconds=event.seconds), self._now())
            case RunEnded():
                self._end(event)

    def _begin(self, event: RunStarted) -> None:
        self._start.set_attributes({**_named(warm=event.warm), "process.pid": event.pid})
        self._start.end(self._now())
        self._started = True
        if self._is_due:
            self._turn()

    def _use(self, used: ToolUsed) -> None:
        if used.id in self._uses:
            return
        whole = self._uses.get(used.parent)
        named: dict[str, AttributeValue] = {"gen_ai.tool.name": used.name, "gen_ai.tool.call.id": used.id}
        span = self._bounded(f"tool {used.name}", whole.span if whole else self._turn(), self._now(), named)
        if span is None:
            return
        self._uses[used.id] = _Use(span, None if used.parent else self._results + 1)
        if len(self._uses) > TOOLS_KEPT:
            over = (id_ for id_, use in self._uses.items() if not use.span.is_recording())
            self._abandon(self._uses.pop(next(over, next(iter(self._uses)))).span, "too many are open")

    def _answer(self, answered: ToolAnswered) -> None:
        use = self._uses.get(answered.id)
        if use is None or not use.span.is_recording():
            return
        use.span.set_attributes(_named(is_error=answered.is_error))
        if answered.is_error:
            use.span.set_status(Status(StatusCode.ERROR, "the result is an error"))
        use.span.end(self._now())

    def _turn(self) -> Span:
        """Return the span of the turn that goes on, which may begin now; the run's where there can be no more."""
        number = self._results + 1
        if number not in self._turns:
            span = self._bounded("turn", self._root, self._now(), _named(turn=number))
            if span is None:
                return self._root
            self._turns[number] = span
        return self._turns[number]

    def _here(self) -> Span:
        """Return the span to which belongs what happens now."""
        return self._turns.get(self._results + 1, self._root)

    def _end_turn(self, event: TurnEnded) -> None:
        now = self._now()
        span = self._turns.pop(event.turn, None)
        if span is None:
            span = self._bounded("turn", self._root, now - round(event.seconds * NS), _named(turn=event.turn))
        for use in self._uses.values():
            if use.turn is not None and use.turn <= event.turn:
                self._abandon(use.span, "no result in its turn")
        if span:
            span.set_attributes(_named(tokens=event.tokens, dollars=event.dollars))
            if event.error:
                span.set_status(Status(StatusCode.ERROR, "the result is an error"))
            span.end(now)

    def _end(self, event: RunEnded) -> None:
        outcome, now = event.outcome, self._now()
        if not self._started:
            self._start.set_status(Status(StatusCode.ERROR, outcome.reason.value))
            self._start.end(now)
        for span in (*(use.span for use in reversed(self._uses.values())), *self._turns.values()):
            self._abandon(span, "no result before the run's end")
        self._uses.clear()
        self._end_tree(outcome, now)
        self._root.set_attributes(
            _named(
                reason=outcome.reason.value, exit_status=outcome.exit_status, signal=outcome.signal,
                lines=outcome.lines, bytes=event.bytes, turns=event.turns, tokens=event.tokens, dollars=event.dollars,
                spans_left_out=self._left_out or None,
            )
        )  # fmt: skip
        self._root.set_status(_status(outcome.reason))
        self._root.end(now)

    def _end_tree(self, outcome: Outcome, now: int) -> None:
        """Say what the receipt says, in a span from the decision to end until the last process was gone."""
        receipt = outcome.receipt
        span = self._open(
            "end",
            self._root,
            now - round(receipt.ms * NS / 1000),
            _named(
                seen=receipt.seen, killed=receipt.killed, survivors=receipt.survivors, ms=receipt.ms,
                containment=receipt.containment, after_result=outcome.after_result,
            ),
        )  # fmt: skip
        if receipt.survivors:
            span.set_status(Status(StatusCode.ERROR, f"{receipt.survivors} left"))
        span.end(now)

    def _abandon(self, span: Span, why: str) -> None:
        """End what is still open."""
        if span.is_recording():
            span.set_status(Status(StatusCode.ERROR, why))
            span.end(self._now())

    def _bounded(self, name: str, parent: Span, began: int, attributes: _Attributes) -> Span | None:
        """Begin a span, None where the run has as many as it may."""
        if self._n_spans >= SPAN_LIMIT:
            self._left_out += 1
            return None
        self._n_spans += 1
        return self._open(name, parent, began, attributes)

    def _open(self, name: str, parent: Span, began: int, attributes: _Attributes | None = None) -> Span:
        return self._tracer.start_span(name, _below(parent), attributes=attributes, start_time=began)

    def _now(self) -> int:
        """Return the time by the clock of the run's beginning: a step of the system's clock moves no span."""
        return self._zero + time.perf_counter_ns()


class Tracer:
    """Traces runs, each from `begin` to its `RunEnded`; it is an observer of what is told of them."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer: trace.Tracer = provider.get_tracer("trio_claude", __version__)
        self._traces: dict[str, Trace] = {}

    @_harmless
    def begin(
        self, run: str, meta: str, identity: str, door: str, waited: float, headers: Mapping[str, str] | None
    ) -> Trace:
        """Begin the trace of a run; it goes on where `headers`, or what is current here, say so."""
        zero = time.time_ns() - time.perf_counter_ns()
        now = zero + time.perf_counter_ns()
        arrived = now - round(waited * NS)
        root = self._tracer.start_span(
            "run",
            None if headers is None else _extract(headers),
            SpanKind.INTERNAL if headers is None else SpanKind.SERVER,
            _named(run=run, meta=meta, identity=identity, door=door),
            start_time=arrived,
        )
        self._tracer.start_span("queue", _below(root), start_time=arrived).end(now)
        self._traces[run] = begun = Trace(self._tracer, root, now, zero)
        return begun

    def __call__(self, event: Event) -> None:
        """Take an event; those that are of no run are of no interest."""
        found = self._traces.get(getattr(event, "run", ""))
        if found is None:
            return
        if isinstance(event, RunEnded):
            del self._traces[event.run]
        found.take(event)


_Attributes: TypeAlias = dict[str, AttributeValue]


def _below(span: Span) -> Context:
    """Return the context of what is part of a span."""
    return trace.set_span_in_context(span, Context())


def _named(**values: AttributeValue | None) -> _Attributes:
    """Return attributes by names that are ours, those that have a value."""
    return {f"trio_claude.{name}": value for name, value in values.items() if value is not None}


def _status(reason: Reason) -> Status:
    if reason is Reason.EXIT:
        return Status(StatusCode.OK)
    return Status(StatusCode.UNSET) if reason in OWN_WILL else Status(StatusCode.ERROR, reason.value)
