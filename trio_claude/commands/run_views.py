"""How runs are shown in a terminal: a table, one run's facts, its lines, an export.

Rule: what anybody said reaches a terminal without control sequences, and a file or a pipe as it was said.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import click

from ..errors import ConfigError
from .moments import shown
from .run_facts import dollars, facts, seconds, state, survivors
from .run_sources import Entry, Run
from .words import clean, visible

ID_DIGITS = 8
"""Digits of an id in a table."""
WIDEST = 1000
"""Columns of a table that is not for a terminal."""
COLUMNS = (
    "started", "id", "identity", "meta", "door", "state", "lines", "tokens", "dollars", "seconds", "left",
)  # fmt: skip
WORDS, NUMBERS = COLUMNS[2:6], COLUMNS[6:]


def print_table(runs: list[Run]) -> None:
    """Print runs as a table."""
    now = time.time()
    print_rows(COLUMNS, WORDS, NUMBERS, (_row(run, now) for run in runs))


def print_rows(
    columns: Sequence[str], words: Collection[str], numbers: Collection[str], rows: Iterable[Sequence[object]]
) -> None:
    """Print a table; where the terminal is too narrow the columns of words are cut, never numbers."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    for name in columns:
        justify: Literal["right", "left"] = "right" if name in numbers else "left"
        table.add_column(name, justify=justify, no_wrap=name not in words, overflow="ellipsis", min_width=4)
    for row in rows:
        table.add_row(*(Text(_flat(str(cell))) for cell in row))
    Console(highlight=False, width=None if sys.stdout.isatty() else WIDEST).print(table)


def _row(run: Run, now: float) -> list[object]:
    lines = run.get("stored") if run.get("state") == "live" else run.get("lines")
    return [
        shown(run.get("started"))[:-3], str(run.get("id"))[:ID_DIGITS], run.get("identity"), run.get("meta"),
        run.get("door"), state(run), lines, run.get("tokens"), dollars(run), seconds(run, now), survivors(run),
    ]  # fmt: skip


def _flat(text: str) -> str:
    """Return text on one line."""
    return " ".join(visible(clean(text)).split())


def print_run(run: Run) -> None:
    """Print what is known of one run."""
    pairs = facts(run, time.time())
    if run.get("error"):
        pairs.append(("error", str(run["error"])))
    if run.get("options"):
        pairs.append(("options", json.dumps(run["options"], ensure_ascii=False)))
    for name, text in pairs:
        click.echo(f"{name:<12} {_flat(text)}")
    prompt = run.get("prompt")
    if prompt is not None:
        click.echo(f"\n{visible(clean(str(prompt)))}")


def print_entry(entry: Entry) -> None:
    """Print a line of the CLI, or of its stderr with a prefix; what the client said is no line of either."""
    if "line" in entry:
        _say(entry["line"], err=False)
    elif "stderr" in entry:
        _say(f"stderr: {entry['stderr']}", err=True)


def _say(text: str, *, err: bool) -> None:
    if (sys.stderr if err else sys.stdout).isatty():
        text = clean(text)
    click.echo(_encoded(f"{text}\n"), nl=False, err=err)


def as_json(value: object) -> str:
    """Return JSON on one line, in which no character reaches a terminal as a control sequence."""
    return json.dumps(value).replace("\x7f", "\\u007f")


def _encoded(text: str) -> bytes:
    """Return text for a file; half a surrogate pair becomes what JSON says for it."""
    return text.encode("utf-8", "backslashreplace")


@contextlib.contextmanager
def open_out(path: Path | None) -> Iterator[Callable[[str], None]]:
    """Yield what writes to a new file, which is its user's alone, or to stdout. Raises `ConfigError`.

    A file that is there is never written over, and one that can't be finished is removed.
    """
    if path is None:
        yield print_text
        return
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            try:
                yield lambda text: _write(file.write, text)
                file.flush()
            except BaseException:  # interrupted too: no half of a file stays; raised again
                path.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise ConfigError(f"--out: {path} can't be written: {error.strerror}") from None


def _write(write: Callable[[bytes], object], text: str) -> None:
    write(_encoded(text))


def print_text(text: str) -> None:
    """Print text as it is to a file or a pipe, without control sequences to a terminal."""
    click.echo(_encoded(clean(text) if sys.stdout.isatty() else text), nl=False)
