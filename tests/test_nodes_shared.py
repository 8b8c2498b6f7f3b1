"""Rule: what several servers count they count as one, to the last prompt and the last millionth of a dollar."""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
from harness import until
from nodes import LEASE, begin, open_node
from redis_server import RedisServer

from trio_claude.admission import Limits, Member
from trio_claude.errors import Busy, OverBudget, QueueFull, SessionBusy, TooFast
from trio_claude.events import Event, NodeState
from trio_claude.identity import Identity
from trio_claude.nodes import Nodes, desk
from trio_claude.nodes.scripts import load

pytestmark = pytest.mark.redis
NONE = Limits(waiting=2000)
ASKS = 1000
NAMES = ("first", "second", "third")


@asynccontextmanager
async def nodes(server: RedisServer, count: int = 3) -> AsyncIterator[list[Nodes]]:
    """Open so many nodes in this process, each with connections of its own."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(open_node(server, f"node{number}")) for number in range(count)]


async def seconds_of(ask: Callable[[int], Awaitable[None]]) -> float:
    """Have all ask at once; return the seconds that it took."""
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in range(ASKS):
            nursery.start_soon(ask, number)
    return trio.current_time() - began


async def test_prompts_of_a_minute_are_counted_over_all_nodes(redis_server: RedisServer) -> None:
    alice, told = Member("key:alice", Limits(prompts_per_minute=100)), Counter[str]()
    async with nodes(redis_server) as three:

        async def ask(number: int) -> None:
            try:
                await three[number % 3].shared.ask(alice, NONE)
            except TooFast as error:
                assert str(error) == "more than 100 prompts a minute"
                assert 0 < error.retry_after <= 0.6
                told["refused"] += 1
            else:
                told["taken"] += 1

        back = await seconds_of(ask) * 100 / 60
    assert 100 <= told["taken"] <= 100 + back
    assert told.total() == ASKS


async def test_prompts_of_all_together_are_counted_over_all_nodes(redis_server: RedisServer) -> None:
    total, told = Limits(prompts_per_minute=50), Counter[str]()
    async with nodes(redis_server) as three:

        async def ask(number: int) -> None:
            try:
                await three[number % 3].shared.ask(Member(f"key:{number % 7}", Limits(prompts_per_minute=40)), total)
            except TooFast as error:
                assert "on this server" in str(error)
                told["refused"] += 1
            else:
                told["taken"] += 1

        back = await seconds_of(ask) * 50 / 60
    assert 50 <= told["taken"] <= 50 + back
    assert told.total() == ASKS


async def test_a_day_is_spent_to_the_last_millionth_of_a_dollar(redis_server: RedisServer) -> None:
    alice = Member("key:alice", Limits(dollars_per_day=1.0))
    async with nodes(redis_server) as three:

        async def spend(number: int) -> None:
            three[number % 3].shared.spend(alice, 7, 0.001)
            await trio.lowlevel.checkpoint()

        await three[0].shared.ask(alice, NONE)
        async with trio.open_nursery() as nursery:
            for number in range(ASKS - 1):
                nursery.start_soon(spend, number)
        await all_told(three)
        assert spent(redis_server, "key:alice") == (6993, 999_000)
        for node in three:
            await node.shared.ask(alice, NONE)
        three[1].shared.spend(alice, 7, 0.001)
        for node in (three[1], three[0], three[2]):  # the first is the one that has spent, whose word goes first
            with pytest.raises(OverBudget, match=r"^your budget of 1 dollars a day is spent$") as refused:
                await node.shared.ask(alice, NONE)
            assert 0 < refused.value.retry_after <= 86400
        with pytest.raises(OverBudget, match="the server's budget of 7000 tokens"):
            await three[2].shared.ask(Member("key:bob"), Limits(tokens_per_day=7000))
        await three[2].shared.ask(Member("key:bob"), Limits(tokens_per_day=7001))
    assert spent(redis_server, "key:alice") == spent(redis_server, "") == (7000, 1_000_000)


async def test_a_clock_that_was_a_day_ahead_for_a_moment_opens_no_day(redis_server: RedisServer) -> None:
    alice = Member("key:alice", Limits(tokens_per_day=10))
    async with nodes(redis_server, 1) as (node,):
        node.shared.spend(alice, 10, 0.0)
        await all_told([node])
        wall = node.shared.wall()
        node.shared._desk.learn(round((wall + 86400) * 1000))
        assert node.shared.wall() - wall > 86000
        for _ in range(2):
            with pytest.raises(OverBudget):
                await node.shared.ask(alice, NONE)
        assert node.shared.wall() - wall < 60


async def test_a_rate_is_full_again_in_its_time_though_the_clock_of_redis_has_gone_back(
    redis_server: RedisServer,
) -> None:
    """As where a replica takes over whose clock is behind."""
    alice = Member("key:alice", Limits(prompts_per_minute=120))
    async with nodes(redis_server, 1) as (node,):
        with pytest.raises(TooFast):
            while True:
                await node.shared.ask(alice, NONE)
        key = node.redis.key("rate", "key:alice")
        at = float(await node.redis.ask("HGET", key, "at"))
        await node.redis.ask("HSET", key, "at", f"{at + 3600:.6f}")
        with trio.fail_after(20):
            while True:
                try:
                    await node.shared.ask(alice, NONE)
                    break
                except TooFast as error:
                    await trio.sleep(error.retry_after)  # as it is told
        assert float(await node.redis.ask("HGET", key, "at")) < at + 60


async def all_told(three: list[Nodes]) -> None:
    for node in three:
        await node.shared._desk.settled()


def spent(server: RedisServer, name: str) -> tuple[int, int]:
    """Return what a name has used today as Redis has it: tokens, millionths of a dollar."""
    day = int(server.call("TIME").split()[0]) // 86400
    found = server.call("HMGET", f"trio-claude:spent:{day}", f"tokens:{name}", f"dollars:{name}").split()
    return int(found[0]), int(found[1])


async def test_runs_at_once_are_counted_over_all_nodes(redis_server: RedisServer) -> None:
    alice, running, most, done = Member("key:alice", Limits(runs=5)), 0, 0, 0
    async with nodes(redis_server) as three:

        async def run(number: int) -> None:
            nonlocal running, most, done
            async with three[number % 3].shared.place(alice, NONE, lambda _: None):
                running += 1
                most = max(most, running)
                await trio.lowlevel.checkpoint()
                running -= 1
                done += 1

        async with trio.open_nursery() as nursery:
            for number in range(ASKS):
                nursery.start_soon(run, number)
        await all_told(three)
    assert done == ASKS
    assert most == 5
    assert keys(redis_server, "running", "waiting", "held") == []


def keys(server: RedisServer, *kinds: str) -> list[bytes]:
    """Return the keys of some kinds that Redis has."""
    return [key for kind in kinds for key in server.call("KEYS", f"trio-claude:{kind}:*").split()]


async def test_who_comes_first_is_served_first_on_whichever_node(redis_server: RedisServer) -> None:
    alice, order = Member("key:alice", Limits(runs=1)), list[int]()
    places: dict[int, list[int]] = {number: [] for number in range(60)}
    async with nodes(redis_server) as three, trio.open_nursery() as nursery:

        async def run(number: int) -> None:
            async with three[number % 3].shared.place(alice, NONE, places[number].append):
                order.append(number)

        async with three[0].shared.place(alice, NONE, lambda _: None):
            for number in places:
                nursery.start_soon(run, number)
                await until(lambda number=number: bool(places[number]))
    assert order == list(places)
    for number, told in places.items():
        assert told[0] == number + 1
        assert told == sorted(told, reverse=True)


async def test_a_line_is_bounded_for_each_and_for_a_node(redis_server: RedisServer) -> None:
    alice = Member("key:alice", Limits(runs=1, waiting=2))
    async with nodes(redis_server, 2) as (a, b), trio.open_nursery() as nursery:
        lines: list[int] = []

        async def run(node: Nodes, total: Limits = NONE) -> None:
            async with node.shared.place(alice, total, lines.append):
                await trio.sleep_forever()

        for count, node in enumerate((a, b, a)):
            nursery.start_soon(run, node)
            await until(lambda count=count: len(lines) == count)
            await until(lambda count=count: held(redis_server) == count + 1)
        assert lines == [1, 2]
        with pytest.raises(QueueFull, match=r"^2 of your runs wait already; 2 may$"):
            await run(b)
        with pytest.raises(QueueFull, match=r"^1 runs wait already; 1 may$"):
            async with a.shared.place(Member("key:alice", Limits(runs=1)), Limits(waiting=1), lines.append):
                pytest.fail("had a place")
        nursery.cancel_scope.cancel()


def held(server: RedisServer) -> int:
    """Return how many have a place, or wait for one."""
    waiting = server.call("ZCARD", "trio-claude:waiting:key:alice")
    return int(server.call("SCARD", "trio-claude:running:key:alice")) + int(waiting)


async def test_a_session_is_one_nodes_at_a_time(redis_server: RedisServer) -> None:
    holders, told = 0, Counter[str]()
    async with nodes(redis_server) as three:

        async def hold(number: int) -> None:
            nonlocal holders
            try:
                async with three[number % 3].shared.hold("key:alice", "s"):
                    holders += 1
                    assert holders == 1
                    await until(lambda: told["busy"] == ASKS - 1, 60)
                    holders -= 1
                    told["held"] += 1
            except SessionBusy as error:
                assert str(error) == "resume: session s is in use by another run"
                told["busy"] += 1

        async with trio.open_nursery() as nursery:
            for number in range(ASKS):
                nursery.start_soon(hold, number)
        assert told == {"held": 1, "busy": ASKS - 1}
        for node in three * 20:  # who lets go is done with it when the next one asks, wherever that is
            async with node.shared.hold("key:alice", "s"), three[0].shared.hold("key:bob", "s"):
                pass


async def test_a_ticket_is_spent_once_on_whichever_node(redis_server: RedisServer) -> None:
    alice = Identity("key:alice", "viewer", {"runs_per_identity": 2.5}, credential="abc")
    taken = Counter[str]()
    async with nodes(redis_server) as three:
        tickets = [await three[number % 3].shared.put_ticket(alice, "https://a.example") for number in range(100)]

        async def take(number: int) -> None:
            ticket = tickets[number % 100]
            if found := await three[number % 3].shared.take_ticket(ticket, "https://a.example"):
                assert found == alice
                taken[ticket] += 1

        async with trio.open_nursery() as nursery:
            for number in range(ASKS):
                nursery.start_soon(take, number)
        assert taken == dict.fromkeys(tickets, 1)
        other = await three[0].shared.put_ticket(alice, None)
        assert await three[1].shared.take_ticket(other, "null") is None
        assert await three[1].shared.take_ticket(other, None) is None
        first = await three[0].shared.put_ticket(alice, None)
        bobs = await three[0].shared.put_ticket(Identity("key:bob"), None)
        for _ in range(100):
            last = await three[2].shared.put_ticket(alice, None)
        assert await three[1].shared.take_ticket(first, None) is None
        assert await three[1].shared.take_ticket(last, None) == alice
        assert await three[1].shared.take_ticket(bobs, None) == Identity("key:bob")
        assert 28_000 < int(redis_server.call("PTTL", "trio-claude:tickets")) <= 30_000


# -- Redis goes, or hangs ----------------------------------------------------------------------------------------------


async def test_while_redis_is_gone_only_what_has_no_limit_goes_on(redis_server: RedisServer) -> None:
    alice = Member("key:alice", Limits(prompts_per_minute=10, runs=1))
    async with nodes(redis_server, 2) as (a, b):
        async with a.shared.hold("key:alice", "s"), a.shared.place(alice, NONE, lambda _: None):
            redis_server.kill()
            await gone(a, b)
            for refused in (
                a.shared.ask(alice, NONE),
                enter(a.shared.hold("key:alice", "t")),
                enter(a.shared.place(alice, NONE, lambda _: None)),
                a.shared.put_ticket(Identity("key:alice"), None),
                a.shared.take_ticket("x", None),
            ):
                with pytest.raises(Busy, match="not at hand just now") as error:
                    await refused
                assert error.value.retry_after == 1
                assert error.value.code == "busy"
            await a.shared.ask(Member("key:bob"), NONE)
            await enter(a.shared.hold("key:bob", None))
            await enter(a.shared.place(Member("key:bob"), NONE, lambda _: None))
            redis_server.start()
            await ready(a, b)
            with pytest.raises(SessionBusy):  # what is held is held again
                await enter(b.shared.hold("key:alice", "s"))
            with trio.move_on_after(0.2) as waiting:
                await enter(b.shared.place(alice, NONE, lambda _: None))
            assert waiting.cancelled_caught
        await enter(b.shared.hold("key:alice", "s"))
        await enter(b.shared.place(alice, NONE, lambda _: None))


async def enter(context: contextlib.AbstractAsyncContextManager[None]) -> None:
    async with context:
        pass


async def gone(*those: Nodes) -> None:
    await until(lambda: not any(node.connected for node in those))


async def ready(*those: Nodes) -> None:
    await until(lambda: all(node.shared._desk._ready for node in those))


async def test_no_sum_is_lost_or_told_twice_whatever_happens_to_redis(redis_server: RedisServer) -> None:
    """Its connections break at any moment, it hangs, it is killed, and comes back."""
    alice = Member("key:alice")
    async with nodes(redis_server) as three:
        for number in range(ASKS):
            three[number % 3].shared.spend(alice, 1, 0.000_001)
            if number % 7 == 0:
                await trio.sleep(0.002)
            if number % 100 == 50:
                redis_server.call("CLIENT", "KILL", "TYPE", "normal")
            if number == 333:
                redis_server.kill()
            if number == 444:
                redis_server.start()
            if number == 666:
                redis_server.stop()
                await trio.sleep(1)
                redis_server.go_on()
        await ready(*three)
        await all_told(three)
        assert spent(redis_server, "key:alice") == (ASKS, ASKS)


async def test_a_redis_that_has_lost_its_last_moments_is_told_again(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk, "KEPT", 60.0)  # this machine may be slow
    alice = Member("key:alice", Limits(tokens_per_day=1000))
    async with nodes(redis_server, 2) as (a, b):
        a.shared.spend(alice, 10, 0.5)
        await all_told([a, b])
        redis_server.call("SET", "flushed", "1")
        shutil.copytree(redis_server.folder / "appendonlydir", tmp_path / "then")
        for _ in range(5):
            a.shared.spend(alice, 1, 0.25)
            b.shared.spend(alice, 100, 0.125)
            await all_told([a, b])
        assert spent(redis_server, "key:alice") == (515, 2_375_000)
        redis_server.kill()
        await gone(a, b)
        shutil.rmtree(redis_server.folder / "appendonlydir")
        shutil.copytree(tmp_path / "then", redis_server.folder / "appendonlydir")
        redis_server.start()
        await ready(a, b)
        await all_told([a, b])
        assert spent(redis_server, "key:alice") == spent(redis_server, "") == (515, 2_375_000)


async def test_a_redis_without_memory_refuses_and_is_told_later(redis_server: RedisServer) -> None:
    """It is no crash, and told once."""
    alice, events = Member("key:alice", Limits(tokens_per_day=1000)), list[Event]()
    async with open_node(redis_server, "a", events.append) as a, AsyncExitStack() as stack:
        await stack.enter_async_context(a.shared.hold("key:alice", "s"))
        redis_server.call("CONFIG", "SET", "maxmemory", "1")
        try:
            a.shared.spend(alice, 10, 0.5)
            for _ in range(2):
                with pytest.raises(Busy, match="not at hand"), trio.fail_after(1):
                    await a.shared.ask(alice, NONE)
            await stack.aclose()
            await until(lambda: len(events) > 1)
            await trio.sleep(3 * desk.PAUSE)
        finally:
            redis_server.call("CONFIG", "SET", "maxmemory", "0")
        await ready(a)
        await a.shared.ask(alice, NONE)
        assert spent(redis_server, "key:alice") == (10, 500_000)
        async with a.shared.hold("key:alice", "s"):
            await until(lambda: len(events) > 2)
    assert [event.state for event in events if isinstance(event, NodeState)] == [
        "connected", "disconnected", "connected"
    ]  # fmt: skip
    assert len(events) == 3


async def test_a_session_in_use_on_any_node_is_known_at_each(redis_server: RedisServer) -> None:
    asked = {(who, session) for who in ("é", "bob") for session in ("s", "t", "lives", None)}
    async with nodes(redis_server, 2) as (a, b):
        assert await a.shared.in_use(asked) == set()
        await begin(b.redis, "run", "node1")
        await b.redis.ask("HSET", b.redis.key("run", "run"), "identity", "bob", "session", "lives")
        async with b.shared.hold("é", "s"):
            redis_server.call("CONFIG", "SET", "maxmemory", "1")
            try:
                assert await a.shared.in_use(asked) == {("é", "s"), ("é", None), ("bob", "lives"), ("bob", None)}
            finally:
                redis_server.call("CONFIG", "SET", "maxmemory", "0")
            await ready(a, b)
        assert await a.shared.in_use(asked) == {("bob", "lives"), ("bob", None)}
        many = [("é", str(number)) for number in range(1200)]
        async with b.shared.hold("é", "1100"):
            assert await a.shared.in_use(many) == {("é", "1100")}
        redis_server.stop()
        await gone(a)
        with pytest.raises(Busy):
            await a.shared.in_use(asked)
        redis_server.go_on()


async def test_who_gave_up_while_redis_hung_has_taken_nothing(redis_server: RedisServer) -> None:
    """What lies in a connection that was given up is read by Redis when it goes on; it is too late then."""
    alice = Member("key:alice", Limits(runs=1))
    async with nodes(redis_server, 2) as (a, b):
        redis_server.stop()
        for context in (a.shared.hold("key:alice", "s"), a.shared.place(alice, NONE, lambda _: None)):
            with pytest.raises(Busy):
                await enter(context)
        redis_server.go_on()
        await ready(a, b)
        assert keys(redis_server, "running", "waiting", "held", "lock") == []
        async with b.shared.hold("key:alice", "s"), b.shared.place(alice, NONE, lambda _: None):
            pass


async def test_who_waits_in_line_stays_there_while_redis_is_away(redis_server: RedisServer) -> None:
    alice, order = Member("key:alice", Limits(runs=1)), list[str]()
    async with nodes(redis_server, 2) as (a, b), trio.open_nursery() as nursery:

        async def run(name: str, node: Nodes) -> None:
            async with node.shared.place(alice, NONE, lambda _: None):
                order.append(name)

        async with a.shared.place(alice, NONE, lambda _: None):
            for name, node in zip(NAMES, (b, a, b), strict=True):
                nursery.start_soon(run, name, node)
                await until(lambda name=name: held(redis_server) == NAMES.index(name) + 2)
            redis_server.kill()
            await gone(a, b)
            redis_server.start()
            await ready(a, b)
            assert not order
        with trio.fail_after(5):
            await until(lambda: len(order) == 3)
    assert order == list(NAMES)


# -- nodes that are lost -----------------------------------------------------------------------------------------------


async def test_what_a_lost_node_held_is_free_and_it_has_it_again_only_where_nobody_took_it(
    redis_server: RedisServer,
) -> None:
    alice, bob = Member("key:alice", Limits(runs=1)), Member("key:bob", Limits(runs=1))
    async with nodes(redis_server, 2) as (a, b):
        async with a.shared.hold("key:alice", "s"), a.shared.hold("key:alice", "t"), a.shared.place(bob, NONE, print):
            token = a.token
            redis_server.call("HDEL", "trio-claude:nodes", "node0")  # as the script does that declares it lost
            with pytest.raises(Busy):
                await enter(a.shared.hold("key:alice", "u"))
            async with b.shared.hold("key:alice", "s"), b.shared.place(alice, NONE, print):
                await until(lambda: a.token > token)
                await ready(a)
                await find_held(b, bob, "t")
        for session in ("s", "t"):
            await enter(b.shared.hold("key:alice", session))
        await enter(b.shared.place(bob, NONE, lambda _: None))


async def find_held(node: Nodes, member: Member, session: str) -> None:
    """Find that another node holds a session of alice's, and the one place of a member."""
    with pytest.raises(SessionBusy):
        await enter(node.shared.hold("key:alice", session))
    with trio.move_on_after(0.2) as waiting:
        await enter(node.shared.place(member, NONE, lambda _: None))
    assert waiting.cancelled_caught


