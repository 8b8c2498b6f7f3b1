"""Rule: counts, sums and percentiles are those of the results."""

from __future__ import annotations

import json

import attrs

from trio_claude.batch.results import TOKENS, Result
from trio_claude.batch.tally import Tally
from trio_claude.events import Receipt

RESULT = Result(
    id="1", task=1, repeat=1, model=None, meta="X", ok=True, reason="exit", exit_status=0, error=None, result="", session_id=None,
    num_turns=1, usage=dict.fromkeys(TOKENS, 1), cost_usd=0.5, seconds=1.0, first_line_seconds=0.5, attempts=1,
    receipt=Receipt(1, 0, 0, 1.0, "group"),
)  # fmt: skip


def test_what_it_came_to() -> None:
    tally = Tally(6)
    tally.spend(0.75)
    tally.add(RESULT)
    tally.add(attrs.evolve(RESULT, ok=False, reason="deadline", seconds=3.0, attempts=3))
    tally.add(
        attrs.evolve(
            RESULT, ok=False, reason="skipped", seconds=None, first_line_seconds=None, attempts=0, receipt=None
        )
    )
    tally.add(attrs.evolve(RESULT, ok=False, reason="cancelled", seconds=99.0))
    tally.add(attrs.evolve(RESULT, ok=False, reason="exit", receipt=Receipt(1, 0, 2, 1.0, "group")))
    tally.add(attrs.evolve(RESULT, receipt=Receipt(1, 0, None, 1.0, "group")))
    summary = tally.summary()
    assert (summary.ok, summary.failed, summary.skipped, summary.cancelled, tally.done) == (2, 2, 1, 1, 6)
    assert (summary.cost_usd, summary.attempts, summary.survivors, summary.unproven, tally.tokens) == (
        0.75,
        7,
        2,
        1,
        24,
    )
    assert summary.reasons == {"exit": 3, "deadline": 1, "skipped": 1, "cancelled": 1}
    assert summary.seconds == {"min": 1.0, "p50": 1.0, "p90": 3.0, "p99": 3.0, "max": 3.0, "mean": 1.5}
    assert json.loads(json.dumps(summary.as_dict()))["runs"] == 6
    assert "6 runs: 2 ok, 2 failed, 1 skipped, 1 cancelled" in str(summary)
    assert "2 processes left, 1 runs unproven" in str(summary)


def test_percentiles_are_nearest_ranks() -> None:
    tally = Tally(100)
    for number in range(1, 101):
        tally.add(attrs.evolve(RESULT, seconds=float(number)))
    spread = tally.summary().seconds
    assert (spread["p50"], spread["p90"], spread["p99"], spread["max"]) == (50, 90, 99, 100)


def test_nothing_has_no_percentiles() -> None:
    assert Tally(1).summary().seconds == {}
    assert "median" not in str(Tally(1).summary())
