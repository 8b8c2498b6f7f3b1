"""Rule: the pump offers each pipe's words to its own run, at once; what one run does or raises is no matter to another.

That holds in a task of its own as in the event loop's wait.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import itertools
import json
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from harness import Backend, ask, connect, directive, listen, script_cli, until
from talk import open_talk

from trio_claude.config import Config
from trio_claude.containment.loop_wait import HERE
from trio_claude.containment.pipes import PipeReader
from trio_claude.containment.pump import LONE, READS_A_TURN, Pump
from trio_claude.embed import open_run
from trio_claude.metrics.loop import LoopWatch
from trio_claude.server import open_server
from trio_claude.turns import BULK, LINES, READS

NAME: contextvars.ContextVar[str] = contextvars.ContextVar("name")


Pumping = Callable[[], AbstractAsyncContextManager[Pump]]


@asynccontextmanager
async def serve_pump(*, own_loop: bool) -> AsyncIterator[Pump]:
    """Yield a pump that serves."""
    pump = Pump(own_loop=own_loop)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump.serve)
        await trio.testing.wait_all_tasks_blocked()
        yield pump
        nursery.cancel_scope.cancel()


@pytest.fixture(params=[False, True], ids=["turns", "waits"])
def pumping(request: pytest.FixtureRequest) -> Pumping:
    """Return what yields a pump that serves, in a task of its own or in the event loop's wait."""
    return functools.partial(serve_pump, own_loop=request.param)


async def settle() -> None:
    """Wait until all is heard that was said: in the loop's wait a pipe is read once between two turns of the tasks."""
    for _ in range(3):
        await trio.testing.wait_all_tasks_blocked()


class Pipe:
    """A pipe whose reading end is the server's; `heard` is what its run took, and `rest` what it did not."""

    def __init__(self) -> None:
        ours, self.theirs = os.pipe()
        self.reader = PipeReader(ours)
        self.heard: list[bytes] = []
        self.rest: bytes | None = None
        self.error: Exception | None = None

    def say(self, data: bytes) -> None:
        os.write(self.theirs, data)

    def take(self, chunk: bytes) -> bool:
        """Take everything but an end and what is capital; choke on a question."""
        if b"?" in chunk:
            raise ValueError("what?")
        if not chunk or chunk.isupper():
            return False
        self.heard.append(chunk)
        return True

    async def read(self, pump: Pump, take: Callable[[bytes], bool] | None = None) -> None:
        try:
            self.rest = await self.reader.receive_rest(pump, take or self.take)
        except (ValueError, trio.ClosedResourceError) as error:
            self.error = error

    def close(self) -> None:
        self.reader.close()
        with contextlib.suppress(OSError):
            os.close(self.theirs)


@asynccontextmanager
async def reading(pump: Pump, count: int = 1) -> AsyncIterator[list[Pipe]]:
    """Yield pipes that are read by a task each."""
    pipes = [Pipe() for _ in range(count)]
    try:
        async with trio.open_nursery() as nursery:
            for pipe in pipes:
                nursery.start_soon(pipe.read, pump)
            await settle()
            yield pipes
            nursery.cancel_scope.cancel()
    finally:
        for pipe in pipes:
            pipe.close()


async def test_what_is_heard_without_a_task_is_heard_once_and_in_the_context_of_who_began(pumping: Pumping) -> None:
    heard: list[tuple[str, bytes]] = []
    pipe = Pipe()
    try:
        async with pumping() as pump:
            NAME.set("mine")
            assert pipe.reader.begin_hearing(pump, lambda chunk: heard.append((NAME.get(), chunk)), pytest.fail)
            for word in (b"one", b"two"):
                pipe.say(word)
                await settle()
            assert heard == [("mine", b"one")]
            assert await pipe.reader.receive_some() == b"two"
    finally:
        pipe.close()


async def test_who_waits_without_a_task_hears_of_an_end_of_the_pump_but_not_once_it_has_let_go(
    pumping: Pumping,
) -> None:
    lost: list[str] = []
    one, other = Pipe(), Pipe()
    try:
        async with pumping() as pump:
            for name, pipe in (("one", one), ("other", other)):
                assert pipe.reader.begin_hearing(pump, lambda _chunk: None, functools.partial(lost.append, name))
            other.reader.end_hearing()
            other.say(b"nobody hears")
            await settle()
            assert lost == []
        assert lost == ["one"]
        assert not one.reader.begin_hearing(pump, lambda _chunk: None, lambda: lost.append("again"))
    finally:
        one.close()
        other.close()