async def test_a_node_that_was_lost_and_asks_nothing_has_again_what_it_held(redis_server: RedisServer) -> None:
    bob = Member("key:bob", Limits(runs=1))
    async with nodes(redis_server, 2) as (a, b), a.shared.hold("key:alice", "s"), a.shared.place(bob, NONE, print):
        lost = a.token
        assert redis_server.call("EVAL", load("leave").text, "0", "trio-claude", "node0") == b""
        assert redis_server.call("EXISTS", "trio-claude:running:key:bob") == b"0"
        await until(lambda: a.token > lost)
        await until(lambda: redis_server.call("EXISTS", "trio-claude:running:key:bob") == b"1")
        await find_held(b, bob, "s")


async def test_a_redis_that_was_flushed_is_told_what_a_node_holds_that_asks_nothing(redis_server: RedisServer) -> None:
    bob = Member("key:bob", Limits(runs=1))
    async with nodes(redis_server, 2) as (a, b), a.shared.hold("key:alice", "s"), a.shared.place(bob, NONE, print):
        redis_server.call("FLUSHALL")
        await until(
            lambda: redis_server.call("EXISTS", "trio-claude:running:key:bob", "trio-claude:desk:node1") == b"2"
        )
        await ready(b)
        await find_held(b, bob, "s")


