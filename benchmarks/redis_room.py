"""What history takes of a Redis that servers share: memory, file, network and processor, a run and a line.

One node in this process tells a Redis of its own of many runs at once, as a server does: lone lines of the size of a
token delta, each run one in turn, without and with somebody who watches each run; then lines in bulk, and what servers
decide together (a prompt by two rates and two budgets; a session and a place, each taken and let go). Memory and file
are exact, and the same on each machine but for the allocator; the processor's share is of this machine. The file is
that of before a rewrite.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import secrets
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio
from common import machine
from deciding import ask, hold, place

from trio_claude.config import Config
from trio_claude.journal import Begun, End, Recorder
from trio_claude.nodes import Nodes, open_nodes

LONE, BULK = 300, 200
"""Bytes of a line: of a token delta, and of what comes in bulk."""
PROMPT = "x" * 200
ROUND = 0.02
"""Seconds between two lone lines of a run: 50 a second, where the machine is as fast."""
CHUNK, BULKS = 320, 1000
"""Lines of one read in bulk, 64 KiB, and how many of these."""
PAUSE = 0.001
"""Seconds between two of them."""
DECISIONS = 2000
IDLE, MORE = 5.0, 20
"""Seconds for which nothing is done, and by how many nodes more."""
SETTLE = 60.0
SYNCED = 1.2
"""Seconds until all is in the file: it is written once a second."""
START_TIMEOUT = 10.0


@attrs.frozen
class Taken:
    """What Redis has taken up to now, in bytes and seconds; and the CPU seconds of this process."""

    memory: float
    file: float
    received: float
    sent: float
    cpu: float
    own: float

    def __sub__(self, before: Taken) -> Taken:
        return Taken(*(now - then for now, then in zip(attrs.astuple(self), attrs.astuple(before), strict=True)))

    def each(self, count: int) -> Taken:
        """Return the part of one of so many."""
        return Taken(*(figure / count for figure in attrs.astuple(self)))


async def look(nodes: Nodes, folder: Path) -> Taken:
    """Look at Redis, once all that was told is in its file."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    said = (await nodes.redis.ask("INFO", "everything")).decode()
    facts = dict(line.partition(":")[::2] for line in said.splitlines() if ":" in line)
    await trio.sleep(SYNCED)
    return Taken(
        float(facts["used_memory"]) - float(facts["mem_clients_normal"]),
        sum(path.stat().st_size for path in folder.rglob("*.aof")),
        float(facts["total_net_input_bytes"]),
        float(facts["total_net_output_bytes"]),
        float(facts["used_cpu_user"]) + float(facts["used_cpu_sys"]),
        own.ru_utime + own.ru_stime,
    )


def config(folder: Path) -> Config:
    """Return the settings of a node of the Redis in a folder."""
    return Config(redis=f"unix://{folder}/redis.sock", journal="auto", journal_bytes=0)


