"""Rule: `runs` says the same of a run whether it reads the file or asks the server; it harms neither file nor terminal."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest
import trio
from click.testing import CliRunner
from harness import Backend, ask, connect, directive, until
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from program import PROGRAM, answering, trio_claude
from talk import open_talk

from trio_claude.commands import cli
from trio_claude.commands.local_runs import LocalRuns
from trio_claude.commands.moments import moment
from trio_claude.commands.run_sources import ended_well, read_pieces
from trio_claude.commands.run_views import COLUMNS, open_out
from trio_claude.commands.transcripts import fence, span, transcript
from trio_claude.commands.words import visible
from trio_claude.errors import ConfigError
from trio_claude.journal import Begun, End, Retention, open_journal, visits
from trio_claude.journal.schema import VERSIONS
from trio_claude.journal.visits import Visit, delete_local
from trio_claude.server import Server

WAYS = ("file", "server")
RECEIPT = {"seen": 7, "killed": 0, "survivors": 0, "ms": 12.0, "containment": "supervisor"}
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m"


@attrs.frozen
class Place:
    """A server with its journal's file."""

    server: Server
    path: Path
    fake: Backend

    def words(self, way: str) -> list[str]:
        return ["--journal", str(self.path)] if way == "file" else ["--url", self.server.url]

    async def run(self, prompt: str, **options: object) -> str:
        """Run a prompt; return its id, once it is in the journal."""
        await ask(self.server, prompt, **options)
        await self.settle()
        return self.fake.ended[-1].run

    async def settle(self) -> None:
        assert self.server.runs.journal
        assert await self.server.runs.journal.settle()

    @contextlib.asynccontextmanager
    async def live(self, prompt: str) -> AsyncIterator[str]:
        """Yield the id of a run that is live."""
        async with connect(self.server) as socket:
            await socket.send_message(json.dumps({"prompt": prompt, "meta": "LIVE"}))
            await until(lambda: bool(self.server.runs._live))
            (run,) = self.server.runs._live
            await self.settle()
            yield run


@pytest.fixture
async def place(fake: Backend, folder: Path) -> AsyncIterator[Place]:
    path = folder / "runs.db"
    async with fake.serve(journal=f"sqlite:{path}") as server:
        yield Place(server, path, fake)


async def runs(*words: str, status: int = 0, key: str = "") -> subprocess.CompletedProcess[bytes]:
    env = {**os.environ, **({"TRIO_CLAUDE_KEY": key} if key else {})}
    told = await trio_claude("runs", *words, env=env)
    assert told.returncode == status, told.stderr
    assert b"Traceback" not in told.stderr
    return told


async def told_json(*words: str) -> Any:
    return json.loads((await runs(*words, "--json")).stdout)


async def write(path: Path, fill: Callable[[Any], None], run: str = "abcd1234", **facts: Any) -> None:
    """Write a journal with one run that said whatever it was told to say."""
    at = time.time() - 60
    ended = End(**{
        "id": run, "ended": at + 5, "reason": "exit", "exit_status": 0, "signal": None, "lines": 1, "encoding_errors": 0,
        "tokens": 3, "dollars": 0.5, "turns": 1, "error": None, "receipt": RECEIPT, **facts,
    })  # fmt: skip
    async with open_journal(path, "s", Retention(), 2**20, content=True) as journal:
        recorder = journal.begin(
            Begun(id=run, identity="local", meta="T", door="claude", session=None, started=at, prompt="hi", options={})
        )
        fill(recorder)
        recorder.end(ended)
        assert await journal.settle()


# what is told


@pytest.mark.parametrize("way", WAYS)
async def test_runs_are_listed(place: Place, way: str) -> None:
    older = await place.run("hello", meta="OLDER")
    newer = await place.run(directive("exit", status=3))
    where = place.words(way)
    table = (await runs("list", *where)).stdout.decode().splitlines()
    assert table[0].split() == list(COLUMNS)
    assert [line.split()[2] for line in table[1:]] == [newer[:8], older[:8]]
    assert table[1].split()[3:7] == ["local", "TEST-1", "claude", "failed"]
    assert table[2].split()[3:7] == ["local", "OLDER", "claude", "exit"]
    assert table[2].split()[-1] == "0"
    told = await told_json("list", *where)
    assert [run["id"] for run in told["runs"]] == [newer, older]
    assert told["next"] is None
    assert "prompt" not in told["runs"][0]

    async def ids(*words: str) -> list[str]:
        return [run["id"] for run in (await told_json("list", *where, *words))["runs"]]

    assert await ids("--meta", "OLDER") == [older]
    assert await ids("--batch", "none of these") == []
    assert await ids("--state", "live") == []
    assert await ids("--since", "1h", "--until", "2999-01-01T10:00") == [newer, older]
    assert await ids("--until", "1h") == []
    assert (await told_json("list", *where, "--limit", "1")) == {"runs": told["runs"][:1], "next": newer}
    assert b"there are more" in (await runs("list", *where, "--limit", "1")).stderr


