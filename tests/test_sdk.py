"""Rule: a program written against the official SDK says the same over a server as over the SDK's own transport."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import json
import re
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from harness import Backend, directive, until
from libraries import BOTH_LIBRARIES, Library, under_asyncio

pytestmark = [
    pytest.mark.real_cli,
    # the SDK leaves streams to the garbage collector, and warns of its own callbacks
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

ASKS = directive("bash", cmd="touch made-by-tool; ls")
Program = Callable[[Callable[[], Any], Any], Awaitable[Any]]
"""What gets a maker of transports and the SDK, and returns what it has seen."""


def over(url: str, options: Any) -> Any:
    from trio_claude.sdk import WebSocketTransport

    return WebSocketTransport(url, options=options)


def own(backend: Backend, options: Any) -> Any:
    """The SDK's own transport, on the same CLI in the same surroundings."""
    from claude_agent_sdk._internal.transport.subprocess_cli import SubprocessCLITransport

    asked = "stdio" if options.can_use_tool else None  # as the SDK does for its own transport
    more = {
        "permission_prompt_tool_name": asked,
        "cli_path": backend.program,
        "cwd": str(backend.cwd),
        "env": backend.environ,
        "setting_sources": [],
    }
    return SubprocessCLITransport(prompt="", options=dataclasses.replace(options, **more))


def shown(message: Any) -> Any:
    """What a program makes of a message: its kind and what was said, without ids and times."""
    content = getattr(message, "content", None)
    if isinstance(content, list):
        blocks = [
            getattr(block, "text", None) or getattr(block, "content", None) or getattr(block, "name", None)
            for block in content
        ]
        return type(message).__name__, blocks
    return type(message).__name__, getattr(message, "subtype", None), getattr(message, "result", None)


async def compare(backend: Backend, library: Library, program: Program, options: Any = None) -> list[Any]:
    """Run a program over both transports; return what it has seen, which must be the same."""
    from claude_agent_sdk import ClaudeAgentOptions

    options = options or ClaudeAgentOptions()
    async with backend.serve() as server:
        seen = await library(partial(program, partial(over, server.url, options), options))
        await until(lambda: backend.ended)
        receipts = [event.outcome.receipt.survivors for event in backend.ended]
    theirs = await library(partial(program, partial(own, backend, options), options))
    assert seen == theirs
    assert set(receipts) == {0}
    assert not backend.left()
    result: list[Any] = seen
    return result


@BOTH_LIBRARIES
async def test_quick_start(real: Backend, library: Library) -> None:
    async def program(transport: Callable[[], Any], options: Any) -> Any:
        from claude_agent_sdk import query

        return [
            shown(message)
            async for message in query(prompt="What is 2 + 2?", options=options, transport=transport())
            if type(message).__name__ != "SystemMessage"
        ]

    seen = await compare(real, library, program)
    assert seen == [("AssistantMessage", ["Hello from stub."]), ("ResultMessage", "success", "Hello from stub.")]


@BOTH_LIBRARIES
async def test_streaming_input_and_partial_messages(real: Backend, library: Library) -> None:
    async def program(transport: Callable[[], Any], options: Any) -> Any:
        from claude_agent_sdk import ClaudeSDKClient

        seen = []
        async with ClaudeSDKClient(options=options, transport=transport()) as client:
            for text in (directive("text", text="one two", deltas=2), "again"):
                await client.query(text)
                async for message in client.receive_response():
                    if type(message).__name__ == "StreamEvent":
                        seen.append(message.event.get("delta", {}).get("text"))
                    elif type(message).__name__ != "SystemMessage":
                        seen.append(shown(message))
        return [one for one in seen if one]

    from claude_agent_sdk import ClaudeAgentOptions

    seen = await compare(real, library, program, ClaudeAgentOptions(include_partial_messages=True))
    assert len([one for one in seen if one[0] == "ResultMessage"]) == 2
    assert "".join(one for one in seen[:4] if isinstance(one, str)) == "one two"


