"""Rule: whatever clients, CLIs and the machine do for how long: nothing is left, lost, told twice, or grows.

The short form; `python benchmarks/soak.py --minutes 30` goes on. That the soak sees what it looks for is tested too.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import attrs
import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from soak import Growth, endings, judge_growth
from soaking.truth import INVARIANTS, Run, Truth, drift
from soaking.wire import Seen, Stretch

from trio_claude.journal.facts import Begun, End, Part, PartKind
from trio_claude.journal.store import Store

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SEED = os.environ.get("SOAK_SEED") or secrets.token_hex(4)


def soak(folder: Path, minutes: float) -> tuple[int, dict[str, Any]]:
    """Soak for so long; return the exit status and what is told."""
    print(f"SOAK_SEED={SEED}")
    told = folder / "told"
    program = [sys.executable, str(BENCHMARKS / "soak.py"), "--quiet", "--real-share", "0", "--clients", "4"]
    more = ["--minutes", str(minutes), "--seed", SEED, "--json", str(told)]
    done = subprocess.run([*program, *more], capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    return done.returncode, json.loads(told.read_text())


def test_all_holds_whatever_happens(folder: Path, long: bool) -> None:
    status, told = soak(folder, 5 if long else 0.25)
    assert told["wrong"] == {}
    assert status == 0
    assert {name for name in INVARIANTS if not told["checked"].get(name)} == set()
    assert {"kill", "rest", "drain"} <= set(told["phases"]) <= {"kill", "rest", "drain", "hurry"}
    assert all(growth["first"] > 0 for growth in told["growth"])


HIDING = """
import os, subprocess, sys, time
sys.path[:0] = sys.argv[1:]
from soaking.house import Family, adopt_orphans
adopt_orphans()
subprocess.run(["/bin/sh", "-c", "setsid env -i /bin/sh -c 'sleep 60 & exec sleep 60' & exit 0"], check=True)
found = []
while len(found) < 2:
    time.sleep(0.02)
    found = Family.of(0).others
print(len(found))
for pid in found:
    os.kill(pid, 9)
