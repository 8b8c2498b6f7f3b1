"""The command line as a user meets it: real processes, their words and exit statuses."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from harness import Backend, alive, ask, bearing, directive, head, listen, until
from program import PROGRAM, environ, serving, trio_claude
from trio_websocket import WebSocketRequest, open_websocket_url, serve_websocket

from trio_claude.commands.ask import readable
from trio_claude.commands.doctor import examine
from trio_claude.config import Config
from trio_claude.errors import Reason
from trio_claude.journal.schema import VERSIONS


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["serve"],
        ["ask"],
        ["batch"],
        ["demo"],
        ["doctor"],
        ["keys"],
        ["keys", "add"],
        ["runs"],
        ["runs", "tail"],
        ["usage"],
    ],
)
async def test_every_command_has_help(words: list[str]) -> None:
    told = await trio_claude(*words, "--help")
    assert told.returncode == 0
    assert b"Usage: trio-claude" in told.stdout


async def test_serve_and_ask(fake: Backend) -> None:
    async with serving("serve", "--port", "0", env=environ(fake)) as (_, url):
        told = await trio_claude("ask", "hello", "--url", url, "--meta", "TASK-1")
        assert (told.returncode, told.stdout) == (0, b"Hello from stub.\n")
        assert told.stderr.startswith(b"[1000 exit 0; 1 process, 0 left, ")
        lines = (await trio_claude("ask", "hello", "--url", url, "--json")).stdout.splitlines()
        assert [json.loads(line)["type"] for line in lines] == ["system", "assistant", "result"]
        tool = await trio_claude("ask", directive("bash", cmd="touch x"), "--url", url)
        assert b'[Bash] {"command": "touch x"' in tool.stdout
        assert b"Bash was denied" in tool.stderr


@pytest.mark.parametrize(
    ("prompt", "words", "status", "told"),
    [
        (directive("exit", status=3), [], 1, b"error: the CLI exited with status 3"),
        ("hello", ["--meta", "lower"], 2, b"error: meta must match"),
        (directive("silent"), ["--timeout", "0.3"], 1, b"error: timed out after 0.3 s"),
    ],
)
async def test_asks_exit_status_is_the_close_codes(
    fake: Backend, prompt: str, words: list[str], status: int, told: bytes
) -> None:
    async with fake.serve() as server:
        answer = await trio_claude("ask", prompt, "--url", server.url, *words)
    assert answer.returncode == status
    assert told in answer.stderr


async def test_a_run_that_somebody_else_ends_is_no_good_end(fake: Backend) -> None:
    async with fake.serve() as server, trio.open_nursery() as nursery:

        async def end_it() -> None:
            await until(lambda: server.runs.statistics().live == 1)
            server.runs.stop_all(Reason.STOPPED, "ended by request", now=True)

        for words, stdin in (["ask", directive("silent")], b""), (["chat"], directive("silent").encode()):
            nursery.start_soon(end_it)
            told = await trio.run_process(
                [*PROGRAM, *words, "--url", server.url],
                stdin=stdin,
                check=False,
                capture_stdout=True,
                capture_stderr=True,
            )
            assert told.returncode == 1
            assert b"error: ended by request" in told.stderr


HOSTILE = "\x1b]0;title\x07\x1b[2Jowned"


async def test_ask_shows_no_control_sequence(fake: Backend) -> None:
    result = {"type": "result", "is_error": True, "result": f"no {HOSTILE}", "session_id": "0", "subtype": "error"}
    lines = directive("raw", text=json.dumps(result) + "\n") + directive("exit", status=1)
    async with fake.serve() as server:
        told = await trio_claude("ask", directive("stderr", text=f"oh {HOSTILE}") + lines, "--url", server.url)
    assert b"oh owned\n" in told.stderr
    assert b"status 1: no owned\n" in told.stderr
    assert b"\x1b" not in told.stderr + told.stdout


def assistant(content: object) -> str:
    return json.dumps({"type": "assistant", "message": {"content": content}})


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (assistant("the answer"), "the answer\n"),
        (assistant([None, 5, {"type": "text", "text": "a"}, {"type": "image"}]), "a\n"),
        (assistant([{"type": "tool_use", "name": 5, "input": "q"}]), '[5] "q"\n'),
        (assistant(None), assistant(None) + "\n"),
        ('{"type":"assistant","message":null}', '{"type":"assistant","message":null}\n'),
        ('{"type":"assistant","message":"hi"}', '{"type":"assistant","message":"hi"}\n'),
        ("[" * 3000 + "]" * 3000, "[" * 3000 + "]" * 3000 + "\n"),
        ("plain", "plain\n"),
        ('{"type":"user","message":{"content":"x"}}', ""),
    ],
)
def test_what_is_read_of_a_line(line: str, shown: str) -> None:
    assert readable(line) == shown


async def test_ask_shows_half_a_surrogate_pair(fake: Backend) -> None:
    line = assistant([{"type": "text", "text": "cut \ud83d"}])
    async with fake.serve() as server:
        told = await trio_claude("ask", directive("raw", text=f"{line}\n") + "hello", "--url", server.url)
    assert told.returncode == 0
    assert "cut \ufffd\n" in told.stdout.decode()


@pytest.mark.parametrize("word", ["nan", "inf"])
async def test_a_timeout_that_is_no_time_is_named(word: str) -> None:
    told = await trio_claude("ask", "hello", "--timeout", word)
    assert (told.returncode, told.stderr) == (2, f"trio-claude: --timeout takes seconds, not {word}\n".encode())


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://127.0.0.1:x1", "nonsense://x", "127.0.0.1:1/x"])
async def test_ask_says_that_nobody_is_there(url: str) -> None:
    told = await trio_claude("ask", "hello", "--url", url)
    assert told.returncode == 69
    assert b"is `trio-claude serve` running?" in told.stderr


@pytest.mark.parametrize(
    ("line", "reason", "status"),
    [("", "", 1), ('{"type":"gateway","event":"ended"}', "done", 1), ('{"type":"result","result":"it"}', "", 0),
     ("", "exit 0; 2 processes, 0 left, 1 ms", 0)],
)  # fmt: skip
async def test_who_closes_as_after_a_good_end_and_ran_nothing_is_no_good_end(
    nursery: trio.Nursery, line: str, reason: str, status: int
) -> None:
    async def serve(request: WebSocketRequest) -> None:
        socket = await request.accept()
        await socket.get_message()
        if line:
            await socket.send_message(line)
        await socket.aclose(1000, reason)

    listening = await nursery.start(serve_websocket, serve, "127.0.0.1", 0, None)
    told = await trio_claude("ask", "hello", "--url", f"http://127.0.0.1:{listening.port}")
    assert (told.returncode, b"without a word of a run" in told.stderr) == (status, bool(status))


@pytest.mark.parametrize("lost", ["full", "closed", "unread"])
async def test_a_server_serves_though_nobody_hears_where(fake: Backend, lost: str) -> None:
    unread, stdout = os.pipe()
    if lost == "full":
        os.close(stdout)
        stdout = os.open("/dev/full", os.O_WRONLY)
    if lost == "unread":
        fill(stdout)
    else:
        os.close(unread)
    words = [*PROGRAM, "serve", "--port", "0"]
    process = await trio.lowlevel.open_process(words, env=environ(fake), stdout=stdout, stderr=subprocess.PIPE)
    os.close(stdout)
    assert process.stderr
    log = b""
    with trio.fail_after(30):
        while b'"Listening"' not in log:
            more = await process.stderr.receive_some()
            assert more, log.decode()
            log += more
        process.terminate()
        async for more in process.stderr:
            log += more
        assert (await process.wait(), b"Exception" in log) == (0, False)
    if lost == "unread":
        os.close(unread)


def fill(pipe: int) -> None:
    """Write until a pipe takes no more."""
    os.set_blocking(pipe, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(pipe, b"\n" * 4096):
            pass
    os.set_blocking(pipe, True)


EARLY = """
import os, sys
from trio_claude.commands import main, serve

