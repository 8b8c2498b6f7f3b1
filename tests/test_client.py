"""Rule: the client library says the same under Trio and asyncio, and every end is typed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import pytest
import trio
import trio.testing
from anyio.streams.memory import MemoryObjectSendStream
from cutter import open_cutter
from harness import Backend, directive, until
from libraries import BOTH_LIBRARIES, Library
from libraries import under_asyncio as run_under_asyncio
from trio_websocket import WebSocketRequest, serve_websocket

import trio_claude
from trio_claude.client import Answer, ConnectFailed, Ended, answers, door, open_session, sockets


async def collect(url: str, prompt: str, **options: object) -> tuple[list[str], Answer]:
    async with trio_claude.ask(prompt, meta="T", url=url, **options) as answer:
        return [line async for line in answer], answer


async def under_asyncio(url: str, prompt: str, **options: object) -> tuple[list[str], Answer]:
    return await trio.to_thread.run_sync(lambda: asyncio.run(collect(url, prompt, **options)))


@pytest.mark.parametrize("library", [collect, under_asyncio])
async def test_an_answer_is_the_clis_lines_and_a_typed_end(fake: Backend, library: Callable) -> None:  # type: ignore[type-arg]
    async with fake.serve() as server:
        lines, answer = await library(server.url, directive("stderr", text="oh") + "hello")
    assert [json.loads(line)["type"] for line in lines][-1] == "result"
    assert {"stderr": "oh"} in answer.notes
    assert answer.ended.ok
    assert answer.ended.reason.startswith("exit 0; 1 process, 0 left, ")


@pytest.mark.parametrize("library", [collect, under_asyncio])
async def test_a_failure_is_told_with_its_error(fake: Backend, library: Callable) -> None:  # type: ignore[type-arg]
    async with fake.serve() as server:
        _, answer = await library(server.url, directive("exit", status=3))
        _, refused = await library(server.url, "hello", max_turns=0)
    assert (answer.ended.code, answer.ended.error) == (1011, "the CLI exited with status 3")
    assert (refused.ended.code, refused.ended.error) == (1008, "max_turns must be from 1 to 1000, not 0")


@pytest.mark.parametrize("odd", ["[" * 3000, '{"error":{}}', '{"stderr":5}'])
async def test_an_odd_line_is_a_line_and_no_note(fake: Backend, odd: str) -> None:
    async with fake.serve() as server:
        lines, answer = await collect(server.url, directive("raw", text=f"{odd}\n") + "hello")
    assert odd in lines
    assert json.loads(lines[-1])["type"] == "result"
    assert answer.ended == Ended(1000, answer.ended.reason)


async def test_leaving_early_ends_the_run(fake: Backend) -> None:
    async with fake.serve() as server:
        async with trio_claude.ask(directive("slow", n=500, ms=50), meta="T", url=server.url) as answer:
            async for _ in answer:
                break
        await until(lambda: fake.ended)
    assert fake.ended[0].outcome.reason == "disconnected"


async def test_a_look_that_is_cancelled_in_the_moment_of_a_line_loses_none(
    fake: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By asyncio itself, as its timeouts do: each frame that the library below hands over is such a moment."""
    look: asyncio.Future[str]

    def hand_over(
        stream: MemoryObjectSendStream[Any], frame: Any, hand: Any = MemoryObjectSendStream.send_nowait
    ) -> None:
        hand(stream, frame)
        look.cancel()

    async def program(url: str) -> list[str]:
        nonlocal look
        lines = []
        look = asyncio.get_running_loop().create_future()
        async with trio_claude.ask(directive("lines", n=20), meta="T", url=url) as answer:
            while not answer.ended:
                look = asyncio.ensure_future(anext(answer, "{}"))
                await asyncio.wait([look], timeout=10)
                if not look.cancelled():
                    lines.append(look.result())
        return lines

    async with fake.serve() as server:
        monkeypatch.setattr(MemoryObjectSendStream, "send_nowait", hand_over)
        lines = await run_under_asyncio(partial(program, server.url))
    said = [json.loads(line) for line in lines]
    assert [one["n"] for one in said if "n" in one] == list(range(1, 21))


