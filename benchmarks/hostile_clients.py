"""Hostile clients by the thousand against a server in a process of its own.

    python benchmarks/hostile_clients.py --connections 10000 --families all --seed N [--known]

The families are those of `tests/support/hostile.py`; `--families` takes names or patterns with commas between. The
server has the default limits and the fake CLI. Between the hostile connections come polite ones that say something
wrong, and hear so. Families that start a CLI come up for a quarter as often as the others. With `--known` the server
wants keys: the polite have one, the hostile do not. A process of its own has prompts answered all the time, checks the
answers word by word and takes the time to each first line, before the attack and during it. The attackers yield the
processors to all others, as attackers do that have their own machines; each has a session of its own, as some kernels
share the processors out by sessions first.

The exit status is 0 where the server lived, every polite client was answered rightly, nothing crashed inside, and
tasks, runs, their processes and descriptors are back to what they were before the first connection; the descriptors of
supervisors that wait for their next run are not counted. Memory is printed only: its growth since the warm-up, which
takes the first 1,000 connections beyond `--connections`.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import math
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import attrs
import trio
import trio.testing

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from harness import FAKE_ENV, bearing, connect, fake_program, held, listen, short_folder
from hostile import CRASHES, FAMILIES, RUNS

from trio_claude.commands.process import take_process
from trio_claude.config import Config
from trio_claude.events import Crashed, Event
from trio_claude.identity.keys import Key, digest, new_secret, write_keys
from trio_claude.server import open_server

WARM_UP = 1000
AT_ONCE = 48
"""Hostile connections at once."""
POLITE_EVERY = 25
"""Hostile connections between two polite ones."""
STEP = 1000
"""Hostile connections between two looks at the server's memory."""
RARE = 0.25
"""How often families that start a CLI come up, by the others' measure."""
QUIET = 20.0
"""Seconds before the attack in which first lines are timed, which those during the attack are compared with."""
PAUSE = 0.05
"""Seconds between two prompts."""
SETTLE = 15.0
"""Seconds in which everything must be given back at the end."""
AWAY = 20e-6
"""Seconds that the attackers leave the processor to who waits for it, each round of their loop."""
LAST = "19"
"""The niceness of who yields to all."""
SHOWN = 5
"""Wrong answers and crashes that are printed."""


# -- the server's process ---------------------------------------------------------------------------------------------


async def serve(mark: str, key: str) -> None:
    """Serve until stdin ends, those with `key` if there is one; tell what goes on for each line on stdin."""
    crashes: list[str] = []
    take_process()

    def observe(event: Event) -> None:
        if isinstance(event, Crashed):
            crashes.append(f"{event.where}: {event.error!r}")

    with short_folder() as folder:
        config = Config(port=0, cli=str(fake_program(folder)), cwd=str(folder), env=("TCT_BACKEND",), drain_timeout=0)
        if key:
            write_keys(folder / "keys.json", {"polite": Key(digest(key))})
            config = attrs.evolve(config, cwd="", keys=str(folder / "keys.json"), state=str(folder / "state"))
        environ = {**FAKE_ENV, "TCT_BACKEND": mark}
        async with open_server(config, [observe], environ=environ) as server:
            await trio.testing.wait_all_tasks_blocked()
            async for _ in trio.lowlevel.FdStream(os.dup(0)):
                runs = server.runs.statistics()
                told = {
                    "port": server.port,
                    "descriptors": held(server),
                    "tasks": trio.lowlevel.current_statistics().tasks_living,
                    "runs": runs.live + runs.waiting,
                    "crashes": len(crashes),
                    "first_crashes": crashes[:SHOWN],
                }
                print(json.dumps(told), flush=True)


@attrs.frozen
class State:
    """What the server holds."""

    port: int
    descriptors: int
    tasks: int
    runs: int
    crashes: int
    first_crashes: list[str]
    resident: int

    def holds(self) -> tuple[int, int, int]:
        """Return what must come back to what it was."""
        return self.descriptors, self.tasks, self.runs


class Target:
    """The server under attack, as a child."""

    def __init__(self, mark: str, key: str) -> None:
        words = [sys.executable, __file__, "--server", mark, "--key", key]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)

    async def look(self) -> State:
        """Ask the server what it holds. Raises OSError or ValueError where it is dead."""
        told = await trio.to_thread.run_sync(self._ask)
        folder = Path(f"/proc/{self._process.pid}")
        resident = int((folder / "status").read_text().partition("VmRSS:")[2].split()[0])
        return State(resident=resident, **told)

    def _ask(self) -> dict[str, object]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        told: dict[str, object] = json.loads(self._process.stdout.readline())
        return told

    @property
    def dead(self) -> bool:
        """Whether the server has ended."""
        return self._process.poll() is not None

    def stop(self) -> None:
        """End the server by the end of its stdin, and by force if it does not follow."""
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()


