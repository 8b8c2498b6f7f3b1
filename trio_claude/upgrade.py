"""The HTTP head: answer, refuse, or hand over to a WebSocket.

Rule 1: a request is read by h11 within `head_limit` bytes and `head_timeout` seconds, and every byte of a handshake is
checked here; its answer has no byte of a client's own. Rule 2: this room knows neither routes nor runs. Rule 3:
what a route takes for its answer is its own matter, and never cut off.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import http
import json
import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from urllib.parse import parse_qsl

import attrs
import h11
import trio

from .config import Config
from .errors import HttpRefusal
from .identity import Identity

SUBPROTOCOL = "trio-claude.v1"
BODY_LIMIT = 64 * 1024
"""Bytes of a request's body; no route takes more."""
KEEP_ALIVE = 75.0
"""Seconds that an idle HTTP connection is kept."""
REQUESTS_LIMIT = 1000
"""Requests on one connection."""

REFUSALS = 64
"""Refusals of which the bytes are kept."""
LINGER = 1.0
"""Seconds that a refused client gets to read its answer while it still sends."""
LINGER_READS = 64
"""Reads of 16 KiB that are dropped meanwhile."""
ANSWER_RATE = 32 * 1024
"""Bytes of an answer that a client takes in a second, at the least; `head_timeout` comes on top."""
ALWAYS = (("X-Content-Type-Options", "nosniff"), ("Referrer-Policy", "no-referrer"))
"""Headers that every answer has."""

CONTEXT = ("traceparent", "tracestate")
"""The headers that name a trace."""

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
"""What a key is hashed with (RFC 6455, section 1.3)."""
_KEY = re.compile(rb"[A-Za-z0-9+/]{22}==")
_ABSOLUTE = re.compile(r"https?://([^/?#@]+)(?=[/?]|$)", re.IGNORECASE)
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


@attrs.frozen
class Request:
    """A checked request: the path decoded no further than its bytes, headers by lower-case name.

    Its `repr` has no part in which a credential or a client's text may stand.
    """

    method: str
    path: str
    query: Mapping[str, str] = attrs.field(repr=False)
    headers: Mapping[str, str] = attrs.field(repr=False)
    body: bytes = attrs.field(default=b"", repr=False)
    identity: Identity | None = None
    """Who sent it, where that is known."""
    address: str = ""
    """From where."""
    forwarded: bool = False
    """Whether a proxy says so."""

    @property
    def context(self) -> dict[str, str]:
        """The trace of which its sender says that it is part (W3C Trace Context), as it came."""
        return {name: self.headers[name] for name in CONTEXT if name in self.headers}


@attrs.frozen
class Response:
    """An answer; `headers` stand beside those that every answer has."""

    status: int
    body: bytes = attrs.field(repr=False)
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


@attrs.frozen
class Handshake:
    """A checked WebSocket handshake: `answer` goes to the client, `early` is what it sent behind its head.

    It may be kept for as long as the client stays, so of the headers that were checked `request` has no more.
    """

    request: Request
    answer: bytes = attrs.field(repr=False)
    early: bytes = attrs.field(repr=False)


Routes = Callable[[Request], Awaitable[Response]]


async def _let_in(request: Request) -> Request:
    """Let everybody in."""
    return request


