"""Rule: the JavaScript client tells what the server said, each line once, and each end by its own name.

In Node, and what a page does otherwise in Chromium. What is tested is the committed build.
"""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from browser import CLIENT, browse, play, serve_page
from cutter import Cutter, open_cutter
from harness import NAMES_BOTH, NAMES_EACH, OWN_RESULT, Backend, connect, directive, open_backend, script_cli, until
from talk import open_talk

from trio_claude.errors import Reason
from trio_claude.events import RunStarted
from trio_claude.journal import PartKind
from trio_claude.sayings import prompt_schema, start_schema
from trio_claude.server import Server

pytestmark = pytest.mark.node
ANSWER = "Hello from stub."
SLOW = directive("slow", n=300, ms=50)


# -- one prompt --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.real_cli)])
async def cli(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Backend]:
    async with open_backend(request.param, folder) as backend:
        yield backend


async def test_an_answer_comes_line_by_line(cli: Backend, folder: Path) -> None:
    async with cli.serve() as server:
        seen = await play(server, folder, "ask", directive("text", text="one two three"), meta="JS-1", partial=True)
    types = [line["type"] for line in seen["lines"]]
    assert [line["n"] for line in seen["lines"]] == list(range(1, len(types) + 1))
    assert (types[0], types[-1]) == ("system", "result")
    assert types.count("stream_event") > 3
    assert "assistant" in types, "frames are verbatim"
    assert seen["text"] == {"value": "one two three"}
    ended = seen["ended"]
    assert (ended["code"], ended["cause"], ended["exit_status"], ended["left"]) == (1000, "exit 0", 0, 0)
    assert ended["processes"] >= 1
    assert seen["states"][0] == "open"
    assert seen["notes"] == [{"info": "send {prompt,meta}"}]
    assert [(run.meta, run.outcome.reason) for run in cli.ended] == [("JS-1", Reason.EXIT)]


async def test_a_name_that_is_undefined_is_the_usual_one(fake: Backend, folder: Path) -> None:
    async with fake.serve() as server:
        assert await play(server, folder, "unnamed") == {"value": ANSWER}
    assert [run.meta for run in fake.ended] == ["ASK"]


async def test_a_name_that_nobody_knows_is_refused_by_its_name(fake: Backend, folder: Path) -> None:
    """Nothing is ignored in silence; what the server's own schemas have is known."""
    names = {"one_prompt": prompt_schema(), "start": start_schema()["properties"]["options"]}
    known = {name: [one for one in schema["properties"] if one != "prompt"] for name, schema in names.items()}
    async with fake.serve() as server:
        seen = await play(server, folder, "names", **known)
    assert {one["name"] for one in seen.pop("known")} == {"AbortError"}
    assert {one["name"] for one in seen.values()} == {"TypeError"}
    odd = {"ask": "grace", "openSession": "partial", "options": "partly", "attach": "role", "approve": "command"}
    for name, word in odd.items():
        assert seen[name]["message"].startswith(f"{name} takes no `{word}`: "), name
    assert seen["openSession"]["message"].endswith("it is one of `options`")
    assert seen["deny"]["message"] == "deny takes an object, not a string"
    assert [run.meta for run in fake.ended] == ["SESSION"]


@pytest.mark.parametrize("scene", ["leave", "abort"])
async def test_who_leaves_ends_the_run(fake: Backend, folder: Path, scene: str) -> None:
    async with fake.serve() as server:
        seen = await play(server, folder, scene, SLOW, partial=True)
        await until(lambda: bool(fake.ended))
    if scene == "leave":
        assert seen["last"] == 3
        assert "value" in seen["text"], "who leaves gets what there was, and no error"
    else:
        assert seen["failed"]["name"] == seen["text"]["name"] == "AbortError"
    assert seen["ended"]["code"] == 1000
    assert [run.outcome.reason for run in fake.ended] == [Reason.DISCONNECTED]
    assert not fake.left()


async def test_who_gives_up_at_once_connects_to_nobody(fake: Backend, folder: Path) -> None:
    async with fake.serve() as server, open_cutter(server.port) as cutter:
        seen = await play(cutter.url, folder, "abort_early")
        assert cutter.made == 0
    assert {one["name"] for one in seen.values()} == {"AbortError"}
    assert not fake.ended


