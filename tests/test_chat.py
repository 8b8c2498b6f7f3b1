"""`trio-claude chat` in a terminal: what is typed, shown, asked and interrupted."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
from harness import Backend, directive, open_backend, until
from rich.console import Console
from talk import open_talk
from trio.testing import wait_all_tasks_blocked

from trio_claude.client import Approval, parse_line
from trio_claude.commands import talking
from trio_claude.commands.talking import Chat, _content, _question, _tool
from trio_claude.commands.terminal import Keyboard, MarkdownStream, _end_of, _whole_part
from trio_claude.commands.words import clean

BOTH = [pytest.param("fake"), pytest.param("real", marks=pytest.mark.real_cli)]

HOSTILE = "\x1b]0;title\x07\x1b[2Jowned"


@pytest.fixture(params=BOTH)
async def cli(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Backend]:
    async with open_backend(request.param, folder) as backend:
        yield backend


class Terminal:
    """A terminal of tmux, on a socket of its own."""

    def __init__(self, folder: Path) -> None:
        self._socket = str(folder / "tmux")

    def tmux(self, *words: str) -> str:
        return subprocess.run(["tmux", "-S", self._socket, *words], capture_output=True, text=True, check=True).stdout

    def type(self, text: str) -> None:
        self.tmux("send-keys", "-t", "chat", "-l", text)
        self.tmux("send-keys", "-t", "chat", "Enter")

    def press(self, key: str) -> None:
        self.tmux("send-keys", "-t", "chat", key)

    def screen(self) -> str:
        with contextlib.suppress(subprocess.CalledProcessError):
            return self.tmux("capture-pane", "-p", "-J", "-t", "chat", "-S", "-500")
        return ""

    async def shows(self, text: str, times: int = 1) -> None:
        try:
            await until(lambda: self.screen().count(text) >= times, 20)
        except trio.TooSlowError:
            raise AssertionError(f"{text!r} is not shown:\n{self.screen()}") from None


@contextlib.contextmanager
def chatting(folder: Path, url: str) -> Iterator[Terminal]:
    terminal = Terminal(folder)
    words = [sys.executable, "-m", "trio_claude", "chat", "--url", url]
    command = f"{shlex.join(words)}; echo status $?; sleep 60"
    terminal.tmux("-f", "/dev/null", "new-session", "-d", "-s", "chat", "-x", "110", "-y", "45", command)
    try:
        yield terminal
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            terminal.tmux("kill-server")


@pytest.mark.tmux
async def test_a_chat(cli: Backend, folder: Path) -> None:
    async with cli.serve() as server:
        with chatting(folder, server.url) as terminal:
            await terminal.shows("session ")
            terminal.type("Hello")
            await terminal.shows("Hello from stub.")
            await terminal.shows("tokens in")
            terminal.type("/model claude-haiku-5-5")
            await terminal.shows("model: claude-haiku-5-5")
            terminal.type(directive("bash", cmd="touch allowed; ls"))
            await terminal.shows("allow? y, n, e to edit:")
            terminal.type("y")
            await terminal.shows("tokens in", 2)
            terminal.type(directive("bash", cmd="touch refused; ls"))
            await terminal.shows("allow? y, n, e to edit:", 2)
            terminal.type("n")
            await terminal.shows("denied by the user")
            await terminal.shows("tokens in", 3)
            terminal.type(directive("bash", cmd="touch unchanged; ls"))
            await terminal.shows("allow? y, n, e to edit:", 3)
            terminal.type("e")
            await terminal.shows("command: ")
            terminal.type("echo was-changed")
            await terminal.shows("tokens in", 4)
            terminal.type(directive("slow", n=1000, ms=20))
            await trio.sleep(1)
            terminal.press("C-c")
            await terminal.shows("interrupting")
            await terminal.shows("interrupted")
            await terminal.shows("tokens in", 5)
            terminal.type("/nonsense")
            await terminal.shows("Ctrl-C interrupts a turn", 2)
            terminal.press("C-c")
            await terminal.shows("Ctrl-C interrupts a turn", 3)
            await until(lambda: terminal.screen().rstrip().endswith("\n>"))
            terminal.type("x" * 5000)
            await terminal.shows("not taken: a terminal cuts a line at 4,095 bytes")
            terminal.type(directive("text", text="still here"))
            await terminal.shows("tokens in", 6)
            terminal.type("/quit")
            await terminal.shows("status 0")
        await until(lambda: cli.ended)
    assert (cli.cwd / "allowed").exists()
    assert not (cli.cwd / "refused").exists()
    assert not (cli.cwd / "unchanged").exists()
    assert [event.outcome.reason for event in cli.ended] == ["exit"]


@pytest.mark.tmux
@pytest.mark.real_cli
async def test_a_question_of_the_models_is_answered(real: Backend, folder: Path) -> None:
    choices = [{"label": "left", "description": "by the river"}, {"label": "right", "description": "by the hill"}]
    asked = [
        {"question": "Which way?", "header": "Way", "multiSelect": False, "options": choices},
        {"question": "What for?", "header": "Why", "multiSelect": False, "options": choices},
    ]
    async with real.serve() as server:
        with chatting(folder, server.url) as terminal:
            await terminal.shows("session ")
            terminal.type(directive("tool", name="AskUserQuestion", input={"questions": asked}))
            await terminal.shows("2. right  by the hill")
            terminal.type("2")
            await terminal.shows("your answer", 2)
            terminal.type("for the view")
            await terminal.shows('"Which way?"="right"')
            await terminal.shows('"What for?"="for the view"')
            await terminal.shows("tokens in")
            terminal.type(directive("tool", name="AskUserQuestion", input={"questions": asked[:1]}))
            await terminal.shows("your answer", 3)
            terminal.press("Enter")
            await terminal.shows("the user did not want to answer")
            await terminal.shows("tokens in", 2)


@pytest.mark.tmux
async def test_a_chat_whose_history_ends(fake: Backend, folder: Path) -> None:
    async with fake.serve(journal="memory", journal_run_bytes=1024) as server:
        with chatting(folder, server.url) as terminal:
            await terminal.shows("session ")
            terminal.type(directive("lines", n=10, size=1000))
            await terminal.shows("from here on nothing is kept of this session")


@pytest.mark.tmux
async def test_a_chat_whose_cli_dies(fake: Backend, folder: Path) -> None:
    async with fake.serve() as server:
        with chatting(folder, server.url) as terminal:
            await terminal.shows("session ")
            terminal.type(directive("exit", status=3))
            await terminal.shows("error: the CLI exited with status 3")
            await terminal.shows("status 1")


async def test_a_chat_whose_end_holds_a_control_sequence(fake: Backend) -> None:
    result = {"type": "result", "is_error": True, "result": f"no {HOSTILE}", "session_id": "0", "subtype": "error"}
    prompt = directive("raw", text=json.dumps(result) + "\n") + directive("exit", status=3)
    words = [sys.executable, "-m", "trio_claude", "chat", "--url"]
    async with fake.serve() as server:
        told = await trio.run_process(
            [*words, server.url], stdin=prompt.encode(), check=False, capture_stdout=True, capture_stderr=True
        )
    assert b"status 3: no owned" in told.stderr
    assert b"\x1b" not in told.stderr + told.stdout


async def test_who_leaves_behind_a_turn_that_failed_leaves_well(fake: Backend) -> None:
    words = [sys.executable, "-m", "trio_claude", "chat", "--url"]
    typed = f"{directive('err', status=400)}\n/quit\n".encode()
    async with fake.serve() as server:
        told = await trio.run_process(
            [*words, server.url], stdin=typed, check=False, capture_stdout=True, capture_stderr=True
        )
    assert told.stdout.count(b"API Error: 400") == 1
    assert (told.returncode, told.stderr) == (0, b"")


async def test_an_answer_that_broke_off_is_shown_as_it_came_anew(fake: Backend) -> None:
    words = [sys.executable, "-m", "trio_claude", "chat", "--url"]
    typed = f"{directive('miderr', n=3, text='asked again')}\n".encode()
    async with fake.serve() as server:
        told = await trio.run_process([*words, server.url], stdin=typed, capture_stdout=True)
    assert told.stdout.count(b"(the answer broke off here)") == 1
    assert told.stdout.count(b"asked again") == 1
    assert b"tok0" not in told.stdout


async def test_a_chat_that_can_not_begin(fake: Backend) -> None:
    words = [sys.executable, "-m", "trio_claude", "chat"]
    nobody = await trio.run_process([*words, "--url", "http://127.0.0.1:1"], check=False, capture_stderr=True)
    assert nobody.returncode == 69
    assert b"is `trio-claude serve` running?" in nobody.stderr
    async with fake.serve() as server:
        wrong = await trio.run_process([*words, "--url", server.url, "--meta", "x"], check=False, capture_stderr=True)
        quit_ = await trio.run_process([*words, "--url", server.url], stdin=b"hello\n", capture_stdout=True)
    assert wrong.returncode == 2
    assert b"meta must match" in wrong.stderr
    assert quit_.returncode == 0
    assert b"Hello from stub." in quit_.stdout


async def test_a_viewer_is_told_by_a_chat_as_by_a_prompt(fake: Backend) -> None:
    """The one is refused in the session, the other not even let in."""
    async with fake.serve_known("vera/viewer") as (server, keys):
        env = {**os.environ, "TRIO_CLAUDE_KEY": keys["vera"]}
        told = [
            await trio.run_process(
                [sys.executable, "-m", "trio_claude", *words, "--url", server.url],
                check=False,
                capture_stderr=True,
                env=env,
            )
            for words in (["ask", "hello"], ["chat"])
        ]
    assert [one.returncode for one in told] == [69, 69]
    for one in told:
        assert b"a viewer starts no runs; its operator says who may come in" in one.stderr


async def test_a_chat_whose_server_goes_down_before_it_begins(fake: Backend) -> None:
    words = [sys.executable, "-m", "trio_claude", "chat"]
    async with fake.serve(max_runs=1) as server, open_talk(server) as first, trio.open_nursery() as nursery:
        await first.start()
        chat = partial(trio.run_process, [*words, "--url", server.url], check=False, capture_stderr=True)
        process: trio.Process = await nursery.start(chat)
        await until(lambda: server.runs.statistics().waiting == 1)
        await server.drain(0)
        assert await process.wait() == 75


async def test_an_answer_goes_before_who_waits_for_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    got: dict[str, str | None] = {}

    async def answer(keyboard: Keyboard) -> None:
        got["answer"] = await keyboard.answer()

    async def line(keyboard: Keyboard) -> None:
        got["line"] = await keyboard.line()

    read, write = os.pipe()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(fileno=lambda: read))
    keyboard = Keyboard()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line, keyboard)
        await wait_all_tasks_blocked()
        with trio.move_on_after(0):
            await keyboard.answer()  # one that is not wanted any more
        nursery.start_soon(answer, keyboard)
        await wait_all_tasks_blocked()
        os.write(write, b"y\n")
        await until(lambda: bool(got))
        os.write(write, b"a line\n")
    os.close(write)
    assert (await keyboard.line(), await keyboard.answer()) == (None, None)
    assert got == {"answer": "y", "line": "a line"}
    os.close(read)


async def test_what_can_not_be_read_is_the_end_of_what_is_typed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As below nohup, or where a terminal is gone."""
    with (folder / "nohup.out").open("w") as unreadable, trio.fail_after(10):
        monkeypatch.setattr(sys, "stdin", unreadable)
        assert await Keyboard().line() is None


