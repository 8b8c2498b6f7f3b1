"""Rule: what nodes tell each other comes in order and once, never makes anybody wait, and is bounded."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import trio
from harness import until
from nodes import open_node
from redis_server import RedisServer

from trio_claude.config import Config
from trio_claude.events import Crashed, Event, Strained
from trio_claude.nodes import Nodes, control

pytestmark = pytest.mark.redis
Packet = dict[str, Any]


async def test_packets_come_in_order_from_each(redis_server: RedisServer) -> None:
    async with open_node(redis_server, "a") as a, open_node(redis_server, "b") as b, open_node(redis_server, "c") as c:
        heard: dict[str, list[int]] = {}
        b.control.on("count", lambda node, packet: heard.setdefault(node, []).append(packet["n"]))
        for number in range(3000):
            for node in (a, c):
                node.control.tell("b", {"op": "count", "n": number})
            if number % 100 == 0:
                await trio.lowlevel.checkpoint()
        await until(lambda: sum(map(len, heard.values())) == 6000, 10)
        assert heard == {"a": list(range(3000)), "c": list(range(3000))}


async def test_a_question_is_answered_by_the_node_that_was_asked(redis_server: RedisServer) -> None:
    async with open_node(redis_server, "a") as a, open_node(redis_server, "b") as b:
        b.control.on("double", lambda node, packet: {"twice": packet["n"] * 2, "of": node})
        answers: dict[int, Packet | None] = {}

        async def ask(number: int) -> None:
            answers[number] = await a.control.ask("b", {"op": "double", "n": number})

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(ask, number)
        assert answers == {number: {"twice": number * 2, "of": "a"} for number in range(100)}
        assert trio.current_time() - began < 2
        assert a.control._questions == {}


async def test_who_is_not_there_answers_nothing_and_at_once(redis_server: RedisServer) -> None:
    async with open_node(redis_server, "a") as nodes:
        began = trio.current_time()
        assert await nodes.control.ask("nobody", {"op": "x"}) is None
        assert trio.current_time() - began < 0.5
        assert await nodes.redis.ask("EXISTS", nodes.redis.key("control", "nobody")) == 0
        assert nodes.control._outboxes == {}


async def test_one_that_has_no_answer_is_waited_for_no_longer_than_patience(redis_server: RedisServer) -> None:
    async with open_node(redis_server, "a") as a, open_node(redis_server, "b") as b:
        assert await a.control.ask("b", {"op": "not known"}) is None
        b.redis._wire.cut()  # type: ignore[union-attr]
        async with b.redis.open_wire(1) as wire:  # it is alive, and hears nothing
            await wire.ask("PING")
        redis_server.stop()
        began = trio.current_time()
        try:
            assert await a.control.ask("b", {"op": "not known"}, patience=0.3) is None
        finally:
            redis_server.go_on()
        assert 0.2 < trio.current_time() - began < 1


async def test_a_question_that_nobody_waits_for_is_not_asked_late(redis_server: RedisServer) -> None:
    async with open_node(redis_server, "a") as a, open_node(redis_server, "b") as b:
        heard: list[int] = []
        b.control.on("count", lambda _node, packet: heard.append(packet["n"]))
        redis_server.call("CONFIG", "SET", "maxmemory", "1")
        try:
            assert await a.control.ask("b", {"op": "count", "n": 1}, patience=0.1) is None
            a.control.tell("b", {"op": "count", "n": 2})
        finally:
            redis_server.call("CONFIG", "SET", "maxmemory", "0")
        await a.control.ask("b", {"op": "count", "n": 3})
        assert heard == [2, 3]
        assert not a.control._waiting


async def test_what_came_together_is_heard_before_anything_is_done(redis_server: RedisServer) -> None:
    async with open_node(redis_server, "a") as a, open_node(redis_server, "b") as b:
        heard: list[int] = []
        known: list[int] = []
        async with trio.open_nursery() as nursery:

            async def act() -> None:
                known.append(len(heard))

            def hear(_node: str, packet: Packet) -> None:
                heard.append(packet["n"])
                nursery.start_soon(act)

            b.control.on("count", hear)
            for number in range(100):
                a.control.tell("b", {"op": "count", "n": number})
            await until(lambda: len(known) == 100)
        assert known == [100] * 100


async def test_a_handler_that_fails_is_told_and_the_next_packet_comes(redis_server: RedisServer) -> None:
    events: list[Event] = []
    async with open_node(redis_server, "a") as a, open_node(redis_server, "b", events.append) as b:
        b.control.on("fail", lambda _node, packet: {"is": 1 / packet["n"]})
        assert await a.control.ask("b", {"op": "fail", "n": 0}) is None
        assert await a.control.ask("b", {"op": "fail", "n": 2}) == {"is": 0.5}
        assert [(event.where, type(event.error)) for event in events if isinstance(event, Crashed)] == [
            ("control", ZeroDivisionError)
        ]


@pytest.mark.parametrize("trouble", ["crash", "hang"])
async def test_what_waits_while_redis_is_away_comes_once_and_in_order(redis_server: RedisServer, trouble: str) -> None:
    async with open_node(redis_server, "a") as a, open_node(redis_server, "b") as b:
        heard: list[int] = []
        b.control.on("count", lambda _node, packet: heard.append(packet["n"]))
        await trio.sleep(1.2)  # until the nodes are durable
        for number in range(500):
            a.control.tell("b", {"op": "count", "n": number})
            if number == 200:
                await until(lambda: len(heard) == 201)
                redis_server.kill() if trouble == "crash" else redis_server.stop()
                await a.redis.wait(connected=False)
        redis_server.start() if trouble == "crash" else redis_server.go_on()
        await until(lambda: len(heard) == 500, 10)
        assert heard == list(range(500))


async def test_what_redis_has_forgotten_is_taken_only_once(redis_server: RedisServer) -> None:
    async with open_node(redis_server, "a") as a, open_node(redis_server, "b") as b:
        heard: list[int] = []
        b.control.on("count", lambda _node, packet: heard.append(packet["n"]))
        for number in range(10):
            a.control.tell("b", {"op": "count", "n": number})
        await until(lambda: len(heard) == 10)
        await trio.sleep(1.2)
        redis_server.restart()  # the stream is read anew from its beginning
        await b.redis.wait(connected=False)
        await b.redis.wait()
        a.control.tell("b", {"op": "count", "n": 10})
        await until(lambda: len(heard) >= 11)
        assert heard == list(range(11))


async def test_what_waits_is_bounded_and_that_it_is_full_is_told_once(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "WAITING_BYTES", 100_000)
    events: list[Event] = []
    async with open_node(redis_server, "a", events.append) as a, open_node(redis_server, "b") as b:
        heard: list[int] = []
        b.control.on("count", lambda _node, packet: heard.append(packet["n"]))
        await trio.sleep(1.2)
        redis_server.kill()
        await a.redis.wait(connected=False)
        for number in range(2000):
            a.control.tell("b", {"op": "count", "n": number, "text": "x" * 100})
        assert a.control._waiting < 100_000 + 300, "one may pass it"
        redis_server.start()
        await until(lambda: len([one for one in events if isinstance(one, Strained)]) == 2, 10)
        assert await a.control.ask("b", {"op": "behind them"}) is None
        assert heard == list(range(len(heard)))
        assert 300 < len(heard) < 1000
        assert [event.over for event in events if isinstance(event, Strained)] == [False, True]
        a.control.tell("b", {"op": "count", "n": -1})
        await until(lambda: heard[-1] == -1)


async def test_a_node_that_does_not_read_has_a_stream_that_is_bounded(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "KEPT", 100)
    async with open_node(redis_server, "a") as nodes:
        await nodes.redis.ask("HSET", nodes.redis.key("nodes"), "deaf", "9:0:9999999999999:2000")
        for number in range(5000):
            nodes.control.tell("deaf", {"op": "x", "n": number})
        await until(lambda: not nodes.control._waiting)
        assert await nodes.redis.ask("XLEN", nodes.redis.key("control", "deaf")) < 400


async def test_a_packet_that_is_longer_than_what_may_wait_goes_through(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the longest message of a client may be; what Redis would end the connection for is dropped."""
    monkeypatch.setattr(control, "WAITING_BYTES", 100_000)
    monkeypatch.setattr(control, "PACKET_LIMIT", 1_000_000)
    events: list[Event] = []
    async with open_node(redis_server, "a", events.append) as a, open_node(redis_server, "b") as b:
        heard: list[str] = []
        b.control.on("said", lambda _node, packet: heard.append(packet["text"]))
        for text in ('"' * 400_000, "dropped", "é" * 600_000, "x"):
            a.control.tell("b", {"op": "said", "text": text})
            if text == "dropped":
                await until(lambda: bool(heard))
                assert not a.control._waiting
        await until(lambda: len(heard) == 2)
        assert heard == ['"' * 400_000, "x"]
        assert a.redis.connected
        await until(lambda: [event.over for event in events if isinstance(event, Strained)] == [False, True] * 2)


