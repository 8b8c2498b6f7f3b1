"""The runs that a server tells of over HTTP: its key decides whose they are.

This module must never repeat a request that changes something, and never trust an answer's shape.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import attrs
import httpx

from ..errors import ConfigError
from .complaints import NOBODY, next_step
from .run_facts import number
from .run_sources import CANDIDATES, FIGURES, Away, Listed, NotNow, Piece, Run, Summary, Sums, Unreachable, Wanted
from .words import clean

PAGE = 500
"""Runs that are asked for at a time; a server gives no more."""
SEARCHED = 4 * PAGE
"""Runs among which the beginning of an id is looked for."""
TIMEOUT = httpx.Timeout(60.0, connect=10.0)
LARGEST = 10**18
"""A figure of a sum, at most: what is more is no figure."""
_MOMENTARY = (429, 502, 503, 504)
"""What a server, or a proxy whose server is away, answers where it may know better in a moment."""
_DOORS = ("/ws/claude", "/ws/session", "/api/runs", "/api/usage")


@contextmanager
def open_server(url: str, key: str | None) -> Iterator[ServerRuns]:
    """Yield the runs of a server; its address may be that of a door. Raises `ConfigError`."""
    base, host = _base(url)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    loopback = host in ("127.0.0.1", "localhost", "::1")  # a proxy of the environment is not for these
    try:
        client = httpx.Client(trust_env=not loopback, timeout=TIMEOUT, headers=headers)
    except (ImportError, ValueError) as error:  # a kind of proxy for which something is missing, or that is none
        raise ConfigError(f"--url: a proxy of the environment (…_PROXY) can't be used: {error}") from None
    except OSError as error:
        raise ConfigError(f"--url: SSL_CERT_FILE or SSL_CERT_DIR can't be used: {error}") from None
    with client:
        yield ServerRuns(client, base)


def _base(url: str) -> tuple[str, str | None]:
    """Return an address without a door's path, and its host. Raises `ConfigError`."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"--url: {url} is no address: {error}; say http://HOST:PORT") from None
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    if scheme not in ("http", "https") or not host or not _is_name(host):
        raise ConfigError(f"--url: {url} is no address of a server; say http://HOST:PORT")
    path = parts.path.rstrip("/")
    for door in _DOORS:
        path = path.removesuffix(door)
    return f"{scheme}://{parts.netloc}{path}", host


def _is_name(host: str) -> bool:
    """Return whether each part of a host is as long as one may be: what looks it up raises an error of its own kind."""
    return all(0 < len(part) < 64 for part in host.removesuffix(".").split("."))


