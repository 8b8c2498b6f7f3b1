"""What is read of the histories in Redis, and what is deleted there: by scripts, each of which does a small step.

Rule 1: whatever is asked, no script looks at more than `LOOK` runs or gives much more than `PAGE_BYTES`, so that others
have their turn. Rule 2: a run is whole in what is answered, as one script found it; a page of runs is not one moment.
This module must never write a history.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any, Final

import attrs

from ..errors import JournalFault
from ..journal import UNLISTED, Deleted, Page, Part, PartKind, Query, Retention, RunRow, Usage, UsageQuery
from ..journal.facts import ENDED, LIVE
from .redis import Redis, RedisFault, Word
from .scripts import load
from .sums import Sums

LOOK: Final = 500
"""Runs that one script looks at."""
DROP: Final = 100
"""Runs that one script deletes."""
PAGE_BYTES: Final = 1024 * 1024
"""Bytes of a history that are read at a time."""
GONE: Final = 3600
"""Seconds for which a run that was deleted can't begin: so long its server may be away that has still to tell of it."""
RETRY: Final = 1.0
"""Seconds after which whoever could not be answered may ask again."""


def to_bytes(text: str) -> bytes:
    """Return a text as Redis gets it; what is no Unicode in it, which JSON may bring, is lost."""
    return text.encode("utf-8", "replace")


def to_word(word: Word) -> Word:
    """Return a word as Redis gets it."""
    return to_bytes(word) if isinstance(word, str) else word


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


_READ: Final[Mapping[str, Callable[[bytes], Any]]] = {
    **dict.fromkeys(("started", "ended", "dollars"), float),
    **dict.fromkeys(("exit_status", "signal", "lines", "encoding_errors", "tokens", "stored"), int),
    **dict.fromkeys(("receipt", "options"), json.loads),
    "whole": lambda value: value == b"1",
}
"""How a field is read that is no text."""
_NONE: Final[Mapping[str, Any]] = {
    **dict.fromkeys(("lines", "encoding_errors", "tokens", "dollars"), 0), "options": {},
}  # fmt: skip
"""What a field is that is not there, other than None."""
FIELDS: Final = tuple(field.name for field in attrs.fields(RunRow) if field.name != "id")
LISTED: Final = tuple(name for name in FIELDS if name not in UNLISTED)
FIGURES: Final = ("day", "identity", "counted", "meta", "turns", "tokens", "dollars", "seconds", "failed")
"""What is read of a run to sum up what was used."""


