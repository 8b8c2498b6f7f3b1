"""Rule: a journal in Redis does as one in SQLite; what Redis has is whole up to a line, and from its run's own server."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from harness import Backend, ask, directive, until
from journals import begun, ended, on_redis, open_history_of, sqlite_in
from program import trio_claude
from redis_server import RedisServer, open_redis_server

from trio_claude.errors import JournalFault, Reason
from trio_claude.journal import Deleted, Journal, PartKind, Query, Retention, UsageQuery, backlog
from trio_claude.nodes import archive, history
from trio_claude.nodes.history import RedisJournal
from trio_claude.nodes.redis import RedisGone, Wire, Word
from trio_claude.nodes.scripts import load

pytestmark = pytest.mark.redis

DAY = 86400.0
REASONS = [reason for reason in Reason if reason is not Reason.NODE_LOST]
"""What a server tells of itself."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "PAUSE", 0.02)


@pytest.fixture
async def journal(redis_server: RedisServer) -> AsyncIterator[RedisJournal]:
    async with open_history_of(redis_server) as opened:
        yield opened


async def lines_of(journal: Journal, run: str) -> list[bytes]:
    """Return all lines of a run, page by page; what is no line of the CLI is left out."""
    lines: list[bytes] = []
    beyond = 0
    while parts := await journal.parts(run, 0, beyond):
        assert [part.number for part in parts] == list(range(beyond + 1, beyond + 1 + len(parts)))
        beyond = parts[-1].number
        for part in parts:
            if part.kind is PartKind.LINES:
                assert part.first == len(lines) + 1
                lines += part.lines
    return lines


def numbered(first: int, count: int) -> list[bytes]:
    return [b"%d" % number for number in range(first, first + count)]


# -- as in SQLite ------------------------------------------------------------------------------------------------------

QUERIES: tuple[dict[str, Any], ...] = (
    {}, {"identity": "key:alice"}, {"identity": ""}, {"meta": "A-1"}, {"batch": "b1"}, {"batch": ""}, {"state": "live"},
    {"state": "ended", "identity": "key:bob"}, {"since": 3.0}, {"until": 3.0}, {"since": 2.0, "until": 5.0, "meta": "A-2"},
    {"limit": 3}, {"limit": 3, "before": "r05"}, {"before": "r05", "until": 3.0}, {"before": "nope"}, {"before": "r00"},
    {"identity": "key:bob", "before": "r00"},
)  # fmt: skip
USES: tuple[dict[str, Any], ...] = (
    {}, {"by": ("meta",)}, {"by": ("meta",), "separator": "-"}, {"by": ("model", "meta", "day")}, {"by": ("identity", "day")},
    {"identity": "key:alice", "by": ("model",)}, {"since": "1970-01-02"}, {"until": "1970-01-02", "by": ("meta", "model")},
    {"meta_prefix": "A-1"}, {"meta_prefix": ""}, {"by": ("day",), "meta_prefix": "B"}, {"limit": 2}, {"limit": -1},
)  # fmt: skip


