"""Connect, prompt, one line, close: how many a second with eight at once, how long each takes, and its CPU time.

The CPU time of a connection is all that was used below the server, its children included, less what the child needs on
its own, which is measured beside; so the starting of the child is in it, and our guardians are.
"""

from __future__ import annotations

import resource
import subprocess
from pathlib import Path

from ..load import Load
from ..scenario import Figures, Metric, Scenario, script
from ..subject import Subject

AT_ONCE = 8
ALONE = 200
WARM_UP = 40
LINE = b'{"type":"user","message":{"role":"user","content":"1 0 200"}}\n'


def _cli_alone(cli: Path) -> float:
    """Return the CPU seconds of one child that nobody serves."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(ALONE):
        subprocess.run([str(cli)], input=LINE, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / ALONE


def _connect_and_close(subject: Subject, count: int) -> dict[str, dict[str, float]]:
    with Load(subject, total=count, at_once=AT_ONCE, prompt=script(1, 0, 200)) as client:
        return client.end()


def measure(subject: Subject, quick: bool) -> Figures:
    """Take the figures."""
    count = 100 if quick else 1000
    alone = _cli_alone(subject.cli)
    _connect_and_close(subject, WARM_UP)
    before = subject.cpu()
    end = _connect_and_close(subject, count)
    used = subject.cpu().since(before)
    took, wall = end["to_close"], float(str(end["wall_s"]))
    return {
        "rate": count / wall, "p50": took["p50"] / 1000, "p99": took["p99"] / 1000,
        "cpu": (used.whole / count - alone) * 1000,
        "server": used.server / count * 1000,
        "zygote": used.zygote / count * 1000 if subject.peer.ours else None,
        "guardians": ((used.guardians + used.reaped) / count - alone) * 1000 if subject.peer.ours else None,
        "alone": alone * 1000,
        "wrong": float(str(end["lost"])) + float(str(end["other"])),
    }  # fmt: skip


SCENARIO = Scenario(
    "churn",
    "Connect → one line → close, eight at once",
    (
        Metric("rate", "rate", "per s", more=True, plot=True),
        Metric("p50", "p50", "ms", plot=True),
        Metric("p99", "p99", "ms"),
        Metric("cpu", "CPU without the CLI's own", "ms/connection", plot=True),
        Metric("server", "of it the server", "ms/connection"),
        Metric("zygote", "of it the zygote", "ms/connection", ratio=False),
        Metric("guardians", "of it the guardians", "ms/connection", ratio=False),
        Metric("alone", "the CLI's own", "ms/connection", ratio=False),
        Metric("wrong", "lost", "lines", ratio=False),
    ),
    measure,
)