numbers, real = [int(sys.argv.pop(1))], serve.read_config

def read(*words, **more):
    if numbers:
        os.kill(os.getpid(), numbers.pop())
    return real(*words, **more)

serve.read_config = read
main()
"""
"""A command line that sends itself a signal when it reads its settings for the first time."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_that_comes_before_a_server_hears_it_waits(fake: Backend, number: signal.Signals) -> None:
    words = [sys.executable, "-c", EARLY, str(int(number)), "serve", "--port", "0"]
    process = await trio.lowlevel.open_process(words, env=environ(fake), stderr=subprocess.PIPE)
    assert process.stderr
    log = b""
    with trio.fail_after(60):
        async for more in process.stderr:
            log += more
            if number is signal.SIGHUP and b'"Reloaded"' in log:
                process.terminate()
        assert (await process.wait(), b'"Listening"' in log) == (0, True)


BLOCKS = "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [15]); os.execv(sys.argv[1], sys.argv[1:])"


async def test_a_server_hears_signals_that_who_started_it_does_not(fake: Backend) -> None:
    async with serving("serve", "--port", "0", env=environ(fake), program=[sys.executable, "-c", BLOCKS, *PROGRAM]) as (
        process,
        _,
    ):
        process.terminate()
        with trio.fail_after(10):
            assert await process.wait() == 0


