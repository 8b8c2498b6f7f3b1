"""Rule: one event is one line, whatever is in it; a log that nobody reads drops lines, counts them, and holds nobody up."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import logging
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import trio
from harness import Backend, ask, directive, head, until, wait_for
from program import environ, serving, trio_claude

from trio_claude import context
from trio_claude.config import Config
from trio_claude.errors import Reason
from trio_claude.events import (
    Answered,
    Charged,
    ConnectionClosed,
    ConnectionOpened,
    Crashed,
    Event,
    GuardianLost,
    JournalReady,
    NodeState,
    Outcome,
    Receipt,
    Refused,
    Reloaded,
    RunEnded,
    RunStarted,
    SendStalled,
    Strained,
    Weak,
)
from trio_claude.identity import Identity
from trio_claude.identity.keys import PREFIX, Key
from trio_claude.logs import QUEUE_LIMIT, Log, open_log
from trio_claude.logs.hooks import TEXT_LIMIT
from trio_claude.logs.lines import MARGIN, TRACEBACK_LIMIT, Entry
from trio_claude.logs.rates import RATES
from trio_claude.logs.secrets import HIDDEN, hide
from trio_claude.logs.writer import IDLE, Writer
from trio_claude.messages import Options, Prompt
from trio_claude.server import open_server
from trio_claude.upgrade import Request

RECEIPT = Receipt(seen=7, killed=6, survivors=0, ms=12.5, containment="supervisor")
OUTCOME = Outcome(Reason.EXIT, 0, None, 3, 0, RECEIPT)
JSON = Config(log_format="json")


def outcome(survivors: int | None) -> Outcome:
    return Outcome(Reason.EXIT, 0, None, 0, 0, Receipt(1, 1, survivors, 1.0, "group"))


def caught(text: str, kind: type[Exception] = ValueError) -> Exception:
    try:
        raise kind(text)
    except kind as error:
        return error


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(text, category, stacklevel=1)


class Told:
    """What a log wrote, once its context is left."""

    text = ""

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @property
    def said(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.lines]

    @property
    def names(self) -> list[object]:
        return [line["event"] for line in self.said]


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    return Told()


@contextmanager
def logging_to(told: Told, config: Config = JSON, *, colours: bool = False) -> Iterator[Log]:
    before, sys.stderr = sys.stderr, io.StringIO()
    try:
        with open_log(config, colours=colours) as log:
            yield log
        told.text = sys.stderr.getvalue()
    finally:
        sys.stderr = before


# -- lines ---------------------------------------------------------------------------------------------------------------


def test_an_event_is_one_line_with_the_facts_in_it(told: Told) -> None:
    with logging_to(told) as log:
        log(RunEnded("r", "TASK-1", 1.5, OUTCOME))
    (said,) = told.said
    assert abs(float(str(said.pop("time"))) - time.time()) < 60
    assert said == {
        "level": "info", "event": "RunEnded", "run": "r", "meta": "TASK-1", "seconds": 1.5, "identity": "local", "door": "claude",
        "turns": 0, "tokens": 0, "dollars": 0.0, "bytes": 0,
        "outcome": {
            "reason": "exit", "exit_status": 0, "signal": None, "lines": 3, "encoding_errors": 0, "cause": None,
            "after_result": False,
            "receipt": {"seen": 7, "killed": 6, "survivors": 0, "ms": 12.5, "containment": "supervisor"},
        },
    }  # fmt: skip


def test_for_a_person_a_line_has_time_level_event_and_what_says_something(told: Told) -> None:
    with logging_to(told, Config(log_format="console")) as log:
        log(RunEnded("r", "TASK-1", 1.5, OUTCOME))
    (line,) = told.lines
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} \[info     \] RunEnded +"
        r"run=r meta=TASK-1 seconds=1\.500 reason=exit exit_status=0 lines=3 encoding_errors=0 "
        r"receipt='7 processes, 0 left, 12 ms' after_result=False identity=local door=claude turns=0 tokens=0 "
        r"dollars=0\.000 bytes=0",
        line,
    )


def test_lines_come_out_in_order_and_all_at_the_end(told: Told) -> None:
    with logging_to(told) as log:
        for number in range(100):
            log(Strained(str(number), over=False))
    assert [line["what"] for line in told.said] == list(map(str, range(100)))


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize(
    "evil",
    [
        "x\n2026-01-01 00:00:00.000 [info     ] RunEnded",
        'x\r\n{"event":"RunEnded"}',
        "x\u2028\u2029\x85\x0b\x0c y",
        "\x1b[2J\x1b]0;title\x07\x9b31m",
        "\x7f\x00\u202e\ud800",
    ],
)
def test_nothing_that_a_client_says_ends_a_line_or_paints(told: Told, form: str, evil: str) -> None:
    with logging_to(told, Config(log_format=form)) as log, context.Bound(meta=evil):
        log(ConnectionClosed("127.0.0.1:1", 1000, evil, f"/{evil}", 1.0, evil))
        logging.getLogger("library").warning("said %s", evil)
        warn(evil)
        log(Crashed("here", caught(evil)))
    events = [line for line in told.lines if not line.startswith(MARGIN)]
    names = re.findall(r"ConnectionClosed|Logged|Warned|Crashed", "\n".join(line[:80] for line in events))
    assert names == ["ConnectionClosed", "Logged", "Warned", "Crashed"]
    assert len(events) == 4
    assert all(char.isprintable() for char in told.text.replace("\n", ""))
    assert len(told.text.split("\n")) == len(told.lines) + 1, "no other line end is in it"


def test_a_value_can_not_look_like_a_field(told: Told) -> None:
    with logging_to(told, Config(log_format="console")) as log:
        log(ConnectionOpened("127.0.0.1:1", "/x identity=admin", "key:alice"))
    assert "path='/x identity=admin' identity=key:alice" in told.text


# -- levels and formats -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "level"),
    [
        (Answered("a", "GET", "/healthz", 200, 0.1), "debug"),
        (Charged("r", "T", 1, 0.1), "debug"),
        (RunStarted("r", "T", 1), "info"),
        (ConnectionOpened("a", "/"), "info"),
        (RunEnded("r", "T", 1.0, outcome(0)), "info"),
        (RunEnded("r", "T", 1.0, outcome(None)), "info"),
        (JournalReady("/x"), "info"),
        (Reloaded(), "info"),
        (Refused(401, "no"), "warning"),
        (Strained("memory", over=False), "warning"),
        (Weak("x"), "warning"),
        (SendStalled("r", "T", 2.0), "warning"),
        (JournalReady("", "the folder can't be made"), "warning"),
        (Reloaded("bad"), "warning"),
        (NodeState("n", "lost"), "warning"),
        (NodeState("n", "connected"), "info"),
        (GuardianLost("zygote"), "error"),
        (Crashed("x", ValueError()), "error"),
        (RunEnded("r", "T", 1.0, outcome(2)), "error"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_an_event_has_its_level_and_a_higher_one_leaves_it_out(told: Told, event: Event, level: str) -> None:
    names = ["debug", "info", "warning", "error"]
    for least in names:
        with logging_to(told, Config(log_format="json", log_level=least)) as log:
            log(event)
        assert [line["level"] for line in told.said] == ([level] if names.index(least) <= names.index(level) else [])


def test_the_access_log_shows_each_answer(told: Told) -> None:
    answered = Answered("127.0.0.1", "GET", "/healthz", 200, 0.25, "key:alice")
    with logging_to(told, Config(log_format="json", access_log=True)) as log:
        log(answered)
        log.configure(JSON)
        log(answered)
    (said,) = told.said
    assert said | {"time": 0} == {
        "time": 0, "level": "info", "event": "Answered", "peer": "127.0.0.1", "method": "GET", "path": "/healthz",
        "status": 200, "seconds": 0.25, "identity": "key:alice",
    }  # fmt: skip


def test_format_and_level_change_from_one_line_to_the_next(told: Told) -> None:
    with logging_to(told) as log:
        log(Weak("one"))
        wait_for(lambda: '"one"' in sys.stderr.getvalue())  # type: ignore[attr-defined] - a StringIO here
        log.configure(Config(log_format="console", log_level="error"))
        log(Weak("two"))
        log(GuardianLost("three"))
    assert [line[:1] for line in told.lines] == ["{", "2"]
    assert "three" in told.lines[1]


def test_auto_is_for_a_person_on_a_terminal_only() -> None:
    code = (
        "import sys; from trio_claude.config import Config; from trio_claude.logs import open_log;"
        "from trio_claude.events import Weak; from trio_claude.commands.complaints import takes_colours\n"
        "with open_log(Config(), colours=takes_colours(sys.stderr)) as log: log(Weak('x'))"
    )
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert json.loads(piped.stderr)["event"] == "Weak"
    assert b"\x1b" in on_terminal(code, NO_COLOR="")
    plain = on_terminal(code, NO_COLOR="1")
    assert b"\x1b" not in plain
    assert b"[warning  ] Weak" in plain


def on_terminal(code: str, **env: str) -> bytes:
    ours, theirs = pty.openpty()
    try:
        subprocess.run(
            [sys.executable, "-c", code], stderr=theirs, check=True, env={**os.environ, "TERM": "xterm", **env}
        )
        return os.read(ours, 65536)
    finally:
        os.close(ours)
        os.close(theirs)


# -- what nobody reads, and what there is too much of -----------------------------------------------------------------------


def test_what_nobody_reads_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A pipe that is full blocks the writer, and nobody else."""
    os.mkfifo(tmp_path / "log")
    reader = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
    with open(tmp_path / "log", "w") as pipe:
        monkeypatch.setattr(sys, "stderr", pipe)
        with open_log(JSON) as log:
            began = time.monotonic()
            for _ in range(4 * QUEUE_LIMIT):
                log(Strained("x" * 200, over=False))
            assert time.monotonic() - began < 5
            os.set_blocking(reader, True)
            found = io.BytesIO()
            drain = threading.Thread(target=_drain, args=(reader, found), daemon=True)
            drain.start()
    drain.join(5)
    lines = [json.loads(line) for line in found.getvalue().splitlines()]
    written = sum(line["event"] == "Strained" for line in lines)
    assert QUEUE_LIMIT <= written < 4 * QUEUE_LIMIT
    assert written + sum(line.get("lines", 0) for line in lines) == 4 * QUEUE_LIMIT


