"""The fake CLI's lines have the keys and types of the real CLI's, which is asked the same things here."""

from __future__ import annotations

import contextlib
import fnmatch
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from trio_claude.testing import fake_cli
from trio_claude.testing.messages_api import open_messages_api

pytestmark = pytest.mark.real_cli

Json = dict[str, Any]
FAKE = [sys.executable, "-I", "-S", fake_cli.FOLDER]
STREAM = ["-p", "--input-format", "stream-json", "--output-format", "stream-json", "--verbose"]
STRICT = ["--setting-sources=", "--strict-mcp-config"]
PATIENCE = 60
QUIET = {
    "DISABLE_TELEMETRY": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
}

TOLERATED: dict[str, str] = {
    # "scenario:line:path of keys" (with wildcards) -> why the fake may differ there
}


# ---- Shapes ----


def label(line: Json) -> str:
    """Return what kind of line it is."""
    parts = [line.get("type"), line.get("subtype"), line.get("event", {}).get("type")]
    return "/".join(part for part in parts if part)


def shape(value: object, path: str = "") -> dict[str, str]:
    """Return the JSON type at each path; a list is as its first element, a model's name is any model."""
    kinds: dict[str, str] = {path: kind_of(value)}
    if isinstance(value, dict):
        for key, inner in value.items():
            by_model = path in (".modelUsage", ".model_usage_since_last_result")
            name = "MODEL" if by_model else key
            kinds |= shape(inner, f"{path}.{name}")
    elif isinstance(value, list) and value:
        kinds |= shape(value[0], f"{path}[]")
    return kinds


def kind_of(value: object) -> str:
    names = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "null")


def squeeze(lines: list[Json]) -> list[tuple[str, dict[str, str]]]:
    """Return label and shape of each line; of a row of the same kind, how long is chance, and the first speaks."""
    squeezed: list[tuple[str, dict[str, str]]] = []
    for line in lines:
        if not squeezed or squeezed[-1][0] != label(line):
            squeezed.append((label(line), shape(line)))
    return squeezed


def differences(scenario: str, real: list[Json], fake: list[Json]) -> list[str]:
    """Say each way in which the fake's lines are not like the real ones."""
    theirs, ours = squeeze(real), squeeze(fake)
    if [name for name, _ in theirs] != [name for name, _ in ours]:
        return [f"real says {[name for name, _ in theirs]}", f"fake says {[name for name, _ in ours]}"]
    found = []
    for (name, real_shape), (_, fake_shape) in zip(theirs, ours, strict=True):
        for path in sorted(real_shape.keys() | fake_shape.keys()):
            pair = real_shape.get(path, "missing"), fake_shape.get(path, "missing")
            if pair[0] != pair[1] and not tolerated(f"{scenario}:{name}:{path}"):
                found.append(f"{name} {path}: real {pair[0]}, fake {pair[1]}")
    return found


END = (
    "subtype",
    "is_error",
    "terminal_reason",
    "stop_reason",
    "num_turns",
    "result",
    "api_error_status",
    "result_index",
)


def end_of(lines: list[Json]) -> Json:
    """Return what the last result says of how it ended; texts, for what is no result's is no end."""
    if label(lines[-1]).partition("/")[0] != "result":
        return {}
    return {name: lines[-1].get(name) for name in END}


def tolerated(where: str) -> bool:
    return any(fnmatch.fnmatchcase(where, pattern) for pattern in TOLERATED)


def test_differences_are_found() -> None:
    """A check that cannot fail is none."""
    real = [{"type": "a", "x": 1, "y": [{"z": None}]}, {"type": "b"}]
    assert differences("s", real, [{"type": "a", "x": 1.5, "y": [{"z": None}, {}]}, {"type": "b"}, {"type": "b"}]) == []
    assert differences("s", real, [{"type": "a", "x": "1", "y": [{"q": None}]}, {"type": "b"}]) == [
        "a .x: real number, fake string",
        "a .y[].q: real missing, fake null",
        "a .y[].z: real null, fake missing",
    ]
    assert differences("s", real, [{"type": "b"}]) == ["real says ['a', 'b']", "fake says ['b']"]


# ---- Asking both ----