async def test_who_gives_up_is_heard_while_the_server_is_asked(folder: Path) -> None:
    seen = await play("", folder, "abort_asking")
    assert seen["asked"] == ["fetch"], "a ticket is fetched by nobody"
    assert [reason.partition(":")[0] for reason in seen["ended"]] == ["stopped", "can't reach ws"]
    assert [one["name"] for one in seen["texts"]] == ["AbortError", "AbortError"]


async def test_a_class_that_throws_is_a_server_that_was_not_reached(folder: Path) -> None:
    seen = await play("http://127.0.0.1:1", folder, "thrown")
    for one in (seen["text"], seen["opened"]):
        assert (one["kind"], one["closeCode"]) == ("ConnectionLost", 1006)
        assert "not from here" in one["message"]
    assert seen["ended"] == 1006


async def test_who_gives_up_while_a_run_is_started_leaves_none(fake: Backend, folder: Path) -> None:
    async with fake.serve() as server:
        assert (await play(server, folder, "abort_opening"))["name"] == "AbortError"
        await until(lambda: server.runs.statistics().live == 0)
    assert not fake.left()


ENDS = {
    "bad meta": ({}, {"meta": "no such meta"}, "Refused", 1008, {"code": "refused"}),
    "an option": ({"allow_options": ("partial",)}, {"model": "haiku"}, "Refused", 1008, {}),
    "too large": ({}, {"system_prompt": "x" * 70_000}, "TooLarge", 1009, {"code": "too-large"}),
    "exit 3": ({"cli": "exit 3"}, {}, "RunFailed", 1011, {"exitStatus": 3}),
    "a signal": ({"cli": "kill -9 $$"}, {}, "RunFailed", 1011, {"exitStatus": None}),
    "deadline": ({"cli": "sleep 60", "timeout": 0.3}, {}, "RunFailed", 1011, {"message": "timed out after 0.3 s"}),
}


@pytest.mark.parametrize("case", list(ENDS))
async def test_each_close_code_has_its_error(fake: Backend, folder: Path, case: str) -> None:
    config, options, kind, code, more = ENDS[case]
    config = {name: script_cli(folder, str(value)) if name == "cli" else value for name, value in config.items()}
    async with fake.serve(**config) as server:
        seen = await play(server, folder, "ask", **options)
    check_end(seen, kind, code, **more)


def check_end(seen: Any, kind: str, close: int, **more: object) -> None:
    assert seen["failed"] == seen["text"]
    assert (seen["text"]["kind"], seen["text"]["closeCode"], seen["ended"]["code"], seen["same"]) == (
        kind,
        close,
        close,
        kind,
    )
    assert {name: seen["text"].get(name) for name in more} == more
    assert seen["text"]["reason"] == seen["ended"]["reason"]


async def test_a_full_server_says_when_to_come_again(fake: Backend, folder: Path) -> None:
    async with fake.serve(max_runs=1, queue_timeout=0.2) as server, connect(server) as busy:
        await busy.send_message(json.dumps({"prompt": directive("silent"), "meta": "T"}))
        await until(lambda: server.runs.statistics().live == 1)
        check_end(await play(server, folder, "ask"), "Busy", 1013)
        seen = await play(server, folder, "ask")
        assert seen["text"]["retryAfter"] > 0
        assert any("position" in note for note in seen["notes"])


async def test_a_server_that_goes_down_and_one_that_is_lost(fake: Backend, folder: Path) -> None:
    seen: dict[str, Any] = {}

    async def one(name: str, url: str) -> None:
        seen[name] = await play(url, folder, "ask", SLOW, partial=True)

    async with fake.serve() as server, open_cutter(server.port) as cutter:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, "lost", cutter.url)
            nursery.start_soon(one, "gone", server.url)
            await until(lambda: server.runs.statistics().live == 2)
            cutter.cut()
            await until(lambda: server.runs.statistics().live == 1)
            await server.drain(0.1)
    check_end(seen["gone"], "ServerGone", 1012)
    check_end(seen["lost"], "ConnectionLost", 1006, code="lost")


async def test_a_run_that_somebody_else_ends_is_no_good_end(fake: Backend, folder: Path) -> None:
    async with fake.serve() as server, trio.open_nursery() as nursery:

        async def end_it() -> None:
            await until(lambda: server.runs.statistics().live == 1)
            server.runs.stop_all(Reason.STOPPED, "ended by request", now=True)

        nursery.start_soon(end_it)
        check_end(await play(server, folder, "ask", SLOW), "RunFailed", 1000, message="ended by request")


