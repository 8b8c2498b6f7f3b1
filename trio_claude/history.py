"""The HTTP routes of the journal: runs, their lines, what was used; and the end of a run.

Rule 1: an identity is answered of its own runs; `viewer` and `admin` of all. Another's run is as if it were not there.
Rule 2: an answer is bounded; what is longer comes in pages.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Final

import trio

from .errors import HttpRefusal, JournalFault, NoAnswer
from .identity import Identity
from .journal import GROUPS, Deleted, Journal, Query, UsageQuery
from .queries import Choice, Day, Names, Number, Parameters, Text, read_query
from .runs import Runs
from .threads import do_apart
from .upgrade import Request, Response, json_response

PAGE: Final = 50
PAGE_LIMIT: Final = 500
"""Runs in an answer, by default and at most."""
RUN_ID: Final = "[0-9a-f]{1,64}"
LIVE, ENDED = STATES = ("live", "ended")
LIST: Final[Parameters] = {
    "meta": Text(),
    "batch": Text(),
    "state": Choice(STATES),
    "before": Text(RUN_ID, "the id of a run"),
    "since": Number(),
    "until": Number(),
    "limit": Number(1, PAGE_LIMIT, whole=True, default=PAGE),
}
LINES: Final[Parameters] = {"after": Number(whole=True), "part": Number(whole=True)}
DELETION: Final[Parameters] = {"state": Choice(STATES)}
DELETIONS: Final[Parameters] = {"state": Choice((ENDED,))}
_PIECE: Final = Text("[ -~]{0,64}", "at most 64 characters of ASCII")
USAGE: Final[Parameters] = {
    "since": Day(),
    "until": Day(),
    "by": Names(GROUPS),
    "meta_prefix": _PIECE,
    "separator": _PIECE,
}
"""What the routes may be asked; the others take no query."""

Route = Callable[[Request, str], Awaitable[Response]]
"""Answers a request that names a run, or the empty text."""

StopElsewhere = Callable[[str, str | None], Awaitable[bool]]
"""Ends a live run of an identity (None: of anybody) on another node; returns whether there was one."""


class History:
    """The routes below /api/runs, and /api/usage."""

    def __init__(self, runs: Runs, stop_elsewhere: StopElsewhere | None = None) -> None:
        self._runs = runs
        self._stop_elsewhere = stop_elsewhere
        self.routes: Mapping[str, Mapping[str, Route]] = {
            "/api/runs": {"GET": self._list, "DELETE": self._delete_all},
            "/api/runs/{id}": {"GET": self._show, "DELETE": self._delete},
            "/api/runs/{id}/lines": {"GET": self._lines},
            "/api/usage": {"GET": self._usage},
        }

    def serves(self, path: str) -> bool:
        """Return whether a path is one of these."""
        return self._find(path) is not None

    async def answer(self, request: Request) -> Response:
        """Answer one request. Raises `HttpRefusal`."""
        found = self._find(request.path)
        assert found
        route, run = found
        check_method(request, self.routes[route])
        try:
            return await self.routes[route]["GET" if request.method == "HEAD" else request.method](request, run)
        except (JournalFault, NoAnswer) as error:
            retry = (("Retry-After", str(math.ceil(error.retry_after))),)
            raise HttpRefusal(503, error.code, str(error), retry) from error

    def _find(self, path: str) -> tuple[str, str] | None:
        """Return the route of a path and the run that it names, None where it is none of these."""
        for route in self.routes:
            if found := _pattern(route).fullmatch(path):
                return route, found.groupdict().get("id", "")
        return None

    def _journal(self) -> Journal:
        if self._runs.journal is None:
            kind = "auto" if self._runs.nodes else "sqlite"
            raise HttpRefusal(404, "no-journal", f"this server keeps no journal; the operator can say --journal {kind}")
        return self._runs.journal

    async def _list(self, request: Request, _run: str) -> Response:
        asked = {"limit": PAGE, **read_query(request.query, LIST)}
        page = await self._journal().find(Query(identity=_whose(request), **asked))
        before = asked.get("before")
        if before and not page.runs and await self._journal().get(_whose(request), before) is None:
            raise _unknown("before: that run is gone; go on with until, the start of one listed before it")
        return json_response(200, {"runs": [run.told(content=False) for run in page.runs], "next": page.next})

    async def _show(self, request: Request, run: str) -> Response:
        read_query(request.query, {})
        found = await self._journal().get(_whose(request), run)
        if found is None:
            raise _unknown()
        return json_response(200, found.told(content=True))

    async def _lines(self, request: Request, run: str) -> Response:
        asked = read_query(request.query, LINES)
        after = asked.get("after", 0)
        row = await self._journal().get(_whose(request), run)
        if row is None:
            raise _unknown()
        parts = await self._journal().parts(run, after, asked.get("part", 0))
        if not parts and row.ended and await self._journal().get(_whose(request), run) is None:  # deleted just now
            raise _unknown()
        body = await do_apart(lambda: b"".join(part.told(after) for part in parts))
        more = (("X-Next-Part", str(parts[-1].number)),) if parts else ()
        return Response(200, body, "application/x-ndjson", (("Cache-Control", "no-store"), *more))

    async def _usage(self, request: Request, _run: str) -> Response:
        query = UsageQuery(identity=_whose(request), **read_query(request.query, USAGE))
        used = await self._journal().usage(query)
        return await do_apart(lambda: json_response(200, used.told()))  # it may be of 10,000 rows

    async def _delete_all(self, request: Request, _run: str) -> Response:
        """Delete all of the identity's runs that have ended, an admin's request everybody's."""
        whose = _may_delete(request)
        read_query(request.query, DELETIONS)
        deleted: list[Deleted] = []
        try:
            await self._journal().delete(whose, gone=deleted)
        except (JournalFault, trio.Cancelled) as error:
            with trio.CancelScope(shield=True):
                await self._runs.forget(deleted)
            if isinstance(error, JournalFault):
                raise JournalFault(f"{error}; deleted by then: {len(deleted)}", error.retry_after) from error
            raise
        await self._runs.forget(deleted, whole=whose)
        return json_response(200, {"deleted": len(deleted)})

    async def _delete(self, request: Request, run: str) -> Response:
        """End a live run now; delete one that has ended; with `state` only a run that is in it."""
        whose = _may_delete(request)
        state = read_query(request.query, DELETION).get("state")
        if state != ENDED and await self._stop(run, whose):
            return json_response(202, {"stopping": True})
        if state == LIVE:
            raise _unknown() if await self._journal().get(whose, run) is None else _not_live()
        deleted = await self._journal().delete(whose, run)
        if not deleted:
            raise _unknown() if await self._journal().get(whose, run) is None else _still_live()
        await self._runs.forget(deleted)
        return json_response(200, {"deleted": 1})

    async def _stop(self, run: str, whose: str | None) -> bool:
        """End a live run, wherever it is; return whether there was one."""
        if self._runs.stop(run, whose):
            return True
        return self._stop_elsewhere is not None and await self._stop_elsewhere(run, whose)


