"""What it costs to be observed: metrics, logs, history and all of them, against none, side by side.

    python benchmarks/observing.py [--rounds 7] [--quick] [--json FILE]

Rounds alternate, each with a fresh server. `none again` is `none`: by how much it differs is what the machine makes of
nothing. What is logged goes to /dev/null, the journal lies in the folder for temporary files.

1. Bulk: lines of 200 bytes at full speed, on one connection and on twenty; history until all is stored.
2. Lone lines: twenty connections, 100 lines a second each; CPU time of the server a line.
3. Churn: runs of one line, eight at once.

The CLI is fake and in C. Asked: all on cost no more than 15 % of the rate in bulk. It needs a C compiler.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

import attrs
from common import HERE, machine
from history import SIZE, pass_lines
from suite.load import Load
from suite.native import compiled
from suite.peers import BY_NAME, OURS, Peer
from suite.report import aligned, table
from suite.runner import Outcome, Runner
from suite.scenario import Figures, Metric, Scenario, script
from suite.subject import Subject

ASKED = 0.85
"""How much of the rate in bulk there must be with all on."""
LINES = 300_000
CONNECTIONS = 20
RATE = 100
SECONDS = 3
RUNS = 600
AT_ONCE = 8
WARM_UP = 40


def _peer(name: str, title: str, *words: str) -> Peer:
    """Return our server, observed as the words say."""
    program = [sys.executable, str(HERE / "observed.py")]
    return attrs.evolve(
        BY_NAME[OURS], name=name, title=title, command=lambda _native, cli, _port: [*program, str(cli), *words]
    )


PEERS = {
    peer.name: peer
    for peer in (
        _peer(OURS, "none"),
        _peer("again", "none again"),
        _peer("metrics", "metrics", "metrics"),
        _peer("logs", "logs", "logs"),
        _peer("history", "history", "history"),
        _peer("all", "all", "metrics", "logs", "history"),
    )
}


def _churn(subject: Subject, count: int) -> tuple[float, float]:
    """Return runs a second, and CPU milliseconds of the server a run."""
    before = subject.cpu()
    with Load(subject, total=count, at_once=AT_ONCE, prompt=script(1, 0, SIZE)) as client:
        wall = float(client.end()["wall_s"])
    return count / wall, subject.cpu().since(before).server / count * 1000


def measure(subject: Subject, quick: bool) -> Figures:
    """Take the figures; some runs and lines go before, so that what compiles while it runs has done so."""
    share = 10 if quick else 1
    _churn(subject, WARM_UP)
    pass_lines(subject, 1, LINES // 6 // share)
    one = [pass_lines(subject, 1, LINES // share) for _ in range(1 if quick else 3)]
    twenty_rate, twenty_cpu = pass_lines(subject, CONNECTIONS, LINES // CONNECTIONS // share)
    _, lone_cpu = pass_lines(subject, CONNECTIONS, RATE * SECONDS, RATE)
    churn_rate, churn_cpu = _churn(subject, RUNS // share)
    return {
        "rate_1": statistics.median(rate for rate, _ in one), "rate_20": twenty_rate,
        "cpu_1": statistics.median(cpu for _, cpu in one), "cpu_20": twenty_cpu, "lone": lone_cpu,
        "churn": churn_rate, "run": churn_cpu,
    }  # fmt: skip


SCENARIO = Scenario(
    "observing",
    f"Bulk 1 x {LINES:,} and {CONNECTIONS} x {LINES // CONNECTIONS:,} lines of {SIZE} bytes; "
    f"lone lines {CONNECTIONS} x {RATE} a second; runs of one line, {AT_ONCE} at once",
    (
        Metric("rate_1", "bulk, 1 connection", "M lines/s", more=True),
        Metric("rate_20", f"bulk, {CONNECTIONS} connections", "M lines/s", more=True),
        Metric("cpu_1", "server CPU, 1 connection", "µs/line"),
        Metric("cpu_20", f"server CPU, {CONNECTIONS} connections", "µs/line"),
        Metric("lone", "server CPU, lone lines", "µs/line"),
        Metric("churn", "churn", "runs/s", more=True),
        Metric("run", "server CPU, churn", "ms/run"),
    ),
    measure,
)


def _verdict(outcome: Outcome) -> str:
    """Say how much of the rate in bulk there is with all on, and whether that is as much as is asked."""
    told = []
    for name in ("rate_1", "rate_20"):
        none, everything = outcome.median(OURS, name), outcome.median("all", name)
        if not none or not everything:
            return "no verdict: figures are missing"
        kept = everything / none
        told.append(f"{name} {kept:.2f} of none: {'met' if kept >= ASKED else 'NOT met'} (asked: {ASKED})")
    return "\n".join(told)


def main() -> int:
    """Run the command line; return 1 where a round has failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="a short look, whose figures are not worth keeping")
    parser.add_argument("--json", type=Path, metavar="FILE")
    words = parser.parse_args()
    began = machine()
    print(began)
    with compiled() as native:
        outcome = Runner(native, list(PEERS.values()), words.rounds, words.quick).run(SCENARIO, PEERS)
    print(f"\n{SCENARIO.title} ({SCENARIO.cli}); in brackets: how many times none; medians of {words.rounds} rounds")
    print(aligned(table(outcome, PEERS)), _verdict(outcome), *outcome.failures, sep="\n")
    if words.json:
        words.json.write_text(json.dumps({"machine": began, "quick": words.quick, **outcome.report()}, indent=1) + "\n")
    return 1 if outcome.failures else 0


if __name__ == "__main__":
    sys.exit(main())
