"""Where `runs` and `usage` read: one small interface over a local journal and a server's API, and what both share.

Values are what the API's JSON holds. What can't be done is a `ConfigError`, or `Unreachable` where no server answers.
"""

from __future__ import annotations

import contextlib
import functools
import json
import operator
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

import attrs
import click

from ..errors import ConfigError, TrioClaudeError
from ..quarters import journal_file
from .complaints import complain
from .completing import files
from .credentials import find_key, key_option
from .statuses import Status

LIVE = "live"
GROUPS = ("day", "identity", "model", "meta")
"""By what usage is summed up."""
FIGURES = ("runs", "turns", "tokens", "dollars", "seconds", "failed")
"""What there are sums of."""
LEAST_DIGITS = 4
"""Hex digits of an id that are enough to look for it."""
WHOLE_DIGITS = 32
"""Hex digits of a run's id."""
CANDIDATES = 4
"""Runs that are looked for where an id is a prefix."""
PERIOD = 0.2
"""Seconds between two looks at a run that is followed."""
PATIENCE = 60.0
"""Seconds for which a server that has no answer for the moment is asked again, while a run is followed."""
PAUSE = 1.0
"""Seconds between two such requests."""
JOURNAL, STATE = "TRIO_CLAUDE_JOURNAL", "TRIO_CLAUDE_STATE"

_T = TypeVar("_T")
_SHOWN = "`trio-claude runs list` shows them"

Run: TypeAlias = dict[str, Any]
"""A run as `GET /api/runs/ID` tells it."""
Entry: TypeAlias = dict[str, Any]
"""A line of a run's history: {n,line}, {after,in} or {after,stderr}."""


class Unreachable(TrioClaudeError):
    """A server that does not answer, or lets nobody in without a good key."""


class Away(Unreachable):
    """A server that does not answer, maybe for the moment only."""


class NotNow(ConfigError):
    """What a server has no answer to just now."""


@attrs.frozen(kw_only=True)
class Wanted:
    """Which runs: times are seconds since 1970."""

    meta: str | None = None
    batch: str | None = None
    state: str | None = None
    since: float | None = None
    until: float | None = None
    limit: int = 20


@attrs.frozen
class Listed:
    """Runs, newest first, without their prompts; `next` is the last one's id where there are more."""

    runs: list[Run]
    next: str | None


@attrs.frozen(kw_only=True)
class Summary:
    """What is summed up: by which of `GROUPS`, from a day of UTC on, before another, of which names.

    A name goes up to the first `separator` in it.
    """

    by: tuple[str, ...]
    since: str | None = None
    until: str | None = None
    meta_prefix: str | None = None
    separator: str | None = None


@attrs.frozen
class Sums:
    """Rows, each with what it is grouped by and `FIGURES`; `truncated` is how many there may be, if there are more."""

    rows: list[dict[str, Any]]
    truncated: int | None


@attrs.frozen
class Piece:
    """A piece of a run's history as lines of JSON; `next` is where to go on, None at the end."""

    data: bytes
    next: int | None


class RunSource(Protocol):
    """What the commands need. Each call raises `ConfigError`, or `Unreachable`."""

    name: str
    """Where the runs are, for a person: `in FILE`, `at URL`."""
    reach: str
    """Where the beginning of an id is looked for."""

    def find(self, wanted: Wanted) -> Listed:
        """Return runs, newest first."""

    def get(self, run: str) -> Run | None:
        """Return one run with its prompt and options."""

    def beginning(self, prefix: str) -> list[str]:
        """Return the ids of some runs that begin so."""

    def piece(self, run: str, part: int) -> Piece:
        """Return some of a run's history, behind a part of it."""

    def usage(self, summary: Summary) -> Sums:
        """Return what was used, the newest day first."""

    def stop(self, run: str) -> None:
        """End a live run now; never delete one."""

    def delete(self, run: str | None) -> int:
        """Delete a run that has ended, or all; return how many."""


