"""Rule: a client at one node is to a run of another what it would be at that one: the same lines, rights and ends."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from unittest.mock import Mock

import attrs
import pytest
import trio
from harness import Backend, call, directive, until
from hub import Hub, Node, opened
from redis_server import RedisServer
from returns import GRACE, attach, dropped, leave, numbered, orphaned, reset
from talk import Talk, open_talk
from trio.testing import wait_all_tasks_blocked
from trio_websocket import ConnectionClosed, open_websocket_url

from trio_claude import far, guests
from trio_claude.errors import Reason
from trio_claude.far import Far
from trio_claude.guests import FarPeer
from trio_claude.journal import Part, PartKind
from trio_claude.link import HEARD_SIZE, PACKET_SIZE, Link
from trio_claude.server import Server
from trio_claude.session import Attach


@attrs.frozen
class House:
    """Servers that share what `settings` say."""

    fake: Backend
    settings: dict[str, object] = attrs.Factory(dict)

    @asynccontextmanager
    async def serve(self, count: int = 2, **config: object) -> AsyncIterator[list[Server]]:
        async with AsyncExitStack() as stack:
            settings = {**self.settings, **config}
            yield [await stack.enter_async_context(self.fake.serve(**settings)) for _ in range(count)]

    @asynccontextmanager
    async def serve_known(self, *names: str, **config: object) -> AsyncIterator[tuple[list[Server], dict[str, str]]]:
        """Serve those who have a key, `NAME` or `NAME/ROLE`; yield two servers and the keys by name."""
        settings = {**self.settings, **config}
        async with self.fake.serve_known(*names, **settings) as (first, secrets):
            own = {"keys": first.config.keys, "state": first.config.state, "cwd": "", **settings}
            async with self.fake.serve(**own) as second:
                yield [first, second], secrets


@attrs.frozen
class Apart(House):
    """Servers that share a hub, which does what it is told."""

    hub: Hub = attrs.Factory(Hub)


async def stored(server: Server, run: str) -> list[Part]:
    """Return all that the journal has of a run."""
    journal, found = server.runs.journal, list[Part]()
    assert journal
    await journal.settle()
    while parts := await journal.parts(run, 0, found[-1].number if found else 0):
        found += parts
    return found


@pytest.fixture
def apart(fake: Backend, monkeypatch: pytest.MonkeyPatch) -> Apart:
    return _apart(fake, monkeypatch)


def _apart(fake: Backend, monkeypatch: pytest.MonkeyPatch) -> Apart:
    house = Apart(fake, {"journal": "auto"})
    monkeypatch.setattr("trio_claude.engine._opened_nodes", lambda _config, place, _observer: opened(house.hub, place))
    return house


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.redis)])
def house(request: pytest.FixtureRequest, fake: Backend, monkeypatch: pytest.MonkeyPatch) -> House:
    """Servers that share a Redis, or what stands for one."""
    if request.param == "memory":
        return _apart(fake, monkeypatch)
    server: RedisServer = request.getfixturevalue("redis_server")
    return House(fake, {"journal": "auto", "redis": server.url, "node_lease": 2.0})


async def taken(talk: Talk) -> None:
    """Wait until another connection has taken over."""
    await until(lambda: talk.code is not None)
    assert (talk.code, talk.reason) == (1000, "another connection has taken over")


def gaps(talk: Talk) -> list[dict[str, Any]]:
    return [frame for frame in talk.frames if frame.get("event") == "gap"]


async def test_a_client_that_comes_back_to_another_node_gets_the_rest(house: House) -> None:
    async with house.serve(2) as (a, b):
        async with open_talk(a) as first:
            started = await first.start(**GRACE, partial=True)
            await first.user(directive("slow", n=40, ms=20))
            await first.next(lambda frame: frame["type"] == "stream_event", 10)
            seen = numbered(first)
            await leave(first)
            await until(lambda: not a.stages[started["run"]].owned)
        async with open_talk(b) as second:
            told = await attach(second, started["run"], len(seen))
            assert (told["role"], told["from"], told["pending"]) == ("owner", len(seen) + 1, [])
            await second.result()
            await second.user("hello")
            await second.result()
            await second.stop("end")
            ended = await second.end()
            assert ended["reason"] == "exit"
            assert ended["lines"] == len(seen) + len(numbered(second))
            assert second.code == 1000
    (run,) = house.fake.ended
    assert run.outcome.receipt.survivors == 0


@pytest.mark.parametrize("role", ["owner", "viewer"])
@pytest.mark.parametrize("after", ["nothing", "some", "all"])
async def test_every_way_to_attach(house: House, role: str, after: str) -> None:
    async with house.serve() as (a, b), open_talk(a) as first:
        run = (await first.start(**GRACE))["run"]
        await first.user(directive("stderr", text="oh", n=2))
        await first.result()
        seen = {"nothing": 0, "some": 2, "all": len(numbered(first))}[after]
        async with open_talk(b) as second:
            told = await attach(second, run, seen, **{"as": role})
            assert (told["role"], told["from"], told["ended"]) == (role, seen + 1, False)
            if role == "owner":
                await taken(first)
            speaker = second if role == "owner" else first
            await speaker.user(directive("text", text="the second turn"))
            await second.next(lambda frame: frame["type"] == "result" and "second" in frame["result"])
            await speaker.stop("end")
            ended = await second.end()
            assert (ended["reason"], second.code) == ("exit", 1000)
            assert ended["lines"] == seen + len(numbered(second))
            if role == "viewer":
                await first.end()
                assert numbered(second) == numbered(first)[seen:]
                assert await stderr_lines(second) == [place for place in await stderr_lines(first) if place[1] >= seen]


async def stderr_lines(talk: Talk) -> list[tuple[str, int]]:
    return [(frame["line"], frame["after"]) for frame in talk.frames if frame.get("event") == "stderr"]


@pytest.mark.parametrize("places", ["ab", "abb", "abc", "aba"])
async def test_an_owner_is_replaced_wherever_both_are(house: House, places: str) -> None:
    async with house.serve(3) as servers, AsyncExitStack() as stack:
        talks = [await stack.enter_async_context(open_talk(servers["abc".index(place)])) for place in places]
        run = (await talks[0].start())["run"]
        got = 0
        for number, talk in enumerate(talks):
            if number:
                assert (await attach(talk, run, got, **{"as": "owner"}))["role"] == "owner"
                await taken(talks[number - 1])
            await talk.user(directive("text", text=f"turn {number}"))
            assert f"turn {number}" in (await talk.result())["result"]
            got += len(numbered(talk))
        await talks[-1].stop("end")
        ended = await talks[-1].end()
        assert (ended["reason"], ended["lines"]) == ("exit", got)


async def test_who_attaches_at_another_node_while_there_is_an_owner_watches(house: House) -> None:
    async with house.serve() as (a, b), open_talk(a) as owner, open_talk(b) as viewer:
        run = (await owner.start(**GRACE))["run"]
        assert (await attach(viewer, run))["role"] == "viewer"
        for words in (viewer.stop("kill"), viewer.user("mine"), viewer.say("no JSON")):
            await words
            await viewer.event("refused")
        codes = [frame["code"] for frame in viewer.frames if frame.get("event") == "refused"]
        assert codes == ["not-allowed", "not-allowed", "bad-message"]
        await viewer.say({"type": "gateway", "op": "detach"})
        await until(lambda: (viewer.code, viewer.reason) == (1000, "detached"))
        await until(lambda: not a.stages[run]._viewers)
        await owner.stop("kill")
        await owner.end()


async def test_who_has_more_than_the_journal_yet_waits_for_it(apart: Apart) -> None:
    async with apart.serve() as (a, b), open_talk(a) as first:
        run = (await first.start(**GRACE))["run"]
        await first.user("hello")
        await first.result()
        apart.hub.hold()
        await first.user(directive("slow", n=20, ms=1))
        await first.result()
        seen = numbered(first)
        async with open_talk(b) as ahead:
            await ahead.say({"type": "gateway", "op": "attach", "run": run, "after": len(seen) + 1})
            refused = await ahead.event("refused")
            assert (refused["code"], refused["last"]) == ("ahead", len(seen))
            await until(lambda: ahead.code == 1008)
        async with open_talk(b) as second:
            await attach(second, run, len(seen), **{"as": "owner"})
            await second.user("hello")
            apart.hub.let_go()
            await second.result()
            await second.stop("end")
            ended = await second.end()
            assert ended["lines"] == len(seen) + len(numbered(second))


@pytest.mark.parametrize("answer", ["allow", "deny"])
async def test_an_approval_is_answered_from_another_node(house: House, answer: str) -> None:
    async with house.serve() as (a, b):
        async with open_talk(a) as first:
            run = (await first.start(**GRACE))["run"]
            await first.user(directive("bash", cmd="touch x"))
            asked = await first.asked()
            seen = len(numbered(first))
            await leave(first)
            await orphaned(a, run)
        async with open_talk(b) as second:
            ((pending),) = (await attach(second, run, seen))["pending"]
            assert json.loads(pending["line"])["request_id"] == asked["request_id"]
            await second.answer("another", behavior="allow")
            assert (await second.event("refused"))["code"] == "not-open"
            more = {"message": "no"} if answer == "deny" else {}
            await second.answer(asked["request_id"], behavior=answer, **more)
            await second.result()
            await second.user(directive("bash", cmd="touch y"))
            await second.answer((await second.asked())["request_id"], behavior=answer, **more)
            await second.result()
            await second.stop("end")
            await second.end()


async def test_a_turn_is_interrupted_from_another_node(house: House) -> None:
    async with house.serve() as (a, b), open_talk(a) as first, open_talk(b) as second:
        run = (await first.start(partial=True))["run"]
        await attach(second, run, **{"as": "owner"})
        await second.user(directive("slow", n=400, ms=20))
        await second.next(lambda frame: frame["type"] == "stream_event" and "delta" in frame["event"])
        await second.stop("interrupt")
        assert (await second.event("stopping"))["mode"] == "interrupt"
        assert (await second.result(2))["terminal_reason"] == "aborted_streaming"
        await second.user("hello")
        await second.result()
        await second.stop("kill")
        assert (await second.end())["reason"] == "stopped"


async def test_an_owner_at_another_node_leaves_and_its_run_waits_for_it(house: House) -> None:
    async with house.serve() as (a, b):
        async with open_talk(a) as first:
            run = (await first.start(on_disconnect={"grace": 1}))["run"]
            await leave(first)
            await orphaned(a, run)
        async with open_talk(b) as second:
            assert (await attach(second, run))["role"] == "owner"
            assert a.stages[run].owned
            await second.say({"type": "gateway", "op": "detach"})
            await until(lambda: (second.code, second.reason) == (1000, "detached"))
            await orphaned(a, run)
        async with open_talk(b) as third:
            assert (await attach(third, run))["role"] == "owner"
            await leave(third)
            await orphaned(a, run)
        await until(lambda: bool(house.fake.ended))
    assert house.fake.ended[0].outcome.reason is Reason.DISCONNECTED


async def test_messages_are_heard_once_and_counted(house: House) -> None:
    async with house.serve() as (a, b), open_talk(a) as first:
        run = (await first.start(**GRACE))["run"]
        async with open_talk(b) as second:
            line = {"type": "gateway", "op": "attach", "run": run, "as": "owner", "client": "c"}
            await second.say(line)
            for number in range(6):
                await second.user(directive("text", text=f"[{number}]"))
            await second.say("no JSON")
            await second.socket.send_message(b"binary")
            assert (await second.event("attached"))["heard"] == 0
            await second.event("refused")
            await second.event("refused")
            await leave(second)
            await orphaned(a, run)
        async with open_talk(b) as third:
            assert (await attach(third, run, client="c"))["heard"] == 8
            await third.stop("end")
            await third.end()
        parts = [part for part in await stored(b, run) if part.kind is PartKind.SAID]
    said = [line.decode() for part in parts for line in part.lines if b"[" in line]
    assert [next(n for n in range(6) if f"[{n}]" in line) for line in said] == [*range(6)]


async def test_forced_drops_lose_nothing_and_repeat_nothing(house: House, long: bool) -> None:
    """The attach after each is at another node than the one before."""
    rng, drops, done = random.Random(20261127), 1000 if long else 60, 0
    async with house.serve(3, replay_bytes=200_000, timeout=3600.0) as servers:
        while done < drops:
            async with open_talk(servers[0]) as talk:
                run = (await talk.start(**GRACE))["run"]
                await talk.user(directive("lines", n=40_000, size=60))
                await talk.next(lambda frame: frame["type"] == "system")
                got = numbered(talk)
                await reset(talk.socket)
            while done < drops and not (got and '"type": "result"' in got[-1]):
                done += 1
                first = {"type": "gateway", "op": "attach", "run": run, "after": len(got), "as": "owner"}
                async with dropped(servers[done % 3], first, rng) as lines:
                    got += [json.dumps(json.loads(line)) for line in lines]
            async with open_talk(servers[1]) as talk:
                await attach(talk, run, len(got), **{"as": "owner"})
                if not (got and '"type": "result"' in got[-1]):
                    await talk.result(30)
                got += numbered(talk)
                assert not gaps(talk)
                await talk.stop("kill")
                await talk.end()
            parts = [part for part in await stored(servers[0], run) if part.kind is PartKind.LINES]
            assert [json.loads(line) for line in got] == [json.loads(line) for part in parts for line in part.lines]


@pytest.mark.parametrize("role", ["owner", "viewer"])
async def test_only_an_owner_that_does_not_read_holds_the_cli_back(
    house: House, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it loses nothing, nor does a viewer: all is in the journal."""
    monkeypatch.setattr(guests, "WINDOW", 1_000_000)
    lines, size = 6000, 4000
    async with house.serve() as (a, b), open_talk(a) as first:
        run = (await first.start(**GRACE))["run"]
        url = f"ws://127.0.0.1:{b.port}/ws/session"
        async with open_websocket_url(url, max_message_size=2**27, message_queue_size=1) as slow:
            await slow.get_message()
            await slow.send_message(json.dumps({"type": "gateway", "op": "attach", "run": run, "as": role}))
            assert json.loads(await slow.get_message())["event"] == "attached"
            prompt = directive("lines", n=lines, size=size)
            words = {"type": "user", "message": {"role": "user", "content": prompt}}
            speaker = slow if role == "owner" else first.socket
            await speaker.send_message(json.dumps(words))
            if role == "owner":
                number = 0
                with trio.fail_after(30):
                    while not number or number != a.stages[run].number:
                        number = a.stages[run].number
                        await trio.sleep(0.5)
                assert number < lines
            else:
                await first.result(60)
                await first.stop("end")
                await first.end()
            number = 0
            with trio.fail_after(60):
                while True:
                    frame = json.loads(await slow.get_message())
                    number += frame["type"] != "gateway"
                    assert frame.get("event") != "gap"
                    if frame["type"] == "result" and role == "owner":
                        await slow.send_message('{"type":"gateway","op":"stop","mode":"end"}')
                    if frame.get("event") == "ended":
                        break
            assert number == frame["lines"] > lines
            with pytest.raises(ConnectionClosed):
                await slow.get_message()
            await slow._stream.aclose()


