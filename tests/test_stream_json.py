"""Rule: lines come out whole, in order, as they went in; only bytes that are not UTF-8 are replaced, and counted."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_claude import stream_json
from trio_claude.messages import Options
from trio_claude.stream_json import DELTA, LONG, PIECES, LineSplitter, LineTooLong, Sign, Spent, signs, without_reply

SHORT_CHUNKS = st.binary(max_size=40).map(lambda data: data.replace(b"b", b"\n"))
LONG_LINES = (b"x" * 511 + b"\n") * (LONG // 512)
CHUNKS = st.lists(SHORT_CHUNKS | SHORT_CHUNKS.map(lambda data: data + LONG_LINES + data), max_size=20)


def split(chunks: list[bytes], limit: int = 1000) -> tuple[list[bytes], int]:
    splitter = LineSplitter(limit)
    lines = [line for chunk in chunks for line in splitter.feed(chunk)]
    return [*lines, *splitter.finish()], splitter.encoding_errors


@given(CHUNKS)
def test_lines_are_those_of_the_whole_stream(chunks: list[bytes]) -> None:
    whole = b"".join(chunks)
    expected = whole.split(b"\n")
    if not expected[-1]:
        expected.pop()
    lines, _ = split(chunks)
    assert lines == [line.decode(errors="replace").encode() for line in expected]


@given(CHUNKS)
def test_what_is_kept_of_lines_is_all_of_them(chunks: list[bytes]) -> None:
    splitter = LineSplitter(1000)
    lines, kept = [], b""
    for chunk in chunks:
        fed = splitter.feed(chunk)
        lines += fed
        kept += b"".join(splitter.texts(fed, chunk)) if fed else b""
    tail = splitter.finish()
    kept += b"".join(splitter.texts(tail, b"")) if tail else b""
    assert kept == b"".join(line + b"\n" for line in [*lines, *tail])


def test_a_line_in_many_pieces_takes_little_more_than_its_bytes() -> None:
    splitter = LineSplitter(2**20)
    for ending in (b"\n", b"b\n"):
        for number in range(10 * PIECES + 3):
            assert splitter.feed(b"%02d" % (number % 100)) == []
            assert len(splitter._rest) < PIECES + 10
        (line,) = splitter.feed(ending)
        assert line == b"".join(b"%02d" % (number % 100) for number in range(10 * PIECES + 3)) + ending[:-1]


@given(st.text(), st.integers(1, 7))
def test_text_survives_any_cut(text: str, step: int) -> None:
    data = text.encode("utf-8", "replace") + b"\n"
    lines, errors = split([data[at : at + step] for at in range(0, len(data), step)])
    assert (b"\n".join(lines) + b"\n", errors) == (data, 0)


def test_bad_bytes_are_replaced_and_counted_by_line() -> None:
    assert split([b"ok\n\xff\xfe\nfine \xe2\x82", b"\xac\n\xe2\n"]) == (
        [b"ok", "\ufffd\ufffd".encode(), "fine €".encode(), "\ufffd".encode()],
        2,
    )


@pytest.mark.parametrize(
    "chunks", [[b"x" * 11], [b"x" * 6, b"x" * 5], [b"a\n" + b"x" * 11 + b"\nb"], [b"x" * 6, b"x" * 5 + b"\n"]]
)
def test_a_line_over_the_limit_is_refused(chunks: list[bytes]) -> None:
    with pytest.raises(LineTooLong, match="over 10 bytes"):
        split(chunks, limit=10)


def test_a_line_of_exactly_the_limit_passes() -> None:
    assert split([b"x" * 4, b"x" * 6 + b"\n"], limit=10) == ([b"x" * 10], 0)


@pytest.mark.parametrize(
    ("line", "sign"),
    [
        ({"duration": 1, "type": "result", "is_error": False, "result": "x"}, Sign(result=True, spent=Spent())),
        ({"type": "result", "subtype": "success", "is_error": True, "result": "API Error"}, Sign(result=True, spent=Spent(), error="API Error")),
        ({"type": "result", "is_error": True, "subtype": "error_max_turns", "errors": ["Reached"]}, Sign(result=True, spent=Spent(), error="Reached")),
        ({"type": "system", "subtype": "api_retry", "error_status": 401}, Sign(unauthorized=True)),
        ({"type": "system", "subtype": "api_retry", "error_status": 403}, Sign(unauthorized=True)),
        ({"type": "system", "subtype": "permission_denied", "tool_name": "Bash"}, Sign(denied_tool="Bash")),
    ],
)  # fmt: skip
def test_signs_are_read_whatever_the_order_of_keys(line: dict[str, object], sign: Sign) -> None:
    turned = dict(reversed(line.items()))
    assert stream_json.signs([json.dumps(line).encode(), json.dumps(turned).encode()]) == [sign, sign]


@pytest.mark.parametrize(
    "line",
    [
        b'{"type":"system","subtype":"api_retry","error_status":429}',
        b'"result"',
        b'{"result":',
        b'{"type":"user","x":"result"}',
        b"[" * 5000 + b'"result"',
    ],
)
def test_other_lines_are_no_signs(line: bytes) -> None:
    assert stream_json.signs([line]) == []


@pytest.mark.parametrize(("session", "taken"), [("s" * 128, "s" * 128), ("s" * 129, ""), (1, "")])
def test_a_sessions_id_is_no_longer_than_one_is(session: object, taken: str) -> None:
    """It is kept beyond its run."""
    (sign,) = stream_json.signs([json.dumps({"type": "result", "session_id": session}).encode()])
    assert sign.session == taken


def test_whether_all_lines_are_tokens_is_seen_at_two_of_them() -> None:
    rng = random.Random(1)
    other = [b"", DELTA[:-1], DELTA[:-1] + b"!", DELTA[:-1] + b"~", b'{"type":"result"}', b"\xff", b"a"]
    seen = set[bool]()
    for _ in range(2000):
        lines = [DELTA + rng.randbytes(3) for _ in range(rng.randrange(1, 6))]
        lines[0] = rng.choice([*other, *lines, *lines])
        rng.shuffle(lines)
        seen.add(stream_json.are_deltas(lines))
        assert stream_json.are_deltas(lines) == all(line.startswith(DELTA) for line in lines)
    assert seen == {True, False}
    assert not stream_json.are_deltas([])


def test_a_reply_to_our_own_request_is_left_out_wherever_it_stands() -> None:
    reply = json.dumps(
        {"type": "control_response", "response": {"subtype": "success", "request_id": "r", "response": {}}}
    ).encode()
    assert without_reply([b"{}", reply, b"[]"], "r") == ([b"{}", b"[]"], "")
    assert without_reply([b"{}"], "r") == ([b"{}"], "r")
    assert without_reply([reply], "other") == ([reply], "other")


def test_a_prompt_is_composed_by_the_client() -> None:
    line = stream_json.user_line("/model x\n@/etc/passwd")
    assert line.count(b"\n") == 1
    assert json.loads(line) == {
        "type": "user", "message": {"role": "user", "content": "/model x\n@/etc/passwd"}, "client_composed": True,
    }  # fmt: skip


def test_every_option_is_one_word() -> None:
    options = Options(model="haiku", max_turns=3, effort="low", partial=True, json_schema={"a": 1}, max_budget_usd=0.5)
    words = stream_json.arguments(options, "approve", cli_settings=False, files={"system_prompt": "/t/p"})
    assert {"--model=haiku", "--max-turns=3", "--effort=low", "--max-budget-usd=0.5", '--json-schema={"a":1}'} <= set(
        words
    )
    assert {
        "--system-prompt-file=/t/p",
        "--include-partial-messages",
        "--setting-sources=",
        "--strict-mcp-config",
    } <= set(words)


def test_settings_files_are_read_only_if_the_operator_says_so() -> None:
    words = stream_json.arguments(Options(), "chat", cli_settings=True, files={})
    assert "--setting-sources=" not in words
    assert "--tools=" in words


def test_what_has_no_flag_goes_by_the_environment() -> None:
    assert stream_json.environment(Options(temperature=0.5, max_output_tokens=100), {}) == {
        "CLAUDE_CODE_EXTRA_BODY": '{"temperature":0.5}', "CLAUDE_CODE_MAX_OUTPUT_TOKENS": "100",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("operators", "both"),
    [
        ('{"service_tier":"standard_only","temperature":1}', '{"service_tier":"standard_only","temperature":0.5}'),
        ("no JSON", '{"temperature":0.5}'),
        ("[]", '{"temperature":0.5}'),
        ("\udcff", '{"temperature":0.5}'),
    ],
)
def test_what_the_operator_says_to_the_api_stays(operators: str, both: str) -> None:
    found = stream_json.environment(Options(temperature=0.5), {"CLAUDE_CODE_EXTRA_BODY": operators})
    assert found == {"CLAUDE_CODE_EXTRA_BODY": both}


@pytest.mark.parametrize(
    ("usage", "spent"),
    [
        ({}, Spent()),
        ({"total_cost_usd": 0.5}, Spent(0, 0.5)),
        (
            {
                "total_cost_usd": 1,
                "modelUsage": {
                    "a": {
                        "inputTokens": 1,
                        "outputTokens": 2,
                        "cacheReadInputTokens": 4,
                        "cacheCreationInputTokens": 8,
                    },
                    "b": {"inputTokens": 16, "costUSD": 9},
                },
            },
            Spent(31, 1.0),
        ),
        ({"total_cost_usd": "1", "modelUsage": [1]}, Spent()),
        ({"total_cost_usd": -1, "modelUsage": {"a": 1, "b": {"inputTokens": True, "outputTokens": None}}}, Spent()),
        ({"total_cost_usd": 1e300, "modelUsage": {"a": {"inputTokens": -5}}}, Spent()),
    ],
)
def test_what_a_result_says_was_used(usage: dict[str, object], spent: Spent) -> None:
    (sign,) = signs([json.dumps({"type": "result", **usage}).encode()])
    assert sign.spent == spent


def test_a_turn_is_what_all_models_have_used_since_the_last_one() -> None:
    models = {"a": {"inputTokens": 20, "outputTokens": 27, "costUSD": 0.5}, "b": {"inputTokens": 10, "costUSD": 0.25}}
    unpriced = {"a": {"inputTokens": 20}, "b": {"inputTokens": 1, "costUSD": 0.25}}
    for told, turn in (
        (models, (57, 0.75)),
        (unpriced, (21, None)),
        ({}, (0, 0.0)),
        (None, (47, None)),
        ([1], (47, None)),
    ):
        usage = {"input_tokens": 20, "output_tokens": 27}
        said = {"type": "result", "usage": usage, "model_usage_since_last_result": told}
        (sign,) = signs([json.dumps(said).encode()])
        assert (sign.turn_tokens, sign.turn_dollars) == turn