async def test_lines_that_nobody_reads_are_bounded(fake: Backend, folder: Path) -> None:
    long = directive("bigtext", bytes=50_000)
    async with fake.serve() as server:
        only = await play(server, folder, "text_only", long)
        seen = await play(server, folder, "overflow", long)
        blank = await play(server, folder, "overflow", directive("raw", text="\n" * 1000) + directive("text"))
    assert only["length"] == 50_000
    for error in (only["late"], *seen.values(), *blank.values()):
        assert (error["kind"], error["limit"]) == ("Overflow", 10_000)
        assert "bufferLimit (10000 characters)" in error["message"]


async def test_what_is_read_of_reasons_and_lines(folder: Path) -> None:
    delta = {"type": "stream_event", "event": {"delta": {"type": "text_delta", "text": "he"}}}
    whole = {"type": "assistant", "message": {"content": [{"type": "text", "text": "hello"}, {"type": "tool_use"}]}}
    inner = {**whole, "parent_tool_use_id": "t1"}
    void = {"type": "stream_event", "event": {"type": "message_stop"}, "abandoned_blocks": {"from_block_index": 1}}
    lines = [delta, delta, whole, inner, {"type": "user"}, delta, void, delta, {"type": "result", "result": "done"}]
    seen = await play("", folder, "units", lines=lines)
    assert seen["texts"] == ["he", "hehe", "hello", "hello", "hello", "hellohe", "hello", "hellohe", "done"]
    good, signal, late, bad, none = seen["reasons"]
    counted = {"processes": 7, "left": 0, "ms": 12, "exit_status": 0}
    assert good == {"code": 1000, "reason": "exit 0; 7 processes, 0 left, 12 ms", "cause": "exit 0", **counted}
    assert (signal["cause"], signal["signal"], signal["processes"], signal["left"]) == ("signal 9", 9, 1, None)
    assert (late["cause"], late["left"]) == ("timed out", 1)
    assert (bad, none["cause"]) == ({"code": 1000, "reason": "bad", "cause": "bad"}, "")


# -- who comes in ------------------------------------------------------------------------------------------------------


async def test_a_key_or_a_ticket_opens(fake: Backend, folder: Path) -> None:
    async with fake.serve_known("alice") as (server, keys):
        seen = await play(server, folder, "keys", key=keys["alice"])
    for way in ("key", "ticket", "function", "door"):
        assert seen[way] == {"value": ANSWER}
    for way in ("none", "wrong", "odd", "session"):
        assert seen[way]["kind"] == "Refused", way
    assert seen["none"]["code"] == "credentials"
    for way in ("used", "lost"):
        assert seen[way]["kind"] == "ConnectionLost", way
    assert seen["addresses"] == ["url", "url", "url"]
    assert [run.identity for run in fake.ended] == ["key:alice"] * 4


async def test_without_a_websocket_one_is_asked_for(fake: Backend, modules: Path, folder: Path) -> None:
    async with fake.serve_known("alice") as (server, keys):
        seen = await play(server, folder, "no_websocket", key=keys["alice"], modules=str(modules))
    assert seen["without"]["code"] == "no-websocket"
    for way in ("Node 22", "--experimental-websocket", "ws"):
        assert way in seen["without"]["message"]
    assert (seen["text"], seen["reason"]) == (ANSWER, "stopped")
    assert (seen["wrong"]["kind"], seen["wrong"]["code"]) == ("Refused", "unauthorized"), "not the status alone"


async def test_a_ticket_that_is_not_to_be_had_now_says_when(folder: Path) -> None:
    seen = await play("http://127.0.0.1:1", folder, "busy_tickets")
    assert (seen["kind"], seen["code"], seen["retryAfter"]) == ("Busy", "redis", 30)


@pytest.mark.parametrize(("status", "kind"), [(401, "Refused"), (429, "Busy"), (503, "Busy"), (500, "ConnectionLost")])
async def test_a_status_that_a_handshake_was_refused_with_is_told_though_nobody_says_why(
    folder: Path, status: int, kind: str
) -> None:
    seen = await play("http://127.0.0.1:1", folder, "mute", status=status)
    assert (seen["kind"], seen["code"]) == (kind, f"http-{status}")


# -- sessions ----------------------------------------------------------------------------------------------------------


