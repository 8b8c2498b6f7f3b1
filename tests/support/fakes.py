"""Fakes in memory, for tests on virtual time: a containment without processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import trio
from trio.testing import MemoryReceiveStream, MemorySendStream, memory_stream_one_way_pair

from trio_claude.containment import Contained, Containment, Job
from trio_claude.containment.base import Told, forget
from trio_claude.events import Receipt


class FakeProcess(Contained):
    """A CLI whose life is in the test's hands."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.status = None
        self.pid = 4711
        self.signals: list[int] = []
        self.prompts, self.stdin = self._inward()
        self.stdout, self.say = self._outward()
        self.stderr, self.complain = self._outward()
        self._exited = trio.Event()
        self.stirred = trio.Event()
        self._ended_at: float | None = None
        self.is_counted = False
        self.alone_at_exit = True
        self.empty = trio.Event()

    @staticmethod
    def _inward() -> tuple[MemoryReceiveStream, MemorySendStream]:
        send, receive = memory_stream_one_way_pair()
        return receive, send

    @staticmethod
    def _outward() -> tuple[MemoryReceiveStream, MemorySendStream]:
        send, receive = memory_stream_one_way_pair()
        return receive, send

    def exit(self, status: int) -> None:
        """End with `status`, closing both pipes."""
        self.status = status
        self._exited.set()
        self.stirred.set()
        self.say.close()
        self.complain.close()

    @property
    def ended(self) -> bool:
        return self._ended_at is not None

    async def wait_exit(self) -> int:
        await self._exited.wait()
        assert self.status is not None
        return self.status

    @property
    def alone(self) -> bool:
        return self.alone_at_exit

    async def wait_empty(self) -> None:
        await self.empty.wait()

    @property
    def quiet(self) -> bool:
        return self.status is None and not self.stirred.is_set()

    async def wait_stir(self) -> None:
        await self.stirred.wait()

    def send_signal(self, number: int) -> None:
        self.signals.append(number)

    def end(self) -> None:
        if self._ended_at is None:
            self._ended_at = trio.current_time()
        if self.status is None:
            self.exit(-9)

    async def wait_gone(self) -> Receipt:
        with trio.CancelScope(shield=True):
            await trio.lowlevel.checkpoint()
        assert self._ended_at is not None
        self.is_counted = True
        return Receipt(seen=1, killed=int(self.status == -9), survivors=0, ms=0.0, containment="fake")


class FakeContainment(Containment):
    """Starts `FakeProcess`es and keeps them all."""

    mode = "fake"
    detail = "no processes"
    binds = False

    def __init__(self) -> None:
        self.started: list[FakeProcess] = []
        self.live = 0
        self.changed = trio.Event()

    def start(self, job: Job, told: Told = forget) -> AbstractAsyncContextManager[Contained]:
        return self._start(job, told)

    @asynccontextmanager
    async def _start(self, job: Job, told: Told) -> AsyncIterator[Contained]:
        process = FakeProcess(job)
        self.live += 1
        try:
            await trio.lowlevel.checkpoint()
            self.started.append(process)
            self.changed.set()
            yield process
        finally:
            process.end()
            receipt = await process.wait_gone()
            if process not in self.started:
                told(receipt)
            self.live -= 1

    async def wait_started(self) -> FakeProcess:
        await self.changed.wait()
        return self.started[-1]