@attrs.frozen
class Talk:
    process: trio.Process
    lines: list[Json] = attrs.field(factory=list)
    buffer: bytearray = attrs.field(factory=bytearray)

    async def send(self, line: Json) -> None:
        assert self.process.stdin is not None
        await self.process.stdin.send_all(json.dumps(line).encode() + b"\n")

    async def ask(self, directive: Json) -> None:
        await self.send({"type": "user", "message": {"role": "user", "content": f"@@{json.dumps(directive)}@@"}})

    async def control(self, subtype: str, **fields: Any) -> None:
        await self.send({"type": "control_request", "request_id": "q1", "request": {"subtype": subtype, **fields}})

    async def until(self, *labels: str) -> Json:
        """Read up to a line of such a kind."""
        assert self.process.stdout is not None
        while True:
            while b"\n" not in self.buffer:
                data = await self.process.stdout.receive_some()
                assert data, f"no {labels} among {[label(line) for line in self.lines]}"
                self.buffer.extend(data)
            raw, _, rest = bytes(self.buffer).partition(b"\n")
            self.buffer[:] = rest
            self.lines.append(json.loads(raw))
            if label(self.lines[-1]).startswith(labels):
                return self.lines[-1]


@contextlib.asynccontextmanager
async def talking(program: list[str], flags: list[str], env: dict[str, str], cwd: Path) -> AsyncIterator[Talk]:
    process = await trio.lowlevel.open_process(
        [*program, *STREAM, *STRICT, *flags],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=cwd,
        env=env,
    )
    try:
        yield Talk(process)
    finally:
        process.terminate()
        with trio.CancelScope(shield=True):
            with trio.move_on_after(5):
                await process.wait()
            process.kill()
            await process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    await stream.aclose()


@pytest.fixture(scope="module")
def real() -> list[str]:
    spec = importlib.util.find_spec("claude_agent_sdk")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("claude_agent_sdk, which bundles the CLI, is not installed")
    cli = Path(spec.submodule_search_locations[0]) / "_bundled" / "claude"
    if not cli.exists():
        pytest.skip(f"no CLI at {cli}")
    return [str(cli)]


@pytest.fixture(scope="module")
def version(real: list[str]) -> str:
    done = subprocess.run([*real, "--version"], capture_output=True, text=True, check=True, timeout=PATIENCE)
    return done.stdout.strip()


@pytest.fixture
def home() -> Iterator[Path]:
    # Not pytest's: the CLI's socket paths must stay short.
    with tempfile.TemporaryDirectory(prefix="d", dir="/tmp", ignore_cleanup_errors=True) as folder:
        for name in ("home", "config", "t", "work"):
            (Path(folder) / name).mkdir()
        yield Path(folder)


Script = Callable[[Talk], Coroutine[Any, Any, None]]


async def hear_both(
    real: list[str], home: Path, flags: list[str], script: Script, **more: str
) -> tuple[list[Json], list[Json]]:
    """Play the same script to both, and return what the real one and the fake said."""
    said = []
    async with open_messages_api() as api:
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(home / "home"),
            "CLAUDE_CONFIG_DIR": str(home / "config"),
            "TMPDIR": str(home / "t"),
            "ANTHROPIC_BASE_URL": api.url,
            "ANTHROPIC_API_KEY": "dummy",
            **QUIET,
            **more,
        }
        for program in (real, FAKE):
            with trio.fail_after(PATIENCE):
                async with talking(program, flags, env, home / "work") as talk:
                    await script(talk)
            said.append(talk.lines)
    return said[0], said[1]


async def to_the_result(talk: Talk, directive: Json) -> None:
    await talk.ask(directive)
    await talk.until("result")


async def to_the_first_retry(talk: Talk) -> None:
    await talk.ask({"do": "err", "status": 401})
    await talk.until("system/api_retry")


async def interrupt_in_mid_stream(talk: Talk) -> None:
    await talk.ask({"do": "slow", "n": 200, "ms": 50})
    await talk.until("stream_event/content_block_delta")
    await talk.control("interrupt")
    await talk.until("result")


async def interrupt_in_a_tool(talk: Talk) -> None:
    await talk.ask({"do": "bash", "cmd": "echo a; bash -c 'sleep 31'; echo b"})
    await talk.until("assistant")
    await talk.until("assistant")
    await trio.sleep(0.5)
    await talk.control("interrupt")
    await talk.until("result")


async def allow_what_is_asked(talk: Talk) -> None:
    await talk.ask({"do": "bash", "cmd": "touch x; ls"})
    question = await talk.until("control_request")
    verdict = {"behavior": "allow", "updatedInput": {"command": "echo changed"}}
    body = {"subtype": "success", "request_id": question["request_id"], "response": verdict}
    await talk.send({"type": "control_response", "response": body})
    await talk.until("result")


async def settings(talk: Talk) -> None:
    for subtype, fields in (
        ("interrupt", {}),
        ("set_model", {"model": "haiku"}),
        ("set_permission_mode", {"mode": "plan"}),
        ("set_permission_mode", {"mode": "nonsense"}),
        ("no_such_thing", {}),
    ):
        await talk.control(subtype, **fields)
        await talk.until("control_response")
    await to_the_result(talk, {"do": "text"})


