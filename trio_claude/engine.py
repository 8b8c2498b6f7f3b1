"""The engine: everything that a run needs, opened in its order, with or without a server around it.

Order of opening: workplace, containment, nodes, journal; of closing the reverse. This module must never listen on
anything.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import trio

from .config import LIMITS, Config
from .containment import Containment, Job, Means, open_containment
from .errors import ConfigError, SpawnFailed
from .events import JournalReady, Observer, PoolReady, Strained, Weak, fan_out
from .journal import Journal, Retention, open_journal
from .quarters import journal_file
from .runs import Runs
from .services import keep_going, open_services
from .telling import Tracer, TracerProvider
from .threads import do_apart
from .workplace import Workplace, find_user

if TYPE_CHECKING:
    from .nodes import Nodes

LEAVE_TIMEOUT: Final = 5.0
"""Seconds in which runs that are left behind are to be over when an engine closes."""
STORE: Final = "what the journal is written to"
"""What `Strained` tells of a journal that can't be written."""
TIDY: Final = 3600.0
"""Seconds between two looks for transcripts that are not to be kept any more."""


@attrs.frozen
class Engine:
    """What runs CLIs. Resource handling: lives in the context that `open_engine` gives."""

    config: Config
    workplace: Workplace
    containment: Containment
    runs: Runs
    observer: Observer
    nodes: Nodes | None = None
    """The other servers that share a Redis with this one, if it has one."""


def means(config: Config, dead: tuple[str, ...] = ()) -> Means:
    """Return what the containment is told of a configuration, and of dead servers whose groups it is to remove.

    Raises `ConfigError` where there is no such user.
    """
    return Means(
        read=config.sandbox_read,
        network=config.sandbox_network,
        cgroup=config.cgroup,
        memory_max=config.memory_max,
        pids_max=config.pids_max,
        dead=dead,
        limits=tuple(name for name in LIMITS if getattr(config, name)),
        rlimits=config.limits,
        user=find_user(config.user),
    )


@asynccontextmanager
async def open_engine(
    config: Config | None = None,
    observers: Iterable[Observer] = (),
    *,
    environ: Mapping[str, str] | None = None,
    batch: str = "",
    tracer_provider: TracerProvider | None = None,
) -> AsyncIterator[Engine]:
    """Open an engine; leaving the context ends what still runs, with a receipt each, and takes no run any more.

    CLIs inherit from `environ`, this process's own by default. `batch` is an id that its runs share in the journal.
    `tracer_provider` makes the spans of its runs, in place of what the setting `traces` says; it stays the caller's to
    shut down.

    Raises `ConfigError` where the configuration can't be used on this machine.
    """
    config, observer = config or Config(), fan_out(observers)
    if config.profile == "unattended" and config.containment != "sandbox" and not config.allow_unattended:
        raise ConfigError(
            "profile: unattended lets the CLI do everything unasked; say --allow-unattended if you mean it"
        )
    async with (
        _opened_tracer(config, observer, tracer_provider) as tracer,
        Workplace.open(config, os.environ if environ is None else environ) as workplace,
        open_containment(config.containment, observer, means(config, workplace.home.dead)) as containment,
        _opened_nodes(config, workplace, observer) as nodes,
        _opened_journal(config, workplace, os.environ if environ is None else environ, observer, nodes) as journal,
        open_services() as services,
    ):
        await _check_user(workplace, containment, observer)
        runs = Runs(workplace, containment, observer, journal, batch, tracer, nodes)
        services.start_soon(keep_going, "pump", runs.pump.serve, observer)
        await runs.accounts.recall(journal)
        if nodes:
            _hear_others(nodes, runs)
        if workplace.homes:
            services.start_soon(keep_going, "transcripts", functools.partial(_tidy, workplace, runs), observer)
        if config.pool_size:
            why_not = _reachable(config, containment)
            observer(PoolReady(0 if why_not else config.pool_size, why_not))
            if not why_not:
                services.start_soon(keep_going, "pool", runs.pool.serve, observer)
        try:
            yield Engine(config, workplace, containment, runs, observer, nodes)
        finally:
            with trio.move_on_after(LEAVE_TIMEOUT, shield=True):
                await runs.drain(0)


async def _check_user(workplace: Workplace, containment: Containment, observer: Observer) -> None:
    """Raise `ConfigError` where the user that the CLI becomes can't enter a folder in which runs live.

    Where the CLI could keep nothing, `observer` is told.
    """
    if not workplace.user:
        return
    name, state = workplace.config.user, "" if workplace.homes else workplace.state[0]
    places = {"TMPDIR": workplace.folders}
    if workplace.homes and not workplace.homes.per_run:
        places["state"] = workplace.homes.root
    elif not workplace.homes and "{meta}" not in workplace.cwd:
        places["cwd"] = workplace.cwd
    if state and containment.mode == "sandbox" and await trio.Path(state).is_dir():
        places["CLAUDE_CONFIG_DIR"] = state
    for field, folder in places.items():
        if (why := await _try_user(workplace, containment, folder, ":")) is not None:
            raise ConfigError(f"{field}: user {name} can't run in {folder}{why}")
    if state and await _try_user(workplace, containment, state, "[ -w . ]") is not None:
        observer(Weak(f"CLAUDE_CONFIG_DIR: user {name} can't write in {state}: no session can be resumed"))