async def test_a_server_is_asked_page_by_page(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(5):
        await place.run("hello")
    monkeypatch.setattr("trio_claude.commands.server_runs.PAGE", 2)

    def listed(*words: str) -> Any:
        return json.loads(CliRunner().invoke(cli, ["runs", "list", "--json", *words]).stdout)

    asked = await trio.to_thread.run_sync(lambda: listed("--url", place.server.url, "--limit", "4"))
    assert asked == await trio.to_thread.run_sync(lambda: listed("--journal", str(place.path), "--limit", "4"))
    assert len(asked["runs"]) == 4
    assert asked["next"] == asked["runs"][-1]["id"]


async def test_a_run_that_goes_between_two_pages_ends_no_list(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    oldest, *_, last, _ = [await place.run("hello") for _ in range(4)]
    monkeypatch.setattr("trio_claude.commands.server_runs.PAGE", 2)
    gone: list[str] = []

    def request(client: httpx.Client, *words: Any, real: Any = httpx.Client.request, **more: Any) -> httpx.Response:
        if more.get("params", {}).get("before") == last and not gone:
            gone.append(last)
            assert real(client, "DELETE", f"{place.server.url}/api/runs/{last}").is_success
        return real(client, *words, **more)

    monkeypatch.setattr(httpx.Client, "request", request)
    words = ["runs", "list", "--json", "--url", place.server.url]
    asked = await trio.to_thread.run_sync(lambda: json.loads(CliRunner().invoke(cli, words).stdout))
    assert gone == [last]
    assert len(asked["runs"]) == 4
    assert asked["runs"][-1]["id"] == oldest


async def test_of_runs_that_began_at_once_none_goes_with_another(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the one that is gone was the last of a page."""
    names = [await place.run("hello") for _ in range(5)]
    with contextlib.closing(sqlite3.connect(place.path)) as journal, journal:
        journal.execute("UPDATE runs SET started = 1795787340.123456")
    names.sort(reverse=True)
    monkeypatch.setattr("trio_claude.commands.server_runs.PAGE", 3)
    gone: list[str] = []

    def request(client: httpx.Client, *words: Any, real: Any = httpx.Client.request, **more: Any) -> httpx.Response:
        if more.get("params", {}).get("before") == names[2] and not gone:
            gone.append(names[2])
            assert real(client, "DELETE", f"{place.server.url}/api/runs/{names[2]}").is_success
        return real(client, *words, **more)

    monkeypatch.setattr(httpx.Client, "request", request)
    words = ["runs", "list", "--json", "--url", place.server.url, "--limit", "4"]
    asked = await trio.to_thread.run_sync(lambda: json.loads(CliRunner().invoke(cli, words).stdout))
    assert gone == [names[2]]
    assert [run["id"] for run in asked["runs"]] == names[:4]
    assert asked["next"] == names[3]


@pytest.mark.parametrize("way", WAYS)
async def test_one_run_is_shown_and_found_by_its_beginning(place: Place, way: str) -> None:
    run = await place.run("hello", model="claude-haiku-5-5")
    where = place.words(way)
    shown = (await runs("show", run[:6], *where)).stdout.decode()
    facts = dict(line.split(maxsplit=1) for line in shown.partition("\n\n")[0].splitlines())
    assert (facts["run"], facts["identity"], facts["state"]) == (run, "local", "ended: exit")
    assert facts["lines"] == "3, all kept"
    assert facts["receipt"].startswith("1 process, 0 left, ")
    assert facts["options"] == '{"model": "claude-haiku-5-5"}'
    assert shown.endswith("\n\nhello\n")
    told = await told_json("show", run.upper(), *where)
    assert (told["id"], told["prompt"], told["receipt"]["survivors"]) == (run, "hello", 0)


@pytest.mark.parametrize("way", WAYS)
async def test_a_beginning_must_be_of_one_run(fake: Backend, folder: Path, way: str) -> None:
    path = folder / "runs.db"
    for name in ("abcd", "abcd01", "abcd02", "abce01", "abce02", "abce03", "abce04"):
        await write(path, lambda run: run.lines([b"x"]), name)
    async with fake.serve(journal=f"sqlite:{path}") as server:
        where = Place(server, path, fake).words(way)
        assert (await told_json("show", "abcd", *where))["id"] == "abcd", "a whole id is one"
        ambiguous = (await runs("show", "abcd0", *where, status=2)).stderr
        assert b"abcd0 is ambiguous: " in ambiguous
        assert b"and more" not in ambiguous
        assert b"and more; give more of it" in (await runs("show", "abce", *where, status=2)).stderr
        assert b"there is no run abcdef " in (await runs("show", "abcdef", *where, status=2)).stderr
        for bad in ("abc", "../..", "abcg", "a" * 65, "%2e%2e"):
            assert b"hex digits" in (await runs("show", bad, *where, status=2)).stderr


@pytest.mark.parametrize("way", WAYS)
async def test_lines_are_told_as_the_cli_said_them(place: Place, way: str) -> None:
    await ask(place.server, "something else")
    said = await ask(place.server, directive("stderr", text="oh\x1b[31m", n=2), "?frames=verbatim")
    await place.settle()
    lines = [frame for frame in said.frames if "type" in json.loads(frame)]
    told = await runs("tail", place.fake.ended[-1].run, *place.words(way))
    assert told.stdout.decode().splitlines() == lines
    assert told.stderr.decode().splitlines() == ["stderr: oh\x1b[31m"] * 2


FOLLOWED = """
import sys, trio
from pathlib import Path
from trio_claude.journal import Begun, Retention, open_journal
async def main():
    async with open_journal(Path(sys.argv[1]), "dies", Retention(), 2**30, content=True) as journal:
        facts = {"identity": "local", "meta": "T", "door": "claude", "session": None, "prompt": None, "options": {}}
        journal.begin(Begun(id="abcd1234", started=1.0, **facts)).lines([b"the last words"])
        assert await journal.settle()
        print("ready", flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


async def test_a_run_whose_server_dies_is_followed_to_there(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    with subprocess.Popen([sys.executable, "-c", FOLLOWED, str(path)], stdout=subprocess.PIPE) as server:
        assert server.stdout
        await trio.to_thread.run_sync(server.stdout.readline)
        assert (await told_json("show", "abcd1234", "--journal", str(path)))["state"] == "live"
        async with trio.open_nursery() as nursery:

            async def follow() -> None:
                told = await runs("tail", "-f", "abcd1234", "--journal", str(path), status=1)
                assert told.stdout == b"the last words\n"

            nursery.start_soon(follow)
            await trio.sleep(0.5)
            server.kill()
    told = await told_json("show", "abcd1234", "--journal", str(path))
    assert (told["state"], told["reason"], told["lines"], told["whole"]) == ("ended", "node-lost", 1, False)
    (listed,) = (await told_json("list", "--state", "ended", "--journal", str(path)))["runs"]
    assert {name: told[name] for name in listed} == listed
    assert b"\nseconds " not in (await runs("show", "abcd1234", "--journal", str(path))).stdout, "nobody saw its end"
    assert (await told_json("list", "--state", "live", "--journal", str(path)))["runs"] == []
    assert (await runs("delete", "abcd", "--yes", "--journal", str(path))).stderr == b"deleted: 1\n"
    assert (await told_json("list", "--journal", str(path)))["runs"] == []


@pytest.mark.parametrize("way", WAYS)
async def test_a_live_run_is_followed_to_its_end(place: Place, way: str) -> None:
    async with place.live(directive("silent")) as run:
        assert (await told_json("list", "--state", "live", *place.words(way)))["runs"][0]["id"] == run
    await until(lambda: not place.server.runs._live)
    async with place.live(directive("slow", n=12, ms=100)) as run:
        followed = await runs("tail", "-f", run, *place.words(way))
    kinds = [json.loads(line)["type"] for line in followed.stdout.splitlines()]
    assert (kinds[0], kinds[-1]) == ("system", "result")
    bad = await place.run(directive("exit", status=3))
    await runs("tail", "-f", bad, *place.words(way), status=1)
    await runs("tail", bad, *place.words(way))


def failing(monkeypatch: pytest.MonkeyPatch, *faults: int) -> None:
    """Have each second request fail: by an HTTP status, or with 0 without an answer."""
    turns = itertools.cycle(itertools.chain.from_iterable((None, fault) for fault in faults))

    def request(client: httpx.Client, *words: Any, real: Any = httpx.Client.request, **more: Any) -> httpx.Response:
        fault = next(turns)
        if fault is None:
            return real(client, *words, **more)
        if not fault:
            raise httpx.ConnectError("refused")
        return httpx.Response(fault, json={"code": "journal", "error": "not at hand"})

    monkeypatch.setattr(httpx.Client, "request", request)
    monkeypatch.setattr("trio_claude.commands.run_sources.PAUSE", 0)


async def in_thread(*words: str) -> Any:
    return await trio.to_thread.run_sync(lambda: CliRunner().invoke(cli, ["runs", *words]))


async def test_a_server_that_has_no_answer_for_the_moment_does_not_end_following(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await place.run("hello")
    whole = await in_thread("tail", run, *place.words("server"))
    failing(monkeypatch, 503, 0, 502)
    followed = await in_thread("tail", "-f", run, *place.words("server"))
    assert (followed.exit_code, followed.stdout) == (0, whole.stdout)
    told = followed.stderr.splitlines()
    assert told[0] == f"trio-claude: {place.server.url} refused: not at hand; trying again for 60 s"
    assert all(line.endswith("; trying again for 60 s") for line in told)


@pytest.mark.parametrize(("fault", "end"), [(0, SystemExit), (503, ConfigError), (403, ConfigError)])
async def test_a_server_that_stays_away_ends_following(
    place: Place, monkeypatch: pytest.MonkeyPatch, fault: int, end: type[BaseException]
) -> None:
    run = await place.run("hello")
    failing(monkeypatch, fault)
    monkeypatch.setattr("trio_claude.commands.run_sources.PATIENCE", 0)
    followed = await in_thread("tail", "-f", run, *place.words("server"))
    assert isinstance(followed.exception, end)
    assert ("trying again" in followed.stderr) == (fault != 403)


async def test_a_run_that_was_ended_by_request_came_to_no_good_end(place: Place) -> None:
    async with place.live(directive("silent")) as run, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: runs("tail", "-f", run, *place.words("server"), status=1))
        await runs("stop", run, *place.words("server"))


@pytest.mark.parametrize("way", WAYS)
async def test_an_interrupt_ends_following_quietly(place: Place, way: str) -> None:
    async with place.live(directive("stall")) as run:
        words = [*PROGRAM, "runs", "tail", "-f", run, *place.words(way)]
        process = await trio.lowlevel.open_process(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        with trio.fail_after(20):
            assert process.stdout
            assert process.stderr
            await process.stdout.receive_some()
            await trio.sleep(0.3)
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 130
            assert await process.stderr.receive_some() == b""
        await process.stdout.aclose()
        await process.stderr.aclose()


# what is changed


async def test_only_a_live_run_is_stopped_and_only_by_its_server(place: Place) -> None:
    async with place.live(directive("silent")) as run:
        by_file = await runs("stop", run, *place.words("file"), status=2)
        assert b"name it with --url" in by_file.stderr
        await runs("stop", run[:8], *place.words("server"))
        await until(lambda: bool(place.fake.ended))
    await place.settle()
    assert b"has ended already" in (await runs("stop", run, *place.words("server"), status=2)).stderr
    assert (await told_json("show", run, *place.words("file")))["reason"] == "stopped", "stopping deletes nothing"


@pytest.mark.parametrize("way", WAYS)
async def test_deleting_asks(place: Place, way: str) -> None:
    first, second, third = [await place.run("hello") for _ in range(3)]
    where = place.words(way)

    async def delete(*words: str, typed: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        with trio.fail_after(20):
            return await trio.run_process(
                [*PROGRAM, "runs", "delete", *words, *where], stdin=typed, capture_stdout=True, capture_stderr=True,
                check=False,
            )  # fmt: skip

    for typed in (b"", b"n\n", b"\n"):
        refused = await delete(first, typed=typed)
        assert refused.returncode == 1
        assert b"Delete 1 of the runs" in refused.stderr
    assert len((await told_json("list", *where))["runs"]) == 3
    assert (await delete(first[:8], typed=b"y\n")).returncode == 0
    assert (await delete(second, second, "--yes")).stderr == b"deleted: 1\n"
    assert (await delete("--yes", second)).returncode == 2
    assert (await delete("--yes")).returncode == 2
    assert (await delete("--yes", "--all", third)).returncode == 2
    async with place.live(directive("silent")) as live:
        refused = await delete("--yes", third, live)
        assert (refused.returncode, b"is live" in refused.stderr) == (2, True)
        assert [run["id"] for run in (await told_json("list", *where))["runs"]] == [live, third]
        assert (await delete("--all", "--yes")).stderr == b"deleted: 1\n"
        assert [run["id"] for run in (await told_json("list", *where))["runs"]] == [live]


async def test_many_are_deleted_in_short_transactions_beside_a_server(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(5):
        await place.run("hello")
    monkeypatch.setattr("trio_claude.journal.visits.AT_ONCE", 2)
    async with place.live(directive("silent")):
        assert await trio.to_thread.run_sync(delete_local, place.path, None) == 5
        assert await trio.to_thread.run_sync(delete_local, place.path, None) == 0
        db = sqlite3.connect(place.path)
        assert db.execute("SELECT COUNT(*) FROM runs").fetchone() == (1,)
        assert db.execute("SELECT COUNT(*) FROM parts WHERE run NOT IN (SELECT id FROM runs)").fetchone() == (0,)
        assert db.execute("SELECT SUM(runs), (SELECT COUNT(*) FROM uses) FROM usage").fetchone() == (5, 0), (
            "what was used stays"
        )
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        db.close()


async def test_what_is_named_and_not_deleted_is_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else may have deleted it in the meantime."""
    run, where = await place.run("hello"), place.words("file")
    monkeypatch.setattr("trio_claude.commands.local_runs.LocalRuns.delete", lambda _self, _run: 0)
    told = await trio.to_thread.run_sync(lambda: CliRunner().invoke(cli, ["runs", "delete", run, "--yes", *where]))
    assert isinstance(told.exception, ConfigError), "which main() says, with status 2"
    assert "1 of the runs" in str(told.exception)


async def test_what_fails_half_way_says_how_many_are_deleted(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [await place.run("hello") for _ in range(4)]
    drop = visits._drop_some

    def failing(at: int) -> None:
        calls = itertools.count(1)

        def once(*given: Any) -> int:
            if next(calls) == at:
                raise sqlite3.OperationalError("disk I/O error")
            return drop(*given)

        monkeypatch.setattr(visits, "_drop_some", once)

    failing(at=2)
    told = await in_thread("delete", "--yes", *names[:2], *place.words("file"))
    assert told.stderr == "deleted: 1\n"
    assert str(told.exception).endswith("disk I/O error; deleted by then: 0")
    failing(at=2)
    monkeypatch.setattr(visits, "AT_ONCE", 2)
    told = await in_thread("delete", "--all", "--yes", *place.words("file"))
    assert isinstance(told.exception, ConfigError)
    assert str(told.exception).endswith("disk I/O error; deleted by then: 2")


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Be somebody who may write nowhere, where this is root."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


async def test_a_journal_in_a_folder_that_nobody_may_write_to_is_read() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, path = Path(name), Path(name) / "runs.db"
        await write(path, lambda run: run.lines([b"x"]))
        path.chmod(0o644)
        folder.chmod(0o555)
        try:
            with as_nobody(), Visit(path) as visit:
                assert visit.beginning("abcd", 9) == ["abcd1234"]
            assert sorted(file.name for file in folder.iterdir()) == ["runs.db", "runs.db.opening"]
            folder.chmod(0o755)
            Path(f"{path}-wal").write_bytes(b"something that is not in the file yet")
            folder.chmod(0o555)
            with as_nobody(), pytest.raises((sqlite3.Error, ConfigError)), Visit(path):
                pytest.fail("opened")
        finally:
            folder.chmod(0o755)


async def test_a_locked_file_is_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run = await place.run("hello")
    monkeypatch.setattr("trio_claude.journal.visits.BUSY_MS", 50)
    db = sqlite3.connect(place.path, isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    with pytest.raises(ConfigError, match="locked"):
        delete_local(place.path, run)
    db.execute("ROLLBACK")
    db.close()
    assert delete_local(place.path, run) == 1


# what is exported


@pytest.mark.parametrize("way", WAYS)
async def test_all_of_a_run_is_exported_for_programs(place: Place, folder: Path, way: str) -> None:
    async with open_talk(place.server) as talk:
        started = await talk.start()
        for word in ("one", "two"):
            await talk.user(word)
            await talk.result()
        await talk.stop("end")
        await talk.event("ended")
    await until(lambda: bool(place.fake.ended))
    await place.settle()
    out = folder / "run.ndjson"
    await runs("export", started["run"], "--out", str(out), *place.words(way))
    facts, *told = [json.loads(line) for line in out.read_text().splitlines()]
    assert facts == await told_json("show", started["run"], *place.words(way))
    assert [one["line"] for one in told if "n" in one] == [
        json.dumps(line, separators=(",", ":")) for line in talk.lines()
    ]
    assert [json.loads(one["in"])["message"]["content"] for one in told if "in" in one] == ["one", "two"]
    assert out.stat().st_mode & 0o777 == 0o600
    assert (await runs("export", started["run"], *place.words(way))).stdout == out.read_bytes()
    again = await runs("export", started["run"], "--out", str(out), *place.words(way), status=2)
    assert b"File exists" in again.stderr


async def test_a_run_that_is_deleted_meanwhile_is_no_whole_export(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    await write(path, lambda run: run.lines([b"x"]))
    source = LocalRuns(path)
    pieces = read_pieces(source, "abcd1234")
    assert next(pieces)
    assert source.delete("abcd1234") == 1
    with pytest.raises(ConfigError, match="was deleted"):
        next(pieces)


@pytest.mark.parametrize("way", WAYS)
async def test_a_transcript_has_the_talk_and_its_tools(place: Place, way: str) -> None:
    async with open_talk(place.server) as talk:
        started = await talk.start()
        await talk.user(directive("bash", cmd="echo '```'"))
        await talk.answer((await talk.asked())["request_id"], behavior="allow")
        await talk.result()
        await talk.user("thanks")
        await talk.result()
        await talk.stop("end")
        await talk.event("ended")
    await until(lambda: bool(place.fake.ended))
    await place.settle()
    told = (await runs("export", started["run"], "--format", "markdown", *place.words(way))).stdout.decode()
    titles = [line for line in told.splitlines() if line.startswith("#")]
    assert titles == [
        f"# Run `{started['run']}`", "## Prompt 1", "### Assistant", "### Tool `Bash`", "### Approval asked for `Bash`",
        "### Answer of the client", "### Tool result", "### Assistant", "### Result",
        "## Prompt 2", "### Assistant", "### Result",
    ]  # fmt: skip
    assert "\n- receipt: `" in told
    assert '````json\n{\n  "command": "echo \'```\'"' in told
    assert "````\n```\n````" in told
    assert "All done after 1 tool results." in told
    assert " tokens in, " in told
    assert "missing" not in told


async def test_what_is_hostile_stays_in_its_place(fake: Backend, folder: Path) -> None:
    path = folder / "runs.db"
    said = {"type": "assistant", "message": {"content": [{"type": "text", "text": f"```\n# no\n{HOSTILE}\ud800"}]}}
    tool = {"type": "assistant", "message": {"content": [{"type": "tool_use", "name": "`\n# no", "input": HOSTILE}]}}

    def fill(run: Any) -> None:
        run.lines([HOSTILE.encode(), json.dumps(said).encode(), json.dumps(tool).encode()])
        run.stderr([f"```{HOSTILE}"])

    await write(path, fill, lines=3, reason="failed", error=f"{HOSTILE}\n```\n# no")
    async with fake.serve(journal=f"sqlite:{path}") as server:
        for way in WAYS:
            where = Place(server, path, fake).words(way)
            raw = (await runs("export", "abcd", *where)).stdout
            told = [json.loads(line) for line in raw.splitlines()]
            assert [told[1]["line"], told[4]["stderr"]] == [HOSTILE, f"```{HOSTILE}"]
            assert (await runs("tail", "abcd", *where)).stdout.splitlines()[0] == HOSTILE.encode()
            text = (await runs("export", "abcd", "--format", "markdown", *where)).stdout.decode()
            assert r"\x1b]0;owned\x07\x1b[2J\x9b31m\ud800" in text
            assert "\x1b" not in text
            assert "# no" not in [token.content for token in MarkdownIt().parse(text) if token.type == "inline"]
            shown = (await runs("show", "abcd", *where)).stdout
            assert b"\x1b" not in shown
            assert b"31m ``` # no" in shown
    for words in (["tail"], ["export"], ["export", "--format", "markdown"], ["show"], ["list"]):
        shown = on_a_terminal("runs", *words, *([] if words == ["list"] else ["abcd"]), "--journal", str(path))
        assert b"\x1b]" not in shown
        assert b"\x1b[2J" not in shown
        assert "\x9b".encode() not in shown


def on_a_terminal(*words: str) -> bytes:
    """Return what a command says to a terminal."""
    ours, theirs = os.openpty()
    try:
        process = subprocess.Popen([*PROGRAM, *words], stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        told = b""
        with contextlib.suppress(OSError):  # its end
            while piece := os.read(ours, 65536):
                told += piece
        assert process.wait(20) == 0, told
        return told
    finally:
        os.close(ours)


async def test_what_is_not_kept_is_named(fake: Backend, folder: Path) -> None:
    path = folder / "runs.db"
    async with fake.serve(journal=f"sqlite:{path}", journal_content=False) as server:
        place = Place(server, path, fake)
        run = await place.run("a-secret-prompt")
        for way in WAYS:
            assert b"lines        3, none kept" in (await runs("show", run, *place.words(way))).stdout
            assert (await runs("tail", run, *place.words(way))).stdout == b""
            told = (await runs("export", run, "--format", "markdown", *place.words(way))).stdout
            assert told.endswith(b"**No lines of this run are kept.**\n")
            assert b"a-secret-prompt" not in told


def test_holes_and_ends_of_a_history_are_named() -> None:
    run = {"id": "ab", "state": "ended", "reason": "exit", "lines": 9, "stored": 5, "whole": False}
    entries = [{"n": 1, "line": "x"}, {"n": 4, "line": "y"}, {"after": 4, "stderr": "a"}, {"after": 4, "stderr": "b"}]
    told = "".join(transcript(run, entries, 0))
    assert "**Lines 2 to 3 are missing.**" in told
    assert "### stderr\n\n```\na\nb\n```\n" in told
    assert told.endswith("**The history ends here, behind line 5 of 9: it is not whole.**\n")
    for changed, text in (
        ({"stored": 9}, "All lines are here; what stderr and the client said is not kept to the end."),
        (
            {"reason": "node-lost", "lines": 5},
            "The history ends here, behind line 5: what came last, as the server died, may be missing.",
        ),
        ({"state": "live"}, "The run is live; this is what it has said so far."),
        ({"whole": True, "stored": 9}, ""),
    ):
        assert "".join(transcript({**run, **changed}, [], 0)).endswith(f"**{text}**\n" if text else "\n\n")


def test_what_a_resumed_session_had_cost_is_not_told_as_its_first_turns() -> None:
    lines = [json.dumps({"type": "result", "result": "", "total_cost_usd": usd}) for usd in (1.0, 1.25)]
    entries = [{"n": number, "line": line} for number, line in enumerate(lines, 1)]
    for options, first in (({}, "$1.0000, "), ({"resume": "s"}, "$1.0000 for the session so far, ")):
        told = "".join(transcript({"id": "ab", "options": options}, entries, 0))
        assert re.findall(r"^\$.*?, ", told, re.MULTILINE) == [first, "$0.2500, "]


WORDS = st.text(
    alphabet=st.one_of(st.sampled_from("`~#>-*_ \t\n\r\x1b\x00\u2028<!--[]()1."), st.characters()), max_size=60
)
JSONS = st.recursive(WORDS | st.integers() | st.none(), lambda inner: st.lists(inner, max_size=2), max_leaves=4)
CONTENTS = WORDS | st.lists(st.fixed_dictionaries({"type": WORDS, "text": WORDS}), max_size=2)
BLOCKS = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": WORDS}),
    st.fixed_dictionaries({"type": st.just("thinking"), "thinking": WORDS}),
    st.fixed_dictionaries({"type": st.just("tool_use"), "name": WORDS, "input": JSONS}),
    st.fixed_dictionaries({"type": st.just("tool_result"), "content": CONTENTS, "is_error": st.booleans()}),
    st.fixed_dictionaries({"type": WORDS}),
)
LINES = st.one_of(
    WORDS,
    st.builds(
        lambda kind, blocks: json.dumps({"type": kind, "message": {"content": blocks}}),
        st.sampled_from(["assistant", "user"]), st.lists(BLOCKS, max_size=3),
    ),
    st.builds(lambda text, bad: json.dumps({"type": "result", "result": text, "is_error": bad}), WORDS, st.booleans()),
    st.builds(lambda model: json.dumps({"type": "system", "subtype": "init", "session_id": "s", "model": model}), WORDS),
)  # fmt: skip
ENTRIES = st.lists(
    st.one_of(
        st.builds(lambda number, line: {"n": number, "line": line}, st.integers(1, 9), LINES),
        st.builds(lambda text: {"after": 0, "stderr": text}, WORDS),
        st.builds(lambda text: {"after": 0, "in": text}, LINES),
    ),
    max_size=6,
)
TITLES = (
    "Run ", "Options", "Error", "Prompt ", "stderr", "Assistant", "Thinking", "Tool", "Result", "Failed", "Line",
    "Told to the model", "Request of the client", "Answer of the client", "Message of the client",
)  # fmt: skip
INLINE = {"text", "code_inline", "strong_open", "strong_close"}


@given(WORDS)
def test_a_fence_holds_whatever_is_in_it(text: str) -> None:
    body = visible(text)
    (token,) = MarkdownIt().parse(fence(text, "json"))
    assert (token.type, token.info, token.content.removesuffix("\n")) == ("fence", "json", body.removesuffix("\n"))
    (inline,) = [token for token in MarkdownIt().parse(f"- name: {span(text)}") if token.type == "inline"]
    before, code = inline.children or []
    assert (before.content, code.type) == ("name: ", "code_inline")
    assert code.content == (" ".join(body.split()) or "-")


@given(ENTRIES, st.fixed_dictionaries({"prompt": WORDS, "error": WORDS, "meta": WORDS, "options": JSONS}))
def test_nothing_that_is_said_leaves_its_fence(entries: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    run = {"id": "ab", "state": "ended", "reason": "exit", "lines": 1, "stored": 1, "whole": True, **facts}
    text = "".join(transcript(run, entries, 0.0))
    text.encode()
    assert visible(text) == text
    tokens = MarkdownIt().parse(text)
    kinds = {token.type for token in tokens}
    assert kinds <= {
        "heading_open", "heading_close", "inline", "fence", "paragraph_open", "paragraph_close", "bullet_list_open",
        "bullet_list_close", "list_item_open", "list_item_close",
    }  # fmt: skip
    assert {child.type for token in tokens for child in token.children or []} <= INLINE
    heads = [tokens[at + 1].content for at, token in enumerate(tokens) if token.type == "heading_open"]
    assert all(head.startswith((*TITLES, "Approval asked for ")) for head in heads)
    assert heads[0] == "Run `ab`"
    assert len([head for head in heads if head.startswith("Run ")]) == 1


# what can't be


async def test_another_identitys_run_is_unknown(fake: Backend, folder: Path) -> None:
    path = folder / "runs.db"
    async with fake.serve_known("alice", "bob", "vera/viewer", journal=f"sqlite:{path}") as (server, keys):
        where = ["--url", server.url]
        await ask(server, "hello", key=keys["alice"])
        await Place(server, path, fake).settle()
        run = fake.ended[-1].run
        for words in (["show"], ["tail"], ["export"], ["stop"], ["delete", "--yes"]):
            for name in (run, run[:8]):
                told = await runs(*words, name, *where, status=2, key=keys["bob"])
                assert f"there is no run {name}".encode() in told.stderr
        assert json.loads((await runs("list", "--json", *where, key=keys["bob"])).stdout)["runs"] == []
        await runs("delete", "--all", "--yes", *where, key=keys["bob"])
        assert b"viewer" in (await runs("delete", run, "--yes", *where, status=2, key=keys["vera"])).stderr
        file = folder / "alice.key"
        file.write_text(keys["alice"])
        assert (await runs("show", run[:8], *where, "--key-file", str(file))).stdout
        assert b"it wants a valid key" in (await runs("list", *where, status=69)).stderr
        assert b"no key has" in (await runs("list", *where, status=2, key="a b")).stderr


def bad_files(folder: Path) -> Iterator[tuple[Path, str]]:
    yield folder / "nothing.db", "there is no journal"
    yield folder, "there is no journal"
    yield folder / "no" / "folder.db", "there is no journal"
    (folder / "text.db").write_text("this is no database at all" * 100)
    yield folder / "text.db", "not a database"
    (folder / "empty.db").touch()
    yield folder / "empty.db", "is none"
    for name, version, text in (
        ("later", len(VERSIONS) + 1, "a later version"),
        ("earlier", len(VERSIONS) - 1, "the next start of `trio-claude serve`"),
        ("strange", len(VERSIONS), "no such table"),
    ):
        path = folder / f"{name}.db"
        db = sqlite3.connect(path)
        db.execute(f"PRAGMA user_version = {version}")
        db.close()
        yield path, text


def test_a_file_that_is_no_journal_is_named_and_left_as_it_is(tmp_path: Path) -> None:
    for path, text in bad_files(tmp_path):
        before = path.read_bytes() if path.is_file() else None
        for words in (["list"], ["show", "abcd"], ["tail", "abcd"], ["export", "abcd"], ["delete", "--all", "--yes"]):
            told = CliRunner().invoke(cli, ["runs", *words, "--journal", str(path)])
            assert isinstance(told.exception, ConfigError), told  # which main() says, with status 2
            assert text in str(told.exception)
        assert (path.read_bytes() if path.is_file() else None) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "earlier.db",
        "empty.db",
        "later.db",
        "strange.db",
        "text.db",
    ]


async def test_a_damaged_journal_is_named(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    await write(path, lambda run: run.lines([b"x" * 100_000]))
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)
    for words in (["list"], ["tail", "abcd"], ["delete", "--all", "--yes"]):
        told = await runs(*words, "--journal", str(path), status=2)
        assert b"can't be used: " in told.stderr
    assert path.read_bytes() == data
    assert not list(tmp_path.glob("*.lock"))


async def test_the_journal_is_the_one_that_serve_has(fake: Backend, tmp_path: Path) -> None:
    state, other = tmp_path / "state", tmp_path / "other.db"
    await write(state / "journal.db", lambda run: run.lines([b"x"]), "aaaa")
    await write(other, lambda run: run.lines([b"x"]), "bbbb")

    def listed(*words: str, **env: str) -> Any:
        told = CliRunner(env={"TRIO_CLAUDE_STATE": str(state), **env}).invoke(cli, ["runs", "list", "--json", *words])
        return str(told.exception) if told.exception else [run["id"] for run in json.loads(told.stdout)["runs"]]

    assert listed() == ["aaaa"]
    assert listed(TRIO_CLAUDE_JOURNAL="sqlite") == ["aaaa"]
    assert listed(TRIO_CLAUDE_JOURNAL=f"sqlite:{other}") == ["bbbb"]
    assert listed("--journal", f"sqlite:{other}") == ["bbbb"]
    assert listed(TRIO_CLAUDE_STATE="", XDG_STATE_HOME=str(tmp_path)).startswith("there is no journal at ")
    assert "which is no file" in listed(TRIO_CLAUDE_JOURNAL="memory")
    assert "only one of them" in listed("--journal", str(other), "--url", "http://127.0.0.1:1")


@pytest.mark.parametrize(
    "url", ["ftp://x", "http://", "http://127.0.0.1:x", "http://[x", "http://no..name", "x" * 64, "xn--a"]
)
def test_an_address_that_is_none_is_named(url: str) -> None:
    told = CliRunner().invoke(cli, ["runs", "list", "--url", url])
    assert isinstance(told.exception, ConfigError)
    assert "--url: " in str(told.exception)


async def test_a_server_that_can_not_answer_is_named(fake: Backend) -> None:
    assert b"can't reach" in (await runs("list", "--url", "http://127.0.0.1:1", status=69)).stderr
    async with fake.serve() as server:
        assert b"keeps no journal" in (await runs("list", "--url", f"{server.url}/ws/claude", status=2)).stderr


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"runs":3}', b'{"runs":[3],"next":null}', b"[" * 100_000])
async def test_what_is_no_server_of_ours_is_named(body: bytes) -> None:
    async with answering(body) as url:
        assert b"does not answer as trio-claude does" in (await runs("list", "--url", url, status=2)).stderr


ODD = b"1" + b"0" * 400


@pytest.mark.parametrize(
    "facts",
    [
        {"receipt": b'{"seen":Infinity,"survivors":NaN,"ms":1}'}, {"receipt": b"[1]"}, {"dollars": ODD}, {"started": ODD, "ended": ODD},
    ],
)  # fmt: skip
@pytest.mark.parametrize("words", [["show", "ab" * 16], ["list"], ["failed"]])
async def test_odd_numbers_of_a_server_are_shown_somehow(facts: dict[str, bytes], words: list[str]) -> None:
    told = {"id": b'"%b"' % (b"ab" * 16), "state": b'"ended"', "reason": b'"failed"', "started": b"1.0", **facts}
    run = b"{%b}" % b",".join(b'"%b":%b' % (name.encode(), value) for name, value in told.items())
    async with answering(run if words[0] == "show" else b'{"runs":[%b],"next":null}' % run) as url:
        await runs(*words, "--url", url)


@pytest.mark.parametrize("words", [["show"], ["tail"], ["export"], ["stop"], ["delete", "--yes"]])
async def test_a_run_that_was_not_asked_for_is_no_answer(words: list[str]) -> None:
    async with answering(b'{"state":"ended"}') as url:
        told = await runs(*words, "ab" * 16, "--url", url, status=2)
    assert b"does not answer as trio-claude does" in told.stderr


def test_a_receipt_that_is_none_is_no_bad_end() -> None:
    assert ended_well({"reason": "exit", "receipt": [1]})
    assert not ended_well({"reason": "exit", "receipt": {"survivors": 1}})


@pytest.mark.parametrize("body", [b'{"deleted":"abc"}', b'{"deleted":1e999}', b'{"deleted":[]}', b"{}"])
async def test_what_no_server_of_ours_has_deleted_is_named(body: bytes) -> None:
    async with answering(body) as url:
        told = await runs("delete", "--all", "--yes", "--url", url, status=2)
    assert b"does not answer as trio-claude does" in told.stderr


async def test_what_no_file_can_be_asked_for_is_no_fault_of_the_file(fake: Backend, tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    async with fake.serve(journal=f"sqlite:{path}"):
        told = await runs("list", "--meta", os.fsdecode(b"\xff"), "--journal", str(path), status=2)
    assert told.stderr == b"trio-claude: --meta, --batch and --separator take UTF-8\n"


async def test_what_no_server_can_be_asked_for_is_named(fake: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    async with fake.serve(journal="memory") as server:
        told = await runs("list", "--meta", os.fsdecode(b"\xff"), "--url", server.url, status=2)
    assert b"take UTF-8" in told.stderr
    monkeypatch.setenv("ALL_PROXY", "nonsense://127.0.0.1:1")
    told = await runs("list", "--url", "http://elsewhere.invalid", status=2)
    assert b"a proxy of the environment (\xe2\x80\xa6_PROXY) can't be used" in told.stderr
    monkeypatch.delenv("ALL_PROXY")
    monkeypatch.setenv("SSL_CERT_FILE", "/nope")
    told = await runs("list", "--url", "http://elsewhere.invalid", status=2)
    assert b"--url: SSL_CERT_FILE or SSL_CERT_DIR can't be used" in told.stderr


def test_an_export_that_fails_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(KeyError), open_out(tmp_path / "x") as write:
        write("half")
        raise KeyError
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="No such file"), open_out(tmp_path / "no" / "x"):
        pass


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1764201600", 1764201600), ("0", 0), ("90m", 1e9 - 5400), ("2h", 1e9 - 7200), ("7d", 1e9 - 604800), ("1.5s", 1e9 - 1.5),
        ("99999w", 0), ("2026-11-27T10:00:00Z", 1795773600), ("2026-11-27T10:00+01:00", 1795770000),
    ],
)  # fmt: skip
def test_times_are_read_as_they_are_typed(text: str, seconds: float) -> None:
    assert moment(text, 1e9) == seconds


def test_a_date_is_this_machines() -> None:
    assert moment("2026-11-27", 0) == time.mktime((2026, 11, 27, 0, 0, 0, 0, 0, -1))
    assert moment("2026-11-27T10:00", 0) == time.mktime((2026, 11, 27, 10, 0, 0, 0, 0, -1))


def test_1970_begins_everywhere() -> None:
    code = "from trio_claude.commands.moments import moment; print(moment('1970-01-01', 1e9), moment('1970-01-01T10', 1e9))"
    environ = {**os.environ, "TZ": "Asia/Tokyo"}
    told = subprocess.run([*PROGRAM[:1], "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert told.stdout == "0.0 3600.0\n"


@pytest.mark.parametrize(
    "text", ["", "yesterday", "-1", "nan", "inf", "1e99", "2h30m", "h", "1800-01-01", "0001-01-01"]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    told = CliRunner().invoke(cli, ["runs", "list", "--since", text])
    assert told.exit_code == 2
    assert "is no time" in told.output


def test_a_list_of_a_file_loads_no_http_and_one_of_a_server_no_trio() -> None:
    code = "import sys, {0}; print(*sorted({{'trio', 'httpx', 'httpx_ws', 'typed_settings'}} & set(sys.modules)))"
    for module, loaded in (("runs", ""), ("usage", ""), ("local_runs", "trio"), ("server_runs", "httpx")):
        words = [*PROGRAM[:1], "-c", code.format(f"trio_claude.commands.{module}")]
        assert subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip() == loaded


# why runs failed


@pytest.mark.parametrize("way", WAYS)
async def test_runs_that_failed_are_grouped_by_what_is_the_same_in_them(place: Place, way: str) -> None:
    await place.run("hello")
    await place.run(directive("exit", status=3))
    newest = await place.run(directive("exit", status=4))
    await place.run(directive("silent"), timeout=0.3)
    where = place.words(way)
    told = await told_json("failed", *where)
    last = told["failed"][0].pop("last")
    assert abs(last - time.time()) < 60
    assert told["failed"][0] == {
        "count": 2, "reason": "failed", "message": "the CLI exited with status N", "run": newest,
    }  # fmt: skip
    assert [(group["count"], group["reason"], group["message"]) for group in told["failed"][1:]] == [
        (1, "deadline", "timed out after N s")
    ]
    assert (told["searched"], told["more"]) == (4, False)
    table = (await runs("--failed", *where)).stdout.decode().splitlines()
    assert table[0].split() == ["count", "last", "reason", "message", "run"]
    assert re.fullmatch(rf" *2 \d{{4}}-\S+ \S+ +failed +the CLI exited with status N +{newest[:8]} *", table[1])
    assert len(table) == 3


@pytest.mark.parametrize("way", WAYS)
async def test_runs_that_failed_are_looked_for_where_and_when_it_is_said(place: Place, way: str) -> None:
    await place.run(directive("exit", status=3), meta="OLDER")
    await place.run(directive("exit", status=3), meta="NEWER")
    where = place.words(way)
    assert (await told_json("failed", "--meta", "OLDER", *where))["failed"][0]["count"] == 1
    assert (await told_json("failed", "--until", "1h", *where)) == {"failed": [], "searched": 0, "more": False}
    one = await runs("failed", "--limit", "1", *where)
    assert one.stdout.splitlines()[1].split()[0] == b"1"
    assert b"looked at the newest 1 that ended; there are more: --limit" in one.stderr
    assert (await told_json("failed", "--limit", "1", *where))["more"] is True