async def test_what_is_taken_wakes_nobody_and_what_is_not_comes_back(pumping: Pumping) -> None:
    async with pumping() as pump, reading(pump) as (pipe,):
        for word in (b"one", b"two"):
            pipe.say(word)
            await settle()
        assert (pipe.heard, pipe.rest) == ([b"one", b"two"], None)
        pipe.say(b"THREE")
        await settle()
        assert pipe.rest == b"THREE"
        pipe.say(b"four")
        await settle()
        assert pipe.heard == [b"one", b"two"], "nobody asks the pump any more"
        assert await pipe.reader.receive_some() == b"four"


async def test_the_end_of_a_pipe_is_not_taken_but_told(pumping: Pumping) -> None:
    async with pumping() as pump, reading(pump) as (pipe,):
        pipe.say(b"bye")
        os.close(pipe.theirs)
        await settle()
        assert (pipe.heard, pipe.rest) == ([b"bye"], b"")


async def test_what_a_run_raises_reaches_that_run_alone(pumping: Pumping) -> None:
    async with pumping() as pump, reading(pump, 2) as (one, other):
        one.say(b"?")
        other.say(b"fine")
        await settle()
        assert isinstance(one.error, ValueError)
        assert (other.heard, other.rest, other.error) == ([b"fine"], None, None)


async def test_a_run_that_raises_what_an_empty_pipe_does_is_told_all_the_same(pumping: Pumping) -> None:
    def choke(_chunk: bytes) -> bool:
        raise BlockingIOError("a full pipe of the run's own")

    async with pumping() as pump:
        pipe = Pipe()
        pipe.say(b"x")
        with pytest.raises(BlockingIOError), trio.fail_after(5):
            await pipe.read(pump, choke)
        pipe.close()


async def test_a_pipe_that_is_closed_wakes_its_reader(pumping: Pumping) -> None:
    async with pumping() as pump, reading(pump) as (pipe,):
        pipe.reader.close()
        await settle()
        assert isinstance(pipe.error, trio.ClosedResourceError)


async def test_a_run_that_closes_another_s_pipe_in_the_same_turn_does_no_harm(pumping: Pumping) -> None:
    async with pumping() as pump:
        one, other = Pipe(), Pipe()

        def closing(_chunk: bytes) -> bool:
            for pipe in (one, other):
                pipe.reader.close()
            return True

        async with trio.open_nursery() as nursery:
            for pipe in (one, other):
                nursery.start_soon(pipe.read, pump, closing)
            await settle()
            for pipe in (one, other):
                pipe.say(b"x")
        assert isinstance(one.error, trio.ClosedResourceError)
        assert isinstance(other.error, trio.ClosedResourceError)
        for pipe in (one, other):
            os.close(pipe.theirs)


async def test_a_reader_that_is_cancelled_may_come_back(pumping: Pumping) -> None:
    async with pumping() as pump:
        pipe = Pipe()
        with trio.move_on_after(0):
            await pipe.read(pump)
        assert (pipe.rest, pipe.error) == (None, None)
        pipe.say(b"AGAIN")
        await pipe.read(pump)
        assert pipe.rest == b"AGAIN"
        pipe.close()


async def test_a_run_that_ends_itself_with_what_it_hears_is_cancelled_and_hears_no_more(pumping: Pumping) -> None:
    async with pumping() as pump:
        pipe, scope = Pipe(), trio.CancelScope()

        def end(chunk: bytes) -> bool:
            pipe.heard.append(chunk)
            scope.cancel()
            return False

        pipe.say(b"end")
        with scope:
            await pipe.read(pump, end)
        assert scope.cancelled_caught
        pipe.say(b"more")
        await settle()
        assert pipe.heard == [b"end"]
        pipe.close()