async def _try_user(workplace: Workplace, containment: Containment, folder: str, script: str) -> str | None:
    """Return why a script of the CLI's user fails in a folder, as far as it is known; None where it does not."""
    job = Job(argv=("/bin/sh", "-c", script), env={}, cwd=folder, user=workplace.user, writable=(folder,))
    try:
        async with containment.start(job) as process:
            return "" if await process.wait_exit() else None
    except SpawnFailed as error:
        return f": {error}"


@asynccontextmanager
async def _opened_nodes(config: Config, workplace: Workplace, observer: Observer) -> AsyncIterator[Nodes | None]:
    """Join the other servers, if there is a Redis that they share. Raises `ConfigError`."""
    if not config.redis:
        yield None
        return
    try:
        from .nodes import open_nodes  # its library takes time and memory, and few share
    except ImportError:
        raise ConfigError("redis: needs pip install 'trio-claude[redis]'") from None
    async with open_nodes(config, workplace.home.server, observer) as nodes:
        yield nodes


def _hear_others(nodes: Nodes, runs: Runs) -> None:
    """Have other servers end a run of this one; whoever comes to it through them is let in only where a server is."""
    nodes.control.on("stop", lambda _node, said: {"found": runs.stop(said["run"], said["whose"])})
    nodes.control.on("open", lambda _node, _said: {"found": False})


async def _tidy(workplace: Workplace, runs: Runs) -> None:
    """Remove transcripts that are not to be kept, at the start and then now and again."""
    while True:
        await do_apart(functools.partial(workplace.tidy_transcripts, runs.held))
        await trio.sleep(TIDY)


@asynccontextmanager
async def _opened_journal(
    config: Config, workplace: Workplace, environ: Mapping[str, str], observer: Observer, nodes: Nodes | None
) -> AsyncIterator[Journal | None]:
    """Open the journal, if there is to be one and, with `auto`, if it can be had. Raises `ConfigError`."""
    if nodes:
        if nodes.journal:
            observer(JournalReady(f"redis {nodes.redis.address}"))
        yield nodes.journal
        return

    def tell(fails: bool) -> None:
        observer(Strained(STORE, over=not fails))

    async with contextlib.AsyncExitStack() as stack:
        journal = None
        if config.journal != "none":
            retention = Retention(days=config.journal_days, runs=config.journal_runs, size=config.journal_bytes)
            try:
                path = _journal_path(config, workplace, environ)
                journal = await stack.enter_async_context(
                    open_journal(
                        path,
                        workplace.home.server,
                        retention,
                        config.journal_run_bytes,
                        content=config.journal_content,
                        tell=tell,
                    )
                )
            except ConfigError as error:
                if config.journal != "auto":
                    raise
                observer(JournalReady("", str(error)))
            else:
                observer(JournalReady(str(path)))
        yield journal


@asynccontextmanager
async def _opened_tracer(
    config: Config, observer: Observer, provider: TracerProvider | None
) -> AsyncIterator[Tracer | None]:
    """Open what traces runs, if they are to be traced. Raises `ConfigError`."""
    if provider is None and not config.traces:
        yield None
        return
    try:
        from . import tracing  # it takes time and memory, and few trace

        if provider is None:
            from .tracing.otlp import open_otlp
    except ImportError:
        raise ConfigError("traces: needs pip install 'trio-claude[otel]'") from None
    except ValueError as error:  # some variables are read by the import
        raise ConfigError(f"traces: an OTEL_… variable can't be used: {error}") from error
    if provider is not None:
        yield tracing.Tracer(provider)
        return
    async with open_otlp(observer) as own:
        yield tracing.Tracer(own)


def _journal_path(config: Config, workplace: Workplace, environ: Mapping[str, str]) -> Path:
    """Return the journal's file. Raises `ConfigError` for a name that this locale can't say."""
    if config.journal == "memory":
        return workplace.home.folder / "journal.db"
    path = journal_file(config.journal, config.state, environ)
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise ConfigError(f"journal: {str(path)!a} is no name in {error.encoding}; set LC_ALL=C.UTF-8") from None
    return path


def _reachable(config: Config, containment: Containment) -> str:
    """Return why a CLI must not wait here for its run, if it must not: another run could talk to it."""
    if config.isolated == "identity":
        return "no CLI is started ahead of need: each identity has a home of its own"
    if config.dollars_per_day or config.total_dollars_per_day:
        return "no CLI is started ahead of need: each run is started with no more to spend than is left"
    if "{meta}" in config.cwd:
        return "no CLI is started ahead of need: each run has a working directory of its own"
    if containment.mode in ("namespace", "sandbox") or config.profile == "lean":
        return ""
    return f"no CLI is started ahead of need: in mode {containment.mode} other runs could talk to it"