async def test_a_node_that_is_lost_is_told_with_all_that_its_run_has_said(apart: Apart) -> None:
    async with apart.serve() as (a, b), open_talk(a) as first:
        run = (await first.start(**GRACE))["run"]
        await first.user("hello")
        await first.result()
        async with open_talk(b) as viewer, open_talk(b) as owner:
            await attach(viewer, run, **{"as": "viewer"})
            await attach(owner, run, **{"as": "owner"})
            apart.hub.lose(a.runs._kit.workplace.home.server)
            for talk in (viewer, owner):
                ended = await talk.end()
                assert (ended["reason"], talk.code) == ("node-lost", 1011)
                assert numbered(talk) == numbered(first)
        async with open_talk(b) as late:
            assert (await attach(late, run))["ended"]
            assert (await late.end())["reason"] == "node-lost"
            assert numbered(late) == numbered(first)


async def test_who_was_at_a_node_that_is_lost_has_left(apart: Apart) -> None:
    async with apart.serve() as (a, b), open_talk(a) as first, open_talk(b) as second, open_talk(b) as viewer:
        run = (await first.start(**GRACE))["run"]
        await attach(second, run, **{"as": "owner"})
        await attach(viewer, run)
        apart.hub.lose(b.runs._kit.workplace.home.server)
        await orphaned(a, run)
        assert not a.stages[run]._viewers
        async with open_talk(a) as third:
            assert (await attach(third, run))["role"] == "owner"
            await third.stop("kill")
            await third.end()


