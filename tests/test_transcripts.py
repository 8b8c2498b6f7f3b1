"""Rule: transcripts go when they are old, too many or deleted; never those in use, and never by way of a link."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import trio
from harness import Backend, ask, open_backend, until
from journals import begun, ended
from redis_server import RedisServer
from talk import open_talk

from trio_claude.holds import Holds
from trio_claude.journal import Deleted
from trio_claude.quarters import Homes
from trio_claude.transcripts import Keep, find, remove, tidy, touch

DAY = 86400.0
HOME = Homes.name("key:alice")


def named(word: str) -> str:
    """Return a session's name."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, word))


def write(root: Path, session: str, *, size: int = 100, home: str = "h1", project: str = "-work") -> Path:
    """Write a transcript."""
    folder = root / home / "config" / "projects" / project
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{named(session)}.jsonl"
    path.write_bytes(b"x" * size)
    path.with_suffix("").mkdir()
    (path.with_suffix("") / "beside.json").write_text("{}")
    return path


@pytest.fixture
def aged(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, float], None]:
    """Give a way to say that a file changed so many days ago, which only the disk can."""
    times: dict[int, float] = {}
    real = os.stat

    def told(path: Any, **more: Any) -> Any:
        found = real(path, **more)
        return SimpleNamespace(
            st_ctime=times.get(found.st_ino, found.st_ctime), st_mode=found.st_mode, st_blocks=found.st_blocks
        )

    monkeypatch.setattr("trio_claude.transcripts.os", SimpleNamespace(**{**vars(os), "stat": told}))

    def age(path: Path, days: float) -> None:
        times[real(path).st_ino] = time.time() - days * DAY

    return age


def sessions(root: Path) -> list[str]:
    return sorted(one.session for one in find(str(root)))


def some(*words: str) -> list[str]:
    return sorted(map(named, words))


def test_the_old_go_and_what_is_beside_them(folder: Path, aged: Callable[[Path, float], None]) -> None:
    old, new = write(folder, "old"), write(folder, "new", home="h2")
    aged(old, 31)
    aged(new, 29)
    assert tidy(str(folder), Keep(30, 0, DAY), time.time()) == 1
    assert sessions(folder) == some("new")
    assert not old.with_suffix("").exists()
    assert new.with_suffix("").exists()


