"""A restart on a socket that is handed over: what becomes of connected clients, and of those that come meanwhile.

    python benchmarks/restart.py [--clients 100] [--rate 100] [--rounds 3]

A holder has the listening socket, as a service manager has, and starts a server on it. Of its clients a fourth is in
a run that ends during the drain, a fourth in one that would not end and has left daemons, a fourth has said nothing,
and a fourth holds a session. Then the server gets a SIGTERM and the next one is started at once, while connection
attempts go on at a steady rate. For comparison servers that bind the port themselves, one after the other, without
clients: what a restart without a manager refuses. The CLI is the stand-in.
"""

from __future__ import annotations

import argparse
import collections
import sys
import tempfile
import time
from pathlib import Path

import attrs
import trio
from common import machine

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from handover import (
    KINDS,
    Attempt,
    Client,
    attempts,
    be_client,
    begin,
    ended,
    free_port,
    held,
    start,
    wait_listening,
)
from harness import Backend, alive, bearing, open_backend
from program import environ

DRAIN = 5
"""Seconds that runs get to end."""


@attrs.frozen
class Restart:
    """What was seen: each attempt, what each client was told, seconds with both servers, processes that are left."""

    made: list[Attempt]
    told: list[Client]
    overlap: float
    left: int


async def handed_over(cli: Backend, folder: Path, count: int, rate: float) -> Restart:
    """Restart a server that has clients, on a socket that is held."""
    made, told, begun = list[Attempt](), list[Client](), list[str]()
    words, env = ["--drain-timeout", str(DRAIN), "--max-runs", str(count)], environ(cli)
    with held() as listener:
        first = await start(listener, *words, env=env, log=folder / "first")
        async with ended(first), trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(be_client, first, [*KINDS][number % len(KINDS)], begun, told)
            while len(begun) < count:
                await trio.sleep(0.05)
            nursery.start_soon(attempts, first.port, 1 / rate, made)
            await trio.sleep(1)
            first.process.terminate()
            second = await start(listener, *words, env=env, log=folder / "second", wait=False)
            async with ended(second):
                await wait_listening(second)
                began = time.perf_counter()
                await first.status()
                overlap = time.perf_counter() - began
                await trio.sleep(1)
                nursery.cancel_scope.cancel()
                await second.end()
    return Restart(made, told, overlap, len([pid for pid in bearing(f"LC_TEST={cli.mark}") if alive(pid)]))


async def bound_anew(cli: Backend, folder: Path, rate: float) -> Restart:
    """Restart a server that nobody uses and that binds its port itself."""
    made, port = list[Attempt](), free_port()
    words, env = ["--port", str(port)], environ(cli)
    first = await begin(*words, env=env, log=folder / "first")
    async with ended(first), trio.open_nursery() as nursery:
        await wait_listening(first)
        nursery.start_soon(attempts, port, 1 / rate, made)
        await trio.sleep(1)
        await first.end()
        second = await begin(*words, env=env, log=folder / "second")
        async with ended(second):
            await wait_listening(second)
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
            await second.end()
    return Restart(made, [], 0, 0)


def show(what: str, restart: Restart) -> None:
    """Print what was seen."""
    answered = [one for one in restart.made if one.answered]
    others = collections.Counter(one.told for one in restart.made if not one.answered)
    longest = max(one.seconds for one in restart.made)
    print(
        f"{what}: {len(restart.made)} attempts, {len(answered)} let in, others {dict(others)}, longest {longest:.2f} s"
    )
    heard = collections.Counter((one.kind, int(one.said.code), one.said.reason.split(";")[0]) for one in restart.told)
    for (kind, code, reason), number in sorted(heard.items()):
        print(f"    {number} clients, {kind!r}: {code} {reason}")
    if restart.told:
        print(f"    both servers at once for {restart.overlap:.1f} s; {restart.left} processes left")


async def main(count: int, rate: float, rounds: int) -> None:
    """Print the figures."""
    print(f"restart; {machine()}")
    for number in range(rounds):
        with tempfile.TemporaryDirectory(prefix="tcb-", dir="/tmp") as name:
            async with open_backend("fake", Path(name)) as cli:
                show(f"handed over, {number + 1}", await handed_over(cli, Path(name), count, rate))
                show(f"bound anew, {number + 1}", await bound_anew(cli, Path(name), rate))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--rate", type=float, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    trio.run(main, options.clients, options.rate, options.rounds)
