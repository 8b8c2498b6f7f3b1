"""The sums of what runs used, out of those of each day and of the runs that are kept. Pure.

The sums of a day stand in Redis by identity and model. By the runs' names (`meta`) only those can be told that are
kept; what the sums have beyond these is told without a name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

from ..journal import Usage, UsageQuery, UsageRow

SUM_TOKENS: Final = 10**18
"""Tokens that a sum has at most, here as in Redis."""
READ: Final = (int, int, int, float, float, int)
"""What figures are: runs, turns, tokens, dollars, seconds, failed."""
Figures: TypeAlias = list[int | float]


class Sums:
    """What a query asks for, added up."""

    def __init__(self, query: UsageQuery) -> None:
        self._query = query
        self._groups: dict[tuple[str, ...], Figures] = {}
        self._rest: dict[tuple[str, str, str], Figures] = {}
        self._seen: set[str] = set()

    @property
    def by_meta(self) -> bool:
        """Whether names are asked for, so that the runs are needed that are kept."""
        return "meta" in self._query.by or bool(self._query.meta_prefix)

    def asks_for(self, day: str) -> bool:
        """Return whether a day is asked for."""
        return (self._query.since or "") <= day and (self._query.until is None or day < self._query.until)

    def take(self, day: str, identity: str, model: str, told: Sequence[bytes]) -> None:
        """Take the sums of a day for an identity and a model."""
        figures = _read(told)
        if self.by_meta:
            self._rest[day, identity, model] = figures
        else:
            self._add({"day": day, "identity": identity, "model": model, "meta": ""}, figures)

    def name(self, run: str, day: str, identity: str, model: str, meta: str, told: Sequence[bytes]) -> None:
        """Take what a run used that is kept: turns, tokens, dollars, seconds, failed."""
        if run in self._seen or not self.asks_for(day):
            return
        self._seen.add(run)
        figures = _read((b"1", *told))
        if rest := self._rest.get((day, identity, model)):
            rest[:] = [there - one for there, one in zip(rest, figures, strict=True)]
        if meta.startswith(self._query.meta_prefix or ""):
            self._add({"day": day, "identity": identity, "model": model, "meta": self._head(meta)}, figures)

    def told(self) -> Usage:
        """Return the rows, the newest day first, the rest by name."""
        if not self._query.meta_prefix:
            for (day, identity, model), figures in self._rest.items():
                if figures[0] > 0:
                    none_below = [max(figure, 0) for figure in figures]
                    self._add({"day": day, "identity": identity, "model": model, "meta": ""}, none_below)
        by, limit = self._query.by, self._query.limit
        groups = list(self._groups)
        for place in reversed(range(len(by))):
            groups.sort(key=lambda group, place=place: group[place], reverse=by[place] == "day")  # type: ignore[misc]
        rows = [_row(by, group, self._groups[group]) for group in (groups if limit < 0 else groups[:limit])]
        return Usage(rows, limit if len(rows) < len(groups) else None)

    def _add(self, words: dict[str, str], figures: Figures) -> None:
        group = tuple(words[name] for name in self._query.by)
        sums = self._groups.setdefault(group, [0, 0, 0, 0.0, 0.0, 0])
        sums[:] = [there + one for there, one in zip(sums, figures, strict=True)]

    def _head(self, meta: str) -> str:
        """Return as much of a name as is asked for."""
        return meta.partition(self._query.separator)[0] if self._query.separator else meta


def _read(told: Sequence[bytes]) -> Figures:
    return [read(figure) for read, figure in zip(READ, told, strict=True)]


def _row(by: Sequence[str], group: tuple[str, ...], figures: Figures) -> UsageRow:
    runs, turns, tokens, dollars, seconds, failed = figures
    names = dict(zip(by, group, strict=True))
    return UsageRow(names, int(runs), int(turns), min(int(tokens), SUM_TOKENS), dollars, seconds, int(failed))