"""


def test_nothing_hides_from_the_soak() -> None:
    paths = [str(BENCHMARKS), str(BENCHMARKS.parent / "tests" / "support")]
    words = [sys.executable, "-c", HIDING, *paths]
    told = subprocess.run(words, capture_output=True, text=True, check=True, timeout=30)
    assert told.stdout.strip() == "2"


# -- what is held against log, journal and clients ---------------------------------------------------------------------

RECEIPT = {"seen": 1, "killed": 0, "survivors": 0, "ms": 1.0, "containment": "supervisor"}
END = End(
    id="a", ended=2.0, reason="exit", exit_status=0, signal=None, lines=3, encoding_errors=0, tokens=0, dollars=0.0,
    turns=1, error=None, receipt=RECEIPT,
)  # fmt: skip
LINES = [b"one", b"two", b"three"]


def judged(folder: Path, end: End | None = END, said: list[bytes] = LINES, **changed: Any) -> set[str]:
    """Have one run judged, of which something is changed; return which invariants do not hold."""
    store = Store(folder / "journal.db", "server")
    with store.transaction():
        facts = {"session": None, "started": 1.0, "prompt": "x", "options": {}}
        store.begin(Begun(id="a", identity="local", meta="M", door="claude", **facts))
        store.add("a", 1, Part(PartKind.LINES, 1, 3, b"\n".join(LINES)))
        if end:
            store.end(end)
    truth, run = Truth(folder / "journal.db"), Run("M", "prompt", "0", "claude", "a", starts=1, ends=1)
    run.outcome = {"reason": "exit", "receipt": RECEIPT, "lines": 3}
    seen = run.client()
    seen.take(said)
    seen.code, seen.reason = 1000, "exit 0; 1 process, 0 left, 1 ms"
    for name, value in changed.items():
        setattr(seen if hasattr(seen, name) else run, name, value)
    truth.runs[run.meta] = run
    truth.judge()
    store.close()
    return set(truth.wrong)


def test_a_good_run_is_good(folder: Path) -> None:
    assert judged(folder) == set()


def test_who_left_early_has_what_was_said_until_then(folder: Path) -> None:
    assert judged(folder, said=LINES[:2], partial=True, code=None) == set()


@pytest.mark.parametrize(
    ("changed", "wrong"),
    [
        ({"end": attrs.evolve(END, receipt={**RECEIPT, "survivors": 1})}, {"receipts"}),
        ({"end": attrs.evolve(END, receipt={**RECEIPT, "survivors": None})}, {"receipts"}),
        ({"end": attrs.evolve(END, whole=False)}, {"journal"}),
        ({"said": LINES[:2]}, {"lines"}),
        ({"said": [*LINES, b"four"]}, {"lines"}),
        ({"said": [b"two", b"one", b"three"]}, {"lines"}),
        ({"said": LINES[1:], "partial": True}, {"lines"}),
        ({"starts": 2, "ends": 2}, {"ends"}),
        ({"ends": 2}, {"ends"}),
        ({"ends": 0}, {"ends"}),
        ({"code": 1011}, {"answers"}),
        ({"reason": "exit 0; 2 processes, 1 left, 1 ms"}, {"receipts"}),
        ({"outcome": {"reason": "exit", "receipt": RECEIPT, "lines": 4}}, {"receipts"}),
        ({"meta": "OTHER"}, {"journal"}),
    ],
)
def test_a_bad_run_is_seen(folder: Path, changed: dict[str, Any], wrong: set[str]) -> None:
    assert judged(folder, **changed) == wrong


def test_a_run_without_an_end_is_seen(folder: Path) -> None:
    assert judged(folder, end=None) >= {"ends", "receipts"}


def test_a_run_whose_server_was_killed_is_good_and_its_end_counted(folder: Path) -> None:
    killed = Store(folder / "journal.db", "killed")
    with killed.transaction():
        killed.begin(
            Begun(id="a", identity="local", meta="M", door="claude", session=None, started=1.0, prompt="x", options={})
        )
    killed.close()
    Store(folder / "journal.db", "next").close()
    truth = Truth(folder / "journal.db", killed=time.monotonic() + 10)
    truth.runs["M"] = Run("M", "prompt", "0", "claude", "a", starts=1)
    truth.runs["M"].client(after=176)  # has itself heard nothing of what another had up to there
    truth.judge()
    assert dict(truth.wrong) == {}
    truth.judge()
    assert dict(truth.wrong) == {"ends": 1}  # no more ends were counted


# -- what a client hears -----------------------------------------------------------------------------------------------


def fake(*numbers: int) -> list[bytes]:
    return [b'{"type":"fake","n":%d,"pad":""}' % number for number in numbers]


RESULT = b'{"type":"result","subtype":"success"}'


@pytest.mark.parametrize(
    "frames",
    [fake(1, 3), fake(1, 1), fake(1, 2, 1), fake(2), [*fake(1, 2), RESULT]],
    ids=["lost", "twice", "again", "first", "last"],
)
def test_a_client_sees_what_is_wrong_with_numbered_lines(frames: list[bytes]) -> None:
    seen = Seen("session")
    seen.wanted = 3
    seen.take(frames)
    assert seen.faults


def test_a_client_counts_what_is_right() -> None:
    seen = Seen("session")
    for wanted in (3, 2):
        seen.wanted = wanted
        seen.take([*fake(*range(1, wanted + 1)), b'{"type":"gateway","event":"stderr","line":"x","after":1}', RESULT])
    assert (seen.faults, seen.last, seen.results) == ([], 7, 2)


@pytest.mark.parametrize(("owner", "first", "wrong"), [(True, 3, True), (False, 3, False), (False, 4, True)])
def test_a_gap_is_a_viewers_alone_and_right_behind_what_it_has(owner: bool, first: int, wrong: bool) -> None:
    seen = Seen("session", owner=owner)
    seen.take([*fake(1, 2), b'{"type":"gateway","event":"gap","from":%d,"to":9}' % first, *fake(10)])
    assert bool(seen.faults) == wrong
    assert (seen.last, len(seen.stretches)) == (10, 2)


def test_a_digest_does_not_depend_on_how_lines_come() -> None:
    one, other = Stretch(1), Stretch(1)
    one.add(fake(1, 2, 3))
    for line in fake(1, 2, 3):
        other.add([line])
    assert (one.digest, one.last) == (other.digest, other.last)
    other.add(fake(4))
    assert one.digest != other.digest


def test_growth_over_its_bound_is_a_violation(folder: Path) -> None:
    truth = Truth(folder / "journal.db")
    judge_growth(truth, [Growth("tasks", "tasks", *drift([9, 1, 1, 2, 3]), 1), Growth("few", "memory", *drift([1]), 0)])
    assert dict(truth.wrong) == {"tasks": 1}
    judge_growth(truth, [Growth("tasks", "tasks", *drift([9, 1, 1, 2, 2]), 1)])
    assert dict(truth.checked) == {"tasks": 2}
    assert dict(truth.wrong) == {"tasks": 1}


@pytest.mark.parametrize("count", [6, 7, 12, 72])
def test_many_phases_are_one_life(count: int) -> None:
    for seed in range(20):
        hows = endings(count, random.Random(seed))
        assert len(hows) == count
        assert hows[-1] == "drain"
        assert hows.count("kill") >= 2
        lives = " ".join(hows).replace("kill", "drain").replace("hurry", "drain").split("drain")
        assert max(1 + life.split().count("rest") for life in lives) >= 0.4 * count
