"""The fake CLI does what its tables say, dies as the real one does, and leaves nothing behind for ever."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from trio_claude.testing import fake_cli
from trio_claude.testing.fake_cli.permission import BAD_VERDICT, is_harmless
from trio_claude.testing.fake_cli.shell import descendants
from trio_claude.testing.fake_cli.wire import new_uuid

Json = dict[str, Any]
FAKE = [sys.executable, "-I", "-S", fake_cli.FOLDER]
STREAM = ["-p", "--input-format", "stream-json", "--output-format", "stream-json", "--verbose"]
PATIENCE = 20
PARTIAL = "--include-partial-messages"
ASKING = "--permission-prompt-tool=stdio"
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


def say(*directives: Json | str) -> Json:
    text = " ".join(part if isinstance(part, str) else f"@@{json.dumps(part)}@@" for part in directives)
    return {"type": "user", "message": {"role": "user", "content": text}}


def control(subtype: str, request_id: str = "q1", **fields: Any) -> Json:
    return {"type": "control_request", "request_id": request_id, "request": {"subtype": subtype, **fields}}


def kinds(lines: list[Json]) -> list[str]:
    return ["/".join(filter(None, [line["type"], line.get("subtype")])) for line in lines]


def events(lines: list[Json]) -> list[str]:
    return [line["event"]["type"] for line in lines if line["type"] == "stream_event"]


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


async def wait_gone(*pids: int) -> None:
    with trio.fail_after(PATIENCE):
        while any(alive(pid) for pid in pids):
            await trio.sleep(0.01)


# ---- Runs from start to end ----


@attrs.frozen
class Done:
    status: int
    stdout: bytes
    stderr: str

    @property
    def lines(self) -> list[Json]:
        return [json.loads(line) for line in self.stdout.splitlines()]

    @property
    def result(self) -> Json:
        return self.lines[-1]

    @property
    def texts(self) -> list[str]:
        blocks = [line["message"]["content"][0] for line in self.lines if line["type"] == "assistant"]
        return [block["text"] for block in blocks if block["type"] == "text"]

    @property
    def tool_results(self) -> list[Json]:
        return [line for line in self.lines if line["type"] == "user" and "tool_use_result" in line]


@attrs.frozen
class Place:
    """Where a fake runs: its working directory and its environment."""

    cwd: Path
    env: dict[str, str]

    def run(self, *stdin: Json | bytes, flags: tuple[str, ...] = (), **env: str) -> Done:
        data = b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in stdin)
        return self.run_bare(*STREAM, *flags, stdin=data, **env)

    def run_bare(self, *arguments: str, stdin: bytes = b"", program: list[str] | None = None, **env: str) -> Done:
        done = subprocess.run(
            [*(program or FAKE), *arguments],
            input=stdin,
            capture_output=True,
            cwd=self.cwd,
            env={**self.env, **env},
            timeout=PATIENCE,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr.decode())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    for name in ("work", "tmp"):
        (tmp_path / name).mkdir()
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp")}
    return Place(tmp_path / "work", env)


# ---- Runs to talk with ----


@attrs.frozen
class Live:
    process: trio.Process
    buffer: bytearray = attrs.field(factory=bytearray)

    async def send(self, *lines: Json) -> None:
        assert self.process.stdin is not None
        await self.process.stdin.send_all(b"".join(json.dumps(line).encode() + b"\n" for line in lines))

    async def close(self) -> None:
        assert self.process.stdin is not None
        await self.process.stdin.aclose()

    async def read(self) -> Json | None:
        """Return the next line, None at the end."""
        assert self.process.stdout is not None
        while b"\n" not in self.buffer:
            data = await self.process.stdout.receive_some()
            if not data:
                return None
            self.buffer.extend(data)
        line, _, rest = bytes(self.buffer).partition(b"\n")
        self.buffer[:] = rest
        return json.loads(line)

    async def read_until(self, *wanted: str) -> list[Json]:
        """Return the lines up to the first whose type, subtype or event is wanted."""
        lines = []
        with trio.fail_after(PATIENCE):
            while (line := await self.read()) is not None:
                lines.append(line)
                if {line["type"], line.get("subtype"), line.get("event", {}).get("type")} & set(wanted):
                    return lines
        raise AssertionError(f"no {wanted} among {kinds(lines)}")

    async def rest(self) -> list[Json]:
        lines = []
        with trio.fail_after(PATIENCE):
            while (line := await self.read()) is not None:
                lines.append(line)
        return lines

    async def wait(self) -> int:
        with trio.fail_after(PATIENCE):
            return await self.process.wait()


Opener = Callable[..., contextlib.AbstractAsyncContextManager[Live]]


@pytest.fixture
def talk(place: Place) -> Opener:
    @contextlib.asynccontextmanager
    async def opened(*flags: str, **env: str) -> AsyncIterator[Live]:
        process = await trio.lowlevel.open_process(
            [*FAKE, *STREAM, *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=place.cwd,
            env={**place.env, **env},
        )
        try:
            yield Live(process)
        finally:
            process.kill()
            with trio.CancelScope(shield=True), trio.move_on_after(5):
                await process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with trio.CancelScope(shield=True), trio.move_on_after(1):
                        await stream.aclose()

    return opened


@pytest.fixture
def trees() -> Iterator[list[int]]:
    pids: list[int] = []
    yield pids
    for pid in pids:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


# ---- Starting ----


SOURCES = [*Path(fake_cli.FOLDER).glob("*.py"), Path(fake_cli.FOLDER).with_name("model.py")]


def test_it_imports_little() -> None:
    """Start-up time is the price of every test that uses it."""
    nodes = [node for path in SOURCES for node in ast.parse(path.read_text()).body]
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    assert imported == {"enum", "importlib", "json", "os", "re", "select", "signal", "sys", "time"}
    assert not [
        path for path in SOURCES if "socket" in path.read_text().replace("messaging_socket_path", "").split("import")
    ]


def test_starting_it_loads_nothing_slow(place: Place) -> None:
    done = place.run_bare("--version", program=[FAKE[0], "-X", "importtime", *FAKE[1:]])
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"typing", "pathlib", "subprocess", "socket", "dataclasses", "trio_claude"}


@pytest.mark.parametrize("program", [FAKE, [sys.executable, "-m", "trio_claude.testing.fake_cli"]])
def test_each_way_to_start_it(place: Place, program: list[str]) -> None:
    env = {"PYTHONPATH": str(Path(fake_cli.FOLDER).parents[2])}
    assert place.run_bare("--version", program=program, **env).stdout == b"2.1.330 (Fake Claude)\n"


def test_as_a_folder_it_needs_no_package(place: Place) -> None:
    """Where nothing is installed, and whatever the working directory holds."""
    (place.cwd / "testing.py").write_text("raise SystemExit('not this')")
    assert place.run(say("hi")).texts == ["Hello from stub."]


def test_main_takes_arguments(capfd: pytest.CaptureFixture[str]) -> None:
    assert fake_cli.main(["-v"]) == 0
    assert fake_cli.main(["--nosuch"]) == 1
    assert capfd.readouterr() == ("2.1.330 (Fake Claude)\n", "error: unknown option '--nosuch'\n")


@pytest.mark.parametrize("flag", ["--no-such-thing", "--temperature=1", "--verbose=1", "-x"])
def test_an_unknown_flag_is_refused(place: Place, flag: str) -> None:
    done = place.run(flags=(flag,))
    assert (done.status, done.stdout, done.stderr) == (1, b"", f"error: unknown option '{flag}'\n")


def test_the_flags_of_a_server_are_accepted(place: Place) -> None:
    prompt_file = place.cwd / "system"
    prompt_file.write_text("x")
    flags = (
        "--setting-sources=",
        "--strict-mcp-config",
        "--model=haiku",
        PARTIAL,
        "--permission-prompt-tool",
        "stdio",
        f"--session-id={new_uuid()}",
        "--max-turns=3",
        f"--system-prompt-file={prompt_file}",
        f"--append-system-prompt-file={prompt_file}",
        "--effort=low",
        "--max-budget-usd=1",
        "--permission-mode=default",
        "--tools=",
        "--allowed-tools",
        "Bash",
        "Read",
        '--json-schema={"type":"object"}',
        "--disable-slash-commands",
        "--no-session-persistence",
        "--add-dir=/x",
        "--mcp-config={}",
    )
    done = place.run(say("hi"), flags=flags)
    assert (done.status, done.stderr) == (0, "")
    assert done.lines[0]["model"] == "claude-haiku-5-5"
    assert done.lines[0]["tools"] == []


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--permission-mode=x"], "error: option '--permission-mode <mode>' argument 'x' is invalid. Allowed choices "),
        (["--max-turns=x"], "error: option '--max-turns <turns>' argument 'x' is invalid. must be a number\n"),
        (["--session-id=x"], "Error: Invalid session ID. Must be a valid UUID.\n"),
        (["--model"], "error: option '--model <value>' argument missing\n"),
    ],
)
def test_a_bad_value_is_refused(place: Place, flags: list[str], error: str) -> None:
    done = place.run(flags=tuple(flags))
    assert (done.status, done.stdout) == (1, b"")
    assert done.stderr.startswith(error)


def test_stream_json_needs_verbose(place: Place) -> None:
    done = place.run_bare(*STREAM[:-1])
    assert (done.status, "requires --verbose" in done.stderr) == (1, True)
    assert place.run_bare("-p", "hi").status == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_may_not_bypass_permissions(place: Place) -> None:
    done = place.run(flags=("--permission-mode=bypassPermissions",))
    assert (done.status, "cannot be used with root" in done.stderr) == (1, True)


def test_session_ids(place: Place) -> None:
    session = new_uuid()
    assert place.run(say("hi"), flags=(f"--session-id={session}",)).result["session_id"] == session
    assert place.run(say("hi"), flags=(f"--resume={session}",)).result["session_id"] == session
    assert place.run(say("hi"), flags=(f"--resume={session}", "--fork-session")).result["session_id"] != session


@pytest.mark.parametrize(("resumed", "error"), [(fake_cli.UNKNOWN_SESSION, "No conversation found"), ("x", "Error: ")])
def test_resuming_an_unknown_session(place: Place, resumed: str, error: str) -> None:
    done = place.run(say("hi"), flags=(f"--resume={resumed}",))
    assert (done.status, kinds(done.lines)) == (1, ["result/error_during_execution"])
    assert done.result["errors"][0].startswith(error)
    assert done.stderr.startswith(error)


# ---- Turns that the API's answers make ----


def test_a_text(place: Place) -> None:
    done = place.run(say("hi"))
    assert (done.status, done.stderr) == (0, "")
    assert kinds(done.lines) == ["system/init", "assistant", "result/success"]
    assert done.texts == ["Hello from stub."]
    assert done.result["result"] == "Hello from stub."
    assert done.result["total_cost_usd"] == pytest.approx(0.00018)


def test_lines_are_utf8_with_no_second_kind_of_newline(place: Place) -> None:
    done = place.run(say({"do": "text", "text": "é\u2028\u2029\x85😀\ud800"}))
    raw = next(line for line in done.stdout.split(b"\n") if b'"assistant"' in line)
    assert "é\\u2028\\u2029\x85😀".encode() in raw
    assert done.texts == ["é\u2028\u2029\x85😀\ud800"] if b"\\ud800" in raw else raw


def test_partial_messages(place: Place) -> None:
    lines = place.run(say({"do": "text", "text": "abcd", "deltas": 2}), flags=(PARTIAL,)).lines
    whole = ["system/init", "system/status", *["stream_event"] * 4, "assistant", *["stream_event"] * 3]
    assert kinds(lines) == [*whole, "result/success"]
    deltas = [line["event"]["delta"]["text"] for line in lines[4:6]]
    assert deltas == ["ab", "cd"]
    assert lines[-1]["begun_message_ids"] == [lines[2]["api_message_id"]]


def test_many_and_bigtext(place: Place) -> None:
    done = place.run(say({"do": "many", "n": 300}), flags=(PARTIAL,))
    assert events(done.lines).count("content_block_delta") == 300
    assert place.run(say({"do": "bigtext", "bytes": 100_000})).texts == ["x" * 100_000]


def test_slow(place: Place) -> None:
    started = time.monotonic()
    assert place.run(say({"do": "slow", "n": 5, "ms": 60})).texts == ["tok0 tok1 tok2 tok3 tok4 "]
    assert time.monotonic() - started > 0.3


def test_think(place: Place) -> None:
    lines = place.run(say({"do": "think"})).lines
    assert kinds(lines) == ["system/init", "system/thinking_tokens", "assistant", "assistant", "result/success"]
    assert lines[2]["message"]["content"][0]["type"] == "thinking"
    assert lines[2]["message"]["id"] == lines[3]["message"]["id"]


def test_several_directives_run_in_order(place: Place) -> None:
    done = place.run(say({"do": "text", "text": "a"}, {"do": "raw", "text": '{"type":"x"}\n'}, {"text": "b"}))
    assert kinds(done.lines) == ["system/init", "assistant", "x", "assistant", "result/success"]
    assert done.result["result"] == "b"


def test_a_prompt_without_a_directive_repeats_the_last(place: Place) -> None:
    """The API sees the whole conversation, and the stub looks for the last directive in it."""
    done = place.run(say({"do": "bash", "cmd": "echo hi"}), say("and?"))
    assert done.texts[-1] == "All done after 1 tool results."


def test_what_only_looks_like_a_directive_is_text(place: Place) -> None:
    assert place.run(say('@@{"do": nonsense}@@ @@{"do":"text","text":"a@@b"}@@')).texts == ["a@@b"]


@pytest.mark.parametrize(
    "directive",
    [
        {"do": "nothing"},
        {"do": 1},
        {"do": "many", "n": "x"},
        {"do": "raw", "hex": "zz"},
        {"do": "tree", "kinds": ["x"]},
    ],
)
def test_a_bad_directive_is_the_apis_400(place: Place, directive: Json) -> None:
    done = place.run(say(directive))
    assert (done.status, done.result["api_error_status"], done.result["is_error"]) == (1, 400, True)


# ---- Bash ----

ALLOWED = ("--allowed-tools=Bash",)


def test_bash(place: Place) -> None:
    done = place.run(say({"do": "bash", "cmd": "echo hi; echo err >&2; exit 3"}), flags=ALLOWED)
    assert kinds(done.lines) == ["system/init", "assistant", "assistant", "user", "assistant", "result/success"]
    assert done.tool_results[0]["message"]["content"][0]["content"] == "Exit code 3\nhi\nerr"
    assert done.tool_results[0]["tool_use_result"] == "Error: Exit code 3\nhi\nerr"
    assert (done.texts, done.result["num_turns"]) == (["I will run it.", "All done after 1 tool results."], 2)


def test_bash_rounds_and_no_output(place: Place) -> None:
    done = place.run(say({"do": "bash", "cmd": "touch x", "rounds": 2}), flags=ALLOWED)
    assert [line["tool_use_result"]["noOutputExpected"] for line in done.tool_results] == [True, True]
    assert done.tool_results[0]["message"]["content"][0]["content"] == "(Bash completed with no output)"
    assert (place.cwd / "x").exists()
    assert done.result["num_turns"] == 3


@needs_proc
def test_bash_has_its_own_session_and_keeps_off_stdout(place: Place) -> None:
    command = "cut -d' ' -f1,5,6 /proc/$$/stat; readlink /proc/$$/fd/0 /proc/$$/fd/1; pwd; echo $CLAUDECODE"
    done = place.run(say({"do": "bash", "cmd": command}), flags=ALLOWED)
    ids, stdin, stdout, cwd, mark = done.tool_results[0]["tool_use_result"]["stdout"].split("\n")
    assert len(set(ids.split())) == 1
    assert (stdin, cwd, mark) == ("/dev/null", str(place.cwd), "1")
    assert stdout.startswith(place.env["TMPDIR"])
    assert not Path(stdout).exists()


@pytest.mark.parametrize(("cmd", "told"), [("x" * 140_000, "Argument list too long"), ("a\0b", "null byte")])
def test_a_command_that_no_process_takes_is_an_error_of_the_tool(place: Place, cmd: str, told: str) -> None:
    done = place.run(say({"do": "bash", "cmd": cmd}), flags=ALLOWED)
    (block,) = done.tool_results[0]["message"]["content"]
    assert block["is_error"]
    assert told in block["content"]
    assert done.texts[-1] == "All done after 1 tool results."


def test_a_big_output_is_cut(place: Place) -> None:
    result = place.run(say({"do": "bash", "cmd": "seq 1 20000"}), flags=ALLOWED).tool_results[0]
    assert len(result["tool_use_result"]["stdout"]) == 30_000


def test_a_background_command_gets_a_turn_when_it_ends(place: Place) -> None:
    done = place.run(say({"do": "bash", "cmd": "sleep 0.3; echo done", "bg": True}), flags=ALLOWED)
    started = ["system/background_tasks_changed", "system/task_started", "user", "assistant", "result/success"]
    ended = ["system/task_updated", "system/task_notification", "system/background_tasks_changed"]
    again = ["system/init", "assistant", "result/success"]
    assert kinds(done.lines) == ["system/init", "assistant", "assistant", *started, *ended, *again]
    assert done.result["origin"]["kind"] == "task-notification"
    assert done.tool_results[0]["tool_use_result"]["backgroundTaskId"]


def test_a_command_over_its_time_goes_on_in_the_background(place: Place) -> None:
    done = place.run(say({"do": "bash", "cmd": "echo a; sleep 0.6", "timeout": 200}), flags=ALLOWED)
    assert done.tool_results[0]["tool_use_result"]["timedOutAfterMs"] == 200
    assert "result_index" in done.result
    assert done.result["result_index"] == 1


def test_other_tools(place: Place) -> None:
    calls = [{"name": "Write", "input": {}}, {"name": "Bash", "input": {"command": "echo x"}}]
    done = place.run(say({"do": "tools", "calls": calls}))
    unknown, ran = (line["message"]["content"][0] for line in done.tool_results)
    assert unknown["content"] == "<tool_use_error>Error: No such tool available: Write.</tool_use_error>"
    assert ran["content"] == "x"
    assert done.texts[-1] == "All done after 2 tool results."


def test_structured_output(place: Place) -> None:
    directive = {"do": "tool", "name": "StructuredOutput", "input": {"a": 1}}
    done = place.run(say(directive), flags=("--json-schema={}",))
    assert (done.result["structured_output"], done.result["result"]) == ({"a": 1}, '{"a":1}')


def test_max_turns(place: Place) -> None:
    done = place.run(say({"do": "bash", "cmd": "echo", "rounds": 3}), flags=("--max-turns=1",))
    assert (done.status, done.result["subtype"], done.result["num_turns"]) == (1, "error_max_turns", 2)
    assert done.result["errors"] == ["Reached maximum number of turns (1)"]


def test_max_budget(place: Place) -> None:
    done = place.run(say("hi"), flags=("--max-budget-usd=0.0001",))
    assert (done.status, done.result["subtype"]) == (1, "error_max_budget_usd")


# ---- May it run? ----


@pytest.mark.parametrize(
    ("command", "harmless"),
    [
        ("echo hi", True),
        ("id", True),
        ("sleep 1", True),
        ("git status", True),
        ("git push", False),
        ("cat x", True),
        ("cat /etc/passwd", False),
        ("ls ../x", False),
        ("echo a && id | cat", True),
        ("echo a >&2", True),
        ("echo a > x", False),
        ("echo $(id)", False),
        ("echo `id`", False),
        ("echo a & echo b", False),
        ("id; env", False),
        ("touch x", False),
        ("python3 -c 1", False),
        ("exit 3", False),
        ("for i in 1 2; do echo $i; done", False),
        ("", True),
    ],
)
def test_harmless_commands(command: str, harmless: bool) -> None:
    assert is_harmless(command) is harmless


@pytest.mark.parametrize(
    ("rule", "allowed"),
    [("Bash", True), ("Read", False), ("Bash(touch:*)", True), ("Bash(touch x)", True), ("Bash(touch)", False)],
)
def test_rules(place: Place, rule: str, allowed: bool) -> None:
    done = place.run(say({"do": "bash", "cmd": "touch x"}), flags=(f"--allowed-tools=Read,{rule}",))
    assert (place.cwd / "x").exists() is allowed
    assert ("system/permission_denied" in kinds(done.lines)) is not allowed


def test_denied_without_anyone_to_ask(place: Place) -> None:
    done = place.run(say({"do": "bash", "cmd": "touch x; ls"}))
    assert done.status == 0
    assert kinds(done.lines)[3:5] == ["system/permission_denied", "user"]
    assert done.tool_results[0]["message"]["content"][0]["is_error"] is True
    assert done.result["permission_denials"][0]["tool_input"]["command"] == "touch x; ls"
    assert not (place.cwd / "x").exists()


@pytest.mark.parametrize(
    ("flags", "made"),
    [(("--permission-mode=dontAsk", ASKING), False), (("--permission-mode=acceptEdits",), True)],
)
def test_permission_modes(place: Place, flags: tuple[str, ...], made: bool) -> None:
    place.run(say({"do": "bash", "cmd": "touch x"}), flags=flags)
    assert (place.cwd / "x").exists() is made


def test_bypassing_permissions(place: Place) -> None:
    flags = ("--permission-mode=bypassPermissions",)
    place.run(say({"do": "bash", "cmd": "touch x"}), flags=flags, IS_SANDBOX="1")
    assert (place.cwd / "x").exists()


def test_no_tools(place: Place) -> None:
    done = place.run(say({"do": "bash", "cmd": "echo"}), flags=("--tools=",))
    assert "No such tool available: Bash" in done.tool_results[0]["message"]["content"][0]["content"]


@contextlib.asynccontextmanager
async def asked(talk: Opener, command: str = "touch x; ls") -> AsyncIterator[tuple[Live, Json]]:
    async with talk(ASKING) as live:
        await live.send(say({"do": "bash", "cmd": command}))
        yield live, (await live.read_until("control_request"))[-1]


def reply(question: Json, response: Json | None, subtype: str = "success") -> Json:
    body = {"subtype": subtype, "request_id": question["request_id"], "response": response}
    return {"type": "control_response", "response": body}


def content_of(lines: list[Json]) -> str:
    return next(line["message"]["content"][0]["content"] for line in lines if line["type"] == "user")


async def test_what_is_asked(talk: Opener) -> None:
    async with asked(talk) as (_live, question):
        assert set(question) == {"type", "request_id", "request"}
        assert question["request"]["subtype"] == "can_use_tool"
        assert question["request"]["input"] == {"command": "touch x; ls", "description": "stub command"}


@pytest.mark.parametrize(
    ("response", "content", "denials"),
    [
        ({"behavior": "allow"}, "x", 0),
        ({"behavior": "allow", "updatedInput": {"command": "echo changed"}}, "changed", 0),
        ({"behavior": "deny", "message": "policy says no"}, "policy says no", 1),
        ({"behavior": "deny"}, BAD_VERDICT, 1),
        (None, BAD_VERDICT, 1),
    ],
)
async def test_an_answer_is_heeded(talk: Opener, response: Json | None, content: str, denials: int) -> None:
    async with asked(talk) as (live, question):
        await live.send(reply(question, response))
        lines = await live.read_until("result")
        assert content_of(lines) == content
        assert len(lines[-1]["permission_denials"]) == denials
        assert lines[-1]["subtype"] == "success"


async def test_an_error_for_an_answer(talk: Opener) -> None:
    async with asked(talk) as (live, question):
        body = {"subtype": "error", "request_id": question["request_id"], "error": "crashed"}
        await live.send({"type": "control_response", "response": body})
        assert content_of(await live.read_until("result")) == "Tool permission request failed: Error: crashed"


async def test_a_denial_that_interrupts(talk: Opener) -> None:
    async with asked(talk) as (live, question):
        await live.send(reply(question, {"behavior": "deny", "message": "no", "interrupt": True}))
        lines = await live.read_until("result")
        assert kinds(lines) == ["user", "user", "result/error_during_execution"]
        assert (lines[-1]["terminal_reason"], lines[-1]["num_turns"]) == ("aborted_tools", 3)


async def test_an_interrupt_while_it_asks(talk: Opener) -> None:
    async with asked(talk) as (live, question):
        await live.send(control("interrupt"))
        lines = await live.read_until("result")
        assert kinds(lines)[:2] == ["control_cancel_request", "control_response"]
        assert lines[0]["request_id"] == question["request_id"]
        assert lines[-1]["terminal_reason"] == "aborted_tools"


async def test_stdin_closed_while_it_asks(talk: Opener) -> None:
    async with asked(talk) as (live, _question):
        await live.close()
        assert "stream closed before response" in content_of(await live.rest())
        assert await live.wait() == 0


# ---- Errors ----


@pytest.mark.parametrize(
    ("status", "error", "retries"),
    [
        (400, "unknown", 0),
        (401, "authentication_failed", 1),
        (403, "authentication_failed", 0),
        (404, "model_not_found", 0),
        (413, "unknown", 0),
        (429, "rate_limit", 1),
        (500, "server_error", 1),
        (503, "server_error", 1),
        (529, "server_error", 1),
    ],
)
def test_errors(place: Place, status: int, error: str, retries: int) -> None:
    directive = {"do": "err", "status": status, "retry_after": 0}
    done = place.run(say(directive), CLAUDE_CODE_MAX_RETRIES="1")
    assert done.status == 1
    assert kinds(done.lines) == ["system/init", *["system/api_retry"] * retries, "assistant", "result/success"]
    assert (done.lines[-2]["error"], done.lines[-2]["api_error_status"]) == (error, status)
    assert done.lines[-2]["message"]["model"] == "<synthetic>"
    assert (done.result["is_error"], done.result["terminal_reason"]) == (True, "api_error")


async def test_the_retries_of_a_refused_key(talk: Opener) -> None:
    started = trio.current_time()
    async with talk() as live:
        await live.send(say({"do": "err", "status": 401}))
        lines = await live.read_until("api_retry")
        assert lines[-1]["max_retries"] == 10
        assert {key: lines[-1][key] for key in ("attempt", "retry_delay_ms", "error_status", "error")} == {
            "attempt": 1,
            "retry_delay_ms": 614,
            "error_status": 401,
            "error": "authentication_failed",
        }
        second = (await live.read_until("api_retry"))[-1]
        assert (second["attempt"], second["retry_delay_ms"]) == (2, 1206)
        assert trio.current_time() - started > 0.6
        await live.send(control("interrupt"))
        assert kinds(await live.read_until("result"))[-2:] == ["user", "result/error_during_execution"]


def test_errors_that_pass(place: Place) -> None:
    done = place.run(say({"do": "err", "status": 429, "retry_after": 0, "times": 2}))
    assert kinds(done.lines).count("system/api_retry") == 2
    assert done.texts == ["ok after 2 errors"]
    assert place.run(say({"do": "err", "status": 401, "noretry": True})).status == 1


@pytest.mark.parametrize(("directive", "tries"), [("miderr", 1), ("reset", 2)])
def test_a_broken_stream(place: Place, directive: str, tries: int) -> None:
    done = place.run(say({"do": directive}), flags=(PARTIAL,), CLAUDE_CODE_MAX_RETRIES="1")
    assert (done.status, done.result["result"]) == (0, "non-stream answer")
    assert events(done.lines).count("content_block_delta") == 5 * tries
    assert sum("abandoned_blocks" in line for line in done.lines) == tries
    assert kinds(done.lines).count("system/api_retry") == tries - 1


# ---- Interrupts, signals and the end of stdin ----


async def test_an_interrupt_in_mid_stream(talk: Opener) -> None:
    async with talk(PARTIAL) as live:
        await live.send(say({"do": "slow", "n": 500, "ms": 20}))
        await live.read_until("content_block_delta")
        await live.send(control("interrupt"))
        lines = await live.read_until("result")
        tail = kinds(lines)[kinds(lines).index("control_response") :]
        assert tail == ["control_response", "assistant", "user", *["stream_event"] * 3, "result/error_during_execution"]
        partial = next(line for line in lines if line["type"] == "assistant")
        assert partial["aborted"] is True
        assert partial["message"]["content"][0]["text"].startswith("tok0 ")
        assert (lines[-1]["terminal_reason"], "result" in lines[-1]) == ("aborted_streaming", False)
        await live.send(say({"do": "text"}))
        assert (await live.read_until("result"))[-1]["result_index"] == 1
        await live.close()
        assert await live.wait() == 0


@pytest.mark.parametrize(("directive", "partial"), [("hang", False), ("stall", True)])
async def test_an_interrupt_of_a_silent_api(talk: Opener, directive: str, partial: bool) -> None:
    async with talk() as live:
        await live.send(say({"do": directive}))
        await live.read_until("init")
        await trio.sleep(0.1)
        await live.send(control("interrupt"))
        lines = await live.read_until("result")
        assert kinds(lines)[1:-1] == (["assistant", "user"] if partial else ["user"])
        await live.close()
        assert await live.wait() == 1


@needs_proc
async def test_an_interrupt_ends_the_tools_tree(talk: Opener, trees: list[int]) -> None:
    async with talk("--allowed-tools=Bash") as live:
        command = "setsid sleep 61 & (trap '' TERM; sleep 62) & sleep 63"
        await live.send(say({"do": "bash", "cmd": command}))
        await live.read_until("assistant")
        await live.read_until("assistant")
        with trio.fail_after(PATIENCE):
            while len(descendants(live.process.pid)) < 4:
                await trio.sleep(0.01)
        trees += descendants(live.process.pid) - {live.process.pid}
        assert len(trees) >= 3
        await live.send(control("interrupt"))
        lines = await live.read_until("result")
        assert lines[-1]["terminal_reason"] == "aborted_tools"
        await wait_gone(*trees)


@pytest.mark.parametrize(
    ("number", "status", "says"),
    [(signal.SIGTERM, 143, False), (signal.SIGHUP, 129, False), (signal.SIGINT, 0, True)],
)
@pytest.mark.parametrize("prompt", [{"do": "slow", "n": 500, "ms": 20}, {"do": "hang"}])
async def test_signals_in_a_turn(talk: Opener, number: int, status: int, says: bool, prompt: Json) -> None:
    async with talk() as live:
        await live.send(say(prompt))
        await live.read_until("init")
        await trio.sleep(0.1)
        live.process.send_signal(number)
        assert ("result/error_during_execution" in kinds(await live.rest())) is says
        assert await live.wait() == status


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 0)])
async def test_signals_when_idle(talk: Opener, number: int, status: int) -> None:
    async with talk() as live:
        await live.send(control("initialize"))
        await live.read_until("control_response")
        live.process.send_signal(number)
        assert await live.rest() == []
        assert await live.wait() == status


@needs_proc
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 0)])
async def test_signals_end_the_tools_tree_but_no_daemon(
    talk: Opener, place: Place, trees: list[int], number: int, status: int
) -> None:
    async with talk("--allowed-tools=Bash") as live:
        command = "(setsid sleep 60 & echo $! > daemon); (trap '' TERM; sleep 61) & echo here; sleep 62"
        await live.send(say({"do": "bash", "cmd": command}))
        await live.read_until("assistant")
        await live.read_until("assistant")
        file = place.cwd / "daemon"
        with trio.fail_after(PATIENCE):
            while not (file.exists() and file.read_text().endswith("\n")):
                await trio.sleep(0.01)
        await trio.sleep(0.3)
        below = descendants(live.process.pid) - {live.process.pid}
        daemon = int(file.read_text())
        trees += [*below, daemon]
        started = trio.current_time()
        live.process.send_signal(number)
        lines = await live.rest()
        assert await live.wait() == status
        assert 1.0 < trio.current_time() - started < 4
        assert ("Exit code" in content_of(lines)) is (number == signal.SIGTERM)
        await wait_gone(*below)
        assert alive(daemon)


async def test_signals_can_be_ignored(talk: Opener) -> None:
    async with talk() as live:
        await live.send(say({"do": "text", "ignore_term": True}))
        await live.read_until("result")
        live.process.send_signal(signal.SIGTERM)
        live.process.send_signal(signal.SIGINT)
        await live.send(say("hi"))
        assert (await live.read_until("result"))[-1]["subtype"] == "success"
        live.process.send_signal(signal.SIGKILL)
        assert await live.wait() == -9


def test_stdin_closed_in_a_turn_lets_it_finish(place: Place) -> None:
    assert place.run(say({"do": "slow", "n": 3, "ms": 50})).result["subtype"] == "success"
    assert place.run().stdout == b""
    assert place.run().status == 0


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"this is not json", "Error parsing streaming input line (type=unknown, 16 chars): SyntaxError"),
        (b'{"type":"user",', "Error parsing streaming input line (type=user, 15 chars): SyntaxError"),
        (b"null", "Error parsing streaming input line (type=unknown, 4 chars): TypeError"),
        (b'{"type":"user"}', "Error: Expected message role 'user', got 'undefined'"),
        (b'{"type":"user","message":{"role":"assistant"}}', "Error: Expected message role 'user', got 'assistant'"),
    ],
)
def test_bad_input_kills_it(place: Place, line: bytes, error: str) -> None:
    done = place.run(line + b"\n", say("hi"))
    assert (done.status, done.stdout, done.stderr) == (1, b"", f"{error}\n")


def test_odd_input_is_survived(place: Place) -> None:
    odd = [b"\n", b"[]\n", b"3\n", b'{"type":"keep_alive"}\n', b'{"type":["x"]}\n', b'{"type":"control_response"}\n']
    done = place.run(*odd, b'{"type":"user","message":{"role":"user","content":null}}\n')
    assert (done.status, done.texts) == (0, ["Hello from stub."])
    assert place.run(b'{"type":"user","message":{"role":"user","content":"\xff"}}\n').status == 0
    assert place.run(say("x" * 5_000_000)).texts == ["Hello from stub."]
    blocks = {"type": "user", "message": {"role": "user", "content": [{"type": "text", "text": '@@{"text":"b"}@@'}]}}
    assert place.run(blocks).texts == ["b"]


async def test_messages_sent_in_a_turn_are_merged(talk: Opener) -> None:
    async with talk("--replay-user-messages") as live:
        await live.send(say({"do": "slow", "n": 4, "ms": 60}))
        await live.read_until("init")
        await live.send(say("A"), say("B"))
        await live.close()
        lines = await live.rest()
        assert kinds(lines).count("result/success") == 2
        assert [line["message"]["content"] for line in lines if line.get("isReplay")][1:] == ["A\nB"]


@needs_proc
async def test_it_lives_on_when_nobody_reads(talk: Opener) -> None:
    async with talk() as live:
        await live.send(say({"do": "slow", "n": 10, "ms": 20}))
        await live.read_until("init")
        assert live.process.stdout is not None
        await live.process.stdout.aclose()
        await trio.sleep(0.4)
        assert live.process.poll() is None
        live.process.send_signal(signal.SIGTERM)
        assert await live.wait() == 143


async def test_a_signal_while_it_is_blocked_in_a_write(talk: Opener) -> None:
    """The real CLI tries to get rid of its lines for two seconds, then exits all the same."""
    async with talk() as live:
        await live.send(control("initialize"))  # its handlers are there once it answers
        await live.read_until("control_response")
        await live.send(say({"do": "lines", "n": 10_000, "size": 1000}))
        await trio.sleep(0.3)
        started = trio.current_time()
        live.process.send_signal(signal.SIGTERM)
        assert await live.wait() == 143
        assert 1.5 < trio.current_time() - started < 4


# ---- Control requests ----


async def test_control_requests(talk: Opener) -> None:
    async with talk() as live:

        async def ask(subtype: str, **fields: Any) -> Json:
            await live.send(control(subtype, **fields))
            answer = (await live.read_until("control_response"))[-1]["response"]
            assert answer["request_id"] == "q1"
            return answer

        first = await ask("initialize", hooks=None)
        assert first["response"]["claude_code_version"] == fake_cli.VERSION
        assert first["response"]["pid"] == live.process.pid
        assert (await ask("interrupt"))["response"] == {"still_queued": []}
        assert (await ask("set_model", model="haiku"))["response"] == {"model": "claude-haiku-5-5"}
        assert (await ask("set_permission_mode", mode="plan"))["response"] == {"mode": "plan"}
        assert (await live.read_until("status"))[-1]["permissionMode"] == "plan"
        assert (await ask("set_permission_mode", mode="x"))["error_code"] == "invalid_mode"
        unknown = await ask("no_such_thing")
        assert unknown["error"] == "Unsupported control request subtype: no_such_thing"
        assert (unknown["subtype"], unknown["error_code"]) == ("error", "unsupported_request")
        await live.send(say("hi"))
        init = (await live.read_until("result"))[0]
        assert (init["model"], init["permissionMode"]) == ("claude-haiku-5-5", "plan")


async def test_control_requests_are_answered_in_a_turn(talk: Opener) -> None:
    async with talk() as live:
        await live.send(say({"do": "hang"}))
        await live.read_until("init")
        await live.send(control("initialize"))
        answer = (await live.read_until("control_response"))[-1]["response"]
        assert answer["response"]["session_state"] == "running"


# ---- Its own directives ----


def test_numbered_lines(place: Place) -> None:
    done = place.run(say({"do": "lines", "n": 3000, "size": 100}))
    raw = done.stdout.splitlines()[1:-1]
    assert {len(line) for line in raw} == {100}
    assert [json.loads(line)["n"] for line in raw] == list(range(1, 3001))


def test_lines_that_say_when_they_were_said(place: Place) -> None:
    before = time.monotonic_ns()
    done = place.run(say({"do": "lines", "n": 30, "rate": 100, "size": 100, "stamp": True}))
    stamps = [line["t"] for line in done.lines if line["type"] == "fake"]
    assert before < stamps[0] <= max(stamps) == stamps[-1] < time.monotonic_ns()
    assert stamps[-1] - stamps[0] > 0.2e9
    assert {len(line) for line in done.stdout.splitlines()[1:-1]} == {100}


def test_lines_at_a_rate(place: Place) -> None:
    started = time.monotonic()
    done = place.run(say({"do": "lines", "n": 20, "rate": 50}))
    assert 0.35 < time.monotonic() - started < 3
    assert kinds(done.lines) == ["system/init", *["fake"] * 20, "result/success"]


def test_stderr(place: Place) -> None:
    assert place.run(say({"do": "stderr", "text": "é!", "n": 3})).stderr == "é!\n" * 3


def test_exit(place: Place) -> None:
    done = place.run(say({"do": "exit", "status": 3}))
    assert (done.status, kinds(done.lines)) == (3, ["system/init"])
    assert place.run(say({"do": "exit", "init": False})).stdout == b""


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGTERM, signal.SIGPIPE])
def test_signal(place: Place, number: int) -> None:
    assert place.run(say({"do": "signal", "n": number})).status == -number
    assert list(place.cwd.iterdir()) == []


async def test_silent(talk: Opener) -> None:
    async with talk() as live:
        await live.send(control("initialize"))  # it has begun once it answers
        await live.read_until("control_response")
        await live.send(say({"do": "silent"}))
        await trio.sleep(0.2)
        await live.send(control("initialize"))
        await live.close()
        with trio.move_on_after(0.4) as scope:
            await live.read()
        assert scope.cancelled_caught
        live.process.send_signal(signal.SIGINT)
        assert await live.rest() == []
        assert await live.wait() == 0


def test_raw(place: Place) -> None:
    done = place.run(
        say({"do": "raw", "hex": "fffe0a", "init": False}, {"do": "raw", "text": "no newline"}, {"do": "exit"})
    )
    assert done.stdout == b"\xff\xfe\nno newline"


def test_a_line_without_an_end(place: Place) -> None:
    done = place.run(say({"do": "nonewline", "bytes": 1_000_000, "init": False}, {"do": "exit"}))
    assert done.stdout == b"x" * 1_000_000


async def test_closeout(talk: Opener) -> None:
    async with talk() as live:
        await live.send(say({"do": "closeout"}))
        assert kinds(await live.rest()) == ["system/init"]
        await live.close()
        await trio.sleep(0.2)
        assert live.process.poll() is None
        live.process.send_signal(signal.SIGTERM)
        assert await live.wait() == 143


async def test_linger(talk: Opener) -> None:
    async with talk() as live:
        await live.send(say({"do": "linger", "seconds": 0.5}, {"do": "text"}))
        await live.close()
        assert (await live.read_until("result"))[-1]["result"] == "Hello from stub."
        started = trio.current_time()
        assert await live.wait() == 0
        assert trio.current_time() - started > 0.3


# ---- Trees ----

ALL_KINDS = ["plain", "setsid", "double_fork", "ignore_term", "env_clear", "stopped", "hold_stdout", "comet"]


def state_of(pid: int) -> tuple[str, int, int]:
    """Return a process's state, parent and session."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], int(fields[1]), int(fields[3])


