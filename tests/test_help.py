"""Rule: help, statuses and complaints of the commands are a contract: each example works, each status stands in one table,
and what went wrong is said with what to do about it."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import trio
from click.testing import CliRunner
from harness import Backend, directive, until
from program import PROGRAM, environ, trio_claude

from trio_claude.commands import COMMANDS, cli
from trio_claude.commands.complaints import painted
from trio_claude.commands.credentials import find_key
from trio_claude.commands.options import read_config
from trio_claude.commands.statuses import MEANINGS, STATUSES, Status
from trio_claude.errors import ConfigError
from trio_claude.identity.keys import Key, digest, write_keys

PAGE = (Path(__file__).parents[1] / "docs" / "commands.md").read_text()
ROOM = Path(__file__).parents[1] / "trio_claude" / "commands"


def tree(command: click.Command, *words: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command with the words that call it."""
    yield words, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below, name
            yield from tree(below, *words, name)


def examples(command: click.Command) -> list[str]:
    told = command.get_help(click.Context(command, info_name="trio-claude"))
    return [line.strip() for line in told.partition("Examples:\n")[2].splitlines() if line.strip()]


EXAMPLES = [(words, line) for words, command in tree(cli) for line in examples(command)]


def test_every_command_and_subcommand_has_examples() -> None:
    there = {words for words, _ in EXAMPLES}
    assert there == {words for words, _ in tree(cli)}
    assert {words[0] for words in there if words} == set(COMMANDS)


@pytest.mark.parametrize("name", ["serve", "batch", "doctor"])
def test_the_defaults_of_commands_are_those_that_they_take(name: str) -> None:
    command = dict(tree(cli))[name,]
    (option,) = (one for one in command.params if one.name == "journal")
    assert isinstance(option, click.Option)
    assert f"[default: {read_config({}, None).journal}]" in str(option.help)
    assert read_config({}, None).journal == "auto"


@pytest.mark.parametrize(("words", "line"), EXAMPLES, ids=lambda value: value if isinstance(value, str) else "")
def test_every_example_parses_and_is_one_of_its_command(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], line: str
) -> None:
    """Everything up to the command itself is done: options are known, values are good."""
    called: list[str] = []
    monkeypatch.setattr(click.Command, "invoke", lambda _self, context: called.append(context.command_path))
    name, *given = shlex.split(re.split(r" >>? ", line.rpartition(" | ")[2])[0])
    told = CliRunner().invoke(cli, given, prog_name="trio-claude")
    assert name == "trio-claude"
    assert told.exit_code == 0, told.output
    if "--help" not in given:
        assert called[-1].split()[1:] == given[: len(called[-1].split()) - 1]
        assert not words or words[0] in called[-1] or words[0] in line


def test_an_example_with_an_unknown_option_would_be_found() -> None:
    assert CliRunner().invoke(cli, ["runs", "list", "--nope"]).exit_code == 2


# -- one table of statuses -----------------------------------------------------------------------------------------------


def test_the_page_has_every_command_and_status() -> None:
    purposes = re.findall(r"^\| `([a-z]+)` \| (.+?\.|[^|]+?)(?: \(\[more\].*)? \|$", PAGE, re.MULTILINE)
    said = {name: text.partition(" ([more]")[0].rstrip(".") for name, text in purposes}
    assert said == {name: text.rstrip(".") for name, text in COMMANDS.items()}
    rows = re.findall(r"^\| (\d+) \| (.+?) \| (.+?) \|$", PAGE, re.MULTILINE)
    assert [(int(number), meaning) for number, meaning, _ in rows] == [(int(one), MEANINGS[one]) for one in Status]
    for number, _, who in rows:
        named = set(COMMANDS) if who == "all" else set(re.findall(r"`(\w+)`", who))
        assert named == {name for name, can in STATUSES.items() if int(number) in can}, number


def test_no_command_ends_with_a_bare_number() -> None:
    for path in ROOM.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("sys.exit", "exit", "os._exit", "quit"):
                numbers = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
                assert not [one for one in numbers if isinstance(one, int) and not isinstance(one, bool)], path.name


