"""CLIs started ahead of need: initialised, idle, each for one run only.

Duty: keep a few CLIs of the default options ready, and hand one over without a wait. This module must never hand out a
CLI that has said a word since it was ready, that has ended, or that is too old; never start one where another run could
reach it; and never hold a slot that a run waits for.
"""

from __future__ import annotations

import contextlib
import math
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import attrs
import trio

from . import stream_json
from .containment import Contained, Containment
from .errors import SpawnFailed
from .events import Observer, Strained
from .messages import Options
from .stream_json import LineSplitter, LineTooLong
from .workplace import Workplace

ALIASES: Final = frozenset({"haiku", "opus", "sonnet"})
"""Models that a CLI which waits takes without a word of the API. Of others it asks the API, and where that refuses, for
whatever reason, it would answer by its own model."""
READY_TIMEOUT: Final = 60.0
"""Seconds in which a CLI answers `initialize`; the official SDK waits as long."""
REPLY_LIMIT: Final = 1024 * 1024
"""Bytes of that answer; it names commands, agents and models (18 KB for the real CLI)."""
REFILL_PAUSE: Final = 1.0
"""Seconds after a CLI was taken in which none is started: its first token comes first, and a start costs 0.5 CPU-s."""
RETRY: Final = (1.0, 60.0)
"""Seconds until a CLI that could not be made ready is tried anew: the first time, and at most, doubling."""


class Warm:
    """One CLI that waits for its run.

    Resource handling: owns the process and its folder from `open` to `aclose`; whoever took it calls that.
    """

    def __init__(self, options: Options) -> None:
        self.id: str = secrets.token_hex(16)
        self.options = options
        self.taken: bool = False
        self.process: Contained
        self._stack = contextlib.AsyncExitStack()
        self._watch = trio.CancelScope()
        self._released = trio.Event()

    async def open(self, workplace: Workplace, containment: Containment) -> None:
        """Start the CLI and see that it is ready. Raises `SpawnFailed`."""
        job = await self._stack.enter_async_context(workplace.job(self.id, self.options, "", binds=containment.binds))
        self.process = await self._stack.enter_async_context(containment.start(job))
        with trio.move_on_after(READY_TIMEOUT):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._hush)
                good = await self._is_initialised()
                nursery.cancel_scope.cancel()
            if good:
                return
        raise SpawnFailed("a CLI started ahead of need did not answer `initialize` as it should")

    async def _is_initialised(self) -> bool:
        """Ask the CLI to initialise; return whether the last thing that it said is that it has.

        What it says before (the real one: a `ui_invalidate`) is dropped with the answer.
        """
        request = secrets.token_hex(8)
        splitter = LineSplitter(REPLY_LIMIT)
        try:
            await self.process.stdin.send_all(stream_json.control_line(request, "initialize"))
            while chunk := await self.process.stdout.receive_some():
                lines = splitter.feed(bytes(chunk))
                if any(stream_json.is_reply(line, request) for line in lines):
                    return stream_json.is_reply(lines[-1], request) and not splitter.finish()
        except (LineTooLong, trio.BrokenResourceError):
            return False
        return False

    async def _hush(self) -> None:
        """Drop what the CLI says on stderr meanwhile: one whose stderr is full never answers."""
        while await self.process.stderr.receive_some():
            pass

    async def wait_unfit(self) -> None:
        """Wait until the CLI says something, or ends, or is taken."""
        try:
            with self._watch:
                await self.process.wait_stir()
        finally:
            self._released.set()

    def take(self) -> None:
        """Take the CLI over, at once; `owned` gives it when the pool has let go of its pipes."""
        self.taken = True
        self._watch.cancel()

    def dismiss(self) -> None:
        """Let the pool end this CLI."""
        self._watch.cancel()

    @asynccontextmanager
    async def owned(self) -> AsyncIterator[Contained]:
        """Yield the process to the one that took it; leaving the context ends it."""
        with trio.CancelScope(shield=True):
            await self._released.wait()  # one round of the loop
        try:
            yield self.process
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """End the CLI, prove it gone, and remove its folder."""
        if self.taken:
            with trio.CancelScope(shield=True):
                await self._released.wait()  # one round of the loop
        await self._stack.aclose()


