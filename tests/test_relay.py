"""Rule: what a CLI says reaches its client whole and in order, however it comes: the hashes of both ends are equal."""

from __future__ import annotations

import hashlib
import json
import random
import secrets
import sys
from pathlib import Path

import pytest
import trio
from harness import Backend, connect, listen, until

from trio_claude import delivery

SEED = secrets.randbits(32)
COUNT, LONG = 60, 1000
CHILD = r'''
"""Says a random stream of the seed in its prompt; writes the hash of what it said to the file named there."""
import hashlib, json, os, random, subprocess, sys, time
seed, told = json.loads(json.loads(sys.stdin.readline())["message"]["content"])
rng = random.Random(seed)
ALPHABET = ["a", "Z", " ", "\\", '"', "\u00e9", "\u20ac", "\U0001f600", "\u2028"]

def line():
    kind = rng.random()
    if kind < .02:
        return "x" * rng.choice([2**16 - 1, 2**16, 2**20]) + rng.choice(ALPHABET)
    if kind < .1:
        return ""
    return "".join(rng.choice(ALPHABET) for _ in range(rng.randrange(400)))

lines = [line() for _ in range(rng.randrange(1, 200))]
data = "\n".join(lines).encode() + (b"\n" if rng.random() < .5 else b"")
said = data.split(b"\n")
if not said[-1]:
    said.pop()
open(told, "w").write(json.dumps([hashlib.sha256(b"".join(len(one).to_bytes(4, "big") + one for one in said)).hexdigest(), len(said)]))
tail = rng.randrange(len(data)) if rng.random() < .3 else len(data)
at = 0
while at < tail:
    size = rng.choice([1, 7, 100, 4096, 70000, 2**20])
    os.write(1, b"") if rng.random() < .1 else None
    piece = data[at : min(at + size, tail)]
    at += os.write(1, piece)
    if rng.random() < .02:
        time.sleep(rng.random() / 200)
if tail < len(data):  # the rest is said by a grandchild, behind this process's end
    reader, writer = os.pipe()
    if not os.fork():
        if os.fork():
            os._exit(0)
        os.close(writer)
        os.read(reader, 1)
        rest = data[tail:]
        while rest:
            rest = rest[os.write(1, rest) :]
        os._exit(0)
'''


async def test_every_stream_arrives_whole_and_in_order(
    fake: Backend, folder: Path, long: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "DRAIN_IDLE", 1.0)  # so long may a busy machine keep a grandchild from its first word
    print(f"RELAY_SEED={SEED}")
    program = folder / "random-cli"
    program.write_text(f"#!{sys.executable} -IS\n{CHILD}")
    program.chmod(0o755)
    fake.program = str(program)
    seeds = random.Random(SEED).sample(range(2**31), LONG if long else COUNT)
    limit = trio.CapacityLimiter(8)
    wrong: list[int] = []

    async with fake.serve() as server:

        async def one(seed: int) -> None:
            async with limit, connect(server, "?frames=verbatim") as socket:
                told = folder / str(seed)
                await socket.send_message(json.dumps({"prompt": json.dumps([seed, str(told)]), "meta": "T"}))
                said = await listen(socket)
                lines = [frame.encode() for frame in said.frames[1:]]
                found = hashlib.sha256(b"".join(len(line).to_bytes(4, "big") + line for line in lines)).hexdigest()
                if [found, len(lines)] != json.loads(told.read_text()) or said.code != 1000:
                    wrong.append(seed)

        async with trio.open_nursery() as nursery:
            for seed in seeds:
                nursery.start_soon(one, seed)
    assert not wrong
    assert {event.outcome.encoding_errors for event in fake.ended} == {0}
    assert any(event.outcome.receipt.seen > 1 for event in fake.ended), "some tails were said by grandchildren"


async def test_a_client_that_reads_late_loses_nothing(fake: Backend) -> None:
    from harness import directive

    async with fake.serve() as server, connect(server, "?frames=verbatim") as socket:
        await socket.send_message(json.dumps({"prompt": directive("lines", n=20_000, size=500), "meta": "T"}))
        await until(lambda: server.runs.statistics().live)
        await trio.sleep(1)
        said = await listen(socket)
    assert (said.code, fake.ended[0].outcome.lines) == (1000, len(said.frames) - 1)
