"""Rule: a client that comes back gets each line exactly once, in order; what it can't get is said; nobody else comes in."""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
from harness import Backend, call, directive, until
from returns import GRACE, attach, dropped, leave, numbered, orphaned, reset
from talk import Talk, open_talk
from trio_websocket import ConnectionClosed, open_websocket_url

from trio_claude import past
from trio_claude.errors import Reason
from trio_claude.journal import Part, PartKind
from trio_claude.stage import ENTRIES, LOOSE, Replay, Stage
from trio_claude.turns import LINES


def behind(talk: Talk, text: str) -> list[int]:
    """Return behind which lines stderr said something."""
    return [frame["after"] for frame in talk.frames if frame.get("line") == text]


async def test_the_last_lines_of_a_run_wait_for_who_may_come_back(fake: Backend) -> None:
    """For longer than a write may stand still: more than is kept is in the pipe still, and the CLI has ended."""
    lines = directive("lines", n=2, size=10) + directive("lines", n=1100, size=100, rate=3000) + directive("exit")
    async with fake.serve(send_timeout=1.0, replay_bytes=65536) as server:
        async with open_talk(server) as first:
            started = await first.start(**GRACE)
            await first.user(lines)
            await first.next(lambda frame: frame["type"] == "fake")
            seen = numbered(first)
            await leave(first)
            await orphaned(server, started["run"])
        await trio.sleep(3)
        async with open_talk(server) as second:
            await attach(second, started["run"], len(seen))
            ended = await second.event("ended")
            both = [json.loads(line) for line in seen + numbered(second)]
    assert (ended["reason"], ended["lines"]) == ("exit", len(both))
    assert sum(line["type"] == "fake" for line in both) == 1102


@pytest.mark.parametrize("how", ["lost", "detached"])
@pytest.mark.parametrize("limit", ["connections_per_identity", "connections_per_address", "max_connections"])
async def test_who_has_left_takes_no_place_from_who_comes_back(fake: Backend, how: str, limit: str) -> None:
    async with fake.serve_known("ann", **{limit: 1}) as (server, keys):
        async with open_talk(server, keys["ann"]) as first:
            started = await first.start(**GRACE)
            await first.user("hello")
            await first.result()
            if how == "lost":
                await leave(first)
            else:
                await first.say({"type": "gateway", "op": "detach"})
            await orphaned(server, started["run"])
        await until(lambda: not server._entrance.inside)
        with trio.fail_after(5):
            async with open_talk(server, keys["ann"]) as second:
                assert (await attach(second, started["run"], 0))["role"] == "owner"


@pytest.mark.parametrize("journal", ["none", "memory"])
async def test_a_client_that_comes_back_gets_the_rest(fake: Backend, journal: str) -> None:
    async with fake.serve(journal=journal) as server:
        async with open_talk(server) as first:
            started = await first.start(**GRACE, partial=True)
            await first.user(directive("slow", n=40, ms=20))
            await first.next(lambda frame: frame["type"] == "stream_event", 10)
            seen = numbered(first)
            await leave(first)
            await orphaned(server, started["run"])
            async with open_talk(server) as second:
                told = await attach(second, started["run"], len(seen))
                assert (told["role"], told["from"], told["pending"]) == ("owner", len(seen) + 1, [])
                await second.result()
                await second.user("hello")
                await second.result()
                await second.stop("end")
                ended = await second.event("ended")
                assert ended["reason"] == "exit"
                assert ended["lines"] == len(seen) + len(numbered(second))
    (run,) = fake.ended
    assert run.outcome.receipt.survivors == 0


async def test_who_comes_back_before_its_first_turn_pays_for_that_once(fake: Backend) -> None:
    async with fake.serve(prompts_per_minute=1.0) as server:
        async with open_talk(server) as first:
            run = (await first.start(**GRACE))["run"]
            await leave(first)
            await orphaned(server, run)
        async with open_talk(server) as second:
            assert (await attach(second, run))["role"] == "owner"
            await second.user("hello")
            assert (await second.next(lambda frame: frame["type"] == "result" or "code" in frame))["type"] == "result"
            await second.user("more")
            assert (await second.event("refused"))["code"] == "rate"


