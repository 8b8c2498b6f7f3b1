"""Rule: whichever part dies or is away, a client at another node is told what was said, each line once, and how it ended."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import attrs
import pytest
import trio
from harness import Backend, bearing, call, directive, until
from program import environ, serving
from redis_server import RedisServer
from returns import GRACE, attach, numbered
from talk import open_talk

pytestmark = pytest.mark.redis
LEASE = 2.0
TOLD = LEASE * 1.5 + 2
"""Seconds from a node's death until everybody is told: its lease, the next look of another, and some for this machine."""
STREAM = directive("lines", n=10**6, rate=2000, size=100)


@attrs.frozen
class Node:
    """A server in a process of its own."""

    process: trio.Process
    port: int


@asynccontextmanager
async def nodes(fake: Backend, redis: RedisServer, count: int) -> AsyncIterator[list[Node]]:
    words = ["serve", "--port", "0", "--redis", redis.url, "--node-lease", str(LEASE)]
    async with AsyncExitStack() as stack:
        found = []
        for number in range(count):
            env = {**environ(fake), "TRIO_CLAUDE_STATE": str(fake.cwd.parent / f"state{number}")}
            process, url = await stack.enter_async_context(serving(*words, env=env))
            found.append(Node(process, int(url.rpartition(":")[2])))
        yield found


async def test_who_watches_a_node_that_is_killed_is_told_within_its_lease(
    fake: Backend, redis_server: RedisServer
) -> None:
    async with nodes(fake, redis_server, 3) as (a, b, c):
        async with open_talk(a) as first, open_talk(b) as owner, open_talk(c) as viewer:
            run = (await first.start(**GRACE))["run"]
            await attach(owner, run, **{"as": "owner"})
            await attach(viewer, run)
            await owner.user(STREAM)
            for talk in (owner, viewer):
                await until(lambda talk=talk: len(numbered(talk)) > 500)
            killed = trio.current_time()
            a.process.kill()
            for talk in (owner, viewer):
                ended = await talk.end(TOLD)
                assert (ended["reason"], talk.code) == ("node-lost", 1011)
                assert trio.current_time() - killed < TOLD
                assert ended["lines"] == len(numbered(talk))
            assert numbered(owner) == numbered(viewer)
        async with open_talk(c) as late:
            assert (await attach(late, run))["ended"]
            assert (await late.end())["reason"] == "node-lost"
            assert numbered(late) == numbered(owner)
        assert (await call(b, f"/api/runs/{run}?state=live", method="DELETE"))[0] == 409
    await until(lambda: not bearing(f"LC_TEST={fake.mark}"), 10)


async def test_an_owner_whose_node_is_killed_has_left(fake: Backend, redis_server: RedisServer) -> None:
    async with nodes(fake, redis_server, 3) as (a, b, c):
        async with open_talk(a) as first:
            run = (await first.start(**GRACE))["run"]
            async with open_talk(b) as owner:
                await attach(owner, run, **{"as": "owner"})
                await owner.user(directive("lines", n=15_000, rate=2000, size=100))
                await until(lambda: len(numbered(owner)) > 500)
                b.process.kill()
                await until(lambda: owner.code is not None)
                got = len(numbered(owner))
        killed = trio.current_time()
        while True:
            async with open_talk(c) as second:
                if (await attach(second, run, got))["role"] == "owner":
                    assert trio.current_time() - killed < TOLD
                    await second.result(30)
                    await second.stop("end")
                    ended = await second.end()
                    break
            assert trio.current_time() - killed < TOLD
            await trio.sleep(0.2)
        assert (ended["reason"], ended["lines"]) == ("exit", got + len(numbered(second)))


async def test_an_owner_at_a_node_that_was_taken_for_lost_comes_back(fake: Backend, redis_server: RedisServer) -> None:
    """What it says meanwhile is not heard, and it is told so: its connection is dropped."""
    async with nodes(fake, redis_server, 2) as (a, b), open_talk(a) as first, open_talk(b) as owner:
        run = (await first.start(**GRACE))["run"]
        await attach(owner, run, **{"as": "owner", "client": "c"})
        await owner.user("hello")
        await owner.result()
        b.process.send_signal(signal.SIGSTOP)
        killed = trio.current_time()
        while True:
            async with open_talk(a) as second:
                if (await attach(second, run))["role"] == "owner":
                    await second.say({"type": "gateway", "op": "detach"})
                    await until(lambda talk=second: talk.code == 1000)
                    break
            assert trio.current_time() - killed < TOLD
            await trio.sleep(0.2)
        await owner.user("is this heard?")
        b.process.send_signal(signal.SIGCONT)
        await until(lambda: owner.code is not None, 2 * LEASE + 5)
        async with open_talk(b) as third:
            told = await attach(third, run, len(numbered(owner)), client="c")
            assert (told["role"], told["heard"]) == ("owner", 1)
            await third.user("hello")
            await third.result()
            await third.stop("end")
            assert (await third.end())["reason"] == "exit"


