"""Rule: what is committed is there after any end; nothing is stored twice, torn or out of order; nobody waits for it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from harness import Backend, ask, descriptors, directive, until, wait_for
from journals import RECEIPT, Opening, begun, ended, on_redis, sqlite_in
from redis_server import RedisServer
from talk import open_talk

from trio_claude.config import Config
from trio_claude.embed import open_run
from trio_claude.engine import open_engine
from trio_claude.errors import ConfigError, JournalFault
from trio_claude.events import JournalReady, Strained
from trio_claude.journal import (
    Deleted,
    Journal,
    Part,
    PartKind,
    Query,
    Retention,
    UsageQuery,
    backlog,
    open_journal,
    recorder,
)
from trio_claude.journal.bulk import Bulk, folder_of
from trio_claude.journal.facts import Text
from trio_claude.journal.opening import BLOCK_BYTES, _clean_lock, is_alive
from trio_claude.journal.schema import VERSIONS
from trio_claude.journal.store import Reader, Store
from trio_claude.journal.visits import Visit, delete_local
from trio_claude.server import Server


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def opening(request: pytest.FixtureRequest, tmp_path: Path) -> Opening:
    """What opens a journal of each kind: they do alike."""
    return sqlite_in(tmp_path) if request.param == "sqlite" else on_redis(request.getfixturevalue("redis_server"))


@asynccontextmanager
async def opened(path: Path, limit: int = 2**20) -> AsyncIterator[Journal]:
    async with open_journal(path, "s", Retention(), limit, content=True) as journal:
        yield journal


async def test_a_run_is_read_as_it_was_written(opening: Opening) -> None:
    async with opening() as journal:
        run = journal.begin(begun("a", options={"model": "haiku"}))
        run.lines([b"one", b"two"])
        run.stderr(["oh", "dear"])
        run.said(b'{"type":"user"}\n')
        run.lines([b"three"])
        run.end(ended("a", 3))
        assert await journal.settle()
        found = await journal.get("local", "a")
        assert found
        assert (found.state, found.lines, found.stored, found.whole, found.receipt) == ("ended", 3, 3, True, RECEIPT)
        assert (found.prompt, found.options) == ("hi", {"model": "haiku"})
        parts = await journal.parts("a")
        assert [(part.kind, part.first, part.lines) for part in parts] == [
            (PartKind.LINES, 1, [b"one", b"two"]),
            (PartKind.STDERR, 2, [b"oh", b"dear"]),
            (PartKind.SAID, 2, [b'{"type":"user"}']),
            (PartKind.LINES, 3, [b"three"]),
        ]
        assert [(part.kind, part.first) for part in await journal.parts("a", 2)] == [
            (PartKind.STDERR, 2), (PartKind.SAID, 2), (PartKind.LINES, 3),
        ]  # fmt: skip
        assert [part.number for part in await journal.parts("a", 0, 2)] == [3, 4]
        used = await journal.usage(UsageQuery(identity="local"))
        assert [row.told() for row in used.rows] == [
            {
                "day": "1970-01-01", "identity": "local", "runs": 1, "turns": 1, "tokens": 3, "dollars": 0.5,
                "seconds": 1.0, "failed": 0,
            }
        ]  # fmt: skip


async def test_runs_are_listed_in_pages_for_their_own_identity(opening: Opening) -> None:
    async with opening() as journal:
        for number in range(7):
            journal.begin(begun(f"a{number}", "alice", number // 2, meta="EVEN" if number % 2 == 0 else "ODD"))
        journal.begin(begun("b", "bob"))
        await journal.settle()
        seen: list[str] = []
        before = None
        while True:
            page = await journal.find(Query(identity="alice", limit=3, before=before))
            seen += [run.id for run in page.runs]
            if (before := page.next) is None:
                break
        assert seen == ["a6", "a5", "a4", "a3", "a2", "a1", "a0"]
        assert [run.id for run in (await journal.find(Query(identity="alice", meta="ODD"))).runs] == ["a5", "a3", "a1"]
        assert len((await journal.find(Query(identity=None))).runs) == 8
        assert await journal.get("bob", "a1") is None
        assert await journal.get(None, "a1")
        assert not (await journal.find(Query(identity="alice", state="ended"))).runs


async def test_a_list_reads_nothing_that_may_be_long(opening: Opening) -> None:
    async with opening() as journal:
        journal.begin(begun("a", prompt="x" * 1000, options={"system_prompt": "y" * 1000}))
        assert await journal.settle()
        (listed,) = (await journal.find(Query(identity=None))).runs
        assert (listed.prompt, listed.options) == (None, {})
        shown = await journal.get(None, "a")
        assert shown
        assert (shown.prompt, shown.options) == ("x" * 1000, {"system_prompt": "y" * 1000})


async def test_what_has_ended_is_deleted_and_nothing_else(opening: Opening) -> None:
    async with opening() as journal:
        for name, identity in (("a", "alice"), ("b", "alice"), ("c", "bob"), ("live", "alice")):
            run = journal.begin(begun(name, identity))
            run.lines([b"x"])
            if name != "live":
                run.end(ended(name, 1))
        assert await journal.delete("bob", "a") == []
        assert await journal.delete("alice", "a") == [Deleted("a", "alice", None)]
        assert await journal.delete("alice", "live") == []
        assert len(await journal.delete("alice")) == 1
        assert [run.id for run in (await journal.find(Query(identity=None))).runs] == ["live", "c"]
        assert not await journal.parts("a")
        used = await journal.usage(UsageQuery(identity="alice"))
        assert [row.runs for row in used.rows] == [2], "what was used stays"


async def test_what_is_too_old_or_too_much_goes_first_the_oldest(tmp_path: Path) -> None:
    store = Store(tmp_path / "j.db", "s")
    with store.transaction():
        for number in range(10):
            store.begin(begun(f"r{number}", started=float(number)))
            store.end(ended(f"r{number}", ended=float(number)))
        store.begin(begun("live", started=0.0))
    with store.transaction():
        store.retain(Retention(days=5 / 86400), 8.0)
    assert kept(store) == ["live", *(f"r{number}" for number in range(3, 10))]
    with store.transaction():
        store.retain(Retention(runs=4), 8.0)
    assert kept(store) == ["live", "r7", "r8", "r9"]
    store.close()


def test_the_size_that_is_kept_is_kept_whatever_else_is(tmp_path: Path) -> None:
    store = Store(tmp_path / "j.db", "s")
    with store.transaction():
        for number in range(10):
            store.begin(begun(f"r{number}", started=float(number)))
            store.add(f"r{number}", 1, Part(PartKind.LINES, 1, 1, b"x" * 100))
            store.end(ended(f"r{number}", ended=float(number)))
    with store.transaction():
        assert store.retain(Retention(size=999), 8.0) == 1, "no more than is over it"
    with store.transaction():
        assert store.retain(Retention(days=6 / 86400, size=550), 8.0) == 1 + 3, "beside what is too old"
    assert kept(store) == [f"r{number}" for number in range(5, 10)]
    with store.transaction():
        assert store.retain(Retention(size=550), 8.0) == 0
    store.close()


def test_prompts_and_options_count_in_the_size_that_is_kept(tmp_path: Path) -> None:
    store = Store(tmp_path / "j.db", "s")
    with store.transaction():
        for number in range(4):
            run = f"r{number}"
            store.begin(begun(run, started=float(number), prompt="ü" * 500, options={"system_prompt": "y" * 1000}))
            store.end(ended(run))
    with store.transaction():
        assert store.retain(Retention(size=4500), 8.0) == 2
    assert kept(store) == ["r2", "r3"]
    store.close()


async def test_all_that_is_too_much_goes_in_one_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "TIDY", 0.5)
    store = Store(tmp_path / "j.db", "s")
    with store.transaction():
        for number in range(700):
            store.begin(begun(f"r{number:03}", started=float(number)))
            store.end(ended(f"r{number:03}", ended=float(number)))
    store.close()
    async with open_journal(tmp_path / "j.db", "s", Retention(runs=10), 2**20, content=True):
        await until(lambda: stored_runs(store) < 700)
        monkeypatch.setattr(recorder, "TIDY", 60.0)
        await until(lambda: stored_runs(store) == 10)


async def test_a_run_that_has_just_begun_is_found_at_once_by_who_may_know_of_it(opening: Opening) -> None:
    async with opening() as journal:
        for number in range(5):
            journal.begin(begun(f"r{number}"))
            assert await journal.get("somebody else", f"r{number}") is None
            journal.begin(begun(f"s{number}"))
            found = await journal.get(None, f"s{number}")
            assert found
            assert found.state == "live"


async def test_half_a_surrogate_pair_of_the_cli_costs_no_runs_end(tmp_path: Path) -> None:
    async with opened(tmp_path / "j.db") as journal:
        run = journal.begin(begun("a"))
        run.end(attrs.evolve(ended("a"), error="cut \ud83d", session="\ud800", tokens=7))
        assert await journal.settle()
        found = await journal.get(None, "a")
        assert found
        assert (found.state, found.error, found.session, found.tokens) == ("ended", "cut ?", "?", 7)


def stored_runs(store: Store) -> int:
    with contextlib.closing(sqlite3.connect(store.path)) as db:
        return int(db.execute("SELECT COUNT(*) FROM runs").fetchone()[0])


def kept(store: Store) -> list[str]:
    with Reader(store.path) as reader:
        return sorted(run.id for run in reader.find(Query(identity=None, limit=100)).runs)


async def test_lines_that_wait_together_are_one_part_and_nothing_is_between(opening: Opening) -> None:
    async with opening() as journal:
        run = journal.begin(begun("a"))
        for number in range(9):
            run.lines([b"%d" % number] * 2)
            if number == 4:
                run.stderr(["oh"])
        assert await journal.settle()
        parts = await journal.parts("a")
        assert [(part.first, part.count) for part in parts] == [(1, 10), (10, 1), (11, 8)]
        assert b"".join(line for part in parts if part.kind is PartKind.LINES for line in part.lines) == b"".join(
            b"%d" % number * 2 for number in range(9)
        )


@pytest.mark.parametrize("pause", [0.05, 0.4])
async def test_what_was_written_is_synced_at_rest_and_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pause: float
) -> None:
    synced: list[float] = []
    monkeypatch.setattr(Store, "checkpoint", lambda _: synced.append(time.monotonic()))
    monkeypatch.setattr(recorder, "REST", 0.2)
    monkeypatch.setattr(recorder, "UNSYNCED", 0.6)
    async with opened(tmp_path / "j.db") as journal:
        run = journal.begin(begun("a"))
        began = time.monotonic()
        while time.monotonic() < began + 1:
            run.lines([b"x"])
            await trio.sleep(pause)
    assert len(synced) in ((1, 2) if pause < recorder.REST else (2, 3, 4))


async def test_a_run_that_says_too_much_is_kept_up_to_there(opening: Opening) -> None:
    async with opening(limit=100) as journal:
        run = journal.begin(begun("a"))
        for _ in range(5):
            run.lines([b"x" * 40])
        assert not run.stored
        run.lines([b"y"])
        run.end(ended("a", 6))
        await journal.settle()
        found = await journal.get(None, "a")
        assert found
        assert (found.lines, found.stored, found.whole) == (6, 2, False)


async def test_without_content_only_facts_are_kept(opening: Opening, tmp_path: Path) -> None:
    async with opening(1000, content=False) as journal:
        run = journal.begin(begun("a", prompt="secret", options={"system_prompt": "secret"}))
        run.lines([b"secret"])
        run.said(b"secret")
        run.end(ended("a", 1, error="the CLI exited: secret", cause="the CLI exited"))
        await journal.settle()
        found = await journal.get(None, "a")
        assert found
        assert (found.prompt, found.options, found.whole, found.lines) == (None, {}, False, 1)
        assert found.error == "the CLI exited"
    assert not [path for path in tmp_path.iterdir() if b"secret" in path.read_bytes()]


@pytest.mark.redis
async def test_without_content_redis_is_told_none(redis_server: RedisServer) -> None:
    async with on_redis(redis_server)(content=False) as journal:
        run = journal.begin(begun("a", prompt="secret", options={"system_prompt": "secret"}))
        run.lines([b"secret"])
        run.end(ended("a", 1, error="the CLI exited: secret", cause="the CLI exited"))
        assert await journal.settle()
    written = [path.read_bytes() for path in redis_server.folder.rglob("*.aof")]
    assert any(b"receipt" in text for text in written)
    assert not any(b"secret" in text for text in written)


# -- faults ------------------------------------------------------------------------------------------------------------


async def test_servers_share_a_file_and_lose_only_the_runs_of_the_dead(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    async with opened(path) as journal:
        run = journal.begin(begun("mine"))
        assert await journal.settle()
        with pytest.raises(ConfigError, match="is held by another server"):
            Store(path, "s")
        other = Store(path, "t")
        assert other.lost == 0
        with other.transaction():
            other.begin(begun("its"))
            other.add("mine", 1, Part(PartKind.LINES, 1, 1, b"not its own"))
        run.lines([b"one"])
        run.end(ended("mine", 1))
        assert await journal.settle()
        assert await journal.parts("mine") == [Part(PartKind.LINES, 1, 1, b"one", 1)]
        other.close()
        its = await journal.get(None, "its")
        assert its
        assert its.state == "live"
    third = Store(path, "u")
    assert third.lost == 1
    assert [file.name for file in tmp_path.glob("*.lock")] == ["j.db.u.lock"]
    third.close()


def test_a_file_by_two_names_has_its_locks_in_one_place(tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "other.db"
    Store(tmp_path / "j.db", "s").close()
    link.symlink_to(tmp_path / "j.db")
    first = Store(link, "first")
    with first.transaction():
        first.begin(begun("a"))
        place = first.put_aside("a", [b"x\n"], behind=None)
        first.add_aside("a", 1, 1, 1, place, 2)
    second = Store(tmp_path / "j.db", "second")
    assert second.lost == 0
    for name in (tmp_path / "j.db", link):
        with Visit(name) as visit:
            found = visit.get(None, "a")
            assert found
            assert found.state == "live"
            assert [part.lines for part in visit.parts("a", 0, 0)] == [[b"x"]]
        assert delete_local(name, "a") == 0
    second.close()
    first.close()


def test_servers_that_open_a_new_file_at_once_share_it(tmp_path: Path) -> None:
    for number in range(10):
        path, stores, barrier = tmp_path / f"{number}.db", list[Store](), threading.Barrier(3)

        def open_one(name: str, path: Path, stores: list[Store], barrier: threading.Barrier) -> None:
            barrier.wait()
            stores.append(Store(path, name))

        threads = [threading.Thread(target=open_one, args=(name, path, stores, barrier)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(stores) == 3
        for store in stores:
            store.close()


def test_a_file_that_another_writes_to_is_opened_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio_claude.journal.opening.BUSY_MS", 100)
    first = Store(tmp_path / "j.db", "a")
    with first.transaction():
        first.begin(begun("lost"))
    first.close()
    other = sqlite3.connect(tmp_path / "j.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    second = Store(tmp_path / "j.db", "b")
    assert second.lost == 0
    other.execute("ROLLBACK")
    other.close()
    assert second.disown() == 1
    second.close()


async def test_locks_that_nobody_holds_go_when_a_server_starts(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    old, new, others = (tmp_path / f"{name}.lock" for name in ("j.db.old", "j.db.new", "other.db.s"))
    living = Store(path, "living")
    for lock in (old, new, others):
        lock.touch()
    for lock in (old, others, tmp_path / "j.db.living.lock"):
        os.utime(lock, (0, 0))
    store = Store(path, "s")
    left = sorted(lock.name for lock in tmp_path.glob("*.lock"))
    assert left == ["j.db.living.lock", "j.db.new.lock", "j.db.s.lock", "other.db.s.lock"], (
        "a server may be about to take the new"
    )
    assert is_alive(path, "living")
    store.close()
    living.close()


def test_a_lock_that_was_made_anew_in_between_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "j.db.old.lock"
    lock.touch()
    os.utime(lock, (0, 0))
    real = fcntl.flock

    def slow(held: int, how: int) -> None:
        real(held, how)
        lock.unlink()
        lock.touch()
        os.utime(lock, (0, 0))

    monkeypatch.setattr("fcntl.flock", slow)
    _clean_lock(lock)
    assert lock.exists()


def test_only_a_server_without_a_lock_is_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "j.db"
    assert not is_alive(path, "s")
    (tmp_path / "j.db.s.lock").touch()
    assert not is_alive(path, "s")

    def refuse(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr("os.open", refuse)
    assert is_alive(path, "s"), "another user's"


async def test_what_is_not_durable_is_not_told_as_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "RETRY", 0.05)
    monkeypatch.setattr("trio_claude.journal.opening.BUSY_MS", 10)
    async with opened(tmp_path / "j.db") as journal:
        journal.begin(begun("a")).end(ended("a"))
        assert await journal.settle()
        monkeypatch.setattr(backlog, "PATIENCE", 0.3)
        with blocked(tmp_path / "j.db"), pytest.raises(JournalFault, match="written just now"):
            await journal.delete(None)
        assert await journal.settle()
        assert await journal.get(None, "a"), "deleted behind its refusal"
        journal.begin(begun("b")).end(ended("b"))
        assert await journal.settle()
        commit = journal._store.transaction

        @contextmanager
        def damaged() -> Iterator[None]:
            with commit():
                yield
                raise sqlite3.DatabaseError("malformed")

        monkeypatch.setattr(journal._store, "transaction", damaged)
        with pytest.raises(JournalFault, match="written just now"):
            await journal.delete(None, "b")
        assert "malformed" in journal.fault
        monkeypatch.setattr(journal._store, "transaction", commit)
        assert await journal.get(None, "b")


async def test_all_are_deleted_some_at_a_time_and_told_as_they_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "AT_ONCE", 2)
    async with opened(tmp_path / "j.db") as journal:
        for number in range(7):
            journal.begin(begun(f"r{number}", "alice")).end(ended(f"r{number}"))
        assert await journal.settle()
        delete, calls = journal._store.delete, list[int]()

        def fail_late(identity: str | None, run: str | None, most: int) -> list[Deleted]:
            calls.append(most)
            if len(calls) == 3:
                raise RuntimeError("no such disk")
            return delete(identity, run, most)

        monkeypatch.setattr(journal._store, "delete", fail_late)
        monkeypatch.setattr(backlog, "PATIENCE", 2)
        gone: list[Deleted] = []
        with pytest.raises(JournalFault):
            await journal.delete("alice", gone=gone)
        left = {run.id for run in (await journal.find(Query(identity="alice"))).runs}
        assert len(gone) == 4
        assert left | {one.run for one in gone} == {f"r{number}" for number in range(7)}
        assert len(await journal.delete("alice")) == len(left) == 3


def held(path: Path) -> list[str]:
    """Return what this process has open of a file, and beside it."""
    return [one for one in descriptors() if str(path) in one]


@pytest.mark.parametrize("damage", [b"nonsense" * 1000, b"SQLite format 3\0" + b"x" * 5000])
async def test_a_damaged_file_is_named_and_kept(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "j.db"
    path.write_bytes(damage)
    with pytest.raises(ConfigError, match="move it away") as told:
        async with opened(path):
            pytest.fail("opened")
    assert path.read_bytes() == damage
    assert not held(path), told


async def test_a_file_with_a_broken_page_is_named_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    async with opened(path) as journal:
        for number in range(200):
            run = journal.begin(begun(f"r{number}"))
            run.lines([os.urandom(300).hex().encode()])
        await journal.settle()
    data = bytearray(path.read_bytes())
    data[2 * BLOCK_BYTES + 100 : 2 * BLOCK_BYTES + 3000] = b"\xff" * 2900
    path.write_bytes(data)
    (tmp_path / "j.db.lines").mkdir()  # whose files a new journal would delete
    with pytest.raises(ConfigError, match=r"journal: .* move it away, and j\.db\.lines with it") as told:
        async with opened(path):
            pytest.fail("opened")
    assert path.read_bytes() == data
    assert not held(path), told


OLD = """
    INSERT INTO runs (id, identity, meta, door, batch, server, state, started, options)
    VALUES ('old', 'local', 'T', 'claude', '', 'gone', 'ended', 0.5, '{}')
