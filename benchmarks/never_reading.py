"""Clients that read nothing, flood pings and send second messages: what they cost a well-behaved one.

Prints, for a quiet server and for one with `--clients` such clients, the latency of a line at 100 lines a second, the
server's memory, and how soon the end of a run is acted on when such a client leaves. All figures are with a fake CLI.
"""

from __future__ import annotations

import argparse
import re
import time

import trio
from common import Subject, connect, machine, masked, median, percentile, prompt, serving

STAMP = re.compile(rb'"t":(\d+)')


async def latencies(port: int, lines: int) -> list[float]:
    """Return the milliseconds from a line's writing to its reading, for one client at 100 lines a second."""
    found = []
    stream = await connect(port)
    async with stream:
        await stream.send_all(prompt(f"{lines} 100 200"))
        while len(found) < lines:
            chunk = await stream.receive_some()
            now = time.monotonic_ns()
            found += [(now - int(stamp)) / 1e6 for stamp in STAMP.findall(chunk)]
    return found


async def flooder(port: int, started: trio.Event, leave: trio.Event) -> None:
    """Be a client that reads nothing."""
    stream = await connect(port)
    async with stream:
        await stream.send_all(prompt("100000000 0 500"))
        await trio.sleep(0.5)
        await stream.send_all(masked(9, b"flood") * 200 + masked(1, b"{}"))
        started.set()
        await leave.wait()
        await stream.send_all(masked(8, b"\x03\xe8"))


async def _wait_still(subject: Subject) -> None:
    """Wait until the kernel's buffers are full and the server has nothing to do."""
    before = -1.0
    while subject.cpu() - before > 0.01:
        before = subject.cpu()
        await trio.sleep(0.5)


async def crowd(subject: Subject, clients: int, lines: int) -> tuple[list[float], int, float]:
    """Return the latencies beside the crowd, the server's memory, and the milliseconds until every run was ended."""
    leave = trio.Event()
    async with trio.open_nursery() as nursery:
        events = [trio.Event() for _ in range(clients)]
        for event in events:
            nursery.start_soon(flooder, subject.port, event, leave)
        for event in events:
            await event.wait()
        await _wait_still(subject)
        before = len(subject.events("RunEnded"))
        found = await latencies(subject.port, lines)
        memory, left = subject.rss(), time.time()
        leave.set()
    with trio.fail_after(30):
        while len(ended := subject.events("RunEnded")) < before + clients + 1:
            await trio.sleep(0.02)
    late = max(float(str(event["time"])) for event in ended[-clients:]) - left
    return found, memory, late * 1000


async def main(clients: int, lines: int, rounds: int) -> None:
    """Print the figures."""
    print(f"never-reading clients: {clients}; fake CLI; {machine()}")
    ratios, one = [], []
    async with serving("--max-runs", str(clients + 5), cli="stamped") as subject:
        quiet_memory = subject.rss()
        for _ in range(rounds):
            quiet = await latencies(subject.port, lines)
            beside, memory, late = await crowd(subject, clients, lines)
            _, _, alone = await crowd(subject, 1, 50)
            ratios.append(percentile(beside, 0.99) / percentile(quiet, 0.99))
            one.append(alone)
            print(
                f"p50/p99 quiet {median(quiet):.2f}/{percentile(quiet, 0.99):.2f} ms, "
                f"beside {median(beside):.2f}/{percentile(beside, 0.99):.2f} ms, "
                f"RSS {quiet_memory} -> {memory} KiB, "
                f"all {clients} runs ended {late:.0f} ms after leaving, one {alone:.0f} ms"
            )
    print(f"median of the p99 ratios {median(ratios):.2f}; one run's end acted on within {median(one):.0f} ms (median)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--lines", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    trio.run(main, options.clients, options.lines, options.rounds)