async def test_a_batch_hears_signals_that_who_started_it_does_not(fake: Backend, folder: Path) -> None:
    (folder / "tasks.jsonl").write_text(json.dumps({"prompt": directive("hang")}))
    words = [sys.executable, "-c", BLOCKS, *PROGRAM, "batch", "tasks.jsonl"]
    process = await trio.lowlevel.open_process(words, env=environ(fake), cwd=folder, stderr=subprocess.DEVNULL)
    try:
        await until(lambda: (folder / "results.jsonl").exists(), 30)  # from here on it listens for signals
        process.terminate()
        with trio.fail_after(10):
            assert await process.wait() == 143
    finally:
        process.kill()
        await process.wait()


async def test_the_first_sigterm_drains_and_the_status_is_0(fake: Backend) -> None:
    async with serving("serve", "--port", "0", env=environ(fake)) as (process, url):
        async with open_websocket_url(f"{url.replace('http', 'ws')}/ws/claude") as socket:
            await socket.send_message(json.dumps({"prompt": directive("slow", n=20, ms=40), "meta": "T"}))
            while "init" not in await socket.get_message():
                pass
            process.terminate()
            said = await listen(socket)
            await socket._stream.aclose()
        assert said.code == 1000
        with trio.fail_after(10):
            assert await process.wait() == 0


@pytest.mark.parametrize("signals", [[signal.SIGTERM, signal.SIGTERM], [signal.SIGINT]])
async def test_a_second_sigterm_or_sigint_ends_now(fake: Backend, signals: list[signal.Signals]) -> None:
    async with serving("serve", "--port", "0", env=environ(fake)) as (process, url):
        async with open_websocket_url(f"{url.replace('http', 'ws')}/ws/claude") as socket:
            await socket.send_message(json.dumps({"prompt": directive("silent"), "meta": "T"}))
            await until(lambda: set(bearing(f"LC_TEST={fake.mark}")) - {process.pid}, 10)
            for number in signals:
                process.send_signal(number)
                await trio.sleep(0.3)
            said = await listen(socket)
            await socket._stream.aclose()
        assert said.code == 1012
        with trio.fail_after(10):
            assert await process.wait() == 0
        assert not [pid for pid in bearing(f"LC_TEST={fake.mark}") if alive(pid)]


