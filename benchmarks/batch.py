"""Many prompts by `trio-claude batch`, beside `xargs -P` with as many at once and the same flags.

    python benchmarks/batch.py --fake 500 --real 50 --concurrency 4 --rounds 5 --json batch.json

Both give each CLI its prompt as a stream-json line on stdin and keep its lines in a file. Rounds are interleaved, and
which comes first changes. Then both run prompts that leave a daemon behind: what is alive when the command has ended is
counted by membership of a control group that this program made and the command was started in, whatever the daemon
did to its session, parent or environment. Without a writable cgroup2 the daemons are known by a variable.

The real CLI talks to a stub of the Messages API in this process, with a home and a key that are none.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import trio
from chaos import JOIN, Group, find_cgroup2
from common import machine, median

from trio_claude.commands.demo import environment, write_fake
from trio_claude.config import Config
from trio_claude.messages import Options
from trio_claude.stream_json import arguments, user_line
from trio_claude.testing.messages_api import open_messages_api
from trio_claude.workplace import find_cli

PROFILE = "approve"
PLAIN = "hello"
FAKE_DAEMON = '@@{"do":"tree","kinds":["double_fork"],"seconds":120}@@hello'
REAL_DAEMON = '@@{"do":"bash","cmd":"setsid sleep 120 >/dev/null 2>&1 & echo left"}@@'
ALLOW = "--allowed-tools=Bash"
SETTLE = 0.5
"""Seconds after a command's end before what is left is counted; a daemon that is about to exit may."""
MARK = "LC_TRIO_CLAUDE_BENCH"


@attrs.frozen
class Bench:
    """One CLI, real or fake, and where it runs."""

    kind: str
    program: Path
    env: dict[str, str]
    concurrency: int
    mode: str

    def words(self, more: str) -> list[str]:
        """Return the CLI's flags, the same for both."""
        return [*arguments(Options(), PROFILE, cli_settings=False, files={}), *([more] if more else [])]


@attrs.frozen
class Measured:
    """What one command did: wall seconds, good results, processes left."""

    seconds: float
    ok: int
    left: int


# -- what is left -----------------------------------------------------------------------------------------------------


