"""What is stored of a run, and what is asked for. Pure."""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import attrs

_quoted = json.encoder.encode_basestring
LIVE = "live"
ENDED = "ended"
Text: TypeAlias = bytes | memoryview
"""Whole lines, newlines between them: bytes, or a view on some."""
UNLISTED = ("prompt", "options")
"""What of a run is told only to who asks for that run: it may be long."""
GROUPS: Final = ("day", "identity", "model", "meta")
"""By what there are sums of what was used."""
USAGE_ROWS: Final = 10_000
"""Such sums that are told at a time."""


class PartKind(enum.IntEnum):
    """What a part of a run's history is."""

    LINES = 0
    """Lines of the CLI, numbered."""
    STDERR = 1
    """Lines of stderr, behind a numbered line."""
    SAID = 2
    """What the client said, behind a numbered line."""
    OTHER = -1
    """What only a newer server knows, behind a numbered line; nobody is told of it here."""

    @classmethod
    def _missing_(cls, _value: object) -> PartKind:
        return cls.OTHER


@attrs.frozen(kw_only=True)
class Begun:
    """A run at its start. Times are seconds since 1970."""

    id: str
    identity: str
    meta: str
    door: str
    session: str | None
    started: float
    prompt: str | None = attrs.field(repr=False)
    options: dict[str, Any] = attrs.field(repr=False)
    model: str = ""
    batch: str = ""


@attrs.frozen
class Part:
    """A part of a run's history: `count` lines in `data`, newlines between them.

    The first line's number is `first` where they are the CLI's; else they come behind the line of that number.
    """

    kind: PartKind
    first: int
    count: int
    data: bytes = attrs.field(repr=False)
    number: int = 0
    """Its place among the run's parts, from 1 on, once it is stored."""

    @classmethod
    def of_lines(cls, first: int, count: int, texts: list[Text]) -> Part:
        """Return a part of lines, of which `texts` are all, each with its newline."""
        return cls(PartKind.LINES, first, count, b"".join(texts)[:-1])

    @property
    def lines(self) -> list[bytes]:
        """The lines."""
        return self.data.split(b"\n")

    @property
    def last(self) -> int:
        """The number of the last line, or of the one before."""
        return self.first + self.count - 1 if self.kind is PartKind.LINES else self.first

    def told(self, after: int = 0) -> bytes:
        """Return what is behind line `after` as lines of JSON: `{n,line}`, `{after,stderr}`, `{after,in}`."""
        if self.kind is PartKind.OTHER:
            return b""
        lines = [_quoted(line) for line in self.data.decode("utf-8", "replace").split("\n")]
        if self.kind is PartKind.LINES:
            numbered = enumerate(lines, self.first)
            texts = [f'{{"n":{number},"line":{line}}}\n' for number, line in numbered if number > after]
        else:
            name = "stderr" if self.kind is PartKind.STDERR else "in"
            texts = [f'{{"after":{self.first},"{name}":{line}}}\n' for line in lines]
        return "".join(texts).encode()


def _as_unicode(text: str | None) -> str | None:
    """Return a text without half a surrogate pair, which JSON of a CLI may bring and no store takes."""
    return None if text is None else text.encode("utf-8", "replace").decode()


@attrs.frozen(kw_only=True)
class End:
    """How a run ended."""

    id: str
    ended: float
    reason: str
    exit_status: int | None
    signal: int | None
    lines: int
    encoding_errors: int
    tokens: int
    dollars: float
    turns: int
    error: str | None = attrs.field(converter=_as_unicode)
    receipt: dict[str, Any]
    cause: str | None = attrs.field(default=None, converter=_as_unicode)
    """`error` without the CLI's words, which alone is kept where no content is."""
    session: str | None = attrs.field(default=None, converter=_as_unicode)
    whole: bool = True


@attrs.frozen
class Deleted:
    """A run that was deleted, whose it was, and the CLI's session that it knew."""

    run: str
    identity: str
    session: str | None


@attrs.frozen(kw_only=True)
class Retention:
    """What is kept: so many days, runs and bytes. 0 is no limit."""

    days: float = 0
    runs: int = 0
    size: int = 0


@attrs.frozen(kw_only=True)
class RunRow:
    """A run as it is stored. `stored` is up to which line its history goes; `whole` whether that is all of it."""

    id: str
    identity: str
    meta: str
    door: str
    batch: str
    session: str | None
    state: str
    started: float
    ended: float | None
    reason: str | None
    exit_status: int | None
    signal: int | None
    lines: int
    encoding_errors: int
    tokens: int
    dollars: float
    error: str | None
    receipt: dict[str, Any] | None
    prompt: str | None = attrs.field(repr=False)
    options: dict[str, Any] = attrs.field(repr=False)
    stored: int
    whole: bool

    def told(self, *, content: bool) -> dict[str, Any]:
        """Return what JSON says of it; prompt and options, which may be long, only with `content`."""
        return attrs.asdict(self, recurse=False, filter=lambda field, _: content or field.name not in UNLISTED)


@attrs.frozen(kw_only=True)
class Query:
    """Which runs: of one identity (None: of all), with a meta, of a batch, in a state.

    `before` is a run that was listed before: older ones follow.
    """

    identity: str | None
    meta: str | None = None
    batch: str | None = None
    state: str | None = None
    since: float | None = None
    until: float | None = None
    before: str | None = None
    limit: int = 50


@attrs.frozen
class Page:
    """Some runs, newest first, and by which one to ask for the next page, None where there is none."""

    runs: list[RunRow]
    next: str | None


@attrs.frozen(kw_only=True)
class UsageQuery:
    """Which runs are summed up: of one identity (None: of all), from a day of UTC on, before another, by their meta.

    `by` are some of `GROUPS`, each once; a meta goes up to the first `separator` in it then. `limit` is how many rows
    there may be, -1 for all.
    """

    identity: str | None = None
    since: str | None = None
    until: str | None = None
    meta_prefix: str | None = None
    by: Sequence[str] = ("day", "identity")
    separator: str | None = None
    limit: int = USAGE_ROWS


@attrs.frozen
class UsageRow:
    """What the runs of a group have used that have ended: `seconds` from start to end, `failed` by `Reason.is_fault`.

    The group has a text for each of what was grouped by: a day of UTC (`2026-11-27`), an identity, the model that was
    asked for (empty: none was), a meta or its head (empty: the runs are gone).
    """

    group: dict[str, str]
    runs: int
    turns: int
    tokens: int
    dollars: float
    seconds: float
    failed: int

    def told(self) -> dict[str, Any]:
        """Return what JSON says of it."""
        row = attrs.asdict(self)
        return {**row.pop("group"), **row}


@attrs.frozen
class Usage:
    """Some rows, the newest day first; `truncated` is how many there may be, None where these are all."""

    rows: list[UsageRow]
    truncated: int | None

    def told(self) -> dict[str, Any]:
        """Return what JSON says of it."""
        return {"usage": [row.told() for row in self.rows], "truncated": self.truncated}


@attrs.frozen
class Statistics:
    """How a journal does: bytes in memory that are not durable yet, and for how many seconds the first of them waits.

    `faults` counts the times that it could not be written, `given_up` what it had no room for or no store takes.
    """

    waiting: int
    lag: float
    faults: int
    given_up: int
