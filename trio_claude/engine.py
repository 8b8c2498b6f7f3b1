"""The engine: everything that a run needs, opened in its order, with or without a server around it.

Order of opening: workplace, containment; of closing the reverse. This module must never listen on anything.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager

import attrs

from .config import Config
from .containment import Containment, Means, open_containment
from .errors import ConfigError
from .events import Observer, fan_out
from .runs import Runs
from .workplace import Workplace


@attrs.frozen
class Engine:
    """What runs CLIs. Resource handling: lives in the context that `open_engine` gives."""

    config: Config
    workplace: Workplace
    containment: Containment
    runs: Runs
    observer: Observer


def means(config: Config, dead: tuple[str, ...] = ()) -> Means:
    """Return what the containment is told of a configuration, and of dead servers whose groups it is to remove."""
    return Means(
        read=config.sandbox_read,
        network=config.sandbox_network,
        cgroup=config.cgroup,
        memory_max=config.memory_max,
        pids_max=config.pids_max,
        dead=dead,
    )


@asynccontextmanager
async def open_engine(
    config: Config | None = None, observers: Iterable[Observer] = (), *, environ: Mapping[str, str] | None = None
) -> AsyncIterator[Engine]:
    """Open an engine; leaving the context ends what still runs.

    CLIs inherit from `environ`, this process's own by default. Raises `ConfigError` where the configuration can't be
    used on this machine.
    """
    config, observer = config or Config(), fan_out(observers)
    if config.profile == "unattended" and config.containment != "sandbox" and not config.allow_unattended:
        raise ConfigError(
            "profile: unattended lets the CLI do everything unasked; say --allow-unattended if you mean it"
        )
    async with (
        Workplace.open(config, os.environ if environ is None else environ) as workplace,
        open_containment(config.containment, observer, means(config, workplace.home.dead)) as containment,
    ):
        yield Engine(config, workplace, containment, Runs(workplace, containment, observer), observer)