# -- what is shown ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("a\x1b[31mb\x1b[0m", "ab"),
        ("a\x1b]0;title\x07b", "ab"),
        ("a\x1b]52;c;aGk=\x1b\\b", "ab"),
        ("a\x9b31mb\x08\x7f", "a31mb"),
        ("a\r\nb\tc\r", "a\nb\tc"),
        ("a\ud83db", "a\ufffdb"),
        ("a\u202eb\u2066c\u200fd", "a\\u202eb\\u2066c\\u200fd"),
        ("می\u200cخواهم 👩\u200d💻", "می\u200cخواهم 👩\u200d💻"),
    ],
)
def test_no_control_sequence_reaches_the_terminal(said: str, shown: str) -> None:
    assert clean(said) == shown
    assert clean(_tool("Bash", {"command": said})) == _tool("Bash", {"command": said})


@pytest.mark.parametrize("unseen", [*"\x1b\x7f\x9b\xad\u200b\u200e\u202e\u2028\u2066\ufeff\U000e0041"])
def test_an_approval_shows_what_can_not_be_seen(unseen: str) -> None:
    asked = _question(Approval("1", f"Ba{unseen}sh", {"command": f"rm {unseen}x"}, {}))
    assert unseen not in asked
    assert asked.isascii()
    assert f"{ord(unseen):x}x" in asked
    assert (
        _question(Approval("1", "Bash", {"command": "echo 'ü\n日本'"}, {}))
        == 'Bash\n{\n  "command": "echo \'ü\\n日本\'"\n}'
    )