async def a_task_in_the_background(talk: Talk) -> None:
    await to_the_result(talk, {"do": "bash", "cmd": "sleep 0.5; echo done", "bg": True})
    await talk.until("result")


async def initialize(talk: Talk) -> None:
    await talk.control("initialize", hooks=None)
    answer = await talk.until("control_response")
    # The lists in it are the real one's own affair: only the first level is compared.
    response = answer["response"]["response"]
    talk.lines[:] = [{"type": "top", **{key: kind_of(value) for key, value in response.items()}}]


def turn(**directive: Any) -> Script:
    async def script(talk: Talk) -> None:
        await to_the_result(talk, directive)

    return script


PARTIAL = ["--include-partial-messages"]
ALLOWED = ["--allowed-tools=Bash"]
ASKING = ["--permission-prompt-tool=stdio"]
SCENARIOS: dict[str, tuple[list[str], Script]] = {
    "text": ([], turn(do="text")),
    "partial": (PARTIAL, turn(do="text")),
    "think": (PARTIAL, turn(do="think")),
    "bash": (ALLOWED, turn(do="bash", cmd="echo hi")),
    "bash-partial": (PARTIAL + ALLOWED, turn(do="bash", cmd="echo hi")),
    "bash-fails": (ALLOWED, turn(do="bash", cmd="echo hi; exit 3")),
    "denied": ([], turn(do="bash", cmd="touch x; ls")),
    "dont-ask": (["--permission-mode=dontAsk"], turn(do="bash", cmd="touch x; ls")),
    "no-tools": (["--tools="], turn(do="bash", cmd="echo hi")),
    "allow": (ASKING, allow_what_is_asked),
    "401": ([], to_the_first_retry),
    "403": ([], turn(do="err", status=403)),
    "404": (PARTIAL, turn(do="err", status=404)),
    "529": ([], turn(do="err", status=529)),
    "429": ([], turn(do="err", status=429, retry_after=1, times=1)),
    "miderr": ([], turn(do="miderr")),
    "miderr-partial": (PARTIAL, turn(do="miderr", n=3, text="asked again")),
    "background": (ALLOWED, a_task_in_the_background),
    "structured": (["--json-schema={}"], turn(do="tool", name="StructuredOutput", input={"a": "b"})),
    "max-turns": (["--max-turns=1"], turn(do="bash", cmd="echo hi", rounds=3)),
    "max-budget": (["--max-budget-usd=0.0001"], turn(do="text")),
    "interrupt": (PARTIAL, interrupt_in_mid_stream),
    "interrupt-tool": (ALLOWED, interrupt_in_a_tool),
    "unknown-session": ([f"--resume={fake_cli.UNKNOWN_SESSION}"], turn(do="text")),
    "settings": ([], settings),
    "initialize": ([], initialize),
}


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_the_fake_speaks_as_the_real_one(real: list[str], version: str, home: Path, scenario: str) -> None:
    flags, script = SCENARIOS[scenario]
    theirs, ours = await hear_both(real, home, flags, script)
    found = differences(scenario, theirs, ours)
    found += [f"real ends {end_of(theirs)}, fake {end_of(ours)}"] * (end_of(theirs) != end_of(ours))
    report = "\n  ".join(found)
    assert not found, f"the fake of {fake_cli.VERSION} differs from {version} in {scenario}:\n  {report}"


async def interrupt_and_be_done(talk: Talk) -> None:
    await interrupt_in_mid_stream(talk)
    await talk.until("system/session_state_changed")


async def two_turns(talk: Talk) -> None:
    for _ in range(2):
        await to_the_result(talk, {"do": "text"})
        await talk.until("system/session_state_changed")


STATES: dict[str, tuple[list[str], Script]] = {
    "two-turns": ([], two_turns),
    "background": (ALLOWED, a_task_in_the_background),
    "interrupt": (PARTIAL, interrupt_and_be_done),
}


@pytest.mark.parametrize("scenario", STATES)
async def test_the_fake_tells_its_host_what_it_is_at(real: list[str], version: str, home: Path, scenario: str) -> None:
    flags, script = STATES[scenario]
    theirs, ours = await hear_both(real, home, flags, script, CLAUDE_CODE_SDK_READS_SESSION_STATE="1")
    assert differences(scenario, theirs, ours) == [], version
    told = [[line.get("state") for line in said if "sdk_host_only" in line] for said in (theirs, ours)]
    assert told[0] == told[1] != []
