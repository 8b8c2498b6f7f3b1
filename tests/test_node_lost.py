"""Rule: a server that is killed at any moment takes its runs with it, and of their history the last moment at most.

What its successor on the same state folder tells is whole up to a line, and was said; each of these runs has ended once, as
`node-lost`, and what had ended before is as it was.
"""

from __future__ import annotations

import contextlib
import json
import random
import secrets
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from harness import MODES, Backend, ask, bearing, call, directive, get, until
from program import environ, serving
from talk import Talk, open_talk

from trio_claude.client import Reconnect, open_session
from trio_claude.client.links import OUTBOX_LIMIT
from trio_claude.journal import Part, PartKind
from trio_claude.journal.store import Reader

LATE = 0.5
"""Seconds before a kill up to which all that a client has heard is kept."""
GONE = 5.0
"""Seconds after a kill in which the last process of its runs is gone."""
SIZE = 120
KINDS = ["plain", "setsid", "double_fork", "ignore_term", "stopped", "hold_stdout"]
"""What a run leaves about; all of it keeps its environment, so that a survivor would be seen."""
WORDS = {
    "FLOOD": directive("lines", n=10**6, size=SIZE),
    "STREAM": directive("lines", n=10**6, rate=3000, size=SIZE),
    "TRICKLE": directive("lines", n=10**6, rate=50, size=SIZE),
    "TREE": directive("tree", kinds=KINDS, seconds=60, then="stay"),
    "IDLE": "hello",
    "MUTE": "",
}
"""The runs of each round, by their meta, and what they are told."""


@attrs.frozen
class Node:
    """A server in a process of its own."""

    process: trio.Process
    port: int


@attrs.define
class House:
    """What one server after the other has: a state folder, a journal, a folder for what is temporary."""

    fake: Backend
    mode: str
    ended: dict[str, dict[str, Any]] = attrs.Factory(dict)
    """All runs that have ended so far, as they were told first."""

    @property
    def journal(self) -> Path:
        return self.fake.cwd.parent / "journal.db"

    @property
    def tmp(self) -> Path:
        return self.fake.cwd.parent / "tmp"

    @asynccontextmanager
    async def serve(self, port: int = 0) -> AsyncIterator[Node]:
        words = ["serve", "--port", str(port), "--containment", self.mode, "--journal", f"sqlite:{self.journal}"]
        self.tmp.mkdir(exist_ok=True)
        async with serving(*words, env={**environ(self.fake), "TMPDIR": str(self.tmp)}) as (process, url):
            yield Node(process, int(url.rpartition(":")[2]))

    def left(self) -> list[int]:
        """Return the processes that any of its servers has started, the servers among them."""
        return bearing(f"LC_TEST={self.fake.mark}")


@attrs.frozen
class Live:
    """A run that was there at the kill, as its client saw it."""

    meta: str
    run: str
    frames: list[dict[str, Any]]
    late: int
    """Lines that came too late before the kill to be promised."""
    began: bool
    """Whether it began early enough before the kill to be promised."""

    @property
    def heard(self) -> list[dict[str, Any]]:
        return lines_of(self.frames)


