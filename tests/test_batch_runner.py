"""Rule: every planned run gets exactly one result, in its order, whatever happens; on virtual time, with a fake door."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from trio_claude.batch.doors import Hear
from trio_claude.batch.files import LinesFolder, Unwritable
from trio_claude.batch.order import InOrder
from trio_claude.batch.results import Finish
from trio_claude.batch.runner import Runner, Settings
from trio_claude.batch.tasks import Plan, Rules, make_plan
from trio_claude.config import OPTIONS
from trio_claude.events import Receipt
from trio_claude.messages import Prompt

GOOD = Finish(reason="exit", exit_status=0, receipt=Receipt(1, 0, 0, 1.0, "fake"))
FAILED = Finish(reason="failed", exit_status=1, error="e")


def result(**fields: object) -> str:
    return json.dumps(
        {"type": "result", "session_id": "s", "is_error": False, "total_cost_usd": 0.1, "result": "r", **fields}
    )


def api_error(status: int) -> str:
    return result(is_error=True, api_error_status=status, total_cost_usd=0)


@attrs.define
class FakeDoor:
    """Runs a prompt by a script: (seconds, line, finish) of each attempt, the last one's for all further ones."""

    scripts: dict[str, list[tuple[float, str, Finish]]] = attrs.Factory(dict)
    running: int = 0
    most: int = 0
    attempts: Counter[str] = attrs.Factory(Counter)
    started: list[tuple[str, float]] = attrs.Factory(list)
    stopping: trio.Event = attrs.Factory(trio.Event)
    deaf: bool = False

    async def run(self, prompt: Prompt, hear: Hear) -> Finish:
        script = self.scripts.get(prompt.prompt, [(1.0, result(), GOOD)])
        seconds, line, finish = script[min(self.attempts[prompt.prompt], len(script) - 1)]
        self.attempts[prompt.prompt] += 1
        self.started.append((prompt.prompt, trio.current_time()))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            with trio.move_on_after(seconds / 2):
                await self.stopping.wait()
                return Finish(reason="drained", error="server shutting down", receipt=GOOD.receipt)
            hear(line)
            with trio.move_on_after(seconds / 2):
                await self.stopping.wait()
                return Finish(reason="drained", error="server shutting down", receipt=GOOD.receipt)
            return finish
        finally:
            self.running -= 1

    async def stop(self) -> None:
        if not self.deaf:
            self.stopping.set()
            while self.running:
                await trio.sleep(0.01)


@attrs.define
class Out:
    lines: list[dict[str, Any]] = attrs.Factory(list)
    times: list[float] = attrs.Factory(list)
    full_after: int = 10**9
    kept: list[str] = attrs.Factory(list)

    def write(self, data: bytes) -> None:
        if len(self.lines) >= self.full_after:
            raise Unwritable("out: No space left on device")
        self.lines.append(json.loads(data))
        self.times.append(trio.current_time())

    def keep(self, data: bytes) -> None:
        self.kept.append(json.loads(data)["id"])

    def drop(self) -> None:
        self.kept.clear()

    def of(self, name: str) -> list[Any]:
        return [line[name] for line in self.lines]


def plan(*prompts: str, **rules: Any) -> Plan:
    data = b"".join(json.dumps({"prompt": prompt}).encode() + b"\n" for prompt in prompts)
    return make_plan(data, Rules(OPTIONS, 300, **rules))


def runner(of: Plan, door: FakeDoor, out: Out, **settings: Any) -> Runner:
    return Runner(of, door, out, Settings(**{"concurrency": 2, **settings}))


async def test_results_come_in_the_order_of_tasks(autojump_clock: object) -> None:
    door, out = FakeDoor({"a": [(9.0, result(), GOOD)]}), Out()
    await runner(plan("a", "b", "c", "d"), door, out).run()
    assert out.of("id") == ["1", "2", "3", "4"]
    assert door.most == 2