def json_response(status: int, value: object, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """Return an answer in JSON."""
    return Response(status, json.dumps(value).encode() + b"\n", headers=(("Cache-Control", "no-store"), *headers))


def refusal_response(refusal: HttpRefusal) -> Response:
    """Return what a refused client reads."""
    return json_response(refusal.status, {"error": str(refusal), "code": refusal.code}, refusal.headers)


class _Http(h11.Connection):
    """h11's server side, which knows whether the request in progress is a HEAD: also that one's refusal has no body."""

    asks_head = False

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self.asks_head = event.method == b"HEAD"
        return event

    def start_next_cycle(self) -> None:
        super().start_next_cycle()
        self.asks_head = False


@attrs.frozen
class Site:
    """What is served: `routes` answers plain requests, `doors` are the paths that take a WebSocket.

    `check` returns a request with who sent it, `enter` lets one in whose handshake is good. Both raise `HttpRefusal`.
    `share` returns the headers by which a browser lets a page of another origin read the answer. `on_refusal` hears of
    every refusal, `on_answer` of every answer to a request that could be read: its status and how many seconds it took.
    """

    routes: Routes
    doors: frozenset[str]
    check: Callable[[Request], Awaitable[Request]] = _let_in
    enter: Callable[[Request], None] = lambda _request: None
    share: Callable[[Request], tuple[tuple[str, str], ...]] = lambda _request: ()
    on_refusal: Callable[[HttpRefusal], None] = lambda _refusal: None
    on_answer: Callable[[Request, int, float], None] = lambda _request, _status, _seconds: None


async def serve_http(
    sock: socket.socket,
    site: Site,
    config: Config,
    on_request: Callable[[], None] = lambda: None,
    waiting: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Handshake | None:
    """Answer plain requests until the client leaves; return a WebSocket handshake if one comes to one of the doors.

    `on_request` is called once the first request, good or bad, was read. What `waiting` gives is held while one is
    waited for, and not while it is answered.

    The head's limits hold for each request. Raises OSError where the connection breaks.
    """
    conn = _Http(h11.SERVER, max_incomplete_event_size=config.head_limit)
    for turn in range(REQUESTS_LIMIT):
        asked: Request | Response | None = None
        with waiting(), trio.move_on_after(KEEP_ALIVE if turn else config.head_timeout) as patience:
            if turn:
                await _wait_bytes(sock, conn)
                patience.deadline = trio.current_time() + config.head_timeout
            asked = await _hear(sock, conn, site, config.head_limit)
        if patience.cancelled_caught and not turn:
            asked = _refuse(HttpRefusal(408, "timeout", "no request head in time"), site)
        if asked is None:
            return None
        on_request()
        outcome = await _serve_request(sock, conn, site, config, asked)
        if outcome is not True:
            return outcome or None
    return None


async def _hear(sock: socket.socket, conn: _Http, site: Site, limit: int) -> Request | Response | None:
    """Return the next request, or the refusal of one that can't be read; None at the client's end."""
    try:
        return await _read_request(sock, conn, limit)
    except h11.RemoteProtocolError as error:
        error.__traceback__ = None  # h11's frames hold the error, and it holds them: garbage of a kind that stays long
        return _refuse(HttpRefusal(error.error_status_hint, "bad-request", "this is not HTTP"), site)
    except HttpRefusal as refusal:
        return _refuse(refusal, site)


async def _serve_request(
    sock: socket.socket, conn: _Http, site: Site, config: Config, asked: Request | Response
) -> Handshake | bool:
    """Serve what was heard; return a handshake, or whether the connection goes on."""
    answer: Handshake | Response = asked if isinstance(asked, Response) else await _answer(conn, site, asked)
    if isinstance(answer, Handshake):
        return answer
    with trio.move_on_after(config.head_timeout + len(answer.body) / ANSWER_RATE) as patience:
        await _send(sock, conn, answer)
    if patience.cancelled_caught or conn.our_state is not h11.DONE or conn.their_state is not h11.DONE:
        return False
    conn.start_next_cycle()
    return True


async def _answer(conn: _Http, site: Site, request: Request) -> Handshake | Response:
    """Return the answer to a request, or the handshake that it is."""
    began, shared = trio.current_time(), site.share(request)
    try:
        request = await site.check(request)
        if handshake := check_upgrade(request, bytes(conn.trailing_data[0])):
            if request.path in site.doors:
                site.enter(request)
                return handshake
            raise HttpRefusal(404, "not-found", f"no WebSocket here; there is one at {', '.join(sorted(site.doors))}")
        if request.path in site.doors:
            raise HttpRefusal(426, "upgrade", "this is a WebSocket", (("Upgrade", "websocket"),))
        response = await site.routes(request)
    except HttpRefusal as refusal:
        response = _refuse(refusal, site)
    site.on_answer(request, response.status, trio.current_time() - began)
    return attrs.evolve(response, headers=(*response.headers, *shared))


def _refuse(refusal: HttpRefusal, site: Site) -> Response:
    site.on_refusal(refusal)
    return refusal_response(refusal)


async def _read_request(sock: socket.socket, conn: _Http, limit: int) -> Request | None:
    """Return the next request with its body, None at the client's end."""
    head, body = None, bytearray()
    while True:
        event = await _next_event(sock, conn)
        if isinstance(event, h11.Request):
            head = event
            _check_size(event, limit)
            _check_framing(event)
            if _wants_upgrade(event):
                return _request(event, b"")
            if conn.they_are_waiting_for_100_continue:
                await _send_all(sock, conn.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > BODY_LIMIT:
                raise HttpRefusal(413, "too-large", f"a body takes at most {BODY_LIMIT} bytes")
        elif isinstance(event, h11.EndOfMessage) and head:
            return _request(head, bytes(body))
        else:
            return None


def _check_size(head: h11.Request, limit: int) -> None:
    """Refuse a head over the limit; h11 looks only while a head is incomplete. Raises `HttpRefusal`."""
    size = len(head.target) + sum(len(name) + len(value) + 4 for name, value in head.headers)
    if size > limit:
        raise HttpRefusal(431, "head-too-large", f"a request head takes at most {limit} bytes")


def _check_framing(head: h11.Request) -> None:
    """Refuse two lengths, and a handshake with a body: a proxy may read either otherwise. Raises `HttpRefusal`."""
    lengths = {name: value for name, value in head.headers if name in (b"content-length", b"transfer-encoding")}
    if len(lengths) > 1 or (_wants_upgrade(head) and set(lengths.values()) - {b"0"}):
        raise HttpRefusal(400, "bad-request", "a request has one length, and a handshake no body")


def _wants_upgrade(head: h11.Request) -> bool:
    """Return whether a head asks for a WebSocket; HTTP/1.0 has no upgrades, and is read as if it had asked for none."""
    return head.http_version > b"1.0" and any(
        name == b"upgrade" and value.strip().lower() == b"websocket" for name, value in head.headers
    )


def _request(head: h11.Request, body: bytes) -> Request:
    """Return a head as a `Request`. Raises `HttpRefusal` for bytes that no honest client sends."""
    headers: dict[str, str] = {}
    for name, value in head.headers:
        key, text = name.decode("ascii"), value.decode("latin-1")
        if key in ("host", "origin", "sec-websocket-key", "authorization") and key in headers:
            raise HttpRefusal(400, "bad-request", f"two {key} headers")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    if not _wants_upgrade(head):
        headers.pop("upgrade", None)
    host, target = _split_target(head.target.decode("ascii"))
    headers |= {"host": host} if host else {}
    path, _, query = target.partition("?")
    return Request(head.method.decode("ascii"), path, _query(query), headers, body)


def _split_target(target: str) -> tuple[str, str]:
    """Return the host of a target, which counts before the header's, and its path. Raises `HttpRefusal`."""
    host = ""
    if found := _ABSOLUTE.match(target):
        host, target = found[1], target[found.end() :]
        target = target if target.startswith("/") else f"/{target}"
    if not target.startswith("/"):
        raise HttpRefusal(400, "bad-request", "the target must be a path, or a whole address with http or https")
    return host, target


def _query(text: str) -> dict[str, str]:
    """Return what is asked behind the question mark. Raises `HttpRefusal` where a name comes twice."""
    pairs = parse_qsl(text, keep_blank_values=True)
    if len(query := dict(pairs)) < len(pairs):
        raise HttpRefusal(400, "bad-request", "a name stands twice in the query")
    return query


async def _next_event(sock: socket.socket, conn: _Http) -> object:
    while True:
        event = conn.next_event()
        if event is not h11.NEED_DATA:
            return event
        conn.receive_data(await _receive(sock))


async def _wait_bytes(sock: socket.socket, conn: _Http) -> None:
    """Wait until a next request begins, for one that is here already until the others had their turn."""
    if conn.trailing_data[0]:
        await trio.lowlevel.checkpoint()
    else:
        await trio.lowlevel.wait_readable(sock)


async def _receive(sock: socket.socket) -> bytes:
    while True:
        await trio.lowlevel.wait_readable(sock)
        try:
            return sock.recv(16384)
        except BlockingIOError:
            continue


async def _send(sock: socket.socket, conn: _Http, response: Response) -> None:
    """Send an answer whole; behind a refusal the connection is over. Raises OSError, or trio.ClosedResourceError."""
    if conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
        return
    if response.status < 400:
        await _send_all(sock, _render(conn, response))
        return
    data = _render_refusal(response)
    await _send_all(sock, data.removesuffix(response.body) if conn.asks_head else data)
    await _linger(sock)


@functools.lru_cache(REFUSALS)
def _render_refusal(response: Response) -> bytes:
    """Return the bytes of a refusal. Of these there are few, and to send one again should cost little."""
    return _render(_Http(h11.SERVER), response, ("Connection", "close"))


def _render(conn: _Http, response: Response, *more: tuple[str, str]) -> bytes:
    """Return the bytes of an answer to what was read on `conn`."""
    headers = [("Content-Type", response.content_type), ("Content-Length", str(len(response.body))), *more]
    head = h11.Response(
        status_code=response.status,
        headers=[*headers, *ALWAYS, *response.headers],
        reason=http.HTTPStatus(response.status).phrase.encode(),
    )
    data = conn.send(head) or b""
    if not conn.asks_head:
        data += conn.send(h11.Data(data=response.body)) or b""
    return data + (conn.send(h11.EndOfMessage()) or b"")


async def _linger(sock: socket.socket) -> None:
    """Let a refused client read its answer: a close with its bytes unread would be a reset."""
    sock.shutdown(socket.SHUT_WR)
    with trio.move_on_after(LINGER):
        for _ in range(LINGER_READS):
            if not await _receive(sock):
                return


async def _send_all(sock: socket.socket, data: bytes) -> None:
    with memoryview(data) as view:
        sent = 0
        while sent < len(view):
            try:
                sent += sock.send(view[sent:])
            except BlockingIOError:
                await trio.lowlevel.wait_writable(sock)


# -- the checks, in the order of the flow -----------------------------------------------------------------------------


def asks_upgrade(request: Request) -> bool:
    """Return whether a request is to become a WebSocket; one that is not is answered over HTTP."""
    return request.headers.get("upgrade", "").strip().lower() == "websocket"


def check_upgrade(request: Request, early: bytes) -> Handshake | None:
    """Return the handshake in a request, None where it asks for no upgrade. Raises `HttpRefusal`."""
    headers = request.headers
    if not asks_upgrade(request):
        return None
    if request.method != "GET" or "upgrade" not in _tokens(headers.get("connection", "")):
        raise HttpRefusal(400, "bad-handshake", "a WebSocket handshake is a GET with Connection: Upgrade")
    if headers.get("sec-websocket-version") != "13":
        raise HttpRefusal(426, "version", "WebSocket version 13 is spoken here", (("Sec-WebSocket-Version", "13"),))
    key = headers.get("sec-websocket-key", "").encode("latin-1")
    if not _KEY.fullmatch(key):
        raise HttpRefusal(400, "bad-handshake", "Sec-WebSocket-Key must be 16 bytes in base64")
    offered = _tokens(headers.get("sec-websocket-protocol", ""), lower=False)
    if not all(_TOKEN.fullmatch(token.encode("latin-1")) for token in offered):
        raise HttpRefusal(400, "bad-handshake", "Sec-WebSocket-Protocol takes tokens")
    subprotocol = SUBPROTOCOL if SUBPROTOCOL in offered else None
    return Handshake(attrs.evolve(request, headers=request.context), _switch(key, subprotocol), early)


def _switch(key: bytes, subprotocol: str | None) -> bytes:
    """Return the answer to a handshake (RFC 6455, section 4.2.2)."""
    accepted = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
    lines = [
        b"HTTP/1.1 101 Switching Protocols",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Accept: " + accepted,
        *([b"Sec-WebSocket-Protocol: " + subprotocol.encode()] if subprotocol else []),
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _tokens(value: str, *, lower: bool = True) -> list[str]:
    parts = (part.strip() for part in value.split(","))
    return [part.lower() if lower else part for part in parts if part]