def check_method(request: Request, methods: Collection[str]) -> None:
    """Refuse a request that does something else; whatever can be read has a HEAD. Raises `HttpRefusal`."""
    if request.method in methods or (request.method == "HEAD" and "GET" in methods):
        return
    allowed = ", ".join([*methods, *(["HEAD"] if "GET" in methods else [])])
    raise HttpRefusal(405, "method", f"here is only {allowed}", (("Allow", allowed),))


@functools.cache
def _pattern(route: str) -> re.Pattern[str]:
    return re.compile(route.replace("{id}", f"(?P<id>{RUN_ID})"))


def _whose(request: Request) -> str | None:
    """Return whose runs a client may read, None for everybody's."""
    identity = _known(request)
    return identity.name if identity.role == "user" else None


def _may_delete(request: Request) -> str | None:
    """Return whose runs a client may end and delete, None for everybody's. Raises `HttpRefusal`."""
    identity = _known(request)
    if identity.role == "viewer":
        raise HttpRefusal(403, "role", "a viewer ends and deletes nothing")
    return None if identity.role == "admin" else identity.name


def _known(request: Request) -> Identity:
    assert request.identity
    return request.identity


def _unknown(told: str = "there is no such run") -> HttpRefusal:
    return HttpRefusal(404, "not-found", told)


def _still_live() -> HttpRefusal:
    return HttpRefusal(409, "live", "the run is live; it can be deleted once it has ended")


def _not_live() -> HttpRefusal:
    return HttpRefusal(409, "not-live", "the run is not live at this server")
