"""What a run costs in memory that says nothing: all in, the server's own, and the guardians'."""

from __future__ import annotations

import time

from ..load import Load
from ..scenario import Figures, Metric, Scenario, script
from ..subject import Subject

RAMP = 100
SETTLE = 2.0


def measure(subject: Subject, quick: bool) -> Figures:
    """Take the figures; one run goes before, so that what is loaded late is loaded."""
    count = 50 if quick else 500
    with Load(subject, prompt=script(1, 0, 300)) as client:
        client.end()
    before = subject.memory()
    words = {"total": count, "at_once": count, "ramp": RAMP, "hold": 1, "limit": 90}
    with Load(subject, prompt=script(1, 0, 300, stay=True), **words) as client:
        client.event("complete")
        time.sleep(SETTLE)
        after = subject.memory()
        client.leave()
    ours = subject.peer.ours
    return {
        "all": (after.all - before.all) / count,
        "server": (after.own - before.own) / count,
        "guardians": (after.guardians + after.zygote - before.guardians - before.zygote) / count if ours else None,
        "base": before.all / 1024,
    }


SCENARIO = Scenario(
    "idle",
    "500 runs that say nothing: memory of each, beside the CLI",
    (
        Metric("all", "all in", "KiB/run", plot=True),
        Metric("server", "the server's own", "KiB/run", plot=True),
        Metric("guardians", "zygote and guardians", "KiB/run", ratio=False),
        Metric("base", "all without a run", "MiB", ratio=False),
    ),
    measure,
    note="Shares (PSS) from /proc; the server's own is without the pages of files, which are shared out anew with each "
    "process. What the kernel holds for sockets and pipes is in no figure.",
)
