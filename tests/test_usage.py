"""Rule: what was used is counted once, summed up right, told to whom it belongs, and the same by every way."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import sqlite3
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import click
import pytest
from click.testing import CliRunner
from harness import Backend, ask, call, get
from program import PROGRAM, answering, trio_claude

from trio_claude.commands import cli
from trio_claude.commands.moments import take_day
from trio_claude.commands.run_sources import FIGURES
from trio_claude.commands.run_sources import GROUPS as ASKED
from trio_claude.commands.usage import as_csv
from trio_claude.errors import ConfigError, Reason
from trio_claude.journal import GROUPS, USAGE_ROWS, Begun, End, Retention, Usage, UsageQuery, UsageRow, open_journal
from trio_claude.journal.schema import VERSIONS
from trio_claude.journal.store import Reader, Store
from trio_claude.journal.usage import RUN_TOKENS, SUM_TOKENS
from trio_claude.journal.visits import delete_local
from trio_claude.server import Server

DAY = 86400.0
NOON = 20000 * DAY + DAY / 2
FIRST, SECOND = "2024-10-04", "2024-10-05"
"""The days in which NOON and NOON + DAY lie."""
RECEIPT = {"seen": 1, "killed": 0, "survivors": 0, "ms": 1.0, "containment": "supervisor"}
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m"
WAYS = ("file", "server")


@attrs.frozen
class Ran:
    """A run: who ran what when, and how it ended, after nine seconds."""

    identity: str = "local"
    meta: str = "T"
    model: str = ""
    at: float = NOON
    reason: Reason = Reason.EXIT
    tokens: int = 10
    dollars: float = 0.5
    turns: int = 2


RUNS = (
    Ran("key:alice", "TASK-1", "opus"),
    Ran("key:alice", "TASK-2", "haiku", reason=Reason.FAILED, tokens=5),
    Ran("key:alice", "TASK-1", "opus", NOON + DAY, Reason.STOPPED, turns=0),
    Ran("key:bob", "OTHER", "", NOON + DAY, Reason.DEADLINE, tokens=1),
    Ran("key:bob", "TASK_X", "opus", NOON + DAY),
)


def begun(number: int, ran: Ran) -> Begun:
    return Begun(
        id=f"{number:032x}", identity=ran.identity, meta=ran.meta, door="claude", session=None, started=ran.at, prompt="hi",
        options={}, model=ran.model,
    )  # fmt: skip


def ended(number: int, ran: Ran) -> End:
    return End(
        id=f"{number:032x}", ended=ran.at + 9, reason=ran.reason, exit_status=0, signal=None, lines=0, encoding_errors=0,
        tokens=ran.tokens, dollars=ran.dollars, turns=ran.turns, error=None, receipt=RECEIPT,
    )  # fmt: skip


def fill(path: Path, runs: Sequence[Ran] = RUNS) -> Path:
    """Write a journal that has these runs."""
    store = Store(path, "filled")
    with store.transaction():
        for number, ran in enumerate(runs):
            store.begin(begun(number, ran))
            store.end(ended(number, ran))
    store.close()
    return path


def fill_in_bulk(path: Path, count: int) -> Path:
    """Write a journal with that many runs that have ended: an hour apart, of 50 identities and 5000 names."""
    store = Store(path, "filled")
    rows = (
        (
            f"{number:032x}",
            f"key:{number % 50}",
            f"TASK-{number % 5000}",
            f"m{number % 4}",
            NOON + number * 26,
            NOON + number * 26 + 9,
        )
        for number in range(count)
    )
    with store.transaction():
        store._db.executemany(
            "INSERT INTO runs (id, identity, meta, model, started, ended, reason, tokens, dollars, door, batch, server, state,"
            " options, prompt) VALUES (?, ?, ?, ?, ?, ?, 'exit', 7, 0.5, 'claude', '', 's', 'ended', '{}', zeroblob(200) || 'x')",
            rows,
        )
        store._db.execute(
            "INSERT INTO uses SELECT id, identity, meta, DATE(ended, 'unixepoch'), model, 1, tokens, dollars, 9, 0 FROM runs"
        )
    store.close()
    return path


def told(path: Path, *by: str, **query: Any) -> list[tuple[object, ...]]:
    """Return the sums in a file as rows."""
    with Reader(path) as reader:
        used = reader.usage(UsageQuery(**({"by": by} if by else {}), **query))
    return [tuple(row.told().values()) for row in used.rows]


# -- what is summed up -------------------------------------------------------------------------------------------------


def test_by_day_and_identity_the_newest_day_first(tmp_path: Path) -> None:
    assert told(fill(tmp_path / "j.db")) == [
        (SECOND, "key:alice", 1, 0, 10, 0.5, 9.0, 0),
        (SECOND, "key:bob", 2, 4, 11, 1.0, 18.0, 1),
        (FIRST, "key:alice", 2, 4, 15, 1.0, 18.0, 1),
    ]


def test_by_whatever_is_asked_in_the_order_in_which_it_is(tmp_path: Path) -> None:
    path = fill(tmp_path / "j.db")
    assert [row[:2] for row in told(path, "model")] == [("", 1), ("haiku", 1), ("opus", 3)]
    assert [row[:2] for row in told(path, "meta")] == [("OTHER", 1), ("TASK-1", 2), ("TASK-2", 1), ("TASK_X", 1)]
    assert [row[:3] for row in told(path, "identity", "day")] == [
        ("key:alice", SECOND, 1), ("key:alice", FIRST, 2), ("key:bob", SECOND, 2),
    ]  # fmt: skip
    assert sum(row[4] for row in told(path, *GROUPS)) == 5
    with Reader(path) as reader:
        assert list(reader.usage(UsageQuery(by=("meta", "day"))).rows[0].told()) == ["meta", "day", *FIGURES]


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ({"since": SECOND}, [("key:alice", 1), ("key:bob", 2)]),
        ({"until": SECOND}, [("key:alice", 2)]),
        ({"since": SECOND, "until": SECOND}, []),
        ({"meta_prefix": "TASK-"}, [("key:alice", 3)]),
        ({"meta_prefix": "%"}, []),
        ({"meta_prefix": ""}, [("key:alice", 3), ("key:bob", 2)]),
        ({"identity": "key:bob"}, [("key:bob", 2)]),
        ({"identity": ""}, []),
    ],
)
def test_only_what_is_asked_for(tmp_path: Path, query: dict[str, Any], rows: list[tuple[str, int]]) -> None:
    assert [row[:2] for row in told(fill(tmp_path / "j.db"), "identity", **query)] == rows


@pytest.mark.parametrize(
    ("separator", "rows"),
    [
        ("-", [("OTHER", 1), ("TASK", 3), ("TASK_X", 1)]), ("_", [("OTHER", 1), ("TASK", 1), ("TASK-1", 2), ("TASK-2", 1)]),
        ("K-", [("OTHER", 1), ("TAS", 3), ("TASK_X", 1)]), ("", [("OTHER", 1), ("TASK-1", 2), ("TASK-2", 1), ("TASK_X", 1)]),
    ],
)  # fmt: skip
def test_a_name_goes_up_to_its_first_separator(tmp_path: Path, separator: str, rows: list[tuple[str, int]]) -> None:
    assert [row[:2] for row in told(fill(tmp_path / "j.db"), "meta", separator=separator)] == rows


@pytest.mark.parametrize("reason", Reason)
def test_a_failure_is_what_neither_the_cli_nor_the_client_ended(tmp_path: Path, reason: Reason) -> None:
    path = fill(tmp_path / "j.db", [Ran(reason=reason)])
    failed = reason not in (Reason.EXIT, Reason.STOPPED, Reason.DISCONNECTED)
    assert told(path, "identity")[0][-1] == int(failed)


def test_a_clock_that_goes_back_makes_no_time(tmp_path: Path) -> None:
    store = Store(tmp_path / "j.db", "s")
    with store.transaction():
        store.begin(begun(1, Ran(at=NOON + 60)))
        store.end(ended(1, Ran(at=NOON)))
        store.end(ended(1, Ran(at=NOON)))
    store.close()
    assert told(tmp_path / "j.db", "day") == [(FIRST, 1, 2, 10, 0.5, 0.0, 0)]


def test_there_are_no_more_rows_than_the_limit_and_the_newest_stay(tmp_path: Path) -> None:
    path = fill(tmp_path / "j.db")
    with Reader(path) as reader:
        cut = reader.usage(UsageQuery(limit=2))
        assert ([row.group["day"] for row in cut.rows], cut.truncated) == ([SECOND, SECOND], 2)
        assert reader.usage(UsageQuery(limit=3)).truncated is None
        assert (len(reader.usage(UsageQuery(limit=-1)).rows), UsageQuery().limit) == (3, USAGE_ROWS)


def test_a_hundred_thousand_runs_are_summed_up_at_once(tmp_path: Path) -> None:
    path = fill_in_bulk(tmp_path / "j.db", 100_000)
    began = time.thread_time()
    rows = told(path, "day", "identity")
    assert time.thread_time() - began < 0.8
    assert sum(row[2] for row in rows) == 100_000
    assert sum(row[4] for row in rows) == 700_000
    assert len(told(path, "meta", "day")) == USAGE_ROWS


async def test_it_is_read_beside_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = Reader.usage
    monkeypatch.setattr(Reader, "usage", lambda *words: seen.append(threading.get_ident()) or real(*words))
    async with open_journal(tmp_path / "j.db", "s", Retention(), 2**20, content=True) as journal:
        assert (await journal.usage(UsageQuery())).rows == []
    assert seen
    assert threading.get_ident() not in seen


async def test_it_is_told_beside_the_loop(fake: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = Usage.told
    monkeypatch.setattr(Usage, "told", lambda used: seen.append(threading.get_ident()) or real(used))
    async with fake.serve(journal="memory") as server:
        assert await get(server, "/api/usage") == {"usage": [], "truncated": None}
    assert seen
    assert threading.get_ident() not in seen


async def test_what_was_used_on_a_day_to_come_is_not_of_this_day(fake: Backend, folder: Path) -> None:
    """A clock that was ahead for a while leaves such runs."""
    path = fill(folder / "j.db", [Ran(at=time.time() + 2 * DAY, dollars=5.0)])
    async with fake.serve(journal=f"sqlite:{path}", dollars_per_day=1.0) as server:
        assert (await ask(server, "hello")).code == 1000


# -- what stays --------------------------------------------------------------------------------------------------------


def test_what_was_used_stays_and_the_names_go_with_the_runs(tmp_path: Path) -> None:
    path = fill(tmp_path / "j.db")
    before, models = told(path), told(path, "day", "identity", "model")
    store = Store(path, "s")
    with store.transaction():
        assert store.delete("key:alice", f"{0:032x}")
    assert [row[:2] for row in told(path, "meta")] == [
        ("", 1),
        ("OTHER", 1),
        ("TASK-1", 1),
        ("TASK-2", 1),
        ("TASK_X", 1),
    ]
    with store.transaction():
        assert store.retain(Retention(days=1), NOON + 9 * DAY) == 4
    store.close()
    assert (told(path), told(path, "day", "identity", "model")) == (before, models)
    assert [row[:2] for row in told(path, "meta")] == [("", 5)]
    assert told(path, "day", meta_prefix="T") == []
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT COUNT(*) FROM uses").fetchone() == (0,)


def test_no_number_of_tokens_keeps_a_run_from_its_end_or_from_its_deletion(tmp_path: Path) -> None:
    path = fill(tmp_path / "j.db", [Ran(tokens=2**70), Ran(tokens=7), Ran(tokens=7)])
    assert told(path)[0][4] == RUN_TOKENS + 14
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE uses SET tokens = ?", (2**62,))  # as a file from before there was a limit has it
        db.commit()
    assert told(path)[0][4] == SUM_TOKENS
    assert delete_local(path, None) == 3
    assert told(path)[0][4] == SUM_TOKENS


def test_a_client_can_not_make_the_sums_grow_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio_claude.journal.usage.MODELS_KEPT", 3)
    path = fill(tmp_path / "j.db", [Ran(model=f"m{number % 6}") for number in range(60)])
    assert delete_local(path, None) == 60
    assert [row[:2] for row in told(path, "model")] == [("", 30), ("m0", 10), ("m1", 10), ("m2", 10)]


def test_a_run_that_its_server_did_not_see_to_the_end_counts_as_failed(tmp_path: Path) -> None:
    path, today = tmp_path / "j.db", time.strftime("%Y-%m-%d", time.gmtime())
    dead = Store(path, "dead")
    with dead.transaction():
        for number in range(2):
            dead.begin(begun(number, Ran(model="opus")))
    dead.close()
    assert told(path) == [], "not before somebody has seen it"
    assert delete_local(path, f"{0:032x}") == 1
    assert told(path, "day", "model", "meta") == [(today, "opus", "", 1, 0, 0, 0.0, 0.0, 1)]
    Store(path, "next").close()
    assert told(path, "day", "model") == [(today, "opus", 2, 0, 0, 0.0, 0.0, 2)]


async def test_what_an_earlier_version_counted_is_counted_still(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        for statements in VERSIONS[:3]:
            db.executescript(statements)
        db.execute(
            "INSERT INTO runs (id, identity, meta, door, batch, server, state, started, ended, reason, tokens, options)"
            " VALUES ('abcd', 'local', 'T', 'claude', '', 's', 'ended', ?, ?, 'exit', 3, '{}')", (NOON, NOON + 9),
        )  # fmt: skip
        db.execute("INSERT INTO usage VALUES (?, 'local', 1, 2, 3, 0.5)", (FIRST,))
        db.execute("PRAGMA user_version = 3")
        db.commit()
    async with open_journal(path, "s", Retention(), 2**20, content=True) as journal:
        journal.begin(begun(1, Ran(model="opus"))).end(ended(1, Ran(model="opus")))
        assert await journal.settle()
        found = await journal.get("local", "abcd")
        assert found
        assert "model" not in found.told(content=True)
    assert told(path, "day", "identity") == [(FIRST, "local", 2, 4, 13, 1.0, 9.0, 0)]
    assert [row[:3] for row in told(path, "model", "meta")] == [("", "", 1), ("opus", "T", 1)]
    assert delete_local(path, "abcd") == 1
    assert [row[:2] for row in told(path, "model")] == [("", 1), ("opus", 1)], "it is not counted twice"


# -- at a server -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [True, False])
async def test_the_model_is_the_one_that_was_asked_for(fake: Backend, content: bool) -> None:
    async with fake.serve(journal="memory", journal_content=content) as server:
        await ask(server, "hello", model="claude-haiku-5-5", meta="TASK-1")
        await ask(server, "hello", meta="TASK-2")
        assert server.runs.journal
        assert await server.runs.journal.settle()
        used = await get(server, "/api/usage?by=model,meta&separator=-")
        assert [(row["model"], row["meta"], row["runs"], row["turns"]) for row in used["usage"]] == [
            ("", "TASK", 1, 1), ("claude-haiku-5-5", "TASK", 1, 1),
        ]  # fmt: skip
        assert used["truncated"] is None
        assert all(0 < row["seconds"] < 60 and row["tokens"] > 0 and row["failed"] == 0 for row in used["usage"])


async def test_an_identity_is_told_of_its_own(fake: Backend, folder: Path) -> None:
    path = fill(folder / "j.db")
    names = ("alice", "bob", "vera/viewer", "ada/admin")
    async with fake.serve_known(*names, journal=f"sqlite:{path}") as (server, keys):
        for query in ("", "?by=meta", "?by=model", "?by=identity,day,meta", "?by=meta&meta_prefix=T"):
            own = json.dumps(await get(server, f"/api/usage{query}", keys["alice"]))
            for other in ("bob", "OTHER", "TASK_X", '"model": ""'):
                assert other not in own, query
        assert [row["identity"] for row in (await get(server, "/api/usage?by=identity", keys["bob"]))["usage"]] == [
            "key:bob"
        ]
        for name in ("vera", "ada"):
            assert len((await get(server, "/api/usage?by=identity", keys[name]))["usage"]) == 2
        assert (await call(server, "/api/usage?by=day"))[0] == 401


@pytest.mark.parametrize(
    "query",
    [
        "by=", "by=day,", "since=2026-02-30", "by=hour", "by=day,day", "by=day;model", "until=now", "until=", "meta_prefix=%E4", "limit=1",
        "separator=" + "x" * 65, "identity=key:bob",
    ],
)  # fmt: skip
async def test_bad_questions_are_named(fake: Backend, query: str) -> None:
    async with fake.serve(journal="memory") as server:
        status, _, body = await call(server, f"/api/usage?{query}")
        assert (status, json.loads(body)["code"]) == (400, "bad-query")
        assert query.partition("=")[0] in json.loads(body)["error"]


# -- the command -------------------------------------------------------------------------------------------------------


def where(way: str, server: Server, path: Path) -> list[str]:
    return ["--journal", str(path)] if way == "file" else ["--url", f"{server.url}/api/usage"]


async def usage(*words: str, status: int = 0, key: str = "") -> subprocess.CompletedProcess[bytes]:
    env = {**os.environ, **({"TRIO_CLAUDE_KEY": key} if key else {})}
    said = await trio_claude("usage", *words, env=env)
    assert said.returncode == status, said.stderr
    assert b"Traceback" not in said.stderr
    return said


def invoke(*words: str) -> Any:
    return CliRunner().invoke(cli, ["usage", *words])


def test_the_words_are_those_of_the_journal() -> None:
    assert ASKED == GROUPS
    assert ("group", *FIGURES) == tuple(field.name for field in attrs.fields(UsageRow))


@pytest.mark.parametrize("way", WAYS)
async def test_a_file_and_a_server_give_the_same_figures(fake: Backend, folder: Path, way: str) -> None:
    path = fill(folder / "j.db")
    async with fake.serve(journal=f"sqlite:{path}") as server:
        words = where(way, server, path)
        table = (await usage(*words, "--since", SECOND)).stdout.decode().splitlines()
        assert [line.split() for line in table] == [
            ["day", "identity", *FIGURES], [SECOND, "key:alice", "1", "0", "10", "0.5000", "9.0", "0"],
            [SECOND, "key:bob", "2", "4", "11", "1.0000", "18.0", "1"], ["total", "3", "4", "21", "1.5000", "27.0", "1"],
        ]  # fmt: skip
        said = json.loads((await usage(*words, "--by", "meta,model", "--separator", "-", "--json")).stdout)
        assert said == await get(server, "/api/usage?by=meta,model&separator=-")
        assert said == json.loads(
            (await usage(*words, "--by", "meta,model", "--separator", "-", "--format", "json")).stdout
        )
        text = (await usage(*words, "--by", "model,identity", "--meta", "TASK-", "--format", "csv")).stdout.decode()
        assert text.splitlines() == [
            ",".join(f'"{name}"' for name in ("model", "identity", *FIGURES)), '"haiku","key:alice",1,2,5,0.5,9.0,1',
            '"opus","key:alice",2,2,20,1.0,18.0,0',
        ]  # fmt: skip
        nothing = (await usage(*words, "--until", "1971-01-01")).stdout.decode().splitlines()
        assert [line.split()[0] for line in nothing] == ["day", "total"]


async def test_a_key_decides_whose_it_is(fake: Backend, folder: Path) -> None:
    path = fill(folder / "j.db")
    async with fake.serve_known("alice", "vera/viewer", journal=f"sqlite:{path}") as (server, keys):
        own = (await usage("--by", "identity", "--url", server.url, key=keys["alice"])).stdout
        every = (await usage("--by", "identity", "--url", server.url, key=keys["vera"])).stdout
        assert (b"bob" in own, b"bob" in every) == (False, True)
        assert b"it wants a valid key" in (await usage("--url", server.url, status=69)).stderr
    assert b"can't reach" in (await usage("--url", "http://127.0.0.1:1", status=69)).stderr


async def test_more_rows_than_the_limit_are_refused_and_the_limit_is_named(fake: Backend, folder: Path) -> None:
    path = fill_in_bulk(folder / "j.db", USAGE_ROWS + 1)
    async with fake.serve(journal=f"sqlite:{path}") as server:
        for way in WAYS:
            refused = await usage("--by", "day,identity,model,meta", *where(way, server, path), status=2)
            assert (refused.stdout, b"more than 10000 rows; say --since" in refused.stderr) == (b"", True)
            assert f"total {USAGE_ROWS + 1}" in " ".join(
                (await usage("--by", "model", *where(way, server, path))).stdout.decode().split()
            )
        used = await get(server, "/api/usage?by=meta,day,identity,model")
        assert (len(used["usage"]), used["truncated"]) == (USAGE_ROWS, USAGE_ROWS)


@pytest.mark.parametrize("bad", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1"])
def test_no_text_is_a_formula_in_a_spreadsheet(tmp_path: Path, bad: str) -> None:
    path = fill(tmp_path / "j.db", [Ran(identity=bad, meta=bad, model=bad)])
    said = invoke("--by", "meta,identity,model,day", "--format", "csv", "--journal", str(path))
    (_, row) = csv.reader(io.StringIO(said.stdout, newline=""))
    assert row[:4] == [f"'{bad}"] * 3 + [FIRST]


def test_what_csv_quotes_comes_back_as_it_was() -> None:
    figures = dict.fromkeys(FIGURES, 1)
    texts = ['a,"b"', "two\nlines", "two\r=lines", "a=b", "", "ä\u2028"]
    rows = csv.DictReader(io.StringIO(as_csv(("meta",), [{"meta": text, **figures} for text in texts]), newline=""))
    assert [row["meta"] for row in rows] == texts


def on_a_terminal(*words: str, columns: int = 80) -> str:
    """Return what the command says to a terminal."""
    ours, theirs = os.openpty()
    env = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    try:
        process = subprocess.Popen([*PROGRAM, "usage", *words], stdin=theirs, stdout=theirs, stderr=theirs, env=env)
        os.close(theirs)
        said = b""
        with contextlib.suppress(OSError):  # its end
            while piece := os.read(ours, 65536):
                said += piece
        assert process.wait(20) == 0, said
        return said.decode()
    finally:
        os.close(ours)


def test_no_control_sequence_reaches_a_terminal(tmp_path: Path) -> None:
    path = fill(tmp_path / "j.db", [Ran(identity=HOSTILE, meta=f"x{HOSTILE}", model=HOSTILE)])
    for form in ("table", "csv", "json"):
        said = on_a_terminal("--by", "identity,meta,model", "--format", form, "--journal", str(path))
        assert "x" in said
        for bad in ("\x1b]", "\x1b[2J", "\x9b", "\x07"):
            assert bad not in said, form


def test_a_narrow_terminal_cuts_words_and_no_number(tmp_path: Path) -> None:
    path = fill(tmp_path / "j.db", [Ran(f"key:{'long' * 20}", "NAME-" * 12, tokens=123456789, dollars=1234.5)])
    said = on_a_terminal("--by", "day,identity,meta", "--journal", str(path), columns=70)
    head, row, total = said.splitlines()
    assert row.split()[0] == FIRST
    assert row.count("…") == 2
    assert row.split()[-6:] == total.split()[-6:] == ["1", "2", "123456789", "1234.5000", "9.0", "0"]
    assert max(map(len, (row, total))) <= 70
    assert head.endswith("failed\x1b[0m")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--by", "hour"], "say some of day, identity, model, meta"), (["--by", ""], "say some of"), (["--by", "day,day"], "each once"),
        (["--since", "yesterday"], "is no time"), (["--until", "2026-02-30"], "is no time"), (["--since", "1e15"], "year 9999"),
        (["--json", "--format", "csv"], "only one of them"), (["--format", "xml"], "xml"),
    ],
)  # fmt: skip
def test_what_can_not_be_asked_is_named(words: list[str], why: str) -> None:
    said = invoke(*words, "--journal", "/nope")
    assert said.exit_code == 2
    assert why in " ".join(said.output.split())


def test_a_file_that_is_no_journal_is_named() -> None:
    said = invoke("--journal", "/nope")
    assert isinstance(said.exception, ConfigError), "which main() says, with status 2"
    assert "there is no journal at /nope" in str(said.exception)


@pytest.mark.parametrize(
    ("typed", "day"),
    [
        ("2026-11-27", "2026-11-27"), ("2026-11-27T23:30-02:00", "2026-11-28"), ("0", "1970-01-01"), ("86399.5", "1970-01-01"),
        ("20261127", "1970-08-23"), (None, None),
    ],
)  # fmt: skip
def test_a_time_stands_for_its_day_of_utc(typed: str | None, day: str | None) -> None:
    command = click.Command("x")
    assert take_day(click.Context(command), click.Option(["--since"]), typed) == day


FIGURED = {**dict.fromkeys(FIGURES, 1), "day": FIRST, "identity": "x"}


@pytest.mark.parametrize(
    "said",
    [
        {"usage": 3}, {"usage": [3], "truncated": None}, {"usage": [{}], "truncated": None}, {"usage": [FIGURED], "truncated": "x"},
        *({"usage": [{**FIGURED, name: bad}], "truncated": None} for name, bad in (("day", None), ("tokens", "1"), ("dollars", 10**400), ("runs", -1), ("seconds", float("nan")))),
    ],
)  # fmt: skip
async def test_what_is_no_server_of_ours_is_named(said: object) -> None:
    async with answering(json.dumps(said).encode()) as url:
        assert b"does not answer as trio-claude does" in (await usage("--url", url, status=2)).stderr
