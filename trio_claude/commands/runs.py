"""`trio-claude runs`."""

from __future__ import annotations

import functools
import sys
import time
from pathlib import Path
from typing import Any

import click

from ..errors import ConfigError, TrioClaudeError
from .completing import run_ids
from .examples import examples
from .failures import COLUMNS, SEARCHED, failures
from .moments import shown, take_moment
from .run_sources import (
    LIVE,
    RunSource,
    Wanted,
    ended_well,
    find_run,
    patiently,
    read_entries,
    read_pieces,
    with_source,
)
from .run_views import ID_DIGITS, as_json, open_out, print_entry, print_rows, print_run, print_table
from .statuses import Status

MOST = 1_000_000
"""Runs that one list may hold."""
_json = click.option("--json", "json_", is_flag=True, help="Print JSON.")


class _Runs(click.Group):
    """A group in which `--failed` is another word for the command `failed`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, ["failed", *args[1:]] if args[:1] == ["--failed"] else args)


@click.group(
    "runs",
    cls=_Runs,
    epilog=examples(
        "trio-claude runs list --since 2h",
        "trio-claude runs show 3f2a",
        "trio-claude runs failed --since 1d",
        "trio-claude runs tail 3f2a -f --url http://127.0.0.1:3000",
        "trio-claude runs export 3f2a --format markdown --out run.md",
    ),
)
def command() -> None:
    """List, show, follow, export and delete what was run: out of a journal's file, or at a server with --url.

    ID is a run's, or the beginning of one, at least four digits. Exit status: 2 for what is unknown or refused, 69
    where a server can't be reached.
    """


@command.command(
    "list",
    epilog=examples(
        "trio-claude runs list --since 2h --state ended",
        "trio-claude runs list --json --limit 100 --url http://127.0.0.1:3000",
    ),
)
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


@command.command(
    "failed",
    epilog=examples(
        "trio-claude runs failed --since 1d",
        "trio-claude runs failed --json --url http://127.0.0.1:3000 --key-file key",
    ),
)
@click.option("--meta", help="Only runs with this name.")
@click.option("--batch", help="Only runs of this batch, by the id in its manifest.")
@click.option("--since", metavar="WHEN", callback=take_moment, help="Only runs that started then or later.")
@click.option("--until", metavar="WHEN", callback=take_moment, help="Only runs that started before.")
@click.option(
    "--limit",
    type=click.IntRange(1, MOST),
    default=SEARCHED,
    show_default=True,
    help="Runs to look at, the newest first.",
)
@_json
@with_source
def failed(source: RunSource, json_: bool, **wanted: Any) -> None:
    """Group the runs that failed by reason and message, the most frequent first; `runs --failed` says the same.

    A message has N for whatever has a digit in it. The run is the newest of its group.
    """
    found = source.find(Wanted(state="ended", **wanted))
    groups = failures(found.runs)
    more = found.next is not None
    if json_:
        click.echo(as_json({"failed": groups, "searched": len(found.runs), "more": more}))
        return
    rows = [{**group, "last": shown(group["last"]), "run": group["run"][:ID_DIGITS]} for group in groups]
    print_rows(COLUMNS, ("reason", "message"), ("count",), ([row[name] for name in COLUMNS] for row in rows))
    if more:
        click.echo(f"looked at the newest {len(found.runs)} that ended; there are more: --limit", err=True)


@command.command("show", epilog=examples("trio-claude runs show 3f2a", "trio-claude runs show 3f2a --json"))
@click.argument("run_id", metavar="ID", shell_complete=run_ids)
@_json
@with_source
def show(source: RunSource, run_id: str, json_: bool) -> None:
    """Show one run with its prompt, options and receipt."""
    run = find_run(source, run_id)
    if json_:
        click.echo(as_json(run))
    else:
        print_run(run)


@command.command(
    "tail",
    epilog=examples("trio-claude runs tail 3f2a", "trio-claude runs tail 3f2a --follow --url http://127.0.0.1:3000"),
)
@click.argument("run_id", metavar="ID", shell_complete=run_ids)
@click.option("-f", "--follow", is_flag=True, help="Go on until the run has ended.")
@with_source
def tail(source: RunSource, run_id: str, follow: bool) -> None:
    """Print a run's lines as the CLI said them; those of its stderr go to stderr.

    With --follow the exit status is 0 where the CLI came to its good end or its client stopped it, else 1: also where
    somebody ended it by request. A server that can't answer for the moment is asked again, for a minute.
    """
    try:
        run = find_run(source, run_id)
        for entry in read_entries(source, run["id"], follow=follow):
            print_entry(entry)
        if follow:
            ended = patiently(functools.partial(source.get, run["id"])) or run
            sys.exit(Status.OK if ended_well(ended) else Status.FAILED)
    except KeyboardInterrupt:
        sys.exit(Status.INTERRUPTED)


@command.command("stop", epilog=examples("trio-claude runs stop 3f2a --url http://127.0.0.1:3000"))
@click.argument("run_id", metavar="ID", shell_complete=run_ids)
@with_source
def stop(source: RunSource, run_id: str) -> None:
    """End a live run of a server now; --url says which server."""
    run = find_run(source, run_id)
    if run.get("state") != LIVE:
        raise ConfigError(f"the run {run['id']} has ended already; `trio-claude runs show` tells how")
    source.stop(run["id"])


@command.command(
    "export",
    epilog=examples(
        "trio-claude runs export 3f2a --format markdown --out run.md",
        "trio-claude runs export 3f2a --url http://127.0.0.1:3000 --key-file key",
    ),
)
@click.argument("run_id", metavar="ID", shell_complete=run_ids)
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


@command.command(
    "delete", epilog=examples("trio-claude runs delete 3f2a 77c0", "trio-claude runs delete --all --yes --json")
)
@click.argument("run_ids", metavar="[ID]...", nargs=-1, shell_complete=run_ids)
@click.option("--all", "all_", is_flag=True, help="All that have ended.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_json
@with_source
def delete(source: RunSource, run_ids: tuple[str, ...], all_: bool, yes: bool, json_: bool) -> None:
    """Delete runs that have ended."""
    if bool(run_ids) == all_:
        raise click.UsageError("name runs, or say --all")
    chosen = [None] if all_ else _ended(source, run_ids)
    what = "all runs that have ended" if all_ else f"{len(chosen)} of the runs"
    if not yes:
        click.confirm(f"Delete {what} {source.name}?", abort=True, err=True)
    deleted = 0
    try:
        for run in chosen:
            deleted += source.delete(run)
    except TrioClaudeError:
        if deleted:
            click.echo(f"deleted: {deleted}", err=True)
        raise
    if json_:
        click.echo(as_json({"deleted": deleted}))
    else:
        click.echo(f"deleted: {deleted}", err=True)
    if run_ids and deleted < len(chosen):
        raise ConfigError(
            f"{len(chosen) - deleted} of the runs that were named are not deleted; `trio-claude runs list` shows them"
        )


def _ended(source: RunSource, given: tuple[str, ...]) -> list[str | None]:
    """Return the whole ids of runs, each once, before any is deleted. Raises `ConfigError` for a live one."""
    runs = {run["id"]: run for run in (find_run(source, one) for one in given)}
    for name, run in runs.items():
        if run.get("state") == LIVE:
            raise ConfigError(f"the run {name} is live: `trio-claude runs stop` ends it")
    return list(runs)
