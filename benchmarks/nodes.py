"""Several servers that share a Redis: what must hold of them, shown by cutting, killing and asking.

    python benchmarks/nodes.py [PART [NUMBER]] ... [--seed N] [--json FILE] [--markdown FILE]

A Redis and three servers (`trio-claude serve … --redis …`), each a process of its own, all on loopback. Without a word
all parts go, with the numbers that stand behind them; each part has a Redis and servers of its own.

* `drops` (1,000 connections): sessions lose their connections at random lines and in the middle of frames, by resets,
  half closes and silence, and come back at another server as owners. No numbered line is lost, comes twice or in
  another order, and the journal has the same. Then how long a line takes to who watches at another server.
* `pace` (5 rounds): the relay's throughput at the run's own server with a Redis, at least 0.7 times that without. It
  needs a C compiler.
* `kills` (100 servers): a server is killed amid runs that have left daemons, hidden in sessions and environments of
  their own, while others watch at the other servers. No process is left, each run is `node-lost` within the lease,
  who watches has all that is stored and is told, and nothing is appended any more, whoever tries.
* `outages` (5 rounds): Redis is killed and started on its file, stands still, and is parted from a server (in network
  namespaces of this program's own, which needs root), under 50 runs that go on saying lines; a server stands still.
  Clients are told, everything is stored once and in order behind it, all is as before within 5 seconds, and runs of a
  server that was away for longer than the lease are lost to the others: nothing is appended to them any more.
* `limits` (1,000 asks): as many asks at once, over all servers, for prompts a minute and runs at once; then dollars of
  a day, tickets, and sessions that are resumed at all servers at once. The counts are exact.
* `rolling` (3 rounds): the servers are restarted one after the other, on sockets that are held, with nginx in front,
  under load: no attempt to come in is refused, every run ends or is told, and sessions of the client library go on at
  another server where their run still lives.

A violation is told the moment it is seen; the exit status is 1 then, and the servers' logs are kept. The seed decides
what is done, not when: processes keep their own time. The CLI is the fake one in all of it.
"""

from __future__ import annotations

import argparse
import json
import random
import secrets
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs
import trio
from chaos import until_signal
from common import machine

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from sharing.book import Book, chosen, leaves
from sharing.drops import drops
from sharing.island import move_apart
from sharing.kills import kills
from sharing.limits import limits
from sharing.outages import outages
from sharing.pace import pace
from sharing.rolling import rolling

Play = Callable[[Book, int, random.Random], Awaitable[None]]


@attrs.frozen
class Box:
    """A part: its title, how it is played, how often by default, and how many seconds one of those may take."""

    title: str
    play: Play
    count: int
    each: float


SPARE = 120.0
"""Seconds that a part may take beside."""
BOXES = {
    "drops": Box("Connections that are cut, and come back at another server", drops, 1000, 1.0),
    "pace": Box("The relay with a Redis, against without", pace, 5, 120.0),
    "kills": Box("Servers that are killed with their runs", kills, 100, 20.0),
    "outages": Box("Redis that dies, hangs or can't be reached", outages, 5, 150.0),
    "limits": Box("Limits that are asked for at all servers at once", limits, 1000, 1.0),
    "rolling": Box("Servers that are restarted one after the other", rolling, 3, 60.0),
}


async def play(book: Book, name: str, count: int) -> None:
    """Play one part, for so long at most."""
    box = BOXES[name]
    part = book.begin(name, box.title)
    began = time.monotonic()
    try:
        async with until_signal():
            with trio.fail_after(SPARE + count * box.each):
                await box.play(book, count, random.Random(f"{book.seed}-{name}"))
    except Exception as error:  # whatever befalls one part is judged, and the others are played
        book.violate("the part comes to its end", repr(leaves(error)))
    part.seconds = time.monotonic() - began


def report(book: Book, began: str) -> str:
    """Return all of it in Markdown."""
    head = f"# Several servers that share a Redis\n\nseed {book.seed}; {began}; {book.wrong} violations"
    return "\n\n".join([head, *(part.report() for part in book.parts)]) + "\n"


def main() -> int:
    """Run the command line; return 1 where something did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART [NUMBER]")
    parser.add_argument("--seed", default=secrets.token_hex(4))
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    parser.add_argument("--quiet", action="store_true", help="say nothing of how far it is")
    words = parser.parse_args()
    try:
        parts = chosen(words.parts, {name: box.count for name, box in BOXES.items()})
    except ValueError as error:
        parser.error(str(error))
    book, began = Book(words.seed, words.quiet), machine()
    if "outages" in parts:
        try:
            move_apart()  # before there is a thread, which would stay behind, and what it starts
        except OSError as error:
            book.together = str(error)
    print(f"nodes: seed {book.seed}, {parts}; {began}", flush=True)
    for name, count in parts.items():
        trio.run(play, book, name, count)
    print(report(book, began))
    if words.markdown:
        words.markdown.write_text(report(book, began))
    if words.json:
        told = {"seed": book.seed, "machine": began, "wrong": book.wrong, "parts": book.as_json()}
        words.json.write_text(json.dumps(told, indent=1) + "\n")
    return 1 if book.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
