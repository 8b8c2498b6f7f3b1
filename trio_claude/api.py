"""The plain HTTP routes beside the sockets: the page, health, metrics, tickets, the description of all routes.

This module must never start or stop a run, and never read a file that a client names.
"""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Awaitable, Callable, Collection
from importlib import resources
from pathlib import Path

from . import asyncapi, openapi
from .containment import Containment
from .entrance import Entrance, is_preflight
from .errors import HttpRefusal
from .history import History, StopElsewhere, check_method
from .identity.tickets import LIFETIME
from .runs import Runs
from .threads import do_apart
from .upgrade import Request, Response, json_response
from .workplace import Workplace

PAGES = {
    "/": ("dist/index.html", "text/html; charset=utf-8"),
    "/ws-demo.html": ("dist/index.html", "text/html; charset=utf-8"),
    "/page.js": ("dist/page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("dist/page.css", "text/css; charset=utf-8"),
    "/client.js": ("dist/client.js", "text/javascript; charset=utf-8"),
    "/client.d.ts": ("dist/client.d.ts", "text/plain; charset=utf-8"),
    "/react.js": ("dist/react.js", "text/javascript; charset=utf-8"),
    "/react.d.ts": ("dist/react.d.ts", "text/plain; charset=utf-8"),
    "/licenses.txt": ("dist/LICENSES.txt", "text/plain; charset=utf-8"),
}
OPEN_PATHS = frozenset({*PAGES, "/healthz", "/readyz", "/notice", "/openapi.json", "/asyncapi.json"})
"""What is answered to everybody."""
PREFLIGHT = (
    ("Access-Control-Allow-Methods", "GET, POST, DELETE"),
    ("Access-Control-Allow-Headers", "Authorization, Content-Type"),
    ("Access-Control-Max-Age", "600"),
)
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)


class Api:
    """The routes of one server."""

    def __init__(
        self,
        workplace: Workplace,
        containment: Containment,
        runs: Runs,
        entrance: Entrance,
        notice: str = "",
        *,
        demo: bool = False,
        metrics: Callable[[str], tuple[bytes, str]] | None = None,
        stop_elsewhere: StopElsewhere | None = None,
    ) -> None:
        self._workplace = workplace
        self._containment = containment
        self._runs = runs
        self._entrance = entrance
        self._history = History(runs, stop_elsewhere)
        self._notice = notice
        self._demo = demo
        self._metrics = metrics
        self._routes: dict[str, tuple[str, Callable[[Request], Response | Awaitable[Response]]]] = {
            "/healthz": ("GET", self._health),
            "/readyz": ("GET", self._readiness),
            "/metrics": ("GET", self._measure),
            "/notice": ("GET", self._tell_notice),
            "/openapi.json": ("GET", self._describe),
            "/asyncapi.json": ("GET", self._describe_sockets),
            "/api/ticket": ("POST", self._ticket),
        }

    @property
    def routes(self) -> dict[str, Collection[str]]:
        """The methods by path; `{id}` stands for a run's."""
        own = {path: (method,) for path, (method, _) in self._routes.items()}
        return {**dict.fromkeys(PAGES, ("GET",)), **own, **self._history.routes}

    async def answer(self, request: Request) -> Response:
        """Answer one request. Raises `HttpRefusal`."""
        if is_preflight(request):
            return Response(204, b"", headers=PREFLIGHT)
        if request.path in PAGES:
            check_method(request, ("GET",))
            return _page(request.path, takes_gzip(request.headers.get("accept-encoding", "")))
        if self._history.serves(request.path):
            return await self._history.answer(request)
        if request.path not in self._routes:
            raise HttpRefusal(404, "not-found", "nothing is served at this path")
        method, route = self._routes[request.path]
        check_method(request, (method,))
        response = route(request)
        return response if isinstance(response, Response) else await response

    def _health(self, _request: Request) -> Response:
        return json_response(200, {"ok": True})

    def _readiness(self, request: Request) -> Response:
        """Tell whether a run would start now; why not, and how it would be held, to those who are known."""
        cli, folder = _holds(Path(self._workplace.program).is_file), _holds(Path(self._workplace.folders).is_dir)
        draining = self._runs.draining
        ready = cli and folder and not draining
        told: dict[str, object] = {"ready": ready}
        if request.identity:
            told |= {"cli": cli, "folder": folder, "draining": draining, "containment": self._containment.mode}
        faults = {"keys": self._entrance.fault, "journal": self._runs.journal.fault if self._runs.journal else ""}
        if request.identity and request.identity.role == "admin":
            told |= {name: fault for name, fault in faults.items() if fault}
        return json_response(200 if ready else 503, told)

    def _tell_notice(self, _request: Request) -> Response:
        config = self._workplace.config
        told = {
            "notice": self._notice,
            "profile": config.profile,
            "credentials": self._entrance.asks,
            "demo": self._demo,
            "grace": config.grace_max,
        }
        return json_response(200, told)

    async def _measure(self, request: Request) -> Response:
        """Answer with a scrape, made in a thread: it lists the process's descriptors, of which there may be many."""
        if self._metrics is None:
            raise HttpRefusal(404, "no-metrics", "this server keeps no metrics; the operator can say --metrics")
        if not (request.identity and request.identity.sees_all):
            raise HttpRefusal(403, "role", "metrics are for a viewer or an admin")
        body, content_type = await do_apart(functools.partial(self._metrics, request.headers.get("accept", "")))
        return Response(200, body, content_type, (("Cache-Control", "no-store"),))

    def _describe(self, _request: Request) -> Response:
        return _description(self._entrance.asks)

    def _describe_sockets(self, _request: Request) -> Response:
        return _description_of_sockets(self._entrance.asks)

    async def _ticket(self, request: Request) -> Response:
        return json_response(200, {"ticket": await self._entrance.ticket(request), "seconds": LIFETIME})


def _holds(is_there: Callable[[], bool]) -> bool:
    """Return what a look at a path says: where it can't be looked at, no run finds it either."""
    try:
        return is_there()
    except OSError:
        return False


def takes_gzip(accepted: str) -> bool:
    """Return whether a client's Accept-Encoding names gzip, and not by a weight of nothing."""
    for coding in accepted.lower().split(","):
        name, _, weight = coding.partition(";")
        if name.strip() == "gzip":
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


@functools.cache
def _page(path: str, zipped: bool) -> Response:
    """Return a file of the page; it is read and compressed once."""
    name, content_type = PAGES[path]
    body = resources.files(__package__).joinpath("web", name).read_bytes()
    headers = (("Content-Security-Policy", POLICY), ("Cache-Control", "no-cache"), ("Vary", "Accept-Encoding"))
    if not zipped:
        return Response(200, body, content_type, headers)
    return Response(200, gzip.compress(body, mtime=0), content_type, (*headers, ("Content-Encoding", "gzip")))


@functools.cache
def _description(asks: bool) -> Response:
    pages = {path: content_type for path, (_, content_type) in PAGES.items()}
    return _document(openapi.describe(pages, OPEN_PATHS, asks=asks))


@functools.cache
def _description_of_sockets(asks: bool) -> Response:
    return _document(asyncapi.describe(asks=asks))


def _document(document: openapi.Json) -> Response:
    return Response(200, json.dumps(document).encode() + b"\n", headers=(("Cache-Control", "no-cache"),))
