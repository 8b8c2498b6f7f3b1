"""Rule: a door says how an attempt ended, whatever a server says, or does not."""

from __future__ import annotations

import json
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from cutter import open_cutter
from harness import Backend, directive, until
from trio_websocket import WebSocketRequest, serve_websocket

from trio_claude.batch.doors import most_at_once, open_embedded
from trio_claude.batch.remote import ServerDoor
from trio_claude.batch.results import Finish
from trio_claude.batch.tasks import Rules, make_plan
from trio_claude.client import sockets
from trio_claude.config import OPTIONS, Config
from trio_claude.messages import Prompt


def prompt(**more: object) -> Prompt:
    (task,) = make_plan(json.dumps({"prompt": "hello", **more}).encode(), Rules(OPTIONS, 300)).tasks
    return task.prompt


@pytest.mark.parametrize(("limit", "most"), [(64, 1), (1024, 120), (resource.RLIM_INFINITY, 2**62)])
def test_as_many_runs_go_at_once_as_there_are_descriptors_for(
    monkeypatch: pytest.MonkeyPatch, limit: int, most: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (limit, limit))
    assert min(most_at_once(), 2**62) == most


@asynccontextmanager
async def served(frame: str = "", status: int | None = None) -> AsyncIterator[ServerDoor]:
    """Yield the door to a server that refuses with a status, or says a frame and that it is full."""

    async def serve(request: WebSocketRequest) -> None:
        if status:
            await request.reject(status)
            return
        socket = await request.accept()
        await socket.get_message()
        await socket.send_message(frame)
        await socket.aclose(1013, "full")

    async with trio.open_nursery() as nursery:
        listening = await nursery.start(serve_websocket, serve, "127.0.0.1", 0, None)
        yield ServerDoor(f"http://127.0.0.1:{listening.port}")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [("7", 7), ("0.5", 0.5), ("-5", None), ("NaN", None), ("1e999", None), ("1" + "0" * 400, None), ("true", None), ('"7"', None)],
)  # fmt: skip
async def test_a_server_is_full_for_as_long_as_can_be_waited(asked: str, seconds: float | None) -> None:
    async with served(f'{{"error":"full","retry_after":{asked}}}') as door:
        finish = await door.run(prompt(), print)
    assert (finish.reason, finish.error, finish.retry_after) == ("busy", "full", seconds)


@pytest.mark.parametrize(
    ("status", "reason"),
    [(400, "refused"), (401, "refused"), (403, "refused"), (404, "refused"), (408, "unreachable"), (429, "unreachable"), (503, "unreachable")],
)  # fmt: skip
async def test_only_a_server_that_may_be_there_later_is_not_reached(status: int, reason: str) -> None:
    async with served(status=status) as door:
        finish = await door.run(prompt(), print)
    assert finish.reason == reason
    assert f"HTTP {status}" in str(finish.error)


async def test_nobody_there_is_not_reached() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        finish = await ServerDoor(f"http://127.0.0.1:{free.getsockname()[1]}").run(prompt(), print)
    assert finish.reason == "unreachable"


async def test_a_server_that_vanished_holds_nothing_for_ever(fake: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "SILENCE", 0.2)
    async with fake.serve() as server, open_cutter(server.port) as cutter, trio.open_nursery() as nursery:
        finishes: list[Finish] = []

        async def run() -> None:
            finishes.append(await ServerDoor(cutter.url).run(prompt(prompt=directive("silent")), print))

        nursery.start_soon(run)
        await until(lambda: server.runs.statistics().live)
        cutter.silent = True
        with trio.fail_after(30):
            await until(lambda: finishes, 20)
    assert (finishes[0].reason, finishes[0].error) == ("disconnected", "the server has been silent for 0.4 s")


async def test_inside_the_command_the_limits_of_one_identity_hold_and_their_seconds_are_told(fake: Backend) -> None:
    config = Config(cli=fake.program, cwd=str(fake.cwd), prompts_per_minute=1.0)
    async with open_embedded(config, "b") as (door, _):
        finishes = [await door.run(prompt(), print) for _ in range(2)]
    assert [finish.reason for finish in finishes] == ["exit", "busy"]
    assert finishes[1].retry_after
