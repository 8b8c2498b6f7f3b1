"""Rule: transcripts go when they are old, too many or deleted; never those in use, and never by way of a link."""

from __future__ import annotations

import os
import time
from pathlib import Path

import httpx
import pytest
import trio
from harness import Backend, open_backend, until
from talk import open_talk

from trio_claude.quarters import Homes
from trio_claude.transcripts import Keep, find, remove, tidy

DAY = 86400.0
HOME = Homes.name("key:alice")


def write(root: Path, session: str, age: float, *, size: int = 100, home: str = "h1", project: str = "-work") -> Path:
    """Write a transcript that changed so many days ago."""
    folder = root / home / "config" / "projects" / project
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{session}.jsonl"
    path.write_bytes(b"x" * size)
    (folder / session).mkdir()
    (folder / session / "beside.json").write_text("{}")
    changed = time.time() - age * DAY
    os.utime(path, (changed, changed))
    return path


def sessions(root: Path) -> list[str]:
    return sorted(one.session for one in find(str(root)))


def test_the_old_go_and_what_is_beside_them(folder: Path) -> None:
    old, new = write(folder, "old", 31), write(folder, "new", 29, home="h2")
    assert tidy(str(folder), Keep(30, 0, DAY), time.time()) == 1
    assert sessions(folder) == ["new"]
    assert not old.with_suffix("").exists()
    assert new.with_suffix("").exists()


def test_of_too_many_bytes_the_oldest_go_but_none_that_may_be_in_use(folder: Path) -> None:
    for session, age in (("a", 5), ("b", 4), ("c", 3), ("d", 0.5)):
        write(folder, session, age, home=f"h-{session}")
    assert tidy(str(folder), Keep(0, 250, DAY), time.time()) == 2
    assert sessions(folder) == ["c", "d"]
    assert tidy(str(folder), Keep(0, 10, DAY), time.time()) == 1
    assert sessions(folder) == ["d"]
    assert tidy(str(folder), Keep(0.1, 10, DAY), time.time()) == 0, "a session may last a day"


def test_no_limit_is_none(folder: Path) -> None:
    write(folder, "a", 5000)
    assert tidy(str(folder), Keep(0, 0, DAY), time.time()) == 0


@pytest.mark.parametrize("place", ["home", "config", "projects", "project", "transcript", "beside"])
def test_links_lead_nowhere(folder: Path, place: str) -> None:
    """Whatever a run puts in the place of a folder or file, what it points to stays."""
    theirs = folder / "theirs"
    precious = write(theirs, "s", 99, home="home", project="project")
    root = folder / "homes"
    path = root / "home" / "config" / "projects" / "project"
    spots = {"home": (root / "home", theirs / "home"), "config": (root / "home" / "config", theirs / "home" / "config"),
             "projects": (path.parent, precious.parent.parent), "project": (path, precious.parent),
             "transcript": (path / "s.jsonl", precious), "beside": (path / "s", precious.with_suffix(""))}  # fmt: skip
    spot, target = spots[place]
    spot.parent.mkdir(parents=True, exist_ok=True)
    spot.symlink_to(target)
    if place == "beside":
        (path / "s.jsonl").write_text("{}")
        os.utime(path / "s.jsonl", (0, 0))
    for found in list(find(str(root))):
        remove(str(root), found)
    tidy(str(root), Keep(1, 1, 0), time.time())
    assert precious.read_bytes() == b"x" * 100
    assert (precious.with_suffix("") / "beside.json").exists()


async def test_what_is_gone_already_is_no_error(folder: Path) -> None:
    write(folder, "a", 5)
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


async def test_a_server_tidies_at_its_start(fake: Backend) -> None:
    homes = fake.cwd.parent / "state" / "homes"
    write(homes, "old", 40, home=HOME)
    write(homes, "new", 2, home=HOME)
    async with fake.serve_known("alice", isolation="identity"):
        await until(lambda: sessions(homes) == ["new"])
    await trio.lowlevel.checkpoint()