async def test_without_a_pump_that_serves_a_pipe_is_read_as_ever() -> None:
    pipe = Pipe()
    pipe.say(b"plain")
    await pipe.read(Pump())
    assert (pipe.heard, pipe.rest) == ([], b"plain")
    pipe.close()


async def test_on_a_system_without_epoll_a_pump_stays_and_pipes_are_read_as_ever(
    monkeypatch: pytest.MonkeyPatch, pumping: Pumping
) -> None:
    monkeypatch.delattr("trio_claude.containment.pump.select.epoll")
    pipe = Pipe()
    pipe.say(b"plain")
    async with pumping() as pump:
        await pipe.read(pump)
    assert (pipe.heard, pipe.rest) == ([], b"plain")
    pipe.close()


async def test_where_the_pump_ends_its_readers_go_on_without_it(pumping: Pumping) -> None:
    pipe = Pipe()
    async with trio.open_nursery() as nursery:
        async with pumping() as pump:
            nursery.start_soon(pipe.read, pump)
            await settle()
        pipe.say(b"plain")
    assert (pipe.heard, pipe.rest) == ([], b"plain")
    pipe.close()


async def test_where_two_pumps_share_a_loop_neither_waits_for_what_the_other_hears() -> None:
    heard = threading.Event()

    def take(_chunk: bytes) -> bool:
        heard.set()
        return True

    def talk(pipe: Pipe) -> bool:
        heard.clear()
        pipe.say(b"x")
        return heard.wait(5)

    async with serve_pump(own_loop=True) as one, serve_pump(own_loop=True) as other:
        pipes = Pipe(), Pipe()
        async with trio.open_nursery() as nursery:
            for pipe, pump in zip(pipes, (one, other), strict=True):
                nursery.start_soon(pipe.read, pump, take)
            await settle()
            for pipe in pipes:
                assert await trio.to_thread.run_sync(talk, pipe)
            nursery.cancel_scope.cancel()
        for pipe in pipes:
            pipe.close()


async def test_the_wait_of_one_pump_is_no_work_to_who_watches_the_loop_of_another() -> None:
    async with serve_pump(own_loop=True) as one, serve_pump(own_loop=True) as other, reading(one):
        watch = LoopWatch(lambda _seconds: None)
        trio.lowlevel.add_instrument(watch)
        other.watch(watch.hold)
        await trio.sleep(0.5)
        trio.lowlevel.remove_instrument(watch)
    assert watch.busy < 0.4


async def test_a_run_hears_in_its_own_context(pumping: Pumping) -> None:
    async with pumping() as pump:
        pipe, names = Pipe(), []

        def take(_chunk: bytes) -> bool:
            names.append(NAME.get("none"))
            return False

        async def read() -> None:
            NAME.set("run 7")
            await pipe.read(pump, take)

        pipe.say(b"x")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
        assert names == ["run 7"]
        pipe.close()


@pytest.mark.parametrize("early", [True, False])
async def test_that_others_have_the_same_listeners_is_known_to_what_waits(early: bool) -> None:
    pump = Pump(own_loop=True)
    if early:
        pump.share()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump.serve)
        await trio.testing.wait_all_tasks_blocked()
        pump.share()
        wait = HERE.get()
        assert wait
        assert wait.shared
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("given", [True, False])
async def test_a_server_shares_the_listeners_that_it_was_given(fake: Backend, given: bool) -> None:
    config = Config(port=0, cli=fake.program, cwd=str(fake.cwd), own_loop=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with open_server(config, listeners=[listener.dup()] if given else None):
            await until(lambda: bool((wait := HERE.get()) and wait.shared is given))


async def babble(pumping: Pumping, words: bytes) -> int:
    """Return how often a pipe is read in 20 turns, while as much is said at once as was heard."""
    async with pumping() as pump:
        pipe, reads = Pipe(), 0

        def echo(chunk: bytes) -> bool:
            nonlocal reads
            reads += 1
            pipe.say(chunk)
            return True

        pipe.say(words)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pipe.read, pump, echo)
            for _ in range(20):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        pipe.close()
    return reads


async def test_who_never_stops_talking_leaves_others_their_turns() -> None:
    assert 0 < await babble(functools.partial(serve_pump, own_loop=False), b"and") <= 20 * READS_A_TURN
    assert 0 < await babble(functools.partial(serve_pump, own_loop=True), b"and") <= 20 * 2, "once between two turns"