"""
"""A run as the first version has it."""


async def test_a_file_of_each_earlier_version_becomes_one_of_this(tmp_path: Path) -> None:
    for version in range(1, len(VERSIONS)):
        path = tmp_path / f"{version}.db"
        with contextlib.closing(sqlite3.connect(path)) as db:
            for statements in VERSIONS[:version]:
                db.executescript(statements)
            db.execute(OLD)
            db.execute(
                "INSERT INTO parts (run, number, kind, first, count, data) VALUES ('old', 1, 0, 1, 2, ?)",
                (b"one\ntwo",),
            )
            db.execute(f"PRAGMA user_version = {version}")
            db.commit()
        async with opened(path) as journal:
            run = journal.begin(begun("new"))
            run.lines([b"x" * 100_000])
            assert await journal.settle()
            assert [one.id for one in (await journal.find(Query(identity="local"))).runs] == ["new", "old"]
            assert (await journal.parts("old"))[0].lines == [b"one", b"two"]
            assert (await journal.parts("new"))[0].lines == [b"x" * 100_000]


async def test_a_file_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    async with opened(path):
        pass
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {len(VERSIONS) + 1}")
    db.close()
    await check_refused(path, "later version")


@pytest.mark.parametrize("version", range(1, len(VERSIONS) + 1))
async def test_another_programs_database_is_refused_whatever_its_number(tmp_path: Path, version: int) -> None:
    path = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(f"CREATE TABLE bookmarks (a); CREATE TABLE runs (id); PRAGMA user_version = {version}")
    await check_refused(path, "another program's database")


async def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("CREATE TABLE ours (x)")
    await check_refused(path, "another program's database")


async def check_refused(path: Path, why: str) -> None:
    """Check that a file is refused, and left as it was."""
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=why):
        async with opened(path):
            pytest.fail("opened")
    assert path.read_bytes() == before


async def test_a_file_that_can_only_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, connect = tmp_path / "j.db", sqlite3.connect
    Store(path, "s").close()

    def read_only(*words: Any, **options: Any) -> sqlite3.Connection:
        db: sqlite3.Connection = connect(*words, **options)
        db.execute("PRAGMA query_only = ON")
        return db

    monkeypatch.setattr(sqlite3, "connect", read_only)
    await check_refused(path, "readonly")


async def test_where_nothing_can_be_made_beside_the_file_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "j.db.opening").mkdir()
    with pytest.raises(ConfigError, match=r"j\.db\.opening can't be used: Is a directory"):
        async with opened(tmp_path / "j.db"):
            pytest.fail("opened")


async def test_who_waits_for_another_to_open_the_file_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_claude.journal.opening.OPENING", 0.3)
    lock = os.open(tmp_path / "j.db.opening", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    rounds = 0

    async def count() -> None:
        nonlocal rounds
        while True:
            await trio.sleep(0.01)
            rounds += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        with pytest.raises(ConfigError, match="another program holds"):
            async with opened(tmp_path / "j.db"):
                pytest.fail("opened")
        nursery.cancel_scope.cancel()
    assert rounds > 3
    os.close(lock)
    async with opened(tmp_path / "j.db"):
        pass


@contextmanager
def blocked(path: Path) -> Iterator[None]:
    """Hold a file as another program does."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


