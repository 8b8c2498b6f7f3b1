"""Rule: pipes are heard while the event loop waits, and Trio misses nothing by it: no event, no task, no deadline."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from trio_claude.containment import loop_wait
from trio_claude.containment.loop_wait import LoopWait, find_epoll
from trio_claude.metrics.loop import LoopWatch

PATIENCE = 20
"""Seconds after which what never comes has not come."""


class Ends:
    """A pipe, and what is done with what it says."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        self.heard: list[bytes] = []
        self.then: Callable[[bytes], object] = self.heard.append

    def say(self, words: bytes) -> None:
        os.write(self.writer, words)

    def hear(self, descriptors: list[int]) -> None:
        assert descriptors == [self.reader]
        self.then(os.read(self.reader, 65536))


@contextmanager
def open_ends() -> Iterator[Ends]:
    ends = Ends()
    try:
        yield ends
    finally:
        os.close(ends.reader)
        os.close(ends.writer)


@asynccontextmanager
async def waiting(ends: Ends) -> AsyncIterator[LoopWait]:
    """Yield what waits in Trio's place and hears a pipe."""
    trios = await find_epoll()
    assert trios is not None
    with contextlib.closing(select.epoll()) as epoll:
        epoll.register(ends.reader, select.EPOLLIN)
        wait = LoopWait(epoll, [ends.reader], ends.hear)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait.serve, trios)
            await trio.testing.wait_all_tasks_blocked()
            yield wait
            nursery.cancel_scope.cancel()


@contextmanager
def babbling(ends: Ends, pause: float, words: bytes = b"x") -> Iterator[None]:
    """Have a thread say something again and again."""
    enough = threading.Event()

    def babble() -> None:
        while not enough.wait(pause):
            ends.say(words)

    thread = threading.Thread(target=babble)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()


class Steps(trio.abc.Instrument):
    """Counts the turns of tasks."""

    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


@contextmanager
def counted() -> Iterator[Steps]:
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    try:
        yield steps
    finally:
        trio.lowlevel.remove_instrument(steps)


async def test_the_epoll_that_is_found_watches_what_trio_s_tasks_wait_for() -> None:
    found = await find_epoll()
    assert found is not None
    with open_ends() as ends, contextlib.closing(select.epoll()) as other:
        other.register(found, select.EPOLLIN)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.wait_readable, ends.reader)
            await trio.testing.wait_all_tasks_blocked()
            assert other.poll(0) == []
            ends.say(b"x")
            assert [descriptor for descriptor, _ in other.poll(0)] == [found]


async def test_none_is_found_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_wait, "OPEN", "/nowhere")
    assert await find_epoll() is None


async def test_none_is_found_where_the_system_refuses_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> Iterator[Path]:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert await find_epoll() is None


async def test_what_a_pipe_says_is_heard_without_a_turn_of_any_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_wait, "LATE", PATIENCE * 2)
    heard = threading.Event()
    with open_ends() as ends:
        ends.then = lambda _words: heard.set()

        def talk() -> int:
            before = steps.count
            for _ in range(20):
                heard.clear()
                ends.say(b"x")
                assert heard.wait(PATIENCE)
            return steps.count - before

        async with waiting(ends):
            with counted() as steps:
                passed = await trio.to_thread.run_sync(talk)
    assert passed == 0


class Thief(trio.abc.Instrument):
    """Takes what Trio has found, as another process may that has the same listener."""

    def __init__(self, ends: Ends) -> None:
        self._ends = ends

    def before_io_wait(self, timeout: float) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._ends.reader, 65536)


async def test_what_another_process_takes_before_trio_does_keeps_no_line_and_no_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop_wait, "LATE", PATIENCE * 2)
    with open_ends() as ends, open_ends() as stolen:
        async with waiting(ends) as wait, trio.open_nursery() as nursery:
            wait.shared = True
            heard = trio.Event()
            ends.then = lambda _words: heard.set()
            nursery.start_soon(trio.lowlevel.wait_readable, stolen.reader)
            thief = Thief(stolen)
            trio.lowlevel.add_instrument(thief)
            await trio.testing.wait_all_tasks_blocked()
            threading.Timer(0.05, stolen.say, [b"x"]).start()
            threading.Timer(0.5, ends.say, [b"x"]).start()
            with trio.fail_after(PATIENCE):
                await heard.wait()
            trio.lowlevel.remove_instrument(thief)
            nursery.cancel_scope.cancel()