def test_an_entry_of_many_lines_that_a_pipe_does_not_take_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe that is full and does not wait; the entries are as the console has them, with a traceback below each."""
    reader, full = os.pipe()
    fcntl.fcntl(full, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(full, False)
    found = io.BytesIO()
    with open(full, "w") as pipe:
        monkeypatch.setattr(sys, "stderr", pipe)
        writer = Writer(lambda entry: f"{entry.name} {entry.facts}\n{'|  ' * 300}\n.", lambda: None)
        for _ in range(30):
            writer.put(Entry(0, 0, "Crashed", {}, {}))
        drain = threading.Thread(target=_drain, args=(reader, found), daemon=True)
        wait_for(lambda: not writer._entries.qsize() and writer._dropped > 0)
        drain.start()
        wait_for(found.getvalue)  # as much as the pipe holds is read at a time, so it is empty now
        writer.put(Entry(0, 0, "After", {}, {}))
        writer.close()
    drain.join(5)
    text = found.getvalue().decode()
    (dropped,) = re.findall(r"LogDropped {'lines': (\d+)}", text)
    assert len(re.findall(r"Crashed {}\n(?:\|  )+\n\.\n", text)) + int(dropped) == 30


FULL = """
import os, resource, signal, sys, time
from trio_claude.config import Config
from trio_claude.events import Weak
from trio_claude.logs import open_log
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def say(what, room):
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    log(Weak(what))
    time.sleep(0.1)