async def test_facts_have_a_bound_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full for a week costs no more memory than one that is full for a minute."""
    monkeypatch.setattr(backlog, "QUEUE_BYTES", 0)
    monkeypatch.setattr(backlog, "FACTS_BYTES", 10_000)
    monkeypatch.setattr(recorder, "RETRY", 0.05)
    monkeypatch.setattr("trio_claude.journal.opening.BUSY_MS", 10)
    async with opened(tmp_path / "j.db") as journal:
        with blocked(tmp_path / "j.db"):
            runs = [journal.begin(begun(f"r{number}")) for number in range(50)]
            assert [run.stored for run in runs] == [True] * 9 + [False] * 41
            assert journal.waiting <= 10_000
            for number, run in enumerate(runs):
                run.end(ended(f"r{number}"))
            assert journal.waiting <= 10_000 + 9 * backlog.FACT_BYTES
        await until(lambda: not journal.waiting)
        assert [run.state for run in (await journal.find(Query(identity=None))).runs] == ["ended"] * 9


def test_the_ends_of_all_runs_that_may_live_at_once_have_room() -> None:
    room = backlog.ENDS_BYTES // backlog.FACT_BYTES
    with pytest.raises(ConfigError, match="max_runs"):
        Config(max_runs=room)


async def test_what_no_store_takes_holds_up_nothing_behind_it(tmp_path: Path) -> None:
    """It is given up, and so is the rest of its run's history: there are no holes."""
    async with opened(tmp_path / "j.db") as journal:
        run, other = journal.begin(begun("a")), journal.begin(begun("b"))
        run.lines([b"one"])
        await journal.settle()
        journal.put(0, lambda store: store.add("a", 1, Part(PartKind.LINES, 2, 1, b"two")))  # its number is taken
        journal.put(0, lambda _store: 1 // 0)
        run._lines = 2
        run.lines([b"three"])
        other.lines([b"x"])
        run.end(ended("a", 3))
        assert await journal.settle()
        found, theirs = await journal.get(None, "a"), await journal.get(None, "b")
        assert found
        assert theirs
        assert (found.state, found.lines, found.stored, found.whole) == ("ended", 3, 1, False)
        assert theirs.stored == 1


async def test_a_write_that_fails_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "RETRY", 0.05)
    monkeypatch.setattr("trio_claude.journal.opening.BUSY_MS", 10)
    async with opened(tmp_path / "j.db") as journal:
        with blocked(tmp_path / "j.db"):
            run = journal.begin(begun("a"))
            run.lines([b"x"])
            await until(lambda: "locked" in journal.fault)
            assert run.stored
        assert await journal.settle()
        assert not journal.fault
        assert [part.lines for part in await journal.parts("a")] == [[b"x"]]


