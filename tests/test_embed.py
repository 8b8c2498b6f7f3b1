"""Rule: a run inside another program has the same containment; cancelling the program's nursery is the kill."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import pytest
import trio
from harness import Backend, alive, call, descriptors, directive, until
from redis_server import RedisServer
from sweep import Stepper
from talk import open_talk

import trio_claude
from trio_claude import Config, Engine, OpenRun, far, open_engine, open_run
from trio_claude.embed import DENIED_KEPT
from trio_claude.errors import BadMessage, Busy, ConfigError, Draining, OverBudget, Reason
from trio_claude.events import RunEnded


@pytest.fixture
async def engine(fake: Backend) -> AsyncIterator[Engine]:
    config = Config(cli=fake.program, cwd=str(fake.cwd), env=("TCT_BACKEND",), max_runs=2, queue_timeout=0.2)
    async with open_engine(config, [fake.events.append], environ={**fake.environ, "TCT_BACKEND": fake.mark}) as engine:
        yield engine


async def test_lines_and_an_outcome(engine: Engine) -> None:
    async with open_run(directive("stderr", text="oh") + "hello", engine=engine) as run:
        kinds = [json.loads(line)["type"] async for line in run]
    assert kinds[0] == "system"
    assert kinds[-1] == "result"
    assert run.outcome is not None
    assert (run.outcome.reason, run.outcome.receipt.survivors, run.stderr) == (Reason.EXIT, 0, ["oh"])


DENIALS = """#!/bin/sh
for number in $(seq $1); do
    echo '{"type":"system","subtype":"permission_denied","tool_name":"tool'$number'"}'