async def test_who_was_at_a_run_of_a_node_that_was_taken_for_lost_has_left(apart: Apart) -> None:
    """Their node tells that nobody who is lost; the run, which goes on, waits for its owner no longer than its grace."""
    async with apart.serve() as (a, b), open_talk(a) as first, open_talk(b) as second, open_talk(b) as viewer:
        run = (await first.start(**GRACE))["run"]
        await attach(second, run, **{"as": "owner"})
        await attach(viewer, run)
        node = apart.hub.nodes[a.runs._kit.workplace.home.server]
        apart.hub.lose(node.name)
        for talk in (second, viewer):
            assert (await talk.end())["reason"] == "node-lost"
        assert a.stages[run].owned
        apart.hub.take_back(node)
        await orphaned(a, run)
        await until(lambda: not a.stages[run]._viewers)
        assert a.runs.stop(run, None)


@pytest.mark.parametrize("comes", [True, False])
async def test_what_stderr_says_last_comes_before_the_end(apart: Apart, comes: bool) -> None:
    """Though no number says that it is still to come; a journal that never gets it is not waited for for long."""
    async with apart.serve() as (a, b), open_talk(a) as first, open_talk(b) as second:
        run = (await first.start(**GRACE))["run"]
        await attach(second, run)
        await first.user("hello")
        for talk in (first, second):
            await talk.result()
        closed = apart.hub.watch("close", losing=0)
        apart.hub.hold()
        a.stages[run].run._recorder.stderr(["oh"])  # type: ignore[union-attr] - it has one
        await first.stop("end")
        lines = (await first.end())["lines"]
        await until(lambda: bool(closed))
        await wait_all_tasks_blocked()
        assert (second.code, len(numbered(second))) == (None, lines)
        if comes:
            apart.hub.let_go()
        await second.end(far.LAST_LINES / 2)
        assert await stderr_lines(second) == ([("oh", lines)] if comes else [])


