"""Rule: /asyncapi.json says what may be said on the sockets, no less and no more, and the server says what it says."""

from __future__ import annotations

import ast
import inspect
import json
import math
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import contract
import pytest
from from_schema import bent, messages
from harness import Backend, ask, call, directive, get, send_raw
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator
from jsonschema.exceptions import ValidationError
from talk import Talk, open_talk

import trio_claude
from trio_claude import sayings
from trio_claude.asyncapi import CLOSES, describe
from trio_claude.checks import Check
from trio_claude.config import CONTROLS, GRANTS, OPTIONS
from trio_claude.errors import ClientError, CloseCode
from trio_claude.messages import Options, parse_object, parse_prompt
from trio_claude.session import Asked, Session, parse_op, parse_start, rebuild

PACKAGE = Path(trio_claude.__file__).parent
NAMES = (*OPTIONS, *GRANTS, "fork")
ASKS = directive("bash", cmd="touch made-by-tool; ls")


# -- the document ------------------------------------------------------------------------------------------------------


@pytest.mark.node
@pytest.mark.parametrize("asks", [True, False])
def test_the_document_is_valid_by_the_official_schema(asks: bool, modules: Path) -> None:
    official = json.loads((modules / "@asyncapi/specs/schemas/3.0.0.json").read_text())
    told = json.loads(json.dumps(describe(asks=asks)))
    Draft7Validator(official).validate(told)
    told["channels"]["claude"]["messages"]["Prompt"] = {"payload": {"type": "strong"}}
    with pytest.raises(ValidationError):
        Draft7Validator(official).validate(told)


@pytest.mark.parametrize("asks", [True, False])
def test_the_document_hangs_together(asks: bool) -> None:
    document = describe(asks=asks)
    references = re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(document))
    for reference in references:
        part: Any = document
        for key in reference.split("/"):
            part = part[key]
    components = document["components"]
    assert components["messages"].keys() == components["schemas"].keys()
    told = {name for operation in document["operations"].values() for name in _named(operation)}
    assert told == components["messages"].keys()
    assert all(("security" in operation) == asks for operation in document["operations"].values())
    for schema in components["schemas"].values():
        Draft7Validator.check_schema(schema)


def _named(operation: dict[str, Any]) -> Iterator[str]:
    for message in operation["messages"]:
        yield message["$ref"].rpartition("/")[2]


async def test_the_document_is_open_to_everybody(fake: Backend) -> None:
    async with fake.serve_known("alice") as (server, _):
        status, headers, body = await call(server, "/asyncapi.json")
        assert (status, json.loads(body)) == (200, describe(asks=True))
        assert headers["content-type"] == "application/json"
    async with fake.serve() as server:
        assert await get(server, "/asyncapi.json") == describe(asks=False)


# -- what a client may say ---------------------------------------------------------------------------------------------


def _hear_prompt(raw: str, _said: Any) -> object:
    return parse_prompt(raw, NAMES[:-1], math.inf)


def _hear_first(raw: str, _said: Any) -> object:
    return parse_start(raw, NAMES, math.inf, math.inf)


def _hear_later(raw: str, _said: Any) -> object:
    said = parse_object(raw)
    return parse_op(said) if said.get("type") == "gateway" else rebuild(said, {}, CONTROLS)


def _answering(subtype: str) -> Callable[[str, Any], object]:
    def hear(raw: str, said: Any) -> object:
        response = said.get("response")
        name = response.get("request_id") if isinstance(response, dict) else None
        open_ = {name: Asked(subtype, b'{"request":{}}', 0.0)} if isinstance(name, str) else {}
        return rebuild(parse_object(raw), open_, CONTROLS)

    return hear


SCHEMAS = contract.SCHEMAS
ANSWERS = sayings.answer_schemas()
CASES = {
    "prompt": ([SCHEMAS["Prompt"]], _hear_prompt),
    "start": ([SCHEMAS["Start"], SCHEMAS["Attach"]], _hear_first),
    "attach": ([SCHEMAS["Attach"], SCHEMAS["Start"]], _hear_first),
    "user": ([SCHEMAS["User"]], _hear_later),
    "gateway": ([SCHEMAS["Stop"], SCHEMAS["Detach"]], _hear_later),
    **{f"ask-{name}": ([schema], _hear_later) for name, schema in sayings.request_schemas().items()},
    **{f"answer-{name}": ([ANSWERS[name], ANSWERS["error"]], _answering(name)) for name in ANSWERS if name != "error"},
    "answer-error": ([ANSWERS["error"]], _answering("something_else")),
}


def accepted(hear: Callable[[str, Any], object], said: Any) -> bool:
    """Return whether the parser takes a message. Whatever it raises but our own refusals fails the test."""
    try:
        hear(json.dumps(said), said)
    except ClientError:
        return False
    return True