async def test_a_client_that_does_not_come_back_in_time_ends_its_run(fake: Backend) -> None:
    async with fake.serve() as server:
        async with open_talk(server) as talk:
            await talk.start(on_disconnect={"grace": 0.3})
            await talk.user(directive("silent"))
            await leave(talk)
            await trio.sleep(0.15)
            assert not fake.ended
            await until(lambda: bool(fake.ended))
    (run,) = fake.ended
    assert run.outcome.reason is Reason.DISCONNECTED
    assert run.outcome.receipt.survivors == 0
    await until(lambda: not fake.left())


async def test_without_grace_leaving_ends_the_run(fake: Backend) -> None:
    async with fake.serve() as server:
        async with open_talk(server) as talk:
            started = await talk.start()
            await talk.user(directive("silent"))
            await talk.say({"type": "gateway", "op": "detach"})
            assert (await talk.event("refused"))["code"] == "not-allowed"
            await leave(talk)
            await until(lambda: bool(fake.ended))
        async with open_talk(server) as talk:
            await talk.say({"type": "gateway", "op": "attach", "run": started["run"]})
            assert (await talk.event("refused"))["code"] == "not-open"


async def test_a_client_can_leave_and_be_gone(fake: Backend) -> None:
    async with fake.serve() as server:
        async with open_talk(server) as first:
            started = await first.start(**GRACE)
            await first.user("hello")
            await first.result()
            await first.say({"type": "gateway", "op": "detach"})
            await until(lambda: first.code == 1000)
            assert first.reason == "detached"
        async with open_talk(server) as second:
            await attach(second, started["run"], len(numbered(first)))
            await second.say({"type": "gateway", "op": "detach"})
            await until(lambda: second.code == 1000)
            assert second.reason == "detached"
        assert not fake.ended
        async with open_talk(server) as third:
            await attach(third, started["run"])
            await until(lambda: len(numbered(third)) == len(numbered(first)))
            await third.stop("kill")
            assert (await third.event("ended"))["reason"] == "stopped"


async def test_viewers_see_everything_and_touch_nothing(fake: Backend) -> None:
    async with fake.serve() as server, open_talk(server) as owner:
        started = await owner.start(**GRACE)
        await owner.user("hello")
        await owner.result()
        async with open_talk(server) as early, open_talk(server) as late:
            assert (await attach(early, started["run"]))["role"] == "viewer"
            await owner.user(directive("slow", n=20, ms=10))
            await owner.result()
            assert (await attach(late, started["run"], 1))["role"] == "viewer"
            for viewer in (early, late):
                await viewer.stop("kill")
                assert (await viewer.event("refused"))["code"] == "not-allowed"
                await viewer.user("mine")
                assert (await viewer.event("refused"))["code"] == "not-allowed"
            await owner.stop("end")
            for talk in (owner, early, late):
                assert (await talk.event("ended"))["reason"] == "exit"
                await until(lambda talk=talk: talk.code == 1000)
            assert numbered(early) == numbered(owner)
            assert numbered(late) == numbered(owner)[1:]


