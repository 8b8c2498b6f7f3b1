"""What `batch` does once its tasks are checked: open the files and the door, run, and say what it came to.

The first SIGINT or SIGTERM ends all runs; what is not finished is written as cancelled.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import click
import trio

from ..batch.artifacts import Artifacts
from ..batch.doors import Door, most_at_once, open_embedded
from ..batch.earlier import Earlier, check_same, read_manifest, sort_results, take_up
from ..batch.files import (
    LinesFolder,
    ResultsFile,
    Unwritable,
    ahead_of,
    check_free,
    check_whole,
    hold_pipe,
    is_plain,
    rendered,
    sweep,
    write_whole,
)
from ..batch.locks import alone, lock_of
from ..batch.manifest import about_engine, describe, now, number_of, starts
from ..batch.runner import Runner, Settings
from ..batch.tally import Summary
from ..batch.tasks import Plan, Rules
from ..config import Config
from ..engine import STORE
from ..errors import ConfigError
from ..events import Event, JournalReady, Strained
from ..services import open_services
from .complaints import complain, next_step, tell
from .process import take_process
from .statuses import Status
from .words import clean

READER_POLL: Final = 0.05
"""Seconds between two looks whether somebody reads a pipe."""


@attrs.frozen(kw_only=True)
class Batch:
    """A batch whose input is good. Without `config` it runs at `url`."""

    plan: Plan
    source: str
    sha256: str
    url: str | None
    key: str | None = attrs.field(repr=False)
    config: Config | None
    rules: Rules
    settings: Settings
    out: Path
    manifest: Path | None
    lines: Path | None
    artifacts: Path | None
    force: bool
    resume: bool
    as_json: bool

    @property
    def beside(self) -> Path:
        """Where the manifest is; results in `x` and in `x.jsonl` name the same, which has one of them only."""
        return self.manifest or self.out.with_name(f"{self.out.name.removesuffix('.jsonl')}.manifest.json")


@attrs.define
class Caught:
    """The signal that ended a batch, 0 for none, and what it ends: the CLI that is asked what it is, then the runs."""

    number: int = 0
    asking: trio.CancelScope = attrs.Factory(trio.CancelScope)
    runner: Runner | None = None

    def take(self, number: int) -> None:
        """Hear a signal."""
        self.number = self.number or number
        self.asking.cancel()
        if self.runner:
            self.runner.stop()

    def follow(self, runner: Runner) -> None:
        """Let the signal end the runs, also one that came before them."""
        self.runner = runner
        if self.number:
            runner.stop()


@attrs.define
class Unkept:
    """Says, once, that the runs have no history, or not all of it."""

    told: bool = False

    def hear(self, event: Event) -> None:
        """Hear an event of the engine."""
        match event:
            case JournalReady(path="", detail=why):
                self._tell(f"these runs will have no history: {why}")
            case Strained(what=what, over=False) if what == STORE:
                self._tell("the history of these runs may not be whole: the journal can't be written just now")

    def _tell(self, text: str) -> None:
        if not self.told:
            self.told = True
            complain(text)


@attrs.frozen
class Ending:
    """What a batch came to: summary, what went wrong with a file, exit status, and what to do about a server."""

    summary: Summary
    failure: str | None
    status: int
    hint: str = ""


async def run_batch(batch: Batch) -> int:
    """Run a batch, and no other on the same results or manifest; return the exit status."""
    take_process()
    with alone(batch.out, batch.beside):
        ending = await _run_alone(batch)
    _say(ending, as_json=batch.as_json)
    return ending.status


async def _run_alone(batch: Batch) -> Ending:
    aside = (ahead_of(batch.out),) if is_plain(batch.out) else ()
    locks = lock_of(batch.out), lock_of(batch.beside)
    check_free(batch.out, *aside, batch.beside, locks=locks, keep=batch.source, force=batch.force or batch.resume)
    check_whole(batch.beside)
    for path in (batch.out, batch.beside):
        sweep(path)
    async with _held_open(batch), _open_caught() as caught:  # from here on a signal waits until a file is whole
        earlier = _take_up(batch) if batch.resume else None
        name = _name(earlier)
        async with _open_door(batch, name, caught.asking) as (door, settings, about):
            settings = _settings(batch, settings, earlier)
            with ResultsFile(batch.out, force=batch.force, resume=batch.resume) as out:
                runner = Runner(batch.plan, door, out, settings, earlier)
                manifest = _described(batch, settings, about, name, earlier)
                ending = await _run(batch, runner, manifest, caught)
                return attrs.evolve(ending, hint=_hint(batch, door, ending.summary.first_error))


def _hint(batch: Batch, door: Door, first_error: str | None) -> str:
    """Return what to do where the first failure is that a server was not reached, or let nobody in; maybe nothing."""
    if batch.url is None:
        return ""
    from ..batch.remote import ServerDoor  # as in `_open_door`

    assert isinstance(door, ServerDoor)
    told, status = door.refusal or ("", None)
    return next_step(status, with_key=bool(batch.key)) if told and told == first_error else ""


@asynccontextmanager
async def _held_open(batch: Batch) -> AsyncIterator[None]:
    """Hold a pipe that takes the results open while the context lasts; nobody reads it yet: wait, and say so."""
    with contextlib.ExitStack() as held:
        if batch.out.is_fifo() and not batch.resume:
            told = False
            while (pipe := hold_pipe(batch.out)) is None:
                if not told:
                    complain(f"{batch.out}: nobody reads this pipe; the batch begins when somebody does")
                told = True
                await trio.sleep(READER_POLL)  # nobody tells that a reader has come
            held.callback(os.close, pipe)
        yield


@asynccontextmanager
async def _open_caught() -> AsyncIterator[Caught]:
    """Catch signals while the context lasts."""
    caught = Caught()
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with open_services() as services:
            services.start_soon(_catch, signals, caught)
            yield caught


async def _catch(signals: AsyncIterator[int], caught: Caught) -> None:
    async for number in signals:
        caught.take(number)


def _name(earlier: Earlier | None) -> str:
    """Return the id of a batch: that of its first start, or a new one."""
    name = earlier.manifest.get("batch") if earlier else None
    return name if name and isinstance(name, str) else secrets.token_hex(16)


def _take_up(batch: Batch) -> Earlier | None:
    """Return what an earlier start has left, None where there was none. Raises `ConfigError` and `Unwritable`."""
    if not is_plain(batch.out):
        raise ConfigError(f"--resume: {batch.out} is no file that could be gone on with")
    manifest = read_manifest(batch.beside)
    if manifest is None:
        if any(path.exists() and path.stat().st_size for path in (batch.out, ahead_of(batch.out))):
            raise ConfigError(f"--resume: {batch.out} has no manifest at {batch.beside}; --force writes over it")
        return None
    check_same(batch.beside, manifest, batch.sha256, batch.plan)
    other = manifest.get("results")
    its = batch.beside.parent / other if isinstance(other, str) else batch.out
    if its.exists() and not (batch.out.exists() and its.samefile(batch.out)):
        raise ConfigError(f"--resume: {batch.beside} is the manifest of {other}; --manifest names another")
    return take_up(batch.out, batch.beside, manifest, batch.plan)


def _settings(batch: Batch, settings: Settings, earlier: Earlier | None) -> Settings:
    """Return how a batch is run; one that goes on writes results as they come, and puts them in order at the end."""
    force = batch.force or earlier is not None
    ours = (batch.out, batch.beside) if batch.source == "-" else (batch.out, batch.beside, Path(batch.source))
    artifacts = None
    if batch.artifacts and batch.config:
        artifacts = Artifacts(Path(batch.config.workspaces), batch.artifacts, force=force)
        left = (item for item in batch.plan if not (earlier and earlier.done[item.place]))
        names = (item.name for item in left if item.prompt.options.workspace is not None)
        artifacts.keep_off(names, *ours, *((batch.lines,) if batch.lines else ()))
    folder = LinesFolder(batch.lines, force=force) if batch.lines else None
    if folder:
        folder.keep_off((item.name for item in batch.plan), *ours)
    return attrs.evolve(
        settings, lines=folder, artifacts=artifacts, as_completed=settings.as_completed or earlier is not None
    )


@asynccontextmanager
async def _open_door(
    batch: Batch, name: str, asking: trio.CancelScope
) -> AsyncIterator[tuple[Door, Settings, dict[str, Any]]]:
    """Open the way to the CLI; the settings that come back have no more runs at once than it takes."""
    if batch.config is None:
        from ..batch.remote import ServerDoor  # see there

        assert batch.url
        yield ServerDoor(batch.url, batch.key), batch.settings, {"url": batch.url}
        return
    concurrency = min(batch.settings.concurrency, batch.config.max_runs or batch.settings.concurrency)
    if (most := most_at_once()) < concurrency:
        complain(f"--concurrency: {most} at once, not {concurrency}: descriptors are enough for no more (ulimit -Hn)")
        concurrency = most
    config = attrs.evolve(batch.config, max_runs=concurrency)
    async with open_embedded(config, name, [Unkept().hear]) as (door, engine):
        yield door, attrs.evolve(batch.settings, concurrency=concurrency), await about_engine(engine, asking)


def _described(
    batch: Batch, settings: Settings, about: dict[str, Any], name: str, earlier: Earlier | None
) -> dict[str, Any]:
    told = describe(
        about, batch.source, batch.sha256, name, concurrency=settings.concurrency, retries=settings.retries,
        max_usd=settings.max_usd, as_completed=settings.as_completed, models=batch.rules.models,
        repeat=batch.rules.repeat, timeout=batch.config.timeout if batch.config else batch.rules.timeout,
        tasks=len(batch.plan.tasks), runs=len(batch.plan),
    )  # fmt: skip
    told["results"] = os.path.relpath(batch.out, batch.beside.parent)
    told["starts"] = [*(starts(earlier.manifest) if earlier else ()), *starts(told)]
    if earlier is None:
        return told
    before = earlier.manifest
    return {
        **told,
        "started": before.get("started"),
        "resumed": int(number_of(before, "resumed")) + 1,
        "spent_before": number_of(before, "spent_before"),
    }


async def _run(batch: Batch, runner: Runner, about: dict[str, Any], caught: Caught) -> Ending:
    """Run, then finish the files."""
    began, failure = time.monotonic(), None
    caught.follow(runner)
    try:
        write_whole(batch.beside, [rendered(about)])
        async with open_services() as services:
            if sys.stderr.isatty():
                await services.start(_show, runner)
            await runner.run()
        if batch.resume and not batch.settings.as_completed:
            sort_results(batch.out, batch.plan)
    except Unwritable as error:
        failure = str(error)
    summary = attrs.evolve(runner.tally.summary(), wall_seconds=round(time.monotonic() - began, 3))
    try:
        ended = {"ended": now(), "signal": caught.number or None, "lowest_concurrency": runner.throttle.lowest}
        write_whole(batch.beside, [rendered({**about, **ended, "summary": summary.as_dict()})])
    except Unwritable as error:
        failure = failure or str(error)
    good = summary.ok == summary.runs and not failure
    return Ending(summary, failure, 128 + caught.number if caught.number else Status.OK if good else Status.FAILED)


async def _show(runner: Runner, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    from .progress import show  # takes a while to import, and only a terminal needs it

    await show(runner, task_status=task_status)


def _say(ending: Ending, *, as_json: bool) -> None:
    if ending.failure:
        complain(ending.failure)
    if as_json:
        click.echo(json.dumps(ending.summary.as_dict()))
        return
    if ending.summary.first_error:
        hint = f"; {ending.hint}" if ending.hint else ""
        complain(f"the first failure: {clean(ending.summary.first_error)}{hint}")
    tell(str(ending.summary))