async def test_the_longest_message_of_a_client_goes_through(redis_server: RedisServer) -> None:
    async with open_node(redis_server, "a", lease=5) as a, open_node(redis_server, "b", lease=5) as b:
        sizes: list[int] = []
        b.control.on("said", lambda _node, packet: sizes.append(len(packet["text"])))
        a.control.tell("b", {"op": "said", "text": '"' * Config().max_session_message})
        await until(lambda: bool(sizes), 20)
        assert sizes == [Config().max_session_message]


async def test_any_text_goes_through(redis_server: RedisServer) -> None:
    texts = ["", "\ud800 alone", "é €\n\0", "x" * 3_000_000]
    async with open_node(redis_server, "a") as a, open_node(redis_server, "b") as b:
        b.control.on("echo", lambda _node, packet: {"text": packet["text"]})
        for text in texts:
            assert await a.control.ask("b", {"op": "echo", "text": text}) == {"text": text}


async def kept(nodes: Nodes) -> int:
    """Return how many packets to a node Redis has."""
    return int(await nodes.redis.ask("XLEN", nodes.redis.key("control", nodes.name)))


async def none_kept(nodes: Nodes) -> None:
    with trio.fail_after(3):
        while await kept(nodes):
            await trio.sleep(0.01)


async def test_what_was_heard_is_kept_no_longer(redis_server: RedisServer) -> None:
    async with open_node(redis_server, "a") as a, open_node(redis_server, "b") as b:
        heard: list[int] = []
        b.control.on("count", lambda _node, packet: heard.append(packet["n"]))
        for number in range(1000):
            a.control.tell("b", {"op": "count", "n": number, "text": "x" * (10_000 if number % 100 else 1_000_000)})
        await until(lambda: len(heard) == 1000)
        await none_kept(b)
        assert int(await b.redis.ask("MEMORY", "USAGE", b.redis.key("control", "b"))) < 5000
        a.control.tell("b", {"op": "count", "n": 1000})
        await until(lambda: heard == list(range(1001)))