@attrs.frozen
class Archive:
    """The histories in one Redis. All raise `JournalFault` where it does not answer."""

    _redis: Redis

    async def find(self, query: Query) -> Page:
        """Return runs, newest first, without their prompts and options."""
        found: dict[str, RunRow] = {}
        async with aclosing(self._walk(query, LISTED, query.limit + 1)) as walk:
            async for run, values in walk:
                found[run] = _row(run, dict(zip(LISTED, values, strict=True)))
                if len(found) > query.limit:
                    break
        rows = list(found.values())
        more = len(rows) > query.limit
        return Page(rows[: query.limit], rows[query.limit - 1].id if more else None)

    async def get(self, identity: str | None, run: str) -> RunRow | None:
        """Return one run, if it is that identity's (None: anybody's)."""
        told = await self._ask("HGETALL", self._key("run", run))
        if not told:
            return None
        row = _row(run, {_text(name): value for name, value in told.items()})
        return row if identity in (None, row.identity) else None

    async def holder(self, run: str) -> str | None:
        """Return the node on which a run lives, None where it does not live."""
        node, state = await self._ask("HMGET", self._key("run", run), "node", "state")
        return _text(node) if state == LIVE.encode() else None

    async def parts(self, run: str, after: int, beyond: int) -> list[Part]:
        """Return a page of a run's history behind line `after` and part `beyond`, whole parts."""
        return _parts(await self._run("parts", run, after, beyond, PAGE_BYTES))

    async def tail(self, run: str, size: int) -> list[Part]:
        """Return the last parts of a run's history, some `size` bytes of them."""
        return _parts(await self._run("tail", run, size))[::-1]

    async def latest(self, identity: str, session: str, back: int = 0) -> RunRow | None:
        """Return the last run of an identity that had a session of the CLI and has ended, or one so far behind it."""
        who = to_bytes(identity)
        key = self._key("session", str(len(who)), "") + who + to_bytes(session)
        found = await self._ask("ZREVRANGE", key, back, back)
        return await self.get(identity, _text(found[0])) if found else None

    async def usage(self, query: UsageQuery) -> Usage:
        """Return what was used, the newest day first, the rest by name."""
        sums = Sums(query)
        for day in sorted(map(_text, await self._ask("SMEMBERS", self._key("usage")))):
            if sums.asks_for(day):
                for identity, model, figures in await self._run("usage", day, _whose(query.identity)):
                    sums.take(day, _text(identity), _text(model), figures.split())
        if sums.by_meta:
            kept = Query(identity=query.identity, state=ENDED)
            async for run, values in self._walk(kept, FIGURES, LOOK):
                day, identity, model, meta = map(_text, values[:4])
                sums.name(run, day, identity, model, meta, values[4:])
        return sums.told()

    async def _walk(
        self, query: Query, fields: tuple[str, ...], most: int
    ) -> AsyncGenerator[tuple[str, list[bytes]], None]:
        """Yield all runs that fit with the values of their fields; one that moved in between may come twice."""
        given = {"meta": query.meta, "batch": query.batch, "state": query.state}
        asked = [word for name, value in given.items() if value is not None for word in (name, to_bytes(value))]
        bounds = ["" if bound is None else repr(float(bound)) for bound in (query.since, query.until)]
        last: list[str | bytes] = [query.before or "", ""]
        while True:
            words = *bounds, *last, LOOK, most, len(asked) // 2, *asked, *fields
            *last, found = await self._run("find", _whose(query.identity), *words)
            for run, *values in found:
                yield _text(run), values
            if not last[0]:
                return

    async def delete(self, identity: str | None, runs: Iterable[str]) -> list[Deleted]:
        """Delete those of some runs that have ended and are that identity's (None: anybody's); return which."""
        told = await self._run("delete", GONE, _whose(identity), *runs)
        return [Deleted(_text(run), _text(whose), _text(session) or None) for run, whose, session in told]

    async def delete_all(self, identity: str | None) -> AsyncIterator[list[Deleted]]:
        """Delete all runs of an identity (None: of everybody) that have ended, some at a time; yield which."""
        key = self._key("runs") + (b"" if identity is None else b":" + to_bytes(identity))
        passed: list[bytes] = []
        while runs := await self._behind(key, passed):
            gone = await self.delete(identity, map(_text, runs))
            if len(gone) < len(runs):
                there = await self._ask("ZMSCORE", key, *runs)
                passed += [run for run, score in zip(runs, there, strict=True) if score is not None]
            yield gone

    async def _behind(self, key: bytes, passed: list[bytes]) -> list[bytes]:
        """Return the oldest runs behind those that were passed over; what others delete meanwhile moves no place."""
        first = 0
        while passed and not first:
            if (rank := await self._ask("ZRANK", key, passed[-1])) is None:
                passed.pop()
            else:
                first = rank + 1
        runs: list[bytes] = await self._ask("ZRANGE", key, first, first + DROP - 1)
        return runs

    async def tidy(self, retention: Retention, turn: float) -> None:
        """Delete what is not to be kept any more, the oldest first; once in `turn` seconds, whoever asks."""
        over, due, turn_ms = 0, 1, int(turn * 1000)
        while due:
            words = (retention.days, retention.runs, retention.size, over, DROP, turn_ms)
            over, due = await self._run("tidy", *words)
            turn_ms = 0

    def _key(self, *words: str) -> bytes:
        return to_bytes(self._redis.key(*words))

    async def _run(self, script: str, *words: Word) -> Any:
        with _faults():
            return await self._redis.run(load(script), (), self._redis.prefix, *map(to_word, words))

    async def _ask(self, *words: Word) -> Any:
        with _faults():
            return await self._redis.ask(*words)


def _row(run: str, told: Mapping[str, bytes | None]) -> RunRow:
    """Return a run out of its fields, as far as they were asked for."""
    values: dict[str, Any] = {name: _NONE.get(name) for name in FIELDS}
    values.update({name: _READ.get(name, _text)(value) for name in FIELDS if (value := told.get(name)) is not None})
    return RunRow(id=run, **values)


def _parts(told: Iterable[tuple[int, int, int, int, bytes]]) -> list[Part]:
    return [Part(PartKind(kind), first, count, data, number) for kind, first, count, number, data in told]


def _whose(identity: str | None) -> bytes:
    """Return whose runs are asked for as the scripts take it: an identity may be empty."""
    return b"" if identity is None else b"=" + to_bytes(identity)


@contextmanager
def _faults() -> Iterator[None]:
    try:
        yield
    except RedisFault as error:
        raise JournalFault(f"the journal can't be read: {error}", RETRY) from error
