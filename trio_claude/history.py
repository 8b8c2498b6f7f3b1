"""The HTTP routes of the journal: runs, their lines, what was used; and the end of a run.

Rule 1: an identity is answered of its own runs; `viewer` and `admin` of all. Another's run is as if it were not there.
Rule 2: an answer is bounded; what is longer comes in pages.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import attrs

from .errors import HttpRefusal
from .identity import Identity
from .journal import Journal, Query
from .runs import Runs
from .upgrade import Request, Response, json_response

PAGE = 50
PAGE_LIMIT = 500
"""Runs in an answer, by default and at most."""
STATES = ("live", "ended")
_RUN = re.compile(r"/api/runs/([0-9a-f]{1,64})(/lines)?")


class History:
    """The routes below /api/runs, and /api/usage."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    def serves(self, path: str) -> bool:
        """Return whether a path is one of these."""
        return path in ("/api/runs", "/api/usage") or _RUN.fullmatch(path) is not None

    async def answer(self, request: Request) -> Response:
        """Answer one request. Raises `HttpRefusal`."""
        assert request.identity
        one = _RUN.fullmatch(request.path)
        if request.method == "DELETE" and request.path != "/api/usage" and not (one and one[2]):
            return await self._delete(request.identity, one[1] if one else None, _state(request.query, "state"))
        if request.method not in ("GET", "HEAD"):
            raise HttpRefusal(405, "method", "GET it", (("Allow", "GET, DELETE"),))
        journal = self._journal()
        if request.path == "/api/usage":
            return await self._usage(journal, request)
        if one is None:
            return await self._list(journal, request)
        run = await journal.get(_whose(request.identity), one[1])
        if run is None:
            raise _unknown()
        if one[2]:
            return await self._lines(journal, run.id, request.query)
        return json_response(200, run.told(content=True))

    def _journal(self) -> Journal:
        if self._runs.journal is None:
            raise HttpRefusal(404, "no-journal", "this server keeps no journal; the operator can say --journal sqlite")
        return self._runs.journal

    async def _list(self, journal: Journal, request: Request) -> Response:
        query = request.query
        state = _state(query, "meta", "batch", "state", "before", "since", "until", "limit")
        assert request.identity
        page = await journal.find(
            Query(
                identity=_whose(request.identity),
                meta=query.get("meta"),
                batch=query.get("batch"),
                state=state,
                before=query.get("before"),
                since=_number(query, "since"),
                until=_number(query, "until"),
                limit=int(_number(query, "limit", 1, PAGE_LIMIT) or PAGE),
            )
        )
        return json_response(200, {"runs": [run.told(content=False) for run in page.runs], "next": page.next})

    async def _lines(self, journal: Journal, run: str, query: Mapping[str, str]) -> Response:
        _known(query, "after", "part")
        after, beyond = int(_number(query, "after") or 0), int(_number(query, "part") or 0)
        parts = await journal.parts(run, after, beyond)
        body = b"".join(part.told(after) for part in parts)
        more = (("X-Next-Part", str(parts[-1].number)),) if parts else ()
        return Response(200, body, "application/x-ndjson", (("Cache-Control", "no-store"), *more))

    async def _usage(self, journal: Journal, request: Request) -> Response:
        assert request.identity
        since = _known(request.query, "since").get("since", "")
        if since and not re.fullmatch(r"\d{4}-\d\d-\d\d", since):
            raise HttpRefusal(400, "bad-query", "since must be a day: YYYY-MM-DD")
        rows = await journal.usage(_whose(request.identity), since)
        return json_response(200, {"usage": [attrs.asdict(row) for row in rows]})

    async def _delete(self, identity: Identity, run: str | None, state: str | None) -> Response:
        """End a live run now; delete one that has ended, or all of the identity's that have; with `state` only that."""
        if identity.role == "viewer":
            raise HttpRefusal(403, "role", "a viewer ends and deletes nothing")
        whose = None if identity.role == "admin" else identity.name
        if run is not None and state != "ended" and self._runs.stop(run, whose):
            return json_response(202, {"stopping": True})
        if state == "live":
            raise _unknown() if run is None or await self._journal().get(whose, run) is None else _not_live()
        deleted = await self._journal().delete(whose, run)
        if run is not None and not deleted:
            raise _unknown()
        await self._runs.forget(deleted, whole=whose if run is None else None)
        return json_response(200, {"deleted": len(deleted)})


def _whose(identity: Identity) -> str | None:
    """Return whose runs an identity may read, None for everybody's."""
    return identity.name if identity.role == "user" else None


def _unknown() -> HttpRefusal:
    return HttpRefusal(404, "not-found", "there is no such run")


def _not_live() -> HttpRefusal:
    return HttpRefusal(409, "not-live", "the run is not live at this server")


def _state(query: Mapping[str, str], *names: str) -> str | None:
    """Return the state that a query names; it has no other names than `names`. Raises `HttpRefusal`."""
    state = _known(query, *names).get("state")
    if state not in (None, *STATES):
        raise HttpRefusal(400, "bad-query", "state must be live or ended")
    return state


def _known(query: Mapping[str, str], *names: str) -> Mapping[str, str]:
    """Return a query that has no other names. Raises `HttpRefusal`."""
    if unknown := sorted(set(query) - set(names)):
        raise HttpRefusal(400, "bad-query", f"unknown: {unknown[0][:64]}; there are: {', '.join(names)}")
    return query


def _number(query: Mapping[str, str], name: str, low: float = 0, high: float = 1e15) -> float | None:
    """Return a number of a query, None where it has none. Raises `HttpRefusal`."""
    if name not in query:
        return None
    try:
        value = float(query[name])
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise HttpRefusal(400, "bad-query", f"{name} must be a number from {low:g} to {high:g}")
    return value