async def test_a_session_has_turns_approvals_and_interrupts(fake: Backend, folder: Path) -> None:
    tool = directive("bash", cmd="touch asked; ls")
    async with fake.serve() as server:
        seen = await play(server, folder, "session", tool=tool, slow=SLOW, plain=directive("text"))
    assert seen["states"] == ["connecting", "open", "closed"]
    assert seen["first"]["text"] == seen["next"]["text"] == ANSWER
    assert seen["first"]["types"][-1] == "result"
    assert seen["numbers"] == list(range(1, len(seen["numbers"]) + 1))
    assert seen["approved"]["types"].count("approval") == seen["approved"]["types"].count("settled") == 1
    assert not (fake.cwd / "asked").exists()
    assert "not today" in seen["messages"][0]
    assert (seen["stale"]["kind"], seen["stale"]["code"]) == ("Refused", "not-open")
    assert seen["models"] == ["claude-haiku-5-5"]
    assert (seen["wrong"]["kind"], seen["wrong"]["code"]) == ("Refused", "not-allowed")
    assert seen["plain"][-1] == "result"
    assert (seen["role"], seen["hello"]["protocol"], len(seen["id"])) == ("owner", 1, 36)
    assert seen["late"]["code"] == "over"
    assert (seen["ended"]["reason"], seen["ended"]["receipt"]["survivors"]) == ("stopped", 0)
    assert seen["open"] == 0
    assert not fake.left()


async def test_what_the_server_can_not_read_is_refused_and_the_turn_goes_on(fake: Backend, folder: Path) -> None:
    async with fake.serve() as server:
        seen = await play(server, folder, "unreadable", tool=directive("bash", cmd="touch asked"))
    assert (seen["asked"]["kind"], seen["asked"]["code"]) == ("Refused", "bad-message")
    assert seen["refused"] == ["bad-message"] * 2
    assert seen["types"][-1] == "result"
    assert not (fake.cwd / "asked").exists()


async def test_a_message_that_is_refused_ends_no_turn_but_its_own(fake: Backend, folder: Path) -> None:
    """It is told by its name."""
    async with fake.serve() as server:
        prompts = {"tool": directive("bash", cmd="touch asked"), "plain": directive("text")}
        seen = await play(server, folder, "refused", **prompts)
    said, refused = seen["names"]
    assert said == refused
    assert seen["text"].startswith("All done")
    assert (seen["own"]["kind"], seen["own"]["code"]) == ("Refused", "bad-message")
    assert seen["next"] == ANSWER


async def test_a_turn_is_refused_whichever_turn_reads_that(fake: Backend, folder: Path) -> None:
    """And the other one hears of it, and ends with its own result."""
    async with fake.serve() as server:
        seen = await play(server, folder, "refused_aside", directive("text"))
    assert (seen["refused"]["kind"], seen["refused"]["code"]) == ("Refused", "bad-message")
    assert (seen["text"], seen["next"]) == (ANSWER, ANSWER)
    assert seen["types"].count("refused") == 1


async def test_a_message_that_is_refused_keeps_nobody_from_leaving(fake: Backend, folder: Path) -> None:
    async with fake.serve() as server:
        seen = await play(server, folder, "viewer_leaves")
    assert (seen["value"]["reason"], seen["value"]["code"]) == ("", 1000)


@pytest.mark.parametrize("grace", [None, 20])
async def test_a_message_that_is_too_long_is_refused_and_the_session_goes_on(
    fake: Backend, folder: Path, grace: int | None
) -> None:
    async with fake.serve(max_session_message=2000) as server:
        seen = await play(server, folder, "too_long", "\u00e9" * 1000, grace=grace)
    assert (seen["long"]["kind"], seen["long"]["code"]) == ("Refused", "bad-message")
    assert seen["long"]["message"].startswith("message must be at most 2000 bytes, not 21")
    assert (seen["text"], seen["reason"]) == (ANSWER, "stopped")


@pytest.mark.real_cli
async def test_a_session_with_the_real_cli(real: Backend, folder: Path) -> None:
    tool = directive("bash", cmd="touch asked; ls")
    async with real.serve() as server:
        seen = await play(server, folder, "session", tool=tool, slow=SLOW, plain=directive("text"))
    assert seen["first"]["text"] == seen["next"]["text"] == ANSWER
    assert seen["approved"]["types"].count("approval") == 1
    assert not (real.cwd / "asked").exists()
    assert "not today" in seen["messages"][0]
    assert "haiku" in seen["models"][0]
    assert seen["ended"]["receipt"]["survivors"] == 0


