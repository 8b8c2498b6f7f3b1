"""Rule: each watcher gets each line once and in order, soon, whoever else is slow, and whatever Redis does in between."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from unittest.mock import ANY

import pytest
import trio
from harness import until
from nodes import append, begin, end, lines, open_node
from redis_server import RedisServer

from trio_claude.config import Config
from trio_claude.events import Event, Strained
from trio_claude.journal import Part, PartKind
from trio_claude.nodes import Watch, tail
from trio_claude.nodes.redis import Redis, Wire, Word, open_redis
from trio_claude.nodes.tail import PAGE_BYTES, WATCH_BYTES, Tail

pytestmark = pytest.mark.redis


async def read(watch: Watch, upto: int, into: list[int] | None = None, seconds: float = 5.0) -> list[int]:
    """Return the numbers of the lines that come, up to one."""
    got = [] if into is None else into
    with trio.fail_after(seconds):
        while not got or got[-1] < upto:
            for part in await watch.receive():
                assert part.kind is PartKind.LINES
                numbers = [int(line) for line in part.lines]
                assert numbers == list(range(part.first, part.first + part.count))
                got += numbers
    return got


@pytest.mark.parametrize("after", range(13))
async def test_a_watch_begins_behind_any_line(redis_server: RedisServer, after: int) -> None:
    async with open_node(redis_server) as nodes:
        await begin(nodes.redis, "r")
        for part in (lines(1, 5), lines(6, 1), lines(7, 6)):
            await append(nodes.redis, "r", part)
        async with nodes.tail.watch("r", after) as watch:
            if after < 12:
                assert await read(watch, 12) == list(range(after + 1, 13))
            await end(nodes.redis, "r")
            with trio.fail_after(2):
                assert await watch.receive() == []
                assert await watch.receive() == []


@pytest.mark.parametrize("stored", [0, 2])
@pytest.mark.parametrize("after", [3, 5, 8])
async def test_a_watch_may_begin_behind_a_line_that_is_not_stored_yet(
    redis_server: RedisServer, stored: int, after: int
) -> None:
    async with open_node(redis_server) as nodes:
        await begin(nodes.redis, "r")
        if stored:
            await append(nodes.redis, "r", lines(1, stored))
            await append(nodes.redis, "r", Part(PartKind.STDERR, stored, 1, b"oh"), 1)
        async with nodes.tail.watch("r", after) as watch, trio.open_nursery() as nursery:
            got: list[int] = []
            nursery.start_soon(read, watch, 12, got)
            await trio.sleep(0.05)
            for part in (lines(stored + 1, 10 - stored), lines(11, 2)):
                await append(nodes.redis, "r", part)
        assert got == list(range(after + 1, 13))


async def test_who_comes_later_takes_nothing_from_others(redis_server: RedisServer) -> None:
    async with open_node(redis_server) as nodes:
        watches = [Watch(nodes.tail, nodes.redis, "r", after) for after in (1, 9, 5)]
        for watch, at in zip(watches, ((1, 0), (9, 0), (0, 1)), strict=True):
            nodes.tail.add("r", watch, at)
        feed = nodes.tail._feeds["r"]
        assert (feed.at, feed.watches) == ((1, 0), watches[:2])


async def test_what_stderr_and_the_client_said_stands_behind_its_line(redis_server: RedisServer) -> None:
    told = [
        (Part(PartKind.SAID, 0, 1, b"hello", 1), 1), (lines(1, 3), 0), (Part(PartKind.STDERR, 3, 2, b"a\nb", 3), 1),
        (Part(PartKind.SAID, 3, 1, b"more", 4), 2), (lines(4, 1), 0),
    ]  # fmt: skip
    async with open_node(redis_server) as nodes:
        await begin(nodes.redis, "r")
        for part, place in told:
            await append(nodes.redis, "r", part, place)
        for after, expected in ((0, told), (3, told[2:]), (4, [])):
            async with nodes.tail.watch("r", after) as watch:
                got: list[Part] = []
                with trio.move_on_after(1):
                    while True:
                        got += await watch.receive()
                assert got == [part for part, _ in expected]


async def test_what_comes_while_it_is_watched_is_given_at_once(redis_server: RedisServer) -> None:
    async with open_node(redis_server) as nodes:
        slowest = 0.0
        for run in ("one", "two", "three"):  # each changes what is watched
            await begin(nodes.redis, run)
            async with nodes.tail.watch(run, 0) as watch, trio.open_nursery() as nursery:
                got: list[int] = []
                nursery.start_soon(read, watch, 50, got)
                for number in range(1, 51):
                    began = trio.current_time()
                    await append(nodes.redis, run, lines(number, 1))
                    with trio.fail_after(0.9):
                        while len(got) < number:
                            await trio.sleep(0.0005)
                    slowest = max(slowest, trio.current_time() - began)
                assert got == list(range(1, 51))
        assert slowest < 0.9  # a block is a second


async def test_many_runs_are_watched_over_one_connection(redis_server: RedisServer) -> None:
    async with open_node(redis_server) as nodes:
        async with trio.open_nursery() as nursery:

            async def serve(run: str) -> None:
                await begin(nodes.redis, run)
                async with nodes.tail.watch(run, 0) as first, nodes.tail.watch(run, 0) as second:
                    async with trio.open_nursery() as readers:
                        readers.start_soon(read, first, 200)
                        readers.start_soon(read, second, 200)
                        for number in range(0, 200, 10):
                            await append(nodes.redis, run, lines(number + 1, 10))

            for number in range(20):
                nursery.start_soon(serve, f"r{number}")
        assert len(redis_server.call("CLIENT", "LIST").splitlines()) == 3  # with that of the question


async def test_a_slow_watcher_holds_little_and_loses_nothing(redis_server: RedisServer) -> None:
    parts, each = 200, 128 * 1024
    async with open_node(redis_server) as nodes:
        await begin(nodes.redis, "r")
        async with nodes.tail.watch("r", 0) as slow, nodes.tail.watch("r", 0) as fast:
            with trio.move_on_after(0.2):
                await slow.receive()
            got: list[int] = []
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read, fast, parts * 2, got, 20)
                for number in range(parts):
                    await append(nodes.redis, "r", lines(number * 2 + 1, 2, each // 2))
                    assert slow._size <= WATCH_BYTES + 5 * each
            assert got == list(range(1, parts * 2 + 1))
            assert await read(slow, parts * 2, seconds=20) == got
            await append(nodes.redis, "r", lines(parts * 2 + 1, 1))
            assert await read(slow, parts * 2 + 1) == [parts * 2 + 1]


async def test_a_page_is_no_larger_because_what_came_before_was_small(redis_server: RedisServer) -> None:
    """As where token deltas are followed by files that were read."""
    size = 256 * 1024
    async with open_node(redis_server) as nodes:
        await begin(nodes.redis, "r")
        for number in range(1, 301):
            await append(nodes.redis, "r", lines(number, 1))
        for number in range(301, 341):
            await append(nodes.redis, "r", lines(number, 1, size))
        pages: list[int] = []
        async with nodes.tail.watch("r", 0) as watch:
            last = 0
            while last < 340:
                parts = await watch.receive()
                assert [part.first for part in parts] == list(range(last + 1, last + len(parts) + 1))
                last = parts[-1].last
                pages.append(sum(len(part.data) for part in parts))
        assert max(pages) < PAGE_BYTES + size
        assert len(pages) < 20


async def test_watches_that_are_left_or_cancelled_leave_nothing(redis_server: RedisServer) -> None:
    async with open_node(redis_server) as nodes:
        await begin(nodes.redis, "r")
        for number in range(300):
            async with nodes.tail.watch("r", 0) as watch:
                with trio.move_on_after(0.0005 * (number % 8)):
                    await watch.receive()
        async with nodes.tail.watch("r", 0) as watch:
            await append(nodes.redis, "r", lines(1, 1))
            assert await read(watch, 1) == [1]
        assert nodes.tail._feeds == {}
        assert len(redis_server.call("CLIENT", "LIST").splitlines()) == 3


async def test_a_receive_that_is_cancelled_loses_nothing(redis_server: RedisServer) -> None:
    async with open_node(redis_server) as nodes:
        await begin(nodes.redis, "r")
        got: list[int] = []
        async with nodes.tail.watch("r", 0) as watch, trio.open_nursery() as nursery:

            async def write() -> None:
                for number in range(1, 301):
                    await append(nodes.redis, "r", lines(number, 1))

            nursery.start_soon(write)
            with trio.fail_after(20):
                while not got or got[-1] < 300:
                    with trio.move_on_after(0.0007):
                        got += [int(line) for part in await watch.receive() for line in part.lines]
        assert got == list(range(1, 301))


Trouble = Callable[[RedisServer], None]


def hang(server: RedisServer) -> None:
    server.stop()
    trio.lowlevel.spawn_system_task(_go_on, server)


async def _go_on(server: RedisServer) -> None:
    await trio.sleep(4)  # it is noticed after 2 s at the latest
    server.go_on()


@pytest.mark.parametrize("trouble", [RedisServer.restart, hang], ids=["crash", "hang"])
async def test_a_watch_goes_on_after_trouble_with_redis(redis_server: RedisServer, trouble: Trouble) -> None:
    async with open_node(redis_server) as nodes:
        await begin(nodes.redis, "r")
        async with nodes.tail.watch("r", 0) as watch:
            await append(nodes.redis, "r", lines(1, 10))
            assert await read(watch, 10) == list(range(1, 11))
            await nodes.redis.ask("WAIT", 0, 0)
            await trio.sleep(1.2)  # until what was written is durable
            trouble(redis_server)
            with trio.fail_after(20):
                await nodes.redis.wait(connected=False)
            async with trio.open_nursery() as nursery:
                got: list[int] = []
                nursery.start_soon(read, watch, 20, got, 10)
                await nodes.redis.wait()
                await append(nodes.redis, "r", lines(11, 10))
            assert got == list(range(11, 21))


async def test_after_a_redis_that_forgot_what_it_had_said_no_line_comes_twice_or_not(
    redis_server: RedisServer,
) -> None:
    async with open_node(redis_server) as nodes:
        await begin(nodes.redis, "r")
        async with nodes.tail.watch("r", 0) as watch:
            for number in (1, 11, 21):
                await append(nodes.redis, "r", lines(number, 10))
            assert await read(watch, 30) == list(range(1, 31))
            redis_server.kill()
            await nodes.redis.wait(connected=False)
            redis_server.start()
            await nodes.redis.wait()
            await nodes.redis.ask("DEL", nodes.redis.key("lines", "r"))
            await begin(nodes.redis, "r")
            for part in (lines(1, 15), lines(16, 20), lines(36, 5)):  # other parts than before
                await append(nodes.redis, "r", part)
            assert await read(watch, 40) == list(range(31, 41))


async def test_a_part_that_only_a_newer_node_knows_holds_up_nobody(redis_server: RedisServer) -> None:
    """Neither those who watch that run, nor those who watch another."""
    async with open_node(redis_server) as nodes, trio.open_nursery() as nursery:
        redis, got = nodes.redis, {"r": list[PartKind](), "other": list[PartKind]()}

        async def collect(run: str) -> None:
            async with nodes.tail.watch(run, 0) as watch:
                while parts := await watch.receive():
                    got[run] += [part.kind for part in parts]

        for run in got:
            await begin(redis, run)
            nursery.start_soon(collect, run)
        await until(lambda: nodes.tail._asked == {"r", "other"})
        await redis.ask("XADD", redis.key("lines", "r"), "0-1", "k", 7, "c", 1, "n", 1, "d", "new")
        for run in got:
            await append(redis, run, lines(1, 1))
        await until(lambda: got == {"r": [PartKind.OTHER, PartKind.LINES], "other": [PartKind.LINES]})
        nursery.cancel_scope.cancel()


async def test_a_run_that_is_deleted_is_over(redis_server: RedisServer) -> None:
    async with open_node(redis_server) as nodes, nodes.tail.watch("nothing", 0) as watch:
        with trio.fail_after(2):
            assert await watch.receive() == []


@pytest.mark.parametrize("cut", [True, False])
async def test_a_run_that_ends_and_is_deleted_between_two_reads_is_over(redis_server: RedisServer, cut: bool) -> None:
    """With the connection cut in between, or not; and though another run speaks all the time."""
    text = "redis.call('XADD', KEYS[1], ARGV[1], 'end', 'exit') return redis.call('DEL', unpack(KEYS))"
    async with open_node(redis_server) as nodes, trio.open_nursery() as nursery:
        redis, tail = nodes.redis, nodes.tail
        await begin(redis, "other")
        await begin(redis, "r")
        nursery.start_soon(speak, redis, "other")
        async with tail.watch("other", 0) as other, tail.watch("r", 0) as watch:
            nursery.start_soon(read, other, 10**6, None, 60)
            await append(redis, "r", lines(1, 1))
            assert await read(watch, 1) == [1]
            got: list[list[Part]] = []
            nursery.start_soon(receive, watch, got)
            await until(lambda: tail._asked is not None and "r" in tail._asked)
            if cut:
                tail._wire.cut()  # type: ignore[union-attr] - it is connected
            keys = redis.key("lines", "r"), redis.key("run", "r")
            assert redis_server.call("EVAL", text, "2", *keys, f"{2**64 - 1}-0") == b"2"
            await until(lambda: got == [[]])
            nursery.cancel_scope.cancel()


async def speak(redis: Redis, run: str) -> None:
    for number in itertools.count(1):
        await append(redis, run, lines(number, 1))
        await trio.sleep(0.1)


async def receive(watch: Watch, into: list[list[Part]]) -> None:
    into.append(await watch.receive())


async def test_what_ends_a_read_cuts_nothing_that_is_not_read(redis_server: RedisServer) -> None:
    async with open_redis(Config(redis=redis_server.url)) as redis:
        heard: list[int] = []
        own, events = redis.key("control", "here"), list[Event]()
        tail = Tail(redis, "here", lambda packet: heard.append(int(packet[b"n"])), events.append)
        await redis.ask("EVAL", "for n = 1, 3000 do redis.call('XADD', KEYS[1], '*', 'n', n) end", 1, own)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tail.wake)
            tail._stir.set()
            with trio.fail_after(2):
                while await redis.ask("XREVRANGE", own, "+", "-", "COUNT", 1) != [[ANY, [b"wake", b""]]]:
                    await trio.sleep(0.01)
            nursery.start_soon(tail.serve)
            await until(lambda: len(heard) == 3000)
            nursery.cancel_scope.cancel()
        assert heard == list(range(1, 3001))


@pytest.mark.parametrize("late", [False, True])
async def test_what_came_while_this_process_stood_still_is_heard_at_once(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """With what takes it back: who asked has been refused by now."""
    seen: list[object] = []
    ask = Wire.ask

    async def answer(wire: Wire, *words: Word) -> object:
        if words[0] != "XREAD":
            return await ask(wire, *words)
        seen.append("reads")
        told = await ask(wire, *words)
        if told and len(seen) == 1:
            await ask(wire, "XADD", own, "*", "n", 2)
        return told

    monkeypatch.setattr(Wire, "ask", answer)
    monkeypatch.setattr(tail, "LATE", -tail.BLOCK if late else 60.0)
    async with open_redis(Config(redis=redis_server.url)) as redis, trio.open_nursery() as nursery:
        own = redis.key("control", "here")
        await redis.ask("XADD", own, "*", "n", 1)
        nursery.start_soon(Tail(redis, "here", lambda packet: seen.append(int(packet[b"n"])), print).serve)
        await until(lambda: 2 in seen)
        nursery.cancel_scope.cancel()
    assert seen[: seen.index(2)] == (["reads", 1] if late else ["reads", 1, "reads"])


async def test_of_what_comes_no_more_is_read_at_once_than_there_is_room_for(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of these may have as many bytes as a client's message, and more."""
    monkeypatch.setattr(tail, "READ_BYTES", 100_000)
    heard: list[int] = []
    read: list[int] = []
    ask = Wire.ask

    async def answer(wire: Wire, *words: Word) -> object:
        told = await ask(wire, *words)
        if words[0] == "XREAD" and told:
            read.append(len(*told.values()))
        elif words[0] in ("XRANGE", "EVAL", "EVALSHA"):
            read.append(len(told))
        return told

    async with open_redis(Config(redis=redis_server.url)) as redis, trio.open_nursery() as nursery:
        for number in range(1, 31):
            fields = ("from", "a", "series", "s", "number", number, "packet", b"x" * 40_000)
            await redis.ask("XADD", redis.key("control", "here"), "*", *fields)
        monkeypatch.setattr(Wire, "ask", answer)
        nursery.start_soon(Tail(redis, "here", lambda packet: heard.append(int(packet[b"number"])), print).serve)
        await until(lambda: len(heard) == 30)
        nursery.cancel_scope.cancel()
    assert heard == list(range(1, 31))
    assert max(read) == tail.READ_PARTS


async def test_a_node_that_can_hear_nothing_says_so(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "RETRY", 0.01)
    events: list[Event] = []

    def told() -> list[bool]:
        return [event.over for event in events if isinstance(event, Strained)]

    async with open_node(redis_server, "here", events.append) as nodes:
        await until(lambda: nodes.tail._asked is not None)
        await nodes.redis.ask("CONFIG", "SET", "maxclients", 1)
        try:
            assert nodes.tail._wire
            nodes.tail._wire.cut()
            await until(lambda: told() == [False])
            assert nodes.redis.connected
        finally:
            await nodes.redis.ask("CONFIG", "SET", "maxclients", 10000)
        await until(lambda: told() == [False, True])


async def test_where_nothing_is_read_no_read_is_ended(redis_server: RedisServer) -> None:
    async with open_node(redis_server) as nodes:
        tail = nodes.tail
        await until(lambda: tail._asked is not None)
        redis_server.kill()
        await nodes.redis.wait(connected=False)
        await until(lambda: tail._asked is None)
        tail.add("r", Watch(tail, nodes.redis, "r", 0), (0, 0))
        assert not tail._stir.is_set()
        redis_server.start()
