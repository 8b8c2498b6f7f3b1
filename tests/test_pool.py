"""Rule: a CLI that waited is handed out at once, for one run, and never one that spoke, ended, aged or could be reached."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from fakes import FakeContainment
from harness import FAKE_ENV, Backend, alive, ask, descriptors, directive, until

from trio_claude import open_run
from trio_claude.config import Config
from trio_claude.engine import Engine, open_engine
from trio_claude.events import Event, PoolReady, RunStarted, Strained
from trio_claude.pool import Pool, Slots
from trio_claude.workplace import Workplace

POOL = {"pool_size": 1, "profile": "lean"}


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.real_cli)])
async def backend(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Backend]:
    from harness import open_backend

    async with open_backend(request.param, folder) as opened:
        yield opened


def started(events: list[Event]) -> list[bool]:
    return [event.warm for event in events if isinstance(event, RunStarted)]


async def test_a_run_gets_the_cli_that_waited_and_another_one_is_started(backend: Backend) -> None:
    async with backend.serve(**POOL) as server:
        for _ in range(2):
            await until(lambda: server.runs.pool.ready == 1, 60)
            waiting = backend.left()
            said = await ask(server, directive("text", text="hello"), "?frames=verbatim")
            assert said.code == 1000
            assert said.objects[1]["type"] == "system", "nothing of the CLI's readiness is seen by a client"
            assert [line["result"] for line in said.of_type("result")] == ["hello"]
            assert not {pid for pid in waiting if alive(pid)} & set(backend.left()) or server.runs.pool.ready
        assert started(backend.events) == [True, True]
        assert server.runs.statistics().live == 0
    assert not backend.left()


@pytest.mark.parametrize(("model", "warm"), [("haiku", True), ("claude-haiku-5-5", False)])
async def test_a_model_that_no_api_has_to_know_is_set_on_a_cli_that_waited(
    backend: Backend, model: str, warm: bool
) -> None:
    async with backend.serve(**POOL) as server:
        await until(lambda: server.runs.pool.ready == 1, 60)
        said = await ask(server, directive("text", text="hello"), "?frames=verbatim", model=model, timeout=60)
    assert started(backend.events) == [warm]
    inits = [line for line in said.of_type("system") if line["subtype"] == "init"]
    assert ["haiku" in line["model"] for line in inits] == [True]
    assert not said.of_type("control_response")


async def test_a_model_of_the_operators_arguments_goes_before_a_clients(fake: Backend) -> None:
    async with fake.serve(**POOL, cli_args="--model=claude-sonnet-5-5") as server:
        await until(lambda: server.runs.pool.ready == 1)
        said = [await ask(server, "hello", "?frames=verbatim", **more) for more in ({"model": "haiku"}, {})]
    assert started(fake.events) == [False, True]
    assert {line["model"] for one in said for line in one.of_type("system")} == {"claude-sonnet-5-5"}


async def test_other_options_start_another_cli(fake: Backend) -> None:
    async with fake.serve(**POOL, max_runs=1) as server:
        await until(lambda: server.runs.pool.ready == 1)
        assert (await ask(server, directive("text", text="hello"), max_turns=3)).code == 1000, "the slot was given up"
        await until(lambda: server.runs.pool.ready == 1)
        assert (await ask(server, directive("text", text="hello"), partial=False)).code == 1000
    assert started(fake.events) == [False, True]


async def test_a_cli_that_is_being_made_ready_gives_its_slot_to_a_run_that_waits(fake: Backend) -> None:
    async with fake.serve(**POOL, max_runs=1, queue_timeout=20) as server:
        await until(lambda: server.runs.statistics().taken == 1)
        assert server.runs.pool.ready == 0
        with trio.fail_after(15):
            assert (await ask(server, directive("text", text="hello"), max_turns=3)).code == 1000
    assert started(fake.events) == [False]


async def test_tokens_come_from_a_pool_that_speaks_them(fake: Backend) -> None:
    async with fake.serve(**POOL, pool_partial=True) as server:
        await until(lambda: server.runs.pool.ready == 1)
        assert (await ask(server, directive("text", text="hello"), partial=True)).of_type("stream_event")
        await until(lambda: server.runs.pool.ready == 1)
        assert not (await ask(server, directive("text", text="hello"))).of_type("stream_event")
    assert started(fake.events) == [True, False]


def _program(folder: Path, script: str) -> str:
    """Write a CLI that answers `initialize` and then does as the script says."""
    answer = r'''read line; id=$(echo "$line" | sed 's/.*"request_id":"\([0-9a-f]*\)".*/\1/')
echo "{\"type\":\"control_response\",\"response\":{\"subtype\":\"success\",\"request_id\":\"$id\"}}"'''
    program = folder / "cli"
    program.write_text(f"#!/bin/sh\n{answer}\n{script}\n")
    program.chmod(0o755)
    return str(program)


def _config(folder: Path, script: str, **more: object) -> Config:
    return Config(**{"cli": _program(folder, script), "cwd": str(folder), **POOL, **more})  # type: ignore[arg-type]


async def _run(engine: Engine) -> list[str]:
    async with open_run("hi", engine=engine) as run:
        lines = [line async for line in run]
    assert run.outcome
    assert run.outcome.receipt.survivors == 0
    return lines


async def test_one_that_complains_at_length_before_it_is_ready_is_ready_all_the_same(folder: Path) -> None:
    config = _config(folder, "read line; echo said")
    program = Path(config.cli)
    words, rest = program.read_text().split("\n", 1)
    program.write_text(f"{words}\nhead -c 300000 /dev/zero >&2\n{rest}")
    events: list[Event] = []
    async with open_engine(config, [events.append]) as engine:
        await until(lambda: engine.runs.pool.ready == 1)
        assert await _run(engine) == ["said"]
    assert started(events) == [True]


async def test_slots_that_runs_hold_are_no_shortage(folder: Path, autojump_clock: object) -> None:
    asked: list[float] = []

    def acquire(_who: object) -> bool:
        asked.append(trio.current_time())
        return False

    events: list[Event] = []
    async with Workplace.open(_config(folder, ""), FAKE_ENV) as workplace:
        pool = Pool(workplace, FakeContainment(), events.append, Slots(acquire, lambda _: None))
        with trio.move_on_after(9.5):
            await pool.serve()
    assert len(asked) == 10, "it asks again as often as at first"
    assert events == []


@pytest.mark.parametrize("what", ["echo whisper; read line", "exit 3"])
async def test_one_that_spoke_or_ended_is_never_handed_out(folder: Path, what: str) -> None:
    events: list[Event] = []
    first = f"touch {folder}/second; while [ ! -e {folder}/go ]; do sleep .01; done; {what}"
    config = _config(folder, f"if [ ! -e {folder}/second ]; then {first}; fi; read line; echo said")
    async with open_engine(config, [events.append]) as engine:
        await until(lambda: engine.runs.pool.ready == 1)
        pid = engine.runs.pool._ready[0].process.pid
        (folder / "go").touch()
        await until(lambda: engine.runs.pool.ready == 1 and engine.runs.pool._ready[0].process.pid != pid)
        assert await _run(engine) == ["said"]
    assert started(events) == [True]


async def test_one_that_spoke_just_now_is_not_handed_out_either(folder: Path) -> None:
    """Also where the pool's own task has not heard of it yet."""
    config = _config(
        folder, f"while [ ! -e {folder}/go ]; do sleep .01; done; echo whisper; touch {folder}/said; read line"
    )
    async with open_engine(config) as engine:
        await until(lambda: engine.runs.pool.ready == 1)
        (folder / "go").touch()
        while not (folder / "said").exists():
            pass  # the loop must not turn
        assert engine.runs.pool.take(engine.runs.pool.options) is None