async def test_who_says_much_at_once_is_read_the_less_often_in_a_turn() -> None:
    pumping = functools.partial(serve_pump, own_loop=False)
    assert 0 < await babble(pumping, b"x" * READS_A_TURN * LONE) <= 20
    assert 20 < await babble(pumping, b"x" * LONE) <= 20 * READS_A_TURN // 2


@pytest.mark.parametrize("own_loop", [True, False])
async def test_a_lone_line_waits_for_one_of_all_that_say_bulk(own_loop: bool) -> None:
    said: list[int] = []

    def echo(pipe: Pipe, chunk: bytes) -> bool:
        said.append(len(chunk))
        pipe.say(chunk)
        return len(said) < 200

    async with serve_pump(own_loop=own_loop) as pump, trio.open_nursery() as nursery:
        pipes = [Pipe() for _ in range(9)]
        for number, pipe in enumerate(pipes):
            pipe.say(b"x" * (BULK if number else 1))
            nursery.start_soon(pipe.read, pump, functools.partial(echo, pipe))
        await until(lambda: len(said) >= 200)
        nursery.cancel_scope.cancel()
    for pipe in pipes:
        pipe.close()
    known = said[40:200]
    assert max(len(list(group)) for size, group in itertools.groupby(known) if size > 1) <= READS
    assert known.count(1) >= len(known) // (READS + 1)


async def test_a_run_that_is_ended_by_the_bulk_that_it_says_has_no_turn_any_more(pumping: Pumping) -> None:
    """The number of its pipe is another's soon."""
    async with pumping() as pump:
        pipe, scope = Pipe(), trio.CancelScope()

        def end(_chunk: bytes) -> bool:
            scope.cancel()
            return True

        pipe.say(b"x" * BULK)
        with scope:
            await pipe.read(pump, end)
        assert scope.cancelled_caught
        assert not pump._bulky
        pipe.close()


@pytest.mark.parametrize("own_loop", [True, False])
async def test_many_lines_in_one_read_come_once_and_in_order(fake: Backend, folder: Path, own_loop: bool) -> None:
    """They are cut where they are read, and handed on by the run's own task."""
    program = script_cli(folder, f"read -r line; seq {20 * LINES}")
    async with fake.serve(cli=program, own_loop=own_loop) as server:
        said = await ask(server, "hi")
    assert [int(frame) for frame in said.frames if frame.isdigit()] == [*range(1, 20 * LINES + 1)]
    assert fake.ended[0].outcome.lines == 20 * LINES


class Steps(trio.abc.Instrument):
    """Counts the turns of those tasks that read a CLI's stdout."""

    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += task.name.endswith("._read_stdout")


async def test_lone_lines_reach_a_client_without_a_turn_of_their_run_s_own(fake: Backend) -> None:
    steps = Steps()
    prompt = directive("slow", n=40, ms=5)
    async with fake.serve() as server, connect(server, "?frames=verbatim") as socket:
        trio.lowlevel.add_instrument(steps)
        await socket.send_message(json.dumps({"prompt": prompt, "meta": "T", "partial": True}))
        said = await listen(socket)
        assert (said.code, fake.ended[0].outcome.lines) == (1000, len(said.frames) - 1)
        assert fake.ended[0].outcome.lines > 40
        assert steps.count <= 10
        steps.count = 0
        async with open_talk(server) as talk:
            await talk.start(partial=True)
            await talk.user(prompt)
            await talk.result()
            await talk.stop("end")
            await talk.end()
        assert len(talk.lines()) > 40
        assert steps.count <= 10
        trio.lowlevel.remove_instrument(steps)


async def test_a_run_whose_lines_nobody_takes_at_once_is_none_of_the_pump_s(
    fake: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pump, "wait", None)
    config = Config(cli=fake.program, cwd=str(fake.cwd), journal="none")
    async with open_run(directive("slow", n=3, ms=1), config=config, partial=True) as run:
        outcome = await run.wait()
    assert (outcome.reason, outcome.exit_status) == ("exit", 0)
    assert outcome.lines > 3