async def test_a_file_that_is_moved_away_is_told_and_has_all_once_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "RETRY", 0.05)
    path, away = tmp_path / "j.db", tmp_path / "away"
    async with opened(path) as journal:
        path.rename(away)
        run = journal.begin(begun("a"))
        await until(lambda: "No such file" in journal.fault)
        path.write_bytes(b"")
        await until(lambda: "another file stands in its place" in journal.fault)
        run.lines([b"x"])
        assert run.stored
        away.rename(path)
        assert await journal.settle()
        assert not journal.fault
        assert [part.lines for part in await journal.parts("a")] == [[b"x"]]


async def test_an_observer_hears_once_that_it_can_not_be_written_and_once_that_it_can(
    fake: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "RETRY", 0.05)
    monkeypatch.setattr("trio_claude.journal.opening.BUSY_MS", 10)

    def told() -> list[bool]:
        return [event.over for event in fake.events if isinstance(event, Strained)]

    async with fake.serve(journal=f"sqlite:{tmp_path / 'j.db'}") as server:
        journal = server.runs.journal
        assert journal
        with blocked(tmp_path / "j.db"):
            assert (await ask(server, "hello")).code == 1000
            await until(lambda: journal.statistics().faults > 2)
            assert told() == [False]
        await until(lambda: len(told()) == 2)
    assert told() == [False, True]