@asynccontextmanager
async def open_one() -> AsyncIterator[tuple[Nodes, Path]]:
    """Start a Redis that keeps a file and never writes it anew, and open a node of it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = ["redis-server", "--port", "0", "--unixsocket", "redis.sock", "--save", "", "--appendonly", "yes"]
        words += ["--auto-aof-rewrite-percentage", "0"]
        with subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL) as redis:
            try:
                with trio.fail_after(START_TIMEOUT):
                    while not (folder / "redis.sock").exists():
                        await trio.sleep(0.05)
                async with open_nodes(config(folder), "node0", lambda _event: None) as nodes:
                    yield nodes, folder
            finally:
                redis.terminate()


def begin(nodes: Nodes) -> tuple[str, Recorder]:
    """Begin a run."""
    assert nodes.journal
    run = secrets.token_hex(16)
    facts = Begun(
        id=run, identity="key:alice", meta="TASK-1", door="session", session=secrets.token_hex(18), started=time.time(),
        prompt=PROMPT, options={},
    )  # fmt: skip
    return run, nodes.journal.begin(facts)


async def end(nodes: Nodes, runs: list[tuple[str, Recorder]], lines: int) -> None:
    """End runs, and wait until Redis has all."""
    assert nodes.journal
    receipt = {"seen": 7, "killed": 0, "survivors": 0, "ms": 12.0, "containment": "namespace"}
    for run, recorder in runs:
        assert recorder.stored
        recorder.end(
            End(
                id=run, ended=time.time(), reason="exit", exit_status=0, signal=None, lines=lines, encoding_errors=0,
                tokens=1000, dollars=0.01, turns=1, error=None, receipt=receipt,
            )
        )  # fmt: skip
    assert await nodes.journal.settle(SETTLE)


async def lone(nodes: Nodes, count: int, lines: int, *, watched: bool = False) -> None:
    """Have so many runs say lone lines, each one in turn."""
    assert nodes.journal
    runs = [begin(nodes) for _ in range(count)]
    line = [b"x" * LONE]
    async with trio.open_nursery() as nursery:
        for run, _ in runs if watched else ():
            nursery.start_soon(watch, nodes, run)
        for _ in range(lines):
            for _, recorder in runs:
                recorder.lines(line)
            await trio.sleep(ROUND)
            while nodes.journal.waiting:  # else two lines could become one part
                await trio.sleep(ROUND / 10)
        await end(nodes, runs, lines)


async def watch(nodes: Nodes, run: str) -> None:
    """Watch a run to its end."""
    async with nodes.tail.watch(run, 0) as one:
        while await one.receive():
            pass


async def bulk(nodes: Nodes, lines: int) -> None:
    """Have one run say lines in bulk."""
    runs = [begin(nodes)]
    chunk = [b"x" * BULK] * CHUNK
    for _ in range(lines // CHUNK):
        runs[0][1].lines(chunk)
        await trio.sleep(PAUSE)
    await end(nodes, runs, lines)


async def often(nodes: Nodes, once: Callable[[Nodes], Awaitable[None]]) -> None:
    """Have something decided again and again."""
    for _ in range(DECISIONS):
        await once(nodes)


async def idling() -> None:
    """Do nothing for a while."""
    await trio.sleep(IDLE)


async def measured(nodes: Nodes, folder: Path, done: Awaitable[None]) -> Taken:
    """Return what it took that something was done."""
    before = await look(nodes, folder)
    await done
    return await look(nodes, folder) - before


def tell(what: str, one: Taken) -> None:
    """Tell what one of something took."""
    figures = (one.memory, one.file, one.received, one.sent, one.cpu * 1e6, one.own * 1e6)
    print(f"| {what} | {' | '.join(f'{figure:,.1f}' if figure < 100 else f'{figure:,.0f}' for figure in figures)} |")


async def main(count: int, lines: int) -> None:
    """Measure, and print a table."""
    print(f"{machine()}\n\n| | memory, B | file, B | received, B | sent, B | Redis' CPU, µs | the node's CPU, µs |")
    print("|---|---|---|---|---|---|---|")
    async with open_one() as (nodes, folder):
        await lone(nodes, 100, 1)  # what is made once
        silent = await measured(nodes, folder, lone(nodes, count, 0))
        tell("a run that says nothing", silent.each(count))
        for watched in (False, True):
            said = await measured(nodes, folder, lone(nodes, count, lines, watched=watched))
            tell(f"a lone line of {LONE} B{', watched' * watched}", (said - silent).each(count * lines))
        said = await measured(nodes, folder, bulk(nodes, BULKS * CHUNK))
        tell(f"a line of {BULK} B in bulk", said.each(BULKS * CHUNK))
        for what, once in (("prompt", ask), ("session", hold), ("place", place)):
            said = await measured(nodes, folder, often(nodes, once))
            tell(f"a decision: a {what}", said.each(DECISIONS))
        idle = await measured(nodes, folder, idling())
        async with contextlib.AsyncExitStack() as stack:
            for number in range(MORE):
                await stack.enter_async_context(open_nodes(config(folder), f"more{number}", lambda _event: None))
            await idling()
            more = await measured(nodes, folder, idling())
            tell(f"a second of a node that is idle, of {MORE}", (more - idle).each(MORE * round(IDLE)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--lines", type=int, default=500, help="of each")
    arguments = parser.parse_args()
    trio.run(main, arguments.runs, arguments.lines)