@pytest.mark.parametrize(
    ("text", "whole", "rest"),
    [
        ("one", "", "one"),
        ("one\n\ntwo", "one\n\n", "two"),
        ("one\n\n```\nx\n\ny", "one\n\n", "```\nx\n\ny"),
        ("```\nx\n\ny\n```\n\nend", "```\nx\n\ny\n```\n\n", "end"),
    ],
)
def test_what_is_whole(text: str, whole: str, rest: str) -> None:
    assert _whole_part(text) == (whole, rest)


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("one\ntwo", "one\ntwo"),
        ("one\ntwo\nthree", "two\nthree"),
        ("```py\none\ntwo\nthree", "```py\ntwo\nthree"),
        ("```py\none\n```\ntwo", "```py\n```\ntwo"),
        ("```py\none\n```\ntwo\nthree", "two\nthree"),
    ],
)
def test_the_last_lines_keep_their_fence(text: str, end: str) -> None:
    assert _end_of(text, 2) == end


def test_what_is_drawn_is_as_much_as_a_screen_shows() -> None:
    file = io.StringIO()
    stream = MarkdownStream(Console(file=file, force_terminal=True, width=60, height=20, highlight=False))
    for number in range(500):
        stream.feed("```\n" if number == 0 else f"line {number}\n")
    assert file.getvalue() == "", "pieces alone draw nothing"
    stream.draw()
    drawn = file.getvalue()
    assert "line 499" in drawn
    assert "line 400" not in drawn
    stream.draw()
    assert file.getvalue() == drawn, "nothing is drawn twice"
    stream.finish()
    assert "line 400" in file.getvalue()


