"""What history costs: the relay with a journal and without, side by side; how fast it is told again; what is durable.

    python benchmarks/history.py [--part bulk|relay|replay|durable ...] [--rounds 5] [--kills 30]

1. `bulk`: lines of 200 bytes at full speed, on one connection and on twenty, as `relay.py` measures it, so many that
   one run is kept whole (60 MB). Six times the rounds; each is a pass at a server with a journal and one without, one
   right behind the other, so that a machine that is slow for a while is so for both. A pass of which a line was not
   stored fails.
2. `relay`: runs that say one line; sessions to their `started`. Rounds alternate, each with a fresh server.
3. `replay`: 100,000 stored lines of 200 bytes, by `attach` and by GET /api/runs/ID/lines.
4. `durable`: a run says 2,000 lines a second and its server is killed (SIGKILL) at a random moment; what its client had
   by then and the journal has not was at risk. Until then a process beside looks which line is stored when. Half of the
   kills with another process that writes and syncs on the same disk.

The CLI is fake in all of it. It needs a C compiler. The journal lies in the folder for temporary files.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import socket
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
from common import HANDSHAKE, HERE, machine, masked, percentile
from suite.client import Client
from suite.load import Load, Lost
from suite.native import Native, compiled
from suite.peers import BY_NAME, OURS, Peer
from suite.report import aligned, table
from suite.runner import Runner
from suite.scenario import MILLION, Figures, Metric, Scenario, script
from suite.subject import Subject, running

SIZE = 200
LINES = 300_000
CONNECTIONS = 20
PASSES = 6
"""Pairs of passes in a round."""
SHORT_RUNS = 300
SESSIONS = 100
STORED = 100_000
REPLAYS = 7
RATE = 2000
STORE_BOUND = 30.0
"""Seconds within which everything must be stored."""
JOURNAL = "journal.db"
FORGET = "DELETE /api/runs HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"
LATEST = "SELECT SUM(stored) FROM (SELECT stored FROM runs ORDER BY started DESC LIMIT ?)"


def _peer(name: str, title: str, *words: str) -> Peer:
    """Return our server with further words."""
    ours = BY_NAME[OURS]
    return attrs.evolve(
        ours, name=name, title=title, command=lambda native, cli, port: [*ours.command(native, cli, port), *words]
    )


WITHOUT = _peer(OURS, "without history")
WITH = _peer("history", "with history", "--journal", f"sqlite:{JOURNAL}")
PEERS = {peer.name: peer for peer in (WITHOUT, WITH)}


# -- 1: lines in bulk --------------------------------------------------------------------------------------------------


def journal_of(subject: Subject) -> Path:
    """Return where a server's journal is, if it has one."""
    return Path(f"/proc/{subject.pid}/cwd").readlink() / JOURNAL


def await_stored(journal: Path, runs: int, lines: int) -> None:
    """Wait until the latest runs are stored to their last lines. Raises Lost."""
    until = time.monotonic() + STORE_BOUND
    with contextlib.closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as db:
        while (stored := db.execute(LATEST, (runs,)).fetchone()[0]) != lines:
            if time.monotonic() > until:
                raise Lost(f"void: {stored} of {lines} lines stored")
            time.sleep(0.01)


def pass_lines(subject: Subject, connections: int, lines: int, rate: float = 0) -> tuple[float, float]:
    """Return million lines a second, and CPU microseconds of the server a line, until all are stored.

    With `rate` each connection gets so many lines a second, else as many as there can be.
    """
    at = time.monotonic_ns() + int((0.5 + 0.05 * connections) * 1e9)
    words = {"total": connections, "at_once": connections, "lines": lines, "hold": 1, "limit": 60}
    with Load(subject, prompt=script(lines, rate, SIZE, stay=True, at=at), **words) as client:
        client.event("started")
        before = subject.cpu()
        if time.monotonic_ns() > at:
            raise Lost("not all runs were started in time")
        client.event("complete")
        if journal_of(subject).exists():
            await_stored(journal_of(subject), connections, connections * lines)
        used = subject.cpu().since(before)
        end = client.leave()
    if end["lost"] + end["reordered"] + end["other"]:
        raise Lost(f"lines are lost or out of order: {end}")
    passed = connections * (lines - 1)
    return passed / end["span_s"] / MILLION, used.server / passed * MILLION


