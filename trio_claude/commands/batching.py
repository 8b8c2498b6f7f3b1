"""What `batch` does once its tasks are checked: open the files and the door, run, and say what it came to.

The first SIGINT or SIGTERM ends all runs; what is not finished is written as cancelled.
"""

from __future__ import annotations

import json
import secrets
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

from ..batch.artifacts import Artifacts
from ..batch.doors import Door, open_embedded
from ..batch.earlier import Earlier, check_same, read_manifest, sort_results, take_up
from ..batch.files import LinesFolder, ResultsFile, Unwritable, check_free, rendered, write_whole
from ..batch.manifest import about_engine, describe, now
from ..batch.runner import Runner, Settings
from ..batch.tally import Summary
from ..batch.tasks import Plan, Rules
from ..config import Config
from ..errors import ConfigError
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
    artifacts: Path | None
    force: bool
    resume: bool
    as_json: bool

    @property
    def beside(self) -> Path:
        """Where the manifest is."""
        return self.manifest or self.out.with_suffix(".manifest.json")


@attrs.define
class Caught:
    """The signal that ended a batch, 0 for none."""

    number: int = 0


async def run_batch(batch: Batch) -> int:
    """Run a batch; return the exit status."""
    take_process()
    check_free(batch.out, batch.beside, keep=batch.source, force=batch.force or batch.resume)
    earlier = _take_up(batch) if batch.resume else None
    name = str(earlier.manifest["batch"]) if earlier else secrets.token_hex(16)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with _open_door(batch, name) as (door, settings, about):
            with ResultsFile(batch.out, force=batch.force, resume=batch.resume) as out:
                runner = Runner(batch.plan, door, out, _settings(batch, settings, earlier), earlier)
                manifest = _described(batch, settings, about, name, earlier)
                return await _run(batch, runner, out, manifest, signals)


def _take_up(batch: Batch) -> Earlier | None:
    """Return what an earlier start has left, None where there was none. Raises `ConfigError` and `Unwritable`."""
    manifest = read_manifest(batch.beside)
    if manifest is None:
        if batch.out.exists():
            raise ConfigError(f"--resume: {batch.out} has no manifest at {batch.beside}; --force writes over it")
        return None
    check_same(batch.beside, manifest, batch.sha256, batch.plan)
    return take_up(batch.out, manifest, batch.plan)


def _settings(batch: Batch, settings: Settings, earlier: Earlier | None) -> Settings:
    """Return how a batch is run; one that goes on writes results as they come, and puts them in order at the end."""
    folder = LinesFolder(batch.lines, force=batch.force or batch.resume) if batch.lines else None
    artifacts = None
    if batch.artifacts and batch.config:
        artifacts = Artifacts(Path(batch.config.workspaces), batch.artifacts)
    return attrs.evolve(
        settings, lines=folder, artifacts=artifacts, as_completed=settings.as_completed or earlier is not None
    )


@asynccontextmanager
async def _open_door(batch: Batch, name: str) -> AsyncIterator[tuple[Door, Settings, dict[str, Any]]]:
    """Open the way to the CLI; the settings that come back have no more runs at once than it takes."""
    if batch.config is None:
        from ..batch.remote import ServerDoor  # see there

        assert batch.url
        yield ServerDoor(batch.url, batch.key), batch.settings, {"url": batch.url}
        return
    concurrency = min(batch.settings.concurrency, batch.config.max_runs or batch.settings.concurrency)
    config = attrs.evolve(batch.config, max_runs=concurrency)
    async with open_embedded(config, name) as (door, engine):
        yield door, attrs.evolve(batch.settings, concurrency=concurrency), await about_engine(engine)


def _described(
    batch: Batch, settings: Settings, about: dict[str, Any], name: str, earlier: Earlier | None
) -> dict[str, Any]:
    told = describe(
        about, batch.source, batch.sha256, name, concurrency=settings.concurrency, retries=settings.retries,
        max_usd=settings.max_usd, as_completed=settings.as_completed, models=batch.rules.models,
        repeat=batch.rules.repeat, timeout=batch.config.timeout if batch.config else batch.rules.timeout,
        tasks=len(batch.plan.tasks), runs=len(batch.plan),
    )  # fmt: skip
    if earlier is None:
        return told
    return {**told, "started": earlier.manifest.get("started"), "resumed": earlier.manifest.get("resumed", 0) + 1}


async def _run(
    batch: Batch, runner: Runner, out: ResultsFile, about: dict[str, Any], signals: AsyncIterator[int]
) -> int:
    """Run, then finish the files and say what it came to."""
    began, caught, failure = time.monotonic(), Caught(), None
    try:
        write_whole(batch.beside, [rendered(about)])
        async with open_services() as services:
            services.start_soon(_stop_on_signal, signals, runner, caught)
            if sys.stderr.isatty():
                await services.start(_show, runner)
            await runner.run()
        out.drop()
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