async def test_a_message_may_be_as_long_as_at_the_runs_node(fake: Backend, redis_server: RedisServer) -> None:
    settings = {"journal": "auto", "redis": redis_server.url}
    async with fake.serve(**settings) as a, fake.serve(**settings) as b, open_talk(a) as first, open_talk(b) as owner:
        run = (await first.start(**GRACE))["run"]
        await attach(owner, run, **{"as": "owner"})
        said = {"type": "user", "message": {"role": "user", "content": "\u4e00" * 10_000_000}}
        await owner.say(json.dumps(said, ensure_ascii=False))
        assert not (await owner.result(60))["is_error"]
        await owner.stop("end")
        assert (await owner.end())["reason"] == "exit"


async def test_who_was_not_let_in_while_redis_was_full_takes_no_place_later(
    fake: Backend, redis_server: RedisServer
) -> None:
    settings = {"journal": "auto", "redis": redis_server.url}
    async with fake.serve(**settings) as a, fake.serve(**settings) as b, open_talk(a) as near:
        run = (await near.start(**GRACE))["run"]
        redis_server.call("CONFIG", "SET", "maxmemory", "1")
        try:
            async with AsyncExitStack() as stack:
                for _ in range(5):
                    talk = await stack.enter_async_context(open_talk(b))
                    await talk.say({"type": "gateway", "op": "attach", "run": run, "as": "owner"})
                questions = b.runs.nodes.control._questions  # type: ignore[union-attr] - it shares
                await until(lambda: len(questions) >= 5)
            await until(lambda: not questions)
        finally:
            redis_server.call("CONFIG", "SET", "maxmemory", "0")
        async with open_talk(b) as viewer:
            assert (await attach(viewer, run))["role"] == "viewer"
        await near.user("hello")
        await near.result()
        await near.stop("end")
        assert (await near.end())["reason"] == "exit"


@pytest.mark.parametrize("how", ["hangs", "killed"])
async def test_nothing_is_lost_while_redis_is_away(fake: Backend, redis_server: RedisServer, how: str) -> None:
    """An owner at another node may have to come back; what it has got is each line once."""
    settings = {"journal": "auto", "redis": redis_server.url, "node_lease": 10.0}
    async with fake.serve(**settings) as a, fake.serve(**settings) as b, open_talk(a) as near:
        run = (await near.start(**GRACE))["run"]
        got: list[str] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, b, run, got)
            await until(lambda: not a.stages[run]._viewers and near.code is not None)
            await until(lambda: len(got) > 500)
            redis_server.stop() if how == "hangs" else redis_server.kill()
            await trio.sleep(2)
            redis_server.go_on() if how == "hangs" else redis_server.start()
            await until(lambda: '"type": "result"' in got[-1], 30)
            nursery.cancel_scope.cancel()
        async with open_talk(a) as last:
            await attach(last, run, 0, **{"as": "owner"})
            await last.next(lambda frame: frame["type"] == "result" or frame.get("event") in ("gap", "history"), 30)
            assert numbered(last) == got
            await last.stop("kill")
            await last.end()
    assert fake.ended[0].outcome.receipt.survivors == 0


async def watch(server: Node, run: str, got: list[str]) -> None:
    """Own a run at another node, come back as often as need be, and keep its lines."""
    begun = False
    while True:
        async with open_talk(server) as talk:
            await talk.say({"type": "gateway", "op": "attach", "run": run, "after": len(got), "as": "owner"})
            with trio.move_on_after(10):
                await until(
                    lambda: talk.code is not None or (talk.frames[-1:] and talk.frames[-1].get("event") == "attached")
                )
            if not begun:
                begun = True
                await talk.user(directive("lines", n=12_000, rate=2000, size=100))
            at, gone = 0, False
            while not gone:
                gone = talk.code is not None
                new, at = talk.frames[at:], len(talk.frames)
                got += [json.dumps(frame) for frame in new if frame["type"] != "gateway"]
                await trio.sleep(0.02)
        await trio.sleep(0.1)