@pytest.mark.parametrize("command", ["serve", "demo"])
@pytest.mark.parametrize("more", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
async def test_a_signal_more_is_no_death(fake: Backend, folder: Path, command: str, more: signal.Signals) -> None:
    env = {**environ(fake), "TMPDIR": str(folder)}
    async with serving(command, "--port", "0", env=env) as (process, url):
        async with await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2])) as silent:
            await silent.send_all(head())  # and its close is not answered
            await silent.receive_some()
            for number in (signal.SIGTERM, signal.SIGTERM, more):
                process.send_signal(number)
                await trio.sleep(0.3)
            with trio.fail_after(10):
                assert await process.wait() == 0
    assert not list(folder.glob("*tcl-*"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--port", "99999"], b"port must be from 0 to 65535"),
        (["--profile", "root"], b"profile must be one of"),
        (["--host", "0.0.0.0"], b"make keys"),
        (["--config", "/nope"], b"no such config file"),
        (["--cwd", "/nope"], b"cwd is no folder"),
    ],
)
async def test_serve_names_what_is_wrong(fake: Backend, words: list[str], told: bytes) -> None:
    answer = await trio_claude("serve", *words, env=environ(fake))
    assert answer.returncode == 2
    assert answer.stderr.startswith(b"trio-claude: ")
    assert told in answer.stderr


async def test_serve_warns_of_a_variable_that_is_no_setting(fake: Backend) -> None:
    env = {**environ(fake), "TRIO_CLAUDE_MAX_RUNZ": "5"}
    answer = await trio_claude("serve", "--cwd", "/nope", env=env)
    (warned,) = (line for line in answer.stderr.splitlines() if b"Weak" in line)
    assert b"TRIO_CLAUDE_MAX_RUNZ: no such setting" in warned


async def test_serve_says_that_its_port_is_busy(fake: Backend) -> None:
    async with fake.serve() as server:
        answer = await trio_claude("serve", "--port", str(server.port), env=environ(fake))
    assert answer.returncode == 2
    assert b"Address already in use" in answer.stderr


async def test_doctor_names_what_it_found(fake: Backend) -> None:
    told = await trio_claude("doctor", "--json", "--port", "0", env={**environ(fake), "ANTHROPIC_API_KEY": "s3cret"})
    checks = {check["name"]: check for check in json.loads(told.stdout)}
    assert told.returncode == 0
    assert "2.1.330 (Fake Claude)" in checks["cli"]["found"]
    assert checks["login"]["found"] == "an API key (ANTHROPIC_API_KEY)"
    assert checks["containment"]["found"].partition(":")[0] in ("namespace", "supervisor")
    assert b"s3cret" not in told.stdout


async def test_doctor_has_the_descriptors_that_a_server_takes(fake: Backend) -> None:
    few = ["sh", "-c", 'ulimit -Sn 16; exec "$@"', "sh", sys.executable, "-m", "trio_claude", "doctor", "--port", "0"]
    told = await trio.run_process(few, env=environ(fake), capture_stdout=True, check=False)
    assert told.returncode == 0, told.stdout
    assert b" 16 open files" not in told.stdout


async def test_doctor_says_what_is_missing(fake: Backend) -> None:
    told = await trio_claude("doctor", "--port", "0", env={**environ(fake), "TRIO_CLAUDE_CLI": "/nope"})
    assert told.returncode == 1
    assert b"MISSING cli: /nope" in told.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--profile", "unattended"], b"MISSING engine: profile: unattended"),
        (["--journal", "sqlite:/proc/nope/x.db"], b"MISSING engine: journal: /proc/nope/x.db can't be used"),
        (["--workspaces", "/nope"], b"MISSING engine: workspaces is no folder: /nope"),
        (["--limit-open-files", "2000000000"], b"MISSING containment: no run can be started here: "),
        (["--host", "nosuch.invalid", "--keys", "none.json"], b"--host names another"),
        (["--host", "x" * 64 + ".invalid", "--keys", "none.json"], b"--host names another"),
    ],
)
async def test_doctor_finds_what_keeps_a_server_from_starting(fake: Backend, words: list[str], told: bytes) -> None:
    answer = await trio_claude("doctor", "--port", "0", *words, env=environ(fake))
    assert answer.returncode == 1
    assert told in answer.stdout
    assert not answer.stderr
    refused = await trio_claude("serve", "--port", "0", *words, env=environ(fake))
    assert refused.returncode == 2
    assert b"Traceback" not in refused.stderr


