"""Rule: whatever one client does, the others are served, nothing is left of it, and no exception is unforeseen.

The short form; `python benchmarks/hostile_clients.py` goes on with the same families for thousands of connections.
"""

from __future__ import annotations

import inspect
import os
import random
import secrets
from collections.abc import Iterable
from pathlib import Path

import trio
from harness import Backend, ask, held, send_raw, until
from hostile import CRASHES, FAMILIES, RUNS, WAIT
from trio.testing import wait_all_tasks_blocked

from trio_claude.events import Crashed
from trio_claude.server import Server

SEED = os.environ.get("HOSTILE_SEED") or secrets.token_hex(4)
TIMES = 3
"""Connections of each family in a round."""
AT_ONCE = 8
"""Families let loose at once, so that the waits of one are those of all."""
GROWTH = 8 * 1024
"""KiB that the rounds after the second may add to what is resident."""
QUICK = {"head_timeout": 1.0, "close_timeout": 0.5, "timeout": 5.0}
"""Limits under which what a client holds by doing nothing is given back within the test's time."""


async def attack(names: Iterable[str], server: Server, turn: int = 0) -> None:
    """Let families loose, all their connections at once."""
    async with trio.open_nursery() as nursery:
        for name in names:
            for number in range(TIMES):
                nursery.start_soon(FAMILIES[name], server.port, random.Random(f"{SEED}:{name}:{turn}:{number}"))


async def check_served(server: Server) -> None:
    """Be clients of good will: one hears a wrong message refused, one gets its prompt answered."""
    said = await send_raw(server, "{}")
    assert (said.objects, said.code) == ([{"info": "send {prompt,meta}"}, {"error": "prompt is missing"}], 1008)
    answer = await ask(server, "hi")
    assert (answer.of_type("result")[0]["result"], answer.code) == ("Hello from stub.", 1000)


def tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


def resident() -> int:
    """Return this process's resident memory in KiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def crashes(backend: Backend) -> list[Crashed]:
    return [event for event in backend.events if isinstance(event, Crashed)]


async def test_no_family_harms_anybody_else(fake: Backend) -> None:
    print(f"HOSTILE_SEED={SEED}")
    names = list(FAMILIES)
    async with fake.serve(**QUICK) as server:
        await wait_all_tasks_blocked()
        began = held(server), tasks()
        for first in range(0, len(names), AT_ONCE):
            batch = names[first : first + AT_ONCE]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(attack, batch, server)
                nursery.start_soon(check_served, server)
            await check_served(server)
            assert crashes(fake) == [] or CRASHES.keys() & batch, batch
        await until(lambda: server.runs.statistics().live == server.runs.statistics().waiting == 0, 10)
        await until(lambda: (held(server), tasks()) == began, 10)
    assert fake.left() == []
    assert len(fake.ended) > 2 * len(names) / AT_ONCE
    assert {event.outcome.receipt.survivors for event in fake.ended} == {0}


async def test_memory_does_not_grow_with_hostile_connections(fake: Backend) -> None:
    print(f"HOSTILE_SEED={SEED}")
    async with fake.serve(**QUICK) as server:
        sizes = []
        for turn in range(5):
            await attack(FAMILIES.keys() - RUNS, server, turn)
            sizes.append(resident())
    assert sizes[-1] - sizes[1] < GROWTH, sizes
    assert crashes(fake) == [] or CRASHES


def test_there_are_families_enough_and_each_says_what_it_does() -> None:
    assert len(FAMILIES) >= 40
    assert [name for name, family in FAMILIES.items() if not inspect.getdoc(family)] == []


async def test_every_family_ends_in_time_where_the_server_says_nothing() -> None:
    async def never(stream: trio.SocketStream) -> None:
        await trio.sleep(3 * WAIT)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, never, 0)
        port = listeners[0].socket.getsockname()[1]
        with trio.fail_after(2 * WAIT):
            async with trio.open_nursery() as clients:
                for name, family in FAMILIES.items():
                    clients.start_soon(family, port, random.Random(f"{SEED}:{name}"))
        nursery.cancel_scope.cancel()
