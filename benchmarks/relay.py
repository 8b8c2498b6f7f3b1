"""The relay beside others: throughput, latency, churn, memory, slow readers, many connections, and a real turn.

    python benchmarks/relay.py [--scenario NAME ...] [--peer NAME ...] [--rounds N] [--quick] [--list]
                               [--json FILE] [--markdown FILE] [--svg FOLDER]

Each peer (`benchmarks/peers/`) speaks the same contract: it takes a prompt at /ws/claude, starts the CLI, sends a text
frame for each of its lines and closes with 1000. A fake CLI and the load client are in C (`benchmarks/native/`), so
that neither is what is measured; each figure says whether the CLI was fake or real. Peers are interleaved, each round
with fresh servers; printed are medians, and the ratio to ours behind each. Ours contains its runs (`--containment auto`
and `supervisor`); none of the others does, and they drop what a child says on stderr, which ours relays.

Variables TRIO_CLAUDE_… reach our server, so that one option can be measured beside its default.

It needs a C compiler, npm for Bun and `ws`, and pip for the Python peers, which it installs into `benchmarks/.peers`;
a peer that can't be had is left out and said. A round of everything takes about 25 minutes on two cores.
Run it as root: nobody else may read the memory of our server.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from common import machine
from suite import peers, scenarios
from suite.native import compiled
from suite.plots import svg
from suite.report import aligned, document, table
from suite.runner import Outcome, Runner, chosen_peers


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", nargs="+", choices=scenarios.BY_NAME, default=list(scenarios.BY_NAME))
    parser.add_argument("--peer", nargs="+", choices=peers.BY_NAME, help="default: all, or those of the scenario")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a short look, whose figures are not worth keeping")
    parser.add_argument("--list", action="store_true", help="print scenarios and peers, and end")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    parser.add_argument("--svg", type=Path, metavar="FOLDER")
    return parser.parse_args()


def _list() -> None:
    for scenario in scenarios.ALL:
        print(f"{scenario.name:13} {scenario.title} ({scenario.cli})")
    print()
    for peer in peers.ALL:
        print(f"{peer.name:13} {peer.title}: {peer.note}")


def _keep(words: argparse.Namespace, runner: Runner, outcomes: Sequence[Outcome], began: str) -> None:
    """Write what there is by now."""
    if words.json:
        told = {
            "machine": began, "quick": words.quick, "versions": runner.versions, "missing": runner.missing,
            "scenarios": {outcome.scenario.name: outcome.report() for outcome in outcomes},
        }  # fmt: skip
        words.json.write_text(json.dumps(told, indent=1) + "\n")
    if words.markdown:
        words.markdown.write_text(document(outcomes, peers.BY_NAME, runner.versions, runner.missing, began))
    if words.svg:
        words.svg.mkdir(parents=True, exist_ok=True)
        for outcome in outcomes:
            (words.svg / f"{outcome.scenario.name}.svg").write_text(svg(outcome, peers.BY_NAME))


def _tell(outcome: Outcome) -> None:
    print(f"\n{outcome.scenario.title} ({outcome.scenario.cli}); in brackets: how many times ours")
    print(aligned(table(outcome, peers.BY_NAME)), end="\n\n", flush=True)


def main() -> int:
    """Run the command line; return the exit status: 1 where something failed."""
    words = _arguments()
    if words.list:
        _list()
        return 0
    short = "; a short look, with less of everything than the titles say" if words.quick else ""
    began, outcomes = machine() + short, list[Outcome]()
    print(began)
    named = words.peer or list(peers.BY_NAME)
    with compiled() as native:
        runner = Runner(native, [peer for peer in peers.ALL if peer.name in named], words.rounds, words.quick)
        runner.find()
        print(*(f"{peers.BY_NAME[name].title}: {version}" for name, version in runner.versions.items()), sep="\n")
        for name in words.scenario:
            scenario = scenarios.BY_NAME[name]
            outcomes.append(runner.run(scenario, chosen_peers(scenario, runner.peers, words.peer)))
            _tell(outcomes[-1])
            _keep(words, runner, outcomes, began)
    return 1 if any(outcome.failures for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