def forget(subject: Subject) -> None:
    """Delete what was stored."""
    with socket.create_connection(("127.0.0.1", subject.port), 10) as stream:
        stream.sendall(FORGET.format(port=subject.port).encode())
        answer = b"".join(iter(lambda: stream.recv(65536), b""))
    if not answer.startswith(b"HTTP/1.1 200"):
        raise Lost(f"what is stored can't be deleted: {answer[:200]!r}")


def bulk(native: Native, passes: int) -> None:
    """Measure and tell."""
    titles = [peer.title for peer in PEERS.values()]
    rows = [["", *titles, "ratio", "from", "to", *(f"CPU {title}" for title in titles)]]
    with contextlib.ExitStack() as servers:
        subjects = [servers.enter_context(running(peer, native, native.cli, os.environ)) for peer in PEERS.values()]
        for subject in subjects:  # what compiles while it runs does so now
            pass_lines(subject, 1, LINES // 6)
        for connections in (1, CONNECTIONS):
            pairs = [_pair(subjects, connections, turned=bool(turn % 2)) for turn in range(passes)]
            rates = [[rate for rate, _ in side] for side in zip(*pairs, strict=True)]
            ratio = sorted(with_ / without for without, with_ in zip(*rates, strict=True))
            cpu = [statistics.median(used for _, used in side) for side in zip(*pairs, strict=True)]
            shown = [*map(statistics.median, rates), *(percentile(ratio, share) for share in (0.5, 0.25, 0.75)), *cpu]
            rows.append([f"{connections} × {LINES // connections:,}", *(f"{value:.2f}" for value in shown)])
    print(f"Lines of {SIZE} bytes at full speed (fake): M lines/s, the ratio of each pair, µs of the server a line;")
    print(f"medians of {passes} pairs, and half of all ratios lie from … to")
    print(aligned(rows), end="\n\n", flush=True)


def _pair(subjects: list[Subject], connections: int, *, turned: bool) -> list[tuple[float, float]]:
    """Take a pass at each, one right behind the other; return them in the order of the subjects."""
    taken = []
    for subject in reversed(subjects) if turned else subjects:
        taken.append(pass_lines(subject, connections, LINES // connections))
        if journal_of(subject).exists():
            forget(subject)
    return taken[::-1] if turned else taken


# -- 2: what is short --------------------------------------------------------------------------------------------------


def _first_lines(subject: Subject) -> Figures:
    with Load(subject, total=SHORT_RUNS, at_once=1, prompt=script(1, 0, SIZE)) as client:
        took = client.end()["to_first"]
    return {"first_p50": took["p50"] / 1000, "first_p99": took["p99"] / 1000}


def frame(**said: object) -> bytes:
    """Return a session's message to the gateway."""
    return masked(1, json.dumps({"type": "gateway", **said}).encode())


def _start(subject: Subject) -> float:
    """Return the milliseconds from a session's start to its `started`."""
    with socket.create_connection(("127.0.0.1", subject.port), 10) as stream:
        stream.sendall(HANDSHAKE.format(path="/ws/session", port=subject.port).encode())
        while b'"hello"' not in stream.recv(65536):
            pass
        began = time.perf_counter()
        stream.sendall(frame(op="start", meta="BENCH"))
        while b'"started"' not in stream.recv(65536):
            pass
        took = time.perf_counter() - began
        stream.sendall(frame(op="stop", mode="kill"))
        while b'"ended"' not in stream.recv(65536):
            pass
    return took * 1000


def measure(subject: Subject, quick: bool) -> Figures:
    """Take the figures."""
    starts, first = [_start(subject) for _ in range(SESSIONS // 5 if quick else SESSIONS)], _first_lines(subject)
    return {**first, "start_p50": percentile(starts, 0.5), "start_p99": percentile(starts, 0.99)}


RELAY = Scenario(
    "history",
    "Runs of one line; sessions",
    (
        Metric("first_p50", "prompt to first line, p50", "ms"),
        Metric("first_p99", "prompt to first line, p99", "ms"),
        Metric("start_p50", "session's start, p50", "ms"),
        Metric("start_p99", "session's start, p99", "ms"),
    ),
    measure,
)


def relay(native: Native, rounds: int) -> bool:
    """Measure and tell; return whether no round is void."""
    runner = Runner(native, list(PEERS.values()), rounds, quick=False)
    outcome = runner.run(RELAY, PEERS)
    rows = table(outcome, PEERS)
    print(f"\n{RELAY.title} ({RELAY.cli}); in brackets: how many times what it is without; medians of {rounds} rounds")
    print(aligned(rows), *outcome.failures, sep="\n", end="\n\n", flush=True)
    return not outcome.failures


# -- 3: told again -----------------------------------------------------------------------------------------------------


def _record(subject: Subject) -> str:
    """Have a run say what is told again; return its id."""
    with Load(subject, prompt=script(STORED, 0, SIZE), lines=STORED) as client:
        client.end()
    await_stored(journal_of(subject), 1, STORED)
    with contextlib.closing(sqlite3.connect(f"file:{journal_of(subject)}?mode=ro", uri=True)) as db:
        while not (found := db.execute("SELECT id FROM runs WHERE state = 'ended'").fetchone()):
            time.sleep(0.01)
    return str(found[0])


def _attach(subject: Subject, run: str) -> float:
    """Return lines a second from the `attach` to the last line."""
    say = json.dumps({"type": "gateway", "op": "attach", "run": run})
    session = attrs.evolve(subject, peer=attrs.evolve(subject.peer, path="/ws/session"))
    with Load(session, say=say, lines=STORED) as client:
        end = client.end()
    if end["lines"] != STORED or end["lost"] or end["reordered"]:
        raise Lost(f"{end['lines']} lines, {end['lost']} lost")
    return STORED / (end["span_s"] + end["to_first"]["max"] / MILLION)


def _page(port: int, path: str) -> tuple[int, str]:
    """Ask for a page; return how many lines it has, and the next."""
    with socket.create_connection(("127.0.0.1", port), 10) as stream:
        stream.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        chunks = list(iter(lambda: stream.recv(1 << 20), b""))
    head, _, body = b"".join(chunks).partition(b"\r\n\r\n")
    return body.count(b'{"n":'), head.partition(b"X-Next-Part: ")[2].partition(b"\r\n")[0].decode()


def _get(subject: Subject, run: str) -> float:
    """Return lines a second over all pages."""
    began, lines, part = time.perf_counter(), 0, "0"
    while part:
        count, part = _page(subject.port, f"/api/runs/{run}/lines?part={part}")
        lines += count
    if lines != STORED:
        raise Lost(f"{lines} lines")
    return lines / (time.perf_counter() - began)


def replay(native: Native) -> None:
    """Measure and tell."""
    with running(WITH, native, native.cli, os.environ) as subject:
        run = _record(subject)
        ways: dict[str, Callable[[Subject, str], float]] = {"attach": _attach, "GET …/lines": _get}
        rates = {name: [way(subject, run) for _ in range(REPLAYS)] for name, way in ways.items()}
    rows = [["", "M lines/s", "from", "to"]]
    for name, values in rates.items():
        rows.append([name, *(f"{value / MILLION:.3f}" for value in (statistics.median(values), *extent(values)))])
    print(f"{STORED:,} stored lines of {SIZE} bytes told again (fake); median of {REPLAYS}")
    print(aligned(rows), end="\n\n", flush=True)


def extent(values: list[float]) -> tuple[float, float]:
    """Return the least and the most."""
    return min(values), max(values)


# -- 4: what is durable ------------------------------------------------------------------------------------------------


@attrs.define
class Stream:
    """What a client has got of a run's lines, and when."""

    client: Client
    came: list[int] = attrs.Factory(list)

    def read(self) -> None:
        """Read to the end, which is a reset."""
        with contextlib.suppress(Lost, OSError):
            for line in self.client.frames():
                if line.data.startswith(b'{"type":"stream_event"'):
                    self.came.append(line.at)


@contextmanager
def child(name: str, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run one of the children here; it ends when its stdin does."""
    program = [sys.executable, "-I", "-S", str(HERE / "children" / f"{name}.py"), *words]
    process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        with process:
            process.kill()


def _kill(native: Native, wait: float) -> tuple[list[float], int]:
    """Kill a server in the middle of a stream; return each line's delay to the disk, in ms, and the lines at risk."""
    with running(WITH, native, native.cli, os.environ) as subject:
        journal = journal_of(subject)
        stream = Stream(Client(subject.port, subject.peer.path, 10.0))
        reader = threading.Thread(target=stream.read)
        with child("stored", str(journal)) as looks:
            stream.client.ask(script(10**6, RATE, SIZE, stay=True))
            reader.start()
            time.sleep(wait)
            subject.process.kill()
            killed = time.monotonic_ns()
            subject.process.wait()
            reader.join(10)
            told = looks.communicate(b"", 10)[0]
        with contextlib.closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as db:
            stored = db.execute(LATEST, (1,)).fetchone()[0] or 0
        heard = sum(at <= killed for at in stream.came)
        return delays(stream.came, told), max(0, heard - stored)


def delays(came: list[int], told: bytes) -> list[float]:
    """Return how many ms after it came each line was seen to be stored."""
    found: list[float] = []
    for line in told.splitlines():
        at, stored = map(int, line.split())
        found += [max(0, at - one) / 1e6 for one in came[len(found) : stored]]
    return found


def durable(native: Native, kills: int) -> None:
    """Measure and tell."""
    chance = random.Random(7)
    print(f"{RATE:,} lines a second, {kills} times killed at a random moment (fake)")
    rows = [["disk", "to the disk, p50, ms", "p99", "max", "at risk, lines, p50", "p99", "max"]]
    for name in ("idle", "another syncs"):
        late: list[float] = []
        risk: list[float] = []
        with contextlib.ExitStack() as beside, contextlib.ExitStack() as files:
            if name != "idle":
                path = Path(f"{os.environ.get('TMPDIR', '/tmp')}/tcb-writer-{os.getpid()}")
                files.callback(path.unlink)
                beside.enter_context(child("writer", str(path)))
            for _ in range(kills):
                found, lost = _kill(native, chance.uniform(0.3, 0.9))
                late += found
                risk.append(lost)
        shares = [percentile(late, 0.5), percentile(late, 0.99), max(late)]
        rows.append(
            [name, *(f"{value:.1f}" for value in shares), *(f"{percentile(risk, p):.0f}" for p in (0.5, 0.99, 1))]
        )
    print(aligned(rows), end="\n\n", flush=True)


def main() -> int:
    """Run the command line; return 1 where a round is void."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ["bulk", "relay", "replay", "durable"]
    parser.add_argument("--part", nargs="+", choices=parts, default=parts)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kills", type=int, default=30)
    words = parser.parse_args()
    print(machine())
    good = True
    with compiled() as native:
        if "bulk" in words.part:
            bulk(native, words.rounds * PASSES)
        if "relay" in words.part:
            good = relay(native, words.rounds)
        if "replay" in words.part:
            replay(native)
        if "durable" in words.part:
            durable(native, words.kills)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
