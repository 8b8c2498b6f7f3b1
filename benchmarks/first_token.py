"""How long a run's first token takes with the real CLI: cold, from the pool, with the whole profile and the lean one.

    python benchmarks/first_token.py --rounds 15 --json first.json

The real CLI talks to a stub of the Messages API in this process, which answers at once, with a home and a key that are
none. `bare` is the same CLI without us, started cold, and started ahead of need and initialised; so `pool` less `bare
warm` is what a hit of the pool adds. Rounds are interleaved, milliseconds from the call to the first text delta.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import attrs
import trio
from common import machine, median, percentile

from trio_claude import Config, Engine, open_engine, open_run
from trio_claude.commands.demo import environment
from trio_claude.messages import Options
from trio_claude.stream_json import arguments, control_line, is_reply, user_line
from trio_claude.testing.messages_api import open_messages_api
from trio_claude.workplace import find_cli

PROMPT = "Say hello."
DELTA = '"text_delta"'
REST = 1.0
"""Seconds between two measurements, in which a pool that was used is filled again and the machine comes to rest."""

Way = Callable[[], Awaitable[float]]


def _milliseconds(began: float) -> float:
    return (time.perf_counter() - began) * 1000


async def from_engine(engine: Engine, *, warm: bool) -> float:
    """Return how long the first token of a run takes."""
    if warm:
        while not engine.runs.pool.ready:
            await trio.sleep(0.05)
        await trio.sleep(REST)
    took = 0.0
    began = time.perf_counter()
    async with open_run(PROMPT, engine=engine, partial=True) as run:
        async for line in run:
            if not took and DELTA in line:
                took = _milliseconds(began)
    assert run.outcome
    assert run.outcome.receipt.survivors == 0
    return took


async def bare(words: list[str], environ: dict[str, str], cwd: Path, *, warm: bool) -> float:
    """Return how long the first token of a CLI takes that nobody contains."""
    began = time.perf_counter()
    process = await trio.lowlevel.open_process(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ, cwd=cwd, start_new_session=True
    )
    try:
        if warm:
            await process.stdin.send_all(control_line("0", "initialize"))
            await _read_until(process, lambda line: is_reply(line, "0"))
            await trio.sleep(REST)
            began = time.perf_counter()
        await process.stdin.send_all(user_line(PROMPT))
        await process.stdin.aclose()
        await _read_until(process, lambda line: DELTA.encode() in line)
        took = _milliseconds(began)
        await _read_until(process, lambda _: False)
        return took
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        await process.stdout.aclose()


async def _read_until(process: trio.Process, wanted: Callable[[bytes], bool]) -> None:
    rest = b""
    async for chunk in process.stdout:
        *lines, rest = (rest + bytes(chunk)).split(b"\n")
        if any(map(wanted, lines)):
            return


@asynccontextmanager
async def open_ways(home: Path, api: str) -> AsyncIterator[dict[str, Way]]:
    """Yield the ways to a first token."""
    environ, cli = environment(home, api), find_cli(Config())
    common = Config(cwd=str(home), cli=str(cli), pool_partial=True)
    ways: dict[str, Way] = {}
    async with AsyncExitStack() as stack:
        for profile in ("approve", "lean"):
            words = arguments(Options(partial=True), profile, cli_settings=False, files={})
            for warm in (False, True):
                config = attrs.evolve(common, profile=profile, pool_size=int(warm))
                engine = await stack.enter_async_context(open_engine(config, environ=environ))
                name = f"{profile}, {'pool' if warm else 'cold'}"
                ways[name] = lambda engine=engine, warm=warm: from_engine(engine, warm=warm)
                ways[f"{profile}, bare {'warm' if warm else 'cold'}"] = lambda words=words, warm=warm: bare(
                    [str(cli), *words], {**environ, "TMPDIR": str(home)}, home, warm=warm
                )
        yield ways


async def main(rounds: int, file: Path | None) -> None:
    """Print the figures."""
    print(f"first token; real CLI; {machine()}")
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="tcb-", dir="/tmp") as name:
        async with open_messages_api() as api, open_ways(Path(name), api.url) as ways:
            for number in range(rounds + 1):
                for way, measure in ways.items():
                    await trio.sleep(REST / 4)
                    took = await measure()
                    if number:  # the first round warms the disk
                        found.setdefault(way, []).append(took)
    for way, times in found.items():
        print(f"{way:20} p50 {median(times):7.1f} ms, p90 {percentile(times, 0.9):7.1f}, min {min(times):7.1f}")
    for profile in ("approve", "lean"):
        cold, pool = median(found[f"{profile}, cold"]), median(found[f"{profile}, pool"])
        added = pool - median(found[f"{profile}, bare warm"])
        start = cold - median(found[f"{profile}, bare cold"])
        ratio = f"pool / cold {pool / cold:.2f}"
        print(f"{profile}: {ratio}; a hit adds {added:.1f} ms, a cold start {start:.1f} ms (medians)")
    if file:
        file.write_text(json.dumps({"machine": machine(), "ms": found}, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, dest="file")
    options = parser.parse_args()
    trio.run(main, options.rounds, options.file)