async def test_a_turn_that_the_cli_begins_by_itself_ends_none(fake: Backend, folder: Path) -> None:
    prompts = [directive("raw", text=OWN_RESULT) + directive("text", text="one"), directive("text", text="two")]
    async with fake.serve() as server:
        assert await play(server, folder, "turns", prompts=prompts) == ["one", "two"]


async def test_a_message_that_goes_into_a_turn_that_was_left_is_answered_by_its_result(
    fake: Backend, folder: Path
) -> None:
    async with fake.serve(cli=script_cli(folder, NAMES_BOTH)) as server:
        seen = await play(server, folder, "left")
    assert (seen["text"], seen["types"].count("result")) == ("both", 1)


async def test_nothing_is_lost_of_a_turn_behind_one_that_was_left(fake: Backend, folder: Path) -> None:
    async with fake.serve(cli=script_cli(folder, NAMES_EACH)) as server:
        seen = await play(server, folder, "left")
    assert (seen["text"], seen["types"][-2:]) == ("two", ["assistant", "result"])


async def test_turns_that_the_cli_answers_at_once_end_all(fake: Backend, folder: Path) -> None:
    async with fake.serve(cli=script_cli(folder, NAMES_BOTH)) as server:
        assert await play(server, folder, "both") == {"second": "both", "rest": []}


@pytest.mark.parametrize("ended", [False, True], ids=["live", "ended"])
async def test_a_run_is_come_to_where_the_first_connection_fails(fake: Backend, folder: Path, ended: bool) -> None:
    """As with one that breaks later; to a run that is over nothing can be said."""
    async with fake.serve(journal="memory") as server, open_talk(server) as talk:
        run = (await talk.start(on_disconnect={"grace": 30}))["run"]
        await (talk.stop("kill") if ended else talk.say({"type": "gateway", "op": "detach"}))
        await until(lambda: talk.code is not None)
        seen = await play(server, folder, "first_fails", run=run, ended=ended)
    assert seen["states"] == ["connecting", "lost", "open", "closed"]
    assert seen["tries"] == 3
    assert not ended or seen["late"]["code"] == "over"


async def test_a_server_that_sells_no_ticket_just_now_is_asked_when_it_says(fake: Backend, folder: Path) -> None:
    async with fake.serve_known("alice", journal="memory") as (server, keys):
        async with open_talk(server, key=keys["alice"]) as talk:
            run = (await talk.start(on_disconnect={"grace": 30}))["run"]
            await talk.say({"type": "gateway", "op": "detach"})
            await until(lambda: talk.code is not None)
        seen = await play(server, folder, "later", run=run, key=keys["alice"])
    assert (seen["refused"]["kind"], seen["refused"]["code"], seen["refused"]["retryAfter"]) == (
        "Busy",
        "connections",
        20,
    )
    assert seen["said"] == ["connecting", "lost", "waits", "open", "closed"]
    assert seen["tickets"] == 3


async def test_an_address_with_too_many_connections_is_told_so(fake: Backend, folder: Path) -> None:
    """A handshake does not say why it was refused: the answer to a request for a ticket does."""
    async with fake.serve_known("alice", connections_per_address=1) as (server, keys):
        async with open_talk(server, key=keys["alice"]):
            seen = await play(server, folder, "ask", key=keys["alice"])
    assert (seen["text"]["kind"], seen["text"]["code"], seen["text"]["retryAfter"]) == ("Busy", "connections", 1)


async def test_a_host_that_is_not_served_is_told_so(fake: Backend, folder: Path) -> None:
    """Of 0.0.0.0 the system makes this machine, and the server no name of its own."""
    async with fake.serve() as server:
        seen = await play(f"http://0.0.0.0:{server.port}", folder, "ask")
    assert (seen["text"]["kind"], seen["text"]["code"]) == ("Refused", "host")
    assert "the operator can name it with allow_host" in seen["text"]["message"]


async def test_a_broken_connection_and_a_refusal_are_known_by_the_words_of_other_classes(
    fake: Backend, folder: Path
) -> None:
    """Those of the package ws, of Bun and of Deno."""
    messages = [
        "Unexpected server response: 403",
        "WebSocket connection to 'ws://example' failed: Expected 101 status code: 403",
        "NetworkError: failed to connect to WebSocket: Invalid status code: 403",
        "no handshake: 403",
    ]
    async with fake.serve() as server:
        seen = await play(server, folder, "other_words", messages=messages)
    assert seen == {"text": "Hello from stub.", "refused": [*["Refused"] * 3, "ConnectionLost"]}