THREADLESS = """
import threading
from trio_claude.commands import main
def refuse(_): raise RuntimeError("can't start new thread")
threading.Thread.start = refuse
main()
"""


async def test_where_no_thread_is_to_be_had_that_is_said(fake: Backend) -> None:
    program = [sys.executable, "-c", THREADLESS]
    served = await trio_claude("serve", "--port", "0", env=environ(fake), program=program)
    assert served.returncode == 1
    assert served.stderr.startswith(b"trio-claude: can't start new thread: `ulimit -u` says how many")
    assert b"`ulimit -v` says how much memory" in served.stderr
    found = await trio_claude("doctor", "--port", "0", env=environ(fake), program=program)
    assert found.returncode == 1
    assert b"MISSING engine: can't start new thread" in found.stdout
    assert not found.stderr


NARROW = """
import resource
from pathlib import Path
from trio_claude.commands import main
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**27, taken + 2**27))
main()
"""
"""Less than half of what a file of tasks may hold is left."""


async def test_where_no_memory_is_left_that_is_said(fake: Backend, folder: Path) -> None:
    (folder / "tasks.jsonl").touch()
    program = [sys.executable, "-c", NARROW]
    told = await trio_claude("batch", str(folder / "tasks.jsonl"), env=environ(fake), program=program)
    assert (told.returncode, told.stderr.count(b"\n")) == (1, 1)
    assert told.stderr.startswith(b"trio-claude: there is no memory left: `ulimit -v` says how much")


async def test_doctor_says_who_sees_the_stored_login(fake: Backend, folder: Path) -> None:
    keys = ["--keys", str(folder / "keys.json")]
    added = await trio_claude("keys", "add", "alice", "--file", keys[1])
    assert added.returncode == 0
    for isolation, told in ("off", b"; runs see the stored login"), ("identity", b"; runs see no stored login"):
        found = await trio_claude("doctor", "--port", "0", *keys, "--isolation", isolation, env=environ(fake))
        assert told in found.stdout


async def test_doctor_says_that_lean_uses_no_subscription(fake: Backend, folder: Path) -> None:
    (folder / ".credentials.json").write_text("{}")
    env = {**environ(fake), "CLAUDE_CONFIG_DIR": str(folder)}
    for more in ({}, {"CLAUDE_CODE_OAUTH_TOKEN": "none"}):
        told = await trio_claude("doctor", "--profile", "lean", "--port", "0", env={**env, **more})
        assert told.returncode == 1
        assert b"which profile lean does not use; set ANTHROPIC_API_KEY" in told.stdout
    for words, more in ((["--profile", "chat"], {}), (["--profile", "lean"], {"ANTHROPIC_API_KEY": "none"})):
        told = await trio_claude("doctor", *words, "--port", "0", env={**env, **more})
        assert told.returncode == 0


@pytest.mark.root
async def test_doctor_says_that_the_cli_refuses_unattended_to_root(fake: Backend) -> None:
    words = ("doctor", "--profile", "unattended", "--allow-unattended", "--port", "0")
    refused = await trio_claude(*words, env=environ(fake))
    assert refused.returncode == 1
    assert b"MISSING profile: unattended, which the CLI refuses to root" in refused.stdout
    for more, env in ((), {"IS_SANDBOX": "1"}), (("--user", "nobody"), {}):
        told = await trio_claude(*words, *more, env={**environ(fake), **env})
        assert b"ok      profile: unattended\n" in told.stdout


async def test_doctor_tells_of_the_journal_that_serve_has(fake: Backend) -> None:
    env = environ(fake)
    path = Path(env["TRIO_CLAUDE_STATE"]) / "journal.db"
    before = await trio_claude("doctor", "--live", "--port", "0", env=env)
    assert f"ok      engine: it opens; journal: `serve` makes {path}\n".encode() in before.stdout
    assert not path.exists()
    async with fake.serve(journal=f"sqlite:{path}"):
        there = await trio_claude("doctor", "--port", "0", env=env)
    assert f"it opens; journal: {path}\n".encode() in there.stdout
    none = await trio_claude("doctor", "--journal", "none", "--port", "0", env=env)
    assert b"it opens; journal: there is none\n" in none.stdout