@BOTH_LIBRARIES
@pytest.mark.parametrize("decision", ["allow", "change", "deny"])
async def test_a_permission_callback(real: Backend, library: Library, decision: str) -> None:
    from claude_agent_sdk import ClaudeAgentOptions, PermissionResultAllow, PermissionResultDeny

    async def decide(_tool: str, _input: Any, _context: Any) -> Any:
        if decision == "deny":
            return PermissionResultDeny(message="policy says no")
        changed = {"command": "echo changed", "description": "x"}
        return PermissionResultAllow(updated_input=changed if decision == "change" else None)

    async def program(transport: Callable[[], Any], options: Any) -> Any:
        from claude_agent_sdk import ClaudeSDKClient

        async with ClaudeSDKClient(options=options, transport=transport()) as client:
            await client.query(ASKS)
            return [
                shown(message)
                async for message in client.receive_response()
                if type(message).__name__ != "SystemMessage"
            ]

    options = ClaudeAgentOptions(can_use_tool=decide)
    seen = await compare(real, library, program, options)
    expected = {"allow": "made-by-tool", "change": "changed", "deny": "policy says no"}[decision]
    assert expected in str(seen)


@BOTH_LIBRARIES
async def test_an_interrupt(real: Backend, library: Library) -> None:
    async def program(transport: Callable[[], Any], options: Any) -> Any:
        from claude_agent_sdk import ClaudeSDKClient

        async with ClaudeSDKClient(options=options, transport=transport()) as client:
            await client.query(directive("slow", n=400, ms=20))
            seen = []
            async for message in client.receive_response():
                if type(message).__name__ == "SystemMessage" and message.subtype == "init":
                    await client.interrupt()
                seen.append(type(message).__name__)
            await client.set_model("claude-haiku-5-5")
            await client.query("again")
            seen += [
                message.data["model"]
                async for message in client.receive_response()
                if type(message).__name__ == "SystemMessage" and message.subtype == "init"
            ]
            # whether some of the answer had come by then is a race
            return [one for one in seen if one not in {"SystemMessage", "AssistantMessage"}]

    seen = await compare(real, library, program)
    assert seen[-1] == "claude-haiku-5-5"


@BOTH_LIBRARIES
async def test_a_session_is_resumed_and_forked(real: Backend, library: Library) -> None:
    async def program(url: str) -> Any:
        from claude_agent_sdk import ClaudeAgentOptions, query

        ids = []
        for more in ({}, {"resume": 0}, {"resume": 0, "fork_session": True}):
            wish = {name: ids[0] if name == "resume" else value for name, value in more.items()}
            options = ClaudeAgentOptions(**wish)
            ids += [
                message.session_id
                async for message in query(prompt="hello", options=options, transport=over(url, options))
                if type(message).__name__ == "ResultMessage"
            ]
        return ids

    async with real.serve() as server:
        first, second, third = await library(partial(program, server.url))
    assert first == second != third


@BOTH_LIBRARIES
async def test_hooks_and_servers_of_this_program(real: Backend, library: Library) -> None:
    async def program(transport: Callable[[], Any], options: Any) -> Any:
        from claude_agent_sdk import ClaudeSDKClient

        async with ClaudeSDKClient(options=options, transport=transport()) as client:
            await client.query(directive("tool", name="mcp__calc__add", input={"a": 2, "b": 3}))
            return [
                shown(message)
                async for message in client.receive_response()
                if type(message).__name__ != "SystemMessage"
            ]

    from claude_agent_sdk import (
        ClaudeAgentOptions,
        HookMatcher,
        PermissionResultAllow,
        create_sdk_mcp_server,
        tool,
    )

    hooked: list[str] = []

    @tool("add", "Add two numbers", {"a": int, "b": int})
    async def add(numbers: dict[str, Any]) -> dict[str, Any]:
        return {"content": [{"type": "text", "text": f"sum {numbers['a'] + numbers['b']}"}]}

    async def before(said: Any, _use: Any, _context: Any) -> Any:
        hooked.append(said["tool_name"])
        return {}

    async def decide(_tool: str, _input: Any, _context: Any) -> Any:
        return PermissionResultAllow()

    options = ClaudeAgentOptions(
        mcp_servers={"calc": create_sdk_mcp_server("calc", tools=[add])},
        hooks={"PreToolUse": [HookMatcher(matcher=None, hooks=[before])]},
        can_use_tool=decide,
    )
    seen = await compare(real, library, program, options)
    assert "sum 5" in str(seen)
    assert hooked == ["mcp__calc__add", "mcp__calc__add"]


