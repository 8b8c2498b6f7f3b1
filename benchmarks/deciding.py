"""What a decision costs that several servers share: milliseconds from the question to the answer, over one Redis.

Three nodes in this process, as three servers would have them, and a Redis of its own on a unix socket. Prints the
median and the 99th of a hundred: asked one after the other, and by many at once; and what a server takes that is alone.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from common import machine, median, percentile

from trio_claude.admission import Allowance, Limits, Member
from trio_claude.config import Config
from trio_claude.identity import Identity
from trio_claude.nodes import Nodes, open_nodes

LIMITS = Limits(prompts_per_minute=1e9, tokens_per_day=10**12, dollars_per_day=1e9, runs=10**6)
WHO = Member("key:alice", LIMITS)
TOTAL = Limits(prompts_per_minute=1e9, waiting=10**6)
START_TIMEOUT = 10.0


@asynccontextmanager
async def open_three() -> AsyncIterator[list[Nodes]]:
    """Start a Redis that keeps a file, and open three nodes that share it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "redis.sock"
        words = ["redis-server", "--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "yes"]
        with subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL) as redis:
            try:
                with trio.fail_after(START_TIMEOUT):
                    while not path.exists():
                        await trio.sleep(0.05)
                config = Config(redis=f"unix://{path}")
                async with contextlib.AsyncExitStack() as stack:
                    yield [
                        await stack.enter_async_context(open_nodes(config, f"node{number}", lambda _event: None))
                        for number in range(3)
                    ]
            finally:
                redis.terminate()


async def ask(node: Nodes) -> None:
    """Count a prompt, by rates and budgets of its own and of all."""
    await node.shared.ask(WHO, TOTAL)


async def hold(node: Nodes) -> None:
    """Hold a session and let it go, which others know by then."""
    async with node.shared.hold(WHO.name, os.urandom(8).hex()):
        pass


async def place(node: Nodes) -> None:
    """Take a place and let it go."""
    async with node.shared.place(WHO, TOTAL, lambda _place: None):
        pass


async def ticket(node: Nodes) -> None:
    """Get a ticket and spend it."""
    secret = await node.shared.put_ticket(Identity(os.urandom(8).hex()), None)
    assert await node.shared.take_ticket(secret, None)


async def measure(
    what: Callable[[Nodes], Awaitable[None]], nodes: list[Nodes], count: int, at_once: int
) -> list[float]:
    """Return the milliseconds of `count` decisions, of which so many are asked at a time."""
    found: list[float] = []

    async def some(number: int) -> None:
        for _ in range(count // at_once):
            began = time.perf_counter()
            await what(nodes[number % 3])
            found.append((time.perf_counter() - began) * 1000)

    async with trio.open_nursery() as nursery:
        for number in range(at_once):
            nursery.start_soon(some, number)
    return found


def alone(count: int) -> list[float]:
    """Return the milliseconds that the same prompt takes on a server that is alone."""
    allowance, found = Allowance(TOTAL), []
    for _ in range(count):
        began = time.perf_counter()
        allowance.ask(WHO, time.monotonic(), time.time())
        found.append((time.perf_counter() - began) * 1000)
    return found


async def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=3000, help="decisions of each kind")
    count = parser.parse_args().count
    print(machine())
    print(f"{'a prompt, alone':28} p50 {median(alone(count)):7.3f} ms")
    async with open_three() as nodes:
        for at_once in (1, 50, 1000):
            for what in (ask, hold, place, ticket):
                began = time.perf_counter()
                found = await measure(what, nodes, max(count, at_once), at_once)
                rate = len(found) / (time.perf_counter() - began)
                told = f"p50 {median(found):7.3f}   p99 {percentile(found, 0.99):7.3f} ms   {rate:6.0f}/s"
                print(f"{what.__name__:8} {at_once:5} at once   {told}")


if __name__ == "__main__":
    trio.run(main)