def with_source(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command its source, by the options that say which."""

    @functools.wraps(function)
    def command(journal: str | None, url: str | None, key_file: Path | None, **options: Any) -> Any:
        try:
            with open_source(journal, url, key_file) as source:
                return function(source, **options)
        except Unreachable as error:
            complain(error)
            sys.exit(Status.UNREACHABLE)

    text = "The journal's file. [default: the one that `serve` has]"
    with_url = click.option("--url", help="A server to ask, instead of reading a file.")(key_option(command))
    return click.option("--journal", metavar="PATH", help=text, shell_complete=files)(with_url)


@contextlib.contextmanager
def open_source(journal: str | None, url: str | None, key_file: Path | None) -> Iterator[RunSource]:
    """Open a journal's file, or the way to a server. Raises `ConfigError`."""
    if url is None:
        from .local_runs import LocalRuns  # each takes a while to import, and a command needs one

        yield LocalRuns(journal_path(journal))
        return
    if journal is not None:
        raise ConfigError("--journal names a file, --url a server: only one of them")
    from .server_runs import open_server

    with open_server(url, find_key(key_file)) as runs:
        yield runs


def journal_path(given: str | None) -> Path:
    """Return the file that is named, as a path or as `serve` takes it, else the one that `serve` has."""
    if given is not None:
        return Path(given.removeprefix("sqlite:")).absolute()
    setting = os.environ.get(JOURNAL) or "auto"
    if setting not in ("auto", "sqlite") and not setting.startswith("sqlite:"):
        raise ConfigError(f"{JOURNAL} is {setting!r}, which is no file: --journal names one, --url asks a server")
    return journal_file(setting, os.environ.get(STATE, ""), os.environ)


# -- the same over every source ----------------------------------------------------------------------------------------


def find_run(source: RunSource, given: str) -> Run:
    """Return the run of an id, or of the beginning of one. Raises `ConfigError`."""
    text = given.lower()
    if not re.fullmatch(rf"[0-9a-f]{{{LEAST_DIGITS},64}}", text):
        raise ConfigError(f"ID takes {LEAST_DIGITS} to 64 hex digits, not {given[:80]!r}; {_SHOWN}")
    if (run := source.get(text)) is not None:
        return run
    cut = len(text) < WHOLE_DIGITS
    found = source.beginning(text) if cut else []
    if len(found) > 1:
        raise ConfigError(
            f"ID: {text} is ambiguous: {', '.join(found[: CANDIDATES - 1])}{_more(found)}; give more of it"
        )
    if not found or (run := source.get(found[0])) is None:
        raise ConfigError(f"there is no run {text} {source.reach if cut else source.name}; {_SHOWN}")
    return run


def _more(found: list[str]) -> str:
    return " and more" if len(found) >= CANDIDATES else ""


def read_pieces(source: RunSource, run: str, *, follow: bool = False) -> Iterator[bytes]:
    """Yield a run's history in pieces; with `follow`, patiently, also what comes, until the run has ended."""
    ask, part = patiently if follow else operator.call, 0
    while True:
        over = not follow or ask(functools.partial(_still, source, run)).get("state") != LIVE  # before what is read
        while (piece := ask(functools.partial(source.piece, run, part))).next is not None:
            part = piece.next
            yield piece.data
        if over:
            ask(functools.partial(_still, source, run))  # what was deleted meanwhile ends in the same way
            return
        time.sleep(PERIOD)


def patiently(ask: Callable[[], _T]) -> _T:
    """Return an answer; where there is none for the moment, say so and ask again for `PATIENCE` seconds."""
    began: float | None = None
    while True:
        try:
            return ask()
        except (Away, NotNow) as error:
            if began is None:
                began = time.monotonic()
                complain(f"{error}; trying again for {PATIENCE:g} s")
            if time.monotonic() - began >= PATIENCE:
                raise
        time.sleep(PAUSE)  # a command of its own process: nothing else waits meanwhile


def _still(source: RunSource, run: str) -> Run:
    if (found := source.get(run)) is None:
        raise ConfigError(f"the run {run} was deleted; {_SHOWN}")
    return found


def read_entries(source: RunSource, run: str, *, follow: bool = False) -> Iterator[Entry]:
    """Yield a run's history entry by entry."""
    for data in read_pieces(source, run, follow=follow):
        for line in data.split(b"\n"):
            if line:
                yield _entry(source, line)


def _entry(source: RunSource, line: bytes) -> Entry:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict) or not isinstance(said.get("line", said.get("in", said.get("stderr"))), str):
        raise ConfigError(f"what is told {source.name} is no run's history; name another with --journal or --url")
    return said


def ended_well(run: Run) -> bool:
    """Return whether a run came to a good end: the CLI's own or its client's, and not by request of somebody else."""
    receipt = run.get("receipt")
    left = receipt.get("survivors") if isinstance(receipt, dict) else None
    return run.get("reason") in ("exit", "stopped") and not run.get("error") and not left