async def test_who_has_slept_comes_back_over_a_connection_that_is_new(fake: Backend, folder: Path) -> None:
    """The old one may be dead without a word; each line comes once."""
    async with fake.serve() as server:
        seen = await play(server, folder, "sleeps", directive("slow", n=1000, ms=20))
    assert seen["short"] == ["connecting", "open"]
    assert seen["states"] == ["connecting", "open", "lost", "back", "closed"]
    assert seen["numbers"] == [*range(1, len(seen["numbers"]) + 1)]
    assert seen["last"] == "result"


async def test_a_question_that_is_answered_behind_a_break_is_asked_no_more(fake: Backend, folder: Path) -> None:
    """By this client, whose answer is said again, and by another one in its place."""
    tools = {"tool": directive("bash", cmd="touch asked"), "slow": directive("bash", cmd="touch two; sleep 30")}
    async with fake.serve(journal="memory") as server:
        seen = await play(server, folder, "answers_away", **tools)
    assert seen["states"] == ["connecting", "open", "lost", "back", "lost", "back", "closed"]
    assert seen["own"].count("approval") == seen["own"].count("settled") == 1
    assert "refused" not in seen["own"] + seen["types"]
    assert (seen["types"][-2:], seen["open"]) == (["attached", "settled"], 0)
    assert (fake.cwd / "asked").exists()


async def test_who_closes_twice_waits_for_nothing(fake: Backend, folder: Path) -> None:
    async with fake.serve() as server:
        seen = await play(server, folder, "closes")
    assert seen == {"reasons": ["stopped", "stopped"], "timers": 0}


async def test_each_end_of_a_session_is_told(fake: Backend, folder: Path) -> None:
    async with fake.serve() as server:
        seen = await play(
            server, folder, "ends", exit=directive("err", status=401), slow=directive("slow", n=20, ms=20)
        )
    assert (seen["end"]["reason"], seen["end"]["types"][-1], seen["end"]["code"]) == ("exit", "ended", 1000)
    assert seen["kill"]["reason"] == "stopped"
    assert (seen["abort"]["failed"]["name"], seen["abort"]["reason"]) == ("AbortError", "stopped")
    assert (seen["dead"]["failed"]["kind"], seen["dead"]["reason"], seen["dead"]["code"]) == (
        "RunFailed",
        "unauthorized",
        1011,
    )
    assert "refused" in seen["late"]["types"]
    assert seen["late"]["reason"] == "exit"
    for name in ("end", "kill", "abort", "dead", "late"):
        assert seen[name]["receipt"]["survivors"] == 0
    assert (seen["refused"]["kind"], seen["refused"]["closeCode"]) == ("Refused", 1008)
    assert (seen["unknown"]["kind"], seen["unknown"]["code"]) == ("Refused", "not-open")
    assert (seen["stays"]["kind"], seen["stays"]["code"]) == ("Refused", "not-allowed")
    assert not fake.left()


async def test_a_run_is_left_and_come_back_to_and_watched(fake: Backend, folder: Path) -> None:
    async with fake.serve(journal="memory") as server:
        seen = await play(server, folder, "attach", directive("bash", cmd="touch asked; ls"))
    assert seen["id"][0] == seen["id"][1]
    assert seen["pending"] is True
    assert seen["roles"] == ["owner", "owner", "viewer"]
    assert seen["numbers"] == list(range(seen["asked"] + 1, seen["numbers"][-1] + 1))
    assert seen["watched"] == list(range(1, seen["watched"][-1] + 1))
    assert seen["text"]
    assert (seen["left"]["reason"], seen["left"]["code"]) == ("", 1000)
    assert seen["ended"]["reason"] == seen["viewer"]["reason"] == "stopped"
    assert not (fake.cwd / "asked").exists()


async def test_a_run_that_may_not_be_left_is_stayed_with(fake: Backend, folder: Path) -> None:
    async with fake.serve() as server:
        seen = await play(server, folder, "detach")
    assert (seen["failed"]["kind"], seen["failed"]["code"]) == ("Refused", "not-allowed")
    assert (seen["text"], seen["ended"]["reason"]) == (ANSWER, "stopped")