@pytest.mark.parametrize("case", CASES)
def test_the_schema_and_the_parser_take_the_same(case: str, long: bool) -> None:
    """What the schema allows is taken; of what differs from that in one place the parser refuses what it refuses."""
    arms, hear = CASES[case]
    validator, refused = contract.Validator({"anyOf": arms}), []
    few = not arms[0]["properties"].keys() - {"type", "request_id", "request"} and len(json.dumps(arms)) < 500

    @settings(
        max_examples=2000 if long else 12 if few else 40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        phases=(Phase.generate,),
        derandomize=not long,
    )
    @given(st.data())
    def hold(data: st.DataObject) -> None:
        first = contract.Validator(arms[0])
        said = data.draw(messages(arms[0]).filter(first.is_valid))
        assert accepted(hear, said)
        for _ in range(3):
            other = data.draw(bent(said))
            good = validator.is_valid(other)
            assert accepted(hear, other) == good, other
            refused.append(not good)

    hold()
    assert sum(refused) > len(refused) / 5


def _user(content: object) -> dict[str, Any]:
    return {"type": "user", "message": {"role": "user", "content": content}}


def _ask(name: str) -> dict[str, Any]:
    return {"type": "control_request", "request_id": name, "request": {"subtype": "interrupt"}}


@pytest.mark.parametrize("over", [0, 1])
def test_the_schema_and_the_parser_have_the_same_edges(over: int) -> None:
    """What chance seldom comes to: lists and texts of just the length that they may have, and one more."""
    text = {"type": "text", "text": "a"}
    hooks = {"subtype": "initialize", "hooks": {"A" * (64 + over): [{"hookCallbackIds": ["a"]}]}}
    edges = [
        ("user", _user([text] * (1000 + over))),
        ("user", _user("a" * (1 - over))),
        ("ask-initialize", {"type": "control_request", "request_id": "a", "request": hooks}),
        ("ask-interrupt", _ask("gateway-" * over + "a")),
        ("prompt", {"prompt": "a" * (8192 + over), "meta": "A"}),
        ("prompt", {"prompt": "a" + "\0" * over, "meta": "A"}),
        ("prompt", {"prompt": "a", "meta": "A" * (64 + over)}),
        ("prompt", {"prompt": "a", "meta": "A", "tools": ["Bash"] * (200 + over)}),
        ("prompt", {"prompt": "a", "meta": "A", "max_turns": 1000 + over}),
        ("attach", {"type": "gateway", "op": "attach", "run": "a", "after": 10**12 + over}),
    ]
    for case, said in edges:
        arms, hear = CASES[case]
        assert accepted(hear, said) == contract.Validator({"anyOf": arms}).is_valid(said) == (not over), said


@pytest.mark.parametrize(
    "data", ["", "AAAA", "AAA=", "AA==", "AAAA=", "AAAA==", "AAAA====", "A===", "AA=A", "AAA", "A A="]
)
def test_the_schema_and_the_parser_take_the_same_base64(data: str) -> None:
    said = _user([{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}])
    assert accepted(_hear_later, said) == contract.validator("User").is_valid(said)


def test_each_option_has_a_schema_of_its_own() -> None:
    fields = attrs.fields_dict(Options)
    assert fields.keys() == set(NAMES)
    told = sayings.field_schemas(Options, NAMES)
    for name, schema in told.items():
        assert isinstance(fields[name].validator, Check) or schema == {"type": "boolean"}, name
    assert set(SCHEMAS["Prompt"]["properties"]) == {"prompt", "meta", *NAMES[:-1]}


def test_what_only_the_parser_sees_is_named_in_the_document() -> None:
    """The words of `BEYOND`, each with a message that the schema takes and the parser does not."""
    beyond = {
        "bytes of UTF-8": {"prompt": "é" * 8000, "meta": "A"},
        "lone surrogates": {"prompt": "\ud800", "meta": "A"},
        "a whole number written with a point": {"prompt": "a", "meta": "A", "max_turns": 1.0},
        "bytes outside of texts": {"prompt": "a", "meta": "A", "json_schema": {"a": [0] * 200_000}},
    }
    for words, said in beyond.items():
        assert words in contract.DOCUMENT["info"]["description"]
        assert contract.validator("Prompt").is_valid(said)
        assert not accepted(_hear_prompt, said)
    assert "a key said twice" in contract.DOCUMENT["info"]["description"]
    with pytest.raises(ClientError):
        parse_prompt('{"prompt":"a","meta":"A","meta":"A"}', NAMES, math.inf)


# -- what the server says ----------------------------------------------------------------------------------------------


def calls(name: str) -> Iterator[ast.Call]:
    """Yield each call of a function by its last name."""
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == name:
                yield node