async def test_a_node_that_does_not_answer_is_said(apart: Apart, monkeypatch: pytest.MonkeyPatch) -> None:
    async with apart.serve() as (a, b), open_talk(a) as first:
        run = (await first.start(**GRACE))["run"]
        apart.hub.loses = lambda packet: packet["op"] == "open"
        async with open_talk(b) as second:
            await second.say({"type": "gateway", "op": "attach", "run": run})
            refused = await second.event("refused")
            assert (refused["code"], refused["retry_after"]) == ("no-answer", 1)
            await until(lambda: second.code == 1013)
        apart.hub.loses = lambda packet: packet["op"] == "stop"
        status, headers, body = await call(b, f"/api/runs/{run}", method="DELETE")
        assert (status, json.loads(body)["code"], headers["retry-after"]) == (503, "no-answer", "1")
        apart.hub.loses = lambda _packet: False
        status, _, body = await call(b, f"/api/runs/{run}", method="DELETE")
        assert (status, json.loads(body)) == (202, {"stopping": True})
        assert (await first.end())["reason"] == "stopped"
        assert (await call(b, f"/api/runs/{run}?state=live", method="DELETE"))[0] == 409


async def test_nobody_else_comes_in_nor_ends_a_run(house: House) -> None:
    async with house.serve_known("alice", "bob", "vera/viewer", "adam/admin") as ((a, b), keys):
        async with open_talk(a, keys["alice"]) as owner:
            run = (await owner.start(**GRACE))["run"]
            async with open_talk(b, keys["bob"]) as bob:
                await bob.say({"type": "gateway", "op": "attach", "run": run})
                refused = await bob.event("refused")
                assert (refused["code"], refused["error"]) == ("not-open", f"there is no run {run} to come back to")
                await until(lambda: bob.code == 1008)
            for name in ("vera", "adam"):
                async with open_talk(b, keys[name]) as talk:
                    assert (await attach(talk, run, **{"as": "owner"}))["role"] == "viewer"
            assert (await call(b, f"/api/runs/{run}", keys["bob"], "DELETE"))[0] == 404
            assert (await call(b, f"/api/runs/{run}", keys["vera"], "DELETE"))[0] == 403
            assert (await call(b, f"/api/runs/{run}", keys["adam"], "DELETE"))[0] == 202
            assert (await owner.end())["reason"] == "stopped"


