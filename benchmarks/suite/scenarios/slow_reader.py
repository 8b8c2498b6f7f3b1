"""A client that stops reading while the child has 1 GB to say: what the server takes, keeps, and loses.

The client reads one line, then nothing for ten seconds, and then all the rest.
"""

from __future__ import annotations

from .. import processes
from ..load import Load, Lost
from ..scenario import Figures, Metric, Scenario, script
from ..subject import Subject

SIZE = 3999
LOOK = 0.2
MIB = 1024.0


def _taken(subject: Subject, whole: int) -> float:
    """Return how many bytes the child has got rid of; one that has ended has said all."""
    clis = subject.clis()
    try:
        return float(processes.written(clis[0].pid)) if clis else float(whole)
    except OSError:
        return float(whole)


def measure(subject: Subject, quick: bool) -> Figures:
    """Take the figures."""
    lines, pause = (50_000, 3) if quick else (250_000, 10)
    base = peak = processes.rss(subject.pid)
    taken = 0.0
    with Load(subject, prompt=script(lines, 0, SIZE), lines=lines, pause=pause, limit=150) as client:
        client.event("paused")
        while (event := client.poll(LOOK)) is None or event["event"] != "resumed":
            peak = max(peak, processes.rss(subject.pid))
            taken = _taken(subject, lines * (SIZE + 1))
            if event and event["event"] == "end":
                raise Lost("the connection did not outlive the pause")
        end = client.event("end")
    return {
        "growth": (peak - base) / MIB, "taken": taken / MIB / MIB, "lost": float(end["lost"]),
        "lost_share": 100.0 * end["lost"] / lines, "wrong": float(end["reordered"] + end["other"]),
        "torn": float(end["codes"].get("1006", 0)),
    }  # fmt: skip


SCENARIO = Scenario(
    "slow_reader",
    "A client that reads nothing for 10 s while the CLI has 1 GB to say (250,000 lines of 4 kB), and then reads on",
    (
        Metric("growth", "server memory, growth", "MiB", plot=True),
        Metric("taken", "taken from the CLI meanwhile", "MiB"),
        Metric("lost", "lines lost", "lines", ratio=False),
        Metric("lost_share", "lines lost", "%", ratio=False),
        Metric("wrong", "out of order, or none of the CLI's", "lines", ratio=False),
        Metric("torn", "connections that broke without a close", ratio=False),
    ),
    measure,
    note="Resident memory of the server process at its highest, looked at five times a second.",
)
