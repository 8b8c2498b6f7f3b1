"""Rule: one event is one line of JSON; a log that nobody reads drops lines, counts them, and holds nobody up."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
from pathlib import Path

import pytest

from trio_claude.errors import Reason
from trio_claude.events import Crashed, Outcome, Receipt, Refused, RunEnded, Strained
from trio_claude.logs import QUEUE_LIMIT, REFUSALS, open_log, render

RECEIPT = Receipt(seen=7, killed=6, survivors=0, ms=12.5, containment="supervisor")
OUTCOME = Outcome(Reason.EXIT, 0, None, 3, 0, RECEIPT)


def test_an_event_is_one_line_with_the_facts_in_it() -> None:
    said = json.loads(render(RunEnded("r", "TASK-1", 1.5, OUTCOME)))
    assert said.pop("time") > 0
    assert said == {
        "event": "RunEnded", "run": "r", "meta": "TASK-1", "seconds": 1.5, "identity": "local", "door": "claude",
        "turns": 0, "tokens": 0, "dollars": 0.0, "bytes": 0,
        "outcome": {
            "reason": "exit", "exit_status": 0, "signal": None, "lines": 3, "encoding_errors": 0, "error": None,
            "after_result": False,
            "receipt": {"seen": 7, "killed": 6, "survivors": 0, "ms": 12.5, "containment": "supervisor"},
        },
    }  # fmt: skip


def test_a_crash_is_one_line_with_its_traceback() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        line = render(Crashed("here", error))
    assert "\n" not in line
    assert "ValueError: two\nlines" in json.loads(line)["error"]


def test_lines_come_out_in_order_and_all_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with open_log() as log:
        for number in range(100):
            log(Strained(str(number), over=False))
    assert [json.loads(line)["what"] for line in capsys.readouterr().err.splitlines()] == list(map(str, range(100)))


def test_what_nobody_reads_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A pipe that is full blocks the writer, and nobody else."""
    os.mkfifo(tmp_path / "log")
    reader = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
    with open(tmp_path / "log", "w") as pipe:
        monkeypatch.setattr(sys, "stderr", pipe)
        with open_log() as log:
            for _ in range(4 * QUEUE_LIMIT):
                log(Strained("x" * 200, over=False))
            os.set_blocking(reader, True)
            found = io.BytesIO()
            drain = threading.Thread(target=_drain, args=(reader, found), daemon=True)
            drain.start()
    drain.join(5)
    lines = [json.loads(line) for line in found.getvalue().splitlines()]
    written = sum(line["event"] == "Strained" for line in lines)
    assert QUEUE_LIMIT <= written < 4 * QUEUE_LIMIT
    assert written + sum(line.get("lines", 0) for line in lines) == 4 * QUEUE_LIMIT


def _drain(reader: int, found: io.BytesIO) -> None:
    while data := os.read(reader, 65536):
        found.write(data)
    os.close(reader)


def test_many_refusals_are_summed_up(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [7.0]
    monkeypatch.setattr("trio_claude.logs.time.monotonic", lambda: now[0])
    with open_log() as log:
        for _ in range(500):
            log(Refused(401, "unauthorized: x"))
        log(Strained("y", over=False))
        now[0] = 8.0
        log(Refused(403, "origin: x"))
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["event"] for line in lines] == ["Refused"] * REFUSALS + ["Strained", "RefusedMore", "Refused"]
    assert (lines[-2]["left_out"], lines[-2]["by_status"]) == (500 - REFUSALS, {"401": 500})