class ServerRuns:
    """A `RunSource` over HTTP."""

    def __init__(self, client: httpx.Client, base: str) -> None:
        self._client = client
        self._base = base
        self.name: str = f"at {base}"
        self.reach: str = f"among the newest {SEARCHED} at {base}"

    def find(self, wanted: Wanted) -> Listed:
        """Return runs, newest first, page by page."""
        said = {name: value for name, value in attrs.asdict(wanted).items() if value is not None}
        runs: list[Run] = []
        while True:
            said["limit"] = min(PAGE, wanted.limit - len(runs))
            before = {"before": runs[-1]["id"]} if runs else {}
            answer = self._ask("GET", "/api/runs", {**said, **before}, unknown=bool(runs))
            if answer.status_code == 404:  # that run was deleted meanwhile; others may have begun in the same moment
                said |= {"until": math.nextafter(number(runs[-1].get("started")), math.inf), "limit": PAGE}
                answer = self._ask("GET", "/api/runs", said)
            page = self._told(answer)
            found, more = page.get("runs"), page.get("next")
            if not isinstance(found, list) or not all(isinstance(run, dict) and "id" in run for run in found):
                raise self._strange()
            known = {str(run["id"]) for run in runs}
            runs += (fresh := [run for run in found if str(run["id"]) not in known])
            if more is None or not fresh or len(runs) >= wanted.limit:
                listed = runs[: wanted.limit]
                return Listed(listed, more if len(listed) == len(runs) else str(listed[-1]["id"]))

    def get(self, run: str) -> Run | None:
        """Return one run."""
        answer = self._ask("GET", f"/api/runs/{run}", unknown=True)
        if answer.status_code == 404:
            return None
        told = self._told(answer)
        if told.get("id") != run:
            raise self._strange()
        return told

    def beginning(self, prefix: str) -> list[str]:
        """Return the ids of some runs that begin so, among the newest."""
        newest = self.find(Wanted(limit=SEARCHED)).runs
        return [str(run["id"]) for run in newest if str(run["id"]).startswith(prefix)][:CANDIDATES]

    def piece(self, run: str, part: int) -> Piece:
        """Return some of a run's history."""
        answer = self._ask("GET", f"/api/runs/{run}/lines", {"part": part})
        more = answer.headers.get("X-Next-Part")
        if more is not None and not (re.fullmatch(r"\d{1,15}", more) and int(more) > part):
            raise self._strange()
        return Piece(answer.content, None if more is None else int(more))

    def usage(self, summary: Summary) -> Sums:
        """Return what was used by those whom the key may see."""
        asked = {**attrs.asdict(summary), "by": ",".join(summary.by)}
        told = self._object("/api/usage", {name: value for name, value in asked.items() if value is not None})
        rows, truncated = told.get("usage"), told.get("truncated")
        if not isinstance(rows, list) or not all(_is_sum(row, summary.by) for row in rows):
            raise self._strange()
        if not isinstance(truncated, int | None):
            raise self._strange()
        return Sums(rows, truncated)

    def stop(self, run: str) -> None:
        """End a live run now."""
        self._ask("DELETE", f"/api/runs/{run}", {"state": "live"})

    def delete(self, run: str | None) -> int:
        """Delete a run that has ended, or all of the key's."""
        path = "/api/runs" if run is None else f"/api/runs/{run}"
        deleted = self._told(self._ask("DELETE", path, {"state": "ended"})).get("deleted")
        if not isinstance(deleted, int) or not 0 <= deleted <= LARGEST:
            raise self._strange()
        return deleted

    def _object(self, path: str, query: dict[str, Any]) -> dict[str, Any]:
        return self._told(self._ask("GET", path, query))

    def _ask(
        self, method: str, path: str, query: dict[str, Any] | None = None, *, unknown: bool = False
    ) -> httpx.Response:
        """Return an answer that is good, or with `unknown` one that says there is no such run."""
        try:
            answer = self._client.request(method, self._base + path, params=query)
        except UnicodeEncodeError:
            raise ConfigError("--meta, --batch and IDs take UTF-8") from None
        except UnicodeError as error:  # a host that begins as one written in ASCII for another, and is none
            raise ConfigError(f"--url: {self._base} is no address of a server: {error}; say http://HOST:PORT") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Away(f"can't reach {self._base}: {error}; {NOBODY}") from None
        if answer.is_success or (unknown and _code(answer) == "not-found"):
            return answer
        if answer.status_code == 401:
            hint = next_step(401, with_key="Authorization" in self._client.headers)
            raise Unreachable(f"{self._base} refused: HTTP 401: it wants a valid key or token; {hint}")
        fault = NotNow if answer.status_code in _MOMENTARY else ConfigError
        raise fault(f"{self._base} refused: {_why(answer)}")

    def _told(self, answer: httpx.Response) -> dict[str, Any]:
        said = _parsed(answer)
        if not isinstance(said, dict):
            raise self._strange()
        return said

    def _strange(self) -> ConfigError:
        return ConfigError(f"{self._base} does not answer as trio-claude does; --url takes what `serve` prints")


def _is_sum(row: object, by: tuple[str, ...]) -> bool:
    """Return whether a row has texts that it is grouped by, and figures that can be summed up."""
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in by):
        return False
    figures = [row.get(name) for name in FIGURES]
    return all(isinstance(one, int | float) and 0 <= one <= LARGEST for one in figures)


def _parsed(answer: httpx.Response) -> Any:
    try:
        return json.loads(answer.content)
    except (ValueError, RecursionError):
        return None


def _code(answer: httpx.Response) -> str:
    said = _parsed(answer)
    return str(said.get("code")) if isinstance(said, dict) else ""


def _why(answer: httpx.Response) -> str:
    said = _parsed(answer)
    text = said.get("error") if isinstance(said, dict) else None
    return clean(text)[:500] if isinstance(text, str) else f"HTTP {answer.status_code}"