with open_log(Config(log_format="json")) as log:
    say("first", resource.RLIM_INFINITY)
    room = os.fstat(2).st_size + 20
    for number in range(5):
        say(f"lost {number}", room)
    say("kept", resource.RLIM_INFINITY)
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_line_that_a_full_disk_cuts_spoils_no_other(tmp_path: Path, unbuffered: str) -> None:
    """A real file: what it has taken stays, half a line too, and nothing is told as lost that stands there."""
    with (tmp_path / "log").open("wb") as file:
        subprocess.run(
            [sys.executable, "-c", FULL],
            stderr=file,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            check=True,
            timeout=30,
        )
    first, half, *rest = (tmp_path / "log").read_text().splitlines()
    assert json.loads(first)["what"] == "first"
    assert len(half) == 20
    assert [json.loads(line).get("what") or json.loads(line)["lines"] for line in rest] == ["kept", 5]


class Full(io.StringIO):
    """A file on a disk that is full, for a while."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.error: OSError | None = OSError(number, os.strerror(number))

    def flush(self) -> None:
        if self.error:
            self.truncate(self.seek(0))
            raise self.error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EAGAIN])
def test_a_disk_that_is_full_for_a_while_costs_what_came_meanwhile(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    file = Full(number)
    monkeypatch.setattr(sys, "stderr", file)
    with open_log(JSON) as log:
        log(Weak("lost"))
        time.sleep(0.2)
        log(Weak("lost too"))
        time.sleep(0.2)
        file.error = None
        log(Weak("kept"))
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [(line["event"], line.get("what") or line["lines"]) for line in lines] == [
        ("Weak", "kept"),
        ("LogDropped", 2),
    ]


def _drain(reader: int, found: io.BytesIO) -> None:
    while data := os.read(reader, 65536):
        found.write(data)
    os.close(reader)


def test_what_can_not_be_rendered_costs_one_line_only(told: Told) -> None:
    class Bad:
        def __str__(self) -> str:
            raise ValueError("no words")

    with logging_to(told) as log:
        log(Weak(Bad()))  # type: ignore[arg-type] - no text, which is what is tested
        log(Weak("next"))
    assert told.names == ["LogFailed", "Weak"]
    assert (told.said[0]["line"], told.said[0]["error"]) == ("Weak", "ValueError")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [7.0]
    monkeypatch.setattr("trio_claude.logs.time.monotonic", lambda: now[0])
    return now


def test_many_refusals_are_summed_up(told: Told, now: list[float]) -> None:
    with logging_to(told) as log:
        for _ in range(500):
            log(Refused(401, "unauthorized: x"))
        log(Strained("y", over=False))
        now[0] = 8.0
        log(Refused(403, "origin: x"))
    rate = RATES["Refused"]
    assert told.names == ["Refused"] * rate + ["Strained", "RefusedMore", "Refused"]
    more = told.said[-2]
    assert (more["left_out"], more["by_status"], more["level"]) == (500 - rate, {"401": 500}, "warning")


def test_each_kind_that_clients_make_has_a_rate_of_its_own_and_runs_have_none(told: Told, now: list[float]) -> None:
    with logging_to(told) as log:
        for _ in range(300):
            log(ConnectionOpened("a", "/"))
            log(ConnectionClosed("a", 1000, "", "/", 0.1))
        for number in range(300):
            log(RunStarted(str(number), "T", 1))
    assert [told.names.count(name) for name in ("ConnectionOpened", "ConnectionClosed", "RunStarted")] == [
        100,
        100,
        300,
    ]
    assert [(line["event"], line["left_out"]) for line in told.said[-2:]] == [
        ("ConnectionOpenedMore", 200), ("ConnectionClosedMore", 200),
    ]  # fmt: skip


def test_what_was_left_out_is_told_though_nothing_follows(told: Told) -> None:
    with logging_to(told) as log:
        for _ in range(100):
            log(Refused(401, "unauthorized: x"))
        deadline = time.monotonic() + 10 * IDLE
        while "RefusedMore" not in sys.stderr.getvalue():  # type: ignore[attr-defined] - a StringIO here
            assert time.monotonic() < deadline
            time.sleep(0.02)
        log(Weak("still open"))
    assert sum(int(str(line.get("left_out", 0))) for line in told.said) + told.names.count("Refused") == 100


# -- faults --------------------------------------------------------------------------------------------------------------


def test_a_crash_is_one_line_with_its_traceback_and_run(told: Told) -> None:
    with logging_to(told) as log:
        log(Crashed("here", caught("two\nlines"), "3f2a"))
    (said,) = told.said
    assert "Traceback (most recent call last)" in str(said["error"])
    assert "ValueError: two\nlines" in str(said["error"])
    assert (said["where"], said["run"], said["count"]) == ("here", "3f2a", 1)
    assert said["fingerprint"] == Crashed("", caught("")).fingerprint


def test_a_crash_that_comes_again_is_a_short_line_with_its_count(told: Told, now: list[float]) -> None:
    with logging_to(told) as log:
        for number in range(12):
            now[0] += 1
            log(Crashed("here", caught(f"number {number}")))
        log(Crashed("here", caught("another", KeyError)))
    assert [line["count"] for line in told.said] == [*range(1, 13), 1]
    full = [line["count"] for line in told.said if "Traceback" in str(line["error"])]
    assert full == [1, 10, 1]
    assert told.said[1]["error"] == "ValueError: number 1"


@pytest.mark.parametrize("form", ["json", "console"])
def test_of_a_group_the_first_member_is_what_is_said_in_short(told: Told, form: str) -> None:
    with logging_to(told, Config(log_format=form)) as log:
        for _ in range(2):
            log(Crashed("here", ExceptionGroup("outer", [ExceptionGroup("inner", [caught("two words")])])))
    assert "ValueError: two words" in told.lines[-1]
    assert "ValueError: two words" in told.lines[0]


def test_a_flood_of_crashes_is_summed_up_and_the_hundredth_is_told_in_full(told: Told, now: list[float]) -> None:
    with logging_to(told) as log:
        for _ in range(150):
            log(Crashed("here", caught("x")))
    full = [line["count"] for line in told.said if "Traceback" in str(line.get("error"))]
    assert full == [1, 10, 100]
    assert told.names[-1] == "CrashedMore"
    assert len(told.said) == 3 + RATES["Crashed"] + 1


def test_for_a_person_a_traceback_stands_below_its_line(told: Told) -> None:
    with logging_to(told, Config(log_format="console")) as log:
        log(Crashed("here", caught("two\nlines"), "3f2a"))
    first, *below = told.lines
    assert "[error    ] Crashed" in first
    assert "error='ValueError: two\\nlines'" in first
    assert below[0] == f"{MARGIN}Traceback (most recent call last):"
    assert all(line.startswith(MARGIN) for line in below)


def test_a_huge_traceback_is_cut_in_the_middle(told: Told) -> None:
    with logging_to(told) as log:
        log(Crashed("here", caught(f"{'x' * 10**6} the end")))
    error = str(told.said[0]["error"])
    assert error.startswith("Traceback")
    assert error.endswith("the end\n")
    assert len(error) < TRACEBACK_LIMIT + 100


# -- what others say -----------------------------------------------------------------------------------------------------


def test_logging_warnings_and_lost_exceptions_are_lines_too(told: Told, now: list[float]) -> None:
    def fail() -> None:
        raise KeyError("in a thread")

    class Bad:
        def __del__(self) -> None:
            raise OSError("in a destructor")

    with logging_to(told):
        logging.getLogger("trio_websocket").warning("odd %s", "frame")
        logging.getLogger("x").debug("may hold what a client says")
        logging.getLogger("x").critical("words %s %s", "too few")
        logging.getLogger("x").warning("y" * 10**5)
        warn("old", FutureWarning)
        try:
            raise ValueError("seen")
        except ValueError:
            logging.getLogger("x").exception("failed")
        thread = threading.Thread(target=fail, name="worker")
        thread.start()
        thread.join()
        Bad()
    odd, few, long, old, failed, thread_, destructor = told.said
    assert (odd["event"], odd["level"], odd["logger"], odd["message"]) == (
        "Logged",
        "warning",
        "trio_websocket",
        "odd frame",
    )
    assert (few["level"], str(few["message"])[:11]) == ("error", "words %s %s")
    assert len(str(long["message"])) == TEXT_LIMIT
    assert (old["event"], old["category"], old["message"]) == ("Warned", "FutureWarning", "old")
    assert old["file"] == "test_logs.py"
    assert (failed["level"], failed["count"]) == ("error", 1)
    assert "ValueError: seen" in str(failed["error"])
    assert (thread_["event"], thread_["where"]) == ("Crashed", "thread worker")
    assert "KeyError: 'in a thread'" in str(thread_["error"])
    assert "OSError: in a destructor" in str(destructor["error"])


def test_what_was_there_before_is_there_again() -> None:
    root = logging.getLogger()
    before = list(root.handlers), root.level, warnings.showwarning, threading.excepthook, sys.unraisablehook
    with open_log(JSON):
        assert len(root.handlers) == 1
    assert (list(root.handlers), root.level, warnings.showwarning, threading.excepthook, sys.unraisablehook) == before


async def test_a_server_inside_a_program_touches_nothing_of_it(fake: Backend) -> None:
    root = logging.getLogger()
    before = list(root.handlers), root.level, warnings.showwarning, threading.excepthook, sys.unraisablehook
    async with fake.serve(log_level="debug") as server:
        assert (await ask(server, "hello")).code == 1000
        assert (
            list(root.handlers),
            root.level,
            warnings.showwarning,
            threading.excepthook,
            sys.unraisablehook,
        ) == before


def test_nothing_but_the_commands_imports_structlog() -> None:
    code = "import sys, trio_claude.server, trio_claude.embed, trio_claude.engine; print('structlog' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"False\n"


# -- context --------------------------------------------------------------------------------------------------------------


async def test_names_go_with_what_is_told_through_nurseries_and_threads(told: Told) -> None:
    async def work(number: int) -> None:
        with context.Bound(run=str(number), meta=f"T-{number}"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tell, number)
                nursery.start_soon(trio.to_thread.run_sync, logging.getLogger("x").warning, f"{number}")

    async def tell(number: int) -> None:
        await trio.lowlevel.checkpoint()
        warn(f"{number}")

    with logging_to(told), context.Bound(identity="key:alice"):
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(work, number)
        logging.getLogger("x").warning("none")
    *inner, outer = told.said
    assert len(inner) == 8
    for line in inner:
        assert (line["run"], line["meta"], line["identity"]) == (line["message"], f"T-{line['message']}", "key:alice")
    assert "run" not in outer
    assert outer["identity"] == "key:alice"


async def test_whatever_a_run_tells_has_its_names(fake: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library's word, and a service's, in the midst of a run."""
    seen: list[dict[str, str]] = []
    async with fake.serve() as server:
        fake_events = fake.events
        monkeypatch.setattr("trio_claude.telling.Teller.read", lambda *_: seen.append(dict(context.current())))
        await ask(server, "hello", meta="TASK-7")
    (ended,) = fake.ended
    assert seen
    assert all(names["run"] == ended.run and names["meta"] == "TASK-7" for names in seen)
    opened = next(event for event in fake_events if isinstance(event, ConnectionOpened))
    assert (seen[0]["identity"], seen[0]["peer"]) == ("local", opened.peer)
    assert context.current() == {}


