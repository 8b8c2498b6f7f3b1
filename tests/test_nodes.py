"""Rule: who shares no Redis pays nothing for it; who does is a node from its start to its end."""

from __future__ import annotations

import subprocess
import sys

import pytest
import trio
from harness import Backend, ask, call, directive, until
from redis_server import RedisServer
from returns import attach
from talk import open_talk

from trio_claude import Config, open_engine
from trio_claude.errors import ConfigError
from trio_claude.events import Crashed, Event, NodeState
from trio_claude.nodes import history
from trio_claude.nodes.redis import open_redis


@pytest.mark.redis
async def test_servers_that_share_a_redis_are_nodes_while_they_live(fake: Backend, redis_server: RedisServer) -> None:
    config = {"redis": redis_server.url, "node_lease": 2.0, "metrics": True}
    async with open_redis(Config(redis=redis_server.url)) as redis:
        async with fake.serve(**config) as one, fake.serve(**config) as other:
            nodes = one.runs.nodes, other.runs.nodes
            assert nodes[0]
            assert nodes[1]
            names = {node.name.encode() for node in nodes if node}
            assert len(names) == 2
            assert set(await redis.ask("HKEYS", redis.key("nodes"))) == names
            assert (await ask(one, "hello")).code == 1000
            metrics = await scrape(one)
            assert "trio_claude_redis_connected 1.0" in metrics
            assert 'trio_claude_node_states_total{state="connected"} 1.0' in metrics
            redis_server.stop()
            try:
                await until(lambda: not nodes[0].connected)  # type: ignore[union-attr] - asserted
                assert "trio_claude_redis_connected 0.0" in await scrape(one)
                assert (await ask(other, "hello")).code == 1000
            finally:
                redis_server.go_on()
            with trio.fail_after(5):
                await nodes[0].redis.wait()
        assert await redis.ask("EXISTS", redis.key("nodes")) == 0
    assert [event.state for event in fake.events if isinstance(event, NodeState)].count("lost") == 0


async def scrape(server: object) -> str:
    status, _, body = await call(server, "/metrics")  # type: ignore[arg-type] - a server
    assert status == 200
    return body.decode()


@pytest.mark.redis
async def test_clients_are_told_that_redis_takes_nothing_and_when_it_does_again(
    fake: Backend, redis_server: RedisServer
) -> None:
    config = {"journal": "auto", "redis": redis_server.url, "node_lease": 2.0}
    async with fake.serve(**config) as one, fake.serve(**config) as other:
        async with open_talk(one) as owner, open_talk(other) as viewer:
            run = (await owner.start())["run"]
            await attach(viewer, run)
            redis_server.call("CONFIG", "SET", "maxmemory", "1")
            try:
                for talk in (owner, viewer):
                    assert (await talk.event("history"))["state"] == "waiting"
                await owner.user("hello")
                await owner.result()
            finally:
                redis_server.call("CONFIG", "SET", "maxmemory", "0")
            for talk in (owner, viewer):
                assert (await talk.event("history"))["state"] == "back"
            await until(lambda: viewer.lines() == owner.lines())
            await owner.stop("end")
            await owner.end()
    assert not [event for event in fake.events if isinstance(event, Crashed)]


@pytest.mark.redis
async def test_clients_are_told_that_history_gets_no_connection_though_redis_answers(
    fake: Backend, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may drop what it holds from now on."""
    monkeypatch.setattr(history, "KEEP", 0.05)
    monkeypatch.setattr(history, "PAUSE", 0.02)
    async with fake.serve(journal="auto", redis=redis_server.url, node_lease=2.0) as server, open_talk(server) as owner:
        await owner.start()
        assert server.runs.nodes
        assert server.runs.journal
        redis_server.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        try:
            assert (await owner.event("history"))["state"] == "waiting"
            assert server.runs.nodes.connected
            await owner.user("hello")
            await owner.result()
        finally:
            redis_server.call("CONFIG", "SET", "maxmemory-policy", "noeviction")
        assert (await owner.event("history"))["state"] == "back"
        assert await server.runs.journal.settle()
    told = [(event.state, event.detail) for event in fake.events if isinstance(event, NodeState)]
    assert [state for state, _ in told] == ["connected", "disconnected", "connected"]
    assert told[1][1].startswith("no connection for what runs say: maxmemory-policy must be noeviction")


@pytest.mark.redis
async def test_a_run_that_has_ended_is_come_back_to_though_redis_takes_nothing(
    fake: Backend, redis_server: RedisServer
) -> None:
    async with fake.serve(journal="auto", redis=redis_server.url, node_lease=2.0) as server:
        async with open_talk(server) as first:
            run = (await first.start())["run"]
            await first.user("hello")
            await first.result()
            await first.stop("end")
            await first.end()
        async with open_talk(server) as other, open_talk(server) as late:
            await other.start()
            assert server.runs.journal
            assert await server.runs.journal.settle()
            redis_server.call("CONFIG", "SET", "maxmemory", "1")
            try:
                await other.user("hello")
                await other.result()
                assert server.runs.journal.waiting
                assert (await attach(late, run))["ended"]
                await late.end()
                assert late.lines() == first.lines()
            finally:
                redis_server.call("CONFIG", "SET", "maxmemory", "0")


@pytest.mark.redis
async def test_no_client_learns_where_redis_is(fake: Backend, redis_server: RedisServer) -> None:
    port = redis_server.listen()
    async with fake.serve(journal="auto", redis=f"redis://127.0.0.1:{port}", node_lease=2.0) as server:
        assert server.runs.nodes
        redis = server.runs.nodes.redis
        redis_server.kill()
        await until(lambda: str(port) in redis.fault)
        status, _, body = await call(server, "/api/runs")
        assert (status, b"Redis does not answer" in body) == (503, True)
        await until(lambda: bool(server.runs.journal.fault))  # type: ignore[union-attr] - it has one
        for said in (body, str((await call(server, "/readyz"))[2]).encode()):
            assert str(port).encode() not in said
            assert b"127.0.0.1" not in said


@pytest.mark.redis
async def test_no_run_learns_where_redis_is(fake: Backend, redis_server: RedisServer) -> None:
    fake.environ |= {"TRIO_CLAUDE_REDIS": redis_server.url, "REDIS_URL": redis_server.url}
    async with fake.serve(redis=redis_server.url) as server:
        said = await ask(server, directive("bash", cmd="env"))
    assert redis_server.url not in "".join(said.frames)


async def test_a_redis_that_is_not_there_is_told_at_the_start(fake: Backend) -> None:
    with pytest.raises(ConfigError, match="refused"):
        async with fake.serve(redis="redis://127.0.0.1:1"):
            pytest.fail("opened")


async def test_without_the_extra_it_says_what_to_install(fake: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("trio_claude.nodes")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "coredis", None)
    events: list[Event] = []
    with pytest.raises(ConfigError, match=r"trio-claude\[redis\]"):
        async with open_engine(Config(cli=fake.program, redis="redis://localhost"), [events.append]):
            pytest.fail("opened")


def test_who_shares_nothing_imports_nothing_of_it() -> None:
    code = (
        "import sys, trio, trio_claude, trio_claude.server, trio_claude.commands.serve\n"
        "assert not {'coredis', 'trio_claude.nodes'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
