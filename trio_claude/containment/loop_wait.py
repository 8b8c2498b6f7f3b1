"""What is heard while the event loop waits: a line passes without a turn of Trio's, which costs more than the line.

Duty: wait in Trio's place for what it waits for and for pipes beside it, and leave it to Trio as soon as that has
something to do. This module must never wait longer than Trio would, nor be used where the loop is a guest of another.
"""

from __future__ import annotations

import contextlib
import operator
import os
import re
import select
import time
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Final

import trio

AT_ONCE: Final = 32
"""Pipes that are looked at between two looks at what Trio waits for."""
LATE: Final = 0.25
"""Seconds by which a deadline may be met too late that was set by what was handed on, which nobody tells."""
OPEN: Final = "/proc/self/fd"
"""Where the kernel lists this process's descriptors."""
_DESCRIPTOR: Final = operator.itemgetter(0)
_EPOLL: Final = "anon_inode:[eventpoll]"


class LoopWait(trio.abc.Instrument):
    """Waits by `epoll`, where that watches `pipes`; `hear` is called with those that can be read, and must not wait.

    `told` hears for how many seconds that held the loop, between two looks. `shared` says that another process may take
    what Trio waits for, as a connection from a listener that both have.

    Resource handling: `serve` has it among Trio's instruments, and Trio's own epoll in `epoll`. Error handling: what
    goes wrong in the wait is raised by `serve`, and Trio waits by itself again.
    """

    def __init__(self, epoll: select.epoll, pipes: Sized, hear: Callable[[list[int]], object]) -> None:
        self.told: Callable[[float], None] | None = None
        self.shared: bool = False
        self._epoll = epoll
        self._pipes = pipes
        self._hear = hear
        self._trios = -1
        self._token: trio.lowlevel.TrioToken | None = None
        self._is_stirred = False
        self._error: BaseException | None = None
        self._failed = trio.Event()

    async def serve(self, trios: int) -> None:
        """Wait in the place of Trio, whose epoll is `trios`, until cancelled.

        Raises what `hear` raises, and OSError where a system refuses to watch one epoll by another.
        """
        self._trios, self._token = trios, trio.lowlevel.current_trio_token()
        self._epoll.register(trios, select.EPOLLIN)
        trio.lowlevel.add_instrument(self)
        HERE.set(self)
        try:
            await self._failed.wait()
        finally:
            HERE.set(None)
            self._token = None
            trio.lowlevel.remove_instrument(self)
            self._epoll.unregister(trios)
        assert self._error
        raise self._error

    def be_last(self) -> None:
        """Wait behind whatever looks at the loop up to its wait, so that it takes this for no work."""
        if self._token:
            trio.lowlevel.remove_instrument(self)
            trio.lowlevel.add_instrument(self)

    # what Trio calls

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        """Take that a task is ready."""
        self._is_stirred = True

    def before_io_wait(self, timeout: float) -> None:
        """Wait for at most `timeout` seconds, as Trio is about to."""
        try:
            is_over = bool(self._pipes) and self._wait(timeout)
        except BaseException as error:  # Trio would log it and go on without us; `serve` raises it
            self._error, is_over = error, True
            self._failed.set()
        if is_over and self._token:
            self._token.run_sync_soon(_nothing)

    def _wait(self, timeout: float) -> bool:
        """Hear pipes until Trio's time is over or its turn has come; return whether it would not notice by itself."""
        self._is_stirred = False
        left, until = timeout, time.monotonic() + timeout
        while True:
            found = self._epoll.poll(left, AT_ONCE)
            now, heard = time.monotonic(), [*map(_DESCRIPTOR, found)]
            if is_its_turn := self._trios in heard:
                heard.remove(self._trios)
            if heard:
                self._hear(heard)
                until = min(until, now + LATE)
                since, now = now, time.monotonic()
                if self.told:
                    self.told(now - since)
            if not timeout:
                return False
            if is_its_turn or self._is_stirred:
                return bool(heard) or self.shared
            if (left := until - now) <= 0:
                return True


HERE: Final[trio.lowlevel.RunVar[LoopWait | None]] = trio.lowlevel.RunVar("LoopWait", None)
"""What waits in the place of this Trio: one at most, behind which the pipes of a second would wait for those of it."""


async def find_epoll() -> int | None:
    """Return the descriptor of Trio's own epoll, None where the system does not tell, or a `LoopWait` has it already.

    The kernel lists what an epoll watches, and Trio's alone watches what one of its tasks waits for. Raises OSError
    where there is no descriptor to look by.
    """
    reader, writer = os.pipe()
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(_watch, reader)
            found = _watcher(reader)
            nursery.cancel_scope.cancel()
    finally:
        os.close(reader)
        os.close(writer)
    return None if HERE.get() else found


async def _watch(descriptor: int, task_status: trio.TaskStatus[None]) -> None:
    task_status.started()
    await trio.lowlevel.wait_readable(descriptor)


def _watcher(descriptor: int) -> int | None:
    """Return which of this process's epolls watches a descriptor."""
    file = os.fstat(
        descriptor
    ).st_ino  # an epoll lists what it watches by the number that this had, which is given anew
    listed = re.compile(rf"^tfd:\s+{descriptor}\s.*\bino:{file:x}\s", re.MULTILINE)
    with contextlib.suppress(OSError):
        for link in Path(OPEN).iterdir():
            if _is_epoll(link) and listed.search(_info(link.name)):
                return int(link.name)
    return None


def _is_epoll(link: Path) -> bool:
    with contextlib.suppress(OSError):  # it is closed by now, as that of the listing is
        return str(link.readlink()) == _EPOLL
    return False


def _info(number: str) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/self/fdinfo/{number}").read_text()
    return ""


def _nothing() -> None:
    """Make Trio wait no more."""