async def test_doctor_leaves_a_journal_of_an_earlier_version_to_the_server(fake: Backend, folder: Path) -> None:
    with contextlib.closing(sqlite3.connect(folder / "j.db", isolation_level=None)) as db:
        for statements in VERSIONS[:-1]:
            db.executescript(statements)
        db.execute(f"PRAGMA user_version = {len(VERSIONS) - 1}")
        config = Config(port=0, cli=fake.program, cwd=str(fake.cwd), journal=f"sqlite:{folder / 'j.db'}")
        checks = {check.name: check for check in await examine(config, live=False)}
        assert checks["engine"].ok
        assert "of an earlier version" in checks["engine"].found
        assert db.execute("PRAGMA user_version").fetchone() == (len(VERSIONS) - 1,)


@pytest.mark.root
async def test_what_doctor_makes_as_root_is_for_the_server_of_another_user(fake: Backend, folder: Path) -> None:
    async with fake.serve(journal=f"sqlite:{folder / 'journal.db'}"):
        pass
    (folder / "journal.db.opening").unlink()  # as behind a copy of the journal
    for path in (folder, *folder.iterdir()):
        os.chown(path, 65534, 65534)
    env = {**environ(fake), "TRIO_CLAUDE_STATE": str(folder), "TRIO_CLAUDE_ISOLATION": "identity"}
    told = await trio_claude("doctor", "--port", "0", env={**env, "TRIO_CLAUDE_CWD": ""})
    assert f"it opens; journal: {folder}/journal.db\n".encode() in told.stdout
    owners = {path.name: path.stat().st_uid for path in folder.iterdir()}
    assert owners.keys() >= {"homes", "journal.db.opening"}
    assert set(owners.values()) == {65534}


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
async def test_a_standard_stream_may_be_closed(fake: Backend, closed: str) -> None:
    words = [*PROGRAM, "doctor", "--port", "0"]
    told = await trio.run_process(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *words], env=environ(fake), capture_stdout=True, capture_stderr=True, check=False
    )  # fmt: skip
    assert told.returncode == 0
    assert not told.stderr


async def test_what_a_terminal_can_not_say_is_shown_in_ascii(fake: Backend) -> None:
    env = {**environ(fake), "PYTHONIOENCODING": "ascii"}
    result = {"type": "result", "is_error": True, "result": "übel", "session_id": "0", "subtype": "error"}
    async with fake.serve(journal="memory") as server:
        await ask(server, directive("raw", text=json.dumps(result) + "\n") + directive("exit", status=1))
        told = await trio_claude("runs", "failed", "--url", server.url, env=env)
    assert told.returncode == 0
    assert b"\\xfcbel" in told.stdout


@pytest.mark.parametrize("words", [(), ("--timeout", "50"), ("--allow-options", "model")], ids=["", "short", "few"])
async def test_a_live_check_makes_one_run(fake: Backend, words: tuple[str, ...]) -> None:
    """Whatever clients may set."""
    told = await trio_claude("doctor", "--live", "--json", "--port", "0", *words, env=environ(fake))
    assert json.loads(told.stdout)[-1]["found"].startswith("exit; 1 process, 0 left, ")


@pytest.mark.real_cli
async def test_the_demo_answers_with_the_real_cli_and_takes_the_next_port(fake: Backend) -> None:
    async with fake.serve() as busy, serving("demo", "--port", str(busy.port), env=dict(os.environ)) as (_, url):
        assert url != busy.url
        told = await trio_claude("ask", "hello", "--url", url)
        assert (told.returncode, told.stdout) == (0, b"Hello from stub.\n")


