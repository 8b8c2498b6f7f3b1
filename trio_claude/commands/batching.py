"""What `batch` does once its tasks are checked: open the files and the door, run, and say what it came to.

The first SIGINT or SIGTERM ends all runs; what is not finished is written as cancelled.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import click
import trio

from ..batch.doors import Door, open_embedded
from ..batch.files import LinesFolder, OutFile, Unwritable, check_free, rendered
from ..batch.manifest import about_engine, describe, now
from ..batch.runner import Runner, Settings
from ..batch.tally import Summary
from ..batch.tasks import Plan, Rules
from ..config import Config
from ..services import open_services
from .process import take_process


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
    force: bool
    as_json: bool


@attrs.define
class Caught:
    """The signal that ended a batch, 0 for none."""

    number: int = 0


async def run_batch(batch: Batch) -> int:
    """Run a batch; return the exit status."""
    take_process()
    beside = batch.manifest or batch.out.with_suffix(".manifest.json")
    check_free(batch.out, beside, keep=batch.source, force=batch.force)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with _open_door(batch) as (door, settings, about):
            with OutFile(batch.out, force=batch.force) as out, OutFile(beside, force=batch.force) as manifest:
                folder = LinesFolder(batch.lines, force=batch.force) if batch.lines else None
                runner = Runner(batch.plan, door, out, attrs.evolve(settings, lines=folder))
                return await _run(batch, runner, manifest, _described(batch, settings, about), signals)


@asynccontextmanager
async def _open_door(batch: Batch) -> AsyncIterator[tuple[Door, Settings, dict[str, Any]]]:
    """Open the way to the CLI; the settings that come back have no more runs at once than it takes."""
    if batch.config is None:
        from ..batch.remote import ServerDoor  # see there

        assert batch.url
        yield ServerDoor(batch.url, batch.key), batch.settings, {"url": batch.url}
        return
    concurrency = min(batch.settings.concurrency, batch.config.max_runs or batch.settings.concurrency)
    config = attrs.evolve(batch.config, max_runs=concurrency)
    async with open_embedded(config) as (door, engine):
        yield door, attrs.evolve(batch.settings, concurrency=concurrency), await about_engine(engine)


def _described(batch: Batch, settings: Settings, about: dict[str, Any]) -> dict[str, Any]:
    return describe(
        about, batch.source, batch.sha256, concurrency=settings.concurrency, retries=settings.retries,
        max_usd=settings.max_usd, as_completed=settings.as_completed, models=batch.rules.models,
        repeat=batch.rules.repeat, timeout=batch.config.timeout if batch.config else batch.rules.timeout,
        tasks=len(batch.plan.tasks), runs=len(batch.plan),
    )  # fmt: skip


async def _run(
    batch: Batch, runner: Runner, manifest: OutFile, about: dict[str, Any], signals: AsyncIterator[int]
) -> int:
    """Run, then finish the manifest and say what it came to."""
    began, caught, failure = time.monotonic(), Caught(), None
    try:
        manifest.write(rendered(about))
        async with open_services() as services:
            services.start_soon(_stop_on_signal, signals, runner, caught)
            if sys.stderr.isatty():
                await services.start(_show, runner)
            await runner.run()
    except Unwritable as error:
        failure = str(error)
    summary = attrs.evolve(runner.tally.summary(), wall_seconds=round(time.monotonic() - began, 3))
    try:
        ended = {"ended": now(), "signal": caught.number or None, "lowest_concurrency": runner.throttle.lowest}
        manifest.replace(rendered({**about, **ended, "summary": summary.as_dict()}))
    except Unwritable as error:
        failure = failure or str(error)
    _say(summary, failure, as_json=batch.as_json)
    if caught.number:
        return 128 + caught.number
    return 0 if summary.ok == summary.runs and not failure else 1


async def _show(runner: Runner, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    from .progress import show  # takes a while to import, and only a terminal needs it

    await show(runner, task_status=task_status)


async def _stop_on_signal(signals: AsyncIterator[int], runner: Runner, caught: Caught) -> None:
    async for number in signals:
        caught.number = caught.number or number
        runner.stop()


def _say(summary: Summary, failure: str | None, *, as_json: bool) -> None:
    if failure:
        click.echo(f"trio-claude: {failure}", err=True)
    if as_json:
        click.echo(json.dumps(summary.as_dict()))
    else:
        click.echo(str(summary), err=True)