async def test_a_refusal_is_told_with_the_address_it_came_from(fake: Backend) -> None:
    seen: list[dict[str, str]] = []

    def hear(event: Event) -> None:
        if isinstance(event, Refused):
            seen.append(dict(context.current()))

    config = Config(port=0, cli=fake.program, cwd=str(fake.cwd))
    async with open_server(config, [hear], environ=fake.environ) as server:
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
            ours = stream.socket.getsockname()[1]
            await stream.send_all(head(host="elsewhere"))
            await stream.receive_some()
    assert seen == [{"peer": f"127.0.0.1:{ours}"}]


async def test_a_crash_inside_a_run_is_told_with_the_run(fake: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise LookupError("a bug")

    async with fake.serve() as server:
        monkeypatch.setattr("trio_claude.telling.Teller.hear", fail)
        await ask(server, "hello")
        await until(lambda: any(isinstance(event, Crashed) for event in fake.events))
    (crashed,) = [event for event in fake.events if isinstance(event, Crashed)]
    (ended,) = fake.ended
    assert crashed.run == ended.run
    assert fake.left() == []


# -- secrets ---------------------------------------------------------------------------------------------------------------

KEY = PREFIX + "a1-B_" * 8
TOKEN = "eyJhbGciOiJIUzI1NiIsImtpZCI6ImEifQ.eyJpc3MiOiJpIiwic3ViIjoidG9tIn0.c2lnbmF0dXJl-_abc"
API_KEY = "sk-ant-api03-AbCdEf_0123456789-xyz"


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (KEY, KEY),
        (TOKEN, TOKEN),
        (API_KEY, API_KEY),
        ("Authorization: Bearer abcdefgh-ijklmnop", "abcdefgh"),
        ("authorization: bEaReR\tabcdefgh-ijklmnop", "abcdefgh"),
        ('{"Authorization": "Bearer abcdefgh-ijklmnop"}', "abcdefgh"),
        ("claude.v1, bearer.YWJjZGVmZ2hpamtsbW5vcA", "YWJjZGVm"),
        ("claude.v1, ticket.YWJjZGVmZ2hpamtsbW5vcA", "YWJjZGVm"),
        (f"x\n{API_KEY}", API_KEY),
        (f"x\n{TOKEN.partition('.')[0]}", TOKEN.partition(".")[0]),
    ],
)
def test_what_looks_like_a_key_is_hidden_wherever_it_stands(told: Told, form: str, text: str, secret: str) -> None:
    with logging_to(told, Config(log_format=form)) as log, context.Bound(meta=text):
        log(Refused(400, text))
        log(ConnectionOpened("a", f"/{text}"))
        logging.getLogger("x").warning("got %s", {"header": text})
        warn(text)
        log(Crashed(text, caught(text)))
        log(RunEnded("r", "T", 1.0, Outcome(Reason.FAILED, 1, None, 0, 0, RECEIPT, cause=text)))
    assert secret not in told.text
    assert told.text.count(HIDDEN) >= 12
    assert form == "console" or len(told.said) == 6


