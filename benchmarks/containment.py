"""What containment costs: starts, ends, memory, for each mode. All figures are with fake children.

Prints, for each mode: milliseconds from the order to the CLI's start, beside a bare `subprocess.Popen`; from a client's
leaving to the death of its last descendant, twenty at once, for cooperative and for hostile trees; memory of a run's
guardians; and how long 200 runs take to end that are ended at once.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import time
from pathlib import Path

import trio
from common import machine, median, percentile

from trio_claude.containment import Contained, Containment, Job, open_containment

TREE = "sleep 60 & setsid sleep 60 & setsid sh -c 'setsid sleep 60 & exit 0'"
HOSTILE = f"trap '' TERM HUP INT; {TREE}; sh -c \"trap '' TERM HUP INT; sleep 60; :\" & setsid env -i /bin/sleep 60 &"
ENV = {"PATH": os.environ["PATH"], "TRIO_CLAUDE_RUN": "bench:1"}


def shell(script: str) -> Job:
    """Return a job that runs a script."""
    return Job(argv=("/bin/sh", "-c", script), env=ENV, cwd="/")


async def starts(containment: Containment, count: int) -> tuple[list[float], list[float]]:
    """Return the milliseconds of contained and of bare starts, in turn."""
    contained, bare = [], []
    for _ in range(count):
        began = time.perf_counter()
        async with containment.start(Job(argv=("/bin/true",), env=ENV, cwd="/")) as process:
            contained.append((time.perf_counter() - began) * 1000)
            await process.wait_exit()
        began = time.perf_counter()
        child = subprocess.Popen(["/bin/true"], start_new_session=True)
        bare.append((time.perf_counter() - began) * 1000)
        child.wait()
    return contained, bare


async def ends(containment: Containment, script: str, at_once: int) -> list[float]:
    """Return the milliseconds from the decision to end until nothing is left, for runs that end at the same time."""
    found: list[float] = []
    ready, go = trio.Semaphore(0), trio.Event()

    async def one() -> None:
        async with containment.start(shell(f"{script} echo ready; sleep 60")) as process:
            await process.stdout.receive_some()
            ready.release()
            await go.wait()
            process.end()
            receipt = await process.wait_gone()
            assert receipt.survivors == 0
            found.append(receipt.ms)

    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(one)
        for _ in range(at_once):
            await ready.acquire()
        await trio.sleep(0.3)
        go.set()
    return found


def guardians(process: Contained) -> list[int]:
    """Return the pids of a run's guardians, from the CLI's parent up to the zygote, which is not counted."""
    found, pid = [], process.pid
    while True:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        if Path(f"/proc/{pid}/comm").read_text().startswith("trio-claude-zyg"):
            return found
        found.append(pid)


def proportional(pid: int) -> int:
    """Return a process's proportional memory in KiB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(text.partition("\nPss:")[2].split()[0])


async def memory(containment: Containment, count: int) -> float:
    """Return the KiB that the guardians of one run take, of `count` runs at once."""
    async with trio.open_nursery() as nursery:
        processes: list[Contained] = []

        async def one() -> None:
            async with containment.start(shell("sleep 60")) as process:
                processes.append(process)
                await trio.sleep_forever()

        for _ in range(count):
            nursery.start_soon(one)
        while len(processes) < count:
            await trio.sleep(0.05)
        taken = [sum(map(proportional, guardians(process))) for process in processes]
        nursery.cancel_scope.cancel()
    return median(taken)


async def measure(mode: str, count: int) -> None:
    """Print one mode's figures."""
    async with open_containment(mode, lambda _: None) as containment:
        contained, bare = await starts(containment, count)
        print(
            f"{mode}: start p50 {median(contained):.2f} ms, p99 {percentile(contained, 0.99):.2f} "
            f"(bare Popen {median(bare):.2f}); guardians {await memory(containment, 20):.0f} KiB a run (PSS)"
        )
        for name, script in (("cooperative", f"{TREE};"), ("hostile", HOSTILE)):
            late = [ms for _ in range(5) for ms in await ends(containment, script, 20)]
            print(
                f"  {name} trees, 20 at once: gone after p50 {median(late):.1f} ms, p99 {percentile(late, 0.99):.1f} ms"
            )
        late = await ends(containment, f"{TREE};", 200)
        print(f"  200 runs ended at once: the last was gone after {max(late):.0f} ms")


async def main(modes: list[str], count: int) -> None:
    """Print every mode's figures."""
    print(f"containment; fake children; {machine()}")
    for mode in modes:
        await measure(mode, count)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--modes", nargs="*", default=["supervisor", "namespace"])
    parser.add_argument("--count", type=int, default=300)
    options = parser.parse_args()
    trio.run(main, options.modes, options.count)
