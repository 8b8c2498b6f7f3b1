"""`trio-claude usage`."""

from __future__ import annotations

import csv
import io
from typing import Any

import click

from ..errors import ConfigError
from .completing import groups
from .examples import examples
from .moments import take_day
from .run_sources import FIGURES, GROUPS, RunSource, Summary, with_source
from .run_views import as_json, print_rows, print_text

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""How a cell begins that a spreadsheet may take for a formula."""
PLACES = {"dollars": 4, "seconds": 1}
"""Digits behind the point in a table; the other figures are whole."""


def take_groups(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[str, ...]:
    """Return by what there are to be sums; a callback of click."""
    names = value.split(",")
    if not set(names) <= set(GROUPS) or len(set(names)) < len(names):
        raise click.BadParameter(f"{value!r}; say some of {', '.join(GROUPS)}, each once, with commas between")
    return tuple(names)


@click.command(
    "usage",
    epilog=examples(
        "trio-claude usage --since 7d",
        "trio-claude usage --by model --since 2026-11-01 --until 2026-12-01",
        "trio-claude usage --by meta,day --meta TASK- --separator _ --format csv",
        "trio-claude usage --by identity --json --url http://127.0.0.1:3000 --key-file key",
    ),
)
@click.option("--since", metavar="WHEN", callback=take_day, help="From the day in which that lies.")
@click.option("--until", metavar="WHEN", callback=take_day, help="Up to before the day in which that lies.")
@click.option(
    "--by", metavar="NAMES", default="day,identity", show_default=True, callback=take_groups, shell_complete=groups,
    help="Sums for each of these, with commas between: day, identity, model, meta.",
)  # fmt: skip
@click.option("--meta", "meta_prefix", metavar="PREFIX", help="Only runs whose name begins so.")
@click.option("--separator", metavar="TEXT", help="By meta: take names up to the first TEXT in them for one.")
@click.option(
    "--format", "format_", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True,
    help="A table with a total, or rows for programs.",
)  # fmt: skip
@click.option("--json", "json_", is_flag=True, help="The same as --format json.")
@with_source
def command(source: RunSource, format_: str, json_: bool, **summary: Any) -> None:
    """Sum up runs, turns, tokens, dollars, seconds and failures of runs that have ended.

    Out of a journal's file, or at a server with --url. Days are of UTC, and whole ones: a run counts on the day on
    which it ended. Exit status: 2 for what is unknown or refused, 69 where a server can't be reached.
    """
    if json_ and format_ == "csv":
        raise click.UsageError("--json and --format csv: only one of them")
    wanted = Summary(**summary)
    used = source.usage(wanted)
    if used.truncated is not None:
        raise ConfigError(f"there are more than {used.truncated} rows; say --since, --until, --meta, or less for --by")
    if json_ or format_ == "json":
        click.echo(as_json({"usage": used.rows, "truncated": None}))
    elif format_ == "csv":
        print_text(as_csv(wanted.by, used.rows))
    else:
        print_sums(wanted.by, used.rows)


def as_csv(by: tuple[str, ...], rows: list[dict[str, Any]]) -> str:
    """Return rows as CSV with a head; a text that a spreadsheet may take for a formula gets a quote before it."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")  # csv leaves a lone \r unquoted
    writer.writerow((*by, *FIGURES))
    for row in rows:
        writer.writerow([*(_inert(row[name]) for name in by), *(row[name] for name in FIGURES)])
    return text.getvalue()


def _inert(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA) else text


def print_sums(by: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    """Print rows as a table, and a total of them."""
    total = {name: sum(row[name] for row in rows) for name in FIGURES}
    cells = [[*(row[name] for name in by), *_figures(row)] for row in rows]
    cells.append(["total", *("" for _ in by[1:]), *_figures(total)])
    print_rows((*by, *FIGURES), [name for name in by if name != "day"], FIGURES, cells)


def _figures(row: dict[str, Any]) -> list[str]:
    return [f"{row[name]:.{PLACES[name]}f}" if name in PLACES else str(row[name]) for name in FIGURES]
