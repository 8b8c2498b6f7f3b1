"""Rule: a fault of the machine, or a killed helper, hits the runs that it must; they say why, and all others go on.

After each fault the next run works within `RECOVERY` seconds, and no descriptor and no process is left behind.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
from harness import (
    MODES,
    Backend,
    Said,
    alive,
    ask,
    bearing,
    connect,
    descriptors,
    directive,
    few_descriptors,
    held,
    listen,
    parent,
    until,
    zygotes,
)

from trio_claude.containment import marks
from trio_claude.events import Crashed, GuardianLost, Receipt, RunEnded, RunStarted
from trio_claude.server import Server

RECOVERY = 5.0
"""Seconds after a fault within which a new run works."""
BOTH = pytest.mark.parametrize("mode", MODES)
LOST = "the guardian of this run was lost"
KINDS = ["plain", "setsid", "double_fork", "ignore_term", "stopped", "hold_stdout"]
"""What a run leaves about; all of it keeps its environment, so that a survivor would be seen."""


# -- the helpers, as seen from outside --------------------------------------------------------------------------------


def name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def supervisor(cli: int) -> int:
    """Return the supervisor of a CLI, which is its parent, and in a namespace the init."""
    assert name(parent(cli)) in ("trio-claude-run", "trio-claude-ini")
    return parent(cli)


async def new_zygote(old: int = 0) -> int:
    """Wait for a zygote that is not `old`."""
    await until(lambda: set(zygotes()) - {old})
    return next(pid for pid in zygotes() if pid != old)


# -- a run that the fault must not touch, and what must hold after it -------------------------------------------------


@attrs.define
class Scene:
    """A server with a run on it that no fault may touch."""

    server: Server
    fake: Backend
    bystander: int

    async def started(self, meta: str) -> int:
        """Wait for the start of the run of that name; return its CLI."""
        return await started(self.fake, meta)

    def receipt(self) -> Receipt:
        """Return the receipt of the run that ended last."""
        return [event for event in self.fake.events if isinstance(event, RunEnded)][-1].outcome.receipt

    async def recover(self) -> None:
        with trio.fail_after(RECOVERY):
            said = await ask(self.server, "hello")
        assert said.code == 1000, said


async def started(fake: Backend, meta: str) -> int:
    def found() -> list[int]:
        return [event.pid for event in fake.events if isinstance(event, RunStarted) and event.meta == meta]

    await until(found)
    return found()[-1]


@asynccontextmanager
async def scene(fake: Backend, **config: object) -> AsyncIterator[Scene]:
    """Serve, with a run that is there all the time; in the end it has lost nothing, and nothing is left of any run."""
    before = descriptors()
    async with fake.serve(**config) as server:
        assert (await ask(server, "hello")).code == 1000
        resting = held(server)
        async with connect(server) as client:
            await client.send_message(json.dumps({"prompt": directive("silent"), "meta": "BYSTANDER"}))
            made = Scene(server, fake, await started(fake, "BYSTANDER"))
            yield made
            await made.recover()
            assert alive(made.bystander)
            assert [event.meta for event in fake.ended].count("BYSTANDER") == 0
        await until(lambda: not server.runs.statistics().live)
        await until(lambda: held(server) == resting)
    assert descriptors() == before
    assert fake.left() == []
    assert [event for event in fake.events if isinstance(event, Crashed)] == []


@asynccontextmanager
async def asking(scene: Scene, prompt: str) -> AsyncIterator[list[Said]]:
    """Send a prompt; leaving waits for the answer, which is in the list then."""
    said: list[Said] = []
    async with trio.open_nursery() as nursery:

        async def client() -> None:
            said.append(await ask(scene.server, prompt, meta="VICTIM"))

        nursery.start_soon(client)
        yield said


async def planted(scene: Scene) -> int:
    """Wait until the victim's tree stands; return its CLI."""
    cli = await scene.started("VICTIM")

    def mark() -> str:
        """Say what marks the tree; nothing as long as the process is between its fork and its program."""
        words = Path(f"/proc/{cli}/environ").read_bytes().split(b"\0")
        return next((word.decode() for word in words if word.startswith(b"TRIO_CLAUDE_RUN=")), "")

    await until(lambda: mark() and len(bearing(mark())) > len(KINDS))
    return cli


TREE = directive("tree", kinds=KINDS, seconds=60, then="stay")