# -- the clients ------------------------------------------------------------------------------------------------------


class Assault:
    """Hostile connections, so many at once, with polite ones between."""

    def __init__(self, target: Target, port: int, names: list[str], seed: str, key: str) -> None:
        self.port = port
        self._key = key or None
        self.right = 0
        self.wrong: list[str] = []
        self.count: Counter[str] = Counter()
        self._target = target
        self._names = names
        self._weights = [RARE if name in RUNS else 1.0 for name in names]
        self._rng = random.Random(seed)

    async def rage(self, connections: int) -> None:
        """Make so many hostile connections; stops where the server is dead."""
        slots = trio.CapacityLimiter(AT_ONCE)
        async with trio.open_nursery() as nursery:
            for number in range(connections):
                if self._target.dead:
                    return
                if number % POLITE_EVERY == 0:
                    nursery.start_soon(self._be_polite)
                name = self._rng.choices(self._names, self._weights)[0]
                self.count[name] += 1
                ticket = object()
                await slots.acquire_on_behalf_of(ticket)
                nursery.start_soon(self._connect, name, random.Random(self._rng.getrandbits(64)), slots, ticket)

    async def _connect(self, name: str, rng: random.Random, slots: trio.CapacityLimiter, ticket: object) -> None:
        try:
            await FAMILIES[name](self.port, rng)
        finally:
            slots.release_on_behalf_of(ticket)

    async def _be_polite(self) -> None:
        try:
            with trio.fail_after(30):
                wrong = await self._refused()
        except Exception as error:
            wrong = repr(error)
        if wrong:
            self.wrong.append(wrong)
        else:
            self.right += 1

    async def _refused(self) -> str:
        """Have a wrong message refused; return what is wrong with the refusal."""
        async with connect(self, key=self._key) as socket:
            await socket.send_message("{}")
            said = await listen(socket)
        good = said.code == 1008 and said.objects == [{"info": "send {prompt,meta}"}, {"error": "prompt is missing"}]
        return "" if good else repr(said)[-500:]


@attrs.frozen
class Watched:
    """What `connect` needs of a server."""

    port: int


async def watch(port: int, key: str) -> None:
    """Have prompts answered, `PAUSE` seconds apart; tell for each line on stdin how it went since the last."""
    firsts: list[float] = []
    wrong: list[str] = []
    async with trio.open_nursery() as nursery:

        async def call() -> None:
            while True:
                try:
                    with trio.fail_after(30):
                        firsts.append(await first_line(Watched(port), key))
                except Exception as error:  # whatever keeps a prompt from its answer is a wrong answer, and is shown
                    wrong.append(repr(error))
                await trio.sleep(PAUSE)

        nursery.start_soon(call)
        async for _ in trio.lowlevel.FdStream(os.dup(0)):
            print(json.dumps({"firsts": firsts, "wrong": wrong}), flush=True)
            firsts.clear()
            wrong.clear()
        nursery.cancel_scope.cancel()


async def first_line(server: Watched, key: str) -> float:
    """Return the seconds from a prompt to its first line, and read to the end. Raises ValueError for a wrong answer."""
    async with connect(server, key=key or None) as socket:
        await socket.get_message()
        began = time.perf_counter()
        await socket.send_message(json.dumps({"prompt": "hi", "meta": "POLITE"}))
        await socket.get_message()
        took = time.perf_counter() - began
        said = await listen(socket)
    if said.code != 1000 or [result["result"] for result in said.of_type("result")] != ["Hello from stub."]:
        raise ValueError(repr(said)[-500:])
    return took


@attrs.frozen
class Heard:
    """The times to the first lines of right answers, and what was wrong with the others."""

    firsts: list[float]
    wrong: list[str]


class Watcher:
    """The process that has prompts answered."""

    def __init__(self, port: int, key: str) -> None:
        words = [sys.executable, __file__, "--watch", str(port), "--key", key]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)

    def told(self) -> Heard:
        """Return what was heard since the last call."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        return Heard(**json.loads(self._process.stdout.readline()))

    def stop(self) -> None:
        """End the process by the end of its stdin."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(20)


async def settled(target: Target, before: State) -> State:
    """Return what the server holds once it is what it was, or at the end of `SETTLE`."""
    ends = trio.current_time() + SETTLE
    while (state := await target.look()).holds() != before.holds() and trio.current_time() < ends:
        await trio.sleep(0.2)
    return state


