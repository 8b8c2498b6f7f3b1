"""What history in a Redis costs: the relay without a journal, with one in SQLite and with one in Redis, side by side.

    python benchmarks/shared_history.py [--rounds 5] [--quick]

Lines of 200 bytes as `observing.py` has them: at full speed, on one connection and on twenty, and lone ones, on twenty
connections, 100 a second each; the CPU time of the server goes until all are stored. A round in which a line was not
stored is void, and said. Redis runs on a socket beside it, writes to its disk once a second, and holds nothing when a
round begins; its own CPU time is told too.

The CLI is fake and in C. Asked: with Redis no less than 0.7 of the rate without. It needs redis-server and a C
compiler.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
from common import machine
from history import SIZE, STORE_BOUND, pass_lines
from suite.load import Lost
from suite.native import compiled
from suite.peers import BY_NAME, OURS, Peer
from suite.processes import read
from suite.report import aligned, table
from suite.runner import Outcome, Runner
from suite.scenario import MILLION, Figures, Metric, Scenario
from suite.subject import Subject

ASKED = 0.7
"""How much of the rate without there must be."""
LINES = 300_000
CONNECTIONS = 20
RATE = 100
SECONDS = 3
REDIS = "redis"
SETTINGS = (
    "--port", "0", "--unixsocket", "redis.sock", "--save", "", "--appendonly", "yes", "--appendfsync", "everysec",
)  # fmt: skip
STORED = "local n = 0 for _, run in ipairs(redis.call('ZREVRANGE', 'trio-claude:runs', 0, ARGV[1] - 1)) do\n" \
    "n = n + redis.call('HGET', 'trio-claude:run:' .. run, 'stored') end return n"  # fmt: skip


@attrs.frozen
class Redis:
    """A Redis that runs."""

    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        """Where it is."""
        return f"unix://{self.folder}/redis.sock"

    @property
    def cpu(self) -> float:
        """CPU seconds that it has used."""
        return read(self.process.pid).cpu

    def call(self, *words: str) -> str:
        """Return what it answers."""
        line = ["redis-cli", "-s", str(self.folder / "redis.sock"), *words]
        return subprocess.run(line, capture_output=True, check=True, text=True).stdout.strip()

    def await_stored(self, runs: int, lines: int) -> None:
        """Wait until so many lines of the latest runs are stored. Raises Lost."""
        until = time.monotonic() + STORE_BOUND
        while (stored := int(self.call("EVAL", STORED, "0", str(runs)))) != lines:
            if time.monotonic() > until:
                raise Lost(f"void: {stored} of {lines} lines stored")
            time.sleep(0.02)  # Redis does not tell what another has stored; STORE_BOUND ends it


@contextmanager
def running_redis() -> Iterator[Redis]:
    """Run a Redis."""
    with tempfile.TemporaryDirectory(prefix="tcb-") as folder:
        process = subprocess.Popen(["redis-server", *SETTINGS], cwd=folder, stdout=subprocess.DEVNULL)
        redis = Redis(Path(folder), process)
        try:
            until = time.monotonic() + STORE_BOUND
            while True:
                with contextlib.suppress(subprocess.CalledProcessError):
                    redis.call("PING")
                    break
                if time.monotonic() > until:
                    raise Lost("void: Redis does not answer")
                time.sleep(0.02)  # Redis does not tell that it serves; STORE_BOUND ends it
            yield redis
        finally:
            process.kill()
            process.wait()


def _peers(redis: Redis) -> dict[str, Peer]:
    ours = BY_NAME[OURS]

    def peer(name: str, title: str, *words: str) -> Peer:
        return attrs.evolve(
            ours, name=name, title=title, command=lambda native, cli, port: [*ours.command(native, cli, port), *words]
        )

    peers = (
        peer(OURS, "without history"),
        peer("history", "in SQLite", "--journal", "sqlite:journal.db"),
        peer(REDIS, "in Redis", "--redis", redis.url, "--journal", "auto"),
    )
    return {one.name: one for one in peers}


@attrs.frozen
class Measure:
    """Takes the figures of a peer."""

    redis: Redis

    def __call__(self, subject: Subject, quick: bool) -> Figures:
        """Take them; some lines go before."""
        share = 10 if quick else 1
        self._pass(subject, 1, LINES // 6 // share)
        one = [self._pass(subject, 1, LINES // share) for _ in range(1 if quick else 3)]
        twenty = self._pass(subject, CONNECTIONS, LINES // CONNECTIONS // share)
        lone = self._pass(subject, CONNECTIONS, RATE * SECONDS, RATE)
        self.redis.call("FLUSHALL")
        return {
            "rate_1": statistics.median(rate for rate, _, _ in one), "rate_20": twenty[0],
            "cpu_1": statistics.median(cpu for _, cpu, _ in one), "cpu_20": twenty[1], "lone": lone[1],
            "redis_1": statistics.median(its for _, _, its in one), "redis_20": twenty[2], "redis_lone": lone[2],
        }  # fmt: skip

    def _pass(self, subject: Subject, connections: int, lines: int, rate: float = 0) -> tuple[float, float, float]:
        """Return million lines a second, and CPU microseconds of the server and of Redis a line."""
        of_redis = self.redis.cpu
        passed, cpu = pass_lines(subject, connections, lines, rate)
        if subject.peer.name == REDIS:
            ours = subject.cpu()
            self.redis.await_stored(connections, connections * lines)
            cpu += subject.cpu().since(ours).server / (connections * lines) * MILLION
        return passed, cpu, (self.redis.cpu - of_redis) / (connections * lines) * MILLION


def _scenario(redis: Redis) -> Scenario:
    return Scenario(
        "shared_history",
        f"Bulk 1 x {LINES:,} and {CONNECTIONS} x {LINES // CONNECTIONS:,} lines of {SIZE} bytes; "
        f"lone lines {CONNECTIONS} x {RATE} a second",
        (
            Metric("rate_1", "bulk, 1 connection", "M lines/s", more=True),
            Metric("rate_20", f"bulk, {CONNECTIONS} connections", "M lines/s", more=True),
            Metric("cpu_1", "server CPU, 1 connection", "µs/line"),
            Metric("cpu_20", f"server CPU, {CONNECTIONS} connections", "µs/line"),
            Metric("lone", "server CPU, lone lines", "µs/line"),
            Metric("redis_1", "Redis' CPU, 1 connection", "µs/line"),
            Metric("redis_20", f"Redis' CPU, {CONNECTIONS} connections", "µs/line"),
            Metric("redis_lone", "Redis' CPU, lone lines", "µs/line"),
        ),
        Measure(redis),
    )


RATES = ("rate_1", "rate_20")
"""The figures of which so much is asked."""


def kept(outcome: Outcome, name: str) -> float | None:
    """Return how many times the rate without there is with Redis, None where figures are missing."""
    without, shared = outcome.median(OURS, name), outcome.median(REDIS, name)
    return shared / without if shared and without else None


def _verdict(outcome: Outcome) -> str:
    """Say how much of the rate without there is with Redis, and whether that is as much as is asked."""
    told = []
    for name in RATES:
        share = kept(outcome, name)
        if share is None:
            return "no verdict: figures are missing"
        told.append(f"{name} {share:.2f} of that without: {'met' if share >= ASKED else 'NOT met'} (asked: {ASKED})")
    return "\n".join(told)


def measured(rounds: int, *, quick: bool = False) -> tuple[Outcome, dict[str, Peer]]:
    """Take all figures; return them, and the peers."""
    with compiled() as native, running_redis() as redis:
        peers = _peers(redis)
        return Runner(native, list(peers.values()), rounds, quick).run(_scenario(redis), peers), peers


def main() -> int:
    """Run the command line; return 1 where a round has failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a short look, whose figures are not worth keeping")
    words = parser.parse_args()
    print(machine())
    outcome, peers = measured(words.rounds, quick=words.quick)
    scenario = outcome.scenario
    print(f"\n{scenario.title} ({scenario.cli}); in brackets: how many times without; medians of {words.rounds} rounds")
    print(aligned(table(outcome, peers)), _verdict(outcome), *outcome.failures, sep="\n")
    return 1 if outcome.failures else 0


if __name__ == "__main__":
    sys.exit(main())
