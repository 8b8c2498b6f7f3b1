"""Rule: a node that gives no sign of life is lost within a lease and a bit, once; and never one that lives."""

from __future__ import annotations

import shutil
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio
from harness import until
from nodes import LEASE, append, begin, lines, open_node
from redis_server import RedisServer, open_redis_server

from trio_claude.config import Config
from trio_claude.events import Event, NodeState, Weak
from trio_claude.nodes import open_nodes
from trio_claude.nodes.membership import Membership
from trio_claude.nodes.redis import Redis, RedisGone, open_redis
from trio_claude.nodes.scripts import load

pytestmark = pytest.mark.redis


async def join(redis: Redis, name: str) -> Membership:
    """Have a node join that gives no sign of life, as one whose server was killed."""
    dead = Membership(redis, name, LEASE, lambda _event: None)
    await dead.join()
    return dead


def states(events: list[Event]) -> list[tuple[str, str]]:
    return [(event.node, event.state) for event in events if isinstance(event, NodeState)]


async def nodes_in(redis: Redis) -> set[bytes]:
    return set(await redis.ask("HKEYS", redis.key("nodes")))


async def test_each_node_has_a_token_that_no_other_had(redis_server: RedisServer) -> None:
    seen: list[int] = []
    for name in ("a", "b", "a", "a"):
        async with open_node(redis_server, name) as nodes:
            seen.append(nodes.token)
            assert (nodes.name, nodes.lease, nodes.connected) == (name, LEASE, True)
    assert seen == [1, 2, 3, 4]


async def test_nodes_see_each_other_come_and_leave(redis_server: RedisServer) -> None:
    gone: list[str] = []
    async with open_node(redis_server, "a") as first:
        first.control.on_lost(gone.append)
        async with open_node(redis_server, "b") as second:
            await until(lambda: first.membership.others == {"b": second.token})
        await until(lambda: gone == ["b"])
        assert await nodes_in(first.redis) == {b"a"}
        assert first.membership.others == {}


async def test_a_node_without_a_sign_of_life_is_lost_once_with_all_that_it_had(redis_server: RedisServer) -> None:
    events: list[Event] = []
    gone: list[str] = []
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(open_node(redis_server, name, events.append)) for name in ("a", "b", "c")
        ]
        redis = nodes[0].redis
        nodes[1].control.on_lost(gone.append)
        await trio.sleep(LEASE * 1.2)
        before = trio.current_time()
        await join(redis, "dead")
        joined = trio.current_time()
        for run in ("one", "two"):
            await begin(redis, run, "dead")
            await append(redis, run, lines(1, 7))
        await begin(redis, "three", "a")
        async with nodes[1].tail.watch("one", 7) as watch:
            with trio.fail_at(joined + LEASE * 1.5):
                assert await watch.receive() == []
        assert trio.current_time() > before + LEASE
        await until(lambda: gone == ["dead"] and ("dead", "lost") in states(events))
        await trio.sleep(LEASE)  # all of them have looked again by then
        assert gone == ["dead"]
        assert states(events).count(("dead", "lost")) == 1
        for run in ("one", "two"):
            facts = await redis.ask("HGETALL", redis.key("run", run))
            assert (facts[b"state"], facts[b"reason"], facts[b"lines"]) == (b"ended", b"node-lost", b"7")
        assert await redis.ask("HGET", redis.key("run", "three"), "state") == b"live"
        assert await redis.ask("EXISTS", redis.key("live", "dead"), redis.key("control", "dead")) == 0
        assert await nodes_in(redis) == {b"a", b"b", b"c"}


async def test_where_redis_closes_idle_connections_one_is_lost_all_the_same() -> None:
    """A lease may be long; others take nobody for lost who have been connected for less than that one's."""
    events: list[Event] = []
    with open_redis_server("--timeout", "1") as server:
        async with open_node(server, "a", events.append, lease=60.0) as nodes:
            await join(nodes.redis, "dead")
            await until(lambda: ("dead", "lost") in states(events), 20)