class Pauses(trio.abc.Instrument):
    """Leaves the processor each round of the loop: a kernel that shares it out by sessions takes it only each tick."""

    def before_io_wait(self, _timeout: float) -> None:
        """Let others have it that wait."""
        time.sleep(AWAY)  # it blocks this process on purpose, which alone has the attackers; the others run meanwhile


def step_back() -> None:
    """Yield the processors to everything else, also to other sessions."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with contextlib.suppress(FileNotFoundError):  # the kernel does not share them out by sessions
        Path("/proc/self/autogroup").write_text(LAST)
    trio.lowlevel.add_instrument(Pauses())


def percentile(seconds: list[float], share: float) -> float:
    """Return a percentile in milliseconds, not a number where there is nothing to take it of."""
    if not seconds:
        return math.nan
    return 1000 * sorted(seconds)[int(share * (len(seconds) - 1))]


async def attack(connections: int, names: list[str], seed: str, key: str) -> bool:
    """Attack a server and print what came of it; return whether it stood."""
    mark = secrets.token_hex(8)
    target = Target(mark, key)
    try:
        before = await target.look()
        assault = Assault(target, before.port, names, seed, key)
        await assault.rage(WARM_UP)
        await settled(target, before)
        watcher = Watcher(before.port, key)
        step_back()
        await trio.sleep(QUIET)
        quiet = watcher.told()
        warm = await target.look()
        began = time.monotonic()
        curve = [warm.resident]
        for begun in range(0, connections, STEP):
            await assault.rage(min(STEP, connections - begun))
            curve.append((await target.look()).resident)
        seconds = time.monotonic() - began
        beside = watcher.told()
        watcher.stop()
        after = await settled(target, before)
    except (OSError, ValueError):
        print(f"seed {seed}: the server died")
        return False
    finally:
        target.stop()
    left = len(bearing(f"TCT_BACKEND={mark}"))
    print(f"seed                  {seed}")
    print(f"connections           {WARM_UP} + {connections} of {len(names)} families, {len(assault.count)} seen")
    print(f"connections/s         {connections / seconds:.0f}")
    print("server deaths         0")
    print(f"crashes               {after.crashes}")
    wrong = [*assault.wrong, *quiet.wrong, *beside.wrong]
    print(f"polite, right/wrong   {assault.right + len(quiet.firsts) + len(beside.firsts)}/{len(wrong)}")
    for share in (0.5, 0.99):
        before_it, during_it = percentile(quiet.firsts, share), percentile(beside.firsts, share)
        print(
            f"first line p{100 * share:.0f}, ms    {before_it:.1f} of {len(quiet.firsts)} quiet, {during_it:.1f} of"
            f" {len(beside.firsts)} during the attack: {during_it / before_it:.2f}"
        )
    print(f"descriptors           {before.descriptors} -> {after.descriptors}")
    print(f"tasks                 {before.tasks} -> {after.tasks}")
    print(f"runs and processes    {after.runs} and {left} left")
    print(f"memory, KiB           {warm.resident} -> {after.resident}: {after.resident - warm.resident:+d}")
    print(f"memory each {STEP}      {' '.join(f'{resident - warm.resident:+d}' for resident in curve)}")
    for text in [*wrong[:SHOWN], *after.first_crashes]:
        print(f"  {text}")
    crashed = after.crashes > 0 and not CRASHES
    return not (wrong or crashed or left or after.holds() != before.holds())


def chosen(patterns: str) -> list[str]:
    """Return the families that patterns name."""
    wanted = ["*"] if patterns == "all" else patterns.split(",")
    return [name for name in FAMILIES if any(fnmatch.fnmatch(name, pattern) for pattern in wanted)]


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=10_000, help="hostile connections behind the warm-up")
    parser.add_argument("--families", default="all", help="names or patterns, commas between")
    parser.add_argument("--seed", default=secrets.token_hex(4), help="what the connections follow from")
    parser.add_argument("--list", action="store_true", help="print the families and end")
    parser.add_argument("--known", action="store_true", help="serve those only who have a key")
    parser.add_argument("--apart", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--server", help=argparse.SUPPRESS)
    parser.add_argument("--watch", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--key", default="", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.server:
        trio.run(serve, words.server, words.key)
        return 0
    if words.watch:
        trio.run(watch, words.watch, words.key)
        return 0
    names = chosen(words.families)
    if words.list or not names:
        print("\n".join(f"{name:30} {FAMILIES[name].__doc__}" for name in names or FAMILIES))
        return 0 if names else 2
    if not words.apart:
        return subprocess.run([sys.executable, *sys.argv, "--apart"], start_new_session=True, check=False).returncode
    return 0 if trio.run(attack, words.connections, names, words.seed, new_secret() if words.known else "") else 1


if __name__ == "__main__":
    sys.exit(main())