async def test_the_cost_of_a_turn_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(sys, "stdout", file)
    monkeypatch.setattr(talking, "Keyboard", lambda: None)
    chat = Chat()
    for total, own in ((5.0, 0.25), (5.5, None), (6.25, None)):
        used = {} if own is None else {"model_usage_since_last_result": {"a": {"costUSD": own}, "b": {}, "c": None}}
        chat._show(parse_line(json.dumps({"type": "result", "total_cost_usd": total, **used})))
    assert [line.split()[0] for line in file.getvalue().splitlines()] == ["$0.2500", "$0.5000", "$0.7500"]


def test_markdown_comes_out_once_whatever_its_pieces() -> None:
    text = "# Title\n\nSome *words*\n\n- one\n- two\n\n```\ncode\n\nmore\n```\n\nthe end"
    shown = []
    for size in (1, 7, 1000):
        console = Console(file=io.StringIO(), width=60)
        stream = MarkdownStream(console)
        for at in range(0, len(text), size):
            stream.feed(text[at : at + size])
        stream.finish()
        shown.append(console.file.getvalue())  # type: ignore[attr-defined]
    assert shown[0].count("the end") == 1
    assert shown[0].split() == shown[1].split() == shown[2].split()


async def test_half_a_surrogate_pair_can_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", file)
    monkeypatch.setattr(talking, "Keyboard", lambda: None)
    blocks = [
        {"type": "tool_result", "content": "cut \ud83d"},
        {"type": "tool_result", "is_error": True, "content": "\udc00"},
    ]
    Chat()._show(parse_line(json.dumps({"type": "user", "message": {"content": blocks}})))
    file.seek(0)
    assert file.read().split() == ["cut", "\ufffd", "\ufffd"]


def test_a_tools_result_is_its_text() -> None:
    assert _content([{"type": "text", "text": "a"}, {"type": "image"}, "odd"]) == "a\n"
    assert (_content("x"), _content(None)) == ("x", "")