async def test_a_credential_that_is_taken_back_counts_for_both_roles(house: House) -> None:
    async with house.serve_known("alice", "vera/viewer") as ((a, b), keys):
        async with open_talk(a, keys["alice"]) as first, open_talk(b, keys["alice"]) as owner:
            run = (await first.start(**GRACE))["run"]
            await attach(owner, run, **{"as": "owner"})
            async with open_talk(b, keys["vera"]) as viewer:
                await attach(viewer, run)
                house.fake.cwd.parent.joinpath("keys.json").write_text("{}")
                await until(lambda: viewer.code is not None)
                assert viewer.code == 1008
            await owner.user("hello")
            assert (await owner.event("refused"))["code"] == "credentials"
            await owner.stop("kill")
            await owner.end()


@pytest.mark.parametrize("which", [0, 1])
async def test_a_node_that_drains_shows_its_clients_out(house: House, which: int) -> None:
    async with house.serve() as servers, open_talk(servers[0]) as first, open_talk(servers[1]) as second:
        run = (await first.start(**GRACE))["run"]
        await attach(second, run, **{"as": "owner"})
        await servers[which].drain(0)
        await until(lambda: second.code is not None)
        assert second.code == 1012
        if which == 0:
            assert second.frames[-1]["reason"] == "drained"
        else:
            assert second.frames[-1]["code"] == "draining"
            await orphaned(servers[0], run)


