"""A bar for `batch` on a terminal: done, running, failed, tokens, dollars, and the time that is left.

It draws in its own task, never in a thread, and never changes what it shows.
"""

from __future__ import annotations

import contextlib
from typing import Any

import trio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..batch.runner import Runner

PERIOD = 0.2
"""Seconds between two drawings."""
WORDS = (
    "{task.fields[running]} running · {task.fields[failed]} failed · {task.fields[tokens]} tokens · "
    "${task.fields[dollars]:.4f}"
)


async def show(runner: Runner, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Draw until cancelled; the last drawing stays. A terminal that goes away is drawn on no more."""
    task_status.started()
    with contextlib.suppress(OSError):
        await _draw(runner)


async def _draw(runner: Runner) -> None:
    columns = BarColumn(), MofNCompleteColumn(), TextColumn(WORDS), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as progress:
        task = progress.add_task("batch", total=runner.tally.runs, **_fields(runner))
        try:
            while True:
                progress.update(task, completed=runner.tally.done, **_fields(runner), refresh=True)
                await trio.sleep(PERIOD)
        finally:
            progress.update(task, completed=runner.tally.done, **_fields(runner), refresh=True)


def _fields(runner: Runner) -> dict[str, Any]:
    tally = runner.tally
    fields = {"running": runner.throttle.running, "failed": tally.failed, "tokens": tally.tokens}
    return {**fields, "dollars": tally.cost_usd}
