"""How long a run's first token takes with the real CLI: cold, from the pool, with the whole profile and the lean one.

    python benchmarks/first_token.py --rounds 15 --json first.json

The real CLI talks to a stub of the Messages API in this process, which answers at once, with a home and a key that are
none. `bare` is the same CLI without us, started cold, and started ahead of need and initialised. Rounds are
interleaved.

What we add is known by the clock and not as a difference of two times of the CLI, which vary by more: a shim in C
around the CLI, with us and without, notes when the CLI gets its prompt (cold: when it starts) and when it says the
first token. From the call to the one and from the other to the caller is outside of the CLI; that, less the same for
`bare`, is ours. It needs a C compiler.
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
from suite.native import compiled
from suite.report import aligned
from suite.scenario import MILLION
from suite.scenarios.real import take_notes

from trio_claude import Config, Engine, open_engine, open_run
from trio_claude.commands.demo import environment
from trio_claude.messages import Options
from trio_claude.stream_json import arguments, control_line, is_reply, user_line
from trio_claude.testing.messages_api import open_messages_api
from trio_claude.workplace import find_cli

PROMPT = "Say hello."
PROFILES = "approve", "lean"
TOKEN = "content_block_delta"
REST = 1.0
"""Seconds between two measurements, in which a pool that was used is filled again and the machine comes to rest."""


@attrs.frozen
class Took:
    """Milliseconds from the call to the first token, and those of them outside of the CLI."""

    whole: float
    outside: float

    @classmethod
    def since(cls, asked: int, came: int, notes: Path, *, warm: bool) -> Took:
        """Reckon with the nanoseconds of both, and with what the shim noted."""
        began, prompt, first = take_notes(notes)
        return cls((came - asked) / MILLION, ((prompt if warm else began) - asked + came - first) / MILLION)


Way = Callable[[], Awaitable[Took]]


async def from_engine(engine: Engine, notes: Path, *, warm: bool) -> Took:
    """Return how long the first token of a run takes."""
    if warm:
        while not engine.runs.pool.ready:
            await trio.sleep(0.05)
        await trio.sleep(REST)
    came = 0
    asked = time.monotonic_ns()
    async with open_run(PROMPT, engine=engine, partial=True) as run:
        async for line in run:
            if not came and TOKEN in line:
                came = time.monotonic_ns()
    assert run.outcome
    assert run.outcome.receipt.survivors == 0
    return Took.since(asked, came, notes, warm=warm)


async def bare(words: list[str], environ: dict[str, str], cwd: Path, notes: Path, *, warm: bool) -> Took:
    """Return how long the first token of a CLI takes that nobody contains."""
    asked = time.monotonic_ns()
    process = await trio.lowlevel.open_process(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ, cwd=cwd, start_new_session=True
    )
    try:
        if warm:
            await process.stdin.send_all(control_line("0", "initialize"))
            await _read_until(process, lambda line: is_reply(line, "0"))
            await trio.sleep(REST)
            asked = time.monotonic_ns()
        await process.stdin.send_all(user_line(PROMPT))
        await process.stdin.aclose()
        await _read_until(process, lambda line: TOKEN.encode() in line)
        came = time.monotonic_ns()
        await _read_until(process, lambda _: False)
        await process.wait()
        return Took.since(asked, came, notes, warm=warm)
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
async def open_ways(home: Path, api: str, shim: Path) -> AsyncIterator[dict[str, Way]]:
    """Yield the ways to a first token."""
    notes = home / "notes"
    environ = {
        **environment(home, api),
        "CLAUDE_BENCH_CLI": str(find_cli(Config())), "CLAUDE_BENCH_NOTES": str(notes),
    }  # fmt: skip
    common = Config(cwd=str(home), cli=str(shim), pool_partial=True)
    ways: dict[str, Way] = {}
    async with AsyncExitStack() as stack:
        for profile in PROFILES:
            words = arguments(Options(partial=True), profile, cli_settings=False, files={})
            for warm in (False, True):
                config = attrs.evolve(common, profile=profile, pool_size=int(warm))
                engine = await stack.enter_async_context(open_engine(config, environ=environ))
                name = f"{profile}, {'pool' if warm else 'cold'}"
                ways[name] = lambda engine=engine, warm=warm: from_engine(engine, notes, warm=warm)
                ways[f"{profile}, bare {'warm' if warm else 'cold'}"] = lambda words=words, warm=warm: bare(
                    [str(shim), *words], {**environ, "TMPDIR": str(home)}, home, notes, warm=warm
                )
        yield ways


async def main(rounds: int, file: Path | None) -> None:
    """Print the figures."""
    print(f"first token; real CLI; {machine()}")
    found: dict[str, list[Took]] = {}
    with compiled() as native, tempfile.TemporaryDirectory(prefix="tcb-", dir="/tmp") as name:
        async with open_messages_api() as api, open_ways(Path(name), api.url, native.shim) as ways:
            for number in range(rounds + 1):
                for way, measure in ways.items():
                    await trio.sleep(REST / 4)
                    took = await measure()
                    if number:  # the first round warms the disk
                        found.setdefault(way, []).append(took)
    titles = ["ms, medians (and p90)", "to the first token", "of them outside of the CLI"]
    print(aligned([titles, *map(_row, found.items())]))
    for profile in PROFILES:
        _tell(profile, {way: found[f"{profile}, {way}"] for way in ("cold", "bare cold", "pool", "bare warm")})
    if file:
        times = {way: [attrs.astuple(took) for took in times] for way, times in found.items()}
        file.write_text(json.dumps({"machine": machine(), "ms": times}, indent=1))


def _row(found: tuple[str, list[Took]]) -> list[str]:
    way, times = found
    shares = [[took.whole for took in times], [took.outside for took in times]]
    return [way, *(f"{median(share):.1f} ({percentile(share, 0.9):.1f})" for share in shares)]


def _tell(profile: str, found: dict[str, list[Took]]) -> None:
    """Say how much sooner a hit of the pool is than a cold start, and what each of them adds to the CLI's own time."""
    outside = {way: median([took.outside for took in times]) for way, times in found.items()}
    whole = {way: median([took.whole for took in times]) for way, times in found.items()}
    print(
        f"{profile}: pool / cold {whole['pool'] / whole['cold']:.2f}; "
        f"a hit adds {outside['pool'] - outside['bare warm']:.2f} ms, "
        f"a cold start {outside['cold'] - outside['bare cold']:.2f} ms (by the clock, medians)"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, dest="file")
    options = parser.parse_args()
    trio.run(main, options.rounds, options.file)
