"""A soak: random clients, CLIs and faults for minutes on end, and what must be true all the same.

    python benchmarks/soak.py --minutes 30 --seed N [--containment namespace|supervisor] [--clients N] [--json FILE]

A server (`trio-claude serve`, a process of its own) gets as many clients at once as keep the processors busy. Each does
one thing after the other, drawn from `soaking/plays.py`: prompts and sessions, good ends, slow readers, vanishing and
half-open clients, stops, interrupts, approvals, viewers, runs that are left and come back to, floods; CLIs that leave
daemons, crash, hang, say nothing, are stopped or killed. The CLI is the fake one; a share of `--real-share` of what is
done takes the real one before a stub of the Messages API, where it is installed. Beside go HTTP requests and reloads.

The time is cut into phases. Each ends with the clients' leaving (rest), with a SIGTERM (drain), with two (hurry), or
with a SIGKILL (kill) of the server amid its runs; another takes its place on the same state folder, journal and port.
The middle, about half of them, is one server's life. At the end of each phase must be true:

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
from soaking.house import GONE_BOUND, JOURNAL, REST_BOUND, House, Sample, adopt_orphans, busy_seconds, cores
from soaking.plays import PLAY_BOUND, PLAYS, REAL, REAL_AT_ONCE, Kind, Table, Wrong, visit
from soaking.truth import INVARIANTS, Run, Truth, drift
from soaking.wire import Gone

from trio_claude.testing.messages_api import MessagesApi, open_messages_api

CLIENTS_A_CORE = 16
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
HURRY = 0.3
"""Seconds between two SIGTERMs."""
SPOT = 8
"""Ended runs of which one is looked for at once."""
MEMORY = 24 * 1024
GUARDIANS = 1024
"""KiB by which server, and zygote and waiting supervisors on average, may be larger in the last third of a life.

What floods and long histories take at their peak, several at once, malloc keeps; a leak of 5 KiB a run is more."""
DESCRIPTORS = 2
TASKS = 1
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
    """Return how each of so many phases ends; the middle, about half of them, is one life."""
    quarter = count // 4
    restarts = [["kill", *rng.choices(("rest", "drain", "hurry", "kill"), k=quarter - 1)] for _ in range(2)]
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
        """The life that has come to rest the most often."""
        return max(self.loaded, key=lambda life: len(self.rested.get(life, [])), default=1)

    @property
    def mean_load(self) -> float:
        """The share of the processors' time in which they were busy while clients came."""
        return self.busy / max(self.busy + self.idle, 0.001)