async def test_a_run_that_a_bug_ends_lets_nobody_wait(fake: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise LookupError("a bug")

    async with fake.serve() as server, open_talk(server) as first:
        started = await first.start(**GRACE)
        await first.user("hello")
        await first.result()
        await leave(first)
        await orphaned(server, started["run"])
        async with open_talk(server) as owner, open_talk(server) as viewer:
            assert (await attach(owner, started["run"]))["role"] == "owner"
            assert (await attach(viewer, started["run"]))["role"] == "viewer"
            monkeypatch.setattr("trio_claude.telling.Teller.hear", fail)
            await owner.user("hello")
            await until(lambda: (owner.code, viewer.code) == (1011, 1011))
    (ended,) = fake.ended
    assert ended.outcome.reason is Reason.FAILED


async def test_a_viewer_that_leaves_is_nobodys_loss(fake: Backend) -> None:
    async with fake.serve() as server, open_talk(server) as owner:
        started = await owner.start()
        async with open_talk(server) as viewer:
            await attach(viewer, started["run"])
            await leave(viewer)
        await owner.user("hello")
        await owner.result()
        stage = server.stages[started["run"]]
        await until(lambda: not stage._viewers)
        await owner.stop("end")
        assert (await owner.event("ended"))["reason"] == "exit"


async def test_a_viewer_that_does_not_read_gets_a_gap(fake: Backend) -> None:
    async with fake.serve() as server, open_talk(server) as owner:
        started = await owner.start()
        async with open_websocket_url(
            f"ws://127.0.0.1:{server.port}/ws/session", max_message_size=2**27, message_queue_size=1
        ) as slow:
            await slow.get_message()
            await slow.send_message(json.dumps({"type": "gateway", "op": "attach", "run": started["run"]}))
            await owner.user(directive("lines", n=6000, size=4000))
            await owner.result(60)
            frames = []
            await owner.stop("end")
            await owner.event("ended")
            with trio.fail_after(20):
                try:
                    while True:
                        frames.append(json.loads(await slow.get_message()))
                except ConnectionClosed:
                    pass
            gaps = [frame for frame in frames if frame.get("event") == "gap"]
            assert gaps
            assert frames[-1]["event"] == "ended"
            number = 0
            for frame in frames:
                if frame.get("event") == "gap":
                    assert frame["from"] == number + 1
                    number = frame["to"]
                elif frame["type"] != "gateway":
                    number += 1
            assert number == frames[-1]["lines"]
            await slow._stream.aclose()


@pytest.mark.parametrize("answer", ["allow", "deny"])
async def test_an_open_approval_is_shown_again(fake: Backend, answer: str) -> None:
    async with fake.serve() as server:
        async with open_talk(server) as first:
            started = await first.start(**GRACE)
            await first.user(directive("bash", cmd="touch x"))
            asked = await first.asked()
            seen = len(numbered(first))
            await leave(first)
            await orphaned(server, started["run"])
        async with open_talk(server) as second:
            told = await attach(second, started["run"], seen)
            ((pending),) = told["pending"]
            assert pending["n"] <= seen
            assert json.loads(pending["line"])["request_id"] == asked["request_id"]
            more = {"message": "no"} if answer == "deny" else {}
            await second.answer(asked["request_id"], behavior=answer, **more)
            await second.result()
            await second.stop("end")
            await second.event("ended")


async def test_who_is_ahead_of_the_run_is_told_where_it_is(fake: Backend) -> None:
    async with fake.serve() as server, open_talk(server) as owner:
        started = await owner.start(**GRACE)
        await owner.user("hello")
        await owner.result()
        async with open_talk(server) as talk:
            await talk.say({"type": "gateway", "op": "attach", "run": started["run"], "after": 1000})
            refused = await talk.event("refused")
            assert (refused["code"], refused["last"]) == ("ahead", len(numbered(owner)))
        await owner.stop("kill")
        await owner.event("ended")


async def test_an_owner_can_be_replaced_by_its_own_identity(fake: Backend) -> None:
    """A connection that is dead without anybody's knowing must not keep its client out."""
    async with fake.serve() as server, open_talk(server) as first:
        started = await first.start()
        await first.user("hello")
        await first.result()
        async with open_talk(server) as second:
            told = await attach(second, started["run"], len(numbered(first)), **{"as": "owner"})
            assert told["role"] == "owner"
            await until(lambda: first.code is not None)
            assert (first.code, first.reason) == (1000, "another connection has taken over")
            await second.user("hello")
            await second.result()
            await second.stop("end")
            assert (await second.event("ended"))["reason"] == "exit"


async def test_an_owner_that_is_replaced_while_it_is_being_given_lines_is_told_so(fake: Backend) -> None:
    """And is not cut off, as by a network: it would come back, and take the place of who took its own."""
    url = "ws://127.0.0.1:{}/ws/session"
    async with (
        fake.serve(journal="memory") as server,
        open_websocket_url(url.format(server.port), message_queue_size=1) as first,
    ):
        await first.send_message(json.dumps({"type": "gateway", "op": "start", "meta": "T"}))
        while (frame := json.loads(await first.get_message())).get("event") != "started":
            pass
        content = directive("lines", n=20_000, size=1000)
        await first.send_message(json.dumps({"type": "user", "message": {"role": "user", "content": content}}))
        await trio.sleep(0.5)  # its window is full, and a write waits
        async with open_talk(server) as second:
            assert (await attach(second, frame["run"], **{"as": "owner"}))["role"] == "owner"
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    await first.get_message()
            assert closed.value.reason.code == 1000
            assert closed.value.reason.reason == "another connection has taken over"
            await first._stream.aclose()
            await second.result(20)
            assert len([line for line in second.lines() if line["type"] == "fake"]) == 20_000
            await second.stop("kill")


async def test_who_was_away_when_its_place_was_taken_does_not_take_it_back(fake: Backend) -> None:
    """As if it had been there; it may lead again where nobody does, and any other client as before."""
    owns = {"as": "owner", "client": "first"}
    async with fake.serve(journal="memory") as server, open_talk(server) as first, open_talk(server) as again:
        run = (await first.start(**GRACE))["run"]
        await first.say({"type": "gateway", "op": "detach"})
        await until(lambda: first.code is not None)
        await attach(again, run, **owns)
        await again.socket.aclose()
        async with open_talk(server) as second, open_talk(server) as late:
            assert (await attach(second, run, **{"as": "owner", "client": "second"}))["role"] == "owner"
            await late.say({"type": "gateway", "op": "attach", "run": run, "after": 0, **owns})
            await until(lambda: late.code is not None)
            assert (late.code, late.reason) == (1000, "another connection has taken over")
            await second.user("hello")
            await second.result()
            await second.say({"type": "gateway", "op": "detach"})
            await until(lambda: second.code is not None)
        async with open_talk(server) as last:
            assert (await attach(last, run, **owns))["role"] == "owner"
            await last.stop("kill")
            await last.end()


async def test_who_comes_back_is_told_how_many_of_its_messages_were_heard(fake: Backend) -> None:
    async with fake.serve() as server:
        async with open_talk(server) as first:
            started = await first.start(**GRACE)
            await first.user("hello")
            await first.say("no JSON at all")
            await first.event("refused")
            await first.result()
            seen = len(numbered(first))
            await leave(first)
            await orphaned(server, started["run"])
        async with open_talk(server) as second:
            await second.say({"type": "gateway", "op": "attach", "run": started["run"], "after": seen})
            await second.user(directive("text", text="said before the attach was answered"))
            assert (await second.event("attached"))["heard"] == 2
            assert "said before" in (await second.result())["result"]
            await second.stop("kill")
            await second.event("ended")


async def test_a_run_that_ended_meanwhile_is_told_to_its_end(fake: Backend) -> None:
    async with fake.serve_known("alice", "bob", "vera/viewer", journal="memory") as (server, keys):
        async with open_talk(server, keys["alice"]) as first:
            run = (await first.start())["run"]
            await first.user(directive("stderr", text="oh", n=2))
            await first.result()
            await first.stop("end")
            ended = await first.event("ended")
            await until(lambda: first.code is not None)
        for name, after in (("alice", 0), ("alice", 2), ("vera", ended["lines"])):
            async with open_talk(server, keys[name]) as second:
                told = await attach(second, run, after)
                assert (told["role"], told["ended"], told["from"]) == ("viewer", True, after + 1)
                assert await second.event("ended") == ended
                await until(lambda second=second: second.code is not None)
                assert (second.code, second.reason) == (first.code, first.reason)
                assert numbered(second) == numbered(first)[after:]
                assert behind(second, "oh") == [place for place in behind(first, "oh") if place >= after]
        async with open_talk(server, keys["alice"]) as ahead:
            await ahead.say({"type": "gateway", "op": "attach", "run": run, "after": ended["lines"] + 1})
            assert (await ahead.event("refused"))["last"] == ended["lines"]
        async with open_talk(server, keys["bob"]) as bob:
            await bob.say({"type": "gateway", "op": "attach", "run": run})
            assert (await bob.event("refused"))["code"] == "not-open"


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("receipt", '{"seen":3,"killed":0,"survivors":0,"ms":1.5,"containment":"jail","cpu":2}', {"reason": "exit"}),
        ("receipt", '{"counted":3}', {"reason": "exit"}),
        ("reason", "hibernated", {"reason": "failed", "error": "it ended as only a newer server knows: hibernated"}),
    ],
)
async def test_an_end_that_a_newer_version_has_stored_is_told(
    fake: Backend, column: str, value: str, told: dict[str, str]
) -> None:
    async with fake.serve(journal="memory") as server:
        async with open_talk(server) as first:
            run = (await first.start(**GRACE))["run"]
            await first.user("hello" + directive("exit"))
            receipt = (await first.end())["receipt"]
        assert server.runs.journal
        assert await server.runs.journal.settle()
        with contextlib.closing(sqlite3.connect(server.runs.journal._store.path)) as db, db:
            db.execute(f"UPDATE runs SET {column} = ?", [value])
        async with open_talk(server) as second:
            await attach(second, run)
            ended = await second.end()
        assert numbered(second) == numbered(first)
        assert {name: ended.get(name) for name in told} == told
        known = {"seen": 3, "killed": 0, "survivors": 0, "ms": 1.5, "containment": "jail"}
        unproven = {"seen": 0, "killed": 0, "survivors": None, "ms": 0, "containment": "none"}
        assert ended["receipt"] == (receipt if column == "reason" else known if "cpu" in value else unproven)
        assert second.code == (1000 if told["reason"] == "exit" else 1011)


