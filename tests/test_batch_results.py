"""Rule: a result is folded out of the CLI's lines by `is_error`, and out of a close reason by its grammar."""

from __future__ import annotations

import json

import pytest

from trio_claude.batch.results import Finish, Fold, Record, from_close, from_outcome, parse_result
from trio_claude.batch.tasks import Rules, make_plan
from trio_claude.config import OPTIONS
from trio_claude.errors import Reason
from trio_claude.events import Outcome, Receipt
from trio_claude.metering import PRICE
from trio_claude.stream_json import TOKENS

SESSION = "01234567-89ab-cdef-0123-456789abcdef"
RECEIPT = Receipt(seen=3, killed=1, survivors=0, ms=12.34, containment="namespace")


def result_line(**fields: object) -> str:
    return json.dumps({"duration_ms": 1, "session_id": "s", **fields, "type": "result"})


def folded(*lines: str) -> Fold:
    fold = Fold()
    for line in lines:
        fold.feed(line)
    return fold


def record(more: str = "") -> Record:
    (item,) = make_plan(f'{{"prompt":"x","id":"a","model":"haiku"{more}}}'.encode(), Rules(OPTIONS, 300))
    return Record(item=item)


def test_a_good_result() -> None:
    usage = dict.fromkeys(TOKENS, 2)
    line = result_line(subtype="success", is_error=False, result="hi", num_turns=2, total_cost_usd=0.5, usage=usage)
    fold = folded('{"type":"system","subtype":"init","session_id":"abc"}', '{"type":"assistant"}', line)
    assert (fold.session_id, fold.result, fold.is_error, fold.error) == ("abc", "hi", False, None)
    assert (fold.num_turns, fold.cost_usd, fold.usage, fold.lines) == (2, 0.5, usage, 3)


def test_cost_is_cumulative_over_a_process_and_usage_is_not() -> None:
    usage = dict.fromkeys(TOKENS, 1)
    lines = [
        result_line(is_error=False, result=str(n), num_turns=1, total_cost_usd=n / 10, usage=usage) for n in (1, 2)
    ]
    fold = folded(*lines)
    assert (fold.cost_usd, fold.num_turns, fold.usage["input_tokens"], fold.result) == (0.2, 2, 2, "2")


def test_tokens_are_those_of_all_models_where_the_cli_tells_them() -> None:
    """What agents have used is in no result's `usage`, nor is all of a run that has spent what it may."""
    usage = dict.fromkeys(TOKENS, 1)
    large = {"inputTokens": 40, "outputTokens": 41, "cacheCreationInputTokens": 3, "cacheReadInputTokens": 4}
    small = {"inputTokens": 2, "outputTokens": True, "cacheReadInputTokens": None}
    models = ({"opus": large, "haiku": small, "strange": 5}, {})
    fold = folded(*(result_line(usage=usage, model_usage_since_last_result=one) for one in models))
    assert [fold.usage[name] for name in TOKENS] == [42, 41, 3, 4]


def test_a_run_that_resumes_a_session_is_not_charged_for_what_was_before() -> None:
    usage = {**dict.fromkeys(TOKENS, 0), "input_tokens": 20, "output_tokens": 5}
    models = {"haiku": {"inputTokens": 80, "outputTokens": 20}}
    line = result_line(is_error=False, result="r", total_cost_usd=2.0, usage=usage, modelUsage=models)
    for more, cost in (("", 2.0), (f',"resume":"{SESSION}"', 0.5)):
        one = record(more)
        one.begin().feed(line)
        one.settle()
        assert one.result(Finish(reason="exit", exit_status=0)).cost_usd == cost


def test_what_no_result_tells_of_is_reckoned() -> None:
    said = {"type": "assistant", "session_id": "s", "message": {"id": "m", "usage": {"input_tokens": 100_000}}}
    one = record()
    one.begin().feed(json.dumps(said))
    one.settle()
    assert one.result(Finish(reason="deadline", error="timed out")).cost_usd == pytest.approx(100_000 * PRICE, rel=0.01)
    one.begin().feed(json.dumps(said))
    one.fold.feed(result_line(is_error=False, result="r", total_cost_usd=0.25))
    before = one.spent_usd
    one.settle()
    assert one.spent_usd == before + 0.25, "and nothing that one has told of"


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"subtype": "success", "result": "API Error: 400"}, "API Error: 400"),
        (
            {"subtype": "error_max_turns", "errors": ["Reached maximum number of turns (2)"]},
            "Reached maximum number of turns (2)",
        ),
        ({"subtype": "error_during_execution"}, "error_during_execution"),
        ({}, "an error without words"),
    ],
)
def test_is_error_tells_never_subtype(fields: dict[str, object], error: str) -> None:
    assert folded(result_line(is_error=True, **fields)).error == error


@pytest.mark.parametrize(
    "line",
    ["", "nonsense", "[1]", '"result"', '{"type":"result"}', "[" * 100_000, '{"type":"result","usage":3,"total_cost_usd":"x","num_turns":true}'],
)  # fmt: skip
def test_lines_that_are_none_do_no_harm(line: str) -> None:
    fold = folded(line)
    assert (fold.cost_usd, fold.num_turns) == (0.0, 0)


def test_a_sessions_id_is_no_longer_than_one_is() -> None:
    assert folded(result_line(session_id="s" * 129), result_line(session_id="t" * 128)).session_id == "t" * 128


@pytest.mark.parametrize("number", ["9" * 400, "1e999", "-1", "NaN", "-Infinity", "1000000000000000"])
def test_numbers_that_are_none_count_for_nothing(number: str) -> None:
    usage = f'{{"input_tokens":{number}}}'
    line = f'{{"type":"result","total_cost_usd":{number},"num_turns":{number},"usage":{usage}}}'
    one = record()
    one.begin().feed(line)
    one.settle()
    told = one.result(Finish(reason="exit", exit_status=0)).render()
    result = parse_result(told)
    assert (result.cost_usd, result.num_turns, result.usage["input_tokens"], result.ok) == (0.0, 0, 0, True)