async def test_an_old_one_is_replaced(folder: Path) -> None:
    async with open_engine(_config(folder, "read line; echo said", pool_age=1)) as engine:
        await until(lambda: engine.runs.pool.ready == 1)
        first = engine.runs.pool._ready[0].process.pid
        await until(lambda: not alive(first) and engine.runs.pool.ready == 1, 10)


async def test_a_waiting_cli_counts_and_gives_way(folder: Path) -> None:
    """With one slot a run of other options gets the slot of the CLI that waits, at once."""
    events: list[Event] = []
    async with open_engine(_config(folder, "read line; echo said", max_runs=1), [events.append]) as engine:
        await until(lambda: engine.runs.pool.ready == 1)
        assert engine.runs.statistics().taken == 1
        with trio.fail_after(5):
            async with open_run("hi", engine=engine, max_turns=1) as run:
                await run.wait()
        await until(lambda: engine.runs.pool.ready == 1)
    assert started(events) == [False]


async def test_a_cli_that_can_not_be_made_ready_is_told_of_and_runs_go_on(folder: Path) -> None:
    events: list[Event] = []
    (folder / "echo").write_text('#!/bin/sh\nread line; echo "$line"\n')
    (folder / "echo").chmod(0o755)
    config = Config(cli=str(folder / "echo"), cwd=str(folder), **POOL)  # type: ignore[arg-type]
    async with open_engine(config, [events.append]) as engine:
        await until(lambda: Strained("what CLIs started ahead of need take", over=False) in events)
        async with open_run("hi", engine=engine) as run:
            lines = [json.loads(line) async for line in run]
        assert [line["type"] for line in lines] == ["user"]


async def test_a_cli_that_could_be_reached_is_not_kept(folder: Path) -> None:
    events: list[Event] = []
    config = _config(folder, "read line", profile="approve", containment="supervisor")
    async with open_engine(config, [events.append]) as engine:
        await trio.sleep(0.1)
        assert engine.runs.pool.ready == 0
    assert [event.size for event in events if isinstance(event, PoolReady)] == [0]
    async with open_engine(_config(folder, "read line", cwd=f"{folder}/{{meta}}"), [events.append]):
        pass
    assert [event.size for event in events if isinstance(event, PoolReady)] == [0, 0]


async def test_a_run_cancelled_before_it_began_ends_the_cli_that_it_took(folder: Path) -> None:
    before = descriptors()
    async with open_engine(_config(folder, "read line; echo said")) as engine:
        await until(lambda: engine.runs.pool.ready == 1)
        pid = engine.runs.pool._ready[0].process.pid
        with trio.CancelScope() as scope:
            scope.cancel()
            async with open_run("hi", engine=engine) as run:
                await run.wait()
        assert not alive(pid)
        assert engine.runs.statistics().live == 0
    assert descriptors() == before


async def test_a_drain_ends_what_waits(folder: Path) -> None:
    async with open_engine(_config(folder, "read line; echo said")) as engine:
        await until(lambda: engine.runs.pool.ready == 1)
        pid = engine.runs.pool._ready[0].process.pid
        await engine.runs.drain(0)
        await until(lambda: not alive(pid))
        await trio.sleep(0.1)
        assert engine.runs.pool.ready == 0