async def test_a_full_server_is_told_by_status_75(fake: Backend) -> None:
    async with fake.serve(max_runs=1, queue_timeout=0.1) as server, trio.open_nursery() as nursery:
        nursery.start_soon(trio_claude, "ask", directive("silent"), "--url", server.url, "--timeout", "30")
        await until(fake.left, 20)
        told = await trio_claude("ask", "hello", "--url", server.url)
        assert told.returncode == Status.LATER
        assert b"no slot came free" in told.stderr
        await server.drain(0)


async def test_ctrl_c_is_told_by_status_130_and_ends_the_run(fake: Backend) -> None:
    async with fake.serve() as server:
        words = [*PROGRAM, "ask", directive("silent"), "--url", server.url]
        process = await trio.lowlevel.open_process(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/")
        with trio.fail_after(20):
            await until(fake.left, 20)
            process.send_signal(signal.SIGINT)
            assert await process.wait() == Status.INTERRUPTED
            assert b"Traceback" not in b"".join([piece async for piece in process.stderr])
            await process.stdout.aclose()
        await until(lambda: fake.left() == [])


# -- what went wrong -----------------------------------------------------------------------------------------------------


async def test_a_wanted_and_a_wrong_key_say_what_to_do(fake: Backend) -> None:
    async with fake.serve_known("alice", journal="memory") as (server, _):
        for words in (["ask", "hello"], ["runs", "list"]):
            wanted = await trio_claude(*words, "--url", server.url)
            wrong = await trio_claude(*words, "--url", server.url, env={**os.environ, "TRIO_CLAUDE_KEY": "nope"})
            assert (wanted.returncode, wrong.returncode) == (69, 69)
            assert b"HTTP 401: it wants a valid key or token; name its file with --key-file" in wanted.stderr
            assert b"not known there, or not any more; `trio-claude keys add`" in wrong.stderr
            assert b"serve` running" not in wanted.stderr + wrong.stderr


@pytest.mark.parametrize(
    ("data", "why"),
    [(b"\n", "is empty"), (b"two words", "has characters"), (b"\xff\xfe", "is no text"), (None, "can't be read")],
)
def test_a_file_that_holds_no_key_is_named(folder: Path, data: bytes | None, why: str) -> None:
    if data is not None:
        (folder / "key").write_bytes(data)
    with pytest.raises(ConfigError, match=f"^--key-file: {folder}/key {why}") as raised:
        find_key(folder / "key")
    assert "words" not in str(raised.value)


async def test_a_busy_port_is_named_with_what_to_do(fake: Backend) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])
        serve = await trio_claude("serve", "--port", port, env=environ(fake))
        doctor = await trio_claude("doctor", "--port", port, env=environ(fake))
    assert serve.stderr.startswith(b"trio-claude: port: can't listen on 127.0.0.1:" + port.encode())
    assert b"Address already in use; end what listens there, or take another port" in serve.stderr
    assert b"MISSING port: Address already in use; --port names another" in doctor.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["serve", "--host", "192.0.2.1", "--keys", "{keys}"], b"trio-claude: host: can't listen on 192.0.2.1:"),
        (["keys", "add", "x", "--file", "/proc/nope/keys.json"], b"--file names another, TRIO_CLAUDE_STATE another folder"),
        (["keys", "revoke", "nobody", "--file", "{keys}"], b"NAME: there is no key of the name nobody; `trio-claude keys list`"),
        (["runs", "show", "xyz"], b"ID takes 4 to 64 hex digits, not 'xyz'; `trio-claude runs list` shows them"),
        (["runs", "list", "--url", "ftp://x"], b"--url: ftp://x is no address of a server; say http://HOST:PORT"),
        (["runs", "list", "--journal", "/nope"], b"there is no journal at /nope; --journal names another"),
        (["doctor", "--cli", "/nope", "--port", "0"], b"--cli names another"),
    ],
)  # fmt: skip
async def test_a_complaint_names_the_cause_the_field_and_the_next_step(
    fake: Backend, folder: Path, words: list[str], told: bytes
) -> None:
    keys = folder / "keys.json"
    write_keys(keys, {"alice": Key(digest("secret"))})
    env = environ(fake) if words[0] != "serve" else {k: v for k, v in environ(fake).items() if k != "TRIO_CLAUDE_CWD"}
    answer = await trio_claude(*(word.replace("{keys}", str(keys)) for word in words), env=env)
    assert answer.returncode == (1 if words[0] == "doctor" else 2)
    assert told in answer.stderr + answer.stdout