async def test_an_old_token_and_an_old_connection_decide_nothing(redis_server: RedisServer) -> None:
    async with nodes(redis_server, 1) as (a,):
        desk = a.shared._desk
        _, name, token, visit = desk._introduction()
        for words in ((token + 1, visit), (token, visit - 1), (token, visit + 1)):
            answers = [
                await a.redis.run(load("lock"), (), "trio-claude", name, *words, "o", "trio-claude:lock:x"),
                await a.redis.run(load("place"), (), "trio-claude", name, *words, "o", "r", "w", 1, 1),
                await a.redis.run(load("ask"), (), "trio-claude", name, *words, "key:alice", 1, 1, 1, 1, 1, 1),
            ]
            assert {answer[0] for answer in answers} <= {b"lost", b"late"}
        assert (await a.redis.run(load("spend"), (), "trio-claude", name, token, visit - 1, 9, "x", 1, 1))[0] == b"late"
        assert (await a.redis.run(load("meet"), (), "trio-claude", name, token, visit))[0] == b"late"
        assert keys(redis_server, "lock", "running", "waiting", "rate") == []


async def test_a_node_that_is_cancelled_has_told_what_it_spent_and_leaves(redis_server: RedisServer) -> None:
    async with open_node(redis_server, "stays") as other:
        with trio.CancelScope() as scope:
            async with open_node(redis_server, "goes") as node:
                node.shared.spend(Member("key:alice"), 7, 0.5)
                began = trio.current_time()
                scope.cancel()
        assert trio.current_time() - began < desk.LAST_WORDS
        assert spent(redis_server, "key:alice") == (7, 500_000)
        assert await other.redis.ask("HKEYS", other.redis.key("nodes")) == [b"stays"]


async def test_a_node_that_is_cancelled_gives_signs_of_life_until_it_leaves(redis_server: RedisServer) -> None:
    events: list[Event] = []
    async with open_node(redis_server, "stays", events.append) as other:
        await trio.sleep(LEASE * 1.2)  # until it may find another to be lost
        with trio.CancelScope() as scope:
            async with open_node(redis_server, "goes") as node:
                scope.cancel()
                with trio.CancelScope(shield=True):  # as runs do that are proven to be gone
                    await trio.sleep(LEASE * 1.5)
                node.shared.spend(Member("key:alice"), 7, 0.5)
        assert spent(redis_server, "key:alice") == (7, 500_000)
        await until(lambda: not other.membership.others)
    assert [event.state for event in events if isinstance(event, NodeState)] == ["connected"]
