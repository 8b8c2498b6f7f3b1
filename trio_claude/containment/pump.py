"""One wait for the stdouts of all runs: what a CLI says is heard in the task of the pump, or in the event loop's wait.

Duty: read each pipe that has something, and offer what it held to whoever waits for it, who takes it at once or is
woken with it; of those that hold bulk one at a time, between two looks at all others. This module must never wait for
anything but the pipes, nor let what one run raises reach another.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable
from contextvars import Context
from typing import Final

import attrs
import trio

from ..turns import BULK, READS
from .loop_wait import HERE, LoopWait, find_epoll

READ_SIZE: Final = 65536
"""Bytes taken at a time: what a Linux pipe holds."""
READS_A_TURN: Final = 32
"""Reads of a lone line before every other task gets its turn: each takes some 20 µs."""
LONE: Final = 512
"""Bytes of a read that counts for one; a longer one counts for more."""

Take = Callable[[bytes], bool]
"""Takes what a pipe held, empty at its end, and returns whether it did, all of it; must not wait."""


@attrs.define(eq=False)
class _Waiter:
    """Who waits for a pipe; `rest` is what was read and not taken, None where nothing was read.

    Where no `task` waits, `lost` is called once nobody reads pipes any more.
    """

    context: Context
    take: Callable[[bytes], object]
    task: trio.lowlevel.Task | None = None
    lost: Callable[[], None] | None = None
    rest: bytes | None = None
    error: Exception | None = None


class Pump:
    """The pipes of one engine; with `own_loop` they are heard while Trio's loop waits, which must be no guest's.

    Of several in one loop that is so for the first alone; the others are a task each.

    Resource handling: `serve` owns the `epoll`; while it does not run, and from its end on, nobody waits here. Error
    handling: what a `Take` raises is raised to the task that waits, and to no other.
    """

    def __init__(self, *, own_loop: bool = False) -> None:
        self._own_loop = own_loop
        self._epoll: select.epoll | None = None
        self._waiting: dict[int, _Waiter] = {}
        self._bulky: dict[int, None] = {}
        """Those that held bulk when they were read last, whose turn is next first."""
        self._wait: LoopWait | None = None
        self._shared = False
        self._told: Callable[[float], None] | None = None

    async def serve(self) -> None:
        """Read pipes until cancelled; where there is no `epoll`, which is Linux's, leave them to whoever waits."""
        if not hasattr(select, "epoll"):
            await trio.sleep_forever()
        trios = await find_epoll() if self._own_loop else None
        with contextlib.closing(select.epoll()) as self._epoll:
            try:
                if trios is None:
                    await self._serve_in_turns(self._epoll)
                else:
                    await self._serve_in_waits(self._epoll, trios)
            finally:
                waiting = [*self._waiting.items()]
                for descriptor, waiter in waiting:
                    self.release(descriptor)
                    if waiter.lost:
                        waiter.context.run(waiter.lost)
                self._epoll = None

    async def _serve_in_turns(self, epoll: select.epoll) -> None:
        while True:
            await trio.lowlevel.wait_readable(epoll.fileno())
            left = READS_A_TURN
            while left > 0 and (found := epoll.poll(0, left)):
                left -= len(found) + self._read_all([descriptor for descriptor, _ in found], 1) // LONE

    async def _serve_in_waits(self, epoll: select.epoll, trios: int) -> None:
        self._wait = LoopWait(epoll, self._waiting, self._read_all)
        self._wait.shared = self._shared
        self.watch(self._told)
        try:
            await self._wait.serve(trios)
        finally:
            self._wait = None

    def share(self) -> None:
        """Take that another process may take what this loop waits for, as connections of a listener that both have."""
        self._shared = True
        if self._wait:
            self._wait.shared = True

    def watch(self, told: Callable[[float], None] | None) -> None:
        """Tell for how many seconds pipes held the event loop while no task ran; None: no more."""
        self._told = told
        if self._wait:
            self._wait.told = told
        if here := HERE.get():  # it may be another engine's
            here.be_last()

    def _read_all(self, ready: list[int], turn_reads: int = READS) -> int:
        """Read pipes that can be read, of those that held bulk one; return how many bytes that was."""
        if not self._bulky:
            return sum(map(self._read, ready))
        turn = next((descriptor for descriptor in self._bulky if descriptor in ready), None)
        size = sum([self._read(descriptor) for descriptor in ready if descriptor not in self._bulky])
        return size if turn is None else size + self._have_turn(turn, turn_reads)

    def _have_turn(self, descriptor: int, reads: int) -> int:
        """Read a pipe that held bulk; where it does still, its next turn is behind all others."""
        whole = 0
        self._bulky.pop(descriptor, None)
        for _ in range(reads):
            whole += (size := self._read(descriptor))
            if size < BULK:
                break
        return whole

    def _read(self, descriptor: int) -> int:
        """Read a pipe, if somebody waits for it yet, and offer what it held; return how many bytes that was."""
        if (waiter := self._waiting.get(descriptor)) is None:
            return 0
        chunk = b""
        try:
            try:
                chunk = os.read(descriptor, READ_SIZE)
            except BlockingIOError:
                return 0
            if waiter.context.run(waiter.take, chunk) and waiter.task:
                if len(chunk) >= BULK and descriptor in self._waiting:  # what it took may have ended its wait
                    self._bulky[descriptor] = None
                return len(chunk)
            waiter.rest = chunk
        except Exception as error:  # whatever it is, it is the run's, and is raised there
            if waiter.task is None:
                raise
            waiter.error = error
        self.release(descriptor)
        return len(chunk)

    async def wait(self, descriptor: int, take: Take) -> bytes | None:
        """Offer all that a pipe holds from now on to `take`, until that does not take it; return what that was.

        Nothing else may wait for the pipe meanwhile. None is returned where nobody reads pipes here, or where the pipe
        was released. Raises what `take` raises.
        """
        if self._epoll is None:
            await trio.lowlevel.checkpoint()
            return None
        self._epoll.register(descriptor, select.EPOLLIN)
        task = trio.lowlevel.current_task()
        waiter = self._waiting[descriptor] = _Waiter(task.context, take, task)

        def abort(_: object) -> trio.lowlevel.Abort:
            self._forget(descriptor)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        if waiter.error:
            raise waiter.error
        return waiter.rest

    def hear(self, descriptor: int, first: Callable[[bytes], None], lost: Callable[[], None]) -> bool:
        """Offer what a pipe holds next to `first`, once, while no task waits; return whether pipes are read here.

        `lost` is called instead where nobody reads them any more, and neither behind a `release`. Both are called in
        this task's context, and must not raise: nobody waits to whom it would be raised.
        """
        if self._epoll is None:
            return False
        self._epoll.register(descriptor, select.EPOLLIN)
        self._waiting[descriptor] = _Waiter(trio.lowlevel.current_task().context, first, lost=lost)
        return True

    def release(self, descriptor: int) -> None:
        """Read a pipe no more, and wake whoever waits for it; to be called before it is closed."""
        if (waiter := self._forget(descriptor)) and waiter.task:
            trio.lowlevel.reschedule(waiter.task)

    def _forget(self, descriptor: int) -> _Waiter | None:
        self._bulky.pop(descriptor, None)
        waiter = self._waiting.pop(descriptor, None)
        if waiter and self._epoll:
            self._epoll.unregister(descriptor)
        return waiter