def test_an_older_epoll_that_lists_the_same_number_is_not_taken_for_trio_s() -> None:
    """As one that was inherited; it lists what it watches by the number that this had once."""

    async def look() -> int | None:
        os.close(reader)  # the next pipe gets its number
        return await find_epoll()

    with contextlib.closing(select.epoll()) as older:
        reader, writer = os.pipe()
        kept = os.dup(reader)
        older.register(reader, select.EPOLLIN)
        try:
            found = trio.run(look)
        finally:
            os.close(kept)
            os.close(writer)
        assert found not in (None, older.fileno())


async def test_a_task_that_is_made_ready_by_what_is_heard_has_its_turn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_wait, "LATE", PATIENCE * 2)
    with open_ends() as ends, trio.fail_after(PATIENCE):
        ready = trio.Event()
        ends.then = lambda _words: ready.set()
        async with waiting(ends):
            threading.Timer(0.05, ends.say, [b"x"]).start()
            await ready.wait()


async def test_a_deadline_that_is_set_by_what_is_heard_is_met() -> None:
    def hurry(_words: bytes) -> None:
        scope.deadline = trio.current_time()

    with open_ends() as ends:
        ends.then = hurry
        async with waiting(ends):
            threading.Timer(0.05, ends.say, [b"x"]).start()
            with trio.fail_after(PATIENCE), trio.CancelScope() as scope:
                await trio.sleep_forever()
            assert scope.cancelled_caught


@pytest.mark.parametrize("talks", [False, True])
async def test_a_deadline_is_met_whether_something_is_heard_meanwhile_or_not(talks: bool) -> None:
    with open_ends() as ends, babbling(ends, 0.01) if talks else contextlib.nullcontext():
        async with waiting(ends):
            began = time.monotonic()
            await trio.sleep(3)
            assert 3 <= time.monotonic() - began < 5.5, "Trio must not wait for as long again"
        assert bool(ends.heard) == talks


async def test_what_trio_waits_for_is_not_behind_a_pipe_that_never_stops() -> None:
    with open_ends() as ends, open_ends() as other:
        ends.then = lambda words: ends.say(words)
        ends.say(b"x")
        async with waiting(ends):
            with trio.fail_after(PATIENCE):
                threading.Timer(0.05, other.say, [b"x"]).start()
                await trio.lowlevel.wait_readable(other.reader)
                assert await trio.to_thread.run_sync(lambda: 7) == 7
                await trio.sleep(0.01)


async def test_a_pipe_is_not_behind_tasks_that_never_rest() -> None:
    with open_ends() as ends:
        ends.say(b"x")
        async with waiting(ends):
            for _ in range(5):
                await trio.lowlevel.checkpoint()
            assert ends.heard == [b"x"]


async def test_what_hearing_raises_is_raised_and_trio_waits_by_itself_again() -> None:
    def choke(_words: bytes) -> None:
        raise ValueError("what?")

    with open_ends() as ends:
        ends.then = choke
        with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="what")):
            async with waiting(ends):
                ends.say(b"x")
                with trio.fail_after(PATIENCE):
                    await trio.sleep_forever()
        await trio.sleep(0.01)


async def test_the_wait_counts_for_no_work_and_what_is_heard_does() -> None:
    holds: list[float] = []
    watch = LoopWatch(holds.append)
    with open_ends() as ends:
        ends.then = lambda _words: time.sleep(0.05)  # what holds the loop
        async with waiting(ends) as wait:
            trio.lowlevel.add_instrument(watch)
            wait.told = watch.hold
            wait.be_last()
            threading.Timer(0.2, ends.say, [b"x"]).start()
            await trio.sleep(2)
            trio.lowlevel.remove_instrument(watch)
    assert 0.05 <= watch.busy < 1
    assert any(hold >= 0.05 for hold in holds)


async def test_what_comes_last_is_no_matter_once_nobody_waits_here() -> None:
    with open_ends() as ends:
        async with waiting(ends) as wait:
            pass
        wait.be_last()


INTERRUPTED = """
import os, select, trio
from trio_claude.containment.loop_wait import LoopWait, find_epoll

async def main():
    epoll, (reader, _) = select.epoll(), os.pipe()
    epoll.register(reader, select.EPOLLIN)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(LoopWait(epoll, [reader], print).serve, await find_epoll())
        await trio.testing.wait_all_tasks_blocked()
        try:
            print("waits", flush=True)
            await trio.sleep_forever()
        finally:
            print("left", flush=True)

import trio.testing
try:
    trio.run(main)
except* KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_an_interrupt_is_heard_in_the_wait() -> None:
    with subprocess.Popen([sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "waits\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=PATIENCE)[0] == "left\ninterrupted\n"
        assert process.returncode == 0