async def test_another_programs_address_is_no_server_of_ours(fake: Backend) -> None:
    async with fake.serve() as server:
        told = await trio_claude("ask", "hello", "--url", f"{server.url}/nope")
    assert told.returncode == Status.UNREACHABLE
    assert b"HTTP 404: no WebSocket here; there is one at /ws/claude, /ws/session; --url takes" in told.stderr
    assert b"the address that `trio-claude serve` prints" in told.stderr


NEXT = re.compile(r"--[a-z]|`trio-claude|\b(NAME|ID)\b|\{(_SHOWN|_WANTED)\}")
"""What a complaint names: an option, an argument, a command, or a text that does."""


def test_every_complaint_of_the_commands_names_what_it_is_about() -> None:
    raised = [
        ast.unparse(node.exc.args[0])
        for path in ROOM.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and ast.unparse(node.exc.func) == "ConfigError"
    ]
    assert len(raised) > 20
    servers_own = [text for text in raised if "{_why(answer)}" in text]
    assert [text for text in raised if not NEXT.search(text)] == servers_own


# -- for programs, and for terminals -------------------------------------------------------------------------------------


async def test_ask_tells_a_program_all_in_json(fake: Backend) -> None:
    async with fake.serve() as server:
        told = await trio_claude("ask", directive("stderr", text="oh") + "hello", "--url", server.url, "--json")
        refused = await trio_claude("ask", "hello", "--url", server.url, "--json", "--meta", "lower")
    said = [json.loads(line) for line in told.stderr.splitlines()]
    assert {"stderr": "oh"} in said
    assert (said[-1]["code"], said[-1]["error"]) == (1000, None)
    assert said[-1]["reason"].startswith("exit 0; 1 process, 0 left")
    assert json.loads(refused.stderr.splitlines()[-1])["error"].startswith("meta must match")


async def test_keys_tells_a_program_a_new_key_in_json(folder: Path) -> None:
    file = str(folder / "keys.json")
    made = await trio_claude("keys", "add", "ci", "--json", "--file", file)
    anew = await trio_claude("keys", "rotate", "ci", "--json", "--file", file)
    listed = await trio_claude("keys", "list", "--json", "--file", file)
    first, second = json.loads(made.stdout), json.loads(anew.stdout)
    assert (first["name"], first["file"], made.stderr) == ("ci", file, b"")
    assert first["key"] != second["key"]
    assert json.loads(listed.stdout)["ci"]["role"] == "user"
    assert first["key"].encode() not in listed.stdout


def on_terminal(*words: str, **env: str) -> bytes:
    """Return what a command writes to a terminal."""
    ours, theirs = os.openpty()
    try:
        subprocess.run(
            [*PROGRAM, *words],
            stdout=theirs,
            stderr=theirs,
            stdin=theirs,
            check=False,
            cwd="/",
            env={**os.environ, "TERM": "xterm", **env},
        )
        return os.read(ours, 65536)
    finally:
        os.close(ours)
        os.close(theirs)


def test_colours_are_for_terminals_that_want_them(folder: Path) -> None:
    words = ["keys", "revoke", "nobody", "--file", str(folder / "keys.json")]
    assert b"\x1b[31mtrio-claude:" in on_terminal(*words, NO_COLOR="")
    assert b"\x1b" not in on_terminal(*words, NO_COLOR="1")
    assert b"\x1b" not in on_terminal(*words, TERM="dumb")
    piped = subprocess.run(
        [*PROGRAM, *words], capture_output=True, check=False, cwd="/", env={**os.environ, "TERM": "xterm"}
    )
    assert piped.stderr.startswith(b"trio-claude: NAME: there is no key")


def test_a_file_gets_no_colours(folder: Path) -> None:
    with (folder / "out").open("w") as file:
        assert painted("ok", "green", file) == "ok"
