"""Large parts of histories: in files beside the SQLite one, which hold what its rows name and go with them."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import until

from trio_claude.errors import JournalFault
from trio_claude.journal import Begun, Journal, Retention, open_journal
from trio_claude.journal import bulk as bulk_module
from trio_claude.journal import recorder as recorder_module
from trio_claude.journal.bulk import LEAST, ROOM, Bulk, folder_of
from trio_claude.journal.facts import End
from trio_claude.journal.store import Store
from trio_claude.journal.visits import delete_local
from trio_claude.stream_json import LineSplitter

LARGE = b"x" * LEAST
BLOCK = 64 * 1024
"""Bytes that a disk gives at a time, at most."""


def begun(run: str) -> Begun:
    return Begun(
        id=run, identity="local", meta="T", door="claude", session=None, started=1.0, prompt=None, options={}
    )  # fmt: skip


def ended(run: str, lines: int) -> End:
    return End(
        id=run, ended=2.0, reason="exit", exit_status=0, signal=None, lines=lines, encoding_errors=0, tokens=0,
        dollars=0.0, turns=1, error=None, receipt={},
    )  # fmt: skip


async def write(path: Path, run: str = "a", *, server: str = "s") -> None:
    async with open_journal(path, server, Retention(), 2**30, content=True) as journal:
        recorder = journal.begin(begun(run))
        recorder.lines([b"one", LARGE])
        assert await journal.settle()
        recorder.lines([b"three"])
        assert await journal.settle()
        recorder.lines([LARGE, b"five"], [LARGE, memoryview(b"\nfive\n")])
        recorder.end(ended(run, 5))


async def read(journal: Journal, run: str = "a") -> list[bytes]:
    return [line for part in await journal.parts(run) for line in part.lines]


async def test_large_parts_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    await write(path)
    assert (folder_of(path) / "a").stat().st_size == len(LARGE) * 2 + len(b"one\n\n\nfive\n")
    assert folder_of(path).stat().st_mode & 0o777 == 0o700
    assert (folder_of(path) / "a").stat().st_mode & 0o777 == 0o600
    assert LARGE not in path.read_bytes()
    async with open_journal(path, "t", Retention(), 2**30, content=True) as journal:
        assert await read(journal) == [b"one", LARGE, b"three", LARGE, b"five"]
        run = await journal.get(None, "a")
        assert run
        assert (run.stored, run.whole) == (5, True)


async def test_a_file_goes_with_its_run(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    for run in ("a", "b", "c"):
        await write(path, run)
    async with open_journal(path, "t", Retention(), 2**30, content=True) as journal:
        assert await journal.delete(None, "a")
        assert {file.name for file in folder_of(path).iterdir()} == {"b", "c"}
    assert delete_local(path, "b") == 1
    assert {file.name for file in folder_of(path).iterdir()} == {"c"}
    store = Store(path, "u")
    with store.transaction():
        assert store.retain(Retention(size=1), 3.0) == 1
    store.close()
    assert not list(folder_of(path).iterdir())


async def test_lines_that_are_missing_or_cut_are_told_as_damage(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    await write(path)
    os.truncate(folder_of(path) / "a", 100)
    async with open_journal(path, "t", Retention(), 2**30, content=True) as journal:
        with pytest.raises(JournalFault, match="the lines of a are damaged"):
            await journal.parts("a")
        (folder_of(path) / "a").unlink()
        with pytest.raises(JournalFault, match="the lines of a can't be read: No such file"):
            await journal.parts("a")
        run = await journal.get(None, "a")
        assert run  # its facts are there all the same


async def test_a_burst_goes_to_its_file_before_its_rows_can(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    lines = [b"%d" % number + LARGE for number in range(40)]
    async with open_journal(path, "s", Retention(), 2**30, content=True) as journal:
        recorder = journal.begin(begun("a"))
        assert await journal.settle()
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        for line in lines:
            recorder.lines([line])
        await until(lambda: (folder_of(path) / "a").exists() and (folder_of(path) / "a").stat().st_size > len(LARGE))
        await until(lambda: journal.waiting < len(LARGE))  # what is in the file is in memory no more
        assert await read(journal) == []
        other.execute("COMMIT")
        other.close()
        recorder.end(ended("a", 40))
        assert await journal.settle()
        assert await read(journal) == lines
    assert (folder_of(path) / "a").stat().st_size == sum(map(len, lines)) + 40


async def test_a_part_that_is_not_written_whole_leaves_nothing_and_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, sizes = bulk_module._write_all, list[int]()

    def fail_once(file: int, pieces: list[bulk_module.Text]) -> None:
        if not sizes:
            os.write(file, b"half of it")
            sizes.append(os.fstat(file).st_size)
            raise OSError(errno.ENOSPC, "no room")
        whole(file, pieces)

    monkeypatch.setattr(bulk_module, "_write_all", fail_once)
    monkeypatch.setattr(recorder_module, "RETRY", 0.01)
    path = tmp_path / "j.db"
    await write(path)
    assert sizes == [len(b"half of it")]
    assert (folder_of(path) / "a").stat().st_size == len(LARGE) * 2 + len(b"one\n\n\nfive\n")
    async with open_journal(path, "t", Retention(), 2**30, content=True) as journal:
        assert await read(journal) == [b"one", LARGE, b"three", LARGE, b"five"]


def test_files_of_no_run_go_when_a_server_starts(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    Store(path, "s").close()
    folder_of(path).mkdir()
    for name, age in (("old", bulk_module.FORGOTTEN + 9), ("new", 0.0)):
        (folder_of(path) / name).write_bytes(b"x")
        os.utime(folder_of(path) / name, (time.time() - age,) * 2)
    Store(path, "s").close()
    assert [file.name for file in folder_of(path).iterdir()] == ["new"]


def test_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"kept")
    bulk = Bulk(tmp_path / "lines")
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "a").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        bulk.write("a", [b"x"])
    assert (tmp_path / "victim").read_bytes() == b"kept"


def test_few_files_are_open_and_all_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", lambda file: synced.append(os.fstat(file).st_ino))
    before = len(os.listdir("/proc/self/fd"))
    bulk = Bulk(tmp_path / "lines")
    runs = [str(number) for number in range(bulk_module.OPEN * 2)]
    for run in runs:
        assert bulk.write(run, [b"x"]) == 0
    assert len(os.listdir("/proc/self/fd")) == before + bulk_module.OPEN
    bulk.forget(runs[:1])
    bulk.sync()
    assert sorted(synced) == sorted((tmp_path / "lines" / run).stat().st_ino for run in runs[1:])
    bulk.sync()
    assert len(synced) == len(runs) - 1
    bulk.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_write_that_stops_half_way_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writev = os.writev
    monkeypatch.setattr(os, "writev", lambda file, pieces: writev(file, [bytes(pieces[0])[:2]]))
    bulk = Bulk(tmp_path)
    assert bulk.write("a", [b"first", memoryview(b"second"), b"third"]) == 0
    bulk.close()
    assert (tmp_path / "a").read_bytes() == b"firstsecondthird"


@pytest.mark.parametrize(("size", "count"), [(100_000, 40), (3 * 512 * 1024, 3), (1, 5000)])
def test_a_large_part_is_copied_in_portions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, count: int
) -> None:
    calls: list[list[bulk_module.Text]] = []
    writev = os.writev

    def note(file: int, pieces: list[bulk_module.Text]) -> int:
        calls.append(pieces)
        return writev(file, pieces)

    monkeypatch.setattr(os, "writev", note)
    bulk = Bulk(tmp_path)
    assert bulk.write("a", [b"x" * size] * count) == 0
    assert bulk.write("a", [b"y"]) == size * count
    bulk.close()
    assert (tmp_path / "a").read_bytes() == b"x" * size * count + b"y"
    assert all(len(pieces) <= bulk_module.AT_ONCE for pieces in calls)
    assert all(sum(map(len, pieces)) <= max(bulk_module.PORTION, size) for pieces in calls)


def test_what_a_write_that_failed_leaves_is_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a disk that fails to shorten the file, too."""
    bulk = Bulk(tmp_path)
    assert bulk.write("a", [b"one\n", b"two\n"]) == 0

    def fail_half_way(file: int, _pieces: list[bulk_module.Text]) -> None:
        os.write(file, b"\nnobody's")
        raise OSError(errno.EIO, "broken")

    def fail(_file: int, _size: int) -> None:
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as broken:
        broken.setattr(bulk_module, "_write_all", fail_half_way)
        broken.setattr(os, "ftruncate", fail)
        with pytest.raises(OSError, match="broken"):
            bulk.write("a", [b"three\n"], behind=8)
    assert bulk.write("a", [b"three\n"], behind=8) == 8
    assert bulk.write("a", [b"four\n"], behind=14) == 14
    assert bulk.write("a", [b"next\n"]) == 19
    bulk.close()
    assert (tmp_path / "a").read_bytes() == b"one\ntwo\nthree\nfour\nnext\n"