@BOTH_LIBRARIES
async def test_hooks_are_called_in_a_turn_that_an_agent_brings_about(real: Backend, library: Library) -> None:
    async def program(transport: Callable[[], Any], options: Any) -> Any:
        from claude_agent_sdk import query

        agent = {"description": "x", "prompt": "sub " + directive("text"), "subagent_type": "general-purpose"}
        prompt = directive("tool", name="Agent", input=agent)
        hooked.clear()
        results = [
            message.result
            async for message in query(prompt=prompt, options=options, transport=transport())
            if type(message).__name__ == "ResultMessage"
        ]
        return [len(results), hooked.count("Stop")]

    from claude_agent_sdk import ClaudeAgentOptions, HookMatcher

    hooked: list[str] = []

    async def note(said: Any, _use: Any, _context: Any) -> Any:
        hooked.append(said["hook_event_name"])
        if said["hook_event_name"] == "Stop":  # so long that the agent is done before the result
            await anyio.sleep(0.5)
        return {}

    options = ClaudeAgentOptions(hooks={"Stop": [HookMatcher(hooks=[note])]})
    assert await compare(real, library, program, options) == [2, 2]


@BOTH_LIBRARIES
async def test_a_failed_turn_is_the_sdks_own_error(real: Backend, library: Library) -> None:
    async def program(transport: Callable[[], Any], options: Any) -> Any:
        from claude_agent_sdk import ProcessError, query

        seen = []
        try:
            async for message in query(prompt=directive("err", status=400), options=options, transport=transport()):
                seen.append(shown(message))  # noqa: PERF401 - what came before the error counts
        except ProcessError as error:
            seen.append((type(error).__name__, getattr(error, "api_error_status", None), error.exit_code))
        return [one for one in seen if one[0] != "SystemMessage"]

    seen = await compare(real, library, program)
    assert seen[-1][:2] == ("ResultError", 400)


@BOTH_LIBRARIES
async def test_leaving_ends_the_run_at_once(real: Backend, library: Library, folder: Path) -> None:
    async def program(url: str) -> None:
        from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient

        options = ClaudeAgentOptions()
        async with ClaudeSDKClient(options=options, transport=over(url, options)) as client:
            await client.query(directive("bash", cmd=f"(setsid sleep 61 &) ; touch {folder}/begun; sleep 60"))
            async for message in client.receive_messages():
                if type(message).__name__ == "AssistantMessage":
                    while not (folder / "begun").exists():
                        await anyio.sleep(0.02)
                    break

    async with real.serve(cli_args="--allowed-tools=Bash") as server:
        await library(partial(program, server.url))
        await until(lambda: real.ended)
        assert not real.left()
        assert real.ended[0].outcome.receipt.killed >= 3
    assert real.ended[0].outcome.reason == "disconnected"


async def test_a_task_that_asyncio_cancels_twice_ends_its_run(fake: Backend) -> None:
    """The SDK does not come to `close` then; the second cancellation takes it while it waits for its own reader."""
    from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient

    async def talk(url: str, asked: asyncio.Event) -> None:
        options = ClaudeAgentOptions()
        async with ClaudeSDKClient(options=options, transport=over(url, options)) as client:
            await client.query(directive("silent"))
            asked.set()
            async for _ in client.receive_response():
                pass

    async def program(url: str) -> None:
        for steps in range(6):
            asked = asyncio.Event()
            task = asyncio.create_task(talk(url, asked))
            await asked.wait()
            for _ in range(2):
                await asyncio.sleep(0)  # a step, no time
                task.cancel()
                for _ in range(steps):
                    await asyncio.sleep(0)  # a step, no time
            await asyncio.wait([task])
            with anyio.fail_after(10):
                while len(fake.ended) <= steps:
                    await asyncio.sleep(0.01)  # `until` is Trio's

    async with fake.serve() as server:
        await under_asyncio(partial(program, server.url))
    gc.collect()  # the SDK does not come to close its streams either, and that is told here


@BOTH_LIBRARIES
async def test_an_answer_that_the_server_refuses_is_the_sdks_own_error(fake: Backend, library: Library) -> None:
    """`updated_permissions`, as "always allow" gives them, would widen what the server's operator allows."""
    from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient, CLIConnectionError, PermissionResultAllow

    async def decide(_tool: str, _input: Any, _context: Any) -> Any:
        return PermissionResultAllow(updated_permissions=[])

    async def program(url: str) -> None:
        options = ClaudeAgentOptions(can_use_tool=decide)
        async with ClaudeSDKClient(options=options, transport=over(url, options)) as client:
            await client.query(ASKS)
            with anyio.fail_after(20), pytest.raises(Exception, match="updatedPermissions") as caught:
                async for _ in client.receive_response():
                    pass
            assert "server refused" in str(caught.value) or isinstance(caught.value, CLIConnectionError)

    async with fake.serve() as server:
        await library(partial(program, server.url))