@pytest.mark.parametrize(
    ("line", "strained"),
    [
        ({"type": "system", "subtype": "api_retry", "error_status": 429}, True),
        ({"type": "system", "subtype": "api_retry", "error_status": 529}, True),
        ({"type": "system", "subtype": "api_retry", "error_status": 500}, False),
        ({"type": "system", "subtype": "api_retry", "error_status": None}, False),
        ({"type": "result", "is_error": True, "api_error_status": 529}, True),
        ({"type": "result", "is_error": True, "api_error_status": 400}, False),
        ({"type": "assistant", "message": {"content": [{"type": "text", "text": '"api_retry" 429'}]}}, False),
    ],
)
def test_only_429_and_529_are_a_strain(line: dict[str, object], strained: bool) -> None:
    assert Fold().feed(json.dumps(line)) is strained


@pytest.mark.parametrize(
    ("code", "reason", "error", "found"),
    [
        (1000, "exit 0; 7 processes, 0 left, 12 ms", None, ("exit", 0, None, 7, 0)),
        (1000, "ended after result; 1 process, unproven, 3 ms", None, ("exit", None, None, 1, None)),
        (1011, "exit 1; 2 processes, 0 left, 3 ms", "the CLI exited", ("failed", 1, "the CLI exited", 2, 0)),
        (1011, "signal 9; 2 processes, 0 left, 3 ms", "died", ("failed", None, "died", 2, 0)),
        (1011, "timed out; 2 processes, 0 left, 3 ms", "timed out after 1 s", ("deadline", None, "timed out after 1 s", 2, 0)),
        (1011, "not started; 0 processes, 0 left, 0 ms", "e", ("spawn-failed", None, "e", 0, 0)),
        (1011, "unauthorized; 2 processes, 0 left, 3 ms", "e", ("unauthorized", None, "e", 2, 0)),
        (1012, "drained; 2 processes, 0 left, 3 ms", "server shutting down", ("drained", None, "server shutting down", 2, 0)),
        (1012, "server shutting down", "server shutting down", ("drained", None, "server shutting down", None, None)),
        (1013, "no slot", "no slot came free", ("busy", None, "no slot came free", None, None)),
        (1008, "bad", "meta must match", ("refused", None, "meta must match", None, None)),
        (1009, "too long", None, ("refused", None, "too long", None, None)),
        (1005, "", None, ("disconnected", None, "", None, None)),
        (1006, "the connection broke", None, ("disconnected", None, "the connection broke", None, None)),
    ],
)  # fmt: skip
def test_a_close_reason_is_read_by_its_grammar(
    code: int, reason: str, error: str | None, found: tuple[object, ...]
) -> None:
    finish = from_close(code, reason, error)
    receipt = finish.receipt
    told = (receipt.seen, receipt.survivors) if receipt else (None, None)
    assert (finish.reason, finish.exit_status, finish.error, *told) == found
    assert finish.ok is (code == 1000)


def test_an_outcome_with_survivors_is_not_ok() -> None:
    outcome = Outcome(Reason.EXIT, 0, None, 1, 0, Receipt(3, 0, 1, 1.0, "supervisor"))
    assert from_outcome(outcome).ok is False
    assert from_outcome(outcome).error == "the process tree could not be proven gone"


def test_a_result_is_one_line_with_every_field() -> None:
    one = record()
    one.begin().feed(result_line(is_error=False, result="a\nbé", num_turns=1, total_cost_usd=0.1))
    one.seconds, one.first_line_seconds = 1.23456789, 0.5
    one.settle()
    line = one.result(Finish(reason="exit", exit_status=0, receipt=RECEIPT)).render()
    assert line.count(b"\n") == 1
    assert json.loads(line) == {
        "id": "a", "task": 1, "repeat": 1, "model": "haiku", "meta": "TASK-1", "ok": True, "reason": "exit",
        "exit_status": 0, "error": None, "result": "a\nbé", "session_id": "s", "num_turns": 1,
        "usage": dict.fromkeys(TOKENS, 0), "cost_usd": 0.1, "seconds": 1.2346, "first_line_seconds": 0.5, "attempts": 1,
        "receipt": {"seen": 3, "killed": 1, "survivors": 0, "ms": 12.3, "containment": "namespace"},
        "artifacts": None,
    }  # fmt: skip


def test_the_cost_is_that_of_all_attempts_and_the_rest_of_the_last() -> None:
    one = record()
    for cost in (0.1, 0.2):
        one.begin().feed(result_line(is_error=cost < 0.2, result=str(cost), total_cost_usd=cost))
        one.settle()
    result = one.result(Finish(reason="exit", exit_status=0))
    assert (result.attempts, round(result.cost_usd, 6), result.result, result.ok) == (2, 0.3, "0.2", True)


def test_exit_0_with_an_error_result_has_failed() -> None:
    one = record()
    one.begin().feed(result_line(is_error=True, subtype="success", result="no"))
    result = one.result(Finish(reason="exit", exit_status=0))
    assert (result.ok, result.reason, result.error) == (False, "failed", "no")
    said = json.loads(result.render())
    assert said["receipt"] is None


def test_a_server_does_not_tell_the_containment_nor_what_was_killed() -> None:
    one = record()
    one.begin()
    said = json.loads(one.result(from_close(1000, "exit 0; 7 processes, 0 left, 12 ms", None)).render())
    assert said["receipt"] == {"seen": 7, "killed": None, "survivors": 0, "ms": 12.0, "containment": None}