@pytest.mark.parametrize("library", [collect, under_asyncio])
@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "http://127.0.0.1:x", "http://127.0.0.1:99999", "ftp://127.0.0.1:1"]
)
async def test_who_can_not_be_reached_is_named(url: str, library: Callable[..., Any]) -> None:
    with pytest.raises(ConnectFailed, match="can't reach"):
        await library(url, "hello")


@pytest.mark.parametrize("library", [collect, under_asyncio])
async def test_what_is_wrong_with_tls_is_named(fake: Backend, library: Callable[..., Any]) -> None:
    async with fake.serve() as server:
        with pytest.raises(ConnectFailed, match=r"can't reach https://.*: .*SSL"):
            await library(server.url.replace("http:", "https:"), "hello")


async def test_authorities_that_can_not_be_read_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nope")
    with pytest.raises(ConnectFailed, match="SSL_CERT_FILE or SSL_CERT_DIR can't be used"):
        await collect("https://elsewhere.invalid", "hello")


async def test_a_way_without_tls_reads_no_authorities(fake: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each connection would, and hold its program's loop meanwhile."""

    def read(*_: object, **__: object) -> None:
        pytest.fail("read")

    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", read)
    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", read)
    async with fake.serve() as server:
        await collect(server.url, "hello")


async def test_a_server_that_says_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "CONNECT_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(ConnectFailed, match=r"can't reach http://.*: ReadTimeout"):
            await collect(f"http://127.0.0.1:{silent.getsockname()[1]}", "hello")


async def test_headers_that_are_no_headers_are_named(fake: Backend) -> None:
    async with fake.serve() as server:
        for headers in ({"x": "\u20ac"}, {"x": "a\r\nb: c"}, {"a b": "c"}):
            with pytest.raises(ConnectFailed):
                async with trio_claude.client.ask("hello", meta="T-1", url=server.url, headers=headers):
                    pass


async def test_the_key_stands_in_place_of_a_header_of_its_kind(fake: Backend) -> None:
    async with fake.serve_known("alice") as (server, keys):
        headers, key = {"authorization": "Bearer another"}, keys["alice"]
        async with trio_claude.client.ask("hello", meta="T-1", url=server.url, key=key, headers=headers) as answer:
            assert [line async for line in answer]


@asynccontextmanager
async def proxy(port: int) -> AsyncIterator[tuple[str, list[str]]]:
    """A proxy that leads all to one server; yield its address, and the request lines that it gets."""
    asked: list[str] = []

    async def serve(client: trio.SocketStream) -> None:
        head = await client.receive_some(65536)
        asked.append(head.partition(b"\r\n")[0].decode())
        if head.startswith(b"CONNECT"):
            return
        head = re.sub(rb"^GET http://[^/]+", b"GET ", head)
        head = re.sub(rb"(?i)\r\nhost: [^\r]+", b"\r\nHost: localhost", head)
        async with await trio.open_tcp_stream("127.0.0.1", port) as server, trio.open_nursery() as nursery:
            await server.send_all(head)
            nursery.start_soon(pump, client, server)
            await pump(server, client)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}", asked
        nursery.cancel_scope.cancel()