async def test_what_the_journal_has_not_of_an_ended_run_is_a_gap(fake: Backend) -> None:
    async with fake.serve(journal="memory", journal_content=False) as server:
        async with open_talk(server) as first:
            run = (await first.start())["run"]
            await first.user("hello")
            await first.result()
            await first.stop("end")
            ended = await first.event("ended")
        async with open_talk(server) as second:
            await attach(second, run)
            gap = await second.event("gap")
            assert (gap["from"], gap["to"]) == (1, ended["lines"])
            assert await second.event("ended") == ended


@pytest.mark.parametrize("grace", [0.0, 0.3])
async def test_who_takes_over_and_leaves_at_once_leaves_no_run_behind(fake: Backend, grace: float) -> None:
    """Whether it has become the owner by then or not."""
    options = {"on_disconnect": {"grace": grace}} if grace else {}
    async with fake.serve() as server, open_talk(server) as first:
        started = await first.start(**options)
        await first.user(directive("lines", n=3000, size=4000))
        async with open_websocket_url(
            f"ws://127.0.0.1:{server.port}/ws/session", message_queue_size=1, disconnect_timeout=0.05
        ) as second:
            await second.get_message()
            message = {"type": "gateway", "op": "attach", "run": started["run"], "as": "owner"}
            await second.send_message(json.dumps(message))
            await until(lambda: first.code is not None)
            await reset(second)
            await second._recv_channel.aclose()  # where it is full, the library's reader would wait for room for good
        await until(lambda: bool(fake.ended))
    assert fake.ended[0].outcome.reason is Reason.DISCONNECTED


