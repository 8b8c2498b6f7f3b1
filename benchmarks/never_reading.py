"""Clients that read nothing, flood pings and send second messages: what they cost a well-behaved one.

A well-behaved client reads 100 lines a second, each stamped by the child when it was written. Its latencies are taken
in four phases: alone; while `--clients` of the others come and start their CLIs, all at once; while these flood, the
CLIs with lines until every buffer is full and the clients with pings; and when all stand still. Also printed: the
server's memory, and how soon the end of a run is acted on when such a client leaves. For comparison the same crowd then
floods another server on the same machine: what the well-behaved client feels of that is the machine's doing, not the
server's. The CLI is a fake in C, and the well-behaved client a program of its own. Needs a C compiler.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from pathlib import Path

import attrs
import trio
from common import Subject, connect, machine, masked, median, prompt, serving
from suite.native import compiled

RATE = 100
"""Lines a second of the well-behaved client."""
SIZE = 300
SKIP = 50
"""Its first lines, which do not count."""
PINGS = 5000
"""Pings that each of the others sends at once."""


@attrs.frozen
class Late:
    """Latencies in milliseconds."""

    p50: float
    p99: float

    def __str__(self) -> str:
        return f"{self.p50:.2f}/{self.p99:.2f} ms"


async def latencies(load: Path, port: int, lines: int) -> Late:
    """Return the latencies of a well-behaved client that reads so many lines."""
    words = {"port": port, "path": "/ws/claude?frames=verbatim", "total": 1, "at_once": 1, "info": 1, "limit": 60}
    asked = {**words, "prompt": f"{lines + SKIP} {RATE} {SIZE}", "lines": lines + SKIP, "skip": SKIP}
    given = [f"{name}={value}" for name, value in asked.items()]
    told = await trio.run_process([str(load), *given], capture_stdout=True)
    end = json.loads(told.stdout.splitlines()[-1])
    if end["failed"] or end["lost"] or end["reordered"]:
        raise RuntimeError(f"the well-behaved client was harmed: {end}")
    return Late(end["latency"]["p50"] / 1000, end["latency"]["p99"] / 1000)


async def flooder(port: int, at: int, leave: trio.Event) -> None:
    """Be a client that reads nothing, and floods from the monotonic time `at` (ns) on, as its CLI does."""
    stream = await connect(port)
    async with stream:
        await stream.send_all(prompt(f"100000000 0 500 exit {at}"))
        await trio.sleep((at - time.monotonic_ns()) / 1e9)
        await stream.send_all(masked(9, b"flood") * PINGS + masked(1, b"{}"))
        await leave.wait()
        await stream.send_all(masked(8, b"\x03\xe8"))


@attrs.frozen
class Crowd:
    """What was seen beside a crowd: latencies in each phase, memory in KiB, milliseconds to its end."""

    coming: Late
    flooding: Late
    standing: Late
    memory: int
    ended: float


async def crowd(load: Path, subject: Subject, clients: int, lines: int, port: int | None = None) -> Crowd:
    """Let a crowd come, flood, stand and leave beside a well-behaved client, whose server may be another, at `port`."""
    leave, seconds = trio.Event(), (lines + SKIP) / RATE
    at = time.monotonic_ns() + int(1.5 * seconds * 1e9)
    before = len(subject.events("RunEnded"))

    async def come() -> None:
        await trio.sleep(2 * SKIP / RATE)
        for _ in range(clients):
            nursery.start_soon(flooder, subject.port, at, leave)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come)
        coming, flooding, standing = [await latencies(load, port or subject.port, lines) for _ in range(3)]
        memory, left = subject.rss(), time.time()
        leave.set()
    with trio.fail_after(30):
        while len(ended := subject.events("RunEnded")) < before + clients + (0 if port else 3):
            await trio.sleep(0.02)
    late = max(float(str(event["time"])) for event in ended[-clients:]) - left
    return Crowd(coming, flooding, standing, memory, late * 1000)


async def main(clients: int, lines: int, rounds: int) -> None:
    """Print the figures."""
    print(f"never-reading clients: {clients}; fake CLI; {machine()}")
    quiets, found, elsewhere, one = [], [], [], []
    with compiled() as native:
        words = ("--max-runs", str(clients + 5), "--cli", str(native.cli))
        async with serving(*words) as subject, serving(*words) as other:
            quiet_memory = subject.rss()
            for _ in range(rounds):
                quiets.append(await latencies(native.load, subject.port, lines))
                found.append(await crowd(native.load, subject, clients, lines))
                elsewhere.append(await crowd(native.load, other, clients, lines, subject.port))
                one.append((await crowd(native.load, subject, 1, 2 * SKIP)).ended)
                print(
                    f"p50/p99 quiet {quiets[-1]}, while they come {found[-1].coming}, flood {found[-1].flooding}, "
                    f"stand {found[-1].standing}, flood another server {elsewhere[-1].flooding}; "
                    f"RSS {quiet_memory} -> {found[-1].memory} KiB; "
                    f"all {clients} runs ended {found[-1].ended:.0f} ms after leaving, one {one[-1]:.0f} ms"
                )
    for phase in ("coming", "flooding", "standing"):
        ratios = [getattr(seen, phase).p99 / quiet.p99 for quiet, seen in zip(quiets, found, strict=True)]
        others = [getattr(seen, phase).p99 / quiet.p99 for quiet, seen in zip(quiets, elsewhere, strict=True)]
        print(f"{phase}: median of the p99 ratios {median(ratios):.2f}, of another server's crowd {median(others):.2f}")
    print(f"one run's end acted on within {median(one):.0f} ms (median)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--lines", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    try:
        trio.run(main, options.clients, options.lines, options.rounds)
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"the load client failed: {error}") from error
