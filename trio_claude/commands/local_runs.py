"""The runs in a journal's file on this machine. Whoever may read the file sees everybody's.

This module must never make a journal, and never write to one but to delete a run that has ended; SQLite may make files
of its own beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from ..errors import ConfigError
from ..journal import Query, UsageQuery
from ..journal.visits import Visit, delete_local, named
from .run_sources import CANDIDATES, Listed, Piece, Run, Summary, Sums, Wanted


class LocalRuns:
    """A `RunSource` over a file; each look is a connection of its own, so a server is never held up."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.name: str = f"in {path}"
        self.reach: str = self.name

    @contextmanager
    def _look(self) -> Iterator[Visit]:
        with named(self._path), Visit(self._path) as visit:
            try:
                yield visit
            except UnicodeEncodeError:
                raise ConfigError("--meta, --batch and --separator take UTF-8") from None

    def find(self, wanted: Wanted) -> Listed:
        """Return runs, newest first."""
        query = Query(
            identity=None, meta=wanted.meta, batch=wanted.batch, state=wanted.state, since=wanted.since,
            until=wanted.until, limit=wanted.limit,
        )  # fmt: skip
        with self._look() as visit:
            page = visit.find(query)
        return Listed([run.told(content=False) for run in page.runs], page.next)

    def get(self, run: str) -> Run | None:
        """Return one run."""
        with self._look() as visit:
            found = visit.get(None, run)
        return found.told(content=True) if found else None

    def beginning(self, prefix: str) -> list[str]:
        """Return the ids of some runs that begin so."""
        with self._look() as visit:
            return visit.beginning(prefix, CANDIDATES)

    def piece(self, run: str, part: int) -> Piece:
        """Return some of a run's history."""
        with self._look() as visit:
            parts = visit.parts(run, 0, part)
        return Piece(b"".join(part.told() for part in parts), parts[-1].number if parts else None)

    def usage(self, summary: Summary) -> Sums:
        """Return what was used by everybody."""
        with self._look() as visit:
            used = visit.usage(UsageQuery(**attrs.asdict(summary)))
        return Sums([row.told() for row in used.rows], used.truncated)

    def stop(self, run: str) -> None:
        """Say that only its server ends a run. Raises `ConfigError`."""
        raise ConfigError(f"only its server can end the run {run}: name it with --url")

    def delete(self, run: str | None) -> int:
        """Delete a run that has ended or whose server is dead, or all such; return how many."""
        return delete_local(self._path, run)