async def test_a_journal_that_closes_tries_again_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio_claude.journal.opening.BUSY_MS", 10)
    other = sqlite3.connect(tmp_path / "j.db", isolation_level=None, check_same_thread=False)

    def free() -> None:
        wait_for(lambda: journal._closing)
        seen = journal._faults
        wait_for(lambda: journal._faults >= seen + 2 or not journal._thread.is_alive())
        other.execute("ROLLBACK")

    with contextlib.closing(other):
        async with opened(tmp_path / "j.db") as journal:
            run = journal.begin(begun("a"))
            assert await journal.settle()
            other.execute("BEGIN IMMEDIATE")
            freeing = threading.Thread(target=free)
            freeing.start()
            run.lines([b"x"])
            run.end(ended("a", 1))
        freeing.join()
    with Reader(tmp_path / "j.db") as reader:
        found = reader.get(None, "a")
    assert found
    assert (found.state, found.stored) == ("ended", 1)


async def test_a_fault_names_no_path_and_no_run_to_a_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "RETRY", 0.05)
    monkeypatch.setattr(backlog, "PATIENCE", 0.2)

    def full(_bulk: Bulk, run: str, _texts: list[Text], **_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "j.db.lines" / run))

    async with opened(tmp_path / "j.db") as journal:
        journal.begin(begun("a", "alice")).end(ended("a"))
        assert await journal.settle()
        with monkeypatch.context() as patch:
            patch.setattr(Bulk, "write", full)
            journal.begin(begun("b" * 32, "bob")).lines([b"x" * 100_000])
            await until(lambda: "No space left" in journal.fault)
            assert str(tmp_path) not in journal.fault
            assert "b" * 32 not in journal.fault
            with pytest.raises(JournalFault) as caught:
                await journal.delete("alice", "a")
            assert str(caught.value) == "the journal can't be written just now"
        assert await journal.settle()


