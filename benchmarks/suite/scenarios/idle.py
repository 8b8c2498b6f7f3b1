"""What a run costs in memory that says nothing: the server's share, the zygote's, and the guardians'."""

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
    server, zygote = after.server - before.server, after.zygote - before.zygote
    guardians = after.guardians - before.guardians
    return {
        "all": (server + zygote + guardians) / count,
        "server": server / count,
        "zygote": zygote / count if subject.peer.ours else None,
        "guardians": guardians / count if subject.peer.ours else None,
        "base": before.server / 1024,
    }


SCENARIO = Scenario(
    "idle",
    "500 runs that say nothing: memory of each, beside the CLI",
    (
        Metric("all", "all in", "KiB/run", plot=True),
        Metric("server", "the server's share", "KiB/run", plot=True),
        Metric("zygote", "the zygote's share", "KiB/run", ratio=False),
        Metric("guardians", "guardians", "KiB/run", ratio=False),
        Metric("base", "the server without a run", "MiB", ratio=False),
    ),
    measure,
    note="PSS, from /proc; what the kernel holds for sockets and pipes is in no figure.",
)