async def test_what_stderr_said_comes_back_too(fake: Backend) -> None:
    """Also from the journal, and although much that the client said stands before it there."""
    async with fake.serve(journal="memory", replay_bytes=1024) as server:
        async with open_talk(server) as first:
            started = await first.start(**GRACE)
            await first.user("x" * 5_000_000)
            await first.result()
            await first.user(directive("stderr", text="oh", n=2))
            await first.result()
            await first.user(directive("lines", n=200, size=500))
            await first.result()
            await leave(first)
            await orphaned(server, started["run"])
        async with open_talk(server) as second:
            await attach(second, started["run"])
            await until(lambda: numbered(second) == numbered(first))
            for talk in (first, second):
                told = [frame for frame in talk.frames if frame.get("event") == "stderr"]
                assert [(frame["line"], frame["after"]) for frame in told] == [("oh", told[0]["after"])] * 2
            assert not [frame for frame in second.frames if frame.get("event") == "gap"]
            await second.stop("kill")
            await second.event("ended")


async def test_who_comes_back_and_leaves_in_one_breath_is_no_owner(fake: Backend) -> None:
    async with fake.serve() as server:
        async with open_talk(server) as first:
            run = (await first.start(on_disconnect={"grace": 0.5}))["run"]
            await leave(first)
            await orphaned(server, run)
        async with open_talk(server) as second:
            attach = json.dumps({"type": "gateway", "op": "attach", "run": run, "after": 0})
            frames = [attach, '{"type":"gateway","op":"detach"}']
            data = b"".join(bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text.encode() for text in frames)
            await second.socket._stream.send_all(data)
            await until(lambda: second.code == 1000)
            assert not server.stages[run].owned
        await until(lambda: bool(fake.ended))


