"""Rule: whatever is cut, killed or asked at once, nodes lose nothing, leave nothing and count exactly.

The short forms; `python benchmarks/nodes.py` goes on. That it sees what it looks for is tested too.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from cutter import open_cutter
from harness import Backend, directive, until
from redis_server import RedisServer

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from sharing.book import Book, chosen
from sharing.drops import Tally

from trio_claude.client import Reconnect, Result, open_session

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SEED = os.environ.get("NODES_SEED") or secrets.token_hex(4)


def played(folder: Path, *words: str) -> dict[str, Any]:
    """Play a part; return what is told of it."""
    print(f"NODES_SEED={SEED}")
    told = folder / "told"
    program = [sys.executable, str(BENCHMARKS / "nodes.py"), *words]
    done = subprocess.run(
        [*program, "--quiet", "--seed", SEED, "--json", str(told)], capture_output=True, text=True, check=False
    )
    print(done.stdout, done.stderr)
    (part,) = json.loads(told.read_text())["parts"]
    assert part["wrong"] == {}
    assert done.returncode == 0
    return part  # type: ignore[no-any-return]


@pytest.mark.redis
def test_cut_connections_lose_nothing(folder: Path, long: bool) -> None:
    part = played(folder, "drops", "1000" if long else "20")
    assert {"lines: none is lost", "lines: none comes twice", "lines: all come in order"} <= set(part["checked"])
    assert part["checked"]["journal: has what was heard, once, in order"] >= 2


@pytest.mark.redis
def test_a_killed_node_leaves_nothing_and_appends_nothing(folder: Path, long: bool) -> None:
    part = played(folder, "kills", "100" if long else "1")
    assert part["checked"]["processes: none of a killed server is left"] >= 1
    assert part["checked"]["viewers: told of node-lost"] >= 6
    assert part["checked"]["appends: refused behind the end"] >= 9


@pytest.mark.redis
def test_limits_are_exact_over_all_nodes(folder: Path, long: bool) -> None:
    part = played(folder, "limits", "1000" if long else "60")
    assert {"prompts a minute: exact", "runs at once: never more", "dollars a day: exact"} <= set(part["checked"])
    assert part["checked"]["tickets: each opens one door"] >= 1
    assert part["checked"]["sessions: one run holds each"] >= 1


@pytest.mark.redis
async def test_a_client_goes_on_elsewhere_when_its_server_goes_down(fake: Backend, redis_server: RedisServer) -> None:
    config: dict[str, object] = {"redis": redis_server.url, "node_lease": 2.0, "journal": "auto"}
    async with fake.serve(**config) as home, fake.serve(**config) as other, open_cutter(home.port) as cutter:
        backs: list[str] = []
        reconnect = Reconnect(grace=20, on_back=backs.append)
        async with open_session(meta="T", url=cutter.url, reconnect=reconnect) as session:
            cutter.lead(other.port)
            cutter.cut()
            await until(lambda: len(backs) == 1)
            numbers = []
            async with trio.open_nursery() as nursery:
                async for line in session.ask(directive("lines", n=60, rate=60)):
                    if isinstance(line, Result):
                        break
                    if line.said.get("type") == "fake":
                        numbers.append(line.said["n"])
                    if len(numbers) == 5:
                        cutter.lead(home.port)
                        nursery.start_soon(other.drain, 0)
            assert len(backs) == 2
            assert numbers == list(range(1, 61))
            ended = await session.end()
    assert (ended.reason, ended.code) == ("exit", 1000)


# -- that it sees what it looks for ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "seen"),
    [
        ((1, 2, 3), (0, 0, 0)),
        ((1, 3), (1, 0, 0)),
        ((1, 2, 2, 3), (0, 1, 0)),
        ((1, 3, 2), (0, 0, 1)),
        ((2, 3, 1, 2), (0, 1, 2)),
    ],
)
def test_lines_are_counted(numbers: tuple[int, ...], seen: tuple[int, int, int]) -> None:
    tally = Tally()
    tally.take([b'{"type":"fake","n":%d,"pad":""}' % number for number in numbers])
    assert (3 - len(tally.numbers), tally.twice, tally.disordered) == seen


def test_a_violation_is_told_at_once_with_where_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    book = Book("7", quiet=True)
    book.begin("kills", "Kills")
    book.where = "kill 3"
    assert book.check("rule", holds=True, seen="")
    assert not book.check("rule", holds=False, seen="two are left", run="abc")
    said = "rule: seed 7, kills, kill 3, run abc: two are left"
    assert capsys.readouterr().err == f"VIOLATION {said}\n"
    assert (book.wrong, book.part.violations) == (1, [said])
    assert "| rule | 2 | 1 |" in book.part.report()


def test_parts_are_chosen_by_name_and_number() -> None:
    counts = {"drops": 1000, "kills": 100}
    assert chosen(["kills", "3", "drops"], counts) == {"kills": 3, "drops": 1000}
    assert chosen([], counts) == counts
    for bad in (["3"], ["kills", "0"], ["nothing"]):
        with pytest.raises(ValueError, match="neither a part"):
            chosen(bad, counts)


HIDING = """
import os, subprocess, sys
sys.path[:0] = sys.argv[1:]
import random, trio
from sharing.book import Book
from sharing.cluster import open_cluster
async def main():
    async with open_cluster(Book("1"), random.Random(1)) as cluster:
        subprocess.run(["/bin/sh", "-c", "setsid env -i /bin/sh -c 'sleep 60 & exec sleep 60' & exit 0"], check=True)
        while len(cluster.strangers()) < 2:
            await trio.sleep(0.02)
        print(len(cluster.strangers()), len((await cluster.wait_none(0.2, cluster.strangers))[0]))
    print(len(cluster.strangers()))
trio.run(main)
"""


@pytest.mark.redis
def test_nothing_hides(folder: Path) -> None:
    paths = [str(BENCHMARKS), str(BENCHMARKS.parent / "tests" / "support")]
    words = [sys.executable, "-c", HIDING, *paths]
    told = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60, cwd=folder)
    assert told.stdout.split() == ["2", "2", "0"], told.stderr
