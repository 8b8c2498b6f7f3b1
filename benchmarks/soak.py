"""A soak: random clients, CLIs and faults for minutes on end, and what must be true all the same.

    python benchmarks/soak.py --minutes 30 --seed N [--containment namespace|supervisor] [--clients N] [--json FILE]

A server (`trio-claude serve`, a process of its own) gets as many clients at once as keep the processors busy. Each does
one thing after the other, drawn from `soaking/plays.py`: prompts and sessions, good ends, slow readers, vanishing and
half-open clients, stops, interrupts, approvals, viewers, runs that are left and come back to, floods; CLIs that leave
daemons, crash, hang, say nothing, are stopped or killed. The CLI is the fake one; a share of `--real-share` of what is
done takes the real one before a stub of the Messages API, where it is installed. Beside go HTTP requests and reloads.

The time is cut into phases. Each ends with the clients' leaving, with a SIGTERM, or with a SIGKILL of the server amid
its runs; another takes its place on the same state folder, journal and port. The middle half of all phases is one
server's life. At the end of each phase must be true:

* processes: nothing of any run is left. This program is the parent of all that is orphaned, so nothing can hide. A run
  out of `SPOT` is also looked for by its mark at the moment its end is told.
* lines: no line is lost, comes twice or in another order; the journal has what each client saw, up to where it left.
* ends: each run has one start and one end in the log, one row and one counted end in the journal.
* receipts: each end has one, the same in log, journal and frame, and it says that 0 processes survived.
* server: it does not crash, and exits with status 0 after a drain. Of one that was killed the runs are `node-lost`.
* memory, descriptors, tasks: in the long life the medians of the last third are at most so much above those of the
  first: `MEMORY`, `GUARDIANS`, `DESCRIPTORS`, `TASKS`.

The exit status is 1 on any violation. The seed decides what is done, not when: processes keep their own time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import secrets
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio
from chaos import markdown, until_signal
from common import machine

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from harness import QUIET, fake_program, real_cli
from soaking.house import GONE_BOUND, REST_BOUND, House, Sample, adopt_orphans, busy_seconds, cores
from soaking.plays import PLAY_BOUND, PLAYS, REAL, REAL_AT_ONCE, Kind, Table, Wrong, visit
from soaking.truth import INVARIANTS, Run, Truth, drift
from soaking.wire import Gone

from trio_claude.testing.messages_api import open_messages_api

CLIENTS_A_CORE = 8
"""Clients at once for each processor: what keeps it busy, most of them waiting for something."""
PHASE = 25.0
"""Seconds of a phase at most; short soaks have shorter ones."""
PHASES = 6
"""Phases at least."""
LEAST = 1.0
"""Seconds of a phase in which clients come, at least."""
VISIT_PAUSE = 0.25
"""Seconds between two HTTP requests, on average."""
RELOAD_PAUSE = 3.0
"""Seconds between two reloads, on average."""
SAMPLE_PAUSE = 0.5
SPOT = 8
"""Ended runs of which one is looked for at once."""
MEMORY = 24 * 1024
GUARDIANS = 1024
"""KiB by which server, and zygote and waiting supervisors on average, may be larger in the last third of a life."""
DESCRIPTORS = 4
TASKS = 2
"""Descriptors and Trio tasks, both at rest, that there may be more of."""
JOURNAL_BYTES = 256 * 1024 * 1024
"""Of lines that the journal keeps: more than a phase has, less than a soak."""
SHOWN = 40
"""Violations that are printed."""
SERVER = {
    "drain-timeout": 1.5, "result-grace": 0.5, "approval-timeout": 1.0, "interrupt-grace": 5, "ping-interval": 3,
    "ping-timeout": 4, "send-timeout": 10, "grace-max": 60, "queue-timeout": 50, "stall-notice": 1,
    "replay-bytes": 64 * 1024, "journal-bytes": JOURNAL_BYTES,
}  # fmt: skip
"""The server's settings that are not the defaults: its clocks are short, so that they run out often."""


def endings(count: int, rng: random.Random) -> list[str]:
    """Return how each of so many phases ends; the middle half is one life."""
    quarter = count // 4
    restarts = [["kill", *rng.choices(("rest", "drain", "kill"), k=quarter - 1)] for _ in range(2)]
    for some in restarts:
        rng.shuffle(some)
    before, after = restarts
    if before[-1] == "rest":
        before[-1] = "drain"
    middle = ["rest"] * (count - 2 * quarter - 2)
    return [*before, *middle, "drain", *after, "drain"]


@attrs.define
class Watched:
    """What was seen of the server's size: in each life under load, and at rest."""

    loaded: dict[int, list[Sample]] = attrs.Factory(dict)
    rested: dict[int, list[Sample]] = attrs.Factory(dict)
    busy: float = 0.0
    idle: float = 0.0
    loads: list[float] = attrs.Factory(list)

    @property
    def longest(self) -> int:
        """The life of which there are the most samples."""
        return max(self.loaded, key=lambda life: len(self.loaded[life]))

    @property
    def mean_load(self) -> float:
        """The share of the processors' time in which they were busy while clients came."""
        return self.busy / max(self.busy + self.idle, 0.001)


@attrs.define(eq=False)
class Soak:
    """One soak of one server."""

    options: argparse.Namespace
    house: House
    truth: Truth
    real: bool
    rng: random.Random
    watched: Watched = attrs.Factory(Watched)
    played: Counter[str] = attrs.Factory(Counter)
    ended: Counter[str] = attrs.Factory(Counter)
    """Phases by how they ended."""
    runs: int = 0
    requests: int = 0
    reloads: int = 0
    _closing: bool = False
    _limiter: trio.CapacityLimiter = attrs.Factory(lambda: trio.CapacityLimiter(REAL_AT_ONCE))

    def hear(self, event: dict[str, Any]) -> None:
        """Take an event of the server's log; look for what is left of a run now and then."""
        self.truth.hear(event)
        if event["event"] == "RunEnded" and self.rng.randrange(SPOT) == 0 and not self.house.falling:
            run = self.truth.runs.get(event["meta"])
            left = self.house.names(self.house.left_of(event["run"]))
            self.truth.check("processes", holds=not left, seen=f"left when told: {left}", run=run)

    async def go(self) -> None:
        """Play all phases."""
        seconds = 60 * self.options.minutes
        hows = endings(max(PHASES, round(seconds / PHASE)), self.rng)
        began, tail = trio.current_time(), 1.0
        async with trio.open_nursery() as nursery:
            await self.house.start(nursery)
            try:
                for number, how in enumerate(hows):
                    until = began + seconds * (number + 1) / len(hows)
                    await self.load(number, max(trio.current_time() + LEAST, until - tail))
                    closed = trio.current_time()
                    await self.end_phase(how, nursery, last=number == len(hows) - 1)
                    tail = trio.current_time() - closed
                    self.tell(number, how)
            finally:
                await self.house.close()
                nursery.cancel_scope.cancel()

    def tell(self, number: int, how: str) -> None:
        """Say how far it is."""
        if not self.options.quiet:
            wrong = self.truth.wrong.total()
            print(f"phase {number} {how}: {self.runs} runs, {wrong} violations", file=sys.stderr, flush=True)

    # a phase

    async def load(self, number: int, until: float) -> None:
        """Have clients come until a time; those that are there stay."""
        self.truth.begin(number)
        self._closing = False
        self._before = busy_seconds()
        self._clients = trio.lowlevel.current_task()
        self._until = until

    async def end_phase(self, how: str, nursery: trio.Nursery, *, last: bool) -> None:
        """Let the clients play, end the phase as it is to end, and judge it."""
