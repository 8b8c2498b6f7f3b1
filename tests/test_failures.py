"""Rule: runs that failed for the same cause are one group, whatever numbers and ids their errors name."""

from __future__ import annotations

from typing import Any

import pytest

from trio_claude.commands.failures import MESSAGE_LIMIT, cause, failed, failures


def run(name: str = "a", **facts: Any) -> dict[str, Any]:
    return {
        "id": name,
        "state": "ended",
        "reason": "failed",
        "error": "oh",
        "ended": 1.0,
        "receipt": {"survivors": 0},
        **facts,
    }


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("timed out after 300 s", "timed out after N s"),
        ("timed out after 0.3 s", "timed out after N s"),
        ("pid 4711 died of signal 9", "pid N died of signal N"),
        ("request req_011CSHoEeqs5C35K2UUqR7Fy: overloaded.", "request N: overloaded."),
        ("session 6ba7b810-9dad-11d1-80b4-00c04fd430c8 is gone", "session N is gone"),
        ("can't reach 127.0.0.1:3000 at 10:00:00", "can't reach N at N"),
        ("model claude-haiku-5-5 is unknown", "model N is unknown"),
        ("two\n  lines\x1b[0m", "two lines\x1b[N"),
        ("no digit: nothing changes", "no digit: nothing changes"),
        (None, ""),
    ],
)
def test_a_message_has_no_number_and_no_id(error: str | None, message: str) -> None:
    assert cause(run(error=error)) == message


def test_a_message_is_bounded() -> None:
    assert len(cause(run(error="x" * 10**6))) == MESSAGE_LIMIT
    assert cause(run(error="y 1 " * 10**6)).endswith("…")


def test_processes_that_were_left_are_a_cause_of_their_own() -> None:
    left = run(reason="exit", error=None, receipt={"survivors": 3})
    assert failed(left)
    assert cause(left) == "N processes left"


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"reason": "exit", "error": None}, False),
        ({"reason": "stopped"}, False),
        ({"reason": "disconnected"}, False),
        ({"reason": "exit", "receipt": {"survivors": None}}, False),
        ({"reason": "deadline"}, True),
        ({"reason": "node-lost", "receipt": None}, True),
        ({"reason": "a later version's"}, True),
        ({"state": "live", "reason": None}, False),
    ],
)
def test_what_failed_is_what_usage_counts_as_failed(facts: dict[str, Any], expected: bool) -> None:
    assert failed(run(**facts)) is expected


def test_a_group_names_its_newest_run_and_when_the_last_ended() -> None:
    groups = failures([
        run("new", error="code 1", ended=5.0), run("old", error="code 2", ended=9.0), run("other", reason="deadline"),
        run("no end", reason="node-lost", ended=None, receipt=None),
    ])  # fmt: skip
    assert [(group["count"], group["run"], group["last"]) for group in groups] == [
        (2, "new", 9.0), (1, "other", 1.0), (1, "no end", None),
    ]  # fmt: skip
