"""Rule: the first decision ends a run; it ends with its process; what its pipes hold then is read. On virtual time."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import trio
from fakes import FakeContainment, FakeProcess
from harness import FAKE_ENV

from trio_claude.config import Config
from trio_claude.containment import Pump
from trio_claude.delivery import DRAIN_IDLE, DRAIN_LIMIT
from trio_claude.embed import OpenRun
from trio_claude.errors import PeerGone, Reason
from trio_claude.events import (
    STALL,
    Charged,
    Event,
    FirstLine,
    FirstToken,
    Outcome,
    RunEnded,
    RunStarted,
    SendStalled,
    TurnEnded,
)
from trio_claude.kit import Kit
from trio_claude.messages import Options, Prompt
from trio_claude.run import Run
from trio_claude.turns import LINES, Turns
from trio_claude.workplace import Workplace

RESULT = b'{"type":"result","is_error":false}\n'


class Keeper:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.said: list[bytes] = []
        self.complaints: list[str] = []
        self.denials: list[str] = []
        self.gone = False
        self.pace = 0.0
        self.taken = trio.Event()
        self.taken.set()

    def giver(self) -> None:
        """Return nothing: it takes its time."""

    async def lines(self, lines: list[bytes]) -> None:
        if self.gone:
            raise PeerGone("left")
        await trio.sleep(self.pace)
        self.said += lines

    async def wait_taken(self) -> None:
        await self.taken.wait()

    async def stderr_lines(self, lines: list[str]) -> None:
        await trio.lowlevel.checkpoint()
        self.complaints += lines

    def denied(self, tool: str) -> None:
        self.denials.append(tool)


@attrs.define
class Stage:
    workplace: Workplace
    containment: FakeContainment
    sink: Keeper = attrs.Factory(Keeper)
    events: list[Event] = attrs.Factory(list)

    def run(self, timeout: float = 300, **options: object) -> Run:
        prompt = Prompt(prompt="hi", meta="T", options=Options(**options))  # type: ignore[arg-type]
        return Run(prompt, Kit(self.workplace, self.containment, self.events.append, Turns(), Pump()), timeout)

    async def play(self, script: Callable[[FakeProcess], Awaitable[None]], run: Run | None = None) -> Outcome:
        """Execute a run while `script` is its CLI."""
        run = run or self.run()
        outcomes: list[Outcome] = []
        async with trio.open_nursery() as nursery:

            async def act() -> None:
                await script(await self.containment.wait_started())

            nursery.start_soon(act)
            outcomes.append(await run.execute(self.sink))
        assert self.containment.live == 0
        return outcomes[0]


@pytest.fixture
async def stage(folder: Path) -> AsyncIterator[Stage]:
    config = Config(cli="/bin/true", cwd=str(folder), max_line=1024)
    async with Workplace.open(config, FAKE_ENV) as workplace:
        yield Stage(workplace, FakeContainment())


async def test_a_good_end(stage: Stage) -> None:
    async def script(cli: FakeProcess) -> None:
        assert json.loads(await cli.prompts.receive_some())["message"]["content"] == "hi"
        assert await cli.prompts.receive_some() == b""
        await cli.say.send_all(b"one\ntwo\n")
        await cli.complain.send_all(b"oh\nno")
        cli.exit(0)

    outcome = await stage.play(script)
    assert (outcome.reason, outcome.exit_status, outcome.lines, outcome.error) == (Reason.EXIT, 0, 2, None)
    assert (stage.sink.said, stage.sink.complaints) == ([b"one", b"two"], ["oh", "no"])
    assert [type(event) for event in stage.events] == [RunStarted, FirstLine, RunEnded]
    assert isinstance(ended := stage.events[-1], RunEnded)
    assert (ended.door, ended.bytes, ended.turns, ended.tokens) == ("claude", 8, 0, 0)


class Eager(Keeper):
    """A sink that waits for nothing, and notes how often another task had its turn before each call."""

    def __init__(self) -> None:
        super().__init__()
        self.rounds = 0
        self.calls: list[tuple[int, int]] = []

    async def lines(self, lines: list[bytes]) -> None:
        self.calls.append((len(lines), self.rounds))
        self.said += lines

    async def count(self) -> None:
        while True:
            await trio.lowlevel.checkpoint()
            self.rounds += 1


async def test_of_many_lines_in_one_read_others_have_their_turn_in_between(stage: Stage) -> None:
    stage.sink = sink = Eager()

    async def script(cli: FakeProcess) -> None:
        await cli.say.send_all(b"\n" * (3 * LINES + 1))
        cli.exit(0)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sink.count)
        outcome = await stage.play(script)
        nursery.cancel_scope.cancel()
    assert (outcome.lines, sink.said) == (3 * LINES + 1, [b""] * (3 * LINES + 1))
    assert [size for size, _ in sink.calls] == [LINES, LINES, LINES, 1]
    assert sink.calls[-1][1] - sink.calls[0][1] >= 2, "one in each round, in any order"


async def test_an_end_waits_for_many_lines_of_one_read_however_busy_others_are(
    stage: Stage, mock_clock: trio.testing.MockClock
) -> None:
    stage.sink = sink = Eager()

    async def keep_busy() -> None:
        while True:
            await trio.lowlevel.checkpoint()
            mock_clock.jump(DRAIN_IDLE)

    async def script(cli: FakeProcess) -> None:
        await cli.say.send_all(b"\n" * (3 * LINES * round(DRAIN_LIMIT / DRAIN_IDLE)))
        while not sink.said:
            await trio.lowlevel.checkpoint()
        await cli.say.send_all(b"the end\n")
        cli.exit(0)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_busy)
        await stage.play(script)
        nursery.cancel_scope.cancel()
    assert sink.said[-1] == b"the end"


async def test_many_lines_are_not_relayed_on_the_spot(stage: Stage) -> None:
    said: list[bytes] = []
    sink: Any = SimpleNamespace(giver=lambda: said.extend)
    run = stage.run()
    assert run._relay(sink, b"\n" * LINES)
    assert len(said) == LINES
    assert not run._relay(sink, b"\n" * (LINES + 1))


async def test_an_end_waits_for_what_the_client_has_not_taken_yet(
    stage: Stage, autojump_clock: trio.testing.MockClock
) -> None:
    stage.sink.taken = trio.Event()

    async def script(cli: FakeProcess) -> None:
        await cli.say.send_all(b"one\n")
        cli.exit(0)
        await trio.sleep(2 * STALL)  # of a clock that is not real
        assert not any(isinstance(event, RunEnded) for event in stage.events)
        stage.sink.taken.set()

    assert (await stage.play(script)).reason == Reason.EXIT
    assert any(isinstance(event, SendStalled) for event in stage.events)


async def test_each_step_is_told(stage: Stage, autojump_clock: trio.testing.MockClock) -> None:
    usage = b'"modelUsage":{"m":{"inputTokens":7,"outputTokens":5}},"total_cost_usd":0.25'

    async def script(cli: FakeProcess) -> None:
        await trio.sleep(1)
        await cli.say.send_all(b'{"type":"system","subtype":"init"}\n')
        await trio.sleep(2)
        await cli.say.send_all(b'{"type":"assistant","message":{}}\n{"type":"assistant","message":{}}\n')
        await trio.sleep(4)
        await cli.say.send_all(b'{"type":"result","is_error":false,' + usage + b"}\n")
        cli.exit(0)

    stage.sink.pace = 2 * STALL
    await stage.play(script)
    first, stalls, told = stage.events[1], stage.events[2:7], stage.events
    assert first == FirstLine(first.run, "T", 1.0)
    assert [event for event in told if isinstance(event, FirstToken)] == [FirstToken(first.run, "T", 3.0)]
    assert [event for event in told if isinstance(event, TurnEnded)] == [TurnEnded(first.run, "T", 1, 7.0, 12, 0.25)]
    assert [event for event in told if isinstance(event, Charged)] == [Charged(first.run, "T", 12, 0.25)]
    assert SendStalled(first.run, "T", 2 * STALL) in stalls
    assert isinstance(ended := told[-1], RunEnded)
    assert (ended.seconds, ended.turns, ended.tokens, ended.dollars) == (9.0, 1, 12, 0.25)


async def test_a_cancelled_run_is_told_to_have_ended_once(stage: Stage, autojump_clock: trio.testing.MockClock) -> None:
    with trio.move_on_after(5):
        await stage.run().execute(stage.sink)
    ended = [event for event in stage.events if isinstance(event, RunEnded)]
    assert [(event.seconds, event.outcome.reason, event.outcome.error) for event in ended] == [
        (5.0, Reason.STOPPED, "cancelled")
    ]
    assert ended[0].outcome.receipt.survivors == 0, "what was proven is told"


async def test_a_run_that_a_bug_ends_is_told_to_have_failed_once(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(cli: FakeProcess) -> None:
        await cli.say.send_all(b"line\n")

    async def fail(_lines: list[bytes]) -> None:
        raise LookupError("a bug")

    monkeypatch.setattr(stage.sink, "lines", fail)
    with pytest.RaisesGroup(pytest.RaisesGroup(LookupError)):
        await stage.play(script)
    ended = [event.outcome for event in stage.events if isinstance(event, RunEnded)]
    assert [(one.reason, one.error) for one in ended] == [(Reason.FAILED, "a fault of the server")]


async def test_300_seconds_end_a_silent_run(stage: Stage, autojump_clock: trio.testing.MockClock) -> None:
    began = trio.current_time()

    async def script(cli: FakeProcess) -> None:
        await trio.sleep(299)
        assert not cli.ended

    outcome = await stage.play(script)
    assert trio.current_time() - began == pytest.approx(300)
    assert (outcome.reason, outcome.error) == (Reason.DEADLINE, "timed out after 300 s")


async def test_the_deadline_holds_while_the_sink_waits(stage: Stage, autojump_clock: trio.testing.MockClock) -> None:
    stage.sink.pace = 10_000

    async def script(cli: FakeProcess) -> None:
        await cli.say.send_all(b"line\n")
        cli.exit(0)

    assert (await stage.play(script)).reason is Reason.DEADLINE


async def test_the_last_lines_of_a_cli_that_ended_in_time_have_a_time_of_their_own(
    stage: Stage, autojump_clock: trio.testing.MockClock
) -> None:
    stage.sink.pace = 30

    async def script(cli: FakeProcess) -> None:
        await cli.say.send_all(b"one\n")
        await trio.sleep(1)
        await cli.say.send_all(RESULT)
        cli.exit(0)
        await trio.sleep(10)
        assert (cli.is_counted, stage.sink.said) == (True, []), "the receipt has not the client's time in it"

    outcome = await stage.play(script, stage.run(timeout=2))
    assert (outcome.reason, outcome.exit_status, outcome.error) == (Reason.EXIT, 0, None)
    assert stage.sink.said == [b"one", RESULT[:-1]]


async def test_a_program_that_takes_line_after_line_misses_none(
    stage: Stage, autojump_clock: trio.testing.MockClock
) -> None:
    async def script(cli: FakeProcess) -> None:
        for word in (b"one\n", b"two\n", b"three\nfour\n"):
            await cli.say.send_all(word)
            await trio.sleep(0.1)
        cli.exit(0)

    said: list[str] = []
    run = OpenRun(stage.run(timeout=2))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run.execute)
        await script(await stage.containment.wait_started())
        async for line in run:
            said.append(line)
            await trio.sleep(0.9 * stage.workplace.config.send_timeout)
    assert said == ["one", "two", "three", "four"]
    assert run.outcome is not None
    assert (run.outcome.reason, run.outcome.exit_status) == (Reason.EXIT, 0)


async def test_last_lines_that_nobody_takes_are_told_as_such(
    stage: Stage, autojump_clock: trio.testing.MockClock
) -> None:
    stage.sink.pace = 10_000

    async def script(cli: FakeProcess) -> None:
        await cli.say.send_all(RESULT)
        cli.exit(0)

    began = trio.current_time()
    outcome = await stage.play(script, stage.run(timeout=2))
    assert (outcome.reason, outcome.error) == (Reason.DEADLINE, "the last lines were not taken in time")
    assert trio.current_time() - began == pytest.approx(stage.workplace.config.send_timeout)


async def test_a_descendants_output_is_waited_for_no_longer_than_the_deadline(
    stage: Stage, autojump_clock: trio.testing.MockClock
) -> None:
    stage.sink.pace = 0.5

    async def script(cli: FakeProcess) -> None:
        cli.alone_at_exit = False
        cli.status = 0
        cli._exited.set()
        began = trio.current_time()
        while not cli.ended:
            await cli.say.send_all(b"more\n")
            await trio.sleep(0.05)
        assert trio.current_time() - began == pytest.approx(3, abs=0.2)
        cli.say.close()
        cli.complain.close()

    assert (await stage.play(script, stage.run(timeout=3))).reason is Reason.EXIT


async def test_a_write_that_is_given_up_is_told_as_a_stall(
    stage: Stage, autojump_clock: trio.testing.MockClock
) -> None:
    stage.sink.pace = 10_000

    async def script(cli: FakeProcess) -> None:
        await cli.say.send_all(b"line\n")
        cli.exit(0)

    await stage.play(script)
    assert [event.seconds for event in stage.events if isinstance(event, SendStalled)] == [300.0]
    assert isinstance(stage.events[-1], RunEnded)


async def test_the_end_of_stdout_is_not_the_end(stage: Stage, autojump_clock: trio.testing.MockClock) -> None:
    async def script(cli: FakeProcess) -> None:
        cli.say.close()
        await trio.sleep(50)
        assert not cli.ended
        cli.exit(0)

    assert (await stage.play(script)).reason is Reason.EXIT


async def test_pipes_that_a_descendant_holds_are_read_until_they_are_quiet(
    stage: Stage, autojump_clock: trio.testing.MockClock
) -> None:
    async def script(cli: FakeProcess) -> None:
        cli.alone_at_exit = False
        cli.status = 0
        cli._exited.set()
        for number in range(5):
            await trio.sleep(0.05)
            await cli.say.send_all(b"tail %d\n" % number)
        await trio.sleep(0.3)
        assert cli.ended
        cli.say.close()
        cli.complain.close()

    outcome = await stage.play(script)
    assert (outcome.reason, len(stage.sink.said)) == (Reason.EXIT, 5)


async def test_a_tree_that_ends_by_itself_is_not_waited_for(
    stage: Stage, autojump_clock: trio.testing.MockClock
) -> None:
    """As in a sandbox, whose own processes end just behind the CLI."""

    async def script(cli: FakeProcess) -> None:
        cli.alone_at_exit = False
        cli.exit(0)
        await trio.sleep(0.01)
        assert not cli.ended
        cli.empty.set()
        await trio.sleep(0.01)
        assert cli.ended

    assert (await stage.play(script)).reason is Reason.EXIT


async def test_what_a_slow_client_has_not_taken_is_not_quiet(
    stage: Stage, autojump_clock: trio.testing.MockClock
) -> None:
    stage.sink.pace = 0.7

    async def script(cli: FakeProcess) -> None:
        cli.alone_at_exit = False
        cli.status = 0
        cli._exited.set()
        for number in range(8):
            await cli.say.send_all(b"tail %d\n" % number)
            while len(stage.sink.said) <= number:
                assert not cli.ended
                await trio.sleep(0.01)
        await trio.sleep(0.3)
        assert cli.ended
        cli.say.close()
        cli.complain.close()

    outcome = await stage.play(script)
    assert (outcome.reason, len(stage.sink.said)) == (Reason.EXIT, 8)


async def test_a_descendant_that_never_falls_quiet_is_cut_off(
    stage: Stage, autojump_clock: trio.testing.MockClock
) -> None:
    async def script(cli: FakeProcess) -> None:
        began = trio.current_time()
        cli.alone_at_exit = False
        cli.status = 0
        cli._exited.set()
        while not cli.ended:
            await trio.sleep(0.05)
            await cli.say.send_all(b"more\n")
        assert trio.current_time() - began == pytest.approx(2, abs=0.2)
        cli.say.close()
        cli.complain.close()

    assert (await stage.play(script)).reason is Reason.EXIT


@pytest.mark.parametrize("floods", [False, True])
async def test_pipes_that_are_held_outside_of_the_tree_do_not_keep_a_run(
    stage: Stage, autojump_clock: trio.testing.MockClock, floods: bool
) -> None:
    async def script(cli: FakeProcess) -> None:
        await cli.say.send_all(RESULT + b"no line yet")
        await cli.complain.send_all(b"words")
        cli.status = 0
        cli._exited.set()
        with contextlib.suppress(trio.BrokenResourceError):
            for _ in range(8000 if floods else 0):  # 400 s, longer than the deadline
                await trio.sleep(0.05)
                await cli.say.send_all(b"\nmore")

    began = trio.current_time()
    outcome = await stage.play(script)
    assert trio.current_time() - began < 3
    assert (outcome.reason, outcome.exit_status, outcome.cause) == (Reason.EXIT, 0, None)
    assert stage.sink.said[:2] == [RESULT[:-1], b"no line yet"]
    assert stage.sink.complaints == ["words"]


async def test_a_cli_that_lives_on_after_its_result(stage: Stage, autojump_clock: trio.testing.MockClock) -> None:
    async def script(cli: FakeProcess) -> None:
        await cli.say.send_all(RESULT)
        await trio.sleep(4.9)
        assert not cli.ended
        await trio.sleep(0.2)
        assert cli.ended

    outcome = await stage.play(script)
    assert (outcome.reason, outcome.after_result, outcome.error) == (Reason.EXIT, True, None)


async def test_a_refused_key_ends_the_run_after_its_line(stage: Stage) -> None:
    line = b'{"type":"system","subtype":"api_retry","error_status":401}'

    async def script(cli: FakeProcess) -> None:
        await cli.say.send_all(line + b"\n")

    outcome = await stage.play(script)
    assert (outcome.reason, stage.sink.said) == (Reason.UNAUTHORIZED, [line])


async def test_a_sink_that_fails_ends_the_run(stage: Stage) -> None:
    stage.sink.gone = True

    async def script(cli: FakeProcess) -> None:
        await cli.say.send_all(b"line\n")

    assert (await stage.play(script)).reason is Reason.DISCONNECTED


async def test_a_line_over_the_limit_ends_the_run(stage: Stage) -> None:
    async def script(cli: FakeProcess) -> None:
        await cli.say.send_all(b"x" * 1025)

    outcome = await stage.play(script)
    assert (outcome.reason, outcome.error) == (Reason.FAILED, "the CLI said a line over 1024 bytes")


async def test_the_first_decision_wins(stage: Stage) -> None:
    run = stage.run()

    async def script(cli: FakeProcess) -> None:
        run.stop(Reason.DRAINED, "going down")
        run.stop(Reason.DISCONNECTED)
        await trio.lowlevel.checkpoint()

    outcome = await stage.play(script, run)
    assert (outcome.reason, outcome.error) == (Reason.DRAINED, "going down")


async def test_a_failure_tells_the_last_words(stage: Stage) -> None:
    async def script(cli: FakeProcess) -> None:
        await cli.complain.send_all(b"error: unknown option\n\n")
        cli.exit(1)

    assert (await stage.play(script)).error == "the CLI exited with status 1: error: unknown option"


async def test_a_results_error_is_the_runs_error(stage: Stage) -> None:
    async def script(cli: FakeProcess) -> None:
        await cli.say.send_all(b'{"type":"result","is_error":true,"result":"API Error: 400"}\n')
        cli.exit(1)

    assert (await stage.play(script)).error == "the CLI exited with status 1: API Error: 400"


async def test_a_cli_that_reads_nothing_is_no_error(stage: Stage) -> None:
    async def script(cli: FakeProcess) -> None:
        cli.prompts.close()
        await cli.say.send_all(b"line\n")
        cli.exit(0)

    assert (await stage.play(script)).reason is Reason.EXIT


async def test_denied_tools_are_told(stage: Stage) -> None:
    async def script(cli: FakeProcess) -> None:
        await cli.say.send_all(b'{"type":"system","subtype":"permission_denied","tool_name":"Bash"}\n')
        cli.exit(0)

    await stage.play(script)
    assert stage.sink.denials == ["Bash"]


async def test_the_runs_folder_and_files(stage: Stage) -> None:
    async def script(cli: FakeProcess) -> None:
        env, argv = cli.job.env, cli.job.argv
        flag = next(word for word in argv if word.startswith("--system-prompt-file="))
        file = Path(flag.partition("=")[2])
        assert (file.read_text(), file.stat().st_mode & 0o777) == ("be brief", 0o600)
        assert file.parent == Path(env["TMPDIR"])
        assert len(env["TMPDIR"]) <= 60
        assert env["TRIO_CLAUDE_RUN"].startswith(f"{stage.workplace.home.server}:")
        cli.exit(0)

    await stage.play(script, stage.run(system_prompt="be brief"))
    assert not list(Path(stage.workplace.folders).iterdir())


async def test_a_long_stderr_line_is_cut(stage: Stage) -> None:
    async def script(cli: FakeProcess) -> None:
        await cli.complain.send_all(b"y" * 200_000)
        cli.exit(0)

    await stage.play(script)
    assert "".join(stage.sink.complaints) == "y" * 200_000