async def test_listeners_that_throw_stop_nothing(fake: Backend, folder: Path) -> None:
    async with fake.serve() as server:
        seen = await play(server, folder, "listeners")
    assert (seen["text"], seen["reason"]) == (ANSWER, "stopped")
    assert {"connecting", "open", "closed", "hello", "started", "ended"} <= set(seen["thrown"])


# -- networks that fail ------------------------------------------------------------------------------------------------


async def chop(server: Server, cutter: Cutter, rng: random.Random, times: int) -> None:
    """Cut that many connections, each at a random byte of one direction; the first only once it is under way."""
    await until(lambda: any(stage.number for stage in server.stages.values()), 60)
    for number in range(times):
        made = cutter.made
        cutter.up, cutter.down = (rng.randrange(250, 1500), None) if number % 3 else (None, rng.randrange(1, 5000))
        cutter.cut()
        await until(lambda made=made: cutter.made > made, 20)
        await trio.sleep(rng.uniform(0.02, 0.15))


async def test_each_line_and_each_message_comes_once_wherever_a_connection_is_cut(fake: Backend, folder: Path) -> None:
    seen: dict[str, Any] = {}
    async with fake.serve(journal="memory") as server, open_cutter(server.port) as cutter:
        async with trio.open_nursery() as nursery:

            async def talk() -> None:
                seen.update(await play(cutter.url, folder, "cut", turns=40))
                nursery.cancel_scope.cancel()

            nursery.start_soon(talk)
            nursery.start_soon(chop, server, cutter, random.Random(5), 20)
        assert server.runs.journal
        await server.runs.journal.settle()
        parts = await server.runs.journal.parts(seen["run"])
    said = [line for part in parts if part.kind is PartKind.SAID for line in part.lines if b'"user"' in line]
    assert len(said) == 40
    assert seen["texts"] == [True] * 40
    assert seen["numbers"] == list(range(1, len(seen["numbers"]) + 1))
    assert (seen["gaps"], seen["ended"]["reason"], seen["ended"]["lines"]) == (0, "exit", len(seen["numbers"]))
    assert seen["states"].count("lost") == seen["states"].count("back") > 3
    assert cutter.made > 4


@pytest.mark.parametrize("has_parted", [False, True])
async def test_a_connection_that_is_lost_for_good_ends_with_the_grace(
    fake: Backend, folder: Path, has_parted: bool
) -> None:
    """Whether it breaks, or a proxy closes it without a code: nobody said that the run is over."""
    seen: dict[str, Any] = {}

    async def talk(url: str) -> None:
        seen.update(await play(url, folder, "cut_for_good"))

    async with fake.serve() as server, open_cutter(server.port) as cutter, trio.open_nursery() as nursery:
        nursery.start_soon(talk, cutter.url)
        await until(lambda: any(isinstance(event, RunStarted) for event in fake.events))
        await trio.sleep(0.3)
        cutter.open = False
        await cutter.part() if has_parted else cutter.cut()
    assert seen["states"] == ["connecting", "open", "lost", "closed"]
    assert seen["failed"]["kind"] == "ConnectionLost"
    assert (seen["ended"]["code"], seen["ended"]["reason"]) == (1006, "")
    assert seen["late"]["code"] == "over"


# -- in a browser ------------------------------------------------------------------------------------------------------

IN_A_PAGE = """(async () => {
  const { ask, openSession } = await import("/client.js");
  const told = (work) => work.catch((error) => [error.constructor.name, error.code]);
  const key = KEY;
  const seen = { requests: [], text: await told(ask("hello", { key }).text) };
  seen.wrong = await told(ask("hello", { key: "tck_wrong" }).text);
  seen.none = await told(ask("hello").text);
  const session = await openSession({ key });
  seen.events = [];
  for await (const event of session.turn(TOOL)) {
    seen.events.push(event.type === "line" ? event.n : event.type);
    if (event.type === "approval") session.deny(event.request_id);
  }
  seen.receipt = (await session.close()).receipt;
  const bounded = ask(SLOW, { key, partial: true });
  for await (const { n } of bounded) if (n === 3) break;
  seen.left = (await bounded.ended).code;
  seen.addresses = performance.getEntriesByType("resource").map((entry) => entry.name);
  return seen;
})()"""


