"""What a connection costs as there are more of them: ten to a thousand, started at a bounded rate, two lines a second.

A fresh set of connections for each number, on the same server; the first, of ten, is not counted.
"""

from __future__ import annotations

import time

from ..load import Load
from ..scenario import MILLION, Figures, Metric, Scenario, script
from ..subject import Subject

COUNTS = 10, 100, 300, 1000
RAMP = 50
RATE = 2
WINDOW = 5.0
SETTLE = 1.0


def _crowd(subject: Subject, count: int, window: float) -> Figures:
    memory, before = subject.memory(), subject.cpu()
    words = {"total": count, "at_once": count, "ramp": RAMP, "lines": 1_000_000, "hold": 1}
    with Load(subject, prompt=script(1_000_000, RATE, 300), limit=count / RAMP * 3 + 60, **words) as client:
        client.event("started")
        started, spoken = subject.cpu(), client.look()
        grown = subject.memory()
        time.sleep(SETTLE)
        quiet, first = subject.cpu(), client.clear()
        time.sleep(window)
        client.look()
        after, last = subject.cpu(), client.look()
        end = client.leave()
    line = after.since(quiet).living / (last["lines"] - first["lines"])
    return {
        f"line_{count}": line * MILLION,
        f"start_{count}": (started.since(before).living - line * spoken["lines"]) / count * 1000,
        f"first_p99_{count}": end["to_first"]["p99"] / 1000,
        f"late_p99_{count}": end["latency"]["p99"] / 1000,
        f"server_{count}": (grown.own - memory.own) / count,
    }


def measure(subject: Subject, quick: bool) -> Figures:
    """Take the figures for each number of connections."""
    window = 2.0 if quick else WINDOW
    figures: Figures = {}
    _crowd(subject, COUNTS[0], 1.0)
    for count in COUNTS[:2] if quick else COUNTS:
        figures |= _crowd(subject, count, window)
        time.sleep(1.0)
    return figures


def _metrics(count: int) -> tuple[Metric, ...]:
    return (
        Metric(f"line_{count}", f"CPU, {count} connections", "µs/line", plot=count == COUNTS[-1]),
        Metric(f"start_{count}", f"CPU to start one of {count}", "ms"),
        Metric(f"first_p99_{count}", f"first line p99, {count}", "ms"),
        Metric(f"late_p99_{count}", f"line p99, {count}", "ms"),
        Metric(f"server_{count}", f"server memory, {count}", "KiB/connection"),
    )


SCENARIO = Scenario(
    "many",
    "10 to 1,000 connections, started at 50 a second, two lines of 300 bytes a second on each",
    tuple(metric for count in COUNTS for metric in _metrics(count)),
    measure,
    peers=("trio-claude", "supervisor", "c", "bun-corked", "websockets", "stock"),
    note="CPU to start is all but the living CLIs', until all had a line, less what their lines cost; a line's CPU and "
    "lateness are those of five seconds behind it.",
)
