"""How late a lone line is: from its writing by the child to its reading by the client, on fifty connections at once.

The clients' own wake-ups are in every figure. What each says in its first second does not count, as others still start.
"""

from __future__ import annotations

from ..load import Load
from ..scenario import MILLION, Figures, Metric, Scenario, script
from ..subject import Subject

CONNECTIONS = 50
SIZE = 300
RATES = 100, 50
START = 1.0


def _at_rate(subject: Subject, rate: int, seconds: float) -> Figures:
    skip, lines = int(rate * START), int(rate * (START + seconds))
    words = {"total": CONNECTIONS, "at_once": CONNECTIONS, "lines": lines, "skip": skip, "hold": 1}
    with Load(subject, prompt=script(lines, rate, SIZE, stay=True), **words) as client:
        client.event("started")
        before, first = subject.cpu(), client.clear()
        last = client.event("complete")
        used = subject.cpu().since(before)
        end = client.leave()
    passed = last["lines"] - first["lines"]
    late = end["latency"]
    return {
        f"p50_{rate}": late["p50"], f"p99_{rate}": late["p99"], f"p999_{rate}": late["p999"],
        f"cpu_{rate}": used.living / passed * MILLION, f"server_{rate}": used.server / passed * MILLION,
        f"wrong_{rate}": float(end["lost"] + end["reordered"] + end["other"]),
    }  # fmt: skip


def measure(subject: Subject, quick: bool) -> Figures:
    """Take the figures at each rate."""
    seconds = 1.5 if quick else 5.0
    figures: Figures = {}
    for rate in RATES:
        figures |= _at_rate(subject, rate, seconds)
    return figures


def _metrics(rate: int) -> tuple[Metric, ...]:
    return (
        Metric(f"p50_{rate}", f"p50 at {rate}/s", "µs", plot=True),
        Metric(f"p99_{rate}", f"p99 at {rate}/s", "µs", plot=True),
        Metric(f"p999_{rate}", f"p99.9 at {rate}/s", "µs"),
        Metric(f"cpu_{rate}", f"CPU at {rate}/s", "µs/line"),
        Metric(f"server_{rate}", f"of it the server at {rate}/s", "µs/line"),
        Metric(f"wrong_{rate}", f"lost or out of order at {rate}/s", "lines", ratio=False),
    )


SCENARIO = Scenario(
    "latency",
    "Token deltas of 300 bytes on 50 connections, 100 and 50 a second on each",
    tuple(metric for rate in RATES for metric in _metrics(rate)),
    measure,
    note="From the child's write to the client's read. CPU of ours is server, zygote and guardians together.",
)
