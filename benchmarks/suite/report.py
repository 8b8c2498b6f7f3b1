"""Turn outcomes into tables: medians of the rounds, and behind each the ratio to ours.

It is pure: what it makes are texts and values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .peers import OURS, Peer
from .runner import Outcome
from .scenario import Metric

WIDEST = 9
"""Figures that stand side by side; where there are more, peers do."""


def rounded(value: float) -> str:
    """Return a figure to three digits, as a person reads it."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".")


def ratio(outcome: Outcome, peer: str, metric: Metric) -> float | None:
    """Return how many times ours a peer's figure is."""
    ours, theirs = outcome.median(OURS, metric.name), outcome.median(peer, metric.name)
    if not metric.ratio or peer == OURS or not ours or not theirs or ours < 0 or theirs < 0:
        return None
    return theirs / ours


def cell(outcome: Outcome, peer: str, metric: Metric) -> str:
    """Return one figure with its ratio."""
    value = outcome.median(peer, metric.name)
    if value is None:
        return "–"
    times = ratio(outcome, peer, metric)
    return rounded(value) + (f" ({times:.2f}×)" if times is not None else "")


def _head(metric: Metric) -> str:
    return f"{metric.title}, {metric.unit}" if metric.unit else metric.title


def table(outcome: Outcome, peers: Mapping[str, Peer]) -> list[list[str]]:
    """Return the rows of a scenario's table, its head first."""
    names = [name for name in peers if name in outcome.figures]
    metrics = [
        metric for metric in outcome.scenario.metrics if any(outcome.values(name, metric.name) for name in names)
    ]
    rows = [["", *(_head(metric) for metric in metrics)]]
    rows += [[peers[name].title, *(cell(outcome, name, metric) for metric in metrics)] for name in names]
    return [list(column) for column in zip(*rows, strict=True)] if len(metrics) > WIDEST else rows


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return a table for a terminal."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = ("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])


def section(outcome: Outcome, peers: Mapping[str, Peer]) -> str:
    """Return a scenario's part of the Markdown."""
    scenario = outcome.scenario
    loads = ", ".join(map(str, outcome.loads))
    facts = f"{scenario.note} Medians of {len(outcome.loads)} rounds; load average before each: {loads}.".strip()
    failed = "".join(f"\n\nFailed: {failure}" for failure in outcome.failures)
    return f"## {scenario.title} ({scenario.cli})\n\n{markdown(table(outcome, peers))}\n\n{facts}{failed}\n"


def document(
    outcomes: Sequence[Outcome], peers: Mapping[str, Peer], versions: Mapping[str, str],
    missing: Mapping[str, str], machine: str,
) -> str:  # fmt: skip
    """Return the whole in Markdown."""
    list_ = [f"- {peers[name].title}: {version}; {peers[name].note}" for name, version in versions.items()]
    list_ += [f"- {peers[name].title}: left out: {text}" for name, text in missing.items()]
    head = f"# The relay beside others\n\n{machine}. In brackets: how many times ours.\n"
    parts = [head, "\n".join(list_) + "\n", *(section(outcome, peers) for outcome in outcomes)]
    return "\n".join(parts)