async def test_a_demo_looks_for_no_port_behind_the_last(folder: Path) -> None:
    with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", 65535)):
        told = await trio_claude("demo", "--port", "65535", env={**os.environ, "HOME": str(folder)})
        assert (told.returncode, b"--port: 65535 to 65535 are all busy" in told.stderr) == (2, True)


async def test_a_demo_that_was_killed_leaves_no_home_to_the_next(folder: Path) -> None:
    env = {**os.environ, "TMPDIR": str(folder)}
    async with serving("demo", "--port", "0", env=env) as (process, _):
        process.kill()
        await process.wait()
    assert len(list(folder.glob("tcl-*"))) == 2  # the server's, and the home of the CLIs
    async with serving("demo", "--port", "0", env=env):
        pass
    assert list(folder.iterdir()) == []


WRITES = """
import sys
from pathlib import Path
from trio_claude.commands.demo import write_fake
from trio_claude.errors import ConfigError
_, folder, sys.executable = sys.argv
try:
    write_fake(Path(folder))
except ConfigError as error:
    sys.exit(str(error))
"""
"""Writes the stand-in into a folder, for a Python at a path."""


@pytest.mark.parametrize("more", [{}, {"LC_ALL": "C", "PYTHONUTF8": "0"}], ids=["utf-8", "ascii"])
def test_the_demos_stand_in_starts_wherever_python_is(folder: Path, more: dict[str, str]) -> None:
    python = folder / 'it\'s "$here" `ü' / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    words = [sys.executable, "-c", WRITES, str(folder), str(python)]
    subprocess.run(words, env={**os.environ, **more}, check=True)
    told = subprocess.run([folder / "fake-claude", "--version"], capture_output=True, check=True)
    assert told.stdout.endswith(b"(Fake Claude)\n")


@pytest.mark.root
def test_a_demo_says_where_no_stand_in_can_be_started(folder: Path) -> None:
    script = 'mount -t tmpfs -o noexec none "$1" && shift && exec "$@"'
    words = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        script,
        "sh",
        folder,
        sys.executable,
        "-c",
        WRITES,
        folder,
        sys.executable,
    ]
    told = subprocess.run(words, capture_output=True, text=True)
    assert (told.returncode, f"{folder} is mounted noexec; TMPDIR names another place" in told.stderr) == (1, True)


@pytest.mark.parametrize("outlives", [False, True], ids=["", "nohup"])
async def test_a_demo_ends_with_its_terminal(folder: Path, outlives: bool) -> None:
    """Not where it was started to outlive that."""
    nohup = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    program = [sys.executable, "-c", nohup, *PROGRAM] if outlives else PROGRAM
    log = folder / "log"
    with log.open("wb") as file:
        async with serving(
            "demo", "--port", "0", env={**os.environ, "TMPDIR": str(folder)}, stderr=file.fileno(), program=program
        ) as (process, _):
            process.send_signal(signal.SIGHUP)
            if outlives:
                await until(lambda: b"Reloaded" in log.read_bytes(), 20)
                process.terminate()
            with trio.fail_after(20):
                assert await process.wait() == 0
    assert list(folder.iterdir()) == [log]


async def test_the_log_has_one_line_an_event_and_no_prompt(fake: Backend, folder: Path) -> None:
    log = folder / "log"
    with log.open("wb") as file:
        process = await trio.lowlevel.open_process(
            [*PROGRAM, "serve", "--port", "0"], env=environ(fake), stdout=subprocess.PIPE, stderr=file, cwd="/"
        )
        url = (await process.stdout.receive_some()).decode().rpartition("listening on ")[2].strip()
        await trio_claude("ask", "a-secret-prompt", "--url", url)
        process.terminate()
        assert await process.wait() == 0
        await process.stdout.aclose()
    events = [json.loads(line) for line in log.read_text().splitlines()]
    names = [event["event"] for event in events]
    assert names == [
        "ContainmentReady",
        "JournalReady",
        "Listening",
        "ConnectionOpened",
        "RunStarted",
        "RunEnded",
        "ConnectionClosed",
    ]
    assert "a-secret-prompt" not in log.read_text()