@attrs.define(eq=False)
class Soak:
    """One soak of one server.

    Resource handling: `go` owns the server, and all that is below this process; nothing of either is left behind.
    """

    options: argparse.Namespace
    house: House
    truth: Truth
    real: trio.CapacityLimiter | None
    """The slots of real CLIs; None where there is none."""
    api: MessagesApi
    watched: Watched = attrs.Factory(Watched)
    ended: Counter[str] = attrs.Factory(Counter)
    """Phases by how they ended."""
    beside: Counter[str] = attrs.Factory(Counter)
    """HTTP requests and reloads."""
    _closing: trio.Event = attrs.Factory(trio.Event)
    _numbers: int = 0
    _latest: str = ""

    async def go(self) -> None:
        """Play all phases."""
        seconds = 60 * self.options.minutes
        hows = endings(max(PHASES, round(seconds / PHASE)), random.Random(self.options.seed))
        began, tail = trio.current_time(), LEAST
        async with trio.open_nursery() as nursery:
            await self.house.start(nursery)
            try:
                for number, how in enumerate(hows):
                    until = max(trio.current_time() + LEAST, began + seconds * (number + 1) / len(hows) - tail)
                    await self._phase(number, how, until, nursery if number < len(hows) - 1 else None)
                    tail = trio.current_time() - until
                    self._tell(number, how)
                    if not self._lives():
                        break
            finally:
                await self.house.close()
                nursery.cancel_scope.cancel()

    def _lives(self) -> bool:
        """Return whether the server lives, or was told to go."""
        status = self.house.process.poll()
        alive = status is None or self.house.falling
        return self.truth.check("server", holds=alive, seen=f"died with {status}: {self.house.complaint}")

    def _tell(self, number: int, how: str) -> None:
        """Say how far it is."""
        self.ended[how] += 1
        if not self.options.quiet:
            so_far = f"{self.truth.plays.total()} plays, {self.truth.wrong.total()} violations"
            print(f"phase {number} ({how}): {so_far}; the last to leave: {self._latest}", file=sys.stderr, flush=True)
            for one in (one for one in self.truth.violations if one.phase == number):
                print(f"  {one}", file=sys.stderr, flush=True)

    def hear(self, event: dict[str, Any]) -> None:
        """Take an event of the server's log; look for what is left of a run now and then."""
        self.truth.hear(event)
        if event["event"] == "RunEnded" and self.truth.count["RunEnded"] % SPOT == 0 and not self.house.falling:
            left = self.house.names(self.house.left_of(event["run"]))
            run = self.truth.runs.get(event["meta"])
            self.truth.check("processes", holds=not left, seen=f"left when its end was told: {left}", run=run)

    # a phase

    async def _phase(self, number: int, how: str, until: float, lives: trio.Nursery | None) -> None:
        """Have clients come until a time, end the phase, and judge it; the next life is one of `lives`."""
        self.truth.begin(number)
        self.api.requests.clear()
        self._closing = trio.Event()
        async with trio.open_nursery() as nursery:
            for worker in range(self.options.clients):
                nursery.start_soon(self._work, random.Random(f"{self.options.seed}-{number}-{worker}"))
            beside = random.Random(f"{self.options.seed}-{number}")
            nursery.start_soon(self._visit, beside)
            nursery.start_soon(self._reload, beside)
            nursery.start_soon(self._sample)
            await self._measure_load(until)
            self._closing.set()
            if how != "rest" and self._lives():
                await self._fall(how)
                if lives:
                    await self.house.start(lives)
        await self._rest(how, lives)

    async def _measure_load(self, until: float) -> None:
        """Wait until a time; see how busy the processors are meanwhile."""
        busy, idle = busy_seconds()
        await trio.sleep_until(until)
        after = busy_seconds()
        self.watched.busy += after[0] - busy
        self.watched.idle += after[1] - idle
        self.watched.loads.append(os.getloadavg()[0])

    async def _fall(self, how: str) -> None:
        """End the server amid its runs; nothing may be left of them before there is another."""
        if how == "kill":
            self.truth.killed = time.monotonic()
            self.house.fall(signal.SIGKILL)
            await self.house.process.wait()
        else:
            self.house.fall(signal.SIGTERM)
            if how == "hurry":
                await trio.sleep(HURRY)
                self.house.fall(signal.SIGTERM)
            status = await self.house.wait_end()
            self.truth.check("server", holds=status == 0, seen=f"exit status after {how}: {status}")
        left = await self.house.left_behind(GONE_BOUND)
        self.truth.check("processes", holds=not left, seen=f"left after {how}: {left}")
        with trio.move_on_after(GONE_BOUND):
            await self.house.deaf.wait()

    async def _rest(self, how: str, lives: trio.Nursery | None) -> None:
        """Look at what is left when all clients are gone, and judge the phase's runs."""
        left = await self.house.left_behind(REST_BOUND)
        self.truth.check("processes", holds=not left, seen=f"left when all clients were gone ({how}): {left}")
        await self.truth.settle()
        if lives:
            folders = self.house.folders()
            self.truth.check("folders", holds=not folders, seen=f"folders of runs are left: {folders}")
        if how == "rest" and (sample := self.house.sample()):
            self.watched.rested.setdefault(self.house.life, []).append(sample)
        await trio.to_thread.run_sync(self.truth.judge)

    # who comes

    async def _work(self, rng: random.Random) -> None:
        """Be one client after the other."""
        while not self._closing.is_set():
            await self._play(self._draw(rng), f"{rng.getrandbits(64):016x}")

    def _draw(self, rng: random.Random) -> Kind:
        real = self.real is not None and rng.random() < self.options.real_share
        kinds = [kind for kind in PLAYS.values() if kind.real == real]
        return rng.choices(kinds, [kind.weight for kind in kinds])[0]

    async def _play(self, kind: Kind, seed: str) -> None:
        """Play one play; note where it is not answered rightly."""
        self._numbers += 1
        run = Run(f"SOAK-{self.truth.phase}-{self._numbers}", kind.name, seed, kind.door)
        self.truth.runs[run.meta] = run
        began = trio.current_time()
        table = Table(self.house, self.truth, random.Random(seed), run, self.real or trio.CapacityLimiter(1))
        try:
            with trio.fail_after(PLAY_BOUND):
                await kind.how(table)
        except Exception as error:  # whatever a play raises is judged, and the others go on
            faults = leaves(error)
            if not (table.fell and all(isinstance(fault, EXPECTED) for fault in faults)):
                self.truth.violate("answers", "; ".join(map(repr, faults)), run)
        self.truth.checked["answers"] += 1
        self._latest = f"{kind.name}, after {trio.current_time() - began:.1f} s"

    async def _visit(self, rng: random.Random) -> None:
        """Make HTTP requests."""
        while not self._closing.is_set():
            await visit(self.house, self.truth, rng)
            self.beside["requests"] += 1
            await trio.sleep(rng.expovariate(1 / VISIT_PAUSE))

    async def _reload(self, rng: random.Random) -> None:
        """Have the server read its settings anew."""
        while True:
            with trio.move_on_after(rng.expovariate(1 / RELOAD_PAUSE)):
                await self._closing.wait()
                return
            self.house.process.send_signal(signal.SIGHUP)
            self.beside["reloads"] += 1

    async def _sample(self) -> None:
        """Look at the server's size."""
        while not self._closing.is_set():
            if sample := self.house.sample():
                self.watched.loaded.setdefault(self.house.life, []).append(sample)
            await trio.sleep(SAMPLE_PAUSE)