async def test_a_client_comes_back_at_another_node_to_a_run_of_one_that_drains(house: House) -> None:
    async with house.serve() as (a, b), trio.open_nursery() as nursery:
        async with open_talk(a) as first:
            run = (await first.start(**GRACE))["run"]
            await leave(first)
            await orphaned(a, run)
        nursery.start_soon(a.drain, 20)
        await until(lambda: a.runs.draining)
        async with open_talk(b) as second:
            assert (await attach(second, run))["role"] == "owner"
            await second.user("hello")
            await second.result()
            await second.stop("end")
            assert (await second.end())["reason"] == "exit"


async def test_a_run_of_which_the_journal_takes_no_more_is_only_at_its_own_node(apart: Apart) -> None:
    async with apart.serve() as (a, b), open_talk(a) as first, open_talk(b) as viewer:
        run = (await first.start(**GRACE))["run"]
        await first.user("hello")
        await first.result()
        stored = len(numbered(first))
        await attach(viewer, run)
        apart.hub.hold()
        apart.hub.full = True
        await first.user("hello")
        assert (await first.event("history"))["state"] == "ended"
        await first.result()
        apart.hub.let_go()
        assert (await viewer.event("history"))["state"] == "ended"
        assert (await viewer.event("refused"))["code"] == "journal"
        await until(lambda: viewer.code == 1013)
        assert numbered(viewer) == numbered(first)[:stored]
        async with open_talk(b) as late:
            await late.say({"type": "gateway", "op": "attach", "run": run})
            assert (await late.event("refused"))["code"] == "journal"
        async with open_talk(a) as near:
            await attach(near, run, stored)
            await until(lambda: numbered(near) == numbered(first)[stored:])
        await first.stop("end")
        await first.end()


async def test_without_content_in_the_journal_there_is_nothing_to_be_told_elsewhere(house: House) -> None:
    async with house.serve(journal_content=False) as (a, b), open_talk(a) as first:
        run = (await first.start(**GRACE))["run"]
        async with open_talk(b) as second:
            await second.say({"type": "gateway", "op": "attach", "run": run})
            assert (await second.event("refused"))["code"] == "journal"
            await until(lambda: second.code == 1013)
        await first.stop("kill")
        await first.end()