@pytest.mark.parametrize("ending", [b"", b"the beginning of the next, "])
@pytest.mark.parametrize("beginning", [b"", b"the end of the last, "])
def test_texts_say_what_the_lines_say(beginning: bytes, ending: bytes) -> None:
    splitter = LineSplitter(1000)
    splitter.feed(beginning)
    chunk = b"first\n" + b"\n".join(b"line %d" % number for number in range(20)) + b"\n" + ending
    lines = splitter.feed(chunk)
    texts = splitter.texts(lines, chunk)
    assert [type(text) for text in texts] == [bytes, memoryview]
    assert b"".join(texts) == b"".join(line + b"\n" for line in lines)
    assert splitter.texts(lines[1:], chunk) == [b"".join(line + b"\n" for line in lines[1:])]  # not all of them


def test_texts_are_copied_where_a_chunk_holds_little_or_something_else() -> None:
    splitter = LineSplitter(1000)
    few = b"a\nb\n" + b"c" * 100
    assert splitter.texts(splitter.feed(few), few) == [b"a\nb\n"]
    bad = b"\nnot \xff UTF-8\nd\ne\n"
    lines = splitter.feed(bad)
    assert splitter.texts(lines, bad) == [b"c" * 100 + "\nnot \ufffd UTF-8\nd\ne\n".encode()]
    rest = b"a\nb\nc"
    splitter.feed(rest)
    lines = splitter.finish()
    assert splitter.texts(lines, b"") == [b"c\n"]