# -- killed and stopped helpers ---------------------------------------------------------------------------------------


@BOTH
async def test_a_killed_supervisor_costs_its_own_run(fake: Backend, mode: str) -> None:
    async with scene(fake, containment=mode) as stage:
        async with asking(stage, TREE) as said:
            cli = await planted(stage)
            os.kill(supervisor(cli), signal.SIGKILL)
        assert (said[0].errors[-1]["error"], said[0].code) == (LOST, 1011)
        assert stage.receipt().survivors == 0
        assert not alive(cli)


@BOTH
@pytest.mark.parametrize("zygote_first", [True, False])
async def test_zygote_and_supervisor_killed_together(fake: Backend, mode: str, zygote_first: bool) -> None:
    """Nobody is left to prove anything; what can be recognised is ended all the same, and the receipt does not lie."""
    async with scene(fake, containment=mode) as stage:
        async with asking(stage, TREE) as said:
            cli = await planted(stage)
            pair = [*zygotes(), supervisor(cli)]
            for pid in pair if zygote_first else pair[::-1]:
                os.kill(pid, signal.SIGKILL)
        assert (said[0].errors[-1]["error"], said[0].code) == (LOST, 1011)
        assert fake.left() == [stage.bystander]
        assert GuardianLost("zygote") in fake.events