async def test_an_owner_that_is_waited_for_is_told_that_the_journal_takes_no_more(
    apart: Apart, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though no line comes by which that would be noticed. What the journal never gets, the run's own node tells."""
    monkeypatch.setattr(guests, "WINDOW", 10_000)
    async with apart.serve() as (a, b), open_talk(a) as first, open_talk(b) as second:
        run = (await first.start(**GRACE))["run"]
        await attach(second, run, **{"as": "owner"})
        apart.hub.hold()
        await second.user(directive("lines", n=1000, size=1000))
        await until(lambda: a.stages[run]._giving)
        a.stages[run].run._recorder.stored = False  # type: ignore[union-attr] - it has one
        assert (await second.event("history"))["state"] == "ended"
        assert (await second.event("refused", far.LAST_LINES / 2))["code"] == "journal"
        await until(lambda: second.code == 1013)
        assert not gaps(second)
        await orphaned(a, run)
        async with open_talk(a) as third:
            await attach(third, run, len(numbered(second)))
            await third.result()
            await third.stop("end")
            ended = await third.end()
            assert ended["lines"] == len(numbered(second)) + len(numbered(third)) > 1000
            assert not gaps(third)


async def test_clients_are_told_that_the_journal_can_not_be_reached_by_their_own_node(apart: Apart) -> None:
    async with apart.serve() as (a, b), open_talk(a) as first, open_talk(b) as second:
        await attach(second, (await first.start(**GRACE))["run"])
        for server, talk, other in ((a, first, second), (b, second, first)):
            node = apart.hub.nodes[server.runs._kit.workplace.home.server]
            for connected in (False, True):
                for handler in node.change_handlers:
                    handler(connected)
            assert [(await talk.event("history"))["state"] for _ in range(2)] == ["waiting", "back"]
            assert not [frame for frame in other.frames if frame.get("event") == "history"] or other is first
        await first.stop("kill")
        await first.end()


@pytest.mark.parametrize("op", ["said", "post", "heard", "ack", "left", "close"])
async def test_what_is_lost_between_nodes_costs_a_connection_and_nothing_else(apart: Apart, op: str) -> None:
    """Whatever it is: who comes back learns what was heard."""
    async with apart.serve() as (a, b), open_talk(a) as first:
        run = (await first.start(**GRACE))["run"]
        async with open_talk(b) as second:
            await attach(second, run, **{"as": "owner", "client": "c"})
            await second.user("x" * HEARD_SIZE)
            await second.result()
            lost = apart.hub.watch(op, losing=1)
            if op == "left":
                await leave(second)
            elif op == "close":
                async with open_talk(b) as third:
                    await attach(third, run, **{"as": "owner"})
            elif op == "post":
                await second.say("no JSON")
            else:
                await second.user("x" * HEARD_SIZE)
            await until(lambda: bool(lost) and second.code is not None)
            await until(lambda: not a.stages[run].owned)
        async with open_talk(a) as last:
            told = await attach(last, run, client="c")
            assert (told["role"], told["heard"]) == ("owner", {"said": 1, "left": 1, "close": 1}.get(op, 2))
            await last.stop("kill")
            await last.end()


async def test_a_node_that_is_lost_before_it_let_a_client_in_is_said(apart: Apart) -> None:
    """Between its answer and `attached`: nothing else would end the wait."""
    async with apart.serve() as (a, b), open_talk(a) as first:
        run = (await first.start(**GRACE))["run"]
        lost = apart.hub.watch("post", "links")
        async with open_talk(b) as second:
            await second.say({"type": "gateway", "op": "attach", "run": run})
            await until(lambda: "post" in [packet["op"] for packet in lost])
            apart.hub.lose(a.runs._kit.workplace.home.server)
            refused = await second.event("refused", 2)
            assert (refused["code"], refused["retry_after"]) == ("no-answer", 1)
            await until(lambda: second.code == 1013)
        async with open_talk(b) as third:
            assert (await attach(third, run))["ended"]
            assert (await third.end())["reason"] == "node-lost"


async def test_a_client_is_let_in_once(apart: Apart) -> None:
    """Though the packet that asks for it should come again."""
    async with apart.serve() as (a, b), open_talk(a) as first, open_talk(b) as second:
        run = (await first.start(**GRACE))["run"]
        asked = apart.hub.watch("open", losing=0)
        await attach(second, run)
        node = apart.hub.nodes[a.runs._kit.workplace.home.server]
        assert node._handlers["open"](b.runs._kit.workplace.home.server, asked[0]) == {"found": False}
        assert len(a.stages[run]._viewers) == 1
        await first.stop("kill")
        await second.end()


@pytest.mark.parametrize("limit", [1024, 2**25])
@pytest.mark.parametrize("text", ["", "x" * 100, b"\0", "x" * 2**18], ids=["nothing", "short", "no text", "long"])
async def test_what_a_client_says_is_bounded_whatever_it_says(text: str | bytes, limit: int) -> None:
    """It may fill no node with packets, of many bytes or without; what was heard counts no more."""
    hub = Hub()
    relays = Far(Node(hub, "b"), Mock(), limit)
    peer, guest = Mock(), Mock()
    guest.facts.return_value = {}
    relay = relays.relay("a", peer, guest, Attach("r", 0))
    size = len(text if isinstance(text, str) else "") + PACKET_SIZE
    most = min(far.MESSAGES_MOST, far.MESSAGES * max(limit, HEARD_SIZE) // size)
    for _ in range(most):
        relay.say(text)
    peer.drop.assert_not_called()
    there = FarPeer(Link(Mock(), "b", relay.link.name), [], lambda: 0)
    for _ in range(most):
        there.hear(text if isinstance(text, str) else None)
    for told in there.link._control.tell.call_args_list:
        relay.hear(told.args[1])
    assert (relay._said, relay._messages) == (there._heard, there._messages)
    relay._said = relay._messages = 0
    for _ in range(most + 1):
        relay.say(text)
    peer.drop.assert_called_once()
