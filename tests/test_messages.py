"""Rule: a message is accepted whole or refused with an error that names the field and the limit."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_claude import messages
from trio_claude.config import OPTIONS
from trio_claude.errors import BadMessage, CloseCode, Reason
from trio_claude.events import Outcome, Receipt

GOOD = {"prompt": "hi", "meta": "TASK-123"}
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def parse(message: object, allowed: tuple[str, ...] = OPTIONS) -> messages.Prompt:
    return messages.parse_prompt(json.dumps(message), allowed, 300)


def refusal(message: object) -> str:
    with pytest.raises(BadMessage) as caught:
        messages.parse_prompt(message if isinstance(message, str | bytes) else json.dumps(message), OPTIONS, 300)
    return str(caught.value)


def test_a_good_message_is_taken_as_it_is() -> None:
    prompt = parse({**GOOD, "model": "haiku", "temperature": 1, "partial": True, "json_schema": {"type": "object"}})
    assert (prompt.prompt, prompt.meta) == ("hi", "TASK-123")
    assert (prompt.options.model, prompt.options.temperature, prompt.options.partial) == ("haiku", 1, True)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (b"{}", "message must be text"),
        ("{", "not JSON"),
        ("[]", "must be a JSON object"),
        ("3", "must be a JSON object"),
        ('"text"', "must be a JSON object"),
        ("[" * 10_000, "RecursionError"),
        ("9" * 5000, "ValueError"),
        ('{"prompt":"a","prompt":"b","meta":"A"}', "duplicate key 'prompt'"),
        ('{"prompt":NaN,"meta":"A"}', "NaN"),
        ({"meta": "A"}, "prompt is missing"),
        ({"prompt": "hi"}, "meta is missing"),
        ({**GOOD, "prompt": 1}, "prompt must be text, not a number"),
        ({**GOOD, "prompt": None}, "prompt must be text, not null"),
        ({**GOOD, "prompt": ["a"]}, "prompt must be text, not an array"),
        ({**GOOD, "prompt": ""}, "prompt must be 1 to 8192 bytes of UTF-8, not 0"),
        ({**GOOD, "prompt": "x" * 8193}, "prompt must be 1 to 8192 bytes of UTF-8, not 8193"),
        ({**GOOD, "prompt": "€" * 2731}, "prompt must be 1 to 8192 bytes of UTF-8, not 8193"),
        ({**GOOD, "prompt": "a\0"}, "prompt must not hold a NUL"),
        ({**GOOD, "prompt": "\udc80"}, "prompt holds a lone surrogate"),
        ({**GOOD, "meta": ""}, "meta must match"),
        ({**GOOD, "meta": "A\n"}, "meta must match"),
        ({**GOOD, "meta": "task"}, "meta must match"),
        ({**GOOD, "meta": "A" * 65}, "at most 64"),
        ({**GOOD, "other": 1}, "unknown key 'other'"),
        ({**GOOD, "max_turns": "7"}, "max_turns must be a whole number, not text"),
        ({**GOOD, "max_turns": True}, "max_turns must be a whole number, not true or false"),
        ({**GOOD, "max_turns": 0}, "max_turns must be from 1 to 1000"),
        (
            '{"prompt":"hi","meta":"T","max_turns":1' + "0" * 400 + "}",
            "max_turns must be from 1 to 1000, not a number of 401 digits",
        ),
        ({**GOOD, "temperature": 1.1}, "temperature must be from 0 to 1"),
        ({**GOOD, "timeout": 301}, "timeout must be at most 300"),
        ({**GOOD, "model": "--help"}, "model must match"),
        ({**GOOD, "model": None}, "model must not be null"),
        ({**GOOD, "resume": "../x"}, "resume must match"),
        ({**GOOD, "workspace": ".."}, "workspace must match"),
        ({**GOOD, "effort": "huge"}, "effort must be one of"),
        ({**GOOD, "json_schema": {"a": "x" * 40000}}, "json_schema must be at most"),
        ({**GOOD, "permission_mode": "bypassPermissions"}, "permission_mode is not allowed"),
        ({**GOOD, "fork": True}, "fork is not allowed"),
        ({**GOOD, "cwd": "/"}, "unknown key"),
    ],
)
def test_a_bad_message_is_refused_by_name(message: object, told: str) -> None:
    assert told in refusal(message)


CYCLE: dict[str, Any] = {}
CYCLE["again"] = CYCLE


@pytest.mark.parametrize(
    ("prompt", "options", "told"),
    [
        (b"hi", {}, "prompt must be text, not bytes"),
        ("hi", {"max_budget_usd": Decimal(1)}, "max_budget_usd must be a number, not Decimal"),
        ("hi", {"json_schema": {"a": {1}}}, "json_schema must be JSON"),
        ("hi", {"json_schema": {"a": float("nan")}}, "json_schema must be JSON"),
        ("hi", {"json_schema": CYCLE}, "json_schema must be JSON"),
    ],
)
def test_what_is_no_json_is_refused_by_name_in_python(prompt: Any, options: dict[str, Any], told: str) -> None:
    with pytest.raises(BadMessage, match=told):
        messages.make_prompt(prompt, "T", options, OPTIONS, 300)


def test_8192_bytes_of_three_byte_characters_are_accepted() -> None:
    assert len(parse({**GOOD, "prompt": "€" * 2730 + "ab"}).prompt.encode()) == 8192


@pytest.mark.parametrize("prompt", ["-x", "--model=evil", "@/etc/passwd", "/model haiku", "!id"])
def test_a_prompt_is_only_text(prompt: str) -> None:
    assert parse({**GOOD, "prompt": prompt}).prompt == prompt


@pytest.mark.parametrize("name", ["", "1", "a\n", "a\x7f", "a\ud800", "a" * 301])
def test_what_is_no_name_of_a_tool_is_refused_by_its_field(name: str) -> None:
    """Half a character is nothing that can stand among a program's arguments."""
    with pytest.raises(BadMessage, match="allowed_tools must hold names"):
        parse({**GOOD, "allowed_tools": ["Bash(echo ü:*)", name]}, allowed=("allowed_tools",))