async def test_what_waits_for_the_disk_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "QUEUE_BYTES", 10_000)
    monkeypatch.setattr(recorder, "RETRY", 0.05)
    monkeypatch.setattr("trio_claude.journal.opening.BUSY_MS", 10)
    async with opened(tmp_path / "j.db") as journal:
        with blocked(tmp_path / "j.db"):
            run = journal.begin(begun("a"))
            for _ in range(20):
                run.lines([b"x" * 1000])
            assert not run.stored
            assert journal.waiting <= 10_000
            run.end(ended("a", 20))
        await journal.settle()
        found = await journal.get(None, "a")
        assert found
        assert found.whole is False
        assert found.stored == sum(part.count for part in await journal.parts("a")) < 20


async def test_what_is_short_is_reckoned_as_what_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each write, and each text in one, takes far more memory than its byte."""
    monkeypatch.setattr(backlog, "QUEUE_BYTES", 50 * backlog.FACT_BYTES)
    monkeypatch.setattr("trio_claude.journal.opening.BUSY_MS", 10)
    async with opened(tmp_path / "j.db") as journal:
        with blocked(tmp_path / "j.db"):
            words, lines = journal.begin(begun("a")), journal.begin(begun("b"))
            for _ in range(30):
                words.stderr(["x"])
            assert words.stored
            for _ in range(100):
                lines.lines([b"x"])
            assert not lines.stored
            for _ in range(30):
                words.stderr(["x"])
            assert not words.stored
        assert await journal.settle()
        kept = await journal.get(None, "b")
        assert kept
        assert 50 < kept.stored < 100


async def test_what_a_crowd_says_is_written_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for more, but not where somebody waits for it."""
    monkeypatch.setattr(recorder, "CROWD_PATIENCE", 60.0)
    names = [str(number) for number in range(recorder.CROWD * 4)]
    async with opened(tmp_path / "j.db") as journal:
        runs = [journal.begin(begun(name)) for name in names]
        for run in runs:
            run.lines([b"a"])
        await trio.sleep(0.2)  # twenty times as long as a few would wait
        assert journal.waiting
        with trio.fail_after(10):
            await journal.settle()
        assert [sum(part.count for part in await journal.parts(name)) for name in names] == [1] * len(names)