EXPECTED = (Wrong, Gone, OSError, IndexError, trio.BrokenResourceError, trio.TooSlowError)
"""What a play may raise whose server has gone down; `IndexError` is of an answer without a head."""


def leaves(error: BaseException) -> list[BaseException]:
    """Return the exceptions of a group, however deep."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in leaves(part)]
    return [error]


# -- what came of it --------------------------------------------------------------------------------------------------


@attrs.frozen
class Growth:
    """How much larger something was in the last third of the long life than in the first, and how much it may be."""

    name: str
    invariant: str
    first: float
    last: float
    bound: float

    @property
    def measured(self) -> bool:
        """Whether there were enough samples."""
        return not math.isnan(self.first)

    @property
    def good(self) -> bool:
        """Whether it is within its bound."""
        return not self.measured or self.last - self.first <= self.bound


def growths(watched: Watched) -> list[Growth]:
    """Return the growth of all that is looked at."""
    life = watched.longest
    loaded, rested = watched.loaded.get(life, []), watched.rested.get(life, [])
    return [
        Growth("server, KiB", "memory", *drift([one.server for one in loaded]), MEMORY),
        Growth("server at rest, KiB", "memory", *drift([one.server for one in rested]), MEMORY),
        Growth("a guardian, KiB", "memory", *drift([one.guardians for one in loaded]), GUARDIANS),
        Growth("descriptors at rest", "descriptors", *drift([one.descriptors for one in rested]), DESCRIPTORS),
        Growth("Trio tasks at rest", "tasks", *drift([one.tasks for one in rested]), TASKS),
    ]


def judge_growth(truth: Truth, found: list[Growth]) -> None:
    """Hold growth against its bounds."""
    for one in found:
        if one.measured:
            said = f"{one.name}: {one.first:.0f} in the first third, {one.last:.0f} in the last, bound {one.bound:g}"
            truth.check(one.invariant, holds=one.good, seen=said)


def report(soak: Soak, found: list[Growth], seconds: float) -> str:
    """Return what a person reads."""
    truth, watched = soak.truth, soak.watched
    checks = [[name, f"{truth.checked[name]}", f"{truth.wrong[name]}"] for name in INVARIANTS]
    sizes = [[one.name, f"{one.first:.0f}", f"{one.last:.0f}", f"+{one.bound:g}"] for one in found]
    said = [
        markdown(["invariant", "checks", "violations"], checks),
        markdown([f"life {watched.longest} of {soak.house.life}", "first third", "last third", "bound"], sizes),
        f"containment {truth.mode}; phases: {dict(soak.ended)}; {truth.plays.total()} plays, "
        f"{truth.count['RunStarted']} runs, {truth.count['lines']} lines, {truth.count['gaps']} gaps told to viewers, "
        f"{soak.beside['requests']} requests, {soak.beside['reloads']} reloads, "
        f"{truth.count['GuardianLost']} zygotes lost",
        f"ends: {dict(truth.reasons.most_common())}",
        f"plays: {dict(truth.plays.most_common())}",
        f"{seconds:.0f} s; processors busy for {100 * watched.mean_load:.0f} % of the time in which clients came, "
        f"load average {sum(watched.loads) / len(watched.loads):.1f}",
    ]  # fmt: skip
    said += [f"VIOLATION seed {soak.options.seed}, {one}" for one in list(truth.violations)[:SHOWN]]
    return "\n\n".join(said)


def as_json(soak: Soak, found: list[Growth], seconds: float) -> dict[str, Any]:
    """Return everything, for a file."""
    truth, watched = soak.truth, soak.watched
    return {
        "seed": soak.options.seed, "machine": machine(), "seconds": seconds, "mode": truth.mode,
        "clients": soak.options.clients, "real": soak.real is not None, "phases": dict(soak.ended),
        "checked": dict(truth.checked), "wrong": dict(truth.wrong), "events": dict(truth.count),
        "plays": dict(truth.plays), "ends": dict(truth.reasons), "beside": dict(soak.beside),
        "mean_load": watched.mean_load, "growth": [attrs.asdict(one) for one in found],
        "loaded": {life: [attrs.astuple(one) for one in samples] for life, samples in watched.loaded.items()},
        "rested": {life: [attrs.astuple(one) for one in samples] for life, samples in watched.rested.items()},
        "violations": [attrs.asdict(one) for one in truth.violations],
    }  # fmt: skip


# -- the whole --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def open_soak(options: argparse.Namespace) -> AsyncIterator[Soak]:
    """Open folders, the stub of the Messages API and a program that is either CLI."""
    real = real_cli() if options.real_share else None
    with tempfile.TemporaryDirectory(prefix="tcs-", dir="/tmp") as name:
        folder = Path(name)
        async with open_messages_api() as api:
            environ = {
                "PATH": os.environ["PATH"], "HOME": name, "CLAUDE_CONFIG_DIR": f"{name}/config", **QUIET,
                "ANTHROPIC_BASE_URL": api.url, "ANTHROPIC_API_KEY": "dummy",
            }  # fmt: skip
            words = [f"--{name}={value}" for name, value in SERVER.items()]
            words += [f"--containment={options.containment}", f"--cli={either_cli(folder, real)}", f"--cwd={name}"]
            words += [f"--max-runs={max(2, options.clients)}", f"--journal=sqlite:{folder / JOURNAL}"]
            house = House(folder, tuple(words), environ)
            slots = trio.CapacityLimiter(REAL_AT_ONCE) if real else None
            soak = Soak(options, house, Truth(house.journal), slots, api)
            house.hear = soak.hear
            yield soak


def either_cli(folder: Path, real: Path | None) -> Path:
    """Write a program that is the real CLI where its model is `REAL`, else the fake one."""
    program = folder / "either"
    lines = [f'case " $* " in *" --model={REAL} "*) exec "{real}" "$@";; esac'] if real else []
    program.write_text("\n".join(["#!/bin/sh", *lines, f'exec "{fake_program(folder)}" "$@"', ""]))
    program.chmod(0o755)
    return program


async def measure(options: argparse.Namespace) -> int:
    """Soak, print, and return the exit status."""
    began = time.monotonic()
    adopt_orphans()
    async with open_soak(options) as soak, until_signal():
        if soak.real is None:
            print("no real CLI takes part")
        await soak.go()
        found = growths(soak.watched)
        judge_growth(soak.truth, found)
        seconds = time.monotonic() - began
        print(report(soak, found, seconds))
        if options.json:
            options.json.write_text(json.dumps(as_json(soak, found, seconds), indent=1))
        return 1 if soak.truth.wrong.total() else 0


def arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", default=secrets.token_hex(4))
    parser.add_argument("--containment", choices=("auto", "namespace", "supervisor"), default="auto")
    parser.add_argument("--clients", type=int, default=CLIENTS_A_CORE * cores(), help="clients at once")
    parser.add_argument("--real-share", type=float, default=0.02, help="share of what is done with the real CLI")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    parser.add_argument("--quiet", action="store_true", help="say nothing of single phases")
    return parser.parse_args()


if __name__ == "__main__":
    chosen = arguments()
    print(f"soak: seed {chosen.seed}, {chosen.minutes:g} minutes, {chosen.clients} clients; {machine()}", flush=True)
    sys.exit(trio.run(measure, chosen))
