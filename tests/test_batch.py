"""`trio-claude batch` as a user meets it: real processes, files, signals and exit statuses."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest
import trio
from batches import PROGRAM, batch, environ, left, results, write_tasks
from harness import Backend, directive, open_backend, script_cli, until

from trio_claude.batch.manifest import settings
from trio_claude.commands.batching import Unkept
from trio_claude.config import Config
from trio_claude.engine import STORE
from trio_claude.events import JournalReady, Strained

TREE = directive("tree", kinds=["setsid", "double_fork", "ignore_term", "hold_stdout"], seconds=60, then="stay")
EXIT_TREE = directive("tree", kinds=["setsid", "double_fork", "ignore_term"], seconds=60) + "hello"


def flaky(folder: Path, backend: Backend, status: int, times: int = 1) -> Path:
    """Write a CLI that fails as the real one does, `times` times, then is the fake one."""
    error = {
        "type": "result",
        "is_error": True,
        "subtype": "success",
        "api_error_status": status,
        "result": "API Error",
    }
    retry = {"type": "system", "subtype": "api_retry", "error_status": status}
    program = folder / "flaky"
    tries = " || ".join(f"mkdir {folder}/try-{number} 2>/dev/null" for number in range(times))
    program.write_text(
        f"#!/bin/sh\ncase $* in *--version*) echo flaky; exit 0;; esac\n"
        f"if {tries}; then\necho '{json.dumps(retry)}'\necho '{json.dumps(error)}'\nexit 1\nfi\n"
        f'exec {backend.program} "$@"\n'
    )
    program.chmod(0o755)
    return program


# -- what comes out ---------------------------------------------------------------------------------------------------


async def test_a_result_for_each_task_in_its_order(fake: Backend, folder: Path) -> None:
    tasks = write_tasks(
        folder,
        directive("slow", n=5, ms=100),
        "hello",
        {"prompt": directive("text", text="hi"), "id": "x", "meta": "M-1"},
    )
    told = await batch(fake, folder, tasks, "--concurrency", "3")
    assert told.status == 0, told.stderr
    assert told.of("id") == ["1", "2", "x"]
    assert told.of("meta") == ["TASK-1", "TASK-2", "M-1"]
    assert told.of("result") == ["tok0 tok1 tok2 tok3 tok4 ", "Hello from stub.", "hi"]
    assert told.of("ok") == [True] * 3
    assert {result["receipt"]["survivors"] for result in told.results} == {0}
    assert all(0 < result["first_line_seconds"] <= result["seconds"] for result in told.results)
    assert told.stdout == ""
    assert told.stderr.startswith("3 runs: 3 ok, 0 failed, 0 skipped, 0 cancelled; 30 tokens in, ")
    assert told.stderr.endswith("; 0 processes left\n")
    assert told.stderr.count("\n") == 1


async def test_or_as_they_come(fake: Backend, folder: Path) -> None:
    tasks = write_tasks(folder, directive("slow", n=10, ms=100), "hello", "hello")
    told = await batch(fake, folder, tasks, "--as-completed", "--concurrency", "2")
    assert told.of("id") == ["2", "3", "1"]


async def test_models_repeats_and_lines(fake: Backend, folder: Path) -> None:
    tasks = write_tasks(folder, "one", "two")
    words = ["--model", "haiku", "--model", "claude-x-1", "--repeat", "2", "--lines", "lines", "--json"]
    told = await batch(fake, folder, tasks, *words)
    assert [(line["id"], line["model"], line["repeat"]) for line in told.results] == [
        (task, model, repeat) for task in "12" for model in ("haiku", "claude-x-1") for repeat in (1, 2)
    ]
    kept = {path.name: path.read_text().splitlines() for path in (folder / "lines").iterdir()}
    assert sorted(kept) == sorted(f"{task}.{turn}.jsonl" for task in "12" for turn in range(1, 5))
    init, *_, last = map(json.loads, kept["1.3.jsonl"])
    assert (init["model"], last["type"], last["session_id"]) == ("claude-x-1", "result", told.results[2]["session_id"])
    summary = json.loads(told.stdout)
    assert (summary["runs"], summary["ok"], summary["survivors"]) == (8, 8, 0)
    assert told.stderr == ""


async def test_the_manifest_says_what_the_figures_need(fake: Backend, folder: Path) -> None:
    tasks = write_tasks(folder, "hello", "hello")
    told = await batch(
        fake, folder, tasks, "--profile", "chat", "--concurrency", "3", "--timeout", "40", "--repeat", "2"
    )
    text = (folder / "results.manifest.json").read_text()
    manifest = json.loads(text)
    assert text.count("\n") == 1
    assert manifest["cli"] == {"path": fake.program, "version": "2.1.330 (Fake Claude)"}
    assert (manifest["profile"], manifest["options"]["concurrency"], manifest["options"]["timeout"]) == ("chat", 3, 40)
    assert manifest["containment"]["mode"] == told.results[0]["receipt"]["containment"]
    assert manifest["tasks"]["sha256"] == hashlib.sha256(Path(tasks).read_bytes()).hexdigest()
    assert (manifest["options"]["tasks"], manifest["options"]["runs"], manifest["summary"]["ok"]) == (2, 4, 4)
    assert manifest["machine"]["cores"] == os.cpu_count()
    assert manifest["started"] < manifest["ended"]
    assert "p50" in manifest["summary"]["seconds"]


def test_no_password_is_in_a_manifest() -> None:
    assert settings(Config(redis="redis://:hidden@127.0.0.1", profile="chat")) == {"profile": "chat"}


async def test_a_cli_that_leaves_something_with_its_stdout_has_a_version(fake: Backend, folder: Path) -> None:
    words = f'case $* in *--version*) sleep 60 & echo 1.2.3; exit 0;; esac; exec {fake.program} "$@"'
    told = await batch(fake, folder, write_tasks(folder, "hello"), TRIO_CLAUDE_CLI=script_cli(folder, words))
    assert told.status == 0, told.stderr
    assert json.loads((folder / "results.manifest.json").read_text())["cli"]["version"] == "1.2.3"


async def test_each_file_of_results_has_a_manifest_of_its_own(fake: Backend, folder: Path) -> None:
    tasks = write_tasks(folder, "hello")
    for out in ("sonnet-4.1", "sonnet-4.5", "x.jsonl"):
        assert (await batch(fake, folder, tasks, "--out", out)).status == 0
    manifests = sorted(path.name for path in folder.glob("*.manifest.json"))
    assert manifests == ["sonnet-4.1.manifest.json", "sonnet-4.5.manifest.json", "x.manifest.json"]


async def test_failures_are_told_and_the_rest_goes_on(fake: Backend, folder: Path) -> None:
    tasks = write_tasks(
        folder, directive("exit", status=3), directive("err", status=400), {"prompt": directive("silent"), "timeout": 0.4},
        {"prompt": directive("bash", cmd="true", rounds=9), "max_turns": 2}, "hello",
    )  # fmt: skip
    told = await batch(fake, folder, tasks)
    assert told.status == 1
    assert told.of("reason") == ["failed", "failed", "deadline", "failed", "exit"]
    assert told.of("ok") == [False, False, False, False, True]
    assert told.of("exit_status") == [3, 1, None, 1, 0]
    assert told.of("attempts") == [1] * 5
    errors = [str(error) for error in told.of("error")]
    assert "400 stub error 400" in errors[1]
    assert errors[2] == "timed out after 0.4 s"
    assert "Reached maximum number of turns (2)" in errors[3]


async def test_workspaces(fake: Backend, folder: Path) -> None:
    (folder / "spaces").mkdir()
    tasks = write_tasks(folder, {"prompt": "hello", "workspace": "one"}, {"prompt": "hello", "workspace": "two"})
    told = await batch(fake, folder, tasks, "--workspaces", "spaces", "--lines", "lines")
    cwds = [json.loads((folder / "lines" / f"{n}.jsonl").read_text().splitlines()[0])["cwd"] for n in (1, 2)]
    assert told.status == 0
    assert [Path(cwd).name for cwd in cwds] == ["one", "two"]


async def test_standard_input(fake: Backend, folder: Path) -> None:
    told = await batch(fake, folder, "-", stdin=b'{"prompt":"hello"}\n{"prompt":"hello"}')
    assert (told.status, told.of("ok")) == (0, [True, True])


async def test_nothing_of_a_run_is_left(fake: Backend, folder: Path) -> None:
    told = await batch(fake, folder, write_tasks(folder, *[EXIT_TREE] * 4), LC_MORE="x")
    assert told.status == 0
    assert {result["receipt"]["survivors"] for result in told.results} == {0}
    assert min(result["receipt"]["seen"] for result in told.results) >= 4
    assert left(fake) == []


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tasks", "words", "told"),
    [
        ('{"prompt":"ok"}\n{"prompt":7}\n', [], "line 2: prompt must be text, not a number"),
        ("", [], "there are no tasks"),
        ('{"prompt":"x","nope":1}', [], "line 1: unknown key 'nope'"),
        ('{"prompt":"x","timeout":400}', [], "line 1: timeout must be at most 300"),
        ('{"prompt":"x","timeout":30}', ["--timeout", "20"], "line 1: timeout must be at most 20"),
        ('{"prompt":"x","workspace":"w"}', [], "line 1: workspace needs a folder of workspaces"),
        ('{"prompt":"x"}', ["--model", "-x"], "model must match"),
        ('{"prompt":"x"}', ["--profile", "root"], "profile must be one of"),
        ('{"prompt":"x"}', ["--profile", "unattended", "--containment", "supervisor"], "--allow-unattended"),
        ('{"prompt":"x"}', ["--cli", "/nope"], "cli: "),
        ('{"prompt":"x"}', ["--concurrency", "0"], "Invalid value for '--concurrency'"),
        ('{"prompt":"x"}', ["--url", "http://127.0.0.1:1", "--profile", "chat"], "--profile has no meaning with --url"),
        ('{"prompt":"x"}', ["--url", ""], "--url must name a server"),
        ('{"prompt":"x"}', ["--max-usd", "nan"], "--max-usd must be a number over 0 US dollars, not nan"),
        ('{"prompt":"x"}', ["--max-usd", "inf"], "--max-usd must be a number over 0 US dollars, not inf"),
        ('{"prompt":"x"}', ["--config", "/nope.toml"], "no such config file: /nope.toml"),
        ('{"prompt":"x"}', ["--out", "/nope/out"], "/nope/out: No such file or directory"),
    ],
)
async def test_bad_input_is_2_before_anything_runs(
    fake: Backend, folder: Path, tasks: str, words: list[str], told: str
) -> None:
    (folder / "tasks.jsonl").write_text(tasks)
    answer = await batch(fake, folder, "tasks.jsonl", *words)
    assert answer.status == 2
    assert told in answer.stderr
    assert answer.results == []


async def test_no_file_and_files_that_exist(fake: Backend, folder: Path) -> None:
    told = await batch(fake, folder, "nope.jsonl")
    assert (told.status, told.stderr) == (2, "trio-claude: nope.jsonl: No such file or directory\n")
    tasks = write_tasks(folder, "hello")
    (folder / "results.jsonl").write_text('{"mine":1}\n')
    told = await batch(fake, folder, tasks)
    assert (told.status, told.stderr) == (2, "trio-claude: results.jsonl exists; --force writes over it\n")
    assert told.results == [{"mine": 1}]
    told = await batch(fake, folder, tasks, "--force")
    assert (told.status, told.of("ok")) == (0, [True])


async def test_the_tasks_are_never_written_over(fake: Backend, folder: Path) -> None:
    tasks = write_tasks(folder, "hello")
    before = Path(tasks).read_text()
    told = await batch(fake, folder, "tasks.jsonl", "--out", tasks, "--force")
    assert (told.status, Path(tasks).read_text()) == (2, before)
    assert "is the file of tasks" in told.stderr
    told = await batch(fake, folder, "tasks.jsonl", "--manifest", "results.jsonl")
    assert (told.status, told.stderr) == (2, "trio-claude: results.jsonl is named for two things\n")
    told = await batch(fake, folder, "tasks.jsonl", "--manifest", "m.json", "--out", "m.json.lock")
    assert (told.status, told.stderr) == (2, "trio-claude: m.json.lock is named for two things\n")


async def test_nor_by_lines(fake: Backend, folder: Path) -> None:
    tasks = write_tasks(folder, {"prompt": "hello", "id": "tasks"}, {"prompt": "hello", "id": "x"})
    before = Path(tasks).read_text()
    told = await batch(fake, folder, "tasks.jsonl", "--lines", ".", "--force")
    assert (told.status, Path(tasks).read_text(), told.results) == (2, before, [])
    assert told.stderr.startswith("trio-claude: tasks.jsonl: the lines of tasks would be written over it")
    tasks = write_tasks(folder, {"prompt": "hello", "id": "results"})
    told = await batch(fake, folder, "tasks.jsonl", "--lines", ".", "--force")
    assert told.status == 2
    assert told.stderr.startswith("trio-claude: results.jsonl: the lines of results")
    assert not (folder / "results.jsonl").exists()


async def test_a_loop_of_links_is_no_traceback(fake: Backend, folder: Path) -> None:
    (folder / "loop").symlink_to("loop")
    (folder / "ws").mkdir()
    tasks = write_tasks(folder, "hello")
    for words in (
        ["--out", "loop"],
        ["--manifest", "loop"],
        ["--workspaces", "ws", "--artifacts", "loop"],
        ["--out", ""],
    ):
        told = await batch(fake, folder, tasks, *words)
        assert (told.status, told.stderr.count("\n")) == (2, 1), told.stderr


async def test_what_was_not_begun_leaves_no_file(fake: Backend, folder: Path) -> None:
    told = await batch(fake, folder, write_tasks(folder, "hello"), "--cli", "/nope")
    assert told.status == 2
    assert not (folder / "results.jsonl").exists()


@pytest.mark.parametrize("manifest", ["no/m.json", "x" * 240, ""])
async def test_results_stay_where_no_manifest_can_be_written(fake: Backend, folder: Path, manifest: str) -> None:
    tasks = write_tasks(folder, "hello")
    told = await batch(fake, folder, tasks, "--manifest", manifest)
    assert (told.status, told.stderr.count("\n")) == (2, 1), told.stderr
    assert not (folder / "results.jsonl").exists()
    (folder / "results.jsonl").write_text('{"mine":1}\n')
    told = await batch(fake, folder, tasks, "--manifest", manifest, "--force")
    assert (told.status, told.results) == (2, [{"mine": 1}])


async def test_a_full_disk_is_said(fake: Backend, folder: Path) -> None:
    words = ["--out", "/dev/full", "--manifest", "m.json", "--force"]
    told = await batch(fake, folder, write_tasks(folder, *["hello"] * 30), *words)
    assert told.status == 1
    assert told.stderr.startswith("trio-claude: /dev/full: No space left on device\n30 runs: ")
    assert left(fake) == []


async def test_results_may_go_to_a_pipe(fake: Backend, folder: Path) -> None:
    words = ["--out", "/dev/stdout", "--manifest", "m.json"]
    tasks = write_tasks(folder, directive("slow", n=5, ms=100), "hello", "hello")
    told = await batch(fake, folder, tasks, *words, "--force")
    assert told.status == 0, told.stderr
    assert [json.loads(line)["id"] for line in told.stdout.splitlines()] == ["1", "2", "3"]
    told = await batch(fake, folder, tasks, *words, "--resume")
    assert told.status == 2
    assert told.stderr == "trio-claude: --resume: /dev/stdout is no file that could be gone on with\n"
    assert not list(Path("/dev").glob("stdout.*"))


async def test_a_pipe_that_nobody_reads_is_waited_for_and_that_is_said(fake: Backend, folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    words = [*PROGRAM, write_tasks(folder, "hello"), "--out", "pipe", "--manifest", "m.json", "--force"]
    told = "trio-claude: pipe: nobody reads this pipe; the batch begins when somebody does\n"
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM), (0, 0)):
        with (folder / "stderr").open("wb") as stderr:
            async with trio.open_nursery() as nursery:
                run = functools.partial(
                    trio.run_process, words, env=environ(fake), cwd=folder, stderr=stderr, check=False
                )
                process = await nursery.start(run)
                await until(lambda: told in (folder / "stderr").read_text(), 30)
                if number:
                    process.send_signal(number)
                else:
                    with trio.fail_after(30):
                        said = await trio.to_thread.run_sync((folder / "pipe").read_text, abandon_on_cancel=True)
                    assert json.loads(said)["ok"]
        assert process.returncode == status


async def test_a_full_disk_below_stdout_is_one_line(fake: Backend, folder: Path) -> None:
    words = [*PROGRAM, write_tasks(folder, "hello"), "--json"]
    with Path("/dev/full").open("wb") as full:  # noqa: ASYNC230 - a device
        told = await trio.run_process(
            words, env=environ(fake), cwd=folder, stdout=full, capture_stderr=True, check=False
        )
    assert (told.returncode, told.stderr) == (1, b"trio-claude: [Errno 28] No space left on device\n")
    assert json.loads((folder / "results.manifest.json").read_text())["summary"]["ok"] == 1


# -- retries, throttle, money -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500])
async def test_an_overloaded_api_is_asked_again(fake: Backend, folder: Path, status: int) -> None:
    words = ["--cli", str(flaky(folder, fake, status)), "--concurrency", "4"]
    told = await batch(fake, folder, write_tasks(folder, "hello", "hello"), *words)
    assert told.status == 0, told.stderr
    assert sorted(told.of("attempts")) == [1, 2]
    lowest = json.loads((folder / "results.manifest.json").read_text())["lowest_concurrency"]
    assert lowest == (2 if status == 429 else 4)


async def test_runs_without_a_history_are_told_of(fake: Backend, folder: Path) -> None:
    tasks = write_tasks(folder, "hello", "hello")
    told = await batch(fake, folder, tasks, TRIO_CLAUDE_STATE=f"{tasks}/state")
    assert told.status == 0, told.stderr
    first, last = told.stderr.splitlines()
    assert first.startswith(f"trio-claude: these runs will have no history: journal: {tasks}/state")
    assert last.startswith("2 runs: 2 ok")


def test_a_journal_that_can_not_be_written_is_told_of_once(capsys: pytest.CaptureFixture[str]) -> None:
    unkept = Unkept()
    for event in (Strained("descriptors", over=False), JournalReady("file"), *[Strained(STORE, over=False)] * 2):
        unkept.hear(event)
    assert capsys.readouterr().err == (
        "trio-claude: the history of these runs may not be whole: the journal can't be written just now\n"
    )


async def test_no_more_runs_at_once_than_there_are_descriptors_for(fake: Backend, folder: Path) -> None:
    tasks = write_tasks(folder, *[directive("slow", n=5, ms=200)] * 16)
    few = ["sh", "-c", 'ulimit -n 100; exec "$@"', "sh", *PROGRAM, tasks, "--concurrency", "16", "--lines", "lines"]
    with trio.fail_after(60):
        told = await trio.run_process(few, env=environ(fake), cwd=folder, capture_stderr=True, check=False)
    assert told.returncode == 0, told.stderr
    assert told.stderr.startswith(b"trio-claude: --concurrency: 4 at once, not 16: ")
    assert json.loads((folder / "results.manifest.json").read_text())["options"]["concurrency"] == 4


async def test_no_retries_where_none_are_wanted(fake: Backend, folder: Path) -> None:
    words = ["--cli", str(flaky(folder, fake, 500)), "--retries", "0", "--concurrency", "1"]
    told = await batch(fake, folder, write_tasks(folder, "hello", "hello"), *words)
    assert (told.status, told.of("ok"), told.of("attempts")) == (1, [False, True], [1, 1])


async def test_nothing_starts_once_the_money_is_spent(fake: Backend, folder: Path) -> None:
    tasks = write_tasks(folder, *["hello"] * 6)
    told = await batch(fake, folder, tasks, "--concurrency", "1", "--max-usd", "0.0003")
    assert told.status == 1
    assert told.of("reason") == ["exit"] * 2 + ["skipped"] * 4
    assert "(max-usd) were spent" in told.results[-1]["error"]
    assert told.results[-1]["receipt"] is None


# -- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_all_and_leaves_nothing(fake: Backend, folder: Path, number: signal.Signals) -> None:
    """The signal goes to the whole process group, as a terminal's does."""
    tasks = write_tasks(folder, "hello", TREE, TREE, *["hello"] * 40)
    process = await trio.lowlevel.open_process(
        [*PROGRAM, tasks, "--concurrency", "2"],
        env=environ(fake),
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stderr
    await until(lambda: len(set(left(fake)) - {process.pid}) >= 10 and results(folder), 30)
    os.killpg(process.pid, number)
    with trio.fail_after(20):
        assert await process.wait() == 128 + number
    assert left(fake) == []
    told = (await process.stderr.receive_some()).decode()
    await process.stderr.aclose()
    lines = results(folder)
    assert [line["id"] for line in lines] == [str(n) for n in range(1, 44)]
    assert [line["reason"] for line in lines] == ["exit", *["cancelled"] * 42]
    assert [line["receipt"]["survivors"] for line in lines[:3]] == [0, 0, 0]
    assert [line["attempts"] for line in lines] == [1, 1, 1, *[0] * 40]
    assert told.startswith("43 runs: 1 ok, 0 failed, 0 skipped, 42 cancelled; ")
    manifest = json.loads((folder / "results.manifest.json").read_text())
    assert (manifest["signal"], manifest["summary"]["cancelled"]) == (number, 42)


async def test_a_signal_ends_a_cli_that_is_asked_what_it_is(fake: Backend, folder: Path) -> None:
    program = folder / "slow"
    program.write_text(f"#!/bin/sh\ntouch {folder}/asked\nexec sleep 60\n")
    program.chmod(0o755)
    tasks = write_tasks(folder, "hello", "hello")
    process = await trio.lowlevel.open_process(
        [*PROGRAM, tasks],
        env=environ(fake, TRIO_CLAUDE_CLI=str(program)),
        cwd=folder,
        stderr=subprocess.DEVNULL,
    )
    await until((folder / "asked").exists, 30)
    process.send_signal(signal.SIGINT)
    with trio.fail_after(8):
        assert await process.wait() == 130
    assert left(fake) == []
    assert [line["reason"] for line in results(folder)] == ["cancelled"] * 2
    manifest = json.loads((folder / "results.manifest.json").read_text())
    assert (manifest["signal"], manifest["cli"]["version"], manifest["summary"]["cancelled"]) == (2, None, 2)


async def test_killed_it_leaves_nothing_and_what_finished_is_on_the_disk(fake: Backend, folder: Path) -> None:
    tasks = write_tasks(folder, "hello", TREE, TREE)
    process = await trio.lowlevel.open_process(
        [*PROGRAM, tasks, "--concurrency", "2"],
        env=environ(fake),
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    await until(lambda: len(set(left(fake)) - {process.pid}) >= 10 and results(folder), 30)
    process.kill()
    await process.wait()
    await until(lambda: not left(fake), 10)
    assert [line["ok"] for line in results(folder)] == [True]
    assert json.loads((folder / "results.manifest.json").read_text())["ended"] is None


# -- at a server ------------------------------------------------------------------------------------------------------


async def test_at_a_server(fake: Backend, folder: Path) -> None:
    tasks = write_tasks(
        folder, "hello", directive("exit", status=3), {"prompt": directive("silent"), "timeout": 0.5}, EXIT_TREE
    )
    async with fake.serve() as server:
        told = await batch(fake, folder, tasks, "--url", server.url, "--repeat", "2", "--timeout", "20")
    assert told.status == 1
    assert told.of("id") == [number for number in "1234" for _ in range(2)]
    assert told.of("reason")[::2] == ["exit", "failed", "deadline", "exit"]
    assert told.of("exit_status")[::2] == [0, 3, None, 0]
    assert told.results[0]["result"] == "Hello from stub."
    assert told.results[4]["error"] == "timed out after 0.5 s"
    assert told.results[6]["receipt"]["seen"] >= 4
    assert {result["receipt"]["survivors"] for result in told.results} == {0}
    assert json.loads((folder / "results.manifest.json").read_text())["url"] == server.url
    assert fake.left() == []


async def test_what_a_server_refuses_is_no_crash(fake: Backend, folder: Path) -> None:
    async with fake.serve(allow_options=("timeout",)) as server:
        told = await batch(fake, folder, write_tasks(folder, {"prompt": "hello", "effort": "low"}), "--url", server.url)
    assert (told.status, told.of("reason"), told.of("attempts")) == (1, ["refused"], [1])
    assert told.results[0]["error"] == "effort is not allowed here"


async def test_what_the_operator_grants_may_be_asked_for(fake: Backend, folder: Path) -> None:
    tasks = write_tasks(folder, {"prompt": "hello", "allowed_tools": ["Read"]})
    async with fake.serve(grants=("allowed_tools",)) as server:
        told = await batch(fake, folder, tasks, "--url", server.url)
    assert (told.status, told.of("ok")) == (0, [True])
    told = await batch(fake, folder, tasks, "--out", "inside.jsonl")
    assert (told.status, told.stderr) == (2, "trio-claude: line 1: allowed_tools is not allowed here\n")
    (folder / "c.toml").write_text('grants = ["allowed_tools"]\n')
    told = await batch(fake, folder, tasks, "--out", "inside.jsonl", "--config", "c.toml")
    assert (told.status, told.of("ok")) == (0, [True])


async def test_nobody_there_is_tried_again_then_told(fake: Backend, folder: Path) -> None:
    words = ["--url", "http://127.0.0.1:1", "--retries", "1"]
    told = await batch(fake, folder, write_tasks(folder, "hello"), *words)
    assert (told.status, told.of("reason"), told.of("attempts")) == (1, ["unreachable"], [2])
    assert "can't reach http://127.0.0.1:1" in told.results[0]["error"]
    assert "; is `trio-claude serve` running?" in told.stderr


@pytest.mark.parametrize(
    ("key", "told"),
    [("", "HTTP 401: it wants a valid key or token; name its file with --key-file, or set TRIO_CLAUDE_KEY"), ("tck_none", "; the one that was sent is")],
)  # fmt: skip
async def test_who_is_not_let_in_is_told_what_to_do(fake: Backend, folder: Path, key: str, told: str) -> None:
    async with fake.serve_known("alice") as (server, keys):
        tasks = write_tasks(folder, "hello")
        refused = await batch(fake, folder, tasks, "--url", server.url, **({"TRIO_CLAUDE_KEY": key} if key else {}))
        good = await batch(fake, folder, tasks, "--url", server.url, "--force", TRIO_CLAUDE_KEY=keys["alice"])
    assert (refused.status, refused.of("reason"), good.status) == (1, ["refused"], 0)
    assert told in refused.stderr.partition("the first failure: ")[2]
    assert "TRIO_CLAUDE_KEY" not in refused.results[0]["error"], "which stands for as long as the results do"


async def test_a_full_server_is_asked_again(fake: Backend, folder: Path) -> None:
    tasks = write_tasks(folder, *[directive("slow", n=12, ms=100)] * 2)
    async with fake.serve(max_runs=1, queue_timeout=0.2) as server:
        told = await batch(fake, folder, tasks, "--url", server.url, "--retries", "20", "--concurrency", "2")
    assert told.of("ok") == [True, True]
    assert max(told.of("attempts")) > 1


async def test_a_signal_ends_the_runs_at_a_server(fake: Backend, folder: Path) -> None:
    tasks = write_tasks(folder, TREE, "hello")
    async with fake.serve() as server:
        process = await trio.lowlevel.open_process(
            [*PROGRAM, tasks, "--url", server.url, "--concurrency", "1"],
            env=environ(fake),
            cwd=folder,
            stderr=subprocess.DEVNULL,
        )
        await until(lambda: len(fake.left()) >= 5, 30)
        process.send_signal(signal.SIGINT)
        with trio.fail_after(20):
            assert await process.wait() == 130
        await until(lambda: not fake.left(), 10)
    assert [line["reason"] for line in results(folder)] == ["cancelled", "cancelled"]


# -- the terminal -----------------------------------------------------------------------------------------------------


async def test_a_terminal_gets_a_bar(fake: Backend, folder: Path) -> None:
    ours, theirs = pty.openpty()
    tasks = write_tasks(folder, *["hello"] * 3, directive("exit", status=3))
    env = environ(fake, TERM="xterm", COLUMNS="120")
    process = await trio.lowlevel.open_process(
        [*PROGRAM, tasks], env=env, cwd=folder, stderr=theirs, stdin=subprocess.DEVNULL
    )
    os.close(theirs)
    shown = bytearray()
    with trio.fail_after(60):
        while chunk := await trio.to_thread.run_sync(_read, ours):
            shown += chunk
        assert await process.wait() == 1
    os.close(ours)
    text = shown.decode()
    assert "4/4" in text
    assert "0 running · 1 failed · 51 tokens · $0.0005" in text
    assert "4 runs: 3 ok, 1 failed" in text


async def test_a_terminal_that_goes_away_costs_nothing(fake: Backend, folder: Path) -> None:
    ours, theirs = pty.openpty()
    tasks = write_tasks(folder, "hello", directive("slow", n=10, ms=100), directive("exit", status=3))
    process = await trio.lowlevel.open_process(
        [*PROGRAM, tasks, "--concurrency", "1"],
        env=environ(fake, TERM="xterm"),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    await until(lambda: bool(results(folder)), 30)
    os.close(ours)
    with trio.fail_after(60):
        assert await process.wait() == 1
    assert [line["reason"] for line in results(folder)] == ["exit", "exit", "failed"]
    assert json.loads((folder / "results.manifest.json").read_text())["summary"]["ok"] == 2


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""


# -- the real CLI -----------------------------------------------------------------------------------------------------


@pytest.mark.real_cli
async def test_the_real_cli(folder: Path) -> None:
    """The stub refuses the second prompt once, as overloaded, and the third for good."""
    async with open_backend("real", folder) as real:
        tasks = write_tasks(
            folder, "hello", directive("err", status=529, times=1), directive("err", status=400),
            {"prompt": directive("bash", cmd="true", rounds=9), "max_turns": 1},
        )  # fmt: skip
        words = ["--concurrency", "2", "--model", "haiku", "--cwd", str(real.cwd)]
        told = await batch(real, folder, tasks, *words, CLAUDE_CODE_MAX_RETRIES="0")
        assert told.status == 1
        assert told.of("ok") == [True, True, False, False]
        assert told.of("attempts") == [1, 2, 1, 1]
        assert told.of("result")[:2] == ["Hello from stub.", "ok after 1 errors"]
        assert "Reached maximum number of turns (1)" in told.results[3]["error"]
        assert {result["receipt"]["survivors"] for result in told.results} == {0}
        assert min(told.of("cost_usd")[:2]) > 0
        manifest = json.loads((folder / "results.manifest.json").read_text())
        assert "(Claude Code)" in manifest["cli"]["version"]
        assert manifest["lowest_concurrency"] == 1
        assert left(real) == []


@pytest.mark.real_cli
async def test_the_real_cli_that_cant_reach_the_api_is_started_again(folder: Path) -> None:
    async with open_backend("real", folder) as real:
        words = ["--retries", "1", "--cwd", str(real.cwd)]
        env = {"CLAUDE_CODE_MAX_RETRIES": "1", "ANTHROPIC_BASE_URL": "http://127.0.0.1:1"}
        told = await batch(real, folder, write_tasks(folder, "hello"), *words, **env)
        assert (told.of("ok"), told.of("attempts")) == ([False], [2])
