"""How many lines a second pass at full speed, and what each costs: one connection, and twenty."""

from __future__ import annotations

import time

from ..load import Load, Lost
from ..scenario import MILLION, Figures, Metric, Scenario, script
from ..subject import Subject

SIZE = 200
LIMIT = 150
"""Seconds; the slowest peer takes fifty."""
START, START_EACH = 1.0, 0.1
"""Seconds in which all runs must have been started."""


def _pass_lines(subject: Subject, connections: int, lines: int) -> tuple[float, float, int]:
    """Return lines a second, CPU microseconds a line, and the lines that are lost or out of order.

    Each child says its first line at once and the others when all have been started, so no start is in the figures.
    """
    at = time.monotonic_ns() + int((START + START_EACH * connections) * 1e9)
    words = {"total": connections, "at_once": connections, "lines": lines, "hold": 1, "limit": LIMIT}
    with Load(subject, prompt=script(lines, 0, SIZE, stay=True, at=at), **words) as client:
        client.event("started")
        before = subject.cpu()
        if time.monotonic_ns() > at:
            raise Lost("not all runs were started in time")
        client.event("complete")
        used = subject.cpu().since(before)
        end = client.leave()
    passed = connections * (lines - 1)
    return passed / end["span_s"], used.living / passed * MILLION, end["lost"] + end["reordered"] + end["other"]


def measure(subject: Subject, quick: bool) -> Figures:
    """Take the figures; a tenth of the lines goes before, so that what compiles while it runs has done so."""
    lines = 100_000 if quick else 1_000_000
    _pass_lines(subject, 1, lines // 10)
    rate, cpu, wrong = _pass_lines(subject, 1, lines)
    rate_20, cpu_20, wrong_20 = _pass_lines(subject, 20, lines // 20)
    return {
        "rate_1": rate / MILLION, "rate_20": rate_20 / MILLION, "cpu_1": cpu, "cpu_20": cpu_20,
        "wrong": float(wrong + wrong_20),
    }  # fmt: skip


SCENARIO = Scenario(
    "throughput",
    "Lines of 200 bytes at full speed: 1 × 1,000,000 and 20 × 50,000",
    (
        Metric("rate_1", "1 connection", "M lines/s", more=True, plot=True),
        Metric("rate_20", "20 connections", "M lines/s", more=True, plot=True),
        Metric("cpu_1", "CPU, 1 connection", "µs/line"),
        Metric("cpu_20", "CPU, 20 connections", "µs/line"),
        Metric("wrong", "lost or out of order", "lines", ratio=False),
    ),
    measure,
    note="CPU of ours is server, zygote and guardians together.",
)