@attrs.frozen
class Slots:
    """How the pool gets and gives up slots, of which live runs have the first choice."""

    acquire: Callable[[object], bool]
    release: Callable[[object], None]


class Pool:
    """The CLIs that wait.

    Resource handling: `serve` owns what is not taken. Error handling: a CLI that can't be made ready is tried anew,
    later and later, and an observer hears of it.
    """

    def __init__(self, workplace: Workplace, containment: Containment, observer: Observer, slots: Slots) -> None:
        self._workplace = workplace
        self._containment = containment
        self._observer = observer
        self._slots = slots
        self._ready: list[Warm] = []
        self._wanted = trio.Event()
        self._alive = 0
        self._closed = False
        self._strained = False
        self._taken_at = -math.inf
        self.options: Options = Options(partial=workplace.config.pool_partial or None)
        pinned = any(word.partition("=")[0] == "--model" for word in workplace.words)
        self._aliases: frozenset[str] = frozenset() if pinned else ALIASES

    @property
    def ready(self) -> int:
        """How many CLIs wait."""
        return len(self._ready)

    def take(self, options: Options) -> Warm | None:
        """Return a CLI for a run with `options`, the youngest, or None; its slot goes with it. Never waits."""
        if not (self._ready and self._fits(options)):
            return None
        while self._ready:
            warm = self._ready.pop()
            self._wanted.set()
            if warm.process.quiet:
                warm.take()
                self._taken_at = trio.current_time()
                return warm
            warm.dismiss()
        return None

    def evict(self) -> None:
        """Give up the oldest CLI, for a run that waits for a slot."""
        if self._ready:
            self._ready.pop(0).dismiss()

    def close(self) -> None:
        """Start no more, and end what waits."""
        self._closed = True
        for warm in self._ready:
            warm.dismiss()
        self._ready.clear()

    def _fits(self, options: Options) -> bool:
        """Return whether a CLI of the pool can serve `options`; a deadline is ours, and an alias can still be set.

        But where the operator's arguments name a model: that goes before a client's, in any start.
        """
        model = None if options.model in self._aliases else options.model
        plain = attrs.evolve(options, model=model, timeout=None, partial=options.partial or None)
        return plain == self.options

    async def serve(self) -> None:
        """Keep the pool full, one start at a time, until cancelled."""
        size = self._workplace.config.pool_size
        async with trio.open_nursery() as nursery:
            pause = 0.0
            while True:
                while self._alive >= size or self._closed:
                    self._wanted = trio.Event()
                    await self._wanted.wait()
                await trio.sleep_until(self._taken_at + REFILL_PAUSE)
                started = await nursery.start(self._keep_one)
                if started is None:
                    await trio.sleep(RETRY[0])
                    continue
                pause = 0.0 if started else min(max(2 * pause, RETRY[0]), RETRY[1])
                self._strain(on=not started)
                await trio.sleep(pause)

    async def _keep_one(self, task_status: trio.TaskStatus[bool | None]) -> None:
        """Make one CLI ready, tell whether that went well, None without a slot; keep it until it is taken or unfit."""
        warm = Warm(self.options)
        if not self._slots.acquire(warm):
            task_status.started(None)
            return
        self._alive += 1
        try:
            try:
                await warm.open(self._workplace, self._containment)
            except SpawnFailed:
                task_status.started(False)
                return
            self._ready.append(warm)
            task_status.started(True)
            with trio.move_on_after(self._workplace.config.pool_age):
                await warm.wait_unfit()
        finally:
            self._alive -= 1
            self._wanted.set()
            await self._let_go(warm)

    async def _let_go(self, warm: Warm) -> None:
        """End a CLI that nobody took, and give its slot back."""
        if warm in self._ready:
            self._ready.remove(warm)
        if not warm.taken:
            try:
                with trio.CancelScope(shield=True):
                    await warm.aclose()
            finally:
                self._slots.release(warm)

    def _strain(self, *, on: bool) -> None:
        if on != self._strained:
            self._strained = on
            self._observer(Strained("what CLIs started ahead of need take", over=not on))