async def test_one_that_was_found_lost_finds_out_and_joins_anew(redis_server: RedisServer) -> None:
    events: list[Event] = []
    returns: list[int] = []
    async with open_node(redis_server, "a", events.append) as nodes:
        before = nodes.token
        nodes.membership.on_return(lambda: returns.append(nodes.token))
        await begin(nodes.redis, "r", "a")
        await nodes.redis.ask("HDEL", nodes.redis.key("nodes"), "a")
        await until(lambda: nodes.token > before)
        assert states(events) == [("a", "connected"), ("a", "rejoined")]
        assert returns == [before + 1]
        assert await nodes_in(nodes.redis) == {b"a"}
        assert await nodes.redis.ask("HGET", nodes.redis.key("run", "r"), "state") == b"ended"


async def test_one_that_was_found_lost_hears_again_though_the_clock_of_redis_has_gone_back(
    redis_server: RedisServer,
) -> None:
    """Ids in its stream are times: those that come are before what it has heard."""
    async with open_node(redis_server, "a") as nodes, open_node(redis_server, "b") as other:
        nodes.control.on("ask", lambda _node, _packet: {})
        assert await other.control.ask("a", {"op": "ask"}) == {}
        ahead = (int((await nodes.redis.ask("TIME"))[0]) + 3600) * 1000
        await nodes.redis.ask("XADD", nodes.redis.key("control", "a"), f"{ahead}-0", "wake", "")
        await until(lambda: nodes.tail._heard == b"%d-0" % ahead)
        before = nodes.token
        await nodes.redis.run(load("leave"), (), nodes.redis.prefix, "a")
        await until(lambda: nodes.token > before)
        with trio.fail_after(5):
            while await other.control.ask("a", {"op": "ask"}, 0.2) is None:
                pass