def lines_of(frames: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [frame for frame in frames if frame["type"] != "gateway"]


async def begin(talk: Talk, meta: str) -> str:
    """Start a run and tell it what it is to do."""
    started = await talk.start(meta, on_disconnect={"grace": 60})
    if WORDS[meta]:
        await talk.user(WORDS[meta])
    if meta == "IDLE":
        await talk.result()
    return str(started["run"])


async def kill(house: House, node: Node, wait: float) -> list[Live]:
    """Start runs, kill their server after so long, and return what was heard of them."""
    runs: list[tuple[str, str, Talk]] = []
    async with AsyncExitStack() as stack:
        for meta in WORDS:
            talk = await stack.enter_async_context(open_talk(node))
            runs.append((meta, await begin(talk, meta), talk))
        await trio.sleep(wait)
        killed = trio.current_time()
        node.process.kill()
        await node.process.wait()
        await until(lambda: all(talk.code is not None for _, _, talk in runs))
    await until(lambda: not house.left(), GONE)
    return [as_seen(meta, run, talk, killed - LATE) for meta, run, talk in runs]


def as_seen(meta: str, run: str, talk: Talk, promised: float) -> Live:
    late = [frame for frame, at in zip(talk.frames, talk.came, strict=True) if at > promised]
    began = next(
        at for frame, at in zip(talk.frames, talk.came, strict=True) if frame.get("event") == "started"
    )  # fmt: skip
    return Live(meta, run, talk.frames, len(lines_of(late)), began <= promised)


async def one_that_ends(node: Node) -> None:
    """Have a run end, and its end be in the journal."""
    assert (await ask(node, "hello")).code == 1000
    with trio.fail_after(10):
        while any(row["meta"] == "TEST-1" for row in await listed(node, "?state=live")):
            await trio.sleep(0.01)


async def listed(node: Node, query: str = "?state=ended") -> list[dict[str, Any]]:
    """Return all runs that are listed, page by page."""
    found: list[dict[str, Any]] = []
    more = ""
    while True:
        page = await get(node, f"/api/runs{query}&limit=500{more}")
        found += page["runs"]
        if page["next"] is None:
            return found
        more = f"&before={page['next']}"


async def told(node: Node, run: str) -> list[dict[str, Any]]:
    """Return the whole history of a run, as the API tells it."""
    found: list[dict[str, Any]] = []
    part = "0"
    while part:
        status, headers, body = await call(node, f"/api/runs/{run}/lines?part={part}")
        assert status == 200
        found += [json.loads(line) for line in body.splitlines()]
        part = headers.get("x-next-part", "")
    return found


def stored(journal: Path, run: str) -> list[Part]:
    """Return all parts of a run, whatever its row says."""
    found: list[Part] = []
    with Reader(journal) as reader:
        while page := reader.parts(run, 0, found[-1].number if found else 0):
            found += page
    return found


# -- what must hold on the next server ---------------------------------------------------------------------------------


async def check(house: House, node: Node, lives: list[Live]) -> None:
    """Look whether the successor has the truth about all that was there before."""
    rows = {row["id"]: row for row in await listed(node)}
    assert len(rows) == len(await listed(node))
    assert not await listed(node, "?state=live")
    assert {run: rows[run] for run in house.ended} == house.ended
    assert len(list(house.tmp.glob("tcl-*"))) == 1
    for live in lives:
        if row := rows.get(live.run):
            await check_run(house, node, live, row)
        else:
            assert not live.began, live
    lost = {row["id"] for row in rows.values() if row["reason"] == "node-lost"} - set(house.ended)
    assert lost <= {live.run for live in lives}
    house.ended = rows


async def check_run(house: House, node: Node, live: Live, row: dict[str, Any]) -> None:
    facts = [row[name] for name in ("state", "reason", "meta", "receipt", "exit_status", "signal")]
    assert facts == ["ended", "node-lost", live.meta, None, None, None]
    history = await told(node, live.run)
    lines = check_whole(live, row, history, stored(house.journal, live.run))
    await check_told_again(node, live, lines)
    print(f"{live.meta}: heard {len(live.heard)}, stored {len(lines)}, behind the promise {live.late}")


def check_whole(
    live: Live, row: dict[str, Any], history: list[dict[str, Any]], parts: list[Part]
) -> list[dict[str, Any]]:
    """Check that a history has no hole, nothing torn, nothing that was not said, nothing behind its end; return it."""
    numbers = [one["n"] for one in history if "n" in one]
    assert numbers == list(range(1, row["stored"] + 1))
    assert row["lines"] == row["stored"] >= len(live.heard) - live.late
    assert all(one["after"] <= row["stored"] for one in history if "after" in one)
    assert [part.number for part in parts] == list(range(1, len(parts) + 1))
    assert sum(part.count for part in parts if part.kind is PartKind.LINES) == row["stored"]
    lines = [json.loads(one["line"]) for one in history if "n" in one]
    common = min(len(lines), len(live.heard))
    assert lines[:common] == live.heard[:common]
    said = [one["line"] for one in history if "n" in one and '"fake","n":' in one["line"]]
    assert said == [numbered(number) for number in range(1, len(said) + 1)]
    if WORDS[live.meta] and live.began:
        assert [json.loads(one["in"])["message"]["content"] for one in history if "in" in one] == [WORDS[live.meta]]
    return lines


def numbered(number: int) -> str:
    """Return what the fake says as its line of this number."""
    head = f'{{"type":"fake","n":{number},"pad":"'
    return head + "x" * (SIZE - len(head) - 2) + '"}'


async def check_told_again(node: Node, live: Live, lines: list[dict[str, Any]]) -> None:
    """Check what who comes back is told: from the start, and from where it was."""
    async with open_talk(node) as talk:
        ended = await attach(talk, live.run, 0)
        assert lines_of(talk.frames) == lines
        check_end(talk, ended, len(lines))
    async with open_talk(node) as talk:
        if len(live.heard) > len(lines):  # what it heard last is lost
            await talk.say({"type": "gateway", "op": "attach", "run": live.run, "after": len(live.heard)})
            refused = await talk.event("refused")
            assert (refused["code"], refused["last"]) == ("ahead", len(lines))
        else:
            ended = await attach(talk, live.run, len(live.heard))
            assert live.heard + lines_of(talk.frames) == lines
            check_end(talk, ended, len(lines))


async def attach(talk: Talk, run: str, after: int) -> dict[str, Any]:
    """Come back to a run that has ended; return its end."""
    await talk.say({"type": "gateway", "op": "attach", "run": run, "after": after})
    attached = await talk.event("attached")
    assert (attached["ended"], attached["role"], attached["from"]) == (True, "viewer", after + 1)
    return await talk.end()


def check_end(talk: Talk, ended: dict[str, Any], lines: int) -> None:
    assert (ended["reason"], ended["lines"], ended["receipt"]["survivors"]) == ("node-lost", lines, None)
    assert not [frame for frame in talk.frames if frame.get("event") == "gap"]
    assert (talk.frames[-1], talk.code) == (ended, 1011)


@pytest.mark.parametrize("mode", MODES)
async def test_a_killed_server_takes_its_runs_with_it_and_keeps_what_they_said(
    fake: Backend, mode: str, long: bool
) -> None:
    """At a random moment, again and again, each server the successor of the one that was killed before."""
    seed = secrets.token_hex(4)
    print(f"seed {seed}")
    chance = random.Random(seed)
    house, lives = House(fake, mode), list[Live]()
    for _ in range(100 if long else 3):
        async with house.serve() as node:
            await check(house, node, lives)
            await one_that_ends(node)
            house.ended = {row["id"]: row for row in await listed(node)}
            lives = await kill(house, node, chance.uniform(0, 0.3 + 1.2 * LATE * chance.randrange(2)))
    async with house.serve() as node:
        assert set(house.left()) >= {node.process.pid}
        await check(house, node, lives)
        await one_that_ends(node)
    assert not house.left()


def forget_last(journal: Path) -> None:
    """Take from the journal what it has last of its one run, as if the server had been killed before that was there."""
    with contextlib.closing(sqlite3.connect(journal)) as db, db:
        db.execute("DELETE FROM parts WHERE number >= (SELECT MAX(number) - 3 FROM parts)")
        db.execute("UPDATE runs SET stored = (SELECT MAX(first + count - 1) FROM parts WHERE kind = 0)")


@pytest.mark.parametrize("ahead", [False, True])
async def test_a_program_that_comes_back_hears_that_its_run_is_lost(fake: Backend, ahead: bool) -> None:
    """Also one that has heard what its server did not live to store, and one that has said more than is kept."""
    house = House(fake, "supervisor")
    async with (
        house.serve() as node,
        open_session(meta="T", url=f"http://127.0.0.1:{node.port}", reconnect=Reconnect()) as session,
    ):
        for _ in range(3):
            _ = [line async for line in session.ask("x" * (OUTBOX_LIMIT // 2))]
        turn = session.ask(WORDS["FLOOD"])
        for _ in range(2000):
            await anext(turn)
        node.process.kill()
        await node.process.wait()
        if ahead:
            forget_last(house.journal)
        async with house.serve(node.port) as successor:
            with trio.fail_after(20):
                _ = [line async for line in session]
            assert session.ended
            assert (session.ended.reason, session.ended.code) == ("node-lost", 1011)
            (row,) = await listed(successor)
            assert row["id"] == session.started["run"]