async def test_what_waits_is_kept_as_long_as_anything_does(autojump_clock: object) -> None:
    door, out = FakeDoor({"a": [(2.5, result(), GOOD)]}), Out()
    one = runner(plan("a", "b", "c", "d", "e"), door, out)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run)
        await trio.sleep(2.2)
        assert (out.of("id"), out.kept) == ([], ["2", "3"])
        await trio.sleep(0.5)
        assert (out.of("id"), out.kept) == (["1", "2", "3"], [])


async def test_or_as_they_end(autojump_clock: object) -> None:
    door, out = FakeDoor({"a": [(9.0, result(), GOOD)]}), Out()
    await runner(plan("a", "b", "c", "d"), door, out, as_completed=True).run()
    assert out.of("id") == ["2", "3", "4", "1"]


async def test_the_seconds_are_those_of_the_run(autojump_clock: object) -> None:
    out = Out()
    await runner(plan("a"), FakeDoor({"a": [(4.0, result(), GOOD)]}), out).run()
    assert (out.of("seconds"), out.of("first_line_seconds")) == ([4.0], [2.0])


async def test_models_and_repeats(autojump_clock: object) -> None:
    out = Out()
    await runner(plan("a", "b", models=("x", "y"), repeat=2), FakeDoor(), out).run()
    assert [(line["id"], line["model"], line["repeat"]) for line in out.lines] == [
        (task, model, repeat) for task in "12" for model in "xy" for repeat in (1, 2)
    ]


async def test_what_may_go_better_is_tried_again(autojump_clock: object) -> None:
    door = FakeDoor({"a": [(1.0, api_error(500), FAILED), (1.0, result(), GOOD)]})
    out = Out()
    await runner(plan("a"), door, out).run()
    assert (out.of("ok"), out.of("attempts"), out.of("cost_usd")) == ([True], [2], [0.1])
    (_, first), (_, second) = door.started
    assert 1.75 <= second - first <= 2.25


@pytest.mark.parametrize(("status", "attempts"), [(429, 3), (529, 3), (500, 3), (400, 1), (401, 1), (403, 1)])
async def test_as_often_as_is_said_and_no_more(autojump_clock: object, status: int, attempts: int) -> None:
    door, out = FakeDoor({"a": [(1.0, api_error(status), FAILED)]}), Out()
    await runner(plan("a"), door, out, retries=2).run()
    assert (out.of("ok"), out.of("attempts")) == ([False], [attempts])


async def test_a_full_servers_seconds_are_waited(autojump_clock: object) -> None:
    door = FakeDoor({"a": [(0.0, "", Finish(reason="busy", error="full", retry_after=20.0)), (1.0, result(), GOOD)]})
    await runner(plan("a"), door, Out()).run()
    assert 15 <= door.started[1][1] - door.started[0][1] <= 25


async def test_429_lowers_what_goes_at_once_and_clean_runs_raise_it(autojump_clock: object) -> None:
    strained = '{"type":"system","subtype":"api_retry","error_status":429}'
    prompts = ["first", *(f"t{number}" for number in range(60))]
    door = FakeDoor({"first": [(0.5, strained, GOOD)]})
    one = runner(plan(*prompts), door, Out(), concurrency=8)
    await one.run()
    late = Counter(at for _, at in door.started)
    assert door.most == 8
    assert one.throttle.lowest == 4
    assert one.throttle.limit == 8
    assert max(late.values()) == 8


async def test_a_strain_is_heard_while_the_run_goes_on(autojump_clock: object) -> None:
    strained = '{"type":"system","subtype":"api_retry","error_status":529}'
    door = FakeDoor(
        {"slow": [(100.0, strained, GOOD)], "later": [(80.0, result(), GOOD)], "new": [(1.0, result(), GOOD)]}
    )
    await runner(plan("slow", "later", "new"), door, Out(), concurrency=2).run()
    assert door.started[2][1] - door.started[0][1] == 100  # one at once by then, and the slow one goes on