ELSEWHERE = """(async () => {
  const { ask } = await import("/client.js");
  const told = ({ constructor, code, message }) => [constructor.name, code, message];
  const ways = [{ url: URL }, { url: URL, key: "tck_any" }, { url: URL, ticket: () => fetch(NOWHERE) }, { url: NOWHERE }];
  return Promise.all(ways.map((way) => ask("hello", way).text.catch(told)));
})()"""


@pytest.mark.browser
async def test_a_page_whose_origin_is_not_named_is_told_so(fake: Backend, modules: Path, tmp_path: Path) -> None:
    """By a server that is there; of one that is not, nothing else is known."""
    files = {"/": ("text/html", b""), "/client.js": ("text/javascript", CLIENT.read_bytes())}
    async with serve_page(files) as origin, fake.serve() as server:
        script = ELSEWHERE.replace("URL", json.dumps(server.url)).replace("NOWHERE", '"http://127.0.0.1:1"')
        *refused, lost = (await browse(modules, tmp_path, "play", origin, {"script": script}))["value"]
    assert {tuple(one[:2]) for one in (*refused, lost)} == {("ConnectionLost", "lost")}
    hint = f": something answers there, but not to a page of {origin}; the server's operator can name that with --allow-origin"
    assert [message.endswith(hint) for _, _, message in refused] == [True] * 3
    assert lost[2] == "can't reach ws://127.0.0.1:1/ws/claude?frames=verbatim"


@pytest.mark.browser
async def test_in_a_page_a_key_buys_tickets(fake: Backend, modules: Path, tmp_path: Path) -> None:
    async with fake.serve_known("alice") as (server, keys):
        script = IN_A_PAGE.replace("KEY", json.dumps(keys["alice"])).replace("SLOW", json.dumps(SLOW))
        script = script.replace("TOOL", json.dumps(directive("bash", cmd="touch asked; ls")))
        seen = (await browse(modules, tmp_path, "play", f"{server.url}/", {"script": script}))["value"]
        await until(lambda: len(fake.ended) == 3)
    assert seen["text"] == ANSWER
    assert seen["wrong"][0] == seen["none"][0] == "Refused"
    assert {"approval", "settled"} <= set(seen["events"])
    assert seen["receipt"]["survivors"] == 0
    assert seen["left"] == 1000
    assert any(name.endswith("/api/ticket") for name in seen["addresses"])
    assert not any(keys["alice"] in name or "tck_" in name for name in seen["addresses"])
    assert {run.identity for run in fake.ended} == {"key:alice"}
    assert not fake.left()


@asynccontextmanager
async def behind_a_page(fake: Backend) -> AsyncIterator[tuple[Server, Cutter, str]]:
    """A page of another origin, and a network between it and the server that can be cut."""
    files = {
        "/": ("text/html; charset=utf-8", b'<!doctype html><link rel="icon" href="data:,">'),
        "/client.js": ("text/javascript", CLIENT.read_bytes()),
    }
    async with (
        serve_page(files) as origin,
        fake.serve(allow_origin=(origin,)) as server,
        open_cutter(server.port) as cutter,
    ):
        yield server, cutter, origin


@pytest.mark.browser
async def test_a_page_comes_back(fake: Backend, modules: Path, tmp_path: Path) -> None:
    async with behind_a_page(fake) as (server, cutter, origin), trio.open_nursery() as nursery:
        script = """(async () => {
          const { openSession } = await import("/client.js");
          const states = [], numbers = [];
          const session = await openSession({ url: URL, grace: 60, options: { partial: true }, onState: (state) => states.push(state) });
          for await (const event of session.turn(SLOW)) {
            if (event.type === "line") numbers.push(event.n);
            if (event.n === 60) dispatchEvent(new Event("online"));
          }
          return { states, numbers, ended: await session.close() };
        })()"""
        script = script.replace("URL", json.dumps(cutter.url)).replace(
            "SLOW", json.dumps(directive("slow", n=200, ms=15))
        )
        nursery.start_soon(chop, server, cutter, random.Random(3), 8)  # two that come at once are one
        seen = (await browse(modules, tmp_path, "play", origin, {"script": script}))["value"]
        nursery.cancel_scope.cancel()
    assert seen["numbers"] == list(range(1, len(seen["numbers"]) + 1))
    assert len(seen["numbers"]) > 100
    assert seen["states"].count("lost") == seen["states"].count("back") >= 3
    assert seen["ended"]["receipt"]["survivors"] == 0
