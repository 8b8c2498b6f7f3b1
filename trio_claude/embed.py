"""A run inside another Trio program: the same containment and receipt, and no socket at all.

Cancelling the nursery or scope around `open_run` is the kill. This module must never touch the program's logging,
signals or environment.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from .config import Config
from .engine import Engine, open_engine
from .errors import ConfigError, Reason
from .events import Outcome
from .messages import make_prompt
from .run import Run
from .services import open_services

STDERR_KEPT = 1000
"""Lines of stderr that `OpenRun.stderr` keeps."""
DENIED_KEPT = 1000
"""Denials that `OpenRun.denied_tools` keeps."""


class OpenRun:
    """One run: iterate over the CLI's lines; then `outcome` says how it ended.

    `stderr` has the first `STDERR_KEPT` lines that it said there, `denied_tools` the name of a tool for each use that
    was denied because nobody could be asked, of the first `DENIED_KEPT`.

    Resource handling: lives in the context that `open_run` gives; leaving it early ends the run. Error handling: how a
    CLI ends is never an exception; look at `outcome`, which is None where the context was cancelled or left by an
    exception before that.
    """

    def __init__(self, run: Run) -> None:
        self.stderr: list[str] = []
        self.denied_tools: list[str] = []
        self.outcome: Outcome | None = None
        self._run = run
        self._send, self._batches = trio.open_memory_channel[list[bytes]](0)
        self._lines: list[bytes] = []
        self._over = trio.Event()

    @property
    def id(self) -> str:
        """The run's id."""
        return self._run.id

    def stop(self) -> None:
        """End the run: SIGINT, which keeps the partial answer, then SIGTERM, then the kill. Returns at once."""
        self._run.stop(Reason.STOPPED)

    async def wait(self) -> Outcome:
        """Read what is left, drop it, and return how the run ended.

        Raises `trio.ClosedResourceError` where it was cancelled, by its context, before it had ended.
        """
        async for _ in self:
            pass
        if self.outcome is None:
            raise trio.ClosedResourceError("this run was cancelled: it has no outcome")
        return self.outcome

    def __aiter__(self) -> OpenRun:
        return self

    async def __anext__(self) -> str:
        if not self._lines:
            try:
                self._lines[:0] = (await self._batches.receive())[::-1]  # another task may have brought some meanwhile
            except trio.EndOfChannel:
                await self._over.wait()
                raise StopAsyncIteration from None
        self._run.give_time()
        return self._lines.pop().decode()

    def giver(self) -> None:
        """Return nothing: who iterates may take its time with each line."""

    async def lines(self, lines: list[bytes]) -> None:
        """Take lines from the run."""
        await self._send.send(lines)

    async def wait_taken(self) -> None:
        """Return at once: nothing is given."""
        await trio.lowlevel.checkpoint()

    async def stderr_lines(self, lines: list[str]) -> None:
        """Take stderr lines from the run."""
        await trio.lowlevel.checkpoint()
        self.stderr += lines[: STDERR_KEPT - len(self.stderr)]

    def denied(self, tool: str) -> None:
        """Hear of a denied tool."""
        if len(self.denied_tools) < DENIED_KEPT:
            self.denied_tools.append(tool)

    async def leave(self) -> None:
        """End the run now, unless it has ended; what it says still is dropped."""
        self._run.stop(Reason.STOPPED, now=True)
        await self.wait()

    async def execute(self) -> None:
        """Run the CLI, in a task of its own."""
        try:
            self.outcome = await self._run.execute(self)
        finally:
            self._send.close()
            self._over.set()


@asynccontextmanager
async def open_run(
    prompt: str, *, meta: str = "RUN", engine: Engine | None = None, config: Config | None = None, **options: Any
) -> AsyncIterator[OpenRun]:
    """Run the CLI on `prompt` and yield the run. `options` are those of the wire contract.

    Resource handling: leaving the context, or cancelling it, ends the run at once and leaves no process. Without
    `engine` one is opened, by `config`, for this run alone; open one with `open_engine` for many.

    Error handling: raises `BadMessage` for a prompt or option that breaks the contract or that the configuration does
    not allow, `ConfigError` where the machine lacks something or both `engine` and `config` are given, `Busy` where no
    slot comes free in time or a limit is reached, `SessionBusy` where another run has the session to be resumed, and
    `Draining` where the engine is closed or closing. The body's exception comes out as it was raised, a group as a
    group of the same.
    """
    if engine and config:
        raise ConfigError("config: an engine has its own; give one of the two")
    async with contextlib.AsyncExitStack() as stack:
        if engine is None:
            engine = await stack.enter_async_context(open_engine(config))
        checked = make_prompt(prompt, meta, options, engine.config.offered, engine.config.timeout)
        run = OpenRun(await stack.enter_async_context(engine.runs.open(checked)))
        services = await stack.enter_async_context(open_services())
        services.start_soon(run.execute)
        yield run
        await run.leave()