@pytest.mark.parametrize("what", ["an end", "much", "somebody who waits"])
async def test_lines_alone_wait_for_more_until_something_else_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(recorder, "LINGER", 60.0)
    commit, commits = Store.transaction, list[Store]()

    def counted(store: Store) -> AbstractContextManager[None]:
        commits.append(store)
        return commit(store)

    async with opened(tmp_path / "j.db") as journal:
        run = journal.begin(begun("a"))
        with trio.fail_after(10):
            while journal.waiting:
                await trio.sleep(0.01)
        monkeypatch.setattr(Store, "transaction", counted)
        for _ in range(10):
            run.lines([b"x"])
            await trio.sleep(0.02)  # longer than anything else waits for more
        assert journal.waiting
        assert not commits
        with trio.fail_after(10):
            if what == "an end":
                run.end(ended("a", 10))
            elif what == "much":
                run.lines([b"x" * backlog.FEW_BYTES])
            else:
                await journal.settle()
            while journal.waiting:
                await trio.sleep(0.01)
        assert len(commits) == 1
        assert sum(part.count for part in await journal.parts("a")) == 10 + (what == "much")


async def test_much_at_once_does_not_linger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "LINGER", 60.0)
    async with opened(tmp_path / "j.db") as journal:
        run = journal.begin(begun("a"))
        await journal.settle()
        run.lines([b"x" * (backlog.FEW_BYTES + 1)])
        with trio.fail_after(10):
            while journal.waiting:
                await trio.sleep(0.01)


async def test_what_lingers_is_kept_when_the_journal_closes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "LINGER", 60.0)
    with trio.fail_after(10):
        async with opened(tmp_path / "j.db") as journal:
            run = journal.begin(begun("a"))
            await journal.settle()
            run.lines([b"x"])
        async with opened(tmp_path / "j.db") as journal:
            assert sum(part.count for part in await journal.parts("a")) == 1


async def test_a_burst_is_put_aside_piece_by_piece_on_a_disk_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs say at once, in turn and with words of stderr between, comes back whole and in order."""
    monkeypatch.setattr(recorder, "BURST", 1)
    monkeypatch.setattr(recorder, "RETRY", 0.01)
    write, calls = Bulk.write, list[bool]()

    def fail_now_and_then(bulk: Bulk, run: str, texts: list[Text], *, behind: int | None = None) -> int:
        calls.append(behind is not None)
        if len(calls) % 5 == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(bulk, run, texts, behind=behind)

    monkeypatch.setattr(Bulk, "write", fail_now_and_then)
    said: dict[str, list[bytes]] = {"a": [], "b": [], "c": []}
    rng = random.Random(1)
    async with opened(tmp_path / "j.db", 2**26) as journal:
        runs = {name: journal.begin(begun(name)) for name in said}
        for number in range(600):
            name = rng.choice("abc")
            lines = [b"%06d " % number + b"x" * rng.randrange(4000) for _ in range(rng.randrange(1, 20))]
            said[name] += lines
            runs[name].lines(lines, [b"\n".join((*some, b"")) for some in (lines[:3], lines[3:]) if some])
            if number % 97 == 0:
                runs[name].stderr(["oh"])
            await trio.sleep(0.001)
        while not await journal.settle():
            pass
        for name, lines in said.items():
            parts, whole = list[Part](), 0
            while found := await journal.parts(name, whole, parts[-1].number if parts else 0):
                parts += found
                whole = parts[-1].last
            assert [line for part in parts if part.kind is PartKind.LINES for line in part.lines] == lines
    assert any(calls)


WRITER = """
import sys, time, trio
from pathlib import Path
from trio_claude.journal import Begun, Retention, open_journal
async def main():
    async with open_journal(Path(sys.argv[1]), sys.argv[2], Retention(), 2**30, content=True) as journal:
        run = journal.begin(Begun(id=sys.argv[2], identity="local", meta="T", door="claude", session=None, started=time.time(), prompt=None, options={}))
        number = 0
        assert await journal.settle()
        print("ready", flush=True)
        while True:
            lines = [b"%0100d" % (number + offset) for offset in range(1, 1 + number % 7 + 1)]
            number += len(lines)
            run.lines(lines)
            await trio.sleep(0)
