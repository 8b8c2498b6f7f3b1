"""The plain HTTP routes beside the sockets: the page, health and readiness.

This module must never start or stop a run, and never read a file that a client names.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from .containment import Containment
from .errors import HttpRefusal
from .runs import Runs
from .upgrade import Request, Response, json_response
from .workplace import Workplace

PAGES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/ws-demo.html": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)


class Api:
    """The routes of one server."""

    def __init__(self, workplace: Workplace, containment: Containment, runs: Runs, notice: str = "") -> None:
        self._workplace = workplace
        self._containment = containment
        self._runs = runs
        self._notice = notice
        self._routes: dict[str, Callable[[], Response]] = {
            "/healthz": self._health,
            "/readyz": self._readiness,
            "/notice": self._tell_notice,
        }

    async def answer(self, request: Request) -> Response:
        """Answer one request. Raises `HttpRefusal`."""
        if request.path not in PAGES and request.path not in self._routes:
            raise HttpRefusal(404, "not-found", "nothing is served at this path")
        if request.method not in ("GET", "HEAD"):
            raise HttpRefusal(405, "method", "GET it", (("Allow", "GET"),))
        if request.path in PAGES:
            return _page(request.path)
        return self._routes[request.path]()

    def _health(self) -> Response:
        return json_response(200, {"ok": True})

    def _readiness(self) -> Response:
        """Tell whether a run would start now."""
        checks = {"cli": Path(self._workplace.program).is_file(), "draining": self._runs.draining}
        ready = checks["cli"] and not checks["draining"]
        return json_response(200 if ready else 503, {"ready": ready, **checks, "containment": self._containment.mode})

    def _tell_notice(self) -> Response:
        return json_response(200, {"notice": self._notice, "profile": self._workplace.config.profile})


@functools.cache
def _page(path: str) -> Response:
    name, content_type = PAGES[path]
    body = resources.files(__package__).joinpath("web", name).read_bytes()
    return Response(200, body, content_type, (("Content-Security-Policy", POLICY), ("Cache-Control", "no-cache")))
