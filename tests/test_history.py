"""Rule: what the API tells of a run is what its client saw; of another's it tells nothing."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time

import pytest
from harness import Backend, ask, call, connect, directive, get, until
from redis_server import RedisServer
from talk import open_talk

from trio_claude.errors import Reason
from trio_claude.journal import Deleted, Part, backlog, recorder
from trio_claude.server import Server


async def settled(server: Server) -> None:
    assert server.runs.journal
    assert await server.runs.journal.settle()


async def test_runs_are_listed_shown_and_read(fake: Backend) -> None:
    began = time.time()
    async with fake.serve(journal="memory") as server:
        said = await ask(server, directive("stderr", text="oh", n=2), "?frames=verbatim", model="claude-haiku-5-5")
        await ask(server, "hello")
        await settled(server)
        listed = await get(server, "/api/runs")
        assert [run["reason"] for run in listed["runs"]] == ["exit", "exit"]
        assert listed["next"] is None
        assert "prompt" not in listed["runs"][0]
        run = listed["runs"][1]["id"]
        shown = await get(server, f"/api/runs/{run}")
        assert shown["prompt"] == directive("stderr", text="oh", n=2)
        assert shown["options"] == {"model": "claude-haiku-5-5"}
        assert shown["receipt"]["survivors"] == 0
        assert began <= shown["started"] <= shown["ended"] <= time.time()
        status, headers, body = await call(server, f"/api/runs/{run}/lines")
        assert (status, headers["content-type"]) == (200, "application/x-ndjson")
        told = [json.loads(line) for line in body.splitlines()]
        lines = [frame for frame in said.frames if "type" in json.loads(frame)]
        assert [one["line"] for one in told if "n" in one] == lines
        assert [one["n"] for one in told if "n" in one] == list(range(1, len(lines) + 1))
        assert [one["stderr"] for one in told if "stderr" in one] == ["oh", "oh"]
        later = [json.loads(line) for line in (await call(server, f"/api/runs/{run}/lines?after=1"))[2].splitlines()]
        assert [one["n"] for one in later if "n" in one] == list(range(2, len(lines) + 1))
        used = (await get(server, "/api/usage"))["usage"]
        assert [(row["identity"], row["runs"], row["turns"]) for row in used] == [("local", 2, 2)]
        assert used[0]["dollars"] > 0


async def test_what_a_client_said_is_kept_behind_its_line(fake: Backend) -> None:
    async with fake.serve(journal="memory") as server:
        async with open_talk(server) as talk:
            started = await talk.start()
            assert started["history"] is True
            for word in ("one", "two"):
                await talk.user(word)
                await talk.result()
            await talk.stop("end")
            await talk.event("ended")
        await until(lambda: bool(fake.ended))
        await settled(server)
        _, _, body = await call(server, f"/api/runs/{started['run']}/lines")
        told = [json.loads(line) for line in body.splitlines()]
        said = [(one["after"], json.loads(one["in"])["message"]["content"]) for one in told if "in" in one]
        results = [one["n"] for one in told if "n" in one and '"type":"result"' in one["line"]]
        assert said == [(0, "one"), (results[0], "two")]
        shown = await get(server, f"/api/runs/{started['run']}")
        assert (shown["door"], shown["session"]) == ("session", started["session"])


async def test_where_no_content_is_kept_a_session_is_told_so(fake: Backend) -> None:
    async with fake.serve(journal="memory", journal_content=False) as server, open_talk(server) as talk:
        assert (await talk.start())["history"] is False
        await talk.user("hello")
        await talk.result()
        await talk.stop("end")
        await talk.event("ended")
        assert not [frame for frame in talk.frames if frame.get("event") == "history"]


async def test_what_is_nested_deeply_is_kept_and_shown(fake: Backend) -> None:
    async with fake.serve(journal="memory") as server:
        for depth in (400, 700, 900):
            schema = {}
            for _ in range(depth):
                schema = {"a": schema}
            said = await ask(server, "hello", json_schema=schema)
            assert said.code in (1000, 1008)
            await settled(server)
        for run in (await get(server, "/api/runs"))["runs"]:
            shown = await get(server, f"/api/runs/{run['id']}")
            assert shown["options"]["json_schema"]["a"]


async def test_pages_and_filters(fake: Backend) -> None:
    async with fake.serve(journal="memory") as server:
        for _ in range(5):
            await ask(server, "hello")
        await settled(server)
        first = await get(server, "/api/runs?limit=2")
        second = await get(server, f"/api/runs?limit=2&before={first['next']}")
        third = await get(server, f"/api/runs?limit=2&before={second['next']}")
        assert [len(page["runs"]) for page in (first, second, third)] == [2, 2, 1]
        assert third["next"] is None
        assert len({run["id"] for page in (first, second, third) for run in page["runs"]}) == 5
        assert not (await get(server, "/api/runs?meta=OTHER"))["runs"]
        assert not (await get(server, f"/api/runs?since={time.time() + 10}"))["runs"]
        assert len((await get(server, "/api/runs?state=ended&meta=TEST-1"))["runs"]) == 5


async def test_a_page_behind_a_deleted_run_is_refused_and_not_empty(fake: Backend) -> None:
    async with fake.serve(journal="memory") as server:
        for _ in range(3):
            await ask(server, "hello")
        await settled(server)
        page = await get(server, "/api/runs?limit=2")
        assert (await call(server, f"/api/runs/{page['next']}", method="DELETE"))[0] == 200
        status, _, body = await call(server, f"/api/runs?before={page['next']}")
        assert (status, json.loads(body)["error"][:7]) == (404, "before:")
        older = await get(server, f"/api/runs?until={page['runs'][-1]['started']!r}")
        assert len(older["runs"]) == 1


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/api/runs?state=dead", 400, "bad-query"),
        ("/api/runs?limit=0", 400, "bad-query"),
        ("/api/runs?limit=many", 400, "bad-query"),
        ("/api/runs?else=1", 400, "bad-query"),
        ("/api/runs?limit=1.5", 400, "bad-query"),
        ("/api/runs?limit=", 400, "bad-query"),
        ("/api/runs?limit=1&limit=2", 400, "bad-request"),
        ("/api/runs?before=x", 400, "bad-query"),
        ("/api/runs/abc?after=1", 400, "bad-query"),
        ("/api/runs/abc/lines?after=1_0", 400, "bad-query"),
        ("/api/usage?since=yesterday", 400, "bad-query"),
        ("/api/usage?since=", 400, "bad-query"),
        ("/api/runs?before=abc", 404, "not-found"),
        ("/api/runs/{id}", 404, "not-found"),
        ("/api/runs/abc", 404, "not-found"),
        ("/api/runs/abc/lines", 404, "not-found"),
        ("/api/runs/ABC", 404, "not-found"),
        ("/api/runs/../../etc/passwd", 404, "not-found"),
        ("/api/runs/abc/lines/x", 404, "not-found"),
    ],
)
async def test_bad_questions_are_named(fake: Backend, path: str, status: int, code: str) -> None:
    async with fake.serve(journal="memory") as server:
        got, _, body = await call(server, path)
        assert (got, json.loads(body)["code"]) == (status, code)


@pytest.mark.parametrize("query", ["?meta=OTHER", "?state=gone", "?meta="])
async def test_a_deletion_that_asks_for_a_part_deletes_nothing(fake: Backend, query: str) -> None:
    async with fake.serve(journal="memory") as server:
        await ask(server, "hello")
        await settled(server)
        status, _, body = await call(server, f"/api/runs{query}", method="DELETE")
        assert (status, json.loads(body)["code"]) == (400, "bad-query")
        (run,) = (await get(server, "/api/runs"))["runs"]
        assert (await call(server, f"/api/runs/{run['id']}{query}", method="DELETE"))[0] == 400
        assert len((await get(server, "/api/runs"))["runs"]) == 1


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/api/runs", "GET, DELETE, HEAD"), ("/api/runs/abc", "GET, DELETE, HEAD"), ("/api/runs/abc/lines", "GET, HEAD"),
        ("/api/usage", "GET, HEAD"), ("/", "GET, HEAD"), ("/healthz", "GET, HEAD"), ("/api/ticket", "POST"),
    ],
)  # fmt: skip
async def test_a_refused_method_hears_which_there_are(fake: Backend, path: str, allowed: str) -> None:
    async with fake.serve(journal="memory") as server:
        status, headers, _ = await call(server, path, method="PATCH")
        assert (status, headers["allow"]) == (405, allowed)


async def test_without_a_journal_there_is_no_history(fake: Backend) -> None:
    async with fake.serve() as server:
        status, _, body = await call(server, "/api/runs")
        assert (status, json.loads(body)["code"]) == (404, "no-journal")
        assert "can say --journal sqlite" in json.loads(body)["error"]


@pytest.mark.redis
async def test_where_servers_share_none_what_is_advised_is_taken(fake: Backend, redis_server: RedisServer) -> None:
    async with fake.serve(redis=redis_server.url, node_lease=2.0, journal="none") as server:
        _, _, body = await call(server, "/api/runs")
        assert "can say --journal auto" in json.loads(body)["error"]


async def test_each_identity_sees_its_own_and_a_viewer_sees_all(fake: Backend) -> None:
    async with fake.serve_known("alice", "bob", "vera/viewer", "ada/admin", journal="memory") as (server, keys):
        for name in ("alice", "bob"):
            await ask(server, "hello", key=keys[name])
        await settled(server)
        (own,) = (await get(server, "/api/runs", keys["alice"]))["runs"]
        (theirs,) = (await get(server, "/api/runs", keys["bob"]))["runs"]
        assert (own["identity"], theirs["identity"]) == ("key:alice", "key:bob")
        for rest in ("", "/lines"):
            assert (await call(server, f"/api/runs/{theirs['id']}{rest}", keys["alice"]))[0] == 404
            assert (await call(server, f"/api/runs/{theirs['id']}{rest}", keys["vera"]))[0] == 200
        assert (await call(server, f"/api/runs/{theirs['id']}", keys["alice"], "DELETE"))[0] == 404
        assert (await call(server, f"/api/runs/{theirs['id']}", keys["vera"], "DELETE"))[0] == 403
        assert [row["identity"] for row in (await get(server, "/api/usage", keys["alice"]))["usage"]] == ["key:alice"]
        assert len((await get(server, "/api/usage", keys["vera"]))["usage"]) == 2
        assert len((await get(server, "/api/runs", keys["ada"]))["runs"]) == 2
        assert (await call(server, "/api/runs"))[0] == 401
        status, _, body = await call(server, f"/api/runs/{own['id']}", keys["alice"], "DELETE")
        assert (status, json.loads(body)) == (200, {"deleted": 1})
        assert (await call(server, "/api/runs", keys["bob"], "DELETE"))[0] == 200
        assert not (await get(server, "/api/runs", keys["ada"]))["runs"]


async def test_a_live_run_is_listed_and_ended_by_request(fake: Backend) -> None:
    async with fake.serve_known("alice", "bob", journal="memory") as (server, keys):
        async with connect(server, key=keys["alice"]) as socket:
            await socket.send_message(json.dumps({"prompt": directive("silent"), "meta": "T"}))
            await until(lambda: server.runs.statistics().live == 1)
            await settled(server)
            (run,) = (await get(server, "/api/runs?state=live", keys["alice"]))["runs"]
            assert run["reason"] is None
            assert (await call(server, f"/api/runs/{run['id']}", keys["bob"], "DELETE"))[0] == 404
            assert (await call(server, f"/api/runs/{run['id']}", keys["alice"], "DELETE"))[0] == 202
            await until(lambda: bool(fake.ended))
        await settled(server)
        (run,) = (await get(server, "/api/runs", keys["alice"]))["runs"]
        assert run["reason"] == Reason.STOPPED
        assert run["receipt"]["survivors"] == 0


async def test_a_request_that_ends_a_live_run_deletes_none_and_the_other_way_round(fake: Backend) -> None:
    async with fake.serve_known("alice", "bob", journal="memory") as (server, keys):
        alice = keys["alice"]

        async def delete(query: str, key: str = alice) -> tuple[int, str | None]:
            status, _, body = await call(server, f"/api/runs{query}", key, "DELETE")
            return status, json.loads(body).get("code")

        async with connect(server, key=alice) as socket:
            await socket.send_message(json.dumps({"prompt": directive("silent"), "meta": "T"}))
            await until(lambda: server.runs.statistics().live == 1)
            await settled(server)
            (run,) = (await get(server, "/api/runs", alice))["runs"]
            assert await delete(f"/{run['id']}?state=ended") == (409, "live")
            assert await delete(f"/{run['id']}?state=ended", keys["bob"]) == (404, "not-found")
            assert await delete("?state=live") == (400, "bad-query")
            assert await delete(f"/{run['id']}?state=dead") == (400, "bad-query")
            assert await delete(f"/{run['id']}?else=1") == (400, "bad-query")
            assert server.runs.statistics().live == 1
            assert await delete(f"/{run['id']}?state=live") == (202, None)
            await until(lambda: bool(fake.ended))
        await settled(server)
        assert await delete(f"/{run['id']}?state=live") == (409, "not-live")
        assert await delete(f"/{run['id']}?state=live", keys["bob"]) == (404, "not-found")
        assert await delete(f"/{run['id']}?state=ended") == (200, None)
        assert await delete(f"/{run['id']}?state=live") == (404, "not-found")


async def test_lines_of_a_run_that_is_deleted_meanwhile_are_not_at_their_end(
    fake: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fake.serve(journal="memory") as server:
        await ask(server, "hello")
        await settled(server)
        journal = server.runs.journal
        assert journal
        (run,) = (await get(server, "/api/runs"))["runs"]
        path, parts = f"/api/runs/{run['id']}/lines?part=", journal.parts
        status, headers, _ = await call(server, f"{path}0")
        assert status == 200
        assert (await call(server, f"{path}{headers['x-next-part']}"))[0] == 200

        async def late(*words: object) -> list[Part]:
            await journal.delete(None, run["id"])
            return await parts(*words)

        monkeypatch.setattr(journal, "parts", late)
        assert (await call(server, f"{path}{headers['x-next-part']}"))[0] == 404


async def test_transcripts_go_with_what_was_deleted_before_a_deletion_failed(
    fake: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fake.serve(journal="memory") as server:
        for _ in range(3):
            await ask(server, "hello")
        await settled(server)
        store, forgotten, forget = server.runs.journal._store, list[Deleted](), server.runs.forget
        delete = store.delete

        async def note(deleted: list[Deleted], whole: str | None = None) -> None:
            forgotten.extend(deleted)
            await forget(deleted, whole)

        def once(identity: str | None, run: str | None, most: int) -> list[Deleted]:
            monkeypatch.setattr(store, "delete", lambda *_: 1 // 0)
            return delete(identity, run, most)

        monkeypatch.setattr(recorder, "AT_ONCE", 2)
        monkeypatch.setattr(backlog, "PATIENCE", 2)
        monkeypatch.setattr(server.runs, "forget", note)
        monkeypatch.setattr(store, "delete", once)
        status, _, body = await call(server, "/api/runs", method="DELETE")
        assert status == 503
        assert json.loads(body)["error"].endswith("; deleted by then: 2")
        assert len(forgotten) == 2
        monkeypatch.setattr(store, "delete", delete)
        status, _, body = await call(server, "/api/runs", method="DELETE")
        assert (status, json.loads(body)) == (200, {"deleted": 1})
        assert len({one.run for one in forgotten}) == 3


async def test_what_is_wrong_with_the_journal_is_told(fake: Backend) -> None:
    async with fake.serve(journal="memory") as server:
        assert "journal" not in await get(server, "/readyz")
        assert server.runs.journal
        server.runs.journal.fault = "the journal can't be written: x"
        assert (await get(server, "/readyz"))["journal"] == "the journal can't be written: x"


async def test_a_damaged_value_is_told_and_holds_up_nothing_else(fake: Backend) -> None:
    async with fake.serve(journal="memory") as server:
        await ask(server, "hello")
        await settled(server)
        (run,) = (await get(server, "/api/runs"))["runs"]
        assert server.runs.journal
        with contextlib.closing(sqlite3.connect(server.runs.journal._store.path)) as db, db:
            db.execute("UPDATE runs SET receipt = '{'")
        for path in ("/api/runs", f"/api/runs/{run['id']}", f"/api/runs/{run['id']}/lines"):
            status, _, body = await call(server, path)
            assert (status, json.loads(body)["code"]) == (503, "journal")
            assert json.loads(body)["error"].startswith("the journal can't be read: ")
        assert len((await get(server, "/api/usage"))["usage"]) == 1
        await ask(server, "hello")
