"""Run scenarios against peers, interleaved round by round, each on a fresh server; keep what each round gave.

A peer that can't be had is left out and said; one that fails a round is said and has no figures in it.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterable, Sequence
from typing import Any

import attrs

from .install import Unavailable
from .native import Native
from .peers import Peer
from .scenario import Figures, Scenario

PAUSE = 1.0
"""Seconds between two servers, so that what one leaves to the kernel is done."""


@attrs.define
class Outcome:
    """What a scenario gave: by peer the figures of each round, the load average before each round, and what failed."""

    scenario: Scenario
    figures: dict[str, list[Figures]] = attrs.Factory(dict)
    loads: list[float] = attrs.Factory(list)
    failures: list[str] = attrs.Factory(list)

    def values(self, peer: str, metric: str) -> list[float]:
        """Return what the rounds gave for one figure of one peer."""
        found = (figures.get(metric) for figures in self.figures.get(peer, ()))
        return [value for value in found if value is not None]

    def median(self, peer: str, metric: str) -> float | None:
        """Return a figure's median over the rounds."""
        values = self.values(peer, metric)
        return statistics.median(values) if values else None

    def _medians(self, peer: str) -> Figures:
        return {metric.name: self.median(peer, metric.name) for metric in self.scenario.metrics}

    def report(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "title": self.scenario.title, "cli": self.scenario.cli, "note": self.scenario.note, "loads": self.loads,
            "failures": self.failures, "units": {metric.name: metric.unit for metric in self.scenario.metrics},
            "medians": {peer: self._medians(peer) for peer in self.figures}, "rounds": self.figures,
        }  # fmt: skip


@attrs.define
class Runner:
    """Runs scenarios; `versions` and `missing` say what was measured and what could not be."""

    native: Native
    peers: Sequence[Peer]
    rounds: int
    quick: bool
    versions: dict[str, str] = attrs.Factory(dict)
    missing: dict[str, str] = attrs.Factory(dict)

    def find(self) -> None:
        """Install what is needed and note versions."""
        for peer in self.peers:
            try:
                peer.command(self.native, self.native.cli, 0)
                self.versions[peer.name] = peer.version()
            except Unavailable as error:
                self.missing[peer.name] = str(error)
                print(f"left out: {peer.title}: {error}", flush=True)

    def run(self, scenario: Scenario, peers: Iterable[str]) -> Outcome:
        """Run one scenario, all rounds; the order turns by one each round."""
        outcome = Outcome(scenario)
        chosen = [peer for peer in self.peers if peer.name in set(peers) - set(self.missing)]
        for number in range(self.rounds):
            outcome.loads.append(round(os.getloadavg()[0], 2))
            print(f"{scenario.name}, round {number + 1} of {self.rounds}, load {outcome.loads[-1]}", flush=True)
            turn = number % len(chosen) if chosen else 0
            for peer in chosen[turn:] + chosen[:turn]:
                self._measure(scenario, peer, outcome)
        return outcome

    def _measure(self, scenario: Scenario, peer: Peer, outcome: Outcome) -> None:
        began = time.monotonic()
        try:
            figures = scenario.take(self.native, peer, self.quick)
        except Exception as error:  # whatever befalls one peer, the others are measured
            outcome.failures.append(f"{peer.title}: {error!r}")
            print(f"  {peer.name:13} failed: {error!r}", flush=True)
        else:
            outcome.figures.setdefault(peer.name, []).append(figures)
            told = ", ".join(f"{name} {value:.4g}" for name, value in figures.items() if value is not None)
            print(f"  {peer.name:13} {told} ({time.monotonic() - began:.0f} s)", flush=True)
        time.sleep(PAUSE)


def chosen_peers(scenario: Scenario, peers: Sequence[Peer], named: Sequence[str] | None) -> list[str]:
    """Return the names of those that a scenario is measured with: those named, or else its own, or else all."""
    if named and scenario.real:
        return [name for name in named if name in scenario.peers]
    return list(named or scenario.peers) or [peer.name for peer in peers]