async def test_what_was_lost_with_a_node_stays_so_though_redis_forgets_that(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with open_node(redis_server, "a") as nodes:
        before, redis = nodes.token, nodes.redis
        await begin(redis, "r", "a")
        await trio.sleep(1.2)  # until that is in the file
        shutil.copytree(redis_server.folder / "appendonlydir", tmp_path / "then")
        await redis.ask("HDEL", redis.key("nodes"), "a")
        await until(lambda: nodes.token > before)
        redis_server.kill()
        shutil.rmtree(redis_server.folder / "appendonlydir")
        shutil.copytree(tmp_path / "then", redis_server.folder / "appendonlydir")
        redis_server.start()
        assert redis_server.call("HGET", redis.key("run", "r"), "state") == b"live"
        await until(lambda: redis_server.call("HGET", redis.key("run", "r"), "state") == b"ended")
        await until(lambda: nodes.connected)
        assert await tokens(redis) == [nodes.token] == [before + 1]


async def test_nobody_is_lost_by_a_redis_that_was_away_or_hung_for_longer_than_a_lease(
    redis_server: RedisServer,
) -> None:
    events: list[Event] = []
    async with open_node(redis_server, "a", events.append) as first, open_node(redis_server, "b") as second:
        await trio.sleep(LEASE * 1.2)
        tokens = first.token, second.token
        for trouble, mend in ((redis_server.kill, redis_server.start), (redis_server.stop, redis_server.go_on)):
            trouble()
            await trio.sleep(LEASE * 1.2)
            mend()
            with trio.fail_after(5):
                await first.redis.wait()
                await second.redis.wait()
            await trio.sleep(LEASE * 1.5)
        assert (first.token, second.token) == tokens
        assert states(events) == [("a", "connected"), *[("a", "disconnected"), ("a", "connected")] * 2]


async def test_one_that_died_while_redis_was_away_is_lost_a_lease_after(redis_server: RedisServer) -> None:
    async with open_node(redis_server, "a") as nodes:
        await join(nodes.redis, "dead")
        await trio.sleep(1.1)  # until that is durable
        redis_server.restart()
        await nodes.redis.wait(connected=False)
        await nodes.redis.wait()
        began = trio.current_time()
        with trio.fail_after(LEASE * 2):
            while b"dead" in await nodes_in(nodes.redis):
                await trio.sleep(0.05)
        assert trio.current_time() - began > LEASE * 0.9


async def test_a_redis_that_has_forgotten_all_makes_no_token_twice(redis_server: RedisServer) -> None:
    async with open_node(redis_server, "a") as nodes:
        for name in ("x", "y", "z"):
            await join(nodes.redis, name)
        async with open_node(redis_server, "b") as other:
            assert other.token == 5
            redis_server.call("FLUSHALL")
            await trio.sleep(LEASE)
            late = await join(nodes.redis, "late")
            assert late.token > 5
            assert {nodes.token, other.token, late.token} == {*(await tokens(nodes.redis))}


async def test_a_redis_that_comes_back_without_a_node_hears_of_it_at_once(redis_server: RedisServer) -> None:
    """Not with the next regular sign of life: until then this node could take no decision with the others."""
    async with open_node(redis_server, "a", lease=60.0) as nodes:
        redis_server.call("FLUSHALL")
        redis_server.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await nodes.redis.wait(connected=False)
        await until(lambda: nodes.connected)
        with trio.fail_after(2):
            while await nodes_in(nodes.redis) != {b"a"}:
                await trio.sleep(0.01)


async def tokens(redis: Redis) -> list[int]:
    return [int(value.split(b":")[0]) for value in (await redis.ask("HGETALL", redis.key("nodes"))).values()]


async def test_a_clock_that_jumps_loses_nobody(redis_server: RedisServer) -> None:
    """Redis' clock can't be moved here; to have beaten long ago is the same to it."""
    async with open_redis(Config(redis=redis_server.url, node_lease=LEASE)) as redis:
        one, other = await join(redis, "one"), await join(redis, "other")
        redis.since = trio.current_time() - 1000
        for name in ("one", "other"):
            await shift(redis, name, 1_000_000)
        await one._beat()
        await other._beat()
        assert await nodes_in(redis) == {b"one", b"other"}
        await shift(redis, "one", 500, since=1_000_000)
        await shift(redis, "other", round(LEASE * 1000) + 100)
        await one._beat()
        assert await nodes_in(redis) == {b"one"}


async def test_one_that_dies_while_the_clock_goes_back_is_lost_a_lease_after(redis_server: RedisServer) -> None:
    """Not when the clock has caught up."""
    async with open_redis(Config(redis=redis_server.url, node_lease=LEASE)) as redis:
        one, dead = await join(redis, "one"), await join(redis, "dead")
        redis.since = trio.current_time() - 1000
        await shift(redis, "one", 500, since=1_000_000)
        await shift(redis, "dead", -1_000_000)
        await one._beat()
        assert one.others == {"dead": dead.token}
        await shift(redis, "one", 500)
        await shift(redis, "dead", round(LEASE * 1000) + 100)
        await one._beat()
        assert await nodes_in(redis) == {b"one"}


async def shift(redis: Redis, name: str, by: int, since: int = 0) -> None:
    """Make a node's last beat so many milliseconds older."""
    token, regular, beat, lease = (await redis.ask("HGET", redis.key("nodes"), name)).split(b":")
    said = b"%d:%d:%d" % (int(token), int(regular) - max(by, since), int(beat) - by)
    await redis.ask("HSET", redis.key("nodes"), name, said + b":" + lease)


async def test_that_redis_takes_no_writes_is_told_once(redis_server: RedisServer) -> None:
    events: list[Event] = []
    told: list[bool] = []
    async with open_node(redis_server, "a", events.append) as nodes:
        nodes.membership.on_change(told.append)
        redis_server.call("CONFIG", "SET", "maxmemory", "1")
        try:
            await until(lambda: len(events) > 1)
            nodes.redis._wire.cut()  # type: ignore[union-attr] - it is connected
            await nodes.redis.wait(connected=False)
            await nodes.redis.wait()
            await trio.sleep(LEASE / 2)
        finally:
            redis_server.call("CONFIG", "SET", "maxmemory", "0")
        await until(lambda: len(events) > 2)
        await trio.sleep(LEASE / 2)
    assert told == [False, True]
    assert states(events) == [("a", "connected"), ("a", "disconnected"), ("a", "connected")]


async def test_why_it_refuses_is_told_of_a_redis_that_was_gone_first(folder: Path) -> None:
    events: list[Event] = []
    told: list[bool] = []
    file = folder / "password"
    file.write_text("old")
    file.chmod(0o600)
    with open_redis_server("--requirepass", "old") as server:
        config = Config(redis=server.url, redis_password_file=str(file), node_lease=LEASE, journal="none")
        async with open_nodes(config, "a", events.append) as nodes:
            nodes.membership.on_change(told.append)
            file.write_text("wrong")
            server.call("-a", "old", "CLIENT", "KILL", "TYPE", "normal")
            await until(lambda: len(events) > 2)
            server.kill()
            await until(lambda: "No such file" in nodes.redis.fault or "refused" in nodes.redis.fault)
            server.start()
            await until(lambda: "invalid" in nodes.redis.fault)
            file.write_text("old")
            await until(lambda: len(events) > 3)
    details = [event.detail for event in events if isinstance(event, NodeState)]
    assert details == ["", "Redis does not answer", "invalid username-password pair or user is disabled.", ""]
    assert [state for _, state in states(events)] == ["connected", "disconnected", "disconnected", "connected"]
    assert told == [False, True]


async def test_while_redis_reads_its_file_it_does_not_come_and_go() -> None:
    """It answers what it is, and nothing else: a node that took it for one that answers would lose it at once."""
    events: list[Event] = []
    slowly = ("--key-load-delay", "10000", "--loading-process-events-interval-bytes", "1024")
    with open_redis_server() as server:
        server.call("EVAL", "for i = 1, 2000 do redis.call('SET', 'k' .. i, string.rep('x', 64)) end", "0")
        server.call("BGREWRITEAOF")  # of such a file it says, as it reads it, where it is
        await until(lambda: b"aof_rewrite_in_progress:0" in server.call("INFO", "persistence"))
        config = Config(redis=server.url, node_lease=LEASE, journal="none")
        async with open_nodes(config, "a", events.append) as nodes, trio.open_nursery() as nursery:
            server.kill()
            await nodes.redis.wait(connected=False)
            server.more = slowly
            nursery.start_soon(trio.to_thread.run_sync, server.start)
            await until(lambda: nodes.redis.why == "Redis is reading its file")
            with pytest.raises(RedisGone, match="reading its file"):
                await nodes.redis.ask("PING")
            server.call("CONFIG", "SET", "key-load-delay", "0")
            await until(lambda: len(events) > 2)
    assert states(events) == [("a", "connected"), ("a", "disconnected"), ("a", "connected")]


async def test_a_password_in_the_settings_is_warned_of(redis_server: RedisServer) -> None:
    events: list[Event] = []
    port = redis_server.listen()
    redis_server.call("CONFIG", "SET", "requirepass", "s3cret")
    try:
        async with open_nodes(Config(redis=f"redis://:s3cret@127.0.0.1:{port}/1"), "a", events.append) as nodes:
            assert nodes.connected
    finally:
        redis_server.call("-a", "s3cret", "CONFIG", "SET", "requirepass", "")
    assert [event.what for event in events if isinstance(event, Weak)] == [
        "redis: its password stands in the settings; redis_password_file hides it"
    ]


async def test_a_node_that_ends_while_redis_is_away_waits_for_it_a_moment(redis_server: RedisServer) -> None:
    async with open_node(redis_server, "stays") as other:
        await trio.sleep(1.2)  # until it is durable
        async with open_node(redis_server, "a") as nodes:
            redis_server.kill()
            await nodes.redis.wait(connected=False)
            redis_server.start()
        await other.redis.wait()
        assert await nodes_in(other.redis) == {b"stays"}
        async with open_node(redis_server, "b") as nodes:
            redis_server.stop()
            await nodes.redis.wait(connected=False)
            began = trio.current_time()
        assert trio.current_time() - began < 2
        redis_server.go_on()