async def test_another_attempt_goes_ahead_of_what_has_not_begun(autojump_clock: object) -> None:
    door = FakeDoor({"a": [(1.0, api_error(429), FAILED), (1.0, result(), GOOD)]})
    await runner(plan("a", "b", "c", "d", "e"), door, Out(), concurrency=1).run()
    assert [name for name, _ in door.started] == ["a", "a", "b", "c", "d", "e"]


async def test_nothing_starts_once_the_money_is_spent(autojump_clock: object) -> None:
    door, out = FakeDoor(), Out()
    await runner(plan(*"abcdef"), door, out, concurrency=1, max_usd=0.25).run()
    assert out.of("reason") == ["exit"] * 3 + ["skipped"] * 3
    assert out.lines[-1]["error"] == "not started: $0.3000 of $0.25 (max-usd) were spent"
    assert out.lines[-1]["attempts"] == 0


async def test_money_that_no_result_tells_of_is_spent_too(autojump_clock: object) -> None:
    words = '{"type":"assistant","session_id":"s","message":{"id":"m","usage":{"input_tokens":100000}}}'
    door = FakeDoor({"a": [(1.0, words, Finish(reason="deadline", error="timed out"))]})
    out = Out()
    await runner(plan("a", "b"), door, out, concurrency=1, max_usd=0.01).run()
    assert out.of("reason") == ["deadline", "skipped"]
    assert out.lines[0]["cost_usd"] > 1


async def test_no_more_attempts_either(autojump_clock: object) -> None:
    door = FakeDoor({"a": [(1.0, result(is_error=True, api_error_status=500, total_cost_usd=1), FAILED)]})
    out = Out()
    await runner(plan("a"), door, out, max_usd=0.5).run()
    assert (out.of("attempts"), out.of("reason")) == ([1], ["failed"])


async def test_what_is_spent_while_an_attempt_waits_counts(autojump_clock: object) -> None:
    busy, dear = Finish(reason="busy", error="full"), result(total_cost_usd=5)
    door, out = FakeDoor({"a": [(0.1, "", busy), (1.0, dear, GOOD)], "b": [(0.2, dear, GOOD)]}), Out()
    await runner(plan("a", "b", "c"), door, out, max_usd=1).run()
    assert [name for name, _ in door.started] == ["a", "b"]
    assert (out.of("reason"), out.of("attempts")) == (["busy", "exit", "skipped"], [1, 1, 0])
    assert out.lines[0]["error"] == "full"


async def test_a_slow_first_run_does_not_let_results_pile_up(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_claude.batch.runner.InOrder", lambda: InOrder(ahead=5))
    door, out = FakeDoor({"t0": [(100.0, result(), GOOD)]}), Out()
    await runner(plan(*(f"t{number}" for number in range(20))), door, out).run()
    assert len([at for _, at in door.started if at - door.started[0][1] < 100]) == 5
    assert out.of("id") == [str(number) for number in range(1, 21)]


@pytest.mark.parametrize("deaf", [False, True])
@pytest.mark.parametrize("after", [0.0, 0.3, 0.5, 1.0, 1.2, 1.7, 2.0, 3.5, 5.0])
async def test_stopped_at_any_time_each_run_has_one_result(autojump_clock: object, after: float, deaf: bool) -> None:
    door = FakeDoor({"b": [(1.0, api_error(500), FAILED)], "c": [(50.0, result(), GOOD)]}, deaf=deaf)
    out = Out()
    one = runner(plan(*"abcdefgh"), door, out)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run)
        await trio.sleep(after)
        one.stop()
    assert out.of("id") == [str(number) for number in range(1, 9)]
    assert set(out.of("reason")) <= {"exit", "failed", "cancelled"}
    assert out.lines[-1]["reason"] == "cancelled"
    assert (one.tally.done, one.throttle.running, door.running) == (8, 0, 0)


async def test_what_is_stopped_has_its_receipt(autojump_clock: object) -> None:
    out = Out()
    one = runner(plan("a", "b", "c"), FakeDoor({"a": [(50.0, result(), GOOD)]}), out)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run)
        await trio.sleep(0.2)
        one.stop()
    assert (out.lines[0]["reason"], out.lines[0]["error"], out.lines[0]["receipt"]["survivors"]) == (
        "cancelled",
        None,
        0,
    )
    assert out.lines[2]["receipt"] is None