def room(path: Path, run: str = "a") -> int:
    """Return the bytes that a run's file has on its disk behind its end."""
    found = (folder_of(path) / run).stat()
    return found.st_blocks * 512 - found.st_size


ends = pytest.mark.parametrize(
    "end", [lambda store: store.end(ended("a", 1)), Store.checkpoint, Store.close], ids=["run", "rest", "server"]
)


@ends
def test_the_disk_keeps_room_for_more_until_nothing_more_comes(tmp_path: Path, end: Callable[[Store], None]) -> None:
    store = Store(tmp_path / "j.db", "s")
    store.begin(begun("a"))
    place = store.put_aside("a", [LARGE], behind=None)
    assert (folder_of(store.path) / "a").stat().st_size == LEAST, "as long as what is in it"
    assert room(store.path) >= ROOM[0]
    store.put_aside("a", [b"x" * 2 * ROOM[0]], behind=place + LEAST)
    assert room(store.path) >= 2 * ROOM[0], "as much again"
    end(store)
    assert room(store.path) <= BLOCK
    store.close()


def test_a_server_that_died_keeps_no_room(tmp_path: Path) -> None:
    dead = Store(tmp_path / "j.db", "dead")
    dead.begin(begun("a"))
    dead.put_aside("a", [LARGE], behind=None)
    for lock in tmp_path.glob("*.dead.lock"):
        lock.unlink()
    assert room(dead.path) >= ROOM[0]
    with contextlib.closing(Store(tmp_path / "j.db", "next")) as store:
        assert store.lost == 1
        assert room(store.path) <= BLOCK
    dead.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [("_fallocate", None), ("_fallocate", lambda *_: -1), ("SPARE", 2**62)],
    ids=["no system", "no disk", "full"],
)
async def test_where_no_room_is_kept_all_is_written_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    monkeypatch.setattr(bulk_module, name, value)
    path = tmp_path / "j.db"
    store = Store(path, "s")
    store.begin(begun("b"))
    store.put_aside("b", [LARGE], behind=None)
    assert room(path, "b") <= BLOCK
    store.close()
    await write(path)
    async with open_journal(path, "t", Retention(), 2**30, content=True) as journal:
        assert await read(journal) == [b"one", LARGE, b"three", LARGE, b"five"]
