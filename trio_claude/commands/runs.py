"""`trio-claude runs`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from ..errors import ConfigError
from .moments import take_moment
from .run_sources import (
    LIVE,
    RunSource,
    Wanted,
    ended_well,
    find_run,
    read_entries,
    read_pieces,
    with_source,
)
from .run_views import as_json, open_out, print_entry, print_run, print_table

MOST = 1_000_000
"""Runs that one list may hold."""
INTERRUPTED = 130
EXAMPLES = r"""Examples:
  trio-claude runs list --since 2h
  trio-claude runs show 3f2a
  trio-claude runs tail 3f2a -f --url http://127.0.0.1:3000
  trio-claude runs export 3f2a --format markdown --out run.md"""
_json = click.option("--json", "json_", is_flag=True, help="Print JSON.")


@click.group("runs", epilog=f"\b\n{EXAMPLES}")
def command() -> None:
    """List, show, follow, export and delete what was run: out of a journal's file, or at a server with --url.

    ID is a run's, or the beginning of one, at least four digits. Exit status: 2 for what is unknown or refused, 69
    where a server can't be reached.
    """


@command.command("list")
@click.option("--meta", help="Only runs with this name.")
@click.option("--batch", help="Only runs of this batch, by the id in its manifest.")
@click.option("--state", type=click.Choice(["live", "ended"]), help="Only runs in this state.")
@click.option("--since", metavar="WHEN", callback=take_moment, help="Only runs that started then or later.")
@click.option("--until", metavar="WHEN", callback=take_moment, help="Only runs that started before.")
@click.option("--limit", type=click.IntRange(1, MOST), default=20, show_default=True, help="Runs, at most.")
@_json
@with_source
def list_(source: RunSource, json_: bool, **wanted: Any) -> None:
    """List runs, the newest first."""
    found = source.find(Wanted(**wanted))
    if json_:
        click.echo(as_json({"runs": found.runs, "next": found.next}))
        return
    print_table(found.runs)
    if found.next is not None:
        click.echo("there are more: --limit", err=True)


@command.command("show")
@click.argument("run_id", metavar="ID")
@_json
@with_source
def show(source: RunSource, run_id: str, json_: bool) -> None:
    """Show one run with its prompt, options and receipt."""
    run = find_run(source, run_id)
    if json_:
        click.echo(as_json(run))
    else:
        print_run(run)


@command.command("tail")
@click.argument("run_id", metavar="ID")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run has ended; exit status 1 for a bad end.")
@with_source
def tail(source: RunSource, run_id: str, follow: bool) -> None:
    """Print a run's lines as the CLI said them; those of its stderr go to stderr."""
    try:
        run = find_run(source, run_id)
        for entry in read_entries(source, run["id"], follow=follow):
            print_entry(entry)
        sys.exit(0 if not follow or ended_well(source.get(run["id"]) or run) else 1)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


@command.command("stop")
@click.argument("run_id", metavar="ID")
@with_source
def stop(source: RunSource, run_id: str) -> None:
    """End a live run of a server now; --url says which server."""
    run = find_run(source, run_id)
    if run.get("state") != LIVE:
        raise ConfigError(f"the run {run['id']} has ended already")
    source.stop(run["id"])


@command.command("export")
@click.argument("run_id", metavar="ID")
@click.option(
    "--format", "format_", type=click.Choice(["ndjson", "markdown"]), default="ndjson", show_default=True,
    help="All there is, for programs, or a transcript to read.",
)  # fmt: skip
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="A new file. [default: stdout]")
@with_source
def export(source: RunSource, run_id: str, format_: str, out: Path | None) -> None:
    """Write a run's facts and all of its history."""
    run = find_run(source, run_id)
    with open_out(out) as write:
        if format_ == "ndjson":
            write(f"{as_json(run)}\n")
            for data in read_pieces(source, run["id"]):
                write(data.decode("utf-8", "replace"))
            return
        from .transcripts import transcript  # what reads the CLI's lines takes a while to import

        for text in transcript(run, read_entries(source, run["id"]), time.time()):
            write(text)


@command.command("delete")
@click.argument("run_ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "all_", is_flag=True, help="All that have ended.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_source
def delete(source: RunSource, run_ids: tuple[str, ...], all_: bool, yes: bool) -> None:
    """Delete runs that have ended."""
    if bool(run_ids) == all_:
        raise click.UsageError("name runs, or say --all")
    chosen = [None] if all_ else _ended(source, run_ids)
    what = "all runs that have ended" if all_ else f"{len(chosen)} of the runs"
    if not yes:
        click.confirm(f"Delete {what} {source.name}?", abort=True, err=True)
    deleted = sum(map(source.delete, chosen))
    click.echo(f"deleted: {deleted}", err=True)
    if run_ids and deleted < len(chosen):
        raise ConfigError(f"{len(chosen) - deleted} of the runs that were named are not deleted")


def _ended(source: RunSource, given: tuple[str, ...]) -> list[str | None]:
    """Return the whole ids of runs, each once, before any is deleted. Raises `ConfigError` for a live one."""
    runs = {run["id"]: run for run in (find_run(source, one) for one in given)}
    for name, run in runs.items():
        if run.get("state") == LIVE:
            raise ConfigError(f"the run {name} is live: `trio-claude runs stop` ends it")
    return list(runs)