@pytest.mark.parametrize("full_after", [0, 1, 3])
async def test_a_full_disk_stops_everything_and_is_told(autojump_clock: object, full_after: int) -> None:
    door, out = FakeDoor(), Out(full_after=full_after)
    one = runner(plan(*(f"t{number}" for number in range(50))), door, out)
    with pytest.raises(Unwritable, match="No space left"):
        await one.run()
    assert len(out.lines) == full_after
    assert one.tally.done == 50
    assert len(door.started) < 10


async def test_lines_are_kept_by_run(autojump_clock: object, folder: Path) -> None:
    door = FakeDoor({"a": [(1.0, api_error(500), FAILED), (1.0, result(), GOOD)]})
    await runner(plan("a", repeat=2), door, Out(), lines=LinesFolder(folder / "lines", force=False)).run()
    assert sorted(path.name for path in (folder / "lines").iterdir()) == ["1.1.jsonl", "1.2.jsonl"]
    assert (folder / "lines" / "1.1.jsonl").read_text() == result() + "\n"


async def test_lines_that_cant_be_written_stop_everything(autojump_clock: object, folder: Path) -> None:
    lines = LinesFolder(folder / "lines", force=False)
    (folder / "lines" / "1.jsonl").symlink_to("/dev/full")
    door, out = FakeDoor({"b": [(0.8, result(total_cost_usd=1.5), GOOD)]}), Out()
    one = runner(plan("a", "b", "c", "d"), door, out, lines=lines)
    with pytest.raises(Unwritable, match="No space left"):
        await one.run()
    assert out.of("reason") == ["cancelled"] * 4, "the results themselves can be written"
    assert out.of("cost_usd") == [0, 1.5, 0, 0]
    assert "No space left" in out.lines[0]["error"]


class Stopper(trio.abc.Instrument):
    """Stops a batch at the k-th step of any task."""

    def __init__(self, one: Runner, at: int | None) -> None:
        self.one = one
        self.at = at
        self.steps = 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1
        if self.steps == self.at:
            self.one.stop()


@pytest.mark.parametrize("deaf", [False, True])
@pytest.mark.parametrize("as_completed", [False, True])
async def test_stopped_at_every_step(autojump_clock: object, deaf: bool, as_completed: bool) -> None:
    """Whatever goes on at that moment: a start, a line, a retry's wait, the last result."""

    async def once(at: int | None) -> int:
        door = FakeDoor({"b": [(1.0, api_error(529), FAILED), (1.0, result(), GOOD)]}, deaf=deaf)
        out = Out()
        one = runner(plan(*"abcd"), door, out, as_completed=as_completed)
        stopper = Stopper(one, at)
        trio.lowlevel.add_instrument(stopper)
        try:
            await one.run()
        finally:
            trio.lowlevel.remove_instrument(stopper)
        assert sorted(out.of("id")) == ["1", "2", "3", "4"], at
        assert as_completed or out.of("id") == ["1", "2", "3", "4"], at
        assert (one.tally.done, one.throttle.running, door.running) == (4, 0, 0), at
        assert set(out.of("reason")) <= {"exit", "failed", "cancelled"}, at
        return stopper.steps

    for step in range(1, await once(None) + 2):
        await once(step)


async def test_cancelled_from_outside_it_leaves_nothing(autojump_clock: object) -> None:
    door = FakeDoor()
    with trio.move_on_after(1.5):
        await runner(plan(*"abcdefgh"), door, Out()).run()
    assert door.running == 0


async def test_a_bug_in_a_door_is_heard(autojump_clock: object) -> None:
    class Broken(FakeDoor):
        async def run(self, prompt: Prompt, hear: Callable[[str], None]) -> Finish:
            raise KeyError("bug")

    with pytest.raises(ExceptionGroup) as caught:
        await runner(plan("a"), Broken(), Out()).run()
    assert caught.group_contains(KeyError)