class Cage:
    """Knows what of a command is alive: by control group, or by a variable where there can't be one."""

    def __init__(self) -> None:
        self.mark = secrets.token_hex(8)
        self.group: Group | None = None
        with suppress(OSError):
            self.group = Group.make(find_cgroup2() / f"trio-claude-bench-{self.mark}")

    def prefix(self) -> list[str]:
        """Return the words that start a command inside."""
        return ["/bin/sh", "-c", JOIN, str(self.group.path)] if self.group else []

    def members(self) -> list[int]:
        """Return the pids that are alive."""
        return self.group.members() if self.group else _bearing(f"{MARK}={self.mark}")

    async def close(self) -> None:
        """End what is left."""
        if self.group:
            await self.group.remove()
            return
        for pid in self.members():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _bearing(variable: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and variable.encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


async def measure(bench: Bench, words: list[str], folder: Path, good: Callable[[], int]) -> Measured:
    """Run one command to its end and look at what it has left."""
    cage = Cage()
    try:
        began = time.perf_counter()
        await trio.run_process(
            [*cage.prefix(), *words], env={**bench.env, MARK: cage.mark}, cwd=folder, stdin=subprocess.DEVNULL,
            capture_stderr=True, check=False,
        )  # fmt: skip
        seconds = time.perf_counter() - began
        await trio.sleep(SETTLE)
        return Measured(seconds, good(), len(cage.members()))
    finally:
        with trio.CancelScope(shield=True):
            await cage.close()


# -- the two commands -------------------------------------------------------------------------------------------------


async def by_batch(bench: Bench, prompt: str, count: int, more: str) -> Measured:
    """Run `count` prompts by `trio-claude batch`."""
    with tempfile.TemporaryDirectory(prefix="tcb-") as name:
        folder = Path(name)
        (folder / "tasks.jsonl").write_text((json.dumps({"prompt": prompt}) + "\n") * count)
        words = [
            sys.executable, "-m", "trio_claude", "batch", "tasks.jsonl", "--lines", "lines",
            "--cli", str(bench.program), "--concurrency", str(bench.concurrency),
            "--profile", PROFILE, "--containment", bench.mode, *(["--cli-args", more] if more else []),
        ]  # fmt: skip
        return await measure(bench, words, folder, lambda: _good(folder.glob("lines/*.jsonl")))


async def by_xargs(bench: Bench, prompt: str, count: int, more: str) -> Measured:
    """Run `count` prompts by `xargs -P`."""
    with tempfile.TemporaryDirectory(prefix="tcb-") as name:
        folder = Path(name)
        for number in range(count):
            (folder / f"{number}.in").write_bytes(user_line(prompt))
        (folder / "list").write_text("".join(f"{number}\n" for number in range(count)))
        script = 'exec "$@" < "$0.in" > "$0.out"'
        one = ["-I", "{}", "/bin/sh", "-c", script, "{}", str(bench.program), *bench.words(more)]
        words = ["xargs", "-a", "list", "-P", str(bench.concurrency), *one]
        return await measure(bench, words, folder, lambda: _good(folder.glob("*.out")))


def _good(paths: Any) -> int:
    """Return how many of the files hold a good result."""
    said = (json.loads(line) for path in paths for line in path.read_text().splitlines() if '"result"' in line)
    return sum(line.get("type") == "result" and not line["is_error"] for line in said)


# -- what is printed --------------------------------------------------------------------------------------------------


async def compare(bench: Bench, count: int, rounds: int) -> dict[str, Any]:
    """Run interleaved rounds; print and return medians and their ratio."""
    found: dict[str, list[float]] = {"batch": [], "xargs": []}
    ways = [("batch", by_batch), ("xargs", by_xargs)]
    for number in range(rounds):
        for name, way in ways if number % 2 == 0 else ways[::-1]:
            measured = await way(bench, PLAIN, count, "")
            if measured.ok != count:
                raise SystemExit(f"{name}: {measured.ok} of {count} prompts had a good result")
            found[name].append(measured.seconds)
    ours, theirs = median(found["batch"]), median(found["xargs"])
    print(
        f"{bench.kind} CLI, {count} prompts, {bench.concurrency} at once, {rounds} rounds, containment {bench.mode}: "
        f"batch {ours:.2f} s, xargs {theirs:.2f} s, ratio {ours / theirs:.2f} (medians)"
    )
    return {"kind": bench.kind, "prompts": count, "seconds": found, "ratio": ours / theirs}


async def leave(bench: Bench, prompt: str, count: int, more: str) -> dict[str, Any]:
    """Run prompts that each leave a daemon behind; print and return what is left."""
    ours = await by_batch(bench, prompt, count, more)
    theirs = await by_xargs(bench, prompt, count, more)
    print(
        f"{bench.kind} CLI, {count} prompts that leave a daemon: left by batch {ours.left}, by xargs {theirs.left} "
        f"(good results: {ours.ok} and {theirs.ok})"
    )
    return {"kind": bench.kind, "daemons": count, "left": {"batch": ours.left, "xargs": theirs.left}}


@asynccontextmanager
async def open_bench(kind: str, concurrency: int, mode: str) -> AsyncIterator[Bench]:
    """Open one CLI's bench."""
    with tempfile.TemporaryDirectory(prefix="tcb-") as name:
        home = Path(name)
        async with open_messages_api() as api:
            program = write_fake(home) if kind == "fake" else find_cli(Config())
            yield Bench(kind, program, environment(home, api.url), concurrency, mode)


async def main(counts: dict[str, int], daemons: int, concurrency: int, rounds: int, mode: str) -> list[dict[str, Any]]:
    """Measure each CLI that is asked for."""
    print(f"batch against xargs; {machine()}; left counted by {'cgroup' if _has_cgroup() else 'variable'}")
    found = []
    for kind, count in counts.items():
        if not count:
            continue
        async with open_bench(kind, concurrency, mode) as bench:
            found.append(await compare(bench, count, rounds))
            prompt, more = (FAKE_DAEMON, "") if kind == "fake" else (REAL_DAEMON, ALLOW)
            found.append(await leave(bench, prompt, min(daemons, count), more))
    return found


def _has_cgroup() -> bool:
    try:
        find_cgroup2()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fake", type=int, default=500, help="prompts on the fake CLI")
    parser.add_argument("--real", type=int, default=50, help="prompts on the real CLI; 0 leaves it out")
    parser.add_argument("--daemons", type=int, default=20, help="prompts that leave a daemon")
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mode", default="auto", help="containment of batch")
    parser.add_argument("--json", type=Path, help="where the figures go")
    chosen = parser.parse_args()
    if not shutil.which("xargs"):
        raise SystemExit("xargs is not installed")
    numbers = {"fake": chosen.fake, "real": chosen.real}
    figures = trio.run(main, numbers, chosen.daemons, chosen.concurrency, chosen.rounds, chosen.mode)
    if chosen.json:
        chosen.json.write_text(json.dumps({"machine": machine(), "figures": figures}, indent=1) + "\n")