async def test_what_the_server_refuses_is_the_sdks_own_error(fake: Backend) -> None:
    from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient, CLIConnectionError

    options = ClaudeAgentOptions(allowed_tools=["Bash"])
    async with fake.serve() as server:
        with pytest.raises(CLIConnectionError, match="allowed_tools is not allowed"):
            await over(server.url, options).connect()
        plain = ClaudeAgentOptions()
        async with ClaudeSDKClient(options=plain, transport=over(server.url, plain)) as client:
            with pytest.raises(Exception, match="set_permission_mode' is not allowed here"):
                await client.set_permission_mode("plan")
    async with fake.serve(grants=("allowed_tools",), allow_control=("initialize", "set_permission_mode")) as server:
        async with ClaudeSDKClient(options=options, transport=over(server.url, options)) as client:
            await client.set_permission_mode("plan")


@BOTH_LIBRARIES
async def test_a_message_that_is_too_long_is_told_by_why_the_server_closes(fake: Backend, library: Library) -> None:
    async def program(url: str) -> None:
        from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient, CLIConnectionError

        options = ClaudeAgentOptions()
        async with ClaudeSDKClient(options=options, transport=over(url, options)) as client:
            await client.query("x" * 70_000)
            with pytest.raises(CLIConnectionError, match="the server closed the connection: message over 65536 bytes"):
                [message async for message in client.receive_response()]

    async with fake.serve(max_session_message=65536) as server:
        await library(partial(program, server.url))


async def test_a_transport_that_has_ended_is_not_used_again(fake: Backend) -> None:
    from claude_agent_sdk import ClaudeAgentOptions, CLIConnectionError, query

    async with fake.serve() as server:
        transport = over(server.url, None)
        async for _ in query(prompt="hello", options=ClaudeAgentOptions(), transport=transport):
            pass
        with pytest.raises(CLIConnectionError, match="used already; make another"):
            async for _ in query(prompt="hello", options=ClaudeAgentOptions(), transport=transport):
                pass


@BOTH_LIBRARIES
async def test_other_words_on_stdout_are_left_out(fake: Backend, library: Library) -> None:
    words = ["[SandboxDebug] here", "[1]", "7", "{", "[" * 3000]

    async def program(url: str) -> Any:
        from claude_agent_sdk import ClaudeAgentOptions, query

        options, prompt = ClaudeAgentOptions(), directive("raw", text="\n".join([*words, ""])) + "hello"
        return [shown(message) async for message in query(prompt=prompt, options=options, transport=over(url, options))]

    async with fake.serve() as server:
        seen = await library(partial(program, server.url))
    assert seen[-1][:2] == ("ResultMessage", "success")


async def test_a_line_is_whole_whatever_it_holds(fake: Backend) -> None:
    text = "a\u2028b\u0085c\x0bd"
    line = {"type": "user", "message": {"role": "user", "content": directive("text", text=text)}}
    async with fake.serve() as server:
        transport = over(server.url, None)
        await transport.connect()
        await transport.write(json.dumps(line, ensure_ascii=False) + "\r\n\n")
        async for said in transport.read_messages():
            if said["type"] == "result":
                break
        await transport.close()
    assert said["result"] == text


