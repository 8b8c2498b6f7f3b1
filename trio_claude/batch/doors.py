"""The two ways to run a prompt: embedded, on an engine of this process, or at a server.

A door runs one attempt and says how it ended. It must never try again, and never judge what the CLI said.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol, TypeAlias

from ..client import Answer, ConnectFailed, Ended, ask
from ..config import Config
from ..embed import open_run
from ..engine import Engine, open_engine
from ..errors import Busy, ClientError, Draining, Reason
from ..messages import Prompt
from .results import BUSY, REFUSED, UNREACHABLE, Finish, from_close, from_outcome
from .tasks import options_of

Hear: TypeAlias = Callable[[str], None]
"""Hears each line of the CLI. Must not wait."""


class Door(Protocol):
    """Runs prompts."""

    async def run(self, prompt: Prompt, hear: Hear) -> Finish:
        """Run one prompt to its end. Cancelling it ends the run, with everything that it has started."""

    async def stop(self) -> None:
        """End all runs now; those that can still tell how they ended do so."""


class EmbeddedDoor:
    """Runs prompts on an engine of this process."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def run(self, prompt: Prompt, hear: Hear) -> Finish:
        """Run one prompt, contained."""
        options = options_of(prompt.options)
        try:
            async with open_run(prompt.prompt, meta=prompt.meta, engine=self._engine, **options) as run:
                async for line in run:
                    hear(line)
        except Busy as error:
            return Finish(reason=BUSY, error=str(error))
        except Draining as error:
            return Finish(reason=Reason.DRAINED.value, error=str(error))
        except ClientError as error:
            return Finish(reason=REFUSED, error=str(error))
        assert run.outcome
        return from_outcome(run.outcome)

    async def stop(self) -> None:
        """End all runs now, and wait until nothing of them is left."""
        await self._engine.runs.drain(0)


class ServerDoor:
    """Runs prompts at a server."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def run(self, prompt: Prompt, hear: Hear) -> Finish:
        """Ask the server; leaving early ends the run there."""
        options = options_of(prompt.options)
        try:
            async with ask(prompt.prompt, meta=prompt.meta, url=self._url, **options) as answer:
                async for line in answer:
                    hear(line)
        except ConnectFailed as error:
            return Finish(reason=UNREACHABLE, error=str(error))
        ended = answer.ended or Ended(1006, "the connection broke")
        return from_close(ended.code, ended.reason, ended.error, _retry_after(answer))

    async def stop(self) -> None:
        """Nothing can be said to a server but by leaving."""


def _retry_after(answer: Answer) -> float | None:
    """Return the seconds that a full server asked for."""
    asked = answer.notes[-1].get("retry_after") if answer.notes else None
    return float(asked) if isinstance(asked, int | float) and not isinstance(asked, bool) else None


@asynccontextmanager
async def open_embedded(config: Config) -> AsyncIterator[tuple[EmbeddedDoor, Engine]]:
    """Open an engine and the door to it. Raises `ConfigError`."""
    async with open_engine(config) as engine:
        yield EmbeddedDoor(engine), engine
