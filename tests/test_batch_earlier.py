"""Rule: a batch that was broken off goes on where it was: what is done stays, byte for byte, and each run has one result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio
from batches import PROGRAM, batch, environ, left, results, write_tasks
from harness import Backend, open_backend, until

from trio_claude.batch.earlier import check_same, read_manifest, sort_results, take_up
from trio_claude.batch.files import OutFile, ResultsFile, Unwritable, ahead_of
from trio_claude.batch.results import parse_result
from trio_claude.batch.tasks import Plan, Rules, make_plan
from trio_claude.config import OPTIONS
from trio_claude.errors import ConfigError
from trio_claude.journal.store import Query, Reader


def plan(count: int, **rules: Any) -> Plan:
    return make_plan(b'{"prompt":"hi"}\n' * count, Rules(OPTIONS, 300, **rules))


def line(task: int, reason: str = "exit", **fields: object) -> bytes:
    said: dict[str, Any] = {
        "id": str(task), "task": task, "repeat": 1, "model": None, "meta": f"TASK-{task}", "ok": reason == "exit",
        "reason": reason, "exit_status": 0, "error": None, "result": "r", "session_id": "s", "num_turns": 1,
        "usage": {"input_tokens": 1, "output_tokens": 1, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0},
        "cost_usd": 0.5, "seconds": 1.0, "first_line_seconds": 0.5, "attempts": 1, "receipt": None, "artifacts": None, **fields,
    }  # fmt: skip
    return json.dumps(said).encode() + b"\n"


def test_what_is_done_stays_and_the_rest_is_made_anew(folder: Path) -> None:
    out = folder / "r.jsonl"
    done = [line(1), line(3, "failed"), line(2)]
    out.write_bytes(b"".join([*done[:2], line(4, "cancelled"), line(5, "busy"), line(3, "failed"), b'{"id": "7", ']))
    ahead_of(out).write_bytes(done[2] + line(1) + b'{"id"')
    earlier = take_up(out, beside := folder / "m.json", {}, plan(7))
    assert out.read_bytes() == b"".join(done)
    assert not ahead_of(out).exists()
    assert list(earlier.done) == [1, 1, 1, 0, 0, 0, 0]
    assert (earlier.tally.ok, earlier.tally.failed, earlier.tally.done) == (2, 1, 3)
    assert earlier.tally.cost_usd == 0.5 * 5, "of five runs, two are made anew; what stands there twice was spent once"
    assert earlier.manifest == json.loads(beside.read_bytes()) == {"spent_before": 0.5 * 2}
    again = take_up(out, beside, earlier.manifest, plan(7))
    assert again.tally.cost_usd == 0.5 * 5, "and it is not forgotten when there is no result of it any more"
    with OutFile(out, force=False, keep=True) as file:
        file.write(line(4))
    sort_results(out, plan(7))
    assert [json.loads(one)["task"] for one in out.read_bytes().splitlines()] == [1, 2, 3, 4]
    assert sorted(folder.iterdir()) == [beside, out]


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (b"nonsense\n", "line 2: no result of a batch"),
        (b"{}\n", "line 2: no result of a batch"),
        (b"[" * 100_000 + b"\n", "line 2: no result of a batch"),
        (line(1, attempts="many"), "line 2: no result of a batch"),
        (line(1, more=1), "line 2: no result of a batch"),
        (line(1, usage={}), "line 2: no result of a batch: usage must have input_tokens"),
        (line(1, cost_usd=float("nan")), "line 2: no result of a batch: cost_usd must be a number"),
        (line(9), "9 is not planned"),
        (line(2, id="other"), "other is not planned"),
        (line(2, repeat=2), "2 is not planned"),
    ],
)
def test_what_is_no_result_of_this_batch_is_named_and_kept(folder: Path, bad: bytes, match: str) -> None:
    out = folder / "r.jsonl"
    out.write_bytes(line(1) + bad)
    with pytest.raises(Unwritable, match=match):
        take_up(out, folder / "m.json", {}, plan(7))
    assert out.read_bytes() == line(1) + bad


def test_models_and_repeats_have_places() -> None:
    several = plan(3, models=("haiku", "sonnet"), repeat=2)
    assert [several.place(item.task.number, item.model, item.repeat) for item in several] == list(range(12))
    assert several.place(1, None, 1) is None
    assert several.place(1, "opus", 1) is None
    assert several.place(4, "haiku", 1) is None
    assert several.place(1, "haiku", 0) is None


def test_a_manifest_of_other_tasks_is_refused(folder: Path) -> None:
    path = folder / "m.json"
    assert read_manifest(path) is None
    good = {"tasks": {"sha256": "a", "file": "t"}, "options": {"models": [], "repeat": 1}}
    check_same(path, good, "a", plan(1))
    for told, match in (
        ({**good, "tasks": {"sha256": "b", "file": "t"}}, "of other tasks"),
        ({**good, "options": {"models": ["opus"], "repeat": 1}}, "has models"),
        ({**good, "options": {"models": [], "repeat": 2}}, "has repeat 2, not 1"),
        ({}, "no manifest"),
    ):
        with pytest.raises(ConfigError, match=match):
            check_same(path, told, "a", plan(1))
    for text in ("", "[]", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(ConfigError, match="--resume"):
            read_manifest(path)


def test_what_is_dropped_is_what_never_came_to_an_end(folder: Path) -> None:
    out = folder / "r.jsonl"
    undone = (
        "cancelled", "skipped", "busy", "refused", "unreachable", "disconnected", "drained", "node-lost", "spawn-failed",
    )  # fmt: skip
    out.write_bytes(b"".join(line(task, reason) for task, reason in enumerate(undone, 1)))
    assert not any(take_up(out, folder / "m.json", {}, plan(len(undone))).done)


def test_a_file_that_can_not_be_read_is_named(folder: Path) -> None:
    (folder / "r.jsonl").mkdir()
    with pytest.raises(Unwritable, match=r"r\.jsonl: Is a directory"):
        take_up(folder / "r.jsonl", folder / "m.json", {}, plan(1))
    (folder / "s.jsonl.ahead").mkdir()
    (folder / "s.jsonl").touch()
    with pytest.raises(Unwritable, match=r"s\.jsonl\.ahead: Is a directory"):
        take_up(folder / "s.jsonl", folder / "m.json", {}, plan(1))


def test_the_ahead_of_another_batch_is_gone(folder: Path) -> None:
    out = folder / "r.jsonl"
    ahead_of(out).write_bytes(line(2))
    with ResultsFile(out, force=False, resume=True) as file:
        assert ahead_of(out).exists()
        file.drop()
        assert not ahead_of(out).exists()
    ahead_of(out).write_bytes(line(2))
    ResultsFile(out, force=True).close()
    assert not ahead_of(out).exists()


def test_a_result_that_waits_outlives_its_writer(folder: Path) -> None:
    out = folder / "r.jsonl"
    with ResultsFile(out, force=False) as file:
        file.keep(line(2))
        assert ahead_of(out).read_bytes() == line(2)
    assert ahead_of(out).exists(), "nobody said that all is out"
    with ResultsFile(out, force=True) as file:
        file.keep(line(2))
        file.drop()
        assert not ahead_of(out).exists()


@pytest.mark.parametrize("name", ["fake", pytest.param("real", marks=pytest.mark.real_cli)])
async def test_a_batch_that_is_broken_off_three_times_has_each_result_once(name: str, folder: Path, long: bool) -> None:
    """By SIGINT, SIGKILL and SIGTERM, each when some more are done."""
    count = 20 if name == "real" else 1000 if long else 60
    async with open_backend(name, folder) as cli:
        tasks = write_tasks(folder, *[{"prompt": f"hello {number}", "id": f"t{number}"} for number in range(count)])
        words = [*PROGRAM, tasks, "--resume", "--concurrency", "3"]
        kept: dict[str, dict[str, Any]] = {}
        for part, number in enumerate((signal.SIGINT, signal.SIGKILL, signal.SIGTERM), 1):
            process = await trio.lowlevel.open_process(words, env=environ(cli), cwd=folder, stderr=subprocess.PIPE)
            assert process.stderr
            await until(lambda part=part: len(done(folder)) >= part * count // 4, 60)
            process.send_signal(number)
            with trio.fail_after(20):
                await process.wait()
            await process.stderr.aclose()
            await until(lambda: not left(cli), 10)
            now = done(folder)
            assert kept.items() <= now.items()
            kept = now
            assert len(kept) < count
        told = await batch(cli, folder, tasks, "--resume")
    assert told.status == 0, told.stderr
    assert told.of("id") == [f"t{number}" for number in range(count)]
    assert all(result["ok"] and result["receipt"]["survivors"] == 0 for result in told.results)
    assert kept.items() <= {result["id"]: result for result in told.results}.items()
    manifest = json.loads((folder / "results.manifest.json").read_text())
    assert (manifest["resumed"], manifest["summary"]["ok"], manifest["summary"]["runs"]) == (3, count, count)
    assert sorted(path.name for path in folder.glob("results*")) == ["results.jsonl", "results.manifest.json"]


async def test_a_signal_waits_until_the_results_are_whole(fake: Backend, folder: Path) -> None:
    """The results are read twice, and each time what waited beside them: a pipe, which holds the reader up."""
    tasks, ahead = write_tasks(folder, "hello", "hello"), folder / "results.jsonl.ahead"
    first = await batch(fake, folder, tasks, "--max-usd", "0.0001", "--concurrency", "1")
    assert first.of("reason") == ["exit", "skipped"]
    os.mkfifo(ahead)
    (folder / f"results.jsonl.{'0' * 16}.new").touch()
    process = await trio.lowlevel.open_process(
        [*PROGRAM, tasks, "--resume"], env=environ(fake), cwd=folder, stderr=subprocess.DEVNULL
    )
    await until(lambda: ended(ahead), 30)
    await until(lambda: bool(list(folder.glob("results.jsonl.*.new"))), 30)
    process.send_signal(signal.SIGTERM)
    await until(lambda: ended(ahead), 30)
    with trio.fail_after(20):
        assert await process.wait() == 143
    told = results(folder)
    assert (told[0], [result["reason"] for result in told]) == (first.results[0], ["exit", "cancelled"])
    assert sorted(path.name for path in folder.glob("results*")) == ["results.jsonl", "results.manifest.json"]


def ended(pipe: Path) -> bool:
    """Let who reads a pipe find its end; return whether anybody did."""
    try:
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def done(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the results that stay, by their ids."""
    out = folder / "results.jsonl"
    lines = [one for path in (out, ahead_of(out)) for one in content(path).splitlines(True)]
    told = [json.loads(one) for one in lines if one.endswith(b"\n")]
    return {result["id"]: result for result in told if result["reason"] == "exit"}


