"""Rule: the client library says the same under Trio and asyncio, and every end is typed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import trio
from anyio.streams.memory import MemoryObjectSendStream
from harness import Backend, directive, until
from libraries import under_asyncio as run_under_asyncio

import trio_claude
from trio_claude.client import Answer, ConnectFailed, Ended, door


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


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://127.0.0.1:x", "ftp://127.0.0.1:1"])
async def test_who_can_not_be_reached_is_named(url: str) -> None:
    with pytest.raises(ConnectFailed, match="can't reach"):
        await collect(url, "hello")


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


async def test_a_refusal_names_its_status(fake: Backend) -> None:
    async with fake.serve() as server:
        with pytest.raises(ConnectFailed, match="HTTP 404"):
            await collect(f"{server.url}/elsewhere", "hello")


async def test_a_server_that_dies_is_an_end(fake: Backend) -> None:
    async with fake.serve() as server, trio.open_nursery() as nursery:
        answers: list[Ended | None] = []

        async def one() -> None:
            answers.append((await collect(server.url, directive("silent")))[1].ended)

        nursery.start_soon(one)
        await until(lambda: server.runs.statistics().live)
        await server.drain(0)
    assert answers[0] == Ended(1012, answers[0].reason, "server shutting down")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("127.0.0.1:3000", "ws://127.0.0.1:3000/ws/claude?frames=verbatim"),
        ("https://claude.example", "wss://claude.example/ws/claude?frames=verbatim"),
        ("http://h/proxied/claude", "ws://h/proxied/claude?frames=verbatim"),
        ("ws://h:1/", "ws://h:1/ws/claude?frames=verbatim"),
    ],
)
def test_addresses_are_completed(url: str, expected: str) -> None:
    assert door(url) == expected
