"""Rule: only what may go better another time is tried again."""

from __future__ import annotations

import json

import pytest

from trio_claude.batch.results import Finish, Fold
from trio_claude.batch.retries import MOST, delay, retryable


def failed(status: int | None, *, unconnected: bool = False, **fields: object) -> Fold:
    fold = Fold()
    if unconnected:
        fold.feed(json.dumps({"type": "system", "subtype": "api_retry", "error_status": None}))
    fold.feed(json.dumps({"type": "result", "is_error": True, "api_error_status": status, "result": "no", **fields}))
    return fold


@pytest.mark.parametrize(
    ("status", "again"),
    [(400, False), (401, False), (403, False), (404, False), (413, False), (408, True), (429, True), (500, True), (503, True), (529, True)],
)  # fmt: skip
def test_the_apis_status_tells(status: int, again: bool) -> None:
    assert retryable(Finish(reason="failed", exit_status=1, error="e"), failed(status)) is again


@pytest.mark.parametrize(
    ("reason", "again"),
    [
        ("busy", True), ("drained", True), ("unreachable", True), ("deadline", False), ("unauthorized", False),
        ("refused", False), ("spawn-failed", False), ("disconnected", False), ("stopped", False), ("failed", False),
    ],
)  # fmt: skip
def test_the_reason_tells(reason: str, again: bool) -> None:
    assert retryable(Finish(reason=reason, error="e"), Fold()) is again


def test_who_is_to_come_another_day_is_not_asked_again() -> None:
    assert retryable(Finish(reason="busy", error="e", retry_after=600.0), Fold())
    assert not retryable(Finish(reason="busy", error="e", retry_after=601.0), Fold())


def test_a_refused_connection_to_the_api_is_tried_again() -> None:
    assert retryable(Finish(reason="failed", exit_status=1), failed(None, unconnected=True))


def test_an_error_without_a_status_is_not() -> None:
    fold = failed(
        None, subtype="error_max_turns", errors=["Reached maximum number of turns (2)"], terminal_reason="max_turns"
    )
    assert not retryable(Finish(reason="failed", exit_status=1), fold)


def test_a_deadline_behind_429s_is_a_deadline() -> None:
    assert not retryable(Finish(reason="deadline", error="timed out"), failed(429))


def test_delays_double_and_have_an_end() -> None:
    assert [delay(attempts, None, 0.5) for attempts in (1, 2, 3, 4)] == [1, 2, 4, 8]
    assert delay(1000, None, 1.0) == MOST * 1.25
    assert delay(1, 10.0, 0.5) == 10
    assert delay(1, 1e9, 0.0) == MOST * 0.75