@pytest.mark.parametrize(
    "text", ["eyJ", "bearer", "bearer ", "ticket.", "sk-ant-", "tck_", "eyJ.", "bearer'", "eyJa-", "bearer.\\n"]
)
def test_a_text_that_is_nearly_a_key_costs_no_more_than_its_length(text: str) -> None:
    began = time.process_time()
    hide(text * 20_000)
    assert time.process_time() - began < 1


def test_what_is_no_key_stays() -> None:
    for text in (
        "a valid key or token is needed: Authorization: Bearer …",
        "the bearer of news",
        "TASK-1",
        "/ws/claude",
    ):
        assert hide(text) == text


@pytest.mark.parametrize("form", ["json", "console"])
async def test_what_a_cli_says_of_its_end_is_not_in_it(fake: Backend, told: Told, form: str) -> None:
    died = directive("stderr", text="a canary") + directive("exit", status=3)
    failed = directive("raw", text='{"type":"result","is_error":true,"result":"a canary"}\n')
    with logging_to(told, Config(log_format=form, log_level="debug")) as log:
        async with fake.serve() as server:
            assert "a canary" in str((await ask(server, died)).errors)
            await ask(server, failed)
        for event in fake.events:
            log(event)
    assert "TurnEnded" in told.text
    assert "the CLI exited with status 3" in told.text
    assert "canary" not in told.text