done
"""


async def test_of_denials_without_end_the_first_are_kept(folder: Path) -> None:
    program = folder / "cli"
    program.write_text(DENIALS.replace("$1", f"{DENIED_KEPT + 10}"))
    program.chmod(0o755)
    async with open_run("hello", config=Config(cli=str(program))) as run:
        await run.wait()
    assert run.denied_tools == [f"tool{number}" for number in range(1, DENIED_KEPT + 1)]


async def test_tasks_that_read_one_run_get_every_line_between_them(folder: Path) -> None:
    program = folder / "cli"
    program.write_text("#!/bin/sh\nfor i in $(seq 20); do seq 500; sleep .01; done\n")
    program.chmod(0o755)
    said: list[int] = []

    async def read(run: OpenRun) -> None:
        async for line in run:
            said.append(int(line))
            await trio.sleep(0.0005)

    async with open_run("hello", config=Config(cli=str(program))) as run:
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(read, run)
    assert sorted(said) == sorted([*range(1, 501)] * 20)


@pytest.mark.redis
async def test_a_server_that_shares_a_redis_ends_a_run_of_a_program(
    fake: Backend, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(far, "SETTLING", 0.1)
    async with fake.serve(journal="auto", redis=redis_server.url, node_lease=60.0) as server:
        config = attrs.evolve(server.config, port=0)
        async with (
            open_engine(config, environ=fake.environ) as engine,
            open_run(directive("silent"), engine=engine) as run,
            open_talk(server) as talk,
        ):
            await until(lambda: engine.runs.statistics().live == 1)
            await talk.say({"type": "gateway", "op": "attach", "run": run.id})
            assert (await talk.event("refused"))["code"] == "not-open"
            assert (await call(server, f"/api/runs/{run.id}", method="DELETE"))[0] == 202
            assert (await run.wait()).reason is Reason.STOPPED


async def test_a_program_is_one_identity_with_the_limits_of_one(fake: Backend, folder: Path) -> None:
    config = Config(
        cli=fake.program, cwd=str(fake.cwd), journal=f"sqlite:{folder}/j.db", dollars_per_day=0.0001, runs_per_identity=1,
        queue_timeout=0.2,
    )  # fmt: skip
    async with open_engine(config, environ=fake.environ) as engine:
        async with open_run(directive("silent"), engine=engine):
            with pytest.raises(Busy, match="no slot came free"):
                async with open_run("hello", engine=engine):
                    pytest.fail("two at once")
        async with open_run("hello", engine=engine) as run:
            assert (await run.wait()).reason is Reason.OVER_BUDGET
    async with open_engine(config, environ=fake.environ) as later:
        with pytest.raises(OverBudget, match="dollars a day is spent"):
            async with open_run("hello", engine=later):
                pytest.fail("the day is spent")


async def test_the_limits_of_a_program_are_those_that_were_read_last(engine: Engine) -> None:
    engine.runs.reload(attrs.evolve(engine.config, runs_per_identity=1))
    async with open_run(directive("silent"), engine=engine):
        with pytest.raises(Busy, match="no slot came free"):
            async with open_run("hello", engine=engine):
                pytest.fail("two at once")


async def test_an_engine_of_its_own(fake: Backend) -> None:
    async with open_run("hello", config=Config(cli=fake.program)) as run:
        assert (await run.wait()).exit_status == 0


async def test_stop_keeps_the_partial_answer(engine: Engine) -> None:
    async with open_run(directive("slow", n=1000, ms=20), engine=engine) as run:
        lines = []
        async for line in run:
            lines.append(json.loads(line))
            run.stop()
    assert run.outcome is not None
    assert run.outcome.reason is Reason.STOPPED
    assert lines[-1]["type"] == "result"


async def test_a_cli_deaf_to_every_signal_is_ended_all_the_same(engine: Engine) -> None:
    async with open_run(directive("slow", n=1000, ms=20, ignore_term=True), engine=engine) as run:
        async for _ in run:
            break
        run.stop()
        with trio.fail_after(6):
            outcome = await run.wait()
    assert (outcome.signal, outcome.receipt.survivors) == (signal.SIGKILL, 0)


async def test_leaving_early_is_the_kill(engine: Engine, fake: Backend) -> None:
    async with open_run(
        directive("tree", kinds=["setsid", "double_fork", "ignore_term"], seconds=60, then="stay"), engine=engine
    ) as run:
        async for line in run:
            if "pids" in line:
                break
        assert len(fake.left()) >= 4
    assert fake.left() == []
    assert run.outcome is not None
    assert (run.outcome.reason, run.outcome.receipt.survivors) == (Reason.STOPPED, 0)
    assert await run.wait() == run.outcome


async def test_a_run_that_is_cancelled_has_no_outcome(engine: Engine) -> None:
    with trio.CancelScope() as scope:
        async with open_run(directive("silent"), engine=engine) as run:
            scope.cancel()
            await trio.sleep_forever()
    assert run.outcome is None
    with pytest.raises(trio.ClosedResourceError, match="cancelled"):
        await run.wait()


@pytest.mark.parametrize("fails", [False, True])
async def test_leaving_an_engine_ends_what_runs_elsewhere(fake: Backend, fails: bool) -> None:
    outcomes = []
    config, environ = Config(cli=fake.program, env=("TCT_BACKEND",)), {**fake.environ, "TCT_BACKEND": fake.mark}

    async def one(engine: Engine) -> None:
        async with open_run(directive("silent"), engine=engine) as run:
            outcomes.append(await run.wait())

    async with trio.open_nursery() as nursery:
        try:
            async with open_engine(config, environ=environ) as engine:
                nursery.start_soon(one, engine)
                await until(fake.left)
                if fails:
                    raise KeyError("mine")
        except KeyError:
            assert fails
        assert fake.left() == []
        with pytest.raises(Draining):
            async with open_run("hello", engine=engine):
                pytest.fail("opened")
    assert [(one.reason, one.receipt.survivors) for one in outcomes] == [(Reason.DRAINED, 0)]


async def test_a_run_goes_by_its_engines_configuration(fake: Backend) -> None:
    config = Config(cli=fake.program, allow_options=("max_turns",), grants=("tools",))
    async with open_engine(config) as engine:
        async with open_run("hello", engine=engine, max_turns=1, tools=["Read"]) as run:
            assert (await run.wait()).exit_status == 0
        with pytest.raises(BadMessage, match="model is not allowed"):
            async with open_run("hello", engine=engine, model="haiku"):
                pytest.fail("opened")
        with pytest.raises(ConfigError, match="config: an engine has its own"):
            async with open_run("hello", engine=engine, config=config):
                pytest.fail("opened")


async def test_cancelled_at_every_step(engine: Engine, fake: Backend) -> None:
    """The zygote is warm; each pass starts real processes."""

    async def one(at: int | None) -> int:
        stepper = Stepper(trio.CancelScope(), at)
        trio.lowlevel.add_instrument(stepper)
        try:
            with stepper.scope:
                async with open_run("hello", engine=engine) as run:
                    async for _ in run:
                        pass
        finally:
            trio.lowlevel.remove_instrument(stepper)
        return stepper.steps

    steps = await one(None)
    before, tasks = descriptors(), trio.lowlevel.current_statistics().tasks_living
    for step in range(1, steps + 3):
        await one(step)
        assert descriptors() == before, f"cancelled at step {step}"
        assert trio.lowlevel.current_statistics().tasks_living == tasks
        assert engine.runs.statistics().taken == 0
        ended = [event for event in fake.events if isinstance(event, RunEnded)][-1:]
        assert all(event.outcome.receipt.survivors == 0 for event in ended), f"unproven when cancelled at step {step}"
    assert fake.left() == []


async def test_what_breaks_the_contract_is_refused(engine: Engine) -> None:
    for arguments in (
        {"prompt": ""},
        {"prompt": "hi", "meta": "lower"},
        {"prompt": "hi", "max_turns": "7"},
        {"prompt": "hi", "nope": 1},
    ):
        with pytest.raises(BadMessage):
            async with open_run(engine=engine, **arguments):  # type: ignore[arg-type]
                pytest.fail("opened")


async def test_no_slot_is_busy(engine: Engine) -> None:
    async with open_run(directive("silent"), engine=engine), open_run(directive("silent"), engine=engine):
        with pytest.raises(Busy):
            async with open_run("hello", engine=engine):
                pytest.fail("opened")


async def test_no_cli_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(ConfigError, match="claude not found"):
        async with open_run("hello"):
            pytest.fail("opened")


async def test_a_journal_that_has_no_name_in_this_locale_is_a_config_error(fake: Backend) -> None:
    """Half a surrogate pair has none in any; in the locale C without UTF-8 no letter beyond ASCII has."""
    with pytest.raises(ConfigError, match=r"journal: '/nope/\\ud800.db' is no name in utf-8"):
        async with open_run("hello", config=Config(cli=fake.program, journal="sqlite:/nope/\ud800.db")):
            pytest.fail("opened")


async def test_the_programs_own_world_is_left_alone(fake: Backend) -> None:
    handlers = {number: signal.getsignal(number) for number in signal.Signals if number not in (9, 19)}
    environ, logger, mask = dict(os.environ), list(logging.getLogger().handlers), os.umask(0o022)
    async with open_run("hello", config=Config(cli=fake.program)) as run:
        await run.wait()
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    assert (dict(os.environ), list(logging.getLogger().handlers), os.umask(mask)) == (environ, logger, 0o022)


async def test_a_body_that_fails_is_heard_and_the_run_is_ended(engine: Engine, fake: Backend) -> None:
    with pytest.raises(KeyError):
        async with open_run(directive("silent"), engine=engine):
            await until(fake.left)
            raise KeyError("mine")
    assert not [pid for pid in fake.left() if alive(pid)]


@pytest.mark.parametrize("cleans_up", [False, True])
async def test_a_body_that_fails_while_it_is_cancelled_is_heard_as_it_is(fake: Backend, cleans_up: bool) -> None:
    with trio.CancelScope() as scope, pytest.raises(KeyError, match="mine"):
        async with open_run(directive("silent"), config=Config(cli=fake.program)):
            scope.cancel()
            if cleans_up:
                with contextlib.suppress(trio.Cancelled):
                    await trio.sleep_forever()
            raise KeyError("mine")


def test_the_names_are_public() -> None:
    assert {"open_run", "open_engine", "OpenRun", "Engine"} <= set(trio_claude.__all__)