@pytest.mark.parametrize(
    "server",
    [
        5, None, {}, {"url": "http://x"}, {"type": "streamableHttp", "url": "http://x"}, {"type": "http"},
        {"type": "http", "url": 1}, {"type": ["http"], "url": "http://x"}, {"command": ["x"]}, {"type": "sse", "command": "x"},
    ],
)  # fmt: skip
def test_what_the_cli_takes_for_no_mcp_server_is_refused_by_name(server: object) -> None:
    with pytest.raises(BadMessage, match=r"mcp_servers: 'mine' must have a command, or a type \(http, .*\) and a url"):
        parse({**GOOD, "mcp_servers": {"good": {"command": "x"}, "mine": server}}, allowed=("mcp_servers",))


def test_mcp_servers_of_every_kind_are_taken_as_they_are() -> None:
    servers = {
        "plain": {"command": "x", "args": ["y"], "env": {"A": "b"}}, "stdio": {"type": "stdio", "command": "x"},
        "http": {"type": "http", "url": "http://x", "headers": {"A": "b"}}, "sse": {"type": "sse", "url": "http://x"},
        "sdk": {"type": "sdk", "name": "sdk"},
    }  # fmt: skip
    assert parse({**GOOD, "mcp_servers": servers}, allowed=("mcp_servers",)).options.mcp_servers == servers


def test_options_that_the_server_does_not_allow_are_refused() -> None:
    with pytest.raises(BadMessage, match="model is not allowed"):
        parse({**GOOD, "model": "haiku"}, allowed=("effort",))


@given(
    st.one_of(
        JSON.map(json.dumps),
        st.text(),
        st.binary(),
        st.dictionaries(st.sampled_from(["prompt", "meta", *OPTIONS]), JSON).map(json.dumps),
    )
)
def test_any_input_is_accepted_or_refused_with_our_error(raw: str | bytes) -> None:
    try:
        messages.parse_prompt(raw, OPTIONS, 300)
    except BadMessage as error:
        assert str(error)


def test_an_assistant_line_becomes_a_message_and_loses_nothing() -> None:
    outer = {"type": "assistant", "message": {"id": "m", "type": "message", "content": []}, "uuid": "u", "id": "o"}
    assert json.loads(messages.as_message(json.dumps(outer).encode())) == {
        "id": "m", "type": "message", "content": [], "uuid": "u", "outer_id": "o",
    }  # fmt: skip


def test_half_a_character_of_an_assistant_line_stays_what_it_is() -> None:
    line = rb'{"type":"assistant","message":{"content":"\u00fc\ud83d b"}}'
    assert messages.as_message(line) == rb'{"content":"\u00fc\ud83d b","type":"message"}'


