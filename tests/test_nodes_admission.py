"""Rule: clients of several servers that share a Redis meet the limits of one; a stop never waits for Redis."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
from handover import Started, ended, held, start
from harness import Backend, ask, call, connect, directive, head, until
from program import environ
from redis_server import RedisServer
from talk import open_talk

from trio_claude.identity.keys import Key, digest, new_secret, write_keys
from trio_claude.inbox import MESSAGES

pytestmark = pytest.mark.redis
PRICE = 0.0003
"""Dollars; more than a prompt of the fake CLI costs, and less than two."""


@attrs.frozen
class House:
    """Three servers, each a process, and the keys of who may come in."""

    servers: list[Started]
    keys: dict[str, str]
    redis: RedisServer

    def count(self, command: str, kind: str, who: str) -> int:
        return int(self.redis.call(command, f"trio-claude:{kind}:key:{who}"))


@asynccontextmanager
async def open_house(
    fake: Backend, folder: Path, redis: RedisServer, lease: str = "20", **limits: dict[str, float]
) -> AsyncIterator[House]:
    """Serve identities with these limits on three servers."""
    secrets = {name: new_secret() for name in limits}
    write_keys(folder / "keys.json", {name: Key(digest(secrets[name]), limits=own) for name, own in limits.items()})
    words = ["--keys", str(folder / "keys.json"), "--redis", redis.url, "--node-lease", lease, "--max-runs", "20"]
    words += ["--max-waiting", "2000", "--max-handshakes-per-address", "2000", "--max-handshakes", "2000"]
    async with contextlib.AsyncExitStack() as stack:
        servers = []
        for number in range(3):
            listener = stack.enter_context(held())
            log = folder / f"log{number}"
            servers.append(await start(listener, *words, env={**environ(fake), "TRIO_CLAUDE_CWD": ""}, log=log))
            await stack.enter_async_context(ended(servers[-1]))
        yield House(servers, secrets, redis)


async def test_limits_are_exact_over_three_servers_under_a_thousand_asks(
    fake: Backend, folder: Path, redis_server: RedisServer
) -> None:
    told: dict[str, Counter[object]] = {"alice": Counter(), "bob": Counter()}
    highest = 0
    limits = {"prompts_per_minute": 20.0, "runs_per_identity": 3.0}
    async with open_house(fake, folder, redis_server, alice=limits, bob=limits) as house:

        async def one(number: int) -> None:
            who = "alice" if number % 2 else "bob"
            said = await ask(house.servers[number % 3], directive("slow", n=5, ms=20), key=house.keys[who])
            told[who][said.code, str(said.errors[-1]["error"]) if said.errors else ""] += 1

        async def watch() -> None:
            nonlocal highest
            while True:
                highest = max(highest, *(house.count("SCARD", "running", who) for who in told))
                await trio.sleep(0.02)

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            async with trio.open_nursery() as clients:
                for number in range(1000):
                    clients.start_soon(one, number)
                    if number % 50 == 49:
                        await trio.sleep(0.05)
            nursery.cancel_scope.cancel()
        back = math.ceil((trio.current_time() - began) * 20 / 60)
    for codes in told.values():
        assert codes.total() == 500
        assert set(codes) == {(1000, ""), (1013, "more than 20 prompts a minute")}
        assert 20 <= codes[1000, ""] <= 20 + back
    assert highest == 3


async def test_a_budget_and_a_session_are_all_servers(fake: Backend, folder: Path, redis_server: RedisServer) -> None:
    async with open_house(fake, folder, redis_server, alice={"dollars_per_day": PRICE}, bob={}) as house:
        codes = []
        for number in range(6):
            said = await ask(house.servers[number % 3], "hello", key=house.keys["alice"])
            codes.append(said.code)
        assert codes == [1000, 1011, 1013, 1013, 1013, 1013], said
        first, *rest = house.servers
        async with open_talk(first, house.keys["bob"]) as talk:
            session = (await talk.start())["session"]
            busy = Counter[int]()

            async def resume(server: Started) -> None:
                busy[(await ask(server, "hello", key=house.keys["bob"], resume=session)).code] += 1

            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    for server in rest:
                        nursery.start_soon(resume, server)
            assert busy == {1008: 40}
            await talk.stop("kill")
            await until(lambda: talk.code is not None)
        assert (await ask(rest[0], "hello", key=house.keys["bob"], resume=session)).code == 1000


async def test_a_ticket_opens_one_socket_on_whichever_server(
    fake: Backend, folder: Path, redis_server: RedisServer
) -> None:
    opened = Counter[str]()
    async with open_house(fake, folder, redis_server, alice={}) as house:
        tickets = []
        for number in range(20):
            status, _, body = await call(house.servers[number % 3], "/api/ticket", house.keys["alice"], "POST")
            assert status == 200
            tickets.append(json.loads(body)["ticket"])

        async def spend(server: Started, ticket: str) -> None:
            said = base64.urlsafe_b64encode(ticket.encode()).rstrip(b"=").decode()
            async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
                await stream.send_all(head(host="localhost", sec_websocket_protocol=f"trio-claude.v1, ticket.{said}"))
                answer = bytes(await stream.receive_some(4096))
            assert answer.startswith((b"HTTP/1.1 101", b"HTTP/1.1 401"))
            opened[ticket] += answer.startswith(b"HTTP/1.1 101")

        async with trio.open_nursery() as nursery:
            for ticket in tickets:
                for number in range(9):
                    nursery.start_soon(spend, house.servers[number % 3], ticket)
    assert opened == dict.fromkeys(tickets, 1)


async def test_the_places_and_sessions_of_a_server_that_is_killed_come_free(
    fake: Backend, folder: Path, redis_server: RedisServer
) -> None:
    async with open_house(fake, folder, redis_server, lease="2", alice={"runs_per_identity": 1}) as house:
        first, second, _ = house.servers
        async with open_talk(second, house.keys["alice"]) as later:
            with contextlib.suppress(Exception):
                async with open_talk(first, house.keys["alice"]) as talk:
                    session = (await talk.start())["session"]
                    await later.say({"type": "gateway", "op": "start", "meta": "T", "options": {"resume": session}})
                    await until(lambda: later.code is not None)
                    assert later.code == 1008
                    async with open_talk(second, house.keys["alice"]) as waiter:
                        await waiter.say({"type": "gateway", "op": "start", "meta": "T"})
                        assert (await waiter.event("queued"))["position"] == 1
                        os.kill(first.process.pid, signal.SIGKILL)
                        with trio.fail_after(8):
                            await waiter.event("started")
                        await waiter.stop("kill")
                        await until(lambda: waiter.code is not None)
                    said = await ask(second, "hello", key=house.keys["alice"], resume=session)
                    assert said.code == 1000
                    house.keys["done"] = "yes"
        assert house.keys["done"]


async def test_a_prompt_that_waits_at_a_server_that_goes_down_is_counted_where_it_runs(
    fake: Backend, redis_server: RedisServer
) -> None:
    config = {"redis": redis_server.url, "prompts_per_minute": 2.0}
    async with fake.serve(**config, max_runs=1) as first, fake.serve(**config) as second:
        async with open_talk(first) as talk, open_talk(first) as waiter:
            await talk.start()
            await waiter.say({"type": "gateway", "op": "start", "meta": "T"})
            await waiter.event("queued")
            await first.drain(0)
            assert (await waiter.event("refused"))["code"] == "draining"
        assert (await ask(second, "hello")).code == 1000


# -- one server, and a Redis that hangs --------------------------------------------------------------------------------


async def test_a_turn_waits_for_redis_and_a_stop_does_not(fake: Backend, redis_server: RedisServer) -> None:
    config = {"redis": redis_server.url, "node_lease": 60.0, "prompts_per_minute": 100.0}
    async with fake.serve_known("alice", **config) as (server, keys), open_talk(server, keys["alice"]) as talk:
        await talk.start()
        await talk.user("hello")
        await talk.result()
        redis_server.stop()
        try:
            for text in ("one", "two"):
                await talk.user(text)
            await talk.stop("kill")
            with trio.fail_after(1):
                assert (await talk.event("ended"))["reason"] == "stopped"
        finally:
            redis_server.go_on()
    assert len(fake.ended) == 1


async def test_a_run_ends_behind_as_many_messages_as_may_wait(fake: Backend, redis_server: RedisServer) -> None:
    config = {"redis": redis_server.url, "node_lease": 60.0, "prompts_per_minute": 100.0}
    async with fake.serve_known("alice", **config) as (server, keys), open_talk(server, keys["alice"]) as talk:
        started = await talk.start()
        await talk.user("hello")
        await talk.result()
        inbox = server.stages[started["run"]].inbox
        assert inbox
        redis_server.stop()
        try:
            await talk.user("hello")
            asked = {"subtype": "set_model", "model": "sonnet"}
            for number in range(MESSAGES):
                await talk.say({"type": "control_request", "request_id": f"m{number}", "request": asked})
            await talk.stop("end")
            await talk.event("stopping")
            assert len(inbox._waiting) == MESSAGES + 1
        finally:
            redis_server.go_on()
        assert (await talk.event("ended"))["reason"] == "exit"
        answers = [frame for frame in talk.frames if frame["type"] == "control_response"]
        assert len(answers) == MESSAGES
        assert not [frame for frame in talk.frames if frame.get("event") == "refused"]


async def test_what_is_said_stays_in_order_and_what_redis_can_not_count_is_refused(
    fake: Backend, redis_server: RedisServer
) -> None:
    config = {"redis": redis_server.url, "node_lease": 5.0, "prompts_per_minute": 100.0}
    async with fake.serve_known("alice", **config) as (server, keys), open_talk(server, keys["alice"]) as talk:
        await talk.start()
        await talk.user("hello")
        await talk.result()
        names = [f"m{number}" for number in range(20)]
        for number, name in enumerate(names):
            if number % 5 == 2:
                await talk.user("hello")
            asked = {"subtype": "set_model", "model": "sonnet"}
            await talk.say({"type": "control_request", "request_id": name, "request": asked})
        await talk.stop("end")
        assert (await talk.event("ended"))["reason"] == "exit"
        answers = [frame["response"]["request_id"] for frame in talk.frames if frame["type"] == "control_response"]
        assert answers == names
        assert not [frame for frame in talk.frames if frame.get("event") == "refused"]
    async with fake.serve_known("alice", **config) as (server, keys), open_talk(server, keys["alice"]) as talk:
        await talk.start()
        await talk.user("hello")
        await talk.result()
        redis_server.kill()
        await talk.user("hello")
        refused = await talk.event("refused")
        assert (refused["code"], refused["retry_after"]) == ("busy", 1)
        assert server.runs.nodes
        await until(lambda: not server.runs.nodes.shared._desk._ready)
        redis_server.start()
        await until(lambda: server.runs.nodes.shared._desk._ready)
        await talk.user("hello")
        await talk.result()


async def test_while_redis_is_gone_a_prompt_with_a_limit_is_told_to_come_back(
    fake: Backend, redis_server: RedisServer
) -> None:
    async with (
        fake.serve_known("alice", "bob", redis=redis_server.url, prompts_per_minute=100.0) as (server, keys),
        connect(server, key=keys["bob"]),
    ):
        redis_server.kill()
        assert server.runs.nodes
        await until(lambda: not server.runs.nodes.connected)
        said = await ask(server, "hello", key=keys["alice"])
        assert said.code == 1013
        assert said.errors == [{"error": "what the servers share is not at hand just now", "retry_after": 1.0}]
        status, headers, body = await call(server, "/api/ticket", keys["alice"], "POST")
        assert (status, headers["retry-after"], json.loads(body)["code"]) == (503, "1", "busy")
