"""What a batch has come to: counts, sums and percentiles, out of results.

Rules: no await, no clock. Of a result only numbers are kept.
"""

from __future__ import annotations

from array import array
from collections import Counter
from typing import Any

import attrs

from ..stream_json import TOKENS
from .results import CANCELLED, SKIPPED, Result

PERCENTILES = (50, 90, 99)


class Tally:
    """Adds results up. `survivors` counts processes that are known to be left, `unproven` runs without a proof."""

    def __init__(self, runs: int) -> None:
        self.runs: int = runs
        self.ok: int = 0
        self.failed: int = 0
        self.skipped: int = 0
        self.cancelled: int = 0
        self.attempts: int = 0
        self.cost_usd: float = 0.0
        self.usage: dict[str, int] = dict.fromkeys(TOKENS, 0)
        self.reasons: Counter[str] = Counter()
        self.survivors: int = 0
        self.unproven: int = 0
        self.first_error: str | None = None
        self._seconds: array[float] = array("d")
        self._first: array[float] = array("d")

    @property
    def done(self) -> int:
        """How many results there are."""
        return self.ok + self.failed + self.skipped + self.cancelled

    @property
    def tokens(self) -> int:
        """How many tokens were used, all kinds together."""
        return sum(self.usage.values())

    def spend(self, usd: float) -> None:
        """Count what an attempt has cost, in US dollars, as soon as it is over."""
        self.cost_usd += usd

    def add(self, result: Result) -> None:
        """Count one result."""
        self._count(result)
        self.reasons[result.reason] += 1
        self.attempts += result.attempts
        for name in TOKENS:
            self.usage[name] += result.usage[name]
        if result.receipt is not None:
            self.survivors += result.receipt.survivors or 0
            self.unproven += result.receipt.survivors is None

    def _count(self, result: Result) -> None:
        if result.ok:
            self.ok += 1
        elif result.reason == SKIPPED:
            self.skipped += 1
        elif result.reason == CANCELLED:
            self.cancelled += 1
        else:
            self.failed += 1
            self.first_error = self.first_error or result.error
        if result.reason != CANCELLED and result.seconds is not None:
            self._seconds.append(result.seconds)
        if result.first_line_seconds is not None:
            self._first.append(result.first_line_seconds)

    def summary(self) -> Summary:
        """Return what it came to."""
        return Summary(
            runs=self.runs, ok=self.ok, failed=self.failed, skipped=self.skipped, cancelled=self.cancelled,
            attempts=self.attempts, reasons=dict(self.reasons), cost_usd=round(self.cost_usd, 10), usage=self.usage,
            survivors=self.survivors, unproven=self.unproven, first_error=self.first_error,
            seconds=_spread(self._seconds), first_line_seconds=_spread(self._first),
        )  # fmt: skip


def _spread(values: array[float]) -> dict[str, float]:
    """Return percentiles, by the nearest rank, and the mean; empty where there are no values."""
    if not values:
        return {}
    ordered = sorted(values)
    ranks = {f"p{share}": ordered[max(0, -(-len(ordered) * share // 100) - 1)] for share in PERCENTILES}
    spread = {"min": ordered[0], **ranks, "max": ordered[-1], "mean": sum(ordered) / len(ordered)}
    return {name: round(value, 4) for name, value in spread.items()}


@attrs.frozen(kw_only=True)
class Summary:
    """What a batch has come to. Seconds are of the runs that were not cancelled, by percentile."""

    runs: int
    ok: int
    failed: int
    skipped: int
    cancelled: int
    attempts: int
    reasons: dict[str, int]
    cost_usd: float
    usage: dict[str, int]
    survivors: int
    unproven: int
    first_error: str | None
    seconds: dict[str, float]
    first_line_seconds: dict[str, float]
    wall_seconds: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can say it."""
        return attrs.asdict(self)

    def __str__(self) -> str:
        counts = f"{self.ok} ok, {self.failed} failed, {self.skipped} skipped, {self.cancelled} cancelled"
        left = f"{self.survivors} processes left" + (f", {self.unproven} runs unproven" if self.unproven else "")
        tokens = f"{self.usage['input_tokens']} tokens in, {self.usage['output_tokens']} out"
        middle = f", median {self.seconds['p50']:.2f} s a run" if self.seconds else ""
        wall = "" if self.wall_seconds is None else f", {self.wall_seconds:.1f} s"
        return f"{self.runs} runs: {counts}; {tokens}, ${self.cost_usd:.4f}{wall}{middle}; {left}"