async def test_what_nobody_tells_of_gets_time_to_end(fake: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine ends a killed process late; that is no survivor."""
    kill, looks = marks.kill, itertools.count()
    monkeypatch.setattr(marks, "kill", lambda mark: kill(mark) if next(looks) >= 20 else marks.find(mark))
    async with scene(fake, containment="supervisor") as stage:
        async with asking(stage, TREE) as said:
            for pid in [*zygotes(), supervisor(await planted(stage))]:
                os.kill(pid, signal.SIGKILL)
        assert (said[0].errors[-1]["error"], said[0].code) == (LOST, 1011)
        assert next(looks) > 20
        assert fake.left() == [stage.bystander]


@BOTH
@pytest.mark.parametrize("ending", ["deadline", "client"])
async def test_a_stopped_supervisor_holds_no_run(fake: Backend, mode: str, ending: str) -> None:
    async with scene(fake, containment=mode) as stage:
        async with connect(stage.server) as client:
            options = {"timeout": 5} if ending == "deadline" else {}
            await client.send_message(json.dumps({"prompt": TREE, "meta": "VICTIM", **options}))
            cli = await planted(stage)
            os.kill(supervisor(cli), signal.SIGSTOP)
            if ending == "deadline":
                said = await listen(client)
                assert (said.errors[-1]["error"], said.code) == ("timed out after 5 s", 1011)
        await until(lambda: any(event.meta == "VICTIM" for event in fake.ended), 8)
        assert stage.receipt().survivors == 0
        assert not alive(cli)


@BOTH
async def test_a_stopped_zygote_holds_no_run_of_others(fake: Backend, mode: str) -> None:
    async with scene(fake, containment=mode) as stage:
        os.kill(zygotes()[0], signal.SIGSTOP)
        await stage.recover()


@BOTH
async def test_a_zygote_killed_while_runs_start(fake: Backend, mode: str, long: bool) -> None:
    """At a random moment, again and again: each run works, as what the zygote had not begun is begun by the next."""
    seed = secrets.token_hex(4)
    print(f"seed {seed}")
    chance = random.Random(seed)
    codes: list[int] = []
    async with scene(fake, containment=mode) as stage:
        for _ in range(200 if long else 15):
            said: list[Said] = []
            async with trio.open_nursery() as nursery:

                async def client(said: list[Said] = said) -> None:
                    said.append(await ask(stage.server, directive("tree", kinds=["setsid"], seconds=60, then="exit")))

                for _ in range(4):
                    nursery.start_soon(client)
                await trio.sleep(chance.random() * 0.05)
                os.kill(await new_zygote(), signal.SIGKILL)
            for one in said:
                assert one.code == 1000, one
            codes += [one.code for one in said]
            await stage.recover()
        assert {event.outcome.receipt.survivors for event in fake.ended} <= {0, None}
    print(f"{codes.count(1000)} of {len(codes)} runs worked")


async def test_a_zygote_killed_while_it_starts_delays_nobody(fake: Backend) -> None:
    """Who waits for a zygote that never gets ready goes on with the next one."""
    async with scene(fake) as stage:
        first = zygotes()[0]
        os.kill(first, signal.SIGKILL)
        second = await new_zygote(first)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.recover)
            await trio.sleep(0.005)
            os.kill(second, signal.SIGKILL)


# -- no descriptors ---------------------------------------------------------------------------------------------------


@BOTH
async def test_no_descriptor_left_at_any_moment_of_a_start(fake: Backend, mode: str) -> None:
    """From the first pipe to the guardian's pidfd: the run says which limit it met, or it works."""
    codes = []
    async with scene(fake, containment=mode) as stage:
        for spare in range(12):
            async with connect(stage.server) as client:
                with few_descriptors(spare):
                    await client.send_message('{"prompt":"hello","meta":"T"}')
                    said = await listen(client)
            codes.append(said.code)
            assert said.code == 1000 or "Too many open files" in str(said.errors[-1]["error"]), (spare, said)
    assert codes == sorted(codes, reverse=True)
    assert set(codes) == {1000, 1011}


async def test_no_descriptor_left_for_the_next_zygote(fake: Backend) -> None:
    """Runs are refused as long as there is none; the server stays, and goes on when there is one again."""
    async with scene(fake) as stage:
        async with connect(stage.server) as client:
            zygote = zygotes()[0]
            with few_descriptors(0):
                os.kill(zygote, signal.SIGKILL)
                await until(lambda: GuardianLost("zygote") in fake.events)
                await trio.sleep(0.3)
                await client.send_message('{"prompt":"hello","meta":"T","timeout":60}')
                await trio.sleep(0.3)
            said = await listen(client)
        assert said.code in (1000, 1011)


# -- no space ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def serving_in_a_small_tmp(fake: Backend, folder: Path) -> AsyncIterator[tuple[Server, Path]]:
    """Serve with a TMPDIR of 64 KiB and 24 files, mounted for the server alone; yield also our way into it."""
    tmp = folder / "tmp"
    tmp.mkdir()
    mount = f"mount -t tmpfs -o size=64k,nr_inodes=24 none {tmp}"
    words = [sys.executable, "-m", "trio_claude", "serve", "--port", "0", "--cli", fake.program, "--env", "TCT_BACKEND"]
    process = await trio.lowlevel.open_process(
        ["unshare", "--mount", "sh", "-ec", f'{mount}; exec "$@"', "sh", *words],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=fake.cwd,
        env={**fake.environ, "TMPDIR": str(tmp), "TCT_BACKEND": fake.mark},
    )  # fmt: skip
    try:
        told = b""
        with trio.fail_after(30):
            while not told.endswith(b"\n"):
                told += await process.stdout.receive_some()
        yield _At(int(told.rpartition(b":")[2])), Path(f"/proc/{process.pid}/root{tmp}")  # type: ignore[misc]
    finally:
        with trio.CancelScope(shield=True):
            process.terminate()
            await process.wait()
            await process.stdout.aclose()


@attrs.frozen
class _At:
    """What the clients here need of a server."""

    port: int


def fill(tmp: Path) -> None:
    with contextlib.suppress(OSError), (tmp / "filler").open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass


def crowd(tmp: Path) -> None:
    with contextlib.suppress(OSError):
        for number in range(100):
            (tmp / f"filler{number}").touch()


def clear(tmp: Path) -> None:
    for path in tmp.glob("filler*"):
        path.unlink()


@pytest.mark.root
@pytest.mark.parametrize("exhaust", [fill, crowd])
async def test_no_space_for_temporary_files(fake: Backend, folder: Path, exhaust: object) -> None:
    async with serving_in_a_small_tmp(fake, folder) as (server, tmp):
        assert (await ask(server, "hello")).code == 1000
        kept = sorted(path.name for path in tmp.rglob("*"))
        exhaust(tmp)  # type: ignore[operator]
        said = await ask(server, "hello", system_prompt="x" * 4000)
        assert said.code == 1011, said
        assert said.reason.split(";")[0] == "not started"
        assert "No space left on device" in str(said.errors[-1]["error"])
        clear(tmp)
        with trio.fail_after(RECOVERY):
            assert (await ask(server, "hello", system_prompt="x" * 4000)).code == 1000
        assert sorted(path.name for path in tmp.rglob("*")) == kept
    assert fake.left() == []
    assert list((folder / "tmp").iterdir()) == []