def test_what_holds_a_secret_or_a_prompt_does_not_show_it() -> None:
    canary = "canary-1234"
    request = Request("POST", "/x", {"q": canary}, {"authorization": canary}, canary.encode())
    prompt = Prompt(prompt=canary, meta="T", options=Options(system_prompt=canary, append_system_prompt=canary))
    for held in (request, prompt, Identity("key:a", credential=canary), Key("0" * 64)):
        assert canary not in repr(held)
        assert "0" * 64 not in repr(held)


# -- a real server -----------------------------------------------------------------------------------------------------------


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def names_of(path: Path) -> list[object]:
    return [line["event"] for line in lines_of(path)]


async def test_sighup_changes_level_format_and_access_log(fake: Backend, folder: Path) -> None:
    settings, log = folder / "server.toml", folder / "log"
    settings.write_text('log_level = "error"\n')
    with log.open("wb") as stderr:
        words = ["serve", "--port", "0", "--config", str(settings)]
        async with serving(*words, env=environ(fake), stderr=stderr.fileno()) as (process, url):
            await trio_claude("ask", "hello", "--url", url)
            assert log.read_bytes() == b""
            settings.write_text('log_level = "debug"\naccess_log = true\n')
            process.send_signal(signal.SIGHUP)
            await until(lambda: looked(url) and "Answered" in names_of(log), 20)
            await trio_claude("ask", directive("stderr", text="a-secret-prompt"), "--url", url)
            last = {"FirstLine", "RunStarted", "RunEnded", "ConnectionClosed"}
            await until(lambda: last <= set(names_of(log)))
            answered = next(line for line in lines_of(log) if line["event"] == "Answered")
            assert (answered["method"], answered["path"], answered["status"], answered["level"]) == (
                "GET",
                "/healthz",
                200,
                "info",
            )
            settings.write_text('log_level = "loud"\n')
            process.send_signal(signal.SIGHUP)
            await until(lambda: "Reloaded" in names_of(log))
            assert "log_level must be one of debug, info, warning, error" in str(lines_of(log)[-1]["error"])
            before = len(log.read_bytes())
            settings.write_text('log_format = "console"\n')
            process.send_signal(signal.SIGHUP)
            await trio.sleep(0.3)
            await trio_claude("ask", "hello", "--url", url)
            await until(lambda: b"RunEnded" in log.read_bytes()[before:])
    later = log.read_bytes()[before:]
    assert b"[info     ] RunEnded" in later
    assert b"FirstLine" not in later
    assert b"a-secret-prompt" not in log.read_bytes()


def looked(url: str) -> bool:
    return httpx.get(f"{url}/healthz", trust_env=False).status_code == 200