async def fill(journal: Journal) -> None:
    """Have twelve runs, of which one lives and two were deleted."""
    for number in range(12):
        run, who = f"r{number:02}", ("key:alice", "key:bob", "o\x00dd:é")[number % 3]
        facts = {
            "meta": f"{'AB'[number % 2]}-{number % 3}",
            "model": ("", "opus")[number % 2],
            "batch": ("", "b1")[number % 2],
        }
        recorder = journal.begin(begun(run, who, number // 2, session=f"s{number % 4}", options={"é": 1}, **facts))
        recorder.lines([b"x" * number])
        if number == 7:
            recorder.spent(number, 0.125 * number)
        else:
            at, reason = number * DAY / 4 + 0.25, REASONS[number % len(REASONS)]
            recorder.end(
                ended(run, 1, ended=at, reason=reason, tokens=number, dollars=0.125 * number, turns=number, error="é")
            )
    assert await journal.settle()
    assert await journal.delete("key:alice", "r03") == [Deleted("r03", "key:alice", "s3")]
    assert await journal.delete(None, "r04") == [Deleted("r04", "key:bob", "s0")]


async def test_what_is_asked_is_answered_as_in_sqlite(redis_server: RedisServer, tmp_path: Path) -> None:
    async with sqlite_in(tmp_path)() as one, on_redis(redis_server)() as other:
        await fill(one)
        await fill(other)
        for query in QUERIES:
            asked = Query(**{"identity": None, **query})
            there, here = await one.find(asked), await other.find(asked)
            assert [run.told(content=False) for run in here.runs] == [run.told(content=False) for run in there.runs], (
                query
            )
            assert here.next == there.next, query
        for number in range(12):
            for whose in (None, "key:bob"):
                assert await other.get(whose, f"r{number:02}") == await one.get(whose, f"r{number:02}")
        for use in USES:
            assert await other.usage(UsageQuery(**use)) == await one.usage(UsageQuery(**use)), use
        for session in ("s0", "s1", "s2", "s3", "none"):
            assert await other.unfinished("key:bob", session) == await one.unfinished("key:bob", session)
        assert sorted(gone.run for gone in await other.delete("key:alice")) == ["r00", "r06", "r09"]
        assert [run.id for run in (await other.find(Query(identity="key:alice"))).runs] == []


async def test_a_page_begins_behind_any_line_and_part(
    journal: RedisJournal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in SQLite, for each line and part, with pages of one part and of many."""

    async def say(kept: Journal) -> None:
        run = kept.begin(begun("a"))
        for number in range(40):
            run.lines([b"%d" % number] * (number % 4 + 1))
            for _ in range(number % 3):
                run.stderr(["oh"])
            if number % 5 == 0:
                run.said(b"{}")
            await kept.settle()

    async with sqlite_in(tmp_path)() as other:
        await say(journal)
        await say(other)
        assert (await journal.parts("a"))[-1].last == 100
        for size in (1, 2**20):
            monkeypatch.setattr(archive, "PAGE_BYTES", size)
            monkeypatch.setattr("trio_claude.journal.store.PAGE_BYTES", size)
            for after in range(0, 103, 7):
                for beyond in (0, 1, 2, 30, 77, 94, 200):
                    assert await journal.parts("a", after, beyond) == await other.parts("a", after, beyond), (
                        after,
                        beyond,
                    )


async def test_a_page_has_a_size_and_a_part_is_whole(journal: RedisJournal) -> None:
    run = journal.begin(begun("a"))
    for _ in range(9):
        run.lines([b"x" * 400_000])
        await journal.settle()
    run.lines([b"y" * 5_000_000])
    await journal.settle()
    assert [part.count for part in await journal.parts("a")] == [1] * 3
    assert [len(part.data) for part in await journal.parts("a", 9)] == [5_000_000]
    assert len(await lines_of(journal, "a")) == 10


async def test_for_a_page_no_more_is_read_because_parts_before_were_small(
    journal: RedisJournal, redis_server: RedisServer
) -> None:
    run = journal.begin(begun("a"))
    for number in range(600):
        run.lines([b"%d" % number])
        run.stderr(["oh"])
    for _ in range(80):
        run.lines([b"x" * 400_000])
        run.stderr(["oh"])
    assert await journal.settle()
    before = peak(redis_server)
    assert len(await journal.parts("a")) > 1200
    assert peak(redis_server) - before < 8 * 2**20


def peak(server: RedisServer) -> int:
    """Return the bytes that a Redis has had in memory at most."""
    told = dict(line.partition(b":")[::2] for line in server.call("INFO", "memory").splitlines())
    return int(told[b"used_memory_peak"])


async def test_ten_thousand_runs_are_listed_in_pages(journal: RedisJournal) -> None:
    for number in range(10_000):
        run = journal.begin(
            begun(f"{number:08x}", f"key:{number % 3}", float(number), meta="RARE" if number % 2000 == 9 else "T")
        )
        run.end(ended(f"{number:08x}"))
    assert await journal.settle(20)
    seen: list[str] = []
    before = None
    while True:
        page = await journal.find(Query(identity=None, limit=500, before=before))
        seen += [run.id for run in page.runs]
        if (before := page.next) is None:
            break
    assert seen == [f"{number:08x}" for number in reversed(range(10_000))]
    assert [run.started for run in (await journal.find(Query(identity=None, meta="RARE"))).runs] == [
        8009,
        6009,
        4009,
        2009,
        9,
    ]
    assert [row.runs for row in (await journal.usage(UsageQuery(by=("meta",)))).rows] == [5, 9995]
    assert len(await journal.delete("key:1")) == 3333
    assert len((await journal.find(Query(identity="key:1"))).runs) == 0


# -- only its own server tells of a run, and only what follows ---------------------------------------------------------


async def test_what_was_begun_with_another_token_is_fenced(journal: RedisJournal) -> None:
    run, other = journal.begin(begun("a")), journal.begin(begun("b"))
    run.lines([b"one"])
    assert await journal.settle()
    await journal._redis.ask("HSET", journal._redis.key("run", "a"), "token", 99)
    run.lines([b"two"])
    other.lines([b"two"])
    assert await journal.settle()
    assert (run.stored, other.stored) == (False, True)
    run.lines([b"three"])
    run.end(ended("a", 3))
    assert await journal.settle()
    found = await journal.get(None, "a")
    assert found
    assert (found.state, found.stored) == ("live", 1)
    assert "a" not in journal._asks.runs
    assert journal.statistics().given_up == 1


async def test_a_run_that_was_declared_lost_takes_nothing_more_and_is_counted_once(redis_server: RedisServer) -> None:
    async with open_history_of(redis_server) as journal, open_history_of(redis_server, "t") as other:
        run = journal.begin(begun("a", model="opus", session="s1"))
        run.lines([b"one", b"two"])
        assert await journal.settle()
        await other._redis.run(load("leave"), (), other._redis.prefix, "s")
        run.lines([b"three"])
        assert await journal.settle()
        assert not run.stored
        run.end(ended("a", 3))
        assert await journal.settle()
        found = await other.get(None, "a")
        assert found
        assert (found.state, found.reason, found.lines, found.stored) == ("ended", "node-lost", 2, 2)
        assert not found.whole
        assert await lines_of(other, "a") == [b"one", b"two"]
        (row,) = (await other.usage(UsageQuery(by=("model", "meta")))).rows
        assert (row.group, row.runs, row.tokens, row.seconds, row.failed) == (
            {"model": "opus", "meta": "T"},
            1,
            0,
            0,
            1,
        )
        late = journal.begin(begun("b"))
        late.end(ended("b"))
        assert await journal.settle()
        assert late.stored, "it has a new token by now"


async def test_what_a_run_of_a_lost_server_had_used_is_counted(redis_server: RedisServer) -> None:
    async with open_history_of(redis_server) as journal, open_history_of(redis_server, "t") as other:
        run, quiet = journal.begin(begun("a", model="opus")), journal.begin(begun("b", model="opus"))
        run.spent(7, 0.5)
        assert await journal.settle()
        run.spent(10**30, 1.5)
        assert await journal.settle()
        await other._redis.run(load("leave"), (), other._redis.prefix, "s")
        run.spent(10**16, 2.5)
        assert await journal.settle()
        assert (run.stored, quiet.stored) == (False, True)
        for name, used in (("a", (10**15, 1.5)), ("b", (0, 0.0))):
            found = await other.get(None, name)
            assert found
            assert (found.state, found.reason, found.tokens, found.dollars) == ("ended", "node-lost", *used)
        (row,) = (await other.usage(UsageQuery())).rows
        assert (row.runs, row.tokens, row.dollars) == (2, 10**15, 1.5)


async def test_what_a_run_has_used_is_told_again_and_its_end_tells_it_better(
    journal: RedisJournal, redis_server: RedisServer
) -> None:
    run = journal.begin(begun("a"))
    run.spent(7, 0.5)
    run.end(ended("a", tokens=9, dollars=1.5))
    assert await journal.settle()
    await tell_again(journal, redis_server)
    found = await journal.get(None, "a")
    assert found
    assert (found.state, found.tokens, found.dollars) == ("ended", 9, 1.5)
    assert journal.statistics().given_up == 0


async def test_nothing_is_stored_behind_a_hole_or_an_end(journal: RedisJournal) -> None:
    run, over = journal.begin(begun("a")), journal.begin(begun("b"))
    run.lines([b"one"])
    assert await journal.settle()
    run._lines = 2
    run.lines([b"four"])
    assert await journal.settle()
    assert not run.stored
    run.end(ended("a", 4))
    over.end(ended("b"))
    assert await journal.settle()
    over.lines([b"late"])
    assert await journal.settle()
    assert not over.stored
    found = await journal.get(None, "a")
    assert found
    assert (found.state, found.lines, found.stored, found.whole) == ("ended", 4, 1, False)
    assert await lines_of(journal, "b") == []


async def tell_again(journal: RedisJournal, server: RedisServer) -> None:
    """Have all connections break, and what was told just now told again."""
    journal._again.extend(write for _, write, _ in journal._kept)
    before = journal._redis.since
    server.call("CLIENT", "KILL", "TYPE", "normal")
    await until(lambda: journal._redis.connected and journal._redis.since > before)
    journal.begin(begun("another"))
    assert await journal.settle()
    assert not journal._again


async def test_what_is_told_twice_is_stored_once(journal: RedisJournal, redis_server: RedisServer) -> None:
    run = journal.begin(begun("a", session="s"))
    run.lines([b"one"])
    run.stderr(["oh"])
    run.lines([b"two"])
    run.end(ended("a", 2))
    assert await journal.settle()
    before = await journal.parts("a"), await journal.get(None, "a"), await journal.usage(UsageQuery())
    await tell_again(journal, redis_server)
    assert (await journal.parts("a"), await journal.get(None, "a"), await journal.usage(UsageQuery())) == before
    assert journal.statistics().given_up == 0, "an alert goes by that"
    assert await journal.delete(None, "a")
    await tell_again(journal, redis_server)
    assert await journal.get(None, "a") is None, "what is deleted does not come back"


async def test_what_redis_never_takes_holds_up_nothing_behind_it(journal: RedisJournal) -> None:
    run, other = journal.begin(begun("a")), journal.begin(begun("b"))
    run.lines([b"one"])
    assert await journal.settle()
    await journal._redis.ask("DEL", journal._redis.key("lines", "a"))
    await journal._redis.ask("SET", journal._redis.key("lines", "a"), "of another kind")
    run.lines([b"two"])
    other.lines([b"x"])
    assert await journal.settle()
    assert (run.stored, other.stored) == (False, True)
    assert await lines_of(journal, "b") == [b"x"]


async def test_a_part_that_only_a_newer_server_knows_is_passed_over(
    journal: RedisJournal, redis_server: RedisServer
) -> None:
    run = journal.begin(begun("a"))
    run.lines([b"one"])
    assert await journal.settle()
    redis_server.call("XADD", "trio-claude:lines:a", "1-1", "k", "7", "c", "1", "n", "2", "d", "new")
    parts = await journal.parts("a")
    assert [part.number for part in parts] == [1, 2]
    assert b"".join(part.told() for part in parts) == b'{"n":1,"line":"one"}\n'
    run.end(ended("a", 1))
    assert await journal.unfinished("local", "s") is None


async def test_what_can_not_be_told_is_given_up(journal: RedisJournal) -> None:
    """Odd words hold up nobody, and are what they can be in UTF-8."""
    bad, odd = (
        journal.begin(begun("a", options={"x": object()})),
        journal.begin(begun("b", prompt="\ud800", meta="\x00")),
    )
    bad.lines([b"one"])
    odd.end(ended("b", error="\udfff"))
    assert await journal.settle()
    assert not bad.stored
    found = await journal.get(None, "b")
    assert found
    assert (found.prompt, found.meta, found.error) == ("?", "\x00", "?")
    for name in ("\ud800", "a b", "", "\x00"):
        assert await journal.get(None, name) is None
        assert await journal.parts(name) == []
        assert await journal.delete(name, name) == []
        assert (await journal.find(Query(identity=name, before=name))).runs == []


# -- Redis is away -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def speaking(run: Any, pause: float = 0.005) -> AsyncIterator[list[int]]:
    """Have a run say a line now and again; yield how many they are."""
    said = [0]

    async def speak() -> None:
        while True:
            said[0] += 1
            run.lines([b"%d" % said[0]])
            await trio.sleep(pause)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(speak)
        yield said
        nursery.cancel_scope.cancel()


async def test_a_redis_is_told_the_scripts_and_asked_what_it_is_at_once(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other it would be six times as long until a history goes on, where Redis is far away."""
    asked: list[tuple[Wire, Word]] = []
    real = Wire.ask

    async def ask(wire: Wire, *words: Word) -> object:
        asked.append((wire, words[0]))
        return await real(wire, *words)

    monkeypatch.setattr(Wire, "ask", ask)
    redis_server.call("SCRIPT", "FLUSH")
    async with open_history_of(redis_server) as journal:
        journal.begin(begun("r1"))
        assert await journal.settle()
        assert [word for wire, word in asked if wire is journal._wire] == []
        assert (await journal.find(Query(identity=None))).runs


async def test_a_redis_that_crashes_and_comes_back_has_all(redis_server: RedisServer) -> None:
    async with open_history_of(redis_server) as journal, AsyncExitStack() as stack:
        runs = [journal.begin(begun(f"r{number}")) for number in range(50)]
        said = [await stack.enter_async_context(speaking(run)) for run in runs]
        for _ in range(3):
            await trio.sleep(0.3)
            redis_server.kill()
            await until(lambda: "can't be written" in journal.fault)
            with pytest.raises(JournalFault, match="does not answer"):
                await journal.find(Query(identity=None))
            redis_server.start()
            began = trio.current_time()
            assert await journal.settle()
            assert trio.current_time() - began < 5
        await stack.aclose()
        assert await journal.settle()
        for number, run in enumerate(runs):
            assert run.stored
            assert await lines_of(journal, f"r{number}") == numbered(1, said[number][0])


def lose(server: RedisServer, before: Path) -> None:
    """End it and have it forget what came after a copy of its file."""
    server.kill()
    shutil.rmtree(server.folder / "appendonlydir")
    if before.exists():
        shutil.copytree(before, server.folder / "appendonlydir")
    server.start()


async def test_a_redis_that_has_lost_its_last_moment_is_told_it_again(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with open_history_of(redis_server) as journal:
        run = journal.begin(begun("a"))
        run.lines(numbered(1, 5))
        assert await journal.settle()
        shutil.copytree(redis_server.folder / "appendonlydir", tmp_path / "copy")
        run.lines(numbered(6, 5))
        run.stderr(["oh"])
        short = journal.begin(begun("b"))
        short.lines([b"all"])
        short.end(ended("b", 1))
        gone = journal.begin(begun("c"))
        gone.end(ended("c"))
        assert await journal.settle()
        assert await journal.delete(None, "c")
        lose(redis_server, tmp_path / "copy")
        run.lines(numbered(11, 5))
        assert await journal.settle()
        assert run.stored
        assert await lines_of(journal, "a") == numbered(1, 15)
        found = await journal.get(None, "b")
        assert found
        assert (found.state, found.whole) == ("ended", True)
        assert await journal.get(None, "c") is None
        assert sum(row.runs for row in (await journal.usage(UsageQuery())).rows) == 2


@pytest.mark.parametrize("noticed", [True, False])
async def test_a_redis_that_was_a_replica_meanwhile_is_told_what_the_other_had_not_got(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, noticed: bool
) -> None:
    """It was never started anew; where nobody noticed, its first verdict is not believed."""
    monkeypatch.setattr(history, "KEEP", 60)

    def follow(one: RedisServer, other: RedisServer) -> None:
        other.call("CONFIG", "SET", "repl-diskless-sync-delay", "0")
        one.call("REPLICAOF", "127.0.0.1", str(other.listen()))

    def follows(one: RedisServer) -> bool:
        return b"master_link_status:up" in one.call("INFO", "replication")

    with open_redis_server() as other:
        async with open_history_of(redis_server) as journal:
            if not noticed:
                journal._redis._listeners.clear()
            run = journal.begin(begun("a"))
            run.lines(numbered(1, 5))
            assert await journal.settle()
            follow(other, redis_server)
            await until(lambda: follows(other) and other.call("XLEN", "trio-claude:lines:a") == b"1")
            other.call("REPLICAOF", "NO", "ONE")
            run.lines(numbered(6, 5))
            assert await journal.settle()
            try:
                follow(redis_server, other)
                await until(lambda: follows(redis_server) and not journal._redis.connected)
            finally:
                redis_server.call("REPLICAOF", "NO", "ONE")
            run.lines(numbered(11, 5))
            assert await journal.settle()
            assert run.stored
            assert await lines_of(journal, "a") == numbered(1, 15)


@pytest.mark.parametrize(("run", "token", "number"), [("a", 0, 3), ("a", 1, 1), ("b", 0, 1)])
async def test_a_replica_has_no_history_end(redis_server: RedisServer, run: str, token: int, number: int) -> None:
    """After a failover that lost something what waited at the old one is answered with what the new one has."""
    async with open_history_of(redis_server) as journal:
        journal.begin(begun("a"))
        assert await journal.settle()
        redis = journal._redis
        known = journal._asks._lease.token + token
        words = redis.prefix, run, "s", known, int(PartKind.LINES), number, 1, number, b"line"
        assert await redis.run(load("append"), (), *words) in (b"hole", b"fenced", b"gone")
        redis_server.call("REPLICAOF", "127.0.0.1", "1")  # where nobody is
        try:
            with pytest.raises(RedisGone):
                await redis.run(load("append"), (), *words)
        finally:
            redis_server.call("REPLICAOF", "NO", "ONE")


async def test_a_run_of_which_redis_has_lost_how_it_ended_does_not_live_for_ever(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows that any more; those that live stay."""
    monkeypatch.setattr(history, "KEEP", 0.05)
    async with open_history_of(redis_server) as journal:
        run = journal.begin(begun("a", session="s"))
        run.lines([b"one"])
        other = journal.begin(begun("b"))
        assert await journal.settle()
        shutil.copytree(redis_server.folder / "appendonlydir", tmp_path / "copy")
        run.lines([b"two"])
        run.end(ended("a", 2))
        assert await journal.settle()
        await until(lambda: "a" not in journal._asks.runs)
        lose(redis_server, tmp_path / "copy")
        other.lines([b"still"])
        assert await journal.settle()
        found = await journal.get(None, "a")
        assert found
        assert (found.state, found.reason, found.lines, found.whole) == ("ended", "node-lost", 1, False)
        assert found.error == "Redis has lost how it ended"
        assert other.stored
        assert [row.id for row in (await journal.find(Query(identity=None, state="live"))).runs] == ["b"]
        assert await journal.delete(None, "a") == [Deleted("a", "local", "s")]


@pytest.mark.parametrize("late", [False, True])
async def test_a_redis_that_has_lost_all_is_told_what_is_kept(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """Where that is not all, the history of the run ends there, but not what is told of its end."""
    async with open_history_of(redis_server) as journal:
        run = journal.begin(begun("a", meta="KEPT"))
        run.lines(numbered(1, 5))
        assert await journal.settle()
        if late:
            monkeypatch.setattr(history, "KEEP", 0.05)
            await trio.sleep(0.2)
        run.lines(numbered(6, 5))
        assert await journal.settle()
        lose(redis_server, tmp_path / "none")
        run.lines(numbered(11, 5))
        assert await journal.settle()
        assert run.stored != late
        run.end(ended("a", 15))
        assert await journal.settle()
        found = await journal.get(None, "a")
        assert found
        assert (found.state, found.meta, found.lines, found.whole) == ("ended", "KEPT", 15, not late)
        assert await lines_of(journal, "a") == ([] if late else numbered(1, 15))


async def test_a_redis_that_has_lost_an_idle_run_is_told_it_at_once(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with the next look whether it answers: until then no other server would know the run."""
    monkeypatch.setattr(history, "KEEP", 60)
    async with open_history_of(redis_server) as journal:
        journal.begin(begun("a"))
        assert await journal.settle()
        await until(lambda: journal._idle)
        lose(redis_server, tmp_path / "none")
        await until(lambda: redis_server.call("EXISTS", "trio-claude:run:a") == b"1")


async def test_a_redis_that_hangs_holds_up_nobody_and_loses_nothing(redis_server: RedisServer) -> None:
    async with open_history_of(redis_server) as journal:
        run = journal.begin(begun("a"))
        async with speaking(run) as said:
            await trio.sleep(0.2)
            redis_server.stop()
            await trio.sleep(3)
            assert "can't be written" in journal.fault
            assert not await journal.settle(0.1)
            redis_server.go_on()
            began = trio.current_time()
            await until(lambda: not journal.fault)
            assert await journal.settle()
            assert trio.current_time() - began < 5
        assert await journal.settle()
        assert run.stored
        assert said[0] > 100
        assert await lines_of(journal, "a") == numbered(1, said[0])


async def test_what_waits_is_bounded_and_what_is_kept_too(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 MiB wait while Redis is away; behind that a run's history ends, and its end is told all the same."""
    async with open_history_of(redis_server) as journal:
        run, other = journal.begin(begun("a")), journal.begin(begun("b"))
        assert await journal.settle()
        redis_server.kill()
        megabyte = b"x" * (2**20 - 2000)  # with what each write is reckoned as
        for _ in range(80):
            run.lines([megabyte])
        assert not run.stored
        assert other.stored
        other.lines([b"one"])
        assert 0.98 * backlog.QUEUE_BYTES < journal.waiting <= backlog.QUEUE_BYTES
        run.end(ended("a", 80))
        redis_server.start()
        assert await journal.settle(20)
        assert journal._kept_bytes <= history.KEEP_BYTES
        found = await journal.get(None, "a")
        assert found
        assert (found.state, found.lines, found.stored, found.whole) == ("ended", 80, 64, False)
        assert other.stored


async def test_what_has_begun_is_told_to_have_ended_however_long_redis_was_away(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "QUEUE_BYTES", 0)
    monkeypatch.setattr(backlog, "FACTS_BYTES", 10_000)
    async with open_history_of(redis_server) as journal:
        redis_server.kill()
        await until(lambda: not journal._redis.connected)
        for number in range(20):
            journal.begin(begun(f"r{number}")).end(ended(f"r{number}"))
        runs = [journal.begin(begun(f"s{number}")) for number in range(20)]
        for number, run in enumerate(runs):
            run.end(ended(f"s{number}"))
        redis_server.start()
        await until(lambda: not journal.waiting)
        found = (await journal.find(Query(identity=None))).runs
        assert len(found) > 4
        assert {run.state for run in found} == {"ended"}


async def test_those_who_wait_for_redis_fill_nothing(redis_server: RedisServer) -> None:
    async with open_history_of(redis_server) as journal:
        run = journal.begin(begun("a"))
        assert await journal.settle()
        redis_server.kill()
        await until(lambda: not journal._redis.connected)
        run.stderr(["oh"])
        for _ in range(100):
            assert not await journal.settle(0.001)
        assert journal.waiting <= 4 * backlog.FACT_BYTES
        assert not any(write.hearers for write in journal._waiting)
        told: list[bool] = []

        async def wait() -> None:
            told.append(await journal.settle())

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            assert max(len(write.hearers) for write in journal._waiting) == 10
            redis_server.start()
        assert told == [True] * 10
        assert [part.lines for part in await journal.parts("a")] == [[b"oh"]]


async def test_a_burst_is_told_when_it_is_over(
    journal: RedisJournal, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "BURST_PATIENCE", 5)
    for name in ("GATHER", "BURST_GATHER"):  # so long may this machine be busy with something else
        monkeypatch.setattr(history, name, 0.3)
    run = journal.begin(begun("a"))
    for _ in range(30):
        run.lines([b"x" * 400_000])
        await trio.sleep(0.002)
    assert journal.waiting > 8_000_000
    await until(lambda: not journal.waiting, 2)
    assert redis_server.call("HGET", "trio-claude:run:a", "stored") == b"30"


async def test_a_redis_without_memory_left_is_told_again_when_it_has_some() -> None:
    with open_redis_server("--maxmemory", "6mb") as server:
        async with open_history_of(server) as journal:
            run = journal.begin(begun("a"))
            for _ in range(12):
                run.lines([b"x" * 500_000])
            await until(lambda: "maxmemory" in journal.fault)
            assert run.stored
            server.call("CONFIG", "SET", "maxmemory", "0")
            assert await journal.settle()
            assert len(await lines_of(journal, "a")) == 12
            assert not journal.fault


async def test_what_redis_refuses_it_is_told_again_on_the_same_connection(redis_server: RedisServer) -> None:
    """With TLS each takes its time, and another might not be had: for a password that was changed meanwhile."""
    async with open_history_of(redis_server) as journal:
        run = journal.begin(begun("a"))
        assert await journal.settle()
        wire = journal._wire
        redis_server.call("CONFIG", "SET", "maxmemory", "1")
        try:
            run.lines([b"one"])
            await until(lambda: journal.statistics().faults > 3)
        finally:
            redis_server.call("CONFIG", "SET", "maxmemory", "0")
        assert await journal.settle()
        assert journal._wire is wire
        assert await lines_of(journal, "a") == [b"one"]


async def test_that_each_connection_ends_at_what_waits_is_told(redis_server: RedisServer) -> None:
    """Redis greets, and takes no text so long."""
    async with open_history_of(redis_server) as journal:
        told: list[str] = []
        journal._on_barred = told.append
        run = journal.begin(begun("a"))
        assert await journal.settle()
        redis_server.call("CONFIG", "SET", "proto-max-bulk-len", "1mb")
        try:
            run.lines([b"x" * 2_000_000])
            await until(lambda: told, 10)
            assert journal._redis.connected
        finally:
            redis_server.call("CONFIG", "SET", "proto-max-bulk-len", "512mb")
        assert await journal.settle()
        assert told[0] == "no connection for what runs say: Redis does not answer"
        assert told[-1] == ""
        assert run.stored


async def test_why_redis_lets_nobody_in_is_told(redis_server: RedisServer) -> None:
    """Not for ever that it did not answer as it closed the connection."""
    async with open_history_of(redis_server) as journal:
        redis_server.call("CONFIG", "SET", "requirepass", "s3cret")
        try:
            redis_server.call("-a", "s3cret", "CLIENT", "KILL", "TYPE", "normal")
            await until(lambda: "already authenticated" in journal.fault)
            with pytest.raises(
                JournalFault, match=r"^the journal can't be read: Redis refuses: .* already authenticated"
            ):
                await journal.find(Query(identity=None))
        finally:
            redis_server.call("-a", "s3cret", "CONFIG", "SET", "requirepass", "")
        await until(lambda: not journal.fault)


async def test_a_redis_whose_user_may_do_less_for_a_while_is_told_again(redis_server: RedisServer) -> None:
    async with open_history_of(redis_server) as journal:
        run = journal.begin(begun("a"))
        run.lines([b"one"])
        assert await journal.settle()
        redis_server.call("ACL", "SETUSER", "default", "resetkeys", "~other:*")
        try:
            run.lines([b"two"])
            await until(lambda: "The user executing the script" in journal.fault)
        finally:
            redis_server.call("ACL", "SETUSER", "default", "allkeys")
        assert await journal.settle()
        assert (run.stored, await lines_of(journal, "a")) == (True, [b"one", b"two"])


async def test_of_a_redis_without_memory_left_runs_are_deleted_and_tidied() -> None:
    """Also while something waits that it does not take; what it does not know to have ended is told so."""
    with open_redis_server("--maxmemory", "8mb") as server:
        async with open_history_of(server) as journal:
            for name in ("a", "b", "c", "d", "e"):
                run = journal.begin(begun(name, "alice" if name < "d" else "bob", started=float(ord(name))))
                run.lines([b"x" * 500_000])
                if name != "e":
                    run.end(ended(name, 1))
            assert await journal.settle()
            server.call("CONFIG", "SET", "maxmemory", "1")
            run.lines([b"one more"])
            run.end(ended("e", 2))
            await until(lambda: "maxmemory" in journal.fault)
            assert "script" not in journal.fault
            began = trio.current_time()
            assert await journal.delete("alice", "a") == [Deleted("a", "alice", None)]
            with pytest.raises(JournalFault, match="written just now"):
                await journal.delete("bob", "e")
            assert await journal.delete("alice") == [Deleted(name, "alice", None) for name in "bc"]
            assert trio.current_time() - began < 4 * (history.SOON + 0.5)
            server.call("DEL", "trio-claude:tidy")
            await journal._archive.tidy(Retention(runs=1), 60)
            assert 50_000 < int(server.call("PTTL", "trio-claude:tidy")) <= 60_000
            assert server.call("ZRANGE", "trio-claude:runs", "0", "-1") == b"e"
            server.call("CONFIG", "SET", "maxmemory", "0")
            assert await journal.settle()
            assert await journal.delete("bob") == [Deleted("e", "bob", None)]


async def test_those_who_delete_at_once_pass_over_nothing(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that lives when it is passed over, and is deleted then by another, moves nobody's place either."""
    monkeypatch.setattr(archive, "DROP", 2)
    async with open_history_of(redis_server) as journal:
        recorders = [journal.begin(begun(f"{number:02}", "alice", float(number))) for number in range(40)]
        for number in range(1, 39):
            recorders[number].end(ended(f"{number:02}"))
        assert await journal.settle()
        steps = journal._archive.delete_all("alice")
        assert [one.run for one in await anext(steps)] == ["01"]
        recorders[0].end(ended("00"))
        assert await journal.settle()
        assert await journal.delete("alice", "00")
        assert [one.run for one in await anext(steps)] == ["02", "03"]
        await steps.aclose()
        async with trio.open_nursery() as nursery:
            for whose in ("alice", "alice", None):
                nursery.start_soon(journal.delete, whose)
        assert [row.id for row in (await journal.find(Query(identity=None))).runs] == ["39"]


async def test_a_server_that_ends_has_told_all(redis_server: RedisServer) -> None:
    with trio.CancelScope() as scope:
        async with open_history_of(redis_server) as journal:
            run = journal.begin(begun("a"))
            run.lines(numbered(1, 5))
            run.end(ended("a", 5))
            scope.cancel()
    async with open_history_of(redis_server, "t") as other:
        found = await other.get(None, "a")
        assert found
        assert (found.state, found.whole) == ("ended", True)


# -- what stays --------------------------------------------------------------------------------------------------------


async def test_what_is_too_old_or_too_much_goes_first_the_oldest(redis_server: RedisServer) -> None:
    async with open_history_of(redis_server) as journal:
        now = (await journal._redis.ask("TIME"))[0]
        for number in range(10):
            run = journal.begin(begun(f"r{number}", started=float(now) - 1000 + number))
            run.lines([b"x" * 100])
            run.end(ended(f"r{number}", 1, ended=float(now) - DAY * (10 - number) - 60))
        journal.begin(begun("live", started=0.0))
        assert await journal.settle()

        async def kept(retention: Retention) -> list[str]:
            redis_server.call("DEL", "trio-claude:tidy")  # it is nobody's turn
            await journal._archive.tidy(retention, 60)
            await journal._archive.tidy(Retention(runs=1), 60)  # it was somebody's turn
            return sorted(run.id for run in (await journal.find(Query(identity=None, limit=100))).runs)

        every = ["live", *(f"r{number}" for number in range(10))]
        assert await kept(Retention()) == every
        assert await kept(Retention(days=7)) == ["live", *every[5:]]
        assert await kept(Retention(runs=4)) == ["live", "r7", "r8", "r9"]
        assert await kept(Retention(size=250)) == ["live", "r8", "r9"]
        assert sum(row.runs for row in (await journal.usage(UsageQuery())).rows) == 10, "what was used stays"
        keys = redis_server.call("KEYS", "*").decode()
        assert "run:r7" not in keys
        assert "lines:r7" not in keys


async def test_what_ended_goes_by_itself_though_no_server_lives(redis_server: RedisServer) -> None:
    async with open_history_of(redis_server, retention=Retention(days=2)) as journal:
        run = journal.begin(begun("a"))
        run.lines([b"one"])
        assert await journal.settle()
        assert redis_server.call("TTL", "trio-claude:run:a") == b"-1", "not while it lives"
        assert int(redis_server.call("GET", "trio-claude:bytes")) == len("hi" + "{}" + "one")
        run.end(ended("a", 1))
        assert await journal.settle()
        for key in ("run", "lines"):
            assert 2 * DAY - 60 < int(redis_server.call("TTL", f"trio-claude:{key}:a")) <= 2 * DAY
            redis_server.call("DEL", f"trio-claude:{key}:a")  # as time does
        assert await journal.get(None, "a") is None
        assert (await journal.find(Query(identity=None))).runs == []
        assert [row.group for row in (await journal.usage(UsageQuery(by=("meta",)))).rows] == [{"meta": ""}]
        assert await journal.delete(None) == [Deleted("a", "local", None)]
        assert redis_server.call("GET", "trio-claude:bytes") == b"0"


async def test_no_client_makes_the_sums_grow_without_end(journal: RedisJournal) -> None:
    for number in range(240):
        run = journal.begin(begun(f"{number:x}", ("alice", "bob")[number % 2], model=f"m{number // 2:03}"))
        run.end(ended(f"{number:x}", tokens=2**70))
    assert await journal.settle()
    rows = (await journal.usage(UsageQuery(identity="alice", by=("model",)))).rows
    assert [row.group["model"] for row in rows] == ["", *(f"m{number:03}" for number in range(100))]
    assert (rows[0].runs, rows[1].tokens) == (20, 10**15)
    await journal._redis.ask("HSET", journal._redis.key("usage", "1970-01-01"), "u3:bobm000", f"1 1 {10**18} 0 0 0")
    assert (await journal.usage(UsageQuery(identity="bob"))).rows[0].tokens == 10**18


# -- with a server -----------------------------------------------------------------------------------------------------


async def test_servers_tell_of_each_others_runs_and_the_commands_ask_any(
    fake: Backend, redis_server: RedisServer
) -> None:
    async with fake.serve(journal="auto", redis=redis_server.url) as one, fake.serve(redis=redis_server.url) as none:
        async with fake.serve(journal="auto", redis=redis_server.url) as other:
            assert none.runs.journal is None
            said = await ask(one, directive("lines", n=500, size=100), "?frames=verbatim")
            assert one.runs.journal
            await until(lambda: len(fake.ended) == 1)
            assert await one.runs.journal.settle()
            assert other.runs.journal
            (run,) = (await other.runs.journal.find(Query(identity="local"))).runs
            lines = [frame.encode() for frame in said.frames if '"info"' not in frame]
            assert await lines_of(other.runs.journal, run.id) == lines
            assert (run.reason, run.lines, run.stored, run.whole) == ("exit", len(lines), len(lines), True)
            listed = await trio_claude("runs", "list", "--url", other.url)
            assert run.id[:8].encode() in listed.stdout
            tail = await trio_claude("runs", "tail", run.id, "--url", other.url)
            assert tail.stdout.splitlines() == lines
            used = await trio_claude("usage", "--json", "--url", other.url)
            assert b'"runs": 1' in used.stdout
            assert (await trio_claude("runs", "delete", run.id, "--yes", "--url", other.url)).returncode == 0
            assert await one.runs.journal.get(None, run.id) is None
