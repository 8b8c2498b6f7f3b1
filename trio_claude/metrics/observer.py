"""The observer that counts what it hears, and the scrape.

This module must never wait, keep an event, or let a word out of an event be a label that is not one of a few.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

import trio
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Metric,
    ProcessCollector,
    Summary,
    exposition,
)
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from .. import __version__, events
from ..errors import CloseCode
from ..events import Event
from ..runs import Runs
from .families import BAD, FAMILIES, GOOD, PREFIX, Family, Watched
from .loop import LoopWatch

SERIES_LIMIT: Final = 100
"""Series of one metric; the most is refusals, of which the code has some forty. What comes beyond is `OTHER`."""
OTHER: Final = "other"
CLOSE_CODES: Final = frozenset(CloseCode)
OPENMETRICS: Final = "application/openmetrics-text"
CONTENT_TYPES: Final = {
    False: "text/plain; version=0.0.4; charset=utf-8",
    True: f"{OPENMETRICS}; version=1.0.0; charset=utf-8",
}

Child = Counter | Gauge | Histogram | Summary


class Metrics:
    """An observer that counts, for one server or engine: `open_server(config, [metrics])`.

    Call it with events, and `render` what a scrape is to read. What is read at the scrape itself, such as how many
    runs live, is there inside `watching`.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._families = {one.name: _make(one, self._registry) for one in FAMILIES if not one.read}
        self._children: dict[str, dict[tuple[str, ...], Child]] = {name: {} for name in self._families}
        for family in FAMILIES:
            for labels in family.known:
                self._child(family.name, labels)
        self._watched = False
        self._handlers: dict[type[Any], Callable[[Any], None]] = {
            events.ContainmentReady: self._contained,
            events.PoolReady: lambda event: self._gauge("pool_size").set(event.size),
            events.Answered: self._answered,
            events.ConnectionOpened: lambda event: self._gauge("connections_open", event.path).inc(),
            events.ConnectionClosed: self._closed,
            events.Refused: lambda event: self._count("refused_total", str(event.status), event.code),
            events.RunStarted: self._started,
            events.FirstLine: lambda event: self._time("first_line_seconds", event.seconds, event.door),
            events.FirstToken: lambda event: self._time("first_token_seconds", event.seconds, event.door),
            events.TurnEnded: self._turned,
            events.Charged: self._charged,
            events.Interrupted: lambda _event: self._count("interrupts_total"),
            events.ApprovalSettled: lambda event: self._time("approval_seconds", event.seconds, event.outcome),
            events.SendStalled: lambda event: self._time("send_stall_seconds", event.seconds),
            events.RunEnded: self._ended,
            events.Strained: lambda event: self._gauge("strained", event.what).set(not event.over),
            events.NodeState: lambda event: self._count("node_states_total", event.state),
            events.Reloaded: lambda event: self._count("reloads_total", BAD if event.error else GOOD),
            events.GuardianLost: lambda event: self._count("guardians_lost_total", event.what),
            events.Crashed: lambda event: self._count("crashes_total", event.where),
        }

    def __call__(self, event: Event) -> None:
        """Count an event."""
        if handler := self._handlers.get(type(event)):
            handler(event)

    @contextmanager
    def watching(self, runs: Runs) -> Iterator[None]:
        """Read the runs of one server or engine at each scrape, and watch the event loop that this is called in.

        Raises RuntimeError where it watches already.
        """
        if self._watched:
            raise RuntimeError("these metrics watch already; each server or engine has its own")
        loop = LoopWatch(lambda seconds: self._time("loop_hold_seconds", seconds))
        readings = _Readings(Watched(runs, loop))
        self._watched = True
        self._registry.register(readings)
        trio.lowlevel.add_instrument(loop)
        runs.pump.watch(loop.hold)
        try:
            yield
        finally:
            runs.pump.watch(None)
            trio.lowlevel.remove_instrument(loop)
            self._registry.unregister(readings)
            self._watched = False

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return a scrape and its content type: OpenMetrics where a client's Accept header names it, else text.

        Any thread may call it.
        """
        kinds = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
        is_open = OPENMETRICS in kinds
        encode = openmetrics.generate_latest if is_open else exposition.generate_latest
        return encode(cast("CollectorRegistry", _Lean(self._registry))), CONTENT_TYPES[is_open]

    # the events of which there is more to say

    def _contained(self, event: events.ContainmentReady) -> None:
        self._gauge("build_info", __version__, event.mode).set(1)
        self._child("receipts_unproven_total", (event.mode,))

    def _answered(self, event: events.Answered) -> None:
        self._count("http_answers_total", str(event.status))
        self._time("http_answer_seconds", event.seconds)

    def _closed(self, event: events.ConnectionClosed) -> None:
        """Count an end; a client that closes has its own code sent back to it, which may be any of thousands."""
        code = "none" if event.code is None else str(event.code) if event.code in CLOSE_CODES else OTHER
        self._gauge("connections_open", event.path).dec()
        self._count("connections_closed_total", code)
        self._time("connection_seconds", event.seconds)

    def _started(self, event: events.RunStarted) -> None:
        self._count("runs_started_total", event.door, "true" if event.warm else "false")
        self._time("slot_wait_seconds", event.waited)

    def _turned(self, event: events.TurnEnded) -> None:
        self._count("turns_total", event.door, BAD if event.error else GOOD)
        self._time("turn_seconds", event.seconds, event.door)

    def _charged(self, event: events.Charged) -> None:
        self._count("tokens_total", by=event.tokens)
        self._count("dollars_total", by=event.dollars)

    def _ended(self, event: events.RunEnded) -> None:
        receipt = event.outcome.receipt
        self._count("runs_ended_total", event.door, event.outcome.reason.value)
        self._time("run_seconds", event.seconds, event.door)
        self._count("processes_seen_total", by=receipt.seen)
        self._count("processes_killed_total", by=receipt.killed)
        self._count("processes_survived_total", by=receipt.survivors or 0)
        if receipt.survivors is None:
            self._count("receipts_unproven_total", receipt.containment)
        if receipt.seen:
            self._time("kill_seconds", receipt.ms / 1000)

    # how it is counted

    def _count(self, name: str, *labels: str, by: float = 1) -> None:
        cast("Counter", self._child(name, labels)).inc(by)

    def _gauge(self, name: str, *labels: str) -> Gauge:
        return cast("Gauge", self._child(name, labels))

    def _time(self, name: str, seconds: float, *labels: str) -> None:
        cast("Histogram | Summary", self._child(name, labels)).observe(seconds)

    def _child(self, name: str, labels: tuple[str, ...]) -> Child:
        """Return the series of these labels, or where there are too many already, the one of all others."""
        children = self._children[name]
        if labels not in children:
            if len(children) >= SERIES_LIMIT:
                labels = (OTHER,) * len(labels)
            family = self._families[name]
            children[labels] = family.labels(*labels) if labels else family
        return children[labels]


class _Lean(Collector):
    """A registry without when each series began, which would be a series more for each."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        """Yield every metric."""
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


class _Readings(Collector):
    """Reads what needs no event."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched

    def collect(self) -> Iterable[Metric]:
        """Yield each reading, but for those of what is not there."""
        for family in FAMILIES:
            if family.read and (value := family.read(self._watched)) is not None:
                metric = Metric(family.full_name.removesuffix("_total"), family.text, family.kind)
                metric.add_sample(family.full_name, {}, value)
                yield metric


def _make(family: Family, registry: CollectorRegistry) -> Child:
    """Return what counts a family."""
    if family.kind == "histogram":
        return Histogram(
            family.name, family.text, family.labels, namespace=PREFIX, registry=registry, buckets=family.buckets
        )
    kinds: dict[str, type[Counter | Gauge | Summary]] = {"counter": Counter, "gauge": Gauge, "summary": Summary}
    return kinds[family.kind](family.name, family.text, family.labels, namespace=PREFIX, registry=registry)