def test_a_line_that_is_nested_as_deep_as_can_be_read_stays_as_it_is_or_becomes_a_message() -> None:
    """What can just be read may be too deep to be written."""
    for depth in range(1, 1100):
        line = b'{"type":"assistant","message":{},"x":' + b"[" * depth + b"]" * depth + b"}"
        said = messages.as_message(line)
        assert said in (line, line.replace(b'"assistant","message":{}', b'"message"')), depth


@pytest.mark.parametrize(
    "line",
    [b'{"type":"result"}', b"plain", b'{"type":"assistant"}', b'{"type":"assistant","message":3}', b'["assistant"]',
     b'{"type":"user","message":{},"x":"assistant"}', b'"assistant"', b'{"assistant"' * 3,
     b'{"type":"assistant","message":{"cost":1e999}}'],
)  # fmt: skip
def test_every_other_line_stays_as_it_is(line: bytes) -> None:
    assert messages.as_message(line) == line


def outcome(reason: Reason, **more: object) -> Outcome:
    receipt = more.pop("receipt", Receipt(seen=7, killed=6, survivors=0, ms=12.4, containment="supervisor"))
    return Outcome(
        **{
            "reason": reason,
            "exit_status": 0,
            "signal": None,
            "lines": 3,
            "encoding_errors": 0,
            "receipt": receipt,
            **more,
        }
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ended", "code", "reason"),
    [
        (outcome(Reason.EXIT), CloseCode.NORMAL, "exit 0; 7 processes, 0 left, 12 ms"),
        (outcome(Reason.EXIT, after_result=True), CloseCode.NORMAL, "ended after result; 7 processes, 0 left, 12 ms"),
        (outcome(Reason.FAILED, exit_status=3, error="e"), CloseCode.FAILED, "exit 3; 7 processes, 0 left, 12 ms"),
        (outcome(Reason.FAILED, exit_status=None, signal=9, error="e"), CloseCode.FAILED, "signal 9; 7 processes, 0 left, 12 ms"),
        (outcome(Reason.FAILED, exit_status=None, error="e"), CloseCode.FAILED, "failed; 7 processes, 0 left, 12 ms"),
        (outcome(Reason.DEADLINE, error="e"), CloseCode.FAILED, "timed out; 7 processes, 0 left, 12 ms"),
        (outcome(Reason.DRAINED, error="e"), CloseCode.RESTARTING, "drained; 7 processes, 0 left, 12 ms"),
        (outcome(Reason.EXIT, receipt=Receipt(1, 1, None, 3.0, "group")), CloseCode.NORMAL, "exit 0; 1 process, unproven, 3 ms"),
        (outcome(Reason.EXIT, receipt=Receipt(3, 1, 2, 3.0, "supervisor")), CloseCode.FAILED, "exit 0; 3 processes, 2 left, 3 ms"),
    ],
)  # fmt: skip
def test_the_close_says_what_happened(ended: Outcome, code: CloseCode, reason: str) -> None:
    closing = messages.closing(ended)
    assert (closing.code, closing.reason) == (code, reason)


def test_survivors_are_told_and_never_called_a_good_end() -> None:
    closing = messages.closing(outcome(Reason.EXIT, receipt=Receipt(3, 1, 2, 3.0, "supervisor")))
    assert closing.frame is not None
    assert "could not be proven gone" in closing.frame


def test_a_failure_carries_the_exit_status() -> None:
    closing = messages.closing(outcome(Reason.FAILED, exit_status=3, error="e"))
    assert closing.frame == '{"error":"e","exit_status":3}'


@given(st.text(max_size=300))
def test_a_close_reason_always_fits_its_frame(text: str) -> None:
    clipped = messages.clip(text.encode("utf-8", "replace").decode())
    assert len(clipped.encode()) <= messages.REASON_LIMIT


@pytest.mark.parametrize("number", ["1e999", "-1e400", "NaN", "Infinity"])
def test_a_number_that_is_none_is_refused(number: str) -> None:
    with pytest.raises(BadMessage, match="number"):
        messages.parse_object(f'{{"prompt":{number}}}')


def test_a_large_message_is_text_and_little_else() -> None:
    large = json.dumps({"prompt": 'a "quoted" \\ text' * 100_000})
    assert len(messages.parse_object(large)["prompt"]) == 1_700_000
    for wrong in (
        json.dumps({"a": [{"b": 1}] * 100_000}),
        "[" * 300_000,
        json.dumps({"a": [1] * 200_000}),
        json.dumps({"a": ["\\"] * 200_000}),
        '{"a":[' + '"",' * 200_000 + '""]}',
    ):
        with pytest.raises(BadMessage, match="outside of its texts"):
            messages.parse_object(wrong)