def ignores(pid: int, number: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    mask = re.search(r"SigIgn:\s*(\w+)", status)
    assert mask is not None
    return bool(int(mask[1], 16) >> (number - 1) & 1)


@needs_proc
async def test_each_kind_of_tree_is_what_it_says(talk: Opener, trees: list[int]) -> None:
    async with talk(MARK_OF_RUN="here") as live:
        await live.send(say({"do": "tree", "kinds": ALL_KINDS[:-1], "seconds": 30, "then": "stay"}))
        line = (await live.read_until("fake"))[-1]
        trees += line["pids"]
        made = line["by_kind"]
        cli, session = live.process.pid, os.getsid(live.process.pid)
        (plain,), (setsid,), (double,), (deaf,) = (made[kind] for kind in ALL_KINDS[:4])
        (scrubbed,), (stopped, keeper), (holder,) = (made[kind] for kind in ALL_KINDS[4:7])
        assert state_of(plain)[1:] == (cli, session)
        assert state_of(setsid)[1:] == (cli, setsid)
        assert state_of(double)[1] != cli
        assert state_of(double)[2] != session
        assert ignores(deaf, signal.SIGTERM)
        assert not ignores(plain, signal.SIGTERM)
        assert Path(f"/proc/{scrubbed}/environ").read_bytes() == b""
        assert b"MARK_OF_RUN=here" in Path(f"/proc/{plain}/environ").read_bytes()
        assert (state_of(stopped)[0], state_of(stopped)[1]) == ("T", keeper)
        stdout = os.readlink(f"/proc/{cli}/fd/1")
        holding = [pid for pid in line["pids"] if os.readlink(f"/proc/{pid}/fd/1") == stdout]
        assert holding == [holder]
        live.process.send_signal(signal.SIGKILL)
        await live.wait()
        assert all(alive(pid) for pid in line["pids"])


@needs_proc
async def test_a_tree_ends_in_time_whatever_happens(talk: Opener, trees: list[int]) -> None:
    async with talk() as live:
        await live.send(say({"do": "tree", "kinds": ALL_KINDS, "seconds": 1, "then": "exit"}))
        line = (await live.read_until("fake"))[-1]
        trees += line["pids"]
        assert await live.wait() == 0
        await wait_gone(*line["pids"])


@needs_proc
async def test_a_comet_goes_on_under_ever_new_pids(talk: Opener, place: Place) -> None:
    async with talk() as live:
        mark = place.env["HOME"].encode()

        def flying() -> set[int]:
            # Each lives for about a millisecond: look at the youngest only.
            found = set()
            for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
                with contextlib.suppress(OSError):
                    if pid > live.process.pid and mark in Path(f"/proc/{pid}/environ").read_bytes():
                        found.add(pid)
            return found

        await live.send(say({"do": "tree", "kinds": ["comet"], "seconds": 3, "then": "exit"}))
        assert (await live.read_until("fake"))[-1]["pids"] == []
        await live.wait()
        seen: set[int] = set()
        with trio.fail_after(2.5):
            while len(seen) < 3:
                seen |= flying()
                await trio.lowlevel.checkpoint()
        await trio.sleep(3)
        assert flying() == set()


def test_a_tree_and_then_the_turn_goes_on(place: Place) -> None:
    done = place.run(say({"do": "tree", "kinds": ["plain"], "seconds": 1}, {"do": "text"}))
    assert kinds(done.lines) == ["system/init", "fake", "assistant", "result/success"]


# ---- What it leaves ----


def test_it_writes_nothing_outside(place: Place) -> None:
    place.run(say({"do": "bash", "cmd": "touch x; seq 1 20000"}, {"do": "think"}), flags=ALLOWED)
    root = place.cwd.parent
    assert {path.name for path in root.iterdir()} == {"work", "tmp"}
    assert [path.name for path in place.cwd.iterdir()] == ["x"]