async def test_why_nothing_is_read_any_more_is_told(fake: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    from claude_agent_sdk import CLIConnectionError

    from trio_claude.sdk import Socket

    async def fail(_socket: Socket) -> str:
        raise MemoryError("no room")

    async with fake.serve() as server:
        transport = over(server.url, None)
        await transport.connect()
        monkeypatch.setattr(Socket, "receive", fail)
        await transport.write('{"type":"user","message":{"role":"user","content":"hello"}}')
        with pytest.raises(CLIConnectionError, match="broke") as caught:
            async for _ in transport.read_messages():
                pass
        with pytest.raises(CLIConnectionError, match="over") as later:
            await transport.write("{}")
        await transport.close()
    assert "no room" in repr(caught.value.__cause__)
    assert later.value.__cause__ is caught.value.__cause__


async def test_a_cli_that_can_not_be_started_is_told_with_its_error(fake: Backend) -> None:
    from claude_agent_sdk import CLIConnectionError

    async with fake.serve(cli="/no/such/cli") as server:
        with pytest.raises(CLIConnectionError, match="did not run: the CLI was not found"):
            await over(server.url, None).connect()


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://127.0.0.1:99999", "http://[::1"])
async def test_a_server_that_is_not_there(url: str) -> None:
    from claude_agent_sdk import CLIConnectionError

    with pytest.raises(CLIConnectionError, match="can't reach"):
        await over(url, None).connect()


# -- options ----------------------------------------------------------------------------------------------------------


def test_every_field_of_the_sdk_has_its_fate() -> None:
    from claude_agent_sdk import ClaudeAgentOptions

    from trio_claude.sdk import FIELDS

    assert set(FIELDS) == {field.name for field in dataclasses.fields(ClaudeAgentOptions)}


def test_the_docs_tell_every_field() -> None:
    from trio_claude.sdk import FIELDS, GRANT, LOCAL, PASSED, REFUSED

    page = (Path(__file__).parents[1] / "docs" / "sessions.md").read_text()
    told = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", page, re.MULTILINE))
    assert list(told) == list(FIELDS)
    words = {PASSED: "passed", GRANT: "grant `", LOCAL: "program alone|always so", REFUSED: "refused"}
    for name, fate in FIELDS.items():
        assert re.search(words[fate], told[name]), name


def test_a_refused_field_is_refused_by_name(tmp_path: Path) -> None:
    from claude_agent_sdk import ClaudeAgentOptions

    from trio_claude.sdk import FIELDS, REFUSED, WebSocketTransport

    values: dict[str, Any] = {
        "permission_prompt_tool_name": "mcp__x__y", "continue_conversation": True, "include_hook_events": True,
        "forward_subagent_text": True, "enable_file_checkpointing": True, "cwd": tmp_path, "add_dirs": ["/"],
        "env": {"A": "b"}, "extra_args": {"a": None}, "agents": {"x": None}, "setting_sources": ["user"],
        "plugins": [{"type": "local", "path": "/"}], "betas": ["x"], "skills": [],
    }  # fmt: skip
    for name, fate in FIELDS.items():
        if fate == REFUSED:
            with pytest.raises(ValueError, match=f"^{name}: "):
                WebSocketTransport(options=ClaudeAgentOptions(**{name: values.get(name, "x")}))


def test_what_a_session_is_started_with() -> None:
    from claude_agent_sdk import ClaudeAgentOptions

    from trio_claude.sdk import start_options

    assert start_options(ClaudeAgentOptions()) == ({"system_prompt": ""}, [])
    wish = ClaudeAgentOptions(
        model="m", system_prompt={"type": "preset", "preset": "claude_code", "append": "be brief"}, max_turns=2,
        max_budget_usd=0.5, effort="low", resume="r", fork_session=True, include_partial_messages=True,
        output_format={"type": "json_schema", "schema": {"type": "object"}}, tools={"type": "preset", "preset": "claude_code"},
        allowed_tools=["Read"], disallowed_tools=["Bash"], permission_mode="plan", fallback_model="f",
        thinking={"type": "enabled", "budget_tokens": 1000}, mcp_servers={"x": {"command": "y"}},
        permission_prompt_tool_name="stdio",
    )  # fmt: skip
    assert start_options(wish)[0] == {
        "model": "m", "append_system_prompt": "be brief", "max_turns": 2, "max_budget_usd": 0.5, "effort": "low",
        "resume": "r", "fork": True, "partial": True, "json_schema": {"type": "object"}, "tools": ["default"],
        "allowed_tools": ["Read"], "disallowed_tools": ["Bash"], "permission_mode": "plan", "fallback_model": "f",
        "max_thinking_tokens": 1000, "mcp_servers": {"x": {"command": "y"}},
    }  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        {"system_prompt": {"type": "file", "path": "/etc/passwd"}},
        {"system_prompt": {"type": "custom", "prompt": "x", "snapshot": "y"}},
        {"output_format": {"type": "xml"}},
        {"thinking": {"type": "adaptive"}},
        {"mcp_servers": "/etc/mcp.json"},
    ],
    ids=str,
)
def test_what_has_no_counterpart(wrong: dict[str, Any]) -> None:
    from claude_agent_sdk import ClaudeAgentOptions

    from trio_claude.sdk import start_options

    with pytest.raises(ValueError, match=next(iter(wrong))):
        start_options(ClaudeAgentOptions(**wrong))


@BOTH_LIBRARIES
async def test_a_number_that_is_not_finite_is_the_programs_error_and_the_session_goes_on(
    fake: Backend, library: Library
) -> None:
    from claude_agent_sdk import ClaudeAgentOptions

    async def program(url: str) -> None:
        transport = over(url, ClaudeAgentOptions())
        await transport.connect()
        with pytest.raises(ValueError, match="not JSON compliant"):
            await transport.write('{"type":"control_request","request_id":"1","request":{"model":NaN}}')
        await transport.end_input()
        async for _ in transport.read_messages():  # raises where the server has refused
            pass
        await transport.close()

    async with fake.serve() as server:
        await library(partial(program, server.url))
