"""Rule: a session of the client library does the same under Trio and asyncio; every refusal and end is typed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio
from cutter import open_cutter
from harness import NAMES_BOTH, Backend, directive, open_backend, script_cli, until
from libraries import BOTH_LIBRARIES, Library, under_asyncio
from trio_websocket import WebSocketConnection, WebSocketRequest, serve_websocket

from trio_claude.client import (
    Allow,
    Approval,
    Assistant,
    ConnectFailed,
    Delta,
    Deny,
    Init,
    Reconnect,
    Refused,
    Result,
    Session,
    Turn,
    Unknown,
    User,
    ask,
    open_session,
    parse_line,
)
from trio_claude.events import TurnEnded

ASKS = directive("bash", cmd="touch made-by-tool; ls")


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.real_cli)])
async def cli(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Backend]:
    async with open_backend(request.param, folder) as backend:
        yield backend


async def turn(session: Session, text: str) -> tuple[list[Any], Result]:
    lines = [line async for line in session.ask(text)]
    assert isinstance(lines[-1], Result)
    return lines, lines[-1]


@BOTH_LIBRARIES
async def test_turns_models_and_the_end(fake: Backend, library: Library) -> None:
    async def program(url: str) -> Any:
        async with open_session(meta="T", url=url, partial=True) as session:
            lines, first = await turn(session, directive("text", text="one two three", deltas=3))
            await session.set_model("claude-haiku-5-5")
            _, second = await turn(session, "again")
            return session.id, lines, first, second, await session.end()

    async with fake.serve() as server:
        name, lines, first, second, ended = await library(partial(program, server.url))
    inits = [line for line in lines if isinstance(line, Init)]
    assert [init.session for init in inits] == [name]
    assert "".join(line.text for line in lines if isinstance(line, Delta)) == "one two three"
    assert [line.text for line in lines if isinstance(line, Assistant)] == ["one two three"]
    assert (first.text, first.error, second.error) == ("one two three", None, None)
    assert ended.ok
    assert (ended.reason, ended.code, ended.receipt["survivors"]) == ("exit", 1000, 0)


@BOTH_LIBRARIES
@pytest.mark.parametrize(
    ("decision", "told"),
    [(Allow(), "made-by-tool"), (Allow({"command": "echo changed"}), "changed"), (Deny("not today"), "not today")],
    ids=["allow", "changed", "deny"],
)
async def test_approvals_are_a_callback(fake: Backend, library: Library, decision: Allow | Deny, told: str) -> None:
    async def program(url: str) -> Any:
        asked: list[Approval] = []

        async def decide(approval: Approval) -> Allow | Deny:
            asked.append(approval)
            return decision

        async with open_session(meta="T", url=url, on_approval=decide) as session:
            lines, _ = await turn(session, ASKS)
            await session.end()
            return asked, lines

    async with fake.serve() as server:
        asked, lines = await library(partial(program, server.url))
    assert [(approval.tool, approval.input["command"]) for approval in asked] == [("Bash", "touch made-by-tool; ls")]
    results = [block for line in lines if isinstance(line, User) for block in line.blocks]
    assert told in str(results[0]["content"])


@BOTH_LIBRARIES
async def test_a_callback_that_fails_is_the_programs_error_and_the_tool_does_not_run(
    fake: Backend, library: Library
) -> None:
    async def decide(_approval: Approval) -> Allow | Deny:
        raise LookupError("no such policy")

    async def program(url: str) -> None:
        async with open_session(meta="T", url=url, on_approval=decide) as session:
            await turn(session, ASKS)

    async with fake.serve() as server:
        with pytest.raises(LookupError, match="no such policy"):
            await library(partial(program, server.url))
        await until(lambda: fake.ended)
    assert not (fake.cwd / "made-by-tool").exists()


@BOTH_LIBRARIES
@pytest.mark.parametrize(
    ("decision", "error"),
    [
        (Allow({"command": "echo \udcff"}), Refused),
        (Deny("\ud800"), Refused),
        (Allow({"a": {1}}), TypeError),
        (Allow({"a": float("nan")}), ValueError),
        (Allow({"a": "x" * 2000}), Refused),
    ],
    ids=["a surrogate", "in a text", "no JSON", "no number", "too long"],
)
async def test_an_answer_that_can_not_be_given_is_the_programs_error_and_the_cli_goes_on(
    fake: Backend, library: Library, decision: Allow | Deny, error: type[Exception]
) -> None:
    async def program(url: str) -> Any:
        async def decide(_approval: Approval) -> Allow | Deny:
            return decision

        async with open_session(meta="T", url=url, on_approval=decide) as session:
            turn = session.ask(ASKS)
            with pytest.raises(error):
                async for _ in turn:
                    pass
            async for _ in turn:  # the tool did not run, and the turn ends
                pass
            return turn.result

    async with fake.serve(max_session_message=1024) as server:
        result = await library(partial(program, server.url))
    assert isinstance(result, Result)
    assert not (fake.cwd / "made-by-tool").exists()


@BOTH_LIBRARIES
async def test_a_request_that_is_no_json_is_the_programs_error(fake: Backend, library: Library) -> None:
    async def program(url: str) -> Any:
        async with open_session(meta="T", url=url) as session:
            with anyio.fail_after(10), pytest.raises(ValueError, match="not JSON compliant"):
                await session.control("set_model", model=float("nan"))
            return await turn(session, "hello")

    async with fake.serve() as server:
        assert await library(partial(program, server.url))
        with pytest.raises(ValueError, match="not JSON compliant"):
            async with ask("hello", meta="T", url=server.url, temperature=float("nan")):
                pytest.fail("asked")


HEAVY = {"numbers": [1] * 200_000}
"""What takes a server too long to read."""


@BOTH_LIBRARIES
async def test_a_request_that_the_server_can_not_read_is_refused_and_the_session_goes_on(
    fake: Backend, library: Library
) -> None:
    async def program(url: str) -> Any:
        async with open_session(meta="T", url=url, on_approval=allow) as session:
            with anyio.fail_after(10), pytest.raises(Refused, match="message must have at most") as caught:
                await session.control("initialize", **HEAVY)
            assert caught.value.code == "bad-message"
            asking = session.ask(ASKS)
            with anyio.fail_after(10), pytest.raises(Refused, match="message must have at most"):
                async for _ in asking:
                    pass
            async for _ in asking:  # the tool did not run, and the turn ends
                pass
            return asking.result

    async def allow(_approval: Approval) -> Allow | Deny:
        return Allow(HEAVY)

    async with fake.serve() as server:
        assert await library(partial(program, server.url))
    assert not (fake.cwd / "made-by-tool").exists()


@BOTH_LIBRARIES
@pytest.mark.parametrize("reconnect", [None, Reconnect(grace=20)], ids=["alone", "reconnect"])
async def test_a_message_that_is_too_long_is_refused_and_the_session_goes_on(
    fake: Backend, library: Library, reconnect: Reconnect | None
) -> None:
    async def program(url: str) -> Any:
        async with open_session(meta="T", url=url, reconnect=reconnect) as session:
            with pytest.raises(Refused, match="message must be at most 2000 bytes, not 2") as caught:
                await turn(session, "x" * 2000)
            assert caught.value.code == "bad-message"
            return await turn(session, "hello"), await session.end()

    async with fake.serve(max_session_message=2000) as server:
        (_, result), ended = await library(partial(program, server.url))
    assert (result.error, ended.ok) == (None, True)


async def begin(request: WebSocketRequest) -> WebSocketConnection:
    """Begin a session, as a server does."""
    socket = await request.accept(subprotocol=next(iter(request.proposed_subprotocols), None))
    await socket.get_message()
    await socket.send_message('{"type":"gateway","event":"started","run":"1","session":"2"}')
    return socket


@BOTH_LIBRARIES
@pytest.mark.parametrize("reconnect", [None, Reconnect(grace=20)], ids=["alone", "reconnect"])
async def test_a_server_that_closes_without_an_end_is_heard_with_its_reason(
    library: Library, reconnect: Reconnect | None
) -> None:
    async def serve(request: WebSocketRequest) -> None:
        socket = await begin(request)
        await socket.get_message()
        await socket.aclose(1009, "message over 7 bytes")

    async def program(url: str) -> Any:
        async with open_session(meta="T", url=url, reconnect=reconnect) as session:
            with pytest.raises(ConnectionError, match="message over 7 bytes"):
                await turn(session, "hello")
            assert [line async for line in session] == []
            return session.ended

    async with trio.open_nursery() as nursery:
        listening = await nursery.start(serve_websocket, serve, "127.0.0.1", 0, None)
        ended = await library(partial(program, f"http://127.0.0.1:{listening.port}"))
        nursery.cancel_scope.cancel()
    assert (ended.reason, ended.error, ended.code) == ("", "message over 7 bytes", 1009)


@BOTH_LIBRARIES
@pytest.mark.parametrize("code", [1001, 1005, 1012, 1013])
async def test_a_server_that_leaves_and_does_not_come_back_is_told_with_what_stood_in_the_way(
    library: Library, code: int
) -> None:
    asked: list[object] = []

    async def serve(request: WebSocketRequest) -> None:
        asked.append(request)
        if len(asked) > 1:
            await request.reject(503)
            return
        socket = await begin(request)
        if code == 1005:  # a frame without a code
            await socket._stream.send_all(b"\x88\0")
        await socket.aclose(code)

    async def program(url: str) -> Any:
        async with open_session(meta="T", url=url, reconnect=Reconnect(grace=0.4)) as session:
            assert [line async for line in session] == []
            return session.ended

    async with trio.open_nursery() as nursery:
        listening = await nursery.start(serve_websocket, serve, "127.0.0.1", 0, None)
        ended = await library(partial(program, f"http://127.0.0.1:{listening.port}"))
        nursery.cancel_scope.cancel()
    assert ended.code == code
    assert "HTTP 503" in ended.error
    assert len(asked) > 1


@BOTH_LIBRARIES
async def test_a_prompt_that_was_cancelled_before_it_was_said_is_said_by_who_iterates_again(
    fake: Backend, library: Library
) -> None:
    async def program(url: str) -> Any:
        async with open_session(meta="T", url=url) as session:
            turn = session.ask("hello")
            with anyio.move_on_after(0) as scope:
                await anext(turn)
            assert scope.cancelled_caught
            with anyio.fail_after(10):
                async for _ in turn:
                    pass
            return turn.result

    async with fake.serve() as server:
        result = await library(partial(program, server.url))
    assert (type(result), result.error) == (Result, None)


@BOTH_LIBRARIES
async def test_an_error_of_what_hears_events_is_raised_where_the_program_iterates(
    fake: Backend, library: Library
) -> None:
    def hear(said: dict[str, Any]) -> None:
        if said["event"] == "started":
            raise ConnectionError("my database")

    async def program(url: str) -> Any:
        async with open_session(meta="T", url=url, on_event=hear) as session:
            with pytest.raises(ConnectionError, match="my database"):
                await turn(session, "hello")
            return await session.end()

    async with fake.serve() as server:
        assert (await library(partial(program, server.url))).ok


async def test_a_start_that_is_no_json_is_the_programs_error() -> None:
    with pytest.raises(TypeError, match="JSON"):
        async with open_session(meta="T", json_schema={"a": {1}}):
            pytest.fail("there")


async def test_without_a_callback_all_is_denied(fake: Backend) -> None:
    async with fake.serve() as server, open_session(meta="T", url=server.url) as session:
        lines, _ = await turn(session, ASKS)
        assert any("nobody is here" in str(line) for line in lines if isinstance(line, User))


@BOTH_LIBRARIES
async def test_an_interrupt_ends_the_turn(fake: Backend, library: Library) -> None:
    async def program(url: str) -> Any:
        async with open_session(meta="T", url=url, partial=True) as session:
            kept, result = "", None
            async for line in session.ask(directive("slow", n=500, ms=10)):
                if isinstance(line, Delta) and not kept:
                    kept = line.text
                    await session.interrupt()
                result = line
            _, after = await turn(session, "again")
            return result, after, await session.kill()

    async with fake.serve() as server:
        result, after, ended = await library(partial(program, server.url))
    assert result.error
    assert after.error is None
    assert (ended.reason, ended.ok) == ("stopped", False)


async def test_a_turn_that_the_cli_begins_by_itself_ends_none(cli: Backend) -> None:
    """It does where a background task has ended."""

    async def allow(_approval: Approval) -> Allow | Deny:
        return Allow()

    def turns() -> int:
        return sum(isinstance(event, TurnEnded) for event in cli.events)

    async with cli.serve() as server, open_session(meta="T", url=server.url, on_approval=allow) as session:
        await turn(session, directive("bash", cmd="sleep 0.3; touch done", bg=True))
        await until(lambda: turns() == 2, 20)
        lines, second = await turn(session, directive("text", text="mine"))
        assert second.text == "mine"
        assert len([line for line in lines if isinstance(line, Result)]) == 2
        assert (await turn(session, directive("text", text="and mine")))[1].text == "and mine"


async def test_a_result_that_names_others_messages_ends_no_turn(fake: Backend, folder: Path) -> None:
    script = NAMES_BOTH.replace("result both", "result other '\"another\"'\nresult both")
    async with (
        fake.serve(cli=script_cli(folder, script)) as server,
        open_session(meta="T", url=server.url) as session,
    ):
        async for _ in session.ask("first"):
            break
        assert (await turn(session, "second"))[1].text == "both"


async def test_turns_that_the_cli_answers_at_once_end_all(fake: Backend, folder: Path) -> None:
    async with (
        fake.serve(cli=script_cli(folder, NAMES_BOTH)) as server,
        open_session(meta="T", url=server.url) as session,
    ):
        first, second = session.ask("first"), session.ask("second")
        await anext(first)
        lines = [line async for line in second]
        with trio.fail_after(5):
            assert [line async for line in first] == []
        assert first.result is second.result is lines[-1]


@BOTH_LIBRARIES
async def test_tasks_with_a_turn_each_all_end_where_the_cli_answers_at_once(
    fake: Backend, folder: Path, library: Library
) -> None:
    """Whichever of them reads the result."""

    async def program(url: str) -> list[Any]:
        async with open_session(meta="T", url=url) as session:
            turns = [session.ask("first"), session.ask("second")]
            with anyio.fail_after(10):
                async with anyio.create_task_group() as tasks:
                    for one in turns:
                        tasks.start_soon(drain, one)
            return [one.result and one.result.text for one in turns]

    async def drain(one: Turn) -> None:
        async for _ in one:
            pass

    async with fake.serve(cli=script_cli(folder, NAMES_BOTH)) as server:
        assert await library(partial(program, server.url)) == ["both", "both"]


async def test_an_approval_that_is_not_wanted_any_more_is_cancelled(fake: Backend) -> None:
    asked, cancelled = trio.Event(), trio.Event()

    async def decide(_approval: Approval) -> Allow | Deny:
        asked.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with (
        fake.serve() as server,
        open_session(meta="T", url=server.url, on_approval=decide) as session,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(turn, session, ASKS)
        await asked.wait()
        await session.interrupt()
        with trio.fail_after(5):
            await cancelled.wait()


@BOTH_LIBRARIES
async def test_refusals(fake: Backend, library: Library) -> None:
    async def wrong_start(url: str) -> None:
        async with open_session(meta="lower", url=url):
            pass

    async def wrong_line(url: str) -> None:
        async with open_session(meta="T", url=url) as session:
            await turn(session, "")

    async def wrong_request(url: str) -> None:
        async with open_session(meta="T", url=url) as session:
            await session.control("mcp_set_servers", servers={})

    async with fake.serve() as server:
        for program, code in (
            (wrong_start, "bad-message"),
            (wrong_line, "bad-message"),
            (wrong_request, "not-allowed"),
        ):
            with pytest.raises(Refused) as caught:
                await library(partial(program, server.url))
            assert caught.value.code == code


@BOTH_LIBRARIES
async def test_the_clis_death_is_an_end_and_not_an_exception(fake: Backend, library: Library) -> None:
    async def program(url: str) -> Any:
        async with open_session(meta="T", url=url) as session:
            lines = [line async for line in session.ask(directive("exit", status=3))]
            with pytest.raises(ConnectionError):
                await turn(session, "more")
            return lines, session.ended

    async with fake.serve() as server:
        lines, ended = await library(partial(program, server.url))
    assert not [line for line in lines if isinstance(line, Result)]
    assert (ended.reason, ended.error, ended.code) == ("failed", "the CLI exited with status 3", 1011)


@BOTH_LIBRARIES
async def test_what_comes_too_late_for_a_run_is_no_exception(fake: Backend, library: Library) -> None:
    heard: list[str] = []

    def hear(said: dict[str, Any]) -> None:
        heard.append(str(said.get("code", said["event"])))

    async def program(url: str) -> Any:
        async with open_session(meta="T", url=url, on_event=hear) as session:
            async for _ in session.ask(directive("slow", n=20, ms=20)):
                break
            await session.say({"type": "gateway", "op": "stop", "mode": "end"})
            assert [line async for line in session.ask("too late")]
            ended = await session.end()
            assert await session.kill() is ended
            return ended

    async with fake.serve() as server:
        ended = await library(partial(program, server.url))
    assert "ending" in heard
    assert (ended.reason, ended.code) == ("exit", 1000)


@BOTH_LIBRARIES
async def test_a_cli_that_can_not_be_started_is_told_with_its_error(fake: Backend, library: Library) -> None:
    async def program(url: str) -> None:
        async with open_session(meta="T", url=url):
            pass

    async with fake.serve(cli="/no/such/cli") as server:
        with pytest.raises(ConnectionError, match="before the session began: the CLI was not found"):
            await library(partial(program, server.url))


@BOTH_LIBRARIES
@pytest.mark.parametrize("left_by", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()], ids=repr)
async def test_what_leaves_a_program_leaves_it_bare(fake: Backend, library: Library, left_by: BaseException) -> None:
    async def program(url: str, opened: Callable[..., Any]) -> BaseException | None:
        try:
            async with opened(meta="T", url=url):
                raise left_by
        except BaseException as error:
            return error

    async with fake.serve() as server:
        for opened in (open_session, partial(ask, "hello")):
            assert await library(partial(program, server.url, opened)) is left_by
        await until(lambda: server.runs.statistics().live == 0)


@BOTH_LIBRARIES
async def test_what_leaves_a_program_is_heard_though_it_is_cancelled_meanwhile(fake: Backend, library: Library) -> None:
    """Else an error looks like a timeout that passes while the block is left."""

    async def program(url: str, opened: Callable[..., Any]) -> None:
        with anyio.CancelScope() as scope:
            async with opened(meta="T", url=url):
                scope.cancel()
                raise KeyError("mine")

    async with fake.serve() as server:
        for opened in (open_session, partial(ask, directive("silent"))):
            with pytest.raises(KeyError, match="mine"):
                await library(partial(program, server.url, opened))
        await until(lambda: server.runs.statistics().live == 0)


async def test_what_a_cli_asks_twice_is_one_question(fake: Backend) -> None:
    request = {"subtype": "can_use_tool", "tool_name": "Bash", "input": {"command": "ls"}}
    asks = json.dumps({"type": "control_request", "request_id": "R-1", "request": request})
    cancels = json.dumps({"type": "control_cancel_request", "request_id": "R-1"})
    asked: list[str] = []

    async def decide(approval: Approval) -> Allow | Deny:
        asked.append(approval.id)
        return Deny()

    async with (
        fake.serve() as server,
        open_session(meta="T", url=server.url, on_approval=decide) as session,
    ):
        lines = "".join(f"{line}\n" for line in (asks, asks, cancels, asks, cancels))
        await turn(session, directive("raw", text=lines) + directive("text"))
    assert set(asked) == {"R-1"}


async def test_leaving_ends_the_run(fake: Backend) -> None:
    async with fake.serve() as server:
        async with open_session(meta="T", url=server.url) as session:
            async for _ in session.ask(directive("slow", n=500, ms=50)):
                break
        await until(lambda: fake.ended)
    assert fake.ended[0].outcome.reason == "disconnected"


@pytest.mark.parametrize("silent", [False, True])
async def test_a_task_that_asyncio_cancels_twice_leaves_at_once(fake: Backend, silent: bool) -> None:
    """Its own cancellations go through a shield; a run that can be reached is ended all the same."""

    async def program(url: str) -> float:
        ready = asyncio.Event()

        async def talk() -> None:
            async with open_session(meta="T", url=url, reconnect=Reconnect(grace=20)) as session:
                await turn(session, "hello")
                ready.set()
                await asyncio.sleep(60)

        task = asyncio.create_task(talk())
        await ready.wait()
        cutter.silent = silent
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0.1)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=10)
        return len(done)

    async with fake.serve() as server, open_cutter(server.port) as cutter:
        assert await under_asyncio(partial(program, cutter.url)) == 1
        if not silent:
            await until(lambda: fake.ended)


async def test_events_are_heard(fake: Backend) -> None:
    heard: list[str] = []
    async with fake.serve() as server:
        async with open_session(meta="T", url=server.url, on_event=lambda said: heard.append(said["event"])) as session:
            await session.end()
    assert heard == ["hello", "started", "stopping", "ended"]


async def test_who_can_not_be_reached() -> None:
    with pytest.raises(ConnectFailed):
        async with open_session(meta="T", url="http://127.0.0.1:1"):
            pass


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "[]",
        "7",
        "{}",
        '{"type":"new"}',
        '{"type":"assistant"}',
        '{"type":"result","usage":[1]}',
        "[" * 99999,
        '{"type":"stream_event","event":{"delta":{"type":"text_delta","text":5}}}',
    ],
)
def test_an_unknown_line_is_no_error(text: str) -> None:
    assert isinstance(parse_line(text), Unknown)


def test_the_tokens_of_a_turn_are_those_of_all_models() -> None:
    """What an agent has used is not in `usage`; of a later result that tells of none more, none are."""
    models = {
        "opus": {"inputTokens": 20, "outputTokens": 27},
        "haiku": {"inputTokens": 10, "outputTokens": True},
        "x": 5,
    }
    for told, tokens in ((models, (30, 27)), ({}, (0, 0)), (None, (20, 27))):
        said = {"usage": {"input_tokens": 20, "output_tokens": 27}, "model_usage_since_last_result": told}
        result = parse_line(json.dumps({"type": "result", **said}))
        assert isinstance(result, Result)
        assert (result.input_tokens, result.output_tokens) == tokens


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "-1", "1e300", "true", "null", '"7"', "9" * 400])
def test_a_number_that_is_none_counts_as_0(number: str) -> None:
    usage = f'"usage":{{"input_tokens":{number},"output_tokens":7}}'
    result = parse_line(f'{{"type":"result","total_cost_usd":{number},"duration_ms":{number},{usage}}}')
    assert isinstance(result, Result)
    assert (result.input_tokens, result.output_tokens, result.usd, result.seconds) == (0, 7, 0, 0)
