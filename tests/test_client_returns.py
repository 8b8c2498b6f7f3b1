"""Rule: a client that comes back is refused for a moment and tries again, in both languages; no line is lost or comes twice."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from browser import play
from cutter import Cutter, open_cutter
from harness import Backend, directive, until
from program import environ, serving
from redis_server import RedisServer
from returns import attach, numbered
from scripted import scripted
from talk import open_talk
from trio_websocket import WebSocketRequest, serve_websocket

from trio_claude.client import Reconnect, Refused, open_session
from trio_claude.server import Server

LINES = 2000
STREAM = directive("lines", n=LINES, rate=1000, size=50)


async def in_python(url: str, _folder: Path, prompt: str, grace: float) -> dict[str, Any]:
    """Have one turn in a session that comes back, then end it; return what was seen."""
    states: list[str] = []
    told: list[str] = []
    numbers: list[int] = []
    failed: dict[str, Any] = {}
    reconnect = Reconnect(grace=grace, on_lost=lambda _: states.append("lost"), on_back=lambda _: states.append("back"))

    def hear(said: dict[str, object]) -> None:
        if said["event"] == "refused":
            told.append(said["code"])

    async with open_session(meta="T", url=url, reconnect=reconnect, on_event=hear) as session:
        try:
            async for line in session.ask(prompt):
                numbers += [line.said["n"]] if "n" in line.said else []
            if session.ended is None:
                await session.end()
        except Refused as error:
            failed = {"code": error.code, "message": str(error), "retryAfter": error.retry_after}
        await until(lambda: session.ended)
    assert session.ended
    ended = {"code": session.ended.code, "reason": session.ended.reason}
    return {"states": states, "told": told, "numbers": numbers, "failed": failed, "ended": ended}


async def in_javascript(url: str, folder: Path, prompt: str, grace: float) -> dict[str, Any]:
    seen: dict[str, Any] = await play(url, folder, "returns", prompt, grace=grace)
    states = [state for state in seen["states"] if state in ("lost", "back")]
    return {**seen, "states": states}


Client = Callable[[str, Path, str, float], Awaitable[dict[str, Any]]]
BOTH = pytest.mark.parametrize("client", [in_python, pytest.param(in_javascript, marks=pytest.mark.node)])


# -- a server that says what is written down ---------------------------------------------------------------------------


@BOTH
async def test_a_refusal_for_a_moment_is_tried_again(client: Client, folder: Path) -> None:
    refusals = [
        "draining",
        ("no-answer", {"retry_after": 0.3}),
        ("journal", {"retry_after": 0.1}),
        "busy",
        "queue-full",
    ]
    async with scripted(*refusals, "broken", "taken") as server:
        seen = await client(server.url, folder, "hello", 20)
    assert (seen["numbers"], seen["failed"]) == ([1, 2, 3], {})
    assert seen["told"] == ["busy"], "the one that is of a message alone"
    assert (seen["states"], seen["ended"]) == (["lost", "back"], {"code": 1000, "reason": "stopped"})
    assert len(server.came) == 7
    assert 0.3 <= server.came[2] - server.came[1] < 1, "not before the server has asked for it"


@BOTH
@pytest.mark.parametrize("last", ["no-answer", "broken"])
async def test_what_was_refused_last_is_told_when_the_grace_is_over(client: Client, folder: Path, last: str) -> None:
    """Also where the tries behind it came to nobody."""
    async with scripted("draining", ("no-answer", {"retry_after": 0.2}), last) as server:
        began = trio.current_time()
        seen = await client(server.url, folder, "hello", 1.5)
    assert server.came[-1] - server.came[0] < 1.5
    assert 1 < trio.current_time() - began < 8
    assert (seen["numbers"], seen["states"], seen["told"]) == ([1], ["lost"], ["no-answer"])
    assert (seen["failed"]["code"], seen["failed"]["message"]) == ("no-answer", "refused: no-answer")
    assert seen["ended"] == {"code": 1013, "reason": ""}


@BOTH
async def test_the_close_behind_a_refusal_is_heard_though_the_grace_is_over(client: Client, folder: Path) -> None:
    async with scripted("no-answer", late=0.7) as server:
        seen = await client(server.url, folder, "hello", 0.5)
    assert len(server.came) == 1
    assert (seen["failed"]["code"], seen["ended"]) == ("no-answer", {"code": 1013, "reason": ""})


@BOTH
async def test_a_network_that_breaks_more_often_than_lines_come(client: Client, fake: Backend, folder: Path) -> None:
    """The grace is counted anew from each connection that held, though nothing was said on it."""
    seen: dict[str, Any] = {}
    kept = fake.serve(journal="memory")  # it may end while the client is away
    async with kept as server, open_cutter(server.port) as cutter, trio.open_nursery() as nursery:

        async def talk() -> None:
            seen.update(await client(cutter.url, folder, directive("lines", n=2, rate=0.15), 3))
            nursery.cancel_scope.cancel()

        nursery.start_soon(talk)
        while True:
            await until(lambda: any(stage.owned for stage in server.stages.values()), 30)
            await trio.sleep(0.5)  # so long the connection holds
            cutter.cut()
            await until(lambda: not any(stage.owned for stage in server.stages.values()), 30)
    assert (seen["numbers"], seen["failed"], seen["ended"]["reason"]) == ([1, 2], {}, "exit")
    assert seen["states"].count("lost") == seen["states"].count("back") > 3


@BOTH
@pytest.mark.parametrize(("code", "close"), [("not-open", 1008), ("credentials", 1008), ("replaced", 1000)])
async def test_a_refusal_for_good_is_not_tried_again(client: Client, folder: Path, code: str, close: int) -> None:
    async with scripted("draining", code) as server:
        seen = await client(server.url, folder, "hello", 20)
    assert len(server.came) == 2
    assert seen["ended"] == {"code": close, "reason": ""}
    assert seen["told"] == [code]


@asynccontextmanager
async def broken_behind_the_end(**ended: object) -> AsyncIterator[str]:
    """A server that has one turn, tells the end of the run when it is asked to stop, and closes without a word."""

    async def serve(request: WebSocketRequest) -> None:
        socket = await request.accept(subprotocol=next(iter(request.proposed_subprotocols), None))
        await socket.get_message()
        await socket.send_message('{"type":"gateway","event":"started","run":"r","session":"s"}')
        await socket.get_message()
        await socket.send_message('{"type":"result","subtype":"success","is_error":false,"result":"done","n":1}')
        await socket.get_message()
        await socket.send_message(json.dumps({"type": "gateway", "event": "ended", "receipt": {}, **ended}))
        await socket._stream.aclose()

    async with trio.open_nursery() as nursery:
        listening = await nursery.start(serve_websocket, serve, "127.0.0.1", 0, None)
        yield f"http://127.0.0.1:{listening.port}"
        nursery.cancel_scope.cancel()


@BOTH
async def test_a_good_end_is_one_though_the_connection_breaks_behind_it(client: Client, folder: Path) -> None:
    async with broken_behind_the_end(reason="exit", exit_status=0) as url:
        seen = await client(url, folder, "hello", 5)
    assert (seen["numbers"], seen["states"], seen["failed"]) == ([1], [], {})
    assert seen["ended"] == {"code": 1006, "reason": "exit"}


@pytest.mark.node
@pytest.mark.parametrize(
    ("reason", "kind", "code"), [("failed", "RunFailed", "failed"), ("drained", "ServerGone", "server-gone")]
)
async def test_a_bad_end_keeps_its_name_though_the_connection_breaks_behind_it(
    folder: Path, reason: str, kind: str, code: str
) -> None:
    async with broken_behind_the_end(reason=reason, exit_status=3, error="no good") as url:
        failed = (await in_javascript(url, folder, "hello", 5))["failed"]
    assert (failed["kind"], failed["code"], failed["message"]) == (kind, code, "no good")
    assert (failed["reason"], failed["closeCode"]) == (reason, 1006)


# -- real servers ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def two(fake: Backend, redis: RedisServer) -> AsyncIterator[tuple[Server, Server, Cutter]]:
    """Two servers that share a Redis, and what leads a client to the first of them."""
    settings = {"journal": "auto", "redis": redis.url}
    async with fake.serve(**settings) as a, fake.serve(**settings) as b, open_cutter(a.port) as cutter:
        yield a, b, cutter


async def under_way(server: Server, lines: int = 200) -> None:
    await until(lambda: [stage for stage in server.stages.values() if stage.number > lines], 20)


@asynccontextmanager
async def talking(client: Client, url: str, folder: Path, prompt: str = STREAM) -> AsyncIterator[dict[str, Any]]:
    """Have a client talk meanwhile; what it has seen is there afterwards."""
    seen: dict[str, Any] = {}

    async def talk() -> None:
        seen.update(await client(url, folder, prompt, 30))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk)
        yield seen


def check_whole(seen: dict[str, Any], times: int) -> None:
    assert seen["numbers"] == list(range(1, LINES + 1))
    assert (seen["failed"], seen["told"]) == ({}, [])
    assert seen["states"] == ["lost", "back"] * times
    assert seen["ended"] == {"code": 1000, "reason": "exit"}


@BOTH
@pytest.mark.redis
async def test_a_server_between_that_goes_down_is_left_for_another(
    client: Client, fake: Backend, redis_server: RedisServer, folder: Path
) -> None:
    async with two(fake, redis_server) as (a, b, cutter), talking(client, cutter.url, folder) as seen:
        await under_way(a)
        cutter.lead(b.port)
        cutter.cut()
        await until(lambda: cutter.made == 2 and next(iter(a.stages.values())).owned)
        await under_way(a, 600)
        cutter.lead(a.port)
        await b.drain(0)
    check_whole(seen, 2)
    assert cutter.made == 3


@BOTH
@pytest.mark.redis
@pytest.mark.parametrize("how", ["hangs", "killed"])
async def test_a_redis_that_is_away_is_waited_for(
    client: Client, fake: Backend, redis_server: RedisServer, folder: Path, how: str
) -> None:
    async with two(fake, redis_server) as (a, b, cutter), talking(client, cutter.url, folder) as seen:
        await under_way(a)
        redis_server.stop() if how == "hangs" else redis_server.kill()
        cutter.lead(b.port)
        cutter.cut()
        await until(lambda: cutter.made >= 3, 15)
        redis_server.go_on() if how == "hangs" else redis_server.start()
    check_whole(seen, 1)


@BOTH
@pytest.mark.redis
async def test_the_server_of_the_run_that_is_killed(
    client: Client, fake: Backend, redis_server: RedisServer, folder: Path
) -> None:
    """Nobody knows yet that it is dead, at first."""
    words = ["serve", "--port", "0", "--redis", redis_server.url, "--node-lease", "4"]
    async with (
        serving(*words, env=environ(fake)) as (process, url),
        fake.serve(journal="auto", redis=redis_server.url, node_lease=4.0) as b,
        open_cutter(int(url.rpartition(":")[2])) as cutter,
        talking(client, cutter.url, folder, directive("lines", n=10**6, rate=1000, size=50)) as seen,
        open_talk(b) as viewer,
    ):
        runs: list[str] = []
        with trio.fail_after(20):
            while not runs:
                runs = redis_server.call("ZRANGE", "trio-claude:runs", "0", "-1").decode().split()
                await trio.sleep(0.05)
        await attach(viewer, runs[0])
        await until(lambda: len(numbered(viewer)) > 500, 20)
        cutter.lead(b.port)
        process.kill()
        ended = await viewer.end(10)
    assert cutter.made >= 3, "it was refused at least once"
    assert (seen["told"], seen["states"][:2], seen["ended"]) == (
        [],
        ["lost", "back"],
        {"code": 1011, "reason": "node-lost"},
    )
    assert seen["numbers"] == list(range(1, len(seen["numbers"]) + 1))
    assert ended["reason"] == "node-lost"
