"""The Messages API stub answers what the prompt asks for, and outlives its clients."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import h11
import pytest
import trio

from trio_claude.testing.messages_api import Ending, MessagesApi, connection, find_directive, open_messages_api, replies
from trio_claude.testing.messages_api.__main__ import main

Json = dict[str, Any]
PATIENCE = 10


# ---- A client of few words ----


@attrs.frozen
class Answer:
    status: int
    headers: dict[str, str]
    data: bytes

    @property
    def json(self) -> Json:
        return json.loads(self.data)

    @property
    def events(self) -> list[Json]:
        events = []
        for block in self.data.decode().split("\n\n")[:-1]:
            name, data = block.split("\n")
            events.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {events[-1]['type']}"
        return events

    @property
    def types(self) -> list[str]:
        return [event["type"] for event in self.events]

    @property
    def deltas(self) -> list[Json]:
        return [event["delta"] for event in self.events if event["type"] == "content_block_delta"]

    @property
    def texts(self) -> list[str]:
        return [delta["text"] for delta in self.deltas if delta["type"] == "text_delta"]

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def tool_uses(self) -> list[Json]:
        """The tool uses, each with the input its deltas spell."""
        uses = {e["index"]: e["content_block"] for e in self.events if e["type"] == "content_block_start"}
        spelt = dict.fromkeys(uses, "")
        for event in self.events:
            spelt_by = event.get("delta", {}).get("partial_json", "")
            if spelt_by:
                spelt[event["index"]] += spelt_by
        return [{**uses[i], "input": json.loads(spelt[i])} for i in uses if uses[i]["type"] == "tool_use"]

    @property
    def stop_reason(self) -> str:
        (delta,) = [event["delta"] for event in self.events if event["type"] == "message_delta"]
        return delta["stop_reason"]


@attrs.frozen
class Client:
    stream: trio.SocketStream
    http: h11.Connection = attrs.field(init=False, factory=lambda: h11.Connection(h11.CLIENT))

    async def next_event(self) -> Any:
        while (event := self.http.next_event()) is h11.NEED_DATA:
            self.http.receive_data(await self.stream.receive_some(65536))
        return event

    async def send(self, body: bytes, method: str, path: str) -> None:
        if self.http.our_state is h11.DONE:
            self.http.start_next_cycle()
        headers = [("host", "stub"), ("content-length", str(len(body))), ("x-api-key", "dummy")]
        request = h11.Request(method=method, target=path, headers=headers)
        for event in (request, h11.Data(body), h11.EndOfMessage()):
            await self.stream.send_all(self.http.send(event) or b"")

    async def receive(self) -> Answer:
        head, data = await self.next_event(), bytearray()
        while isinstance(event := await self.next_event(), h11.Data):
            data += event.data
        assert isinstance(event, h11.EndOfMessage)
        headers = {name.decode(): value.decode() for name, value in head.headers}
        return Answer(head.status_code, headers, bytes(data))

    async def ask(self, body: object = b"", *, method: str = "POST", path: str = "/v1/messages?beta=true") -> Answer:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        with trio.fail_after(PATIENCE):
            await self.send(raw, method, path)
            return await self.receive()

    async def start(self, *directives: Json) -> None:
        """Send a request and leave its answer unread."""
        await self.send(json.dumps(conversation(*directives)).encode(), "POST", "/v1/messages")

    async def receive_texts(self, count: int) -> None:
        """Read until `count` text deltas have come."""
        data = b""
        with trio.fail_after(PATIENCE):
            while data.count(b"text_delta") < count:
                event = await self.next_event()
                data += event.data if isinstance(event, h11.Data) else b""


def user(*texts: str) -> Json:
    return {"role": "user", "content": [{"type": "text", "text": text} for text in texts]}


def results(*contents: str) -> Json:
    return {"role": "user", "content": [{"type": "tool_result", "content": content} for content in contents]}


def mark(directive: Json) -> str:
    return f"please @@{json.dumps(directive)}@@ now"


def conversation(*directives: Json, after: tuple[Json, ...] = (), **fields: Any) -> Json:
    messages = [user(*map(mark, directives)) if directives else user("hello"), *after]
    return {"model": "claude-test", "stream": True, "messages": messages, **fields}


@pytest.fixture
async def api() -> AsyncIterator[MessagesApi]:
    async with open_messages_api() as api:
        yield api
    assert not api.failures


@asynccontextmanager
async def connect(api: MessagesApi) -> AsyncIterator[Client]:
    async with await trio.open_tcp_stream("127.0.0.1", api.port) as stream:
        yield Client(stream)


@pytest.fixture
async def client(api: MessagesApi) -> AsyncIterator[Client]:
    async with connect(api) as client:
        yield client


# ---- Answers ----


async def test_without_a_directive_it_says_hello(client: Client) -> None:
    answer = await client.ask(conversation())
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.text == "Hello from stub."
    assert answer.types == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 3,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert answer.events[0]["message"]["model"] == "claude-test"
    assert answer.stop_reason == "end_turn"


@pytest.mark.parametrize(
    ("directive", "texts"),
    [
        ({"do": "text", "text": "abcdef", "deltas": 2}, ["abc", "def"]),
        ({"do": "text", "text": "abcde", "deltas": 2}, ["abc", "de"]),
        ({"do": "text", "text": "ab", "deltas": 0}, ["ab"]),
        ({"do": "text", "text": ""}, []),
        ({"do": "text", "text": "naïve \U0001f600\n}@@ @@{", "deltas": 1}, ["naïve \U0001f600\n}@@ @@{"]),
        ({"do": "slow", "n": 3, "ms": 1.5}, ["tok0 ", "tok1 ", "tok2 "]),
        ({"do": "many"}, [f"tok{i} " for i in range(5000)]),
        ({"do": "bigtext", "bytes": 300_000}, ["x" * 300_000]),
        ({"do": "think"}, ["Thought answer."]),
        ({}, ["Hello ", "from s", "tub."]),
    ],
)
async def test_text_comes_in_the_deltas_asked_for(client: Client, directive: Json, texts: list[str]) -> None:
    assert (await client.ask(conversation(directive))).texts == texts


async def test_slow_keeps_its_pace(client: Client) -> None:
    start = trio.current_time()
    await client.ask(conversation({"do": "slow", "n": 4, "ms": 50}))
    assert trio.current_time() - start >= 0.2


async def test_think_thinks_first(client: Client) -> None:
    answer = await client.ask(conversation({"do": "think", "text": "so"}))
    assert [delta["type"] for delta in answer.deltas] == ["thinking_delta", "signature_delta", "text_delta"]
    assert answer.text == "so"


@pytest.mark.parametrize("cmd", ["true", 'echo "}@@" \'{}\' \\\n\t$(x) @@{"do":"hang"}@@', "x" * 5000, "é\u2028"])
async def test_bash_passes_any_command_on(client: Client, cmd: str) -> None:
    answer = await client.ask(conversation({"do": "bash", "cmd": cmd, "bg": True, "timeout": 9}))
    (use,) = answer.tool_uses
    assert use["name"] == "Bash"
    assert use["input"] == {"command": cmd, "description": "stub command", "run_in_background": True, "timeout": 9}
    assert answer.text == "I will run it."
    assert answer.stop_reason == "tool_use"


async def test_rounds_of_a_tool_end_in_a_text(client: Client) -> None:
    directive = {"do": "bash", "cmd": "true", "rounds": 2}
    ids = []
    for done in range(2):
        answer = await client.ask(conversation(directive, after=(results("ok"),) * done))
        ids += [use["id"] for use in answer.tool_uses]
    assert len(set(ids)) == 2
    last = await client.ask(conversation(directive, after=(results("ok"),) * 2))
    assert last.text == "All done after 2 tool results."
    assert last.stop_reason == "end_turn"


async def test_tool_uses_any_tool(client: Client) -> None:
    given = {"file_path": "/x", "content": {"deep": ["}@@", {}]}}
    answer = await client.ask(conversation({"do": "tool", "name": "Write", "input": given}))
    assert [(use["name"], use["input"]) for use in answer.tool_uses] == [("Write", given)]


async def test_tools_uses_several_in_one_answer(client: Client) -> None:
    directive = {"do": "tools", "calls": [{"name": "Read", "input": {"file_path": "/x"}}, {"name": "LS"}]}
    answer = await client.ask(conversation(directive))
    assert [(use["name"], use["input"]) for use in answer.tool_uses] == [("Read", {"file_path": "/x"}), ("LS", {})]
    assert len({use["id"] for use in answer.tool_uses}) == 2
    answer = await client.ask(conversation(directive, after=(results("one", "two"),)))
    assert answer.text == "All done after 2 tool results."


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "api_error"),
        (529, "overloaded_error"),
    ],
)
async def test_err_is_worded_like_the_api(client: Client, status: int, kind: str) -> None:
    answer = await client.ask(conversation({"do": "err", "status": status}))
    assert (answer.status, answer.json["type"], answer.json["error"]["type"]) == (status, "error", kind)
    assert "retry-after" not in answer.headers
    assert "x-should-retry" not in answer.headers


async def test_err_ends_after_its_times(client: Client) -> None:
    request = conversation({"do": "err", "status": 529, "times": 2})
    assert [(await client.ask(request)).status for _ in range(3)] == [529, 529, 200]
    assert (await client.ask(request)).text == "ok after 2 errors"


async def test_err_says_when_to_retry(client: Client) -> None:
    answer = await client.ask(conversation({"do": "err", "status": 429, "retry_after": 1, "noretry": True}))
    assert (answer.headers["retry-after"], answer.headers["x-should-retry"]) == ("1", "false")


async def test_miderr_ends_the_stream_with_an_error(client: Client, api: MessagesApi) -> None:
    answer = await client.ask(conversation({"do": "miderr", "type": "api_error", "n": 2}))
    assert answer.texts == ["tok0 ", "tok1 "]
    assert answer.events[-1]["error"]["type"] == "api_error"
    assert "message_stop" not in answer.types
    await api.wait_answers(1)
    assert api.answers[0].ending is Ending.COMPLETE


async def test_stall_falls_silent_after_its_deltas(client: Client, api: MessagesApi) -> None:
    await client.start({"do": "stall", "n": 2})
    await client.receive_texts(2)
    with trio.move_on_after(0.05) as silence:
        await client.next_event()
    assert silence.cancelled_caught
    assert api.open_streams == 1


async def test_hang_sends_nothing(client: Client, api: MessagesApi) -> None:
    await client.start({"do": "hang"})
    await api.wait_open_streams(1)
    with trio.move_on_after(0.05) as silence:
        await client.stream.receive_some()
    assert silence.cancelled_caught


async def test_reset_breaks_the_connection(client: Client, api: MessagesApi) -> None:
    await client.start({"do": "reset", "n": 2})
    await client.receive_texts(2)
    with pytest.raises(trio.BrokenResourceError), trio.fail_after(PATIENCE):
        await client.next_event()
    assert api.answers[0].ending is Ending.RESET


@pytest.mark.parametrize(
    ("directive", "named"),
    [
        ({"do": "dance"}, "'dance'"),
        ({"do": ["text"]}, "'do'"),
        ({"do": "bash"}, "'cmd'"),
        ({"do": "tool", "input": {}}, "'name'"),
        ({"do": "tools", "calls": []}, "'calls'"),
        ({"do": "tools", "calls": [1]}, "'calls'"),
        ({"do": "err"}, "'status'"),
        ({"do": "err", "status": 418}, "418"),
        ({"do": "many", "n": True}, "'n'"),
        ({"do": "slow", "ms": -1}, "'ms'"),
        ({"do": "slow", "ms": float("nan")}, "'ms'"),
    ],
)
async def test_a_directive_that_cannot_be_followed_is_named(client: Client, directive: Json, named: str) -> None:
    answer = await client.ask(conversation(directive))
    assert (answer.status, answer.json["error"]["type"]) == (400, "invalid_request_error")
    assert named in answer.json["error"]["message"]


# ---- The same without streaming ----


async def test_unstreamed_it_is_one_message(client: Client) -> None:
    answer = await client.ask(conversation({"do": "tool", "name": "LS", "input": {"path": "/"}}, stream=False))
    assert answer.headers["content-type"] == "application/json"
    text, use = answer.json["content"]
    assert (text["text"], use["name"], use["input"]) == ("I will run it.", "LS", {"path": "/"})
    assert answer.json["stop_reason"] == "tool_use"
    answer = await client.ask(conversation({"do": "think"}, stream=False))
    assert [block["type"] for block in answer.json["content"]] == ["thinking", "text"]


@pytest.mark.parametrize("do", ["miderr", "reset", "stall"])
@pytest.mark.parametrize(("fields", "text"), [({}, "non-stream answer"), ({"text": "mine"}, "mine")])
async def test_what_breaks_off_comes_whole_unstreamed(client: Client, do: str, fields: Json, text: str) -> None:
    """The CLI asks so when a stream has broken, and takes what it gets."""
    answer = await client.ask(conversation({"do": do, **fields}, stream=False))
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert [block["text"] for block in answer.json["content"]] == [text]
    assert answer.json["stop_reason"] == "end_turn"


async def test_unstreamed_silence_and_errors(client: Client, api: MessagesApi) -> None:
    assert (await client.ask(conversation({"do": "err", "status": 500}, stream=False))).status == 500
    await client.send(json.dumps(conversation({"do": "hang"}, stream=False)).encode(), "POST", "/v1/messages")
    await api.wait_open_streams(1)


# ---- Which directive counts ----


@pytest.mark.parametrize(
    ("messages", "fields"),
    [
        ([], {}),
        ([user("a @@{}@@")], {}),
        ([user('@@{"do":"a"}@@ @@{"do":"b"}@@')], {"do": "b"}),
        ([user('@@{"do":"a"}@@', '@@{"do":"b"}@@'), user("plain")], {"do": "b"}),
        ([user('@@{"do":"a"}@@'), {"role": "assistant", "content": '@@{"do":"b"}@@'}], {"do": "a"}),
        ([{"role": "user", "content": '@@{"do":"a"}@@'}], {"do": "a"}),
        ([user('@@{"do":"a"}@@'), results('@@{"do":"b"}@@')], {"do": "a"}),
        ([user('@@{"do":"a"}@@ @@{"do":"b"} @@{nonsense}@@')], {"do": "a"}),
        ([user('@@{ @@{"do":"a"}@@')], {"do": "a"}),
        ([user('@@{"do":"tool","name":"W","input":{"a":{"b":"}@@"}}}@@')], None),
        ([user("@@" + '{"a":' * 100_000)], {}),
        ("nonsense", {}),
        ([1, None, {"role": "user"}, {"role": "user", "content": [2, {"type": "text"}]}], {}),
    ],
)
async def test_the_last_whole_directive_of_the_user_counts(messages: Any, fields: Json | None) -> None:
    expected = {"do": "tool", "name": "W", "input": {"a": {"b": "}@@"}}} if fields is None else fields
    assert find_directive({"messages": messages}).fields == expected


async def test_only_results_after_the_directive_count() -> None:
    messages = [results("old"), user('@@{"do":"a"}@@'), results("1", "2"), user("more"), results("3")]
    assert find_directive({"messages": messages}).results == 3


# ---- Requests ----


async def test_requests_are_recorded(client: Client, api: MessagesApi) -> None:
    body = conversation(max_tokens=99, temperature=0.5, tools=[{"name": "LS"}])
    await client.ask(body)
    (request,) = api.requests
    assert (request.method, request.path, request.body) == ("POST", "/v1/messages?beta=true", body)
    assert (request.model, request.n_messages, request.n_tools) == ("claude-test", 1, 1)
    assert request.headers["x-api-key"] == "dummy"
    assert request.size == len(json.dumps(body))


async def test_one_connection_carries_many_requests(client: Client, api: MessagesApi) -> None:
    for directive in ({"do": "text"}, {"do": "err", "status": 429}, {"do": "dance"}, {"do": "miderr"}, {"do": "text"}):
        await client.ask(conversation(directive))
    await api.wait_answers(5)
    assert {answer.ending for answer in api.answers} == {Ending.COMPLETE}
    assert len(api.requests) == 5


async def test_only_the_latest_requests_are_kept() -> None:
    async with open_messages_api(max_requests=2) as api, connect(api) as client:
        for size in (1, 2, 3):
            await client.ask(conversation(max_tokens=size))
        assert [request.body["max_tokens"] for request in api.requests] == [2, 3]
        with trio.fail_after(PATIENCE):
            await api.wait_requests(3)
            await api.wait_answers(3)
        assert len(api.answers) == 2


@pytest.mark.parametrize("body", [b"", b"nonsense", b"[1]", b"\xff", b"[" * 100_000])
async def test_a_body_that_is_no_object_is_refused(client: Client, api: MessagesApi, body: bytes) -> None:
    answer = await client.ask(body)
    assert (answer.status, answer.json["error"]["type"]) == (400, "invalid_request_error")
    assert api.requests[0].body == {}


async def test_other_paths(client: Client) -> None:
    assert (await client.ask(conversation(), path="/v1/messages/count_tokens")).json == {"input_tokens": 42}
    assert (await client.ask(path="/v1/other")).status == 404
    assert (await client.ask(method="GET")).json["error"]["type"] == "not_found_error"
    await client.send(b"", "HEAD", "/")
    client.http.next_event()  # a HEAD's answer has no body, which h11 knows
    assert (await client.receive()).status == 200


async def test_a_large_body_is_accepted(client: Client, api: MessagesApi) -> None:
    assert (await client.ask(conversation(padding="x" * 12_000_000))).text == "Hello from stub."


# ---- Clients that misbehave ----


async def talk(api: MessagesApi, data: bytes) -> bytes:
    """Send bytes and read until the stub closes."""
    with trio.fail_after(PATIENCE):
        async with await trio.open_tcp_stream("127.0.0.1", api.port) as stream:
            await stream.send_all(data)
            return b"".join([chunk async for chunk in stream])


HEAD = b"POST /v1/messages HTTP/1.1\r\nhost: stub\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
        (HEAD + b"content-length: many\r\n\r\n", b"400"),
        (HEAD + b"content-length: 67108865\r\n\r\n", b"413"),
        (HEAD + b"x: " + b"y" * 70_000, b"431"),
        (HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n", b"400"),
    ],
)
async def test_a_bad_request_is_refused(api: MessagesApi, data: bytes, status: bytes) -> None:
    answer = await talk(api, data)
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert b"connection: close" in answer.lower()


async def test_a_body_that_grows_over_the_limit_is_refused(api: MessagesApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_BODY_BYTES", 1000)
    chunked = HEAD + b"transfer-encoding: chunked\r\n\r\n"
    answer = await talk(api, chunked + b"800\r\n" + b"x" * 2048 + b"\r\n" + b"800\r\n")
    assert answer.startswith(b"HTTP/1.1 413")
    assert not api.requests


async def test_a_head_that_must_be_refused_is_closed_on(api: MessagesApi) -> None:
    assert await talk(api, b"HEAD / HTTP/1.1\r\nhost: stub\r\ncontent-length: 67108865\r\n\r\n") == b""


async def test_old_http_is_answered_and_closed(api: MessagesApi) -> None:
    body = json.dumps(conversation()).encode()
    answer = await talk(api, b"POST /v1/messages HTTP/1.0\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    assert b"message_stop" in answer


async def test_a_waiting_client_is_told_to_continue(api: MessagesApi) -> None:
    with trio.fail_after(PATIENCE):
        async with await trio.open_tcp_stream("127.0.0.1", api.port) as stream:
            await stream.send_all(HEAD + b"expect: 100-continue\r\ncontent-length: 2\r\n\r\n")
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 100")
            await stream.send_all(b"{}")
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 400")


async def test_pipelined_requests_are_answered_in_turn(api: MessagesApi) -> None:
    def request(text: str, more: bytes = b"") -> bytes:
        body = json.dumps(conversation({"do": "slow", "n": 3, "ms": 5}, tag=text)).encode()
        return HEAD + more + b"content-length: %d\r\n\r\n" % len(body) + body

    answer = await talk(api, request("one") + request("two", b"connection: close\r\n"))
    assert answer.count(b'"type": "message_stop"') == 2
    assert [request.body["tag"] for request in api.requests] == ["one", "two"]


@pytest.mark.parametrize(
    "directive",
    [{"do": "hang"}, {"do": "stall"}, {"do": "slow", "ms": 600_000}, {"do": "bigtext", "bytes": 50_000_000}],
)
@pytest.mark.parametrize("abort", [False, True])
async def test_it_sees_a_client_go(api: MessagesApi, directive: Json, abort: bool) -> None:
    async with connect(api) as client:
        await client.start(directive)
        await api.wait_open_streams(1)
        if abort:
            client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with trio.fail_after(PATIENCE):
        await api.wait_open_streams(0)
    assert api.answers[0].ending is Ending.CLIENT_GONE


async def test_a_client_gone_before_its_request_is_whole(api: MessagesApi) -> None:
    for data in (b"", b"POS", HEAD, HEAD + b"content-length: 5\r\n\r\nab"):
        async with await trio.open_tcp_stream("127.0.0.1", api.port) as stream:
            await stream.send_all(data)
    async with connect(api) as client:
        assert (await client.ask(conversation())).status == 200
    assert len(api.requests) == 1


async def test_one_client_does_not_hold_up_another(api: MessagesApi) -> None:
    async with connect(api) as unread, connect(api) as stalled, connect(api) as client:
        await unread.start({"do": "bigtext", "bytes": 50_000_000})
        await stalled.start({"do": "stall"})
        await talk(api, b"nonsense\r\n\r\n")
        assert (await client.ask(conversation())).text == "Hello from stub."
        await api.wait_answers(1)
        assert api.open_streams == 2


async def test_a_bug_in_an_answer_costs_one_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(body: Json) -> Any:
        raise ZeroDivisionError

    async with open_messages_api() as api:
        with monkeypatch.context() as patch:
            patch.setattr(replies, "find_directive", fail)
            async with connect(api) as client:
                with pytest.raises(h11.RemoteProtocolError):
                    await client.ask(conversation())
        async with connect(api) as client:
            assert (await client.ask(conversation())).status == 200
        assert [type(failure) for failure in api.failures] == [ZeroDivisionError]
        with trio.fail_after(PATIENCE):
            await api.wait_open_streams(0)


# ---- The context ----


@pytest.mark.parametrize("directive", [{"do": "hang"}, {"do": "stall"}, {"do": "bigtext", "bytes": 50_000_000}])
async def test_leaving_ends_everything_at_once(directive: Json) -> None:
    with trio.fail_after(PATIENCE):
        async with open_messages_api() as api:
            clients = [await trio.open_tcp_stream("127.0.0.1", api.port) for _ in range(3)]
            await Client(clients[0]).start(directive)
            await clients[1].send_all(HEAD)
            await api.wait_open_streams(1)
        assert api.open_streams == 0
        for client in clients:
            try:
                while await client.receive_some():
                    pass
            except trio.BrokenResourceError:
                pass
            await client.aclose()
        with pytest.raises(OSError, match="all attempts to connect"):
            await trio.open_tcp_stream("127.0.0.1", api.port)


async def test_what_the_body_raises_comes_out_bare() -> None:
    cause = KeyError("why")
    with pytest.raises(ValueError, match="mine") as caught:
        async with open_messages_api():
            raise ValueError("mine") from cause
    assert caught.value.__cause__ is cause
    with pytest.raises(pytest.skip.Exception):
        async with open_messages_api():
            pytest.skip("in the body")


async def test_it_can_be_cancelled() -> None:
    with trio.move_on_after(0.05) as scope:
        async with open_messages_api() as api, connect(api) as client:
            await client.ask(conversation({"do": "hang"}))
    assert scope.cancelled_caught


async def test_a_port_in_use_is_an_error(api: MessagesApi) -> None:
    with pytest.raises(OSError, match="in use"):
        async with open_messages_api(api.port):
            pass


async def test_it_takes_the_port_it_is_given(api: MessagesApi) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    async with open_messages_api(port) as api:
        assert (api.port, api.url) == (port, f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("port", ["70000", "-1"])
def test_a_port_that_there_is_not_is_named(
    port: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The system would take another for it."""
    monkeypatch.setattr(trio, "run", lambda *_: pytest.fail("it serves"))
    with pytest.raises(SystemExit):
        main(["--port", port])
    assert f"argument --port: {port} is not from 0 to 65535" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_as_a_program_it_serves_until_a_signal(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "trio_claude.testing.messages_api", "--port", "0"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with trio.fail_after(3 * PATIENCE):
        async with trio.open_nursery() as nursery:
            start = partial(trio.run_process, command, stdout=subprocess.PIPE, env=env)
            process = await nursery.start(start)
            line = (await process.stdout.receive_some()).decode()
            async with await trio.open_tcp_stream("127.0.0.1", int(line.rpartition(":")[2])) as stream:
                assert line == f"listening on http://127.0.0.1:{stream.socket.getpeername()[1]}\n"
                assert (await Client(stream).ask(conversation())).text == "Hello from stub."
                process.send_signal(number)
                assert await stream.receive_some() == b""
            assert await process.wait() == 0


# ---- The real client ----


@pytest.fixture
def cli() -> Path:
    """Return the bundled CLI; apart from the async fixtures, or the skip would lose its reason in a group."""
    spec = importlib.util.find_spec("claude_agent_sdk")
    places = spec.submodule_search_locations if spec else None
    path = Path(places[0]) / "_bundled" / "claude" if places else None
    if path is None or not path.is_file():
        pytest.skip("the [claude] extra is not installed: no bundled command line")
    return path


@pytest.fixture
def run_cli(cli: Path, api: MessagesApi, tmp_path: Path) -> Callable[[str], Any]:
    """Return a function that asks the real CLI once and returns its lines."""
    command = [str(cli), "-p", "--input-format", "stream-json", "--output-format", "stream-json", "--verbose"]
    quiet = ("DISABLE_TELEMETRY", "DISABLE_AUTOUPDATER", "DISABLE_ERROR_REPORTING")
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "CLAUDE_CONFIG_DIR": str(tmp_path),
        "ANTHROPIC_BASE_URL": api.url,
        "ANTHROPIC_API_KEY": "dummy",
        **dict.fromkeys((*quiet, "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"), "1"),
    }

    async def run(prompt: str) -> list[Json]:
        line = json.dumps({"type": "user", "message": {"role": "user", "content": prompt}}) + "\n"
        run = partial(trio.run_process, [*command, "--setting-sources=", "--strict-mcp-config"], env=env, cwd=tmp_path)
        with trio.fail_after(60):
            done = await run(stdin=line.encode(), capture_stdout=True)
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


@pytest.mark.real_cli
async def test_the_real_cli_takes_it_for_the_api(api: MessagesApi, run_cli: Callable[[str], Any]) -> None:
    calls = [{"name": "Bash", "input": {"command": f"echo {word}"}} for word in ("}@@", "two")]
    lines = await run_cli(mark({"do": "tools", "calls": calls}))
    result = lines[-1]
    assert (result["type"], result["result"]) == ("result", "All done after 2 tool results.")
    assert not result["is_error"]
    used = [block["content"] for line in lines if line["type"] == "user" for block in line["message"]["content"]]
    assert sorted(used) == ["two", "}@@"]
    assert all(request.n_tools and request.headers["x-api-key"] == "dummy" for request in api.requests)
    assert {answer.ending for answer in api.answers} == {Ending.COMPLETE}