trio.run(main)
"""


def test_a_server_that_is_killed_at_any_time_leaves_a_clean_file(tmp_path: Path, long: bool) -> None:
    path = tmp_path / "j.db"
    for number in range(200 if long else 15):
        words = [sys.executable, "-c", WRITER, str(path), f"r{number}"]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
            time.sleep(0.001 * (number * 37 % 200))  # at another moment of its writing each time
            process.kill()
        store = Store(path, "looks")
        assert store.lost == 1
        store.close()
        with Reader(path) as reader:
            run = reader.get(None, f"r{number}")
            assert run
            assert (run.state, run.reason, run.whole) == ("ended", "node-lost", False)
            seen: list[bytes] = []
            while parts := reader.parts(f"r{number}", len(seen), 0):
                for part in parts:
                    assert part.first == len(seen) + 1
                    assert part.count == len(part.lines)
                    seen += part.lines
            assert seen == [b"%0100d" % line for line in range(1, len(seen) + 1)]
            assert run.stored == run.lines == len(seen)
    assert any(folder_of(path).iterdir())  # some of it came in bulk


# -- with a server -----------------------------------------------------------------------------------------------------


async def stored(server: Server, done: Callable[[], bool]) -> Journal:
    journal = server.runs.journal
    assert journal
    await until(done)
    assert await journal.settle()
    return journal


async def test_a_run_of_a_server_is_kept_as_its_client_saw_it(fake: Backend) -> None:
    async with fake.serve(journal="memory") as server:
        said = await ask(server, directive("lines", n=500, size=100), "?frames=verbatim")
        journal = await stored(server, lambda: len(fake.ended) == 1)
        (run,) = (await journal.find(Query(identity="local"))).runs
        lines = [line for part in await journal.parts(run.id) for line in part.lines]
        assert lines == [frame.encode() for frame in said.frames if '"info"' not in frame]
        assert (run.reason, run.lines, run.stored, run.whole) == ("exit", len(lines), len(lines), True)
        assert run.receipt == attrs.asdict(fake.ended[0].outcome.receipt)
        await ask(server, "hello")
        await stored(server, lambda: len(fake.ended) == 2)
        (newest, _) = (await journal.find(Query(identity="local"))).runs
        latest = await journal.get("local", newest.id)
        assert latest
        assert latest.prompt == "hello"
        assert latest.tokens > 0
        assert latest.dollars > 0


async def test_what_a_run_has_used_is_told_again_though_once_there_was_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path / "j.db") as journal:
        run = journal.begin(begun("a"))
        with monkeypatch.context() as patch:
            patch.setattr(backlog, "FACTS_BYTES", -(2**40))
            run.spent(7, 0.5)
        run.spent(9, 1.5)
        assert await journal.settle()
        found = await journal.get(None, "a")
        assert found
        assert (found.tokens, found.dollars) == (9, 1.5)


async def test_what_a_run_has_used_outlives_its_server(fake: Backend, tmp_path: Path) -> None:
    path, copy = tmp_path / "j.db", tmp_path / "copy.db"
    async with fake.serve(journal=f"sqlite:{path}") as server, open_talk(server) as talk:
        run = (await talk.start())["run"]
        for _ in range(2):
            await talk.user("hello")
            cost = (await talk.result())["total_cost_usd"]
        journal = await stored(server, lambda: True)
        live = await journal.get(None, run)
        assert live
        assert (live.state, live.dollars) == ("live", pytest.approx(cost))
        with contextlib.closing(sqlite3.connect(path)) as db, contextlib.closing(sqlite3.connect(copy)) as other:
            db.backup(other)  # as a server leaves it that is killed
        await talk.stop("kill")
        await talk.event("ended")
    store = Store(copy, "next")
    store.close()
    assert store.lost == 1
    with Reader(copy) as reader:
        (row,) = reader.usage(UsageQuery()).rows
    assert (row.runs, row.tokens, row.dollars) == (1, live.tokens, live.dollars)


async def test_a_run_that_is_cancelled_has_ended_for_the_journal(fake: Backend, tmp_path: Path) -> None:
    config = Config(cli=fake.program, cwd=str(fake.cwd), journal=f"sqlite:{tmp_path}/j.db")
    async with open_engine(config, environ=fake.environ) as engine:
        with trio.CancelScope() as scope:
            async with open_run(directive("slow", n=100, ms=50), engine=engine) as run:
                async for _ in run:
                    scope.cancel()
        journal = engine.runs.journal
        assert journal
        await journal.settle()
        (kept,) = (await journal.find(Query(identity="local"))).runs
        assert (kept.state, kept.reason) == ("ended", "stopped")
        assert kept.stored == kept.lines


async def test_a_disk_that_is_full_stops_no_run(fake: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(recorder, "RETRY", 0.05)
    async with fake.serve(journal="memory") as server:
        monkeypatch.setattr(Store, "add", full)
        assert (await ask(server, "hello")).code == 1000
        journal = server.runs.journal
        assert journal
        await until(lambda: "can't be written" in journal.fault)
        monkeypatch.undo()
        assert await journal.settle()
        assert not journal.fault


async def test_auto_goes_on_without_a_journal_that_can_not_be_had(fake: Backend, tmp_path: Path) -> None:
    state, broken = tmp_path / "state", tmp_path / "broken"
    (broken / "journal.db").mkdir(parents=True)
    async with (
        fake.serve(journal="auto", state=str(state)) as first,
        fake.serve(journal="auto", state=str(broken)) as second,
    ):
        assert first.runs.journal
        assert second.runs.journal is None
        assert (await ask(second, "hello")).code == 1000
    ready = [event for event in fake.events if isinstance(event, JournalReady)]
    assert ready[0] == JournalReady(str(state / "journal.db"))
    assert "can't be used" in ready[1].detail
    with pytest.raises(ConfigError, match="can't be used"):
        async with fake.serve(journal="sqlite:/proc/nope/j.db"):
            pytest.fail("opened")


@pytest.mark.root
async def test_a_small_disk_that_fills_up_stops_no_run_and_is_told(
    fake: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real file system of 1 MiB: runs go on, `/readyz` says why nothing is kept, and the file is whole afterwards."""
    monkeypatch.setattr(recorder, "RETRY", 0.05)
    disk = fake.cwd.parent / "disk"
    disk.mkdir()
    await trio.run_process(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)])
    try:
        async with fake.serve(journal=f"sqlite:{disk}/j.db") as server:
            journal = server.runs.journal
            assert journal
            for _ in range(3):
                assert (await ask(server, directive("lines", n=3000, size=200))).code == 1000
            await until(lambda: "can't be written" in journal.fault)
            assert (await ask(server, "hello")).code == 1000
            monkeypatch.setattr(recorder, "PATIENCE", 0.5)
        with Reader(disk / "j.db") as reader:
            for run in reader.find(Query(identity=None)).runs:
                lines = [line for part in reader.parts(run.id, 0, 0) for line in part.lines]
                assert len(lines) == run.stored
    finally:
        await trio.run_process(["umount", "-l", str(disk)])
