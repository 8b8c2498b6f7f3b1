"""The ways to run a prompt: what they have in common, and the embedded one, on an engine of this process.

A door runs one attempt and says how it ended. It must never try again, and never judge what the CLI said.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Final, Protocol, TypeAlias

from ..config import Config
from ..embed import open_run
from ..engine import Engine, open_engine
from ..errors import Busy, ClientError, Draining, Reason
from ..events import Observer
from ..messages import Prompt
from .results import BUSY, REFUSED, Finish, from_outcome
from .tasks import options_of

DESCRIPTORS_A_RUN: Final = 8
"""Descriptors that a run holds: pipes, lifeline and guardian, both ends while it starts; and the file of its lines."""
DESCRIPTORS_KEPT: Final = 64
"""Descriptors kept back for everything else."""
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
            return Finish(reason=BUSY, error=str(error), retry_after=error.retry_after)
        except Draining as error:
            return Finish(reason=Reason.DRAINED.value, error=str(error))
        except ClientError as error:
            return Finish(reason=REFUSED, error=str(error))
        assert run.outcome
        return from_outcome(run.outcome)

    async def stop(self) -> None:
        """End all runs now, and wait until nothing of them is left."""
        await self._engine.runs.drain(0)


def most_at_once() -> int:
    """Return for how many runs at once this process has descriptors, at least one."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return sys.maxsize
    return max(1, (limit - DESCRIPTORS_KEPT) // DESCRIPTORS_A_RUN)


@asynccontextmanager
async def open_embedded(
    config: Config, batch: str, observers: Iterable[Observer] = ()
) -> AsyncIterator[tuple[EmbeddedDoor, Engine]]:
    """Open an engine and the door to it; its runs are the batch's in the journal. Raises `ConfigError`."""
    async with open_engine(config, observers, batch=batch) as engine:
        yield EmbeddedDoor(engine), engine