def test_each_event_that_the_code_renders_is_in_the_table_with_its_fields() -> None:
    events, rendered = sayings.event_schemas(), set()
    for node in calls("render_event"):
        assert isinstance(node.args[0], ast.Constant)
        event = str(node.args[0].value)
        rendered.add(event)
        assert {word.arg for word in node.keywords if word.arg} <= events[event]["properties"].keys()
    assert rendered == events.keys()


def test_each_code_of_a_refusal_is_in_the_table() -> None:
    assert not [node.lineno for node in calls("render_refused") if isinstance(node.args[0], ast.Constant)]
    told = {"bad-message", "not-allowed", "queue-full", "over-budget", "ahead", "draining"}
    assert told <= set(sayings.refusal_codes())


def test_each_close_code_and_phase_is_told() -> None:
    assert set(CLOSES) == set(CloseCode)
    assert isinstance(Session.phase, property)
    phase = textwrap.dedent(inspect.getsource(Session.phase.fget))
    said = {node.value for node in ast.walk(ast.parse(phase)) if isinstance(node, ast.Constant)}
    assert {word for word in said if re.fullmatch("[a-z]+(-[a-z]+)+", str(word))} == set(sayings.PHASES)
    reasons = contract.DOCUMENT["channels"]["session"]["x-reasons"]
    assert (reasons["exit"], reasons["deadline"], reasons["drained"], reasons["stopped"]) == (1000, 1011, 1012, 1000)


def test_the_tests_clients_see_a_frame_that_is_not_in_the_document() -> None:
    for frame in ('{"info":1}', '{"error":"x","more":1}', '{"stderr":"x","after":0}'):
        with pytest.raises(ValidationError):
            contract.check_frame(frame)
    gap = '{"type":"gateway","event":"gap","from":1,"to":2'
    contract.check_event(gap + "}", first=False)
    for frame in (gap + ',"more":1}', gap.replace("1", "0") + "}"):
        with pytest.raises(ValidationError):
            contract.check_event(frame, first=False)
    with pytest.raises(AssertionError):
        contract.check_event('{"type":"gateway","event":"new"}', first=False)
    with pytest.raises(AssertionError):
        contract.check_close("claude", 1001)


async def test_each_event_of_the_table_is_said(fake: Backend) -> None:
    """And each frame of them is as the document has it: `Talk` looks at every one."""
    settings_ = {"max_runs": 1, "stall_notice": 0.3, "approval_timeout": 0.3, "journal": "memory"}
    talks: list[Talk] = []
    async with fake.serve(**settings_) as server, open_talk(server) as first, open_talk(server) as second:
        started = await first.start()
        await second.say({"type": "gateway", "op": "start", "meta": "TWO"})
        await second.event("queued")
        async with open_talk(server) as viewer:
            await viewer.say({"type": "gateway", "op": "attach", "run": started["run"], "as": "viewer"})
            await viewer.event("attached")
        await first.user(directive("stderr", text="oh"))
        before = first._seen
        await first.event("stderr")
        first._seen = before  # which of the two comes first is a race
        await first.result()
        await first.user(ASKS)
        await first.event("denied")
        await first.result()
        await first.say("no JSON")
        await first.event("refused")
        await first.user(directive("silent"))
        await first.event("stalled")
        await first.stop("kill")
        await first.end()
        await second.stop("kill")
        await second.end()
        async with open_talk(server) as third:
            await third.start(resume=started["session"])
            await third.stop("kill")
            await third.end()
        talks = [first, second, viewer, third]
    async with fake.serve(journal="memory", journal_content=False) as server, open_talk(server) as fourth:
        run = (await fourth.start())["run"]
        await fourth.user("hello")
        await fourth.result()
        await fourth.stop("end")
        await fourth.end()
        async with open_talk(server) as fifth:
            await fifth.say({"type": "gateway", "op": "attach", "run": run})
            await fifth.end()
        talks.append(fifth)
    async with fake.serve(journal="memory", journal_run_bytes=1024) as server, open_talk(server) as sixth:
        await sixth.start()
        await sixth.user(directive("lines", n=10, size=1000))
        assert (await sixth.event("history"))["state"] == "ended"
        await sixth.stop("kill")
        await sixth.end()
        talks.append(sixth)
    assert {frame["event"] for talk in talks for frame in talk.frames if "event" in frame} == set(
        sayings.event_schemas()
    )


async def test_each_frame_of_the_one_shot_door_is_said(fake: Backend) -> None:
    before = contract.seen.copy()
    async with fake.serve() as server:
        await ask(server, directive("stderr", text="oh") + directive("exit", code=3))
        await send_raw(server, "no JSON")
    assert {"Info", "Stderr", "Error"} <= (contract.seen - before).keys()