def content(path: Path) -> bytes:
    """Return what is in a file; a batch may remove it at any time."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


async def test_the_runs_of_a_batch_are_in_the_journal_under_one_id(fake: Backend, folder: Path) -> None:
    tasks = write_tasks(folder, "hello", "hello again")
    path = folder / "j.db"
    assert (await batch(fake, folder, tasks, "--journal", f"sqlite:{path}")).status == 0
    name = json.loads((folder / "results.manifest.json").read_text())["batch"]
    with Reader(path) as reader:
        runs = reader.find(Query(identity=None, batch=name)).runs
        assert sorted(run.meta for run in runs) == ["TASK-1", "TASK-2"]
        assert reader.find(Query(identity=None, batch="other")).runs == []


async def test_what_can_not_be_gone_on_with_is_said(fake: Backend, folder: Path) -> None:
    tasks = write_tasks(folder, "hello")
    for words, match in ((("--resume", "--force"), "say one of them"),):
        told = await batch(fake, folder, tasks, *words)
        assert told.status == 2
        assert match in told.stderr
    assert (await batch(fake, folder, tasks, "--resume")).status == 0
    first = results(folder)
    again = await batch(fake, folder, tasks, "--resume")
    assert (again.status, again.results) == (0, first)
    changed = write_tasks(folder, "hello", "more")
    told = await batch(fake, folder, changed, "--resume")
    assert told.status == 2
    assert "of other tasks" in told.stderr
    (folder / "results.manifest.json").unlink()
    told = await batch(fake, folder, changed, "--resume")
    assert told.status == 2
    assert "has no manifest" in told.stderr
    assert results(folder) == first


async def test_an_empty_file_without_a_manifest_is_begun_anew(fake: Backend, folder: Path) -> None:
    tasks = write_tasks(folder, "hello")
    (folder / "results.jsonl").touch()
    assert (await batch(fake, folder, tasks, "--resume")).status == 0
    (folder / "results.jsonl").unlink()
    (folder / "results.manifest.json").unlink()
    (folder / "results.jsonl.ahead").write_bytes(line(1))
    for words, match in (([], "results.jsonl.ahead exists; --force"), (["--resume"], "has no manifest")):
        told = await batch(fake, folder, tasks, *words)
        assert told.status == 2
        assert match in told.stderr
    assert (folder / "results.jsonl.ahead").exists()


async def test_a_manifest_of_other_results_is_not_gone_on_with(fake: Backend, folder: Path) -> None:
    tasks = write_tasks(folder, "hello")
    assert (await batch(fake, folder, tasks, "--out", "r")).status == 0
    before = (folder / "r.manifest.json").read_bytes()
    told = await batch(fake, folder, tasks, "--out", "r.jsonl", "--resume")
    assert told.status == 2
    assert told.stderr == "trio-claude: --resume: r.manifest.json is the manifest of r; --manifest names another\n"
    assert (folder / "r.manifest.json").read_bytes() == before
    (folder / "b").mkdir()
    told = await batch(fake, folder, tasks, "--out", "b/r", "--manifest", "r.manifest.json", "--resume")
    assert (told.status, "r.manifest.json is the manifest of r;" in told.stderr) == (2, True)
    (folder / "r").rename(folder / "r.jsonl")
    assert (await batch(fake, folder, tasks, "--out", "r.jsonl", "--resume")).status == 0
    odd = json.loads((folder / "r.manifest.json").read_bytes()) | {"results": "."}
    (folder / "r.manifest.json").write_text(json.dumps(odd))
    assert (await batch(fake, folder, tasks, "--out", "r.jsonl", "--resume")).status == 2


async def test_a_manifest_that_lacks_this_and_that_is_gone_on_with(fake: Backend, folder: Path) -> None:
    tasks, path = write_tasks(folder, "hello", "hello"), folder / "results.manifest.json"
    assert (
        await batch(fake, folder, tasks, "--timeout", "50", "--max-usd", "0.0001", "--concurrency", "1")
    ).status == 1
    manifest = json.loads(path.read_bytes())
    assert [start["options"]["timeout"] for start in manifest["starts"]] == [50]
    del manifest["batch"], manifest["starts"]
    path.write_text(json.dumps({**manifest, "resumed": "often", "spent_before": None}))
    told = await batch(fake, folder, tasks, "--resume", "--timeout", "60", "--profile", "chat")
    assert told.status == 0, told.stderr
    manifest = json.loads(path.read_bytes())
    assert (len(manifest["batch"]), manifest["resumed"]) == (32, 1)
    starts = manifest["starts"]
    assert [(start["options"]["timeout"], start["profile"]) for start in starts] == [(50, "approve"), (60, "chat")]
    assert starts[0]["started"] == manifest["started"] < starts[1]["started"]


async def test_a_first_start_writes_over_no_lines(fake: Backend, folder: Path) -> None:
    tasks = write_tasks(folder, "hello")
    (folder / "lines").mkdir()
    (folder / "lines" / "1.jsonl").write_text("mine")
    told = await batch(fake, folder, tasks, "--resume", "--lines", "lines")
    assert told.status == 2
    assert "lines is not empty" in told.stderr
    assert (folder / "lines" / "1.jsonl").read_text() == "mine"
    assert not (folder / "results.jsonl").exists()
    assert (await batch(fake, folder, tasks, "--lines", "own")).status == 0
    assert (await batch(fake, folder, tasks, "--lines", "own", "--resume")).status == 0


async def test_money_that_was_spent_before_counts(fake: Backend, folder: Path) -> None:
    tasks = write_tasks(folder, *["hello"] * 4)
    told = await batch(fake, folder, tasks, "--max-usd", "0.0001", "--concurrency", "1")
    assert [result["reason"] for result in told.results][-1] == "skipped"
    ran = [result for result in told.results if result["reason"] == "exit"]
    again = await batch(fake, folder, tasks, "--max-usd", "0.0001", "--resume")
    assert [result["reason"] for result in again.results] == [result["reason"] for result in told.results]
    assert again.results[: len(ran)] == ran
    assert (await batch(fake, folder, tasks, "--resume")).status == 0


def test_a_result_comes_back_as_it_was() -> None:
    receipt = {"seen": 1, "killed": None, "survivors": None, "ms": 1.5, "containment": None}
    for said in (
        line(1),
        line(1, receipt=receipt, artifacts="1 file"),
        line(2, "failed", seconds=None, first_line_seconds=None),
    ):
        assert json.loads(parse_result(said).render()) == json.loads(said)