async def test_a_viewer_waits_for_no_slot_and_is_watched(fake: Backend) -> None:
    async with fake.serve_known("alice", "vera/viewer", max_runs=1) as (server, keys):
        async with open_talk(server, keys["alice"]) as owner:
            run = (await owner.start(**GRACE))["run"]
            async with open_talk(server, keys["vera"]) as starts:
                await starts.say({"type": "gateway", "op": "start", "meta": "T"})
                assert (await starts.event("refused"))["code"] == "not-allowed"
                assert not [frame for frame in starts.frames if frame.get("event") == "queued"]
            async with open_talk(server, keys["vera"]) as viewer:
                await attach(viewer, run)
                path = fake.cwd.parent / "keys.json"
                kept = json.loads(path.read_text())
                del kept["vera"]
                path.write_text(json.dumps(kept))
                await until(lambda: viewer.code is not None)
                assert viewer.code == 1008
            await owner.stop("kill")
            await owner.event("ended")


async def test_a_journal_that_is_gone_costs_no_connection(fake: Backend, tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    async with fake.serve(journal=f"sqlite:{path}") as server:
        async with open_talk(server) as first:
            started = await first.start()
            await first.user("hello")
            await first.result()
            await first.stop("end")
            await first.event("ended")
        for file in tmp_path.glob("j.db*"):
            file.unlink()
        async with open_talk(server) as second:
            await second.start(resume=started["session"])
            await second.user("hello")
            await second.result()
            await second.stop("kill")
            await second.event("ended")
        async with open_talk(server) as third:
            await third.say({"type": "gateway", "op": "attach", "run": started["run"]})
            refused = await third.event("refused")
            assert (refused["code"], refused["retry_after"]) == ("journal", 1)
            await until(lambda: third.code == 1013)
        for route in ("/api/runs", f"/api/runs/{started['run']}", "/api/usage"):
            status, headers, body = await call(server, route)
            assert (status, json.loads(body)["code"], headers["retry-after"]) == (503, "journal", "1")


async def test_nobody_else_comes_in(fake: Backend) -> None:
    async with fake.serve_known("alice", "bob", "vera/viewer") as (server, keys):
        async with open_talk(server, keys["alice"]) as owner:
            started = await owner.start(**GRACE)
            async with open_talk(server, keys["bob"]) as bob:
                await bob.say({"type": "gateway", "op": "attach", "run": started["run"]})
                refused = await bob.event("refused")
                assert (refused["code"], refused["error"]) == (
                    "not-open",
                    f"there is no run {started['run']} to come back to",
                )
                await until(lambda: bob.code == 1008)
            await owner.stop("kill")
            await owner.event("ended")


async def test_a_run_without_its_client_waits_where_much_is_to_be_kept(fake: Backend) -> None:
    async with fake.serve(replay_bytes=50_000) as server:
        async with open_talk(server) as first:
            started = await first.start(**GRACE)
            await leave(first)
            await orphaned(server, started["run"])
        stage = server.stages[started["run"]]
        async with open_talk(server) as second:
            await attach(second, started["run"])
            await second.user(directive("lines", n=3000, size=4000))
            await second.next(lambda frame: frame["type"] not in ("gateway", "system"))
            await leave(second)
            await orphaned(server, started["run"])
        await trio.sleep(0.3)
        size, number = stage._replay.size, stage.number
        await trio.sleep(0.3)
        assert stage._replay.size == size < 50_000 * 2 + 3 * 65536
        assert stage.number == number
        async with open_talk(server) as third:
            await attach(third, started["run"], number)
            await third.result(30)
            await third.stop("kill")
            await third.event("ended")


async def test_forced_drops_lose_nothing_and_repeat_nothing(fake: Backend, long: bool) -> None:
    """Resets at random places of a stream of numbered lines: what was got is 1, 2, 3 … to the end."""
    rng = random.Random(20261127)
    drops = 10_000 if long else 60
    async with fake.serve(journal="memory", replay_bytes=200_000, timeout=3600.0) as server:
        done = 0
        while done < drops:
            async with open_talk(server) as talk:
                started = await talk.start(**GRACE)
                await talk.user(directive("lines", n=40_000, size=60))
                await talk.next(lambda frame: frame["type"] == "system")
                got = numbered(talk)
                await reset(talk.socket)
            while done < drops:
                done += 1
                stages = server.stages
                if started["run"] not in stages:
                    break
                first = {"type": "gateway", "op": "attach", "run": started["run"], "after": len(got), "as": "owner"}
                async with dropped(server, first, rng) as lines:
                    got += [json.dumps(json.loads(line)) for line in lines]
                if got and '"type": "result"' in got[-1]:
                    break
            async with open_talk(server) as talk:
                await attach(talk, started["run"], len(got), **{"as": "owner"})
                if not (got and '"type": "result"' in got[-1]):
                    await talk.result(30)
                got += numbered(talk)
                assert not [frame for frame in talk.frames if frame.get("event") == "gap"]
                await talk.stop("kill")
                await talk.event("ended")
            assert server.runs.journal
            await server.runs.journal.settle()
            parts, stored, beyond = [], [], 0
            while parts := await server.runs.journal.parts(started["run"], 0, beyond):
                stored += [line.decode() for part in parts if part.kind == 0 for line in part.lines]
                beyond = parts[-1].number
            assert [json.loads(line) for line in got] == [json.loads(line) for line in stored]


class Pages:
    """A journal that has these parts of every run."""

    def __init__(self, *parts: Part) -> None:
        self._parts = parts

    async def parts(self, _run: str, after: int, beyond: int) -> list[Part]:
        return [part for part in self._parts if part.number > beyond and part.last >= after]


class Ear:
    """A peer that takes so much time for its first lines that a run goes on meanwhile."""

    def __init__(self, go_on: Callable[[], None]) -> None:
        self.heard: list[bytes] = []
        self.told: list[str] = []
        self.post = self.told.append
        self._go_on = go_on

    async def send(self, lines: list[bytes]) -> None:
        self.heard += lines
        self._go_on()
        self._go_on = lambda: None


def spoken(first: int, last: int) -> list[bytes]:
    return [b"%d" % number for number in range(first, last + 1)]


@pytest.mark.parametrize("kept", range(1, 30))
async def test_who_catches_up_misses_nothing_that_is_kept_no_more_meanwhile(kept: int) -> None:
    """A part of the journal can be longer than what is wanted of it, until more of it is."""
    parts = (
        Part(PartKind.LINES, 1, 7, b"\n".join(spoken(1, 7)), number=1),
        Part(PartKind.STDERR, 7, 1, b"oh", number=2),
        Part(PartKind.LINES, 8, 13, b"\n".join(spoken(8, 20)), number=3),
        Part(PartKind.LINES, 21, 10, b"\n".join(spoken(21, 30)), number=4),
    )

    def say(upto: int) -> None:
        for number in range(stage.number + 1, upto + 1):
            stage._replay.add(spoken(number, number), numbered=True)
        stage._replay.forget(0, stage._replay.end - 1)

    ear = Ear(lambda: say(31))
    stage = Stage(SimpleNamespace(id="r"), ear, lambda: None, 0, 0, Pages(*parts))  # type: ignore[arg-type] - stand-ins
    say(kept)
    await stage._catch_up(ear, 0)  # type: ignore[arg-type] - a stand-in
    assert [line for line in ear.heard if line.isdigit()] == spoken(1, 31)
    assert len(ear.heard) == 32
    assert not ear.told


@pytest.mark.parametrize("limit", range(1, 12))
@pytest.mark.parametrize("said", range(8, 14))
async def test_what_stderr_said_before_the_first_line_that_is_kept_is_told(limit: int, said: int) -> None:
    """It is kept, or the line behind it is not and all is in the journal."""
    parts = (
        Part(PartKind.LINES, 1, 7, b"\n".join(spoken(1, 7)), number=1),
        Part(PartKind.STDERR, 7, 2, b"o\nh", number=2),
        Part(PartKind.LINES, 8, 6, b"\n".join(spoken(8, 13)), number=3),
    )
    ear = Ear(lambda: None)
    stage = Stage(SimpleNamespace(id="r"), ear, lambda: None, 0, 0, Pages(*parts))  # type: ignore[arg-type] - stand-ins
    for number in range(1, said + 1):
        stage._replay.add(spoken(number, number), numbered=True)
        if number == 7:
            stage._replay.add([b"o"], numbered=False)
            stage._replay.add([b"h"], numbered=False)
        stage._replay.forget(limit, stage._replay.end)
        assert stage._replay.size <= 2 * limit
    await stage._catch_up(ear, 0)  # type: ignore[arg-type] - a stand-in
    assert [line for line in ear.heard if line.isdigit()] == spoken(1, said)
    assert len(ear.heard) == said + 2


class Deaf(Ear):
    """A peer that takes nothing."""

    far = False

    async def send(self, lines: list[bytes]) -> None:
        self.heard += lines
        await trio.sleep_forever()


async def test_who_is_replaced_holds_up_neither_stdout_nor_stderr() -> None:
    first, second = Deaf(lambda: None), Ear(lambda: None)
    second.far = False
    run = SimpleNamespace(id="r", recorded=False)
    stage = Stage(run, first, lambda: None, 60, 1000, None)  # type: ignore[arg-type] - stand-ins
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.lines, [b"1"])
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(stage.stderr_lines, ["oh"])
            await trio.testing.wait_all_tasks_blocked()
            assert len(first.heard) == 2
            await stage.own(second, lambda: None, 0)  # type: ignore[arg-type] - a stand-in
    assert second.heard[0] == b"1"