def test_of_too_many_bytes_the_oldest_go_but_none_that_may_be_in_use(
    folder: Path, aged: Callable[[Path, float], None]
) -> None:
    for session, age in (("a", 5), ("b", 4), ("c", 3), ("d", 0.5)):
        aged(write(folder, session), age)
    size = sum(one.size for one in find(str(folder)))
    assert tidy(str(folder), Keep(0, size // 2, DAY), time.time()) == 2
    assert sessions(folder) == some("c", "d")
    assert tidy(str(folder), Keep(0, 10, DAY), time.time()) == 1
    assert sessions(folder) == some("d")
    assert tidy(str(folder), Keep(0.1, 10, DAY), time.time()) == 0, "a session may last a day"


def test_nobody_can_have_what_is_anothers_removed(folder: Path) -> None:
    """Whoever takes the most gives first, and who takes no more than an even share gives nothing."""
    write(folder, "theirs", home="h1")
    for number in range(5):
        write(folder, f"mine {number}", home="h2")
    (one,) = find(str(folder), "h1")
    later = time.time() + 2 * DAY
    held = {("h2", named(f"mine {number}")) for number in range(5)}
    assert tidy(str(folder), Keep(0, one.size * 2, DAY), later, held) == 0
    assert tidy(str(folder), Keep(0, one.size * 2, DAY), later) == 4
    assert [len(list(find(str(folder), home))) for home in ("h1", "h2")] == [1, 1]


def test_what_is_held_or_used_again_stays(folder: Path) -> None:
    paths = [write(folder, session) for session in ("held", "free", "touched")]
    changed = max(path.stat().st_ctime for path in paths)
    while paths[2].stat().st_ctime <= changed + 0.05:
        touch(str(folder), "h1", named("touched"))
    assert tidy(str(folder), Keep(1, 0, DAY), changed + DAY + 0.02, {("h1", named("held"))}) == 1
    assert sessions(folder) == some("held", "touched")


def test_what_has_changed_since_it_was_found_stays(folder: Path) -> None:
    path = write(folder, "a")
    (found,) = find(str(folder))
    while path.stat().st_ctime == found.changed:
        touch(str(folder), "h1", named("a"))
    assert not remove(str(folder), found, unchanged=True)
    assert remove(str(folder), found)


def test_a_run_decides_neither_when_a_transcript_changed_nor_what_it_takes(folder: Path) -> None:
    old, late, sparse = (write(folder, session) for session in ("old", "late", "sparse"))
    os.utime(old, (0, 0))
    os.utime(late, (2**40, 2**40))
    os.truncate(sparse, 2**40)
    (late.with_suffix("") / "deeper").mkdir()
    (late.with_suffix("") / "deeper" / "much").write_bytes(b"x" * 1_000_000)
    found = {one.session: one for one in find(str(folder))}
    assert all(abs(one.changed - time.time()) < 60 for one in found.values())
    assert found[named("sparse")].size < 100_000
    assert found[named("late")].size > 1_000_000
    assert tidy(str(folder), Keep(1, 0, 60), time.time()) == 0
    assert tidy(str(folder), Keep(1, 0, 60), time.time() + 2 * DAY) == 3


@pytest.mark.parametrize(
    "name",
    ["..jsonl", "...jsonl", ".jsonl", "x.jsonl", f"{named('a')}", f"{named('a')}\n.jsonl", f"-{named('a')}.jsonl"],
)
def test_a_file_of_another_name_is_no_transcript(folder: Path, name: str) -> None:
    path = write(folder, "a")
    (path.parent / "precious").write_text("x")
    with contextlib.suppress(IsADirectoryError):
        (path.parent / name).write_text("x")
    for found in list(find(str(folder))):
        assert found.session == named("a")
        remove(str(folder), found)
    assert (path.parent / "precious").exists()
    assert not path.exists()
    assert tidy(str(folder), Keep(1, 1, 0), time.time() + 9 * DAY) == 0


def test_a_folder_deeper_than_python_goes_ends_no_tidying(folder: Path) -> None:
    deep, other = write(folder, "deep"), write(folder, "other")
    here = os.open(deep.with_suffix(""), os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    assert tidy(str(folder), Keep(1, 0, DAY), time.time() + 2 * DAY) == 2
    assert not list(other.parent.iterdir())


def test_no_limit_is_none(folder: Path) -> None:
    write(folder, "a")
    assert tidy(str(folder), Keep(0, 0, DAY), time.time() + 5000 * DAY) == 0


@pytest.mark.parametrize("place", ["home", "config", "projects", "project", "transcript", "beside"])
def test_links_lead_nowhere(folder: Path, place: str) -> None:
    """Whatever a run puts in the place of a folder or file, what it points to stays."""
    theirs = folder / "theirs"
    precious = write(theirs, "s", home="home", project="project")
    name = precious.stem
    root = folder / "homes"
    path = root / "home" / "config" / "projects" / "project"
    spots = {"home": (root / "home", theirs / "home"), "config": (root / "home" / "config", theirs / "home" / "config"),
             "projects": (path.parent, precious.parent.parent), "project": (path, precious.parent),
             "transcript": (path / f"{name}.jsonl", precious), "beside": (path / name, precious.with_suffix(""))}  # fmt: skip
    spot, target = spots[place]
    spot.parent.mkdir(parents=True, exist_ok=True)
    spot.symlink_to(target)
    if place == "beside":
        (path / f"{name}.jsonl").write_text("{}")
    for found in list(find(str(root))):
        remove(str(root), found)
    tidy(str(root), Keep(1, 1, 0), time.time() + 9 * DAY)
    assert precious.read_bytes() == b"x" * 100
    assert (precious.with_suffix("") / "beside.json").exists()


async def test_what_is_gone_already_is_no_error(folder: Path) -> None:
    write(folder, "a")
    (found,) = find(str(folder))
    remove(str(folder), found)
    remove(str(folder), found)
    assert list(find(str(folder / "nowhere"))) == []


async def delete(url: str, key: str) -> int:
    async with httpx.AsyncClient() as client:
        told = await client.delete(url, headers={"Authorization": f"Bearer {key}"})
        return int(told.status_code)


@pytest.mark.real_cli
async def test_a_run_that_is_deleted_takes_its_transcript_with_it(folder: Path) -> None:
    async with (
        open_backend("real", folder) as cli,
        cli.serve_known("alice", "bob", journal="memory", isolation="identity") as (server, keys),
    ):
        runs: dict[str, dict[str, str]] = {}
        for who in ("alice", "bob"):
            async with open_talk(server, keys[who]) as talk:
                runs[who] = await talk.start()
                await talk.user("hello")
                await talk.result()
                await talk.stop("end")
                await talk.event("ended")
        homes = str(folder / "state" / "homes")
        await until(lambda: len(list(find(homes))) == 2)
        async with open_talk(server, keys["alice"]) as again:
            await again.start(resume=runs["alice"]["session"])
            assert await delete(f"{server.url}/api/runs/{runs['alice']['run']}", keys["alice"]) == 200
            assert len(list(find(homes))) == 2, "it is in use"
            await again.stop("end")
            await again.event("ended")
        await until(lambda: not server.runs.statistics().live)
        assert await delete(f"{server.url}/api/runs", keys["alice"]) == 200
        assert [found.home for found in find(homes)] == [Homes.name("key:bob")]
        assert await delete(f"{server.url}/api/runs/{runs['bob']['run']}", keys["bob"]) == 200
        assert not list(find(homes))


async def test_a_server_tidies_at_its_start(fake: Backend, aged: Callable[[Path, float], None]) -> None:
    homes = fake.cwd.parent / "state" / "homes"
    aged(write(homes, "old", home=HOME), 40)
    aged(write(homes, "new", home=HOME), 2)
    async with fake.serve_known("alice", isolation="identity"):
        await until(lambda: sessions(homes) == some("new"))


async def test_of_an_identity_that_is_deleted_as_a_whole_all_goes_but_what_may_be_in_use(
    fake: Backend, aged: Callable[[Path, float], None]
) -> None:
    """Another server on the same state folder may run what changed lately; this one knows what it holds."""
    homes = fake.cwd.parent / "state" / "homes"
    for session, age in (("old", 5), ("held", 5), ("new", 0.5), ("named", 0.5)):
        aged(write(homes, session, home=HOME), age)
    write(homes, "theirs", home=Homes.name("key:bob"))
    async with fake.serve_known("alice", isolation="identity", session_timeout=DAY) as (server, _keys):
        with server.runs._sessions.hold(named("held"), "key:alice"):
            deleted = [Deleted("r1", "key:alice", named("named")), Deleted("r2", "key:alice", named("held"))]
            await server.runs.forget(deleted, whole="key:alice")
        assert sessions(homes) == some("held", "new", "theirs")


async def test_what_another_server_on_the_state_folder_uses_stays(fake: Backend) -> None:
    homes = fake.cwd.parent / "state" / "homes"
    for session in ("theirs", "free"):
        write(homes, session, home=HOME)
    deleted = [Deleted(name, "key:alice", named(name)) for name in ("theirs", "free")]
    async with fake.serve_known("alice", isolation="identity") as (server, _keys):
        with contextlib.closing(Holds(homes.parent)) as other, other.hold(named("theirs"), "key:alice"):
            await server.runs.forget(deleted)
            assert sessions(homes) == some("theirs")
        await server.runs.forget(deleted)
        assert not sessions(homes)


@pytest.mark.redis
async def test_what_another_server_uses_stays_where_homes_are_shared(
    fake: Backend, redis_server: RedisServer, aged: Callable[[Path, float], None]
) -> None:
    """And where what servers share does not answer all stays."""
    homes = fake.cwd.parent / "state" / "homes"
    for session in ("locked", "live", "named", "old"):
        aged(write(homes, session, home=HOME), 5)
    settings = {
        "journal": "auto",
        "isolation": "identity",
        "session_timeout": DAY,
        "redis": redis_server.url,
        "node_lease": 2.0,
    }
    deleted = [Deleted(name, "key:alice", named(name)) for name in ("locked", "live", "named")]
    async with fake.serve_known("alice", **settings) as (a, _), fake.serve_known("alice", **settings) as (b, _):
        assert b.runs.nodes
        assert b.runs.journal
        recorder = b.runs.journal.begin(begun("run", "key:alice", session=named("live")))
        assert await b.runs.journal.settle()
        redis_server.stop()
        try:
            await a.runs.forget(deleted, whole="key:alice")
            for server in (a, b):
                await until(lambda server=server: not server.runs.nodes.shared._desk._ready)
        finally:
            redis_server.go_on()
        assert sessions(homes) == some("locked", "live", "named", "old")
        for server in (a, b):
            await until(lambda server=server: server.runs.nodes.shared._desk._ready)
        async with b.runs.nodes.shared.hold("key:alice", named("locked")):
            await a.runs.forget(deleted, whole="key:alice")
            assert sessions(homes) == some("locked", "live", "old"), "it has a run that lives"
        recorder.end(ended("run"))
        assert await b.runs.journal.settle()
        await a.runs.forget(deleted, whole="key:alice")
        assert not sessions(homes)


async def test_a_session_that_is_resumed_is_used_again(fake: Backend) -> None:
    homes = fake.cwd.parent / "state" / "homes"
    path = write(homes, "a", home=HOME)
    before = path.stat().st_ctime
    await trio.sleep(0.05)
    async with fake.serve_known("alice", isolation="identity") as (server, keys):
        await ask(server, "hello", key=keys["alice"], resume=named("a"))
    assert path.stat().st_ctime > before