async def test_where_redis_cuts_nothing_it_is_asked_again_and_packets_come(redis_server: RedisServer) -> None:
    async with open_node(redis_server, "a") as a, open_node(redis_server, "b") as b:
        heard: list[int] = []
        b.control.on("count", lambda _node, packet: heard.append(packet["n"]))
        redis_server.call("ACL", "SETUSER", "default", "-xtrim")
        try:
            await until(lambda: b.tail._asked is not None)
            wire = b.tail._wire
            for number in range(10):
                a.control.tell("b", {"op": "count", "n": number})
                await until(partial(heard.__contains__, number))
            assert heard == list(range(10))
            assert await kept(b) == 10
            assert b.tail._wire is wire
        finally:
            redis_server.call("ACL", "SETUSER", "default", "+xtrim")
        await none_kept(b)


async def test_what_a_node_said_that_is_gone_is_not_heard_again(redis_server: RedisServer) -> None:
    redis_server.call("ACL", "SETUSER", "default", "-xtrim")  # Redis may have lost that it was cut; a restart ends this
    async with open_node(redis_server, "b") as b, open_node(redis_server, "c") as c:
        heard: list[int] = []
        b.control.on("count", lambda _node, packet: heard.append(packet["n"]))
        async with open_node(redis_server, "a") as a:
            await until(lambda: "a" in b.membership.others)
            for number in range(10):
                a.control.tell("b", {"op": "count", "n": number})
            await until(lambda: len(heard) == 10)
        await until(lambda: "a" not in b.membership.others)
        await trio.sleep(1.2)  # until what was written is durable
        redis_server.restart()
        assert await kept_by(redis_server, "b") == 10
        await c.redis.wait(connected=False)
        await c.redis.wait()
        c.control.tell("b", {"op": "count", "n": 10})
        await until(lambda: 10 in heard)
        assert heard == list(range(11))


async def kept_by(server: RedisServer, node: str) -> int:
    return int(server.call("XLEN", f"trio-claude:control:{node}"))


def entry(node: str, series: str, number: int) -> dict[bytes, bytes]:
    return {
        b"from": node.encode(), b"series": series.encode(), b"number": b"%d" % number,
        b"packet": b'{"op":"count","n":%d}' % number,
    }  # fmt: skip


async def test_a_packet_that_comes_after_its_node_is_gone_is_left_out(redis_server: RedisServer) -> None:
    """One of a node that is not known yet is heard, and one of a node that is back."""
    async with open_node(redis_server, "b") as b:
        heard: list[tuple[str, int]] = []
        b.control.on("count", lambda node, packet: heard.append((node, packet["n"])))
        b.control.hear(entry("a", "s", 1))
        async with open_node(redis_server, "a"):
            await until(lambda: "a" in b.membership.others)
        await until(lambda: "a" not in b.membership.others)
        b.control.hear(entry("a", "s", 2))
        async with open_node(redis_server, "a"):
            await until(lambda: "a" in b.membership.others)
            b.control.hear(entry("a", "s", 3))
        assert heard == [("a", 1), ("a", 3)]


async def test_what_is_known_of_others_is_bounded(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "HEARD", 3)
    async with open_node(redis_server, "b") as b:
        heard: list[int] = []
        b.control.on("count", lambda _node, packet: heard.append(packet["n"]))
        for number in range(1, 11):
            b.control.hear(entry("a", f"s{number}", number))
            b.control.hear(entry("a", "often", number + 100))
            b.control._lose(f"n{number}")
        for series, number in (("s10", 10), ("s9", 9), ("often", 110)):
            b.control.hear(entry("a", series, number))
        assert heard == [one for number in range(1, 11) for one in (number, number + 100)]
        assert (len(b.control._heard), [*b.control._gone]) == (3, ["n8", "n9", "n10"])