def test_a_replay_is_bounded_and_numbered() -> None:
    replay = Replay()
    for number in range(10):
        replay.add([b"x" * 10, b"y" * 10], numbered=True)
        replay.add([b"oh"], numbered=False)
        assert replay.number == 2 * number + 2
    assert (replay.begin, replay.end, replay.first) == (0, 20, 1)
    assert replay.index(0) == 0
    assert replay.index(2) == 1
    assert replay.index(20) == 19
    replay.forget(50, 20)
    assert replay.size <= 50
    assert replay.first == 17
    replay.forget(0, 19)
    assert replay.end == 20


async def test_of_very_many_lines_some_are_told_again_at_a_time() -> None:
    """So that others have their turn in between, whether they are kept or stored."""
    sizes: list[int] = []

    class Counting(Ear):
        async def send(self, lines: list[bytes]) -> None:
            sizes.append(len(lines))

    part = Part(PartKind.LINES, 1, 2 * LINES + 1, b"\n" * (2 * LINES), number=1)
    ear: Any = Counting(lambda: None)
    assert await past.tell(ear, [part], 0, 2 * LINES + 1) == 2 * LINES + 1
    assert sizes == [LINES, LINES, 1]
    stage = Stage(SimpleNamespace(id="r"), ear, lambda: None, 0, 0, None)  # type: ignore[arg-type] - a stand-in
    stage._replay.add([b""] * (2 * LINES + 2), numbered=True)
    await stage._catch_up(ear, 0)
    assert sizes[3:] == [LINES, LINES, 2]


def test_lines_without_a_word_are_not_kept_without_end() -> None:
    replay = Replay()
    for _ in range(100):
        replay.add([b""] * 100, numbered=True)
        replay.forget(1000, replay.end)
    assert replay.end - replay.begin <= 10
    assert not replay.has_room(0, 900)


@pytest.mark.parametrize("loose", range(3))
def test_what_is_kept_is_bounded_by_number_too(loose: int) -> None:
    """However little is said at a time, on stdout or on stderr."""
    replay = Replay()
    for _ in range(ENTRIES // 2):
        for number in range(3):
            replay.add([b"x"], numbered=number >= loose)
        replay.forget(2**30, replay.end)
    assert ENTRIES - 3 <= replay.end - replay.begin <= ENTRIES + LOOSE
    assert not replay.has_room(0, 2**30)
    assert replay.has_room(replay.end - ENTRIES // 2, 2**30)


def test_of_stderr_alone_no_more_is_kept_than_twice_as_much() -> None:
    replay = Replay()
    for _ in range(3 * ENTRIES):
        replay.add([b"x"], numbered=False)
        replay.forget(2**30, replay.end)
    assert replay.end - replay.begin == 2 * ENTRIES