async def pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        async for data in source:
            await sink.send_all(data)


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY"])
async def test_a_proxy_that_would_keep_the_upgrade_is_not_asked(
    fake: Backend, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    forget_proxies(monkeypatch)
    async with fake.serve(allow_host=("127.1",)) as server, proxy(server.port) as (url, asked):
        monkeypatch.setenv(variable, url)
        with trio.fail_after(10):
            lines, answer = await collect(f"http://127.1:{server.port}", "hello")
    assert asked == []
    assert json.loads(lines[-1])["type"] == "result"
    assert answer.ended.ok


async def test_a_proxy_of_the_environment_is_asked_for_a_tunnel(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_proxies(monkeypatch)
    async with proxy(0) as (url, asked):
        monkeypatch.setenv("HTTPS_PROXY", url)
        with pytest.raises(ConnectFailed):
            await collect("https://claude.example", "hello")
    assert asked == ["CONNECT claude.example:443 HTTP/1.1"]


def forget_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


async def test_a_refusal_names_its_status(fake: Backend) -> None:
    async with fake.serve() as server:
        with pytest.raises(
            ConnectFailed, match=r"HTTP 404: no WebSocket here; there is one at /ws/claude, /ws/session$"
        ):
            await collect(f"{server.url}/elsewhere", "hello")


@BOTH_LIBRARIES
async def test_a_refusal_is_told_with_the_words_of_the_server(fake: Backend, library: Library) -> None:
    async def program(url: str) -> None:
        with pytest.raises(
            ConnectFailed, match=r"HTTP 403: this Host is not .*; the operator can name it with allow_host$"
        ):
            async with trio_claude.ask("hello", meta="T", url=url, headers={"Host": "elsewhere"}):
                pytest.fail("there")

    async with fake.serve() as server:
        await library(partial(program, server.url))


@pytest.mark.parametrize(
    "body",
    [b"", b"no", b"[]", b'"no"', b"{}", b'{"error":7}', b'{"error":"\\u001b[2J"}', b'{"error":"' + b"x" * 9999 + b'"}'],
)
async def test_a_refusal_without_words_that_can_be_shown_names_its_status(body: bytes) -> None:
    async def refuse(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        length = len(body) or 9  # of which none comes, and the connection stays
        await stream.send_all(b"HTTP/1.1 403 No\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % length + body)
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, refuse, 0, host="127.0.0.1"))
        with pytest.raises(ConnectFailed, match=r"refused: HTTP 403: not from here, or not you$"):
            await collect(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}", "hello")
        nursery.cancel_scope.cancel()


async def test_a_server_that_dies_is_an_end(fake: Backend) -> None:
    async with fake.serve() as server, trio.open_nursery() as nursery:
        answers: list[Ended | None] = []

        async def one() -> None:
            answers.append((await collect(server.url, directive("silent")))[1].ended)

        nursery.start_soon(one)
        await until(lambda: server.runs.statistics().live)
        await server.drain(0)
    assert answers[0] == Ended(1012, answers[0].reason, "server shutting down")


@BOTH_LIBRARIES
async def test_a_program_that_takes_its_time_keeps_its_run(
    fake: Backend, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ping behind what it has not taken is not read: it says unasked that it lives."""
    monkeypatch.setattr(sockets, "ALIVE", 0.2)
    monkeypatch.setattr(answers, "INBOX_LIMIT", 1)

    async def program(url: str) -> Any:
        lines = []
        async with trio_claude.ask(directive("lines", n=2000, rate=250), meta="T", url=url) as answer:
            async for line in answer:
                lines.append(line)
                await anyio.sleep(0.1 if len(lines) < 50 else 0)
        return lines, answer.ended

    async with fake.serve(ping_interval=1, ping_timeout=1) as server:
        lines, ended = await library(partial(program, server.url))
    assert (len([line for line in lines if '"n":' in line]), ended.ok, ended.code) == (2000, True, 1000)


async def test_frames_without_a_word_fill_an_inbox_too() -> None:
    inbox, frames = sockets.Inbox[str](1000), list[str]()

    async def fill() -> None:
        for _ in range(100):
            await inbox.put("", 0)
            frames.append("")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fill)
        await trio.testing.wait_all_tasks_blocked()
        assert len(frames) == 10
        for _ in range(100):
            assert await inbox.take() == ""
    assert len(frames) == 100


@BOTH_LIBRARIES
async def test_a_server_that_vanishes_without_a_word_is_left(
    fake: Backend, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "SILENCE", 0.2)

    async def program(url: str) -> Any:
        async with trio_claude.ask(directive("silent"), meta="T", url=url) as answer:
            cutter.silent = True
            with anyio.fail_after(10):
                return [line async for line in answer], answer.ended

    async with fake.serve() as server, open_cutter(server.port) as cutter:
        _, ended = await library(partial(program, cutter.url))
    assert (ended.code, ended.reason) == (1006, "the server has been silent for 0.4 s")


async def test_a_task_that_asyncio_cancels_twice_leaves_no_connection(
    fake: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever step of giving its connection up the second cancellation comes to."""
    say = sockets.Socket.send

    async def send(socket: sockets.Socket, text: str) -> None:
        cutter.silent = True
        await say(socket, text)

    async def program(url: str) -> set[str]:
        for steps in range(8):
            cutter.silent = False
            task = asyncio.create_task(collect(url, "x" * 16_000_000))
            while not cutter.silent:
                await asyncio.sleep(0)  # a step, no time: what it waits for is no event
            for _ in range(2):
                task.cancel()
                for _ in range(steps):
                    await asyncio.sleep(0)  # a step, no time
            await asyncio.wait([task])
        return {task.get_name() for task in asyncio.all_tasks() - {asyncio.current_task()}}

    monkeypatch.setattr(sockets.Socket, "send", send)
    async with fake.serve() as server, open_cutter(server.port) as cutter:
        assert await run_under_asyncio(partial(program, cutter.url)) == set()


async def test_a_long_line_on_a_slow_link_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the server answers to a ping comes behind the line."""
    monkeypatch.setattr(sockets, "SILENCE", 0.6)
    line = b'{"type":"x"' + b" " * 4_000_000 + b"}"

    async def serve(request: WebSocketRequest) -> None:
        socket = await request.accept()
        await socket.get_message()
        await socket._stream.send_all(b"\x81\x7f" + len(line).to_bytes(8, "big"))
        for at in range(0, len(line), 100_000):
            await socket._stream.send_all(line[at : at + 100_000])
            await trio.sleep(0.1)
        await socket.aclose(1000, "done")

    async with trio.open_nursery() as nursery:
        listening = await nursery.start(serve_websocket, serve, "127.0.0.1", 0, None)
        lines, answer = await collect(f"http://127.0.0.1:{listening.port}", "hello")
        nursery.cancel_scope.cancel()
    assert (len(lines[0]), answer.ended) == (len(line), Ended(1000, "done"))


@pytest.mark.parametrize("host", ["..", f"{'a' * 70}.example", "xn--", "xn--:1"])
async def test_a_name_that_no_host_has_is_named(host: str) -> None:
    for opened in (
        trio_claude.ask("hello", meta="T", url=f"http://{host}/"),
        open_session(meta="T", url=f"http://{host}/"),
    ):
        with pytest.raises(ConnectFailed, match="can't reach http://"):
            async with opened:
                pytest.fail("there")


async def test_a_proxy_of_an_unknown_kind_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:1")
    with pytest.raises(ConnectFailed, match="socks"):
        async with trio_claude.ask("hello", meta="T", url="http://claude.example"):
            pytest.fail("there")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("127.0.0.1:3000", "ws://127.0.0.1:3000/ws/claude?frames=verbatim"),
        ("https://claude.example", "wss://claude.example/ws/claude?frames=verbatim"),
        ("http://h/proxied/claude", "ws://h/proxied/claude?frames=verbatim"),
        ("ws://h:1/", "ws://h:1/ws/claude?frames=verbatim"),
        ("http://h/proxied/", "ws://h/proxied/ws/claude?frames=verbatim"),
        ("ws://h:1/ws/claude/?frames=original", "ws://h:1/ws/claude?frames=verbatim"),
        ("ws://h:1/ws/session", "ws://h:1/ws/claude?frames=verbatim"),
    ],
)
def test_addresses_are_completed(url: str, expected: str) -> None:
    assert door(url) == expected


async def test_the_address_of_one_door_leads_to_the_other(fake: Backend) -> None:
    assert door("ws://h:1/ws/claude", "/ws/session", "") == "ws://h:1/ws/session"
    assert door("http://h/claude/ws/claude", "/ws/session", "") == "ws://h/claude/ws/session"
    assert door("http://h/ws/other", "/ws/session", "") == "ws://h/ws/other"
    async with fake.serve() as server, open_session(meta="T", url=f"{server.url}/ws/claude") as session:
        assert session.started["run"]


@BOTH_LIBRARIES
async def test_an_answer_that_was_left_has_an_end(fake: Backend, library: Library) -> None:
    """Also for a task that iterates meanwhile: it is not left to wait for ever."""

    async def program(url: str) -> tuple[list[str], Any]:
        async with trio_claude.ask(directive("hang"), meta="T", url=url) as answer:
            await anext(answer)
        with anyio.fail_after(5):
            return [line async for line in answer], answer.ended

    async with fake.serve() as server:
        _, ended = await library(partial(program, server.url))
    assert (ended.ok, ended.code) == (False, 1006)
